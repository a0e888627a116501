//! Services and the endpoints behind them. They are for names and questions: no verdict about a packet depends on them, and they
//! are no part of [`Cluster`](super::Cluster), so that their changes compile nothing.

use std::{collections::BTreeSet, net::IpAddr, sync::Arc};

use imbl::{OrdMap, OrdSet};
use ipnet::IpNet;

use super::{Labels, ObjectKey, Protocol};

/// The Services of a cluster. A clone costs a few pointers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Services {
    /// Services by namespace and name.
    pub services: OrdMap<ObjectKey, Arc<Service>>,
    /// EndpointSlices by their own namespace and name.
    pub slices: OrdMap<ObjectKey, Arc<EndpointSlice>>,
    /// Pods that say that they are not ready.
    pub unready: OrdSet<ObjectKey>,
    /// The zone of each node that has one.
    pub zones: OrdMap<String, String>,
    /// What of this could not be read, such as `endpointslices.discovery.k8s.io`.
    pub unread: BTreeSet<String>,
}

/// What one object says about Services.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ServiceObject {
    /// A Service.
    Service(Arc<Service>),
    /// An EndpointSlice.
    Slice(Arc<EndpointSlice>),
    /// A pod that is not ready.
    Unready(ObjectKey),
    /// The zone of a node.
    Zone {
        /// The node.
        node: String,
        /// Its zone.
        zone: String,
    },
}

impl Services {
    /// Adds what an object says. Of two Services of one name the first counts.
    pub fn insert(&mut self, object: &ServiceObject) {
        match object {
            ServiceObject::Service(service) => {
                let entry = self.services.entry(service.key.clone());
                entry.or_insert_with(|| Arc::clone(service));
            }
            ServiceObject::Slice(slice) => {
                let entry = self.slices.entry(slice.key.clone());
                entry.or_insert_with(|| Arc::clone(slice));
            }
            ServiceObject::Unready(pod) => drop(self.unready.insert(pod.clone())),
            ServiceObject::Zone { node, zone } => drop(self.zones.insert(node.clone(), zone.clone())),
        }
    }

    /// Whether nothing has changed since a clone of these was made, or made into these. Costs as much as differs.
    pub fn same_as(&self, other: &Self) -> bool {
        self.services.diff(&other.services).next().is_none()
            && self.slices.diff(&other.slices).next().is_none()
            && self.zones.diff(&other.zones).next().is_none()
            && self.unready.diff(&other.unready).next().is_none()
            && self.unread == other.unread
    }

    /// The EndpointSlices of a Service.
    pub fn slices_of<'a>(&'a self, service: &'a ObjectKey) -> impl Iterator<Item = &'a EndpointSlice> {
        let first = ObjectKey {
            namespace: service.namespace.clone(),
            name: String::new(),
        };
        self.slices
            .range(first..)
            .take_while(|(key, _)| key.namespace == service.namespace)
            .map(|(_, slice)| slice.as_ref())
            .filter(|slice| slice.service == *service)
    }
}

/// A Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// Its namespace and name.
    pub key: ObjectKey,
    /// Where it can be reached.
    pub kind: ServiceKind,
    /// Labels of its pods; empty where somebody else lists its endpoints.
    pub selector: Labels,
    /// Its ports, in order.
    pub ports: Vec<ServicePort>,
    /// Its cluster addresses; none of a headless one, or where they are not assigned yet.
    pub cluster_ips: Vec<IpAddr>,
    /// Addresses outside of the cluster that nodes accept for it.
    pub external_ips: Vec<IpAddr>,
    /// Addresses of its load balancer.
    pub ingress: Vec<LoadBalancerIp>,
    /// The address families that it says it has; empty where it does not say.
    pub families: Vec<IpFamily>,
    /// Whether its endpoints count before they are ready.
    pub publish_not_ready: bool,
    /// Whether traffic from outside goes to endpoints of the node that it arrives at alone, and keeps the client's address.
    pub external_local: bool,
    /// Whether traffic from inside goes to endpoints of the client's node alone.
    pub internal_local: bool,
    /// Clients that its load balancer addresses are for; empty: all.
    pub source_ranges: Vec<IpNet>,
    /// Who forwards to it in place of kube-proxy.
    pub proxy_name: Option<String>,
}

/// Where a Service can be reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ServiceKind {
    /// At its cluster address.
    ClusterIp,
    /// By DNS alone, at its pods' own addresses.
    Headless,
    /// Also at a port of every node.
    NodePort,
    /// Also at a load balancer.
    LoadBalancer,
    /// It is another name for this host name.
    ExternalName(String),
}

impl ServiceKind {
    /// As manifests call it; a headless one is a ClusterIP.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::ClusterIp | Self::Headless => "ClusterIP",
            Self::NodePort => "NodePort",
            Self::LoadBalancer => "LoadBalancer",
            Self::ExternalName(_) => "ExternalName",
        }
    }
}

/// An address of a load balancer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoadBalancerIp {
    /// The address.
    pub address: IpAddr,
    /// Whether the load balancer replaces it (`ipMode: Proxy`), so that nodes do not know it.
    pub replaced: bool,
}

/// A version of IP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum IpFamily {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl IpFamily {
    /// That of an address.
    pub const fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(_) => Self::V4,
            IpAddr::V6(_) => Self::V6,
        }
    }
}

/// One port of a Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePort {
    /// Its name; empty where it has none.
    pub name: String,
    /// Its protocol.
    pub protocol: Protocol,
    /// What clients name.
    pub port: u16,
    /// What pods listen on.
    pub target: TargetPort,
    /// The port at every node.
    pub node_port: Option<u16>,
}

/// What a Service's port leads to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TargetPort {
    /// The same number at every pod.
    Number(u16),
    /// The port that each pod calls so.
    Name(String),
}

/// An EndpointSlice of a Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointSlice {
    /// Its own namespace and name.
    pub key: ObjectKey,
    /// The Service that it is of.
    pub service: ObjectKey,
    /// Its endpoints.
    pub endpoints: Vec<Endpoint>,
    /// Their ports; ports without a number are none.
    pub ports: Vec<EndpointPort>,
}

/// A port of the endpoints of a slice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointPort {
    /// The name of the Service's port; empty where it has none.
    pub name: String,
    /// Its protocol.
    pub protocol: Protocol,
    /// What the endpoints listen on.
    pub number: u16,
}

/// An endpoint of a slice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Its addresses; the first is used.
    pub addresses: Vec<IpAddr>,
    /// Whether new connections go to it.
    pub ready: bool,
    /// Whether it still answers.
    pub serving: bool,
    /// Whether it is being deleted.
    pub terminating: bool,
    /// The node that it is on.
    pub node: Option<String>,
    /// The pod that it is.
    pub pod: Option<ObjectKey>,
    /// Nodes whose clients should use it.
    pub for_nodes: Vec<String>,
    /// Zones whose clients should use it.
    pub for_zones: Vec<String>,
}
