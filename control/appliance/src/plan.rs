//! From the configuration and the machine to what will run: ports, workers, places. Changes nothing.

use std::{collections::BTreeMap, path::PathBuf};

use ipnet::IpNet;
use ringwall_config::{
    AntiSpoofing, Config, FailMode, FailsafeEntry, IdlePolicy, Interface, InterfaceKind, InterfaceSelect,
    L2Action, L2Protocol, Mode, Role, RxQueues, VlanTags, Wire, XdpMode, ZeroCopy,
};
use ringwall_dataplane::{
    forward::NetworkPlace,
    port::{PortId, PortKind, ReversePath, Side},
    wire::subject::{NotSubject, NotSubjectTable},
};
use ringwall_process::cpus::{self, CpuError};
use ringwall_xsk::{
    MAX_SINGLE_MTU,
    device::Device,
    preflight::{PortInterface, Repair},
};

use super::{
    kernel_state::{KernelState, Link},
    netlink::{Netlink, NetlinkError},
    node::{ask_pair, preflight},
    port_numbers::PortNumbers,
};

/// Why the configuration cannot run on this machine.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// The kernel could not be asked.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// Whether a node can be guarded cannot be told.
    #[error(transparent)]
    Preflight(#[from] preflight::PreflightError),
    /// The socket layer says no.
    #[error(transparent)]
    Sockets(#[from] ringwall_xsk::XskError),
    /// An interface of the configuration is not there.
    #[error("interface `{name}` does not exist in this network namespace; there are: {present}")]
    NoInterface {
        /// What the configuration says.
        name: String,
        /// What there is.
        present: String,
    },
    /// The management interface would be taken over.
    #[error("interface `{0}` is the management interface and also a port: take it out of `interfaces`")]
    Management(String),
    /// Two entries of the configuration mean one interface.
    #[error("interface `{0}` is named twice in `interfaces`")]
    Twice(String),
    /// The host port's names are taken.
    #[error(
        "interface `{name}` is there already and is not ringwall's: the host port is a veth pair `{inner}` (judged) and `{outer}` (kernel) made by ringwall; rename or remove `{name}`, or give the configuration another `name`"
    )]
    HostTaken {
        /// The interface in the way.
        name: String,
        /// The judged end.
        inner: String,
        /// The kernel's end.
        outer: String,
    },
    /// There are no CPUs for the workers.
    #[error(transparent)]
    Cpus(#[from] CpuError),
    /// Things that have to be in order first.
    #[error("{0}")]
    NotReady(String),
    /// Too many ports for their numbers.
    #[error("{0} interfaces match; at most {max} can be ports", max = u16::MAX)]
    TooManyPorts(usize),
}

/// A port to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlannedPort {
    /// Index in the table of ports.
    pub id: PortId,
    /// Interface.
    pub name: String,
    /// What it leads to.
    pub kind: PortKind,
    /// Whose sources it accepts.
    pub side: Side,
    /// What else is asked of them.
    pub sources: SourceChecks,
    /// Which frames without a policy cross the wire that it is an end of.
    pub not_subject: NotSubjectTable,
    /// Native or generic.
    pub xdp: XdpMode,
    /// Copy or not.
    pub zero_copy: ZeroCopy,
    /// Queues to use.
    pub queues: RxQueues,
    /// MTU to set.
    pub mtu: Option<u16>,
    /// What holds while no worker listens.
    pub fail_mode: FailMode,
    /// Found by a pattern, not by its name: what is wrong with it concerns it alone, and keeps nothing else from running.
    pub matched: bool,
}

impl PlannedPort {
    /// The number of queues that the configuration names.
    pub fn queues_asked(&self) -> Option<u16> {
        match self.queues {
            RxQueues::Count(count) => Some(count.get()),
            RxQueues::All => None,
        }
    }
}

/// What is asked of sources besides their side, on uplinks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SourceChecks {
    /// Where the route back has to lead.
    pub reverse_path: ReversePath,
    /// Whether a pod's packets must bear the Ethernet address of the next hop to that pod.
    pub binds: bool,
}

impl SourceChecks {
    fn of(config: &Config) -> Self {
        Self {
            reverse_path: match config.reverse_path {
                ringwall_config::ReversePath::Strict => ReversePath::Strict,
                ringwall_config::ReversePath::Loose => ReversePath::Loose,
                ringwall_config::ReversePath::Off => ReversePath::Off,
            },
            binds: config.anti_spoofing == AntiSpoofing::Strict,
        }
    }
}

