//! Packets from and to memory: for tests, benchmarks and replays.
#![allow(unsafe_code)] // it makes frames, which are views into its buffers

use std::{
    collections::VecDeque,
    ptr::NonNull,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicPtr, AtomicU64, AtomicUsize, Ordering},
    },
};

use crossbeam::queue::ArrayQueue;

use super::{BURST, Burst, PacketIo};
use crate::{frame::Frame, port::PortId};

/// What follows the last buffer of a packet.
const NO_BUFFER: usize = usize::MAX;
/// Port of frames that came in on none.
const NO_PORT: PortId = PortId(u16::MAX);

/// Frames that any number of [`MemoryIo`] share. Their memory is never given back, so that no frame outlives it.
#[derive(Debug)]
pub struct MemoryPool {
    /// First byte of each buffer.
    buffers: Box<[AtomicPtr<u8>]>,
    size: usize,
    free: ArrayQueue<usize>,
    /// Whether a buffer is out.
    out: Box<[AtomicBool]>,
    /// The next buffer of the packet that each is part of, and its bytes in there.
    links: Box<[(AtomicUsize, AtomicUsize)]>,
    /// Frames given back that were not out: never anything but 0, if frames have one owner.
    returned_twice: AtomicU64,
}

impl MemoryPool {
    /// So many frames of so many bytes.
    pub fn new(frames: usize, size: usize) -> Arc<Self> {
        let free = ArrayQueue::new(frames.max(1));
        for index in 0..frames {
            // Room for every frame was just made.
            let _ = free.push(index);
        }
        Arc::new(Self {
            buffers: (0..frames)
                .map(|_| AtomicPtr::new(Box::leak(vec![0u8; size.max(1)].into_boxed_slice()).as_mut_ptr()))
                .collect(),
            size,
            free,
            out: (0..frames).map(|_| AtomicBool::new(false)).collect(),
            links: (0..frames)
                .map(|_| (AtomicUsize::new(NO_BUFFER), AtomicUsize::new(0)))
                .collect(),
            returned_twice: AtomicU64::new(0),
        })
    }

    /// Frames that it made.
    pub fn total(&self) -> usize {
        self.buffers.len()
    }

    /// Frames without an owner.
    pub fn free(&self) -> usize {
        self.free.len()
    }

    /// Frames given back that were not out.
    pub fn returned_twice(&self) -> u64 {
        self.returned_twice.load(Ordering::Relaxed)
    }

    fn take(&self, port: PortId, length: usize) -> Option<Frame> {
        if length > self.size {
            return None;
        }
        let index = self.free.pop()?;
        self.out[index].store(true, Ordering::Relaxed);
        let data = NonNull::new(self.buffers[index].load(Ordering::Relaxed))?;
        // SAFETY: the buffer has `size` initialised bytes and is never freed; an index is in `free` only while no
        // frame of it exists, and the queue hands it from thread to thread.
        Some(unsafe { Frame::from_raw(data, length as u32, self.size as u32, index as u64, port) })
    }

    /// The packet whose bytes these are, a buffer for each piece. What was taken is given back where there are not enough.
    fn take_pieces(&self, port: PortId, pieces: &[&[u8]]) -> Option<Frame> {
        let mut packet: Option<Frame> = None;
        let length = pieces.iter().map(|piece| piece.len()).sum::<usize>();
        for piece in pieces.iter().rev() {
            let Some(mut frame) = self.take(port, piece.len()) else {
                if let Some(packet) = packet {
                    self.give_back(packet);
                }
                return None;
            };
            frame.bytes_mut().copy_from_slice(piece);
            let (next, bytes) = &self.links[frame.token() as usize];
            let following = packet.map_or(NO_BUFFER, |packet| packet.into_token().0 as usize);
            next.store(following, Ordering::Relaxed);
            bytes.store(piece.len(), Ordering::Relaxed);
            // Enough to make it a chain; the first one, which is last here, knows the length.
            packet = Some(match following {
                NO_BUFFER => frame,
                _ => frame.continued(length as u32),
            });
        }
        packet
    }

    /// The buffers behind a packet's first one.
    fn further(&self, frame: &Frame) -> impl Iterator<Item = usize> {
        let next = |index: usize| {
            let next = self.links.get(index)?.0.load(Ordering::Relaxed);
            (next != NO_BUFFER).then_some(next)
        };
        let first = if frame.is_chain() {
            next(frame.token() as usize)
        } else {
            None
        };
        std::iter::successors(first, move |index| next(*index))
    }

    fn give_back(&self, frame: Frame) {
        for index in self.further(&frame) {
            self.give_back_buffer(index);
        }
        self.give_back_buffer(frame.into_token().0 as usize);
    }

