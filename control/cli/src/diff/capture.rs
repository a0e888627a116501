//! Flows of captured packets, read with the dataplane's own parser.

use std::{collections::HashMap, fs::File, net::IpAddr, path::Path};

use anyhow::{Context, anyhow, bail};
use pcap_parser::{Block, PcapBlockOwned, PcapError, create_reader};
use ringwall_analyse::flow::{EndName, Service};
use ringwall_dataplane::{
    verdict::DropReason,
    wire::{FlowKey, Packet, Parsed, TcpFlags, Transport, parse},
};

use super::recorded::{Counts, Recorded};

/// Link types (LINKTYPE_ numbers of the pcap formats) that can be read.
mod link {
    pub(super) const ETHERNET: i32 = 1;
    pub(super) const RAW: i32 = 101;
    pub(super) const RAW_BSD: [i32; 2] = [12, 14];
    pub(super) const COOKED: i32 = 113;
    pub(super) const IPV4: i32 = 228;
    pub(super) const IPV6: i32 = 229;
    pub(super) const COOKED_2: i32 = 276;
}

const ETHERNET_HEADER: usize = 14;
const BUFFER: usize = 1 << 18;
/// No block of a capture is longer.
const LARGEST_BLOCK: usize = 64 << 20;
/// The parser reads nothing longer.
const LONGEST_FRAME: usize = 1 << 16;

/// What a capture holds.
#[derive(Default)]
struct Capture {
    flows: HashMap<FlowKey, Flow>,
    counts: Counts,
}

struct Flow {
    /// Whether the key's destination is the one who began.
    reversed: bool,
    /// Whether a SYN or an echo request says who began.
    certain: bool,
    packets: u64,
    bytes: u64,
}

/// Reads the flows of a capture.
///
/// # Errors
/// It cannot be read or is of no known format or of link types that cannot be read.
pub(super) fn read(path: &Path) -> anyhow::Result<Recorded> {
    let capture =
        Capture::read(path).with_context(|| format!("cannot read packets from {}", path.display()))?;
    Ok(capture.recorded())
}

impl Capture {
    fn read(path: &Path) -> anyhow::Result<Self> {
        let mut this = Self::default();
        let file = File::open(path)?;
        let mut reader = match create_reader(BUFFER, file) {
            Ok(reader) => reader,
            Err(PcapError::Eof) => bail!("the file is empty"),
            Err(_) => bail!("it is neither pcap nor pcapng"),
        };
        // By number of the interface; a pcap file has one.
        let mut links: Vec<i32> = Vec::new();
        let mut foreign = None;
        loop {
            let consumed = match reader.next() {
                Ok((consumed, block)) => {
                    if let Some((link, bytes, length)) = packet(&block, &mut links) {
                        match frame(link, bytes, length) {
                            Some(frame) => this.frame(&frame, bytes.len(), length),
                            None => {
                                foreign = Some(link);
                                this.counts.packets += 1;
                                this.counts.unparsable += 1;
                            }
                        }
                    }
                    consumed
                }
                Err(PcapError::Eof) => break,
                Err(PcapError::Incomplete(_)) => {
                    reader.refill().map_err(|_| anyhow!("reading failed"))?;
                    continue;
                }
                Err(PcapError::BufferTooSmall) => {
                    let size = reader.data().len().max(BUFFER) * 2;
                    if size > LARGEST_BLOCK || !reader.grow(size) {
                        bail!("a block is longer than {LARGEST_BLOCK} bytes");
                    }
                    reader.refill().map_err(|_| anyhow!("reading failed"))?;
                    continue;
                }
                // As if it had been copied while it was being written.
                Err(PcapError::UnexpectedEof) => {
                    this.counts.cut_short = true;
                    break;
                }
                Err(error) => {
                    let after = this.counts.packets;
                    bail!(
                        "a block after {after} packets is damaged ({:?})",
                        error.to_owned_vec()
                    );
                }
            };
            reader.consume(consumed);
        }
        match foreign {
            Some(link) if this.counts.unparsable == this.counts.packets => bail!(
                "its link type {link} cannot be read; known are Ethernet, raw IP and Linux cooked (capture on one interface \
                 instead of `any`, or convert the file)"
            ),
            _ => Ok(this),
        }
    }

    /// A frame that begins with an Ethernet header; `captured` bytes of `length` of the packet are there, the rest is
    /// zeros.
    fn frame(&mut self, frame: &[u8], captured: usize, length: usize) {
        self.counts.packets += 1;
        let packet = match parse(frame) {
            Parsed::Subject(packet) => packet,
            Parsed::NotSubject(_) => {
                self.counts.not_subject += 1;
                return;
            }
            // What was not captured is zeros, which may look malformed.
            Parsed::Malformed(reason) if reason == DropReason::Truncated || captured < length => {
                self.counts.truncated += 1;
                return;
            }
            Parsed::Malformed(_) => {
                self.counts.unparsable += 1;
                return;
            }
        };
        // What was not captured is zeros: good for lengths, not for ports.
        let missing = length.saturating_sub(captured);
        if usize::from(packet.l4) + needed(&packet) > frame.len().saturating_sub(missing) {
            self.counts.truncated += 1;
            return;
        }
        if packet.is_later_fragment() {
            self.counts.later_fragments += 1;
            return;
        }
        if matches!(packet.transport, Transport::IcmpError { .. }) {
            self.counts.icmp_errors += 1;
            return;
        }
        self.count(&packet, length as u64);
    }