/// Where a network is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlannedPlace {
    /// The network.
    pub network: IpNet,
    /// The ports that lead to it, and the VLAN tags of its frames.
    pub place: NetworkPlace,
}

impl PlannedPlace {
    fn of(place: &ringwall_config::NetworkPlacement, id_of: impl Fn(&str) -> Option<PortId>) -> Self {
        let tag = |vlan: u16| 0x1000 | u32::from(vlan);
        let ports = place.interfaces.as_ref();
        Self {
            network: place.network,
            place: NetworkPlace {
                // One that is not there leads nowhere.
                ports: ports.map(|names| names.iter().filter_map(|name| id_of(name)).collect()),
                vlan: place.vlan.map(|vlan| match vlan {
                    VlanTags::Untagged => 0,
                    VlanTags::Single(vlan) => tag(vlan),
                    VlanTags::Double { outer, inner } => tag(outer) << 16 | tag(inner),
                }),
            },
        }
    }
}

/// The veth pair that leads to the kernel of this host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostPair {
    /// The judged end, a port.
    pub inner: String,
    /// The kernel's end: the name of the configuration.
    pub outer: String,
    /// Whether both are there.
    pub exists: bool,
}

/// What will run.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Of the installation.
    pub name: String,
    /// Whether verdicts are enforced.
    pub mode: Mode,
    /// Routed, else wires or the kernel's path.
    pub routed: bool,
    /// Whether the kernel forwards and asks: the only port is the worker's end of the pair that it asks by.
    pub kernel_path: bool,
    /// The ports, in order of their ids.
    pub ports: Vec<PlannedPort>,
    /// Patterns whose interfaces may come later.
    pub patterns: Vec<Interface>,
    /// Never a port.
    pub management: Option<String>,
    /// Of ports that come later.
    pub fail_mode: FailMode,
    /// Likewise.
    pub sources: SourceChecks,
    /// Where networks are.
    pub places: Vec<PlannedPlace>,
    /// What passes before any policy.
    pub failsafe: Vec<FailsafeEntry>,
    /// UDP ports where nodes unpack tunnels: they do not pass in a closed fail mode.
    pub tunnel_ports: Vec<u16>,
    /// The host port's pair, where one is configured.
    pub host: Option<HostPair>,
    /// The CPU of each worker.
    pub cpus: Vec<u16>,
    /// What a worker does that has nothing to do.
    pub idle: IdlePolicy,
    /// Sockets, flow table, lock.
    pub runtime_dir: PathBuf,
    /// The last snapshot.
    pub state_dir: PathBuf,
    /// Where the ports' pins go.
    pub pins: PathBuf,
}

impl Plan {
    /// Plans for what there is, without a look at whether this process may and the kernel can.
    pub fn outline(config: &Config) -> Result<Self, PlanError> {
        let mut netlink = Netlink::open()?;
        let mut view = KernelState::default();
        view.set_links(&netlink.links()?);
        Self::from_view(config, &view, cpus::allowed()?)
    }

    /// Asks the kernel what there is and what it can, and plans.
    pub fn make(config: &Config) -> Result<Self, PlanError> {
        let plan = Self::outline(config)?;
        let mut wrong = match plan.look(true) {
            Ok(_) => Vec::new(),
            Err(PlanError::NotReady(wrong)) => vec![wrong],
            Err(error) => return Err(error),
        };
        wrong.extend(plan.driver_limits());
        if plan.kernel_path {
            wrong.extend(preflight::obstacles()?);
        }
        if wrong.is_empty() {
            Ok(plan)
        } else {
            Err(PlanError::NotReady(wrong.join("\n")))
        }
    }

