//! A stand-in for the workers: an AF_XDP socket on the far end of the ask pair, whose asks are judged by a function.
#![allow(unsafe_code)] // rings of an AF_XDP socket, shared with the kernel

use std::{
    io, mem,
    net::{IpAddr, Ipv6Addr},
    os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
    ptr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU32, Ordering, fence},
    },
    thread::JoinHandle,
};

use ringwall_bpf::node::NodeMemory;

use crate::net::Namespace;

/// Length of `struct rw_ask`.
pub const HEADER: usize = 120;
const ANSWER: usize = HEADER - 16;
/// Behind its Ethernet header.
const METADATA: usize = ANSWER + 14;

pub const SRC_LOCAL: u8 = 1;
pub const DST_LOCAL: u8 = 2;
pub const NO_LINK: u8 = 4;
pub const CACHEABLE: u8 = 8;
pub const MIDSTREAM: u8 = 16;

/// `Ask::conntrack` of an answer.
const REPLY: u8 = 2;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tuple {
    pub bytes: [u8; 36],
}

fn ip(bytes: &[u8]) -> IpAddr {
    Ipv6Addr::from(<[u8; 16]>::try_from(bytes).unwrap()).to_canonical()
}

impl Tuple {
    pub fn src(&self) -> IpAddr {
        ip(&self.bytes[0..16])
    }
    pub fn dst(&self) -> IpAddr {
        ip(&self.bytes[16..32])
    }
    pub fn src_port(&self) -> u16 {
        u16::from_be_bytes([self.bytes[32], self.bytes[33]])
    }
    pub fn dst_port(&self) -> u16 {
        u16::from_be_bytes([self.bytes[34], self.bytes[35]])
    }
}

/// `struct rw_ask` with the frame behind it.
#[derive(Clone, Debug)]
pub struct Ask {
    pub out_ifindex: u32,
    pub nonce: [u32; 2],
    pub ethertype: u16,
    pub conntrack: u8,
    pub flags: u8,
    pub in_ifindex: u32,
    pub signature: u32,
    pub buckets: [u32; 2],
    pub zone: u16,
    pub protocol: u8,
    pub version: u8,
    pub original: Tuple,
    pub reply: Tuple,
    pub subject: u32,
    pub queue: u32,
    pub ticket: u32,
    pub frame: Vec<u8>,
}

impl Ask {
    fn parse(bytes: &[u8]) -> Self {
        let word = |at: usize| u32::from_ne_bytes(bytes[at..at + 4].try_into().unwrap());
        Self {
            out_ifindex: word(0),
            nonce: [word(4), word(8)],
            ethertype: u16::from_be_bytes([bytes[12], bytes[13]]),
            conntrack: bytes[14],
            flags: bytes[15],
            in_ifindex: word(16),
            signature: word(20),
            buckets: [word(24), word(28)],
            zone: u16::from_ne_bytes([bytes[32], bytes[33]]),
            protocol: bytes[34],
            version: bytes[35],
            original: Tuple {
                bytes: bytes[36..72].try_into().unwrap(),
            },
            reply: Tuple {
                bytes: bytes[72..108].try_into().unwrap(),
            },
            subject: word(108),
            queue: word(112),
            ticket: word(116),
            frame: bytes[HEADER..].to_vec(),
        }
    }

    /// Whether it begins a TCP connection, or answers that.
    pub fn is_syn(&self) -> bool {
        let header = if self.ethertype == 0x0800 {
            usize::from(self.frame[14] & 0xf) * 4
        } else {
            40
        };
        self.protocol == 6
            && self
                .frame
                .get(14 + header + 13)
                .is_some_and(|flags| flags & 2 != 0)
    }

    /// Who sends to whom, without NAT's disguise.
    pub fn true_pair(&self) -> (IpAddr, IpAddr) {
        (self.original.src(), self.reply.src())
    }
}

/// What to do with an ask.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Return the packet; write an entry if it may be cached.
    Allow,
    /// Return the packet and remember nothing.
    AllowOnce,
    /// Drop; write an entry that stands for a while.
    Deny,
    /// Drop and remember nothing.
    DenyOnce,
}

pub trait Judge: FnMut(&Ask) -> Verdict + Send + 'static {}
impl<F: FnMut(&Ask) -> Verdict + Send + 'static> Judge for F {}

