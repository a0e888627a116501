//! The ports of a rule, as either generation of kinds writes them.

use ringwall_policy::{PortMatch, Protocol};

use super::{
    super::{
        field::{Fields, bad_port_name, fault, join, mapping, only_hinting, present, string},
        policy::{Findings, bad_port_number, port_number},
    },
    given,
    rules::List,
};

/// The one field of an entry; None, with a fault, where there is not just one.
fn one_of<'a>(fields: &Fields, at: &str, known: &[&'a str], own: &mut Findings) -> Option<&'a str> {
    let before = own.faults.len();
    only_hinting(fields, at, known, &mut own.faults, |key| match key {
        "port" if known.contains(&"number") => Some("write number"),
        "port" | "protocol" if known.contains(&"portNumber") => {
            Some("write portNumber: {protocol: TCP, port: 80}")
        }
        "endPort" => Some("write a range of ports"),
        "namedPort" => Some("write destinationNamedPort"),
        "number" | "range" if known.contains(&"destinationPort") => {
            Some("it belongs in destinationPort, one level deeper")
        }
        _ => None,
    });
    match given(fields, known).as_slice() {
        _ if own.faults.len() > before => None,
        [one] => Some(*one),
        several => {
            let message = match several {
                [] => format!("is empty: write one of {}", known.join(", ")),
                several => format!("has {}: write one of them", several.join(" and ")),
            };
            own.faults.push(fault(at, message));
            None
        }
    }
}

/// An entry of `protocols`.
pub(super) fn protocol_entry(fields: &Fields, at: &str, ports: &mut List<PortMatch>, own: &mut Findings) {
    const KNOWN: &[&str] = &["tcp", "udp", "sctp", "destinationNamedPort"];
    let Some(key) = one_of(fields, at, KNOWN, own) else {
        return;
    };
    let protocol = match key {
        "tcp" => Protocol::Tcp,
        "udp" => Protocol::Udp,
        "sctp" => Protocol::Sctp,
        _ => return named(fields, at, key, ports, own),
    };
    let path = join(at, key);
    let fields = match mapping(fields, at, key) {
        Ok(fields) if fields.is_empty() => {
            let message =
                "is empty: write destinationPort: {range: {start: 1, end: 65535}} if every port is meant";
            return own.faults.push(fault(path, message));
        }
        Ok(fields) => fields,
        Err(wrong) => return own.faults.push(wrong),
    };
    if one_of(fields, &path, &["destinationPort"], own).is_none() {
        return;
    }
    let at = path;
    let path = join(&at, "destinationPort");
    let port = match mapping(fields, &at, "destinationPort") {
        Ok(port) => port,
        Err(wrong) => return own.faults.push(wrong),
    };
    let range = match one_of(port, &path, &["number", "range"], own) {
        Some("number") => number(port, &path, "number", own).map(|number| (number, number)),
        Some(range) => match mapping(port, &path, range) {
            Ok(fields) => {
                let path = join(&path, range);
                only_hinting(fields, &path, &["start", "end"], &mut own.faults, |_| None);
                start_and_end(fields, &path, own)
            }
            Err(wrong) => return own.faults.push(wrong),
        },
        None => None,
    };
    ports
        .entries
        .extend(range.map(|(lo, hi)| PortMatch::Range { protocol, lo, hi }));
}

/// An entry of `ports`.
pub(super) fn port_entry(fields: &Fields, at: &str, ports: &mut List<PortMatch>, own: &mut Findings) {
    let Some(key) = one_of(fields, at, &["portNumber", "portRange", "namedPort"], own) else {
        return;
    };
    if key == "namedPort" {
        return named(fields, at, key, ports, own);
    }
    let path = join(at, key);
    let fields = match mapping(fields, at, key) {
        Ok(fields) => fields,
        Err(wrong) => return own.faults.push(wrong),
    };
    let known: &[&str] = match key {
        "portNumber" => &["protocol", "port"],
        _ => &["protocol", "start", "end"],
    };
    only_hinting(fields, &path, known, &mut own.faults, |key| match key {
        "endPort" => Some("write portRange: {protocol: TCP, start: 80, end: 90}"),
        _ => None,
    });
    let protocol = match string(fields, &path, "protocol") {
        Ok(None | Some("TCP")) => Some(Protocol::Tcp),
        Ok(Some("UDP")) => Some(Protocol::Udp),
        Ok(Some("SCTP")) => Some(Protocol::Sctp),
        Ok(Some(other)) => {
            let write = match other.to_ascii_uppercase().as_str() {
                "TCP" => "TCP",
                "UDP" => "UDP",
                "SCTP" => "SCTP",
                _ => "TCP, UDP or SCTP",
            };
            let message = format!("{other:?} is not a protocol that has ports: write {write}");
            own.faults.push(fault(join(&path, "protocol"), message));
            None
        }
        Err(wrong) => {
            own.faults.push(wrong);
            None
        }
    };
    let range = match key {
        "portNumber" => number(fields, &path, "port", own).map(|number| (number, number)),
        _ => start_and_end(fields, &path, own),
    };
    if let (Some(protocol), Some((lo, hi))) = (protocol, range) {
        ports.entries.push(PortMatch::Range { protocol, lo, hi });
    }
}

fn number(fields: &Fields, at: &str, key: &str, own: &mut Findings) -> Option<u16> {
    let wrong = match present(fields, key) {
        None => "is missing: write a number from 1 to 65535".to_owned(),
        Some(value) => match port_number(value) {
            Some(number) => return Some(number),
            None => bad_port_number(value),
        },
    };
    own.faults.push(fault(join(at, key), wrong));
    None
}

fn start_and_end(fields: &Fields, at: &str, own: &mut Findings) -> Option<(u16, u16)> {
    // Both are read, so that the faults of both are told.
    let (start, end) = (number(fields, at, "start", own), number(fields, at, "end", own));
    let (start, end) = (start?, end?);
    if start < end {
        return Some((start, end));
    }
    let message = match start == end {
        true => format!("is no greater than the start: write the one port {start} as a number"),
        false => format!("{end} is below the start {start}: write them the other way round"),
    };
    own.faults.push(fault(join(at, "end"), message));
    None
}

/// A named port, of whichever protocol the destination's is (TIERS 74.2).
fn named(fields: &Fields, at: &str, key: &str, ports: &mut List<PortMatch>, own: &mut Findings) {
    let path = join(at, key);
    let name = match string(fields, at, key) {
        Ok(name) => name.unwrap_or_default(),
        Err(wrong) => return own.faults.push(wrong),
    };
    if name.is_empty() {
        return own
            .faults
            .push(fault(path, "is empty: write the name of a container's port"));
    }
    if let Some(wrong) = bad_port_name(name) {
        let message = format!("{wrong}, so that no pod has it and it matches nothing");
        own.notes.push(fault(&path, message));
    }
    ports.special.get_or_insert(path);
    for protocol in [Protocol::Tcp, Protocol::Udp, Protocol::Sctp] {
        ports.entries.push(PortMatch::Named {
            protocol,
            name: name.to_owned(),
        });
    }
}
