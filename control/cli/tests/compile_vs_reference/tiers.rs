//! Tiers of policies that deny and pass, before and after NetworkPolicies: the compiled snapshot answers what the literal
//! evaluator answers, and what the points of the semantics say.

use std::sync::Arc;

use ringwall_evaluate::{Cause, Service};
use ringwall_policy::{
    Action, Cluster, Conditions, KUBE_ADMIN, KUBE_BASELINE, NAMESPACE_NAME_LABEL, NetworkPolicy, Object,
    ObjectKey, Order, Peer, PolicyId, PolicyKind, PortMatch, Protocol, Selector, TieredPolicy, TieredRule,
};

use crate::{
    clusters,
    compare::{Compiled, Outcomes, first_difference},
    events::event,
    generate::{self, flows},
    incremental::{Follower, difference},
    random::Random,
};

#[test]
fn tiered_snapshots_answer_what_the_evaluator_answers() {
    let mut outcomes = Outcomes::default();
    for seed in clusters(120) {
        let mut random = Random::new(seed ^ 0x71e5);
        let cluster = generate::with_tiers(&mut random);
        let flows = flows(&cluster, &mut random, 2000);
        let compiled = Compiled::of(&cluster);
        if let Some(difference) = first_difference(&cluster, &compiled, &flows, &mut outcomes) {
            panic!("seed {seed}: {difference}\n{cluster:#?}");
        }
    }
    if std::env::var("SEED").is_err() {
        for direction in ["ingress", "egress"] {
            for effect in ["Allow", "Deny", "Isolated", "Open"] {
                outcomes.assert_seen(&format!("{direction} {effect} 6 port"));
                outcomes.assert_seen(&format!("{direction} {effect} 1 none"));
            }
        }
    }
}

#[test]
fn updates_of_tiers_answer_what_a_full_compile_answers() {
    let (mut incremental, mut members) = (0, 0);
    for seed in clusters(40) {
        let random = &mut Random::new(seed ^ 0x71e6);
        let mut cluster = generate::with_tiers(random);
        let mut follower = Follower::new();
        follower.update(&cluster);
        for step in 0..25 {
            let what = if random.percent(40) {
                tiers_change(&mut cluster, random)
            } else {
                event(&mut cluster, random)
            };
            let (compiled, updated) = follower.update(&cluster);
            incremental += u32::from(updated && what.contains("tiered"));
            members += u32::from(what.contains("members"));
            assert!(
                updated || !what.contains("members"),
                "seed {seed}, step {step}: other members were compiled in full"
            );
            let full = Compiled::of(&cluster);
            let flows = flows(&cluster, random, 100);
            if let Some(difference) = difference(&compiled, &full, &flows) {
                panic!("seed {seed}, step {step}, {what}: {difference}\n{cluster:#?}");
            }
            let mut outcomes = Outcomes::default();
            if let Some(difference) = first_difference(&cluster, &compiled, &flows[..40], &mut outcomes) {
                panic!("seed {seed}, step {step}, {what}: {difference}\n{cluster:#?}");
            }
        }
    }
    assert!(
        incremental > 50 && members > 50 || std::env::var("SEED").is_ok(),
        "{incremental} changes of tiers and {members} of address sets were made from the state before"
    );
}

