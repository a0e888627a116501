//! What two compiled clusters decide differently, merged: ports first, then destinations, then sources.

use std::sync::Arc;

use hashbrown::{HashMap, HashSet};
use ringwall_dataplane::classify::L4;

use super::{
    Compiled, Ends, Family, OneSided, RefineError, Region, Service, Span,
    cells::{Cells, Joint, Numbered, Reason},
    ends::Sight,
    ports,
};

/// A number that was given out leads nowhere.
const NO_CLASS: RefineError = RefineError::Snapshot("a class that does not exist");

/// What changes between two clusters.
#[derive(Debug)]
pub struct Difference<'a> {
    /// The ends that both know.
    pub ends: Ends<'a, 2>,
    /// In order; no two speak of one flow.
    pub regions: Vec<Region>,
    /// Endpoints that only one has: of [`OneSided::side`] 0 they are removed, of 1 added.
    pub one_sided: Vec<OneSided>,
}

/// How a single flow changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FlowChange {
    /// Whether each side allows it.
    pub allow: [bool; 2],
    /// Policies that decide, on either side, in the directions that change; in order. None where nothing does.
    pub policies: Vec<String>,
}

impl Difference<'_> {
    /// What both sides decide about one flow; None where its ends do not have the family in common.
    ///
    /// # Errors
    /// A snapshot contradicts itself.
    pub fn of_flow(
        &self,
        pair: (u32, u32),
        family: Family,
        l4: L4,
    ) -> Result<Option<FlowChange>, RefineError> {
        let judge = |side| self.ends.judge(side, pair, family, l4);
        let (Some(from), Some(to)) = (judge(0), judge(1)) else {
            return Ok(None);
        };
        let mut policies = Vec::new();
        for verdicts in [[from.egress, to.egress], [from.ingress, to.ingress]] {
            let [a, b] = verdicts;
            if a.allow != b.allow && from.allow() != to.allow() {
                for (compiled, verdict) in self.ends.sides.iter().zip(&verdicts) {
                    policies.extend(Reason::of(compiled, verdict)?.policies);
                }
            }
        }
        policies.sort_unstable();
        policies.dedup();
        Ok(Some(FlowChange {
            allow: [from.allow(), to.allow()],
            policies,
        }))
    }
}

/// What changes between `from` and `to`.
///
/// # Errors
/// A snapshot contradicts itself.
pub fn difference<'a>(from: &'a Compiled<'a>, to: &'a Compiled<'a>) -> Result<Difference<'a>, RefineError> {
    let mut ends = Ends::of([from, to], &[]);
    let mut changes = Changes::new(Cells::new([from, to]));
    let table = Table::of(&ends, &mut changes)?;
    let groups = Groups::of(&ends, &mut changes, &table)?;
    let regions = merge(&ends, &changes, groups);
    let one_sided = std::mem::take(&mut ends.one_sided);
    Ok(Difference {
        ends,
        regions,
        one_sided,
    })
}

/// What changes about one pair of ends for one protocol.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Change {
    service: Service,
    ports: Vec<Span>,
    from: bool,
    /// Number of the list of policies.
    policies: u32,
}

/// Numbers of what decides in each direction on each side, and the sides on which the pair is exempt.
type Deciding = ([[u32; 2]; 2], [bool; 2]);

/// A change, and the family that it is of where the pair has both and they differ.
type Tagged = (u32, Option<Family>);

/// Changes by what both snapshots decide in both directions. Sets of changes have numbers; 0 is none.
struct Changes<'a> {
    cells: Cells<'a, 2>,
    changes: Numbered<Change>,
    /// Lists of policies that decide, in order.
    policies: Numbered<Arc<[String]>>,
    /// Whether the first side allows it and the policies that decide; None where the sides agree.
    decided: HashMap<Deciding, Option<(bool, u32)>>,
    sets: Numbered<Vec<u32>>,
    /// Set by what decides at the source, at the destination, and the sides on which the pair is exempt.
    known: HashMap<(Joint, Joint, [bool; 2]), u32>,
    tagged: Numbered<Vec<Tagged>>,
    /// Tagged set by the sets of both families.
    known_tagged: HashMap<(Option<u32>, Option<u32>), u32>,
}

