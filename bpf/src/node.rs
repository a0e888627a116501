//! The programs of a node: load, pin, take over, attach, feed, detach.
//!
//! * [`Node`] programs and maps of an installation. [`NodeMemory`] what workers write by memory.
//! * [`TcAttachment`] how they are attached to devices.
//! * [`counters`] what the programs count.

mod attachment;
pub mod counters;
mod layout;
mod memory;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    mem::MaybeUninit,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use ipnet::IpNet;
use libbpf_rs::{
    MapCore, MapFlags, MapHandle,
    btf::{Btf, types::Func},
    skel::{OpenSkel, SkelBuilder},
};

pub use attachment::{TcAttachment, detach, filter_obstacles};
pub use counters::{Count, NodeCounters, Note, Outcome, Program};
pub use layout::MAX_OVERLAY_PORTS;
pub use memory::{Area, EPOCHS, NodeMemory};

use crate::{
    BpfError, FailMode,
    error::wrap,
    kernel,
    maps::check_count,
    node::layout::Secrets,
    port::{ensure_pins, remove_pin},
    skeleton::node::NodeSkelBuilder,
};

/// Directory of the pins of a node's programs and maps. No interface has so long a name, so no port has it.
const DIRECTORY: &str = "node-programs-and-maps";
/// Beside them, the directory of its links.
const LINKS: &str = "node-links-of-devices";

/// Most devices.
pub const MAX_DEVICES: usize = 8192;
/// Most addresses of pods and of the host.
pub const MAX_ADDRESSES: usize = 65_536;
/// Most prefixes of Services.
pub const MAX_SERVICE_PREFIXES: usize = 1024;
/// Most queues of the ask pair.
pub const MAX_ASK_QUEUES: usize = 256;
/// Most buckets of the flow cache, of 8 flows each.
pub const MAX_BUCKETS: u32 = 1 << 20;

/// Where a program is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Hook {
    /// tc ingress of a pod's port.
    FromPod,
    /// tc egress of every device.
    Exit,
    /// tc ingress of a device that is no pod's port.
    FromNet,
    /// tc ingress of the near end of the ask pair.
    Back,
    /// XDP of the far end of the ask pair.
    Judge,
}

impl Hook {
    /// In the order of the loaded programs.
    pub const ALL: [Hook; 5] = [Hook::FromPod, Hook::Exit, Hook::FromNet, Hook::Back, Hook::Judge];

    fn name(self) -> &'static str {
        match self {
            Hook::FromPod => "from_pod",
            Hook::Exit => "exit",
            Hook::FromNet => "from_net",
            Hook::Back => "back",
            Hook::Judge => "judge",
        }
    }
}

/// A limit on what one pod may ask.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AskLimit {
    /// In the long run.
    pub per_second: u32,
    /// At once.
    pub burst: u32,
}

/// What holds for all devices.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeConfig {
    /// Index of the near end of the ask pair; 0 where there is none.
    pub ask_ifindex: u32,
    /// Receive queues of the far end that have sockets.
    pub ask_queues: u32,
    /// The longest frame that is asked, in bytes with its link header: MTU of the ask pair less 120 for the header; 0: no limit.
    pub ask_mtu: u32,
    /// What each pod may ask; None: no limit.
    pub ask_limit: Option<AskLimit>,
    /// Frames that a queue of the ask pair holds. Of those that are free, one pod's first packets may take an eighth; 0: no limit, for workers that do not
    /// say what they have taken.
    pub ask_places: u32,
    /// What happens without workers.
    pub fail_mode: FailMode,
    /// What would drop passes, and is counted.
    pub audit: bool,
    /// Workers judge; until then what would be asked follows the fail mode.
    pub enforcing: bool,
    /// Workers whose newest tick is older count as dead.
    pub stale_after: Duration,
    /// UDP ports that overlays take packets out of; pods may not send there.
    pub overlay_ports: Vec<u16>,
}

impl Default for NodeConfig {
    fn default() -> Self {
        Self {
            ask_ifindex: 0,
            ask_queues: 1,
            ask_mtu: 0,
            ask_limit: None,
            ask_places: 0,
            fail_mode: FailMode::Closed,
            audit: false,
            enforcing: false,
            stale_after: Duration::from_secs(1),
            overlay_ports: Vec::new(),
        }
    }
}

