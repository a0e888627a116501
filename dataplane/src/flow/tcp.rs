//! TCP window tracking: what both ends have sent and acknowledged, to tell a genuine RST or FIN from a forged one
//! (RFC 9293 3.4, RFC 5961 3).
//!
//! Sequence numbers wrap and are compared by their difference (RFC 9293 3.4).

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::state::{FlowDirection, State};
use crate::wire::{Packet, TcpFlags, Transport};

/// The smallest window assumed: an end may have announced a larger one before its packets were seen.
const MIN_WINDOW_LOG: u8 = 16;
/// The largest window that TCP has (RFC 7323 2.2), in powers of two.
const MAX_WINDOW_LOG: u8 = 30;

/// A segment's numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Segment {
    /// Of its first byte.
    pub(crate) seq: u32,
    /// One past its last byte; SYN and FIN count as one each.
    pub(crate) end: u32,
    /// What it acknowledges, where that counts.
    pub(crate) ack: Option<u32>,
    /// Its window field, unscaled.
    window: u16,
    flags: TcpFlags,
    /// The window scale that a SYN announces (RFC 7323 2.2).
    scale: Option<u8>,
}

impl Segment {
    /// Reads the numbers of a TCP packet that lies in `frame`, or begins there; None where it is no TCP packet with a whole header.
    #[inline]
    pub(crate) fn of(frame: &[u8], packet: &Packet) -> Option<Self> {
        let Transport::Tcp { flags, .. } = packet.transport else {
            return None;
        };
        let bytes = frame.get(usize::from(packet.l4)..)?;
        let header: &[u8; 20] = bytes.first_chunk()?;
        let quad =
            |at: usize| u32::from_be_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
        let offset = usize::from(header[12] >> 4) * 4;
        let seq = quad(4);
        let phantom = u32::from(flags.has(TcpFlags::SYN)) + u32::from(flags.has(TcpFlags::FIN));
        let length = usize::from(packet.l4_length()).saturating_sub(offset) as u32;
        Some(Self {
            seq,
            end: seq.wrapping_add(length).wrapping_add(phantom),
            ack: flags.has(TcpFlags::ACK).then(|| quad(8)),
            window: u16::from_be_bytes([header[14], header[15]]),
            flags,
            scale: if flags.has(TcpFlags::SYN) {
                bytes.get(20..offset).and_then(window_scale)
            } else {
                None
            },
        })
    }
}

/// The window scale among the options of a SYN.
#[cold]
fn window_scale(mut options: &[u8]) -> Option<u8> {
    loop {
        match *options {
            [1, ref rest @ ..] => options = rest,
            [3, 3, scale, ..] => return Some(scale.min(14)),
            [kind, length, ..] if kind != 0 && length >= 2 => options = options.get(usize::from(length)..)?,
            _ => return None,
        }
    }
}

/// Tracked state of both directions of a connection. Native byte order; indexed by [`FlowDirection`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(crate) struct Windows {
    /// One past the last byte sent.
    end: [u32; 2],
    /// What was acknowledged last, of the other direction.
    acked: [u32; 2],
    /// The largest window that was announced, rounded up to a power of two: its exponent.
    window_log: [u8; 2],
    /// The scale of announced windows.
    scale: [u8; 2],
    /// Which of these numbers were ever seen.
    known: u8,
    /// Always zero.
    reserved: [u8; 3],
}

/// Bits of [`Windows::known`], by direction.
const END: [u8; 2] = [1, 2];
const ACKED: [u8; 2] = [4, 8];
/// The beginning was seen, and the scale in it counts.
const SCALE: [u8; 2] = [16, 32];

/// `a - b` on the circle of sequence numbers.
#[inline]
fn sequence_difference(a: u32, b: u32) -> i64 {
    i64::from(a.wrapping_sub(b) as i32)
}

impl Windows {
    /// Forgets numbers that may be outdated because packets passed unseen (fail mode open, no dataplane). Window
    /// scales are fixed by the handshake and stay.
    pub(crate) fn reset_unless_scale(&mut self) {
        self.known &= SCALE[0] | SCALE[1];
        self.reserved = [0; 3];
    }

