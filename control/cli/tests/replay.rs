//! `ringwall replay` as a program.
#![allow(clippy::unwrap_used, clippy::panic)] // a test says what failed by panicking

mod ran;

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    path::Path,
    process::{Command, Stdio},
};

use ran::{Ran, ringwall};
use ringwall_dataplane::{
    addr::Addr,
    wire::{TcpFlags, build::Template},
};
use serde_json::{Value, json};
use tempfile::TempDir;

const SHOP: &str = "
apiVersion: v1
kind: Node
metadata: {name: n1}
spec: {podCIDRs: [10.1.0.0/24, 'fd00:1::/64']}
status: {addresses: [{type: InternalIP, address: 192.168.0.1}]}
---
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: shop, labels: {app: web}}
spec: {nodeName: n1}
status: {podIPs: [{ip: 10.1.0.1}, {ip: 'fd00:1::1'}]}
---
apiVersion: v1
kind: Pod
metadata: {name: db, namespace: shop, labels: {app: db}}
spec: {nodeName: n1}
status: {podIPs: [{ip: 10.1.0.2}, {ip: 'fd00:1::2'}]}
---
apiVersion: v1
kind: Pod
metadata: {name: api, namespace: shop, labels: {app: api}}
spec: {nodeName: n1}
status: {podIPs: [{ip: 10.1.0.3}, {ip: 'fd00:1::3'}]}
";

/// The database takes connections from these pods alone.
fn database(from: &str) -> String {
    format!(
        "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {{name: db, namespace: shop}}
spec:
  podSelector: {{matchLabels: {{app: db}}}}
  ingress:
  - from: [{{podSelector: {{matchLabels: {{app: {from}}}}}}}]
    ports: [{{port: 5432}}]
"
    )
}

/// Folders `before`, in which `web` may use the database, and `after`, in which `api` may.
fn folders() -> TempDir {
    let dir = TempDir::new().unwrap();
    for (name, from) in [("before", "web"), ("after", "api")] {
        fs::create_dir(dir.path().join(name)).unwrap();
        let text = format!("{SHOP}---{}", database(from));
        fs::write(dir.path().join(name).join("shop.yaml"), text).unwrap();
    }
    dir
}

const WEB: [&str; 2] = ["10.1.0.1", "fd00:1::1"];
const DB: [&str; 2] = ["10.1.0.2", "fd00:1::2"];
const API: [&str; 2] = ["10.1.0.3", "fd00:1::3"];
const UNOWNED: [&str; 2] = ["10.1.0.99", "fd00:1::99"];
const NODE: &str = "192.168.0.1";
const OUTSIDER: [&str; 2] = ["192.0.2.7", "2001:db8::7"];
const ROUTER: &str = "192.0.2.1";

const SYN: u8 = TcpFlags::SYN;
const SYN_ACK: u8 = TcpFlags::SYN | TcpFlags::ACK;
const ACK: u8 = TcpFlags::ACK;

fn from_to(src: &str, dst: &str) -> Template {
    let addr = |text: &str| Addr::from(text.parse::<std::net::IpAddr>().unwrap());
    Template::new(addr(src), addr(dst))
}

/// A packet of a capture: when, in milliseconds; what was captured; how long it was.
type Packet = (u64, Vec<u8>, usize);

fn whole(at: u64, frame: Vec<u8>) -> Packet {
    let length = frame.len();
    (at, frame, length)
}

/// Of one link type, little-endian, in microseconds.
fn pcap(link: u32, packets: &[Packet]) -> Vec<u8> {
    let mut file = 0xa1b2_c3d4_u32.to_le_bytes().to_vec();
    file.extend([2, 0, 4, 0]);
    file.extend([0; 8]);
    file.extend(65535_u32.to_le_bytes());
    file.extend(link.to_le_bytes());
    for (at, bytes, length) in packets {
        let fields = [at / 1000, at % 1000 * 1000, bytes.len() as u64, *length as u64];
        file.extend(fields.iter().flat_map(|field| (*field as u32).to_le_bytes()));
        file.extend(bytes);
    }
    file
}

