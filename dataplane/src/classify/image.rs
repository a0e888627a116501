//! Opening an image and reading from it.
//!
//! [`Snapshot::open`] copies each table into memory of its own and checks every index, offset and order once. Lookups
//! after that use `get` all the same and answer "denied" where it fails: no content of an image makes a read leave it,
//! and none makes a failed read an allowed packet.

mod extent;

use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::{
    DirectionVerdict, Effect, Endpoint, Generation, Identity, IdentityKind, Judgement, L4, NodeExemption,
    PolicyName, PortSpans, Provenance, Row,
    layout::{
        BucketV4, BucketV6, CLASSES_PER_PAGE, Decision, EndpointRecord, FLAG_ALLOW_UNKNOWN, GroupRecord,
        Header, IdentityRecord, IntervalRecord, LAYOUT_VERSION, MAGIC, MAX_REACH, NONE, PROVENANCE_ISOLATING,
        PROVENANCE_RULE, PageRecord, Pattern, PolicyRecord, PortMapRecord, ProvenanceRecord, SECTION_ALIGN,
        SECTIONS, Section, SectionEntry, StringRecord, TRIE_CHILD, TrieNode, hash_v4, hash_v6,
    },
};
use crate::addr::Addr;

/// Why bytes are not a snapshot.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ImageError {
    /// Too short, or a length that contradicts the header.
    #[error("the snapshot image is cut short or has trailing bytes: {actual} bytes, header says {expected}")]
    Length {
        /// Bytes given.
        actual: u64,
        /// Bytes that the header names, or the smallest image.
        expected: u64,
    },
    /// Other magic.
    #[error("this is not a snapshot image (wrong magic)")]
    Magic,
    /// Written by another version of ringwall.
    #[error(
        "snapshot image has layout {found}, this build reads {LAYOUT_VERSION}: run the same version of ringwall on both sides"
    )]
    Version {
        /// The image's layout.
        found: u32,
    },
    /// Damaged on the way.
    #[error("snapshot image is damaged (checksum differs): have it published again")]
    Checksum,
    /// A table that contradicts itself or another one.
    #[error("snapshot image is invalid: {table} {index}: {problem}")]
    Table {
        /// Which table.
        table: &'static str,
        /// Index of the record in it.
        index: usize,
        /// What is wrong with it.
        problem: &'static str,
    },
}

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
    /// The most cache lines that one direction reads (group, page, pattern, palette, port map, intervals).
    pub worst_judge: u32,
}

/// An opened snapshot: owned, validated, immutable.
pub struct Snapshot {
    generation: Generation,
    content: [u8; 32],
    allow_unknown: bool,
    seed: u64,
    classes: u32,
    pages_per_row: u32,
    bytes: u64,
    identities: Box<[IdentityRecord]>,
    hosts_v4: Box<[BucketV4]>,
    hosts_v6: Box<[BucketV6]>,
    trie_v4: Box<[TrieNode]>,
    trie_v6: Box<[TrieNode]>,
    groups: Box<[GroupRecord]>,
    row_pages: Box<[PageRecord]>,
    patterns: Box<[Pattern]>,
    palettes: Box<[u32]>,
    port_maps: Box<[PortMapRecord]>,
    intervals: Box<[IntervalRecord]>,
    isolating: Box<[u32]>,
    provenance: Box<[ProvenanceRecord]>,
    policies: Box<[PolicyRecord]>,
    policy_lists: Box<[u32]>,
    endpoints: Box<[EndpointRecord]>,
    nodes: Box<[u32]>,
    strings: Box<[StringRecord]>,
    text: Box<str>,
}

impl std::fmt::Debug for Snapshot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Snapshot")
            .field("generation", &self.generation)
            .field("sizes", &self.sizes())
            .finish_non_exhaustive()
    }
}

