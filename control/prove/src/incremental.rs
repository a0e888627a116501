//! From the proof of one snapshot to the proof of its successor: what neither the objects nor the tables touched is
//! carried over.
//!
//! Both sides are compared by the checker itself, the states by the difference of their maps, the snapshots by the
//! difference of their tables. The argument is in the crate's DESIGN.md; the numbers in comments are its steps.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
    time::Instant,
};

use hashbrown::{HashMap, HashSet};
use imbl::{OrdMap, ordmap::DiffItem};
use ipnet::IpNet;
use ringwall_dataplane::classify::{IdentityKind, L4, RangeNodes, Snapshot, SnapshotChanges};
use ringwall_policy::{Cluster, Node, ObjectKey};

use super::{
    expected::{End, Lists, Owner, Replaced},
    matching,
    number_relation::{ClassMeaning, EndRef, ObservedEnd},
    policy::Policy,
    proof::{Proof, Suspect, Wrong, cells, key_of},
    report::{Difference, Report},
    rules::Direction,
};

/// What has to be looked at again.
#[derive(Debug, Default)]
struct Touched {
    ends: BTreeSet<EndRef>,
    /// Endpoints of the snapshot that may have no owner.
    endpoints: BTreeSet<ObjectKey>,
    /// Names that no longer exist.
    gone: BTreeSet<ObjectKey>,
    /// Whether all address ranges are.
    ranges: bool,
    /// Address ranges that are, as numbers of a family (whether IPv4), first to last.
    spans: Vec<(bool, u128, u128)>,
}

impl Proof {
    /// Proves the successor. None where all of it has to be proven anew.
    pub(super) fn follow(
        &mut self,
        cluster: &Cluster,
        snapshot: &Arc<Snapshot>,
    ) -> Option<Result<Report, Box<Difference>>> {
        let begun = Instant::now();
        if self.has_grown() || self.excused || self.expected.cluster().settings != cluster.settings {
            return None;
        }
        // Where tiers have other places, so has every policy.
        if !self.expected.rules.has_tiers_of(cluster) {
            return None;
        }
        let changes = snapshot.changes_since(&self.snapshot)?;
        if changes.nodes {
            return None;
        }
        let older = std::mem::replace(&mut self.snapshot, Arc::clone(snapshot));
        self.report = Report::default();
        self.relation.take_moved();
        self.relation.take_moved_ranges();
        self.expected.terms_stay();
        let mut touched = Touched::default();
        self.touched_by_ranges(&changes, &older, &mut touched);
        self.touched_by_tables(&changes, &older, &mut touched);
        let mut replaced = self.touched_by_policies(cluster, &mut touched);
        self.touched_by_address_sets(cluster, &mut replaced, &mut touched);
        self.touched_by_namespaces(cluster, &mut touched);
        self.touched_by_nodes(cluster, &mut touched);
        self.touched_by_pods(cluster, &mut touched);
        let ends = self.ends_again(&touched);
        if let Some(replaced) = replaced {
            self.reseat(&replaced);
        }
        let proven = ends
            .and_then(|()| self.cells_again(&changes, &older))
            .and_then(|()| self.epochs_again(cluster, &touched, &older));
        self.expected.follow(cluster);
        self.report.classes = self.classes();
        self.report.micros = begun.elapsed().as_micros() as u64;
        Some(match proven {
            Ok(()) => Ok(self.report),
            Err(wrong) => Err(self.explain(wrong)),
        })
    }

    /// 6: addresses that no host has, where the tries differ.
    fn touched_by_ranges(&mut self, changes: &SnapshotChanges, older: &Snapshot, touched: &mut Touched) {
        if !changes.ranges {
            return;
        }
        let nodes = self.range_nodes.take().or_else(|| RangeNodes::of(older));
        let followed = nodes.and_then(|mut nodes| {
            let spans = nodes.follow(older, &self.snapshot)?;
            Some((nodes, spans))
        });
        match followed {
            Some((nodes, spans)) => {
                self.range_nodes = Some(nodes);
                touched.spans = spans;
            }
            None => touched.ranges = true,
        }
    }

