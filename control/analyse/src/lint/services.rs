//! Services: policy sees packets after their address and port have been replaced by those of a pod.

mod tiers;

use std::net::IpAddr;

use ipnet::IpNet;
use ringwall_policy::{
    Labels, ObjectKey, Operator, Peer, Pod, PortMatch, Protocol, Requirement, Selector,
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
                    let port = (*protocol, *lo);
                    drafts.extend(service_port(subject, policy, placed, index, port, witnesses));
                }
            }
        }
        for (placed, index, peer) in policy.all_peers() {
            if let (Direction::Egress, Peer::Pods { namespaces, pods }) = (placed.direction, peer) {
                let selectors = (namespaces.as_ref(), pods);
                drafts.extend(api_server(subject, policy, (placed, index), selectors, witnesses));
            }
            if let (Direction::Egress, Peer::Block { cidr, except }) = (placed.direction, peer) {
                drafts.extend(service_address(
                    subject,
                    policy,
                    (placed, index),
                    (cidr, except),
                    witnesses,
                ));
            }
        }
    }
    tiers::lint(subject, witnesses, drafts);
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

/// Those pods as they are, imagined ones too.
fn pods_behind(service: &Service, witnesses: &mut Witnesses<'_>) -> Vec<(EndName, Pod)> {
    let ends = behind(service, witnesses).into_iter();
    let pods = ends.filter_map(|end| {
        let EndName::Pod(key) = &end else { return None };
        let pod = Pod::clone(witnesses.with_synthetic().pods.get(key)?);
        Some((end, pod))
    });
    pods.collect()
}

/// Where packets to a port of a Service arrive, if not at the port of that number: pods and the port on which each listens.
fn behind_ports(
    service: &Service,
    protocol: Protocol,
    number: u16,
    witnesses: &mut Witnesses<'_>,
) -> Vec<(Pod, u16)> {
    let elsewhere = TargetPort::Number(number);
    let mut ports = service.ports.iter();
    let Some(port) = ports.find(|it| it.protocol == protocol && it.port == number && it.target != elsewhere)
    else {
        return Vec::new();
    };
    let pods = pods_behind(service, witnesses).into_iter();
    let arrivals = pods.filter_map(|(_, pod)| {
        let listens = target(port, &pod).filter(|it| *it != number)?;
        Some((pod, listens))
    });
    arrivals.collect()
}

/// What is wrong with the port of a Service in a rule.
fn says_service_port(service: &Service, number: u16, listens: u16) -> String {
    format!(
        "{number} is the port of Service {}; its pods listen on {listens}, which is what policies match",
        service.key
    )
}

/// What becomes of packets to that port.
fn where_requests_arrive(service: &Service, number: u16, listens: u16) -> String {
    format!(
        "requests to Service {}:{number} arrive at {listens}",
        service.key.name
    )
}

/// A rule that names the port of a Service whose pods listen on another one.
fn service_port<'a>(
    subject: &Subject<'a>,
    policy: &Policy<'a>,
    placed: PlacedRule<'a>,
    index: usize,
    (protocol, number): (Protocol, u16),
    witnesses: &mut Witnesses<'_>,
) -> Option<Draft<'a>> {
    let own = policy.namespace();
    subject.services.iter().find_map(|service| {
        let mut pods = behind_ports(service, protocol, number, witnesses).into_iter();
        pods.find_map(|(pod, listens)| {
            let end = EndName::Pod(pod.key.clone());
            // The rule is about this pod: it is selected, or it is a peer.
            let (us, peer) = match placed.direction {
                Direction::Ingress if service.key.namespace == own && policy.selects(&pod.labels) => {
                    let peers = placed.rule.peers.iter().flatten();
                    let peer = peers
                        .filter_map(|peer| witnesses.peer(own, peer))
                        .find(|it| *it != end);
                    let peer = peer.or_else(|| witnesses.stranger(own))?;
                    (end, peer)
                }
                Direction::Egress if is_peer(policy, placed, &pod, witnesses) => {
                    let us = witnesses.subject(own, &policy.it.subjects);
                    (us.filter(|us| *us != end)?, end)
                }
                _ => return None,
            };
            let wanted = format!("allow: {}", where_requests_arrive(service, number, listens));
            Some(
                Draft::of(
                    rules::SERVICE_PORT,
                    policy,
                    placed.port_path(index),
                    says_service_port(service, number, listens),
                    format!("write port {listens}"),
                )
                .asking([Ask::new(
                    placed.direction,
                    &us,
                    &peer,
                    (protocol, listens),
                    false,
                    wanted,
                )]),
            )
        })
    })
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

/// Why a block of a Service is of no use.
const MATCHES_NOTHING: &str =
    ": packets have the address of a pod by the time policy sees them, so it matches nothing";

/// A block that is meant to be a Service, or all of them.
struct ServiceBlock<'a> {
    /// `the address of Service ns/name`, or `10.96.0.0/12 is a network of Services`.
    what: String,
    /// A Service with an address in it.
    service: Option<&'a Service>,
}