/// A policy of an ordered kind comes, goes, or changes in one respect.
pub(crate) fn tiers_change(cluster: &mut Cluster, random: &mut Random) -> &'static str {
    let calico = cluster.has_calico();
    if calico && random.percent(4) {
        match cluster.tiers.is_empty() {
            true => cluster.insert(Object::Tier(generate::app_tier(random))),
            false => cluster.tiers.clear(),
        }
        return "a tier comes or goes";
    }
    if random.percent(30) {
        generate::members_change(cluster, random);
        return "an address set has other members";
    }
    let ids: Vec<PolicyId> = cluster.tiered.keys().cloned().collect();
    if ids.is_empty() || random.percent(30) {
        let number = random.below(7);
        let policy = generate::tiered(random, number, calico);
        cluster.tiered.insert(policy.id.clone(), Arc::new(policy));
        return "a tiered policy comes or is another";
    }
    let id = random.one(&ids).clone();
    if random.percent(25) {
        cluster.tiered.remove(&id);
        return "a tiered policy goes";
    }
    let other = generate::tiered(random, 0, calico);
    let mut policy = TieredPolicy::clone(&cluster.tiered[&id]);
    let what = match random.below(6) {
        0 => {
            policy.order = other.order;
            "a tiered policy has another order"
        }
        1 => {
            policy.tier = other.tier;
            "a tiered policy is of another tier"
        }
        2 => {
            policy.subjects = other.subjects;
            "a tiered policy selects others"
        }
        3 => {
            policy.ingress = other.ingress;
            "a tiered policy has other ingress rules"
        }
        4 => {
            policy.egress = other.egress;
            "a tiered policy has other egress rules"
        }
        _ => {
            for rule in policy.ingress.iter_mut().chain(&mut policy.egress).flatten() {
                rule.action = *random.one(&[Action::Allow, Action::Deny, Action::Pass]);
            }
            "a tiered policy does something else"
        }
    };
    cluster.tiered.insert(id, Arc::new(policy));
    what
}

#[test]
fn tiered_states_compile_alike_whatever_their_history() {
    for seed in 0..50 {
        let mut random = Random::new(seed ^ 0x71e7);
        let cluster = generate::with_tiers(&mut random);
        let mut other = Cluster {
            tiered: Default::default(),
            ..cluster.clone()
        };
        let mut ids: Vec<_> = cluster.tiered.keys().cloned().collect();
        random.shuffle(&mut ids);
        for id in ids {
            let policy = Arc::clone(&cluster.tiered[&id]);
            other.tiered.insert(id, policy);
        }
        assert_eq!(
            Compiled::of(&cluster).image.bytes,
            Compiled::of(&other).image.bytes,
            "seed {seed}"
        );
    }
}

/// Namespace `a` with pods `web` (10.0.0.1, port `web` is TCP 80) and `db` (10.0.0.2, port `web` is UDP 8080).
struct World(Cluster);

impl World {
    fn new() -> Self {
        let mut cluster = Cluster::default();
        cluster.supply_namespaces();
        let named = |protocol, number| ringwall_policy::NamedPort {
            name: "web".to_owned(),
            protocol,
            number,
        };
        for (name, address, port) in [
            ("web", "10.0.0.1", named(Protocol::Tcp, 80)),
            ("db", "10.0.0.2", named(Protocol::Udp, 8080)),
        ] {
            cluster.insert(Object::Pod(ringwall_policy::Pod {
                labels: [("app".to_owned(), name.to_owned())].into(),
                addresses: vec![address.parse().unwrap()],
                named_ports: vec![port],
                ..ringwall_policy::Pod::new(key(name))
            }));
        }
        cluster.supply_namespaces();
        assert!(cluster.namespaces["a"].labels.contains_key(NAMESPACE_NAME_LABEL));
        Self(cluster)
    }

    /// A policy for all pods.
    fn tiered(
        mut self,
        tier: &str,
        priority: u16,
        name: &str,
        ingress: &[TieredRule],
        egress: &[TieredRule],
    ) -> Self {
        let policy = TieredPolicy {
            ingress: (!ingress.is_empty()).then(|| ingress.to_vec()),
            egress: (!egress.is_empty()).then(|| egress.to_vec()),
            ..TieredPolicy::new(
                PolicyKind::ClusterNetworkPolicy,
                name,
                tier,
                Order::of_priority(priority),
            )
        };
        self.0.tiered.insert(policy.id.clone(), Arc::new(policy));
        self
    }

    /// A NetworkPolicy that isolates all pods in the directions.
    fn isolated(mut self, ingress: bool, egress: bool) -> Self {
        self.0.insert(Object::NetworkPolicy(NetworkPolicy {
            key: key("deny"),
            uid: String::new(),
            subjects: Selector::default(),
            ingress: ingress.then(Vec::new),
            egress: egress.then(Vec::new),
            types_written: true,
            answer: None,
            faults: Vec::new(),
        }));
        self
    }

