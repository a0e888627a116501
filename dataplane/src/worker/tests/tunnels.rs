//! Packets in tunnels between nodes: what is inside is judged, and only nodes are believed.

use super::*;
use crate::{
    failsafe::{Failsafe, FailsafeRule, Prefix},
    forward::{Neighbour, Route},
    tunnels::OpaqueAction,
    wire::{Parsed, parse, tunnel::TunnelKind},
};

/// Outer addresses of two nodes.
const NODES: [[&str; 2]; 2] = [["10.9.0.1", "fd09::1"], ["10.9.0.2", "fd09::2"]];
/// Of the first node's tunnel device: inside of tunnels.
const TUNNEL_DEVICE: [&str; 2] = ["10.0.1.0", "fd00:1::"];
/// On the first node, open.
const A: [&str; 2] = ["10.0.1.5", "fd00:1::5"];
/// On the first node; may send nothing.
const MUTE: [&str; 2] = ["10.0.1.6", "fd00:1::6"];
/// On the second node; lets in TCP 80, UDP 53 and echo from `A`.
const B: [&str; 2] = ["10.0.2.5", "fd00:2::5"];
const STRANGER: [&str; 2] = ["10.9.0.77", "fd09::77"];

fn snapshot(generation: u64) -> Snapshot {
    let mut image = ImageBuilder::new(Generation(generation));
    image.allow_unknown(false);
    for name in ["one", "two"] {
        image.node(name);
    }
    let policy = image.policy("NetworkPolicy", "NetworkPolicy", "default", "b");
    let rule = image.rule(policy, 0);
    let isolating = image.isolating(&[policy]);
    let deny = image.port_map(PortDecision::DENY, &[]);
    let from_a = image.port_map(
        PortDecision::DENY,
        &[
            PortRange::allow(6, 80, 80, rule),
            PortRange::allow(17, 53, 53, rule),
        ],
    );
    // Peer classes: 0 everybody else, 1 `A`, 2 other pods.
    let b_in = image.row(isolating, &[deny, from_a, deny]);
    let mute_out = image.row(isolating, &[deny, deny, deny]);
    use IdentityKind::{Node, Pod, Unknown};
    let end = |kind, endpoint, node, peer_class, ingress, egress, epoch| Identity {
        kind,
        endpoint,
        node,
        peer_class,
        ingress,
        egress,
        epoch,
    };
    for (nth, (who, name, identity)) in [
        (A, "a", end(Pod, 0, 0, 1, 0, 0, 10)),
        (B, "b", end(Pod, 1, 1, 2, b_in, 0, 20)),
        (MUTE, "mute", end(Pod, 2, 0, 2, 0, mute_out, 30)),
        (NODES[0], "", end(Node, NONE, 0, 0, 0, 0, 40)),
        (TUNNEL_DEVICE, "", end(Node, NONE, 0, 0, 0, 0, 40)),
        (NODES[1], "", end(Node, NONE, 1, 0, 0, 0, 50)),
    ]
    .into_iter()
    .enumerate()
    {
        let identity = image.identity(identity);
        if nth < 3 {
            image.endpoint("default", name, false, identity);
        }
        for text in who {
            image.host(addr(text), identity);
        }
    }
    let unknown = image.identity(end(Unknown, NONE, NONE, 0, 0, 0, 0));
    image.prefix(addr("10.0.0.0"), 16, unknown);
    image.prefix(addr("fd00::"), 16, unknown);
    Snapshot::open(&image.finish([0; 32]).unwrap()).unwrap()
}

fn bed_with(config: DataplaneConfig, sides: [Side; 2]) -> Bed {
    let mut bed = Bed::with(config, 4096);
    bed.plane.snapshots.publish(snapshot(1));
    let mut builder = wire();
    builder.port(port(INSIDE, PortKind::Wire { peer: OUTSIDE }, sides[0]));
    builder.port(port(OUTSIDE, PortKind::Wire { peer: INSIDE }, sides[1]));
    bed.plane.forwarding.publish(builder.build());
    bed.settled()
}

/// Two nodes with a wire between them.
fn bed() -> Bed {
    bed_with(DataplaneConfig::default(), [Side::Inside, Side::Inside])
}

/// From one node to the other.
fn nodes(from: usize, family: usize) -> Template {
    from_to(NODES[from][family], NODES[1 - from][family])
}

type Wrap = fn(&Template, &[u8]) -> Vec<u8>;

/// Every form that is looked into.
const FORMS: [(&str, Wrap); 11] = [
    ("vxlan", |outer, inside| outer.vxlan(4789, 4096, inside)),
    ("vxlan of Linux", |outer, inside| outer.vxlan(8472, 1, inside)),
    ("geneve", |outer, inside| outer.geneve(7, &[], inside)),
    ("geneve with options", |outer, inside| {
        outer.geneve(7, &[1, 2, 0x80, 1, 0, 0, 0, 9], inside)
    }),
    ("flannel", |outer, inside| outer.flannel_udp(inside)),
    ("ipip", |outer, inside| outer.ip_in_ip(inside)),
    ("gre", |outer, inside| outer.gre(0, inside)),
    ("gre with a key", |outer, inside| outer.gre(0x20, inside)),
    ("gre with everything", |outer, inside| outer.gre(0xb0, inside)),
    ("gre with a check sum", |outer, inside| outer.gre(0x80, inside)),
    ("gre with Ethernet", |outer, inside| outer.gre_ethernet(inside)),
];

/// Outer and inner family.
const FAMILIES: [(usize, usize); 4] = [(0, 0), (0, 1), (1, 0), (1, 1)];

