//! Whether a selector, a peer or a port matches, and if not, the first condition that it fails at.
//!
//! Written for people: each answer can be said in words. Shares nothing with `reference`, `model` or `compile`, which
//! each explanation is compared with.

use std::net::IpAddr;

use ipnet::IpNet;
use ringwall_evaluate::{End, Identity, Service, holds, selects};
use ringwall_policy::{
    Cluster, Labels, NamedPort, ObjectKey, Operator, Part, Peer, Pod, PortMatch, Protocol, Requirement,
    Selector, TieredPolicy,
};

use crate::flow::protocol_name;

/// The first requirement of a selector that labels do not meet.
pub fn unmet<'a>(selector: &'a Selector, labels: &Labels) -> Option<&'a Requirement> {
    selector
        .requirements
        .iter()
        .find(|requirement| !holds(requirement, labels))
}

/// Whether a policy of an ordered kind selects a pod.
pub fn is_subject(cluster: &Cluster, policy: &TieredPolicy, pod: &Pod) -> bool {
    let Some(labels) = namespace_labels(cluster, pod) else {
        return false;
    };
    policy
        .subjects
        .iter()
        .any(|subjects| selects(&subjects.namespaces, labels) && selects(&subjects.pods, &pod.labels))
}

/// A requirement as one would say it.
pub(crate) fn requirement_words(requirement: &Requirement) -> String {
    let key = &requirement.key;
    let list = |values: &std::collections::BTreeSet<String>| {
        let values: Vec<String> = values.iter().map(|value| value_words(value)).collect();
        values.join(", ")
    };
    match &requirement.operator {
        Operator::In(values) if values.len() == 1 => format!("{key}={}", list(values)),
        Operator::In(values) => format!("{key} in ({})", list(values)),
        Operator::NotIn(values) => format!("{key} not in ({})", list(values)),
        Operator::Exists => format!("the label {key}"),
        Operator::DoesNotExist => format!("no label {key}"),
        Operator::Like { part, text, negated } => like_words(key, *part, text, *negated),
    }
}

/// `app starting with "web-"`.
fn like_words(key: &str, part: Part, text: &str, negated: bool) -> String {
    let how = match part {
        Part::Anywhere => "containing",
        Part::Start => "starting with",
        Part::End => "ending with",
    };
    let not = if negated { "not " } else { "" };
    format!("{key} {not}{how} {text:?}")
}

fn value_words(value: &str) -> String {
    if value.is_empty() {
        "\"\"".to_owned()
    } else {
        value.to_owned()
    }
}

/// A selector as one would say it.
pub(super) fn selector_words(selector: &Selector) -> String {
    if selector.requirements.is_empty() {
        return "all".to_owned();
    }
    let words: Vec<String> = selector.requirements.iter().map(requirement_words).collect();
    words.join(" and ")
}

/// Labels as one would say them.
pub(crate) fn labels_words(labels: &Labels) -> String {
    if labels.is_empty() {
        return "no labels".to_owned();
    }
    let words: Vec<String> = labels
        .iter()
        .map(|(key, value)| format!("{key}={}", value_words(value)))
        .collect();
    words.join(", ")
}

/// What an object has where a requirement wants something else.
pub(super) fn has_words(who: &str, requirement: &Requirement, labels: &Labels) -> String {
    match labels.get(&requirement.key) {
        Some(value) => format!("{who} has {}={}", requirement.key, value_words(value)),
        None => format!("{who} has no label {}", requirement.key),
    }
}

