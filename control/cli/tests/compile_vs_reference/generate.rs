//! Random clusters, and flows at their borders.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::Arc,
};

use ipnet::IpNet;
use ringwall_dataplane::classify::L4;
use ringwall_policy::{
    Action, AddressSet, Cluster, Condition, Conditions, DEFAULT_TIER, DenialAnswer, Fault, KUBE_ADMIN,
    KUBE_BASELINE, Labels, NAMESPACE_NAME_LABEL, NamedPort, Namespace, NetworkPolicy, Node, Object,
    ObjectKey, Operator, Order, Part, Peer, Pod, PodSelection, PolicyId, PolicyKind, PortMatch, Protocol,
    Requirement, Rule, Selector, Settings, Tier, TierDefault, TieredPolicy, TieredRule,
};

use crate::random::Random;

const NAMESPACES: [&str; 3] = ["a", "b", "c"];
const NODES: [&str; 4] = ["n1", "n2", "n3", "unlisted"];
const PROTOCOLS: [Protocol; 3] = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp];
const PORT_NAMES: [&str; 3] = ["http", "dns", "http2"];
/// Names of address sets.
#[allow(dead_code)]
pub(crate) const ADDRESS_SETS: [&str; 3] = ["s0", "s1", "s2"];
const PORTS: [u16; 8] = [1, 53, 80, 81, 82, 8080, 65534, 65535];

fn v4(d: u8) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(10, 0, 0, d))
}

fn v6(last: u16) -> IpAddr {
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, last))
}

fn net(text: &str) -> IpNet {
    text.parse().expect("a network")
}

pub(crate) fn cluster(random: &mut Random) -> Cluster {
    let mut cluster = Cluster::default();
    for name in NAMESPACES {
        let mut labels = labels(random, &["team", "env"], &["x", "y", ""]);
        labels.insert(NAMESPACE_NAME_LABEL.to_owned(), name.to_owned());
        cluster.insert(Object::Namespace(Namespace {
            name: name.to_owned(),
            labels,
            terminating: random.percent(5),
        }));
    }
    let nodes: [(&str, &[&str], &[&str]); 3] = [
        (
            "n1",
            &["192.168.0.1", "10.0.0.1", "fd01::1"],
            &["10.0.0.0/29", "fd00::/125"],
        ),
        (
            "n2",
            &["192.168.0.2", "10.0.0.9", "fd01::2"],
            &["10.0.0.8/29", "fd00::8/125"],
        ),
        ("n3", &["192.168.0.2", "192.168.0.3"], &[]),
    ];
    for (name, addresses, pod_cidrs) in nodes {
        if random.percent(75) {
            cluster.insert(Object::Node(Node {
                name: name.to_owned(),
                addresses: addresses
                    .iter()
                    .map(|address| address.parse().expect("an address"))
                    .collect(),
                pod_cidrs: pod_cidrs.iter().map(|text| net(text)).collect(),
            }));
        }
    }
    for number in 0..random.below(14) {
        let pod = pod(random, number);
        cluster.insert(Object::Pod(pod));
    }
    for number in 0..random.below(8) {
        let policy = policy(random, number);
        cluster.insert(Object::NetworkPolicy(policy));
    }
    cluster.settings = Settings {
        pod_cidrs: if random.percent(50) {
            vec![net("10.1.0.0/30")]
        } else {
            Vec::new()
        },
        node_cidrs: Vec::new(),
        service_cidrs: match random.below(3) {
            0 => Vec::new(),
            1 => vec![net("10.2.0.0/30"), net("fd02::/126")],
            _ => vec![net("10.0.0.4/30")],
        },
        allow_unknown: random.percent(30),
    };
    cluster
}

pub(crate) fn labels(random: &mut Random, keys: &[&str], values: &[&str]) -> Labels {
    let mut labels = Labels::new();
    for key in keys {
        if random.percent(60) {
            labels.insert((*key).to_owned(), (*random.one(values)).to_owned());
        }
    }
    labels
}