#[test]
fn what_is_inside_is_judged_in_every_form() {
    for (outer, inner) in FAMILIES {
        for (form, wrap) in FORMS {
            let mut bed = bed();
            let (forth, back) = (from_to(A[inner], B[inner]), from_to(B[inner], A[inner]));
            let there = |frame: &[u8]| wrap(&nodes(0, outer), frame);
            let here = |frame: &[u8]| wrap(&nodes(1, outer), frame);
            assert!(
                bed.crosses(INSIDE, &there(&forth.tcp(7, 80, SYN, b""))),
                "{form} {outer} {inner}"
            );
            assert!(
                bed.crosses(OUTSIDE, &here(&back.tcp(80, 7, SYN_ACK, b""))),
                "{form} {outer} {inner}"
            );
            assert!(
                bed.crosses(INSIDE, &there(&forth.tcp(7, 80, ACK, b"get"))),
                "{form} {outer} {inner}"
            );
            assert!(
                bed.crosses(INSIDE, &there(&forth.udp(7, 53, b"?"))),
                "{form} {outer} {inner}"
            );
            assert!(
                bed.crosses(OUTSIDE, &here(&back.udp(53, 7, b"!"))),
                "{form} {outer} {inner}"
            );
            bed.drops(
                INSIDE,
                &there(&forth.tcp(7, 81, SYN, b"")),
                DropReason::PolicyIngress,
            );
            bed.drops(INSIDE, &there(&forth.udp(7, 54, b"")), DropReason::PolicyIngress);
            let mute = from_to(MUTE[inner], B[inner]).udp(7, 53, b"");
            bed.drops(INSIDE, &there(&mute), DropReason::PolicyEgress);
            let unowned = from_to(["10.0.1.99", "fd00:1::99"][inner], B[inner]).udp(7, 53, b"");
            bed.drops(INSIDE, &there(&unowned), DropReason::UnknownEndpoint);
            assert_eq!(bed.flows().len(), 2);
        }
    }
}

#[test]
fn what_is_denied_in_a_tunnel_gets_no_answer() {
    let config = DataplaneConfig {
        denial_answer: DenialAnswer::Reset,
        ..DataplaneConfig::default()
    };
    let mut bed = bed_with(config, [Side::Inside, Side::Inside]);
    for (outer, inner) in FAMILIES {
        let inside = from_to(A[inner], B[inner]).tcp(7, 81, SYN, b"");
        for (_, wrap) in FORMS {
            bed.drops(
                INSIDE,
                &wrap(&nodes(0, outer), &inside),
                DropReason::PolicyIngress,
            );
        }
        assert_eq!(bed.on(0, INSIDE, &inside).len(), 1, "a reset");
    }
}

#[test]
fn a_flow_seen_bare_and_in_tunnels_is_one() {
    for (outer, inner) in FAMILIES {
        let mut bed = bed();
        let (forth, back) = (from_to(A[inner], B[inner]), from_to(B[inner], A[inner]));
        assert!(bed.crosses(INSIDE, &forth.tcp(7, 80, SYN, b"")));
        for (form, wrap) in FORMS {
            assert!(
                bed.crosses(OUTSIDE, &wrap(&nodes(1, outer), &back.tcp(80, 7, SYN_ACK, b""))),
                "{form}"
            );
            assert!(
                bed.crosses(INSIDE, &wrap(&nodes(0, outer), &forth.tcp(7, 80, ACK, b"get"))),
                "{form}"
            );
        }
        assert!(bed.crosses(OUTSIDE, &back.tcp(80, 7, ACK, b"found")));
        let flows = bed.flows();
        assert_eq!(flows.len(), 1);
        assert_eq!(flows[0].state.name(), "tcp-established");
    }
}

#[test]
fn only_a_nodes_tunnels_are_believed() {
    for (outer, inner) in FAMILIES {
        for (form, wrap) in FORMS {
            let mut bed = bed_with(DataplaneConfig::default(), [Side::Any, Side::Any]);
            let inside = from_to(A[inner], B[inner]).udp(7, 53, b"");
            let answer = from_to(B[inner], A[inner]).udp(53, 7, b"");
            assert!(bed.crosses(INSIDE, &wrap(&nodes(0, outer), &inside)), "{form}");
            assert!(bed.crosses(OUTSIDE, &wrap(&nodes(1, outer), &answer)), "{form}");
            // Also of a flow that is open.
            for peer in [NODES[1][outer], STRANGER[outer]] {
                let forged = from_to(STRANGER[outer], peer);
                bed.drops(INSIDE, &wrap(&forged, &inside), DropReason::TunnelSource);
                bed.drops(OUTSIDE, &wrap(&forged, &answer), DropReason::TunnelSource);
            }
            // A pod's is a packet of that pod.
            let pods = from_to(A[outer], NODES[1][outer]);
            bed.drops(INSIDE, &wrap(&pods, &inside), DropReason::Encapsulation);
            bed.drops(
                INSIDE,
                &wrap(&from_to(MUTE[outer], NODES[1][outer]), &inside),
                DropReason::PolicyEgress,
            );
            let unowned = from_to(["10.0.1.99", "fd00:1::99"][outer], NODES[1][outer]);
            bed.drops(INSIDE, &wrap(&unowned, &inside), DropReason::UnknownEndpoint);
            // A pod or node elsewhere than the node that sent it: a new flow from the other node.
            let fresh = from_to(A[inner], B[inner]).udp(8, 53, b"");
            let other = from_to(NODES[1][outer], NODES[0][outer]);
            bed.drops(INSIDE, &wrap(&other, &fresh), DropReason::TunnelSpoofed);
            let device = from_to(TUNNEL_DEVICE[inner], B[inner]).udp(8, 53, b"");
            bed.drops(INSIDE, &wrap(&other, &device), DropReason::TunnelSpoofed);
            // Who has no address in the cluster comes by the node that it reached first; policy decides.
            let outsider = from_to(OUTSIDER[inner], B[inner]).udp(8, 53, b"");
            bed.drops(
                INSIDE,
                &wrap(&nodes(0, outer), &outsider),
                DropReason::PolicyIngress,
            );
            let outsider = from_to(OUTSIDER[inner], A[inner]).udp(8, 53, b"");
            assert!(bed.crosses(OUTSIDE, &wrap(&nodes(1, outer), &outsider)), "{form}");
            // To a pod's port of a tunnel's number it is a datagram for that pod.
            let to_pod = from_to(NODES[0][outer], B[outer]);
            bed.drops(INSIDE, &wrap(&to_pod, &inside), DropReason::PolicyIngress);
            let own = from_to(A[inner], A[inner]).udp(8, 53, b"");
            bed.drops(INSIDE, &wrap(&nodes(0, outer), &own), DropReason::SpoofedSource);
        }
        // A node's address does not come in where nodes are not.
        let mut bed = bed_with(DataplaneConfig::default(), [Side::Inside, Side::Outside]);
        let inside = from_to(B[inner], A[inner]).udp(7, 53, b"");
        bed.drops(
            OUTSIDE,
            &nodes(1, outer).vxlan(8472, 1, &inside),
            DropReason::SpoofedSource,
        );
        bed.drops(
            OUTSIDE,
            &nodes(1, outer).ip_in_ip(&inside),
            DropReason::SpoofedSource,
        );
    }
}