/// With an interface for each link type, big-endian; each packet says of which it is.
fn pcapng(links: &[u16], packets: &[(u32, Packet)]) -> Vec<u8> {
    let mut file = Vec::new();
    let mut block = |kind: u32, body: &[u8]| {
        let padded = body.len().next_multiple_of(4);
        let length = (padded as u32 + 12).to_be_bytes();
        file.extend(kind.to_be_bytes());
        file.extend(length);
        file.extend(body);
        file.resize(file.len() + padded - body.len(), 0);
        file.extend(length);
    };
    let mut section = 0x1a2b_3c4d_u32.to_be_bytes().to_vec();
    section.extend([0, 1, 0, 0]);
    section.extend([0xff; 8]);
    block(0x0a0d_0d0a, &section);
    for link in links {
        // Milliseconds.
        let options = [0, 9, 0, 1, 3, 0, 0, 0, 0, 0, 0, 0];
        block(1, &[&link.to_be_bytes()[..], &[0; 6], &options].concat());
    }
    for (interface, (at, bytes, length)) in packets {
        let fields = [
            *interface,
            (*at >> 32) as u32,
            *at as u32,
            bytes.len() as u32,
            *length as u32,
        ];
        let mut body: Vec<u8> = fields.iter().flat_map(|field| field.to_be_bytes()).collect();
        body.extend(bytes);
        block(6, &body);
    }
    file
}

struct Bed {
    dir: TempDir,
}

impl Bed {
    fn new() -> Self {
        Self { dir: folders() }
    }

    fn path(&self, name: &str) -> String {
        self.dir.path().join(name).to_str().unwrap().to_owned()
    }

    fn replay(&self, capture: &[u8], more: &[&str]) -> Ran {
        fs::write(self.path("capture"), capture).unwrap();
        let (before, capture) = (self.path("before"), self.path("capture"));
        let args = ["replay", "--manifests", &before, "--pcap", &capture];
        ringwall(&[&args[..], more].concat())
    }

    /// Verdict and reason of each packet; `drop` and a reason, `pass` and a kind, or `forward`.
    fn verdicts(&self, capture: &[u8], more: &[&str]) -> Vec<String> {
        let ran = self.replay(capture, &[more, &["-o", "json"]].concat());
        assert_eq!(ran.status, 0, "{}{}", ran.out, ran.err);
        ran.lines().iter().map(verdict).collect()
    }
}

fn verdict(line: &Value) -> String {
    match (&line["verdict"], &line["reason"]) {
        (Value::String(verdict), Value::Null) => verdict.clone(),
        (Value::String(verdict), Value::String(reason)) => format!("{verdict} {reason}"),
        _ => panic!("{line}"),
    }
}