/// What a lookup answers that leaves its table: a pod without rows, to and from which everything is denied.
const NOBODY: Identity = Identity {
    kind: IdentityKind::Pod,
    endpoint: NONE,
    node: NONE,
    peer_class: NONE,
    group: NONE,
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
        let sections = Sections::read(bytes)?;
        let header = sections.header;
        let text = String::from_utf8(sections.table::<u8>(Section::Text)?.into_vec())
            .map_err(|_| wrong("text", 0, "is not UTF-8"))?;
        let snapshot = Self {
            generation: Generation(header.generation),
            content: header.content,
            allow_unknown: header.flags & FLAG_ALLOW_UNKNOWN != 0,
            seed: header.seed,
            classes: header.classes,
            pages_per_row: header.pages_per_row,
            bytes: header.length,
            identities: sections.table(Section::Identities)?,
            hosts_v4: sections.table(Section::HostsV4)?,
            hosts_v6: sections.table(Section::HostsV6)?,
            trie_v4: sections.table(Section::TrieV4)?,
            trie_v6: sections.table(Section::TrieV6)?,
            groups: sections.table(Section::Groups)?,
            row_pages: sections.table(Section::RowPages)?,
            patterns: sections.table(Section::Patterns)?,
            palettes: sections.table(Section::Palettes)?,
            port_maps: sections.table(Section::PortMaps)?,
            intervals: sections.table(Section::Intervals)?,
            isolating: sections.table(Section::Isolating)?,
            provenance: sections.table(Section::Provenance)?,
            policies: sections.table(Section::Policies)?,
            policy_lists: sections.table(Section::PolicyLists)?,
            endpoints: sections.table(Section::Endpoints)?,
            nodes: sections.table(Section::Nodes)?,
            strings: sections.table(Section::Strings)?,
            text: text.into_boxed_str(),
        };
        snapshot.validate(&header)?;
        Ok(snapshot)
    }

    /// Its generation.
    #[inline]
    pub fn generation(&self) -> Generation {
        self.generation
    }

    /// Hash of its canonical content: equal for snapshots that mean the same, whatever their generation.
    pub fn hash(&self) -> [u8; 32] {
        self.content
    }

    /// Whether traffic of unknown endpoints is allowed.
    #[inline]
    pub fn allow_unknown(&self) -> bool {
        self.allow_unknown
    }

    /// Sizes of its tables.
    pub fn sizes(&self) -> Sizes {
        let reach_v4 = self.hosts_v4.iter().map(|bucket| bucket.reach).max().unwrap_or(0);
        let reach_v6 = self.hosts_v6.iter().map(|bucket| bucket.reach).max().unwrap_or(0);
        let depth_v4 = depth(&self.trie_v4);
        let depth_v6 = depth(&self.trie_v6);
        let longest = self
            .port_maps
            .iter()
            .filter(|map| map.uniform == 0)
            .flat_map(|map| map.starts.windows(2).map(|pair| pair[1] - pair[0]).max())
            .max()
            .unwrap_or(0);
        Sizes {
            bytes: self.bytes,
            hosts: self
                .hosts_v4
                .iter()
                .map(|bucket| u32::from(bucket.used))
                .chain(self.hosts_v6.iter().map(|bucket| u32::from(bucket.used)))
                .sum(),
            endpoints: self.endpoints.len() as u32,
            classes: self.classes,
            rows: self.isolating.len() as u32,
            patterns: self.patterns.len() as u32,
            port_maps: self.port_maps.len() as u32,
            trie_nodes: (self.trie_v4.len() + self.trie_v6.len()) as u32,
            worst_identify: 1 + (u32::from(reach_v4) + depth_v4).max(u32::from(reach_v6) + depth_v6),
            // Group, page, pattern, palette, port map; then a binary search over 8-byte intervals.
            worst_judge: 5 + if longest == 0 { 0 } else { longest.ilog2() + 1 },
        }
    }

    /// Who an address is.
    #[inline]
    pub fn identify(&self, addr: Addr) -> Identity {
        let index = if addr.is_v4() {
            let [.., a, b, c, d] = addr.octets();
            let bytes = [a, b, c, d];
            match self.host_v4(u32::from_be_bytes(bytes)) {
                Some((_, index)) => index,
                None => walk(&self.trie_v4, &bytes),
            }
        } else {
            let bytes = addr.octets();
            match self.host_v6(&bytes) {
                Some((_, index)) => index,
                None => walk(&self.trie_v6, &bytes),
            }
        };
        self.identity(index)
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
            return both(allowed(Effect::SelfTraffic));
        }
        if node == NodeExemption::Trusted
            && src.node == dst.node
            && src.node != NONE
            && matches!((src.kind, dst.kind), (Pod, Node) | (Node, Pod))
        {
            return both(allowed(Effect::Node));
        }
        Judgement {
            ingress: self.direction(dst, |group| group.ingress, src.peer_class, l4),
            egress: self.direction(src, |group| group.egress, dst.peer_class, l4),
        }
    }

    /// Names behind a provenance index; None for [`NONE`] and for numbers that are not of this snapshot. Cold.
    pub fn provenance(&self, index: u32) -> Option<Provenance<'_>> {
        let record = self.provenance.get(index as usize)?;
        if record.kind == PROVENANCE_RULE {
            return Some(Provenance::Rule {
                policy: self.policy(record.first)?,
                rule: record.second,
            });
        }
        let first = record.first as usize;
        let list = self
            .policy_lists
            .get(first..first.checked_add(record.second as usize)?)?;
        let names: Option<Vec<_>> = list.iter().map(|policy| self.policy(*policy)).collect();
        Some(Provenance::Isolating(names?))
    }

    /// An endpoint by number. Cold.
    pub fn endpoint(&self, number: u32) -> Option<Endpoint<'_>> {
        let record = self.endpoints.get(number as usize)?;
        Some(Endpoint {
            number,
            namespace: self.string(record.namespace)?,
            name: self.string(record.name)?,
            template: record.template != 0,
            identity: self.identity(record.identity),
        })
    }

    /// An endpoint by name. Cold: a binary search over strings.
    pub fn find_endpoint(&self, namespace: &str, name: &str) -> Option<Endpoint<'_>> {
        let index = self
            .endpoints
            .binary_search_by(|record| {
                let key = (self.string(record.namespace), self.string(record.name));
                key.cmp(&(Some(namespace), Some(name)))
            })
            .ok()?;
        self.endpoint(index as u32)
    }

    /// The rows that decide about an end: for ingress, and for egress. Cold, as all that follows: for those who ask
    /// about every packet at once.
    pub fn rows_of(&self, end: &Identity) -> (Row, Row) {
        let row = |number| {
            if number == 0 {
                Row::Open
            } else {
                Row::Cells(number)
            }
        };
        match end.kind {
            IdentityKind::Pod => match self.groups.get(end.group as usize) {
                Some(group) => (row(group.ingress), row(group.egress)),
                None => (Row::Invalid, Row::Invalid),
            },
            IdentityKind::Unknown if !self.allow_unknown => (Row::Unknown, Row::Unknown),
            _ => (Row::Open, Row::Open),
        }
    }

    /// The port map of a row's cell, by its number; None for a row without cells and for numbers that are not of this
    /// snapshot.
    pub fn port_map_of(&self, row: Row, peer_class: u32) -> Option<u32> {
        let Row::Cells(number) = row else { return None };
        self.port_map(number as usize - 1, peer_class)
    }

    /// What a row decides by a port map, for each of TCP, UDP and SCTP by first port in order, and where no port is
    /// known; None for numbers that are not of this snapshot.
    pub fn port_spans(&self, row: Row, port_map: Option<u32>) -> Option<PortSpans> {
        let same = |verdict| PortSpans {
            protocols: [6, 17, 132].map(|protocol| (protocol, vec![(0, verdict)])),
            portless: verdict,
        };
        let number = match row {
            Row::Open => return Some(same(allowed(Effect::Open))),
            Row::Unknown => return Some(same(UNKNOWN)),
            Row::Invalid => return Some(same(INVALID)),
            Row::Cells(number) => (number as usize).checked_sub(1)?,
        };
        let map = self.port_maps.get(port_map? as usize)?;
        let portless = self.decided(number, map.portless, map.portless_provenance);
        if map.uniform != 0 {
            return Some(same(portless));
        }
        let spans = |from: u32, to: u32| {
            let intervals = self.intervals.get(from as usize..to as usize)?;
            let spans = intervals.iter().map(|interval| {
                (
                    interval.lo,
                    self.decided(number, interval.decision, interval.provenance),
                )
            });
            Some(spans.collect())
        };
        let [tcp, udp, sctp, end] = map.starts;
        Some(PortSpans {
            protocols: [
                (6, spans(tcp, udp)?),
                (17, spans(udp, sctp)?),
                (132, spans(sctp, end)?),
            ],
            portless,
        })
    }

    /// The name of a node by number. Cold.
    pub fn node_name(&self, number: u32) -> Option<&str> {
        self.string(*self.nodes.get(number as usize)?)
    }

    #[inline]
    fn direction(
        &self,
        end: &Identity,
        row: impl Fn(&GroupRecord) -> u32,
        peer_class: u32,
        l4: L4,
    ) -> DirectionVerdict {
        match end.kind {
            IdentityKind::Pod => match self.groups.get(end.group as usize) {
                Some(group) => self.row(row(group), peer_class, l4),
                None => INVALID,
            },
            IdentityKind::Unknown if !self.allow_unknown => UNKNOWN,
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
        self.decided(row, decision, provenance)
    }

    /// What a decision of the row with this index means.
    #[inline]
    fn decided(&self, row: usize, decision: Decision, provenance: u32) -> DirectionVerdict {
        match (decision.allows(), provenance) {
            (true, NONE) => allowed(Effect::Open),
            (true, rule) => DirectionVerdict {
                allow: true,
                effect: Effect::Allow,
                provenance: rule,
            },
            (false, NONE) => DirectionVerdict {
                allow: false,
                effect: Effect::Isolated,
                provenance: self.isolating.get(row).copied().unwrap_or(NONE),
            },
            (false, rule) => DirectionVerdict {
                allow: false,
                effect: Effect::Deny,
                provenance: rule,
            },
        }
    }

    /// The port map of one cell; None where the numbers leave the tables.
    #[inline]
    fn port_map(&self, row: usize, peer_class: u32) -> Option<u32> {
        if peer_class >= self.classes {
            return None;
        }
        let class = peer_class as usize;
        let slot = row * self.pages_per_row as usize + class / CLASSES_PER_PAGE;
        let page = self.row_pages.get(slot)?;
        let part = self.patterns.get(page.pattern as usize)?.parts[class % CLASSES_PER_PAGE];
        self.palettes
            .get(page.palette as usize + usize::from(part))
            .copied()
    }

    /// The decision of one cell; None where the numbers leave the tables.
    #[inline]
    fn cell(&self, row: usize, peer_class: u32, l4: L4) -> Option<(Decision, u32)> {
        let map = self.port_maps.get(self.port_map(row, peer_class)? as usize)?;
        let portless = (map.portless, map.portless_provenance);
        let L4::Port { protocol, port } = l4 else {
            return Some(portless);
        };
        if map.uniform != 0 {
            return Some(portless);
        }
        let [tcp, udp, sctp, end] = map.starts;
        let (from, to) = match protocol {
            6 => (tcp, udp),
            17 => (udp, sctp),
            132 => (sctp, end),
            _ => return Some(portless),
        };
        let intervals = self.intervals.get(from as usize..to as usize)?;
        let above = intervals.partition_point(|interval| interval.lo <= port);
        let interval = intervals.get(above.checked_sub(1)?)?;
        Some((interval.decision, interval.provenance))
    }

    #[inline]
    fn identity(&self, index: u32) -> Identity {
        let Some(record) = self.identities.get(index as usize) else {
            return NOBODY;
        };
        let Some(kind) = kind(record.kind) else {
            return NOBODY;
        };
        Identity {
            kind,
            endpoint: record.endpoint,
            node: record.node,
            peer_class: record.peer_class,
            group: record.group,
            epoch: record.epoch,
        }
    }

    /// Bucket and identity of an IPv4 host.
    #[inline]
    fn host_v4(&self, key: u32) -> Option<(usize, u32)> {
        let buckets = self.hosts_v4.len();
        let mut at = hash_v4(key, self.seed, buckets);
        let mut left = self.hosts_v4.get(at)?.reach.min(MAX_REACH);
        while left > 0 {
            let bucket = self.hosts_v4.get(at)?;
            for (slot, candidate) in bucket.keys.iter().enumerate() {
                if *candidate == key && slot < usize::from(bucket.used) {
                    return Some((at, bucket.identities[slot]));
                }
            }
            at = if at + 1 == buckets { 0 } else { at + 1 };
            left -= 1;
        }
        None
    }

    /// Bucket and identity of an IPv6 host.
    #[inline]
    fn host_v6(&self, key: &[u8; 16]) -> Option<(usize, u32)> {
        let buckets = self.hosts_v6.len();
        let mut at = hash_v6(key, self.seed, buckets);
        let mut left = self.hosts_v6.get(at)?.reach.min(MAX_REACH);
        while left > 0 {
            let bucket = self.hosts_v6.get(at)?;
            for (slot, candidate) in bucket.keys.iter().enumerate() {
                if candidate == key && slot < usize::from(bucket.used) {
                    return Some((at, bucket.identities[slot]));
                }
            }
            at = if at + 1 == buckets { 0 } else { at + 1 };
            left -= 1;
        }
        None
    }

    fn policy(&self, index: u32) -> Option<PolicyName<'_>> {
        let record = self.policies.get(index as usize)?;
        Some(PolicyName {
            tier: self.string(record.tier)?,
            kind: self.string(record.kind)?,
            namespace: self.string(record.namespace)?,
            name: self.string(record.name)?,
        })
    }

    fn string(&self, index: u32) -> Option<&str> {
        let record = self.strings.get(index as usize)?;
        let offset = record.offset as usize;
        self.text.get(offset..offset.checked_add(record.length as usize)?)
    }

    fn validate(&self, header: &Header) -> Result<(), ImageError> {
        self.validate_names()?;
        self.validate_identities()?;
        self.validate_hosts()?;
        validate_trie("IPv4 trie", &self.trie_v4, 4, self.identities.len())?;
        validate_trie("IPv6 trie", &self.trie_v6, 16, self.identities.len())?;
        self.validate_rows(header)?;
        self.validate_port_maps()
    }

    fn validate_names(&self) -> Result<(), ImageError> {
        for index in 0..self.strings.len() {
            if self.string(index as u32).is_none() {
                return Err(wrong("string", index, "leaves the text or splits a character"));
            }
        }
        let string = |index: u32| (index as usize) < self.strings.len();
        for (index, policy) in self.policies.iter().enumerate() {
            if ![policy.tier, policy.kind, policy.namespace, policy.name]
                .into_iter()
                .all(string)
            {
                return Err(wrong("policy", index, "names a string that does not exist"));
            }
        }
        for (index, node) in self.nodes.iter().enumerate() {
            if !string(*node) {
                return Err(wrong("node", index, "names a string that does not exist"));
            }
        }
        for (index, policy) in self.policy_lists.iter().enumerate() {
            if *policy as usize >= self.policies.len() {
                return Err(wrong("policy list", index, "names a policy that does not exist"));
            }
        }
        for (index, record) in self.provenance.iter().enumerate() {
            let inside = match record.kind {
                PROVENANCE_RULE => (record.first as usize) < self.policies.len(),
                PROVENANCE_ISOLATING => {
                    u64::from(record.first) + u64::from(record.second) <= self.policy_lists.len() as u64
                }
                _ => return Err(wrong("provenance", index, "is of an unknown kind")),
            };
            if !inside {
                return Err(wrong("provenance", index, "names policies that do not exist"));
            }
        }
        let mut last = None;
        for (index, record) in self.endpoints.iter().enumerate() {
            let key = (self.string(record.namespace), self.string(record.name));
            if key.0.is_none() || key.1.is_none() {
                return Err(wrong("endpoint", index, "names a string that does not exist"));
            }
            if last.is_some_and(|last| last >= key) {
                return Err(wrong("endpoint", index, "is out of order"));
            }
            last = Some(key);
            let Some(identity) = self.identities.get(record.identity as usize) else {
                return Err(wrong("endpoint", index, "names an identity that does not exist"));
            };
            if identity.kind == IdentityKind::Pod as u32 && identity.endpoint as usize != index {
                return Err(wrong("endpoint", index, "has the identity of another"));
            }
            if record.template > 1 {
                return Err(wrong("endpoint", index, "is neither pod nor template"));
            }
        }
        Ok(())
    }

    fn validate_identities(&self) -> Result<(), ImageError> {
        for (index, record) in self.identities.iter().enumerate() {
            let problem = match kind(record.kind) {
                None => "is of an unknown kind",
                Some(_) if record.peer_class >= self.classes => "has a peer class that does not exist",
                Some(_) if record.group as usize >= self.groups.len() => "has a group that does not exist",
                Some(_) if record.node != NONE && record.node as usize >= self.nodes.len() => {
                    "has a node that does not exist"
                }
                Some(IdentityKind::Node) if record.node == NONE => "is a node without a number",
                Some(IdentityKind::Pod) if record.endpoint as usize >= self.endpoints.len() => {
                    "has an endpoint that does not exist"
                }
                _ if record.reserved != 0 => "has bits that this build does not know",
                _ => continue,
            };
            return Err(wrong("identity", index, problem));
        }
        Ok(())
    }

    fn validate_hosts(&self) -> Result<(), ImageError> {
        for (index, bucket) in self.hosts_v4.iter().enumerate() {
            let used = usize::from(bucket.used);
            let table = "IPv4 host bucket";
            check_bucket(table, index, used, bucket.keys.len(), bucket.reach)?;
            for (key, identity) in bucket.keys.iter().zip(&bucket.identities).take(used) {
                if *identity as usize >= self.identities.len() {
                    return Err(wrong(table, index, "names an identity that does not exist"));
                }
                if self.host_v4(*key) != Some((index, *identity)) {
                    return Err(wrong(
                        table,
                        index,
                        "holds an address that a lookup would not find there",
                    ));
                }
            }
        }
        for (index, bucket) in self.hosts_v6.iter().enumerate() {
            let used = usize::from(bucket.used);
            let table = "IPv6 host bucket";
            check_bucket(table, index, used, bucket.keys.len(), bucket.reach)?;
            for (key, identity) in bucket.keys.iter().zip(&bucket.identities).take(used) {
                if *identity as usize >= self.identities.len() {
                    return Err(wrong(table, index, "names an identity that does not exist"));
                }
                if self.host_v6(key) != Some((index, *identity)) {
                    return Err(wrong(
                        table,
                        index,
                        "holds an address that a lookup would not find there",
                    ));
                }
            }
        }
        Ok(())
    }

    fn validate_rows(&self, header: &Header) -> Result<(), ImageError> {
        if header.classes == 0
            || header.pages_per_row as usize != (header.classes as usize).div_ceil(CLASSES_PER_PAGE)
        {
            return Err(wrong("header", 0, "has pages that do not fit its peer classes"));
        }
        let rows = header.rows as usize;
        if self.isolating.len() != rows
            || rows.checked_mul(header.pages_per_row as usize) != Some(self.row_pages.len())
        {
            return Err(wrong("header", 0, "has another number of rows than the tables"));
        }
        for (index, group) in self.groups.iter().enumerate() {
            if group.ingress as usize > rows || group.egress as usize > rows {
                return Err(wrong("group", index, "has a row that does not exist"));
            }
        }
        let parts = |pattern: &Pattern| pattern.parts.iter().max().copied().unwrap_or(0);
        let parts: Vec<u8> = self.patterns.iter().map(parts).collect();
        for (index, page) in self.row_pages.iter().enumerate() {
            let row = index / self.pages_per_row as usize;
            let Some(last) = parts.get(page.pattern as usize) else {
                return Err(wrong("row", row, "has a pattern that does not exist"));
            };
            if page.palette as usize + usize::from(*last) >= self.palettes.len() {
                return Err(wrong("row", row, "has a palette that does not exist"));
            }
        }
        for (index, map) in self.palettes.iter().enumerate() {
            if *map as usize >= self.port_maps.len() {
                return Err(wrong("palette", index, "has a port map that does not exist"));
            }
        }
        for (index, set) in self.isolating.iter().enumerate() {
            let is_set = |set: &ProvenanceRecord| set.kind == PROVENANCE_ISOLATING;
            let known = *set == NONE || self.provenance.get(*set as usize).is_some_and(is_set);
            if !known {
                return Err(wrong("row", index, "has isolating policies that do not exist"));
            }
        }
        Ok(())
    }

    fn validate_port_maps(&self) -> Result<(), ImageError> {
        let decided = |decision: Decision, provenance: u32| {
            decision.is_known()
                && (provenance == NONE
                    || self
                        .provenance
                        .get(provenance as usize)
                        .is_some_and(|rule| rule.kind == PROVENANCE_RULE))
        };
        for (index, map) in self.port_maps.iter().enumerate() {
            if !decided(map.portless, map.portless_provenance) {
                return Err(wrong(
                    "port map",
                    index,
                    "has a decision that this build does not know",
                ));
            }
            if map.uniform > 1 || map.reserved != [0; 10] {
                return Err(wrong("port map", index, "has bits that this build does not know"));
            }
            for pair in map.starts.windows(2) {
                let Some(intervals) = self.intervals.get(pair[0] as usize..pair[1] as usize) else {
                    return Err(wrong("port map", index, "has intervals that do not exist"));
                };
                if intervals.first().is_none_or(|first| first.lo != 0) {
                    return Err(wrong("port map", index, "does not begin at port 0"));
                }
                if intervals.windows(2).any(|pair| pair[0].lo >= pair[1].lo) {
                    return Err(wrong("port map", index, "has intervals out of order"));
                }
                let uniform = intervals.iter().all(|interval| {
                    (interval.decision, interval.provenance) == (map.portless, map.portless_provenance)
                });
                if map.uniform == 1 && !uniform {
                    return Err(wrong("port map", index, "is not uniform"));
                }
            }
        }
        for (index, interval) in self.intervals.iter().enumerate() {
            if !decided(interval.decision, interval.provenance) || interval.reserved != 0 {
                return Err(wrong(
                    "interval",
                    index,
                    "has a decision that this build does not know",
                ));
            }
        }
        Ok(())
    }
}

