//! Policies of the Admin and Baseline tiers for tests.

use std::sync::Arc;

use ringwall_policy::{Cluster, ClusterTier, Peer, PolicyId, PolicyKind, Selector, TieredPolicy, TieredRule};

/// A ClusterNetworkPolicy about all pods.
pub(crate) fn policy(
    tier: ClusterTier,
    name: &str,
    ingress: &[TieredRule],
    egress: &[TieredRule],
) -> TieredPolicy {
    TieredPolicy {
        id: PolicyId {
            kind: PolicyKind::ClusterNetworkPolicy,
            namespace: String::new(),
            name: name.to_owned(),
        },
        uid: String::new(),
        tier,
        priority: 1,
        namespaces: Selector::default(),
        pods: Selector::default(),
        ingress: ingress.to_vec(),
        egress: egress.to_vec(),
        faults: Vec::new(),
        unevaluated: Default::default(),
    }
}

/// A rule about everyone, or about addresses.
pub(crate) fn rule(action: ringwall_policy::Action, cidr: Option<&str>) -> TieredRule {
    let block = |cidr: &str| Peer::Block {
        cidr: cidr.parse().unwrap_or_default(),
        except: Vec::new(),
    };
    TieredRule {
        action,
        peers: cidr.map(|cidr| vec![block(cidr)]),
        ports: None,
    }
}

pub(crate) fn insert(cluster: &mut Cluster, policy: TieredPolicy) {
    cluster.tiered.insert(policy.id.clone(), Arc::new(policy));
}
