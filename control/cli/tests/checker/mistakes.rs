//! More mistakes that compilers of network policies make, besides those of the compiler's own test: each reads the
//! objects as the mistake would.

use std::sync::Arc;

use ipnet::{IpNet, Ipv6Net};
use ringwall_policy::{Cluster, NetworkPolicy, Peer, PortMatch, Protocol, Rule, Selector};

type Mistake = fn(&mut Cluster);

fn policies(cluster: &mut Cluster, change: impl Fn(&mut NetworkPolicy)) {
    let keys: Vec<_> = cluster.policies.keys().cloned().collect();
    for key in keys {
        if let Some(policy) = cluster.policies.get_mut(&key) {
            change(Arc::make_mut(policy));
        }
    }
}

fn rules(cluster: &mut Cluster, change: impl Fn(&mut Rule)) {
    policies(cluster, |policy| {
        let both = policy.ingress.iter_mut().chain(&mut policy.egress);
        both.flatten().for_each(&change);
    });
}

fn ports(cluster: &mut Cluster, change: impl Fn(&mut PortMatch)) {
    rules(cluster, |rule| rule.ports.iter_mut().flatten().for_each(&change));
}

fn peers(cluster: &mut Cluster, change: impl Fn(&mut Peer)) {
    rules(cluster, |rule| rule.peers.iter_mut().flatten().for_each(&change));
}

pub(crate) const MISTAKES: &[(&str, Mistake)] = &[
    ("an empty selector selects nothing", |cluster| {
        let keys: Vec<_> = cluster.policies.keys().cloned().collect();
        for key in keys {
            let empty = cluster.policies[&key].subjects == Selector::default();
            if empty {
                cluster.policies.remove(&key);
            }
        }
    }),
    ("an empty peer selector selects nothing", |cluster| {
        rules(cluster, |rule| {
            if let Some(peers) = &mut rule.peers {
                peers.retain(|peer| !matches!(peer, Peer::Pods { pods, .. } if pods.requirements.is_empty()));
            }
        });
    }),
    ("peers and ports are alternatives", |cluster| {
        policies(cluster, |policy| {
            for rules in policy.ingress.iter_mut().chain(&mut policy.egress) {
                let split = rules.drain(..).flat_map(|rule| match rule {
                    Rule {
                        peers: Some(peers),
                        ports: Some(ports),
                    } => vec![
                        Rule {
                            peers: Some(peers),
                            ports: None,
                        },
                        Rule {
                            peers: None,
                            ports: Some(ports),
                        },
                    ],
                    rule => vec![rule],
                });
                *rules = split.collect();
            }
        });
    }),
    ("namespace and pod selectors are alternatives", |cluster| {
        rules(cluster, |rule| {
            if let Some(peers) = &mut rule.peers {
                let more: Vec<Peer> = peers
                    .iter()
                    .filter_map(|peer| match peer {
                        Peer::Pods {
                            namespaces: Some(namespaces),
                            ..
                        } => Some(Peer::Pods {
                            namespaces: Some(namespaces.clone()),
                            pods: Selector::default(),
                        }),
                        _ => None,
                    })
                    .collect();
                peers.extend(more);
            }
        });
    }),
    ("policyTypes defaults to both directions", |cluster| {
        policies(cluster, |policy| {
            policy.egress.get_or_insert_default();
        });
    }),
    ("policyTypes is ignored: rules isolate", |cluster| {
        policies(cluster, |policy| {
            policy.ingress.get_or_insert_default();
        });
    }),
    ("SCTP is TCP", |cluster| {
        ports(cluster, |port| match port {
            PortMatch::All(of)
            | PortMatch::Range { protocol: of, .. }
            | PortMatch::Named { protocol: of, .. } => {
                if *of == Protocol::Sctp {
                    *of = Protocol::Tcp;
                }
            }
        });
    }),
    ("an IPv4 block is the last bits of an IPv6 one", |cluster| {
        peers(cluster, |peer| {
            if let Peer::Block {
                cidr: cidr @ IpNet::V4(_),
                except,
            } = peer
            {
                let IpNet::V4(v4) = *cidr else { return };
                if let Ok(mapped) = Ipv6Net::new(v4.network().to_ipv6_compatible(), v4.prefix_len() + 96) {
                    *cidr = mapped.into();
                    except.clear();
                }
            }
        });
    }),
    ("an IPv4-mapped block is all of IPv6", |cluster| {
        peers(cluster, |peer| {
            if let Peer::Block {
                cidr: cidr @ IpNet::V4(_),
                except,
            } = peer
                && cidr.prefix_len() > 24
            {
                if let Ok(all) = "::/0".parse() {
                    *cidr = all;
                }
                except.clear();
            }
        });
    }),
    ("ranges begin one port late", |cluster| {
        ports(cluster, |port| {
            if let PortMatch::Range { lo, hi, .. } = port
                && lo < hi
            {
                *lo += 1;
            }
        });
    }),
    ("endPort is one too many", |cluster| {
        ports(cluster, |port| {
            if let PortMatch::Range { hi, .. } = port {
                *hi = hi.saturating_add(1);
            }
        });
    }),
    ("a port name means the source's port", |cluster| {
        // As if each destination had the names of another pod.
        let keys: Vec<_> = cluster.pods.keys().cloned().collect();
        let names: Vec<_> = cluster.pods.values().map(|pod| pod.named_ports.clone()).collect();
        for (key, names) in keys.iter().zip(names.into_iter().cycle().skip(1)) {
            if let Some(pod) = cluster.pods.get_mut(key) {
                Arc::make_mut(pod).named_ports = names;
            }
        }
    }),
    ("subjects are taken from every namespace", |cluster| {
        let everywhere: Vec<_> = cluster.policies.values().cloned().collect();
        for policy in everywhere {
            for namespace in ["a", "b", "c"] {
                let mut copy = (*policy).clone();
                copy.key.namespace = namespace.to_owned();
                copy.key.name.push_str("-copy");
                cluster.policies.insert(copy.key.clone(), Arc::new(copy));
            }
        }
    }),
    ("reasons name the policy after", |cluster| {
        // Verdicts stay: only the order of names is another.
        let all: Vec<_> = cluster.policies.values().cloned().collect();
        for policy in &all {
            cluster.policies.remove(&policy.key);
        }
        for (policy, number) in all.iter().rev().zip(0..) {
            let mut copy = (**policy).clone();
            copy.key.name = format!("policy{number}");
            cluster.policies.insert(copy.key.clone(), Arc::new(copy));
        }
    }),
    ("unknown endpoints are what they are not", |cluster| {
        cluster.settings.allow_unknown ^= true;
    }),
    ("a node hosts no pod", |cluster| {
        let keys: Vec<_> = cluster.pods.keys().cloned().collect();
        for key in keys {
            if let Some(pod) = cluster.pods.get_mut(&key) {
                Arc::make_mut(pod).node = None;
            }
        }
    }),
];
