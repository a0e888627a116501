//! Protocols and ports of a rule (TIERS 99.7, 99.8).

use std::collections::BTreeSet;

use ringwall_policy::{PortMatch, Protocol};
use serde_json::Value;

use super::{
    super::{
        field::{Fields, fault, item, join, present, whole},
        policy::Findings,
    },
    Family,
};

/// Most entries of a list of ports.
const MOST: usize = 50;

/// A protocol as a rule names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Named {
    pub(super) number: u8,
    /// The version of IP that the name, unlike the number, implies.
    pub(super) family: Option<Family>,
}

impl Named {
    /// The protocol, if it has ports.
    pub(super) fn with_ports(self) -> Option<Protocol> {
        WITH_PORTS
            .into_iter()
            .find(|protocol| protocol.number() == self.number)
    }

    pub(super) fn is_icmp(self) -> bool {
        matches!(self.number, ICMP | ICMP_V6)
    }
}

const WITH_PORTS: [Protocol; 3] = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp];
const ICMP: u8 = 1;
const ICMP_V6: u8 = 58;
const UDP_LITE: u8 = 136;

/// `protocol` or `notProtocol`: a name, or a number from 1 to 255.
pub(super) fn protocol(fields: &Fields, at: &str, key: &str, own: &mut Findings) -> Option<Named> {
    let value = present(fields, key)?;
    let number = |number| Some(Named { number, family: None });
    let read = match value {
        Value::String(text) => match text.as_str() {
            "TCP" => number(Protocol::Tcp.number()),
            "UDP" => number(Protocol::Udp.number()),
            "SCTP" => number(Protocol::Sctp.number()),
            "UDPLite" => number(UDP_LITE),
            "ICMP" => Some(Named {
                number: ICMP,
                family: Some(Family::V4),
            }),
            "ICMPv6" => Some(Named {
                number: ICMP_V6,
                family: Some(Family::V6),
            }),
            digits => digits.parse().ok().filter(|it| *it != 0).and_then(number),
        },
        value => whole(value)
            .and_then(|it| u8::try_from(it).ok())
            .filter(|it| *it != 0)
            .and_then(number),
    };
    if read.is_none() {
        own.faults.push(fault(
            join(at, key),
            format!("{value} is not a protocol: write TCP, UDP, ICMP, ICMPv6, SCTP, UDPLite or a number from 1 to 255"),
        ));
    }
    read
}

/// A list of ports.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Ports {
    /// First and last.
    pub(super) ranges: Vec<(u16, u16)>,
    pub(super) names: BTreeSet<String>,
}

/// Reads `ports` or `notPorts`; None where there are none.
pub(super) fn ports(fields: &Fields, at: &str, key: &str, own: &mut Findings) -> Option<Ports> {
    let path = join(at, key);
    let entries = own.entries(fields, at, key, MOST, "ports")?;
    let mut ports = Ports::default();
    for (index, value) in entries.iter().enumerate() {
        let at = item(&path, index);
        let read = match value {
            Value::String(text) => written(text),
            Value::Number(_) => number(whole(value).and_then(|it| u16::try_from(it).ok())).map(Port::Range),
            _ => None,
        };
        match read {
            Some(Port::Range(range)) => ports.ranges.push(range),
            Some(Port::Name(name)) => drop(ports.names.insert(name)),
            None => own.faults.push(fault(
                at,
                format!("{value} is not a port: write a number from 1 to 65535, \"8000:9000\" or the name of a port"),
            )),
        }
    }
    Some(ports)
}

/// The numbers of source ports that `ports` and `notPorts` leave, first and last, in order and apart; None where neither is there.
/// They need a protocol that has ports, so every packet that they are asked about has one.
fn left_of(ports: Option<&Ports>, not: Option<&Ports>) -> Option<Vec<(u16, u16)>> {
    if ports.is_none() && not.is_none() {
        return None;
    }
    let mut left = ports.map_or(vec![(0, u16::MAX)], |ports| ports.ranges.clone());
    for (lo, hi) in not.into_iter().flat_map(|not| &not.ranges) {
        let cut = |(first, last): (u16, u16)| {
            let below = lo.checked_sub(1).map(|end| (first, last.min(end)));
            let above = hi.checked_add(1).map(|start| (first.max(start), last));
            [below, above]
                .into_iter()
                .flatten()
                .filter(|(first, last)| first <= last)
        };
        left = left.into_iter().flat_map(cut).collect();
    }
    left.sort_unstable();
    let mut apart: Vec<(u16, u16)> = Vec::new();
    for (lo, hi) in left {
        match apart.last_mut() {
            Some((_, last)) if u32::from(lo) <= u32::from(*last) + 1 => *last = hi.max(*last),
            _ => apart.push((lo, hi)),
        }
    }
    Some(apart)
}

enum Port {
    Range((u16, u16)),
    Name(String),
}

fn number(number: Option<u16>) -> Option<(u16, u16)> {
    number.filter(|it| *it != 0).map(|it| (it, it))
}

/// A port as text: digits, two numbers with `:` between them, or a name.
fn written(text: &str) -> Option<Port> {
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    if digits(text) {
        return number(text.parse().ok()).map(Port::Range);
    }
    if let Some((lo, hi)) = text.split_once(':') {
        let (lo, _) = number(lo.parse().ok().filter(|_| digits(lo)))?;
        let (hi, _) = number(hi.parse().ok().filter(|_| digits(hi)))?;
        return (lo <= hi).then_some(Port::Range((lo, hi)));
    }
    is_port_name(text).then(|| Port::Name(text.to_owned()))
}

