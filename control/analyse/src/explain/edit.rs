//! Changes of policies and labels: applied to a state, measured, and said.

use std::{collections::BTreeSet, sync::Arc};

use ipnet::IpNet;
use ringwall_policy::{
    Cluster, Labels, NetworkPolicy, ObjectKey, Operator, Peer, PortMatch, Requirement, Rule, Selector,
};
use ringwall_source::decode::join;
use serde_json::{Value, json};

use super::{
    Direction,
    conditions::{labels_words, peer_words, port_words, protocol_words, selector_words},
    report::EditRecord,
    yaml,
};

/// An object that has labels.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Labelled {
    /// A pod or the template of a workload.
    Pod(ObjectKey),
    /// A namespace.
    Namespace(String),
}

/// A rule of a policy.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RulePlace {
    /// The policy.
    pub policy: ObjectKey,
    /// In which list.
    pub direction: Direction,
    /// Its index there.
    pub rule: usize,
}

/// One step of a change. Indices are those of the state before the change: steps that take entries of one list away come
/// last entry first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Edit {
    /// Gives an object a label, or takes it away (None).
    Label {
        /// The object.
        of: Labelled,
        /// The label's key.
        key: String,
        /// Its value from now on.
        value: Option<String>,
    },
    /// Adds an entry to the peers of a rule that has some.
    AddPeer(RulePlace, Peer),
    /// Adds an entry to the ports of a rule that has some.
    AddPort(RulePlace, PortMatch),
    /// Adds a rule to a policy that isolates in the direction.
    AddRule(ObjectKey, Direction, Rule),
    /// Adds an except to a block of a rule.
    AddExcept(RulePlace, usize, IpNet),
    /// Makes a policy.
    AddPolicy(NetworkPolicy),
    /// Takes an entry of a rule's peers away; another one stays.
    RemovePeer(RulePlace, usize),
    /// Takes an entry of a rule's ports away; another one stays.
    RemovePort(RulePlace, usize),
    /// Takes a rule away.
    RemoveRule(RulePlace),
    /// Takes an except of a block away.
    RemoveExcept(RulePlace, usize, IpNet),
    /// Deletes a policy.
    RemovePolicy(ObjectKey),
}

impl Edit {
    /// Applies the step. What it names and is not there stays as it is.
    pub fn apply(&self, cluster: &mut Cluster) {
        match self {
            Self::Label { of, key, value } => relabel(cluster, of, key, value.as_ref()),
            Self::AddPeer(place, peer) => change_rule(cluster, place, |rule| {
                if let Some(peers) = &mut rule.peers {
                    peers.push(peer.clone());
                }
            }),
            Self::AddPort(place, port) => change_rule(cluster, place, |rule| {
                if let Some(ports) = &mut rule.ports {
                    ports.push(port.clone());
                }
            }),
            Self::AddRule(policy, direction, rule) => change_rules(cluster, policy, *direction, |rules| {
                rules.push(rule.clone());
            }),
            Self::AddExcept(place, peer, hole) => change_excepts(cluster, place, *peer, |except| {
                except.push(*hole);
            }),
            Self::AddPolicy(policy) => {
                cluster
                    .policies
                    .insert(policy.key.clone(), Arc::new(policy.clone()));
            }
            Self::RemovePeer(place, peer) => change_rule(cluster, place, |rule| {
                if let Some(peers) = &mut rule.peers
                    && *peer < peers.len()
                {
                    peers.remove(*peer);
                }
            }),
            Self::RemovePort(place, port) => change_rule(cluster, place, |rule| {
                if let Some(ports) = &mut rule.ports
                    && *port < ports.len()
                {
                    ports.remove(*port);
                }
            }),
            Self::RemoveRule(place) => {
                change_rules(cluster, &place.policy, place.direction, |rules| {
                    if place.rule < rules.len() {
                        rules.remove(place.rule);
                    }
                });
                isolate_by_default(cluster, &place.policy);
            }
            Self::RemoveExcept(place, peer, hole) => change_excepts(cluster, place, *peer, |except| {
                except.retain(|other| other != hole);
            }),
            Self::RemovePolicy(policy) => {
                cluster.policies.remove(policy);
            }
        }
    }

