//! Cases of Calico's own tests, as data (`upstream/*.json`, which say where they are from): verdicts, what manifests its
//! validators take, what ClusterNetworkPolicies are as its own policies, and which one selector those of a rule are together. Where we decide otherwise, a list says why.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test may stop at the first surprise"
)]

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    sync::Arc,
};

use ringwall_analyse::{
    flow::Flow,
    judge::{self, Judge},
    refine,
};
use ringwall_compile::{EpochKey, compile};
use ringwall_dataplane::classify::{Generation, Snapshot};
use ringwall_policy::{Cluster, Settings};
use ringwall_prove::Checker;
use ringwall_source::folder::{self, ProblemKind, Severity};
use serde_json::{Value, json};

#[path = "ran/mod.rs"]
mod ran;

/// Where our answer is not upstream's: the case, and why.
type Differences = &'static [(&'static str, &'static str)];

fn data(file: &str) -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/upstream")
        .join(file);
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

fn list<'v>(value: &'v Value, key: &str) -> &'v [Value] {
    value[key].as_array().map(Vec::as_slice).unwrap_or_default()
}

/// `Kind namespace/name`, by which steps take objects away.
fn name_of(object: &Value) -> String {
    let kind = object["kind"].as_str().unwrap();
    let name = object["metadata"]["name"].as_str().unwrap();
    match object["metadata"]["namespace"].as_str() {
        Some(namespace) => format!("{kind} {namespace}/{name}"),
        None => format!("{kind} {name}"),
    }
}

/// A folder with these objects.
fn folder_of<'v>(objects: impl IntoIterator<Item = &'v Value>) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let documents: Vec<String> = objects.into_iter().map(ToString::to_string).collect();
    std::fs::write(dir.path().join("all.yaml"), documents.join("\n---\n")).unwrap();
    dir
}

fn proven(cluster: &Cluster, what: &str) -> Snapshot {
    let image = compile(cluster, Generation(1), &EpochKey::OFFLINE).unwrap();
    let snapshot = Arc::new(Snapshot::open(&image.bytes).unwrap());
    Checker::new()
        .full(cluster, &snapshot)
        .unwrap_or_else(|wrong| panic!("{what} is not proven: {wrong:?}"));
    Snapshot::clone(&snapshot)
}

/// A flow as the data has it: `FROM TO [SOURCE PORT>]PORT/PROTOCOL VERDICT`, then what else is known of it.
struct Asked<'v> {
    from: &'v str,
    to: &'v str,
    port: u16,
    source_port: Option<u16>,
    protocol: &'v str,
    allow: bool,
    /// The original looks at the source's side alone.
    egress: bool,
    /// The policy that decides.
    by: Option<&'v str>,
    /// The verdict with staged policies enforced.
    pending: Option<&'v str>,
    /// `TIER POLICY EFFECT RULE` of all that is asked at the destination.
    trace: Vec<&'v str>,
}

impl<'v> Asked<'v> {
    fn read(flow: &'v Value) -> Self {
        let (text, trace) = match flow {
            Value::Array(parts) => {
                let parts: Vec<&str> = parts.iter().map(|part| part.as_str().unwrap()).collect();
                (parts[0], parts[1..].to_vec())
            }
            text => (text.as_str().unwrap(), Vec::new()),
        };
        let words: Vec<&str> = text.split(' ').collect();
        let (port, protocol) = words[2].split_once('/').unwrap();
        let (source_port, port) = match port.split_once('>') {
            Some((source, port)) => (Some(source.parse().unwrap()), port),
            None => (None, port),
        };
        let option = |key: &str| words[4..].iter().find_map(|word| word.strip_prefix(key));
        Self {
            from: words[0],
            to: words[1],
            port: port.parse().unwrap(),
            source_port,
            protocol,
            allow: match words[3] {
                "allow" => true,
                "deny" => false,
                other => panic!("{other}"),
            },
            egress: words[4..].contains(&"egress"),
            by: option("by="),
            pending: option("pending="),
            trace,
        }
    }

    fn question(&self) -> Value {
        let mut question =
            json!({"src": self.from, "dst": self.to, "dst_port": self.port, "protocol": self.protocol});
        if let Some(port) = self.source_port {
            question["src_port"] = json!(port);
        }
        question
    }

