//! Assertions against a compiled cluster.

use std::net::IpAddr;

use hashbrown::HashMap;
use ipnet::IpNet;
use ringwall_dataplane::classify::{IdentityKind, L4};
use ringwall_evaluate::selects;
use ringwall_policy::Selector;

use super::{Assertion, Claim, EndSelector, Intents, Ports};
use crate::refine::{Compiled, Family, RefineError, Service, Span, What, cells::Reason, decisions::Reading};

/// What an assertion comes to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It holds.
    Holds,
    /// Its sources or destinations match nothing, so it says nothing.
    Vacuous {
        /// `from` or `to`.
        which: &'static str,
    },
    /// It does not hold.
    Fails(Box<CounterExample>),
}

/// A packet that contradicts an assertion.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CounterExample {
    /// `namespace/name`, or an address.
    pub from: String,
    /// The source's address, where it has one.
    pub from_address: Option<IpAddr>,
    /// `namespace/name`, or an address.
    pub to: String,
    /// The destination's address, where it has one.
    pub to_address: Option<IpAddr>,
    /// Protocol.
    pub service: Service,
    /// Its IP protocol number.
    pub protocol: u8,
    /// Destination port, where the protocol has ports; type and code of ICMP, where rules tell them apart.
    pub port: Option<u16>,
    /// Source port, where rules tell them apart.
    pub source_port: Option<u16>,
    /// Whether it passes.
    pub allow: bool,
    /// Whether that depends on the address that a pod without one will have: it passes if an ipBlock holds it.
    pub depends: bool,
    /// Why: at the source, then at the destination.
    pub decisions: [Decision; 2],
    /// Further pairs of a source (a pod, or a range of addresses) and a destination that contradict it.
    pub more: u64,
}

/// The decision of one direction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// `egress` or `ingress`.
    pub direction: &'static str,
    /// What decides.
    pub reason: Reason,
}

/// Answers assertions about one compiled cluster.
pub struct Checker<'a> {
    /// Where ipBlocks match pods without addresses surely.
    surely: Reading<'a>,
    /// Where they match them possibly; None where that is the same. Its ends are numbered alike.
    possibly: Option<Reading<'a>>,
}

/// Flows that must all pass, or none of them.
struct Duty<'s> {
    from: &'s [bool],
    to: &'s [bool],
    ports: &'s Ports,
    allow: bool,
}

/// The first service, port and source ports of a cell that are otherwise than a duty says.
type Packet = Option<(Service, u16, Span)>;

/// The flows of one duty that are otherwise.
struct Violations {
    /// The first pair of ends, its family and what of it is otherwise.
    first: (u32, u32, Family, Service, u16, Span),
    pairs: u64,
}

