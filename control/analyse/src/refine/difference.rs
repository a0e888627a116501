//! What two compiled clusters decide differently, merged: ports first, then destinations, then sources.

use std::sync::Arc;

use hashbrown::HashMap;
use ipnet::IpNet;
use ringwall_dataplane::classify::L4;

use super::{
    Compiled, Ends, Family, OneSided, RefineError, Region, Span, Totals,
    cells::{Cells, Reason},
    changes::{Changes, Tagged},
    ports::source_spans,
    readings::Compared,
    said,
    sets::{SetId, Sets},
    sweep::{Changed, Deviation, Sweep, deviations},
};

/// What changes between two clusters.
#[derive(Debug)]
pub struct Difference<'a> {
    /// The ends that both know.
    pub ends: Ends<'a, 2>,
    /// The same ends where ipBlocks match pods without addresses possibly; None where they match no more than surely.
    pub possibly: Option<Ends<'a, 2>>,
    /// In order; no two speak of one flow.
    pub regions: Vec<Region>,
    /// How many pairs of ends change, by namespaces.
    pub totals: Totals,
    /// Endpoints that only one has: of [`OneSided::side`] 0 they are removed, of 1 added.
    pub one_sided: Vec<OneSided>,
}

/// How a single flow changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FlowChange {
    /// Whether each side allows it.
    pub allow: [bool; 2],
    /// On which sides it depends on the address that a pod without one will have, instead.
    pub depends: [bool; 2],
    /// Policies that decide, on either side, in the directions that change; in order. None where nothing does.
    pub policies: Vec<String>,
}

impl Difference<'_> {
    /// Source ports, cut where a rule of either side begins or ceases to ask for them: those of one span are decided alike.
    pub fn source_spans(&self) -> Vec<Span> {
        source_spans(self.ends.sides.iter().map(|side| side.cluster))
    }

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
        let judge =
            |ends: &Ends<'_, 2>| Some([ends.judge(0, pair, family, l4)?, ends.judge(1, pair, family, l4)?]);
        let Some([from, to]) = judge(&self.ends) else {
            return Ok(None);
        };
        let surely = [from.allow(), to.allow()];
        let other = self.possibly.as_ref().and_then(|ends| Some((ends, judge(ends)?)));
        let possibly = other
            .as_ref()
            .map_or(surely, |(_, [from, to])| [from.allow(), to.allow()]);
        let depends = [surely[0] != possibly[0], surely[1] != possibly[1]];
        let (ends, [from, to]) = match other {
            Some(other) if surely[0] == surely[1] => other,
            _ => (&self.ends, [from, to]),
        };
        let mut policies = Vec::new();
        for verdicts in [[from.egress, to.egress], [from.ingress, to.ingress]] {
            let [a, b] = verdicts;
            if a.allow != b.allow && from.allow() != to.allow() {
                for (compiled, verdict) in ends.sides.iter().zip(&verdicts) {
                    policies.extend(Reason::of(compiled, verdict)?.policies);
                }
            }
        }
        policies.sort_unstable();
        policies.dedup();
        Ok(Some(FlowChange {
            allow: surely,
            depends,
            policies,
        }))
    }
}

/// What changes between `from` and `to`.
///
/// # Errors
/// A snapshot contradicts itself.
pub fn difference<'a>(from: &'a Compiled<'a>, to: &'a Compiled<'a>) -> Result<Difference<'a>, RefineError> {
    difference_with_cuts(from, to, &[])
}

/// As [`difference`]. `cuts`: further networks whose borders no range of addresses may cross.
///
/// # Errors
/// A snapshot contradicts itself.
pub fn difference_with_cuts<'a>(
    from: &'a Compiled<'a>,
    to: &'a Compiled<'a>,
    cuts: &[IpNet],
) -> Result<Difference<'a>, RefineError> {
    let mut ends = Ends::of([from, to], cuts);
    let mut changes = Changes::new(Cells::new([from, to]));
    let mut sets = Sets::new(&ends);
    let mut totals = Totals::new(&ends);
    let found = destinations(&ends, &mut changes, &mut sets, &mut totals)?;
    let merged = merge(&ends, &mut sets, found);
    let regions = in_order(&changes, &sets, merged);
    let one_sided = std::mem::take(&mut ends.one_sided);
    Ok(Difference {
        ends,
        possibly: None,
        regions,
        totals,
        one_sided,
    })
}