    /// The plan for a machine that has these interfaces and CPUs.
    pub fn from_view(config: &Config, view: &KernelState, allowed: &[u16]) -> Result<Self, PlanError> {
        let host = host_pair(config, view)?;
        let names = resolve(config, view, host.as_ref())?;
        if names.len() > usize::from(u16::MAX) {
            return Err(PlanError::TooManyPorts(names.len()));
        }
        let id_of = |name: &str| {
            names
                .iter()
                .position(|(found, _)| found == name)
                .map(|index| PortId(index as u16))
        };
        let mut ports = Vec::new();
        for (index, (name, interface)) in names.iter().enumerate() {
            let (kind, fail_mode, not_subject) = match &config.role {
                Role::Routed => (
                    match interface.kind {
                        Some(InterfaceKind::Pod) => PortKind::Pod,
                        Some(InterfaceKind::Host) => PortKind::Host,
                        Some(InterfaceKind::Uplink) | None => PortKind::Uplink,
                    },
                    config.fail_mode,
                    NotSubjectTable::ROUTED,
                ),
                Role::Wire(wires) => {
                    let ends = wires.iter().find_map(|wire| match &wire.interfaces {
                        [a, b] if a == name => Some((b, wire)),
                        [a, b] if b == name => Some((a, wire)),
                        _ => None,
                    });
                    let Some((peer, wire)) = ends else { continue };
                    let peer = id_of(peer).ok_or_else(|| no_interface(peer, view))?;
                    let table = not_subject(wire, side(interface.side));
                    (PortKind::Wire { peer }, wire.fail_mode, table)
                }
                Role::KernelPath => continue, // it has no interfaces
            };
            ports.push(PlannedPort {
                id: PortId(index as u16),
                name: name.clone(),
                kind,
                side: side(interface.side),
                sources: SourceChecks::of(config),
                not_subject,
                xdp: interface.xdp_mode,
                zero_copy: interface.zero_copy,
                queues: interface.rx_queues,
                mtu: interface.mtu,
                fail_mode,
                matched: matches!(interface.select, InterfaceSelect::Match(_)),
            });
        }
        let kernel_path = config.role == Role::KernelPath;
        if kernel_path {
            ports.push(ask_port(config));
        }
        Ok(Self {
            name: config.name.clone(),
            mode: config.mode,
            routed: config.role == Role::Routed,
            kernel_path,
            ports,
            patterns: config
                .interfaces
                .iter()
                .filter(|interface| matches!(interface.select, InterfaceSelect::Match(_)))
                .cloned()
                .collect(),
            management: config.management.clone(),
            fail_mode: config.fail_mode,
            sources: SourceChecks::of(config),
            places: config
                .cluster
                .places
                .iter()
                .map(|place| PlannedPlace::of(place, id_of))
                .collect(),
            failsafe: config.failsafe.clone(),
            tunnel_ports: config.tunnels.ports.clone(),
            host,
            cpus: cpus::of_workers(config, allowed)?,
            idle: config.workers.idle,
            runtime_dir: config.runtime_dir.clone(),
            state_dir: config.state_dir.clone(),
            pins: config.bpffs.join("ringwall").join(&config.name),
        })
    }

    /// What is to be put in order on the interfaces before they can be ports, and what is worth a remark.
    ///
    /// # Errors
    /// Something is wrong that ringwall cannot or must not mend itself.
    pub fn findings(&self) -> Result<Findings, PlanError> {
        self.look(false)
    }

    /// `at_first`: ports whose interface is made later, and settings that are mended later, are in order.
    fn look(&self, at_first: bool) -> Result<Findings, PlanError> {
        let made_later = |name: &str| {
            self.host
                .as_ref()
                .is_some_and(|host| !host.exists && host.inner == name)
        };
        let mut interfaces: Vec<PortInterface> = self
            .interfaces()
            .filter(|port| !at_first || !made_later(&port.name))
            .map(|port| PortInterface {
                name: port.name.clone(),
                pod: port.kind == PortKind::Pod,
                mtu: port.mtu.map(u32::from),
            })
            .collect();
        if let Some(host) = &self.host
            && (!at_first || host.exists)
        {
            interfaces.push(PortInterface {
                name: host.outer.clone(),
                pod: false,
                mtu: None,
            });
        }
        let request = ringwall_xsk::preflight::Request {
            interfaces: &interfaces,
            routed: self.routed,
            kernel_takes_over: self.kernel_takes_over(),
            workers: self.cpus.len(),
        };
        let matched = |name: &str| self.ports.iter().any(|port| port.matched && port.name == name);
        check(&request, &matched)
    }