impl<'a> Checker<'a> {
    /// `files`: all whose assertions will be asked about. `compiled`: the cluster, or both of its readings where
    /// [`ringwall_policy::Cluster::readings`] has two.
    pub fn new(compiled: &'a [Compiled<'a>], files: &[Intents]) -> Option<Self> {
        let networks: Vec<IpNet> = files.iter().flat_map(Intents::networks).collect();
        let mut readings = compiled.iter().map(|compiled| Reading::of(compiled, &networks));
        Some(Self {
            surely: readings.next()?,
            possibly: readings.next(),
        })
    }

    /// What an assertion is held against: to be allowed, a flow has to pass wherever pods are; to be denied, nowhere.
    fn reading(&mut self, allow: bool) -> &mut Reading<'a> {
        match &mut self.possibly {
            Some(possibly) if !allow => possibly,
            _ => &mut self.surely,
        }
    }

    /// How many sources and destinations there are, and how many classes of them.
    pub fn sizes(&self) -> (usize, usize) {
        (self.surely.ends.all.len(), self.surely.ends.classes.len())
    }

    /// Whether an assertion holds.
    ///
    /// # Errors
    /// The snapshot contradicts itself.
    pub fn check(&mut self, assertion: &Assertion) -> Result<Outcome, RefineError> {
        // What must not be has to be denied to whoever may be meant.
        let possibly = assertion.claim == Claim::Deny;
        let select = |places: &[EndSelector]| self.select(places, possibly);
        let from = select(&assertion.from);
        let behind = assertion.behind_services.iter();
        let to: Vec<(Vec<bool>, &Ports)> = behind
            .map(|it| (select(&it.ends), &it.ports))
            .chain([(select(&assertion.to), &assertion.ports)])
            .collect();
        if !assertion.may_be_empty {
            let any = |ends: &Vec<bool>| ends.contains(&true);
            for (which, found) in [("from", any(&from)), ("to", to.iter().any(|(to, _)| any(to)))] {
                if !found {
                    return Ok(Outcome::Vacuous { which });
                }
            }
        }
        let all = vec![true; self.surely.ends.all.len()];
        let others = |ends: &[bool]| -> Vec<bool> { ends.iter().map(|own| !own).collect() };
        let not_from = others(&from);
        // Of each group of destinations: the other ends, and the other ports.
        let rest: Vec<(Vec<bool>, Ports)> = to
            .iter()
            .map(|(to, ports)| (others(to), ports.others()))
            .collect();
        let duty = |from, to, ports, allow| Duty {
            from,
            to,
            ports,
            allow,
        };
        let mut duties = Vec::new();
        for ((to, ports), (not_to, other_ports)) in to.iter().zip(&rest) {
            duties.push(duty(&from, to, ports, assertion.claim != Claim::Deny));
            match assertion.claim {
                Claim::Allow | Claim::Deny => {}
                Claim::OnlySources { other_ports: deny } => {
                    duties.push(duty(&not_from, to, ports, false));
                    duties.extend(deny.then(|| duty(&all, to, other_ports, false)));
                }
                Claim::OnlyDestinations { other_ports: deny } => {
                    duties.push(duty(&from, not_to, ports, false));
                    duties.extend(deny.then(|| duty(&from, &all, other_ports, false)));
                }
            }
        }
        let mut found: Option<Violations> = None;
        for duty in &duties {
            if let Some(violations) = self.reading(duty.allow).violations(duty)? {
                match &mut found {
                    Some(found) => found.pairs += violations.pairs,
                    None => found = Some(violations),
                }
            }
        }
        match found {
            None => Ok(Outcome::Holds),
            Some(violations) => Ok(Outcome::Fails(Box::new(self.counter_example(&violations)?))),
        }
    }

    /// The ends that any of the places mean. `possibly`: a network means pods without addresses that may come to be in it,
    /// else only those that must.
    fn select(&self, places: &[EndSelector], possibly: bool) -> Vec<bool> {
        let [compiled] = self.surely.ends.sides;
        let meant = |place: &EndSelector, end: &crate::refine::End<1>| {
            let mut resolved = end.resolved.iter().flatten().flatten();
            let kind = |wanted: IdentityKind| {
                let range = matches!(end.what, What::Range { .. });
                range
                    && end
                        .resolved
                        .iter()
                        .flatten()
                        .flatten()
                        .any(|face| face.identity.kind == wanted)
            };
            match place {
                EndSelector::Any => true,
                EndSelector::Outside => kind(IdentityKind::External),
                EndSelector::Nodes => kind(IdentityKind::Node),
                EndSelector::Pod(key) => end.what == What::Endpoint(key.clone()),
                // What is behind it is looked for by itself.
                EndSelector::Service(_) => false,
                EndSelector::Block { cidr, except } => {
                    let unplaced = compiled.cluster.unplaced.as_ref();
                    let will_be = || {
                        matches!(end.what, What::Endpoint(_))
                            && unplaced.is_some_and(|it| it.may_be_in(cidr, except, possibly))
                    };
                    resolved.any(|face| match face.address {
                        Some(address) => {
                            cidr.contains(&address) && !except.iter().any(|hole| hole.contains(&address))
                        }
                        None => will_be(),
                    })
                }
                EndSelector::Pods {
                    namespace,
                    namespaces,
                    pods,
                } => {
                    let What::Endpoint(key) = &end.what else {
                        return false;
                    };
                    let labels = |name: &str| compiled.cluster.namespaces.get(name).map(|it| &it.labels);
                    let in_namespaces = |selector: &Selector| {
                        labels(&key.namespace).is_some_and(|labels| selects(selector, labels))
                    };
                    namespace.as_ref().is_none_or(|name| *name == key.namespace)
                        && namespaces.as_ref().is_none_or(in_namespaces)
                        && compiled
                            .cluster
                            .pods
                            .get(key)
                            .is_some_and(|pod| selects(pods, &pod.labels))
                }
            }
        };
        let any = |end| places.iter().any(|place| meant(place, end));
        self.surely.ends.all.iter().map(any).collect()
    }

    fn counter_example(&self, violations: &Violations) -> Result<CounterExample, RefineError> {
        let (src, dst, family, service, port, sources) = violations.first;
        let protocol = service.protocol(family, (port, port));
        let port = (service != Service::Other).then_some(port);
        let l4 = L4::of(protocol, port, sources.0);
        let lost = RefineError::Snapshot("an end is not its own");
        let judge = |reading: &Reading<'_>| reading.ends.judge(0, (src, dst), family, l4);
        let surely = judge(&self.surely).ok_or(lost)?;
        let possibly = match &self.possibly {
            Some(reading) => judge(reading).ok_or(RefineError::Snapshot("an end is not its own"))?,
            None => surely,
        };
        let depends = surely.allow() != possibly.allow();
        let (judgement, reading) = match &self.possibly {
            // What would allow it says more than what denies it.
            Some(reading) if depends => (possibly, reading),
            _ => (surely, &self.surely),
        };
        let [compiled] = reading.ends.sides;
        let decision = |direction, verdict| -> Result<Decision, RefineError> {
            let reason = Reason::of(compiled, verdict)?;
            Ok(Decision { direction, reason })
        };
        let (from, from_address) = reading.name(src, family);
        let (to, to_address) = reading.name(dst, family);
        Ok(CounterExample {
            from,
            from_address,
            to,
            to_address,
            service,
            protocol,
            port,
            source_port: (sources != (0, u16::MAX)).then_some(sources.0),
            allow: surely.allow(),
            depends,
            decisions: [
                decision("egress", &judgement.egress)?,
                decision("ingress", &judgement.ingress)?,
            ],
            more: violations.pairs.saturating_sub(1),
        })
    }
}

