#![allow(clippy::unwrap_used, clippy::panic)] // in tests a failed unwrap is the failure

use proptest::prelude::*;

use super::{build::Template, subject::NotSubject, *};
use crate::verdict::DropReason;

pub(crate) fn addr(text: &str) -> Addr {
    Addr::from(text.parse::<std::net::IpAddr>().unwrap())
}

fn v4() -> Template {
    Template::new(addr("10.0.0.1"), addr("10.0.0.2"))
}

fn v6() -> Template {
    Template::new(addr("fd00::1"), addr("fd00::2"))
}

fn subject(frame: &[u8]) -> Packet {
    match parse(frame) {
        Parsed::Subject(packet) => packet,
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_usual_packets_are_read() {
    for (template, l3) in [(v4(), 20), (v6(), 40)] {
        let packet = subject(&template.tcp(1000, 80, TcpFlags::SYN, b"x"));
        assert_eq!((packet.src, packet.dst), (template.src, template.dst));
        assert_eq!((packet.l3, packet.l4, packet.end), (14, 14 + l3, 14 + l3 + 21));
        assert_eq!((packet.src_port(), packet.dst_port()), (Some(1000), Some(80)));
        assert_eq!(
            packet.policy_l4(),
            L4::Port {
                protocol: 6,
                port: 80,
                source: 1000
            }
        );
        assert_eq!(packet.key(7).reversed().reversed(), packet.key(7));
        let packet = subject(&template.udp(5, 53, b""));
        assert_eq!(packet.transport, Transport::Udp { src: 5, dst: 53 });
        let packet = subject(&template.sctp(5, 6, 1));
        assert_eq!(
            packet.transport,
            Transport::Sctp {
                src: 5,
                dst: 6,
                chunk: 1
            }
        );
        let types = match template.src.is_v4() {
            true => [(8, true), (0, false)],
            false => [(128, true), (129, false)],
        };
        for (kind, request) in types {
            let packet = subject(&template.echo(77, request));
            let l4 = L4::Port {
                protocol: packet.protocol,
                port: icmp(kind, 0),
                source: 0,
            };
            assert_eq!(packet.policy_l4(), l4);
            assert_eq!(packet.key(0).policy_l4(!request), l4);
            let other = subject(&template.icmp(kind, 3, [0; 4], &[0; 8]));
            assert_eq!(other.transport, Transport::Icmp { kind, code: 3 });
        }
        let packet = subject(&template.echo(77, true));
        assert_eq!(
            packet.transport,
            Transport::Echo {
                id: 77,
                request: true
            }
        );
        let packet = subject(&template.ip(50, &[0; 30]));
        assert_eq!((packet.transport, packet.protocol), (Transport::Other, 50));
    }
}

#[test]
fn vlan_tags_are_part_of_the_key() {
    let mut template = v4();
    template.vlans = vec![100];
    assert_eq!(subject(&template.udp(1, 2, b"")).vlan, 0x1064);
    template.vlans = vec![0x6001, 2];
    assert_eq!(subject(&template.udp(1, 2, b"")).vlan, 0x1001_1002);
    template.vlans = vec![1, 2, 3];
    assert_eq!(
        parse(&template.udp(1, 2, b"")),
        Parsed::Malformed(DropReason::Malformed)
    );
    template.vlans = vec![0];
    assert_ne!(
        subject(&template.udp(1, 2, b"")).vlan,
        0,
        "a tag without an id is not the same as none"
    );
}

#[test]
fn semantics_64_options_move_layer_4() {
    let mut template = v4();
    template.options = vec![1; 8];
    let packet = subject(&template.tcp(1, 443, TcpFlags::ACK, b""));
    assert_eq!((packet.l4, packet.dst_port()), (14 + 28, Some(443)));
}

#[test]
fn semantics_63_extension_headers_are_walked_and_bounded() {
    let mut template = v6();
    template.extensions = vec![(0, vec![0; 6]), (60, vec![0; 14]), (43, vec![0; 6])];
    // Routing type 0 with nothing left is harmless.
    let packet = subject(&template.tcp(1, 80, TcpFlags::SYN, b""));
    assert_eq!((packet.l4, packet.dst_port()), (14 + 40 + 8 + 16 + 8, Some(80)));
    template.extensions = vec![(60, vec![0; 6]); parse::MAX_EXTENSIONS];
    assert_eq!(subject(&template.udp(1, 53, b"")).dst_port(), Some(53));
    template.extensions = vec![(60, vec![0; 6]); parse::MAX_EXTENSIONS + 1];
    let packet = subject(&template.udp(1, 53, b""));
    assert_eq!(
        (packet.protocol, packet.transport),
        (protocol::UNKNOWN, Transport::None)
    );
    assert_eq!(packet.policy_l4(), L4::NoPort { protocol: 255 });
    // An authentication header is a protocol of its own to policies (SEMANTICS 35).
    template.extensions = vec![(51, vec![0; 6])];
    assert_eq!(subject(&template.udp(1, 53, b"")).protocol, 51);
    // Hop-by-hop options anywhere but first.
    template.extensions = vec![(60, vec![0; 6]), (0, vec![0; 6])];
    assert_eq!(
        parse(&template.udp(1, 53, b"")),
        Parsed::Malformed(DropReason::Malformed)
    );
}

/// Policy judges the destination in the header, so a packet may not lead on to another one from there.
#[test]
fn source_routes_are_dropped() {
    let routed = Parsed::Malformed(DropReason::SourceRouted);
    for kind in [0, 2, 3, 4] {
        let mut template = v6();
        template.extensions = vec![(43, vec![kind, 1, 0, 0, 0, 0])];
        assert_eq!(parse(&template.udp(1, 53, b"")), routed);
        template.extensions.insert(0, (0, vec![1, 4, 0, 0, 0, 0]));
        assert_eq!(
            parse(&template.udp(1, 53, b"")),
            routed,
            "behind hop-by-hop options"
        );
        template.extensions = vec![(43, vec![kind, 0, 0, 0, 0, 0])];
        assert_eq!(
            subject(&template.udp(1, 53, b"")).dst_port(),
            Some(53),
            "it has arrived"
        );
    }
    for (options, wanted) in [
        (vec![131, 7, 4, 10, 0, 0, 1, 0], true),
        (vec![1, 137, 7, 4, 10, 0, 0, 1], true),
        (vec![7, 4, 4, 0, 131, 3, 4, 0], true),
        (vec![68, 40, 5, 0], true), // longer than there is room for: what is behind it is unknown
        (vec![7, 4, 4, 0, 0, 131, 3, 4], false),
        (vec![148, 4, 0, 0], false),
    ] {
        let mut template = v4();
        template.options = options;
        let dropped = parse(&template.udp(1, 53, b"")) == routed;
        assert_eq!(dropped, wanted, "{:?}", template.options);
    }
}

/// Who does not speak these takes them for layer 4.
#[test]
fn mobility_hip_and_shim6_headers_hide_no_ports() {
    for kind in [135, 139, 140] {
        let mut template = v6();
        template.extensions = vec![(kind, vec![0; 6])];
        let packet = subject(&template.udp(1, 53, b""));
        assert_eq!((packet.protocol, packet.dst_port()), (kind, None));
        assert_eq!(packet.transport, Transport::Other);
    }
}

#[test]
fn semantics_65_what_is_for_a_group_of_hosts_and_one_station_is_no_way_around_policy() {
    for (src, dst, ports) in [
        ("10.0.0.1", "239.1.1.1", (1, 2)),
        ("10.0.0.1", "255.255.255.255", (1, 2)),
        ("0.0.0.0", "255.255.255.255", (68, 67)),
        ("fd00::1", "ff02::1", (1, 2)),
    ] {
        let mut template = Template::new(addr(src), addr(dst));
        let frame = template.udp(ports.0, ports.1, b"");
        assert!(matches!(parse(&frame), Parsed::NotSubject(_)), "{dst}");
        template.eth_dst = [2, 0, 0, 0, 0, 7];
        let frame = template.udp(ports.0, ports.1, b"");
        assert_eq!(
            parse(&frame),
            Parsed::Malformed(DropReason::MartianAddress),
            "{dst}"
        );
    }
    // A client without an address talks to everyone, not to one.
    for eth_dst in [[2, 0, 0, 0, 0, 7], [255; 6]] {
        let mut template = Template::new(addr("0.0.0.0"), addr("10.0.0.2"));
        template.eth_dst = eth_dst;
        assert_eq!(
            parse(&template.udp(68, 67, b"")),
            Parsed::Malformed(DropReason::MartianAddress)
        );
    }
}

#[test]
fn semantics_65_what_is_not_subject() {
    let kinds = |frame: &[u8]| match parse(frame) {
        Parsed::NotSubject(kind) => kind,
        other => panic!("{other:?}"),
    };
    let ethernet = |dst: [u8; 6], kind: u16| [&dst[..], &[2; 6], &kind.to_be_bytes(), &[0; 46]].concat();
    let arp = [&[255; 6][..], &[2; 6], &[8, 6, 0, 1, 8, 0, 6, 4], &[0; 40]].concat();
    assert_eq!(kinds(&arp), NotSubject::Arp);
    for (kind, name) in [
        (0x8863, NotSubject::Pppoe),
        (0x8864, NotSubject::Pppoe),
        (0x8847, NotSubject::Mpls),
        (0x9200, NotSubject::OtherType),
    ] {
        assert_eq!(kinds(&ethernet([2; 6], kind)), name);
    }
    assert_eq!(
        kinds(&ethernet([1, 0x80, 0xc2, 0, 0, 0xe], 0x88cc)),
        NotSubject::Lldp
    );
    assert_eq!(
        kinds(&ethernet([1, 0x80, 0xc2, 0, 0, 2], 0x8809)),
        NotSubject::Lacp
    );
    let bridges = [1, 0x80, 0xc2, 0, 0, 0];
    let mut tree = ethernet(bridges, 39);
    tree[14..19].copy_from_slice(&[0x42, 0x42, 3, 0, 0]);
    assert_eq!(kinds(&tree), NotSubject::Stp);
    // What only looks like what links need.
    assert_eq!(kinds(&ethernet(bridges, 39)), NotSubject::Llc);
    for length in [40, 1200] {
        let mut long = [&tree[..], &[0; 1200]].concat();
        long[12..14].copy_from_slice(&u16::to_be_bytes(length));
        assert_eq!(kinds(&long), NotSubject::Llc);
    }
    assert_eq!(kinds(&[&tree[..], &[0; 20]].concat()), NotSubject::Llc);
    for dst in [[2; 6], [255; 6], bridges] {
        assert_eq!(kinds(&ethernet(dst, 0x8809)), NotSubject::OtherType);
    }
    let mut slow = ethernet([1, 0x80, 0xc2, 0, 0, 2], 0x8809);
    slow.resize(200, 0);
    assert_eq!(kinds(&slow), NotSubject::OtherType);
    assert_eq!(kinds(&ethernet([2; 6], 39)), NotSubject::Llc);
    assert_eq!(kinds(&ethernet([2; 6], 0x88f7)), NotSubject::OtherType);
    let to = |src: &str, dst: &str| Template::new(addr(src), addr(dst));
    assert_eq!(
        kinds(&to("10.0.0.1", "224.0.0.22").ip(2, &[0; 8])),
        NotSubject::Igmp
    );
    assert_eq!(
        kinds(&to("10.0.0.1", "239.1.1.1").udp(1, 2, b"")),
        NotSubject::Multicast
    );
    assert_eq!(
        kinds(&to("10.0.0.1", "255.255.255.255").udp(1, 2, b"")),
        NotSubject::Broadcast
    );
    assert_eq!(
        kinds(&to("0.0.0.0", "255.255.255.255").udp(68, 67, b"")),
        NotSubject::Dhcp
    );
    assert_eq!(
        kinds(&to("fe80::1", "fe80::2").udp(547, 546, b"")),
        NotSubject::DhcpServer
    );
    assert_eq!(
        kinds(&to("10.0.0.1", "255.255.255.255").udp(67, 68, b"")),
        NotSubject::DhcpServer
    );
    assert_eq!(
        kinds(&to("fe80::1", "ff02::1:2").udp(546, 547, b"")),
        NotSubject::Dhcp
    );
    assert_eq!(
        kinds(&to("fe80::1", "ff02::1:3").udp(546, 547, b"")),
        NotSubject::Multicast
    );
    let mut hop = to("::", "ff02::1:ff00:1");
    hop.ttl = 255;
    assert_eq!(kinds(&hop.icmp(135, 0, [0; 4], &[0; 16])), NotSubject::Ndp);
    let mut near = to("fe80::1", "fe80::2");
    near.ttl = 255;
    let mut all = to("fe80::1", "ff02::2");
    all.ttl = 255;
    for (template, kind, fixed, otherwise) in [
        (&all, 136, 16, NotSubject::Multicast),
        (&all, 133, 0, NotSubject::Multicast),
        (&near, 135, 16, NotSubject::LinkLocal),
        (&near, 133, 0, NotSubject::LinkLocal),
    ] {
        let frame = |options: &[u8]| template.icmp(kind, 0, [0; 4], &[&vec![0; fixed], options].concat());
        let (own, nonce) = ([1, 1, 0, 0, 0, 0, 0, 0], [14, 1, 1, 2, 3, 4, 5, 6]);
        for options in [vec![], own.to_vec(), [own, nonce].concat(), [nonce, own].concat()] {
            assert_eq!(kinds(&frame(&options)), NotSubject::Ndp);
        }
        for options in [
            vec![0],
            [own; 3].concat(),
            [own; 2].concat(),
            vec![1, 2, 0, 0],
            vec![9; 900],
        ] {
            assert_eq!(kinds(&frame(&options)), otherwise, "{options:?}");
        }
        assert_eq!(kinds(&[frame(&own), vec![0; 100]].concat()), otherwise);
    }
    assert_eq!(kinds(&near.udp(1, 2, b"")), NotSubject::LinkLocal);
    let mut trailed = to("0.0.0.0", "255.255.255.255").udp(68, 67, b"");
    trailed.resize(200, 0);
    assert_eq!(parse(&trailed), Parsed::Malformed(DropReason::MartianAddress));
    let mut router = to("fe80::1", "ff02::1");
    router.ttl = 255;
    for kind in [134, 137] {
        let frame = router.icmp(kind, 0, [0; 4], &[0; 16]);
        assert_eq!(kinds(&frame), NotSubject::RouterAdvertisement);
    }
    // From one end to another it could carry anything: judged like any ICMP. Not what says nothing but whose address
    // is where it comes from.
    let mut unicast = v6();
    unicast.ttl = 255;
    for kind in [133, 135, 136] {
        let packet = subject(&unicast.icmp(kind, 0, [0; 4], &[0; 16]));
        assert_eq!(packet.transport, Transport::Icmp { kind, code: 0 });
    }
    for (kind, flags, about, option) in [(135, 0, unicast.dst, 1), (136, 0x60, unicast.src, 2)] {
        let own = [&[option, 1][..], &unicast.eth_src].concat();
        let target = about.octets();
        for rest in [target.to_vec(), [&target[..], &own].concat()] {
            let frame = unicast.icmp(kind, 0, [flags, 0, 0, 0], &rest);
            assert_eq!(kinds(&frame), NotSubject::Ndp);
        }
        let other = [&[option, 1][..], &[7; 6]].concat();
        for (word, rest) in [
            ([flags, 0, 0, 1], target.to_vec()),
            ([flags | 1, 0, 0, 0], target.to_vec()),
            ([flags, 0, 0, 0], [7; 16].to_vec()),
            ([flags, 0, 0, 0], [&target[..], &other].concat()),
            ([flags, 0, 0, 0], [&target[..], &own, &own].concat()),
        ] {
            subject(&unicast.icmp(kind, 0, word, &rest));
        }
    }
    let mut hop = to("fe80::1", "ff02::16");
    hop.ttl = 1;
    hop.extensions = vec![(0, vec![5, 2, 0, 0, 1, 0])];
    assert_eq!(kinds(&hop.icmp(143, 0, [0; 4], &[])), NotSubject::Mld);
    // What only claims to be is judged, or dropped.
    let long = [&arp[..], &[0; 9]].concat();
    let other = [&[255; 6][..], &[2; 6], &[8, 6, 0, 6, 8, 0, 6, 4], &[0; 40]].concat();
    for frame in [long, other] {
        assert_eq!(parse(&frame), Parsed::Malformed(DropReason::Malformed));
    }
    assert_eq!(subject(&v4().udp(68, 67, b"")).dst_port(), Some(67));
    assert_eq!(subject(&v4().ip(2, &[0; 8])).protocol, 2);
    assert_eq!(
        parse(&v6().icmp(135, 0, [0; 4], &[0; 16])),
        Parsed::Malformed(DropReason::Malformed)
    );
}

#[test]
fn the_table_says_what_crosses() {
    let table = NotSubjectTable::WIRE.with(NotSubject::Stp, false);
    assert!(table.crosses(NotSubject::Ndp) && !table.crosses(NotSubject::Stp));
    let table = NotSubjectTable::ROUTED.with(NotSubject::Lldp, true);
    assert!(table.crosses(NotSubject::Lldp) && !table.crosses(NotSubject::Arp));
}
use super::subject::NotSubjectTable;

#[test]
fn martian_addresses_are_dropped() {
    for (src, dst) in [
        ("127.0.0.1", "10.0.0.1"),
        ("10.0.0.1", "127.0.0.1"),
        ("0.0.0.0", "10.0.0.1"),
        ("0.0.0.0", "224.0.0.1"),
        ("10.0.0.1", "0.0.0.0"),
        ("224.0.0.1", "10.0.0.1"),
        ("255.255.255.255", "10.0.0.1"),
        ("::1", "fd00::1"),
        ("fd00::1", "::1"),
        ("::", "fd00::1"),
        ("fd00::1", "::"),
        ("ff02::1", "fd00::1"),
    ] {
        let frame = Template::new(addr(src), addr(dst)).udp(1, 2, b"");
        assert_eq!(
            parse(&frame),
            Parsed::Malformed(DropReason::MartianAddress),
            "{src} > {dst}"
        );
    }
    for at in [22, 38] {
        let mut mapped = v6().udp(1, 2, b"");
        mapped[at..at + 16].copy_from_slice(&addr("10.0.0.1").octets());
        assert_eq!(parse(&mapped), Parsed::Malformed(DropReason::MartianAddress));
    }
}

#[test]
fn every_cut_is_noticed_and_padding_is_not() {
    for template in [v4(), v6()] {
        for frame in [
            template.tcp(1, 2, TcpFlags::SYN, b"payload"),
            template.udp(1, 2, b"payload"),
            template.sctp(1, 2, 1),
            template.echo(1, true),
        ] {
            let whole = subject(&frame);
            for length in 0..frame.len() {
                assert_eq!(
                    parse(&frame[..length]),
                    Parsed::Malformed(DropReason::Truncated),
                    "{length}"
                );
            }
            let padded = [frame.as_slice(), &[0; 20]].concat();
            assert_eq!(subject(&padded), whole);
        }
    }
}

#[test]
fn contradictions_are_malformed() {
    let malformed = |change: &dyn Fn(&mut Vec<u8>), frame: Vec<u8>| {
        let mut frame = frame;
        change(&mut frame);
        parse(&frame)
    };
    let want = Parsed::Malformed(DropReason::Malformed);
    let resum = |frame: &mut Vec<u8>| {
        frame[24..26].fill(0);
        let sum = !checksum::fold(checksum::sum(&frame[14..34]));
        frame[24..26].copy_from_slice(&sum.to_be_bytes());
    };
    let tcp = || v4().tcp(1, 2, TcpFlags::SYN, b"");
    assert_eq!(malformed(&|f| f[24] ^= 1, tcp()), want, "header checksum");
    assert_eq!(malformed(&|f| f[14] = 0x65, tcp()), want, "version");
    assert_eq!(malformed(&|f| f[14] = 0x44, tcp()), want, "header length");
    let short = |f: &mut Vec<u8>| {
        f[16..18].copy_from_slice(&[0, 19]);
        resum(f);
    };
    assert_eq!(malformed(&short, tcp()), want, "total length");
    assert_eq!(malformed(&|f| f[14 + 20 + 12] = 0x40, tcp()), want, "data offset");
    assert_eq!(
        malformed(&|f| f[14 + 20 + 5] = 7, v4().udp(1, 2, b"x")),
        want,
        "UDP length"
    );
    assert_eq!(
        malformed(&|f| f[14] = 0x45, v6().udp(1, 2, b"x")),
        want,
        "version"
    );
    let long = malformed(&|f| f[14 + 20 + 5] = 99, v4().udp(1, 2, b"x"));
    assert_eq!(long, Parsed::Malformed(DropReason::Truncated), "UDP length");
}

#[test]
fn fragments_are_read_and_tiny_ones_are_not_believed() {
    for mut template in [v4(), v6()] {
        let whole = [0u8; 24];
        template.fragment = Some((9, 0, true));
        let first = subject(&template.ip(
            protocol::UDP,
            &[[0, 1, 0, 2, 0, 99, 0, 0].as_slice(), &whole].concat(),
        ));
        assert_eq!(first.dst_port(), Some(2));
        let fragment = first.fragment.unwrap();
        assert_eq!(
            (fragment.id, fragment.offset, fragment.length, fragment.more),
            (9, 0, 32, true)
        );
        template.fragment = Some((9, 32, false));
        let later = subject(&template.ip(protocol::UDP, &whole));
        assert_eq!(
            (later.transport, later.is_later_fragment()),
            (Transport::None, true)
        );
        let invalid = Parsed::Malformed(DropReason::FragmentInvalid);
        template.fragment = Some((9, 0, true));
        assert_eq!(
            parse(&template.ip(protocol::TCP, &[0; 16])),
            invalid,
            "no room for ports and flags"
        );
        template.fragment = Some((9, 8, true));
        assert_eq!(
            parse(&template.ip(protocol::TCP, &[0; 13])),
            invalid,
            "no multiple of 8"
        );
        template.fragment = Some((9, 65528, false));
        assert_eq!(
            parse(&template.ip(protocol::TCP, &[0; 16])),
            invalid,
            "past the longest datagram"
        );
        template.fragment = Some((9, 64, false));
        assert_eq!(parse(&template.ip(protocol::TCP, &[])), invalid, "nothing in it");
    }
    // An atomic fragment is whole (RFC 6946).
    let mut template = v6();
    template.fragment = Some((9, 0, false));
    let packet = subject(&template.udp(1, 2, b""));
    assert_eq!((packet.fragment, packet.dst_port()), (None, Some(2)));
}

#[test]
fn icmp_errors_show_what_they_quote() {
    for (template, back, kind) in [
        (v4(), Template::new(addr("10.0.0.2"), addr("10.0.0.1")), 3),
        (v6(), Template::new(addr("fd00::2"), addr("fd00::1")), 1),
    ] {
        let cause = template.udp(1000, 53, b"question");
        let frame = back.icmp(kind, 3, [0; 4], &cause[14..]);
        let Transport::IcmpError { quoted: Some(quoted) } = subject(&frame).transport else {
            panic!("not read");
        };
        assert_eq!((quoted.src, quoted.dst), (template.src, template.dst));
        assert_eq!(
            (quoted.protocol, quoted.src_port, quoted.dst_port),
            (17, 1000, 53)
        );
        let key = subject(&frame).owner_key(1);
        assert_eq!(key, subject(&cause).key(1));
        let cut = back.icmp(kind, 3, [0; 4], &cause[14..36]);
        assert_eq!(subject(&cut).transport, Transport::IcmpError { quoted: None });
        let nested = back.icmp(kind, 3, [0; 4], &frame[14..]);
        assert_eq!(subject(&nested).transport, Transport::IcmpError { quoted: None });
    }
}

/// Fuzzing found that a quotation had other ports than the packet.
#[test]
fn icmp_of_the_other_family_has_no_ports_in_a_quotation_either() {
    for (template, other, kind, error) in [(v4(), protocol::ICMPV6, 8, 3), (v6(), protocol::ICMP, 128, 1)] {
        let cause = template.ip(other, &[kind, 0, 0, 0, 0, 58, 0, 0]);
        let back = Template::new(template.dst, template.src);
        let error = subject(&back.icmp(error, 0, [0; 4], &cause[14..]));
        assert_eq!(error.owner_key(0), subject(&cause).key(0));
    }
}

fn naive(bytes: &[u8]) -> u16 {
    let mut total = 0u32;
    for pair in bytes.chunks(2) {
        total += u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0));
        total = (total & 0xffff) + (total >> 16);
    }
    total as u16
}

