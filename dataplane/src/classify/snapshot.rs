//! Reading from an image: who is an address, what may pass.
//!
//! [`Snapshot::open`] and [`Snapshot::apply`] check every index, offset and order of what is new once. Lookups after
//! that use `get` all the same and answer "denied" where it fails: no content of an image makes a read leave it, and
//! none makes a failed read an allowed packet.

mod address_ranges;
mod batch;
mod changes;

pub use address_ranges::RangeNodes;
pub use batch::{BATCH, FirstPacket, JudgedPacket};
pub use changes::SnapshotChanges;
use zerocopy::try_transmute_ref;

use super::{
    DenialAnswer, DirectionVerdict, Effect, Endpoint, Generation, Identity, IdentityKind, Image, ImageError,
    Judgement, L4, NodeExemption, PolicyName, PortSpans, Provenance, Row, SourceSpans,
    bucket::{self, Bucket},
    layout::{
        BucketV4, BucketV6, CLASSES_PER_PAGE, Decision, ENDPOINT_NONE, ENDPOINT_TEMPLATE, FLAG_ALLOW_UNKNOWN,
        IdentityRecord, IntervalRecord, NONE, PROVENANCE_RULE, PageRecord, PortMapRecord, SAME_FOR_ALL,
        TRIE_CHILD, TrieNode, name_home, name_tag, page_slot, whole_cell_decision,
    },
    table::Table,
};
use crate::addr::Addr;

/// Sizes of a snapshot's tables.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sizes {
    /// Bytes of the image.
    pub bytes: u64,
    /// Host addresses of pods and nodes.
    pub hosts: u32,
    /// Pods and templates known by name.
    pub endpoints: u32,
    /// Peer classes: columns.
    pub classes: u32,
    /// Rows.
    pub rows: u32,
    /// Distinct patterns of 64 classes.
    pub patterns: u32,
    /// Distinct port maps.
    pub port_maps: u32,
    /// Trie nodes of both families.
    pub trie_nodes: u32,
    /// The most cache lines that one address lookup reads (host bucket and trie, then the identity).
    pub worst_identify: u32,
    /// The most cache lines that one direction reads (page, pattern, palette, port map, intervals).
    pub worst_judge: u32,
}

/// An image that may be read: validated, or made by this process; immutable. A clone shares everything.
#[derive(Clone)]
pub struct Snapshot {
    pub(super) image: Image,
}

impl std::fmt::Debug for Snapshot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Snapshot")
            .field("generation", &self.generation())
            .field("sizes", &self.sizes())
            .finish_non_exhaustive()
    }
}

/// 64 cells of a row, where its tables have them: of one snapshot, two that are equal have equal cells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CellPage(PageRecord);