fn arp() -> Vec<u8> {
    let mut frame = vec![0xff; 6];
    frame.extend([2, 0, 0, 0, 0, 1, 8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
    frame.extend([0; 20]);
    frame
}

/// A port is unreachable: quotes the header and eight bytes of a frame.
fn unreachable(from: &str, to: &str, about: &[u8]) -> Vec<u8> {
    from_to(from, to).icmp(3, 3, [0; 4], &about[14..42])
}

fn fragment(src: &str, dst: &str, id: u32, offset: u16, more: bool) -> Vec<u8> {
    let mut template = from_to(src, dst);
    template.fragment = Some((id, offset, more));
    let mut l4 = [0; 24];
    l4[..8].copy_from_slice(&[0x10, 0, 0, 53, 0, 48, 0, 0]);
    template.ip(17, &l4)
}

/// Every kind of outcome, with what is expected of it.
fn outcomes() -> Vec<(Packet, &'static str)> {
    let [web, web6] = WEB;
    let [db, db6] = DB;
    let mut tagged = from_to(web, db);
    tagged.vlans = vec![7];
    let udp = from_to(web, OUTSIDER[0]).udp(4000, 53, b"question");
    let mut wrong = from_to(web, db).tcp(3, 5432, SYN, b"");
    wrong[24] ^= 1;
    let mut lldp = vec![1, 0x80, 0xc2, 0, 0, 0x0e, 2, 0, 0, 0, 0, 1, 0x88, 0xcc];
    lldp.extend([0; 46]);
    let long = from_to(web, db).tcp(4, 5432, SYN, &[0; 500]);
    let frames = [
        (from_to(web, db).tcp(1, 5432, SYN, b""), "forward"),
        (from_to(db, web).tcp(5432, 1, SYN_ACK, b""), "forward"),
        (from_to(web, db).tcp(1, 5432, ACK, b""), "forward"),
        (from_to(API[0], db).tcp(1, 5432, SYN, b""), "drop policy-ingress"),
        (from_to(web, db).tcp(2, 80, SYN, b""), "drop policy-ingress"),
        (from_to(web6, db6).tcp(1, 5432, SYN, b""), "forward"),
        (from_to(web6, db6).udp(1, 5432, b""), "drop policy-ingress"),
        (tagged.tcp(1, 5432, SYN, b""), "forward"),
        (arp(), "pass arp"),
        (lldp, "drop not-subject"),
        (udp.clone(), "forward"),
        (unreachable(ROUTER, web, &udp), "forward"),
        (
            unreachable(ROUTER, web, &from_to(web, ROUTER).udp(1, 2, b"")),
            "drop icmp-unrelated",
        ),
        (fragment(web, OUTSIDER[0], 7, 0, true), "forward"),
        (fragment(web, OUTSIDER[0], 7, 24, false), "forward"),
        (fragment(web, OUTSIDER[0], 8, 24, false), "drop fragment-unknown"),
        (wrong, "drop malformed"),
        (vec![0; 10], "drop truncated"),
        (
            from_to(UNOWNED[0], web).tcp(1, 80, SYN, b""),
            "drop unknown-endpoint",
        ),
        // Its own node, which a capture cannot show to be it.
        (from_to(NODE, db).tcp(1, 22, SYN, b""), "forward"),
        (from_to(web, web).tcp(1, 2, SYN, b""), "drop spoofed-source"),
        (from_to(web, db).ip(47, &[0; 8]), "drop policy-ingress"),
        (from_to(web, OUTSIDER[0]).ip(47, &[0; 8]), "drop encapsulation"),
    ];
    let mut outcomes: Vec<(Packet, &str)> = frames
        .into_iter()
        .zip(1..)
        .map(|((frame, wanted), at)| (whole(100_000 + at, frame), wanted))
        .collect();
    outcomes.push(((100_100, long[..100].to_vec(), long.len()), "drop truncated"));
    outcomes
}

/// What is inside of tunnels between nodes is judged, and is of the same flows as bare packets.
#[test]
fn packets_in_tunnels_are_judged_inside() {
    let bed = Bed::new();
    let (forth, back) = (from_to(WEB[0], DB[0]), from_to(DB[0], WEB[0]));
    let node = from_to(NODE, "192.168.0.2");
    let frames = [
        forth.tcp(7, 5432, SYN, b""),
        node.vxlan(8472, 1, &back.tcp(5432, 7, SYN_ACK, b"")),
        node.ip_in_ip(&forth.tcp(7, 5432, ACK, b"select")),
        node.gre(0x20, &from_to(API[0], DB[0]).tcp(7, 5432, SYN, b"")),
        from_to(OUTSIDER[0], NODE).vxlan(4789, 1, &forth.tcp(7, 5432, ACK, b"")),
        node.ip(50, &[0; 40]),
    ];
    let packets: Vec<Packet> = (0..).zip(frames).map(|(at, frame)| whole(at, frame)).collect();
    let of_workers = |workers: &str| {
        let ran = bed.replay(&pcap(1, &packets), &["-o", "json", "--workers", workers]);
        assert_eq!(ran.status, 0, "{}{}", ran.out, ran.err);
        ran.lines()
    };
    let lines = of_workers("1");
    assert_eq!(of_workers("4"), lines);
    let words: Vec<String> = lines.iter().map(verdict).collect();
    let wanted = [
        "forward",
        "forward",
        "forward",
        "drop policy-ingress",
        "drop tunnel-source",
    ];
    assert_eq!(words[..5], wanted);
    let flow = |nth: usize| lines[nth]["flow"].clone();
    assert!(flow(0).is_string());
    assert_eq!((flow(1), flow(2)), (flow(0), flow(0)));
    let tunnels: Vec<&Value> = lines.iter().map(|line| &line["tunnel"]).collect();
    let none = Value::Null;
    assert_eq!(
        tunnels,
        [
            &none,
            &json!("vxlan"),
            &json!("ipip"),
            &json!("gre"),
            &none,
            &none
        ]
    );
}

#[test]
fn each_packet_is_answered_in_its_order() {
    let bed = Bed::new();
    let (packets, wanted): (Vec<Packet>, Vec<&str>) = outcomes().into_iter().unzip();
    let ran = bed.replay(&pcap(1, &packets), &["-o", "json"]);
    assert_eq!((ran.status, ran.err.as_str()), (0, ""));
    let lines = ran.lines();
    assert_eq!(lines.iter().map(verdict).collect::<Vec<_>>(), wanted);
    for (line, n) in lines.iter().zip(1..) {
        let keys: Vec<&String> = line.as_object().unwrap().keys().collect();
        assert_eq!(keys, ["n", "verdict", "reason", "flow", "generation"]);
        assert_eq!((&line["n"], &line["generation"]), (&json!(n), &json!(1)));
    }
    let flow = |n: usize| lines[n - 1]["flow"].as_str();
    // Both directions are one flow, an ICMP error is of the flow that it is about, a VLAN is another network.
    assert!(flow(1).is_some_and(|id| id.len() == 16));
    assert_eq!((flow(1), flow(1)), (flow(2), flow(3)));
    assert_ne!(flow(1), flow(8));
    assert!(flow(11).is_some());
    assert_eq!(flow(11), flow(12));
    for nothing in [4, 5, 7, 9, 10, 13, 15, 16, 17, 18, 19, 24] {
        assert_eq!(flow(nothing), None, "{nothing}");
    }

    // Byte for byte the same every time, and as a stream.
    assert_eq!(bed.replay(&pcap(1, &packets), &["-o", "json"]).out, ran.out);
    let mut child = Command::new(env!("CARGO_BIN_EXE_ringwall"))
        .args([
            "replay",
            "--manifests",
            &bed.path("before"),
            "--pcap",
            "-",
            "-o",
            "json",
        ])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    for part in pcap(1, &packets).chunks(7) {
        stdin.write_all(part).unwrap();
    }
    drop(stdin);
    let output = child.wait_with_output().unwrap();
    assert_eq!(String::from_utf8(output.stdout).unwrap(), ran.out);
}

#[test]
fn a_packet_that_is_being_captured_is_answered_at_once() {
    let bed = Bed::new();
    let mut child = Command::new(env!("CARGO_BIN_EXE_ringwall"))
        .args([
            "replay",
            "--manifests",
            &bed.path("before"),
            "--pcap",
            "-",
            "-o",
            "json",
        ])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let mut answers = BufReader::new(child.stdout.take().unwrap());
    let file = pcap(1, &[whole(1, arp()), whole(2, arp())]);
    let (first, second) = file.split_at(24 + 16 + arp().len());
    for (part, n) in [(first, 1), (second, 2)] {
        stdin.write_all(part).unwrap();
        let mut line = String::new();
        answers.read_line(&mut line).unwrap();
        let answer: Value = serde_json::from_str(&line).unwrap();
        assert_eq!(
            (&answer["n"], verdict(&answer)),
            (&json!(n), "pass arp".to_owned())
        );
    }
    drop(stdin);
    assert!(child.wait().unwrap().success());
}

#[test]
fn the_link_type_does_not_show() {
    let bed = Bed::new();
    let outcomes = outcomes();
    // What is IP alone, without tags and whole.
    let ip: Vec<&(Packet, &str)> = outcomes
        .iter()
        .filter(|((_, frame, length), _)| {
            frame.len() == *length && frame.len() > 14 && matches!(frame[12..14], [8, 0] | [0x86, 0xdd])
        })
        .collect();
    assert!(ip.len() > 15);
    let wanted: Vec<&str> = ip.iter().map(|(_, wanted)| *wanted).collect();
    let framed = |frame: &dyn Fn(&[u8]) -> Vec<u8>| -> Vec<Packet> {
        ip.iter()
            .map(|((at, bytes, _), _)| whole(*at, frame(bytes)))
            .collect()
    };
    let raw = framed(&|frame| frame[14..].to_vec());
    let loopback = framed(&|frame| {
        let family = if frame[12] == 8 { 2 } else { 30 };
        [&[family, 0, 0, 0][..], &frame[14..]].concat()
    });
    let cooked = framed(&|frame| [&[0; 14][..], &frame[12..]].concat());
    let cooked_2 = framed(&|frame| [&frame[12..14], &[0; 18][..], &frame[14..]].concat());
    for (link, packets) in [(101, &raw), (113, &cooked), (276, &cooked_2), (0, &loopback)] {
        assert_eq!(bed.verdicts(&pcap(link, packets), &[]), wanted, "{link}");
        // On two interfaces in turn.
        let turns: Vec<(u32, Packet)> = (0..).map(|n| n % 2).zip(packets.iter().cloned()).collect();
        let file = pcapng(&[link as u16; 2], &turns);
        assert_eq!(bed.verdicts(&file, &[]), wanted, "{link}, pcapng");
    }
    for (link, version) in [(228, 4), (229, 6)] {
        let of = |packet: &Packet| packet.1[0] >> 4 == version;
        let (packets, wanted): (Vec<Packet>, Vec<&str>) = raw
            .iter()
            .cloned()
            .zip(&wanted)
            .filter(|(packet, _)| of(packet))
            .unzip();
        assert_eq!(bed.verdicts(&pcap(link, &packets), &[]), wanted, "{link}");
    }
}

#[test]
fn the_clock_of_the_capture_counts_and_never_goes_back() {
    let bed = Bed::new();
    let question = from_to(DB[0], OUTSIDER[0]).udp(4000, 53, b"");
    let answer = from_to(OUTSIDER[0], DB[0]).udp(53, 4000, b"");
    let replay = |times: [u64; 4]| {
        let frames = [&question, &answer, &answer, &answer];
        let packets: Vec<Packet> = times
            .into_iter()
            .zip(frames)
            .map(|(at, frame)| whole(at, frame.clone()))
            .collect();
        bed.verdicts(&pcap(1, &packets), &[])
    };
    let wanted = |last: &str| {
        vec![
            "forward".to_owned(),
            "forward".to_owned(),
            "forward".to_owned(),
            last.to_owned(),
        ]
    };
    // 30 s after the last packet the answer answers nothing.
    assert_eq!(replay([100_000, 110_000, 120_000, 149_000]), wanted("forward"));
    assert_eq!(
        replay([100_000, 110_000, 120_000, 151_000]),
        wanted("drop policy-ingress")
    );
    // Times that go back are those before: else the flow would have been silent for 35 s.
    assert_eq!(replay([100_000, 110_000, 90_000, 125_000]), wanted("forward"));
    assert_eq!(
        replay([100_000, 110_000, 10_000, 141_000]),
        wanted("drop policy-ingress")
    );
}

#[test]
fn a_change_of_policy_cuts_a_flow_at_its_next_packet() {
    let bed = Bed::new();
    let events = bed.path("events.jsonl");
    // Of the last two that hold at one time, the later line counts.
    let text = "{\"at\":\"+20\",\"manifests\":\"after\"}\n\n{\"at\":110,\"manifests\":\"after\"}\n{\"at\":\"1970-01-01T00:02:00Z\",\"manifests\":\"before\"}\n{\"at\":\"+1000\",\"manifests\":\"after\"}\n";
    fs::write(&events, text).unwrap();
    let open = |at: u64, client: &str, port: u16| {
        [
            whole(at, from_to(client, DB[0]).tcp(port, 5432, SYN, b"")),
            whole(at, from_to(DB[0], client).tcp(5432, port, SYN_ACK, b"")),
            whole(at, from_to(client, DB[0]).tcp(port, 5432, ACK, b"")),
        ]
    };
    let more = |at: u64, client: &str, port: u16| {
        [
            whole(at, from_to(DB[0], client).tcp(5432, port, ACK, b"")),
            whole(at, from_to(client, DB[0]).tcp(port, 5432, ACK, b"")),
        ]
    };
    let other = [whole(105_000, from_to(WEB[0], API[0]).tcp(9, 80, SYN, b""))];
    let packets = [
        &open(100_000, WEB[0], 1)[..],
        &other,
        &more(109_999, WEB[0], 1),
        // Generation 2.
        &more(110_000, WEB[0], 1),
        &more(115_000, WEB[0], 1),
        &open(115_000, API[0], 2),
        &[whole(115_001, from_to(API[0], WEB[0]).tcp(80, 9, SYN_ACK, b""))],
        // Generations 3 and 4.
        &more(125_000, API[0], 2),
        &open(125_000, WEB[0], 3),
    ]
    .concat();
    let file = pcap(1, &packets);
    let ran = bed.replay(&file, &["--events", &events, "-o", "json"]);
    assert_eq!((ran.status, ran.err.as_str()), (0, ""));
    let lines = ran.lines();
    let answers: Vec<(String, u64)> = lines
        .iter()
        .map(|line| (verdict(line), line["generation"].as_u64().unwrap()))
        .collect();
    let denied = "drop policy-ingress";
    let wanted = [
        ("forward", 1, 6),
        // The database's own answers go out to a pod that is not isolated; what comes in is denied.
        ("forward", 2, 1),
        (denied, 2, 1),
        ("forward", 2, 1),
        (denied, 2, 1),
        ("forward", 2, 4),
        ("forward", 4, 1),
        (denied, 4, 1),
        ("forward", 4, 3),
    ];
    let wanted: Vec<(String, u64)> = wanted
        .iter()
        .flat_map(|(verdict, generation, times)| vec![((*verdict).to_owned(), *generation); *times])
        .collect();
    assert_eq!(answers, wanted);
    // What is cut keeps its name.
    assert_eq!(lines[7]["flow"], lines[0]["flow"]);
    // A flow that no change is about goes on.
    assert_eq!(lines[3]["flow"], lines[13]["flow"]);

    let ran = bed.replay(&file, &["--events", &events]);
    assert_eq!(ran.status, 0);
    for line in [
        &format!("-- generation 2: {}\n", bed.path("after")),
        "shop/web:1 -> shop/db:5432 TCP; isolated by shop/db\n",
        "generations 1 to 4\n",
        "1 event after the last packet.\n",
    ] {
        assert!(ran.out.contains(line), "{line}:\n{}", ran.out);
    }
}

/// What may come of it, drawn without much thought: few ends and ports, so that flows meet.
fn random_packets(number: usize) -> Vec<Packet> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut draw = move |below: usize| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % below
    };
    let ends = [WEB, DB, API, UNOWNED, OUTSIDER];
    let mut at = 1_000_000;
    let mut frames: Vec<Vec<u8>> = Vec::new();
    (0..number)
        .map(|_| {
            let family = draw(2);
            let (src, dst) = (ends[draw(5)][family], ends[draw(5)][family]);
            let mut template = from_to(src, dst);
            if draw(10) == 0 {
                template.vlans = vec![draw(3) as u16];
            }
            let ports = [1000 + draw(4) as u16, [80, 5432, 53][draw(3)]];
            let [low, high] = if draw(2) == 0 { ports } else { [ports[1], ports[0]] };
            let flags = [SYN, SYN_ACK, ACK, ACK, 0x11, 0x04, 0][draw(7)];
            let frame = match draw(12) {
                0..=4 => template.tcp_at(low, high, flags, [draw(3) as u32, draw(3) as u32], b"x"),
                5 | 6 => template.udp(low, high, b"x"),
                7 => template.echo(low, draw(2) == 0),
                8 => template.sctp(low, high, draw(16) as u8),
                9 if family == 0 => fragment(src, dst, draw(3) as u32, 24 * draw(3) as u16, draw(2) == 0),
                10 if family == 0 && !frames.is_empty() => {
                    let about = &frames[draw(frames.len())];
                    if about.len() >= 42 {
                        unreachable(dst, src, about)
                    } else {
                        arp()
                    }
                }
                11 => arp(),
                _ => template.ip(47, &[0; 8]),
            };
            frames.push(frame.clone());
            at += draw(400) as u64;
            let back = if draw(20) == 0 { 5_000 } else { 0 };
            let captured = if draw(40) == 0 { 30 } else { frame.len() };
            let length = frame.len();
            (at - back, frame[..captured.min(length)].to_vec(), length)
        })
        .collect()
}

