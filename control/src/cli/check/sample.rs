//! The snapshot against the reference evaluator, on a sample of flows.

use std::net::IpAddr;

use super::super::{
    flow::{EndName, Service},
    judge::{Judge, reference_reasons},
    span::Asked,
};
use crate::{cluster::Cluster, reference};

/// Asks snapshot and reference the same about flows between all endpoints, and says how many.
///
/// # Errors
/// They differ, in words.
pub(super) fn compare(cluster: &Cluster, judge: &Judge, sample: usize) -> Result<usize, String> {
    let names = end_names(cluster);
    let asked = Asked::everything(cluster);
    let spans = asked.spans();
    let all = names.len() * names.len() * spans.len();
    if all == 0 || sample == 0 {
        return Ok(0);
    }
    let resolved: Vec<_> = names
        .iter()
        .map(|name| {
            let of_reference = match name {
                EndName::Pod(key) => reference::named(cluster, key),
                EndName::Address(address) => Some(reference::identify(cluster, *address)),
            };
            (
                name,
                judge.ends(cluster, name, name).map(|(end, _)| end),
                of_reference,
            )
        })
        .collect();
    // A stride that shares no factor with either count passes through all pairs and all spans alike.
    let shares = |stride: usize| gcd(stride, names.len()) > 1 || gcd(stride, spans.len()) > 1;
    let stride = (all / sample).max(1);
    let stride = (stride..)
        .find(|stride| *stride == 1 || !shares(*stride))
        .unwrap_or(1);
    let mut compared = 0;
    for index in (0..all).step_by(stride) {
        let pair = index / spans.len();
        let (Some(span), Some((src_name, src, a)), Some((dst_name, dst, b))) = (
            spans.get(index % spans.len()),
            resolved.get(pair / names.len()),
            resolved.get(pair % names.len()),
        ) else {
            continue;
        };
        let (Ok(src), Some(a), Ok(dst), Some(b)) = (src, a, dst, b) else {
            continue;
        };
        if let (Some(x), Some(y)) = (src.address, dst.address)
            && x.is_ipv4() != y.is_ipv4()
        {
            continue;
        }
        let Service { protocol, port } = span.service;
        let wanted = reference::judge(cluster, a, b, reference::Service { protocol, port });
        let got = judge.judge(src, dst, span.service)?;
        let same_way = (got.ingress, got.egress) == (wanted.ingress.allow, wanted.egress.allow);
        if !same_way || got.reasons != reference_reasons(&wanted) {
            return Err(format!(
                "the compiled snapshot contradicts the reference evaluator on {src_name} -> {dst_name} {}: {got:?} \
                 instead of {wanted:?}; please report this",
                span.service
            ));
        }
        compared += 1;
    }
    Ok(compared)
}

fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// Every address that the cluster or a policy speaks of, pods that have none, and some that nobody speaks of.
fn end_names(cluster: &Cluster) -> Vec<EndName> {
    let mut addresses = std::collections::BTreeSet::new();
    let mut names = Vec::new();
    for (key, pod) in &cluster.pods {
        addresses.extend(pod.addresses.iter().copied());
        if pod.addresses.is_empty() && !pod.host_network && !pod.finished {
            names.push(EndName::Pod(key.clone()));
        }
    }
    addresses.extend(
        cluster
            .nodes
            .values()
            .flat_map(|node| node.addresses.iter().copied()),
    );
    let pod_networks = cluster
        .nodes
        .values()
        .flat_map(|node| &node.pod_cidrs)
        .chain(&cluster.settings.pod_cidrs);
    addresses.extend(pod_networks.map(ipnet::IpNet::broadcast));
    for policy in cluster.policies.values() {
        for rule in policy.ingress.iter().chain(&policy.egress).flatten() {
            for peer in rule.peers.iter().flatten() {
                if let crate::cluster::Peer::Block { cidr, except } = peer {
                    for block in std::iter::once(cidr).chain(except) {
                        addresses.extend([block.network(), block.broadcast()]);
                    }
                }
            }
        }
    }
    addresses.extend([
        IpAddr::from([203, 0, 113, 9]),
        IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, 9]),
    ]);
    names.extend(addresses.into_iter().map(EndName::Address));
    names
}
