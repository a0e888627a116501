//! What the generator says against what arrives: frames are captured from a packet socket and read by etherparse, which
//! has no part in the kernel's program.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::Read,
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    thread,
    time::Duration,
};

use clap::Parser;
use etherparse::{NetSlice, SlicedPacket, TransportSlice};
use ringwall_bpf::generator::{Generator, Order};
use ringwall_testbed::{netns::Netns, preflight::runs_here};
use socket2::{Domain, Socket, Type};

use super::{Options, send, sockets, stream::Stream};

#[derive(Parser)]
struct CommandLine {
    #[command(flatten)]
    options: Options,
}

fn options(line: &str) -> Options {
    let words = std::iter::once("gen").chain(line.split_whitespace());
    CommandLine::try_parse_from(words).unwrap().options
}

fn stream(line: &str) -> Stream {
    options(&format!("--interface out --to-mac 02:00:00:00:00:02 {line}"))
        .stream()
        .unwrap()
}

/// Two namespaces and a link, `out` and `in`.
struct Pair {
    tx: Netns,
    rx: Netns,
}

impl Pair {
    fn new() -> Self {
        let (tx, rx) = (Netns::new("out").unwrap(), Netns::new("in").unwrap());
        for namespace in [&tx, &rx] {
            // Only what the generator sends is on the link.
            namespace
                .sysctl("net/ipv6/conf/default/disable_ipv6", "1")
                .unwrap();
        }
        tx.ip(&[
            format!("link add name out type veth peer name in netns {}", rx.path()),
            "link set out up".to_owned(),
        ])
        .unwrap();
        rx.ip(&["link set in up"]).unwrap();
        Self { tx, rx }
    }
}

/// What arrives at an interface of a namespace while a function runs there.
fn captured(namespace: &Netns, interface: &str, function: impl FnOnce()) -> Vec<Vec<u8>> {
    /// `AF_PACKET` of `linux/socket.h`, `ETH_P_ALL` of `linux/if_ether.h`.
    const AF_PACKET: i32 = 17;
    const ETH_P_ALL: u16 = 3;
    let mut socket = namespace
        .run(|| {
            let protocol = i32::from(ETH_P_ALL.to_be());
            let socket = Socket::new(Domain::from(AF_PACKET), Type::RAW, Some(protocol.into())).unwrap();
            socket.set_recv_buffer_size(64 << 20).unwrap();
            socket.bind_device(Some(interface.as_bytes())).unwrap();
            socket.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
            socket
        })
        .unwrap();
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let reading = scope.spawn(|| {
            let (mut frames, mut buffer) = (Vec::new(), [0; 2048]);
            loop {
                match socket.read(&mut buffer) {
                    Ok(length) => frames.push(buffer[..length].to_vec()),
                    Err(_) if over.load(Relaxed) => return frames,
                    Err(_) => {}
                }
            }
        });
        function();
        over.store(true, Relaxed);
        reading.join().unwrap()
    })
}

/// A frame that arrived, as the independent parser reads it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Seen {
    length: usize,
    addresses: (String, String),
    ports: (u16, u16),
    /// Flags, sequence and acknowledgement of TCP
    tcp: Option<(String, u32, u32)>,
    payload: Vec<u8>,
}

