//! Random events: one object of a cluster comes, goes or changes.

use std::{
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
};

use ipnet::IpNet;
use ringwall_policy::{
    Cluster, NAMESPACE_NAME_LABEL, Namespace, Object, ObjectRef, Operator, Peer, PortMatch, Protocol,
    Requirement, Rule, Selector,
};

use crate::{
    generate::{self, labels},
    random::Random,
};

/// Changes one object; answers what kind of event it was.
pub(crate) fn event(cluster: &mut Cluster, random: &mut Random) -> &'static str {
    match random.below(100) {
        0..=14 => {
            let number = random.below(14);
            cluster.insert(Object::Pod(generate::pod(random, number)));
            "a pod comes or is another"
        }
        15..=24 => {
            let Some(key) = key_of(cluster.pods.keys().cloned(), random) else {
                return "nothing";
            };
            cluster.remove(&ObjectRef::Pod(key));
            "a pod goes"
        }
        25..=59 => pod_changes(cluster, random),
        60..=69 => namespace_changes(cluster, random),
        70..=77 => node_changes(cluster, random),
        78..=86 => {
            let number = random.below(8);
            cluster.insert(Object::NetworkPolicy(generate::policy(random, number)));
            "a policy comes or is another"
        }
        87..=93 => {
            let Some(key) = key_of(cluster.policies.keys().cloned(), random) else {
                return "nothing";
            };
            cluster.remove(&ObjectRef::NetworkPolicy(key));
            "a policy goes"
        }
        94..=95 => policy_changes(cluster, random),
        96..=97 => words_of_its_own(cluster, random),
        _ => {
            cluster.settings.allow_unknown = !cluster.settings.allow_unknown;
            "settings"
        }
    }
}

fn key_of<K: Clone>(keys: impl Iterator<Item = K>, random: &mut Random) -> Option<K> {
    let keys: Vec<K> = keys.collect();
    (!keys.is_empty()).then(|| random.one(&keys).clone())
}

fn pod_changes(cluster: &mut Cluster, random: &mut Random) -> &'static str {
    let Some(key) = key_of(cluster.pods.keys().cloned(), random) else {
        return "nothing";
    };
    let other = generate::pod(random, 0);
    let mut pod = (*cluster.pods[&key]).clone();
    let what = match random.below(10) {
        0 | 1 => {
            pod.labels = other.labels;
            "a pod is relabelled"
        }
        2 => {
            pod.addresses = other.addresses;
            "a pod has other addresses"
        }
        3 => {
            // An address that another pod has.
            let addresses: Vec<_> = cluster.pods.values().flat_map(|pod| &pod.addresses).collect();
            if !addresses.is_empty() {
                pod.addresses.push(**random.one(&addresses));
            }
            "a pod claims a pod's address"
        }
        4 => {
            pod.node = other.node;
            "a pod moves"
        }
        5 => {
            pod.finished = !pod.finished;
            "a pod finishes"
        }
        6 => {
            pod.named_ports = other.named_ports;
            "a pod names other ports"
        }
        7 => {
            pod.host_network = !pod.host_network;
            "a pod changes networks"
        }
        8 => {
            pod.terminating = !pod.terminating;
            "a pod begins to go"
        }
        _ => {
            pod.uid = other.uid;
            pod.created = other.created;
            pod.template_of = other.template_of;
            "a pod is another incarnation"
        }
    };
    if pod.template_of.is_some() {
        pod.addresses.clear(); // a template stands for pods and has none
    }
    cluster.insert(Object::Pod(pod));
    what
}

fn namespace_changes(cluster: &mut Cluster, random: &mut Random) -> &'static str {
    let name = *random.one(&["a", "b", "c", "unseen"]);
    if random.percent(25) {
        cluster.remove(&ObjectRef::Namespace(name.to_owned()));
        return "a namespace goes";
    }
    let mut labels = labels(random, &["team", "env"], &["x", "y", ""]);
    labels.insert(NAMESPACE_NAME_LABEL.to_owned(), name.to_owned());
    cluster.insert(Object::Namespace(Namespace {
        name: name.to_owned(),
        labels,
        terminating: random.percent(20),
    }));
    "a namespace is relabelled"
}

fn node_changes(cluster: &mut Cluster, random: &mut Random) -> &'static str {
    let other = generate::cluster(random);
    let Some(key) = key_of(other.nodes.keys().cloned(), random) else {
        return "nothing";
    };
    if random.percent(30) {
        cluster.remove(&ObjectRef::Node(key));
        return "a node goes";
    }
    let mut node = (*other.nodes[&key]).clone();
    if random.percent(60) {
        node.addresses.truncate(1);
        node.addresses.push(
            (*random.one(&["192.168.0.7", "10.0.0.9", "10.0.0.3"]))
                .parse()
                .expect("an address"),
        );
    }
    cluster.insert(Object::Node(node));
    "a node has other addresses"
}

/// A policy that asks for a label key, a port name and a block that few others ask for comes or goes.
fn words_of_its_own(cluster: &mut Cluster, random: &mut Random) -> &'static str {
    let mut policy = generate::policy(random, 0);
    policy.key.name = "own-words".to_owned();
    if cluster.remove(&ObjectRef::NetworkPolicy(policy.key.clone())) {
        return "a policy with words of its own goes";
    }
    let hash = |operator| Selector {
        requirements: vec![Requirement {
            key: "hash".to_owned(),
            operator,
        }],
    };
    let block: IpAddr = Ipv4Addr::new(10, 0, 0, random.below(16) as u8).into();
    let rule = Rule {
        peers: Some(vec![
            Peer::Pods {
                namespaces: random.percent(50).then(Selector::default),
                pods: hash(match random.percent(50) {
                    true => Operator::Exists,
                    false => Operator::DoesNotExist,
                }),
            },
            Peer::Block {
                cidr: IpNet::new(block, *random.one(&[30, 31, 32]))
                    .expect("a length")
                    .trunc(),
                except: Vec::new(),
            },
        ]),
        ports: Some(vec![PortMatch::Named {
            protocol: Protocol::Tcp,
            name: "http2".to_owned(),
        }]),
    };
    policy.faults.clear();
    policy.subjects = match random.percent(50) {
        true => hash(Operator::Exists),
        false => Selector::default(),
    };
    policy.ingress = Some(vec![rule.clone()]);
    policy.egress = random.percent(50).then(|| vec![rule]);
    cluster.insert(Object::NetworkPolicy(policy));
    "a policy with words of its own comes"
}

fn policy_changes(cluster: &mut Cluster, random: &mut Random) -> &'static str {
    let Some(key) = key_of(cluster.policies.keys().cloned(), random) else {
        return "nothing";
    };
    let other = generate::policy(random, 0);
    let mut policy = (*cluster.policies[&key]).clone();
    if random.percent(50) {
        // A policy with faults has no rules, so both come from the other.
        (policy.ingress, policy.egress, policy.faults) = (other.ingress, other.egress, other.faults);
    } else {
        policy.subjects = other.subjects;
    }
    cluster.policies.insert(key, Arc::new(policy));
    "a policy says something else"
}
