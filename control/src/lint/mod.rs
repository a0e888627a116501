//! Lints: what a policy does that its author hardly wanted, each shown by a packet.

mod finding;

pub use finding::{Finding, Place, Severity, Witness};
