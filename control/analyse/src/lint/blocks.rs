//! ipBlocks.

use ipnet::IpNet;
use ringwall_policy::{Peer, Pod};
use ringwall_source::folder::{Problem, ProblemKind};

use super::{
    Severity,
    draft::{Ask, Draft, Shown},
    rules,
    subject::{PlacedRule, Policy, Subject},
    witnesses::{Witnesses, address_in},
};
use crate::flow::EndName;

pub(super) fn lint<'a>(subject: &Subject<'a>, witnesses: &mut Witnesses<'_>, drafts: &mut Vec<Draft<'a>>) {
    for policy in &subject.policies {
        for (placed, index, peer) in policy.all_peers() {
            let Peer::Block { cidr, except } = peer else {
                continue;
            };
            block_for_pods(policy, placed, index, cidr, except, witnesses, drafts);
            empty_block(policy, placed, index, cidr, except, witnesses, drafts);
        }
        for placed in policy.all_rules() {
            overlapping(policy, placed, witnesses, drafts);
            missing_family(policy, placed, witnesses, drafts);
        }
    }
}

/// A CIDR that is written otherwise than it is read: its lint names a packet.
fn is_odd_block(problem: &Problem) -> bool {
    problem.kind == ProblemKind::Odd
        && problem
            .path
            .as_deref()
            .is_some_and(|path| path.contains(".ipBlock."))
}

/// Blocks whose text means something else than it looks like: host bits, leading zeros, mapped addresses.
pub(super) fn odd<'a>(
    subject: &Subject<'a>,
    problems: &[Problem],
    witnesses: &mut Witnesses<'_>,
    drafts: &mut Vec<Draft<'a>>,
) {
    for problem in problems.iter().filter(|problem| is_odd_block(problem)) {
        let (Some(object), Some(path)) = (&problem.object, &problem.path) else {
            continue;
        };
        let all = subject.policies.iter().chain(&subject.invalid);
        let Some(policy) = all.into_iter().find(|policy| policy.label == *object) else {
            continue;
        };
        let field = path
            .strip_prefix(&policy.written.path(""))
            .map_or(path.as_str(), |rest| rest.trim_start_matches('.'));
        let draft = Draft::of(
            rules::ODD_BLOCK,
            policy,
            field,
            problem.message.clone(),
            "write the block as it is read; for a single address, use /32 or /128",
        );
        let of_peer = policy
            .all_peers()
            .find(|(placed, index, _)| field.starts_with(&format!("{}.", placed.peer_path(*index))));
        let asks = of_peer.and_then(|(placed, _, peer)| {
            let Peer::Block { cidr, except } = peer else {
                return None;
            };
            let last = cidr.broadcast();
            let end = match except.iter().any(|hole| hole.contains(&last)) {
                false => last,
                true => address_in(cidr, except)?,
            };
            let us = witnesses.subject(policy.namespace(), &policy.it.subjects)?;
            let wanted = "to be judged by the block as it is written";
            let port = placed.some_port(80);
            Some(Ask::new(
                placed.direction,
                &us,
                &EndName::Address(end),
                port,
                true,
                wanted,
            ))
        });
        drafts.push(draft.shown(Shown::Itself).asking(asks));
    }
}

fn block_for_pods<'a>(
    policy: &Policy<'a>,
    placed: PlacedRule<'a>,
    index: usize,
    cidr: &IpNet,
    except: &[IpNet],
    witnesses: &mut Witnesses<'_>,
    drafts: &mut Vec<Draft<'a>>,
) {
    let single = cidr.prefix_len() == cidr.max_prefix_len();
    let owner = witnesses.pods_in(cidr, except).next();
    let network = witnesses
        .pod_networks()
        .into_iter()
        .find(|network| network.contains(cidr));
    let message = match (owner, network) {
        (Some(pod), _) if single => format!(
            "the address of pod {}: its successor gets another address, and another pod this one",
            pod.key
        ),
        (_, Some(network)) => {
            format!("part of the pod network {network}: it matches whichever pod gets an address of it")
        }
        _ => return,
    };
    let Some(us) = witnesses.subject(policy.namespace(), &policy.it.subjects) else {
        return;
    };
    let port = placed.some_port(80);
    let wanted = "whatever the labels of the pod say, not its address";
    let asks = owner.map(|pod| {
        Ask::new(
            placed.direction,
            &us,
            &EndName::Pod(pod.key.clone()),
            port,
            true,
            wanted,
        )
    });
    drafts.push(
        Draft::of(
            rules::BLOCK_FOR_PODS,
            policy,
            format!("{}.ipBlock.cidr", placed.peer_path(index)),
            message,
            "select pods by podSelector and namespaceSelector; keep blocks for addresses outside of the cluster",
        )
        .shown(Shown::Itself)
        .asking(asks),
    );
}

fn empty_block<'a>(
    policy: &Policy<'a>,
    placed: PlacedRule<'a>,
    index: usize,
    cidr: &IpNet,
    except: &[IpNet],
    witnesses: &mut Witnesses<'_>,
    drafts: &mut Vec<Draft<'a>>,
) {
    let all = except.to_vec();
    if except.is_empty() || !IpNet::aggregate(&all).contains(cidr) {
        return;
    }
    let Some(us) = witnesses.subject(policy.namespace(), &policy.it.subjects) else {
        return;
    };
    let end = EndName::Address(cidr.broadcast());
    let wanted = "allow some of the block";
    drafts.push(
        Draft::of(
            rules::EMPTY_BLOCK,
            policy,
            format!("{}.ipBlock.except", placed.peer_path(index)),
            format!("the exceptions hold all of {cidr}: the peer matches nothing"),
            "correct the exceptions, or remove the peer",
        )
        .asking([Ask::new(
            placed.direction,
            &us,
            &end,
            placed.some_port(80),
            false,
            wanted,
        )]),
    );
}

