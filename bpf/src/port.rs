//! A port's programs: attach, feed, detach.

use std::{
    collections::BTreeMap,
    fs, io,
    mem::MaybeUninit,
    net::IpAddr,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
};

use ipnet::IpNet;
use libbpf_rs::{
    MapHandle,
    skel::{OpenSkel, SkelBuilder},
};

use crate::{
    BpfError, Counters,
    error::wrap,
    guard, kernel,
    maps::{
        FLAG_FAIL_OPEN, FLAG_GUARD_REDIRECT, FLAG_JUDGE_ALL, FLAG_PEER_BY_SKB, MAX_TUNNEL_PORTS, Maps,
        PortConfig, PortSockets, check_count, name_bytes,
    },
    skeleton::RingwallSkelBuilder,
};

/// What to tell a user whose programs stay after a stop.
pub const DETACH_HINT: &str =
    "the programs stay attached so that the fail mode holds; `ringwall detach` removes them";

/// How the port takes part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PortRole {
    /// One end of a wire.
    Wire {
        /// Interface at the other end.
        peer: String,
        /// Every frame goes to the sockets; otherwise those without a pod address go straight to the peer.
        judge_all: bool,
    },
    /// Host side of a pod's veth: every IP unicast packet is judged, also those to the host's own addresses.
    Pod,
    /// Routed, leads to a network: packets to the host's own addresses that are not from a pod go to the kernel.
    Uplink,
    /// The judged (inner) end of the veth pair to the host's kernel.
    Host,
}

/// What happens to packets while no socket is registered for their queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailMode {
    /// Packets to or from pods drop; others pass (routed: to the kernel, wire: to the peer).
    Closed,
    /// Everything passes.
    Open,
}

/// How to attach the XDP program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttachMode {
    /// Native, and generic where the driver has no XDP.
    Auto,
    /// Native or an error.
    Native,
    /// Generic.
    Generic,
}

/// How the XDP program is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum XdpMode {
    /// In the driver.
    Native,
    /// In the stack, after the skb was made: slow.
    Generic,
}

/// What the tc egress guard does with what the kernel itself would send out of the port to or from a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EgressGuard {
    /// No guard (wires, the host port).
    Off,
    /// Hand it to the host port, so that it is judged.
    Redirect {
        /// The kernel's end of the host port's veth pair.
        outer: String,
        /// The judged end; its Ethernet address becomes the packet's destination.
        inner: String,
    },
    /// Drop it.
    Drop,
}

/// Traffic to or from pods that passes without a dataplane, too, in both directions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failsafe {
    /// Addresses of the client end.
    pub from: IpNet,
    /// Addresses of the server end, of the same family.
    pub to: IpNet,
    /// IP protocol number; None is any.
    pub protocol: Option<u8>,
    /// Server ports, both ends inclusive; None is any. Needs a protocol.
    pub ports: Option<(u16, u16)>,
}

/// A port to attach to, in the calling thread's network namespace.
#[derive(Clone, Debug)]
pub struct PortSpec {
    /// Interface name.
    pub name: String,
    /// Directory of this installation on a BPF file system; the port's pins go to `PINS/NAME/`.
    pub pins: PathBuf,
    /// How the port takes part.
    pub role: PortRole,
    /// What holds without a socket.
    pub fail_mode: FailMode,
    /// How to attach.
    pub mode: AttachMode,
    /// What the kernel may send by itself.
    pub guard: EgressGuard,
    /// The host's own addresses (routed roles).
    pub local_addresses: Vec<IpAddr>,
    /// Where pods live.
    pub pod_cidrs: Vec<IpNet>,
    /// What passes in fail mode.
    pub failsafe: Vec<Failsafe>,
    /// UDP ports of tunnels, which do not pass in fail mode, besides those that the programs know.
    pub tunnel_ports: Vec<u16>,
}

/// Names of a port's pins: its link and its sockets.
const LINK: &str = "link";
const SOCKETS: &str = "sockets";
/// Beside them, a directory: the port's clsact qdisc is of our making.
const QDISC: &str = "qdisc";
/// Directory of the pins of what all ports share. No interface has so long a name.
const SHARED: &str = "programs-and-maps";
/// Names of the pins of the programs.
const PROGRAMS: [&str; 3] = ["port", "guard", "cross"];

