//! Pods whose address is not known: workload templates, and pods without a status.
//!
//! An ipBlock matches addresses. A running firewall never asks about a pod that has none; who reads manifests does. Such
//! a pod will have an address of the pod network, so a rule whose blocks hold all of that network matches it *surely*, and
//! one whose blocks hold a part of it matches it *possibly*. As NetworkPolicies only ever add to what is allowed, a flow
//! is allowed if it is where only the sure ones match, denied if it is where the possible ones match as well, and depends
//! on addresses otherwise.
//!
//! Rules that deny or pass take away, too. So the two readings are bounds: what passes surely passes wherever the pods will
//! be, and what does not pass possibly passes nowhere. Surely, a rule that denies matches what it may match, and one that
//! passes and only may match denies; possibly, one that denies matches what it must, and one that passes and only may match
//! allows. What a rule asks of an end to be none of, the end is surely not where it possibly is not. The bounds are safe, and not the narrowest: where every address leads to one verdict by different rules, the
//! answer may still be that it depends.

use std::{
    borrow::Cow,
    net::IpAddr,
    sync::{Arc, LazyLock},
};

use ipnet::IpNet;

use super::{Action, Cluster, NetworkPolicy, Operator, Peer, Pod, Requirement, Rule, Selector, TieredRule};

/// How ipBlocks are read for pods whose address is not known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unplaced {
    /// Where their addresses will be.
    pub networks: PodNetworks,
    /// Whether they may be in a block that holds a part of those; else only in what holds all.
    pub possibly: bool,
}

impl Unplaced {
    /// Whether a block may hold the address of such a pod; `possibly`: or only if it must.
    pub fn may_be_in(&self, cidr: &IpNet, except: &[IpNet], possibly: bool) -> bool {
        match possibly {
            true => self.networks.meet((*cidr, except)),
            false => self.networks.are_in(&[(*cidr, except)]),
        }
    }

    /// Whether the blocks of a rule that allows match such a pod.
    pub fn matches(&self, cluster: &Cluster, peers: &[Peer]) -> bool {
        self.hold(cluster, peers, self.possibly)
    }

    /// What a rule of an ordered kind does to a flow, where `matches` says whether it matches that surely, or else possibly;
    /// None where it does nothing.
    pub fn action(&self, rule: Action, matches: impl Fn(bool) -> bool) -> Option<Action> {
        match rule {
            Action::Allow | Action::Deny => matches(self.reads_possibly(rule)).then_some(rule),
            Action::Log => None,
            Action::Pass if matches(false) => Some(Action::Pass),
            Action::Pass => matches(true).then_some(self.may_pass()),
        }
    }

    /// Whether a rule that does this is read as matching what it possibly matches.
    pub fn reads_possibly(&self, rule: Action) -> bool {
        match rule {
            Action::Allow | Action::Log => self.possibly,
            Action::Deny => !self.possibly,
            Action::Pass => true,
        }
    }

    /// What a rule comes to that passes what it matches, and only possibly matches.
    pub(crate) fn may_pass(&self) -> Action {
        // Whether later rules of the tier decide or the next tier is not known.
        match self.possibly {
            true => Action::Allow,
            false => Action::Deny,
        }
    }

    /// Whether blocks hold such a pod: possibly, since they hold a part of where it will be, or else surely.
    pub fn hold(&self, cluster: &Cluster, peers: &[Peer], possibly: bool) -> bool {
        let mut blocks = peers.iter().flat_map(|peer| cluster.blocks_of(peer));
        match possibly {
            true => blocks.any(|block| self.networks.meet(block)),
            false => self.networks.are_in(&blocks.collect::<Vec<_>>()),
        }
    }
}

/// Addresses `first..=last` of a family, as numbers of it.
type Range = (u128, u128);

/// An ipBlock and its exceptions.
type Block<'a> = (IpNet, &'a [IpNet]);

