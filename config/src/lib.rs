//! Typed configuration of ringwall.
//!
//! [`Config::load`] reads a YAML file into [`raw::Raw`], which is nothing but what the file says, and
//! [`raw::Raw::validate`] turns that into [`Config`], which cannot hold anything the appliance would not do. A key that
//! this version does not act on is an error ([`support`]), never silence.
#![forbid(unsafe_code)]

mod config;
mod cpus;
mod failsafe;
mod outline;
mod places;
mod problem;
mod quantity;
/// What the file says, word for word.
pub mod raw;
/// Keys and values that the format has and this version does not act on.
pub mod support;
mod validate;

pub use config::{
    AntiSpoofing, ClusterNetworks, Config, Conntrack, Cpus, DenialAnswer, FailMode, IdlePolicy, Interface,
    InterfaceKind, InterfaceSelect, Kind, L2Action, L2Protocol, Midstream, Mode, NetworkPlacement,
    OnDeadline, OverlayNetwork, PodStart, ReversePath, Role, RxQueues, Side, Source, SourceKind, TcpTracking,
    Telemetry, Timeouts, Tunnels, UdpTunnel, Umem, UnknownEndpoints, User, Verify, VlanTags, Wire, Workers,
    XdpMode, ZeroCopy,
};
pub use cpus::{CpuId, CpuListError, parse_cpu_list};
pub use failsafe::FailsafeEntry;
pub use problem::{ConfigError, Problem};
pub use quantity::{Bytes, Period};
