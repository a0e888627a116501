//! Services: policy sees packets after their address and port have been replaced by those of a pod.

use std::net::IpAddr;

use ringwall_policy::{
    ObjectKey, Operator, Peer, Pod, PortMatch, Protocol, Requirement, Selector,
    services::{Service, TargetPort},
};

use super::{
    draft::{Ask, Draft, Shown},
    rules,
    selecting::matches,
    subject::{Direction, PlacedRule, Policy, Subject, selector_of},
    witnesses::{DOC_ADDRESSES, NamespaceFilter, Witnesses},
};
use crate::{flow::EndName, services::target};

pub(super) fn lint<'a>(subject: &Subject<'a>, witnesses: &mut Witnesses<'_>, drafts: &mut Vec<Draft<'a>>) {
    for policy in &subject.policies {
        for placed in policy.all_rules() {
            for (index, port) in placed.rule.ports.iter().flatten().enumerate() {
                let PortMatch::Range { protocol, lo, hi } = port else {
                    continue;
                };
                if lo == hi {
                    service_port(
                        subject,
                        policy,
                        placed,
                        index,
                        (*protocol, *lo),
                        witnesses,
                        drafts,
                    );
                }
            }
        }
        for (placed, index, peer) in policy.all_peers() {
            if let (Direction::Egress, Peer::Pods { namespaces, pods }) = (placed.direction, peer) {
                api_server(
                    subject,
                    policy,
                    (placed, index),
                    (namespaces.as_ref(), pods),
                    witnesses,
                    drafts,
                );
            }
            if let (Direction::Egress, Peer::Block { cidr, except }) = (placed.direction, peer) {
                let inside = |address: &IpAddr| {
                    cidr.contains(address) && !except.iter().any(|hole| hole.contains(address))
                };
                service_address(subject, policy, (placed, index), cidr, &inside, witnesses, drafts);
            }
        }
    }
}

/// The pods behind a Service, or one as it would be.
fn behind(service: &Service, witnesses: &mut Witnesses<'_>) -> Vec<EndName> {
    let selector = selector_of(&service.selector);
    let real: Vec<EndName> = witnesses
        .live(&service.key.namespace)
        .filter(|pod| matches(&selector, &pod.labels))
        .map(|pod| EndName::Pod(pod.key.clone()))
        .collect();
    if real.is_empty() {
        witnesses
            .pod(
                NamespaceFilter::Named(&service.key.namespace),
                &[&selector],
                &|_| true,
            )
            .into_iter()
            .collect()
    } else {
        real
    }
}

/// A rule that names the port of a Service whose pods listen on another one.
fn service_port<'a>(
    subject: &Subject<'a>,
    policy: &Policy<'a>,
    placed: PlacedRule<'a>,
    index: usize,
    (protocol, number): (Protocol, u16),
    witnesses: &mut Witnesses<'_>,
    drafts: &mut Vec<Draft<'a>>,
) {
    let own = policy.namespace();
    for service in &subject.services {
        let Some(port) = service.ports.iter().find(|it| {
            it.protocol == protocol && it.port == number && it.target != TargetPort::Number(number)
        }) else {
            continue;
        };
        for end in behind(service, witnesses) {
            let EndName::Pod(key) = &end else { continue };
            let Some(pod) = witnesses.with_synthetic().pods.get(key).cloned() else {
                continue;
            };
            let Some(listens) = target(port, &pod).filter(|it| *it != number) else {
                continue;
            };
            // The rule is about this pod: it is selected, or it is a peer.
            let other = match placed.direction {
                Direction::Ingress if service.key.namespace == own && policy.selects(&pod.labels) => {
                    let peers = placed.rule.peers.iter().flatten();
                    let peer = peers
                        .filter_map(|peer| witnesses.peer(own, peer))
                        .find(|it| *it != end);
                    peer.or_else(|| witnesses.stranger(own))
                        .map(|peer| (end.clone(), peer))
                }
                Direction::Egress if is_peer(policy, placed, &pod, witnesses) => witnesses
                    .subject(own, &policy.it.subjects)
                    .filter(|us| *us != end)
                    .map(|us| (us, end.clone())),
                _ => None,
            };
            let Some((us, peer)) = other else { continue };
            let wanted = format!(
                "allow: requests to Service {}:{number} arrive at {listens}",
                service.key.name
            );
            drafts.push(
                Draft::of(
                    rules::SERVICE_PORT,
                    policy,
                    placed.port_path(index),
                    format!(
                        "{number} is the port of Service {}; its pods listen on {listens}, which is what policies match",
                        service.key
                    ),
                    format!("write port {listens}"),
                )
                .asking([Ask::new(placed.direction, &us, &peer, (protocol, listens), false, wanted)]),
            );
            return;
        }
    }
}

fn is_peer(policy: &Policy<'_>, placed: PlacedRule<'_>, pod: &Pod, witnesses: &Witnesses<'_>) -> bool {
    let Some(peers) = &placed.rule.peers else {
        return false;
    };
    let namespace = witnesses.with_synthetic().namespaces.get(&pod.key.namespace);
    peers.iter().any(|peer| match peer {
        Peer::Block { .. } | Peer::Addresses(_) => false,
        Peer::Pods { namespaces, pods } => {
            let there = match namespaces {
                None => pod.key.namespace == policy.namespace(),
                Some(selector) => namespace.is_some_and(|it| matches(selector, &it.labels)),
            };
            there && matches(pods, &pod.labels)
        }
    })
}

