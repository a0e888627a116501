//! What a line of a difference says.

use std::sync::Arc;

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
    pub ports: Vec<Span>,
    /// Whether the first side allows it; the second does not, or the other way round.
    pub from: bool,
    /// Policies that decide, on either side, in the directions that change; in order.
    pub policies: Arc<[String]>,
}

impl Region {
    /// Whether it speaks of a flow; `port` counts where the service has ports.
    pub fn covers<const N: usize>(
        &self,
        ends: &Ends<'_, N>,
        (src, dst): (u32, u32),
        family: Family,
        service: Service,
        port: u16,
    ) -> bool {
        self.service == service
            && self.family.is_none_or(|own| own == family)
            && self.ports.iter().any(|(lo, hi)| (*lo..=*hi).contains(&port))
            && self.src.binary_search(&src).is_ok()
            && self.dst.binary_search(&dst).is_ok()
            && !ends.is_itself(src, dst)
    }

    /// Whether the lists of ends hold pairs that are not meant: a pod and itself.
    pub fn excepts_self<const N: usize>(&self, ends: &Ends<'_, N>) -> bool {
        let (src, dst) = (&*self.src, &*self.dst);
        let (small, large) = if src.len() < dst.len() {
            (src, dst)
        } else {
            (dst, src)
        };
        small
            .iter()
            .any(|end| ends.is_itself(*end, *end) && large.binary_search(end).is_ok())
    }
}
