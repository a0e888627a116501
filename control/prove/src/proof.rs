//! A proof: the objects' view on one side, a snapshot on the other, and everything that has to be asked in between.
//!
//! The argument is written down in the crate's DESIGN.md; the numbers in comments are its steps.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc, time::Instant};

use hashbrown::HashSet;
use ringwall_dataplane::{
    addr::Addr,
    classify::{
        DenialAnswer, DirectionVerdict, Effect, Endpoint, Identity, IdentityKind, L4, NONE, NodeExemption,
        Provenance, RangeNodes, Row, Snapshot, SnapshotChanges,
    },
};
use ringwall_policy::{Action, Cluster, ObjectKey, Pod};

use super::{
    address_ranges::{self, Range},
    columns::Columns,
    expected::{End, Expected, Lists, Owner},
    matching::{self, Asked, is_mapped},
    number_relation::{ClassMeaning, EndRef, NumberRelation, ObservedEnd, RowSubject, peer, subject},
    ports::{Outcome, WITH_PORTS},
    report::{Difference, Report},
    rules::Direction,
};

/// ICMP and ICMPv6.
const ICMP: [u8; 2] = [1, 58];

/// Protocol numbers of packets without ports that are asked about: ends of the scale, those that have ports (in a
/// fragment, say), ICMP, IGMP, GRE, ESP, AH, ICMPv6.
const PORTLESS: [u8; 11] = [0, 1, 2, 6, 17, 47, 50, 51, 58, 132, 255];

/// What is decided about a subject that no policy governs.
const OPEN: u32 = u32::MAX;

/// Between a pod and the node that hosts it nothing decides.
const EXEMPT: DirectionVerdict = DirectionVerdict {
    allow: true,
    effect: Effect::Node,
    provenance: NONE,
};

/// What a cell of a row is found to be.
#[derive(Debug)]
enum Cell {
    /// It says what the policies say.
    Right,
    /// It says something else, and no packet between ends of this column shows it.
    Unseen,
    /// The same, but for packets to an address of a machine that hosts the pod and is no node by that address: only that
    /// machine sees it. A packet that shows it everywhere is a better witness.
    Hidden(Wrong),
    /// It says something else, as this packet shows.
    Wrong(Wrong),
}

impl Cell {
    /// Whether it is right. Keeps what is hidden until it is sure that there is no better witness.
    fn settle(self, hidden: &mut Option<Wrong>) -> Result<bool, Wrong> {
        match self {
            Self::Right => Ok(true),
            Self::Unseen => Ok(false),
            Self::Hidden(wrong) => {
                hidden.get_or_insert(wrong);
                Ok(false)
            }
            Self::Wrong(wrong) => Err(wrong),
        }
    }
}

/// No port map: the row has no cells.
const NO_MAP: u32 = u32::MAX;

/// What is wrong, and a packet that may show it.
#[derive(Debug)]
pub(super) struct Wrong {
    /// In words.
    pub what: String,
    pub suspect: Suspect,
}

#[derive(Debug)]
pub(super) enum Suspect {
    /// This packet is decided otherwise.
    Packet { src: EndRef, dst: EndRef, l4: L4 },
    /// Something about this end is otherwise.
    End(EndRef),
    /// Something about everything is otherwise.
    Anything,
}

/// Both sides, and what of the proof is done.
#[derive(Debug)]
pub(super) struct Proof {
    pub expected: Expected,
    pub snapshot: Arc<Snapshot>,
    pub relation: NumberRelation,
    /// Where the snapshot's tries have their nodes; None until a successor asks.
    pub range_nodes: Option<RangeNodes>,
    /// What was decided and the port map that says the same (5).
    matched: HashSet<(u32, u32)>,
    /// Provenance that names a rule, and that names the policies of a subject.
    rule_names: HashSet<(u32, u32)>,
    isolating_names: HashSet<(u32, u32, Option<u32>)>,
    /// Rows whose isolating policies were asked for.
    named: HashSet<RowSubject>,
    /// Whether some cell is wrong that no packet reads: until an end appears that could send one.
    pub excused: bool,
    lists: Lists,
    pub report: Report,
    todo: Todo,
}

/// What a whole proof has left to do: each part is a list that is worked off from its end.
#[derive(Debug, Default)]
struct Todo {
    pods: Vec<Arc<Pod>>,
    began_ends: bool,
    ends: Vec<EndRef>,
    endpoints: Vec<ObjectKey>,
    ranges: Vec<bool>,
    began_lines: bool,
    lines: Vec<RowSubject>,
    columns: Columns,
}

