//! The endpoints of a Service's port.

use std::net::IpAddr;

use ringwall_policy::{
    ObjectKey, Pod, Protocol,
    services::{Service, ServiceKind, ServicePort, TargetPort},
};

use super::{Client, ClientKind, Directory, Frontend, Port, port_words, target};

/// An endpoint at one port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Candidate {
    pub(super) pod: Option<ObjectKey>,
    /// None of a pod that has no address yet.
    pub(super) address: Option<IpAddr>,
    pub(super) port: u16,
    pub(super) node: Option<String>,
    ready: bool,
    /// It is going away and still answers.
    leaving: bool,
    for_nodes: Vec<String>,
    for_zones: Vec<String>,
}

/// Those that new connections go to.
pub(super) enum Selection {
    Usable(Vec<Candidate>),
    Rejected(String),
    Dropped(String),
}

impl Directory<'_> {
    /// Every endpoint of a port, usable or not.
    pub(super) fn candidates(
        &self,
        service: &Service,
        port: &Port<'_>,
        protocol: Protocol,
        notes: &mut Vec<String>,
    ) -> Vec<Candidate> {
        if let Port::OfPods(number) = port {
            let translated = |it: &&ServicePort| {
                it.protocol == protocol && it.port == *number && it.target != TargetPort::Number(*number)
            };
            if let Some(port) = service.ports.iter().find(translated) {
                notes.push(format!(
                    "a headless Service translates no port: {number} is that of the pods, not {}'s target",
                    port_words(port)
                ));
            }
        }
        let mut slices = self.services.slices_of(&service.key).peekable();
        let mut found = if slices.peek().is_some() {
            let mut found = Vec::new();
            for slice in slices {
                let number = match port {
                    Port::OfPods(number) => Some(*number),
                    Port::Own(port) => {
                        let mut own = slice.ports.iter();
                        let own = own.find(|it| it.name == port.name && it.protocol == protocol);
                        own.map(|it| it.number)
                    }
                    Port::Unknown(_) => None,
                };
                let Some(number) = number else { continue };
                for endpoint in &slice.endpoints {
                    let address = endpoint.addresses.first().copied();
                    let nameless = endpoint.pod.as_ref().and_then(|key| self.pod(key));
                    found.push(Candidate {
                        pod: endpoint.pod.clone(),
                        // Of a pod whose manifest has no address, its name says who it is.
                        address: address.filter(|_| nameless.is_none_or(|pod| !pod.addresses.is_empty())),
                        port: number,
                        node: endpoint.node.clone(),
                        ready: endpoint.ready,
                        leaving: endpoint.serving && endpoint.terminating,
                        for_nodes: endpoint.for_nodes.clone(),
                        for_zones: endpoint.for_zones.clone(),
                    });
                }
            }
            found
        } else {
            if !self.services.unread.is_empty() {
                let unread: Vec<&str> = self.services.unread.iter().map(String::as_str).collect();
                notes.push(format!(
                    "{} cannot be read: the endpoints are taken to be the pods that the Service selects",
                    unread.join(" and ")
                ));
            }
            self.selected(service, port, notes)
        };
        let order = |it: &Candidate| (it.pod.clone(), it.address, it.port);
        found.sort_by_key(order);
        found.dedup_by(|a, b| order(a) == order(b));
        found
    }

    /// The endpoints that a controller would make of the pods that a Service selects.
    fn selected(&self, service: &Service, port: &Port<'_>, notes: &mut Vec<String>) -> Vec<Candidate> {
        if service.selector.is_empty() {
            return Vec::new();
        }
        let selects = |pod: &Pod| {
            service
                .selector
                .iter()
                .all(|(key, value)| pod.labels.get(key) == Some(value))
        };
        let first = ObjectKey {
            namespace: service.key.namespace.clone(),
            name: String::new(),
        };
        let pods: Vec<&Pod> = self
            .cluster
            .pods
            .range(first..)
            .take_while(|(key, _)| key.namespace == service.key.namespace)
            .map(|(_, pod)| pod.as_ref())
            .filter(|pod| !pod.finished && selects(pod))
            .collect();
        // Where there are pods of a template, they are what the template stands for.
        let made = |template: &Pod| {
            let own = |pod: &&&Pod| pod.template_of.is_none();
            pods.iter().filter(own).any(|pod| {
                let mut labels = template.labels.iter();
                labels.all(|(key, value)| pod.labels.get(key) == Some(value))
            })
        };
        let mut found = Vec::new();
        for pod in pods.iter().filter(|pod| pod.template_of.is_none() || !made(pod)) {
            let number = match port {
                Port::OfPods(number) => Some(*number),
                Port::Own(port) => target(port, pod),
                Port::Unknown(_) => None,
            };
            let Some(number) = number else {
                if let Port::Own(ServicePort {
                    target: TargetPort::Name(name),
                    ..
                }) = port
                {
                    notes.push(format!(
                        "{} has no container port named {name}, so it is no endpoint of this port",
                        pod.key
                    ));
                }
                continue;
            };
            let ready = !self.services.unready.contains(&pod.key);
            let mut addresses: Vec<Option<IpAddr>> = pod.addresses.iter().copied().map(Some).collect();
            if addresses.is_empty() && pod.host_network {
                let node = pod.node.as_ref().and_then(|name| self.cluster.nodes.get(name));
                addresses = node
                    .and_then(|node| node.addresses.first().copied())
                    .into_iter()
                    .map(Some)
                    .collect();
                if addresses.is_empty() {
                    notes.push(format!(
                        "{} is on its node's network and its address is not known: left out",
                        pod.key
                    ));
                    continue;
                }
            } else if addresses.is_empty() {
                addresses.push(None);
            }
            found.extend(addresses.into_iter().map(|address| Candidate {
                pod: Some(pod.key.clone()),
                address,
                port: number,
                node: pod.node.clone(),
                ready: service.publish_not_ready || ready && !pod.terminating,
                leaving: ready && pod.terminating,
                for_nodes: Vec::new(),
                for_zones: Vec::new(),
            }));
        }
        found
    }

    /// Those that new connections of a client go to.
    pub(super) fn select(
        &self,
        service: &Service,
        frontend: &Frontend,
        client: &Client<'_>,
        candidates: Vec<Candidate>,
        notes: &mut Vec<String>,
    ) -> Selection {
        let whole = usable(candidates.clone(), *frontend != Frontend::Headless);
        if whole.is_empty() {
            return Selection::Rejected(match (candidates.len(), service.selector.is_empty()) {
                (0, true) if service.kind == ServiceKind::Headless => format!(
                    "Service {} has no endpoint, so DNS has no address for it: it selects no pods, and no EndpointSlice lists any",
                    service.key
                ),
                (0, true) => format!(
                    "Service {} has no endpoint: it selects no pods, and no EndpointSlice lists any",
                    service.key
                ),
                (0, false) => format!("Service {} has no endpoint at this port", service.key),
                (1, _) => format!("Service {} has 1 endpoint, which is not ready", service.key),
                (many, _) => format!(
                    "Service {} has {many} endpoints, of which none is ready",
                    service.key
                ),
            });
        }
        // The node at which kube-proxy chooses, where it is known.
        let chooses = match frontend {
            Frontend::NodePort { node, .. } => Some(node.clone()),
            _ if client.kind == ClientKind::Outside => None,
            _ => client.node.clone(),
        };
        if *frontend == Frontend::Headless {
            return Selection::Usable(whole);
        }
        // A node's own clients of an external address are served as from inside.
        let own = client.kind != ClientKind::Outside
            && match frontend {
                Frontend::NodePort { node, .. } => client.node.as_ref() == Some(node),
                _ => true,
            };
        let local = match frontend.is_external() {
            true => service.external_local && !own,
            false => service.internal_local,
        };
        if !local {
            return Selection::Usable(near(self, whole, chooses.as_deref(), notes));
        }
        let (policy, at) = match frontend.is_external() {
            true => ("externalTrafficPolicy", "the node that it arrives at"),
            false => ("internalTrafficPolicy", "the client's node"),
        };
        let Some(node) = chooses else {
            notes.push(format!(
                "{policy} is Local: of these, a connection goes to endpoints on {at} alone, and is dropped if there is none"
            ));
            return Selection::Usable(whole);
        };
        let on_node = |it: &Candidate| it.node.as_ref().is_none_or(|own| *own == node);
        let here: Vec<Candidate> = candidates.into_iter().filter(on_node).collect();
        match usable(here, true) {
            here if here.is_empty() => Selection::Dropped(format!(
                "{policy} of Service {} is Local, and node {node} has no endpoint of it",
                service.key
            )),
            here => Selection::Usable(here),
        }
    }
}

