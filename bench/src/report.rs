//! The data sheet: `bench/REPORT.md`, computed from the samples in `bench/results` and from nothing else.

mod plot;

use std::{
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context, bail, ensure};
use ringwall_bench_memory::{instructions::TOTAL, stages::STAGES};

use crate::samples::{self, Better, Outcome, Party, Row, STEADY, Section, Spread, Target};

/// Options of the report.
#[derive(clap::Args, Debug)]
#[command(after_help = "Examples:\n  \
    ringwall-bench report            # writes REPORT.md from results/*.json\n  \
    ringwall-bench report --check    # recomputes every figure; exit status 1 where REPORT.md differs")]
pub(crate) struct Options {
    /// Folder with `results` (one JSON file a row) and `REPORT.md`
    #[arg(long, value_name = "DIR", default_value = concat!(env!("CARGO_MANIFEST_DIR")), hide_default_value = true)]
    folder: PathBuf,
    /// Write nothing: recompute everything, and fail where the report differs from its samples
    #[arg(long)]
    check: bool,
}

/// Status 1 where the report differs from its samples.
pub(crate) fn run(options: &Options) -> anyhow::Result<ExitCode> {
    if !options.check {
        return write_all(&options.folder).map(|()| ExitCode::SUCCESS);
    }
    Ok(crate::held(check(&options.folder)))
}

/// Recomputes everything.
fn check(folder: &Path) -> anyhow::Result<()> {
    let rows = samples::load_all(&folder.join("results"))?;
    let files = files(&rows)?;
    for (name, text) in &files {
        compare(&folder.join(name), text)?;
    }
    for plot in plots_in(folder)? {
        ensure!(
            files.iter().any(|(name, _)| *name == plot),
            "{}: the samples give no such picture; run `ringwall-bench report`",
            folder.join(plot).display()
        );
    }
    Ok(())
}

/// Pictures of a folder, as paths in it.
fn plots_in(folder: &Path) -> anyhow::Result<Vec<String>> {
    let plots = folder.join("plots");
    if !plots.exists() {
        return Ok(Vec::new());
    }
    fs::read_dir(&plots)
        .with_context(|| format!("cannot read {}", plots.display()))?
        .map(|entry| Ok(format!("plots/{}", entry?.file_name().to_string_lossy())))
        .collect()
}

/// Writes the report from the samples in a folder's `results`.
///
/// # Errors
/// A sample is damaged, or a file cannot be written.
pub(crate) fn write_all(folder: &Path) -> anyhow::Result<()> {
    let rows = samples::load_all(&folder.join("results"))?;
    let files = files(&rows)?;
    for (name, text) in &files {
        write(&folder.join(name), text)?;
    }
    // Of rows that are gone.
    for plot in plots_in(folder)? {
        if !files.iter().any(|(name, _)| *name == plot) {
            let file = folder.join(plot);
            fs::remove_file(&file).with_context(|| format!("cannot remove {}", file.display()))?;
        }
    }
    Ok(())
}

/// Every file of the report: its path in the folder, and its content.
fn files(rows: &[Row]) -> anyhow::Result<Vec<(String, String)>> {
    let text = markdown(rows)?;
    let machine = rows
        .iter()
        .find(|row| row.why_skipped().is_none())
        .map_or_else(String::new, |row| row.machine.to_string());
    Ok(std::iter::once(("REPORT.md".to_owned(), text))
        .chain(plots(rows, &machine))
        .collect())
}

/// Every picture: its path in the folder, and its content.
fn plots(rows: &[Row], machine: &str) -> Vec<(String, String)> {
    let all: Vec<&Row> = rows.iter().collect();
    let bars = sections(rows).into_iter().filter_map(|section| {
        let own: Vec<&Row> = rows.iter().filter(|row| row.plan.section == section).collect();
        Some((section.plot(), plot::ratios(section.title(), &own, machine)?))
    });
    let curves = plot::CURVES
        .iter()
        .filter_map(|curves| Some((plot_path(curves.name), plot::curves(curves, &all, machine)?)));
    bars.chain(curves).collect()
}

fn plot_path(name: &str) -> String {
    format!("plots/{name}.svg")
}

