//! `ringwall query`: one verdict per flow, through the compiled snapshot.

use std::{
    io::{self, Write},
    path::{Path, PathBuf},
    process::ExitCode,
};

use ringwall_analyse::{
    flow,
    flow::Flow,
    judge::{
        Answer, Direction, End, Fate, Judge, Passing, Reason, depends_words, drops_as_encapsulation,
        with_passing,
    },
    services::Directory,
};
use ringwall_policy::{Cluster, PASS};
use serde_json::{Value, json};

mod pending;
mod services;

use pending::{Pending, PendingAnswer};

use super::{
    ClusterArgs, Output,
    gaps::{Gaps, invalid_words},
};

/// Arguments of `ringwall query`.
#[derive(Clone, Debug, clap::Args)]
#[command(after_long_help = "\
Each flow is a JSON object on a line of its own (or one JSON array of them):

  {\"src\":\"shop/web-0\",\"dst\":\"10.1.2.3\",\"protocol\":\"TCP\",\"dst_port\":5432}
  {\"src\":\"192.0.2.7\",\"dst\":\"shop/web-0\",\"protocol\":\"ICMP\",\"icmp_type\":8}

src and dst are addresses or namespace/pod; protocol is TCP, UDP, SCTP, ICMP,
ICMPv6 or a number. dst is also svc:namespace/name for a Service, with the number
or the name of its port; see below. The answer repeats these keys and adds src_ip, dst_ip,
verdict, ingress, egress and reasons. A flow that cannot be answered gives
{\"error\":...} in its place, and the exit status is 2.

A verdict is allow, deny or depends. It depends if the manifests do not say which
address a pod or workload will have and an ipBlock covers part of the pod network;
depends_on names the ends whose addresses decide, and the reason with the effect
depends names the rule. Name the pod network with --pod-cidr. It also depends if
a flow has no src_port, or one of ICMP no icmp_type, and rules ask for one;
depends_on is then src_port or icmp_type. Without icmp_code, the code is 0.

reasons say who decides each direction: a rule (effect allow or deny), a tier's
default (isolated, tier-default), or that nothing does (open: no policy applies;
profile: policies apply, but none decides). Before it come rules that passed the
flow on to the next tier (pass). Where policies are staged, pending is the verdict
with all of them enforced, and those that would decide have the effect staged.

The verdict is that of the policies. If a gateway drops the packet anyway, such as
tunnels of pods (protocols 4, 41, 47, 97, 115, 137; UDP ports 4789, 6081, 8285,
8472), gateway_drop has the reason; overlay.fromPods and overlay.ports in the
configuration change that.

If dst is a Service, or an address or NodePort of one, policies see the endpoint
that kube-proxy chooses, at its own port. backends has a verdict for each:

  {\"src\":\"shop/cart\",\"dst\":\"svc:shop/web\",\"protocol\":\"TCP\",\"dst_port\":\"http\"}
  {\"src\":\"shop/cart\",\"dst\":\"10.96.0.10\",\"protocol\":\"UDP\",\"dst_port\":53}

verdict is allow or deny if all of them agree and partial if not; reject or drop,
with why, if there is no endpoint to go to. See docs/services.md. An ExternalName
Service gives an error: ask about the address that its name has.

Examples:
  ringwall query --manifests ./cluster --flows flows.jsonl -o json
  ringwall query --manifests ./cluster --flows - < flows.jsonl")]
pub struct QueryArgs {
    #[command(flatten)]
    cluster: ClusterArgs,
    /// File of flows, one JSON object per line; - for standard input
    #[arg(long, value_name = "FILE")]
    flows: PathBuf,
}

pub(super) fn run(args: &QueryArgs, output: Output) -> anyhow::Result<ExitCode> {
    super::not_both_stdin(("--manifests", &args.cluster.manifests), ("--flows", &args.flows))?;
    let loaded = args.cluster.read()?;
    let cluster = &loaded.cluster;
    let judge = Judge::new(cluster)?;
    let mut asker = Asker {
        cluster,
        directory: Directory::new(cluster, &loaded.services),
        judge: &judge,
        gaps: Gaps::of(cluster),
        passing: Passing::of(cluster),
        pending: Pending::of(&loaded)?,
        output,
        failed: false,
    };
    asker.answer_all(&args.flows, io::BufWriter::new(io::stdout().lock()))?;
    Ok(if asker.failed {
        ExitCode::from(2)
    } else {
        ExitCode::SUCCESS
    })
}

/// What is said of a flow.
struct Answered {
    flow: Flow,
    src: End,
    dst: End,
    answer: Answer,
    /// Who decides, and which rules passed it on before.
    reasons: Vec<Reason>,
    pending: Option<PendingAnswer>,
}

/// An end with its address.
fn end_words(name: &flow::EndName, end: &End) -> String {
    match (name, end.address) {
        (flow::EndName::Pod(key), Some(address)) => format!("{key} ({address})"),
        (name, _) => name.to_string(),
    }
}

/// The keys of a flow as they were written, then ours.
fn verbatim_then(flow: &Flow, ours: &Value) -> String {
    let mut line = String::from("{");
    for (key, value) in &flow.verbatim.0 {
        line.push_str(&format!("{}:{},", json!(key), value.get()));
    }
    let ours = ours.to_string();
    line.push_str(ours.strip_prefix('{').unwrap_or(&ours));
    line
}

/// Whether a gateway drops what policies let pass.
fn drops_at_gateway(src: &End, dst: &End, flow: &Flow, answer: &Answer) -> bool {
    answer.fate() != Fate::Deny && drops_as_encapsulation(src, dst, flow.service)
}

struct Asker<'a> {
    cluster: &'a Cluster,
    /// Services, as destinations.
    directory: Directory<'a>,
    judge: &'a Judge,
    gaps: Gaps<'a>,
    /// Rules that pass flows on, if there are any.
    passing: Option<Passing>,
    /// What staged policies would decide, if there are any.
    pending: Option<Pending<'a>>,
    output: Output,
    /// Whether some flow could not be answered.
    failed: bool,
}

impl Asker<'_> {
    fn answer_all(&mut self, from: &Path, mut out: impl Write) -> anyhow::Result<()> {
        flow::each(from, |text, waits| {
            writeln!(out, "{}", self.answer(text))?;
            // Who asks one flow at a time waits for its answer.
            if waits { out.flush() } else { Ok(()) }
        })?;
        Ok(out.flush()?)
    }

    fn answer(&mut self, text: &str) -> String {
        match (self.answered(text), self.output) {
            (Ok(answer), _) => answer,
            (Err(error), output) => {
                self.failed = true;
                match output {
                    Output::Json => json!({ "error": error }).to_string(),
                    Output::Human => format!("error  {error}"),
                }
            }
        }
    }

    fn answered(&mut self, text: &str) -> Result<String, String> {
        let flow = Flow::read(text)?;
        let ends = (&flow.src, &flow.dst);
        let port_name = flow.port_name.as_deref();
        if let Some(resolved) = self
            .directory
            .resolve(self.judge, ends, flow.service, port_name)?
        {
            let answered = self.ask_service(flow, resolved)?;
            return Ok(match self.output {
                Output::Json => self.service_json(&answered),
                Output::Human => self.service_words(&answered),
            });
        }
        let answered = self.ask(flow)?;
        Ok(match self.output {
            Output::Json => self.json(&answered),
            Output::Human => self.words(&answered),
        })
    }

    fn ask(&mut self, flow: Flow) -> Result<Answered, String> {
        let (src, dst) = self.judge.ends(self.cluster, &flow.src, &flow.dst)?;
        let answer = self.judge.judge(&src, &dst, flow.service)?;
        let passing = match &mut self.passing {
            Some(passing) => {
                passing.rules(self.judge, [(&flow.src, &src), (&flow.dst, &dst)], flow.service)?
            }
            None => Vec::new(),
        };
        let pending = match &self.pending {
            Some(pending) => Some(pending.answer(&flow, &answer)?),
            None => None,
        };
        Ok(Answered {
            reasons: with_passing(&answer.reasons, passing),
            flow,
            src,
            dst,
            answer,
            pending,
        })
    }

    /// The input's own words, then ours.
    fn json(&self, answered: &Answered) -> String {
        verbatim_then(&answered.flow, &self.fields(answered))
    }

    /// What is said of a flow, in JSON.
    fn fields(&self, answered: &Answered) -> Value {
        let Answered {
            flow,
            src,
            dst,
            answer,
            reasons,
            pending,
        } = answered;
        let mut ours = json!({
            "src_ip": src.address,
            "dst_ip": dst.address,
            "verdict": answer.fate().word(),
            "ingress": answer.ingress.word(),
            "egress": answer.egress.word(),
            "reasons": reasons,
        });
        if let Some(pending) = pending {
            ours["pending"] = json!(pending.fate.word());
            ours["reasons"] = json!([&**reasons, &*pending.deciding].concat());
        }
        let depends_on = answer.depends_on(&flow.src, &flow.dst);
        if !depends_on.is_empty() {
            let names: Vec<String> = depends_on.iter().map(ToString::to_string).collect();
            ours["depends_on"] = json!(names);
        } else if let Some(key) = answer.lacks {
            ours["depends_on"] = json!([key]);
        }
        if drops_at_gateway(src, dst, flow, answer) {
            ours["gateway_drop"] = json!("encapsulation");
        }
        if !self.cluster.unevaluated_kinds.is_empty() {
            ours["incomplete"] = json!(self.cluster.unevaluated_kinds);
        }
        let invalid = self
            .gaps
            .invalid_at(self.judge, [(&flow.src, src), (&flow.dst, dst)]);
        if !invalid.is_empty() {
            ours["invalid"] = json!(invalid);
        }
        ours
    }

    fn words(&self, answered: &Answered) -> String {
        let Answered {
            flow,
            src,
            dst,
            answer,
            ..
        } = answered;
        format!(
            "{:<5}  {} -> {} {}{}",
            answer.fate().word(),
            end_words(&flow.src, src),
            end_words(&flow.dst, dst),
            flow.service,
            self.why(answered)
        )
    }

    /// Why a flow passes or does not: a line for each direction, then what else is worth knowing.
    fn why(&self, answered: &Answered) -> String {
        self.why_of(answered, &[Direction::Egress, Direction::Ingress])
    }

    /// Likewise, of some directions.
    fn why_of(&self, answered: &Answered, directions: &[Direction]) -> String {
        let Answered {
            flow,
            src,
            dst,
            answer,
            reasons,
            pending,
        } = answered;
        let mut line = String::new();
        for direction in directions.iter().copied() {
            let (name, fate) = match direction {
                Direction::Egress => ("egress", answer.egress),
                Direction::Ingress => ("ingress", answer.ingress),
            };
            line.push_str(&format!("\n         {name:<7} {:<5}  ", fate.word()));
            let why: Vec<String> = reasons
                .iter()
                .filter(|reason| reason.direction == direction)
                .map(|reason| match (reason.policy_words(), reason.rule) {
                    (Some(policy), Some(rule)) if reason.effect == "deny" => {
                        format!("denied by {policy}, rule {rule}")
                    }
                    (Some(policy), Some(rule)) if fate == Fate::Depends && answer.lacks.is_some() => {
                        format!("{policy}, rule {rule}, decides some of them")
                    }
                    (Some(policy), Some(rule)) if reason.effect == PASS => {
                        format!("passed on by {policy}, rule {rule}")
                    }
                    (Some(policy), Some(rule)) if fate == Fate::Depends => {
                        format!("{policy}, rule {rule}, may hold its address")
                    }
                    (Some(policy), Some(rule)) => format!("{policy}, rule {rule}"),
                    (Some(policy), None) if reason.effect == "tier-default" => {
                        format!("{policy} selects it, no rule matches, and its tier denies by default")
                    }
                    (Some(policy), None) => format!("isolated by {policy}"),
                    (None, _) => match reason.effect {
                        "open" => "no policy applies".to_owned(),
                        "profile" => "no rule decides, so it is allowed by default".to_owned(),
                        "self" => "its own address".to_owned(),
                        "node" => "pod and its own node".to_owned(),
                        "unknown" => "an address of the pod network that no known pod has".to_owned(),
                        other => other.to_owned(),
                    },
                })
                .collect();
            line.push_str(&why.join("; "));
        }
        if let Some(words) = pending.as_ref().and_then(PendingAnswer::words) {
            line.push_str(&format!("\n         {words}"));
        }
        let depends_on = answer.depends_on(&flow.src, &flow.dst);
        if !depends_on.is_empty() {
            line.push_str(&format!("\n         {}", depends_words(&depends_on)));
        }
        if let Some(key) = answer.lacks {
            line.push_str(&format!("\n         depends on {key}: add it to the flow"));
        }
        if drops_at_gateway(src, dst, flow, answer) {
            line.push_str(
                "\n         a gateway drops it as encapsulation, unless its configuration says overlay.fromPods: allow",
            );
        }
        if !self.cluster.unevaluated_kinds.is_empty() {
            let kinds: Vec<&str> = self
                .cluster
                .unevaluated_kinds
                .iter()
                .map(String::as_str)
                .collect();
            line.push_str(&format!(
                "\n         incomplete: {} not evaluated",
                kinds.join(", ")
            ));
        }
        let invalid = self
            .gaps
            .invalid_at(self.judge, [(&flow.src, src), (&flow.dst, dst)]);
        let invalid: Vec<String> = invalid.into_iter().collect();
        if let Some(words) = invalid_words(&invalid) {
            line.push_str(&format!("\n         {words}"));
        }
        line
    }
}
