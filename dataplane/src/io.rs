//! Where packets come from and go to.

pub mod memory;

use arrayvec::ArrayVec;

use crate::{frame::Frame, port::PortId};

/// The most packets taken from one queue before anything else is done.
pub const BURST: usize = 64;

/// Frames received together.
pub type Burst = ArrayVec<Frame, BURST>;

/// A worker's sources and sinks of packets. Implemented by AF_XDP sockets (`ringwall-xsk`), memory and pcap files.
///
/// Each worker has its own; nothing in it is shared but the pool, and a frame from one worker's may be sent or
/// released through another's of the same pool.
pub trait PacketIo {
    /// How many receive queues this worker polls, numbered from 0.
    fn sources(&self) -> usize;

    /// Takes up to [`BURST`] frames that wait on a source, in order of arrival, into the empty `burst`.
    fn receive(&mut self, source: usize, burst: &mut Burst);

    /// The bytes of a packet behind those of [`Frame::bytes`], buffer by buffer: nothing where it has one buffer.
    fn rest<'a>(&'a self, _frame: &'a Frame) -> impl Iterator<Item = &'a [u8]> {
        std::iter::empty()
    }

    /// Queues a frame for a port. It goes out, in order, with the next [`Self::flush`]: all buffers of its packet, or none. What
    /// cannot be queued is released by the implementation; the answer tells whether it was queued, and the worker counts `tx-full`.
    fn send(&mut self, port: PortId, frame: Frame) -> bool;

    /// Takes an empty frame, for packets that the dataplane makes itself. None where the pool is empty.
    fn allocate(&mut self) -> Option<Frame>;

    /// Gives a frame, all its buffers, back to the pool that it came from.
    fn release(&mut self, frame: Frame);

    /// Rings the doorbells, reaps completions, refills. Once per burst.
    fn flush(&mut self);
}
