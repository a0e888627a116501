//! `ringwall matrix`: who can reach whom.

use std::{
    collections::{BTreeMap, HashMap, hash_map::Entry},
    io::{self, Write},
    process::ExitCode,
};

use serde_json::json;

use super::{
    ClusterArgs, Output,
    flow::{EndName, Service},
    judge::{Judge, word},
    span::Asked,
};
use crate::cluster::Cluster;

/// Arguments of `ringwall matrix`.
#[derive(Clone, Debug, clap::Args)]
#[command(after_long_help = "\
Without --port the answer covers every port of TCP, UDP and SCTP and, as
`other`, every protocol without ports. Endpoints of one namespace that every
policy treats alike share a row and a column.

As JSON: one object per pair of endpoints, with src, dst, verdict (allow, deny
or partial) and the list of what is allowed.

Examples:
  ringwall matrix --manifests ./cluster
  ringwall matrix --manifests ./cluster --port 80/TCP --external 203.0.113.9
  ringwall matrix --manifests ./cluster -o json | jq 'select(.verdict==\"deny\")'")]
pub struct MatrixArgs {
    #[command(flatten)]
    cluster: ClusterArgs,
    /// Ask for this port alone, such as 80/TCP or ICMP; may be repeated
    #[arg(long = "port", value_name = "PORT/PROTOCOL", value_parser = Service::read)]
    ports: Vec<Service>,
    /// Show this address beside the pods; may be repeated
    #[arg(long = "external", value_name = "ADDRESS")]
    external: Vec<std::net::IpAddr>,
}

