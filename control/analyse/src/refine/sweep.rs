//! Source by source, what changes about every destination: rows of the table of all pairs of classes, of which only one
//! is held at a time.

use hashbrown::HashSet;
use ringwall_dataplane::classify::{NONE, Row};

use super::{
    Ends, Family, RefineError, Totals,
    cells::{Cells, Interner, JointCell, Line, Lines},
    changes::{Changes, Tagged},
    ends::Class,
};

/// A number that was given out leads nowhere.
const NO_CLASS: RefineError = RefineError::Snapshot("a class that does not exist");

/// The classes of which every pair that changes has one: their rows or their column are not what they were. All of them
/// where the tables have nothing in common.
pub(super) struct Changed {
    classes: Vec<bool>,
}

impl Changed {
    pub(super) fn of(ends: &Ends<'_, 2>) -> Self {
        let [from, to] = ends.sides;
        let Some(changes) = to.snapshot.changes_since(&from.snapshot) else {
            return Self {
                classes: vec![true; ends.classes.len()],
            };
        };
        let pages = changes.pages.iter().map(|(row, _)| *row);
        let rows: HashSet<u32> = pages.chain(changes.isolating).collect();
        let differs = |rows_of: [Row; 2]| match rows_of {
            [Row::Cells(a), Row::Cells(b)] => {
                let own_node = to.snapshot.own_node_row(a);
                a != b || rows.contains(&a) || rows.contains(&own_node)
            }
            [a, b] => a != b,
        };
        let class = |class: &Class<2>| {
            let mut rows_and_classes = class.rows_and_classes.iter().flatten();
            rows_and_classes.any(|[a, b]| {
                a.peer_class != b.peer_class
                    || differs([a.ingress, b.ingress])
                    || differs([a.egress, b.egress])
            })
        };
        Self {
            classes: ends.classes.iter().map(class).collect(),
        }
    }

    fn holds(&self, class: u32) -> bool {
        self.classes.get(class as usize) != Some(&false)
    }
}

/// Rows of the table.
pub(super) struct Sweep<'e, 'a> {
    ends: &'e Ends<'a, 2>,
    changed: &'e Changed,
    families: [OneFamily; 2],
    /// By family: destinations and their sets of changes, of the row at hand.
    sets: [Vec<(u32, u32)>; 2],
}

impl<'e, 'a> Sweep<'e, 'a> {
    pub(super) fn new(ends: &'e Ends<'a, 2>, changed: &'e Changed) -> Self {
        Self {
            ends,
            changed,
            families: Family::BOTH.map(|family| OneFamily::new(ends, changed, family)),
            sets: [Vec::new(), Vec::new()],
        }
    }

    /// The classes of sources, those with the same rows and columns beside one another.
    pub(super) fn order(&self) -> Vec<u32> {
        let mut order: Vec<u32> = (0..self.ends.classes.len() as u32).collect();
        order.sort_by_cached_key(|class| {
            let lines = self.families.each_ref().map(|family| family.lines.line(*class));
            lines.map(|line| line.map(|line| (line.egress, line.column)))
        });
        order
    }

    /// Destinations and their sets of tagged changes, where there are any, in order of the destinations.
    pub(super) fn row(
        &mut self,
        source: u32,
        changes: &mut Changes<'a>,
        out: &mut Vec<(u32, u32)>,
    ) -> Result<(), RefineError> {
        for (family, sets) in self.families.iter_mut().zip(&mut self.sets) {
            match self.changed.holds(source) {
                true => family.row(source, changes, sets)?,
                false => family.row_of_unchanged(source, changes, sets)?,
            }
        }
        out.clear();
        let [v4, v6] = &self.sets;
        let (mut v4, mut v6) = (v4.iter().peekable(), v6.iter().peekable());
        loop {
            let next = [v4.peek(), v6.peek()].into_iter().flatten();
            let Some(class) = next.map(|(class, _)| *class).min() else {
                return Ok(());
            };
            let sets = [&mut v4, &mut v6].map(|sets| sets.next_if(|(own, _)| *own == class));
            let mut by_family = [None; 2];
            for ((family, own), set) in self.families.iter().zip(&mut by_family).zip(sets) {
                if family.lines.line(source).is_some() && family.lines.line(class).is_some() {
                    *own = Some(set.map_or(0, |(_, set)| *set));
                }
            }
            let tagged = changes.tag(by_family);
            if tagged != 0 {
                out.push((class, tagged));
            }
        }
    }
}