/// Names the programs of this build.
const BUILD_ID: &str = env!("RINGWALL_BPF_BUILD_ID");

fn build_id() -> u64 {
    BUILD_ID.parse().unwrap_or(0)
}

/// The programs, in the order of [`PROGRAMS`], and their maps: one set for all ports.
#[derive(Debug)]
pub(crate) struct Loaded {
    pub(crate) programs: [OwnedFd; 3],
    pub(crate) maps: Maps,
}

/// A port whose programs are attached. Dropping it leaves them attached and pinned.
#[derive(Debug)]
pub struct AttachedPort {
    spec: PortSpec,
    config: PortConfig,
    ifindex: u32,
    mode: XdpMode,
    fallback: Option<String>,
    inherited: bool,
    reused: bool,
    loaded: Loaded,
    sockets: PortSockets,
    /// Whether the programs know the map of the port's sockets.
    sockets_known: bool,
    _link: OwnedFd,
}

/// What this process has last written for all ports of an installation, so that each further port costs nothing of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct WrittenState {
    local_addresses: Vec<IpAddr>,
    pod_cidrs: Vec<IpNet>,
    failsafe: Vec<Failsafe>,
}

/// By directory of the installation.
static WRITTEN: Mutex<BTreeMap<PathBuf, WrittenState>> = Mutex::new(BTreeMap::new());

fn written() -> MutexGuard<'static, BTreeMap<PathBuf, WrittenState>> {
    WRITTEN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Makes sure that a BPF file system is mounted at `root` (usually `/sys/fs/bpf`), mounting one where it is not.
///
/// A BPF file system lives as long as its mount: one that is mounted in a private mount namespace (`ip netns exec`
/// makes one) is gone with the last process there, and with it every pin.
///
/// # Errors
/// [`BpfError::NoBpffs`] where there is none and it cannot be mounted.
pub fn ensure_bpffs(root: &Path) -> Result<(), BpfError> {
    let none = |source| BpfError::NoBpffs {
        path: root.to_owned(),
        source,
    };
    if kernel::is_bpffs(root).unwrap_or(false) {
        return Ok(());
    }
    fs::create_dir_all(root).map_err(none)?;
    kernel::mount_bpffs(root).map_err(none)
}

/// Whether [`ensure_bpffs`] would have to mount something.
pub fn needs_bpffs(root: &Path) -> bool {
    !kernel::is_bpffs(root).unwrap_or(false)
}

/// Unmounts a BPF file system that [`ensure_bpffs`] mounted and nobody has put anything into. Fine where it is gone or in
/// use.
///
/// # Errors
/// The kernel refuses.
pub fn unmount_empty(root: &Path) -> Result<(), BpfError> {
    let empty = fs::read_dir(root).is_ok_and(|mut entries| entries.next().is_none());
    if !empty || needs_bpffs(root) {
        return Ok(());
    }
    match kernel::unmount(root) {
        Err(error)
            if !matches!(
                error.raw_os_error(),
                Some(libc::EINVAL | libc::ENOENT | libc::EBUSY)
            ) =>
        {
            Err(BpfError::system(format!("unmount {}", root.display()), error))
        }
        _ => Ok(()),
    }
}

/// What an interface can do and carries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceXdp {
    /// Whether its driver runs XDP programs; None where the kernel does not tell.
    pub native: Option<bool>,
    /// Whether its driver has zero-copy AF_XDP sockets; None where the kernel does not tell.
    pub zero_copy: Option<bool>,
    /// Whether its driver gives programs packets of several buffers, as jumbo frames are; None where the kernel does not tell.
    pub multi_buffer: Option<bool>,
    /// A program that is not of the installation whose pins are at `PINS`: id and name.
    pub other_program: Option<(u32, String)>,
}

