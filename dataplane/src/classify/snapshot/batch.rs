//! Judges many first packets at once, in passes: each pass prefetches the cache lines that the next one reads, so
//! memory latency is paid once per pass and not once per packet.

use arrayvec::ArrayVec;

use super::{HomeBucket, INVALID, Snapshot, identity_of};
use crate::{
    addr::Addr,
    classify::{
        DirectionVerdict, Identity, IdentityKind, Judgement, L4, NodeExemption,
        layout::{
            CLASSES_PER_PAGE, Decision, IdentityRecord, PortMapRecord, SAME_FOR_ALL, page_slot,
            whole_cell_decision,
        },
    },
    prefetch::prefetch,
};

/// Packets in a batch.
pub const BATCH: usize = 64;

/// A packet that begins a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FirstPacket {
    /// Source.
    pub src: Addr,
    /// Destination.
    pub dst: Addr,
    /// What is known of its layer 4.
    pub l4: L4,
}

/// A [`FirstPacket`]'s identities and decision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct JudgedPacket {
    /// Who the source is.
    pub src: Identity,
    /// Who the destination is.
    pub dst: Identity,
    /// The decision.
    pub judgement: Judgement,
}

/// A direction of a packet that a row decides about.
#[derive(Clone, Copy, Default)]
struct Cell {
    /// Row, as an index.
    row: u32,
    /// Peer class.
    class: u32,
    packet: u8,
    egress: bool,
}

/// Cells in a batch: two for each packet.
const CELLS: usize = 2 * BATCH;

/// The cells of a batch. Each is written and then kept if it counts, without a branch: which pods have rows cannot be
/// foretold.
struct PendingCells {
    cells: [Cell; CELLS],
    count: usize,
}

impl Snapshot {
    /// As [`Self::identify`] and [`Self::judge`] for each packet, in order; of more than [`BATCH`] only the first.
    /// `node` says whether a node's address is believed.
    ///
    /// What one pass finds is handed to the next as references, so each table is asked once and bounds are checked
    /// once. What fails is not handed on: its direction stays denied.
    pub fn judge_many(
        &self,
        packets: &[FirstPacket],
        node: impl Fn(usize, &Identity, &Identity) -> NodeExemption,
    ) -> ArrayVec<JudgedPacket, BATCH> {
        let packets = packets.get(..BATCH).unwrap_or(packets);
        let (head, tables) = (&self.image.parts.head, &self.image.parts.tables);
        let mut homes = [[HomeBucket::NoHosts; 2]; BATCH];
        for (packet, homes) in packets.iter().zip(&mut homes) {
            *homes = [
                self.prefetch_home_bucket(packet.src),
                self.prefetch_home_bucket(packet.dst),
            ];
        }
        let mut ends = [[None; 2]; BATCH];
        for ((packet, [src, dst]), ends) in packets.iter().zip(&homes).zip(&mut ends) {
            *ends = [
                self.prefetch_identity(packet.src, *src),
                self.prefetch_identity(packet.dst, *dst),
            ];
        }
        let mut judged = ArrayVec::new();
        let mut asked = PendingCells {
            cells: [Cell::default(); CELLS],
            count: 0,
        };
        for ((packet, number), [src, dst]) in packets.iter().zip(0_u8..).zip(&ends) {
            let (src, dst) = (identity_of(*src), identity_of(*dst));
            let node = node(usize::from(number), src, dst);
            let judgement = match self.judge_exemption(src, dst, packet.src == packet.dst, packet.l4, node) {
                Some(judgement) => judgement,
                None => Judgement {
                    ingress: self.start_direction(
                        dst,
                        &mut asked,
                        number,
                        false,
                        dst.ingress,
                        src.peer_class,
                    ),
                    egress: self.start_direction(src, &mut asked, number, true, src.egress, dst.peer_class),
                },
            };
            judged.push(JudgedPacket {
                src: *src,
                dst: *dst,
                judgement,
            });
        }
        let cells = asked.cells.get(..asked.count).unwrap_or_default();
        let mut pages = [None; CELLS];
        for (cell, page) in cells.iter().zip(&mut pages) {
            if cell.class < head.classes && cell.row < head.rows {
                let (row, class) = (cell.row as usize, cell.class as usize);
                *page =
                    tables
                        .row_pages
                        .get_prefetched(page_slot(row, class / CLASSES_PER_PAGE, head.row_tiles));
            }
        }
        // Most cells decide themselves. What they do not decide is denied, until the port map of the cell has been read.
        let (mut by_port, mut ported) = ([(0_u8, 0_u32); CELLS], 0);
        for ((cell, page), number) in cells.iter().zip(&pages).zip(0..) {
            if let Some(page) = page
                && let Some(entry) = self.port_map_in(page, cell.class as usize)
            {
                self.set_verdict(&mut judged, cell, Some(whole_cell_decision(entry)));
                if let Some(place) = by_port.get_mut(ported) {
                    *place = (number, entry);
                }
                ported += usize::from(entry & SAME_FOR_ALL == 0);
            }
        }
        let by_port = by_port.get(..ported).unwrap_or_default();
        let mut maps = [None; CELLS];
        for ((_, entry), map) in by_port.iter().zip(&mut maps) {
            *map = tables.port_maps.get_prefetched(*entry as usize);
        }
        let has_intervals = |map: &&&PortMapRecord| map.starts[0] != map.starts[4];
        for map in maps.iter().take(ported).flatten().filter(has_intervals) {
            tables.intervals.get_prefetched(map.starts[0] as usize);
        }
        for ((number, _), map) in by_port.iter().zip(&maps) {
            if let Some(cell) = cells.get(usize::from(*number))
                && let Some(packet) = packets.get(usize::from(cell.packet))
            {
                let decision = map.and_then(|map| self.port_decision(map, packet.l4));
                self.set_verdict(&mut judged, cell, decision);
            }
        }
        judged
    }