    /// What the drivers of the ports do not have and the configuration asks for; programs of others.
    fn driver_limits(&self) -> Vec<String> {
        let mut wrong = Vec::new();
        let needs_zero_copy = self.ports.iter().find(|port| port.zero_copy == ZeroCopy::Require);
        let pair_is_made = self.host.as_ref().is_some_and(|host| !host.exists);
        if let Some(asks) = needs_zero_copy {
            let without = |name: &str, driver: &str| {
                format!(
                    "interface {}: zeroCopy: require, but all ports share one packet memory and `{name}` ({driver}) has no zero-copy: set `zeroCopy: prefer` or `off`",
                    asks.name
                )
            };
            if let Some(host) = self.host.as_ref().filter(|_| pair_is_made) {
                wrong.push(without(&host.inner, "veth"));
            }
            for port in self.ports.iter().filter(|port| !port.matched) {
                let device = Device::lookup(&port.name).ok();
                let known = ringwall_bpf::inspect(&self.pins, &port.name).ok();
                if let Some(device) = device
                    && known.is_some_and(|known| known.zero_copy == Some(false))
                {
                    wrong.push(without(&port.name, &device.driver));
                }
            }
        }
        for port in self.ports.iter().filter(|port| !port.matched) {
            let Ok(device) = Device::lookup(&port.name) else {
                continue; // made later, or named by the preflight
            };
            if let RxQueues::Count(count) = port.queues
                && count.get() > device.max_queues
            {
                wrong.push(format!(
                    "interface {}: it can have {} queues, {count} are asked for: lower `rxQueues`",
                    port.name, device.max_queues
                ));
            }
            if device.driver == "veth" && port.xdp == XdpMode::Generic {
                wrong.push(format!(
                    "interface {}: xdpMode: generic on a veth would lose the large segments that its other end sends: use `auto` or `native`",
                    port.name
                ));
            }
            let Ok(known) = ringwall_bpf::inspect(&self.pins, &port.name) else {
                continue;
            };
            if port.xdp == XdpMode::Native && known.native == Some(false) {
                wrong.push(format!(
                    "interface {}: xdpMode: native, but its driver ({}) has no XDP: use `auto` or another device",
                    port.name, device.driver
                ));
            }
            let mtu = port.mtu.map_or(device.mtu, u32::from);
            if mtu > MAX_SINGLE_MTU {
                let without = match (port.xdp, known.multi_buffer) {
                    (XdpMode::Generic, _) => {
                        Some("xdpMode: generic does not carry jumbo frames: use `native`".to_owned())
                    }
                    (_, Some(false)) => Some(format!(
                        "its driver ({}) does not list `rx-sg` among its xdp-features, so XDP cannot take jumbo frames: use another device or a newer kernel",
                        device.driver
                    )),
                    _ => None,
                };
                wrong.extend(without.map(|without| {
                    format!(
                        "interface {0}: MTU {mtu}, and {without}, or lower the MTU (`ip link set dev {0} mtu {MAX_SINGLE_MTU}`)",
                        port.name
                    )
                }));
            }
            if let Some((id, name)) = known.other_program {
                wrong.push(format!(
                    "interface {0}: it carries a foreign XDP program (id {id}, `{name}`): stop what attached it, or `ip link set dev {0} xdp off`",
                    port.name
                ));
            }
        }
        wrong
    }

    /// Whether the kernel forwards while no dataplane runs: a wire has its peer for that.
    fn kernel_takes_over(&self) -> bool {
        self.routed && self.fail_mode == FailMode::Open
    }

    /// The ports that are interfaces of this network namespace: all but the one that the kernel asks by.
    pub fn interfaces(&self) -> impl Iterator<Item = &PlannedPort> {
        self.ports.iter().filter(|port| port.kind != PortKind::Ask)
    }

    /// Whether pods may come that are not there yet.
    pub fn takes_pods(&self) -> bool {
        self.pod_patterns().next().is_some()
    }

    /// Patterns of pods' interfaces, as written.
    pub fn pod_patterns(&self) -> impl Iterator<Item = &str> {
        let of_pods = |pattern: &&Interface| pattern.kind == Some(InterfaceKind::Pod);
        self.patterns
            .iter()
            .filter(of_pods)
            .map(|pattern| pattern.select.as_str())
    }

    /// Ports that match a pattern and are not planned yet, without a number.
    pub fn unplanned_ports(&self, view: &KernelState) -> Vec<PlannedPort> {
        let names = view.links.values().map(|link| link.name.as_str());
        names
            .filter(|name| self.ports.iter().all(|port| port.name != *name))
            .filter_map(|name| self.matching(name))
            .collect()
    }

    /// The port that an interface of this name is or would be: planned, or of a pattern and without a number.
    pub fn port_named(&self, name: &str) -> Option<PlannedPort> {
        let planned = self.ports.iter().find(|port| port.name == name);
        planned.cloned().or_else(|| self.matching(name))
    }

    fn matching(&self, name: &str) -> Option<PlannedPort> {
        let taken = self.management.as_deref() == Some(name)
            || self.host.as_ref().is_some_and(|host| host.outer == name);
        let interface = self
            .patterns
            .iter()
            .find(|interface| !taken && interface.select.matches(name))?;
        Some(PlannedPort {
            id: PortId(u16::MAX),
            name: name.to_owned(),
            kind: match interface.kind {
                Some(InterfaceKind::Pod) => PortKind::Pod,
                Some(InterfaceKind::Host) => PortKind::Host,
                Some(InterfaceKind::Uplink) | None => PortKind::Uplink,
            },
            side: side(interface.side),
            sources: self.sources,
            not_subject: NotSubjectTable::ROUTED,
            xdp: interface.xdp_mode,
            zero_copy: interface.zero_copy,
            queues: interface.rx_queues,
            mtu: interface.mtu,
            fail_mode: self.fail_mode,
            matched: true,
        })
    }

