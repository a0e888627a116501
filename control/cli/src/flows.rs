//! `ringwall flows`: the flows and recent drops of the running dataplane, and who decided about them.

mod staged;

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{self, Write},
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context, bail};
use ringwall_analyse::flow::protocol_name;
use ringwall_controller::frontends::AskedFrontend;
use ringwall_messages::{
    Connection, DATAPLANE_SOCKET, FlowCursor, FlowFilter, FlowPage, LiveEnds, LiveRecord, Reply, Request,
    VERSION,
};
use ringwall_policy::{Decider, PASS};

use super::{
    Output,
    explain::{ask_control, service_of},
};

/// How long the dataplane may take for one part of its answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// Arguments of `ringwall flows`.
#[derive(Clone, Debug, clap::Args)]
#[command(after_long_help = "\
Drops come first, newest first; then the flows of the flow table. Explain one by
its id with `ringwall explain --flow ID`; a flow keeps its id until it ends, also
across a restart. The dataplane remembers the last 4,096 drops and identifies up
to 5,000 per second.

DECIDED BY is the policy and rule in the snapshot that decided. As JSON:
one object per line, with kind (flow or drop), id, src, dst, src_pod, dst_pod,
protocol, src_port, dst_port, generation and reasons (as in `query`); a flow
has state, frontend, frontend_service, age_seconds, idle_seconds, ports, packets, bytes and decided; a
drop has reason, audit, age_seconds, port and length.

With --staged, each is judged again as if the staged policies were enforced (see
`ringwall diff --staged`), and each staged policy is listed with the number of
flows and drops that it alone would decide differently. As JSON: a record then
has pending, an object with verdict, differs and reasons; last comes an object
with staged, kind, action and flows for each staged policy.

Examples:
  ringwall flows --config /etc/ringwall/ringwall.yaml --pod shop/web
  ringwall flows --config ringwall.yaml --staged --limit 0
  ringwall flows --config ringwall.yaml --dropped --policy shop/db -o json")]
pub struct FlowsArgs {
    /// Configuration file of the running instance
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Only flows and drops of this end: namespace/pod or an address
    #[arg(long, value_name = "POD|ADDRESS")]
    pod: Option<String>,
    /// Only flows and drops that this policy decided
    #[arg(long, value_name = "NAMESPACE/NAME")]
    policy: Option<String>,
    /// Only drops
    #[arg(long)]
    dropped: bool,
    /// Show at most this many; 0 for all
    #[arg(long, value_name = "N", default_value_t = 100)]
    limit: usize,
    /// Show what the staged policies would decide
    #[arg(long)]
    staged: bool,
}

pub(super) fn run(args: &FlowsArgs, output: Output) -> anyhow::Result<ExitCode> {
    let mut live = Live::connect(&args.config)?;
    let filter = FlowFilter {
        id: None,
        pod: args.pod.clone(),
        policy: args.policy.clone(),
        dropped: args.dropped,
    };
    let most = if args.limit == 0 { usize::MAX } else { args.limit };
    let mut out = io::BufWriter::new(io::stdout().lock());
    let mut shown = 0;
    let mut rows = Vec::new();
    let mut kept = Vec::new();
    let mut cursor = None;
    let mut unknown = false;
    let mut services = ServiceNames::default();
    loop {
        let page = live.page(&filter, cursor)?;
        unknown |= page.unknown_pod;
        services.learn(&args.config, &page.records);
        for record in page.records.into_iter().take(most - shown) {
            shown += 1;
            match output {
                _ if args.staged => kept.push(record),
                Output::Json => writeln!(out, "{}", services.in_json(&record)?)?,
                Output::Human => rows.push(row(&record, &services).to_vec()),
            }
        }
        cursor = page.next;
        if cursor.is_none() || shown == most {
            break;
        }
    }
    if let Some(pod) = args.pod.as_ref().filter(|_| unknown && shown == 0) {
        bail!(
            "{pod} is neither an address nor a pod that the policy in force knows (namespace/name), and no flow or drop \
             names it"
        );
    }
    if args.staged {
        staged::write(&args.config, &kept, output, &mut out)?;
    } else if output == Output::Human {
        out.write_all(table(&HEAD, &rows).as_bytes())?;
    }
    if output == Output::Human && shown == most {
        writeln!(out, "The first {most}; --limit shows more.")?;
    }
    out.flush()?;
    Ok(ExitCode::SUCCESS)
}

/// How long control may take to say whose frontends are: they are shown without names then.
const NAMES_PATIENCE: Duration = Duration::from_secs(2);

/// Names of the Services behind the addresses that clients used.
#[derive(Default)]
pub(super) struct ServiceNames {
    known: BTreeMap<AskedFrontend, Option<String>>,
    /// Control does not answer; it is not asked again.
    is_away: bool,
}

