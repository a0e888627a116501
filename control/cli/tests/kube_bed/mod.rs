//! A source that reads an API server of the testbed, and everything that it hands on.
#![allow(clippy::unwrap_used, clippy::panic, dead_code, missing_docs, unreachable_pub)] // each test takes what it needs

use std::{
    collections::BTreeSet,
    path::PathBuf,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use ringwall_messages::SourceStatus;
use ringwall_policy::{Cluster, Settings};
use ringwall_source::{
    feed::Feed,
    kube::{Access, Timing, start},
};
use ringwall_testbed::api_server::{ApiServer, NAMESPACES, NETWORK_POLICIES, NODES, PODS, Resource};
use serde_json::{Value, json};

pub const KINDS: [Resource; 4] = [NAMESPACES, NODES, PODS, NETWORK_POLICIES];

/// Long enough for a loaded machine; nothing waits for it when all is well.
pub const PATIENCE: Duration = Duration::from_secs(20);

pub fn quick() -> Timing {
    Timing {
        list_timeout: Duration::from_secs(5),
        backoff_first: Duration::from_millis(10),
        backoff_most: Duration::from_millis(50),
        ..Timing::default()
    }
}

/// Looks often what there is.
pub fn looking() -> Timing {
    Timing {
        probe: Duration::from_millis(60),
        ..quick()
    }
}

/// What is not evaluated.
pub fn incomplete(cluster: &Cluster) -> Vec<&str> {
    cluster.unevaluated_kinds.iter().map(String::as_str).collect()
}

/// Whether a source watches a kind.
pub fn watches(source: &Running, resource: Resource) -> bool {
    let name = match resource.group {
        "" => resource.plural.to_owned(),
        group => format!("{}.{group}", resource.plural),
    };
    let health = source.health();
    health
        .watches
        .iter()
        .any(|it| it.resource == name && it.connected)
}

pub async fn watched(source: &Running, resource: Resource) {
    eventually("watched", || watches(source, resource)).await;
}

pub fn namespace(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}, "status": {"phase": "Active"}})
}

pub fn node(name: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Node", "metadata": {"name": name},
        "spec": {"podCIDR": "10.0.0.0/24", "podCIDRs": ["10.0.0.0/24"]},
        "status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.1"}]},
    })
}

pub fn pod(namespace: &str, name: &str, ip: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace, "labels": {"app": name}},
        "spec": {"nodeName": "n1", "containers": [{"name": "c", "image": "i", "ports": [{"containerPort": 80, "name": "http"}]}]},
        "status": {"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}], "hostIP": "192.0.2.1"},
    })
}

pub fn policy(namespace: &str, name: &str) -> Value {
    json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"podSelector": {}, "policyTypes": ["Ingress"], "ingress": [{"from": [{"podSelector": {}}]}]},
    })
}

/// Denies what comes to pods of namespace `a`, before NetworkPolicies.
pub fn cluster_policy(name: &str, priority: u16) -> Value {
    json!({
        "apiVersion": "policy.networking.k8s.io/v1alpha2", "kind": "ClusterNetworkPolicy",
        "metadata": {"name": name},
        "spec": {
            "tier": "Admin", "priority": priority,
            "subject": {"namespaces": {"matchLabels": {"kubernetes.io/metadata.name": "a"}}},
            "ingress": [{"action": "Deny", "from": [{"namespaces": {}}]}],
        },
    })
}

pub fn admin_policy(name: &str, priority: u16) -> Value {
    json!({
        "apiVersion": "policy.networking.k8s.io/v1alpha1", "kind": "AdminNetworkPolicy",
        "metadata": {"name": name},
        "spec": {
            "priority": priority, "subject": {"namespaces": {}},
            "ingress": [{"action": "Pass", "from": [{"namespaces": {"matchLabels": {"team": name}}}]}],
        },
    })
}

/// The one that there may be.
pub fn baseline_policy(team: &str) -> Value {
    json!({
        "apiVersion": "policy.networking.k8s.io/v1alpha1", "kind": "BaselineAdminNetworkPolicy",
        "metadata": {"name": "default"},
        "spec": {
            "subject": {"namespaces": {}},
            "egress": [{"action": "Deny", "to": [{"namespaces": {"matchLabels": {"team": team}}}]}],
        },
    })
}

/// Names of policies for the whole cluster.
pub fn ordered(cluster: &Cluster) -> Vec<String> {
    cluster.tiered.keys().map(|id| id.name.clone()).collect()
}

/// Every state that a feed handed on.
#[derive(Clone, Default)]
pub struct Recorder(pub Arc<Mutex<Vec<Cluster>>>);