/// The bucket where the search for an address begins.
#[derive(Clone, Copy)]
enum HomeBucket<'a> {
    /// The family has no hosts.
    NoHosts,
    V4(u32, &'a BucketV4),
    V6(&'a BucketV6),
}

/// What a lookup answers that leaves its table: a pod without rows, to and from which everything is denied.
static NO_IDENTITY: Identity = Identity {
    kind: IdentityKind::Pod,
    endpoint: NONE,
    node: NONE,
    peer_class: NONE,
    ingress: NONE,
    egress: NONE,
    epoch: 0,
};

const INVALID: DirectionVerdict = DirectionVerdict {
    allow: false,
    effect: Effect::Invalid,
    provenance: NONE,
};

const UNKNOWN: DirectionVerdict = DirectionVerdict {
    allow: false,
    effect: Effect::Unknown,
    provenance: NONE,
};

const fn allowed(effect: Effect) -> DirectionVerdict {
    DirectionVerdict {
        allow: true,
        effect,
        provenance: NONE,
    }
}

impl Snapshot {
    /// Copies an image, checks all of it and answers the snapshot.
    ///
    /// `bytes` need no alignment. Errors name the first table and record that is wrong.
    pub fn open(bytes: &[u8]) -> Result<Self, ImageError> {
        let image = Image::read(bytes)?;
        let everything = image.all_records();
        Self { image }.validated(&everything)
    }

    /// The snapshot that a delta of [`Image::delta_since`] turns this one into; this one stays as it is. All that the
    /// delta does not change is shared. What it changes is checked as [`Self::open`] does.
    ///
    /// [`ImageError::Base`] where the delta is not to this snapshot: then only the whole image will do.
    pub fn apply(&self, delta: &[u8]) -> Result<Self, ImageError> {
        let (image, changed) = self.image.patched(delta)?;
        Self { image }.validated(&changed)
    }

    /// Reads an image that this process has made itself, without a copy or a check.
    pub fn from_image(image: &Image) -> Self {
        Self { image: image.clone() }
    }

    /// What it reads.
    pub fn image(&self) -> &Image {
        &self.image
    }

    /// Its generation.
    #[inline]
    pub fn generation(&self) -> Generation {
        self.image.generation()
    }

    /// Hash of its canonical content: equal for snapshots that mean the same, whatever their generation.
    pub fn hash(&self) -> [u8; 32] {
        self.image.hash()
    }

    /// Whether traffic of unknown endpoints is allowed.
    #[inline]
    pub fn allow_unknown(&self) -> bool {
        self.image.parts.head.flags & FLAG_ALLOW_UNKNOWN != 0
    }

    /// Sizes of its tables.
    pub fn sizes(&self) -> Sizes {
        let tables = &self.image.parts.tables;
        let reach_v4 = tables
            .hosts_v4
            .iter()
            .map(|bucket| bucket.reach)
            .max()
            .unwrap_or(0);
        let reach_v6 = tables
            .hosts_v6
            .iter()
            .map(|bucket| bucket.reach)
            .max()
            .unwrap_or(0);
        let depth_v4 = trie_depth(&tables.trie_v4);
        let depth_v6 = trie_depth(&tables.trie_v6);
        let longest = tables
            .port_maps
            .iter()
            .flat_map(|map| {
                map.starts
                    .windows(2)
                    .map(|pair| pair[1].saturating_sub(pair[0]))
                    .max()
            })
            .max()
            .unwrap_or(0);
        let search = if longest == 0 { 0 } else { longest.ilog2() + 1 };
        let nests = self.nests();
        Sizes {
            bytes: self.image.bytes(),
            hosts: tables
                .hosts_v4
                .iter()
                .map(|bucket| u32::from(bucket.used))
                .chain(tables.hosts_v6.iter().map(|bucket| u32::from(bucket.used)))
                .sum(),
            endpoints: self.endpoints().count() as u32,
            classes: self.image.parts.head.classes,
            rows: self.image.parts.head.rows,
            patterns: tables.patterns.len() as u32,
            port_maps: tables.port_maps.len() as u32,
            trie_nodes: (tables.trie_v4.len() + tables.trie_v6.len()) as u32,
            worst_identify: 1 + (u32::from(reach_v4) + depth_v4).max(u32::from(reach_v6) + depth_v6),
            // Page, pattern, palette; unless that decides, port map, and a binary search over 8-byte intervals; once more
            // where one nests.
            worst_judge: if tables.port_maps.len() > 0 { 4 } else { 3 }
                + search
                + if nests { 1 + search } else { 0 },
        }
    }

    /// Whether some cell tells source ports or types of ICMP apart. Looks at all intervals.
    pub fn nests(&self) -> bool {
        let tables = &self.image.parts.tables;
        let mut intervals = tables.intervals.iter();
        let mut maps = tables.port_maps.iter();
        intervals.any(|interval| interval.decision == Decision::NESTED)
            || maps.any(|map| map.decisions.contains(&Decision::NESTED))
    }

    /// Who an address is.
    #[inline]
    pub fn identify(&self, addr: Addr) -> Identity {
        self.identity(self.lookup(addr))
    }

    /// Index of an address's identity.
    #[inline]
    fn lookup(&self, addr: Addr) -> u32 {
        let (found, reach) = match self.home_bucket(addr) {
            HomeBucket::V4(key, home) => (home.find(key), home.reach),
            HomeBucket::V6(home) => (home.find(addr.octets()), home.reach),
            HomeBucket::NoHosts => (None, 0),
        };
        match found {
            Some(identity) => identity,
            None => self.lookup_slow_path(addr, reach),
        }
    }

    /// As [`Self::lookup`], where the answer of [`Self::home_bucket`] is at hand, for many addresses side by side.
    #[inline(always)]
    fn lookup_branchless(&self, addr: Addr, home: HomeBucket<'_>) -> u32 {
        let (found, reach) = match home {
            HomeBucket::V4(key, home) => (home.find_branchless(key), home.reach),
            HomeBucket::V6(home) => (home.find_branchless(addr.octets()), home.reach),
            HomeBucket::NoHosts => (None, 0),
        };
        match found {
            Some(identity) => identity,
            None => self.lookup_slow_path(addr, reach),
        }
    }

    /// As [`Self::lookup`], for an address that is not in its home bucket, whose reach is given.
    #[inline(never)]
    fn lookup_slow_path(&self, addr: Addr, reach: u16) -> u32 {
        let host = if reach > 1 { self.lookup_host(addr) } else { None };
        host.unwrap_or_else(|| self.lookup_range(addr))
    }

    /// Index of a host's identity; None for what the host tables do not hold.
    #[inline]
    fn lookup_host(&self, addr: Addr) -> Option<u32> {
        let (tables, seed) = (&self.image.parts.tables, self.image.parts.head.seed);
        let (_, identity) = match addr.to_v4() {
            Some(key) => bucket::find(&tables.hosts_v4, seed, key),
            None => bucket::find(&tables.hosts_v6, seed, addr.octets()),
        }?;
        Some(identity)
    }

    /// The bucket where the search for an address begins.
    #[inline]
    fn home_bucket(&self, addr: Addr) -> HomeBucket<'_> {
        let (tables, seed) = (&self.image.parts.tables, self.image.parts.head.seed);
        let home = match addr.to_v4() {
            Some(key) => bucket::home(&tables.hosts_v4, seed, key).map(|bucket| HomeBucket::V4(key, bucket)),
            None => bucket::home(&tables.hosts_v6, seed, addr.octets()).map(HomeBucket::V6),
        };
        home.unwrap_or(HomeBucket::NoHosts)
    }

    /// Index of the identity of the range that an address lies in.
    #[inline]
    pub(super) fn lookup_range(&self, addr: Addr) -> u32 {
        let tables = &self.image.parts.tables;
        match addr.to_v4() {
            Some(key) => walk_trie(&tables.trie_v4, &key.to_be_bytes()),
            None => walk_trie(&tables.trie_v6, &addr.octets()),
        }
    }

    /// Decides about a packet that begins a flow, in order: a pod to its own address; a pod and its node; else each
    /// end that is a pod by its rows, each unknown end as the settings say, other ends are open.
    ///
    /// `src` and `dst` come from [`Self::identify`] of this snapshot.
    #[inline]
    pub fn judge(
        &self,
        src: &Identity,
        dst: &Identity,
        src_addr: Addr,
        dst_addr: Addr,
        l4: L4,
        node: NodeExemption,
    ) -> Judgement {
        self.judge_ends(src, dst, src_addr == dst_addr, l4, node)
    }

    /// As [`Self::judge`], for ends that may have no address: `same_address` says whether they have the same one.
    #[inline]
    pub fn judge_ends(
        &self,
        src: &Identity,
        dst: &Identity,
        same_address: bool,
        l4: L4,
        node: NodeExemption,
    ) -> Judgement {
        if let Some(judgement) = self.judge_exemption(src, dst, same_address, l4, node) {
            return judgement;
        }
        Judgement {
            ingress: self.judge_direction(dst, dst.ingress, src.peer_class, l4),
            egress: self.judge_direction(src, src.egress, dst.peer_class, l4),
        }
    }

    /// What rows for others do not decide: a pod to itself, which passes, and a pod and its node. A node to its pod passes;
    /// a pod to its node does where no policy but NetworkPolicies says otherwise (TIERS 85).
    #[inline]
    fn judge_exemption(
        &self,
        src: &Identity,
        dst: &Identity,
        same_address: bool,
        l4: L4,
        node: NodeExemption,
    ) -> Option<Judgement> {
        use IdentityKind::{Node, Pod};
        let both = |verdict| Judgement {
            ingress: verdict,
            egress: verdict,
        };
        if same_address
            && src.kind == Pod
            && dst.kind == Pod
            && src.endpoint == dst.endpoint
            && src.endpoint != NONE
        {
            return Some(both(allowed(Effect::SelfTraffic)));
        }
        let exempt = match node {
            NodeExemption::Untrusted => false,
            NodeExemption::Trusted => {
                src.node == dst.node
                    && src.node != NONE
                    && matches!((src.kind, dst.kind), (Pod, Node) | (Node, Pod))
            }
            NodeExemption::ThisNode => (src.kind == Pod) != (dst.kind == Pod),
        };
        if !exempt {
            return None;
        }
        Some(Judgement {
            ingress: allowed(Effect::Node),
            egress: match src.kind {
                Pod => self.to_own_node(src, dst.peer_class, l4),
                _ => allowed(Effect::Node),
            },
        })
    }

    /// What may go from a pod to the node that hosts it.
    fn to_own_node(&self, pod: &Identity, peer_class: u32, l4: L4) -> DirectionVerdict {
        let decided = self.row(self.own_node_row(pod.egress), peer_class, l4);
        match decided.effect {
            Effect::Open | Effect::Profile => allowed(Effect::Node),
            _ => decided,
        }
    }

    /// The row that decides about packets to the node that hosts a pod, of the pod's egress row; 0 where all of them pass.
    pub fn own_node_row(&self, egress: u32) -> u32 {
        let record = (egress as usize)
            .checked_sub(1)
            .and_then(|row| self.image.parts.tables.rows.get(row));
        record.map_or(0, |record| record.own_node)
    }

    /// Names behind a provenance index; None for [`NONE`] and for numbers that are not of this snapshot. Cold.
    pub fn provenance(&self, index: u32) -> Option<Provenance<'_>> {
        let tables = &self.image.parts.tables;
        let record = tables.provenance.get(index as usize)?;
        if record.kind == PROVENANCE_RULE {
            return Some(Provenance::Rule {
                policy: self.policy(record.first)?,
                rule: record.second,
            });
        }
        let end = record.first.checked_add(record.second)?;
        let names: Option<Vec<_>> = (record.first..end)
            .map(|at| self.policy(*tables.policy_lists.get(at as usize)?))
            .collect();
        Some(Provenance::Isolating(names?))
    }

    /// What the sender of a packet gets that is denied with this provenance, or that would be: `otherwise` where a policy
    /// does not say. Where several policies isolate a pod, the least telling of theirs.
    pub fn denial_answer(&self, provenance: u32, otherwise: DenialAnswer) -> DenialAnswer {
        let tables = &self.image.parts.tables;
        let answer = |policy: u32| {
            let record = tables.policies.get(policy as usize)?;
            Some(DenialAnswer::from_code(record.answer).unwrap_or(otherwise))
        };
        let Some(record) = tables.provenance.get(provenance as usize) else {
            return DenialAnswer::Drop;
        };
        if record.kind == PROVENANCE_RULE {
            return answer(record.first).unwrap_or(DenialAnswer::Drop);
        }
        let policies = (record.first..record.first.saturating_add(record.second))
            .map(|at| answer(*tables.policy_lists.get(at as usize)?));
        policies
            .map(|answer| answer.unwrap_or(DenialAnswer::Drop))
            .min()
            .unwrap_or(DenialAnswer::Drop)
    }

    /// An endpoint by number. Cold.
    pub fn endpoint(&self, number: u32) -> Option<Endpoint<'_>> {
        let record = self.image.parts.tables.endpoints.get(number as usize)?;
        if record.state == ENDPOINT_NONE {
            return None;
        }
        Some(Endpoint {
            number,
            namespace: self.string(record.namespace)?,
            name: self.string(record.name)?,
            template: record.state == ENDPOINT_TEMPLATE,
            identity: self.identity(record.identity),
        })
    }

    /// All endpoints, by number. Cold.
    pub fn endpoints(&self) -> impl Iterator<Item = Endpoint<'_>> + '_ {
        let numbers = 0..self.image.parts.tables.endpoints.len() as u32;
        numbers.filter_map(|number| self.endpoint(number))
    }

    /// An endpoint by name. Cold.
    pub fn find_endpoint(&self, namespace: &str, name: &str) -> Option<Endpoint<'_>> {
        let names = &self.image.parts.tables.names;
        let tag = name_tag(namespace, name, self.image.parts.head.seed);
        let home = name_home(tag, names.len());
        for step in 0..names.len() {
            let slot = names.get((home + step) % names.len())?;
            let number = slot.endpoint.checked_sub(1)?;
            if slot.tag == tag
                && let Some(endpoint) = self.endpoint(number)
                && (endpoint.namespace, endpoint.name) == (namespace, name)
            {
                return Some(endpoint);
            }
        }
        None
    }

    /// The rows that decide about an end: for ingress, and for egress. Cold, as all that follows: for those who ask
    /// about every packet at once.
    pub fn rows_of(&self, end: &Identity) -> (Row, Row) {
        let row = |number| match number {
            0 => Row::Open,
            number if number > self.image.parts.head.rows => Row::Invalid,
            number => Row::Cells(number),
        };
        match end.kind {
            IdentityKind::Pod => (row(end.ingress), row(end.egress)),
            IdentityKind::Unknown if !self.allow_unknown() => (Row::Unknown, Row::Unknown),
            _ => (Row::Open, Row::Open),
        }
    }

    /// The port map of a row's cell, by its number, or what stands in its place where the decision is the same for all ports; None for a row without cells and for numbers that are not of this
    /// snapshot.
    pub fn port_map_of(&self, row: Row, peer_class: u32) -> Option<u32> {
        let Row::Cells(number) = row else { return None };
        self.port_map((number as usize).checked_sub(1)?, peer_class)
    }

    /// The cells of a row for the 64 classes among which one is; None where [`Self::port_map_of`] answers that of the class.
    pub fn page_of(&self, row: Row, peer_class: u32) -> Option<CellPage> {
        let Row::Cells(number) = row else { return None };
        self.page((number as usize).checked_sub(1)?, peer_class)
            .copied()
            .map(CellPage)
    }

    /// What [`Self::port_map_of`] answers of a class on a page of this snapshot.
    pub fn port_map_on(&self, page: CellPage, peer_class: u32) -> Option<u32> {
        self.port_map_in(&page.0, peer_class as usize)
    }

    /// What [`Self::port_map_of`] answers of each class on a page of this snapshot; None where that differs.
    pub fn only_port_map_on(&self, page: CellPage) -> Option<u32> {
        let pattern = self.image.parts.tables.patterns.get(page.0.pattern as usize)?;
        let [first, ..] = pattern.parts;
        if pattern.parts.iter().any(|part| *part != first) {
            return None;
        }
        self.port_map_in(&page.0, 0)
    }

    /// What a row decides by a port map, for each of TCP, UDP and SCTP by first port in order, and where no port is
    /// known; None for numbers that are not of this snapshot.
    pub fn port_spans(&self, row: Row, port_map: Option<u32>) -> Option<PortSpans> {
        let same = |verdict| PortSpans {
            protocols: [6, 17, 132].map(|protocol| (protocol, vec![(0, verdict)])),
            others: Vec::new(),
            by_type: Vec::new(),
            by_source: Vec::new(),
            portless: verdict,
        };
        let number = match row {
            Row::Open => return Some(same(allowed(Effect::Open))),
            Row::Unknown => return Some(same(UNKNOWN)),
            Row::Invalid => return Some(same(INVALID)),
            Row::Cells(number) => (number as usize).checked_sub(1)?,
        };
        let tables = &self.image.parts.tables;
        let port_map = port_map?;
        if port_map & SAME_FOR_ALL != 0 {
            let (decision, provenance) = whole_cell_decision(port_map);
            return Some(same(self.verdict_of(number, decision, provenance)));
        }
        let map = tables.port_maps.get(port_map as usize)?;
        let verdict = |(decision, provenance)| self.verdict_of(number, decision, provenance);
        let portless = verdict(map.portless());
        let list = |from: u32, to: u32| {
            let intervals = (from..to).map(|at| tables.intervals.get(at as usize).copied());
            intervals.collect::<Option<Vec<IntervalRecord>>>()
        };
        let first_list = |map: &PortMapRecord| match map.starts {
            [from, to, ..] if from == to => Some(intervals_of_ranges(map)),
            [from, to, ..] => list(from, to),
        };
        // Of a nested port map: where what it asks for is not known, and from each value on.
        let nested = |map: u32| {
            let map = tables.port_maps.get(map as usize)?;
            let decided = |it: IntervalRecord| (it.lo, verdict((it.decision, it.provenance)));
            let spans: Vec<_> = first_list(map)?.into_iter().map(decided).collect();
            Some((verdict(map.portless()), spans))
        };
        let [_, udp, sctp, others, end] = map.starts;
        let mut by_source = Vec::new();
        let mut by_port = |protocol: u8, intervals: Vec<IntervalRecord>| {
            let mut spans = Vec::new();
            for interval in intervals {
                let decided = match interval.decision {
                    Decision::NESTED => {
                        let (unknown, known) = nested(interval.provenance)?;
                        by_source.push(SourceSpans {
                            protocol,
                            first: interval.lo,
                            spans: known,
                        });
                        unknown
                    }
                    decision => verdict((decision, interval.provenance)),
                };
                spans.push((interval.lo, decided));
            }
            if spans.is_empty() {
                spans.push((0, portless));
            }
            Some((protocol, spans))
        };
        let protocols = [
            by_port(6, first_list(map)?)?,
            by_port(17, list(udp, sctp)?)?,
            by_port(132, list(sctp, others)?)?,
        ];
        let (mut by_number, mut by_type) = (Vec::new(), Vec::new());
        for interval in list(others, end)? {
            let protocol = u8::try_from(interval.lo).ok()?;
            let decided = match interval.decision {
                Decision::NESTED => {
                    let (unknown, known) = nested(interval.provenance)?;
                    by_type.push((protocol, known));
                    unknown
                }
                decision => verdict((decision, interval.provenance)),
            };
            by_number.push((protocol, decided));
        }
        Some(PortSpans {
            protocols,
            others: by_number,
            by_type,
            by_source,
            portless,
        })
    }

    /// The name of a node by number. Cold.
    pub fn node_name(&self, number: u32) -> Option<&str> {
        self.string(*self.image.parts.tables.nodes.get(number as usize)?)
    }

    #[inline]
    fn judge_direction(&self, end: &Identity, row: u32, peer_class: u32, l4: L4) -> DirectionVerdict {
        match end.kind {
            IdentityKind::Pod => self.row(row, peer_class, l4),
            IdentityKind::Unknown if !self.allow_unknown() => UNKNOWN,
            _ => allowed(Effect::Open),
        }
    }

    #[inline]
    fn row(&self, row: u32, peer_class: u32, l4: L4) -> DirectionVerdict {
        if row == 0 {
            return allowed(Effect::Open);
        }
        let row = row as usize - 1;
        let Some((decision, provenance)) = self.cell(row, peer_class, l4) else {
            return INVALID;
        };
        self.verdict_of(row, decision, provenance)
    }

    /// What a decision of the row with this index means.
    #[inline]
    fn verdict_of(&self, row: usize, decision: Decision, provenance: u32) -> DirectionVerdict {
        let denied = |effect, provenance| DirectionVerdict {
            allow: false,
            effect,
            provenance,
        };
        match (decision, provenance) {
            (Decision::ALLOW, NONE) => allowed(Effect::Profile),
            (Decision::ALLOW, rule) => DirectionVerdict {
                allow: true,
                effect: Effect::Allow,
                provenance: rule,
            },
            (Decision::DENY_BY_DEFAULT, list) => denied(Effect::Isolated, list),
            (_, NONE) => {
                let record = self.image.parts.tables.rows.get(row);
                denied(Effect::Isolated, record.map_or(NONE, |record| record.isolating))
            }
            (_, rule) => denied(Effect::Deny, rule),
        }
    }

    /// The palette entry of one cell; None where the numbers leave the tables.
    #[inline]
    fn port_map(&self, row: usize, peer_class: u32) -> Option<u32> {
        self.port_map_in(self.page(row, peer_class)?, peer_class as usize)
    }

    /// The page of one cell; None where the numbers leave the tables.
    #[inline]
    fn page(&self, row: usize, peer_class: u32) -> Option<&PageRecord> {
        let (head, tables) = (&self.image.parts.head, &self.image.parts.tables);
        if peer_class >= head.classes || row >= head.rows as usize {
            return None;
        }
        let slot = page_slot(row, peer_class as usize / CLASSES_PER_PAGE, head.row_tiles);
        tables.row_pages.get(slot)
    }

    /// The palette entry of one of a page's cells.
    #[inline]
    fn port_map_in(&self, page: &PageRecord, class: usize) -> Option<u32> {
        let tables = &self.image.parts.tables;
        let part = tables.patterns.get(page.pattern as usize)?.parts[class % CLASSES_PER_PAGE];
        tables
            .palettes
            .get(page.palette as usize + usize::from(part))
            .copied()
    }

    /// The decision of one cell; None where the numbers leave the tables.
    #[inline]
    fn cell(&self, row: usize, peer_class: u32, l4: L4) -> Option<(Decision, u32)> {
        let entry = self.port_map(row, peer_class)?;
        if entry & SAME_FOR_ALL != 0 {
            return Some(whole_cell_decision(entry));
        }
        self.port_decision(self.image.parts.tables.port_maps.get(entry as usize)?, l4)
    }

    /// The decision of a port map; None where the numbers leave the tables.
    #[inline]
    fn port_decision(&self, map: &PortMapRecord, l4: L4) -> Option<(Decision, u32)> {
        let [tcp, udp, sctp, others, end] = map.starts;
        let (from, to, port) = match l4 {
            L4::Port {
                protocol: 6, port, ..
            } if tcp == udp => {
                let (decision, provenance) = map.inline_decision(port);
                if decision == Decision::NESTED {
                    return self.nested_decision(provenance, l4);
                }
                return Some((decision, provenance));
            }
            L4::Port {
                protocol: 6, port, ..
            } => (tcp, udp, port),
            L4::Port {
                protocol: 17, port, ..
            } => (udp, sctp, port),
            L4::Port {
                protocol: 132, port, ..
            } => (sctp, others, port),
            // By number, in place of a port.
            L4::Port { protocol, .. } | L4::NoPort { protocol } => (others, end, u16::from(protocol)),
        };
        if from == to {
            return Some(map.portless());
        }
        let interval = self.interval(from, to, port)?;
        if !interval.decision.allows() && interval.decision == Decision::NESTED {
            return self.nested_decision(interval.provenance, l4);
        }
        Some((interval.decision, interval.provenance))
    }

    /// The decision of a nested port map; None where the numbers leave the tables.
    #[cold]
    fn nested_decision(&self, map: u32, l4: L4) -> Option<(Decision, u32)> {
        let map = self.image.parts.tables.port_maps.get(map as usize)?;
        let [from, to, ..] = map.starts;
        let key = match l4 {
            L4::Port {
                protocol: 6 | 17 | 132,
                source,
                ..
            } => source,
            L4::Port { port, .. } => port,
            L4::NoPort { .. } => return Some(map.portless()),
        };
        if from == to {
            return Some(map.inline_decision(key));
        }
        let interval = self.interval(from, to, key)?;
        Some((interval.decision, interval.provenance))
    }

    /// The last interval of `from..to` that does not begin above a port.
    #[inline]
    fn interval(&self, from: u32, to: u32, port: u16) -> Option<&IntervalRecord> {
        match self
            .image
            .parts
            .tables
            .intervals
            .slice(from as usize, to as usize)
        {
            Some(intervals) => {
                let above = intervals.partition_point(|interval| interval.lo <= port);
                intervals.get(above.checked_sub(1)?)
            }
            None => self.interval_across_chunks(from, to, port),
        }
    }

    /// As [`Self::interval`], where they do not lie in one chunk.
    #[cold]
    fn interval_across_chunks(&self, from: u32, to: u32, port: u16) -> Option<&IntervalRecord> {
        let intervals = &self.image.parts.tables.intervals;
        let (mut low, mut high) = (from as usize, to as usize);
        while low < high {
            let middle = low + (high - low) / 2;
            if intervals.get(middle)?.lo <= port {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        intervals.get(low.checked_sub(1)?).filter(|_| low > from as usize)
    }

    #[inline]
    fn identity(&self, index: u32) -> Identity {
        *identity_of(self.image.parts.tables.identities.get(index as usize))
    }

    fn policy(&self, index: u32) -> Option<PolicyName<'_>> {
        let record = self.image.parts.tables.policies.get(index as usize)?;
        Some(PolicyName {
            tier: self.string(record.tier)?,
            kind: self.string(record.kind)?,
            namespace: self.string(record.namespace)?,
            name: self.string(record.name)?,
        })
    }

    pub(super) fn string(&self, index: u32) -> Option<&str> {
        let tables = &self.image.parts.tables;
        let record = tables.strings.get(index as usize)?;
        let end = record.offset.checked_add(record.length)?;
        let bytes = match record.length {
            0 => &[],
            _ => tables.text.slice(record.offset as usize, end as usize)?,
        };
        std::str::from_utf8(bytes).ok()
    }
}

