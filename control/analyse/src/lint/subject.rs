//! What the lints look at: policies as they were understood and as they were written, and Services.

use std::{
    collections::{BTreeSet, HashMap},
    net::IpAddr,
};

use ipnet::IpNet;
use ringwall_policy::{
    Cluster, Labels, NetworkPolicy, ObjectKey, Operator, Peer, PortMatch, Protocol, Requirement, Rule,
    Selector,
    services::{Service, Services},
};
use ringwall_source::folder::ManifestObject;
use serde_json::Value;

use super::{SourceLocation, selecting::matches, witnesses::address_in};

/// Seen from the pod that a policy selects.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Direction {
    Ingress,
    Egress,
}

pub(super) const DIRECTIONS: [Direction; 2] = [Direction::Ingress, Direction::Egress];

impl Direction {
    /// Its key in `spec`.
    pub(super) fn key(self) -> &'static str {
        match self {
            Self::Ingress => "ingress",
            Self::Egress => "egress",
        }
    }

    /// The key of a rule's peers.
    pub(super) fn peers_key(self) -> &'static str {
        match self {
            Self::Ingress => "from",
            Self::Egress => "to",
        }
    }

    /// Its policy type.
    pub(super) fn policy_type(self) -> &'static str {
        match self {
            Self::Ingress => "Ingress",
            Self::Egress => "Egress",
        }
    }
}

/// A policy with its text.
pub(super) struct Policy<'a> {
    pub(super) it: &'a NetworkPolicy,
    pub(super) written: &'a ManifestObject,
    pub(super) label: String,
    /// `spec` as written.
    pub(super) spec: Value,
    /// `metadata` as written.
    pub(super) metadata: Value,
}

impl<'a> Policy<'a> {
    pub(super) fn namespace(&self) -> &'a str {
        &self.it.key.namespace
    }

    /// The rules of a direction; None where the policy has no part in it.
    pub(super) fn rules(&self, direction: Direction) -> Option<&'a [Rule]> {
        match direction {
            Direction::Ingress => self.it.ingress.as_deref(),
            Direction::Egress => self.it.egress.as_deref(),
        }
    }

    /// Every rule with its place.
    pub(super) fn all_rules(&self) -> impl Iterator<Item = PlacedRule<'a>> + '_ {
        DIRECTIONS.into_iter().flat_map(|direction| {
            let rules = self.rules(direction).unwrap_or_default();
            rules.iter().enumerate().map(move |(index, rule)| PlacedRule {
                direction,
                index,
                rule,
            })
        })
    }

    /// Every peer with its place.
    pub(super) fn all_peers(&self) -> impl Iterator<Item = (PlacedRule<'a>, usize, &'a Peer)> + '_ {
        self.all_rules().flat_map(|placed| {
            let peers = placed.rule.peers.as_deref().unwrap_or_default();
            peers
                .iter()
                .enumerate()
                .map(move |(index, peer)| (placed, index, peer))
        })
    }

    /// Whether it selects labels of its namespace.
    pub(super) fn selects(&self, labels: &Labels) -> bool {
        matches(&self.it.subjects, labels)
    }
}

/// A rule and where it stands.
#[derive(Clone, Copy)]
pub(super) struct PlacedRule<'a> {
    pub(super) direction: Direction,
    pub(super) index: usize,
    pub(super) rule: &'a Rule,
}

impl PlacedRule<'_> {
    pub(super) fn path(&self) -> String {
        format!("spec.{}[{}]", self.direction.key(), self.index)
    }

    pub(super) fn peer_path(&self, peer: usize) -> String {
        format!("{}.{}[{peer}]", self.path(), self.direction.peers_key())
    }

    pub(super) fn port_path(&self, port: usize) -> String {
        format!("{}.ports[{port}]", self.path())
    }

    /// Protocol and port of something that the rule's ports allow; `otherwise` where it restricts none.
    pub(super) fn some_port(&self, otherwise: u16) -> (Protocol, u16) {
        self.rule
            .ports
            .iter()
            .flatten()
            .find_map(|port| match port {
                PortMatch::Range { protocol, lo, .. } => Some((*protocol, *lo)),
                PortMatch::All(protocol) => Some((*protocol, otherwise)),
                PortMatch::Named { .. } | PortMatch::IpProtocol(_) | PortMatch::Icmp { .. } => None,
            })
            .unwrap_or((Protocol::Tcp, otherwise))
    }
}