impl<'a> ServiceBlock<'a> {
    /// None for any other block.
    fn of(subject: &Subject<'a>, cidr: &IpNet, except: &[IpNet]) -> Option<Self> {
        let inside =
            |address: &IpAddr| cidr.contains(address) && !except.iter().any(|hole| hole.contains(address));
        let of_it = |it: &&&Service| {
            let balanced = it.ingress.iter().filter(|ingress| !ingress.replaced);
            let mut all = it
                .cluster_ips
                .iter()
                .chain(&it.external_ips)
                .chain(balanced.map(|it| &it.address));
            all.any(inside)
        };
        let service = subject.services.iter().find(of_it).copied();
        let single = cidr.prefix_len() == cidr.max_prefix_len();
        let mut networks = subject.service_networks.iter();
        let what = match service {
            Some(service) if single => format!("the address of Service {}", service.key),
            _ if networks.any(|network| network.contains(cidr)) => {
                format!("{cidr} is a network of Services")
            }
            _ => return None,
        };
        Some(Self { what, service })
    }

    /// Packets to the pods behind the Service, as its clients mean them. `wanted` says what the author wanted of them, and whether
    /// they pass if the suspicion is right.
    fn asks(
        &self,
        us: &EndName,
        witnesses: &mut Witnesses<'_>,
        wanted: &dyn Fn(&str) -> (String, bool),
    ) -> Vec<Ask> {
        let Some((service, port)) = self.service.and_then(|it| Some((it, it.ports.first()?))) else {
            return Vec::new();
        };
        let pods = pods_behind(service, witnesses).into_iter();
        let asks = pods.filter_map(|(end, pod)| {
            let packet = (port.protocol, target(port, &pod)?);
            let (wanted, expect) = wanted(&format!("a pod behind Service {}", service.key));
            Some(Ask::new(Direction::Egress, us, &end, packet, expect, wanted))
        });
        asks.collect()
    }
}

fn service_address<'a>(
    subject: &Subject<'a>,
    policy: &Policy<'a>,
    (placed, index): (PlacedRule<'a>, usize),
    (cidr, except): (&IpNet, &[IpNet]),
    witnesses: &mut Witnesses<'_>,
) -> Option<Draft<'a>> {
    let found = ServiceBlock::of(subject, cidr, except)?;
    let us = witnesses.subject(policy.namespace(), &policy.it.subjects)?;
    let asks = found.asks(&us, witnesses, &|pod| (format!("allow: {pod}"), false));
    let draft = Draft::of(
        rules::SERVICE_ADDRESS,
        policy,
        format!("{}.ipBlock.cidr", placed.peer_path(index)),
        format!("{}{MATCHES_NOTHING}", found.what),
        "select the pods behind the Service by podSelector and namespaceSelector, with the port they listen on",
    );
    Some(draft.shown(Shown::Itself).asking(asks))
}

/// Labels by which people mean the API server.
const OF_API_SERVERS: [&str; 3] = ["apiserver", "kube-apiserver", "openshift-kube-apiserver"];

/// The namespace and name of the API server's Service.
const KUBERNETES: (&str, &str) = ("default", "kubernetes");

/// The port that API servers listen on by default.
const API_PORT: u16 = 6443;

/// Why no selector is of use.
const API_SERVER_ELSEWHERE: &str = "the API server is on its nodes' network, or outside of the cluster: no selector matches it, whatever \
                                    labels its pods or Service have";

/// Whether a selector asks for a label by which people mean the API server.
fn names_api_server(pods: &Selector) -> bool {
    pods.requirements
        .iter()
        .any(|Requirement { operator, .. }| match operator {
            Operator::In(values) => values
                .iter()
                .any(|value| OF_API_SERVERS.contains(&value.as_str())),
            _ => false,
        })
}

/// Whether pods match, `here` by the name and labels of their namespace: some run the API server in pods, and then the rule may be
/// right.
fn runs_in_pods(subject: &Subject<'_>, here: &dyn Fn(&str, &Labels) -> bool, pods: &Selector) -> bool {
    subject.cluster.pods.values().any(|pod| {
        let name = &pod.key.namespace;
        let namespace = subject.cluster.namespaces.get(name);
        namespace.is_some_and(|it| here(name, &it.labels)) && !pod.host_network && matches(pods, &pod.labels)
    })
}

/// A selector that is meant to be the API server, which is no pod.
fn api_server<'a>(
    subject: &Subject<'a>,
    policy: &Policy<'a>,
    (placed, index): (PlacedRule<'a>, usize),
    (namespaces, pods): (Option<&Selector>, &Selector),
    witnesses: &mut Witnesses<'_>,
) -> Option<Draft<'a>> {
    let own = policy.namespace();
    let here = |name: &str, labels: &Labels| match namespaces {
        None => name == own,
        Some(selector) => matches(selector, labels),
    };
    if !names_api_server(pods) || runs_in_pods(subject, &here, pods) {
        return None;
    }
    let us = witnesses.subject(own, &policy.it.subjects)?;
    let asks = api_servers(subject).into_iter().map(|(address, port)| {
        let server = EndName::Address(address);
        let packet = (Protocol::Tcp, port);
        Ask::new(
            Direction::Egress,
            &us,
            &server,
            packet,
            false,
            "allow: the API server",
        )
    });
    let draft = Draft::of(
        rules::API_SERVER_BY_SELECTOR,
        policy,
        format!("{}.podSelector", placed.peer_path(index)),
        API_SERVER_ELSEWHERE,
        format!(
            "allow its addresses by ipBlock (kubectl get endpointslices -n default), with the port it listens on, usually {API_PORT}"
        ),
    );
    Some(draft.asking(asks))
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
