//! Names have to be resolved before anything can be reached by them.

use std::collections::BTreeSet;

use ringwall_policy::{Labels, ObjectKey, Peer, Pod, PortMatch, Protocol, Rule};

use super::{
    Severity,
    draft::{Ask, Draft, Shown},
    rules,
    subject::{Direction, Policy, Subject, selector_of},
    witnesses::{NamespaceFilter, Witnesses},
};
use crate::flow::EndName;

/// Where OpenShift's DNS pods listen: policies see the ports of pods, not those of Services.
const OPENSHIFT: u16 = 5353;

/// How many DNS servers are asked about at most.
const MOST_SERVERS: usize = 8;

pub(super) fn lint<'a>(subject: &Subject<'a>, witnesses: &mut Witnesses<'_>, drafts: &mut Vec<Draft<'a>>) {
    let servers = servers(witnesses);
    // Pods with the same policies have the same answer.
    let mut seen: BTreeSet<Vec<&ObjectKey>> = BTreeSet::new();
    for policy in &subject.policies {
        if policy.rules(Direction::Egress).is_none_or(<[_]>::is_empty) {
            continue;
        }
        let real: Vec<Labels> = witnesses
            .live(policy.namespace())
            .filter(|pod| policy.selects(&pod.labels) && !is_server(pod))
            .map(|pod| pod.labels.clone())
            .collect();
        let mut subjects: BTreeSet<Labels> = real.into_iter().collect();
        if subjects.is_empty() && witnesses.live(policy.namespace()).next().is_none() {
            let imagined = witnesses.subject(policy.namespace(), &policy.it.subjects);
            subjects.extend(imagined.and_then(|end| labels_of(witnesses, &end)));
        }
        for labels in subjects {
            let of: Vec<&Policy<'a>> = subject
                .selecting(policy.namespace(), &labels)
                .filter(|policy| policy.it.egress.is_some())
                .collect();
            if seen.insert(of.iter().map(|policy| &policy.it.key).collect()) {
                drafts.extend(resolving(policy, &labels, &of, &servers, witnesses));
            }
        }
    }
}

fn labels_of(witnesses: &Witnesses<'_>, end: &EndName) -> Option<Labels> {
    match end {
        EndName::Address(_) | EndName::Service(_) => None,
        EndName::Pod(key) => Some(witnesses.with_synthetic().pods.get(key)?.labels.clone()),
    }
}

