//! Who can reach which port of which Service.

use std::{
    collections::BTreeMap,
    io::{self, Write},
    process::ExitCode,
};

use ringwall_analyse::{flow::EndName, services::Joint};
use ringwall_policy::services::{Service, ServicePort};
use ringwall_source::folder::Loaded;
use serde_json::json;

use super::{MOST_PRINTED, MatrixArgs};
use crate::{
    Output,
    gaps::Gaps,
    service_reach::{Column, Reach, Reached, sources},
};

pub(super) fn run(args: &MatrixArgs, loaded: &Loaded, output: Output) -> anyhow::Result<ExitCode> {
    let cluster = &loaded.cluster;
    let shown =
        |namespace: &str| args.namespaces.is_empty() || args.namespaces.iter().any(|it| it == namespace);
    let asked = |port: &ServicePort| {
        args.ports.is_empty()
            || args
                .ports
                .iter()
                .any(|asked| (asked.protocol, asked.port) == (port.protocol.number(), Some(port.port)))
    };
    let mut reach = Reach::of(cluster, &loaded.services, |service: &Service, port| {
        shown(&service.key.namespace) && asked(port)
    })?;
    let pods = sources(cluster).filter(|key| shown(&key.namespace));
    let addresses = args.external.iter().map(|address| address.to_canonical());
    let sources: Vec<EndName> = pods
        .map(|key| EndName::Pod(key.clone()))
        .chain(addresses.map(EndName::Address))
        .collect();
    let gaps = Gaps::of(cluster);
    let mut out = io::BufWriter::new(io::stdout().lock());
    let mut rows = Vec::new();
    for src in sources {
        match reach.by_source(&src) {
            Ok(reached) => rows.push((src, reached)),
            // A pod whose address another one has.
            Err(error) => eprintln!("ringwall: {error}"),
        }
    }
    match output {
        Output::Json => {
            for (src, reached) in &rows {
                for (column, reached) in reach.columns().iter().zip(reached) {
                    let Ok(reached) = reached else { continue };
                    let mut line = json!({
                        "src": src.to_string(),
                        "dst": EndName::Service(column.service.key.clone()).to_string(),
                        "protocol": column.port.protocol.name(),
                        "port": column.port.port,
                        "verdict": reached.verdict.word(),
                        "backends": reached.backends,
                        "allowed": reached.allowed,
                    });
                    if !column.port.name.is_empty() {
                        line["port_name"] = json!(column.port.name);
                    }
                    if !cluster.unevaluated_kinds.is_empty() {
                        line["incomplete"] = json!(cluster.unevaluated_kinds);
                    }
                    writeln!(out, "{line}")?;
                }
            }
        }
        Output::Human => table(reach.columns(), &rows, &gaps, &mut out)?,
    }
    out.flush()?;
    Ok(ExitCode::SUCCESS)
}

/// What stands in a cell.
fn mark(reached: &Result<Reached, String>) -> &'static str {
    match reached {
        Err(_) => " ",
        Ok(reached) => match reached.verdict {
            Joint::Allow => "+",
            Joint::Partial => "~",
            Joint::Depends => "?",
            Joint::Deny => ".",
            Joint::Reject | Joint::Drop => "x",
        },
    }
}

fn table(
    columns: &[Column<'_>],
    rows: &[(EndName, Vec<Result<Reached, String>>)],
    gaps: &Gaps<'_>,
    out: &mut impl Write,
) -> anyhow::Result<()> {
    if columns.is_empty() {
        writeln!(out, "No Services with ports in the manifests.")?;
        return Ok(());
    }
    // Sources of one namespace that reach the same share a row.
    let mut grouped: BTreeMap<(String, Vec<&'static str>), Vec<String>> = BTreeMap::new();
    for (src, reached) in rows {
        let namespace = match src {
            EndName::Pod(key) => key.namespace.clone(),
            // After every namespace.
            EndName::Address(_) | EndName::Service(_) => "~".to_owned(),
        };
        let marks = reached.iter().map(mark).collect();
        grouped
            .entry((namespace, marks))
            .or_default()
            .push(src.to_string());
    }
    anyhow::ensure!(
        grouped.len() <= MOST_PRINTED,
        "{} rows are too many for a table (most: {MOST_PRINTED}); choose namespaces with --namespace, or take -o json",
        grouped.len()
    );
    let labels: Vec<(String, &Vec<&'static str>)> = grouped
        .iter()
        .map(|((_, marks), names)| match names.as_slice() {
            [first, rest @ ..] if !rest.is_empty() => (format!("{first} and {} more", rest.len()), marks),
            names => (names.join(""), marks),
        })
        .collect();
    let head = "from \\ to";
    let width = labels
        .iter()
        .map(|(label, _)| label.chars().count())
        .max()
        .unwrap_or(0)
        .max(head.len());
    let cell = columns.len().to_string().len();
    write!(out, "{head:width$}")?;
    for number in 1..=columns.len() {
        write!(out, " {number:>cell$}")?;
    }
    writeln!(out)?;
    for (label, marks) in labels {
        write!(out, "{label:width$}")?;
        for mark in marks {
            write!(out, " {mark:>cell$}")?;
        }
        writeln!(out)?;
    }
    writeln!(out)?;
    for (number, column) in (1..).zip(columns) {
        writeln!(out, "{number:>cell$} {}", column.words())?;
    }
    writeln!(out)?;
    writeln!(
        out,
        "+ every endpoint   ~ some endpoints   . none   x there is no endpoint   ? depends"
    )?;
    for line in gaps.words() {
        writeln!(out, "{line}")?;
    }
    Ok(())
}
