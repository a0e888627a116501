//! Writing images: what the compiler, and tests that need a small snapshot, put tables together with.
//!
//! An [`ImageBuilder`] lives as long as the compiler wants. [`ImageBuilder::image`] answers the tables as they are now;
//! what is changed after that does not change the image, and two successive images share all that did not change.
//!
//! **Numbers.** Whatever a call answers keeps its number until it is freed; then the number is given out again. Numbers
//! have history and holes, so nothing may depend on their order. [`ImageBuilder::waste`] says when a new builder pays.
//!
//! **Who frees what.** Identities, hosts, prefixes, rows, policies, rules, endpoints and nodes belong to the caller, who frees
//! each once nothing points to it any more. Port maps and isolating sets are kept once however often they are asked
//! for and are counted: each call that answers one counts for the caller, who gives it back with
//! [`ImageBuilder::release_port_map`] or [`ImageBuilder::release_isolating`]; pages count theirs themselves, so a
//! caller that keeps no port map may give it back as soon as the page that it is for has been set. Strings, patterns and
//! palettes are counted within.
//!
//! **What a change costs**, in records written (each copies its 16 KiB chunk if the last image has it too):
//!
//! | change | calls | records |
//! |---|---|---|
//! | a pod comes, its cohort is known | [`identity`](ImageBuilder::identity), [`endpoint`](ImageBuilder::endpoint), [`host`](ImageBuilder::host) per address | identity, endpoint, its name, a host bucket or two |
//! | a pod goes | [`remove_host`](ImageBuilder::remove_host), [`free_endpoint`](ImageBuilder::free_endpoint), [`free_identity`](ImageBuilder::free_identity) | the same |
//! | a pod changes its class, rows or epoch | [`set_identity`](ImageBuilder::set_identity) | one |
//! | a class comes or goes | [`set_cell`](ImageBuilder::set_cell) for each row in which it differs from what is there | one per row, together in memory |
//! | a row comes or goes | [`row`](ImageBuilder::row), [`free_row`](ImageBuilder::free_row) | one per page |
//! | a rule changes | [`set_page`](ImageBuilder::set_page) or [`set_cell`](ImageBuilder::set_cell) | one per page |
//! | a prefix comes or goes | [`prefix`](ImageBuilder::prefix), [`remove_prefix`](ImageBuilder::remove_prefix) | the nodes of the trie that it lies in, and those inside it |
//!
//! An error (see [`BuildError`]) is remembered and answered by every [`ImageBuilder::image`] from then on: begin with a new
//! builder.
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
//! let pod = Identity {
//!     kind: IdentityKind::Pod, endpoint: 0, node: NONE, peer_class: 0, ingress: row, egress: 0, epoch: 1,
//! };
//! let web = image.identity(pod);
//! image.endpoint("default", "web-0", false, web);
//! image.host(Addr::v4([10, 0, 0, 1]), web);
//! let first = image.image(Generation(1), [0; 32])?;
//! let snapshot = Snapshot::open(&first.to_bytes())?;
//!
//! let (from, to) = (Addr::v4([192, 0, 2, 1]), Addr::v4([10, 0, 0, 1]));
//! let (src, dst) = (snapshot.identify(from), snapshot.identify(to));
//! let judge = |port| {
//!     let l4 = L4::Port { protocol: 6, port, source: 0 };
//!     snapshot.judge(&src, &dst, from, to, l4, NodeExemption::Trusted).allow()
//! };
//! assert!(judge(80));
//! assert!(!judge(81));
//!
//! // It is opened in both directions: the next image costs one record.
//! image.set_identity(web, Identity { ingress: 0, epoch: 2, ..pod });
//! let second = image.image(Generation(2), [1; 32])?;
//! let snapshot = snapshot.apply(&second.delta_since(&first).unwrap())?;
//! assert_eq!(snapshot.identify(to).ingress, 0);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod hosts;
mod interned;
mod prefixes;