/// A block that is meant to be a Service, or all of them.
fn service_address<'a>(
    subject: &Subject<'a>,
    policy: &Policy<'a>,
    (placed, index): (PlacedRule<'a>, usize),
    cidr: &ipnet::IpNet,
    inside: &dyn Fn(&IpAddr) -> bool,
    witnesses: &mut Witnesses<'_>,
    drafts: &mut Vec<Draft<'a>>,
) {
    let single = cidr.prefix_len() == cidr.max_prefix_len();
    let whole = subject
        .service_networks
        .iter()
        .any(|network| network.contains(cidr));
    let of_it = |it: &&&Service| {
        let balanced = it.ingress.iter().filter(|ingress| !ingress.replaced);
        let mut all = it
            .cluster_ips
            .iter()
            .chain(&it.external_ips)
            .chain(balanced.map(|it| &it.address));
        all.any(inside)
    };
    let service = subject.services.iter().find(of_it);
    if !(whole || single && service.is_some()) {
        return;
    }
    let Some(us) = witnesses.subject(policy.namespace(), &policy.it.subjects) else {
        return;
    };
    let mut asks = Vec::new();
    if let Some(service) = service {
        for end in behind(service, witnesses) {
            let EndName::Pod(key) = &end else { continue };
            let pod = witnesses.with_synthetic().pods.get(key).cloned();
            let Some((pod, port)) = pod.zip(service.ports.first()) else {
                continue;
            };
            let Some(number) = target(port, &pod) else {
                continue;
            };
            let wanted = format!("allow: a pod behind Service {}", service.key);
            asks.push(Ask::new(
                Direction::Egress,
                &us,
                &end,
                (port.protocol, number),
                false,
                wanted,
            ));
        }
    }
    let what = match service {
        Some(service) if single => format!("the address of Service {}", service.key),
        _ => format!("{cidr} is a network of Services"),
    };
    drafts.push(
        Draft::of(
            rules::SERVICE_ADDRESS,
            policy,
            format!("{}.ipBlock.cidr", placed.peer_path(index)),
            format!("{what}: packets have the address of a pod by the time policy sees them, so it matches nothing"),
            "select the pods behind the Service by podSelector and namespaceSelector, with the port they listen on",
        )
        .shown(Shown::Itself)
        .asking(asks),
    );
}

/// Labels by which people mean the API server.
const OF_API_SERVERS: [&str; 3] = ["apiserver", "kube-apiserver", "openshift-kube-apiserver"];

/// The namespace and name of the API server's Service.
const KUBERNETES: (&str, &str) = ("default", "kubernetes");

/// The port that API servers listen on where nobody says otherwise.
const API_PORT: u16 = 6443;

/// A selector that is meant to be the API server, which is no pod.
fn api_server<'a>(
    subject: &Subject<'a>,
    policy: &Policy<'a>,
    (placed, index): (PlacedRule<'a>, usize),
    (namespaces, pods): (Option<&Selector>, &Selector),
    witnesses: &mut Witnesses<'_>,
    drafts: &mut Vec<Draft<'a>>,
) {
    let named = |Requirement { operator, .. }: &Requirement| match operator {
        Operator::In(values) => values
            .iter()
            .any(|value| OF_API_SERVERS.contains(&value.as_str())),
        _ => false,
    };
    if !pods.requirements.iter().any(named) {
        return;
    }
    // Some run it in pods: then the rule may be right.
    let own = policy.namespace();
    let in_pods = subject.cluster.pods.values().any(|pod| {
        let there = match namespaces {
            None => pod.key.namespace == own,
            Some(selector) => {
                let namespace = subject.cluster.namespaces.get(&pod.key.namespace);
                namespace.is_some_and(|it| matches(selector, &it.labels))
            }
        };
        there && !pod.host_network && matches(pods, &pod.labels)
    });
    let Some(us) = witnesses.subject(own, &policy.it.subjects).filter(|_| !in_pods) else {
        return;
    };
    let wanted = "allow: the API server";
    let asks = api_servers(subject).into_iter().map(|(address, port)| {
        let server = EndName::Address(address);
        Ask::new(
            Direction::Egress,
            &us,
            &server,
            (Protocol::Tcp, port),
            false,
            wanted,
        )
    });
    drafts.push(
        Draft::of(
            rules::API_SERVER_BY_SELECTOR,
            policy,
            format!("{}.podSelector", placed.peer_path(index)),
            "the API server is on its nodes' network, or outside of the cluster: no selector matches it, whatever labels its pods or \
             Service have",
            format!("allow its addresses by ipBlock (kubectl get endpointslices -n default), with the port it listens on, usually {API_PORT}"),
        )
        .asking(asks),
    );
}

/// Addresses and ports of API servers: those that are listed, else those of nodes.
fn api_servers(subject: &Subject<'_>) -> Vec<(IpAddr, u16)> {
    let (namespace, name) = KUBERNETES;
    let key = ObjectKey {
        namespace: namespace.to_owned(),
        name: name.to_owned(),
    };
    let mut listed = Vec::new();
    for slice in subject.all_services.slices_of(&key) {
        let port = slice.ports.first().map_or(API_PORT, |port| port.number);
        let addresses = slice.endpoints.iter().filter_map(|it| it.addresses.first());
        listed.extend(addresses.map(|address| (*address, port)));
    }
    if listed.is_empty() {
        let nodes = subject.cluster.nodes.values();
        listed.extend(nodes.filter_map(|node| Some((*node.addresses.first()?, API_PORT))));
    }
    if listed.is_empty() {
        listed.extend(DOC_ADDRESSES.map(|address| (address, API_PORT)));
    }
    listed
}
