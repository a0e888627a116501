//! `ringwall explain`: steps that agree with snapshot and reference, changes that turn verdicts round, and the words.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test says what failed by panicking
#![allow(unreachable_pub, dead_code, reason = "shares the generator of another test")]

mod command;
mod figures;
#[path = "../compile_vs_reference/generate.rs"]
mod generate;
#[path = "../ran/mod.rs"]
mod ran;
#[path = "../compile_vs_reference/random.rs"]
mod random;
mod tiers;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use generate::{Flow, FlowEnd, cluster, flows};
use random::Random;
use ringwall_analyse::{
    explain::{Change, ExplainError, Explainer, Found, Question, edit::Edit, report::Word, smallest_changes},
    hypothetical::HypotheticalStates,
};
use ringwall_evaluate::{End, Identity, Service, identify, judge, named};
use ringwall_policy::{Cluster, NetworkPolicy, ObjectKey, Operator, Pod, Requirement, Rule, Selector};

fn clusters(default: u64) -> std::ops::Range<u64> {
    if let Ok(seed) = std::env::var("SEED") {
        let seed = seed.parse().expect("SEED is a number");
        return seed..seed + 1;
    }
    let count = std::env::var("CLUSTERS").map(|count| count.parse().expect("CLUSTERS is a number"));
    0..count.unwrap_or(default)
}

fn end<'a>(cluster: &'a Cluster, place: &FlowEnd) -> Option<End<'a>> {
    match place {
        FlowEnd::Address(address) => Some(identify(cluster, *address)),
        FlowEnd::Name(key) => named(cluster, key),
    }
}

fn ends<'a>(cluster: &'a Cluster, flow: &Flow) -> Option<(End<'a>, End<'a>)> {
    end(cluster, &flow.src).zip(end(cluster, &flow.dst))
}

fn service(flow: &Flow) -> Service {
    flow.service()
}

/// The steps agree with snapshot and reference, or there would be an error; and every kind of step occurs.
#[test]
fn steps_agree_with_snapshot_and_reference_on_random_clusters() {
    let mut seen: BTreeMap<String, u64> = BTreeMap::new();
    for seed in clusters(40) {
        let mut random = Random::new(seed);
        let mut cluster = cluster(&mut random);
        // In some, few addresses are known yet.
        if seed % 3 == 0 {
            for pod in cluster.pods.values().cloned().collect::<Vec<_>>() {
                if !random.percent(20) {
                    let addresses = Vec::new();
                    let pod = ringwall_policy::Pod {
                        addresses,
                        ..(*pod).clone()
                    };
                    cluster.insert(ringwall_policy::Object::Pod(pod));
                }
            }
        }
        let flows = flows(&cluster, &mut random, 60);
        steps_agree(seed, &cluster, &flows, &mut seen);
    }
    let rare: Vec<_> = seen.iter().filter(|(_, count)| **count < 3).collect();
    assert!(
        rare.is_empty() && seen.len() == 7 + 3 + WORDS.len(),
        "asked too little: {seen:#?}"
    );
}

/// Likewise with policies that deny and pass before and after NetworkPolicies.
#[test]
fn steps_agree_with_snapshot_and_reference_where_tiers_deny_and_pass() {
    let mut seen: BTreeMap<String, u64> = BTreeMap::new();
    for seed in clusters(60) {
        let mut random = Random::new(seed ^ 0x71ea);
        let cluster = match seed % 3 {
            0 => generate::with_tiers_unplaced(&mut random),
            _ => generate::with_tiers(&mut random),
        };
        let flows = flows(&cluster, &mut random, 60);
        steps_agree(seed, &cluster, &flows, &mut seen);
    }
    for step in [
        "effect allow",
        "effect deny",
        "effect isolated",
        "effect open",
        "effect depends",
        "Admin allow decides",
        "Admin deny decides",
        "Admin pass passes",
        "Baseline allow decides",
        "Baseline deny decides",
        "Baseline pass passes",
    ] {
        let often = seen.get(step).is_some_and(|count| *count > 2);
        assert!(
            often || std::env::var("SEED").is_ok(),
            "asked too little: {step} in {seen:#?}"
        );
    }
}

