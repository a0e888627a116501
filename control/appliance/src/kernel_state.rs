//! What the kernel knows of links, addresses, routes and neighbours, in the few words that forwarding needs. Pure.
//!
//! Neighbours follow the kernel's messages one by one. Routes do not: the kernel removes IPv4 routes without a word
//! when a link goes down, and its notifications of replaced and appended routes do not name what they replace. So
//! any message about links, addresses or routes only marks what has to be read again.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ipnet::IpNet;
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    address::{AddressAttribute, AddressMessage},
    link::{InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkMessage},
    neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage},
    route::{
        RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteNextHop, RouteNextHopFlags,
        RouteType, RouteVia,
    },
};

/// An interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Its name.
    pub name: String,
    /// Its Ethernet address; zero where it has none.
    pub mac: [u8; 6],
    /// In bytes of layer 3.
    pub mtu: u32,
    /// Set up by the administrator.
    pub up: bool,
    /// Set to take in frames for every Ethernet address.
    pub promiscuous: bool,
    /// Has a carrier.
    pub carrier: bool,
    /// Whether it is one end of a veth pair.
    pub veth: bool,
    /// Index of the other end of a veth pair, in that end's namespace.
    pub peer: Option<u32>,
    /// The alias (`ip link set alias`).
    pub alias: Option<String>,
}

/// What a route says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Send it on, by one of these (never empty).
    Forward(Vec<Hop>),
    /// Drop without a word.
    Blackhole,
    /// Drop; the sender may be told.
    Unreachable,
    /// Drop; the sender may be told.
    Prohibit,
    /// A kind of route that is not understood: refused, never guessed.
    Unsupported(&'static str),
}

/// One way on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Hop {
    /// Index of the interface.
    pub link: u32,
    /// The next hop; none where the destination is itself on the link. May be IPv6 for an IPv4 route.
    pub gateway: Option<IpAddr>,
    /// Share of the traffic, from 1.
    pub weight: u16,
}

/// A route of table main.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// Destinations.
    pub prefix: IpNet,
    /// The lowest wins.
    pub metric: u32,
    /// What it says.
    pub action: Action,
}

/// The kernel's state.
#[derive(Clone, Debug, Default)]
pub struct KernelState {
    /// Interfaces by index.
    pub links: BTreeMap<u32, Link>,
    /// Addresses of this host, with the interface that holds each and the length of its prefix.
    pub addresses: BTreeSet<(u32, IpAddr, u8)>,
    /// The route in force for each prefix.
    pub routes: BTreeMap<IpNet, Route>,
    /// Neighbours of which the kernel knows something, by interface and address.
    pub neighbours: BTreeMap<(u32, IpAddr), KernelNeighbour>,
    /// Neighbours that an administrator has set: nothing but their word changes them.
    pub fixed: BTreeSet<(u32, IpAddr)>,
}

/// What the kernel knows of a neighbour.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KernelNeighbour {
    /// The Ethernet address that it would send to.
    Resolved([u8; 6]),
    /// It asked, and nobody answered.
    Failed,
}

/// What a change makes out of date.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OutOfDate {
    /// Links, addresses and routes have to be read again.
    pub all: bool,
    /// Routes have to be read again.
    pub routes: bool,
    /// A neighbour changed (and was taken over already).
    pub neighbours: bool,
}

impl OutOfDate {
    /// Whether anything is out of date.
    pub fn any(self) -> bool {
        self.all || self.routes || self.neighbours
    }

    /// Both.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self {
            all: self.all || other.all,
            routes: self.routes || other.routes,
            neighbours: self.neighbours || other.neighbours,
        }
    }
}

impl KernelState {
    /// Takes the interfaces of a dump.
    pub fn set_links(&mut self, messages: &[LinkMessage]) {
        self.links = messages.iter().map(|m| (m.header.index, link(m))).collect();
    }

    /// Takes the addresses of a dump.
    pub fn set_addresses(&mut self, messages: &[AddressMessage]) {
        self.addresses = messages.iter().filter_map(address).collect();
    }