    /// 6: addresses that came into an address set or left it.
    fn touched_by_address_sets(
        &mut self,
        cluster: &Cluster,
        replaced: &mut Option<Replaced>,
        touched: &mut Touched,
    ) {
        // A new block cuts the address space as it is now.
        let cut_already = replaced.as_ref().is_some_and(|it| !it.blocks.is_empty());
        let prefixes = self.expected.replace_address_sets(cluster, cut_already);
        if prefixes.is_empty() {
            return;
        }
        touched.spans.extend(prefixes.iter().map(|prefix| {
            let (first, last) = matching::span(prefix);
            (matches!(prefix, IpNet::V4(_)), first, last)
        }));
        replaced.get_or_insert_default().blocks.extend(prefixes);
    }

    /// 6: ends of which some record that answers for them differs.
    fn touched_by_tables(&self, changes: &SnapshotChanges, older: &Snapshot, touched: &mut Touched) {
        touched
            .ends
            .extend(changes.hosts.iter().map(|addr| EndRef::Address((*addr).into())));
        let (mut nodes, mut places) = (HashSet::new(), false);
        for identity in &changes.identities {
            // Whoever had this identity was proven to be what it says.
            match identity.kind {
                IdentityKind::Pod => {
                    if let Some(endpoint) = older.endpoint(identity.endpoint) {
                        self.touch(&key_of(&endpoint), touched);
                    }
                }
                IdentityKind::Node => drop(nodes.insert(identity.node)),
                IdentityKind::External | IdentityKind::Unknown | IdentityKind::Service => places = true,
            }
        }
        if places || !nodes.is_empty() {
            touched.ranges |= places;
            let concerned = |observed: &ObservedEnd| match observed.end.who {
                Owner::Pod(_) => false,
                Owner::Node(_) => nodes.contains(&observed.node),
                Owner::Unseen(_) | Owner::Unowned(_) => places,
            };
            let ends = self.relation.ends().filter(|(_, observed)| concerned(observed));
            touched.ends.extend(ends.map(|(place, _)| *place));
        }
        for number in changes.endpoints.iter().chain(&changes.names) {
            if let Some(endpoint) = older.endpoint(*number) {
                self.touch(&key_of(&endpoint), touched);
            }
            if let Some(endpoint) = self.snapshot.endpoint(*number) {
                let key = key_of(&endpoint);
                self.touch(&key, touched);
                touched.endpoints.insert(key);
            }
        }
    }

    /// Everything that is asked about a pod.
    fn touch(&self, key: &ObjectKey, touched: &mut Touched) {
        let Some(slot) = self.expected.slot(key) else {
            return;
        };
        touched.ends.insert(EndRef::Name(slot));
        if let Some(known) = self.expected.pod(slot) {
            touched
                .ends
                .extend(known.pod.addresses.iter().copied().map(EndRef::Address));
        }
    }

    /// 6: what policies say. Whoever they concern is the same one as before: only what its numbers have to stand for is
    /// another.
    fn touched_by_policies(&mut self, cluster: &Cluster, touched: &mut Touched) -> Option<Replaced> {
        let before = self.expected.cluster();
        let (networks, tiered) = (before.policies.clone(), before.tiered.clone());
        let (mut gone, mut new) = (Vec::new(), Vec::new());
        differing(&networks, &cluster.policies, Policy::Network, &mut gone, &mut new);
        differing(&tiered, &cluster.tiered, Policy::Tiered, &mut gone, &mut new);
        if gone.is_empty() && new.is_empty() {
            return None;
        }
        let replaced = self.expected.replace_policies(cluster, &gone, &new);
        touched.ranges |= !replaced.blocks.is_empty();
        Some(replaced)
    }

