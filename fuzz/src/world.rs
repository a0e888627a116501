//! The small cluster that packets are of: two pods with policy, one without, a node, an address without an owner, the world.

use ringwall_dataplane::{
    addr::Addr,
    classify::{
        Generation, Identity, IdentityKind, ImageBuilder, NONE, NodeExemption, PortDecision, PortRange,
        Snapshot,
    },
    forward::{ForwardingBuilder, Neighbour, Route},
    port::{Port, PortId, PortKind, PortTag, ReversePath, Side},
    wire::{FlowKey, protocol, subject::NotSubjectTable},
};

/// Who there is, IPv4 and IPv6: packets name them by number.
pub(crate) const ADDRESSES: [[&str; 2]; 9] = [
    CLIENT,
    WEB,
    BOX,
    ["10.0.0.99", "fd00::99"],        // without an owner
    NODE,                             // hosts the web pod
    ["192.0.2.7", "2001:db8::7"],     // outside
    ["10.96.0.1", "fd96::1"],         // a Service
    OWN,                              // this machine
    ["203.0.113.9", "2001:db8:1::9"], // outside, too
];
const CLIENT: [&str; 2] = ["10.0.0.1", "fd00::1"];
const WEB: [&str; 2] = ["10.0.0.2", "fd00::2"];
const BOX: [&str; 2] = ["10.0.0.3", "fd00::3"];
const NODE: [&str; 2] = ["10.9.0.1", "fd09::1"];
const OWN: [&str; 2] = ["172.16.0.9", "fd16::9"];
const ROUTER: [&str; 2] = ["172.16.0.1", "fd16::1"];

pub(crate) fn addr(text: &str) -> Addr {
    Addr::from(text.parse::<std::net::IpAddr>().unwrap())
}

/// One of [`WHO`].
pub(crate) fn address_of(number: u8, family: bool) -> Addr {
    addr(ADDRESSES[usize::from(number) % ADDRESSES.len()][usize::from(family)])
}

/// What policy says, by bit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct World {
    /// What the epochs are made of: without it none can be named.
    pub(crate) secret: [u8; 32],
    /// 1: the web pod does not let the client in. 2: the box may send. 4: unknown endpoints are allowed. 8: the web pod
    /// has been replaced. 16: another node hosts it.
    pub(crate) bits: u8,
}

impl World {
    /// Changes whenever a decision about an endpoint can.
    fn epoch(&self, endpoint: u8, matters: u8) -> u64 {
        let mut hasher = blake3::Hasher::new_keyed(&self.secret);
        hasher.update(&[endpoint, self.bits & matters]);
        let [a, b, c, d, e, f, g, h, ..] = *hasher.finalize().as_bytes();
        u64::from_le_bytes([a, b, c, d, e, f, g, h])
    }

