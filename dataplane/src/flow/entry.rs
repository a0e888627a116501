//! One flow in three cache lines of plain old data: the first finds it, every packet reads and writes the second, and
//! the third is touched when the flow begins, is judged again, or is dumped.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::{
    FlowId, FlowRecord,
    hash::Seed,
    state::{FlowDirection, State},
    tcp::Windows,
};
use crate::{
    addr::Addr,
    classify::Generation,
    node::{
        ask::{self, LocalEnds},
        cache::CacheIndex,
    },
    port::{PortId, PortTag},
    prefetch::prefetch,
    time::Nanos,
    verdict::DropReason,
    wire::{FlowKey, protocol},
};

pub(crate) const ENTRY_BYTES: usize = 192;
const _: () = assert!(size_of::<Entry>() == ENTRY_BYTES);
const _: () = assert!(std::mem::offset_of!(Entry, generation) == 64);
const _: () = assert!(std::mem::offset_of!(Entry, decided) == 128);

/// No port seen.
const NO_PORT: u16 = u16::MAX;

/// It is known who began.
const ORIENTED: u8 = 1;
/// Not oriented: the direction against the first packet has been judged too, and allowed.
const REPLY_ALLOWED: u8 = 2;
/// The first packet came where a node's address can be believed (SEMANTICS 47).
const TRUSTED: u8 = 4;
/// One end is this machine and the other a pod on one of its ports (SEMANTICS 47).
const THIS_NODE: u8 = 8;
/// A failsafe rule lets it pass, whatever policy says.
const FAILSAFE: u8 = 16;
/// Policy denies it; audit mode forwards it all the same.
const AUDITED: u8 = 32;
/// Its packets bear the Ethernet addresses that its ports were bound with.
const MAC_BOUND: u8 = 64;
/// Of `asked`: the kernel asks about its packets, and which ends this node judges ([`ask::flag`]).
const ASKED: u8 = 4;
const ALL_ASKED: u8 = ask::flag::SRC_LOCAL | ask::flag::DST_LOCAL | ASKED;
const ALL_FLAGS: u8 = ORIENTED | REPLY_ALLOWED | TRUSTED | THIS_NODE | FAILSAFE | AUDITED | MAC_BOUND;

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
    /// [`ASKED`] and which ends are judged; 0 on a gateway.
    asked: u8,
    /// Over the key: shows an entry that was torn.
    check: u32,
    /// By direction: the port where its packets come in, which is where the other direction's went out.
    ports: [u16; 2],
    /// Nanoseconds.
    last_seen: u64,

    /// Snapshot under which it was last found allowed; 0 for none.
    generation: u64,
    /// Of the source and the destination, under that snapshot.
    epochs: [u64; 2],
    /// By direction: 48 bits each, these are the low 32.
    packets_low: [u32; 2],
    bytes_low: [u32; 2],
    /// TCP, and the tags of SCTP.
    windows: Windows,

    /// Snapshot that decided: low 32 bits.
    decided: u32,
    /// Of the destination's and the source's decision.
    provenance: [u32; 2],
    packets_high: [u16; 2],
    bytes_high: [u16; 2],
    /// When the flow began, in units of 2^[`BEGAN_SHIFT`] ns; with the key it names the flow.
    born: u32,
    /// Quota accounts of source and destination. See `quota`.
    charged: [u32; 2],
    /// ICMP errors about it: when the last one passed, in units of 2^[`ICMP_ERROR_SHIFT`] ns, and how many more may.
    error_at: u32,
    errors_left: u8,
    /// Why audit mode would drop it: a [`DropReason`] plus one; 0 for nothing.
    would_drop: u8,
    origin: Origin,
    /// By direction, of a flow that the kernel asks about: one more than the place of its tuple in the flow cache; 0 is
    /// none. A tracked flow has one tuple, an untracked one a tuple of each direction.
    cached: [u32; 2],
}

/// Where a flow's packets come from.
///
/// * On a wire, by direction, with [`MAC_BOUND`]: the Ethernet address that its packets come from (6 bytes each), zero where
///   none has come; from byte 14 on the [`PortTag`] of the port where packets of the original direction come in, 0 for none.
///   Unlike `ports` the tag outlives a restart, and being judged again.
/// * With [`ASKED`]: the frontend's address and port (network byte order), zeros for none.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Origin([u8; 18]);

