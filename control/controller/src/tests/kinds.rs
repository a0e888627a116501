//! Policies for the whole cluster, from an API server that may not serve their kinds, to what the published snapshot decides.

use ringwall_testbed::api_server::{CLUSTER_NETWORK_POLICIES, Resource};
use serde_json::Value;

use super::*;

const LABEL: &str = "ClusterNetworkPolicy.policy.networking.k8s.io";

/// From, to.
const FLOW: (&str, &str) = ("10.0.0.2", "10.0.0.1");

/// Two pods that nothing keeps apart.
fn two_pods() -> ApiServer {
    let server = ApiServer::start().unwrap();
    server.apply(json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "a"}}));
    for (name, ip) in [("web", "10.0.0.1"), ("one", "10.0.0.2")] {
        server.apply(json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "a"},
            "spec": {"nodeName": "n", "containers": [{"name": "c", "image": "i"}]},
            "status": {"phase": "Running", "podIPs": [{"ip": ip}]},
        }));
    }
    server
}

/// Does it with everything that comes to a pod.
fn policy(action: &str) -> Value {
    json!({
        "apiVersion": "policy.networking.k8s.io/v1alpha2", "kind": "ClusterNetworkPolicy",
        "metadata": {"name": "all"},
        "spec": {
            "tier": "Admin", "priority": 5, "subject": {"namespaces": {}},
            "ingress": [{"action": action, "from": [{"namespaces": {}}]}],
        },
    })
}

async fn run(bed: &Bed, server: &ApiServer) -> Running {
    let controller = Controller::start(Options {
        source: from_kubeconfig(bed, server),
        watches: kube::Timing {
            probe: Duration::from_millis(60),
            backoff_first: Duration::from_millis(10),
            backoff_most: Duration::from_millis(50),
            ..kube::Timing::default()
        },
        ..bed.options()
    });
    Running::new(controller.await.unwrap())
}

async fn until_it_passes(bed: &Bed, wanted: bool) {
    until_passes(&bed.dataplane, FLOW.0, FLOW.1, wanted).await;
}

/// What status says is incomplete, once it is so.
async fn incomplete(control: &Running, wanted: &[&str]) -> Status {
    let status = control.status_where("incomplete", |status| {
        status.control.as_ref().unwrap().incomplete == wanted
    });
    status.await
}