/// What was found about the ends of a tunnel ends with the snapshot and the ports that it was found with.
#[test]
fn a_node_that_is_none_any_more_is_not_believed() {
    let mut bed = bed();
    let inside = from_to(A[0], B[0]).udp(7, 53, b"");
    let frame = nodes(0, 0).vxlan(4789, 1, &inside);
    assert!(bed.crosses(INSIDE, &frame));
    let mut image = ImageBuilder::new(Generation(2));
    image.node("two");
    bed.plane
        .snapshots
        .publish(Snapshot::open(&image.finish([0; 32]).unwrap()).unwrap());
    bed.drops(INSIDE, &frame, DropReason::TunnelSource);
    bed.plane.snapshots.publish(snapshot(3));
    assert!(bed.crosses(INSIDE, &frame));
    let mut builder = wire();
    builder.port(port(INSIDE, PortKind::Wire { peer: OUTSIDE }, Side::Outside));
    builder.port(port(OUTSIDE, PortKind::Wire { peer: INSIDE }, Side::Any));
    bed.plane.forwarding.publish(builder.build());
    bed.drops(INSIDE, &frame, DropReason::SpoofedSource);
}

/// Each pair of tunnel ends has one place in the cache; pairs that share one do not stand in for each other.
#[test]
fn no_pair_of_tunnel_ends_stands_in_for_another() {
    let mut bed = bed_with(DataplaneConfig::default(), [Side::Any, Side::Any]);
    let inside = from_to(A[0], B[0]).udp(7, 53, b"");
    for nth in 0..2_000_u32 {
        assert!(bed.crosses(INSIDE, &nodes(0, 0).vxlan(4789, 1, &inside)));
        let [.., high, low] = nth.to_be_bytes();
        let stranger = Template::new(Addr::v4([10, 8, high, low]), addr(NODES[1][0]));
        bed.drops(
            INSIDE,
            &stranger.vxlan(4789, 1, &inside),
            DropReason::TunnelSource,
        );
    }
}

#[test]
fn networks_are_zones_where_they_are_configured() {
    let mut config = DataplaneConfig::default();
    config.tunnels.networks = vec![(1, None), (4096, std::num::NonZeroU32::new(9))];
    let mut bed = bed_with(config, [Side::Inside, Side::Inside]);
    let (forth, back) = (
        from_to(A[0], B[0]).udp(7, 53, b""),
        from_to(B[0], A[0]).udp(53, 7, b""),
    );
    assert!(bed.crosses(INSIDE, &nodes(0, 0).vxlan(8472, 1, &forth)));
    for network in [0, 2, 0xff_ffff] {
        bed.drops(
            INSIDE,
            &nodes(0, 0).vxlan(8472, network, &forth),
            DropReason::TunnelNetwork,
        );
        bed.drops(
            INSIDE,
            &nodes(0, 0).geneve(network, &[], &forth),
            DropReason::TunnelNetwork,
        );
    }
    // An answer in another network answers nothing.
    let reply = from_to(B[0], MUTE[0]).udp(53, 7, b"");
    assert!(bed.crosses(OUTSIDE, &nodes(1, 0).vxlan(8472, 1, &back)));
    assert!(bed.crosses(OUTSIDE, &nodes(1, 0).vxlan(8472, 4096, &reply)));
    let asked = from_to(MUTE[0], B[0]).udp(7, 53, b"");
    bed.drops(
        INSIDE,
        &nodes(0, 0).vxlan(8472, 1, &asked),
        DropReason::PolicyEgress,
    );
    assert!(bed.crosses(INSIDE, &nodes(0, 0).geneve(4096, &[], &asked)));
    let mut zones: Vec<u32> = bed.flows().iter().map(|flow| flow.key.zone).collect();
    zones.sort_unstable();
    assert_eq!(zones, [0, 9]);
}

#[test]
fn tunnels_in_tunnels_are_looked_into_to_a_bound() {
    for (outer, inner) in FAMILIES {
        for (form, wrap) in FORMS {
            let mut bed = bed();
            let inside = from_to(A[inner], B[inner]).udp(7, 53, b"");
            let denied = from_to(A[inner], B[inner]).udp(7, 54, b"");
            let once = |frame: &[u8]| nodes(0, outer).vxlan(4789, 1, frame);
            let twice = |frame: &[u8]| wrap(&nodes(0, outer), &once(frame));
            assert!(bed.crosses(INSIDE, &twice(&inside)), "{form}");
            bed.drops(INSIDE, &twice(&denied), DropReason::PolicyIngress);
            bed.drops(INSIDE, &once(&twice(&inside)), DropReason::TunnelNested);
            bed.drops(
                INSIDE,
                &twice(&once(&once(&once(&inside)))),
                DropReason::TunnelNested,
            );
            // The one inside comes from another node.
            let forged = wrap(&nodes(0, outer), &nodes(1, outer).vxlan(4789, 1, &inside));
            bed.drops(INSIDE, &forged, DropReason::TunnelSpoofed);
            let forged = wrap(
                &nodes(0, outer),
                &from_to(STRANGER[outer], NODES[1][outer]).vxlan(4789, 1, &inside),
            );
            bed.drops(INSIDE, &forged, DropReason::TunnelSource);
            // The one inside is a pod's own.
            let pods = wrap(
                &nodes(0, outer),
                &from_to(A[outer], NODES[1][outer]).vxlan(4789, 1, &inside),
            );
            bed.drops(INSIDE, &pods, DropReason::Encapsulation);
        }
    }
}