#[test]
fn a_partial_checksum_is_completed_and_nothing_else_is_touched() {
    for template in [v4(), v6()] {
        for (right, field) in [
            (template.tcp(1, 2, TcpFlags::ACK, b"some payload"), 16),
            (template.udp(1, 2, b"some payload"), 6),
        ] {
            let packet = subject(&right);
            let at = usize::from(packet.l4) + field;
            let mut frame = right.clone();
            assert!(!checksum::complete_partial(&mut frame, &packet));
            assert_eq!(frame, right, "right already");
            let pseudo = checksum::pseudo_header(packet.src, packet.dst, packet.protocol, packet.l4_length());
            frame[at..at + 2].copy_from_slice(&checksum::fold(pseudo).to_be_bytes());
            // Padding behind the packet is not summed.
            frame.extend_from_slice(&[0xaa; 9]);
            assert!(checksum::complete_partial(&mut frame, &packet));
            assert_eq!(frame[..right.len()], right);
            frame[at] ^= 0x10;
            let wrong = frame.clone();
            assert!(!checksum::complete_partial(&mut frame, &packet));
            assert_eq!(frame, wrong, "wrong is not repaired");
            frame[at..at + 2].fill(0);
            assert!(!checksum::complete_partial(&mut frame, &packet), "none");
        }
    }
    let mut template = v4();
    template.fragment = Some((1, 0, true));
    let mut frame = template.udp(1, 2, &[7; 16]);
    let packet = subject(&frame);
    let pseudo = checksum::pseudo_header(packet.src, packet.dst, packet.protocol, packet.l4_length());
    frame[14 + 20 + 6..14 + 20 + 8].copy_from_slice(&checksum::fold(pseudo).to_be_bytes());
    assert!(!checksum::complete_partial(&mut frame, &packet), "fragments stay");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(20_000))]

    /// Whatever is changed in a common frame, and with its header's checksum made right again.
    #[test]
    fn the_short_way_says_nothing_but_what_the_long_one_does(
        tcp: bool,
        six: bool,
        changes in proptest::collection::vec((12..90usize, prop_oneof![any::<u8>(), Just(0), Just(254), Just(255), Just(20)]), 0..3),
        cut in 0..80usize,
        resum: bool,
    ) {
        let family = if six { v6() } else { v4() };
        let mut frame = if tcp { family.tcp(1, 2, TcpFlags::ACK, b"payload") } else { family.udp(1, 2, b"payload-payload") };
        let whole = parse_common(&frame);
        prop_assert!(whole.is_some());
        prop_assert_eq!(Parsed::Subject(whole.unwrap()), parse(&frame));
        frame.resize(frame.len().min(120 - cut), 0);
        for (at, value) in changes {
            if let Some(byte) = frame.get_mut(at) {
                *byte = value;
            }
        }
        if resum && !six && frame.len() >= 34 {
            frame[24..26].fill(0);
            let sum = !naive(&frame[14..34]);
            frame[24..26].copy_from_slice(&sum.to_be_bytes());
        }
        if let Some(packet) = parse_common(&frame) {
            prop_assert_eq!(Parsed::Subject(packet), parse(&frame));
        }
    }
}

