//! What changes about pairs of ends: worked out once for each pair of answers that two snapshots give in both directions.

use std::sync::Arc;

use hashbrown::HashMap;

use super::{
    Family, Service, Span,
    cells::{Cells, Interner, JointCell},
    ports::{self, ALL_PORTS},
};

/// What changes about one pair of ends for one protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Change {
    pub(super) service: Service,
    /// Number of the list of ports.
    pub(super) ports: u32,
    /// Number of the list of source ports.
    pub(super) sources: u32,
    pub(super) from: bool,
    /// Number of the list of policies.
    pub(super) policies: u32,
}

/// Whether the first side allows it, the list of policies that decide, and the ports.
type AtPorts = ((bool, u32), Vec<Span>);

/// Numbers of what decides in each direction on each side.
type Deciding = [[u32; 2]; 2];

/// A change, and the family that it is of where the pair has both and they differ.
pub(super) type Tagged = (u32, Option<Family>);

/// Changes by what both snapshots decide in both directions. Sets of changes have numbers; 0 is none.
pub(super) struct Changes<'a> {
    pub(super) cells: Cells<'a, 2>,
    changes: Interner<Change>,
    /// Lists of ports, and of source ports.
    ports: Interner<Vec<Span>>,
    names: Interner<String>,
    /// Names of the policies of a reason.
    names_of: HashMap<u32, Vec<u32>>,
    /// Lists of policies that decide, in order of their numbers.
    policies: Interner<Vec<u32>>,
    /// Whether the first side allows it and the policies that decide; None where the sides agree.
    decided: HashMap<Deciding, Option<(bool, u32)>>,
    sets: Interner<Vec<u32>>,
    /// Set by what decides at the source and at the destination.
    known: HashMap<(Family, JointCell, JointCell), u32>,
    tagged: Interner<Vec<Tagged>>,
    /// Tagged set by the sets of both families.
    known_tagged: HashMap<(Option<u32>, Option<u32>), u32>,
}

impl<'a> Changes<'a> {
    pub(super) fn new(cells: Cells<'a, 2>) -> Self {
        let (mut sets, mut tagged) = (Interner::new(), Interner::new());
        sets.number(Vec::new());
        tagged.number(Vec::new());
        Self {
            cells,
            changes: Interner::new(),
            ports: Interner::new(),
            names: Interner::new(),
            names_of: HashMap::new(),
            policies: Interner::new(),
            decided: HashMap::new(),
            sets,
            known: HashMap::new(),
            tagged,
            known_tagged: HashMap::new(),
        }
    }

    /// The set of changes of a pair over one family.
    pub(super) fn set(&mut self, family: Family, egress: JointCell, ingress: JointCell) -> u32 {
        if !self.cells.differs(egress) && !self.cells.differs(ingress) {
            return 0;
        }
        let key = (family, egress, ingress);
        if let Some(set) = self.known.get(&key) {
            return *set;
        }
        let mut set = Vec::new();
        for service in Service::ALL.into_iter().filter(|service| service.is_of(family)) {
            self.of_service(service, egress, ingress, &mut set);
        }
        let (number, _) = self.sets.number(set);
        self.known.insert(key, number);
        number
    }

