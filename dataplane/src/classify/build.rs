//! Writing images: what the compiler, and tests that need a small snapshot, put tables together with.
//!
//! ```
//! # use ringwall_dataplane::{addr::Addr, classify::*};
//! // Pod 10.0.0.1 accepts TCP 80 from everyone, by rule 0 of policy default/web.
//! let mut image = ImageBuilder::new(Generation(1));
//! let policy = image.policy("NetworkPolicy", "NetworkPolicy", "default", "web");
//! let rule = image.rule(policy, 0);
//! let map = image.port_map(PortDecision::DENY, &[PortRange::allow(6, 80, 80, rule)]);
//! let isolating = image.isolating(&[policy]);
//! let row = image.row(isolating, &[map]); // one peer class, 0: everyone
//! let group = image.group(row, 0);
//! let pod = Identity { kind: IdentityKind::Pod, endpoint: 0, node: NONE, peer_class: 0, group, epoch: 1 };
//! let web = image.identity(pod);
//! image.endpoint("default", "web-0", false, web);
//! image.host(Addr::v4([10, 0, 0, 1]), web);
//! let snapshot = Snapshot::open(&image.finish([0; 32])?)?;
//!
//! let (from, to) = (Addr::v4([192, 0, 2, 1]), Addr::v4([10, 0, 0, 1]));
//! let (src, dst) = (snapshot.identify(from), snapshot.identify(to));
//! let judge = |port| {
//!     let l4 = L4::Port { protocol: 6, port };
//!     snapshot.judge(&src, &dst, from, to, l4, NodeExemption::Trusted).allow()
//! };
//! assert!(judge(80));
//! assert!(!judge(81));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use hashbrown::HashMap;
use zerocopy::IntoBytes;

use super::{
    Generation, Identity, IdentityKind,
    image::checksum,
    layout::{
        BucketV4, BucketV6, CLASSES_PER_PAGE, Decision, EndpointRecord, FLAG_ALLOW_UNKNOWN, GroupRecord,
        Header, IdentityRecord, IntervalRecord, LAYOUT_VERSION, MAGIC, MAX_REACH, NONE, PROVENANCE_ISOLATING,
        PROVENANCE_RULE, PageRecord, Pattern, PolicyRecord, PortMapRecord, ProvenanceRecord, SECTION_ALIGN,
        SECTIONS, Section, SectionEntry, StringRecord, TRIE_CHILD, TrieNode, hash_v4, hash_v6,
    },
};
use crate::addr::Addr;

/// Why an image could not be written.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BuildError {
    /// A prefix longer than its family's addresses.
    #[error("prefix {addr}/{length} is longer than its address")]
    PrefixLength {
        /// The prefix's address.
        addr: Addr,
        /// The length given.
        length: u8,
    },
    /// Ranges of a port map that overlap, run backwards or name a protocol without ports.
    #[error("a port map has ranges that overlap, run backwards or name protocol {protocol}, at port {port}")]
    PortRange {
        /// IP protocol.
        protocol: u8,
        /// First port of the range.
        port: u16,
    },
    /// More than 32-bit numbers can count.
    #[error("the snapshot has too many {table}: over 2^31")]
    TooMany {
        /// Which table.
        table: &'static str,
    },
    /// No hash function places every host within the bounded search.
    #[error("the {family} host table cannot be laid out for {hosts} addresses")]
    Hosts {
        /// `IPv4` or `IPv6`.
        family: &'static str,
        /// Addresses.
        hosts: usize,
    },
}

/// A decision and the rule behind it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PortDecision {
    /// What is decided.
    pub decision: Decision,
    /// The rule that decides, from [`ImageBuilder::rule`]; [`NONE`] where none does: deny then means isolated,
    /// allow means open.
    pub provenance: u32,
}

impl PortDecision {
    /// No rule matches and the pod is isolated.
    pub const DENY: Self = Self {
        decision: Decision::DENY,
        provenance: NONE,
    };
    /// No rule matches and the pod is not isolated.
    pub const OPEN: Self = Self {
        decision: Decision::ALLOW,
        provenance: NONE,
    };

    /// Allowed by a rule.
    pub const fn allow(rule: u32) -> Self {
        Self {
            decision: Decision::ALLOW,
            provenance: rule,
        }
    }
}

