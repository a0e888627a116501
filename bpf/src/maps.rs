//! The port's maps: layouts of `bpf/src/c/ringwall.h`, and how their content is replaced.

use std::{
    collections::BTreeSet,
    io,
    net::IpAddr,
    os::fd::{AsFd, AsRawFd, BorrowedFd},
    path::Path,
};

use ipnet::IpNet;
use libbpf_rs::{MapCore, MapFlags, MapHandle};

use crate::{BpfError, Counter, Counters, Failsafe, error::wrap};

/// Names of the maps, which are also the names of their pins. `port_config` is pinned last: it says whose the rest is.
pub(crate) const MAPS: [&str; 9] = [
    "xsks",
    "wire_peer",
    "local4",
    "local6",
    "pods4",
    "pods6",
    "failsafe",
    "counters",
    "port_config",
];

pub(crate) const MAX_QUEUES: usize = 256;
pub(crate) const MAX_LOCAL: usize = 4096;
/// Most prefixes of pods that the programs of a port hold, both families together.
pub const MAX_PREFIXES: usize = 131_072;
pub(crate) const MAX_FAILSAFE: usize = 32;

pub(crate) const FLAG_FAIL_OPEN: u32 = 1;
pub(crate) const FLAG_JUDGE_ALL: u32 = 2;
pub(crate) const FLAG_PEER_BY_SKB: u32 = 4;
pub(crate) const FLAG_GUARD_REDIRECT: u32 = 8;

/// `struct rw_config`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct PortConfig {
    pub(crate) build_id: u64,
    pub(crate) role: u32,
    pub(crate) flags: u32,
    pub(crate) ifindex: u32,
    pub(crate) peer_ifindex: u32,
    pub(crate) guard_ifindex: u32,
    pub(crate) guard_mac: [u8; 6],
    pub(crate) failsafe_count: u16,
}

impl PortConfig {
    pub(crate) const BYTES: usize = 40;

    /// Layout of `struct rw_config`, host byte order; 4 bytes of padding at the end.
    pub(crate) fn to_bytes(self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        bytes[0..8].copy_from_slice(&self.build_id.to_ne_bytes());
        bytes[8..12].copy_from_slice(&self.role.to_ne_bytes());
        bytes[12..16].copy_from_slice(&self.flags.to_ne_bytes());
        bytes[16..20].copy_from_slice(&self.ifindex.to_ne_bytes());
        bytes[20..24].copy_from_slice(&self.peer_ifindex.to_ne_bytes());
        bytes[24..28].copy_from_slice(&self.guard_ifindex.to_ne_bytes());
        bytes[28..34].copy_from_slice(&self.guard_mac);
        bytes[34..36].copy_from_slice(&self.failsafe_count.to_ne_bytes());
        bytes
    }
}

/// Key of `pods4` or `pods6`: `struct rw_prefix4`, `struct rw_prefix6`.
fn prefix_key(prefix: &IpNet) -> Vec<u8> {
    let mut key = u32::from(prefix.prefix_len()).to_ne_bytes().to_vec();
    match prefix.network() {
        IpAddr::V4(address) => key.extend(address.octets()),
        IpAddr::V6(address) => key.extend(address.octets()),
    }
    key
}

/// Four words of an address or mask as `struct rw_failsafe` has them.
fn words(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V6(address) => address.octets(),
        IpAddr::V4(address) => {
            let mut bytes = [0; 16];
            bytes[..4].copy_from_slice(&address.octets());
            bytes
        }
    }
}

/// `struct rw_failsafe`.
fn failsafe_value(entry: &Failsafe) -> [u8; 72] {
    let mut bytes = [0; 72];
    bytes[0..16].copy_from_slice(&words(entry.from.network()));
    bytes[16..32].copy_from_slice(&words(entry.from.netmask()));
    bytes[32..48].copy_from_slice(&words(entry.to.network()));
    bytes[48..64].copy_from_slice(&words(entry.to.netmask()));
    let family: u16 = if entry.from.addr().is_ipv4() { 4 } else { 6 };
    let protocol = entry.protocol.map_or(0xffff, u16::from);
    let (low, high) = entry.ports.unwrap_or((1, 0));
    bytes[64..66].copy_from_slice(&family.to_ne_bytes());
    bytes[66..68].copy_from_slice(&protocol.to_ne_bytes());
    bytes[68..70].copy_from_slice(&low.to_ne_bytes());
    bytes[70..72].copy_from_slice(&high.to_ne_bytes());
    bytes
}

/// The maps of one port.
#[derive(Debug)]
pub(crate) struct Maps {
    handles: Vec<MapHandle>,
}

impl Maps {
    /// Takes handles in the order of [`MAPS`].
    pub(crate) fn new(handles: Vec<MapHandle>) -> Option<Self> {
        (handles.len() == MAPS.len()).then_some(Self { handles })
    }

    /// Opens the pins in a directory.
    pub(crate) fn open(directory: &Path) -> Result<Self, libbpf_rs::Error> {
        let handles: Result<_, _> = MAPS
            .iter()
            .map(|name| MapHandle::from_pinned_path(directory.join(name)))
            .collect();
        Ok(Self { handles: handles? })
    }

    fn map(&self, name: &str) -> Result<&MapHandle, BpfError> {
        MAPS.iter()
            .position(|&map| map == name)
            .and_then(|index| self.handles.get(index))
            .ok_or_else(|| BpfError::System {
                action: format!("find the map `{name}`"),
                source: io::ErrorKind::NotFound.into(),
            })
    }

