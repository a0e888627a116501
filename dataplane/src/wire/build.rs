//! Writing packets: for tests, generators and benchmarks. Not on the packet path.

mod tunnel;

use super::{checksum, protocol};
use crate::addr::Addr;

/// What to write around a layer 4 header and payload.
#[derive(Clone, Debug)]
pub struct Template {
    /// Ethernet destination.
    pub eth_dst: [u8; 6],
    /// Ethernet source.
    pub eth_src: [u8; 6],
    /// VLAN ids, outermost first.
    pub vlans: Vec<u16>,
    /// Source address.
    pub src: Addr,
    /// Destination address; of the same family.
    pub dst: Addr,
    /// Time to live or hop limit.
    pub ttl: u8,
    /// IPv4: not to be fragmented.
    pub dont_fragment: bool,
    /// Identification, offset in bytes (a multiple of 8) and whether more follow: written as a fragment.
    pub fragment: Option<(u32, u16, bool)>,
    /// IPv4 options, a multiple of 4 bytes.
    pub options: Vec<u8>,
    /// IPv6 extension headers: number and bytes from the third on, 6 more than a multiple of 8.
    pub extensions: Vec<(u8, Vec<u8>)>,
}

/// RFC 1112 6.4, RFC 2464 7; any one station for a unicast address.
fn ethernet_destination(dst: Addr) -> [u8; 6] {
    let octets = dst.octets();
    let [.., a, b, c, d] = octets;
    match (dst.is_v4(), a, octets[0]) {
        (true, 255, _) => [255; 6],
        (true, 224..240, _) => [1, 0, 0x5e, b & 0x7f, c, d],
        (false, _, 0xff) => [0x33, 0x33, a, b, c, d],
        _ => [2, 0, 0, 0, 0, 2],
    }
}

impl Template {
    /// From one address to another, with a TTL of 64; to a group of stations where the destination is a group of hosts.
    pub fn new(src: Addr, dst: Addr) -> Self {
        Self {
            eth_dst: ethernet_destination(dst),
            eth_src: [2, 0, 0, 0, 0, 1],
            vlans: Vec::new(),
            src,
            dst,
            ttl: 64,
            dont_fragment: false,
            fragment: None,
            options: Vec::new(),
            extensions: Vec::new(),
        }
    }

    /// A TCP segment with both numbers zero.
    pub fn tcp(&self, src_port: u16, dst_port: u16, flags: u8, payload: &[u8]) -> Vec<u8> {
        self.tcp_at(src_port, dst_port, flags, [0, 0], payload)
    }

    /// A TCP segment with these sequence and acknowledgement numbers.
    pub fn tcp_at(
        &self,
        src_port: u16,
        dst_port: u16,
        flags: u8,
        [seq, ack]: [u32; 2],
        payload: &[u8],
    ) -> Vec<u8> {
        let mut l4 = vec![0; 20];
        l4[..2].copy_from_slice(&src_port.to_be_bytes());
        l4[2..4].copy_from_slice(&dst_port.to_be_bytes());
        l4[4..8].copy_from_slice(&seq.to_be_bytes());
        l4[8..12].copy_from_slice(&ack.to_be_bytes());
        l4[12] = 0x50;
        l4[13] = flags;
        l4[14..16].copy_from_slice(&[0xff, 0xff]);
        l4.extend_from_slice(payload);
        self.summed(protocol::TCP, l4, 16)
    }

    /// A UDP datagram.
    pub fn udp(&self, src_port: u16, dst_port: u16, payload: &[u8]) -> Vec<u8> {
        let mut l4 = Vec::with_capacity(8 + payload.len());
        l4.extend_from_slice(&src_port.to_be_bytes());
        l4.extend_from_slice(&dst_port.to_be_bytes());
        l4.extend_from_slice(&((8 + payload.len()) as u16).to_be_bytes());
        l4.extend_from_slice(&[0, 0]);
        l4.extend_from_slice(payload);
        self.summed(protocol::UDP, l4, 6)
    }

    /// An SCTP packet with one chunk of a type. Its CRC is zero: nothing here looks at it.
    pub fn sctp(&self, src_port: u16, dst_port: u16, chunk: u8) -> Vec<u8> {
        let mut l4 = vec![0; 16];
        l4[..2].copy_from_slice(&src_port.to_be_bytes());
        l4[2..4].copy_from_slice(&dst_port.to_be_bytes());
        l4[12] = chunk;
        l4[15] = 4;
        self.ip(protocol::SCTP, &l4)
    }

