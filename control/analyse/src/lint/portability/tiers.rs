//! Where another implementation of tiers decides otherwise (the errors that TIERS E names).

use ringwall_evaluate::Cause;
use ringwall_policy::{
    Action, DEFAULT_TIER, KUBE_BASELINE, Order, Peer, PolicyKind, PortMatch, Protocol, Selector, TieredPolicy,
};
use serde_json::Value;

use super::{
    super::{
        draft::{Ask, Draft, Shown},
        order::{Group, Ordered, Ranked, RankedRule, decision, some_peers, some_port},
        rules::{self, Rule},
        selecting::matches,
        subject::{DIRECTIONS, Direction, Subject},
        witnesses::Witnesses,
    },
    once,
};
use crate::flow::EndName;

/// How many peers of a rule, and how many groups of pods, are tried as witnesses.
const MOST_TRIED: usize = 4;

/// What is looked at.
struct Look<'s, 'a> {
    subject: &'s Subject<'a>,
    ordered: &'s Ordered<'a>,
    groups: &'s [Group<'s>],
}

pub(super) fn lint<'a>(subject: &Subject<'a>, witnesses: &mut Witnesses<'_>, drafts: &mut Vec<Draft<'a>>) {
    drafts.extend(once(block_notation(subject, witnesses)));
    if subject.cluster.tiered.is_empty() {
        return;
    }
    let ordered = Ordered::of(subject);
    let groups = ordered.groups(subject.cluster, witnesses);
    let look = Look {
        subject,
        ordered: &ordered,
        groups: &groups,
    };
    drafts.extend(once(look.baseline_skipped(witnesses)));
    let one: [OnePolicy<'_, 'a>; 7] = [
        Look::high_priority,
        Look::named_port,
        Look::among_network_policies,
        Look::sets_as_peers,
        Look::service_without_namespace,
        Look::init_container_port,
        Look::tunnels,
    ];
    for of_policy in one {
        let policies = ordered.policies.iter().filter(|it| !it.is_network_policy());
        let cases: Vec<Draft<'a>> = policies
            .filter_map(|policy| {
                let it = subject.cluster.tiered.get(&policy.id)?;
                of_policy(&look, policy, it, witnesses)
            })
            .collect();
        drafts.extend(once(cases));
    }
    drafts.extend(once(look.types_left_out(witnesses)));
    drafts.extend(once(look.tier_without_order(witnesses)));
}

/// What one policy shows of a difference.
type OnePolicy<'s, 'a> =
    fn(&Look<'s, 'a>, &Ranked<'a>, &TieredPolicy, &mut Witnesses<'_>) -> Option<Draft<'a>>;

/// A packet that a rule matches, at a pod that its policy selects, as it is decided.
fn packet_of(
    policy: &Ranked<'_>,
    rule: &RankedRule<'_>,
    direction: Direction,
    wanted: &str,
    witnesses: &mut Witnesses<'_>,
) -> Option<Ask> {
    let pod = policy.subjects.iter().find_map(|it| witnesses.selected(it))?;
    let port = some_port(&rule.rule, 80);
    let others = some_peers(&policy.id.namespace, &rule.rule, MOST_TRIED, witnesses);
    as_decided(direction, &pod, &others, port, wanted, witnesses)
}

/// The first packet of some that has an answer, as it is decided.
fn as_decided(
    direction: Direction,
    pod: &EndName,
    others: &[EndName],
    port: (Protocol, u16),
    wanted: &str,
    witnesses: &Witnesses<'_>,
) -> Option<Ask> {
    others.iter().find_map(|other| {
        let decided = decision(witnesses.with_synthetic(), direction, pod, other, port)?;
        Some(Ask::new(direction, pod, other, port, decided.allow, wanted))
    })
}