    /// 6: pods of namespaces that came, went or have other labels.
    fn touched_by_namespaces(&mut self, cluster: &Cluster, touched: &mut Touched) {
        let before = self.expected.cluster().namespaces.clone();
        let changed: HashSet<String> = before
            .diff(&cluster.namespaces)
            .map(|item| match item {
                DiffItem::Add(name, _) | DiffItem::Remove(name, _) => name.clone(),
                DiffItem::Update { new, .. } => new.0.clone(),
            })
            .collect();
        if changed.is_empty() {
            return;
        }
        for slot in self.expected.replace_namespaces(cluster, &changed) {
            touched.ends.insert(EndRef::Name(slot));
            if let Some(known) = self.expected.pod(slot) {
                touched
                    .ends
                    .extend(known.pod.addresses.iter().copied().map(EndRef::Address));
            }
        }
    }

    /// Sets anew what the numbers of ends have to stand for.
    fn reseat(&mut self, replaced: &Replaced) {
        let mut places: Vec<EndRef> = Vec::new();
        for slot in self.expected.slots_of(replaced) {
            places.push(EndRef::Name(slot));
            if let Some(known) = self.expected.pod(slot) {
                places.extend(known.pod.addresses.iter().copied().map(EndRef::Address));
            }
        }
        let (few, many): (Vec<IpNet>, Vec<IpNet>) = replaced.blocks.iter().partition(|block| is_small(block));
        for block in few {
            let (v4, (first, last)) = (matches!(block, IpNet::V4(_)), matching::span(&block));
            places.extend((first..=last).map(|number| EndRef::Address(matching::address(v4, number))));
        }
        if !many.is_empty() {
            let inside = |place: &&EndRef| match place {
                EndRef::Address(address) => many.iter().any(|block| block.contains(address)),
                EndRef::Name(_) => false,
            };
            places.extend(self.relation.ends().map(|(place, _)| place).filter(inside));
        }
        for place in places {
            let Some(observed) = self.relation.observed(place).copied() else {
                continue;
            };
            let blocks = match place {
                EndRef::Address(address) => self.expected.space.find(address).blocks,
                EndRef::Name(_) => 0,
            };
            let end = self.expected.end_of(observed.end.who, blocks);
            if end != observed.end {
                self.relation.put(place, ObservedEnd { end, ..observed });
            }
        }
    }

    /// Columns of ends that are others and only gained what no rule named before, each with the class that such an end had: by
    /// the rules of old lines, what was decided about that class is decided about them.
    fn gained(&self) -> BTreeMap<ClassMeaning, u32> {
        let mut gained = BTreeMap::new();
        let mut known = HashSet::new();
        for (place, was) in self.relation.moved() {
            // What an end was in between has not been proven.
            if let Some(is) = self.relation.observed(*place).filter(|_| known.insert(*place))
                && self.expected.only_gained(was.end.meaning, is.end.meaning)
            {
                gained.entry((is.class, is.end.meaning)).or_insert(was.class);
            }
        }
        gained
    }

    /// 6: addresses of nodes that differ, and the address ranges where their networks do.
    fn touched_by_nodes(&mut self, cluster: &Cluster, touched: &mut Touched) {
        let before = self.expected.cluster().nodes.clone();
        let mut cut = false;
        for item in before.diff(&cluster.nodes) {
            let (name, old, new) = match item {
                DiffItem::Add(name, node) => (name, None, Some(node)),
                DiffItem::Remove(name, node) => (name, Some(node), None),
                DiffItem::Update { old, new } => (old.0, Some(old.1), Some(new.1)),
            };
            let addresses = |node: Option<&Arc<Node>>| node.map_or(Vec::new(), |it| it.addresses.clone());
            let networks = |node: Option<&Arc<Node>>| node.map_or(Vec::new(), |it| it.pod_cidrs.clone());
            let (old_addresses, new_addresses) = (addresses(old), addresses(new));
            self.expected.replace_node(name, &old_addresses, &new_addresses);
            touched.ends.extend(
                old_addresses
                    .into_iter()
                    .chain(new_addresses)
                    .map(EndRef::Address),
            );
            cut |= networks(old) != networks(new);
        }
        if cut {
            self.expected.cut_again(cluster);
            touched.ranges = true;
            let is_unowned = |observed: &ObservedEnd| matches!(observed.end.who, Owner::Unowned(_));
            let unowned = self.relation.ends().filter(|(_, observed)| is_unowned(observed));
            touched.ends.extend(unowned.map(|(place, _)| *place));
        }
    }