/// Everything.
pub(super) struct Subject<'a> {
    pub(super) cluster: &'a Cluster,
    /// The policies that could be understood, by namespace and name.
    pub(super) policies: Vec<Policy<'a>>,
    /// The others.
    pub(super) invalid: Vec<Policy<'a>>,
    /// Services that select pods.
    pub(super) services: Vec<&'a Service>,
    /// Every Service, and the endpoints that are listed.
    pub(super) all_services: &'a Services,
    /// Networks of Services: those of the configuration and of ServiceCIDR objects.
    pub(super) service_networks: Vec<IpNet>,
    /// Kinds that are none of Kubernetes' own and no policies, and that were passed over.
    pub(super) foreign: BTreeSet<String>,
    written: HashMap<&'a str, &'a ManifestObject>,
}

impl<'a> Subject<'a> {
    pub(super) fn new(cluster: &'a Cluster, services: &'a Services, all: &'a [ManifestObject]) -> Self {
        let mut written: HashMap<&str, &ManifestObject> = HashMap::new();
        for it in all {
            written.entry(it.label()).or_insert(it);
        }
        let (mut policies, mut invalid) = (Vec::new(), Vec::new());
        for (key, it) in &cluster.policies {
            let misnamed = || all.iter().find(|it| it.label().ends_with(&format!(" {key}")));
            let label = format!("NetworkPolicy {key}");
            let Some(written) = written.get(label.as_str()).copied().or_else(misnamed) else {
                continue;
            };
            let value = written.value();
            let policy = Policy {
                it,
                written,
                label: written.label().to_owned(),
                spec: value.get("spec").cloned().unwrap_or_default(),
                metadata: value.get("metadata").cloned().unwrap_or_default(),
            };
            if it.faults.is_empty() {
                policies.push(policy);
            } else {
                invalid.push(policy);
            }
        }
        let selecting = services.services.values().map(AsRef::as_ref);
        let described = all.iter().filter(|it| it.kind() == "ServiceCIDR");
        let described = described.flat_map(|it| {
            let value = it.value();
            let cidrs = value.pointer("/spec/cidrs").and_then(Value::as_array);
            let texts = cidrs.into_iter().flatten().filter_map(Value::as_str);
            texts
                .filter_map(|text| text.parse::<IpNet>().ok())
                .collect::<Vec<_>>()
        });
        Self {
            cluster,
            policies,
            invalid,
            services: selecting.filter(|it| !it.selector.is_empty()).collect(),
            all_services: services,
            service_networks: cluster
                .settings
                .service_cidrs
                .iter()
                .copied()
                .chain(described)
                .collect(),
            foreign: all
                .iter()
                .filter(|it| it.label() == it.kind() && is_foreign(&it.value()))
                .filter(|it| {
                    let own = |kind: &String| kind.split('.').next() == Some(it.kind());
                    !cluster.unevaluated_kinds.iter().any(own)
                })
                .map(|it| it.kind().to_owned())
                .collect(),
            written,
        }
    }