/// Looks at an interface, and changes nothing.
///
/// # Errors
/// There is no such interface, or the kernel does not answer.
pub fn inspect(pins: &Path, name: &str) -> Result<DeviceXdp, BpfError> {
    /// `NETDEV_XDP_ACT_BASIC`, `NETDEV_XDP_ACT_XSK_ZEROCOPY` and `NETDEV_XDP_ACT_RX_SG`.
    const BASIC: u64 = 1;
    const ZERO_COPY: u64 = 8;
    const RX_SG: u64 = 32;
    crate::log::quiet();
    let ifindex = index_of(name)?;
    let failed = |source| BpfError::system(format!("ask what XDP can do on `{name}`"), source);
    let features = Some(kernel::xdp_features(ifindex).map_err(failed)?).filter(|features| *features != 0);
    let ours = kernel::open_pin(&pins.join(name).join(LINK))
        .and_then(|link| kernel::xdp_link_info(link.as_fd()))
        .ok()
        .filter(|(linked, _)| *linked == ifindex)
        .map(|(_, program)| program);
    let other_program = kernel::xdp_program(ifindex)
        .map_err(failed)?
        .filter(|(id, _)| Some(*id) != ours)
        .map(|(id, _)| {
            (
                id,
                kernel::program_name(id).unwrap_or_else(|_| "unknown".to_owned()),
            )
        });
    Ok(DeviceXdp {
        native: features.map(|features| features & BASIC != 0),
        zero_copy: features.map(|features| features & ZERO_COPY != 0),
        multi_buffer: features.map(|features| features & RX_SG != 0),
        other_program,
    })
}

/// Attaches the programs of a port and pins them, taking over what an earlier process left: the program stays attached
/// throughout, and is replaced atomically where it was built from another source.
///
/// # Errors
/// See [`BpfError`]. Nothing is left attached that was not attached before.
pub fn attach(spec: &PortSpec) -> Result<AttachedPort, BpfError> {
    crate::log::quiet();
    let ifindex = index_of(&spec.name)?;
    let directory = spec.pins.join(&spec.name);
    ensure_pins(&spec.pins, &directory)?;
    let config = configuration(spec, ifindex)?;

    let mut inherited_link = inherited_link(spec, &directory, ifindex)?;
    let ours = inherited_link.as_ref().map(|(_, program)| *program);
    // A new link fails by itself where there is another program; to ask first takes the kernel's lock of all interfaces once more.
    if let Some(ours) = ours {
        refuse_others(&spec.name, ifindex, Some(ours))?;
    }

    if ours.is_none() && directory.join(QDISC).exists() && !guard::is_set(ifindex) {
        let _ = fs::remove_dir(directory.join(QDISC)); // of an interface that had the name before
    }
    // Same build: programs and maps go on as they are. Else, and at first: new ones.
    let inherited = inherited_link.is_some();
    let (loaded, reused) = shared(spec)?;
    fill(&loaded.maps, spec)?;
    // Where no socket is known to the programs, the fail mode holds.
    let sockets = match PortSockets::open(&directory.join(SOCKETS)).filter(|_| reused && inherited) {
        Some(sockets) => sockets,
        None => PortSockets::new()?,
    };
    loaded.maps.remove_others(&spec.name, Some(ifindex))?;
    loaded.maps.set_config(config)?;
    if config.peer_ifindex != 0 {
        loaded.maps.set_peer(ifindex, config.peer_ifindex)?;
    }

    let mut fallback = None;
    let (link, mode) = match inherited_link.take() {
        Some((link, program)) => {
            let current = kernel::program_info(&loaded.programs[0]).map(|(id, _)| id);
            if current.ok() != Some(program) {
                kernel::update_link(link.as_fd(), loaded.programs[0].as_fd()).map_err(|source| {
                    BpfError::system(format!("replace the XDP program of `{}`", spec.name), source)
                })?;
            }
            (link, attached_mode(ifindex))
        }
        None => {
            let linked = link(spec, loaded.programs[0].as_fd(), ifindex);
            let (link, mode, reason) = linked.or_else(|error| {
                let _ = loaded.maps.remove_others(&spec.name, None);
                let _ = remove_shared(&spec.pins);
                refuse_others(&spec.name, ifindex, None).and(Err(error))
            })?;
            fallback = reason;
            (link, mode)
        }
    };
    let mut port = AttachedPort {
        spec: spec.clone(),
        config,
        ifindex,
        mode,
        fallback,
        inherited,
        reused: reused && inherited,
        sockets_known: reused && inherited && loaded.maps.has_sockets(ifindex),
        loaded,
        sockets,
        _link: link,
    };
    if let Err(error) = port.finish(&directory) {
        // Taken over, it stays: the fail mode of the earlier process holds. Made now, it goes.
        if ours.is_none() {
            let _ = detach(&spec.pins, &spec.name);
        }
        return Err(error);
    }
    Ok(port)
}