    /// 6: ends of pods that differ; the view is that of the new state then.
    fn touched_by_pods(&mut self, cluster: &Cluster, touched: &mut Touched) {
        let before = self.expected.cluster().clone();
        let mut come = Vec::new();
        for item in before.pods.diff(&cluster.pods) {
            let (gone, new) = match item {
                DiffItem::Add(_, pod) => (None, Some(pod)),
                DiffItem::Update { old, new } => (Some(old.1), Some(new.1)),
                DiffItem::Remove(_, pod) => (Some(pod), None),
            };
            for pod in gone.into_iter().chain(new) {
                touched
                    .ends
                    .extend(pod.addresses.iter().copied().map(EndRef::Address));
            }
            if let Some(pod) = gone {
                touched.gone.insert(pod.key.clone());
                if let Some((slot, _)) = self.expected.remove(&pod.key) {
                    touched.ends.insert(EndRef::Name(slot));
                }
            }
            come.extend(new);
        }
        for pod in come {
            touched.gone.remove(&pod.key);
            let slot = self.expected.add(pod);
            touched.ends.insert(EndRef::Name(slot));
        }
    }

    fn ends_again(&mut self, touched: &Touched) -> Result<(), Wrong> {
        self.settings()?;
        // Those of nodes first, then as now: by then it is known which nodes have addresses.
        let (nodes, others): (Vec<EndRef>, Vec<EndRef>) = touched.ends.iter().partition(|place| {
            let was = self.relation.observed(**place).map(|observed| observed.end.who);
            let now = match place {
                EndRef::Address(address) => Some(self.expected.who(*address)),
                EndRef::Name(_) => None,
            };
            [was, now]
                .into_iter()
                .flatten()
                .any(|who| matches!(who, Owner::Node(_)))
        });
        self.relation.take_changed_nodes();
        if touched.ranges {
            self.ranges(true)?;
            self.ranges(false)?;
        } else {
            for (v4, first, last) in joined(&touched.spans) {
                self.ranges_within(v4, first, last)?;
            }
        }
        for place in nodes.into_iter().chain(others) {
            self.end(place)?;
        }
        // Whether a node has an address says what its pods are exempt from.
        let nodes = self.relation.take_changed_nodes();
        if !nodes.is_empty() {
            for slot in self.expected.hosted_by(&nodes) {
                self.end(EndRef::Name(slot))?;
                let addresses = self.expected.pod(slot).map(|known| known.pod.addresses.clone());
                for address in addresses.into_iter().flatten() {
                    self.end(EndRef::Address(address))?;
                }
            }
        }
        for key in &touched.endpoints {
            self.endpoint_is_known(key.clone())?;
        }
        for key in &touched.gone {
            if self.snapshot.find_endpoint(&key.namespace, &key.name).is_some() {
                return Err(Wrong {
                    what: format!("the snapshot knows {key}, which is gone"),
                    suspect: Suspect::Anything,
                });
            }
        }
        Ok(())
    }

