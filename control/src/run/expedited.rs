//! Short RCU grace periods for the time in which a dead dataplane is replaced.
//!
//! The kernel closes a killed process's AF_XDP sockets one after the other and waits out a grace period for each, about
//! 10 ms; a queue cannot be bound anew before, and binding waits for one again. While the knob is on, a grace period
//! takes microseconds instead, at the price of interrupts on all CPUs.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// The kernel's knob.
const KNOB: &str = "/sys/kernel/rcu_expedited";

/// The knob is on while this lives. Somebody else's setting is left alone; where it cannot be written (a container),
/// closing takes its time.
#[derive(Debug)]
pub struct Expedited {
    knob: PathBuf,
}

impl Expedited {
    /// Turns the knob on. None where it is on already or cannot be.
    pub fn begin() -> Option<Self> {
        Self::with(Path::new(KNOB))
    }

    fn with(knob: &Path) -> Option<Self> {
        if fs::read_to_string(knob).ok()?.trim() != "0" {
            return None;
        }
        fs::write(knob, "1").ok()?;
        Some(Self {
            knob: knob.to_owned(),
        })
    }
}

impl Drop for Expedited {
    fn drop(&mut self) {
        if let Err(error) = fs::write(&self.knob, "0") {
            tracing::warn!(knob = %self.knob.display(), %error, "cannot be turned off again");
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)] // a test that panics has failed
mod tests {
    use super::*;

    #[test]
    fn the_knob_is_on_for_a_while_and_others_settings_stay() {
        let dir = tempfile::tempdir().unwrap();
        let knob = dir.path().join("knob");
        let value = || fs::read_to_string(&knob).unwrap();
        assert!(Expedited::with(&knob).is_none(), "there is none");
        fs::write(&knob, "0\n").unwrap();
        let on = Expedited::with(&knob).unwrap();
        assert_eq!(value(), "1");
        assert!(Expedited::with(&knob).is_none(), "it is on already");
        drop(on);
        assert_eq!(value(), "0");
    }
}
