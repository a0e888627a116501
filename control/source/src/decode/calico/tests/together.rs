//! What objects come to together: rules with the addresses of sets, host endpoints and services, pods with the labels of
//! their service accounts.

use std::{collections::BTreeSet, sync::Arc};

use proptest::prelude::*;
use ringwall_policy::{AddressSet, Cluster, Fault, Object, Peer};

use super::*;
use crate::decode::calico::{
    governed_host,
    lower::{Staged, StagedPolicy, World},
};

/// What the objects come to.
struct Lowered {
    policies: Vec<TieredPolicy>,
    staged: Vec<Staged>,
    address_sets: imbl::OrdMap<String, Arc<AddressSet>>,
    unevaluated: BTreeSet<String>,
    findings: Vec<Fault>,
    world: World<usize>,
}

/// A policy with the members of address sets in their place.
fn in_full(cluster: &Cluster, mut policy: TieredPolicy) -> TieredPolicy {
    let in_full = |peers: &mut Vec<Peer>| {
        let sets = peers.extract_if(.., |peer| matches!(peer, Peer::Addresses(_)));
        let sets: Vec<Peer> = sets.collect();
        peers.extend(
            sets.iter()
                .flat_map(|set| cluster.blocks_of(set))
                .map(|(cidr, except)| Peer::Block {
                    cidr,
                    except: except.to_vec(),
                }),
        );
        let mut known = std::collections::HashSet::new();
        peers.retain(|peer| known.insert(peer.clone()));
        let pods = peers.partition_point(|peer| matches!(peer, Peer::Pods { .. }));
        peers[pods..].sort_by_key(|peer| match peer {
            Peer::Block { cidr, .. } => Some(*cidr),
            Peer::Pods { .. } | Peer::Addresses(_) => None,
        });
    };
    for rule in policy.ingress.iter_mut().chain(&mut policy.egress).flatten() {
        rule.peers.iter_mut().for_each(in_full);
        let conditions = &mut rule.conditions;
        let conditions = conditions.peer.iter_mut().chain(&mut conditions.own);
        conditions.for_each(|condition| in_full(&mut condition.any));
    }
    policy
}

fn staged_in_full(cluster: &Cluster, mut staged: Staged) -> Staged {
    if let StagedPolicy::Calico(policy) = staged.policy {
        staged.policy = StagedPolicy::Calico(in_full(cluster, policy));
    }
    staged
}

/// The objects of a source.
fn together(values: &[Value]) -> Lowered {
    let decoded: Vec<Decoded> = values
        .iter()
        .map(|value| super::decoded(value).unwrap())
        .collect();
    let mut cluster = Cluster::default();
    for it in &decoded {
        cluster.insert(it.object.clone());
    }
    let mut world = World::default();
    for (number, it) in decoded.iter().enumerate() {
        let policy = match &it.object {
            Object::Tiered(policy) => Some(policy),
            _ => None,
        };
        if let Some(input) = &it.input {
            world.put(number, Arc::clone(input), policy, &cluster.namespaces);
        }
    }
    let completed = world.complete();
    for (name, members) in world.take_address_sets() {
        cluster.set_addresses(&name, members.as_ref());
    }
    let governed = world.governed().into_iter().map(|_| governed_host());
    let (unevaluated, hosts): (BTreeSet<_>, Vec<_>) = governed.unzip();
    let of_policies = completed.iter().flat_map(|it| it.unevaluated.iter().cloned());
    Lowered {
        findings: of_policies.chain(hosts).collect(),
        policies: completed
            .into_iter()
            .map(|it| in_full(&cluster, it.policy))
            .collect(),
        staged: world
            .staged()
            .into_iter()
            .map(|it| staged_in_full(&cluster, it))
            .collect(),
        address_sets: cluster.address_sets,
        unevaluated,
        world,
    }
}

/// The first rule of the one policy among some objects, and what of the policy is not evaluated.
fn first(values: &[Value]) -> (String, Vec<String>) {
    let lowered = together(values);
    let policy = lowered.policies.first().unwrap();
    let unevaluated = policy.unevaluated.iter().cloned().collect();
    (words(policy.rules().next().unwrap()), unevaluated)
}

/// The alternatives that the one rule among some objects comes to.
fn alternatives(values: &[Value]) -> Vec<String> {
    let lowered = together(values);
    let policy = lowered.policies.first().unwrap();
    assert!(policy.unevaluated.is_empty(), "{:?}", policy.unevaluated);
    let continues: Vec<bool> = policy.rules().map(|rule| rule.continues).collect();
    assert!(
        !continues[0] && continues[1..].iter().all(|it| *it),
        "{continues:?}"
    );
    policy.rules().map(words).collect()
}

