//! `ringwall explain`: why a flow passes or does not, step by step, and the smallest change that would turn it round.

use std::{
    io::{self, Write},
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use anyhow::bail;
use ringwall_analyse::{
    explain::{
        Explainer, Question,
        render::{Style, render},
        report::{Explanation, Word},
        services::Explained,
    },
    flow::{AskedPort, EndName, Service},
    services::Directory,
};
use ringwall_controller::api::ExplainRequest;
use ringwall_dataplane::{flow::FlowId, verdict::DropReason};
use ringwall_messages::{CONTROL_SOCKET, LiveEnds, LiveRecord, client};
use serde::{Serialize, de::DeserializeOwned};

use super::{
    ClusterArgs, Output,
    flows::{Live, deciders_words, ends_words, period},
    progress::Progress,
};

/// How long control may take to explain.
const PATIENCE: Duration = Duration::from_secs(30);

/// Arguments of `ringwall explain`.
#[derive(Clone, Debug, clap::Args)]
#[command(after_long_help = "\
FROM and TO are addresses or namespace/pod; TO is also svc:namespace/name for a
Service, whose endpoints are explained then (docs/services.md). PORT/PROTO is 80/TCP, ICMP, 8/ICMP
for a type of ICMP, 3:4/ICMP for type and code or, for any other protocol,
ip/NUMBER; a port of a Service may be named, as in http/TCP. --manifests asks about a folder, --config alone
about the running instance. --flow explains a flow or drop of the running instance
by the id that `ringwall flows` shows: the decision then, and the decision now.

For each direction the answer lists every policy of the pod's namespace and of
all other tiers, and whether it selects the pod; for those that do, which rules
match, the first condition at which others fail, and which rule decides. Then
come up to three changes of a label or policy that would flip the verdict, each
verified, with the number of other pairs of endpoints that would change.

As JSON: one object with src, dst, service, verdict, egress, ingress, reasons
(as in `query`), notes, changes and no_change; with --flow: flow (as in
`flows`), now (as above, or null if unknown) and differs.

Examples:
  ringwall explain --manifests ./cluster shop/web shop/db 5432/TCP
  ringwall explain --manifests ./cluster 203.0.113.9 shop/web ICMP -o json
  ringwall explain --manifests ./cluster shop/cart svc:shop/web http/TCP
  ringwall explain --config ringwall.yaml shop/web shop/db 5432/TCP
  ringwall explain --config ringwall.yaml --flow 6b3f0a91c2d4e857")]
pub struct ExplainArgs {
    /// Source: an address or namespace/pod
    #[arg(value_name = "FROM", value_parser = EndName::read, required_unless_present = "flow")]
    from: Option<EndName>,
    /// Destination: an address, namespace/pod or svc:namespace/name
    #[arg(value_name = "TO", value_parser = EndName::read, required_unless_present = "flow")]
    to: Option<EndName>,
    /// Destination port and protocol, such as 80/TCP, ICMP or ip/47
    #[arg(value_name = "PORT/PROTO", value_parser = AskedPort::read, required_unless_present = "flow")]
    service: Option<AskedPort>,
    /// Source port; needed where rules tell source ports apart
    #[arg(long, value_name = "PORT", conflicts_with = "flow")]
    source_port: Option<u16>,
    /// Folder of manifests: .yaml, .yml and .json, read recursively
    #[arg(long, value_name = "DIR", required_unless_present = "config")]
    manifests: Option<PathBuf>,
    /// Configuration file of the running instance; with --manifests, only its networks and unknownEndpoints are used
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Pod network, in addition to those of Nodes and --config; may be repeated
    #[arg(long = "pod-cidr", value_name = "CIDR", requires = "manifests")]
    pod_cidrs: Vec<ipnet::IpNet>,
    /// Accept manifests without any pod, workload, namespace, node or policy as an empty cluster
    #[arg(long, requires = "manifests")]
    allow_empty: bool,
    /// Explain this flow or drop of the running instance, by its id
    #[arg(long, value_name = "ID", requires = "config", conflicts_with_all = ["from", "manifests"])]
    flow: Option<FlowId>,
}

pub(super) fn run(args: &ExplainArgs, output: Output) -> anyhow::Result<ExitCode> {
    if let (Some(id), Some(config)) = (args.flow, &args.config) {
        return explain_flow(config, id, output);
    }
    let (Some(src), Some(dst), Some(asked)) = (&args.from, &args.to, &args.service) else {
        bail!("say FROM TO PORT/PROTO, or --flow ID");
    };
    let question = Question {
        src: src.clone(),
        dst: dst.clone(),
        service: match args.source_port {
            Some(_) => asked.service.from_port(args.source_port),
            None => asked.service,
        },
    };
    let explanation = match (&args.manifests, &args.config) {
        (Some(manifests), _) => offline(args, manifests, &question, asked.name.as_deref())?,
        (None, Some(config)) => {
            let asked = AskedPort {
                service: question.service,
                name: asked.name.clone(),
            };
            live(config, &question, asked.asked(), false)?
        }
        (None, None) => bail!("give --manifests DIR, or --config FILE of a running instance"),
    };
    let mut out = io::stdout().lock();
    match output {
        Output::Json => writeln!(out, "{}", serde_json::to_string(&explanation)?)?,
        Output::Human => out.write_all(explanation.render(Style::of_stdout()).as_bytes())?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Explains from a folder of manifests.
fn offline(
    args: &ExplainArgs,
    manifests: &Path,
    question: &Question,
    port_name: Option<&str>,
) -> anyhow::Result<Explained> {
    let loaded = ClusterArgs {
        manifests: manifests.to_owned(),
        config: args.config.clone(),
        pod_cidrs: args.pod_cidrs.clone(),
        allow_empty: args.allow_empty,
    }
    .read()?;
    let _progress = Progress::new("explaining");
    let directory = Directory::new(&loaded.cluster, &loaded.services);
    Ok(Explainer::new(&loaded.cluster)?.explain_any(&directory, question, port_name)?)
}

/// Asks the control process of a configuration; `of_flow` about a packet that was seen.
fn live<A: DeserializeOwned>(
    config: &Path,
    question: &Question,
    service: String,
    of_flow: bool,
) -> anyhow::Result<A> {
    let request = ExplainRequest {
        from: question.src.to_string(),
        to: question.dst.to_string(),
        service,
        of_flow,
    };
    ask_control(config, "/v1/explain", &request, PATIENCE)
}

/// Asks the control process of a configuration, in JSON.
pub(super) fn ask_control<A: DeserializeOwned>(
    config: &Path,
    path: &str,
    request: &impl Serialize,
    patience: Duration,
) -> anyhow::Result<A> {
    let config = ringwall_config::Config::load(config).map_err(|error| anyhow::anyhow!("{error}"))?;
    let socket = config.runtime_dir.join(CONTROL_SOCKET);
    let request = serde_json::to_string(request)?;
    let answer = client::ask_control(&socket, path, Some(&request), patience).map_err(|error| {
        anyhow::anyhow!(
            "cannot ask {}: {error}; is `ringwall run` running with this configuration?",
            socket.display()
        )
    })?;
    if answer.status != 200 {
        bail!("{}", String::from_utf8_lossy(&answer.body).trim());
    }
    Ok(serde_json::from_slice(&answer.body)?)
}

/// What `--flow` answers.
#[derive(Debug, Serialize)]
struct FlowExplained {
    flow: LiveRecord,
    /// Under the state in force now; None where that cannot be said.
    now: Option<Explanation>,
    /// Why that cannot be said.
    #[serde(skip_serializing_if = "Option::is_none")]
    now_unknown: Option<String>,
    /// Whether now is otherwise than then: verdict or deciding policies.
    differs: Option<bool>,
}

fn explain_flow(config: &Path, id: FlowId, output: Output) -> anyhow::Result<ExitCode> {
    let Some(flow) = Live::connect(config)?.find(&id.to_string())? else {
        eprintln!(
            "ringwall: no flow and no recent drop has the id {id}: it may be over; see `ringwall flows`"
        );
        return Ok(ExitCode::FAILURE);
    };
    let now = match flow.ends() {
        Some(ends) => {
            let question = question_of(ends);
            live(config, &question, question.service.asked(), true)
        }
        None => Err(anyhow::anyhow!("the packet's headers could not be read")),
    };
    let differs = now.as_ref().ok().and_then(|now| differs(&flow, now));
    let explained = FlowExplained {
        now_unknown: now.as_ref().err().map(ringwall_process::whole_message),
        now: now.ok(),
        flow,
        differs,
    };
    let mut out = io::stdout().lock();
    match output {
        Output::Json => writeln!(out, "{}", serde_json::to_string(&explained)?)?,
        Output::Human => out.write_all(flow_words(&explained).as_bytes())?,
    }
    Ok(ExitCode::SUCCESS)
}

fn question_of(ends: &LiveEnds) -> Question {
    Question {
        src: EndName::Address(ends.src),
        dst: EndName::Address(ends.dst),
        service: service_of(ends),
    }
}

/// What a flow or drop asks for.
pub(super) fn service_of(ends: &LiveEnds) -> Service {
    match ends.icmp_type {
        Some(kind) => Service::of_icmp(ends.protocol, kind, ends.icmp_code.unwrap_or_default()),
        None => Service {
            protocol: ends.protocol,
            // An echo identifier is no port.
            port: ends.dst_port.filter(|_| matches!(ends.protocol, 6 | 17 | 132)),
            source_port: None,
        }
        .from_port(ends.src_port),
    }
}

/// Whether policies decided something else then than they do now; None where they had no part in it, or that is unknown.
fn differs(flow: &LiveRecord, now: &Explanation) -> Option<bool> {
    let then = match flow {
        LiveRecord::Flow(_) => Word::Allow,
        LiveRecord::Drop(_) => Word::Deny,
    };
    if flow.reasons().is_empty() {
        return None;
    }
    let mut deciders = flow.reasons().to_vec();
    let mut of_now = now.reasons.clone();
    of_now.retain(ringwall_policy::Decider::decides);
    let order =
        |reason: &ringwall_policy::Decider| (reason.direction.clone(), reason.policy.clone(), reason.rule);
    deciders.sort_by_key(order);
    of_now.sort_by_key(order);
    Some(then != now.verdict || deciders != of_now)
}

fn flow_words(explained: &FlowExplained) -> String {
    let flow = &explained.flow;
    let what = flow
        .ends()
        .map_or("a frame whose headers could not be read".to_owned(), ends_words);
    let decided = deciders_words(flow.reasons());
    let mut lines = match flow {
        LiveRecord::Flow(it) => {
            let under = match it.decided {
                Some(generation) => format!("under generation {generation}"),
                None => "under a generation that is not there any more; this is what stands since".to_owned(),
            };
            vec![
                format!("Flow {}: {what}", it.id),
                format!(
                    "  {}, {} old, idle for {}, {} and {} packets",
                    it.state,
                    period(it.age_seconds),
                    period(it.idle_seconds),
                    it.packets[0],
                    it.packets[1]
                ),
                format!("  allowed {under}: {decided}"),
            ]
        }
        LiveRecord::Drop(it) => {
            let meaning = DropReason::from_name(&it.reason).map_or("", DropReason::meaning);
            let mut lines = vec![
                format!("Drop {}: {what}", it.id),
                format!(
                    "  {} ago, {} bytes from port {}, generation {}",
                    period(it.age_seconds),
                    it.length,
                    it.port.as_deref().unwrap_or("-"),
                    it.generation
                ),
                format!("  {}: {meaning}", it.reason),
            ];
            if let Some(tunnel) = &it.tunnel {
                lines.push(format!("  it was in a tunnel between nodes: {tunnel}"));
            }
            if it.audit {
                lines.push("  it was forwarded all the same: the mode is audit".to_owned());
            }
            if !it.reasons.is_empty() {
                lines.push(format!("  decided by: {decided}"));
            }
            lines
        }
    };
    lines.push(String::new());
    match (&explained.now, &explained.now_unknown) {
        (Some(now), _) => {
            let generation = now.generation.unwrap_or(0);
            lines.push(match explained.differs {
                Some(true) => format!("NOW, under generation {generation}, it is decided otherwise:"),
                Some(false) => format!("Now, under generation {generation}, it is decided the same:"),
                None => format!("What the policies say now, under generation {generation}:"),
            });
            lines.push(String::new());
            lines.join("\n") + &("\n".to_owned() + &render(now, Style::of_stdout()))
        }
        (None, why) => {
            let why = why.as_deref().unwrap_or("control does not say");
            lines.push(format!("What would be decided now is not known: {why}"));
            lines.join("\n") + "\n"
        }
    }
}
