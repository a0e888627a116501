//! Captures: pcap and pcapng, as a stream. A capture may be larger than memory, cut short, or written to harm its reader.
//!
//! * [`CaptureReader`] one record after the other. `pcap` and `pcapng` are the two formats.
//! * [`Link`] the link types that become Ethernet frames, which the dataplane's parser reads.
//! * [`CaptureWriter`] a copy of some of the records.
//!
//! The lengths in a file are claims: a record is read as far as it is there, into memory that grows with what arrives,
//! and none is longer than [`LONGEST_RECORD`].

mod link;
mod pcap;
mod pcapng;
#[cfg(test)]
mod tests;
mod write;

use std::io::{self, Read};

pub use self::{link::Link, write::CaptureWriter};
use self::{pcap::PcapFile, pcapng::Section};

/// Bytes of the longest record that is read: 16 MiB, as in libpcap.
pub const LONGEST_RECORD: usize = 16 << 20;

/// Why a capture cannot be read, or not to its end.
#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    /// Reading failed.
    #[error("reading failed at byte {offset}")]
    Io {
        /// Where the record begins that was being read.
        offset: u64,
        /// Why.
        source: io::Error,
    },
    /// There is nothing in it.
    #[error("the file is empty")]
    Empty,
    /// Its first bytes are of another format.
    #[error("it is neither pcap nor pcapng")]
    UnknownFormat,
    /// A compressed file.
    #[error("it is compressed: unpack it first, for example with `{0} -d`")]
    Compressed(&'static str),
    /// It ends within a record, as if it had been copied while it was being written.
    #[error(
        "the capture is cut short: {record} at byte {offset} is not whole, only {have} bytes of it are there (packets before it: \
         {packets}). Copy the file again, or capture again"
    )]
    CutShort {
        /// What is cut.
        record: RecordName,
        /// Where that begins.
        offset: u64,
        /// How much of it is there.
        have: usize,
        /// How many packets come before it.
        packets: u64,
    },
    /// A record contradicts itself or the format.
    #[error(
        "{record} at byte {offset} is damaged: {what} (packets before it: {packets}). Copy the file again, or capture again"
    )]
    Damaged {
        /// Which.
        record: RecordName,
        /// Where it begins.
        offset: u64,
        /// How.
        what: String,
        /// How many packets come before it.
        packets: u64,
    },
}

/// A record, for messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RecordName {
    /// The header of the file.
    Header,
    /// A packet, by its number.
    Packet(u64),
    /// A block that holds no packet, or whose type was not reached.
    Block,
}

impl std::fmt::Display for RecordName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Header => write!(f, "the header"),
            Self::Packet(number) => write!(f, "packet {number}"),
            Self::Block => write!(f, "a block"),
        }
    }
}

/// A packet as it was captured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CapturedPacket<'a> {
    /// Its place among the packets of the file, from 1.
    pub number: u64,
    /// Where its record begins in the file.
    pub offset: u64,
    /// When it was captured, in nanoseconds since 1970; None where the record does not say.
    pub time: Option<u64>,
    /// How its first header is to be read.
    pub link: PacketLink,
    /// What was captured of it.
    pub bytes: &'a [u8],
    /// Its length on the wire, in bytes.
    pub length: u32,
}

impl CapturedPacket<'_> {
    /// Whether less was captured than was on the wire.
    pub fn is_truncated(&self) -> bool {
        self.bytes.len() < self.length as usize
    }
}

/// How the first header of a packet is to be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PacketLink {
    /// As of this link type.
    Known(Link),
    /// A link type that is not supported, by its LINKTYPE_ number.
    Unknown(u16),
    /// Its interface is not described in its section.
    NoInterface(u32),
}

impl PacketLink {
    fn of(number: u16) -> Self {
        Link::from_number(number).map_or(Self::Unknown(number), Self::Known)
    }
}

/// One record of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record<'a> {
    /// All of its bytes.
    pub raw: &'a [u8],
    /// What it is.
    pub content: Content<'a>,
}

/// What a record is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content<'a> {
    /// A packet.
    Packet(CapturedPacket<'a>),
    /// The header of a section (pcapng).
    Section,
    /// What a copy of the packets keeps: interfaces, names, statistics, secrets.
    Description,
    /// What a copy leaves out: blocks of unknown types, or that say that they may not be copied.
    Skipped,
}

/// Reads a capture record by record.
#[derive(Debug)]
pub struct CaptureReader<R> {
    input: R,
    format: Format,
    /// The bytes of the current record.
    raw: Vec<u8>,
    /// Where the next record begins.
    offset: u64,
    /// Packets read so far.
    packets: u64,
    /// After an error nothing is known about what follows.
    failed: bool,
}