#[test]
fn the_number_of_workers_does_not_show() {
    let bed = Bed::new();
    let events = bed.path("events.jsonl");
    let text: String = (1..20)
        .map(|n| {
            format!(
                "{{\"at\":\"+{}\",\"manifests\":\"{}\"}}\n",
                n * 50,
                ["before", "after"][n % 2]
            )
        })
        .collect();
    fs::write(&events, text).unwrap();
    let packets = random_packets(5000);
    let file = pcap(1, &packets);
    let run = |workers: &str| {
        let copy = bed.path(&format!("copy-{workers}"));
        let ran = bed.replay(
            &file,
            &[
                "--events",
                &events,
                "--workers",
                workers,
                "--out",
                &copy,
                "-o",
                "json",
            ],
        );
        assert_eq!(ran.status, 0, "{}", ran.err);
        (ran.out, fs::read(copy).unwrap())
    };
    let one = run("1");
    for workers in ["2", "3", "4", "64"] {
        let many = run(workers);
        assert!(one == many, "{workers} workers");
    }
    let lines: Vec<String> = one
        .0
        .lines()
        .map(|line| verdict(&serde_json::from_str(line).unwrap()))
        .collect();
    assert_eq!(lines.len(), 5000);
    for wanted in [
        "forward",
        "pass arp",
        "drop policy-ingress",
        "drop unknown-endpoint",
        "drop truncated",
        "drop tcp-invalid",
        "drop icmp-unrelated",
        "drop fragment-unknown",
        "drop encapsulation",
        "drop spoofed-source",
    ] {
        assert!(
            lines.iter().filter(|line| *line == wanted).count() > 5,
            "{wanted}"
        );
    }
    // The copy has what goes on and nothing else.
    let kept: Vec<Packet> = packets
        .iter()
        .zip(&lines)
        .filter(|(_, verdict)| !verdict.starts_with("drop"))
        .map(|(packet, _)| packet.clone())
        .collect();
    assert!(one.1 == pcap(1, &kept));
}

