//! Packets of several frames: how the frames of one are linked, and how one is put together from what the kernel names.
//!
//! ```text
//! RX ring    [frame 7, 3840 bytes, more] [frame 3, 3840, more] [frame 9, 1342]        in this order, maybe over two bursts
//! links       7 -> 3 -> 9                                                             the packet is frame 7, of 9022 bytes
//! ```
#![allow(unsafe_code)] // the bytes of a packet's further frames

use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use arrayvec::ArrayVec;

use crate::pool::{FrameNumber, Pool};

/// The most frames of a packet: what the kernel sends and receives (`MAX_SKB_FRAGS` + 1).
pub(crate) const MAX_PIECES: usize = 18;

/// No further frame.
const NONE: FrameNumber = FrameNumber::MAX;

/// The frames of a packet in order, each with its bytes.
pub(crate) type Pieces = ArrayVec<(FrameNumber, u32), MAX_PIECES>;

/// What follows a frame in its packet. Written by the owner of the packet's first frame, who owns the others, too.
#[derive(Debug)]
pub(crate) struct Link {
    next: AtomicU32,
    /// Bytes of the packet in this frame.
    length: AtomicU32,
}

impl Default for Link {
    fn default() -> Self {
        Self {
            next: AtomicU32::new(NONE),
            length: AtomicU32::new(0),
        }
    }
}

/// The links of all frames of a pool; none where every packet fits one frame.
#[derive(Debug, Default)]
pub(crate) struct Links(Box<[Link]>);

impl Links {
    pub(crate) fn new(frames: usize) -> Self {
        Self((0..frames).map(|_| Link::default()).collect())
    }

    /// Whether packets may have several frames.
    pub(crate) fn are_kept(&self) -> bool {
        !self.0.is_empty()
    }

    /// Links the frames of a packet.
    pub(crate) fn join(&self, pieces: &Pieces) {
        let following = pieces.iter().skip(1).map(|(number, _)| *number).chain([NONE]);
        for ((number, length), next) in pieces.iter().zip(following) {
            if let Some(link) = self.0.get(*number as usize) {
                link.next.store(next, Relaxed);
                link.length.store(*length, Relaxed);
            }
        }
    }

    /// The frames of a packet of `length` bytes that begins in frame `first`.
    pub(crate) fn pieces(&self, first: FrameNumber, length: usize) -> Pieces {
        let mut pieces = Pieces::new();
        let (mut at, mut left) = (first, length);
        while left > 0
            && let Some(link) = self.0.get(at as usize)
            && pieces.try_push((at, link.length.load(Relaxed))).is_ok()
        {
            left = left.saturating_sub(link.length.load(Relaxed) as usize);
            at = link.next.load(Relaxed);
        }
        pieces
    }
}

/// What a descriptor of the RX ring made of the packet that it belongs to.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Progress {
    /// More descriptors follow.
    More,
    /// It is complete.
    Complete(Pieces),
    /// It is of no use: to be freed.
    Broken(Pieces),
}

/// A packet of several frames, as far as it has been received. A burst may end in the middle of one.
#[derive(Debug, Default)]
pub(crate) struct Assembly {
    pieces: Pieces,
    /// Descriptors follow that belong to this packet.
    is_open: bool,
    is_broken: bool,
}

impl Assembly {
    /// Whether the next descriptor goes on with a packet.
    #[inline]
    pub(crate) fn is_open(&self) -> bool {
        self.is_open
    }

    /// Takes the next descriptor: its frame and bytes, None where it cannot be used; and whether more follow. What can be used of
    /// a packet with one that cannot is freed with its last: the rest would be a packet that nobody sent. The same goes for one
    /// with too many frames, whose further ones are in `freed` at once.
    pub(crate) fn add(
        &mut self,
        piece: Option<(FrameNumber, u32)>,
        more: bool,
        freed: &mut Vec<FrameNumber>,
    ) -> Progress {
        match piece {
            Some((number, length)) => {
                self.is_broken |= length == 0;
                if self.pieces.try_push((number, length)).is_err() {
                    self.is_broken = true;
                    freed.push(number);
                }
            }
            None => self.is_broken = true,
        }
        self.is_open = more;
        if more {
            return Progress::More;
        }
        let pieces = std::mem::take(&mut self.pieces);
        if std::mem::take(&mut self.is_broken) {
            Progress::Broken(pieces)
        } else {
            Progress::Complete(pieces)
        }
    }

    /// Gives up what has been received: the queue is closed.
    pub(crate) fn abandon(&mut self) -> Pieces {
        std::mem::take(self).pieces
    }

    /// Frames that it has.
    pub(crate) fn frames(&self) -> usize {
        self.pieces.len()
    }
}

