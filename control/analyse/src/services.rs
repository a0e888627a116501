//! Services as destinations: which pods and ports a connection to one may end at, and whom these pods see as its source.
//!
//! * [`Directory`] finds the Service that a name or an address stands for. [`Directory::resolve`] says what becomes of a connection
//!   to it: the endpoints it may end at ([`Backend`]), or why it ends at none.
//! * `endpoints` the endpoints of a Service's port, from its EndpointSlices or from the pods that it selects.
//! * `sources` whom an endpoint sees as the source: the client, or the node that kube-proxy masquerades as.
//! * [`joint`] what the verdicts of all endpoints come to together.
//!
//! Policies see packets after kube-proxy has chosen an endpoint, at the endpoint's port. So a Service has no verdict of its own.

mod endpoints;
mod sources;
#[cfg(test)]
mod tests;
mod words;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
};

use endpoints::{Candidate, Selection};
use ringwall_policy::{
    Cluster, ObjectKey, Pod, Protocol,
    services::{IpFamily, Service, ServiceKind, ServicePort, Services, TargetPort},
};
use serde::{Deserialize, Serialize};
pub use words::{BackendReport, SentReport, ServiceReport, VisibleSourceReport};

use crate::{
    flow,
    flow::EndName,
    intents::{Destinations, EndSelector, Ports},
    judge::{Answer, Direction, Fate, Judge, Reason},
    refine,
};

/// By what a client reaches a Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frontend {
    /// Its cluster address, from inside.
    ClusterIp,
    /// The addresses of its pods themselves: it has none.
    Headless,
    /// An address of it outside of the cluster, or a port of whichever node.
    External,
    /// An address of its load balancer.
    LoadBalancer,
    /// A port of a node.
    NodePort {
        /// The node.
        node: String,
        /// The address and the port that the client names.
        at: (IpAddr, u16),
    },
}

impl Frontend {
    /// As JSON has it.
    pub const fn word(&self) -> &'static str {
        match self {
            Self::ClusterIp => "cluster-ip",
            Self::Headless => "headless",
            Self::External => "external",
            Self::LoadBalancer => "load-balancer",
            Self::NodePort { .. } => "node-port",
        }
    }

    /// Whether externalTrafficPolicy is about it.
    const fn is_external(&self) -> bool {
        matches!(self, Self::External | Self::LoadBalancer | Self::NodePort { .. })
    }
}

/// Where what is known of the endpoints comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// EndpointSlices list them.
    EndpointSlices,
    /// There is no EndpointSlice: they are the pods that the Service selects.
    Selector,
}

/// What becomes of a connection to a Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resolved {
    /// The Service.
    pub service: ObjectKey,
    /// Its kind, as manifests call it.
    pub kind: &'static str,
    /// By what the client reaches it.
    pub frontend: Frontend,
    /// Protocol and port that the client names.
    pub asked: flow::Service,
    /// The name of the Service's port; empty where it has none, or where the client names a port of the pods.
    pub port_name: String,
    /// Where its endpoints are from.
    pub source: Source,
    /// Which endpoints there are, or why none.
    pub outcome: Outcome,
    /// What else is worth knowing.
    pub notes: Vec<String>,
}

/// Where a connection ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// At one of these.
    Backends(Vec<Backend>),
    /// Nowhere: kube-proxy answers that the port is unreachable, and why.
    Rejected(String),
    /// Nowhere: kube-proxy drops it, and why.
    Dropped(String),
}

/// An endpoint that a connection may end at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backend {
    /// By its address, or by its name where it has none.
    pub end: EndName,
    /// The pod, where it is one.
    pub pod: Option<ObjectKey>,
    /// The port there.
    pub port: u16,
    /// Its node, where that is known.
    pub node: Option<String>,
    /// Whom the endpoint sees as the source.
    pub seen: VisibleSource,
    /// Where the client's own policies see the connection go to, where that is not the endpoint.
    pub sent_to: Option<(IpAddr, u16)>,
}

/// Whom an endpoint sees as the source.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum VisibleSource {
    /// The client.
    Client,
    /// A node that masquerades the connection.
    Node {
        /// Its name.
        name: String,
        /// Its address.
        address: IpAddr,
    },
}

/// A flow that one direction's policies decide about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leg {
    /// The source.
    pub src: EndName,
    /// The destination.
    pub dst: EndName,
    /// Protocol and port.
    pub service: flow::Service,
}

