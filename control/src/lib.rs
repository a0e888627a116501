//! The control plane of ringwall: from policy objects to a published snapshot.
#![forbid(unsafe_code)]

pub mod cluster;
pub mod compile;
pub mod model;
pub mod protocol;
#[cfg(feature = "afxdp")]
pub mod run;
