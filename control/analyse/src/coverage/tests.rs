#![allow(clippy::unwrap_used, clippy::panic)] // a test says what failed by panicking

use ringwall_policy::Cluster;
use ringwall_source::decode::decode;
use serde_json::{Value, json};

use super::{Coverage, FirewallPosition, Reason, State};

fn cluster(objects: Vec<Value>) -> Cluster {
    let mut cluster = Cluster::default();
    for object in objects {
        for decoded in decode(&object).unwrap() {
            cluster.insert(decoded.object);
        }
    }
    cluster
}

fn namespace(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
}

fn pod(name: &str, address: &str, node: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": "a", "uid": name, "labels": {"app": name}},
        "spec": {"nodeName": node, "containers": []}, "status": {"phase": "Running", "podIP": address}})
}

fn policy(name: &str, spec: Value) -> Value {
    json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"name": name, "namespace": "a"}, "spec": spec})
}

fn gateway() -> FirewallPosition {
    FirewallPosition {
        gateway: Some(true),
        pod_cidrs: Some(vec!["10.0.0.0/16".parse().unwrap()]),
    }
}

fn node() -> FirewallPosition {
    FirewallPosition {
        gateway: Some(false),
        ..gateway()
    }
}

/// State and reasons of the pod of a name.
fn of(coverage: &Coverage, name: &str) -> (State, Vec<Reason>) {
    let pod = coverage.pods.iter().find(|pod| pod.name == name).unwrap();
    (pod.state, pod.reasons.clone())
}

fn of_policy(coverage: &Coverage, name: &str) -> (State, Vec<Reason>, usize) {
    let policy = coverage
        .policies
        .iter()
        .find(|policy| policy.name == name)
        .unwrap();
    (policy.state, policy.reasons.clone(), policy.selects)
}

#[test]
fn each_reason_is_found_and_no_other() {
    let mut host = pod("host", "192.0.2.1", "n1");
    host["spec"]["hostNetwork"] = json!(true);
    let mut finished = pod("finished", "10.0.0.2", "n1");
    finished["status"]["phase"] = json!("Succeeded");
    let mut older = pod("older", "10.0.0.3", "n2");
    older["metadata"]["creationTimestamp"] = json!("2026-01-01T00:00:00Z");
    let mut newer = pod("newer", "10.0.0.3", "n3");
    newer["metadata"]["creationTimestamp"] = json!("2026-01-02T00:00:00Z");
    let mut stranger = pod("stranger", "10.0.0.9", "n9");
    stranger["metadata"]["namespace"] = json!("unseen");
    let cluster = cluster(vec![
        namespace("a"),
        host,
        finished,
        pod("pending", "", "n1"),
        stranger,
        older,
        newer,
        pod("outside", "10.9.0.1", "n4"),
        pod("here", "10.0.0.5", "n5"),
        pod("there", "10.0.0.6", "n5"),
        pod("alone", "10.0.0.7", "n6"),
    ]);
    let coverage = Coverage::of(&cluster, &gateway());
    let wanted = [
        ("host", State::Not, vec![Reason::HostNetwork]),
        ("finished", State::Idle, vec![Reason::Finished]),
        ("pending", State::Idle, vec![Reason::NoAddress]),
        ("stranger", State::Not, vec![Reason::UnknownNamespace]),
        ("older", State::Not, vec![Reason::AddressTaken]),
        ("newer", State::Enforced, vec![]),
        ("outside", State::Partly, vec![Reason::OutsidePodNetworks]),
        ("here", State::Partly, vec![Reason::SameNode]),
        ("there", State::Partly, vec![Reason::SameNode]),
        ("alone", State::Enforced, vec![]),
    ];
    for (name, state, reasons) in wanted {
        assert_eq!(of(&coverage, name), (state, reasons), "{name}");
    }
    let total = &coverage.total;
    assert_eq!(
        (total.pods, total.enforced, total.partly, total.not, total.idle),
        (10, 2, 3, 3, 2)
    );
    assert_eq!(coverage.namespaces["unseen"].not, 1);
    // On a node nothing stays unseen on it.
    let on_node = Coverage::of(&cluster, &node());
    assert_eq!(of(&on_node, "here"), (State::Enforced, vec![]));
    assert_eq!(
        of(&on_node, "outside"),
        (State::Partly, vec![Reason::OutsidePodNetworks])
    );
}