/// What a device is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceKind {
    /// The host's end of a pod's veth.
    Pod {
        /// Ethernet address of the pod's own end.
        mac: [u8; 6],
        /// The bridge that it is a port of.
        bridge: Option<u32>,
    },
    /// A bridge: what comes up from it was sent by what is behind its ports.
    Bridge {
        /// All its ports are pods'.
        pods_alone: bool,
    },
    /// An uplink, an overlay, anything else.
    Other,
    /// The near end of the ask pair.
    Ask,
}

impl DeviceKind {
    /// The programs that belong there. A bridge has none, since its ports have them: a translated packet for a neighbour that is not
    /// known yet passes the bridge's own egress in the middle of the bridge's netfilter, with a connection that is not confirmed. Asked
    /// there, it would lose its translation.
    pub fn hooks(self) -> &'static [Hook] {
        match self {
            DeviceKind::Pod { .. } => &[Hook::FromPod, Hook::Exit],
            DeviceKind::Other => &[Hook::FromNet, Hook::Exit],
            DeviceKind::Bridge { .. } => &[],
            DeviceKind::Ask => &[Hook::Back],
        }
    }
}

/// A device as the programs know it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Device {
    /// What it is.
    pub kind: DeviceKind,
    /// Its packets begin with the IP header (TUN, IPIP, WireGuard).
    pub no_link: bool,
    /// One of a pod's addresses, which the programs need not look up. Whose addresses are is said by [`Node::set_addresses`] all
    /// the same.
    pub address_v4: Option<Ipv4Addr>,
    /// Likewise.
    pub address_v6: Option<Ipv6Addr>,
}

impl Device {
    /// A device that is no pod's port, with a link header.
    pub fn new(kind: DeviceKind) -> Self {
        Self {
            kind,
            no_link: false,
            address_v4: None,
            address_v6: None,
        }
    }
}

/// Whose an address is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Address {
    /// A pod's of this node.
    Pod {
        /// Index of its port.
        port: u32,
    },
    /// This host's.
    Host,
}

/// Names of the maps, which are also the names of their pins. `node_config` is pinned last: it says whose the rest is.
const MAPS: [&str; 15] = [
    "node_pulse",
    "node_devices",
    "device_places",
    "node_addresses",
    "service_cidrs",
    "ask_tokens",
    "ask_queues",
    "ask_shares",
    "node_counters",
    "ask_sockets",
    "flow_buckets",
    "flow_entries",
    "flow_usage",
    "flow_epochs",
    "node_config",
];

fn build_id() -> u64 {
    env!("RINGWALL_NODE_BUILD_ID").parse().unwrap_or(0)
}

/// The programs and maps of a node. Dropping it leaves everything pinned and attached.
#[derive(Debug)]
pub struct Node {
    pins: PathBuf,
    attachment: TcAttachment,
    /// In the order of [`Hook::ALL`].
    programs: [OwnedFd; 5],
    /// In the order of [`MAPS`].
    maps: Vec<MapHandle>,
    memory: Arc<NodeMemory>,
    secrets: Secrets,
    reused: bool,
}