fn steps_agree(seed: u64, cluster: &Cluster, flows: &[Flow], seen: &mut BTreeMap<String, u64>) {
    let explainer = Explainer::new(cluster).unwrap();
    for flow in flows {
        let say = |place: &FlowEnd| match place {
            FlowEnd::Address(address) => address.to_string(),
            FlowEnd::Name(key) => key.to_string(),
        };
        let port = match (flow.protocol, flow.port) {
            (6 | 17 | 132, None) => continue,
            (protocol @ (1 | 58), Some(of_type)) => {
                format!("{}:{}/{protocol}", of_type >> 8, of_type & 0xff)
            }
            // From no port that is known, so that rules may tell source ports apart.
            (protocol, Some(port)) if flow.source == 1 => format!("{port}/{protocol}"),
            (protocol, Some(port)) => format!("{port}/{protocol} from {}", flow.source),
            (protocol, None) => format!("ip/{protocol}"),
        };
        let question = Question::read(&say(&flow.src), &say(&flow.dst), &port).unwrap();
        let explanation = match explainer.explain(&question) {
            Ok(explanation) => explanation,
            Err(ExplainError::End(_)) => continue,
            Err(ExplainError::Lacks(_)) => {
                let no_type = matches!(flow.protocol, 1 | 58) && flow.port.is_none();
                let no_source = matches!(flow.protocol, 6 | 17 | 132) && flow.source == 1;
                assert!(no_type || no_source, "{flow:?}");
                *seen.entry("lacks a type or source port".to_owned()).or_default() += 1;
                continue;
            }
            Err(error @ (ExplainError::Contradiction { .. } | ExplainError::Changes(_))) => {
                panic!("seed {seed}: {error}")
            }
        };
        let json = serde_json::to_string(&explanation).unwrap();
        assert_eq!(
            serde_json::from_str::<ringwall_analyse::explain::report::Explanation>(&json).unwrap(),
            explanation
        );
        let both = [&explanation.egress, &explanation.ingress];
        let any = |word| both.iter().any(|side| side.verdict == word);
        let worst = [Word::Deny, Word::Depends].into_iter().find(|word| any(*word));
        assert_eq!(worst.unwrap_or(Word::Allow), explanation.verdict);
        assert_eq!(
            explanation.verdict == Word::Depends,
            !explanation.depends_on.is_empty()
        );
        for side in both {
            *seen.entry(format!("effect {}", side.effect)).or_default() += 1;
            let deciding = side.policies.iter().flat_map(|policy| &policy.rules);
            let deciding = deciding.filter(|rule| rule.decides).count();
            let by_rule = side.effect == "allow" || side.effect == "deny";
            assert!(
                deciding == usize::from(by_rule) || side.effect == "depends",
                "seed {seed}: {side:#?}"
            );
            for policy in &side.policies {
                for rule in &policy.rules {
                    let how = rule.failed_at.clone().unwrap_or("matches".to_owned());
                    *seen.entry(format!("rule {how}")).or_default() += 1;
                    assert!(!(rule.decides || rule.passes) || rule.matches);
                    if let (Some(tier), Some(action)) = (&policy.tier, &rule.action) {
                        let what = match (rule.decides, rule.passes) {
                            (true, _) => "decides",
                            (_, true) => "passes",
                            _ => "does not",
                        };
                        *seen.entry(format!("{tier} {action} {what}")).or_default() += 1;
                    }
                    for entry in rule.peers.iter().chain(&rule.ports).flatten() {
                        assert_eq!(entry.matches, entry.why.is_none());
                        for part in WORDS {
                            let found = entry.why.as_ref().is_some_and(|why| why.contains(part));
                            *seen.entry((*part).to_owned()).or_default() += u64::from(found);
                        }
                    }
                }
            }
        }
    }
}

/// One of each condition that can fail.
const WORDS: &[&str] = &[
    "and a",
    "selectors match only pods",
    "the policy's own namespace",
    "namespaceSelector wants",
    "podSelector wants",
    "has no label",
    "has no address",
    "the other address family",
    "is outside of it",
    "is in its except",
    "has no port",
    "is another protocol",
    "is another port",
    "has no named ports",
    "has no port of that name",
    "has that name only for",
    "that name is port",
];

