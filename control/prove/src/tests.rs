#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test says what failed by panicking
//! What the view says about pairs of pods, against the policies read word by word.

use std::{collections::BTreeSet, sync::Arc};

use hashbrown::HashSet;
use imbl::ordmap::DiffItem;
use ringwall_policy::{
    Action, Cluster, Condition, Conditions, DEFAULT_TIER, KUBE_ADMIN, KUBE_BASELINE, Labels, NamedPort,
    Namespace, NetworkPolicy, Object, ObjectKey, Operator, Order, Peer, Pod, PodSelection, PolicyKind,
    PortMatch, Protocol, Requirement, Rule, Selector, Tier, TierDefault, TieredPolicy, TieredRule,
};

use super::{
    expected::Expected,
    incremental::differing,
    matching::{Asked, port_matches},
    policy::Policy,
    ports::{Outcome, WITH_PORTS},
    rules::Direction,
};

const LABEL: &str = "app";

fn labels(value: &str) -> Labels {
    match value {
        "" => Labels::new(),
        value => Labels::from([(LABEL.to_owned(), value.to_owned())]),
    }
}

/// Whoever has this value; everybody where it is empty.
fn with(value: &str) -> Selector {
    let requirements = match value {
        "" => Vec::new(),
        value => vec![Requirement {
            key: LABEL.to_owned(),
            operator: Operator::In(BTreeSet::from([value.to_owned()])),
        }],
    };
    Selector { requirements }
}

fn key(namespace: &str, name: &str) -> ObjectKey {
    ObjectKey {
        namespace: namespace.to_owned(),
        name: name.to_owned(),
    }
}

fn namespace(name: &str, value: &str) -> Object {
    Object::Namespace(Namespace {
        name: name.to_owned(),
        labels: labels(value),
        terminating: false,
    })
}

fn pod(namespace: &str, name: &str, value: &str) -> Pod {
    Pod {
        labels: labels(value),
        ..Pod::new(key(namespace, name))
    }
}

fn tiered(tier: &str, priority: u16, name: &str) -> TieredPolicy {
    TieredPolicy::new(
        PolicyKind::ClusterNetworkPolicy,
        name,
        tier,
        Order::of_priority(priority),
    )
}

fn rule(action: Action, ports: Option<Vec<PortMatch>>) -> TieredRule {
    TieredRule {
        continues: false,
        action,
        peers: None,
        ports,
        conditions: Conditions::NONE,
    }
}

fn network(name: &str, ingress: Option<Vec<Rule>>, egress: Option<Vec<Rule>>) -> NetworkPolicy {
    NetworkPolicy {
        key: key("a", name),
        uid: String::new(),
        subjects: Selector::default(),
        ingress,
        egress,
        types_written: true,
        answer: None,
        faults: Vec::new(),
    }
}

fn tcp(lo: u16, hi: u16) -> PortMatch {
    PortMatch::Range {
        protocol: Protocol::Tcp,
        lo,
        hi,
    }
}

fn put(cluster: &mut Cluster, policy: TieredPolicy) {
    cluster.tiered.insert(policy.id.clone(), Arc::new(policy));
}

/// A view of a cluster with its pods.
fn expected(cluster: &Cluster) -> Expected {
    let mut view = Expected::of(cluster);
    for pod in cluster.pods.values() {
        view.add(pod);
    }
    view
}

/// Who decides: tier, name and index of a rule, or what comes without one.
fn deciding(
    view: &mut Expected,
    (own, other): (&ObjectKey, &ObjectKey),
    direction: Direction,
    asked: Asked,
) -> (bool, String) {
    let [own, other] = [own, other].map(|key| {
        let slot = view.slot(key).expect("the pod is there");
        view.nameless(slot)
    });
    match view.outcome(own.subjects[direction as usize], other.meaning, asked) {
        Outcome::Open => (true, "open".to_owned()),
        Outcome::Denied(list) => {
            let policies = view.subject_of(own.subjects[direction as usize]).policies.clone();
            let denying = view.rules.denying(list, &policies).to_vec();
            let names: Vec<String> = denying
                .iter()
                .map(|number| {
                    let policy = view.rules.named(*number);
                    format!("{policy} of {}", policy.kind)
                })
                .collect();
            let tier = view.rules.named(denying[0]).tier;
            (false, format!("isolated by {tier}: {}", names.join(", ")))
        }
        Outcome::Rule(number) => {
            let rule = view.rules.rule(number);
            let policy = view.rules.named(rule.policy);
            let words = format!("{} {policy} {} of {}", policy.tier, rule.index, policy.kind);
            (rule.action == Action::Allow, words)
        }
    }
}

