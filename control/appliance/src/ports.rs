//! Interfaces made ready, programs attached, sockets registered: the ports of a running dataplane.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::Path,
    time::Instant,
};

use anyhow::{Context, bail};
use ipnet::IpNet;
use ringwall_bpf::{AttachMode, AttachedPort, Counter, Counters, EgressGuard, PortRole, PortSpec};
use ringwall_config::{FailMode, FailsafeEntry, XdpMode};
use ringwall_dataplane::port::{PortId, PortKind};
use ringwall_xsk::{MAX_SINGLE_MTU, device::Device, preflight::Repair};

use super::{
    changes::{Change, Changes, Interface, read_setting, write_setting},
    kernel_state::KernelState,
    netlink::{Netlink, NetlinkError},
    plan::{Findings, Plan, PlannedPort},
};

/// The gateway that pods have. It is an address of the machine, on an interface of ringwall's own or the loopback, never on
/// a pod's port: when the last IPv4 address of an interface goes, the kernel takes the interface's routes along, which are
/// not ours. The kernel answers ARP for it on every interface.
pub const GATEWAY_V4: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);
/// The same for IPv6, on every pod port: neighbour discovery is about addresses of the link.
const GATEWAY_V6: (IpAddr, u8) = (IpAddr::V6(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1)), 64);

/// Puts the interfaces in order as far as that can be done by settings and switches. The answer is worth a remark, and
/// names interfaces that cannot be opened.
pub fn repair_interfaces(plan: &Plan, changes: &mut Changes) -> anyhow::Result<Findings> {
    let mut found = plan.findings()?;
    if found.repairs.is_empty() {
        return Ok(found);
    }
    let view = links()?;
    let mut wanted = Vec::new();
    for (name, repair, text) in std::mem::take(&mut found.repairs) {
        let interface = of(&view, &name)?;
        wanted.push((
            match repair {
                Repair::Setting {
                    path,
                    of_interface,
                    before,
                    after,
                } => Change::Setting {
                    path,
                    interface: of_interface.then_some(interface),
                    before,
                    after,
                },
                Repair::VlanOffload { before } => Change::VlanOffload { interface, before },
            },
            text,
        ));
    }
    changes.record(wanted.iter().map(|(change, _)| change.clone()))?;
    for (change, text) in wanted {
        match &change {
            Change::VlanOffload { interface, .. } => Device::lookup(&interface.name)
                .and_then(|device| device.disable_vlan_offload())
                .with_context(|| format!("interface {}: {text}", interface.name))?,
            Change::Setting { path, after, .. } => write_setting(path, after).context(text)?,
            _ => {}
        }
    }
    Ok(found)
}

fn links() -> Result<KernelState, NetlinkError> {
    let mut view = KernelState::default();
    view.set_links(&Netlink::open()?.links()?);
    Ok(view)
}

fn of(view: &KernelState, name: &str) -> anyhow::Result<Interface> {
    let (index, _) = view
        .link_named(name)
        .with_context(|| format!("interface `{name}` went away"))?;
    Ok(Interface {
        name: name.to_owned(),
        index,
    })
}

/// Makes the interfaces ready: the host pair, MTUs, queues, up, the pods' gateway addresses.
pub fn prepare_interfaces(plan: &Plan, netlink: &mut Netlink, changes: &mut Changes) -> anyhow::Result<()> {
    let mut view = links()?;
    let has_pods = plan.ports.iter().any(|port| port.kind == PortKind::Pod) || plan.takes_pods();
    let mut gateway_on = "lo";
    if let Some(pair) = &plan.host {
        if view.link_named(&pair.inner).is_none() {
            changes.record([Change::Pair {
                inner: pair.inner.clone(),
                outer: pair.outer.clone(),
            }])?;
            netlink.add_veth(&pair.inner, &pair.outer, plan.cpus.len() as u32)?;
            view.set_links(&netlink.links()?);
        }
        let outer = of(&view, &pair.outer)
            .with_context(|| format!("the host port's other end `{}` is not there", pair.outer))?;
        // Pods' packets come in here, while the route back to them leaves by their own port.
        let path = format!("net/ipv4/conf/{}/rp_filter", pair.outer);
        if let Some(before) = read_setting(&path).filter(|value| value != "2") {
            changes.record([Change::Setting {
                path: path.clone(),
                interface: Some(outer.clone()),
                before,
                after: "2".to_owned(),
            }])?;
            write_setting(&path, "2")?;
        }
        set_up(&outer, &view, netlink, changes)?;
        gateway_on = &pair.outer; // whose loose check wants an address, too
    }
    if plan.host.is_some() || has_pods {
        let interface = of(&view, gateway_on)?;
        add_address(interface, (GATEWAY_V4.into(), 32), netlink, changes)?;
    }
    set_mtus(plan, netlink, changes)?;
    for port in plan.interfaces() {
        let interface = of(&view, &port.name)?;
        set_queues(port, plan.cpus.len(), &interface, changes)?;
        if let PortKind::Wire { .. } = port.kind {
            set_promiscuous(&interface, &view, netlink, changes)?;
        }
        if port.kind != PortKind::Pod {
            set_up(&interface, &view, netlink, changes)?;
            continue;
        }
        // IPv6 may be off on the machine: then pods have none either.
        if let Err(error) = add_address(interface, GATEWAY_V6, netlink, changes) {
            tracing::info!(port = port.name, %error, "no IPv6 gateway");
        }
    }
    Ok(())
}

