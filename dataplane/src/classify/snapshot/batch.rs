//! Many first packets at once: in passes, each of which asks for the cache lines that the next one reads, so that memory
//! is waited for once per pass and not once per packet.

use arrayvec::ArrayVec;

use super::{INVALID, Snapshot};
use crate::{
    addr::Addr,
    classify::{
        DirectionVerdict, Identity, IdentityKind, Judgement, L4, NodeExemption,
        layout::{CLASSES_PER_PAGE, NONE, PageRecord, hash_v4, hash_v6, page_slot},
    },
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

/// What a snapshot says about a [`FirstPacket`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Judged {
    /// Who the source is.
    pub src: Identity,
    /// Who the destination is.
    pub dst: Identity,
    /// The decision.
    pub judgement: Judgement,
}

/// What one direction of a packet is on its way through the passes.
#[derive(Clone, Copy)]
struct Way {
    /// Row, as an index; `usize::MAX` where no row decides.
    row: usize,
    /// Peer class, of those of a page.
    class: usize,
    /// First a place among the row pages, then one among the palettes, then a port map.
    at: usize,
    page: PageRecord,
}

impl Way {
    const BLANK: Self = Self {
        row: usize::MAX,
        class: 0,
        at: usize::MAX,
        page: PageRecord {
            pattern: 0,
            palette: 0,
        },
    };
}

impl Snapshot {
    /// As [`Self::identify`] and [`Self::judge`] for each packet, in order; of more than [`BATCH`] only the first.
    /// `node` says whether a node's address is believed.
    pub fn judge_many(
        &self,
        packets: &[FirstPacket],
        node: impl Fn(usize, &Identity, &Identity) -> NodeExemption,
    ) -> ArrayVec<Judged, BATCH> {
        let packets = packets.get(..BATCH).unwrap_or(packets);
        let tables = &self.image.parts.tables;
        for packet in packets {
            self.expect_host(packet.src);
            self.expect_host(packet.dst);
        }
        let mut found = [[NONE; 2]; BATCH];
        for (packet, found) in packets.iter().zip(&mut found) {
            *found = [self.lookup(packet.src), self.lookup(packet.dst)];
            tables.identities.expect(found[0] as usize);
            tables.identities.expect(found[1] as usize);
        }
        let mut ways = [[Way::BLANK; 2]; BATCH];
        let mut judged = ArrayVec::new();
        for ((found, ways), (number, packet)) in found.iter().zip(&mut ways).zip(packets.iter().enumerate()) {
            let [src, dst] = found.map(|index| self.identity(index));
            let judgement = match self.exempt(&src, &dst, packet.src == packet.dst, node(number, &src, &dst))
            {
                Some(judgement) => judgement,
                None => Judgement {
                    ingress: self.begin(&dst, dst.ingress, src.peer_class, &mut ways[0]),
                    egress: self.begin(&src, src.egress, dst.peer_class, &mut ways[1]),
                },
            };
            judged.push(Judged { src, dst, judgement });
        }
        let ways = ways
            .get_mut(..packets.len())
            .unwrap_or_default()
            .as_flattened_mut();
        for way in ways.iter_mut() {
            if let Some(page) = tables.row_pages.get(way.at) {
                way.page = *page;
                tables.patterns.expect(page.pattern as usize);
                tables.palettes.expect(page.palette as usize);
            }
        }
        for way in ways.iter_mut().filter(|way| way.row != usize::MAX) {
            let pattern = tables.patterns.get(way.page.pattern as usize);
            let part = pattern.map(|pattern| pattern.parts[way.class]);
            let map =
                part.and_then(|part| tables.palettes.get(way.page.palette as usize + usize::from(part)));
            way.at = map.map_or(usize::MAX, |map| *map as usize);
            tables.port_maps.expect(way.at);
        }
        for way in ways.iter_mut().filter(|way| way.row != usize::MAX) {
            if let Some(map) = tables.port_maps.get(way.at).filter(|map| map.uniform == 0) {
                tables.intervals.expect(map.starts[0] as usize);
            }
        }
        let (ways, _) = ways.as_chunks::<2>();
        for ((packet, judged), [ingress, egress]) in packets.iter().zip(&mut judged).zip(ways) {
            let judgement = &mut judged.judgement;
            self.end(ingress, packet.l4, &mut judgement.ingress);
            self.end(egress, packet.l4, &mut judgement.egress);
        }
        judged
    }

    /// Asks for the bucket where the search for a host begins.
    #[inline]
    fn expect_host(&self, addr: Addr) {
        let (tables, seed) = (&self.image.parts.tables, self.image.parts.head.seed);
        if addr.is_v4() {
            let [.., a, b, c, d] = addr.octets();
            let key = u32::from_be_bytes([a, b, c, d]);
            let hosts = &tables.hosts_v4;
            hosts.expect(hash_v4(key, seed, hosts.len()));
        } else {
            let hosts = &tables.hosts_v6;
            hosts.expect(hash_v6(&addr.octets(), seed, hosts.len()));
        }
    }

    /// What is known of a direction without its row; asks for the row's page where there is one.
    #[inline]
    fn begin(&self, end: &Identity, row: u32, peer_class: u32, way: &mut Way) -> DirectionVerdict {
        if end.kind != IdentityKind::Pod || row == 0 {
            return self.direction(end, 0, 0, L4::NoPort { protocol: 0 });
        }
        let (head, tables) = (&self.image.parts.head, &self.image.parts.tables);
        if peer_class < head.classes && row <= head.rows {
            let class = peer_class as usize;
            way.row = row as usize - 1;
            way.class = class % CLASSES_PER_PAGE;
            way.at = page_slot(way.row, class / CLASSES_PER_PAGE, head.row_tiles);
            tables.row_pages.expect(way.at);
        }
        INVALID
    }

    /// What a row's port map decides, where there is a row.
    #[inline]
    fn end(&self, way: &Way, l4: L4, verdict: &mut DirectionVerdict) {
        if way.row != usize::MAX
            && let Some((decision, provenance)) = self.port_decision(way.at, l4)
        {
            *verdict = self.decided(way.row, decision, provenance);
        }
    }
}
