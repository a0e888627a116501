//! The pool: packet memory, who holds which frame, and the way home.
#![allow(unsafe_code)] // frames are views into the UMEM

use std::{
    io,
    num::NonZeroU32,
    ptr::NonNull,
    sync::atomic::{AtomicI64, AtomicU16, AtomicU64, Ordering::Relaxed},
};

use crossbeam::{queue::ArrayQueue, utils::CachePadded};
use ringwall_dataplane::{frame::Frame, port::PortId};
use xsk_rs::{FrameDesc, Umem, config::UmemConfig};

use crate::{
    XskError,
    chain::{Links, Pieces, Rest},
};

/// Bytes that the kernel keeps for XDP before the packet.
pub(crate) const HEADROOM: usize = 256;

/// Frames that go home together.
pub(crate) const BATCH: usize = 32;

/// Number of a frame in the UMEM.
pub(crate) type FrameNumber = u32;

/// Frames on their way home.
pub(crate) type Batch = arrayvec::ArrayVec<FrameNumber, BATCH>;

/// Where a frame is, as far as the kernel may have it: `HELD`, or a ring of the queue with a slot number.
///
/// It is written only by whoever owns the frame at the moment, and read when the kernel claims to give the frame back:
/// an address that the kernel names must be of a frame that it was given, by this very ring. So no answer of the kernel
/// makes two owners of a frame, or one of memory outside.
pub(crate) const IN_USE: u16 = 0;

/// Place of frames on the fill or RX ring of a slot.
pub(crate) fn receiving(slot: u16) -> u16 {
    1 + 2 * slot
}

/// Place of frames on the TX or completion ring of a slot.
pub(crate) fn sending(slot: u16) -> u16 {
    2 + 2 * slot
}

/// Place of frames that a closed queue was sending: a driver that does not copy may not have sent their bytes yet.
const QUARANTINED: u16 = u16::MAX;

/// The most queues that places can tell apart.
pub(crate) const MAX_SLOTS: usize = 32_000;

/// What a worker publishes once per burst, for the accounts.
#[derive(Debug, Default)]
pub(crate) struct WorkerCounts {
    /// In free lists and outboxes.
    pub(crate) free: AtomicU64,
    /// In fill and RX rings.
    pub(crate) receiving: AtomicU64,
    /// In TX and completion rings.
    pub(crate) sending: AtomicU64,
    /// Taken from this worker's queues or pool and not given back to it; may be below 0.
    pub(crate) in_use: AtomicI64,
    /// Packets that were accepted for another worker to send, whose port was closed meanwhile.
    pub(crate) stranded: AtomicU64,
}

/// Packet memory, shared by all workers.
#[derive(Debug)]
pub(crate) struct Pool {
    umem: Umem,
    /// Address of the first byte of the UMEM. Pointers are made of it with the provenance of the whole mapping, which the C
    /// library made and so exposed; one that comes from a frame's slice would be good for that frame alone.
    base: usize,
    frame_size: usize,
    /// Its logarithm: a frame's number is its offset shifted, where a division would take more than all else done with it.
    frame_shift: u32,
    /// Descriptor of each frame, at the place where packets start.
    descriptors: Box<[FrameDesc]>,
    /// Place of each frame.
    locations: Box<[AtomicU16]>,
    /// The worker whose free list each frame belongs to.
    homes: Box<[u8]>,
    /// Frames that other workers have done with, per home.
    returns: Box<[ArrayQueue<Batch>]>,
    /// Frames in `returns`.
    in_transit: CachePadded<AtomicU64>,
    /// Packets that a worker sends for others, per sender.
    pub(crate) inboxes: Box<[ArrayQueue<(PortId, Frame)>]>,
    /// Frames of packets in `inboxes`, less one for each packet.
    pub(crate) further_in_inboxes: CachePadded<AtomicU64>,
    /// Which frames make a packet.
    links: Links,
    pub(crate) counts: Box<[CachePadded<WorkerCounts>]>,
}

// SAFETY: the memory at `base` stays mapped as long as the UMEM, and only owners of frames reach it. `umem` is used by
// `Sync` methods alone (its region is shared memory, its creation of sockets takes a lock of its own).
unsafe impl Send for Pool {}
// SAFETY: see above.
unsafe impl Sync for Pool {}

