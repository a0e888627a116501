//! Services from an API server: for names and questions, from the first question on, and without a state when they change.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs)] // a failed step is a failed test

mod kube_bed;

use std::sync::Arc;

use kube_bed::{
    Bed, ENDPOINT_SLICES, PATIENCE, Running, SERVICES, SPOKEN_OF, a_moment, incomplete, object, policy,
    quick, slice, watched, watches,
};
use ringwall_policy::{
    ObjectKey,
    services::{Services, TargetPort},
};
use serde_json::json;

fn serving() -> Bed {
    let bed = Bed::new();
    for resource in SPOKEN_OF {
        bed.server.serve(resource);
    }
    let spec = json!({"clusterIP": "10.96.0.7", "selector": {"app": "p1"}, "ports": [{"port": 80, "targetPort": "http"}]});
    bed.server.apply(object(SERVICES, "a", "web", json!({}), spec));
    bed.server.apply(slice("web-1", "web", "10.0.0.11"));
    bed
}

fn web() -> ObjectKey {
    ObjectKey {
        namespace: "a".to_owned(),
        name: "web".to_owned(),
    }
}

/// Waits for Services that are as wanted.
async fn services(source: &Running, wanted: impl Fn(&Services) -> bool) -> Arc<Services> {
    let until = std::time::Instant::now() + PATIENCE;
    loop {
        let now = source.feed.services.get(PATIENCE).await.unwrap();
        if wanted(&now) {
            return now;
        }
        assert!(std::time::Instant::now() < until, "{now:#?}");
        tokio::time::sleep(std::time::Duration::from_millis(2)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn services_are_watched_from_the_first_question_on_and_make_no_state() {
    let bed = serving();
    let source = bed.following(quick()).await;
    let asked = |plural: &str| bed.server.seen().iter().any(|it| it.path.ends_with(plural));
    assert!(
        !asked("services") && !asked("endpointslices"),
        "not asked for yet"
    );
    let states = source.recorder.states().len();
    let first = services(&source, |_| true).await;
    let service = &first.services[&web()];
    assert_eq!(service.ports[0].target, TargetPort::Name("http".to_owned()));
    let endpoint = |services: &Services| {
        services
            .slices_of(&web())
            .next()
            .map(|it| it.endpoints[0].clone())
    };
    let before = endpoint(&first).unwrap();
    assert!(before.ready && before.node.is_none(), "{before:?}");
    for resource in [SERVICES, ENDPOINT_SLICES] {
        watched(&source, resource).await;
    }
    assert!(
        !watches(&source, SPOKEN_OF[0]),
        "service accounts are for policies alone"
    );
    // What a slice says besides addresses is not lost on the way.
    let mut changed = slice("web-1", "web", "10.0.0.12");
    changed["endpoints"][0]["conditions"] = json!({"ready": false, "serving": true, "terminating": true});
    changed["endpoints"][0]["nodeName"] = json!("n1");
    changed["endpoints"][0]["targetRef"] = json!({"kind": "Pod", "name": "p2", "namespace": "a"});
    changed["endpoints"][0]["hints"] = json!({"forZones": [{"name": "z"}]});
    bed.server.apply(changed);
    let now = services(&source, |now| endpoint(now).is_some_and(|it| it.terminating)).await;
    let endpoint = endpoint(&now).unwrap();
    assert_eq!(
        (
            endpoint.node.as_deref(),
            endpoint.for_zones,
            endpoint.pod.map(|it| it.name),
            endpoint.ready
        ),
        (Some("n1"), vec!["z".to_owned()], Some("p2".to_owned()), false)
    );
    let status = json!({"loadBalancer": {"ingress": [{"ip": "198.51.100.7", "ipMode": "VIP"}]}});
    let mut balanced = object(
        SERVICES,
        "a",
        "web",
        json!({}),
        json!({"type": "LoadBalancer", "ports": [{"port": 80}]}),
    );
    balanced["status"] = status;
    bed.server.apply(balanced);
    services(&source, |now| now.services[&web()].ingress.len() == 1).await;
    bed.server.delete(SERVICES, "a", "web").unwrap();
    bed.server.delete(ENDPOINT_SLICES, "a", "web-1").unwrap();
    services(&source, |now| now.services.is_empty() && now.slices.is_empty()).await;
    a_moment().await;
    assert_eq!(
        source.recorder.states().len(),
        states,
        "nothing is compiled for them"
    );
    bed.server.apply(policy("a", "next"));
    let state = source
        .state("the next policy", |state| state.policies.len() == 2)
        .await;
    assert_eq!(incomplete(&state), [""; 0]);
    assert_eq!(source.alarms(), [""; 0]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_right_that_is_missing_is_named_and_no_verdict_is_incomplete() {
    let bed = serving();
    bed.server
        .faults(ENDPOINT_SLICES, |faults| faults.fail_always = Some(403));
    let source = bed.following(quick()).await;
    let now = services(&source, |_| true).await;
    assert_eq!(
        now.unread.iter().collect::<Vec<_>>(),
        ["endpointslices.discovery.k8s.io"]
    );
    assert!(now.services.contains_key(&web()) && now.slices.is_empty());
    source
        .alarm("endpointslices.discovery.k8s.io cannot be read: answers about Services")
        .await;
    assert_eq!(
        incomplete(&source.latest().unwrap()),
        [""; 0],
        "no policy speaks of them"
    );
    bed.server
        .faults(ENDPOINT_SLICES, |faults| faults.fail_always = None);
    services(&source, |now| now.unread.is_empty() && now.slices.len() == 1).await;
    source.no_alarm().await;
}
