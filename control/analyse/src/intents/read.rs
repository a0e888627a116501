//! From text to assertions.

use std::collections::BTreeSet;

use ipnet::IpNet;
use ringwall_dataplane::classify::icmp;
use ringwall_policy::{ObjectKey, Operator, Requirement, Selector};
use ringwall_source::document::SyntaxError;
use serde_saphyr::Spanned;

use super::{Assertion, Claim, EndSelector, Intents, Ports, raw};
use crate::refine::{Service, Span};

/// What is wrong with a file of intents.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{file}: {message}")]
pub struct IntentError {
    /// `FILE` or `FILE:LINE`.
    file: String,
    message: String,
}

/// What is wrong, and where in an assertion.
struct Wrong {
    path: String,
    message: String,
}

fn wrong<T>(path: &str, message: impl Into<String>) -> Result<T, Wrong> {
    Err(Wrong {
        path: path.to_owned(),
        message: message.into(),
    })
}

impl Intents {
    /// Reads a file; `name` is for messages.
    ///
    /// # Errors
    /// The first thing that is wrong, with its line.
    pub fn parse(name: &str, text: &str) -> Result<Self, IntentError> {
        let raw: raw::Intents = serde_saphyr::from_str(text).map_err(|error| {
            let SyntaxError { line, message, .. } = SyntaxError::from(&error);
            let line = line.map_or_else(String::new, |line| format!(":{line}"));
            IntentError {
                file: format!("{name}{line}"),
                message,
            }
        })?;
        let mut names = BTreeSet::new();
        let mut assertions = Vec::new();
        for (index, assertion) in raw.assertions.iter().enumerate() {
            let line = assertion.referenced.line();
            let read = Assertion::read(assertion).and_then(|assertion| {
                if !names.insert(assertion.name.clone()) {
                    return wrong(
                        ".name",
                        format!("{:?} is the name of two assertions", assertion.name),
                    );
                }
                Ok(assertion)
            });
            assertions.push(read.map_err(|Wrong { path, message }| IntentError {
                file: format!("{name}:{line}"),
                message: format!("assertions[{index}]{path}: {message}"),
            })?);
        }
        if assertions.is_empty() {
            return Err(IntentError {
                file: name.to_owned(),
                message: "there are no assertions: write some, or do not pass the file".to_owned(),
            });
        }
        Ok(Self { assertions })
    }

    /// Every network that an assertion names: no range of a refinement may cross their borders.
    pub fn networks(&self) -> Vec<IpNet> {
        let places = self.assertions.iter().flat_map(|assertion| {
            let behind = assertion.behind_services.iter().flat_map(|it| &it.ends);
            assertion.from.iter().chain(&assertion.to).chain(behind)
        });
        let blocks = places.filter_map(|place| match place {
            EndSelector::Block { cidr, except } => Some(std::iter::once(*cidr).chain(except.iter().copied())),
            _ => None,
        });
        blocks.flatten().collect()
    }
}

impl Assertion {
    fn read(raw: &Spanned<raw::Assertion>) -> Result<Self, Wrong> {
        let line = raw.referenced.line();
        let raw = &raw.value;
        if raw.name.trim().is_empty() {
            return wrong(".name", "is empty: say what is asserted");
        }
        let (path, claim, from, to, ports) = match (&raw.allow, &raw.deny, &raw.only) {
            (Some(flows), None, None) => (".allow", Claim::Allow, &flows.from, &flows.to, &flows.ports),
            (None, Some(flows), None) => (".deny", Claim::Deny, &flows.from, &flows.to, &flows.ports),
            (None, None, Some(only)) => {
                let other_ports = only.other_ports == raw::OtherPorts::Deny;
                let claim = match only.direction {
                    raw::Direction::Ingress => Claim::OnlySources { other_ports },
                    raw::Direction::Egress => Claim::OnlyDestinations { other_ports },
                };
                if other_ports && only.ports.is_none() {
                    return wrong(".only.otherPorts", "there are no other ports: `ports` is missing");
                }
                (".only", claim, &only.from, &only.to, &only.ports)
            }
            _ => return wrong("", "must have exactly one of allow, deny and only"),
        };
        let read = Self {
            name: raw.name.clone(),
            line,
            from: places(&format!("{path}.from"), from)?,
            to: places(&format!("{path}.to"), to)?,
            ports: self::ports(&format!("{path}.ports"), ports.as_deref())?,
            claim,
            may_be_empty: raw.may_be_empty,
            behind_services: Vec::new(),
        };
        let service = |places: &[EndSelector]| {
            let service = |place: &EndSelector| matches!(place, EndSelector::Service(_));
            places.iter().position(service)
        };
        if let Some(index) = service(&read.from) {
            let message = "a Service sends nothing: name the pods behind it";
            return wrong(&format!("{path}.from[{index}].service"), message);
        }
        if let (Some(index), Claim::OnlyDestinations { .. }) = (service(&read.to), claim) {
            let message = "with direction: egress, name the pods behind the Service and their ports";
            return wrong(&format!("{path}.to[{index}].service"), message);
        }
        Ok(read)
    }
}

