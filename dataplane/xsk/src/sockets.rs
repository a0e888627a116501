//! The control side: opens ports, watches them, counts their frames.

#![allow(unsafe_code)] // one call: xsk-rs has socket creation as unsafe

use std::{
    io,
    ops::AddAssign,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd},
    sync::{
        Arc, PoisonError,
        atomic::Ordering::{Relaxed, SeqCst},
    },
    time::{Duration, Instant},
};

use ringwall_dataplane::{
    io::PacketIo,
    port::{MAX_MTU, PortId, QueueId},
};
use xsk_rs::{
    config::{BindFlags, Interface, LibxdpFlags, QueueSize, SocketConfig},
    socket::{Socket, SocketCreateError},
};

use crate::{
    XskError, XskIo,
    device::Device,
    io::{Mailbox, QueueCommand},
    pool::{self, FrameNumber, HEADROOM, Layout, MAX_SLOTS, Pool},
    queue::{Queue, QueueCounts, Rings},
    syscall,
};

/// A bit each in a word.
const MAX_WORKERS: usize = 64;
/// The largest frame, less what is kept before the packet.
const MAX_PACKET: u32 = 4096 - HEADROOM as u32;
/// The largest MTU whose packets have one frame each.
pub const MAX_SINGLE_MTU: u32 = MAX_PACKET - ETHERNET;
/// Bytes of an Ethernet header with two VLAN tags.
const ETHERNET: u32 = 14 + 8;
/// Packets that a worker may have in bursts, holds and hand-over rings; one that is alone hands nothing over. Few are better:
/// the kernel has a table of all frames for each queue, and makes it at the bind.
const PACKETS_IN_HAND: u32 = 4096;
const PACKETS_IN_HAND_ALONE: u32 = 512;
/// Frames that a queue may have on its TX and completion rings without the others feeling it.
const TX_IN_FLIGHT: u32 = 256;
/// The least that a port which comes later is given on its fill rings, and on its TX rings, over all its queues; and the
/// least for one queue, where it has many.
const LATE_FILL: u32 = 64;
const LATE_IN_FLIGHT: u32 = 32;
const LATE_FILL_QUEUE: u32 = 16;
const LATE_IN_FLIGHT_QUEUE: u32 = 8;
/// Which part of what is left a port that comes later is given at most: the first get more than the last.
const LATE_SHARE: u32 = 80;
/// Reserved for each port that may come later, in parts of ten of the least: what [`LATE_SHARE`] gives the first beyond it.
const LATE_RESERVE_TENTHS: u32 = 13;
/// Bytes of the kernel's `struct xdp_buff_xsk`, of which it has one for each frame and queue.
const TABLE_ENTRY: u64 = 128;
/// Most of such tables that a spare has kept.
const MAX_TABLES: u64 = 64 << 20;
const PAGE: u64 = 4096;
/// Packets that may wait for the worker that sends them.
const INBOX: usize = 2048;
/// Between two looks at a queue that another process still has.
const BUSY_RETRY: Duration = Duration::from_micros(200);
/// How long workers may take to let go of a port.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);
/// How long what a closed queue was sending stays untouched: longer than any driver keeps a packet.
const QUARANTINE: Duration = Duration::from_secs(1);

/// Whether the kernel copies packets between device memory and the UMEM.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ZeroCopy {
    /// Zero-copy where every port of the UMEM has it, else copy.
    #[default]
    Prefer,
    /// Zero-copy or an error.
    Require,
    /// Copy.
    Off,
}

/// Ring sizes in descriptors; powers of two. Fill and completion rings have one size for all ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingSizes {
    /// RX ring.
    pub rx: u32,
    /// TX ring; at most `completion`.
    pub tx: u32,
    /// Fill ring: how long a burst may be without loss.
    pub fill: u32,
    /// Completion ring.
    pub completion: u32,
}

impl Default for RingSizes {
    fn default() -> Self {
        Self {
            rx: 2048,
            tx: 1024,
            fill: 2048,
            completion: 2048,
        }
    }
}

/// A port to open.
#[derive(Clone, Debug)]
pub struct PortConfig {
    /// Index in the table of the running configuration.
    pub id: PortId,
    /// Interface name, in the calling thread's network namespace.
    pub name: String,
    /// Queues to have on our end; None: as many as there are workers, where the device can. Fewer than workers: the
    /// others hand their packets to a worker that has one.
    pub queues: Option<u16>,
    /// Frames kept ready in each queue's fill ring; at most the ring's size.
    pub fill_frames: u32,
}

/// What to open.
#[derive(Clone, Debug)]
pub struct Config {
    /// The ports.
    pub ports: Vec<PortConfig>,
    /// How many workers share them.
    pub workers: usize,
    /// Copy or zero-copy.
    pub zero_copy: ZeroCopy,
    /// Ring sizes.
    pub rings: RingSizes,
    /// Frames in the pool; None: what the rings of `ports` can hold, some for the workers' hands, and a reserve for
    /// `late_ports`.
    pub frames: Option<u32>,
    /// How many ports may come later by [`Sockets::reopen`].
    pub late_ports: u32,
    /// How long a busy queue is retried, in milliseconds.
    pub bind_timeout_ms: u64,
}

