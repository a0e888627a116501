//! Assertions about who can reach whom, checked exactly: over all classes of sources and destinations and all ports of the
//! compiled snapshot, not a sample.
//!
//! [`Intents::parse`] reads a file into [`raw::Intents`], which is nothing but what it says, and turns that into
//! assertions that mean something; [`Checker`] answers them for one compiled cluster. A pod's traffic to itself and
//! between a pod and the node that hosts it always passes, whatever policies say: no assertion is about it.

mod check;
pub mod raw;
mod read;

pub use check::{Checker, CounterExample, Decision, Outcome};
use ipnet::IpNet;
pub use read::IntentError;
use ringwall_policy::{ObjectKey, Selector};

use crate::{
    refine::{Service, Span},
    services::Directory,
};

/// A file of assertions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Intents {
    /// In the order of the file.
    pub assertions: Vec<Assertion>,
}

/// One assertion.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Assertion {
    /// Its name.
    pub name: String,
    /// Line in the file, from 1.
    pub line: u64,
    /// Sources.
    pub from: Vec<EndSelector>,
    /// Destinations.
    pub to: Vec<EndSelector>,
    /// Ports.
    pub ports: Ports,
    /// What is asserted of them.
    pub claim: Claim,
    /// Whether sources or destinations that match nothing are fine.
    pub may_be_empty: bool,
    /// What the Services among the destinations come to: see [`Intents::find_services`].
    pub behind_services: Vec<Destinations>,
}

/// Ends, each at the same ports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Destinations {
    /// The ends.
    pub ends: Vec<EndSelector>,
    /// Their ports.
    pub ports: Ports,
}

impl Intents {
    /// Finds the endpoints of the Services among the destinations. Until then, these match nothing.
    pub fn find_services(&mut self, directory: &Directory<'_>) {
        for assertion in &mut self.assertions {
            let services = assertion.to.iter().filter_map(|place| match place {
                EndSelector::Service(key) => Some(key),
                _ => None,
            });
            let found = services.flat_map(|key| directory.destinations(key, &assertion.ports));
            assertion.behind_services = found.collect();
        }
    }
}

/// What is asserted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Claim {
    /// All of it passes.
    Allow,
    /// None of it passes.
    Deny,
    /// All of it passes, and to the same destinations nothing from others.
    OnlySources {
        /// Nothing passes to the destinations at other ports.
        other_ports: bool,
    },
    /// All of it passes, and from the same sources nothing to others.
    OnlyDestinations {
        /// Nothing passes from the sources at other ports.
        other_ports: bool,
    },
}

/// Some ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EndSelector {
    /// Everybody.
    Any,
    /// Addresses outside of the cluster.
    Outside,
    /// Addresses of nodes.
    Nodes,
    /// One pod or workload.
    Pod(ObjectKey),
    /// Addresses.
    Block {
        /// Within this network.
        cidr: IpNet,
        /// But not in these.
        except: Vec<IpNet>,
    },
    /// Pods by namespace and labels.
    Pods {
        /// Namespace by name.
        namespace: Option<String>,
        /// Namespaces by label.
        namespaces: Option<Selector>,
        /// Pods by label.
        pods: Selector,
    },
    /// The endpoints of a Service, each at the port that the Service's leads to.
    Service(ObjectKey),
}

/// Ports of each service, in order and apart from one another; all of them where a service is meant whole.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ports([Vec<Span>; Service::ALL.len()]);

impl Ports {
    /// Everything.
    pub fn all() -> Self {
        Self(std::array::from_fn(|_| vec![(0, u16::MAX)]))
    }

    /// Those of a service.
    pub fn of(&self, service: Service) -> &[Span] {
        self.0.get(service as usize).map_or(&[], Vec::as_slice)
    }

    /// Whether a port of a service is among them.
    pub(crate) fn hold(&self, service: Service, port: u16) -> bool {
        let mut spans = self.of(service).iter();
        spans.any(|(lo, hi)| (*lo..=*hi).contains(&port))
    }

    /// Adds ports of a service. What is other than TCP, UDP and SCTP is ICMP of every type too.
    pub(crate) fn add(&mut self, service: Service, (lo, hi): Span) {
        if service == Service::Other {
            self.add(Service::Icmp, (0, u16::MAX));
            self.add(Service::IcmpV6, (0, u16::MAX));
        }
        let Some(own) = self.0.get_mut(service as usize) else {
            return;
        };
        own.push((lo, hi));
        own.sort_unstable();
        let mut joined: Vec<Span> = Vec::new();
        for (lo, hi) in own.drain(..) {
            match joined.last_mut() {
                Some(last) if u32::from(lo) <= u32::from(last.1) + 1 => last.1 = last.1.max(hi),
                _ => joined.push((lo, hi)),
            }
        }
        *own = joined;
    }

    /// Everything else.
    fn others(&self) -> Self {
        let complement = |own: &Vec<Span>| {
            let mut out = Vec::new();
            let mut next = Some(0_u16);
            for (lo, hi) in own {
                if let Some(next) = next
                    && next < *lo
                {
                    out.push((next, lo - 1));
                }
                next = hi.checked_add(1);
            }
            out.extend(next.map(|next| (next, u16::MAX)));
            out
        };
        Self(self.0.each_ref().map(complement))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_joined_and_the_others_are_the_rest() {
        let mut ports = Ports::default();
        for span in [(80, 80), (90, 100), (81, 89), (65535, 65535), (0, 0)] {
            ports.add(Service::Tcp, span);
        }
        assert_eq!(ports.of(Service::Tcp), [(0, 0), (80, 100), (65535, 65535)]);
        let others = ports.others();
        assert_eq!(others.of(Service::Tcp), [(1, 79), (101, 65534)]);
        assert_eq!(others.of(Service::Other), [(0, u16::MAX)]);
        assert_eq!(others.others(), ports);
    }
}