/// Each change does what it says, its effects are counted right, and where there is none it is
/// said why.
#[test]
fn changes_turn_verdicts_round_and_their_effects_are_counted() {
    let Tried {
        kinds,
        none,
        counted,
        effects,
    } = changes_tried(clusters(40), |seed| {
        let mut random = Random::new(seed);
        (cluster(&mut random), random)
    });
    if std::env::var("SEED").is_ok() {
        return;
    }
    for kind in [
        "Label",
        "AddPeer",
        "AddPort",
        "AddRule",
        "AddExcept",
        "AddPolicy",
        "RemovePeer",
        "RemovePort",
        "RemoveRule",
        "RemoveExcept",
        "RemovePolicy",
    ] {
        assert!(kinds.contains_key(kind), "no {kind} among {kinds:?}");
    }
    assert!(none.len() >= 4, "{none:?}");
    assert!(
        counted > 20 && effects.len() > 4,
        "{counted} counted: {effects:?}"
    );
}

/// Where rules of other tiers decide, no change is made up that they would not heed.
#[test]
fn changes_turn_verdicts_round_where_tiers_deny_and_pass() {
    let tried = changes_tried(clusters(40), |seed| {
        let mut random = Random::new(seed ^ 0x71eb);
        (generate::with_tiers(&mut random), random)
    });
    if std::env::var("SEED").is_ok() {
        return;
    }
    assert!(tried.kinds.len() > 5, "{:?}", tried.kinds);
    let by_tiers: usize = tried
        .none
        .iter()
        .filter(|(why, _)| why.starts_with("it is rule"))
        .map(|(_, count)| count)
        .sum();
    assert!(by_tiers > 20, "{:?}", tried.none);
    assert!(
        tried.counted > 10 && tried.effects.len() > 3,
        "{} counted: {:?}",
        tried.counted,
        tried.effects
    );
}

/// What became of searching for changes.
#[derive(Default)]
struct Tried {
    /// Of the edits, by kind.
    kinds: BTreeMap<String, usize>,
    /// Why there was none.
    none: BTreeMap<String, usize>,
    counted: usize,
    effects: BTreeSet<u64>,
}

fn changes_tried(seeds: std::ops::Range<u64>, make: impl Fn(u64) -> (Cluster, Random)) -> Tried {
    let Tried {
        mut kinds,
        mut none,
        mut counted,
        mut effects,
    } = Tried::default();
    // One for all of them, as in a running control: what it compiled before must not show.
    let states = HypotheticalStates::default();
    for seed in seeds {
        let (cluster, mut random) = make(seed);
        for flow in flows(&cluster, &mut random, 16) {
            let Some((src, dst)) = ends(&cluster, &flow) else {
                continue;
            };
            let allowed = judge(&cluster, &src, &dst, service(&flow)).allow();
            let changes = match smallest_changes(&cluster, &states, &src, &dst, service(&flow)).unwrap() {
                Found::Changes(changes) => changes,
                Found::None(why) => {
                    assert!(
                        reason_holds(&why, &cluster, &src, &dst, allowed),
                        "seed {seed}, {flow:?}: {why}"
                    );
                    let kind: String = why.split_whitespace().take(5).collect::<Vec<_>>().join(" ");
                    *none.entry(kind).or_insert(0) += 1;
                    continue;
                }
            };
            assert!((1..=3).contains(&changes.len()));
            let order = |change: &Change| change.side_effects.pairs;
            assert!(changes.windows(2).all(|pair| order(&pair[0]) <= order(&pair[1])));
            for (nth, change) in changes.iter().enumerate() {
                let holds = |other: &Change| other.edits.iter().all(|edit| change.edits.contains(edit));
                assert!(
                    !changes[..nth].iter().any(holds),
                    "seed {seed}, {flow:?}: more than it takes"
                );
            }
            for change in &changes {
                let changed = change.applied(&cluster);
                assert!(
                    no_pod_leaves_its_policies(&cluster, &changed),
                    "seed {seed}, {flow:?}: {:?}",
                    change.edits
                );
                let (src, dst) = ends(&changed, &flow).unwrap();
                assert_ne!(
                    judge(&changed, &src, &dst, service(&flow)).allow(),
                    allowed,
                    "seed {seed}, {flow:?}: {:?}",
                    change.edits
                );
                for edit in &change.edits {
                    let word: String = format!("{edit:?}")
                        .chars()
                        .take_while(|it| it.is_alphabetic())
                        .collect();
                    *kinds.entry(word).or_insert(0) += 1;
                }
            }
            // Counting by hand takes long: a part of them.
            let change = &changes[0];
            if random.percent(12) {
                assert!(change.side_effects.exact);
                let by_hand = pairs_changed(&cluster, &change.applied(&cluster), &flow);
                assert_eq!(
                    change.side_effects.pairs, by_hand,
                    "seed {seed}, {flow:?}: {:?}",
                    change.edits
                );
                counted += 1;
                effects.insert(by_hand);
            }
        }
    }
    Tried {
        kinds,
        none,
        counted,
        effects,
    }
}