/// How a pool is laid out.
#[derive(Clone, Debug)]
pub(crate) struct Layout {
    /// 2048 or 4096 bytes.
    pub(crate) frame_size: u32,
    /// Frames that belong to each worker.
    pub(crate) frames: Vec<u32>,
    /// How many frames the largest packet has.
    pub(crate) pieces: u32,
    pub(crate) fill: u32,
    pub(crate) completion: u32,
    /// Packets that may wait for each sender.
    pub(crate) inbox: usize,
}

impl Layout {
    pub(crate) fn bytes(&self) -> usize {
        self.frames.iter().sum::<u32>() as usize * self.frame_size as usize
    }

    /// Whether a pool laid out like this is as good as one laid out like the other: the same, with as many frames or more.
    pub(crate) fn covers(&self, wanted: &Self) -> bool {
        let more = self.frames.len() == wanted.frames.len()
            && self
                .frames
                .iter()
                .zip(&wanted.frames)
                .all(|(have, want)| have >= want);
        let of = |layout: &Self| {
            let Self {
                frame_size,
                pieces,
                fill,
                completion,
                inbox,
                ..
            } = *layout;
            (frame_size, pieces, fill, completion, inbox)
        };
        more && of(self) == of(wanted)
    }
}

impl Pool {
    /// Maps and registers the memory.
    pub(crate) fn new(layout: &Layout) -> Result<Self, XskError> {
        let total: u32 = layout.frames.iter().sum();
        let bytes = layout.bytes();
        if !layout.frame_size.is_power_of_two() {
            let size = layout.frame_size;
            return Err(XskError::Config(format!(
                "frames of {size} bytes: want a power of two"
            )));
        }
        let (umem, descriptors) = create_umem(layout, total, bytes)?;
        let mut homes = Vec::with_capacity(total as usize);
        for (worker, &frames) in layout.frames.iter().enumerate() {
            homes.extend(std::iter::repeat_n(worker as u8, frames as usize));
        }
        let mut first = *descriptors
            .first()
            .ok_or_else(|| XskError::Config("a pool needs frames".to_owned()))?;
        // SAFETY: the descriptor is the UMEM's own, and nobody has a reference to any frame yet.
        let mut data = unsafe { umem.data_mut(&mut first) };
        let length = data.cursor().buf_len();
        data.cursor().set_pos(length);
        let base = data
            .contents_mut()
            .as_mut_ptr()
            .expose_provenance()
            .checked_sub(HEADROOM)
            .filter(|base| *base > 0)
            .ok_or_else(|| XskError::Config("the UMEM has no memory".to_owned()))?;
        Ok(Self {
            base,
            frame_size: layout.frame_size as usize,
            frame_shift: layout.frame_size.trailing_zeros(),
            locations: (0..total).map(|_| AtomicU16::new(IN_USE)).collect(),
            homes: homes.into_boxed_slice(),
            returns: layout
                .frames
                .iter()
                .map(|&frames| ArrayQueue::new((frames as usize / 8).max(64)))
                .collect(),
            in_transit: CachePadded::default(),
            further_in_inboxes: CachePadded::default(),
            links: if layout.pieces > 1 {
                Links::new(total as usize)
            } else {
                Links::default()
            },
            inboxes: layout
                .frames
                .iter()
                .map(|_| ArrayQueue::new(layout.inbox.max(1)))
                .collect(),
            counts: layout.frames.iter().map(|_| CachePadded::default()).collect(),
            descriptors: descriptors.into_boxed_slice(),
            umem,
        })
    }

    /// A pointer into the UMEM, `offset` bytes from its start.
    #[inline]
    fn at(&self, offset: usize) -> *mut u8 {
        std::ptr::with_exposed_provenance_mut(self.base.wrapping_add(offset))
    }

    pub(crate) fn umem(&self) -> &Umem {
        &self.umem
    }

    pub(crate) fn frames(&self) -> usize {
        self.descriptors.len()
    }

    /// Whether packets may have several frames.
    pub(crate) fn is_multi_buffer(&self) -> bool {
        self.links.are_kept()
    }

    /// Bytes of a packet that a frame can hold.
    pub(crate) fn capacity(&self) -> usize {
        self.frame_size - HEADROOM
    }