/// Whether an interface carries the program of this installation, attached in any way.
pub fn is_attached(pins: &Path, name: &str) -> bool {
    let linked = kernel::open_pin(&pins.join(name).join(LINK))
        .and_then(|link| kernel::xdp_link_info(link.as_fd()))
        .ok();
    linked.is_some_and(|(ifindex, _)| kernel::interface_index(name) == Some(ifindex))
}

/// The ports that have pins.
pub fn pinned_ports(pins: &Path) -> Vec<String> {
    let entries = fs::read_dir(pins).into_iter().flatten().flatten();
    entries
        .filter(|entry| [LINK, SOCKETS].iter().any(|pin| entry.path().join(pin).exists()))
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect()
}

/// What [`prepare`] has loaded and nobody has pinned yet, by directory of the installation.
static PREPARED: Mutex<BTreeMap<PathBuf, Loaded>> = Mutex::new(BTreeMap::new());

fn prepared() -> MutexGuard<'static, BTreeMap<PathBuf, Loaded>> {
    PREPARED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Loads programs and maps for the first [`attach`] of this process, where the installation's are of another build, so
/// that the replacement does not wait for the kernel's verifier. Pins and attaches nothing.
///
/// # Errors
/// The kernel refuses them.
pub fn prepare(pins: &Path) -> Result<(), BpfError> {
    crate::log::quiet();
    if reuse(&pins.join(SHARED)).is_none() {
        let loaded = load("ringwall")?;
        prepared().insert(pins.to_owned(), loaded);
    }
    Ok(())
}

/// The programs and maps of an installation: those of an earlier process of the same build, or new ones; which.
fn shared(spec: &PortSpec) -> Result<(Loaded, bool), BpfError> {
    let directory = spec.pins.join(SHARED);
    if let Some(loaded) = reuse(&directory) {
        return Ok((loaded, true));
    }
    let loaded = match prepared().remove(&spec.pins) {
        Some(loaded) => loaded,
        None => load(&spec.name)?,
    };
    written().remove(&spec.pins);
    fill(&loaded.maps, spec)?;
    fs::create_dir_all(&directory)
        .map_err(|source| BpfError::system(format!("make {}", directory.display()), source))?;
    let pin = |name: &str, object: BorrowedFd<'_>| {
        let path = directory.join(name);
        remove_pin(&path)?;
        kernel::pin(object, &path)
            .map_err(|source| BpfError::system(format!("pin {}", path.display()), source))
    };
    for (name, program) in PROGRAMS.iter().zip(&loaded.programs) {
        pin(name, program.as_fd())?;
    }
    loaded.maps.set_build(build_id())?;
    // The configuration is last: its build id vouches for the other pins.
    loaded.maps.each().try_for_each(|(name, map)| pin(name, map))?;
    Ok((loaded, false))
}

/// Removes what ports share, where there is no port any more.
fn remove_shared(pins: &Path) -> Result<(), BpfError> {
    if !pinned_ports(pins).is_empty() {
        return Ok(());
    }
    written().remove(pins);
    remove_pins(&pins.join(SHARED))
}

/// Removes a directory of pins with what is in it. Fine where it is not there.
pub(crate) fn remove_pins(directory: &Path) -> Result<(), BpfError> {
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(BpfError::system(format!("read {}", directory.display()), error)),
        Ok(entries) => entries,
    };
    for entry in entries.flatten() {
        if entry.file_name() == QDISC {
            fs::remove_dir(entry.path())
                .map_err(|error| BpfError::system(format!("remove {}", entry.path().display()), error))?;
        } else {
            remove_pin(&entry.path())?;
        }
    }
    fs::remove_dir(directory)
        .map_err(|error| BpfError::system(format!("remove {}", directory.display()), error))
}

/// Takes the programs and pins of a port off. Fine where there are none.
///
/// # Errors
/// Where a pin or the tc filter could not be removed.
pub fn detach(pins: &Path, name: &str) -> Result<(), BpfError> {
    crate::log::quiet();
    let directory = pins.join(name);
    if let Some(ifindex) = kernel::interface_index(name) {
        guard::detach(name, ifindex, &directory.join(QDISC))?;
    }
    if let Ok(link) = kernel::open_pin(&directory.join(LINK)) {
        detach_pinned_link(link.as_fd(), name)?;
    }
    remove_pins(&directory)?;
    if let Some(loaded) = reuse(&pins.join(SHARED)) {
        loaded.maps.remove_others(name, None)?;
    }
    remove_shared(pins)
}

