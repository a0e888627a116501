//! The kernel's datapath guarded: `datapath: kernel`.

pub mod ask_pair;
pub mod backstop;
pub(crate) mod cni;
pub mod containers;
mod guard;
pub mod inventory;
pub mod preflight;

pub use guard::NodeGuard;
