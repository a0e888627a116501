//! Nodes, Pods and workload templates: who an address is and what selectors see of it.

use std::net::IpAddr;

use ipnet::IpNet;
use ringwall_policy::{Fault, NamedPort, Node, ObjectKey, Pod, Protocol};
use serde_json::Value;

use super::{
    descend,
    field::{Fields, address, boolean, cidr, fault, join, mapping, present, string, whole, wrong_type},
    labels, mappings,
};

/// Annotations of a node that hold an address of it, bare or with a prefix length (SEMANTICS 47).
const NODE_ADDRESS_ANNOTATIONS: &[&str] = &[
    "projectcalico.org/IPv4Address",
    "projectcalico.org/IPv6Address",
    "projectcalico.org/IPv4IPIPTunnelAddr",
    "projectcalico.org/IPv4VXLANTunnelAddr",
    "projectcalico.org/IPv6VXLANTunnelAddr",
    "projectcalico.org/IPv4WireguardInterfaceAddr",
    "projectcalico.org/IPv6WireguardInterfaceAddr",
    "flannel.alpha.coreos.com/public-ip",
    "flannel.alpha.coreos.com/public-ipv6",
    "flannel.alpha.coreos.com/public-ip-overwrite",
    "flannel.alpha.coreos.com/public-ipv6-overwrite",
];

/// Prefix of the annotations that Flannel puts on its nodes.
const FLANNEL: &str = "flannel.alpha.coreos.com/";

pub(super) fn node(
    root: &Fields,
    at: &str,
    metadata: &Fields,
    name: &str,
    notes: &mut Vec<Fault>,
) -> Result<Node, Fault> {
    let (spec, spec_at) = descend(root, at, &["spec"])?;
    let mut pod_cidrs = Vec::new();
    let mut add_cidr = |value: &Value, path: String| -> Result<(), Fault> {
        let Value::String(text) = value else {
            return Err(fault(path, wrong_type(value, "a string")));
        };
        let (block, odd) = cidr(text).map_err(|wrong| fault(&path, wrong))?;
        notes.extend(odd.map(|odd| fault(&path, odd)));
        if !pod_cidrs.contains(&block) {
            pod_cidrs.push(block);
        }
        Ok(())
    };
    for (index, value) in super::list(spec, &spec_at, "podCIDRs")?.iter().enumerate() {
        add_cidr(value, super::item(&join(&spec_at, "podCIDRs"), index))?;
    }
    if let Some(value) = present(spec, "podCIDR").filter(|value| value.as_str() != Some("")) {
        add_cidr(value, join(&spec_at, "podCIDR"))?;
    }

    let (status, status_at) = descend(root, at, &["status"])?;
    let mut addresses: Vec<IpAddr> = Vec::new();
    for (entry, entry_at) in mappings(status, &status_at, "addresses")? {
        // Host names stand in the same list.
        if let Some((ip, _)) = string(entry, &entry_at, "address")?.and_then(address) {
            addresses.push(ip);
        }
    }
    let annotations = mapping(metadata, &join(at, "metadata"), "annotations")?;
    for annotation in NODE_ADDRESS_ANNOTATIONS {
        let Some(text) = annotations.get(*annotation).and_then(Value::as_str) else {
            continue;
        };
        let bare = text.split('/').next().unwrap_or_default();
        match address(bare) {
            Some((ip, _)) => addresses.push(ip),
            None if text.is_empty() => {}
            None => notes.push(fault(
                join(&join(&join(at, "metadata"), "annotations"), annotation),
                format!("{text:?} is not an address: not counted as the node's"),
            )),
        }
    }
    if annotations.keys().any(|key| key.starts_with(FLANNEL)) {
        addresses.extend(pod_cidrs.iter().flat_map(flannel_addresses));
    }
    let mut seen = Vec::with_capacity(addresses.len());
    addresses.retain(|ip| {
        let new = !seen.contains(ip);
        seen.push(*ip);
        new
    });
    Ok(Node {
        name: name.to_owned(),
        addresses,
        pod_cidrs,
    })
}