    /// Frames that belong to a worker, the first last.
    pub(crate) fn home_frames(&self, worker: usize) -> Vec<FrameNumber> {
        (0..self.frames() as FrameNumber)
            .rev()
            .filter(|&number| self.home(number) == worker)
            .collect()
    }

    #[inline]
    pub(crate) fn home(&self, number: FrameNumber) -> usize {
        self.homes
            .get(number as usize)
            .map_or(0, |&home| usize::from(home))
    }

    /// The descriptor of an empty frame.
    #[inline]
    pub(crate) fn descriptor(&self, number: FrameNumber) -> Option<FrameDesc> {
        self.descriptors.get(number as usize).copied()
    }

    /// The descriptor of a packet of `length` bytes in a frame that the caller owns.
    #[inline]
    pub(crate) fn packet_descriptor(&self, number: FrameNumber, length: usize) -> Option<FrameDesc> {
        let mut descriptor = self.descriptor(number)?;
        // SAFETY: the descriptor is of this UMEM; the caller owns the frame, so there is no other reference to it.
        unsafe { self.umem.data_mut(&mut descriptor) }
            .cursor()
            .set_pos(length);
        Some(descriptor)
    }

    #[inline]
    pub(crate) fn set_location(&self, number: FrameNumber, place: u16) {
        if let Some(slot) = self.locations.get(number as usize) {
            slot.store(place, Relaxed);
        }
    }

    /// Takes a frame that the kernel says it is done with: the number of the frame with this address, if the kernel
    /// had it at `place`.
    #[inline]
    pub(crate) fn complete(&self, address: usize, place: u16) -> Option<FrameNumber> {
        let number = address >> self.frame_shift;
        let slot = self.locations.get(number)?;
        if slot.load(Relaxed) != place {
            return None;
        }
        slot.store(IN_USE, Relaxed);
        Some(number as FrameNumber)
    }

    /// Makes a frame of a received descriptor, which must be of a frame that [`Self::complete`] has just given. None
    /// where the descriptor reaches out of the frame.
    #[inline]
    pub(crate) fn received(
        &self,
        number: FrameNumber,
        address: usize,
        length: usize,
        port: PortId,
    ) -> Option<Frame> {
        if !self.settle(number, address, length) {
            return None;
        }
        self.frame(number, length, port)
    }

    /// Has the bytes of a received descriptor begin where packets do in a frame. As for [`Self::received`]; false where the
    /// descriptor reaches out of the frame.
    #[inline]
    pub(crate) fn settle(&self, number: FrameNumber, address: usize, length: usize) -> bool {
        let start = number as usize * self.frame_size;
        let Some(offset) = address.checked_sub(start) else {
            return false;
        };
        if length > self.capacity() || offset + length > self.frame_size || number as usize >= self.frames() {
            return false;
        }
        if offset != HEADROOM {
            // A driver or program that moved the packet. Put it where packets start, so that one table of
            // descriptors serves.
            let frame = self.at(start);
            // SAFETY: both ranges are inside the frame (checked above), which nobody else owns now.
            unsafe { std::ptr::copy(frame.wrapping_add(offset), frame.wrapping_add(HEADROOM), length) };
        }
        true
    }

    /// Makes a frame of the buffers of a packet, which the caller owns.
    pub(crate) fn chain(&self, pieces: &Pieces, port: PortId) -> Option<Frame> {
        let &(number, length) = pieces.first()?;
        let frame = self.frame(number, length as usize, port)?;
        if pieces.len() == 1 {
            return Some(frame);
        }
        self.links.join(pieces);
        Some(frame.continued(pieces.iter().map(|(_, length)| length).sum()))
    }

    /// The buffers of a packet.
    pub(crate) fn pieces(&self, frame: &Frame) -> Pieces {
        let number = frame.token() as usize >> self.frame_shift;
        if frame.is_chain() {
            return self.links.pieces(number as FrameNumber, frame.len());
        }
        let alone = (number < self.frames()).then_some((number as FrameNumber, frame.len() as u32));
        alone.into_iter().collect()
    }

    /// The bytes of a packet behind its first buffer.
    pub(crate) fn rest<'a>(&'a self, frame: &'a Frame) -> Rest<'a> {
        let mut pieces = self.pieces(frame).into_iter();
        let _first = pieces.next();
        Rest { pool: self, pieces }
    }