/// Those that rows have, in the report's order.
fn sections(rows: &[Row]) -> Vec<Section> {
    let mut sections: Vec<Section> = rows.iter().map(|row| row.plan.section).collect();
    sections.sort_unstable();
    sections.dedup();
    sections
}

fn write(file: &Path, text: &str) -> anyhow::Result<()> {
    let write = || -> anyhow::Result<()> {
        if let Some(folder) = file.parent() {
            fs::create_dir_all(folder)?;
        }
        fs::write(file, text)?;
        Ok(())
    };
    write().with_context(|| format!("cannot write {}", file.display()))
}

/// Fails at the first line that differs.
fn compare(file: &Path, computed: &str) -> anyhow::Result<()> {
    let written = fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
    if written == computed {
        return Ok(());
    }
    let line = written
        .lines()
        .zip(computed.lines())
        .position(|(a, b)| a != b)
        .unwrap_or_else(|| written.lines().count().min(computed.lines().count()));
    bail!(
        "{}:{}: differs from what the samples say; run `ringwall-bench report`\n  written:  {}\n  computed: {}",
        file.display(),
        line + 1,
        written.lines().nth(line).unwrap_or("(end)"),
        computed.lines().nth(line).unwrap_or("(end)")
    )
}

impl Section {
    fn title(self) -> &'static str {
        match self {
            Self::Throughput => "Throughput",
            Self::Latency => "Latency",
            Self::Connections => "Connections and new flows",
            Self::Memory => "In memory, by stage",
            Self::Pods => "Pods",
            Self::Policy => "Changes of policy",
            Self::Failures => "Failures and floods",
            Self::Footprint => "Memory in use",
        }
    }

    /// The picture of its ratios, from the report's folder.
    fn plot(self) -> String {
        let words = self.title().to_lowercase().replace(',', "");
        plot_path(&words.replace(' ', "-"))
    }
}

/// The report.
fn markdown(rows: &[Row]) -> anyhow::Result<String> {
    let measured: Vec<&Row> = rows.iter().filter(|row| row.why_skipped().is_none()).collect();
    let Some(first) = rows.first() else {
        bail!("there are no samples: run `make bench`");
    };
    for row in &measured {
        ensure!(
            row.machine.is_same(&measured[0].machine),
            "rows `{}` and `{}` are of two machines or builds ({}; {}): their figures do not belong in one report; delete the \
             files of one",
            measured[0].plan.id,
            row.plan.id,
            measured[0].machine,
            row.machine
        );
    }
    let mut text = String::from("# What ringwall was measured to do\n\n");
    let machine = machine_line(measured.first().map_or(first, |row| row), rows);
    // Writing to a string does not fail, here and below.
    let _ = write!(
        text,
        "{machine}\n\nWritten by `ringwall-bench report` from the samples in [results](results); `ringwall-bench report --check` \
         recomputes every figure. [DATASHEET.md](DATASHEET.md) says how to read it.\n\n\
         A figure is the median over rounds of subject divided by control, both measured in the same round, with the lowest and \
         the highest round behind it. **≈** marks a figure whose control moved by more than {:.0} % between rounds, or that has \
         one round: the machine did something else meanwhile, so it is an indication, no result. Absolute figures hold for this \
         machine alone.\n",
        STEADY * 100.0
    );
    let plots = plots(rows, "");
    for section in sections(rows) {
        let rows: Vec<&Row> = rows.iter().filter(|row| row.plan.section == section).collect();
        let _ = write!(text, "\n## {}\n", section.title());
        let curves = plot::CURVES.iter().filter(|curves| curves.section == section);
        for path in std::iter::once(section.plot()).chain(curves.map(|curves| plot_path(curves.name))) {
            if plots.iter().any(|(name, _)| *name == path) {
                let _ = write!(text, "\n![{}]({path})\n", section.title());
            }
        }
        ratios(&mut text, &rows);
        alone(&mut text, &rows, &machine);
        by_stage(&mut text, &rows);
    }
    absolutes(&mut text, &measured, &machine);
    skipped(&mut text, rows);
    setups(&mut text, &measured);
    Ok(text)
}