    /// An object as written, by its label.
    pub(super) fn written(&self, label: &str) -> Option<&'a ManifestObject> {
        self.written.get(label).copied()
    }

    /// Every service account of a namespace, or of all, that is described or that a pod runs as.
    pub(super) fn accounts(&self, namespace: Option<&str>) -> BTreeSet<String> {
        let here = |it: &str| namespace.is_none_or(|namespace| namespace == it);
        let of_pods = self.cluster.pods.values().filter(|pod| here(&pod.key.namespace));
        let described = self.written.values().filter(|it| it.kind() == "ServiceAccount");
        let described = described.filter_map(|it| {
            let value = it.value();
            let text = |path: &str| value.pointer(path).and_then(Value::as_str);
            let own = text("/metadata/namespace").unwrap_or("default");
            here(own).then(|| text("/metadata/name").map(str::to_owned))?
        });
        of_pods
            .map(|pod| pod.service_account.clone())
            .chain(described)
            .collect()
    }

    /// An address of each NetworkSet, with its namespace and name.
    pub(super) fn network_sets(&self) -> impl Iterator<Item = (String, String, IpAddr)> {
        let sets = self.written.values().filter(|it| it.kind() == "NetworkSet");
        let mut sets: Vec<(String, String, IpAddr)> = sets
            .filter_map(|it| {
                let value = it.value();
                let text = |path: &str| value.pointer(path).and_then(Value::as_str);
                let net = text("/spec/nets/0")?;
                let address = match net.parse::<ipnet::IpNet>() {
                    Ok(net) => address_in(&net, &[])?,
                    Err(_) => net.parse().ok()?,
                };
                let namespace = text("/metadata/namespace").unwrap_or("default");
                Some((namespace.to_owned(), text("/metadata/name")?.to_owned(), address))
            })
            .collect();
        sets.sort();
        sets.into_iter()
    }

    /// The named ports of plain init containers of pods: the pod, the name, the number.
    pub(super) fn init_ports(&self) -> impl Iterator<Item = (ObjectKey, String, u16)> {
        let mut ports = Vec::new();
        for it in self.written.values().filter(|it| it.kind() == "Pod") {
            let value = it.value();
            let text = |path: &str| value.pointer(path).and_then(Value::as_str);
            let Some(name) = text("/metadata/name") else {
                continue;
            };
            let key = ObjectKey {
                namespace: text("/metadata/namespace").unwrap_or("default").to_owned(),
                name: name.to_owned(),
            };
            let containers = value.pointer("/spec/initContainers").and_then(Value::as_array);
            let plain = containers
                .into_iter()
                .flatten()
                .filter(|it| it.get("restartPolicy").is_none_or(Value::is_null));
            for port in plain.filter_map(|it| it.get("ports")?.as_array()).flatten() {
                let number = port.get("containerPort").and_then(Value::as_u64);
                let number = number.and_then(|it| u16::try_from(it).ok());
                let name = port.get("name").and_then(Value::as_str);
                ports.extend(
                    name.zip(number)
                        .map(|(name, number)| (key.clone(), name.to_owned(), number)),
                );
            }
        }
        ports.sort();
        ports.into_iter()
    }

    /// The valid policies that select labels of a namespace.
    pub(super) fn selecting<'s>(
        &'s self,
        namespace: &'s str,
        labels: &'s Labels,
    ) -> impl Iterator<Item = &'s Policy<'a>> {
        let from = self
            .policies
            .partition_point(|policy| policy.namespace() < namespace);
        self.policies
            .iter()
            .skip(from)
            .take_while(move |policy| policy.namespace() == namespace)
            .filter(move |policy| policy.selects(labels))
    }
}

/// Whether an object is of a group that is none of Kubernetes' own: whoever defined it may make pods of it.
fn is_foreign(value: &Value) -> bool {
    let version = value.get("apiVersion").and_then(Value::as_str);
    let group = version
        .and_then(|version| version.split_once('/'))
        .map(|(group, _)| group);
    group.is_some_and(|group| group.contains('.') && !group.ends_with(".k8s.io"))
}

/// Where a field of an object stands.
pub(super) fn place(written: &ManifestObject, field: &str) -> SourceLocation {
    let spot = written.spot(field);
    SourceLocation {
        file: written.file().to_owned(),
        line: spot.map(|(line, _, _)| line),
        column: spot.map(|(_, column, _)| column),
        length: spot.map(|(_, _, length)| length),
    }
}

/// Labels as the selector that asks for exactly them.
pub(super) fn selector_of(labels: &Labels) -> Selector {
    let requirement = |(key, value): (&String, &String)| Requirement {
        key: key.clone(),
        operator: Operator::In([value.clone()].into()),
    };
    Selector {
        requirements: labels.iter().map(requirement).collect(),
    }
}