proptest! {
    #[test]
    fn no_bytes_make_the_parser_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        if let Parsed::Subject(packet) = parse(&bytes) {
            prop_assert!(packet.l3 <= packet.l4 && packet.l4 <= packet.end && usize::from(packet.end) <= bytes.len());
        }
    }

    #[test]
    fn no_change_of_a_packet_makes_the_parser_panic(
        which in 0..6usize,
        changes in proptest::collection::vec((0..140usize, any::<u8>()), 0..6),
        cut in 0..160usize,
    ) {
        let mut six = v6();
        six.extensions = vec![(0, vec![0; 6]), (60, vec![0; 6])];
        six.fragment = Some((1, 0, true));
        let cause = v4().udp(1, 2, b"12345678");
        let mut frame = match which {
            0 => v4().tcp(1, 2, 2, b"hello"),
            1 => six.udp(1, 2, &[0; 16]),
            2 => v4().icmp(3, 0, [0; 4], &cause[14..]),
            3 => v6().icmp(1, 0, [0; 4], &six.udp(1, 2, b"")[14..]),
            4 => v6().sctp(1, 2, 1),
            _ => six.tcp(1, 2, 2, &[0; 20]),
        };
        for (at, value) in changes {
            if let Some(byte) = frame.get_mut(at) {
                *byte = value;
            }
        }
        frame.truncate(cut);
        if frame.len() >= 34 && frame[12..14] == [8, 0] {
            frame[24..26].fill(0);
            let header = 14 + usize::from(frame[14] & 15) * 4;
            if header <= frame.len() && header >= 34 {
                let sum = !checksum::fold(checksum::sum(&frame[14..header]));
                frame[24..26].copy_from_slice(&sum.to_be_bytes());
            }
        }
        if let Parsed::Subject(packet) = parse(&frame) {
            prop_assert!(packet.l3 <= packet.l4 && packet.l4 <= packet.end && usize::from(packet.end) <= frame.len());
            let _ = checksum::complete_partial(&mut frame, &packet);
        }
    }

    #[test]
    fn sums_are_as_the_naive_ones(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
        prop_assert_eq!(checksum::fold(checksum::sum(&bytes)), naive(&bytes));
    }

    #[test]
    fn an_update_is_as_a_new_sum(mut bytes in proptest::collection::vec(any::<u8>(), 20), word in 1..10usize, new: u16) {
        // Header checksums are over at least one byte that is not zero; only then are both zeros one.
        bytes[0] = 0x45;
        let old = u16::from_be_bytes([bytes[word * 2], bytes[word * 2 + 1]]);
        let before = !checksum::fold(checksum::sum(&bytes));
        bytes[word * 2..word * 2 + 2].copy_from_slice(&new.to_be_bytes());
        prop_assert_eq!(checksum::update(before, old, new), !checksum::fold(checksum::sum(&bytes)));
    }
}

