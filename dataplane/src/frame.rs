//! A frame: one packet, in one buffer or a chain of several, with exactly one owner.
#![allow(unsafe_code)] // frames are views into memory shared with the kernel or with other workers' frames

use std::ptr::NonNull;

use crate::port::PortId;

/// One packet. Exactly one owner at any time: fill ring, RX burst, hand-over ring, hold, TX ring, completion
/// ring or free pool. It leaves a worker by value and is given back with [`crate::io::PacketIo::release`] or
/// [`crate::io::PacketIo::send`]; merely dropping it loses it, which the accounts of the pool show.
///
/// A packet that does not fit one buffer lies in a chain of them. The frame then is its first buffer, with the headers, and
/// owns the others, which the pool links to it; [`crate::io::PacketIo::rest`] shows their bytes.
#[must_use = "a frame that is dropped is lost to its pool"]
#[derive(Debug)]
pub struct Frame {
    /// First byte of the packet.
    data: NonNull<u8>,
    /// Bytes of the packet in this buffer.
    first: u32,
    /// Bytes of the buffer from `data` on.
    capacity: u32,
    /// The pool's name for the buffer: for a UMEM, the offset of the packet's first byte.
    token: u64,
    /// The port that it came in on.
    port: PortId,
    /// Bytes of the packet, and [`CHAIN`] where it goes on in further buffers.
    len: u32,
}

/// Flag in [`Frame::len`]: the packet has several buffers. In the same word, so that one comparison tells what is common.
const CHAIN: u32 = 1 << 31;

// SAFETY: a frame is the only handle to its bytes (contract of `Frame::from_raw`), so it may move between threads.
unsafe impl Send for Frame {}

impl Frame {
    /// Makes a frame of a buffer.
    ///
    /// # Safety
    /// `data` points to `capacity` readable and writable bytes that stay mapped as long as the frame lives; no other
    /// frame, reference or kernel ring entry covers any of them until the frame is consumed by [`Self::into_token`];
    /// `len <= capacity`.
    #[inline]
    pub unsafe fn from_raw(data: NonNull<u8>, len: u32, capacity: u32, token: u64, port: PortId) -> Self {
        debug_assert!(len <= capacity);
        Self {
            data,
            first: len,
            capacity,
            token,
            port,
            len,
        }
    }

    /// Makes the frame the first buffer of a packet of `len` bytes, whose others the pool has linked to it and gives up.
    /// `len` is more than the bytes in this buffer.
    #[inline]
    pub fn continued(mut self, len: u32) -> Self {
        debug_assert!(len > self.first);
        self.len = len | CHAIN;
        self
    }

    /// The packet's bytes; those in the first buffer, where it has several.
    #[inline]
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: `from_raw` promises `first <= capacity` valid bytes that only this frame reaches.
        unsafe { std::slice::from_raw_parts(self.data.as_ptr(), self.first as usize) }
    }

    /// The same bytes, to be rewritten in place.
    #[inline]
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `bytes`; `&mut self` makes it the only reference.
        unsafe { std::slice::from_raw_parts_mut(self.data.as_ptr(), self.first as usize) }
    }

    /// Bytes in the packet, over all its buffers.
    #[inline]
    pub fn len(&self) -> usize {
        (self.len & !CHAIN) as usize
    }

    /// Whether the packet goes on in further buffers.
    #[inline]
    pub fn is_chain(&self) -> bool {
        self.len & CHAIN != 0
    }

    /// Whether the packet lies in one buffer, and offsets in it have 16 bits: what nearly all do.
    #[inline]
    pub(crate) fn is_common(&self) -> bool {
        self.len <= u16::MAX as u32
    }

    /// Whether the packet is empty.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The longest packet that the buffer can hold.
    #[inline]
    pub fn capacity(&self) -> usize {
        self.capacity as usize
    }

    /// Makes the packet `len` bytes long; bytes past the old end have unspecified (but initialised) content.
    /// Answers false, changing nothing, where the buffer is shorter or the packet has several.
    #[inline]
    #[must_use]
    pub fn set_len(&mut self, len: usize) -> bool {
        if len > self.capacity as usize || self.is_chain() {
            return false;
        }
        self.first = len as u32;
        self.len = len as u32;
        true
    }

    /// The port that the packet came in on.
    #[inline]
    pub fn port(&self) -> PortId {
        self.port
    }

    /// Says that the packet came in on a port: of a frame that a packet was copied into.
    #[inline]
    pub fn set_port(&mut self, port: PortId) {
        self.port = port;
    }

    /// The pool's name for the (first) buffer.
    #[inline]
    pub fn token(&self) -> u64 {
        self.token
    }

    /// Consumes the frame for the pool that made it: its name for the (first) buffer and the bytes of the packet in there.
    #[inline]
    pub fn into_token(self) -> (u64, u32) {
        (self.token, self.first)
    }
}