/// The tunnel device has the network's first address, the bridge the one after it.
fn flannel_addresses(block: &IpNet) -> Vec<IpAddr> {
    let first = block.network();
    let next = match first {
        IpAddr::V4(ip) => u32::from(ip).checked_add(1).map(|n| IpAddr::V4(n.into())),
        IpAddr::V6(ip) => u128::from(ip).checked_add(1).map(|n| IpAddr::V6(n.into())),
    };
    std::iter::once(first)
        .chain(next.filter(|ip| block.contains(ip)))
        .collect()
}

pub(super) fn pod(
    root: &Fields,
    at: &str,
    metadata: &Fields,
    key: ObjectKey,
    uid: String,
    notes: &mut Vec<Fault>,
) -> Result<Pod, Fault> {
    let (spec, spec_at) = descend(root, at, &["spec"])?;
    let (status, status_at) = descend(root, at, &["status"])?;
    let mut addresses = Vec::new();
    let mut add = |text: &str, path: String| -> Result<(), Fault> {
        let Some((ip, odd)) = address(text) else {
            return Err(fault(path, format!("{text:?} is not an address")));
        };
        if odd {
            notes.push(fault(path, format!("{text:?} is read as {ip}: write that")));
        }
        if !addresses.contains(&ip) {
            addresses.push(ip);
        }
        Ok(())
    };
    for (entry, entry_at) in mappings(status, &status_at, "podIPs")? {
        if let Some(text) = string(entry, &entry_at, "ip")?.filter(|text| !text.is_empty()) {
            add(text, join(&entry_at, "ip"))?;
        }
    }
    if let Some(text) = string(status, &status_at, "podIP")?.filter(|text| !text.is_empty()) {
        add(text, join(&status_at, "podIP"))?;
    }
    let phase = string(status, &status_at, "phase")?;
    let metadata_at = join(at, "metadata");
    let created = time(metadata, &metadata_at, "creationTimestamp")?;
    Ok(Pod {
        key,
        uid,
        created,
        labels: labels(metadata, &metadata_at)?,
        service_account: service_account(spec),
        addresses,
        node: string(spec, &spec_at, "nodeName")?
            .filter(|name| !name.is_empty())
            .map(str::to_owned),
        host_network: boolean(spec, &spec_at, "hostNetwork")?,
        finished: matches!(phase, Some("Succeeded" | "Failed")),
        terminating: present(metadata, "deletionTimestamp").is_some(),
        named_ports: named_ports(spec, &spec_at)?,
        template_of: None,
    })
}

pub(super) fn template(
    root: &Fields,
    at: &str,
    path: &[&str],
    kind: &str,
    key: ObjectKey,
) -> Result<Pod, Fault> {
    let (template, template_at) = descend(root, at, path)?;
    let (metadata, metadata_at) = descend(template, &template_at, &["metadata"])?;
    let (spec, spec_at) = descend(template, &template_at, &["spec"])?;
    Ok(Pod {
        key,
        uid: String::new(),
        created: None,
        labels: labels(metadata, &metadata_at)?,
        service_account: service_account(spec),
        addresses: Vec::new(),
        node: None,
        host_network: boolean(spec, &spec_at, "hostNetwork")?,
        finished: false,
        terminating: false,
        named_ports: named_ports(spec, &spec_at)?,
        template_of: Some(kind.to_owned()),
    })
}

/// The name of the service account that a pod runs as. What cannot be read of it is a matter for an API server: it changes
/// what policies say only where they speak of accounts.
fn service_account(spec: &Fields) -> String {
    let named = ["serviceAccountName", "serviceAccount"].into_iter();
    let name = named
        .filter_map(|key| spec.get(key)?.as_str())
        .find(|name| !name.is_empty());
    name.unwrap_or("default").to_owned()
}

