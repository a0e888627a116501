//! The processes that the supervisor runs, and when it starts them again.

use std::{
    io::{self, Write},
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::fs::MetadataExt,
    },
    path::{Path, PathBuf},
    process::{Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{Pid, PidfdFlags, Signal},
};

/// A process of the appliance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Owns the ports.
    Dataplane,
    /// Owns the policies.
    Control,
}

impl Role {
    /// Both.
    pub const ALL: [Role; 2] = [Role::Dataplane, Role::Control];

    /// Its subcommand.
    pub fn name(self) -> &'static str {
        match self {
            Role::Dataplane => "dataplane",
            Role::Control => "control",
        }
    }
}

/// A process that lived this long was healthy: its next restart is immediate again.
const HEALTHY: Duration = Duration::from_secs(10);
/// First wait of a process that keeps dying; doubled each time.
const FIRST_WAIT: Duration = Duration::from_millis(100);
/// Longest wait.
const LONGEST_WAIT: Duration = Duration::from_secs(5);

/// How long to wait before a process is started again: not at all the first time, longer and longer while it keeps
/// dying young.
#[derive(Debug, Default)]
pub struct Backoff {
    early_deaths: u32,
}

impl Backoff {
    /// The wait after a process died that had lived so long.
    pub fn after(&mut self, lived: Duration) -> Duration {
        if lived >= HEALTHY {
            self.early_deaths = 0;
        }
        let wait = match self.early_deaths {
            0 => Duration::ZERO,
            n => FIRST_WAIT.saturating_mul(1 << (n - 1).min(16)).min(LONGEST_WAIT),
        };
        self.early_deaths = self.early_deaths.saturating_add(1);
        wait
    }
}

/// How to start a process.
#[derive(Clone, Debug)]
pub struct Recipe {
    /// Which.
    pub role: Role,
    /// The program: this one.
    pub program: PathBuf,
    /// Its arguments.
    pub arguments: Vec<std::ffi::OsString>,
}

/// A running child. Its standard input is a pipe: when the supervisor dies, however it dies, the child reads the end of it
/// and stops. One byte tells a dataplane to go.
pub struct Child {
    child: std::process::Child,
    pidfd: OwnedFd,
    /// When it was started or told to go.
    began: Instant,
    /// The program's file as it was then.
    program: Option<FileId>,
}

/// Tells a file from one that replaced it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct FileId {
    device: u64,
    inode: u64,
    modified: (i64, i64),
}

impl FileId {
    fn of(path: &Path) -> Option<Self> {
        let metadata = std::fs::metadata(path).ok()?;
        Some(Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
        })
    }
}

impl Child {
    /// Starts it.
    pub fn start(recipe: &Recipe) -> io::Result<Self> {
        let program = FileId::of(&recipe.program);
        let mut child = Command::new(&recipe.program)
            .args(&recipe.arguments)
            .env_remove("NOTIFY_SOCKET") // the supervisor alone speaks to systemd
            .env_remove("WATCHDOG_USEC")
            .env_remove("WATCHDOG_PID")
            .stdin(Stdio::piped())
            .spawn()?;
        let pid = Pid::from_child(&child);
        match rustix::process::pidfd_open(pid, PidfdFlags::empty()) {
            Ok(pidfd) => Ok(Self {
                child,
                pidfd,
                began: Instant::now(),
                program,
            }),
            Err(error) => {
                let _ = child.kill();
                let _ = child.wait();
                Err(error.into())
            }
        }
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// How long it has been running, standing by left out.
    pub fn lived(&self) -> Duration {
        self.began.elapsed()
    }

    /// Tells it to go.
    pub fn go(&mut self) {
        self.began = Instant::now();
        if let Some(stdin) = &mut self.child.stdin {
            // Fails only where it has ended already.
            let _ = stdin.write_all(&[1]);
        }
    }

    /// Whether its program has been replaced since, by an upgrade.
    pub fn is_outdated(&self, recipe: &Recipe) -> bool {
        FileId::of(&recipe.program).is_some_and(|now| Some(now) != self.program)
    }

    /// Whether it has ended, and how.
    pub fn ended(&mut self) -> io::Result<Option<ExitStatus>> {
        self.child.try_wait()
    }

    /// Whether it has begun to die: the kernel closes its standard input before its sockets, and takes its time with
    /// those. Known before [`Self::ended`], so that a successor can begin meanwhile.
    pub fn is_dying(&self) -> bool {
        let Some(stdin) = &self.child.stdin else {
            return false;
        };
        let mut fds = [PollFd::new(stdin, PollFlags::empty())];
        let now = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        matches!(poll(&mut fds, Some(&now)), Ok(1..)) && fds[0].revents().contains(PollFlags::ERR)
    }

    /// The other end of its standard input: shows an error as soon as it dies.
    pub fn lifeline(&self) -> Option<BorrowedFd<'_>> {
        self.child.stdin.as_ref().map(AsFd::as_fd)
    }