/// The addresses that a pod may be given, by family: IPv4, then IPv6. Empty for a family that pods do not have.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodNetworks([Vec<Range>; 2]);

impl PodNetworks {
    /// The pod networks of a state. Of a family of which none is known but that pods have, any address may be a pod's that
    /// is not a Service's; where nothing tells the families, so it is with both.
    pub fn of(cluster: &Cluster) -> Self {
        let nodes = cluster.nodes.values().flat_map(|node| &node.pod_cidrs);
        let networks: Vec<&IpNet> = nodes.chain(&cluster.settings.pod_cidrs).collect();
        let pods = cluster.pods.values().filter(|pod| !pod.host_network);
        let mut has = [false; 2];
        for address in pods.flat_map(|pod| &pod.addresses) {
            has[family(*address)] = true;
        }
        let known = [0, 1].map(|index| {
            let own = networks.iter().filter(|network| family(network.addr()) == index);
            joined(own.map(|network| range(network)).collect())
        });
        let nothing = has == [false; 2] && known.iter().all(Vec::is_empty);
        let mut index = 0;
        Self(known.map(|known| {
            let whole = known.is_empty() && (nothing || has.get(index) == Some(&true));
            index += 1;
            match whole {
                true => without((0, last(index - 1)), index - 1, &cluster.settings.service_cidrs),
                false => known,
            }
        }))
    }

    /// Whether blocks together hold every address that a pod may be given.
    fn are_in(&self, blocks: &[Block<'_>]) -> bool {
        self.0.iter().enumerate().all(|(index, networks)| {
            let own = blocks.iter().filter(|(cidr, _)| family(cidr.addr()) == index);
            let held = joined(own.flat_map(|block| held(*block)).collect());
            let inside = |(first, last): &Range| held.iter().any(|(lo, hi)| lo <= first && last <= hi);
            networks.iter().all(inside)
        }) && self.0.iter().any(|networks| !networks.is_empty())
    }

    /// Whether a block holds an address that a pod may be given.
    fn meet(&self, block: Block<'_>) -> bool {
        let networks = self.0.get(family(block.0.addr()));
        let meets = |(lo, hi): &Range| {
            let mut networks = networks.into_iter().flatten();
            networks.any(|(first, last)| lo <= last && first <= hi)
        };
        held(block).iter().any(meets)
    }
}

fn family(address: IpAddr) -> usize {
    usize::from(address.is_ipv6())
}

fn last(family: usize) -> u128 {
    if family == 0 {
        u128::from(u32::MAX)
    } else {
        u128::MAX
    }
}

fn range(network: &IpNet) -> Range {
    let number = |address| match address {
        IpAddr::V4(address) => u128::from(u32::from(address)),
        IpAddr::V6(address) => u128::from(address),
    };
    (number(network.network()), number(network.broadcast()))
}

/// Ranges in order, those that touch joined.
fn joined(mut ranges: Vec<Range>) -> Vec<Range> {
    ranges.sort_unstable();
    let mut out: Vec<Range> = Vec::new();
    for (first, last) in ranges {
        match out.last_mut() {
            Some((_, end)) if first <= end.saturating_add(1) => *end = last.max(*end),
            _ => out.push((first, last)),
        }
    }
    out
}

/// A block without its exceptions.
fn held((cidr, except): Block<'_>) -> Vec<Range> {
    without(range(&cidr), family(cidr.addr()), except)
}

/// A range of a family without some networks.
fn without((mut at, end): Range, of: usize, holes: &[IpNet]) -> Vec<Range> {
    let own = holes.iter().filter(|hole| family(hole.addr()) == of);
    let mut out = Vec::new();
    for (first, last) in joined(own.map(range).collect()) {
        if first > end {
            break;
        }
        if first > at {
            out.push((at, first - 1));
        }
        if last >= end {
            return out;
        }
        at = at.max(last + 1);
    }
    out.push((at, end));
    out
}

/// No label can have this key.
const MARK: &str = "?";

impl Pod {
    /// Whether it takes part in policy by name alone.
    pub fn is_unplaced(&self) -> bool {
        self.addresses.is_empty() && !self.host_network && !self.finished
    }
}

impl Cluster {
    /// The state where ipBlocks match pods without addresses surely, and where they match them possibly. None where both
    /// are this state: no such pod, or no block that could matter.
    pub fn readings(&self) -> Option<[Self; 2]> {
        if !self.pods.values().any(|pod| pod.is_unplaced()) {
            return None;
        }
        let surely = self.surely();
        let possibly = Self {
            unplaced: surely.unplaced.as_ref().map(|unplaced| {
                Arc::new(Unplaced {
                    networks: unplaced.networks.clone(),
                    possibly: true,
                })
            }),
            ..self.clone()
        };
        // What matches surely matches possibly, too.
        let unplaced = possibly.unplaced.as_ref();
        let matters = |peers: &[Peer]| unplaced.is_some_and(|unplaced| unplaced.matches(self, peers));
        let mut rules = self
            .policies
            .values()
            .flat_map(|policy| policy.ingress.iter().chain(&policy.egress).flatten());
        let mut tiered = self.tiered.values().flat_map(|policy| policy.rules());
        let matter = rules.any(|rule: &Rule| rule.peers.as_deref().is_some_and(matters))
            || tiered.any(|rule: &TieredRule| {
                let mut conditions = rule.conditions.of_ends();
                rule.peers.as_deref().is_some_and(matters)
                    || conditions.any(|condition| matters(&condition.any))
            });
        matter.then_some([surely, possibly])
    }