/// What two pods, `a/own` and `a/other`, may do with these policies: ingress of `own`.
fn ingress_with(networks: &[NetworkPolicy], policies: &[TieredPolicy], asked: Asked) -> (bool, String) {
    let mut cluster = Cluster::default();
    cluster.insert(namespace("a", ""));
    let mut own = pod("a", "own", "web");
    own.named_ports = vec![NamedPort {
        name: "http".to_owned(),
        protocol: Protocol::Tcp,
        number: 80,
    }];
    cluster.insert(Object::Pod(own));
    cluster.insert(Object::Pod(pod("a", "other", "db")));
    for policy in networks {
        cluster.insert(Object::NetworkPolicy(policy.clone()));
    }
    for policy in policies {
        put(&mut cluster, policy.clone());
    }
    let pair = (&key("a", "own"), &key("a", "other"));
    deciding(&mut expected(&cluster), pair, Direction::Ingress, asked)
}

#[test]
fn tiers_decide_one_after_the_other() {
    use Action::{Allow, Deny, Pass};
    let policy = |tier, priority, name: &str, actions: &[Action]| {
        let mut policy = tiered(tier, priority, name);
        let rules = actions.iter().map(|action| rule(*action, None));
        policy.ingress = Some(rules.collect());
        policy
    };
    let nothing = || network("np", Some(Vec::new()), None);
    let egress_alone = || network("np", None, Some(Vec::new()));
    type Case = (
        &'static str,
        Vec<NetworkPolicy>,
        Vec<TieredPolicy>,
        bool,
        &'static str,
    );
    let cases: Vec<Case> = vec![
        (
            "T1",
            vec![egress_alone()],
            vec![policy(KUBE_BASELINE, 1, "b", &[Deny])],
            false,
            "Baseline b 0",
        ),
        (
            "T2",
            vec![nothing()],
            vec![
                policy(KUBE_ADMIN, 1, "a", &[Pass]),
                policy(KUBE_BASELINE, 1, "b", &[Allow]),
            ],
            false,
            "isolated by NetworkPolicy: a/np of NetworkPolicy",
        ),
        (
            "T3",
            vec![],
            vec![
                policy(KUBE_ADMIN, 10, "a", &[Pass]),
                policy(KUBE_ADMIN, 20, "b", &[Deny]),
            ],
            true,
            "open",
        ),
        (
            "T4",
            vec![],
            vec![
                policy(KUBE_BASELINE, 1, "a", &[Pass]),
                policy(KUBE_BASELINE, 2, "b", &[Deny]),
            ],
            true,
            "open",
        ),
        (
            "admin denies before what allows",
            vec![network(
                "np",
                Some(vec![Rule {
                    peers: None,
                    ports: None,
                }]),
                None,
            )],
            vec![policy(KUBE_ADMIN, 1, "a", &[Deny])],
            false,
            "Admin a 0",
        ),
        (
            "admin allows before what isolates",
            vec![nothing()],
            vec![policy(KUBE_ADMIN, 1, "a", &[Allow, Deny])],
            true,
            "Admin a 0",
        ),
        (
            "T33: equal priorities go by name, namespace and kind",
            vec![],
            vec![
                policy(KUBE_ADMIN, 5, "a", &[Allow]),
                policy(KUBE_ADMIN, 5, "a-b", &[Deny]),
            ],
            false,
            "Admin a-b 0",
        ),
        (
            "T34: 0 is before 1",
            vec![],
            vec![
                policy(KUBE_ADMIN, 1, "a", &[Allow]),
                policy(KUBE_ADMIN, 0, "b", &[Deny]),
            ],
            false,
            "Admin b 0",
        ),
        (
            "71: being selected does not isolate",
            vec![],
            vec![policy(KUBE_BASELINE, 1, "a", &[])],
            true,
            "open",
        ),
    ];
    for (name, networks, policies, allow, why) in cases {
        let decision = ingress_with(&networks, &policies, Asked::Portless(1));
        assert!(
            decision.0 == allow && decision.1.starts_with(why),
            "{name}: {decision:?}"
        );
    }
}

