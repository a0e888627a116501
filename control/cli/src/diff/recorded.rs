//! Which of recorded flows change.

use std::{
    collections::HashMap,
    io::{self, Write},
    net::IpAddr,
    path::Path,
};

use ringwall_analyse::{
    flow,
    flow::{EndName, Flow, Service, protocol_name, protocol_number},
    refine::{Difference, Family, FlowChange, Span, source_words, verdicts},
    services::Joint,
};
use ringwall_dataplane::{addr::Addr, classify::IdentityKind};
use ringwall_policy::ObjectKey;
use serde_json::{Value, json};

use super::{Outcome, Side, incomplete, services::BothSides, table::Style};
use crate::Output;

/// Flows of one source, destination, protocol and port.
#[derive(Clone, Copy, Debug, Default)]
struct Times {
    flows: u64,
    packets: u64,
    bytes: u64,
}

/// What a capture holds besides flows.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Counts {
    /// All packets.
    pub(super) packets: u64,
    /// Not captured as far as their ports.
    pub(super) truncated: u64,
    /// Malformed, or of a link type that cannot be read.
    pub(super) unparsable: u64,
    /// Not subject to policy: ARP, neighbour discovery, multicast and their like.
    pub(super) not_subject: u64,
    /// They get the verdict of their first fragment.
    pub(super) later_fragments: u64,
    /// They get the verdict of the flow that they are about.
    pub(super) icmp_errors: u64,
    /// The file ends within a packet.
    pub(super) cut_short: bool,
}

/// Source, destination, protocol and port, and the name of a Service's port.
type RecordedFlow = (EndName, EndName, Service, Option<String>);

/// Recorded flows, those that no policy tells apart as one.
pub(super) struct Recorded {
    /// Source ports, cut where rules tell them apart.
    sources: Vec<Span>,
    /// A source port is the first of its span, and missing where rules tell none apart.
    flows: HashMap<RecordedFlow, Times>,
    /// Flows that could not be read.
    errors: Vec<String>,
    captured: Option<Counts>,
}

impl Recorded {
    /// Without flows; `counts` is of a capture.
    pub(super) fn new(sources: Vec<Span>, captured: Option<Counts>) -> Self {
        Self {
            sources,
            flows: HashMap::new(),
            errors: Vec::new(),
            captured,
        }
    }

    pub(super) fn add(&mut self, flow: RecordedFlow, packets: u64, bytes: u64) {
        let (src, dst, service, port_name) = flow;
        let source = match self.sources.len() {
            1 => None,
            _ => service.source_port.and_then(|port| span_of(&self.sources, port)),
        };
        let service = Service {
            source_port: source.map(|(first, _)| first),
            ..service
        };
        let times = self.flows.entry((src, dst, service, port_name)).or_default();
        times.flows += 1;
        times.packets += packets;
        times.bytes += bytes;
    }
}

/// The span that holds a port.
fn span_of(spans: &[Span], port: u16) -> Option<Span> {
    spans.iter().copied().find(|(lo, hi)| (*lo..=*hi).contains(&port))
}

/// Reads flows in the form of `query`.
///
/// # Errors
/// The file cannot be read.
pub(super) fn read_flows(path: &Path, sources: Vec<Span>) -> anyhow::Result<Recorded> {
    let mut recorded = Recorded::new(sources, None);
    let take = |text: &str, _| {
        match Flow::read(text) {
            Ok(flow) => recorded.add((flow.src, flow.dst, flow.service, flow.port_name), 0, 0),
            Err(error) => recorded.errors.push(error),
        }
        Ok(())
    };
    flow::each(path, take)?;
    Ok(recorded)
}

/// What became of one flow.
pub(super) enum Fate {
    Changes(FlowChange),
    /// Of a flow to a Service: what the verdicts of its endpoints come to, before and after.
    ServiceChanges([Joint; 2]),
    Stays,
    /// An end is only on one side, or what decides is not recorded.
    Unmatched(String),
}

/// One flow and what became of it.
struct FlowFate {
    src: EndName,
    dst: EndName,
    service: Service,
    port_name: Option<String>,
    times: Times,
    fate: Fate,
}

