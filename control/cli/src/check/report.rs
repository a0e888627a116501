//! Everything that was found: for people, as JSON, as SARIF.

use std::{collections::BTreeMap, fs, io::Write, path::Path};

use ringwall_analyse::lint::{Finding, Severity, Witness, rules, rules::Rule};
use ringwall_source::folder::Loaded;
use serde_json::{Map, Value, json};

use super::{Output, Part, sarif};
use crate::count;

/// Findings and summary.
pub(super) struct Report<'a> {
    loaded: &'a Loaded,
    parts: Vec<Part>,
}

impl<'a> Report<'a> {
    pub(super) fn new(loaded: &'a Loaded, parts: Vec<Part>) -> Self {
        Self { loaded, parts }
    }

    /// Whether the answer is yes.
    pub(super) fn ok(&self) -> bool {
        self.number(Severity::Error) == 0
    }

    fn findings(&self) -> impl Iterator<Item = &Finding> {
        self.parts.iter().flat_map(|part| &part.findings)
    }

    /// How many findings are as bad as that.
    pub(super) fn number(&self, severity: Severity) -> usize {
        self.findings()
            .filter(|finding| finding.severity == severity)
            .count()
    }

    /// # Errors
    /// `out` cannot be written to.
    pub(super) fn write(&self, output: Output, out: impl Write) -> std::io::Result<()> {
        let mut out = std::io::BufWriter::new(out);
        match output {
            Output::Human => self.write_words(&mut out)?,
            Output::Json => {
                for finding in self.findings() {
                    writeln!(out, "{}", object(finding))?;
                }
                for line in self.parts.iter().flat_map(|part| &part.lines) {
                    writeln!(out, "{line}")?;
                }
                writeln!(out, "{}", self.summary_object())?;
            }
        }
        out.flush()
    }

    /// # Errors
    /// `out` cannot be written to.
    pub(super) fn write_sarif(&self, mut out: impl Write) -> std::io::Result<()> {
        let findings: Vec<&Finding> = self.findings().collect();
        writeln!(out, "{:#}", sarif::log(&findings))?;
        out.flush()
    }

    /// By file, in order of places; then what is about no file.
    fn write_words(&self, out: &mut impl Write) -> std::io::Result<()> {
        let mut by_file: BTreeMap<&Path, Vec<&Finding>> = BTreeMap::new();
        for finding in self.findings() {
            if let Some(place) = &finding.place {
                by_file.entry(&place.file).or_default().push(finding);
            }
        }
        for (file, mut findings) in by_file {
            findings.sort_by_key(|finding| finding.place.as_ref().map(|place| (place.line, place.column)));
            // A pipe has no lines to show, and would be waited for.
            let text = match file.is_file() {
                true => fs::read_to_string(file).unwrap_or_default(),
                false => String::new(),
            };
            let lines: Vec<&str> = text.lines().collect();
            for finding in findings {
                writeln!(out, "{}", words(finding, &lines))?;
            }
        }
        for finding in self.findings().filter(|finding| finding.place.is_none()) {
            writeln!(out, "{}", words(finding, &[]))?;
        }
        writeln!(out, "{}", self.summary())
    }

    fn summary(&self) -> String {
        let cluster = &self.loaded.cluster;
        let mut text = format!(
            "{}: {}, {}, {}; {}, {}, {}",
            if self.ok() { "ok" } else { "failed" },
            count(self.number(Severity::Error), "error"),
            count(self.number(Severity::Warning), "warning"),
            count(self.number(Severity::Note), "note"),
            count(self.loaded.files, "file"),
            count(cluster.policies.len() + cluster.tiered.len(), "policy"),
            count(cluster.pods.len(), "pod"),
        );
        for words in self.parts.iter().filter_map(|part| part.words.as_ref()) {
            text.push_str("; ");
            text.push_str(words);
        }
        text
    }

    fn summary_object(&self) -> Value {
        let cluster = &self.loaded.cluster;
        let mut fields = Map::new();
        let mut put = |key: &str, value: Value| drop(fields.insert(key.to_owned(), value));
        put("ok", self.ok().into());
        put("errors", self.number(Severity::Error).into());
        put("warnings", self.number(Severity::Warning).into());
        put("notes", self.number(Severity::Note).into());
        put("files", self.loaded.files.into());
        put("policies", (cluster.policies.len() + cluster.tiered.len()).into());
        put("pods", cluster.pods.len().into());
        put("namespaces", cluster.namespaces.len().into());
        put("nodes", cluster.nodes.len().into());
        put("incomplete", json!(cluster.unevaluated_kinds));
        for (key, value) in self.parts.iter().flat_map(|part| &part.fields) {
            put(key, value.clone());
        }
        Value::Object(fields)
    }
}