/// The image's bytes, cut into its sections.
struct Sections<'a> {
    header: Header,
    parts: [&'a [u8]; SECTIONS],
}

impl<'a> Sections<'a> {
    fn read(bytes: &'a [u8]) -> Result<Self, ImageError> {
        let table_end = size_of::<Header>() + SECTIONS * size_of::<SectionEntry>();
        let too_short = ImageError::Length {
            actual: bytes.len() as u64,
            expected: table_end as u64,
        };
        let (header, _) = Header::read_from_prefix(bytes).map_err(|_| too_short.clone())?;
        if header.magic != MAGIC {
            return Err(ImageError::Magic);
        }
        if header.version != LAYOUT_VERSION {
            return Err(ImageError::Version {
                found: header.version,
            });
        }
        if header.length != bytes.len() as u64 {
            return Err(ImageError::Length {
                actual: bytes.len() as u64,
                expected: header.length,
            });
        }
        if bytes.len() < table_end {
            return Err(too_short);
        }
        if checksum(bytes) != header.checksum {
            return Err(ImageError::Checksum);
        }
        if header.flags & !FLAG_ALLOW_UNKNOWN != 0 {
            return Err(wrong("header", 0, "has flags that this build does not know"));
        }
        if header.sections as usize != SECTIONS {
            return Err(wrong("header", 0, "has another number of sections"));
        }
        let mut parts = [&bytes[..0]; SECTIONS];
        let mut end = table_end as u64;
        for (index, part) in parts.iter_mut().enumerate() {
            let at = size_of::<Header>() + index * size_of::<SectionEntry>();
            let entry = bytes
                .get(at..at + size_of::<SectionEntry>())
                .and_then(|entry| SectionEntry::read_from_bytes(entry).ok())
                .ok_or_else(|| too_short.clone())?;
            if entry.kind as usize != index || entry.reserved != 0 {
                return Err(wrong("section", index, "is not the one that belongs there"));
            }
            if entry.offset < end || !entry.offset.is_multiple_of(SECTION_ALIGN as u64) {
                return Err(wrong("section", index, "overlaps another or is not aligned"));
            }
            end = entry
                .offset
                .checked_add(entry.length)
                .ok_or_else(|| wrong("section", index, "leaves the image"))?;
            *part = usize::try_from(entry.offset)
                .ok()
                .zip(usize::try_from(end).ok())
                .and_then(|(from, to)| bytes.get(from..to))
                .ok_or_else(|| wrong("section", index, "leaves the image"))?;
        }
        Ok(Self { header, parts })
    }