    /// Takes the routes of a dump of table main.
    pub fn set_routes(&mut self, messages: &[RouteMessage]) {
        self.routes.clear();
        for route in messages.iter().filter_map(route) {
            match self.routes.get(&route.prefix) {
                // The first of equals is the one in force.
                Some(best) if best.metric <= route.metric => {}
                _ => {
                    self.routes.insert(route.prefix, route);
                }
            }
        }
    }

    /// Takes the neighbours of a dump.
    pub fn set_neighbours(&mut self, messages: &[NeighbourMessage]) {
        self.neighbours.clear();
        self.fixed.clear();
        for message in messages {
            if let Some((key, known)) = neighbour(message) {
                self.fix(key, is_fixed(message));
                if let Some(known) = known {
                    self.neighbours.insert(key, known);
                }
            }
        }
    }

    fn fix(&mut self, key: (u32, IpAddr), fixed: bool) {
        if fixed {
            self.fixed.insert(key);
        } else {
            self.fixed.remove(&key);
        }
    }

    /// Takes one notification; says what it makes out of date.
    pub fn apply(&mut self, message: &RouteNetlinkMessage) -> OutOfDate {
        let mut stale = OutOfDate::default();
        match message {
            RouteNetlinkMessage::NewLink(m) => {
                // Statistics and wireless events come as RTM_NEWLINK too; AF_BRIDGE ones are not about the link.
                stale.all = m.header.interface_family != AddressFamily::Bridge
                    && self.links.get(&m.header.index) != Some(&link(m));
            }
            RouteNetlinkMessage::DelLink(m) => stale.all = m.header.interface_family != AddressFamily::Bridge,
            RouteNetlinkMessage::NewAddress(_) | RouteNetlinkMessage::DelAddress(_) => stale.all = true,
            RouteNetlinkMessage::NewRoute(m) | RouteNetlinkMessage::DelRoute(m) => {
                stale.routes = table(m) == u32::from(RouteHeader::RT_TABLE_MAIN)
                    && !m.header.flags.contains(RouteFlags::Cloned);
            }
            RouteNetlinkMessage::NewNeighbour(m) => {
                if let Some((key, known)) = neighbour(m) {
                    self.fix(key, is_fixed(m));
                    let before = match known {
                        Some(known) => self.neighbours.insert(key, known),
                        None => self.neighbours.remove(&key),
                    };
                    stale.neighbours = before != known;
                }
            }
            RouteNetlinkMessage::DelNeighbour(m) => {
                if let Some((key, _)) = neighbour(m) {
                    self.fixed.remove(&key);
                    stale.neighbours = self.neighbours.remove(&key).is_some();
                }
            }
            _ => {}
        }
        stale
    }

    /// Index and link of a name.
    pub fn link_named(&self, name: &str) -> Option<(u32, &Link)> {
        self.links
            .iter()
            .find(|(_, link)| link.name == name)
            .map(|(index, link)| (*index, link))
    }
}

fn link(message: &LinkMessage) -> Link {
    let mut found = Link {
        name: String::new(),
        mac: [0; 6],
        mtu: 0,
        up: message.header.flags.contains(LinkFlags::Up),
        promiscuous: message.header.flags.contains(LinkFlags::Promisc),
        carrier: message.header.flags.contains(LinkFlags::LowerUp),
        veth: false,
        peer: None,
        alias: None,
    };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => found.name.clone_from(name),
            LinkAttribute::Address(bytes) => {
                if let Ok(mac) = bytes.as_slice().try_into() {
                    found.mac = mac;
                }
            }
            LinkAttribute::Mtu(mtu) => found.mtu = *mtu,
            LinkAttribute::Link(peer) => found.peer = Some(*peer),
            LinkAttribute::IfAlias(alias) => found.alias = Some(alias.clone()),
            LinkAttribute::LinkInfo(infos) => {
                found.veth |= infos
                    .iter()
                    .any(|info| matches!(info, LinkInfo::Kind(InfoKind::Veth)));
            }
            _ => {}
        }
    }
    found
}

