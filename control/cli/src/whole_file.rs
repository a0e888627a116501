//! Files that appear whole or not at all: written beside the wanted one and renamed, so that no reader ever gets half of one.

use std::{
    ffi::OsString,
    fs::File,
    io::{self, BufWriter, Write},
    path::{Path, PathBuf},
};

use anyhow::Context;

/// A file that is being written. Unless it is [finished](Self::finish), nothing has happened.
pub(super) struct WholeFile {
    wanted: PathBuf,
    out: BufWriter<File>,
    /// Where it is written and what it becomes; None for what is no file, such as a pipe, which is written to as it is.
    renamed: Option<(PathBuf, PathBuf)>,
}

impl WholeFile {
    /// Begins it.
    ///
    /// # Errors
    /// It cannot be written.
    pub(super) fn create(file: &Path) -> anyhow::Result<Self> {
        Self::open(file).with_context(|| format!("cannot write {}", file.display()))
    }

    fn open(file: &Path) -> io::Result<Self> {
        // A link stays a link.
        let target = file.canonicalize().unwrap_or_else(|_| file.to_owned());
        let wanted = file.to_owned();
        if target.metadata().is_ok_and(|it| !it.is_file()) {
            let out = BufWriter::new(File::options().write(true).open(&target)?);
            return Ok(Self {
                wanted,
                out,
                renamed: None,
            });
        }
        let name = target
            .file_name()
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "it has no name"))?;
        let mut beside = OsString::from(".");
        beside.push(name);
        beside.push(format!(".{}", std::process::id()));
        let beside = target.with_file_name(beside);
        let out = BufWriter::new(File::create_new(&beside)?);
        Ok(Self {
            wanted,
            out,
            renamed: Some((beside, target)),
        })
    }

    /// Puts it in its place.
    ///
    /// # Errors
    /// It cannot be written; a file that was there before is as it was.
    pub(super) fn finish(mut self) -> anyhow::Result<()> {
        let mut finish = || {
            self.out.flush()?;
            if let Some((beside, target)) = &self.renamed {
                self.out.get_ref().sync_all()?;
                std::fs::rename(beside, target)?;
                self.renamed = None;
            }
            io::Result::Ok(())
        };
        finish().with_context(|| format!("cannot write {}", self.wanted.display()))
    }
}

impl Write for WholeFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.out.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

impl Drop for WholeFile {
    fn drop(&mut self) {
        if let Some((beside, _)) = &self.renamed {
            let _ = std::fs::remove_file(beside);
        }
    }
}

/// Writes a file at once.
///
/// # Errors
/// It cannot be written; a file that was there before is as it was.
pub(super) fn write_whole(file: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    let mut whole = WholeFile::create(file)?;
    whole
        .write_all(bytes)
        .with_context(|| format!("cannot write {}", file.display()))?;
    whole.finish()
}
