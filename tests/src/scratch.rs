//! A folder that goes when the process does, even by SIGKILL.

use std::{
    fs,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
};

use crate::{BedError, Result};

/// A folder of this process under `/tmp`.
#[derive(Debug)]
pub struct Scratch {
    path: PathBuf,
    reaper: Child,
    /// Its end of file tells the reaper that this process is gone.
    line: Option<ChildStdin>,
}

static NEXT: AtomicU32 = AtomicU32::new(0);

impl Scratch {
    /// Makes the folder, and starts the process that removes it.
    ///
    /// # Errors
    /// The folder or the process cannot be made.
    pub fn new() -> Result<Self> {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        // Short: the paths of Unix sockets in it have to fit 107 bytes.
        let path = PathBuf::from(format!("/tmp/ringwall-bed.{}.{number}", std::process::id()));
        fs::create_dir(&path)
            .map_err(|error| BedError::new(format!("cannot make {}", path.display()), error))?;
        let mut reaper = Command::new("sh")
            .args(["-c", "read -r _; exec rm -rf -- \"$0\""])
            .arg(&path)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            // Out of reach of the terminal's Ctrl-C.
            .process_group(0)
            .spawn()
            .map_err(|error| BedError::new("cannot start sh", error))?;
        let line = reaper.stdin.take();
        Ok(Self { path, reaper, line })
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        drop(self.line.take());
        // Failure leaves nothing that could still be done.
        let _ = self.reaper.wait();
    }
}
