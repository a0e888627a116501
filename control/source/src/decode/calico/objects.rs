//! Tiers, network sets, host endpoints, profiles; and of Kubernetes itself, the service accounts, services and endpoint
//! slices that Calico's rules speak of.

use std::{net::IpAddr, sync::Arc};

use ipnet::IpNet;
use ringwall_policy::{
    Fault, Labels, Object, ObjectKey, Operator, Order, PortMatch, Requirement, Selector, Tier, TierDefault,
    services::{ServiceKind, ServiceObject, ServicePort, TargetPort},
};
use serde_json::Value;

use super::{
    super::{
        field::{
            Fields, bad_label_key, bad_label_value, dns_label, dns_subdomain, fault, item, join, kind_of,
            list, mapping, only_hinting, present, strict_cidr, string, whole, wrong_type,
        },
        labels, mappings,
        policy::{Findings, metadata},
        services,
    },
    EndpointSlice, HostEndpoint, Input, Kind, ObjectText, Read, Service, ServiceAccount, Set,
    ports::{self, is_port_name},
    terms::{NAMESPACE, OF_ACCOUNT, OF_NAMESPACE},
};

/// The order of a tier that has none (TIERS 0.1).
const ORDER_OF_TIERS: f64 = 1_000_000.0;

/// Longest name of a tier.
const LONGEST_TIER: usize = 63;

/// The profile that allows everything, which host endpoints have that Calico makes itself.
const DEFAULT_ALLOW: &str = "projectcalico-default-allow";

impl<'a> ObjectText<'a> {
    /// Refuses what cannot be combined with `spec`, and complains about metadata.
    pub(super) fn metadata(self, kind: Kind, findings: &mut Findings) -> Result<(), Fault> {
        let Self { root, at, key, .. } = self;
        known(root, at, &["apiVersion", "kind", "metadata", "spec", "status"])?;
        metadata(
            root,
            at,
            kind.namespaced().then_some(&key.namespace),
            &key.name,
            findings,
        );
        let namespace = root
            .get("metadata")
            .and_then(|metadata| metadata.get("namespace"));
        if !kind.namespaced() && namespace.is_some_and(|namespace| !namespace.is_null()) {
            findings.notes.push(fault(
                join(&join(at, "metadata"), "namespace"),
                format!(
                    "a {} has no namespace, and this one has no effect: remove it",
                    kind.name()
                ),
            ));
        }
        Ok(())
    }

    /// `spec`, with its path; absent reads as empty.
    pub(super) fn spec(self) -> Result<(&'a Fields, String), Fault> {
        Ok((mapping(self.root, self.at, "spec")?, join(self.at, "spec")))
    }

    /// The same, where there has to be one.
    fn required_spec(self) -> Result<(&'a Fields, String), Fault> {
        match present(self.root, "spec") {
            Some(_) => self.spec(),
            None => Err(fault(
                join(self.at, "spec"),
                "is missing: an API server refuses that; write it",
            )),
        }
    }

    fn labels(self) -> Result<Labels, Fault> {
        let at = join(self.at, "metadata");
        labels(mapping(self.root, self.at, "metadata")?, &at)
    }
}

/// Refuses fields that may have been meant as anything.
pub(super) fn known(fields: &Fields, at: &str, known: &[&str]) -> Result<(), Fault> {
    let mut faults = Vec::new();
    only_hinting(fields, at, known, &mut faults, |key| match key {
        "ingress" | "egress" | "selector" | "order" | "tier" | "types" | "nets"
            if known.contains(&"spec") =>
        {
            Some("it belongs in spec, one level deeper")
        }
        "policyTypes" => Some("write types"),
        "podSelector" => Some("write selector, such as selector: role == \"db\""),
        "priority" => Some("write order"),
        "subject" => Some("write selector and namespaceSelector"),
        "action" | "source" | "destination" | "protocol" => {
            Some("it belongs in a rule of ingress or egress, one level deeper")
        }
        _ => None,
    });
    faults.into_iter().next().map_or(Ok(()), Err)
}

