//! pcap: a header, then packets. Both byte orders, microseconds and nanoseconds, and the longer records of patched
//! libpcaps of the nineties.

use pcap_parser::pcap::{PcapHeader, parse_pcap_header};

use super::{ByteOrder, CapturedPacket, PacketLink};

/// What the header of a pcap file says.
#[derive(Clone, Debug)]
pub(super) struct PcapFile {
    /// All of it, for a copy.
    pub(super) header: Vec<u8>,
    pub(super) order: ByteOrder,
    /// Bytes before a packet.
    pub(super) record_header: usize,
    pub(super) link: u16,
    nanoseconds: bool,
    lengths: LengthOrder,
}

/// Which of a record's two lengths comes first.
#[derive(Clone, Copy, Debug)]
enum LengthOrder {
    CapturedFirst,
    /// Until version 2.2.
    CapturedLast,
    /// Version 2.3 had both: the captured length is the smaller one.
    Smaller,
}

impl PcapFile {
    /// Bytes of the header.
    pub(super) const HEADER: usize = 24;

    /// Whether a file that begins so is one.
    pub(super) fn is_magic(bytes: &[u8]) -> bool {
        let magic = bytes.first_chunk().copied().map(u32::from_le_bytes);
        matches!(
            magic,
            Some(0xa1b2_c3d4 | 0xa1b2_3c4d | 0xa1b2_cd34 | 0xd4c3_b2a1 | 0x4d3c_b2a1)
        )
    }

    /// Of the whole header; None where it is cut.
    pub(super) fn of(bytes: &[u8]) -> Option<Self> {
        let (_, header): (_, PcapHeader) = parse_pcap_header(bytes).ok()?;
        Some(Self {
            header: bytes.get(..Self::HEADER)?.to_owned(),
            order: match header.is_bigendian() {
                true => ByteOrder::Big,
                false => ByteOrder::Little,
            },
            record_header: if header.is_modified_format() { 24 } else { 16 },
            // The upper half says whether frames have a check sum behind them, which a parser of packets passes over.
            link: header.network.0 as u16,
            nanoseconds: header.is_nanosecond_precision(),
            lengths: match (header.version_major, header.version_minor) {
                (2, ..3) => LengthOrder::CapturedLast,
                (2, 3) => LengthOrder::Smaller,
                _ => LengthOrder::CapturedFirst,
            },
        })
    }

    /// The captured length and the length on the wire, of the two lengths of a record as they stand there.
    pub(super) fn lengths(&self, (first, second): (u32, u32)) -> (u32, u32) {
        match self.lengths {
            LengthOrder::CapturedFirst => (first, second),
            LengthOrder::CapturedLast => (second, first),
            LengthOrder::Smaller => (first.min(second), first.max(second)),
        }
    }

    /// The packet of a whole record.
    pub(super) fn packet<'a>(&self, raw: &'a [u8], number: u64, offset: u64) -> CapturedPacket<'a> {
        let field = |at| self.order.u32(raw, at).unwrap_or_default();
        let unit = if self.nanoseconds { 1 } else { 1000 };
        let (_, length) = self.lengths((field(8), field(12)));
        CapturedPacket {
            number,
            offset,
            time: Some(u64::from(field(0)) * 1_000_000_000 + u64::from(field(4)) * unit),
            link: PacketLink::of(self.link),
            bytes: raw.get(self.record_header..).unwrap_or_default(),
            length,
        }
    }
}