use self::{
    hosts::{Hosts, Names},
    interned::{InternTable, RecordAllocator, RunAllocator, StringTable},
    prefixes::Prefixes,
};
use super::{
    DenialAnswer, Generation, Identity, IdentityKind, Image, PolicyName,
    image::Tables,
    layout::{
        CLASSES_PER_PAGE, Decision, ENDPOINT_NONE, ENDPOINT_POD, ENDPOINT_TEMPLATE, EndpointRecord,
        FLAG_ALLOW_UNKNOWN, INLINE_RANGES, IdentityRecord, ImageMeta, IntervalRecord, MOST_RULES, NO_ANSWER,
        NONE, OTHER_PROTOCOLS, PROVENANCE_ISOLATING, PROVENANCE_RULE, PageRecord, Pattern, PolicyRecord,
        PortMapRecord, ProvenanceRecord, RowRecord, TILE_PAGES, TILE_ROWS, WITH_PORTS, name_tag, page_slot,
        page_slots, whole_cell,
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
    /// Two endpoints of one name.
    #[error("the endpoint {namespace}/{name} is there already")]
    Twice {
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
    },
    /// A name longer than a chunk.
    #[error("a name of {length} bytes: the most is {most}")]
    NameLength {
        /// Its bytes.
        length: usize,
        /// The most.
        most: usize,
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
    /// allow means open. Of [`Decision::DENY_BY_DEFAULT`] the policies, from [`ImageBuilder::isolating`].
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

    /// The nested port map that decides instead.
    fn nested(self) -> Option<u32> {
        (self.decision == Decision::NESTED).then_some(self.provenance)
    }
}

/// Ports `lo..=hi` of a protocol and their decision.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PortRange {
    /// IP protocol. Of those but 6, 17 and 132, a range is all of 0 to 65535.
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

/// Collects tables and answers them as images. Equal calls in equal order give equal images.
///
/// Indices are checked by [`super::Snapshot::open`] and [`super::Snapshot::apply`], not here.
#[derive(Default)]
pub struct ImageBuilder {
    generation: Generation,
    /// Of the hash tables.
    seed: u64,
    flags: u32,
    classes: u32,
    tables: Tables,
    identities: RecordAllocator,
    hosts_v4: Hosts,
    hosts_v6: Hosts,
    prefixes_v4: Prefixes,
    prefixes_v6: Prefixes,
    /// By row from row 1: the port map of classes for which no page was given; None of a free row.
    rows: Vec<Option<u32>>,
    free_rows: Vec<u32>,
    /// Tiles of rows that the row pages have room for.
    row_tiles: u32,
    patterns: InternTable<Pattern>,
    pattern_numbers: RecordAllocator,
    palettes: InternTable<Box<[u32]>>,
    palette_runs: RunAllocator,
    port_maps: InternTable<PortMapKey>,
    port_map_numbers: RecordAllocator,
    interval_runs: RunAllocator,
    provenance: RecordAllocator,
    isolating: InternTable<Box<[u32]>>,
    policies: RecordAllocator,
    policy_list_runs: RunAllocator,
    endpoints: RecordAllocator,
    names: Names,
    nodes: RecordAllocator,
    strings: StringTable,
    error: Option<BuildError>,
}

type PortMapKey = (PortDecision, Vec<PortRange>);

/// 64 cells of a row, from [`ImageBuilder::page`] or [`ImageBuilder::page_of`]. Good until the row that it was made for or taken from, or
/// another with the same page, changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Page(PageRecord);

/// Any number, for images whose addresses no attacker chooses.
const SEED: u64 = 0x7269_6e67_7761_6c6c;

impl std::fmt::Debug for ImageBuilder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ImageBuilder")
            .field("classes", &self.classes)
            .field("rows", &self.rows.len())
            .field("error", &self.error)
            .finish_non_exhaustive()
    }
}

impl ImageBuilder {
    /// In place of a port map, isolation: nothing is allowed, by no rule.
    pub const ISOLATED: u32 = whole_cell(Decision::DENY, NONE);

    /// An image in which every address is external and of class 0.
    pub fn new(generation: Generation) -> Self {
        Self::seeded(generation, SEED)
    }

    /// As [`Self::new`], with hash tables that are seeded: where others choose addresses, with a number that they do not
    /// know.
    pub fn seeded(generation: Generation, seed: u64) -> Self {
        let mut image = Self {
            generation,
            seed,
            row_tiles: 1,
            ..Self::default()
        };
        image.identity(Identity {
            kind: IdentityKind::External,
            endpoint: NONE,
            node: NONE,
            peer_class: 0,
            ingress: 0,
            egress: 0,
            epoch: 0,
        });
        image.classes(1);
        // What zeros say of a page: isolated from all of its classes.
        let page = image.page(&[]);
        image.hold_page(page);
        image
    }

    /// Whether traffic of unknown endpoints is allowed. Denied unless said.
    pub fn allow_unknown(&mut self, allow: bool) {
        self.flags = if allow { FLAG_ALLOW_UNKNOWN } else { 0 };
    }

    /// Makes room for at least so many peer classes. Rows and identities ask for what they use themselves. There is no
    /// way back: the caller may use a class again that no end has any more.
    pub fn classes(&mut self, classes: u32) {
        if classes <= self.classes {
            return;
        }
        let pages = self.pages();
        self.classes = classes;
        if self.pages() == pages {
            return;
        }
        let slots = page_slots(classes, self.row_tiles);
        self.index("row pages", slots);
        self.tables.row_pages.resize(slots);
        for row in 0..self.rows.len() {
            let rest = self.rows.get(row).copied().flatten().unwrap_or(Self::ISOLATED);
            if rest != Self::ISOLATED {
                let page = self.page(&[(u64::MAX, rest)]);
                (pages..self.pages()).for_each(|at| self.put_page(row, at, page));
            }
        }
    }