    /// Isolated: the web pod for ingress (TCP 80, UDP 53 and SCTP 5000 from the client, TCP 443 from outside), the box for
    /// both (in: everything from the client; out: nothing, or TCP 443 to outside).
    pub(crate) fn snapshot(&self, generation: u64) -> Snapshot {
        let has = |bit: u8| self.bits & bit != 0;
        let mut image = ImageBuilder::new(Generation(generation));
        image.allow_unknown(has(4));
        let nodes = [image.node("node"), image.node("other")];
        let policy = image.policy("NetworkPolicy", "NetworkPolicy", "default", "web");
        let rule = image.rule(policy, 0);
        let isolating = image.isolating(&[policy]);
        let deny = image.port_map(PortDecision::DENY, &[]);
        let all = image.port_map(PortDecision::allow(rule), &[]);
        let client = image.port_map(
            PortDecision::DENY,
            &[
                PortRange::allow(6, 80, 80, rule),
                PortRange::allow(17, 53, 53, rule),
                PortRange::allow(132, 5000, 5000, rule),
            ],
        );
        let https = image.port_map(PortDecision::DENY, &[PortRange::allow(6, 443, 443, rule)]);
        // Peer classes: 0 everybody else, 1 the client, 2 other pods.
        let web_in = image.row(isolating, &[https, if has(1) { deny } else { client }, deny]);
        let box_in = image.row(isolating, &[deny, all, deny]);
        let box_out = image.row(isolating, &[if has(2) { https } else { deny }, deny, deny]);
        let node = nodes[usize::from(has(16))];
        use IdentityKind::{External, Node, Pod, Service, Unknown};
        let end = |kind, endpoint, node, peer_class, (ingress, egress), epoch| Identity {
            kind,
            endpoint,
            node,
            peer_class,
            ingress,
            egress,
            epoch,
        };
        for (who, name, identity) in [
            (
                BOX,
                "box",
                end(Pod, 0, NONE, 2, (box_in, box_out), self.epoch(0, 2)),
            ),
            (CLIENT, "client", end(Pod, 1, NONE, 1, (0, 0), self.epoch(1, 0))),
            (
                WEB,
                "web",
                end(Pod, 2, node, 2, (web_in, 0), self.epoch(2, 1 | 8 | 16)),
            ),
            (
                NODE,
                "",
                end(Node, nodes[0], nodes[0], 0, (0, 0), self.epoch(3, 0)),
            ),
        ] {
            let identity = image.identity(identity);
            if !name.is_empty() {
                image.endpoint("default", name, false, identity);
            }
            for text in who {
                image.host(addr(text), identity);
            }
        }
        let unknown = image.identity(end(Unknown, NONE, NONE, 0, (0, 0), self.epoch(4, 4)));
        image.prefix(addr("10.0.0.0"), 16, unknown);
        image.prefix(addr("fd00::"), 48, unknown);
        let service = image.identity(end(Service, NONE, NONE, 0, (0, 0), self.epoch(5, 0)));
        image.prefix(addr("10.96.0.0"), 16, service);
        image.prefix(addr("fd96::"), 48, service);
        let external = image.identity(end(External, NONE, NONE, 0, (0, 0), self.epoch(6, 0)));
        image.prefix(addr("0.0.0.0"), 0, external);
        image.prefix(addr("::"), 0, external);
        let image = image.image(Generation(generation), [0; 32]).unwrap();
        Snapshot::from_image(&image)
    }
}

/// Whether policy lets a flow begin from wherever it may come: more than any one port allows.
pub(crate) fn allows(snapshot: &Snapshot, key: &FlowKey, this_node: bool) -> bool {
    let (src, dst) = (snapshot.identify(key.src), snapshot.identify(key.dst));
    let l4 = key.policy_l4(false);
    let is_own = |at: Addr| OWN.iter().chain(&NODE).any(|own| addr(own) == at);
    let near = this_node && (is_own(key.src) || is_own(key.dst));
    let ways = [
        Some(NodeExemption::Untrusted),
        Some(NodeExemption::Trusted),
        near.then_some(NodeExemption::ThisNode),
    ];
    ways.into_iter()
        .flatten()
        .any(|node| snapshot.judge(&src, &dst, key.src, key.dst, l4, node).allow())
}

/// Whether both ends are nodes.
pub(crate) fn between_nodes(snapshot: &Snapshot, key: &FlowKey) -> bool {
    [key.src, key.dst]
        .iter()
        .all(|end| snapshot.identify(*end).kind == IdentityKind::Node)
}

/// Whether a packet with this key holds another that policy would say something else about.
pub(crate) fn is_tunnel(snapshot: &Snapshot, key: &FlowKey, ports: &[u16]) -> bool {
    use IdentityKind::{Node, Pod, Unknown};
    let (src, dst) = (snapshot.identify(key.src).kind, snapshot.identify(key.dst).kind);
    let holds = match key.protocol {
        protocol::UDP => ports.contains(&key.dst_port),
        other => [4, 41, 47, 97, 115, 137].contains(&other),
    };
    holds && (matches!(src, Pod | Unknown) || dst == Node && src != Node)
}