    /// Compares what `query` says, and gives the effects that it names.
    fn compare(&self, answer: &Value, what: &str) -> BTreeSet<String> {
        let what = format!(
            "{what}: {} -> {} {}/{}: {answer}",
            self.from, self.to, self.port, self.protocol
        );
        let side = if self.egress { "egress" } else { "verdict" };
        let wanted = if self.allow { "allow" } else { "deny" };
        assert_eq!(answer[side], wanted, "{what}");
        let reasons = list(answer, "reasons");
        let text = |reason: &Value, key: &str| reason[key].as_str().unwrap_or_default().to_owned();
        if let Some(by) = self.by {
            let decides = |reason: &&Value| !["pass", "staged"].contains(&&*text(reason, "effect"));
            let by_it = reasons.iter().filter(decides).any(|reason| {
                let policy = text(reason, "policy");
                reason["direction"] == "ingress" && (policy == by || policy.ends_with(&format!("/{by}")))
            });
            assert!(by_it, "not by {by}: {what}");
        }
        if let Some(pending) = self.pending {
            assert_eq!(answer["pending"], pending, "pending: {what}");
        }
        if !self.trace.is_empty() {
            let ingress = reasons.iter().filter(|reason| reason["direction"] == "ingress");
            let trace: Vec<String> = ingress
                .map(|reason| {
                    let [tier, policy, effect] = ["tier", "policy", "effect"].map(|key| text(reason, key));
                    format!("{tier} {policy} {effect} {}", reason["rule"])
                })
                .collect();
            assert_eq!(trace, self.trace, "{what}");
        }
        reasons.iter().map(|reason| text(reason, "effect")).collect()
    }

    /// What the reference evaluator and the compiled snapshot say.
    fn judged(&self, cluster: &Cluster, judge: &Judge) -> [bool; 2] {
        let flow = Flow::read(&self.question().to_string()).unwrap();
        let (src, dst) = judge.ends(cluster, &flow.src, &flow.dst).unwrap();
        let answer = judge.judge(&src, &dst, flow.service).unwrap();
        let [a, b] = [(&flow.src, &src), (&flow.dst, &dst)]
            .map(|(name, end)| judge::reference_end(cluster, name, end).unwrap());
        let service = flow.service.evaluated();
        let verdict = ringwall_evaluate::judge(cluster, &a, &b, service);
        match self.egress {
            true => [verdict.egress.allow, answer.egress == judge::Fate::Allow],
            false => [verdict.allow(), answer.allow()],
        }
    }
}

/// A case of named ports for sources, as Calico's tests make it of that for destinations: all of them the other way round.
fn of_source_ports(case: &Value) -> Option<Value> {
    fn swapped(object: &Value) -> Value {
        let mut object = object.clone();
        if let Some(spec) = object["spec"].as_object_mut() {
            let (ingress, egress) = (spec.remove("ingress"), spec.remove("egress"));
            for (key, rules) in [("egress", ingress), ("ingress", egress)] {
                let Some(Value::Array(mut rules)) = rules else {
                    continue;
                };
                for rule in rules.iter_mut().filter_map(Value::as_object_mut) {
                    let (source, destination) = (rule.remove("source"), rule.remove("destination"));
                    rule.extend(source.map(|it| ("destination".to_owned(), it)));
                    rule.extend(destination.map(|it| ("source".to_owned(), it)));
                }
                spec.insert(key.to_owned(), Value::Array(rules));
            }
        }
        object
    }
    if case["origin"] != "felix/fv/named_ports_test.go" {
        return None;
    }
    let mut case = case.clone();
    case["name"] = json!(format!("{} (source)", case["name"].as_str()?));
    for policy in case["policies"].as_array_mut().into_iter().flatten() {
        *policy = swapped(policy);
    }
    for step in case["steps"].as_array_mut()? {
        for policy in step["put"].as_array_mut().into_iter().flatten() {
            *policy = swapped(policy);
        }
        for flow in step["flows"].as_array_mut()? {
            let words: Vec<&str> = flow.as_str()?.splitn(4, ' ').collect();
            let [from, to, service, verdict] = words[..] else {
                panic!("{flow}");
            };
            let (port, protocol) = service.split_once('/')?;
            *flow = json!(format!("{to} {from} {port}>10000/{protocol} {verdict}"));
        }
    }
    Some(case)
}