    /// Takes in the ports that match a pattern and are not planned yet. The answer is what there are no numbers for.
    pub fn plan_matching_ports(&mut self, view: &KernelState, numbers: &mut PortNumbers) -> Vec<PlannedPort> {
        let mut refused = Vec::new();
        for mut port in self.unplanned_ports(view) {
            match numbers.take() {
                Some(id) => {
                    port.id = id;
                    self.ports.push(port);
                }
                None => refused.push(port),
            }
        }
        refused
    }

    /// `enforce, routed` and the like.
    pub fn describe_mode(&self) -> String {
        format!(
            "{}, {}",
            match self.mode {
                Mode::Audit => "audit (nothing is dropped by policy)",
                Mode::Enforce => "enforce",
            },
            match (self.kernel_path, self.routed) {
                (true, _) => "the kernel forwards",
                (_, true) => "routed",
                _ => "wire",
            }
        )
    }
}

/// What is to be done before the interfaces can be ports.
#[derive(Debug, Default)]
pub struct Findings {
    /// Interface, what mends it, and what is wrong in words.
    pub repairs: Vec<(String, Repair, String)>,
    /// Worth saying.
    pub remarks: Vec<String>,
    /// Interfaces that a pattern found and that cannot be opened as they are, with what is wrong.
    pub unfit: BTreeMap<String, String>,
}

fn check(
    request: &ringwall_xsk::preflight::Request<'_>,
    matched: &dyn Fn(&str) -> bool,
) -> Result<Findings, PlanError> {
    let mut unfit = BTreeMap::new();
    // What is wrong with several interfaces in the same way is said once.
    let mut found: BTreeMap<(bool, String), Vec<String>> = BTreeMap::new();
    let mut repairs = Vec::new();
    for finding in ringwall_xsk::preflight::preflight(request)? {
        let text = format!("{}: {}", finding.problem, finding.remedy);
        if let (Some(name), Some(repair)) = (&finding.interface, finding.repair) {
            repairs.push((name.clone(), repair, text));
            continue;
        }
        if let Some(name) = finding
            .interface
            .as_deref()
            .filter(|name| finding.fatal && matched(name))
        {
            unfit.insert(name.to_owned(), format!("interface {name}: {text}"));
            continue;
        }
        let names = found.entry((finding.fatal, text)).or_default();
        names.extend(finding.interface);
    }
    let (mut fatal, mut remarks) = (Vec::new(), Vec::new());
    for ((is_fatal, text), names) in found {
        let text = if names.is_empty() {
            text
        } else {
            format!("interface {}: {text}", names.join(", "))
        };
        if is_fatal {
            fatal.push(text);
        } else {
            remarks.push(text);
        }
    }
    if fatal.is_empty() {
        Ok(Findings {
            repairs,
            remarks,
            unfit,
        })
    } else {
        Err(PlanError::NotReady(fatal.join("\n")))
    }
}

/// The worker's end of the pair by which the programs ask. It is in another namespace, and made at the start.
fn ask_port(config: &Config) -> PlannedPort {
    PlannedPort {
        id: PortId(0),
        name: ask_pair::FAR.to_owned(),
        kind: PortKind::Ask,
        side: Side::Any,
        sources: SourceChecks::of(config),
        not_subject: NotSubjectTable::ROUTED,
        xdp: XdpMode::Native,
        zero_copy: ZeroCopy::Off,
        queues: RxQueues::All,
        mtu: None,
        fail_mode: config.fail_mode,
        matched: false,
    }
}

fn side(side: ringwall_config::Side) -> Side {
    match side {
        ringwall_config::Side::Pods => Side::Pods,
        ringwall_config::Side::Nodes => Side::Nodes,
        ringwall_config::Side::Inside => Side::Inside,
        ringwall_config::Side::Outside => Side::Outside,
        ringwall_config::Side::Any => Side::Any,
    }
}