impl Node {
    /// Loads the programs and pins them with their maps, or takes over those of a predecessor of the same build, whose
    /// flow cache goes on. Those of another build are replaced one by one as devices are attached: fill the maps first.
    ///
    /// `buckets` is the number of buckets of the flow cache, of 8 flows each; a power of two. Nothing is attached yet.
    ///
    /// # Errors
    /// The kernel refuses, or there is no BPF file system at `pins`.
    pub fn load(pins: &Path, buckets: u32, attachment: TcAttachment) -> Result<Self, BpfError> {
        crate::log::quiet();
        let directory = pins.join(DIRECTORY);
        for made in [&directory, &pins.join(LINKS)] {
            ensure_pins(pins, made)?;
        }
        let buckets = buckets.clamp(1, MAX_BUCKETS).next_power_of_two();
        let (programs, maps, secrets, reused) = match reuse(&directory, buckets) {
            Some((programs, maps, secrets)) => (programs, maps, secrets, true),
            None => {
                let (programs, maps) = load(buckets)?;
                let secrets = draw_secrets()?;
                (programs, maps, secrets, false)
            }
        };
        let array = |name| find_map(&maps, name).map(AsFd::as_fd);
        let arrays = [
            array("flow_buckets")?,
            array("flow_entries")?,
            array("flow_usage")?,
            array("flow_epochs")?,
            array("node_pulse")?,
            array("device_places")?,
            array("ask_queues")?,
        ];
        let memory = NodeMemory::map(arrays, buckets)
            .map_err(|source| BpfError::system("map the flow cache into memory", source))?;
        let node = Self {
            pins: pins.to_owned(),
            attachment,
            programs,
            maps,
            memory: Arc::new(memory),
            secrets,
            reused,
        };
        if !reused {
            node.set_config(&NodeConfig::default())?;
            node.pin(&directory)?;
        }
        Ok(node)
    }