/// Ports `lo..=hi` of a protocol and their decision.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PortRange {
    /// IP protocol: 6, 17 or 132.
    pub protocol: u8,
    /// First port.
    pub lo: u16,
    /// Last port.
    pub hi: u16,
    /// The decision.
    pub then: PortDecision,
}

impl PortRange {
    /// Ports that a rule allows.
    pub const fn allow(protocol: u8, lo: u16, hi: u16, rule: u32) -> Self {
        Self {
            protocol,
            lo,
            hi,
            then: PortDecision::allow(rule),
        }
    }
}

/// Collects tables and writes them as an image. Equal calls in equal order give equal bytes.
///
/// Indices are checked by [`super::Snapshot::open`], not here.
#[derive(Debug)]
pub struct ImageBuilder {
    generation: Generation,
    flags: u32,
    classes: u32,
    identities: Vec<IdentityRecord>,
    hosts_v4: Vec<(u32, u32)>,
    hosts_v6: Vec<([u8; 16], u32)>,
    prefixes_v4: Vec<Prefix>,
    prefixes_v6: Vec<Prefix>,
    groups: Vec<GroupRecord>,
    rows: Vec<Row>,
    /// Pages of all rows, one after the other.
    row_pages: Vec<PageRecord>,
    patterns: Vec<Pattern>,
    pattern_index: HashMap<Pattern, u32>,
    palettes: Vec<u32>,
    palette_index: HashMap<Vec<u32>, u32>,
    port_maps: Vec<PortMapRecord>,
    port_map_index: HashMap<(PortDecision, Vec<PortRange>), u32>,
    intervals: Vec<IntervalRecord>,
    provenance: Vec<ProvenanceRecord>,
    isolating_index: HashMap<Vec<u32>, u32>,
    policies: Vec<PolicyRecord>,
    policy_lists: Vec<u32>,
    endpoints: Vec<EndpointRecord>,
    nodes: Vec<u32>,
    strings: Vec<StringRecord>,
    string_index: HashMap<String, u32>,
    text: String,
    error: Option<BuildError>,
}

#[derive(Debug)]
struct Row {
    isolating: u32,
    first: usize,
    count: usize,
    /// Port map of the classes past the last page.
    rest: u32,
}

#[derive(Clone, Copy, Debug)]
struct Prefix {
    /// The family's bytes, from the first.
    bytes: [u8; 16],
    length: u8,
    identity: u32,
}

/// 64 cells of a row, from [`ImageBuilder::page`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Page(PageRecord);

impl ImageBuilder {
    /// Index of the port map of isolation: nothing is allowed, by no rule.
    pub const ISOLATED: u32 = 0;

    /// An image in which every address is external and of class 0, group 0 is open in both directions and port map 0
    /// is [`Self::ISOLATED`].
    pub fn new(generation: Generation) -> Self {
        let mut image = Self {
            generation,
            flags: 0,
            classes: 1,
            identities: Vec::new(),
            hosts_v4: Vec::new(),
            hosts_v6: Vec::new(),
            prefixes_v4: Vec::new(),
            prefixes_v6: Vec::new(),
            groups: Vec::new(),
            rows: Vec::new(),
            row_pages: Vec::new(),
            patterns: Vec::new(),
            pattern_index: HashMap::new(),
            palettes: Vec::new(),
            palette_index: HashMap::new(),
            port_maps: Vec::new(),
            port_map_index: HashMap::new(),
            intervals: Vec::new(),
            provenance: Vec::new(),
            isolating_index: HashMap::new(),
            policies: Vec::new(),
            policy_lists: Vec::new(),
            endpoints: Vec::new(),
            nodes: Vec::new(),
            strings: Vec::new(),
            string_index: HashMap::new(),
            text: String::new(),
            error: None,
        };
        image.identity(Identity {
            kind: IdentityKind::External,
            endpoint: NONE,
            node: NONE,
            peer_class: 0,
            group: 0,
            epoch: 0,
        });
        image.group(0, 0);
        image.port_map(PortDecision::DENY, &[]);
        image
    }

    /// Whether traffic of unknown endpoints is allowed. Denied unless said.
    pub fn allow_unknown(&mut self, allow: bool) {
        self.flags = if allow { FLAG_ALLOW_UNKNOWN } else { 0 };
    }