/// Writes those flows that change or cannot be compared, the most frequent first, and the summary.
pub(super) fn tell(
    found: &Difference<'_>,
    sides: &[Side; 2],
    recorded: Recorded,
    output: Output,
    style: Style,
    out: &mut impl Write,
) -> anyhow::Result<Outcome> {
    let mut errors = recorded.errors;
    let mut fates: Vec<FlowFate> = Vec::new();
    let mut flows = 0;
    let distinct = recorded.flows.len();
    let sources = recorded.sources;
    let services = BothSides::of(sides)?;
    for ((src, dst, service, port_name), times) in recorded.flows {
        flows += times.flows;
        let of_service = services
            .as_ref()
            .and_then(|services| services.fate((&src, &dst), service, port_name.as_deref()));
        match of_service.unwrap_or_else(|| fate(found, &sources, (&src, &dst), service)) {
            Ok(fate) => fates.push(FlowFate {
                src,
                dst,
                service,
                port_name,
                times,
                fate,
            }),
            Err(error) => errors.push(error),
        }
    }
    errors.sort_unstable();
    fates.sort_by(|a, b| {
        let key = |flow: &FlowFate| {
            let (src, dst) = (flow.src.to_string(), flow.dst.to_string());
            (src, dst, flow.service, flow.port_name.clone())
        };
        b.times
            .flows
            .cmp(&a.times.flows)
            .then_with(|| key(a).cmp(&key(b)))
    });
    let incomplete = incomplete(found);
    for error in &errors {
        match output {
            Output::Json => writeln!(out, "{}", json!({ "error": error }))?,
            Output::Human => writeln!(out, "error  {error}")?,
        }
    }
    let captured = recorded.captured;
    for flow in &fates {
        match output {
            Output::Json => flow
                .json(found, &sources, captured.is_some(), &incomplete)
                .map(|line| writeln!(out, "{line}")),
            Output::Human => flow
                .words(found, &sources, style)
                .map(|line| writeln!(out, "{line}")),
        }
        .transpose()?;
    }
    let summary = Summary::of(flows, distinct, &fates, errors.len());
    match output {
        Output::Json => writeln!(out, "{}", summary.json(captured.as_ref()))?,
        Output::Human => summary.words(captured.as_ref(), &incomplete, out)?,
    }
    Ok(Outcome {
        changes: summary.changed > 0,
        failed: !errors.is_empty(),
    })
}

/// What becomes of a flow.
///
/// # Errors
/// An end is unknown, or the ends have no family in common.
fn fate(
    found: &Difference<'_>,
    sources: &[Span],
    (src, dst): (&EndName, &EndName),
    service: Service,
) -> Result<Fate, String> {
    let (from, to) = match (resolve(found, src)?, resolve(found, dst)?) {
        (Ok(src), Ok(dst)) => (src, dst),
        (Err(only), _) | (_, Err(only)) => return Ok(Fate::Unmatched(only)),
    };
    // Of a flow whose source port is not known, from each that rules tell apart.
    let services: Vec<Service> = match service.lacks_source_port() {
        true => sources
            .iter()
            .map(|(first, _)| service.from_port(Some(*first)))
            .collect(),
        false => vec![service],
    };
    let families = Family::BOTH.into_iter().filter(|family| {
        let of = |end: &EndName| match end {
            EndName::Address(address) => Family::of(*address) == *family,
            EndName::Pod(_) | EndName::Service(_) => true,
        };
        of(src) && of(dst)
    });
    for family in families {
        let changes = services
            .iter()
            .map(|service| found.of_flow((from, to), family, service.l4()));
        let changes: Vec<Option<FlowChange>> = changes
            .collect::<Result<_, _>>()
            .map_err(|error| error.to_string())?;
        let alike = |change: &Option<FlowChange>| change.as_ref().map(|it| (it.allow, it.depends));
        if changes
            .windows(2)
            .any(|pair| matches!(pair, [a, b] if alike(a) != alike(b)))
        {
            return Ok(Fate::Unmatched(
                "rules ask for its source port: record src_port".to_owned(),
            ));
        }
        let Some(change) = changes.into_iter().flatten().next() else {
            continue;
        };
        let [a, b] = verdicts(change.allow, change.depends);
        return Ok(if a == b || found.ends.is_itself(from, to) {
            Fate::Stays
        } else {
            Fate::Changes(change)
        });
    }
    Err(format!(
        "{src} and {dst} have no address family in common on both sides"
    ))
}