/// What the policies of either end see of a connection to an endpoint. They see the same, unless a node translates it in between.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Legs {
    /// As the client's policies see it.
    pub egress: Leg,
    /// As the endpoint's policies see it.
    pub ingress: Leg,
}

impl Backend {
    /// What policies see of a connection from a client to this endpoint.
    pub fn legs(&self, src: &EndName, asked: flow::Service) -> Legs {
        let to = |dst: EndName, port: u16| Leg {
            src: src.clone(),
            dst,
            service: flow::Service {
                port: Some(port),
                ..asked
            },
        };
        let here = to(self.end.clone(), self.port);
        Legs {
            egress: match self.sent_to {
                Some((node, port)) => to(EndName::Address(node), port),
                None => here.clone(),
            },
            ingress: match self.seen {
                VisibleSource::Client => here,
                // A node that stands for the client chooses the source port, too.
                VisibleSource::Node { address, .. } => Leg {
                    src: EndName::Address(address),
                    service: here.service.from_port(None),
                    ..here
                },
            },
        }
    }
}

/// What both ends decide where they see different flows.
fn received(sent: Answer, received: Answer) -> Answer {
    let of = |reasons: Vec<Reason>, direction| {
        let own = reasons.into_iter();
        own.filter(move |reason| reason.direction == direction)
    };
    Answer {
        ingress: received.ingress,
        egress: sent.egress,
        lacks: sent.lacks.or(received.lacks),
        reasons: of(sent.reasons, Direction::Egress)
            .chain(of(received.reasons, Direction::Ingress))
            .collect(),
    }
}

/// Finds Services by name and address.
pub struct Directory<'a> {
    cluster: &'a Cluster,
    services: &'a Services,
    by_address: HashMap<IpAddr, (&'a Service, Frontend)>,
    by_node_port: HashMap<(Protocol, u16), &'a Service>,
    /// The node that an address is of.
    nodes: HashMap<IpAddr, &'a str>,
}

/// Who opens a connection.
struct Client<'a> {
    name: &'a EndName,
    kind: ClientKind,
    /// The node that it is, or is on.
    node: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ClientKind {
    Pod,
    Node,
    Outside,
}

impl<'a> Directory<'a> {
    /// Of a cluster and its Services.
    pub fn new(cluster: &'a Cluster, services: &'a Services) -> Self {
        let mut by_address = HashMap::new();
        let mut by_node_port = HashMap::new();
        for service in services.services.values() {
            let mut add = |address: IpAddr, frontend: Frontend| {
                by_address
                    .entry(address)
                    .or_insert_with(|| (service.as_ref(), frontend));
            };
            for address in &service.cluster_ips {
                add(*address, Frontend::ClusterIp);
            }
            for ingress in service.ingress.iter().filter(|ingress| !ingress.replaced) {
                add(ingress.address, Frontend::LoadBalancer);
            }
            for address in &service.external_ips {
                add(*address, Frontend::External);
            }
            for port in &service.ports {
                if let Some(number) = port.node_port {
                    by_node_port
                        .entry((port.protocol, number))
                        .or_insert(service.as_ref());
                }
            }
        }
        let of_node = |(name, node): (&'a String, &'a std::sync::Arc<ringwall_policy::Node>)| {
            let name = name.as_str();
            node.addresses.iter().map(move |address| (*address, name))
        };
        Self {
            cluster,
            services,
            by_address,
            by_node_port,
            nodes: cluster.nodes.iter().flat_map(of_node).collect(),
        }
    }