    /// Makes room for at least so many peer classes. Rows and identities ask for what they use themselves.
    pub fn classes(&mut self, classes: u32) {
        self.classes = self.classes.max(classes);
    }

    /// Adds an identity and answers its index.
    pub fn identity(&mut self, identity: Identity) -> u32 {
        self.classes(identity.peer_class.saturating_add(1));
        self.identities.push(IdentityRecord {
            kind: identity.kind as u32,
            endpoint: identity.endpoint,
            node: identity.node,
            peer_class: identity.peer_class,
            group: identity.group,
            reserved: 0,
            epoch: identity.epoch,
        });
        self.index("identities", self.identities.len())
    }

    /// Says whose a host address is. The last word on an address counts.
    pub fn host(&mut self, addr: Addr, identity: u32) {
        let octets = addr.octets();
        if addr.is_v4() {
            let [.., a, b, c, d] = octets;
            self.hosts_v4.push((u32::from_be_bytes([a, b, c, d]), identity));
        } else {
            self.hosts_v6.push((octets, identity));
        }
    }

    /// Says whose the addresses of a prefix are that no [`Self::host`] and no longer prefix names. `length` counts
    /// from the first bit of the family's address: 0..=32 for IPv4, 0..=128 for IPv6. Bits past it do not matter. The
    /// last word on a prefix counts.
    pub fn prefix(&mut self, addr: Addr, length: u8, identity: u32) {
        let v4 = addr.is_v4();
        if length > if v4 { 32 } else { 128 } {
            self.error
                .get_or_insert(BuildError::PrefixLength { addr, length });
            return;
        }
        let mut bytes = addr.octets();
        let prefixes = if v4 {
            bytes.rotate_left(12);
            &mut self.prefixes_v4
        } else {
            &mut self.prefixes_v6
        };
        prefixes.push(Prefix {
            bytes,
            length,
            identity,
        });
    }

    /// Adds a policy's name and answers its index.
    pub fn policy(&mut self, tier: &str, kind: &str, namespace: &str, name: &str) -> u32 {
        let record = PolicyRecord {
            tier: self.string(tier),
            kind: self.string(kind),
            namespace: self.string(namespace),
            name: self.string(name),
        };
        self.policies.push(record);
        self.index("policies", self.policies.len())
    }

    /// Adds the provenance of a rule of a policy and answers its index.
    pub fn rule(&mut self, policy: u32, rule: u32) -> u32 {
        self.provenance.push(ProvenanceRecord {
            kind: PROVENANCE_RULE,
            first: policy,
            second: rule,
        });
        self.index("rules", self.provenance.len())
    }

    /// Provenance of a set of isolating policies, given in order of their names.
    pub fn isolating(&mut self, policies: &[u32]) -> u32 {
        if let Some(index) = self.isolating_index.get(policies) {
            return *index;
        }
        self.provenance.push(ProvenanceRecord {
            kind: PROVENANCE_ISOLATING,
            first: self.policy_lists.len() as u32,
            second: policies.len() as u32,
        });
        self.policy_lists.extend_from_slice(policies);
        self.index("policy lists", self.policy_lists.len());
        let index = self.index("rules", self.provenance.len());
        self.isolating_index.insert(policies.to_vec(), index);
        index
    }

