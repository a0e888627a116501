//! What rows decide about classes, read from the compiled snapshots: once per cell, and equal answers get equal numbers.

use std::{
    borrow::Borrow,
    hash::{BuildHasher, Hash},
};

use hashbrown::{DefaultHashBuilder, HashMap, HashTable};
use ringwall_dataplane::classify::{DirectionVerdict, Effect, NONE, PolicyName, Provenance, Row};
use ringwall_policy::{PortMatch, policy_label, tier_denial};

use super::{
    Compiled, Ends, Family, RefineError, Span,
    ports::{self, ALL_PORTS, Service},
};

/// Why a direction is decided as it is.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Reason {
    /// Whether the direction allows it.
    pub allow: bool,
    /// Why.
    pub effect: Effect,
    /// The same in the words of `query`.
    pub word: &'static str,
    /// The policy of the rule that decides, or all that isolate, as [`policy_label`] and in that order.
    pub policies: Vec<String>,
    /// Index of the rule that decides.
    pub rule: Option<u32>,
    /// The tier of the policies.
    pub tier: Option<String>,
}

impl Reason {
    /// The reason of a verdict of the cluster's snapshot.
    ///
    /// # Errors
    /// The snapshot contradicts itself.
    pub fn of(compiled: &Compiled<'_>, verdict: &DirectionVerdict) -> Result<Self, RefineError> {
        let wrong = RefineError::Snapshot;
        let label = |policy: &PolicyName<'_>| policy_label(policy.kind, &policy.to_string());
        let tier = |policy: &PolicyName<'_>| policy.tier.to_owned();
        let mut word = verdict.effect.word();
        let (policies, rule, tier) = match verdict.effect {
            Effect::Allow | Effect::Isolated | Effect::Deny => {
                match compiled.snapshot.provenance(verdict.provenance) {
                    Some(Provenance::Rule { policy, rule }) => {
                        (vec![label(&policy)], Some(rule), Some(tier(&policy)))
                    }
                    Some(Provenance::Isolating(policies)) => {
                        let tier = policies.first().map(tier);
                        word = tier_denial(policies.iter().map(|policy| policy.kind));
                        (policies.iter().map(label).collect(), None, tier)
                    }
                    None => return Err(wrong("it does not say which policy decided")),
                }
            }
            Effect::Invalid => return Err(wrong("an end is not its own")),
            Effect::Open | Effect::Profile | Effect::SelfTraffic | Effect::Node | Effect::Unknown => {
                (Vec::new(), None, None)
            }
        };
        Ok(Self {
            allow: verdict.allow,
            effect: verdict.effect,
            word,
            policies,
            rule,
            tier,
        })
    }
}

/// From each port on, the number of a [`Reason`].
pub(super) type Reasons = Vec<(u16, u32)>;

/// What a cell decides: for each [`Service`], by port; for [`Service::Other`] by protocol number.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Cell {
    pub services: [Reasons; Service::ALL.len()],
    /// Where it tells source ports apart: for each span of [`Cells::sources`], TCP, UDP and SCTP in place of those above.
    pub by_source: Vec<[Reasons; 3]>,
}

impl Cell {
    /// About a service, from a span of source ports.
    fn of(&self, service: Service, source: usize) -> &[(u16, u32)] {
        let own = self
            .by_source
            .get(source)
            .and_then(|own| own.get(service.index()));
        let reasons = own.or_else(|| self.services.get(service.index()));
        reasons.map_or(&[], Vec::as_slice)
    }
}

/// The cells of `N` snapshots. A [`JointCell`] is what they decide about one pair of ends in one direction.
pub(super) struct Cells<'a, const N: usize> {
    sides: [&'a Compiled<'a>; N],
    /// Whether a rule asks for a type of ICMP.
    by_type: bool,
    /// Source ports, cut where rules tell them apart; of most clusters all in one span.
    sources: Vec<Span>,
    reasons: Interner<Reason>,
    cells: Interner<Cell>,
    joints: Interner<[u32; N]>,
    /// By side: reason of a verdict, by effect and provenance.
    known_reasons: [HashMap<(Effect, u32), u32>; N],
    /// By side: cell by row and port map.
    known_cells: [HashMap<(Row, u32), u32>; N],
    /// By joint: whether the sides decide differently.
    differs: Vec<bool>,
}

/// Number of what all sides decide in one direction.
pub(super) type JointCell = u32;

/// Values and their numbers.
pub(super) struct Interner<T> {
    numbers: HashTable<u32>,
    values: Vec<T>,
    hasher: DefaultHashBuilder,
}

