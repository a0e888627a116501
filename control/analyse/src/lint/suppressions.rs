//! What a person has decided about findings: by option, file or annotation.

use std::collections::{BTreeMap, BTreeSet};

use ringwall_source::document::SyntaxError;
use serde::Deserialize;
use serde_json::Value;

use super::{
    Finding, Linted, Severity,
    rules::{self, Rule},
    subject::{Subject, place},
};

/// Prefix of annotations that silence a rule for one object; their value is the reason.
const ANNOTATION: &str = "ringwall.io/allow-";

/// Rules that are silenced everywhere, or made errors.
#[derive(Clone, Debug, Default)]
pub struct Suppressions {
    allow: BTreeSet<&'static str>,
    deny: BTreeSet<&'static str>,
}

/// A decision that cannot be taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SuppressionError {
    /// No rule has the id.
    #[error("no rule has the id {0:?}; `ringwall check --explain all` lists the rules")]
    Unknown(String),
    /// What an API server refuses stays refused.
    #[error("{0} is an error and cannot be ignored: fix what it reports")]
    Error(&'static str),
    /// The file of decisions cannot be read.
    #[error("{0}: write\n  allow:\n    RW404: why it does not matter\n  deny: [RW103]")]
    File(String),
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    /// Reasons by id.
    #[serde(default)]
    allow: BTreeMap<String, String>,
    #[serde(default)]
    deny: Vec<String>,
}

impl Suppressions {
    /// From ids, and the text of a file if there is one.
    ///
    /// # Errors
    /// An id that there is not, a rule that cannot be silenced, a file that cannot be read or gives no reason.
    pub fn new(allow: &[String], deny: &[String], file: Option<&str>) -> Result<Self, SuppressionError> {
        let file: File = match file {
            None => File::default(),
            Some(text) => serde_saphyr::from_str(text).map_err(|error| {
                let SyntaxError { line, message, .. } = SyntaxError::from(&error);
                SuppressionError::File(match line {
                    Some(line) => format!("line {line}: {message}"),
                    None => message,
                })
            })?,
        };
        if let Some((id, _)) = file.allow.iter().find(|(_, reason)| reason.trim().is_empty()) {
            return Err(SuppressionError::File(format!(
                "{id} is ignored without a reason"
            )));
        }
        let mut silence = Self::default();
        for id in allow.iter().chain(file.allow.keys()) {
            let rule = known(id)?;
            if rule.severity == Severity::Error {
                return Err(SuppressionError::Error(rule.id));
            }
            silence.allow.insert(rule.id);
        }
        for id in deny.iter().chain(&file.deny) {
            silence.deny.insert(known(id)?.id);
        }
        Ok(silence)
    }

    /// Leaves out what is silenced, makes errors of what is denied, and puts the rest in order.
    pub(super) fn apply(&self, findings: Vec<Finding>, subject: &Subject<'_>) -> Linted {
        let mut linted = Linted::default();
        for mut finding in findings {
            let annotated = || {
                let object = finding.object.as_deref().and_then(|label| subject.written(label));
                object.is_some_and(|it| reason(&it.value(), finding.id).is_some())
            };
            let denied = self.deny.contains(finding.id);
            let silenced = !denied && (self.allow.contains(finding.id) || annotated());
            if silenced && finding.severity != Severity::Error {
                linted.silenced += 1;
                continue;
            }
            if denied {
                finding.severity = Severity::Error;
            }
            linted.findings.push(finding);
        }
        linted
            .findings
            .sort_by(|a, b| (&a.place, a.id, &a.path).cmp(&(&b.place, b.id, &b.path)));
        linted
    }
}

fn known(id: &str) -> Result<&'static Rule, SuppressionError> {
    rules::by_id(id).ok_or_else(|| SuppressionError::Unknown(id.to_owned()))
}

fn annotations(object: &Value) -> impl Iterator<Item = (&str, Option<&str>)> {
    let all = object.pointer("/metadata/annotations").and_then(Value::as_object);
    all.into_iter()
        .flatten()
        .filter_map(|(key, value)| Some((key.strip_prefix(ANNOTATION)?, value.as_str())))
}

/// Why a rule is silenced for an object.
fn reason<'v>(object: &'v Value, id: &str) -> Option<&'v str> {
    annotations(object)
        .find(|(name, _)| *name == id)
        .and_then(|(_, reason)| reason)
        .filter(|reason| !reason.trim().is_empty())
}

/// Annotations that silence nothing: no reason, or no such rule.
pub(super) fn without_reason(subject: &Subject<'_>) -> Vec<Finding> {
    let mut findings = Vec::new();
    for policy in subject.policies.iter().chain(&subject.invalid) {
        let object = policy.written.value();
        for (id, reason) in annotations(&object) {
            let message = match (rules::by_id(id), reason.is_some_and(|it| !it.trim().is_empty())) {
                (None, _) => format!("no rule is called {id:?}"),
                (Some(_), false) => format!("{id} is ignored without a reason, so it is not"),
                (Some(rule), true) if rule.severity == Severity::Error => {
                    format!("{id} is an error and cannot be silenced")
                }
                (Some(_), true) => continue,
            };
            let field = format!("metadata.annotations[\"{ANNOTATION}{id}\"]");
            findings.push(Finding {
                id: rules::SILENT_WITHOUT_REASON.id,
                severity: rules::SILENT_WITHOUT_REASON.severity,
                place: Some(place(policy.written, &field)),
                object: Some(policy.label.clone()),
                path: Some(policy.written.path(&field)),
                message,
                witness: None,
                fix: Some("write why it does not matter here as the value".to_owned()),
            });
        }
    }
    findings
}
