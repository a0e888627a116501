//! Writes the first inputs of every target that needs some: `cargo run -p ringwall-fuzz --example seeds -- FOLDER`. What is in
//! `corpus/` has grown out of them.
#![allow(clippy::unwrap_used, clippy::panic)] // a tool for those who change the targets

use std::{
    fs,
    path::{Path, PathBuf},
};

use ringwall_dataplane::{addr::Addr, wire::build::Template};
use ringwall_messages::{
    ClusterUid, Connection, ContentHash, DataplaneStatus, FlowCursor, FlowFilter, FlowPage, PortStatus,
    Reply, Request, WorkerStatus,
};

fn main() {
    let folder = std::env::args().nth(1).map(PathBuf::from).unwrap();
    let write = |target: &str, name: &str, bytes: &[u8]| {
        let folder = folder.join(target);
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join(name), bytes).unwrap();
    };
    for (nth, frame) in frames().iter().enumerate() {
        write("headers", &format!("frame-{nth}"), frame);
        write("programs", &format!("frame-{nth}"), frame);
    }
    for (nth, message) in messages().iter().enumerate() {
        write("messages", &format!("message-{nth}"), message);
    }
    for (nth, capture) in captures().iter().enumerate() {
        write("capture", &format!("capture-{nth}"), capture);
    }
    for (target, name, text) in texts() {
        write(target, &name, text.as_bytes());
    }
}

fn addr(text: &str) -> Addr {
    Addr::from(text.parse::<std::net::IpAddr>().unwrap())
}

/// A capture of each format in each byte order, with a packet of each kind of record.
fn captures() -> Vec<Vec<u8>> {
    let frame = Template::new(addr("10.0.0.1"), addr("10.0.0.2")).udp(1000, 53, b"");
    let orders: [fn(u32) -> [u8; 4]; 2] = [u32::to_le_bytes, u32::to_be_bytes];
    let mut captures = Vec::new();
    for order in orders {
        let words = |values: &[u32]| -> Vec<u8> { values.iter().flat_map(|value| order(*value)).collect() };
        let length = frame.len() as u32;
        for magic in [0xa1b2_c3d4, 0xa1b2_3c4d, 0xa1b2_cd34] {
            let version = if order(1)[0] == 1 {
                0x0004_0002
            } else {
                0x0002_0004
            };
            let mut file = words(&[magic, version, 0, 0, 65535, 1]);
            file.extend(words(&[5, 6, length, length]));
            file.extend([&[0; 8][..if magic == 0xa1b2_cd34 { 8 } else { 0 }], &frame].concat());
            captures.push(file);
        }
        let block = |kind: u32, body: Vec<u8>| {
            let padded = body.len().next_multiple_of(4);
            let length = padded as u32 + 12;
            let mut block = [words(&[kind, length]), body].concat();
            block.resize(8 + padded, 0);
            [block, words(&[length])].concat()
        };
        let half = |high: u32, low: u32| {
            if order(1)[0] == 1 {
                low << 16 | high
            } else {
                high << 16 | low
            }
        };
        let file = [
            block(0x0a0d_0d0a, words(&[0x1a2b_3c4d, half(1, 0), u32::MAX, u32::MAX])),
            block(
                1,
                [words(&[half(1, 0), 0, half(9, 1)]), vec![9, 0, 0, 0], words(&[0])].concat(),
            ),
            block(1, words(&[half(113, 0), 96, half(14, 8), 0, 7, 0])),
            block(6, [words(&[0, 0, 5, length, length]), frame.clone()].concat()),
            block(3, [words(&[length]), frame.clone()].concat()),
            block(
                2,
                [words(&[half(1, 0), 0, 5, length, length]), frame.clone()].concat(),
            ),
            block(5, words(&[0, 0, 5])),
            block(0x4000_0bad, words(&[1])),
        ];
        captures.push(file.concat());
    }
    captures
}