/// How many pods or addresses are looked at between two looks at the clock.
const BATCH: usize = 64;

impl Proof {
    /// A proof of everything, to be [advanced](Self::advance).
    pub(super) fn new(cluster: &Cluster, snapshot: &Arc<Snapshot>) -> Self {
        let mut pods: Vec<Arc<Pod>> = cluster.pods.values().cloned().collect();
        pods.reverse();
        Self {
            expected: Expected::of(cluster),
            snapshot: Arc::clone(snapshot),
            relation: NumberRelation::default(),
            range_nodes: None,
            matched: HashSet::new(),
            rule_names: HashSet::new(),
            isolating_names: HashSet::new(),
            named: HashSet::new(),
            excused: false,
            lists: Lists::default(),
            report: Report {
                whole: true,
                ..Report::default()
            },
            todo: Todo {
                pods,
                ranges: vec![false, true],
                ..Todo::default()
            },
        }
    }

    /// Goes on until all is proven (true) or the time has come (false).
    pub(super) fn advance(&mut self, until: Option<Instant>) -> Result<bool, Box<Difference>> {
        let begun = Instant::now();
        let outcome = loop {
            match self.advance_once() {
                Ok(true) => break Ok(true),
                Ok(false) if until.is_some_and(|until| Instant::now() >= until) => break Ok(false),
                Ok(false) => {}
                Err(wrong) => break Err(self.explain(wrong)),
            }
        };
        self.report.micros += begun.elapsed().as_micros() as u64;
        outcome
    }

    /// One batch of the first part that is not done; true where all are.
    fn advance_once(&mut self) -> Result<bool, Wrong> {
        if !self.todo.pods.is_empty() {
            let keep = self.todo.pods.len().saturating_sub(BATCH);
            for pod in self.todo.pods.split_off(keep).into_iter().rev() {
                self.expected.add(&pod);
            }
            return Ok(false);
        }
        if !self.todo.began_ends {
            self.begin_ends()?;
            return Ok(false);
        }
        if !self.todo.ends.is_empty() {
            let keep = self.todo.ends.len().saturating_sub(BATCH);
            for place in self.todo.ends.split_off(keep).into_iter().rev() {
                self.end(place)?;
            }
            return Ok(false);
        }
        if !self.todo.endpoints.is_empty() {
            let keep = self.todo.endpoints.len().saturating_sub(BATCH);
            for key in self.todo.endpoints.split_off(keep) {
                self.endpoint_is_known(key)?;
            }
            return Ok(false);
        }
        if let Some(v4) = self.todo.ranges.pop() {
            self.ranges(v4)?;
            return Ok(false);
        }
        if !self.todo.began_lines {
            self.todo.began_lines = true;
            let (lines, _) = self.relation.take_new();
            self.todo.lines = lines.into_iter().rev().collect();
            self.todo.columns = self.columns();
            self.report.classes = self.classes();
            return Ok(false);
        }
        let Some(line) = self.todo.lines.pop() else {
            return Ok(true);
        };
        let mut columns = std::mem::take(&mut self.todo.columns);
        let proven = self.line(line, &mut columns);
        self.todo.columns = columns;
        proven?;
        Ok(false)
    }

    /// All columns.
    pub(super) fn columns(&self) -> Columns {
        let names = |meaning| self.expected.names_of(meaning);
        Columns::of(self.relation.columns(), names)
    }

    /// Subjects and meanings that some end has.
    pub(super) fn classes(&self) -> u64 {
        let (columns, lines) = self.relation.sizes();
        (columns + lines) as u64
    }

    /// 1: lists every address that either side has, nodes first, and every name.
    fn begin_ends(&mut self) -> Result<(), Wrong> {
        self.todo.began_ends = true;
        self.settings()?;
        let mut nodes = Vec::new();
        let mut others = Vec::new();
        for address in self.expected.addresses() {
            match self.expected.who(address) {
                Owner::Node(_) => nodes.push(EndRef::Address(address)),
                _ => others.push(EndRef::Address(address)),
            }
        }
        // What only the snapshot has is looked at as well: no object has it.
        let ours: HashSet<IpAddr> = self.expected.addresses().collect();
        let theirs = self.snapshot.hosts().map(IpAddr::from);
        others.extend(
            theirs
                .filter(|address| !ours.contains(address))
                .map(EndRef::Address),
        );
        let names = (0..self.expected.slots()).map(EndRef::Name);
        nodes.sort_unstable();
        others.sort_unstable();
        others.dedup();
        nodes.extend(others);
        nodes.extend(names);
        nodes.reverse();
        self.todo.ends = nodes;
        self.todo.endpoints = self
            .snapshot
            .endpoints()
            .map(|endpoint| key_of(&endpoint))
            .collect();
        Ok(())
    }