impl Recorder {
    pub fn states(&self) -> Vec<Cluster> {
        self.0.lock().unwrap().clone()
    }

    pub fn pods(&self) -> BTreeSet<Vec<String>> {
        self.states().iter().map(pods_of).collect()
    }
}

pub struct Bed {
    pub server: ApiServer,
    pub kubeconfig: PathBuf,
    _dir: tempfile::TempDir,
}

impl Bed {
    /// A server with one object of each kind.
    pub fn new() -> Self {
        let server = ApiServer::start().unwrap();
        server.apply(namespace("a"));
        server.apply(node("n1"));
        server.apply(pod("a", "p1", "10.0.0.11"));
        server.apply(policy("a", "deny"));
        let dir = tempfile::tempdir().unwrap();
        let kubeconfig = dir.path().join("kubeconfig");
        std::fs::write(&kubeconfig, server.kubeconfig("secret")).unwrap();
        Self {
            server,
            kubeconfig,
            _dir: dir,
        }
    }

    pub async fn start(&self, timing: Timing) -> Running {
        self.start_keeping(timing, None).await
    }

    /// A source that keeps policies over restarts in a file.
    pub async fn start_keeping(&self, timing: Timing, kept: Option<PathBuf>) -> Running {
        let access = Access::Kubeconfig {
            file: self.kubeconfig.clone(),
            context: None,
        };
        Running::new(start(&access, Settings::default(), timing, kept).await.unwrap())
    }

    /// A source that has said what is there and watches it.
    pub async fn following(&self, timing: Timing) -> Running {
        let source = self.start(timing).await;
        source.state("the first", |_| true).await;
        source.connected().await;
        source
    }
}

pub struct Running {
    pub feed: Feed,
    pub recorder: Recorder,
}

impl Running {
    pub fn new(feed: Feed) -> Self {
        let recorder = Recorder::default();
        let (record, mut states) = (recorder.clone(), feed.states.clone());
        tokio::spawn(async move {
            states.mark_changed();
            while states.changed().await.is_ok() {
                if let Some(state) = states.borrow_and_update().clone() {
                    record.0.lock().unwrap().push(state.cluster.clone());
                }
            }
        });
        Self { feed, recorder }
    }

    pub fn health(&self) -> SourceStatus {
        self.feed.health.status()
    }

    pub fn latest(&self) -> Option<Cluster> {
        self.feed
            .states
            .borrow()
            .as_ref()
            .map(|state| state.cluster.clone())
    }