/// A worker keeps shares of its table and of ICMP errors for each endpoint, which differ with the number of workers.
#[test]
fn a_flood_does_not_show_the_number_of_workers_either() {
    let bed = Bed::new();
    // Connections of one pair of addresses, which all are one worker's. Their answers pass as answers alone.
    let syns = (0..6000).map(|n| whole(0, from_to(DB[0], OUTSIDER[0]).tcp(n, 443, SYN, b"")));
    let answers = (0..100).map(|n| whole(5000, from_to(OUTSIDER[0], DB[0]).tcp(443, n, SYN_ACK, b"")));
    // Errors about flows to many destinations, for one pod.
    let errors = (0..400_u64).flat_map(|n| {
        let to = format!("198.51.{}.{}", n / 200, n % 200 + 1);
        let question = from_to(WEB[0], &to).udp(4000, 53, b"");
        let error = unreachable(&to, WEB[0], &question);
        [whole(6000, question), whole(6000, error)]
    });
    let file = pcap(1, &syns.chain(answers).chain(errors).collect::<Vec<_>>());
    let run = |workers| {
        let ran = bed.replay(&file, &["--workers", workers, "-o", "json"]);
        assert_eq!(ran.status, 0, "{}", ran.err);
        ran.out
    };
    let one = run("1");
    assert_eq!(one.matches("\"verdict\":\"forward\"").count(), 6900);
    for workers in ["3", "60"] {
        assert!(run(workers) == one, "{workers} workers");
    }
}

