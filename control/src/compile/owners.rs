//! Who owns which address (the order is in [`Cluster`]'s documentation).

use std::net::IpAddr;

use hashbrown::HashMap;

use super::cohorts::Cohorts;
use crate::cluster::{Cluster, Pod};

/// Owners of addresses, and nodes by number.
pub(super) struct Owners<'a> {
    /// Names of nodes in order; their numbers are their positions.
    pub nodes: Vec<&'a str>,
    /// By member of the cohorts: number of its node.
    pub hosts: Vec<Option<u32>>,
    /// The pod that owns an address: its position among the members.
    pub pods: HashMap<IpAddr, u32>,
    /// The node that owns an address, where no pod does.
    pub node_addresses: HashMap<IpAddr, u32>,
}

impl<'a> Owners<'a> {
    pub(super) fn of(cluster: &'a Cluster, cohorts: &Cohorts<'a>) -> Self {
        let mut node_numbers: HashMap<&str, u32> = HashMap::new();
        for name in cluster.nodes.keys() {
            node_numbers.insert(name, 0);
        }
        for name in cluster.pods.values().filter_map(|pod| pod.node.as_deref()) {
            node_numbers.insert(name, 0);
        }
        let mut nodes: Vec<&str> = node_numbers.keys().copied().collect();
        nodes.sort_unstable();
        for (name, number) in nodes.iter().zip(0..) {
            node_numbers.insert(name, number);
        }
        let number = |pod: &Pod| node_numbers.get(pod.node.as_deref()?).copied();
        let hosts = cohorts.members.iter().map(|(pod, _)| number(pod)).collect();

        let mut pods: HashMap<IpAddr, u32> = HashMap::with_capacity(cohorts.members.len());
        let age = |pod: &'a Pod| (pod.created, &pod.uid, &pod.key);
        for ((pod, _), member) in cohorts.members.iter().zip(0..) {
            for address in &pod.addresses {
                let owner = pods.entry(*address).or_insert(member);
                let newer = cohorts
                    .members
                    .get(*owner as usize)
                    .is_none_or(|(current, _)| age(current) < age(pod));
                if newer {
                    *owner = member;
                }
            }
        }

        // Of several nodes the first by name: numbers are in that order.
        let mut node_addresses: HashMap<IpAddr, u32> = HashMap::new();
        for (address, name) in cluster
            .nodes
            .values()
            .flat_map(|node| node.addresses.iter().map(|address| (address, node.name.as_str())))
        {
            if let Some(number) = node_numbers.get(name) {
                let owner = node_addresses.entry(*address).or_insert(*number);
                *owner = (*owner).min(*number);
            }
        }
        let mut hosted: HashMap<IpAddr, u32> = HashMap::new();
        for pod in cluster
            .pods
            .values()
            .filter(|pod| pod.host_network && !pod.finished)
        {
            let Some(number) = number(pod) else { continue };
            for address in pod
                .addresses
                .iter()
                .filter(|address| !node_addresses.contains_key(*address))
            {
                let owner = hosted.entry(*address).or_insert(number);
                *owner = (*owner).min(number);
            }
        }
        node_addresses.extend(hosted);
        node_addresses.retain(|address, _| !pods.contains_key(address));
        Self {
            nodes,
            hosts,
            pods,
            node_addresses,
        }
    }
}
