//! How much changes, by namespaces: for whoever cannot read every region.

use std::collections::BTreeMap;

use super::{Ends, What, changes::Changes};

/// How many pairs of ends change between two places.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pairs {
    /// Something that passed between them does not any more.
    pub closed: u64,
    /// Something passes between them that did not.
    pub opened: u64,
}

/// Numbers of places: namespaces, and all that is no endpoint.
type NamespaceNumber = u32;

/// Pairs of ends that change, by where they are. A range of addresses that no side tells apart is one end.
#[derive(Debug)]
pub struct Totals {
    /// By number: the namespace; the last one is everything that is no endpoint.
    namespaces: Vec<String>,
    /// By end.
    places: Vec<NamespaceNumber>,
    /// By class: its places, in order, with how many ends and how many of these are never their own peers.
    classes: Vec<Vec<(NamespaceNumber, u64, u64)>>,
    /// By places of source and destination: how many close, how many open and how many do either; what is to be taken off
    /// may come before what it is taken from.
    pairs: BTreeMap<(NamespaceNumber, NamespaceNumber), [i64; 3]>,
}

impl Totals {
    pub(super) fn new(ends: &Ends<'_, 2>) -> Self {
        let mut namespaces: Vec<String> = Vec::new();
        let mut places = Vec::with_capacity(ends.all.len());
        // Endpoints come first and in order of their namespaces.
        for end in &ends.all {
            if let What::Endpoint(key) = &end.what
                && namespaces.last() != Some(&key.namespace)
            {
                namespaces.push(key.namespace.clone());
            }
            let last = namespaces.len() as NamespaceNumber;
            places.push(match end.what {
                What::Endpoint(_) => last - 1,
                What::Range { .. } => NamespaceNumber::MAX,
            });
        }
        let elsewhere = namespaces.len() as NamespaceNumber;
        places
            .iter_mut()
            .for_each(|place| *place = (*place).min(elsewhere));
        let of_class = |members: &Vec<u32>| {
            let mut own: Vec<(NamespaceNumber, u64, u64)> = Vec::new();
            for end in members {
                let place = places.get(*end as usize).copied().unwrap_or(elsewhere);
                let alone = u64::from(ends.is_itself(*end, *end));
                match own.last_mut() {
                    Some((last, count, singles)) if *last == place => {
                        *count += 1;
                        *singles += alone;
                    }
                    _ => own.push((place, 1, alone)),
                }
            }
            own
        };
        let classes = ends
            .classes
            .iter()
            .map(|class| of_class(&class.members))
            .collect();
        Self {
            namespaces,
            places,
            classes,
            pairs: BTreeMap::new(),
        }
    }

    /// Counts a row: destinations and their sets of tagged changes.
    pub(super) fn add(&mut self, source: u32, row: &[(u32, u32)], changes: &Changes<'_>) {
        let Self {
            classes,
            pairs,
            namespaces,
            ..
        } = self;
        let Some(sources) = classes.get(source as usize) else {
            return;
        };
        let mut destinations = vec![[0_i64; 3]; namespaces.len() + 1];
        for (class, set) in row {
            let tagged = changes.tagged(*set).iter().map(|(change, _)| *change);
            let changes = closed_opened_changed(changes.closes_and_opens(tagged));
            for (place, count, singles) in classes.get(*class as usize).into_iter().flatten() {
                if let Some(sums) = destinations.get_mut(*place as usize) {
                    for (sum, change) in sums.iter_mut().zip(changes) {
                        *sum += change * *count as i64;
                    }
                }
                if *class == source {
                    let sums = pairs.entry((*place, *place)).or_default();
                    for (sum, change) in sums.iter_mut().zip(changes) {
                        *sum -= change * *singles as i64;
                    }
                }
            }
        }
        for (place, more) in (0..).zip(destinations) {
            if more == [0; 3] {
                continue;
            }
            for (own, count, _) in sources {
                let sums = pairs.entry((*own, place)).or_default();
                for (sum, more) in sums.iter_mut().zip(more) {
                    *sum += more * *count as i64;
                }
            }
        }
    }

    /// One pair that changes otherwise than its classes: whether it closes and opens with them, and on its own.
    pub(super) fn correct(&mut self, (src, dst): (u32, u32), with_class: [bool; 2], own: [bool; 2]) {
        let place = |end: u32| self.places.get(end as usize).copied();
        let (Some(src), Some(dst)) = (place(src), place(dst)) else {
            return;
        };
        let sums = self.pairs.entry((src, dst)).or_default();
        let (with_class, own) = (closed_opened_changed(with_class), closed_opened_changed(own));
        for ((sum, with_class), own) in sums.iter_mut().zip(with_class).zip(own) {
            *sum += own - with_class;
        }
    }

    /// Namespaces of source and destination, None for what is no endpoint, in order.
    pub fn pairs(&self) -> impl Iterator<Item = ([Option<&str>; 2], Pairs)> {
        let name = |place: NamespaceNumber| self.namespaces.get(place as usize).map(String::as_str);
        self.pairs.iter().filter_map(move |((src, dst), sums)| {
            let [closed, opened, _] = sums.map(|sum| u64::try_from(sum).unwrap_or(0));
            (closed + opened > 0).then(|| ([name(*src), name(*dst)], Pairs { closed, opened }))
        })
    }

    /// How many pairs of endpoints change, in whatever way.
    pub fn of_endpoints(&self) -> u64 {
        let elsewhere = self.namespaces.len() as NamespaceNumber;
        let endpoints = self
            .pairs
            .iter()
            .filter(|((src, dst), _)| *src < elsewhere && *dst < elsewhere);
        let changed: i64 = endpoints.map(|(_, [.., changed])| changed).sum();
        u64::try_from(changed).unwrap_or(0)
    }
}

/// Of one pair: whether something closes, something opens, or either.
fn closed_opened_changed([closes, opens]: [bool; 2]) -> [i64; 3] {
    [closes, opens, closes || opens].map(i64::from)
}