/// A finding with the line it is about, the packet that shows it, and what to do.
fn words(finding: &Finding, lines: &[&str]) -> String {
    let mut text = format!("{}[{}]: ", finding.severity, finding.id);
    if let Some(object) = &finding.object {
        text.push_str(&format!("{object}: "));
    }
    text.push_str(&finding.message);
    if let Some(place) = &finding.place {
        text.push_str(&format!("\n  --> {}", place.file.display()));
        if let Some(line) = place.line {
            text.push_str(&format!(":{line}"));
        }
        if let Some(column) = place.column {
            text.push_str(&format!(":{column}"));
        }
        if let Some(path) = finding.path.as_deref().filter(|path| !path.is_empty()) {
            text.push_str(&format!(": {path}"));
        }
        let number = place.line.and_then(|line| usize::try_from(line).ok());
        if let Some((number, line)) = number.and_then(|it| Some((it, lines.get(it.checked_sub(1)?)?))) {
            text.push_str(&excerpt(number, line, place.column, place.length));
        }
    }
    if let Some(witness) = &finding.witness {
        text.push_str(&format!("\n  packet: {}", packet(witness)));
        text.push_str(&format!("\n  wanted: {}", witness.wanted));
    }
    if let Some(fix) = &finding.fix {
        text.push_str(&format!("\n  fix:    {fix}"));
    }
    text.push('\n');
    text
}

/// How much of a long line is shown: a file of JSON may be one line.
const MOST_SHOWN: usize = 100;

/// A line of a file and carets under what is meant.
fn excerpt(number: usize, line: &str, column: Option<u64>, length: Option<u64>) -> String {
    let margin = number.to_string().len();
    let width = line.chars().count();
    let as_index = |number: u64| usize::try_from(number).ok();
    let at = column
        .and_then(as_index)
        .map(|column| column.saturating_sub(1))
        .filter(|at| *at < width);
    let cut = match at {
        Some(at) if width > MOST_SHOWN => at.saturating_sub(MOST_SHOWN / 2),
        _ => 0,
    };
    let shown: String = line.chars().skip(cut).take(MOST_SHOWN).collect();
    let (before, after) = (
        if cut > 0 { "..." } else { "" },
        if width > cut + MOST_SHOWN { "..." } else { "" },
    );
    let mut text = format!("\n  {:margin$} |\n  {number} | {before}{shown}{after}", "");
    if let Some(at) = at {
        let room = shown.chars().count().saturating_sub(at - cut);
        let carets = "^".repeat(length.and_then(as_index).unwrap_or(1).clamp(1, room.max(1)));
        // Tabs keep their width.
        let indent: String = before
            .chars()
            .map(|_| ' ')
            .chain(
                shown
                    .chars()
                    .take(at - cut)
                    .map(|c| if c == '\t' { '\t' } else { ' ' }),
            )
            .collect();
        text.push_str(&format!("\n  {:margin$} | {indent}{carets}", ""));
    }
    text
}

/// A packet and its verdict.
fn packet(witness: &Witness) -> String {
    let verdict = if witness.allowed { "allowed" } else { "denied" };
    format!(
        "{} -> {} {} is {verdict}: {}",
        witness.from, witness.to, witness.service, witness.why
    )
}

fn object(finding: &Finding) -> Value {
    let place = finding.place.as_ref();
    json!({
        "id": finding.id,
        "severity": finding.severity,
        "file": place.map(|place| &place.file),
        "line": place.and_then(|place| place.line),
        "column": place.and_then(|place| place.column),
        "object": finding.object,
        "path": finding.path,
        "message": finding.message,
        "witness": finding.witness.as_ref().map(witness_object),
        "fix": finding.fix,
        "page": rules::by_id(finding.id).map(Rule::page_path),
    })
}

/// A witness packet for programs.
pub(super) fn witness_object(witness: &Witness) -> Value {
    json!({
        "from": witness.from,
        "to": witness.to,
        "imagined": witness.imagined,
        "service": witness.service,
        "verdict": if witness.allowed { "allow" } else { "deny" },
        "why": witness.why,
        "wanted": witness.wanted,
    })
}

/// A rule for programs.
pub(super) fn rule_object(rule: &Rule) -> Value {
    json!({
        "id": rule.id,
        "name": rule.name,
        "severity": rule.severity,
        "summary": rule.summary,
        "page": rule.page_path(),
    })
}