/// A kernel with an SCTP stack leaves the CRC of its packets to a veth, which does not write it.
#[test]
fn the_crc_of_sctp_is_completed_where_it_was_left_out() {
    for template in [v4(), v6()] {
        let mut frame = template.sctp(5001, 5000, 1); // with zero in the field
        let packet = subject(&frame);
        assert!(checksum::complete_partial(&mut frame, &packet));
        let l4 = usize::from(packet.l4);
        let mut blank = frame[l4..].to_vec();
        blank[8..12].fill(0);
        // RFC 9260 appendix A, bit by bit.
        let crc = !blank.iter().fold(!0_u32, |crc, byte| {
            (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
                (crc >> 1) ^ (0x82f6_3b78 * (crc & 1))
            })
        });
        assert_eq!(frame[l4 + 8..l4 + 12], crc.to_le_bytes());
        let whole = frame.clone();
        assert!(
            !checksum::complete_partial(&mut frame, &packet),
            "it is there already"
        );
        assert_eq!(frame, whole);
    }
}

mod tunnels {
    use super::{super::tunnel::*, *};

    /// A packet in a tunnel is read as it is on its own: only where it lies differs.
    fn is_read_as_on_its_own(frame: &[u8], kind: TunnelKind, bare: &[u8]) -> Result<(), TestCaseError> {
        let carrier = subject(frame);
        let (inside, _) =
            decapsulate(frame, &carrier, kind).map_err(|reason| TestCaseError::fail(reason.name()))?;
        let shift = (frame.len() - bare.len()) as u16;
        match (inside, parse(bare)) {
            (Parsed::Subject(mut inside), alone) => {
                prop_assert_eq!(inside.vlan, carrier.vlan);
                inside.l3 -= shift;
                inside.l4 -= shift;
                inside.end -= shift;
                inside.vlan = 0;
                prop_assert_eq!(Parsed::Subject(inside), alone);
            }
            (inside, alone) => prop_assert_eq!(inside, alone),
        }
        Ok(())
    }

