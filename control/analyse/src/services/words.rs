//! What commands say of Services as destinations, in words and in JSON.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::{Backend, Frontend, Outcome, Resolved, Source, VisibleSource};
use crate::{flow, flow::EndName};

/// Which Service, port and frontend a destination stands for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceReport {
    /// `namespace/name`.
    pub name: String,
    /// `ClusterIP`, `NodePort` or `LoadBalancer`.
    pub r#type: String,
    /// By what the client reaches it: `cluster-ip`, `headless`, `external`, `load-balancer` or `node-port`.
    pub frontend: String,
    /// The port that the client names.
    pub port: Option<u16>,
    /// The name of the Service's port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port_name: Option<String>,
    /// Where its endpoints are from: `endpointslices` or `selector`.
    pub endpoints: String,
    /// The node that the client names.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
}

/// Which endpoint, and what policies see of a connection to it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackendReport {
    /// The pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<String>,
    /// Its node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// Its address.
    pub dst_ip: Option<IpAddr>,
    /// Its port.
    pub dst_port: u16,
    /// The node that it sees as the source, where that is not the client.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seen_as: Option<VisibleSourceReport>,
    /// What the client's own policies see as the destination, where that is not the endpoint.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sent_to: Option<SentReport>,
}

/// A node as the source.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VisibleSourceReport {
    /// Its name.
    pub node: String,
    /// Its address.
    pub src_ip: IpAddr,
}

/// A node's port as the destination.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SentReport {
    /// The node's address.
    pub dst_ip: IpAddr,
    /// The port.
    pub dst_port: u16,
}

impl Source {
    /// As JSON has it.
    pub const fn word(self) -> &'static str {
        match self {
            Self::EndpointSlices => "endpointslices",
            Self::Selector => "selector",
        }
    }
}

impl Resolved {
    /// Which Service, port and frontend, in JSON.
    pub fn report(&self) -> ServiceReport {
        ServiceReport {
            name: self.service.to_string(),
            r#type: self.kind.to_owned(),
            frontend: self.frontend.word().to_owned(),
            port: self.asked.port,
            port_name: Some(self.port_name.clone()).filter(|name| !name.is_empty()),
            endpoints: self.source.word().to_owned(),
            node: match &self.frontend {
                Frontend::NodePort { node, .. } => Some(node.clone()),
                _ => None,
            },
        }
    }

    /// Why a connection ends nowhere.
    pub fn why(&self) -> Option<&str> {
        match &self.outcome {
            Outcome::Rejected(why) | Outcome::Dropped(why) => Some(why),
            Outcome::Backends(_) => None,
        }
    }

    /// Which Service, port and frontend, and what becomes of the connection.
    pub fn words(&self) -> String {
        let service = &self.service;
        let what = match &self.frontend {
            Frontend::ClusterIp => format!("Service {service}"),
            Frontend::Headless => format!("headless Service {service}"),
            Frontend::External => format!("Service {service} from outside"),
            Frontend::LoadBalancer => format!("the load balancer of Service {service}"),
            Frontend::NodePort { node, .. } => format!("the NodePort of Service {service} at node {node}"),
        };
        let port = match self.port_name.as_str() {
            "" => String::new(),
            name => format!(", port {name}"),
        };
        match &self.outcome {
            Outcome::Rejected(why) if self.frontend == Frontend::Headless => format!("{what}{port}: {why}"),
            Outcome::Rejected(why) => format!("{what}{port}: kube-proxy rejects it: {why}"),
            Outcome::Dropped(why) => format!("{what}{port}: kube-proxy drops it: {why}"),
            Outcome::Backends(backends) => {
                let ends = backends.iter().map(|backend| (&backend.end, backend.port));
                let mut ends: Vec<(&EndName, u16)> = ends.collect();
                ends.dedup();
                let number = match ends.len() {
                    1 => "1 endpoint".to_owned(),
                    many => format!("{many} endpoints"),
                };
                let from = match self.source {
                    Source::EndpointSlices => "from EndpointSlices",
                    Source::Selector => "by its selector",
                };
                format!("{what}{port}: {number} {from}")
            }
        }
    }
}

impl Backend {
    /// Which endpoint, and what policies see of it, in JSON.
    pub fn report(&self) -> BackendReport {
        BackendReport {
            pod: self.pod.as_ref().map(ToString::to_string),
            node: self.node.clone(),
            dst_ip: match self.end {
                EndName::Address(address) => Some(address),
                EndName::Pod(_) | EndName::Service(_) => None,
            },
            dst_port: self.port,
            seen_as: match &self.seen {
                VisibleSource::Client => None,
                VisibleSource::Node { name, address } => Some(VisibleSourceReport {
                    node: name.clone(),
                    src_ip: *address,
                }),
            },
            sent_to: self
                .sent_to
                .map(|(dst_ip, dst_port)| SentReport { dst_ip, dst_port }),
        }
    }

    /// An endpoint, its port, and whom it sees.
    pub fn words(&self, asked: flow::Service) -> String {
        let end = match (&self.pod, &self.end) {
            (Some(pod), EndName::Address(address)) => format!("{pod} ({address})"),
            (_, end) => end.to_string(),
        };
        let port = flow::Service {
            port: Some(self.port),
            ..asked
        };
        let seen = match &self.seen {
            VisibleSource::Client => String::new(),
            VisibleSource::Node { name, address } => format!(", from node {name} ({address})"),
        };
        format!("{end} {port}{seen}")
    }
}
