//! The control plane of ringwall: from policy objects to a published snapshot.
#![forbid(unsafe_code)]

pub mod api;
pub mod check;
pub mod cli;
pub mod cluster;
pub mod compile;
pub mod confine;
pub mod controller;
pub mod coverage;
#[cfg(feature = "afxdp")]
pub mod demo;
pub mod essential;
pub mod explain;
pub mod intents;
pub mod lint;
mod log;
pub mod metrics;
pub mod model;
pub mod protocol;
pub mod publish;
pub mod reference;
pub mod refine;
#[cfg(feature = "afxdp")]
pub mod run;
pub mod source;