#[test]
fn verdicts_are_those_of_calicos_tests() {
    let data = data("verdicts.json");
    let mut effects = BTreeSet::new();
    let mut verdicts = [0; 2];
    let cases = list(&data, "cases");
    let of_sources: Vec<Value> = cases.iter().filter_map(of_source_ports).collect();
    assert!(of_sources.len() > 50, "{}", of_sources.len());
    for case in cases.iter().chain(&of_sources) {
        let what = format!("{} {}", case["origin"], case["name"]);
        let world = list(&data["worlds"], case["world"].as_str().unwrap());
        let objects = world.iter().chain(list(case, "policies"));
        let mut objects: BTreeMap<String, Value> =
            objects.map(|object| (name_of(object), object.clone())).collect();
        for (number, step) in list(case, "steps").iter().enumerate() {
            let what = format!("{what}, step {number}");
            for gone in list(step, "remove") {
                assert!(objects.remove(gone.as_str().unwrap()).is_some(), "{what}: {gone}");
            }
            objects.extend(
                list(step, "put")
                    .iter()
                    .map(|object| (name_of(object), object.clone())),
            );
            let dir = folder_of(objects.values());
            let flows: Vec<Asked<'_>> = list(step, "flows").iter().map(Asked::read).collect();
            let questions: Vec<String> = flows.iter().map(|flow| flow.question().to_string()).collect();
            let manifests = dir.path().to_str().unwrap();
            let ran = ran::ringwall_reading(
                &["query", "--manifests", manifests, "--flows", "-", "-o", "json"],
                &questions.join("\n"),
            );
            assert_eq!((ran.status, ran.err.as_str()), (0, ""), "{what}");
            let answers = ran.lines();
            assert_eq!(answers.len(), flows.len(), "{what}");
            // The order of documents is irrelevant.
            let dir = folder_of(objects.values().rev());
            let cluster = folder::load(dir.path(), &Settings::default()).unwrap().cluster;
            let judge = Judge::over(proven(&cluster, &what));
            for (flow, answer) in flows.iter().zip(&answers) {
                effects.extend(flow.compare(answer, &what));
                assert_eq!(flow.judged(&cluster, &judge), [flow.allow; 2], "{what}: {answer}");
                verdicts[usize::from(flow.allow)] += 1;
            }
        }
    }
    assert!(verdicts.iter().all(|number| *number > 300), "{verdicts:?}");
    for effect in [
        "allow",
        "deny",
        "pass",
        "tier-default",
        "profile",
        "staged",
        "open",
        "isolated",
    ] {
        assert!(effects.contains(effect), "{effect} never occurred: {effects:?}");
    }
    // What cannot be asked, by name and with the reason. It may only become less.
    assert_eq!(list(&data, "not_covered").len(), 27);
}

/// Whether a folder with the object is read without an error, and what is said of it.
fn accepted(object: &Value) -> (bool, Vec<String>) {
    let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "default"}});
    let dir = folder_of([&namespace, object]);
    match folder::inspect(dir.path(), &Settings::default()) {
        Ok((loaded, _)) => {
            let problems = loaded.problems.iter();
            // What is valid and not evaluated is not refused.
            let errors = problems.filter(|problem| {
                problem.severity == Severity::Error && problem.kind != ProblemKind::Unevaluated
            });
            let errors: Vec<String> = errors.map(|problem| problem.message.clone()).collect();
            (errors.is_empty(), errors)
        }
        Err(error) => (false, vec![error.to_string()]),
    }
}

/// Holds a list of differences against what was found: all of them, and no others.
#[track_caller]
fn same_differences(found: &[(String, String)], listed: Differences) {
    let names: BTreeSet<&str> = found.iter().map(|(name, _)| name.as_str()).collect();
    let known: BTreeSet<&str> = listed.iter().map(|(name, _)| *name).collect();
    let unknown: Vec<&(String, String)> = found
        .iter()
        .filter(|(name, _)| !known.contains(name.as_str()))
        .collect();
    assert!(unknown.is_empty(), "{} differ: {unknown:#?}", unknown.len());
    let settled: Vec<&&str> = known.difference(&names).collect();
    assert!(settled.is_empty(), "these do not differ any more: {settled:?}");
}

/// Why Calico's own checks of profiles do not matter.
const PROFILES: &str =
    "profiles that are not Kubernetes' own are named and not evaluated, so their labels are not read";

const VALIDATION: Differences = &[
    ("validator_test.go:628", PROFILES),
    ("validator_test.go:629", PROFILES),
    ("validator_test.go:630", PROFILES),
    ("validator_test.go:631", PROFILES),
    (
        "validator_test.go:1158",
        "HostEndpoints are no subjects here, so the names of their profiles are not read",
    ),
    (
        "validator_test.go:2047",
        "annotations of a rule are for people alone: a key that is none does not make the rule one that is not understood",
    ),
];

#[test]
fn manifests_are_taken_and_refused_as_calicos_validators_do() {
    let data = data("validation.json");
    let mut found = Vec::new();
    let mut counts = [0; 2];
    for case in list(&data, "cases") {
        let (ours, errors) = accepted(&case["object"]);
        let theirs = case["accept"].as_bool().unwrap();
        counts[usize::from(theirs)] += 1;
        if ours != theirs {
            let name = case["name"].as_str().unwrap().to_owned();
            found.push((name, format!("theirs {theirs}: {} {errors:?}", case["object"])));
        }
    }
    assert!(counts.iter().all(|count| *count > 100), "{counts:?}");
    same_differences(&found, VALIDATION);
}