/// Those that are ready; where none is, those that are going away and still answer.
pub(super) fn usable(candidates: Vec<Candidate>, leaving: bool) -> Vec<Candidate> {
    let any_ready = candidates.iter().any(|it| it.ready);
    let usable = |it: &Candidate| match any_ready {
        true => it.ready,
        false => leaving && it.leaving,
    };
    candidates.into_iter().filter(usable).collect()
}

/// Those that hints of the slices leave for a node.
fn near(
    directory: &Directory<'_>,
    candidates: Vec<Candidate>,
    node: Option<&str>,
    notes: &mut Vec<String>,
) -> Vec<Candidate> {
    let all = |hints: fn(&Candidate) -> &Vec<String>| candidates.iter().all(|it| !hints(it).is_empty());
    let (by_node, by_zone) = (all(|it| &it.for_nodes), all(|it| &it.for_zones));
    if !by_node && !by_zone {
        return candidates;
    }
    let Some(node) = node else {
        notes.push(
            "hints of the EndpointSlices prefer endpoints near the client, and it is not known where the client is: \
             all are listed"
                .to_owned(),
        );
        return candidates;
    };
    let zone = directory.services.zones.get(node).map(String::as_str);
    let kept = |hints: fn(&Candidate) -> &Vec<String>, name: Option<&str>| -> Vec<Candidate> {
        let near = |it: &&Candidate| name.is_some_and(|name| hints(it).iter().any(|hint| hint == name));
        candidates.iter().filter(near).cloned().collect()
    };
    let on_node = kept(|it| &it.for_nodes, Some(node).filter(|_| by_node));
    let in_zone = kept(|it| &it.for_zones, zone.filter(|_| by_zone));
    let (near, what) = match (on_node.is_empty(), in_zone.is_empty()) {
        (false, _) => (on_node, format!("node {node}")),
        (true, false) => (in_zone, format!("zone {}", zone.unwrap_or_default())),
        (true, true) => return candidates,
    };
    if near.len() < candidates.len() {
        notes.push(format!(
            "hints of the EndpointSlices leave {} of {} endpoints for {what}",
            near.len(),
            candidates.len()
        ));
    }
    near
}
