//! Policies of the Admin and Baseline tiers for tests.

use std::sync::Arc;

use ringwall_policy::{Cluster, Conditions, Order, Peer, PolicyKind, TieredPolicy, TieredRule};

fn part(rules: &[TieredRule]) -> Option<Vec<TieredRule>> {
    (!rules.is_empty()).then(|| rules.to_vec())
}

/// A ClusterNetworkPolicy about all pods.
pub(crate) fn policy(tier: &str, name: &str, ingress: &[TieredRule], egress: &[TieredRule]) -> TieredPolicy {
    TieredPolicy {
        ingress: part(ingress),
        egress: part(egress),
        ..TieredPolicy::new(
            PolicyKind::ClusterNetworkPolicy,
            name,
            tier,
            Order::of_priority(1),
        )
    }
}

/// A rule about everyone, or about addresses.
pub(crate) fn rule(action: ringwall_policy::Action, cidr: Option<&str>) -> TieredRule {
    let block = |cidr: &str| Peer::Block {
        cidr: cidr.parse().unwrap_or_default(),
        except: Vec::new(),
    };
    TieredRule {
        continues: false,
        action,
        peers: cidr.map(|cidr| vec![block(cidr)]),
        ports: None,
        conditions: Conditions::NONE,
    }
}

pub(crate) fn insert(cluster: &mut Cluster, policy: TieredPolicy) {
    cluster.tiered.insert(policy.id.clone(), Arc::new(policy));
}
