//! Policies of Calico, and what they speak of, from an API server.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs)] // a failed step is a failed test

mod kube_bed;

use kube_bed::{
    Bed, CALICO, CALICO_POLICIES, ENDPOINT_SLICES, GLOBAL_POLICIES, GLOBAL_SETS, NETWORK_SETS,
    SERVICE_ACCOUNTS, SERVICES, SPOKEN_OF, TIERS, blocks, eventually, global_policy, global_set, has_pod,
    incomplete, looking, object, ordered, pod, policy, slice, stored, watched, watches,
};
use ringwall_policy::{Cluster, ObjectKey, Order};
use ringwall_testbed::api_server::{NETWORK_POLICIES, Resource};
use serde_json::json;

fn serving(resources: &[Resource]) -> Bed {
    let bed = Bed::new();
    for resource in resources.iter().chain(&SPOKEN_OF) {
        bed.server.serve(*resource);
    }
    bed
}

/// Denies what goes to a service of namespace `a`.
fn to_service(service: &str) -> serde_json::Value {
    let destination = json!({"services": {"name": service, "namespace": "a"}});
    let spec = json!({"egress": [{"action": "Deny", "destination": destination}]});
    object(GLOBAL_POLICIES, "", "to", json!({}), spec)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn crds_that_appear_are_read_and_their_policies_go_with_them() {
    let bed = serving(&[]);
    let source = bed.following(looking()).await;
    assert_eq!(source.health().watches.len(), 4);
    for resource in CALICO {
        bed.server.serve(resource);
    }
    bed.server
        .apply(global_policy("p", "Allow", json!({"selector": "role == 'db'"})));
    bed.server.apply(global_set("s", "db", "192.0.2.0/24"));
    bed.server
        .apply(object(TIERS, "", "first", json!({}), json!({"order": 5})));
    let state = source
        .state("the policy, its set and the tier", |state| {
            blocks(state) == ["192.0.2.0/24"] && state.tiers.contains_key("first")
        })
        .await;
    assert_eq!(incomplete(&state), [""; 0]);
    for resource in CALICO {
        watched(&source, resource).await;
    }
    assert!(SPOKEN_OF.iter().all(|resource| !watches(&source, *resource)));
    assert_eq!(source.alarms(), [""; 0]);
    bed.server
        .apply(object(TIERS, "", "first", json!({}), json!({"order": 7})));
    source
        .state("the tier's order", |state| {
            state.tiers["first"].order == Order::of_priority(7)
        })
        .await;
    for (resource, name) in [(GLOBAL_POLICIES, "p"), (GLOBAL_SETS, "s"), (TIERS, "first")] {
        bed.server.delete(resource, "", name).unwrap();
        bed.server.withdraw(resource);
    }
    source
        .state("none", |state| state.tiered.is_empty() && state.tiers.is_empty())
        .await;
    source
        .health_where("watched no more", |health| health.watches.len() == 4 + 7)
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t96_6_of_both_groups_v3_is_read_and_the_stored_form_where_it_is_alone() {
    let (policies, sets) = (stored(GLOBAL_POLICIES), stored(GLOBAL_SETS));
    let bed = serving(&[policies, sets]);
    let as_stored = |mut object: serde_json::Value| {
        let name = object["metadata"]["name"].as_str().unwrap().to_owned();
        let metadata = json!({"name": name, "labels": object["metadata"]["labels"]});
        object["apiVersion"] = json!("crd.projectcalico.org/v1");
        object["metadata"] = json!({
            "name": format!("default.{name}"), "annotations": {"projectcalico.org/metadata": metadata.to_string()},
        });
        object
    };
    let written = global_policy("p", "Allow", json!({"selector": "role == 'db'"}));
    bed.server.apply(as_stored(written.clone()));
    bed.server.apply(as_stored(global_set("s", "db", "192.0.2.0/24")));
    let source = bed.following(looking()).await;
    let first = source.recorder.states()[0].clone();
    assert_eq!(
        (ordered(&first), blocks(&first)),
        (vec!["p".to_owned()], vec!["192.0.2.0/24".to_owned()])
    );
    let rules = |state: &Cluster| -> Vec<_> {
        let policies = state.tiered.values();
        policies.map(|it| (it.id.clone(), it.ingress.clone())).collect()
    };
    // Calico's own API comes up.
    bed.server.serve(GLOBAL_POLICIES);
    bed.server.apply(written);
    bed.server.serve(GLOBAL_SETS);
    bed.server.apply(global_set("s", "db", "192.0.2.0/24"));
    for resource in [GLOBAL_POLICIES, GLOBAL_SETS] {
        watched(&source, resource).await;
    }
    eventually("no watch of the other", || {
        !watches(&source, policies) && !watches(&source, sets)
    })
    .await;
    assert_eq!(rules(&source.latest().unwrap()), rules(&first));
    // And goes down again.
    bed.server.withdraw(GLOBAL_POLICIES);
    bed.server.withdraw(GLOBAL_SETS);
    watched(&source, policies).await;
    watched(&source, sets).await;
    let all = source.recorder.states();
    assert!(
        all.iter().all(|state| ordered(state) == ["p"]),
        "never without it"
    );
    assert_eq!(rules(&source.latest().unwrap()), rules(&first));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kind_that_may_not_be_read_is_named_and_the_rest_goes_on() {
    let bed = serving(&CALICO);
    for refused in [NETWORK_SETS, TIERS] {
        bed.server
            .faults(refused, |faults| faults.fail_always = Some(403));
    }
    // What is staged decides nothing.
    bed.server
        .faults(CALICO[7], |faults| faults.fail_always = Some(403));
    bed.server.apply(global_policy("p", "Deny", json!({})));
    let source = bed.start(looking()).await;
    let state = source.state("the first", |_| true).await;
    assert_eq!(ordered(&state), ["p"]);
    assert_eq!(
        incomplete(&state),
        ["NetworkSet.projectcalico.org", "Tier.projectcalico.org"]
    );
    let alarm = source.alarm("networksets.projectcalico.org cannot be read").await;
    assert!(alarm.contains("every verdict is incomplete"), "{alarm}");
    let alarm = source.alarm("stagednetworkpolicies").await;
    assert!(alarm.contains("stays staged"), "{alarm}");
    bed.server.apply(pod("a", "p2", "10.0.0.12"));
    source.state("the next pod", has_pod("a/p2")).await;
    for refused in [NETWORK_SETS, TIERS, CALICO[7]] {
        bed.server.faults(refused, |faults| faults.fail_always = None);
    }
    source
        .state("complete", |state| incomplete(state).is_empty())
        .await;
    source.no_alarm().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn services_and_accounts_are_watched_while_policies_speak_of_them() {
    let bed = serving(&CALICO);
    bed.server.apply(slice("x", "s", "10.0.0.7"));
    bed.server.apply(slice("y", "other", "10.0.0.8"));
    let source = bed.following(looking()).await;
    let asked = |resource: Resource| {
        let seen = bed.server.seen();
        seen.iter().any(|it| it.path.ends_with(resource.plural))
    };
    assert!(!SPOKEN_OF.into_iter().any(asked));
    bed.server.apply(to_service("s"));
    let state = source.state("the policy", |state| ordered(state) == ["to"]).await;
    assert_eq!(blocks(&state), ["10.0.0.7/32"], "never without its service");
    for resource in [SERVICES, ENDPOINT_SLICES] {
        watched(&source, resource).await;
    }
    assert!(!asked(SERVICE_ACCOUNTS));
    bed.server.apply(slice("x", "s", "10.0.0.9"));
    source
        .state("another endpoint", |state| blocks(state) == ["10.0.0.9/32"])
        .await;
    bed.server.apply(global_policy(
        "to",
        "Allow",
        json!({"selector": "pcsa.team == 'x'"}),
    ));
    let state = source
        .state("accounts", |state| {
            let pod = &state.pods.values().next().unwrap().labels;
            pod.contains_key("serviceaccount:projectcalico.org/name")
        })
        .await;
    assert_eq!(blocks(&state), [""; 0]);
    watched(&source, SERVICE_ACCOUNTS).await;
    eventually("services watched no more", || {
        !watches(&source, SERVICES) && !watches(&source, ENDPOINT_SLICES)
    })
    .await;
    bed.server.apply(object(
        SERVICE_ACCOUNTS,
        "a",
        "default",
        json!({"team": "x"}),
        json!(null),
    ));
    source
        .state("labels of the account", |state| {
            let pod = &state.pods.values().next().unwrap().labels;
            pod.get("serviceaccount:team").is_some_and(|team| team == "x")
        })
        .await;
    bed.server.delete(GLOBAL_POLICIES, "", "to").unwrap();
    source
        .state("plain pods", |state| {
            let pod = &state.pods.values().next().unwrap().labels;
            pod.len() == 1
        })
        .await;
    source
        .health_where("none watched", |health| health.watches.len() == 4 + CALICO.len())
        .await;
    assert_eq!(source.alarms(), [""; 0]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn endpoint_slices_that_may_not_be_read_stop_no_networkpolicy() {
    for status in [403, 404, 500] {
        let bed = serving(&CALICO);
        bed.server
            .faults(ENDPOINT_SLICES, |faults| faults.fail_always = Some(status));
        bed.server.apply(to_service("s"));
        let source = bed.start(looking()).await;
        let state = source.state("the first", |_| true).await;
        assert_eq!(
            incomplete(&state),
            [
                "EndpointSlice.discovery.k8s.io",
                "services of GlobalNetworkPolicy.projectcalico.org"
            ]
        );
        let denies_all = |state: &Cluster| {
            state
                .tiered
                .values()
                .any(|it| it.rules().any(|it| it.peers.is_none()))
        };
        assert!(denies_all(&state), "it fails closed");
        source
            .alarm("endpointslices.discovery.k8s.io cannot be read")
            .await;
        bed.server.apply(policy("a", "next"));
        source
            .state("the next policy", |state| state.policies.len() == 2)
            .await;
        bed.server.apply(slice("x", "s", "10.0.0.7"));
        bed.server
            .faults(ENDPOINT_SLICES, |faults| faults.fail_always = None);
        let state = source
            .state("complete", |state| incomplete(state).is_empty())
            .await;
        assert_eq!(blocks(&state), ["10.0.0.7/32"]);
        assert!(!denies_all(&state));
        source.no_alarm().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_networkpolicy_that_an_annotation_stages_is_not_in_force() {
    let bed = serving(&[]);
    let mut staged = policy("a", "deny");
    staged["metadata"]["annotations"] = json!({"ringwall.io/mode": "staged"});
    bed.server.apply(staged.clone());
    let source = bed.following(looking()).await;
    assert!(source.latest().unwrap().policies.is_empty());
    bed.server.apply(policy("a", "deny"));
    source.state("in force", |state| state.policies.len() == 1).await;
    bed.server.apply(staged);
    source
        .state("staged again", |state| state.policies.is_empty())
        .await;
    bed.server.delete(NETWORK_POLICIES, "a", "deny").unwrap();
    bed.server.apply(pod("a", "p2", "10.0.0.12"));
    let state = source.state("the next pod", has_pod("a/p2")).await;
    assert!(state.policies.is_empty());
    assert_eq!(source.health().held_policies, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn semantics_54_a_policy_of_calico_holds_while_its_namespace_ends() {
    let bed = serving(&CALICO);
    bed.server.apply(object(
        CALICO_POLICIES,
        "a",
        "deny",
        json!({}),
        json!({"ingress": [{"action": "Deny"}]}),
    ));
    let source = bed.following(looking()).await;
    bed.server.terminate_namespace("a");
    bed.server.delete(CALICO_POLICIES, "a", "deny").unwrap();
    source
        .health_where("held", |health| health.held_policies == 1)
        .await;
    assert_eq!(ordered(&source.latest().unwrap()), ["deny"]);
    bed.server
        .delete(ringwall_testbed::api_server::PODS, "a", "p1")
        .unwrap();
    bed.server
        .delete(ringwall_testbed::api_server::NAMESPACES, "", "a")
        .unwrap();
    source.state("gone", |state| state.tiered.is_empty()).await;
    let without_policy = source.recorder.states().into_iter().any(|state| {
        let pod = ObjectKey {
            namespace: "a".to_owned(),
            name: "p1".to_owned(),
        };
        state.tiered.is_empty() && state.pods.contains_key(&pod)
    });
    assert!(!without_policy);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_tier_has_the_policies_listed_anew_that_calico_s_api_shows_by_tier() {
    let bed = serving(&[GLOBAL_POLICIES, TIERS]);
    bed.server
        .apply(object(TIERS, "", "first", json!({}), json!({"order": 5})));
    let source = bed.following(looking()).await;
    watched(&source, GLOBAL_POLICIES).await;
    watched(&source, TIERS).await;
    let lists = |resource: Resource| {
        let seen = bed.server.seen();
        let lists = seen
            .iter()
            .filter(|seen| seen.path.ends_with(&format!("/{}", resource.plural)) && !seen.is_watch())
            .filter(|seen| !seen.query.contains_key("fieldSelector"));
        lists.count()
    };
    let (policies, others) = (lists(GLOBAL_POLICIES), lists(NETWORK_POLICIES));
    bed.server
        .apply(object(TIERS, "", "second", json!({}), json!({"order": 6})));
    // At once, and when its server has surely heard of the tier.
    eventually("two more lists", || lists(GLOBAL_POLICIES) >= policies + 2).await;
    assert_eq!(lists(NETWORK_POLICIES), others);
}

/// Calico's API server leaves out what the account may not read: only whoever asks for the tier is refused.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_account_that_may_not_read_a_tier_is_named_and_loses_no_policy_that_it_has_read() {
    let bed = serving(&[GLOBAL_POLICIES, TIERS]);
    for (tier, policy) in [("open", "first"), ("security", "second")] {
        bed.server
            .apply(object(TIERS, "", tier, json!({}), json!({"order": 5})));
        let spec = json!({"tier": tier, "ingress": [{"action": "Deny"}]});
        bed.server
            .apply(object(GLOBAL_POLICIES, "", policy, json!({}), spec));
    }
    let hide = |tier: Option<&str>| {
        let tier = tier.map(str::to_owned);
        bed.server
            .faults(GLOBAL_POLICIES, |faults| faults.hidden_tier = tier);
    };
    hide(Some("security"));
    let source = bed.start(looking()).await;
    let label = "GlobalNetworkPolicy.projectcalico.org";
    let state = source
        .state("what may be read", |state| incomplete(state) == [label])
        .await;
    assert_eq!(ordered(&state), ["first"]);
    let alarm = source.alarm("cannot be read").await;
    assert!(
        alarm.contains("of tier `security`: forbidden") && alarm.contains("every verdict is incomplete"),
        "{alarm}"
    );
    hide(None);
    source
        .state("both", |state| {
            ordered(state).len() == 2 && incomplete(state).is_empty()
        })
        .await;
    source.no_alarm().await;
    hide(Some("security"));
    bed.server.cut(GLOBAL_POLICIES);
    let state = source
        .state("incomplete again", |state| incomplete(state) == [label])
        .await;
    assert_eq!(ordered(&state).len(), 2, "what was read before stays");
    bed.server.delete(GLOBAL_POLICIES, "", "second");
    hide(None);
    source
        .state("one", |state| {
            ordered(state) == ["first"] && incomplete(state).is_empty()
        })
        .await;
}
