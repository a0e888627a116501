//! Assertions hold if and only if the literal evaluator knows no packet that contradicts them.

use std::{collections::BTreeMap, net::IpAddr};

use ringwall_analyse::{
    intents::{Assertion, Checker, Claim, EndSelector, Intents, Outcome, Ports},
    refine::{Compiled, Ends, Family, Service, What},
};
use ringwall_evaluate::{Cause, Identity};
use ringwall_policy::{Cluster, ObjectKey, Selector};

use crate::{
    generate,
    generate::{SOURCES, icmp},
    oracle,
    oracle::services,
    random::Random,
    seeds,
};

fn place(cluster: &Cluster, random: &mut Random) -> EndSelector {
    let keys: Vec<&ObjectKey> = cluster.pods.keys().collect();
    match random.below(8) {
        0 => EndSelector::Any,
        1 => EndSelector::Outside,
        2 => EndSelector::Nodes,
        3 if !keys.is_empty() => EndSelector::Pod((*random.one(&keys)).clone()),
        4 => {
            let cidr = (*random.one(&["10.0.0.0/29", "0.0.0.0/0", "fd00::/125", "8.8.8.8/32"]))
                .parse()
                .unwrap();
            let except = match random.percent(30) {
                true => vec!["10.0.0.4/30".parse().unwrap()],
                false => Vec::new(),
            };
            EndSelector::Block { cidr, except }
        }
        _ => {
            let policies: Vec<_> = cluster.policies.values().collect();
            let subjects = |random: &mut Random| match policies.is_empty() {
                true => Selector::default(),
                false => random.one(&policies).subjects.clone(),
            };
            let pods = if random.percent(60) {
                subjects(random)
            } else {
                Selector::default()
            };
            let namespace = random.percent(60).then(|| (*random.one(&["a", "b"])).to_owned());
            EndSelector::Pods {
                namespace,
                namespaces: None,
                pods,
            }
        }
    }
}

fn assertion(cluster: &Cluster, random: &mut Random) -> Assertion {
    let places = |random: &mut Random| (0..1 + random.below(2)).map(|_| place(cluster, random)).collect();
    let other_ports = random.percent(30);
    // By the format itself: there is no other way to make ports.
    let ports = match random.below(4) {
        0 => Ports::all(),
        _ => {
            let port = *random.one(&["80/TCP", "79-8080/TCP", "53/UDP", "SCTP", "other", "65535/TCP"]);
            let text = format!(
                "{{apiVersion: ringwall.io/v1alpha1, kind: Intents, assertions: [{{name: a, allow: {{from: [{{any: true}}], to: \
                 [{{any: true}}], ports: [{port}]}}}}]}}"
            );
            Intents::parse("made", &text).unwrap().assertions.remove(0).ports
        }
    };
    Assertion {
        name: "made".to_owned(),
        line: 1,
        from: places(random),
        to: places(random),
        ports,
        claim: *random.one(&[
            Claim::Allow,
            Claim::Deny,
            Claim::Deny,
            Claim::OnlySources { other_ports },
            Claim::OnlyDestinations { other_ports },
        ]),
        may_be_empty: random.percent(30),
        behind_services: Vec::new(),
    }
}

/// One end as the evaluator sees it.
struct EvaluatedEnd<'a> {
    end: ringwall_evaluate::End<'a>,
    addresses: Vec<IpAddr>,
}

