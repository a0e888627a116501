//! What else a change would change: other pairs of endpoints, counted from the exact difference of the compiled states.

use ipnet::IpNet;
use ringwall_evaluate::{End, Identity, Service};
use ringwall_policy::Cluster;

use super::report::SideEffects;
use crate::{
    hypothetical::HypotheticalStates,
    refine::{self, Compiled, Difference, Ends, Family, RefineError, What},
};

/// Everything but the flow: the state before any change.
pub(super) struct Bystanders<'a> {
    before: Compiled<'a>,
    states: &'a HypotheticalStates,
    src: End<'a>,
    dst: End<'a>,
    service: Service,
}

impl<'a> Bystanders<'a> {
    /// Compiles the state. The snapshot in force is no substitute: the difference of snapshots of two compilers, whose tables
    /// have nothing in common, costs far more than this, which is cheap wherever `states` has compiled one like it.
    ///
    /// # Errors
    /// It does not compile.
    pub(super) fn of(
        cluster: &'a Cluster,
        states: &'a HypotheticalStates,
        src: &End<'a>,
        dst: &End<'a>,
        service: Service,
    ) -> Result<Self, RefineError> {
        let snapshot = states.compile(cluster)?;
        Ok(Self {
            before: Compiled { cluster, snapshot },
            states,
            src: *src,
            dst: *dst,
            service,
        })
    }

    /// Counts what a change changes besides the flow; `changed` is the state after it.
    ///
    /// # Errors
    /// It does not compile.
    pub(super) fn count(&self, changed: &Cluster) -> Result<SideEffects, RefineError> {
        let after = Compiled {
            cluster: changed,
            snapshot: self.states.compile(changed)?,
        };
        // An address outside of the cluster that the flow is of is an end of its own.
        let asked = [self.src, self.dst];
        let outside = asked
            .iter()
            .filter(|end| !matches!(end.identity, Identity::Pod(_)));
        let cuts: Vec<IpNet> = outside.filter_map(|end| end.address).map(IpNet::from).collect();
        let difference = refine::difference_with_cuts(&self.before, &after, &cuts)?;
        let ends = &difference.ends;
        let asked = index(ends, &self.src).zip(index(ends, &self.dst));
        Ok(SideEffects {
            pairs: pairs_besides(&difference, asked),
            other_ports: asked.is_some_and(|asked| self.other_ports(&difference, asked)),
            exact: true,
        })
    }

    /// Whether anything but the flow itself changes between its ends.
    fn other_ports(&self, difference: &Difference<'_>, asked: (u32, u32)) -> bool {
        let service = refine::Service::of(self.service.protocol);
        let port = self.service.port.unwrap_or(u16::from(self.service.protocol));
        let family = [self.src, self.dst]
            .iter()
            .find_map(|end| end.address)
            .map(Family::of);
        between(difference, asked).any(|region| {
            let only_the_flow = region.service == service
                && *region.ports == [(port, port)]
                && (region.family.is_none() || region.family == family);
            !only_the_flow
        })
    }
}

/// None for a pod that has lost its address to another: it has no part in anything.
fn index(ends: &Ends<'_, 2>, end: &End<'_>) -> Option<u32> {
    let address = match end.identity {
        Identity::Pod(pod) => return ends.endpoint(&pod.key),
        _ => end.address?,
    };
    // A pod's, of a namespace that has not been seen; else a range's.
    let has_it = |end: &refine::End<2>| {
        let mut resolved = end.resolved.iter().flatten().flatten();
        matches!(end.what, What::Endpoint(_)) && resolved.any(|face| face.address == Some(address))
    };
    match ends.all.iter().position(has_it) {
        Some(position) => u32::try_from(position).ok(),
        None => ends.range(address),
    }
}

/// The regions that a pair of ends is in.
fn between<'d>(
    difference: &'d Difference<'_>,
    (src, dst): (u32, u32),
) -> impl Iterator<Item = &'d refine::Region> {
    difference.regions.iter().filter(move |region| {
        region.src.binary_search(&src).is_ok() && region.dst.binary_search(&dst).is_ok()
    })
}

/// Pairs that change, of the cluster's endpoints and the flow's own ends, apart from the flow's.
fn pairs_besides(difference: &Difference<'_>, asked: Option<(u32, u32)>) -> u64 {
    // What the totals count of the endpoints; ends outside are met by their regions.
    let endpoints = difference.totals.of_endpoints();
    let Some(asked) = asked else { return endpoints };
    let is_endpoint = |end: u32| {
        let end = difference.ends.all.get(end as usize);
        end.is_some_and(|end| matches!(end.what, What::Endpoint(_)))
    };
    let (src, dst) = asked;
    let own = is_endpoint(src) && is_endpoint(dst) && between(difference, asked).next().is_some();
    let mut pairs = endpoints - u64::from(own);
    for end in [src, dst].into_iter().filter(|end| !is_endpoint(*end)) {
        let mut with: Vec<(u32, u32)> = Vec::new();
        for region in &difference.regions {
            let endpoints = |ends: &[u32]| -> Vec<u32> {
                let endpoints = ends.iter().copied().filter(|end| is_endpoint(*end));
                endpoints.collect()
            };
            if region.dst.binary_search(&end).is_ok() {
                with.extend(endpoints(&region.src).into_iter().map(|other| (other, end)));
            }
            if region.src.binary_search(&end).is_ok() {
                with.extend(endpoints(&region.dst).into_iter().map(|other| (end, other)));
            }
        }
        with.sort_unstable();
        with.dedup();
        with.retain(|pair| *pair != asked);
        pairs += with.len() as u64;
    }
    pairs
}