    /// Pages of every row: 64 classes each.
    pub fn pages(&self) -> usize {
        (self.classes as usize).div_ceil(CLASSES_PER_PAGE)
    }

    /// Adds an identity and answers its index.
    pub fn identity(&mut self, identity: Identity) -> u32 {
        let record = self.identity_record(identity);
        let index = self.identities.put(&mut self.tables.identities, record);
        self.index("identities", self.tables.identities.len());
        index
    }

    /// Changes an identity, for everybody who has it.
    pub fn set_identity(&mut self, index: u32, identity: Identity) {
        let record = self.identity_record(identity);
        self.tables.identities.set(index as usize, record);
    }

    /// Frees an identity that no host, prefix and endpoint has any more.
    pub fn free_identity(&mut self, index: u32) {
        self.identities.free(index);
    }

    fn identity_record(&mut self, identity: Identity) -> IdentityRecord {
        self.classes(identity.peer_class.saturating_add(1));
        IdentityRecord {
            kind: identity.kind as u32,
            endpoint: identity.endpoint,
            node: identity.node,
            peer_class: identity.peer_class,
            ingress: identity.ingress,
            egress: identity.egress,
            epoch: identity.epoch,
        }
    }

    /// Makes room for so many hosts at once, where they are known before.
    pub fn expect_hosts(&mut self, v4: usize, v6: usize) {
        let room = self.hosts_v4.reserve(&mut self.tables.hosts_v4, self.seed, v4);
        self.note(room);
        let room = self.hosts_v6.reserve(&mut self.tables.hosts_v6, self.seed, v6);
        self.note(room);
    }

    /// Makes room for so many endpoints at once, where they are known before.
    pub fn expect_endpoints(&mut self, endpoints: usize) {
        self.names.reserve(&mut self.tables.names, endpoints);
        self.strings.reserve(endpoints);
    }

    /// Says whose a host address is from now on.
    pub fn host(&mut self, addr: Addr, identity: u32) {
        let done = match v4_key(addr) {
            Some(key) => self
                .hosts_v4
                .insert(&mut self.tables.hosts_v4, self.seed, key, identity),
            None => {
                let key = addr.octets();
                self.hosts_v6
                    .insert(&mut self.tables.hosts_v6, self.seed, key, identity)
            }
        };
        self.note(done);
    }

    /// Takes a host address out: it is whose its prefix is. Answers the identity that it had.
    pub fn remove_host(&mut self, addr: Addr) -> Option<u32> {
        match v4_key(addr) {
            Some(key) => self.hosts_v4.remove(&mut self.tables.hosts_v4, self.seed, key),
            None => self
                .hosts_v6
                .remove(&mut self.tables.hosts_v6, self.seed, addr.octets()),
        }
    }

    /// Says whose the addresses of a prefix are that no [`Self::host`] and no longer prefix names. `length` counts
    /// from the first bit of the family's address: 0..=32 for IPv4, 0..=128 for IPv6. Bits past it do not matter. The
    /// last word on a prefix counts.
    pub fn prefix(&mut self, addr: Addr, length: u8, identity: u32) {
        if length > if addr.is_v4() { 32 } else { 128 } {
            self.error
                .get_or_insert(BuildError::PrefixLength { addr, length });
            return;
        }
        let (prefixes, bits) = self.prefixes(addr);
        prefixes.insert(bits, length, identity);
    }

    /// Takes a prefix out. Answers the identity that it had.
    pub fn remove_prefix(&mut self, addr: Addr, length: u8) -> Option<u32> {
        let (prefixes, bits) = self.prefixes(addr);
        prefixes.remove(bits, length)
    }

    /// The prefixes of an address's family, and its bits, the first one highest.
    fn prefixes(&mut self, addr: Addr) -> (&mut Prefixes, u128) {
        let bits = addr.to_u128();
        if addr.is_v4() {
            (&mut self.prefixes_v4, bits << 96)
        } else {
            (&mut self.prefixes_v6, bits)
        }
    }

    /// Adds a policy's name and answers its index.
    pub fn policy(&mut self, tier: &str, kind: &str, namespace: &str, name: &str) -> u32 {
        let name = PolicyName {
            tier,
            kind,
            namespace,
            name,
        };
        self.policy_that_answers(name, None)
    }

    /// The same for a policy that says what senders of packets that it denies get.
    pub fn policy_that_answers(&mut self, policy: PolicyName<'_>, answer: Option<DenialAnswer>) -> u32 {
        let record = PolicyRecord {
            tier: self.string(policy.tier),
            kind: self.string(policy.kind),
            namespace: self.string(policy.namespace),
            name: self.string(policy.name),
            answer: answer.map_or(NO_ANSWER, DenialAnswer::code),
            reserved: [0; 3],
        };
        let index = self.policies.put(&mut self.tables.policies, record);
        self.index("policies", self.tables.policies.len());
        index
    }

