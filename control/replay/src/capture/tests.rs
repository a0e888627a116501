#![allow(clippy::unwrap_used, clippy::panic)] // in tests a failed unwrap is the failure

use super::*;

/// Numbers in one byte order.
#[derive(Clone, Copy)]
struct Writer {
    big: bool,
}

const LITTLE: Writer = Writer { big: false };
const BIG: Writer = Writer { big: true };

impl Writer {
    fn half(self, value: u16) -> [u8; 2] {
        match self.big {
            true => value.to_be_bytes(),
            false => value.to_le_bytes(),
        }
    }

    fn word(self, value: u32) -> [u8; 4] {
        match self.big {
            true => value.to_be_bytes(),
            false => value.to_le_bytes(),
        }
    }

    fn words(self, values: &[u32]) -> Vec<u8> {
        values.iter().flat_map(|value| self.word(*value)).collect()
    }

    fn long(self, value: u64) -> [u8; 8] {
        match self.big {
            true => value.to_be_bytes(),
            false => value.to_le_bytes(),
        }
    }

    /// A pcap file of packets with times.
    fn pcap(self, magic: u32, minor: u16, link: u32, packets: &[(u32, u32, &[u8])]) -> Vec<u8> {
        let mut file = self.word(magic).to_vec();
        file.extend([self.half(2), self.half(minor)].concat());
        file.extend(self.words(&[0, 0, 65535, link]));
        for (seconds, fraction, bytes) in packets {
            let length = bytes.len() as u32;
            file.extend(self.words(&[*seconds, *fraction, length, length]));
            if magic == MODIFIED {
                file.extend([0; 8]);
            }
            file.extend_from_slice(bytes);
        }
        file
    }

    fn block(self, kind: u32, body: &[u8]) -> Vec<u8> {
        let padded = body.len().next_multiple_of(4);
        let length = self.word(padded as u32 + 12);
        let mut block = [self.word(kind), length].concat();
        block.extend(body);
        block.resize(8 + padded, 0);
        block.extend(length);
        block
    }

    fn section(self) -> Vec<u8> {
        let mut body = self.word(0x1a2b_3c4d).to_vec();
        body.extend([self.half(1), self.half(0)].concat());
        body.extend(self.long(4096));
        self.block(0x0a0d_0d0a, &body)
    }

    fn interface(self, link: u16, snap_length: u32, options: &[(u16, &[u8])]) -> Vec<u8> {
        let mut body = [self.half(link), [0; 2]].concat();
        body.extend(self.word(snap_length));
        for (code, value) in options {
            body.extend([self.half(*code), self.half(value.len() as u16)].concat());
            body.extend_from_slice(value);
            body.resize(body.len().next_multiple_of(4), 0);
        }
        self.block(1, &body)
    }

    fn enhanced(self, interface: u32, ticks: u64, bytes: &[u8], length: u32) -> Vec<u8> {
        let times = [(ticks >> 32) as u32, ticks as u32];
        let mut body = self.words(&[interface, times[0], times[1], bytes.len() as u32, length]);
        body.extend(bytes);
        self.block(6, &body)
    }

    fn simple(self, bytes: &[u8], length: u32) -> Vec<u8> {
        self.block(3, &[&self.word(length), bytes].concat())
    }

    fn obsolete(self, interface: u16, ticks: u64, bytes: &[u8]) -> Vec<u8> {
        let mut body = [self.half(interface), [0; 2]].concat();
        let length = bytes.len() as u32;
        body.extend(self.words(&[(ticks >> 32) as u32, ticks as u32, length, length]));
        body.extend(bytes);
        self.block(2, &body)
    }
}

const MICROSECONDS: u32 = 0xa1b2_c3d4;
const NANOSECONDS: u32 = 0xa1b2_3c4d;
const MODIFIED: u32 = 0xa1b2_cd34;

const SECOND: u64 = 1_000_000_000;

/// What is expected of a packet: time, link, bytes, length.
type Wanted = (Option<u64>, PacketLink, Vec<u8>, u32);

fn known(link: Link, time: Option<u64>, bytes: &[u8]) -> Wanted {
    (time, PacketLink::Known(link), bytes.to_vec(), bytes.len() as u32)
}