#[test]
fn the_copy_of_a_pcapng_file_is_one() {
    let bed = Bed::new();
    let outcomes = outcomes();
    let turns = |wanted: fn(&str) -> bool| -> Vec<(u32, Packet)> {
        (0..)
            .map(|n| n % 2)
            .zip(&outcomes)
            .filter(|(_, (_, verdict))| wanted(verdict))
            .map(|(interface, (packet, _))| (interface, packet.clone()))
            .collect()
    };
    let copy = bed.path("copy");
    let ran = bed.replay(&pcapng(&[1, 1], &turns(|_| true)), &["--out", &copy]);
    assert_eq!(ran.status, 0, "{}", ran.err);
    let kept = turns(|verdict| !verdict.starts_with("drop"));
    assert!(fs::read(&copy).unwrap() == pcapng(&[1, 1], &kept));
    assert!(
        ran.out
            .contains("24 packets in 0.099000 s: 10 forwarded, 1 passed, 13 dropped; "),
        "{}",
        ran.out
    );
}

/// The whole text about an error, of a capture that is then followed by these arguments.
fn refused(bed: &Bed, capture: &[u8], more: &[&str]) -> String {
    let human = bed.replay(capture, more);
    let json = bed.replay(capture, &[more, &["-o", "json"]].concat());
    assert_eq!((human.status, json.status), (2, 2));
    let last = json.lines().pop().unwrap();
    let error = last["error"].as_str().unwrap().to_owned();
    if last.get("n").is_none() {
        assert_eq!(human.err, format!("ringwall: {error}\n"));
    }
    error.replace(bed.dir.path().to_str().unwrap(), "DIR")
}

