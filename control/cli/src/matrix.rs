//! `ringwall matrix`: who can reach whom.

mod graph;
mod grid;
mod picture;

use std::{
    collections::{BTreeSet, HashMap, hash_map::Entry},
    io::{self, Write},
    path::{Path, PathBuf},
    process::ExitCode,
};

use ringwall_analyse::{
    flow::{EndName, Service},
    judge::{Fate, Judge, SAY_WHERE, word},
};
use ringwall_policy::{Cluster, ObjectKey, tiers::Tiers};
use serde_json::json;

use self::grid::{Cell, Grid, Group, groups};
use super::{ClusterArgs, Output, gaps::Gaps, progress::Progress, span::Asked, write_whole};

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
policies, tiers the tiers that decide. A last object, host_network, lists pods on
their nodes' network, to which no policy applies.

Examples:
  ringwall matrix --manifests ./cluster
  ringwall matrix --manifests ./cluster --port 80/TCP --external 203.0.113.9
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
    let cluster = args.cluster.load()?;
    let judge = Judge::new(&cluster)?;
    let asked = if args.ports.is_empty() {
        Asked::everything(&cluster)
    } else {
        Asked::only(&args.ports)
    };
    let groups = groups(&cluster, &judge, &args.external, &args.namespaces);
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
        json_lines(&cluster, &judge, &asked, &groups, &gaps, out)?;
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
    let grid = Grid::of(&cluster, &judge, &asked, groups).map_err(anyhow::Error::msg)?;
    drop(progress);
    let caption = Caption {
        what: what(&cluster, &asked),
        warning: Some(gaps.words().join(" ")).filter(|words| !words.is_empty()),
    };
    if let Some(file) = &args.svg {
        save(file, &picture::svg(&grid, &caption))?;
    }
    if let Some(file) = &args.dot {
        save(file, &graph::dot(&grid, &caption))?;
    }
    if !pictures {
        table(
            &cluster,
            &asked,
            &grid,
            &gaps,
            io::BufWriter::new(io::stdout().lock()),
        )?;
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

/// What becomes of the asked, and the tiers that decide.
type Fates = (Vec<Fate>, BTreeSet<String>);

/// Asks about two ends; None where the two have no address family in common.
fn fates(
    cluster: &Cluster,
    judge: &Judge,
    asked: &Asked,
    src: &EndName,
    dst: &EndName,
) -> Result<Option<Fates>, String> {
    let Ok((a, b)) = judge.ends(cluster, src, dst) else {
        return Ok(None);
    };
    let (mut fates, mut tiers) = (Vec::with_capacity(asked.spans().len()), BTreeSet::new());
    for span in asked.spans() {
        let answer = judge.judge(&a, &b, span.service)?;
        fates.push(answer.fate());
        tiers.extend(answer.reasons.into_iter().filter_map(|reason| reason.tier));
    }
    Ok(Some((fates, tiers)))
}

/// A verdict, what is allowed and what depends, in words, and the tiers that decide.
type Verdict = (&'static str, Vec<String>, Vec<String>, BTreeSet<String>);

fn json_lines(
    cluster: &Cluster,
    judge: &Judge,
    asked: &Asked,
    groups: &[Group],
    gaps: &Gaps<'_>,
    mut out: impl Write,
) -> anyhow::Result<()> {
    let mut names: Vec<(usize, &EndName)> = groups
        .iter()
        .enumerate()
        .flat_map(|(index, group)| group.members.iter().map(move |name| (index, name)))
        .collect();
    names.sort_by_key(|(_, name)| match name {
        EndName::Pod(key) => (0, key.to_string()),
        EndName::Address(address) => (1, address.to_string()),
    });
    let all = Tiers::of(cluster);
    let order: Vec<&str> = all.in_order().iter().map(|tier| tier.name.as_str()).collect();
    // Members of a group differ only towards themselves.
    let mut known: HashMap<(usize, usize, bool), Option<Verdict>> = HashMap::new();
    for (src_group, src) in &names {
        for (dst_group, dst) in &names {
            let answer = match known.entry((*src_group, *dst_group, src == dst)) {
                Entry::Occupied(answer) => answer.into_mut(),
                Entry::Vacant(free) => {
                    let fates = fates(cluster, judge, asked, src, dst).map_err(anyhow::Error::msg)?;
                    free.insert(fates.map(|(fates, tiers)| {
                        let that = |wanted| fates.iter().map(|fate| *fate == wanted).collect::<Vec<bool>>();
                        let (allowed, depends) = (that(Fate::Allow), that(Fate::Depends));
                        let verdict = match (allowed.iter().all(|it| *it), allowed.iter().any(|it| *it)) {
                            _ if depends.contains(&true) => Fate::Depends.word(),
                            (true, _) => word(true),
                            (false, true) => "partial",
                            (false, false) => word(false),
                        };
                        let depends = match depends.contains(&true) {
                            true => asked.words(&depends),
                            false => Vec::new(),
                        };
                        (verdict, asked.words(&allowed), depends, tiers)
                    }))
                }
            };
            let Some((verdict, words, depends, tiers)) = answer else {
                continue;
            };
            let mut line = json!({
                "src": src.to_string(),
                "dst": dst.to_string(),
                "verdict": verdict,
                "allowed": words,
            });
            if !depends.is_empty() {
                line["depends"] = json!(depends);
            }
            if !cluster.tiered.is_empty() {
                // In the order in which they decide.
                let order = order.iter().filter(|tier| tiers.contains(**tier));
                line["tiers"] = json!(order.collect::<Vec<_>>());
            }
            if !cluster.unevaluated_kinds.is_empty() {
                line["incomplete"] = json!(cluster.unevaluated_kinds);
            }
            let ends: Vec<&ObjectKey> = [*src, *dst]
                .into_iter()
                .filter_map(|end| match end {
                    EndName::Pod(key) => Some(key),
                    EndName::Address(_) => None,
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

fn table(
    cluster: &Cluster,
    asked: &Asked,
    grid: &Grid,
    gaps: &Gaps<'_>,
    mut out: impl Write,
) -> anyhow::Result<()> {
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
        let first = group.members.first().map(ToString::to_string).unwrap_or_default();
        let members: Vec<&ObjectKey> = group
            .members
            .iter()
            .filter_map(|member| match member {
                EndName::Pod(key) => Some(key),
                EndName::Address(_) => None,
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
    writeln!(
        out,
        "{ALL} {}   {NONE} nothing   {SAME} itself",
        what(cluster, asked)
    )?;
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

/// What was asked about.
fn what(cluster: &Cluster, asked: &Asked) -> String {
    if asked == &Asked::everything(cluster) {
        "everything".to_owned()
    } else {
        asked.words(&vec![true; asked.spans().len()]).join(" ")
    }
}

/// a, b, ... z, aa, ab, ...
fn letter(index: usize) -> String {
    let last = char::from(b'a' + (index % 26) as u8).to_string();
    match index / 26 {
        0 => last,
        more => letter(more - 1) + &last,
    }
}