fn port(id: u16, kind: PortKind, side: Side, bits: u8) -> Port {
    Port {
        id: PortId(id),
        name: format!("p{id}"),
        tag: PortTag::from_name(&format!("p{id}")),
        kind,
        side,
        mac: mac(id),
        mtu: if bits & 1 == 0 { 1500 } else { 1280 },
        zone: 0,
        reverse_path: [ReversePath::Strict, ReversePath::Loose, ReversePath::Off][usize::from(bits / 2 % 3)],
        checks_source_mac: bits & 8 != 0,
        not_subject: NotSubjectTable::WIRE,
        partial_checksums: bits & 16 != 0,
    }
}

/// The Ethernet address of a port.
pub(crate) fn mac(port: u16) -> [u8; 6] {
    let [high, low] = port.to_be_bytes();
    [2, 0, 0, 0, high, low]
}

/// Two wires: ports 0 and 1, 2 and 3. Bit 32 names sides.
pub(crate) fn wires(bits: u8) -> ForwardingBuilder {
    let (inside, outside) = if bits & 32 == 0 {
        (Side::Any, Side::Any)
    } else {
        (Side::Inside, Side::Outside)
    };
    let mut builder = ForwardingBuilder::new();
    for (id, peer, side) in [
        (0, 1, inside),
        (1, 0, outside),
        (2, 3, Side::Any),
        (3, 2, Side::Any),
    ] {
        let kind = PortKind::Wire { peer: PortId(peer) };
        builder.port(port(id, kind, side, bits & !16));
    }
    if bits & 64 != 0 {
        return ForwardingBuilder::new(); // every port is gone
    }
    for id in 0..4 {
        builder.station(PortId(id), "node", [6, 0, 0, 0, 0, 1]);
        builder.station(PortId(id), "other", [6, 0, 0, 0, 0, 2]);
    }
    builder
}

/// A node: pods on ports 0 and 1, an uplink, the host.
pub(crate) fn routes(bits: u8) -> ForwardingBuilder {
    const POD: PortId = PortId(0);
    const PODS: PortId = PortId(1);
    const UPLINK: PortId = PortId(2);
    const HOST: PortId = PortId(3);
    let station = |number: u8| Neighbour::Reachable([6, 0, 0, 0, 0, number]);
    let mut builder = ForwardingBuilder::new();
    builder.port(port(0, PortKind::Pod, Side::Pods, bits));
    builder.port(port(1, PortKind::Pod, Side::Pods, bits));
    builder.port(port(2, PortKind::Uplink, Side::Any, bits));
    builder.port(port(3, PortKind::Host, Side::Any, bits));
    builder.host(HOST, [6, 0, 0, 0, 0, 4]);
    for family in [0, 1] {
        let longest = [32, 128][family];
        builder.route(addr(CLIENT[family]), longest, Route::connected(POD));
        builder.route(addr(BOX[family]), longest, Route::connected(PODS));
        builder.route(addr(WEB[family]), longest, Route::connected(PODS));
        builder.route(addr(OWN[family]), longest, Route::Local);
        builder.route(addr(NODE[family]), longest, Route::Local);
        let way = match bits / 32 {
            0 | 1 => Route::via(UPLINK, addr(ROUTER[family])),
            2 => Route::Unreachable,
            3 => Route::Blackhole,
            _ => Route::Prohibit,
        };
        builder.route(addr(["0.0.0.0", "::"][family]), 0, way);
        builder.neighbour(POD, addr(CLIENT[family]), station(1));
        builder.neighbour(PODS, addr(WEB[family]), station(2));
        if bits & 4 == 0 {
            builder.neighbour(PODS, addr(BOX[family]), station(2));
            builder.neighbour(UPLINK, addr(ROUTER[family]), station(3));
        }
        builder.icmp_source(addr(["169.254.1.1", "fd16::9"][family]));
    }
    builder
}
