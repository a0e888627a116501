//! Kinds of policy that an API server may not serve, may serve in another version, or may not let us read.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs)] // a failed step is a failed test

mod kube_bed;

use std::time::{Duration, Instant};

use kube_bed::{
    Bed, a_moment, admin_policy, baseline_policy, cluster_policy, eventually, has_pod, incomplete, looking,
    ordered, pod, quick, watched,
};
use ringwall_policy::{Cluster, Order};
use ringwall_source::kube::Timing;
use ringwall_testbed::api_server::{
    ADMIN_NETWORK_POLICIES, BASELINE_ADMIN_NETWORK_POLICIES, CLUSTER_NETWORK_POLICIES, Resource,
};
use serde_json::{Value, json};

const ORDERED: [Resource; 3] = [
    CLUSTER_NETWORK_POLICIES,
    ADMIN_NETWORK_POLICIES,
    BASELINE_ADMIN_NETWORK_POLICIES,
];

/// As they may stand among the kinds that are not evaluated.
const LABEL: &str = "ClusterNetworkPolicy.policy.networking.k8s.io";

/// A server that serves the kinds, with a policy.
fn serving(resources: &[Resource]) -> Bed {
    let bed = Bed::new();
    for resource in resources {
        bed.server.serve(*resource);
    }
    bed
}

fn complete(cluster: &Cluster) -> bool {
    cluster.unevaluated_kinds.is_empty()
}

/// How often the server was asked for its groups.
fn looks(bed: &Bed) -> usize {
    let seen = bed.server.seen();
    seen.iter().filter(|seen| seen.path == "/apis").count()
}

