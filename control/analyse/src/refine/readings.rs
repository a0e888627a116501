//! A difference of clusters whose pods do not all have their addresses: what passes surely and what passes possibly are
//! compared apart, and put together by what both comparisons say of the same flows.

use hashbrown::HashSet;

use super::{Ends, Family, Region, Span};

/// The differences between the readings of two sides, over the same ends.
pub(super) struct Compared {
    /// From what passes surely to what passes surely.
    pub(super) surely: Vec<Region>,
    /// From what passes possibly to what passes possibly.
    pub(super) possibly: Vec<Region>,
    /// From what passes surely to what passes possibly, and from what passes possibly to what passes surely.
    pub(super) crossed: [Vec<Region>; 2],
}

impl Compared {
    /// Every flow whose verdict changes, with `depends` where a side's verdict does; and those that depend on both sides, as
    /// far as a policy that decides is not the same on both: whether they change depends, too.
    pub(super) fn joined<const N: usize>(
        self,
        ends: &Ends<'_, N>,
        differs: impl Fn(&str) -> bool,
    ) -> Vec<Region> {
        let mut out = Vec::new();
        // What is denied surely is denied before or after where possibly, too; and what both say is certain.
        let same: HashSet<Key<'_>> = self.surely.iter().map(key).collect();
        let (both, possibly): (Vec<&Region>, Vec<&Region>) = self
            .possibly
            .iter()
            .partition(|region| same.contains(&key(region)));
        let both: HashSet<Key<'_>> = both.into_iter().map(key).collect();
        let (certain, surely): (Vec<&Region>, Vec<&Region>) =
            self.surely.iter().partition(|region| both.contains(&key(region)));
        out.extend(certain.into_iter().cloned());
        for region in &surely {
            let (inside, outside) = apart(ends, region, &possibly);
            out.extend(inside);
            // It passes possibly on both sides.
            let depends = [!region.from, region.from];
            out.extend(outside.into_iter().map(|piece| Region { depends, ..piece }));
        }
        for region in &possibly {
            let (_, outside) = apart(ends, region, &surely);
            // It passes surely on neither side.
            let depends = [region.from, !region.from];
            out.extend(outside.into_iter().map(|piece| Region { depends, ..piece }));
        }
        let [opened, closed] = &self.crossed;
        let closed: Vec<Region> = closed
            .iter()
            .filter(|region| region.from)
            .map(|region| Region {
                from: false,
                ..region.clone()
            })
            .collect();
        for region in opened.iter().filter(|region| !region.from) {
            for other in &closed {
                let mut policies: Vec<_> = region.policies.iter().chain(&*other.policies).cloned().collect();
                policies.sort_unstable();
                policies.dedup();
                if policies.iter().any(|name| differs(name)) {
                    let (inside, _) = apart(ends, region, &[other]);
                    out.extend(inside.into_iter().map(|piece| Region {
                        depends: [true; 2],
                        policies: policies.as_slice().into(),
                        ..piece
                    }));
                }
            }
        }
        out.sort_by(|a, b| order(a).cmp(&order(b)));
        out
    }
}

type Key<'a> = (&'a [u32], &'a [u32], Option<Family>, usize, [&'a [Span]; 2], bool);

fn key(region: &Region) -> Key<'_> {
    (
        &region.src,
        &region.dst,
        region.family,
        region.service.index(),
        [&region.ports, &region.sources],
        region.from,
    )
}

fn order(region: &Region) -> impl Ord + '_ {
    (
        &region.src,
        &region.dst,
        region.service,
        region.family,
        region.from,
        region.depends,
        &region.ports,
        &region.sources,
        &region.policies,
    )
}

/// The parts of a region that others of the same direction hold, and those that they do not.
fn apart<const N: usize>(
    ends: &Ends<'_, N>,
    region: &Region,
    others: &[&Region],
) -> (Vec<Region>, Vec<Region>) {
    let (mut inside, mut outside) = (Vec::new(), vec![Flows::of(region)]);
    for other in others {
        if other.service != region.service || other.from != region.from {
            continue;
        }
        let other = Flows::of(other);
        let mut rest = Vec::new();
        for piece in outside {
            piece.cut(&other, &mut inside, &mut rest);
        }
        outside = rest;
    }
    let regions = |pieces: Vec<Flows>| -> Vec<Region> {
        let pieces = pieces.into_iter().filter(|piece| {
            // A pod and itself are never meant.
            !matches!((&*piece.src, &*piece.dst), ([src], [dst]) if ends.is_itself(*src, *dst))
        });
        pieces.map(|piece| piece.region(region)).collect()
    };
    (regions(inside), regions(outside))
}

/// Ends, families, ports and source ports: every combination of them.
#[derive(Clone)]
struct Flows {
    src: Vec<u32>,
    dst: Vec<u32>,
    families: Vec<u32>,
    ports: Vec<Span>,
    sources: Vec<Span>,
}

impl Flows {
    fn of(region: &Region) -> Self {
        Self {
            src: region.src.to_vec(),
            dst: region.dst.to_vec(),
            families: match region.family {
                None => vec![0, 1],
                Some(family) => vec![family as u32],
            },
            ports: region.ports.to_vec(),
            sources: region.sources.to_vec(),
        }
    }

