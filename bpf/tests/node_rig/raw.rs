//! Frames as they are: sent into an interface, seen at one; and sockets of echoes.
#![allow(unsafe_code)] // sockets that the standard library does not have

use std::{
    ffi::CString,
    io, mem,
    net::{Ipv4Addr, Ipv6Addr, UdpSocket},
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    ptr,
};

use crate::net::Namespace;

/// A socket of echo requests, with what the standard library offers for datagrams.
pub fn echo_socket(namespace: &Namespace, ipv6: bool) -> UdpSocket {
    namespace.within(|| std::fs::write("/proc/sys/net/ipv4/ping_group_range", "0 0").unwrap());
    let (family, protocol) = if ipv6 {
        (libc::AF_INET6, libc::IPPROTO_ICMPV6)
    } else {
        (libc::AF_INET, libc::IPPROTO_ICMP)
    };
    // SAFETY: no pointers; the answer is checked.
    let fd =
        namespace.within(|| unsafe { libc::socket(family, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, protocol) });
    assert!(fd >= 0, "{}", io::Error::last_os_error());
    // SAFETY: just opened, nobody else has it.
    let socket = unsafe { UdpSocket::from_raw_fd(fd) };
    socket
        .set_read_timeout(Some(std::time::Duration::from_secs(10)))
        .unwrap();
    socket
}

/// An AF_PACKET socket on an interface.
pub struct Packets(OwnedFd);

impl Packets {
    pub fn open(namespace: &Namespace, interface: &str) -> Self {
        let name = CString::new(interface).unwrap();
        namespace.within(|| {
            // SAFETY: pointers are to locals that outlive their calls; every answer is checked.
            unsafe {
                let fd = libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0);
                assert!(fd >= 0, "{}", io::Error::last_os_error());
                let mut address: libc::sockaddr_ll = mem::zeroed();
                address.sll_family = libc::AF_PACKET as u16;
                address.sll_protocol = (libc::ETH_P_ALL as u16).to_be();
                address.sll_ifindex = libc::if_nametoindex(name.as_ptr()) as i32;
                let length = mem::size_of_val(&address) as u32;
                assert_eq!(libc::bind(fd, (&raw const address).cast(), length), 0);
                Self(OwnedFd::from_raw_fd(fd))
            }
        })
    }

    /// Sends a frame out of the interface.
    pub fn send(&self, frame: &[u8]) {
        // SAFETY: pointer and length are of `frame`.
        let sent = unsafe { libc::send(self.0.as_raw_fd(), frame.as_ptr().cast(), frame.len(), 0) };
        let error = io::Error::last_os_error();
        // What a program drops at the interface itself was sent, too.
        let dropped = error.raw_os_error() == Some(libc::ENOBUFS);
        assert!(sent == frame.len() as isize || (sent < 0 && dropped), "{error}");
    }

    /// The frames that came in by the interface until now.
    pub fn received(&self) -> Vec<Vec<u8>> {
        let mut frames = Vec::new();
        loop {
            let mut frame = vec![0; 4096];
            // SAFETY: zeroes are valid for plain data.
            let mut from: libc::sockaddr_ll = unsafe { mem::zeroed() };
            let mut length = mem::size_of_val(&from) as u32;
            // SAFETY: pointers and lengths are of locals that outlive the call.
            let got = unsafe {
                libc::recvfrom(
                    self.0.as_raw_fd(),
                    frame.as_mut_ptr().cast(),
                    frame.len(),
                    libc::MSG_DONTWAIT,
                    ptr::from_mut(&mut from).cast(),
                    &mut length,
                )
            };
            let Ok(got) = usize::try_from(got) else {
                return frames;
            };
            frame.truncate(got);
            if from.sll_pkttype != libc::PACKET_OUTGOING {
                frames.push(frame);
            }
        }
    }
}

pub fn ethernet(to: [u8; 6], from: [u8; 6], ethertype: u16, payload: &[u8]) -> Vec<u8> {
    let mut frame = to.to_vec();
    frame.extend(from);
    frame.extend(ethertype.to_be_bytes());
    frame.extend(payload);
    frame
}