    fn pin(&self, directory: &Path) -> Result<(), BpfError> {
        let pin = |name: &str, object: BorrowedFd<'_>| {
            let path = directory.join(name);
            remove_pin(&path)?;
            kernel::pin(object, &path)
                .map_err(|source| BpfError::system(format!("pin {}", path.display()), source))
        };
        // The configuration first goes and is last to come: its build vouches for the rest.
        remove_pin(&directory.join("node_config"))?;
        for (hook, program) in Hook::ALL.iter().zip(&self.programs) {
            pin(hook.name(), program.as_fd())?;
        }
        MAPS.iter()
            .zip(&self.maps)
            .try_for_each(|(name, map)| pin(name, map.as_fd()))
    }

    /// Whether programs and maps of a predecessor go on as they are.
    pub fn reused(&self) -> bool {
        self.reused
    }

    /// What workers and publisher share with the programs.
    pub fn memory(&self) -> Arc<NodeMemory> {
        self.memory.clone()
    }

    /// What the headers of asks and answers carry to show that they are genuine.
    pub fn nonce(&self) -> [u32; 2] {
        self.secrets.nonce
    }

    fn map(&self, name: &str) -> Result<&MapHandle, BpfError> {
        find_map(&self.maps, name)
    }

    fn write(&self, map: &str, key: &[u8], value: &[u8], what: &str) -> Result<(), BpfError> {
        self.map(map)?
            .update(key, value, MapFlags::ANY)
            .map_err(|error| wrap(what, error))
    }

    fn remove(&self, map: &str, key: &[u8], what: &str) -> Result<(), BpfError> {
        match self.map(map)?.delete(key) {
            Err(error) if error.kind() != libbpf_rs::ErrorKind::NotFound => Err(wrap(what, error)),
            _ => Ok(()),
        }
    }

    /// Writes what holds for all devices.
    ///
    /// # Errors
    /// Too many overlay ports, or the kernel refuses.
    pub fn set_config(&self, config: &NodeConfig) -> Result<(), BpfError> {
        check_count(
            "UDP ports of overlays",
            config.overlay_ports.len(),
            MAX_OVERLAY_PORTS,
        )?;
        let bytes = layout::config_bytes(build_id(), self.secrets, config);
        self.write(
            "node_config",
            &0_u32.to_ne_bytes(),
            &bytes,
            "write the node's configuration",
        )
    }

    /// Makes a device known, or writes what it is again.
    ///
    /// # Errors
    /// The kernel refuses: too many devices.
    pub fn set_device(&self, ifindex: u32, device: &Device) -> Result<(), BpfError> {
        let bytes = layout::device_bytes(ifindex, device);
        self.memory.change_place(ifindex, Some(&bytes), || {
            self.write(
                "node_devices",
                &ifindex.to_ne_bytes(),
                &bytes,
                &format!("make the device with index {ifindex} known"),
            )
        })
    }

    /// The indices of the devices that are known.
    ///
    /// # Errors
    /// The maps are not there.
    pub fn devices(&self) -> Result<BTreeSet<u32>, BpfError> {
        let keys = self.map("node_devices")?.keys();
        Ok(keys
            .filter_map(|key| key.first_chunk().copied())
            .map(u32::from_ne_bytes)
            .collect())
    }

    /// Forgets a device: what its programs still see of it drops.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn remove_device(&self, ifindex: u32) -> Result<(), BpfError> {
        let what = format!("forget the device with index {ifindex}");
        self.memory.change_place(ifindex, None, || {
            self.remove("node_devices", &ifindex.to_ne_bytes(), &what)
        })?;
        self.remove("ask_tokens", &ifindex.to_ne_bytes(), &what)?;
        (0..MAX_ASK_QUEUES as u32).try_for_each(|queue| {
            let share = [ifindex.to_ne_bytes(), queue.to_ne_bytes()].concat();
            self.remove("ask_shares", &share, &what)
        })
    }

    /// Makes these the addresses of local pods and of the host. New ones are added before old ones go.
    ///
    /// # Errors
    /// Too many, or the kernel refuses.
    pub fn set_addresses(&self, addresses: &BTreeMap<IpAddr, Address>) -> Result<(), BpfError> {
        check_count(
            "addresses of pods and of the host",
            addresses.len(),
            MAX_ADDRESSES,
        )?;
        let wanted = addresses.iter().map(|(&address, &whose)| {
            (
                layout::address_key(address).to_vec(),
                layout::address_bytes(whose).to_vec(),
            )
        });
        self.replace("node_addresses", wanted.collect())
    }

    /// Whose addresses are, as the programs know it: what a predecessor wrote, at first.
    ///
    /// # Errors
    /// The maps are not there, or the kernel refuses.
    pub fn addresses(&self) -> Result<BTreeMap<IpAddr, Address>, BpfError> {
        let map = self.map("node_addresses")?;
        let mut found = BTreeMap::new();
        for key in map.keys() {
            let value = map
                .lookup(&key, MapFlags::ANY)
                .map_err(|error| wrap("read whose an address is", error))?;
            found.extend(value.and_then(|value| layout::read_address(&key, &value)));
        }
        Ok(found)
    }

    /// The Ethernet addresses of pods' own ends by their port's index, as the programs know them.
    ///
    /// # Errors
    /// The maps are not there, or the kernel refuses.
    pub fn pod_macs(&self) -> Result<BTreeMap<u32, [u8; 6]>, BpfError> {
        let map = self.map("node_devices")?;
        let mut found = BTreeMap::new();
        for key in map.keys() {
            let value = map
                .lookup(&key, MapFlags::ANY)
                .map_err(|error| wrap("read what a device is", error))?;
            let index = key.first_chunk().copied().map(u32::from_ne_bytes);
            found.extend(index.zip(value.and_then(|value| layout::read_pod_mac(&value))));
        }
        Ok(found)
    }

    /// Adds an address, or says whose it is now.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn set_address(&self, address: IpAddr, whose: Address) -> Result<(), BpfError> {
        self.write(
            "node_addresses",
            &layout::address_key(address),
            &layout::address_bytes(whose),
            &format!("write whose {address} is"),
        )
    }

    /// Removes an address. Fine where it is not there.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn remove_address(&self, address: IpAddr) -> Result<(), BpfError> {
        let what = format!("remove the address {address}");
        self.remove("node_addresses", &layout::address_key(address), &what)
    }

    /// Makes these the prefixes of Services. New ones are added before old ones go. Decisions that are cached already stand until
    /// their epochs are bumped.
    ///
    /// # Errors
    /// Too many, or the kernel refuses.
    pub fn set_service_cidrs(&self, prefixes: &[IpNet]) -> Result<(), BpfError> {
        check_count("prefixes of Services", prefixes.len(), MAX_SERVICE_PREFIXES)?;
        let wanted = prefixes
            .iter()
            .map(|&prefix| (layout::service_key(prefix), vec![1]));
        self.replace("service_cidrs", wanted.collect())
    }

    /// Makes a map's content this, adding before removing.
    fn replace(&self, name: &str, wanted: BTreeMap<Vec<u8>, Vec<u8>>) -> Result<(), BpfError> {
        let map = self.map(name)?;
        let old: BTreeSet<Vec<u8>> = map.keys().collect();
        for (key, value) in &wanted {
            self.write(name, key, value, &format!("add to `{name}`"))?;
        }
        for key in old.iter().filter(|key| !wanted.contains_key(*key)) {
            self.remove(name, key, &format!("remove from `{name}`"))?;
        }
        Ok(())
    }

    /// Gives the asks of a queue to an AF_XDP socket bound to the far end of the ask pair. The slot empties itself when
    /// the socket closes. What waited for an earlier socket waits no longer.
    ///
    /// # Errors
    /// The queue is beyond the map, or the kernel refuses the socket.
    pub fn register_socket(&self, queue: u16, socket: BorrowedFd<'_>) -> Result<(), BpfError> {
        check_count("queues of the ask pair", usize::from(queue) + 1, MAX_ASK_QUEUES)?;
        self.memory.forget_asks(queue);
        self.write(
            "ask_sockets",
            &u32::from(queue).to_ne_bytes(),
            &socket.as_raw_fd().to_ne_bytes(),
            &format!("register the socket of queue {queue} of the ask pair"),
        )
    }

    /// What the programs have counted since they were loaded.
    ///
    /// # Errors
    /// The kernel refuses to read the map.
    pub fn counters(&self) -> Result<NodeCounters, BpfError> {
        let map = self.map("node_counters")?;
        let mut counts = [Count::default(); counters::COUNTERS];
        for (index, count) in counts.iter_mut().enumerate() {
            let cpus = map
                .lookup_percpu(&(index as u32).to_ne_bytes(), MapFlags::ANY)
                .map_err(|error| wrap("read the node's counters", error))?;
            for cpu in cpus.into_iter().flatten() {
                let word = |at: usize| cpu.get(at..).and_then(|rest| rest.first_chunk().copied());
                count.packets += word(0).map_or(0, u64::from_ne_bytes);
                count.bytes += word(8).map_or(0, u64::from_ne_bytes);
                count.audited += word(16).map_or(0, u64::from_ne_bytes);
            }
        }
        Ok(NodeCounters(counts))
    }

    fn program(&self, hook: Hook) -> BorrowedFd<'_> {
        let [from_pod, exit, from_net, back, judge] = &self.programs;
        match hook {
            Hook::FromPod => from_pod,
            Hook::Exit => exit,
            Hook::FromNet => from_net,
            Hook::Back => back,
            Hook::Judge => judge,
        }
        .as_fd()
    }

    /// Makes a device known and attaches what belongs there. Not for the far end of the ask pair, which
    /// is another namespace's: see [`Node::attach`].
    ///
    /// # Errors
    /// As [`Node::set_device`] and [`Node::attach`].
    pub fn guard(&self, ifindex: u32, device: &Device) -> Result<(), BpfError> {
        self.set_device(ifindex, device)?;
        let hooks = device.kind.hooks();
        for &hook in hooks {
            self.attach(ifindex, hook)?;
        }
        // It may have been of another kind before: a veth whose far end went into a pod, a device that has become a bridge.
        self.take_off_but(ifindex, hooks)
    }

    /// Takes the programs off a device of the calling thread's network namespace, or removes what is left of one that is gone, and forgets it.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn release(&self, ifindex: u32) -> Result<(), BpfError> {
        self.take_off_but(ifindex, &[])?;
        self.remove_device(ifindex)
    }

    /// The kernel's id of a program, 0 where it cannot be told.
    pub fn program_id(&self, hook: Hook) -> u32 {
        kernel::program_id(self.program(hook)).unwrap_or(0)
    }
}

