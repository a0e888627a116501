//! The API server as a source, against a server that misbehaves.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)] // a failed step is a failed test

mod kube_bed;

use std::{
    collections::BTreeSet,
    path::PathBuf,
    time::{Duration, Instant},
};

use kube_bed::{
    Bed, KINDS, PATIENCE, Running, a_moment, eventually, has_pod, namespace, node, pod, pods_of, policy,
    quick,
};
use ringwall_compile::{EpochKey, compile};
use ringwall_dataplane::classify::Generation;
use ringwall_policy::{Cluster, Settings};
use ringwall_source::kube::{Access, KubeError, Timing, start};
use ringwall_testbed::api_server::{NAMESPACES, NETWORK_POLICIES, NODES, PODS, Resource};
use serde_json::json;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_handed_on_before_every_list_has_come() {
    for late in KINDS {
        let bed = Bed::new();
        bed.server.faults(late, |faults| faults.hold_lists = true);
        let source = bed.start(quick()).await;
        source
            .health_where("three lists", |health| {
                health.watches.iter().filter(|watch| watch.synced).count() == 3
            })
            .await;
        a_moment().await;
        assert!(source.latest().is_none(), "{} is missing", late.plural);
        assert!(!source.health().synced);
        bed.server.faults(late, |faults| faults.hold_lists = false);
        let state = source.state("everything", |_| true).await;
        assert_eq!(
            (
                state.namespaces.len(),
                state.nodes.len(),
                state.pods.len(),
                state.policies.len()
            ),
            (1, 1, 1, 1),
            "{} was late",
            late.plural
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_list_of_many_pages_is_taken_whole_even_when_it_expires_on_the_way() {
    let bed = Bed::new();
    for n in 2..=9 {
        bed.server
            .apply(pod("a", &format!("p{n}"), &format!("10.0.0.1{n}")));
    }
    bed.server.faults(PODS, |faults| faults.expire_pages = 2);
    let source = bed.start(Timing { page: 2, ..quick() }).await;
    let state = source.state("everything", |_| true).await;
    assert_eq!(state.pods.len(), 9);
    assert_eq!(source.recorder.pods().len(), 1, "never less");
    let pages = bed
        .server
        .seen()
        .iter()
        .filter(|seen| seen.query.contains_key("continue"))
        .count();
    assert!(pages >= 2 + 4, "{pages} pages");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn changes_arrive_and_what_does_not_matter_makes_no_state() {
    let bed = Bed::new();
    let source = bed.following(quick()).await;
    bed.server.apply(pod("a", "p2", "10.0.0.12"));
    source.state("the new pod", has_pod("a/p2")).await;
    let mut relabelled = pod("a", "p2", "10.0.0.12");
    relabelled["metadata"]["labels"] = json!({"app": "other"});
    bed.server.apply(relabelled);
    source
        .state("the new label", |cluster| {
            cluster.pods.values().any(|pod| pod.labels["app"] == "other")
        })
        .await;
    bed.server.delete(PODS, "a", "p1").unwrap();
    source
        .state("no old pod", |cluster| pods_of(cluster) == ["a/p2"])
        .await;
    bed.server.delete(NETWORK_POLICIES, "a", "deny").unwrap();
    source
        .state("no policy", |cluster| cluster.policies.is_empty())
        .await;

    let states = source.health().states;
    let events = source.health().events;
    let mut heartbeat = node("n1");
    heartbeat["status"]["conditions"] = json!([{"type": "Ready", "status": "True"}]);
    bed.server.apply(heartbeat);
    source
        .health_where("the heartbeat", |health| health.events > events)
        .await;
    a_moment().await;
    assert_eq!(source.health().states, states, "a heartbeat changes nothing");
    assert_eq!(source.health().errors, 0, "{:?}", source.health());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_state_says_which_versions_of_the_objects_it_reflects() {
    let bed = Bed::new();
    let source = bed.following(quick()).await;
    let versions = || source.feed.states.borrow().as_ref().unwrap().versions;
    let listed = versions();
    let list = listed.pods.unwrap();
    assert_eq!(
        [listed.namespaces, listed.nodes, listed.policies],
        [Some(list); 3]
    );
    // Of an event that matters, and of one before it that does not: neither is missing.
    bed.server.apply(node("n1"));
    source
        .health_where("the node", |health| health.watches[1].version > Some(list))
        .await;
    let heartbeat = bed.server.object(NODES, "", "n1").unwrap()["metadata"]["resourceVersion"].clone();
    let pod = bed.server.apply(pod("a", "p2", "10.0.0.12"));
    source.state("the new pod", has_pod("a/p2")).await;
    let now = versions();
    assert_eq!((now.pods, now.policies), (Some(pod), Some(list)));
    assert_eq!(
        now.nodes.map(|version| json!(version.to_string())),
        Some(heartbeat)
    );
    let gone = bed.server.delete(PODS, "a", "p2").unwrap();
    source
        .state("the old pods", |state| !has_pod("a/p2")(state))
        .await;
    assert_eq!(versions().pods, Some(gone));
    // Data that went back: a list's version counts, though it is lower.
    let backup = bed.server.backup();
    let newer = bed.server.apply(policy("a", "newer"));
    source
        .state("two policies", |state| state.policies.len() == 2)
        .await;
    assert_eq!(versions().policies, Some(newer));
    bed.server.set_away(true);
    bed.server.restore(&backup);
    bed.server.set_away(false);
    source
        .state("one policy", |state| state.policies.len() == 1)
        .await;
    assert_eq!(versions().policies, Some(gone));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_state_says_of_which_cluster_it_is() {
    let kube_system = |uid: &str| {
        let mut it = namespace("kube-system");
        it["metadata"]["uid"] = json!(uid);
        it
    };
    let bed = Bed::new();
    let source = bed.following(quick()).await;
    let uid = || {
        let state = source.feed.states.borrow().clone();
        state.unwrap().cluster_uid.clone().map(String::from)
    };
    let until_it_is = async |wanted: &str| eventually(wanted, || uid().as_deref() == Some(wanted)).await;
    assert_eq!(uid(), None, "a cluster without kube-system");
    bed.server.apply(kube_system("one"));
    until_it_is("one").await;
    // Rebuilt with the same objects: nothing else tells it.
    bed.server.set_away(true);
    bed.server.delete(NAMESPACES, "", "kube-system").unwrap();
    bed.server.apply(kube_system("two"));
    bed.server.set_away(false);
    until_it_is("two").await;
    // A name of another namespace is no identity.
    let mut other = namespace("other");
    other["metadata"]["uid"] = json!("three");
    bed.server.apply(other);
    source
        .state("the namespace", |state| state.namespaces.contains_key("other"))
        .await;
    assert_eq!(uid().as_deref(), Some("two"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn semantics_55_a_gap_leads_to_a_new_list_and_never_to_a_partial_state() {
    for by_status in [false, true] {
        let bed = Bed::new();
        for n in 2..=5 {
            bed.server
                .apply(pod("a", &format!("p{n}"), &format!("10.0.0.1{n}")));
        }
        let source = bed.start(Timing { page: 2, ..quick() }).await;
        let before = pods_of(&source.state("the first", |_| true).await);
        source.connected().await;
        // While there is no watch, pods come and go, and the server forgets how.
        bed.server.faults(PODS, |faults| {
            faults.hold_events = true;
            faults.gone_by_status = by_status;
        });
        for n in 1..=4 {
            bed.server.delete(PODS, "a", &format!("p{n}")).unwrap();
        }
        for n in 6..=8 {
            bed.server
                .apply(pod("a", &format!("p{n}"), &format!("10.0.0.1{n}")));
        }
        bed.server.forget();
        bed.server.cut(PODS);
        bed.server.faults(PODS, |faults| faults.hold_events = false);
        let after = pods_of(&source.state("the new pods", has_pod("a/p8")).await);
        assert_eq!(after, ["a/p5", "a/p6", "a/p7", "a/p8"]);
        assert_eq!(
            source.recorder.pods(),
            BTreeSet::from([before, after]),
            "nothing in between"
        );
        assert!(source.health().relists >= 1);
        // And it goes on from there.
        bed.server.apply(pod("a", "p9", "10.0.0.19"));
        source.state("the next event", has_pod("a/p9")).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_that_broke_lists_anew_and_one_closed_in_its_time_goes_on() {
    let bed = Bed::new();
    let source = bed.following(quick()).await;
    for round in 2..6 {
        bed.server.faults(PODS, |faults| faults.hold_events = true);
        bed.server
            .apply(pod("a", &format!("p{round}"), &format!("10.0.0.1{round}")));
        bed.server.cut(PODS);
        bed.server.faults(PODS, |faults| faults.hold_events = false);
        source
            .state("the pod of this round", has_pod(&format!("a/p{round}")))
            .await;
        // What is cut next is a watch.
        source.connected().await;
    }
    let relists = |source: &Running| source.health().relists;
    assert!(relists(&source) >= 4, "{:#?}", source.health());
    // Closed in order, but long before its time: the server is shutting down.
    let before = relists(&source);
    bed.server
        .faults(NODES, |faults| faults.close_watches_after = Some(Duration::ZERO));
    bed.server.apply(node("n1"));
    source
        .health_where("a new list", |health| health.relists > before)
        .await;

    let bed = Bed::new();
    let source = bed
        .start(Timing {
            watch_seconds: 1,
            ..quick()
        })
        .await;
    source.state("the first", |_| true).await;
    let watches = || bed.server.seen().iter().filter(|seen| seen.is_watch()).count();
    eventually("twelve watches", || watches() >= 4 * 3).await;
    assert_eq!(relists(&source), 0, "no list was needed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn errors_of_the_server_are_waited_out() {
    let bed = Bed::new();
    bed.server
        .faults(PODS, |faults| faults.fail_next = vec![500, 429, 503, 500]);
    bed.server.faults(NODES, |faults| faults.fail_next = vec![429]);
    let source = bed.start(quick()).await;
    source.state("everything", |_| true).await;
    let health = source.health();
    assert!(health.errors >= 5, "{health:#?}");
    assert!(
        health.watches[2].last_error.as_ref().unwrap().contains("pods"),
        "{health:#?}"
    );

    source.connected().await;
    bed.server
        .faults(PODS, |faults| faults.fail_next = vec![500, 500, 429]);
    bed.server.cut(PODS);
    bed.server.apply(pod("a", "p2", "10.0.0.12"));
    source.state("the pod after the errors", has_pod("a/p2")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_event_that_cannot_be_read_loses_nothing() {
    for garbage in [
        r#"{"type":"DELETED","object":{"metadata""#,
        "\u{0}\u{1}nonsense",
        r#"{"type":"EXPLODED","object":{"metadata":{"name":"x","namespace":"a","resourceVersion":"9"}}}"#,
        r#"{"type":"MODIFIED","object":{"metadata":{"name":"x","namespace":"a"}}}"#,
        r#"{"type":"DELETED","object":{"metadata":{"namespace":"a","resourceVersion":"9"}}}"#,
        r#"{"type":"ADDED","object":null}"#,
        r#"{"type":"ERROR","object":"what"}"#,
        r#"{"type":"BOOKMARK","object":{"metadata":{"resourceVersion":""}}}"#,
    ] {
        let bed = Bed::new();
        bed.server.apply(pod("a", "p2", "10.0.0.12"));
        let source = bed.following(quick()).await;
        // The deletion happens, but what arrives in its place is garbage.
        bed.server.faults(PODS, |faults| faults.lose_events = true);
        bed.server.delete(PODS, "a", "p1").unwrap();
        a_moment().await;
        bed.server.faults(PODS, |faults| faults.lose_events = false);
        assert_eq!(pods_of(&source.latest().unwrap()).len(), 2, "the event is lost");
        bed.server.inject(PODS, garbage);
        source
            .state("without the deleted pod", |cluster| pods_of(cluster) == ["a/p2"])
            .await;
        let health = source
            .health_where("listed again", |health| health.relists >= 1)
            .await;
        assert!(health.watches[2].errors >= 1, "{garbage}: {health:#?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_error_event_does_not_end_the_watch_for_good() {
    let bed = Bed::new();
    let source = bed.following(quick()).await;
    bed.server.inject(
        PODS,
        r#"{"type":"ERROR","object":{"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","message":"etcd is tired","reason":"InternalError","code":500}}"#,
    );
    source.health_where("an error", |health| health.errors >= 1).await;
    bed.server.apply(pod("a", "p2", "10.0.0.12"));
    source.state("the next pod", has_pod("a/p2")).await;
    assert!(
        source.health().watches[2]
            .last_error
            .as_ref()
            .unwrap()
            .contains("etcd is tired")
    );
    assert!(
        source.health().relists >= 1,
        "what the error took away is not known"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_list_that_takes_too_long_is_asked_for_again() {
    let bed = Bed::new();
    bed.server
        .faults(NODES, |faults| faults.list_delay = Duration::from_secs(3));
    let source = bed
        .start(Timing {
            list_timeout: Duration::from_millis(100),
            ..quick()
        })
        .await;
    let health = source.health_where("an error", |health| health.errors >= 2).await;
    assert!(
        health
            .last_error
            .as_ref()
            .unwrap()
            .contains("list nodes: no answer"),
        "{health:#?}"
    );
    assert!(source.latest().is_none());
    bed.server
        .faults(NODES, |faults| faults.list_delay = Duration::ZERO);
    source.state("everything", |_| true).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bookmarks_keep_the_version_young() {
    let bed = Bed::new();
    // The server ends watches after a second.
    let source = bed
        .following(Timing {
            watch_seconds: 1,
            ..quick()
        })
        .await;
    for round in 0..3 {
        // Time passes on the server, but not for nodes: only bookmarks say so.
        bed.server.apply(pod("a", "busy", &format!("10.0.0.2{round}")));
        // A watch that is just being begun again has none.
        let mut version = 0;
        let until = Instant::now() + PATIENCE;
        while !source
            .health()
            .watches
            .iter()
            .all(|watch| watch.version.is_some_and(|seen| seen >= version) && version != 0)
        {
            assert!(Instant::now() < until, "{:#?}", source.health());
            for resource in KINDS {
                version = bed.server.bookmark(resource);
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        bed.server.forget();
        let watches = || {
            bed.server
                .seen()
                .iter()
                .filter(|it| it.is_watch() && it.path.ends_with("nodes"))
                .count()
        };
        let before = watches();
        eventually("a new watch", || watches() > before).await;
    }
    assert_eq!(source.health().relists, 0, "{:#?}", source.health());
    assert_eq!(source.health().watches[1].events, 0, "bookmarks are no events");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_the_server_is_away_the_last_state_stands_and_becomes_stale() {
    let bed = Bed::new();
    let source = bed
        .following(Timing {
            stale_after: Duration::from_millis(200),
            ..quick()
        })
        .await;
    let first = source.latest().unwrap();
    assert!(!source.health().stale);
    bed.server.set_away(true);
    let health = source.health_where("stale", |health| health.stale).await;
    assert!(health.synced, "what is known is still known");
    assert!(health.watches.iter().all(|watch| !watch.connected));
    assert_eq!(source.latest().unwrap(), first);
    bed.server.apply(pod("a", "p2", "10.0.0.12"));
    bed.server.delete(PODS, "a", "p1").unwrap();
    bed.server.set_away(false);
    source
        .state("what happened meanwhile", |cluster| pods_of(cluster) == ["a/p2"])
        .await;
    source.connected().await;
    let health = source.health();
    assert!(!health.stale && health.stale_seconds.is_none(), "{health:#?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_away_at_the_start_is_waited_for() {
    let bed = Bed::new();
    bed.server.set_away(true);
    let source = bed.start(quick()).await;
    source.health_where("errors", |health| health.errors >= 4).await;
    assert!(source.latest().is_none());
    bed.server.set_away(false);
    source.state("everything", |_| true).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_forbidden_is_named() {
    let bed = Bed::new();
    bed.server
        .faults(NETWORK_POLICIES, |faults| faults.fail_always = Some(403));
    let source = bed.start(quick()).await;
    let health = source
        .health_where("an error", |health| health.watches[3].errors > 0)
        .await;
    let message = health.watches[3].last_error.clone().unwrap();
    assert!(message.contains("forbidden"), "{message}");
    // A server that starts refuses everybody for a moment.
    assert!(
        health.watches[3].errors > 1 || !message.contains("ClusterRole"),
        "{message}"
    );
    let health = source
        .health_where("a second error", |health| health.watches[3].errors > 1)
        .await;
    let message = health.watches[3].last_error.clone().unwrap();
    assert!(
        message.contains("list networkpolicies.networking.k8s.io: forbidden")
            && message.contains("ClusterRole"),
        "{message}"
    );
    assert!(source.latest().is_none());
    bed.server
        .faults(NETWORK_POLICIES, |faults| faults.fail_always = None);
    source.state("everything", |_| true).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_token_of_the_kubeconfig_is_sent_and_a_wrong_one_is_named() {
    let bed = Bed::new();
    bed.server.require_token("another");
    let source = bed.start(quick()).await;
    let health = source.health_where("an error", |health| health.errors > 0).await;
    assert!(
        health
            .last_error
            .unwrap()
            .contains("does not accept the credentials")
    );
    bed.server.require_token("secret");
    source.state("everything", |_| true).await;
    assert!(
        bed.server
            .seen()
            .iter()
            .all(|seen| seen.token.as_deref() == Some("secret"))
    );
}

#[tokio::test]
async fn a_kubeconfig_that_is_no_use_is_refused_with_its_reason() {
    let bed = Bed::new();
    let refused = |file: PathBuf, context: Option<&str>| {
        let access = Access::Kubeconfig {
            file,
            context: context.map(str::to_owned),
        };
        async move {
            match start(&access, Settings::default(), quick(), None).await {
                Err(error @ KubeError::Kubeconfig { .. }) => error.to_string(),
                other => panic!("{other:?}"),
            }
        }
    };
    let missing = refused(bed.kubeconfig.with_file_name("absent"), None).await;
    assert!(
        missing.contains("absent") && missing.contains("No such file"),
        "{missing}"
    );
    let context = refused(bed.kubeconfig.clone(), Some("elsewhere")).await;
    assert!(context.contains("context \"elsewhere\""), "{context}");
    let garbage = bed.kubeconfig.with_file_name("garbage");
    std::fs::write(&garbage, "clusters: [{name: x, cluster: 5}]\n").unwrap();
    let garbage = refused(garbage, None).await;
    assert!(garbage.contains("garbage"), "{garbage}");
    let in_cluster = start(&Access::InCluster, Settings::default(), quick(), None).await;
    assert!(
        matches!(in_cluster, Err(KubeError::InCluster(_))),
        "{in_cluster:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn semantics_54_policies_hold_while_their_namespace_ends_in_every_order_of_the_watches() {
    let orders: Vec<[Resource; 4]> = permutations();
    assert_eq!(orders.len(), 24);
    let mut finals = BTreeSet::new();
    for order in orders {
        let bed = Bed::new();
        bed.server.apply(namespace("b"));
        let source = bed.following(quick()).await;
        for resource in KINDS {
            bed.server.faults(resource, |faults| faults.hold_events = true);
        }
        // As the namespace controller does it: policies first, pods take their time.
        bed.server.terminate_namespace("a");
        bed.server.delete(NETWORK_POLICIES, "a", "deny").unwrap();
        bed.server.apply(node("n2"));
        for resource in order {
            let events = source.health().events;
            bed.server.faults(resource, |faults| faults.hold_events = false);
            if resource != PODS {
                source
                    .health_where("the events", |health| health.events > events)
                    .await;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        a_moment().await;
        let held = source.latest().unwrap();
        assert_eq!(held.policies.len(), 1, "the pod is still there: {order:?}");
        assert_eq!(source.health().held_policies, 1);
        assert!(
            source
                .recorder
                .states()
                .iter()
                .all(|state| state.policies.len() == 1 || state.pods.is_empty()),
            "the pod was never without it: {order:?}"
        );
        for resource in KINDS {
            bed.server.faults(resource, |faults| faults.hold_events = true);
        }
        bed.server.delete(PODS, "a", "p1").unwrap();
        bed.server.delete(NAMESPACES, "", "a").unwrap();
        for resource in order {
            bed.server.faults(resource, |faults| faults.hold_events = false);
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let state = source
            .state("no policy", |cluster| cluster.policies.is_empty())
            .await;
        assert_eq!(source.health().held_policies, 0);
        finals.insert((format!("{state:?}"), snapshot_hash(&state)));
    }
    assert_eq!(finals.len(), 1, "{finals:#?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn semantics_54_policies_deleted_with_their_namespace_during_a_restart_hold() {
    let bed = Bed::new();
    bed.server.apply(namespace("b"));
    bed.server.apply(policy("b", "deny"));
    let kept = bed.kubeconfig.with_file_name("policies.json");
    let begin = || bed.start_keeping(quick(), Some(kept.clone()));
    let source = begin().await;
    source
        .state("the first", |cluster| cluster.policies.len() == 2)
        .await;
    eventually("written", || kept.exists()).await;
    drop(source);
    // One namespace ends, in the other somebody deletes the policy.
    bed.server.terminate_namespace("a");
    bed.server.delete(NETWORK_POLICIES, "a", "deny").unwrap();
    bed.server.delete(NETWORK_POLICIES, "b", "deny").unwrap();
    let source = begin().await;
    source
        .state("the policy of the ending namespace alone", |cluster| {
            cluster.policies.keys().map(ToString::to_string).eq(["a/deny"])
        })
        .await;
    assert!(
        source
            .recorder
            .states()
            .iter()
            .all(|state| state.policies.keys().any(|key| key.namespace == "a")),
        "never without it"
    );
    drop(source);
    // A second restart, and a damaged file.
    let source = begin().await;
    source
        .state("still held", |cluster| cluster.policies.len() == 1)
        .await;
    bed.server.delete(PODS, "a", "p1").unwrap();
    bed.server.delete(NAMESPACES, "", "a").unwrap();
    source
        .state("nothing", |cluster| cluster.policies.is_empty())
        .await;
    drop(source);
    std::fs::write(&kept, "[{").unwrap();
    begin()
        .await
        .state("the server's", |cluster| cluster.policies.is_empty())
        .await;
}

fn snapshot_hash(cluster: &Cluster) -> [u8; 32] {
    compile(cluster, Generation(1), &EpochKey::OFFLINE).unwrap().hash
}

fn permutations() -> Vec<[Resource; 4]> {
    let mut all = Vec::new();
    for a in KINDS {
        for b in KINDS {
            for c in KINDS {
                for d in KINDS {
                    if BTreeSet::from([a, b, c, d]).len() == 4 {
                        all.push([a, b, c, d]);
                    }
                }
            }
        }
    }
    all
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn semantics_14_and_51_every_order_of_events_gives_the_same_state() {
    let mut finals = BTreeSet::new();
    for order in permutations() {
        let bed = Bed::new();
        let source = bed.following(quick()).await;
        for resource in KINDS {
            bed.server.faults(resource, |faults| faults.hold_events = true);
        }
        let mut relabelled = namespace("a");
        relabelled["metadata"]["labels"] = json!({"team": "red"});
        bed.server.apply(relabelled);
        bed.server.apply(namespace("b"));
        bed.server.apply(pod("b", "q1", "10.0.0.31"));
        bed.server.apply(policy("b", "allow"));
        let mut terminating = pod("a", "p1", "10.0.0.11");
        terminating["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
        bed.server.apply(terminating);
        bed.server.delete(NODES, "", "n1").unwrap();
        bed.server.apply(node("n2"));
        bed.server.delete(NETWORK_POLICIES, "a", "deny").unwrap();
        bed.server.apply(policy("a", "deny-again"));
        for resource in order {
            bed.server.faults(resource, |faults| faults.hold_events = false);
            tokio::time::sleep(Duration::from_millis(8)).await;
        }
        let state = source
            .state("all of it", |cluster| {
                cluster.namespaces.len() == 2
                    && cluster.namespaces["a"].labels.contains_key("team")
                    && pods_of(cluster) == ["a/p1", "b/q1"]
                    && cluster.pods.values().any(|pod| pod.terminating)
                    && cluster.policies.len() == 2
                    && cluster.policies.keys().any(|key| key.name == "deny-again")
                    && !cluster.policies.keys().any(|key| key.name == "deny")
                    && cluster.nodes.keys().eq(["n2"])
            })
            .await;
        finals.insert((format!("{state:?}"), snapshot_hash(&state)));
    }
    assert_eq!(finals.len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn policy_kinds_that_are_not_evaluated_are_named() {
    let bed = Bed::new();
    // Whatever is in this group is policy.
    let stranger = Resource {
        group: "policy.networking.k8s.io",
        version: "v1beta1",
        plural: "namespacenetworkpolicies",
        kind: "NamespaceNetworkPolicy",
        namespaced: false,
    };
    let cilium = Resource {
        group: "cilium.io",
        version: "v2",
        plural: "ciliumclusterwidenetworkpolicies",
        kind: "CiliumClusterwideNetworkPolicy",
        namespaced: false,
    };
    bed.server.serve(stranger);
    bed.server.serve(cilium);
    let object = |resource: Resource| {
        json!({
            "apiVersion": format!("{}/{}", resource.group, resource.version), "kind": resource.kind,
            "metadata": {"name": "x"}, "spec": {},
        })
    };
    bed.server.apply(object(stranger));
    let source = bed
        .start(Timing {
            probe: Duration::from_millis(30),
            ..quick()
        })
        .await;
    let state = source.state("the first", |_| true).await;
    let first = BTreeSet::from(["NamespaceNetworkPolicy.policy.networking.k8s.io".to_owned()]);
    assert_eq!(state.unevaluated_kinds, first, "known from the first state on");
    bed.server.apply(object(cilium));
    source
        .state("both", |cluster| cluster.unevaluated_kinds.len() == 2)
        .await;
    // What cannot be looked at any more is not gone.
    bed.server
        .faults(stranger, |faults| faults.fail_always = Some(403));
    let errors = source.health().errors;
    source
        .health_where("an error", |health| health.errors > errors)
        .await;
    assert_eq!(source.latest().unwrap().unevaluated_kinds.len(), 2);
    bed.server.faults(stranger, |faults| faults.fail_always = None);
    bed.server.delete(stranger, "", "x").unwrap();
    bed.server.delete(cilium, "", "x").unwrap();
    source
        .state("none", |cluster| cluster.unevaluated_kinds.is_empty())
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_event_in_a_quiet_cluster_waits_for_nothing() {
    let bed = Bed::new();
    let timing = Timing {
        spacing: Duration::from_millis(300),
        ..quick()
    };
    let source = bed.following(timing.clone()).await;
    let mut waited = Vec::new();
    for n in 0..2 {
        tokio::time::sleep(timing.spacing * 2).await;
        // The second of the two comes while the first is young.
        for name in [format!("quiet{n}"), format!("busy{n}")] {
            let applied = Instant::now();
            bed.server.apply(pod("a", &name, &format!("10.0.{n}.1")));
            let key = format!("a/{name}");
            source
                .state("the pod", |cluster| pods_of(cluster).contains(&key))
                .await;
            waited.push(applied.elapsed());
        }
    }
    let (quiet, busy) = (waited[0].min(waited[2]), waited[1].max(waited[3]));
    assert!(quiet < timing.spacing / 2, "{waited:?}: the leading event waited");
    assert!(
        busy > timing.spacing / 2 && busy < timing.spacing * 2,
        "{waited:?}: the next one waits, and not for long"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_storm_of_events_is_handed_on_in_time_and_in_few_states() {
    let bed = Bed::new();
    let source = bed.following(quick()).await;
    let before = source.health().states;
    let began = Instant::now();
    // An event about every millisecond for 400 ms, which is more often than states are handed on.
    for n in 0..400 {
        bed.server
            .apply(pod("a", "storm", &format!("10.0.{}.{}", n / 200, n % 200 + 1)));
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let took = began.elapsed();
    source
        .state("the last", |cluster| {
            cluster
                .pods
                .values()
                .any(|pod| pod.addresses == ["10.0.1.200".parse::<std::net::IpAddr>().unwrap()])
        })
        .await;
    let states = source.health().states - before;
    assert!(states >= 5, "{states} states in {took:?}: starved");
    // `took` ends before the last state is there.
    let most = took.as_millis() / quick().spacing.as_millis() + 10;
    assert!(
        u128::from(states) <= most,
        "{states} states in {took:?}: not gathered"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn objects_that_are_wrong_are_reported_and_harm_no_others() {
    let bed = Bed::new();
    let source = bed.following(quick()).await;
    let mut broken = policy("a", "deny");
    broken["spec"]["ingress"][0]["from"][0] = json!({"ipBlock": {"cidr": "10.0.0.0/99"}});
    bed.server.apply(broken);
    bed.server.apply(pod("a", "odd", "not an address"));
    bed.server.apply(pod("a", "fine", "10.0.0.40"));
    // The watches are not ordered among each other.
    let isolated =
        |cluster: &Cluster| cluster.policies.values().next().unwrap().ingress.as_deref() == Some(&[][..]);
    let state = source
        .state("the fine pod, and the policy isolated", |cluster| {
            has_pod("a/fine")(cluster) && isolated(cluster)
        })
        .await;
    assert!(!has_pod("a/odd")(&state));
    let problems = source.feed.states.borrow().as_ref().unwrap().problems.clone();
    let objects: BTreeSet<&str> = problems.iter().map(|problem| problem.object.as_str()).collect();
    assert_eq!(objects, BTreeSet::from(["a/deny", "a/odd"]), "{problems:#?}");
    assert!(
        problems
            .iter()
            .any(|it| it.path.contains("spec.ingress[0].from[0].ipBlock.cidr")),
        "{problems:#?}"
    );
}