pub(crate) fn pod(random: &mut Random, number: usize) -> Pod {
    let host_network = random.percent(12);
    let template_of = random.percent(10).then(|| "Deployment".to_owned());
    let mut addresses = Vec::new();
    if template_of.is_none() && random.percent(93) {
        if random.percent(80) {
            addresses.push(v4(random.below(16) as u8));
        }
        if random.percent(40) {
            addresses.push(v6(random.below(12) as u16));
        }
        if random.percent(5) {
            addresses.push("172.16.0.1".parse().expect("an address")); // outside of every pod network
        }
    }
    if host_network && random.percent(80) {
        addresses = vec![
            (*random.one(&["192.168.0.1", "192.168.0.7", "10.0.0.9"]))
                .parse()
                .expect("an address"),
        ];
    }
    let mut named_ports = Vec::new();
    for _ in 0..random.below(4) {
        named_ports.push(NamedPort {
            name: (*random.one(&PORT_NAMES)).to_owned(),
            protocol: *random.one(&PROTOCOLS),
            number: *random.one(&PORTS),
        });
    }
    // One namespace was never seen.
    let namespace = *random.one(&["a", "a", "b", "b", "c", "unseen"]);
    Pod {
        key: ObjectKey {
            namespace: namespace.to_owned(),
            name: format!("p{number}"),
        },
        uid: if random.percent(50) {
            String::new()
        } else {
            format!("uid-{}", random.below(4))
        },
        created: random.percent(60).then(|| random.below(3) as i64),
        labels: labels(random, &["app", "tier", "hash"], &["web", "db", ""]),
        addresses,
        node: random.percent(80).then(|| (*random.one(&NODES)).to_owned()),
        host_network,
        finished: random.percent(12),
        terminating: random.percent(20),
        named_ports,
        service_account: String::new(),
        template_of,
    }
}

/// What some policies answer to those whom they deny.
fn answer(random: &mut Random) -> Option<DenialAnswer> {
    let answers = DenialAnswer::WORDS.map(|(_, answer)| answer);
    random.percent(20).then(|| answers[random.below(answers.len())])
}

pub(crate) fn policy(random: &mut Random, number: usize) -> NetworkPolicy {
    let faults = if random.percent(8) {
        vec![Fault {
            path: "spec".to_owned(),
            message: "wrong".to_owned(),
        }]
    } else {
        Vec::new()
    };
    let valid = faults.is_empty();
    let direction = |random: &mut Random| {
        let rules = if valid { random.below(4) } else { 0 };
        random
            .percent(65)
            .then(|| (0..rules).map(|_| rule(random)).collect())
    };
    NetworkPolicy {
        key: ObjectKey {
            namespace: (*random.one(&NAMESPACES)).to_owned(),
            name: format!("policy{number}"),
        },
        uid: String::new(),
        subjects: selector(random, &["app", "tier"], &["web", "db", ""], 45),
        ingress: direction(random),
        egress: direction(random),
        types_written: false,
        answer: answer(&mut random.branch()),
        faults,
    }
}

/// A cluster with policies of ordered kinds.
#[allow(dead_code)] // not every test that shares this module has such clusters
pub(crate) fn with_tiers(random: &mut Random) -> Cluster {
    let mut cluster = cluster(random);
    let calico = random.percent(50);
    for number in 0..random.below(7) {
        let policy = tiered(random, number, calico);
        cluster.tiered.insert(policy.id.clone(), policy.into());
    }
    if calico && random.percent(70) {
        cluster.insert(Object::Tier(app_tier(random)));
    }
    let random = &mut random.aside();
    for name in ADDRESS_SETS {
        if random.percent(80) {
            cluster.set_addresses(name, Some(&address_set(random)));
        }
    }
    cluster
}

/// Members of an address set; some lie inside others.
#[allow(dead_code)]
pub(crate) fn address_set(random: &mut Random) -> AddressSet {
    (0..random.below(6)).map(|_| member(random)).collect()
}

