//! Interfaces made ready, programs attached, sockets registered: the ports of a running dataplane.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::Path,
};

use anyhow::{Context, bail};
use ipnet::IpNet;
use ringwall_bpf::{AttachMode, AttachedPort, Counter, Counters, EgressGuard, PortRole, PortSpec};
use ringwall_config::{FailMode, FailsafeEntry, XdpMode};
use ringwall_dataplane::port::{PortId, PortKind};
use serde::{Deserialize, Serialize};

use super::{
    fib::View,
    netlink::{Netlink, NetlinkError},
    plan::{Plan, PlannedPort},
};

/// The gateway that pods have, which every pod port owns.
const GATEWAY_V4: (IpAddr, u8) = (IpAddr::V4(Ipv4Addr::new(169, 254, 1, 1)), 32);
/// The same for IPv6.
const GATEWAY_V6: (IpAddr, u8) = (IpAddr::V6(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1)), 64);
/// Name of the file in the state directory that holds [`Made`].
pub const MADE_FILE: &str = "made.json";

/// What ringwall changed on the machine and `ringwall detach` takes back.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Made {
    /// An end of a veth pair that was made.
    pub links: Vec<String>,
    /// Addresses that were added: interface, address, length of the prefix.
    pub addresses: Vec<(String, IpAddr, u8)>,
    /// MTUs that were changed: interface, earlier MTU.
    pub mtus: Vec<(String, u32)>,
}

impl Made {
    /// What earlier runs made.
    pub fn read(state_dir: &Path) -> Self {
        std::fs::read(state_dir.join(MADE_FILE))
            .ok()
            .and_then(|text| serde_json::from_slice(&text).ok())
            .unwrap_or_default()
    }

    fn write(&self, state_dir: &Path) -> anyhow::Result<()> {
        let path = state_dir.join(MADE_FILE);
        super::write_atomically(&path, &serde_json::to_vec(self)?)
            .with_context(|| format!("cannot write {}", path.display()))
    }

    fn add_link(&mut self, name: &str) {
        if !self.links.iter().any(|link| link == name) {
            self.links.push(name.to_owned());
        }
    }

    fn add_address(&mut self, name: &str, (address, length): (IpAddr, u8)) {
        let entry = (name.to_owned(), address, length);
        if !self.addresses.contains(&entry) {
            self.addresses.push(entry);
        }
    }

    /// Takes it all back; goes on where a part is gone already. The answer is what could not be taken back.
    pub fn take_back(&self, netlink: &mut Netlink, view: &View) -> Vec<NetlinkError> {
        let mut failed = Vec::new();
        let mut note = |result: Result<(), NetlinkError>| {
            if let Err(error) = result {
                let gone = [rustix::io::Errno::NODEV, rustix::io::Errno::ADDRNOTAVAIL];
                if !gone.iter().any(|gone| error.errno() == Some(gone.raw_os_error())) {
                    failed.push(error);
                }
            }
        };
        for (name, address, length) in &self.addresses {
            if let Some((index, _)) = view.link_named(name) {
                note(netlink.delete_address(index, *address, *length));
            }
        }
        for (name, mtu) in &self.mtus {
            if let Some((index, _)) = view.link_named(name) {
                note(netlink.set_link(index, Some(*mtu)));
            }
        }
        for name in &self.links {
            if let Some((index, _)) = view.link_named(name) {
                note(netlink.delete_link(index));
            }
        }
        failed
    }
}

/// Makes the interfaces ready: the host pair, MTUs, up, the pods' gateway addresses. Everything is noted on disk
/// before the next thing is changed.
pub fn make_ready(plan: &Plan, netlink: &mut Netlink) -> anyhow::Result<()> {
    let mut made = Made::read(&plan.state_dir);
    let mut view = View::default();
    view.set_links(&netlink.links()?);
    if let Some(pair) = &plan.host {
        if view.link_named(&pair.inner).is_none() {
            made.add_link(&pair.inner);
            made.write(&plan.state_dir)?;
            netlink.add_veth(&pair.inner, &pair.outer, plan.cpus.len() as u32)?;
            view.set_links(&netlink.links()?);
        }
        let (outer, _) = view
            .link_named(&pair.outer)
            .with_context(|| format!("the host port's other end `{}` is not there", pair.outer))?;
        // Pods' packets come in here, while the route back to them leaves by their own port.
        loosen_reverse_path(&pair.outer)?;
        netlink.set_link(outer, None)?;
        netlink.add_address(outer, GATEWAY_V4.0, GATEWAY_V4.1)?; // the loose check wants an address on the interface
    }
    set_mtus(plan, netlink)?;
    made.mtus = Made::read(&plan.state_dir).mtus;
    for port in &plan.ports {
        let (index, _) = view
            .link_named(&port.name)
            .with_context(|| format!("interface `{}` went away", port.name))?;
        netlink.set_link(index, None)?;
        if port.kind == PortKind::Pod {
            for gateway in [GATEWAY_V4, GATEWAY_V6] {
                match netlink.add_address(index, gateway.0, gateway.1) {
                    Ok(true) => made.add_address(&port.name, gateway),
                    Ok(false) => {}
                    // IPv6 may be off on the machine: then pods have none either.
                    Err(error) if gateway.0.is_ipv6() => {
                        tracing::info!(port = port.name, %error, "no IPv6 gateway")
                    }
                    Err(error) => return Err(error.into()),
                }
            }
        }
    }
    if made != Made::read(&plan.state_dir) {
        made.write(&plan.state_dir)?;
    }
    Ok(())
}

