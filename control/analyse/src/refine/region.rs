//! What a line of a difference says.

use std::{cmp::Ordering, sync::Arc};

use super::{Ends, Family, Service, Span};

/// Flows that change alike: from each of `src` to each of `dst`, but never from a pod to itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Region {
    /// Indices of ends, in order.
    pub src: Arc<[u32]>,
    /// Indices of ends, in order.
    pub dst: Arc<[u32]>,
    /// Over one family alone, though the ends have both; None for whatever families they have in common.
    pub family: Option<Family>,
    /// Protocol.
    pub service: Service,
    /// Destination ports: in order, apart from one another; the whole of them for [`Service::Other`].
    pub ports: Arc<[Span]>,
    /// Source ports, likewise; all of them where they make no difference.
    pub sources: Arc<[Span]>,
    /// Whether the first side allows it; the second does not, or the other way round.
    pub from: bool,
    /// On which sides it depends on the address that a pod without one will have, instead.
    pub depends: [bool; 2],
    /// Policies that decide, on either side, in the directions that change; in order.
    pub policies: Arc<[Arc<str>]>,
}

impl Region {
    /// The verdicts of both sides: `allow`, `deny` or `depends`.
    pub fn verdicts(&self) -> [&'static str; 2] {
        verdicts([self.from, !self.from], self.depends)
    }

    /// Whether both sides' verdicts are certain.
    pub fn is_certain(&self) -> bool {
        self.depends == [false; 2]
    }

    /// Whether it speaks of a flow; `port` and `source` count where the service has ports.
    pub fn covers<const N: usize>(
        &self,
        ends: &Ends<'_, N>,
        (src, dst): (u32, u32),
        family: Family,
        service: Service,
        (source, port): (u16, u16),
    ) -> bool {
        let holds = |spans: &[Span], port: u16| spans.iter().any(|(lo, hi)| (*lo..=*hi).contains(&port));
        self.service == service
            && self.family.is_none_or(|own| own == family)
            && holds(&self.ports, port)
            && (!service.has_ports() || holds(&self.sources, source))
            && self.src.binary_search(&src).is_ok()
            && self.dst.binary_search(&dst).is_ok()
            && !ends.is_itself(src, dst)
    }

    /// Whether the lists of ends hold pairs that are not meant: a pod and itself.
    pub fn excepts_self<const N: usize>(&self, ends: &Ends<'_, N>) -> bool {
        let (mut a, mut b) = (&*self.src, &*self.dst);
        // Both are in order, and far apart more often than not: from the one that is behind skip to where the other is.
        while let (Some(first), Some(other)) = (a.first(), b.first()) {
            match first.cmp(other) {
                Ordering::Less => a = skip(a, *other),
                Ordering::Greater => b = skip(b, *first),
                Ordering::Equal if ends.is_itself(*first, *first) => return true,
                Ordering::Equal => (a, b) = (skip(a, first + 1), skip(b, first + 1)),
            }
        }
        false
    }
}

/// Verdicts as words, of whether each side allows it and whether that depends.
pub fn verdicts(allow: [bool; 2], depends: [bool; 2]) -> [&'static str; 2] {
    let [from, to] = allow;
    let [a, b] = depends;
    [(from, a), (to, b)].map(|(allow, depends)| match (depends, allow) {
        (true, _) => "depends",
        (false, true) => "allow",
        (false, false) => "deny",
    })
}

/// The list, which is in order, from the first that is not below `to`: near ones are found as fast as far ones.
fn skip(list: &[u32], to: u32) -> &[u32] {
    let mut reach = 1;
    while list.get(reach).is_some_and(|end| *end < to) {
        reach *= 2;
    }
    let (near, far) = list.split_at(reach.min(list.len()));
    match near.partition_point(|end| *end < to) {
        at if at == near.len() => far,
        at => list.get(at..).unwrap_or_default(),
    }
}