/// A block all of which another one of the rule holds.
fn overlapping<'a>(
    policy: &Policy<'a>,
    placed: PlacedRule<'a>,
    witnesses: &mut Witnesses<'_>,
    drafts: &mut Vec<Draft<'a>>,
) {
    let blocks: Vec<(usize, &IpNet, &[IpNet])> = placed
        .rule
        .peers
        .iter()
        .flatten()
        .enumerate()
        .filter_map(|(index, peer)| match peer {
            Peer::Block { cidr, except } => Some((index, cidr, except.as_slice())),
            Peer::Pods { .. } | Peer::Addresses(_) => None,
        })
        .collect();
    for (index, cidr, except) in &blocks {
        let touches = |a: &IpNet, b: &IpNet| a.contains(b) || b.contains(a);
        let holder = blocks.iter().find(|(other, wide, holes)| {
            let same = wide == cidr && holes == except;
            other != index
                && wide.contains(*cidr)
                // What the other leaves out, this one has to leave out, too.
                && holes
                    .iter()
                    .all(|hole| !touches(hole, cidr) || except.iter().any(|own| own.contains(hole)))
                // Of two that are the same, the later one is reported.
                && (!same || other < index)
        });
        let Some((_, wide, _)) = holder else { continue };
        let Some(us) = witnesses.subject(policy.namespace(), &policy.it.subjects) else {
            continue;
        };
        let message = if wide == cidr {
            format!("{cidr} is already in this rule")
        } else {
            format!("{cidr} is inside {wide} of the same rule: it adds nothing")
        };
        let end = address_in(cidr, except).map(EndName::Address);
        let wanted = "the same without this entry";
        let ask = end.map(|end| Ask::new(placed.direction, &us, &end, placed.some_port(80), true, wanted));
        drafts.push(
            Draft::of(
                rules::OVERLAPPING_BLOCKS,
                policy,
                placed.peer_path(*index),
                message,
                "remove the entry; to exclude it, add it to the `except` of the wider one",
            )
            .asking(ask),
        );
    }
}

/// "Everything" in one address family, for pods that have another one.
fn missing_family<'a>(
    policy: &Policy<'a>,
    placed: PlacedRule<'a>,
    witnesses: &mut Witnesses<'_>,
    drafts: &mut Vec<Draft<'a>>,
) {
    let mut whole = [None, None];
    for (index, peer) in placed.rule.peers.iter().flatten().enumerate() {
        if let Peer::Block { cidr, .. } = peer
            && cidr.prefix_len() == 0
        {
            whole[usize::from(cidr.addr().is_ipv6())].get_or_insert(index);
        }
    }
    let (index, missing_v6) = match whole {
        [Some(index), None] => (index, true),
        [None, Some(index)] => (index, false),
        _ => return,
    };
    // Some part of the other family is named: it has been thought of.
    let named = placed
        .rule
        .peers
        .iter()
        .flatten()
        .any(|peer| matches!(peer, Peer::Block { cidr, .. } if cidr.addr().is_ipv6() == missing_v6));
    let subjects: Vec<&Pod> = witnesses
        .live(policy.namespace())
        .filter(|pod| policy.selects(&pod.labels))
        .filter(|pod| {
            pod.addresses
                .iter()
                .any(|address| address.is_ipv6() == missing_v6)
        })
        .collect();
    let Some(pod) = subjects.first().filter(|_| !named) else {
        return;
    };
    let alone = subjects.iter().find(|pod| {
        pod.addresses
            .iter()
            .all(|address| address.is_ipv6() == missing_v6)
    });
    let pod = *alone.unwrap_or(pod);
    let (has, lacks) = if missing_v6 {
        ("0.0.0.0/0", "::/0")
    } else {
        ("::/0", "0.0.0.0/0")
    };
    let us = EndName::Pod(pod.key.clone());
    let port = placed.some_port(443);
    let wanted = "allow: the block was to be everywhere";
    let asks: Vec<Ask> = witnesses
        .outsiders()
        .map(|end| Ask::new(placed.direction, &us, &end, port, false, wanted))
        .collect();
    drafts.push(
        Draft::of(
            rules::MISSING_FAMILY,
            policy,
            format!("{}.ipBlock.cidr", placed.peer_path(index)),
            format!(
                "{has} is everywhere in one address family; {} {}, and no block of that family stands here",
                pod.key,
                match (alone.is_some(), missing_v6) {
                    (true, true) => "has IPv6 addresses alone",
                    (true, false) => "has IPv4 addresses alone",
                    (false, true) => "has an IPv6 address, too",
                    (false, false) => "has an IPv4 address, too",
                },
            ),
            format!("add an ipBlock with {lacks}, if it is meant"),
        )
        .severity(if alone.is_some() {
            Severity::Warning
        } else {
            Severity::Note
        })
        .asking(asks),
    );
}