/// The end that a name or address stands for before the change: an address that is a pod's is that pod, whatever address
/// it has after. The inner error names an end that is only on one side.
///
/// # Errors
/// Neither side knows the name.
fn resolve(found: &Difference<'_>, name: &EndName) -> Result<Result<u32, String>, String> {
    let key = match name {
        EndName::Pod(key) => key.clone(),
        EndName::Service(_) => return Err(format!("{name} is a Service, which sends nothing")),
        EndName::Address(address) => match owner(found, 0, *address) {
            Some(key) => key,
            None => {
                if let Some(key) = owner(found, 1, *address) {
                    return Ok(Err(format!("{key} is added with this address")));
                }
                let range = found.ends.range(*address);
                return Ok(range.ok_or_else(|| format!("{address} has no known owner")));
            }
        },
    };
    if let Some(end) = found.ends.endpoint(&key) {
        return Ok(Ok(end));
    }
    let one_sided = found.one_sided.iter().find(|other| other.key == key);
    if let Some(one_sided) = one_sided {
        return Ok(Err(format!("{key} is {}", super::lines::change(one_sided))));
    }
    // A pod on its node's network is known by address alone.
    let pod = found
        .ends
        .sides
        .iter()
        .find_map(|side| side.cluster.pods.get(&key));
    match pod
        .filter(|pod| pod.host_network && !pod.finished)
        .map(|pod| &pod.addresses)
    {
        Some(addresses) => {
            let range = addresses.first().and_then(|address| found.ends.range(*address));
            range.map(Ok).ok_or_else(|| {
                format!("{key} is on its node's network and its address is not known: record its address")
            })
        }
        None if pod.is_some() => Err(format!("{key} has finished or lost its address to another pod")),
        None => Err(format!("no pod or workload is named {key}, before or after")),
    }
}

/// The pod that has an address on one side.
fn owner(found: &Difference<'_>, side: usize, address: IpAddr) -> Option<ObjectKey> {
    let snapshot = &found.ends.sides.get(side)?.snapshot;
    let identity = snapshot.identify(Addr::from(address));
    if identity.kind != IdentityKind::Pod {
        return None;
    }
    let endpoint = snapshot.endpoint(identity.endpoint)?;
    Some(ObjectKey {
        namespace: endpoint.namespace.to_owned(),
        name: endpoint.name.to_owned(),
    })
}

impl FlowFate {
    /// The pod that an address was, for people.
    fn pod(found: &Difference<'_>, end: &EndName) -> Option<String> {
        match end {
            EndName::Address(address) => owner(found, 0, *address).map(|key| key.to_string()),
            EndName::Pod(_) | EndName::Service(_) => None,
        }
    }

    fn json(
        &self,
        found: &Difference<'_>,
        sources: &[Span],
        captured: bool,
        incomplete: &[String],
    ) -> Option<Value> {
        let protocol = protocol_name(self.service.protocol);
        let protocol = match protocol_number(&protocol) {
            Some(_) => json!(protocol),
            None => json!(self.service.protocol),
        };
        let mut line =
            json!({ "src": self.src.to_string(), "dst": self.dst.to_string(), "protocol": protocol });
        if let Some((kind, code)) = self.service.icmp() {
            line["icmp_type"] = kind.into();
            line["icmp_code"] = code.into();
        } else if let Some(port) = self.service.port {
            line["dst_port"] = port.into();
        } else if let Some(name) = &self.port_name {
            line["dst_port"] = name.as_str().into();
        }
        if let Some(span) = self.service.source_port.and_then(|port| span_of(sources, port)) {
            line["src_ports"] = json!([span]);
        }
        for (key, end) in [("src_pod", &self.src), ("dst_pod", &self.dst)] {
            if let Some(pod) = Self::pod(found, end) {
                line[key] = pod.into();
            }
        }
        line["flows"] = self.times.flows.into();
        if captured {
            line["packets"] = self.times.packets.into();
            line["bytes"] = self.times.bytes.into();
        }
        match &self.fate {
            Fate::Stays => return None,
            Fate::Unmatched(why) => line["unmatched"] = why.as_str().into(),
            Fate::ServiceChanges([from, to]) => {
                line["from"] = from.word().into();
                line["to"] = to.word().into();
                if !incomplete.is_empty() {
                    line["incomplete"] = json!(incomplete);
                }
            }
            Fate::Changes(change) => {
                let [from, to] = verdicts(change.allow, change.depends);
                line["from"] = from.into();
                line["to"] = to.into();
                line["policies"] = json!(change.policies);
                if !incomplete.is_empty() {
                    line["incomplete"] = json!(incomplete);
                }
            }
        }
        Some(line)
    }