    /// Frees a policy's name that no rule and no isolating set has any more.
    pub fn free_policy(&mut self, policy: u32) {
        if let Some(record) = self.tables.policies.get(policy as usize).copied() {
            for string in [record.tier, record.kind, record.namespace, record.name] {
                self.strings.release(&mut self.tables, string);
            }
            self.policies.free(policy);
        }
    }

    /// Adds the provenance of a rule of a policy and answers its index.
    pub fn rule(&mut self, policy: u32, rule: u32) -> u32 {
        self.put_provenance(PROVENANCE_RULE, policy, rule)
    }

    /// Frees the provenance of a rule that no port map has any more.
    pub fn free_rule(&mut self, rule: u32) {
        self.provenance.free(rule);
    }

    fn put_provenance(&mut self, kind: u32, first: u32, second: u32) -> u32 {
        let record = ProvenanceRecord {
            kind,
            first,
            second,
            reserved: 0,
        };
        let index = self.provenance.put(&mut self.tables.provenance, record);
        self.index("rules", self.tables.provenance.len());
        index
    }

    /// Provenance of a set of isolating policies, given in order of their names. Counts for the caller.
    pub fn isolating(&mut self, policies: &[u32]) -> u32 {
        if let Some(index) = self.isolating.find(policies) {
            self.isolating.hold(index);
            return index;
        }
        let first = self
            .policy_list_runs
            .put(&mut self.tables.policy_lists, policies, None);
        self.index("policy lists", self.tables.policy_lists.len());
        let index = self.put_provenance(PROVENANCE_ISOLATING, first, policies.len() as u32);
        self.isolating.insert(index, policies.into());
        self.isolating.hold(index);
        index
    }

    /// Gives an isolating set back, once for each time that [`Self::isolating`] answered it.
    pub fn release_isolating(&mut self, index: u32) {
        if let Some(policies) = self.isolating.release(index)
            && let Some(record) = self.tables.provenance.get(index as usize)
        {
            self.policy_list_runs.free(record.first, policies.len());
            self.provenance.free(index);
        }
    }

    /// Answers the index of a port map, or what stands in its place where the decision is the same for all ports: `otherwise` is
    /// what holds for ports in no range and for packets without ports; the ranges of a protocol do not overlap. Counts for
    /// the caller.
    pub fn port_map(&mut self, otherwise: PortDecision, ranges: &[PortRange]) -> u32 {
        let same = ranges
            .iter()
            .all(|range| range.then == otherwise && range.lo <= range.hi);
        if same && otherwise.decision.is_known() {
            if otherwise.provenance >= MOST_RULES && otherwise.provenance != NONE {
                self.error.get_or_insert(BuildError::TooMany { table: "rules" });
            }
            return whole_cell(otherwise.decision, otherwise.provenance);
        }
        self.port_map_of_ranges(otherwise, ranges)
    }

    fn port_map_of_ranges(&mut self, otherwise: PortDecision, ranges: &[PortRange]) -> u32 {
        let mut sorted = ranges.to_vec();
        sorted.sort_by_key(|range| (range.protocol, range.lo));
        let key = (otherwise, sorted);
        if let Some(index) = self.port_maps.find(&key) {
            self.port_maps.hold(index);
            key.1.iter().for_each(|range| self.release_nested(range)); // it holds its own
            return index;
        }
        let (mut record, intervals) = self.lay_out_ports(otherwise, &key.1);
        if !intervals.is_empty() {
            let first = self.interval_runs.put(
                &mut self.tables.intervals,
                &intervals,
                Some(IntervalRecord::of(0, PortDecision::DENY)),
            );
            record.starts = record.starts.map(|start| start + first);
            self.index("port intervals", self.tables.intervals.len());
        }
        let index = self.port_map_numbers.put(&mut self.tables.port_maps, record);
        self.index("port maps", self.tables.port_maps.len());
        self.port_maps.insert(index, key);
        self.port_maps.hold(index);
        index
    }

    /// A decision by another port map, for one range of one further port map: the TCP ranges of the nested one say what is
    /// decided by source port, or by the type and code of ICMP ([`super::icmp`]); `unknown` where those are not known.
    pub fn nested_port_map(&mut self, unknown: PortDecision, ranges: &[PortRange]) -> PortDecision {
        PortDecision {
            decision: Decision::NESTED,
            provenance: self.port_map_of_ranges(unknown, ranges),
        }
    }

    fn release_nested(&mut self, range: &PortRange) {
        if let Some(map) = range.then.nested() {
            self.release_port_map(map);
        }
    }

