//! What the lints rest on: imagined pods change nothing, and redundant rules are.
#![allow(clippy::unwrap_used, reason = "a test may stop at the first surprise")]

use proptest::{prelude::*, strategy::ValueTree};
use ringwall_source::folder;

use super::*;
use crate::{
    flow::{EndName, Service},
    judge::Judge,
};

/// A selector over few keys and values.
fn selector() -> impl Strategy<Value = String> {
    prop_oneof![
        2 => Just("{}".to_owned()),
        3 => (0..2, 0..3).prop_map(|(key, value)| format!("{{matchLabels: {{k{key}: v{value}}}}}")),
        3 => (0..2, 0..3, 0..3, any::<bool>()).prop_map(|(key, a, b, not)| {
            let operator = if not { "NotIn" } else { "In" };
            format!("{{matchExpressions: [{{key: k{key}, operator: {operator}, values: [v{a}, v{b}]}}]}}")
        }),
        1 => (0..2, any::<bool>()).prop_map(|(key, not)| {
            let operator = if not { "DoesNotExist" } else { "Exists" };
            format!("{{matchExpressions: [{{key: k{key}, operator: {operator}}}]}}")
        }),
    ]
}

fn peer() -> impl Strategy<Value = String> {
    prop_oneof![
        selector().prop_map(|pods| format!("{{podSelector: {pods}}}")),
        selector().prop_map(|spaces| format!("{{namespaceSelector: {spaces}}}")),
        (selector(), selector())
            .prop_map(|(spaces, pods)| format!("{{namespaceSelector: {spaces}, podSelector: {pods}}}")),
        (0..3usize).prop_map(|n| {
            let block = [
                "10.0.0.0/8",
                "10.0.0.0/9",
                "10.128.0.0/9, except: [10.200.0.0/16]",
            ];
            format!("{{ipBlock: {{cidr: {}}}}}", block[n])
        }),
    ]
}

fn port() -> impl Strategy<Value = String> {
    prop_oneof![
        Just("{}".to_owned()),
        Just("{protocol: UDP}".to_owned()),
        (1..6, 0..4).prop_map(|(lo, more)| format!("{{port: {lo}, endPort: {}}}", lo + more)),
        Just("{port: http}".to_owned()),
    ]
}

/// A list under a key; nothing where it is empty.
fn list(key: &'static str, items: Vec<String>) -> String {
    if items.is_empty() {
        String::new()
    } else {
        format!("{key}: [{}]", items.join(", "))
    }
}

fn rule(peers: &'static str) -> impl Strategy<Value = String> {
    (
        prop::collection::vec(peer(), 0..3),
        prop::collection::vec(port(), 0..3),
    )
        .prop_map(move |(who, what)| {
            let parts: Vec<String> = [list(peers, who), list("ports", what)]
                .into_iter()
                .filter(|it| !it.is_empty())
                .collect();
            format!("{{{}}}", parts.join(", "))
        })
}

/// Rules of one policy: its selector, ingress, egress.
type Rules = (String, Vec<String>, Vec<String>);

fn policies() -> impl Strategy<Value = Vec<Rules>> {
    let policy = (
        selector(),
        prop::collection::vec(rule("from"), 0..4),
        prop::collection::vec(rule("to"), 0..3),
    );
    prop::collection::vec(policy, 1..4)
}

/// Pods of every combination of labels in two namespaces, and the policies in one of them.
fn manifests(policies: &[Rules]) -> String {
    let mut text = String::new();
    for (namespace, n) in [("a", 1), ("b", 2)] {
        text.push_str(&format!(
            "apiVersion: v1\nkind: Namespace\nmetadata: {{name: {namespace}, labels: {{k0: v{n}}}}}\n---\n"
        ));
        for index in 0..16 {
            let label = |key: &str, value: usize| {
                if value == 3 {
                    String::new()
                } else {
                    format!("{key}: v{value},")
                }
            };
            text.push_str(&format!(
                "apiVersion: v1\nkind: Pod\nmetadata: {{name: p{index}, namespace: {namespace}, labels: {{{} {}}}}}\nspec: {{containers: [{{name: c, ports: [{{name: http, containerPort: 3}}]}}]}}\nstatus: {{podIP: 10.{}.0.{n}}}\n---\n",
                label("k0", index % 4),
                label("k1", index / 4),
                index * 16,
            ));
        }
    }
    for (index, (subjects, ingress, egress)) in policies.iter().enumerate() {
        text.push_str(&format!(
            "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: n{index}, namespace: a}}\nspec: {{podSelector: {subjects}, policyTypes: [Ingress, Egress], ingress: [{}], egress: [{}]}}\n---\n",
            ingress.join(", "),
            egress.join(", "),
        ));
    }
    text
}