    fn count(&mut self, packet: &Packet, bytes: u64) {
        let key = packet.key(0);
        let reversed_key = key.reversed();
        // Both directions under one key.
        let ((own, _), reversed) = match self.flows.contains_key(&reversed_key) {
            true => ((reversed_key, key), true),
            false => ((key, reversed_key), false),
        };
        let flow = self.flows.entry(own).or_insert(Flow {
            reversed: false,
            certain: false,
            packets: 0,
            bytes: 0,
        });
        flow.packets += 1;
        flow.bytes += bytes;
        // Whether this packet goes from the one who began to the other, where it says so.
        let forward = match packet.transport {
            Transport::Tcp { flags, .. } if flags.has(TcpFlags::SYN) => Some(!flags.has(TcpFlags::ACK)),
            Transport::Echo { request, .. } => Some(request),
            _ => None,
        };
        if let (Some(forward), false) = (forward, flow.certain) {
            flow.reversed = reversed == forward;
            flow.certain = true;
        }
    }

    fn recorded(self) -> Recorded {
        let mut recorded = Recorded::captured(self.counts);
        for (key, flow) in self.flows {
            let key = if flow.reversed { key.reversed() } else { key };
            let port = matches!(key.protocol, 6 | 17 | 132).then_some(key.dst_port);
            let end = |address: ringwall_dataplane::addr::Addr| EndName::Address(IpAddr::from(address));
            let service = Service {
                protocol: key.protocol,
                port,
            };
            recorded.add(end(key.src), end(key.dst), service, flow.packets, flow.bytes);
        }
        recorded
    }
}

/// Bytes of the layer 4 header that say whose flow it is.
fn needed(packet: &Packet) -> usize {
    match packet.transport {
        Transport::Tcp { .. } => 14,
        Transport::Udp { .. } | Transport::Sctp { .. } => 4,
        Transport::Echo { .. } => 6,
        Transport::Icmp { .. } | Transport::IcmpError { .. } => 2,
        Transport::Other | Transport::None => 0,
    }
}

/// Link type, captured bytes and length on the wire of a block that holds a packet.
fn packet<'a>(block: &'a PcapBlockOwned<'a>, links: &mut Vec<i32>) -> Option<(i32, &'a [u8], usize)> {
    let of = |data: &'a [u8], captured: u32, length: u32| {
        let bytes = data.get(..captured as usize).unwrap_or(data);
        (bytes, (length as usize).max(bytes.len()))
    };
    let (interface, (bytes, length)) = match block {
        PcapBlockOwned::LegacyHeader(header) => {
            *links = vec![header.network.0];
            return None;
        }
        PcapBlockOwned::Legacy(packet) => (0, of(packet.data, packet.caplen, packet.origlen)),
        PcapBlockOwned::NG(Block::SectionHeader(_)) => {
            links.clear();
            return None;
        }
        PcapBlockOwned::NG(Block::InterfaceDescription(interface)) => {
            links.push(interface.linktype.0);
            return None;
        }
        PcapBlockOwned::NG(Block::EnhancedPacket(packet)) => (
            packet.if_id as usize,
            of(packet.data, packet.caplen, packet.origlen),
        ),
        PcapBlockOwned::NG(Block::SimplePacket(packet)) => {
            let captured = packet.origlen.min(packet.data.len() as u32);
            (0, of(packet.data, captured, packet.origlen))
        }
        PcapBlockOwned::NG(_) => return None,
    };
    Some((links.get(interface).copied().unwrap_or(-1), bytes, length))
}

/// The packet as a frame with an Ethernet header, as long as it was; None for a link type that cannot be read.
fn frame(link: i32, bytes: &[u8], length: usize) -> Option<Vec<u8>> {
    const IPV4: [u8; 2] = [0x08, 0x00];
    const IPV6: [u8; 2] = [0x86, 0xdd];
    // Ethernet type of what follows, and where that begins.
    let (kind, begin) = match link {
        link::ETHERNET => {
            let mut frame = bytes.to_vec();
            frame.resize(length.min(LONGEST_FRAME).max(bytes.len()), 0);
            return Some(frame);
        }
        link::COOKED => (bytes.get(14..16)?.try_into().ok()?, 16),
        link::COOKED_2 => (bytes.get(..2)?.try_into().ok()?, 20),
        link::IPV4 => (IPV4, 0),
        link::IPV6 => (IPV6, 0),
        link if link == link::RAW || link::RAW_BSD.contains(&link) => match bytes.first()? >> 4 {
            6 => (IPV6, 0),
            _ => (IPV4, 0),
        },
        _ => return None,
    };
    let mut frame = vec![0; ETHERNET_HEADER - 2];
    frame.extend_from_slice(&kind);
    frame.extend_from_slice(bytes.get(begin..)?);
    let whole = ETHERNET_HEADER + length.saturating_sub(begin);
    frame.resize(whole.min(LONGEST_FRAME).max(frame.len()), 0);
    Some(frame)
}