impl ServiceNames {
    /// Asks control about what is new in some records.
    fn learn(&mut self, config: &Path, records: &[LiveRecord]) {
        let new: BTreeSet<AskedFrontend> = records
            .iter()
            .filter_map(frontend_of)
            .filter(|frontend| !self.known.contains_key(frontend))
            .collect();
        if self.is_away || new.is_empty() {
            return;
        }
        let new: Vec<AskedFrontend> = new.into_iter().collect();
        match ask_control::<Vec<Option<String>>>(config, "/v1/frontends", &new, NAMES_PATIENCE) {
            Ok(names) => self.known.extend(new.into_iter().zip(names)),
            Err(_) => self.is_away = true,
        }
    }

    /// The Service whose frontend a flow's client used.
    fn of(&self, record: &LiveRecord) -> Option<&str> {
        self.known.get(&frontend_of(record)?)?.as_deref()
    }

    fn in_json(&self, record: &LiveRecord) -> serde_json::Result<String> {
        let Some(name) = self.of(record) else {
            return serde_json::to_string(record);
        };
        let mut value = serde_json::to_value(record)?;
        if let Some(fields) = value.as_object_mut() {
            fields.insert("frontend_service".to_owned(), name.into());
        }
        serde_json::to_string(&value)
    }
}

fn frontend_of(record: &LiveRecord) -> Option<AskedFrontend> {
    let LiveRecord::Flow(flow) = record else {
        return None;
    };
    Some(AskedFrontend {
        address: flow.frontend?,
        port: flow.frontend_port,
        protocol: flow.ends.protocol,
    })
}

/// A connection to the running dataplane.
pub(super) struct Live(Connection);

impl Live {
    /// Connects to the dataplane of a configuration.
    ///
    /// # Errors
    /// The configuration cannot be read, or nothing runs.
    pub(super) fn connect(config: &Path) -> anyhow::Result<Self> {
        let config = ringwall_config::Config::load(config).map_err(|error| anyhow::anyhow!("{error}"))?;
        let connection = Connection::connect(&config.runtime_dir.join(DATAPLANE_SOCKET))?;
        connection.set_receive_timeout(Some(PATIENCE))?;
        connection.set_send_timeout(Some(PATIENCE))?;
        connection.send(&Request::Hello { version: VERSION }, None)?;
        match connection.receive::<Reply>()?.message {
            Reply::Hello { .. } => Ok(Self(connection)),
            Reply::Error { message } => bail!("the dataplane refuses: {message}"),
            other => bail!("the dataplane answers something else than hello: {other:?}"),
        }
    }

    fn page(&mut self, filter: &FlowFilter, cursor: Option<FlowCursor>) -> anyhow::Result<FlowPage> {
        let filter = filter.clone();
        self.0.send(&Request::Flows { filter, cursor }, None)?;
        match self
            .0
            .receive::<Reply>()
            .context("the dataplane does not say")?
            .message
        {
            Reply::Flows { page } => Ok(*page),
            Reply::Error { message } => bail!("the dataplane refuses: {message}"),
            other => bail!("the dataplane answers something else: {other:?}"),
        }
    }

    /// A flow or drop by its id; None where there is none, or none any more.
    ///
    /// # Errors
    /// The dataplane does not answer.
    pub(super) fn find(&mut self, id: &str) -> anyhow::Result<Option<LiveRecord>> {
        let filter = FlowFilter {
            id: Some(id.to_owned()),
            ..FlowFilter::default()
        };
        let mut cursor = None;
        loop {
            let page = self.page(&filter, cursor)?;
            if let Some(record) = page.records.into_iter().next() {
                return Ok(Some(record));
            }
            cursor = page.next;
            if cursor.is_none() {
                return Ok(None);
            }
        }
    }
}

const HEAD: [&str; 8] = [
    "ID",
    "FROM",
    "TO",
    "PROTO",
    "STATE",
    "AGE",
    "PACKETS",
    "DECIDED BY",
];

fn row(record: &LiveRecord, services: &ServiceNames) -> [String; 8] {
    let unknown_ends = || ("-".to_owned(), "-".to_owned(), "-".to_owned());
    let (from, to, protocol) = record.ends().map_or_else(unknown_ends, |ends| {
        (
            end(&ends.src_pod, ends.src, ends.src_port),
            destination(record, ends, services.of(record)),
            protocol_words(record, ends),
        )
    });
    let (state, age, packets) = match record {
        LiveRecord::Flow(flow) => (
            match &flow.would_drop {
                Some(reason) => format!("audit {reason}"),
                None => flow.state.clone(),
            },
            flow.age_seconds,
            format!("{}/{}", flow.packets[0], flow.packets[1]),
        ),
        LiveRecord::Drop(drop) => {
            let how = if drop.audit { "audit" } else { "DROP" };
            (format!("{how} {}", drop.reason), drop.age_seconds, "-".to_owned())
        }
    };
    [
        record.id().to_owned(),
        from,
        to,
        protocol,
        state,
        period(age),
        packets,
        deciders_words(record.reasons()),
    ]
}

/// A drop's protocol, with the type of ICMP; flows of ICMP are all echo.
fn protocol_words(record: &LiveRecord, ends: &LiveEnds) -> String {
    match (record, ends.icmp_type) {
        (LiveRecord::Drop(_), Some(_)) => service_of(ends).to_string(),
        _ => protocol_name(ends.protocol),
    }
}