/// The bytes of a packet behind its first frame.
pub(crate) struct Rest<'a> {
    pub(crate) pool: &'a Pool,
    pub(crate) pieces: arrayvec::IntoIter<(FrameNumber, u32), MAX_PIECES>,
}

impl<'a> Iterator for Rest<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        let (number, length) = self.pieces.next()?;
        let start = self.pool.packet_start(number, length as usize)?;
        // SAFETY: the bytes are inside the frame (`packet_start` checked), which belongs to the packet whose first frame is
        // borrowed for 'a: nobody else reaches it.
        Some(unsafe { std::slice::from_raw_parts(start.as_ptr(), length as usize) })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)] // a test says what went wrong by panicking

    use super::*;

    fn complete(progress: Progress) -> Vec<(FrameNumber, u32)> {
        match progress {
            Progress::Complete(pieces) => pieces.to_vec(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_packet_ends_with_the_first_descriptor_that_says_so() {
        let (mut assembly, mut freed) = (Assembly::default(), Vec::new());
        assert_eq!(assembly.add(Some((7, 3840)), true, &mut freed), Progress::More);
        assert!(assembly.is_open());
        assert_eq!(assembly.add(Some((3, 3840)), true, &mut freed), Progress::More);
        assert_eq!(assembly.frames(), 2);
        let packet = complete(assembly.add(Some((9, 1)), false, &mut freed));
        assert_eq!(packet, [(7, 3840), (3, 3840), (9, 1)]);
        assert!(!assembly.is_open() && freed.is_empty());
        // The next is another packet.
        assembly.add(Some((1, 20)), true, &mut freed);
        assert_eq!(
            complete(assembly.add(Some((2, 30)), false, &mut freed)),
            [(1, 20), (2, 30)]
        );
    }

    #[test]
    fn the_longest_chain_is_complete_and_one_more_is_not() {
        for count in [MAX_PIECES as u32, MAX_PIECES as u32 + 1, 200] {
            let (mut assembly, mut freed) = (Assembly::default(), Vec::new());
            let mut last = Progress::More;
            for number in 0..count {
                last = assembly.add(Some((number, 1)), number + 1 < count, &mut freed);
            }
            let kept = match last {
                Progress::Complete(pieces) if count as usize == MAX_PIECES => pieces.len(),
                Progress::Broken(pieces) if count as usize > MAX_PIECES => pieces.len(),
                other => panic!("{count}: {other:?}"),
            };
            assert_eq!(kept + freed.len(), count as usize, "every frame comes back");
        }
    }

    #[test]
    fn a_packet_with_a_bad_descriptor_is_broken_to_its_end() {
        for bad in 0..3 {
            for unusable in [None, Some(0)] {
                let (mut assembly, mut freed) = (Assembly::default(), Vec::new());
                let mut last = Progress::More;
                for nth in 0..3u32 {
                    let length = if nth == bad { unusable } else { Some(100) };
                    last = assembly.add(length.map(|length| (nth, length)), nth < 2, &mut freed);
                    assert_eq!(last == Progress::More, nth < 2);
                }
                let Progress::Broken(pieces) = last else {
                    panic!("{bad} {unusable:?}: {last:?}")
                };
                assert_eq!(pieces.len(), if unusable.is_none() { 2 } else { 3 });
                // It leaves nothing behind.
                assert_eq!(
                    complete(assembly.add(Some((8, 60)), false, &mut freed)),
                    [(8, 60)]
                );
            }
        }
    }

    #[test]
    fn what_was_received_of_a_packet_can_be_given_up() {
        let (mut assembly, mut freed) = (Assembly::default(), Vec::new());
        assembly.add(Some((4, 3840)), true, &mut freed);
        assert_eq!(assembly.abandon().as_slice(), [(4, 3840)]);
        assert!(!assembly.is_open());
        assert_eq!(assembly.frames(), 0);
    }

    #[test]
    fn links_lead_through_a_packet_and_no_further() {
        let links = Links::new(32);
        let packet: Pieces = [(7, 3840), (3, 3840), (9, 1342)].into_iter().collect();
        links.join(&packet);
        assert_eq!(links.pieces(7, 9022), packet);
        // A frame of a chain that is used again for a shorter one.
        let shorter: Pieces = [(3, 3840), (7, 1)].into_iter().collect();
        links.join(&shorter);
        assert_eq!(links.pieces(3, 3841), shorter);
        let longest: Pieces = (0..MAX_PIECES as u32).map(|number| (number, 1)).collect();
        links.join(&longest);
        assert_eq!(links.pieces(0, MAX_PIECES), longest);
        assert!(!Links::default().are_kept());
        assert!(Links::default().pieces(7, 9022).is_empty());
    }
}