/// Waits until discovery has looked so often again.
async fn look_again(bed: &Bed, times: usize) {
    let before = looks(bed);
    eventually("looked again", || looks(bed) > before + times).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kind_without_crd_is_not_missing() {
    let bed = Bed::new();
    let source = bed.following(looking()).await;
    look_again(&bed, 2).await;
    let health = source.health();
    assert!(complete(&source.latest().unwrap()));
    assert_eq!(health.watches.len(), 4, "{health:#?}");
    assert_eq!((health.errors, health.stale_seconds), (0, None), "{health:#?}");
    assert_eq!(source.alarms(), Vec::<String>::new());
    // Nor is a CRD without objects.
    for resource in ORDERED {
        bed.server.serve(resource);
        watched(&source, resource).await;
    }
    let health = source.health();
    assert_eq!((health.watches.len(), health.errors), (7, 0), "{health:#?}");
    assert!(complete(&source.latest().unwrap()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crd_that_appears_is_listed_and_watched() {
    let bed = Bed::new();
    let source = bed.following(looking()).await;
    for resource in ORDERED {
        bed.server.serve(resource);
    }
    bed.server.apply(cluster_policy("first", 5));
    bed.server.apply(admin_policy("second", 6));
    bed.server.apply(baseline_policy("third"));
    let state = source
        .state("three policies", |state| state.tiered.len() == 3)
        .await;
    assert!(complete(&state));
    for resource in ORDERED {
        watched(&source, resource).await;
    }
    let version = bed.server.apply(cluster_policy("first", 7));
    let order = |state: &Cluster| state.tiered.values().next().unwrap().order;
    source
        .state("the change", |state| order(state) == Order::of_priority(7))
        .await;
    let versions = source.feed.states.borrow().as_ref().unwrap().versions;
    assert_eq!(versions.cluster_policies, Some(version));
    bed.server.delete(ADMIN_NETWORK_POLICIES, "", "second").unwrap();
    source
        .state("two policies", |state| ordered(state) == ["first", "default"])
        .await;
    let health = source.health();
    assert_eq!((health.relists, health.errors), (0, 0), "{health:#?}");
    let objects: Vec<u64> = health.watches.iter().map(|watch| watch.objects).collect();
    assert_eq!(objects, [1, 1, 1, 1, 1, 0, 1]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crd_that_goes_takes_its_policies_along_and_may_come_again() {
    let bed = serving(&ORDERED);
    bed.server.apply(cluster_policy("deny", 5));
    bed.server.apply(admin_policy("pass", 5));
    let source = bed.following(looking()).await;
    // As a server does it: the objects first.
    bed.server.delete(CLUSTER_NETWORK_POLICIES, "", "deny").unwrap();
    bed.server.withdraw(CLUSTER_NETWORK_POLICIES);
    source
        .state("no such policy", |state| ordered(state) == ["pass"])
        .await;
    source
        .health_where("watched no more", |health| health.watches.len() == 6)
        .await;
    // How is unknown: the last list of this server had objects.
    bed.server.set_away(true);
    bed.server.withdraw(ADMIN_NETWORK_POLICIES);
    bed.server.set_away(false);
    source.state("no policy", |state| state.tiered.is_empty()).await;
    let health = source
        .health_where("watched no more", |health| health.watches.len() == 5)
        .await;
    assert!(complete(&source.latest().unwrap()));
    source.connected().await;
    assert_eq!(source.health().stale_seconds, None, "{health:#?}");
    bed.server.serve(CLUSTER_NETWORK_POLICIES);
    bed.server.apply(cluster_policy("again", 5));
    source
        .state("it again", |state| ordered(state) == ["again"])
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kind_that_is_not_found_once_or_cannot_be_looked_up_keeps_its_policies() {
    let bed = serving(&ORDERED);
    bed.server.apply(cluster_policy("deny", 5));
    let source = bed
        .following(Timing {
            probe: Duration::from_millis(400),
            ..quick()
        })
        .await;
    // A server that starts and does not know its CRDs yet: its watches end, its lists lead nowhere.
    bed.server.withdraw(CLUSTER_NETWORK_POLICIES);
    look_again(&bed, 2).await;
    bed.server.serve(CLUSTER_NETWORK_POLICIES);
    watched(&source, CLUSTER_NETWORK_POLICIES).await;
    for status in [403, 500, 503] {
        bed.server.refuse_discovery(Some(status));
        bed.server.cut(CLUSTER_NETWORK_POLICIES);
        source
            .state("unknown", |state| incomplete(state) == ["unknown"])
            .await;
        bed.server.refuse_discovery(None);
        source.state("known", complete).await;
    }
    let never_without = source
        .recorder
        .states()
        .iter()
        .all(|state| ordered(state) == ["deny"]);
    assert!(never_without, "{:#?}", source.health());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn policies_are_read_where_discovery_is_refused() {
    let bed = serving(&ORDERED);
    bed.server.apply(cluster_policy("deny", 5));
    bed.server.refuse_discovery(Some(403));
    let source = bed.following(looking()).await;
    let first = &source.recorder.states()[0];
    assert_eq!(ordered(first), ["deny"], "nothing is handed on without it");
    assert_eq!(incomplete(first), ["unknown"], "there may be others");
    bed.server.apply(cluster_policy("next", 6));
    source
        .state("the next", |state| ordered(state) == ["deny", "next"])
        .await;
}

const OLD: Resource = Resource {
    version: "v1alpha1",
    ..CLUSTER_NETWORK_POLICIES
};

fn in_version(mut object: Value, resource: Resource) -> Value {
    object["apiVersion"] = json!(format!("{}/{}", resource.group, resource.version));
    object
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_version_that_is_not_understood_is_named_once_there_are_objects() {
    let bed = serving(&[OLD]);
    let source = bed.following(looking()).await;
    look_again(&bed, 2).await;
    assert!(complete(&source.latest().unwrap()), "there are none");
    bed.server.apply(in_version(cluster_policy("deny", 5), OLD));
    let named = format!("{LABEL}/v1alpha1");
    let state = source
        .state("incomplete", |state| incomplete(state) == [named.as_str()])
        .await;
    assert!(state.tiered.is_empty());
    let alarm = source.alarm("alone").await;
    assert!(
        alarm.contains("serves ClusterNetworkPolicy as policy.networking.k8s.io/v1alpha1 alone")
            && alarm.contains("reads policy.networking.k8s.io/v1alpha2"),
        "{alarm}"
    );
    assert!(source.feed.health.explains(&named));
    // From the first state on, too.
    let another = bed.following(looking()).await;
    assert_eq!(incomplete(&another.recorder.states()[0]), [named.as_str()]);
    bed.server.delete(OLD, "", "deny").unwrap();
    source.state("complete", complete).await;
    source.no_alarm().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crd_that_changes_its_version_keeps_what_was_read_and_is_read_again() {
    let bed = serving(&[CLUSTER_NETWORK_POLICIES]);
    bed.server.apply(cluster_policy("deny", 5));
    let source = bed.following(looking()).await;
    bed.server.serve(OLD);
    bed.server.apply(in_version(cluster_policy("deny", 5), OLD));
    look_again(&bed, 2).await;
    assert!(complete(&source.latest().unwrap()), "one of them is understood");
    bed.server.withdraw(CLUSTER_NETWORK_POLICIES);
    let named = format!("{LABEL}/v1alpha1");
    let state = source
        .state("incomplete", |state| incomplete(state) == [named.as_str()])
        .await;
    assert_eq!(ordered(&state), ["deny"]);
    source.alarm("stay in force").await;
    look_again(&bed, 3).await;
    assert_eq!(ordered(&source.latest().unwrap()), ["deny"]);
    bed.server.serve(CLUSTER_NETWORK_POLICIES);
    bed.server.apply(cluster_policy("more", 6));
    source
        .state("both, complete", |state| {
            ordered(state) == ["deny", "more"] && complete(state)
        })
        .await;
    source.no_alarm().await;
    // Without objects in the version that is left there are none.
    bed.server.withdraw(CLUSTER_NETWORK_POLICIES);
    bed.server.delete(OLD, "", "deny").unwrap();
    source
        .state("none", |state| state.tiered.is_empty() && complete(state))
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kind_that_may_not_be_read_is_named_and_taken_up_once_it_may() {
    let bed = serving(&ORDERED);
    bed.server.apply(cluster_policy("deny", 5));
    bed.server.apply(admin_policy("pass", 5));
    bed.server
        .faults(CLUSTER_NETWORK_POLICIES, |faults| faults.fail_always = Some(403));
    let source = bed.start(looking()).await;
    let state = source.state("the first", |_| true).await;
    assert_eq!(
        (ordered(&state), incomplete(&state)),
        (vec!["pass".to_owned()], vec![LABEL])
    );
    let alarm = source.alarm("cannot be read").await;
    assert!(
        alarm.contains("list clusternetworkpolicies.policy.networking.k8s.io: forbidden")
            && alarm.contains("every verdict is incomplete"),
        "{alarm}"
    );
    source.alarm("ClusterRole that allows `list`").await;
    let health = source
        .health_where("the rest is current", |health| health.stale_seconds.is_none())
        .await;
    assert!(
        health.watches[4].errors >= 2 && !health.watches[4].connected,
        "{health:#?}"
    );
    // The rest goes on.
    bed.server.apply(pod("a", "p2", "10.0.0.12"));
    source.state("the next pod", has_pod("a/p2")).await;
    bed.server
        .faults(CLUSTER_NETWORK_POLICIES, |faults| faults.fail_always = None);
    source
        .state("both", |state| state.tiered.len() == 2 && complete(state))
        .await;
    source.no_alarm().await;
    // Taken away again, while it is watched.
    bed.server
        .faults(CLUSTER_NETWORK_POLICIES, |faults| faults.fail_always = Some(403));
    bed.server.cut(CLUSTER_NETWORK_POLICIES);
    let state = source
        .state("incomplete", |state| incomplete(state) == [LABEL])
        .await;
    assert_eq!(state.tiered.len(), 2, "what was read stays");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kind_that_may_be_listed_and_not_watched_is_read_and_named() {
    let bed = serving(&ORDERED);
    bed.server.apply(cluster_policy("deny", 5));
    bed.server
        .faults(CLUSTER_NETWORK_POLICIES, |faults| faults.fail_watches = Some(403));
    let source = bed.start(looking()).await;
    let state = source
        .state("incomplete", |state| incomplete(state) == [LABEL])
        .await;
    assert_eq!(ordered(&state), ["deny"], "it is listed");
    let alarm = source.alarm("ClusterRole").await;
    assert!(alarm.contains("allows `watch`"), "{alarm}");
    let states = source.health().states;
    bed.server.apply(cluster_policy("next", 6));
    let state = source
        .state("the next list", |state| ordered(state) == ["deny", "next"])
        .await;
    assert_eq!(incomplete(&state), [LABEL]);
    assert!(source.health().states <= states + 2, "no to and fro");
    bed.server
        .faults(CLUSTER_NETWORK_POLICIES, |faults| faults.fail_watches = None);
    source.state("complete", complete).await;
    source.no_alarm().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_handed_on_before_the_list_of_a_kind_that_is_served() {
    for late in ORDERED {
        let bed = serving(&ORDERED);
        bed.server.apply(cluster_policy("one", 5));
        bed.server.apply(admin_policy("two", 5));
        bed.server.apply(baseline_policy("three"));
        bed.server.faults(late, |faults| faults.hold_lists = true);
        let source = bed.start(looking()).await;
        source
            .health_where("six lists", |health| {
                health.watches.iter().filter(|watch| watch.synced).count() == 6
            })
            .await;
        look_again(&bed, 2).await;
        assert!(source.latest().is_none(), "{} is missing", late.plural);
        assert!(!source.health().synced);
        bed.server.faults(late, |faults| faults.hold_lists = false);
        let state = source.state("everything", |_| true).await;
        assert_eq!(state.tiered.len(), 3, "{} was late", late.plural);
        assert!(complete(&state));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_list_that_hangs_or_fails_is_asked_for_again_and_waited_for() {
    let bed = serving(&ORDERED);
    bed.server.apply(cluster_policy("deny", 5));
    bed.server.faults(CLUSTER_NETWORK_POLICIES, |faults| {
        faults.list_delay = Duration::from_secs(3);
    });
    let source = bed
        .start(Timing {
            list_timeout: Duration::from_millis(100),
            ..looking()
        })
        .await;
    let of_kind =
        |health: &ringwall_messages::SourceStatus| health.watches.get(4).cloned().unwrap_or_default();
    let health = source
        .health_where("two errors", |health| of_kind(health).errors >= 2)
        .await;
    let error = of_kind(&health).last_error.unwrap();
    assert!(
        error.contains("list clusternetworkpolicies.policy.networking.k8s.io: no answer"),
        "{error}"
    );
    assert!(source.latest().is_none());
    bed.server.faults(CLUSTER_NETWORK_POLICIES, |faults| {
        faults.list_delay = Duration::ZERO;
        faults.fail_next = vec![500, 503, 429];
        faults.retry_after = Some(1);
    });
    let state = source.state("everything", |_| true).await;
    assert_eq!(ordered(&state), ["deny"]);
}

/// Its tier cannot be read.
fn unreadable(name: &str) -> Value {
    let mut policy = cluster_policy(name, 5);
    policy["spec"]["tier"] = json!("Platform");
    policy
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s72_5_a_policy_that_becomes_unreadable_keeps_its_last_good_version_also_over_a_restart() {
    let bed = serving(&ORDERED);
    bed.server.apply(cluster_policy("deny", 5));
    let kept = bed.kubeconfig.with_file_name("policies.json");
    let begin = || bed.start_keeping(looking(), Some(kept.clone()));
    let source = begin().await;
    let good = source.state("the first", |_| true).await;
    source.connected().await;
    let unreadable_subject = {
        let mut policy = cluster_policy("deny", 6);
        policy["spec"]["subject"] = json!({"workloads": {}});
        policy
    };
    let unreadable_priority = {
        let mut policy = cluster_policy("deny", 6);
        policy["spec"]["priority"] = json!(-1);
        policy
    };
    for bad in [unreadable("deny"), unreadable_subject, unreadable_priority] {
        bed.server.apply(bad);
        let alarm = source.alarm("last good version stays").await;
        assert!(alarm.contains("ClusterNetworkPolicy deny: spec."), "{alarm}");
        eventually("in the state", || {
            let state = source.feed.states.borrow().clone().unwrap();
            assert_eq!(state.cluster.tiered, good.tiered);
            state.problems.iter().any(|problem| problem.object == "deny")
        })
        .await;
        assert!(complete(&source.latest().unwrap()), "it is enforced");
        bed.server.apply(cluster_policy("deny", 5));
        source.no_alarm().await;
    }
    // The next process knows the good one, too.
    bed.server.apply(unreadable("deny"));
    source.alarm("last good version stays").await;
    eventually("kept", || kept.exists()).await;
    drop(source);
    let source = begin().await;
    let state = source.state("the first", |_| true).await;
    assert_eq!(state.tiered, good.tiered);
    source.alarm("last good version stays").await;
    drop(source);
    // Deleted meanwhile.
    bed.server.delete(CLUSTER_NETWORK_POLICIES, "", "deny").unwrap();
    let state = begin().await.state("the first", |_| true).await;
    assert!(state.tiered.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_read_before_a_restart_stays_until_it_is_known_to_be_gone() {
    let bed = serving(&ORDERED);
    bed.server.apply(cluster_policy("deny", 5));
    let kept = bed.kubeconfig.with_file_name("policies.json");
    let begin = |probe| {
        let timing = Timing { probe, ..quick() };
        bed.start_keeping(timing, Some(kept.clone()))
    };
    let source = begin(looking().probe).await;
    source.state("the first", |_| true).await;
    eventually("kept", || kept.exists()).await;
    drop(source);
    // The permission went meanwhile.
    bed.server
        .faults(CLUSTER_NETWORK_POLICIES, |faults| faults.fail_always = Some(403));
    let state = begin(looking().probe).await.state("the first", |_| true).await;
    assert_eq!(
        (ordered(&state), incomplete(&state)),
        (vec!["deny".to_owned()], vec![LABEL])
    );
    bed.server
        .faults(CLUSTER_NETWORK_POLICIES, |faults| faults.fail_always = None);
    // The CRD went meanwhile, or the server does not know it yet.
    bed.server.delete(CLUSTER_NETWORK_POLICIES, "", "deny").unwrap();
    bed.server.withdraw(CLUSTER_NETWORK_POLICIES);
    let source = begin(Duration::from_millis(400)).await;
    let began = Instant::now();
    let state = source.state("the first", |_| true).await;
    assert_eq!(ordered(&state), ["deny"]);
    source.state("gone", |state| state.tiered.is_empty()).await;
    assert!(
        began.elapsed() > Duration::from_millis(300),
        "{:?}",
        began.elapsed()
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s72_5_a_policy_that_never_could_be_read_makes_verdicts_incomplete() {
    let bed = serving(&ORDERED);
    bed.server.apply(unreadable("new"));
    bed.server.apply(cluster_policy("deny", 5));
    let source = bed.following(looking()).await;
    let first = source.recorder.states()[0].clone();
    assert_eq!(
        (ordered(&first), incomplete(&first)),
        (vec!["deny".to_owned()], vec![LABEL])
    );
    let alarm = source.alarm("not enforced").await;
    assert!(alarm.contains("ClusterNetworkPolicy new: spec.tier"), "{alarm}");
    assert!(source.feed.health.explains(LABEL));
    bed.server.apply(unreadable("newer"));
    source.alarm("2 policies are not enforced").await;
    bed.server.delete(CLUSTER_NETWORK_POLICIES, "", "newer").unwrap();
    bed.server.apply(cluster_policy("new", 6));
    source
        .state("both", |state| {
            ordered(state) == ["deny", "new"] && complete(state)
        })
        .await;
    source.no_alarm().await;
    assert!(!source.feed.health.explains(LABEL));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s107_a_rule_that_is_not_understood_fails_closed_and_what_is_not_evaluated_is_named() {
    let bed = serving(&ORDERED);
    let source = bed.following(looking()).await;
    let mut odd = cluster_policy("odd", 5);
    odd["spec"]["ingress"] = json!([
        {"action": "Accept", "from": [{}]},
        {"action": "Deny", "from": [{"namespaces": {}}], "protocols": [{}]},
    ]);
    odd["spec"]["egress"] = json!([{"action": "Accept", "to": [{"domainNames": ["*.example.com"]}]}]);
    bed.server.apply(odd);
    let state = source.state("the policy", |state| !state.tiered.is_empty()).await;
    let policy = state.tiered.values().next().unwrap();
    let anyone = policy.ingress.iter().flatten().map(|rule| rule.peers.is_none());
    assert_eq!(anyone.collect::<Vec<_>>(), [false, true]);
    assert_eq!(policy.faults.len(), 2, "{:?}", policy.faults);
    assert_eq!(state.unevaluated_kinds, policy.unevaluated);
    assert!(!policy.unevaluated.is_empty());
    let handed = source.feed.states.borrow().clone().unwrap();
    assert_eq!(handed.problems.iter().count(), 3, "{:#?}", handed.problems);
    bed.server.delete(CLUSTER_NETWORK_POLICIES, "", "odd").unwrap();
    source
        .state("none", |state| state.tiered.is_empty() && complete(state))
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_that_are_lost_unreadable_or_errors_lead_to_a_list_of_these_kinds_too() {
    for garbage in [
        r#"{"type":"DELETED","object":{"metadata""#,
        r#"{"type":"MODIFIED","object":{"metadata":{"name":"x"}}}"#,
        r#"{"type":"ERROR","object":{"kind":"Status","message":"etcd is tired","reason":"InternalError","code":500}}"#,
        r#"{"type":"ERROR","object":{"kind":"Status","message":"too old","reason":"Expired","code":410}}"#,
    ] {
        let bed = serving(&ORDERED);
        bed.server.apply(cluster_policy("one", 5));
        bed.server.apply(cluster_policy("two", 6));
        let source = bed.following(looking()).await;
        bed.server
            .faults(CLUSTER_NETWORK_POLICIES, |faults| faults.lose_events = true);
        bed.server.delete(CLUSTER_NETWORK_POLICIES, "", "one").unwrap();
        a_moment().await;
        bed.server
            .faults(CLUSTER_NETWORK_POLICIES, |faults| faults.lose_events = false);
        assert_eq!(source.latest().unwrap().tiered.len(), 2, "the event is lost");
        bed.server.inject(CLUSTER_NETWORK_POLICIES, garbage);
        source
            .state("without the deleted one", |state| ordered(state) == ["two"])
            .await;
        source
            .health_where("listed again", |health| health.watches[4].relists >= 1)
            .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn silence_is_noticed_of_these_kinds_too() {
    const NEVER: Duration = Duration::from_secs(3600);
    let bed = serving(&ORDERED);
    bed.server.apply(cluster_policy("one", 5));
    bed.server.apply(cluster_policy("two", 6));
    let source = bed
        .following(Timing {
            pulse: Duration::from_millis(50),
            pulse_patience: Duration::from_millis(200),
            full_list: NEVER,
            ..looking()
        })
        .await;
    // Versions are compared.
    let pulses = || {
        let of_kind = |path: &str| path.ends_with("v1alpha2/clusternetworkpolicies");
        let seen = bed.server.seen();
        seen.iter()
            .filter(|it| of_kind(&it.path) && it.query.get("limit").is_some_and(|it| it == "1"))
            .count()
    };
    let before = pulses();
    eventually("its version asked for", || pulses() > before).await;
    let backup = bed.server.backup();
    bed.server.apply(cluster_policy("lost", 7));
    source.state("three", |state| state.tiered.len() == 3).await;
    bed.server.restore(&backup);
    source.state("two again", |state| state.tiered.len() == 2).await;
    source.alarm("went back").await;
    source.connected().await;
    // A server that hangs.
    bed.server.set_hung(true);
    source
        .health_where("disconnected", |health| {
            health.watches.iter().all(|watch| !watch.connected)
        })
        .await;
    assert_eq!(source.latest().unwrap().tiered.len(), 2, "the last state stands");
    bed.server.apply(cluster_policy("three", 7));
    bed.server.set_hung(false);
    source.state("three", |state| state.tiered.len() == 3).await;
    drop(source);
    // An event that never came is found by a full list.
    let source = bed
        .following(Timing {
            full_list: Duration::ZERO,
            watch_seconds: 1,
            pulse: NEVER,
            ..looking()
        })
        .await;
    bed.server
        .faults(CLUSTER_NETWORK_POLICIES, |faults| faults.lose_events = true);
    bed.server.delete(CLUSTER_NETWORK_POLICIES, "", "one").unwrap();
    a_moment().await;
    bed.server
        .faults(CLUSTER_NETWORK_POLICIES, |faults| faults.lose_events = false);
    bed.server.apply(cluster_policy("two", 9));
    let alarm = source.alarm("differs from the watched state").await;
    assert!(
        alarm.contains("clusternetworkpolicies") && alarm.contains("ClusterNetworkPolicy one"),
        "{alarm}"
    );
    source
        .state("without it", |state| !ordered(state).contains(&"one".to_owned()))
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_asks_to_come_again_later_is_not_asked_for_these_kinds_before() {
    let bed = serving(&ORDERED);
    bed.server.apply(cluster_policy("deny", 5));
    bed.server.faults(CLUSTER_NETWORK_POLICIES, |faults| {
        faults.fail_next = vec![429];
        faults.retry_after = Some(2);
    });
    let source = bed.start(looking()).await;
    source
        .health_where("busy", |health| {
            health.watches.get(4).is_some_and(|it| it.errors == 1)
        })
        .await;
    let refused = Instant::now();
    source.state("everything", |_| true).await;
    assert!(
        refused.elapsed() > Duration::from_millis(1500),
        "{:?}",
        refused.elapsed()
    );
}