    /// The causes of egress and ingress, of evaluator and snapshot alike.
    fn causes(&self, src: &str, dst: &str, protocol: u8, port: Option<u16>) -> [(bool, Cause); 2] {
        let (src, dst) = (src.parse().unwrap(), dst.parse().unwrap());
        let flow = generate::Flow {
            src: generate::FlowEnd::Address(src),
            dst: generate::FlowEnd::Address(dst),
            protocol,
            port,
            source: 0,
        };
        let compiled = Compiled::of(&self.0);
        let difference = first_difference(&self.0, &compiled, &[flow], &mut Outcomes::default());
        assert_eq!(difference.map(|it| it.to_string()), None);
        let end = |address| ringwall_evaluate::identify(&self.0, address);
        let verdict = ringwall_evaluate::judge(
            &self.0,
            &end(src),
            &end(dst),
            Service {
                protocol,
                port,
                source_port: None,
            },
        );
        [verdict.egress, verdict.ingress].map(|direction| (direction.allow, direction.cause))
    }

    /// Whether `web` reaches `db` at TCP 80.
    fn open(&self) -> bool {
        self.tcp("10.0.0.1", "10.0.0.2", 80)
    }

    fn tcp(&self, src: &str, dst: &str, port: u16) -> bool {
        self.causes(src, dst, 6, Some(port))
            .iter()
            .all(|(allow, _)| *allow)
    }
}

fn key(name: &str) -> ObjectKey {
    ObjectKey {
        namespace: "a".to_owned(),
        name: name.to_owned(),
    }
}

fn all(action: Action) -> TieredRule {
    TieredRule {
        continues: false,
        action,
        peers: None,
        ports: None,
        conditions: Conditions::NONE,
    }
}

fn pods(action: Action) -> TieredRule {
    let everywhere = Peer::Pods {
        namespaces: Some(Selector::default()),
        pods: Selector::default(),
    };
    TieredRule {
        peers: Some(vec![everywhere]),
        ..all(action)
    }
}

fn network(action: Action, cidr: &str) -> TieredRule {
    let block = Peer::Block {
        cidr: cidr.parse().unwrap(),
        except: Vec::new(),
    };
    TieredRule {
        peers: Some(vec![block]),
        ..all(action)
    }
}

fn ports(action: Action, ports: &[PortMatch]) -> TieredRule {
    TieredRule {
        ports: Some(ports.to_vec()),
        ..all(action)
    }
}

use Action::{Allow, Deny, Pass};

#[test]
fn trap_1_a_network_policy_of_the_other_direction_leaves_ingress_to_baseline() {
    let world = World::new()
        .isolated(false, true)
        .tiered(KUBE_BASELINE, 0, "b", &[all(Deny)], &[]);
    let [_, ingress] = world.causes("192.0.2.1", "10.0.0.2", 6, Some(80));
    assert!(
        matches!(&ingress, (false, Cause::Denied { tier, .. }) if tier == "Baseline"),
        "{ingress:?}"
    );
}

#[test]
fn traps_2_to_4_pass_goes_to_the_next_tier() {
    let world = World::new()
        .tiered(KUBE_ADMIN, 0, "p", &[all(Pass)], &[])
        .isolated(true, false)
        .tiered(KUBE_BASELINE, 0, "b", &[all(Allow)], &[]);
    assert!(!world.open(), "T2: isolated, Baseline is not asked");
    let world = World::new()
        .tiered(KUBE_ADMIN, 10, "p", &[all(Pass)], &[])
        .tiered(KUBE_ADMIN, 20, "d", &[all(Deny)], &[]);
    assert!(world.open(), "T3: the later policies of the tier are passed, too");
    let world = World::new()
        .tiered(KUBE_BASELINE, 1, "p", &[all(Pass)], &[])
        .tiered(KUBE_BASELINE, 2, "d", &[all(Deny)], &[]);
    assert!(world.open(), "T4: after Baseline everything passes");
}

