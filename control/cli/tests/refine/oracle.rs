//! What the two literal evaluators say, and clusters that differ a little.

use std::{
    collections::{BTreeSet, HashMap},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::Arc,
};

use ipnet::IpNet;
use ringwall_analyse::refine::{Difference, Ends, Family, Region, Service, What};
use ringwall_evaluate::{Cause, Identity};
use ringwall_policy::{Cluster, Object, ObjectKey, ObjectRef, Peer, Pod, PolicyId, PortMatch};

use crate::{
    generate,
    generate::{SOURCES, icmp},
    random::Random,
};

/// A packet, its ends as indices of a difference's.
pub(crate) struct Packet {
    src: u32,
    dst: u32,
    family: Family,
    service: Service,
    port: u16,
    /// Of a service with ports.
    source: u16,
    /// Stands for [`Service::Other`].
    protocol: u8,
    /// Addresses to use for ranges instead of their examples.
    addresses: [Option<IpAddr>; 2],
}

impl Packet {
    pub(crate) fn is_covered(&self, region: &Region, ends: &Ends<'_, 2>) -> bool {
        let ports = (self.source, self.port);
        region.covers(ends, (self.src, self.dst), self.family, self.service, ports)
    }

    pub(crate) fn words(&self, ends: &Ends<'_, 2>) -> String {
        let end = |end: u32| format!("{:?}", ends.all[end as usize].what);
        format!(
            "{} -> {} {:?} {:?} {} from {} ({:?})",
            end(self.src),
            end(self.dst),
            self.family,
            self.service,
            self.port,
            self.source,
            self.addresses
        )
    }
}

/// What the evaluators say.
pub(crate) struct Wanted {
    /// Whether the first allows it, and the policies that decide; None where they agree.
    pub(crate) change: Option<(bool, Vec<String>)>,
    pub(crate) seen: Vec<&'static str>,
}

