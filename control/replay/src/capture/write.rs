//! A copy of some of a capture's records: what is copied stays as it was, byte for byte, in the byte order, with the
//! link type and the timestamps that it had.

use std::io::{self, Write};

use super::{Content, Record};

/// Writes records of another capture.
#[derive(Debug)]
pub struct CaptureWriter<W> {
    out: W,
}

impl<W: Write> CaptureWriter<W> {
    /// Begins with the header of a pcap file, if the other one is that.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn new(mut out: W, pcap_header: Option<&[u8]>) -> io::Result<Self> {
        if let Some(header) = pcap_header {
            out.write_all(header)?;
        }
        Ok(Self { out })
    }

    /// Copies a record.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn copy(&mut self, record: &Record<'_>) -> io::Result<()> {
        if record.content != Content::Section {
            return self.out.write_all(record.raw);
        }
        // The copy is shorter, so its section's length is not known.
        const LENGTH: std::ops::Range<usize> = 16..24;
        let mut section = record.raw.to_vec();
        if let Some(length) = section.get_mut(LENGTH) {
            length.fill(0xff);
        }
        self.out.write_all(&section)
    }

    /// What was written to.
    pub fn into_inner(self) -> W {
        self.out
    }
}