/// Reads a frame, and fails where a length or a checksum is wrong.
fn read(frame: &[u8]) -> Seen {
    let packet = SlicedPacket::from_ethernet(frame).unwrap();
    let transport = packet.transport.unwrap();
    let (addresses, sum) = match packet.net.unwrap() {
        NetSlice::Ipv4(ip) => {
            let header = ip.header().to_header();
            assert_eq!(header.header_checksum, header.calc_header_checksum());
            let sum = match &transport {
                TransportSlice::Udp(udp) => udp
                    .to_header()
                    .calc_checksum_ipv4(&header, udp.payload())
                    .unwrap(),
                TransportSlice::Tcp(tcp) => tcp
                    .to_header()
                    .calc_checksum_ipv4(&header, tcp.payload())
                    .unwrap(),
                other => panic!("{other:?}"),
            };
            (
                (
                    ip.header().source_addr().to_string(),
                    ip.header().destination_addr().to_string(),
                ),
                sum,
            )
        }
        NetSlice::Ipv6(ip) => {
            let header = ip.header().to_header();
            let sum = match &transport {
                TransportSlice::Udp(udp) => udp
                    .to_header()
                    .calc_checksum_ipv6(&header, udp.payload())
                    .unwrap(),
                TransportSlice::Tcp(tcp) => tcp
                    .to_header()
                    .calc_checksum_ipv6(&header, tcp.payload())
                    .unwrap(),
                other => panic!("{other:?}"),
            };
            (
                (
                    header.source_addr().to_string(),
                    header.destination_addr().to_string(),
                ),
                sum,
            )
        }
        NetSlice::Arp(_) => panic!("ARP"),
    };
    let (carried, ports, tcp, payload) = match transport {
        TransportSlice::Udp(udp) => (
            udp.checksum(),
            (udp.source_port(), udp.destination_port()),
            None,
            udp.payload(),
        ),
        TransportSlice::Tcp(tcp) => {
            let flags = [
                ("S", tcp.syn()),
                ("F", tcp.fin()),
                ("P", tcp.psh()),
                (".", tcp.ack()),
            ];
            let flags = flags
                .iter()
                .filter(|(_, set)| *set)
                .map(|(name, _)| *name)
                .collect();
            let ports = (tcp.source_port(), tcp.destination_port());
            (
                tcp.checksum(),
                ports,
                Some((flags, tcp.sequence_number(), tcp.acknowledgment_number())),
                tcp.payload(),
            )
        }
        other => panic!("{other:?}"),
    };
    assert_eq!(carried, sum, "checksum of {frame:02x?}");
    Seen {
        length: frame.len(),
        addresses,
        ports,
        tcp,
        payload: payload.to_vec(),
    }
}

/// Flow, number and time of a stamp.
fn stamp(payload: &[u8]) -> (u32, u32, u64) {
    let mark = u16::from_ne_bytes(payload[..2].try_into().unwrap());
    assert!([0x5257, 0x5258].contains(&mark), "no stamp: {mark:04x}");
    (
        u32::from_ne_bytes(payload[2..6].try_into().unwrap()),
        u32::from_ne_bytes(payload[6..10].try_into().unwrap()),
        u64::from_ne_bytes(payload[10..18].try_into().unwrap()),
    )
}

/// Sends frames of a stream, and reads what arrives at the other end.
fn arriving(pair: &Pair, stream: &Stream, frames: u64, rate: Option<u64>) -> Vec<Seen> {
    let generator = Generator::load(&stream.load(frames).unwrap()).unwrap();
    let _taken = pair.rx.run(|| generator.pass("in")).unwrap().unwrap();
    let frames = captured(&pair.rx, "in", || {
        let order = Order {
            first: 0,
            count: frames,
            rate,
            answered: false,
        };
        pair.tx
            .run(|| {
                let _native = generator.pass("out").unwrap();
                generator.send("out", order).unwrap()
            })
            .unwrap();
    });
    frames.iter().map(|frame| read(frame)).collect()
}

