//! Services, EndpointSlices, and what pods and nodes are to them. They decide nothing by themselves, so what cannot be read of
//! them is passed over.

use std::net::IpAddr;

use ipnet::IpNet;
pub(super) use ringwall_policy::services::{EndpointSlice, Service};
use ringwall_policy::{
    Labels, ObjectKey, Protocol,
    services::{
        Endpoint, EndpointPort, IpFamily, LoadBalancerIp, ServiceKind, ServiceObject, ServicePort, TargetPort,
    },
};
use serde_json::Value;

use super::field::{Fields, whole};

/// The label by which a slice says which Service it is of.
const SERVICE_NAME: &str = "kubernetes.io/service-name";
/// The label of a Service that another proxy forwards to.
const PROXY_NAME: &str = "service.kubernetes.io/service-proxy-name";
/// The label of a node's zone.
const ZONE: &str = "topology.kubernetes.io/zone";

fn text<'a>(fields: &'a Value, key: &str) -> Option<&'a str> {
    fields
        .get(key)
        .and_then(Value::as_str)
        .filter(|text| !text.is_empty())
}

fn entries<'a>(fields: &'a Value, key: &str) -> impl Iterator<Item = &'a Value> {
    fields.get(key).and_then(Value::as_array).into_iter().flatten()
}

fn texts<'a>(fields: &'a Value, key: &str) -> impl Iterator<Item = &'a str> {
    entries(fields, key).filter_map(Value::as_str)
}

fn address(text: &str) -> Option<IpAddr> {
    text.parse::<IpAddr>()
        .ok()
        .filter(|address| *address == address.to_canonical())
}

fn protocol(value: Option<&Value>) -> Option<Protocol> {
    match value.and_then(Value::as_str) {
        None | Some("TCP") => Some(Protocol::Tcp),
        Some("UDP") => Some(Protocol::Udp),
        Some("SCTP") => Some(Protocol::Sctp),
        Some(_) => None,
    }
}

fn port_number(value: &Value) -> Option<u16> {
    whole(value)
        .and_then(|number| u16::try_from(number).ok())
        .filter(|number| *number != 0)
}

/// Reads a Service.
pub(super) fn service(key: ObjectKey, root: &Fields) -> Option<Service> {
    let spec = root.get("spec")?;
    let none = Value::Null;
    let metadata = root.get("metadata").unwrap_or(&none);
    let headless =
        text(spec, "clusterIP") == Some("None") || texts(spec, "clusterIPs").any(|ip| ip == "None");
    let kind = match text(spec, "type") {
        Some("ExternalName") => {
            ServiceKind::ExternalName(text(spec, "externalName").unwrap_or_default().to_owned())
        }
        Some("NodePort") => ServiceKind::NodePort,
        Some("LoadBalancer") => ServiceKind::LoadBalancer,
        _ if headless => ServiceKind::Headless,
        _ => ServiceKind::ClusterIp,
    };
    let mut selector = Labels::new();
    for (key, value) in spec
        .get("selector")
        .and_then(Value::as_object)
        .into_iter()
        .flatten()
    {
        selector.insert(key.clone(), value.as_str()?.to_owned());
    }
    let mut cluster_ips: Vec<IpAddr> = texts(spec, "clusterIPs").filter_map(address).collect();
    if cluster_ips.is_empty() {
        cluster_ips.extend(text(spec, "clusterIP").and_then(address));
    }
    let port = |port: &Value| {
        let number = port_number(port.get("port")?)?;
        Some(ServicePort {
            name: text(port, "name").unwrap_or_default().to_owned(),
            protocol: protocol(port.get("protocol"))?,
            port: number,
            target: match port.get("targetPort").filter(|target| !target.is_null()) {
                None => TargetPort::Number(number),
                Some(Value::String(name)) => TargetPort::Name(name.clone()),
                // As the API server fills in what is 0.
                Some(target) if whole(target) == Some(0) => TargetPort::Number(number),
                Some(target) => TargetPort::Number(port_number(target)?),
            },
            node_port: port.get("nodePort").and_then(port_number),
        })
    };
    let ingress = root.get("status").and_then(|status| status.get("loadBalancer"));
    let ingress = entries(ingress.unwrap_or(&none), "ingress").filter_map(|ingress| {
        Some(LoadBalancerIp {
            address: address(text(ingress, "ip")?)?,
            replaced: text(ingress, "ipMode") == Some("Proxy"),
        })
    });
    let mut families: Vec<IpFamily> = texts(spec, "ipFamilies")
        .filter_map(|family| match family {
            "IPv4" => Some(IpFamily::V4),
            "IPv6" => Some(IpFamily::V6),
            _ => None,
        })
        .collect();
    if families.is_empty() {
        families = cluster_ips.iter().copied().map(IpFamily::of).collect();
    }
    if matches!(
        text(spec, "ipFamilyPolicy"),
        Some("PreferDualStack" | "RequireDualStack")
    ) && families.len() < 2
        && cluster_ips.is_empty()
    {
        families = vec![IpFamily::V4, IpFamily::V6];
    }
    let local = |key: &str| text(spec, key) == Some("Local");
    Some(Service {
        key,
        kind,
        selector,
        ports: entries(spec, "ports").filter_map(port).collect(),
        cluster_ips,
        external_ips: texts(spec, "externalIPs").filter_map(address).collect(),
        ingress: ingress.collect(),
        families,
        publish_not_ready: spec.get("publishNotReadyAddresses").and_then(Value::as_bool) == Some(true),
        external_local: local("externalTrafficPolicy"),
        internal_local: local("internalTrafficPolicy"),
        source_ranges: texts(spec, "loadBalancerSourceRanges")
            .filter_map(|net| net.trim().parse::<IpNet>().ok())
            .collect(),
        proxy_name: metadata
            .get("labels")
            .and_then(|labels| text(labels, PROXY_NAME))
            .map(str::to_owned),
    })
}