    /// How much is written or taken away.
    pub fn size(&self, cluster: &Cluster) -> usize {
        match self {
            Self::Label { .. }
            | Self::AddPort(..)
            | Self::AddExcept(..)
            | Self::RemovePeer(..)
            | Self::RemovePort(..)
            | Self::RemoveExcept(..) => 1,
            Self::AddPeer(_, peer) => peer_size(peer),
            Self::AddRule(_, _, rule) => rule_size(rule),
            Self::AddPolicy(policy) => policy_size(policy),
            Self::RemoveRule(place) => cluster
                .policies
                .get(&place.policy)
                .and_then(|policy| place.direction.rules(policy)?.get(place.rule))
                .map_or(1, rule_size),
            Self::RemovePolicy(policy) => cluster
                .policies
                .get(policy)
                .map_or(1, |policy| policy_size(policy)),
        }
    }

    /// What the step touches, so that of several ways to change one thing only the best is shown.
    pub(super) fn touches(&self) -> String {
        match self {
            Self::Label { of, .. } => format!("label {of:?}"),
            Self::AddPeer(place, _) => format!("add-peer {} {}", place.policy, place.rule),
            Self::AddPort(place, _) => format!("add-port {} {}", place.policy, place.rule),
            Self::AddRule(policy, ..) => format!("add-rule {policy}"),
            Self::AddExcept(place, ..) => format!("add-except {}", place.policy),
            Self::AddPolicy(_) => "add-policy".to_owned(),
            Self::RemovePeer(place, _) => format!("remove-peer {}", place.policy),
            Self::RemovePort(place, _) => format!("remove-port {}", place.policy),
            Self::RemoveRule(place) => format!("remove-rule {}", place.policy),
            Self::RemoveExcept(place, ..) => format!("remove-except {}", place.policy),
            Self::RemovePolicy(policy) => format!("remove-policy {policy}"),
        }
    }

