//! A folder of manifests as the source of policy.
//!
//! `.yaml`, `.yml` and `.json`, read recursively in order of their paths. Names that begin with a dot are passed over;
//! links are followed, so a mounted ConfigMap (names linked to `..data/...`) is read once. A file is taken whole or not
//! at all: one that does not parse keeps its last good objects, and without any the folder is refused. A policy that becomes
//! invalid keeps its last good version. A NetworkPolicy that never was valid isolates its pods; of a policy whose rules
//! decide in order, a rule that never was understood allows nothing, or denies everything.

mod manifest_object;
mod merged;
mod reader;
mod watch;

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

pub use manifest_object::ManifestObject;
use ringwall_policy::{Cluster, Settings, services::Services};
pub use watch::{Acceptor, FolderWatch, Update, WatchOptions};

use crate::staged::{self, Staged};

/// How bad a problem is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Severity {
    /// `check` fails.
    Error,
    /// Odd, but understood.
    Warning,
}

/// What kind of problem.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ProblemKind {
    /// A file cannot be read, or is no YAML or JSON, or holds something that is no object.
    Unreadable,
    /// An object that an API server would refuse.
    Invalid,
    /// A policy of a kind that is not evaluated.
    Unevaluated,
    /// An object that stands in two files.
    Duplicate,
    /// Understood, but oddly written.
    Odd,
    /// A key or value of labels that is no text to YAML.
    LabelType,
}

/// Something wrong in a manifest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// How bad.
    pub severity: Severity,
    /// The file.
    pub file: PathBuf,
    /// Line in it, from 1.
    pub line: Option<u64>,
    /// Column, from 1, and how many characters.
    pub span: Option<(u64, u64)>,
    /// What kind of problem.
    pub kind: ProblemKind,
    /// `Kind namespace/name`.
    pub object: Option<String>,
    /// Path of the field within the document.
    pub path: Option<String>,
    /// What is wrong and what to do.
    pub message: String,
    /// Whether what the folder said before stays in force instead.
    pub kept: bool,
}

/// A folder that was read whole.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// The state it describes.
    pub cluster: Cluster,
    /// What is wrong but did not stop it (invalid policies that isolate, warnings).
    pub problems: Vec<Problem>,
    /// Policies that are staged: nothing is enforced of them.
    pub staged: Arc<Vec<Staged>>,
    /// Services: no verdict depends on them.
    pub services: Services,
    /// Number of files read.
    pub files: usize,
    /// The files that say something else than when the folder was last read; none at the first time.
    pub changed: Vec<PathBuf>,
    /// When the first change that it holds was noticed.
    pub began: std::time::Instant,
}

impl Loaded {
    /// The state as it would be if what is staged were enforced (TIERS 95), all of it or one policy alone.
    #[must_use]
    pub fn pending(&self, only: Option<&Staged>) -> Cluster {
        let all = self.staged.iter();
        staged::pending(
            &self.cluster,
            all.filter(|staged| only.is_none_or(|only| only == *staged)),
        )
    }

    /// What is wrong with what stays as it was.
    pub fn kept(&self) -> impl Iterator<Item = &Problem> {
        self.problems.iter().filter(|problem| problem.kept)
    }
}

/// Why a folder cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum FolderError {
    /// The folder or a file in it cannot be read.
    #[error("cannot read {}: {reason}", .path.display())]
    Unreadable {
        /// Which.
        path: PathBuf,
        /// Why.
        reason: std::io::Error,
    },
    /// Files that do not parse, and no earlier state to fall back to.
    #[error("the manifests cannot be understood:{}", listed(.0))]
    Broken(Vec<Problem>),
    /// The folder cannot be watched.
    #[error("cannot watch {}: {reason}", .path.display())]
    Unwatchable {
        /// Which.
        path: PathBuf,
        /// Why.
        reason: String,
    },
}

/// Reads a folder once. A single file will do, too, and `-` is standard input.
///
/// # Errors
/// The folder cannot be read, or a file in it does not parse.
pub fn load(dir: &Path, settings: &Settings) -> Result<Loaded, FolderError> {
    let mut reader = reader::Reader::new(dir, settings);
    reader.read_once()?;
    let loaded = reader.assemble();
    let broken = reader.broken();
    if broken.is_empty() {
        Ok(loaded)
    } else {
        Err(FolderError::Broken(broken))
    }
}

/// Reads a folder, a file or standard input (`-`) once, however broken it is: what can be understood, every problem, and the objects as their authors
/// wrote them, in order of file and place.
///
/// # Errors
/// The folder cannot be read.
pub fn inspect(dir: &Path, settings: &Settings) -> Result<(Loaded, Vec<ManifestObject>), FolderError> {
    let mut reader = reader::Reader::keeping_documents(dir, settings);
    reader.read_once()?;
    let mut loaded = reader.assemble();
    for (path, number) in reader::passed_over(dir) {
        let message = if path.is_dir() {
            let objects = if number == 1 { "manifest" } else { "manifests" };
            format!(
                "{number} {objects} in this folder are not read, because its name begins with a dot; kubectl apply -R reads them: \
                 rename it if they belong to the cluster"
            )
        } else {
            "is not read, because its name begins with a dot; kubectl apply reads it: rename it if it belongs to the cluster"
                .to_owned()
        };
        loaded.problems.push(Problem {
            severity: Severity::Warning,
            kind: ProblemKind::Odd,
            ..reader::problem(&path, None, None, None, message)
        });
    }
    merged::sort(&mut loaded.problems);
    Ok((loaded, reader.written()))
}

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.file.display())?;
        if let Some(line) = self.line {
            write!(f, ":{line}")?;
        }
        f.write_str(": ")?;
        if let Some(object) = &self.object {
            write!(f, "{object}: ")?;
        }
        if let Some(path) = self.path.as_deref().filter(|path| !path.is_empty()) {
            write!(f, "{path}: ")?;
        }
        f.write_str(&self.message)
    }
}

/// Every problem on a line of its own, the first ones if there are many.
fn listed(problems: &[Problem]) -> String {
    const SHOWN: usize = 20;
    let mut text = String::new();
    for problem in problems.iter().take(SHOWN) {
        text.push_str(&format!("\n  {problem}"));
    }
    if problems.len() > SHOWN {
        text.push_str(&format!("\n  and {} more", problems.len() - SHOWN));
    }
    text
}

#[cfg(test)]
mod tests;