impl<'a> Changes<'a> {
    fn new(cells: Cells<'a, 2>) -> Self {
        let (mut sets, mut tagged) = (Numbered::new(), Numbered::new());
        sets.number(Vec::new());
        tagged.number(Vec::new());
        Self {
            cells,
            changes: Numbered::new(),
            policies: Numbered::new(),
            decided: HashMap::new(),
            sets,
            known: HashMap::new(),
            tagged,
            known_tagged: HashMap::new(),
        }
    }

    /// The set of changes of a pair over one family.
    fn set(&mut self, egress: Joint, ingress: Joint, exempt: [bool; 2]) -> u32 {
        let none = exempt == [false; 2] && !self.cells.differs(egress) && !self.cells.differs(ingress);
        if none || exempt == [true; 2] {
            return 0;
        }
        let key = (egress, ingress, exempt);
        if let Some(set) = self.known.get(&key) {
            return *set;
        }
        let mut set = Vec::new();
        for service in Service::ALL {
            for change in self.of_service(service, egress, ingress, exempt) {
                set.push(self.changes.number(change).0);
            }
        }
        let (number, _) = self.sets.number(set);
        self.known.insert(key, number);
        number
    }

    fn of_service(
        &mut self,
        service: Service,
        egress: Joint,
        ingress: Joint,
        exempt: [bool; 2],
    ) -> Vec<Change> {
        let Self {
            cells,
            policies,
            decided,
            ..
        } = self;
        let [from_egress, to_egress] = cells.of(egress, service);
        let [from_ingress, to_ingress] = cells.of(ingress, service);
        let mut found: Vec<Change> = Vec::new();
        ports::walk(
            [from_egress, to_egress, from_ingress, to_ingress],
            |span, [from_egress, to_egress, from_ingress, to_ingress]| {
                let key = ([[from_egress, to_egress], [from_ingress, to_ingress]], exempt);
                let change = *decided.entry(key).or_insert_with(|| {
                    let (from, names) = decide(cells, key)?;
                    Some((from, policies.number(names.into()).0))
                });
                let Some((from, policies)) = change else { return };
                let same = |change: &&mut Change| change.from == from && change.policies == policies;
                match found.iter_mut().find(same) {
                    Some(change) => ports::push(&mut change.ports, span),
                    None => found.push(Change {
                        service,
                        ports: vec![span],
                        from,
                        policies,
                    }),
                }
            },
        );
        found
    }

    /// The changes of a pair from those over each family; None where the pair does not have it.
    fn tag(&mut self, families: [Option<u32>; 2]) -> u32 {
        let [v4, v6] = families;
        if v4.unwrap_or(0) == 0 && v6.unwrap_or(0) == 0 {
            return 0;
        }
        if let Some(tagged) = self.known_tagged.get(&(v4, v6)) {
            return *tagged;
        }
        let changes = |set: Option<u32>| {
            let set = set.and_then(|set| self.sets.get(set));
            set.map(Vec::as_slice).unwrap_or_default()
        };
        let (a, b) = (changes(v4), changes(v6));
        let one = v4.is_none() || v6.is_none();
        let of = |own: &[u32], other: &[u32], family| -> Vec<Tagged> {
            let tag = |change: &u32| match one || other.contains(change) {
                true => (*change, None),
                false => (*change, Some(family)),
            };
            own.iter().map(tag).collect()
        };
        let mut tagged = of(a, b, Family::V4);
        tagged.extend(of(b, a, Family::V6));
        tagged.sort_unstable();
        tagged.dedup();
        let (number, _) = self.tagged.number(tagged);
        self.known_tagged.insert((v4, v6), number);
        number
    }

