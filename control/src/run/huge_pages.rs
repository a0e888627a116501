//! Huge pages, kept free for the packet memory of a successor.
//!
//! A successor of a dead dataplane has to have its packet memory at once, while the predecessor's is still pinned. In
//! pages of 4 KiB it costs a fault each, and huge pages on demand may have to be put together first. So as many are set
//! aside as one successor takes, a while after every start, and given back when the dataplane ends in order: then
//! nobody waits for a successor. Where that cannot be done, small pages serve.

use std::path::Path;

use anyhow::Context;
use serde::{Deserialize, Serialize};

/// Where the kernel keeps account of huge pages of 2 MiB.
const ACCOUNT: &str = "/sys/kernel/mm/hugepages/hugepages-2048kB";
/// Name of the file in the state directory that holds [`SetAside`].
const FILE: &str = "huge-pages.json";
const PAGE_BYTES: u64 = 2 << 20;
/// No more is set aside without being asked: an administrator who has larger rings sets huge pages aside himself.
const MOST_PAGES: u64 = 128;

/// How many huge pages there are because of us.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetAside {
    before: u64,
    now: u64,
}

/// Sets aside what packet memory of so many bytes takes, unless that much is free. Noted on disk before it is done.
pub fn set_aside(bytes: u64, state_dir: &Path) -> anyhow::Result<()> {
    let account = Account(Path::new(ACCOUNT));
    if let Some(wanted) = account.wanted(bytes, noted(state_dir)) {
        let file = state_dir.join(FILE);
        super::write_atomically(&file, &serde_json::to_vec(&wanted)?)
            .with_context(|| format!("cannot write {}", file.display()))?;
        account.set(wanted.now);
    }
    Ok(())
}

/// Gives back what was set aside, unless somebody else has changed the number since.
pub fn give_back(state_dir: &Path) {
    if let Some(set_aside) = noted(state_dir) {
        Account(Path::new(ACCOUNT)).give_back(set_aside);
        let _ = std::fs::remove_file(state_dir.join(FILE)); // read again, it would change nothing
    }
}

fn noted(state_dir: &Path) -> Option<SetAside> {
    serde_json::from_slice(&std::fs::read(state_dir.join(FILE)).ok()?).ok()
}

struct Account<'a>(&'a Path);

impl Account<'_> {
    fn read(&self, name: &str) -> Option<u64> {
        std::fs::read_to_string(self.0.join(name))
            .ok()?
            .trim()
            .parse()
            .ok()
    }

    /// Without those that the kernel made on demand, which go by themselves.
    fn pages(&self) -> Option<u64> {
        let surplus = self.read("surplus_hugepages").unwrap_or(0);
        Some(self.read("nr_hugepages")?.saturating_sub(surplus))
    }

    /// None where enough are free, too many would be needed, or the kernel keeps none.
    fn wanted(&self, bytes: u64, earlier: Option<SetAside>) -> Option<SetAside> {
        let needed = bytes.div_ceil(PAGE_BYTES);
        let free = self
            .read("free_hugepages")?
            .saturating_sub(self.read("resv_hugepages")?);
        let pages = self.pages()?;
        // A reboot may have undone what was set aside earlier.
        let before = earlier.map_or(pages, |earlier| earlier.before.min(pages));
        (needed <= MOST_PAGES && free < needed).then_some(SetAside {
            before,
            now: pages + needed - free,
        })
    }

    fn set(&self, pages: u64) {
        match std::fs::write(self.0.join("nr_hugepages"), pages.to_string()) {
            Err(error) => tracing::info!(%error, "no huge pages for packet memory: a restart takes longer"),
            // The kernel finds as many as it can.
            Ok(()) if self.pages() < Some(pages) => {
                tracing::info!("memory is too scattered for huge pages: a restart takes longer");
            }
            Ok(()) => {}
        }
    }

    fn give_back(&self, set_aside: SetAside) {
        // Fewer than were asked for, where memory was too scattered for them.
        if self.pages().is_some_and(|pages| pages <= set_aside.now) {
            self.set(set_aside.before);
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)] // a test that panics has failed
mod tests {
    use super::*;

    #[test]
    fn as_many_are_set_aside_as_are_missing_and_given_back_unless_somebody_else_changed_them() {
        let dir = tempfile::tempdir().unwrap();
        let account = Account(dir.path());
        let kernel = |pages: u64, free: u64| {
            for (name, value) in [
                ("nr_hugepages", pages),
                ("free_hugepages", free),
                ("resv_hugepages", 1),
            ] {
                std::fs::write(dir.path().join(name), format!("{value}\n")).unwrap();
            }
        };
        assert_eq!(account.wanted(1, None), None, "the kernel keeps none");
        kernel(16, 9);
        assert_eq!(account.wanted(16 << 20, None), None, "enough are free");
        let first = account.wanted(17 << 20, None).unwrap();
        assert_eq!((first.before, first.now), (16, 17));
        assert_eq!(account.wanted(1 << 30, None), None, "not without being asked");
        account.set(first.now);
        assert_eq!(account.pages(), Some(17));

        kernel(17, 1);
        let second = account.wanted(17 << 20, Some(first)).unwrap();
        assert_eq!((second.before, second.now), (16, 26));
        kernel(25, 9);
        account.give_back(first);
        assert_eq!(account.pages(), Some(25), "more than were set aside");
        account.give_back(second);
        assert_eq!(account.pages(), Some(16));
        kernel(0, 0);
        let rebooted = account.wanted(2 << 20, Some(second)).unwrap();
        assert_eq!(
            (rebooted.before, rebooted.now),
            (0, 1),
            "reserved ones are not there"
        );
    }
}