pub(super) fn run(args: &MatrixArgs, output: Output) -> anyhow::Result<ExitCode> {
    let cluster = args.cluster.load()?;
    let judge = Judge::new(&cluster)?;
    let asked = if args.ports.is_empty() {
        Asked::everything(&cluster)
    } else {
        Asked::only(&args.ports)
    };
    let groups = groups(&cluster, &judge, &args.external);
    let out = io::BufWriter::new(io::stdout().lock());
    match output {
        Output::Json => json_lines(&cluster, &judge, &asked, &groups, out)?,
        Output::Human => table(&cluster, &judge, &asked, &groups, out)?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Endpoints that every policy treats alike.
struct Group {
    /// Namespace, empty for addresses outside.
    namespace: String,
    members: Vec<EndName>,
}

fn groups(cluster: &Cluster, judge: &Judge, external: &[std::net::IpAddr]) -> Vec<Group> {
    let mut groups: Vec<Group> = Vec::new();
    let mut by_class = BTreeMap::new();
    for (key, pod) in &cluster.pods {
        if pod.host_network || pod.finished {
            continue;
        }
        let name = EndName::Pod(key.clone());
        // A pod whose address has gone to another has no part in anything.
        let Ok((end, _)) = judge.ends(cluster, &name, &name) else {
            continue;
        };
        // Templates stand for several pods and pods for one: they differ towards themselves.
        let families: Vec<bool> = pod.addresses.iter().map(std::net::IpAddr::is_ipv4).collect();
        let class = (
            key.namespace.clone(),
            judge.class(&end),
            pod.template_of.is_some(),
            families,
        );
        let index = *by_class.entry(class).or_insert_with(|| {
            groups.push(Group {
                namespace: key.namespace.clone(),
                members: Vec::new(),
            });
            groups.len() - 1
        });
        if let Some(group) = groups.get_mut(index) {
            group.members.push(name);
        }
    }
    for address in external {
        groups.push(Group {
            namespace: String::new(),
            members: vec![EndName::Address(address.to_canonical())],
        });
    }
    groups
}

/// What of the asked is allowed; None where the two have no address family in common.
fn allowed(
    cluster: &Cluster,
    judge: &Judge,
    asked: &Asked,
    src: &EndName,
    dst: &EndName,
) -> Result<Option<Vec<bool>>, String> {
    let Ok((a, b)) = judge.ends(cluster, src, dst) else {
        return Ok(None);
    };
    asked
        .spans()
        .iter()
        .map(|span| Ok(judge.judge(&a, &b, span.service)?.allow()))
        .collect::<Result<Vec<bool>, String>>()
        .map(Some)
}

/// A verdict and what is allowed, in words; None of it where there is no common family.
type Cell = (&'static str, Vec<String>);

fn json_lines(
    cluster: &Cluster,
    judge: &Judge,
    asked: &Asked,
    groups: &[Group],
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
    // Members of a group differ only towards themselves.
    let mut known: HashMap<(usize, usize, bool), Option<Cell>> = HashMap::new();
    for (src_group, src) in &names {
        for (dst_group, dst) in &names {
            let answer = match known.entry((*src_group, *dst_group, src == dst)) {
                Entry::Occupied(answer) => answer.into_mut(),
                Entry::Vacant(free) => {
                    let allowed = allowed(cluster, judge, asked, src, dst).map_err(anyhow::Error::msg)?;
                    free.insert(allowed.map(|allowed| {
                        let verdict = match (allowed.iter().all(|it| *it), allowed.iter().any(|it| *it)) {
                            (true, _) => word(true),
                            (false, true) => "partial",
                            (false, false) => word(false),
                        };
                        (verdict, asked.words(&allowed))
                    }))
                }
            };
            let Some((verdict, words)) = answer else { continue };
            let mut line = json!({
                "src": src.to_string(),
                "dst": dst.to_string(),
                "verdict": verdict,
                "allowed": words,
            });
            if !cluster.unevaluated_kinds.is_empty() {
                line["incomplete"] = json!(cluster.unevaluated_kinds);
            }
            writeln!(out, "{line}")?;
        }
    }
    Ok(out.flush()?)
}

const ALL: &str = "+";
const NONE: &str = ".";
const SAME: &str = "\\";

fn table(
    cluster: &Cluster,
    judge: &Judge,
    asked: &Asked,
    groups: &[Group],
    mut out: impl Write,
) -> anyhow::Result<()> {
    if groups.is_empty() {
        writeln!(out, "No pods and no workloads in the manifests.")?;
        return Ok(out.flush()?);
    }
    let mut marks: Vec<String> = Vec::new();
    let mut rows: Vec<Vec<String>> = Vec::new();
    for src in groups {
        let mut row = Vec::new();
        for dst in groups {
            let (Some(from), Some(mut to)) = (src.members.first(), dst.members.first()) else {
                continue;
            };
            if std::ptr::eq(src, dst) {
                match dst.members.get(1) {
                    Some(other) => to = other,
                    None if matches!(from, EndName::Pod(key) if cluster.pods.get(key).is_some_and(|pod| pod.template_of.is_some())) =>
                        {}
                    None => {
                        row.push(SAME.to_owned());
                        continue;
                    }
                }
            }
            let allowed = allowed(cluster, judge, asked, from, to).map_err(anyhow::Error::msg)?;
            row.push(match allowed {
                None => String::new(),
                Some(allowed) if allowed.iter().all(|it| *it) => ALL.to_owned(),
                Some(allowed) if !allowed.iter().any(|it| *it) => NONE.to_owned(),
                Some(allowed) => {
                    let words = asked.words(&allowed).join(" ");
                    let index = marks.iter().position(|mark| *mark == words).unwrap_or_else(|| {
                        marks.push(words);
                        marks.len() - 1
                    });
                    letter(index)
                }
            });
        }
        rows.push(row);
    }

    let number_width = groups.len().to_string().len();
    let label = |group: &Group| {
        let first = group.members.first().map(ToString::to_string).unwrap_or_default();
        match group.members.len() {
            0 | 1 => first,
            many => format!("{first} and {} more", many - 1),
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
    let what = if asked == &Asked::everything(cluster) {
        "everything".to_owned()
    } else {
        asked.words(&vec![true; asked.spans().len()]).join(" ")
    };
    writeln!(out, "{ALL} {what}   {NONE} nothing   {SAME} itself")?;
    for (index, mark) in marks.iter().enumerate() {
        writeln!(out, "{} {mark}", letter(index))?;
    }
    if !cluster.unevaluated_kinds.is_empty() {
        let kinds: Vec<&str> = cluster.unevaluated_kinds.iter().map(String::as_str).collect();
        writeln!(out, "Incomplete: {} are not evaluated.", kinds.join(", "))?;
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
