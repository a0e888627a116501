//! pcapng: sections, each with a byte order and interfaces of its own, each of those with a link type and a clock of its
//! own. The framing of blocks is checked by the reader; what is in them is read by `pcap-parser`, of a whole block only:
//! asked for more than a block holds, it would wait for bytes that never come.

use pcap_parser::{
    EnhancedPacketBlock, InterfaceDescriptionBlock, OptionCode, PcapNGOption, SectionHeaderBlock,
    parse_enhancedpacketblock_be, parse_enhancedpacketblock_le, parse_interfacedescriptionblock_be,
    parse_interfacedescriptionblock_le, parse_sectionheaderblock,
};

use super::{ByteOrder, CapturedPacket, Content, PacketLink};

/// Bytes of the shortest block: type, length, length.
pub(super) const LEAST_BLOCK: usize = 12;

/// More interfaces of one section are not believed.
const MOST_INTERFACES: usize = 1 << 16;

/// Types of blocks.
mod kind {
    pub(super) const SECTION: u32 = 0x0a0d_0d0a;
    pub(super) const INTERFACE: u32 = 1;
    /// Obsolete, and still found.
    pub(super) const PACKET: u32 = 2;
    pub(super) const SIMPLE: u32 = 3;
    pub(super) const NAMES: u32 = 4;
    pub(super) const STATISTICS: u32 = 5;
    pub(super) const ENHANCED: u32 = 6;
    pub(super) const SECRETS: u32 = 10;
    /// Of a vendor; there is another type for those that may not be copied.
    pub(super) const CUSTOM: u32 = 0x0bad;
}

/// Whether blocks of a type hold a packet.
pub(super) fn holds_packet(kind: u32) -> bool {
    matches!(kind, kind::PACKET | kind::SIMPLE | kind::ENHANCED)
}

/// What is known of the current section.
#[derive(Clone, Debug)]
pub(super) struct Section {
    pub(super) order: ByteOrder,
    interfaces: Vec<Interface>,
}

#[derive(Clone, Copy, Debug)]
struct Interface {
    link: u16,
    /// The most bytes captured of a packet; 0 for all.
    snap_length: u32,
    clock: Clock,
}

/// How an interface counts time.
#[derive(Clone, Copy, Debug)]
struct Clock {
    /// A negative power of 10, or of 2 where the highest bit is set.
    resolution: u8,
    /// Seconds to add.
    offset: i64,
}

impl Default for Clock {
    fn default() -> Self {
        Self {
            resolution: 6,
            offset: 0,
        }
    }
}

impl Clock {
    /// Nanoseconds since 1970. What lies outside of what can be counted is the nearest that can.
    fn nanoseconds(self, ticks: u64) -> u64 {
        let exponent = u32::from(self.resolution & 0x7f);
        let ticks = u128::from(ticks);
        let since = match exponent {
            _ if self.resolution & 0x80 != 0 => (ticks * 1_000_000_000) >> exponent,
            ..=9 => ticks * 10_u128.pow(9 - exponent),
            _ => 10_u128
                .checked_pow(exponent - 9)
                .map_or(0, |ticks_per_nanosecond| ticks / ticks_per_nanosecond),
        };
        // At most 2^94, so there is a sign to spare.
        let nanoseconds = since as i128 + i128::from(self.offset) * 1_000_000_000;
        u64::try_from(nanoseconds.max(0)).unwrap_or(u64::MAX)
    }
}

impl Section {
    /// Whether a block begins a section.
    pub(super) fn begins(raw: &[u8]) -> bool {
        // The same in both byte orders.
        ByteOrder::Little.u32(raw, 0) == Some(kind::SECTION)
    }

    /// Of the first bytes of its header; None where those give no byte order.
    pub(super) fn of(raw: &[u8]) -> Option<Self> {
        let order = match raw.get(8..12)? {
            [0x4d, 0x3c, 0x2b, 0x1a] => ByteOrder::Little,
            [0x1a, 0x2b, 0x3c, 0x4d] => ByteOrder::Big,
            _ => return None,
        };
        Some(Self {
            order,
            interfaces: Vec::new(),
        })
    }