/// An order; None where there is none.
///
/// # Errors
/// It is no number.
pub(super) fn order(spec: &Fields, at: &str) -> Result<Option<Order>, Fault> {
    let Some(value) = present(spec, "order") else {
        return Ok(None);
    };
    let order = match value {
        Value::Number(number) => number.as_f64().and_then(Order::new),
        _ => None,
    };
    match order {
        Some(order) => Ok(Some(order)),
        None => Err(fault(
            join(at, "order"),
            format!(
                "must be a number, not {}: the smallest comes first; without an order, the object comes last",
                kind_of(value)
            ),
        )),
    }
}

/// Reads a Tier.
///
/// # Errors
/// Its place or what it does by default cannot be read, or differs from a built-in tier (TIERS 79.1, 102).
pub(super) fn tier(place: ObjectText<'_>) -> Result<Tier, Fault> {
    let name = place.key.name.as_str();
    if !dns_label(name) {
        return Err(fault(
            join(&join(place.at, "metadata"), "name"),
            format!(
                "{name:?} is not the name of a tier: write at most {LONGEST_TIER} lower case letters, digits and '-'"
            ),
        ));
    }
    let (spec, at) = place.required_spec()?;
    known(spec, &at, &["order", "defaultAction"])?;
    let order = order(spec, &at)?;
    let action = string(spec, &at, "defaultAction")?;
    let default = match action {
        None | Some("Deny") => TierDefault::Deny,
        Some("Pass") => TierDefault::Pass,
        Some(other) => {
            return Err(fault(
                join(&at, "defaultAction"),
                format!("{other:?} is not a default action of a tier: write Deny or Pass"),
            ));
        }
    };
    let Some(built_in) = Tier::built_in().into_iter().find(|tier| tier.name == name) else {
        let order = order.or(Order::new(ORDER_OF_TIERS)).unwrap_or_default();
        return Ok(Tier {
            name: name.to_owned(),
            order,
            default,
        });
    };
    if order != Some(built_in.order) {
        return Err(fault(
            join(&at, "order"),
            format!(
                "the tier {name} is built in: write {}, or leave the tier out",
                built_in.order
            ),
        ));
    }
    // An API server fills in Deny before it compares.
    if default != built_in.default {
        let wanted = match built_in.default {
            TierDefault::Deny => "Deny",
            TierDefault::Pass => "Pass",
        };
        return Err(fault(
            join(&at, "defaultAction"),
            format!("the tier {name} is built in: write {wanted}, or leave the tier out"),
        ));
    }
    Ok(built_in)
}

/// Reads a NetworkSet or GlobalNetworkSet. An entry that is no block is passed over (TIERS 96.3).
///
/// # Errors
/// Its labels would make it something else than it is, or cannot be read.
pub(super) fn set(kind: Kind, place: ObjectText<'_>, findings: &mut Findings) -> Result<Set, Fault> {
    let labels = place.labels()?;
    let labels_at = join(&join(place.at, "metadata"), "labels");
    for key in labels.keys() {
        if key == NAMESPACE || key.starts_with(OF_NAMESPACE) || key.starts_with(OF_ACCOUNT) {
            return Err(fault(
                join(&labels_at, key),
                "labels of namespaces and service accounts are those of Namespaces and ServiceAccounts, and a set cannot \
                 claim them: leave it out",
            ));
        }
    }
    let (spec, at) = place.required_spec()?;
    known(spec, &at, &["nets"])?;
    let mut blocks = Vec::new();
    let path = join(&at, "nets");
    for (index, value) in list(spec, &at, "nets")?.iter().enumerate() {
        let at = item(&path, index);
        let Value::String(text) = value else {
            return Err(fault(at, wrong_type(value, "a string")));
        };
        match block(text) {
            Ok(block) if blocks.contains(&block) => findings.faults.push(fault(
                at,
                format!("{text:?} is listed twice: an API server refuses that"),
            )),
            Ok(block) => blocks.push(block),
            Err(wrong) => findings.faults.push(fault(
                at,
                format!("{wrong}; as it stands, the set does not have it"),
            )),
        }
    }
    blocks.sort();
    Ok(Set {
        namespace: kind.namespaced().then(|| place.key.namespace.clone()),
        name: place.key.name.clone(),
        labels,
        blocks,
    })
}

/// A block, with or without bits outside of its prefix, or an address.
fn block(text: &str) -> Result<IpNet, String> {
    if let Some(address) = address(text) {
        return Ok(IpNet::from(address));
    }
    strict_cidr(text).map(|(block, _)| block)
}