/// However little is left of what is inside, nothing of it passes.
#[test]
fn what_is_cut_short_inside_does_not_pass() {
    for (outer, inner) in FAMILIES {
        let mut bed = bed();
        let inside = from_to(A[inner], B[inner]).tcp(7, 80, SYN, b"");
        let of_udp = |port: u16, header: &[u8], rest: &[u8]| {
            nodes(0, outer).udp(50_000, port, &[header, rest].concat())
        };
        let refused = [
            DropReason::Truncated,
            DropReason::Malformed,
            DropReason::TunnelMalformed,
            DropReason::NotSubject,
        ];
        let vxlan = [8, 0, 0, 0, 0, 0, 1, 0];
        let mut frames = Vec::new();
        for length in 0..inside.len() {
            let cut = &inside[..length];
            frames.push(of_udp(4789, &vxlan, cut));
            frames.push(of_udp(6081, &[0, 0, 0x65, 0x58, 0, 0, 1, 0], cut));
            let packet = &inside[14..14 + length.saturating_sub(14)];
            frames.push(of_udp(8285, &[], packet));
            frames.push(nodes(0, outer).ip([4, 41][inner], packet));
            frames.push(nodes(0, outer).ip(
                47,
                &[&[0, 0, [8, 0x86][inner], [0, 0xdd][inner]], packet].concat(),
            ));
        }
        for length in 0..8 {
            frames.push(of_udp(4789, &vxlan[..length], b""));
            frames.push(of_udp(6081, &vxlan[..length], b""));
            frames.push(nodes(0, outer).ip(47, &[0xb0, 0, 8, 0, 0, 0, 0, 0][..length]));
        }
        // Options that reach past the end.
        frames.push(of_udp(6081, &[0x3f, 0, 0x65, 0x58, 0, 0, 1, 0], &inside));
        let before: u64 = refused.iter().map(|reason| bed.stats.drops(*reason)).sum();
        for frame in &frames {
            assert_eq!(bed.on(0, INSIDE, frame), []);
        }
        let after: u64 = refused.iter().map(|reason| bed.stats.drops(*reason)).sum();
        assert_eq!(after - before, frames.len() as u64);
        // The datagram ends before the packet inside does, though the frame goes on.
        let mut short = nodes(0, outer).vxlan(4789, 1, &inside);
        let at = [14 + 20 + 4, 14 + 40 + 4][outer];
        let length = u16::from_be_bytes([short[at], short[at + 1]]) - 1;
        short[at..at + 2].copy_from_slice(&length.to_be_bytes());
        bed.drops(INSIDE, &short, DropReason::Truncated);
    }
}

#[test]
fn headers_of_tunnels_that_say_odd_things_are_refused() {
    let mut bed = bed();
    let inside = from_to(A[0], B[0]).udp(7, 53, b"");
    let malformed = DropReason::TunnelMalformed;
    let udp = |port: u16, header: &[u8]| nodes(0, 0).udp(50_000, port, &[header, &inside].concat());
    // Without a network; of a later version; VXLAN-GPE; remote checksum.
    for flags in [[0, 0], [0x18, 0], [0x0c, 0], [8, 0x20]] {
        bed.drops(
            INSIDE,
            &udp(4789, &[flags[0], flags[1], 0, 0, 0, 0, 1, 0]),
            malformed,
        );
    }
    // Group policy changes nothing inside.
    assert!(bed.crosses(INSIDE, &udp(4789, &[0x88, 0, 0, 9, 0, 0, 1, 0])));
    bed.drops(INSIDE, &udp(6081, &[0x40, 0, 0x65, 0x58, 0, 0, 1, 0]), malformed);
    bed.drops(INSIDE, &udp(6081, &[0, 0, 0x88, 0x47, 0, 0, 1, 0]), malformed);
    bed.drops(INSIDE, &udp(8285, &[0x70]), malformed);
    for flags in [[0x40, 0], [0, 1], [8, 0], [0x20, 0x80]] {
        let gre = [&flags[..], &[8, 0, 0, 0, 0, 0], &inside[14..]].concat();
        bed.drops(INSIDE, &nodes(0, 0).ip(47, &gre), malformed);
    }
    bed.drops(
        INSIDE,
        &nodes(0, 0).ip(47, &[&[0, 0, 0x88, 0xbe][..], &inside].concat()),
        malformed,
    );
    let mut tagged = from_to(A[0], B[0]);
    tagged.vlans = vec![7];
    bed.drops(
        INSIDE,
        &nodes(0, 0).vxlan(4789, 1, &tagged.udp(7, 53, b"")),
        malformed,
    );
    // The number says IPv4, the packet IPv6.
    let six = from_to(A[1], B[1]).udp(7, 53, b"");
    bed.drops(INSIDE, &nodes(0, 0).ip(4, &six[14..]), DropReason::Malformed);
    bed.drops(INSIDE, &nodes(0, 0).ip(41, &inside[14..]), DropReason::Malformed);
}

#[test]
fn fragments_of_tunnels_drop_and_fragments_in_tunnels_follow_their_first() {
    for (outer, inner) in FAMILIES {
        for (form, wrap) in FORMS {
            let mut bed = bed();
            let part = |id: u32, offset: u16, more: bool, l4: &[u8]| {
                let mut template = from_to(A[inner], B[inner]);
                template.fragment = Some((id, offset, more));
                wrap(&nodes(0, outer), &template.ip(17, l4))
            };
            let first = [0, 7, 0, 53, 0, 40, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8];
            let denied = [0, 7, 0, 54, 0, 40, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8];
            bed.drops(INSIDE, &part(1, 16, false, &[9; 24]), DropReason::FragmentUnknown);
            assert!(bed.crosses(INSIDE, &part(1, 0, true, &first)), "{form}");
            assert!(bed.crosses(INSIDE, &part(1, 16, false, &[9; 24])), "{form}");
            bed.drops(INSIDE, &part(2, 0, true, &denied), DropReason::PolicyIngress);
            bed.drops(INSIDE, &part(2, 16, false, &[9; 24]), DropReason::FragmentUnknown);
            bed.drops(INSIDE, &part(1, 8, false, &[9; 16]), DropReason::FragmentInvalid);

            let mut carrier = nodes(0, outer);
            carrier.fragment = Some((3, 0, true));
            let inside = from_to(A[inner], B[inner]).udp(7, 53, b"1234567");
            let mut whole = wrap(&carrier, &inside);
            if outer == 1 {
                // What a fragment header is behind is cut at eight bytes.
                let header = 14 + 40 + 8;
                let length = (whole.len() - header) / 8 * 8;
                whole.truncate(header + length);
                whole[18..20].copy_from_slice(&((length + 8) as u16).to_be_bytes());
            } else {
                let length = (whole.len() - 34) / 8 * 8;
                whole.truncate(34 + length);
                whole[16..18].copy_from_slice(&((length + 20) as u16).to_be_bytes());
                whole[24..26].fill(0);
                let sum = !crate::wire::checksum::fold(crate::wire::checksum::sum(&whole[14..34]));
                whole[24..26].copy_from_slice(&sum.to_be_bytes());
            }
            bed.drops(INSIDE, &whole, DropReason::TunnelFragment);
            carrier.fragment = Some((3, 64, false));
            let udp = carrier.ip(17, &[0; 24]);
            bed.drops(INSIDE, &udp, DropReason::FragmentUnknown);
            bed.drops(INSIDE, &carrier.ip(4, &[0x45; 24]), DropReason::TunnelFragment);
        }
    }
}