fn places(path: &str, raw: &[raw::Ends]) -> Result<Vec<EndSelector>, Wrong> {
    if raw.is_empty() {
        return wrong(path, "is empty: it means no pods; name some or remove it");
    }
    raw.iter()
        .enumerate()
        .map(|(index, ends)| place(&format!("{path}[{index}]"), ends))
        .collect()
}

fn place(path: &str, raw: &raw::Ends) -> Result<EndSelector, Wrong> {
    let by_label = raw.namespace.is_some() || raw.namespace_selector.is_some() || raw.pod_selector.is_some();
    let mut kinds: Vec<(&str, bool)> = Vec::new();
    for (key, value) in [("any", raw.any), ("outside", raw.outside), ("nodes", raw.nodes)] {
        match value {
            Some(false) => return wrong(&format!("{path}.{key}"), "can only be true: leave it out"),
            value => kinds.push((key, value.is_some())),
        }
    }
    kinds.push(("pod", raw.pod.is_some()));
    kinds.push(("service", raw.service.is_some()));
    kinds.push(("cidr", raw.cidr.is_some()));
    kinds.push(("namespace, namespaceSelector, podSelector", by_label));
    let there: Vec<&str> = kinds
        .iter()
        .filter(|(_, there)| *there)
        .map(|(key, _)| *key)
        .collect();
    let [kind] = there.as_slice() else {
        return wrong(
            path,
            "must have exactly one of any, outside, nodes, pod, service, cidr, or pods by namespace, namespaceSelector and \
             podSelector",
        );
    };
    if !raw.except.is_empty() && raw.cidr.is_none() {
        return wrong(&format!("{path}.except"), "belongs to a cidr");
    }
    match *kind {
        "any" => return Ok(EndSelector::Any),
        "outside" => return Ok(EndSelector::Outside),
        "nodes" => return Ok(EndSelector::Nodes),
        _ => {}
    }
    let key = |key: &str, text: &str| match text.split_once('/') {
        Some((namespace, name)) if !namespace.is_empty() && !name.is_empty() => Ok(ObjectKey {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
        }),
        _ => wrong(
            &format!("{path}.{key}"),
            format!("{text:?} is not namespace/name"),
        ),
    };
    if let Some(pod) = &raw.pod {
        return key("pod", pod).map(EndSelector::Pod);
    }
    if let Some(service) = &raw.service {
        return key("service", service).map(EndSelector::Service);
    }
    if let Some(cidr) = &raw.cidr {
        let cidr = network(&format!("{path}.cidr"), cidr)?;
        let mut except = Vec::new();
        for (index, hole) in raw.except.iter().enumerate() {
            let path = format!("{path}.except[{index}]");
            let hole = network(&path, hole)?;
            if !cidr.contains(&hole) || cidr == hole {
                return wrong(&path, format!("{hole} is not strictly inside {cidr}"));
            }
            except.push(hole);
        }
        return Ok(EndSelector::Block { cidr, except });
    }
    if raw.namespace.is_some() && raw.namespace_selector.is_some() {
        return wrong(path, "namespace and namespaceSelector exclude each other");
    }
    let select = |key: &str, raw: &Option<raw::Selector>| match raw {
        Some(raw) => selector(&format!("{path}.{key}"), raw).map(Some),
        None => Ok(None),
    };
    Ok(EndSelector::Pods {
        namespace: raw.namespace.clone(),
        namespaces: select("namespaceSelector", &raw.namespace_selector)?,
        pods: select("podSelector", &raw.pod_selector)?.unwrap_or_default(),
    })
}

