//! The supervisor's socket: who wants an upgrade.

use std::{
    fs::File,
    os::{
        fd::{AsFd, BorrowedFd},
        unix::fs::PermissionsExt,
    },
    path::Path,
};

use ringwall_messages::{
    Connection, Listener, ProtocolError, RELEASE, Received, SUPERVISOR_SOCKET, UpgradeAnswer, UpgradeOutcome,
    UpgradeRequest, UpgradeStatus,
};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::super::children::Program;

/// Clients that have connected and not asked yet: more are sent away.
const MAX_PENDING: usize = 8;

/// Those who ask. Nothing here waits.
#[derive(Debug)]
pub struct Requests {
    listener: Listener,
    connected: Vec<Connected>,
}

/// Someone who has not asked yet.
#[derive(Debug)]
struct Connected {
    connection: Connection,
    /// Whether it may have what it asks for.
    allowed: bool,
}

/// Someone who wants an upgrade.
#[derive(Debug)]
pub struct Client(Connection);

impl Client {
    /// Says what happens. Who has gone hears nothing.
    pub fn step(&self, text: &str) {
        let text = text.to_owned();
        let _ = self.0.send(&UpgradeAnswer::Step { text }, None);
    }

    /// Says how it ended.
    pub fn end(self, upgrade: UpgradeStatus) {
        let _ = self.0.send(&UpgradeAnswer::End { upgrade }, None);
    }
}

impl Requests {
    /// Listens in the runtime directory.
    ///
    /// # Errors
    /// The socket cannot be made.
    pub fn listen(runtime: &Path) -> Result<Self, ProtocolError> {
        let path = runtime.join(SUPERVISOR_SOCKET);
        let listener = Listener::bind(&path)?;
        // Not for the folder's group, which is control's.
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))?;
        rustix::io::ioctl_fionbio(&listener, true)?;
        Ok(Self {
            listener,
            connected: Vec::new(),
        })
    }

    /// What becomes readable when somebody connects or asks.
    pub fn fds(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        std::iter::once(self.listener.as_fd()).chain(self.connected.iter().map(|it| it.connection.as_fd()))
    }

    /// Those who have asked.
    pub fn take(&mut self) -> Vec<(Client, Program)> {
        while let Ok(connection) = self.listener.accept() {
            if self.connected.len() >= MAX_PENDING || connection.set_nonblocking().is_err() {
                continue;
            }
            // At once: a process id means its process only as long as that lives.
            let allowed = may_ask(&connection);
            self.connected.push(Connected { connection, allowed });
        }
        let mut asked = Vec::new();
        for Connected { connection, allowed } in std::mem::take(&mut self.connected) {
            match connection.receive() {
                Ok(Received {
                    message: UpgradeRequest::Upgrade { path },
                    fd: Some(fd),
                }) if allowed => asked.push((Client(connection), Program::of(File::from(fd), path))),
                Ok(Received {
                    message: UpgradeRequest::Upgrade { path },
                    fd: _,
                }) if !allowed => {
                    tracing::warn!("upgrade refused: the caller lacks the rights of the supervisor");
                    let reason =
                        "only a caller with all rights of the supervisor can upgrade: run this as root";
                    Client(connection).end(UpgradeStatus {
                        outcome: UpgradeOutcome::Refused,
                        program: path,
                        from: RELEASE.to_owned(),
                        reason: Some(reason.to_owned()),
                        ..UpgradeStatus::default()
                    });
                }
                Err(ProtocolError::TimedOut) => self.connected.push(Connected { connection, allowed }),
                Ok(_) | Err(_) => {} // gone, or not understood: closed
            }
        }
        asked
    }
}