#[allow(dead_code)]
pub(crate) fn member(random: &mut Random) -> IpNet {
    let cidr = block(random);
    // One that holds everything would hide all others.
    match cidr.prefix_len() {
        0 if random.percent(80) => IpNet::from(address(random)),
        _ => cidr,
    }
}

/// A few members of an address set more or less, or the whole set; the set may not have been there.
#[allow(dead_code)]
pub(crate) fn members_change(cluster: &mut Cluster, random: &mut Random) {
    let name = *random.one(&ADDRESS_SETS);
    let before = cluster.address_sets.get(name);
    let mut members = before.map_or_else(AddressSet::new, |set| AddressSet::clone(set));
    if random.percent(10) {
        cluster.set_addresses(name, None);
        return;
    }
    for _ in 0..1 + random.below(2) {
        let all: Vec<IpNet> = members.iter().copied().collect();
        match random.below(3) {
            0 if !all.is_empty() => drop(members.remove(random.one(&all))),
            1 if random.percent(10) => members = address_set(random),
            _ => drop(members.insert(member(random))),
        }
    }
    cluster.set_addresses(name, Some(&members));
}

/// The one tier that is not built in, somewhere among those.
#[allow(dead_code)]
pub(crate) fn app_tier(random: &mut Random) -> Tier {
    Tier {
        name: "app".to_owned(),
        order: Order::new(*random.one(&[-1.5, 1000.0, 5000.0, 1_000_000.0, 1e9])).unwrap(),
        default: *random.one(&[TierDefault::Deny, TierDefault::Pass]),
    }
}

/// A cluster with policies of ordered kinds where few addresses are known yet.
#[allow(dead_code)]
pub(crate) fn with_tiers_unplaced(random: &mut Random) -> Cluster {
    let mut cluster = with_tiers(random);
    for pod in cluster.pods.values().cloned().collect::<Vec<_>>() {
        if !random.percent(15) {
            let addresses = Vec::new();
            cluster.insert(Object::Pod(Pod {
                addresses,
                ..(*pod).clone()
            }));
        }
    }
    cluster
}

/// A policy of an ordered kind, or else of Calico's: few orders, so that names decide often.
#[allow(dead_code)]
pub(crate) fn tiered(random: &mut Random, number: usize, calico: bool) -> TieredPolicy {
    let calico = calico && random.percent(75);
    let tier = match calico {
        true => *random.one(&[
            KUBE_ADMIN,
            DEFAULT_TIER,
            DEFAULT_TIER,
            DEFAULT_TIER,
            KUBE_BASELINE,
            "app",
            "app",
            "nope",
        ]),
        false => *random.one(&[KUBE_ADMIN, KUBE_BASELINE]),
    };
    let kind = match (random.percent(70), tier) {
        (true, _) if calico => PolicyKind::GlobalNetworkPolicy,
        (false, _) if calico => PolicyKind::CalicoNetworkPolicy,
        (true, _) => PolicyKind::ClusterNetworkPolicy,
        (false, KUBE_ADMIN) => PolicyKind::AdminNetworkPolicy,
        (false, _) => PolicyKind::BaselineAdminNetworkPolicy,
    };
    // One name begins like another: `a-b//` is before `a//`.
    let name = match number {
        0 => "a".to_owned(),
        1 => "a-b".to_owned(),
        _ => format!("t{number}"),
    };
    let direction = |random: &mut Random| {
        let rules = if random.percent(70) {
            1 + random.below(4)
        } else {
            0
        };
        let mut rules: Vec<TieredRule> = (0..rules).map(|_| tiered_rule(random, calico)).collect();
        if calico && random.branch().percent(40) {
            alternatives(&mut rules, &mut random.branch());
        }
        // Without rules a policy of Calico's selects all the same, if it has a part in the direction.
        (!rules.is_empty() || calico && random.percent(50)).then_some(rules)
    };
    let selections = if calico { 1 + random.below(2) } else { 1 };
    TieredPolicy {
        id: PolicyId {
            kind,
            namespace: match kind {
                PolicyKind::CalicoNetworkPolicy => (*random.one(&NAMESPACES)).to_owned(),
                _ => String::new(),
            },
            name,
        },
        uid: String::new(),
        tier: tier.to_owned(),
        order: match calico {
            true => *random.one(&[
                Order::of_priority(1),
                Order::new(999.5).unwrap(),
                Order::NETWORK_POLICY,
                Order::NETWORK_POLICY,
                Order::LAST,
            ]),
            false => Order::of_priority(*random.one(&[0, 1, 1, 1000])),
        },
        answer: answer(&mut random.branch()),
        subjects: (0..selections).map(|_| selection(random, calico)).collect(),
        ingress: direction(random),
        egress: direction(random),
        faults: Vec::new(),
        unevaluated: std::collections::BTreeSet::new(),
    }
}