    /// The step as data and in a sentence; `cluster` is the state before.
    pub(super) fn record(&self, cluster: &Cluster) -> EditRecord {
        let policy = |key: &ObjectKey| format!("NetworkPolicy {key}");
        let rule = |place: &RulePlace| {
            format!(
                "{} rule {} of NetworkPolicy {}",
                place.direction, place.rule, place.policy
            )
        };
        let rule_path =
            |place: &RulePlace, rest: &str| Some(format!("spec.{}[{}]{rest}", place.direction, place.rule));
        let (action, object, path, value, text) = match self {
            Self::Label { of, key, value } => return label_record(cluster, of, key, value.as_deref()),
            Self::AddPeer(place, peer) => {
                let value = peer_json(peer);
                let text = format!("add the peer {} to {}", peer_words(peer), rule(place));
                let path = rule_path(place, &format!(".{}", place.direction.peers_key()));
                ("add-peer", policy(&place.policy), path, Some(value), text)
            }
            Self::AddPort(place, port) => {
                let text = format!("add the port {} to {}", port_words(port), rule(place));
                let value = Some(port_json(port));
                (
                    "add-port",
                    policy(&place.policy),
                    rule_path(place, ".ports"),
                    value,
                    text,
                )
            }
            Self::AddRule(key, direction, rule) => {
                let value = rule_json(*direction, rule);
                let text = format!("add an {direction} rule to NetworkPolicy {key}");
                (
                    "add-rule",
                    policy(key),
                    Some(format!("spec.{direction}")),
                    Some(value),
                    text,
                )
            }
            Self::AddExcept(place, peer, hole) => {
                let path = rule_path(
                    place,
                    &format!(".{}[{peer}].ipBlock.except", place.direction.peers_key()),
                );
                let text = format!("add except {hole} to the block in {}", rule(place));
                ("add-except", policy(&place.policy), path, Some(json!(hole)), text)
            }
            Self::AddPolicy(new) => {
                let value = policy_json(new);
                let selects = match new.subjects.requirements.is_empty() {
                    true => "every pod".to_owned(),
                    false => format!("pods with {}", selector_words(&new.subjects)),
                };
                let (types, rules) = match (&new.ingress, &new.egress) {
                    (Some(rules), _) => ("ingress", rules.as_slice()),
                    (None, rules) => ("egress", rules.as_deref().unwrap_or_default()),
                };
                let does = if rules.is_empty() { "isolates" } else { "selects" };
                let text = format!(
                    "create a NetworkPolicy {} that {does} {selects} in {} for {types}",
                    new.key, new.key.namespace
                );
                ("add-policy", policy(&new.key), None, Some(value), text)
            }
            Self::RemovePeer(place, peer) => {
                let at = format!(".{}[{peer}]", place.direction.peers_key());
                let text = format!(
                    "remove {}[{peer}] from {}",
                    place.direction.peers_key(),
                    rule(place)
                );
                (
                    "remove-peer",
                    policy(&place.policy),
                    rule_path(place, &at),
                    None,
                    text,
                )
            }
            Self::RemovePort(place, port) => {
                let text = format!("remove ports[{port}] from {}", rule(place));
                let path = rule_path(place, &format!(".ports[{port}]"));
                ("remove-port", policy(&place.policy), path, None, text)
            }
            Self::RemoveRule(place) => {
                let text = format!("take away {}", rule(place));
                (
                    "remove-rule",
                    policy(&place.policy),
                    rule_path(place, ""),
                    None,
                    text,
                )
            }
            Self::RemoveExcept(place, peer, hole) => {
                let path = rule_path(
                    place,
                    &format!(".{}[{peer}].ipBlock.except", place.direction.peers_key()),
                );
                let text = format!("take except {hole} out of the block in {}", rule(place));
                (
                    "remove-except",
                    policy(&place.policy),
                    path,
                    Some(json!(hole)),
                    text,
                )
            }
            Self::RemovePolicy(key) => {
                let valid = |policy: &Arc<NetworkPolicy>| policy.faults.is_empty();
                let text = if cluster.policies.get(key).is_none_or(valid) {
                    format!("delete NetworkPolicy {key}")
                } else {
                    format!("delete NetworkPolicy {key}, which is invalid, or fix it")
                };
                ("remove-policy", policy(key), None, None, text)
            }
        };
        let yaml = match self {
            Self::AddPolicy(new) => Some(yaml::of(&json!({
                "apiVersion": "networking.k8s.io/v1",
                "kind": "NetworkPolicy",
                "metadata": {"name": new.key.name, "namespace": new.key.namespace},
                "spec": policy_json(new),
            }))),
            // What is added is an entry of the list that the path names.
            Self::AddPeer(..) | Self::AddPort(..) | Self::AddRule(..) | Self::AddExcept(..) => value
                .as_ref()
                .zip(path.as_deref())
                .map(|(value, path)| yaml::at(path, &json!([value]))),
            _ => None,
        };
        EditRecord {
            action: action.to_owned(),
            object,
            path,
            value,
            text,
            yaml,
        }
    }
}

fn label_record(cluster: &Cluster, of: &Labelled, key: &str, value: Option<&str>) -> EditRecord {
    let (object, kind, before) = match of {
        Labelled::Pod(pod) => {
            let found = cluster.pods.get(pod);
            let kind = found.and_then(|pod| pod.template_of.clone());
            let before = found.and_then(|pod| pod.labels.get(key)).cloned();
            let name = format!("{} {pod}", kind.as_deref().unwrap_or("Pod"));
            (name, kind, before)
        }
        Labelled::Namespace(name) => {
            let before = cluster
                .namespaces
                .get(name)
                .and_then(|namespace| namespace.labels.get(key))
                .cloned();
            (format!("Namespace {name}"), None, before)
        }
    };
    let whose = if kind.is_some() {
        "the pod template of "
    } else {
        ""
    };
    let labelled = |value: &str| labels_words(&Labels::from([(key.to_owned(), value.to_owned())]));
    let text = match (value, before) {
        (Some(value), Some(before)) => format!(
            "change label {} to {} on {whose}{object}",
            labelled(&before),
            labelled(value)
        ),
        (Some(value), None) => format!("add label {} to {whose}{object}", labelled(value)),
        (None, _) => format!("remove label {key} from {whose}{object}"),
    };
    let labels_at = match kind.as_deref() {
        None => "metadata.labels",
        Some("CronJob") => "spec.jobTemplate.spec.template.metadata.labels",
        Some(_) => "spec.template.metadata.labels",
    };
    EditRecord {
        action: if value.is_some() {
            "set-label"
        } else {
            "remove-label"
        }
        .to_owned(),
        object,
        path: Some(join(labels_at, key)),
        value: value.map(|value| json!(value)),
        text,
        yaml: value.map(|value| yaml::at(labels_at, &json!({ key: value }))),
    }
}