/// Which frames without a policy cross a wire from its end of a side.
fn not_subject(wire: &Wire, side: Side) -> NotSubjectTable {
    L2_PROTOCOLS
        .iter()
        .fold(NotSubjectTable::ROUTED, |table, (protocol, kind)| {
            let default = match kind {
                NotSubject::RouterAdvertisement | NotSubject::DhcpServer => L2Action::FromOutside,
                kind if NotSubjectTable::WIRE.crosses(*kind) => L2Action::Forward,
                _ => L2Action::Drop,
            };
            let crosses = match wire.l2_protocols.get(protocol).unwrap_or(&default) {
                L2Action::Forward => true,
                L2Action::Drop => false,
                L2Action::FromOutside => side == Side::Outside,
                L2Action::FromInside => matches!(side, Side::Inside | Side::Pods | Side::Nodes),
            };
            table.with(*kind, crosses)
        })
}

/// What the configuration calls each kind.
const L2_PROTOCOLS: [(L2Protocol, NotSubject); 17] = [
    (L2Protocol::Arp, NotSubject::Arp),
    (L2Protocol::Ndp, NotSubject::Ndp),
    (L2Protocol::Dhcp, NotSubject::Dhcp),
    (L2Protocol::DhcpServer, NotSubject::DhcpServer),
    (L2Protocol::RouterAdvertisement, NotSubject::RouterAdvertisement),
    (L2Protocol::Igmp, NotSubject::Igmp),
    (L2Protocol::Mld, NotSubject::Mld),
    (L2Protocol::Multicast, NotSubject::Multicast),
    (L2Protocol::LinkLocal, NotSubject::LinkLocal),
    (L2Protocol::Broadcast, NotSubject::Broadcast),
    (L2Protocol::Lldp, NotSubject::Lldp),
    (L2Protocol::Lacp, NotSubject::Lacp),
    (L2Protocol::Stp, NotSubject::Stp),
    (L2Protocol::Llc, NotSubject::Llc),
    (L2Protocol::Pppoe, NotSubject::Pppoe),
    (L2Protocol::Mpls, NotSubject::Mpls),
    (L2Protocol::Other, NotSubject::OtherType),
];

fn no_interface(name: &str, view: &KernelState) -> PlanError {
    let present: Vec<&str> = view.links.values().map(|link| link.name.as_str()).collect();
    PlanError::NoInterface {
        name: name.to_owned(),
        present: present.join(", "),
    }
}

fn host_pair(config: &Config, view: &KernelState) -> Result<Option<HostPair>, PlanError> {
    let Some(inner) = config
        .interfaces
        .iter()
        .find(|interface| interface.kind == Some(InterfaceKind::Host))
        .map(|interface| interface.select.as_str().to_owned())
    else {
        return Ok(None);
    };
    let outer = config.name.clone();
    let ours = |end: (u32, &Link), other: (u32, &Link)| end.1.veth && end.1.peer == Some(other.0);
    let exists = match (view.link_named(&inner), view.link_named(&outer)) {
        (None, None) => false,
        (Some(a), Some(b)) if ours(a, b) && ours(b, a) => true,
        (Some(_), _) | (None, Some(_)) => {
            let taken = if view.link_named(&outer).is_some() {
                &outer
            } else {
                &inner
            };
            return Err(PlanError::HostTaken {
                name: taken.clone(),
                inner,
                outer,
            });
        }
    };
    Ok(Some(HostPair { inner, outer, exists }))
}

/// The interfaces of the ports, in order of the configuration; those of a pattern by name.
fn resolve<'c>(
    config: &'c Config,
    view: &KernelState,
    host: Option<&HostPair>,
) -> Result<Vec<(String, &'c Interface)>, PlanError> {
    let mut found: Vec<(String, &Interface)> = Vec::new();
    let named: Vec<&str> = config
        .interfaces
        .iter()
        .filter_map(|interface| match &interface.select {
            InterfaceSelect::Name(name) => Some(name.as_str()),
            InterfaceSelect::Match(_) => None,
        })
        .collect();
    for interface in &config.interfaces {
        match &interface.select {
            InterfaceSelect::Name(name) => {
                let made = host.is_some_and(|host| host.inner == *name);
                if !made && view.link_named(name).is_none() {
                    return Err(no_interface(name, view));
                }
                if found.iter().any(|(other, _)| other == name) {
                    return Err(PlanError::Twice(name.clone()));
                }
                found.push((name.clone(), interface));
            }
            InterfaceSelect::Match(_) => {
                let mut matching: Vec<&str> = view
                    .links
                    .values()
                    .map(|link| link.name.as_str())
                    .filter(|name| interface.select.matches(name))
                    // An entry by name goes before any pattern, and an earlier pattern before a later one.
                    .filter(|name| !named.contains(name) && !found.iter().any(|(other, _)| other == name))
                    .filter(|name| config.management.as_deref() != Some(*name))
                    .filter(|name| host.is_none_or(|host| host.outer != **name))
                    .collect();
                matching.sort_unstable();
                found.extend(matching.into_iter().map(|name| (name.to_owned(), interface)));
            }
        }
    }
    if let Some((name, _)) = found
        .iter()
        .find(|(name, _)| Some(name) == config.management.as_ref())
    {
        return Err(PlanError::Management(name.clone()));
    }
    Ok(found)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)] // a test that panics has failed