/// Whether every pod that some policy isolates still is isolated, and every pod has the labels that it had.
fn no_pod_leaves_its_policies(before: &Cluster, after: &Cluster) -> bool {
    let isolated = |cluster: &Cluster, key: &ObjectKey| {
        let pod = &cluster.pods[key];
        let selecting = cluster.policies.values().filter(|policy| {
            policy.key.namespace == key.namespace
                && policy
                    .subjects
                    .requirements
                    .iter()
                    .all(|it| meets(it, &pod.labels))
        });
        let (mut ingress, mut egress) = (false, false);
        for policy in selecting {
            ingress |= policy.ingress.is_some();
            egress |= policy.egress.is_some();
        }
        [ingress, egress]
    };
    let subject = |cluster: &Cluster, policy: &ringwall_policy::TieredPolicy, key: &ObjectKey| {
        let all = |selector: &ringwall_policy::Selector, labels| {
            selector.requirements.iter().all(|it| meets(it, labels))
        };
        let namespace = cluster.namespaces.get(&key.namespace);
        policy.subjects.iter().any(|subjects| {
            namespace.is_some_and(|it| all(&subjects.namespaces, &it.labels))
                && all(&subjects.pods, &cluster.pods[key].labels)
        })
    };
    before.pods.iter().all(|(key, pod)| {
        let [a, b] = [isolated(before, key), isolated(after, key)];
        let labels = &after.pods[key].labels;
        let kept = pod
            .labels
            .iter()
            .all(|(key, value)| labels.get(key) == Some(value));
        let mut tiered = before.tiered.values();
        let stays = tiered.all(|it| !subject(before, it, key) || subject(after, it, key));
        kept && stays && a.iter().zip(b).all(|(before, after)| !before || after)
    })
}

fn meets(requirement: &Requirement, labels: &ringwall_policy::Labels) -> bool {
    let value = labels.get(&requirement.key);
    match &requirement.operator {
        Operator::In(values) => value.is_some_and(|value| values.contains(value)),
        Operator::NotIn(values) => value.is_none_or(|value| !values.contains(value)),
        Operator::Exists => value.is_some(),
        Operator::DoesNotExist => value.is_none(),
        Operator::Like { part, text, negated } => {
            value.is_some_and(|value| part.holds(value, text)) != *negated
        }
    }
}

/// Whether it is true that nothing can be done.
fn reason_holds(why: &str, cluster: &Cluster, src: &End<'_>, dst: &End<'_>, allowed: bool) -> bool {
    let is_pod = |end: &End<'_>| matches!(end.identity, Identity::Pod(_));
    if why.contains("own address") {
        allowed && src.address == dst.address && is_pod(src)
    } else if why.contains("hosts it") {
        allowed && is_pod(src) != is_pod(dst)
    } else if why.contains("an unknown endpoint") {
        let unknown = [src, dst].iter().any(|end| end.identity == Identity::Unknown);
        !allowed && unknown && !cluster.settings.allow_unknown
    } else if why.contains("neither end") {
        allowed && !is_pod(src) && !is_pod(dst)
    } else if why.starts_with("it is rule") || why.starts_with("it is tier") {
        cluster
            .tiered
            .values()
            .any(|policy| why.contains(&policy.id.name))
    } else {
        false
    }
}