/// An open queue: to be put into the XSKMAP slot `queue` of its port.
#[derive(Debug)]
pub struct QueueSocket {
    /// The port.
    pub port: PortId,
    /// The queue.
    pub queue: QueueId,
    /// The worker that polls it.
    pub worker: usize,
    /// Whether the kernel reports zero-copy.
    pub zero_copy: bool,
    /// How long its bind took, retries included, in microseconds.
    pub bind_micros: u64,
    /// A descriptor of our own; the socket lives until this and the queue's are closed.
    fd: OwnedFd,
    slot: u16,
    /// Frames of its worker that it was promised.
    reserved: u32,
    counts: Arc<QueueCounts>,
}

impl AsFd for QueueSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl QueueSocket {
    /// This socket's counts, the kernel's too.
    fn stats(&self) -> QueueStats {
        let mut stats = self.counts.read();
        if let Ok(kernel) = syscall::statistics(self.fd.as_raw_fd()) {
            stats.kernel_rx_dropped = kernel.rx_dropped + kernel.rx_invalid_descs;
            stats.kernel_rx_ring_full = kernel.rx_ring_full;
            stats.kernel_fill_empty = kernel.rx_fill_ring_empty_descs;
            stats.kernel_tx_invalid = kernel.tx_invalid_descs;
        }
        stats
    }
}

/// Adds a queue's counts to those of the same queue.
fn add(all: &mut Vec<(PortId, QueueId, QueueStats)>, port: PortId, queue: QueueId, stats: QueueStats) {
    match all
        .iter_mut()
        .find(|(other, number, _)| (*other, *number) == (port, queue))
    {
        Some((_, _, sum)) => *sum += stats,
        None => all.push((port, queue, stats)),
    }
}

/// Counts of a queue, over all the times that it was open.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct QueueStats {
    /// Frames received.
    pub rx_frames: u64,
    /// Bytes received.
    pub rx_bytes: u64,
    /// Frames put on the TX ring.
    pub tx_frames: u64,
    /// Bytes put on the TX ring.
    pub tx_bytes: u64,
    /// Frames that `send` refused, because the TX ring was full or the device gone: their sender knows.
    pub tx_full: u64,
    /// Frames that were accepted and lost: the kernel took them from the TX ring and the device's queue was full
    /// (EBUSY), or another worker handed them over and the TX ring was full.
    pub tx_lost: u64,
    /// Frames that were accepted and lost because the port was closed before they were sent.
    pub port_lost: u64,
    /// Descriptors from the kernel that named no frame of this queue.
    pub bad_descriptors: u64,
    /// Kernel: packets dropped because of an invalid fill descriptor or a too small frame.
    pub kernel_rx_dropped: u64,
    /// Kernel: packets dropped because the RX ring was full.
    pub kernel_rx_ring_full: u64,
    /// Kernel: times that the fill ring was found empty.
    pub kernel_fill_empty: u64,
    /// Packets that were too short or too long to be sent.
    pub tx_invalid: u64,
    /// Kernel: invalid TX descriptors.
    pub kernel_tx_invalid: u64,
}

impl AddAssign for QueueStats {
    fn add_assign(&mut self, other: Self) {
        self.rx_frames += other.rx_frames;
        self.rx_bytes += other.rx_bytes;
        self.tx_frames += other.tx_frames;
        self.tx_bytes += other.tx_bytes;
        self.tx_full += other.tx_full;
        self.tx_lost += other.tx_lost;
        self.port_lost += other.port_lost;
        self.bad_descriptors += other.bad_descriptors;
        self.kernel_rx_dropped += other.kernel_rx_dropped;
        self.kernel_rx_ring_full += other.kernel_rx_ring_full;
        self.kernel_fill_empty += other.kernel_fill_empty;
        self.tx_invalid += other.tx_invalid;
        self.kernel_tx_invalid += other.kernel_tx_invalid;
    }
}

/// Where the frames of the pool are. Exact while the workers are idle.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Accounts {
    /// Frames in the pool.
    pub total: u64,
    /// In free lists and on their way home.
    pub free: u64,
    /// In fill and RX rings.
    pub receiving: u64,
    /// In TX and completion rings.
    pub sending: u64,
    /// Waiting for another worker to send them.
    pub handed_over: u64,
    /// In the hands of the packet plane: a burst, a hold, a hand-over ring.
    pub held: i64,
}

impl Accounts {
    /// Whether every frame is somewhere.
    pub fn balanced(&self) -> bool {
        let known = self.free + self.receiving + self.sending + self.handed_over;
        i64::try_from(known).is_ok_and(|known| known + self.held == self.total as i64)
    }
}

