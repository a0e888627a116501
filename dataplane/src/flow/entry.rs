//! One flow in 128 bytes of plain old data: the first 64 find it, the second 64 decide and count.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::{
    FlowId, FlowRecord,
    hash::Seed,
    state::{Direction, State},
};
use crate::{addr::Addr, classify::Generation, port::PortId, prefetch::prefetch, time::Nanos, wire::FlowKey};

pub(crate) const ENTRY_BYTES: usize = 128;
const _: () = assert!(size_of::<Entry>() == ENTRY_BYTES);

/// No port seen.
const NO_PORT: u16 = u16::MAX;

/// It is known who began.
const ORIENTED: u8 = 1;
/// Not oriented: the direction against the first packet has been judged too, and allowed.
const REPLY_JUDGED: u8 = 2;
/// The first packet came where a node's address can be believed (SEMANTICS 47).
const TRUSTED: u8 = 4;
const ALL_FLAGS: u8 = ORIENTED | REPLY_JUDGED | TRUSTED;

/// Native byte order, but for addresses; all zero is a free place.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(crate) struct Entry {
    /// Addresses of the original direction, network byte order.
    src: [u8; 16],
    dst: [u8; 16],
    zone: u32,
    vlan: u32,
    src_port: u16,
    dst_port: u16,
    protocol: u8,
    /// [`State`] as a number; 0 is free.
    state: u8,
    flags: u8,
    reserved: u8,
    /// Over the key: shows an entry that was torn.
    check: u32,
    /// Ingress port by direction.
    ports: [u16; 2],
    /// Nanoseconds.
    last_seen: u64,
    /// Snapshot under which it was last found allowed; 0 for none.
    generation: u64,
    /// Of the source and the destination, under that snapshot.
    epochs: [u64; 2],
    /// Snapshot that decided: low 32 bits.
    decided: u32,
    /// Of the destination's and the source's decision.
    provenance: [u32; 2],
    /// By direction: 48 bits each, the low 32 and the high 16 apart.
    packets_low: [u32; 2],
    bytes_low: [u32; 2],
    packets_high: [u16; 2],
    bytes_high: [u16; 2],
    /// When the flow began, in units of 2^[`BORN_SHIFT`] ns; with the key it names the flow.
    born: u32,
}

/// Units of about 67 ms, in which 32 bits last for nine years.
const BORN_SHIFT: u32 = 26;

/// What was decided when an entry was made or judged again.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stamp {
    pub(crate) generation: Generation,
    /// Of the source and the destination.
    pub(crate) epochs: [u64; 2],
    /// Of the destination's and the source's decision.
    pub(crate) provenance: [u32; 2],
}

impl Entry {
    pub(crate) fn new(
        key: &FlowKey,
        state: State,
        check: u32,
        stamp: &Stamp,
        trusted: bool,
        now: Nanos,
    ) -> Self {
        let oriented = state != State::TcpMidstream;
        Self {
            src: key.src.octets(),
            dst: key.dst.octets(),
            zone: key.zone,
            vlan: key.vlan,
            src_port: key.src_port,
            dst_port: key.dst_port,
            protocol: key.protocol,
            state: state as u8,
            flags: if oriented { ORIENTED } else { 0 } | if trusted { TRUSTED } else { 0 },
            reserved: 0,
            check,
            ports: [NO_PORT; 2],
            last_seen: now.0,
            generation: stamp.generation.0,
            epochs: stamp.epochs,
            decided: stamp.generation.0 as u32,
            provenance: stamp.provenance,
            packets_low: [0; 2],
            bytes_low: [0; 2],
            packets_high: [0; 2],
            bytes_high: [0; 2],
            born: (now.0 >> BORN_SHIFT) as u32,
        }
    }

    /// The key of the original direction.
    #[inline]
    pub(crate) fn key(&self) -> FlowKey {
        FlowKey {
            src: Addr::v6(self.src),
            dst: Addr::v6(self.dst),
            zone: self.zone,
            vlan: self.vlan,
            src_port: self.src_port,
            dst_port: self.dst_port,
            protocol: self.protocol,
        }
    }

    /// Whether the entry has this key in the direction given.
    #[inline]
    pub(crate) fn is(&self, key: &FlowKey, direction: Direction) -> bool {
        let same = self.zone == key.zone && self.vlan == key.vlan && self.protocol == key.protocol;
        let (src, dst) = (key.src.octets(), key.dst.octets());
        same && match direction {
            Direction::Original => {
                self.src == src
                    && self.dst == dst
                    && self.src_port == key.src_port
                    && self.dst_port == key.dst_port
            }
            Direction::Reply => {
                self.src == dst
                    && self.dst == src
                    && self.src_port == key.dst_port
                    && self.dst_port == key.src_port
            }
        }
    }

    /// Asks for both its cache lines.
    #[inline]
    pub(crate) fn expect(&self) {
        prefetch(self);
        prefetch(&self.generation);
    }

