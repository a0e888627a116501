//! The plainest forwarder on AF_XDP: raw rings, one thread, one direction, nothing read or counted. What ringwall's ring layer
//! is compared with; its own process, `ringwall-bench raw-forward`.
#![allow(unsafe_code)] // rings and packet memory are shared with the kernel

use std::{
    ffi::CString,
    io,
    mem::{size_of, zeroed},
    os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd},
    ptr,
    sync::atomic::{AtomicU32, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, bail, ensure};
use ringwall_bpf::peers::Peers;

/// Forwards until it is killed.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct Options {
    /// Interface to receive from, on its queue 0
    from: String,
    /// Interface to send to
    to: String,
    /// Entries of each ring, a power of two
    ring: u32,
    /// CPU to run on
    cpu: usize,
}

/// As ringwall has them by default, for packets of up to 1,792 bytes.
const FRAME: usize = 2048;
const BURST: u32 = 64;
/// `linux/if_xdp.h`, since Linux 6.17.
const XDP_MAX_TX_SKB_BUDGET: i32 = 9;
/// Bytes that may be on their way out of a socket.
const SEND_BUFFER: i32 = 8 << 20;
/// How long a queue may stay busy.
const BUSY: Duration = Duration::from_secs(2);

/// Forwards until somebody ends the process.
pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    ensure!(
        options.ring.is_power_of_two(),
        "a ring of {}: want a power of two",
        options.ring
    );
    core_affinity::set_for_current(core_affinity::CoreId { id: options.cpu });
    let mut forwarder = Forwarder::open(options)?;
    let peers = Peers::load()?;
    let _link = peers.steer(&options.from, 0, forwarder.from.as_fd())?;
    println!("ready");
    loop {
        forwarder.turn()?;
    }
}

/// One side's view of a ring.
struct Ring<T> {
    producer: *const AtomicU32,
    consumer: *const AtomicU32,
    entries: *mut T,
    mask: u32,
}

impl<T: Copy> Ring<T> {
    /// Maps a ring of a socket.
    fn map(
        socket: &OwnedFd,
        offsets: &libc::xdp_ring_offset,
        size: u32,
        page: libc::off_t,
    ) -> io::Result<Self> {
        let length = offsets.desc as usize + size as usize * size_of::<T>();
        // SAFETY: a new mapping of a ring that the kernel made for this socket; it checks length and offset.
        let base = unsafe {
            libc::mmap(
                ptr::null_mut(),
                length,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED | libc::MAP_POPULATE,
                socket.as_raw_fd(),
                page,
            )
        };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let at = |offset: u64| base.cast::<u8>().wrapping_add(offset as usize);
        Ok(Self {
            producer: at(offsets.producer).cast(),
            consumer: at(offsets.consumer).cast(),
            entries: at(offsets.desc).cast(),
            mask: size - 1,
        })
    }

    fn indices(&self) -> (&AtomicU32, &AtomicU32) {
        // SAFETY: both lie in the mapping, which stays for the process's life, and are aligned as the kernel lays them out.
        unsafe { (&*self.producer, &*self.consumer) }
    }

    /// Takes up to a burst of what the kernel has put there.
    fn take(&self, mut each: impl FnMut(T)) -> u32 {
        let (producer, consumer) = self.indices();
        let begin = consumer.load(Ordering::Relaxed);
        let count = producer.load(Ordering::Acquire).wrapping_sub(begin).min(BURST);
        for step in 0..count {
            // SAFETY: masked, so inside of the ring; between consumer and producer, so the kernel has written it.
            each(unsafe { *self.entries.add((begin.wrapping_add(step) & self.mask) as usize) });
        }
        consumer.store(begin.wrapping_add(count), Ordering::Release);
        count
    }

