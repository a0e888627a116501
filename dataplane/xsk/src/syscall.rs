//! System calls on sockets and event descriptors that xsk-rs does not have.
#![allow(unsafe_code)] // thin wrappers of C functions; every pointer is to a local that outlives the call

use std::{
    io, mem,
    os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
    ptr,
    time::Duration,
};

/// `XDP_MAX_TX_SKB_BUDGET` of `linux/if_xdp.h` (Linux 6.17).
const XDP_MAX_TX_SKB_BUDGET: libc::c_int = 9;
/// `XDP_OPTIONS`, and its flag for zero-copy.
const XDP_OPTIONS: libc::c_int = 8;
const XDP_OPTIONS_ZEROCOPY: u32 = 1;
/// `XDP_STATISTICS`.
const XDP_STATISTICS: libc::c_int = 7;

/// `struct xdp_statistics`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct KernelStats {
    pub(crate) rx_dropped: u64,
    pub(crate) rx_invalid_descs: u64,
    pub(crate) tx_invalid_descs: u64,
    pub(crate) rx_ring_full: u64,
    pub(crate) rx_fill_ring_empty_descs: u64,
    pub(crate) tx_ring_empty_descs: u64,
}

fn check_result(value: libc::c_int) -> io::Result<libc::c_int> {
    if value < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(value)
    }
}

fn set_option(fd: RawFd, level: libc::c_int, option: libc::c_int, value: u32) -> io::Result<()> {
    // SAFETY: `value` is 4 readable bytes, as the length says, and outlives the call.
    check_result(unsafe { libc::setsockopt(fd, level, option, (&raw const value).cast(), 4) }).map(drop)
}

fn get_option<T: Default>(fd: RawFd, option: libc::c_int) -> io::Result<T> {
    let mut value = T::default();
    let mut length = mem::size_of::<T>() as libc::socklen_t;
    // SAFETY: `value` is `length` writable bytes of a type that every caller here has made of integers alone.
    check_result(unsafe {
        libc::getsockopt(fd, libc::SOL_XDP, option, (&raw mut value).cast(), &mut length)
    })?;
    Ok(value)
}

/// Has the kernel allocate so many blocks of so many bytes, whole pages each, and keep them until the answer is closed: as
/// a packet ring that receives nothing.
pub(crate) fn warm_allocator(blocks: u32, bytes: u32) -> io::Result<OwnedFd> {
    // SAFETY: no pointers.
    let fd = check_result(unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) })?;
    // SAFETY: just opened, nobody else has it.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    let ring = libc::tpacket_req {
        tp_block_size: bytes,
        tp_block_nr: blocks,
        tp_frame_size: bytes,
        tp_frame_nr: blocks,
    };
    let length = mem::size_of_val(&ring) as libc::socklen_t;
    // SAFETY: `ring` is `length` readable bytes and outlives the call.
    check_result(unsafe {
        libc::setsockopt(
            fd,
            libc::SOL_PACKET,
            libc::PACKET_RX_RING,
            (&raw const ring).cast(),
            length,
        )
    })?;
    Ok(socket)
}

/// Tells the kernel to send what is on the TX ring. The error is the kernel's own.
pub(crate) fn kick(fd: RawFd) -> Result<(), i32> {
    // SAFETY: a length of 0 with no buffer and no address.
    let sent = unsafe { libc::sendto(fd, ptr::null(), 0, libc::MSG_DONTWAIT, ptr::null(), 0) };
    if sent >= 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error().raw_os_error().unwrap_or(0))
    }
}

/// Whether the socket's device is gone: the kernel has unbound it. It does not come back by itself. A device that is
/// only down still has its socket.
pub(crate) fn is_unbound(fd: RawFd) -> bool {
    // SAFETY: a length of 0 with no buffer and no address.
    let answer = unsafe {
        libc::recvfrom(
            fd,
            ptr::null_mut(),
            0,
            libc::MSG_DONTWAIT,
            ptr::null_mut(),
            ptr::null_mut(),
        )
    };
    answer < 0 && io::Error::last_os_error().raw_os_error() == Some(libc::ENXIO)
}

/// Tells a driver that waits for it that there are frames on the fill ring.
pub(crate) fn wake_receive(fd: RawFd) {
    // SAFETY: a length of 0 with no buffer and no address.
    unsafe {
        libc::recvfrom(
            fd,
            ptr::null_mut(),
            0,
            libc::MSG_DONTWAIT,
            ptr::null_mut(),
            ptr::null_mut(),
        )
    };
}

