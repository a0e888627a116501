//! From the kernel's state to the dataplane's: routes over ports, neighbours on ports, the host's own addresses. Pure.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr},
};

use ipnet::IpNet;
use ringwall_dataplane::{
    addr::Addr,
    forward::{Forwarding, ForwardingBuilder, Hop, Neighbour, NetworkPlace, Route},
    port::{Port, PortId, PortKind, PortTag, Side},
};

use super::{
    kernel_state::{self, Action, KernelNeighbour, KernelState},
    plan::{HostPair, PlannedPlace, PlannedPort},
    ports::GATEWAY_V4,
    stations::Stations,
};

/// What the mirror makes of the kernel's state.
#[derive(Debug)]
pub struct KernelForwarding {
    /// For the workers.
    pub forwarding: Forwarding,
    /// Addresses of this host, for the XDP programs: sorted, without loopback.
    pub local: Vec<IpAddr>,
    /// Neighbours that the kernel has to keep resolved, by index of the interface.
    pub needed_neighbours: BTreeSet<(u32, IpAddr)>,
    /// The ports that are there, by index of the interface.
    pub ports: BTreeMap<u32, PortId>,
}

/// Translates. `partial_checksums` tells whether packets on an interface may carry partial checksums.
pub fn forwarding_from_kernel(
    view: &KernelState,
    planned: &[PlannedPort],
    places: &[PlannedPlace],
    stations: &Stations,
    host: Option<&HostPair>,
    routed: bool,
    partial_checksums: &dyn Fn(&str) -> bool,
) -> KernelForwarding {
    let mut builder = ForwardingBuilder::new();
    let mut ports = BTreeMap::new();
    let mut kinds = BTreeMap::new();
    for port in planned {
        if port.kind == PortKind::Ask {
            builder.port(ask_port(port));
            continue;
        }
        let Some((index, link)) = view.link_named(&port.name) else {
            continue;
        };
        ports.insert(index, port.id);
        kinds.insert(index, port.kind);
        builder.port(Port {
            id: port.id,
            name: port.name.clone(),
            tag: PortTag::from_name(&port.name),
            kind: port.kind,
            side: port.side,
            mac: link.mac,
            mtu: u16::try_from(link.mtu).unwrap_or(u16::MAX),
            zone: 0,
            reverse_path: port.sources.reverse_path,
            // Beyond the outer end of a wire, sides let no pod be.
            checks_source_mac: port.sources.binds
                && match port.kind {
                    PortKind::Uplink => true,
                    PortKind::Wire { .. } => port.side != Side::Outside,
                    PortKind::Pod | PortKind::Host | PortKind::Ask => false,
                },
            not_subject: port.not_subject,
            partial_checksums: partial_checksums(&port.name),
        });
    }
    for (port, node, mac) in stations.iter() {
        builder.station(port, node, mac);
    }
    for PlannedPlace { network, place } in places {
        builder.place(network.addr().into(), network.prefix_len(), place.clone());
    }
    let mut local: BTreeSet<IpAddr> = BTreeSet::new();
    let mut wanted = BTreeSet::new();
    if routed {
        for route in view.routes.values() {
            want(&route.action, &route.prefix, &kinds, &mut wanted);
            let action = restrict_to_place(
                restrict_to_ports(&route.action, &ports),
                place_of(&route.prefix, places),
            );
            builder.route(route.prefix.addr().into(), route.prefix.prefix_len(), action);
        }
        // What has a place is nowhere else, whatever a wider route says.
        for PlannedPlace { network, place } in places {
            if !view.routes.contains_key(network)
                && let Some(wider) = wider(view, network)
            {
                let action = restrict_to_place(restrict_to_ports(&wider.action, &ports), Some(place));
                builder.route(network.addr().into(), network.prefix_len(), action);
            }
        }
        for ((index, address), known) in &view.neighbours {
            if let Some(port) = ports.get(index) {
                let neighbour = match known {
                    KernelNeighbour::Resolved(mac) => Neighbour::Reachable(*mac),
                    KernelNeighbour::Failed => Neighbour::Failed,
                };
                builder.neighbour(*port, (*address).into(), neighbour);
            }
        }
        for (index, address, length) in &view.addresses {
            if address.is_loopback() {
                continue;
            }
            if let Some(broadcast) = broadcast(*address, *length) {
                builder.route(Addr::from(IpAddr::V4(broadcast)), 32, Route::Blackhole);
            }
            if let Some(port) = ports.get(index) {
                builder.port_address(*port, (*address).into());
            }
            local.insert(*address);
        }
        // Pods know the gateway by this address, whatever interface of the machine holds it.
        if local.contains(&IpAddr::V4(GATEWAY_V4)) {
            for port in planned.iter().filter(|port| port.kind == PortKind::Pod) {
                builder.port_address(port.id, Addr::from(IpAddr::V4(GATEWAY_V4)));
            }
        }
        // After the routes: an address of ours wins over any route to it.
        for address in local.iter().filter(|address| !is_link_local(address)) {
            builder.route((*address).into(), 128, Route::Local);
        }
        for v4 in [true, false] {
            let global = |address: &&IpAddr| match address {
                IpAddr::V4(a) => v4 && !a.is_link_local(),
                IpAddr::V6(a) => !v4 && !a.is_unicast_link_local(),
            };
            if let Some(source) = local.iter().find(global) {
                builder.icmp_source((*source).into());
            }
        }
        if let Some(pair) = host
            && let Some(port) = planned.iter().find(|port| port.kind == PortKind::Host)
            && let Some((_, outer)) = view.link_named(&pair.outer)
        {
            builder.host(port.id, outer.mac);
        }
    } else {
        local = view
            .addresses
            .iter()
            .map(|(_, address, _)| *address)
            .filter(|address| !address.is_loopback())
            .collect();
    }
    KernelForwarding {
        forwarding: builder.build(),
        local: local.into_iter().collect(),
        needed_neighbours: wanted,
        ports,
    }
}