    /// The state where ipBlocks match pods without addresses surely.
    #[must_use]
    pub fn surely(&self) -> Self {
        Self {
            unplaced: Some(Arc::new(Unplaced {
                networks: PodNetworks::of(self),
                possibly: false,
            })),
            ..self.clone()
        }
    }

    /// The same state for the compiler, which knows no pods without addresses in blocks: such pods carry a mark, and rules
    /// whose blocks match them select the mark; those of ordered kinds do as the [model](crate::tiers::Model) reads them.
    pub fn for_compiler(&self) -> Cow<'_, Self> {
        let Some(unplaced) = &self.unplaced else {
            return Cow::Borrowed(self);
        };
        let mut marked = self.clone();
        for (key, pod) in self.pods.iter().filter(|(_, pod)| pod.is_unplaced()) {
            let mut pod = Pod::clone(pod);
            pod.labels.insert(MARK.to_owned(), String::new());
            marked.pods.insert(key.clone(), Arc::new(pod));
        }
        for (key, policy) in &self.policies {
            let mut changed = NetworkPolicy::clone(policy);
            for rule in changed.ingress.iter_mut().chain(&mut changed.egress).flatten() {
                if let Some(peers) = &mut rule.peers
                    && unplaced.matches(self, peers)
                {
                    peers.push(marked_pods());
                }
            }
            if changed != **policy {
                marked.policies.insert(key.clone(), Arc::new(changed));
            }
        }
        Cow::Owned(marked)
    }
}

fn marked_pods() -> Peer {
    Peer::Pods {
        namespaces: Some(Selector::default()),
        pods: MARKED.clone(),
    }
}