/// Whether a peer has every right that the program would get. The user alone does not say so: control may have stayed root,
/// without capabilities, and must not choose what the supervisor starts. A peer that has ended has no rights, since its
/// process id may be another's by now (kernels before 6.5 cannot say so).
fn may_ask(connection: &Connection) -> bool {
    let Ok(peer) = rustix::net::sockopt::socket_peercred(connection) else {
        return false;
    };
    let own = rustix::process::geteuid();
    let of = |process: &str| capabilities(&std::fs::read_to_string(format!("/proc/{process}/status")).ok()?);
    let (Some(ours), Some(theirs)) = (of("self"), of(&peer.pid.to_string())) else {
        return false;
    };
    peer.uid == own && theirs & ours == ours && has_not_ended(connection)
}

fn has_not_ended(connection: &Connection) -> bool {
    let Ok(peer) = nix::sys::socket::getsockopt(connection, nix::sys::socket::sockopt::PeerPidfd) else {
        return true; // SO_PEERPIDFD is not there
    };
    let mut fds = [PollFd::new(&peer, PollFlags::IN)];
    let now = Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    matches!(poll(&mut fds, Some(&now)), Ok(0))
}

/// The effective capabilities in the text of `/proc/PID/status`.
fn capabilities(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(line.trim(), 16).ok()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)] // a test that panics has failed
mod tests {
    use super::*;
    #[test]
    fn effective_capabilities_are_read() {
        let status =
            "Name:\tx\nCapInh:\t0000000000000000\nCapEff:\t000000000000102a\nCapBnd:\t000001ffffffffff\n";
        assert_eq!(capabilities(status), Some(0x102a));
        assert_eq!(capabilities("Name:\tx\n"), None);
    }

    #[test]
    fn a_peer_that_has_ended_may_ask_for_nothing() {
        const PATH: &str = "RINGWALL_TEST_PEER";
        // This test again, as a process of its own that connects, and ends when its input does.
        if let Some(path) = std::env::var_os(PATH) {
            let _connection = Connection::connect(Path::new(&path)).unwrap();
            std::io::stdin().lines().for_each(drop);
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(SUPERVISOR_SOCKET);
        let listener = Listener::bind(&path).unwrap();
        let this = std::thread::current().name().unwrap().to_owned();
        let mut peer = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", &this])
            .env(PATH, &path)
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap();
        let connection = listener.accept().unwrap();
        assert!(may_ask(&connection));
        drop(peer.stdin.take());
        peer.wait().unwrap();
        assert!(!has_not_ended(&connection) && !may_ask(&connection));
    }

    #[test]
    fn requests_are_taken_and_answered_without_waiting_for_anybody() {
        let dir = tempfile::tempdir().unwrap();
        let mut requests = Requests::listen(dir.path()).unwrap();
        assert!(requests.take().is_empty());
        let connect = || Connection::connect(&dir.path().join(SUPERVISOR_SOCKET)).unwrap();
        let (silent, asking, empty) = (connect(), connect(), connect());
        assert!(requests.take().is_empty());
        let upgrade = UpgradeRequest::Upgrade {
            path: "/opt/ringwall".into(),
        };
        let program = File::open("/bin/cat").unwrap();
        asking.send(&upgrade, Some(program.as_fd())).unwrap();
        empty.send(&upgrade, None).unwrap();
        let mut asked = requests.take();
        assert_eq!(asked.len(), 1);
        let (client, program) = asked.remove(0);
        assert_eq!(program.path(), Path::new("/opt/ringwall"));
        assert!(program.is(&Program::of(File::open("/bin/cat").unwrap(), "x".into())));
        client.step("one");
        client.end(UpgradeStatus {
            outcome: UpgradeOutcome::Done,
            ..UpgradeStatus::default()
        });
        let step = UpgradeAnswer::Step { text: "one".into() };
        assert_eq!(asking.receive::<UpgradeAnswer>().unwrap().message, step);
        let end = asking.receive::<UpgradeAnswer>().unwrap().message;
        assert!(matches!(end, UpgradeAnswer::End { upgrade } if upgrade.outcome == UpgradeOutcome::Done));
        assert!(matches!(
            empty.receive::<UpgradeAnswer>(),
            Err(ProtocolError::Closed)
        ));
        drop(silent);
        assert!(requests.take().is_empty() && requests.fds().count() == 1);
    }
}
