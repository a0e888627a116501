//! `ringwall matrix`: who can reach whom.

mod answers;
mod graph;
mod grid;
mod picture;
mod services;

use std::{
    io::{self, Write},
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::Context;
use ipnet::IpNet;
use ringwall_analyse::{
    flow::{EndName, Service},
    judge::{Fate, SAY_WHERE, word},
    refine::{Compiled, Decisions, RefineError},
};
use ringwall_policy::{Cluster, ObjectKey, tiers::Tiers};
use serde_json::json;

use self::{
    answers::{Answer, Answers, Asked},
    grid::{Cell, Grid, Group, groups},
};
use super::{ClusterArgs, Output, gaps::Gaps, progress::Progress, write_whole};

/// Arguments of `ringwall matrix`.
#[derive(Clone, Debug, clap::Args)]
#[command(after_long_help = "\
Without --port the answer covers every port of TCP, UDP and SCTP and, as
`other`, every protocol without ports. Endpoints of one namespace that all
policies treat alike share a row and a column, also in pictures.

As JSON: one object per pair of endpoints, with src, dst, verdict (allow, deny,
partial or depends) and the list of what is allowed. A verdict depends if an
ipBlock covers part of the pod network and the manifests do not say which address
a pod or workload will have: depends lists those ports (see --pod-cidr). invalid
lists policies that select either end and that an API server refuses, incomplete
the kinds that are not evaluated and, if there are cluster-wide or Calico
policies, tiers the tiers that decide. If rules ask for source ports, what is
allowed from some alone says so (5432/TCP from 1024-65535), and --port 5432/TCP is
partial; --port \"5432/TCP from 40000\" asks about one. A last object, host_network, lists pods on
their nodes' network, to which no policy applies.

--services shows who can reach each port of each Service: all of its endpoints,
some or none; as JSON, one object per source and port with src, dst
(svc:namespace/name), protocol, port, port_name, verdict (allow, partial, deny,
depends, reject or drop as in `query`), backends and allowed: how many endpoints
there are and how many are reached. --port and --namespace choose among them.

Examples:
  ringwall matrix --manifests ./cluster
  ringwall matrix --manifests ./cluster --port 80/TCP --external 203.0.113.9
  ringwall matrix --manifests ./cluster --services --external 203.0.113.9
  ringwall matrix --manifests ./cluster --namespace shop --svg shop.svg
  ringwall matrix --manifests ./cluster --dot - | dot -Tsvg > graph.svg
  ringwall matrix --manifests ./cluster -o json | jq 'select(.verdict==\"deny\")'")]
pub struct MatrixArgs {
    #[command(flatten)]
    cluster: ClusterArgs,
    /// Show only this port, such as 80/TCP or ICMP; may be repeated
    #[arg(long = "port", value_name = "PORT/PROTOCOL", value_parser = Service::read)]
    ports: Vec<Service>,
    /// Also show this address; may be repeated
    #[arg(long = "external", value_name = "ADDRESS")]
    external: Vec<std::net::IpAddr>,
    /// Show who can reach the Services instead, at each of their ports
    #[arg(long, conflicts_with_all = ["svg", "dot"])]
    services: bool,
    /// Show only this namespace; may be repeated
    #[arg(long = "namespace", value_name = "NAME")]
    namespaces: Vec<String>,
    /// Draw the matrix into this SVG file (`-`: standard output) instead of printing it
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
    /// Write the matrix as a Graphviz graph into this file (`-`: standard output) instead
    #[arg(long, value_name = "FILE")]
    dot: Option<PathBuf>,
}

pub(super) fn run(args: &MatrixArgs, output: Output) -> anyhow::Result<ExitCode> {
    let loaded = args.cluster.read()?;
    if args.services {
        return services::run(args, &loaded, output);
    }
    let cluster = loaded.cluster;
    let asked = match args.ports.is_empty() {
        true => Asked::Everything,
        false => Asked::Only(args.ports.clone()),
    };
    let readings = cluster.readings();
    let readings: Vec<&Cluster> = readings
        .as_ref()
        .map_or(vec![&cluster], |both| both.iter().collect());
    let compiled: Vec<Compiled<'_>> = readings
        .into_iter()
        .map(Compiled::of)
        .collect::<Result<_, RefineError>>()?;
    // Each address that is shown is an end of its own.
    let cuts: Vec<IpNet> = args
        .external
        .iter()
        .map(|address| address.to_canonical().into())
        .collect();
    let decisions = Decisions::of(&compiled, &cuts).context("there is nothing to compile")?;
    let groups = groups(&cluster, &decisions, &args.external, &args.namespaces);
    let mut answers = Answers::new(decisions, asked.clone());
    if let Some(missing) = args
        .namespaces
        .iter()
        .find(|name| !groups.iter().any(|it| it.namespace == **name))
    {
        anyhow::bail!("--namespace {missing}: no pods and no workloads there");
    }
    let gaps = Gaps::of(&cluster);
    let pictures = args.svg.is_some() || args.dot.is_some();
    if output == Output::Json && !pictures {
        let out = io::BufWriter::new(io::stdout().lock());
        json_lines(&cluster, &mut answers, &groups, &gaps, out)?;
        return Ok(ExitCode::SUCCESS);
    }
    let (kind, most) = if pictures {
        ("picture", MOST_DRAWN)
    } else {
        ("table", MOST_PRINTED)
    };
    anyhow::ensure!(
        groups.len() <= most,
        "{} rows are too many for a {kind} (most: {most}); choose namespaces with --namespace, or take -o json",
        groups.len()
    );
    let progress = Progress::new("judging");
    let grid = Grid::of(&mut answers, groups)?;
    drop(progress);
    let caption = Caption {
        what: asked.words(),
        warning: Some(gaps.words().join(" ")).filter(|words| !words.is_empty()),
    };
    if let Some(file) = &args.svg {
        save(file, &picture::svg(&grid, &caption))?;
    }
    if let Some(file) = &args.dot {
        save(file, &graph::dot(&grid, &caption))?;
    }
    if !pictures {
        table(&asked, &grid, &gaps, io::BufWriter::new(io::stdout().lock()))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// What a picture says besides its cells.
struct Caption {
    /// What was asked about.
    what: String,
    /// What the answers leave out.
    warning: Option<String>,
}

/// Writes a picture: to standard output where the file is `-`.
fn save(file: &Path, text: &str) -> anyhow::Result<()> {
    if file == Path::new("-") {
        return Ok(io::stdout().lock().write_all(text.as_bytes())?);
    }
    write_whole(file, text.as_bytes())
}

/// More than these cannot be read in a picture.
const MOST_DRAWN: usize = 200;

/// Nor these in a table, wherever it is scrolled.
const MOST_PRINTED: usize = 500;

/// The verdict on everything that was asked.
fn verdict(answer: &Answer) -> &'static str {
    let some = |fate| answer.fates.contains(&fate);
    match (some(Fate::Depends), some(Fate::Allow), some(Fate::Deny)) {
        (true, ..) => Fate::Depends.word(),
        (false, true, true) => "partial",
        (false, allow, _) => word(allow),
    }
}

fn json_lines(
    cluster: &Cluster,
    answers: &mut Answers<'_>,
    groups: &[Group],
    gaps: &Gaps<'_>,
    mut out: impl Write,
) -> anyhow::Result<()> {
    let mut names: Vec<&(EndName, u32)> = groups.iter().flat_map(|group| &group.members).collect();
    names.sort_by_key(|(name, _)| match name {
        EndName::Pod(key) => (0, key.to_string()),
        EndName::Address(_) | EndName::Service(_) => (1, name.to_string()),
    });
    let all = Tiers::of(cluster);
    let order: Vec<&str> = all.in_order().iter().map(|tier| tier.name.as_str()).collect();
    for (src, from) in names.iter().copied() {
        for (dst, to) in names.iter().copied() {
            let Some(answer) = answers.between((*from, *to))? else {
                continue;
            };
            let mut line = json!({
                "src": src.to_string(),
                "dst": dst.to_string(),
                "verdict": verdict(&answer),
                "allowed": answer.allowed,
            });
            if !answer.depends.is_empty() {
                line["depends"] = json!(answer.depends);
            }
            if !cluster.tiered.is_empty() {
                // In the order in which they decide.
                let order = order.iter().filter(|tier| answer.tiers.contains(**tier));
                line["tiers"] = json!(order.collect::<Vec<_>>());
            }
            if !cluster.unevaluated_kinds.is_empty() {
                line["incomplete"] = json!(cluster.unevaluated_kinds);
            }
            let ends: Vec<&ObjectKey> = [src, dst]
                .into_iter()
                .filter_map(|end| match end {
                    EndName::Pod(key) => Some(key),
                    EndName::Address(_) | EndName::Service(_) => None,
                })
                .collect();
            let invalid = gaps.invalid_for(&ends);
            if !invalid.is_empty() {
                line["invalid"] = json!(invalid);
            }
            writeln!(out, "{line}")?;
        }
    }
    if !gaps.host_network.is_empty() {
        let pods: Vec<String> = gaps.host_network.iter().map(ToString::to_string).collect();
        writeln!(out, "{}", json!({ "host_network": pods }))?;
    }
    Ok(out.flush()?)
}

const ALL: &str = "+";
const NONE: &str = ".";
const SAME: &str = "\\";
const DEPENDS: &str = "?";

fn table(asked: &Asked, grid: &Grid, gaps: &Gaps<'_>, mut out: impl Write) -> anyhow::Result<()> {
    let groups = &grid.groups;
    if groups.is_empty() {
        let which = match gaps.host_network.is_empty() {
            true => "No pods and no workloads in the manifests.",
            false => "No pods and no workloads that policies apply to.",
        };
        writeln!(out, "{which}")?;
        for line in gaps.words() {
            writeln!(out, "{line}")?;
        }
        return Ok(out.flush()?);
    }
    let rows: Vec<Vec<String>> = grid
        .cells
        .iter()
        .map(|row| {
            row.iter()
                .map(|cell| match cell {
                    Cell::Apart => String::new(),
                    Cell::Itself => SAME.to_owned(),
                    Cell::All => ALL.to_owned(),
                    Cell::Nothing => NONE.to_owned(),
                    Cell::Depends => DEPENDS.to_owned(),
                    Cell::Some(mark) => letter(*mark),
                })
                .collect()
        })
        .collect();

    let number_width = groups.len().to_string().len();
    let label = |group: &Group| {
        let first = group.members.first();
        let first = first.map(|(name, _)| name.to_string()).unwrap_or_default();
        let members: Vec<&ObjectKey> = group
            .members
            .iter()
            .filter_map(|(name, _)| match name {
                EndName::Pod(key) => Some(key),
                EndName::Address(_) | EndName::Service(_) => None,
            })
            .collect();
        let mark = if gaps.invalid_for(&members).is_empty() {
            ""
        } else {
            " !"
        };
        match group.members.len() {
            0 | 1 => format!("{first}{mark}"),
            many => format!("{first} and {} more{mark}", many - 1),
        }
    };
    let labels: Vec<String> = groups.iter().map(label).collect();
    let label_width = labels
        .iter()
        .map(|label| label.chars().count())
        .max()
        .unwrap_or(0)
        .max("from \\ to".len());
    let cell_width = rows
        .iter()
        .flatten()
        .map(String::len)
        .max()
        .unwrap_or(1)
        .max(number_width);
    write!(out, "{:number_width$}  {:label_width$}", "", "from \\ to")?;
    for number in 1..=groups.len() {
        write!(out, " {number:>cell_width$}")?;
    }
    writeln!(out)?;
    let mut namespace: Option<&str> = None;
    for (((group, label), row), number) in groups.iter().zip(&labels).zip(&rows).zip(1..) {
        if namespace.is_some_and(|last| last != group.namespace) {
            writeln!(out)?;
        }
        namespace = Some(&group.namespace);
        write!(out, "{number:>number_width$}  {label:label_width$}")?;
        for cell in row {
            write!(out, " {cell:>cell_width$}")?;
        }
        writeln!(out)?;
    }

    writeln!(out)?;
    writeln!(out, "{ALL} {}   {NONE} nothing   {SAME} itself", asked.words())?;
    for (index, mark) in grid.marks.iter().enumerate() {
        writeln!(out, "{} {}", letter(index), mark.join(" "))?;
    }
    if grid.depends() {
        writeln!(
            out,
            "{DEPENDS} depends on the address that a pod will have{SAY_WHERE}"
        )?;
    }
    if labels.iter().any(|label| label.ends_with(" !")) {
        writeln!(out, "! selected by an invalid policy")?;
    }
    for line in gaps.words() {
        writeln!(out, "{line}")?;
    }
    Ok(out.flush()?)
}

/// a, b, ... z, aa, ab, ...
fn letter(index: usize) -> String {
    let last = char::from(b'a' + (index % 26) as u8).to_string();
    match index / 26 {
        0 => last,
        more => letter(more - 1) + &last,
    }
}