    fn tagged(&self, set: u32) -> &[Tagged] {
        self.tagged.get(set).map(Vec::as_slice).unwrap_or_default()
    }
}

/// Whether the first side allows it and which policies decide, where the sides differ.
fn decide(cells: &Cells<'_, 2>, (directions, exempt): Deciding) -> Option<(bool, Vec<String>)> {
    let [from_exempt, to_exempt] = exempt;
    // An exempt pair passes, and no policy says so.
    let reason = |number: u32, exempt: bool| if exempt { None } else { cells.reason(number) };
    let allows = |reason: Option<&Reason>| reason.is_none_or(|reason| reason.allow);
    let (mut from, mut to) = (true, true);
    let mut policies: Vec<String> = Vec::new();
    for [a, b] in directions {
        let (a, b) = (reason(a, from_exempt), reason(b, to_exempt));
        from &= allows(a);
        to &= allows(b);
        if allows(a) != allows(b) {
            for reason in a.iter().chain(&b) {
                policies.extend(reason.policies.iter().cloned());
            }
        }
    }
    policies.sort_unstable();
    policies.dedup();
    (from != to).then_some((from, policies))
}

/// The changes between classes.
struct Table {
    /// By class of the source: classes of destinations and their sets of tagged changes, where there are any.
    rows: Vec<Vec<(u32, u32)>>,
}

impl Table {
    fn of(ends: &Ends<'_, 2>, changes: &mut Changes<'_>) -> Result<Self, RefineError> {
        let classes = ends.classes.len();
        let mut by_family: [Vec<Vec<(u32, u32)>>; 2] = [vec![Vec::new(); classes], vec![Vec::new(); classes]];
        for family in Family::BOTH {
            if let Some(rows) = by_family.get_mut(family as usize) {
                Self::of_family(ends, changes, family, rows)?;
            }
        }
        let [v4, v6] = by_family;
        let rows = v4
            .iter()
            .zip(&v6)
            .zip(&ends.classes)
            .map(|((v4, v6), source)| Self::join(ends, changes, &source.sights, v4, v6))
            .collect();
        Ok(Self { rows })
    }

    /// Sets of changes over one family, by source and destination.
    fn of_family(
        ends: &Ends<'_, 2>,
        changes: &mut Changes<'_>,
        family: Family,
        out: &mut [Vec<(u32, u32)>],
    ) -> Result<(), RefineError> {
        let mut egress_rows = Numbered::new();
        let mut ingress_rows = Numbered::new();
        let mut columns = Numbered::new();
        // Class, and numbers of its egress row, ingress row and column.
        let mut own: Vec<(u32, u32, u32, u32)> = Vec::new();
        for (class, index) in ends.classes.iter().zip(0..) {
            let Some(sights) = class.sights.get(family as usize).copied().flatten() else {
                continue;
            };
            let (egress, _) = egress_rows.number(sights.map(|sight| sight.egress));
            let (ingress, _) = ingress_rows.number(sights.map(|sight| sight.ingress));
            let (column, _) = columns.number(sights.map(|sight| sight.peer_class));
            own.push((index, egress, ingress, column));
        }
        let mut sources = own.clone();
        sources.sort_unstable_by_key(|(class, egress, _, column)| (*egress, *column, *class));
        // What the source's row says of every column, and every row of the source's column: the last ones asked for.
        let (mut of_row, mut of_column) = ((u32::MAX, Vec::new()), (u32::MAX, Vec::new()));
        for (source, egress, _, column) in sources {
            if of_row.0 != egress {
                of_row = (egress, Vec::with_capacity(columns.values().len()));
                let rows = egress_rows.get(egress).ok_or(NO_CLASS)?;
                for column in columns.values() {
                    of_row.1.push(changes.cells.joint(rows, column)?);
                }
            }
            if of_column.0 != column {
                of_column = (column, Vec::with_capacity(ingress_rows.values().len()));
                let classes = columns.get(column).ok_or(NO_CLASS)?;
                for rows in ingress_rows.values() {
                    of_column.1.push(changes.cells.joint(rows, classes)?);
                }
            }
            let Some(out) = out.get_mut(source as usize) else {
                continue;
            };
            for (destination, _, ingress, column) in &own {
                let (Some(egress), Some(ingress)) = (
                    of_row.1.get(*column as usize).copied(),
                    of_column.1.get(*ingress as usize).copied(),
                ) else {
                    continue;
                };
                let set = changes.set(egress, ingress, [false; 2]);
                if set != 0 {
                    out.push((*destination, set));
                }
            }
        }
        Ok(())
    }

