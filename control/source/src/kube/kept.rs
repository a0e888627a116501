//! The policies, tiers, network sets and host endpoints last seen, on disk: so that those which are deleted with their namespace while nothing
//! watches still hold until its last pod is gone (SEMANTICS 54), and those that have become unreadable keep their last good
//! version (72.5).

use std::{
    fs::{File, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use serde_json::Value;
use tokio::task::JoinHandle;

use super::{
    kind::Kind,
    object::item,
    state::{Item, PolicySources, State},
};

/// Written at most this often.
const INTERVAL: Duration = Duration::from_secs(1);

/// Reads them. A file that is not there or not readable is no obstacle: what is in force comes from the server.
pub(super) fn read(path: &Path) -> Vec<Item> {
    let policies = match std::fs::read(path) {
        Ok(text) => serde_json::from_slice::<Vec<Value>>(&text).map_err(|error| error.to_string()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error.to_string()),
    };
    match policies {
        Ok(policies) => policies
            .into_iter()
            .filter_map(|policy| {
                let text = |field| policy.get(field).and_then(Value::as_str);
                let (kind, api) = Kind::named(text("kind")?, text("apiVersion")?)?;
                item(kind, api, policy).ok()
            })
            .collect(),
        Err(reason) => {
            tracing::warn!(
                "{}: {reason}; policies of namespaces that are ending now cannot be held",
                path.display()
            );
            Vec::new()
        }
    }
}

/// Writes them when they have changed.
#[derive(Debug)]
pub(super) struct Keeper {
    path: PathBuf,
    revision: u64,
    next: Instant,
    writing: Option<JoinHandle<()>>,
}

impl Keeper {
    pub(super) fn new(path: PathBuf) -> Self {
        Self {
            path,
            revision: 0,
            next: Instant::now(),
            writing: None,
        }
    }

    /// When [`Self::write`] should be called; None while there is nothing to write.
    pub(super) fn due(&self, state: &State) -> Option<Instant> {
        (state.complete() && state.revision() != self.revision).then_some(self.next)
    }

    pub(super) fn write(&mut self, state: &State) {
        self.next = Instant::now() + INTERVAL;
        if self
            .writing
            .as_ref()
            .is_some_and(|writing| !writing.is_finished())
        {
            return;
        }
        self.revision = state.revision();
        let (path, policies) = (self.path.clone(), state.policy_sources());
        self.writing = Some(tokio::task::spawn_blocking(move || {
            if let Err(error) = write(&path, &policies) {
                tracing::warn!("cannot write {}: {error}", path.display());
            }
        }));
    }
}

/// Under another name first: whoever reads it finds all of it.
fn write(path: &Path, policies: &PolicySources) -> io::Result<()> {
    // During an upgrade another process does the same.
    let new = path.with_extension(format!("new.{}", std::process::id()));
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&new)?;
    let texts: Vec<&str> = policies.values().map(|text| &**text).collect();
    file.write_all(format!("[{}]", texts.join(",\n")).as_bytes())?;
    // On disk before the name is: a machine that loses power in between has the one before.
    file.sync_all()?;
    std::fs::rename(&new, path)?;
    match path.parent() {
        Some(dir) => File::open(dir)?.sync_all(),
        None => Ok(()),
    }
}