impl<T: Eq + Hash> Interner<T> {
    pub(super) fn new() -> Self {
        Self {
            numbers: HashTable::new(),
            values: Vec::new(),
            hasher: DefaultHashBuilder::default(),
        }
    }

    /// The value's number, and whether it is new.
    pub(super) fn number(&mut self, value: T) -> (u32, bool) {
        match self.find(&value) {
            Some(number) => (number, false),
            None => (self.add(value), true),
        }
    }

    /// The number of a value that is made only where it is new.
    pub(super) fn number_of<Q>(&mut self, value: &Q) -> u32
    where
        T: Borrow<Q>,
        Q: Eq + Hash + ToOwned<Owned = T> + ?Sized,
    {
        match self.find(value) {
            Some(number) => number,
            None => self.add(value.to_owned()),
        }
    }

    fn find<Q: Eq + Hash + ?Sized>(&self, value: &Q) -> Option<u32>
    where
        T: Borrow<Q>,
    {
        let is = |number: &u32| {
            let known = self.values.get(*number as usize);
            known.is_some_and(|known| known.borrow() == value)
        };
        self.numbers.find(self.hasher.hash_one(value), is).copied()
    }

    fn add(&mut self, value: T) -> u32 {
        let number = self.values.len() as u32;
        let Self {
            numbers,
            values,
            hasher,
        } = self;
        values.push(value);
        let of = |number: &u32| {
            values
                .get(*number as usize)
                .map_or(0, |value| hasher.hash_one(value))
        };
        numbers.insert_unique(of(&number), number, of);
        number
    }

    pub(super) fn get(&self, number: u32) -> Option<&T> {
        self.values.get(number as usize)
    }

    /// In order of their numbers.
    pub(super) fn values(&self) -> &[T] {
        &self.values
    }
}

impl<'a, const N: usize> Cells<'a, N> {
    pub(super) fn new(sides: [&'a Compiled<'a>; N]) -> Self {
        let asks = |port: &PortMatch| matches!(port, PortMatch::Icmp { .. });
        Self {
            sides,
            by_type: sides.iter().any(|side| side.cluster.named_ports().any(asks)),
            sources: ports::source_spans(sides.iter().map(|side| side.cluster)),
            reasons: Interner::new(),
            cells: Interner::new(),
            joints: Interner::new(),
            known_reasons: std::array::from_fn(|_| HashMap::new()),
            known_cells: std::array::from_fn(|_| HashMap::new()),
            differs: Vec::new(),
        }
    }

    /// What rows decide about classes, side by side.
    ///
    /// # Errors
    /// A number leads nowhere.
    pub(super) fn joint(&mut self, rows: &[Row; N], classes: &[u32; N]) -> Result<JointCell, RefineError> {
        let mut cells = [0; N];
        for (side, ((row, class), cell)) in rows.iter().zip(classes).zip(&mut cells).enumerate() {
            *cell = self.cell(side, *row, *class)?;
        }
        let (number, new) = self.joints.number(cells);
        if new {
            let differs = self.differ(cells);
            self.differs.push(differs);
        }
        Ok(number)
    }

    /// The rows for what goes from pods with these egress rows to the nodes that host them, on the sides that are so.
    pub(super) fn to_own_node(&self, egress: &[Row; N], hosted: [bool; N]) -> [Row; N] {
        let mut rows = *egress;
        for ((row, compiled), hosted) in rows.iter_mut().zip(&self.sides).zip(hosted) {
            if let (true, Row::Cells(number)) = (hosted, *row) {
                *row = match compiled.snapshot.own_node_row(number) {
                    0 => Row::Open,
                    own => Row::Cells(own),
                };
            }
        }
        rows
    }

    /// Whether the sides decide differently.
    pub(super) fn differs(&self, joint: JointCell) -> bool {
        self.differs.get(joint as usize) == Some(&true)
    }

    /// What each side decides about a service, from a span of source ports.
    pub(super) fn of(&self, joint: JointCell, service: Service, source: usize) -> [&[(u16, u32)]; N] {
        let cells = self.joints.get(joint).copied().unwrap_or([NONE; N]);
        cells.map(|cell| {
            let cell = self.cells.get(cell);
            cell.map_or(&[] as &[_], |cell| cell.of(service, source))
        })
    }

    /// Source ports, cut where rules tell them apart.
    pub(super) fn sources(&self) -> &[Span] {
        &self.sources
    }