fn selection(random: &mut Random, calico: bool) -> PodSelection {
    let mut selection = PodSelection {
        namespaces: selector(
            random,
            &["team", "env", NAMESPACE_NAME_LABEL],
            &["x", "y", "a"],
            50,
        ),
        pods: selector(random, &["app", "tier"], &["web", "db", ""], 50),
    };
    if calico {
        liken(random, &mut selection.namespaces);
        liken(random, &mut selection.pods);
    }
    selection
}

/// Makes a selector look for texts in values.
fn liken(random: &mut Random, selector: &mut Selector) {
    for requirement in &mut selector.requirements {
        if random.percent(25) {
            requirement.operator = Operator::Like {
                part: *random.one(&[Part::Anywhere, Part::Start, Part::End]),
                text: (*random.one(&["w", "b", "", "web", "x"])).to_owned(),
                negated: random.percent(40),
            };
        }
    }
}

fn tiered_rule(random: &mut Random, calico: bool) -> TieredRule {
    let action = match calico {
        true => *random.one(&[Action::Allow, Action::Deny, Action::Pass, Action::Log]),
        false => *random.one(&[Action::Allow, Action::Deny, Action::Pass]),
    };
    if random.percent(3) {
        return TieredRule::not_understood(action);
    }
    let Rule { peers, mut ports } = rule(random);
    let whole = |random: &mut Random, peer: Peer| match peer {
        Peer::Pods { namespaces, mut pods } => {
            let mut namespaces = namespaces.unwrap_or_default();
            if calico {
                liken(random, &mut namespaces);
                liken(random, &mut pods);
            }
            Peer::Pods {
                namespaces: Some(namespaces),
                pods,
            }
        }
        Peer::Block { .. } if random.aside().percent(35) => {
            let names = ["s0", "s0", "s1", "s1", "s2", "not there"];
            Peer::Addresses((*random.aside().one(&names)).to_owned())
        }
        Peer::Block { cidr, except } => Peer::Block {
            cidr,
            except: if calico { except } else { Vec::new() },
        },
        Peer::Addresses(_) => peer,
    };
    if calico && random.percent(15) {
        ports.get_or_insert_default().push(portless(random));
    }
    let peers = peers.map(|peers| peers.into_iter().map(|peer| whole(random, peer)).collect());
    let mut conditions = Conditions::default();
    if calico && random.percent(40) {
        let condition = |random: &mut Random| Condition {
            negated: random.percent(45),
            any: (0..random.below(3))
                .map(|_| {
                    let named = peer(random);
                    whole(random, named)
                })
                .collect(),
        };
        for list in [&mut conditions.peer, &mut conditions.own] {
            let many = random.below(3).min(random.below(3));
            list.extend((0..many).map(|_| condition(random)));
        }
        if random.percent(30) {
            conditions.not_ports = (0..1 + random.below(3)).map(|_| port(random)).collect();
            conditions.not_ports.push(portless(random));
        }
    }
    let own = &mut random.branch();
    if calico && own.percent(20) {
        conditions.source_ports = Some(source_ports(own));
    }
    if calico && own.percent(10) {
        conditions.not_source_ports = source_ports(own);
    }
    TieredRule {
        continues: false,
        action,
        peers,
        ports,
        conditions,
    }
}