#[test]
fn datagrams_have_the_flows_lengths_and_order_that_were_said() {
    let Some(_alone) = runs_here("gen: datagrams") else {
        return;
    };
    let pair = Pair::new();
    let stream = stream(
        "--from 10.0.0.1-10.0.0.5 --to 198.18.0.0/30 --from-ports 1000-1009 --to-ports 53-54 --flows 300 --size imix \
         --shuffled",
    );
    let seen = arriving(&pair, &stream, 3600, Some(20_000));
    assert_eq!(seen.len(), 3600);
    let mut lengths = BTreeMap::new();
    let mut flows: BTreeMap<u32, BTreeSet<_>> = BTreeMap::new();
    let mut packets: BTreeMap<u32, Vec<usize>> = BTreeMap::new();
    let mut in_order = 0;
    for (number, frame) in seen.iter().enumerate() {
        let (flow, sequence, _) = stamp(&frame.payload);
        assert_eq!(sequence as usize, number);
        *lengths.entry(frame.length).or_insert(0) += 1;
        flows
            .entry(flow)
            .or_default()
            .insert((frame.addresses.clone(), frame.ports));
        packets.entry(flow).or_default().push(frame.length);
        in_order += usize::from(flow as usize == number % 300);
    }
    // Without the check sequence: 28 of 48, 16 and 4.
    assert_eq!(lengths, [(60, 2100), (566, 1200), (1514, 300)].into());
    // Each flow has 12 frames, all alike but for their lengths, and no two flows are alike.
    assert_eq!(flows.len(), 300);
    assert!(packets.values().all(|lengths| lengths.len() == 12));
    assert!(
        packets
            .values()
            .all(|lengths| lengths.iter().collect::<BTreeSet<_>>().len() == 3),
        "a flow has all lengths"
    );
    let kinds: BTreeSet<_> = flows.values().flatten().cloned().collect();
    assert!(flows.values().all(|kinds| kinds.len() == 1) && kinds.len() == 300);
    assert!(
        in_order < 30,
        "shuffled, but {in_order} of 3,600 are where they would be in order"
    );
    // Flow 7: source 7 % 5, destination 7 / 5 % 4, ports the first ones; flow 299: 299 = 4 + 5 * (3 + 4 * (14 = 4 + 10 * 1)).
    let of = |flow| flows[&flow].first().unwrap().clone();
    assert_eq!(of(7), (("10.0.0.3".into(), "198.18.0.1".into()), (1000, 53)));
    assert_eq!(of(299), (("10.0.0.5".into(), "198.18.0.3".into()), (1004, 54)));
}

#[test]
fn a_new_flow_begins_where_the_oldest_ends_also_over_ipv6() {
    let Some(_alone) = runs_here("gen: new flows") else {
        return;
    };
    let pair = Pair::new();
    let stream = stream(
        "--from fd00::fff0-fd00::1:ffef --to 2001:db8::1 --flows 50 --rate 1000 --new-flows 100 --size 200",
    );
    let seen = arriving(&pair, &stream, 1000, Some(50_000));
    let flows: Vec<u32> = seen.iter().map(|frame| stamp(&frame.payload).0).collect();
    assert!(seen.iter().all(|frame| frame.length == 196));
    // A new one every 10 frames: 50 and 99 more.
    assert_eq!(flows.iter().collect::<BTreeSet<_>>().len(), 149);
    for (number, window) in flows.chunks(10).enumerate().skip(1) {
        assert_eq!(window[0] as usize, 49 + number);
        assert!(
            window
                .iter()
                .all(|flow| (number..number + 50).contains(&(*flow as usize))),
            "{number}: {window:?}"
        );
    }
    let last = seen.iter().find(|frame| stamp(&frame.payload).0 == 100).unwrap();
    assert_eq!(last.addresses, ("fd00::1:54".into(), "2001:db8::1".into()));
}

#[test]
fn datagrams_that_ask_for_it_come_back_as_they_are() {
    let Some(_alone) = runs_here("gen: answered datagrams") else {
        return;
    };
    let pair = Pair::new();
    for line in [
        "--from 10.0.0.0/24 --to 198.18.0.1 --flows 20 --from-ports 1000-1001",
        "--from fd00::/112 --to 2001:db8::1 --flows 20 --size 200",
    ] {
        let sent = arriving(&pair, &stream(line), 20, Some(20_000));
        let generator = Generator::load(&stream(line).load(40).unwrap()).unwrap();
        let _sink = pair.rx.run(|| generator.sink("in")).unwrap().unwrap();
        let send = |first, answered| {
            captured(&pair.tx, "out", || {
                let order = Order {
                    first,
                    count: 20,
                    rate: Some(20_000),
                    answered,
                };
                pair.tx
                    .run(|| {
                        let _native = generator.pass("out").unwrap();
                        generator.send("out", order).unwrap()
                    })
                    .unwrap();
            })
        };
        assert_eq!(send(0, false).len(), 0, "{line}: no answer was asked for");
        let back: Vec<Seen> = send(20, true).iter().map(|frame| read(frame)).collect();
        assert_eq!(back.len(), 20, "{line}");
        for (sent, back) in sent.iter().zip(&back) {
            let turned = |(a, b): &(String, String)| (b.clone(), a.clone());
            assert_eq!(back.addresses, turned(&sent.addresses));
            assert_eq!(back.ports, (sent.ports.1, sent.ports.0));
            let (flow, number, _) = stamp(&back.payload);
            assert_eq!(
                (flow, number),
                (stamp(&sent.payload).0, stamp(&sent.payload).1 + 20)
            );
        }
        assert_eq!(generator.received().unwrap().packets, 40, "counted, too");
    }
}

