//! An API server and a folder with the same objects say the same, whatever happened before and in whatever order it was heard.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs)] // a failed step is a failed test

mod kube_bed;

use std::{
    collections::BTreeSet,
    sync::atomic::{AtomicUsize, Ordering},
    time::{Duration, Instant},
};

use kube_bed::{
    Bed, CALICO, CALICO_POLICIES, ENDPOINT_SLICES, GLOBAL_POLICIES, GLOBAL_SETS, HOST_ENDPOINTS,
    NETWORK_SETS, PATIENCE, PROFILES, SERVICE_ACCOUNTS, SERVICES, SPOKEN_OF, STAGED_GLOBAL_POLICIES,
    STAGED_KUBERNETES_POLICIES, STAGED_POLICIES, TIERS, admin_policy, baseline_policy, cluster_policy,
    object, policy, quick, stored,
};
use proptest::{prelude::*, sample::select, test_runner::TestRunner};
use ringwall_messages::ObjectProblem;
use ringwall_policy::Settings;
use ringwall_source::{
    folder::{self, Loaded},
    kube::Timing,
    watched::describe,
};
use ringwall_testbed::api_server::{
    ADMIN_NETWORK_POLICIES, BASELINE_ADMIN_NETWORK_POLICIES, CLUSTER_NETWORK_POLICIES, NAMESPACES,
    NETWORK_POLICIES, NODES, PODS, Resource,
};
use serde_json::{Value, json};

const ORDERED: [Resource; 3] = [
    CLUSTER_NETWORK_POLICIES,
    ADMIN_NETWORK_POLICIES,
    BASELINE_ADMIN_NETWORK_POLICIES,
];

/// Kinds that an API server may not serve.
fn optional() -> Vec<Resource> {
    [&ORDERED[..], &CALICO[..]].concat()
}

/// Every kind of which objects come and go.
fn kinds() -> Vec<Resource> {
    let always = [NODES, PODS, NETWORK_POLICIES];
    [&always[..], &SPOKEN_OF[..], &optional()[..]].concat()
}

/// Something that happens.
#[derive(Clone, Debug)]
enum Step {
    Apply(Resource, Value),
    Delete(Resource, &'static str, &'static str),
    /// The watch of a kind hears nothing for a while, or everything at once.
    Hold(Resource, bool),
    Cut(Resource),
    Serve(Resource),
    Withdraw(Resource),
}

const NAMES: [&str; 3] = ["a", "a-b", "z"];
const SPACES: [&str; 2] = ["a", "b"];
const ROLES: [&str; 2] = ["db", "web"];

fn labels() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(json!({})),
        select(&ROLES[..]).prop_map(|role| json!({"role": role})),
        select(&ROLES[..]).prop_map(|role| json!({"role": role, "team": "x"})),
    ]
}

/// Whom a rule of Calico is for.
fn side() -> impl Strategy<Value = Value> {
    select(vec![
        json!({}),
        json!({"selector": "role == 'db'"}),
        json!({"selector": "has(role)", "notSelector": "team == 'x'"}),
        json!({"selector": "role == 'web'", "namespaceSelector": "has(team)"}),
        json!({"namespaceSelector": "has(team)"}),
        json!({"nets": ["10.1.0.0/16", "10.2.0.0/16"]}),
        json!({"notNets": ["10.1.0.0/16"]}),
        json!({"serviceAccounts": {"names": ["a"]}}),
        json!({"serviceAccounts": {"selector": "team == 'x'"}}),
        json!({"services": {"name": "z", "namespace": "a"}}),
        json!({"services": {"name": "a", "namespace": "b"}}),
        // Not understood, and not evaluated.
        json!({"selector": "role = 'db'"}),
        json!({"nets": ["10.1.0.0/33"]}),
    ])
}

