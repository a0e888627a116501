//! The processes that the supervisor runs, and when it starts them again.

use std::{
    fs::File,
    io,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
        unix::{fs::MetadataExt, process::CommandExt},
    },
    path::{Path, PathBuf},
    process::{Command, ExitStatus},
    sync::Arc,
    time::{Duration, Instant},
};

use ringwall_messages::{ChildReport, Connection, Received, SupervisorOrder};
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
/// As many messages of a process are read in one turn: it must neither hold the supervisor nor fill its memory.
pub const MAX_REPORTS_PER_TURN: usize = 16;
/// First wait of a process that keeps dying; doubled each time.
const FIRST_WAIT: Duration = Duration::from_millis(100);
/// Longest wait.
const MAX_WAIT: Duration = Duration::from_secs(5);

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
            n => FIRST_WAIT.saturating_mul(1 << (n - 1).min(16)).min(MAX_WAIT),
        };
        self.early_deaths = self.early_deaths.saturating_add(1);
        wait
    }
}

/// A program, held open: a file that takes its place changes nothing.
#[derive(Clone, Debug)]
pub struct Program {
    file: Arc<File>,
    /// What it is called in words.
    path: PathBuf,
}

impl Program {
    /// The one that runs now.
    ///
    /// # Errors
    /// There is no /proc.
    pub fn running() -> io::Result<Self> {
        Ok(Self {
            file: Arc::new(File::open("/proc/self/exe")?),
            path: std::env::current_exe()?,
        })
    }

    /// One that somebody has opened.
    pub fn of(file: File, path: PathBuf) -> Self {
        Self {
            file: Arc::new(file),
            path,
        }
    }

    /// Where it was found; what is there now may be another one.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether both are one file.
    pub fn is(&self, other: &Self) -> bool {
        let id = |program: &Self| program.file.metadata().map(|it| (it.dev(), it.ino())).ok();
        id(self).is_some() && id(self) == id(other)
    }

    /// A command that runs it.
    pub fn command(&self) -> Command {
        // The child has the descriptor until the kernel has found the program.
        let mut command = Command::new(format!("/proc/self/fd/{}", self.file.as_raw_fd()));
        command.arg0("ringwall");
        command
            .env_remove("NOTIFY_SOCKET") // the supervisor alone speaks to systemd
            .env_remove("WATCHDOG_USEC")
            .env_remove("WATCHDOG_PID");
        command
    }
}

/// How to start a process.
#[derive(Clone, Debug)]
pub struct LaunchSpec {
    /// Which.
    pub role: Role,
    /// The program.
    pub program: Program,
    /// Its arguments.
    pub arguments: Vec<std::ffi::OsString>,
}

/// A running child. Its standard input is one end of a socket: when the supervisor dies, however it dies, the child reads
/// the end of it and stops. [`SupervisorOrder`] and [`ChildReport`] travel there.
pub struct Child {
    child: std::process::Child,
    pidfd: OwnedFd,
    line: Connection,
    /// When it was started or told to go.
    began: Instant,
    /// When it last said that it is alive; None where it has not begun to.
    beat: Option<Instant>,
}