#[test]
fn what_is_passed_on_misses_the_rules_for_every_port() {
    let named = |name: &str| PortMatch::Named {
        protocol: Protocol::Tcp,
        name: name.to_owned(),
    };
    let mut admin = tiered(KUBE_ADMIN, 1, "admin");
    admin.ingress = Some(vec![
        rule(Action::Deny, Some(Vec::new())),
        rule(Action::Deny, Some(vec![named("absent")])),
        rule(Action::Pass, Some(vec![named("http"), tcp(90, 91)])),
        rule(Action::Allow, None),
        rule(Action::Deny, None),
    ]);
    let allow_90 = Rule {
        peers: None,
        ports: Some(vec![tcp(90, 90)]),
    };
    let networks = [network("np", Some(vec![allow_90]), None)];
    let mut baseline = tiered(KUBE_BASELINE, 1, "baseline");
    baseline.ingress = Some(vec![rule(Action::Deny, Some(vec![tcp(1, u16::MAX)]))]);
    let policies = [admin, baseline];
    for (asked, isolated, not) in [
        (
            Asked::Port(Protocol::Tcp, 80, 0),
            (false, "isolated by NetworkPolicy: a/np of NetworkPolicy"),
            (false, "Baseline baseline 0"),
        ),
        (
            Asked::Port(Protocol::Tcp, 90, 0),
            (true, "NetworkPolicy a/np 0"),
            (false, "Baseline baseline 0"),
        ),
        (
            Asked::Port(Protocol::Tcp, 91, 0),
            (false, "isolated by NetworkPolicy: a/np of NetworkPolicy"),
            (false, "Baseline baseline 0"),
        ),
        (
            Asked::Port(Protocol::Tcp, 0, 0),
            (true, "Admin admin 3"),
            (true, "Admin admin 3"),
        ),
        (
            Asked::Port(Protocol::Udp, 80, 0),
            (true, "Admin admin 3"),
            (true, "Admin admin 3"),
        ),
        (
            Asked::Portless(1),
            (true, "Admin admin 3"),
            (true, "Admin admin 3"),
        ),
    ] {
        for (networks, (allow, why)) in [(&networks[..], isolated), (&[], not)] {
            let decision = ingress_with(networks, &policies, asked);
            assert!(
                decision.0 == allow && decision.1.starts_with(why),
                "{asked:?}: {decision:?}"
            );
        }
    }
    // 76: a range holds neither port 0 nor what has no ports.
    for (asked, allow) in [
        (Asked::Port(Protocol::Tcp, 1, 0), false),
        (Asked::Port(Protocol::Tcp, 0, 0), true),
        (Asked::Portless(1), true),
    ] {
        assert_eq!(ingress_with(&[], &policies[1..], asked).0, allow, "{asked:?}");
    }
}

/// A generator without dependencies.
/// The state of the generator, and whether anything is Calico's.
struct Dice(u64, bool);

impl Dice {
    fn below(&mut self, bound: usize) -> usize {
        // xorshift64*
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % bound
    }

    fn one<T: Clone>(&mut self, of: &[T]) -> T {
        of[self.below(of.len())].clone()
    }

