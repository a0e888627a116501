//! What the supervisor and its processes say to each other, over the socket that is each process's standard input.
//!
//! ```text
//! supervisor                       dataplane                        control
//! Snapshot{generation,..} + fd ->  Ready | Refused{reason}
//! Go{on_trial}                 ->  Receiving                        (staged alone) takes over
//! Serve                        ->  (listens from now on)
//!                              <-  (staged alone)                   Staged{generation,..} + fd | Refused{reason}
//!                              <-                                   InCharge
//!                              <-  Alive                            Alive
//! ```
//! The end of this socket is the end of the other process, however it ended.

use std::{
    fmt,
    fs::File,
    io,
    os::fd::{AsFd, OwnedFd},
    path::PathBuf,
    time::Duration,
};

use serde::{Deserialize, Serialize};

use super::{Connection, ContentHash, ProtocolError, Received};

/// Version of what the supervisor and its processes say to each other, and of the arguments that it starts them with.
pub const SUPERVISION_VERSION: u32 = 1;

/// From the supervisor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "kebab-case", rename_all_fields = "camelCase")]
pub enum SupervisorOrder {
    /// To a dataplane that stands by: begin with the snapshot in the memfd that comes with this, not with the one on disk.
    Snapshot {
        /// Its generation.
        generation: u64,
        /// Its canonical hash.
        hash: ContentHash,
        /// Bytes in the memfd.
        bytes: u64,
    },
    /// Take the ports over; to a staged control: take over.
    Go {
        /// To a dataplane: no client may connect before [`SupervisorOrder::Serve`], and nothing is kept on disk.
        on_trial: bool,
    },
    /// To a dataplane on trial: it stays.
    Serve,
}

/// To the supervisor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "kebab-case", rename_all_fields = "camelCase")]
pub enum ChildReport {
    /// Of a staged control: the first snapshot, proven, in the memfd that comes with this.
    Staged {
        /// Its generation.
        generation: u64,
        /// Its canonical hash.
        hash: ContentHash,
        /// Bytes in the memfd.
        bytes: u64,
    },
    /// Of a dataplane: everything that can be known before it takes the ports over is as it needs it.
    Ready,
    /// It is not, or there is no snapshot.
    Refused {
        /// Why.
        reason: String,
    },
    /// Of a dataplane: its workers receive.
    Receiving,
    /// Of control: it can be asked, and the dataplane is connected.
    InCharge,
    /// Every [`REPORT_INTERVAL`]: the loop of control turns, or every worker does.
    Alive,
}

/// Between two reports of a process that it is alive.
pub const REPORT_INTERVAL: Duration = Duration::from_secs(5);

/// From `ringwall upgrade` to the supervisor, with the program as a descriptor. Unlike other messages these are between any
/// two versions: nothing that is there now may change its meaning.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "kebab-case", rename_all_fields = "camelCase")]
pub enum UpgradeRequest {
    /// Replace the processes by those of the program that comes with this.
    Upgrade {
        /// What the program is called.
        path: PathBuf,
    },
}

/// From the supervisor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "kebab-case", rename_all_fields = "camelCase")]
pub enum UpgradeAnswer {
    /// What happens now, in words.
    Step {
        /// The words.
        text: String,
    },
    /// How it ended. The last one.
    End {
        /// All about it.
        upgrade: UpgradeStatus,
    },
}

/// An upgrade.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct UpgradeStatus {
    /// How it ended.
    pub outcome: UpgradeOutcome,
    /// The program.
    pub program: PathBuf,
    /// Version before.
    pub from: String,
    /// Version that it is to be; empty before that is known.
    pub to: String,
    /// What happens now or happened last, in words.
    pub step: String,
    /// Why it was refused or rolled back, or what is left to be seen to, in words.
    pub reason: Option<String>,
    /// When it began, in seconds since 1970.
    pub began: u64,
}

/// In one line, for a person.
impl fmt::Display for UpgradeStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let UpgradeStatus { from, to, step, .. } = self;
        let to = match to.as_str() {
            "" => self.program.display().to_string(),
            version => version.to_owned(),
        };
        let because = match &self.reason {
            Some(reason) => format!(": {reason}"),
            None => String::new(),
        };
        match self.outcome {
            UpgradeOutcome::Running => write!(f, "upgrading from {from} to {to}: {step}"),
            UpgradeOutcome::Done => write!(f, "upgraded from {from} to {to}{because}"),
            UpgradeOutcome::Refused => write!(f, "not upgraded to {to}, {from} goes on{because}"),
            UpgradeOutcome::RolledBack => write!(f, "rolled back from {to} to {from}{because}"),
        }
    }
}

/// How an upgrade ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum UpgradeOutcome {
    /// It has not yet.
    #[default]
    Running,
    /// The processes are of the new version.
    Done,
    /// Nothing was replaced.
    Refused,
    /// The processes are of the old version again.
    RolledBack,
}

/// A process's end of the line to its supervisor.
#[derive(Debug)]
pub struct Lifeline(Connection);

impl Lifeline {
    /// Takes standard input over; /dev/null takes its place, so that no program started by this one has it.
    ///
    /// # Errors
    /// Standard input is closed, or there is no /dev/null.
    pub fn of_stdin() -> io::Result<Self> {
        let stdin = io::stdin().as_fd().try_clone_to_owned()?;
        rustix::stdio::dup2_stdin(File::open("/dev/null")?)?;
        // The supervisor starts programs by the number of a descriptor, which would be the name otherwise.
        let _ = rustix::thread::set_name(c"ringwall");
        Ok(stdin.into())
    }

    /// Waits for the next order; None at the end. What is no socket has an end and no orders.
    pub fn hear(&self) -> Option<Received<SupervisorOrder>> {
        match self.0.receive() {
            Ok(received) => Some(received),
            Err(ProtocolError::Io(error)) if rustix::io::Errno::from_io_error(&error) == NOT_A_SOCKET => {
                let mut nothing = [0; 64];
                while rustix::io::retry_on_intr(|| rustix::io::read(&self.0, &mut nothing)) != Ok(0) {}
                None
            }
            Err(ProtocolError::Closed) => None,
            Err(error) => {
                tracing::error!(%error, "cannot understand the supervisor");
                None
            }
        }
    }

    /// Tells the supervisor something. Where that is gone, the end says so.
    pub fn report(&self, report: &ChildReport, fd: Option<OwnedFd>) {
        if let Err(error) = self.0.send(report, fd.as_ref().map(AsFd::as_fd)) {
            tracing::debug!(%error, "the supervisor hears nothing");
        }
    }
}

const NOT_A_SOCKET: Option<rustix::io::Errno> = Some(rustix::io::Errno::NOTSOCK);

impl From<OwnedFd> for Lifeline {
    fn from(fd: OwnedFd) -> Self {
        Self(Connection::from(fd))
    }
}

impl From<Lifeline> for OwnedFd {
    fn from(line: Lifeline) -> Self {
        line.0.into()
    }
}

impl AsFd for Lifeline {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.0.as_fd()
    }
}