/// A spec of a policy of Calico.
fn spec(global: bool) -> impl Strategy<Value = Value> {
    let action = select(vec!["Allow", "Deny", "Pass", "Log", "Drop"]);
    let rule = (action, side(), any::<bool>(), any::<bool>()).prop_map(|(action, side, ingress, tcp)| {
        let key = if ingress { "source" } else { "destination" };
        let mut rule = json!({"action": action, key: side});
        if tcp {
            rule["protocol"] = json!("TCP");
            rule["destination"]["ports"] = json!([80]);
        }
        (ingress, rule)
    });
    let more = select(vec![
        json!({}),
        json!({"selector": "role == 'db'"}),
        json!({"serviceAccountSelector": "team == 'x'"}),
        json!({"tier": "first", "order": 3}),
        json!({"order": 1000}),
        json!({"types": ["Ingress", "Egress"]}),
    ]);
    let of_hosts = select(vec![
        json!({}),
        json!({"namespaceSelector": "all()"}),
        json!({"doNotTrack": true, "applyOnForward": true}),
    ]);
    (prop::collection::vec(rule, 0..4), more, of_hosts).prop_map(move |(rules, more, of_hosts)| {
        let of = |ingress: bool| -> Vec<Value> {
            let rules = rules.iter().filter(|(of, _)| *of == ingress);
            rules.map(|(_, rule)| rule.clone()).collect()
        };
        let mut spec = json!({"ingress": of(true), "egress": of(false)});
        let more = [more, if global { of_hosts } else { json!({}) }];
        for (key, value) in more.iter().flat_map(|it| it.as_object().unwrap()) {
            spec[key] = value.clone();
        }
        spec
    })
}

fn of(
    resource: Resource,
    labels: impl Strategy<Value = Value>,
    spec: impl Strategy<Value = Value>,
) -> impl Strategy<Value = Step> {
    (select(&SPACES[..]), select(&NAMES[..]), labels, spec).prop_map(
        move |(namespace, name, labels, spec)| {
            Step::Apply(resource, object(resource, namespace, name, labels, spec))
        },
    )
}

