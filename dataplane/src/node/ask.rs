//! The header in front of a packet that the kernel asks about, and the answer that takes it back.
//!
//! ```text
//! ask     0 header                    120 Ethernet header  134 IP
//! answer        0 Ethernet header  14 metadata  30 IP
//! ```
//! The frame behind the header is as it would leave the node, after NAT. Policy is about the *true pair*, which only
//! connection tracking knows: the source of the original tuple and the source of the reply tuple.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, network_endian::U16};

use crate::{
    addr::Addr,
    classify::{DirectionVerdict, Effect, Judgement, NONE, icmp},
    flow::state::FlowDirection,
    forward::rewrite,
    frame::Frame,
    verdict::DropReason,
    wire::{self, Packet, Parsed, Quoted, TcpFlags, Transport, protocol},
};

/// Of the header: what [`AskHeader::version`] has to be.
pub const VERSION: u8 = 2;
/// Bytes of the header.
pub const HEADER_BYTES: usize = 120;
/// Bytes of an Ethernet header.
const ETHERNET_BYTES: usize = 14;
/// Bytes of [`AnswerMetadata`].
pub const METADATA_BYTES: usize = 16;
/// Where the IP packet begins in an answer.
pub const ANSWER_IP: usize = ETHERNET_BYTES + METADATA_BYTES;

/// Flags of the header.
pub mod flag {
    /// The source of the original tuple is a pod of this node.
    pub const SRC_LOCAL: u8 = 1;
    /// The source of the reply tuple is a pod of this node.
    pub const DST_LOCAL: u8 = 2;
    /// The device has no link header: the Ethernet header behind this one was made up, its addresses are zeros.
    pub const NO_LINK: u8 = 4;
    /// The decision holds for every packet of the tuple: no fragment, nothing related.
    pub const CACHEABLE: u8 = 8;
    /// A tracked TCP connection that is not new.
    pub const MIDSTREAM: u8 = 16;
    pub(super) const ALL: u8 = SRC_LOCAL | DST_LOCAL | NO_LINK | CACHEABLE | MIDSTREAM;
}

/// Of an answer: the device has no link header.
pub const ANSWER_NO_LINK: u32 = flag::NO_LINK as u32;

/// Of an answer: it is for the pod behind the device, whose Ethernet address the programs put in.
pub const ANSWER_TO_POD: u32 = 32;

/// A secret of one boot, which shows that a header was written by the programs of this node.
#[derive(Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Nonce(pub [u32; 2]);

impl std::fmt::Debug for Nonce {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Nonce(..)") // it stays out of logs
    }
}

/// One direction of a connection, as connection tracking has it. Of ICMP echo, `src_port` is the identifier and `dst_port`
/// type and code, the type in the upper byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Tuple {
    /// Source address, in network byte order; IPv4 as `::ffff:a.b.c.d`.
    pub src: [u8; 16],
    /// Destination address.
    pub dst: [u8; 16],
    /// Source port.
    pub src_port: U16,
    /// Destination port.
    pub dst_port: U16,
}

impl Tuple {
    /// Between two ends.
    pub fn new((src, src_port): (Addr, u16), (dst, dst_port): (Addr, u16)) -> Self {
        Self {
            src: src.octets(),
            dst: dst.octets(),
            src_port: src_port.into(),
            dst_port: dst_port.into(),
        }
    }

    /// The other direction.
    #[must_use]
    pub fn reversed(&self) -> Self {
        Self {
            src: self.dst,
            dst: self.src,
            src_port: self.dst_port,
            dst_port: self.src_port,
        }
    }
}

/// What stands in front of the frame.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct AskHeader {
    /// The device where the packet was about to leave.
    pub out_ifindex: u32,
    /// Of this boot.
    pub nonce: Nonce,
    /// Of the frame behind: where an Ethernet header has its type.
    pub ethertype: U16,
    /// What connection tracking says: [`Tracking`] as a number.
    pub conntrack: u8,
    /// [`flag`]s.
    pub flags: u8,
    /// The device where the packet came in; 0 for this host's own.
    pub in_ifindex: u32,
    /// Of the cache's key, never 0.
    pub signature: u32,
    /// Where the cache may have the key.
    pub buckets: [u32; 2],
    /// Of connection tracking.
    pub zone: u16,
    /// IP protocol of the tuples.
    pub protocol: u8,
    /// [`VERSION`].
    pub version: u8,
    /// As first sent. Untracked: of the packet.
    pub original: Tuple,
    /// As answers are sent. Untracked: the inverse of the packet's.
    pub reply: Tuple,
    /// The token bucket that the question was charged to.
    pub token: u32,
    /// The queue that it came by.
    pub queue: u32,
    /// Its number on that queue. Segments that were asked about as one share it.
    pub ticket: u32,
}
const _: () = assert!(size_of::<AskHeader>() == HEADER_BYTES);