/// An address of this host: interface, address, length of the prefix.
pub fn address(message: &AddressMessage) -> Option<(u32, IpAddr, u8)> {
    // IFA_LOCAL is ours; IFA_ADDRESS is the other end on a point-to-point link and ours elsewhere.
    let mut ours = None;
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Local(address) => ours = Some(*address),
            AddressAttribute::Address(address) if ours.is_none() => ours = Some(*address),
            _ => {}
        }
    }
    ours.map(|address| (message.header.index, address, message.header.prefix_len))
}

fn table(message: &RouteMessage) -> u32 {
    message
        .attributes
        .iter()
        .find_map(|a| match a {
            RouteAttribute::Table(table) => Some(*table),
            _ => None,
        })
        .unwrap_or(u32::from(message.header.table))
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(v4) => Some(IpAddr::V4(*v4)),
        RouteAddress::Inet6(v6) => Some(IpAddr::V6(*v6)),
        _ => None,
    }
}

fn route(message: &RouteMessage) -> Option<Route> {
    let header = &message.header;
    if table(message) != u32::from(RouteHeader::RT_TABLE_MAIN) || header.flags.contains(RouteFlags::Cloned) {
        return None;
    }
    let any = match header.address_family {
        AddressFamily::Inet => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        AddressFamily::Inet6 => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        _ => return None,
    };
    let mut destination = any;
    let mut metric = 0;
    let mut single = Single::default();
    let mut multipath = None;
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(a) => destination = ip(a)?,
            RouteAttribute::Priority(m) => metric = *m,
            RouteAttribute::MultiPath(hops) => multipath = Some(hops),
            other => single.take(other),
        }
    }
    let prefix = IpNet::new(destination, header.destination_prefix_length).ok()?;
    // Link-local and multicast destinations are never forwarded.
    if let IpAddr::V6(v6) = prefix.addr()
        && (v6.is_unicast_link_local() || v6.is_multicast())
    {
        return None;
    }
    let action = match header.kind {
        RouteType::Unicast if header.tos != 0 => return None, // chosen by TOS: the plain route of the prefix stands
        RouteType::Unicast if header.source_prefix_length != 0 => {
            Action::Unsupported("a route by source address")
        }
        RouteType::Unicast => forward(header.flags, &single, multipath.map(Vec::as_slice)),
        RouteType::BlackHole => Action::Blackhole,
        RouteType::Unreachable => Action::Unreachable,
        RouteType::Prohibit => Action::Prohibit,
        RouteType::Throw => return None, // in the last table there is nothing after it
        RouteType::Local | RouteType::Broadcast | RouteType::Anycast | RouteType::Multicast => return None,
        _ => Action::Unsupported("an unknown type of route"),
    };
    Some(Route {
        prefix,
        metric,
        action,
    })
}

/// The attributes that a route with one next hop has itself, and each hop of a multipath route has.
#[derive(Default)]
struct Single {
    link: Option<u32>,
    gateway: Option<IpAddr>,
    encapsulated: bool,
    object: bool,
}

impl Single {
    fn take(&mut self, attribute: &RouteAttribute) {
        match attribute {
            RouteAttribute::Oif(link) => self.link = Some(*link),
            RouteAttribute::Gateway(address) => self.gateway = ip(address),
            RouteAttribute::Via(RouteVia::Inet(v4)) => self.gateway = Some(IpAddr::V4(*v4)),
            RouteAttribute::Via(RouteVia::Inet6(v6)) => self.gateway = Some(IpAddr::V6(*v6)),
            RouteAttribute::EncapType(_) | RouteAttribute::Encap(_) => self.encapsulated = true,
            RouteAttribute::NhId(_) => self.object = true,
            _ => {}
        }
    }

    fn hop(&self, weight: u16) -> Result<Hop, &'static str> {
        if self.encapsulated {
            return Err("a route that encapsulates");
        }
        match self.link {
            Some(link) => Ok(Hop {
                link,
                gateway: self.gateway,
                weight,
            }),
            None if self.object => {
                Err("a next-hop object without its content (sysctl nexthop_compat_mode=0)")
            }
            None => Err("a route without an interface"),
        }
    }
}