    /// What the snapshot says about everything.
    pub(super) fn settings(&self) -> Result<(), Wrong> {
        let wanted = self.expected.settings().allow_unknown;
        if self.snapshot.allow_unknown() == wanted {
            return Ok(());
        }
        Err(Wrong {
            what: format!(
                "unknown endpoints are {}, the snapshot says {}",
                word(wanted),
                word(!wanted)
            ),
            suspect: Suspect::Anything,
        })
    }

    /// 2: one end: who it is, and the exemptions that hold for it.
    pub(super) fn end(&mut self, place: EndRef) -> Result<(), Wrong> {
        match place {
            EndRef::Address(address) => {
                let end = self.expected.end(address);
                let identity = self.snapshot.identify(address.into());
                self.report.addresses += 1;
                self.identity(place, &end, &identity)?;
                let observed = ObservedEnd::new(end, &identity, &self.snapshot);
                self.exemptions(place, &end, &identity)?;
                // What is in no host table is part of its range.
                if matches!(end.who, Owner::Unowned(_)) && !self.snapshot.is_host(address.into()) {
                    self.relation.put_in_range(address, observed);
                    self.relation.drop(place);
                } else {
                    self.relation.put(place, observed);
                }
            }
            EndRef::Name(slot) => self.name(slot)?,
        }
        Ok(())
    }

    /// A slot's pod by its name.
    fn name(&mut self, slot: u32) -> Result<(), Wrong> {
        let place = EndRef::Name(slot);
        let Some(known) = self.expected.pod(slot) else {
            self.relation.drop(place);
            return Ok(());
        };
        let (key, template) = (known.pod.key.clone(), known.pod.template_of.is_some());
        let is_endpoint = known.is_endpoint();
        let found = self.snapshot.find_endpoint(&key.namespace, &key.name);
        self.report.addresses += 1;
        let fail = |what: String| {
            Err(Wrong {
                what,
                suspect: Suspect::End(place),
            })
        };
        let Some(endpoint) = found else {
            self.relation.drop(place);
            return if is_endpoint {
                fail(format!("the snapshot does not know {key} by its name"))
            } else {
                Ok(())
            };
        };
        if !is_endpoint {
            return fail(format!("the snapshot knows {key}, which has no place of its own"));
        }
        if (endpoint.namespace, endpoint.name, endpoint.template) != (&key.namespace, &key.name, template) {
            return fail(format!(
                "the snapshot finds another endpoint under the name of {key}"
            ));
        }
        let (identity, number) = (endpoint.identity, endpoint.number);
        let end = self.expected.nameless(slot);
        self.identity(place, &end, &identity)?;
        if matches!(end.who, Owner::Pod(_)) && identity.endpoint != number {
            return fail(format!("{key} has two numbers"));
        }
        self.exemptions(place, &end, &identity)?;
        self.relation
            .put(place, ObservedEnd::new(end, &identity, &self.snapshot));
        Ok(())
    }

    /// 2: whether the snapshot means the same one.
    fn identity(&self, place: EndRef, end: &End, got: &Identity) -> Result<(), Wrong> {
        let fail = |what: String| {
            Err(Wrong {
                what,
                suspect: Suspect::End(place),
            })
        };
        let kind = match end.who {
            Owner::Pod(_) => IdentityKind::Pod,
            Owner::Unseen(_) | Owner::Unowned(address_ranges::Unowned::PodNetwork) => IdentityKind::Unknown,
            Owner::Node(_) => IdentityKind::Node,
            Owner::Unowned(address_ranges::Unowned::Service) => IdentityKind::Service,
            Owner::Unowned(address_ranges::Unowned::Outside) => IdentityKind::External,
        };
        if got.kind != kind {
            return fail(format!(
                "{} is {}, the snapshot says {:?}",
                self.words(place),
                self.describe(end.who),
                got.kind
            ));
        }
        match end.who {
            Owner::Pod(slot) => {
                let Some(known) = self.expected.pod(slot) else {
                    return fail("a slot is empty".to_owned());
                };
                let key = &known.pod.key;
                let same = self.snapshot.endpoint(got.endpoint).is_some_and(|endpoint| {
                    (endpoint.namespace, endpoint.name) == (key.namespace.as_str(), key.name.as_str())
                });
                if !same {
                    return fail(format!(
                        "{} is {key}, the snapshot says another endpoint",
                        self.words(place)
                    ));
                }
                // Nodes come first, so those that have an address are known.
                let wanted = known.node.and_then(|node| self.relation.node_number(node));
                let right = match wanted {
                    Some(number) => got.node == number,
                    None => self.relation.node_of(got.node).is_none(),
                };
                if !right {
                    return fail(format!(
                        "{} is hosted by {}, the snapshot says otherwise",
                        self.words(place),
                        known.pod.node.as_deref().unwrap_or("no node")
                    ));
                }
            }
            Owner::Node(name) => {
                let wanted = self.expected.node_name(name);
                let consistent = self
                    .relation
                    .node_number(name)
                    .is_none_or(|number| number == got.node)
                    && self.relation.node_of(got.node).is_none_or(|other| other == name);
                if self.snapshot.node_name(got.node) != Some(wanted) || !consistent {
                    return fail(format!(
                        "{} is node {wanted}, the snapshot says another node",
                        self.words(place)
                    ));
                }
            }
            Owner::Unseen(_) | Owner::Unowned(_) => {}
        }
        Ok(())
    }