/// A sum of 16-bit words as the Internet has it (RFC 1071).
fn checksum(parts: &[&[u8]]) -> u16 {
    let mut sum = 0u32;
    for part in parts {
        for word in part.chunks(2) {
            sum += u32::from(word[0]) << 8 | u32::from(word.get(1).copied().unwrap_or(0));
        }
    }
    while sum >> 16 != 0 {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// An IPv4 packet; `options` of a multiple of 4 bytes.
pub fn ip4(from: &str, to: &str, protocol: u8, options: &[u8], payload: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x45 + (options.len() / 4) as u8, 0];
    packet.extend((20 + options.len() as u16 + payload.len() as u16).to_be_bytes());
    packet.extend([0, 1, 0, 0, 64, protocol, 0, 0]);
    packet.extend(from.parse::<Ipv4Addr>().unwrap().octets());
    packet.extend(to.parse::<Ipv4Addr>().unwrap().octets());
    packet.extend(options);
    let sum = checksum(&[&packet]);
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    packet.extend(payload);
    packet
}

pub fn ip6(from: &str, to: &str, next: u8, hops: u8, payload: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x60, 0, 0, 0];
    packet.extend((payload.len() as u16).to_be_bytes());
    packet.extend([next, hops]);
    packet.extend(from.parse::<Ipv6Addr>().unwrap().octets());
    packet.extend(to.parse::<Ipv6Addr>().unwrap().octets());
    packet.extend(payload);
    packet
}

/// UDP; without a checksum over IPv4.
pub fn udp4(from_port: u16, to_port: u16, payload: &[u8]) -> Vec<u8> {
    let mut packet = from_port.to_be_bytes().to_vec();
    packet.extend(to_port.to_be_bytes());
    packet.extend((8 + payload.len() as u16).to_be_bytes());
    packet.extend([0, 0]);
    packet.extend(payload);
    packet
}

/// UDP over IPv6, with its checksum.
pub fn udp6(from: &str, to: &str, from_port: u16, to_port: u16, payload: &[u8]) -> Vec<u8> {
    let mut packet = udp4(from_port, to_port, payload);
    let sum = pseudo(from, to, 17, &packet);
    packet[6..8].copy_from_slice(&sum.to_be_bytes());
    packet
}

fn pseudo(from: &str, to: &str, protocol: u8, packet: &[u8]) -> u16 {
    let (from, to) = (
        from.parse::<Ipv6Addr>().unwrap().octets(),
        to.parse::<Ipv6Addr>().unwrap().octets(),
    );
    let tail = [0, 0, 0, protocol];
    checksum(&[&from, &to, &(packet.len() as u32).to_be_bytes(), &tail, packet])
}

/// ICMPv6 with its checksum.
pub fn icmp6(from: &str, to: &str, kind: u8, code: u8, body: &[u8]) -> Vec<u8> {
    let mut packet = vec![kind, code, 0, 0];
    packet.extend(body);
    let sum = pseudo(from, to, 58, &packet);
    packet[2..4].copy_from_slice(&sum.to_be_bytes());
    packet
}

/// ICMP with its checksum.
pub fn icmp4(kind: u8, code: u8, body: &[u8]) -> Vec<u8> {
    let mut packet = vec![kind, code, 0, 0];
    packet.extend(body);
    let sum = checksum(&[&packet]);
    packet[2..4].copy_from_slice(&sum.to_be_bytes());
    packet
}

/// ARP over Ethernet for IPv4.
pub fn arp(operation: u8, sender_mac: [u8; 6], sender: &str, target: &str) -> Vec<u8> {
    let mut packet = vec![0, 1, 8, 0, 6, 4, 0, operation];
    packet.extend(sender_mac);
    packet.extend(sender.parse::<Ipv4Addr>().unwrap().octets());
    packet.extend([0; 6]);
    packet.extend(target.parse::<Ipv4Addr>().unwrap().octets());
    packet
}
