//! What each number of a snapshot stands for: the relation between its peer classes, groups and rows and what the
//! objects say, counted so that it follows when ends come and go.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use hashbrown::{HashMap, HashSet};
use ringwall_dataplane::classify::{Identity, IdentityKind, Snapshot};

use super::expected::{End, NO_POLICY_OUT, Owner};

/// An end that can be asked about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum EndRef {
    Address(IpAddr),
    /// A pod or template by name, apart from any address: its slot.
    Name(u32),
}

/// What the snapshot says about an end, and what it has to stand for.
#[derive(Clone, Copy, Debug)]
pub(super) struct ObservedEnd {
    pub end: End,
    pub class: u32,
    /// Rows, by direction; None for ends that no row decides about.
    pub rows: Option<[u32; 2]>,
    /// The row of what goes to the node that hosts it.
    pub own_node: u32,
    /// Number of the node that it is, or that hosts it.
    pub node: u32,
}

impl ObservedEnd {
    pub(super) fn new(end: End, identity: &Identity, snapshot: &Snapshot) -> Self {
        let is_pod = identity.kind == IdentityKind::Pod;
        Self {
            end,
            class: identity.peer_class,
            rows: is_pod.then_some([identity.ingress, identity.egress]),
            own_node: if is_pod {
                snapshot.own_node_row(identity.egress)
            } else {
                0
            },
            node: identity.node,
        }
    }

    /// What decides about it, but for the node that hosts it.
    fn lines(&self) -> impl Iterator<Item = RowSubject> {
        self.rows.into_iter().flatten().zip(self.end.subjects)
    }

    /// What decides about its packets to the node that hosts it; None where both sides say that nothing does.
    fn own_node_line(&self) -> Option<RowSubject> {
        let line = (self.own_node, self.end.own_node);
        (self.rows.is_some() && line != (0, NO_POLICY_OUT)).then_some(line)
    }
}

/// A row, by its number, and the subject that it decides about; the subject says in which direction.
pub(super) type RowSubject = (u32, u32);

/// A peer class and the meaning of some end in it.
pub(super) type ClassMeaning = (u32, u32);

/// The relation.
#[derive(Debug, Default)]
pub(super) struct NumberRelation {
    ends: HashMap<EndRef, ObservedEnd>,
    /// Ranges of addresses without an owner, by family (IPv4 first) and an address of the range.
    ranges: [BTreeMap<u128, ObservedEnd>; 2],
    columns: BTreeMap<ClassMeaning, u32>,
    lines: BTreeMap<RowSubject, u32>,
    /// Node names by number of the snapshot and back, with the number of addresses.
    node_numbers: HashMap<u32, (u32, u32)>,
    nodes: HashMap<u32, u32>,
    /// Names of nodes that got their first address or lost their last one, since that was last asked for.
    changed_nodes: BTreeSet<u32>,
    /// Ends that were others, since that was last asked for, and what they were.
    moved: Vec<(EndRef, ObservedEnd)>,
    /// Addresses without an owner, one of each range that means something else, then and now.
    moved_ranges: Vec<(IpAddr, End, End)>,
    /// Where both sides' ranges begin, by family.
    cuts: [Vec<u128>; 2],
    /// What has come since it was last asked for.
    new_columns: BTreeSet<ClassMeaning>,
    new_lines: BTreeSet<RowSubject>,
}

impl NumberRelation {
    /// Takes what was found out about an end, in place of what was known.
    pub(super) fn put(&mut self, place: EndRef, observed: ObservedEnd) {
        self.count(&observed);
        if let Some(before) = self.ends.insert(place, observed) {
            self.uncount(&before);
            if before.end != observed.end || before.class != observed.class {
                self.moved.push((place, before));
            }
        }
    }

    /// Forgets an end.
    pub(super) fn drop(&mut self, place: EndRef) {
        if let Some(before) = self.ends.remove(&place) {
            self.uncount(&before);
        }
    }

