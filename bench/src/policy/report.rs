//! The figures of one run, as a table for people and as JSON.

use std::fmt::Write as _;

use serde_json::{Value, json};

use crate::{
    figures::Figures,
    machine::Machine,
    samples::{self, Better, Party, Plan, Reading, Section},
};

/// A bound that a figure should keep.
#[derive(Clone, Copy, Debug)]
pub(super) enum Target {
    /// The median.
    Median(f64),
    /// The value that 99 of 100 do not exceed.
    P99(f64),
    /// Every one.
    Most(f64),
    /// None was set: for comparison.
    None,
}

impl Target {
    fn bound(self) -> Option<(&'static str, f64)> {
        match self {
            Self::Median(bound) => Some(("median", bound)),
            Self::P99(bound) => Some(("p99", bound)),
            Self::Most(bound) => Some(("most", bound)),
            Self::None => None,
        }
    }

    fn reached(self, figures: &Figures) -> Option<bool> {
        let (value, bound) = match self {
            Self::Median(bound) => (figures.median(), bound),
            Self::P99(bound) => (figures.quantile(0.99), bound),
            Self::Most(bound) => (figures.quantile(1.0), bound),
            Self::None => return None,
        };
        Some(value <= bound)
    }
}

struct Row {
    row: &'static str,
    what: String,
    target: Target,
    figures: Figures,
    note: String,
}

/// All of them.
pub(super) struct Report {
    machine: Machine,
    rows: Vec<Row>,
}

impl Report {
    pub(super) fn new(machine: Machine) -> Self {
        Self {
            machine,
            rows: Vec::new(),
        }
    }

    /// One line.
    pub(super) fn machine(&self) -> String {
        format!("{}, load {}", self.machine, self.machine.load_before)
    }

    /// Adds a figure, and prints it at once: a run takes minutes.
    pub(super) fn add(
        &mut self,
        row: &'static str,
        what: impl Into<String>,
        target: Target,
        figures: Option<Figures>,
        note: impl Into<String>,
    ) -> anyhow::Result<()> {
        let what = what.into();
        let figures = figures.ok_or_else(|| anyhow::anyhow!("{row}: {what}: nothing was measured"))?;
        let row = Row {
            row,
            what,
            target,
            figures,
            note: note.into(),
        };
        println!("{}: {}: {} {}", row.row, row.what, row.figures, row.note);
        self.rows.push(row);
        Ok(())
    }

    /// For the data sheet. Only bounds of medians are its targets.
    pub(super) fn samples(&self, machine: &Machine) -> Vec<samples::Row> {
        self.rows
            .iter()
            .map(|row| {
                let words = format!("policy-{}-{}", row.row, row.what.to_lowercase());
                let id: String = words
                    .split(|letter: char| !letter.is_ascii_alphanumeric())
                    .filter(|word| !word.is_empty())
                    .collect::<Vec<_>>()
                    .join("-");
                let plan = Plan {
                    id,
                    title: row.what.clone(),
                    section: Section::Policy,
                    unit: row.figures.unit().to_owned(),
                    better: Better::Lower,
                    target: match row.target {
                        Target::Median(bound) => Some(samples::Target::Subject(bound)),
                        _ => None,
                    },
                    parameters: [].into(),
                };
                let subject = Party::new(
                    "ringwall",
                    format!("`ringwall-bench policy {}`, in memory", row.row),
                );
                let readings = row.figures.taken().iter().map(|value| Reading::from(*value));
                samples::Row::alone(&plan, machine, subject, readings)
            })
            .collect()
    }

    /// In Markdown.
    pub(super) fn table(&self) -> String {
        let mut text = String::from(
            "| row | what | target | median | range | p99 | reached | |\n|---|---|---|---|---|---|---|---|\n",
        );
        for row in &self.rows {
            let json = row.figures.json();
            let number = |key: &str| plain(json[key].as_f64().unwrap_or_default());
            let unit = json["unit"].as_str().unwrap_or_default();
            let target = match row.target.bound() {
                Some((of, bound)) => format!("{of} {} {unit}", plain(bound)),
                None => String::new(),
            };
            let reached = match row.target.reached(&row.figures) {
                Some(true) => "yes",
                Some(false) => "**no**",
                None => "",
            };
            // Writing to a string does not fail.
            let _ = writeln!(
                text,
                "| {} | {} | {target} | {} {unit} | {} to {} ({}) | {} | {reached} | {} |",
                row.row,
                row.what,
                number("median"),
                number("least"),
                number("most"),
                json["runs"],
                number("p99"),
                row.note
            );
        }
        text
    }

    pub(super) fn json(&self) -> Value {
        let rows: Vec<Value> = self
            .rows
            .iter()
            .map(|row| {
                json!({
                    "row": row.row,
                    "what": row.what,
                    "command": format!("ringwall-bench policy {}", row.row),
                    "target": row.target.bound().map(|(of, bound)| json!({"of": of, "bound": bound})),
                    "reached": row.target.reached(&row.figures),
                    "figures": row.figures.json(),
                    "note": row.note,
                })
            })
            .collect();
        json!({"machine": self.machine, "rows": rows})
    }
}

/// Three digits that count.
fn plain(value: f64) -> String {
    match value.abs() {
        0.0 => "0".to_owned(),
        size if size < 10.0 => format!("{value:.2}"),
        size if size < 100.0 => format!("{value:.1}"),
        _ => format!("{value:.0}"),
    }
}