    fn value(&mut self) -> &'static str {
        self.one(&["", "web", "db"])
    }

    fn ports(&mut self) -> Option<Vec<PortMatch>> {
        if self.below(2) == 0 {
            return None;
        }
        let entry = |dice: &mut Self| match dice.below(6) {
            4 => PortMatch::IpProtocol(dice.one(&[1, 47])),
            5 => PortMatch::Icmp {
                protocol: dice.one(&[1, 1, 58]),
                kind: dice.one(&[0, 8, 255]),
                code: dice.one(&[None, Some(0), Some(255)]),
            },
            0 => PortMatch::All(dice.one(&WITH_PORTS)),
            1 => PortMatch::Named {
                protocol: Protocol::Tcp,
                name: dice.one(&["http", "dns"]).to_owned(),
            },
            _ => {
                let (a, b) = (dice.one(&[1, 80, 81]), dice.one(&[80, 81, 90]));
                tcp(a.min(b), a.max(b))
            }
        };
        Some((0..self.below(3)).map(|_| entry(self)).collect())
    }

    fn peers(&mut self) -> Option<Vec<Peer>> {
        if self.below(2) == 0 {
            return None;
        }
        let peer = |dice: &mut Self| Peer::Pods {
            namespaces: Some(with(dice.value())),
            pods: with(dice.value()),
        };
        Some((0..self.below(3)).map(|_| peer(self)).collect())
    }

    fn conditions(&mut self) -> Conditions {
        // Of its own, so that all else is what it is without conditions.
        let mut dice = Dice(self.0.rotate_left(21) | 1, true);
        if !self.1 || dice.below(4) != 0 {
            return Conditions::NONE;
        }
        let source_name = |dice: &mut Self| PortMatch::Named {
            protocol: Protocol::Tcp,
            name: dice.one(&["http", "dns"]).to_owned(),
        };
        let conditions = |dice: &mut Self| {
            let condition = |dice: &mut Self| Condition {
                negated: dice.below(2) == 0,
                any: dice.peers().unwrap_or_default(),
            };
            (0..dice.below(3)).map(|_| condition(dice)).collect()
        };
        Conditions {
            peer: conditions(&mut dice),
            own: conditions(&mut dice),
            not_ports: dice.ports().unwrap_or_default(),
            source_ports: match dice.below(3) {
                0 => {
                    let ranges = [(0, 0), (53, 53), (1024, 65535)];
                    let ranges = ranges[..dice.below(4)].iter();
                    let mut ports: Vec<PortMatch> = ranges.map(|(lo, hi)| tcp(*lo, *hi)).collect();
                    ports.extend((dice.below(2) == 0).then(|| source_name(&mut dice)));
                    Some(ports)
                }
                _ => None,
            },
            not_source_ports: match dice.below(3) {
                0 => vec![tcp(80, 81), source_name(&mut dice)],
                _ => Vec::new(),
            },
        }
    }

    fn tiered(&mut self) -> TieredPolicy {
        let rules = |dice: &mut Self| {
            let rule = |dice: &mut Self| TieredRule {
                continues: false,
                action: dice.one(&[
                    Action::Allow,
                    Action::Deny,
                    Action::Pass,
                    Action::Pass,
                    Action::Log,
                ]),
                peers: dice.peers(),
                ports: dice.ports(),
                conditions: dice.conditions(),
            };
            (0..dice.below(4)).map(|_| rule(dice)).collect()
        };
        let tier = match self.1 {
            true => self.one(&[KUBE_ADMIN, KUBE_BASELINE, DEFAULT_TIER, "app", "nope"]),
            false => self.one(&[KUBE_ADMIN, KUBE_BASELINE]),
        };
        let (order, name) = (self.one(&[1, 2, 2, 1000]), self.one(&["p", "p-q", "q", "x"]));
        let mut policy = tiered(tier, order, name);
        policy.id.kind = match self.1 {
            true => self.one(&PolicyKind::TIERED),
            false => self.one(&PolicyKind::TIERED[..3]),
        };
        if policy.id.kind == PolicyKind::CalicoNetworkPolicy {
            policy.id.namespace = "a".to_owned();
        }
        policy.subjects = (0..1 + self.below(2))
            .map(|_| PodSelection {
                namespaces: with(self.value()),
                pods: with(self.value()),
            })
            .collect();
        policy.ingress = (self.below(3) > 0).then(|| rules(self));
        policy.egress = (self.below(3) > 0).then(|| rules(self));
        policy
    }

    fn network(&mut self) -> NetworkPolicy {
        let rules = |dice: &mut Self| {
            let rule = |dice: &mut Self| Rule {
                peers: dice.peers(),
                ports: dice.ports(),
            };
            (dice.below(3) == 0).then(|| (0..dice.below(3)).map(|_| rule(dice)).collect())
        };
        let name = self.one(&["x", "y"]);
        let mut policy = network(name, rules(self), rules(self));
        policy.subjects = with(self.value());
        policy
    }

    fn namespace(&mut self) -> Object {
        let name = self.one(&["a", "b"]);
        namespace(name, self.value())
    }

    /// Something else than before.
    fn event(&mut self, cluster: &mut Cluster) {
        match self.below(9) {
            8 if self.1 => match cluster.tiers.contains_key("app") {
                true => drop(cluster.tiers.remove("app")),
                false => cluster.insert(Object::Tier(Tier {
                    name: "app".to_owned(),
                    order: self.one(&[Order::of_priority(500), Order::of_priority(2000)]),
                    default: self.one(&[TierDefault::Deny, TierDefault::Pass]),
                })),
            },
            0 => cluster.insert(self.namespace()),
            1 => cluster.insert(Object::NetworkPolicy(self.network())),
            2 => {
                let name = self.one(&["x", "y"]);
                cluster.policies.remove(&key("a", name));
            }
            3 => {
                let gone = self.tiered().id;
                cluster.tiered.remove(&gone);
            }
            4 => {
                // Two change places, and nothing else.
                let all: Vec<_> = cluster.tiered.values().cloned().collect();
                if let [one, .., other] = &all[..] {
                    let (mut first, mut second) = ((**one).clone(), (**other).clone());
                    std::mem::swap(&mut first.order, &mut second.order);
                    std::mem::swap(&mut first.tier, &mut second.tier);
                    put(cluster, first);
                    put(cluster, second);
                }
            }
            _ => put(cluster, self.tiered()),
        }
    }
}