#[test]
fn errors_pass_inside_with_their_flow_and_outside_to_nodes() {
    for (family, unreachable, too_big) in [(0, (3, 3), (3, 4)), (1, (1, 4), (2, 0))] {
        let mut bed = bed();
        let asked = from_to(A[family], B[family]).udp(7, 53, b"12345678");
        let sent = nodes(0, family).vxlan(4789, 1, &asked);
        assert!(bed.crosses(INSIDE, &sent));
        let error = |from: &str, to: &str, quoted: &[u8]| {
            let error = from_to(from, to).icmp(unreachable.0, unreachable.1, [0; 4], &quoted[14..]);
            nodes(1, family).vxlan(4789, 1, &error)
        };
        assert!(bed.crosses(OUTSIDE, &error(B[family], A[family], &asked)));
        let other = from_to(A[family], B[family]).udp(8, 53, b"12345678");
        bed.drops(
            OUTSIDE,
            &error(B[family], A[family], &other),
            DropReason::IcmpUnrelated,
        );
        bed.drops(
            OUTSIDE,
            &error(B[family], MUTE[family], &asked),
            DropReason::IcmpUnrelated,
        );
        // From another node than the pod that it claims to be from.
        let beside = from_to(B[family], A[family]).icmp(unreachable.0, unreachable.1, [0; 4], &asked[14..]);
        bed.drops(
            OUTSIDE,
            &nodes(0, family).vxlan(4789, 1, &beside),
            DropReason::TunnelSpoofed,
        );
        // A router between the nodes tells the one that sent the tunnel packet, whose flow it is not.
        let router = ["198.51.100.1", "2001:db8:1::1"][family];
        let about = |frame: &[u8]| frame[14..14 + [20 + 8, 40 + 8][family]].to_vec();
        let error = from_to(router, NODES[0][family]);
        let mut bed = bed_with(DataplaneConfig::default(), [Side::Inside, Side::Any]);
        for (_, wrap) in FORMS {
            let carrier = wrap(&nodes(0, family), &asked);
            let word = [0, 0, 5, 0];
            assert!(bed.crosses(OUTSIDE, &error.icmp(too_big.0, too_big.1, word, &about(&carrier))));
        }
        // Not about anything else, not to another, and not about what no node sends.
        let plain = nodes(0, family).udp(9, 9, b"12345678");
        let unrelated = DropReason::IcmpUnrelated;
        bed.drops(
            OUTSIDE,
            &error.icmp(too_big.0, too_big.1, [0, 0, 5, 0], &about(&plain)),
            unrelated,
        );
        let elsewhere = from_to(router, A[family]);
        bed.drops(
            OUTSIDE,
            &elsewhere.icmp(too_big.0, too_big.1, [0, 0, 5, 0], &about(&sent)),
            unrelated,
        );
        let forged = from_to(STRANGER[family], NODES[1][family]).vxlan(4789, 1, &asked);
        let to_stranger = from_to(router, STRANGER[family]);
        bed.drops(
            OUTSIDE,
            &to_stranger.icmp(too_big.0, too_big.1, [0, 0, 5, 0], &about(&forged)),
            unrelated,
        );
        let mut passed = 0;
        for _ in 0..2_000 {
            passed += bed
                .on(
                    0,
                    OUTSIDE,
                    &error.icmp(too_big.0, too_big.1, [0, 0, 5, 0], &about(&sent)),
                )
                .len();
        }
        assert!(passed < 1_000, "{passed}: they are not counted");
    }
}

/// Leaves a checksum to the device: then the field has the sum of the pseudo-header.
fn partial(frame: &[u8], packet: &crate::wire::Packet) -> Vec<u8> {
    use crate::wire::checksum::{fold, pseudo_header};
    let mut partial = frame.to_vec();
    let at = usize::from(packet.l4) + if packet.protocol == 6 { 16 } else { 6 };
    let pseudo = pseudo_header(packet.src, packet.dst, packet.protocol, packet.l4_length());
    partial[at..at + 2].copy_from_slice(&fold(pseudo).to_be_bytes());
    partial
}

