//! For comparison: the same policies as nftables rules, loaded by `nft -f`.
//!
//! How they are translated, so that it is clear what was compared:
//!
//! * Two verdict maps (`saddr` for egress, `daddr` for ingress) go from each isolated pod's address to the chain of its
//!   group: the pods that the same policies select. A group's chain jumps to one chain per policy and drops at the end.
//! * A policy's chain has one line per rule, peer and protocol: `ip saddr @set tcp dport { ports } accept`. The sets of
//!   selectors are shared by all that say the same; an ipBlock is an interval set, its exceptions cut out.
//! * A named port is a set of (address, port).
//! * IPv4 only, without connection tracking, without the rules for self, node and unknown addresses: flows to which those
//!   apply are not compared.
//!
//! That both decide alike is checked in the kernel: packets with the addresses of sampled flows are sent through the
//! ruleset's output hook, which answers EPERM to what it drops.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fmt::Write as _,
    fs,
    net::{IpAddr, Ipv4Addr, SocketAddrV4},
    process::Command,
    time::Instant,
};

use anyhow::{Context, anyhow, bail};
use ipnet::IpNet;
use ringwall_compile::{EpochKey, compile};
use ringwall_dataplane::{
    classify::{Generation, L4, NodeExemption, Snapshot},
    wire::build::Template,
};
use ringwall_policy::{Cluster, NetworkPolicy, Operator, Peer, Pod, PortMatch, Protocol, Rule, Selector};
use ringwall_testbed::{netns::Netns, preflight, scratch::Scratch};
use socket2::{Domain, Protocol as SocketProtocol, Socket, Type};

use super::{
    Options, Size, cluster,
    report::{Report, Target},
};
use crate::figures::Figures;

/// Flows whose verdicts are compared.
const FLOWS: usize = 20_000;
/// Bytes of an Ethernet header without tags, before the packet.
const ETHERNET: usize = 14;

pub(super) fn run(options: &Options, size: Size, report: &mut Report) -> anyhow::Result<()> {
    if let Some(obstacle) = preflight::obstacle() {
        println!("nft: left out: {obstacle}");
        return Ok(());
    }
    let cluster = cluster::decoded(&cluster::synthetic(size, false)?)?;
    let ruleset = Ruleset::of(&cluster);
    let namespace = Netns::new("bench-nft")?;
    namespace.ip(&[
        "link add out0 type veth peer name out1",
        "link set out0 up",
        "link set out1 up",
        "addr add 192.0.2.1/24 dev out0",
        "neigh add 192.0.2.2 lladdr 02:00:00:00:00:02 dev out0",
        "route add default via 192.0.2.2 dev out0",
    ])?;
    let scratch = Scratch::new()?;
    let file = scratch.path().join("rules.nft");
    let text = ruleset.text();
    fs::write(&file, &text)?;
    let load = |file: &std::path::Path| -> anyhow::Result<f64> {
        let mut command = Command::new("nft");
        command.arg("-f").arg(file);
        let start = Instant::now();
        let output = namespace
            .output(command)
            .context("cannot run nft; install nftables")?;
        let took = start.elapsed().as_secs_f64() * 1e3;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr)
                .chars()
                .take(2000)
                .collect::<String>();
            bail!("nft refuses the rules: {said}");
        }
        Ok(took)
    };
    let mut loading = Vec::new();
    for _ in 0..options.rounds.min(if size == Size::Large { 1 } else { 5 }) {
        // Together with the removal of the table before: one transaction, as a firewall would do it.
        loading.push(load(&file)?);
    }
    let words = size.words();
    let note = format!(
        "{} lines, {} sets, {:.1} MB",
        text.lines().count(),
        ruleset.sets.len(),
        text.len() as f64 / 1e6
    );
    report.add(
        "nft",
        format!("nft -f of the same rules, {words}"),
        Target::None,
        Figures::of(loading, "ms"),
        note,
    )?;

    let compared = compare(&cluster, &namespace)?;
    let mut changing = Vec::new();
    let change = scratch.path().join("change.nft");
    for pod in cluster.pods.values().filter(|pod| v4(pod).is_some()).take(20) {
        fs::write(&change, ruleset.remove_and_add(pod))?;
        changing.push(load(&change)?);
    }
    report.add(
        "nft",
        format!("nft -f of one pod taken out and put back, {words}"),
        Target::None,
        Figures::of(changing, "ms"),
        compared,
    )
}

