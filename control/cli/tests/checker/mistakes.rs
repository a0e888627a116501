//! More mistakes that compilers of network policies make, besides those of the compiler's own test: each reads the
//! objects as the mistake would.

use std::sync::Arc;

use ipnet::{IpNet, Ipv6Net};
use ringwall_policy::{
    Action, AddressSet, Cluster, Conditions, DenialAnswer, KUBE_ADMIN, KUBE_BASELINE, NetworkPolicy, Order,
    Peer, PolicyKind, PortMatch, Protocol, Rule, Selector, TieredPolicy, TieredRule,
};

type Mistake = fn(&mut Cluster);

/// A mistake and its name.
pub(crate) type Mistaken = (&'static str, Mistake);

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

fn tiered(cluster: &mut Cluster, change: impl Fn(&mut TieredPolicy)) {
    let all: Vec<_> = cluster.tiered.values().cloned().collect();
    cluster.tiered.clear();
    for policy in all {
        let mut policy = (*policy).clone();
        change(&mut policy);
        cluster.tiered.insert(policy.id.clone(), Arc::new(policy));
    }
}

fn order(number: f64) -> Order {
    Order::new(number).unwrap_or(Order::LAST)
}

fn lists(cluster: &mut Cluster, change: impl Fn(&mut Vec<TieredRule>)) {
    tiered(cluster, |policy| {
        for rules in [&mut policy.ingress, &mut policy.egress] {
            let mut list = rules.take().unwrap_or_default();
            change(&mut list);
            *rules = (!list.is_empty()).then_some(list);
        }
    });
}

fn ordered(cluster: &mut Cluster, change: impl Fn(&mut TieredRule)) {
    lists(cluster, |rules| rules.iter_mut().for_each(&change));
}

fn named(port: &PortMatch) -> bool {
    matches!(port, PortMatch::Named { .. })
}

/// Every entry of the ports of ordered rules, those that they exclude among them.
fn entries(cluster: &mut Cluster, change: impl Fn(&mut PortMatch)) {
    ordered(cluster, |rule| {
        let own = rule.ports.iter_mut().flatten();
        own.chain(&mut rule.conditions.not_ports).for_each(&change);
    });
}

fn address_sets(cluster: &mut Cluster, change: impl Fn(&mut AddressSet)) {
    let sets = cluster.address_sets.clone();
    for (name, set) in &sets {
        let mut members = AddressSet::clone(set);
        change(&mut members);
        cluster.set_addresses(name, Some(&members));
    }
}

fn actions(cluster: &mut Cluster, from: Action, to: Action) {
    ordered(cluster, |rule| {
        if rule.action == from {
            rule.action = to;
        }
    });
}

/// Every policy answers another way.
pub(crate) fn answers(cluster: &mut Cluster) {
    let other = |answer| match answer {
        None => Some(DenialAnswer::Prohibited),
        Some(_) => None,
    };
    policies(cluster, |policy| policy.answer = other(policy.answer));
    tiered(cluster, |policy| policy.answer = other(policy.answer));
}

/// Mistakes about policies of ordered kinds.
pub(crate) const ORDERED: &[Mistaken] = &[
    ("a rule that denies allows", |cluster| {
        actions(cluster, Action::Deny, Action::Allow);
    }),
    ("a rule that denies passes on", |cluster| {
        actions(cluster, Action::Deny, Action::Pass);
    }),
    ("a rule that allows denies", |cluster| {
        actions(cluster, Action::Allow, Action::Deny);
    }),
    ("a rule that allows passes on", |cluster| {
        actions(cluster, Action::Allow, Action::Pass);
    }),
    ("a rule that passes on allows", |cluster| {
        actions(cluster, Action::Pass, Action::Allow);
    }),
    ("a rule that passes on denies", |cluster| {
        actions(cluster, Action::Pass, Action::Deny);
    }),
    ("a rule that passes on is not seen", |cluster| {
        ordered(cluster, |rule| {
            if rule.action == Action::Pass {
                rule.peers = Some(Vec::new());
            }
        });
    }),
    ("passing on ends with the policy", |cluster| {
        // What comes after is asked, but for its own policy's rules.
        lists(cluster, |rules| {
            if let Some(at) = rules.iter().position(|rule| rule.action == Action::Pass) {
                let TieredRule { peers, ports, .. } = &rules[at];
                if peers.is_none() && ports.is_none() {
                    rules.truncate(at);
                }
            }
        });
    }),
    ("of two rules the last one decides", |cluster| {
        lists(cluster, |rules| rules.reverse());
    }),
    ("the first rule is dropped", |cluster| {
        lists(cluster, |rules| {
            drop((!rules.is_empty()).then(|| rules.remove(0)))
        });
    }),
    ("the last rule is dropped", |cluster| {
        lists(cluster, |rules| drop(rules.pop()));
    }),
    ("great priorities come first", |cluster| {
        tiered(cluster, |policy| {
            policy.order = order(1000.0 - policy.order.number())
        });
    }),
    ("priorities do not matter", |cluster| {
        tiered(cluster, |policy| policy.order = order(0.0));
    }),
    ("equal priorities are in the wrong order", |cluster| {
        let ids: Vec<_> = cluster.tiered.keys().cloned().collect();
        let mut names: Vec<_> = ids
            .iter()
            .map(|id| (format!("{}//{}", id.name, id.kind.name()), id))
            .collect();
        names.sort();
        for ((_, id), rank) in names.into_iter().rev().zip(0..) {
            if let Some(policy) = cluster.tiered.get_mut(id) {
                let policy = Arc::make_mut(policy);
                policy.order = order(policy.order.number() * 60.0 + f64::from(rank));
            }
        }
    }),
    ("the Admin tier comes after NetworkPolicies", |cluster| {
        tiered(cluster, |policy| policy.tier = KUBE_BASELINE.to_owned());
    }),
    ("the Baseline tier comes before NetworkPolicies", |cluster| {
        tiered(cluster, |policy| policy.tier = KUBE_ADMIN.to_owned());
    }),
    ("tiers are mixed up", |cluster| {
        tiered(cluster, |policy| {
            let tier = match policy.tier.as_str() {
                KUBE_ADMIN => KUBE_BASELINE,
                _ => KUBE_ADMIN,
            };
            policy.tier = tier.to_owned();
        });
    }),
    ("ordered policies select pods of every namespace", |cluster| {
        tiered(cluster, |policy| {
            for subjects in &mut policy.subjects {
                subjects.namespaces = Selector::default();
            }
        });
    }),
    ("ordered policies select every pod of a namespace", |cluster| {
        tiered(cluster, |policy| {
            for subjects in &mut policy.subjects {
                subjects.pods = Selector::default();
            }
        });
    }),
    ("ordered policies isolate", |cluster| {
        lists(cluster, |rules| {
            if !rules.is_empty() {
                rules.push(TieredRule {
                    continues: false,
                    action: Action::Deny,
                    peers: None,
                    ports: None,
                    conditions: Conditions::NONE,
                });
            }
        });
    }),
    ("ordered policies without rules isolate", |cluster| {
        lists(cluster, |rules| {
            if rules.is_empty() {
                rules.push(TieredRule {
                    continues: false,
                    action: Action::Deny,
                    peers: None,
                    ports: None,
                    conditions: Conditions::NONE,
                });
            }
        });
    }),
    (
        "an ordered rule without known peers matches everyone",
        |cluster| {
            ordered(cluster, |rule| drop(rule.peers.take_if(|peers| peers.is_empty())));
        },
    ),
    (
        "an ordered rule without known ports matches every port",
        |cluster| {
            ordered(cluster, |rule| drop(rule.ports.take_if(|ports| ports.is_empty())));
        },
    ),
    ("ports of ordered rules are ignored", |cluster| {
        ordered(cluster, |rule| rule.ports = None);
    }),
    ("peers of ordered rules are ignored", |cluster| {
        ordered(cluster, |rule| rule.peers = None);
    }),
    ("what a peer has to be besides is ignored", |cluster| {
        ordered(cluster, |rule| rule.conditions.peer.clear());
    }),
    ("what a selected pod has to be is ignored", |cluster| {
        ordered(cluster, |rule| rule.conditions.own.clear());
    }),
    ("what a selected pod has to be is asked of the peer", |cluster| {
        ordered(cluster, |rule| {
            let own = std::mem::take(&mut rule.conditions.own);
            rule.conditions.peer.extend(own);
        });
    }),
    ("what a peer has to be is asked of the selected pod", |cluster| {
        ordered(cluster, |rule| {
            let peer = std::mem::take(&mut rule.conditions.peer);
            rule.conditions.own.extend(peer);
        });
    }),
    ("what must not be has to be", |cluster| {
        ordered(cluster, |rule| {
            let conditions = &mut rule.conditions;
            for condition in conditions.peer.iter_mut().chain(&mut conditions.own) {
                condition.negated = false;
            }
        });
    }),
    ("of two conditions one is enough", |cluster| {
        ordered(cluster, |rule| {
            rule.conditions.peer.truncate(1);
            rule.conditions.own.truncate(1);
        });
    }),
    ("one more block is none of those that must not be", |cluster| {
        ordered(cluster, |rule| {
            for condition in &mut rule.conditions.peer {
                if condition.negated {
                    condition.any.pop();
                }
            }
        });
    }),
    ("ports that a rule excludes are ignored", |cluster| {
        ordered(cluster, |rule| rule.conditions.not_ports.clear());
    }),
    ("ports that a rule excludes are its ports", |cluster| {
        ordered(cluster, |rule| {
            let excluded = std::mem::take(&mut rule.conditions.not_ports);
            if !excluded.is_empty() {
                rule.ports = Some(excluded);
            }
        });
    }),
    ("excluded names of ports are ignored", |cluster| {
        ordered(cluster, |rule| {
            rule.conditions.not_ports.retain(|port| !named(port));
        });
    }),
    ("excluded protocols without ports are ignored", |cluster| {
        ordered(cluster, |rule| {
            let portless = |port: &PortMatch| matches!(port, PortMatch::IpProtocol(_));
            rule.conditions.not_ports.retain(|port| !portless(port));
        });
    }),
    ("a rule has no alternatives", |cluster| {
        lists(cluster, |rules| rules.retain(|rule| !rule.continues));
    }),
    ("an alternative is a rule of its own", |cluster| {
        ordered(cluster, |rule| rule.continues = false);
    }),
    ("source ports are ignored", |cluster| {
        ordered(cluster, |rule| rule.conditions.source_ports = None);
    }),
    ("the last source port of a range is left out", |cluster| {
        ordered(cluster, |rule| {
            for port in rule.conditions.source_ports.iter_mut().flatten() {
                if let PortMatch::Range { lo, hi, .. } = port {
                    *hi = (*hi - u16::from(*hi > 0)).max(*lo);
                }
            }
        });
    }),
    ("source ports are those of the destination", |cluster| {
        ordered(cluster, |rule| {
            if let Some(ports) = rule.conditions.source_ports.take() {
                rule.ports = Some(ports);
            }
        });
    }),
    ("names among source ports match nothing", |cluster| {
        ordered(cluster, |rule| {
            if let Some(ports) = &mut rule.conditions.source_ports {
                ports.retain(|port| !named(port));
            }
        });
    }),
    ("a source port's name is every port", |cluster| {
        ordered(cluster, |rule| {
            for port in rule.conditions.source_ports.iter_mut().flatten() {
                if let PortMatch::Named { protocol, .. } = port {
                    *port = PortMatch::All(*protocol);
                }
            }
        });
    }),
    ("source ports that a rule excludes are ignored", |cluster| {
        ordered(cluster, |rule| rule.conditions.not_source_ports.clear());
    }),
    (
        "names among source ports that a rule excludes are ignored",
        |cluster| {
            ordered(cluster, |rule| {
                rule.conditions.not_source_ports.retain(|port| !named(port));
            });
        },
    ),
    (
        "source ports that a rule excludes are its source ports",
        |cluster| {
            ordered(cluster, |rule| {
                let excluded = std::mem::take(&mut rule.conditions.not_source_ports);
                if !excluded.is_empty() {
                    rule.conditions.source_ports = Some(excluded);
                }
            });
        },
    ),
    ("a type of ICMP is all of ICMP", |cluster| {
        entries(cluster, |entry| {
            if let PortMatch::Icmp { protocol, .. } = entry {
                *entry = PortMatch::IpProtocol(*protocol);
            }
        });
    }),
    ("codes of ICMP are ignored", |cluster| {
        entries(cluster, |entry| {
            if let PortMatch::Icmp { code, .. } = entry {
                *code = None;
            }
        });
    }),
    ("types of ICMP are those of ICMPv6", |cluster| {
        entries(cluster, |entry| {
            if let PortMatch::Icmp { protocol, .. } = entry {
                *protocol = 58;
            }
        });
    }),
    ("excluded types of ICMP are ignored", |cluster| {
        ordered(cluster, |rule| {
            let of_type = |port: &PortMatch| matches!(port, PortMatch::Icmp { .. });
            rule.conditions.not_ports.retain(|port| !of_type(port));
        });
    }),
    ("a port name that a destination lacks is every port", |cluster| {
        ordered(cluster, |rule| {
            for port in rule.ports.iter_mut().flatten() {
                if let PortMatch::Named { protocol, .. } = port {
                    *port = PortMatch::All(*protocol);
                }
            }
        });
    }),
    ("ordered policies are the mirror of themselves", |cluster| {
        tiered(cluster, |policy| {
            std::mem::swap(&mut policy.ingress, &mut policy.egress)
        });
    }),
    ("ordered policies of one tier vanish", |cluster| {
        let stays = |tier: &str| tier == KUBE_ADMIN;
        let all = std::mem::take(&mut cluster.tiered);
        cluster.tiered = all
            .into_iter()
            .filter(|(_, policy)| stays(&policy.tier))
            .collect();
    }),
    ("reasons count rules from one", |cluster| {
        lists(cluster, |rules| {
            if !rules.is_empty() {
                rules.insert(
                    0,
                    TieredRule {
                        continues: false,
                        action: Action::Deny,
                        peers: Some(Vec::new()),
                        ports: None,
                        conditions: Conditions::NONE,
                    },
                );
            }
        });
    }),
    ("reasons name another kind", |cluster| {
        tiered(cluster, |policy| {
            // One that ties just as well.
            if policy.id.kind == PolicyKind::AdminNetworkPolicy {
                policy.id.kind = PolicyKind::ClusterNetworkPolicy;
            }
        });
    }),
    ("an address set is without its last member", |cluster| {
        address_sets(cluster, |members| {
            members.remove_max();
        });
    }),
    ("an address set holds no address", |cluster| {
        cluster.address_sets.clear()
    }),
    ("all address sets are one", |cluster| {
        let all = cluster.address_sets.values().flat_map(|set| set.iter().copied());
        let all: AddressSet = all.collect();
        address_sets(cluster, |members| *members = all.clone());
    }),
    ("a member inside another one takes it away", |cluster| {
        address_sets(cluster, |members| {
            let nested = |net: &IpNet| members.iter().any(|other| other != net && other.contains(net));
            let nested: Vec<IpNet> = members.iter().filter(|net| nested(net)).copied().collect();
            let stays = |net: &&IpNet| !nested.iter().any(|inner| net.contains(inner));
            *members = members.iter().filter(stays).copied().collect();
        });
    }),
    ("members of address sets are of IPv4 alone", |cluster| {
        address_sets(cluster, |members| {
            *members = members
                .iter()
                .filter(|net| matches!(net, IpNet::V4(_)))
                .copied()
                .collect();
        });
    }),
    ("none of an address set is everybody", |cluster| {
        ordered(cluster, |rule| {
            let conditions = &mut rule.conditions;
            for condition in conditions.peer.iter_mut().chain(&mut conditions.own) {
                condition
                    .any
                    .retain(|peer| !matches!(peer, Peer::Addresses(_)) || !condition.negated);
            }
        });
    }),
    ("an address set that is not there is everybody", |cluster| {
        let everywhere: AddressSet = ["0.0.0.0/0", "::/0"]
            .map(|net| net.parse::<IpNet>().unwrap())
            .into_iter()
            .collect();
        cluster.set_addresses("not there", Some(&everywhere));
    }),
];

pub(crate) const MISTAKES: &[Mistaken] = &[
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
            PortMatch::IpProtocol(_) | PortMatch::Icmp { .. } => {}
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
