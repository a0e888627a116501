#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test says what failed by panicking

use std::collections::{BTreeMap, BTreeSet, HashSet};

use serde_json::Value;

use super::{Churn, Counts, EventKind, Spec, Synthetic};

fn text<'a>(object: &'a Value, pointer: &str) -> &'a str {
    object
        .pointer(pointer)
        .and_then(Value::as_str)
        .unwrap_or_default()
}

/// Kind, namespace and name.
fn key(object: &Value) -> (String, String, String) {
    ["/kind", "/metadata/namespace", "/metadata/name"]
        .map(|pointer| text(object, pointer).to_owned())
        .into()
}

#[test]
fn a_seed_is_a_cluster_and_all_that_happens_in_it() {
    let spec = Spec::sized(60, 600, 12);
    let made = |seed| {
        let mut cluster = Synthetic::new(spec.clone().seeded(seed)).unwrap();
        let objects: Vec<Value> = cluster.objects().collect();
        let events: Vec<_> = (0..2_000).map(|_| cluster.churn()).collect();
        (objects, events)
    };
    assert_eq!(made(3), made(3));
    assert_ne!(made(3).0, made(4).0);
}

#[test]
fn there_is_as_much_as_was_asked_for() {
    for (policies, pods, namespaces) in [(0, 1, 1), (7, 40, 3), (30, 100, 4), (200, 1_000, 20)] {
        let cluster = Synthetic::new(Spec::sized(policies, pods, namespaces)).unwrap();
        let counts = cluster.counts();
        assert_eq!(
            (counts.policies, counts.pods, counts.namespaces),
            (policies, pods, namespaces)
        );
        let mut kinds = BTreeMap::<String, usize>::new();
        let mut keys = HashSet::new();
        for object in cluster.objects() {
            *kinds.entry(text(&object, "/kind").to_owned()).or_default() += 1;
            assert!(keys.insert(key(&object)), "twice: {object}");
        }
        let of = |kind| kinds.get(kind).copied().unwrap_or_default();
        assert_eq!(
            (of("NetworkPolicy"), of("Pod"), of("Namespace"), of("Node")),
            (policies, pods, namespaces, counts.nodes)
        );
    }
}

#[test]
fn what_cannot_be_is_refused() {
    let refused = |spec| {
        Synthetic::new(spec)
            .err()
            .map(|error| error.to_string())
            .unwrap_or_default()
    };
    let mut spec = Spec::sized(10, 1_000, 10);
    spec.nodes = 2;
    assert!(refused(spec.clone()).contains("give it 5 nodes"));
    spec.nodes = 100;
    spec.egress = 1.5;
    assert!(refused(spec).contains("egress is 1.5"));
    assert!(refused(Spec::sized(10, 3, 4)).contains("3 pods in 4 namespaces"));
}

/// What a cluster of a thousand pods should look like: shares within a third of what was asked for.
#[test]
fn distributions_are_as_described() {
    let mut spec = Spec::sized(1_000, 6_000, 200);
    spec.dual_stack = true;
    spec.excepts = 0.5;
    let cluster = Synthetic::new(spec.clone()).unwrap();
    let near = |what: &str, count: usize, of: usize, share: f64| {
        let is = count as f64 / of as f64;
        assert!(
            is > share * 0.67 && is < share * 1.5,
            "{what}: {is:.3}, asked for {share}"
        );
    };
    let (mut host_network, mut finished, mut addresses) = (0, 0, HashSet::new());
    let (mut peers, mut blocks, mut ports, mut ranges, mut named) = (0, 0, 0, 0, 0);
    let mut isolating = BTreeSet::new();
    let (mut protected, mut excepts, mut six, mut expressions) = (BTreeSet::new(), 0, 0, 0);
    for object in cluster.objects() {
        match text(&object, "/kind") {
            "Pod" if object.pointer("/spec/hostNetwork").is_some() => host_network += 1,
            "Pod" if text(&object, "/status/phase") == "Succeeded" => finished += 1,
            "Pod" => {
                for ip in object["status"]["podIPs"].as_array().unwrap() {
                    assert!(addresses.insert(ip["ip"].to_string()), "twice: {ip}");
                }
                assert_eq!(object["status"]["podIPs"].as_array().map(Vec::len), Some(2));
            }
            "NetworkPolicy" => {
                protected.insert(text(&object, "/metadata/namespace").to_owned());
                expressions += usize::from(object.to_string().contains("matchExpressions"));
                if object["spec"]["policyTypes"].to_string().contains("Egress") {
                    isolating.insert(text(&object, "/metadata/namespace").to_owned());
                }
                for (direction, end) in [("ingress", "from"), ("egress", "to")] {
                    for rule in object["spec"][direction].as_array().into_iter().flatten() {
                        for peer in rule[end].as_array().into_iter().flatten() {
                            peers += 1;
                            let block = &peer["ipBlock"];
                            blocks += usize::from(!block.is_null());
                            excepts += usize::from(!block["except"].is_null());
                            six += usize::from(text(block, "/cidr").contains(':'));
                        }
                        for port in rule["ports"].as_array().into_iter().flatten() {
                            if port["port"] == 53 {
                                continue;
                            }
                            ports += 1;
                            ranges += usize::from(!port["endPort"].is_null());
                            named += usize::from(port["port"].is_string());
                        }
                    }
                }
            }
            _ => {}
        }
    }
    near("host network", host_network, 6_000, spec.host_network);
    near("finished", finished, 6_000, spec.finished);
    near("protected", protected.len(), 200, spec.protected);
    near("egress", isolating.len(), protected.len(), spec.egress);
    near("blocks", blocks, peers, spec.blocks);
    near("excepts", excepts, blocks, spec.excepts);
    near("IPv6", six, blocks, 0.5);
    near("ranges", ranges, ports, spec.ranges);
    near("names", named, ports, spec.named);
    near("policies with expressions", expressions, 1_000, 0.4);
    let Counts { workloads, pods, .. } = cluster.counts();
    assert!(
        (5..20).contains(&(pods / workloads)),
        "{pods} pods in {workloads} workloads"
    );
}