    /// 3: a pod to itself and to its node, and what no row decides about.
    fn exemptions(&mut self, place: EndRef, end: &End, identity: &Identity) -> Result<(), Wrong> {
        let l4 = L4::NoPort { protocol: 255 };
        let wrong = |src: EndRef, dst: EndRef, what: String| {
            Err(Wrong {
                what,
                suspect: Suspect::Packet { src, dst, l4 },
            })
        };
        let Owner::Pod(slot) = end.who else {
            let decided = self
                .snapshot
                .judge_ends(identity, identity, true, l4, NodeExemption::Trusted);
            self.report.questions += 1;
            let denied = end.who.is_unknown() && !self.expected.settings().allow_unknown;
            let wanted = if denied { Effect::Unknown } else { Effect::Open };
            let right = |side: DirectionVerdict| side.effect == wanted && side.allow != denied;
            if right(decided.ingress) && right(decided.egress) {
                return Ok(());
            }
            return wrong(place, place, format!("{} is no pod", self.words(place)));
        };
        let Some(known) = self.expected.pod(slot) else {
            return Ok(());
        };
        let (node, template) = (known.node, known.pod.template_of.is_some());
        let decided = self
            .snapshot
            .judge_ends(identity, identity, true, l4, NodeExemption::Untrusted);
        self.report.questions += 1;
        let exempt =
            [decided.ingress, decided.egress].map(|side| side.effect == Effect::SelfTraffic && side.allow);
        if exempt != [true; 2] && !template {
            let what = format!("{} may speak to itself", self.words(place));
            return wrong(place, place, what);
        }
        let Some(number) = node.and_then(|node| self.relation.node_number(node)) else {
            return Ok(());
        };
        let host = Identity {
            kind: IdentityKind::Node,
            node: number,
            ..peer(identity.peer_class)
        };
        // What goes out is decided by a row of its own, of which 4 asks (TIERS 85).
        let of_row = subject(self.snapshot.own_node_row(identity.egress));
        let decided = self
            .snapshot
            .judge_ends(&of_row, &host, false, l4, NodeExemption::Untrusted);
        let to_node = match decided.egress.effect {
            Effect::Open | Effect::Profile => EXEMPT,
            _ => decided.egress,
        };
        for (src, dst, out) in [(identity, &host, to_node), (&host, identity, EXEMPT)] {
            for trust in [NodeExemption::Trusted, NodeExemption::Untrusted] {
                let decided = self.snapshot.judge_ends(src, dst, false, l4, trust);
                self.report.questions += 1;
                let right = match trust {
                    NodeExemption::Untrusted => [decided.ingress, decided.egress]
                        .iter()
                        .all(|side| side.effect != Effect::Node),
                    _ => (decided.ingress, decided.egress) == (EXEMPT, out),
                };
                if !right {
                    return Err(Wrong {
                        what: format!("{} and its node", self.words(place)),
                        suspect: Suspect::End(place),
                    });
                }
            }
        }
        Ok(())
    }

    /// 1: whether an endpoint of the snapshot is one.
    pub(super) fn endpoint_is_known(&self, key: ObjectKey) -> Result<(), Wrong> {
        let known = self.expected.slot(&key).and_then(|slot| self.expected.pod(slot));
        if known.is_some_and(|known| known.is_endpoint()) {
            return Ok(());
        }
        Err(Wrong {
            what: format!("the snapshot knows {key}, which has no place of its own"),
            suspect: Suspect::Anything,
        })
    }

