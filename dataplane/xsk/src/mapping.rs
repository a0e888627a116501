//! Shared file memory, for state that outlives the process.
#![allow(unsafe_code)] // a mapping of a file as a slice

use std::{
    fs::{File, OpenOptions},
    io,
    os::{
        fd::AsRawFd,
        unix::fs::{MetadataExt, OpenOptionsExt},
    },
    path::Path,
    ptr, slice,
};

use crate::XskError;

/// Maps `len` bytes of a file, which is made or resized as needed, shared and writable, for the rest of the process's
/// life, and locks it (flock) against a second mapping. The content is what an earlier process left: check it.
///
/// The file belongs on a tmpfs directory that only its owner can enter: whoever could shorten it while it is mapped
/// could kill the process.
///
/// # Errors
/// The file cannot be opened or mapped, is not a plain file of the process's own user, or is mapped already.
pub fn map_shared(path: &Path, len: usize) -> Result<&'static mut [u8], XskError> {
    let wrong = |problem: String| XskError::File {
        path: path.to_owned(),
        problem,
    };
    let failed = |what: &str, error: io::Error| wrong(format!("{what}: {error}"));
    if len == 0 {
        return Err(wrong("nothing to map".to_owned()));
    }
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW | libc::O_CLOEXEC)
        .open(path)
        .map_err(|error| failed("cannot be opened", error))?;
    let metadata = file
        .metadata()
        .map_err(|error| failed("cannot be looked at", error))?;
    // SAFETY: no pointers.
    let user = unsafe { libc::geteuid() };
    if !metadata.is_file() || metadata.uid() != user || metadata.mode() & 0o022 != 0 {
        return Err(wrong(format!(
            "must be a plain file that user {user} owns and nobody else can write: remove it"
        )));
    }
    // SAFETY: no pointers.
    if unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) } < 0 {
        let error = io::Error::last_os_error();
        return Err(match error.kind() {
            io::ErrorKind::WouldBlock => {
                wrong("another process has it mapped: stop that one first".to_owned())
            }
            _ => failed("cannot be locked", error),
        });
    }
    file.set_len(len as u64)
        .map_err(|error| failed("cannot be resized", error))?;
    // Else the lock would outlive every socket of a killed process, and a successor would wait for it that long.
    let file = File::from(crate::close_early(file.into()).map_err(|error| failed("cannot be moved", error))?);
    map(file, len).map_err(|error| failed("cannot be mapped", error))
}

fn map(file: File, len: usize) -> io::Result<&'static mut [u8]> {
    // SAFETY: a new shared mapping at an address of the kernel's choice; the file has `len` bytes.
    let address = unsafe {
        libc::mmap(
            ptr::null_mut(),
            len,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED | libc::MAP_POPULATE,
            file.as_raw_fd(),
            0,
        )
    };
    if address == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the range was mapped above. Best effort: a flow table in huge pages costs a third per lookup less.
    unsafe { libc::madvise(address, len, libc::MADV_HUGEPAGE) };
    std::mem::forget(file); // keeps the lock
    // SAFETY: `len` readable and writable bytes that are never unmapped. The lock, which is held to the end of the
    // process, keeps every other caller of this function (here or elsewhere) from mapping the same file.
    Ok(unsafe { slice::from_raw_parts_mut(address.cast(), len) })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test says what went wrong by panicking

    use super::*;

    #[test]
    fn content_outlives_the_mapping_and_a_second_one_is_refused() {
        let directory = std::env::temp_dir().join(format!("ringwall-mapping-{}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        let path = directory.join("flows");
        std::fs::write(&path, b"left by an earlier process").unwrap();
        let memory = map_shared(&path, 8192).unwrap();
        assert_eq!(&memory[..26], b"left by an earlier process");
        assert_eq!(memory.len(), 8192);
        memory[0] = b'L';
        assert_eq!(std::fs::read(&path).unwrap()[..4], *b"Left");
        let error = map_shared(&path, 8192).unwrap_err().to_string();
        assert!(error.contains("another process has it mapped"), "{error}");
        let link = directory.join("link");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        assert!(map_shared(&link, 8192).is_err());
        std::fs::remove_dir_all(&directory).unwrap();
    }
}