fn whom(values: &[Value]) -> String {
    let (words, unevaluated) = first(values);
    assert_eq!(unevaluated, [""; 0]);
    let words = words.strip_prefix("Allow ").unwrap_or(&words);
    words.strip_suffix(" at anywhere").unwrap_or(words).to_owned()
}

fn labelled(mut value: Value, labels: Value) -> Value {
    value["metadata"]["labels"] = labels;
    value
}

fn global_set(name: &str, labels: Value, nets: &[&str]) -> Value {
    labelled(object("GlobalNetworkSet", name, &json!({"nets": nets})), labels)
}

fn set(namespace: &str, labels: Value, nets: &[&str]) -> Value {
    let mut set = labelled(object("NetworkSet", "s", &json!({"nets": nets})), labels);
    set["metadata"]["namespace"] = json!(namespace);
    set
}

fn endpoint(labels: Value, spec: Value) -> Value {
    let mut spec = spec;
    spec["node"] = json!("n");
    labelled(object("HostEndpoint", "h", &spec), labels)
}

fn namespace(name: &str, labels: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}})
}

fn from(global: bool, source: Value) -> Value {
    let spec = json!({"ingress": [{"action": "Allow", "source": source}]});
    if global {
        super::global(&spec)
    } else {
        namespaced(&spec)
    }
}

#[test]
fn t96_4_a_selector_is_also_for_the_addresses_of_sets_and_host_endpoints() {
    let objects = [
        from(true, json!({"selector": "role == 'db'"})),
        global_set("g", json!({"role": "db"}), &["10.0.0.0/8", "fd00::/8"]),
        global_set("other", json!({"role": "web"}), &["11.0.0.0/8"]),
        set("any", json!({"role": "db"}), &["192.0.2.1"]),
        endpoint(
            json!({"role": "db"}),
            json!({"expectedIPs": ["192.0.2.2"], "profiles": ["projectcalico-default-allow"]}),
        ),
    ];
    assert_eq!(
        whom(&objects),
        "[|role=db], 10.0.0.0/8, 192.0.2.1/32, 192.0.2.2/32, fd00::/8"
    );
    // The endpoint is the policy's subject, too, so its host's traffic is not judged.
    let lowered = together(&objects);
    assert_eq!(
        lowered.unevaluated.iter().collect::<Vec<_>>(),
        ["HostEndpoint.projectcalico.org"]
    );
}

#[test]
fn t50_a_set_without_a_label_is_without_it() {
    let objects = [
        from(true, json!({"selector": "!has(x)"})),
        global_set("g", json!({}), &["0.0.0.0/0"]),
    ];
    assert_eq!(whom(&objects), "[|!x], 0.0.0.0/0");
}

#[test]
fn t51_a_set_with_a_label_takes_none_of_a_pod_s_addresses_away() {
    let objects = [
        from(true, json!({"selector": "has(a)", "notSelector": "has(x)"})),
        global_set("g", json!({"a": "1", "x": "1"}), &["10.0.0.1"]),
        global_set("h", json!({"a": "1"}), &["10.0.0.2"]),
    ];
    assert_eq!(whom(&objects), "[|a&!x], 10.0.0.2/32");
}

#[test]
fn t52_an_address_matches_through_a_set_though_its_pod_does_not() {
    let objects = [
        from(true, json!({"selector": "!has(x)"})),
        global_set("g", json!({}), &["10.0.0.1"]),
    ];
    assert_eq!(whom(&objects), "[|!x], 10.0.0.1/32");
}

#[test]
fn t53_a_negative_namespace_selector_is_for_what_is_in_none_and_all_is_not() {
    let set = global_set("g", json!({}), &["10.0.0.0/8"]);
    let whom = |selector: &str| whom(&[from(true, json!({"namespaceSelector": selector})), set.clone()]);
    assert_eq!(whom("team != \"a\""), "[team!=a|], 10.0.0.0/8");
    assert_eq!(whom("!has(team)"), "[!team|], 10.0.0.0/8");
    assert_eq!(whom("all()"), "[|]");
    assert_eq!(whom("all() && team != \"a\""), "[team!=a|]");
    assert_eq!(whom("global()"), "10.0.0.0/8");
}

#[test]
fn t49_notselector_alone_is_for_addresses_that_no_object_with_it_has() {
    let objects = [
        from(true, json!({"notSelector": "has(x)"})),
        global_set("g", json!({"x": "1"}), &["10.0.0.0/8"]),
        global_set("h", json!({}), &["11.0.0.0/8"]),
    ];
    assert_eq!(whom(&objects), "anyone and not [|x], 10.0.0.0/8");
}

