//! Where another implementation would decide otherwise. Each is told once, of the first policy that it concerns, with the
//! number of the others: they are about the implementation more than about the policy.

mod tiers;

use ipnet::IpNet;
use ringwall_policy::{Peer, Pod, PortMatch, Protocol};

use super::{
    draft::{Ask, Draft, Shown},
    rules::{self, Rule},
    subject::{Direction, PlacedRule, Policy, Subject},
    witnesses::{Witnesses, address_in},
};
use crate::flow::{EndName, Service};

/// How many ports or ranges the AWS agent keeps for one address.
const AWS_PORTS: usize = 24;

/// How many pods are tried as witnesses at most.
const MOST_PODS: usize = 16;

/// What one policy shows of a difference.
type Look = for<'a> fn(&Subject<'a>, &Policy<'a>, &mut Witnesses<'_>) -> Option<Draft<'a>>;

pub(super) fn lint<'a>(subject: &Subject<'a>, witnesses: &mut Witnesses<'_>, drafts: &mut Vec<Draft<'a>>) {
    let looks: [Look; 8] = [
        blocks_and_pods,
        icmp,
        port_limit,
        sctp,
        fragments,
        established,
        port_ranges,
        longest_prefix,
    ];
    for look in looks {
        let cases: Vec<Draft<'a>> = subject
            .policies
            .iter()
            .filter_map(|policy| look(subject, policy, witnesses))
            .collect();
        drafts.extend(once(cases));
    }
    tiers::lint(subject, witnesses, drafts);
}

/// The first of several cases, with the number of the others.
fn once(cases: Vec<Draft<'_>>) -> Option<Draft<'_>> {
    let more = cases.len().saturating_sub(1);
    let mut draft = cases.into_iter().next()?;
    match more {
        0 => {}
        1 => draft.message.push_str(" (and 1 more policy)"),
        more => draft.message.push_str(&format!(" (and {more} more policies)")),
    }
    Some(draft)
}

fn draft<'a>(
    rule: &'static Rule,
    policy: &Policy<'a>,
    field: impl Into<String>,
    message: impl Into<String>,
    fix: &str,
    asks: impl IntoIterator<Item = Ask>,
) -> Option<Draft<'a>> {
    let draft = Draft::of(rule, policy, field, message, fix).asking(asks);
    (!draft.asks.is_empty()).then_some(draft)
}

/// Pods whose address a block holds.
fn blocks_and_pods<'a>(
    _: &Subject<'a>,
    policy: &Policy<'a>,
    witnesses: &mut Witnesses<'_>,
) -> Option<Draft<'a>> {
    for (placed, index, peer) in policy.all_peers() {
        let Peer::Block { cidr, except } = peer else {
            continue;
        };
        let us = witnesses.subject(policy.namespace(), &policy.it.subjects)?;
        let pods: Vec<&Pod> = witnesses
            .pods_in(cidr, except)
            .filter(|pod| EndName::Pod(pod.key.clone()) != us)
            .filter(|pod| !by_selector(policy, placed, pod, witnesses))
            .take(MOST_PODS)
            .collect();
        // Workloads have no addresses yet, but will have some of the pod network.
        let will_be = |pod: &&Pod| {
            pod.is_unplaced()
                && EndName::Pod(pod.key.clone()) != us
                && !by_selector(policy, placed, pod, witnesses)
        };
        let later: Vec<&Pod> = match pods.is_empty() && witnesses.may_hold_pods(cidr, except) {
            true => witnesses.all().filter(will_be).take(MOST_PODS).collect(),
            false => Vec::new(),
        };
        let (message, pods, shown) = match (pods.first(), later.first()) {
            (Some(pod), _) => (
                format!(
                    "{cidr} holds pod addresses, that of {} for one: it matches here, and not where Cilium enforces the \
                     policy",
                    pod.key
                ),
                pods,
                Shown::OneFate,
            ),
            (None, Some(pod)) => (
                format!(
                    "{cidr} holds addresses that pods may have, those of {} for one: it matches them here, and not where \
                     Cilium enforces the policy",
                    pod.key
                ),
                later,
                Shown::Itself,
            ),
            (None, None) => continue,
        };
        let wanted = "Cilium denies it, unless another rule selects the pod";
        let port = placed.some_port(80);
        let asks = pods.iter().map(|pod| {
            Ask::new(
                placed.direction,
                &us,
                &EndName::Pod(pod.key.clone()),
                port,
                true,
                wanted,
            )
        });
        let draft = draft(
            rules::BLOCKS_AND_PODS,
            policy,
            format!("{}.ipBlock.cidr", placed.peer_path(index)),
            message,
            "add a peer that selects the pods, if they are meant; leave them out by `except`, if not",
            asks,
        )?;
        return Some(draft.shown(shown));
    }
    None
}