/// The worker's end of the pair that the kernel asks by: what comes in by it goes back by it.
fn ask_port(port: &PlannedPort) -> Port {
    Port {
        id: port.id,
        name: port.name.clone(),
        tag: PortTag::from_name(&port.name),
        kind: PortKind::Ask,
        side: port.side,
        mac: [0; 6],
        mtu: u16::MAX,
        zone: 0,
        reverse_path: port.sources.reverse_path,
        checks_source_mac: false,
        not_subject: port.not_subject,
        partial_checksums: false,
    }
}

fn is_link_local(address: &IpAddr) -> bool {
    match address {
        // The gateway address that every pod port owns is ours like any other.
        IpAddr::V4(_) => false,
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    }
}

/// The broadcast address of an IPv4 network; directed broadcasts are not forwarded (RFC 2644).
fn broadcast(address: IpAddr, length: u8) -> Option<Ipv4Addr> {
    match (address, length) {
        (IpAddr::V4(v4), 1..=30) => Some(Ipv4Addr::from(u32::from(v4) | (u32::MAX >> length))),
        _ => None,
    }
}

/// The route, as far as it leads over ports. What leads elsewhere is refused: the kernel does not forward for us.
fn restrict_to_ports(action: &Action, ports: &BTreeMap<u32, PortId>) -> Route {
    let hops = match action {
        Action::Forward(hops) => hops,
        Action::Blackhole => return Route::Blackhole,
        Action::Prohibit => return Route::Prohibit,
        Action::Unreachable | Action::Unsupported(_) => return Route::Unreachable,
    };
    let mut found: Vec<Hop> = hops
        .iter()
        .filter_map(|hop| {
            Some(Hop {
                port: *ports.get(&hop.link)?,
                gateway: hop.gateway.map(Addr::from),
                weight: hop.weight,
            })
        })
        .collect();
    match (found.pop(), found.is_empty()) {
        (None, _) => Route::Unreachable,
        (Some(hop), true) => Route::Hop(hop),
        (Some(hop), false) => {
            found.push(hop);
            Route::Multipath(found.into_boxed_slice())
        }
    }
}

/// The place that holds a prefix.
fn place_of<'p>(prefix: &IpNet, places: &'p [PlannedPlace]) -> Option<&'p NetworkPlace> {
    let holds = |place: &&PlannedPlace| place.network.contains(prefix);
    places.iter().find(holds).map(|place| &place.place)
}

/// The route, as far as it leads over the ports of a place.
fn restrict_to_place(route: Route, place: Option<&NetworkPlace>) -> Route {
    let Some(ports) = place.and_then(|place| place.ports.as_ref()) else {
        return route;
    };
    match route {
        Route::Hop(hop) if !ports.contains(&hop.port) => Route::Prohibit,
        Route::Multipath(hops) => {
            let mut left = hops.into_vec();
            left.retain(|hop| ports.contains(&hop.port));
            match (left.pop(), left.is_empty()) {
                (None, _) => Route::Prohibit,
                (Some(hop), true) => Route::Hop(hop),
                (Some(hop), false) => {
                    left.push(hop);
                    Route::Multipath(left.into_boxed_slice())
                }
            }
        }
        other => other,
    }
}

/// The narrowest route that is wider than a network and holds it.
fn wider<'v>(view: &'v KernelState, network: &IpNet) -> Option<&'v kernel_state::Route> {
    (0..network.prefix_len()).rev().find_map(|length| {
        let wider = IpNet::new(network.addr(), length).ok()?.trunc();
        view.routes.get(&wider)
    })
}