fn index_of(name: &str) -> Result<u32, BpfError> {
    kernel::interface_index(name).ok_or_else(|| BpfError::NoInterface(name.to_owned()))
}

pub(crate) fn remove_pin(path: &Path) -> Result<(), BpfError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(BpfError::system(
            format!("remove the pin {}", path.display()),
            error,
        )),
        _ => Ok(()),
    }
}

/// Takes a link's program off; fine where its interface is gone.
fn detach_pinned_link(link: BorrowedFd<'_>, name: &str) -> Result<(), BpfError> {
    match kernel::detach_link(link) {
        Err(error) if !matches!(error.raw_os_error(), Some(libc::ENODEV | libc::ENOLINK)) => Err(
            BpfError::system(format!("take the XDP program off `{name}`"), error),
        ),
        _ => Ok(()),
    }
}

/// Makes a directory for pins, on a BPF file system.
pub(crate) fn ensure_pins(pins: &Path, directory: &Path) -> Result<(), BpfError> {
    let standard = Path::new("/sys/fs/bpf");
    if pins.starts_with(standard) {
        ensure_bpffs(standard)?;
    }
    fs::create_dir_all(directory)
        .map_err(|source| BpfError::system(format!("make {}", directory.display()), source))?;
    match kernel::is_bpffs(directory) {
        Ok(true) => Ok(()),
        Ok(false) => {
            let _ = fs::remove_dir(directory);
            let source = io::Error::new(
                io::ErrorKind::InvalidInput,
                "the directory is on another file system",
            );
            Err(BpfError::NoBpffs {
                path: pins.to_owned(),
                source,
            })
        }
        Err(source) => Err(BpfError::NoBpffs {
            path: pins.to_owned(),
            source,
        }),
    }
}

/// Whether redirected frames reach the other end by the devmap. A veth takes them only while its far end polls (has an
/// XDP program or GRO), which is not ours to say; there the tc program moves them.
fn peer_needs_skb(peer: &str) -> bool {
    kernel::interface_driver(peer) == "veth"
}

fn configuration(spec: &PortSpec, ifindex: u32) -> Result<PortConfig, BpfError> {
    let mut config = PortConfig {
        build_id: build_id(),
        ifindex,
        name: name_bytes(&spec.name),
        failsafe_count: spec.failsafe.len() as u16,
        flags: if spec.fail_mode == FailMode::Open {
            FLAG_FAIL_OPEN
        } else {
            0
        },
        ..PortConfig::default()
    };
    check_count("UDP ports of tunnels", spec.tunnel_ports.len(), MAX_TUNNEL_PORTS)?;
    for (to, port) in config.tunnel_ports.iter_mut().zip(&spec.tunnel_ports) {
        *to = *port;
    }
    config.role = match &spec.role {
        PortRole::Wire { peer, judge_all } => {
            config.peer_ifindex = index_of(peer)?;
            if *judge_all {
                config.flags |= FLAG_JUDGE_ALL;
            }
            if peer_needs_skb(peer) {
                config.flags |= FLAG_PEER_BY_SKB;
            }
            0
        }
        PortRole::Pod => 1,
        PortRole::Uplink => 2,
        PortRole::Host => 3,
    };
    if let EgressGuard::Redirect { outer, inner } = &spec.guard {
        config.flags |= FLAG_GUARD_REDIRECT;
        config.guard_ifindex = index_of(outer)?;
        config.guard_mac = kernel::interface_mac(inner)
            .map_err(|source| BpfError::system(format!("read the Ethernet address of `{inner}`"), source))?;
    }
    Ok(config)
}