/// CLOCK_MONOTONIC in ns.
pub fn now() -> u64 {
    // SAFETY: zeroes are a valid timespec; the call fills it.
    let mut time: libc::timespec = unsafe { mem::zeroed() };
    // SAFETY: a valid pointer to a local.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut time) };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// How a worker's entry looks.
#[derive(Clone, Debug)]
pub struct Entry {
    pub index: u32,
    pub version: u32,
    pub action: u8,
    pub zone: u16,
    pub protocol: u8,
    pub original: Tuple,
    pub reply: Tuple,
    pub slots: [u32; 3],
    pub epochs: [u32; 3],
    pub expires: u64,
    pub in_ifindex: u32,
}

impl Entry {
    /// For an ask, in the first way of its first bucket, with epochs as they are.
    pub fn new(ask: &Ask, action: u8, memory: &NodeMemory) -> Self {
        let slots = slots(ask);
        Self {
            index: ask.buckets[0] * 8,
            version: 2,
            action,
            zone: ask.zone,
            protocol: ask.protocol,
            original: ask.original.clone(),
            reply: ask.reply.clone(),
            slots,
            epochs: slots.map(|slot| memory.epoch(slot)),
            expires: 0,
            in_ifindex: if ask.conntrack == REPLY { 0 } else { ask.in_ifindex },
        }
    }

    pub fn write(&self, memory: &NodeMemory, signature: u32) {
        let mut bytes = [0u8; 128];
        bytes[0..4].copy_from_slice(&self.version.to_ne_bytes());
        bytes[4] = self.action;
        bytes[6..8].copy_from_slice(&self.zone.to_ne_bytes());
        bytes[8] = self.protocol;
        bytes[12..48].copy_from_slice(&self.original.bytes);
        bytes[48..84].copy_from_slice(&self.reply.bytes);
        for i in 0..3 {
            bytes[84 + 4 * i..88 + 4 * i].copy_from_slice(&self.slots[i].to_ne_bytes());
            bytes[96 + 4 * i..100 + 4 * i].copy_from_slice(&self.epochs[i].to_ne_bytes());
        }
        bytes[108..112].copy_from_slice(&self.in_ifindex.to_ne_bytes());
        bytes[112..120].copy_from_slice(&self.expires.to_ne_bytes());
        let offset = self.index as usize * 128;
        assert!(offset + 128 <= memory.entries.length());
        // SAFETY: within the mapped areas, aligned; the programs read it as bytes.
        unsafe {
            let entry = memory.entries.start().as_ptr().add(offset);
            let signatures = memory.buckets.start().as_ptr().cast::<u32>();
            let place = AtomicU32::from_ptr(signatures.add(self.index as usize));
            place.store(0, Ordering::Release);
            fence(Ordering::SeqCst);
            ptr::copy_nonoverlapping(bytes.as_ptr(), entry, 128);
            fence(Ordering::SeqCst);
            place.store(signature, Ordering::Release);
        }
    }
}

/// The slots of the epochs of an ask's ends, as a test wants them: by the last byte of the true ends' addresses.
pub fn slots(ask: &Ask) -> [u32; 3] {
    let of = |address: IpAddr| match address {
        IpAddr::V4(address) => 100 + u32::from(address.octets()[3]),
        IpAddr::V6(address) => 400 + u32::from(address.octets()[15]),
    };
    let (src, dst) = ask.true_pair();
    [of(src), of(dst), 0]
}

/// Packets and bytes of an entry, by direction.
pub fn usage(memory: &NodeMemory, index: u32) -> ([u64; 2], [u64; 2], [u8; 2]) {
    let offset = index as usize * 64;
    assert!(offset + 64 <= memory.usage.length());
    // SAFETY: within the mapped area.
    let bytes: [u8; 64] = unsafe { ptr::read_volatile(memory.usage.start().as_ptr().add(offset).cast()) };
    let long = |at: usize| u64::from_ne_bytes(bytes[at..at + 8].try_into().unwrap());
    ([long(0), long(8)], [long(16), long(24)], [bytes[40], bytes[41]])
}

/// The stand-in, on a thread of its own.
pub struct Answerer {
    socket: OwnedFd,
    stop: Arc<AtomicBool>,
    asleep: Arc<AtomicBool>,
    asks: Arc<Mutex<Vec<Ask>>>,
    thread: Option<JoinHandle<()>>,
}

impl Answerer {
    pub fn start(
        worker: &Namespace,
        memory: Arc<NodeMemory>,
        nonce: [u32; 2],
        mut judge: impl Judge,
    ) -> Self {
        // The kernel gives the queue of a socket that was closed free a little later.
        let mut rings = None;
        crate::node_rig::wait_until(
            || {
                rings = worker.within(|| Rings::open("ask1").ok());
                rings.is_some()
            },
            || "the queue of ask1 stays taken".to_owned(),
        );
        let mut rings = rings.unwrap();
        let (stop, asleep) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        let asks = Arc::new(Mutex::new(Vec::new()));
        memory.beat(now());
        let socket = rings.socket.try_clone().unwrap();
        let (stopped, sleeping, seen) = (stop.clone(), asleep.clone(), asks.clone());
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                if !sleeping.load(Ordering::Relaxed) {
                    memory.beat(now());
                }
                rings.turn(|bytes| {
                    let ask = Ask::parse(bytes);
                    assert_eq!((ask.nonce, ask.version), (nonce, 2));
                    let verdict = judge(&ask);
                    if ask.flags & CACHEABLE != 0 {
                        let (action, expires) = match verdict {
                            Verdict::Allow => (1, 0),
                            Verdict::Deny => (2, now() + 60_000_000_000),
                            _ => (0, 0),
                        };
                        let mut entry = Entry::new(&ask, action, &memory);
                        entry.expires = expires;
                        if action != 0 {
                            entry.write(&memory, ask.signature);
                        }
                    }
                    let answer = matches!(verdict, Verdict::Allow | Verdict::AllowOnce);
                    if answer {
                        bytes.copy_within(HEADER..HEADER + 14, ANSWER);
                        bytes[METADATA..METADATA + 4].copy_from_slice(&ask.out_ifindex.to_ne_bytes());
                        bytes[METADATA + 4..METADATA + 8].copy_from_slice(&nonce[0].to_ne_bytes());
                        bytes[METADATA + 8..METADATA + 12].copy_from_slice(&nonce[1].to_ne_bytes());
                        bytes[METADATA + 12..METADATA + 16]
                            .copy_from_slice(&u32::from(ask.flags & NO_LINK).to_ne_bytes());
                    }
                    seen.lock().unwrap().push(ask);
                    answer
                });
            }
        });
        Self {
            socket,
            stop,
            asleep,
            asks,
            thread: Some(thread),
        }
    }

    pub fn asks(&self) -> Vec<Ask> {
        self.asks.lock().unwrap().clone()
    }

    /// Stops saying that the workers are alive.
    pub fn fall_silent(&self) {
        self.asleep.store(true, Ordering::Relaxed);
    }
}