/// Pairs of endpoints, apart from the flow's own, between which anything changes: every pair, one by one.
fn pairs_changed(before: &Cluster, after: &Cluster, flow: &Flow) -> u64 {
    let (asked_src, asked_dst) = ends(before, flow).unwrap();
    let mut places: BTreeMap<String, Vec<FlowEnd>> = BTreeMap::new();
    for pod in before.pods.values() {
        let own = own_addresses(before, pod).map(FlowEnd::Address);
        let all: Vec<FlowEnd> = match pod.addresses.is_empty() {
            true => vec![FlowEnd::Name(pod.key.clone())],
            false => own.collect(),
        };
        if !pod.host_network && !pod.finished && !all.is_empty() {
            places.insert(pod.key.to_string(), all);
        }
    }
    // An address may be that of a pod whose namespace has not been seen.
    let asked = [(&asked_src, &flow.src), (&asked_dst, &flow.dst)].map(|(end, place)| {
        let has_it = |(_, places): &(&String, &Vec<FlowEnd>)| places.contains(place);
        let name = match end.identity {
            Identity::Pod(pod) => pod.key.to_string(),
            _ => match places.iter().find(has_it) {
                Some((name, _)) => name.clone(),
                None => format!("{:?}", end.address),
            },
        };
        (name, end, place)
    });
    for (name, end, place) in &asked {
        if !matches!(end.identity, Identity::Pod(_)) && !places.contains_key(name) {
            places.insert(name.clone(), vec![(*place).clone()]);
        }
    }
    let [(asked_src, ..), (asked_dst, ..)] = asked;
    let mut services = vec![(1, None)];
    for protocol in [6, 17, 132] {
        let ports = [
            0, 1, 2, 52, 53, 54, 79, 80, 81, 82, 83, 8079, 8080, 8081, 65533, 65534, 65535,
        ];
        services.extend(ports.map(|port| (protocol, Some(port))));
        services.extend(flow.port.map(|port| (protocol, Some(port))));
    }
    let mut pairs = 0;
    for (src, from) in &places {
        for (dst, to) in &places {
            if (src, dst) == (&asked_src, &asked_dst) {
                continue;
            }
            let template = before
                .pods
                .get(&key(src))
                .is_some_and(|pod| pod.template_of.is_some());
            if src == dst && !template {
                continue;
            }
            let changes = |(from, to): &(FlowEnd, FlowEnd)| {
                let answer = |cluster: &Cluster, (protocol, port): (u8, Option<u16>)| {
                    let (src, dst) = (end(cluster, from).unwrap(), end(cluster, to).unwrap());
                    judge(
                        cluster,
                        &src,
                        &dst,
                        Service {
                            protocol,
                            port,
                            source_port: None,
                        },
                    )
                    .allow()
                };
                let mut services = services.iter();
                services.any(|it| answer(before, *it) != answer(after, *it))
            };
            let changed = common(from, to).iter().any(changes);
            pairs += u64::from(changed);
        }
    }
    pairs
}

fn key(name: &str) -> ObjectKey {
    let (namespace, name) = name.split_once('/').unwrap_or(("", name));
    ObjectKey {
        namespace: namespace.to_owned(),
        name: name.to_owned(),
    }
}

/// One place of each, of every family that they have in common.
fn common(from: &[FlowEnd], to: &[FlowEnd]) -> Vec<(FlowEnd, FlowEnd)> {
    let of = |places: &[FlowEnd], v4: bool| {
        places
            .iter()
            .find(|place| match place {
                FlowEnd::Address(address) => address.is_ipv4() == v4,
                FlowEnd::Name(_) => true,
            })
            .cloned()
    };
    [true, false]
        .into_iter()
        .filter_map(|v4| of(from, v4).zip(of(to, v4)))
        .collect()
}

/// The addresses of a pod that no other pod has.
fn own_addresses<'a>(cluster: &'a Cluster, pod: &'a Pod) -> impl Iterator<Item = IpAddr> + 'a {
    let has_namespace = cluster.namespaces.contains_key(&pod.key.namespace);
    let owns = move |address: &IpAddr| match identify(cluster, *address).identity {
        Identity::Pod(owner) => owner.key == pod.key,
        identity => !has_namespace && identity == Identity::Unknown,
    };
    pod.addresses.iter().copied().filter(owns)
}

