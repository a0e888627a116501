//! The interfaces of a node and the pods behind them, from what the kernel says. Pure.
//!
//! A pod's port is the host's end of a veth (or netkit) pair whose other end is in another network namespace. An uplink can look
//! like that, too, where the node is itself a container; it holds an address of the node with a network behind it, outside of
//! the pod networks, which no CNI gives to the host's end of a pod's pair.
//!
//! A pod may change its own end, so its addresses are those that the CNI plugin names, or those that a predecessor knew; without
//! either the first one of each family that is seen there, before its processes run, unless it is another port's.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::{Duration, Instant},
};

use ipnet::IpNet;
use netlink_packet_route::link::{InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkLayerType, LinkMessage};

use crate::netlink::name_of;

/// How long after a port's first address another family's is taken for the pod's: a CNI assigns them one after the other.
const SETTLING: Duration = Duration::from_millis(500);

/// An interface of this network namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// Its index.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Whether its frames have an Ethernet header.
    pub ethernet: bool,
    /// The bridge or bond that it is a port of.
    pub master: Option<u32>,
    /// Whether it is a bridge.
    pub bridge: bool,
    /// The other end of its pair, in another namespace: that namespace's number here, and the index there.
    pub remote: Option<(i32, u32)>,
    /// In bytes of layer 3.
    pub mtu: u32,
}

impl Interface {
    /// What a message says; None for the loopback, which leads nowhere.
    pub fn of(message: &LinkMessage) -> Option<Self> {
        if message.header.flags.contains(LinkFlags::Loopback) {
            return None;
        }
        let mut found = Self {
            index: message.header.index,
            name: name_of(message)?.to_owned(),
            ethernet: message.header.link_layer_type == LinkLayerType::Ether,
            master: None,
            bridge: false,
            remote: None,
            mtu: 0,
        };
        let (mut pair, mut namespace, mut other) = (false, None, None);
        for attribute in &message.attributes {
            match attribute {
                LinkAttribute::Controller(index) => found.master = Some(*index),
                LinkAttribute::Mtu(mtu) => found.mtu = *mtu,
                LinkAttribute::Link(index) => other = Some(*index),
                LinkAttribute::LinkNetNsId(id) => namespace = u32::try_from(*id).is_ok().then_some(*id),
                LinkAttribute::LinkInfo(parts) => {
                    for part in parts {
                        match part {
                            LinkInfo::Kind(InfoKind::Bridge) => found.bridge = true,
                            LinkInfo::Kind(InfoKind::Veth) => pair = true,
                            LinkInfo::Kind(InfoKind::Other(kind)) => pair = kind == "netkit",
                            _ => {}
                        }
                    }
                }
                _ => {}
            }
        }
        found.remote = namespace.zip(other).filter(|_| pair);
        Some(found)
    }
}

/// The far end of a pair, as seen in the namespace that it is in.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FarEnd {
    /// Its Ethernet address.
    pub mac: [u8; 6],
    /// Its addresses without those of the link.
    pub addresses: BTreeSet<IpAddr>,
}

/// What is guarded at an interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Guarded {
    /// A pod's port, with what the pod may call itself.
    Pod(FarEnd),
    /// A bridge.
    Bridge,
    /// Anything else: the way to other machines, a tunnel, another container's.
    Other,
}

/// What is known of the ports of pods, and what they may call themselves.
#[derive(Debug, Default)]
pub struct Inventory {
    pods: BTreeMap<u32, KnownPod>,
    /// Whether new pods have the addresses that the CNI plugin names, and no others.
    only_assigned: bool,
    /// What was wrong when it was looked at last, by interface.
    problems: BTreeMap<u32, String>,
}

#[derive(Debug)]
struct KnownPod {
    name: String,
    /// When it was first seen with an address.
    since: Option<Instant>,
    end: FarEnd,
    /// Whether whoever made the interface has said whose it is: what is seen adds nothing to that.
    assigned: bool,
}

impl Inventory {
    /// What every interface is, by index. `own` are the addresses of this namespace with the interfaces that hold them; `far_end`
    /// looks into another namespace, and is asked for ports whose addresses are not settled.
    pub fn update(
        &mut self,
        interfaces: &[Interface],
        own: &BTreeSet<(u32, IpAddr, u8)>,
        pod_networks: &[IpNet],
        now: Instant,
        mut far_end: impl FnMut(i32, u32) -> Option<FarEnd>,
    ) -> BTreeMap<u32, Guarded> {
        let there: BTreeMap<u32, &str> = interfaces
            .iter()
            .map(|interface| (interface.index, interface.name.as_str()))
            .collect();
        self.pods
            .retain(|index, pod| there.get(index) == Some(&pod.name.as_str()));
        self.problems.clear();
        let mut found = BTreeMap::new();
        for interface in interfaces {
            let guarded = match interface.remote {
                Some(remote) if !is_uplink(interface.index, own, pod_networks) => {
                    Guarded::Pod(self.pod(interface, remote, now, &mut far_end))
                }
                _ if interface.bridge => Guarded::Bridge,
                _ => Guarded::Other,
            };
            found.insert(interface.index, guarded);
        }
        found
    }