    /// The tagged changes of one source class from those over each family.
    fn join(
        ends: &Ends<'_, 2>,
        changes: &mut Changes<'_>,
        source: &[Option<[Sight; 2]>; 2],
        v4: &[(u32, u32)],
        v6: &[(u32, u32)],
    ) -> Vec<(u32, u32)> {
        let mut out = Vec::with_capacity(v4.len().max(v6.len()));
        let (mut v4, mut v6) = (v4.iter().peekable(), v6.iter().peekable());
        loop {
            let next = [v4.peek(), v6.peek()]
                .into_iter()
                .flatten()
                .map(|(class, _)| *class)
                .min();
            let Some(class) = next else { return out };
            let sets = [&mut v4, &mut v6].map(|sets| sets.next_if(|(own, _)| *own == class));
            let mut families = [None; 2];
            for (family, (own, set)) in families.iter_mut().zip(sets).enumerate() {
                let sights = ends.classes.get(class as usize).map(|class| &class.sights);
                let has = |sights: &[Option<_>; 2]| sights.get(family).is_some_and(Option::is_some);
                if has(source) && sights.is_some_and(has) {
                    *own = Some(set.map_or(0, |(_, set)| *set));
                }
            }
            let tagged = changes.tag(families);
            if tagged != 0 {
                out.push((class, tagged));
            }
        }
    }
}

/// Destinations: whole classes, and single ends more or less.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct Destinations {
    /// In order.
    classes: Arc<Vec<u32>>,
    /// Ends of other classes, in order; never all of one.
    added: Vec<u32>,
    /// Ends of those classes, in order; never all of one.
    removed: Vec<u32>,
}

/// One destination of one source that changes otherwise than its class: it is exempt on some side.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Deviation {
    change: Tagged,
    destination: u32,
    /// The change is there, though it is not of the class; else it is missing.
    added: bool,
}

/// Sources with the same destinations for every change.
struct Group {
    members: Vec<u32>,
    changes: Vec<(Tagged, Destinations)>,
}

struct Groups;

impl Groups {
    fn of(ends: &Ends<'_, 2>, changes: &mut Changes<'_>, table: &Table) -> Result<Vec<Group>, RefineError> {
        let mut deviations: HashMap<u32, Vec<Deviation>> = HashMap::new();
        for pair in &ends.hosted {
            for (src, dst) in [(pair.endpoint, pair.node), (pair.node, pair.endpoint)] {
                let own = deviating(ends, changes, (src, dst), pair.sides)?;
                if !own.is_empty() {
                    deviations.entry(src).or_default().extend(own);
                }
            }
        }
        let mut groups = Vec::new();
        for (class, row) in ends.classes.iter().zip(&table.rows) {
            let mut of_class: HashMap<Tagged, Vec<u32>> = HashMap::new();
            for (destination, set) in row {
                for change in changes.tagged(*set) {
                    of_class.entry(*change).or_default().push(*destination);
                }
            }
            let of_class: HashMap<Tagged, Destinations> = of_class
                .into_iter()
                .map(|(change, classes)| {
                    let classes = Arc::new(classes);
                    (
                        change,
                        Destinations {
                            classes,
                            ..Default::default()
                        },
                    )
                })
                .collect();
            let mut alike: HashMap<Vec<Deviation>, Vec<u32>> = HashMap::new();
            for member in &class.members {
                let mut own = deviations.remove(member).unwrap_or_default();
                own.sort_unstable();
                alike.entry(own).or_default().push(*member);
            }
            for (deviations, members) in alike {
                let mut own = of_class.clone();
                for deviation in deviations {
                    own.entry(deviation.change).or_default().note(&deviation);
                }
                own.retain(|_, destinations| {
                    destinations.normalize(ends);
                    !destinations.is_empty()
                });
                let changes = own.into_iter().collect();
                groups.push(Group { members, changes });
            }
        }
        Ok(groups)
    }
}