    pub(crate) fn each(&self) -> impl Iterator<Item = (&'static str, BorrowedFd<'_>)> {
        MAPS.iter()
            .copied()
            .zip(self.handles.iter().map(|handle| handle.as_fd()))
    }

    /// The build that wrote the maps; None where the layout is another.
    pub(crate) fn build_id(&self) -> Option<u64> {
        let map = self.map("port_config").ok()?;
        if map.value_size() as usize != PortConfig::BYTES {
            return None;
        }
        let value = map.lookup(&0u32.to_ne_bytes(), MapFlags::ANY).ok()??;
        Some(u64::from_ne_bytes(value.get(..8)?.try_into().ok()?))
    }

    pub(crate) fn set_config(&self, config: PortConfig) -> Result<(), BpfError> {
        self.map("port_config")?
            .update(&0u32.to_ne_bytes(), &config.to_bytes(), MapFlags::ANY)
            .map_err(|error| wrap("write the port's configuration", error))
    }

    pub(crate) fn set_peer(&self, ifindex: u32) -> Result<(), BpfError> {
        self.map("wire_peer")?
            .update(&0u32.to_ne_bytes(), &ifindex.to_ne_bytes(), MapFlags::ANY)
            .map_err(|error| wrap("write the wire's other end", error))
    }

    pub(crate) fn set_socket(&self, queue: u16, socket: BorrowedFd<'_>) -> Result<(), BpfError> {
        check_count("receive queues", usize::from(queue) + 1, MAX_QUEUES)?;
        self.map("xsks")?
            .update(
                &u32::from(queue).to_ne_bytes(),
                &socket.as_raw_fd().to_ne_bytes(),
                MapFlags::ANY,
            )
            .map_err(|error| wrap(&format!("register the socket of queue {queue}"), error))
    }

    pub(crate) fn clear_socket(&self, queue: u16) -> Result<(), BpfError> {
        check_count("receive queues", usize::from(queue) + 1, MAX_QUEUES)?;
        match self.map("xsks")?.delete(&u32::from(queue).to_ne_bytes()) {
            Err(error) if error.kind() != libbpf_rs::ErrorKind::NotFound => {
                Err(wrap(&format!("empty the slot of queue {queue}"), error))
            }
            _ => Ok(()),
        }
    }

    /// Makes the keys of a set-like map these, adding before removing.
    fn replace(&self, name: &str, keys: BTreeSet<Vec<u8>>) -> Result<(), BpfError> {
        let map = self.map(name)?;
        let old: BTreeSet<Vec<u8>> = map.keys().collect();
        for key in keys.difference(&old) {
            map.update(key, &[1], MapFlags::ANY)
                .map_err(|error| wrap(&format!("add to `{name}`"), error))?;
        }
        for key in old.difference(&keys) {
            match map.delete(key) {
                Err(error) if error.kind() != libbpf_rs::ErrorKind::NotFound => {
                    return Err(wrap(&format!("remove from `{name}`"), error));
                }
                _ => {}
            }
        }
        Ok(())
    }

    pub(crate) fn set_local_addresses(&self, addresses: &[IpAddr]) -> Result<(), BpfError> {
        check_count("own addresses", addresses.len(), MAX_LOCAL)?;
        let (v4, v6): (Vec<&IpAddr>, Vec<&IpAddr>) = addresses.iter().partition(|address| address.is_ipv4());
        let octets = |address: &&IpAddr| match address {
            IpAddr::V4(address) => address.octets().to_vec(),
            IpAddr::V6(address) => address.octets().to_vec(),
        };
        self.replace("local4", v4.iter().map(octets).collect())?;
        self.replace("local6", v6.iter().map(octets).collect())
    }

    pub(crate) fn set_pod_cidrs(&self, prefixes: &[IpNet]) -> Result<(), BpfError> {
        check_count("pod prefixes", prefixes.len(), MAX_PREFIXES)?;
        let (v4, v6): (Vec<&IpNet>, Vec<&IpNet>) =
            prefixes.iter().partition(|prefix| prefix.addr().is_ipv4());
        self.replace("pods4", v4.into_iter().map(prefix_key).collect())?;
        self.replace("pods6", v6.into_iter().map(prefix_key).collect())
    }

    /// Writes the entries; their number is in the configuration, which the caller writes.
    pub(crate) fn set_failsafe(&self, entries: &[Failsafe]) -> Result<(), BpfError> {
        check_count("failsafe entries", entries.len(), MAX_FAILSAFE)?;
        let map = self.map("failsafe")?;
        for (index, entry) in entries.iter().enumerate() {
            map.update(
                &(index as u32).to_ne_bytes(),
                &failsafe_value(entry),
                MapFlags::ANY,
            )
            .map_err(|error| wrap("write the failsafe list", error))?;
        }
        Ok(())
    }

    pub(crate) fn counters(&self) -> Result<Counters, BpfError> {
        let map = self.map("counters")?;
        let mut counters = Counters::default();
        for counter in Counter::ALL {
            let index = counter as u32;
            let values = map
                .lookup_percpu(&index.to_ne_bytes(), MapFlags::ANY)
                .map_err(|error| wrap("read the counters", error))?;
            for value in values.into_iter().flatten() {
                if let Some(value) = value.get(..8).and_then(|bytes| bytes.try_into().ok()) {
                    counters.add(index as usize, u64::from_ne_bytes(value));
                }
            }
        }
        Ok(counters)
    }
}

fn check_count(what: &'static str, got: usize, max: usize) -> Result<(), BpfError> {
    if got > max {
        Err(BpfError::TooMany { what, got, max })
    } else {
        Ok(())
    }
}
