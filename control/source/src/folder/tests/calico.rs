//! Policies of Calico and what they speak of, from files.

use ringwall_policy::{Cluster, ObjectKey, PolicyId, PolicyKind, TieredPolicy};

use super::{super::manifest_object::ManifestObject, *};

/// An object of Calico's kinds; `spec` in one line.
fn object(kind: &str, name: &str, labels: &str, spec: &str) -> String {
    format!(
        "apiVersion: projectcalico.org/v3\nkind: {kind}\nmetadata: {{name: {name}, labels: {{{labels}}}}}\nspec: {{{spec}}}\n"
    )
}

/// A policy of the whole cluster that allows from what has a label.
pub(super) fn global(name: &str, from: &str, action: &str) -> String {
    let rule = format!("{{action: {action}, source: {{selector: \"{from}\"}}}}");
    object("GlobalNetworkPolicy", name, "", &format!("ingress: [{rule}]"))
}

pub(super) fn set(name: &str, labels: &str, net: &str) -> String {
    object("GlobalNetworkSet", name, labels, &format!("nets: [{net}]"))
}

pub(super) fn account(name: &str, team: &str) -> String {
    format!(
        "apiVersion: v1\nkind: ServiceAccount\nmetadata: {{name: {name}, namespace: a, labels: {{team: {team}}}}}\n"
    )
}

pub(super) fn tier(name: &str, order: usize) -> String {
    object("Tier", name, "", &format!("order: {order}"))
}

fn only(loaded: &Loaded) -> &TieredPolicy {
    loaded.cluster.tiered.values().next().unwrap()
}

fn blocks(loaded: &Loaded) -> Vec<String> {
    let peers = only(loaded).rules().flat_map(|rule| rule.peers.iter().flatten());
    peers
        .flat_map(|peer| loaded.cluster.blocks_of(peer))
        .map(|(cidr, _)| cidr.to_string())
        .collect()
}

#[test]
fn a_set_in_another_file_changes_the_rules_that_speak_of_it() {
    let dir = folder(&[
        ("p.yaml", &global("p", "has(role)", "Allow")),
        ("pod.yaml", &pod("x", "10.0.0.1")),
    ]);
    let (first, watch) = watch(&dir);
    assert!(blocks(&first).is_empty());
    write(dir.path(), "sets/a.yaml", &set("a", "role: db", "192.0.2.0/24"));
    until(&watch, |loaded| blocks(loaded) == ["192.0.2.0/24"]);
    write(
        dir.path(),
        "sets/a.yaml",
        &set("a", "role: db", "198.51.100.0/24"),
    );
    until(&watch, |loaded| blocks(loaded) == ["198.51.100.0/24"]);
    write(
        dir.path(),
        "sets/a.yaml",
        &set("a", "other: db", "198.51.100.0/24"),
    );
    until(&watch, |loaded| blocks(loaded).is_empty());
    write(
        dir.path(),
        "sets/b.yaml",
        &set("b", "role: web", "203.0.113.0/24"),
    );
    until(&watch, |loaded| blocks(loaded) == ["203.0.113.0/24"]);
    fs::remove_file(dir.path().join("sets/b.yaml")).unwrap();
    until(&watch, |loaded| blocks(loaded).is_empty());
}

#[test]
fn a_policy_that_becomes_invalid_keeps_its_version_and_follows_its_sets() {
    let good = global("p", "has(role)", "Allow");
    let dir = folder(&[
        ("p.yaml", &good),
        ("s.yaml", &set("s", "role: db", "192.0.2.0/24")),
    ]);
    let (first, watch) = watch(&dir);
    let wanted = only(&first).clone();
    assert_eq!(blocks(&first), ["192.0.2.0/24"]);
    // A rule that is not understood, what only an API server minds, and what cannot be placed.
    for bad in [
        global("p", "has(role)", "Drop"),
        good.replace("{name: p,", "{name: p, shard: 1,"),
        good.replace("spec: {", "spec: {order: high, "),
        good.replace("spec: {", "spec: {selector: \"a = 'b'\", "),
    ] {
        write(dir.path(), "p.yaml", &bad);
        let kept = until(&watch, |loaded| !loaded.problems.is_empty());
        assert_eq!(*only(&kept), wanted, "{bad}");
        assert_eq!(kept.kept().count(), 1, "{bad}");
        write(dir.path(), "s.yaml", &set("s", "role: db", "198.51.100.0/24"));
        until(&watch, |loaded| blocks(loaded) == ["198.51.100.0/24"]);
        write(dir.path(), "s.yaml", &set("s", "role: db", "192.0.2.0/24"));
        until(&watch, |loaded| blocks(loaded) == ["192.0.2.0/24"]);
        write(dir.path(), "p.yaml", &good);
        until(&watch, |loaded| loaded.problems.is_empty());
    }
}

