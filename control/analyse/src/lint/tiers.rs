//! What a policy says in vain because policies before it have decided, or their tier has.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, hash_map::Entry},
    sync::Arc,
};

use ringwall_evaluate::Cause;
use ringwall_policy::{
    Action, Cluster, KUBE_BASELINE, Peer, PodSelection, PolicyKind, Selector, TieredPolicy, TieredRule,
};

use super::{
    Severity,
    draft::{Ask, Draft, Shown},
    order::{
        Group, MOST_PEERS, Ordered, PolicyRule, Ranked, RankedRule, decision, matched_by, packets_as_decided,
        some_peers, some_port,
    },
    overlaps::Overlaps,
    redundant::own_namespace,
    rules,
    subject::{DIRECTIONS, Direction, Subject},
    witnesses::Witnesses,
};
use crate::flow::EndName;

pub(super) fn lint<'a>(subject: &Subject<'a>, witnesses: &mut Witnesses<'_>, drafts: &mut Vec<Draft<'a>>) {
    // Of NetworkPolicies alone, none comes before another.
    if subject.cluster.tiered.is_empty() {
        return;
    }
    let ordered = Ordered::of(subject);
    let twins = twins(subject, &ordered, witnesses, drafts);
    unreachable_rules(subject, &ordered, &twins, witnesses, drafts);
    let groups = ordered.groups(subject.cluster, witnesses);
    for direction in DIRECTIONS {
        hidden(subject, &ordered, &groups, direction, witnesses, drafts);
        overriding(subject, &ordered, &groups, direction, witnesses, drafts);
    }
}

/// Policies that say what one before them says, by their place in the order.
fn twins<'a>(
    subject: &Subject<'a>,
    ordered: &Ordered<'_>,
    witnesses: &mut Witnesses<'_>,
    drafts: &mut Vec<Draft<'a>>,
) -> BTreeSet<usize> {
    let mut twins = BTreeSet::new();
    let mut known = HashMap::new();
    for (index, policy) in ordered.policies.iter().enumerate() {
        let Some(own) = subject.cluster.tiered.get(&policy.id) else {
            continue;
        };
        let says = (&own.tier, &own.subjects, &own.ingress, &own.egress);
        let first = match known.entry(says) {
            Entry::Vacant(vacant) => {
                vacant.insert(policy);
                continue;
            }
            Entry::Occupied(occupied) => *occupied.get(),
        };
        twins.insert(index);
        let message = format!(
            "repeats {}: same tier, pods and rules, so it changes no verdict",
            first.words()
        );
        let draft = Draft::about(
            rules::SAME_POLICY_TWICE,
            subject.written(&policy.label()),
            "metadata.name",
            message,
            "keep one of the two: while both are there, a change of one alone may have no effect",
        );
        let asks = DIRECTIONS.into_iter().filter_map(|direction| {
            let rules: Vec<_> = policy.rules(direction)?.iter().collect();
            let shown = (direction, "the same without this policy");
            packets_as_decided(policy, &rules, true, shown, witnesses).next()
        });
        let asks: Vec<Ask> = asks.collect();
        drafts.push(draft.asking(asks).shown(Shown::Itself).of_any_tier());
    }
    twins
}