    fn pod(
        &mut self,
        interface: &Interface,
        (namespace, index): (i32, u32),
        now: Instant,
        far_end: &mut impl FnMut(i32, u32) -> Option<FarEnd>,
    ) -> FarEnd {
        let is_assigned = self.only_assigned;
        let known = self.pods.entry(interface.index).or_insert_with(|| KnownPod {
            name: interface.name.clone(),
            since: None,
            end: FarEnd::default(),
            assigned: is_assigned,
        });
        if known.end.mac != [0; 6] && (known.assigned || is_over(known.since, now)) {
            return known.end.clone();
        }
        let Some(seen) = far_end(namespace, index) else {
            return known.end.clone();
        };
        let taken: BTreeSet<IpAddr> = self
            .pods
            .iter()
            .filter(|(other, _)| **other != interface.index)
            .flat_map(|(_, pod)| pod.end.addresses.iter().copied())
            .collect();
        let (claimed, free): (Vec<IpAddr>, Vec<IpAddr>) = seen
            .addresses
            .into_iter()
            .partition(|address| taken.contains(address));
        if let Some(address) = claimed.first() {
            self.problems.insert(
                interface.index,
                format!(
                    "interface {}: its pod has the address {address}, which is the pod's of another interface",
                    interface.name
                ),
            );
        }
        let Some(known) = self.pods.get_mut(&interface.index) else {
            return FarEnd::default();
        };
        if !known.assigned {
            for address in free {
                let has_family = |other: &IpAddr| other.is_ipv4() == address.is_ipv4();
                if !known.end.addresses.iter().any(has_family) {
                    known.end.addresses.insert(address);
                    known.since.get_or_insert(now);
                }
            }
        }
        if known.end.mac == [0; 6] {
            known.end.mac = seen.mac;
        }
        known.end.clone()
    }

    /// From now on, new pods have the addresses that the CNI plugin names, and no others.
    pub fn expect_assignments(&mut self) {
        self.only_assigned = true;
    }

    /// Takes what a predecessor knew: what each interface's pod may call itself. Before the first update.
    pub fn inherit(&mut self, interfaces: &[Interface], pods: &BTreeMap<u32, FarEnd>) {
        for interface in interfaces.iter().filter(|interface| interface.remote.is_some()) {
            if let Some(end) = pods.get(&interface.index) {
                let known = KnownPod {
                    name: interface.name.clone(),
                    since: None,
                    end: end.clone(),
                    assigned: true,
                };
                self.pods.insert(interface.index, known);
            }
        }
    }

    /// Takes the addresses of a pod from whoever made its interface.
    ///
    /// # Errors
    /// The interface is not a pod's port, or one of the addresses is another's. In words.
    pub fn assign(&mut self, index: u32, addresses: &BTreeSet<IpAddr>) -> Result<(), String> {
        for (other, pod) in self.pods.iter().filter(|(other, _)| **other != index) {
            if let Some(address) = addresses.intersection(&pod.end.addresses).next() {
                return Err(format!(
                    "{address} is the address of the pod of interface {} (index {other})",
                    pod.name
                ));
            }
        }
        let known = self
            .pods
            .get_mut(&index)
            .ok_or_else(|| format!("interface {index} is no pod's"))?;
        known.end.addresses.clone_from(addresses);
        known.assigned = true;
        Ok(())
    }

    /// Takes its addresses from a pod that ends: another pod may get them before the interface is gone.
    pub fn release(&mut self, index: u32) {
        if let Some(known) = self.pods.get_mut(&index) {
            known.end.addresses.clear();
            known.assigned = true;
        }
    }

    /// Whether a pod's port has no address yet, so it is worth another look soon.
    pub fn is_settling(&self, now: Instant) -> bool {
        self.pods
            .values()
            .any(|pod| !pod.assigned && !is_over(pod.since, now))
    }

    /// What is wrong with ports of pods.
    pub fn problems(&self) -> impl Iterator<Item = &str> {
        self.problems.values().map(String::as_str)
    }
}

/// Whether no further address of a pod is taken from what is seen.
fn is_over(since: Option<Instant>, now: Instant) -> bool {
    since.is_some_and(|since| now.duration_since(since) >= SETTLING)
}

/// Whether an interface holds an address of this machine that is in no pod network, and has neighbours.
fn is_uplink(index: u32, own: &BTreeSet<(u32, IpAddr, u8)>, pod_networks: &[IpNet]) -> bool {
    own.iter().any(|(holder, address, length)| {
        let single = if address.is_ipv4() { 32 } else { 128 };
        *holder == index
            && *length < single
            && !is_link_local(address)
            && !pod_networks.iter().any(|network| network.contains(address))
    })
}