fn forward(flags: RouteFlags, single: &Single, multipath: Option<&[RouteNextHop]>) -> Action {
    let Some(hops) = multipath else {
        if flags.contains(RouteFlags::Dead) {
            return Action::Unreachable;
        }
        return match single.hop(1) {
            Ok(hop) => Action::Forward(vec![hop]),
            Err(why) => Action::Unsupported(why),
        };
    };
    let live: Vec<&RouteNextHop> = hops
        .iter()
        .filter(|h| !h.flags.contains(RouteNextHopFlags::Dead))
        .collect();
    let connected: Vec<&RouteNextHop> = live
        .iter()
        .copied()
        .filter(|h| !h.flags.contains(RouteNextHopFlags::Linkdown))
        .collect();
    let mut found = Vec::new();
    // A hop without carrier is better than none: the kernel, too, keeps such a route unless told otherwise.
    for hop in if connected.is_empty() { live } else { connected } {
        let mut one = Single {
            link: Some(hop.interface_index),
            ..Single::default()
        };
        for attribute in &hop.attributes {
            one.take(attribute);
        }
        match one.hop(u16::from(hop.hops) + 1) {
            Ok(hop) => found.push(hop),
            Err(why) => return Action::Unsupported(why),
        }
    }
    if found.is_empty() {
        return Action::Unreachable;
    }
    found.sort_unstable(); // the order of a dump must not move flows from one path to another
    Action::Forward(found)
}

/// Whether an administrator has set a neighbour: PERMANENT, NOARP.
pub fn is_fixed(message: &NeighbourMessage) -> bool {
    u16::from(message.header.state) & (0x80 | 0x40) != 0
}

/// The key of a neighbour, and what the kernel knows of it.
fn neighbour(message: &NeighbourMessage) -> Option<((u32, IpAddr), Option<KernelNeighbour>)> {
    /// REACHABLE, STALE, DELAY, PROBE, NOARP, PERMANENT: the states in which the kernel itself would send.
    const VALID: u16 = 0x02 | 0x04 | 0x08 | 0x10 | 0x40 | 0x80;
    const FAILED: u16 = 0x20;
    let mut destination = None;
    let mut mac = None;
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(v4)) => {
                destination = Some(IpAddr::V4(*v4))
            }
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(v6)) => {
                destination = Some(IpAddr::V6(*v6))
            }
            NeighbourAttribute::LinkLayerAddress(bytes) => mac = bytes.as_slice().try_into().ok(),
            _ => {}
        }
    }
    if !matches!(message.header.family, AddressFamily::Inet | AddressFamily::Inet6) {
        return None; // bridge forwarding entries
    }
    let state = u16::from(message.header.state);
    let known = match mac {
        _ if state & FAILED != 0 => Some(KernelNeighbour::Failed),
        Some(mac) if state & VALID != 0 => Some(KernelNeighbour::Resolved(mac)),
        _ => None,
    };
    Some(((message.header.ifindex, destination?), known))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)] // a test that panics has failed
mod tests {
    use netlink_packet_route::{neighbour::NeighbourState, route::RouteLwEnCapType};

    use super::*;

    fn v4_route(prefix: &str, attributes: Vec<RouteAttribute>) -> RouteMessage {
        let prefix: IpNet = prefix.parse().unwrap();
        let mut m = RouteMessage::default();
        m.header.address_family = match prefix {
            IpNet::V4(_) => AddressFamily::Inet,
            IpNet::V6(_) => AddressFamily::Inet6,
        };
        m.header.table = RouteHeader::RT_TABLE_MAIN;
        m.header.kind = RouteType::Unicast;
        m.header.destination_prefix_length = prefix.prefix_len();
        if prefix.prefix_len() > 0 {
            m.attributes
                .push(RouteAttribute::Destination(match prefix.addr() {
                    IpAddr::V4(a) => RouteAddress::Inet(a),
                    IpAddr::V6(a) => RouteAddress::Inet6(a),
                }));
        }
        m.attributes.extend(attributes);
        m
    }

    fn actions(messages: &[RouteMessage]) -> Vec<(String, Action)> {
        let mut view = KernelState::default();
        view.set_routes(messages);
        view.routes
            .into_values()
            .map(|r| (r.prefix.to_string(), r.action))
            .collect()
    }