    /// Answers the index of a port map: `otherwise` is what holds for ports in no range and for packets without ports;
    /// the ranges of a protocol do not overlap.
    pub fn port_map(&mut self, otherwise: PortDecision, ranges: &[PortRange]) -> u32 {
        let mut sorted = ranges.to_vec();
        sorted.sort_by_key(|range| (range.protocol, range.lo));
        if let Some(index) = self.port_map_index.get(&(otherwise, sorted.clone())) {
            return *index;
        }
        let mut starts = [0; 4];
        let mut rest = sorted.as_slice();
        let mut uniform = true;
        for (protocol, start) in [6, 17, 132].into_iter().zip(0..) {
            starts[start] = self.intervals.len() as u32;
            let own = rest.partition_point(|range| range.protocol <= protocol);
            let (ranges, after) = rest.split_at(own);
            rest = after;
            let first = self.intervals.len();
            let mut next = 0_u32;
            for range in ranges {
                if range.protocol != protocol || range.lo > range.hi || u32::from(range.lo) < next {
                    self.bad_range(range);
                    continue;
                }
                if u32::from(range.lo) > next {
                    self.interval(first, next as u16, otherwise);
                }
                self.interval(first, range.lo, range.then);
                next = u32::from(range.hi) + 1;
            }
            if let Ok(lo) = u16::try_from(next) {
                self.interval(first, lo, otherwise);
            }
            let begun = self.intervals.get(first..).unwrap_or_default();
            uniform &= begun.len() == 1
                && begun.iter().all(|interval| {
                    (interval.decision, interval.provenance) == (otherwise.decision, otherwise.provenance)
                });
        }
        if let Some(range) = rest.first() {
            self.bad_range(range);
        }
        starts[3] = self.intervals.len() as u32;
        self.index("port intervals", self.intervals.len());
        self.port_maps.push(PortMapRecord {
            starts,
            portless_provenance: otherwise.provenance,
            portless: otherwise.decision,
            uniform: u8::from(uniform),
            reserved: [0; 10],
        });
        let index = self.index("port maps", self.port_maps.len());
        self.port_map_index.insert((otherwise, sorted), index);
        index
    }

    fn interval(&mut self, first: usize, lo: u16, then: PortDecision) {
        let record = IntervalRecord {
            lo,
            decision: then.decision,
            reserved: 0,
            provenance: then.provenance,
        };
        let begun = self.intervals.get(first..).unwrap_or_default();
        let same = begun
            .last()
            .is_some_and(|last| (last.decision, last.provenance) == (record.decision, record.provenance));
        if !same {
            self.intervals.push(record);
        }
    }

    fn bad_range(&mut self, range: &PortRange) {
        self.error.get_or_insert(BuildError::PortRange {
            protocol: range.protocol,
            port: range.lo,
        });
    }

    /// Makes a page: port maps of 64 consecutive peer classes, as parts of masks (bit 0 is the first class) that do not
    /// overlap. Classes in no part are [`Self::ISOLATED`].
    pub fn page(&mut self, parts: &[(u64, u32)]) -> Page {
        // Parts with equal port maps are one; parts are numbered in order of first occurrence, so that equal cells
        // give equal patterns.
        let mut merged: Vec<(u64, u32)> = Vec::with_capacity(parts.len() + 1);
        let covered = parts.iter().fold(0, |covered, (mask, _)| covered | mask);
        for (mask, map) in parts.iter().copied().chain([(!covered, Self::ISOLATED)]) {
            match merged.iter_mut().find(|(_, known)| *known == map) {
                Some((known, _)) => *known |= mask,
                None => merged.push((mask, map)),
            }
        }
        merged.retain(|(mask, _)| *mask != 0);
        merged.sort_unstable_by_key(|(mask, _)| mask.trailing_zeros());
        let mut pattern = Pattern {
            parts: [0; CLASSES_PER_PAGE],
        };
        for ((mask, _), number) in merged.iter().zip(0..).skip(1) {
            let mut left = *mask;
            while left != 0 {
                pattern.parts[left.trailing_zeros() as usize] = number;
                left &= left - 1;
            }
        }
        let next = self.patterns.len() as u32;
        let pattern = *self.pattern_index.entry(pattern).or_insert_with_key(|pattern| {
            self.patterns.push(*pattern);
            next
        });
        let maps: Vec<u32> = merged.into_iter().map(|(_, map)| map).collect();
        let next = self.palettes.len() as u32;
        let palette = *self.palette_index.entry(maps).or_insert_with_key(|maps| {
            self.palettes.extend_from_slice(maps);
            next
        });
        self.index("palette entries", self.palettes.len());
        Page(PageRecord { pattern, palette })
    }