#[test]
fn sets_have_a_part_in_what_the_own_side_is_asked_and_each_object_is_asked_apart() {
    let rule = |destination: Value| {
        let rule = json!({"action": "Allow", "protocol": "TCP", "source": {"selector": "has(b)", "nets": ["10.9.0.0/16"]},
            "destination": destination});
        super::global(&json!({"ingress": [rule]}))
    };
    let sets = [
        global_set("g", json!({"a": "1"}), &["10.0.0.0/8"]),
        global_set("h", json!({"b": "1"}), &["11.0.0.0/8"]),
    ];
    let whom = |destination: Value| {
        let mut objects = sets.to_vec();
        objects.push(rule(destination));
        first(&objects)
    };
    assert_eq!(
        whom(json!({"selector": "has(a)"})).0,
        "Allow [|b], 11.0.0.0/8 and 10.9.0.0/16 to [|a], 10.0.0.0/8 at tcp"
    );
    assert_eq!(
        whom(json!({"selector": "has(a)", "ports": ["web"]})).0,
        "Allow [|b], 11.0.0.0/8 and 10.9.0.0/16 to [|a] at tcp/web"
    );
    // A name is that of a port of a pod, a number one of a set, too.
    let alternatives = |destination: Value| {
        let mut objects = sets.to_vec();
        objects.push(rule(destination));
        alternatives(&objects)
    };
    assert_eq!(
        alternatives(json!({"selector": "has(a)", "ports": ["web", 80]})),
        [
            "Allow [|b], 11.0.0.0/8 and 10.9.0.0/16 to [|a] at tcp/80 tcp/web",
            "Allow [|b], 11.0.0.0/8 and 10.9.0.0/16 to 10.0.0.0/8 at tcp/80"
        ]
    );
    assert_eq!(
        alternatives(json!({"selector": "has(a)", "notPorts": ["web", 81]})),
        [
            "Allow [|b], 11.0.0.0/8 and 10.9.0.0/16 to [|a] at tcp -tcp/81 -tcp/web",
            "Allow [|b], 11.0.0.0/8 and 10.9.0.0/16 to 10.0.0.0/8 to not [|a] at tcp -tcp/81"
        ]
    );
}

#[test]
fn t99_1_a_networkpolicy_reaches_sets_of_its_namespace() {
    let objects = |source: Value| {
        [
            from(false, source),
            set("shop", json!({"a": "1"}), &["10.1.0.0/16"]),
            set("other", json!({"a": "1"}), &["10.2.0.0/16"]),
            global_set("g", json!({"a": "1"}), &["10.3.0.0/16"]),
        ]
    };
    assert_eq!(
        whom(&objects(json!({"selector": "has(a)"}))),
        "[ns=shop|a], 10.1.0.0/16"
    );
    assert_eq!(
        whom(&objects(
            json!({"selector": "has(a)", "namespaceSelector": "all()"})
        )),
        "[|a], 10.1.0.0/16, 10.2.0.0/16"
    );
    assert_eq!(
        whom(&objects(
            json!({"selector": "has(a)", "namespaceSelector": "global()"})
        )),
        "10.3.0.0/16"
    );
    // T49: with notSelector alone, too.
    assert_eq!(
        whom(&objects(json!({"notSelector": "has(x)"}))),
        "[ns=shop|!x], 10.1.0.0/16"
    );
    assert_eq!(whom(&objects(json!({"notSelector": "has(a)"}))), "[ns=shop|!a]");
}

#[test]
fn t96_3_a_networkset_has_the_labels_of_its_namespace() {
    let objects = [
        from(true, json!({"namespaceSelector": "team == 'a'"})),
        set("x", json!({}), &["10.1.0.0/16"]),
        set("y", json!({}), &["10.2.0.0/16"]),
        namespace("x", json!({"team": "a"})),
        namespace("y", json!({"team": "b"})),
    ];
    assert_eq!(whom(&objects), "[team=a|], 10.1.0.0/16");
    for selector in [
        "projectcalico.org/name == 'y'",
        "kubernetes.io/metadata.name == 'y'",
    ] {
        let mut objects = objects.clone();
        objects[0] = from(true, json!({"namespaceSelector": selector}));
        // Its Namespace need not be described.
        assert_eq!(whom(&objects), "[ns=y|], 10.2.0.0/16");
        assert_eq!(whom(&objects[..3]), "[ns=y|], 10.2.0.0/16");
    }
}