fn add_address(
    interface: Interface,
    (address, length): (IpAddr, u8),
    netlink: &mut Netlink,
    changes: &mut Changes,
) -> anyhow::Result<()> {
    let there = netlink
        .addresses()?
        .iter()
        .filter_map(super::kernel_state::address)
        .any(|found| found == (interface.index, address, length));
    if there {
        return Ok(());
    }
    let index = interface.index;
    changes.record([Change::Address {
        interface,
        address,
        length,
    }])?;
    netlink.add_address(index, address, length)?;
    Ok(())
}

/// Sets an interface up that is down. A pod's is left to who makes the pod: it may be down because it is not ready yet.
fn set_up(
    interface: &Interface,
    view: &KernelState,
    netlink: &mut Netlink,
    changes: &mut Changes,
) -> anyhow::Result<()> {
    if view.links.get(&interface.index).is_some_and(|link| !link.up) {
        changes.record([Change::Up {
            interface: interface.clone(),
            after: true,
        }])?;
        netlink.set_link(interface.index, None)?;
    }
    Ok(())
}

/// Makes the end of a wire take in what is for the stations behind the other end: a NIC drops frames for addresses that are not
/// its own before any program sees them. Stays while no process runs, since the fail mode forwards, too.
fn set_promiscuous(
    interface: &Interface,
    view: &KernelState,
    netlink: &mut Netlink,
    changes: &mut Changes,
) -> anyhow::Result<()> {
    let link = view.links.get(&interface.index);
    if link.is_some_and(|link| !link.promiscuous) {
        changes.record([Change::Promiscuous {
            interface: interface.clone(),
        }])?;
        netlink.set_promiscuous(interface.index, true)?;
    }
    Ok(())
}

/// Gives an interface the queues that its sockets will want.
fn set_queues(
    port: &PlannedPort,
    workers: usize,
    interface: &Interface,
    changes: &mut Changes,
) -> anyhow::Result<()> {
    let device = Device::lookup(&port.name)?;
    let wanted = ringwall_xsk::queues_for(&device, port.queues_asked(), workers);
    if wanted == device.queues {
        return Ok(());
    }
    let (before, after) = (device.channels()?, device.channels_for(wanted)?);
    changes.record([Change::Queues {
        interface: interface.clone(),
        before,
        after,
    }])?;
    match device.set_channels(after) {
        // Asked for by name: an error. Else fewer queues do, too.
        Err(error) if port.queues_asked().is_some() => Err(error.into()),
        Err(error) => {
            tracing::debug!(port = port.name, %error, "queues");
            changes
                .forget(|change| matches!(change, Change::Queues { interface: of, .. } if of == interface));
            Ok(())
        }
        Ok(()) => Ok(()),
    }
}

/// Sets the MTUs that are configured. Interfaces are not set up by that.
pub fn set_mtus(plan: &Plan, netlink: &mut Netlink, changes: &mut Changes) -> anyhow::Result<()> {
    let mut view = KernelState::default();
    view.set_links(&netlink.links()?);
    for port in plan.interfaces() {
        let (index, link) = view
            .link_named(&port.name)
            .with_context(|| format!("interface `{}` went away", port.name))?;
        let Some(mtu) = port.mtu.map(u32::from).filter(|mtu| *mtu != link.mtu) else {
            continue;
        };
        changes.record([Change::Mtu {
            interface: Interface {
                name: port.name.clone(),
                index,
            },
            before: link.mtu,
            after: mtu,
        }])?;
        netlink.set_mtu(index, mtu)?;
    }
    Ok(())
}

/// Where a pod's port can have no program: nothing would judge what the kernel and the pod send each other. With
/// `failMode: closed` the interface is set down. The answer is the error, with what became of the port.
pub fn block(port: &PlannedPort, index: u32, error: anyhow::Error, changes: &mut Changes) -> anyhow::Error {
    if port.kind != PortKind::Pod || port.fail_mode != FailMode::Closed {
        return error.context("no program is attached");
    }
    let mut down = || -> anyhow::Result<()> {
        let mut netlink = Netlink::open()?;
        let mut view = KernelState::default();
        view.set_links(&netlink.links()?);
        if view.links.get(&index).is_some_and(|link| link.up) {
            changes.record([set_down_by_us(port, index)])?;
            netlink.set_down(index)?;
        }
        Ok(())
    };
    match down() {
        Ok(()) => error.context(
            "no program could be attached, so the interface was set down (failMode: closed); when it is opened again, routes through it may have to be made again",
        ),
        Err(down) => error.context(format!(
            "no program could be attached and the interface could not be set down ({down}): traffic between the pod and the host is NOT JUDGED"
        )),
    }
}