    fn give_back_buffer(&self, index: usize) {
        match self.out.get(index) {
            Some(out) if out.swap(false, Ordering::Relaxed) => {
                // It was taken from there, so there is room.
                let _ = self.free.push(index);
            }
            _ => {
                self.returned_twice.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
}

/// Queues of one worker.
#[derive(Debug)]
pub struct MemoryIo {
    pool: Arc<MemoryPool>,
    sources: Vec<(PortId, VecDeque<Frame>)>,
    sent: Vec<(PortId, Frame)>,
    flushed: usize,
    room: usize,
}

impl MemoryIo {
    /// Receives from these ports, source by source.
    pub fn new(pool: &Arc<MemoryPool>, ports: &[PortId]) -> Self {
        Self {
            pool: Arc::clone(pool),
            sources: ports.iter().map(|port| (*port, VecDeque::new())).collect(),
            sent: Vec::new(),
            flushed: 0,
            room: usize::MAX,
        }
    }

    /// At most so many frames may be sent until [`Self::take_sent`].
    pub fn limit_room(&mut self, frames: usize) {
        self.room = frames;
    }

    /// Makes room for so many sent frames, so that sending allocates nothing.
    pub fn reserve(&mut self, frames: usize) {
        self.sent.reserve(frames);
    }

    /// Lets a packet come in. False where the pool is empty, the packet too long or there is no such source.
    pub fn inject(&mut self, source: usize, bytes: &[u8]) -> bool {
        let Some((port, queue)) = self.sources.get_mut(source) else {
            return false;
        };
        let Some(mut frame) = self.pool.take(*port, bytes.len()) else {
            return false;
        };
        frame.bytes_mut().copy_from_slice(bytes);
        queue.push_back(frame);
        true
    }

    /// Lets a packet of several buffers come in, a buffer for each piece. False as of [`Self::inject`].
    pub fn inject_pieces(&mut self, source: usize, pieces: &[&[u8]]) -> bool {
        let Some((port, queue)) = self.sources.get_mut(source) else {
            return false;
        };
        let frame = self.pool.take_pieces(*port, pieces);
        let is_there = frame.is_some();
        queue.extend(frame);
        is_there
    }

    /// What was sent and flushed, in order; gives the frames back.
    pub fn take_sent(&mut self) -> Vec<(PortId, Vec<u8>)> {
        let flushed = std::mem::take(&mut self.flushed);
        self.sent
            .drain(..flushed)
            .map(|(port, frame)| {
                let mut bytes = frame.bytes().to_vec();
                bytes.extend(rest_of(&self.pool, &frame).flatten());
                self.pool.give_back(frame);
                (port, bytes)
            })
            .collect()
    }

    /// Lets what was sent and flushed come in again as from a source, unchanged, without copying: an endless load.
    /// Frames keep the port that they first came in on.
    pub fn recirculate(&mut self, source: usize) {
        let flushed = std::mem::take(&mut self.flushed);
        if let Some((_, queue)) = self.sources.get_mut(source) {
            queue.extend(self.sent.drain(..flushed).map(|(_, frame)| frame));
        }
    }
}

fn rest_of<'a>(pool: &'a MemoryPool, frame: &'a Frame) -> impl Iterator<Item = &'a [u8]> {
    pool.further(frame).map(|index| {
        let length = pool.links[index].1.load(Ordering::Relaxed);
        // SAFETY: the buffer has `size` initialised bytes, `take_pieces` put no more into it, and it belongs to the packet whose
        // first buffer is borrowed for 'a: nobody else reaches it.
        unsafe { std::slice::from_raw_parts(pool.buffers[index].load(Ordering::Relaxed), length) }
    })
}

impl PacketIo for MemoryIo {
    fn sources(&self) -> usize {
        self.sources.len()
    }

    fn receive(&mut self, source: usize, burst: &mut Burst) {
        if let Some((_, queue)) = self.sources.get_mut(source) {
            let count = queue.len().min(BURST);
            burst.extend(queue.drain(..count));
        }
    }

    fn send(&mut self, port: PortId, frame: Frame) -> bool {
        if self.sent.len() >= self.room {
            self.pool.give_back(frame);
            return false;
        }
        self.sent.push((port, frame));
        true
    }

    fn rest<'a>(&'a self, frame: &'a Frame) -> impl Iterator<Item = &'a [u8]> {
        rest_of(&self.pool, frame)
    }

    fn allocate(&mut self) -> Option<Frame> {
        self.pool.take(NO_PORT, 0)
    }

    fn release(&mut self, frame: Frame) {
        self.pool.give_back(frame);
    }

    fn flush(&mut self) {
        self.flushed = self.sent.len();
    }
}