#[test]
fn what_cannot_be_replayed_is_said_with_its_place() {
    let bed = Bed::new();
    let frame = from_to(WEB[0], DB[0]).tcp(1, 5432, SYN, b"");
    let packets = [whole(1, frame.clone()), whole(2, frame.clone())];
    let file = pcap(1, &packets);
    let cases = [
        (vec![], "cannot replay DIR/capture: the file is empty"),
        (
            b"kind: Pod".to_vec(),
            "cannot replay DIR/capture: it is neither pcap nor pcapng",
        ),
        (
            pcap(105, &packets),
            "cannot replay DIR/capture: link type 105 is not supported, only Ethernet (1), raw IP (101, 228, 229), Linux cooked (113, 276) and loopback (0, 108): capture on an interface of one of these",
        ),
        (
            file[..20].to_vec(),
            "cannot replay DIR/capture: the capture is cut short: the header at byte 0 is not whole, only 20 bytes of it are there (packets before it: 0). Copy the file again, or capture again",
        ),
    ];
    for (file, wanted) in cases {
        let ran = bed.replay(&file, &["-o", "json"]);
        assert_eq!(ran.lines().len(), 1, "{wanted}");
        assert_eq!(refused(&bed, &file, &[]), wanted);
    }

    // What comes before the end is answered, and copied.
    let copy = bed.path("copy");
    let cut = &file[..file.len() - 7];
    let ran = bed.replay(cut, &["-o", "json", "--out", &copy]);
    assert_eq!((ran.status, ran.lines().len()), (2, 2));
    assert_eq!(verdict(&ran.lines()[0]), "forward");
    assert!(fs::read(&copy).unwrap() == pcap(1, &packets[..1]));
    assert_eq!(
        refused(&bed, cut, &[]),
        "cannot replay DIR/capture: the capture is cut short: packet 2 at byte 94 is not whole, only 63 bytes of it are there (packets before it: 1). Copy the file again, or capture again"
    );
    let human = bed.replay(cut, &[]);
    assert!(
        human
            .out
            .contains("1 packet in 0.000000 s: 1 forwarded, 0 passed, 0 dropped; 1 flow\n"),
        "{}",
        human.out
    );

    // An error about one packet is in its place, and the others are answered.
    let mixed = [
        (0, packets[0].clone()),
        (1, packets[0].clone()),
        (2, packets[0].clone()),
        (0, packets[1].clone()),
    ];
    let ran = bed.replay(&pcapng(&[1, 127], &mixed), &["-o", "json"]);
    assert_eq!((ran.status, ran.err.as_str()), (2, ""));
    let lines = ran.lines();
    assert_eq!(
        lines
            .iter()
            .map(|line| line["n"].as_u64().unwrap())
            .collect::<Vec<_>>(),
        [1, 2, 3, 4]
    );
    assert!(
        lines[1]["error"]
            .as_str()
            .unwrap()
            .starts_with("link type 127 is not supported")
    );
    assert!(
        lines[2]["error"]
            .as_str()
            .unwrap()
            .starts_with("interface 2 is not described")
    );
    assert_eq!([verdict(&lines[0]), verdict(&lines[3])], ["forward", "forward"]);
}