/// A pod's IPv4 address, if it takes part.
fn v4(pod: &Pod) -> Option<Ipv4Addr> {
    if pod.host_network || pod.finished {
        return None;
    }
    pod.addresses.iter().find_map(|it| match it {
        IpAddr::V4(ip) => Some(*ip),
        IpAddr::V6(_) => None,
    })
}

/// What a set is declared as, and its elements.
type Set = (&'static str, Vec<String>);

/// The rules of a cluster.
struct Ruleset {
    /// By what they are.
    sets: BTreeMap<String, Set>,
    chains: String,
    /// Isolated addresses and the chains of their groups, for egress and ingress.
    maps: [BTreeMap<Ipv4Addr, String>; 2],
}

/// Selects pods, remembering what selectors selected.
struct SelectorSets<'a> {
    cluster: &'a Cluster,
    by_namespace: HashMap<&'a str, Vec<&'a Pod>>,
    /// Set names by what they select.
    known: HashMap<(Option<String>, Option<Selector>, Selector), String>,
    sets: BTreeMap<String, Set>,
}

impl<'a> SelectorSets<'a> {
    fn new(cluster: &'a Cluster) -> Self {
        let mut by_namespace: HashMap<&str, Vec<&Pod>> = HashMap::new();
        for pod in cluster.pods.values().filter(|pod| v4(pod).is_some()) {
            by_namespace.entry(&pod.key.namespace).or_default().push(pod);
        }
        Self {
            cluster,
            by_namespace,
            known: HashMap::new(),
            sets: BTreeMap::new(),
        }
    }

    fn pods(&self, own: &str, namespaces: Option<&Selector>, pods: &Selector) -> Vec<&'a Pod> {
        let chosen: Vec<&str> = match namespaces {
            None => vec![own],
            Some(selector) => self
                .cluster
                .namespaces
                .iter()
                .filter(|(_, it)| {
                    selector
                        .requirements
                        .iter()
                        .all(|one| matches(one, |key| it.labels.get(key)))
                })
                .map(|(name, _)| name.as_str())
                .collect(),
        };
        chosen
            .into_iter()
            .flat_map(|name| self.by_namespace.get(name).into_iter().flatten())
            .filter(|pod| {
                pods.requirements
                    .iter()
                    .all(|one| matches(one, |key| pod.labels.get(key)))
            })
            .copied()
            .collect()
    }

    fn set(&mut self, own: &str, namespaces: Option<&Selector>, pods: &Selector) -> String {
        let home = namespaces.is_none().then(|| own.to_owned());
        let key = (home, namespaces.cloned(), pods.clone());
        if let Some(name) = self.known.get(&key) {
            return name.clone();
        }
        let elements = self
            .pods(own, namespaces, pods)
            .into_iter()
            .filter_map(v4)
            .map(|ip| ip.to_string());
        let name = format!("s{}", self.known.len());
        self.sets
            .insert(name.clone(), ("type ipv4_addr", elements.collect()));
        self.known.insert(key, name.clone());
        name
    }

    fn block(&mut self, cidr: &IpNet, except: &[IpNet]) -> Option<String> {
        let IpNet::V4(_) = cidr else { return None };
        let name = format!("b{}", self.sets.len());
        self.sets.insert(
            name.clone(),
            ("type ipv4_addr; flags interval", ranges(cidr, except)),
        );
        Some(name)
    }

    /// Pods with the port that they call so.
    fn named(&mut self, pods: &[&Pod], name: &str, protocol: Protocol) -> String {
        let elements = pods
            .iter()
            .filter_map(|pod| {
                let port = pod
                    .named_ports
                    .iter()
                    .find(|it| it.name == name && it.protocol == protocol)?;
                Some(format!("{} . {}", v4(pod)?, port.number))
            })
            .collect();
        let set = format!("n{}", self.sets.len());
        self.sets
            .insert(set.clone(), ("type ipv4_addr . inet_service", elements));
        set
    }
}