/// Every rule with its direction.
fn all_rules<'r, 'a>(
    policy: &'r Ranked<'a>,
) -> impl Iterator<Item = (Direction, &'r RankedRule<'a>)> + use<'r, 'a> {
    DIRECTIONS.into_iter().flat_map(|direction| {
        let rules = policy.rules(direction).unwrap_or_default();
        rules.iter().map(move |rule| (direction, rule))
    })
}

fn rule_path(direction: Direction, rule: &RankedRule<'_>) -> String {
    format!("spec.{}[{}]", direction.key(), rule.index)
}

/// ipBlocks in a notation that is not everywhere read (T12).
fn block_notation<'a>(subject: &Subject<'a>, witnesses: &mut Witnesses<'_>) -> Vec<Draft<'a>> {
    let mut cases = Vec::new();
    for policy in &subject.policies {
        let odd = policy.all_peers().find_map(|(placed, index, peer)| {
            let path = format!(
                "/{}/{}/{}/{index}/ipBlock/cidr",
                placed.direction.key(),
                placed.index,
                placed.direction.peers_key()
            );
            let text = policy.spec.pointer(&path)?.as_str()?;
            let leading_zero = |part: &str| part.len() > 1 && part.starts_with('0');
            let address = text.split('/').next().unwrap_or_default();
            let unusual = !address.contains(':') && address.split('.').any(leading_zero)
                || address.to_ascii_lowercase().starts_with("::ffff:");
            unusual.then(|| (placed, index, peer, text.to_owned()))
        });
        let Some((placed, index, peer, text)) = odd else {
            continue;
        };
        let (Peer::Block { cidr, .. }, Some(us)) =
            (peer, witnesses.subject(policy.namespace(), &policy.it.subjects))
        else {
            continue;
        };
        let port = placed.some_port(80);
        let wanted = "Calico allows it: it drops the block and keeps a rule for everyone";
        let outside = witnesses.outsiders().filter(|end| match end {
            EndName::Address(address) => !cidr.contains(address),
            EndName::Pod(_) | EndName::Service(_) => false,
        });
        let asks: Vec<Ask> = outside
            .map(|end| Ask::new(placed.direction, &us, &end, port, false, wanted))
            .collect();
        let draft = Draft::of(
            rules::BLOCK_NOTATION,
            policy,
            format!("{}.ipBlock.cidr", placed.peer_path(index)),
            format!(
                "{text} is {cidr} here; Calico cannot parse it, drops the block and lets the rule match everyone"
            ),
            "write the block without leading zeros and IPv4 blocks as IPv4",
        );
        cases.push(draft.asking(asks));
    }
    cases
}