    /// An ICMP echo request or reply, of the family of the addresses.
    pub fn echo(&self, id: u16, request: bool) -> Vec<u8> {
        let kind = match (self.src.is_v4(), request) {
            (true, true) => 8,
            (true, false) => 0,
            (false, true) => 128,
            (false, false) => 129,
        };
        let [high, low] = id.to_be_bytes();
        self.icmp(kind, 0, [high, low, 0, 1], b"ringwall")
    }

    /// An ICMP message, of the family of the addresses: `word` is what follows the checksum.
    pub fn icmp(&self, kind: u8, code: u8, word: [u8; 4], rest: &[u8]) -> Vec<u8> {
        let mut l4 = vec![kind, code, 0, 0];
        l4.extend_from_slice(&word);
        l4.extend_from_slice(rest);
        if !self.src.is_v4() {
            return self.summed(protocol::ICMPV6, l4, 2);
        }
        let sum = !checksum::fold(checksum::sum(&l4));
        l4[2..4].copy_from_slice(&sum.to_be_bytes());
        self.ip(protocol::ICMP, &l4)
    }

    /// With the checksum over the pseudo-header in its field.
    fn summed(&self, number: u8, mut l4: Vec<u8>, field: usize) -> Vec<u8> {
        let pseudo = checksum::pseudo_header(self.src, self.dst, number, l4.len() as u16);
        let mut sum = !checksum::fold(pseudo + checksum::sum(&l4));
        if sum == 0 && number == protocol::UDP {
            sum = 0xffff;
        }
        l4[field..field + 2].copy_from_slice(&sum.to_be_bytes());
        self.ip(number, &l4)
    }

    /// An IP packet of a protocol around these bytes.
    pub fn ip(&self, number: u8, l4: &[u8]) -> Vec<u8> {
        let mut frame = Vec::with_capacity(64 + l4.len());
        frame.extend_from_slice(&self.eth_dst);
        frame.extend_from_slice(&self.eth_src);
        for vlan in &self.vlans {
            frame.extend_from_slice(&[0x81, 0x00]);
            frame.extend_from_slice(&vlan.to_be_bytes());
        }
        if self.src.is_v4() {
            self.ipv4(&mut frame, number, l4);
        } else {
            self.ipv6(&mut frame, number, l4);
        }
        frame
    }

    fn ipv4(&self, frame: &mut Vec<u8>, number: u8, l4: &[u8]) {
        frame.extend_from_slice(&[0x08, 0x00]);
        let begin = frame.len();
        let header = 20 + self.options.len();
        let (id, offset, more) = self.fragment.unwrap_or((1, 0, false));
        let mut word = offset / 8;
        word |= if more { 0x2000 } else { 0 };
        word |= if self.dont_fragment { 0x4000 } else { 0 };
        frame.extend_from_slice(&[0x40 | (header / 4) as u8, 0]);
        frame.extend_from_slice(&((header + l4.len()) as u16).to_be_bytes());
        frame.extend_from_slice(&(id as u16).to_be_bytes());
        frame.extend_from_slice(&word.to_be_bytes());
        frame.extend_from_slice(&[self.ttl, number, 0, 0]);
        frame.extend_from_slice(&self.src.octets()[12..]);
        frame.extend_from_slice(&self.dst.octets()[12..]);
        frame.extend_from_slice(&self.options);
        let sum = !checksum::fold(checksum::sum(&frame[begin..]));
        frame[begin + 10..begin + 12].copy_from_slice(&sum.to_be_bytes());
        frame.extend_from_slice(l4);
    }

    fn ipv6(&self, frame: &mut Vec<u8>, number: u8, l4: &[u8]) {
        frame.extend_from_slice(&[0x86, 0xdd, 0x60, 0, 0, 0]);
        let mut chain: Vec<(u8, Vec<u8>)> = self
            .extensions
            .iter()
            .map(|(kind, rest)| (*kind, [&[0, (rest.len() / 8) as u8], rest.as_slice()].concat()))
            .collect();
        if let Some((id, offset, more)) = self.fragment {
            let mut header = vec![0, 0];
            header.extend_from_slice(&(offset | u16::from(more)).to_be_bytes());
            header.extend_from_slice(&id.to_be_bytes());
            chain.push((44, header));
        }
        let length: usize = chain.iter().map(|(_, bytes)| bytes.len()).sum();
        frame.extend_from_slice(&((length + l4.len()) as u16).to_be_bytes());
        frame.extend_from_slice(&[chain.first().map_or(number, |(kind, _)| *kind), self.ttl]);
        frame.extend_from_slice(&self.src.octets());
        frame.extend_from_slice(&self.dst.octets());
        for nth in 0..chain.len() {
            let next = chain.get(nth + 1).map_or(number, |(kind, _)| *kind);
            chain[nth].1[0] = next;
            frame.extend_from_slice(&chain[nth].1);
        }
        frame.extend_from_slice(l4);
    }
}