pub(crate) struct Oracle<'a> {
    sides: [&'a Cluster; 2],
    /// What was said about addresses before.
    known: [HashMap<IpAddr, ringwall_evaluate::End<'a>>; 2],
}

/// The first address of the family that is the pod's own, as the evaluator sees it.
fn own_address(cluster: &Cluster, pod: &Pod, family: Family) -> Option<IpAddr> {
    let has_namespace = cluster.namespaces.contains_key(&pod.key.namespace);
    pod.addresses
        .iter()
        .copied()
        .filter(|address| Family::of(*address) == family)
        .find(
            |address| match ringwall_evaluate::identify(cluster, *address).identity {
                Identity::Pod(owner) => owner.key == pod.key,
                Identity::Unknown => !has_namespace,
                _ => false,
            },
        )
}

/// By family, whether the endpoint can be asked about, and by which address; None where it is no endpoint.
fn resolved(cluster: &Cluster, key: &ObjectKey) -> Option<[Option<Option<IpAddr>>; 2]> {
    let pod = cluster
        .pods
        .get(key)
        .filter(|pod| !pod.finished && !pod.host_network)?;
    if pod.addresses.is_empty() {
        return Some([Some(None); 2]);
    }
    let resolved = Family::BOTH.map(|family| own_address(cluster, pod, family).map(Some));
    resolved.iter().any(Option::is_some).then_some(resolved)
}

fn claimed(cluster: &Cluster, address: IpAddr) -> bool {
    let mut pods = cluster.pods.values();
    pods.any(|pod| !pod.finished && !pod.host_network && pod.addresses.contains(&address))
}

impl<'a> Oracle<'a> {
    pub(crate) fn new(a: &'a Cluster, b: &'a Cluster) -> Self {
        let known = [a, b].map(|cluster| {
            let pods = cluster.pods.values().flat_map(|pod| pod.addresses.clone());
            pods.map(|address| (address, ringwall_evaluate::identify(cluster, address)))
                .collect()
        });
        Self { sides: [a, b], known }
    }

    /// Every endpoint that both clusters know is an end, the others are on one side, and no range is a pod.
    pub(crate) fn assert_ends(&self, found: &Difference<'_>, seed: u64) {
        let [a, b] = self.sides;
        let names: BTreeSet<&ObjectKey> = a.pods.keys().chain(b.pods.keys()).collect();
        for key in names {
            let views = [resolved(a, key), resolved(b, key)];
            let end = found.ends.endpoint(key).map(|end| &found.ends.all[end as usize]);
            let one_sided: Vec<_> = found.one_sided.iter().filter(|other| other.key == *key).collect();
            match views {
                [None, None] => assert!(end.is_none() && one_sided.is_empty(), "seed {seed}: {key}"),
                [Some(_), None] | [None, Some(_)] => {
                    assert!(end.is_none(), "seed {seed}: {key}");
                    let side = usize::from(resolved(a, key).is_none());
                    assert!(
                        one_sided.len() == 1 && one_sided[0].side == side,
                        "seed {seed}: {key}"
                    );
                    assert_eq!(one_sided[0].family, None, "seed {seed}: {key}");
                }
                [Some(from), Some(to)] => {
                    for family in Family::BOTH {
                        let (from, to) = (from[family as usize], to[family as usize]);
                        let both = from.zip(to);
                        let got = end.and_then(|end| end.resolved[family as usize]);
                        let got = got.map(|[from, to]| (from.address, to.address));
                        assert_eq!(got, both, "seed {seed}: {key}");
                        let noted = one_sided.iter().any(|other| other.family == Some(family));
                        assert_eq!(noted, from.is_some() != to.is_some(), "seed {seed}: {key}");
                    }
                }
            }
        }
        for end in &found.ends.all {
            if let What::Range { .. } = end.what {
                for face in end.resolved.iter().flatten().flatten() {
                    let address = face.address.unwrap();
                    assert!(
                        !claimed(a, address) && !claimed(b, address),
                        "seed {seed}: {address}"
                    );
                }
            }
        }
    }

    fn end(
        &self,
        side: usize,
        ends: &Ends<'_, 2>,
        packet: &Packet,
        source: bool,
    ) -> ringwall_evaluate::End<'a> {
        let cluster = self.sides[side];
        let index = if source { packet.src } else { packet.dst };
        let end = &ends.all[index as usize];
        let face = end.resolved[packet.family as usize].unwrap()[side];
        let instead = packet.addresses[usize::from(!source)];
        match (&end.what, instead.or(face.address)) {
            (What::Endpoint(key), None) => ringwall_evaluate::named(cluster, key).unwrap(),
            (_, Some(address)) => match self.known[side].get(&address) {
                Some(end) => *end,
                None => ringwall_evaluate::identify(cluster, address),
            },
            (What::Range { .. }, None) => panic!("a range without address"),
        }
    }

    pub(crate) fn judge(&self, packet: &Packet, ends: &Ends<'_, 2>) -> Wanted {
        let verdicts_from = |source: u16| {
            let service = ringwall_evaluate::Service {
                protocol: packet.protocol,
                port: (packet.service != Service::Other).then_some(packet.port),
                source_port: packet.service.has_ports().then_some(source),
            };
            [0, 1].map(|side| {
                let (src, dst) = (
                    self.end(side, ends, packet, true),
                    self.end(side, ends, packet, false),
                );
                ringwall_evaluate::judge(self.sides[side], &src, &dst, service)
            })
        };
        let verdicts = verdicts_from(packet.source);
        let mut seen = Vec::new();
        let [from, to] = &verdicts;
        let [other_from, other_to] = &verdicts_from(53);
        if from.allow() != to.allow() && other_from.allow() == other_to.allow() {
            seen.push("not from port 53");
        }
        let mut policies = BTreeSet::new();
        for (a, b) in [(&from.egress, &to.egress), (&from.ingress, &to.ingress)] {
            if a.allow != b.allow {
                policies.extend(named(&a.cause));
                policies.extend(named(&b.cause));
            }
        }
        // Traffic of an endpoint to itself where one side has a template: neither pod nor two pods.
        let itself = packet.src == packet.dst && !ends.all[packet.src as usize].meets_itself;
        if itself {
            seen.push("self");
        }
        let change = (from.allow() != to.allow() && !itself).then(|| {
            (
                from.allow(),
                policies
                    .iter()
                    .map(PolicyId::label)
                    .collect::<BTreeSet<_>>()
                    .into_iter()
                    .collect(),
            )
        });
        seen.push(match &change {
            None => "same",
            Some(_) => "changes",
        });
        seen.push(packet.family.name());
        if let Some((from, _)) = &change {
            seen.push(if *from { "closed" } else { "opened" });
            let node = |verdict: &ringwall_evaluate::Verdict| verdict.ingress.cause == Cause::HostingNode;
            if node(&verdicts[0]) != node(&verdicts[1]) {
                seen.push("node on one side");
            }
            let what = |end: u32| &ends.all[end as usize].what;
            let template = |end: u32| ends.all[end as usize].meets_itself;
            match (what(packet.src), what(packet.dst)) {
                (What::Endpoint(_), What::Range { .. }) => seen.push("pod to address"),
                (What::Range { .. }, What::Endpoint(_)) => seen.push("address to pod"),
                (What::Range { .. }, What::Range { .. }) => seen.push("address to address"),
                (What::Endpoint(_), What::Endpoint(_)) => {
                    if template(packet.src) || template(packet.dst) {
                        seen.push("template");
                    }
                    let nowhere = |end: u32| {
                        let resolved = ends.all[end as usize].resolved[packet.family as usize].unwrap();
                        resolved.iter().any(|face| face.address.is_none())
                    };
                    if nowhere(packet.src) {
                        seen.push("without address");
                    }
                }
            }
            if packet.service.has_types() {
                seen.push("type of ICMP");
            } else if packet.service == Service::Other {
                seen.push("portless");
            } else if packet.port == 0 {
                seen.push("port 0");
            }
        } else if verdicts
            .iter()
            .all(|verdict| verdict.ingress.cause == Cause::HostingNode)
        {
            seen.push("node on both");
        }
        Wanted { change, seen }
    }
}