/// A veth hands over what its sender left to a device to sum: the innermost packet, whose sum those around it take for
/// complete; or, if that needs none, the one around it.
#[test]
fn partial_sums_are_completed_inside_and_outside() {
    let read = |frame: &[u8]| match parse(frame) {
        Parsed::Subject(packet) => packet,
        other => panic!("{other:?}"),
    };
    for (outer, inner) in FAMILIES {
        for (form, wrap) in FORMS {
            let mut bed = bed();
            let mut builder = wire();
            for (id, peer) in [(INSIDE, OUTSIDE), (OUTSIDE, INSIDE)] {
                builder.port(Port {
                    partial_checksums: true,
                    ..port(id, PortKind::Wire { peer }, Side::Inside)
                });
            }
            bed.plane.forwarding.publish(builder.build());
            let whole = from_to(A[inner], B[inner]).tcp(7, 80, SYN, b"hello");
            let want = wrap(&nodes(0, outer), &whole);
            // As if the inner one were complete.
            let mut sent = want.clone();
            sent.truncate(sent.len() - (whole.len() - 14));
            sent.extend_from_slice(&partial(&whole, &read(&whole))[14..]);
            assert_eq!(
                bed.on(0, INSIDE, &sent),
                [(OUTSIDE, want)],
                "{form} {outer} {inner}"
            );
            assert_eq!(bed.count(|worker| worker.checksums_completed.get()), 1, "{form}");
        }
        let arp = arp_request();
        let echo = from_to(A[inner], STRANGER[inner]).echo(7, true);
        let mut bed = bed();
        let mut builder = wire();
        for (id, peer) in [(INSIDE, OUTSIDE), (OUTSIDE, INSIDE)] {
            builder.port(Port {
                partial_checksums: true,
                ..port(id, PortKind::Wire { peer }, Side::Inside)
            });
        }
        bed.plane.forwarding.publish(builder.build());
        // The sum of GRE, with nothing inside that is summed.
        let whole = nodes(0, outer).gre(0xb0, &echo);
        let mut without = whole.clone();
        let field = usize::from(read(&whole).l4) + 4;
        without[field..field + 2].fill(0);
        assert_ne!(without, whole);
        assert_eq!(bed.on(0, INSIDE, &without), [(OUTSIDE, whole)], "{outer} {inner}");
        for inside in [&arp, &echo] {
            let once = nodes(0, outer).vxlan(8472, 1, inside);
            assert_eq!(
                bed.on(0, INSIDE, &partial(&once, &read(&once))),
                [(OUTSIDE, once.clone())]
            );
            let twice = nodes(0, outer).geneve(1, &[], &once);
            assert_eq!(
                bed.on(0, INSIDE, &partial(&twice, &read(&twice))),
                [(OUTSIDE, twice)]
            );
        }
    }
}

#[test]
fn what_cannot_be_looked_into_passes_between_nodes_only_if_configured() {
    for family in [0, 1] {
        for allowed in [false, true] {
            let mut config = DataplaneConfig::default();
            if allowed {
                config.tunnels.opaque = OpaqueAction::Allow;
            }
            config.tunnels.gre = false;
            config.tunnels.ports.push(9999);
            let mut bed = bed_with(config, [Side::Inside, Side::Any]);
            let mut frames: Vec<Vec<u8>> = [50, 51, 47, 97, 108, 115, 137]
                .iter()
                .map(|number| nodes(0, family).ip(*number, &[0; 40]))
                .collect();
            for port in [4500, 51820, 9999, 4790] {
                frames.push(nodes(0, family).udp(port, port, &[0; 40]));
            }
            for frame in &frames {
                if allowed {
                    assert!(bed.crosses(INSIDE, frame));
                } else {
                    bed.drops(INSIDE, frame, DropReason::TunnelOpaque);
                }
            }
            // A pod's own is the pod's.
            assert!(bed.crosses(
                INSIDE,
                &from_to(A[family], OUTSIDER[family]).udp(51820, 51820, b"")
            ));
            bed.drops(
                INSIDE,
                &from_to(MUTE[family], OUTSIDER[family]).ip(50, &[0; 40]),
                DropReason::PolicyEgress,
            );
            assert!(bed.crosses(INSIDE, &nodes(0, family).udp(9, 9, b"")));
        }
    }
}

/// Failsafe rules are for the administrator's own connections: not for whatever nodes' tunnels hold.
#[test]
fn failsafe_rules_open_no_tunnels() {
    let everything = |protocol| FailsafeRule {
        from: Prefix::new(addr("10.9.0.0"), 24),
        to: Prefix::new(addr("10.9.0.0"), 24),
        protocol,
        ports: None,
    };
    let config = |protocol| DataplaneConfig {
        failsafe: Failsafe(vec![everything(protocol)]),
        ..DataplaneConfig::default()
    };
    let inside = from_to(A[0], B[0]).udp(7, 54, b"");
    let frames = [nodes(0, 0).vxlan(4789, 1, &inside), nodes(0, 0).ip(50, &[0; 40])];
    let mut bed = bed_with(config(None), [Side::Inside, Side::Inside]);
    bed.drops(INSIDE, &frames[0], DropReason::PolicyIngress);
    bed.drops(INSIDE, &frames[1], DropReason::TunnelOpaque);
    assert!(bed.crosses(INSIDE, &nodes(0, 0).udp(9, 9, b"")));
    // Nor before the first snapshot.
    for protocol in [None, Some(17), Some(50)] {
        let mut bed = Bed::with(config(protocol), 4096);
        bed.plane.forwarding.publish(wire().build());
        for (frame, own) in frames.iter().zip([17, 50]) {
            if protocol == Some(own) {
                assert!(bed.crosses(INSIDE, frame), "it is named");
            } else {
                bed.drops(INSIDE, frame, DropReason::NoSnapshot);
            }
        }
        assert_eq!(
            bed.on(0, INSIDE, &nodes(0, 0).udp(9, 9, b"")).len(),
            usize::from(protocol != Some(50))
        );
    }
}

#[test]
fn what_no_policy_speaks_about_crosses_inside_as_it_does_bare() {
    let mut bed = bed();
    let arp = arp_request();
    assert!(bed.crosses(INSIDE, &nodes(0, 0).vxlan(8472, 1, &arp)));
    let stranger = from_to(STRANGER[0], NODES[1][0]);
    bed.drops(INSIDE, &stranger.vxlan(8472, 1, &arp), DropReason::TunnelSource);
    let group = from_to(A[0], "224.0.0.9").udp(9, 9, b"");
    bed.drops(
        INSIDE,
        &nodes(0, 0).vxlan(8472, 1, &group),
        DropReason::NotSubject,
    );
    bed.drops(INSIDE, &nodes(0, 0).ip_in_ip(&group), DropReason::MartianAddress);
}

