//! The verification tags of an SCTP association: they tell an ABORT or SHUTDOWN COMPLETE that an end may have sent from one
//! that somebody made up (RFC 9260 8.5).

use super::{state::FlowDirection, tcp::Windows};
use crate::wire::{Packet, Transport};

const INIT: u8 = 1;
const INIT_ACK: u8 = 2;
/// The tag is the receiver's own, which it expects of the other end (RFC 9260 3.3.7, 3.3.13).
const REFLECTED: u8 = 1;

/// What the first chunk of a packet says about tags.
#[derive(Clone, Copy, Debug)]
struct Chunk {
    /// The packet's verification tag.
    tag: u32,
    kind: u8,
    flags: u8,
    /// Which tag the other end is to send from now on: of INIT and INIT ACK.
    initiate: Option<u32>,
}

impl Chunk {
    fn of(frame: &[u8], packet: &Packet) -> Option<Self> {
        if !matches!(packet.transport, Transport::Sctp { .. }) {
            return None;
        }
        let bytes = packet.l4_bytes(frame);
        let quad = |at: usize| Some(u32::from_be_bytes(*bytes.get(at..)?.first_chunk()?));
        let &[kind, flags, ..] = bytes.get(12..)? else {
            return None;
        };
        Some(Self {
            tag: quad(4)?,
            kind,
            flags,
            initiate: if matches!(kind, INIT | INIT_ACK) {
                quad(16)
            } else {
                None
            },
        })
    }
}

/// Takes note of the tags of a packet that is forwarded. The first ones count: an association has the same to its end.
#[cold]
pub(crate) fn observe(windows: &mut Windows, direction: FlowDirection, frame: &[u8], packet: &Packet) {
    let Some(chunk) = Chunk::of(frame, packet) else {
        return;
    };
    let back = direction.reversed();
    match chunk.kind {
        // An INIT may be sent once more with another tag, until it is answered.
        INIT if direction == FlowDirection::Original && windows.tag(direction).is_none() => {
            windows.set_tag(back, chunk.initiate);
        }
        INIT => {}
        INIT_ACK if windows.tag(direction) == Some(chunk.tag) && windows.tag(back).is_none() => {
            windows.set_tag(back, chunk.initiate);
        }
        INIT_ACK => {}
        _ if windows.tag(direction).is_none() => windows.set_tag(direction, Some(chunk.tag)),
        _ => {}
    }
}

/// Whether an ABORT or SHUTDOWN COMPLETE can be of the end that it says it is of. Where no tag is known, anything can.
#[cold]
pub(crate) fn accepts_close(
    windows: &Windows,
    direction: FlowDirection,
    frame: &[u8],
    packet: &Packet,
) -> bool {
    let tags = [direction, direction.reversed()].map(|way| windows.tag(way));
    let Some(chunk) = Chunk::of(frame, packet) else {
        return false;
    };
    tags == [None; 2] || tags[usize::from(chunk.flags & REFLECTED)] == Some(chunk.tag)
}