mod tests {
    use super::*;

    fn config_of(kind: &str, rest: &str) -> Config {
        let text = format!(
            "apiVersion: ringwall.io/v1alpha1\nkind: {kind}\nname: rw\nmode: enforce\nmanagement: {{interface: mgmt}}\ncluster: {{podCIDRs: [10.0.0.0/8]}}\nsource: {{manifests: .}}\n{rest}"
        );
        Config::parse("ringwall.yaml", &text, std::path::Path::new("/"), |_| None).unwrap()
    }

    fn config(rest: &str) -> Config {
        config_of("Gateway\ndatapath: afxdp", rest)
    }

    fn view(names: &[&str]) -> KernelState {
        let mut view = KernelState::default();
        for (index, name) in names.iter().enumerate() {
            view.links.insert(
                index as u32 + 1,
                Link {
                    name: (*name).to_owned(),
                    mac: [2, 0, 0, 0, 0, index as u8],
                    mtu: 1500,
                    up: true,
                    promiscuous: false,
                    carrier: true,
                    veth: false,
                    peer: None,
                    alias: None,
                },
            );
        }
        view
    }

    const NODE: &str = "interfaces:\n  - {match: \"cali*\", kind: pod}\n  - {name: eth1, kind: uplink}\n  - {name: cali-special, kind: uplink}\n";

    #[test]
    fn patterns_take_what_no_name_takes_and_order_is_stable() {
        let plan = Plan::from_view(
            &config(NODE),
            &view(&["lo", "eno1", "calib", "eth1", "calia", "cali-special"]),
            &[0, 1],
        )
        .unwrap();
        let ports: Vec<(&str, PortKind)> = plan
            .ports
            .iter()
            .map(|port| (port.name.as_str(), port.kind))
            .collect();
        assert_eq!(
            ports,
            [
                ("calia", PortKind::Pod),
                ("calib", PortKind::Pod),
                ("eth1", PortKind::Uplink),
                ("cali-special", PortKind::Uplink),
            ]
        );
        assert_eq!(plan.ports[2].id, PortId(2));
        assert_eq!(plan.cpus, [1], "auto takes one worker, on the last CPU");
    }

    #[test]
    fn newcomers_get_numbers_while_there_are_some() {
        let with = |pods: &[&str]| view(&[&["eth1", "cali-special"], pods].concat());
        let mut plan = Plan::from_view(&config(NODE), &with(&["calia"]), &[0]).unwrap();
        assert_eq!(plan.ports.len(), 3);
        let mut numbers = PortNumbers::new(3, 5);
        let names = |ports: &[PlannedPort]| ports.iter().map(|port| port.name.clone()).collect::<Vec<_>>();
        assert!(
            plan.plan_matching_ports(&with(&["calib"]), &mut numbers)
                .is_empty()
        );
        assert!(
            plan.plan_matching_ports(&with(&["calic"]), &mut numbers)
                .is_empty()
        );
        // All but one are gone, and none has been retired: there is no number left.
        for _ in 0..2 {
            let refused = plan.plan_matching_ports(&with(&["calid", "calie"]), &mut numbers);
            assert_eq!(names(&refused), ["calid", "calie"]);
        }
        // One that comes back is the port it was.
        assert!(
            plan.plan_matching_ports(&with(&["calia"]), &mut numbers)
                .is_empty()
        );
        let names = names(&plan.ports);
        assert_eq!(names, ["calia", "eth1", "cali-special", "calib", "calic"]);
        for (number, port) in plan.ports.iter().enumerate() {
            assert_eq!(usize::from(port.id.0), number);
        }
    }

    #[test]
    fn a_missing_interface_is_named_with_those_that_are_there() {
        let error = Plan::from_view(&config(NODE), &view(&["lo", "eth0"]), &[0])
            .unwrap_err()
            .to_string();
        assert!(error.contains("`eth1`") && error.contains("lo, eth0"), "{error}");
    }

