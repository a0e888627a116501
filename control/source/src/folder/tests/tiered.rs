//! Policies whose rules decide in order, in a folder.

use ringwall_policy::{Action, PolicyKind, TieredPolicy, TieredRule};

use super::*;

/// A policy whose only rule does this to what comes from all pods.
pub(super) fn cluster_policy(name: &str, action: &str) -> String {
    format!(
        "apiVersion: policy.networking.k8s.io/v1alpha2\nkind: ClusterNetworkPolicy\nmetadata:\n  name: {name}\nspec:\n  \
         tier: Admin\n  priority: 7\n  subject:\n    namespaces: {{}}\n  ingress:\n  - action: {action}\n    from:\n    - \
         namespaces: {{}}\n"
    )
}

/// The same, with a rule towards nodes, which nothing is known of.
pub(super) fn towards_nodes(name: &str) -> String {
    cluster_policy(name, "Accept") + "  egress:\n  - action: Deny\n    to:\n    - nodes: {}\n"
}

fn tiered(loaded: &Loaded) -> Vec<String> {
    loaded.cluster.tiered.keys().map(ToString::to_string).collect()
}

fn only(loaded: &Loaded) -> &TieredPolicy {
    assert_eq!(loaded.cluster.tiered.len(), 1);
    loaded.cluster.tiered.values().next().unwrap()
}

fn unevaluated(loaded: &Loaded) -> Vec<&str> {
    loaded
        .cluster
        .unevaluated_kinds
        .iter()
        .map(String::as_str)
        .collect()
}

const NODES: &str = "nodes peers of ClusterNetworkPolicy.policy.networking.k8s.io";

#[test]
fn they_are_in_the_state_and_not_incomplete() {
    let older = |kind: &str, name: &str, more: &str| {
        format!(
            "apiVersion: policy.networking.k8s.io/v1alpha1\nkind: {kind}\nmetadata: {{name: {name}}}\nspec:\n  {more}subject: \
             {{namespaces: {{}}}}\n"
        )
    };
    let dir = folder(&[
        ("a.yaml", &cluster_policy("default", "Pass")),
        (
            "b.yaml",
            &older("AdminNetworkPolicy", "default", "priority: 3\n  "),
        ),
        ("c.yaml", &older("BaselineAdminNetworkPolicy", "default", "")),
        ("d.yaml", &policy("default")),
    ]);
    let loaded = read(dir.path()).unwrap();
    assert!(loaded.problems.is_empty(), "{:?}", loaded.problems);
    assert!(unevaluated(&loaded).is_empty());
    let kinds: Vec<PolicyKind> = loaded.cluster.tiered.keys().map(|id| id.kind).collect();
    assert_eq!(
        kinds,
        [
            PolicyKind::ClusterNetworkPolicy,
            PolicyKind::AdminNetworkPolicy,
            PolicyKind::BaselineAdminNetworkPolicy
        ]
    );
    assert_eq!(loaded.cluster.policies.len(), 1);
}

#[test]
fn every_mistake_in_one_says_file_line_and_field() {
    let broken = "apiVersion: policy.networking.k8s.io/v1alpha2
kind: ClusterNetworkPolicy
metadata:
  name: many
  namespace: a
spec:
  tier: Baseline
  priority: 1000
  subject:
    pods:
      podSelector: {matchLabels: {role: }}
  ingress:
  - name: from outside
    action: Deny
    from:
    - networks: [0.0.0.0/0]
  - action: Allow
    from:
    - namespaces:
        matchLabels: {tier: 1}
  egress:
  - action: Accept
    to:
    - networks: [010.0.0.0/8, 10.0.0.1/8]
    - {}
    - nodes: {}
    protocols:
    - tcp: {}
    - tcp: {destinationPort: {range: {start: 90, end: 80}}}
    - destinationNamedPort: web
  - action: Pass
    to:
    - namespaces: {sameLabels: [tenant]}
    ports:
    - {port: 80}
  - action: Accept
    to:
    - domainNames: ['*.example.org']
";
    let dir = folder(&[("p.yaml", broken)]);
    let loaded = read(dir.path()).unwrap();
    insta::assert_snapshot!(messages(dir.path(), &loaded.problems).join("\n"));
}