/// Rows of the table over one family.
struct OneFamily {
    lines: Lines<2>,
    /// The classes that have the family.
    own: Vec<(u32, Line)>,
    /// Of these, the changed ones.
    changed: Vec<(u32, Line)>,
    /// What the last source's row says of every column, and every row of its column.
    of_row: Answers,
    of_column: Answers,
    /// Set of changes by answer at the source, then at the destination; [`NONE`] where it was not asked for yet.
    known: Vec<u32>,
}

/// Answers in one direction: few are distinct.
struct Answers {
    /// Number of the row or column.
    of: u32,
    /// By column or row: index of the answer among the distinct ones.
    indices: Vec<u32>,
    distinct: Interner<JointCell>,
}

impl Answers {
    fn none() -> Self {
        Self {
            of: NONE,
            indices: Vec::new(),
            distinct: Interner::new(),
        }
    }

    fn ask(
        &mut self,
        of: u32,
        answers: impl Iterator<Item = Result<JointCell, RefineError>>,
    ) -> Result<(), RefineError> {
        if self.of == of {
            return Ok(());
        }
        *self = Self { of, ..Self::none() };
        for answer in answers {
            self.indices.push(self.distinct.number(answer?).0);
        }
        Ok(())
    }
}

/// A source as its row is about it: its rows for what goes out, and its columns in the rows of others.
struct Source<'l> {
    line: Line,
    rows: &'l [Row; 2],
    classes: &'l [u32; 2],
}

impl<'l> Source<'l> {
    /// None where it does not have the family.
    fn of(lines: &'l Lines<2>, source: u32) -> Result<Option<Self>, RefineError> {
        let Some(line) = lines.line(source) else {
            return Ok(None);
        };
        Ok(Some(Self {
            line,
            rows: lines.egress.get(line.egress).ok_or(NO_CLASS)?,
            classes: lines.columns.get(line.column).ok_or(NO_CLASS)?,
        }))
    }
}

impl OneFamily {
    fn new(ends: &Ends<'_, 2>, changed: &Changed, family: Family) -> Self {
        let lines = Lines::of(ends, family);
        let own = lines.classes.iter().zip(0..);
        let own: Vec<(u32, Line)> = own.filter_map(|(line, class)| Some((class, (*line)?))).collect();
        Self {
            lines,
            changed: own
                .iter()
                .copied()
                .filter(|(class, _)| changed.holds(*class))
                .collect(),
            own,
            of_row: Answers::none(),
            of_column: Answers::none(),
            known: Vec::new(),
        }
    }

    /// As [`Self::row`], of a source that is not changed: only changed destinations can differ.
    fn row_of_unchanged(
        &self,
        source: u32,
        changes: &mut Changes<'_>,
        out: &mut Vec<(u32, u32)>,
    ) -> Result<(), RefineError> {
        out.clear();
        let Some(Source { rows, classes, .. }) = Source::of(&self.lines, source)? else {
            return Ok(());
        };
        let Lines { ingress, columns, .. } = &self.lines;
        for (destination, line) in &self.changed {
            let at_source = changes
                .cells
                .joint(rows, columns.get(line.column).ok_or(NO_CLASS)?)?;
            let at_destination = changes
                .cells
                .joint(ingress.get(line.ingress).ok_or(NO_CLASS)?, classes)?;
            let set = changes.set(self.lines.family, at_source, at_destination);
            if set != 0 {
                out.push((*destination, set));
            }
        }
        Ok(())
    }