    /// Gives a port map back, once for each time that [`Self::port_map`] answered it.
    pub fn release_port_map(&mut self, map: u32) {
        let Some((_, ranges)) = self.port_maps.release(map) else {
            return;
        };
        ranges.iter().for_each(|range| self.release_nested(range));
        let tables = &mut self.tables;
        let Some(record) = tables.port_maps.get(map as usize).copied() else {
            return;
        };
        let [first, .., end] = record.starts;
        let length = (end - first) as usize;
        if length > 0 {
            let neutral = vec![IntervalRecord::of(0, PortDecision::DENY); length];
            tables.intervals.write(first as usize, &neutral);
            self.interval_runs.free(first, length);
        }
        tables.port_maps.set(map as usize, PortMapRecord::FREE);
        self.port_map_numbers.free(map);
    }

    /// A port map whose intervals begin at 0, and those intervals.
    fn lay_out_ports(
        &mut self,
        otherwise: PortDecision,
        sorted: &[PortRange],
    ) -> (PortMapRecord, Vec<IntervalRecord>) {
        let mut starts = [0; 5];
        let mut intervals: Vec<IntervalRecord> = Vec::new();
        let is_other = |range: &&PortRange| !WITH_PORTS.contains(&range.protocol);
        let with_ports: Vec<PortRange> = sorted.iter().filter(|range| !is_other(range)).copied().collect();
        let mut rest = with_ports.as_slice();
        for (protocol, start) in WITH_PORTS.into_iter().zip(0..) {
            starts[start] = intervals.len() as u32;
            let own = rest.partition_point(|range| range.protocol <= protocol);
            let (ranges, after) = rest.split_at(own);
            rest = after;
            let first = intervals.len();
            let mut next = 0_u32;
            for range in ranges {
                if range.protocol != protocol || range.lo > range.hi || u32::from(range.lo) < next {
                    self.bad_range(range);
                    continue;
                }
                if u32::from(range.lo) > next {
                    add_interval(&mut intervals, first, next as u16, otherwise);
                }
                add_interval(&mut intervals, first, range.lo, range.then);
                next = u32::from(range.hi) + 1;
            }
            if let Ok(lo) = u16::try_from(next) {
                add_interval(&mut intervals, first, lo, otherwise);
            }
            if intervals.get(first..) == Some(&[IntervalRecord::of(0, otherwise)]) {
                intervals.pop(); // as where no port is known
            }
        }
        let first = intervals.len();
        starts[OTHER_PROTOCOLS] = first as u32;
        let mut next = 0_u16;
        for range in sorted.iter().filter(is_other) {
            let number = u16::from(range.protocol);
            if (range.lo, range.hi) != (0, u16::MAX) || number < next {
                self.bad_range(range);
                continue;
            }
            if number > next {
                add_interval(&mut intervals, first, next, otherwise);
            }
            add_interval(&mut intervals, first, number, range.then);
            next = number + 1;
        }
        if next > 0 && next <= u16::from(u8::MAX) {
            add_interval(&mut intervals, first, next, otherwise);
        }
        starts[OTHER_PROTOCOLS + 1] = intervals.len() as u32;
        let mut record = PortMapRecord {
            starts,
            ..PortMapRecord::of(otherwise.decision, otherwise.provenance)
        };
        let after_tcp = starts[1] as usize;
        if let Some(tcp) = intervals.get(..after_tcp)
            && put_inline(&mut record, tcp, otherwise)
        {
            intervals.drain(..after_tcp);
            record.starts = starts.map(|start| start.saturating_sub(starts[1]));
        }
        (record, intervals)
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
        let maps: Vec<u32> = merged.into_iter().map(|(_, map)| map).collect();
        self.page_like(pattern, &maps)
    }

    /// A page of a pattern in order of first occurrence and the port maps of its parts.
    fn page_like(&mut self, pattern: Pattern, maps: &[u32]) -> Page {
        let pattern = self.patterns.find(&pattern).unwrap_or_else(|| {
            let number = self.pattern_numbers.put(&mut self.tables.patterns, pattern);
            self.patterns.insert(number, pattern);
            number
        });
        let palette = self.palettes.find(maps).unwrap_or_else(|| {
            let first = self.palette_runs.put(&mut self.tables.palettes, maps, None);
            maps.iter().for_each(|map| self.port_maps.hold(*map));
            self.palettes.insert(first, maps.into());
            first
        });
        self.index("palette entries", self.tables.palettes.len());
        Page(PageRecord { pattern, palette })
    }

    fn hold_page(&mut self, Page(page): Page) {
        self.patterns.hold(page.pattern);
        self.palettes.hold(page.palette);
    }

    fn release_page(&mut self, Page(page): Page) {
        if self.patterns.release(page.pattern).is_some() {
            self.pattern_numbers.free(page.pattern);
        }
        if let Some(maps) = self.palettes.release(page.palette) {
            self.palette_runs.free(page.palette, maps.len());
            maps.iter().for_each(|map| self.release_port_map(*map));
        }
    }

    /// Adds a row: port maps by peer class, from class 0 on; all further classes have the last one. Empty: isolated
    /// from everyone. `isolating` is the provenance of what no rule decides. Answers the row's number, from 1.
    pub fn row(&mut self, isolating: u32, cells: &[u32]) -> u32 {
        self.classes(cells.len() as u32);
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
        self.row_of_pages(isolating, &pages, rest)
    }