#[derive(Debug)]
enum Format {
    Pcap(PcapFile),
    /// The first section's header is still in `raw`, as far as it was read to find out the format.
    PcapngStart,
    Pcapng(Section),
}

/// Bytes in the order of the machine that wrote them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ByteOrder {
    Little,
    Big,
}

impl ByteOrder {
    /// The number at a place; None past the end.
    fn u32(self, bytes: &[u8], at: usize) -> Option<u32> {
        let bytes = *bytes.get(at..)?.first_chunk()?;
        Some(match self {
            Self::Little => u32::from_le_bytes(bytes),
            Self::Big => u32::from_be_bytes(bytes),
        })
    }

    fn u16(self, bytes: &[u8], at: usize) -> Option<u16> {
        let bytes = *bytes.get(at..)?.first_chunk()?;
        Some(match self {
            Self::Little => u16::from_le_bytes(bytes),
            Self::Big => u16::from_be_bytes(bytes),
        })
    }
}

impl<R: Read> CaptureReader<R> {
    /// Reads the header of a capture.
    ///
    /// # Errors
    /// It is of neither format, empty, or its header is cut or damaged.
    pub fn open(mut input: R) -> Result<Self, CaptureError> {
        let mut raw = Vec::new();
        let io = |source| CaptureError::Io { offset: 0, source };
        read_up_to(&mut input, &mut raw, 4).map_err(io)?;
        let mut reader = Self {
            input,
            format: Format::PcapngStart,
            raw,
            offset: 0,
            packets: 0,
            failed: false,
        };
        match *reader.raw.as_slice() {
            [] => return Err(CaptureError::Empty),
            [0x0a, 0x0d, 0x0d, 0x0a] => return Ok(reader),
            [0x1f, 0x8b, ..] => return Err(CaptureError::Compressed("gzip")),
            [0x28, 0xb5, 0x2f, 0xfd] => return Err(CaptureError::Compressed("zstd")),
            [0xfd, b'7', b'z', b'X'] => return Err(CaptureError::Compressed("xz")),
            [0x04, 0x22, 0x4d, 0x18] => return Err(CaptureError::Compressed("lz4")),
            [b'B', b'Z', b'h', _] => return Err(CaptureError::Compressed("bzip2")),
            _ if !PcapFile::is_magic(&reader.raw) => return Err(CaptureError::UnknownFormat),
            _ => {}
        }
        read_up_to(&mut reader.input, &mut reader.raw, PcapFile::HEADER).map_err(io)?;
        let Some(file) = PcapFile::of(&reader.raw) else {
            return Err(reader.cut_short(RecordName::Header));
        };
        reader.format = Format::Pcap(file);
        reader.offset = PcapFile::HEADER as u64;
        Ok(reader)
    }

    /// The header of a pcap file, and the link type of all of its packets; None for pcapng, where sections and interfaces
    /// are records.
    pub fn pcap(&self) -> Option<(&[u8], PacketLink)> {
        match &self.format {
            Format::Pcap(file) => Some((&file.header, PacketLink::of(file.link))),
            Format::PcapngStart | Format::Pcapng(_) => None,
        }
    }

    /// Packets read so far.
    pub fn packets(&self) -> u64 {
        self.packets
    }