/// Small captures of every kind that there is, and their packets.
fn captures() -> Vec<(&'static str, Vec<u8>, Vec<Wanted>)> {
    use Link::{Cooked, Cooked2, Ethernet, Raw};
    let (first, second): (&[u8], &[u8]) = (&[1, 2, 3, 4, 5], &[6; 30]);
    let packets = [(5, 7, first), (6, 0, second)];
    let times = |unit: u64| [Some(5 * SECOND + 7 * unit), Some(6 * SECOND)];
    let both = |link, [a, b]: [Option<u64>; 2]| vec![known(link, a, first), known(link, b, second)];
    let mut all = vec![
        (
            "pcap, little-endian, microseconds",
            LITTLE.pcap(MICROSECONDS, 4, 1, &packets),
            both(Ethernet, times(1000)),
        ),
        (
            "pcap, big-endian, microseconds",
            BIG.pcap(MICROSECONDS, 4, 101, &packets),
            both(Raw, times(1000)),
        ),
        (
            "pcap, little-endian, nanoseconds",
            LITTLE.pcap(NANOSECONDS, 4, 113, &packets),
            both(Cooked, times(1)),
        ),
        (
            "pcap, big-endian, nanoseconds",
            BIG.pcap(NANOSECONDS, 4, 276, &packets),
            both(Cooked2, times(1)),
        ),
        (
            "pcap with longer records",
            LITTLE.pcap(MODIFIED, 4, 1, &packets),
            both(Ethernet, times(1000)),
        ),
        (
            "pcap with check sums behind frames",
            LITTLE.pcap(MICROSECONDS, 4, 0x2400_0001, &packets),
            both(Ethernet, times(1000)),
        ),
        (
            "pcap of a link type that is not supported",
            LITTLE.pcap(MICROSECONDS, 4, 105, &packets[..1]),
            vec![(times(1000)[0], PacketLink::Unknown(105), first.to_vec(), 5)],
        ),
        (
            "pcap without packets",
            LITTLE.pcap(MICROSECONDS, 4, 1, &[]),
            vec![],
        ),
    ];
    for (name, writer) in [("pcapng, little-endian", LITTLE), ("pcapng, big-endian", BIG)] {
        let file = [
            writer.section(),
            writer.interface(1, 0, &[]),
            writer.enhanced(0, 5_000_007, first, 5),
            writer.enhanced(0, 6_000_000, second, 30),
        ];
        all.push((name, file.concat(), both(Ethernet, times(1000))));
    }
    let clocks = [
        BIG.section(),
        BIG.interface(1, 0, &[(2, b"eth0"), (9, &[9]), (0, &[])]),
        BIG.interface(
            113,
            0,
            &[(9, &[0x80 | 1]), (14, &BIG.long(100)), (0, &[]), (9, &[3])],
        ),
        BIG.enhanced(1, 11, first, 5),
        BIG.enhanced(0, 11, second, 30),
    ];
    all.push((
        "pcapng, a clock for each interface",
        clocks.concat(),
        vec![
            known(Cooked, Some(105 * SECOND + SECOND / 2), first),
            known(Ethernet, Some(11), second),
        ],
    ));
    let sections = [
        LITTLE.section(),
        LITTLE.interface(1, 0, &[]),
        LITTLE.enhanced(0, 1, first, 5),
        BIG.section(),
        BIG.interface(101, 0, &[]),
        BIG.enhanced(0, 2, second, 30),
        BIG.enhanced(1, 2, first, 5),
    ];
    all.push((
        "pcapng, two sections",
        sections.concat(),
        vec![
            known(Ethernet, Some(1000), first),
            known(Raw, Some(2000), second),
            (None, PacketLink::NoInterface(1), first.to_vec(), 5),
        ],
    ));
    let kinds = [
        LITTLE.section(),
        LITTLE.block(0x0000_4242, &[1; 8]),
        LITTLE.interface(1, 20, &[]),
        LITTLE.block(4, &[0; 4]),
        LITTLE.simple(first, 5),
        LITTLE.simple(&second[..20], 30),
        LITTLE.block(0x4000_0bad, &[9; 8]),
        LITTLE.obsolete(0, 3, first),
        LITTLE.enhanced(0, 4, first, 1500),
        LITTLE.block(0x0bad, &[9; 8]),
    ];
    all.push((
        "pcapng, other kinds of blocks",
        kinds.concat(),
        vec![
            known(Ethernet, None, first),
            (None, PacketLink::Known(Ethernet), second[..20].to_vec(), 30),
            known(Ethernet, Some(3000), first),
            (Some(4000), PacketLink::Known(Ethernet), first.to_vec(), 1500),
        ],
    ));
    all.push(("pcapng without packets", LITTLE.section(), vec![]));
    all
}