/// The control side of the open ports.
#[derive(Debug)]
pub struct Sockets {
    pool: Arc<Pool>,
    mailboxes: Arc<[Arc<Mailbox>]>,
    queues: Vec<QueueSocket>,
    /// Counts of closed queues.
    closed: Vec<(PortId, QueueId, QueueStats)>,
    /// Frames that closed queues were sending, and since when they rest.
    quarantined: Vec<(Instant, Vec<FrameNumber>)>,
    /// Slots of closed queues, to be used again.
    free_slots: Vec<u16>,
    next_slot: u16,
    config: Config,
    zero_copy: bool,
    /// Orders given to each worker so far.
    commands_sent: u64,
    /// Frames of each worker that no open queue was promised.
    unreserved: Vec<u32>,
    /// The socket that holds the UMEM together; its first socket must outlive the others' binds.
    _anchor: Option<Rings>,
}

/// Packet memory for sockets that are opened later: it takes as long as all the rest.
#[derive(Debug)]
pub struct SpareMemory {
    layout: Layout,
    zero_copy: bool,
    pool: Pool,
    anchor: Option<Rings>,
    /// Memory that the kernel will want at the binds, as [`keep_tables`] has it kept.
    tables: Option<OwnedFd>,
}

impl SpareMemory {
    /// What is there, where it is enough for this configuration now, else what [`open_with`] would make; None where that
    /// is more than `most` bytes. No port is opened or changed.
    ///
    /// # Errors
    /// As [`open`]; an interface that does not exist, too.
    pub fn refresh(spare: Option<Self>, config: &Config, most: u64) -> Result<Option<Self>, XskError> {
        check(config)?;
        let zero_copy = config.zero_copy != ZeroCopy::Off;
        let devices = devices(config)?;
        let wanted = layout(config, &devices);
        if spare
            .as_ref()
            .is_some_and(|spare| spare.suffices(&wanted, zero_copy))
        {
            return Ok(spare);
        }
        drop(spare); // before there is another
        if wanted.bytes() as u64 > most {
            return Ok(None);
        }
        syscall::lift_memory_lock();
        let tables = warm_kernel_tables(&wanted, &devices);
        let spare = Self::of(wanted, zero_copy).map_err(|error| name_jumbo(error, &devices))?;
        Ok(Some(Self { tables, ..spare }))
    }

    fn of(layout: Layout, zero_copy: bool) -> Result<Self, XskError> {
        let (pool, anchor) = if zero_copy {
            (Pool::new(&layout)?, None)
        } else {
            create_pool(&layout)?
        };
        Ok(Self {
            layout,
            zero_copy,
            pool,
            anchor,
            tables: None,
        })
    }

    fn suffices(&self, wanted: &Layout, zero_copy: bool) -> bool {
        self.zero_copy == zero_copy && self.layout.covers(wanted)
    }
}

/// Has the kernel keep what it will allocate at the binds: a table of all frames for each queue. Where a virtual machine's
/// free memory goes back to its host, a megabyte that is touched for the first time takes milliseconds. Without it binds
/// take longer.
fn warm_kernel_tables(layout: &Layout, devices: &[Device]) -> Option<OwnedFd> {
    let queues: u64 = devices.iter().map(|device| u64::from(device.queues)).sum();
    let frames = u64::from(layout.frames.iter().sum::<u32>());
    let bytes = (frames * TABLE_ENTRY).next_multiple_of(PAGE);
    if bytes * queues > MAX_TABLES {
        return None;
    }
    syscall::warm_allocator(queues as u32, bytes as u32).ok()
}

/// The devices of the ports, with the queues that they are going to have.
fn devices(config: &Config) -> Result<Vec<Device>, XskError> {
    let look = |port: &PortConfig| {
        let mut device = Device::lookup(&port.name)?;
        device.queues = target_queues(port, &device, config.workers).min(device.max_queues);
        Ok(device)
    };
    config.ports.iter().map(look).collect()
}

/// Opens every port, with a pool of frames, for `workers` workers; the answer has one [`XskIo`] for each. Nothing is
/// received before the sockets are registered in the ports' XSKMAPs.
///
/// # Errors
/// See [`XskError`]. Nothing stays open.
pub fn open(config: &Config) -> Result<(Sockets, Vec<XskIo>), XskError> {
    open_with(config, None)
}

/// As [`open`], with packet memory that was made before, where that is enough.
///
/// # Errors
/// As [`open`].
pub fn open_with(config: &Config, spare: Option<SpareMemory>) -> Result<(Sockets, Vec<XskIo>), XskError> {
    check(config)?;
    syscall::lift_memory_lock();
    if config.zero_copy == ZeroCopy::Off {
        return open_as(config, false, spare);
    }
    match open_as(config, true, spare) {
        Err(XskError::NoZeroCopy { .. }) if config.zero_copy == ZeroCopy::Prefer => {
            open_as(config, false, None)
        }
        other => other,
    }
}