const TAG: std::ops::Range<usize> = 14..18;

impl Origin {
    const NONE: Self = Self([0; 18]);

    #[inline]
    fn station(&self, direction: FlowDirection) -> [u8; 6] {
        let at = 6 * direction as usize;
        std::array::from_fn(|nth| self.0[at + nth])
    }

    fn set_station(&mut self, direction: FlowDirection, station: [u8; 6]) {
        let at = 6 * direction as usize;
        self.0[at..at + 6].copy_from_slice(&station);
    }

    fn forget_stations(&mut self) {
        self.0[..12].fill(0);
    }

    fn tag(&self) -> u32 {
        let mut tag = [0; 4];
        tag.copy_from_slice(&self.0[TAG]);
        u32::from_ne_bytes(tag)
    }

    fn set_tag(&mut self, tag: u32) {
        self.0[TAG].copy_from_slice(&tag.to_ne_bytes());
    }
}

/// Units of about 67 ms, in which 32 bits last for nine years.
const BEGAN_SHIFT: u32 = 26;
/// Units of about 100 ms: ten ICMP errors a second may pass about one flow, ten at once.
const ICMP_ERROR_SHIFT: u32 = 27;
const ICMP_ERROR_BURST: u8 = 10;

/// What was decided when an entry was made or judged again.
#[derive(Clone, Copy, Debug)]
pub(crate) struct DecisionStamp {
    pub(crate) generation: Generation,
    /// Of the source and the destination.
    pub(crate) epochs: [u64; 2],
    /// Of the destination's and the source's decision.
    pub(crate) provenance: [u32; 2],
    /// What allows the flow.
    pub(crate) allowed_by: AllowedBy,
}

/// What allows a flow to pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AllowedBy {
    /// Policy alone.
    Policy,
    /// Policy, with the node exemption: its node's address is trusted because of the port (SEMANTICS 47).
    TrustedNode,
    /// One end is a pod and the other this machine itself (SEMANTICS 47).
    ThisNode,
    /// A failsafe rule.
    Failsafe,
    /// Nothing: audit mode lets it pass. The reason why enforcement would drop it.
    Audit(DropReason),
}

impl AllowedBy {
    fn flag(self) -> u8 {
        match self {
            Self::Policy => 0,
            Self::TrustedNode => TRUSTED,
            Self::ThisNode => THIS_NODE,
            Self::Failsafe => FAILSAFE,
            Self::Audit(_) => AUDITED,
        }
    }

    fn would_drop(self) -> u8 {
        match self {
            Self::Audit(reason) => reason as u8 + 1,
            _ => 0,
        }
    }
}