/// Lets the socket have 8 MB of packets in flight, and send a whole ring per kick. Best effort: without the first,
/// bulk traffic is slower; without the second, more kicks are made.
pub(crate) fn enlarge_send_buffer(fd: RawFd, tx_ring: u32) {
    let _ = set_option(fd, libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, 8 << 20);
    let _ = set_option(fd, libc::SOL_XDP, XDP_MAX_TX_SKB_BUDGET, tx_ring.max(32));
}

/// Whether a bound socket is zero-copy.
pub(crate) fn is_zero_copy(fd: RawFd) -> io::Result<bool> {
    Ok(get_option::<u32>(fd, XDP_OPTIONS)? & XDP_OPTIONS_ZEROCOPY != 0)
}

/// The kernel's counts of a socket.
pub(crate) fn statistics(fd: RawFd) -> io::Result<KernelStats> {
    get_option(fd, XDP_STATISTICS)
}

/// Whether the kernel has AF_XDP sockets; an error where it does not let us find out.
pub(crate) fn probe_af_xdp() -> io::Result<bool> {
    // SAFETY: no pointers.
    match check_result(unsafe { libc::socket(libc::AF_XDP, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) }) {
        Ok(fd) => {
            // SAFETY: just opened, nobody else has it.
            drop(unsafe { OwnedFd::from_raw_fd(fd) });
            Ok(true)
        }
        Err(error) if error.raw_os_error() == Some(libc::EAFNOSUPPORT) => Ok(false),
        Err(error) => Err(error),
    }
}

/// A new descriptor of the same socket, closed on exec.
pub(crate) fn duplicate(fd: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: no pointers.
    let fd = check_result(unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, 0) })?;
    // SAFETY: just opened, nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// An event counter, read and written without waiting.
pub(crate) fn create_event() -> io::Result<OwnedFd> {
    // SAFETY: no pointers.
    let fd = check_result(unsafe { libc::eventfd(0, libc::EFD_NONBLOCK | libc::EFD_CLOEXEC) })?;
    // SAFETY: just opened, nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Raises an event.
pub(crate) fn signal_event(event: BorrowedFd<'_>) -> io::Result<()> {
    let one = 1u64;
    // SAFETY: 8 readable bytes that outlive the call.
    if unsafe { libc::write(event.as_raw_fd(), (&raw const one).cast(), 8) } == 8 {
        return Ok(());
    }
    match io::Error::last_os_error() {
        error if error.kind() == io::ErrorKind::WouldBlock => Ok(()), // it is raised as high as it can be
        error => Err(error),
    }
}

/// Takes an event back.
pub(crate) fn clear_event(event: BorrowedFd<'_>) {
    let mut count = 0u64;
    // SAFETY: 8 writable bytes that outlive the call.
    unsafe { libc::read(event.as_raw_fd(), (&raw mut count).cast(), 8) };
}

/// Waits until one of the descriptors has something, or the timeout. Answers how many have.
pub(crate) fn poll(descriptors: &mut [libc::pollfd], timeout: Duration) -> usize {
    let timeout = libc::timespec {
        tv_sec: timeout.as_secs() as libc::time_t,
        tv_nsec: libc::c_long::from(timeout.subsec_nanos()),
    };
    // SAFETY: pointer and length are of one slice; `timeout` outlives the call; no signal mask is given.
    let ready = unsafe {
        libc::ppoll(
            descriptors.as_mut_ptr(),
            descriptors.len() as libc::nfds_t,
            &timeout,
            ptr::null(),
        )
    };
    usize::try_from(ready).unwrap_or(0)
}

/// Moves the calling thread into a network namespace of its own.
pub(crate) fn leave_network_namespace() -> io::Result<()> {
    // SAFETY: no pointers; it changes the calling thread alone.
    check_result(unsafe { libc::unshare(libc::CLONE_NEWNET) }).map(drop)
}

/// Lifts the limit of locked memory as far as the process may.
pub(crate) fn lift_memory_lock() {
    let all = libc::rlimit {
        rlim_cur: libc::RLIM_INFINITY,
        rlim_max: libc::RLIM_INFINITY,
    };
    // SAFETY: `all` outlives the call.
    if unsafe { libc::setrlimit(libc::RLIMIT_MEMLOCK, &all) } == 0 {
        return;
    }
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: `limit` outlives both calls.
    unsafe {
        if libc::getrlimit(libc::RLIMIT_MEMLOCK, &mut limit) == 0 {
            limit.rlim_cur = limit.rlim_max;
            libc::setrlimit(libc::RLIMIT_MEMLOCK, &limit);
        }
    }
}