#[test]
fn a_set_is_not_made_by_kubernetes_and_has_no_account() {
    let set = set("shop", json!({"a": "1"}), &["10.1.0.0/16"]);
    for (source, expected) in [
        (
            json!({"selector": "projectcalico.org/orchestrator == 'k8s'"}),
            "[|]",
        ),
        (
            json!({"selector": "has(projectcalico.org/serviceaccount)"}),
            "[|]",
        ),
        (
            json!({"serviceAccounts": {"selector": "!has(x)"}}),
            "[|!serviceaccount:x], 10.1.0.0/16",
        ),
        (
            json!({"serviceAccounts": {"selector": "all()"}}),
            "[|], 10.1.0.0/16",
        ),
        (
            json!({"serviceAccounts": {"names": ["s"]}}),
            "[|serviceaccount:projectcalico.org/name=s]",
        ),
    ] {
        assert_eq!(whom(&[from(true, source), set.clone()]), expected);
    }
}

#[test]
fn named_ports_are_not_those_of_sets() {
    let objects = |ports: Value, more: Value| {
        let rule = json!({"action": "Allow", "protocol": "TCP", "destination": {"selector": "has(a)", "ports": ports}});
        [
            global(&json!({"egress": [rule]})),
            global_set("g", json!({"a": "1"}), &["10.0.0.0/8"]),
            more,
        ]
    };
    let none = namespace("x", json!({}));
    assert_eq!(
        first(&objects(json!(["web"]), none.clone())).0,
        "Allow [|a] at tcp/web"
    );
    assert_eq!(
        first(&objects(json!([80]), none.clone())).0,
        "Allow [|a], 10.0.0.0/8 at tcp/80"
    );
    assert_eq!(
        alternatives(&objects(json!(["web", 80]), none)),
        ["Allow [|a] at tcp/80 tcp/web", "Allow 10.0.0.0/8 at tcp/80"]
    );
    let host = |ports: Value| {
        endpoint(
            json!({"a": "1"}),
            json!({"expectedIPs": ["192.0.2.2", "2001:db8::2"], "ports": ports}),
        )
    };
    let web = || {
        host(
            json!([{"name": "web", "port": 8080, "protocol": "TCP"}, {"name": "web", "port": 9, "protocol": "UDP"}]),
        )
    };
    assert_eq!(
        alternatives(&objects(json!(["web"]), web())),
        [
            "Allow [|a] at tcp/web",
            "Allow 192.0.2.2/32, 2001:db8::2/128 at tcp/8080"
        ]
    );
    let other = host(json!([{"name": "other", "port": 8080, "protocol": "TCP"}]));
    assert_eq!(
        alternatives(&objects(json!(["web"]), other)),
        ["Allow [|a] at tcp/web"]
    );
    // What is excluded by name is excluded where an endpoint has the name.
    let rule = json!({"action": "Allow", "protocol": "TCP", "destination": {"selector": "has(a)", "notPorts": ["web", 81]}});
    let excluded = [
        global(&json!({"egress": [rule]})),
        global_set("g", json!({"a": "1"}), &["10.0.0.0/8"]),
        web(),
    ];
    assert_eq!(
        alternatives(&excluded),
        [
            "Allow [|a] and not 192.0.2.2/32, 2001:db8::2/128 at tcp -tcp/81 -tcp/web",
            "Allow [|a] and 192.0.2.2/32, 2001:db8::2/128 at tcp -tcp/81 -tcp/web -tcp/8080",
            "Allow 10.0.0.0/8, 192.0.2.2/32, 2001:db8::2/128 and not [|a], 192.0.2.2/32, 2001:db8::2/128 at tcp -tcp/81",
            "Allow 192.0.2.2/32, 2001:db8::2/128 and not [|a] at tcp -tcp/81 -tcp/8080"
        ]
    );
    // Without a selector, the names of every endpoint count.
    let anywhere = |destination: Value| {
        let rule = json!({"action": "Deny", "protocol": "TCP", "destination": destination});
        [global(&json!({"egress": [rule]})), web()]
    };
    assert_eq!(
        alternatives(&anywhere(json!({"ports": ["web"]}))),
        [
            "Deny anyone at tcp/web",
            "Deny anyone and 192.0.2.2/32, 2001:db8::2/128 at tcp/8080"
        ]
    );
    assert_eq!(
        alternatives(&anywhere(json!({"notPorts": ["web"], "nets": ["192.0.2.0/24"]}))),
        [
            "Deny 192.0.2.0/24 and not 192.0.2.2/32, 2001:db8::2/128 at tcp -tcp/web",
            "Deny 192.0.2.0/24 and 192.0.2.2/32, 2001:db8::2/128 at tcp -tcp/web -tcp/8080"
        ]
    );
    // Those of ingress are the pod's own.
    let rule = json!({"action": "Allow", "protocol": "TCP", "source": {"selector": "has(a)"}, "destination": {"ports": ["web", 80]}});
    let objects = [
        global(&json!({"ingress": [rule]})),
        global_set("g", json!({"a": "1"}), &["10.0.0.0/8"]),
    ];
    assert_eq!(first(&objects).0, "Allow [|a], 10.0.0.0/8 at tcp/80 tcp/web");
}