#[test]
fn what_cannot_be_placed_is_refused_at_a_cold_start() {
    let good = cluster_policy("p", "Deny");
    let dir = folder(&[
        ("a.yaml", &good.replace("tier: Admin", "tier: admin")),
        ("b.yaml", &good.replace("priority: 7", "priority: 1001")),
        ("c.yaml", &good.replace("    namespaces: {}", "    namespace: {}")),
        ("d.yaml", &good.replace("ingress:", "ingres:")),
        ("e.yaml", &good.replace("v1alpha2", "v1alpha1")),
        ("f.yaml", &good.replace("  subject:\n    namespaces: {}\n", "")),
    ]);
    insta::assert_snapshot!(refused(&dir).join("\n"));
}

#[test]
fn one_object_in_two_files_is_one() {
    let dir = folder(&[
        ("a.yaml", &cluster_policy("p", "Deny")),
        ("b.yaml", &cluster_policy("p", "Pass")),
    ]);
    assert_eq!(
        refused(&dir),
        ["b.yaml:1: ClusterNetworkPolicy p: already defined at a.yaml:1; remove one of them"]
    );
}

#[test]
fn one_that_becomes_invalid_keeps_its_last_good_version() {
    let good = cluster_policy("p", "Deny");
    let dir = folder(&[("p.yaml", &good)]);
    let (first, watch) = watch(&dir);
    let wanted = only(&first).clone();
    assert_eq!(
        (wanted.rules().next().unwrap().action, &*wanted.faults),
        (Action::Deny, &[][..])
    );

    // A rule that is not understood, what only an API server minds, and what cannot be placed.
    for bad in [
        cluster_policy("p", "Drop"),
        good.replace("  name: p", "  name: p\n  shard: 1"),
        good.replace("tier: Admin", "tier: admin"),
    ] {
        write(dir.path(), "p.yaml", &bad);
        let kept = until(&watch, |loaded| !loaded.problems.is_empty());
        assert_eq!(*only(&kept), wanted, "{bad}");
        assert_eq!(kept.kept().count(), 1);
        write(dir.path(), "p.yaml", &good);
        until(&watch, |loaded| loaded.problems.is_empty());
    }

    // What is valid again counts, what is gone is gone, and one that never was valid counts as it is understood.
    write(dir.path(), "p.yaml", &cluster_policy("p", "Pass"));
    let mended = until(&watch, |loaded| loaded.problems.is_empty());
    assert_eq!(only(&mended).rules().next().unwrap().action, Action::Pass);
    // Never without any object in between.
    write(dir.path(), "q.yaml", &cluster_policy("q", "Drop"));
    fs::remove_file(dir.path().join("p.yaml")).unwrap();
    let new = until(&watch, |loaded| tiered(loaded) == ["q"]);
    assert_eq!(
        only(&new).ingress,
        Some(vec![TieredRule::not_understood(Action::Deny)])
    );
    assert_eq!((new.kept().count(), new.problems.len()), (0, 1));
}

#[test]
fn what_of_one_is_not_evaluated_is_incomplete_as_long_as_it_is_in_force() {
    let dir = folder(&[("p.yaml", &towards_nodes("p")), ("q.yaml", &pod("q", "10.0.0.1"))]);
    let (first, watch) = watch(&dir);
    assert_eq!(unevaluated(&first), [NODES]);
    assert_eq!(only(&first).faults, []);
    let kinds: Vec<ProblemKind> = first.problems.iter().map(|problem| problem.kind).collect();
    assert_eq!(kinds, [ProblemKind::Unevaluated]);
    // The version that stays has them.
    write(dir.path(), "p.yaml", &cluster_policy("p", "Drop"));
    let kept = until(&watch, |loaded| loaded.kept().next().is_some());
    assert_eq!(unevaluated(&kept), [NODES]);
    write(dir.path(), "p.yaml", &cluster_policy("p", "Deny"));
    let without = until(&watch, |loaded| loaded.problems.is_empty());
    assert!(unevaluated(&without).is_empty());
    write(dir.path(), "r.yaml", &towards_nodes("r"));
    until(&watch, |loaded| unevaluated(loaded) == [NODES]);
    fs::remove_file(dir.path().join("r.yaml")).unwrap();
    until(&watch, |loaded| {
        unevaluated(loaded).is_empty() && tiered(loaded) == ["p"]
    });
}