/// The packets of a file, where each record begins, and how it ends.
fn read(file: &[u8]) -> (Vec<Wanted>, Vec<u64>, Result<(), CaptureError>) {
    let (mut packets, mut offsets) = (Vec::new(), Vec::new());
    let mut reader = match CaptureReader::open(file) {
        Ok(reader) => reader,
        Err(error) => return (packets, offsets, Err(error)),
    };
    let mut at = reader.pcap().map_or(0, |(header, _)| header.len() as u64);
    let end = loop {
        match reader.next_record() {
            Ok(None) => break Ok(()),
            Err(error) => break Err(error),
            Ok(Some(record)) => {
                offsets.push(at);
                at += record.raw.len() as u64;
                if let Content::Packet(packet) = record.content {
                    assert_eq!(packet.number, packets.len() as u64 + 1);
                    assert_eq!(packet.offset, *offsets.last().unwrap());
                    packets.push((packet.time, packet.link, packet.bytes.to_vec(), packet.length));
                }
            }
        }
    };
    assert_eq!(reader.packets(), packets.len() as u64);
    assert!(
        matches!(reader.next_record(), Ok(None)),
        "nothing comes after the end"
    );
    assert!(at <= file.len() as u64);
    (packets, offsets, end)
}

#[test]
fn both_formats_are_read_in_every_form() {
    for (name, file, wanted) in captures() {
        let (packets, _, end) = read(&file);
        assert!(end.is_ok(), "{name}: {end:?}");
        assert_eq!(packets, wanted, "{name}");
    }
}

#[test]
fn old_files_have_their_lengths_the_other_way_round() {
    for (minor, swapped) in [(2, true), (3, true), (3, false), (4, false)] {
        let mut file = LITTLE.pcap(MICROSECONDS, minor, 1, &[]);
        let lengths = if swapped { [9, 3] } else { [3, 9] };
        file.extend(LITTLE.words(&[1, 1, lengths[0], lengths[1]]));
        file.extend([1, 2, 3]);
        let (packets, _, end) = read(&file);
        assert!(end.is_ok(), "{minor}: {end:?}");
        assert_eq!((packets[0].2.len(), packets[0].3), (3, 9), "{minor}");
    }
}

/// Every file that a writer or a copy might have left unfinished.
#[test]
fn what_is_cut_short_is_read_up_to_there() {
    for (name, file, wanted) in captures() {
        let (_, offsets, _) = read(&file);
        let header = if file[0] == 0x0a { 0 } else { 24 };
        for length in 0..file.len() {
            let (packets, before, end) = read(&file[..length]);
            assert_eq!(packets, wanted[..packets.len()], "{name} at {length}");
            let boundary =
                length >= 24.min(file.len()) && (length == header || offsets.contains(&(length as u64)));
            match end {
                Ok(()) => assert!(boundary && length > 0, "{name} at {length}"),
                Err(CaptureError::Empty) => assert_eq!(length, 0, "{name}"),
                Err(CaptureError::UnknownFormat) => assert!(length < 4, "{name} at {length}"),
                Err(CaptureError::CutShort {
                    offset,
                    have,
                    packets: number,
                    ..
                }) => {
                    assert!(!boundary, "{name} at {length}");
                    assert_eq!(offset + have as u64, length as u64, "{name}");
                    assert_eq!(number, packets.len() as u64, "{name}");
                    if length >= header {
                        assert_eq!(Some(&offset), offsets.get(before.len()), "{name} at {length}");
                    }
                }
                Err(other) => panic!("{name} at {length}: {other}"),
            }
        }
    }
}

/// Whatever a header says, the reader comes to an end with no more packets than there is room for.
#[test]
fn no_flipped_bit_harms_the_reader() {
    let mut damaged = 0;
    for (name, file, _) in captures() {
        for bit in 0..file.len() * 8 {
            let mut flipped = file.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            let (packets, _, end) = read(&flipped);
            let bytes: usize = packets.iter().map(|packet| packet.2.len() + 16).sum();
            assert!(bytes <= file.len(), "{name}, bit {bit}");
            if let Err(error) = end {
                damaged += 1;
                assert!(error.to_string().len() < 300, "{error}");
            }
        }
    }
    assert!(damaged > 1000, "{damaged}");
}