    fn wrapped(form: usize, outer: &Template, inside: &[u8]) -> (Vec<u8>, TunnelKind) {
        match form {
            0 => (outer.vxlan(4789, 1, inside), TunnelKind::Vxlan),
            1 => (outer.geneve(1, &[0; 4], inside), TunnelKind::Geneve),
            2 => (outer.gre_ethernet(inside), TunnelKind::Gre),
            3 => (outer.gre(0xb0, inside), TunnelKind::Gre),
            4 => (outer.flannel_udp(inside), TunnelKind::FlannelUdp),
            _ => (outer.ip_in_ip(inside), TunnelKind::IpInIp),
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(5_000))]

        #[test]
        fn a_packet_inside_is_read_as_on_its_own(
            form in 0..6usize,
            outer_six: bool,
            inner_six: bool,
            which in 0..4usize,
            vlans in proptest::collection::vec(1..4095u16, 0..3),
            changes in proptest::collection::vec((14..90usize, any::<u8>()), 0..3),
        ) {
            let mut outer = if outer_six { v6() } else { v4() };
            outer.vlans = vlans;
            let inner = if inner_six { v6() } else { v4() };
            let mut bare = match which {
                0 => inner.tcp(1, 2, TcpFlags::ACK, b"payload"),
                1 => inner.udp(1, 2, b"payload"),
                2 => inner.echo(7, true),
                _ => inner.sctp(1, 2, 1),
            };
            // Forms with an IP packet alone say its family elsewhere, and its groups of stations are the frame's.
            let with_ethernet = form < 3;
            for (at, value) in changes {
                let addresses = if inner_six { 22..54 } else { 26..34 };
                let kept = !with_ethernet && (at == 14 || addresses.contains(&at));
                if let Some(byte) = bare.get_mut(at).filter(|_| !kept) {
                    *byte = value;
                }
            }
            if !inner_six {
                bare[24..26].fill(0);
                let header = usize::from(bare[14] & 15) * 4;
                let sum = !naive(&bare[14..(14 + header.max(20)).min(bare.len())]);
                bare[24..26].copy_from_slice(&sum.to_be_bytes());
            }
            let (frame, kind) = wrapped(form, &outer, &bare);
            is_read_as_on_its_own(&frame, kind, &bare)?;
        }