/// The link that an earlier process pinned, and its program's id, where it is still on this interface and attached the
/// way that is wanted. Stale pins are removed.
fn inherited_link(
    spec: &PortSpec,
    directory: &Path,
    ifindex: u32,
) -> Result<Option<(OwnedFd, u32)>, BpfError> {
    let path = directory.join(LINK);
    if let Ok(link) = kernel::open_pin(&path)
        && let Ok((linked, program)) = kernel::xdp_link_info(link.as_fd())
        && linked == ifindex
    {
        let wanted = match spec.mode {
            AttachMode::Auto => None,
            AttachMode::Native => Some(XdpMode::Native),
            AttachMode::Generic => Some(XdpMode::Generic),
        };
        if wanted.is_none_or(|mode| mode == attached_mode(ifindex)) {
            return Ok(Some((link, program)));
        }
        detach_pinned_link(link.as_fd(), &spec.name)?;
    }
    remove_pin(&path)?;
    Ok(None)
}

/// An error where the interface carries an XDP program other than `ours`.
fn refuse_others(name: &str, ifindex: u32, ours: Option<u32>) -> Result<(), BpfError> {
    let found = kernel::xdp_program(ifindex)
        .map_err(|source| BpfError::system(format!("ask for the XDP program of `{name}`"), source))?;
    match found {
        Some((id, _)) if Some(id) != ours => Err(BpfError::OtherProgram {
            interface: name.to_owned(),
            id,
            name: kernel::program_name(id).unwrap_or_else(|_| "unknown".to_owned()),
        }),
        _ => Ok(()),
    }
}

fn attached_mode(ifindex: u32) -> XdpMode {
    match kernel::xdp_program(ifindex) {
        Ok(Some((_, true))) => XdpMode::Native,
        _ => XdpMode::Generic,
    }
}

/// Opens what an earlier process of the same build pinned.
fn reuse(directory: &Path) -> Option<Loaded> {
    let maps = Maps::open(directory).ok()?;
    if maps.build_id() != Some(build_id()) {
        return None;
    }
    let [port, guard, cross] = PROGRAMS.map(|name| kernel::open_pin(&directory.join(name)).ok());
    Some(Loaded {
        programs: [port?, guard?, cross?],
        maps,
    })
}

/// Loads new programs and maps, `owner`'s in messages.
pub(crate) fn load(owner: &str) -> Result<Loaded, BpfError> {
    let action = format!("load the programs of `{owner}`");
    let log = crate::log::Capture::start();
    let failed = |error| log.explain(&action, error);
    let mut storage = MaybeUninit::uninit();
    let mut skeleton = RingwallSkelBuilder::default()
        .open(&mut storage)
        .map_err(failed)?;
    // On a device with jumbo frames the kernel refuses a program without it, or drops what such a program would get.
    if kernel::has_xdp_frags() {
        skeleton
            .progs
            .ringwall_port
            .set_flags(libbpf_rs::libbpf_sys::BPF_F_XDP_HAS_FRAGS);
    }
    let skeleton = skeleton.load().map_err(failed)?;
    let own = |fd: BorrowedFd<'_>| {
        fd.try_clone_to_owned()
            .map_err(|source| BpfError::system(format!("keep a program of `{owner}`"), source))
    };
    let programs = [
        own(skeleton.progs.ringwall_port.as_fd())?,
        own(skeleton.progs.ringwall_guard.as_fd())?,
        own(skeleton.progs.ringwall_cross.as_fd())?,
    ];
    let maps = &skeleton.maps;
    // The order of `maps::MAPS`.
    let handles: Result<Vec<MapHandle>, _> = [
        &maps.xsks,
        &maps.wire_peer,
        &maps.local4,
        &maps.local6,
        &maps.pods4,
        &maps.pods6,
        &maps.failsafe,
        &maps.counters,
        &maps.port_config,
    ]
    .into_iter()
    .map(MapHandle::try_from)
    .collect();
    let handles = handles.map_err(|error| wrap(&action, error))?;
    let maps = Maps::new(handles).ok_or_else(|| BpfError::System {
        action,
        source: io::Error::other("the object does not have the expected maps"),
    })?;
    Ok(Loaded { programs, maps })
}

/// Fills the maps that all ports share, as far as this process has not.
fn fill(maps: &Maps, spec: &PortSpec) -> Result<(), BpfError> {
    let wanted = WrittenState {
        local_addresses: spec.local_addresses.clone(),
        pod_cidrs: spec.pod_cidrs.clone(),
        failsafe: spec.failsafe.clone(),
    };
    if written().get(&spec.pins) == Some(&wanted) {
        return Ok(());
    }
    maps.set_local_addresses(&spec.local_addresses)?;
    maps.set_pod_cidrs(&spec.pod_cidrs)?;
    check_failsafe(&spec.failsafe)?;
    maps.set_failsafe(&spec.failsafe)?;
    written().insert(spec.pins.clone(), wanted);
    Ok(())
}