    /// Which spans of source ports have to be asked about: the first alone where no side's cell tells them apart.
    pub(super) fn told_apart(&self, joints: [JointCell; 2], service: Service) -> std::ops::Range<usize> {
        let joints = joints.iter().filter_map(|joint| self.joints.get(*joint));
        let mut cells = joints.flatten().filter_map(|cell| self.cells.get(*cell));
        let differs =
            |cell: &Cell| (1..cell.by_source.len()).any(|at| cell.of(service, at) != cell.of(service, 0));
        match service.has_ports() && cells.any(differs) {
            true => 0..self.sources.len(),
            false => 0..1,
        }
    }

    /// A reason by its number.
    pub(super) fn reason(&self, number: u32) -> Option<&Reason> {
        self.reasons.get(number)
    }

    fn cell(&mut self, side: usize, row: Row, class: u32) -> Result<u32, RefineError> {
        let wrong = RefineError::Snapshot;
        let compiled = self.sides.get(side).ok_or(wrong("a side that does not exist"))?;
        let map = compiled.snapshot.port_map_of(row, class);
        let key = (row, map.unwrap_or(NONE));
        let known = self.known_cells.get(side).and_then(|known| known.get(&key));
        if let Some(cell) = known {
            return Ok(*cell);
        }
        let spans = compiled
            .snapshot
            .port_spans(row, map)
            .ok_or(wrong("a cell has no port map"))?;
        let mut services: [Reasons; Service::ALL.len()] = Default::default();
        for (service, (_, spans)) in services.iter_mut().zip(&spans.protocols) {
            for (lo, verdict) in spans {
                let reason = self.number_of(side, verdict)?;
                // Neighbours may differ in what is not told.
                if service.last().is_none_or(|(_, last)| *last != reason) {
                    service.push((*lo, reason));
                }
            }
        }
        let others = match spans.others.is_empty() {
            true => vec![(0, spans.portless)],
            false => spans.others,
        };
        if self.by_type {
            for (service, protocol) in [(Service::Icmp, 1), (Service::IcmpV6, 58)] {
                let own = spans.by_type.iter().find(|(number, _)| *number == protocol);
                // Where the cell tells no types apart, all are decided as the protocol is.
                let whole = others.iter().rev().find(|(number, _)| *number <= protocol);
                let whole: Vec<(u16, DirectionVerdict)> = whole.map(|(_, it)| (0, *it)).into_iter().collect();
                for (lo, verdict) in own.map_or(&whole, |(_, spans)| spans) {
                    let reason = self.number_of(side, verdict)?;
                    if let Some(list) = services.get_mut(service.index())
                        && list.last().is_none_or(|(_, last)| *last != reason)
                    {
                        list.push((*lo, reason));
                    }
                }
            }
        }
        for (number, verdict) in others {
            let reason = self.number_of(side, &verdict)?;
            if let Some(other) = services.get_mut(Service::Other.index())
                && other.last().is_none_or(|(_, last)| *last != reason)
            {
                other.push((u16::from(number), reason));
            }
        }
        let mut by_source: Vec<[Reasons; 3]> = Vec::new();
        if !spans.by_source.is_empty() {
            for at in 0..self.sources.len() {
                let source = self.sources.get(at).map_or(0, |(first, _)| *first);
                let mut own: [Reasons; 3] = Default::default();
                for (reasons, (protocol, by_port)) in own.iter_mut().zip(&spans.protocols) {
                    for (lo, verdict) in by_port {
                        let mut nested = spans.by_source.iter();
                        let nested = nested.find(|it| it.protocol == *protocol && it.first == *lo);
                        let known =
                            nested.and_then(|it| it.spans.iter().rev().find(|(from, _)| *from <= source));
                        let reason = self.number_of(side, known.map_or(verdict, |(_, it)| it))?;
                        if reasons.last().is_none_or(|(_, last)| *last != reason) {
                            reasons.push((*lo, reason));
                        }
                    }
                }
                by_source.push(own);
            }
        }
        let (number, _) = self.cells.number(Cell { services, by_source });
        if let Some(known) = self.known_cells.get_mut(side) {
            known.insert(key, number);
        }
        Ok(number)
    }