#[test]
fn t99_7_names_of_source_ports_are_those_of_the_sources() {
    let web = endpoint(
        json!({"a": "1"}),
        json!({"expectedIPs": ["192.0.2.2"], "ports": [{"name": "web", "port": 8080, "protocol": "TCP"}]}),
    );
    let objects = |direction: &str, source: Value, destination: Value| {
        let rule =
            json!({"action": "Allow", "protocol": "TCP", "source": source, "destination": destination});
        [
            global(&json!({direction: [rule]})),
            global_set("g", json!({"a": "1"}), &["10.0.0.0/8"]),
            web.clone(),
        ]
    };
    let from = json!({"selector": "has(a)", "ports": ["web"]});
    assert_eq!(
        alternatives(&objects("ingress", from.clone(), json!({}))),
        [
            "Allow [|a] at tcp <tcp/web",
            "Allow 192.0.2.2/32 at tcp <tcp/8080"
        ]
    );
    assert_eq!(
        alternatives(&objects(
            "ingress",
            json!({"selector": "has(a)", "notPorts": ["web", 7]}),
            json!({"ports": ["web"]})
        )),
        [
            "Allow [|a] and not 192.0.2.2/32 at tcp/web -<tcp/7 -<tcp/web",
            "Allow [|a] and 192.0.2.2/32 at tcp/web -<tcp/7 -<tcp/web -<tcp/8080",
            "Allow 10.0.0.0/8, 192.0.2.2/32 and not [|a], 192.0.2.2/32 at tcp/web -<tcp/7",
            "Allow 192.0.2.2/32 and not [|a] at tcp/web -<tcp/7 -<tcp/8080"
        ]
    );
    assert_eq!(
        alternatives(&objects("ingress", json!({"ports": ["web"]}), json!({}))),
        [
            "Allow anyone at tcp <tcp/web",
            "Allow anyone and 192.0.2.2/32 at tcp <tcp/8080"
        ]
    );
    // Those of egress are the pod's own, and the destination's are those of what the rule is for.
    assert_eq!(
        alternatives(&objects(
            "egress",
            json!({"ports": ["web"]}),
            json!({"selector": "has(a)", "ports": ["web", 80]})
        )),
        [
            "Allow [|a] at tcp/80 tcp/web <tcp/web",
            "Allow 10.0.0.0/8, 192.0.2.2/32 at tcp/80 <tcp/web",
            "Allow 192.0.2.2/32 at tcp/80 tcp/8080 <tcp/web"
        ]
    );
}

#[test]
fn t66_sets_of_a_rule_of_icmp_are_of_its_version() {
    let rule = json!({"action": "Allow", "protocol": "ICMP", "source": {"selector": "has(a)"}});
    let objects = [
        global(&json!({"ingress": [rule]})),
        global_set("g", json!({"a": "1"}), &["10.0.0.0/8", "fd00::/8"]),
    ];
    assert_eq!(first(&objects).0, "Allow [|a], 10.0.0.0/8 and 0.0.0.0/0 at 1");
}

fn service(spec: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "s", "namespace": "shop"}, "spec": spec})
}

fn slice(name: &str, ports: Value, addresses: &[&str]) -> Value {
    json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"name": name, "namespace": "shop", "labels": {"kubernetes.io/service-name": "s"}},
        "ports": ports, "endpoints": [{"addresses": addresses, "conditions": {"ready": false}}]})
}

fn to_service(global: bool, namespace: Option<&str>) -> Value {
    let rule = json!({"action": "Allow", "destination": {"services": {"name": "s", "namespace": namespace}}});
    let spec = json!({"egress": [rule]});
    if global {
        super::global(&spec)
    } else {
        namespaced(&spec)
    }
}

#[test]
fn t60_a_service_without_namespace_is_of_the_policy_s() {
    let slice = slice(
        "a",
        json!([{"port": 80}, {"port": 53, "protocol": "UDP"}]),
        &["10.0.0.1", "10.0.0.2"],
    );
    let expected = "Allow 10.0.0.1/32, 10.0.0.2/32 at tcp/80 udp/53";
    assert_eq!(first(&[to_service(false, None), slice.clone()]).0, expected);
    assert_eq!(
        first(&[to_service(true, Some("shop")), slice.clone()]).0,
        expected
    );
    assert_eq!(first(&[to_service(true, Some("other")), slice]).0, NOTHING);
}