    /// Asks it to end, or makes it.
    pub fn signal(&self, signal: Signal) {
        // Fails only where it has ended already.
        let _ = rustix::process::pidfd_send_signal(&self.pidfd, signal);
    }
}

impl AsFd for Child {
    /// Readable once it has ended.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        if !matches!(self.child.try_wait(), Ok(Some(_))) {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// Such as `KILL`.
fn signal_name(signal: Signal) -> String {
    let debug = format!("{signal:?}");
    let name = debug.trim_matches('"');
    name.trim_start_matches("Signal::").to_owned()
}

/// How a process ended, in words.
pub fn describe(status: ExitStatus) -> String {
    use std::os::unix::process::ExitStatusExt;
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit status {code}"),
        (None, Some(signal)) => match Signal::from_named_raw(signal) {
            Some(name) => format!("killed by SIG{}", signal_name(name)),
            None => format!("killed by signal {signal}"),
        },
        (None, None) => "ended in an unknown way".to_owned(),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)] // a test that panics has failed
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn an_end_is_said_in_the_words_of_the_kernel() {
        use std::os::unix::process::ExitStatusExt;
        let said = [9, 15, 2 << 8, 70 << 8].map(|raw| describe(ExitStatus::from_raw(raw)));
        assert_eq!(
            said,
            [
                "killed by SIGKILL",
                "killed by SIGTERM",
                "exit status 2",
                "exit status 70"
            ]
        );
    }

    #[test]
    fn the_first_restart_is_immediate_and_repeated_ones_wait_longer() {
        let mut backoff = Backoff::default();
        let young = Duration::from_millis(5);
        let waits: Vec<u64> = (0..9).map(|_| backoff.after(young).as_millis() as u64).collect();
        assert_eq!(waits, [0, 100, 200, 400, 800, 1600, 3200, 5000, 5000]);
    }

    #[test]
    fn a_healthy_life_resets_the_wait() {
        let mut backoff = Backoff::default();
        for _ in 0..5 {
            backoff.after(Duration::ZERO);
        }
        assert_eq!(backoff.after(HEALTHY), Duration::ZERO);
        assert_eq!(backoff.after(Duration::ZERO), FIRST_WAIT);
    }

    #[test]
    fn a_program_that_was_replaced_is_outdated() {
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join("program");
        symlink("/bin/cat", &program).unwrap();
        let recipe = Recipe {
            role: Role::Dataplane,
            program: program.clone(),
            arguments: Vec::new(),
        };
        let child = Child::start(&recipe).unwrap();
        assert!(!child.is_outdated(&recipe));
        symlink("/bin/sh", dir.path().join("next")).unwrap();
        std::fs::rename(dir.path().join("next"), &program).unwrap();
        assert!(child.is_outdated(&recipe));
        std::fs::remove_file(&program).unwrap();
        assert!(!child.is_outdated(&recipe), "there is no other to start");
    }

    #[test]
    fn endless_deaths_do_not_overflow() {
        let mut backoff = Backoff {
            early_deaths: u32::MAX,
        };
        assert_eq!(backoff.after(Duration::ZERO), LONGEST_WAIT);
    }
}