/// What stands between the Ethernet header and the IP packet of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct AnswerMetadata {
    /// The device where the packet leaves.
    pub out_ifindex: u32,
    /// Of this boot.
    pub nonce: Nonce,
    /// [`ANSWER_NO_LINK`], [`ANSWER_TO_POD`].
    pub flags: u32,
}
const _: () = assert!(size_of::<AnswerMetadata>() == METADATA_BYTES);

/// What connection tracking says about a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tracking {
    /// Nothing: the tuples are the packet's.
    Untracked,
    /// It belongs to a connection, in this direction.
    Tracked(FlowDirection),
    /// It is an ICMP error about a connection, sent in this direction.
    Related(FlowDirection),
}

impl Tracking {
    /// As it stands in a header.
    pub fn number(self) -> u8 {
        match self {
            Self::Untracked => 0,
            Self::Tracked(direction) => 1 + direction as u8,
            Self::Related(direction) => 3 + direction as u8,
        }
    }

    fn from_number(number: u8) -> Option<Self> {
        use FlowDirection::{Original, Reply};
        [
            Self::Untracked,
            Self::Tracked(Original),
            Self::Tracked(Reply),
            Self::Related(Original),
            Self::Related(Reply),
        ]
        .get(usize::from(number))
        .copied()
    }
}

/// Which ends of a flow this node judges: those of its own pods. The others' nodes judge theirs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LocalEnds {
    /// Egress of the source.
    pub src: bool,
    /// Ingress of the destination.
    pub dst: bool,
}

impl LocalEnds {
    /// Of the flags of a header or of a cache entry. Where neither end is said to be local, both are judged.
    pub fn from_flags(flags: u8) -> Self {
        let none = flags & (flag::SRC_LOCAL | flag::DST_LOCAL) == 0;
        Self {
            src: none || flags & flag::SRC_LOCAL != 0,
            dst: none || flags & flag::DST_LOCAL != 0,
        }
    }

    /// As [`flag`]s.
    pub fn flags(self) -> u8 {
        (u8::from(self.src) * flag::SRC_LOCAL) | (u8::from(self.dst) * flag::DST_LOCAL)
    }

    /// Whether these are all of others.
    pub fn cover(self, others: Self) -> bool {
        (self.src || !others.src) && (self.dst || !others.dst)
    }

    /// A judgement about both ends, without what another node decides. What has no owner (SEMANTICS 53) stays denied: no
    /// node would.
    pub fn restrict(self, judgement: Judgement) -> Judgement {
        let restricted = |is_local: bool, verdict: DirectionVerdict| match verdict.effect {
            Effect::Unknown | Effect::Invalid => verdict,
            _ if is_local => verdict,
            _ => DirectionVerdict {
                allow: true,
                effect: Effect::Open,
                provenance: NONE,
            },
        };
        Judgement {
            ingress: restricted(self.dst, judgement.ingress),
            egress: restricted(self.src, judgement.egress),
        }
    }
}

/// A header that has been checked.
#[derive(Clone, Copy, Debug)]
pub struct Ask {
    header: AskHeader,
    /// What connection tracking says.
    pub tracking: Tracking,
}

impl Ask {
    /// Reads the header in front of a frame. Errors say why the frame drops.
    pub fn read(frame: &[u8], nonce: Nonce) -> Result<Self, DropReason> {
        let (header, rest) = AskHeader::read_from_prefix(frame).map_err(|_| DropReason::Truncated)?;
        if header.nonce != nonce {
            return Err(DropReason::SpoofedSource);
        }
        let family = match header.ethertype.get() {
            0x0800 => true,
            0x86dd => false,
            _ => return Err(DropReason::Malformed),
        };
        let Tuple { src, dst, .. } = header.original;
        let tuples = [src, dst, header.reply.src, header.reply.dst].map(Addr::v6);
        let sound = header.version == VERSION
            && header.flags & !flag::ALL == 0
            && header.signature != 0
            && tuples.iter().all(|addr| addr.is_v4() == family)
            && rest.get(12..ETHERNET_BYTES) == Some(header.ethertype.as_bytes());
        match Tracking::from_number(header.conntrack) {
            Some(tracking) if sound => Ok(Self { header, tracking }),
            _ if rest.len() < ETHERNET_BYTES => Err(DropReason::Truncated),
            _ => Err(DropReason::Malformed),
        }
    }