    /// What a whole block is; None where its fields contradict each other.
    pub(super) fn content<'a>(&mut self, raw: &'a [u8], number: u64, offset: u64) -> Option<Content<'a>> {
        Some(match self.order.u32(raw, 0)? {
            kind::SECTION => {
                let (_, section): (_, SectionHeaderBlock<'_>) = parse_sectionheaderblock(raw).ok()?;
                // Another major version may have any layout.
                (section.major_version == 1).then_some(Content::Section)?
            }
            kind::INTERFACE => {
                let interface = self.interface(raw)?;
                (self.interfaces.len() < MOST_INTERFACES).then(|| self.interfaces.push(interface))?;
                Content::Description
            }
            kind::ENHANCED => Content::Packet(self.enhanced(raw, number, offset)?),
            kind::SIMPLE => Content::Packet(self.simple(raw, number, offset)?),
            kind::PACKET => Content::Packet(self.obsolete(raw, number, offset)?),
            kind::NAMES | kind::STATISTICS | kind::SECRETS | kind::CUSTOM => Content::Description,
            _ => Content::Skipped,
        })
    }

    fn interface(&self, raw: &[u8]) -> Option<Interface> {
        let parse = match self.order {
            ByteOrder::Little => parse_interfacedescriptionblock_le,
            ByteOrder::Big => parse_interfacedescriptionblock_be,
        };
        let (_, block): (_, InterfaceDescriptionBlock<'_>) = parse(raw).ok()?;
        let mut clock = Clock::default();
        // The parser reads this offset as little-endian whatever the section is, and goes on behind the end of options.
        let options = block
            .options
            .iter()
            .take_while(|option| option.code != OptionCode::EndOfOpt);
        for option in options {
            match (option.code, value(option)) {
                (OptionCode::IfTsresol, [resolution]) => clock.resolution = *resolution,
                (OptionCode::IfTsoffset, seconds) => {
                    let seconds: Option<[u8; 8]> = seconds.try_into().ok();
                    clock.offset = match self.order {
                        ByteOrder::Little => i64::from_le_bytes(seconds?),
                        ByteOrder::Big => i64::from_be_bytes(seconds?),
                    };
                }
                _ => {}
            }
        }
        Some(Interface {
            link: block.linktype.0 as u16,
            snap_length: block.snaplen,
            clock,
        })
    }

    fn enhanced<'a>(&self, raw: &'a [u8], number: u64, offset: u64) -> Option<CapturedPacket<'a>> {
        let parse = match self.order {
            ByteOrder::Little => parse_enhancedpacketblock_le,
            ByteOrder::Big => parse_enhancedpacketblock_be,
        };
        let (_, block): (_, EnhancedPacketBlock<'a>) = parse(raw).ok()?;
        let (link, time) = self.link_and_time(block.if_id, block.ts_high, block.ts_low);
        Some(CapturedPacket {
            number,
            offset,
            time,
            link,
            bytes: block.data.get(..block.caplen as usize)?,
            length: block.origlen,
        })
    }

    /// A packet without a time, of the first interface.
    fn simple<'a>(&self, raw: &'a [u8], number: u64, offset: u64) -> Option<CapturedPacket<'a>> {
        let length = self.order.u32(raw, 8)?;
        let data = raw.get(12..raw.len().checked_sub(4)?)?;
        let first = self.interfaces.first();
        let snap_length = match first.map(|interface| interface.snap_length) {
            None | Some(0) => u32::MAX,
            Some(snap_length) => snap_length,
        };
        let captured = length.min(snap_length) as usize;
        Some(CapturedPacket {
            number,
            offset,
            time: None,
            link: first.map_or(PacketLink::NoInterface(0), |interface| {
                PacketLink::of(interface.link)
            }),
            bytes: data.get(..captured)?,
            length,
        })
    }

    /// A packet block, which `pcap-parser` does not know.
    fn obsolete<'a>(&self, raw: &'a [u8], number: u64, offset: u64) -> Option<CapturedPacket<'a>> {
        let order = self.order;
        let interface = order.u16(raw, 8)?;
        let captured = order.u32(raw, 20)? as usize;
        let length = order.u32(raw, 24)?;
        let data = raw.get(28..raw.len().checked_sub(4)?)?;
        let (link, time) = self.link_and_time(interface.into(), order.u32(raw, 12)?, order.u32(raw, 16)?);
        Some(CapturedPacket {
            number,
            offset,
            time,
            link,
            bytes: data.get(..captured)?,
            length,
        })
    }

    fn link_and_time(&self, interface: u32, high: u32, low: u32) -> (PacketLink, Option<u64>) {
        match self.interfaces.get(interface as usize) {
            Some(it) => {
                let ticks = u64::from(high) << 32 | u64::from(low);
                (PacketLink::of(it.link), Some(it.clock.nanoseconds(ticks)))
            }
            None => (PacketLink::NoInterface(interface), None),
        }
    }
}

/// The value of an option without its padding.
fn value<'a>(option: &'a PcapNGOption<'_>) -> &'a [u8] {
    option.as_bytes().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::Clock;

    #[test]
    fn every_resolution_becomes_nanoseconds() {
        let at = |resolution, offset, ticks| Clock { resolution, offset }.nanoseconds(ticks);
        assert_eq!(at(6, 0, 1_500_000), 1_500_000_000);
        assert_eq!(at(9, 0, 1_500_000_000), 1_500_000_000);
        assert_eq!(at(0, 0, 3), 3_000_000_000);
        assert_eq!(at(12, 0, 2_000_000), 2_000);
        assert_eq!(at(3, 10, 250), 10_250_000_000);
        assert_eq!(at(0x80 | 10, 0, 1536), 1_500_000_000);
        assert_eq!(at(6, -1, 1_500_000), 500_000_000);
        // What cannot be counted.
        assert_eq!(at(6, i64::MIN, 1), 0);
        assert_eq!(at(0, i64::MAX, u64::MAX), u64::MAX);
        assert_eq!(at(127, 0, u64::MAX), 0);
        assert_eq!(at(255, 0, u64::MAX), 0);
        assert_eq!(at(0x80, 0, u64::MAX), u64::MAX);
    }
}