    /// 1: every range of a family, cut where either side cuts.
    pub(super) fn ranges(&mut self, v4: bool) -> Result<(), Wrong> {
        let last = if v4 { u128::from(u32::MAX) } else { u128::MAX };
        self.ranges_within(v4, 0, last)
    }

    /// 1: the addresses from a first to a last one that no host has, cut where either side cuts or did.
    pub(super) fn ranges_within(&mut self, v4: bool, first: u128, last: u128) -> Result<(), Wrong> {
        let Some(theirs) = self.snapshot.range_borders(v4, first, last) else {
            return Err(Wrong {
                what: "the snapshot's address ranges share their tables".to_owned(),
                suspect: Suspect::Anything,
            });
        };
        let ours = self.expected.space.borders(v4, first, last);
        let mut borders: Vec<u128> = ours.iter().copied().chain(theirs).collect();
        borders.sort_unstable();
        borders.dedup();
        // What meant one thing may mean several now, and several one.
        let mut cuts = self.relation.cuts(v4, first, last).to_vec();
        cuts.extend(&borders);
        cuts.push(first);
        cuts.sort_unstable();
        cuts.dedup();
        let mut found = BTreeMap::new();
        for (at, begin) in cuts.iter().enumerate() {
            let end = cuts.get(at + 1).map_or(last, |next| next - 1);
            let range = self.expected.space.find_number(v4, *begin);
            let was = self.relation.range(v4, *begin).map(|observed| observed.end);
            let low = self.unowned_address(v4, *begin..=end, false);
            let high = self.unowned_address(v4, *begin..=end, true);
            for number in low.into_iter().chain(high) {
                let observed = self.unowned_end(v4, number, range)?;
                if Some(number) == low {
                    found.insert(number, observed);
                    if let Some(was) = was.filter(|was| was.meaning != observed.end.meaning) {
                        let address = matching::address(v4, number);
                        self.relation.note_moved(address, was, observed.end);
                    }
                }
            }
        }
        // Only what either side tells apart stays apart.
        let is_border = |number: &u128| {
            borders.binary_search(number).is_ok()
                && (*number != first
                    || self.expected.space.is_border(v4, *number)
                    || self.snapshot.is_range_border(v4, *number))
        };
        cuts.retain(is_border);
        let mut range = None;
        found.retain(|number, _| {
            let of = cuts.partition_point(|cut| cut <= number);
            range.replace(of) != Some(of)
        });
        let after = last.checked_add(1).filter(|after| {
            self.expected.space.is_border(v4, *after) || self.snapshot.is_range_border(v4, *after)
        });
        cuts.extend(after.filter(|after| !v4 || *after <= u128::from(u32::MAX)));
        self.relation.put_ranges(v4, first, last, &cuts, found);
        Ok(())
    }

    /// The first or last address that is in no host table and has no owner; None where there is none.
    fn unowned_address(
        &self,
        v4: bool,
        within: std::ops::RangeInclusive<u128>,
        from_end: bool,
    ) -> Option<u128> {
        let (mut low, mut high) = (*within.start(), *within.end());
        while low <= high {
            let number = if from_end { high } else { low };
            let address = matching::address(v4, number);
            let packets_have_it = v4 || !is_mapped(number);
            let somebodys = self.expected.is_claimed(address) || self.snapshot.is_host(address.into());
            if packets_have_it && !somebodys {
                return Some(number);
            }
            // All IPv4 addresses are passed over at once.
            if from_end {
                high = if packets_have_it {
                    high.checked_sub(1)?
                } else {
                    0xffff_0000_0000 - 1
                };
            } else {
                low = if packets_have_it {
                    low.checked_add(1)?
                } else {
                    0x1_0000_0000_0000
                };
            }
        }
        None
    }

    /// 2: an address without an owner.
    fn unowned_end(&mut self, v4: bool, number: u128, range: Range) -> Result<ObservedEnd, Wrong> {
        let address = matching::address(v4, number);
        let place = EndRef::Address(address);
        let end = self.expected.end_of(Owner::Unowned(range.place), range.blocks);
        let identity = self.snapshot.identify(Addr::from(address));
        self.report.addresses += 1;
        self.identity(place, &end, &identity)?;
        self.exemptions(place, &end, &identity)?;
        Ok(ObservedEnd::new(end, &identity, &self.snapshot))
    }

    /// 4: a row against everyone who can be a peer.
    pub(super) fn line(&mut self, line: RowSubject, columns: &mut Columns) -> Result<(), Wrong> {
        self.named.remove(&line);
        self.report.pairs += columns.len() as u64;
        if self.is_trivial(line) {
            return Ok(());
        }
        let mut lists = std::mem::take(&mut self.lists);
        let others = self.expected.lists_of(line.1, &mut lists);
        columns.begin(lists.named());
        let proven = self.pages(line, columns, &lists, others);
        self.lists = lists;
        proven
    }