fn alarms(status: &Status) -> &[String] {
    &status.control.as_ref().unwrap().alarms
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_policy_of_a_crd_that_appears_is_enforced_and_goes_with_it() {
    let bed = Bed::new();
    let server = two_pods();
    let control = run(&bed, &server).await;
    until_it_passes(&bed, true).await;
    server.serve(CLUSTER_NETWORK_POLICIES);
    server.apply(policy("Deny"));
    until_it_passes(&bed, false).await;
    server.apply(policy("Pass"));
    until_it_passes(&bed, true).await;
    let version = server.apply(policy("Deny"));
    until_it_passes(&bed, false).await;
    let status = control.ready().await;
    assert_eq!(alarms(&status), [] as [&str; 0]);
    let status = status.control.unwrap();
    assert_eq!((status.objects.cluster_policies, status.incomplete.len()), (1, 0));
    assert_eq!(status.snapshot.resource_versions.cluster_policies, Some(version));
    // The server deletes the objects of a CRD that goes.
    server.delete(CLUSTER_NETWORK_POLICIES, "", "all").unwrap();
    server.withdraw(CLUSTER_NETWORK_POLICIES);
    until_it_passes(&bed, true).await;
    let status = control
        .status_where("watched no more", |status| {
            status.control.as_ref().unwrap().source.watches.len() == 4
        })
        .await;
    assert_eq!(alarms(&status), [] as [&str; 0]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_snapshot_is_published_without_the_policies_of_a_kind_that_is_served() {
    let bed = Bed::new();
    let server = two_pods();
    server.serve(CLUSTER_NETWORK_POLICIES);
    server.apply(policy("Deny"));
    server.faults(CLUSTER_NETWORK_POLICIES, |faults| faults.fail_always = Some(500));
    let control = run(&bed, &server).await;
    let status = control
        .status_where("five lists, one of which fails", |status| {
            let watches = &status.control.as_ref().unwrap().source.watches;
            watches.len() == 5 && watches[..4].iter().all(|watch| watch.connected) && watches[4].errors > 3
        })
        .await;
    let status = status.control.unwrap();
    assert!(!status.ready && !status.source.synced);
    assert!(bed.dataplane.images().is_empty(), "{:?}", bed.dataplane.images());
    server.faults(CLUSTER_NETWORK_POLICIES, |faults| faults.fail_always = None);
    control.ready().await;
    assert_eq!(passes(&bed.dataplane, FLOW.0, FLOW.1), Some(false));
    assert_eq!(bed.dataplane.images().len(), 1, "it was never open");
}

#[tokio::test]
async fn a_kind_that_may_not_be_read_is_named_and_enforced_once_it_may() {
    let log = Log::default();
    let _default = log.begin();
    let bed = Bed::new();
    let server = two_pods();
    server.serve(CLUSTER_NETWORK_POLICIES);
    server.apply(policy("Deny"));
    server.faults(CLUSTER_NETWORK_POLICIES, |faults| faults.fail_always = Some(403));
    let control = run(&bed, &server).await;
    control.ready().await;
    assert_eq!(
        passes(&bed.dataplane, FLOW.0, FLOW.1),
        Some(true),
        "the rest goes on"
    );
    let status = incomplete(&control, &[LABEL]).await;
    let said = alarms(&status);
    assert_eq!(said.len(), 1, "{said:?}");
    assert!(
        said[0].starts_with("clusternetworkpolicies.policy.networking.k8s.io cannot be read"),
        "{said:?}"
    );
    log.line("clusternetworkpolicies.policy.networking.k8s.io cannot be read")
        .await;
    let (_, metrics) = control.get("/metrics").await;
    let metric = format!("ringwall_policy_kinds_unevaluated{{kind=\"{LABEL}\"}} 1.0\n");
    assert!(metrics.contains(&metric), "{metrics}");
    server.faults(CLUSTER_NETWORK_POLICIES, |faults| faults.fail_always = None);
    until_it_passes(&bed, false).await;
    let status = incomplete(&control, &[]).await;
    assert_eq!(alarms(&status), [] as [&str; 0]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_version_that_is_not_understood_is_named_and_what_was_read_stays_in_force() {
    const OLD: Resource = Resource {
        version: "v1alpha1",
        ..CLUSTER_NETWORK_POLICIES
    };
    let bed = Bed::new();
    let server = two_pods();
    server.serve(CLUSTER_NETWORK_POLICIES);
    server.apply(policy("Deny"));
    let control = run(&bed, &server).await;
    until_it_passes(&bed, false).await;
    let mut old = policy("Deny");
    old["apiVersion"] = json!("policy.networking.k8s.io/v1alpha1");
    server.serve(OLD);
    server.apply(old);
    server.withdraw(CLUSTER_NETWORK_POLICIES);
    let status = incomplete(&control, &[&format!("{LABEL}/v1alpha1")]).await;
    assert_eq!(alarms(&status).len(), 1, "{:?}", alarms(&status));
    assert_eq!(passes(&bed.dataplane, FLOW.0, FLOW.1), Some(false));
    server.serve(CLUSTER_NETWORK_POLICIES);
    let status = incomplete(&control, &[]).await;
    assert_eq!(alarms(&status), [] as [&str; 0]);
    assert_eq!(passes(&bed.dataplane, FLOW.0, FLOW.1), Some(false));
}

#[tokio::test]
async fn s72_5_an_unreadable_tier_keeps_the_last_good_version_in_force() {
    let log = Log::default();
    let _default = log.begin();
    let bed = Bed::new();
    let server = two_pods();
    server.serve(CLUSTER_NETWORK_POLICIES);
    server.apply(policy("Deny"));
    let control = run(&bed, &server).await;
    until_it_passes(&bed, false).await;
    let mut unreadable = policy("Accept");
    unreadable["spec"]["tier"] = json!("Platform");
    server.apply(unreadable.clone());
    let status = control
        .status_where("an alarm", |status| !alarms(status).is_empty())
        .await;
    let said = &alarms(&status)[0];
    assert!(
        said.starts_with(
            "rejected, the last good version stays in force: ClusterNetworkPolicy all: spec.tier"
        ),
        "{said}"
    );
    log.line("the last good version stays in force: ClusterNetworkPolicy all")
        .await;
    let status = control
        .status_where("a fault", |status| {
            status.control.as_ref().unwrap().problems.len() == 1
        })
        .await;
    assert_eq!(status.control.as_ref().unwrap().problems[0].path, "spec.tier");
    assert_eq!(passes(&bed.dataplane, FLOW.0, FLOW.1), Some(false));
    // So the next process does.
    control.stop().await;
    let control = run(&bed, &server).await;
    let status = control.ready().await;
    assert_eq!(alarms(&status).len(), 1, "{:?}", alarms(&status));
    assert_eq!(passes(&bed.dataplane, FLOW.0, FLOW.1), Some(false));
    let hashes: Vec<_> = {
        let kept = bed.dataplane.kept.lock().unwrap();
        kept.images
            .iter()
            .map(|image| Snapshot::open(image).unwrap().hash())
            .collect()
    };
    assert!(
        hashes.windows(2).all(|pair| pair[0] == pair[1]),
        "never anything else"
    );
    server.apply(policy("Accept"));
    until_it_passes(&bed, true).await;
}
