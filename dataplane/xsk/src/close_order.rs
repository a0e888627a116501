//! What a process that is killed lets go of first.
#![allow(unsafe_code)] // system calls on a descriptor

use std::{
    io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
};

/// Descriptors below this are room enough for sockets; a larger table of descriptors would cost every process start.
const MAX_DESCRIPTOR: u64 = 4096;
/// Descriptors kept for what is to close early.
const RESERVED: u64 = 16;

/// Moves a descriptor to a number above those that sockets get, so that the kernel closes it before them when the
/// process is killed: it closes from the highest number down, and each AF_XDP socket costs it a grace period of several
/// milliseconds. A successor that waits for this descriptor need not wait for the sockets, too.
///
/// This is how Linux does it (since 4.3), not what it promises; nothing but time depends on it.
///
/// # Errors
/// The process may have no more descriptors.
pub fn close_early(descriptor: OwnedFd) -> io::Result<OwnedFd> {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: `limit` is valid and written by the call.
    if unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) } < 0 {
        return Err(io::Error::last_os_error());
    }
    let from = limit.rlim_cur.min(MAX_DESCRIPTOR).saturating_sub(RESERVED) as libc::c_int;
    // SAFETY: no pointers; the descriptor is open.
    let fd = unsafe { libc::fcntl(descriptor.as_raw_fd(), libc::F_DUPFD_CLOEXEC, from) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: just made, nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)] // a test says what went wrong by panicking

    use super::*;
    use std::io::{Read, Write};

    #[test]
    fn what_closes_early_has_a_higher_number_than_what_is_opened_after_it() {
        let (mut reader, mut writer) = io::pipe().unwrap();
        let early = close_early(writer.try_clone().unwrap().into()).unwrap();
        let later = io::pipe().unwrap();
        assert!(early.as_raw_fd() > later.0.as_raw_fd().max(later.1.as_raw_fd()));
        writer.write_all(b"a").unwrap();
        drop(writer);
        std::fs::File::from(early).write_all(b"b").unwrap();
        let mut read = String::new();
        reader.read_to_string(&mut read).unwrap();
        assert_eq!(read, "ab", "the same pipe, and its end when both are closed");
    }
}