/// Whether a rule matches a pod by a selector.
fn by_selector(policy: &Policy<'_>, placed: PlacedRule<'_>, pod: &Pod, witnesses: &Witnesses<'_>) -> bool {
    let mut peers = placed.rule.peers.iter().flatten();
    peers.any(|peer| {
        witnesses
            .peer_pods(policy.namespace(), peer)
            .iter()
            .any(|it| it.key == pod.key)
    })
}

/// Echo requests to isolated pods.
fn icmp<'a>(_: &Subject<'a>, policy: &Policy<'a>, witnesses: &mut Witnesses<'_>) -> Option<Draft<'a>> {
    policy.it.ingress.as_ref()?;
    let us = witnesses.subject(policy.namespace(), &policy.it.subjects)?;
    // By an outsider who matches no rule at all, or whom the rules allow ports alone.
    let echo = Service {
        protocol: 1,
        port: None,
        source_port: None,
    };
    let ends: Vec<EndName> = witnesses.outsiders().collect();
    let asks = ends.iter().map(|end| Ask {
        src: end.clone(),
        dst: us.clone(),
        service: echo,
        direction: Direction::Ingress,
        expect: false,
        wanted: "kube-router allows it".to_owned(),
    });
    let open = policy
        .rules(Direction::Ingress)
        .unwrap_or_default()
        .iter()
        .any(|rule| rule.ports.is_none() && rule.peers.is_none());
    if open {
        return None;
    }
    draft(
        rules::ICMP_ALLOWED,
        policy,
        "spec",
        "an echo request to these pods is denied here; kube-router allows it regardless of policy",
        "nothing; do not rely on pods being unreachable by ping",
        asks,
    )
}

/// More ports for one peer than the AWS agent keeps.
fn port_limit<'a>(_: &Subject<'a>, policy: &Policy<'a>, witnesses: &mut Witnesses<'_>) -> Option<Draft<'a>> {
    for placed in policy.all_rules() {
        let ports = placed.rule.ports.as_deref().unwrap_or_default();
        let Some(PortMatch::Range { protocol, lo, .. }) = ports.get(AWS_PORTS) else {
            continue;
        };
        let us = witnesses.subject(policy.namespace(), &policy.it.subjects)?;
        let end = some_peer(policy, placed, witnesses)?;
        return draft(
            rules::PORT_LIMIT,
            policy,
            placed.port_path(AWS_PORTS),
            format!(
                "{} ports and ranges for one peer: the AWS network policy agent keeps {AWS_PORTS} for one address",
                ports.len()
            ),
            "join ports to ranges with endPort",
            [Ask::new(
                placed.direction,
                &us,
                &end,
                (*protocol, *lo),
                true,
                "the AWS agent denies what exceeds its limit",
            )],
        );
    }
    None
}

fn some_peer(policy: &Policy<'_>, placed: PlacedRule<'_>, witnesses: &mut Witnesses<'_>) -> Option<EndName> {
    match &placed.rule.peers {
        None => witnesses.outsiders().next(),
        Some(peers) => peers
            .iter()
            .find_map(|peer| witnesses.peer(policy.namespace(), peer)),
    }
}

/// Rules about SCTP.
fn sctp<'a>(_: &Subject<'a>, policy: &Policy<'a>, witnesses: &mut Witnesses<'_>) -> Option<Draft<'a>> {
    for placed in policy.all_rules() {
        for (index, port) in placed.rule.ports.iter().flatten().enumerate() {
            let number = match port {
                PortMatch::All(Protocol::Sctp) => 9,
                PortMatch::Range {
                    protocol: Protocol::Sctp,
                    lo,
                    ..
                } => *lo,
                _ => continue,
            };
            let us = witnesses.subject(policy.namespace(), &policy.it.subjects)?;
            let end = some_peer(policy, placed, witnesses)?;
            return draft(
                rules::SCTP,
                policy,
                placed.port_path(index),
                "SCTP: Cilium enforces it only with sctp.enabled=true, kube-router not at all",
                "enable it where this policy must hold",
                [Ask::new(
                    placed.direction,
                    &us,
                    &end,
                    (Protocol::Sctp, number),
                    true,
                    "the same with every network plugin",
                )],
            );
        }
    }
    None
}

/// UDP, which is what fragments.
fn fragments<'a>(_: &Subject<'a>, policy: &Policy<'a>, witnesses: &mut Witnesses<'_>) -> Option<Draft<'a>> {
    for placed in policy.all_rules() {
        for (index, port) in placed.rule.ports.iter().flatten().enumerate() {
            let PortMatch::Range {
                protocol: Protocol::Udp,
                lo,
                ..
            } = port
            else {
                continue;
            };
            let us = witnesses.subject(policy.namespace(), &policy.it.subjects)?;
            let end = some_peer(policy, placed, witnesses)?;
            return draft(
                rules::FRAGMENTS,
                policy,
                placed.port_path(index),
                "the later fragments of a datagram have no port: here they share the fate of the first; the AWS agent \
                 reads a port from the bytes that stand in its place, Cilium without fragment tracking drops them",
                "keep datagrams within the MTU",
                [Ask::new(
                    placed.direction,
                    &us,
                    &end,
                    (Protocol::Udp, *lo),
                    true,
                    "every fragment like the first",
                )],
            );
        }
    }
    None
}

