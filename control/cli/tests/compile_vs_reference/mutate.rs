//! Clusters made from others: smaller, reworded, misread, a moment later.

use std::sync::Arc;

use imbl::OrdMap;
use ipnet::IpNet;
use ringwall_policy::{
    Cluster, Namespace, NetworkPolicy, Object, ObjectKey, Operator, Peer, Pod, PortMatch, Protocol,
    Requirement, Rule, Selector,
};

use crate::{
    compare::{Compiled, Difference, Outcomes, first_difference},
    generate::{self, Flow},
    random::Random,
};

/// Takes objects and parts of policies away as long as the flow's answers differ.
pub(crate) fn shrink(mut cluster: Cluster, mut difference: Difference) -> (Cluster, Difference) {
    let flow = difference.flow.clone();
    loop {
        let smaller = smaller(&cluster).into_iter().find_map(|smaller| {
            let compiled = Compiled::of(&smaller);
            let flows: &[Flow] = std::slice::from_ref(&flow);
            let difference = first_difference(&smaller, &compiled, flows, &mut Outcomes::default())?;
            Some((smaller, difference))
        });
        match smaller {
            Some(found) => (cluster, difference) = found,
            None => return (cluster, difference),
        }
    }
}

fn smaller(cluster: &Cluster) -> Vec<Cluster> {
    let mut all = Vec::new();
    for key in cluster.pods.keys() {
        let mut less = cluster.clone();
        less.pods.remove(key);
        all.push(less);
    }
    for key in cluster.policies.keys() {
        let mut less = cluster.clone();
        less.policies.remove(key);
        all.push(less);
    }
    for key in cluster.nodes.keys() {
        let mut less = cluster.clone();
        less.nodes.remove(key);
        all.push(less);
    }
    for (key, policy) in &cluster.policies {
        let mut put = |policy: NetworkPolicy| {
            let mut less = cluster.clone();
            less.policies.insert(key.clone(), Arc::new(policy));
            all.push(less);
        };
        for ingress in [true, false] {
            let rules = if ingress { &policy.ingress } else { &policy.egress };
            for (at, rule) in rules.iter().flatten().enumerate() {
                let mut with = |change: &dyn Fn(&mut Vec<Rule>)| {
                    let mut policy = (**policy).clone();
                    let rules = if ingress {
                        &mut policy.ingress
                    } else {
                        &mut policy.egress
                    };
                    change(rules.as_mut().expect("it has rules"));
                    put(policy);
                };
                with(&|rules| drop(rules.remove(at)));
                if rule.peers.is_some() {
                    with(&|rules| rules[at].peers = None);
                }
                if rule.ports.is_some() {
                    with(&|rules| rules[at].ports = None);
                }
                for peer in 0..rule.peers.as_ref().map_or(0, Vec::len) {
                    with(&|rules| drop(rules[at].peers.as_mut().expect("it has peers").remove(peer)));
                }
            }
        }
    }
    all
}

/// The same objects in another order of events.
pub(crate) fn rebuilt(cluster: &Cluster, random: &mut Random) -> Cluster {
    let mut objects: Vec<Object> = Vec::new();
    objects.extend(
        cluster
            .namespaces
            .values()
            .map(|it| Object::Namespace((**it).clone())),
    );
    objects.extend(cluster.nodes.values().map(|it| Object::Node((**it).clone())));
    objects.extend(cluster.pods.values().map(|it| Object::Pod((**it).clone())));
    objects.extend(
        cluster
            .policies
            .values()
            .map(|it| Object::NetworkPolicy((**it).clone())),
    );
    random.shuffle(&mut objects);
    let mut rebuilt = Cluster {
        settings: cluster.settings.clone(),
        ..Cluster::default()
    };
    for object in &objects {
        if let Object::Pod(pod) = object {
            // It had other labels at first, and another pod was there for a while.
            let mut young = pod.clone();
            young.labels.insert("app".to_owned(), "young".to_owned());
            rebuilt.insert(Object::Pod(young));
        }
        rebuilt.insert(object.clone());
    }
    let (with_another, key) = with_another_pod(&rebuilt);
    rebuilt = with_another;
    rebuilt.pods.remove(&key);
    rebuilt
}