fn named(cause: &Cause) -> Vec<PolicyId> {
    match cause {
        Cause::Rule { policy, .. } | Cause::Denied { policy, .. } => vec![policy.clone()],
        Cause::Isolated { policies, .. } => policies.clone(),
        _ => Vec::new(),
    }
}

/// Packets between representatives of all pairs of classes at a few ports, and `more` between any ends, by any address
/// of ranges, at ports where policies change their mind.
pub(crate) fn packets(
    found: &Difference<'_>,
    a: &Cluster,
    b: &Cluster,
    random: &mut Random,
    more: usize,
) -> Vec<Packet> {
    let ends = &found.ends;
    let ports: Vec<u16> = ports(a, b).into_iter().collect();
    let services = services(&[a, b]);
    let mut packets = Vec::new();
    let mut add = |src: u32, dst: u32, service: Service, port: u16, random: &mut Random, exact: bool| {
        for family in Family::BOTH {
            let speaks = |end: u32| ends.all[end as usize].resolved[family as usize].is_some();
            if speaks(src) && speaks(dst) && service.is_of(family) {
                let address = |end: u32, random: &mut Random| match exact {
                    true => None,
                    false => inside(&ends.all[end as usize].what, a, b, random),
                };
                let protocol = match service {
                    Service::Tcp => 6,
                    Service::Udp => 17,
                    Service::Sctp => 132,
                    Service::Icmp => 1,
                    Service::IcmpV6 => 58,
                    Service::Other => *random.one(&[1, 58, 47, 255, 0]),
                };
                packets.push(Packet {
                    src,
                    dst,
                    family,
                    service,
                    port: match service {
                        Service::Other => u16::from(protocol),
                        _ if service.has_types() => icmp(random),
                        _ => port,
                    },
                    source: *random.branch().one(&SOURCES),
                    protocol,
                    addresses: [address(src, random), address(dst, random)],
                });
            }
        }
    };
    for src in &ends.classes {
        for dst in &ends.classes {
            let (Some(first), Some(last)) = (src.members.first(), dst.members.last()) else {
                continue;
            };
            add(*first, *last, Service::Other, 0, random, true);
            let service = *random.one(&[Service::Tcp, Service::Udp, Service::Sctp]);
            add(*first, *last, service, *random.one(&ports), random, true);
        }
    }
    for pair in &ends.hosted {
        let service = *random.one(&services);
        add(
            pair.endpoint,
            pair.node,
            service,
            *random.one(&ports),
            random,
            true,
        );
        add(
            pair.node,
            pair.endpoint,
            service,
            *random.one(&ports),
            random,
            true,
        );
    }
    let endpoints = ends
        .all
        .iter()
        .filter(|end| matches!(end.what, What::Endpoint(_)))
        .count();
    for _ in 0..more {
        let end = |random: &mut Random| {
            let among = if endpoints > 0 && random.percent(60) {
                endpoints
            } else {
                ends.all.len()
            };
            random.below(among) as u32
        };
        let (src, dst) = (end(random), end(random));
        let service = *random.one(&services);
        add(src, dst, service, *random.one(&ports), random, false);
    }
    packets
}