/// Why a peer entry does not match.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum PeerMiss<'a> {
    /// Selectors match pods; the end is something else.
    NotAPod,
    /// A podSelector alone speaks of the policy's own namespace.
    OtherNamespace,
    /// The end's namespace has not been seen.
    UnseenNamespace,
    /// The namespace's labels.
    NamespaceLabels(&'a Requirement),
    /// The pod's labels.
    PodLabels(&'a Requirement),
    /// The end has no address.
    NoAddress,
    /// Its address is of the other family.
    Family,
    /// Its address is outside of the block.
    Outside,
    /// Its address is in an except.
    Except(&'a IpNet),
}

/// Whether a peer entry of a policy in `namespace` matches an end.
pub(super) fn peer<'a>(
    cluster: &Cluster,
    namespace: &str,
    entry: &'a Peer,
    end: &End<'_>,
) -> Result<(), PeerMiss<'a>> {
    match entry {
        Peer::Block { cidr, except } => {
            let address = end.address.ok_or(PeerMiss::NoAddress)?;
            if cidr.network().is_ipv4() != address.is_ipv4() {
                return Err(PeerMiss::Family);
            }
            if !cidr.contains(&address) {
                return Err(PeerMiss::Outside);
            }
            match except.iter().find(|hole| hole.contains(&address)) {
                Some(hole) => Err(PeerMiss::Except(hole)),
                None => Ok(()),
            }
        }
        Peer::Addresses(_) => {
            let address = end.address.ok_or(PeerMiss::NoAddress)?;
            let mut members = cluster.blocks_of(entry);
            match members.any(|(net, _)| net.contains(&address)) {
                true => Ok(()),
                false => Err(PeerMiss::Outside),
            }
        }
        Peer::Pods { namespaces, pods } => {
            let Identity::Pod(pod) = end.identity else {
                return Err(PeerMiss::NotAPod);
            };
            match namespaces {
                None if pod.key.namespace != namespace => return Err(PeerMiss::OtherNamespace),
                None => {}
                Some(selector) => {
                    let labels = namespace_labels(cluster, pod).ok_or(PeerMiss::UnseenNamespace)?;
                    if let Some(requirement) = unmet(selector, labels) {
                        return Err(PeerMiss::NamespaceLabels(requirement));
                    }
                }
            }
            unmet(pods, &pod.labels).map_or(Ok(()), |requirement| Err(PeerMiss::PodLabels(requirement)))
        }
    }
}

/// Labels of a pod's namespace.
pub(super) fn namespace_labels<'a>(cluster: &'a Cluster, pod: &Pod) -> Option<&'a Labels> {
    cluster
        .namespaces
        .get(&pod.key.namespace)
        .map(|namespace| &namespace.labels)
}

/// A peer entry as one would say it.
pub(super) fn peer_words(entry: &Peer) -> String {
    match entry {
        Peer::Block { cidr, except } if except.is_empty() => format!("ipBlock {cidr}"),
        Peer::Block { cidr, except } => {
            let holes: Vec<String> = except.iter().map(IpNet::to_string).collect();
            format!("ipBlock {cidr} except {}", holes.join(", "))
        }
        Peer::Addresses(set) => format!("the addresses of {set}"),
        Peer::Pods {
            namespaces: None,
            pods,
        } => format!("podSelector {} in its own namespace", selector_words(pods)),
        Peer::Pods {
            namespaces: Some(namespaces),
            pods,
        } => format!(
            "namespaceSelector {} with podSelector {}",
            selector_words(namespaces),
            selector_words(pods)
        ),
    }
}

