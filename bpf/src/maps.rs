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

/// Names of the maps that all ports share, which are also the names of their pins. `port_config` is pinned last: it says whose
/// the rest is.
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

/// Most ports of an installation.
pub const MAX_PORTS: usize = 8192;
/// The key of the build's name in `port_config`; no interface has this index.
const BUILD: u32 = 0;
pub(crate) const MAX_QUEUES: usize = 256;
pub(crate) const MAX_LOCAL: usize = 4096;
/// Most prefixes of pods that the programs of a port hold, both families together.
pub const MAX_PREFIXES: usize = 131_072;
pub(crate) const MAX_FAILSAFE: usize = 32;
pub(crate) const MAX_TUNNEL_PORTS: usize = 16;

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
    pub(crate) name: [u8; 16],
    pub(crate) tunnel_ports: [u16; MAX_TUNNEL_PORTS],
}

impl PortConfig {
    pub(crate) const BYTES: usize = if cfg!(feature = "neighbour") { 96 } else { 88 };
    /// Where the name is.
    const NAME: std::ops::Range<usize> = 36..52;

    /// Layout of `struct rw_config`, host byte order. What the programs write lies between name and ports.
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
        bytes[Self::NAME].copy_from_slice(&self.name);
        for (to, port) in bytes[56..88].chunks_exact_mut(2).zip(self.tunnel_ports) {
            to.copy_from_slice(&port.to_ne_bytes());
        }
        bytes
    }
}

/// A name of an interface as the maps have it.
pub(crate) fn name_bytes(name: &str) -> [u8; 16] {
    let mut bytes = [0; 16];
    for (to, from) in bytes.iter_mut().zip(name.bytes().take(15)) {
        *to = from;
    }
    bytes
}

/// The sockets of one port, by queue.
#[derive(Debug)]
pub(crate) struct PortSockets(MapHandle);

impl PortSockets {
    /// An empty map.
    pub(crate) fn new() -> Result<Self, BpfError> {
        let options = libbpf_rs::libbpf_sys::bpf_map_create_opts {
            sz: std::mem::size_of::<libbpf_rs::libbpf_sys::bpf_map_create_opts>() as _,
            ..Default::default()
        };
        let map = MapHandle::create(
            libbpf_rs::MapType::Xskmap,
            Some("port_xsks"),
            4,
            4,
            MAX_QUEUES as u32,
            &options,
        );
        map.map(Self)
            .map_err(|error| wrap("make the map of a port's sockets", error))
    }

    /// The one that is pinned.
    pub(crate) fn open(path: &Path) -> Option<Self> {
        MapHandle::from_pinned_path(path).ok().map(Self)
    }

    pub(crate) fn set(&self, queue: u16, socket: BorrowedFd<'_>) -> Result<(), BpfError> {
        check_count("receive queues", usize::from(queue) + 1, MAX_QUEUES)?;
        self.0
            .update(
                &u32::from(queue).to_ne_bytes(),
                &socket.as_raw_fd().to_ne_bytes(),
                MapFlags::ANY,
            )
            .map_err(|error| wrap(&format!("register the socket of queue {queue}"), error))
    }

    pub(crate) fn clear(&self, queue: u16) -> Result<(), BpfError> {
        check_count("receive queues", usize::from(queue) + 1, MAX_QUEUES)?;
        match self.0.delete(&u32::from(queue).to_ne_bytes()) {
            Err(error) if error.kind() != libbpf_rs::ErrorKind::NotFound => {
                Err(wrap(&format!("empty the slot of queue {queue}"), error))
            }
            _ => Ok(()),
        }
    }
}