    fn words(&self, found: &Difference<'_>, sources: &[Span], style: Style) -> Option<String> {
        let end = |end: &EndName| match Self::pod(found, end) {
            Some(pod) => format!("{pod} ({end})"),
            None => end.to_string(),
        };
        let source = self.service.source_port.and_then(|port| span_of(sources, port));
        let from = source.map_or(String::new(), |span| source_words(&[span]));
        let port = match &self.port_name {
            Some(name) => format!("{name}/{}", protocol_name(self.service.protocol)),
            None => self.service.from_port(None).to_string(),
        };
        let flow = format!("{} -> {} {port}{from}", end(&self.src), end(&self.dst));
        let times = match self.times.flows {
            1 => "1 flow".to_owned(),
            many => format!("{many} flows"),
        };
        match &self.fate {
            Fate::Stays => None,
            Fate::Unmatched(why) => Some(format!("?                {flow}  ({times}; {why})")),
            Fate::ServiceChanges(joints) => {
                let [from, to] = joints.map(Joint::word);
                Some(style.mark(
                    opens(*joints),
                    &format!("{from:<7} -> {to:<7}  {flow}  ({times})"),
                ))
            }
            Fate::Changes(change) => {
                let verdicts = verdicts(change.allow, change.depends);
                let by = match change.policies.as_slice() {
                    [] => String::new(),
                    policies => format!("; {}", policies.join(", ")),
                };
                Some(style.mark(
                    super::table::opens(verdicts),
                    &format!("{}  {flow}  ({times}{by})", super::table::arrow(verdicts)),
                ))
            }
        }
    }
}

/// Whether more of a Service is reached after than before.
fn opens([from, to]: [Joint; 2]) -> bool {
    // In this order less and less of it is.
    to < from
}

struct Summary {
    flows: u64,
    distinct: usize,
    changed: u64,
    closed: u64,
    opened: u64,
    unmatched: u64,
    errors: usize,
}

impl Summary {
    fn of(flows: u64, distinct: usize, fates: &[FlowFate], errors: usize) -> Self {
        let sum = |wanted: &dyn Fn(&Fate) -> bool| {
            let those = fates.iter().filter(|flow| wanted(&flow.fate));
            those.map(|flow| flow.times.flows).sum::<u64>()
        };
        let changes = |closes: bool| {
            move |fate: &Fate| match fate {
                Fate::Changes(change) => {
                    super::table::opens(verdicts(change.allow, change.depends)) != closes
                }
                Fate::ServiceChanges(joints) => opens(*joints) != closes,
                Fate::Stays | Fate::Unmatched(_) => false,
            }
        };
        let (closed, opened) = (sum(&changes(true)), sum(&changes(false)));
        Self {
            flows,
            distinct,
            changed: closed + opened,
            closed,
            opened,
            unmatched: sum(&|fate| matches!(fate, Fate::Unmatched(_))),
            errors,
        }
    }

    fn json(&self, captured: Option<&Counts>) -> Value {
        let mut summary = json!({
            "flows": self.flows,
            "distinct": self.distinct,
            "changed": self.changed,
            "closed": self.closed,
            "opened": self.opened,
            "unmatched": self.unmatched,
            "errors": self.errors,
        });
        if let Some(counts) = captured {
            summary["packets"] = json!({
                "read": counts.packets,
                "truncated": counts.truncated,
                "unparsable": counts.unparsable,
                "not_subject": counts.not_subject,
                "later_fragments": counts.later_fragments,
                "icmp_errors": counts.icmp_errors,
                "cut_short": counts.cut_short,
            });
        }
        json!({ "summary": summary })
    }

    fn words(
        &self,
        captured: Option<&Counts>,
        incomplete: &[String],
        out: &mut impl Write,
    ) -> io::Result<()> {
        writeln!(
            out,
            "{} of {} flows change: {} closed, {} opened; {} unmatched, {} not understood",
            self.changed, self.flows, self.closed, self.opened, self.unmatched, self.errors
        )?;
        if let Some(counts) = captured {
            writeln!(
                out,
                "{} packets: {} truncated, {} unparsable, {} not subject to policy, {} later fragments, {} ICMP errors{}",
                counts.packets,
                counts.truncated,
                counts.unparsable,
                counts.not_subject,
                counts.later_fragments,
                counts.icmp_errors,
                if counts.cut_short {
                    "; the file is cut short"
                } else {
                    ""
                }
            )?;
        }
        if !incomplete.is_empty() {
            writeln!(out, "Incomplete: {} are not evaluated.", incomplete.join(", "))?;
        }
        Ok(())
    }
}