fn applied() -> impl Strategy<Value = Step> {
    let none = || Just(json!({}));
    let name = || select(&NAMES[..]);
    let nets = || select(vec!["10.1.0.0/16", "10.2.3.4", "2001:db8::/32"]);
    let sets = move || nets().prop_map(|net| json!({"nets": [net]}));
    let address = || select(vec!["10.9.0.1", "10.9.0.2", "192.0.2.9"]);
    let namespaces = (select(&SPACES[..]), labels()).prop_map(|(name, labels)| {
        let mut namespace = object(NAMESPACES, "", name, labels, json!({}));
        namespace["metadata"]["labels"]["kubernetes.io/metadata.name"] = json!(name);
        Step::Apply(NAMESPACES, namespace)
    });
    let nodes = (name(), labels(), address()).prop_map(|(name, labels, address)| {
        let mut node = object(NODES, "", name, labels, json!({}));
        node["status"] = json!({"addresses": [{"type": "InternalIP", "address": address}]});
        Step::Apply(NODES, node)
    });
    let pods =
        (select(&SPACES[..]), name(), labels(), name()).prop_map(|(namespace, name, labels, account)| {
            let spec = json!({"serviceAccountName": account, "nodeName": "a", "containers": []});
            let mut pod = object(PODS, namespace, name, labels, spec);
            let host = 1 + NAMES.iter().position(|it| *it == name).unwrap() + 10 * namespace.len();
            let address = format!("10.0.{}.{host}", usize::from(namespace == "b"));
            pod["status"] = json!({"phase": "Running", "podIPs": [{"ip": address}]});
            Step::Apply(PODS, pod)
        });
    let network_policies = (
        select(&SPACES[..]),
        name(),
        select(vec!["staged", "enforced", "odd"]),
    )
        .prop_map(|(namespace, name, mode)| {
            let mut policy = policy(namespace, name);
            policy["metadata"]["annotations"] = json!({"ringwall.io/mode": mode});
            Step::Apply(NETWORK_POLICIES, policy)
        });
    let towards = (name(), select(vec!["Accept", "Deny", "Pass"]), select(&ROLES[..])).prop_map(
        |(name, action, role)| {
            let mut policy = cluster_policy(name, 7);
            policy["spec"]["egress"] =
                json!([{"action": action, "to": [{"nodes": {"matchLabels": {"role": role}}}]}]);
            Step::Apply(CLUSTER_NETWORK_POLICIES, policy)
        },
    );
    let priority = || 0..1000_u16;
    let others = prop_oneof![
        (name(), priority())
            .prop_map(|(name, priority)| (CLUSTER_NETWORK_POLICIES, cluster_policy(name, priority))),
        (name(), priority())
            .prop_map(|(name, priority)| (ADMIN_NETWORK_POLICIES, admin_policy(name, priority))),
        name().prop_map(|team| (BASELINE_ADMIN_NETWORK_POLICIES, baseline_policy(team))),
    ];
    let slices =
        (select(&SPACES[..]), name(), name(), address()).prop_map(|(namespace, name, service, address)| {
            let mut slice = kube_bed::slice(name, service, address);
            slice["metadata"]["namespace"] = json!(namespace);
            Step::Apply(ENDPOINT_SLICES, slice)
        });
    let services = of(
        SERVICES,
        none(),
        labels().prop_map(|labels| json!({"selector": labels, "ports": [{"port": 80}]})),
    );
    let tiers = (
        select(vec!["first", "last"]),
        1..9_u16,
        select(vec!["Pass", "Deny"]),
    )
        .prop_map(|(name, order, default)| {
            let spec = json!({"order": order, "defaultAction": default});
            Step::Apply(TIERS, object(TIERS, "", name, json!({}), spec))
        });
    let hosts = of(
        HOST_ENDPOINTS,
        labels(),
        select(vec![
            json!({"node": "a", "expectedIPs": ["192.0.2.7"], "profiles": ["projectcalico-default-allow"]}),
            json!({"node": "a", "interfaceName": "eth0"}),
        ]),
    );
    let profiles = select(vec!["kns.a", "mine"])
        .prop_map(|name| Step::Apply(PROFILES, object(PROFILES, "", name, json!({}), json!({}))));
    let staged = of(
        STAGED_KUBERNETES_POLICIES,
        none(),
        select(vec![
            json!({"podSelector": {}}),
            json!({"stagedAction": "Delete"}),
        ]),
    );
    let of_kubernetes = prop_oneof![
        2 => namespaces, 3 => nodes, 3 => pods, 2 => network_policies, 2 => towards,
        2 => others.prop_map(|(resource, object)| Step::Apply(resource, object)),
        3 => slices, 2 => services,
        2 => of(SERVICE_ACCOUNTS, labels(), none()),
    ];
    let of_calico = prop_oneof![
        3 => of(CALICO_POLICIES, none(), spec(false)),
        4 => of(GLOBAL_POLICIES, none(), spec(true)),
        1 => of(STAGED_POLICIES, none(), spec(false)),
        1 => of(STAGED_GLOBAL_POLICIES, none(), spec(true)),
        3 => of(NETWORK_SETS, labels(), sets()),
        3 => of(GLOBAL_SETS, labels(), sets()),
        1 => tiers, 1 => hosts, 1 => profiles, 1 => staged,
    ];
    prop_oneof![of_kubernetes, of_calico]
}

fn step() -> impl Strategy<Value = Step> {
    let name = || select(&NAMES[..]);
    prop_oneof![
        20 => applied(),
        5 => (select(kinds()), select(&SPACES[..]), name())
            .prop_map(|(of, namespace, name)| Step::Delete(of, namespace, name)),
        1 => select(vec!["first", "last"]).prop_map(|name| Step::Delete(TIERS, "", name)),
        1 => select(vec!["kns.a", "mine"]).prop_map(|name| Step::Delete(PROFILES, "", name)),
        1 => Just(Step::Delete(BASELINE_ADMIN_NETWORK_POLICIES, "", "default")),
        3 => (select(kinds()), any::<bool>()).prop_map(|(of, held)| Step::Hold(of, held)),
        2 => select(kinds()).prop_map(Step::Cut),
        4 => select(optional()).prop_map(Step::Serve),
        1 => select(optional()).prop_map(Step::Withdraw),
    ]
}

/// What the server has, as a folder.
fn as_folder(bed: &Bed) -> Loaded {
    let dir = tempfile::tempdir().unwrap();
    for (number, object) in bed.server.objects().iter().enumerate() {
        std::fs::write(dir.path().join(format!("{number}.json")), object.to_string()).unwrap();
    }
    folder::load(dir.path(), &Settings::default()).unwrap()
}

