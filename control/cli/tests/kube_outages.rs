//! Servers that hang, lose their history or refuse part of what is asked of them: never blind and never silent.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs)] // a failed step is a failed test

mod kube_bed;

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use kube_bed::{Bed, PATIENCE, Running, a_moment, has_pod, namespace, pod, policy, quick};
use ringwall_messages::SourceStatus;
use ringwall_policy::Cluster;
use ringwall_source::kube::Timing;
use ringwall_testbed::api_server::{NAMESPACES, NETWORK_POLICIES, NODES, PODS};
use serde_json::json;

const NEVER: Duration = Duration::from_secs(3600);

/// Nothing but the watches themselves finds anything out.
fn watches_alone() -> Timing {
    Timing {
        pulse: NEVER,
        full_list: NEVER,
        ..quick()
    }
}

fn policies(cluster: &Cluster) -> Vec<String> {
    cluster.policies.keys().map(ToString::to_string).collect()
}

fn disconnected(health: &SourceStatus) -> bool {
    health.watches.iter().all(|watch| !watch.connected)
}

/// How the server comes to have older data.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Restore {
    /// It is started anew, and its versions are behind.
    Behind,
    /// It is started anew, and its versions have passed the old ones before anybody watches again.
    Passed,
    /// Behind, and the watches stay as they are.
    BehindUnbroken,
    /// Passed, and the watches stay as they are.
    PassedUnbroken,
}

/// A source that has seen what the server loses then: `a/deny` deleted, `a/late` made. Answers it after that.
async fn restored(how: Restore, timing: Timing) -> (Bed, Running) {
    let bed = Bed::new();
    let source = bed.following(timing).await;
    let backup = bed.server.backup();
    bed.server.apply(policy("a", "late"));
    bed.server.delete(NETWORK_POLICIES, "a", "deny").unwrap();
    for _ in 0..20 {
        bed.server.apply(pod("a", "busy", "10.0.0.99"));
    }
    bed.server.delete(PODS, "a", "busy").unwrap();
    source
        .state("what is to be lost", |cluster| {
            policies(cluster) == ["a/late"] && cluster.pods.len() == 1
        })
        .await;
    assert_eq!(source.alarms(), Vec::<String>::new());
    let breaks = matches!(how, Restore::Behind | Restore::Passed);
    if breaks {
        bed.server.set_away(true);
        source.health_where("disconnected", disconnected).await;
    }
    bed.server.restore(&backup);
    if matches!(how, Restore::Passed | Restore::PassedUnbroken) {
        for _ in 0..60 {
            bed.server.apply(pod("a", "busy", "10.0.0.99"));
        }
    }
    bed.server.apply(policy("a", "new"));
    if breaks {
        bed.server.set_away(false);
    }
    (bed, source)
}