/// What is told apart: types of ICMP where some rule asks for one.
pub(crate) fn services(clusters: &[&Cluster]) -> Vec<Service> {
    let asks = |port: &PortMatch| matches!(port, PortMatch::Icmp { .. });
    let by_type = clusters.iter().any(|cluster| cluster.named_ports().any(asks));
    let all = Service::ALL.into_iter();
    all.filter(|service| by_type || !service.has_types()).collect()
}

/// An address of a range that no pod has.
fn inside(what: &What, a: &Cluster, b: &Cluster, random: &mut Random) -> Option<IpAddr> {
    let What::Range { first, last } = what else {
        return None;
    };
    let at = |offset: u128| match (first, last) {
        (IpAddr::V4(first), IpAddr::V4(last)) => {
            let (first, last) = (u32::from(*first), u32::from(*last));
            let offset = (offset % (u128::from(last - first) + 1)) as u32;
            IpAddr::V4(Ipv4Addr::from(first + offset))
        }
        (IpAddr::V6(first), IpAddr::V6(last)) => {
            let (first, last) = (u128::from(*first), u128::from(*last));
            IpAddr::V6(Ipv6Addr::from(first + offset % (last - first).saturating_add(1)))
        }
        _ => panic!("families are mixed"),
    };
    let offset = match random.below(3) {
        0 => u128::from(random.next() % 4),
        1 => u128::from(random.next()) << 64 | u128::from(random.next()),
        _ => u128::MAX - u128::from(random.next() % 4),
    };
    Some(at(offset)).filter(|address| {
        let mapped = address.to_canonical() != *address;
        !mapped && !claimed(a, *address) && !claimed(b, *address)
    })
}

pub(crate) fn ports(a: &Cluster, b: &Cluster) -> BTreeSet<u16> {
    let mut ports = BTreeSet::from([0, 1, 65535]);
    for cluster in [a, b] {
        for port in cluster.named_ports() {
            if let PortMatch::Range { lo, hi, .. } = port {
                ports.extend([lo - 1, *lo, *hi, hi.saturating_add(1)]);
            }
        }
        ports.extend(
            cluster
                .pods
                .values()
                .flat_map(|pod| &pod.named_ports)
                .map(|port| port.number),
        );
    }
    ports
}

/// The cluster with some objects changed.
pub(crate) fn edit(cluster: &Cluster, random: &mut Random) -> Cluster {
    let mut edited = cluster.clone();
    let other = generate::with_tiers(random);
    for _ in 0..1 + random.below(4) {
        match random.below(9) {
            0 => {
                let keys: Vec<ObjectKey> = edited.policies.keys().cloned().collect();
                if !keys.is_empty() {
                    edited.remove(&ObjectRef::NetworkPolicy(random.one(&keys).clone()));
                }
            }
            1 => {
                if let Some(policy) = other.policies.values().next() {
                    edited.insert(Object::NetworkPolicy((**policy).clone()));
                }
            }
            2 => {
                let pods: Vec<Arc<Pod>> = edited.pods.values().cloned().collect();
                if !pods.is_empty() {
                    let mut pod = (**random.one(&pods)).clone();
                    pod.labels
                        .insert("app".to_owned(), (*random.one(&["web", "db"])).to_owned());
                    edited.insert(Object::Pod(pod));
                }
            }
            3 => {
                let pods: Vec<Arc<Pod>> = edited.pods.values().cloned().collect();
                if !pods.is_empty() {
                    let mut pod = (**random.one(&pods)).clone();
                    pod.node = Some((*random.one(&["n1", "n2"])).to_owned());
                    edited.insert(Object::Pod(pod));
                }
            }
            4 => {
                let pods: Vec<Arc<Pod>> = other.pods.values().cloned().collect();
                if !pods.is_empty() {
                    edited.insert(Object::Pod((**random.one(&pods)).clone()));
                }
            }
            5 => edited.settings = other.settings.clone(),
            6 => {
                if let Some((id, policy)) = other.tiered.iter().next() {
                    edited.tiered.insert(id.clone(), Arc::clone(policy));
                }
            }
            7 => {
                if let Some(id) = edited.tiered.keys().next().cloned() {
                    edited.tiered.remove(&id);
                }
            }
            _ => {
                let policies: Vec<_> = edited.policies.values().cloned().collect();
                if !policies.is_empty() {
                    let mut policy = (**random.one(&policies)).clone();
                    for rule in policy.ingress.iter_mut().chain(&mut policy.egress).flatten() {
                        for peer in rule.peers.iter_mut().flatten() {
                            if let Peer::Block { cidr, except } = peer {
                                *cidr = IpNet::new(cidr.addr(), cidr.prefix_len().saturating_sub(1))
                                    .unwrap()
                                    .trunc();
                                except.clear();
                            }
                        }
                    }
                    edited.insert(Object::NetworkPolicy(policy));
                }
            }
        }
    }
    edited
}