/// Whether a selector of [`with`] holds.
fn holds(selector: &Selector, labels: &Labels) -> bool {
    selector.requirements.is_empty() || *selector == with(labels.get(LABEL).map_or("absent", String::as_str))
}

static NOTHING_MORE: Conditions = Conditions::NONE;

/// A rule of any policy, as it is read here.
struct Read<'a> {
    action: Action,
    peers: &'a Option<Vec<Peer>>,
    ports: &'a Option<Vec<PortMatch>>,
    conditions: &'a Conditions,
}

fn is_one_of(cluster: &Cluster, peers: &[Peer], pod: &Pod) -> bool {
    peers.iter().any(|entry| match entry {
        Peer::Pods { namespaces, pods } => {
            let of_namespace = &cluster.namespaces[&pod.key.namespace].labels;
            let in_it = namespaces.as_ref().is_none_or(|it| holds(it, of_namespace));
            in_it && holds(pods, &pod.labels)
        }
        Peer::Block { .. } | Peer::Addresses(_) => false,
    })
}

/// Whether a rule is about a pod, its peer and a port of the destination.
fn is_about(cluster: &Cluster, rule: &Read<'_>, (own, peer): (&Pod, &Pod), dst: &Pod, asked: Asked) -> bool {
    let peers = rule.peers.as_deref();
    let from = peers.is_none_or(|peers| is_one_of(cluster, peers, peer));
    let all = |conditions: &[Condition], pod: &Pod| {
        conditions
            .iter()
            .all(|it| is_one_of(cluster, &it.any, pod) != it.negated)
    };
    let of = |pod: &Pod, protocol, name: &str| {
        let mut ports = pod.named_ports.iter();
        let found = ports.find(|port| port.protocol == protocol && port.name == name);
        found.map(|port| port.number)
    };
    let named = |protocol, name: &str| of(dst, protocol, name);
    let src = if dst.key == own.key { peer } else { own };
    let from_one_of = |ports: &[PortMatch]| match asked {
        Asked::Port(protocol, port, source) => ports.iter().any(|entry| {
            let asked = Asked::Port(protocol, source, port);
            port_matches(entry, asked, &|protocol, name| of(src, protocol, name))
        }),
        Asked::Portless(_) | Asked::Icmp(..) => false,
    };
    let one_of = |ports: &[PortMatch]| ports.iter().any(|entry| port_matches(entry, asked, &named));
    from && all(&rule.conditions.peer, peer)
        && all(&rule.conditions.own, own)
        && rule.ports.as_deref().is_none_or(one_of)
        && !one_of(&rule.conditions.not_ports)
        && rule.conditions.source_ports.as_deref().is_none_or(from_one_of)
        && !from_one_of(&rule.conditions.not_source_ports)
}