/// Whether a place means an end, in words of its own.
fn means(cluster: &Cluster, place: &EndSelector, what: &What, seen: &EvaluatedEnd<'_>) -> bool {
    let inside = |net: &ipnet::IpNet, address: &IpAddr| net.contains(address);
    let address = matches!(what, What::Range { .. });
    match place {
        EndSelector::Any => true,
        EndSelector::Outside => {
            let service = |address: &IpAddr| {
                cluster
                    .settings
                    .service_cidrs
                    .iter()
                    .any(|net| inside(net, address))
            };
            address && seen.end.identity == Identity::External && !seen.addresses.iter().any(service)
        }
        EndSelector::Nodes => address && matches!(seen.end.identity, Identity::Node(_)),
        EndSelector::Pod(key) => *what == What::Endpoint(key.clone()),
        EndSelector::Service(_) => false,
        EndSelector::Block { cidr, except } => seen
            .addresses
            .iter()
            .any(|address| inside(cidr, address) && !except.iter().any(|hole| inside(hole, address))),
        EndSelector::Pods { namespace, pods, .. } => {
            let What::Endpoint(key) = what else { return false };
            let labels = &cluster.pods[key].labels;
            namespace.as_ref().is_none_or(|name| *name == key.namespace)
                && pods.requirements.iter().all(|requirement| {
                    use ringwall_policy::Operator::{DoesNotExist, Exists, In, Like, NotIn};
                    match (&requirement.operator, labels.get(&requirement.key)) {
                        (In(values), Some(value)) => values.contains(value),
                        (NotIn(values), Some(value)) => !values.contains(value),
                        (Exists, value) => value.is_some(),
                        (DoesNotExist, value) => value.is_none(),
                        (In(_), None) => false,
                        (NotIn(_), None) => true,
                        (Like { part, text, negated }, value) => {
                            value.is_some_and(|value| part.holds(value, text)) != *negated
                        }
                    }
                })
        }
    }
}