#[test]
fn traps_5_and_6_each_direction_is_decided_by_itself() {
    let world = World::new()
        .tiered(KUBE_ADMIN, 0, "a", &[], &[all(Allow)])
        .isolated(true, false);
    assert!(!world.open(), "T5");
    let world = World::new()
        .tiered(KUBE_ADMIN, 0, "a", &[all(Allow)], &[])
        .isolated(false, true);
    assert!(!world.open(), "T6");
}

#[test]
fn trap_7_pods_of_all_namespaces_are_no_outsiders() {
    let world = World::new().tiered(KUBE_BASELINE, 0, "b", &[pods(Deny)], &[]);
    assert!(!world.open());
    assert!(world.tcp("192.0.2.1", "10.0.0.2", 80));
}

#[test]
fn traps_9_and_10_networks_hold_pods_of_their_family() {
    let world = World::new().tiered(KUBE_ADMIN, 0, "a", &[], &[network(Deny, "0.0.0.0/0")]);
    assert!(!world.open());
    assert!(!world.tcp("10.0.0.1", "192.0.2.1", 443));
    let other = World::new().tiered(KUBE_ADMIN, 0, "a", &[], &[network(Deny, "::/0")]);
    assert!(other.open());
}

#[test]
fn traps_13_to_17_what_is_not_understood_never_opens() {
    let deny_all = World::new().isolated(true, false);
    let world = deny_all.tiered(KUBE_ADMIN, 0, "a", &[TieredRule::not_understood(Allow)], &[]);
    assert!(
        !world.open(),
        "T13: it matches nothing, so NetworkPolicies decide"
    );
    for action in [Deny, Pass] {
        let world = World::new().tiered(
            KUBE_ADMIN,
            0,
            "a",
            &[TieredRule::not_understood(action), all(Allow)],
            &[],
        );
        let [_, ingress] = world.causes("10.0.0.1", "10.0.0.2", 1, None);
        assert!(
            matches!(ingress, (false, Cause::Denied { index: 0, .. })),
            "{ingress:?}"
        );
    }
}

#[test]
fn trap_18_a_named_port_is_each_destinations_own() {
    let web = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp].map(|protocol| PortMatch::Named {
        protocol,
        name: "web".to_owned(),
    });
    let world = World::new().tiered(KUBE_ADMIN, 0, "a", &[ports(Allow, &web), all(Deny)], &[]);
    let open = |dst: &str, protocol, port| {
        let causes = world.causes("192.0.2.1", dst, protocol, Some(port));
        causes.iter().all(|(allow, _)| *allow)
    };
    assert!(open("10.0.0.1", 6, 80) && open("10.0.0.2", 17, 8080));
    assert!(!open("10.0.0.1", 17, 80) && !open("10.0.0.2", 6, 80) && !open("10.0.0.2", 6, 8080));
}

#[test]
fn trap_21_ports_are_never_icmp() {
    let tcp = PortMatch::Range {
        protocol: Protocol::Tcp,
        lo: 1,
        hi: 65535,
    };
    let world = World::new().tiered(KUBE_ADMIN, 0, "a", &[ports(Deny, &[tcp])], &[]);
    let icmp = world.causes("10.0.0.1", "10.0.0.2", 1, None);
    assert!(icmp.iter().all(|(allow, _)| *allow));
    assert!(world.tcp("10.0.0.1", "10.0.0.2", 0) && !world.open());
}

#[test]
fn traps_33_and_34_priority_decides_then_the_bytes_of_the_name() {
    let world = World::new()
        .tiered(KUBE_ADMIN, 5, "a", &[all(Allow)], &[])
        .tiered(KUBE_ADMIN, 5, "a-b", &[all(Deny)], &[]);
    assert!(!world.open(), "T33: `a-b//` is before `a//`");
    let world = World::new().tiered(KUBE_ADMIN, 1, "a", &[all(Deny)], &[]).tiered(
        KUBE_ADMIN,
        0,
        "z",
        &[all(Allow)],
        &[],
    );
    assert!(world.open(), "T34: 0 is before 1");
}