/// What changes between `from` and `to`, each a cluster or both of its readings where [`ringwall_policy::Cluster::readings`]
/// has two; None where one is empty.
///
/// # Errors
/// A snapshot contradicts itself.
pub fn difference_of_readings<'a>(
    from: &'a [Compiled<'a>],
    to: &'a [Compiled<'a>],
) -> Result<Option<Difference<'a>>, RefineError> {
    let ends = |side: &'a [Compiled<'a>]| Some((side.first()?, side.last()?));
    let (Some((from, from_possibly)), Some((to, to_possibly))) = (ends(from), ends(to)) else {
        return Ok(None);
    };
    let mut found = difference(from, to)?;
    if std::ptr::eq(from, from_possibly) && std::ptr::eq(to, to_possibly) {
        return Ok(Some(found));
    }
    let possibly = difference(from_possibly, to_possibly)?;
    let compared = Compared {
        surely: std::mem::take(&mut found.regions),
        possibly: possibly.regions,
        crossed: [
            difference(from, to_possibly)?.regions,
            difference(from_possibly, to)?.regions,
        ],
    };
    let differs = |name: &str| {
        let policy = |side: &Compiled<'a>| said(side.cluster, name);
        policy(from) != policy(to)
    };
    found.regions = compared.joined(&found.ends, differs);
    found.possibly = Some(possibly.ends);
    Ok(Some(found))
}

/// Sources of a change with the same destinations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Sources {
    /// All of a class.
    Class(u32),
    /// Not this one of a class that is there.
    Without(u32),
    /// One, though its class is not there.
    One(u32),
}

/// A change, its destinations and some of its sources.
type Found = (Tagged, SetId, Sources);

/// The destinations of every change, source by source.
fn destinations<'a>(
    ends: &Ends<'a, 2>,
    changes: &mut Changes<'a>,
    sets: &mut Sets<'_, 'a, 2>,
    totals: &mut Totals,
) -> Result<Vec<Found>, RefineError> {
    let changed = Changed::of(ends);
    let deviations = deviations(ends, &changed, changes, totals)?;
    let mut sweep = Sweep::new(ends, &changed);
    let mut found: Vec<Found> = Vec::new();
    let (mut row, mut spread) = (Vec::new(), Vec::new());
    for source in sweep.order() {
        sweep.row(source, changes, &mut row)?;
        totals.add(source, &row, changes);
        // The same changes: the same destinations.
        row.sort_unstable_by_key(|(class, set)| (*set, *class));
        let runs: Vec<&[(u32, u32)]> = row.chunk_by(|(_, a), (_, b)| a == b).collect();
        spread.clear();
        for (run, index) in runs.iter().zip(0_u32..) {
            let set = run.first().map_or(0, |(_, set)| *set);
            spread.extend(changes.tagged(set).iter().map(|change| (*change, index)));
        }
        spread.sort_unstable();
        let begin = found.len();
        let mut known: Vec<Option<SetId>> = vec![None; runs.len()];
        for runs_of in spread.chunk_by(|(a, _), (b, _)| a == b) {
            let classes = || {
                let runs = runs_of.iter().filter_map(|(_, run)| runs.get(*run as usize));
                let mut classes: Vec<u32> = runs.flat_map(|run| *run).map(|(class, _)| *class).collect();
                classes.sort_unstable();
                classes
            };
            let set = match runs_of {
                [(_, run)] => match known.get_mut(*run as usize) {
                    Some(known) => *known.get_or_insert_with(|| sets.whole(&classes())),
                    None => continue,
                },
                _ => sets.whole(&classes()),
            };
            let Some((change, _)) = runs_of.first() else {
                continue;
            };
            found.push((*change, set, Sources::Class(source)));
        }
        deviate(ends, source, &deviations, sets, begin, &mut found);
    }
    Ok(found)
}

/// Takes those members of a class apart that do not have all of its destinations, or have more: `found` from `begin` on
/// is the class's, in order of the changes.
fn deviate(
    ends: &Ends<'_, 2>,
    class: u32,
    deviations: &[Deviation],
    sets: &mut Sets<'_, '_, 2>,
    begin: usize,
    found: &mut Vec<Found>,
) {
    let end = found.len();
    let members = ends.classes.get(class as usize).map(|class| &class.members);
    for member in members.into_iter().flatten() {
        let first = deviations.partition_point(|deviation| deviation.source < *member);
        let own = deviations.get(first..).unwrap_or_default();
        let own = own.iter().take_while(|deviation| deviation.source == *member);
        let own: Vec<&Deviation> = own.collect();
        for own in own.chunk_by(|a, b| a.change == b.change) {
            let Some(Deviation { change, .. }) = own.first() else {
                continue;
            };
            let of_class = found.get(begin..end).unwrap_or_default();
            let at = of_class.binary_search_by_key(change, |(change, ..)| *change).ok();
            let whole = at.and_then(|at| of_class.get(at)).map(|(_, set, _)| *set);
            let those = |added: bool| {
                let those = own.iter().filter(|deviation| deviation.added == added);
                those.map(|deviation| deviation.destination).collect::<Vec<u32>>()
            };
            if let Some(set) = whole {
                found.push((*change, set, Sources::Without(*member)));
            }
            if let Some(set) = sets.but(whole, those(true), those(false)) {
                found.push((*change, set, Sources::One(*member)));
            }
        }
    }
}