impl Reading<'_> {
    fn violations(&mut self, duty: &Duty<'_>) -> Result<Option<Violations>, RefineError> {
        let ends = &self.ends;
        let members = |of: &[bool], class: u32| -> Vec<u32> {
            let class = ends.classes.get(class as usize);
            let members = class.map(|class| class.members.as_slice()).unwrap_or_default();
            members
                .iter()
                .copied()
                .filter(|end| of.get(*end as usize) == Some(&true))
                .collect()
        };
        let classes = 0..ends.classes.len() as u32;
        let inhabited = |of: &[bool]| -> Vec<(u32, Vec<u32>)> {
            let members = classes.clone().map(|class| (class, members(of, class)));
            members.filter(|(_, members)| !members.is_empty()).collect()
        };
        let (sources, destinations) = (inhabited(duty.from), inhabited(duty.to));
        // Exempt pairs, by classes: pods and their nodes, both ways, and endpoints that are not their own peers.
        let mut exempt: HashMap<(u32, u32), u64> = HashMap::new();
        let hosted = ends
            .hosted
            .iter()
            .flat_map(|pair| [(pair.endpoint, pair.node), (pair.node, pair.endpoint)]);
        let itself = (0..ends.all.len() as u32)
            .map(|end| (end, end))
            .filter(|(end, _)| ends.is_itself(*end, *end));
        for (src, dst) in hosted.chain(itself) {
            let is = |of: &[bool], end: u32| of.get(end as usize) == Some(&true);
            let class = |end: u32| ends.all.get(end as usize).map(|end| end.class);
            if let (true, Some(src), Some(dst)) =
                (is(duty.from, src) && is(duty.to, dst), class(src), class(dst))
            {
                *exempt.entry((src, dst)).or_default() += 1;
            }
        }
        let mut known: [HashMap<(u32, u32), Packet>; 2] = Default::default();
        let mut found: Option<Violations> = None;
        for (source, from) in &sources {
            for (destination, to) in &destinations {
                let mut otherwise = None;
                for (family, (grid, known)) in Family::BOTH
                    .into_iter()
                    .zip(self.grids.iter_mut().zip(&mut known))
                {
                    let Some(cell) = grid.between(*source, *destination)? else {
                        continue;
                    };
                    let packet = *known.entry(cell).or_insert_with(|| {
                        grid.first(cell, |service, span, allow| {
                            (allow != duty.allow)
                                .then(|| first_of(duty.ports.of(service), span, service, family))
                                .flatten()
                        })
                    });
                    if let Some((service, port, sources)) = packet {
                        otherwise = Some((family, service, port, sources));
                        break;
                    }
                }
                let Some((family, service, port, sources)) = otherwise else {
                    continue;
                };
                let exempt = exempt.get(&(*source, *destination)).copied().unwrap_or(0);
                let pairs = (from.len() as u64 * to.len() as u64).saturating_sub(exempt);
                if pairs == 0 {
                    continue;
                }
                match &mut found {
                    Some(found) => found.pairs += pairs,
                    None => {
                        let pairs_of = from.iter().flat_map(|src| to.iter().map(|dst| (*src, *dst)));
                        let mut real = pairs_of.filter(|(src, dst)| {
                            !ends.is_itself(*src, *dst) && ends.hosts(*src, *dst) == [false]
                        });
                        if let Some((src, dst)) = real.next() {
                            let first = (src, dst, family, service, port, sources);
                            found = Some(Violations { first, pairs });
                        }
                    }
                }
            }
        }
        self.denied_to_own_nodes(duty, &mut found)?;
        Ok(found)
    }

    /// What has to pass and does not, from pods to the nodes that host them: NetworkPolicies have no part in that.
    fn denied_to_own_nodes(
        &mut self,
        duty: &Duty<'_>,
        found: &mut Option<Violations>,
    ) -> Result<(), RefineError> {
        let ends = &self.ends;
        let is = |of: &[bool], end: u32| of.get(end as usize) == Some(&true);
        let class = |end: u32| ends.all.get(end as usize).map(|end| end.class);
        for pair in ends.hosted.iter().filter(|_| duty.allow) {
            let (src, dst) = (pair.endpoint, pair.node);
            let (true, Some(source), Some(destination)) =
                (is(duty.from, src) && is(duty.to, dst), class(src), class(dst))
            else {
                continue;
            };
            for (family, grid) in Family::BOTH.into_iter().zip(self.grids.iter_mut()) {
                let Some(cell) = grid.to_own_node(source, destination)? else {
                    continue;
                };
                let packet = grid.first(cell, |service, span, allow| {
                    (!allow)
                        .then(|| first_of(duty.ports.of(service), span, service, family))
                        .flatten()
                });
                let Some((service, port, sources)) = packet else {
                    continue;
                };
                match found {
                    Some(found) => found.pairs += 1,
                    None => {
                        *found = Some(Violations {
                            first: (src, dst, family, service, port, sources),
                            pairs: 1,
                        });
                    }
                }
                break;
            }
        }
        Ok(())
    }

    /// Name and address of an end.
    fn name(&self, end: u32, family: Family) -> (String, Option<IpAddr>) {
        let Some(end) = self.ends.all.get(end as usize) else {
            return (String::new(), None);
        };
        let resolved = end.resolved.get(family as usize).copied().flatten();
        let address = resolved.and_then(|[face]| face.address);
        let name = match (&end.what, address) {
            (What::Endpoint(key), _) => key.to_string(),
            (What::Range { .. }, Some(address)) => address.to_string(),
            (What::Range { first, .. }, None) => first.to_string(),
        };
        (name, address)
    }
}

/// The first port of a span that is in a list; of protocols without ports, a protocol number.
fn first_of(ports: &[(u16, u16)], span: (u16, u16), service: Service, family: Family) -> Option<u16> {
    let meet = ports
        .iter()
        .map(|(lo, hi)| ((*lo).max(span.0), (*hi).min(span.1)));
    let mut those = meet.filter(|(lo, hi)| lo <= hi);
    those.next().map(|(lo, hi)| match service {
        Service::Other => u16::from(service.protocol(family, (lo, hi))),
        _ => lo,
    })
}