    /// None where the place is free.
    #[inline]
    pub(crate) fn state(&self) -> Option<State> {
        State::from_number(self.state)
    }

    #[inline]
    pub(crate) fn set_state(&mut self, state: State) {
        self.state = state as u8;
    }

    /// Writes only where there is something to free: opening a table must not touch all of a mapping's pages.
    pub(crate) fn free(&mut self) {
        if self.state != 0 {
            self.state = 0;
        }
    }

    /// Whether what a predecessor left can be believed, and makes it ready for this process: ports may have other
    /// numbers now and generations begin anew, so both are asked again at the next packet.
    pub(crate) fn adopt(&mut self, check: impl Fn(&FlowKey) -> u32, now: Nanos) -> bool {
        let sound = self.state().is_some()
            && self.flags & !ALL_FLAGS == 0
            && self.reserved == 0
            && self.last_seen <= now.0
            && self.check == check(&self.key());
        if sound {
            self.ports = [NO_PORT; 2];
            self.generation = 0;
            self.decided = 0;
            self.flags &= !REPLY_JUDGED;
        }
        sound
    }

    #[inline]
    pub(crate) fn last_seen(&self) -> Nanos {
        Nanos(self.last_seen)
    }

    #[inline]
    pub(crate) fn touch(&mut self, now: Nanos) {
        self.last_seen = now.0;
    }

    #[inline]
    pub(crate) fn generation(&self) -> Generation {
        Generation(self.generation)
    }

    #[inline]
    pub(crate) fn epochs(&self) -> [u64; 2] {
        self.epochs
    }

    /// Allowed under a newer snapshot too, for the same reasons.
    #[inline]
    pub(crate) fn restamp(&mut self, generation: Generation) {
        self.generation = generation.0;
    }

    /// Judged again and allowed. Whose addresses they are may have changed, so ports are asked again at the next packet.
    pub(crate) fn rejudged(&mut self, stamp: &Stamp) {
        self.generation = stamp.generation.0;
        self.epochs = stamp.epochs;
        self.provenance = stamp.provenance;
        self.decided = stamp.generation.0 as u32;
        self.ports = [NO_PORT; 2];
        self.flags &= !REPLY_JUDGED;
    }

    #[inline]
    pub(crate) fn is_trusted(&self) -> bool {
        self.flags & TRUSTED != 0
    }

    #[inline]
    pub(crate) fn is_oriented(&self) -> bool {
        self.flags & ORIENTED != 0
    }

    pub(crate) fn orient(&mut self) {
        self.flags |= ORIENTED;
    }

    /// Whether a packet in this direction needs no judgement of its own.
    #[inline]
    pub(crate) fn covers(&self, direction: Direction) -> bool {
        direction == Direction::Original || self.flags & (ORIENTED | REPLY_JUDGED) != 0
    }

    pub(crate) fn cover_reply(&mut self) {
        self.flags |= REPLY_JUDGED;
    }

    #[inline]
    pub(crate) fn port(&self, direction: Direction) -> Option<PortId> {
        match self.ports[direction as usize] {
            NO_PORT => None,
            port => Some(PortId(port)),
        }
    }

    /// What was judged on its own was judged as it came in by the port before.
    #[inline]
    pub(crate) fn set_port(&mut self, direction: Direction, port: PortId) {
        self.ports[direction as usize] = port.0;
        if direction == Direction::Reply {
            self.flags &= !REPLY_JUDGED;
        }
    }

    #[inline]
    pub(crate) fn count(&mut self, direction: Direction, bytes: u16) {
        let way = direction as usize;
        let (low, carry) = self.packets_low[way].overflowing_add(1);
        self.packets_low[way] = low;
        self.packets_high[way] = self.packets_high[way].wrapping_add(u16::from(carry));
        let (low, carry) = self.bytes_low[way].overflowing_add(u32::from(bytes));
        self.bytes_low[way] = low;
        self.bytes_high[way] = self.bytes_high[way].wrapping_add(u16::from(carry));
    }

    pub(crate) fn record(&self, seed: &Seed) -> Option<FlowRecord> {
        let join = |high: [u16; 2], low: [u32; 2]| {
            [0, 1].map(|way| u64::from(high[way]) << 32 | u64::from(low[way]))
        };
        let key = self.key();
        Some(FlowRecord {
            id: FlowId(seed.flow_id(&key, self.born)),
            key,
            state: self.state()?,
            oriented: self.is_oriented(),
            generation: self.generation(),
            decided: self.decided,
            provenance: self.provenance,
            ports: [self.port(Direction::Original), self.port(Direction::Reply)],
            began: Nanos(u64::from(self.born) << BORN_SHIFT),
            last_seen: self.last_seen(),
            packets: join(self.packets_high, self.packets_low),
            bytes: join(self.bytes_high, self.bytes_low),
        })
    }
}
