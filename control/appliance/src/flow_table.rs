//! Where the flow table lies: a file in the runtime directory for each of its layouts, which outlives the dataplane.
//!
//! A dataplane of another version makes its own before it replaces the one that runs, so that no packet waits for that;
//! and the one that was replaced finds its own again where the new one fails.

use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use ringwall_dataplane::{
    flow::{FlowMemory, LAYOUT_VERSION},
    time::Nanos,
};
use ringwall_xsk::{XskError, map_shared};

use super::worker_thread;

/// How long a dying predecessor may hold on to the file.
const PATIENCE: Duration = Duration::from_secs(2);

/// A table that was made ahead of time.
pub(super) struct Prepared {
    memory: FlowMemory,
    /// Entries that were asked for.
    entries: usize,
}

/// Makes an empty table of this program's layout; None where there is one, which is taken over when its process has ended. Not
/// before: the process that stands by for it would have to wait.
pub(super) fn prepare(runtime_dir: &Path, entries: usize) -> anyhow::Result<Option<Prepared>> {
    if own(runtime_dir).exists() {
        return Ok(None);
    }
    match map_shared(&own(runtime_dir), FlowMemory::required_bytes(entries)) {
        Ok(memory) => Ok(Some(Prepared {
            memory: FlowMemory::open(memory, entries, random_seed()?, worker_thread::now())?,
            entries,
        })),
        Err(XskError::File { .. }) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// The table: what was prepared, or what a predecessor left, as soon as that one has let go of it.
pub(super) fn take(
    prepared: Option<Prepared>,
    runtime_dir: &Path,
    entries: usize,
    now: Nanos,
) -> anyhow::Result<FlowMemory> {
    if let Some(prepared) = prepared {
        ensure!(
            prepared.entries == entries,
            "conntrack.maxEntries was changed from {} to {entries} during the upgrade: ask for it again",
            prepared.entries
        );
        return Ok(prepared.memory.begin_at(now));
    }
    let deadline = Instant::now() + PATIENCE;
    loop {
        match map_shared(&own(runtime_dir), FlowMemory::required_bytes(entries)) {
            Ok(memory) => return Ok(FlowMemory::open(memory, entries, random_seed()?, now)?),
            Err(XskError::File { .. }) if Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(1));
            }
            Err(error) => return Err(error.into()),
        }
    }
}

/// Removes the tables of every layout but one, or all of them. A process that still uses one keeps it until it ends.
pub(super) fn remove_all_but(runtime_dir: &Path, layout: Option<u32>) -> anyhow::Result<()> {
    let kept = layout.map(|layout| file(runtime_dir, layout));
    let folder = match std::fs::read_dir(runtime_dir) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        folder => folder.with_context(|| format!("cannot read {}", runtime_dir.display()))?,
    };
    for entry in folder {
        let path = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str());
        let is_table = name.is_some_and(|name| name.starts_with("flows-") && name.ends_with(".bin"));
        if is_table && Some(&path) != kept.as_ref() {
            std::fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))?;
        }
    }
    Ok(())
}

fn own(runtime_dir: &Path) -> PathBuf {
    file(runtime_dir, LAYOUT_VERSION)
}

fn file(runtime_dir: &Path, layout: u32) -> PathBuf {
    runtime_dir.join(format!("flows-{layout}.bin"))
}

fn random_seed() -> anyhow::Result<u64> {
    use std::io::Read;
    let mut seed = [0; 8];
    std::fs::File::open(Path::new("/dev/urandom"))
        .and_then(|mut file| file.read_exact(&mut seed))
        .context("cannot read /dev/urandom")?;
    Ok(u64::from_ne_bytes(seed))
}