/// The objects and fields that something is wrong with.
fn places<'p>(problems: impl IntoIterator<Item = &'p ObjectProblem>) -> BTreeSet<String> {
    let problems = problems.into_iter().filter(|it| !it.path.is_empty());
    problems
        .map(|it| format!("{} {}: {}", it.kind, it.object, it.path))
        .collect()
}

/// How often each of what is compared was there at the end.
static POLICIES: AtomicUsize = AtomicUsize::new(0);
static STAGED: AtomicUsize = AtomicUsize::new(0);
static FAULTS: AtomicUsize = AtomicUsize::new(0);

async fn compared(steps: &[Step], as_stored: bool) {
    let bed = Bed::new();
    let of = |resource: Resource| match as_stored && CALICO.contains(&resource) {
        true => stored(resource),
        false => resource,
    };
    bed.server.apply(kube_bed::namespace("b"));
    for resource in SPOKEN_OF {
        bed.server.serve(resource);
    }
    let mut served: BTreeSet<Resource> = kinds().into_iter().chain([NAMESPACES]).collect();
    for (number, resource) in optional().into_iter().enumerate() {
        // Every other one from the start.
        match number % 2 {
            0 => bed.server.serve(of(resource)),
            _ => drop(served.remove(&resource)),
        }
    }
    let source = bed
        .start(Timing {
            probe: Duration::from_millis(20),
            ..quick()
        })
        .await;
    for (number, step) in steps.iter().enumerate() {
        match step {
            Step::Apply(resource, object) if served.contains(resource) => {
                let resource = of(*resource);
                let mut object = object.clone();
                if !resource.group.is_empty() {
                    object["apiVersion"] = json!(format!("{}/{}", resource.group, resource.version));
                }
                bed.server.apply(object);
            }
            Step::Apply(..) => {}
            Step::Delete(resource, namespace, name) => {
                let namespace = if resource.namespaced { namespace } else { "" };
                bed.server.delete(of(*resource), namespace, name);
            }
            Step::Hold(resource, held) => {
                bed.server
                    .faults(of(*resource), |faults| faults.hold_events = *held);
            }
            Step::Cut(resource) => bed.server.cut(of(*resource)),
            Step::Serve(resource) => {
                served.insert(*resource);
                bed.server.serve(of(*resource));
            }
            Step::Withdraw(resource) => {
                served.remove(resource);
                bed.server.withdraw(of(*resource));
            }
        }
        if number % 4 == 0 {
            tokio::time::sleep(Duration::from_millis(3)).await;
        }
    }
    for resource in kinds() {
        bed.server
            .faults(of(resource), |faults| faults.hold_events = false);
    }
    let wanted = as_folder(&bed);
    let wanted_problems: Vec<ObjectProblem> = wanted.problems.iter().map(describe).collect();
    let until = Instant::now() + PATIENCE;
    loop {
        let state = source.feed.states.borrow().clone();
        let equal = state.as_ref().is_some_and(|state| {
            state.cluster == wanted.cluster
                && state.staged == wanted.staged
                && places(state.problems.iter()) == places(&wanted_problems)
        });
        if equal {
            break;
        }
        if Instant::now() > until {
            let state = state.unwrap();
            assert_eq!(places(state.problems.iter()), places(&wanted_problems));
            assert_eq!(state.staged, wanted.staged);
            assert_eq!(state.cluster, wanted.cluster);
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    POLICIES.fetch_add(wanted.cluster.tiered.len(), Ordering::Relaxed);
    STAGED.fetch_add(wanted.staged.len(), Ordering::Relaxed);
    FAULTS.fetch_add(wanted_problems.len(), Ordering::Relaxed);
}

#[test]
fn every_history_ends_in_what_a_folder_with_the_same_objects_says() {
    let mut runner = TestRunner::new(ProptestConfig {
        cases: 32,
        // Each attempt waits for a state that never comes.
        max_shrink_iters: 0,
        ..ProptestConfig::default()
    });
    let histories = (prop::collection::vec(step(), 1..120), any::<bool>());
    let every = runner.run(&histories, |(steps, as_stored)| {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(compared(&steps, as_stored));
        Ok(())
    });
    every.unwrap_or_else(|wrong| panic!("{wrong}"));
    for counted in [&POLICIES, &STAGED, &FAULTS] {
        assert!(counted.load(Ordering::Relaxed) > 30);
    }
}