async fn follows_again(bed: &Bed, source: &Running) {
    source
        .state("what the server has", |cluster| {
            policies(cluster) == ["a/deny", "a/new"]
        })
        .await;
    source.connected().await;
    bed.server.apply(policy("a", "newer"));
    source
        .state("the next policy", |cluster| {
            policies(cluster) == ["a/deny", "a/new", "a/newer"]
        })
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_older_snapshot_is_noticed_after_the_watches_broke() {
    for how in [Restore::Behind, Restore::Passed] {
        let (bed, source) = restored(how, watches_alone()).await;
        follows_again(&bed, &source).await;
        if how == Restore::Behind {
            source.alarm("went back").await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_older_snapshot_under_living_watches_is_noticed_by_its_versions() {
    let timing = Timing {
        pulse: Duration::from_millis(50),
        ..watches_alone()
    };
    let (bed, source) = restored(Restore::BehindUnbroken, timing).await;
    follows_again(&bed, &source).await;
    let alarm = source.alarm("went back").await;
    assert!(alarm.contains("older snapshot"), "{alarm}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_older_snapshot_whose_versions_have_passed_is_noticed_by_a_full_list() {
    let timing = Timing {
        full_list: Duration::ZERO,
        watch_seconds: 1,
        ..watches_alone()
    };
    let (bed, source) = restored(Restore::PassedUnbroken, timing).await;
    follows_again(&bed, &source).await;
    let alarm = source.alarm("differs from the watched state").await;
    assert!(alarm.contains("a/"), "{alarm}");
    assert!(source.health().differences >= 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_list_under_churn_finds_no_difference() {
    let bed = Bed::new();
    bed.server.apply(namespace("ending"));
    bed.server.apply(pod("ending", "last", "10.0.0.50"));
    bed.server.apply(policy("ending", "held"));
    // Cannot be decoded.
    bed.server.apply(pod("a", "odd", "not an address"));
    let source = bed
        .following(Timing {
            full_list: Duration::ZERO,
            watch_seconds: 1,
            page: 3,
            ..watches_alone()
        })
        .await;
    bed.server.terminate_namespace("ending");
    bed.server.delete(NETWORK_POLICIES, "ending", "held").unwrap();
    let until = Instant::now() + PATIENCE;
    let mut n = 0;
    while source.health().full_lists < 8 {
        assert!(Instant::now() < until, "{:#?}", source.health());
        n += 1;
        let name = format!("churn{}", n % 7);
        if n % 3 == 0 {
            bed.server.delete(PODS, "a", &name);
        } else {
            bed.server
                .apply(pod("a", &name, &format!("10.0.1.{}", n % 250 + 1)));
        }
        bed.server.apply(policy("a", &format!("churn{}", n % 5)));
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    let health = source.health();
    assert_eq!(
        (health.differences, health.relists),
        (0, 0),
        "{:?}",
        source.alarms()
    );
    assert_eq!(health.held_policies, 1, "one that is held is no difference");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_hangs_is_noticed_and_caught_up_with() {
    let bed = Bed::new();
    let source = bed
        .following(Timing {
            pulse: Duration::from_millis(50),
            pulse_patience: Duration::from_millis(200),
            ..watches_alone()
        })
        .await;
    let first = source.latest().unwrap();
    bed.server.set_hung(true);
    let health = source.health_where("disconnected", disconnected).await;
    assert!(health.stale_seconds.is_some() && health.synced, "{health:#?}");
    assert!(health.last_error.unwrap().contains("no answer within"));
    assert!(health.last_error_seconds.is_some());
    assert_eq!(source.latest().unwrap(), first, "the last state stands");
    bed.server.apply(policy("a", "new"));
    bed.server.set_hung(false);
    source
        .state("the policy", |cluster| policies(cluster) == ["a/deny", "a/new"])
        .await;
    source.connected().await;
    assert!(source.health().stale_seconds.is_none());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_whose_bookmarks_stop_coming_is_dead() {
    let bed = Bed::new();
    let source = bed
        .following(Timing {
            bookmark_patience: Duration::from_millis(100),
            ..watches_alone()
        })
        .await;
    a_moment().await;
    a_moment().await;
    assert_eq!(
        source.health().errors,
        0,
        "no bookmark has come: silence says nothing"
    );
    bed.server.bookmark(NODES);
    let health = source
        .health_where("listed again", |health| health.watches[1].relists >= 1)
        .await;
    assert!(
        health.watches[1].last_error.as_ref().unwrap().contains("dead"),
        "{health:#?}"
    );
    assert_eq!(health.watches[2].errors, 0, "only the one");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_back_is_noticed_by_everybody_at_once() {
    let bed = Bed::new();
    let source = bed
        .following(Timing {
            pulse: Duration::from_millis(50),
            backoff_first: NEVER,
            backoff_most: NEVER,
            ..quick()
        })
        .await;
    bed.server.set_away(true);
    // Each of the watches tries again in half an hour or later; the pulse has noticed, too.
    source
        .health_where("away", |health| disconnected(health) && health.errors > 4)
        .await;
    bed.server.apply(policy("a", "new"));
    bed.server.set_away(false);
    source
        .state("the policy", |cluster| policies(cluster) == ["a/deny", "a/new"])
        .await;
    source.connected().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_watches_of_many_gateways_do_not_end_in_one_moment() {
    let bed = Bed::new();
    for _ in 0..4 {
        drop(bed.following(quick()).await);
    }
    let ends: Vec<u64> = bed
        .server
        .seen()
        .iter()
        .filter(|seen| seen.is_watch())
        .map(|seen| seen.query["timeoutSeconds"].parse().unwrap())
        .collect();
    assert!(
        ends.len() >= 16 && ends.iter().all(|end| (217..=290).contains(end)),
        "{ends:?}"
    );
    let (first, last) = (ends.iter().min().unwrap(), ends.iter().max().unwrap());
    assert!(last - first >= 20, "{ends:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_busy_server_is_asked_again_when_it_says() {
    let bed = Bed::new();
    bed.server.faults(PODS, |faults| {
        faults.fail_next = vec![429];
        faults.retry_after = Some(2);
    });
    let source = bed.start(quick()).await;
    let health = source
        .health_where("busy", |health| health.watches[2].errors == 1)
        .await;
    let refused = Instant::now();
    let error = health.watches[2].last_error.clone().unwrap();
    assert!(error.contains("after 2 s") && error.contains("429"), "{error}");
    source.state("everything", |_| true).await;
    assert!(
        refused.elapsed() > Duration::from_millis(1500),
        "{:?}",
        refused.elapsed()
    );
    assert_eq!(source.health().watches[2].errors, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn policy_is_in_force_where_discovery_is_refused_and_verdicts_say_so() {
    for status in [403, 500] {
        let bed = Bed::new();
        bed.server.refuse_discovery(Some(status));
        let source = bed
            .start(Timing {
                probe: Duration::from_millis(100),
                ..quick()
            })
            .await;
        let state = source.state("the first", |_| true).await;
        assert_eq!(policies(&state), ["a/deny"]);
        assert_eq!(state.unevaluated_kinds, BTreeSet::from(["unknown".to_owned()]));
        source.alarm("cannot find out whether there are policies").await;
        bed.server.apply(pod("a", "p2", "10.0.0.12"));
        source.state("the next pod", has_pod("a/p2")).await;
        bed.server.refuse_discovery(None);
        source
            .state("everything known", |cluster| cluster.unevaluated_kinds.is_empty())
            .await;
        source.no_alarm().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn credentials_that_stay_refused_are_an_alarm() {
    let bed = Bed::new();
    let source = bed
        .following(Timing {
            refused_alarm: Duration::from_millis(200),
            pulse: Duration::from_millis(50),
            ..quick()
        })
        .await;
    // The watches live on: an API server does not ask again who has one.
    bed.server.require_token("another");
    let refused = Instant::now();
    let alarm = source.alarm("refuses the credentials").await;
    assert!(refused.elapsed() >= Duration::from_millis(200));
    assert!(alarm.contains("the token is not known"), "{alarm}");
    assert!(source.health().watches.iter().all(|watch| watch.connected));
    bed.server.require_token("secret");
    source.no_alarm().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deleted_policy_that_stays_for_want_of_an_answer_is_an_alarm() {
    let bed = Bed::new();
    let source = bed
        .following(Timing {
            hold_alarm: Duration::from_millis(300),
            ..quick()
        })
        .await;
    // The watches live on; the question what became of the namespace is refused.
    bed.server
        .faults(NAMESPACES, |faults| faults.fail_always = Some(403));
    let deleted = Instant::now();
    bed.server.delete(NETWORK_POLICIES, "a", "deny").unwrap();
    source
        .health_where("held", |health| health.held_policies == 1)
        .await;
    let alarm = source.alarm("still in force").await;
    assert!(deleted.elapsed() >= Duration::from_millis(300));
    assert!(!alarm.contains("  "), "{alarm}");
    assert!(
        alarm.contains("a/deny") && alarm.contains("force (1, for"),
        "{alarm}"
    );
    assert_eq!(policies(&source.latest().unwrap()), ["a/deny"]);
    bed.server.faults(NAMESPACES, |faults| faults.fail_always = None);
    source
        .state("no policy", |cluster| cluster.policies.is_empty())
        .await;
    source.no_alarm().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fields_that_a_newer_server_adds_do_no_harm() {
    let bed = Bed::new();
    let source = bed.following(quick()).await;
    let newer = |mut object: serde_json::Value| {
        object["metadata"]["shard"] = json!({"key": "7"});
        object["metadata"]["generation"] = json!("7");
        object["observed"] = json!(["by", "nobody"]);
        object
    };
    bed.server.apply(newer(namespace("b")));
    bed.server.apply(newer(pod("b", "p", "10.0.0.40")));
    bed.server.apply(newer(policy("b", "mine")));
    // A field that ringwall does not know in the spec may change what the policy means.
    let mut stranger = policy("b", "strange");
    stranger["spec"]["unless"] = json!({"moon": "full"});
    bed.server.apply(newer(stranger));
    let state = source
        .state("all of it", |cluster| {
            cluster.policies.len() == 3 && cluster.pods.len() == 2
        })
        .await;
    let named = |name: &str| state.policies.values().find(|it| it.key.name == name).unwrap();
    assert!(named("mine").faults.is_empty(), "{:?}", named("mine").faults);
    assert_eq!(
        named("mine").ingress.as_ref().unwrap().len(),
        1,
        "its rule is there"
    );
    let faults = &named("strange").faults;
    assert_eq!(faults.len(), 1, "{faults:?}");
    assert!(faults[0].path.contains("spec.unless"), "{faults:?}");
    let handed = source.feed.states.borrow().clone().unwrap();
    let objects: BTreeSet<&str> = handed.problems.iter().map(|it| it.object.as_str()).collect();
    assert_eq!(objects, BTreeSet::from(["b/strange"]));
}