fn check(config: &Config) -> Result<(), XskError> {
    let RingSizes {
        rx,
        tx,
        fill,
        completion,
    } = config.rings;
    for (name, size) in [("RX", rx), ("TX", tx), ("fill", fill), ("completion", completion)] {
        if !size.is_power_of_two() || !(64..=32768).contains(&size) {
            return Err(XskError::Config(format!(
                "{name} ring of {size}: a power of two from 64 to 32768 is needed"
            )));
        }
    }
    if completion < tx {
        return Err(XskError::Config(format!(
            "completion ring of {completion} is smaller than the TX ring of {tx}"
        )));
    }
    if !(1..=MAX_WORKERS).contains(&config.workers) {
        return Err(XskError::Config(format!(
            "{} workers: 1 to {MAX_WORKERS} are possible",
            config.workers
        )));
    }
    if config.ports.is_empty() {
        return Err(XskError::Config("no port to open".to_owned()));
    }
    for (index, port) in config.ports.iter().enumerate() {
        if port.id.0 == u16::MAX
            || config
                .ports
                .iter()
                .skip(index + 1)
                .any(|other| other.id == port.id)
        {
            return Err(XskError::Config(format!(
                "port number {} of `{}` cannot be used",
                port.id.0, port.name
            )));
        }
    }
    Ok(())
}

/// How many queues a port should have. Every queue that the device has can receive, so every one gets a socket: never fewer
/// than there are, unless a number is asked for.
fn target_queues(port: &PortConfig, device: &Device, workers: usize) -> u16 {
    port.queues.unwrap_or(device.queues.max(workers as u16)).max(1)
}

/// How many queues [`open`] gives a device, where the device can: to be set before by whoever keeps a record of changes.
pub fn queues_for(device: &Device, asked: Option<u16>, workers: usize) -> u16 {
    asked
        .unwrap_or(device.queues.max(workers as u16))
        .clamp(1, device.max_queues)
}

/// Looks a port's device up and gives it the queues that it should have.
fn prepare(port: &PortConfig, workers: usize) -> Result<Device, XskError> {
    let mut device = Device::lookup(&port.name)?;
    let max = MAX_MTU;
    if device.mtu > max {
        return Err(XskError::Mtu {
            interface: port.name.clone(),
            mtu: device.mtu,
            max,
        });
    }
    let wanted = target_queues(port, &device, workers);
    if wanted != device.queues {
        if port.queues.is_some() && wanted > device.max_queues {
            return Err(XskError::Config(format!(
                "interface `{}` can have {} queues, {wanted} are asked for",
                port.name, device.max_queues
            )));
        }
        let reachable = wanted.min(device.max_queues);
        match device.set_queues(reachable) {
            // Asked for by name: an error. Else fewer queues do, too.
            Err(error) if port.queues.is_some() => return Err(error),
            _ => {}
        }
    }
    Ok(device)
}

fn open_as(
    config: &Config,
    zero_copy: bool,
    spare: Option<SpareMemory>,
) -> Result<(Sockets, Vec<XskIo>), XskError> {
    let started = Instant::now();
    let devices = config
        .ports
        .iter()
        .map(|port| prepare(port, config.workers))
        .collect::<Result<Vec<_>, _>>()?;
    let layout = layout(config, &devices);
    let pieces = layout.pieces;
    let SpareMemory {
        layout,
        pool,
        anchor,
        tables,
        ..
    } = match spare.filter(|spare| spare.suffices(&layout, zero_copy)) {
        Some(spare) => spare,
        None => SpareMemory::of(layout, zero_copy).map_err(|error| name_jumbo(error, &devices))?,
    };
    let pool = Arc::new(pool);
    let mailboxes: Vec<Arc<Mailbox>> = (0..config.workers)
        .map(|_| Mailbox::new().map(Arc::new))
        .collect::<io::Result<_>>()
        .map_err(|source| XskError::System {
            action: "make an event descriptor".to_owned(),
            source,
        })?;
    let mailboxes: Arc<[Arc<Mailbox>]> = mailboxes.into();
    let mut workers: Vec<XskIo> = (0..config.workers)
        .filter_map(|worker| XskIo::new(worker, Arc::clone(&pool), Arc::clone(&mailboxes)))
        .collect();
    let mut sockets = Sockets {
        pool,
        mailboxes,
        queues: Vec::new(),
        closed: Vec::new(),
        quarantined: Vec::new(),
        free_slots: Vec::new(),
        next_slot: 0,
        config: config.clone(),
        zero_copy,
        commands_sent: 0,
        unreserved: layout
            .frames
            .iter()
            .map(|frames| frames.saturating_sub(in_hand(config.workers, pieces)))
            .collect(),
        _anchor: anchor,
    };
    tracing::debug!(
        micros = started.elapsed().as_micros() as u64,
        "packet memory ready"
    );
    drop(tables); // now the kernel wants it
    for (port, device) in config.ports.iter().zip(&devices) {
        let frames = sockets.reserve_frames(port, device)?;
        sockets.open_port(port, device, frames)?;
        tracing::debug!(
            micros = started.elapsed().as_micros() as u64,
            port = port.name,
            "port bound"
        );
    }
    for worker in &mut workers {
        worker.flush(); // takes its queues and fills their rings
    }
    Ok((sockets, workers))
}