#[test]
fn tiers_85_traps_22_and_75_only_network_policies_do_not_govern_the_own_node() {
    let hosted = |mut world: World| {
        world.0.insert(Object::Node(ringwall_policy::Node {
            name: "n1".to_owned(),
            addresses: vec!["192.168.0.1".parse().unwrap()],
            pod_cidrs: Vec::new(),
        }));
        for name in ["web", "db"] {
            let mut pod = ringwall_policy::Pod::clone(&world.0.pods[&key(name)]);
            pod.node = Some("n1".to_owned());
            world.0.insert(Object::Pod(pod));
        }
        world
    };
    let (pod, node) = ("10.0.0.1", "192.168.0.1");
    let world = hosted(World::new().isolated(true, true));
    assert!(
        world.tcp(pod, node, 80) && world.tcp(node, pod, 80),
        "NetworkPolicies"
    );
    for tier in [KUBE_ADMIN, KUBE_BASELINE] {
        let world =
            hosted(
                World::new()
                    .isolated(true, true)
                    .tiered(tier, 0, "t", &[all(Deny)], &[all(Deny)]),
            );
        assert!(!world.tcp(pod, node, 80), "{tier:?}: pod to its node");
        assert!(
            world.tcp(node, pod, 80),
            "{tier:?}: a node to its pod is exempt from everything"
        );
    }
    let passed = hosted(
        World::new()
            .tiered(KUBE_ADMIN, 0, "p", &[], &[all(Pass)])
            .isolated(true, true),
    );
    assert!(passed.tcp(pod, node, 80));
    let ssh = PortMatch::Range {
        protocol: Protocol::Tcp,
        lo: 22,
        hi: 22,
    };
    let world = hosted(World::new().tiered(KUBE_ADMIN, 0, "t", &[], &[ports(Deny, &[ssh])]));
    assert!(!world.tcp(pod, node, 22) && world.tcp(pod, node, 80));
}

#[test]
fn trap_36_a_pod_reaches_itself_whatever_the_tiers_say() {
    let world = World::new().tiered(KUBE_ADMIN, 0, "a", &[all(Deny)], &[all(Deny)]);
    assert!(world.tcp("10.0.0.1", "10.0.0.1", 80));
}

#[test]
fn tiers_71_a_policy_without_rules_has_no_part() {
    let world = World::new().tiered(KUBE_ADMIN, 0, "a", &[], &[]);
    let [egress, ingress] = world.causes("10.0.0.1", "10.0.0.2", 6, Some(80));
    assert_eq!((egress.1, ingress.1), (Cause::Open, Cause::Open));
}

#[test]
fn trap_8_pods_on_their_nodes_network_are_not_selected() {
    let mut world = World::new().tiered(KUBE_ADMIN, 0, "a", &[], &[all(Deny)]);
    let mut agent = ringwall_policy::Pod::clone(&world.0.pods[&key("web")]);
    agent.key = key("agent");
    agent.addresses = vec!["192.168.0.9".parse().unwrap()];
    agent.host_network = true;
    world.0.insert(Object::Pod(agent));
    assert!(world.tcp("192.168.0.9", "10.0.0.2", 80));
    assert!(!world.open(), "pods with an address of their own are");
}

#[test]
fn trap_20_a_named_port_that_the_destination_lacks_matches_nothing() {
    let web = PortMatch::Named {
        protocol: Protocol::Tcp,
        name: "web".to_owned(),
    };
    let world = World::new().tiered(KUBE_ADMIN, 0, "a", &[ports(Deny, &[web])], &[]);
    assert!(world.open(), "`db` has no TCP port of that name");
    assert!(!world.tcp("10.0.0.2", "10.0.0.1", 80));
}

#[test]
fn trap_74_pods_of_a_namespace_that_is_not_there_are_denied_both_ways() {
    let mut world = World::new();
    assert!(world.open());
    world.0.namespaces.remove("a");
    for (src, dst) in [("192.0.2.1", "10.0.0.2"), ("10.0.0.1", "192.0.2.1")] {
        let causes = world.causes(src, dst, 6, Some(80));
        assert!(
            causes
                .iter()
                .any(|(allow, cause)| !allow && *cause == Cause::Unknown),
            "{src} -> {dst}: {causes:?}"
        );
    }
}