#[test]
fn a_script_is_a_connection_that_the_sink_answers() {
    let Some(_alone) = runs_here("gen: TCP") else {
        return;
    };
    let pair = Pair::new();
    for (from, to, length) in [
        ("10.0.0.0/24", "198.18.0.1", 72),
        ("fd00::/112", "2001:db8::1", 92),
    ] {
        let stream = stream(&format!(
            "--from {from} --to {to} --to-ports 80 --flows 10 --tcp 2"
        ));
        let frames = 10 * 6 * 2;
        let sent = arriving(&pair, &stream, frames, Some(20_000));
        let generator = Generator::load(&stream.load(frames).unwrap()).unwrap();
        let _answering = pair.rx.run(|| generator.answer("in")).unwrap().unwrap();
        let answers = captured(&pair.tx, "out", || {
            let order = Order {
                first: 0,
                count: frames,
                rate: Some(20_000),
                answered: false,
            };
            pair.tx
                .run(|| {
                    let _native = generator.pass("out").unwrap();
                    generator.send("out", order).unwrap()
                })
                .unwrap();
        });
        let mut connections: BTreeMap<_, (Vec<Seen>, Vec<Seen>)> = BTreeMap::new();
        for frame in &sent {
            connections
                .entry((frame.addresses.0.clone(), frame.ports.0))
                .or_default()
                .0
                .push(frame.clone());
        }
        // What is sent by the generator is not seen by a packet socket at its own end.
        for frame in answers.iter().map(|frame| read(frame)) {
            connections
                .entry((frame.addresses.1.clone(), frame.ports.1))
                .or_default()
                .1
                .push(frame);
        }
        assert_eq!(connections.len(), 20, "two connections of each of ten flows");
        for (client, (sent, answers)) in connections {
            let said = |frames: &[Seen]| -> Vec<(String, u32, u32)> {
                frames.iter().map(|frame| frame.tcp.clone().unwrap()).collect()
            };
            let (begin, server) = (sent[0].tcp.clone().unwrap().1, answers[0].tcp.clone().unwrap().1);
            let at = |flags: &str, sequence: u32, acknowledged: u32| {
                (flags.to_owned(), begin.wrapping_add(sequence), acknowledged)
            };
            let of_server = |flags: &str, sequence: u32, acknowledged: u32| {
                (
                    flags.to_owned(),
                    server.wrapping_add(sequence),
                    begin.wrapping_add(acknowledged),
                )
            };
            let one = server.wrapping_add(1);
            assert_eq!(
                said(&sent),
                [
                    at("S", 0, 0),
                    at(".", 1, one),
                    at("P.", 1, one),
                    at("P.", 19, one),
                    at("F.", 37, one),
                    at(".", 38, one.wrapping_add(1)),
                ],
                "{client:?}"
            );
            assert_eq!(
                said(&answers),
                [
                    of_server("S.", 0, 1),
                    of_server(".", 1, 19),
                    of_server(".", 1, 37),
                    of_server("F.", 1, 38),
                ],
                "{client:?}"
            );
            assert_eq!((sent[2].length, sent[3].payload.len()), (length, 18));
        }
    }
}

