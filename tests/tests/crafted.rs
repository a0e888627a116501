//! Packets that this kernel may be unable to make (SCTP, VLAN tags), written by hand into raw sockets.
#![allow(clippy::unwrap_used, clippy::panic)] // a failed step is a failed test

use std::{
    io::{ErrorKind, Read},
    net::{IpAddr, Ipv4Addr, SocketAddr},
    time::{Duration, Instant},
};

use etherparse::{PacketBuilder, SlicedPacket, TransportSlice, VlanId};
use ringwall_testbed::{
    appliance::{Appliance, Options, built_binary},
    preflight::runs_here,
    probe::Service,
    tap::Tap,
    topology::{Bed, Member, Plan, Role},
    world::{World, differences},
};
use serde_json::{Value, json};
use socket2::{Domain, Protocol, Socket, Type};

/// What an attempt waits for a packet, as in `probe`.
const PATIENCE: Duration = Duration::from_millis(1300);

/// SCTP chunks (RFC 9260 3.2).
mod chunk {
    pub(super) const INIT: u8 = 1;
    pub(super) const INIT_ACK: u8 = 2;
    pub(super) const COOKIE_ECHO: u8 = 10;
    pub(super) const COOKIE_ACK: u8 = 11;
}

/// CRC32c, bit by bit (RFC 9260 appendix A).
fn crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc: u32, _| {
            (crc >> 1) ^ (0x82f6_3b78 * (crc & 1))
        })
    })
}

/// One end of an SCTP association, as far as a firewall can tell it from a real one.
struct End {
    socket: Socket,
    port: u16,
    peer_port: u16,
}

impl End {
    fn new(member: &Member, port: u16, peer: &Member, peer_port: u16, v6: bool) -> Self {
        let domain = if v6 { Domain::IPV6 } else { Domain::IPV4 };
        let own = SocketAddr::new(member.address(v6), 0);
        let other = SocketAddr::new(peer.address(v6), 0);
        let socket = member
            .ns
            .run(|| {
                let socket = Socket::new(domain, Type::RAW, Some(Protocol::SCTP))?;
                socket.bind(&own.into())?;
                socket.connect(&other.into())?;
                socket.set_read_timeout(Some(Duration::from_millis(50)))?;
                std::io::Result::Ok(socket)
            })
            .unwrap()
            .unwrap();
        Self {
            socket,
            port,
            peer_port,
        }
    }

    /// Sends one chunk. INIT and INIT ACK have the fields of RFC 9260 3.3.2, all others a few bytes. COOKIE ECHO goes without
    /// its CRC, as a kernel with an SCTP stack leaves it to the device.
    fn send(&self, kind: u8) {
        // An INIT has no verification tag.
        let tag: u32 = if kind == chunk::INIT { 0 } else { 0x5157_e57a };
        let body: Vec<u8> = match kind {
            chunk::INIT | chunk::INIT_ACK => {
                [&[0, 0, 0, 7][..], &[0, 1, 0, 0], &[0, 10, 0, 10], &[0, 0, 0, 1]].concat()
            }
            _ => b"cook".to_vec(),
        };
        let length = u16::try_from(body.len() + 4).unwrap();
        let mut packet = Vec::new();
        packet.extend_from_slice(&self.port.to_be_bytes());
        packet.extend_from_slice(&self.peer_port.to_be_bytes());
        packet.extend_from_slice(&tag.to_be_bytes());
        packet.extend_from_slice(&[0; 4]);
        packet.extend_from_slice(&[kind, 0]);
        packet.extend_from_slice(&length.to_be_bytes());
        packet.extend_from_slice(&body);
        if kind != chunk::COOKIE_ECHO {
            let sum = crc32c(&packet).to_le_bytes();
            packet[8..12].copy_from_slice(&sum);
        }
        self.socket.send(&packet).unwrap();
    }