    #[test]
    fn the_management_interface_is_never_a_port() {
        // The configuration refuses a pattern that names it outright; the machine has the last word.
        let mut all = config("interfaces:\n  - {match: \"e*1\", kind: uplink}\n");
        all.management = Some("eno1".to_owned());
        let plan = Plan::from_view(&all, &view(&["eno1", "eth1"]), &[0]).unwrap();
        assert_eq!(plan.ports.len(), 1);
        assert_eq!(plan.ports[0].name, "eth1");
    }

    #[test]
    fn cpus_must_be_allowed_and_enough() {
        let with = |workers: &str| config(&format!("workers: {workers}\n{NODE}"));
        let machine = view(&["eth1", "cali-special"]);
        let error = |workers, allowed: &[u16]| {
            Plan::from_view(&with(workers), &machine, allowed)
                .unwrap_err()
                .to_string()
        };
        assert!(error("{cpus: \"7\"}", &[0, 1]).contains("CPU 7"));
        assert!(error("{cpus: auto, count: 3}", &[0, 1]).contains("3 workers"));
        let plan = Plan::from_view(&with("{cpus: \"0-1\"}"), &machine, &[0, 1]).unwrap();
        assert_eq!(plan.cpus, [0, 1]);
    }

    const HOST: &str = "interfaces:\n  - {name: eth1, kind: uplink}\n  - {name: rw-host, kind: host}\n";

    #[test]
    fn the_host_pair_may_be_absent_or_ours_but_not_somebody_elses() {
        let config = config(HOST);
        let plan = Plan::from_view(&config, &view(&["eth1"]), &[0]).unwrap();
        let pair = plan.host.unwrap();
        assert_eq!(
            (pair.inner.as_str(), pair.outer.as_str(), pair.exists),
            ("rw-host", "rw", false)
        );
        assert_eq!(plan.ports[1].kind, PortKind::Host);

        let mut machine = view(&["eth1", "rw-host", "rw"]);
        for (index, peer) in [(2, 3), (3, 2)] {
            let link = machine.links.get_mut(&index).unwrap();
            link.veth = true;
            link.peer = Some(peer);
        }
        let plan = Plan::from_view(&config, &machine, &[0]).unwrap();
        assert!(plan.host.unwrap().exists);

        let error = Plan::from_view(&config, &view(&["eth1", "rw"]), &[0])
            .unwrap_err()
            .to_string();
        assert!(error.contains("`rw` is there already"), "{error}");
    }

    #[test]
    fn what_crosses_a_wire_without_a_policy_can_be_chosen() {
        let config = config_of(
            "Gateway",
            "interfaces:\n  - {name: a, side: inside}\n  - {name: b, side: outside}\nwires:\n  - {name: w0, interfaces: [a, b], \
             l2Protocols: {lldp: forward, stp: drop, router-advertisement: from-inside, mpls: from-outside}}\n",
        );
        let plan = Plan::from_view(&config, &view(&["b", "a"]), &[0]).unwrap();
        for (kind, wanted) in [
            (NotSubject::Lldp, [true, true]),
            (NotSubject::Stp, [false, false]),
            (NotSubject::RouterAdvertisement, [true, false]),
            (NotSubject::Mpls, [false, true]),
            (NotSubject::Arp, [true, true]),
        ] {
            let crosses = [0, 1].map(|port: usize| plan.ports[port].not_subject.crosses(kind));
            assert_eq!(crosses, wanted, "{}", kind.name());
        }
    }

    #[test]
    fn the_ends_of_a_wire_are_each_others_peers() {
        let config = config_of(
            "Gateway",
            "interfaces:\n  - {name: a, side: inside}\n  - {name: b, side: outside}\nwires:\n  - {name: w0, interfaces: [a, b], failMode: open}\n",
        );
        let plan = Plan::from_view(&config, &view(&["b", "a"]), &[0]).unwrap();
        assert!(!plan.routed);
        assert_eq!(plan.ports[0].kind, PortKind::Wire { peer: PortId(1) });
        // `ports` are in the order of the configuration: `a`, inside, then `b`, outside.
        let crosses = |kind| [0, 1].map(|port: usize| plan.ports[port].not_subject.crosses(kind));
        for kind in NotSubject::ALL {
            let wanted = match kind {
                NotSubject::RouterAdvertisement | NotSubject::DhcpServer => [false, true],
                kind => [NotSubjectTable::WIRE.crosses(*kind); 2],
            };
            assert_eq!(crosses(*kind), wanted, "{}", kind.name());
        }
        assert_eq!(plan.ports[1].kind, PortKind::Wire { peer: PortId(0) });
        assert_eq!(plan.ports[0].fail_mode, FailMode::Open);
    }
}