impl AsFd for PortSockets {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
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

/// The maps that all ports share.
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
        let value = map.lookup(&BUILD.to_ne_bytes(), MapFlags::ANY).ok()??;
        Some(u64::from_ne_bytes(value.get(..8)?.try_into().ok()?))
    }

    /// Says who wrote the maps.
    pub(crate) fn set_build(&self, build_id: u64) -> Result<(), BpfError> {
        let config = PortConfig {
            build_id,
            ..PortConfig::default()
        };
        self.map("port_config")?
            .update(&BUILD.to_ne_bytes(), &config.to_bytes(), MapFlags::ANY)
            .map_err(|error| wrap("write the build", error))
    }

    /// Makes an interface known, or writes its configuration again.
    pub(crate) fn set_config(&self, config: PortConfig) -> Result<(), BpfError> {
        let key = config.ifindex.to_ne_bytes();
        let counters = self.map("counters")?;
        let known = counters.lookup_percpu(&key, MapFlags::ANY);
        if known.is_ok_and(|known| known.is_none()) {
            let cpus = libbpf_rs::num_possible_cpus().map_err(|error| wrap("count the CPUs", error))?;
            let zeroes = vec![vec![0; 8 * Counter::ALL.len()]; cpus];
            counters
                .update_percpu(&key, &zeroes, MapFlags::ANY)
                .map_err(|error| wrap("make the port's counters", error))?;
        }
        self.map("port_config")?
            .update(&key, &config.to_bytes(), MapFlags::ANY)
            .map_err(|error| wrap("write the port's configuration", error))
    }

    /// The interfaces that are known by a name: one that was made anew has another index.
    fn indices_of(&self, name: &str) -> Vec<[u8; 4]> {
        let Ok(map) = self.map("port_config") else {
            return Vec::new();
        };
        let wanted = name_bytes(name);
        map.keys()
            .filter_map(|key| <[u8; 4]>::try_from(key).ok())
            .filter(|key| {
                let value = map.lookup(key, MapFlags::ANY).ok().flatten();
                value.is_some_and(|value| value.get(PortConfig::NAME) == Some(wanted.as_slice()))
            })
            .collect()
    }

    /// Forgets the interfaces of a name, except one.
    pub(crate) fn remove_others(&self, name: &str, except: Option<u32>) -> Result<(), BpfError> {
        for key in self.indices_of(name) {
            if Some(u32::from_ne_bytes(key)) == except {
                continue;
            }
            for map in ["xsks", "wire_peer", "port_config", "counters"] {
                match self.map(map)?.delete(&key) {
                    Err(error) if error.kind() != libbpf_rs::ErrorKind::NotFound => {
                        return Err(wrap(&format!("forget `{name}`"), error));
                    }
                    _ => {}
                }
            }
        }
        Ok(())
    }

    pub(crate) fn set_peer(&self, ifindex: u32, peer: u32) -> Result<(), BpfError> {
        self.map("wire_peer")?
            .update(&ifindex.to_ne_bytes(), &peer.to_ne_bytes(), MapFlags::ANY)
            .map_err(|error| wrap("write the wire's other end", error))
    }

    /// Whether the programs are led to a port's sockets.
    pub(crate) fn has_sockets(&self, ifindex: u32) -> bool {
        self.map("xsks")
            .ok()
            .and_then(|map| map.lookup(&ifindex.to_ne_bytes(), MapFlags::ANY).ok()?)
            .is_some()
    }

    /// Leads the programs to a port's sockets.
    pub(crate) fn set_sockets(&self, ifindex: u32, sockets: &PortSockets) -> Result<(), BpfError> {
        self.map("xsks")?
            .update(
                &ifindex.to_ne_bytes(),
                &sockets.as_fd().as_raw_fd().to_ne_bytes(),
                MapFlags::ANY,
            )
            .map_err(|error| wrap("lead to the port's sockets", error))
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

    /// What was counted for an interface.
    pub(crate) fn counters(&self, ifindex: u32) -> Result<Counters, BpfError> {
        let mut counters = Counters::default();
        let values = self
            .map("counters")?
            .lookup_percpu(&ifindex.to_ne_bytes(), MapFlags::ANY)
            .map_err(|error| wrap("read the counters", error))?;
        for value in values.into_iter().flatten() {
            for (index, value) in value.chunks_exact(8).enumerate() {
                if let Ok(value) = value.try_into() {
                    counters.add(index, u64::from_ne_bytes(value));
                }
            }
        }
        Ok(counters)
    }
}

pub(crate) fn check_count(what: &'static str, got: usize, max: usize) -> Result<(), BpfError> {
    if got > max {
        Err(BpfError::TooMany { what, got, max })
    } else {
        Ok(())
    }
}
