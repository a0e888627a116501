//! What a process gives up before it meets what strangers wrote: policies and answers of servers, or packets.
//!
//! * [`control`] becomes a user of its own without capabilities, who can read the source of policies and write two folders
//!   of its own, and whose system calls are those of an ordinary client.
//! * [`dataplane`] keeps the capabilities that ports and programs need and loses the rest, and every file that is not its own.
//!
//! Both happen while the process has one thread: capabilities, users and Landlock's domains belong to threads, and those
//! that are started later inherit them.

mod calls;
mod files;
mod needs;
mod user;

use std::{
    io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::OnceLock,
};

use ringwall_config::{Config, SourceKind, User};
use rustix::thread::{CapabilitySet, CapabilitySets};

pub use self::needs::Needs;
use self::user::{Account, Choice};
use crate::controller::{EPOCH_KEY_FILE, POLICIES_FILE};

/// Name of the folder of the control process, in the runtime directory and in the state directory.
pub const CONTROL_FOLDER: &str = "control";

/// What the dataplane keeps: ports, sockets and programs come and go as long as it lives.
#[cfg(feature = "afxdp")]
const DATAPLANE_KEEPS: CapabilitySet = CapabilitySet::NET_ADMIN
    .union(CapabilitySet::NET_RAW)
    .union(CapabilitySet::BPF)
    .union(CapabilitySet::PERFMON)
    // Names of loaded programs, network namespaces.
    .union(CapabilitySet::SYS_ADMIN)
    // Packet memory that is never swapped out, workers before others, descriptors for every queue.
    .union(CapabilitySet::IPC_LOCK)
    .union(CapabilitySet::SYS_NICE)
    .union(CapabilitySet::SYS_RESOURCE);

/// Why a process cannot be confined.
#[derive(Debug, thiserror::Error)]
pub enum ConfineError {
    /// `control.user` is nobody.
    #[error(
        "control.user: there is no user `{0}` on this machine; make one (`useradd --system {0}`), or leave the key out"
    )]
    NoUser(String),
    /// `control.user` cannot do what control has to.
    #[error(
        "control.user: {user} cannot use {}: {reason}; give the user access to it, or leave the key out", path.display()
    )]
    Unreadable {
        /// The user.
        user: String,
        /// What it has to read or write.
        path: PathBuf,
        /// What the kernel says.
        reason: String,
    },
    /// A folder or file cannot be handed to the user.
    #[error("cannot hand {} to {user}: {reason}", path.display())]
    HandOver {
        /// The user.
        user: String,
        /// The folder or file.
        path: PathBuf,
        /// What the kernel says.
        reason: String,
    },
    /// A right cannot be given up.
    #[error("cannot give up {what}: {reason}")]
    GiveUp {
        /// The right.
        what: &'static str,
        /// What the kernel says.
        reason: String,
    },
}

fn give_up<E: std::fmt::Display>(what: &'static str) -> impl FnOnce(E) -> ConfineError {
    move |error| ConfineError::GiveUp {
        what,
        reason: error.to_string(),
    }
}

/// As what the control process was confined; unset where it is not.
static CONFINED: OnceLock<Confined> = OnceLock::new();

struct Confined {
    readable: Needs,
    home: Option<PathBuf>,
}

/// Ends the process where it may not read what it has to read now, as a kubeconfig that names files in another folder: what
/// may be read is settled at the start, and the supervisor starts another process.
pub(crate) fn end_unless_covered(needs: &Needs, what: &Path) {
    if CONFINED
        .get()
        .is_some_and(|confined| !confined.readable.covers(needs))
    {
        tracing::warn!(
            "{} leads outside of what this process could read at its start: ending it, so that the next one can",
            what.display()
        );
        std::process::exit(i32::from(crate::essential::EXIT_SOFTWARE));
    }
}

/// Where programs that make credentials find theirs; None where the user has not changed.
pub(crate) fn home() -> Option<&'static Path> {
    CONFINED.get()?.home.as_deref()
}

/// Confines the control process, which takes policies from `source`. Its folders are there afterwards, and its own.
///
/// # Errors
/// The configured user cannot be had or cannot read the source, or the kernel refuses to take a right away. A kernel without
/// Landlock is no error: the log says so.
pub fn control(config: &Config, source: &SourceKind) -> Result<(), ConfineError> {
    let needs = Needs::of(source);
    let folders = [&config.runtime_dir, &config.state_dir].map(|dir| dir.join(CONTROL_FOLDER));
    let (name, home) = if rustix::process::geteuid().is_root() {
        let choice = Choice::new(config.control_user.as_ref(), &needs);
        let account = choose(&choice, config, &needs, &folders)?;
        keep_at_most(CapabilitySet::empty())?;
        account.become_it()?;
        (account.to_string(), account.home().map(Path::to_owned))
    } else {
        for folder in &folders {
            user::make_folder(folder)?;
        }
        keep_at_most(CapabilitySet::empty())?;
        ("the user who started it".to_owned(), None)
    };
    keep_capabilities(CapabilitySet::empty())?;
    let enforced = files::control(config, &needs, &folders).map_err(give_up("files"))?;
    calls::allow_ordinary().map_err(give_up("system calls"))?;
    tracing::info!(
        user = name,
        landlock = enforced,
        seccomp = true,
        "control gave up its rights"
    );
    let _ = CONFINED.set(Confined {
        readable: needs,
        home,
    });
    Ok(())
}