    /// The next record; None at the end, and after an error.
    ///
    /// # Errors
    /// The record is cut or damaged, or cannot be read.
    pub fn next_record(&mut self) -> Result<Option<Record<'_>>, CaptureError> {
        if self.failed {
            return Ok(None);
        }
        // Until the record is whole.
        self.failed = true;
        let offset = self.offset;
        let read = match self.format {
            Format::Pcap(_) => self.read_pcap_record()?,
            Format::PcapngStart | Format::Pcapng(_) => self.read_block()?,
        };
        self.failed = false;
        if !read {
            return Ok(None);
        }
        self.offset += self.raw.len() as u64;
        let number = self.packets + 1;
        let content = match &mut self.format {
            Format::Pcap(file) => Some(Content::Packet(file.packet(&self.raw, number, offset))),
            Format::Pcapng(section) => section.content(&self.raw, number, offset),
            Format::PcapngStart => None,
        };
        match content {
            Some(content) => {
                self.packets += u64::from(matches!(content, Content::Packet(_)));
                Ok(Some(Record {
                    raw: &self.raw,
                    content,
                }))
            }
            None => {
                self.failed = true;
                self.offset = offset;
                let name = self.block_name();
                Err(self.damaged(name, "its fields contradict each other".to_owned()))
            }
        }
    }

    /// Reads a record of a pcap file into `raw`; false at the end.
    fn read_pcap_record(&mut self) -> Result<bool, CaptureError> {
        let Format::Pcap(file) = &self.format else {
            return Ok(false);
        };
        let (header, order) = (file.record_header, file.order);
        let name = RecordName::Packet(self.packets + 1);
        self.raw.clear();
        self.fill(header)?;
        if self.raw.is_empty() {
            return Ok(false);
        }
        let lengths = order.u32(&self.raw, 8).zip(order.u32(&self.raw, 12));
        let Some(lengths) = lengths.filter(|_| self.raw.len() == header) else {
            return Err(self.cut_short(name));
        };
        let Format::Pcap(file) = &self.format else {
            return Ok(false);
        };
        let (captured, _) = file.lengths(lengths);
        let captured = captured as usize;
        if captured > LONGEST_RECORD {
            return Err(self.damaged(
                name,
                format!("it claims {captured} bytes, and no packet has more than {LONGEST_RECORD}"),
            ));
        }
        self.fill(header + captured)?;
        if self.raw.len() < header + captured {
            return Err(self.cut_short(name));
        }
        Ok(true)
    }

    /// Reads a block of a pcapng file into `raw`; false at the end.
    fn read_block(&mut self) -> Result<bool, CaptureError> {
        let first = matches!(self.format, Format::PcapngStart);
        if !first {
            self.raw.clear();
        }
        self.fill(pcapng::LEAST_BLOCK)?;
        if self.raw.is_empty() {
            return Ok(false);
        }
        if self.raw.len() < pcapng::LEAST_BLOCK {
            let name = if first {
                RecordName::Header
            } else {
                self.block_name()
            };
            return Err(self.cut_short(name));
        }
        if Section::begins(&self.raw) {
            let Some(section) = Section::of(&self.raw) else {
                return Err(self.damaged(RecordName::Header, "it has no byte order".to_owned()));
            };
            self.format = Format::Pcapng(section);
        }
        let Format::Pcapng(section) = &self.format else {
            return Err(CaptureError::UnknownFormat);
        };
        let order = section.order;
        let claimed = order.u32(&self.raw, 4).unwrap_or_default() as usize;
        let name = self.block_name();
        if !(pcapng::LEAST_BLOCK..=LONGEST_RECORD).contains(&claimed) {
            return Err(self.damaged(
                name,
                format!(
                    "it claims to be {claimed} bytes long, and blocks have {} to {LONGEST_RECORD}",
                    pcapng::LEAST_BLOCK
                ),
            ));
        }
        self.fill(claimed)?;
        if self.raw.len() < claimed {
            return Err(self.cut_short(name));
        }
        let at_end = order.u32(&self.raw, claimed - 4).unwrap_or_default() as usize;
        if at_end != claimed {
            return Err(self.damaged(
                name,
                format!("its length is {claimed} at its beginning and {at_end} at its end"),
            ));
        }
        Ok(true)
    }

    /// Reads until `raw` has `length` bytes, or the input ends.
    fn fill(&mut self, length: usize) -> Result<(), CaptureError> {
        let offset = self.offset;
        read_up_to(&mut self.input, &mut self.raw, length)
            .map_err(|source| CaptureError::Io { offset, source })
    }

    /// What the block in `raw` is, as far as it can be told.
    fn block_name(&self) -> RecordName {
        let Format::Pcapng(section) = &self.format else {
            return RecordName::Header;
        };
        match section.order.u32(&self.raw, 0) {
            Some(kind) if pcapng::holds_packet(kind) => RecordName::Packet(self.packets + 1),
            _ => RecordName::Block,
        }
    }

    fn cut_short(&self, record: RecordName) -> CaptureError {
        CaptureError::CutShort {
            record,
            offset: self.offset,
            have: self.raw.len(),
            packets: self.packets,
        }
    }

    fn damaged(&self, record: RecordName, what: String) -> CaptureError {
        CaptureError::Damaged {
            record,
            offset: self.offset,
            what,
            packets: self.packets,
        }
    }
}

/// Reads until there are `length` bytes, or the input ends. What is not there is not allocated.
fn read_up_to(input: &mut impl Read, bytes: &mut Vec<u8>, length: usize) -> io::Result<()> {
    let missing = length.saturating_sub(bytes.len());
    input.take(missing as u64).read_to_end(bytes)?;
    Ok(())
}