#[test]
fn damage_is_named_with_its_place() {
    let head = LITTLE.pcap(MICROSECONDS, 4, 1, &[(1, 1, &[1, 2])]);
    let huge = [&head[..], &LITTLE.words(&[0, 0, u32::MAX, 9])].concat();
    let section = LITTLE.section();
    let packet = LITTLE.enhanced(0, 1, &[1; 8], 8);
    let edited = |at: usize, value: u32| {
        let mut file = [section.clone(), LITTLE.interface(1, 0, &[]), packet.clone()].concat();
        let at = section.len() + 20 + at;
        file[at..at + 4].copy_from_slice(&LITTLE.word(value));
        file
    };
    let mut foreign = section.clone();
    foreign[12] = 2;
    let mut orderless = section.clone();
    orderless[8] = 0;
    for (file, wanted) in [
        (
            huge,
            "packet 2 at byte 42 is damaged: it claims 4294967295 bytes, and no packet has more than 16777216 (packets before it: 1). Copy the file again, or capture again",
        ),
        (
            edited(4, 4_000_000_000),
            "packet 1 at byte 48 is damaged: it claims to be 4000000000 bytes long, and blocks have 12 to 16777216 (packets before it: 0). Copy the file again, or capture again",
        ),
        (
            edited(4, 8),
            "packet 1 at byte 48 is damaged: it claims to be 8 bytes long, and blocks have 12 to 16777216 (packets before it: 0). Copy the file again, or capture again",
        ),
        (
            edited(36, 44),
            "packet 1 at byte 48 is damaged: its length is 40 at its beginning and 44 at its end (packets before it: 0). Copy the file again, or capture again",
        ),
        // More than the block has room for.
        (
            edited(20, 1000),
            "packet 1 at byte 48 is damaged: its fields contradict each other (packets before it: 0). Copy the file again, or capture again",
        ),
        (
            foreign,
            "a block at byte 0 is damaged: its fields contradict each other (packets before it: 0). Copy the file again, or capture again",
        ),
        (
            orderless,
            "the header at byte 0 is damaged: it has no byte order (packets before it: 0). Copy the file again, or capture again",
        ),
        (
            head[..20].to_vec(),
            "the capture is cut short: the header at byte 0 is not whole, only 20 bytes of it are there (packets before it: 0). Copy the file again, or capture again",
        ),
        (
            head[..41].to_vec(),
            "the capture is cut short: packet 1 at byte 24 is not whole, only 17 bytes of it are there (packets before it: 0). Copy the file again, or capture again",
        ),
        (vec![], "the file is empty"),
        (
            vec![0x1f, 0x8b, 8, 0, 0],
            "it is compressed: unpack it first, for example with `gzip -d`",
        ),
        (b"apiVersion: v1".to_vec(), "it is neither pcap nor pcapng"),
    ] {
        let (_, _, end) = read(&file);
        assert_eq!(end.unwrap_err().to_string(), wanted);
    }
}

/// Claims do not cost memory.
#[test]
fn a_claimed_length_is_not_allocated() {
    let mut file = LITTLE.pcap(MICROSECONDS, 4, 1, &[]);
    file.extend(LITTLE.words(&[0, 0, LONGEST_RECORD as u32, LONGEST_RECORD as u32]));
    file.extend([0; 100]);
    let mut reader = CaptureReader::open(file.as_slice()).unwrap();
    assert!(matches!(
        reader.next_record(),
        Err(CaptureError::CutShort { have: 116, .. })
    ));
    assert!(reader.raw.capacity() < 4096, "{}", reader.raw.capacity());
}

#[test]
fn a_copy_has_the_packets_that_were_chosen_as_they_were() {
    for (name, file, wanted) in captures() {
        let mut reader = CaptureReader::open(file.as_slice()).unwrap();
        let mut copy = CaptureWriter::new(Vec::new(), reader.pcap().map(|(header, _)| header)).unwrap();
        while let Some(record) = reader.next_record().unwrap() {
            let chosen = match record.content {
                Content::Packet(packet) => packet.number != 1,
                Content::Section | Content::Description => true,
                Content::Skipped => false,
            };
            if chosen {
                copy.copy(&record).unwrap();
            }
        }
        let copy = copy.into_inner();
        let (packets, _, end) = read(&copy);
        assert!(end.is_ok(), "{name}: {end:?}");
        assert_eq!(packets, wanted[1.min(wanted.len())..], "{name}");
        assert_eq!(copy[..8], file[..8], "{name}");
        // A block that may not be copied.
        let secret = LITTLE.block(0x4000_0bad, &[9; 8]);
        assert!(!copy.windows(secret.len()).any(|bytes| bytes == secret), "{name}");
        if copy[0] == 0x0a {
            assert_eq!(copy[16..24], [0xff; 8], "{name}");
        }
    }
}