/// Whether a node's programs are pinned there.
pub fn is_installed(pins: &Path) -> bool {
    pins.join(DIRECTORY).exists()
}

fn find_map<'a>(maps: &'a [MapHandle], name: &str) -> Result<&'a MapHandle, BpfError> {
    MAPS.iter()
        .position(|&map| map == name)
        .and_then(|index| maps.get(index))
        .ok_or_else(|| BpfError::System {
            action: format!("find the map `{name}`"),
            source: io::ErrorKind::NotFound.into(),
        })
}

/// Opens what a predecessor of the same build pinned.
fn reuse(directory: &Path, buckets: u32) -> Option<([OwnedFd; 5], Vec<MapHandle>, Secrets)> {
    let maps: Vec<MapHandle> = MAPS
        .iter()
        .map(|name| MapHandle::from_pinned_path(directory.join(name)))
        .collect::<Result<_, _>>()
        .ok()?;
    let config = find_map(&maps, "node_config").ok()?;
    let config = config.lookup(&0_u32.to_ne_bytes(), MapFlags::ANY).ok()??;
    let (build, secrets) = layout::read_config(&config)?;
    if build != build_id() || find_map(&maps, "flow_buckets").ok()?.max_entries() != buckets {
        return None;
    }
    let [from_pod, exit, from_net, back, judge] =
        Hook::ALL.map(|hook| kernel::open_pin(&directory.join(hook.name())).ok());
    Some(([from_pod?, exit?, from_net?, back?, judge?], maps, secrets))
}