    fn of_service(&mut self, service: Service, egress: JointCell, ingress: JointCell, set: &mut Vec<u32>) {
        let Self {
            cells,
            changes,
            ports,
            names,
            names_of,
            policies,
            decided,
            ..
        } = self;
        let told_apart = cells.told_apart([egress, ingress], service);
        let whole = told_apart.len() < cells.sources().len();
        // What changes alike at the same ports, and the source ports from which it does.
        let mut by_ports: Vec<(AtPorts, Vec<Span>)> = Vec::new();
        for source in told_apart {
            let [from_egress, to_egress] = cells.of(egress, service, source);
            let [from_ingress, to_ingress] = cells.of(ingress, service, source);
            let mut found: Vec<AtPorts> = Vec::new();
            ports::walk(
                [from_egress, to_egress, from_ingress, to_ingress],
                |span, [from_egress, to_egress, from_ingress, to_ingress]| {
                    let key = [[from_egress, to_egress], [from_ingress, to_ingress]];
                    let change = *decided.entry(key).or_insert_with(|| {
                        let (from, reasons) = decide(cells, key)?;
                        let mut own: Vec<u32> = Vec::new();
                        for reason in reasons {
                            own.extend(&*names_of.entry(reason).or_insert_with(|| {
                                let policies = cells.reason(reason).map(|reason| &reason.policies);
                                let policies = policies.into_iter().flatten();
                                policies.map(|name| names.number_of(name.as_str())).collect()
                            }));
                        }
                        own.sort_unstable();
                        own.dedup();
                        Some((from, policies.number(own).0))
                    });
                    let Some(change) = change else { return };
                    match found.iter_mut().find(|(own, _)| *own == change) {
                        Some((_, spans)) => ports::push(spans, span),
                        None => found.push((change, vec![span])),
                    }
                },
            );
            let sources = match whole {
                true => ALL_PORTS,
                false => cells.sources().get(source).copied().unwrap_or(ALL_PORTS),
            };
            for change in found {
                match by_ports.iter_mut().find(|(own, _)| *own == change) {
                    Some((_, spans)) => ports::push(spans, sources),
                    None => by_ports.push((change, vec![sources])),
                }
            }
        }
        for (((from, policies), spans), sources) in by_ports {
            let change = Change {
                service,
                ports: ports.number(spans).0,
                sources: ports.number(sources).0,
                from,
                policies,
            };
            set.push(changes.number(change).0);
        }
    }

    /// The changes of a pair from those over each family; None where the pair does not have it.
    pub(super) fn tag(&mut self, families: [Option<u32>; 2]) -> u32 {
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

    pub(super) fn tagged(&self, set: u32) -> &[Tagged] {
        self.tagged.get(set).map(Vec::as_slice).unwrap_or_default()
    }

    /// Numbers of the changes of a set over one family.
    pub(super) fn of(&self, set: u32) -> &[u32] {
        self.sets.get(set).map(Vec::as_slice).unwrap_or_default()
    }

    /// Whether changes close something, and whether they open something.
    pub(super) fn closes_and_opens(&self, changes: impl Iterator<Item = u32>) -> [bool; 2] {
        let mut found = [false; 2];
        for change in changes.filter_map(|change| self.changes.get(change)) {
            let [closes, opens] = &mut found;
            *if change.from { closes } else { opens } = true;
        }
        found
    }

    pub(super) fn change(&self, change: u32) -> Option<&Change> {
        self.changes.get(change)
    }

    /// The lists of ports by their numbers.
    pub(super) fn ports(&self) -> Vec<Arc<[Span]>> {
        self.ports
            .values()
            .iter()
            .map(|spans| spans.as_slice().into())
            .collect()
    }

    /// The lists of policies by their numbers, each in order of the names.
    pub(super) fn policies(&self) -> Vec<Arc<[Arc<str>]>> {
        let names: Vec<Arc<str>> = self
            .names
            .values()
            .iter()
            .map(|name| name.as_str().into())
            .collect();
        let mut order: Vec<u32> = (0..names.len() as u32).collect();
        order.sort_unstable_by_key(|name| names.get(*name as usize));
        let mut ranks = vec![0; names.len()];
        for (name, rank) in order.iter().zip(0_u32..) {
            if let Some(place) = ranks.get_mut(*name as usize) {
                *place = rank;
            }
        }
        let in_order = |list: &Vec<u32>| {
            let mut list = list.clone();
            list.sort_unstable_by_key(|name| ranks.get(*name as usize));
            let names = list.iter().filter_map(|name| names.get(*name as usize));
            names.cloned().collect()
        };
        self.policies.values().iter().map(in_order).collect()
    }
}

/// Whether the first side allows it, and the reasons of the directions that change, where the sides differ.
fn decide(cells: &Cells<'_, 2>, directions: Deciding) -> Option<(bool, Vec<u32>)> {
    let allows = |reason: u32| cells.reason(reason).is_none_or(|reason| reason.allow);
    let (mut from, mut to) = (true, true);
    let mut reasons = Vec::new();
    for [a, b] in directions {
        from &= allows(a);
        to &= allows(b);
        if allows(a) != allows(b) {
            reasons.extend([a, b]);
        }
    }
    (from != to).then_some((from, reasons))
}
