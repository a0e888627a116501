//! Layouts of `bpf/src/c/node.h` on the user-space side.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use super::{Address, Device, DeviceKind, NodeConfig};
use crate::FailMode;

const FAIL_OPEN: u32 = 1;
const AUDIT: u32 = 2;
const ENFORCING: u32 = 4;
const NO_LINK: u16 = 1;
const PODS_ALONE: u16 = 2;

/// Most UDP ports of overlays.
pub const MAX_OVERLAY_PORTS: usize = 16;

/// What is drawn by lot when the maps are made, and stays as long as they do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Secrets {
    pub(super) hash: [u64; 2],
    pub(super) nonce: [u32; 2],
}

/// `struct rw_node_config`.
pub(super) const CONFIG_BYTES: usize = 104;

pub(super) fn config_bytes(build_id: u64, secrets: Secrets, config: &NodeConfig) -> [u8; CONFIG_BYTES] {
    let mut flags = 0;
    if config.fail_mode == FailMode::Open {
        flags |= FAIL_OPEN;
    }
    if config.audit {
        flags |= AUDIT;
    }
    if config.enforcing {
        flags |= ENFORCING;
    }
    let (interval, burst) = config.ask_limit.map_or((0, 0), |limit| {
        (
            1_000_000_000 / limit.per_second.clamp(1, 1_000_000_000),
            limit.burst,
        )
    });
    let mut bytes = [0; CONFIG_BYTES];
    let mut put = |offset: usize, value: &[u8]| {
        if let Some(place) = bytes.get_mut(offset..offset + value.len()) {
            place.copy_from_slice(value);
        }
    };
    put(0, &build_id.to_ne_bytes());
    put(8, &secrets.hash[0].to_ne_bytes());
    put(16, &secrets.hash[1].to_ne_bytes());
    put(24, &secrets.nonce[0].to_ne_bytes());
    put(28, &secrets.nonce[1].to_ne_bytes());
    put(32, &config.ask_ifindex.to_ne_bytes());
    put(36, &flags.to_ne_bytes());
    put(
        40,
        &u64::try_from(config.stale_after.as_nanos())
            .unwrap_or(u64::MAX >> 1)
            .to_ne_bytes(),
    );
    put(48, &config.ask_queues.to_ne_bytes());
    put(52, &config.ask_mtu.to_ne_bytes());
    put(56, &interval.to_ne_bytes());
    put(60, &burst.to_ne_bytes());
    for (index, port) in config.overlay_ports.iter().take(MAX_OVERLAY_PORTS).enumerate() {
        put(64 + index * 2, &port.to_be_bytes());
    }
    put(96, &config.ask_places.to_ne_bytes());
    bytes
}

/// Build and secrets of a configuration that somebody has written.
pub(super) fn read_config(bytes: &[u8]) -> Option<(u64, Secrets)> {
    let long = |offset: usize| Some(u64::from_ne_bytes(*bytes.get(offset..)?.first_chunk()?));
    let word = |offset: usize| Some(u32::from_ne_bytes(*bytes.get(offset..)?.first_chunk()?));
    let secrets = Secrets {
        hash: [long(8)?, long(16)?],
        nonce: [word(24)?, word(28)?],
    };
    (bytes.len() == CONFIG_BYTES).then_some((long(0)?, secrets))
}

/// `struct rw_node_device`.
pub(super) const DEVICE_BYTES: usize = 64;
/// Where it has its kind.
pub(super) const DEVICE_KIND: usize = 0;
/// Where it has its version.
pub(super) const DEVICE_VERSION: usize = 4;
/// Where it has the index of the device.
pub(super) const DEVICE_INDEX: usize = 12;
/// Where it has the words that the programs write.
pub(super) const DEVICE_STATE: std::ops::Range<usize> = 24..32;

/// `struct rw_node_device`, with version 0.
pub(super) fn device_bytes(ifindex: u32, device: &Device) -> [u8; DEVICE_BYTES] {
    let mut bytes = [0; 64];
    let (kind, master, mac): (u16, u32, [u8; 6]) = match device.kind {
        DeviceKind::Pod { mac, bridge } => (1, bridge.unwrap_or(0), mac),
        DeviceKind::Bridge { .. } => (2, 0, [0; 6]),
        DeviceKind::Other => (3, 0, [0; 6]),
        DeviceKind::Ask => (4, 0, [0; 6]),
    };
    let mut flags = if device.no_link { NO_LINK } else { 0 };
    if device.kind == (DeviceKind::Bridge { pods_alone: true }) {
        flags |= PODS_ALONE;
    }
    bytes[0..2].copy_from_slice(&kind.to_ne_bytes());
    bytes[2..4].copy_from_slice(&flags.to_ne_bytes());
    bytes[8..12].copy_from_slice(&master.to_ne_bytes());
    bytes[12..16].copy_from_slice(&ifindex.to_ne_bytes());
    bytes[16..22].copy_from_slice(&mac);
    // None, as it is compared: the first is always a mapped address there, the second never.
    let none = [Ipv6Addr::UNSPECIFIED, Ipv4Addr::UNSPECIFIED.to_ipv6_mapped()];
    let v4 = device
        .address_v4
        .map_or(none[0], |address| address.to_ipv6_mapped());
    let v6 = device.address_v6.unwrap_or(none[1]);
    bytes[32..48].copy_from_slice(&v4.octets());
    bytes[48..64].copy_from_slice(&v6.octets());
    bytes
}

/// The Ethernet address of a pod's own end, of what [`device_bytes`] wrote.
pub(super) fn read_pod_mac(bytes: &[u8]) -> Option<[u8; 6]> {
    let is_pod = bytes.first_chunk().copied().map(u16::from_ne_bytes) == Some(1);
    is_pod.then_some(*bytes.get(16..)?.first_chunk()?)
}

/// An address as the programs have it: network byte order, IPv4 as ::ffff:a.b.c.d.
pub(super) fn address_key(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
        IpAddr::V6(address) => address.octets(),
    }
}

/// `struct rw_node_address`.
pub(super) fn address_bytes(address: Address) -> [u8; 8] {
    let (ifindex, kind): (u32, u32) = match address {
        Address::Pod { port } => (port, 1),
        Address::Host => (0, 2),
    };
    let mut bytes = [0; 8];
    bytes[0..4].copy_from_slice(&ifindex.to_ne_bytes());
    bytes[4..8].copy_from_slice(&kind.to_ne_bytes());
    bytes
}

/// What [`address_key`] and [`address_bytes`] wrote.
pub(super) fn read_address(key: &[u8], value: &[u8]) -> Option<(IpAddr, Address)> {
    let address = IpAddr::from(*key.first_chunk::<16>()?).to_canonical();
    let word = |at: usize| Some(u32::from_ne_bytes(*value.get(at..)?.first_chunk()?));
    let whose = match word(4)? {
        1 => Address::Pod { port: word(0)? },
        _ => Address::Host,
    };
    Some((address, whose))
}

/// `struct rw_service_key`.
pub(super) fn service_key(prefix: IpNet) -> Vec<u8> {
    let more = if prefix.addr().is_ipv4() { 96 } else { 0 };
    let mut key = (u32::from(prefix.prefix_len()) + more).to_ne_bytes().to_vec();
    key.extend(address_key(prefix.network()));
    key
}