    fn pages(
        &mut self,
        line: RowSubject,
        columns: &Columns,
        lists: &Lists,
        others: u32,
    ) -> Result<(), Wrong> {
        let (row, of) = line;
        let (mut last, mut hidden) = (None, None);
        for page in columns.pages() {
            let found = self.snapshot.page_of(cells(row), page.last_class());
            // Where no rule names any of them, they differ in their port names alone.
            let same = found.filter(|_| !page.is_named);
            if let Some(map) = same.and_then(|found| self.snapshot.only_port_map_on(found)) {
                let mut proven = true;
                for column in page.by_names() {
                    let decided = self.decided(of, others, column.1);
                    if last != Some((decided, map)) {
                        let cell = self.cell(line, column, decided, map);
                        last = cell.settle(&mut hidden)?.then_some((decided, map));
                        proven &= last.is_some();
                    }
                }
                if proven {
                    continue;
                }
            }
            for column in page.columns() {
                let (class, meaning) = *column;
                let decided = self.decided(of, lists.get(meaning, others), meaning);
                let map = match found {
                    Some(found) => self.snapshot.port_map_on(found, class),
                    None => self.snapshot.port_map_of(cells(row), class),
                };
                let map = map.unwrap_or(NO_MAP);
                if last != Some((decided, map)) {
                    let cell = self.cell(line, *column, decided, map);
                    last = cell.settle(&mut hidden)?.then_some((decided, map));
                }
            }
        }
        hidden.map_or(Ok(()), Err)
    }

    /// 4: a row against one peer.
    pub(super) fn one(&mut self, line: RowSubject, column: ClassMeaning) -> Result<(), Wrong> {
        self.report.pairs += 1;
        if self.is_trivial(line) {
            return Ok(());
        }
        let list = self.expected.list_of(line.1, column.1);
        let decided = self.decided(line.1, list, column.1);
        let map = self
            .snapshot
            .port_map_of(cells(line.0), column.0)
            .unwrap_or(NO_MAP);
        match self.cell(line, column, decided, map) {
            Cell::Right | Cell::Unseen => Ok(()),
            Cell::Hidden(wrong) | Cell::Wrong(wrong) => Err(wrong),
        }
    }

    /// Whether no policy governs on either side: then there is no cell.
    fn is_trivial(&self, (row, of): RowSubject) -> bool {
        row == 0 && self.expected.subject_of(of).policies.is_empty()
    }

    fn decided(&mut self, of: u32, list: u32, meaning: u32) -> u32 {
        if self.expected.subject_of(of).policies.is_empty() {
            OPEN
        } else {
            self.expected.decide(of, list, meaning)
        }
    }

    /// 5: one cell, unless its port map was held against the same decisions before.
    fn cell(&mut self, line: RowSubject, column: ClassMeaning, decided: u32, map: u32) -> Cell {
        // Which policies isolate is the row's own: asked once for each row, whatever the map.
        let names =
            decided != OPEN && self.expected.decisions.isolates(decided) && !self.named.contains(&line);
        let known = map != NO_MAP && self.matched.contains(&(decided, map));
        if known && !names {
            return Cell::Right;
        }
        if let Some(l4) = self.contradiction(line, column, decided, map) {
            return self.visible(line, column, l4);
        }
        if names {
            self.named.insert(line);
        }
        if map != NO_MAP {
            self.matched.insert((decided, map));
        }
        Cell::Right
    }