/// What is wrong with how pods that these policies select resolve names.
fn resolving<'a>(
    policy: &Policy<'a>,
    labels: &Labels,
    of: &[&Policy<'a>],
    servers: &[EndName],
    witnesses: &mut Witnesses<'_>,
) -> Vec<Draft<'a>> {
    let rules: Vec<&Rule> = of
        .iter()
        .flat_map(|policy| policy.rules(Direction::Egress).unwrap_or_default())
        .collect();
    let by = |protocol| {
        rules
            .iter()
            .copied()
            .filter(|rule| {
                opens(rule, protocol, 53) || servers.is_empty() && opens(rule, protocol, OPENSHIFT)
            })
            .collect::<Vec<_>>()
    };
    let (udp, tcp) = (by(Protocol::Udp), by(Protocol::Tcp));
    let Some(us) = witnesses.pod(
        NamespaceFilter::Named(policy.namespace()),
        &[&selector_of(labels)],
        &|it| it == labels,
    ) else {
        return Vec::new();
    };
    let asks = |witnesses: &mut Witnesses<'_>, protocol, wanted: &str| -> Vec<Ask> {
        let mut servers = servers.to_vec();
        if servers.is_empty() {
            servers.extend(imagined_server(witnesses));
        }
        let ask = |server: &EndName| Ask::new(Direction::Egress, &us, server, (protocol, 53), false, wanted);
        servers.iter().map(ask).collect()
    };
    let field = "spec.egress";
    if udp.is_empty() {
        // Whoever reaches fixed addresses alone may need no names.
        let by_name = rules.iter().any(|rule| match &rule.peers {
            None => true,
            Some(peers) => peers.iter().any(|peer| match peer {
                Peer::Pods { .. } => true,
                Peer::Block { cidr, .. } => cidr.prefix_len() == 0,
                Peer::Addresses(_) => false,
            }),
        });
        let asks = asks(
            witnesses,
            Protocol::Udp,
            "allow: the pods resolve the names of what they may reach",
        );
        return vec![
            Draft::of(
                rules::EGRESS_WITHOUT_DNS,
                policy,
                field,
                "egress is allowed, but not to any DNS server: the pods cannot resolve names",
                "add a rule with ports 53/UDP and 53/TCP to the cluster's DNS pods (namespace kube-system, \
                 k8s-app: kube-dns)",
            )
            .severity(if by_name {
                Severity::Warning
            } else {
                Severity::Note
            })
            .asking(asks),
        ];
    }
    let mut drafts = Vec::new();
    // Port 53 was not opened on purpose where every rule that allows it restricts no ports.
    let meant = udp.iter().any(|rule| rule.ports.is_some());
    if !servers.is_empty() && !meant {
        let asks = asks(
            witnesses,
            Protocol::Udp,
            "allow: the pods resolve the names of what they may reach",
        );
        let without = Draft::of(
            rules::EGRESS_WITHOUT_DNS,
            policy,
            field,
            "egress is allowed, but not to any DNS server: the pods cannot resolve names",
            "add a rule with ports 53/UDP and 53/TCP to the cluster's DNS pods (namespace kube-system, \
             k8s-app: kube-dns)",
        );
        drafts.push(without.shown(Shown::EveryPacket).asking(asks));
    }
    if !servers.is_empty() && meant && udp.iter().any(|rule| into_the_cluster(rule, witnesses)) {
        let asks = asks(
            witnesses,
            Protocol::Udp,
            "allow: that is what port 53 was opened for",
        );
        let elsewhere = Draft::of(
            rules::DNS_ELSEWHERE,
            policy,
            field,
            "port 53 is open, but not to the DNS servers of this cluster",
            "let the peer of the rule select them; every namespace has the label kubernetes.io/metadata.name, and \
             blocks never match a Service's address",
        )
        .shown(Shown::EveryPacket)
        .asking(asks);
        drafts.push(elsewhere);
    }
    if tcp.is_empty() && udp.iter().any(|rule| opens(rule, Protocol::Udp, 53)) {
        let asks = asks(witnesses, Protocol::Tcp, "allow: long answers come by TCP");
        drafts.push(
            Draft::of(
                rules::DNS_WITHOUT_TCP,
                policy,
                field,
                "DNS over UDP only: a truncated answer is retried over TCP, which is denied",
                "add `{protocol: TCP, port: 53}` to the ports",
            )
            .asking(asks),
        );
    }
    drafts
}

/// Whether a rule allows a port to anybody.
fn opens(rule: &Rule, wanted: Protocol, number: u16) -> bool {
    let Some(ports) = &rule.ports else { return true };
    ports.iter().any(|port| match port {
        PortMatch::All(protocol) => *protocol == wanted,
        PortMatch::Range { protocol, lo, hi } => *protocol == wanted && (*lo..=*hi).contains(&number),
        PortMatch::Named { protocol, name } => *protocol == wanted && name.starts_with("dns"),
        PortMatch::IpProtocol(_) | PortMatch::Icmp { .. } => false,
    })
}

/// Whether a rule leads to somebody inside of the cluster, rather than to a resolver elsewhere.
fn into_the_cluster(rule: &Rule, witnesses: &Witnesses<'_>) -> bool {
    let settings = &witnesses.with_synthetic().settings;
    let inside: Vec<_> = witnesses
        .pod_networks()
        .into_iter()
        .chain(settings.service_cidrs.iter().copied())
        .collect();
    match &rule.peers {
        None => true,
        Some(peers) => peers.iter().any(|peer| match peer {
            Peer::Pods { .. } | Peer::Addresses(_) => true,
            Peer::Block { cidr, .. } => inside.iter().any(|net| net.contains(cidr) || cidr.contains(net)),
        }),
    }
}

/// Whether a pod is a DNS server of the cluster.
fn is_server(pod: &Pod) -> bool {
    pod.key.namespace == "kube-system"
        && ["k8s-app", "app.kubernetes.io/name", "app"].iter().any(|key| {
            pod.labels
                .get(*key)
                .is_some_and(|value| ["kube-dns", "coredns", "core-dns"].contains(&value.as_str()))
        })
}

fn servers(witnesses: &Witnesses<'_>) -> Vec<EndName> {
    witnesses
        .live("kube-system")
        .filter(|pod| is_server(pod))
        .map(|pod| EndName::Pod(pod.key.clone()))
        .take(MOST_SERVERS)
        .collect()
}

fn imagined_server(witnesses: &mut Witnesses<'_>) -> Option<EndName> {
    let labels = Labels::from([("k8s-app".to_owned(), "kube-dns".to_owned())]);
    witnesses.pod(
        NamespaceFilter::Named("kube-system"),
        &[&selector_of(&labels)],
        &|_| true,
    )
}