    /// What was read.
    pub fn header(&self) -> &AskHeader {
        &self.header
    }

    /// Which ends this node judges.
    pub fn local_ends(&self) -> LocalEnds {
        LocalEnds::from_flags(self.header.flags)
    }

    /// Whether the decision may be cached.
    pub fn is_cacheable(&self) -> bool {
        self.header.flags & flag::CACHEABLE != 0
    }

    /// Part of the flow key: the port's address space, and that of connection tracking.
    pub fn zone(&self, port_zone: u32) -> u32 {
        port_zone ^ u32::from(self.header.zone) << 16
    }

    /// Where the client of a tracked connection believes to be talking to, if that is not the true destination.
    pub fn frontend(&self) -> Option<(Addr, u16)> {
        let AskHeader { original, reply, .. } = &self.header;
        let translated = original.dst != reply.src
            || original.dst_port != reply.src_port && has_ports(self.header.protocol);
        let tracked = matches!(self.tracking, Tracking::Tracked(_));
        let port = if has_ports(self.header.protocol) {
            original.dst_port.get()
        } else {
            0
        };
        (tracked && translated).then(|| (Addr::v6(original.dst), port))
    }

    /// The packet behind the header, with offsets from the begin of the frame, and with the true pair, in the packet's
    /// direction, for addresses and ports. Of an ICMP error about a connection, the quoted packet has the true pair.
    pub fn packet(&self, frame: &[u8]) -> Parsed {
        let mut packet = match frame.get(HEADER_BYTES..).map(wire::parse) {
            Some(Parsed::Subject(packet)) => packet,
            Some(other) => return other,
            None => return Parsed::Malformed(DropReason::Truncated),
        };
        let is_v4 = self.header.ethertype.get() == 0x0800;
        let shifted = |at: u16| at.checked_add(HEADER_BYTES as u16);
        let (Some(l3), Some(l4), Some(end)) = (shifted(packet.l3), shifted(packet.l4), shifted(packet.end))
        else {
            return Parsed::Malformed(DropReason::Malformed);
        };
        if packet.vlan != 0 || packet.src.is_v4() != is_v4 {
            return Parsed::Malformed(DropReason::Malformed);
        }
        (packet.l3, packet.l4, packet.end) = (l3, l4, end);
        match (self.tracking, packet.transport) {
            (Tracking::Untracked, _) => {}
            (Tracking::Related(direction), Transport::IcmpError { .. }) => {
                // What it is about went the other way.
                packet.transport = Transport::IcmpError {
                    quoted: Some(self.quoted(direction.reversed())),
                };
            }
            (Tracking::Tracked(direction) | Tracking::Related(direction), _) => {
                self.put_true_pair(&mut packet, direction);
            }
        }
        Parsed::Subject(packet)
    }

    /// Whether the protocol that connection tracking found is the one that the parser found. They differ behind headers that
    /// only one of them walks: then the packet is judged by the parser's, and the decision is not the tuple's.
    pub fn agrees(&self, packet: &Packet) -> bool {
        packet.protocol == self.header.protocol
    }

    /// The true pair in a direction.
    fn true_pair(&self, direction: FlowDirection) -> [(Addr, u16); 2] {
        let AskHeader { original, reply, .. } = &self.header;
        let began = (Addr::v6(original.src), original.src_port.get());
        let answered = (Addr::v6(reply.src), reply.src_port.get());
        match direction {
            FlowDirection::Original => [began, answered],
            FlowDirection::Reply => [answered, began],
        }
    }

    fn put_true_pair(&self, packet: &mut Packet, direction: FlowDirection) {
        let [(src, src_port), (dst, dst_port)] = self.true_pair(direction);
        (packet.src, packet.dst) = (src, dst);
        if !self.agrees(packet) {
            return;
        }
        // Connection tracking has put the datagram together, so a later fragment has ports, too.
        packet.fragment = None;
        packet.transport = match (packet.protocol, packet.transport) {
            (protocol::TCP, Transport::Tcp { flags, .. }) => Transport::Tcp {
                src: src_port,
                dst: dst_port,
                flags,
            },
            (protocol::TCP, _) => Transport::Tcp {
                src: src_port,
                dst: dst_port,
                flags: TcpFlags(TcpFlags::ACK),
            },
            (protocol::UDP, _) => Transport::Udp {
                src: src_port,
                dst: dst_port,
            },
            (protocol::SCTP, other) => Transport::Sctp {
                src: src_port,
                dst: dst_port,
                chunk: match other {
                    Transport::Sctp { chunk, .. } => chunk,
                    _ => 255,
                },
            },
            (protocol::ICMP, _) if src.is_v4() => self.icmp_of_original(direction),
            (protocol::ICMPV6, _) if !src.is_v4() => self.icmp_of_original(direction),
            _ => Transport::Other,
        };
    }

