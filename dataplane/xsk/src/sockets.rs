//! The control side: opens ports, watches them, counts their frames.

use std::os::fd::RawFd;

use ringwall_dataplane::port::{PortId, QueueId};

use crate::{XskError, XskIo};

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
pub struct Rings {
    /// RX ring.
    pub rx: u32,
    /// TX ring; at most `completion`.
    pub tx: u32,
    /// Fill ring: how long a burst may be without loss.
    pub fill: u32,
    /// Completion ring.
    pub completion: u32,
}

impl Default for Rings {
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
    pub rings: Rings,
    /// Frames in the pool; None: what the rings of `ports` can hold, and some for the workers' hands.
    pub frames: Option<u32>,
    /// How long a busy queue is retried, in milliseconds.
    pub bind_timeout_ms: u64,
}

/// An open queue: to be put into the XSKMAP slot `queue` of its port.
#[derive(Clone, Debug)]
pub struct QueueSocket {
    /// The port.
    pub port: PortId,
    /// The queue.
    pub queue: QueueId,
    /// The worker that polls it.
    pub worker: usize,
    /// The socket, open as long as the port is.
    pub fd: RawFd,
    /// Whether the kernel reports zero-copy.
    pub zero_copy: bool,
    /// How long its bind took, retries included, in microseconds.
    pub bind_micros: u64,
}

/// Counts of a queue since it was opened.
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
    /// Frames released because the TX ring was full.
    pub tx_full: u64,
    /// Frames that the kernel took and lost (EBUSY: queue of the device full).
    pub tx_lost: u64,
    /// Frames from or to this queue that were lost because the port went.
    pub port_lost: u64,
    /// Descriptors from the kernel that named no frame of this queue.
    pub bad_descriptors: u64,
    /// Kernel: packets dropped because of an invalid fill descriptor or a too small frame.
    pub kernel_rx_dropped: u64,
    /// Kernel: packets dropped because the RX ring was full.
    pub kernel_rx_ring_full: u64,
    /// Kernel: times that the fill ring was found empty.
    pub kernel_fill_empty: u64,
    /// Kernel: invalid TX descriptors.
    pub kernel_tx_invalid: u64,
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
    queues: Vec<QueueSocket>,
}

/// Opens every port, with a pool of frames, for `workers` workers; the answer has one [`XskIo`] for each.
///
/// # Errors
/// See [`XskError`]. Nothing stays open.
pub fn open(config: &Config) -> Result<(Sockets, Vec<XskIo>), XskError> {
    let _ = config;
    Err(XskError::NoAfXdp)
}

impl Sockets {
    /// The open queues.
    pub fn queues(&self) -> &[QueueSocket] {
        &self.queues
    }

    /// Ports that were open and are lost: the device is gone. To be given to [`Self::close`], and, when the
    /// device is back, to [`Self::reopen`].
    pub fn lost(&self) -> Vec<PortId> {
        Vec::new()
    }

    /// Closes a port. Its frames come home; others are not touched. Waits for the workers to let go of it.
    ///
    /// # Errors
    /// The port is not known, or a worker did not let go within a second.
    pub fn close(&mut self, port: PortId) -> Result<(), XskError> {
        Err(XskError::Config(format!("port {} is not open", port.0)))
    }

    /// Opens a port again, or a new one, and hands its queues to the workers. The new sockets are in
    /// [`Self::queues`] and have to be registered.
    ///
    /// # Errors
    /// As [`open`]; the other ports are not touched.
    pub fn reopen(&mut self, port: &PortConfig) -> Result<(), XskError> {
        Err(XskError::NoInterface(port.name.clone()))
    }

    /// Counts of every open queue.
    pub fn stats(&self) -> Vec<(PortId, QueueId, QueueStats)> {
        Vec::new()
    }

    /// Where the frames are.
    pub fn accounts(&self) -> Accounts {
        Accounts::default()
    }
}
