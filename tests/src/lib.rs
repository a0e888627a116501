//! Pods as network namespaces, with real servers and clients: what the end-to-end tests and the demo run on.
//!
//! Nothing here is left behind, however the process ends: namespaces have no names and live as long as this process
//! holds them, BPF pins go to a file system that is mounted for the gateway's processes alone, those processes are
//! killed by the kernel when their parent ends, and the scratch folder is removed by a process that waits for that.
#![forbid(unsafe_code)]

/// An API server that misbehaves on request.
pub mod api_server;
/// The real `ringwall run`, started inside the gateway.
pub mod appliance;
/// Kubernetes objects for what the bed holds.
pub mod manifests;
/// A network namespace.
pub mod netns;
/// Whether this machine and user can run the bed at all.
pub mod preflight;
/// Clients.
pub mod probe;
/// A folder that goes when the process does.
pub mod scratch;
/// Servers.
pub mod serve;
/// Clusters of any size, by seed, and what happens in them.
pub mod synthetic;
/// Frames as they are.
pub mod tap;
/// Pods, routers and the gateway between them.
pub mod topology;
/// The traps of `docs/semantics.md`, for the tests that ask them at every level.
pub mod traps;
/// A cluster on a bed.
pub mod world;

/// Something about the bed did not work: what, and the system's word on it.
#[derive(Debug, thiserror::Error)]
#[error("{what}: {cause}")]
pub struct BedError {
    what: String,
    /// Not the error's `source`: the message has it already.
    cause: std::io::Error,
}

impl BedError {
    /// An error with its circumstances.
    pub fn new(what: impl Into<String>, cause: impl Into<std::io::Error>) -> Self {
        Self {
            what: what.into(),
            cause: cause.into(),
        }
    }

    /// An error that the system had no part in.
    pub fn other(what: impl Into<String>, why: impl Into<String>) -> Self {
        Self::new(what, std::io::Error::other(why.into()))
    }
}

/// Result of what may not work.
pub type Result<T, E = BedError> = std::result::Result<T, E>;