/// How a pair changes otherwise than its classes.
fn deviating(
    ends: &Ends<'_, 2>,
    changes: &mut Changes<'_>,
    (src, dst): (u32, u32),
    exempt: [bool; 2],
) -> Result<Vec<Deviation>, RefineError> {
    let mut out = Vec::new();
    let sights = |end: u32| {
        let class = ends.all.get(end as usize).map(|end| end.class).ok_or(NO_CLASS)?;
        ends.classes
            .get(class as usize)
            .map(|class| class.sights)
            .ok_or(NO_CLASS)
    };
    let (source, destination) = (sights(src)?, sights(dst)?);
    // One of them is an address, so they have one family in common.
    for (source, destination) in source.iter().zip(&destination) {
        let (Some(source), Some(destination)) = (source, destination) else {
            continue;
        };
        let column = |sights: &[Sight; 2]| sights.map(|sight| sight.peer_class);
        let egress = source.map(|sight| sight.egress);
        let ingress = destination.map(|sight| sight.ingress);
        let egress = changes.cells.joint(&egress, &column(destination))?;
        let ingress = changes.cells.joint(&ingress, &column(source))?;
        let of_class = changes.set(egress, ingress, [false; 2]);
        let own = changes.set(egress, ingress, exempt);
        let set = |number| changes.sets.get(number).map(Vec::as_slice).unwrap_or_default();
        let (of_class, own) = (set(of_class), set(own));
        let deviation = |change: &u32, added| Deviation {
            change: (*change, None),
            destination: dst,
            added,
        };
        let missing = of_class.iter().filter(|change| !own.contains(change));
        out.extend(missing.map(|change| deviation(change, false)));
        let more = own.iter().filter(|change| !of_class.contains(change));
        out.extend(more.map(|change| deviation(change, true)));
    }
    Ok(out)
}

impl Destinations {
    fn note(&mut self, deviation: &Deviation) {
        let list = if deviation.added {
            &mut self.added
        } else {
            &mut self.removed
        };
        list.push(deviation.destination);
    }

    /// Makes equal sets equal values.
    fn normalize(&mut self, ends: &Ends<'_, 2>) {
        if self.added.is_empty() && self.removed.is_empty() {
            return;
        }
        self.added.sort_unstable();
        self.removed.sort_unstable();
        for class in whole_classes(ends, &mut self.removed) {
            Arc::make_mut(&mut self.classes).retain(|own| *own != class);
        }
        let whole = whole_classes(ends, &mut self.added);
        if !whole.is_empty() {
            let classes = Arc::make_mut(&mut self.classes);
            classes.extend(whole);
            classes.sort_unstable();
        }
    }

    fn is_empty(&self) -> bool {
        self.classes.is_empty() && self.added.is_empty()
    }

    /// All ends, in order.
    fn expand(&self, ends: &Ends<'_, 2>) -> Vec<u32> {
        let classes = self
            .classes
            .iter()
            .filter_map(|class| ends.classes.get(*class as usize));
        let members = classes.flat_map(|class| &class.members);
        let mut all: Vec<u32> = members
            .filter(|end| self.removed.binary_search(end).is_err())
            .chain(&self.added)
            .copied()
            .collect();
        all.sort_unstable();
        all
    }
}

