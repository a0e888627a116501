//! Whom an endpoint sees as the source of a connection through a Service.
//!
//! A node that forwards a connection from outside to an endpoint elsewhere masquerades it, unless externalTrafficPolicy is Local. An
//! endpoint on the same node is judged by the client: connection tracking there knows both.

use std::collections::BTreeMap;

use ringwall_policy::services::{IpFamily, Service};

use super::{Backend, Client, ClientKind, Directory, Frontend, VisibleSource, endpoints::Candidate};
use crate::{flow::EndName, judge::Judge};

impl Directory<'_> {
    /// The endpoints, each with whom it may see as the source.
    pub(super) fn backends(
        &self,
        judge: &Judge,
        service: &Service,
        frontend: &Frontend,
        client: &Client<'_>,
        candidates: Vec<Candidate>,
        notes: &mut Vec<String>,
    ) -> Vec<Backend> {
        let sent_to = match frontend {
            // The node's address is translated there, not where the client is.
            Frontend::NodePort { node, at } if client.node.as_ref() != Some(node) => Some(*at),
            _ => None,
        };
        let mut found = Vec::new();
        let mut unknown = false;
        for candidate in candidates {
            let end = match (candidate.address, &candidate.pod) {
                (Some(address), _) => EndName::Address(address),
                (None, Some(pod)) => EndName::Pod(pod.clone()),
                (None, None) => continue,
            };
            let seen = self.seen(judge, service, frontend, client, &candidate);
            unknown |= seen.is_empty();
            let seen = if seen.is_empty() {
                vec![VisibleSource::Client]
            } else {
                seen
            };
            found.extend(seen.into_iter().map(|seen| Backend {
                end: end.clone(),
                pod: candidate.pod.clone(),
                port: candidate.port,
                node: candidate.node.clone(),
                seen,
                sent_to,
            }));
        }
        if unknown {
            notes.push(
                "a node other than the endpoint's may masquerade the connection, and the manifests hold no other Node: only the \
                 client's own address was judged"
                    .to_owned(),
            );
        }
        found
    }

    /// Whom an endpoint may see; empty where that is the client or a node that is not known.
    fn seen(
        &self,
        judge: &Judge,
        service: &Service,
        frontend: &Frontend,
        client: &Client<'_>,
        candidate: &Candidate,
    ) -> Vec<VisibleSource> {
        let keeps = match frontend {
            Frontend::Headless => true,
            // kube-proxy masquerades what is not from a pod.
            Frontend::ClusterIp => client.kind != ClientKind::Outside,
            _ => service.external_local,
        };
        if keeps
            || client.kind == ClientKind::Node && client.node.is_some() && !is_elsewhere(frontend, client)
        {
            return vec![VisibleSource::Client];
        }
        // The node that forwards, where it is known.
        let forwards = match frontend {
            Frontend::NodePort { node, .. } => Some(node),
            _ => client.node.as_ref(),
        };
        let family = candidate.address.map(IpFamily::of);
        match (forwards, &candidate.node) {
            (Some(node), Some(own)) if node == own => vec![VisibleSource::Client],
            (Some(node), own) => {
                let node = self.node_as_source(node, family);
                let client = own.is_none().then_some(VisibleSource::Client);
                client.into_iter().chain(node).collect()
            }
            (None, own) => {
                let mut others = BTreeMap::new();
                for name in self
                    .cluster
                    .nodes
                    .keys()
                    .filter(|name| Some(*name) != own.as_ref())
                {
                    let Some(seen) = self.node_as_source(name, family) else {
                        continue;
                    };
                    let VisibleSource::Node { address, .. } = &seen else {
                        continue;
                    };
                    let end = EndName::Address(*address);
                    // One of those that no policy tells apart.
                    if let Ok((end, _)) = judge.ends(self.cluster, &end, &end) {
                        others.entry(judge.class(&end, false)).or_insert(seen);
                    }
                }
                if others.is_empty() {
                    return Vec::new();
                }
                let mut seen: Vec<VisibleSource> = others.into_values().collect();
                seen.push(VisibleSource::Client);
                seen.sort();
                seen
            }
        }
    }

    /// A node as the source of what it masquerades.
    fn node_as_source(&self, name: &str, family: Option<IpFamily>) -> Option<VisibleSource> {
        let node = self.cluster.nodes.get(name)?;
        let mut addresses = node.addresses.iter().copied();
        let address = addresses.find(|it| family.is_none_or(|family| IpFamily::of(*it) == family))?;
        Some(VisibleSource::Node {
            name: name.to_owned(),
            address,
        })
    }
}

/// Whether a client that is a node asks another node.
fn is_elsewhere(frontend: &Frontend, client: &Client<'_>) -> bool {
    match frontend {
        Frontend::NodePort { node, .. } => client.node.as_ref() != Some(node),
        _ => false,
    }
}
