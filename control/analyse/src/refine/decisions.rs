//! What one cluster decides between its ends: for every protocol and port, in both readings where it has two.

use ipnet::IpNet;

use super::{
    Compiled, Ends, Family, RefineError, Service, Span,
    cells::{Grid, Reason},
    ports::{ALL_PORTS, walk},
};
use crate::judge::Fate;

/// A compiled cluster and what it decides.
pub(crate) struct Reading<'a> {
    pub(crate) ends: Ends<'a, 1>,
    /// By family.
    pub(crate) grids: [Grid<'a, 1>; 2],
}

impl<'a> Reading<'a> {
    /// `cuts`: networks whose borders no range of addresses may cross.
    pub(crate) fn of(compiled: &'a Compiled<'a>, cuts: &[IpNet]) -> Self {
        let ends = Ends::of([compiled], cuts);
        let grids = Family::BOTH.map(|family| Grid::new(&ends, family));
        Self { ends, grids }
    }

    fn between(&mut self, (src, dst): (u32, u32), family: Family) -> Result<Option<Between>, RefineError> {
        let class = |end: u32| self.ends.all.get(end as usize).map(|end| end.class);
        let (Some(source), Some(destination)) = (class(src), class(dst)) else {
            return Ok(None);
        };
        let Some(grid) = self.grids.get_mut(family as usize) else {
            return Ok(None);
        };
        let Some(cells) = grid.between(source, destination)? else {
            return Ok(None);
        };
        let to_own_node = self
            .ends
            .hosted
            .binary_search_by_key(&(src, dst), |pair| (pair.endpoint, pair.node));
        Ok(Some(if to_own_node.is_ok() {
            grid.to_own_node(source, destination)?
                .map_or(Between::Exempt, Between::Cells)
        } else if self.ends.hosts(src, dst) == [true] {
            Between::Exempt
        } else {
            Between::Cells(cells)
        }))
    }

    /// Spans of source ports that are told apart, each with its number; all ports in one where none are.
    fn sources(&self, family: Family, between: Between, service: Service) -> Vec<(usize, Span)> {
        match (between, self.grids.get(family as usize)) {
            (Between::Cells(cells), Some(grid)) => grid.sources(cells, service).collect(),
            _ => vec![(0, ALL_PORTS)],
        }
    }

    fn spans(
        &self,
        family: Family,
        between: Between,
        service: Service,
        source: usize,
    ) -> Vec<(u16, [Option<&Reason>; 2])> {
        let grid = self.grids.get(family as usize);
        let told_apart = service.is_of(family) && grid.is_some_and(Grid::tells_types_apart);
        if service.has_types() && !told_apart {
            return Vec::new();
        }
        match (between, grid) {
            (Between::Cells(cells), Some(grid)) => grid.reasons(cells, service, source),
            _ => vec![(0, [None; 2])],
        }
    }
}

/// What is decided between two ends in one reading.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Between {
    /// Everything passes, whatever policies say.
    Exempt,
    /// The cells at the source and at the destination.
    Cells((u32, u32)),
}

/// What is decided between two ends over one family; equal for pairs that are decided alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Decided {
    family: Family,
    surely: Between,
    possibly: Option<Between>,
}

impl Decided {
    /// The family that it is decided over.
    pub fn family(&self) -> Family {
        self.family
    }
}

/// What is decided about a span of ports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ports<'d> {
    /// The service that they are of.
    pub service: Service,
    /// The ports; of [`Service::Other`] protocol numbers, of ICMP types and codes.
    pub ports: Span,
    /// The source ports; all of them where they make no difference.
    pub sources: Span,
    /// What becomes of them.
    pub fate: Fate,
    /// What decides: at the source, then at the destination, in each reading.
    pub reasons: Vec<&'d Reason>,
}

/// A cluster, compiled, and what it decides.
pub struct Decisions<'a> {
    /// Where ipBlocks match pods without addresses surely.
    surely: Reading<'a>,
    /// Where they match them possibly; None where that is the same. Its ends are numbered alike.
    possibly: Option<Reading<'a>>,
}

impl<'a> Decisions<'a> {
    /// `compiled`: the cluster, or both of its readings where [`ringwall_policy::Cluster::readings`] has two; None where it
    /// is empty. `cuts`: networks whose borders no range of addresses may cross.
    pub fn of(compiled: &'a [Compiled<'a>], cuts: &[IpNet]) -> Option<Self> {
        let mut readings = compiled.iter().map(|compiled| Reading::of(compiled, cuts));
        Some(Self {
            surely: readings.next()?,
            possibly: readings.next(),
        })
    }

    /// The ends.
    pub fn ends(&self) -> &Ends<'a, 1> {
        &self.surely.ends
    }

    /// The classes of an end in each reading: ends with equal ones are decided about alike, apart from traffic to themselves
    /// and between a pod and its node.
    pub fn classes(&self, end: u32) -> [Option<u32>; 2] {
        let class = |reading: &Reading<'_>| reading.ends.all.get(end as usize).map(|end| end.class);
        [class(&self.surely), self.possibly.as_ref().and_then(class)]
    }

    /// What is decided between two different ends; None where they do not have the family in common.
    ///
    /// # Errors
    /// A snapshot contradicts itself.
    pub fn between(&mut self, pair: (u32, u32), family: Family) -> Result<Option<Decided>, RefineError> {
        let Some(surely) = self.surely.between(pair, family)? else {
            return Ok(None);
        };
        let possibly = match &mut self.possibly {
            Some(possibly) => possibly.between(pair, family)?,
            None => None,
        };
        Ok(Some(Decided {
            family,
            surely,
            possibly,
        }))
    }

    /// Every protocol and port of what [`Self::between`] answered: the services in order, their source ports in order, and of
    /// each their ports in order.
    pub fn ports(&self, decided: &Decided) -> Vec<Ports<'_>> {
        let mut out: Vec<Ports<'_>> = Vec::new();
        let possible = self.possibly.as_ref().zip(decided.possibly);
        for service in Service::ALL {
            // Rules, and so where source ports are cut, are the same in both readings.
            let mut sources = self.surely.sources(decided.family, decided.surely, service);
            if let Some((reading, between)) = possible {
                let others = reading.sources(decided.family, between, service);
                if others.len() > sources.len() {
                    sources = others;
                }
            }
            for (source, of_source) in sources {
                let surely = self.surely.spans(decided.family, decided.surely, service, source);
                let possibly = match possible {
                    Some((reading, between)) => reading.spans(decided.family, between, service, source),
                    None => surely.clone(),
                };
                let allows =
                    |reasons: [Option<&Reason>; 2]| reasons.iter().flatten().all(|reason| reason.allow);
                walk([&surely[..], &possibly[..]], |ports, [surely, possibly]| {
                    out.push(Ports {
                        service,
                        ports,
                        sources: of_source,
                        fate: Fate::of(allows(surely), allows(possibly)),
                        reasons: surely.into_iter().chain(possibly).flatten().collect(),
                    });
                });
            }
        }
        out
    }
}