/// Selects the pods that [`Cluster::for_compiler`] marks.
pub(crate) static MARKED: LazyLock<Selector> = LazyLock::new(|| Selector {
    requirements: vec![Requirement {
        key: MARK.to_owned(),
        operator: Operator::Exists,
    }],
});

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::{Node, Settings};

    fn networks(of: &[&str]) -> PodNetworks {
        PodNetworks::of(&Cluster {
            settings: Settings {
                pod_cidrs: of.iter().map(|it| it.parse().unwrap()).collect(),
                ..Settings::default()
            },
            ..Cluster::default()
        })
    }

    /// Every address of a small pod network is looked at, one by one.
    #[test]
    fn blocks_hold_all_or_some_or_nothing_of_the_pod_network() {
        let nets =
            |list: &str| -> Vec<IpNet> { list.split_whitespace().map(|it| it.parse().unwrap()).collect() };
        let pods = nets("10.0.0.0/28 10.0.0.32/28");
        let known = networks(&["10.0.0.0/28", "10.0.0.32/28"]);
        let cases: &[&[(&str, &str)]] = &[
            &[("10.0.0.0/26", "")],
            &[("10.0.0.0/26", "10.0.0.16/28")],
            &[("10.0.0.0/26", "10.0.0.5/32")],
            &[("10.0.0.0/26", "10.0.0.0/27 10.0.0.32/27")],
            &[("10.0.0.0/26", "10.0.0.32/27 10.0.0.0/27 10.0.0.0/28")],
            &[("10.0.0.0/29", ""), ("10.0.0.8/29", ""), ("10.0.0.32/28", "")],
            &[("10.0.0.0/29", ""), ("10.0.0.32/28", "")],
            &[("10.0.0.16/28", "")],
            &[("0.0.0.0/0", "")],
            &[("0.0.0.0/0", "10.0.0.0/8")],
            &[("::/0", "")],
            &[],
        ];
        for case in cases {
            let blocks: Vec<(IpNet, Vec<IpNet>)> = case
                .iter()
                .map(|(cidr, except)| (cidr.parse().unwrap(), nets(except)))
                .collect();
            let blocks: Vec<Block<'_>> = blocks
                .iter()
                .map(|(cidr, except)| (*cidr, except.as_slice()))
                .collect();
            let within = |address: &IpAddr| {
                blocks.iter().any(|(cidr, except)| {
                    cidr.contains(address) && !except.iter().any(|hole| hole.contains(address))
                })
            };
            let addresses: Vec<IpAddr> = pods
                .iter()
                .flat_map(|net| {
                    let first = u32::from(match net.network() {
                        IpAddr::V4(it) => it,
                        IpAddr::V6(_) => unreachable!(),
                    });
                    (0..16).map(move |n| IpAddr::from((first + n).to_be_bytes()))
                })
                .collect();
            assert_eq!(known.are_in(&blocks), addresses.iter().all(within), "{case:?}");
            assert_eq!(
                blocks.iter().any(|it| known.meet(*it)),
                addresses.iter().any(within),
                "{case:?}"
            );
        }
    }

    #[test]
    fn a_family_that_pods_do_not_have_does_not_matter_and_an_unknown_one_does() {
        let everywhere =
            |list: &[&str]| -> Vec<IpNet> { list.iter().map(|it| it.parse().unwrap()).collect() };
        let are_in = |networks: &PodNetworks, list: &[&str]| {
            let blocks = everywhere(list);
            networks.are_in(&blocks.iter().map(|it| (*it, [].as_slice())).collect::<Vec<_>>())
        };
        assert!(are_in(&networks(&["10.0.0.0/8"]), &["0.0.0.0/0"]));
        assert!(!are_in(&networks(&["10.0.0.0/8", "fd00::/8"]), &["0.0.0.0/0"]));
        assert!(are_in(
            &networks(&["10.0.0.0/8", "fd00::/8"]),
            &["0.0.0.0/0", "::/0"]
        ));
        // Nothing is known: pods may have either family.
        assert!(!are_in(&networks(&[]), &["0.0.0.0/0"]));
        assert!(are_in(&networks(&[]), &["0.0.0.0/0", "::/0"]));
        let mut cluster = Cluster::default();
        cluster.insert(crate::Object::Node(Node {
            name: "a".to_owned(),
            addresses: Vec::new(),
            pod_cidrs: vec!["10.1.0.0/16".parse().unwrap()],
        }));
        assert!(are_in(&PodNetworks::of(&cluster), &["10.0.0.0/8"]));
        assert!(!are_in(&PodNetworks::of(&cluster), &["10.1.0.0/17"]));
    }
}