/// The first user who can do what has to be done. The folders are its own afterwards.
fn choose(
    choice: &Choice,
    config: &Config,
    needs: &Needs,
    folders: &[PathBuf; 2],
) -> Result<Account, ConfineError> {
    let accounts = choice.accounts()?;
    let mut last = None;
    for account in &accounts {
        prepare(config, account, folders)?;
        match account.can_use(needs, folders) {
            Ok(()) => {
                if account.is_root() && accounts.len() > 1 {
                    tracing::info!(
                        "control stays root, without capabilities: nobody else can read its source; \
                         to change that, let the user `{}` read it",
                        user::NAME
                    );
                }
                return Ok(account.clone());
            }
            Err(refused) => last = Some((account.to_string(), refused)),
        }
    }
    // Root, the last of those that are tried, is refused by file systems of the network alone.
    let (user, (path, error)) = last.unwrap_or_default();
    Err(ConfineError::Unreadable {
        user,
        path,
        reason: error,
    })
}

/// Makes the folders, the account's own; what is in them and what an earlier version kept beside them is handed over.
fn prepare(config: &Config, account: &Account, folders: &[PathBuf; 2]) -> Result<(), ConfineError> {
    let hand_over = |path: &Path| {
        let path = path.to_owned();
        move |error: io::Error| ConfineError::HandOver {
            user: account.to_string(),
            path,
            reason: error.to_string(),
        }
    };
    for (dir, folder) in [&config.runtime_dir, &config.state_dir].into_iter().zip(folders) {
        user::make_folder(dir)?;
        // What is made in it belongs to the account's group: the dataplane's socket, and what the supervisor counts.
        std::os::unix::fs::chown(dir, None, Some(account.gid)).map_err(hand_over(dir))?;
        let mode = std::fs::Permissions::from_mode(0o2750);
        std::fs::set_permissions(dir, mode).map_err(hand_over(dir))?;
        user::make_folder(folder)?;
        if account.owns(folder).map_err(hand_over(folder))? {
            continue;
        }
        for name in [EPOCH_KEY_FILE, POLICIES_FILE] {
            let (before, now) = (dir.join(name), folder.join(name));
            if before.exists() && !now.exists() {
                std::fs::rename(&before, &now).map_err(hand_over(&before))?;
            }
        }
        for entry in std::fs::read_dir(folder).map_err(hand_over(folder))?.flatten() {
            let path = entry.path();
            account.take(&path).map_err(hand_over(&path))?;
        }
        // Last: root without the right to look into everything could not enter it any more.
        account.take(folder).map_err(hand_over(folder))?;
    }
    // Whoever asks finds the socket where it always was.
    let link = config.control_socket();
    let target = Path::new(CONTROL_FOLDER).join(crate::protocol::CONTROL_SOCKET);
    if std::fs::read_link(&link).ok().as_deref() != Some(&target) {
        let _ = std::fs::remove_file(&link); // the socket of an earlier version
        std::os::unix::fs::symlink(&target, &link).map_err(hand_over(&link))?;
    }
    Ok(())
}

/// Confines the dataplane: after the BPF file system is mounted, before anything else of the machine is touched.
///
/// # Errors
/// The kernel refuses to take a right away.
#[cfg(feature = "afxdp")]
pub fn dataplane(config: &Config) -> Result<(), ConfineError> {
    keep_at_most(DATAPLANE_KEEPS)?;
    keep_capabilities(DATAPLANE_KEEPS)?;
    let enforced = files::dataplane(config).map_err(give_up("files"))?;
    tracing::info!(landlock = enforced, "the dataplane gave up what it does not need");
    Ok(())
}

/// Gives up all other capabilities for what this process starts. Before it gives up those that this takes.
fn keep_at_most(keep: CapabilitySet) -> Result<(), ConfineError> {
    rustix::thread::set_no_new_privs(true).map_err(give_up("new privileges"))?;
    let now = rustix::thread::capabilities(None).map_err(give_up("capabilities"))?;
    // Without SETPCAP the bounding set stays; nothing can be gained from it any more.
    if now.effective.contains(CapabilitySet::SETPCAP) {
        for capability in CapabilitySet::all().difference(keep).iter() {
            match rustix::thread::remove_capability_from_bounding_set(capability) {
                // A capability that this kernel does not know.
                Ok(()) | Err(rustix::io::Errno::INVAL) => {}
                Err(error) => return Err(give_up("capabilities")(error)),
            }
        }
    }
    rustix::thread::clear_ambient_capability_set().map_err(give_up("capabilities"))
}

/// Gives up all other capabilities.
fn keep_capabilities(keep: CapabilitySet) -> Result<(), ConfineError> {
    let now = rustix::thread::capabilities(None).map_err(give_up("capabilities"))?;
    let kept = CapabilitySets {
        effective: now.permitted.intersection(keep),
        permitted: now.permitted.intersection(keep),
        inheritable: CapabilitySet::empty(),
    };
    rustix::thread::set_capabilities(None, kept).map_err(give_up("capabilities"))
}

/// In messages.
fn words(user: &User) -> String {
    match user {
        User::Name(name) => name.clone(),
        User::Id(id) => id.to_string(),
    }
}
