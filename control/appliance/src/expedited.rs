//! Short RCU grace periods for the time in which a dead dataplane is replaced.
//!
//! The kernel closes a killed process's AF_XDP sockets one after the other and waits out a grace period for each, about
//! 10 ms; a queue cannot be bound anew before, and binding waits for one again. While the knob is on, a grace period
//! takes microseconds instead, at the price of interrupts on all CPUs.
//!
//! The knob is the machine's. Whoever has it on holds a shared lock, and the last one turns it off: so several instances
//! do not undo each other's. Ours is a value that nobody else writes; so what a killed supervisor left on is told from an
//! administrator's setting, and turned off by the next one.

use std::{
    fs::{self, File},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use rustix::fs::{FlockOperation, flock};

/// The kernel's knob: any other number than 0 is on.
const KNOB: &str = "/sys/kernel/rcu_expedited";
/// Where the lock is, which only root can open.
const LOCK: &str = "/run/ringwall-expedited.lock";
const OFF: &str = "0";
const OURS: &str = "2";

/// The knob is on while this lives. Somebody else's setting is left alone; where it cannot be written (a container),
/// closing takes its time.
#[derive(Debug)]
pub struct Expedited {
    knob: PathBuf,
    lock: File,
}

impl Expedited {
    /// Turns the knob on. None where somebody else has, or where it cannot be.
    pub fn begin() -> Option<Self> {
        Self::with(Path::new(KNOB), Path::new(LOCK))
    }

    fn with(knob: &Path, lock: &Path) -> Option<Self> {
        let lock = File::options()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(lock)
            .ok()?;
        // Waits for one that is turning it off: a few microseconds.
        flock(&lock, FlockOperation::LockShared).ok()?;
        if !matches!(fs::read_to_string(knob).ok()?.trim(), OFF | OURS) {
            return None;
        }
        fs::write(knob, OURS).ok()?;
        Some(Self {
            knob: knob.to_owned(),
            lock,
        })
    }

    /// Turns off what a supervisor that was killed left on, unless another has it on now.
    pub fn clear() {
        if fs::read_to_string(KNOB).is_ok_and(|value| value.trim() == OURS) {
            drop(Self::begin());
        }
    }
}

impl Drop for Expedited {
    fn drop(&mut self) {
        // Fails where another has it on.
        if flock(&self.lock, FlockOperation::NonBlockingLockExclusive).is_err() {
            return;
        }
        let still_ours = fs::read_to_string(&self.knob).is_ok_and(|value| value.trim() == OURS);
        if still_ours && let Err(error) = fs::write(&self.knob, OFF) {
            tracing::warn!(knob = %self.knob.display(), %error, "cannot be turned off again");
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)] // a test that panics has failed
mod tests {
    use super::*;

    #[test]
    fn the_last_one_turns_it_off_and_others_settings_stay() {
        let dir = tempfile::tempdir().unwrap();
        let (knob, lock) = (dir.path().join("knob"), dir.path().join("lock"));
        let with = || Expedited::with(&knob, &lock);
        let value = || fs::read_to_string(&knob).unwrap().trim().to_owned();
        assert!(with().is_none(), "there is none");
        fs::write(&knob, "0\n").unwrap();
        let [one, two] = [(); 2].map(|()| with().unwrap());
        assert_eq!(value(), OURS);
        drop(one);
        assert_eq!(value(), OURS, "the other still has it on");
        drop(two);
        assert_eq!(value(), OFF);

        // Left on by one that was killed.
        fs::write(&knob, "2\n").unwrap();
        drop(with().unwrap());
        assert_eq!(value(), OFF);

        fs::write(&knob, "1\n").unwrap();
        assert!(with().is_none(), "an administrator's");
        assert_eq!(value(), "1");
        // Set by an administrator meanwhile.
        fs::write(&knob, "0\n").unwrap();
        let on = with().unwrap();
        fs::write(&knob, "1\n").unwrap();
        drop(on);
        assert_eq!(value(), "1");
    }
}