    /// Waits for a state that is as wanted.
    pub async fn state(&self, what: &str, wanted: impl Fn(&Cluster) -> bool) -> Cluster {
        let until = Instant::now() + PATIENCE;
        loop {
            if let Some(state) = self.recorder.0.lock().unwrap().last()
                && wanted(state)
            {
                return state.clone();
            }
            if Instant::now() > until {
                panic!(
                    "no state with {what}; the last is {:#?}, {:#?}",
                    self.latest(),
                    self.health()
                );
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    pub async fn health_where(&self, what: &str, wanted: impl Fn(&SourceStatus) -> bool) -> SourceStatus {
        let until = Instant::now() + PATIENCE;
        loop {
            let health = self.health();
            if wanted(&health) {
                return health;
            }
            assert!(Instant::now() < until, "never {what}: {health:#?}");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    pub fn alarms(&self) -> Vec<String> {
        self.feed.health.alarms()
    }

    /// Waits for an alarm with these words.
    pub async fn alarm(&self, words: &str) -> String {
        let until = Instant::now() + PATIENCE;
        loop {
            if let Some(alarm) = self.alarms().into_iter().find(|alarm| alarm.contains(words)) {
                return alarm;
            }
            assert!(
                Instant::now() < until,
                "no alarm with {words:?}: {:?}, {:#?}",
                self.alarms(),
                self.health()
            );
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    pub async fn no_alarm(&self) {
        let until = Instant::now() + PATIENCE;
        while !self.alarms().is_empty() {
            assert!(Instant::now() < until, "{:?}", self.alarms());
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    pub async fn connected(&self) {
        self.health_where("connected", |health| {
            health.watches.iter().all(|watch| watch.connected)
        })
        .await;
    }
}

pub fn pods_of(cluster: &Cluster) -> Vec<String> {
    cluster.pods.keys().map(ToString::to_string).collect()
}

pub fn has_pod(name: &str) -> impl Fn(&Cluster) -> bool {
    move |cluster| pods_of(cluster).iter().any(|pod| pod == name)
}

/// Waits until something is so.
pub async fn eventually(what: &str, mut so: impl FnMut() -> bool) {
    let until = Instant::now() + PATIENCE;
    while !so() {
        assert!(Instant::now() < until, "never {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// Time for what must not happen to happen.
pub async fn a_moment() {
    tokio::time::sleep(Duration::from_millis(150)).await;
}

/// A kind of Calico as its API serves it.
pub const fn calico(kind: &'static str, plural: &'static str, namespaced: bool) -> Resource {
    Resource {
        group: "projectcalico.org",
        version: "v3",
        plural,
        kind,
        namespaced,
    }
}

/// The same as Calico stores it.
pub const fn stored(resource: Resource) -> Resource {
    Resource {
        group: "crd.projectcalico.org",
        version: "v1",
        ..resource
    }
}

pub const TIERS: Resource = calico("Tier", "tiers", false);
pub const CALICO_POLICIES: Resource = calico("NetworkPolicy", "networkpolicies", true);
pub const GLOBAL_POLICIES: Resource = calico("GlobalNetworkPolicy", "globalnetworkpolicies", false);
pub const NETWORK_SETS: Resource = calico("NetworkSet", "networksets", true);
pub const GLOBAL_SETS: Resource = calico("GlobalNetworkSet", "globalnetworksets", false);
pub const HOST_ENDPOINTS: Resource = calico("HostEndpoint", "hostendpoints", false);
pub const PROFILES: Resource = calico("Profile", "profiles", false);
pub const STAGED_POLICIES: Resource = calico("StagedNetworkPolicy", "stagednetworkpolicies", true);
pub const STAGED_GLOBAL_POLICIES: Resource =
    calico("StagedGlobalNetworkPolicy", "stagedglobalnetworkpolicies", false);
pub const STAGED_KUBERNETES_POLICIES: Resource = calico(
    "StagedKubernetesNetworkPolicy",
    "stagedkubernetesnetworkpolicies",
    true,
);

pub const CALICO: [Resource; 10] = [
    TIERS,
    CALICO_POLICIES,
    GLOBAL_POLICIES,
    NETWORK_SETS,
    GLOBAL_SETS,
    HOST_ENDPOINTS,
    PROFILES,
    STAGED_POLICIES,
    STAGED_GLOBAL_POLICIES,
    STAGED_KUBERNETES_POLICIES,
];

pub const SERVICE_ACCOUNTS: Resource = Resource {
    group: "",
    version: "v1",
    plural: "serviceaccounts",
    kind: "ServiceAccount",
    namespaced: true,
};
pub const SERVICES: Resource = Resource {
    plural: "services",
    kind: "Service",
    ..SERVICE_ACCOUNTS
};
pub const ENDPOINT_SLICES: Resource = Resource {
    group: "discovery.k8s.io",
    plural: "endpointslices",
    kind: "EndpointSlice",
    ..SERVICE_ACCOUNTS
};

/// What policies of Calico may speak of, which every API server serves.
pub const SPOKEN_OF: [Resource; 3] = [SERVICE_ACCOUNTS, SERVICES, ENDPOINT_SLICES];

/// An object of a kind; in a namespace where the kind has some.
pub fn object(resource: Resource, namespace: &str, name: &str, labels: Value, spec: Value) -> Value {
    let api_version = match resource.group {
        "" => resource.version.to_owned(),
        group => format!("{group}/{}", resource.version),
    };
    let mut object = json!({
        "apiVersion": api_version, "kind": resource.kind, "metadata": {"name": name, "labels": labels}, "spec": spec,
    });
    if resource.namespaced {
        object["metadata"]["namespace"] = json!(namespace);
    }
    object
}

/// A policy of the whole cluster, for whom a selector says, with a rule for what comes from `source`.
pub fn global_policy(name: &str, action: &str, source: Value) -> Value {
    let spec = json!({"ingress": [{"action": action, "source": source}]});
    object(GLOBAL_POLICIES, "", name, json!({}), spec)
}

pub fn global_set(name: &str, role: &str, net: &str) -> Value {
    object(
        GLOBAL_SETS,
        "",
        name,
        json!({"role": role}),
        json!({"nets": [net]}),
    )
}

/// An endpoint of a service.
pub fn slice(name: &str, service: &str, address: &str) -> Value {
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {"name": name, "namespace": "a", "labels": {"kubernetes.io/service-name": service}},
        "addressType": "IPv4", "endpoints": [{"addresses": [address], "conditions": {"ready": true}}],
        "ports": [{"port": 80, "protocol": "TCP"}],
    })
}

/// The blocks that rules are for, in order.
pub fn blocks(cluster: &Cluster) -> Vec<String> {
    let peers = cluster.named_peers();
    let blocks = peers.flat_map(|peer| cluster.blocks_of(peer));
    blocks.map(|(cidr, _)| cidr.to_string()).collect()
}