    /// Adds a row: port maps by peer class, from class 0 on; all further classes have the last one. Empty: isolated
    /// from everyone. `isolating` is the provenance of what no rule decides. Answers the row's number, from 1.
    pub fn row(&mut self, isolating: u32, cells: &[u32]) -> u32 {
        let rest = cells.last().copied().unwrap_or(Self::ISOLATED);
        let pages: Vec<Page> = cells
            .chunks(CLASSES_PER_PAGE)
            .map(|chunk| {
                let rest = std::iter::repeat_n(&rest, CLASSES_PER_PAGE - chunk.len());
                let parts: Vec<(u64, u32)> = chunk
                    .iter()
                    .chain(rest)
                    .zip(0..)
                    .map(|(map, bit)| (1 << bit, *map))
                    .collect();
                self.page(&parts)
            })
            .collect();
        self.classes(cells.len() as u32);
        self.row_of_pages(isolating, &pages, rest)
    }

    /// As [`Self::row`], of pages from [`Self::page`]; `rest` is the port map of the classes past the last of them.
    pub fn row_of_pages(&mut self, isolating: u32, pages: &[Page], rest: u32) -> u32 {
        self.rows.push(Row {
            isolating,
            first: self.row_pages.len(),
            count: pages.len(),
            rest,
        });
        self.row_pages.extend(pages.iter().map(|page| page.0));
        self.index("row pages", self.row_pages.len());
        self.index("rows", self.rows.len()) + 1
    }

    /// Adds a group and answers its index: rows of [`Self::row`], 0 for a direction that is open.
    pub fn group(&mut self, ingress: u32, egress: u32) -> u32 {
        self.groups.push(GroupRecord { ingress, egress });
        self.index("groups", self.groups.len())
    }

    /// Names an endpoint. Numbers are given in order of the calls, from 0, and calls are in order of namespace and
    /// name. `identity` is who it is apart from any address.
    pub fn endpoint(&mut self, namespace: &str, name: &str, template: bool, identity: u32) -> u32 {
        let record = EndpointRecord {
            namespace: self.string(namespace),
            name: self.string(name),
            identity,
            template: u32::from(template),
        };
        self.endpoints.push(record);
        self.index("endpoints", self.endpoints.len())
    }

    /// Names a node and answers its number.
    pub fn node(&mut self, name: &str) -> u32 {
        let name = self.string(name);
        self.nodes.push(name);
        self.index("nodes", self.nodes.len())
    }

    /// Bytes that the tables take so far, without tries and padding: for budgets, before memory is spent.
    pub fn size(&self) -> u64 {
        let of = |count: usize, size: usize| count as u64 * size as u64;
        of(self.row_pages.len(), size_of::<PageRecord>())
            + of(self.patterns.len(), size_of::<Pattern>())
            + of(self.palettes.len(), size_of::<u32>())
            + of(self.identities.len(), size_of::<IdentityRecord>())
            + of(self.intervals.len(), size_of::<IntervalRecord>())
            + of(self.port_maps.len(), size_of::<PortMapRecord>())
            + self.text.len() as u64
    }