    /// As [`Self::row`], of pages from [`Self::page`]; `rest` is the port map of the classes past the last of them, of those
    /// too that there will be later.
    pub fn row_of_pages(&mut self, isolating: u32, pages: &[Page], rest: u32) -> u32 {
        self.port_maps.hold(rest);
        let row = match self.free_rows.pop() {
            Some(row) => row as usize - 1,
            None => {
                self.rows.push(None);
                self.tables.rows.push(RowRecord::FREE);
                self.make_room_for_rows();
                self.rows.len() - 1
            }
        };
        if let Some(place) = self.rows.get_mut(row) {
            *place = Some(rest);
        }
        let record = RowRecord {
            isolating,
            ..RowRecord::FREE
        };
        self.tables.rows.set(row, record);
        let last = self.page(&[(u64::MAX, rest)]);
        for at in 0..self.pages() {
            self.put_page(row, at, pages.get(at).copied().unwrap_or(last));
        }
        row as u32 + 1
    }

    /// Frees a row that no identity has any more.
    pub fn free_row(&mut self, row: u32) {
        let Some(rest) = self.known_row(row).and_then(|row| self.rows.get_mut(row)?.take()) else {
            return;
        };
        let index = row as usize - 1;
        (0..self.pages()).for_each(|at| self.put_page(index, at, ISOLATED_PAGE));
        self.tables.rows.set(index, RowRecord::FREE);
        self.release_port_map(rest);
        self.free_rows.push(row);
    }

    /// Changes the provenance of what no rule decides in a row.
    pub fn set_isolating(&mut self, row: u32, isolating: u32) {
        if let Some(row) = self.known_row(row) {
            self.change_row(row, |record| record.isolating = isolating);
        }
    }

    /// Says by which row packets of a row's pods to the node that hosts them are decided; 0: all of them pass, as they do
    /// unless this was called.
    pub fn set_own_node(&mut self, row: u32, own_node: u32) {
        if let Some(row) = self.known_row(row) {
            self.change_row(row, |record| record.own_node = own_node);
        }
    }

    fn change_row(&mut self, row: usize, change: impl FnOnce(&mut RowRecord)) {
        if let Some(mut record) = self.tables.rows.get(row).copied() {
            change(&mut record);
            self.tables.rows.set(row, record);
        }
    }

    /// Changes 64 cells of a row: those of classes `64 * at..64 * (at + 1)`.
    pub fn set_page(&mut self, row: u32, at: usize, page: Page) {
        self.classes((at * CLASSES_PER_PAGE + 1) as u32);
        if let Some(row) = self.known_row(row) {
            self.put_page(row, at, page);
        }
    }

    /// 64 cells of a row; None where there are no such row or classes.
    pub fn page_of(&self, row: u32, at: usize) -> Option<Page> {
        let row = self.known_row(row).filter(|_| at < self.pages())?;
        let slot = page_slot(row, at, self.row_tiles);
        self.tables.row_pages.get(slot).copied().map(Page)
    }

    /// Changes one cell of a row. Costs nothing where the cell is as it should be.
    pub fn set_cell(&mut self, row: u32, class: u32, map: u32) {
        self.classes(class.saturating_add(1));
        let (at, bit) = (
            class as usize / CLASSES_PER_PAGE,
            class as usize % CLASSES_PER_PAGE,
        );
        if self.cell(row, class) == Some(map) {
            return;
        }
        let Some(cells) = self.page_of(row, at).and_then(|page| self.cells(page)) else {
            return;
        };
        let parts: Vec<(u64, u32)> = cells
            .into_iter()
            .zip(0..)
            .map(|(known, number)| (1 << number, if number == bit { map } else { known }))
            .collect();
        let page = self.page(&parts);
        self.set_page(row, at, page);
    }

    /// The port map of a cell; None where there are no such row or class.
    pub fn cell(&self, row: u32, class: u32) -> Option<u32> {
        let (at, bit) = (
            class as usize / CLASSES_PER_PAGE,
            class as usize % CLASSES_PER_PAGE,
        );
        let Page(page) = self.page_of(row, at)?;
        let part = self.tables.patterns.get(page.pattern as usize)?.parts[bit];
        let map = self
            .tables
            .palettes
            .get(page.palette as usize + usize::from(part));
        map.copied()
    }

    fn cells(&self, Page(page): Page) -> Option<Vec<u32>> {
        let pattern = self.tables.patterns.get(page.pattern as usize)?;
        let map = |part: &u8| {
            let map = self
                .tables
                .palettes
                .get(page.palette as usize + usize::from(*part));
            map.copied()
        };
        pattern.parts.iter().map(map).collect()
    }

