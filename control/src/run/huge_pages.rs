//! Huge pages for packet memory, where the machine has some to spare.
//!
//! A successor of a dead dataplane has to have its packet memory at once: in pages of 4 KiB it costs a fault each. The
//! kernel gives huge pages out of what is free as far as this knob allows; nothing is set aside, and where memory is
//! too scattered, packet memory is made of small pages.

use std::path::Path;

use serde::{Deserialize, Serialize};

/// The kernel's knob: how many huge pages it may make on demand.
const KNOB: &str = "/proc/sys/vm/nr_overcommit_hugepages";
/// Of one page on every machine that is supported.
const BYTES: u64 = 2 << 20;

/// How the knob was changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Allowed {
    before: u64,
    set: u64,
}

impl Allowed {
    /// What would have to be changed for packet memory of so many bytes and that of a predecessor which is still
    /// going; None where nothing has to be or can be.
    pub fn wanted(bytes: u64) -> Option<Self> {
        Self::wanted_of(Path::new(KNOB), bytes)
    }

    fn wanted_of(knob: &Path, bytes: u64) -> Option<Self> {
        let before = read(knob)?;
        let set = 2 * bytes.div_ceil(BYTES);
        (set > before).then_some(Self { before, set })
    }

    /// The change together with an earlier one of ours, which a reboot may have undone.
    pub fn after(self, earlier: Option<Self>) -> Self {
        Self {
            before: earlier.map_or(self.before, |earlier| earlier.before.min(self.before)),
            ..self
        }
    }

    /// Changes it. Where that is not possible (a container), packet memory is made of small pages.
    pub fn apply(self) {
        self.apply_to(Path::new(KNOB));
    }

    fn apply_to(self, knob: &Path) {
        if let Err(error) = std::fs::write(knob, self.set.to_string()) {
            tracing::info!(%error, "no huge pages for packet memory: restarts take longer");
        }
    }

    /// Puts it back, unless somebody else has changed it since.
    pub fn take_back(self) {
        self.take_back_from(Path::new(KNOB));
    }

    fn take_back_from(self, knob: &Path) {
        if read(knob) == Some(self.set) {
            let _ = std::fs::write(knob, self.before.to_string()); // where it could be set, it can be set back
        }
    }
}

fn read(knob: &Path) -> Option<u64> {
    std::fs::read_to_string(knob).ok()?.trim().parse().ok()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)] // a test that panics has failed
mod tests {
    use super::*;

    #[test]
    fn the_knob_is_raised_only_and_put_back_unless_somebody_else_turned_it() {
        let dir = tempfile::tempdir().unwrap();
        let knob = dir.path().join("knob");
        assert_eq!(Allowed::wanted_of(&knob, 1), None, "there is none");
        std::fs::write(&knob, "16\n").unwrap();
        assert_eq!(Allowed::wanted_of(&knob, 16 << 20), None, "enough already");
        let allowed = Allowed::wanted_of(&knob, 17 << 20).unwrap();
        allowed.apply_to(&knob);
        assert_eq!(read(&knob), Some(18));
        let more = Allowed::wanted_of(&knob, 30 << 20).unwrap().after(Some(allowed));
        assert_eq!((more.before, more.set), (16, 30));
        allowed.take_back_from(&knob);
        assert_eq!(read(&knob), Some(16));
        allowed.apply_to(&knob);
        std::fs::write(&knob, "40\n").unwrap();
        allowed.take_back_from(&knob);
        assert_eq!(read(&knob), Some(40));
    }
}
