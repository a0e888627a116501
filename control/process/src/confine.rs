//! What a process gives up before it meets what strangers wrote: policies and answers of servers, or packets.
//!
//! * [`control`] becomes a user of its own without capabilities (or with the one to read, where files of others are its source, and the
//!   one to listen on a port below 1024, where the configuration has one), who can read the source of policies and write two folders
//!   of its own, and whose system calls are those of an ordinary client.
//! * [`dataplane`] keeps the capabilities that ports and programs need and loses the rest, and every file that is not its own.
//!
//! Both happen while the process has one thread: capabilities, users and Landlock's domains belong to threads, and those
//! that are started later inherit them.

mod account;
mod file_access;
mod source_files;
mod syscalls;

use std::{
    io,
    os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt, chown, lchown},
    path::{Path, PathBuf},
    sync::OnceLock,
};

use ringwall_config::Config;
use ringwall_messages::{CONTROL_SOCKET, DATAPLANE_SOCKET, SUPERVISION_FILE};
use rustix::thread::{CapabilitySet, CapabilitySets};

use self::account::Account;
pub use self::source_files::SourceFiles;

/// Name of the folder of the control process, in the runtime directory and in the state directory.
pub const CONTROL_FOLDER: &str = "control";

/// Name of the file in the state directory's [`CONTROL_FOLDER`] that holds the key of the epochs: 32 random bytes.
pub const EPOCH_KEY_FILE: &str = "epoch.key";

/// Name of the file there that holds the policies last seen at the API server.
pub const POLICIES_FILE: &str = "policies.json";

/// What the dataplane keeps: ports, sockets and programs come and go as long as it lives.
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
    /// There is no user named `control.user`.
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
    ChangeOwner {
        /// The user.
        user: String,
        /// The folder or file.
        path: PathBuf,
        /// What the kernel says.
        reason: String,
    },
    /// A right cannot be given up.
    #[error("cannot give up {what}: {reason}")]
    DropPrivilege {
        /// The right.
        what: &'static str,
        /// What the kernel says.
        reason: String,
    },
}

fn drop_error<E: std::fmt::Display>(what: &'static str) -> impl FnOnce(E) -> ConfineError {
    move |error| ConfineError::DropPrivilege {
        what,
        reason: error.to_string(),
    }
}

/// As what the control process was confined; unset where it is not.
static CONFINED: OnceLock<Confined> = OnceLock::new();

struct Confined {
    readable: SourceFiles,
    home: Option<PathBuf>,
}

/// Ends the process where it may not read what it has to read now, as a kubeconfig that names files in another folder: what
/// may be read is settled at the start, and the supervisor starts another process. Not where the next one could not either.
pub fn exit_unless_covered(needs: &SourceFiles, what: &Path) {
    let Some(confined) = CONFINED.get() else { return };
    if confined.readable.covers(needs) || !confined.readable.would_cover(needs) {
        return;
    }
    tracing::warn!(
        "{} has moved since this process started and gave up its rights: exiting, so the next process can read it",
        what.display()
    );
    std::process::exit(i32::from(crate::essential::EXIT_SOFTWARE));
}

/// Ends the process where a file by which names are resolved was replaced by another of its name, which it cannot read.
pub fn exit_if_names_changed() {
    for (file, needs) in SourceFiles::of_names() {
        exit_unless_covered(&needs, file);
    }
}

/// Where programs that make credentials find theirs; None where that is the environment's.
pub fn home() -> Option<&'static Path> {
    CONFINED.get()?.home.as_deref()
}