    #[test]
    fn connected_gateway_and_onlink_routes_are_forwarded() {
        let gateway: Ipv4Addr = "192.0.2.1".parse().unwrap();
        let mut onlink = v4_route(
            "198.51.100.0/24",
            vec![
                RouteAttribute::Oif(4),
                RouteAttribute::Gateway(RouteAddress::Inet(gateway)),
            ],
        );
        onlink.header.flags = RouteFlags::Onlink;
        let got = actions(&[
            v4_route("10.1.1.2/32", vec![RouteAttribute::Oif(3)]),
            v4_route(
                "0.0.0.0/0",
                vec![
                    RouteAttribute::Oif(4),
                    RouteAttribute::Gateway(RouteAddress::Inet(gateway)),
                ],
            ),
            onlink,
        ]);
        let via = Action::Forward(vec![Hop {
            link: 4,
            gateway: Some(gateway.into()),
            weight: 1,
        }]);
        assert_eq!(
            got,
            [
                ("0.0.0.0/0".to_owned(), via.clone()),
                (
                    "10.1.1.2/32".to_owned(),
                    Action::Forward(vec![Hop {
                        link: 3,
                        gateway: None,
                        weight: 1
                    }])
                ),
                ("198.51.100.0/24".to_owned(), via),
            ]
        );
    }

    #[test]
    fn an_ipv4_route_may_have_an_ipv6_next_hop() {
        let got = actions(&[v4_route(
            "10.0.0.0/8",
            vec![
                RouteAttribute::Oif(4),
                RouteAttribute::Via(RouteVia::Inet6("fe80::2".parse().unwrap())),
            ],
        )]);
        let Action::Forward(hops) = &got[0].1 else {
            unreachable!("a route with a next hop forwards")
        };
        assert_eq!(hops[0].gateway, Some("fe80::2".parse().unwrap()));
    }

    #[test]
    fn routes_that_refuse_are_kept_as_such() {
        for (kind, want) in [
            (RouteType::BlackHole, Action::Blackhole),
            (RouteType::Unreachable, Action::Unreachable),
            (RouteType::Prohibit, Action::Prohibit),
        ] {
            let mut m = v4_route("10.9.0.0/16", vec![]);
            m.header.kind = kind;
            assert_eq!(actions(&[m]), [("10.9.0.0/16".to_owned(), want)]);
        }
    }

    #[test]
    fn what_is_not_understood_is_refused_and_never_forwarded() {
        let encapsulated = v4_route(
            "10.9.0.0/16",
            vec![
                RouteAttribute::Oif(4),
                RouteAttribute::EncapType(RouteLwEnCapType::Mpls),
            ],
        );
        let object = v4_route("10.10.0.0/16", vec![RouteAttribute::NhId(7)]);
        for (_, action) in actions(&[encapsulated, object]) {
            assert!(matches!(action, Action::Unsupported(_)), "{action:?}");
        }
    }

    #[test]
    fn the_lowest_metric_wins_in_any_order() {
        let low = v4_route(
            "10.0.0.0/8",
            vec![RouteAttribute::Oif(1), RouteAttribute::Priority(10)],
        );
        let high = v4_route(
            "10.0.0.0/8",
            vec![RouteAttribute::Oif(2), RouteAttribute::Priority(20)],
        );
        assert_eq!(
            actions(&[low.clone(), high.clone()]),
            actions(&[high, low.clone()])
        );
        assert_eq!(actions(&[low]).len(), 1);
    }

    #[test]
    fn multipath_leaves_out_dead_hops_and_prefers_those_with_carrier() {
        let hop = |link, flags| {
            let mut hop = RouteNextHop::default();
            hop.interface_index = link;
            hop.hops = 1;
            hop.flags = flags;
            hop
        };
        let route = |hops| v4_route("10.0.0.0/8", vec![RouteAttribute::MultiPath(hops)]);
        let links = |m| match &actions(&[m])[0].1 {
            Action::Forward(hops) => hops.iter().map(|h| (h.link, h.weight)).collect::<Vec<_>>(),
            _ => vec![],
        };
        let none = RouteNextHopFlags::empty();
        assert_eq!(links(route(vec![hop(2, none), hop(1, none)])), [(1, 2), (2, 2)]);
        assert_eq!(
            links(route(vec![hop(1, RouteNextHopFlags::Dead), hop(2, none)])),
            [(2, 2)]
        );
        assert_eq!(
            links(route(vec![hop(1, RouteNextHopFlags::Linkdown), hop(2, none)])),
            [(2, 2)]
        );
        assert_eq!(links(route(vec![hop(1, RouteNextHopFlags::Linkdown)])), [(1, 2)]);
        assert_eq!(
            actions(&[route(vec![hop(1, RouteNextHopFlags::Dead)])])[0].1,
            Action::Unreachable
        );
    }