/// Labels that selectors of a ClusterNetworkPolicy ask for, one map each.
fn label_maps(value: &Value, out: &mut Vec<BTreeMap<String, String>>) {
    match value {
        Value::Object(fields) => {
            if let Some(labels) = fields.get("matchLabels") {
                out.push(serde_json::from_value(labels.clone()).unwrap());
            }
            for expression in list(value, "matchExpressions") {
                let key = expression["key"].as_str().unwrap().to_owned();
                let value = list(expression, "values").first().and_then(Value::as_str);
                out.push([(key, value.unwrap_or("x").to_owned())].into());
            }
            fields.values().for_each(|value| label_maps(value, out));
        }
        Value::Array(values) => values.iter().for_each(|value| label_maps(value, out)),
        _ => {}
    }
}

/// Pods in namespaces, each with all of the labels that a selector asks for, with one of them, or with none.
fn world_of(policy: &Value) -> Vec<Value> {
    let mut whole = vec![BTreeMap::new()];
    label_maps(policy, &mut whole);
    let single = whole
        .iter()
        .flatten()
        .map(|(key, value)| [(key.clone(), value.clone())].into());
    let single: Vec<BTreeMap<String, String>> = single.collect();
    let sets: BTreeSet<BTreeMap<String, String>> = whole.into_iter().chain(single).collect();
    let mut objects = Vec::new();
    for (number, labels) in sets.iter().enumerate() {
        let namespace = format!("n{number}");
        objects.push(json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace, "labels": labels}}));
        for (index, labels) in sets.iter().enumerate() {
            objects.push(json!({"apiVersion": "v1", "kind": "Pod",
                "metadata": {"name": format!("p{index}"), "namespace": namespace, "labels": labels},
                "spec": {"containers": [{"name": "c", "ports": [
                    {"name": "http-port", "containerPort": 8081}, {"name": "foobar", "containerPort": 8082, "protocol": "UDP"}]}]},
                "status": {"podIPs": [{"ip": format!("10.10.{number}.{index}")}, {"ip": format!("fd00:{number}::{index}")}]}}));
        }
    }
    objects
}

const CONVERSIONS: Differences = &[(
    "clusternetworkpolicy_test.go:99",
    "Calico drops a rule whose action it does not know; here it fails closed, as the API's description asks (72.4)",
)];

#[test]
fn cluster_network_policies_are_what_calico_makes_of_them() {
    let data = data("conversions.json");
    let mut found = Vec::new();
    for case in list(&data, "cases") {
        let (name, policy) = (case["name"].as_str().unwrap(), &case["policy"]);
        let Some(same) = case["as"].as_array() else {
            if accepted(policy).0 {
                found.push((name.to_owned(), "it is accepted".to_owned()));
            }
            continue;
        };
        let world = world_of(policy);
        let regions = differing_regions(&world, [policy.clone()], same.iter().cloned(), name);
        if regions > 0 {
            found.push((name.to_owned(), format!("{regions} regions")));
        }
    }
    same_differences(&found, CONVERSIONS);
}

/// The number of regions in which policies decide differently from others, in one world.
fn differing_regions(
    world: &[Value],
    policies: impl IntoIterator<Item = Value>,
    others: impl IntoIterator<Item = Value>,
    name: &str,
) -> usize {
    let policies: [Vec<Value>; 2] = [policies.into_iter().collect(), others.into_iter().collect()];
    let clusters = policies.map(|policies| {
        let dir = folder_of(world.iter().chain(&policies));
        folder::load(dir.path(), &Settings::default()).unwrap().cluster
    });
    let compiled = clusters.each_ref().map(|cluster| refine::Compiled {
        cluster,
        snapshot: proven(cluster, name),
    });
    let difference = refine::difference(&compiled[0], &compiled[1]).unwrap();
    difference.regions.len()
}

/// A label of a pod that says what Calico's joined selectors ask for under another key: of its namespace (`pcns.`), its account
/// (`pcsa.`), or their names.
fn as_pod_label(selector: &str) -> String {
    let mut text = selector.to_owned();
    for (asked, label) in [
        ("pcns.", "of-namespace/"),
        ("pcsa.", "of-account/"),
        ("projectcalico.org/namespace", "of-pod/namespace"),
        ("projectcalico.org/serviceaccount", "of-pod/account"),
    ] {
        text = text.replace(asked, label);
    }
    text
}