/// How many frames there are, and whose.
fn layout(config: &Config, devices: &[Device]) -> Layout {
    let largest: u32 = devices
        .iter()
        .map(|device| device.mtu + ETHERNET)
        .max()
        .unwrap_or(0);
    let frame_size = if largest as usize + HEADROOM <= 2048 {
        2048
    } else {
        4096
    };
    let pieces = largest.div_ceil(MAX_PACKET).max(1);
    let mut frames = vec![in_hand(config.workers, pieces); config.workers];
    for (port, device) in config.ports.iter().zip(devices) {
        for queue in 0..device.queues {
            let worker = worker_of(port.id, queue, config.workers);
            if let Some(frames) = frames.get_mut(worker) {
                *frames += port.fill_frames.min(config.rings.fill) + TX_IN_FLIGHT.min(config.rings.tx);
            }
        }
    }
    if config.frames.is_none() {
        let (fill, in_flight) = late_least(config.workers as u32);
        let reserve = config.late_ports * (fill + in_flight) * LATE_RESERVE_TENTHS / 10;
        frames.iter_mut().for_each(|frames| *frames += reserve);
    }
    if let Some(wanted) = config.frames {
        let spare = wanted.saturating_sub(frames.iter().sum()) / config.workers as u32;
        frames.iter_mut().for_each(|frames| *frames += spare);
    }
    // Whole huge pages.
    let per_page = (2 << 20) / frame_size;
    let rest = frames.iter().sum::<u32>() % per_page;
    if let Some(last) = frames.last_mut()
        && rest > 0
    {
        *last += per_page - rest;
    }
    Layout {
        frame_size,
        pieces,
        frames,
        fill: config.rings.fill,
        completion: config.rings.completion,
        inbox: INBOX,
    }
}

/// Frames of each worker that no queue is promised, where packets have so many.
fn in_hand(workers: usize, pieces: u32) -> u32 {
    pieces
        * match workers {
            1 => PACKETS_IN_HAND_ALONE,
            _ => PACKETS_IN_HAND,
        }
}

/// Names the interface for which packets need several frames.
fn name_jumbo(error: XskError, devices: &[Device]) -> XskError {
    match (error, devices.iter().max_by_key(|device| device.mtu)) {
        (XskError::NoMultiBuffer { max, .. }, Some(device)) => XskError::NoMultiBuffer {
            interface: device.name.clone(),
            mtu: device.mtu,
            max,
        },
        (error, _) => error,
    }
}

/// The least that a queue of a port which comes later is given on its fill ring and on its TX ring.
fn late_least(queues: u32) -> (u32, u32) {
    let queues = queues.max(1);
    (
        (LATE_FILL / queues).max(LATE_FILL_QUEUE),
        (LATE_IN_FLIGHT / queues).max(LATE_IN_FLIGHT_QUEUE),
    )
}

/// Frames that a port's queues are promised: on the fill ring, and beside it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct FrameReservation {
    fill: u32,
    in_flight: u32,
}

/// The worker that has a queue. Ports with few queues are spread over the workers.
fn worker_of(port: PortId, queue: u16, workers: usize) -> usize {
    (usize::from(port.0) + usize::from(queue)) % workers
}

/// A pool in copy mode, and the socket that its UMEM belongs to.
///
/// The kernel lets a socket share a UMEM only while the socket that registered it is bound to a device. So that every
/// port may go and come back, that socket is bound to a device which never goes: the loopback; where somebody else has
/// that (another instance here), the loopback of a network namespace made for it.
fn create_pool(layout: &Layout) -> Result<(Pool, Option<Rings>), XskError> {
    let bound = || {
        let pool = Pool::new(layout)?;
        let interface = interface("lo")?;
        let flags = BindFlags::XDP_COPY | BindFlags::XDP_USE_NEED_WAKEUP | several_frames(&pool);
        let config = socket_config(64, 64, flags)?;
        let (_, rings) = bind(&pool, config, &interface, 0).map_err(|error| match error.kernel() {
            error if pool.is_multi_buffer() && error.raw_os_error() == Some(libc::EINVAL) => {
                XskError::NoMultiBuffer {
                    interface: "lo".to_owned(), // the caller knows for which it is
                    mtu: MAX_MTU,
                    max: MAX_SINGLE_MTU,
                }
            }
            error => XskError::system(
                "bind the UMEM's socket to `lo`",
                "CAP_NET_RAW (and CAP_NET_ADMIN)",
                error,
            ),
        })?;
        Ok((pool, Some(rings)))
    };
    let here = bound();
    match &here {
        Err(XskError::System { source, .. }) if source.raw_os_error() == Some(libc::EBUSY) => {}
        _ => return here,
    }
    let apart = std::thread::scope(|scope| {
        let thread = scope.spawn(|| syscall::leave_network_namespace().ok().map(|()| bound()));
        thread.join().ok().flatten()
    });
    apart.unwrap_or(here)
}