    /// Destinations and their sets of changes, where there are any, in order.
    fn row(
        &mut self,
        source: u32,
        changes: &mut Changes<'_>,
        out: &mut Vec<(u32, u32)>,
    ) -> Result<(), RefineError> {
        out.clear();
        let Some(Source { line, rows, classes }) = Source::of(&self.lines, source)? else {
            return Ok(());
        };
        let Lines { ingress, columns, .. } = &self.lines;
        let cells: &mut Cells<'_, 2> = &mut changes.cells;
        self.of_row.ask(
            line.egress,
            columns.values().iter().map(|classes| cells.joint(rows, classes)),
        )?;
        self.of_column.ask(
            line.column,
            ingress.values().iter().map(|rows| cells.joint(rows, classes)),
        )?;
        let (at_source, at_destination) = (self.of_row.distinct.values(), self.of_column.distinct.values());
        self.known.clear();
        self.known.resize(at_source.len() * at_destination.len(), NONE);
        for (destination, line) in &self.own {
            let (Some(egress), Some(ingress)) = (
                self.of_row.indices.get(line.column as usize),
                self.of_column.indices.get(line.ingress as usize),
            ) else {
                continue;
            };
            let place = *egress as usize * at_destination.len() + *ingress as usize;
            let Some(known) = self.known.get_mut(place) else {
                continue;
            };
            if *known == NONE
                && let (Some(egress), Some(ingress)) = (
                    at_source.get(*egress as usize),
                    at_destination.get(*ingress as usize),
                )
            {
                *known = changes.set(self.lines.family, *egress, *ingress);
            }
            if *known != 0 {
                out.push((*destination, *known));
            }
        }
        Ok(())
    }
}

/// One destination of one source that changes otherwise than its class: it is exempt on some side.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Deviation {
    pub(super) source: u32,
    pub(super) change: Tagged,
    pub(super) destination: u32,
    /// The change is there, though it is not of the class; else it is missing.
    pub(super) added: bool,
}

/// How pods and the nodes that host them change otherwise than their classes, in order.
pub(super) fn deviations(
    ends: &Ends<'_, 2>,
    changed: &Changed,
    changes: &mut Changes<'_>,
    totals: &mut Totals,
) -> Result<Vec<Deviation>, RefineError> {
    let mut out = Vec::new();
    let families = Family::BOTH.map(|family| Lines::of(ends, family));
    for pair in &ends.hosted {
        for (src, dst) in [(pair.endpoint, pair.node), (pair.node, pair.endpoint)] {
            let class = |end: u32| ends.all.get(end as usize).map(|end| end.class).ok_or(NO_CLASS);
            let (source, destination) = (class(src)?, class(dst)?);
            let [before, after] = pair.sides;
            if before == after && !changed.holds(source) && !changed.holds(destination) {
                continue;
            }
            // One of them is an address, so they have one family in common.
            for lines in &families {
                let (Some(source), Some(destination)) = (lines.line(source), lines.line(destination)) else {
                    continue;
                };
                let column = |line: Line| lines.columns.get(line.column).ok_or(NO_CLASS);
                let egress = lines.egress.get(source.egress).ok_or(NO_CLASS)?;
                let ingress = lines.ingress.get(destination.ingress).ok_or(NO_CLASS)?;
                // Where the one hosts the other, NetworkPolicies do not govern what goes to the node, and nothing does what
                // comes from it.
                let open = |rows: &[Row; 2]| {
                    let mut rows = *rows;
                    for (row, hosts) in rows.iter_mut().zip(pair.sides) {
                        if hosts {
                            *row = Row::Open;
                        }
                    }
                    rows
                };
                let outward = match src == pair.endpoint {
                    true => changes.cells.to_own_node(egress, pair.sides),
                    false => open(egress),
                };
                let inward = open(ingress);
                let mut set = |egress: &[Row; 2], ingress: &[Row; 2]| {
                    let egress = changes.cells.joint(egress, column(destination)?)?;
                    let ingress = changes.cells.joint(ingress, column(source)?)?;
                    Ok::<u32, RefineError>(changes.set(lines.family, egress, ingress))
                };
                let of_class = set(egress, ingress)?;
                let own = set(&outward, &inward)?;
                if own == of_class {
                    continue;
                }
                let (of_class, own) = (changes.of(of_class), changes.of(own));
                totals.correct(
                    (src, dst),
                    changes.closes_and_opens(of_class.iter().copied()),
                    changes.closes_and_opens(own.iter().copied()),
                );
                let deviation = |change: &u32, added| Deviation {
                    source: src,
                    change: (*change, None),
                    destination: dst,
                    added,
                };
                let missing = of_class.iter().filter(|change| !own.contains(change));
                out.extend(missing.map(|change| deviation(change, false)));
                let more = own.iter().filter(|change| !of_class.contains(change));
                out.extend(more.map(|change| deviation(change, true)));
            }
        }
    }
    out.sort_unstable();
    Ok(out)
}