impl AsFd for Answerer {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Drop for Answerer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let ended = self.thread.take().map(JoinHandle::join);
        if !std::thread::panicking() {
            ended.unwrap().unwrap();
        }
    }
}

const FRAMES: usize = 128;
const FRAME: usize = 4096;

struct Ring {
    start: *mut libc::c_void,
    length: usize,
    producer: *const AtomicU32,
    consumer: *const AtomicU32,
    entries: *mut u8,
}

impl Ring {
    fn map(socket: &OwnedFd, offsets: &libc::xdp_ring_offset, place: i64, entry: usize) -> io::Result<Self> {
        let length = offsets.desc as usize + FRAMES * entry;
        // SAFETY: a new mapping; the answer is checked.
        let start = unsafe {
            libc::mmap(
                ptr::null_mut(),
                length,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED | libc::MAP_POPULATE,
                socket.as_raw_fd(),
                place,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: offsets of the kernel within its own mapping.
        unsafe {
            Ok(Self {
                start,
                length,
                producer: start.add(offsets.producer as usize).cast(),
                consumer: start.add(offsets.consumer as usize).cast(),
                entries: start.add(offsets.desc as usize).cast(),
            })
        }
    }

    fn push<T>(&mut self, value: T) {
        // SAFETY: as many entries as frames, each frame in one ring at a time: there is room.
        unsafe {
            let at = (*self.producer).load(Ordering::Relaxed);
            self.entries.cast::<T>().add(at as usize % FRAMES).write(value);
            (*self.producer).store(at.wrapping_add(1), Ordering::Release);
        }
    }

    fn pop<T: Copy>(&mut self) -> Option<T> {
        // SAFETY: read only where the kernel has produced.
        unsafe {
            let at = (*self.consumer).load(Ordering::Relaxed);
            if (*self.producer).load(Ordering::Acquire) == at {
                return None;
            }
            let value = self.entries.cast::<T>().add(at as usize % FRAMES).read();
            (*self.consumer).store(at.wrapping_add(1), Ordering::Release);
            Some(value)
        }
    }
}

/// A mapping holds the socket as a descriptor does.
impl Drop for Ring {
    fn drop(&mut self) {
        // SAFETY: the mapping of `map`, which nobody uses any more.
        unsafe { libc::munmap(self.start, self.length) };
    }
}

struct Rings {
    socket: OwnedFd,
    memory: *mut u8,
    fill: Ring,
    completion: Ring,
    rx: Ring,
    tx: Ring,
}

// SAFETY: used by one thread at a time.
unsafe impl Send for Rings {}

fn option<T>(socket: &OwnedFd, name: i32, value: &T) -> io::Result<()> {
    // SAFETY: pointer and length are of `value`.
    let answer = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_XDP,
            name,
            ptr::from_ref(value).cast(),
            mem::size_of::<T>() as u32,
        )
    };
    if answer < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

impl Rings {
    fn open(interface: &str) -> io::Result<Self> {
        let name = std::ffi::CString::new(interface).unwrap();
        // SAFETY: plain system calls; the mapping is anonymous; every answer is checked.
        let (socket, memory, ifindex) = unsafe {
            let fd = libc::socket(libc::AF_XDP, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0);
            if fd < 0 {
                return Err(io::Error::last_os_error());
            }
            let memory = libc::mmap(
                ptr::null_mut(),
                FRAMES * FRAME,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_POPULATE,
                -1,
                0,
            );
            if memory == libc::MAP_FAILED {
                return Err(io::Error::last_os_error());
            }
            (
                OwnedFd::from_raw_fd(fd),
                memory.cast::<u8>(),
                libc::if_nametoindex(name.as_ptr()),
            )
        };
        // SAFETY: zeroes are valid for plain data.
        let mut registration: libc::xdp_umem_reg = unsafe { mem::zeroed() };
        registration.addr = memory as u64;
        registration.len = (FRAMES * FRAME) as u64;
        registration.chunk_size = FRAME as u32;
        option(&socket, libc::XDP_UMEM_REG, &registration)?;
        for ring in [
            libc::XDP_UMEM_FILL_RING,
            libc::XDP_UMEM_COMPLETION_RING,
            libc::XDP_RX_RING,
            libc::XDP_TX_RING,
        ] {
            option(&socket, ring, &(FRAMES as u32))?;
        }
        // SAFETY: zeroes are valid for plain data.
        let mut offsets: libc::xdp_mmap_offsets = unsafe { mem::zeroed() };
        let mut length = mem::size_of_val(&offsets) as u32;
        // SAFETY: pointer and length are of `offsets`.
        let answer = unsafe {
            libc::getsockopt(
                socket.as_raw_fd(),
                libc::SOL_XDP,
                libc::XDP_MMAP_OFFSETS,
                (&raw mut offsets).cast(),
                &mut length,
            )
        };
        if answer < 0 {
            return Err(io::Error::last_os_error());
        }
        let mut fill = Ring::map(&socket, &offsets.fr, libc::XDP_UMEM_PGOFF_FILL_RING as i64, 8)?;
        let completion = Ring::map(
            &socket,
            &offsets.cr,
            libc::XDP_UMEM_PGOFF_COMPLETION_RING as i64,
            8,
        )?;
        let rx = Ring::map(&socket, &offsets.rx, libc::XDP_PGOFF_RX_RING, 16)?;
        let tx = Ring::map(&socket, &offsets.tx, libc::XDP_PGOFF_TX_RING, 16)?;
        for frame in 0..FRAMES {
            fill.push((frame * FRAME) as u64);
        }
        // SAFETY: zeroes are valid for plain data.
        let mut address: libc::sockaddr_xdp = unsafe { mem::zeroed() };
        address.sxdp_family = libc::AF_XDP as u16;
        address.sxdp_flags = libc::XDP_COPY;
        address.sxdp_ifindex = ifindex;
        // SAFETY: pointer and length are of `address`.
        let answer = unsafe {
            libc::bind(
                socket.as_raw_fd(),
                (&raw const address).cast(),
                mem::size_of_val(&address) as u32,
            )
        };
        if answer < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(Self {
            socket,
            memory,
            fill,
            completion,
            rx,
            tx,
        })
    }

