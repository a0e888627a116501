//! What `check` has to say about a manifest.

use std::{fmt, path::PathBuf};

use serde::Serialize;

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// An API server refuses it, or a verdict cannot be trusted: `check` fails.
    Error,
    /// It very likely does not do what its author wanted; `check --strict` fails.
    Warning,
    /// Worth knowing.
    Note,
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Error => "error",
            Self::Warning => "warning",
            Self::Note => "note",
        })
    }
}

/// Where something stands in a file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SourceLocation {
    /// The file.
    pub file: PathBuf,
    /// Line, from 1.
    pub line: Option<u64>,
    /// Column of its first character, from 1.
    pub column: Option<u64>,
    /// How many characters it has on that line.
    pub length: Option<u64>,
}

/// One thing that was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Id of its rule, such as `RW203`.
    pub id: &'static str,
    /// How bad.
    pub severity: Severity,
    /// Where; None where it is about no file.
    pub place: Option<SourceLocation>,
    /// `Kind namespace/name`.
    pub object: Option<String>,
    /// Path of the field within the document.
    pub path: Option<String>,
    /// What is wrong.
    pub message: String,
    /// A packet that shows it.
    pub witness: Option<Witness>,
    /// What to write instead.
    pub fix: Option<String>,
}

/// A packet that shows what a policy does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Witness {
    /// Where it comes from, in words.
    pub from: String,
    /// Where it goes to, in words.
    pub to: String,
    /// Whether an end is no pod of the manifests, but one imagined for the purpose.
    pub imagined: bool,
    /// `80/TCP`, `ICMP`.
    pub service: String,
    /// Whether the compiled snapshot lets it through.
    pub allowed: bool,
    /// Why, in words.
    pub why: String,
    /// What the author most likely wanted of it, in words.
    pub wanted: String,
}