#[test]
fn t61_endpoints_that_are_not_ready_count() {
    let slice = slice("a", json!([{"port": 80}]), &["10.0.0.1", "host.example"]);
    assert_eq!(
        first(&[to_service(false, None), slice]).0,
        "Allow 10.0.0.1/32 at tcp/80"
    );
}

#[test]
fn t62_a_service_is_its_endpoints_and_never_its_own_address() {
    let service = service(json!({"clusterIP": "172.20.0.1", "selector": {"app": "web"},
        "ports": [{"port": 80, "targetPort": 8080}, {"port": 443, "targetPort": "tls"}, {"port": 53, "protocol": "UDP"}]}));
    // Without slices, in a folder, the pods that it selects.
    let expected = "Allow [ns=shop|app=web] at tcp/8080 udp/53 tcp/tls";
    assert_eq!(first(&[to_service(false, None), service.clone()]).0, expected);
    let slice = slice("a", json!([{"port": 8080}]), &["10.0.0.1"]);
    assert_eq!(
        first(&[to_service(false, None), service.clone(), slice]).0,
        "Allow 10.0.0.1/32 at tcp/8080"
    );
    let none = self::service(json!({"ports": [{"port": 80}]}));
    assert_eq!(first(&[to_service(false, None), none]).0, NOTHING);
}

#[test]
fn t99_4_services_are_sources_by_address_and_destinations_by_port() {
    let slices = [
        slice("a", json!([{"port": 80}]), &["10.0.0.1"]),
        slice("b", json!([{"port": 81}]), &["10.0.0.2"]),
        slice("c", json!([{"name": "all"}]), &["10.0.0.3"]),
    ];
    let mut objects = vec![from(false, json!({"services": {"name": "s"}}))];
    objects.extend(slices.clone());
    assert_eq!(
        first(&objects).0,
        "Allow 10.0.0.1/32, 10.0.0.2/32, 10.0.0.3/32 at anywhere"
    );
    objects[0] = to_service(false, None);
    assert_eq!(
        alternatives(&objects),
        ["Allow 10.0.0.1/32 at tcp/80", "Allow 10.0.0.2/32 at tcp/81"]
    );
    // An endpoint without a port is none.
    objects.remove(2);
    assert_eq!(first(&objects).0, "Allow 10.0.0.1/32 at tcp/80");
    // The rule's protocol counts.
    let rule = json!({"action": "Allow", "protocol": "UDP", "destination": {"services": {"name": "s"}}});
    let mut objects = vec![namespaced(&json!({"egress": [rule]}))];
    objects.push(slice(
        "a",
        json!([{"port": 53, "protocol": "UDP"}, {"port": 53}]),
        &["10.0.0.1"],
    ));
    assert_eq!(first(&objects).0, "Allow 10.0.0.1/32 at udp/53");
}

#[test]
fn t54_host_endpoints_that_policies_are_for_are_named() {
    let open = |labels: Value| {
        endpoint(
            labels,
            json!({"interfaceName": "*", "profiles": ["projectcalico-default-allow"]}),
        )
    };
    let named = |policy: Value, endpoint: Value| {
        let lowered = together(&[policy, endpoint]);
        lowered.unevaluated.contains("HostEndpoint.projectcalico.org")
    };
    let of = |key: &str, selector: &str| global(&json!({key: selector}));
    assert!(named(of("namespaceSelector", "!has(team)"), open(json!({}))));
    assert!(named(of("selector", "all()"), open(json!({}))));
    assert!(named(of("selector", "has(host)"), open(json!({"host": "1"}))));
    assert!(!named(of("selector", "has(host)"), open(json!({}))));
    assert!(!named(of("namespaceSelector", "all()"), open(json!({}))));
    assert!(!named(of("serviceAccountSelector", "all()"), open(json!({}))));
    assert!(!named(namespaced(&json!({})), open(json!({}))));
    // Without a profile that allows, the host is closed as it is.
    assert!(named(
        namespaced(&json!({})),
        endpoint(json!({}), json!({"interfaceName": "eth0"}))
    ));
}