    /// Every end.
    pub(super) fn ends(&self) -> impl Iterator<Item = (&EndRef, &ObservedEnd)> + '_ {
        self.ends.iter()
    }

    /// Takes what was found out about the ranges from a first to a last address of a family, each by an address of it
    /// without an owner, in place of what was known. `cuts` are where ranges begin, those with and without such an address, the one after the last
    /// among them.
    pub(super) fn put_ranges(
        &mut self,
        v4: bool,
        first: u128,
        last: u128,
        cuts: &[u128],
        ranges: BTreeMap<u128, ObservedEnd>,
    ) {
        let family = usize::from(!v4);
        for observed in ranges.values() {
            self.count(observed);
        }
        let before = self.ranges[family].range(first..=last);
        let before: Vec<u128> = before.map(|(number, _)| *number).collect();
        for number in before {
            if let Some(observed) = self.ranges[family].remove(&number) {
                self.uncount(&observed);
            }
        }
        self.ranges[family].extend(ranges);
        let all = &mut self.cuts[family];
        let from = all.partition_point(|cut| *cut < first);
        let to = all.partition_point(|cut| last.checked_add(1).is_none_or(|after| *cut <= after));
        all.splice(from..to, cuts.iter().copied());
        // What goes on over the first or the last address is one range, asked by one address.
        for edge in [Some(first), last.checked_add(1)].into_iter().flatten() {
            self.join_ranges(family, edge);
        }
    }

    /// Keeps one address of the range that holds an address.
    fn join_ranges(&mut self, family: usize, number: u128) {
        let above = self.cuts[family].partition_point(|cut| *cut <= number);
        let begin = above
            .checked_sub(1)
            .and_then(|at| self.cuts[family].get(at))
            .copied()
            .unwrap_or(0);
        let end = self.cuts[family].get(above).map_or(u128::MAX, |next| next - 1);
        let own = self.ranges[family].range(begin..=end).skip(1);
        let more: Vec<u128> = own.map(|(number, _)| *number).collect();
        for number in more {
            if let Some(observed) = self.ranges[family].remove(&number) {
                self.uncount(&observed);
            }
        }
    }

    /// Where ranges begin, from a first to a last address.
    pub(super) fn cuts(&self, v4: bool, first: u128, last: u128) -> &[u128] {
        let cuts = &self.cuts[usize::from(!v4)];
        let from = cuts.partition_point(|cut| *cut < first);
        let to = cuts.partition_point(|cut| *cut <= last);
        &cuts[from..to]
    }

    /// What is known of the range that holds an address.
    pub(super) fn range(&self, v4: bool, number: u128) -> Option<&ObservedEnd> {
        let family = usize::from(!v4);
        let above = self.cuts[family].partition_point(|cut| *cut <= number);
        let begin = above.checked_sub(1).and_then(|at| self.cuts[family].get(at))?;
        let end = self.cuts[family].get(above).map_or(u128::MAX, |next| next - 1);
        let found = self.ranges[family].range(begin..=&end).next();
        found.map(|(_, observed)| observed)
    }

    /// Notes that an address without an owner means something else.
    pub(super) fn note_moved(&mut self, address: IpAddr, was: End, is: End) {
        self.moved_ranges.push((address, was, is));
    }

    /// Addresses without an owner that mean something else than they did, since this was last asked.
    pub(super) fn take_moved_ranges(&mut self) -> Vec<(IpAddr, End, End)> {
        std::mem::take(&mut self.moved_ranges)
    }

    /// Takes what was found out about an address that is part of its range alone: it may be the first one of it that
    /// has no owner.
    pub(super) fn put_in_range(&mut self, address: IpAddr, observed: ObservedEnd) {
        let family = usize::from(!address.is_ipv4());
        let number = super::matching::number(address);
        let above = self.cuts[family].partition_point(|first| *first <= number);
        let first = self.cuts[family].get(above.wrapping_sub(1)).copied().unwrap_or(0);
        let last = self.cuts[family].get(above).map_or(u128::MAX, |next| next - 1);
        if self.ranges[family].range(first..=last).next().is_none() {
            self.count(&observed);
            self.ranges[family].insert(number, observed);
        }
    }

    fn count(&mut self, observed: &ObservedEnd) {
        let column = (observed.class, observed.end.meaning);
        let ends = self.columns.entry(column).or_default();
        *ends += 1;
        if *ends == 1 {
            self.new_columns.insert(column);
        }
        if let Owner::Node(name) = observed.end.who {
            let of_name = self.node_numbers.entry(name).or_insert((observed.node, 0));
            of_name.1 += 1;
            if of_name.1 == 1 {
                self.changed_nodes.insert(name);
            }
            self.nodes.insert(observed.node, name);
        }
        for line in observed.lines().chain(observed.own_node_line()) {
            let ends = self.lines.entry(line).or_default();
            *ends += 1;
            if *ends == 1 {
                self.new_lines.insert(line);
            }
        }
    }

    fn uncount(&mut self, observed: &ObservedEnd) {
        let column = (observed.class, observed.end.meaning);
        if let Some(ends) = self.columns.get_mut(&column) {
            *ends -= 1;
            if *ends == 0 {
                self.columns.remove(&column);
                self.new_columns.remove(&column);
            }
        }
        if let Owner::Node(name) = observed.end.who
            && let Some((number, ends)) = self.node_numbers.get_mut(&name)
        {
            *ends -= 1;
            if *ends == 0 {
                let number = *number;
                self.node_numbers.remove(&name);
                self.changed_nodes.insert(name);
                self.nodes.remove(&number);
            }
        }
        for line in observed.lines().chain(observed.own_node_line()) {
            if let Some(ends) = self.lines.get_mut(&line) {
                *ends -= 1;
                if *ends == 0 {
                    self.lines.remove(&line);
                    self.new_lines.remove(&line);
                }
            }
        }
    }

    /// The snapshot's number of a node, by the number of its name; None where nothing has an address of it.
    pub(super) fn node_number(&self, name: u32) -> Option<u32> {
        self.node_numbers.get(&name).map(|(number, _)| *number)
    }

    /// The node, by the number of its name, that a number of the snapshot stands for.
    pub(super) fn node_of(&self, number: u32) -> Option<u32> {
        self.nodes.get(&number).copied()
    }

    pub(super) fn columns(&self) -> impl Iterator<Item = ClassMeaning> + '_ {
        self.columns.keys().copied()
    }

    pub(super) fn lines(&self) -> impl Iterator<Item = RowSubject> + '_ {
        self.lines.keys().copied()
    }

    /// Lines of a row.
    pub(super) fn lines_of(&self, row: u32) -> impl Iterator<Item = RowSubject> + '_ {
        self.lines
            .range((row, 0)..=(row, u32::MAX))
            .map(|(line, _)| *line)
    }

    /// Columns of the 64 classes from this one on.
    pub(super) fn columns_from(&self, class: u32) -> impl Iterator<Item = ClassMeaning> + '_ {
        let end = class.saturating_add(64);
        self.columns
            .range((class, 0)..(end, 0))
            .map(|(column, _)| *column)
    }

    /// Names of nodes that got their first address or lost their last one since this was last asked.
    pub(super) fn take_changed_nodes(&mut self) -> BTreeSet<u32> {
        std::mem::take(&mut self.changed_nodes)
    }

    /// Ends that are others than they were, and what they were, since this was last asked.
    pub(super) fn take_moved(&mut self) -> Vec<(EndRef, ObservedEnd)> {
        std::mem::take(&mut self.moved)
    }

    /// As [`Self::take_moved`], which is yet to be asked.
    pub(super) fn moved(&self) -> &[(EndRef, ObservedEnd)] {
        &self.moved
    }

    /// What is known of an end.
    pub(super) fn observed(&self, place: EndRef) -> Option<&ObservedEnd> {
        self.ends.get(&place)
    }

    pub(super) fn take_new(&mut self) -> (BTreeSet<RowSubject>, BTreeSet<ClassMeaning>) {
        (
            std::mem::take(&mut self.new_lines),
            std::mem::take(&mut self.new_columns),
        )
    }

    /// Distinct columns and lines.
    pub(super) fn sizes(&self) -> (usize, usize) {
        (self.columns.len(), self.lines.len())
    }

    /// Ends about which a line decides, whoever the peer is.
    pub(super) fn subjects_of(&self, line: RowSubject) -> Vec<EndRef> {
        self.ends_where(|observed| observed.lines().any(|own| own == line))
    }

    /// Ends about whose packets to the node that hosts them a line decides.
    pub(super) fn own_node_subjects_of(&self, line: RowSubject) -> Vec<EndRef> {
        self.ends_where(|observed| observed.own_node_line() == Some(line))
    }

    fn ends_where(&self, holds: impl Fn(&ObservedEnd) -> bool) -> Vec<EndRef> {
        let ends = self.ends.iter().filter(|(_, observed)| holds(observed));
        let mut places: Vec<EndRef> = ends.map(|(place, _)| *place).collect();
        places.sort_unstable();
        places
    }

    /// Whether an end is a pod's.
    pub(super) fn is_pod(&self, place: EndRef) -> bool {
        self.ends
            .get(&place)
            .is_some_and(|observed| observed.rows.is_some())
    }

    /// Whether one end is a pod and the other its own node.
    pub(super) fn is_hosted_by(&self, pod: EndRef, node: EndRef) -> bool {
        let [pod, node] = [pod, node].map(|end| self.ends.get(&end));
        pod.zip(node).is_some_and(|(pod, node)| {
            pod.rows.is_some() && matches!(node.end.who, Owner::Node(_)) && pod.node == node.node
        })
    }

    /// Takes over which rows lead to which others for the node that hosts a pod, where one of these rows leads elsewhere.
    pub(super) fn follow_own_nodes(&mut self, rows: &[u32], older: &Snapshot, snapshot: &Snapshot) {
        let elsewhere = |row: &&u32| older.own_node_row(**row) != snapshot.own_node_row(**row);
        let rows: HashSet<u32> = rows.iter().filter(elsewhere).copied().collect();
        if rows.is_empty() {
            return;
        }
        let led = |observed: &ObservedEnd| observed.rows.is_some_and(|[_, egress]| rows.contains(&egress));
        let ends = self.ends.iter().filter(|(_, observed)| led(observed));
        let ends: Vec<(EndRef, ObservedEnd)> = ends.map(|(place, observed)| (*place, *observed)).collect();
        for (place, observed) in ends {
            if let Some([_, egress]) = observed.rows {
                let own_node = snapshot.own_node_row(egress);
                self.put(place, ObservedEnd { own_node, ..observed });
            }
        }
    }

    /// Ends in a column.
    pub(super) fn peers_in(&self, column: ClassMeaning) -> Vec<EndRef> {
        let in_column = |observed: &ObservedEnd| (observed.class, observed.end.meaning) == column;
        let mut places: Vec<EndRef> = self
            .ends
            .iter()
            .filter(|(_, observed)| in_column(observed))
            .map(|(place, _)| *place)
            .collect();
        for (v4, ranges) in [true, false].into_iter().zip(&self.ranges) {
            let ranges = ranges.iter().filter(|(_, observed)| in_column(observed));
            places.extend(ranges.map(|(first, _)| EndRef::Address(super::matching::address(v4, *first))));
        }
        places.sort_unstable();
        places
    }

    /// Every end, and an address of every range.
    pub(super) fn places(&self) -> Vec<EndRef> {
        let mut places: Vec<EndRef> = self.ends.keys().copied().collect();
        for (v4, ranges) in [true, false].into_iter().zip(&self.ranges) {
            places.extend(
                ranges
                    .keys()
                    .map(|first| EndRef::Address(super::matching::address(v4, *first))),
            );
        }
        places.sort_unstable();
        places
    }
}

/// Somebody of whom only the row matters: a subject to be judged.
pub(super) fn subject(row: u32) -> Identity {
    Identity {
        kind: IdentityKind::Pod,
        ingress: row,
        egress: row,
        ..peer(0)
    }
}

/// Somebody of whom only the class matters: a peer.
pub(super) fn peer(class: u32) -> Identity {
    Identity {
        kind: IdentityKind::External,
        endpoint: u32::MAX,
        node: u32::MAX,
        peer_class: class,
        ingress: 0,
        egress: 0,
        epoch: 0,
    }
}