fn set_down_by_us(port: &PlannedPort, index: u32) -> Change {
    Change::Up {
        interface: Interface {
            name: port.name.clone(),
            index,
        },
        after: false,
    }
}

/// Sets an interface up again that [`block`] has set down.
pub fn unblock(port: &PlannedPort, index: u32, changes: &mut Changes) -> anyhow::Result<()> {
    let ours = set_down_by_us(port, index);
    if changes.has(&ours) {
        Netlink::open()?.set_link(index, None)?;
        changes.forget(|change| *change == ours);
    }
    Ok(())
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
    /// Since when its interface is gone.
    pub gone: Option<Instant>,
    /// What its number had counted before it was this port's.
    pub before: Traffic,
}

/// Frames and bytes of a port, as its workers and sockets count them by number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Frames received.
    pub rx_frames: u64,
    /// Bytes received.
    pub rx_bytes: u64,
    /// Frames sent, less those that were lost after all.
    pub tx_frames: u64,
    /// Bytes sent.
    pub tx_bytes: u64,
    /// Frames that the kernel lost before the worker.
    pub rx_lost: u64,
}

impl Traffic {
    /// What came since.
    #[must_use]
    pub fn since(self, before: Self) -> Self {
        Self {
            rx_frames: self.rx_frames.saturating_sub(before.rx_frames),
            rx_bytes: self.rx_bytes.saturating_sub(before.rx_bytes),
            tx_frames: self.tx_frames.saturating_sub(before.tx_frames),
            tx_bytes: self.tx_bytes.saturating_sub(before.tx_bytes),
            rx_lost: self.rx_lost.saturating_sub(before.rx_lost),
        }
    }
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
            gone: None,
            before: Traffic::default(),
        }
    }

    /// Whether its programs run generically on a veth: its other end then sends segments larger than any frame.
    pub fn would_lose_segments(&self) -> bool {
        let generic = self
            .attached
            .as_ref()
            .is_some_and(|port| port.mode() == ringwall_bpf::XdpMode::Generic);
        generic && Device::lookup(&self.planned.name).is_ok_and(|device| device.driver == "veth")
    }

    /// Whether a pattern found it and its interface is gone: that is how pods end, and wrong in no way.
    pub fn has_ended(&self) -> bool {
        self.planned.matched && self.gone.is_some()
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
/// Counters of what the egress guard stopped or redirected, and of what was kept from the kernel.
pub const GUARDED: [Counter; 3] = [
    Counter::GuardRedirected,
    Counter::GuardDropped,
    Counter::KernelRefused,
];

/// What a port's programs are told.
pub fn spec(plan: &Plan, port: &PlannedPort, local: &[IpAddr], pods: &[IpNet]) -> anyhow::Result<PortSpec> {
    let role = match port.kind {
        PortKind::Pod => PortRole::Pod,
        PortKind::Uplink => PortRole::Uplink,
        PortKind::Host => PortRole::Host,
        PortKind::Ask => bail!("`{}` is no interface of this namespace", port.name),
        PortKind::Wire { peer } => {
            let Some(peer) = plan.ports.iter().find(|other| other.id == peer) else {
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
        tunnel_ports: plan.tunnel_ports.clone(),
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
    let mtu = Device::lookup(&port.name)?.mtu;
    if attached.mode() == ringwall_bpf::XdpMode::Generic && mtu > MAX_SINGLE_MTU {
        let name = &port.name;
        let why = attached
            .fallback()
            .unwrap_or("generic XDP is configured")
            .to_owned();
        if !attached.inherited() {
            attached.detach()?;
        }
        anyhow::bail!(
            "interface `{name}` has MTU {mtu}, and jumbo frames need native XDP, which it does not have ({why}): use another device, or lower the MTU (`ip link set dev {name} mtu {MAX_SINGLE_MTU}`)"
        );
    }
    Ok(LivePort {
        planned: port.clone(),
        base: attached.counters()?,
        attached: Some(attached),
        open: false,
        up: true,
        problem: None,
        gone: None,
        before: Traffic::default(),
    })
}

/// Attaches every port. Where one fails, those that were not attached before this call are taken off again; but one that a
/// pattern found is blocked, and the others go on.
pub fn attach_all(
    plan: &Plan,
    local: &[IpAddr],
    pods: &[IpNet],
    changes: &mut Changes,
) -> anyhow::Result<Vec<LivePort>> {
    let mut live: Vec<LivePort> = Vec::new();
    for port in plan.interfaces() {
        match attach(plan, port, local, pods) {
            Ok(attached) => live.push(attached),
            Err(error) if port.matched => {
                let index = links()?.link_named(&port.name).map_or(0, |(index, _)| index);
                let problem = ringwall_process::whole_message(&block(port, index, error, changes));
                tracing::error!(port = port.name, "cannot be opened: {problem}");
                live.push(LivePort::absent(port.clone(), problem));
            }
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