#[test]
fn t96_1_pods_have_the_labels_of_their_service_accounts_where_policies_ask() {
    let account = json!({"apiVersion": "v1", "kind": "ServiceAccount",
        "metadata": {"name": "s", "namespace": "shop", "labels": {"team": "a"}}});
    let pod = |account: &str| {
        let value = json!({"apiVersion": "v1", "kind": "Pod", "spec": {"serviceAccountName": account},
            "metadata": {"name": "p", "namespace": "shop", "labels": {"role": "db"}}});
        match decoded(&value).unwrap().object {
            Object::Pod(pod) => pod,
            other => panic!("{other:?}"),
        }
    };
    let lowered = together(&[
        global(&json!({"serviceAccountSelector": "has(team)"})),
        account.clone(),
    ]);
    let accounts = lowered.world;
    let labels = |name: &str| {
        let mut pod = pod(name);
        accounts.describe(&mut pod);
        let before = pod.clone();
        accounts.describe(&mut pod);
        assert_eq!(pod, before);
        pod.labels
            .into_iter()
            .map(|(key, value)| format!("{key}={value}"))
            .collect::<Vec<_>>()
    };
    assert_eq!(
        labels("s"),
        [
            "role=db",
            "serviceaccount:projectcalico.org/name=s",
            "serviceaccount:team=a"
        ]
    );
    assert_eq!(
        labels("other"),
        ["role=db", "serviceaccount:projectcalico.org/name=other"]
    );
    for asks in [
        json!({"selector": "pcsa.team == 'a'"}),
        json!({"ingress": [{"action": "Allow", "source": {"serviceAccounts": {"names": ["s"]}}}]}),
    ] {
        assert!(
            together(&[global(&asks), account.clone()])
                .world
                .asks_for_accounts(),
            "{asks}"
        );
    }
    for silent in [
        json!({"selector": "team == 'a'"}),
        json!({"serviceAccountSelector": "all()"}),
    ] {
        assert!(
            !together(&[global(&silent), account.clone()])
                .world
                .asks_for_accounts(),
            "{silent}"
        );
    }
}

#[test]
fn staged_policies_are_lowered_beside_those_in_force() {
    let rule = json!({"action": "Allow", "source": {"selector": "has(a)"}});
    let objects = [
        object("StagedGlobalNetworkPolicy", "z", &json!({"ingress": [rule]})),
        object("StagedKubernetesNetworkPolicy", "k", &json!({"podSelector": {}})),
        global_set("g", json!({"a": "1"}), &["10.0.0.0/8"]),
    ];
    let lowered = together(&objects);
    assert!(lowered.policies.is_empty() && lowered.unevaluated.is_empty() && lowered.findings.is_empty());
    let names: Vec<String> = lowered
        .staged
        .iter()
        .map(|it| format!("{} {}", it.kind, it.key))
        .collect();
    assert_eq!(
        names,
        [
            "StagedGlobalNetworkPolicy /z",
            "StagedKubernetesNetworkPolicy shop/k"
        ]
    );
    let StagedPolicy::Calico(policy) = &lowered.staged[0].policy else {
        panic!("{:?}", lowered.staged[0]);
    };
    assert_eq!(
        words(policy.rules().next().unwrap()),
        "Allow [|a], 10.0.0.0/8 at anywhere"
    );
}

#[test]
fn what_objects_come_to_does_not_depend_on_their_order() {
    let objects = [
        from(true, json!({"selector": "has(a)", "notSelector": "has(x)"})),
        object(
            "GlobalNetworkPolicy",
            "q",
            &json!({"egress": [
            {"action": "Deny", "destination": {"services": {"name": "s", "namespace": "shop"}}}]}),
        ),
        to_service(false, None),
        set("shop", json!({"a": "1"}), &["10.1.0.0/16", "10.0.0.9"]),
        global_set("g", json!({"a": "1"}), &["10.0.0.0/8"]),
        endpoint(json!({"a": "1"}), json!({"expectedIPs": ["192.0.2.2"]})),
        slice("a", json!([{"port": 80}]), &["10.0.0.1"]),
        slice("b", json!([{"port": 80}]), &["10.0.0.2"]),
        namespace("shop", json!({"team": "a"})),
    ];
    let result = |objects: &[Value]| {
        let lowered = together(objects);
        let mut policies: Vec<String> = lowered.policies.iter().map(|it| format!("{it:?}")).collect();
        policies.sort();
        (policies, lowered.unevaluated)
    };
    let expected = result(&objects);
    assert_eq!(expected.0.len(), 3);
    let mut shuffled = objects.to_vec();
    for step in 1..objects.len() {
        shuffled.rotate_left(step);
        shuffled.swap(0, step);
        assert_eq!(result(&shuffled), expected);
    }
}