/// Two clusters with little in common, and what sets them apart.
pub(crate) fn far_apart(random: &mut Random) -> (Cluster, Cluster, &'static str) {
    let full = generate::cluster(random);
    let mut other = full.clone();
    let what = match random.below(4) {
        0 => {
            for key in full.policies.keys() {
                other.remove(&ObjectRef::NetworkPolicy(key.clone()));
            }
            "no policies"
        }
        1 => {
            let pods: Vec<Arc<Pod>> = full.pods.values().cloned().collect();
            for (pod, other_pod) in pods.iter().zip(pods.iter().cycle().skip(1)) {
                let mut pod = (**pod).clone();
                pod.labels = other_pod.labels.clone();
                other.insert(Object::Pod(pod));
            }
            "other labels"
        }
        2 => {
            other = Cluster {
                settings: full.settings.clone(),
                ..Cluster::default()
            };
            "empty"
        }
        _ => {
            let policies: Vec<_> = full.policies.values().cloned().collect();
            for (policy, place) in policies.iter().zip(policies.iter().cycle().skip(1)) {
                let mut policy = (**policy).clone();
                policy.subjects = place.subjects.clone();
                policy.key = place.key.clone();
                other.insert(Object::NetworkPolicy(policy));
            }
            "other places"
        }
    };
    match random.percent(50) {
        true => (full, other, what),
        false => (other, full, what),
    }
}

/// The cluster with pods and nodes under other names, in another order, and put together in another order.
pub(crate) fn rename(cluster: &Cluster, random: &mut Random) -> Cluster {
    let mut objects = Vec::new();
    for pod in cluster.pods.values() {
        let mut pod = (**pod).clone();
        // Which of two pods has an address must not depend on their names.
        pod.uid = format!("{}-{}", pod.uid, pod.key);
        pod.key.name = mirrored(&pod.key.name);
        pod.node = pod.node.as_deref().map(|node| format!("zz-{node}"));
        objects.push(Object::Pod(pod));
    }
    for node in cluster.nodes.values() {
        let mut node = (**node).clone();
        node.name = format!("zz-{}", node.name);
        objects.push(Object::Node(node));
    }
    objects.extend(
        cluster
            .namespaces
            .values()
            .map(|it| Object::Namespace((**it).clone())),
    );
    objects.extend(
        cluster
            .policies
            .values()
            .map(|it| Object::NetworkPolicy((**it).clone())),
    );
    random.shuffle(&mut objects);
    let mut renamed = Cluster {
        settings: cluster.settings.clone(),
        tiered: cluster.tiered.clone(),
        tiers: cluster.tiers.clone(),
        address_sets: cluster.address_sets.clone(),
        ..Cluster::default()
    };
    for object in objects {
        renamed.insert(object);
    }
    renamed
}

/// `p3` becomes `q96`, which sorts the other way round.
fn mirrored(name: &str) -> String {
    let number: u32 = name.trim_start_matches('p').parse().unwrap();
    format!("q{}", 99 - number)
}

/// A line of a renamed cluster's difference in the words of the original.
pub(crate) fn renamed_line(line: &str) -> String {
    let original = |word: &str| -> String {
        let Some((namespace, number)) = word.split_once("/q") else {
            return word.to_owned();
        };
        match number.parse::<u32>() {
            Ok(number) => format!("{namespace}/p{}", 99 - number),
            Err(_) => word.to_owned(),
        }
    };
    let side = |side: &str| {
        let (mut names, others): (Vec<String>, Vec<String>) = side
            .split(' ')
            .map(original)
            .partition(|word| word.contains("/p"));
        names.sort();
        names.extend(others);
        names.join(" ")
    };
    let (src, rest) = line.split_once(" -> ").unwrap();
    let at = rest.find(|letter: char| letter.is_ascii_uppercase()).unwrap();
    format!("{} -> {} {}", side(src), side(rest[..at].trim_end()), &rest[at..])
}