/// Confines the control process to what its source `needs`. Its folders are there afterwards, and its own.
///
/// # Errors
/// The configured user cannot be had or cannot read the source, or the kernel refuses to take a right away. A kernel without
/// Landlock is no error: the log says so.
pub fn control(config: &Config, mut needs: SourceFiles) -> Result<(), ConfineError> {
    let folders = [&config.runtime_dir, &config.state_dir].map(|dir| dir.join(CONTROL_FOLDER));
    let rights = rustix::thread::capabilities(None)
        .map_err(drop_error("capabilities"))?
        .effective;
    let ports = to_listen(config);
    let takes = CapabilitySet::SETUID | CapabilitySet::SETGID | CapabilitySet::CHOWN;
    let mut home = None;
    let name = if rustix::process::geteuid().is_root() && rights.contains(takes) {
        let account = account::choose(config.control_user.as_ref(), &needs)?;
        prepare(config, &account, &folders)?;
        let mut keep = CapabilitySet::empty();
        if let Some((path, reason)) = account.cannot_read(&needs, &folders)? {
            if config.control_user.is_some() {
                let user = account.to_string();
                return Err(ConfineError::Unreadable { user, path, reason });
            }
            // Behind Landlock this reads what is needed, unless a program for credentials needs everything.
            keep = CapabilitySet::DAC_READ_SEARCH;
            needs.stay_inside();
            tracing::info!(
                "{} cannot read {} ({reason}), so control keeps the capability to read files; \
                 to change that, give {account} access to it",
                account,
                path.display()
            );
        }
        if needs.runs_programs && needs.owner() == Some(account.uid) {
            home = account.home().map(Path::to_owned);
        }
        drop_other_capabilities_for_children(keep | ports)?;
        rustix::thread::set_keep_capabilities(true).map_err(drop_error("capabilities"))?;
        account.switch_to()?;
        drop_other_capabilities(keep | ports)?;
        if needs.runs_programs && !keep.is_empty() {
            // For the programs, too: what they read is where root's is.
            inherit(keep)?;
        }
        account.to_string()
    } else {
        for folder in &folders {
            make_folder(folder, 0o700)?;
        }
        link_socket(config)?;
        drop_other_capabilities_for_children(ports)?;
        drop_other_capabilities(ports)?;
        "the user who started it".to_owned()
    };
    let enforced = file_access::control(config, &needs, &folders).map_err(drop_error("files"))?;
    syscalls::allow_ordinary().map_err(drop_error("system calls"))?;
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

/// What it takes to listen where the configuration says: a capability for the ports that the kernel keeps for root's. It is
/// kept, as the control process of an upgrade listens long after it was confined, when the one before has ended.
fn to_listen(config: &Config) -> CapabilitySet {
    let first_free = std::fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start")
        .ok()
        .and_then(|text| text.trim().parse().ok())
        .unwrap_or(1024);
    let telemetry = &config.telemetry;
    let addresses = [Some(telemetry.metrics_listen), telemetry.health_listen];
    let mut ports = addresses.into_iter().flatten().map(|address| address.port());
    if ports.any(|port| (1..first_free).contains(&port)) {
        CapabilitySet::NET_BIND_SERVICE
    } else {
        CapabilitySet::empty()
    }
}

/// Makes the folders, the account's own; what an earlier version kept beside them is handed over.
///
/// Whoever was control before may have been taken over: nothing in these folders is followed, and nothing is changed in
/// them before they are root's again.
fn prepare(config: &Config, account: &Account, folders: &[PathBuf; 2]) -> Result<(), ConfineError> {
    let hand_over = |path: &Path| {
        let path = path.to_owned();
        move |error: io::Error| ConfineError::ChangeOwner {
            user: account.to_string(),
            path,
            reason: error.to_string(),
        }
    };
    for (dir, folder) in [&config.runtime_dir, &config.state_dir].into_iter().zip(folders) {
        make_folder(dir, 0o750)?;
        // What is made in it belongs to the account's group: the dataplane's socket, and what the supervisor counts.
        chown(dir, None, Some(account.gid)).map_err(hand_over(dir))?;
        set_mode(dir, 0o2750).map_err(hand_over(dir))?;
        for name in [DATAPLANE_SOCKET, SUPERVISION_FILE] {
            match lchown(dir.join(name), None, Some(account.gid)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(hand_over(dir)(error)),
                _ => {}
            }
        }
        make_folder(folder, 0o700)?;
        lchown(folder, Some(0), Some(0)).map_err(hand_over(folder))?;
        for name in [EPOCH_KEY_FILE, POLICIES_FILE] {
            let (before, now) = (dir.join(name), folder.join(name));
            if before.exists() && !now.exists() {
                std::fs::rename(&before, &now).map_err(hand_over(&before))?;
            }
            match std::fs::symlink_metadata(&now) {
                Ok(found) if found.is_file() && found.nlink() == 1 => {
                    lchown(&now, Some(account.uid), Some(account.gid)).map_err(hand_over(&now))?;
                }
                _ => {}
            }
        }
        // Of root's group, so that the supervisor finds the socket: it may be root that cannot look everywhere.
        set_mode(folder, 0o710).map_err(hand_over(folder))?;
        lchown(folder, Some(account.uid), Some(0)).map_err(hand_over(folder))?;
    }
    link_socket(config)
}

/// Whoever asks finds the socket of control where it always was.
fn link_socket(config: &Config) -> Result<(), ConfineError> {
    let link = config.control_socket();
    let target = Path::new(CONTROL_FOLDER).join(CONTROL_SOCKET);
    if std::fs::read_link(&link).ok().as_deref() == Some(&target) {
        return Ok(());
    }
    let _ = std::fs::remove_file(&link); // the socket of an earlier version
    std::os::unix::fs::symlink(&target, &link).map_err(|error| ConfineError::ChangeOwner {
        user: "control".to_owned(),
        path: link,
        reason: error.to_string(),
    })
}

/// Makes a folder, unless it is there. Folders above it that are missing can be passed by everybody, and not be listed;
/// so can the one of all installations, which earlier versions closed.
///
/// # Errors
/// It cannot be made.
pub fn make_folder(folder: &Path, mode: u32) -> Result<(), ConfineError> {
    let failed = |error: io::Error| ConfineError::ChangeOwner {
        user: "the process".to_owned(),
        path: folder.to_owned(),
        reason: error.to_string(),
    };
    if let Some(parent) = folder.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        if !parent.exists() {
            make_folder(parent, 0o711)?;
        } else if parent.ends_with("ringwall") {
            let found = std::fs::metadata(parent).map_err(failed)?;
            if found.uid() == 0 && found.mode() & 0o777 == 0o700 {
                set_mode(parent, 0o711).map_err(failed)?;
            }
        }
    }
    match std::fs::DirBuilder::new().mode(mode).create(folder) {
        // Whatever the umask.
        Ok(()) => set_mode(folder, mode).map_err(failed),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && folder.is_dir() => Ok(()),
        Err(error) => Err(failed(error)),
    }
}

