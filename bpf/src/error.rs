//! What can go wrong while programs are loaded and attached.

use std::{io, path::PathBuf};

/// An error of the loader. Each message says what failed, on what, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum BpfError {
    /// The interface is not in this network namespace.
    #[error("interface `{0}` does not exist in this network namespace")]
    NoInterface(String),
    /// Another XDP program is on the interface.
    #[error(
        "interface `{interface}` already carries the XDP program `{name}` (id {id}): stop the software that owns it (`bpftool net` and `bpftool link` tell more; a `ringwall_port` is of another ringwall installation, which `ringwall detach` removes)"
    )]
    OtherProgram {
        /// The interface.
        interface: String,
        /// Kernel's id of the program.
        id: u32,
        /// Its name.
        name: String,
    },
    /// Native XDP was asked for and the driver refused.
    #[error("interface `{interface}` does not take a native XDP program: {source}. {hint}")]
    NoNative {
        /// The interface.
        interface: String,
        /// The kernel's answer.
        source: io::Error,
        /// What usually helps.
        hint: String,
    },
    /// The caller lacks a capability.
    #[error("{action}: permission denied: the process needs {capability}")]
    Permission {
        /// What was tried.
        action: String,
        /// The missing capability or capabilities.
        capability: String,
    },
    /// The kernel cannot do what is needed.
    #[error(
        "{action}: this kernel does not support it ({source}); ringwall needs Linux 5.15 or newer with CONFIG_BPF_SYSCALL, CONFIG_XDP_SOCKETS and CONFIG_NET_CLS_BPF"
    )]
    Unsupported {
        /// What was tried.
        action: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// A filter that is not ringwall's, by its program, where ringwall's would be.
    #[error(
        "{device} has a tc {side} filter with priority 1 and handle {handle:#x} that is not ringwall's: remove it, or give it another handle"
    )]
    ForeignFilter {
        /// Whose filter it is.
        device: String,
        /// Ingress or egress.
        side: &'static str,
        /// Which of the filters of its priority.
        handle: u32,
    },
    /// A filter of ringwall's could not come before the others.
    #[error("{0}")]
    NotFirst(String),
    /// No BPF file system where the pins should go.
    #[error("no BPF file system at {path} and it could not be mounted ({source}): run `mount -t bpf bpf {path}`", path = .path.display())]
    NoBpffs {
        /// Where it was looked for.
        path: PathBuf,
        /// Why mounting failed.
        source: io::Error,
    },
    /// A system call or libbpf failed in another way.
    #[error("{action}: {source}")]
    System {
        /// What was tried, on what.
        action: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// A failsafe entry that cannot be meant.
    #[error("failsafe entry {entry}: {problem}")]
    Failsafe {
        /// The entry.
        entry: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// A value does not fit the program's maps.
    #[error("{what}: {got} given, at most {max} fit")]
    TooMany {
        /// What was given.
        what: &'static str,
        /// How many.
        got: usize,
        /// How many fit.
        max: usize,
    },
}

/// What loading and attaching takes, by bit number (`linux/capability.h`).
const CAPABILITIES: [(u32, &str); 2] = [(12, "CAP_NET_ADMIN"), (39, "CAP_BPF")];

/// Those of the needed capabilities that the calling thread lacks; all where it has them and was refused anyhow.
fn missing_capabilities() -> String {
    let status = std::fs::read_to_string("/proc/thread-self/status").unwrap_or_default();
    let effective = status
        .lines()
        .find_map(|line| u64::from_str_radix(line.strip_prefix("CapEff:")?.trim(), 16).ok())
        .unwrap_or(0);
    let all = CAPABILITIES.iter().map(|&(_, name)| name);
    let missing: Vec<&str> = CAPABILITIES
        .iter()
        .filter(|(bit, _)| effective & (1 << bit) == 0)
        .map(|&(_, name)| name)
        .collect();
    match missing.is_empty() {
        true => format!(
            "{} (it has them: look for a security module that forbids it)",
            all.collect::<Vec<_>>().join(" and ")
        ),
        false => missing.join(" and "),
    }
}

impl BpfError {
    /// Wraps the answer of a system call, naming what is missing where that can be told.
    pub(crate) fn system(action: impl Into<String>, source: io::Error) -> Self {
        let action = action.into();
        match source.raw_os_error() {
            Some(libc::EPERM | libc::EACCES) => Self::Permission {
                action,
                capability: missing_capabilities(),
            },
            Some(libc::ENOSYS) => Self::Unsupported { action, source },
            _ => Self::System { action, source },
        }
    }
}

/// Wraps an error of libbpf.
pub(crate) fn wrap(action: &str, error: libbpf_rs::Error) -> BpfError {
    use libbpf_rs::ErrorKind;
    match error.kind() {
        ErrorKind::PermissionDenied => BpfError::Permission {
            action: action.to_owned(),
            capability: missing_capabilities(),
        },
        _ => BpfError::System {
            action: action.to_owned(),
            source: io::Error::other(format!("{error:#}")),
        },
    }
}