    /// Every Service.
    pub fn services(&self) -> impl Iterator<Item = &'a Service> {
        self.services.services.values().map(AsRef::as_ref)
    }

    /// What becomes of a connection to a Service; None where the destination is none.
    ///
    /// # Errors
    /// The destination is a Service that does not exist, that has no such port, or that ringwall cannot follow.
    pub fn resolve(
        &self,
        judge: &Judge,
        (src, dst): (&EndName, &EndName),
        asked: flow::Service,
        port_name: Option<&str>,
    ) -> Result<Option<Resolved>, String> {
        let Some((service, frontend, family)) = self.find(dst, asked)? else {
            return Ok(None);
        };
        let Some(protocol) = protocol(asked.protocol) else {
            return match dst {
                EndName::Service(_) => Err(format!(
                    "{dst}: Services forward TCP, UDP and SCTP alone; ask about the pods behind it"
                )),
                _ => Ok(None),
            };
        };
        let client = self.client(judge, src)?;
        let frontend = match frontend {
            // From outside, a cluster address is not what a client uses where there is another way.
            Frontend::ClusterIp
                if matches!(dst, EndName::Service(_))
                    && client.kind == ClientKind::Outside
                    && (service.ports.iter().any(|port| port.node_port.is_some())
                        || matches!(service.kind, ServiceKind::NodePort | ServiceKind::LoadBalancer)
                        || !service.external_ips.is_empty()) =>
            {
                Frontend::External
            }
            frontend => frontend,
        };
        let port = port_of(service, &frontend, protocol, asked.port, port_name)?;
        let mut notes = self.notes(service, &frontend);
        let source = match self.services.slices_of(&service.key).next() {
            Some(_) => Source::EndpointSlices,
            None => Source::Selector,
        };
        let asked = flow::Service {
            port: match (&port, &frontend) {
                (Port::Own(port), Frontend::NodePort { .. }) => asked.port.or(port.node_port),
                (Port::Own(port), _) => Some(port.port),
                (Port::OfPods(number) | Port::Unknown(number), _) => Some(*number),
            },
            ..asked
        };
        let mut resolved = Resolved {
            service: service.key.clone(),
            kind: service.kind.name(),
            frontend,
            asked,
            port_name: match &port {
                Port::Own(port) => port.name.clone(),
                Port::OfPods(_) | Port::Unknown(_) => String::new(),
            },
            source,
            outcome: Outcome::Rejected(String::new()),
            notes: Vec::new(),
        };
        if let (Frontend::LoadBalancer, EndName::Address(_)) = (&resolved.frontend, dst)
            && let Some(why) = self.outside_ranges(service, &client)
        {
            resolved.outcome = Outcome::Dropped(why);
            resolved.notes = notes;
            return Ok(Some(resolved));
        }
        if let Port::Unknown(number) = port {
            let own: Vec<String> = service.ports.iter().map(port_words).collect();
            let own = match own.as_slice() {
                [] => "it has none".to_owned(),
                own => format!("it has {}", own.join(", ")),
            };
            resolved.outcome = Outcome::Rejected(format!(
                "Service {} has no port {number}/{}; {own}",
                service.key,
                protocol.name()
            ));
            resolved.notes = notes;
            return Ok(Some(resolved));
        }
        let candidates = self.candidates(service, &port, protocol, &mut notes);
        let candidates = self.of_family(candidates, service, &client, family)?;
        resolved.outcome = match self.select(service, &resolved.frontend, &client, candidates, &mut notes) {
            Selection::Usable(candidates) => Outcome::Backends(self.backends(
                judge,
                service,
                &resolved.frontend,
                &client,
                candidates,
                &mut notes,
            )),
            Selection::Rejected(why) => Outcome::Rejected(why),
            Selection::Dropped(why) => Outcome::Dropped(why),
        };
        resolved.notes = notes;
        Ok(Some(resolved))
    }

    /// The Service that a destination stands for, by what it is reached, and over which family where an address says so.
    #[allow(clippy::type_complexity, reason = "one caller takes it apart")]
    fn find(
        &self,
        dst: &EndName,
        asked: flow::Service,
    ) -> Result<Option<(&'a Service, Frontend, Option<IpFamily>)>, String> {
        let (service, frontend, family) = match dst {
            EndName::Pod(_) => return Ok(None),
            EndName::Address(address) => {
                let family = Some(IpFamily::of(*address));
                let of_node = || {
                    let node = (*self.nodes.get(address)?).to_owned();
                    let number = asked.port?;
                    let service = self.by_node_port.get(&(protocol(asked.protocol)?, number))?;
                    let at = (*address, number);
                    Some((*service, Frontend::NodePort { node, at }))
                };
                match self.by_address.get(address).cloned().or_else(of_node) {
                    Some((service, frontend)) => (service, frontend, family),
                    None => return Ok(None),
                }
            }
            EndName::Service(key) => {
                let Some(service) = self.services.services.get(key) else {
                    return Err(self.unknown(key));
                };
                let frontend = match service.kind {
                    ServiceKind::Headless => Frontend::Headless,
                    _ => Frontend::ClusterIp,
                };
                (service.as_ref(), frontend, None)
            }
        };
        if let ServiceKind::ExternalName(name) = &service.kind {
            return Err(format!(
                "svc:{} is an ExternalName Service: DNS answers {name:?} and no endpoint is Kubernetes' own; ask about the \
                 address that this name has",
                service.key
            ));
        }
        Ok(Some((service, frontend, family)))
    }

    /// The endpoints of a Service, by their ports: those that ports of it lead to, of a headless one those that are named. None where
    /// there is no such Service.
    pub fn destinations(&self, key: &ObjectKey, ports: &Ports) -> Vec<Destinations> {
        let Some(service) = self.services.services.get(key) else {
            return Vec::new();
        };
        let mut by_end: BTreeMap<EndSelectorKey, Ports> = BTreeMap::new();
        let mut add = |port: Port<'_>, protocol: Protocol, of_pods: Option<&Ports>| {
            for candidate in
                endpoints::usable(self.candidates(service, &port, protocol, &mut Vec::new()), true)
            {
                let live = |key: &ObjectKey| self.pod(key).is_some_and(|pod| !pod.host_network);
                let end = match (candidate.pod.filter(live), candidate.address) {
                    (Some(pod), _) => EndSelectorKey::Pod(pod),
                    (None, Some(address)) => EndSelectorKey::Address(address),
                    (None, None) => continue,
                };
                let own = by_end.entry(end).or_default();
                match of_pods {
                    Some(ports) => *own = ports.clone(),
                    None => own.add(
                        refine::Service::of(protocol.number()),
                        (candidate.port, candidate.port),
                    ),
                }
            }
        };
        if service.kind == ServiceKind::Headless && *ports != Ports::all() {
            add(Port::OfPods(0), Protocol::Tcp, Some(ports));
        } else {
            let asked =
                |port: &&ServicePort| ports.hold(refine::Service::of(port.protocol.number()), port.port);
            for port in service.ports.iter().filter(asked) {
                add(Port::Own(port), port.protocol, None);
            }
        }
        let mut alike: Vec<Destinations> = Vec::new();
        for (end, ports) in by_end {
            let end = match end {
                EndSelectorKey::Pod(key) => EndSelector::Pod(key),
                EndSelectorKey::Address(address) => EndSelector::Block {
                    cidr: address.into(),
                    except: Vec::new(),
                },
            };
            match alike.iter_mut().find(|it| it.ports == ports) {
                Some(group) => group.ends.push(end),
                None => alike.push(Destinations {
                    ends: vec![end],
                    ports,
                }),
            }
        }
        alike
    }

    /// What is decided about a connection to a Service: about each endpoint, and about all together.
    ///
    /// # Errors
    /// An endpoint is not known by its name any more, or the snapshot contradicts itself.
    pub fn judge(
        &self,
        judge: &Judge,
        src: &EndName,
        resolved: &Resolved,
    ) -> Result<(Joint, Vec<Answer>), String> {
        let backends = match &resolved.outcome {
            Outcome::Backends(backends) => backends,
            Outcome::Rejected(_) => return Ok((Joint::Reject, Vec::new())),
            Outcome::Dropped(_) => return Ok((Joint::Drop, Vec::new())),
        };
        let mut answers = Vec::with_capacity(backends.len());
        for backend in backends {
            let Legs { egress, ingress } = backend.legs(src, resolved.asked);
            let ask = |leg: &Leg| {
                let (src, dst) = judge.ends(self.cluster, &leg.src, &leg.dst)?;
                judge.judge(&src, &dst, leg.service)
            };
            let sent = ask(&egress)?;
            answers.push(match egress == ingress {
                true => sent,
                false => received(sent, ask(&ingress)?),
            });
        }
        let joint = joint(answers.iter().map(Answer::fate)).unwrap_or(Joint::Reject);
        Ok((joint, answers))
    }

    /// That a name does not exist, and which one is nearly the same.
    fn unknown(&self, key: &ObjectKey) -> String {
        let alike = |other: &&ObjectKey| {
            let whole = strsim::jaro_winkler(&key.to_string(), &other.to_string());
            let own = if key.name == other.name { 1.0 } else { 0.0 };
            whole.max(own)
        };
        let near = self
            .services
            .services
            .keys()
            .max_by(|a, b| alike(a).total_cmp(&alike(b)))
            .filter(|near| alike(near) > 0.9);
        let unread = match self.services.unread.iter().next() {
            Some(unread) => format!("; {unread} cannot be read"),
            None => String::new(),
        };
        match near {
            Some(near) => format!("no Service is named {key}{unread}; did you mean svc:{near}?"),
            None if self.cluster.pods.contains_key(key) => {
                format!("no Service is named {key}{unread}; for the pod, write {key}")
            }
            None => format!("no Service is named {key}{unread}"),
        }
    }

    /// Who opens the connection.
    fn client<'n>(&self, judge: &Judge, name: &'n EndName) -> Result<Client<'n>, String> {
        let (end, _) = judge.ends(self.cluster, name, name)?;
        let host_network = |key: &ObjectKey| {
            let pod = self.cluster.pods.get(key)?;
            pod.host_network.then(|| pod.node.clone())
        };
        let (kind, node) = match (judge.pod(&end), name) {
            (Some(key), _) => {
                let pod = self.cluster.pods.get(&key);
                (ClientKind::Pod, pod.and_then(|pod| pod.node.clone()))
            }
            (None, EndName::Pod(key)) if host_network(key).is_some() => {
                (ClientKind::Node, host_network(key).flatten())
            }
            (None, _) if judge.is_node(&end) => {
                let node = end.address.and_then(|address| self.nodes.get(&address));
                (ClientKind::Node, node.map(|name| (*name).to_owned()))
            }
            (None, _) => (ClientKind::Outside, None),
        };
        Ok(Client { name, kind, node })
    }

    /// What is worth knowing about a Service, whoever its clients are.
    fn notes(&self, service: &Service, frontend: &Frontend) -> Vec<String> {
        let mut notes = Vec::new();
        if let Some(proxy) = &service.proxy_name {
            notes.push(format!(
                "kube-proxy passes this Service over, {proxy} forwards to it: {proxy} may choose endpoints differently"
            ));
        }
        if !service.source_ranges.is_empty() && frontend.is_external() && *frontend != Frontend::LoadBalancer
        {
            notes.push(
                "loadBalancerSourceRanges restricts who reaches the load balancer's addresses, not NodePorts and externalIPs"
                    .to_owned(),
            );
        }
        notes
    }

    /// Why a load balancer's address is not for a client.
    fn outside_ranges(&self, service: &Service, client: &Client<'_>) -> Option<String> {
        let address = match client.name {
            EndName::Address(address) => *address,
            EndName::Pod(key) => *self.cluster.pods.get(key)?.addresses.first()?,
            EndName::Service(_) => return None,
        };
        let ranges = &service.source_ranges;
        (!ranges.is_empty() && !ranges.iter().any(|range| range.contains(&address))).then(|| {
            let ranges: Vec<String> = ranges.iter().map(ToString::to_string).collect();
            format!(
                "loadBalancerSourceRanges of Service {} ({}) do not hold {address}",
                service.key,
                ranges.join(", ")
            )
        })
    }

    /// The candidates of the families that the client and the Service share.
    fn of_family(
        &self,
        candidates: Vec<Candidate>,
        service: &Service,
        client: &Client<'_>,
        asked: Option<IpFamily>,
    ) -> Result<Vec<Candidate>, String> {
        let both = [IpFamily::V4, IpFamily::V6];
        let of_client: Vec<IpFamily> = match client.name {
            EndName::Address(address) => vec![IpFamily::of(*address)],
            EndName::Pod(key) => {
                let pod = self.cluster.pods.get(key);
                let addresses = pod.map(|pod| pod.addresses.as_slice()).unwrap_or_default();
                let families = addresses.iter().copied().map(IpFamily::of);
                match addresses {
                    [] => both.to_vec(),
                    _ => families.collect(),
                }
            }
            EndName::Service(_) => Vec::new(),
        };
        let of_service = match (asked, service.families.as_slice()) {
            (Some(family), _) => vec![family],
            (None, []) => {
                // The first that would serve, as with two names.
                let serves = |family: &IpFamily| {
                    let mut candidates = candidates.iter().filter_map(|it| it.address);
                    of_client.contains(family) && candidates.any(|address| IpFamily::of(address) == *family)
                };
                both.iter()
                    .copied()
                    .find(serves)
                    .map_or(both.to_vec(), |it| vec![it])
            }
            (None, families) => families.to_vec(),
        };
        let shared: Vec<IpFamily> = of_service
            .iter()
            .copied()
            .filter(|it| of_client.contains(it))
            .collect();
        if shared.is_empty() {
            let words = |families: &[IpFamily]| match families {
                [IpFamily::V4] => "IPv4",
                [IpFamily::V6] => "IPv6",
                _ => "both",
            };
            return Err(format!(
                "{} and Service {} have no address family in common: {} has {}, the Service has {}",
                client.name,
                service.key,
                client.name,
                words(&of_client),
                words(&of_service)
            ));
        }
        let of_shared = |it: &Candidate| {
            it.address
                .is_none_or(|address| shared.contains(&IpFamily::of(address)))
        };
        Ok(candidates.into_iter().filter(of_shared).collect())
    }

    /// A pod by its name.
    fn pod(&self, key: &ObjectKey) -> Option<&'a Pod> {
        self.cluster.pods.get(key).map(AsRef::as_ref)
    }
}