    /// 7: cells that are read for the first time, and those of which some record differs.
    fn cells_again(&mut self, changes: &SnapshotChanges, older: &Snapshot) -> Result<(), Wrong> {
        self.forget(changes);
        self.relation
            .follow_own_nodes(&changes.isolating, older, &self.snapshot);
        let gained = self.gained();
        let (mut new_lines, mut new_columns) = self.relation.take_new();
        // Of those that kept their class, the cells are old ones.
        new_columns.retain(|column| gained.get(column) != Some(&column.0));
        for row in &changes.isolating {
            new_lines.extend(self.relation.lines_of(*row));
        }
        if !new_lines.is_empty() {
            let mut columns = self.columns();
            for line in &new_lines {
                self.line(*line, &mut columns)?;
            }
        }
        if !new_columns.is_empty() {
            let lines: Vec<_> = self
                .relation
                .lines()
                .filter(|line| !new_lines.contains(line))
                .collect();
            for column in &new_columns {
                let was = gained.get(column);
                // What was found of the pages that were looked at last: neighbouring rows often have the same.
                let mut last = None;
                for line in &lines {
                    let alike = was.is_some_and(|was| {
                        let is = self.snapshot.page_of(cells(line.0), column.0);
                        let pages = (is, older.page_of(cells(line.0), *was));
                        if let Some((_, alike)) = last.filter(|(known, _)| *known == pages) {
                            return alike;
                        }
                        let map = pages.0.and_then(|page| self.snapshot.port_map_on(page, column.0));
                        let before = pages.1.and_then(|page| older.port_map_on(page, *was));
                        let alike = map == before && map.is_some_and(|map| !changes.port_maps.contains(&map));
                        last = Some((pages, alike));
                        alike
                    });
                    if alike {
                        self.report.pairs += 1;
                        continue;
                    }
                    self.one(*line, *column)?;
                }
            }
        }
        let mut columns = Vec::new();
        let mut of_page = None;
        for (row, first) in &changes.pages {
            if of_page != Some(*first) {
                of_page = Some(*first);
                columns.clear();
                columns.extend(
                    self.relation
                        .columns_from(*first)
                        .filter(|column| !new_columns.contains(column)),
                );
            }
            let lines: Vec<_> = self
                .relation
                .lines_of(*row)
                .filter(|line| !new_lines.contains(line))
                .collect();
            if lines.is_empty() {
                continue;
            }
            for column in &columns {
                let map = self.snapshot.port_map_of(cells(*row), column.0);
                let same = map == older.port_map_of(cells(*row), column.0);
                if same && map.is_some_and(|map| !changes.port_maps.contains(&map)) {
                    continue;
                }
                for line in &lines {
                    self.one(*line, *column)?;
                }
            }
        }
        Ok(())
    }