/// The machine, the range of its load over all rows, source and date.
fn machine_line(first: &Row, rows: &[Row]) -> String {
    let busy = Spread::of(rows.iter().map(|row| row.machine.busy_before * 100.0));
    let mut commits: Vec<&str> = rows.iter().map(|row| row.commit.as_str()).collect();
    commits.sort_unstable();
    commits.dedup();
    let (begin, end) = (
        rows.iter().map(|row| row.date.as_str()).min().unwrap_or_default(),
        rows.iter().map(|row| row.date.as_str()).max().unwrap_or_default(),
    );
    format!(
        "> Machine: {}; others took {} of its CPUs' time before the rows; commit {}; {begin} to {end}.",
        first.machine,
        busy.map_or_else(String::new, |busy| format!(
            "{:.0} to {:.0} %",
            busy.least, busy.most
        )),
        commits.join(", ")
    )
}

/// Rows that have a control.
fn ratios(text: &mut String, rows: &[&Row]) {
    let mut begun = false;
    for row in rows {
        let (
            Some(ratios),
            Outcome::Measured {
                subject,
                control: Some(control),
                ..
            },
        ) = (row.ratios(), &row.outcome)
        else {
            continue;
        };
        if !begun {
            text.push_str(
                "\n| what | subject | control | ratio | range | rounds | control moved | better | target |\n|---|---|---|---|---|---|---|---|---|\n",
            );
            begun = true;
        }
        let mark = if ratios.is_unsteady() { "≈ " } else { "" };
        let _ = writeln!(
            text,
            "| {} | {} | {} | {mark}**{}** | {} to {} | {} | {} | {} | {} |",
            row.plan.title,
            subject.name,
            control.name,
            number(ratios.ratio.median),
            number(ratios.ratio.least),
            number(ratios.ratio.most),
            ratios.rounds,
            if ratios.rounds < 2 {
                "unknown".to_owned()
            } else {
                format!("{:.1} %", ratios.control_movement * 100.0)
            },
            better(row.plan.better),
            target(row)
        );
    }
}

/// Rows without a control.
fn alone(text: &mut String, rows: &[&Row], machine: &str) {
    let mut begun = false;
    for row in rows {
        let (Some(figure), None, Outcome::Measured { subject, .. }) =
            (row.subject(), row.control(), &row.outcome)
        else {
            continue;
        };
        if !begun {
            let _ = write!(
                text,
                "\nWithout a control, so of this machine alone:\n\n{machine}\n\n| what | subject | median | range | rounds | better | target |\n|---|---|---|---|---|---|---|\n"
            );
            begun = true;
        }
        let _ = writeln!(
            text,
            "| {} | {} | **{} {}** | {} to {} | {} | {} | {} |",
            row.plan.title,
            subject.name,
            number(figure.median),
            row.plan.unit,
            number(figure.least),
            number(figure.most),
            row.rounds().len(),
            better(row.plan.better),
            target(row)
        );
    }
}

/// What each stage of a packet's way takes, where that was told apart: medians over rounds.
fn by_stage(text: &mut String, rows: &[&Row]) {
    let median = |row: &Row, stage: &str| {
        let values = row
            .rounds()
            .iter()
            .map(|round| round.subject.detail[stage].as_f64());
        Some(Spread::of(values.collect::<Option<Vec<_>>>()?)?.median)
    };
    let mut begun = false;
    for row in rows.iter().filter(|row| median(row, TOTAL).is_some()) {
        if !begun {
            let _ = write!(
                text,
                "\nBy stage; what makes the packets (`source`) is in no total:\n\n| what | unit | {} | {TOTAL} |\n|---|---|{}---|\n",
                STAGES.join(" | "),
                "---|".repeat(STAGES.len())
            );
            begun = true;
        }
        let cells = STAGES
            .iter()
            .chain([&TOTAL])
            .map(|stage| median(row, stage).map_or_else(String::new, number));
        let _ = writeln!(
            text,
            "| {} | {} | {} |",
            row.plan.title,
            row.plan.unit,
            cells.collect::<Vec<_>>().join(" | ")
        );
    }
}