/// Ingress or egress of a pod, policy by policy and rule by rule.
fn read(cluster: &Cluster, (own, other): (&Pod, &Pod), direction: Direction, asked: Asked) -> (bool, String) {
    let dst = match direction {
        Direction::Ingress => own,
        Direction::Egress => other,
    };
    // Tier by tier: missing ones last, then by order and name.
    let mut tiers = vec![
        (false, 1e3, KUBE_ADMIN, false),
        (false, 1e6, DEFAULT_TIER, true),
        (false, 1e7, KUBE_BASELINE, false),
    ];
    match cluster.tiers.get("app") {
        Some(app) => tiers.push((false, app.order.number(), "app", app.default == TierDefault::Deny)),
        None => tiers.push((true, 0.0, "app", true)),
    }
    tiers.push((true, 0.0, "nope", true));
    tiers.sort_by(|one, other| {
        let orders = one.1.total_cmp(&other.1);
        one.0.cmp(&other.0).then(orders).then(one.2.cmp(other.2))
    });
    let calico = !cluster.tiers.is_empty() || cluster.tiered.keys().any(|id| id.kind.is_calico());
    let mixed = cluster.mixes_network_policies();
    for (_, _, tier, denies) in tiers {
        let shown = match tier {
            KUBE_ADMIN if !calico => "Admin",
            DEFAULT_TIER if !calico => "NetworkPolicy",
            KUBE_BASELINE if !calico => "Baseline",
            name => name,
        };
        let mut members: Vec<((Order, String), String, Vec<Read<'_>>)> = Vec::new();
        for policy in cluster.policies.values().filter(|_| tier == DEFAULT_TIER) {
            let rules = match direction {
                Direction::Ingress => &policy.ingress,
                Direction::Egress => &policy.egress,
            };
            if policy.key.namespace != own.key.namespace || !holds(&policy.subjects, &own.labels) {
                continue;
            }
            if let Some(rules) = rules {
                let tie = match mixed {
                    true => format!(
                        "{}/{}/KubernetesNetworkPolicy",
                        policy.key.name, policy.key.namespace
                    ),
                    false => policy.key.name.clone(),
                };
                let rules = rules.iter().map(|rule| Read {
                    action: Action::Allow,
                    peers: &rule.peers,
                    ports: &rule.ports,
                    conditions: &NOTHING_MORE,
                });
                let name = format!("{} {{}} of NetworkPolicy", policy.key);
                members.push(((Order::NETWORK_POLICY, tie), name, rules.collect()));
            }
        }
        for policy in cluster.tiered.values().filter(|policy| policy.tier == tier) {
            let labels = &cluster.namespaces[&own.key.namespace].labels;
            let rules = match direction {
                Direction::Ingress => &policy.ingress,
                Direction::Egress => &policy.egress,
            };
            let selected = policy
                .subjects
                .iter()
                .any(|it| holds(&it.namespaces, labels) && holds(&it.pods, &own.labels));
            if let Some(rules) = rules.as_ref().filter(|_| selected) {
                let rules = rules.iter().map(|rule| Read {
                    action: rule.action,
                    peers: &rule.peers,
                    ports: &rule.ports,
                    conditions: &rule.conditions,
                });
                let name = format!("{} {{}} of {}", policy.id, policy.id.kind.name());
                members.push(((policy.order, policy.id.tie()), name, rules.collect()));
            }
        }
        if members.is_empty() {
            continue;
        }
        members.sort_by(|one, other| one.0.cmp(&other.0));
        let mut passed = false;
        'tier: for (_, name, rules) in &members {
            for (index, rule) in rules.iter().enumerate() {
                if !is_about(cluster, rule, (own, other), dst, asked) {
                    continue;
                }
                match rule.action {
                    Action::Log => {}
                    Action::Pass => {
                        passed = true;
                        break 'tier;
                    }
                    Action::Allow | Action::Deny => {
                        let words = format!("{shown} {}", name.replace("{}", &index.to_string()));
                        return (rule.action == Action::Allow, words);
                    }
                }
            }
        }
        if denies && !passed {
            let names: Vec<&str> = members.iter().map(|(_, name, _)| name.as_str()).collect();
            let words = format!("isolated by {shown}: {}", names.join(", ").replace("{} ", ""));
            return (false, words);
        }
    }
    (true, "open".to_owned())
}