    /// Index of a row that is in use.
    fn known_row(&self, row: u32) -> Option<usize> {
        let index = (row as usize).checked_sub(1)?;
        self.rows.get(index)?.is_some().then_some(index)
    }

    fn put_page(&mut self, row: usize, at: usize, page: Page) {
        let slot = page_slot(row, at, self.row_tiles);
        let Some(old) = self.tables.row_pages.get(slot).copied().map(Page) else {
            return;
        };
        if old == page {
            return;
        }
        // Pages of zeros were never counted; the first pattern and palette are held for ever.
        self.hold_page(page);
        self.tables.row_pages.set(slot, page.0);
        if old != ISOLATED_PAGE {
            self.release_page(old);
        }
    }

    fn make_room_for_rows(&mut self) {
        self.index("rows", self.rows.len());
        let tiles = self.rows.len().div_ceil(TILE_ROWS);
        let before = self.row_tiles as usize;
        if tiles <= before {
            return;
        }
        // A quarter more than needed: the tiles of all further pages move.
        let after = tiles.max(before + before / 4);
        let blocks = self.pages().div_ceil(TILE_PAGES);
        let order = (0..blocks)
            .flat_map(|block| (0..after).map(move |tile| (tile < before).then_some(block * before + tile)));
        self.tables.row_pages.rearrange(order);
        self.index("row pages", self.tables.row_pages.len());
        self.row_tiles = after as u32;
    }

    /// Names an endpoint and answers its number. `identity` is who it is apart from any address; where it is a pod, it has
    /// this number: [`Self::next_endpoint`].
    pub fn endpoint(&mut self, namespace: &str, name: &str, template: bool, identity: u32) -> u32 {
        let record = EndpointRecord {
            namespace: self.string(namespace),
            name: self.string(name),
            identity,
            state: endpoint_state(template),
        };
        let number = self.endpoints.put(&mut self.tables.endpoints, record);
        self.index("endpoints", self.tables.endpoints.len());
        let tag = name_tag(namespace, name, self.seed);
        let has_name = |other: u32| {
            let other = self.tables.endpoints.get(other as usize);
            other.is_some_and(|other| (other.namespace, other.name) == (record.namespace, record.name))
        };
        if !self.names.insert(&mut self.tables.names, tag, number, has_name) {
            let twice = BuildError::Twice {
                namespace: namespace.to_owned(),
                name: name.to_owned(),
            };
            self.error.get_or_insert(twice);
        }
        number
    }

    /// The number that the next call of [`Self::endpoint`] will answer.
    pub fn next_endpoint(&self) -> u32 {
        let next = self.tables.endpoints.len() as u32;
        self.endpoints.next().unwrap_or(next)
    }

    /// Changes what an endpoint is.
    pub fn set_endpoint(&mut self, number: u32, template: bool, identity: u32) {
        if let Some(record) = self.tables.endpoints.get(number as usize).copied() {
            let record = EndpointRecord {
                identity,
                state: endpoint_state(template),
                ..record
            };
            self.tables.endpoints.set(number as usize, record);
        }
    }

    /// Frees an endpoint's number and name.
    pub fn free_endpoint(&mut self, number: u32) {
        let Some(record) = self.tables.endpoints.get(number as usize).copied() else {
            return;
        };
        if record.state == ENDPOINT_NONE {
            return;
        }
        if let (Some(namespace), Some(name)) =
            (self.strings.get(record.namespace), self.strings.get(record.name))
        {
            let tag = name_tag(namespace, name, self.seed);
            self.names.remove(&mut self.tables.names, tag, number);
        }
        self.strings.release(&mut self.tables, record.namespace);
        self.strings.release(&mut self.tables, record.name);
        let free = EndpointRecord {
            namespace: NONE,
            name: NONE,
            identity: NONE,
            state: ENDPOINT_NONE,
        };
        self.tables.endpoints.set(number as usize, free);
        self.endpoints.free(number);
    }

    /// Names a node and answers its number.
    pub fn node(&mut self, name: &str) -> u32 {
        let name = self.string(name);
        let number = self.nodes.put(&mut self.tables.nodes, name);
        self.index("nodes", self.tables.nodes.len());
        number
    }

    /// Frees a node's number and name, once no identity has it any more.
    pub fn free_node(&mut self, number: u32) {
        if let Some(name) = self.tables.nodes.get(number as usize).copied() {
            self.strings.release(&mut self.tables, name);
            self.tables.nodes.set(number as usize, NONE);
            self.nodes.free(number);
        }
    }

    /// Bytes that the tables take so far, without tries and padding: for budgets, before memory is spent.
    pub fn size(&self) -> u64 {
        let of = |count: usize, size: usize| count as u64 * size as u64;
        let tables = &self.tables;
        of(self.rows.len() * self.pages(), size_of::<PageRecord>())
            + of(tables.patterns.len(), size_of::<Pattern>())
            + of(tables.palettes.len(), size_of::<u32>())
            + of(tables.identities.len(), size_of::<IdentityRecord>())
            + of(tables.intervals.len(), size_of::<IntervalRecord>())
            + of(tables.port_maps.len(), size_of::<PortMapRecord>())
            + tables.text.len() as u64
    }