    /// ICMP by the type and code of the message that began the exchange: answers are judged as it was.
    fn icmp_of_original(&self, direction: FlowDirection) -> Transport {
        let AskHeader {
            original, protocol, ..
        } = &self.header;
        let request = if *protocol == protocol::ICMP { 8 } else { 128 };
        let begun_by = original.dst_port.get();
        if begun_by == icmp(request, 0) {
            return Transport::Echo {
                id: original.src_port.get(),
                request: direction == FlowDirection::Original,
            };
        }
        let [kind, code] = begun_by.to_be_bytes();
        Transport::Icmp { kind, code }
    }

    fn quoted(&self, direction: FlowDirection) -> Quoted {
        let AskHeader {
            original, protocol, ..
        } = &self.header;
        let [(src, src_port), (dst, dst_port)] = self.true_pair(direction);
        let is_icmp = matches!(*protocol, protocol::ICMP | protocol::ICMPV6);
        let id = original.src_port.get();
        let (src_port, dst_port) = match *protocol {
            other if has_ports(other) => (src_port, dst_port),
            _ if is_icmp => (id, id),
            _ => (0, 0),
        };
        Quoted {
            src,
            dst,
            protocol: *protocol,
            src_port,
            dst_port,
        }
    }

    /// Whether the packet came in from a pod of this node, which began what it belongs to. Then the token is that of the pod's port.
    pub fn is_from_local_pod(&self) -> bool {
        let begins = !matches!(
            self.tracking,
            Tracking::Tracked(FlowDirection::Reply) | Tracking::Related(_)
        );
        begins && self.header.flags & flag::SRC_LOCAL != 0 && self.header.in_ifindex != 0
    }

    /// Takes back what was translated of a packet behind this header: it has the ends that its sender gave it. `packet` has the
    /// offsets; the answer has those ends, too. Only for packets in the original direction.
    pub fn untranslate(&self, frame: &mut [u8], packet: &Packet) -> Packet {
        let Tuple {
            src,
            dst,
            src_port,
            dst_port,
        } = self.header.original;
        let (from, to) = ((Addr::v6(src), src_port.get()), (Addr::v6(dst), dst_port.get()));
        rewrite::ends(frame, packet, from, to);
        let transport = match packet.transport {
            Transport::Tcp { flags, .. } => Transport::Tcp {
                src: from.1,
                dst: to.1,
                flags,
            },
            Transport::Udp { .. } => Transport::Udp {
                src: from.1,
                dst: to.1,
            },
            other => other,
        };
        Packet {
            src: from.0,
            dst: to.0,
            transport,
            ..*packet
        }
    }

    /// Makes the answer of a frame that begins with this header: the packet goes on where it was about to leave.
    #[must_use]
    pub fn answer(&self, frame: &mut Frame) -> bool {
        let flags = u32::from(self.header.flags) & ANSWER_NO_LINK;
        self.lead(frame, self.header.out_ifindex, flags)
    }

    /// As [`Self::answer`], for a packet that goes to the pod that has sent what was asked about.
    #[must_use]
    pub fn answer_sender(&self, frame: &mut Frame) -> bool {
        self.lead(frame, self.header.token, ANSWER_TO_POD)
    }

    fn lead(&self, frame: &mut Frame, out_ifindex: u32, flags: u32) -> bool {
        let length = match frame.len().checked_sub(HEADER_BYTES) {
            Some(inner) if inner >= ETHERNET_BYTES => inner + METADATA_BYTES,
            _ => return false,
        };
        let metadata = AnswerMetadata {
            out_ifindex,
            nonce: self.header.nonce,
            flags,
        };
        // Moving the packet costs less than frames that may begin anywhere would.
        let bytes = frame.bytes_mut();
        bytes.copy_within(HEADER_BYTES..HEADER_BYTES + ETHERNET_BYTES, 0);
        bytes.copy_within(HEADER_BYTES + ETHERNET_BYTES.., ANSWER_IP);
        if let Some(between) = bytes.get_mut(ETHERNET_BYTES..ANSWER_IP) {
            between.copy_from_slice(metadata.as_bytes());
        }
        frame.set_len(length)
    }
}

fn has_ports(number: u8) -> bool {
    matches!(number, protocol::TCP | protocol::UDP | protocol::SCTP)
}