    /// Where the bytes of a packet begin in a frame; None where there is no such frame or it does not hold so many.
    pub(crate) fn packet_start(&self, number: FrameNumber, length: usize) -> Option<NonNull<u8>> {
        let fits = (number as usize) < self.frames() && length <= self.capacity();
        let start = number as usize * self.frame_size + HEADROOM;
        NonNull::new(self.at(start)).filter(|_| fits)
    }

    /// Makes a frame of a buffer that the caller owns.
    #[inline]
    pub(crate) fn frame(&self, number: FrameNumber, length: usize, port: PortId) -> Option<Frame> {
        let data = self.packet_start(number, length)?;
        let start = number as usize * self.frame_size + HEADROOM;
        // SAFETY: the frame lies inside the UMEM, which stays mapped while the pool lives, and every worker's side
        // keeps the pool; the caller owns the buffer, which no ring has (its place is `HELD`), and gives it up here.
        Some(unsafe { Frame::from_raw(data, length as u32, self.capacity() as u32, start as u64, port) })
    }

    /// The buffer and packet length of a frame that comes back, and is no chain. None where it is not of this pool.
    #[inline]
    pub(crate) fn consume(&self, frame: Frame) -> Option<(FrameNumber, usize)> {
        let (token, length) = frame.into_token();
        let number = token as usize >> self.frame_shift;
        (number < self.frames()).then_some((number as FrameNumber, length as usize))
    }

    /// Gives the buffers of a packet up to `freed`. Answers how many there are.
    #[inline]
    pub(crate) fn give_up(&self, frame: Frame, freed: &mut Vec<FrameNumber>) -> usize {
        if frame.is_chain() {
            let pieces = self.pieces(&frame);
            freed.extend(pieces.iter().map(|(number, _)| *number));
            return pieces.len();
        }
        freed.extend(self.consume(frame).map(|(number, _)| number));
        1
    }

    /// Sends a batch home; gives it back where the way is full.
    #[must_use]
    pub(crate) fn return_batch(&self, worker: usize, batch: Batch) -> Option<Batch> {
        let frames = batch.len() as u64;
        let Some(queue) = self.returns.get(worker) else {
            return Some(batch);
        };
        self.in_transit.fetch_add(frames, Relaxed);
        let back = queue.push(batch).err()?;
        self.in_transit.fetch_sub(frames, Relaxed);
        Some(back)
    }

    /// A batch that has come home.
    pub(crate) fn take_returned(&self, worker: usize) -> Option<Batch> {
        let batch = self.returns.get(worker)?.pop()?;
        self.in_transit.fetch_sub(batch.len() as u64, Relaxed);
        Some(batch)
    }

    /// Frames on their way home.
    pub(crate) fn in_transit(&self) -> u64 {
        self.in_transit.load(Relaxed)
    }

    /// Frees the frames that a closed queue was to receive into, and answers those that it was sending: nobody may write to
    /// them before the driver is surely done, then they are to be [released](Self::release). The queue's socket must be
    /// closed.
    pub(crate) fn reclaim(&self, slot: u16) -> Vec<FrameNumber> {
        let at = |place: u16| {
            let places = self.locations.iter().enumerate();
            places
                .filter(move |(_, at)| at.load(Relaxed) == place)
                .map(|(number, _)| number as FrameNumber)
        };
        let sending: Vec<_> = at(sending(slot)).collect();
        for number in &sending {
            self.set_location(*number, QUARANTINED);
        }
        self.free(at(receiving(slot)));
        sending
    }

    /// Frees frames that have rested.
    pub(crate) fn release(&self, frames: &[FrameNumber]) {
        self.free(frames.iter().copied());
    }

    /// Sends frames home that no ring has.
    fn free(&self, frames: impl Iterator<Item = FrameNumber>) {
        let mut batch = Batch::new();
        let mut home = 0;
        for number in frames {
            self.set_location(number, IN_USE);
            if home != self.home(number) || batch.is_full() {
                self.return_batch_blocking(home, std::mem::take(&mut batch));
                home = self.home(number);
            }
            batch.push(number);
        }
        self.return_batch_blocking(home, batch);
    }

    /// Sends a batch home, waiting for the way to be free: for the control side only.
    fn return_batch_blocking(&self, worker: usize, mut batch: Batch) {
        while !batch.is_empty() {
            match self.return_batch(worker, batch) {
                None => return,
                Some(back) => batch = back,
            }
            std::thread::yield_now();
        }
    }
}