    /// Copies a section into memory that is aligned for its records.
    fn table<T: FromBytes + IntoBytes + Immutable + Clone>(
        &self,
        section: Section,
    ) -> Result<Box<[T]>, ImageError> {
        let bytes = self.parts[section as usize];
        if !bytes.len().is_multiple_of(size_of::<T>()) {
            return Err(wrong("section", section as usize, "does not hold whole records"));
        }
        let mut records = vec![T::new_zeroed(); bytes.len() / size_of::<T>()].into_boxed_slice();
        records.as_mut_bytes().copy_from_slice(bytes);
        Ok(records)
    }
}

/// blake3 of an image, its checksum field taken as zero. `bytes` hold at least a header.
pub(super) fn checksum(bytes: &[u8]) -> [u8; 32] {
    let at = std::mem::offset_of!(Header, checksum);
    let mut hasher = blake3::Hasher::new();
    hasher.update(bytes.get(..at).unwrap_or_default());
    hasher.update(&[0; 32]);
    hasher.update(bytes.get(at + 32..).unwrap_or_default());
    *hasher.finalize().as_bytes()
}

fn wrong(table: &'static str, index: usize, problem: &'static str) -> ImageError {
    ImageError::Table {
        table,
        index,
        problem,
    }
}

#[inline]
fn kind(number: u32) -> Option<IdentityKind> {
    Some(match number {
        0 => IdentityKind::Pod,
        1 => IdentityKind::Node,
        2 => IdentityKind::External,
        3 => IdentityKind::Unknown,
        4 => IdentityKind::Service,
        _ => return None,
    })
}