#[test]
fn audit_forwards_what_it_would_drop_in_tunnels() {
    let config = DataplaneConfig {
        mode: Mode::Audit,
        ..DataplaneConfig::default()
    };
    let mut bed = bed_with(config, [Side::Inside, Side::Inside]);
    let inside = from_to(A[0], B[0]).udp(7, 54, b"");
    let stranger = from_to(STRANGER[0], NODES[1][0]);
    for (frame, reason) in [
        (nodes(0, 0).vxlan(4789, 1, &inside), DropReason::PolicyIngress),
        (stranger.vxlan(4789, 1, &inside), DropReason::TunnelSource),
        (nodes(0, 0).ip(50, &[0; 40]), DropReason::TunnelOpaque),
        (nodes(0, 0).udp(9, 4789, &[0; 40]), DropReason::TunnelMalformed),
    ] {
        assert!(bed.crosses(INSIDE, &frame), "{}", reason.name());
        assert_eq!(
            bed.count(|worker| worker.audited.get(reason)),
            1,
            "{}",
            reason.name()
        );
    }
}

#[test]
fn samples_say_in_which_tunnel_a_packet_was() {
    let mut bed = bed();
    let inside = from_to(A[0], B[0]).udp(7, 54, b"");
    bed.drops(INSIDE, &inside, DropReason::PolicyIngress);
    assert_eq!(bed.stats.next_sample().unwrap().tunnel, None);
    for (wrap, kind) in [
        (FORMS[0].1, TunnelKind::Vxlan),
        (FORMS[2].1, TunnelKind::Geneve),
        (FORMS[4].1, TunnelKind::FlannelUdp),
        (FORMS[5].1, TunnelKind::IpInIp),
        (FORMS[6].1, TunnelKind::Gre),
    ] {
        bed.drops(INSIDE, &wrap(&nodes(0, 0), &inside), DropReason::PolicyIngress);
        let sample = bed.stats.next_sample().unwrap();
        assert_eq!(sample.tunnel, Some(kind));
        let key = sample.key.unwrap();
        assert_eq!((key.src, key.dst, key.dst_port), (addr(A[0]), addr(B[0]), 54));
    }
    for kind in TunnelKind::ALL {
        assert_eq!(
            bed.count(|worker| worker.tunnelled.get(kind)),
            1,
            "{}",
            kind.name()
        );
    }
}

/// The worker that owns the inner flow judges, whichever received the tunnel packet.
#[test]
fn workers_agree_about_tunnels() {
    for workers in [1, 2, 4] {
        let config = DataplaneConfig {
            workers,
            ..DataplaneConfig::default()
        };
        let mut bed = bed_with(config, [Side::Inside, Side::Inside]);
        for client in 1..40 {
            for (nth, (_, wrap)) in FORMS.iter().enumerate() {
                let on = (usize::from(client) + nth) % workers;
                let asked = from_to(A[0], B[0]).udp(client, 53, b"");
                let frame = wrap(&nodes(0, 0), &asked);
                assert_eq!(bed.on(on, INSIDE, &frame), [(OUTSIDE, frame.clone())]);
                let answer = wrap(&nodes(1, 0), &from_to(B[0], A[0]).udp(53, client, b""));
                assert_eq!(
                    bed.on((on + 1) % workers, OUTSIDE, &answer),
                    [(INSIDE, answer.clone())]
                );
                let denied = wrap(&nodes(0, 0), &from_to(A[0], B[0]).udp(client, 54, b""));
                assert_eq!(bed.on(on, INSIDE, &denied), []);
            }
        }
        assert_eq!(bed.flows().len(), 39);
        assert_eq!(
            bed.stats.drops(DropReason::PolicyIngress),
            39 * FORMS.len() as u64
        );
    }
}

/// A router whose two ports lead to a node each.
fn router(family: usize, neighbours: &[usize]) -> ForwardingBuilder {
    let mut builder = ForwardingBuilder::new();
    for (id, node) in [(INSIDE, 0), (OUTSIDE, 1)] {
        builder.port(Port {
            mtu: 1400,
            ..port(id, PortKind::Uplink, Side::Inside)
        });
        let longest = [32, 128][family];
        builder.route(addr(NODES[node][family]), longest, Route::connected(id));
        if neighbours.contains(&node) {
            let station = [6, 0, 0, 0, 0, node as u8];
            builder.neighbour(id, addr(NODES[node][family]), Neighbour::Reachable(station));
        }
        builder.icmp_source(addr(["203.0.113.9", "2001:db8:9::9"][family]));
    }
    builder
}

/// From one node to the router.
fn to_router(node: usize, family: usize) -> Template {
    let mut template = nodes(node, family);
    template.eth_dst = [2, 0, 0, 0, 1, node as u8];
    template
}