    /// Asks at every border of either side; the first packet that is decided otherwise.
    fn contradiction(
        &mut self,
        line: RowSubject,
        column: ClassMeaning,
        decided: u32,
        map: u32,
    ) -> Option<L4> {
        let wanted = (decided != OPEN).then(|| self.expected.decisions.spans(decided).clone());
        let theirs = self.snapshot.port_spans(cells(line.0), Some(map));
        let by_source = theirs.iter().flat_map(|spans| &spans.by_source);
        let by_source = by_source.flat_map(|it| it.spans.iter().map(|(first, _)| *first));
        let own = wanted.iter().flat_map(|spans| spans.protocols.iter().flatten());
        let own = own.flat_map(|(_, outcomes)| outcomes.each().map(|(first, _)| first));
        let mut sources: Vec<u16> = own.chain(by_source).chain([0]).collect();
        sources.sort_unstable();
        sources.dedup();
        for (at, protocol) in WITH_PORTS.into_iter().enumerate() {
            let own = wanted
                .iter()
                .flat_map(|spans| &spans.protocols[at])
                .map(|(port, _)| *port);
            let mut ports: Vec<u16> = own.chain([0, u16::MAX]).collect();
            if let Some(theirs) = &theirs {
                ports.extend(theirs.protocols[at].1.iter().map(|(port, _)| *port));
            }
            ports.sort_unstable();
            ports.dedup();
            let asked = ports
                .iter()
                .flat_map(|port| sources.iter().map(|source| (*port, *source)));
            for (port, source) in asked {
                let asked = Asked::Port(protocol, port, source);
                let outcome = wanted
                    .as_ref()
                    .map_or(Outcome::Open, |spans| spans.outcome(asked));
                let l4 = L4::Port {
                    protocol: protocol.number(),
                    port,
                    source,
                };
                if !self.decides(line, column, l4, outcome) {
                    return Some(l4);
                }
            }
        }
        let mut portless: Vec<u8> = PORTLESS.to_vec();
        portless.extend(
            wanted
                .iter()
                .flat_map(|spans| spans.others.iter().map(|(number, _)| *number)),
        );
        if let Some(theirs) = &theirs {
            portless.extend(theirs.others.iter().map(|(number, _)| *number));
        }
        portless.sort_unstable();
        portless.dedup();
        let mut asked: Vec<(L4, Asked)> = portless
            .into_iter()
            .map(|protocol| (L4::NoPort { protocol }, Asked::Portless(protocol)))
            .collect();
        for protocol in ICMP {
            let mut types = vec![0, 0x0800, u16::MAX];
            for (number, spans) in wanted.iter().flat_map(|spans| &spans.by_type) {
                types.extend(
                    spans
                        .iter()
                        .map(|(first, _)| *first)
                        .filter(|_| *number == protocol),
                );
            }
            for (number, spans) in theirs.iter().flat_map(|spans| &spans.by_type) {
                types.extend(
                    spans
                        .iter()
                        .map(|(first, _)| *first)
                        .filter(|_| *number == protocol),
                );
            }
            types.sort_unstable();
            types.dedup();
            asked.extend(types.into_iter().map(|port| {
                let l4 = L4::Port {
                    protocol,
                    port,
                    source: 0,
                };
                (l4, Asked::Icmp(protocol, port))
            }));
        }
        asked.into_iter().find_map(|(l4, asked)| {
            let outcome = wanted
                .as_ref()
                .map_or(Outcome::Open, |spans| spans.outcome(asked));
            (!self.decides(line, column, l4, outcome)).then_some(l4)
        })
    }

    /// Puts one question, and whether the answer is what has to come of the packet.
    fn decides(&mut self, line: RowSubject, column: ClassMeaning, l4: L4, outcome: Outcome) -> bool {
        let (own, other) = (subject(line.0), peer(column.0));
        self.report.questions += 1;
        let judge = |src, dst| {
            self.snapshot
                .judge_ends(src, dst, false, l4, NodeExemption::Untrusted)
        };
        let decided = match self.expected.subject_of(line.1).direction {
            Direction::Ingress => judge(&other, &own).ingress,
            Direction::Egress => judge(&own, &other).egress,
        };
        match outcome {
            Outcome::Open => {
                let wanted = match self.expected.subject_of(line.1).policies.is_empty() {
                    true => Effect::Open,
                    false => Effect::Profile,
                };
                // Towards the own node, both are an exemption.
                let alike = decided.effect == wanted
                    || [Effect::Open, Effect::Profile].contains(&decided.effect)
                        && self.relation.subjects_of(line).is_empty();
                decided.allow && decided.provenance == NONE && alike
            }
            Outcome::Denied(list) => {
                !decided.allow
                    && decided.effect == Effect::Isolated
                    && self.names_policies(decided.provenance, line.1, list)
            }
            Outcome::Rule(rule) => {
                let wanted = match self.expected.rules.rule(rule).action == Action::Allow {
                    true => (true, Effect::Allow),
                    false => (false, Effect::Deny),
                };
                (decided.allow, decided.effect) == wanted && self.names_rule(decided.provenance, rule)
            }
        }
    }

    /// Whether a provenance is this rule's.
    fn names_rule(&mut self, provenance: u32, rule: u32) -> bool {
        if self.rule_names.contains(&(provenance, rule)) {
            return true;
        }
        let wanted = self.expected.rules.rule(rule);
        let right = match self.snapshot.provenance(provenance) {
            Some(Provenance::Rule { policy, rule }) => {
                rule == wanted.index
                    && policy == self.expected.rules.named(wanted.policy)
                    && self.answers_as(provenance, &[wanted.policy])
            }
            Some(Provenance::Isolating(_)) | None => false,
        };
        if right {
            self.rule_names.insert((provenance, rule));
        }
        right
    }

