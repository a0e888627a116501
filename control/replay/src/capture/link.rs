//! Link types: how the first header of a packet is read, and the Ethernet frame that the dataplane reads instead.

const IPV4: [u8; 2] = [0x08, 0x00];
const IPV6: [u8; 2] = [0x86, 0xdd];
/// Of no protocol: policies do not speak about it, and it does not cross a wire.
const RESERVED: [u8; 2] = [0xff, 0xff];
const TAGS: [[u8; 2]; 3] = [[0x81, 0x00], [0x88, 0xa8], [0x91, 0x00]];

/// A link type of which packets can be read, by the numbers of the LINKTYPE_ registry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Link {
    /// 1.
    Ethernet,
    /// IPv4 or IPv6 without anything before it: 101, and 12 and 14 of systems that wrote their own numbers.
    Raw,
    /// IPv4: 228.
    Ipv4,
    /// IPv6: 229.
    Ipv6,
    /// A loopback of BSD, macOS or Windows: 0 and 108.
    Loopback,
    /// Linux cooked: 113.
    Cooked,
    /// Linux cooked, second version: 276.
    Cooked2,
}

impl Link {
    /// What is supported, for messages.
    pub const SUPPORTED: &str =
        "Ethernet (1), raw IP (101, 228, 229), Linux cooked (113, 276) and loopback (0, 108)";

    /// The link type with a number; None where it is not supported.
    pub fn from_number(number: u16) -> Option<Self> {
        Some(match number {
            0 | 108 => Self::Loopback,
            1 => Self::Ethernet,
            12 | 14 | 101 => Self::Raw,
            113 => Self::Cooked,
            228 => Self::Ipv4,
            229 => Self::Ipv6,
            276 => Self::Cooked2,
            _ => return None,
        })
    }

    /// Bytes before the network layer.
    pub fn header_length(self) -> usize {
        match self {
            Self::Ethernet => 14,
            Self::Loopback => 4,
            Self::Cooked => 16,
            Self::Cooked2 => 20,
            Self::Raw | Self::Ipv4 | Self::Ipv6 => 0,
        }
    }

    /// Writes a packet into `frame` as one that begins with an Ethernet header. Where the link has another header or none,
    /// source and destination are zeros, or the group of the packet's destination, which bridges and hosts would see. What is
    /// shorter than its link's header becomes a frame shorter than Ethernet's.
    pub fn write_frame(self, bytes: &[u8], frame: &mut Vec<u8>) {
        frame.clear();
        let payload = bytes.get(self.header_length()..);
        let kind = match (self, payload) {
            (Self::Ethernet, _) => {
                frame.extend_from_slice(bytes);
                return;
            }
            (_, None) => return,
            (Self::Ipv4, _) => IPV4,
            (Self::Ipv6, _) => IPV6,
            (Self::Raw, Some([first, ..])) if first >> 4 == 6 => IPV6,
            (Self::Raw, _) => IPV4,
            (Self::Loopback, _) => loopback_kind(bytes),
            (Self::Cooked, _) => cooked_kind(bytes, 2, 14),
            (Self::Cooked2, _) => cooked_kind(bytes, 8, 0),
        };
        let payload = payload.unwrap_or_default();
        frame.extend_from_slice(&group(kind, payload));
        frame.extend_from_slice(&[0; 6]);
        frame.extend_from_slice(&kind);
        frame.extend_from_slice(payload);
    }
}

/// The Ethernet type of a packet behind an address family, in the byte order of the capturing machine. IPv6 has other numbers
/// on each system.
fn loopback_kind(bytes: &[u8]) -> [u8; 2] {
    match bytes {
        [2, 0, 0, 0, ..] | [0, 0, 0, 2, ..] => IPV4,
        [10 | 23 | 24 | 28 | 30, 0, 0, 0, ..] | [0, 0, 0, 10 | 23 | 24 | 28 | 30, ..] => IPV6,
        _ => RESERVED,
    }
}

/// The Ethernet type of a cooked packet, given where its header has the device type and the protocol.
fn cooked_kind(bytes: &[u8], device: usize, protocol: usize) -> [u8; 2] {
    /// Devices (ARPHRD_) whose protocol is no Ethernet type: frame relay, three of IEEE 802.11, netlink.
    const FOREIGN: [u16; 5] = [770, 801, 802, 803, 824];
    let field = |at: usize| bytes.get(at..)?.first_chunk::<2>().copied();
    match (field(device).map(u16::from_be_bytes), field(protocol)) {
        (Some(device), Some(kind)) if !FOREIGN.contains(&device) => kind,
        _ => RESERVED,
    }
}

/// The Ethernet group that a packet's destination has (RFC 1112 6.4, RFC 2464 7); zeros for any other destination.
fn group(mut kind: [u8; 2], mut packet: &[u8]) -> [u8; 6] {
    for _ in 0..2 {
        if TAGS.contains(&kind)
            && let Some((tag, rest)) = packet.split_first_chunk::<4>()
        {
            (kind, packet) = ([tag[2], tag[3]], rest);
        }
    }
    let v4 = packet.get(16..20).filter(|_| kind == IPV4);
    let v6 = packet.get(24..40).filter(|_| kind == IPV6);
    match (v4, v6) {
        (Some([255, 255, 255, 255]), _) => [0xff; 6],
        (Some([224..=239, b, c, d]), _) => [0x01, 0x00, 0x5e, b & 0x7f, *c, *d],
        (_, Some([0xff, .., a, b, c, d])) => [0x33, 0x33, *a, *b, *c, *d],
        _ => [0; 6],
    }
}
