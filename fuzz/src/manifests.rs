//! Input: a file of manifests, YAML; JSON where it begins with a brace or a bracket.
//!
//! What must hold: no policy that another YAML parser sees in it disappears in silence: it is in the cluster, or a problem
//! is told. What is understood compiles, and the snapshot answers on every packet what the objects say; lints say what
//! they say without falling over.

use std::{cell::RefCell, path::PathBuf, sync::Arc};

use ringwall_analyse::{lint, lint::Suppressions};
use ringwall_compile::{Budget, CompileError, Compiler, EpochKey};
use ringwall_dataplane::classify::{Generation, Snapshot};
use ringwall_policy::{Action, ObjectKey, PolicyId, PolicyKind, Settings};
use ringwall_prove::Checker;
use ringwall_source::{
    folder,
    folder::{FolderError, Loaded},
};
use serde_json::Value;

/// More objects than that are not compiled: the proof is about every pair of them.
const OBJECTS: usize = 60;

thread_local! {
    static FOLDER: RefCell<Option<tempfile::TempDir>> = const { RefCell::new(None) };
}

/// Writes the file and answers its folder, in memory where there is such a file system.
fn folder(data: &[u8], json: bool) -> PathBuf {
    FOLDER.with_borrow_mut(|folder| {
        let folder = folder.get_or_insert_with(|| {
            tempfile::tempdir_in("/dev/shm")
                .or_else(|_| tempfile::tempdir())
                .expect("a folder for manifests")
        });
        let [name, other] = match json {
            true => ["a.json", "a.yaml"],
            false => ["a.yaml", "a.json"],
        };
        let _ = std::fs::remove_file(folder.path().join(other));
        std::fs::write(folder.path().join(name), data).expect("room for manifests");
        folder.path().to_owned()
    })
}

/// Checks one input.
pub fn run(data: &[u8]) {
    let json = data
        .trim_ascii_start()
        .first()
        .is_some_and(|first| matches!(first, b'{' | b'['));
    let folder = folder(data, json);
    let settings = Settings {
        pod_cidrs: ["10.0.0.0/16", "fd00::/48"]
            .map(|cidr| cidr.parse().unwrap())
            .to_vec(),
        ..Settings::default()
    };
    let (loaded, written) = match folder::inspect(&folder, &settings) {
        Ok(inspected) => inspected,
        Err(error) => panic!("a folder that is there: {error}"),
    };
    for problem in &loaded.problems {
        assert!(!problem.message.is_empty() && !problem.to_string().is_empty());
    }
    match folder::load(&folder, &settings) {
        Ok(whole) => {
            check_policies(data, json, &whole);
            check_rules(&whole);
            check_meaning(&whole);
        }
        Err(FolderError::Broken(problems)) => assert!(!problems.is_empty(), "refused for nothing"),
        Err(error) => panic!("a folder that is there: {error}"),
    }
    if objects(&loaded) <= OBJECTS
        && let Ok(linted) = lint::run(
            &loaded.cluster,
            &loaded.services,
            &written,
            &loaded.problems,
            &Suppressions::default(),
        )
    {
        for finding in &linted.findings {
            assert!(!format!("{finding:?}").is_empty());
        }
    }
}

fn objects(loaded: &Loaded) -> usize {
    let cluster = &loaded.cluster;
    let policies = cluster.policies.len() + cluster.tiered.len();
    cluster.pods.len() + policies + cluster.nodes.len() + cluster.namespaces.len()
}

/// As another parser reads it.
fn documents(data: &[u8], json: bool) -> Vec<Value> {
    let Ok(text) = std::str::from_utf8(data) else {
        return Vec::new();
    };
    if json {
        let values = serde_json::Deserializer::from_str(text).into_iter();
        return values.collect::<Result<_, _>>().unwrap_or_default();
    }
    serde_saphyr::from_multiple(text).unwrap_or_default()
}