fn set_mode(path: &Path, mode: u32) -> io::Result<()> {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))
}

/// Confines the dataplane: after the BPF file system is mounted, before anything else of the machine is touched.
///
/// # Errors
/// The kernel refuses to take a right away.
pub fn dataplane(config: &Config) -> Result<(), ConfineError> {
    drop_other_capabilities_for_children(DATAPLANE_KEEPS)?;
    drop_other_capabilities(DATAPLANE_KEEPS)?;
    let enforced = file_access::dataplane(config).map_err(drop_error("files"))?;
    tracing::info!(landlock = enforced, "the dataplane gave up what it does not need");
    Ok(())
}

/// Gives up all other capabilities for what this process starts. Before it gives up those that this takes.
fn drop_other_capabilities_for_children(keep: CapabilitySet) -> Result<(), ConfineError> {
    rustix::thread::set_no_new_privs(true).map_err(drop_error("new privileges"))?;
    let now = rustix::thread::capabilities(None).map_err(drop_error("capabilities"))?;
    // Without SETPCAP the bounding set stays; nothing can be gained from it any more.
    if now.effective.contains(CapabilitySet::SETPCAP) {
        for capability in CapabilitySet::all().difference(keep).iter() {
            match rustix::thread::remove_capability_from_bounding_set(capability) {
                // A capability that this kernel does not know.
                Ok(()) | Err(rustix::io::Errno::INVAL) => {}
                Err(error) => return Err(drop_error("capabilities")(error)),
            }
        }
    }
    rustix::thread::clear_ambient_capability_set().map_err(drop_error("capabilities"))
}

/// Gives up all other capabilities.
fn drop_other_capabilities(keep: CapabilitySet) -> Result<(), ConfineError> {
    let now = rustix::thread::capabilities(None).map_err(drop_error("capabilities"))?;
    let kept = CapabilitySets {
        effective: now.permitted.intersection(keep),
        permitted: now.permitted.intersection(keep),
        inheritable: CapabilitySet::empty(),
    };
    rustix::thread::set_capabilities(None, kept).map_err(drop_error("capabilities"))
}

/// Lets programs that this process starts have capabilities that it has.
fn inherit(capabilities: CapabilitySet) -> Result<(), ConfineError> {
    let mut sets = rustix::thread::capabilities(None).map_err(drop_error("capabilities"))?;
    sets.inheritable = capabilities;
    rustix::thread::set_capabilities(None, sets).map_err(drop_error("capabilities"))?;
    rustix::thread::configure_capability_in_ambient_set(capabilities, true)
        .map_err(drop_error("capabilities"))
}