/// An endpoint in an assertion.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
enum EndSelectorKey {
    Pod(ObjectKey),
    Address(IpAddr),
}

/// The port that a client names.
enum Port<'a> {
    /// One of the Service.
    Own(&'a ServicePort),
    /// One of its pods: a headless Service translates none.
    OfPods(u16),
    /// None that the Service has.
    Unknown(u16),
}

/// The port of a Service that a client names.
fn port_of<'a>(
    service: &'a Service,
    frontend: &Frontend,
    protocol: Protocol,
    number: Option<u16>,
    name: Option<&str>,
) -> Result<Port<'a>, String> {
    let mut own = service.ports.iter().filter(|port| port.protocol == protocol);
    if let Some(name) = name {
        let named = own.find(|port| port.name == name && !name.is_empty());
        return named.map(Port::Own).ok_or_else(|| {
            let names: Vec<String> = service.ports.iter().map(port_words).collect();
            format!(
                "Service {} has no port named {name:?} of {}; it has {}",
                service.key,
                protocol.name(),
                names.join(", ")
            )
        });
    }
    let Some(number) = number else {
        return Err("dst_port is missing: write the number or the name of the Service's port".to_owned());
    };
    let found = match frontend {
        Frontend::Headless => return Ok(Port::OfPods(number)),
        Frontend::NodePort { .. } => own.find(|port| port.node_port == Some(number)),
        _ => own.find(|port| port.port == number),
    };
    Ok(found.map_or(Port::Unknown(number), Port::Own))
}