    /// Whether a provenance is the list of policies by whose tier's default a subject is denied.
    fn names_policies(&mut self, provenance: u32, of: u32, list: Option<u32>) -> bool {
        if self.isolating_names.contains(&(provenance, of, list)) {
            return true;
        }
        let rules = &self.expected.rules;
        let wanted = rules.denying(list, &self.expected.subject_of(of).policies);
        let right = match self.snapshot.provenance(provenance) {
            Some(Provenance::Isolating(policies)) => {
                let names = wanted.iter().map(|number| rules.named(*number));
                policies.into_iter().eq(names) && self.answers_as(provenance, wanted)
            }
            Some(Provenance::Rule { .. }) | None => false,
        };
        if right {
            self.isolating_names.insert((provenance, of, list));
        }
        right
    }

    /// Whether what is denied with a provenance is answered as these policies say, whatever the configuration says of those that
    /// leave it open.
    fn answers_as(&self, provenance: u32, policies: &[u32]) -> bool {
        [DenialAnswer::Drop, DenialAnswer::Reset]
            .into_iter()
            .all(|otherwise| {
                let wanted = self.expected.rules.answer(policies, otherwise);
                self.snapshot.denial_answer(provenance, otherwise) == wanted
            })
    }

    /// A cell that says something else is wrong if there is a packet that is decided by it: of one family, and not from
    /// an end to itself. What decides about packets to the node that hosts a pod decides about none to pods.
    fn visible(&mut self, line: RowSubject, column: ClassMeaning, l4: L4) -> Cell {
        let direction = self.expected.subject_of(line.1).direction;
        let peers = self.relation.peers_in(column);
        let owns = self.relation.subjects_of(line);
        let own_nodes = self.relation.own_node_subjects_of(line);
        let pairs = owns.iter().map(|own| (own, true));
        let mut hidden = None;
        for (own, any_peer) in pairs.chain(own_nodes.iter().map(|own| (own, false))) {
            for other in &peers {
                let (src, dst) = match direction {
                    Direction::Ingress => (*other, *own),
                    Direction::Egress => (*own, *other),
                };
                if !self.can_meet(src, dst) || !any_peer && self.relation.is_pod(*other) {
                    continue;
                }
                let wrong = Wrong {
                    what: format!("{} is decided otherwise", direction.word()),
                    suspect: Suspect::Packet { src, dst, l4 },
                };
                if any_peer || self.relation.is_hosted_by(*own, *other) {
                    return Cell::Wrong(wrong);
                }
                hidden = Some(wrong);
            }
        }
        if hidden.is_none() {
            self.excused = true;
        }
        hidden.map_or(Cell::Unseen, Cell::Hidden)
    }

    /// Forgets what was compared with records that differ now.
    pub(super) fn forget(&mut self, changes: &SnapshotChanges) {
        if !changes.port_maps.is_empty() {
            self.matched.retain(|(_, map)| !changes.port_maps.contains(map));
        }
        if !changes.provenance.is_empty() {
            self.rule_names.retain(|(at, _)| !changes.provenance.contains(at));
            self.isolating_names
                .retain(|(at, ..)| !changes.provenance.contains(at));
        }
    }

    /// Whether a packet between two ends can be, and is judged.
    fn can_meet(&self, src: EndRef, dst: EndRef) -> bool {
        match (src, dst) {
            (EndRef::Address(src), EndRef::Address(dst)) => src.is_ipv4() == dst.is_ipv4() && src != dst,
            (EndRef::Name(src), EndRef::Name(dst)) => src != dst || self.is_template(src),
            _ => true,
        }
    }

    /// Whether a slot holds a template, which stands for pods that are not each other.
    pub(super) fn is_template(&self, slot: u32) -> bool {
        self.expected
            .pod(slot)
            .is_some_and(|known| known.pod.template_of.is_some())
    }
}

pub(super) fn key_of(endpoint: &Endpoint<'_>) -> ObjectKey {
    ObjectKey {
        namespace: endpoint.namespace.to_owned(),
        name: endpoint.name.to_owned(),
    }
}

/// The row of a number.
pub(super) fn cells(row: u32) -> Row {
    if row == 0 { Row::Open } else { Row::Cells(row) }
}

fn word(allow: bool) -> &'static str {
    if allow { "allowed" } else { "denied" }
}