fn relabel(cluster: &mut Cluster, of: &Labelled, key: &str, value: Option<&String>) {
    let change = |labels: &mut Labels| match value {
        Some(value) => drop(labels.insert(key.to_owned(), value.clone())),
        None => drop(labels.remove(key)),
    };
    match of {
        Labelled::Pod(name) => {
            if let Some(pod) = cluster.pods.get_mut(name) {
                change(&mut Arc::make_mut(pod).labels);
            }
        }
        Labelled::Namespace(name) => {
            if let Some(namespace) = cluster.namespaces.get_mut(name) {
                change(&mut Arc::make_mut(namespace).labels);
            }
        }
    }
}

fn change_rules(
    cluster: &mut Cluster,
    policy: &ObjectKey,
    direction: Direction,
    change: impl FnOnce(&mut Vec<Rule>),
) {
    if let Some(policy) = cluster.policies.get_mut(policy) {
        let policy = Arc::make_mut(policy);
        let rules = match direction {
            Direction::Egress => &mut policy.egress,
            Direction::Ingress => &mut policy.ingress,
        };
        if let Some(rules) = rules {
            change(rules);
        }
    }
}

/// Without policyTypes it is the egress rules that make a policy isolate for egress.
fn isolate_by_default(cluster: &mut Cluster, policy: &ObjectKey) {
    if let Some(policy) = cluster.policies.get_mut(policy)
        && !policy.types_written
        && policy.faults.is_empty()
        && policy.egress.as_ref().is_some_and(Vec::is_empty)
    {
        Arc::make_mut(policy).egress = None;
    }
}

fn change_rule(cluster: &mut Cluster, place: &RulePlace, change: impl FnOnce(&mut Rule)) {
    change_rules(cluster, &place.policy, place.direction, |rules| {
        if let Some(rule) = rules.get_mut(place.rule) {
            change(rule);
        }
    });
}

fn change_excepts(
    cluster: &mut Cluster,
    place: &RulePlace,
    peer: usize,
    change: impl FnOnce(&mut Vec<IpNet>),
) {
    change_rule(cluster, place, |rule| {
        if let Some(Peer::Block { except, .. }) = rule.peers.as_mut().and_then(|peers| peers.get_mut(peer)) {
            change(except);
        }
    });
}

fn peer_size(peer: &Peer) -> usize {
    match peer {
        Peer::Block { except, .. } => 1 + except.len(),
        Peer::Addresses(_) => 1,
        Peer::Pods { namespaces, pods } => {
            let namespaces = namespaces
                .as_ref()
                .map_or(0, |selector| selector.requirements.len().max(1));
            (namespaces + pods.requirements.len()).max(1)
        }
    }
}

fn rule_size(rule: &Rule) -> usize {
    let peers: usize = rule.peers.iter().flatten().map(peer_size).sum();
    1 + peers + rule.ports.as_ref().map_or(0, Vec::len)
}

fn policy_size(policy: &NetworkPolicy) -> usize {
    let rules = policy.ingress.iter().chain(&policy.egress).flatten();
    1 + policy.subjects.requirements.len() + rules.map(rule_size).sum::<usize>()
}

