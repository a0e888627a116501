//! Everything that was found, for people or as JSON.

use std::io::Write;

use serde_json::{Map, Value, json};

use super::{Output, Part};
use crate::{
    lint::{Finding, Severity},
    source::folder::Loaded,
};

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

    fn number(&self, severity: Severity) -> usize {
        self.findings()
            .filter(|finding| finding.severity == severity)
            .count()
    }

    /// # Errors
    /// `out` cannot be written to.
    pub(super) fn write(&self, output: Output, out: impl Write) -> std::io::Result<()> {
        let mut out = std::io::BufWriter::new(out);
        for finding in self.findings() {
            match output {
                Output::Human => writeln!(out, "{}", words(finding))?,
                Output::Json => writeln!(out, "{}", object(finding))?,
            }
        }
        if output == Output::Json {
            for line in self.parts.iter().flat_map(|part| &part.lines) {
                writeln!(out, "{line}")?;
            }
        }
        match output {
            Output::Human => writeln!(out, "{}", self.summary())?,
            Output::Json => writeln!(out, "{}", self.summary_object())?,
        }
        out.flush()
    }

    fn summary(&self) -> String {
        let cluster = &self.loaded.cluster;
        let mut text = format!(
            "{}: {}, {}; {}, {}, {}",
            if self.ok() { "ok" } else { "failed" },
            count(self.number(Severity::Error), "error"),
            count(self.number(Severity::Warning), "warning"),
            count(self.loaded.files, "file"),
            count(cluster.policies.len(), "policy"),
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
        put("policies", cluster.policies.len().into());
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

pub(super) fn count(number: usize, what: &str) -> String {
    match (number, what) {
        (1, what) => format!("1 {what}"),
        (n, "policy") => format!("{n} policies"),
        (n, what) => format!("{n} {what}s"),
    }
}

fn words(finding: &Finding) -> String {
    let mut text = format!("{}: ", finding.severity);
    if let Some(place) = &finding.place {
        text.push_str(&place.file.display().to_string());
        if let Some(line) = place.line {
            text.push_str(&format!(":{line}"));
        }
        text.push_str(": ");
    }
    for part in [&finding.object, &finding.path].into_iter().flatten() {
        if !part.is_empty() {
            text.push_str(&format!("{part}: "));
        }
    }
    text.push_str(&finding.message);
    text
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
    })
}