    #[test]
    fn other_tables_cached_and_link_local_routes_are_left_out() {
        let mut local = v4_route("10.0.0.1/32", vec![RouteAttribute::Oif(1)]);
        local.attributes.push(RouteAttribute::Table(255));
        let mut cached = v4_route("2001:db8::1/128", vec![RouteAttribute::Oif(1)]);
        cached.header.flags = RouteFlags::Cloned;
        let link_local = v4_route("fe80::/64", vec![RouteAttribute::Oif(1)]);
        assert!(actions(&[local, cached, link_local]).is_empty());
    }

    fn neighbour_message(state: NeighbourState, mac: Option<[u8; 6]>) -> NeighbourMessage {
        let mut m = NeighbourMessage::default();
        m.header.family = AddressFamily::Inet;
        m.header.ifindex = 3;
        m.header.state = state;
        m.attributes
            .push(NeighbourAttribute::Destination(NeighbourAddress::Inet(
                Ipv4Addr::new(10, 0, 0, 1),
            )));
        if let Some(mac) = mac {
            m.attributes
                .push(NeighbourAttribute::LinkLayerAddress(mac.to_vec()));
        }
        m
    }

    #[test]
    fn neighbours_follow_the_state_that_the_kernel_gives_them() {
        let mac = [2, 0, 0, 0, 0, 1];
        let mut view = KernelState::default();
        let new = |state, mac| RouteNetlinkMessage::NewNeighbour(neighbour_message(state, mac));
        assert!(!view.apply(&new(NeighbourState::Incomplete, None)).any());
        assert!(view.apply(&new(NeighbourState::Reachable, Some(mac))).neighbours);
        // Going stale changes nothing for us.
        assert!(!view.apply(&new(NeighbourState::Stale, Some(mac))).any());
        assert_eq!(view.neighbours.len(), 1);
        assert!(view.apply(&new(NeighbourState::Failed, None)).neighbours);
        assert_eq!(
            view.neighbours.values().collect::<Vec<_>>(),
            [&KernelNeighbour::Failed]
        );
        assert!(view.apply(&new(NeighbourState::Incomplete, None)).neighbours);
        assert!(view.neighbours.is_empty());
        view.apply(&new(NeighbourState::Permanent, Some(mac)));
        let gone = RouteNetlinkMessage::DelNeighbour(neighbour_message(NeighbourState::Permanent, Some(mac)));
        assert!(view.apply(&gone).neighbours);
        assert!(!view.apply(&gone).any());
    }

    #[test]
    fn a_link_message_that_changes_nothing_is_not_a_change() {
        let mut m = LinkMessage::default();
        m.header.index = 7;
        m.attributes.push(LinkAttribute::IfName("a".to_owned()));
        m.attributes.push(LinkAttribute::Mtu(1500));
        let mut view = KernelState::default();
        let message = RouteNetlinkMessage::NewLink(m.clone());
        assert!(view.apply(&message).all);
        view.set_links(&[m]);
        assert!(!view.apply(&message).any());
        assert_eq!(
            view.link_named("a").map(|(index, l)| (index, l.mtu)),
            Some((7, 1500))
        );
    }

    #[test]
    fn the_local_address_of_a_point_to_point_link_is_ours() {
        let mut m = AddressMessage::default();
        m.header.index = 2;
        let other: IpAddr = "10.0.0.2".parse().unwrap();
        let ours: IpAddr = "10.0.0.1".parse().unwrap();
        m.attributes = vec![AddressAttribute::Address(other), AddressAttribute::Local(ours)];
        m.header.prefix_len = 32;
        assert_eq!(address(&m), Some((2, ours, 32)));
    }
}