    /// Share of [`Self::size`] that is no longer used, from 0 to 1. Past a half, a new builder pays.
    pub fn waste(&self) -> f64 {
        let of = |count: usize, size: usize| count as u64 * size as u64;
        let free = of(self.free_rows.len() * self.pages(), size_of::<PageRecord>())
            + of(self.pattern_numbers.count(), size_of::<Pattern>())
            + of(self.palette_runs.count(), size_of::<u32>())
            + of(self.identities.count(), size_of::<IdentityRecord>())
            + of(self.interval_runs.count(), size_of::<IntervalRecord>())
            + of(self.port_map_numbers.count(), size_of::<PortMapRecord>())
            + self.strings.waste() as u64;
        free as f64 / self.size().max(1) as f64
    }

    /// The tables as they are now. `content` is the canonical hash; tests may give zeros.
    ///
    /// Costs a reference per 16 KiB, and what prefixes that have changed cost. Generations only go up.
    pub fn image(&mut self, generation: Generation, content: [u8; 32]) -> Result<Image, BuildError> {
        let tables = &mut self.tables;
        for (prefixes, table) in [
            (&mut self.prefixes_v4, &mut tables.trie_v4),
            (&mut self.prefixes_v6, &mut tables.trie_v6),
        ] {
            if let Err(error) = prefixes.write(table) {
                self.error.get_or_insert(error);
            }
        }
        if let Some(error) = &self.error {
            return Err(error.clone());
        }
        let head = ImageMeta {
            generation: generation.0,
            seed: self.seed,
            content,
            flags: self.flags,
            classes: self.classes,
            rows: self.rows.len() as u32,
            row_tiles: self.row_tiles,
        };
        Ok(Image::new(head, self.tables.clone()))
    }

    /// The bytes of the image of the generation that [`Self::new`] was given, for those who want no other.
    pub fn finish(mut self, content: [u8; 32]) -> Result<Vec<u8>, BuildError> {
        Ok(self.image(self.generation, content)?.to_bytes())
    }

    fn string(&mut self, string: &str) -> u32 {
        match self.strings.hold(&mut self.tables, string) {
            Ok(number) => {
                self.index("bytes of names", self.tables.text.len());
                number
            }
            Err(error) => {
                self.error.get_or_insert(error);
                NONE
            }
        }
    }

    fn note(&mut self, outcome: Result<(), BuildError>) {
        if let Err(error) = outcome {
            self.error.get_or_insert(error);
        }
    }

    /// Notes a table that has too many records.
    fn index(&mut self, table: &'static str, count: usize) {
        if count > (u32::MAX >> 1) as usize {
            self.error.get_or_insert(BuildError::TooMany { table });
        }
    }
}

/// What zeros say of a page.
const ISOLATED_PAGE: Page = Page(PageRecord {
    pattern: 0,
    palette: 0,
});

fn endpoint_state(template: bool) -> u32 {
    if template { ENDPOINT_TEMPLATE } else { ENDPOINT_POD }
}

fn v4_key(addr: Addr) -> Option<u32> {
    let [.., a, b, c, d] = addr.octets();
    addr.is_v4().then_some(u32::from_be_bytes([a, b, c, d]))
}

impl IntervalRecord {
    fn of(lo: u16, then: PortDecision) -> Self {
        Self {
            lo,
            decision: then.decision,
            reserved: 0,
            provenance: then.provenance,
        }
    }
}

/// Has a port map hold TCP's intervals itself, as ranges in which something else is decided than without a port. False where
/// those are too many.
fn put_inline(record: &mut PortMapRecord, tcp: &[IntervalRecord], otherwise: PortDecision) -> bool {
    let ends = tcp.iter().skip(1).map(|next| next.lo - 1).chain([u16::MAX]);
    let ranges = tcp.iter().zip(ends);
    let ranges =
        ranges.filter(|(it, _)| (it.decision, it.provenance) != (otherwise.decision, otherwise.provenance));
    if ranges.clone().count() > INLINE_RANGES {
        return false;
    }
    for ((interval, hi), at) in ranges.zip(0..) {
        record.los[at] = interval.lo;
        record.his[at] = hi;
        record.decisions[at] = interval.decision;
        record.provenances[at] = interval.provenance;
    }
    true
}

/// Adds an interval to those from `first` on, unless the one before goes on.
fn add_interval(intervals: &mut Vec<IntervalRecord>, first: usize, lo: u16, then: PortDecision) {
    let record = IntervalRecord::of(lo, then);
    let before = intervals.get(first..).and_then(<[IntervalRecord]>::last);
    if !before.is_some_and(|before| IntervalRecord { lo, ..*before } == record) {
        intervals.push(record);
    }
}