impl<'a> Look<'_, 'a> {
    /// A Baseline that decides a direction which a NetworkPolicy of the pod leaves open (T1).
    fn baseline_skipped(&self, witnesses: &mut Witnesses<'_>) -> Vec<Draft<'a>> {
        let baseline = self.ordered.tiers.named(KUBE_BASELINE).number;
        let mut cases = Vec::new();
        for (index, policy) in self.ordered.policies.iter().enumerate() {
            if policy.tier.number != baseline {
                continue;
            }
            for (direction, rule) in all_rules(policy).filter(|(_, rule)| rule.action == Action::Deny) {
                let one_sided = |group: &&Group<'_>| {
                    let mut own = group
                        .policies
                        .iter()
                        .filter_map(|it| self.ordered.policies.get(*it))
                        .filter(|it| it.is_network_policy())
                        .peekable();
                    group.policies.binary_search(&index).is_ok()
                        && own.peek().is_some()
                        && own.all(|it| it.rules(direction).is_none())
                };
                let found = self
                    .groups
                    .iter()
                    .filter(one_sided)
                    .take(MOST_TRIED)
                    .find_map(|group| {
                        let pod = EndName::Pod(group.pod.key.clone());
                        witnesses.set_subject(&pod);
                        let port = some_port(&rule.rule, 80);
                        let others = some_peers("", &rule.rule, MOST_TRIED, witnesses);
                        let other = others.iter().find(|other| {
                            let decided = decision(witnesses.with_synthetic(), direction, &pod, other, port);
                            let by = decided.map(|it| it.cause);
                            matches!(by, Some(Cause::Denied { policy: by, .. }) if by == policy.id)
                        })?;
                        let wanted = "kube-network-policies allows it";
                        Some((group, Ask::new(direction, &pod, other, port, false, wanted)))
                    });
                if let Some((group, ask)) = found {
                    let message = format!(
                        "decides {} of {}, whose NetworkPolicies are about the other direction alone; kube-network-policies asks \
                         no Baseline about a pod that any NetworkPolicy selects",
                        direction.key(),
                        group.pod.key
                    );
                    let fix = "name both directions in the policyTypes of the pod's NetworkPolicies";
                    let field = rule_path(direction, rule);
                    let draft = self.note(rules::BASELINE_SKIPPED, policy, field, message, fix);
                    cases.push(draft.asking([ask]));
                    break;
                }
            }
        }
        cases
    }

    /// AdminNetworkPolicies above priority 99 (T32).
    fn high_priority(
        &self,
        policy: &Ranked<'a>,
        it: &TieredPolicy,
        witnesses: &mut Witnesses<'_>,
    ) -> Option<Draft<'a>> {
        let high = it.order > Order::of_priority(99) && policy.id.kind == PolicyKind::AdminNetworkPolicy;
        let wanted = "OVN-Kubernetes leaves it to the next policies";
        let ask = all_rules(policy)
            .filter(|_| high)
            .find_map(|(direction, rule)| packet_of(policy, rule, direction, wanted, witnesses))?;
        let message = format!(
            "priority {} is enforced here; OVN-Kubernetes enforces 0 to 99 alone",
            it.order
        );
        let fix = "use priorities up to 99 where OVN-Kubernetes is to enforce the policy";
        let draft = self.note(rules::HIGH_PRIORITY, policy, "spec.priority", message, fix);
        Some(draft.asking([ask]).shown(Shown::Itself))
    }

    /// Named ports of AdminNetworkPolicies (T19).
    fn named_port(
        &self,
        policy: &Ranked<'a>,
        _: &TieredPolicy,
        witnesses: &mut Witnesses<'_>,
    ) -> Option<Draft<'a>> {
        use PolicyKind::{AdminNetworkPolicy, BaselineAdminNetworkPolicy};
        if !matches!(policy.id.kind, AdminNetworkPolicy | BaselineAdminNetworkPolicy) {
            return None;
        }
        all_rules(policy).find_map(|(direction, rule)| {
            let mut ports = rule.rule.ports.iter().flatten();
            let name = ports.find_map(|port| match port {
                PortMatch::Named { name, .. } => Some(name.clone()),
                _ => None,
            })?;
            let message = format!(
                "port {name} is that port alone here; kube-network-policies matches every port of a pod that has a port of \
                 this name"
            );
            let wanted = "kube-network-policies lets this rule decide";
            let pod = policy.subjects.iter().find_map(|it| witnesses.selected(it))?;
            let others = some_peers("", &rule.rule, MOST_TRIED, witnesses);
            let ask = as_decided(direction, &pod, &others, (Protocol::Tcp, 1), wanted, witnesses)?;
            let fix = "name the number of the port";
            let field = format!("{}.ports", rule_path(direction, rule));
            let draft = self.note(rules::NAMED_PORT_OF_ADMIN, policy, field, message, fix);
            Some(draft.asking([ask]).shown(Shown::Itself))
        })
    }

    /// Tiers without order (T37).
    fn tier_without_order(&self, witnesses: &mut Witnesses<'_>) -> Vec<Draft<'a>> {
        let mut cases = Vec::new();
        let policies: Vec<&Ranked<'a>> = self.ordered.policies.iter().collect();
        for name in self.subject.cluster.tiers.keys() {
            let label = format!("Tier {name}");
            let Some(written) = self.subject.written(&label) else {
                continue;
            };
            if written
                .value()
                .pointer("/spec/order")
                .is_some_and(|it| !it.is_null())
            {
                continue;
            }
            let number = self.ordered.tiers.named(name).number;
            let wanted = "be decided by tiers that have an order, if this one came last";
            let ask = policies
                .iter()
                .filter(|policy| policy.tier.number == number)
                .find_map(|policy| {
                    all_rules(policy)
                        .find_map(|(direction, rule)| packet_of(policy, rule, direction, wanted, witnesses))
                });
            let side = match name.as_str() < DEFAULT_TIER {
                true => "before tier default",
                false => "after tier default",
            };
            let message = format!(
                "has no order, which counts as 1000000, so its name puts it {side}; the API's description says that it comes last"
            );
            let fix = "write the order";
            let draft = Draft::about(rules::TIER_WITHOUT_ORDER, Some(written), "spec", message, fix);
            cases.push(draft.asking(ask).shown(Shown::Itself).of_any_tier());
        }
        cases
    }

    /// Policies at the order of NetworkPolicies, in their tier (T46).
    fn among_network_policies(
        &self,
        policy: &Ranked<'a>,
        it: &TieredPolicy,
        witnesses: &mut Witnesses<'_>,
    ) -> Option<Draft<'a>> {
        if it.tier != DEFAULT_TIER || it.order != Order::NETWORK_POLICY {
            return None;
        }
        let shared = self.groups.iter().any(|group| {
            let mut policies = group
                .policies
                .iter()
                .filter_map(|index| self.ordered.policies.get(*index));
            let network_policy = policies.any(|it| it.is_network_policy());
            let mut policies = group
                .policies
                .iter()
                .filter_map(|index| self.ordered.policies.get(*index));
            network_policy && policies.any(|it| it.id == policy.id)
        });
        let wanted = "depend on no name";
        let ask = all_rules(policy)
            .filter(|_| shared)
            .find_map(|(direction, rule)| packet_of(policy, rule, direction, wanted, witnesses))?;
        let message = "order 1000 is that of NetworkPolicies, so names decide which of them come before it; Calico before 3.32 compared \
             other names, and implementations that add NetworkPolicies up ask it before or after all of them";
        let fix = "use an order below 1000 to come before NetworkPolicies, or above to come after them";
        let draft = self.note(rules::AMONG_NETWORK_POLICIES, policy, "spec.order", message, fix);
        Some(draft.asking([ask]).shown(Shown::Itself))
    }

    /// Cluster-wide policies with namespace peers where network sets are in such namespaces (T57).
    fn sets_as_peers(
        &self,
        policy: &Ranked<'a>,
        _: &TieredPolicy,
        witnesses: &mut Witnesses<'_>,
    ) -> Option<Draft<'a>> {
        if policy.id.kind.is_calico() {
            return None;
        }
        all_rules(policy).find_map(|(direction, rule)| {
            let peers = rule.rule.peers.iter().flatten();
            let whole_namespaces = peers.filter_map(|peer| match peer {
                Peer::Pods {
                    namespaces: Some(namespaces),
                    pods,
                } if pods.requirements.is_empty() => Some(namespaces),
                _ => None,
            });
            let whole_namespaces: Vec<&Selector> = whole_namespaces.collect();
            let (set, address) = self.subject.network_sets().find_map(|(namespace, name, address)| {
                let labels = &self.subject.cluster.namespaces.get(&namespace)?.labels;
                let meant = whole_namespaces.iter().any(|it| matches(it, labels));
                meant.then(|| (format!("{namespace}/{name}"), address))
            })?;
            let pod = policy.subjects.iter().find_map(|it| witnesses.selected(it))?;
            let port = some_port(&rule.rule, 80);
            let wanted = "Calico lets this rule decide";
            let ends = [EndName::Address(address)];
            let ask = as_decided(direction, &pod, &ends, port, wanted, witnesses)?;
            let message = format!(
                "a namespace selector matches pods alone here; Calico also matches the addresses of network sets in such \
                 namespaces, here of NetworkSet {set}"
            );
            let fix = "keep network sets out of namespaces that cluster-wide policies select, or use a GlobalNetworkSet";
            let field = rule_path(direction, rule);
            let draft = self.note(rules::SETS_AS_PEERS, policy, field, message, fix);
            Some(draft.asking([ask]).shown(Shown::Itself))
        })
    }

    /// Services without namespace in a Calico NetworkPolicy (T60).
    fn service_without_namespace(
        &self,
        policy: &Ranked<'a>,
        _: &TieredPolicy,
        witnesses: &mut Witnesses<'_>,
    ) -> Option<Draft<'a>> {
        if policy.id.kind != PolicyKind::CalicoNetworkPolicy {
            return None;
        }
        let spec = self.spec(policy)?;
        all_rules(policy).find_map(|(direction, rule)| {
            let side = match direction {
                Direction::Ingress => "source",
                Direction::Egress => "destination",
            };
            let at = format!("/{}/{}/{side}/services", direction.key(), rule.index);
            let services = spec.pointer(&at)?;
            let some = |key: &str| services.get(key).and_then(Value::as_str);
            let name = some("name").filter(|_| some("namespace").is_none_or(str::is_empty))?;
            let message = format!(
                "Service {name} is that of the policy's namespace, as documented; Felix looks it up without a namespace and \
                 matches nothing"
            );
            let wanted = "Calico does not apply this rule";
            let ask = packet_of(policy, rule, direction, wanted, witnesses);
            let fix = "name the namespace of the Service";
            let field = format!("{}.{side}.services", rule_path(direction, rule));
            let rule = rules::SERVICE_WITHOUT_NAMESPACE;
            let draft = self.note(rule, policy, field, message, fix);
            Some(draft.asking(ask).shown(Shown::Itself))
        })
    }

    /// Named ports that only init containers have (T65).
    fn init_container_port(
        &self,
        policy: &Ranked<'a>,
        _: &TieredPolicy,
        witnesses: &mut Witnesses<'_>,
    ) -> Option<Draft<'a>> {
        all_rules(policy).find_map(|(direction, rule)| {
            let ports = rule.rule.ports.iter().flatten();
            let names: Vec<(&str, Protocol)> = ports
                .filter_map(|port| match port {
                    PortMatch::Named { name, protocol } => Some((name.as_str(), *protocol)),
                    _ => None,
                })
                .collect();
            if names.is_empty() {
                return None;
            }
            let (key, name, port) = self.subject.init_ports().find_map(|(key, name, number)| {
                let (_, protocol) = names.iter().find(|(wanted, _)| *wanted == name)?;
                let pod = self.subject.cluster.pods.get(&key)?;
                let own = pod.named_ports.iter().any(|port| port.name == name);
                (!own).then_some((key, name, (*protocol, number)))
            })?;
            let it = EndName::Pod(key.clone());
            let pod = match direction {
                Direction::Ingress => it.clone(),
                Direction::Egress => policy.subjects.iter().find_map(|it| witnesses.selected(it))?,
            };
            witnesses.set_subject(&pod);
            let others = match direction {
                Direction::Ingress => some_peers("", &rule.rule, MOST_TRIED, witnesses),
                Direction::Egress => vec![it],
            };
            let wanted = "Calico lets this rule decide";
            let ask = as_decided(direction, &pod, &others, port, wanted, witnesses)?;
            let message = format!(
                "port {name} is that of an init container of {key}, which has ended when the pod serves, so it is no port of the \
                 pod here; Calico counts it"
            );
            let fix = "name ports of the pod's own containers, or numbers";
            let field = rule_path(direction, rule);
            let draft = self.note(rules::INIT_CONTAINER_PORT, policy, field, message, fix);
            Some(draft.asking([ask]).shown(Shown::Itself))
        })
    }

    /// Calico policies without `types` and with empty lists of egress rules (T70).
    fn types_left_out(&self, witnesses: &mut Witnesses<'_>) -> Vec<Draft<'a>> {
        let mut cases = Vec::new();
        for policy in self.ordered.policies.iter().filter(|it| it.id.kind.is_calico()) {
            let Some(spec) = self.spec(policy) else { continue };
            let empty = |key: &str| spec.get(key).and_then(Value::as_array).is_some_and(Vec::is_empty);
            let absent = |key: &str| spec.get(key).is_none_or(Value::is_null);
            if !(absent("types") && empty("egress") && policy.rules(Direction::Egress).is_none()) {
                continue;
            }
            let Some(pod) = policy.subjects.iter().find_map(|it| witnesses.selected(it)) else {
                continue;
            };
            let others: Vec<EndName> = witnesses.outsiders().collect();
            let wanted = "denied where the API server's admission filled the types in";
            let ask = as_decided(
                Direction::Egress,
                &pod,
                &others,
                (Protocol::Tcp, 80),
                wanted,
                witnesses,
            );
            let message = "without types, an empty list of egress rules does not restrict egress here, as in calicoctl; where the types are \
                 filled in when the object is created, it does";
            let fix = "write types";
            let draft = self.note(rules::TYPES_LEFT_OUT, policy, "spec.egress", message, fix);
            cases.push(draft.asking(ask).shown(Shown::Itself));
        }
        cases
    }

    /// VXLAN and IP in IP from pods (T76).
    fn tunnels(
        &self,
        policy: &Ranked<'a>,
        _: &TieredPolicy,
        witnesses: &mut Witnesses<'_>,
    ) -> Option<Draft<'a>> {
        if !policy.id.kind.is_calico() {
            return None;
        }
        let rules = policy.rules(Direction::Egress)?;
        rules
            .iter()
            .filter(|rule| rule.action == Action::Allow)
            .find_map(|rule| {
                let vxlan = |port: &PortMatch| match port {
                    PortMatch::All(protocol) => *protocol == Protocol::Udp,
                    PortMatch::Range { protocol, lo, hi } => {
                        *protocol == Protocol::Udp && (*lo..=*hi).contains(&4789)
                    }
                    PortMatch::Named { .. } | PortMatch::Icmp { .. } => false,
                    PortMatch::IpProtocol(number) => *number == 4,
                };
                let ports = rule.rule.ports.as_ref();
                if !ports.is_none_or(|ports| ports.iter().any(vxlan)) {
                    return None;
                }
                let pod = policy.subjects.iter().find_map(|it| witnesses.selected(it))?;
                let others = some_peers(&policy.id.namespace, &rule.rule, MOST_TRIED, witnesses);
                let wanted = "Calico drops it before policy";
                let ask = as_decided(
                    Direction::Egress,
                    &pod,
                    &others,
                    (Protocol::Udp, 4789),
                    wanted,
                    witnesses,
                );
                let message = "allows UDP port 4789 and IP protocol 4 here; by default, Calico drops VXLAN and IP in IP from pods \
                               before it asks policies";
                let fix = "nothing to do, unless pods are to send tunnels: a gateway also drops them unless overlay.fromPods is allow";
                let field = rule_path(Direction::Egress, rule);
                let draft = self.note(rules::TUNNELS_OF_PODS, policy, field, message, fix);
                Some(draft.asking(ask).shown(Shown::Itself))
            })
    }

    /// A note about a field of a policy.
    fn note(
        &self,
        rule: &'static Rule,
        policy: &Ranked<'_>,
        field: impl Into<String>,
        message: impl Into<String>,
        fix: &str,
    ) -> Draft<'a> {
        let written = self.subject.written(&policy.label());
        Draft::about(rule, written, field, message, fix).of_any_tier()
    }

    /// The policy as written.
    fn spec(&self, policy: &Ranked<'_>) -> Option<Value> {
        self.subject
            .written(&policy.label())?
            .value()
            .get("spec")
            .cloned()
    }
}