#[test]
fn what_cannot_be_placed_is_refused_at_a_cold_start() {
    let good = global("p", "has(role)", "Allow");
    let dir = folder(&[
        ("a.yaml", &good.replace("spec: {", "spec: {order: high, ")),
        (
            "b.yaml",
            &good.replace("spec: {", "spec: {selector: \"a = 'b'\", "),
        ),
        ("c.yaml", &good.replace("spec: {", "spec: {podSelector: {}, ")),
        (
            "d.yaml",
            &good.replace("GlobalNetworkPolicy", "GlobalNetworkpolicy"),
        ),
        (
            "e.yaml",
            &good.replace("projectcalico.org/v3", "projectcalico.org/v1"),
        ),
        ("f.yaml", &tier("default", 5)),
        ("g.yaml", &set("s", "pcns.team: admin", "192.0.2.0/24")),
        (
            "h.yaml",
            "apiVersion: projectcalico.org/v3\nkind: GlobalNetworkPolicy\nmetadata:\n  name: q\nspec:\n  selector: |\n    has(x)\n",
        ),
    ]);
    insta::assert_snapshot!(refused(&dir).join("\n"));
}

#[test]
fn check_names_path_and_reason() {
    let policy = "apiVersion: projectcalico.org/v3
kind: NetworkPolicy
metadata:
  name: db
  namespace: shop
spec:
  selector: role == 'db'
  types: [Ingress, Egress]
  ingress:
  - action: Allow
    protocol: TCP
    source:
      selector: role = 'web'
    destination:
      ports: [0, '9000:8000']
  - action: Allow
    source:
      nets: [10.0.0.1, 10.0.0.0/8]
  - action: Allow
    protocol: TCP
    http: {methods: [GET]}
  egress:
  - action: allow
    destination: {podSelector: {}}
  - action: Allow
    http: {methods: [GET]}
---
apiVersion: projectcalico.org/v3
kind: GlobalNetworkSet
metadata: {name: s}
spec:
  nets: [10.0.0.0/33]
---
apiVersion: projectcalico.org/v3
kind: StagedNetworkPolicy
metadata: {name: db, namespace: shop}
spec: {selector: has(, stagedAction: Replace}
---
apiVersion: projectcalico.org/v3
kind: HostEndpoint
metadata: {name: h}
spec: {node: node1, interfaceName: eth0}
";
    let dir = folder(&[("p.yaml", policy)]);
    let loaded = read(dir.path()).unwrap();
    insta::assert_snapshot!(messages(dir.path(), &loaded.problems).join("\n"));
}

#[test]
fn one_object_in_two_files_is_one() {
    for text in [
        global("p", "has(a)", "Allow"),
        set("s", "", "192.0.2.0/24"),
        tier("t", 5),
        object("HostEndpoint", "h", "", "node: node1, interfaceName: eth0"),
        object("StagedGlobalNetworkPolicy", "p", "", ""),
    ] {
        let dir = folder(&[("a.yaml", &text), ("b.yaml", &text)]);
        let refused = refused(&dir);
        assert_eq!(refused.len(), 1, "{text}");
        assert!(
            refused[0].ends_with("already defined at a.yaml:1; remove one of them"),
            "{refused:?}"
        );
    }
    // One name in both groups is one object (TIERS 96.6); a NetworkPolicy of each API is not.
    let stored = global("p", "has(a)", "Allow").replace("projectcalico.org/v3", "crd.projectcalico.org/v1");
    let dir = folder(&[("a.yaml", &global("p", "has(a)", "Allow")), ("b.yaml", &stored)]);
    assert_eq!(refused(&dir).len(), 1);
    let calico = object("NetworkPolicy", "p, namespace: a", "", "");
    let staged = object("StagedNetworkPolicy", "p, namespace: a", "", "");
    let dir = folder(&[("a.yaml", &policy("p")), ("b.yaml", &calico), ("c.yaml", &staged)]);
    let loaded = read(dir.path()).unwrap();
    assert_eq!(
        (
            loaded.cluster.policies.len(),
            loaded.cluster.tiered.len(),
            loaded.staged.len()
        ),
        (1, 1, 1)
    );
    let id = PolicyId {
        kind: PolicyKind::CalicoNetworkPolicy,
        namespace: "a".to_owned(),
        name: "p".to_owned(),
    };
    assert!(loaded.cluster.tiered.contains_key(&id));
}

/// Objects of every kind that has a part.
fn documents() -> Vec<String> {
    let spec = |spec: &str| spec.to_owned();
    vec![
        tier("platform", 5),
        global("p", "has(role)", "Allow"),
        object("GlobalNetworkPolicy", "q", "", &spec("tier: platform, order: 5, serviceAccountSelector: has(team), \
            egress: [{action: Deny, destination: {services: {name: s, namespace: a}}}, {action: Pass}]")),
        object("NetworkPolicy", "p, namespace: a", "", &spec("ingress: [{action: Allow, source: {notSelector: has(x)}}]")),
        object("StagedNetworkPolicy", "p, namespace: a", "", &spec("ingress: [{action: Deny}]")),
        set("g", "role: db", "192.0.2.0/24"),
        object("NetworkSet", "net, namespace: a", "role: db", &spec("nets: [198.51.100.0/24]")),
        object("HostEndpoint", "h", "role: host", &spec("node: node1, expectedIPs: [203.0.113.1]")),
        account("default", "red"),
        "apiVersion: v1\nkind: Service\nmetadata: {name: s, namespace: a}\nspec: {selector: {app: s}, ports: [{port: 80}]}\n".to_owned(),
        "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: s1, namespace: a, labels: {kubernetes.io/service-name: s}}\nports: [{port: 8080}]\nendpoints: [{addresses: [10.0.0.1]}]\n".to_owned(),
        "apiVersion: v1\nkind: Namespace\nmetadata: {name: a, labels: {team: red}}\n".to_owned(),
        policy("k"),
        pod("x", "10.0.0.1"),
        pod("z", "10.0.0.2"),
    ]
}

#[test]
fn the_order_of_documents_does_not_matter() {
    let mut documents = documents();
    let loaded = |documents: &[String]| {
        let dir = folder(&[("all.yaml", &documents.join("---\n"))]);
        let loaded = read(dir.path()).unwrap();
        (loaded.cluster, loaded.staged)
    };
    let expected = loaded(&documents);
    assert_eq!(
        (expected.0.tiered.len(), expected.0.tiers.len(), expected.1.len()),
        (3, 1, 1)
    );
    let x = ObjectKey {
        namespace: "a".to_owned(),
        name: "x".to_owned(),
    };
    assert_eq!(expected.0.pods[&x].labels["serviceaccount:team"], "red");
    let mut seed = 7u64;
    for _ in 0..50 {
        for n in (1..documents.len()).rev() {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            documents.swap(n, usize::try_from(seed >> 33).unwrap() % (n + 1));
        }
        assert_eq!(loaded(&documents), expected);
    }
}

#[test]
fn without_policies_of_calico_what_they_speak_of_changes_nothing() {
    let all = documents();
    let plain: Vec<&String> = all.iter().filter(|it| !it.contains("projectcalico")).collect();
    let without: Vec<&String> = plain
        .iter()
        .copied()
        .filter(|it| {
            !["ServiceAccount", "Service\n", "EndpointSlice"]
                .iter()
                .any(|kind| it.contains(kind))
        })
        .collect();
    assert_eq!(plain.len(), without.len() + 3);
    let cluster = |documents: &[&String]| {
        let text: Vec<&str> = documents.iter().map(|it| it.as_str()).collect();
        let dir = folder(&[("all.yaml", &text.join("---\n"))]);
        read(dir.path()).unwrap().cluster
    };
    assert_eq!(cluster(&plain), cluster(&without));
    assert_ne!(cluster(&plain), Cluster::default());
}

#[test]
fn an_object_is_known_by_its_full_kind() {
    let dir = folder(&[("p.yaml", &object("NetworkPolicy", "p, namespace: a", "", ""))]);
    let (_, written): (_, Vec<ManifestObject>) = inspect(dir.path(), &Settings::default()).unwrap();
    let kinds: Vec<&str> = written.iter().map(|it| it.kind.as_str()).collect();
    assert_eq!(kinds, ["NetworkPolicy.projectcalico.org"]);
}

#[test]
fn a_file_that_is_refused_names_what_is_wrong_with_all_of_its_objects() {
    let text = [
        object("Tier", "t", "", "order: high"),
        global("p", "a = 'b'", "Allow"),
        set("s", "pcns.team: x", "10.0.0.0/8"),
    ]
    .join("---\n");
    let dir = folder(&[("p.yaml", &text)]);
    let (loaded, _) = inspect(dir.path(), &Settings::default()).unwrap();
    let paths: Vec<&str> = loaded
        .problems
        .iter()
        .map(|problem| problem.path.as_deref().unwrap())
        .collect();
    assert_eq!(
        paths,
        [
            "spec.order",
            "spec.ingress[0].source.selector",
            "metadata.labels[\"pcns.team\"]"
        ]
    );
    assert!(loaded.cluster.tiered.is_empty(), "nothing of it is taken over");
}
