//! The packets of the load.

use std::net::Ipv4Addr;

use ringwall_bpf::traffic::HEADERS;
use ringwall_dataplane::wire::checksum;

/// Length of the frames without the frame check sequence: the shortest that hold the generator's headers.
pub(crate) const LENGTH: usize = 80;

/// A UDP datagram between two addresses, in a frame of [`LENGTH`] bytes.
pub(crate) fn udp(src: Ipv4Addr, dst: Ipv4Addr, src_port: u16, dst_port: u16) -> [u8; HEADERS] {
    let mut frame = [0; HEADERS];
    let (ethernet, ip) = frame.split_at_mut(14);
    ethernet.copy_from_slice(&[2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 8, 0]);
    let (header, udp) = ip.split_at_mut(20);
    header[0] = 0x45;
    header[2..4].copy_from_slice(&((LENGTH - 14) as u16).to_be_bytes());
    header[8] = 64;
    header[9] = 17;
    header[12..16].copy_from_slice(&src.octets());
    header[16..20].copy_from_slice(&dst.octets());
    let sum = !checksum::fold(checksum::sum(header));
    header[10..12].copy_from_slice(&sum.to_be_bytes());
    udp[..2].copy_from_slice(&src_port.to_be_bytes());
    udp[2..4].copy_from_slice(&dst_port.to_be_bytes());
    udp[4..6].copy_from_slice(&((LENGTH - 34) as u16).to_be_bytes());
    // No checksum: IPv4 allows it, and nobody here looks.
    frame
}
