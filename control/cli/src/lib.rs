//! The command line. Each command is one variant here and one function in its own module.
#![forbid(unsafe_code)]

mod check;
#[cfg(feature = "afxdp")]
mod cni;
mod compile;
mod coverage;
mod diff;
mod explain;
mod flows;
mod gaps;
mod matrix;
mod preflight;
mod progress;
mod query;
mod replay;
mod service_reach;
mod shell;
#[cfg(feature = "afxdp")]
mod status;
#[cfg(feature = "afxdp")]
mod upgrade;
mod verify;
mod whole_file;

use std::{
    io::{self, Write},
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::{Parser, Subcommand, ValueEnum};
use ringwall_policy::{Cluster, Settings};
use ringwall_source::{
    folder,
    folder::{Loaded, Severity},
};

use self::{progress::Progress, whole_file::write_whole};

/// Kubernetes network firewall: NetworkPolicy enforced by an AF_XDP dataplane.
#[derive(Debug, Parser)]
#[command(
    name = "ringwall",
    version = ringwall_messages::RELEASE,
    arg_required_else_help = true,
    max_term_width = 100
)]
pub struct Cli {
    /// Output format: for people, or one JSON object per line.
    #[arg(short, long, global = true, value_enum, default_value_t = Output::Human)]
    pub output: Output,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// How answers are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// For people.
    Human,
    /// JSON, one object per line.
    Json,
}

/// Every command. To add one: a variant here, an arm in [`Command::run`], a module with one function.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Evaluate a list of flows: whether each passes, and which policy and rule decide
    Query(query::QueryArgs),
    /// Show who can reach whom
    Matrix(matrix::MatrixArgs),
    /// Explain step by step why a flow passes or not, and which change would flip the verdict
    Explain(explain::ExplainArgs),
    /// Check manifests: errors, likely mistakes, and proof that the compiled policies mean what they say
    Check(check::CheckArgs),
    /// Show which flows two folders of manifests treat differently
    Diff(diff::DiffArgs),
    /// Show what the dataplane does with each packet of a capture
    Replay(replay::ReplayArgs),
    /// Compile manifests to a snapshot file
    Compile(compile::CompileArgs),
    /// Show which pods, namespaces and policies are enforced, and why others are not
    Coverage(coverage::CoverageArgs),
    /// Compute the MTU that pods need, for each network and tunnel
    #[command(after_help = preflight::HELP)]
    Preflight(preflight::PreflightArgs),
    /// Start the firewall
    #[cfg(feature = "afxdp")]
    #[command(after_help = ringwall_process::log::HELP)]
    Run(ringwall_appliance::supervisor::RunArgs),
    /// List flows and recent drops of the running firewall, with the policies that decided
    Flows(flows::FlowsArgs),
    /// Show processes, policy generation, packet counters and alarms
    #[cfg(feature = "afxdp")]
    Status(crate::status::StatusArgs),
    /// Replace the running processes with another version, under traffic
    #[cfg(feature = "afxdp")]
    #[command(after_help = crate::upgrade::HELP)]
    Upgrade(crate::upgrade::UpgradeArgs),
    /// Put ringwall's plugin behind a node's CNI, or take it away
    #[cfg(feature = "afxdp")]
    #[command(after_help = crate::cni::HELP)]
    Cni(crate::cni::CniArgs),
    /// Remove ringwall from this machine
    #[cfg(feature = "afxdp")]
    Detach(ringwall_appliance::detach::DetachArgs),
    /// What this program is, for the supervisor of another one
    #[cfg(feature = "afxdp")]
    #[command(hide = true)]
    About(ringwall_appliance::about::AboutArgs),
    /// The process that owns the ports; started by `run`
    #[cfg(feature = "afxdp")]
    #[command(hide = true)]
    Dataplane(ringwall_appliance::dataplane::DataplaneArgs),
    /// The process that owns the policies; started by `run`
    #[command(hide = true)]
    Control(ringwall_controller::ControlArgs),
    /// Print a completion script for a shell
    Completions(shell::CompletionsArgs),
    /// Write the manual pages into a folder
    Man(shell::ManArgs),
}