/// A change, its destinations and all of its sources.
type Merged = (Tagged, SetId, SetId);

/// Joins sources that have the same destinations for a change.
fn merge(ends: &Ends<'_, 2>, sets: &mut Sets<'_, '_, 2>, mut found: Vec<Found>) -> Vec<Merged> {
    found.sort_unstable();
    let mut merged: Vec<Merged> = Vec::new();
    // A pod and itself are never meant, so where one side is a single pod, the other can do without it. That may be what
    // others have.
    let mut alone: HashMap<(Tagged, SetId), Vec<u32>> = HashMap::new();
    for group in found.chunk_by(|a, b| (a.0, a.1) == (b.0, b.1)) {
        let Some(&(change, destinations, _)) = group.first() else {
            continue;
        };
        let (mut classes, mut without, mut ones) = (Vec::new(), Vec::new(), Vec::new());
        for (.., sources) in group {
            match sources {
                Sources::Class(class) => classes.push(*class),
                Sources::Without(end) => without.push(*end),
                Sources::One(end) => ones.push(*end),
            }
        }
        let Some(mut sources) = sets.with(&classes, ones, without) else {
            continue;
        };
        if let Some(only) = sets.only(sources)
            && ends.is_itself(only, only)
            && sets.holds(destinations, only)
        {
            if let Some(others) = sets.without(destinations, only) {
                alone.entry((change, others)).or_default().push(only);
            }
            continue;
        }
        if let Some(only) = sets.only(destinations)
            && ends.is_itself(only, only)
            && sets.holds(sources, only)
        {
            match sets.without(sources, only) {
                Some(others) => sources = others,
                None => continue,
            }
        }
        merged.push((change, destinations, sources));
    }
    if alone.is_empty() {
        return merged;
    }
    for (change, destinations, sources) in &mut merged {
        if let Some(more) = alone.remove(&(*change, *destinations)) {
            *sources = sets.and(*sources, more);
        }
    }
    let rest = alone.into_iter();
    merged.extend(
        rest.filter_map(|((change, set), ones)| Some((change, set, sets.with(&[], ones, Vec::new())?))),
    );
    merged
}

/// The regions, sorted.
fn in_order(changes: &Changes<'_>, sets: &Sets<'_, '_, 2>, merged: Vec<Merged>) -> Vec<Region> {
    let lists = sets.written_out(merged.iter().flat_map(|(_, dst, src)| [*dst, *src]));
    // Few lists of ends belong to many regions: each is compared with the others once.
    let mut order: Vec<(&Arc<[u32]>, SetId)> = lists.iter().map(|(set, list)| (list, *set)).collect();
    order.sort_unstable();
    let ranks: HashMap<SetId, u32> = order.into_iter().map(|(_, set)| set).zip(0..).collect();
    let rank = |set: SetId| ranks.get(&set).copied().unwrap_or(u32::MAX);
    let (ports, policies) = (changes.ports(), changes.policies());
    let mut ranked: Vec<((u32, u32), Merged)> = merged
        .into_iter()
        .map(|merged| ((rank(merged.2), rank(merged.1)), merged))
        .collect();
    let region = |&(_, ((change, family), dst, src)): &((u32, u32), Merged)| {
        let change = changes.change(change)?;
        Some(Region {
            src: lists.get(&src)?.clone(),
            dst: lists.get(&dst)?.clone(),
            family,
            service: change.service,
            ports: ports.get(change.ports as usize)?.clone(),
            sources: ports.get(change.sources as usize)?.clone(),
            from: change.from,
            depends: [false; 2],
            policies: policies.get(change.policies as usize)?.clone(),
        })
    };
    ranked.sort_unstable_by(|a, b| {
        let ties = || {
            let key = |((change, family), ..): Merged| {
                let change = changes.change(change)?;
                let sources = ports.get(change.sources as usize);
                let ports = ports.get(change.ports as usize);
                let policies = policies.get(change.policies as usize);
                Some((change.service, family, change.from, ports, sources, policies))
            };
            key(a.1).cmp(&key(b.1))
        };
        a.0.cmp(&b.0).then_with(ties)
    });
    ranked.iter().filter_map(region).collect()
}