/// How sockets say that packets may have several frames. The kernel keeps it with the UMEM, so it holds for all of its ports.
fn several_frames(pool: &Pool) -> BindFlags {
    if pool.is_multi_buffer() {
        BindFlags::XDP_USE_SG
    } else {
        BindFlags::empty()
    }
}

fn interface(name: &str) -> Result<Interface, XskError> {
    name.parse().map_err(|_| XskError::NoInterface(name.to_owned()))
}

fn socket_config(rx: u32, tx: u32, flags: BindFlags) -> Result<SocketConfig, XskError> {
    let size = |size: u32| {
        QueueSize::new(size).map_err(|error| XskError::Config(format!("ring of {size}: {error}")))
    };
    Ok(SocketConfig::builder()
        .rx_queue_size(size(rx)?)
        .tx_queue_size(size(tx)?)
        .libxdp_flags(LibxdpFlags::XSK_LIBXDP_FLAGS_INHIBIT_PROG_LOAD)
        .bind_flags(flags)
        .build())
}

/// Opens and binds a socket. The descriptor is open as long as the rings are.
fn bind(
    pool: &Pool,
    config: SocketConfig,
    interface: &Interface,
    queue: u16,
) -> Result<(RawFd, Rings), BindError> {
    // SAFETY: program loading is inhibited by every configuration made here, which is what the contract asks for.
    let (tx, rx, rings) = unsafe { Socket::new(config, pool.umem(), interface, u32::from(queue)) }
        .map_err(BindError::Socket)?;
    let (fill, completion) = rings.ok_or(BindError::Twice)?;
    let fd = rx.fd().as_raw_fd();
    Ok((
        fd,
        Rings {
            rx,
            tx,
            fill,
            completion,
        },
    ))
}

/// Why a socket could not be bound.
#[derive(Debug, thiserror::Error)]
enum BindError {
    #[error("{0}")]
    Socket(#[source] SocketCreateError),
    #[error("the queue is already open")]
    Twice,
}

impl BindError {
    fn kernel(&self) -> io::Error {
        match self {
            Self::Socket(error) => pool::source_of(error),
            Self::Twice => io::Error::from_raw_os_error(libc::EBUSY),
        }
    }
}

impl Sockets {
    /// The open queues.
    pub fn queues(&self) -> &[QueueSocket] {
        &self.queues
    }

    /// Whether packets are not copied.
    pub fn zero_copy(&self) -> bool {
        self.zero_copy
    }

    /// What the queues of a port may take of their workers' frames. A port of the start gets what was laid out for it, one
    /// that comes later a part of what is left, and never what others were promised: a queue without frames receives
    /// nothing, and nothing would say so.
    fn reserve_frames(&self, port: &PortConfig, device: &Device) -> Result<FrameReservation, XskError> {
        let mut queues = vec![0u32; self.config.workers];
        for queue in 0..device.queues {
            if let Some(queues) = queues.get_mut(worker_of(port.id, queue, self.config.workers)) {
                *queues += 1;
            }
        }
        let rings = self.config.rings;
        let full = FrameReservation {
            fill: port.fill_frames.min(rings.fill),
            in_flight: TX_IN_FLIGHT.min(rings.tx),
        };
        let fits = |promise: FrameReservation| {
            let short = queues
                .iter()
                .zip(&self.unreserved)
                .position(|(queues, left)| queues * (promise.fill + promise.in_flight) > *left);
            short.map_or(Ok(promise), |worker| {
                Err(XskError::NoFrames {
                    interface: port.name.clone(),
                    worker,
                    needed: queues.get(worker).unwrap_or(&0) * (promise.fill + promise.in_flight),
                    left: self.unreserved.get(worker).copied().unwrap_or(0),
                })
            })
        };
        if self
            .config
            .ports
            .iter()
            .any(|known| known.id == port.id && known.name == port.name)
            && let Ok(promise) = fits(full)
        {
            return Ok(promise);
        }
        let (fill, in_flight) = late_least(u32::from(device.queues));
        let share = queues
            .iter()
            .zip(&self.unreserved)
            .filter(|(queues, _)| **queues > 0)
            .map(|(queues, left)| left / queues / LATE_SHARE)
            .min()
            .unwrap_or(0);
        fits(FrameReservation {
            fill: share.max(fill).min(full.fill),
            in_flight: in_flight.min(full.in_flight),
        })
    }