/// Who has an address?
fn arp_request() -> Vec<u8> {
    let mut arp = vec![0xff; 6];
    arp.extend_from_slice(&[2, 0, 0, 0, 0, 1, 8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
    arp.extend_from_slice(&[0; 20]);
    arp
}

#[test]
fn a_router_forwards_what_the_ends_of_a_tunnel_find_each_other_by() {
    for family in [0, 1] {
        let mut bed = Bed::with(DataplaneConfig::default(), 4096);
        bed.plane.snapshots.publish(snapshot(1));
        bed.plane.forwarding.publish(router(family, &[0, 1]).build());
        let mut bed = bed.settled();
        let question = to_router(0, family).vxlan(8472, 1, &arp_request());
        let [(out, sent)] = bed.on(0, INSIDE, &question).try_into().unwrap();
        assert_eq!(out, OUTSIDE);
        let Parsed::Subject(outer) = parse(&sent) else {
            panic!("no packet")
        };
        assert_eq!((outer.ttl, outer.src), (63, addr(NODES[0][family])));
        assert!(sent.ends_with(&arp_request()), "unchanged inside");

        // A bare one is the router's own; a stranger's, and what a wire would not let cross, go nowhere.
        bed.drops(INSIDE, &arp_request(), DropReason::NotSubject);
        let mut stranger = from_to(STRANGER[family], NODES[1][family]);
        stranger.eth_dst = to_router(0, family).eth_dst;
        bed.drops(
            INSIDE,
            &stranger.vxlan(8472, 1, &arp_request()),
            DropReason::TunnelSource,
        );
        let group = from_to(A[0], "224.0.0.9").udp(9, 9, b"");
        bed.drops(
            INSIDE,
            &to_router(0, family).vxlan(8472, 1, &group),
            DropReason::NotSubject,
        );

        // It waits for the next hop like any other.
        bed.plane.forwarding.publish(router(family, &[0]).build());
        assert!(bed.on(0, INSIDE, &question).is_empty());
        bed.plane.forwarding.publish(router(family, &[0, 1]).build());
        let [(out, again)] = bed.run().try_into().unwrap();
        assert_eq!((out, again), (OUTSIDE, sent));
    }
}

/// A router between nodes forwards the tunnel packet: its routes, TTL and MTU are the outer packet's.
#[test]
fn a_router_routes_the_outer_packet() {
    for family in [0, 1] {
        let mut bed = Bed::with(DataplaneConfig::default(), 4096);
        bed.plane.snapshots.publish(snapshot(1));
        bed.plane.forwarding.publish(router(family, &[0, 1]).build());
        let mut bed = bed.settled();
        for (form, wrap) in FORMS {
            let template = |node: usize| to_router(node, family);
            let inside = from_to(A[family], B[family]).udp(7, 53, b"");
            let frame = wrap(&template(0), &inside);
            let [(out, sent)] = bed.on(0, INSIDE, &frame).try_into().unwrap();
            assert_eq!(out, OUTSIDE, "{form}");
            let Parsed::Subject(outer) = parse(&sent) else {
                panic!("{form}")
            };
            assert_eq!((outer.ttl, outer.src), (63, addr(NODES[0][family])));
            assert_eq!(
                &sent[sent.len() - inside.len() + 14..],
                &inside[14..],
                "{form}: unchanged inside"
            );
            let answer = wrap(&template(1), &from_to(B[family], A[family]).udp(53, 7, b""));
            assert_eq!(bed.on(0, OUTSIDE, &answer).len(), 1, "{form}");
            let denied = wrap(&template(0), &from_to(A[family], B[family]).udp(7, 54, b""));
            bed.drops(INSIDE, &denied, DropReason::PolicyIngress);
            // What is too big is told to the node, about the packet that it sent.
            let big = from_to(A[family], B[family]).udp(7, 53, &[0; 1400]);
            let mut outer = template(0);
            outer.dont_fragment = true;
            bed.wait(Nanos::from_secs(10));
            let [(back, error)] = bed.on(0, INSIDE, &wrap(&outer, &big)).try_into().unwrap();
            assert_eq!(back, INSIDE);
            let Parsed::Subject(error) = parse(&error) else {
                panic!("{form}")
            };
            assert_eq!(error.dst, addr(NODES[0][family]), "{form}");
            let crate::wire::Transport::IcmpError { quoted: Some(quoted) } = error.transport else {
                panic!("{form}")
            };
            assert_eq!((quoted.src, quoted.dst), (outer.src, outer.dst));
        }
    }
}

#[test]
fn packets_inside_of_jumbo_frames_are_judged_and_their_checksums_completed() {
    let chain = |bed: &mut Bed, frame: &[u8]| {
        let pieces: Vec<&[u8]> = frame.chunks(1920).collect();
        assert!(bed.workers[0].io().inject_pieces(usize::from(INSIDE.0), &pieces));
        bed.run()
    };
    for family in [0, 1] {
        let mut bed = bed();
        let mut builder = wire();
        for (id, peer) in [(INSIDE, OUTSIDE), (OUTSIDE, INSIDE)] {
            let mut end = port(id, PortKind::Wire { peer }, Side::Inside);
            (end.mtu, end.partial_checksums) = (9000, true);
            builder.port(end);
        }
        bed.plane.forwarding.publish(builder.build());
        let outer = from_to(NODES[0][family], NODES[1][family]);
        let payload: Vec<u8> = (0..8800u32).map(|at| (at * 7) as u8).collect();
        for (port, passes) in [(53, true), (54, false)] {
            let inside = from_to(A[family], B[family]).udp(9, port, &payload);
            let before = bed.stats.drops(DropReason::PolicyIngress);
            for frame in [
                outer.vxlan(4789, 1, &inside),
                outer.geneve(1, &[0; 8], &inside),
                outer.ip_in_ip(&inside),
                outer.gre(0x20, &inside),
            ] {
                let sent = chain(&mut bed, &frame);
                assert!(sent == if passes { vec![(OUTSIDE, frame)] } else { vec![] });
            }
            let drops = bed.stats.drops(DropReason::PolicyIngress) - before;
            assert_eq!(drops, if passes { 0 } else { 4 });
        }
        // A forged outer source, and one inside that is not at the node.
        let inside = from_to(A[family], B[family]).udp(9, 53, &payload);
        let stranger = from_to(STRANGER[family], NODES[1][family]).vxlan(4789, 1, &inside);
        assert_eq!(chain(&mut bed, &stranger), []);
        assert_eq!(bed.stats.drops(DropReason::TunnelSource), 1);
        let inside = from_to(B[family], A[family]).udp(9, 53, &payload);
        assert_eq!(chain(&mut bed, &outer.vxlan(4789, 1, &inside)), []);
        assert_eq!(bed.stats.drops(DropReason::TunnelSpoofed), 1);
        // The inner checksum is the partial one; the outer one presumes it complete.
        let whole = from_to(A[family], B[family]).udp(9, 53, &payload);
        let Parsed::Subject(packet) = parse(&whole) else {
            panic!()
        };
        let mut partial = whole.clone();
        let at = usize::from(packet.l4) + 6;
        let pseudo = crate::wire::checksum::pseudo_header(packet.src, packet.dst, 17, packet.l4_length());
        partial[at..at + 2].copy_from_slice(&crate::wire::checksum::fold(pseudo).to_be_bytes());
        let complete = outer.vxlan(4789, 1, &whole);
        let mut frame = outer.vxlan(4789, 1, &partial);
        let Parsed::Subject(carrier) = parse(&complete) else {
            panic!()
        };
        let sum = usize::from(carrier.l4) + 6;
        frame[sum..sum + 2].copy_from_slice(&complete[sum..sum + 2]);
        let sent = chain(&mut bed, &frame);
        assert!(sent == [(OUTSIDE, complete)]);
    }
}
