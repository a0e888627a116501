//! `ringwall explain`: why a flow passes or does not, step by step, and the smallest change that would turn it round.

use std::{
    io::{self, Write},
    path::PathBuf,
    process::ExitCode,
};

use super::{
    ClusterArgs, Output,
    flow::{EndName, Service},
    judge::Judge,
};
use crate::explain::{
    Question, explain,
    report::Explanation,
    words::{Style, render},
};

/// Arguments of `ringwall explain`.
#[derive(Clone, Debug, clap::Args)]
#[command(after_long_help = "\
FROM and TO are addresses or namespace/pod; PORT/PROTO is 80/TCP, ICMP or a
protocol's number. For each direction the answer names every policy of the
pod's namespace, whether it selects the pod and at which requirement not, and
for each rule of those that do whether it matches or the first condition that
it fails at; then the verdict, and up to three of the smallest changes of a
label or policy that would turn it round, each tried out, with the number of
other pairs of endpoints that would change, too.

As JSON: one object with src, dst, verdict, egress, ingress, reasons (as in
`query`), notes, changes and no_change.

Examples:
  ringwall explain --manifests ./cluster shop/web shop/db 5432/TCP
  ringwall explain --manifests ./cluster 203.0.113.9 shop/web ICMP -o json")]
pub struct ExplainArgs {
    /// Source: an address or namespace/pod
    #[arg(value_name = "FROM", value_parser = EndName::read)]
    from: EndName,
    /// Destination: an address or namespace/pod
    #[arg(value_name = "TO", value_parser = EndName::read)]
    to: EndName,
    /// Destination port and protocol, such as 80/TCP, ICMP or 47
    #[arg(value_name = "PORT/PROTO", value_parser = Service::read)]
    service: Service,
    /// Folder of manifests: .yaml, .yml and .json, read recursively
    #[arg(long, value_name = "DIR")]
    manifests: PathBuf,
    /// Configuration file to take networks and unknownEndpoints from
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Pod network besides those of the Nodes and of --config; may be repeated
    #[arg(long = "pod-cidr", value_name = "CIDR")]
    pod_cidrs: Vec<ipnet::IpNet>,
}

pub(super) fn run(args: &ExplainArgs, output: Output) -> anyhow::Result<ExitCode> {
    let question = Question {
        src: args.from.clone(),
        dst: args.to.clone(),
        service: args.service,
    };
    let explanation = offline(args, &question)?;
    let mut out = io::stdout().lock();
    match output {
        Output::Json => writeln!(out, "{}", serde_json::to_string(&explanation)?)?,
        Output::Human => out.write_all(render(&explanation, Style::of_stdout()).as_bytes())?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Explains from a folder of manifests.
fn offline(args: &ExplainArgs, question: &Question) -> anyhow::Result<Explanation> {
    let cluster = ClusterArgs {
        manifests: args.manifests.clone(),
        config: args.config.clone(),
        pod_cidrs: args.pod_cidrs.clone(),
    }
    .load()?;
    let judge = Judge::new(&cluster)?;
    Ok(explain(&cluster, &judge, question)?)
}