/// The same meaning in other words: requirements, peers, ports and exceptions in another order, and some twice.
pub(crate) fn reworded(cluster: &Cluster) -> Cluster {
    fn selector(selector: &mut Selector) {
        selector.requirements.reverse();
        let again = selector.requirements.first().cloned();
        selector.requirements.extend(again);
    }
    edit(cluster, |policy| {
        selector(&mut policy.subjects);
        for rule in policy.ingress.iter_mut().chain(&mut policy.egress).flatten() {
            for peers in rule.peers.iter_mut() {
                peers.reverse();
                let again = peers.first().cloned();
                peers.extend(again);
                for peer in peers {
                    match peer {
                        Peer::Pods { namespaces, pods } => {
                            selector(pods);
                            namespaces.iter_mut().for_each(selector);
                        }
                        Peer::Block { except, .. } => {
                            except.reverse();
                            let again = except.first().copied();
                            except.extend(again);
                        }
                        Peer::Addresses(_) => {}
                    }
                }
            }
            for ports in rule.ports.iter_mut() {
                ports.reverse();
                let again = ports.first().cloned();
                ports.extend(again);
            }
        }
    })
}

fn edit(cluster: &Cluster, change: impl Fn(&mut NetworkPolicy)) -> Cluster {
    let mut edited = cluster.clone();
    each(&mut edited.policies, change);
    edited
}

/// Changes every object of a map.
fn each<K: Ord + Clone, V: Clone>(map: &mut OrdMap<K, Arc<V>>, change: impl Fn(&mut V)) {
    *map = map
        .iter()
        .map(|(key, value)| {
            let mut value = Arc::clone(value);
            change(Arc::make_mut(&mut value));
            (key.clone(), value)
        })
        .collect();
}

/// A pod more, with labels of its own, that owns an address without an owner so far.
pub(crate) fn with_another_pod(cluster: &Cluster) -> (Cluster, ObjectKey) {
    let key = ObjectKey {
        namespace: "a".to_owned(),
        name: "another".to_owned(),
    };
    let mut more = cluster.clone();
    more.insert(Object::Pod(Pod {
        uid: "another".to_owned(),
        created: Some(9),
        labels: [
            ("app".to_owned(), "db".to_owned()),
            ("tier".to_owned(), "new".to_owned()),
        ]
        .into(),
        addresses: vec!["10.0.0.200".parse().expect("an address")],
        node: Some("n1".to_owned()),
        ..Pod::new(key.clone())
    }));
    (more, key)
}

/// One event later.
pub(crate) fn step(cluster: &Cluster, random: &mut Random) -> Cluster {
    let mut next = cluster.clone();
    let other = generate::cluster(random);
    match random.below(5) {
        0 => next.policies = other.policies,
        1 => next.pods = other.pods,
        2 => next.namespaces = other.namespaces,
        3 => next.settings = other.settings,
        _ => {
            if let Some(key) = next.policies.keys().next().cloned() {
                next.policies.remove(&key);
            }
        }
    }
    next
}

type Mistake = fn(&mut Cluster);

fn rules(cluster: &mut Cluster, change: impl Fn(&mut Rule)) {
    each(&mut cluster.policies, |policy| {
        policy
            .ingress
            .iter_mut()
            .chain(&mut policy.egress)
            .flatten()
            .for_each(&change);
    });
}

fn peers(cluster: &mut Cluster, change: impl Fn(&mut Peer)) {
    rules(cluster, |rule| rule.peers.iter_mut().flatten().for_each(&change));
}

fn ports(cluster: &mut Cluster, change: impl Fn(&mut PortMatch)) {
    rules(cluster, |rule| rule.ports.iter_mut().flatten().for_each(&change));
}

