//! Where an example keeps the pins of its programs. They are taken off when it ends; those of one that was killed, by the
//! next one.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process,
};

/// The folder of this process in a BPF file system: the one that `BPFFS` names, or `/sys/fs/bpf`.
pub(crate) struct Pins {
    folder: PathBuf,
    interfaces: Vec<String>,
}

impl Pins {
    /// Pins of an example for some interfaces. Removes what dead processes of the same example have left.
    pub(crate) fn of(example: &str, interfaces: &[String]) -> Self {
        let root = PathBuf::from(env::var_os("BPFFS").unwrap_or_else(|| "/sys/fs/bpf".into()));
        let prefix = format!("ringwall-{example}-");
        for entry in fs::read_dir(&root).into_iter().flatten().flatten() {
            let name = entry.file_name();
            let pid = name.to_str().and_then(|name| name.strip_prefix(&prefix));
            if pid.is_some_and(|pid| pid.parse::<u32>().is_ok() && !Path::new("/proc").join(pid).exists()) {
                // Links without a descriptor take their programs off when their pins go.
                let _ = fs::remove_dir_all(entry.path()); // another one may do the same
            }
        }
        Self {
            folder: root.join(format!("{prefix}{}", process::id())),
            interfaces: interfaces.to_vec(),
        }
    }

    /// The folder, which need not be there yet.
    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }
}

impl Drop for Pins {
    fn drop(&mut self) {
        for interface in &self.interfaces {
            if let Err(error) = ringwall_bpf::detach(&self.folder, interface) {
                eprintln!("{error}");
            }
        }
        let _ = fs::remove_dir(&self.folder); // it may not have been made
    }
}
