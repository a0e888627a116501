//! `ringwall diff`: exactly which flows two folders of manifests decide differently.

mod capture;
mod lines;
mod reach;
mod recorded;
mod services;
mod sums;
mod table;

use std::{
    collections::BTreeSet,
    io::{self, IsTerminal, Write},
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::Context;
use ringwall_analyse::{refine, refine::Compiled};
use ringwall_policy::{Cluster, Settings, services::Services};
use ringwall_source::{
    folder::{self, Loaded, ManifestObject},
    staged::Staged,
};
use serde_json::json;

use super::{
    ClusterArgs, Output, count,
    gaps::{Gaps, invalid_words},
    progress::Progress,
};

/// More regions than anybody reads.
const MANY: usize = 300;

/// Arguments of `ringwall diff`.
#[derive(Clone, Debug, clap::Args)]
#[command(after_long_help = "\
Compares the verdicts of both folders for every possible packet, not the text.
Pods and workloads are matched by namespace/name; those that only one folder has
are reported as added or removed, not as changed verdicts.

As JSON: one object per region of flows that change alike, sorted:

  {\"src\":{\"pods\":[\"shop/web\"],\"cidrs\":[]},\"dst\":{\"pods\":[\"shop/db\"],\"cidrs\":[]},
   \"protocol\":\"TCP\",\"ports\":[[5432,5432]],\"from\":\"allow\",\"to\":\"deny\",\"policies\":[\"shop/db\"]}

It means every pod and address of src to every one of dst. protocol is TCP, UDP,
SCTP or other (every protocol without ports; ports is null). If rules ask for source
ports and these matter, src_ports lists them. cidrs exclude pods' addresses inside them. policies are those that decide before or after, in the
direction that changes; tiers are theirs, if there are cluster-wide or Calico
policies. \"except\":\"self\" excludes a pod's traffic to itself, which always
passes; \"family\" limits a region to IPv4 or IPv6. from or to is depends if an
ipBlock covers part of the pod network and the manifests do not say which address
a pod or workload will have (see --pod-cidr). Endpoints of one folder follow as
{\"endpoint\":\"shop/new\",\"change\":\"added\"} or removed.

--flows and --pcap show which of the recorded flows change, most frequent first,
then a summary. A flow to a Service (svc:namespace/name, or an address of one)
changes if the verdict over all of its endpoints does (as in `query`).

--services shows who reaches which port of which Service with another verdict over
its endpoints, also where none of a pod's verdicts changes: another selector or
targetPort, fewer ready endpoints. Only pods of both folders are asked.
As JSON: one object per pod and port, null where a folder has no such Service port:

  {\"src\":\"shop/client\",\"dst\":\"svc:shop/web\",\"protocol\":\"TCP\",\"port\":80,
   \"from\":{\"verdict\":\"allow\",\"backends\":2,\"allowed\":2},\"to\":null}

Text output sums up more than 300 regions by namespace; --all shows every region.
JSON always has all of them.

The last objects list what the comparison leaves out, if anything:
{\"incomplete\":[kinds],\"incomplete_differs\":true} for policies that are not
evaluated, and whether they differ, {\"invalid\":[policies]} for policies that an
API server refuses, and {\"host_network\":[pods]} for pods to which no policy
applies.

Exit status: 0; with --exit-code 1 if a verdict or a policy that is not evaluated
changes; 2 if the input cannot be read.

With --staged, the folder of --manifests is compared with itself as it would be
if its staged policies were enforced: Calico's StagedNetworkPolicy,
StagedGlobalNetworkPolicy and StagedKubernetesNetworkPolicy, and NetworkPolicies
annotated with ringwall.io/mode: staged. A list of them comes first, with the
pairs of endpoints that each alone would open and close. `ringwall flows --staged`
says which flows of a running instance would be decided differently.

Examples:
  ringwall diff --from ./cluster --to ./cluster-new
  ringwall diff --staged --manifests ./cluster
  ringwall diff --from ./main --to ./branch --services
  ringwall diff --from ./main --to ./branch --exit-code -o json
  ringwall diff --from ./main --to ./branch --pcap node1.pcapng")]
pub struct DiffArgs {
    /// Folder of manifests before the change
    #[arg(long, value_name = "DIR", required_unless_present = "staged")]
    from: Option<PathBuf>,
    /// Folder of manifests after the change
    #[arg(long, value_name = "DIR", required_unless_present = "staged")]
    to: Option<PathBuf>,
    /// Compare what the manifests enforce now with what they would enforce with the staged policies
    #[arg(long, requires = "manifests", conflicts_with_all = ["from", "to"])]
    staged: bool,
    /// With --staged: folder of manifests; - for standard input
    #[arg(long, value_name = "DIR", requires = "staged")]
    manifests: Option<PathBuf>,
    /// With --staged: only this staged policy, as namespace/name or, if cluster-wide, name
    #[arg(long, value_name = "NAME", requires = "staged")]
    policy: Option<String>,
    /// Configuration file with pod, node and Service networks and unknownEndpoints, for both folders
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Pod network, in addition to those of Nodes and --config, for both folders; may be repeated
    #[arg(long = "pod-cidr", value_name = "CIDR")]
    pod_cidrs: Vec<ipnet::IpNet>,
    /// Accept manifests without any pod, workload, namespace, node or policy as an empty cluster
    #[arg(long)]
    allow_empty: bool,
    /// Show which of these recorded flows change (format of `query`; - for standard input)
    #[arg(long, value_name = "FILE", conflicts_with = "pcap")]
    flows: Option<PathBuf>,
    /// Show which flows of this capture change (pcap or pcapng)
    #[arg(long, value_name = "FILE")]
    pcap: Option<PathBuf>,
    /// Show who reaches which Services with another verdict instead
    #[arg(long, conflicts_with_all = ["flows", "pcap", "all"])]
    services: bool,
    /// Show every region, even if there are more than 300
    #[arg(long)]
    all: bool,
    /// Exit with status 1 if anything changes
    #[arg(long)]
    exit_code: bool,
}

/// A state that is compared with another.
struct Side {
    cluster: Cluster,
    services: Services,
}

impl DiffArgs {
    fn load(&self, manifests: &std::path::Path) -> anyhow::Result<Loaded> {
        let args = ClusterArgs {
            manifests: manifests.to_owned(),
            config: self.config.clone(),
            pod_cidrs: self.pod_cidrs.clone(),
            allow_empty: self.allow_empty,
        };
        args.read()
    }

    /// The two states that are compared.
    fn sides(&self, output: Output) -> anyhow::Result<[Side; 2]> {
        let flows = self.flows.as_deref().map(|file| ("--flows", file));
        if let Some(manifests) = &self.manifests {
            if let Some(flows) = flows {
                super::not_both_stdin(("--manifests", manifests), flows)?;
            }
            let loaded = self.load(manifests)?;
            let named = self
                .policy
                .as_deref()
                .map(|name| staged_named(&loaded, name))
                .transpose()?;
            write_staged(&loaded, named, output)?;
            let side = |cluster| Side {
                cluster,
                services: loaded.services.clone(),
            };
            return Ok([side(loaded.cluster.clone()), side(loaded.pending(named))]);
        }
        let (Some(from), Some(to)) = (&self.from, &self.to) else {
            anyhow::bail!("--from and --to are missing");
        };
        super::not_both_stdin(("--from", from), ("--to", to))?;
        if let Some(flows) = flows {
            super::not_both_stdin(("--from", from), flows)?;
            super::not_both_stdin(("--to", to), flows)?;
        }
        let side = |manifests| -> anyhow::Result<Side> {
            let loaded = self.load(manifests)?;
            Ok(Side {
                cluster: loaded.cluster,
                services: loaded.services,
            })
        };
        Ok([side(from)?, side(to)?])
    }
}

/// The staged policy of a name.
fn staged_named<'a>(loaded: &'a Loaded, name: &str) -> anyhow::Result<&'a Staged> {
    let mut found = loaded.staged.iter().filter(|staged| staged.name() == name);
    match (found.next(), found.next()) {
        (Some(staged), None) => Ok(staged),
        (Some(_), Some(_)) => {
            anyhow::bail!("--policy {name}: several staged policies have this name; rename one")
        }
        (None, _) => {
            let known: Vec<String> = loaded.staged.iter().map(Staged::name).collect();
            match known.as_slice() {
                [] => anyhow::bail!("--policy {name}: the manifests hold no staged policy"),
                known => anyhow::bail!(
                    "--policy {name}: no staged policy has this name; there are: {}",
                    known.join(", ")
                ),
            }
        }
    }
}

/// Lists what is staged, and how many pairs of endpoints each of it alone would open and close.
fn write_staged(loaded: &Loaded, named: Option<&Staged>, output: Output) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    let all = loaded
        .staged
        .iter()
        .filter(|staged| named.is_none_or(|named| named == *staged));
    let mut any = false;
    for staged in all {
        any = true;
        let pending = loaded.pending(Some(staged));
        let (opened, closed) = with_difference([&loaded.cluster, &pending], |found| {
            let pairs = found.totals.pairs().map(|(_, pairs)| pairs);
            Ok(pairs.fold((0, 0), |(opened, closed), it| {
                (opened + it.opened, closed + it.closed)
            }))
        })?;
        let (kind, name, action) = (staged.kind, staged.name(), staged.action.word());
        match output {
            Output::Human => writeln!(
                out,
                "{kind} {name} ({action}): would open {} and close {}",
                count(opened as usize, "pair"),
                count(closed as usize, "pair"),
            )?,
            Output::Json => writeln!(
                out,
                "{}",
                json!({"staged": name, "kind": kind, "action": action, "opened": opened, "closed": closed})
            )?,
        }
    }
    if !any && matches!(output, Output::Human) {
        writeln!(out, "No policy is staged.")?;
    }
    Ok(())
}

/// Compares two states.
fn with_difference<T>(
    [from, to]: [&Cluster; 2],
    then: impl FnOnce(&refine::Difference<'_>) -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    let progress = Progress::new("compiling");
    let readings = |cluster: &Cluster| match cluster.readings() {
        Some(readings) => readings.to_vec(),
        None => vec![cluster.clone()],
    };
    let (from, to) = (readings(from), readings(to));
    let (from, to) = (compiled(&from)?, compiled(&to)?);
    progress.stage("comparing");
    let found = refine::difference_of_readings(&from, &to)?.context("there is nothing to compare")?;
    drop(progress);
    then(&found)
}

/// What of the outcome the exit status is about.
struct Outcome {
    changes: bool,
    /// Input that could not be understood.
    failed: bool,
}

pub(super) fn run(args: &DiffArgs, output: Output) -> anyhow::Result<ExitCode> {
    let sides = args.sides(output)?;
    let clusters = sides.each_ref().map(|side| &side.cluster);
    with_difference(clusters, |found| tell(args, &sides, found, output))
}

fn tell(
    args: &DiffArgs,
    sides: &[Side; 2],
    found: &refine::Difference<'_>,
    output: Output,
) -> anyhow::Result<ExitCode> {
    let mut out = io::BufWriter::with_capacity(1 << 16, io::stdout().lock());
    let style = table::Style {
        colour: io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none(),
    };
    let outcome = if args.services {
        reach::tell(sides, output, &mut out)?
    } else if let Some(file) = &args.flows {
        let recorded = recorded::read_flows(file, found.source_spans())?;
        recorded::tell(found, sides, recorded, output, style, &mut out)?
    } else if let Some(file) = &args.pcap {
        let recorded = capture::read(file, found.source_spans())?;
        recorded::tell(found, sides, recorded, output, style, &mut out)?
    } else {
        match output {
            Output::Human if found.regions.len() > MANY && !args.all => sums::write(found, &mut out)?,
            Output::Human => table::write(found, style, &mut out)?,
            Output::Json => lines::write(found, &mut out)?,
        }
        Outcome {
            changes: !found.regions.is_empty() || !found.one_sided.is_empty(),
            failed: false,
        }
    };
    let unknown = unevaluated_change(args, found)?;
    let gaps = Left::of(found, unknown);
    match output {
        Output::Human => gaps.words(&mut out)?,
        Output::Json => gaps.lines(&mut out)?,
    }
    out.flush()?;
    Ok(match outcome {
        Outcome { failed: true, .. } => ExitCode::from(2),
        Outcome { changes, .. } if args.exit_code && (changes || unknown) => ExitCode::from(1),
        _ => ExitCode::SUCCESS,
    })
}

fn compiled(readings: &[Cluster]) -> Result<Vec<Compiled<'_>>, refine::RefineError> {
    readings.iter().map(Compiled::of).collect()
}

/// Whether policies that are not evaluated differ: then it is unknown what else does.
fn unevaluated_change(args: &DiffArgs, found: &refine::Difference<'_>) -> anyhow::Result<bool> {
    let kinds = incomplete(found);
    if kinds.is_empty() {
        return Ok(false);
    }
    let read = |manifests: &Path| -> anyhow::Result<Vec<(String, String)>> {
        let (_, written) = folder::inspect(manifests, &Settings::default())?;
        // A kind, or what of it is not evaluated: "nodes peers of" a kind.
        let kind_of = |text: &str| -> Option<String> {
            let name = text.split('.').next()?;
            Some(name.rsplit(' ').next()?.to_owned())
        };
        let kinds: BTreeSet<String> = kinds.iter().filter_map(|kind| kind_of(kind)).collect();
        let meant = |it: &&ManifestObject| kinds.contains(it.kind());
        let mut found: Vec<(String, String)> = written
            .iter()
            .filter(meant)
            .map(|it| (it.label().to_owned(), it.value().to_string()))
            .collect();
        found.sort_unstable();
        Ok(found)
    };
    // What is staged leaves everything else as it is.
    let (Some(from), Some(to)) = (&args.from, &args.to) else {
        return Ok(false);
    };
    Ok(read(from)? != read(to)?)
}

/// What a difference leaves out.
struct Left {
    incomplete: Vec<String>,
    /// Whether what is not evaluated differs.
    unknown: bool,
    invalid: Vec<String>,
    host_network: Vec<String>,
}

impl Left {
    fn of(found: &refine::Difference<'_>, unknown: bool) -> Self {
        let sides: Vec<Gaps<'_>> = found
            .ends
            .sides
            .iter()
            .map(|side| Gaps::of(side.cluster))
            .collect();
        let all = |of: &dyn Fn(&Gaps<'_>) -> Vec<String>| {
            let all: BTreeSet<String> = sides.iter().flat_map(of).collect();
            all.into_iter().collect()
        };
        Self {
            incomplete: incomplete(found),
            unknown,
            invalid: all(&|gaps| gaps.invalid()),
            host_network: all(&|gaps| gaps.host_network.iter().map(ToString::to_string).collect()),
        }
    }

    fn words(&self, out: &mut impl Write) -> io::Result<()> {
        if self.unknown {
            writeln!(
                out,
                "They are not the same on both sides: other verdicts may change."
            )?;
        }
        if let Some(words) = invalid_words(&self.invalid) {
            writeln!(out, "{words}")?;
        }
        if !self.host_network.is_empty() {
            writeln!(
                out,
                "{} on the network of nodes, where no policy applies: not compared.",
                count(self.host_network.len(), "pod")
            )?;
        }
        Ok(())
    }

    fn lines(&self, out: &mut impl Write) -> io::Result<()> {
        if !self.incomplete.is_empty() {
            let line = json!({ "incomplete": self.incomplete, "incomplete_differs": self.unknown });
            writeln!(out, "{line}")?;
        }
        for (key, names) in [("invalid", &self.invalid), ("host_network", &self.host_network)] {
            if !names.is_empty() {
                writeln!(out, "{}", json!({ key: names }))?;
            }
        }
        Ok(())
    }
}

/// Policy kinds that either side does not evaluate yet.
fn incomplete(found: &refine::Difference<'_>) -> Vec<String> {
    let sides = found.ends.sides.iter();
    let kinds = sides.flat_map(|side| side.cluster.unevaluated_kinds.iter().cloned());
    let kinds: std::collections::BTreeSet<String> = kinds.collect();
    kinds.into_iter().collect()
}