/// Rules that match nothing which rules before them leave.
fn unreachable_rules<'a>(
    subject: &Subject<'a>,
    ordered: &Ordered<'_>,
    twins: &BTreeSet<usize>,
    witnesses: &mut Witnesses<'_>,
    drafts: &mut Vec<Draft<'a>>,
) {
    let overlaps = Overlaps::of(ordered);
    for (index, policy) in ordered.policies.iter().enumerate() {
        if twins.contains(&index) {
            continue;
        }
        let Some(before) = overlaps.before(index) else {
            return;
        };
        let own = match policy.is_network_policy() {
            true => own_namespace(subject, &policy.id.namespace),
            false => Selector::default(),
        };
        for direction in DIRECTIONS {
            let rules = policy.rules(direction).unwrap_or_default();
            let before = rules_before(policy, &before, direction);
            if !overlaps.may_look(rules.len() * (before.len() + rules.len())) {
                return;
            }
            let mut earlier = before.clone();
            for alternatives in rules.chunk_by(|a, b| a.index == b.index) {
                let Some(action) = alternatives.first().map(|rule| rule.action) else {
                    continue;
                };
                if action == Action::Log {
                    continue;
                }
                // A rule never applies if none of its alternatives does.
                let matched = alternatives
                    .iter()
                    .map(|rule| matched_by(&own, (policy, rule), &earlier));
                let matched: Option<Vec<_>> = matched.collect();
                // What another NetworkPolicy allows too is a matter of `redundant`.
                if !policy.is_network_policy() {
                    earlier.extend(alternatives.iter().map(|rule| (policy, rule)));
                }
                let Some(by) = matched.map(|matched| matched.concat()) else {
                    continue;
                };
                let agrees = by.iter().all(|(_, earlier)| earlier.action == action);
                if agrees && policy.is_network_policy() {
                    continue;
                }
                let severity = if agrees { Severity::Note } else { Severity::Warning };
                drafts.extend(unreachable_rule(
                    subject,
                    direction,
                    (policy, alternatives),
                    &by,
                    severity,
                    witnesses,
                ));
            }
        }
    }
}

/// The rules of policies before one that it never hears of again: what they match is decided, or passed on beyond it.
/// NetworkPolicies are not among them: they do not govern what goes to the own node, so they do not match all of it.
fn rules_before<'o, 'a>(
    policy: &Ranked<'a>,
    before: &[&'o Ranked<'a>],
    direction: Direction,
) -> Vec<PolicyRule<'o, 'a>> {
    let mut out: Vec<PolicyRule<'o, 'a>> = Vec::new();
    for tier in before.chunk_by(|a, b| a.tier.number == b.tier.number) {
        // Whether something in this tier may have been passed on to the policy.
        let mut passed = false;
        for earlier in tier {
            let same_tier = earlier.tier.number == policy.tier.number;
            for rule in earlier.rules(direction).into_iter().flatten() {
                match rule.action {
                    Action::Log => {}
                    Action::Pass if !same_tier => passed = true,
                    Action::Pass | Action::Allow | Action::Deny if !passed => out.push((*earlier, rule)),
                    Action::Pass | Action::Allow | Action::Deny => {}
                }
            }
        }
    }
    out
}

fn unreachable_rule<'a>(
    subject: &Subject<'a>,
    direction: Direction,
    (policy, alternatives): (&Ranked<'_>, &[RankedRule<'_>]),
    by: &[PolicyRule<'_, '_>],
    severity: Severity,
    witnesses: &mut Witnesses<'_>,
) -> Option<Draft<'a>> {
    let rule = alternatives.first()?;
    let mut names: Vec<String> = Vec::new();
    for (policy, rule) in by {
        let name = policy.rule_words(rule);
        if !names.contains(&name) {
            names.push(name);
        }
    }
    let verb = if names.len() == 1 { "decides" } else { "decide" };
    let message = format!(
        "never applies: {} {verb} everything that it matches",
        names.join(" and ")
    );
    let wanted = match rule.action {
        Action::Allow => "allow, as this rule says",
        Action::Deny => "deny, as this rule says",
        Action::Pass => "be left to the next tier, as this rule says",
        Action::Log => return None,
    };
    let alternatives: Vec<_> = alternatives.iter().collect();
    let asks = packets_as_decided(policy, &alternatives, false, (direction, wanted), witnesses);
    let asks: Vec<Ask> = asks.collect();
    let draft = Draft::about(
        rules::UNREACHABLE_RULE,
        subject.written(&policy.label()),
        format!("spec.{}[{}]", direction.key(), rule.index),
        message,
        "remove it; if it is to decide, move it before the other one, or narrow that one",
    );
    Some(
        draft
            .asking(asks)
            .severity(severity)
            .shown(Shown::Itself)
            .of_any_tier(),
    )
}