    /// Opens the queues of a port and gives them to the workers.
    fn open_port(
        &mut self,
        port: &PortConfig,
        device: &Device,
        frames: FrameReservation,
    ) -> Result<(), XskError> {
        let workers = self.config.workers;
        let mut opened: Vec<(QueueSocket, Queue)> = Vec::new();
        for queue in 0..device.queues {
            match self.open_queue(port, queue, frames) {
                Ok((socket, ring)) => opened.push((socket, ring)),
                Err(error) => {
                    let slots = opened.iter().map(|(socket, _)| socket.slot);
                    self.free_slots.extend(slots);
                    return Err(error);
                }
            }
        }
        let owners: Vec<usize> = opened.iter().map(|(socket, _)| socket.worker).collect();
        let mut queues: Vec<Vec<Queue>> = (0..workers).map(|_| Vec::new()).collect();
        for (socket, ring) in opened {
            if let Some(queues) = queues.get_mut(socket.worker) {
                queues.push(ring);
            }
            if let Some(left) = self.unreserved.get_mut(socket.worker) {
                *left = left.saturating_sub(socket.reserved);
            }
            self.queues.push(socket);
        }
        self.set_owners(port.id, owners);
        self.send_command(|worker| {
            QueueCommand::Add(queues.get_mut(worker).map(std::mem::take).unwrap_or_default())
        })
    }

    fn set_owners(&self, port: PortId, owners: Vec<usize>) {
        for mailbox in self.mailboxes.iter() {
            let mut table = mailbox.owners.lock().unwrap_or_else(PoisonError::into_inner);
            let index = usize::from(port.0);
            if table.len() <= index {
                table.resize(index + 1, Vec::new());
            }
            if let Some(entry) = table.get_mut(index) {
                entry.clone_from(&owners);
            }
        }
    }

    /// Leaves a command for every worker.
    fn send_command(&mut self, mut command: impl FnMut(usize) -> QueueCommand) -> Result<(), XskError> {
        self.commands_sent += 1;
        for (worker, mailbox) in self.mailboxes.iter().enumerate() {
            mailbox.send(command(worker)).map_err(|source| XskError::System {
                action: format!("wake worker {worker}"),
                source,
            })?;
        }
        Ok(())
    }

    fn open_queue(
        &mut self,
        port: &PortConfig,
        queue: u16,
        frames: FrameReservation,
    ) -> Result<(QueueSocket, Queue), XskError> {
        let started = Instant::now();
        // All but the first take their flags from the UMEM's first socket.
        let flags = BindFlags::XDP_USE_NEED_WAKEUP
            | several_frames(&self.pool)
            | if self.zero_copy {
                BindFlags::XDP_ZEROCOPY
            } else {
                BindFlags::XDP_COPY
            };
        let config = socket_config(self.config.rings.rx, self.config.rings.tx, flags)?;
        let interface = interface(&port.name)?;
        let limit = Duration::from_millis(self.config.bind_timeout_ms);
        let (fd, rings) = loop {
            let error = match bind(&self.pool, config, &interface, queue) {
                Ok(bound) => break bound,
                Err(error) => error.kernel(),
            };
            match error.raw_os_error() {
                // The queue of a process that has just ended is let go of by the kernel a little later.
                Some(libc::EBUSY) if started.elapsed() < limit => std::thread::sleep(BUSY_RETRY),
                Some(libc::EBUSY) => {
                    return Err(XskError::Busy {
                        interface: port.name.clone(),
                        queue,
                        waited_ms: started.elapsed().as_millis() as u64,
                    });
                }
                Some(libc::ENODEV) => return Err(XskError::NoInterface(port.name.clone())),
                Some(libc::EOPNOTSUPP | libc::EINVAL | libc::ENOTSUP) if self.zero_copy => {
                    return Err(XskError::NoZeroCopy {
                        interface: port.name.clone(),
                        queue,
                        reason: error.to_string(),
                    });
                }
                _ => {
                    return Err(XskError::system(
                        format!("bind an AF_XDP socket to queue {queue} of `{}`", port.name),
                        "CAP_NET_RAW (and CAP_NET_ADMIN)",
                        error,
                    ));
                }
            }
        };
        let failed = |source| XskError::System {
            action: format!("ask the socket of `{}`", port.name),
            source,
        };
        let zero_copy = syscall::is_zero_copy(fd).map_err(failed)?;
        if self.zero_copy && !zero_copy {
            let reason = "the kernel reports copy mode".to_owned();
            return Err(XskError::NoZeroCopy {
                interface: port.name.clone(),
                queue,
                reason,
            });
        }
        syscall::enlarge_send_buffer(fd, self.config.rings.tx);
        let own = syscall::duplicate(fd).map_err(failed)?;
        let slot = match self.free_slots.pop() {
            Some(slot) => slot,
            None if usize::from(self.next_slot) < MAX_SLOTS => {
                self.next_slot += 1;
                self.next_slot - 1
            }
            None => return Err(XskError::Config(format!("more than {MAX_SLOTS} queues"))),
        };
        let ring = Queue::new(port.id, slot, fd, rings, frames.fill);
        let socket = QueueSocket {
            port: port.id,
            queue: QueueId(queue),
            worker: worker_of(port.id, queue, self.config.workers),
            zero_copy,
            bind_micros: started.elapsed().as_micros() as u64,
            fd: own,
            slot,
            reserved: frames.fill + frames.in_flight,
            counts: Arc::clone(&ring.counts),
        };
        Ok((socket, ring))
    }