fn load(text: &str) -> (folder::Loaded, Vec<ManifestObject>) {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("all.yaml"), text).unwrap();
    let read = folder::inspect(dir.path(), &ringwall_policy::Settings::default()).unwrap();
    assert!(
        read.0
            .problems
            .iter()
            .all(|it| it.severity != folder::Severity::Error),
        "{:?}",
        read.0.problems
    );
    read
}

/// Every verdict between pods and outside addresses at the borders of blocks and ports.
fn verdicts(cluster: &Cluster) -> Vec<bool> {
    let judge = Judge::new(cluster).unwrap();
    let outside = [
        "10.1.1.1",
        "10.127.255.255",
        "10.128.0.0",
        "10.200.1.1",
        "11.0.0.0",
        "9.255.255.255",
    ];
    let names: Vec<EndName> = cluster
        .pods
        .keys()
        .map(|key| EndName::Pod(key.clone()))
        .chain(outside.map(|it| EndName::Address(it.parse().unwrap())))
        .collect();
    let ends: Vec<_> = names
        .iter()
        .map(|name| judge.ends(cluster, name, name).unwrap().0)
        .collect();
    let mut services: Vec<Service> = (0..11)
        .map(|port| Service {
            protocol: 6,
            port: Some(port),
            source_port: None,
        })
        .collect();
    services.push(Service {
        protocol: 17,
        port: Some(3),
        source_port: None,
    });
    services.push(Service {
        protocol: 1,
        port: None,
        source_port: None,
    });
    let mut out = Vec::new();
    for src in &ends {
        for dst in &ends {
            for service in &services {
                out.push(judge.judge(src, dst, *service).unwrap().allow());
            }
        }
    }
    out
}

/// How many clusters are tried.
const CASES: u32 = 40;

#[test]
fn a_redundant_rule_can_be_taken_out() {
    use proptest::test_runner::{Config, TestRunner};
    let (mut reported, mut kept) = (0, 0);
    let mut runner = TestRunner::new_with_rng(
        Config {
            cases: CASES,
            ..Config::default()
        },
        proptest::test_runner::TestRng::deterministic_rng(proptest::test_runner::RngAlgorithm::ChaCha),
    );
    for _ in 0..CASES {
        let policies = policies().new_tree(&mut runner).unwrap().current();
        let (loaded, written) = load(&manifests(&policies));
        let linted = run(
            &loaded.cluster,
            &loaded.services,
            &written,
            &[],
            &Suppressions::default(),
        )
        .unwrap();
        let rules: usize = policies
            .iter()
            .map(|(_, ingress, egress)| ingress.len() + egress.len())
            .sum();
        let before = verdicts(&loaded.cluster);
        let redundant: Vec<&Finding> = linted.findings.iter().filter(|it| it.id == "RW403").collect();
        kept += rules - redundant.len();
        // All of them at once: none may rest on another that is reported, too.
        let mut fewer = policies.clone();
        let mut gone: Vec<(usize, bool, usize)> = redundant
            .iter()
            .map(|finding| {
                let policy: usize = finding
                    .object
                    .as_deref()
                    .unwrap()
                    .rsplit('n')
                    .next()
                    .unwrap()
                    .parse()
                    .unwrap();
                let path = finding.path.as_deref().unwrap();
                let index = path
                    .rsplit('[')
                    .next()
                    .unwrap()
                    .trim_end_matches(']')
                    .parse()
                    .unwrap();
                (policy, path.contains("ingress"), index)
            })
            .collect();
        gone.sort_unstable();
        for (policy, ingress, index) in gone.iter().rev() {
            let (_, of_ingress, of_egress) = fewer.get_mut(*policy).unwrap();
            let rules = if *ingress { of_ingress } else { of_egress };
            rules.remove(*index);
            reported += 1;
        }
        let after = verdicts(&load(&manifests(&fewer)).0.cluster);
        assert!(after == before, "{gone:?} of {policies:#?}");
    }
    assert!(reported > 30 && kept > 100, "{reported} redundant, {kept} not");
}

