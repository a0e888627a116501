//! Who owns which address (the order is in [`ringwall_policy::Cluster`]'s documentation).

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use hashbrown::HashMap;
use ringwall_policy::{Node, Pod};

use super::members::Members;

/// Who owns an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Owner {
    /// Number of the member.
    Pod(u32),
    /// Name of the node.
    Node(String),
}

/// Everybody who says that an address is his.
#[derive(Debug, Default)]
pub(super) struct Owners {
    pods: HashMap<IpAddr, Claim>,
    nodes: HashMap<IpAddr, BTreeSet<String>>,
    /// Nodes that pods on the host network name, with how many do.
    hosted: HashMap<IpAddr, BTreeMap<String, u32>>,
}

/// Members that list an address: nearly always one.
#[derive(Debug)]
enum Claim {
    One(u32),
    Many(Vec<u32>),
}

impl Owners {
    pub(super) fn with_capacity(pods: usize) -> Self {
        Self {
            pods: HashMap::with_capacity(pods),
            ..Self::default()
        }
    }

    /// A member lists an address; once, however often it does.
    pub(super) fn claim(&mut self, address: IpAddr, member: u32) {
        match self.pods.get_mut(&address) {
            None => drop(self.pods.insert(address, Claim::One(member))),
            Some(Claim::One(other)) if *other != member => {
                let both = vec![*other, member];
                self.pods.insert(address, Claim::Many(both));
            }
            Some(Claim::Many(others)) if !others.contains(&member) => others.push(member),
            Some(_) => {}
        }
    }

    /// A member lists it no longer.
    pub(super) fn release(&mut self, address: IpAddr, member: u32) {
        match self.pods.get_mut(&address) {
            Some(Claim::One(owner)) if *owner == member => drop(self.pods.remove(&address)),
            Some(Claim::Many(claims)) => {
                claims.retain(|claim| *claim != member);
                if let [last] = claims[..] {
                    self.pods.insert(address, Claim::One(last));
                }
            }
            _ => {}
        }
    }

    /// A node comes or goes.
    pub(super) fn node(&mut self, node: &Node, comes: bool) {
        for address in &node.addresses {
            let names = self.nodes.entry(*address).or_default();
            if comes {
                names.insert(node.name.clone());
            } else {
                names.remove(&node.name);
                if names.is_empty() {
                    self.nodes.remove(address);
                }
            }
        }
    }

    /// A live pod on the host network comes or goes.
    pub(super) fn hosted(&mut self, pod: &Pod, comes: bool) {
        let Some(node) = &pod.node else { return };
        for address in &pod.addresses {
            let names = self.hosted.entry(*address).or_default();
            let count = names.entry(node.clone()).or_default();
            if comes {
                *count += 1;
            } else {
                *count = count.saturating_sub(1);
                if *count == 0 {
                    names.remove(node);
                }
                if names.is_empty() {
                    self.hosted.remove(address);
                }
            }
        }
    }

    /// Whether exactly one member lists an address, who owns it then.
    pub(super) fn is_claimed_once(&self, address: IpAddr) -> bool {
        matches!(self.pods.get(&address), Some(Claim::One(_)))
    }

    /// Who owns an address; None where it has no owner.
    pub(super) fn of(&self, address: IpAddr, members: &Members) -> Option<Owner> {
        let newest = |claims: &[u32]| {
            claims.iter().copied().max_by(|one, other| {
                let age = |member: u32| {
                    members
                        .get(member)
                        .map(|it| (!it.pod.terminating, it.pod.created, &it.pod.uid, &it.pod.key))
                };
                age(*one).cmp(&age(*other))
            })
        };
        let pod = match self.pods.get(&address) {
            Some(Claim::One(member)) => Some(*member),
            Some(Claim::Many(claims)) => newest(claims),
            None => None,
        };
        if let Some(member) = pod {
            return Some(Owner::Pod(member));
        }
        let node = self.nodes.get(&address).and_then(BTreeSet::first);
        let hosted = || self.hosted.get(&address)?.keys().next();
        node.or_else(hosted).map(|name| Owner::Node(name.clone()))
    }
}