fn check_failsafe(entries: &[Failsafe]) -> Result<(), BpfError> {
    for entry in entries {
        if entry.from.addr().is_ipv4() != entry.to.addr().is_ipv4() {
            return Err(BpfError::Failsafe {
                entry: format!("{} to {}", entry.from, entry.to),
                problem: "the families differ",
            });
        }
        if entry.ports.is_some() && !matches!(entry.protocol, Some(6 | 17 | 132)) {
            return Err(BpfError::Failsafe {
                entry: format!("{} to {}", entry.from, entry.to),
                problem: "ports need a protocol that has them (TCP, UDP or SCTP)",
            });
        }
    }
    Ok(())
}

/// Puts the program on the interface: natively, or generically where that is asked for or all there is.
fn link(
    spec: &PortSpec,
    program: BorrowedFd<'_>,
    ifindex: u32,
) -> Result<(OwnedFd, XdpMode, Option<String>), BpfError> {
    let mut fallback = None;
    if spec.mode != AttachMode::Generic {
        match kernel::link_xdp(program, ifindex, true) {
            Ok(link) => return Ok((link, XdpMode::Native, None)),
            Err(error) if spec.mode == AttachMode::Native => return Err(no_native(&spec.name, error)),
            Err(error) if matches!(error.raw_os_error(), Some(libc::EPERM)) => {
                return Err(BpfError::system(format!("attach XDP to `{}`", spec.name), error));
            }
            Err(error) => fallback = Some(no_native(&spec.name, error).to_string()),
        }
    }
    let link = kernel::link_xdp(program, ifindex, false)
        .map_err(|source| BpfError::system(format!("attach generic XDP to `{}`", spec.name), source))?;
    Ok((link, XdpMode::Generic, fallback))
}

fn no_native(interface: &str, source: io::Error) -> BpfError {
    let hint = match source.raw_os_error() {
        Some(libc::EPERM) => return BpfError::system(format!("attach XDP to `{interface}`"), source),
        Some(libc::ENOSPC) => format!(
            "its peer has more transmit queues than it has receive queues: raise them (`ethtool -L {interface} rx N`)"
        ),
        Some(libc::ERANGE | libc::EINVAL) => {
            "its MTU may be too large for XDP (jumbo frames need a driver that lists `rx-sg` among its xdp-features, and Linux 5.18 or newer), or LRO is on: lower the MTU to 1500, or `ethtool -K ... lro off`".to_owned()
        }
        _ => "set `xdpMode: generic`, which is slow, or use another device".to_owned(),
    };
    BpfError::NoNative {
        interface: interface.to_owned(),
        source,
        hint,
    }
}