/// Makes alternatives of one rule of neighbours, perhaps.
fn alternatives(rules: &mut [TieredRule], random: &mut Random) {
    for at in 1..rules.len() {
        if random.percent(60) {
            rules[at].action = rules[at - 1].action;
            rules[at].continues = true;
        }
    }
}

/// Has many rules ask for source ports.
#[allow(dead_code)] // not every test that shares this module needs it
pub(crate) fn ask_for_source_ports(cluster: &mut Cluster, random: &mut Random) {
    let policies: Vec<Arc<TieredPolicy>> = cluster.tiered.values().cloned().collect();
    for policy in policies {
        let mut policy = (*policy).clone();
        for rule in policy.ingress.iter_mut().chain(&mut policy.egress).flatten() {
            // Some ask for nothing else, so that it often matters.
            let alone = random.percent(40);
            if alone {
                (rule.peers, rule.ports, rule.conditions) = (None, None, Conditions::NONE);
            }
            if alone || random.percent(50) {
                rule.conditions.source_ports = Some(source_ports(random));
            }
            if random.percent(20) {
                rule.conditions.not_source_ports = source_ports(random);
            }
        }
        cluster.tiered.insert(policy.id.clone(), Arc::new(policy));
    }
}

/// Ranges, most of all protocols, and names; perhaps none.
fn source_ports(random: &mut Random) -> Vec<PortMatch> {
    let ranges = [(0, 0), (53, 53), (1024, 32767), (40000, 65535)];
    let mut ports = Vec::new();
    for (lo, hi) in ranges {
        if random.percent(40) {
            ports.push(PROTOCOLS.map(|protocol| PortMatch::Range { protocol, lo, hi }));
        }
    }
    for name in PORT_NAMES {
        if random.percent(25) {
            ports.push(PROTOCOLS.map(|protocol| PortMatch::Named {
                protocol,
                name: name.to_owned(),
            }));
        }
    }
    // Of most protocols.
    let mut ports = ports.concat();
    ports.retain(|_| random.percent(85));
    ports
}

/// Ports at the borders of these, and those that pods give names.
pub(crate) const SOURCES: [u16; 13] = [0, 1, 52, 53, 54, 80, 82, 1023, 1024, 8080, 40000, 65534, 65535];

/// A protocol without ports, or some of ICMP.
fn portless(random: &mut Random) -> PortMatch {
    let protocol = *random.one(&[1, 47, 58]);
    let own = &mut random.branch();
    match protocol {
        1 | 58 if own.percent(65) => PortMatch::Icmp {
            protocol,
            kind: *own.one(&TYPES),
            code: *own.one(&[None, None, Some(0), Some(1), Some(255)]),
        },
        protocol => PortMatch::IpProtocol(protocol),
    }
}

/// Types of ICMP.
const TYPES: [u8; 4] = [0, 8, 128, 255];

/// Type and code of ICMP, in place of a port.
pub(crate) fn icmp(random: &mut Random) -> u16 {
    let code = *random.one(&[0, 0, 1, 2, 254, 255]);
    u16::from_be_bytes([*random.one(&TYPES), code])
}

fn selector(random: &mut Random, keys: &[&str], values: &[&str], empty: usize) -> Selector {
    let mut requirements = Vec::new();
    if !random.percent(empty) {
        for _ in 0..1 + random.below(2) {
            let mut some = BTreeSet::new();
            for _ in 0..1 + random.below(2) {
                some.insert((*random.one(values)).to_owned());
            }
            if random.percent(5) {
                some = BTreeSet::from(["nobody".to_owned()]);
            }
            requirements.push(Requirement {
                key: (*random.one(keys)).to_owned(),
                operator: match random.below(5) {
                    0 | 1 => Operator::In(some),
                    2 => Operator::NotIn(some),
                    3 => Operator::Exists,
                    _ => Operator::DoesNotExist,
                },
            });
        }
    }
    Selector { requirements }
}