/// Routers on ports are always in use; so are pods, which have a host route to their port.
fn want(
    action: &Action,
    prefix: &IpNet,
    kinds: &BTreeMap<u32, PortKind>,
    wanted: &mut BTreeSet<(u32, IpAddr)>,
) {
    let Action::Forward(hops) = action else { return };
    for hop in hops {
        let Some(kind) = kinds.get(&hop.link) else {
            continue;
        };
        match hop.gateway {
            Some(gateway) => {
                wanted.insert((hop.link, gateway));
            }
            None if *kind == PortKind::Pod && prefix.prefix_len() == prefix.max_prefix_len() => {
                wanted.insert((hop.link, prefix.addr()));
            }
            None => {}
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)] // a test that panics has failed
mod tests {
    use ringwall_config::{FailMode, RxQueues, XdpMode, ZeroCopy};
    use ringwall_dataplane::{forward::RouteDecision, port::ReversePath, wire::subject::NotSubjectTable};

    use super::*;
    use crate::{kernel_state::Link, plan::SourceChecks};

    fn planned(id: u16, name: &str, kind: PortKind) -> PlannedPort {
        PlannedPort {
            id: PortId(id),
            name: name.to_owned(),
            kind,
            side: Side::Any,
            sources: SourceChecks {
                reverse_path: ReversePath::Strict,
                binds: false,
            },
            not_subject: NotSubjectTable::ROUTED,
            xdp: XdpMode::Auto,
            zero_copy: ZeroCopy::Off,
            queues: RxQueues::All,
            mtu: None,
            fail_mode: FailMode::Closed,
            matched: false,
        }
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    /// Interfaces 1 `pod0`, 2 `up0`, 3 `inner`, 4 `outer`, 5 `mgmt`; all but the last two are ports.
    fn node() -> (KernelState, Vec<PlannedPort>, HostPair) {
        let mut view = KernelState::default();
        for (index, name) in [(1, "pod0"), (2, "up0"), (3, "inner"), (4, "outer"), (5, "mgmt")] {
            view.links.insert(
                index,
                Link {
                    name: name.to_owned(),
                    mac: [2, 0, 0, 0, 0, index as u8],
                    mtu: 1500,
                    up: true,
                    promiscuous: false,
                    carrier: true,
                    veth: true,
                    peer: None,
                    alias: None,
                },
            );
        }
        view.addresses = [
            (1, ip("169.254.1.1"), 32),
            (2, ip("192.0.2.1"), 24),
            (5, ip("198.51.100.1"), 24),
            (9, ip("127.0.0.1"), 8),
        ]
        .into();
        let ports = vec![
            planned(0, "pod0", PortKind::Pod),
            planned(1, "up0", PortKind::Uplink),
            planned(2, "inner", PortKind::Host),
        ];
        let pair = HostPair {
            inner: "inner".to_owned(),
            outer: "outer".to_owned(),
            exists: true,
        };
        (view, ports, pair)
    }

    fn forward(view: &mut KernelState, prefix: &str, hops: &[(u32, Option<&str>)]) {
        let prefix: IpNet = prefix.parse().unwrap();
        let hops = hops
            .iter()
            .map(|(link, gateway)| kernel_state::Hop {
                link: *link,
                gateway: gateway.map(ip),
                weight: 1,
            })
            .collect();
        view.routes.insert(
            prefix,
            kernel_state::Route {
                prefix,
                metric: 0,
                action: Action::Forward(hops),
            },
        );
    }

    #[test]
    fn routes_lead_over_ports_to_the_host_or_nowhere() {
        let (mut view, ports, pair) = node();
        forward(&mut view, "10.1.1.2/32", &[(1, None)]);
        forward(&mut view, "192.0.2.0/24", &[(2, None)]);
        forward(&mut view, "10.0.0.0/8", &[(2, Some("192.0.2.9"))]);
        forward(&mut view, "198.51.100.0/24", &[(5, None)]);
        forward(&mut view, "203.0.113.0/24", &[(5, None), (2, Some("192.0.2.8"))]);
        let made = forwarding_from_kernel(
            &view,
            &ports,
            &[],
            &Stations::default(),
            Some(&pair),
            true,
            &|_| true,
        );
        let to = |address: &str| made.forwarding.route(ip(address).into(), 7);
        let hop = |port, neighbour: &str| RouteDecision::Hop {
            port: PortId(port),
            neighbour: ip(neighbour).into(),
        };
        assert_eq!(to("10.1.1.2"), hop(0, "10.1.1.2"));
        assert_eq!(to("192.0.2.77"), hop(1, "192.0.2.77"));
        assert_eq!(to("10.9.9.9"), hop(1, "192.0.2.9"));
        assert_eq!(
            to("203.0.113.5"),
            hop(1, "192.0.2.8"),
            "the hop that is no port is left out"
        );
        assert_eq!(to("198.51.100.7"), RouteDecision::Unreachable, "not over a port");
        assert_eq!(to("8.8.8.8"), RouteDecision::NoRoute);
        for own in ["169.254.1.1", "192.0.2.1", "198.51.100.1"] {
            assert_eq!(to(own), RouteDecision::Local, "{own}");
        }
        assert_eq!(to("192.0.2.255"), RouteDecision::Blackhole, "directed broadcast");
        assert_eq!(made.forwarding.host(), Some((PortId(2), [2, 0, 0, 0, 0, 4])));
        assert_eq!(
            made.local,
            [ip("169.254.1.1"), ip("192.0.2.1"), ip("198.51.100.1")]
        );
        assert_eq!(
            made.needed_neighbours.into_iter().collect::<Vec<_>>(),
            [(1, ip("10.1.1.2")), (2, ip("192.0.2.8")), (2, ip("192.0.2.9"))]
        );
    }

    #[test]
    fn what_has_a_place_is_reached_there_alone() {
        let (mut view, mut ports, pair) = node();
        view.links.insert(
            6,
            Link {
                name: "up1".to_owned(),
                ..view.links[&2].clone()
            },
        );
        ports.push(planned(3, "up1", PortKind::Uplink));
        let hops = |links: &[u32]| {
            let hops = links.iter().map(|link| (*link, Some("192.0.2.9")));
            hops.collect::<Vec<_>>()
        };
        forward(&mut view, "0.0.0.0/0", &hops(&[2]));
        forward(&mut view, "10.0.0.0/8", &hops(&[2, 6]));
        forward(&mut view, "10.20.0.0/16", &hops(&[6]));
        forward(&mut view, "10.10.7.0/24", &hops(&[2]));
        forward(&mut view, "10.10.8.0/24", &hops(&[2, 6]));
        let at = |network: &str, port: u16| PlannedPlace {
            network: network.parse().unwrap(),
            place: NetworkPlace {
                ports: Some([PortId(port)].into()),
                vlan: None,
            },
        };
        let places = [
            at("10.10.0.0/16", 1),
            at("10.20.0.0/16", 1),
            at("172.16.0.0/12", 3),
            at("fd00::/48", 3),
        ];
        let made = forwarding_from_kernel(
            &view,
            &ports,
            &places,
            &Stations::default(),
            Some(&pair),
            true,
            &|_| true,
        );
        for (address, port) in [
            ("10.10.0.1", Some(1)),
            ("10.10.7.1", Some(1)),
            ("10.10.8.1", Some(1)),
            ("10.20.0.1", None),
            ("172.16.0.1", None),
            ("8.8.8.8", Some(1)),
        ] {
            for hash in [0, u32::MAX] {
                let path = made.forwarding.route(ip(address).into(), hash);
                let expected = port.map_or(RouteDecision::Prohibit, |port| RouteDecision::Hop {
                    port: PortId(port),
                    neighbour: ip("192.0.2.9").into(),
                });
                assert_eq!(path, expected, "{address}");
            }
        }
        assert_eq!(
            made.forwarding.route(ip("fd00::1").into(), 0),
            RouteDecision::NoRoute
        );
    }

    #[test]
    fn neighbours_are_those_on_ports() {
        let (mut view, ports, pair) = node();
        view.neighbours
            .insert((1, ip("10.1.1.2")), KernelNeighbour::Resolved([2; 6]));
        view.neighbours
            .insert((2, ip("192.0.2.9")), KernelNeighbour::Failed);
        view.neighbours
            .insert((5, ip("198.51.100.9")), KernelNeighbour::Resolved([3; 6]));
        let made = forwarding_from_kernel(
            &view,
            &ports,
            &[],
            &Stations::default(),
            Some(&pair),
            true,
            &|_| true,
        );
        let at = |port, address: &str| made.forwarding.neighbour(PortId(port), ip(address).into());
        assert_eq!(at(0, "10.1.1.2"), Some(Neighbour::Reachable([2; 6])));
        assert_eq!(at(1, "192.0.2.9"), Some(Neighbour::Failed));
        assert_eq!(at(1, "198.51.100.9"), None);
    }

    #[test]
    fn a_port_whose_interface_is_gone_is_left_out_with_its_routes() {
        let (mut view, ports, pair) = node();
        forward(&mut view, "10.1.1.2/32", &[(1, None)]);
        view.links.remove(&1);
        let made = forwarding_from_kernel(
            &view,
            &ports,
            &[],
            &Stations::default(),
            Some(&pair),
            true,
            &|_| true,
        );
        assert!(made.forwarding.port(PortId(0)).is_none());
        assert_eq!(
            made.forwarding.route(ip("10.1.1.2").into(), 0),
            RouteDecision::Unreachable
        );
        assert_eq!(made.ports.len(), 2);
    }
}