/// Why a peer entry does not match, as one would say it.
pub(super) fn peer_miss_words(cluster: &Cluster, miss: &PeerMiss<'_>, who: &str, end: &End<'_>) -> String {
    let pod = match end.identity {
        Identity::Pod(pod) => Some(pod),
        _ => None,
    };
    match miss {
        PeerMiss::NotAPod => format!("selectors match only pods; {who} is not a pod"),
        PeerMiss::OtherNamespace => format!(
            "podSelector alone means the policy's own namespace, and {who} is in {}",
            pod.map_or("", |pod| pod.key.namespace.as_str())
        ),
        PeerMiss::UnseenNamespace => format!("the namespace of {who} has not been seen"),
        PeerMiss::NamespaceLabels(requirement) => {
            let name = pod.map_or("", |pod| pod.key.namespace.as_str());
            let none = Labels::new();
            let labels = pod
                .and_then(|pod| namespace_labels(cluster, pod))
                .unwrap_or(&none);
            format!(
                "namespaceSelector wants {}, {}",
                requirement_words(requirement),
                has_words(&format!("namespace {name}"), requirement, labels)
            )
        }
        PeerMiss::PodLabels(requirement) => {
            let none = Labels::new();
            let labels = pod.map_or(&none, |pod| &pod.labels);
            format!(
                "podSelector wants {}, {}",
                requirement_words(requirement),
                has_words(who, requirement, labels)
            )
        }
        PeerMiss::NoAddress => format!("{who} has no address; an ipBlock matches only addresses"),
        PeerMiss::Family => format!("{} is of the other address family", address_words(end.address)),
        PeerMiss::Outside => format!("{} is outside of it", address_words(end.address)),
        PeerMiss::Except(hole) => format!("{} is in its except {hole}", address_words(end.address)),
    }
}

fn address_words(address: Option<IpAddr>) -> String {
    address.map_or_else(|| "the end".to_owned(), |address| address.to_string())
}

/// Why a ports entry does not match.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum PortMiss {
    /// The flow has no port that a rule could name.
    NoPort,
    /// Another protocol.
    Protocol,
    /// Another port.
    Port,
    /// A name, and the end is no pod.
    NameOfNoPod,
    /// A name that the end does not define for the protocol; the numbers under which it has it for others.
    UndefinedName(Vec<(Protocol, u16)>),
    /// A name that means another number there.
    NameIs(u16),
    /// Another type or code of ICMP, or none that is known.
    Type,
}

/// Whether a ports entry matches; `whose` is the end whose port it is: the destination, or the source of a source port.
pub(super) fn port(entry: &PortMatch, whose: &End<'_>, service: Service) -> Result<(), PortMiss> {
    let protocol = match entry {
        PortMatch::IpProtocol(number) if *number == service.protocol => return Ok(()),
        PortMatch::IpProtocol(_) => return Err(PortMiss::Protocol),
        PortMatch::Icmp { protocol, .. } if *protocol != service.protocol => return Err(PortMiss::Protocol),
        PortMatch::Icmp { kind, code, .. } => {
            let own = service.port.map(u16::to_be_bytes);
            let is = own.is_some_and(|[own_kind, own_code]| {
                own_kind == *kind && code.is_none_or(|code| own_code == code)
            });
            return if is { Ok(()) } else { Err(PortMiss::Type) };
        }
        PortMatch::All(protocol) | PortMatch::Range { protocol, .. } | PortMatch::Named { protocol, .. } => {
            protocol
        }
    };
    let Some(number) = service.port else {
        return Err(PortMiss::NoPort);
    };
    if protocol.number() != service.protocol {
        return Err(PortMiss::Protocol);
    }
    match entry {
        PortMatch::All(_) | PortMatch::IpProtocol(_) | PortMatch::Icmp { .. } => Ok(()),
        PortMatch::Range { lo, hi, .. } if (*lo..=*hi).contains(&number) => Ok(()),
        PortMatch::Range { .. } => Err(PortMiss::Port),
        PortMatch::Named { protocol, name } => {
            let Identity::Pod(pod) = whose.identity else {
                return Err(PortMiss::NameOfNoPod);
            };
            let named = |port: &&NamedPort| port.name == *name;
            let defined = pod
                .named_ports
                .iter()
                .filter(named)
                .find(|port| port.protocol == *protocol);
            match defined {
                Some(port) if port.number == number => Ok(()),
                Some(port) => Err(PortMiss::NameIs(port.number)),
                None => Err(PortMiss::UndefinedName(
                    pod.named_ports
                        .iter()
                        .filter(named)
                        .map(|port| (port.protocol, port.number))
                        .collect(),
                )),
            }
        }
    }
}

