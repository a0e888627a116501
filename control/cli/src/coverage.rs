//! `ringwall coverage`: what of a cluster is enforced here, and why the rest is not.

use std::{
    collections::BTreeMap,
    io::{self, Write},
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context, bail};
use ringwall_analyse::coverage::{Coverage, FirewallPosition, Reason, State, Tally};
use ringwall_config::{Config, Kind};
use ringwall_messages::{CONTROL_SOCKET, client};
use serde_json::{Value, json};

use super::{ClusterArgs, Output};

/// How long control may take to answer.
const PATIENCE: Duration = Duration::from_secs(30);
/// Objects that are named for each reason.
const EXAMPLES: usize = 5;

/// Arguments of `ringwall coverage`.
#[derive(Clone, Debug, clap::Args)]
#[command(after_long_help = "\
Enforced means that this firewall sees the traffic of a pod and identifies the pod
by its address; `matrix` shows what policies allow. --manifests examines a folder,
for the firewall that --config describes; --config alone examines the state of the
running instance.

Reasons: host-network, finished, no-address, unknown-namespace, address-taken,
outside-pod-networks, same-node; of policies selects-nobody,
selects-unenforced, invalid, not-understood. Policy kinds that are not evaluated
are listed, and if there are cluster-wide or Calico policies, so are the tiers.

As JSON: one object per pod, policy and namespace, each with its `type`, then
one of type total with tiers, notes and unevaluatedKinds.

Exit status: 1 with --strict if anything is not, or only partly, enforced. Pods
and policies with nothing to enforce (finished, no address, selects no pod) do not
count.

Examples:
  ringwall coverage --manifests ./cluster --config ringwall.yaml
  ringwall coverage --config ringwall.yaml --strict --accept host-network --accept same-node
  ringwall coverage --manifests ./cluster -o json | jq 'select(.state==\"not\")'")]
pub struct CoverageArgs {
    /// Folder of manifests (.yaml, .yml and .json, read recursively), or one file; - for standard input
    #[arg(long, value_name = "DIR", required_unless_present = "config")]
    manifests: Option<PathBuf>,
    /// Configuration file of the running instance; with --manifests, of the firewall to assume
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Pod network, in addition to those of Nodes and --config; may be repeated
    #[arg(long = "pod-cidr", value_name = "CIDR", requires = "manifests")]
    pod_cidrs: Vec<ipnet::IpNet>,
    /// Accept manifests without any pod, workload, namespace, node or policy as an empty cluster
    #[arg(long, requires = "manifests")]
    allow_empty: bool,
    /// Exit with status 1 if anything is not, or only partly, enforced
    #[arg(long)]
    strict: bool,
    /// With --strict: ignore this reason; may be repeated
    #[arg(long, value_name = "REASON", value_parser = reason, requires = "strict")]
    accept: Vec<Reason>,
}

fn reason(text: &str) -> Result<Reason, String> {
    Reason::ALL
        .into_iter()
        .find(|reason| reason.name() == text)
        .ok_or_else(|| {
            let known: Vec<&str> = Reason::ALL.iter().map(|reason| reason.name()).collect();
            format!("{text:?} is not a reason; reasons are: {}", known.join(", "))
        })
}