/// Readings of subjects and controls, in their units.
fn absolutes(text: &mut String, rows: &[&Row], machine: &str) {
    let mut begun = false;
    for row in rows {
        let (Some(subject), Some(control)) = (row.subject(), row.control()) else {
            continue;
        };
        if !begun {
            let _ = write!(
                text,
                "\n## Absolute figures behind the ratios\n\n{machine}\n\n| row | what | subject | control |\n|---|---|---|---|\n"
            );
            begun = true;
        }
        let spread = |spread: Spread| {
            format!(
                "{} {} ({} to {})",
                number(spread.median),
                row.plan.unit,
                number(spread.least),
                number(spread.most)
            )
        };
        let _ = writeln!(
            text,
            "| [{id}](results/{id}.json) | {} | {} | {} |",
            row.plan.title,
            spread(subject),
            spread(control),
            id = row.plan.id
        );
    }
}

fn skipped(text: &mut String, rows: &[Row]) {
    let mut begun = false;
    for row in rows {
        let Some(why) = row.why_skipped() else { continue };
        if !begun {
            text.push_str("\n## Skipped\n\n| row | what | why |\n|---|---|---|\n");
            begun = true;
        }
        let _ = writeln!(
            text,
            "| {} | {} | {} |",
            row.plan.id,
            row.plan.title,
            shortened(&one_line(why))
        );
    }
}

/// What each party of the rows is.
fn setups(text: &mut String, rows: &[&Row]) {
    let mut parties: Vec<&Party> = rows
        .iter()
        .filter_map(|row| match &row.outcome {
            Outcome::Measured { subject, control, .. } => Some(std::iter::once(subject).chain(control)),
            Outcome::Skipped(_) => None,
        })
        .flatten()
        .collect();
    parties.sort_by(|a, b| (&a.name, &a.setup).cmp(&(&b.name, &b.setup)));
    parties.dedup();
    if parties.is_empty() {
        return;
    }
    text.push_str("\n## Who was measured\n\n| name | command or set-up |\n|---|---|\n");
    for party in parties {
        let _ = writeln!(text, "| {} | {} |", party.name, one_line(&party.setup));
    }
}

fn better(better: Better) -> &'static str {
    match better {
        Better::Higher => "higher",
        Better::Lower => "lower",
    }
}

/// The target and whether it is reached; an unsteady figure reaches nothing for certain.
fn target(row: &Row) -> String {
    let (Some(target), Some(reached)) = (row.plan.target, row.reached()) else {
        return String::new();
    };
    let bound = match target {
        Target::Ratio(bound) => number(bound),
        Target::Subject(bound) => format!("{} {}", number(bound), row.plan.unit),
    };
    match (reached, row.ratios().is_some_and(|ratios| ratios.is_unsteady())) {
        (true, false) => format!("{bound}: reached"),
        (false, false) => format!("{bound}: **not reached**"),
        (true, true) => format!("{bound}: ≈ reached"),
        (false, true) => format!("{bound}: ≈ **not reached**"),
    }
}

/// Three digits that count.
pub(crate) fn number(value: f64) -> String {
    match value.abs() {
        0.0 => "0".to_owned(),
        size if size < 0.01 => format!("{value:.2e}"),
        size if size < 1.0 => format!("{value:.3}"),
        size if size < 10.0 => format!("{value:.2}"),
        size if size < 100.0 => format!("{value:.1}"),
        _ => thousands(&format!("{value:.0}")),
    }
}

/// A whole number, `1,234,567`.
pub(crate) fn count(value: u64) -> String {
    thousands(&value.to_string())
}

/// `1234567` as `1,234,567`.
fn thousands(digits: &str) -> String {
    let (sign, digits) = digits.strip_prefix('-').map_or(("", digits), |rest| ("-", rest));
    let groups: Vec<&str> = digits
        .as_bytes()
        .rchunks(3)
        .rev()
        .filter_map(|group| std::str::from_utf8(group).ok())
        .collect();
    format!("{sign}{}", groups.join(","))
}

/// The beginning of what may be long, as an instance's last words are; the row's file has all of it.
fn shortened(text: &str) -> String {
    const MOST: usize = 240;
    match text.char_indices().nth(MOST) {
        Some((end, _)) => format!("{} ...", text[..end].trim_end()),
        None => text.to_owned(),
    }
}

/// For a cell of a table.
fn one_line(text: &str) -> String {
    text.split_whitespace()
        .collect::<Vec<_>>()
        .join(" ")
        .replace('|', "\\|")
}

#[cfg(test)]
#[allow(clippy::panic, clippy::unwrap_used)] // a test that panics has failed
mod tests;