    /// Whether a chunk of the other end arrives, whole and unchanged.
    fn receives(&self, kind: u8) -> bool {
        let until = Instant::now() + PATIENCE;
        let mut buffer = [0; 2048];
        while Instant::now() < until {
            let length = match (&self.socket).read(&mut buffer) {
                Ok(length) => length,
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => continue,
                Err(error) => panic!("{error}"),
            };
            // Only of IPv4 does a raw socket show the header; there is none without a 4 in front then.
            let packet = match self.socket.domain().unwrap() {
                Domain::IPV4 => &buffer[usize::from(buffer[0] & 15) * 4..length],
                _ => &buffer[..length],
            };
            let ports = [self.peer_port.to_be_bytes(), self.port.to_be_bytes()].concat();
            if packet[..4] == ports && packet[12] == kind {
                let mut blank = packet.to_vec();
                blank[8..12].fill(0);
                assert_eq!(
                    packet[8..12],
                    crc32c(&blank).to_le_bytes(),
                    "the packet was changed"
                );
                return true;
            }
        }
        false
    }
}

/// What became of an association.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Association {
    /// Its INIT did not arrive.
    Dropped,
    /// Its INIT arrived, and an answer did not.
    Unanswered,
    /// Every chunk of the handshake arrived.
    Established,
}

fn associate(bed: &Bed, from: &str, to: &str, port: u16, v6: bool) -> Association {
    let (from, to) = (bed.member(from).unwrap(), bed.member(to).unwrap());
    // A flow that an earlier attempt left would answer for this one.
    static NEXT: std::sync::atomic::AtomicU16 = std::sync::atomic::AtomicU16::new(20_000);
    let own = NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    let (client, server) = (
        End::new(from, own, to, port, v6),
        End::new(to, port, from, own, v6),
    );
    client.send(chunk::INIT);
    if !server.receives(chunk::INIT) {
        return Association::Dropped;
    }
    for (sender, receiver, kind) in [
        (&server, &client, chunk::INIT_ACK),
        (&client, &server, chunk::COOKIE_ECHO),
        (&server, &client, chunk::COOKIE_ACK),
    ] {
        sender.send(kind);
        if !receiver.receives(kind) {
            return Association::Unanswered;
        }
    }
    Association::Established
}

fn associations(bed: &Bed, wanted: &[(&str, &str, u16, Association)]) {
    std::thread::scope(|scope| {
        for (from, to, port, wanted) in wanted {
            for v6 in [false, true] {
                scope.spawn(move || {
                    assert_eq!(
                        associate(bed, from, to, *port, v6),
                        *wanted,
                        "{from} -> {to} {port}/SCTP, IPv6 {v6}"
                    );
                });
            }
        }
    });
}

#[test]
fn the_checksum_of_sctp_is_the_published_one() {
    assert_eq!(crc32c(b"123456789"), 0xe306_9283);
}

#[test]
fn a_rule_for_an_sctp_port_opens_that_port_and_nothing_else() {
    use Association::{Dropped, Established};
    let Some(_alone) = runs_here("SCTP") else { return };
    let plans = [
        Plan::new("shop/web").tcp(&[36412]),
        Plan::new("shop/client"),
        Plan::new("ops/probe"),
    ];
    let bed = Bed::new(Role::Routed, &plans, 1).unwrap();
    let mut world = World::of(&bed);
    let firewall = Appliance::start(
        &bed,
        &built_binary().unwrap(),
        &Options::default(),
        &world.objects(),
    )
    .unwrap();
    let tcp = Service::Tcp(36412);
    // Without a policy everything passes.
    associations(
        &bed,
        &[
            ("shop/client", "shop/web", 36412, Established),
            ("shop/client", "shop/web", 36413, Established),
            ("ops/probe", "shop/web", 36412, Established),
            ("shop/web", "shop/client", 36412, Established),
        ],
    );
    assert_eq!(
        differences(&bed, &[("shop/client", "shop/web", tcp, true)]).unwrap(),
        [""; 0]
    );

    world.policy(
        "shop",
        "one-port",
        json!({
            "podSelector": {"matchLabels": {"app": "web"}},
            "ingress": [{
                "from": [{"podSelector": {"matchLabels": {"app": "client"}}}],
                "ports": [{"protocol": "SCTP", "port": 36412}],
            }],
        }),
    );
    // So what comes back to the client comes back as a reply or not at all.
    world.policy(
        "shop",
        "client-is-no-server",
        json!({"podSelector": {"matchLabels": {"app": "client"}}, "policyTypes": ["Ingress"]}),
    );
    world.apply(&firewall).unwrap();
    associations(
        &bed,
        &[
            ("shop/client", "shop/web", 36412, Established),
            ("shop/client", "shop/web", 36413, Dropped),
            ("ops/probe", "shop/web", 36412, Dropped),
            ("shop/web", "shop/client", 36412, Dropped),
        ],
    );
    let different = differences(
        &bed,
        &[
            ("shop/client", "shop/web", tcp, false),
            ("shop/client", "shop/web", Service::Udp(53), false),
        ],
    );
    assert_eq!(different.unwrap(), [""; 0]);
}