    /// Gives the kernel what `next` answers, as far as there is room; answers how much.
    fn give(&self, most: u32, mut next: impl FnMut() -> Option<T>) -> u32 {
        let (producer, consumer) = self.indices();
        let begin = producer.load(Ordering::Relaxed);
        let used = begin.wrapping_sub(consumer.load(Ordering::Acquire));
        let mut count = 0;
        while count < most.min(self.mask + 1 - used) {
            let Some(entry) = next() else { break };
            // SAFETY: masked, so inside of the ring; past the producer, so it is ours to write.
            unsafe { *self.entries.add((begin.wrapping_add(count) & self.mask) as usize) = entry };
            count += 1;
        }
        producer.store(begin.wrapping_add(count), Ordering::Release);
        count
    }

    fn is_empty(&self) -> bool {
        let (producer, consumer) = self.indices();
        producer.load(Ordering::Relaxed) == consumer.load(Ordering::Acquire)
    }
}

struct Forwarder {
    from: OwnedFd,
    to: OwnedFd,
    receive: Ring<libc::xdp_desc>,
    fill: Ring<u64>,
    transmit: Ring<libc::xdp_desc>,
    completion: Ring<u64>,
    free: Vec<u64>,
    received: Vec<libc::xdp_desc>,
}

impl Forwarder {
    fn open(options: &Options) -> anyhow::Result<Self> {
        let ring = options.ring;
        let frames = u64::from(ring) * 2 + u64::from(BURST);
        let from = socket()?;
        let length = frames as usize * FRAME;
        // SAFETY: a new mapping of nothing else.
        let memory = unsafe {
            libc::mmap(
                ptr::null_mut(),
                length,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_POPULATE,
                -1,
                0,
            )
        };
        if memory == libc::MAP_FAILED {
            return Err(io::Error::last_os_error()).context("mapping packet memory");
        }
        // SAFETY: plain numbers, for which zero is a value.
        let mut umem: libc::xdp_umem_reg = unsafe { zeroed() };
        umem.addr = memory as u64;
        umem.len = length as u64;
        umem.chunk_size = FRAME as u32;
        set(&from, libc::XDP_UMEM_REG, &umem).context("registering packet memory")?;
        let to = socket()?;
        for (socket, rings) in [
            (&from, [libc::XDP_RX_RING, libc::XDP_UMEM_FILL_RING]),
            (&to, [libc::XDP_TX_RING, libc::XDP_UMEM_COMPLETION_RING]),
        ] {
            for option in rings {
                set(socket, option, &ring).context("making a ring")?;
            }
        }
        // A socket has both rings of packet memory or none.
        set(&from, libc::XDP_UMEM_COMPLETION_RING, &ring).context("making a ring")?;
        set(&to, libc::XDP_UMEM_FILL_RING, &ring).context("making a ring")?;
        let offsets = offsets(&from)?;
        let mapped = "mapping a ring";
        let receive = Ring::map(&from, &offsets.rx, ring, libc::XDP_PGOFF_RX_RING).context(mapped)?;
        let fill = Ring::map(
            &from,
            &offsets.fr,
            ring,
            libc::XDP_UMEM_PGOFF_FILL_RING as libc::off_t,
        )
        .context(mapped)?;
        let transmit = Ring::map(&to, &offsets.tx, ring, libc::XDP_PGOFF_TX_RING).context(mapped)?;
        let completion = Ring::map(
            &to,
            &offsets.cr,
            ring,
            libc::XDP_UMEM_PGOFF_COMPLETION_RING as libc::off_t,
        )
        .context(mapped)?;
        bind(
            &from,
            &options.from,
            libc::XDP_COPY | libc::XDP_USE_NEED_WAKEUP,
            None,
        )?;
        bind(&to, &options.to, libc::XDP_SHARED_UMEM, Some(&from))?;
        // Neither is needed, and not every kernel has both.
        let _ = set_at(&to, libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, &SEND_BUFFER);
        let _ = set(&to, XDP_MAX_TX_SKB_BUDGET, &ring);
        Ok(Self {
            from,
            to,
            receive,
            fill,
            transmit,
            completion,
            free: (0..frames).map(|frame| frame * FRAME as u64).collect(),
            received: Vec::with_capacity(BURST as usize),
        })
    }

