//! Which network namespace a process is in: interfaces, their indices and the settings of a record mean nothing in another.

use std::{
    fmt, fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use anyhow::Context;
use serde::{Deserialize, Serialize};

/// A network namespace, by the file that stands for it (`/proc/PID/ns/net`). Within one boot only: the kernel gives the number out again once the
/// namespace is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkNamespace {
    device: u64,
    inode: u64,
}

impl NetworkNamespace {
    /// The calling thread's.
    ///
    /// # Errors
    /// `/proc` is not mounted, or does not show the thread.
    pub fn current() -> anyhow::Result<Self> {
        let path = Path::new("/proc/thread-self/ns/net");
        Self::of(path).with_context(|| format!("cannot read {}: mount /proc", path.display()))
    }

    fn of(file: &Path) -> io::Result<Self> {
        fs::metadata(file).map(|file| Self {
            device: file.dev(),
            inode: file.ino(),
        })
    }

    /// A file to enter it by: of a process in it, or its name. None may still mean a namespace that something else keeps, such as a descriptor, or a
    /// process that this one may not see.
    pub fn entrance(self) -> Option<PathBuf> {
        let entries = |folder: &str| fs::read_dir(folder).into_iter().flatten().flatten();
        let of_processes = entries("/proc")
            .filter(|entry| {
                entry
                    .file_name()
                    .as_encoded_bytes()
                    .iter()
                    .all(u8::is_ascii_digit)
            })
            .map(|entry| entry.path().join("ns/net"));
        of_processes
            .chain(entries("/run/netns").map(|entry| entry.path()))
            .find(|file| Self::of(file).is_ok_and(|found| found == self))
    }
}

/// As `readlink /proc/PID/ns/net` has it.
impl fmt::Display for NetworkNamespace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "net:[{}]", self.inode)
    }
}