    /// Writes the image. `content` is the canonical hash; tests may give zeros.
    pub fn finish(mut self, content: [u8; 32]) -> Result<Vec<u8>, BuildError> {
        let pages_per_row = (self.classes as usize).div_ceil(CLASSES_PER_PAGE);
        let row_pages = self.padded_rows(pages_per_row);
        let seed = 0x7269_6e67_7761_6c6c; // any number: hosts are the administrator's, not an attacker's
        let hosts_v4 = lay_out_v4(std::mem::take(&mut self.hosts_v4), seed)?;
        let hosts_v6 = lay_out_v6(std::mem::take(&mut self.hosts_v6), seed)?;
        let trie_v4 = trie(std::mem::take(&mut self.prefixes_v4))?;
        let trie_v6 = trie(std::mem::take(&mut self.prefixes_v6))?;
        let isolating: Vec<u32> = self.rows.iter().map(|row| row.isolating).collect();
        if let Some(error) = self.error {
            return Err(error);
        }
        let sections: [&[u8]; SECTIONS] = {
            let mut sections: [&[u8]; SECTIONS] = [&[]; SECTIONS];
            let mut put = |section: Section, bytes| sections[section as usize] = bytes;
            put(Section::Identities, self.identities.as_bytes());
            put(Section::HostsV4, hosts_v4.as_bytes());
            put(Section::HostsV6, hosts_v6.as_bytes());
            put(Section::TrieV4, trie_v4.as_bytes());
            put(Section::TrieV6, trie_v6.as_bytes());
            put(Section::Groups, self.groups.as_bytes());
            put(Section::RowPages, row_pages.as_bytes());
            put(Section::Patterns, self.patterns.as_bytes());
            put(Section::Palettes, self.palettes.as_bytes());
            put(Section::PortMaps, self.port_maps.as_bytes());
            put(Section::Intervals, self.intervals.as_bytes());
            put(Section::Isolating, isolating.as_bytes());
            put(Section::Provenance, self.provenance.as_bytes());
            put(Section::Policies, self.policies.as_bytes());
            put(Section::PolicyLists, self.policy_lists.as_bytes());
            put(Section::Endpoints, self.endpoints.as_bytes());
            put(Section::Nodes, self.nodes.as_bytes());
            put(Section::Strings, self.strings.as_bytes());
            put(Section::Text, self.text.as_bytes());
            sections
        };
        let mut end = size_of::<Header>() + SECTIONS * size_of::<SectionEntry>();
        let entries: Vec<SectionEntry> = sections
            .iter()
            .zip(0..)
            .map(|(bytes, kind)| {
                let offset = end.next_multiple_of(SECTION_ALIGN);
                end = offset + bytes.len();
                SectionEntry {
                    kind,
                    reserved: 0,
                    offset: offset as u64,
                    length: bytes.len() as u64,
                }
            })
            .collect();
        let mut header = Header {
            magic: MAGIC,
            version: LAYOUT_VERSION,
            flags: self.flags,
            generation: self.generation.0,
            length: end as u64,
            content,
            checksum: [0; 32],
            classes: self.classes,
            rows: self.rows.len() as u32,
            seed,
            pages_per_row: pages_per_row as u32,
            sections: SECTIONS as u32,
        };
        let mut image = Vec::with_capacity(end);
        image.extend_from_slice(header.as_bytes());
        image.extend_from_slice(entries.as_bytes());
        for (bytes, entry) in sections.iter().zip(&entries) {
            image.resize(entry.offset as usize, 0);
            image.extend_from_slice(bytes);
        }
        header.checksum = checksum(&image);
        image[..size_of::<Header>()].copy_from_slice(header.as_bytes());
        Ok(image)
    }

    /// The pages of every row, each row made as long as the widest.
    fn padded_rows(&mut self, pages_per_row: usize) -> Vec<PageRecord> {
        if self.rows.iter().all(|row| row.count == pages_per_row) {
            return std::mem::take(&mut self.row_pages);
        }
        let mut padded = Vec::with_capacity(self.rows.len() * pages_per_row);
        for row in std::mem::take(&mut self.rows) {
            let own = self
                .row_pages
                .get(row.first..row.first + row.count)
                .unwrap_or_default();
            padded.extend(own.iter().copied().take(pages_per_row));
            if row.count < pages_per_row {
                let page = self.page(&[(u64::MAX, row.rest)]);
                padded.resize(padded.len() + pages_per_row - row.count, page.0);
            }
            self.rows.push(row);
        }
        padded
    }

    fn string(&mut self, string: &str) -> u32 {
        if let Some(index) = self.string_index.get(string) {
            return *index;
        }
        self.strings.push(StringRecord {
            offset: self.text.len() as u32,
            length: string.len() as u32,
        });
        self.text.push_str(string);
        self.index("bytes of names", self.text.len());
        let index = self.index("names", self.strings.len());
        self.string_index.insert(string.to_owned(), index);
        index
    }

    /// Index of the last of `count` records.
    fn index(&mut self, table: &'static str, count: usize) -> u32 {
        if count > (u32::MAX >> 1) as usize {
            self.error.get_or_insert(BuildError::TooMany { table });
        }
        count.saturating_sub(1) as u32
    }
}