    /// Ports that were open and are lost: the device is gone. To be given to [`Self::close`], and, when the
    /// device is back, to [`Self::reopen`].
    pub fn lost(&self) -> Vec<PortId> {
        // poll() says nothing of it: the kernel's answer for an unbound socket is empty.
        let mut lost: Vec<PortId> = self
            .queues
            .iter()
            .filter(|queue| syscall::is_unbound(queue.fd.as_raw_fd()))
            .map(|queue| queue.port)
            .collect();
        lost.sort_unstable();
        lost.dedup();
        lost
    }

    /// Closes a port. Its frames come home; others are not touched. Waits for the workers to let go of it.
    ///
    /// # Errors
    /// The port is not open, or a worker did not let go within a second.
    pub fn close(&mut self, port: PortId) -> Result<(), XskError> {
        if !self.queues.iter().any(|queue| queue.port == port) {
            return Err(XskError::Config(format!("port {} is not open", port.0)));
        }
        self.set_owners(port, Vec::new());
        self.send_command(|_| QueueCommand::Remove(port))?;
        let started = Instant::now();
        while self
            .mailboxes
            .iter()
            .any(|mailbox| mailbox.completed.load(SeqCst) < self.commands_sent)
        {
            if started.elapsed() > CLOSE_TIMEOUT {
                return Err(XskError::Config(format!(
                    "a worker did not let go of port {} in time",
                    port.0
                )));
            }
            std::thread::sleep(Duration::from_micros(200));
        }
        // Closing takes the kernel a while: here, not on a worker.
        for mailbox in self.mailboxes.iter() {
            let returned = std::mem::take(
                &mut *mailbox
                    .returned_queues
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner),
            );
            drop(returned);
        }
        let (closed, open) = std::mem::take(&mut self.queues)
            .into_iter()
            .partition(|queue| queue.port == port);
        self.queues = open;
        for queue in Vec::into_iter(closed) {
            let (slot, id, mut stats) = (queue.slot, queue.queue, queue.stats());
            if let Some(left) = self.unreserved.get_mut(queue.worker) {
                *left += queue.reserved;
            }
            drop(queue);
            let sending = self.pool.reclaim(slot);
            stats.port_lost += sending.len() as u64;
            self.quarantined.push((Instant::now(), sending));
            self.free_slots.push(slot);
            add(&mut self.closed, port, id, stats);
        }
        Ok(())
    }

    /// Frees the frames that closed queues were sending long enough ago that no driver has them any more. To be called now
    /// and then.
    pub fn free_quarantined(&mut self) {
        self.quarantined.retain(|(since, frames)| {
            let rests = since.elapsed() < QUARANTINE;
            if !rests {
                self.pool.release(frames);
            }
            rests
        });
    }

    /// Opens a port again, or a new one, and hands its queues to the workers. The new sockets are in
    /// [`Self::queues`] and have to be registered. Frames come from the pool that [`open`] made.
    ///
    /// # Errors
    /// As [`open`], and [`XskError::NoFrames`]; the other ports are not touched.
    pub fn reopen(&mut self, port: &PortConfig) -> Result<(), XskError> {
        if self.queues.iter().any(|queue| queue.port == port.id) {
            return Err(XskError::Config(format!("port {} is open already", port.id.0)));
        }
        if port.id.0 == u16::MAX {
            return Err(XskError::Config("port number 65535 cannot be used".to_owned()));
        }
        let device = prepare(port, self.config.workers)?;
        let largest = self.pool.capacity() as u32 - ETHERNET;
        if device.mtu > largest && !self.pool.is_multi_buffer() {
            return Err(XskError::MtuGrown {
                interface: port.name.clone(),
                mtu: device.mtu,
                max: largest,
            });
        }
        let frames = self.reserve_frames(port, &device)?;
        self.open_port(port, &device, frames)
    }

    /// Counts of every queue that is or was open, over all the times that it was.
    pub fn stats(&self) -> Vec<(PortId, QueueId, QueueStats)> {
        let mut all = self.closed.clone();
        for queue in &self.queues {
            add(&mut all, queue.port, queue.queue, queue.stats());
        }
        all
    }

    /// Packets that a worker accepted for another to send and whose port was closed before it could.
    pub fn stranded(&self) -> u64 {
        self.pool
            .counts
            .iter()
            .map(|counts| counts.stranded.load(Relaxed))
            .sum()
    }

    /// Where the frames are.
    pub fn accounts(&self) -> Accounts {
        let mut accounts = Accounts {
            total: self.pool.frames() as u64,
            free: self.pool.in_transit(),
            sending: self
                .quarantined
                .iter()
                .map(|(_, frames)| frames.len() as u64)
                .sum(),
            handed_over: self.pool.inboxes.iter().map(|inbox| inbox.len() as u64).sum(),
            ..Accounts::default()
        };
        for counts in &self.pool.counts {
            accounts.free += counts.free.load(Relaxed);
            accounts.receiving += counts.receiving.load(Relaxed);
            accounts.sending += counts.sending.load(Relaxed);
            accounts.held += counts.in_use.load(Relaxed);
        }
        accounts
    }
}