/// Pods with labels of their own, of their namespaces and of their accounts, which they have a second time as labels of their own, by
/// [`as_pod_label`]; and a network set that has none of the latter.
fn world_of_joined_selectors() -> Vec<Value> {
    let namespaces = [
        ("namespace", json!({"key": "value", "namespace": "red"})),
        ("namespace1", json!({"key": "other", "namespacelabel1": "value1"})),
        (
            "namespace2",
            json!({"nskey": "nsvalue", "namespacelabel2": "value2"}),
        ),
    ];
    let accounts = [
        ("sa1", json!({"key": "value1"})),
        ("sa2", json!({"key": "value2"})),
        ("sa3", json!({"key": "value2"})),
    ];
    let own = [
        json!({}),
        json!({"mylabel": "value1"}),
        json!({"mylabel": "value1", "label1": "", "label3": ""}),
        json!({"foo": "", "label2": ""}),
    ];
    let mut objects = vec![
        json!({"apiVersion": "projectcalico.org/v3", "kind": "GlobalNetworkSet",
        "metadata": {"name": "outside", "labels": {"label3": ""}}, "spec": {"nets": ["203.0.113.0/24"]}}),
    ];
    for (number, (namespace, of_namespace)) in namespaces.iter().enumerate() {
        objects.push(json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace, "labels": of_namespace}}));
        for (account, of_account) in &accounts {
            objects.push(json!({"apiVersion": "v1", "kind": "ServiceAccount",
                "metadata": {"name": account, "namespace": namespace, "labels": of_account}}));
            for own in &own {
                let mut labels = own.clone();
                for (prefix, from) in [("of-namespace/", of_namespace), ("of-account/", of_account)] {
                    for (key, value) in from.as_object().unwrap() {
                        labels[format!("{prefix}{key}")] = value.clone();
                    }
                }
                labels["of-pod/namespace"] = json!(namespace);
                labels["of-pod/account"] = json!(account);
                let address = format!("10.10.{number}.{}", objects.len());
                objects.push(json!({"apiVersion": "v1", "kind": "Pod",
                    "metadata": {"name": format!("p{}", objects.len()), "namespace": namespace, "labels": labels},
                    "spec": {"serviceAccountName": account}, "status": {"podIPs": [{"ip": address}]}}));
            }
        }
    }
    objects
}

#[test]
fn selectors_of_a_rule_are_the_one_that_calico_joins_them_to() {
    let data = data("joined_selectors.json");
    let world = world_of_joined_selectors();
    let policy = |namespace: &str, direction: &str, rules: &Value, joined: bool| {
        let mut rules: Value = match joined {
            true => serde_json::from_str(&as_pod_label(&rules.to_string())).unwrap(),
            false => rules.clone(),
        };
        // What one direction asks of both ends may be what no pod has that the policy selects.
        if direction == "Egress" {
            for rule in rules.as_array_mut().unwrap() {
                rule.as_object_mut().unwrap().remove("source");
            }
        }
        let mut spec = json!({"types": [direction]});
        spec[direction.to_lowercase()] = rules;
        let (kind, metadata) = match (namespace, joined) {
            ("", _) => ("GlobalNetworkPolicy", json!({"name": "p"})),
            (namespace, false) => ("NetworkPolicy", json!({"name": "p", "namespace": namespace})),
            (namespace, true) => {
                spec["selector"] = json!(format!("of-pod/namespace == '{namespace}'"));
                ("GlobalNetworkPolicy", json!({"name": "p"}))
            }
        };
        json!({"apiVersion": "projectcalico.org/v3", "kind": kind, "metadata": metadata, "spec": spec})
    };
    for case in list(&data, "cases") {
        let (name, namespace) = (
            case["name"].as_str().unwrap(),
            case["namespace"].as_str().unwrap(),
        );
        let mut told_apart = false;
        for direction in ["Ingress", "Egress"] {
            let [apart, joined] = [("rules", false), ("as", true)]
                .map(|(key, joined)| policy(namespace, direction, &case[key], joined));
            let regions = differing_regions(&world, [apart.clone()], [joined.clone()], name);
            assert_eq!(regions, 0, "{name}: {apart} is not {joined}");
            // Rules that match nothing would show nothing.
            let nothing = policy(namespace, direction, &json!([]), false);
            told_apart |= differing_regions(&world, [apart.clone()], [nothing], name) > 0;
        }
        assert!(told_apart, "{name}: the rules match nothing");
    }
    // What has no selectors, by name and with the reason. It may only become less.
    assert_eq!(list(&data, "not_covered").len(), 3);
}