#[test]
fn imagined_pods_change_nothing() {
    let text = manifests(&[(
        "{matchLabels: {k0: v0}}".to_owned(),
        vec![
            "{from: [{podSelector: {matchLabels: {k1: v1}}}, {namespaceSelector: {matchLabels: {x: z}}}]}"
                .to_owned(),
        ],
        vec!["{to: [{ipBlock: {cidr: 10.0.0.0/9}}], ports: [{port: 3}]}".to_owned()],
    )]);
    let (loaded, _) = load(&text);
    let cluster = &loaded.cluster;
    let mut witnesses = Witnesses::new(cluster);
    for namespace in ["a", "b", "c"] {
        let unmatched = subject::selector_of(&ringwall_policy::Labels::from([(
            "k0".to_owned(),
            "v9".to_owned(),
        )]));
        assert!(
            witnesses
                .pod(
                    witnesses::NamespaceFilter::Named(namespace),
                    &[&unmatched],
                    &|_| { true }
                )
                .is_some()
        );
        assert!(
            witnesses
                .pod(
                    witnesses::NamespaceFilter::Matching(&unmatched),
                    &[&unmatched],
                    &|_| { true }
                )
                .is_some()
        );
    }
    assert!(witnesses.with_synthetic().pods.len() > cluster.pods.len());
    let (before, after) = (
        Judge::new(cluster).unwrap(),
        Judge::new(witnesses.with_synthetic()).unwrap(),
    );
    let names: Vec<EndName> = cluster
        .pods
        .keys()
        .map(|key| EndName::Pod(key.clone()))
        .chain(witnesses.outsiders())
        .collect();
    let mut asked = 0;
    for src in &names {
        for dst in &names {
            for port in [1, 3] {
                let service = Service {
                    protocol: 6,
                    port: Some(port),
                    source_port: None,
                };
                let ask = |judge: &Judge, cluster: &Cluster| {
                    let (a, b) = judge.ends(cluster, src, dst).ok()?;
                    judge.judge(&a, &b, service).ok()
                };
                let answer = ask(&before, cluster);
                assert_eq!(
                    answer,
                    ask(&after, witnesses.with_synthetic()),
                    "{src} -> {dst} {port}"
                );
                asked += usize::from(answer.is_some());
            }
        }
    }
    assert!(asked > 2_000, "{asked}");
}

/// What policies of other tiers deny is not said to be open, and what they decide is no witness.
#[test]
fn other_tiers_are_heeded() {
    use ringwall_policy::{
        Action::{Allow, Deny},
        KUBE_ADMIN, KUBE_BASELINE,
    };

    use crate::tiers_bed::{insert, policy, rule};
    let text = "
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: shop, labels: {app: web}}
---
apiVersion: v1
kind: Pod
metadata: {name: db, namespace: shop, labels: {app: db}}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: db, namespace: shop}
spec:
  podSelector: {matchLabels: {app: db}}
  policyTypes: [Ingress]
  ingress: [{from: []}]
";
    let (loaded, written) = load(text);
    let found = |cluster: &Cluster, id: &str| {
        let linted = run(
            cluster,
            &Services::default(),
            &written,
            &[],
            &Suppressions::default(),
        )
        .unwrap();
        linted.findings.iter().any(|finding| finding.id == id)
    };
    assert!(found(&loaded.cluster, "RW404"), "web is open");
    assert!(
        found(&loaded.cluster, "RW109"),
        "an empty list lets everyone reach db"
    );
    let all = Some("0.0.0.0/0");
    for tier in [KUBE_ADMIN, KUBE_BASELINE] {
        let mut cluster = loaded.cluster.clone();
        insert(&mut cluster, policy(tier, "closed", &[rule(Deny, None)], &[]));
        assert!(!found(&cluster, "RW404"), "{tier:?} denies what comes to web");
        assert_eq!(found(&cluster, "RW109"), tier == KUBE_BASELINE, "{tier:?}");
    }
    let mut cluster = loaded.cluster.clone();
    let egress = [rule(Allow, all), rule(Deny, None)];
    insert(&mut cluster, policy(KUBE_ADMIN, "out", &[], &egress));
    assert!(found(&cluster, "RW404"), "nothing is said about ingress");
}

/// Peers, and ports where there are some, of a rule of a cluster-wide policy.
fn cluster_rule(action: &str, namespaces: &str, pods: &str, ports: &str) -> String {
    let protocols = if ports.is_empty() {
        String::new()
    } else {
        format!(", protocols: [{ports}]")
    };
    format!(
        "{{action: {action}, from: [{{pods: {{namespaceSelector: {namespaces}, podSelector: {pods}}}}}]{protocols}}}"
    )
}

