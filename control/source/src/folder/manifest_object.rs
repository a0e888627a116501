//! An object as its author wrote it: its value, and where each field stands.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use serde_json::Value;

use crate::{decode::join, document::Document};

/// An object in a file.
#[derive(Clone)]
pub struct ManifestObject {
    pub(super) file: PathBuf,
    pub(super) label: String,
    pub(super) kind: String,
    pub(super) prefix: String,
    pub(super) document: Arc<Document>,
}

impl std::fmt::Debug for ManifestObject {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} in {}", self.label, self.file.display())
    }
}

impl ManifestObject {
    /// The file.
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// `Kind namespace/name`; the kind alone for an object that has no part in policy.
    pub fn label(&self) -> &str {
        &self.label
    }

    /// Its kind.
    pub fn kind(&self) -> &str {
        &self.kind
    }

    /// The whole object.
    pub fn value(&self) -> Value {
        self.document.value_at(&self.prefix).unwrap_or_default()
    }

    /// The path of a field within the document, from its path within the object.
    pub fn path(&self, field: &str) -> String {
        match (self.prefix.is_empty(), field.is_empty()) {
            (true, _) => field.to_owned(),
            (false, true) => self.prefix.clone(),
            (false, false) => format!("{}.{field}", self.prefix),
        }
    }

    /// Line and column, from 1, and length in characters of a field, by its path within the object, or of the nearest
    /// field around it. None where the text has no places (JSON that is not YAML).
    pub fn spot(&self, field: &str) -> Option<(u64, u64, u64)> {
        let whole = || self.document.spot(&join(&self.prefix, "kind"));
        let spot = if field.is_empty() {
            whole()
        } else {
            self.document.spot(&self.path(field))
        }?;
        Some((spot.line, spot.column, spot.length))
    }
}