impl AttachedPort {
    /// Attaches what belongs to tc, and pins.
    fn finish(&mut self, directory: &Path) -> Result<(), BpfError> {
        let [_, guard_program, cross_program] = &self.loaded.programs;
        let egress = (self.spec.guard != EgressGuard::Off).then(|| guard_program.as_fd());
        let by_skb = self.config.flags & FLAG_PEER_BY_SKB != 0;
        let ingress = by_skb.then(|| cross_program.as_fd());
        guard::set(
            &self.spec.name,
            self.ifindex,
            &directory.join(QDISC),
            egress,
            ingress,
        )?;

        if !self.reused {
            // What a build before left, which had programs and maps for each port.
            for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
                if ![LINK, QDISC].iter().any(|kept| entry.file_name() == *kept) {
                    remove_pin(&entry.path())?;
                }
            }
            let pin = |name: &str, object: BorrowedFd<'_>| {
                let path = directory.join(name);
                kernel::pin(object, &path)
                    .map_err(|source| BpfError::system(format!("pin {}", path.display()), source))
            };
            if !directory.join(LINK).exists() {
                pin(LINK, self._link.as_fd())?;
            }
            pin(SOCKETS, self.sockets.as_fd())?;
        }
        Ok(())
    }

    /// The interface.
    pub fn name(&self) -> &str {
        &self.spec.name
    }

    /// The interface's index.
    pub fn ifindex(&self) -> u32 {
        self.ifindex
    }

    /// How the XDP program is attached.
    pub fn mode(&self) -> XdpMode {
        self.mode
    }

    /// Why the program is generic although native was wanted.
    pub fn fallback(&self) -> Option<&str> {
        self.fallback.as_deref()
    }

    /// Whether the interface carried a program of this installation already, which was taken over.
    pub fn inherited(&self) -> bool {
        self.inherited
    }

    /// Whether the programs and maps of an earlier process are used as they are: they are of the same build.
    pub fn reused(&self) -> bool {
        self.reused
    }

    /// The kernel's id of the XDP program, 0 where it cannot be told.
    pub fn program_id(&self) -> u32 {
        kernel::program_info(&self.loaded.programs[0]).map_or(0, |(id, _)| id)
    }

    /// Looks up again what the port was told of other interfaces: the wire's other end, the host port. To be called when
    /// one of them was made anew.
    ///
    /// # Errors
    /// One of them does not exist, or the kernel refuses; the port goes on with what it had.
    pub fn refresh(&mut self) -> Result<(), BpfError> {
        let config = configuration(&self.spec, self.ifindex)?;
        if config.peer_ifindex != 0 {
            self.loaded.maps.set_peer(self.ifindex, config.peer_ifindex)?;
        }
        self.loaded.maps.set_config(config)?;
        self.config = config;
        Ok(())
    }

    fn fill(&mut self, spec: PortSpec) -> Result<(), BpfError> {
        fill(&self.loaded.maps, &spec)?;
        self.spec = spec;
        Ok(())
    }

    /// Replaces the host's own addresses, which all ports of the installation share.
    ///
    /// # Errors
    /// Too many addresses, or the kernel refuses.
    pub fn set_local_addresses(&mut self, addresses: &[IpAddr]) -> Result<(), BpfError> {
        let mut spec = self.spec.clone();
        spec.local_addresses = addresses.to_vec();
        self.fill(spec)
    }

    /// Replaces the pod prefixes, which all ports of the installation share. New ones are added before old ones go.
    ///
    /// # Errors
    /// Too many prefixes, or the kernel refuses.
    pub fn set_pod_cidrs(&mut self, cidrs: &[IpNet]) -> Result<(), BpfError> {
        let mut spec = self.spec.clone();
        spec.pod_cidrs = cidrs.to_vec();
        self.fill(spec)
    }

    /// Replaces the failsafe list, which all ports of the installation share.
    ///
    /// # Errors
    /// Too many entries, entries that make no sense, or the kernel refuses.
    pub fn set_failsafe(&mut self, failsafe: &[Failsafe]) -> Result<(), BpfError> {
        check_failsafe(failsafe)?;
        let mut spec = self.spec.clone();
        spec.failsafe = failsafe.to_vec();
        self.fill(spec)?;
        self.config.failsafe_count = failsafe.len() as u16;
        self.loaded.maps.set_config(self.config)
    }

    /// Gives the packets of a receive queue to an AF_XDP socket bound to this port and queue. The slot empties itself
    /// when the socket closes.
    ///
    /// # Errors
    /// The queue is beyond the map, or the kernel refuses the socket.
    pub fn register_socket(&mut self, queue: u16, socket: BorrowedFd<'_>) -> Result<(), BpfError> {
        // Not before there is a socket: the kernel waits for a grace period, and meanwhile the fail mode holds.
        if !self.sockets_known {
            self.loaded.maps.set_sockets(self.ifindex, &self.sockets)?;
            self.sockets_known = true;
        }
        self.sockets.set(queue, socket)
    }

    /// Empties a queue's slot, so that the fail mode holds for it. Fine where it is empty.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn unregister_socket(&mut self, queue: u16) -> Result<(), BpfError> {
        self.sockets.clear(queue)
    }

    /// What the programs have counted since they were loaded.
    ///
    /// # Errors
    /// The kernel refuses to read the map.
    pub fn counters(&self) -> Result<Counters, BpfError> {
        self.loaded.maps.counters(self.ifindex)
    }

    /// Takes everything off.
    ///
    /// # Errors
    /// As [`detach`].
    pub fn detach(self) -> Result<(), BpfError> {
        detach(&self.spec.pins, &self.spec.name)
    }
}