pub(super) fn run(args: &CoverageArgs, output: Output) -> anyhow::Result<ExitCode> {
    let config = match &args.config {
        Some(file) => Some(Config::load(file).map_err(|error| anyhow::anyhow!("{error}"))?),
        None => None,
    };
    let place = place(config.as_ref(), &args.pod_cidrs);
    let coverage = match (&args.manifests, &config) {
        (Some(manifests), _) => offline(args, manifests, &place)?,
        (None, Some(config)) => live(config, &place)?,
        (None, None) => bail!("give --manifests DIR, or --config FILE of a running instance"),
    };
    let mut out = io::BufWriter::new(io::stdout().lock());
    match output {
        Output::Json => lines(&coverage, &mut out)?,
        Output::Human => table(&coverage, &mut out)?,
    }
    out.flush()?;
    let lacks = args.strict && coverage.lacks(&args.accept);
    Ok(if lacks {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

/// Where the firewall of a configuration stands.
fn place(config: Option<&Config>, more: &[ipnet::IpNet]) -> FirewallPosition {
    let Some(config) = config else {
        return FirewallPosition::default();
    };
    let mut pod_cidrs = config.cluster.pod_cidrs.clone();
    pod_cidrs.extend(more);
    FirewallPosition {
        gateway: Some(config.kind == Kind::Gateway && !config.hosts_pods),
        pod_cidrs: Some(pod_cidrs),
    }
}

fn offline(args: &CoverageArgs, manifests: &Path, place: &FirewallPosition) -> anyhow::Result<Coverage> {
    let cluster = ClusterArgs {
        manifests: manifests.to_owned(),
        config: args.config.clone(),
        pod_cidrs: args.pod_cidrs.clone(),
        allow_empty: args.allow_empty,
    }
    .load()?;
    Ok(Coverage::of(&cluster, place))
}

/// Asks the control process of a configuration.
fn live(config: &Config, place: &FirewallPosition) -> anyhow::Result<Coverage> {
    let socket = config.runtime_dir.join(CONTROL_SOCKET);
    let request = serde_json::to_string(place)?;
    let answer =
        client::ask_control(&socket, "/v1/coverage", Some(&request), PATIENCE).with_context(|| {
            format!(
                "cannot ask {}; is `ringwall run` running with this configuration?",
                socket.display()
            )
        })?;
    if answer.status != 200 {
        bail!("{}", String::from_utf8_lossy(&answer.body).trim());
    }
    Ok(serde_json::from_slice(&answer.body)?)
}

fn lines(coverage: &Coverage, out: &mut impl Write) -> anyhow::Result<()> {
    let mut line = |kind: &str, value: Value| -> anyhow::Result<()> {
        let mut object = json!({"type": kind});
        if let (Some(object), Value::Object(fields)) = (object.as_object_mut(), value) {
            object.extend(fields);
        }
        Ok(writeln!(out, "{object}")?)
    };
    for pod in &coverage.pods {
        line("pod", serde_json::to_value(pod)?)?;
    }
    for policy in &coverage.policies {
        line("policy", serde_json::to_value(policy)?)?;
    }
    for (name, tally) in &coverage.namespaces {
        let mut object = json!({"namespace": name});
        if let (Some(object), Value::Object(fields)) = (object.as_object_mut(), serde_json::to_value(tally)?)
        {
            object.extend(fields);
        }
        line("namespace", object)?;
    }
    let mut total = serde_json::to_value(&coverage.total)?;
    total["generation"] = json!(coverage.generation);
    total["tiers"] = serde_json::to_value(&coverage.tiers)?;
    total["unevaluatedKinds"] = json!(coverage.unevaluated_kinds);
    total["notes"] = json!(coverage.notes);
    line("total", total)
}

const COLUMNS: [&str; 9] = [
    "namespace",
    "pods",
    "enforced",
    "partly",
    "not",
    "idle",
    "in isolated",
    "out isolated",
    "policies",
];

fn table(coverage: &Coverage, out: &mut impl Write) -> anyhow::Result<()> {
    let row = |name: &str, tally: &Tally| -> [String; 9] {
        let policies = match (tally.policies_not, tally.policies_idle) {
            (0, 0) => tally.policies.to_string(),
            (not, 0) => format!("{} ({not} not)", tally.policies),
            (0, idle) => format!("{} ({idle} idle)", tally.policies),
            (not, idle) => format!("{} ({not} not, {idle} idle)", tally.policies),
        };
        [
            name.to_owned(),
            tally.pods.to_string(),
            tally.enforced.to_string(),
            tally.partly.to_string(),
            tally.not.to_string(),
            tally.idle.to_string(),
            tally.ingress_isolated.to_string(),
            tally.egress_isolated.to_string(),
            policies,
        ]
    };
    let mut rows = vec![COLUMNS.map(str::to_owned)];
    rows.extend(coverage.namespaces.iter().map(|(name, tally)| row(name, tally)));
    rows.push(row("TOTAL", &coverage.total));
    let mut widths = [0; 9];
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    for row in &rows {
        let mut line = String::new();
        for (place, (cell, width)) in row.iter().zip(widths).enumerate() {
            let padded = if place == 0 {
                format!("{cell:width$}")
            } else {
                format!("  {cell:>width$}")
            };
            line.push_str(&padded);
        }
        writeln!(out, "{}", line.trim_end())?;
    }
    tiers(coverage, out)?;
    why(coverage, out)
}

/// The tiers in order, where there are others than that of NetworkPolicies.
fn tiers(coverage: &Coverage, out: &mut impl Write) -> anyhow::Result<()> {
    if coverage.policies.iter().all(|policy| policy.kind.is_none()) {
        return Ok(());
    }
    writeln!(out, "\nTiers, in the order in which they decide:")?;
    for tier in &coverage.tiers {
        writeln!(
            out,
            "  {}: {} {} {}, default {}",
            tier.name,
            super::count(tier.policies, "policy"),
            if tier.policies == 1 { "selects" } else { "select" },
            super::count(tier.pods, "pod"),
            tier.default,
        )?;
    }
    Ok(())
}

/// Each reason once, with what it means and who it is about.
fn why(coverage: &Coverage, out: &mut impl Write) -> anyhow::Result<()> {
    let mut by_reason: BTreeMap<Reason, Vec<String>> = BTreeMap::new();
    let pods = coverage
        .pods
        .iter()
        .map(|pod| (&pod.reasons, format!("{}/{}", pod.namespace, pod.name)));
    let policies = coverage.policies.iter().map(|policy| match &policy.kind {
        None => (&policy.reasons, format!("{}/{}", policy.namespace, policy.name)),
        Some(kind) if policy.namespace.is_empty() => (&policy.reasons, format!("{kind} {}", policy.name)),
        Some(kind) => {
            let name = format!("{kind} {}/{}", policy.namespace, policy.name);
            (&policy.reasons, name)
        }
    });
    for (reasons, name) in pods.chain(policies) {
        for reason in reasons {
            by_reason.entry(*reason).or_default().push(name.clone());
        }
    }
    for (reason, names) in &by_reason {
        writeln!(out, "\n{} ({}): {}", reason.name(), names.len(), reason.meaning())?;
        for name in names.iter().take(EXAMPLES) {
            writeln!(out, "  {name}")?;
        }
        if names.len() > EXAMPLES {
            writeln!(out, "  and {} more; -o json names all", names.len() - EXAMPLES)?;
        }
    }
    if !coverage.unevaluated_kinds.is_empty() {
        let kinds: Vec<&str> = coverage.unevaluated_kinds.iter().map(String::as_str).collect();
        writeln!(
            out,
            "\nNot enforced: {}: these kinds are not evaluated.",
            kinds.join(", ")
        )?;
    }
    let open: Vec<&str> = coverage
        .namespaces
        .iter()
        .filter(|(_, tally)| {
            let isolated = tally.ingress_isolated + tally.egress_isolated;
            tally.enforced + tally.partly > 0 && isolated == 0 && tally.tiered == 0
        })
        .map(|(name, _)| name.as_str())
        .collect();
    if !open.is_empty() {
        let shown: Vec<&str> = open.iter().take(EXAMPLES * 2).copied().collect();
        let more = if open.len() > shown.len() {
            format!(" and {} more", open.len() - shown.len())
        } else {
            String::new()
        };
        writeln!(
            out,
            "\nOpen, because no policy selects a pod there: {}{more}",
            shown.join(", ")
        )?;
    }
    if !coverage.notes.is_empty() {
        writeln!(out)?;
    }
    for note in &coverage.notes {
        writeln!(out, "{note}")?;
    }
    let none_has_address =
        coverage.pods.iter().all(|pod| pod.state == State::Idle) && !coverage.pods.is_empty();
    if none_has_address {
        writeln!(
            out,
            "No pod has an address, so it is unknown which of them this firewall sees."
        )?;
    }
    Ok(())
}