    /// Whether a segment is in the receiver's window, as far as that is known.
    #[inline]
    fn is_in_window(&self, direction: FlowDirection, segment: &Segment) -> bool {
        let (from, to) = (direction as usize, direction.reversed() as usize);
        if self.known & ACKED[to] == 0 {
            return self.known & END[from] == 0
                || sequence_difference(segment.seq, self.end[from]).unsigned_abs() <= 1 << MAX_WINDOW_LOG;
        }
        let window = 1_i64 << self.window_log[to].clamp(MIN_WINDOW_LOG, MAX_WINDOW_LOG);
        let offset = sequence_difference(segment.seq, self.acked[to]);
        -window <= offset && offset <= window
    }

    /// Whether the acknowledgement number is near what the other end has sent (RFC 5961 5.2), so an off-path attacker
    /// has to guess that number too. A little ahead is accepted: some packets may have taken another path.
    #[inline]
    fn acknowledges_sent_data(&self, direction: FlowDirection, segment: &Segment) -> bool {
        let (from, to) = (direction as usize, direction.reversed() as usize);
        let Some(ack) = segment.ack.filter(|_| self.known & END[to] != 0) else {
            return true;
        };
        let window = 1_u64 << self.window_log[from].clamp(MIN_WINDOW_LOG, MAX_WINDOW_LOG);
        sequence_difference(ack, self.end[to]).unsigned_abs() <= window
    }

    /// Whether a RST is in window: it continues what its sender has sent and the other end has not acknowledged. A
    /// RST that answers a SYN has to acknowledge that.
    pub(crate) fn accepts_reset(&self, direction: FlowDirection, segment: &Segment, before: State) -> bool {
        let (from, to) = (direction as usize, direction.reversed() as usize);
        if before == State::TcpSyn && direction == FlowDirection::Reply {
            return segment
                .ack
                .is_some_and(|ack| self.known & END[to] != 0 && ack == self.end[to]);
        }
        if self.known & END[from] == 0 || !self.acknowledges_sent_data(direction, segment) {
            return false;
        }
        let last = sequence_difference(self.end[from], segment.seq);
        if self.known & ACKED[to] == 0 {
            // The other end has not confirmed what this end seems to have sent; after the handshake it may be forged.
            return matches!(before, State::TcpSyn | State::TcpHandshake) && last == 0;
        }
        last >= 0 && sequence_difference(segment.seq, self.acked[to]) >= 0
    }

    /// Whether a FIN is in order: no data is missing before it, and nothing after it has been acknowledged.
    pub(crate) fn accepts_fin(&self, direction: FlowDirection, segment: &Segment) -> bool {
        let (from, to) = (direction as usize, direction.reversed() as usize);
        let last = segment.end.wrapping_sub(1);
        self.known & END[from] != 0
            && sequence_difference(self.end[from], segment.seq) >= 0
            && self.is_in_window(direction, segment)
            && self.acknowledges_sent_data(direction, segment)
            && (self.known & ACKED[to] == 0 || sequence_difference(last, self.acked[to]) >= 0)
    }

    /// Whether an end has sent the byte of a number not long ago: what an ICMP error quotes (RFC 5927 4).
    pub(crate) fn has_sent(&self, direction: FlowDirection, seq: u32) -> bool {
        let (from, to) = (direction as usize, direction.reversed() as usize);
        if self.known & END[from] == 0 {
            return false;
        }
        let window = 1_i64 << self.window_log[to].clamp(MIN_WINDOW_LOG, MAX_WINDOW_LOG);
        let behind = sequence_difference(self.end[from], seq);
        0 <= behind && behind <= 2 * window
    }

    /// The verification tag of a direction: an SCTP association keeps them in place of numbers.
    pub(super) fn tag(&self, direction: FlowDirection) -> Option<u32> {
        let way = direction as usize;
        (self.known & END[way] != 0).then_some(self.end[way])
    }