/// Sets the MTUs that are configured, each noted on disk before. Interfaces are not set up by that.
pub fn set_mtus(plan: &Plan, netlink: &mut Netlink) -> anyhow::Result<()> {
    let mut made = Made::read(&plan.state_dir);
    let mut view = View::default();
    view.set_links(&netlink.links()?);
    for port in &plan.ports {
        let (index, link) = view
            .link_named(&port.name)
            .with_context(|| format!("interface `{}` went away", port.name))?;
        let Some(mtu) = port.mtu.map(u32::from).filter(|mtu| *mtu != link.mtu) else {
            continue;
        };
        made.mtus.retain(|(name, _)| *name != port.name);
        made.mtus.push((port.name.clone(), link.mtu));
        made.write(&plan.state_dir)?;
        netlink.set_mtu(index, mtu)?;
    }
    Ok(())
}

/// Where a pod's port can have no program: nothing would judge what the kernel and the pod send each other. With
/// `failMode: closed` the interface is set down. The answer is the error, with what became of the port.
pub fn block(port: &PlannedPort, index: u32, error: anyhow::Error) -> anyhow::Error {
    if port.kind != PortKind::Pod || port.fail_mode != FailMode::Closed {
        return error.context("no program is attached");
    }
    match Netlink::open().and_then(|mut netlink| netlink.set_down(index)) {
        Ok(()) => error.context(
            "no program could be attached, so the interface was set down (failMode: closed); when it is opened again, routes through it may have to be made again",
        ),
        Err(down) => error.context(format!(
            "no program could be attached and the interface could not be set down ({down}): traffic between the pod and the host is NOT JUDGED"
        )),
    }
}

/// Takes back everything that was made, and forgets it. What cannot be taken back is logged.
pub fn take_back(state_dir: &Path) {
    let made = Made::read(state_dir);
    let taken = Netlink::open().and_then(|mut netlink| {
        let mut view = View::default();
        view.set_links(&netlink.links()?);
        Ok(made.take_back(&mut netlink, &view))
    });
    match taken {
        Ok(failed) => {
            for error in failed {
                tracing::warn!(%error, "cannot be taken back");
            }
            let _ = std::fs::remove_file(state_dir.join(MADE_FILE)); // none where nothing was made
        }
        Err(error) => tracing::warn!(%error, "cannot be taken back"),
    }
}

/// Removes directories of pins that hold none, and the ones above that they were alone in.
pub fn remove_empty(pins: &Path) {
    for entry in std::fs::read_dir(pins).into_iter().flatten().flatten() {
        let _ = std::fs::remove_dir(entry.path()); // stays where pins are in it
    }
    for dir in pins.ancestors().take(2) {
        let _ = std::fs::remove_dir(dir); // likewise
    }
}

fn loosen_reverse_path(interface: &str) -> anyhow::Result<()> {
    let path = format!("/proc/sys/net/ipv4/conf/{interface}/rp_filter");
    std::fs::write(&path, "2").with_context(|| format!("cannot write {path}"))
}

/// A port with its programs.
pub struct LivePort {
    /// As planned.
    pub planned: PlannedPort,
    /// The programs; None while the interface is gone.
    pub attached: Option<AttachedPort>,
    /// What they had counted when this process began.
    base: Counters,
    /// Whether its sockets are open and its program leads to them; else the fail mode holds.
    pub open: bool,
    /// Whether the interface is set up.
    pub up: bool,
    /// What is wrong with it, in words.
    pub problem: Option<String>,
}

impl LivePort {
    /// A port that could not be opened.
    pub fn absent(planned: PlannedPort, problem: String) -> Self {
        Self {
            planned,
            attached: None,
            base: Counters::default(),
            open: false,
            up: false,
            problem: Some(problem),
        }
    }