#[test]
fn without_a_configuration_the_nodes_say_where_pods_are() {
    let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n1"}, "spec": {"podCIDR": "10.1.0.0/24"}});
    let mut objects = vec![
        namespace("a"),
        pod("in", "10.1.0.5", "n1"),
        pod("out", "10.2.0.5", "n1"),
    ];
    // No network is known: nothing can lie outside.
    let coverage = Coverage::of(&cluster(objects.clone()), &FirewallPosition::default());
    assert_eq!(of(&coverage, "out"), (State::Enforced, vec![]));
    objects.push(node);
    let coverage = Coverage::of(&cluster(objects), &FirewallPosition::default());
    assert_eq!(of(&coverage, "in"), (State::Enforced, vec![]));
    assert_eq!(of(&coverage, "out").1, [Reason::OutsidePodNetworks]);
    assert!(coverage.notes.iter().any(|note| note.contains("--config")));
}

#[test]
fn policies_say_whom_they_reach() {
    let mut host = pod("host", "192.0.2.1", "n1");
    host["spec"]["hostNetwork"] = json!(true);
    let select =
        |app: &str| json!({"podSelector": {"matchLabels": {"app": app}}, "policyTypes": ["Ingress"]});
    let objects = vec![
        namespace("a"),
        host,
        pod("web", "10.0.0.5", "n2"),
        pod("db", "10.0.0.6", "n3"),
        policy("good", select("web")),
        policy("nobody", select("wbe")),
        policy("agents", select("host")),
        policy(
            "broken",
            json!({"podSelector": {"matchLabels": {"app": "web"}}, "policyTypes": ["Egress"], "egress": [{"ports": [{"protocol": "ICMP"}]}]}),
        ),
        policy("all", json!({"podSelector": {}, "policyTypes": ["Egress"]})),
    ];
    let mut cluster = cluster(objects);
    let coverage = Coverage::of(&cluster, &gateway());
    assert_eq!(of_policy(&coverage, "good"), (State::Enforced, vec![], 1));
    assert_eq!(
        of_policy(&coverage, "nobody"),
        (State::Idle, vec![Reason::SelectsNobody], 0)
    );
    assert_eq!(
        of_policy(&coverage, "agents"),
        (State::Not, vec![Reason::SelectsUnenforced], 1)
    );
    assert_eq!(
        of_policy(&coverage, "broken"),
        (State::Partly, vec![Reason::Invalid], 1)
    );
    assert_eq!(of_policy(&coverage, "all"), (State::Enforced, vec![], 3));
    let tally = &coverage.namespaces["a"];
    assert_eq!(
        (tally.policies, tally.policies_not, tally.policies_idle),
        (5, 2, 1)
    );
    // The host's pod is selected by `all` and cannot be isolated.
    assert_eq!((tally.ingress_isolated, tally.egress_isolated), (1, 2));

    assert!(coverage.lacks(&[]));
    assert!(coverage.lacks(&[Reason::HostNetwork, Reason::SelectsUnenforced]));
    let accepted = [Reason::HostNetwork, Reason::SelectsUnenforced, Reason::Invalid];
    assert!(
        !coverage.lacks(&accepted),
        "a policy that selects no pod lacks nothing"
    );
    cluster
        .unevaluated_kinds
        .insert("CiliumNetworkPolicy.cilium.io".to_owned());
    assert!(Coverage::of(&cluster, &gateway()).lacks(&accepted));
}

#[test]
fn names_of_reasons_are_those_of_the_json() {
    for reason in Reason::ALL {
        assert_eq!(json!(reason), json!(reason.name()));
        assert!(!reason.meaning().is_empty());
    }
}

#[test]
fn policies_of_other_tiers_count() {
    use ringwall_policy::{Action, Fault, KUBE_ADMIN, KUBE_BASELINE};

    use crate::tiers_bed::{insert, policy as tiered, rule};
    let mut cluster = cluster(vec![namespace("a"), pod("web", "10.0.0.1", "n1")]);
    let open = Coverage::of(&cluster, &node());
    assert_eq!((open.total.policies, open.namespaces["a"].tiered), (0, 0));
    assert!(!json!(open).to_string().contains("tiered"));

    let deny = [rule(Action::Deny, None)];
    insert(&mut cluster, tiered(KUBE_ADMIN, "deny", &deny, &[]));
    let mut broken = tiered(KUBE_BASELINE, "broken", &deny, &[]);
    broken.faults.push(Fault {
        path: "spec.ingress[0]".to_owned(),
        message: "an unknown peer".to_owned(),
    });
    insert(&mut cluster, broken);
    let coverage = Coverage::of(&cluster, &node());
    assert_eq!(of_policy(&coverage, "deny"), (State::Enforced, vec![], 1));
    assert_eq!(
        of_policy(&coverage, "broken"),
        (State::Partly, vec![Reason::NotUnderstood], 1)
    );
    // The pod is not open, and the policies are of no namespace.
    assert_eq!(coverage.namespaces["a"].tiered, 1);
    assert_eq!(coverage.namespaces.keys().collect::<Vec<_>>(), ["a"]);
    assert_eq!((coverage.total.policies, coverage.total.policies_not), (2, 1));
    assert!(coverage.lacks(&[]));
}