fn rule(random: &mut Random) -> Rule {
    Rule {
        peers: random.percent(75).then(|| {
            let count = if random.percent(4) { 0 } else { 1 + random.below(3) };
            (0..count).map(|_| peer(random)).collect()
        }),
        ports: random.percent(65).then(|| {
            let count = if random.percent(4) { 0 } else { 1 + random.below(3) };
            (0..count).map(|_| port(random)).collect()
        }),
    }
}

fn peer(random: &mut Random) -> Peer {
    if random.percent(50) {
        let namespaces = random.percent(60).then(|| {
            if random.percent(30) {
                let name = BTreeSet::from([(*random.one(&NAMESPACES)).to_owned()]);
                let requirement = Requirement {
                    key: NAMESPACE_NAME_LABEL.to_owned(),
                    operator: Operator::In(name),
                };
                return Selector {
                    requirements: vec![requirement],
                };
            }
            selector(random, &["team", "env"], &["x", "y", ""], 30)
        });
        return Peer::Pods {
            namespaces,
            pods: selector(random, &["app", "tier"], &["web", "db", ""], 40),
        };
    }
    let cidr = block(random);
    let mut except = Vec::new();
    for _ in 0..random.below(3) {
        // Inside the block: an address of it, and a longer prefix.
        let longest = cidr.max_prefix_len();
        if cidr.prefix_len() == longest {
            break;
        }
        let length = cidr.prefix_len() + 1 + random.below(usize::from(longest - cidr.prefix_len())) as u8;
        let inside = std::iter::repeat_with(|| address(random))
            .take(8)
            .find(|address| cidr.contains(address));
        let inside = inside.unwrap_or(cidr.network());
        except.push(IpNet::new(inside, length).expect("a prefix").trunc());
    }
    Peer::Block { cidr, except }
}

pub(crate) fn address(random: &mut Random) -> IpAddr {
    match random.below(8) {
        0..=3 => v4(random.below(16) as u8),
        4 => v6(random.below(16) as u16),
        5 => (*random.one(&["192.168.0.1", "192.168.0.2", "192.168.0.7", "10.2.0.1"]))
            .parse()
            .expect("an address"),
        6 => (*random.one(&["8.8.8.8", "9.9.9.9", "255.255.255.255", "0.0.0.0"]))
            .parse()
            .expect("an address"),
        _ => (*random.one(&[
            "2001:db8::1",
            "fd01::1",
            "fd02::1",
            "::",
            "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
        ]))
        .parse()
        .expect("an address"),
    }
}

fn block(random: &mut Random) -> IpNet {
    let address = address(random);
    let longest: u8 = if address.is_ipv4() { 32 } else { 128 };
    let length = match random.below(6) {
        0 => 0,
        1 => longest,
        2 => random.below(usize::from(longest)) as u8,
        _ => longest - random.below(9) as u8,
    };
    IpNet::new(address, length).expect("a prefix").trunc()
}

fn port(random: &mut Random) -> PortMatch {
    let protocol = *random.one(&PROTOCOLS);
    match random.below(5) {
        0 => PortMatch::All(protocol),
        1 | 2 => {
            let (a, b) = (*random.one(&PORTS), *random.one(&PORTS));
            let (lo, hi) = if random.percent(50) {
                (a, a)
            } else {
                (a.min(b), a.max(b))
            };
            PortMatch::Range { protocol, lo, hi }
        }
        _ => PortMatch::Named {
            protocol,
            name: (*random.one(&PORT_NAMES)).to_owned(),
        },
    }
}

/// One end of a flow.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum FlowEnd {
    Address(IpAddr),
    Name(ObjectKey),
}

#[derive(Clone, Debug)]
pub(crate) struct Flow {
    pub src: FlowEnd,
    pub dst: FlowEnd,
    pub protocol: u8,
    /// None: no port, or not readable.
    pub port: Option<u16>,
    /// Of a protocol that has ports.
    pub source: u16,
}