        #[test]
        fn no_change_of_a_tunnel_packet_makes_the_parser_panic(
            form in 0..6usize,
            six: bool,
            changes in proptest::collection::vec((12..140usize, any::<u8>()), 0..6),
            cut in 0..160usize,
        ) {
            let outer = if six { v6() } else { v4() };
            let inside = v4().tcp(1, 2, 2, b"hello");
            let (mut frame, kind) = wrapped(form, &outer, &inside);
            let carrier = subject(&frame);
            for (at, value) in changes {
                if let Some(byte) = frame.get_mut(at) {
                    *byte = value;
                }
            }
            frame.truncate(cut);
            // The first may be longer than the frame, which then is the first of several buffers.
            for carrier in [Some(carrier), match parse(&frame) { Parsed::Subject(packet) => Some(packet), _ => None }].into_iter().flatten() {
                if let Ok((Parsed::Subject(packet), _)) = decapsulate(&frame, &carrier, kind) {
                    prop_assert!(packet.l3 <= packet.l4 && packet.l4 <= packet.end);
                    prop_assert!(packet.end <= carrier.end);
                    prop_assert!(usize::from(packet.l4) <= frame.len());
                    prop_assert!(source_at(&frame, packet.l3) == Some(packet.src));
                }
            }
        }
    }
}