fn address(text: &str) -> Option<IpAddr> {
    text.parse::<IpAddr>()
        .ok()
        .filter(|address| *address == address.to_canonical())
}

/// Reads a HostEndpoint, as far as rules can speak of it.
///
/// # Errors
/// Its labels or addresses cannot be read.
pub(super) fn host_endpoint(place: ObjectText<'_>, findings: &mut Findings) -> Result<HostEndpoint, Fault> {
    let labels = place.labels()?;
    let (spec, at) = place.spec()?;
    known(
        spec,
        &at,
        &["node", "interfaceName", "expectedIPs", "profiles", "ports"],
    )?;
    let node = string(spec, &at, "node")?.unwrap_or_default();
    if node.is_empty() {
        findings
            .faults
            .push(fault(join(&at, "node"), "is missing: write the name of the node"));
    } else if !dns_subdomain(node) {
        findings.faults.push(fault(
            join(&at, "node"),
            format!("{node:?} is not the name of a node"),
        ));
    }
    let interface = string(spec, &at, "interfaceName")?.unwrap_or_default();
    let of_interface = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-');
    if !interface.is_empty()
        && interface != "*"
        && !(interface.len() <= 15 && interface.chars().all(of_interface))
    {
        findings.faults.push(fault(
            join(&at, "interfaceName"),
            format!("{interface:?} is not the name of an interface: write it, or * for all of the node"),
        ));
    }
    let mut addresses = Vec::new();
    let path = join(&at, "expectedIPs");
    for (index, value) in list(spec, &at, "expectedIPs")?.iter().enumerate() {
        let at = item(&path, index);
        let Some(address) = value.as_str().and_then(address) else {
            return Err(fault(
                at,
                format!("{value} is not an address: write one such as 192.0.2.1"),
            ));
        };
        if addresses.contains(&address) {
            findings
                .faults
                .push(fault(at, "is listed twice: an API server refuses that"));
        } else {
            addresses.push(address);
        }
    }
    if interface.is_empty() && addresses.is_empty() {
        findings.faults.push(fault(
            &at,
            "has neither interfaceName nor expectedIPs: write one of them",
        ));
    }
    let mut ports = Vec::new();
    for (port, at) in mappings(spec, &at, "ports")? {
        known(port, &at, &["name", "protocol", "port"])?;
        let name = string(port, &at, "name")?.unwrap_or_default();
        if !is_port_name(name) {
            findings.faults.push(fault(
                join(&at, "name"),
                format!("{name:?} is not a port name: write 1 to 128 letters, digits, '_', '.' and '-'"),
            ));
        }
        let protocol = ports::protocol(port, &at, "protocol", findings);
        if protocol.is_none() && present(port, "protocol").is_none() {
            findings
                .faults
                .push(fault(join(&at, "protocol"), "is missing: write TCP, UDP or SCTP"));
        }
        let number = present(port, "port").and_then(whole);
        if !number.is_some_and(|number| (1..=65535).contains(&number)) {
            findings
                .faults
                .push(fault(join(&at, "port"), "has to be a number from 1 to 65535"));
        }
        let number = number.and_then(|number| u16::try_from(number).ok());
        if let (Some(protocol), Some(number)) = (protocol.and_then(ports::Named::with_ports), number) {
            ports.push((name.to_owned(), protocol, number));
        }
    }
    let profiles = list(spec, &at, "profiles")?;
    for (index, profile) in profiles.iter().enumerate() {
        let at = item(&join(&at, "profiles"), index);
        if !profile.is_string() {
            findings.faults.push(fault(at, wrong_type(profile, "a string")));
        } else if profiles.iter().take(index).any(|before| before == profile) {
            findings
                .faults
                .push(fault(at, "is listed twice: an API server refuses that"));
        }
    }
    Ok(HostEndpoint {
        name: place.key.name.clone(),
        labels,
        addresses,
        ports,
        open: profiles
            .iter()
            .any(|profile| profile.as_str() == Some(DEFAULT_ALLOW)),
    })
}

/// A Profile: those that Calico makes of namespaces and service accounts are what pods have anyway.
pub(super) fn profile(place: ObjectText<'_>) -> Read {
    let name = place.key.name.as_str();
    let known = name.starts_with("kns.") || name.starts_with("ksa.") || name == DEFAULT_ALLOW;
    match known {
        true => Read::ignored(Kind::Profile),
        false => Read {
            object: Object::Unevaluated {
                kind: format!("{}.{}", Kind::Profile.name(), super::GROUP),
            },
            input: None,
        },
    }
}