#[test]
fn every_link_becomes_ethernet() {
    let frame = |link: Link, bytes: &[u8]| {
        let mut frame = vec![0xee; 3];
        link.write_frame(bytes, &mut frame);
        frame
    };
    let zeros = [0; 12];
    let v4 = |to: [u8; 4]| {
        let mut packet = vec![0x45; 20];
        packet[16..].copy_from_slice(&to);
        packet
    };
    let mut v6 = vec![0x60; 40];
    let unicast = v4([10, 0, 0, 1]);
    let with = |head: &[u8], kind: [u8; 2], packet: &[u8]| [head, &kind, packet].concat();
    assert_eq!(frame(Link::Ethernet, &[1, 2, 3]), [1, 2, 3]);
    assert_eq!(frame(Link::Raw, &unicast), with(&zeros, [8, 0], &unicast));
    assert_eq!(frame(Link::Raw, &v6), with(&zeros, [0x86, 0xdd], &v6));
    assert_eq!(frame(Link::Raw, &[]), with(&zeros, [8, 0], &[]));
    assert_eq!(frame(Link::Ipv4, &[0x60]), with(&zeros, [8, 0], &[0x60]));
    assert_eq!(frame(Link::Ipv6, &[0x45]), with(&zeros, [0x86, 0xdd], &[0x45]));
    // Groups have the Ethernet address of the group, else no host would take them.
    for (to, group) in [
        ([224, 129, 2, 3], [1, 0, 0x5e, 1, 2, 3]),
        ([239, 255, 255, 250], [1, 0, 0x5e, 0x7f, 255, 250]),
        ([255; 4], [0xff; 6]),
    ] {
        assert_eq!(frame(Link::Ipv4, &v4(to))[..6], group);
    }
    v6[24] = 0xff;
    v6[36..].copy_from_slice(&[1, 2, 3, 4]);
    assert_eq!(frame(Link::Raw, &v6)[..6], [0x33, 0x33, 1, 2, 3, 4]);
    let cooked = |device: u16, kind: [u8; 2], packet: &[u8]| {
        let first = [&[0, 0][..], &device.to_be_bytes(), &[0; 10], &kind, packet].concat();
        let second = [&kind[..], &[0; 6], &device.to_be_bytes(), &[0; 10], packet].concat();
        [frame(Link::Cooked, &first), frame(Link::Cooked2, &second)]
    };
    assert_eq!(
        cooked(1, [8, 0], &unicast),
        [(), ()].map(|()| with(&zeros, [8, 0], &unicast))
    );
    let tagged = [&[0, 5, 8, 0][..], &v4([224, 0, 0, 1])].concat();
    for frame in cooked(1, [0x81, 0], &tagged) {
        assert_eq!(
            frame,
            [&[1, 0, 0x5e, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0x81, 0][..], &tagged].concat()
        );
    }
    // A netlink message has no Ethernet type.
    for frame in cooked(824, [0, 0], &[1]) {
        assert_eq!(frame, with(&zeros, [0xff, 0xff], &[1]));
    }
    for (family, kind) in [
        ([2, 0, 0, 0], [8, 0]),
        ([0, 0, 0, 2], [8, 0]),
        ([30, 0, 0, 0], [0x86, 0xdd]),
        ([0, 0, 0, 24], [0x86, 0xdd]),
        ([7, 0, 0, 0], [0xff, 0xff]),
    ] {
        let packet = [&family[..], &[1, 2]].concat();
        assert_eq!(frame(Link::Loopback, &packet), with(&zeros, kind, &[1, 2]));
    }
    assert_eq!(frame(Link::Loopback, &[2, 0, 0]), []);
    assert_eq!(frame(Link::Cooked, &[0; 15]), []);
    assert_eq!(frame(Link::Cooked2, &[0; 19]), []);
}