/// Puts each key into the first free slot from its home bucket on. The table doubles until every key is within
/// [`MAX_REACH`] buckets of its home.
fn lay_out<K, B>(
    family: &'static str,
    mut hosts: Vec<(K, u32)>,
    slots: usize,
    empty: impl Fn() -> B,
    home: impl Fn(&K, usize) -> usize,
    put: impl Fn(&mut B, K, u32) -> bool,
    reach: impl Fn(&mut B) -> &mut u16,
) -> Result<Vec<B>, BuildError>
where
    K: Copy + Ord,
    B: Clone,
{
    // Stable sort, so that of several words on one address the last stays.
    hosts.sort_by_key(|(key, _)| *key);
    hosts.reverse();
    hosts.dedup_by_key(|(key, _)| *key);
    hosts.reverse();
    // Two thirds full: most keys sit in their home bucket.
    let mut count = (hosts.len() * 3 / 2).div_ceil(slots).max(1);
    for _ in 0..8 {
        let mut buckets = vec![empty(); count];
        let placed = hosts.iter().all(|(key, identity)| {
            let start = home(key, count);
            (0..usize::from(MAX_REACH).min(count)).any(|step| {
                let placed = buckets
                    .get_mut((start + step) % count)
                    .is_some_and(|bucket| put(bucket, *key, *identity));
                if placed && let Some(bucket) = buckets.get_mut(start) {
                    let reach = reach(bucket);
                    *reach = (*reach).max(step as u16 + 1);
                }
                placed
            })
        });
        if placed {
            return Ok(buckets);
        }
        count *= 2;
    }
    Err(BuildError::Hosts {
        family,
        hosts: hosts.len(),
    })
}

fn lay_out_v4(hosts: Vec<(u32, u32)>, seed: u64) -> Result<Vec<BucketV4>, BuildError> {
    let empty = || BucketV4 {
        keys: [0; 7],
        used: 0,
        reach: 1,
        identities: [0; 7],
        reserved: 0,
    };
    let put = |bucket: &mut BucketV4, key, identity| {
        let slot = usize::from(bucket.used);
        let (Some(to), Some(value)) = (bucket.keys.get_mut(slot), bucket.identities.get_mut(slot)) else {
            return false;
        };
        (*to, *value) = (key, identity);
        bucket.used += 1;
        true
    };
    let home = |key: &u32, count| hash_v4(*key, seed, count);
    lay_out("IPv4", hosts, 7, empty, home, put, |bucket| &mut bucket.reach)
}

fn lay_out_v6(hosts: Vec<([u8; 16], u32)>, seed: u64) -> Result<Vec<BucketV6>, BuildError> {
    let empty = || BucketV6 {
        keys: [[0; 16]; 3],
        identities: [0; 3],
        used: 0,
        reach: 1,
    };
    let put = |bucket: &mut BucketV6, key, identity| {
        let slot = usize::from(bucket.used);
        let (Some(to), Some(value)) = (bucket.keys.get_mut(slot), bucket.identities.get_mut(slot)) else {
            return false;
        };
        (*to, *value) = (key, identity);
        bucket.used += 1;
        true
    };
    let home = |key: &[u8; 16], count| hash_v6(key, seed, count);
    lay_out("IPv6", hosts, 3, empty, home, put, |bucket| &mut bucket.reach)
}

/// A stride-8 trie in which every entry is an identity or a child: prefixes are pushed down to the entries that they
/// cover.
fn trie(mut prefixes: Vec<Prefix>) -> Result<Vec<TrieNode>, BuildError> {
    // Shortest first: an entry that a prefix fills has no child yet, since only longer prefixes make children there.
    prefixes.sort_by_key(|prefix| prefix.length);
    let mut nodes = vec![TrieNode { entries: [0; 256] }];
    for prefix in prefixes {
        let mut at = 0;
        let mut left = prefix.length;
        for byte in prefix.bytes {
            if left <= 8 {
                let span = 1_usize << (8 - left);
                let first = usize::from(byte) & !(span - 1);
                if let Some(entries) = nodes
                    .get_mut(at)
                    .and_then(|node| node.entries.get_mut(first..first + span))
                {
                    entries.fill(prefix.identity);
                }
                break;
            }
            left -= 8;
            let next = nodes.len();
            if next >= TRIE_CHILD as usize {
                return Err(BuildError::TooMany { table: "trie nodes" });
            }
            let Some(entry) = nodes.get_mut(at).map(|node| &mut node.entries[usize::from(byte)]) else {
                break;
            };
            let found = *entry;
            if found & TRIE_CHILD == 0 {
                *entry = next as u32 | TRIE_CHILD;
                nodes.push(TrieNode {
                    entries: [found; 256],
                });
                at = next;
            } else {
                at = (found & !TRIE_CHILD) as usize;
            }
        }
    }
    Ok(nodes)
}
