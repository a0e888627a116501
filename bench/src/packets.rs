//! The packets of the load.

use std::net::Ipv4Addr;

use ringwall_bpf::traffic::HEADERS;
use ringwall_dataplane::wire::checksum;

/// Length of the frames without the frame check sequence: the shortest that hold the generator's headers.
pub(crate) const LENGTH: usize = 80;

/// The first packet of a connection, in a frame of [`LENGTH`] bytes; `macs` are destination and source.
pub(crate) fn syn(
    macs: ([u8; 6], [u8; 6]),
    src: Ipv4Addr,
    dst: Ipv4Addr,
    src_port: u16,
    dst_port: u16,
) -> [u8; HEADERS] {
    /// Length of the IPv4 packet; what follows it in the frame is padding.
    const TOTAL: u16 = 40;
    let mut frame = [0; HEADERS];
    frame[..6].copy_from_slice(&macs.0);
    frame[6..12].copy_from_slice(&macs.1);
    frame[12..14].copy_from_slice(&[8, 0]);
    let (header, tcp) = frame[14..54].split_at_mut(20);
    header[0] = 0x45;
    header[2..4].copy_from_slice(&TOTAL.to_be_bytes());
    header[8] = 64;
    header[9] = 6;
    header[12..16].copy_from_slice(&src.octets());
    header[16..20].copy_from_slice(&dst.octets());
    let sum = !checksum::fold(checksum::sum(header));
    header[10..12].copy_from_slice(&sum.to_be_bytes());
    tcp[..2].copy_from_slice(&src_port.to_be_bytes());
    tcp[2..4].copy_from_slice(&dst_port.to_be_bytes());
    tcp[4..8].copy_from_slice(&u32::from(src).to_be_bytes());
    tcp[12] = 5 << 4;
    tcp[13] = 2; // SYN
    tcp[14..16].copy_from_slice(&u16::MAX.to_be_bytes());
    let mut pseudo = [0; 32];
    pseudo[..4].copy_from_slice(&src.octets());
    pseudo[4..8].copy_from_slice(&dst.octets());
    pseudo[9] = 6;
    pseudo[10..12].copy_from_slice(&20_u16.to_be_bytes());
    pseudo[12..].copy_from_slice(tcp);
    let sum = !checksum::fold(checksum::sum(&pseudo));
    tcp[16..18].copy_from_slice(&sum.to_be_bytes());
    frame
}
