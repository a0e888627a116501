//! A folder of manifests as the source of policy.

use std::{
    path::{Path, PathBuf},
    sync::mpsc::Receiver,
    time::Duration,
};

use crate::cluster::{Cluster, Settings};

/// How bad a problem is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Severity {
    /// `check` fails.
    Error,
    /// Odd, but understood.
    Warning,
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
    /// `Kind namespace/name`.
    pub object: Option<String>,
    /// Path of the field within the document.
    pub path: Option<String>,
    /// What is wrong and what to do.
    pub message: String,
}

/// A folder that was read whole.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// The state it describes.
    pub cluster: Cluster,
    /// What is wrong but did not stop it (invalid policies that isolate, warnings).
    pub problems: Vec<Problem>,
    /// Number of files read.
    pub files: usize,
}

/// Why a folder cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum FolderError {
    /// The folder or a file in it cannot be read.
    #[error("cannot read {}: {source}", .path.display())]
    Unreadable {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Files that do not parse, and no earlier state to fall back to.
    #[error("{} of the manifests cannot be understood", .0.len())]
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

/// Reads a folder once.
///
/// # Errors
/// The folder cannot be read, or a file in it does not parse.
pub fn load(dir: &Path, settings: &Settings) -> Result<Loaded, FolderError> {
    let _ = settings;
    Err(FolderError::Unreadable {
        path: dir.to_owned(),
        source: std::io::ErrorKind::Unsupported.into(),
    })
}

/// What a watched folder says.
#[derive(Clone, Debug)]
pub enum Update {
    /// A complete new state. Broken files are in it with their last good objects; `problems` names them.
    State(Loaded),
    /// The folder's content would take away all objects or over half of the policies at once: the old state stays
    /// until [`FolderWatch::accept`] or a less drastic content.
    Held {
        /// Why, in words.
        reason: String,
        /// What is wrong besides.
        problems: Vec<Problem>,
    },
}

/// How a folder is watched.
#[derive(Clone, Debug)]
pub struct WatchOptions {
    /// A change is read once the folder has been quiet for so long.
    pub settle: Duration,
    /// But no later than this after it began.
    pub limit: Duration,
    /// How often a folder is looked at where the system cannot notify.
    pub poll: Duration,
    /// Whether a state that lacks all objects or over half of the policies is held back.
    pub hold_vanished: bool,
}

impl Default for WatchOptions {
    fn default() -> Self {
        Self {
            settle: Duration::from_millis(5),
            limit: Duration::from_millis(25),
            poll: Duration::from_secs(1),
            hold_vanished: true,
        }
    }
}

/// A folder under watch by a thread of its own, which ends when this is dropped.
#[derive(Debug)]
pub struct FolderWatch {
    updates: Receiver<Update>,
}

impl FolderWatch {
    /// Reads the folder and begins to watch it.
    ///
    /// # Errors
    /// As [`load`]; or it cannot be watched.
    pub fn start(
        dir: &Path,
        settings: Settings,
        options: WatchOptions,
    ) -> Result<(Loaded, FolderWatch), FolderError> {
        let _ = options;
        let loaded = load(dir, &settings)?;
        let (_, updates) = std::sync::mpsc::channel();
        Ok((loaded, Self { updates }))
    }

    /// The updates, in order. Disconnected only when the watch has ended.
    pub fn updates(&self) -> &Receiver<Update> {
        &self.updates
    }

    /// Takes the folder's content as it is, however much has gone.
    pub fn accept(&self) {}
}
