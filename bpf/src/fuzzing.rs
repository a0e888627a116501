//! Packets through the programs, in the kernel (PROG_TEST_RUN), for the fuzz targets. Needs root.

use std::{
    net::IpAddr,
    os::fd::{AsFd, OwnedFd},
    path::PathBuf,
};

use ipnet::IpNet;

use crate::{
    BpfError, Counter, Counters, kernel,
    maps::{FLAG_GUARD_REDIRECT, FLAG_JUDGE_ALL, PortConfig, PortSockets},
    port::{AttachMode, EgressGuard, FailMode, Loaded, PortRole, PortSpec, load},
};

/// What a port is to the programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// One end of a wire that gives what touches pods to its sockets.
    Wire = 0,
    /// A pod's.
    Pod = 1,
    /// To a network.
    Uplink = 2,
    /// To the host's kernel.
    Host = 3,
}

/// A program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Program {
    /// Of what a port receives.
    Port = 0,
    /// Of what the kernel sends.
    Guard = 1,
}

/// What a program said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// Its return value: `XDP_*` or `TC_ACT_*`.
    pub verdict: u32,
    /// The counter that moved, if exactly one moved by one.
    pub counter: Option<Counter>,
    /// The packet afterwards.
    pub packet: Vec<u8>,
}

/// The programs of one port, loaded and attached to nothing. Fail mode closed, no failsafe rules.
#[derive(Debug)]
pub struct LoadedPrograms {
    loaded: Loaded,
    _sockets: PortSockets,
    _socket: Option<OwnedFd>,
    seen: Counters,
}

impl LoadedPrograms {
    /// Loads the programs. `socket`: whether there is one that judges. `judge_all`: of a wire.
    ///
    /// # Errors
    /// The kernel refuses; without root it does.
    pub fn new(
        role: Role,
        socket: bool,
        judge_all: bool,
        pods: &[IpNet],
        local: &[IpAddr],
    ) -> Result<Self, BpfError> {
        let spec = PortSpec {
            name: "fuzz".to_owned(),
            pins: PathBuf::new(),
            role: PortRole::Pod,
            fail_mode: FailMode::Closed,
            mode: AttachMode::Auto,
            guard: EgressGuard::Off,
            local_addresses: Vec::new(),
            pod_cidrs: Vec::new(),
            failsafe: Vec::new(),
            tunnel_ports: Vec::new(),
        };
        crate::log::quiet();
        let loaded = load(&spec.name)?;
        loaded.maps.set_pod_cidrs(pods)?;
        loaded.maps.set_local_addresses(local)?;
        loaded.maps.set_peer(1, 1)?;
        let sockets = PortSockets::new()?;
        loaded.maps.set_sockets(1, &sockets)?;
        let judge_all = if judge_all { FLAG_JUDGE_ALL } else { 0 };
        loaded.maps.set_config(PortConfig {
            role: role as u32,
            flags: FLAG_GUARD_REDIRECT | judge_all,
            ifindex: 1,
            peer_ifindex: 1,
            guard_ifindex: 1,
            guard_mac: [2, 0, 0, 0, 0, 99],
            ..PortConfig::default()
        })?;
        let socket = if socket {
            let socket = kernel::unbound_xsk()
                .map_err(|source| BpfError::system("make an AF_XDP socket".to_owned(), source))?;
            sockets.set(0, socket.as_fd())?;
            Some(socket)
        } else {
            None
        };
        Ok(Self {
            loaded,
            _sockets: sockets,
            _socket: socket,
            seen: Counters::default(),
        })
    }

    /// Runs a program on a frame. The kernel takes none that is shorter than an Ethernet header, or longer than a page.
    ///
    /// # Errors
    /// The kernel refuses the frame.
    pub fn run(&mut self, program: Program, frame: &[u8]) -> Result<Outcome, BpfError> {
        let (verdict, packet) = kernel::test_run(self.loaded.programs[program as usize].as_fd(), frame)
            .map_err(|source| BpfError::system("run a program on a frame".to_owned(), source))?;
        let now = self.loaded.maps.counters(1)?;
        let mut moved = now.iter().filter(|(name, value)| *value != self.seen.get(*name));
        let counter = match (moved.next(), moved.next()) {
            (Some((name, value)), None) if value == self.seen.get(name) + 1 => Some(name),
            _ => None,
        };
        self.seen = now;
        Ok(Outcome {
            verdict,
            counter,
            packet,
        })
    }
}