fn matches<'l>(one: &ringwall_policy::Requirement, label: impl Fn(&str) -> Option<&'l String>) -> bool {
    let value = label(&one.key);
    match &one.operator {
        Operator::In(values) => value.is_some_and(|value| values.contains(value)),
        Operator::NotIn(values) => value.is_none_or(|value| !values.contains(value)),
        Operator::Exists => value.is_some(),
        Operator::DoesNotExist => value.is_none(),
        Operator::Like { part, text, negated } => {
            value.is_some_and(|value| part.holds(value, text)) != *negated
        }
    }
}

/// A block without its exceptions, as intervals.
fn ranges(cidr: &IpNet, except: &[IpNet]) -> Vec<String> {
    let number = |ip: IpAddr| match ip {
        IpAddr::V4(ip) => u64::from(u32::from(ip)),
        IpAddr::V6(_) => 0,
    };
    let mut out = Vec::new();
    let mut next = number(cidr.network());
    let last = number(cidr.broadcast());
    let mut holes: Vec<(u64, u64)> = except
        .iter()
        .map(|hole| (number(hole.network()), number(hole.broadcast())))
        .collect();
    holes.sort_unstable();
    holes.push((last + 1, last + 1));
    for (from, to) in holes {
        if next < from {
            let ip = |it: u64| Ipv4Addr::from(it as u32);
            out.push(if next + 1 == from {
                ip(next).to_string()
            } else {
                format!("{}-{}", ip(next), ip(from - 1))
            });
        }
        next = next.max(to + 1);
    }
    out
}

fn word(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Tcp => "tcp",
        Protocol::Udp => "udp",
        Protocol::Sctp => "sctp",
    }
}

impl Ruleset {
    fn of(cluster: &Cluster) -> Self {
        let mut finder = SelectorSets::new(cluster);
        let mut chains = String::new();
        // By direction: which policies select an address.
        let mut selected: [BTreeMap<Ipv4Addr, Vec<usize>>; 2] = Default::default();
        for (number, policy) in cluster.policies.values().enumerate() {
            let subjects = finder.pods(&policy.key.namespace, None, &policy.subjects);
            if subjects.is_empty() {
                continue;
            }
            for (direction, rules) in [(0, &policy.egress), (1, &policy.ingress)] {
                let Some(rules) = rules else { continue };
                for address in subjects.iter().filter_map(|pod| v4(pod)) {
                    selected[direction].entry(address).or_default().push(number);
                }
                // Writing to a string does not fail.
                let _ = writeln!(chains, "chain p{number}_{direction} {{");
                for rule in rules {
                    finder.rule(policy, &subjects, rule, direction, &mut chains);
                }
                chains.push_str("}\n");
            }
        }
        let maps = selected.map(|of_direction| of_direction.into_iter().collect::<Vec<_>>());
        let mut named: [BTreeMap<Ipv4Addr, String>; 2] = Default::default();
        for (direction, addresses) in maps.into_iter().enumerate() {
            let mut groups: BTreeMap<Vec<usize>, String> = BTreeMap::new();
            for (address, policies) in addresses {
                let next = groups.len();
                let name = groups
                    .entry(policies)
                    .or_insert_with(|| format!("g{next}_{direction}"));
                named[direction].insert(address, name.clone());
            }
            for (policies, name) in &groups {
                let _ = writeln!(chains, "chain {name} {{");
                for policy in policies {
                    let _ = writeln!(chains, "jump p{policy}_{direction}");
                }
                chains.push_str("drop\n}\n");
            }
        }
        Self {
            sets: finder.sets,
            chains,
            maps: named,
        }
    }

    fn text(&self) -> String {
        let mut text = String::from("table ip rw\ndelete table ip rw\ntable ip rw {\n");
        for (name, (kind, elements)) in &self.sets {
            let elements = elements.join(", ");
            let elements = if elements.is_empty() {
                String::new()
            } else {
                format!("elements = {{ {elements} }}; ")
            };
            let _ = writeln!(text, "set {name} {{ {kind}; {elements}}}");
        }
        text.push_str(&self.chains);
        for (name, of_direction) in ["egress_of", "ingress_of"].into_iter().zip(&self.maps) {
            let elements: Vec<String> = of_direction
                .iter()
                .map(|(ip, chain)| format!("{ip} : goto {chain}"))
                .collect();
            let elements = if elements.is_empty() {
                String::new()
            } else {
                format!("elements = {{ {} }}; ", elements.join(", "))
            };
            let _ = writeln!(text, "map {name} {{ type ipv4_addr : verdict; {elements}}}");
        }
        text.push_str(
            "chain ingress {\nip daddr vmap @ingress_of\naccept\n}\n\
             chain egress {\nip saddr vmap @egress_of\ngoto ingress\n}\n\
             chain filter {\ntype filter hook output priority 0; policy accept;\ngoto egress\n}\n}\n",
        );
        text
    }