    fn number_of(&mut self, side: usize, verdict: &DirectionVerdict) -> Result<u32, RefineError> {
        let wrong = RefineError::Snapshot;
        let key = (verdict.effect, verdict.provenance);
        if let Some(number) = self.known_reasons.get(side).and_then(|known| known.get(&key)) {
            return Ok(*number);
        }
        let compiled = self.sides.get(side).ok_or(wrong("a side that does not exist"))?;
        let (number, _) = self.reasons.number(Reason::of(compiled, verdict)?);
        if let Some(known) = self.known_reasons.get_mut(side) {
            known.insert(key, number);
        }
        Ok(number)
    }

    /// Whether two cells allow different ports.
    fn differ(&self, cells: [u32; N]) -> bool {
        let Some(first) = cells.first().and_then(|cell| self.cells.get(*cell)) else {
            return false;
        };
        let allowed = |reasons: &[(u16, u32)]| {
            let mut out: Vec<(u16, bool)> = Vec::new();
            for (lo, reason) in reasons {
                let allow = self.reason(*reason).is_some_and(|reason| reason.allow);
                if out.last().is_none_or(|(_, last)| *last != allow) {
                    out.push((*lo, allow));
                }
            }
            out
        };
        cells.iter().skip(1).any(|other| {
            let Some(other) = self.cells.get(*other) else {
                return false;
            };
            let sources = match first.by_source.is_empty() && other.by_source.is_empty() {
                true => 0..1,
                false => 0..self.sources.len(),
            };
            Service::ALL.into_iter().any(|service| {
                sources.clone().any(|source| {
                    let (a, b) = (first.of(service, source), other.of(service, source));
                    a != b && allowed(a) != allowed(b)
                })
            })
        })
    }
}

/// The rows and columns of classes over one family, each under a number.
pub(super) struct Lines<const N: usize> {
    pub(super) family: Family,
    /// By class: None where it does not have the family.
    pub(super) classes: Vec<Option<Line>>,
    /// Rows for what goes out.
    pub(super) egress: Interner<[Row; N]>,
    /// Rows for what comes in.
    pub(super) ingress: Interner<[Row; N]>,
    /// Columns in the rows of others.
    pub(super) columns: Interner<[u32; N]>,
}

/// Numbers of a class's rows and column.
#[derive(Clone, Copy, Debug)]
pub(super) struct Line {
    pub(super) egress: u32,
    pub(super) ingress: u32,
    pub(super) column: u32,
}

impl<const N: usize> Lines<N> {
    pub(super) fn of(ends: &Ends<'_, N>, family: Family) -> Self {
        let mut this = Self {
            family,
            classes: Vec::with_capacity(ends.classes.len()),
            egress: Interner::new(),
            ingress: Interner::new(),
            columns: Interner::new(),
        };
        for class in &ends.classes {
            let rows_and_classes = class.rows_and_classes.get(family as usize).copied().flatten();
            let line = rows_and_classes.map(|rows_and_classes| Line {
                egress: this.egress.number(rows_and_classes.map(|sight| sight.egress)).0,
                ingress: this.ingress.number(rows_and_classes.map(|sight| sight.ingress)).0,
                column: this
                    .columns
                    .number(rows_and_classes.map(|sight| sight.peer_class))
                    .0,
            });
            this.classes.push(line);
        }
        this
    }

    /// Of a class; None where it does not have the family.
    pub(super) fn line(&self, class: u32) -> Option<Line> {
        self.classes.get(class as usize).copied().flatten()
    }
}

/// What all sides decide between two classes over one family: looked up when asked for, once.
pub struct Grid<'a, const N: usize> {
    cells: Cells<'a, N>,
    lines: Lines<N>,
    /// By row, then by column; [`NONE`] where it was not asked for yet.
    known_egress: HashMap<u32, Vec<u32>>,
    known_ingress: HashMap<u32, Vec<u32>>,
}

impl<'a, const N: usize> Grid<'a, N> {
    /// Of the classes of some ends.
    pub fn new(ends: &Ends<'a, N>, family: Family) -> Self {
        Self {
            cells: Cells::new(ends.sides),
            lines: Lines::of(ends, family),
            known_egress: HashMap::new(),
            known_ingress: HashMap::new(),
        }
    }