    /// 8: a dataplane goes on with a flow while neither end's epoch changes. So who has an address now that another had, and
    /// two ends between whom something else passes now, do not both have the epochs that they had.
    fn epochs_again(&mut self, cluster: &Cluster, touched: &Touched, older: &Snapshot) -> Result<(), Wrong> {
        let (moved, moved_ranges) = (self.relation.take_moved(), self.relation.take_moved_ranges());
        for place in &touched.ends {
            if let EndRef::Address(address) = place
                && self.keeps_epoch(*address, older)
                && let Some(what) = is_another(
                    *address,
                    (self.expected.cluster(), older),
                    (cluster, &self.snapshot),
                )
            {
                return Err(Wrong {
                    what: format!("{what}, and its epoch has not changed: its flows would go on"),
                    suspect: Suspect::End(*place),
                });
            }
        }
        // Ends whose epoch is what it was, and what they were. To selectors and names of ports that no rule asked for
        // before, what everybody decided before is the same.
        let mut was: HashMap<EndRef, (End, End)> = HashMap::new();
        for (address, old, new) in moved_ranges {
            if !self.expected.only_gained(old.meaning, new.meaning) && self.keeps_epoch(address, older) {
                was.insert(EndRef::Address(address), (old, new));
            }
        }
        for (place, old) in moved {
            let old = old.end;
            if let EndRef::Address(address) = place
                && let Some(new) = self.relation.observed(place).map(|observed| observed.end)
                && ((old.subjects, old.own_node) != (new.subjects, new.own_node)
                    || !self.expected.only_gained(old.meaning, new.meaning))
                && self.keeps_epoch(address, older)
            {
                was.entry(place).or_insert((old, new));
            }
        }
        let (mut subjects, mut meanings) = (BTreeMap::new(), BTreeMap::new());
        let mut own_nodes = BTreeMap::new();
        let note = |of: &mut BTreeMap<(u32, u32), Vec<EndRef>>, pair: (u32, u32), place: EndRef| {
            let places = of.entry(pair).or_default();
            let of_family = places.iter().filter(|it| is_v4(**it) == is_v4(place));
            // No end is asked about itself, and no packet is of two families: two of each tell what all do.
            if of_family.count() < 2 {
                places.push(place);
            }
        };
        for (place, (old, new)) in &was {
            for pair in old.subjects.into_iter().zip(new.subjects) {
                if pair.0 != pair.1 {
                    note(&mut subjects, pair, *place);
                }
            }
            if old.own_node != new.own_node {
                note(&mut own_nodes, (old.own_node, new.own_node), *place);
            }
            if !self.expected.only_gained(old.meaning, new.meaning) {
                note(&mut meanings, (old.meaning, new.meaning), *place);
            }
        }
        let columns: Vec<_> = self.relation.columns().collect();
        let subjects = subjects.into_iter().map(|pair| (pair, true));
        let own_nodes = own_nodes.into_iter().map(|pair| (pair, false));
        for (((old, new), owns), any_peer) in subjects.chain(own_nodes) {
            for column in &columns {
                if self.expected.pass_alike((old, column.1), (new, column.1)) {
                    continue;
                }
                for peer in self.relation.peers_in(*column) {
                    let meant = was.get(&peer).map_or(column.1, |(old, _)| old.meaning);
                    let asked = any_peer || !self.relation.is_pod(peer);
                    let own = owns
                        .iter()
                        .find(|own| asked && self.both_keep(**own, peer, older));
                    if let Some(own) = own
                        && !self.expected.pass_alike((old, meant), (new, column.1))
                    {
                        return Err(self.stale(*own, peer, new));
                    }
                }
            }
        }
        let lines: Vec<_> = self.relation.lines().collect();
        for ((old, new), peers) in meanings {
            for line in &lines {
                if self.expected.pass_alike((line.1, old), (line.1, new)) {
                    continue;
                }
                for own in self.relation.subjects_of(*line) {
                    let same = was
                        .get(&own)
                        .is_none_or(|(old, _)| old.subjects.contains(&line.1));
                    let peer = peers
                        .iter()
                        .find(|peer| same && self.both_keep(own, **peer, older));
                    if let Some(peer) = peer {
                        return Err(self.stale(own, *peer, line.1));
                    }
                }
            }
        }
        Ok(())
    }

    /// 8, for a whole proof: compares with the proof of the snapshot before it, where each has numbers of its own. False where
    /// the time has come first.
    pub(super) fn epochs_since(
        &mut self,
        before: &mut Proof,
        until: Option<Instant>,
    ) -> Result<bool, Box<Difference>> {
        self.compare_epochs(before, until)
            .map_err(|wrong| self.explain(wrong))
    }