/// Takes those ends out whose whole class is there, and answers the classes.
fn whole_classes(ends: &Ends<'_, 2>, list: &mut Vec<u32>) -> Vec<u32> {
    let class_of = |end: &u32| ends.all.get(*end as usize).map(|end| end.class);
    let mut counts: HashMap<u32, usize> = HashMap::new();
    for class in list.iter().filter_map(class_of) {
        *counts.entry(class).or_default() += 1;
    }
    counts.retain(|class, count| {
        let class = ends.classes.get(*class as usize);
        class.is_some_and(|class| class.members.len() == *count)
    });
    list.retain(|end| class_of(end).is_none_or(|class| !counts.contains_key(&class)));
    counts.into_keys().collect()
}

/// Joins sources that have the same destinations for a change.
fn merge(ends: &Ends<'_, 2>, changes: &Changes<'_>, groups: Vec<Group>) -> Vec<Region> {
    let mut sources: HashMap<(Tagged, Destinations), Vec<u32>> = HashMap::new();
    for group in groups {
        for key in group.changes {
            sources.entry(key).or_default().extend(&group.members);
        }
    }
    // Several protocols often have the same destinations.
    let mut expanded: HashMap<Destinations, Arc<[u32]>> = HashMap::new();
    let mut merged: HashMap<(Tagged, Arc<[u32]>), Vec<u32>> = HashMap::new();
    for ((change, destinations), mut src) in sources {
        src.sort_unstable();
        let dst = expanded
            .entry(destinations)
            .or_insert_with_key(|destinations| destinations.expand(ends).into())
            .clone();
        // A pod and itself are never meant, so where one side is a single pod, the other can do without it.
        if let [only] = *src
            && ends.is_itself(only, only)
            && dst.binary_search(&only).is_ok()
        {
            let others: Vec<u32> = dst.iter().copied().filter(|end| *end != only).collect();
            if !others.is_empty() {
                merged.entry((change, others.into())).or_default().push(only);
            }
            continue;
        }
        if let [only] = *dst
            && ends.is_itself(only, only)
        {
            src.retain(|end| *end != only);
        }
        merged.entry((change, dst)).or_default().extend(src);
    }
    in_order(changes, merged)
}

/// Regions of the merged changes, sorted.
fn in_order(changes: &Changes<'_>, merged: HashMap<(Tagged, Arc<[u32]>), Vec<u32>>) -> Vec<Region> {
    let regions: Vec<Region> = merged
        .into_iter()
        .filter_map(|(((change, family), dst), mut src)| {
            src.sort_unstable();
            let change = changes.changes.get(change)?;
            Some(Region {
                src: src.into(),
                dst,
                family,
                service: change.service,
                ports: change.ports.clone(),
                from: change.from,
                policies: changes.policies.get(change.policies)?.clone(),
            })
        })
        .collect();
    // Few lists of ends belong to many regions: each is compared with the others once.
    let mut lists: Vec<Arc<[u32]>> = regions
        .iter()
        .flat_map(|region| [region.src.clone(), region.dst.clone()])
        .collect();
    let mut known = HashSet::new();
    lists.retain(|list| known.insert(list.clone()));
    lists.sort_unstable();
    let ranks: HashMap<Arc<[u32]>, u32> = lists.into_iter().zip(0..).collect();
    let rank = |list: &Arc<[u32]>| ranks.get(list).copied().unwrap_or(u32::MAX);
    let mut ranked: Vec<((u32, u32), Region)> = regions
        .into_iter()
        .map(|region| ((rank(&region.src), rank(&region.dst)), region))
        .collect();
    ranked.sort_unstable_by(|(a_rank, a), (b_rank, b)| {
        let key = |region: &Region| (region.service, region.family, region.from);
        a_rank
            .cmp(b_rank)
            .then_with(|| key(a).cmp(&key(b)))
            .then_with(|| a.ports.cmp(&b.ports))
            .then_with(|| a.policies.cmp(&b.policies))
    });
    ranked.into_iter().map(|(_, region)| region).collect()
}