impl Flow {
    /// What policies see of layer 4.
    pub(crate) fn l4(&self) -> L4 {
        L4::of(self.protocol, self.port, self.source)
    }

    /// The same for the literal evaluator.
    pub(crate) fn service(&self) -> ringwall_evaluate::Service {
        let has_source = matches!(self.protocol, 6 | 17 | 132) && self.port.is_some();
        ringwall_evaluate::Service {
            protocol: self.protocol,
            port: self.port,
            source_port: has_source.then_some(self.source),
        }
    }
}

/// Flows between addresses at the borders of everything in the cluster, at the borders of its port ranges.
pub(crate) fn flows(cluster: &Cluster, random: &mut Random, count: usize) -> Vec<Flow> {
    let mut places = BTreeSet::new();
    let mut pods = Vec::new();
    for pod in cluster.pods.values() {
        pods.push(FlowEnd::Name(pod.key.clone()));
        pods.extend(pod.addresses.iter().copied().map(FlowEnd::Address));
    }
    for node in cluster.nodes.values() {
        places.extend(node.addresses.iter().copied().map(FlowEnd::Address));
    }
    let mut nets: Vec<IpNet> = cluster
        .nodes
        .values()
        .flat_map(|node| node.pod_cidrs.clone())
        .collect();
    nets.extend(&cluster.settings.pod_cidrs);
    nets.extend(&cluster.settings.service_cidrs);
    let mut ports = BTreeSet::from([0, 1, 79, 80, 65535]);
    for peer in cluster.named_peers() {
        for (cidr, except) in cluster.blocks_of(peer) {
            nets.push(cidr);
            nets.extend(except);
        }
    }
    for port in cluster.named_ports() {
        if let PortMatch::Range { lo, hi, .. } = port {
            ports.extend([lo - 1, *lo, *hi, hi.saturating_add(1)]);
        }
    }
    for port in cluster.pods.values().flat_map(|pod| &pod.named_ports) {
        ports.insert(port.number);
    }
    for net in nets {
        let ends: Vec<IpAddr> = match net {
            IpNet::V4(net) => {
                let (first, last) = (u32::from(net.network()), u32::from(net.broadcast()));
                [first.saturating_sub(1), first, last, last.saturating_add(1)]
                    .map(|address| IpAddr::V4(Ipv4Addr::from(address)))
                    .to_vec()
            }
            IpNet::V6(net) => {
                let (first, last) = (u128::from(net.network()), u128::from(net.broadcast()));
                [first.saturating_sub(1), first, last, last.saturating_add(1)]
                    .map(|address| IpAddr::V6(Ipv6Addr::from(address)))
                    .to_vec()
            }
        };
        places.extend(ends.into_iter().map(FlowEnd::Address));
    }
    for _ in 0..4 {
        places.insert(FlowEnd::Address(address(random)));
    }
    // The packet path and the sources have no IPv6 addresses that stand for IPv4 ones.
    places.retain(|place| !matches!(place, FlowEnd::Address(address) if address.to_canonical() != *address));
    let places: Vec<FlowEnd> = places.into_iter().collect();
    let ports: Vec<u16> = ports.into_iter().collect();
    let end = |random: &mut Random| {
        if !pods.is_empty() && random.percent(65) {
            random.one(&pods).clone()
        } else {
            random.one(&places).clone()
        }
    };
    (0..count)
        .map(|_| {
            let protocol = *random.one(&[6, 6, 6, 17, 17, 132, 1, 58, 47]);
            let port = match protocol {
                6 | 17 | 132 if !random.percent(8) => Some(*random.one(&ports)),
                1 | 58 => {
                    let own = &mut random.branch();
                    own.percent(70).then(|| icmp(own))
                }
                _ => None,
            };
            Flow {
                src: end(random),
                dst: end(random),
                protocol,
                port,
                source: match protocol {
                    6 | 17 | 132 => *random.branch().one(&SOURCES),
                    _ => 0,
                },
            }
        })
        .collect()
}