    fn compare_epochs(&mut self, before: &mut Proof, until: Option<Instant>) -> Result<bool, Wrong> {
        let older = Arc::clone(&before.snapshot);
        let mut places = before.relation.places();
        places.extend(self.relation.places());
        places.sort_unstable();
        places.dedup();
        // Who keeps an epoch, by what decides about it, then and now, and by what rules see of it, then and now.
        let mut subjects: BTreeMap<(u32, u32), Vec<EndRef>> = BTreeMap::new();
        let mut meanings: BTreeMap<(u32, u32), Vec<EndRef>> = BTreeMap::new();
        // The same of packets to the node that hosts a pod, and of ends that are no pods.
        let mut own_nodes: BTreeMap<(u32, u32), Vec<EndRef>> = BTreeMap::new();
        let mut no_pods: BTreeMap<(u32, u32), Vec<EndRef>> = BTreeMap::new();
        for place in places {
            let EndRef::Address(address) = place else { continue };
            if !self.keeps_epoch(address, &older) {
                continue;
            }
            let (was, is) = (
                (before.expected.cluster(), &*older),
                (self.expected.cluster(), &*self.snapshot),
            );
            if let Some(what) = is_another(address, was, is) {
                return Err(Wrong {
                    what: format!("{what}, and its epoch has not changed: its flows would go on"),
                    suspect: Suspect::End(place),
                });
            }
            let (old, new) = (before.expected.end(address), self.expected.end(address));
            if old.who.is_unknown() || new.who.is_unknown() {
                match [before.expected.settings(), self.expected.settings()].map(|it| it.allow_unknown) {
                    [false, false] => continue, // no flow of it is kept
                    [true, true] => {}
                    _ => {
                        return Err(Wrong {
                            what: format!(
                                "{address} is no known pod's or node's, which unknownEndpoints decides otherwise now, and \
                                 its epoch has not changed: its flows would go on"
                            ),
                            suspect: Suspect::End(place),
                        });
                    }
                }
            }
            for pair in old.subjects.into_iter().zip(new.subjects) {
                subjects.entry(pair).or_default().push(place);
            }
            let meant = (old.meaning, new.meaning);
            meanings.entry(meant).or_default().push(place);
            match new.who {
                Owner::Pod(_) => {
                    let pair = (old.own_node, new.own_node);
                    own_nodes.entry(pair).or_default().push(place);
                }
                _ => no_pods.entry(meant).or_default().push(place),
            }
        }
        let (mut lists, mut older_lists) = (Lists::default(), Lists::default());
        let mut alike: HashMap<(u32, u32), bool> = HashMap::new();
        let own_nodes = own_nodes.iter().map(|pair| (pair, &no_pods));
        for (((old, new), owns), meanings) in subjects.iter().map(|pair| (pair, &meanings)).chain(own_nodes) {
            if until.is_some_and(|until| Instant::now() >= until) {
                return Ok(false);
            }
            let governed = [before.expected.subject_of(*old), self.expected.subject_of(*new)]
                .map(|subject| !subject.policies.is_empty());
            if governed == [false, false] {
                continue;
            }
            let older_others = before.expected.lists_of(*old, &mut older_lists);
            let others = self.expected.lists_of(*new, &mut lists);
            for ((old_meaning, meaning), peers) in meanings {
                let older_list = older_lists.get(*old_meaning, older_others);
                let then = governed[0].then(|| before.expected.decide(*old, older_list, *old_meaning));
                let list = lists.get(*meaning, others);
                let now = governed[1].then(|| self.expected.decide(*new, list, *meaning));
                let same = || before.expected.passes(then) == self.expected.passes(now);
                let same = match (then, now) {
                    (Some(then), Some(now)) => *alike.entry((then, now)).or_insert_with(same),
                    _ => same(),
                };
                if !same && let Some((own, peer)) = pair_of(owns, peers) {
                    return Err(self.stale(own, peer, *new));
                }
            }
        }
        Ok(true)
    }

    fn keeps_epoch(&self, address: IpAddr, older: &Snapshot) -> bool {
        older.identify(address.into()).epoch == self.snapshot.identify(address.into()).epoch
    }

    /// Whether a flow between two ends that are both addresses would go on.
    fn both_keep(&self, own: EndRef, peer: EndRef, older: &Snapshot) -> bool {
        match (own, peer) {
            (EndRef::Address(a), EndRef::Address(b)) => {
                a != b
                    && a.is_ipv4() == b.is_ipv4()
                    && self.keeps_epoch(a, older)
                    && self.keeps_epoch(b, older)
            }
            _ => false,
        }
    }

    fn stale(&self, own: EndRef, peer: EndRef, subject: u32) -> Wrong {
        let (src, dst) = match self.expected.subject_of(subject).direction {
            Direction::Ingress => (peer, own),
            Direction::Egress => (own, peer),
        };
        Wrong {
            what: "something else passes than before, and both epochs are what they were: flows would go on"
                .to_owned(),
            suspect: Suspect::Packet {
                src,
                dst,
                l4: L4::NoPort { protocol: 255 },
            },
        }
    }