    /// What is decided at the source and at the destination; None where they do not have the family in common.
    ///
    /// # Errors
    /// A snapshot contradicts itself.
    pub fn between(&mut self, source: u32, destination: u32) -> Result<Option<(u32, u32)>, RefineError> {
        let (Some(source), Some(destination)) = (self.lines.line(source), self.lines.line(destination))
        else {
            return Ok(None);
        };
        let columns = self.lines.columns.values().len();
        let mut cell =
            |known: &mut HashMap<u32, Vec<u32>>, rows: &Interner<[Row; N]>, row: u32, column: u32| {
                let wrong = RefineError::Snapshot("a class that does not exist");
                let own = known.entry(row).or_insert_with(|| vec![NONE; columns]);
                let place = own.get_mut(column as usize).ok_or(wrong)?;
                if *place == NONE {
                    let wrong = || RefineError::Snapshot("a class that does not exist");
                    let rows = rows.get(row).ok_or_else(wrong)?;
                    let classes = self.lines.columns.get(column).ok_or_else(wrong)?;
                    *place = self.cells.joint(rows, classes)?;
                }
                Ok::<u32, RefineError>(*place)
            };
        let out = cell(
            &mut self.known_egress,
            &self.lines.egress,
            source.egress,
            destination.column,
        )?;
        let into = cell(
            &mut self.known_ingress,
            &self.lines.ingress,
            destination.ingress,
            source.column,
        )?;
        Ok(Some((out, into)))
    }
}

impl Grid<'_, 1> {
    /// As [`Self::between`], from pods of a class to an address of the node that hosts them; None also where everything
    /// passes there.
    ///
    /// # Errors
    /// A snapshot contradicts itself.
    pub fn to_own_node(&mut self, source: u32, destination: u32) -> Result<Option<(u32, u32)>, RefineError> {
        let (Some(source), Some(destination)) = (self.lines.line(source), self.lines.line(destination))
        else {
            return Ok(None);
        };
        let wrong = || RefineError::Snapshot("a class that does not exist");
        let egress = self.lines.egress.get(source.egress).ok_or_else(wrong)?;
        let column = self.lines.columns.get(destination.column).ok_or_else(wrong)?;
        let rows = self.cells.to_own_node(egress, [true]);
        if rows == [Row::Open] {
            return Ok(None);
        }
        let out = self.cells.joint(&rows, column)?;
        let into = self.cells.joint(&[Row::Open], column)?;
        Ok(Some((out, into)))
    }

    /// The first service, port and span of source ports that `wanted` finds in what [`Self::between`] answered: it is asked
    /// about every span of ports and whether that is allowed.
    pub fn first(
        &self,
        (egress, ingress): (u32, u32),
        wanted: impl Fn(Service, Span, bool) -> Option<u16>,
    ) -> Option<(Service, u16, Span)> {
        let family = self.lines.family;
        let mut services = Service::ALL.into_iter().filter(|service| service.is_of(family));
        services.find_map(|service| {
            self.sources((egress, ingress), service)
                .find_map(|(source, span_of_source)| {
                    let mut found = None;
                    self.walk((egress, ingress), service, source, |span, reasons| {
                        let allow = reasons
                            .iter()
                            .all(|reason| reason.is_some_and(|reason| reason.allow));
                        found = found.or_else(|| wanted(service, span, allow));
                    });
                    Some((service, found?, span_of_source))
                })
        })
    }

    /// Spans of source ports that are told apart, each with its number; all ports in one where none are.
    pub(super) fn sources(
        &self,
        (egress, ingress): (u32, u32),
        service: Service,
    ) -> impl Iterator<Item = (usize, Span)> {
        let all = self.cells.sources();
        let told_apart = self.cells.told_apart([egress, ingress], service);
        let whole = told_apart.len() < all.len();
        told_apart.map(move |source| match whole {
            true => (source, ALL_PORTS),
            false => (source, all.get(source).copied().unwrap_or(ALL_PORTS)),
        })
    }

    /// Whether types of ICMP are told apart.
    pub(super) fn tells_types_apart(&self) -> bool {
        self.cells.by_type
    }

    /// What decides about a service from a span of source ports in what [`Self::between`] answered: from each port on, the
    /// reasons at the source and at the destination.
    pub(super) fn reasons(
        &self,
        cells: (u32, u32),
        service: Service,
        source: usize,
    ) -> Vec<(u16, [Option<&Reason>; 2])> {
        let mut out = Vec::new();
        self.walk(cells, service, source, |(lo, _), reasons| out.push((lo, reasons)));
        out
    }

    fn walk<'s>(
        &'s self,
        (egress, ingress): (u32, u32),
        service: Service,
        source: usize,
        mut each: impl FnMut(Span, [Option<&'s Reason>; 2]),
    ) {
        let [out] = self.cells.of(egress, service, source);
        let [into] = self.cells.of(ingress, service, source);
        ports::walk([out, into], |span, reasons| {
            each(span, reasons.map(|reason| self.cells.reason(reason)));
        });
    }
}