/// Where a packet leads, and the Service or address that its client used instead.
fn destination(record: &LiveRecord, ends: &LiveEnds, service: Option<&str>) -> String {
    let to = end(&ends.dst_pod, ends.dst, ends.dst_port);
    match record {
        LiveRecord::Flow(flow) => match flow.frontend {
            Some(frontend) => {
                let name = service.map(str::to_owned);
                format!("{to} by {}", end(&name, frontend, flow.frontend_port))
            }
            None => to,
        },
        LiveRecord::Drop(_) => to,
    }
}

fn end(pod: &Option<String>, address: std::net::IpAddr, port: Option<u16>) -> String {
    let name = pod.clone().unwrap_or_else(|| match address {
        std::net::IpAddr::V6(address) if port.is_some() => format!("[{address}]"),
        address => address.to_string(),
    });
    match port {
        Some(port) => format!("{name}:{port}"),
        None => name,
    }
}

/// Both ends and the service, in words.
pub(super) fn ends_words(ends: &LiveEnds) -> String {
    format!(
        "{} -> {} {}",
        end(&ends.src_pod, ends.src, ends.src_port),
        end(&ends.dst_pod, ends.dst, ends.dst_port),
        protocol_name(ends.protocol)
    )
}

/// Who decided, in words.
pub(super) fn deciders_words(reasons: &[Decider]) -> String {
    let words: Vec<String> = reasons
        .iter()
        .map(|reason| {
            let how = match (reason.policy_words(), reason.rule) {
                (Some(policy), Some(rule)) if reason.effect == "deny" => {
                    format!("denied by {policy} rule {rule}")
                }
                (Some(policy), Some(rule)) if reason.effect == PASS => {
                    format!("passed on by {policy} rule {rule}")
                }
                (Some(policy), Some(rule)) => format!("{policy} rule {rule}"),
                (Some(policy), None) if reason.effect == "tier-default" => {
                    format!("denied by default by the tier of {policy}")
                }
                (Some(policy), None) => format!("isolated by {policy}"),
                (None, _) => reason.effect.clone(),
            };
            format!("{} {how}", reason.direction)
        })
        .collect();
    if words.is_empty() {
        "-".to_owned()
    } else {
        words.join(", ")
    }
}

/// Seconds in few characters.
pub(super) fn period(seconds: f64) -> String {
    match seconds {
        seconds if seconds < 10.0 => format!("{seconds:.1}s"),
        seconds if seconds < 120.0 => format!("{seconds:.0}s"),
        seconds if seconds < 7200.0 => format!("{:.0}m", seconds / 60.0),
        seconds => format!("{:.0}h", seconds / 3600.0),
    }
}

fn table(head: &[&str], rows: &[Vec<String>]) -> String {
    if rows.is_empty() {
        return "No flows and no drops.\n".to_owned();
    }
    let mut text = String::new();
    let head: Vec<String> = head.iter().map(|word| (*word).to_owned()).collect();
    let all = || std::iter::once(&head).chain(rows);
    let width = |column: usize| {
        let cells = all().filter_map(|row| row.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..head.len()).map(width).collect();
    for row in all() {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            line.push_str(&format!("{cell:<width$}  "));
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
#[allow(clippy::unwrap_used)] // a failed step is a failed test
mod tests {
    use ringwall_messages::LiveFlow;

    use super::*;

    #[test]
    fn a_translated_flow_shows_what_its_client_used() {
        let ends = LiveEnds {
            src: [10, 244, 1, 2].into(),
            dst: [10, 244, 1, 3].into(),
            src_pod: None,
            dst_pod: Some("shop/web-1".to_owned()),
            protocol: 6,
            src_port: Some(40_000),
            dst_port: Some(8080),
            icmp_type: None,
            icmp_code: None,
        };
        let mut flow = LiveFlow {
            id: "0123456789abcdef".to_owned(),
            ends,
            frontend: Some([10, 96, 0, 10].into()),
            frontend_port: Some(80),
            state: "tcp-established".to_owned(),
            oriented: true,
            would_drop: None,
            age_seconds: 1.0,
            idle_seconds: 0.5,
            ports: [None, None],
            packets: [2, 1],
            bytes: [80, 40],
            generation: 1,
            decided: None,
            reasons: Vec::new(),
        };
        let mut services = ServiceNames::default();
        let record = LiveRecord::Flow(flow.clone());
        assert_eq!(row(&record, &services)[2], "shop/web-1:8080 by 10.96.0.10:80");
        let asked = frontend_of(&record).unwrap();
        services.known.insert(asked, Some("shop/web".to_owned()));
        let to = |flow: &LiveFlow| row(&LiveRecord::Flow(flow.clone()), &services)[2].clone();
        assert_eq!(to(&flow), "shop/web-1:8080 by shop/web:80");
        assert!(
            services
                .in_json(&record)
                .unwrap()
                .contains("\"frontend_service\":\"shop/web\"")
        );
        (flow.frontend, flow.frontend_port) = (None, None);
        assert_eq!(to(&flow), "shop/web-1:8080");
    }
}