/// Policies that no pod reaches, since a tier before theirs denies by default.
fn hidden<'a>(
    subject: &Subject<'a>,
    ordered: &Ordered<'_>,
    groups: &[Group<'_>],
    direction: Direction,
    witnesses: &mut Witnesses<'_>,
    drafts: &mut Vec<Draft<'a>>,
) {
    // Of each policy: whether a pod reaches it, and one that does not, with the policy that closes the way.
    let mut reached: BTreeSet<usize> = BTreeSet::new();
    let mut closed: BTreeMap<usize, (&Group<'_>, usize)> = BTreeMap::new();
    for group in groups {
        for (index, by) in after_default_deny(ordered, group, direction, &mut reached) {
            closed.entry(index).or_insert((group, by));
        }
    }
    // One of a tier and kind stands for the others.
    let mut cases: BTreeMap<_, Vec<(usize, &Group<'_>, usize)>> = BTreeMap::new();
    for (index, (group, by)) in closed {
        let (Some(policy), Some(closer)) = (ordered.policies.get(index), ordered.policies.get(by)) else {
            continue;
        };
        if !reached.contains(&index) {
            let key = (closer.tier.number, policy.tier.number, policy.is_network_policy());
            cases.entry(key).or_default().push((index, group, by));
        }
    }
    for cases in cases.into_values() {
        drafts.extend(hidden_policy(subject, ordered, &cases, direction, witnesses));
    }
}

/// The policies of a group that come after a tier which denies it by default whatever its policies do not match, each with
/// a policy of that tier. The others are `reached`.
fn after_default_deny(
    ordered: &Ordered<'_>,
    group: &Group<'_>,
    direction: Direction,
    reached: &mut BTreeSet<usize>,
) -> Vec<(usize, usize)> {
    let members: Vec<(usize, &Ranked<'_>)> = group
        .policies
        .iter()
        .filter_map(|index| Some((*index, ordered.policies.get(*index)?)))
        .filter(|(_, policy)| policy.rules(direction).is_some())
        .collect();
    let mut closer: Option<(usize, &Ranked<'_>)> = None;
    let mut after = Vec::new();
    for tier in members.chunk_by(|(_, a), (_, b)| a.tier.number == b.tier.number) {
        for (index, policy) in tier {
            // To its own node a pod may send what NetworkPolicies leave to others.
            let exempt = |closer: &Ranked<'_>| {
                closer.is_network_policy() && direction == Direction::Egress && may_be_about_nodes(policy)
            };
            match closer {
                Some((by, closer)) if !exempt(closer) => after.push((*index, by)),
                _ => drop(reached.insert(*index)),
            }
        }
        let passes = tier.iter().any(|(_, policy)| passes_on(policy, direction));
        if closer.is_none() {
            closer = tier
                .first()
                .filter(|(_, it)| it.tier.isolates && !passes)
                .copied();
        }
    }
    after
}

fn passes_on(policy: &Ranked<'_>, direction: Direction) -> bool {
    let mut rules = policy.rules(direction).into_iter().flatten();
    rules.any(|rule| rule.action == Action::Pass)
}

fn may_be_about_nodes(policy: &Ranked<'_>) -> bool {
    let mut rules = policy.rules(Direction::Egress).into_iter().flatten();
    rules.any(|rule| {
        let peers = rule.rule.peers.as_ref();
        peers.is_none_or(|peers| {
            peers
                .iter()
                .any(|it| matches!(it, Peer::Block { .. } | Peer::Addresses(_)))
        })
    })
}

fn hidden_policy<'a>(
    subject: &Subject<'a>,
    ordered: &Ordered<'_>,
    cases: &[(usize, &Group<'_>, usize)],
    direction: Direction,
    witnesses: &mut Witnesses<'_>,
) -> Option<Draft<'a>> {
    let (index, group, by) = cases.first()?;
    let (policy, closer) = (ordered.policies.get(*index)?, ordered.policies.get(*by)?);
    let (rule, severity, whose) = match closes_always(ordered, closer, &policy.subjects, direction) {
        true => (
            rules::HIDDEN_POLICY,
            Severity::Warning,
            "every pod that it selects",
        ),
        false if is_baseline(ordered, policy) => (
            rules::IDLE_BASELINE,
            Severity::Note,
            "every pod here that it selects",
        ),
        false => (
            rules::HIDDEN_POLICY,
            Severity::Note,
            "every pod here that it selects",
        ),
    };
    let more = match cases.len() {
        1 => String::new(),
        2 => " (and 1 more policy)".to_owned(),
        cases => format!(" (and {} more policies)", cases - 1),
    };
    let message = format!(
        "never applies to {}: policies of the tier before, such as {}, select {whose}, and tier {} denies by default what they \
         do not match{more}",
        direction.key(),
        closer.words(),
        closer.tier.name,
    );
    let fix = match rule.id == rules::IDLE_BASELINE.id {
        true => {
            "nothing to do if it is meant for pods that no policy selects yet; else put what has to hold for all pods into \
             tier Admin"
        }
        false => {
            "let the tier pass what its policies do not match (defaultAction: Pass, or a last rule that passes), or move \
             this policy before it"
        }
    };
    let pod = EndName::Pod(group.pod.key.clone());
    witnesses.set_subject(&pod);
    let mut asks = Vec::new();
    for rule in policy.rules(direction).into_iter().flatten() {
        // Some port that the policies before may not allow.
        let ports = [80, 9].map(|port| some_port(&rule.rule, port));
        for other in some_peers(&policy.id.namespace, &rule.rule, MOST_PEERS, witnesses) {
            let wanted = "what this policy says";
            asks.extend(ports.map(|port| Ask::new(direction, &pod, &other, port, false, wanted)));
        }
    }
    let draft = Draft::about(
        rule,
        subject.written(&policy.label()),
        "metadata.name",
        message,
        fix,
    );
    Some(
        draft
            .asking(asks)
            .severity(severity)
            .shown(Shown::Itself)
            .of_any_tier(),
    )
}

/// Whether the tier of a policy closes the way for every pod that others select, whatever pods there are.
fn closes_always(
    ordered: &Ordered<'_>,
    closer: &Ranked<'_>,
    others: &[PodSelection],
    direction: Direction,
) -> bool {
    let tier = || {
        let policies = ordered.policies.iter();
        policies.filter(|it| it.tier.number == closer.tier.number && it.rules(direction).is_some())
    };
    !tier().any(|policy| passes_on(policy, direction)) && tier().any(|policy| policy.selects_all_of(others))
}

fn is_baseline(ordered: &Ordered<'_>, policy: &Ranked<'_>) -> bool {
    ordered.tiers.named(KUBE_BASELINE).number == policy.tier.number
}

/// Rules that allow what a NetworkPolicy would deny.
fn overriding<'a>(
    subject: &Subject<'a>,
    ordered: &Ordered<'_>,
    groups: &[Group<'_>],
    direction: Direction,
    witnesses: &mut Witnesses<'_>,
    drafts: &mut Vec<Draft<'a>>,
) {
    let isolates = |index: &usize| {
        ordered
            .policies
            .get(*index)
            .is_some_and(|it| it.is_network_policy() && it.rules(direction).is_some())
    };
    for (index, policy) in ordered.policies.iter().enumerate() {
        let Some(rules) = policy.rules(direction).filter(|_| !policy.is_network_policy()) else {
            continue;
        };
        // Pods of a few namespaces will do.
        let tried: Vec<&Group<'_>> = groups
            .iter()
            .filter(|group| group.policies.binary_search(&index).is_ok())
            .filter(|group| {
                let mut after = group.policies.iter().filter(|other| **other > index);
                after.any(isolates)
            })
            .take(MOST_PEERS)
            .collect();
        for rule in rules.iter().filter(|rule| rule.action == Action::Allow) {
            let found = tried
                .iter()
                .find_map(|group| overridden(subject, ordered, (policy, rule), group, direction, witnesses));
            drafts.extend(found);
        }
    }
}

fn overridden<'a>(
    subject: &Subject<'a>,
    ordered: &Ordered<'_>,
    (policy, rule): PolicyRule<'_, '_>,
    group: &Group<'_>,
    direction: Direction,
    witnesses: &mut Witnesses<'_>,
) -> Option<Draft<'a>> {
    let pod = EndName::Pod(group.pod.key.clone());
    witnesses.set_subject(&pod);
    // Some port that no NetworkPolicy may allow, and several pods.
    let ports = [9, 80].map(|port| some_port(&rule.rule, port));
    let mut others = some_peers(&policy.id.namespace, &rule.rule, MOST_PEERS, witnesses);
    for peer in rule.rule.peers.iter().flatten().take(MOST_PEERS) {
        let pods = witnesses
            .peer_pods("", peer)
            .into_iter()
            .filter(|it| it.key != group.pod.key);
        others.extend(pods.take(MOST_PEERS).map(|it| EndName::Pod(it.key.clone())));
    }
    // Beside NetworkPolicies, a rule that passes skips them, too.
    let beside = policy.tier.number == ordered.tiers.network_policies().number;
    let instead = if beside { Action::Log } else { Action::Pass };
    let without = with_action(witnesses.with_synthetic(), policy, rule.index, direction, instead)?;
    let mut packets = others.iter().flat_map(|other| ports.map(|port| (other, port)));
    packets.find_map(|(other, port)| {
        let now = decision(witnesses.with_synthetic(), direction, &pod, other, port)?;
        let by_this = matches!(&now.cause, Cause::Rule { policy: by, index, .. }
            if *by == policy.id && *index == rule.index);
        let then = decision(&without, direction, &pod, other, port).filter(|_| by_this)?;
        let Cause::Isolated { policies, .. } = &then.cause else {
            return None;
        };
        let denying = policies
            .iter()
            .find(|it| it.kind == PolicyKind::NetworkPolicy)?;
        let accepts = if policy.id.kind.is_calico() { "allows" } else { "accepts" };
        let message = format!(
            "{accepts} what NetworkPolicies deny, such as {denying}: namespaces cannot restrict what this rule matches"
        );
        let fix = match beside {
            true => "remove the rule if namespaces are to decide; otherwise name its peers and ports exactly",
            false => "write Pass if namespaces are to decide; otherwise name its peers and ports exactly",
        };
        let draft = Draft::about(
            rules::OVERRIDES_TENANTS,
            subject.written(&policy.label()),
            format!("spec.{}[{}].action", direction.key(), rule.index),
            message,
            fix,
        );
        let wanted = format!("deny, as {denying} says");
        let severity = match rule.rule.ports {
            Some(_) => Severity::Note,
            None => Severity::Warning,
        };
        Some(
            draft
                .asking([Ask::new(direction, &pod, other, port, true, wanted)])
                .severity(severity)
                .shown(Shown::Itself)
                .of_any_tier(),
        )
    })
}

/// The cluster with another action of a rule.
fn with_action(
    cluster: &Cluster,
    policy: &Ranked<'_>,
    index: usize,
    direction: Direction,
    action: Action,
) -> Option<Cluster> {
    let mut cluster = cluster.clone();
    let mut changed = TieredPolicy::clone(cluster.tiered.get(&policy.id)?);
    let rules = match direction {
        Direction::Ingress => changed.ingress.as_mut(),
        Direction::Egress => changed.egress.as_mut(),
    };
    let rules = rules?;
    // All alternatives of the rule.
    let numbers: Vec<usize> = TieredRule::numbered(rules).map(|(number, _)| number).collect();
    for (rule, number) in rules.iter_mut().zip(numbers) {
        if number == index {
            rule.action = action;
        }
    }
    cluster.tiered.insert(changed.id.clone(), Arc::new(changed));
    Some(cluster)
}