/// A kind of Kubernetes itself that Calico's rules speak of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) enum Support {
    ServiceAccount,
    Service,
    EndpointSlice,
}

/// Which of them a kind is.
pub(in super::super) fn support(kind: &str, group: &str) -> Option<Support> {
    match (group, kind) {
        ("", "ServiceAccount") => Some(Support::ServiceAccount),
        ("", "Service") => Some(Support::Service),
        ("discovery.k8s.io", "EndpointSlice") => Some(Support::EndpointSlice),
        _ => None,
    }
}

impl Support {
    /// Reads an object: what rules may need of it, and what it says about Services. They decide nothing by themselves, so what
    /// cannot be read of them is passed over: a rule that speaks of it matches less.
    pub(in super::super) fn read(self, root: &Fields) -> (Option<Input>, Option<ServiceObject>) {
        let Some((metadata, key)) = metadata_and_key(root) else {
            return (None, None);
        };
        match self {
            Self::ServiceAccount => {
                let labels = readable_labels(metadata.get("labels"));
                (Some(Input::Account(ServiceAccount { key, labels })), None)
            }
            Self::Service => {
                let service = services::service(key, root);
                let input = service.as_ref().and_then(selecting).map(Input::Service);
                (input, service.map(Arc::new).map(ServiceObject::Service))
            }
            Self::EndpointSlice => {
                let slice = services::slice(key, root);
                let input = slice.as_ref().map(listed).map(Input::Slice);
                (input, slice.map(Arc::new).map(ServiceObject::Slice))
            }
        }
    }
}

fn metadata_and_key(root: &Fields) -> Option<(&Fields, ObjectKey)> {
    let metadata = root.get("metadata")?.as_object()?;
    let text = |key| {
        metadata
            .get(key)
            .and_then(Value::as_str)
            .filter(|text| !text.is_empty())
    };
    let key = ObjectKey {
        namespace: text("namespace").unwrap_or("default").to_owned(),
        name: text("name")?.to_owned(),
    };
    Some((metadata, key))
}

pub(in super::super) fn readable_labels(labels: Option<&Value>) -> Labels {
    let labels = labels.and_then(Value::as_object);
    labels
        .into_iter()
        .flatten()
        .map(|(key, value)| (key, value.as_str().unwrap_or_default()))
        .filter(|(key, value)| bad_label_key(key).is_none() && bad_label_value(value).is_none())
        .map(|(key, value)| (key.clone(), value.to_owned()))
        .collect()
}

/// What rules need of a Service that selects pods; others have endpoints only where a slice says so.
fn selecting(service: &services::Service) -> Option<Service> {
    if matches!(service.kind, ServiceKind::ExternalName(_)) || service.selector.is_empty() {
        return None;
    }
    let requirement = |(key, value): (&String, &String)| Requirement {
        key: key.clone(),
        operator: Operator::In([value.clone()].into()),
    };
    let port = |port: &ServicePort| match &port.target {
        TargetPort::Name(name) => PortMatch::Named {
            protocol: port.protocol,
            name: name.clone(),
        },
        TargetPort::Number(number) => PortMatch::Range {
            protocol: port.protocol,
            lo: *number,
            hi: *number,
        },
    };
    let mut ports: Vec<PortMatch> = service.ports.iter().map(port).collect();
    ports.sort();
    ports.dedup();
    Some(Service {
        key: service.key.clone(),
        pods: Selector {
            requirements: service.selector.iter().map(requirement).collect(),
        },
        ports,
    })
}

/// What rules need of a slice; endpoints that are not ready count, too (TIERS 99.4).
fn listed(slice: &services::EndpointSlice) -> EndpointSlice {
    let addresses = slice.endpoints.iter().flat_map(|it| it.addresses.iter().copied());
    let (mut addresses, mut ports): (Vec<IpAddr>, Vec<_>) = (
        addresses.collect(),
        slice
            .ports
            .iter()
            .map(|port| (port.protocol, port.number))
            .collect(),
    );
    addresses.sort();
    addresses.dedup();
    ports.sort_unstable();
    ports.dedup();
    EndpointSlice {
        service: slice.service.clone(),
        addresses,
        ports,
    }
}