/// Applying a step to a state where what it names is not there changes nothing and does not fail.
#[test]
fn a_step_that_does_not_fit_changes_nothing() {
    let states = HypotheticalStates::default();
    for seed in 0..30 {
        let mut random = Random::new(seed);
        let cluster = cluster(&mut random);
        for flow in flows(&cluster, &mut random, 6) {
            let Some((src, dst)) = ends(&cluster, &flow) else {
                continue;
            };
            let found = smallest_changes(&cluster, &states, &src, &dst, service(&flow)).unwrap();
            let Found::Changes(changes) = found else {
                continue;
            };
            for edit in changes.iter().flat_map(|change| &change.edits) {
                let mut empty = Cluster::default();
                edit.apply(&mut empty);
                assert_eq!(
                    empty == Cluster::default(),
                    !matches!(edit, Edit::AddPolicy(_)),
                    "{edit:?}"
                );
            }
        }
    }
}

/// That no small change flips a verdict is said only where none does: not where one or two policies less would, nor where one
/// more at each end would.
#[test]
fn no_change_is_said_only_where_policies_change_nothing() {
    let states = HypotheticalStates::default();
    let mut said: BTreeMap<String, usize> = BTreeMap::new();
    for seed in clusters(40) {
        for tiered in [false, true] {
            let mut random = Random::new(seed);
            let cluster = match tiered {
                false => cluster(&mut random),
                true => generate::with_tiers(&mut random),
            };
            for flow in flows(&cluster, &mut random, 24) {
                let Some((src, dst)) = ends(&cluster, &flow) else {
                    continue;
                };
                let found = smallest_changes(&cluster, &states, &src, &dst, service(&flow)).unwrap();
                let Found::None(why) = found else { continue };
                let kind: String = why
                    .split_whitespace()
                    .skip(1)
                    .take(3)
                    .collect::<Vec<_>>()
                    .join(" ");
                *said.entry(kind).or_insert(0) += 1;
                if let Some(change) = flips(&cluster, &flow) {
                    panic!("seed {seed}, tiers {tiered}, {flow:?}: {why}; but: {change}");
                }
            }
        }
    }
    assert!(said.len() > 4, "{said:?}");
}

/// A change of one or two NetworkPolicies that flips the verdict of a flow.
fn flips(cluster: &Cluster, flow: &Flow) -> Option<String> {
    let allows = |cluster: &Cluster| {
        let (src, dst) = ends(cluster, flow)?;
        Some(judge(cluster, &src, &dst, service(flow)).allow())
    };
    let allowed = allows(cluster)?;
    let flipped = |changed: &Cluster| allows(changed).is_some_and(|now| now != allowed);
    let without = |keys: &[&ObjectKey]| {
        let mut changed = cluster.clone();
        keys.iter().for_each(|key| drop(changed.policies.remove(*key)));
        changed
    };
    let keys: Vec<&ObjectKey> = cluster.policies.keys().collect();
    for (index, first) in keys.iter().enumerate() {
        if flipped(&without(&[first])) {
            return Some(format!("without {first}"));
        }
        for second in keys.iter().skip(index + 1) {
            if flipped(&without(&[first, second])) {
                return Some(format!("without {first} and {second}"));
            }
        }
    }
    // One more at each end that is a pod: all is allowed there, or nothing.
    let (src, dst) = ends(cluster, flow)?;
    let mut changed = cluster.clone();
    for (end, egress) in [(src, true), (dst, false)] {
        let Identity::Pod(pod) = end.identity else {
            continue;
        };
        let rules = || match allowed {
            true => Vec::new(),
            false => vec![Rule {
                peers: None,
                ports: None,
            }],
        };
        let key = ObjectKey {
            namespace: pod.key.namespace.clone(),
            name: format!("brute-force-{egress}"),
        };
        let policy = NetworkPolicy {
            key: key.clone(),
            uid: String::new(),
            subjects: Selector::default(),
            ingress: (!egress).then(rules),
            egress: egress.then(rules),
            types_written: true,
            answer: None,
            faults: Vec::new(),
        };
        changed.policies.insert(key, Arc::new(policy));
    }
    flipped(&changed).then(|| "with a policy more at each end".to_owned())
}