/// Reads an EndpointSlice of a Service.
pub(super) fn slice(key: ObjectKey, root: &Fields) -> Option<EndpointSlice> {
    let labels = root.get("metadata")?.get("labels")?;
    let service = ObjectKey {
        namespace: key.namespace.clone(),
        name: text(labels, SERVICE_NAME)?.to_owned(),
    };
    let list = |key: &str| root.get(key).and_then(Value::as_array).into_iter().flatten();
    let ports = list("ports").filter_map(|port| {
        Some(EndpointPort {
            name: text(port, "name").unwrap_or_default().to_owned(),
            protocol: protocol(port.get("protocol"))?,
            number: port_number(port.get("port")?)?,
        })
    });
    let ports: Vec<EndpointPort> = ports.collect();
    let endpoint = |endpoint: &Value| {
        let condition = |name: &str| endpoint.get("conditions")?.get(name)?.as_bool();
        let target = endpoint
            .get("targetRef")
            .filter(|target| text(target, "kind") == Some("Pod"));
        let hints = |key: &str| -> Vec<String> {
            let hints = endpoint.get("hints").map(|hints| entries(hints, key));
            let names = hints.into_iter().flatten().filter_map(|hint| text(hint, "name"));
            names.map(str::to_owned).collect()
        };
        Endpoint {
            // Names stand there, too.
            addresses: texts(endpoint, "addresses").filter_map(address).collect(),
            ready: condition("ready").unwrap_or(true),
            serving: condition("serving").unwrap_or(true),
            terminating: condition("terminating").unwrap_or(false),
            node: text(endpoint, "nodeName").map(str::to_owned),
            pod: target.and_then(|target| {
                Some(ObjectKey {
                    namespace: text(target, "namespace").unwrap_or(&key.namespace).to_owned(),
                    name: text(target, "name")?.to_owned(),
                })
            }),
            for_nodes: hints("forNodes"),
            for_zones: hints("forZones"),
        }
    };
    let endpoints = list("endpoints").map(endpoint);
    Some(EndpointSlice {
        endpoints: endpoints.filter(|it| !it.addresses.is_empty()).collect(),
        service,
        ports,
        key,
    })
}

/// What a pod that is not ready says.
pub(super) fn readiness(key: &ObjectKey, root: &Fields) -> Option<ServiceObject> {
    let status = root.get("status")?;
    let ready = entries(status, "conditions").find(|it| text(it, "type") == Some("Ready"))?;
    (text(ready, "status") != Some("True")).then(|| ServiceObject::Unready(key.clone()))
}

/// The zone that a node says it is in.
pub(super) fn zone(node: &str, root: &Fields) -> Option<ServiceObject> {
    let zone = text(root.get("metadata")?.get("labels")?, ZONE)?;
    Some(ServiceObject::Zone {
        node: node.to_owned(),
        zone: zone.to_owned(),
    })
}