    pub(super) fn set_tag(&mut self, direction: FlowDirection, tag: Option<u32>) {
        if let Some(tag) = tag.filter(|tag| *tag != 0) {
            self.end[direction as usize] = tag;
            self.known |= END[direction as usize];
        }
    }

    /// Updates the window from a forwarded segment. `anew` if it begins the connection, first or again.
    #[inline]
    pub(crate) fn observe(&mut self, direction: FlowDirection, segment: &Segment, anew: bool) {
        let (from, to) = (direction as usize, direction.reversed() as usize);
        if segment.flags.has(TcpFlags::SYN) {
            self.begin(direction, segment, anew);
        }
        if self.known & END[from] == 0 {
            self.end[from] = segment.end;
            self.known |= END[from];
        } else if !self.is_in_window(direction, segment) || !self.acknowledges_sent_data(direction, segment) {
            return;
        } else if sequence_difference(segment.end, self.end[from]) > 0 {
            self.end[from] = segment.end;
        }
        if let Some(ack) = segment.ack {
            if self.known & ACKED[from] == 0 || sequence_difference(ack, self.acked[from]) > 0 {
                self.acked[from] = ack;
                self.known |= ACKED[from];
            }
            // Acknowledged data was sent, even if it was not seen.
            if self.known & END[to] != 0 && sequence_difference(ack, self.end[to]) > 0 {
                self.end[to] = ack;
            }
        }
        let shift = if segment.flags.has(TcpFlags::SYN) {
            0 // the window of a SYN is never scaled (RFC 7323 2.2)
        } else if self.known & SCALE[from] != 0 {
            self.scale[from]
        } else {
            14
        };
        let window = u64::from(segment.window) << shift.min(14);
        let log = (u64::BITS - window.leading_zeros()) as u8;
        self.window_log[from] = self.window_log[from].max(log);
    }