#[test]
fn the_sink_counts_each_flow_exactly_and_rates_and_latencies_are_plausible() {
    let Some(_alone) = runs_here("gen: the sink") else {
        return;
    };
    let pair = Pair::new();
    let line = format!(
        "--interface {}:out --sink {}:in --to-mac 02:00:00:00:00:02 --from 10.0.0.0/16 --to 198.18.0.0/30 --flows 777 --shuffled \
         --rate 40000 --frames 20011",
        pair.tx.path(),
        pair.rx.path()
    );
    let outcome = send(&options(&line)).unwrap();
    let arrived = outcome.arrived.as_ref().unwrap();
    assert_eq!(
        (outcome.sent.frames, outcome.stamped, arrived.packets),
        (20_011, 20_011, 20_011)
    );
    assert_eq!(
        (arrived.others, arrived.reordered, arrived.bytes),
        (0, 0, 20_011 * 60)
    );
    // 20,011 = 25 * 777 + 586.
    let counts = |packets: u32| arrived.by_flow.iter().filter(|count| **count == packets).count();
    assert_eq!((arrived.by_flow.len(), counts(26), counts(25)), (777, 586, 191));
    // A busy machine makes it slower, and that is said; never faster.
    let late = outcome.sent.behind.as_secs_f64() / outcome.sent.took.as_secs_f64();
    let rate = outcome.sent.rate();
    assert!(
        rate < 40_400.0 && rate > 39_600.0 * (1.0 - late) - 400.0,
        "{rate} a second, {late} of the time late"
    );
    let (least, median) = (arrived.latency.min(), arrived.latency.value_at_quantile(0.5));
    assert!(
        (20..1_000_000).contains(&least) && (least..10_000_000).contains(&median),
        "{least} {median}"
    );
    let json = outcome.json();
    assert_eq!(json["received"]["lost"], 0);
    assert!(outcome.text().contains("lost 0 (0.0000 %)"), "{}", outcome.text());
}

#[test]
fn a_sink_that_misses_frames_says_so() {
    let Some(_alone) = runs_here("gen: loss") else {
        return;
    };
    let pair = Pair::new();
    let stream = stream("--from 10.0.0.0/24 --to 198.18.0.1 --flows 100");
    let generator = Generator::load(&stream.load(1000).unwrap()).unwrap();
    let order = |first, count| Order {
        first,
        count,
        rate: Some(100_000),
        answered: false,
    };
    let send = |first, count| {
        pair.tx
            .run(|| {
                let _native = generator.pass("out").unwrap();
                generator.send("out", order(first, count)).unwrap()
            })
            .unwrap()
    };
    let sink = pair.rx.run(|| generator.sink("in")).unwrap().unwrap();
    send(0, 1000);
    let before = generator.received().unwrap();
    assert_eq!(before.packets, 1000);
    drop(sink);
    // Frames 1000 to 1149 go by: half of the flows miss a second one.
    let taken = pair.rx.run(|| generator.pass("in")).unwrap().unwrap();
    send(1000, 150);
    drop(taken);
    let _sink = pair.rx.run(|| generator.sink("in")).unwrap().unwrap();
    send(1150, 50);
    let after = generator.received().unwrap().since(&before);
    assert_eq!(
        (
            after.packets,
            after.latencies().map(|(_, packets)| packets).sum::<u64>()
        ),
        (50, 50)
    );
    let by_flow = generator.packets_by_flow().unwrap();
    assert_eq!(by_flow.len(), 100);
    assert_eq!((by_flow[49], by_flow[50]), (10, 11));
}