fn selector_json(selector: &Selector) -> Value {
    let mut labels = serde_json::Map::new();
    let mut expressions = Vec::new();
    for Requirement { key, operator } in &selector.requirements {
        let values = |values: &BTreeSet<String>| values.iter().cloned().collect::<Vec<_>>();
        expressions.push(match operator {
            Operator::In(only) if only.len() == 1 && !labels.contains_key(key) => {
                let value = only.first().cloned().unwrap_or_default();
                labels.insert(key.clone(), json!(value));
                continue;
            }
            Operator::In(some) => json!({"key": key, "operator": "In", "values": values(some)}),
            Operator::NotIn(some) => json!({"key": key, "operator": "NotIn", "values": values(some)}),
            Operator::Exists => json!({"key": key, "operator": "Exists"}),
            Operator::DoesNotExist => json!({"key": key, "operator": "DoesNotExist"}),
            // A NetworkPolicy, of which edits are proposed, has no such requirement.
            Operator::Like { .. } => continue,
        });
    }
    let mut out = serde_json::Map::new();
    if !labels.is_empty() {
        out.insert("matchLabels".to_owned(), Value::Object(labels));
    }
    if !expressions.is_empty() {
        out.insert("matchExpressions".to_owned(), Value::Array(expressions));
    }
    Value::Object(out)
}

fn peer_json(peer: &Peer) -> Value {
    match peer {
        Peer::Block { cidr, except } if except.is_empty() => json!({"ipBlock": {"cidr": cidr}}),
        Peer::Block { cidr, except } => json!({"ipBlock": {"cidr": cidr, "except": except}}),
        // A NetworkPolicy, of which edits are proposed, names none.
        Peer::Addresses(_) => json!({}),
        Peer::Pods {
            namespaces: None,
            pods,
        } => json!({"podSelector": selector_json(pods)}),
        Peer::Pods {
            namespaces: Some(namespaces),
            pods,
        } if pods.requirements.is_empty() => json!({"namespaceSelector": selector_json(namespaces)}),
        Peer::Pods {
            namespaces: Some(namespaces),
            pods,
        } => json!({"namespaceSelector": selector_json(namespaces), "podSelector": selector_json(pods)}),
    }
}

fn port_json(port: &PortMatch) -> Value {
    match port {
        PortMatch::All(protocol) => json!({"protocol": protocol_words(*protocol)}),
        PortMatch::Range { protocol, lo, hi } if lo == hi => {
            json!({"protocol": protocol_words(*protocol), "port": lo})
        }
        PortMatch::Range { protocol, lo, hi } => {
            json!({"protocol": protocol_words(*protocol), "port": lo, "endPort": hi})
        }
        PortMatch::Named { protocol, name } => json!({"protocol": protocol_words(*protocol), "port": name}),
        // Nor such a port.
        PortMatch::IpProtocol(_) | PortMatch::Icmp { .. } => Value::Null,
    }
}

fn rule_json(direction: Direction, rule: &Rule) -> Value {
    let mut out = serde_json::Map::new();
    if let Some(peers) = &rule.peers {
        out.insert(
            direction.peers_key().to_owned(),
            peers.iter().map(peer_json).collect(),
        );
    }
    if let Some(ports) = &rule.ports {
        out.insert("ports".to_owned(), ports.iter().map(port_json).collect());
    }
    Value::Object(out)
}

/// The `spec` of a policy.
fn policy_json(policy: &NetworkPolicy) -> Value {
    let mut spec = serde_json::Map::new();
    spec.insert("podSelector".to_owned(), selector_json(&policy.subjects));
    let mut types = Vec::new();
    for (direction, name) in [(Direction::Ingress, "Ingress"), (Direction::Egress, "Egress")] {
        let Some(rules) = direction.rules(policy) else {
            continue;
        };
        types.push(name);
        if !rules.is_empty() {
            let rules = rules.iter().map(|rule| rule_json(direction, rule)).collect();
            spec.insert(direction.to_string(), rules);
        }
    }
    spec.insert("policyTypes".to_owned(), json!(types));
    Value::Object(spec)
}