#[test]
fn those_that_vanish_are_held_as_any_policy() {
    let dir = folder(&[("pod.yaml", &pod("x", "10.0.0.1"))]);
    for name in ["a", "b"] {
        write(
            dir.path(),
            &format!("p/{name}.yaml"),
            &cluster_policy(name, "Deny"),
        );
    }
    let (_, watch) = watch(&dir);
    fs::remove_dir_all(dir.path().join("p")).unwrap();
    assert!(held(&watch).starts_with("2 of 2 policies are gone"));
    watch.accept();
    until(&watch, |loaded| tiered(loaded).is_empty());
}

/// Blocks that the egress rules are for; None for everything.
fn towards(loaded: &Loaded) -> Option<Vec<String>> {
    let rules = only(loaded).egress.iter().flatten();
    let peers: Vec<_> = rules.map(|rule| rule.peers.as_ref()).collect::<Option<_>>()?;
    let blocks = peers
        .into_iter()
        .flatten()
        .flat_map(|peer| loaded.cluster.blocks_of(peer));
    Some(blocks.map(|(cidr, _)| cidr.to_string()).collect())
}

#[test]
fn t24_peers_by_nodes_are_the_addresses_of_the_nodes_as_these_come_change_and_go() {
    let node = |name: &str, zone: &str, address: &str| {
        format!(
            "apiVersion: v1\nkind: Node\nmetadata: {{name: {name}, labels: {{zone: {zone}}}, annotations: \
             {{projectcalico.org/IPv4VXLANTunnelAddr: 10.9.9.9}}}}\nspec: {{podCIDRs: [10.244.0.0/24]}}\n\
             status: {{addresses: [{{type: Hostname, address: {address}}}, {{type: Hostname, address: {name}}}]}}\n"
        )
    };
    let policy = towards_nodes("p").replace("nodes: {}", "nodes: {matchLabels: {zone: a}}");
    let dir = folder(&[("p.yaml", &policy)]);
    let (first, watch) = watch(&dir);
    // Nothing is known of nodes: the rule denies everything.
    assert_eq!((towards(&first), unevaluated(&first)), (None, vec![NODES]));
    write(dir.path(), "n1.yaml", &node("n1", "a", "192.0.2.1"));
    let blocks = |wanted: &'static [&str]| {
        move |loaded: &Loaded| towards(loaded).is_some_and(|blocks| blocks == wanted)
    };
    let known = until(&watch, blocks(&["192.0.2.1/32"]));
    assert_eq!((unevaluated(&known), known.problems.len()), (vec![], 0));
    write(dir.path(), "n2.yaml", &node("n2", "a", "2001:db8::2"));
    until(&watch, blocks(&["192.0.2.1/32", "2001:db8::2/128"]));
    write(dir.path(), "n2.yaml", &node("n2", "b", "2001:db8::2"));
    until(&watch, blocks(&["192.0.2.1/32"]));
    write(dir.path(), "n1.yaml", &node("n1", "a", "192.0.2.7"));
    until(&watch, blocks(&["192.0.2.7/32"]));
    // A version that becomes invalid goes on following them.
    write(
        dir.path(),
        "p.yaml",
        &policy.replace("action: Deny", "action: Drop"),
    );
    until(&watch, |loaded| !loaded.problems.is_empty());
    write(dir.path(), "n1.yaml", &node("n1", "a", "192.0.2.8"));
    until(&watch, blocks(&["192.0.2.8/32"]));
    write(dir.path(), "p.yaml", &policy);
    until(&watch, |loaded| loaded.problems.is_empty());
    fs::remove_file(dir.path().join("n1.yaml")).unwrap();
    until(&watch, blocks(&[]));
    fs::remove_file(dir.path().join("n2.yaml")).unwrap();
    let unknown = until(&watch, |loaded| towards(loaded).is_none());
    assert_eq!(unevaluated(&unknown), [NODES]);
}