/// `80/TCP`, or `80/TCP (http)`.
fn port_words(port: &ServicePort) -> String {
    let words = format!("{}/{}", port.port, port.protocol.name());
    match port.name.as_str() {
        "" => words,
        name => format!("{words} ({name})"),
    }
}

/// The protocol of a number that Services forward.
pub fn protocol(number: u8) -> Option<Protocol> {
    match number {
        6 => Some(Protocol::Tcp),
        17 => Some(Protocol::Udp),
        132 => Some(Protocol::Sctp),
        _ => None,
    }
}

/// The port of a pod that a Service's port leads to.
pub(crate) fn target(port: &ServicePort, pod: &Pod) -> Option<u16> {
    match &port.target {
        TargetPort::Number(number) => Some(*number),
        TargetPort::Name(name) => {
            let mut own = pod.named_ports.iter();
            let own = own.find(|it| it.name == *name && it.protocol == port.protocol);
            own.map(|it| it.number)
        }
    }
}

/// What is decided about a Service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Joint {
    /// Every endpoint is reached.
    Allow,
    /// Some endpoints are reached, others are not: connections fail at random.
    Partial,
    /// That of some endpoint depends on what the manifests do not say.
    Depends,
    /// Policies deny every endpoint.
    Deny,
    /// There is no endpoint, or no such port: the client is told so at once.
    Reject,
    /// There is no endpoint where the connection has to end.
    Drop,
}

impl Joint {
    /// As JSON has it.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Allow => "allow",
            Self::Partial => "partial",
            Self::Depends => "depends",
            Self::Deny => "deny",
            Self::Reject => "reject",
            Self::Drop => "drop",
        }
    }
}

/// What verdicts come to together; None of none.
pub fn joint(fates: impl IntoIterator<Item = Fate>) -> Option<Joint> {
    let fates: BTreeSet<Fate> = fates.into_iter().collect();
    let some = |fate| fates.contains(&fate);
    Some(match (some(Fate::Depends), some(Fate::Allow), some(Fate::Deny)) {
        (false, false, false) => return None,
        (true, ..) => Joint::Depends,
        (false, true, true) => Joint::Partial,
        (false, true, false) => Joint::Allow,
        (false, false, true) => Joint::Deny,
    })
}