/// What may stand in each of a few places.
fn places() -> Vec<Vec<Value>> {
    let set = |key: &str, net: &str| set("shop", json!({key: "1"}), &[net]);
    let at = |address: &str, service: &str, port: u16| {
        let mut slice = slice("a", json!([{"port": port}]), &[address]);
        slice["metadata"]["labels"]["kubernetes.io/service-name"] = json!(service);
        slice
    };
    let q = |rule: Value| object("GlobalNetworkPolicy", "q", &json!({"egress": [rule]}));
    vec![
        vec![
            from(true, json!({"selector": "has(a)", "notSelector": "has(x)"})),
            from(true, json!({"selector": "has(pcns.team)"})),
            from(true, json!({"nets": ["10.0.0.0/8"]})),
        ],
        vec![
            q(json!({"action": "Deny", "destination": {"services": {"name": "s", "namespace": "shop"}}})),
            q(json!({"action": "Allow", "destination": {"selector": "has(x)"}})),
            q(json!({"action": "Allow", "protocol": "TCP",
                "destination": {"selector": "has(x)", "ports": ["web", "db", 80], "notPorts": ["db"]}})),
            object(
                "GlobalNetworkPolicy",
                "q",
                &json!({"ingress": [{"action": "Pass", "protocol": "TCP",
                "source": {"selector": "has(x)", "ports": ["web", 80], "notPorts": ["db"]}}]}),
            ),
        ],
        vec![object(
            "StagedGlobalNetworkPolicy",
            "z",
            &json!({"ingress": [{"action": "Allow", "source": {"selector": "has(a)"}}]}),
        )],
        vec![
            set("a", "10.1.0.0/16"),
            set("a", "10.2.0.0/16"),
            set("x", "10.2.0.0/16"),
        ],
        vec![
            endpoint(json!({"a": "1"}), json!({"expectedIPs": ["192.0.2.2"]})),
            endpoint(json!({"x": "1"}), json!({"expectedIPs": ["192.0.2.3"]})),
            endpoint(
                json!({"x": "1"}),
                json!({"expectedIPs": ["192.0.2.3"], "ports": [{"name": "web", "port": 8080, "protocol": "TCP"},
                    {"name": "db", "port": 5432, "protocol": "TCP"}]}),
            ),
        ],
        vec![
            at("10.0.0.1", "s", 80),
            at("10.0.0.2", "s", 81),
            at("10.0.0.1", "t", 80),
        ],
        vec![
            at("10.0.0.3", "s", 80),
            at("10.0.0.3", "t", 80),
            at("10.0.0.3", "s", 81),
        ],
        vec![
            service(json!({"selector": {"role": "db"}})),
            service(json!({"selector": {"role": "web"}})),
        ],
        vec![
            namespace("shop", json!({"team": "a"})),
            namespace("shop", json!({"x": "a"})),
        ],
    ]
}

proptest! {
    #[test]
    fn what_is_kept_up_is_what_the_same_objects_come_to_anew(
        edits in prop::collection::vec((0..9_usize, 0..4_usize), 1..40)
    ) {
        let places = places();
        let mut now: Vec<Option<Value>> = vec![None; places.len()];
        let mut world = World::default();
        let mut namespaces = imbl::OrdMap::new();
        let mut policies = std::collections::BTreeMap::new();
        let mut cluster = Cluster::default();
        for (place, what) in edits {
            let before = std::mem::replace(&mut now[place], places[place].get(what).cloned());
            if before == now[place] {
                // Heard twice: nothing changes.
                continue;
            }
            let decoded = now[place].as_ref().map(|value| super::decoded(value).unwrap());
            match decoded.as_ref().map(|it| (&it.input, &it.object)) {
                Some((_, Object::Namespace(it))) => {
                    namespaces.insert(it.name.clone(), Arc::new(it.clone()));
                    world.namespace("shop", &namespaces);
                }
                Some((Some(input), object)) => {
                    let policy = match object {
                        Object::Tiered(policy) => Some(policy),
                        _ => None,
                    };
                    policies.remove(&place);
                    world.put(place, Arc::clone(input), policy, &namespaces);
                }
                _ => {
                    world.take(&place);
                    policies.remove(&place);
                    if place == 8 {
                        namespaces.remove("shop");
                        world.namespace("shop", &namespaces);
                    }
                }
            }
            policies.extend(world.complete().into_iter().map(|it| (it.key, it.policy)));
            for (name, members) in world.take_address_sets() {
                cluster.set_addresses(&name, members.as_ref());
            }
            let objects: Vec<Value> = now.iter().flatten().cloned().collect();
            let anew = together(&objects);
            let kept = policies.values().map(|policy| in_full(&cluster, policy.clone()));
            prop_assert_eq!(kept.collect::<Vec<_>>(), anew.policies);
            let staged = world.staged().into_iter().map(|it| staged_in_full(&cluster, it));
            prop_assert_eq!(staged.collect::<Vec<_>>(), anew.staged);
            prop_assert_eq!(&cluster.address_sets, &anew.address_sets);
            prop_assert_eq!(world.governed().is_empty(), anew.unevaluated.is_empty());
        }
    }
}