impl Command {
    fn run(self, output: Output) -> anyhow::Result<ExitCode> {
        #[cfg_attr(
            not(feature = "afxdp"),
            allow(unused_variables, reason = "only the appliance's commands ask")
        )]
        let json = output == Output::Json;
        match self {
            Self::Query(args) => query::run(&args, output),
            Self::Matrix(args) => matrix::run(&args, output),
            Self::Explain(args) => explain::run(&args, output),
            Self::Flows(args) => flows::run(&args, output),
            Self::Check(args) => check::run(&args, output),
            Self::Diff(args) => diff::run(&args, output),
            Self::Replay(args) => replay::run(&args, output),
            Self::Compile(args) => compile::run(&args, output),
            Self::Coverage(args) => coverage::run(&args, output),
            Self::Preflight(args) => preflight::run(&args, output),
            #[cfg(feature = "afxdp")]
            Self::Run(args) => ringwall_appliance::supervisor::run(&args),
            #[cfg(feature = "afxdp")]
            Self::Status(args) => crate::status::run(&args, json),
            #[cfg(feature = "afxdp")]
            Self::Upgrade(args) => crate::upgrade::run(&args, json),
            #[cfg(feature = "afxdp")]
            Self::Cni(args) => crate::cni::run(&args, json),
            #[cfg(feature = "afxdp")]
            Self::About(args) => ringwall_appliance::about::run(&args),
            #[cfg(feature = "afxdp")]
            Self::Detach(args) => ringwall_appliance::detach::run(&args, json),
            #[cfg(feature = "afxdp")]
            Self::Dataplane(args) => ringwall_appliance::dataplane::run(&args),
            Self::Control(args) => ringwall_controller::run(&args),
            Self::Completions(args) => shell::completions(&args),
            Self::Man(args) => shell::manual(&args),
        }
    }
}

/// Where the offline commands take the cluster from.
#[derive(Clone, Debug, clap::Args)]
pub struct ClusterArgs {
    /// Folder of manifests (.yaml, .yml and .json, read recursively), or one file; - for standard input
    #[arg(long, value_name = "DIR")]
    pub manifests: PathBuf,
    /// Configuration file with pod, node and Service networks and unknownEndpoints
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Pod network, in addition to those of Nodes and --config; may be repeated
    #[arg(long = "pod-cidr", value_name = "CIDR")]
    pub pod_cidrs: Vec<ipnet::IpNet>,
    /// Accept manifests without any pod, workload, namespace, node or policy as an empty cluster
    #[arg(long)]
    pub allow_empty: bool,
}

impl ClusterArgs {
    /// What the configuration and the flags say about the cluster.
    fn settings(&self) -> anyhow::Result<Settings> {
        let mut settings = match &self.config {
            None => Settings::default(),
            Some(file) => {
                let networks = ringwall_config::Config::load(file)
                    .map_err(|error| anyhow::anyhow!("{error}"))?
                    .cluster;
                Settings {
                    pod_cidrs: networks.pod_cidrs,
                    node_cidrs: networks.node_cidrs,
                    service_cidrs: networks.service_cidrs,
                    allow_unknown: networks.unknown_endpoints == ringwall_config::UnknownEndpoints::Allow,
                }
            }
        };
        settings
            .pod_cidrs
            .extend(self.pod_cidrs.iter().map(ipnet::IpNet::trunc));
        Ok(settings)
    }

    /// The cluster that the manifests describe. Policies that are invalid isolate; standard error says so.
    fn load(&self) -> anyhow::Result<Cluster> {
        Ok(self.read()?.cluster)
    }

    /// All that the manifests hold, likewise.
    fn read(&self) -> anyhow::Result<Loaded> {
        let settings = self.settings()?;
        let loaded = {
            let _progress = Progress::new("reading manifests");
            folder::load(&self.manifests, &settings)?
        };
        for problem in loaded
            .problems
            .iter()
            .filter(|problem| problem.severity == Severity::Error)
        {
            eprintln!("ringwall: {problem}");
        }
        refuse_nothing(&self.manifests, &loaded, self.allow_empty)?;
        Ok(loaded)
    }
}