/// Follows an address, byte by byte; answers an index that does not exist where the trie is broken.
#[inline]
fn walk(trie: &[TrieNode], bytes: &[u8]) -> u32 {
    let mut at = 0;
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
fn depth(trie: &[TrieNode]) -> u32 {
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

fn validate_trie(
    table: &'static str,
    trie: &[TrieNode],
    levels: u32,
    identities: usize,
) -> Result<(), ImageError> {
    if trie.is_empty() {
        return Err(wrong(table, 0, "is missing"));
    }
    // Children have higher indices than their parents, so one pass in order sees every path and none is a cycle.
    let mut depths = vec![1_u32; trie.len()];
    for (index, node) in trie.iter().enumerate() {
        let below = depths[index] + 1;
        for entry in node.entries {
            if entry & TRIE_CHILD == 0 {
                if entry as usize >= identities {
                    return Err(wrong(table, index, "names an identity that does not exist"));
                }
                continue;
            }
            let child = (entry & !TRIE_CHILD) as usize;
            if child <= index || child >= trie.len() {
                return Err(wrong(table, index, "has a child that does not come after it"));
            }
            if below > levels {
                return Err(wrong(table, index, "is deeper than an address is long"));
            }
            depths[child] = depths[child].max(below);
        }
    }
    Ok(())
}

fn check_bucket(
    table: &'static str,
    index: usize,
    used: usize,
    slots: usize,
    reach: u16,
) -> Result<(), ImageError> {
    if used > slots {
        return Err(wrong(table, index, "has more entries than slots"));
    }
    if reach == 0 || reach > MAX_REACH {
        return Err(wrong(table, index, "has a reach out of bounds"));
    }
    Ok(())
}