#[test]
fn sockets_send_datagrams_and_make_connections() {
    let Some(_alone) = runs_here("gen: sockets") else {
        return;
    };
    let pair = Pair::new();
    pair.tx.ip(&["address add 10.9.0.1/24 dev out"]).unwrap();
    pair.rx.ip(&["address add 10.9.0.2/24 dev in"]).unwrap();
    let line = |more: &str| {
        format!(
            "--sockets --interface {}: --sink {}: --to 10.9.0.2 --to-ports 7000 --flows 8 {more}",
            pair.tx.path(),
            pair.rx.path()
        )
    };
    let outcome = sockets::send(&options(&line("--frames 2000 --rate 5000 --size 128"))).unwrap();
    let arrived = outcome.arrived.unwrap();
    assert_eq!(
        (outcome.sent.frames, arrived.packets, arrived.by_flow),
        (2000, 2000, vec![250; 8])
    );
    assert_eq!(arrived.bytes, 2000 * 82);
    assert!(outcome.sent.rate() < 5050.0);
    let outcome = sockets::send(&options(&line("--frames 80 --tcp 1"))).unwrap();
    let arrived = outcome.arrived.unwrap();
    assert_eq!((arrived.packets, arrived.by_flow), (80, vec![10; 8]));
    let latency = &arrived.latency;
    assert!(
        latency.len() == 80 && latency.min() > 1000,
        "{} {}",
        latency.len(),
        latency.min()
    );
}

#[test]
fn new_flows_come_as_often_as_ordered_or_not_at_all() {
    let every = |new: u64, rate: u64| super::frames_per_new_flow(new, rate);
    assert_eq!(every(1000, 500_000).unwrap(), 500);
    assert_eq!(every(999, 500_000).unwrap(), 500, "within one in a hundred");
    assert_eq!(every(500_000, 500_000).unwrap(), 1);
    let error = every(300_000, 500_000).unwrap_err().to_string();
    assert!(error.contains("250000 or 500000"), "{error}");
    assert!(every(500_001, 500_000).is_err());
}

#[test]
fn what_does_not_go_together_is_refused_with_what_to_do() {
    for (line, expected) in [
        ("--from 10.0.0.1 --to 2001:db8::1", "IPv4 or both in IPv6"),
        (
            "--from 10.0.0.1 --to 10.0.0.2 --flows 2",
            "--from-ports 1024-65535",
        ),
        ("--from fd00::1 --to fd00::2 --size 64", "--size 84"),
        ("--from 10.0.0.1 --to 10.0.0.2 --size 64 --tcp 1", "--size 76"),
        (
            "--from 10.0.0.1 --to 10.0.0.2 --size imix --tcp 1",
            "--size LENGTH",
        ),
        ("--from 10.0.0.1 --to 10.0.0.2 --tcp 13", "at most 12"),
    ] {
        let error = format!("{:#}", stream(line).load(1000).unwrap_err());
        assert!(error.contains(expected), "{line}: {error}");
    }
    let refused =
        |line: &str| CommandLine::try_parse_from(std::iter::once("gen").chain(line.split_whitespace())).err();
    assert!(
        refused("--interface x --to 10.0.0.1 --from 10.0.0.2 --to-mac 02")
            .unwrap()
            .to_string()
            .contains("Ethernet")
    );
    assert!(
        refused("--interface x --to 10.0.0.1 --from 10.0.0.2")
            .unwrap()
            .to_string()
            .contains("--to-mac")
    );
    let usual = "--interface x --to 10.0.0.1 --from 10.0.0.2 --to-mac 02:00:00:00:00:02";
    for nothing in ["0", "-1", "nan"] {
        assert!(
            refused(&format!("{usual} --seconds={nothing}")).is_some(),
            "{nothing}"
        );
    }
    for (line, expected) in [
        ("--to 10.0.0.1 --size imix", "--size LENGTH"),
        ("--to 10.0.0.0/24", "--to ADDRESS"),
        ("--to 10.0.0.1 --to-ports 1-2", "--to-ports PORT"),
    ] {
        let error = sockets::send(&options(&format!("--sockets --sink : {line}"))).unwrap_err();
        assert!(format!("{error:#}").contains(expected), "{line}: {error:#}");
    }
    assert!(refused("--sockets --sink : --to 10.0.0.1 --from 10.0.0.2").is_some());
    let error = send(&options(
        "--interface nowhere:x --to-mac 02:00:00:00:00:02 --from 10.0.0.1 --to 10.0.0.2",
    ));
    if let Err(error) = error {
        let error = format!("{error:#}");
        assert!(
            error.contains("`nowhere`") || error.contains("permission"),
            "{error}"
        );
    } else {
        panic!("there is no such namespace");
    }
}