    /// Takes a pod out of all that it is in and puts it back: two transactions' worth of one changed pod.
    fn remove_and_add(&self, pod: &Pod) -> String {
        let Some(address) = v4(pod) else {
            return String::new();
        };
        let (mut out, mut back) = (String::new(), String::new());
        let own = address.to_string();
        let with_port = format!("{own} . ");
        for (name, (kind, elements)) in &self.sets {
            if kind.contains("interval") {
                continue;
            }
            for element in elements
                .iter()
                .filter(|it| **it == own || it.starts_with(&with_port))
            {
                let _ = writeln!(out, "delete element ip rw {name} {{ {element} }}");
                let _ = writeln!(back, "add element ip rw {name} {{ {element} }}");
            }
        }
        for (name, of_direction) in ["egress_of", "ingress_of"].into_iter().zip(&self.maps) {
            if let Some(chain) = of_direction.get(&address) {
                let _ = writeln!(out, "delete element ip rw {name} {{ {own} }}");
                let _ = writeln!(back, "add element ip rw {name} {{ {own} : goto {chain} }}");
            }
        }
        out + &back
    }
}

impl SelectorSets<'_> {
    fn rule(
        &mut self,
        policy: &NetworkPolicy,
        subjects: &[&Pod],
        rule: &Rule,
        direction: usize,
        chains: &mut String,
    ) {
        let (end, verdict) = if direction == 0 {
            ("daddr", "goto ingress")
        } else {
            ("saddr", "accept")
        };
        let own = &policy.key.namespace;
        // Matches of the peer, and the pods that it can be.
        let mut peers: Vec<(String, Vec<&Pod>)> = Vec::new();
        match &rule.peers {
            None => peers.push((
                String::new(),
                self.by_namespace.values().flatten().copied().collect(),
            )),
            Some(list) => {
                for peer in list {
                    match peer {
                        Peer::Pods { namespaces, pods } => {
                            let set = self.set(own, namespaces.as_ref(), pods);
                            let found = self.pods(own, namespaces.as_ref(), pods);
                            peers.push((format!("ip {end} @{set} "), found));
                        }
                        Peer::Block { cidr, except } => {
                            if let Some(set) = self.block(cidr, except) {
                                let within = |ip: Ipv4Addr| {
                                    cidr.contains(&IpAddr::V4(ip))
                                        && !except.iter().any(|it| it.contains(&IpAddr::V4(ip)))
                                };
                                let all = self.by_namespace.values().flatten().copied();
                                let found = all.filter(|pod| v4(pod).is_some_and(within)).collect();
                                peers.push((format!("ip {end} @{set} "), found));
                            }
                        }
                        // A NetworkPolicy names none.
                        Peer::Addresses(_) => {}
                    }
                }
            }
        }
        for (peer, pods) in peers {
            let Some(ports) = &rule.ports else {
                let _ = writeln!(chains, "{peer}{verdict}");
                continue;
            };
            let mut numbers: BTreeMap<&str, BTreeSet<String>> = BTreeMap::new();
            for port in ports {
                match port {
                    PortMatch::Icmp { protocol, kind, code } => {
                        let name = if *protocol == 1 { "icmp" } else { "icmpv6" };
                        let code = code.map_or(String::new(), |code| format!(" {name} code {code}"));
                        let _ = writeln!(chains, "{peer}{name} type {kind}{code} {verdict}");
                    }
                    PortMatch::IpProtocol(number) => {
                        let _ = writeln!(chains, "{peer}meta l4proto {number} {verdict}");
                    }
                    PortMatch::All(protocol) => {
                        let _ = writeln!(chains, "{peer}meta l4proto {} {verdict}", word(*protocol));
                    }
                    PortMatch::Range { protocol, lo, hi } => {
                        let range = if lo == hi {
                            lo.to_string()
                        } else {
                            format!("{lo}-{hi}")
                        };
                        numbers.entry(word(*protocol)).or_default().insert(range);
                    }
                    PortMatch::Named { protocol, name } => {
                        // The destination's name: the subject's for ingress, the peer's for egress.
                        let of = if direction == 0 { &pods[..] } else { subjects };
                        let set = self.named(of, name, *protocol);
                        let peer = if direction == 0 { "" } else { &peer };
                        let _ = writeln!(
                            chains,
                            "{peer}ip daddr . {} dport @{set} {verdict}",
                            word(*protocol)
                        );
                    }
                }
            }
            for (protocol, ports) in numbers {
                let ports: Vec<String> = ports.into_iter().collect();
                let _ = writeln!(
                    chains,
                    "{peer}{protocol} dport {{ {} }} {verdict}",
                    ports.join(", ")
                );
            }
        }
    }
}