/// Whether this may name a port (TIERS 99.7). Those of pods are narrower, so others match host endpoints alone.
pub(super) fn is_port_name(text: &str) -> bool {
    let of_name = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-');
    (1..=128).contains(&text.len()) && text.bytes().all(of_name)
}

/// Type of ICMP, and code where it is given.
pub(super) type Icmp = (u8, Option<u8>);

/// What a rule says of protocols and destination ports.
#[derive(Clone, Debug, Default)]
pub(super) struct Layer4 {
    pub(super) protocol: Option<Named>,
    pub(super) not_protocol: Option<Named>,
    /// Both need the protocol ICMP or ICMPv6.
    pub(super) icmp: Option<Icmp>,
    pub(super) not_icmp: Option<Icmp>,
    pub(super) ports: Option<Ports>,
    pub(super) not_ports: Option<Ports>,
}

/// Protocols and ports: one of these, or all where there is None, and none of those.
pub(super) type Matched = (Option<Vec<PortMatch>>, Vec<PortMatch>);

impl Layer4 {
    /// Ports of each protocol that it is for.
    fn entries(&self, ports: &Ports) -> Vec<PortMatch> {
        let excluded = self.not_protocol.map(|not| not.number);
        // Numbers need a protocol, names do not.
        let protocols: Vec<Protocol> = match self.protocol {
            Some(protocol) => protocol.with_ports().into_iter().collect(),
            None => WITH_PORTS.to_vec(),
        };
        let mut entries = Vec::new();
        for protocol in protocols.into_iter().filter(|it| excluded != Some(it.number())) {
            let range = |&(lo, hi)| PortMatch::Range { protocol, lo, hi };
            entries.extend(ports.ranges.iter().map(range));
            entries.extend(ports.names.iter().map(|name| PortMatch::Named {
                protocol,
                name: name.clone(),
            }));
        }
        entries
    }

    /// The source ports that `ports` and `notPorts` of the source leave.
    pub(super) fn sources(&self, ports: Option<&Ports>, not: Option<&Ports>) -> Matched {
        let by_name = [ports, not].into_iter().flatten().any(|it| !it.names.is_empty());
        if by_name {
            let not = not.map(|not| self.entries(not)).unwrap_or_default();
            return (ports.map(|ports| self.entries(ports)), not);
        }
        let numbers = |ranges| Ports {
            ranges,
            names: BTreeSet::new(),
        };
        let left = left_of(ports, not);
        (left.map(|ranges| self.entries(&numbers(ranges))), Vec::new())
    }

    /// What it matches. Which protocols may have ports has been seen to.
    pub(super) fn matches(&self) -> Matched {
        let excluded = self.not_protocol.map(|not| not.number);
        if let Some(protocol) = self.protocol
            && excluded == Some(protocol.number)
        {
            return (Some(Vec::new()), Vec::new());
        }
        let entries = |ports: &Ports| self.entries(ports);
        let of_type = |icmp: Option<Icmp>| {
            let (protocol, (kind, code)) = (self.protocol?.number, icmp?);
            Some(PortMatch::Icmp { protocol, kind, code })
        };
        let mut not = self.not_ports.as_ref().map(entries).unwrap_or_default();
        not.extend(of_type(self.not_icmp));
        let some = match (&self.ports, self.protocol) {
            (Some(ports), _) => Some(entries(ports)),
            (None, Some(protocol)) => {
                let whole = || whole_protocol(protocol.number);
                Some(vec![of_type(self.icmp).unwrap_or_else(whole)])
            }
            (None, None) => {
                not.extend(excluded.map(whole_protocol));
                None
            }
        };
        (some, not)
    }
}

fn whole_protocol(number: u8) -> PortMatch {
    match WITH_PORTS
        .into_iter()
        .find(|protocol| protocol.number() == number)
    {
        Some(protocol) => PortMatch::All(protocol),
        None => PortMatch::IpProtocol(number),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn source_ports_are_those_that_are_left() {
        let ports = |ranges: &[(u16, u16)]| Ports {
            ranges: ranges.to_vec(),
            names: BTreeSet::new(),
        };
        assert_eq!(left_of(None, None), None);
        let some = ports(&[(90, 99), (1, 10), (11, 20), (15, 30)]);
        assert_eq!(left_of(Some(&some), None), Some(vec![(1, 30), (90, 99)]));
        let not = ports(&[(1, 1), (65535, 65535), (80, 90)]);
        assert_eq!(
            left_of(None, Some(&not)),
            Some(vec![(0, 0), (2, 79), (91, 65534)])
        );
        assert_eq!(left_of(Some(&some), Some(&not)), Some(vec![(2, 30), (91, 99)]));
        let all = ports(&[(1, 30), (90, 99)]);
        assert_eq!(left_of(Some(&some), Some(&all)), Some(Vec::new()));
    }

    #[test]
    fn ports_are_numbers_ranges_and_names() {
        let range = |text| match written(text) {
            Some(Port::Range(range)) => Some(range),
            _ => None,
        };
        assert_eq!(range("80"), Some((80, 80)));
        assert_eq!(range("080"), Some((80, 80)));
        assert_eq!(range("1:65535"), Some((1, 65535)));
        assert_eq!(range("90:90"), Some((90, 90)));
        for wrong in [
            "0", "65536", "0:1", "2:1", "1:65536", "1:", ":1", "1:2:3", "", "+1:2", "a:b", "ä",
        ] {
            assert!(written(wrong).is_none(), "{wrong}");
        }
        for name in ["http", "a_b.c-D", "-1", "80-90"] {
            assert!(
                matches!(written(name), Some(Port::Name(it)) if it == name),
                "{name}"
            );
        }
        assert!(written(&"a".repeat(129)).is_none());
    }
}