impl Entry {
    pub(crate) fn new(
        key: &FlowKey,
        state: State,
        check: u32,
        charged: [u32; 2],
        stamp: &DecisionStamp,
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
            flags: if oriented { ORIENTED } else { 0 } | stamp.allowed_by.flag(),
            asked: 0,
            check,
            ports: [NO_PORT; 2],
            last_seen: now.0,
            generation: stamp.generation.0,
            epochs: stamp.epochs,
            packets_low: [0; 2],
            bytes_low: [0; 2],
            windows: Windows::default(),
            decided: stamp.generation.0 as u32,
            provenance: stamp.provenance,
            packets_high: [0; 2],
            bytes_high: [0; 2],
            born: (now.0 >> BEGAN_SHIFT) as u32,
            charged,
            error_at: (now.0 >> ICMP_ERROR_SHIFT) as u32,
            errors_left: ICMP_ERROR_BURST,
            would_drop: stamp.allowed_by.would_drop(),
            origin: Origin::NONE,
            cached: [0; 2],
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
    pub(crate) fn matches(&self, key: &FlowKey, direction: FlowDirection) -> bool {
        // What differs is gathered without branches: nearly always it is nothing.
        let number = |addr: [u8; 16]| u128::from_ne_bytes(addr);
        let ends = |[src, dst]: [Addr; 2], ports: [u16; 2]| {
            let addrs = (number(self.src) ^ number(src.octets())) | (number(self.dst) ^ number(dst.octets()));
            let ports = (self.src_port ^ ports[0]) | (self.dst_port ^ ports[1]);
            (addrs as u64) | ((addrs >> 64) as u64) | u64::from(ports)
        };
        let rest = (self.zone ^ key.zone) | (self.vlan ^ key.vlan) | u32::from(self.protocol ^ key.protocol);
        let ends = match direction {
            FlowDirection::Original => ends([key.src, key.dst], [key.src_port, key.dst_port]),
            FlowDirection::Reply => ends([key.dst, key.src], [key.dst_port, key.src_port]),
        };
        ends | u64::from(rest) == 0
    }

    /// Prefetches the two cache lines that every packet reads.
    #[inline]
    pub(crate) fn prefetch(&self) {
        prefetch(self);
        prefetch(&self.generation);
    }

    /// None if the entry is free.
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

    /// Writes the check sum anew.
    #[cfg(feature = "fuzzing")]
    pub(crate) fn seal(&mut self, check: impl Fn(&FlowKey) -> u32) {
        self.check = check(&self.key());
    }

    /// Whether what a predecessor left can be believed, and makes it ready for this process: ports may have other
    /// numbers now and generations begin anew, so both are asked again at the next packet. `unseen` where connections
    /// may have continued while no dataplane ran, as those of failsafe rules may: their sequence numbers are learnt
    /// from scratch. A gateway believes no flow of a node (`is_node`), which judges only its own ends, nor the other way
    /// round.
    pub(crate) fn inherit(
        &mut self,
        check: impl Fn(&FlowKey) -> u32,
        charged: [u32; 2],
        unseen: bool,
        is_node: bool,
        now: Nanos,
    ) -> bool {
        let sound = self.state().is_some()
            && self.flags & !ALL_FLAGS == 0
            && self.flags & AUDITED == 0
            && self.asked & !ALL_ASKED == 0
            && self.is_asked() == is_node
            && self.last_seen <= now.0
            && self.check == check(&self.key());
        if sound {
            self.ports = [NO_PORT; 2];
            self.generation = 0;
            self.decided = 0;
            self.flags &= !(REPLY_ALLOWED | MAC_BOUND);
            if !is_node {
                self.origin.forget_stations();
                self.cached = [0; 2];
            }
            if self.protocol == protocol::TCP && (unseen || self.flags & FAILSAFE != 0) {
                self.windows.reset_unless_scale();
            }
            self.charged = charged;
            self.would_drop = 0;
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
    pub(crate) fn rejudge(&mut self, stamp: &DecisionStamp) {
        self.generation = stamp.generation.0;
        self.epochs = stamp.epochs;
        self.provenance = stamp.provenance;
        self.decided = stamp.generation.0 as u32;
        self.ports = [NO_PORT; 2];
        self.flags &= ORIENTED;
        self.flags |= stamp.allowed_by.flag();
        self.would_drop = stamp.allowed_by.would_drop();
    }

    /// What allows it to pass.
    pub(crate) fn allowed_by(&self) -> AllowedBy {
        match self.flags {
            flags if flags & AUDITED != 0 => {
                AllowedBy::Audit(self.would_drop().unwrap_or(DropReason::PolicyIngress))
            }
            flags if flags & FAILSAFE != 0 => AllowedBy::Failsafe,
            flags if flags & THIS_NODE != 0 => AllowedBy::ThisNode,
            flags if flags & TRUSTED != 0 => AllowedBy::TrustedNode,
            _ => AllowedBy::Policy,
        }
    }

    /// Why audit mode would drop it.
    pub(crate) fn would_drop(&self) -> Option<DropReason> {
        DropReason::ALL
            .get(usize::from(self.would_drop.checked_sub(1)?))
            .copied()
    }

    #[inline]
    pub(crate) fn is_oriented(&self) -> bool {
        self.flags & ORIENTED != 0
    }

    pub(crate) fn orient(&mut self) {
        self.flags |= ORIENTED;
    }

    /// Whether a direction is bound to this source Ethernet address.
    pub(crate) fn is_from_mac(&self, direction: FlowDirection, station: [u8; 6]) -> bool {
        self.flags & MAC_BOUND != 0 && self.origin.station(direction) == station
    }

    /// Binds a direction to a source Ethernet address, which is checked on each packet from now on.
    pub(crate) fn bind_mac(&mut self, direction: FlowDirection, station: Option<[u8; 6]>) {
        self.flags |= MAC_BOUND;
        if let Some(station) = station {
            self.origin.set_station(direction, station);
        }
    }

    /// Whether a packet of either direction needs only the port and state checks.
    #[inline]
    pub(crate) fn takes_fast_path(&self) -> bool {
        self.flags & (ORIENTED | AUDITED | MAC_BOUND) == ORIENTED
    }

    /// The same for an entry that is bound to source Ethernet addresses, if this packet has the one of its direction,
    /// or any will do (`free`).
    #[inline(never)]
    pub(crate) fn takes_fast_path_from(
        &self,
        direction: FlowDirection,
        station: Option<[u8; 6]>,
        free: bool,
    ) -> bool {
        self.flags & (ORIENTED | AUDITED | MAC_BOUND) == ORIENTED | MAC_BOUND
            && (free || station == Some(self.origin.station(direction)))
    }

    /// Whether a packet in this direction needs no judgement of its own.
    #[inline]
    pub(crate) fn allows(&self, direction: FlowDirection) -> bool {
        direction == FlowDirection::Original || self.flags & (ORIENTED | REPLY_ALLOWED) != 0
    }

    pub(crate) fn allow_reply(&mut self) {
        self.flags |= REPLY_ALLOWED;
    }

    /// Where packets of a direction come in; None where that has not been seen since the start.
    #[inline]
    pub(crate) fn port(&self, direction: FlowDirection) -> Option<PortId> {
        match self.ports[direction as usize] {
            NO_PORT => None,
            port => Some(PortId(port)),
        }
    }

    /// Whether packets of a direction come in by a port, as far as it has been seen.
    #[inline]
    pub(crate) fn is_bound(&self, direction: FlowDirection, port: PortId) -> bool {
        self.ports[direction as usize] == port.0
    }

    /// Binds a direction to the port where its packets come in.
    #[inline]
    pub(crate) fn bind(&mut self, direction: FlowDirection, port: PortId) {
        // What was judged on its own was judged as it came in by the port before.
        if direction == FlowDirection::Reply && self.ports[1] != port.0 {
            self.flags &= !REPLY_ALLOWED;
        }
        self.ports[direction as usize] = port.0;
    }

    /// By which end of a wire packets of the original direction come in, as far as that has been seen.
    pub(crate) fn original_port_tag(&self) -> Option<PortTag> {
        PortTag::from_number(self.origin.tag())
    }

    /// Remembers by which end of a wire packets of the original direction come in.
    pub(crate) fn set_original_port_tag(&mut self, port: PortTag) {
        self.origin.set_tag(port.number());
    }

    #[inline]
    pub(crate) fn windows(&self) -> &Windows {
        &self.windows
    }

    #[inline]
    pub(crate) fn windows_mut(&mut self) -> &mut Windows {
        &mut self.windows
    }

    /// Quota accounts of source and destination.
    #[inline]
    pub(crate) fn accounts(&self) -> [u32; 2] {
        self.charged
    }

    /// ICMP errors that may pass about it now.
    pub(crate) fn icmp_errors_left(&self, now: Nanos) -> u8 {
        let gone = ((now.0 >> ICMP_ERROR_SHIFT) as u32).wrapping_sub(self.error_at);
        let gained = u8::try_from(gone).unwrap_or(u8::MAX);
        self.errors_left.saturating_add(gained).min(ICMP_ERROR_BURST)
    }

    /// An ICMP error about it passed.
    pub(crate) fn count_icmp_error(&mut self, now: Nanos) {
        self.errors_left = self.icmp_errors_left(now).saturating_sub(1);
        self.error_at = (now.0 >> ICMP_ERROR_SHIFT) as u32;
    }

    #[inline]
    pub(crate) fn count(&mut self, direction: FlowDirection, bytes: u16) {
        let way = direction as usize;
        // The upper halves lie in the third line: nearly no packet has to touch it.
        let (low, carry) = self.packets_low[way].overflowing_add(1);
        self.packets_low[way] = low;
        if carry {
            self.packets_high[way] = self.packets_high[way].wrapping_add(1);
        }
        let (low, carry) = self.bytes_low[way].overflowing_add(u32::from(bytes));
        self.bytes_low[way] = low;
        if carry {
            self.bytes_high[way] = self.bytes_high[way].wrapping_add(1);
        }
    }

    /// Adds what the kernel has counted of a direction.
    pub(crate) fn add_counts(&mut self, direction: FlowDirection, packets: u64, bytes: u64) {
        let way = direction as usize;
        for (high, low, more) in [
            (&mut self.packets_high[way], &mut self.packets_low[way], packets),
            (&mut self.bytes_high[way], &mut self.bytes_low[way], bytes),
        ] {
            let sum = (u64::from(*high) << 32 | u64::from(*low)).wrapping_add(more);
            (*high, *low) = ((sum >> 32) as u16, sum as u32);
        }
    }

    /// The kernel asks about its packets; this node judges these ends of it.
    pub(crate) fn set_asked(&mut self, ends: LocalEnds, frontend: Option<(Addr, u16)>) {
        self.asked = ASKED | ends.flags();
        self.origin = Origin::NONE;
        if let Some((addr, port)) = frontend {
            self.origin.0[..16].copy_from_slice(&addr.octets());
            self.origin.0[16..].copy_from_slice(&port.to_be_bytes());
        }
    }

    #[inline]
    pub(crate) fn is_asked(&self) -> bool {
        self.asked & ASKED != 0
    }

    /// Which ends are judged; None for both.
    pub(crate) fn judged_ends(&self) -> Option<LocalEnds> {
        self.is_asked().then(|| LocalEnds::from_flags(self.asked))
    }

    /// Where its client believes to be talking to, if that is not its destination.
    pub(crate) fn frontend(&self) -> Option<(Addr, u16)> {
        let Origin([addr @ .., high, low]) = self.origin;
        (self.is_asked() && addr != [0; 16]).then(|| (Addr::v6(addr), u16::from_be_bytes([high, low])))
    }

    /// Where its tuple in a direction lies in the flow cache.
    pub(crate) fn cached(&self, direction: FlowDirection) -> Option<CacheIndex> {
        self.cached[direction as usize].checked_sub(1).map(CacheIndex)
    }

    pub(crate) fn set_cached(&mut self, direction: FlowDirection, index: Option<CacheIndex>) {
        self.cached[direction as usize] = index.map_or(0, |index| index.0.wrapping_add(1));
    }

    #[inline]
    pub(crate) fn is_cached(&self) -> bool {
        self.is_asked() && self.cached != [0; 2]
    }

    /// Names the flow.
    pub(crate) fn id(&self, seed: &Seed) -> FlowId {
        FlowId(seed.flow_id(&self.key(), self.born))
    }

    /// The record for a flow dump; None for a free or revoked entry.
    pub(crate) fn record(&self, seed: &Seed) -> Option<FlowRecord> {
        let state = self.state().filter(|state| *state != State::Revoked)?;
        let join = |high: [u16; 2], low: [u32; 2]| {
            [0, 1].map(|way| u64::from(high[way]) << 32 | u64::from(low[way]))
        };
        Some(FlowRecord {
            id: self.id(seed),
            key: self.key(),
            frontend: self.frontend(),
            state,
            oriented: self.is_oriented(),
            would_drop: self.would_drop(),
            generation: self.generation(),
            decided: self.decided,
            provenance: self.provenance,
            ports: [
                self.port(FlowDirection::Original),
                self.port(FlowDirection::Reply),
            ],
            began: Nanos(u64::from(self.born) << BEGAN_SHIFT),
            last_seen: self.last_seen(),
            packets: join(self.packets_high, self.packets_low),
            bytes: join(self.bytes_high, self.bytes_low),
        })
    }
}