/// The ranges that a port map holds itself, as intervals; none where it has no range.
fn intervals_of_ranges(map: &PortMapRecord) -> Vec<IntervalRecord> {
    let mut intervals: Vec<IntervalRecord> = Vec::new();
    let mut add = |lo, (decision, provenance)| {
        intervals.push(IntervalRecord {
            lo,
            decision,
            reserved: 0,
            provenance,
        });
    };
    let mut next = Some(0);
    for (lo, hi, decision, provenance) in map.inline_ranges() {
        if let Some(next) = next
            && next < lo
        {
            add(next, map.portless());
        }
        add(lo, (decision, provenance));
        next = hi.checked_add(1);
    }
    if let Some(next) = next
        && next > 0
    {
        add(next, map.portless());
    }
    intervals
}

/// The identity that a record holds.
#[inline]
pub(super) fn identity_of(record: Option<&IdentityRecord>) -> &Identity {
    record.and_then(as_identity).unwrap_or(&NO_IDENTITY)
}

/// A record as what it means; None where it is of an unknown kind.
#[inline]
pub(super) fn as_identity(record: &IdentityRecord) -> Option<&Identity> {
    try_transmute_ref!(record).ok()
}

/// Follows an address, byte by byte; answers an index that does not exist where the trie is broken.
#[inline]
fn walk_trie(trie: &Table<TrieNode>, bytes: &[u8]) -> u32 {
    let mut at = 0;
    // No longer than an address, whatever the trie says.
    for byte in bytes {
        let Some(node) = trie.get(at) else {
            return NONE;
        };
        let entry = node.entries[usize::from(*byte)];
        if entry & TRIE_CHILD == 0 {
            return entry;
        }
        at = (entry & !TRIE_CHILD) as usize;
    }
    NONE
}

/// Levels of a validated trie.
fn trie_depth(trie: &Table<TrieNode>) -> u32 {
    let mut depths = vec![1_u32; trie.len()];
    for (index, node) in trie.iter().enumerate() {
        for entry in node.entries.iter().filter(|entry| **entry & TRIE_CHILD != 0) {
            let below = depths[index] + 1;
            if let Some(depth) = depths.get_mut((entry & !TRIE_CHILD) as usize) {
                *depth = below.max(*depth);
            }
        }
    }
    depths.into_iter().max().unwrap_or(0)
}