/// The kinds of policy that are evaluated.
const KINDS: [(PolicyKind, &str); 4] = [
    (PolicyKind::NetworkPolicy, "networking.k8s.io/v1"),
    (
        PolicyKind::ClusterNetworkPolicy,
        "policy.networking.k8s.io/v1alpha2",
    ),
    (
        PolicyKind::AdminNetworkPolicy,
        "policy.networking.k8s.io/v1alpha1",
    ),
    (
        PolicyKind::BaselineAdminNetworkPolicy,
        "policy.networking.k8s.io/v1alpha1",
    ),
];

/// Policies, those in lists too.
fn policies<'v>(value: &'v Value, found: &mut Vec<(PolicyKind, &'v Value)>) {
    let text = |key: &str| value.get(key).and_then(Value::as_str);
    if let (Some("List" | "NetworkPolicyList"), Some(Value::Array(items))) =
        (text("kind"), value.get("items"))
    {
        items.iter().for_each(|item| policies(item, found));
    }
    let kind = KINDS
        .iter()
        .find(|(kind, version)| (text("kind"), text("apiVersion")) == (Some(kind.name()), Some(*version)));
    found.extend(kind.map(|(kind, _)| (*kind, value)));
}

fn check_policies(data: &[u8], json: bool, loaded: &Loaded) {
    let documents = documents(data, json);
    let mut found = Vec::new();
    documents
        .iter()
        .for_each(|document| policies(document, &mut found));
    for (kind, policy) in found {
        let named = |key: &str| policy.get("metadata")?.get(key)?.as_str();
        let key = ObjectKey {
            namespace: named("namespace").unwrap_or("default").to_owned(),
            name: named("name").unwrap_or_default().to_owned(),
        };
        let there = match kind {
            PolicyKind::NetworkPolicy => loaded.cluster.policies.contains_key(&key),
            kind => loaded.cluster.tiered.contains_key(&PolicyId {
                kind,
                namespace: String::new(),
                name: key.name.clone(),
            }),
        };
        assert!(
            there || !loaded.problems.is_empty(),
            "the {} {key} disappeared in silence",
            kind.name()
        );
    }
    for (key, policy) in &loaded.cluster.policies {
        if policy.faults.is_empty() {
            continue;
        }
        // An invalid one isolates, and lets nothing in or out.
        let rules = [&policy.ingress, &policy.egress];
        assert!(
            rules.iter().any(|rules| rules.is_some()),
            "{key} is invalid and isolates nothing"
        );
        assert!(
            rules.iter().all(|rules| rules.as_ref().is_none_or(Vec::is_empty)),
            "{key} is invalid and allows"
        );
        assert!(!loaded.problems.is_empty(), "{key} is invalid in silence");
    }
}

/// No rule of Kubernetes' kinds that lets something through is for everyone: each names its peers.
fn check_rules(loaded: &Loaded) {
    for (id, policy) in &loaded.cluster.tiered {
        let mut rules = policy.rules();
        assert!(
            id.kind.is_calico() || rules.all(|rule| rule.action == Action::Deny || rule.peers.is_some()),
            "{id} lets anyone through"
        );
        assert!(
            policy.faults.is_empty() || !loaded.problems.is_empty(),
            "{id} is invalid in silence"
        );
    }
}

/// The snapshot says what the objects say.
fn check_meaning(loaded: &Loaded) {
    if objects(loaded) > OBJECTS {
        return;
    }
    let mut compiler = Compiler::new(EpochKey::OFFLINE, Budget { bytes: 64 << 20 });
    let compiled = match compiler.update(&loaded.cluster, Generation(1)) {
        Ok(compiled) => compiled,
        Err(CompileError::OverBudget { heaviest, .. }) => {
            assert!(!heaviest.is_empty(), "too large, and no policy is named");
            return;
        }
        Err(error) => panic!("{error}"),
    };
    let snapshot = Snapshot::open(&compiled.image.to_bytes()).expect("the compiler's image");
    if let Err(difference) = Checker::new().full(&loaded.cluster, &Arc::new(snapshot)) {
        panic!("{difference:?}");
    }
}
