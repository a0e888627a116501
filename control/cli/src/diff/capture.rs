//! Flows of captured packets, read with the dataplane's own parser.

use std::{collections::HashMap, fs::File, io, net::IpAddr, path::Path};

use anyhow::{Context, bail};
use ringwall_analyse::{
    flow::{EndName, Service},
    refine::Span,
};
use ringwall_dataplane::{
    classify::{L4, icmp},
    verdict::DropReason,
    wire::{FlowKey, Packet, Parsed, TcpFlags, Transport, parse, protocol},
};

use ringwall_replay::capture::{CaptureError, CaptureReader, Content, Link, PacketLink, Record};

use super::recorded::{Counts, Recorded};

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
pub(super) fn read(path: &Path, sources: Vec<Span>) -> anyhow::Result<Recorded> {
    let capture =
        Capture::read(path).with_context(|| format!("cannot read packets from {}", path.display()))?;
    Ok(capture.recorded(sources))
}

impl Capture {
    fn read(path: &Path) -> anyhow::Result<Self> {
        let mut this = Self::default();
        let file = io::BufReader::with_capacity(1 << 18, File::open(path)?);
        let mut reader = CaptureReader::open(file)?;
        let mut frame = Vec::new();
        let mut foreign = None;
        loop {
            let packet = match reader.next_record() {
                Ok(None) => break,
                Ok(Some(Record {
                    content: Content::Packet(packet),
                    ..
                })) => packet,
                Ok(Some(_)) => continue,
                // As if it had been copied while it was being written.
                Err(CaptureError::CutShort { .. }) => {
                    this.counts.cut_short = true;
                    break;
                }
                Err(error) => return Err(error.into()),
            };
            let PacketLink::Known(link) = packet.link else {
                foreign = Some(packet.link);
                this.counts.packets += 1;
                this.counts.unparsable += 1;
                continue;
            };
            link.write_frame(packet.bytes, &mut frame);
            let length = packet.bytes.len().max(packet.length as usize);
            // As long as it was.
            let whole = frame.len() + length - packet.bytes.len();
            frame.resize(whole.min(LONGEST_FRAME).max(frame.len()), 0);
            this.frame(&frame, packet.bytes.len(), length);
        }
        match foreign {
            Some(PacketLink::Unknown(link)) if this.counts.unparsable == this.counts.packets => bail!(
                "link type {link} is not supported, only {} (capture on one interface instead of `any`, or convert the file)",
                Link::SUPPORTED
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
        let mut key = packet.key(0);
        let icmp = match packet.transport {
            Transport::Icmp { kind, code } => Some(icmp(kind, code)),
            _ => None,
        };
        // Apart from echo, whose ports are the same.
        key.dst_port = icmp.map_or(key.dst_port, |of_type| !of_type);
        key.src_port = icmp.unwrap_or(key.src_port);
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

    fn recorded(self, sources: Vec<Span>) -> Recorded {
        let mut recorded = Recorded::new(sources, Some(self.counts));
        for (key, flow) in self.flows {
            let key = if flow.reversed { key.reversed() } else { key };
            let port = match key.policy_l4(false) {
                L4::Port {
                    protocol: protocol::ICMP | protocol::ICMPV6,
                    ..
                } if key.src_port != key.dst_port => Some(key.src_port),
                L4::Port { port, .. } => Some(port),
                L4::NoPort { .. } => None,
            };
            let end = |address: ringwall_dataplane::addr::Addr| EndName::Address(IpAddr::from(address));
            let service = Service {
                protocol: key.protocol,
                port,
                source_port: None,
            }
            .from_port(Some(key.src_port));
            recorded.add(
                (end(key.src), end(key.dst), service, None),
                flow.packets,
                flow.bytes,
            );
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