fn create_umem(layout: &Layout, total: u32, bytes: usize) -> Result<(Umem, Vec<FrameDesc>), XskError> {
    let setting = |what: &str, error: &dyn std::error::Error| XskError::Config(format!("{what}: {error}"));
    let config = UmemConfig::builder()
        .frame_size(
            layout
                .frame_size
                .try_into()
                .map_err(|error| setting("frame size", &error))?,
        )
        .fill_queue_size(
            layout
                .fill
                .try_into()
                .map_err(|error| setting("fill ring", &error))?,
        )
        .comp_queue_size(
            layout
                .completion
                .try_into()
                .map_err(|error| setting("completion ring", &error))?,
        )
        .build()
        .map_err(|error| setting("UMEM", &error))?;
    let count = NonZeroU32::new(total).ok_or_else(|| XskError::Config("a pool needs frames".to_owned()))?;
    // Huge pages where the administrator has reserved some.
    if bytes.is_multiple_of(2 << 20)
        && let Ok(made) = Umem::new(config, count, true)
    {
        return Ok(made);
    }
    Umem::new(config, count, false).map_err(|error| {
        let source = source_of(&error);
        match source.raw_os_error() {
            Some(libc::EPERM | libc::EACCES) => XskError::Permission {
                action: "open an AF_XDP socket".to_owned(),
                capability: "CAP_NET_RAW",
            },
            Some(libc::EAFNOSUPPORT) => XskError::NoAfXdp,
            Some(libc::ENOBUFS | libc::ENOMEM) => XskError::Memory { bytes, source },
            _ => XskError::System {
                action: format!("make a UMEM of {bytes} bytes ({error})"),
                source,
            },
        }
    })
}

