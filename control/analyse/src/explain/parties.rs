//! Who the ends of a flow are, and how that is known.

use std::net::IpAddr;

use ringwall_evaluate::{End, Identity};
use ringwall_policy::{Cluster, Labels, Pod};

use super::report::{Party, PartyKind};
use crate::flow::EndName;

/// Describes an end.
pub(super) fn party(cluster: &Cluster, asked: &EndName, end: &End<'_>) -> Party {
    let blank = Party {
        asked: asked.to_string(),
        kind: PartyKind::External,
        name: None,
        address: end.address,
        node: None,
        labels: Labels::new(),
        namespace_labels: Labels::new(),
        why: Vec::new(),
    };
    match end.identity {
        Identity::Pod(pod) => pod_party(cluster, blank, pod),
        Identity::Node(name) => node_party(cluster, blank, name),
        Identity::Unknown => unknown_party(cluster, blank, asked),
        Identity::External => external_party(cluster, blank),
    }
}

fn pod_party(cluster: &Cluster, mut party: Party, pod: &Pod) -> Party {
    party.name = Some(pod.key.to_string());
    party.node.clone_from(&pod.node);
    party.labels.clone_from(&pod.labels);
    if let Some(namespace) = cluster.namespaces.get(&pod.key.namespace) {
        party.namespace_labels.clone_from(&namespace.labels);
    }
    match (&pod.template_of, party.address) {
        (Some(kind), _) => {
            party.kind = PartyKind::Template;
            party.why.push(format!(
                "pods of {kind} {} (from its template; no IP yet)",
                pod.key
            ));
        }
        (None, None) => {
            party.kind = PartyKind::Pod;
            party
                .why
                .push("a pod without an address yet; selectors match its labels".to_owned());
        }
        (None, Some(address)) => {
            party.kind = PartyKind::Pod;
            party
                .why
                .push(format!("{address} is in the status.podIPs of pod {}", pod.key));
            party.why.extend(others_with(cluster, address, pod));
        }
    }
    party
}

/// Other pods that list an address of a pod, and why they do not own it.
fn others_with(cluster: &Cluster, address: IpAddr, owner: &Pod) -> Vec<String> {
    listing(cluster, address)
        .filter(|pod| pod.key != owner.key)
        .map(|pod| {
            let why = if pod.finished {
                "has finished"
            } else if pod.host_network {
                "is on its node's network"
            } else {
                "is older"
            };
            format!("pod {} lists it too, but {why}", pod.key)
        })
        .collect()
}

/// Every pod that lists an address, whatever its state.
fn listing(cluster: &Cluster, address: IpAddr) -> impl Iterator<Item = &Pod> {
    cluster
        .pods
        .values()
        .map(AsRef::as_ref)
        .filter(move |pod: &&Pod| pod.addresses.contains(&address))
}

fn node_party(cluster: &Cluster, mut party: Party, name: Option<&str>) -> Party {
    party.kind = PartyKind::Node;
    party.node = name.map(str::to_owned);
    party.name.clone_from(&party.node);
    let Some(address) = party.address else {
        return party;
    };
    let listed = name
        .and_then(|name| cluster.nodes.get(name))
        .is_some_and(|node| node.addresses.contains(&address));
    let name = name.unwrap_or("without a name");
    party.why.push(if listed {
        format!("{address} is an address of node {name}")
    } else {
        format!("{address} belongs to a pod on the host network of node {name}")
    });
    for pod in listing(cluster, address).filter(|pod| pod.host_network && !pod.finished) {
        party.kind = PartyKind::HostNetwork;
        party.why.push(format!(
            "pod {} is on the host network: policies treat it as its node, so no policy selects it and no selector matches it",
            pod.key
        ));
    }
    party
}

fn unknown_party(cluster: &Cluster, mut party: Party, asked: &EndName) -> Party {
    party.kind = PartyKind::Unknown;
    let Some(address) = party.address else {
        if let EndName::Pod(key) = asked {
            party.name = Some(key.to_string());
            party.why.push(format!(
                "the Namespace {} has not been seen, so it is unknown which selectors match its pods",
                key.namespace
            ));
        }
        return party;
    };
    let mut claimed = false;
    for pod in listing(cluster, address) {
        party.why.push(if pod.finished {
            format!("{address} was the address of pod {}, which has finished", pod.key)
        } else {
            claimed = true;
            format!(
                "{address} belongs to pod {}, whose Namespace has not been seen",
                pod.key
            )
        });
    }
    if !claimed && let Some((network, whose)) = pod_network(cluster, address) {
        party.why.push(format!(
            "{address} is in the pod network {network} ({whose}), and no live pod or node has it"
        ));
    }
    party
}

/// The pod network that holds an address, and who says so.
fn pod_network(cluster: &Cluster, address: IpAddr) -> Option<(ipnet::IpNet, String)> {
    let of_nodes = cluster.nodes.values().flat_map(|node| {
        node.pod_cidrs
            .iter()
            .map(move |network| (*network, format!("spec.podCIDRs of node {}", node.name)))
    });
    let of_settings = cluster
        .settings
        .pod_cidrs
        .iter()
        .map(|network| (*network, "cluster.podCIDRs of the configuration".to_owned()));
    of_nodes
        .chain(of_settings)
        .find(|(network, _)| network.contains(&address))
}

fn external_party(cluster: &Cluster, mut party: Party) -> Party {
    let Some(address) = party.address else {
        return party;
    };
    let service = cluster
        .settings
        .service_cidrs
        .iter()
        .find(|network| network.contains(&address));
    if let Some(network) = service {
        party.kind = PartyKind::Service;
        party
            .why
            .push(format!("{address} is in the Service network {network}"));
        return party;
    }
    for pod in listing(cluster, address).filter(|pod| pod.finished) {
        party.why.push(format!(
            "{address} was the address of pod {}, which has finished",
            pod.key
        ));
    }
    party.why.push(format!(
        "{address} is outside of the cluster: no pod, node or pod network has it"
    ));
    if cluster.settings.pod_cidrs.is_empty() && cluster.nodes.values().all(|node| node.pod_cidrs.is_empty()) {
        party.why.push(
            "no pod network is known; if this is a pod's address, name its network with --pod-cidr or --config".to_owned(),
        );
    }
    party
}
