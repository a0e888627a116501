//! What must hold before anything is opened.

use crate::XskError;

/// Something that keeps ringwall from working or makes it work badly.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Whether it refuses to start.
    pub fatal: bool,
    /// The interface, where it concerns one.
    pub interface: Option<String>,
    /// What is wrong.
    pub problem: String,
    /// What to do about it.
    pub remedy: String,
}

/// What to look at.
#[derive(Clone, Debug)]
pub struct Request<'a> {
    /// Interfaces of the ports.
    pub interfaces: &'a [String],
    /// The kernel must not forward by itself (routed role).
    pub routed: bool,
    /// How many workers will share the ports.
    pub workers: usize,
    /// Turn off what can be turned off: VLAN offloads, forwarding, accept_ra and redirects of the interfaces.
    pub repair: bool,
}

/// Looks at kernel, capabilities, limits and interfaces.
///
/// # Errors
/// The kernel does not answer; what it answers is in the findings.
pub fn preflight(request: &Request<'_>) -> Result<Vec<Finding>, XskError> {
    let _ = request;
    Err(XskError::NoAfXdp)
}