/// A few cluster-wide policies and Calico's, in several tiers.
fn tiered_policies() -> impl Strategy<Value = String> {
    let port = (1..6, 1..4).prop_map(|(lo, more)| {
        format!(
            "{{tcp: {{destinationPort: {{range: {{start: {lo}, end: {}}}}}}}}}",
            lo + more
        )
    });
    // Mostly everything, so that one rule often stands in the way of another.
    let wide = |all: u32| prop_oneof![all => Just("{}".to_owned()), 1 => selector()];
    let of_cluster = |tier: &'static str| {
        let rule = (
            0..3usize,
            wide(4),
            wide(1),
            prop::collection::vec(port.clone(), 0..2),
        )
            .prop_map(|(action, namespaces, pods, ports)| {
                let action = ["Accept", "Deny", "Pass"][action];
                cluster_rule(action, &namespaces, &pods, &ports.join(", "))
            });
        // NetworkPolicies are in one namespace.
        let where_they_are = prop_oneof![Just("{}"), Just("{matchLabels: {k0: v1}}")];
        let subject = (where_they_are, wide(2)).prop_map(|(namespaces, pods)| {
            format!("{{pods: {{namespaceSelector: {namespaces}, podSelector: {pods}}}}}")
        });
        let policy = (subject, prop::collection::vec(rule, 1..4), 0..9);
        prop::collection::vec(policy, 0..3).prop_map(move |policies| {
            let policies = policies.iter().enumerate().map(|(index, (subject, rules, priority))| {
                format!(
                    "apiVersion: policy.networking.k8s.io/v1alpha2\nkind: ClusterNetworkPolicy\nmetadata: {{name: {}{index}}}\nspec: {{tier: {tier}, priority: {priority}, subject: {subject}, ingress: [{}]}}\n---\n",
                    tier.to_lowercase(),
                    rules.join(", ")
                )
            });
            policies.collect::<String>()
        })
    };
    let of_calico = (0..4usize, 0..4usize, any::<bool>(), 0..6usize).prop_map(|(subject, action, late, more)| {
        let subject = ["all()", "all()", "k0 == 'v0'", "k1 in {'v0', 'v1'}"][subject];
        let action = ["Allow", "Pass", "Pass", "Log"][action];
        let order = if late { 2_000_000 } else { 500 };
        let more = [
            "source: {selector: \"k1 == 'v1'\"}",
            "source: {notSelector: \"k1 == 'v1'\"}",
            "destination: {selector: \"k0 == 'v0'\"}",
            "protocol: TCP, destination: {notPorts: [2]}",
            // Several alternatives, beside the set and the host endpoint.
            "protocol: TCP, source: {selector: \"k1 == 'v1'\", ports: [web, 81]}",
            "protocol: TCP, source: {selector: \"k1 == 'v1'\", notPorts: [web]}",
        ][more];
        format!(
            "apiVersion: projectcalico.org/v3\nkind: Tier\nmetadata: {{name: t}}\nspec: {{order: {order}}}\n---\napiVersion: projectcalico.org/v3\nkind: GlobalNetworkPolicy\nmetadata: {{name: t.g}}\nspec: {{tier: t, namespaceSelector: all(), selector: \"{subject}\", types: [Ingress], ingress: [{{action: {action}, {more}}}, {{action: Deny, {more}}}]}}\n---\n{BESIDE_PODS}"
        )
    });
    let of_calico = prop_oneof![1 => Just(String::new()), 2 => of_calico];
    (of_cluster("Admin"), of_cluster("Baseline"), of_calico)
        .prop_map(|(admin, baseline, calico)| format!("{admin}{baseline}{calico}"))
}

/// A network set and a host endpoint, for which rules with names of ports are alternatives.
const BESIDE_PODS: &str = "apiVersion: projectcalico.org/v3\nkind: GlobalNetworkSet\nmetadata: {name: s, labels: {k1: v1}}\nspec: {nets: [192.0.2.0/24]}\n---\napiVersion: projectcalico.org/v3\nkind: HostEndpoint\nmetadata: {name: h, labels: {k1: v1}}\nspec: {node: n1, expectedIPs: [198.51.100.7], profiles: [projectcalico-default-allow], ports: [{name: web, port: 80, protocol: TCP}]}\n---\n";