impl Child {
    /// Starts it.
    pub fn start(recipe: &LaunchSpec) -> io::Result<Self> {
        let (line, far) = Connection::pair().map_err(io::Error::other)?;
        line.set_nonblocking().map_err(io::Error::other)?;
        let mut child = recipe
            .program
            .command()
            .args(&recipe.arguments)
            .stdin(OwnedFd::from(far))
            .spawn()?;
        let pid = Pid::from_child(&child);
        match rustix::process::pidfd_open(pid, PidfdFlags::empty()) {
            Ok(pidfd) => Ok(Self {
                child,
                pidfd,
                line,
                began: Instant::now(),
                beat: None,
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
    pub fn go(&mut self, on_trial: bool) {
        self.began = Instant::now();
        self.order(&SupervisorOrder::Go { on_trial }, None);
    }

    /// Tells it something.
    pub fn order(&self, order: &SupervisorOrder, fd: Option<BorrowedFd<'_>>) {
        // Fails only where it has ended already.
        let _ = self.line.send(order, fd);
    }

    /// What it has said and nobody has read yet; None where that is nothing. That it is alive is only noted. Reads a few
    /// messages at most: who says more must wait.
    pub fn report(&mut self) -> Option<Received<ChildReport>> {
        for _ in 0..MAX_REPORTS_PER_TURN {
            let received = self.line.receive().ok()?;
            if received.message != ChildReport::Alive {
                return Some(received);
            }
            self.beat = Some(Instant::now());
        }
        None
    }

    /// It is as good as gone.
    pub fn expect_nothing(&mut self) {
        self.beat = None;
    }

    /// Leaves a time out in which nobody could say anything.
    pub fn extend_silence(&mut self, gap: Duration) {
        self.beat = self.beat.map(|beat| beat + gap);
    }

    /// How long it has not said that it is alive, since it began to.
    pub fn silence(&self) -> Option<Duration> {
        self.beat.map(|beat| beat.elapsed())
    }

    /// Whether it has ended, and how.
    pub fn ended(&mut self) -> io::Result<Option<ExitStatus>> {
        self.child.try_wait()
    }

    /// Whether it has begun to die: the kernel closes its end of the line before its sockets, and takes its time with
    /// those. Known before [`Self::ended`], so that a successor can begin meanwhile.
    pub fn is_dying(&self) -> bool {
        let mut fds = [PollFd::new(&self.line, PollFlags::empty())];
        let now = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        matches!(poll(&mut fds, Some(&now)), Ok(1..)) && fds[0].revents().contains(PollFlags::HUP)
    }

    /// The line to it: readable when it says something, and hung up as soon as it dies.
    pub fn line(&self) -> BorrowedFd<'_> {
        self.line.as_fd()
    }

    /// The same as long as it may say something: a line that its process has closed is readable for ever.
    pub fn open_line(&self) -> Option<BorrowedFd<'_>> {
        (!self.is_dying()).then(|| self.line())
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
    fn a_program_stays_the_same_when_its_file_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("program");
        let copy = |from: &str| {
            let next = dir.path().join("next");
            std::fs::copy(from, &next).unwrap();
            std::fs::rename(next, &path).unwrap();
            Program::of(File::open(&path).unwrap(), path.clone())
        };
        let before = copy("/bin/echo");
        let after = copy("/bin/false");
        assert!(before.is(&before.clone()) && !before.is(&after));
        let said = |program: &Program| program.command().arg("before").output().unwrap();
        assert_eq!(said(&before).stdout, b"before\n");
        assert_eq!(said(&after).status.code(), Some(1));
        std::fs::remove_file(&path).unwrap();
        assert_eq!(said(&before).stdout, b"before\n");
    }

    #[test]
    fn a_child_hears_orders_and_its_end_is_known() {
        let recipe = LaunchSpec {
            role: Role::Dataplane,
            program: Program::of(File::open("/bin/cat").unwrap(), "/bin/cat".into()),
            arguments: Vec::new(),
        };
        let mut child = Child::start(&recipe).unwrap();
        assert!(!child.is_dying() && child.report().is_none());
        child.signal(Signal::KILL);
        let mut fds = [PollFd::from_borrowed_fd(child.line(), PollFlags::IN)];
        poll(&mut fds, None).unwrap();
        assert!(child.is_dying());
        let mut fds = [PollFd::new(&child, PollFlags::IN)];
        poll(&mut fds, None).unwrap();
        assert_eq!(describe(child.ended().unwrap().unwrap()), "killed by SIGKILL");
    }

    #[test]
    fn a_child_that_closes_its_line_is_no_longer_listened_to() {
        let recipe = LaunchSpec {
            role: Role::Control,
            program: Program::of(File::open("/bin/sh").unwrap(), "/bin/sh".into()),
            arguments: ["-c", "exec sleep 60 <&-"].map(Into::into).to_vec(),
        };
        let mut child = Child::start(&recipe).unwrap();
        poll(&mut [PollFd::from_borrowed_fd(child.line(), PollFlags::IN)], None).unwrap();
        assert!(child.open_line().is_none());
        assert!(child.ended().unwrap().is_none(), "it lives on");
    }

    #[test]
    fn endless_deaths_do_not_overflow() {
        let mut backoff = Backoff {
            early_deaths: u32::MAX,
        };
        assert_eq!(backoff.after(Duration::ZERO), MAX_WAIT);
    }
}