fn network(path: &str, text: &str) -> Result<IpNet, Wrong> {
    let address = || text.parse::<std::net::IpAddr>().map(IpNet::from).ok();
    let parsed = text.parse::<IpNet>().ok().or_else(address);
    match parsed {
        Some(net) if net.trunc() == net => Ok(net),
        Some(net) => wrong(path, format!("{text:?} has host bits: write {}", net.trunc())),
        None => wrong(path, format!("{text:?} is neither a network nor an address")),
    }
}

fn selector(path: &str, raw: &raw::Selector) -> Result<Selector, Wrong> {
    let mut requirements: Vec<Requirement> = raw
        .match_labels
        .iter()
        .map(|(key, value)| Requirement {
            key: key.clone(),
            operator: Operator::In(BTreeSet::from([value.clone()])),
        })
        .collect();
    for (index, expression) in raw.match_expressions.iter().enumerate() {
        let path = format!("{path}.matchExpressions[{index}]");
        let values: BTreeSet<String> = expression.values.iter().cloned().collect();
        let operator = match (expression.operator, values.is_empty()) {
            (raw::Operator::In, false) => Operator::In(values),
            (raw::Operator::NotIn, false) => Operator::NotIn(values),
            (raw::Operator::Exists, true) => Operator::Exists,
            (raw::Operator::DoesNotExist, true) => Operator::DoesNotExist,
            (raw::Operator::In | raw::Operator::NotIn, true) => {
                return wrong(&path, "In and NotIn need values");
            }
            (raw::Operator::Exists | raw::Operator::DoesNotExist, false) => {
                return wrong(&path, "Exists and DoesNotExist have no values");
            }
        };
        requirements.push(Requirement {
            key: expression.key.clone(),
            operator,
        });
    }
    Ok(Selector { requirements })
}

fn ports(path: &str, raw: Option<&[String]>) -> Result<Ports, Wrong> {
    let Some(raw) = raw else { return Ok(Ports::all()) };
    if raw.is_empty() {
        return wrong(path, "is empty: leave it out to mean everything");
    }
    let mut ports = Ports::default();
    for (index, text) in raw.iter().enumerate() {
        match port(text) {
            Some((service, span)) => ports.add(service, span),
            None => {
                return wrong(
                    &format!("{path}[{index}]"),
                    format!(
                        "{text:?} is not known: write such as 5432/TCP, 8000-8100/UDP, 8/ICMP, SCTP or other"
                    ),
                );
            }
        }
    }
    Ok(ports)
}

fn port(text: &str) -> Option<(Service, Span)> {
    let service = |name: &str| Service::ALL.into_iter().find(|service| service.name() == name);
    let Some((ports, protocol)) = text.split_once('/') else {
        return Some((service(text)?, (0, u16::MAX)));
    };
    let service = service(protocol).filter(|service| *service != Service::Other)?;
    if service.has_types() {
        let (kind, code) = match ports.split_once(':') {
            Some((kind, code)) => (kind, Some(code.parse().ok()?)),
            None => (ports, None),
        };
        let kind = kind.parse().ok()?;
        let span = (icmp(kind, code.unwrap_or(0)), icmp(kind, code.unwrap_or(u8::MAX)));
        return Some((service, span));
    }
    let number = |text: &str| {
        text.parse::<u16>()
            .ok()
            .filter(|_| text.bytes().all(|byte| byte.is_ascii_digit()))
    };
    let (lo, hi) = match ports.split_once('-') {
        Some((lo, hi)) => (number(lo)?, number(hi)?),
        None => (number(ports)?, number(ports)?),
    };
    (lo <= hi).then_some((service, (lo, hi)))
}