pub(super) fn protocol_words(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Tcp => "TCP",
        Protocol::Udp => "UDP",
        Protocol::Sctp => "SCTP",
    }
}

/// A ports entry as one would say it.
pub(super) fn port_words(entry: &PortMatch) -> String {
    match entry {
        PortMatch::All(protocol) => format!("every {} port", protocol_words(*protocol)),
        PortMatch::Range { protocol, lo, hi } if lo == hi => format!("{lo}/{}", protocol_words(*protocol)),
        PortMatch::Range { protocol, lo, hi } => format!("{lo}-{hi}/{}", protocol_words(*protocol)),
        PortMatch::Named { protocol, name } => format!("\"{name}\"/{}", protocol_words(*protocol)),
        PortMatch::IpProtocol(number) => format!("IP protocol {number}"),
        PortMatch::Icmp { protocol, kind, code } => {
            let name = protocol_name(*protocol);
            match code {
                Some(code) => format!("{name} type {kind} code {code}"),
                None => format!("{name} type {kind}"),
            }
        }
    }
}

/// Why a ports entry does not match, as one would say it.
pub(super) fn port_miss_words(miss: &PortMiss, dst: &str, service: &str) -> String {
    match miss {
        PortMiss::NoPort => {
            format!("{service} has no port; a rule with ports matches only TCP, UDP and SCTP")
        }
        PortMiss::Protocol => format!("{service} is another protocol"),
        PortMiss::Type => format!("{service} is of another type"),
        PortMiss::Port => format!("{service} is another port"),
        PortMiss::NameIs(number) => format!("that name is port {number} of {dst}, and the flow is {service}"),
        PortMiss::NameOfNoPod | PortMiss::UndefinedName(_) => name_miss_words(miss, dst).unwrap_or_default(),
    }
}

/// What the name of a port is to the end whose port it is, where that is why it does not match.
pub(super) fn name_miss_words(miss: &PortMiss, whose: &str) -> Option<String> {
    Some(match miss {
        PortMiss::NameOfNoPod => format!("{whose} is not a pod, so it has no named ports"),
        PortMiss::UndefinedName(others) if others.is_empty() => {
            format!("{whose} has no port of that name")
        }
        PortMiss::UndefinedName(others) => {
            let others: Vec<String> = others
                .iter()
                .map(|(protocol, number)| format!("{number}/{}", protocol_words(*protocol)))
                .collect();
            format!("{whose} has that name only for {}", others.join(", "))
        }
        PortMiss::NameIs(number) => format!("that name is port {number} of {whose}"),
        PortMiss::NoPort | PortMiss::Protocol | PortMiss::Port | PortMiss::Type => return None,
    })
}

/// Source ports as one would say them: their protocols are those of the rule.
pub(super) fn source_port_words(entries: &[PortMatch]) -> String {
    let mut words: Vec<String> = Vec::new();
    for entry in entries {
        let word = match entry {
            PortMatch::Range { lo, hi, .. } if lo == hi => lo.to_string(),
            PortMatch::Range { lo, hi, .. } => format!("{lo}-{hi}"),
            PortMatch::Named { name, .. } => format!("\"{name}\""),
            entry => port_words(entry),
        };
        if !words.contains(&word) {
            words.push(word);
        }
    }
    match words.is_empty() {
        true => "none".to_owned(),
        false => words.join(", "),
    }
}

/// The policies of a namespace.
pub(super) fn policies_of<'a>(
    cluster: &'a Cluster,
    namespace: &'a str,
) -> impl Iterator<Item = &'a ringwall_policy::NetworkPolicy> + 'a {
    let from = ObjectKey {
        namespace: namespace.to_owned(),
        name: String::new(),
    };
    cluster
        .policies
        .range(from..)
        .map(|(_, policy)| policy.as_ref())
        .take_while(move |policy| policy.key.namespace == namespace)
}