    /// Whether much of what has been numbered may be out of use.
    fn has_grown(&self) -> bool {
        let (columns, lines) = self.relation.sizes();
        let policies = self.expected.cluster().policies.len() + self.expected.cluster().tiered.len();
        self.expected.ever() > 4 * (columns + lines + policies) + 50_000
    }
}

/// Whether there are so few addresses in a block that each can be looked up.
fn is_small(block: &IpNet) -> bool {
    block.max_prefix_len() - block.prefix_len() <= 12
}

/// Spans in order, those that overlap or touch joined.
fn joined(spans: &[(bool, u128, u128)]) -> Vec<(bool, u128, u128)> {
    let mut sorted = spans.to_vec();
    sorted.sort_unstable();
    let mut out: Vec<(bool, u128, u128)> = Vec::with_capacity(sorted.len());
    for (v4, first, last) in sorted {
        match out.last_mut() {
            Some((of, _, end)) if *of == v4 && end.checked_add(1).is_none_or(|next| first <= next) => {
                *end = last.max(*end);
            }
            _ => out.push((v4, first, last)),
        }
    }
    out
}

/// Puts policies of one kind that are not what they were to those that are gone and those that are new.
pub(super) fn differing<K: Ord + Clone, P: PartialEq>(
    before: &OrdMap<K, Arc<P>>,
    now: &OrdMap<K, Arc<P>>,
    policy: impl Fn(Arc<P>) -> Policy,
    gone: &mut Vec<Policy>,
    new: &mut Vec<Policy>,
) {
    for item in before.diff(now) {
        let (old, is) = match item {
            DiffItem::Add(_, is) => (None, Some(is)),
            DiffItem::Remove(_, old) => (Some(old), None),
            DiffItem::Update { old, new } => (Some(old.1), Some(new.1)),
        };
        gone.extend(old.map(|old| policy(Arc::clone(old))));
        new.extend(is.map(|is| policy(Arc::clone(is))));
    }
}

/// Two different addresses of one family between which a flow can be.
fn pair_of(owns: &[EndRef], peers: &[EndRef]) -> Option<(EndRef, EndRef)> {
    let v4 = |place: &EndRef| match place {
        EndRef::Address(address) => Some(address.is_ipv4()),
        EndRef::Name(_) => None,
    };
    owns.iter().find_map(|own| {
        let peer = peers.iter().find(|peer| *peer != own && v4(peer) == v4(own))?;
        Some((*own, *peer))
    })
}

/// In what an address is somebody else's than it was; None where it is not. Both snapshots say rightly whose it is.
fn is_another(
    address: IpAddr,
    (older_cluster, older): (&Cluster, &Snapshot),
    (cluster, snapshot): (&Cluster, &Snapshot),
) -> Option<String> {
    let (old, new) = (older.identify(address.into()), snapshot.identify(address.into()));
    if old.kind != new.kind {
        return Some(format!("{address} was {:?} and is {:?}", old.kind, new.kind));
    }
    match new.kind {
        IdentityKind::Pod => {
            let of = |snapshot: &Snapshot, number| snapshot.endpoint(number).map(|it| key_of(&it));
            let key = of(snapshot, new.endpoint)?;
            let was = of(older, old.endpoint)?;
            if key != was {
                return Some(format!("{address} was {was} and is {key}"));
            }
            let (old, new) = (older_cluster.pods.get(&key)?, cluster.pods.get(&key)?);
            if old.uid != new.uid {
                return Some(format!("{key} was replaced"));
            }
            (old.node != new.node).then(|| format!("{key} moved to another node"))
        }
        IdentityKind::Node => {
            let (was, is) = (older.node_name(old.node), snapshot.node_name(new.node));
            (was != is).then(|| format!("{address} is another node's"))
        }
        IdentityKind::External | IdentityKind::Unknown | IdentityKind::Service => None,
    }
}

fn is_v4(place: EndRef) -> bool {
    matches!(place, EndRef::Address(address) if address.is_ipv4())
}