/// The named ports in the order that decides (SEMANTICS 33): containers, then init containers that keep running.
fn named_ports(spec: &Fields, at: &str) -> Result<Vec<NamedPort>, Fault> {
    let mut out: Vec<NamedPort> = Vec::new();
    for key in ["containers", "initContainers"] {
        for (container, container_at) in mappings(spec, at, key)? {
            if key == "initContainers" && string(container, &container_at, "restartPolicy")? != Some("Always")
            {
                continue;
            }
            for (port, port_at) in mappings(container, &container_at, "ports")? {
                let Some(name) = string(port, &port_at, "name")?.filter(|name| !name.is_empty()) else {
                    continue;
                };
                let protocol = match string(port, &port_at, "protocol")? {
                    None | Some("TCP") => Protocol::Tcp,
                    Some("UDP") => Protocol::Udp,
                    Some("SCTP") => Protocol::Sctp,
                    Some(other) => {
                        return Err(fault(
                            join(&port_at, "protocol"),
                            format!("{other:?} is not supported here: write TCP, UDP or SCTP"),
                        ));
                    }
                };
                let number_at = join(&port_at, "containerPort");
                let Some(value) = present(port, "containerPort") else {
                    return Err(fault(number_at, "is missing: a named port needs a number"));
                };
                let number = whole(value)
                    .and_then(|n| u16::try_from(n).ok())
                    .filter(|n| *n != 0);
                let Some(number) = number else {
                    return Err(fault(
                        number_at,
                        format!("{value} is not a port: write a number from 1 to 65535"),
                    ));
                };
                let taken = out
                    .iter()
                    .any(|other| other.name == name && other.protocol == protocol);
                if !taken {
                    out.push(NamedPort {
                        name: name.to_owned(),
                        protocol,
                        number,
                    });
                }
            }
        }
    }
    Ok(out)
}

/// A time in seconds since 1970; None where absent.
pub(super) fn time(fields: &Fields, at: &str, key: &str) -> Result<Option<i64>, Fault> {
    let Some(text) = string(fields, at, key)? else {
        return Ok(None);
    };
    match seconds_since_1970(text) {
        Some(seconds) => Ok(Some(seconds)),
        None => Err(fault(
            join(at, key),
            format!("{text:?} is not a time: write it like 2025-01-31T12:00:00Z"),
        )),
    }
}

/// Seconds since 1970 of an RFC 3339 time, fractions cut off.
pub(crate) fn seconds_since_1970(text: &str) -> Option<i64> {
    let (date, time) = text.split_once(['T', 't', ' '])?;
    let mut date = date.split('-').map(|part| part.parse::<i64>().ok());
    let (year, month, day) = (date.next()??, date.next()??, date.next()??);
    let zone = time.find(['Z', 'z', '+', '-'])?;
    let (clock, zone) = time.split_at(zone);
    let clock = clock.split('.').next()?;
    let mut clock = clock.split(':').map(|part| part.parse::<i64>().ok());
    let (hour, minute, second) = (clock.next()??, clock.next()??, clock.next()??);
    let in_range = (1..=12).contains(&month)
        && (1..=31).contains(&day)
        && (0..24).contains(&hour)
        && (0..60).contains(&minute)
        && (0..=60).contains(&second);
    if !in_range {
        return None;
    }
    let offset = match zone {
        "Z" | "z" => 0,
        signed => {
            let (hours, minutes) = signed.get(1..)?.split_once(':')?;
            let east = hours.parse::<i64>().ok()? * 3600 + minutes.parse::<i64>().ok()? * 60;
            if signed.starts_with('-') { -east } else { east }
        }
    };
    // Days since 1970 in the proleptic Gregorian calendar, years counted from March so that the leap day comes last.
    let (year, month) = if month <= 2 {
        (year - 1, month + 9)
    } else {
        (year, month - 3)
    };
    let era = year.div_euclid(400);
    let of_era = year.rem_euclid(400);
    let day_of_year = (153 * month + 2) / 5 + day - 1;
    let days = era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + day_of_year - 719_468;
    Some(days * 86_400 + hour * 3600 + minute * 60 + second - offset)
}

#[cfg(test)]
mod tests {
    use super::seconds_since_1970;

    #[test]
    fn times_are_read_to_the_second() {
        assert_eq!(seconds_since_1970("1970-01-01T00:00:00Z"), Some(0));
        assert_eq!(seconds_since_1970("2024-02-29T23:59:59Z"), Some(1_709_251_199));
        assert_eq!(
            seconds_since_1970("2024-03-01T01:00:00.123+01:00"),
            Some(1_709_251_200)
        );
        assert_eq!(seconds_since_1970("2000-03-01T00:00:00Z"), Some(951_868_800));
        assert_eq!(seconds_since_1970("2024-13-01T00:00:00Z"), None);
        assert_eq!(seconds_since_1970("yesterday"), None);
    }
}