/// As a proof takes over the policies and namespaces of a successor.
fn follow(view: &mut Expected, cluster: &Cluster) {
    if !view.rules.has_tiers_of(cluster) {
        *view = self::expected(cluster);
        return;
    }
    let before = view.cluster().clone();
    let (mut gone, mut new) = (Vec::new(), Vec::new());
    let (networks, tiered) = (&before.policies, &before.tiered);
    differing(networks, &cluster.policies, Policy::Network, &mut gone, &mut new);
    differing(tiered, &cluster.tiered, Policy::Tiered, &mut gone, &mut new);
    if !gone.is_empty() || !new.is_empty() {
        view.replace_policies(cluster, &gone, &new);
    }
    let changed: HashSet<String> = before
        .namespaces
        .diff(&cluster.namespaces)
        .map(|item| match item {
            DiffItem::Add(name, _) | DiffItem::Remove(name, _) => name.clone(),
            DiffItem::Update { new, .. } => new.0.clone(),
        })
        .collect();
    if !changed.is_empty() {
        view.replace_namespaces(cluster, &changed);
    }
    view.follow(cluster);
}

#[test]
fn views_that_follow_say_what_the_policies_say() {
    let mut seen = std::collections::BTreeMap::<String, u32>::new();
    for seed in 1..30 {
        let mut dice = Dice(seed * 0x9e37_79b9, seed % 2 == 0);
        let mut cluster = Cluster::default();
        for name in ["a", "b"] {
            cluster.insert(namespace(name, dice.value()));
            for number in 0..3 {
                let mut pod = pod(name, &format!("p{number}"), dice.value());
                pod.named_ports = vec![NamedPort {
                    name: dice.one(&["http", "dns"]).to_owned(),
                    protocol: Protocol::Tcp,
                    number: dice.one(&[80, 90]),
                }];
                cluster.insert(Object::Pod(pod));
            }
        }
        let mut view = expected(&cluster);
        for _ in 0..15 {
            for _ in 0..1 + dice.below(2) {
                dice.event(&mut cluster);
            }
            follow(&mut view, &cluster);
            let asked = [0, 1, 80, 81, 82, 90, 91].map(|port| Asked::Port(Protocol::Tcp, port, 0));
            let types = [0, 1, 0x00ff, 0x0100, 0x0800, 0x08fe, 0x08ff, 0xff00, 0xffff];
            let sources = [1, 52, 53, 54, 1023, 1024, 65535];
            let sources = sources.map(|source| Asked::Port(Protocol::Tcp, 80, source));
            let types = types.into_iter().map(|of_type| Asked::Icmp(1, of_type));
            let asked = asked.into_iter().chain(types).chain(sources).chain([
                Asked::Icmp(58, 0x0800),
                Asked::Portless(1),
                Asked::Portless(47),
                Asked::Port(Protocol::Udp, 80, 0),
            ]);
            for asked in asked {
                for own in cluster.pods.values() {
                    for other in cluster.pods.values() {
                        for direction in Direction::BOTH {
                            let wanted = read(&cluster, (own, other), direction, asked);
                            let decision = deciding(&mut view, (&own.key, &other.key), direction, asked);
                            assert_eq!(
                                decision, wanted,
                                "seed {seed}: {} {} {asked:?} {direction:?}\n{cluster:#?}",
                                own.key, other.key
                            );
                            let kind = decision.1.split(' ').next().expect("a word").to_owned();
                            *seen.entry(format!("{kind} {}", decision.0)).or_default() += 1;
                        }
                    }
                }
            }
        }
    }
    for kind in [
        "Admin true",
        "Admin false",
        "NetworkPolicy true",
        "Baseline true",
        "kube-admin true",
        "kube-admin false",
        "default true",
        "default false",
        "kube-baseline false",
        "app true",
        "app false",
        "nope false",
        "isolated false",
        "open true",
    ] {
        assert!(
            seen.get(kind).is_some_and(|count| *count > 50),
            "{kind}: {seen:?}"
        );
    }
}