/// Whatever a policy denies may go on where it was begun before.
fn established<'a>(_: &Subject<'a>, policy: &Policy<'a>, witnesses: &mut Witnesses<'_>) -> Option<Draft<'a>> {
    let us = witnesses.subject(policy.namespace(), &policy.it.subjects)?;
    let direction = match policy.it.ingress {
        Some(_) => Direction::Ingress,
        None => Direction::Egress,
    };
    let open = policy
        .rules(direction)
        .unwrap_or_default()
        .iter()
        .any(|rule| rule.ports.is_none() && rule.peers.is_none());
    if open {
        return None;
    }
    let ends: Vec<EndName> = witnesses.outsiders().collect();
    let asks = ends.iter().map(|end| {
        let wanted = "Calico and Antrea keep it if it was established before the policy";
        Ask::new(direction, &us, end, (Protocol::Tcp, 22), false, wanted)
    });
    draft(
        rules::ESTABLISHED,
        policy,
        "spec",
        "a connection that this policy denies is cut here at its next packet; Calico and Antrea keep connections that were \
         established before",
        "restart the pods, or end their connections, where the policy must hold at once",
        asks,
    )
}

/// endPort.
fn port_ranges<'a>(_: &Subject<'a>, policy: &Policy<'a>, witnesses: &mut Witnesses<'_>) -> Option<Draft<'a>> {
    for placed in policy.all_rules() {
        for (index, port) in placed.rule.ports.iter().flatten().enumerate() {
            let PortMatch::Range { protocol, lo, hi } = port else {
                continue;
            };
            if lo == hi {
                continue;
            }
            let us = witnesses.subject(policy.namespace(), &policy.it.subjects)?;
            let end = some_peer(policy, placed, witnesses)?;
            return draft(
                rules::PORT_RANGES,
                policy,
                format!("{}.endPort", placed.port_path(index)),
                format!("ports {lo} to {hi}: Cilium up to 1.15 passes over endPort"),
                "list the ports one by one where such a version is to enforce the policy",
                [Ask::new(
                    placed.direction,
                    &us,
                    &end,
                    (*protocol, *hi),
                    true,
                    "Cilium up to 1.15 denies it: it allows the first port alone",
                )],
            );
        }
    }
    None
}

/// A block inside another one, in rules with other ports.
fn longest_prefix<'a>(
    subject: &Subject<'a>,
    policy: &Policy<'a>,
    witnesses: &mut Witnesses<'_>,
) -> Option<Draft<'a>> {
    let EndName::Pod(key) = witnesses.subject(policy.namespace(), &policy.it.subjects)? else {
        return None;
    };
    let labels = witnesses.with_synthetic().pods.get(&key)?.labels.clone();
    let of: Vec<&Policy<'a>> = subject.selecting(policy.namespace(), &labels).collect();
    let blocks = |placed: PlacedRule<'a>| -> Vec<(usize, &'a IpNet, &'a [IpNet])> {
        let peers = placed.rule.peers.as_deref().unwrap_or_default();
        peers
            .iter()
            .enumerate()
            .filter_map(|(index, peer)| match peer {
                Peer::Block { cidr, except } => Some((index, cidr, except.as_slice())),
                Peer::Pods { .. } | Peer::Addresses(_) => None,
            })
            .collect()
    };
    for narrow in policy.all_rules() {
        for wide in of.iter().flat_map(|policy| policy.all_rules()) {
            if wide.direction != narrow.direction || wide.rule.ports == narrow.rule.ports {
                continue;
            }
            for (index, inner, holes) in blocks(narrow) {
                let outer = blocks(wide).into_iter().find(|(_, outer, except)| {
                    outer.contains(inner)
                        && *outer != inner
                        && !except.iter().any(|hole| hole.contains(inner))
                });
                let Some((_, outer, _)) = outer else { continue };
                let Some(address) = address_in(inner, holes) else {
                    continue;
                };
                let port = wide.some_port(8080);
                return draft(
                    rules::LONGEST_PREFIX,
                    policy,
                    format!("{}.ipBlock.cidr", narrow.peer_path(index)),
                    format!(
                        "{inner} is inside {outer} of another rule: here both rules hold for it; the AWS network policy \
                         agent has been seen to take the ports of the longer prefix alone"
                    ),
                    "repeat the ports of the wider block for the narrower one",
                    [Ask::new(
                        narrow.direction,
                        &EndName::Pod(key),
                        &EndName::Address(address),
                        port,
                        true,
                        "the AWS agent may deny it",
                    )],
                );
            }
        }
    }
    None
}