#[test]
fn wrong_arguments_and_events_are_refused_before_any_answer() {
    let bed = Bed::new();
    let frame = from_to(WEB[0], DB[0]).tcp(1, 5432, SYN, b"");
    let file = pcap(1, &[whole(1, frame)]);
    let events = bed.path("events.jsonl");
    for (text, wanted) in [
        (
            "{\"at\":1}",
            "DIR/events.jsonl, line 1: missing field `manifests` at line 1 column 8; an event is {\"at\":TIME,\"manifests\":\"FOLDER\"}",
        ),
        (
            "{\"at\":\"+1\",\"manifests\":\"after\"}\n{\"at\":\"noon\",\"manifests\":\"after\"}",
            "DIR/events.jsonl, line 2: \"noon\" is no time: write it in UTC (\"2026-03-01T12:00:00.5Z\"), in seconds since 1970 (1772366400.5), or in seconds after the first packet (\"+2.5\")",
        ),
        (
            "{\"at\":\"+1\",\"manifests\":\"-\"}",
            "DIR/events.jsonl, line 1: manifests cannot be standard input; write them to a folder",
        ),
        (
            "{\"at\":\"+1000\",\"manifests\":\"missing\"}",
            "DIR/events.jsonl, line 1: cannot read DIR/missing: No such file or directory (os error 2)",
        ),
    ] {
        fs::write(&events, text).unwrap();
        assert_eq!(refused(&bed, &file, &["--events", &events]), wanted);
        let ran = bed.replay(&file, &["--events", &events, "-o", "json"]);
        assert_eq!(ran.lines().len(), 1);
    }
    let missing = bed.path("missing");
    assert_eq!(
        refused(&bed, &file, &["--events", &missing]),
        "cannot read events from DIR/missing: No such file or directory (os error 2)"
    );
    assert_eq!(
        refused(&bed, &file, &["--out", "-"]),
        "--out -: name a file, since the answers are on standard output"
    );
    for workers in ["0", "65", "many"] {
        assert_eq!(bed.replay(&file, &["--workers", workers]).status, 2);
    }
    let stdin = ringwall(&["replay", "--manifests", "-", "--pcap", "-"]);
    assert_eq!(
        (stdin.status, stdin.err.as_str()),
        (
            2,
            "ringwall: --manifests and --pcap cannot both be standard input; write one of them to a file\n"
        )
    );
    // Nothing is left of a copy that was not finished.
    let names = fs::read_dir(bed.dir.path()).unwrap();
    let names: Vec<_> = names.map(|entry| entry.unwrap().file_name()).collect();
    assert!(
        !names
            .iter()
            .any(|name| Path::new(name).to_str().unwrap().starts_with('.')),
        "{names:?}"
    );
}

#[test]
fn people_get_a_table_and_a_summary() {
    let bed = Bed::new();
    let (packets, _): (Vec<Packet>, Vec<&str>) = outcomes().into_iter().unzip();
    let ran = bed.replay(&pcap(1, &packets[..5]), &[]);
    let flow = bed.replay(&pcap(1, &packets[..1]), &["-o", "json"]).lines()[0]["flow"].clone();
    let flow = flow.as_str().unwrap();
    let wanted = format!(
        "      N       SECONDS  VERDICT  REASON            FLOW              PACKET
      1      0.000000  forward  -                 {flow}  shop/web:1 -> shop/db:5432 TCP
      2      0.001000  forward  -                 {flow}  shop/db:5432 -> shop/web:1 TCP
      3      0.002000  forward  -                 {flow}  shop/web:1 -> shop/db:5432 TCP
      4      0.003000  drop     policy-ingress    -                 shop/api:1 -> shop/db:5432 TCP; isolated by shop/db
      5      0.004000  drop     policy-ingress    -                 shop/web:2 -> shop/db:80 TCP; isolated by shop/db
5 packets in 0.004000 s: 3 forwarded, 0 passed, 2 dropped; 1 flow
      2  policy-ingress    A pod is isolated in the direction and no rule allows the packet.
"
    );
    assert_eq!((ran.status, ran.out), (0, wanted));
    let nothing = bed.replay(&pcap(1, &[]), &[]);
    assert_eq!(
        (nothing.status, nothing.out.as_str()),
        (
            0,
            "0 packets in 0.000000 s: 0 forwarded, 0 passed, 0 dropped; 0 flows\n"
        )
    );
}