    /// Starts a direction: adds its cell if a row decides, otherwise returns the verdict.
    #[inline]
    fn start_direction(
        &self,
        end: &Identity,
        asked: &mut PendingCells,
        packet: u8,
        egress: bool,
        row: u32,
        class: u32,
    ) -> DirectionVerdict {
        let decides = end.kind == IdentityKind::Pod && row != 0;
        if let Some(cell) = asked.cells.get_mut(asked.count) {
            *cell = Cell {
                row: row.wrapping_sub(1),
                class,
                packet,
                egress,
            };
        }
        asked.count += usize::from(decides);
        match decides {
            true => INVALID,
            false => self.judge_direction(end, 0, 0, L4::NoPort { protocol: 0 }),
        }
    }

    /// Sets the verdict of a cell's direction.
    #[inline]
    fn set_verdict(&self, judged: &mut [JudgedPacket], cell: &Cell, decision: Option<(Decision, u32)>) {
        if let Some(judged) = judged.get_mut(usize::from(cell.packet)) {
            let judgement = &mut judged.judgement;
            let verdict = match cell.egress {
                true => &mut judgement.egress,
                false => &mut judgement.ingress,
            };
            *verdict = decision.map_or(INVALID, |(decision, provenance)| {
                self.verdict_of(cell.row as usize, decision, provenance)
            });
        }
    }

    /// As [`Self::home_bucket`]; prefetches the bucket.
    #[inline(always)]
    fn prefetch_home_bucket(&self, addr: Addr) -> HomeBucket<'_> {
        let home = self.home_bucket(addr);
        match home {
            HomeBucket::V4(_, bucket) => prefetch(bucket),
            HomeBucket::V6(bucket) => prefetch(bucket),
            HomeBucket::NoHosts => {}
        }
        home
    }

    /// The record of an address's identity; asks for it.
    #[inline(always)]
    fn prefetch_identity(&self, addr: Addr, home: HomeBucket<'_>) -> Option<&IdentityRecord> {
        let index = self.lookup_branchless(addr, home);
        self.image.parts.tables.identities.get_prefetched(index as usize)
    }
}