#[test]
fn assertions_hold_if_and_only_if_no_packet_contradicts_them() {
    let mut outcomes: BTreeMap<&str, usize> = BTreeMap::new();
    for seed in seeds(45) {
        let mut random = Random::new(seed);
        let mut cluster = match random.percent(50) {
            true => generate::with_tiers(&mut random),
            false => generate::cluster(&mut random),
        };
        generate::ask_for_source_ports(&mut cluster, &mut random.branch());
        let compiled = Compiled::of(&cluster).unwrap();
        let assertions: Vec<Assertion> = (0..12).map(|_| assertion(&cluster, &mut random)).collect();
        let files = [Intents { assertions }];
        let mut checker = Checker::new(std::slice::from_ref(&compiled), &files).unwrap();
        let ends = Ends::of([&compiled], &files[0].networks());
        // By family and end.
        let seen: [Vec<Option<EvaluatedEnd<'_>>>; 2] = Family::BOTH.map(|family| {
            let one = |end: &ringwall_analyse::refine::End<1>| {
                let [face] = end.resolved[family as usize]?;
                let end = match (&end.what, face.address) {
                    (_, Some(address)) => ringwall_evaluate::identify(&cluster, address),
                    (What::Endpoint(key), None) => ringwall_evaluate::named(&cluster, key)?,
                    (What::Range { .. }, None) => panic!("a range without address"),
                };
                Some(EvaluatedEnd {
                    end,
                    addresses: face.address.into_iter().collect(),
                })
            };
            ends.all.iter().map(one).collect()
        });
        let ports = oracle::ports(&cluster, &cluster);
        for assertion in &files[0].assertions {
            // Each end by any of its faces.
            let select = |places: &[EndSelector]| -> Vec<bool> {
                let of = |index: usize| {
                    let mut resolved = seen.iter().filter_map(|seen| seen[index].as_ref());
                    resolved.any(|face| {
                        places
                            .iter()
                            .any(|place| means(&cluster, place, &ends.all[index].what, face))
                    })
                };
                (0..ends.all.len()).map(of).collect()
            };
            let (from, to) = (select(&assertion.from), select(&assertion.to));
            let outcome = checker.check(assertion).unwrap();
            let empty = !from.contains(&true) || !to.contains(&true);
            if let Outcome::Vacuous { .. } = outcome {
                assert!(empty && !assertion.may_be_empty, "seed {seed}: {assertion:?}");
                *outcomes.entry("vacuous").or_default() += 1;
                continue;
            }
            assert!(!empty || assertion.may_be_empty, "seed {seed}: {assertion:?}");
            // Whether a packet contradicts the assertion; None for those that no assertion is about.
            let contradicts = |src: usize,
                               dst: usize,
                               family: Family,
                               service: Service,
                               (source, port): (u16, u16)|
             -> Option<bool> {
                let (a, b) = (
                    seen[family as usize][src].as_ref()?,
                    seen[family as usize][dst].as_ref()?,
                );
                let service_asked = ringwall_evaluate::Service {
                    protocol: match service {
                        Service::Other => port as u8,
                        _ => service.protocol(family, (0, u16::MAX)),
                    },
                    port: (service != Service::Other).then_some(port),
                    source_port: service.has_ports().then_some(source),
                };
                let verdict = ringwall_evaluate::judge(&cluster, &a.end, &b.end, service_asked);
                let exempt = match verdict.ingress.cause {
                    Cause::SelfTraffic => true,
                    // What goes to the own node passes unless a policy of an ordered kind denies it.
                    Cause::HostingNode => verdict.allow(),
                    _ => false,
                };
                if exempt {
                    return None;
                }
                let named = assertion
                    .ports
                    .of(service)
                    .iter()
                    .any(|(lo, hi)| (*lo..=*hi).contains(&port));
                let wanted = match assertion.claim {
                    Claim::Allow => (from[src] && to[dst] && named).then_some(true),
                    Claim::Deny => (from[src] && to[dst] && named).then_some(false),
                    Claim::OnlySources { other_ports } => match (from[src], to[dst], named) {
                        (true, true, true) => Some(true),
                        (false, true, true) => Some(false),
                        (_, true, false) if other_ports => Some(false),
                        _ => None,
                    },
                    Claim::OnlyDestinations { other_ports } => match (from[src], to[dst], named) {
                        (true, true, true) => Some(true),
                        (true, false, true) => Some(false),
                        (true, _, false) if other_ports => Some(false),
                        _ => None,
                    },
                };
                Some(wanted.is_some_and(|wanted| wanted != verdict.allow()))
            };
            let borders: Vec<u16> = ports
                .iter()
                .copied()
                .chain([53, 54, 79, 80, 81, 8080, 8081])
                .collect();
            let mut found = None;
            for _ in 0..1500 {
                let (src, dst) = (random.below(ends.all.len()), random.below(ends.all.len()));
                let service = *random.one(&services(&[&cluster]));
                // Of protocols without ports, a number.
                let port = match service {
                    Service::Other => *random.one(&[1, 47, 50, 58]),
                    _ if service.has_types() => icmp(&mut random),
                    _ => *random.one(&borders),
                };
                let ports = (*random.branch().one(&SOURCES), port);
                for family in Family::BOTH {
                    if service.is_of(family) && contradicts(src, dst, family, service, ports) == Some(true) {
                        found = Some((src, dst, family, service, ports));
                    }
                }
            }
            let said = || format!("seed {seed}: {assertion:#?}: {outcome:#?}");
            match &outcome {
                Outcome::Holds => {
                    assert_eq!(found, None, "{}", said());
                    *outcomes.entry("holds").or_default() += 1;
                }
                Outcome::Fails(example) => {
                    // The packet that is shown does contradict it.
                    let index = |name: &str, address: Option<IpAddr>| {
                        let end = match name.split_once('/') {
                            Some((namespace, name)) => ends.endpoint(&ObjectKey {
                                namespace: namespace.to_owned(),
                                name: name.to_owned(),
                            }),
                            None => ends.range(address.unwrap()),
                        };
                        end.unwrap() as usize
                    };
                    let (src, dst) = (
                        index(&example.from, example.from_address),
                        index(&example.to, example.to_address),
                    );
                    let address = example.from_address.or(example.to_address);
                    let family = address.map_or(Family::V4, Family::of);
                    let port = example.port.unwrap_or(u16::from(example.protocol));
                    if example.source_port.is_some() {
                        let other = [0, 53, 1024, 65535].into_iter().any(|other| {
                            contradicts(src, dst, family, example.service, (other, port)) != Some(true)
                        });
                        *outcomes.entry("fails from some ports").or_default() += usize::from(other);
                    }
                    let ports = (example.source_port.unwrap_or(1), port);
                    let got = contradicts(src, dst, family, example.service, ports);
                    assert_eq!(got, Some(true), "{}", said());
                    *outcomes.entry("fails").or_default() += 1;
                    if found.is_some() {
                        *outcomes.entry("fails as found").or_default() += 1;
                    }
                }
                Outcome::Vacuous { .. } => unreachable!("handled above"),
            }
        }
    }
    if std::env::var("SEED").is_err() {
        for (what, least) in [
            ("holds", 20),
            ("fails", 20),
            ("fails as found", 20),
            ("fails from some ports", 5),
            ("vacuous", 20),
        ] {
            assert!(
                outcomes.get(what).is_some_and(|count| *count >= least),
                "{what} is rare: {outcomes:?}"
            );
        }
    }
}