/// Whether an argument means standard input.
fn is_stdin(path: &Path) -> bool {
    path.as_os_str() == "-"
}

/// Refuses to read two things from standard input.
///
/// # Errors
/// Both mean standard input.
fn not_both_stdin(a: (&str, &Path), b: (&str, &Path)) -> anyhow::Result<()> {
    anyhow::ensure!(
        !(is_stdin(a.1) && is_stdin(b.1)),
        "{} and {} cannot both be standard input; write one of them to a file",
        a.0,
        b.0
    );
    Ok(())
}

/// A folder that says nothing says that everything is allowed, and is most likely not the one that was meant: a pipeline
/// with a wrong path must not pass.
///
/// # Errors
/// There is no object that policy is about.
fn refuse_nothing(manifests: &Path, loaded: &Loaded, allowed: bool) -> anyhow::Result<()> {
    let cluster = &loaded.cluster;
    let empty = cluster.pods.is_empty()
        && cluster.policies.is_empty()
        && cluster.tiered.is_empty()
        && cluster.namespaces.is_empty()
        && cluster.nodes.is_empty()
        && cluster.unevaluated_kinds.is_empty();
    let what = match loaded.files {
        0 => "no manifest (.yaml, .yml, .json)",
        _ => "no pod, workload, namespace, node or policy",
    };
    anyhow::ensure!(
        !empty || allowed,
        "{what} in {}; use --allow-empty if this is intended",
        if is_stdin(manifests) {
            "standard input".into()
        } else {
            manifests.to_string_lossy()
        }
    );
    Ok(())
}

/// `1 pod`, `2 pods`, `2 policies`, `2 classes`.
pub(crate) fn count(number: usize, what: &str) -> String {
    match (number, what) {
        (1, what) => format!("1 {what}"),
        (n, "policy") => format!("{n} policies"),
        (n, "class" | "address") => format!("{n} {what}es"),
        (n, what) => format!("{n} {what}s"),
    }
}

/// Parses the command line, runs the command, turns its outcome into an exit status: 0 fine, 1 the answer is no,
/// 2 bad input or usage.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) if error.use_stderr() && json_is_asked_for(std::env::args()) => {
            let text = error.render().to_string();
            let words = text.lines().map(str::trim).take_while(|line| !line.is_empty());
            let message = words.collect::<Vec<_>>().join(" ");
            tell(message.trim_start_matches("error: "), Output::Json);
            return ExitCode::from(2);
        }
        Err(error) => error.exit(),
    };
    match cli.command.run(cli.output) {
        Ok(code) => code,
        Err(error) => {
            let gone = |cause: &io::Error| cause.kind() == io::ErrorKind::BrokenPipe;
            // Who reads no further (`| head`) wants no message either.
            if !error.chain().filter_map(|cause| cause.downcast_ref()).any(gone) {
                tell(&ringwall_process::whole_message(&error), cli.output);
            }
            ExitCode::from(2)
        }
    }
}

/// Says why a command could not do its work: to a program on standard output, unless that is what failed.
fn tell(message: &str, output: Output) {
    let object = serde_json::json!({ "error": message });
    if ringwall_process::log::is_json() && output == Output::Human {
        // All of that stream is JSON.
        drop(writeln!(io::stderr(), "{object}"));
    } else if output == Output::Human || writeln!(io::stdout(), "{object}").is_err() {
        // Where the message cannot be written, the exit status has to do.
        drop(writeln!(io::stderr(), "ringwall: {message}"));
    }
}

/// Whether a command line that cannot be understood asks for JSON.
fn json_is_asked_for(arguments: impl Iterator<Item = String>) -> bool {
    let arguments: Vec<String> = arguments.take_while(|argument| argument != "--").collect();
    let joined = |argument: &String| matches!(argument.as_str(), "--output=json" | "-ojson" | "-o=json");
    let apart = |pair: &[String]| match pair {
        [option, value] => (option == "-o" || option == "--output") && value == "json",
        _ => false,
    };
    arguments.iter().any(joined) || arguments.windows(2).any(apart)
}
