//! The taint of the node that ringwall guards, at an API server over HTTP.
#![allow(clippy::unwrap_used, clippy::panic)] // a failed step is a failed test

mod kube_bed;

use std::time::{Duration, Instant};

use kube_bed::{PATIENCE, node, quick};
use ringwall_policy::Settings;
use ringwall_source::{
    feed::Feed,
    kube::{Access, NODE_TAINT, Timing, start_on_node},
};
use ringwall_testbed::api_server::{ApiServer, NODES};
use serde_json::{Value, json};

fn own(effect: &str) -> Value {
    json!({"key": NODE_TAINT, "effect": effect})
}

fn others(name: &str) -> Value {
    json!({"key": format!("other.example/{name}"), "value": "yes", "effect": "NoSchedule"})
}

fn tainted(name: &str, taints: &[Value]) -> Value {
    let mut node = node(name);
    node["spec"]["taints"] = json!(taints);
    node
}

/// An API server, and a source on one of its nodes.
struct OnNode {
    server: ApiServer,
    feed: Feed,
    _folder: tempfile::TempDir,
}

impl OnNode {
    async fn start(nodes: &[Value], name: &str) -> Self {
        let server = ApiServer::start().unwrap();
        for node in nodes {
            server.apply(node.clone());
        }
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("kubeconfig");
        std::fs::write(&file, server.kubeconfig("t")).unwrap();
        let access = Access::Kubeconfig { file, context: None };
        let timing = Timing {
            refused_alarm: Duration::from_millis(50),
            ..quick()
        };
        let feed = start_on_node(&access, Settings::default(), timing, None, Some(name.to_owned()))
            .await
            .unwrap();
        let mut states = feed.states.clone();
        let synced = tokio::time::timeout(PATIENCE, states.wait_for(Option::is_some)).await;
        synced.unwrap().unwrap();
        Self {
            server,
            feed,
            _folder: folder,
        }
    }

    fn guarded(&self, guarded: bool) {
        self.feed.guarded.as_ref().unwrap().send_replace(guarded);
    }

    fn taints(&self, name: &str) -> Vec<Value> {
        let node = self.server.object(NODES, "", name).unwrap();
        node["spec"]["taints"].as_array().cloned().unwrap_or_default()
    }

    async fn until(&self, what: &str, condition: impl Fn() -> bool) {
        let until = Instant::now() + PATIENCE;
        while !condition() {
            assert!(
                Instant::now() < until,
                "never {what}: {:#?}",
                self.feed.health.status()
            );
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    fn alarms(&self) -> String {
        self.feed.health.alarms().join("\n")
    }

    /// How many patches came.
    fn patches(&self) -> usize {
        let requests = self.server.seen();
        requests
            .iter()
            .filter(|request| request.method == "PATCH")
            .count()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_guarded_node_loses_its_taint_and_no_other() {
    let all = [own("NoSchedule"), others("a"), own("NoExecute"), others("b")];
    let bed = OnNode::start(&[tainted("n1", &all), tainted("n2", &all)], "n1").await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(bed.taints("n1"), all, "before it is guarded");
    bed.guarded(true);
    bed.until("removed", || bed.taints("n1") == [others("a"), others("b")])
        .await;
    assert_eq!(bed.taints("n2"), all, "another node's");
    assert_eq!(bed.patches(), 1);
    assert_eq!(bed.alarms(), "");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_without_the_taint_is_left_alone() {
    let bed = OnNode::start(&[tainted("n1", &[others("a")]), node("n2")], "n1").await;
    bed.guarded(true);
    let asks = || {
        let requests = bed.server.seen();
        let of_node = |request: &&_| is_about(request, "n1");
        requests.iter().filter(of_node).count()
    };
    bed.until("looked at", || asks() > 0).await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!((bed.patches(), asks()), (0, 1));
    assert_eq!(bed.taints("n1"), [others("a")]);
}

fn is_about(request: &ringwall_testbed::api_server::ReceivedRequest, node: &str) -> bool {
    request
        .query
        .get("fieldSelector")
        .is_some_and(|selector| *selector == format!("metadata.name={node}"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn taints_that_change_meanwhile_are_kept() {
    let bed = OnNode::start(&[tainted("n1", &[others("a"), own("NoSchedule")])], "n1").await;
    // Between the look and each of the first two patches, somebody else's: its place is another's, then it is none.
    bed.server.faults(NODES, |faults| {
        faults.before_patches = [
            tainted("n1", &[own("NoSchedule"), others("b")]),
            tainted("n1", &[others("c"), others("b"), own("NoExecute")]),
        ]
        .into();
    });
    bed.guarded(true);
    bed.until("removed", || bed.taints("n1") == [others("c"), others("b")])
        .await;
    assert_eq!(bed.patches(), 3);

    // Gone by somebody else's hand: nothing is left to do.
    bed.guarded(false);
    bed.server.apply(tainted("n1", &[own("NoSchedule"), others("c")]));
    bed.server.faults(NODES, |faults| {
        faults.before_patches = [tainted("n1", &[others("c")])].into()
    });
    bed.guarded(true);
    bed.until("removed", || bed.taints("n1") == [others("c")]).await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(bed.taints("n1"), [others("c")]);
    assert_eq!(bed.alarms(), "");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_may_not_patch_says_so_and_goes_on() {
    let bed = OnNode::start(&[tainted("n1", &[own("NoSchedule")])], "n1").await;
    bed.server.faults(NODES, |faults| faults.fail_patches = Some(403));
    bed.guarded(true);
    bed.until("alarmed", || bed.alarms().contains("forbidden")).await;
    let alarms = bed.alarms();
    for part in ["node n1 is guarded", NODE_TAINT, "allows `patch` on nodes"] {
        assert!(alarms.contains(part), "{part}: {alarms}");
    }
    // The source goes on.
    bed.server.apply(kube_bed::namespace("later"));
    bed.until("watched", || {
        let state = bed.feed.states.borrow().clone();
        state.is_some_and(|state| state.cluster.namespaces.contains_key("later"))
    })
    .await;
    bed.server.faults(NODES, |faults| faults.fail_patches = None);
    bed.until("removed", || bed.taints("n1").is_empty()).await;
    bed.until("well", || bed.alarms().is_empty()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_is_not_there_is_an_alarm_until_it_comes() {
    let all = [own("NoSchedule")];
    let bed = OnNode::start(&[tainted("n2", &all)], "n1").await;
    bed.guarded(true);
    bed.until("alarmed", || bed.alarms().contains("no such Node"))
        .await;
    assert!(bed.alarms().contains("node n1"), "{}", bed.alarms());
    assert_eq!(bed.taints("n2"), all);
    bed.server.apply(tainted("n1", &all));
    bed.until("removed", || bed.taints("n1").is_empty()).await;
    bed.until("well", || bed.alarms().is_empty()).await;
    assert_eq!(bed.taints("n2"), all);
}