    fn turn(&mut self) -> anyhow::Result<()> {
        let Self { free, received, .. } = self;
        self.receive.take(|descriptor| received.push(descriptor));
        let mut waiting = received.iter();
        self.transmit.give(BURST, || waiting.next().copied());
        // What found no room on the ring is lost.
        free.extend(waiting.map(|descriptor| descriptor.addr & !(FRAME as u64 - 1)));
        received.clear();
        if !self.transmit.is_empty() {
            // SAFETY: no buffer is passed.
            let sent = unsafe {
                libc::sendto(
                    self.to.as_raw_fd(),
                    ptr::null(),
                    0,
                    libc::MSG_DONTWAIT,
                    ptr::null(),
                    0,
                )
            };
            let error = io::Error::last_os_error();
            if sent < 0
                && !matches!(
                    error.raw_os_error(),
                    Some(libc::EAGAIN | libc::EBUSY | libc::ENOBUFS)
                )
            {
                bail!("sending: {error}");
            }
        }
        while self
            .completion
            .take(|address| free.push(address & !(FRAME as u64 - 1)))
            > 0
        {}
        self.fill.give(self.fill.mask + 1, || free.pop());
        Ok(())
    }
}

fn socket() -> anyhow::Result<OwnedFd> {
    // SAFETY: no pointer is passed.
    let number = unsafe { libc::socket(libc::AF_XDP, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
    if number < 0 {
        return Err(io::Error::last_os_error()).context("opening an AF_XDP socket, which takes CAP_NET_RAW");
    }
    // SAFETY: a new descriptor that nothing else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

fn set<T>(socket: &OwnedFd, option: i32, value: &T) -> io::Result<()> {
    set_at(socket, libc::SOL_XDP, option, value)
}

fn set_at<T>(socket: &OwnedFd, level: i32, option: i32, value: &T) -> io::Result<()> {
    // SAFETY: the kernel reads as many bytes as the value has.
    let answer = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            option,
            ptr::from_ref(value).cast(),
            size_of::<T>() as libc::socklen_t,
        )
    };
    if answer == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

fn offsets(socket: &OwnedFd) -> anyhow::Result<libc::xdp_mmap_offsets> {
    // SAFETY: plain numbers, for which zero is a value.
    let mut offsets: libc::xdp_mmap_offsets = unsafe { zeroed() };
    let mut length = size_of::<libc::xdp_mmap_offsets>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `length` bytes of `offsets`.
    let answer = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_XDP,
            libc::XDP_MMAP_OFFSETS,
            ptr::from_mut(&mut offsets).cast(),
            &raw mut length,
        )
    };
    ensure!(
        answer == 0,
        "reading where rings lie: {}",
        io::Error::last_os_error()
    );
    Ok(offsets)
}

/// Binds to queue 0 of an interface; with the packet memory of `shared`.
fn bind(socket: &OwnedFd, interface: &str, flags: u16, shared: Option<&OwnedFd>) -> anyhow::Result<()> {
    let name = CString::new(interface)?;
    // SAFETY: a string that ends with a zero.
    let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
    ensure!(index != 0, "no interface `{interface}`");
    let address = libc::sockaddr_xdp {
        sxdp_family: libc::AF_XDP as u16,
        sxdp_flags: flags,
        sxdp_ifindex: index,
        sxdp_queue_id: 0,
        sxdp_shared_umem_fd: shared.map_or(0, |socket| socket.as_raw_fd() as u32),
    };
    let start = Instant::now();
    loop {
        // SAFETY: the kernel reads as many bytes as the address has.
        let answer = unsafe {
            libc::bind(
                socket.as_raw_fd(),
                ptr::from_ref(&address).cast(),
                size_of::<libc::sockaddr_xdp>() as libc::socklen_t,
            )
        };
        let error = io::Error::last_os_error();
        match (answer, error.raw_os_error()) {
            (0, _) => return Ok(()),
            // The queue may be another process's that has just ended.
            (_, Some(libc::EBUSY)) if start.elapsed() < BUSY => thread::sleep(BUSY / 50),
            _ => bail!("binding to `{interface}`: {error}"),
        }
    }
}
