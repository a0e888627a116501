//! What rows decide about classes, read from the compiled snapshots: once per cell, and equal answers get equal numbers.

use hashbrown::HashMap;
use ringwall_dataplane::classify::{DirectionVerdict, Effect, NONE, Provenance, Row};

use super::{Compiled, RefineError, ports::Service};

/// Why a direction is decided as it is.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Reason {
    /// Whether the direction allows it.
    pub allow: bool,
    /// Why.
    pub effect: Effect,
    /// The policy of the rule that decides, or all that isolate, as `namespace/name` and in that order.
    pub policies: Vec<String>,
    /// Index of the rule that decides.
    pub rule: Option<u32>,
}

impl Reason {
    /// The reason of a verdict of the cluster's snapshot.
    ///
    /// # Errors
    /// The snapshot contradicts itself.
    pub fn of(compiled: &Compiled<'_>, verdict: &DirectionVerdict) -> Result<Self, RefineError> {
        let wrong = RefineError::Snapshot;
        let (policies, rule) = match verdict.effect {
            Effect::Allow | Effect::Isolated | Effect::Deny => {
                match compiled.snapshot.provenance(verdict.provenance) {
                    Some(Provenance::Rule { policy, rule }) => (vec![policy.to_string()], Some(rule)),
                    Some(Provenance::Isolating(policies)) => {
                        (policies.iter().map(ToString::to_string).collect(), None)
                    }
                    None => return Err(wrong("it does not say which policy decided")),
                }
            }
            Effect::Invalid => return Err(wrong("an end is not its own")),
            Effect::Open | Effect::SelfTraffic | Effect::Node | Effect::Unknown => (Vec::new(), None),
        };
        Ok(Self {
            allow: verdict.allow,
            effect: verdict.effect,
            policies,
            rule,
        })
    }
}

/// From each port on, the number of a [`Reason`].
pub(super) type Reasons = Vec<(u16, u32)>;

/// What a cell decides: for each [`Service`], [`Service::Other`] with one entry.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Cell {
    pub services: [Reasons; 4],
}

/// The cells of `N` snapshots. A [`Joint`] is what they decide about one pair of ends in one direction.
pub(super) struct Cells<'a, const N: usize> {
    sides: [&'a Compiled<'a>; N],
    reasons: Numbered<Reason>,
    cells: Numbered<Cell>,
    joints: Numbered<[u32; N]>,
    /// By side: reason of a verdict, by effect and provenance.
    known_reasons: [HashMap<(Effect, u32), u32>; N],
    /// By side: cell by row and port map.
    known_cells: [HashMap<(Row, u32), u32>; N],
    /// By joint: whether the sides decide differently.
    differs: Vec<bool>,
}

/// Number of what all sides decide in one direction.
pub(super) type Joint = u32;

/// Values and their numbers.
pub(super) struct Numbered<T> {
    numbers: HashMap<T, u32>,
    values: Vec<T>,
}

impl<T: Clone + Eq + std::hash::Hash> Numbered<T> {
    pub(super) fn new() -> Self {
        Self {
            numbers: HashMap::new(),
            values: Vec::new(),
        }
    }

    /// The value's number, and whether it is new.
    pub(super) fn number(&mut self, value: T) -> (u32, bool) {
        if let Some(number) = self.numbers.get(&value) {
            return (*number, false);
        }
        let number = self.values.len() as u32;
        self.values.push(value.clone());
        self.numbers.insert(value, number);
        (number, true)
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
        Self {
            sides,
            reasons: Numbered::new(),
            cells: Numbered::new(),
            joints: Numbered::new(),
            known_reasons: std::array::from_fn(|_| HashMap::new()),
            known_cells: std::array::from_fn(|_| HashMap::new()),
            differs: Vec::new(),
        }
    }

    /// What rows decide about classes, side by side.
    ///
    /// # Errors
    /// A number leads nowhere.
    pub(super) fn joint(&mut self, rows: &[Row; N], classes: &[u32; N]) -> Result<Joint, RefineError> {
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

    /// Whether the sides decide differently.
    pub(super) fn differs(&self, joint: Joint) -> bool {
        self.differs.get(joint as usize) == Some(&true)
    }

    /// What each side decides about a service.
    pub(super) fn of(&self, joint: Joint, service: Service) -> [&[(u16, u32)]; N] {
        let cells = self.joints.get(joint).copied().unwrap_or([NONE; N]);
        cells.map(|cell| {
            let cell = self.cells.get(cell);
            cell.and_then(|cell| cell.services.get(service.index()))
                .map_or(&[] as &[_], Vec::as_slice)
        })
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
        let mut services: [Reasons; 4] = Default::default();
        for (service, (_, spans)) in services.iter_mut().zip(&spans.protocols) {
            for (lo, verdict) in spans {
                let reason = self.number_of(side, verdict)?;
                // Neighbours may differ in what is not told.
                if service.last().is_none_or(|(_, last)| *last != reason) {
                    service.push((*lo, reason));
                }
            }
        }
        let portless = self.number_of(side, &spans.portless)?;
        if let Some(other) = services.last_mut() {
            other.push((0, portless));
        }
        let (number, _) = self.cells.number(Cell { services });
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
        let allowed = |reasons: &Reasons| {
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
            first
                .services
                .iter()
                .zip(&other.services)
                .any(|(a, b)| a != b && allowed(a) != allowed(b))
        })
    }
}