/// Takes out what a finding calls unreachable: a rule, or all that a policy says of ingress.
fn without(cluster: &mut Cluster, finding: &Finding) {
    use std::sync::Arc;
    let label = finding.object.as_deref().unwrap();
    let index: Option<usize> = finding.path.as_deref().and_then(|path| {
        path.strip_prefix("spec.ingress[")?
            .strip_suffix(']')?
            .parse()
            .ok()
    });
    let tiered = cluster.tiered.clone();
    for (id, policy) in tiered.iter().filter(|(id, _)| id.label() == label) {
        let mut policy = ringwall_policy::TieredPolicy::clone(policy);
        match index {
            // Gone, without another index for those that follow.
            Some(index) => {
                let Some(rules) = policy.ingress.as_mut() else {
                    continue;
                };
                let numbers = ringwall_policy::TieredRule::numbered(rules).map(|(number, _)| number);
                let numbers: Vec<usize> = numbers.collect();
                for (rule, _) in rules.iter_mut().zip(numbers).filter(|(_, it)| *it == index) {
                    rule.peers = Some(Vec::new());
                }
            }
            None => policy.ingress = None,
        }
        cluster.tiered.insert(id.clone(), Arc::new(policy));
    }
    let policies = cluster.policies.clone();
    for (key, policy) in policies
        .iter()
        .filter(|(key, _)| format!("NetworkPolicy {key}") == label)
    {
        let mut policy = ringwall_policy::NetworkPolicy::clone(policy);
        match index {
            Some(index) => {
                let rule = policy.ingress.as_mut().and_then(|rules| rules.get_mut(index));
                rule.into_iter().for_each(|rule| rule.peers = Some(Vec::new()));
            }
            None => policy.ingress = None,
        }
        cluster.policies.insert(key.clone(), Arc::new(policy));
    }
}

#[test]
fn what_never_applies_can_be_taken_out() {
    use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
    let mut found: std::collections::BTreeMap<&str, usize> = std::collections::BTreeMap::new();
    let rng = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
    let mut runner = TestRunner::new_with_rng(Config::default(), rng);
    for _ in 0..CASES {
        let network_policies = policies().new_tree(&mut runner).unwrap().current();
        let tiered = tiered_policies().new_tree(&mut runner).unwrap().current();
        let (loaded, written) = load(&format!("{}{tiered}", manifests(&network_policies)));
        let linted = run(
            &loaded.cluster,
            &loaded.services,
            &written,
            &[],
            &Suppressions::default(),
        )
        .unwrap();
        let mut less = loaded.cluster.clone();
        for finding in &linted.findings {
            // Of several hidden policies, one is reported.
            let of_ingress = ["RW406", "RW407", "RW408"].contains(&finding.id)
                && (finding.id == "RW406" || finding.message.contains("applies to ingress"));
            if of_ingress {
                *found.entry(finding.id).or_default() += 1;
                without(&mut less, finding);
            }
        }
        if less != loaded.cluster {
            assert!(verdicts(&loaded.cluster) == verdicts(&less), "{tiered}");
        }
    }
    for id in ["RW406", "RW407", "RW408"] {
        assert!(found.get(id).is_some_and(|found| *found > 2), "{found:?}");
    }
}

#[test]
fn a_rule_of_several_alternatives_never_applies_if_none_of_them_does() {
    let found = |first: &str| {
        let text = format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: web, namespace: shop, labels: {{app: web}}}}\n---\n{BESIDE_PODS}\
             apiVersion: projectcalico.org/v3\nkind: GlobalNetworkPolicy\nmetadata: {{name: g}}\nspec: {{selector: \"has(app)\", \
             types: [Egress], egress: [{first}, {{action: Deny, protocol: TCP, destination: {{selector: has(k1), ports: [web, 81]}}}}]}}\n"
        );
        let (loaded, written) = load(&text);
        let rules = loaded
            .cluster
            .tiered
            .values()
            .next()
            .unwrap()
            .egress
            .as_ref()
            .unwrap();
        assert!(rules.len() > 3 && rules.last().unwrap().continues, "{rules:#?}");
        let linted = run(
            &loaded.cluster,
            &loaded.services,
            &written,
            &[],
            &Suppressions::default(),
        )
        .unwrap();
        let found = linted.findings.iter().filter(|finding| finding.id == "RW406");
        found
            .map(|finding| (finding.path.clone().unwrap(), finding.message.clone()))
            .collect::<Vec<_>>()
    };
    let message =
        "never applies: rule 0 of GlobalNetworkPolicy g (default) decides everything that it matches";
    assert_eq!(
        found("{action: Allow}"),
        [("spec.egress[1]".to_owned(), message.to_owned())]
    );
    // The host endpoint's port is left.
    let but = "{action: Allow, protocol: TCP, destination: {ports: [81]}}";
    assert_eq!(found(but), []);
    assert_eq!(found("{action: Log}"), []);
}