/// The kernel's answer inside an error of xsk-rs.
pub(crate) fn source_of(error: &dyn std::error::Error) -> io::Error {
    match error
        .source()
        .and_then(|source| source.downcast_ref::<io::Error>())
        .and_then(io::Error::raw_os_error)
    {
        Some(code) => io::Error::from_raw_os_error(code),
        None => io::Error::other(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test says what went wrong by panicking

    use super::*;

    /// A pool of two workers' frames; None without root, which a UMEM takes.
    fn pool(pieces: u32) -> Option<Pool> {
        if caps::has_cap(None, caps::CapSet::Effective, caps::Capability::CAP_NET_RAW).unwrap() {
            let layout = Layout {
                frame_size: 2048,
                pieces,
                frames: vec![600, 424],
                fill: 64,
                completion: 64,
                inbox: 8,
            };
            return Some(Pool::new(&layout).unwrap());
        }
        assert!(
            std::env::var("REQUIRE_ROOT").as_deref() != Ok("1"),
            "REQUIRE_ROOT=1, but no CAP_NET_RAW"
        );
        println!("SKIPPED: needs root");
        None
    }

    #[test]
    fn the_kernel_cannot_give_what_it_was_not_given() {
        let Some(pool) = pool(1) else { return };
        let address = 5 * 2048 + HEADROOM;
        assert_eq!(
            pool.complete(address, receiving(3)),
            None,
            "a frame that was never given"
        );
        pool.set_location(5, receiving(3));
        assert_eq!(pool.complete(address, receiving(4)), None, "another queue's");
        assert_eq!(pool.complete(address, sending(3)), None, "the other ring's");
        assert_eq!(pool.complete(address, receiving(3)), Some(5));
        assert_eq!(pool.complete(address, receiving(3)), None, "twice");
        assert_eq!(pool.complete(1024 * 2048, receiving(3)), None, "past the end");
        assert_eq!(pool.complete(usize::MAX, receiving(3)), None, "far past the end");
    }

    #[test]
    fn packets_stay_inside_their_frame() {
        let Some(pool) = pool(1) else { return };
        let port = PortId(1);
        let start = 7 * 2048;
        assert!(
            pool.received(7, start + HEADROOM, 1793, port).is_none(),
            "longer than the room"
        );
        assert!(pool.received(7, start + 2000, 49, port).is_none(), "over the end");
        assert!(
            pool.received(7, start - 1, 10, port).is_none(),
            "before the start"
        );
        assert!(
            pool.received(7, start + HEADROOM, usize::MAX - 4096, port)
                .is_none(),
            "absurd"
        );
        assert!(
            pool.received(1024, 1024 * 2048, 0, port).is_none(),
            "no such frame"
        );

        let mut frame = pool
            .received(7, start + HEADROOM, 1792, port)
            .expect("exactly the room");
        frame.bytes_mut().copy_from_slice(&[3; 1792]);
        assert_eq!(pool.consume(frame), Some((7, 1792)));
        // A packet that a driver has put elsewhere is moved to where packets start.
        let frame = pool
            .received(7, start + HEADROOM + 100, 1000, port)
            .expect("moved");
        assert_eq!(frame.bytes(), [3; 1000]);
        assert_eq!(pool.consume(frame), Some((7, 1000)));
    }

    #[test]
    fn frames_know_their_homes_and_closed_queues_lose_none() {
        let Some(pool) = pool(1) else { return };
        assert_eq!(pool.home_frames(0).len(), 600);
        assert_eq!(pool.home_frames(1), (600..1024).rev().collect::<Vec<_>>());
        for number in 500..700 {
            pool.set_location(number, if number % 2 == 0 { receiving(9) } else { sending(9) });
        }
        pool.set_location(3, receiving(8));
        let come_home = |wanted: u32| {
            for worker in [0, 1] {
                let mut home = Vec::new();
                while let Some(batch) = pool.take_returned(worker) {
                    home.extend(batch);
                }
                assert!(
                    home.iter()
                        .all(|&number| pool.home(number) == worker && number % 2 == wanted)
                );
                assert_eq!(home.len(), 50, "worker {worker}");
            }
        };
        let resting = pool.reclaim(9);
        assert_eq!(
            resting,
            (500..700).filter(|number| number % 2 == 1).collect::<Vec<_>>(),
            "these are lost packets"
        );
        assert_eq!(pool.in_transit(), 100);
        come_home(0);
        // A queue that gets the number of the closed one has nothing to do with them.
        assert!(pool.reclaim(9).is_empty());
        assert_eq!(pool.complete(501 * 2048, sending(9)), None);
        pool.release(&resting);
        come_home(1);
        assert_eq!(pool.in_transit(), 0);
        assert_eq!(
            pool.complete(3 * 2048, receiving(8)),
            Some(3),
            "other queues' frames are left alone"
        );
    }

    #[test]
    fn a_chain_is_one_packet_and_all_of_its_frames_come_back() {
        let Some(pool) = pool(9) else { return };
        for lengths in [
            vec![1792, 1792, 1792],
            vec![1792, 1],
            vec![14, 1, 1, 1],
            vec![100; crate::chain::MAX_PIECES],
        ] {
            let mut pieces = Pieces::new();
            for (nth, length) in lengths.iter().enumerate() {
                let number = 40 + 3 * nth as FrameNumber; // not side by side
                // SAFETY: nobody else has the frame.
                let bytes = unsafe {
                    std::slice::from_raw_parts_mut(
                        pool.packet_start(number, *length).unwrap().as_ptr(),
                        *length,
                    )
                };
                bytes.fill(nth as u8);
                pieces.push((number, *length as u32));
            }
            let frame = pool.chain(&pieces, PortId(2)).unwrap();
            assert!(frame.is_chain());
            assert_eq!(frame.len(), lengths.iter().sum::<usize>());
            assert_eq!(frame.bytes(), vec![0; lengths[0]]);
            let rest: Vec<Vec<u8>> = pool.rest(&frame).map(<[u8]>::to_vec).collect();
            let expected: Vec<Vec<u8>> = (1..lengths.len())
                .map(|nth| vec![nth as u8; lengths[nth]])
                .collect();
            assert_eq!(rest, expected);
            let mut freed = Vec::new();
            assert_eq!(pool.give_up(frame, &mut freed), lengths.len());
            assert_eq!(
                freed,
                pieces.iter().map(|(number, _)| *number).collect::<Vec<_>>()
            );
        }
        // A packet of one frame has no rest, though its frame was part of a chain before.
        let frame = pool.frame(40, 60, PortId(2)).unwrap();
        assert_eq!(pool.rest(&frame).count(), 0);
        let mut freed = Vec::new();
        assert_eq!(pool.give_up(frame, &mut freed), 1);
        assert_eq!(freed, [40]);
    }
}
