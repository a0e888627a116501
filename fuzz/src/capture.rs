//! Input: a capture, pcap or pcapng.
//!
//! What must hold: the reader comes to an end, with records that are the input's bytes one after the other; where it is
//! read from in small pieces does not show; a capture that is cut has the same packets up to there; a copy of all
//! packets has the same packets; every packet becomes a frame.

use std::io::{self, Read};

use ringwall_replay::capture::{CaptureReader, CaptureWriter, Content, PacketLink};

/// Checks one capture.
pub fn run(file: &[u8]) {
    let whole = read(file, file);
    assert_eq!(whole, read(file, Pieces(file)), "read in pieces");
    // As many bytes from the front as from the end, so that both the header and packets are cut.
    for cut in [file.len() / 2, file.len().saturating_sub(1)] {
        let half = read(file, &file[..cut]);
        assert!(whole.starts_with(&half), "cut at {cut}");
    }
}

/// A few bytes at a time.
struct Pieces<'a>(&'a [u8]);

impl Read for Pieces<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = buffer.len().min(3);
        self.0.read(&mut buffer[..length])
    }
}

/// Time, interface, bytes and length of a packet.
type Packet = (Option<u64>, PacketLink, Vec<u8>, u32);

fn read(file: &[u8], input: impl Read) -> Vec<Packet> {
    let mut packets = Vec::new();
    let Ok(mut reader) = CaptureReader::open(input) else {
        return packets;
    };
    let header = reader.pcap().map(|(header, _)| header.to_owned());
    let mut copy = CaptureWriter::new(Vec::new(), header.as_deref()).unwrap();
    let mut rest = &file[header.map_or(0, |header| header.len())..];
    let mut frame = Vec::new();
    while let Ok(Some(record)) = reader.next_record() {
        rest = rest.strip_prefix(record.raw).expect("the records are the input");
        if record.content != Content::Skipped {
            copy.copy(&record).unwrap();
        }
        let Content::Packet(packet) = record.content else {
            continue;
        };
        packets.push((packet.time, packet.link, packet.bytes.to_owned(), packet.length));
        assert_eq!(packet.number, packets.len() as u64);
        if let PacketLink::Known(link) = packet.link {
            link.write_frame(packet.bytes, &mut frame);
            assert!(frame.len() <= packet.bytes.len() + 14);
        }
    }
    let copy = copy.into_inner();
    let mut again = CaptureReader::open(copy.as_slice()).ok();
    let mut copied = 0;
    while let Some(Ok(Some(record))) = again.as_mut().map(CaptureReader::next_record) {
        if let Content::Packet(packet) = record.content {
            let same = (packet.time, packet.link, packet.bytes.to_owned(), packet.length);
            assert_eq!(packets.get(copied), Some(&same));
            copied += 1;
        }
    }
    assert_eq!(copied, packets.len());
    packets
}