/// Sends a packet of each sampled flow through the ruleset and compares with the snapshot. Answers what was compared.
fn compare(cluster: &Cluster, namespace: &Netns) -> anyhow::Result<String> {
    let image = compile(cluster, Generation(1), &EpochKey::OFFLINE)?;
    let snapshot = Snapshot::open(&image.bytes)?;
    let pods: Vec<Ipv4Addr> = cluster.pods.values().filter_map(|pod| v4(pod)).collect();
    let ports: [u16; 8] = [53, 443, 5432, 6379, 8080, 9090, 30_050, 50_051];
    let flows: Vec<(Ipv4Addr, Ipv4Addr, u16)> = (0..FLOWS)
        .filter_map(|number| {
            let src = pods[number.wrapping_mul(7919) % pods.len()];
            let dst = match number % 4 {
                // An address of the networks that blocks name.
                0 => Ipv4Addr::from(0xc612_0000 + (number as u32).wrapping_mul(2_654_435_761) % (1 << 17)),
                // Close by, in the order of namespaces: often a peer.
                _ => pods[(number.wrapping_mul(7919) + 1 + number % 97) % pods.len()],
            };
            (src != dst).then_some((src, dst, ports[number / 4 % ports.len()]))
        })
        .collect();
    let sent = namespace.run(|| -> anyhow::Result<Vec<bool>> {
        let socket = Socket::new(Domain::IPV4, Type::RAW, Some(SocketProtocol::from(255)))?;
        flows
            .iter()
            .map(|(src, dst, port)| passes(&socket, *src, *dst, *port))
            .collect()
    })??;
    let mut allowed = 0;
    for ((src, dst, port), kernel) in flows.iter().zip(sent) {
        let ends = (IpAddr::V4(*src).into(), IpAddr::V4(*dst).into());
        let l4 = L4::Port {
            protocol: 6,
            port: *port,
            source: 0,
        };
        let (a, b) = (snapshot.identify(ends.0), snapshot.identify(ends.1));
        let ours = snapshot
            .judge(&a, &b, ends.0, ends.1, l4, NodeExemption::Untrusted)
            .allow();
        if ours != kernel {
            bail!(
                "{src} to {dst} port {port}/TCP: ringwall says {ours}, nft says {kernel}: the translation is wrong"
            );
        }
        allowed += usize::from(ours);
    }
    Ok(format!(
        "{} flows decided alike in the kernel, {allowed} of them allowed",
        flows.len()
    ))
}

/// Whether the output hook lets such a packet through.
fn passes(socket: &Socket, src: Ipv4Addr, dst: Ipv4Addr, port: u16) -> anyhow::Result<bool> {
    let frame = Template::new(IpAddr::V4(src).into(), IpAddr::V4(dst).into()).tcp(40_000, port, 2, b"");
    let packet = frame
        .get(ETHERNET..)
        .ok_or_else(|| anyhow!("a frame without a packet"))?;
    match socket.send_to(packet, &SocketAddrV4::new(dst, 0).into()) {
        Ok(_) => Ok(true),
        Err(error) if error.raw_os_error() == Some(1) => Ok(false),
        Err(error) => Err(error).with_context(|| format!("send a packet from {src} to {dst}")),
    }
}