/// Sends a datagram in a frame with VLAN tags, outermost first.
fn send(by: &Tap, to: &Tap, tags: [u16; 2], from: (Ipv4Addr, u16), dest: (Ipv4Addr, u16), text: &str) {
    let [outer, inner] = tags.map(|tag| VlanId::try_new(tag).unwrap());
    let mut frame = Vec::new();
    PacketBuilder::ethernet2(by.mac(), to.mac())
        .double_vlan(outer, inner)
        .ipv4(from.0.octets(), dest.0.octets(), 64)
        .udp(from.1, dest.1)
        .write(&mut frame, text.as_bytes())
        .unwrap();
    by.send(&frame).unwrap();
}

/// Whether a frame with this text arrives, and its inner VLAN tag.
fn receives(tap: &Tap, text: &str) -> Option<u16> {
    let until = Instant::now() + PATIENCE;
    while Instant::now() < until {
        let Some(frame) = tap.receive(Duration::from_millis(50)).unwrap() else {
            continue;
        };
        let Ok(packet) = SlicedPacket::from_ethernet(&frame) else {
            continue;
        };
        if let Some(TransportSlice::Udp(udp)) = &packet.transport
            && udp.payload() == text.as_bytes()
        {
            return packet.vlan_ids().last().map(|tag| tag.value());
        }
    }
    None
}

fn udp_out(port: u16) -> Value {
    json!({
        "podSelector": {"matchLabels": {"app": "web"}}, "policyTypes": ["Ingress", "Egress"],
        "egress": [{"ports": [{"protocol": "UDP", "port": port}]}],
    })
}

#[test]
fn a_wire_judges_frames_with_vlan_tags_and_keeps_the_tags() {
    let Some(_alone) = runs_here("VLAN tags") else {
        return;
    };
    let bed = Bed::new(Role::Wire, &[Plan::new("shop/web")], 1).unwrap();
    let mut world = World::of(&bed);
    let options = Options {
        host_port: false,
        ..Options::default()
    };
    let firewall = Appliance::start(&bed, &built_binary().unwrap(), &options, &world.objects()).unwrap();
    let [inner, outer] = [0, 1].map(|router: usize| Tap::open(&bed.routers[router], "wire").unwrap());
    let IpAddr::V4(web) = bed.member("shop/web").unwrap().address(false) else {
        panic!("not IPv4");
    };
    let external = bed.external.v4;
    let out = |tags, own, port, text: &str| {
        send(&inner, &outer, tags, (web, own), (external, port), text);
        receives(&outer, text)
    };
    let back = |tags, port, own, text: &str| {
        send(&outer, &inner, tags, (external, port), (web, own), text);
        receives(&inner, text)
    };
    assert_eq!(out([5, 7], 1001, 54, "before"), Some(7), "no policy is on");
    assert_eq!(back([5, 7], 1002, 1002, "before, in"), Some(7));

    world.policy("shop", "out-to-53", udp_out(53));
    world.apply(&firewall).unwrap();
    assert_eq!(out([5, 7], 1003, 53, "allowed"), Some(7));
    assert_eq!(out([5, 7], 1004, 54, "denied"), None);
    assert_eq!(back([5, 7], 53, 1003, "reply"), Some(7));
    assert_eq!(back([5, 7], 53, 1005, "reply to nothing"), None);
    // Another VLAN is another network: what is a reply here is none there.
    assert_eq!(back([5, 8], 53, 1003, "reply from elsewhere"), None);
    assert_eq!(back([6, 7], 53, 1003, "reply from elsewhere, too"), None);
}