    /// A counter, from the start of this process.
    pub fn count(&self, counters: &[Counter]) -> u64 {
        let Some(now) = self.attached.as_ref().and_then(|port| port.counters().ok()) else {
            return 0;
        };
        counters
            .iter()
            .map(|counter| now.get(*counter).saturating_sub(self.base.get(*counter)))
            .sum()
    }
}

/// Counters of frames that went to the kernel.
pub const TO_KERNEL: [Counter; 5] = [
    Counter::KernelNeighbour,
    Counter::KernelMulticast,
    Counter::KernelLinkLocal,
    Counter::KernelLocal,
    Counter::KernelOther,
];
/// Counters of frames that the fail mode treated.
pub const FAIL_MODE: [Counter; 5] = [
    Counter::FailDropped,
    Counter::FailMalformed,
    Counter::FailRedirected,
    Counter::FailPassed,
    Counter::FailSafe,
];
/// Counters of what the egress guard stopped or redirected.
pub const GUARDED: [Counter; 2] = [Counter::GuardRedirected, Counter::GuardDropped];

/// What a port's programs are told.
pub fn spec(plan: &Plan, port: &PlannedPort, local: &[IpAddr], pods: &[IpNet]) -> anyhow::Result<PortSpec> {
    let role = match port.kind {
        PortKind::Pod => PortRole::Pod,
        PortKind::Uplink => PortRole::Uplink,
        PortKind::Host => PortRole::Host,
        PortKind::Wire { peer } => {
            let Some(peer) = plan.ports.get(usize::from(peer.0)) else {
                bail!("the wire of `{}` has no other end", port.name);
            };
            PortRole::Wire {
                peer: peer.name.clone(),
                judge_all: true,
            }
        }
    };
    let guard = match (&role, &plan.host) {
        (PortRole::Wire { .. } | PortRole::Host, _) => EgressGuard::Off,
        (_, Some(pair)) => EgressGuard::Redirect {
            outer: pair.outer.clone(),
            inner: pair.inner.clone(),
        },
        (_, None) => EgressGuard::Drop,
    };
    Ok(PortSpec {
        name: port.name.clone(),
        pins: plan.pins.clone(),
        role,
        fail_mode: match port.fail_mode {
            FailMode::Closed => ringwall_bpf::FailMode::Closed,
            FailMode::Open => ringwall_bpf::FailMode::Open,
        },
        mode: match port.xdp {
            XdpMode::Auto => AttachMode::Auto,
            XdpMode::Native => AttachMode::Native,
            XdpMode::Generic => AttachMode::Generic,
        },
        guard,
        local_addresses: local.to_vec(),
        pod_cidrs: pods.to_vec(),
        failsafe: plan.failsafe.iter().map(failsafe).collect(),
    })
}

fn failsafe(entry: &FailsafeEntry) -> ringwall_bpf::Failsafe {
    ringwall_bpf::Failsafe {
        from: entry.from,
        to: entry.to,
        protocol: entry.protocol,
        ports: entry.ports,
    }
}

/// Attaches one port.
pub fn attach(plan: &Plan, port: &PlannedPort, local: &[IpAddr], pods: &[IpNet]) -> anyhow::Result<LivePort> {
    let attached = ringwall_bpf::attach(&spec(plan, port, local, pods)?)?;
    if let Some(reason) = attached.fallback() {
        tracing::warn!(port = port.name, reason, "generic XDP: slower");
    }
    Ok(LivePort {
        planned: port.clone(),
        base: attached.counters()?,
        attached: Some(attached),
        open: false,
        up: true,
        problem: None,
    })
}

/// Attaches every port. Where one fails, those that were not attached before this call are taken off again.
pub fn attach_all(plan: &Plan, local: &[IpAddr], pods: &[IpNet]) -> anyhow::Result<Vec<LivePort>> {
    let mut live: Vec<LivePort> = Vec::new();
    for port in &plan.ports {
        match attach(plan, port, local, pods) {
            Ok(port) => live.push(port),
            Err(error) => {
                roll_back(live);
                return Err(error);
            }
        }
    }
    Ok(live)
}

/// Takes off what this process attached and no earlier one had.
pub fn roll_back(live: Vec<LivePort>) {
    for port in live.into_iter().filter_map(|port| port.attached) {
        if !port.inherited()
            && let Err(error) = port.detach()
        {
            tracing::warn!(%error, "cannot be taken off");
        }
    }
}

/// The live port of an id.
pub fn by_id(live: &mut [LivePort], id: PortId) -> Option<&mut LivePort> {
    live.iter_mut().find(|port| port.planned.id == id)
}