fn requirements(cluster: &mut Cluster, change: impl Fn(&mut Vec<Requirement>)) {
    peers(cluster, |peer| {
        if let Peer::Pods { namespaces, pods } = peer {
            change(&mut pods.requirements);
            namespaces
                .iter_mut()
                .for_each(|selector| change(&mut selector.requirements));
        }
    });
}

fn pods(cluster: &mut Cluster, change: impl Fn(&mut Pod)) {
    each(&mut cluster.pods, change);
}

/// Mistakes that compilers of network policies make.
pub(crate) const MISTAKES: &[(&str, Mistake)] = &[
    ("except is ignored", |cluster| {
        peers(cluster, |peer| {
            if let Peer::Block { except, .. } = peer {
                except.clear();
            }
        });
    }),
    ("except is a deny for other rules too", |cluster| {
        let all: Vec<IpNet> = cluster
            .policies
            .values()
            .flat_map(|policy| policy.ingress.iter().chain(&policy.egress).flatten())
            .flat_map(|rule| rule.peers.iter().flatten())
            .flat_map(|peer| match peer {
                Peer::Block { except, .. } => except.clone(),
                Peer::Pods { .. } | Peer::Addresses(_) => Vec::new(),
            })
            .collect();
        peers(cluster, |peer| {
            if let Peer::Block { except, .. } = peer {
                except.extend(&all);
            }
        });
    }),
    ("the longest prefix wins", |cluster| {
        let all: Vec<IpNet> = cluster
            .policies
            .values()
            .flat_map(|policy| policy.ingress.iter().chain(&policy.egress).flatten())
            .flat_map(|rule| rule.peers.iter().flatten())
            .filter_map(|peer| match peer {
                Peer::Block { cidr, .. } => Some(*cidr),
                Peer::Pods { .. } | Peer::Addresses(_) => None,
            })
            .collect();
        peers(cluster, |peer| {
            if let Peer::Block { cidr, except } = peer {
                except.extend(all.iter().filter(|other| *other != cidr && cidr.contains(*other)));
            }
        });
    }),
    ("blocks do not match pods", |cluster| {
        let pods: Vec<IpNet> = cluster
            .pods
            .values()
            .flat_map(|pod| &pod.addresses)
            .map(|address| (*address).into())
            .collect();
        peers(cluster, |peer| {
            if let Peer::Block { except, .. } = peer {
                except.extend(&pods);
            }
        });
    }),
    ("NotIn needs the key", |cluster| {
        requirements(cluster, |requirements| {
            let also: Vec<_> = requirements
                .iter()
                .filter(|requirement| matches!(requirement.operator, Operator::NotIn(_)))
                .map(|requirement| Requirement {
                    key: requirement.key.clone(),
                    operator: Operator::Exists,
                })
                .collect();
            requirements.extend(also);
        });
    }),
    ("an empty value is an absent key", |cluster| {
        pods(cluster, |pod| pod.labels.retain(|_, value| !value.is_empty()));
    }),
    ("only the first requirement counts", |cluster| {
        requirements(cluster, |requirements| requirements.truncate(1));
    }),
    ("a nil namespaceSelector means every namespace", |cluster| {
        peers(cluster, |peer| {
            if let Peer::Pods { namespaces, .. } = peer {
                namespaces.get_or_insert_with(Selector::default);
            }
        });
    }),
    ("an empty peer list means everyone", |cluster| {
        rules(cluster, |rule| {
            rule.peers.take_if(|peers| peers.is_empty());
        });
    }),
    ("named ports have no protocol", |cluster| {
        ports(cluster, |port| {
            if let PortMatch::Named { protocol, .. } = port {
                *protocol = Protocol::Tcp;
            }
        });
    }),
    ("of two equal port names the last wins", |cluster| {
        pods(cluster, |pod| pod.named_ports.reverse());
    }),
    ("a port name means the Service's port", |cluster| {
        pods(cluster, |pod| {
            pod.named_ports.iter_mut().for_each(|port| port.number ^= 1)
        });
    }),
    ("an unknown port name means every port", |cluster| {
        ports(cluster, |port| {
            if let PortMatch::Named { protocol, name } = port
                && name == "http2"
            {
                *port = PortMatch::All(*protocol);
            }
        });
    }),
    ("endPort is exclusive", |cluster| {
        ports(cluster, |port| {
            if let PortMatch::Range { lo, hi, .. } = port
                && lo < hi
            {
                *hi -= 1;
            }
        });
    }),
    ("a range begins at port 0", |cluster| {
        ports(cluster, |port| {
            if let PortMatch::Range { lo, .. } = port
                && *lo == 1
            {
                *lo = 0;
            }
        });
    }),
    ("a protocol without port means every protocol", |cluster| {
        rules(cluster, |rule| {
            rule.ports
                .take_if(|ports| ports.iter().any(|port| matches!(port, PortMatch::All(_))));
        });
    }),
    ("finished pods keep their addresses", |cluster| {
        pods(cluster, |pod| pod.finished = false);
    }),
    ("pods on the host network are pods", |cluster| {
        pods(cluster, |pod| pod.host_network = false);
    }),
    ("the oldest pod owns a reused address", |cluster| {
        pods(cluster, |pod| pod.created = pod.created.map(|created| -created));
    }),
    ("a pod that is being deleted keeps a reused address", |cluster| {
        pods(cluster, |pod| pod.terminating = false);
    }),
    ("a pod that is being deleted has no policy any more", |cluster| {
        cluster.pods = (cluster.pods.iter())
            .filter(|(_, pod)| !pod.terminating)
            .map(|(key, pod)| (key.clone(), Arc::clone(pod)))
            .collect();
    }),
    ("an unseen namespace has no labels", |cluster| {
        cluster.insert(Object::Namespace(Namespace {
            name: "unseen".to_owned(),
            labels: Default::default(),
            terminating: false,
        }));
    }),
    ("any node may reach any pod", |cluster| {
        pods(cluster, |pod| pod.node = Some("n1".to_owned()));
    }),
    ("IPv4's everything holds IPv6 too", |cluster| {
        rules(cluster, |rule| {
            let Some(peers) = &mut rule.peers else { return };
            let everything = |peer: &Peer| matches!(peer, Peer::Block { cidr: IpNet::V4(cidr), .. } if cidr.prefix_len() == 0);
            if peers.iter().any(everything) {
                let cidr = "::/0".parse().expect("a network");
                peers.push(Peer::Block {
                    cidr,
                    except: Vec::new(),
                });
            }
        });
    }),
    ("peers of neighbouring rules are mixed up", |cluster| {
        each(&mut cluster.policies, |policy| {
            for rules in policy.ingress.iter_mut().chain(&mut policy.egress) {
                if let [first, second, ..] = rules.as_mut_slice() {
                    std::mem::swap(&mut first.peers, &mut second.peers);
                }
            }
        });
    }),
    ("invalid policies vanish", |cluster| {
        cluster.policies = (cluster.policies.iter())
            .filter(|(_, policy)| policy.faults.is_empty())
            .map(|(key, policy)| (key.clone(), Arc::clone(policy)))
            .collect();
    }),
    ("a policy without rules does not isolate", |cluster| {
        each(&mut cluster.policies, |policy| {
            policy.ingress.take_if(|rules| rules.is_empty());
            policy.egress.take_if(|rules| rules.is_empty());
        });
    }),
    ("egress is the mirror of ingress", |cluster| {
        each(&mut cluster.policies, |policy| {
            std::mem::swap(&mut policy.ingress, &mut policy.egress);
        });
    }),
    ("Service addresses in a pod network are outside", |cluster| {
        cluster.settings.pod_cidrs.clear();
        each(&mut cluster.nodes, |node| node.pod_cidrs.clear());
    }),
];
