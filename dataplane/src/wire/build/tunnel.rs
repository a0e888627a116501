//! Tunnel packets around other packets.

use super::Template;
use crate::wire::{checksum, protocol};

/// Bytes of an Ethernet header without tags.
const ETHERNET: usize = 14;

impl Template {
    /// VXLAN: the whole `inside` frame, in network `vni`, to a UDP port.
    pub fn vxlan(&self, port: u16, vni: u32, inside: &[u8]) -> Vec<u8> {
        let header = [&[8, 0, 0, 0][..], &(vni << 8).to_be_bytes()].concat();
        self.udp(50_000, port, &[&header, inside].concat())
    }

    /// Geneve, to its own port, with these options (a multiple of 4 bytes).
    pub fn geneve(&self, vni: u32, options: &[u8], inside: &[u8]) -> Vec<u8> {
        let header = [
            &[(options.len() / 4) as u8, 0, 0x65, 0x58][..],
            &(vni << 8).to_be_bytes(),
        ]
        .concat();
        self.udp(50_000, 6081, &[&header, options, inside].concat())
    }

    /// Flannel's own, to its port: the IP packet of an untagged frame.
    pub fn flannel_udp(&self, inside: &[u8]) -> Vec<u8> {
        self.udp(8285, 8285, inside.get(ETHERNET..).unwrap_or_default())
    }

    /// IPv4 or IPv6 of an untagged frame in IP.
    pub fn ip_in_ip(&self, inside: &[u8]) -> Vec<u8> {
        let protocol = if inside.get(12) == Some(&0x08) { 4 } else { 41 };
        self.ip(protocol, inside.get(ETHERNET..).unwrap_or_default())
    }

    /// GRE around the IP packet of an untagged frame, with the fields that `flags` (the first byte) announces: the checksum, and
    /// zeros.
    pub fn gre(&self, flags: u8, inside: &[u8]) -> Vec<u8> {
        let fields = [0x80, 0x20, 0x10]
            .iter()
            .filter(|flag| flags & **flag != 0)
            .count();
        let kind = inside.get(12..ETHERNET).unwrap_or_default();
        let packet = inside.get(ETHERNET..).unwrap_or_default();
        let mut gre = [&[flags, 0][..], kind, &vec![0; 4 * fields], packet].concat();
        if flags & 0x80 != 0 {
            let sum = !checksum::fold(checksum::sum(&gre));
            gre[4..6].copy_from_slice(&sum.to_be_bytes());
        }
        self.ip(protocol::GRE, &gre)
    }

    /// GRE around a whole frame.
    pub fn gre_ethernet(&self, inside: &[u8]) -> Vec<u8> {
        self.ip(47, &[&[0, 0, 0x65, 0x58][..], inside].concat())
    }
}