/// Loads new programs and maps.
fn load(buckets: u32) -> Result<([OwnedFd; 5], Vec<MapHandle>), BpfError> {
    let action = "load the programs of the node";
    let log = crate::log::Capture::start();
    let failed = |error| log.explain(action, error);
    let mut storage = MaybeUninit::uninit();
    let mut open = NodeSkelBuilder::default().open(&mut storage).map_err(failed)?;
    if let Some(rodata) = open.maps.rodata_data.as_deref_mut() {
        rodata.flow_bucket_mask = buckets - 1;
        rodata.has_casts = u8::from(has_casts());
    }
    open.maps.flow_buckets.set_max_entries(buckets).map_err(failed)?;
    open.maps
        .flow_entries
        .set_max_entries(buckets * 8)
        .map_err(failed)?;
    open.maps
        .flow_usage
        .set_max_entries(buckets * 8)
        .map_err(failed)?;
    let skeleton = open.load().map_err(failed)?;
    let own = |fd: BorrowedFd<'_>| {
        fd.try_clone_to_owned()
            .map_err(|source| BpfError::system("keep a program of the node", source))
    };
    let programs = [
        own(skeleton.progs.node_from_pod.as_fd())?,
        own(skeleton.progs.node_exit.as_fd())?,
        own(skeleton.progs.node_from_net.as_fd())?,
        own(skeleton.progs.node_back.as_fd())?,
        own(skeleton.progs.node_judge.as_fd())?,
    ];
    let maps = &skeleton.maps;
    // The order of `MAPS`.
    let handles: Result<Vec<MapHandle>, _> = [
        &maps.node_pulse,
        &maps.node_devices,
        &maps.device_places,
        &maps.node_addresses,
        &maps.service_cidrs,
        &maps.ask_tokens,
        &maps.ask_queues,
        &maps.ask_shares,
        &maps.node_counters,
        &maps.ask_sockets,
        &maps.flow_buckets,
        &maps.flow_entries,
        &maps.flow_usage,
        &maps.flow_epochs,
        &maps.node_config,
    ]
    .into_iter()
    .map(MapHandle::try_from)
    .collect();
    Ok((programs, handles.map_err(|error| wrap(action, error))?))
}

/// Whether the kernel lets programs read its memory by a cast (Linux 6.2), without a call for each read.
fn has_casts() -> bool {
    let Ok(kernel) = Btf::from_vmlinux() else {
        return false;
    };
    ["bpf_rdonly_cast", "bpf_cast_to_kern_ctx"]
        .iter()
        .all(|name| kernel.type_by_name::<Func<'_>>(name).is_some())
}

fn draw_secrets() -> Result<Secrets, BpfError> {
    let mut bytes = [0; 24];
    fs::File::open("/dev/urandom")
        .and_then(|mut source| io::Read::read_exact(&mut source, &mut bytes))
        .map_err(|source| BpfError::system("draw secrets from /dev/urandom", source))?;
    let long = |at: usize| {
        let bytes = bytes.get(at..).and_then(|rest| rest.first_chunk().copied());
        bytes.map_or(0, u64::from_ne_bytes)
    };
    let nonce = long(16);
    Ok(Secrets {
        hash: [long(0), long(8)],
        nonce: [nonce as u32, (nonce >> 32) as u32],
    })
}