/// Whether an address says nothing about whose it is.
pub fn is_link_local(address: &IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)] // a failed step is a failed test
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn interface(index: u32, remote: Option<(i32, u32)>) -> Interface {
        Interface {
            index,
            name: format!("veth{index}"),
            ethernet: true,
            master: None,
            bridge: false,
            remote,
            mtu: 1500,
        }
    }

    fn end(addresses: &[&str]) -> FarEnd {
        FarEnd {
            mac: [2; 6],
            addresses: addresses.iter().map(|text| ip(text)).collect(),
        }
    }

    fn pod(addresses: &[&str]) -> Guarded {
        Guarded::Pod(end(addresses))
    }

    /// One port, and what its far end shows.
    struct Port {
        inventory: Inventory,
        own: BTreeSet<(u32, IpAddr, u8)>,
        begin: Instant,
    }

    impl Port {
        fn new() -> Self {
            Self {
                inventory: Inventory::default(),
                own: BTreeSet::new(),
                begin: Instant::now(),
            }
        }

        fn shows(&mut self, after_millis: u64, addresses: &[&str]) -> Guarded {
            let networks = ["10.1.0.0/16".parse().unwrap()];
            let now = self.begin + Duration::from_millis(after_millis);
            let all = [interface(5, Some((1, 2)))];
            let mut found = self
                .inventory
                .update(&all, &self.own, &networks, now, |_, _| Some(end(addresses)));
            found.remove(&5).unwrap()
        }
    }

    #[test]
    fn a_pod_has_the_first_address_of_each_family_and_takes_no_more() {
        let mut port = Port::new();
        assert_eq!(port.shows(0, &[]), pod(&[]));
        assert!(port.inventory.is_settling(port.begin));
        assert_eq!(port.shows(900, &["10.1.0.5"]), pod(&["10.1.0.5"]));
        assert_eq!(port.shows(950, &["10.1.0.5", "10.1.0.9"]), pod(&["10.1.0.5"]));
        let wanted = pod(&["10.1.0.5", "fd00::5"]);
        assert_eq!(port.shows(990, &["10.1.0.5", "fd00::5"]), wanted);
        for (at, later) in [(1500, &["10.1.0.9"][..]), (9000, &[]), (9001, &["fd00::9"])] {
            assert_eq!(port.shows(at, later), wanted);
        }
        let mut late = Port::new();
        assert_eq!(late.shows(0, &["10.1.0.5"]), pod(&["10.1.0.5"]));
        assert_eq!(late.shows(600, &["10.1.0.5", "fd00::5"]), pod(&["10.1.0.5"]));
    }

    #[test]
    fn with_the_plugin_what_is_seen_counts_for_nothing() {
        let mut port = Port::new();
        port.inventory.expect_assignments();
        assert_eq!(port.shows(0, &["10.1.0.9"]), pod(&[]));
        port.inventory
            .assign(5, &BTreeSet::from([ip("10.1.0.5")]))
            .unwrap();
        assert_eq!(port.shows(10, &["10.1.0.9"]), pod(&["10.1.0.5"]));
        port.inventory.release(5);
        assert_eq!(port.shows(20, &["10.1.0.5"]), pod(&[]));
    }

    #[test]
    fn what_a_predecessor_knew_outlives_what_a_pod_made_of_its_end_since() {
        let mut port = Port::new();
        let known = |mac: u8, address: &str| FarEnd {
            mac: [mac; 6],
            ..end(&[address])
        };
        let pods = BTreeMap::from([(5, known(4, "10.1.0.5")), (9, known(4, "10.1.0.6"))]);
        port.inventory.inherit(&[interface(5, Some((1, 2)))], &pods);
        assert_eq!(port.shows(0, &["10.1.0.9"]), Guarded::Pod(known(4, "10.1.0.5")));
        // Programs that did not know the Ethernet address.
        let mut older = Port::new();
        let pods = BTreeMap::from([(5, known(0, "10.1.0.5"))]);
        older.inventory.inherit(&[interface(5, Some((1, 2)))], &pods);
        assert_eq!(older.shows(0, &["10.1.0.9"]), pod(&["10.1.0.5"]));
    }

    #[test]
    fn an_address_is_one_ports_alone() {
        let mut inventory = Inventory::default();
        let all = [interface(5, Some((1, 2))), interface(6, Some((2, 2)))];
        let found = inventory.update(&all, &BTreeSet::new(), &[], Instant::now(), |_, _| {
            Some(end(&["10.1.0.5"]))
        });
        assert_eq!(found[&5], pod(&["10.1.0.5"]));
        assert_eq!(found[&6], pod(&[]));
        assert_eq!(inventory.problems().count(), 1);
        assert!(inventory.assign(6, &BTreeSet::from([ip("10.1.0.5")])).is_err());
    }

    #[test]
    fn an_uplink_of_a_node_in_a_container_is_no_pods_port() {
        let mut port = Port::new();
        // The first is what the plugin ptp gives the host's end.
        let own = [("192.0.2.1", 32), ("10.1.0.1", 24), ("fe80::1", 64)];
        port.own
            .extend(own.map(|(address, length)| (5, ip(address), length)));
        assert_eq!(port.shows(0, &["10.1.0.5"]), pod(&["10.1.0.5"]));
        let mut uplink = Port::new();
        uplink.own.insert((5, ip("172.18.0.2"), 16));
        assert_eq!(uplink.shows(0, &["172.18.0.1"]), Guarded::Other);
    }
}