/// Every kind of frame that the parsers tell apart.
fn frames() -> Vec<Vec<u8>> {
    let mut frames = Vec::new();
    for (src, dst) in [
        ("10.0.0.1", "10.0.0.2"),
        ("fd00::1", "fd00::2"),
        ("192.0.2.7", "10.9.0.1"),
        ("2001:db8::7", "fd16::9"),
    ] {
        let template = Template::new(addr(src), addr(dst));
        let udp = template.udp(1000, 53, b"question");
        let back = Template::new(addr(dst), addr(src));
        frames.extend([
            template.tcp(1000, 80, 2, b""),
            template.sctp(5001, 5000, 1),
            template.echo(7, true),
            template.icmp(13, 0, [0; 4], &[0; 12]),
            template.ip(47, &[0; 8]),
            back.icmp(if template.src.is_v4() { 3 } else { 1 }, 0, [0; 4], &udp[14..]),
            udp,
        ]);
        let mut tagged = template.clone();
        tagged.vlans = vec![5];
        frames.push(tagged.udp(1, 2, b""));
        tagged.vlans = vec![5, 6];
        frames.push(tagged.tcp(1, 2, 16, b""));
        let mut part = template.clone();
        for (offset, more) in [(0, true), (24, false)] {
            part.fragment = Some((9, offset, more));
            frames.push(part.ip(
                17,
                &[
                    0, 1, 0, 53, 0, 48, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1, 2, 3, 4, 5, 6,
                ],
            ));
        }
        let mut long = template.clone();
        long.options = vec![7, 4, 4, 0];
        long.extensions = vec![(0, vec![0; 6]), (60, vec![0; 14])];
        frames.push(long.tcp(1, 80, 2, b"x"));
    }
    for (src, dst, ports) in [
        ("0.0.0.0", "255.255.255.255", (68, 67)),
        ("10.0.0.1", "224.0.0.251", (5353, 5353)),
        ("fe80::1", "ff02::1:2", (546, 547)),
        ("fe80::2", "fe80::1", (547, 546)),
    ] {
        frames.push(Template::new(addr(src), addr(dst)).udp(ports.0, ports.1, b""));
    }
    for (kind, ttl, dst) in [
        (133, 255, "ff02::2"),
        (134, 255, "ff02::1"),
        (135, 255, "fe80::1"),
        (136, 255, "fd00::2"),
        (137, 255, "fe80::1"),
        (143, 1, "ff02::16"),
    ] {
        let mut template = Template::new(addr("fe80::2"), addr(dst));
        template.ttl = ttl;
        frames.push(template.icmp(kind, 0, [0; 4], &[0; 16]));
    }
    frames.push([&[255; 6][..], &[2; 6], &[8, 6, 0, 1, 8, 0, 6, 4, 0, 1], &[0; 38]].concat());
    frames.push([&[1, 0x80, 0xc2, 0, 0, 0][..], &[2; 6], &[0, 39], &[0x42; 39]].concat());
    frames
}

/// Every kind of message, as it is sent.
fn messages() -> Vec<Vec<u8>> {
    let hash = ContentHash([0xab; 32]);
    let cluster = ClusterUid::try_from("0b7d2bd0-7a3c-4d6e-8f10-3f1f6a1c2d3e".to_owned()).ok();
    let requests = [
        Request::Hello { version: 4 },
        Request::Publish {
            generation: 7,
            hash,
            bytes: 4,
            base: Some(6),
            cluster: cluster.clone(),
        },
        Request::Current {
            generation: 7,
            cluster: cluster.clone(),
        },
        Request::Status,
        Request::Flows {
            filter: FlowFilter {
                pod: Some("default/web".to_owned()),
                ..FlowFilter::default()
            },
            cursor: Some(FlowCursor { worker: 1, entry: 2 }),
        },
    ];
    let replies = [
        Reply::Hello {
            version: 4,
            generation: 1,
            hash: Some(hash),
            cluster,
            workers: 2,
            pod_starts: Vec::new(),
        },
        Reply::Accepted { generation: 2 },
        Reply::Refused {
            generation: 2,
            reason: "no".to_owned(),
        },
        Reply::Adopted {
            generation: 2,
            micros: 30,
        },
        Reply::Status {
            status: Box::new(DataplaneStatus {
                workers: vec![WorkerStatus::default()],
                ports: vec![PortStatus::default()],
                drops: [("policy-ingress".to_owned(), 3)].into(),
                ..DataplaneStatus::default()
            }),
        },
        Reply::Flows {
            page: Box::new(FlowPage::default()),
        },
        Reply::Error {
            message: "what".to_owned(),
        },
    ];
    let mut messages: Vec<Vec<u8>> = requests.iter().map(|request| sent(0, request)).collect();
    messages.extend(replies.iter().map(|reply| sent(4, reply)));
    // With memory.
    messages.push([&sent(1, &requests[1])[..], b"\nabcd"].concat());
    messages.push(b"\x01{\"spilled\":17}\n{\"type\":\"status\"}".to_vec());
    messages
}

fn sent<T: serde::Serialize>(flags: u8, message: &T) -> Vec<u8> {
    let (there, here) = Connection::pair().unwrap();
    there.send(message, None).unwrap();
    let mut datagram = vec![0; 1 << 16];
    let (length, _) = rustix::net::recv(&here, &mut datagram[..], rustix::net::RecvFlags::empty()).unwrap();
    datagram.truncate(length);
    datagram.insert(0, flags);
    datagram
}

/// Documents of the repository's own files, one by one, so that inputs are short.
fn texts() -> Vec<(&'static str, String, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut texts = Vec::new();
    for (target, folder, whole) in [
        ("config", "config/examples", true),
        ("manifests", "docs/examples", false),
        ("manifests", "config/demo", false),
    ] {
        let mut folders = vec![root.join(folder)];
        while let Some(folder) = folders.pop() {
            let mut entries: Vec<PathBuf> = fs::read_dir(&folder)
                .unwrap()
                .map(|entry| entry.unwrap().path())
                .collect();
            entries.sort();
            for path in entries {
                if path.is_dir() {
                    if !whole {
                        folders.push(path);
                    }
                } else if path.extension().is_some_and(|end| end == "yaml") {
                    let below = path.strip_prefix(&root).unwrap().with_extension("");
                    let name = below.to_string_lossy().replace('/', "-");
                    let text = fs::read_to_string(&path).unwrap();
                    let pieces: Vec<&str> = if whole {
                        vec![&text]
                    } else {
                        text.split("\n---\n").collect()
                    };
                    for (nth, piece) in pieces.chunks(4).enumerate() {
                        texts.push((target, format!("{name}-{nth}"), piece.join("\n---\n")));
                    }
                }
            }
        }
    }
    texts
}