    #[cold]
    fn begin(&mut self, direction: FlowDirection, segment: &Segment, anew: bool) {
        let (from, to) = (direction as usize, direction.reversed() as usize);
        if anew {
            // Another initial number: what was seen of this direction, and acknowledged of it, means nothing any more.
            self.known &= !(END[from] | ACKED[to]);
            self.window_log[from] = 0;
        }
        if self.known & END[from] == 0 {
            // Scales count only where both ends announce one; without, the windows are as they stand.
            self.scale[from] = segment.scale.unwrap_or(0);
            self.known |= SCALE[from];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use FlowDirection::{Original, Reply};

    const SYN: u8 = TcpFlags::SYN;
    const ACK: u8 = TcpFlags::ACK;
    const RST: u8 = TcpFlags::RST;
    const FIN_ACK: u8 = TcpFlags::FIN | TcpFlags::ACK;

    fn segment(flags: u8, seq: u32, ack: u32, length: u32, window: u16) -> Segment {
        let flags = TcpFlags(flags);
        let phantom = u32::from(flags.has(SYN)) + u32::from(flags.has(TcpFlags::FIN));
        Segment {
            seq,
            end: seq.wrapping_add(length + phantom),
            ack: flags.has(ACK).then_some(ack),
            window,
            flags,
            scale: flags.has(SYN).then_some(3),
        }
    }

    /// A connection whose ends begin with these numbers, up to the handshake's end.
    fn opened(client: u32, server: u32) -> Windows {
        let mut windows = Windows::default();
        windows.observe(Original, &segment(SYN, client, 0, 0, 65_535), true);
        let answer = segment(SYN | ACK, server, client.wrapping_add(1), 0, 65_535);
        windows.observe(Reply, &answer, true);
        let (client, server) = (client.wrapping_add(1), server.wrapping_add(1));
        windows.observe(Original, &segment(ACK, client, server, 0, 8_192), false);
        windows
    }

    #[test]
    fn a_reset_is_believed_only_where_it_continues_what_was_sent() {
        for (client, server) in [(1000, 9000), (u32::MAX, u32::MAX - 1), (0x7fff_ffff, 0x8000_0000)] {
            let mut windows = opened(client, server);
            let (client, server) = (client.wrapping_add(1), server.wrapping_add(1));
            let believed = |windows: &Windows, direction, seq| {
                windows.accepts_reset(direction, &segment(RST, seq, 0, 0, 0), State::TcpEstablished)
            };
            for (direction, next) in [(Original, client), (Reply, server)] {
                assert!(believed(&windows, direction, next));
                for wrong in [1, 2, 1000, 65_535, 1 << 20, 1 << 31, u32::MAX] {
                    assert!(
                        !believed(&windows, direction, next.wrapping_add(wrong)),
                        "{wrong}"
                    );
                }
            }
            // While 100 bytes are on their way, any of their numbers.
            windows.observe(Original, &segment(ACK, client, server, 100, 8_192), false);
            for (offset, wanted) in [(0, true), (100, true), (101, false), (u32::MAX, false)] {
                assert_eq!(believed(&windows, Original, client.wrapping_add(offset)), wanted);
            }
            windows.observe(
                Reply,
                &segment(ACK, server, client.wrapping_add(100), 0, 8_192),
                false,
            );
            assert!(!believed(&windows, Original, client));
            assert!(believed(&windows, Original, client.wrapping_add(100)));
        }
    }

    #[test]
    fn what_is_made_up_moves_no_number() {
        let mut windows = opened(1000, 9000);
        let before = windows;
        // Scale 3: at most 8,192 << 3 bytes are taken, and no window counts for less than 65,536.
        for far in [1 << 17, 1 << 20, 1 << 31] {
            windows.observe(Original, &segment(ACK, 1001 + far, 9001, 1000, 8_192), false);
            windows.observe(
                Reply,
                &segment(ACK, 9001_u32.wrapping_sub(far), 1001, 1000, 8_192),
                false,
            );
        }
        assert_eq!((windows.end, windows.acked), (before.end, before.acked));
    }

    #[test]
    fn a_fin_is_believed_in_order() {
        let windows = opened(1000, 9000);
        let believed = |seq| windows.accepts_fin(Original, &segment(FIN_ACK, seq, 9001, 10, 0));
        assert!(believed(1001));
        assert!(!believed(1002), "a byte is missing before it");
        assert!(!believed(1001_u32.wrapping_sub(1 << 20)));
        assert!(!Windows::default().accepts_fin(Original, &segment(FIN_ACK, 1, 1, 0, 0)));
    }

    #[test]
    fn the_answer_to_a_syn_acknowledges_it() {
        let mut windows = Windows::default();
        windows.observe(Original, &segment(SYN, 1000, 0, 0, 100), true);
        let refusal = |ack| segment(RST | ACK, 0, ack, 0, 0);
        assert!(windows.accepts_reset(Reply, &refusal(1001), State::TcpSyn));
        assert!(!windows.accepts_reset(Reply, &refusal(1000), State::TcpSyn));
        assert!(!windows.accepts_reset(Reply, &segment(RST, 0, 0, 0, 0), State::TcpSyn));
        // Begun once more with another number.
        windows.observe(Original, &segment(SYN, 5000, 0, 0, 100), true);
        assert!(windows.accepts_reset(Reply, &refusal(5001), State::TcpSyn));
    }

    #[test]
    fn quoted_bytes_were_sent() {
        let mut windows = opened(1000, 9000);
        windows.observe(Original, &segment(ACK, 1001, 9001, 1000, 8_192), false);
        for (seq, wanted) in [
            (1001, true),
            (2000, true),
            (2001, true),
            (2002, false),
            (1 << 30, false),
        ] {
            assert_eq!(windows.has_sent(Original, seq), wanted, "{seq}");
        }
    }

    #[test]
    fn options_are_walked_to_the_scale() {
        assert_eq!(window_scale(&[2, 4, 5, 180, 1, 3, 3, 7]), Some(7));
        assert_eq!(window_scale(&[3, 3, 200]), Some(14));
        for broken in [
            &[][..],
            &[0, 3, 3, 7],
            &[2, 0, 3, 3, 7],
            &[2, 9, 3],
            &[3, 3],
            &[5, 1],
        ] {
            assert_eq!(window_scale(broken), None, "{broken:?}");
        }
    }
}