/// Events are what a watch may say: nothing is added twice, changed or deleted without being there; and what they add up
/// to is the cluster.
#[test]
fn events_add_up_to_the_cluster() {
    let mut spec = Spec::sized(60, 500, 12);
    spec.churn.namespace = 0.05;
    spec.churn.policy = 0.1;
    spec.churn.concurrent = 16;
    let mut cluster = Synthetic::new(spec).unwrap();
    let mut state: BTreeMap<_, Value> = cluster.objects().map(|object| (key(&object), object)).collect();
    let mut seen = BTreeSet::new();
    for _ in 0..20_000 {
        let event = cluster.churn();
        let key = key(&event.object);
        seen.insert((key.0.clone(), event.kind.word()));
        let before = match event.kind {
            EventKind::Deleted => state.remove(&key),
            _ => state.insert(key.clone(), event.object.clone()),
        };
        assert_eq!(
            before.is_none(),
            event.kind == EventKind::Added,
            "{} {key:?}",
            event.kind.word()
        );
        if let Some(before) = before {
            assert_eq!(before["metadata"]["uid"], event.object["metadata"]["uid"]);
        }
    }
    for kind in ["Pod", "NetworkPolicy", "Namespace", "Node"] {
        for word in ["ADDED", "MODIFIED", "DELETED"] {
            assert!(seen.contains(&(kind.to_owned(), word)), "no {kind} was {word}");
        }
    }
    // The time of a deletion is that of the event.
    let plain = |mut object: Value| {
        object["metadata"]
            .as_object_mut()
            .unwrap()
            .remove("deletionTimestamp");
        object
    };
    let now: BTreeMap<_, Value> = cluster
        .objects()
        .map(|object| (key(&object), plain(object)))
        .collect();
    let state: BTreeMap<_, Value> = state
        .into_iter()
        .map(|(key, object)| (key, plain(object)))
        .collect();
    assert_eq!(state.keys().collect::<Vec<_>>(), now.keys().collect::<Vec<_>>());
    assert_eq!(state, now);
    let pods = cluster.counts().pods;
    assert!((400..650).contains(&pods), "{pods} pods are left of 500");
    let mut addresses = HashSet::new();
    for pod in cluster.objects().filter(|it| text(it, "/kind") == "Pod") {
        let live = text(&pod, "/status/phase") == "Running" && pod.pointer("/spec/hostNetwork").is_none();
        assert!(
            !live || addresses.insert(text(&pod, "/status/podIP").to_owned()),
            "two pods: {pod}"
        );
    }
}

#[test]
fn churn_of_pods_is_of_pods() {
    let mut spec = Spec::sized(20, 200, 5);
    spec.churn = Churn::of_pods();
    let mut cluster = Synthetic::new(spec).unwrap();
    assert!((0..3_000).all(|_| text(&cluster.churn().object, "/kind") == "Pod"));
}

#[test]
fn a_folder_holds_every_object() {
    let folder = crate::scratch::Scratch::new().unwrap();
    let cluster = Synthetic::new(Spec::sized(30, 200, 6)).unwrap();
    cluster.write(folder.path()).unwrap();
    let mut found: Vec<Value> = Vec::new();
    let mut folders = vec![folder.path().to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                let text = std::fs::read_to_string(&path).unwrap();
                found.extend(
                    text.lines()
                        .filter(|line| *line != "---")
                        .map(|line| serde_json::from_str::<Value>(line).unwrap()),
                );
            }
        }
    }
    let mut wanted: Vec<String> = cluster.objects().map(|object| object.to_string()).collect();
    let mut found: Vec<String> = found.iter().map(ToString::to_string).collect();
    wanted.sort();
    found.sort();
    assert_eq!(found, wanted);
}

#[test]
fn full_pods_are_as_large_as_an_api_servers() {
    let mut spec = Spec::sized(0, 100, 5);
    spec.full = true;
    let cluster = Synthetic::new(spec).unwrap();
    let sizes: Vec<usize> = cluster
        .objects()
        .filter(|object| text(object, "/kind") == "Pod")
        .map(|object| object.to_string().len())
        .collect();
    let mean = sizes.iter().sum::<usize>() / sizes.len();
    assert!((3_000..5_000).contains(&mean), "{mean} bytes");
}