    fn region(self, like: &Region) -> Region {
        Region {
            src: self.src.into(),
            dst: self.dst.into(),
            family: match *self.families {
                [0] => Some(Family::V4),
                [1] => Some(Family::V6),
                _ => None,
            },
            ports: self.ports.into(),
            sources: self.sources.into(),
            ..like.clone()
        }
    }

    fn is_empty(&self) -> bool {
        let ends = self.src.is_empty() || self.dst.is_empty();
        ends || self.families.is_empty() || self.ports.is_empty() || self.sources.is_empty()
    }

    /// Adds what `other` holds, as one piece, and the rest in pieces that do not overlap.
    fn cut(self, other: &Self, inside: &mut Vec<Self>, outside: &mut Vec<Self>) {
        let (src, no_src) = split(&self.src, &other.src);
        let (dst, no_dst) = split(&self.dst, &other.dst);
        let (families, no_families) = split(&self.families, &other.families);
        let (ports, no_ports) = split_ports(&self.ports, &other.ports);
        let (sources, no_sources) = split_ports(&self.sources, &other.sources);
        let common = Self {
            src,
            dst,
            families,
            ports,
            sources,
        };
        if common.is_empty() {
            outside.push(self);
            return;
        }
        let rest = [
            Self {
                src: no_src,
                ..self.clone()
            },
            Self {
                src: common.src.clone(),
                dst: no_dst,
                ..self.clone()
            },
            Self {
                families: no_families,
                ports: self.ports,
                sources: self.sources.clone(),
                ..common.clone()
            },
            Self {
                ports: no_ports,
                sources: self.sources,
                ..common.clone()
            },
            Self {
                sources: no_sources,
                ..common.clone()
            },
        ];
        outside.extend(rest.into_iter().filter(|piece| !piece.is_empty()));
        inside.push(common);
    }
}

/// What is in both lists, which are in order, and what is in the first alone.
fn split(list: &[u32], other: &[u32]) -> (Vec<u32>, Vec<u32>) {
    list.iter()
        .copied()
        .partition(|end| other.binary_search(end).is_ok())
}

/// The ports in both lists, and those in the first alone.
fn split_ports(list: &[Span], other: &[Span]) -> (Vec<Span>, Vec<Span>) {
    let (mut both, mut alone) = (Vec::new(), Vec::new());
    for (lo, hi) in list.iter().map(|(lo, hi)| (u32::from(*lo), u32::from(*hi))) {
        let mut at = lo;
        let span = |lo: u32, hi: u32| Some((u16::try_from(lo).ok()?, u16::try_from(hi).ok()?));
        for (first, last) in other {
            let (first, last) = (u32::from(*first).max(lo), u32::from(*last).min(hi));
            if first > last {
                continue;
            }
            if at < first {
                alone.extend(span(at, first - 1));
            }
            both.extend(span(first, last));
            at = last + 1;
        }
        if at <= hi {
            alone.extend(span(at, hi));
        }
    }
    (both, alone)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every point of a small box is in exactly one piece, and in the right one.
    #[test]
    fn boxes_are_cut_without_loss_or_overlap() {
        let boxes = |mask: u32| Flows {
            src: (0..3).filter(|n| mask >> n & 1 == 1).collect(),
            dst: (0..3).filter(|n| mask >> (3 + n) & 1 == 1).collect(),
            families: (0..2).filter(|n| mask >> (6 + n) & 1 == 1).collect(),
            ports: [(0, 1), (3, 6), (9, 9)]
                .into_iter()
                .zip(0..)
                .filter(|(_, n)| mask >> (8 + n) & 1 == 1)
                .map(|(span, _)| span)
                .collect(),
            sources: [(0, 0), (1, 1)]
                .into_iter()
                .zip(0..)
                .filter(|(_, n)| mask >> (11 + n) & 1 == 1)
                .map(|(span, _)| span)
                .collect(),
        };
        let holds = |of: &Flows, (src, dst, family, port, source): (u32, u32, u32, u16, u16)| {
            of.src.contains(&src)
                && of.dst.contains(&dst)
                && of.families.contains(&family)
                && of.ports.iter().any(|(lo, hi)| (*lo..=*hi).contains(&port))
                && of.sources.iter().any(|(lo, hi)| (*lo..=*hi).contains(&source))
        };
        let mut random = 7_u32;
        for _ in 0..300 {
            random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let (one, mut other) = (boxes(random >> 8), boxes(random >> 16));
            if random & 16 == 0 {
                other.ports = vec![(1, 4), (6, 8)];
            }
            let (mut inside, mut outside) = (Vec::new(), Vec::new());
            one.clone().cut(&other, &mut inside, &mut outside);
            for src in 0..3 {
                for dst in 0..3 {
                    for family in 0..2 {
                        for (port, source) in (0..11).flat_map(|port| [(port, 0), (port, 1)]) {
                            let point = (src, dst, family, port, source);
                            let count = |of: &[Flows]| of.iter().filter(|of| holds(of, point)).count();
                            let (here, there) = (holds(&one, point), holds(&other, point));
                            assert_eq!(count(&inside), usize::from(here && there));
                            assert_eq!(count(&outside), usize::from(here && !there));
                        }
                    }
                }
            }
        }
    }
}