    /// Waits a little for asks and gives each to `judge`; what it returns true for goes back, from `ANSWER` on.
    fn turn(&mut self, mut judge: impl FnMut(&mut [u8]) -> bool) {
        let mut wait = libc::pollfd {
            fd: self.socket.as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        };
        // SAFETY: one entry, which outlives the call.
        unsafe { libc::poll(&mut wait, 1, 20) };
        let mut sent = false;
        while let Some(description) = self.rx.pop::<libc::xdp_desc>() {
            let (address, length) = (description.addr as usize, description.len as usize);
            assert!(address + length <= FRAMES * FRAME);
            // SAFETY: within the memory, and the frame is ours until it is pushed.
            let bytes = unsafe { std::slice::from_raw_parts_mut(self.memory.add(address), length) };
            if judge(bytes) {
                self.tx.push(libc::xdp_desc {
                    addr: (address + ANSWER) as u64,
                    len: (length - ANSWER) as u32,
                    options: 0,
                });
                sent = true;
            } else {
                self.fill.push((address / FRAME * FRAME) as u64);
            }
        }
        if sent {
            // SAFETY: no pointers.
            unsafe {
                libc::sendto(
                    self.socket.as_raw_fd(),
                    ptr::null(),
                    0,
                    libc::MSG_DONTWAIT,
                    ptr::null(),
                    0,
                )
            };
        }
        while let Some(address) = self.completion.pop::<u64>() {
            self.fill.push(address / FRAME as u64 * FRAME as u64);
        }
    }
}
