//! Who can reach which port of which Service.

use std::{
    collections::BTreeMap,
    io::{self, Write},
    process::ExitCode,
};

use ringwall_analyse::{
    flow::{self, EndName},
    judge::{EndClass, Fate, Judge},
    services::{Directory, Joint},
};
use ringwall_policy::services::{Service, ServiceKind, ServicePort};
use ringwall_source::folder::Loaded;
use serde_json::json;

use super::{MOST_PRINTED, MatrixArgs};
use crate::{Output, gaps::Gaps};

/// A port of a Service.
struct Column<'a> {
    service: &'a Service,
    port: &'a ServicePort,
}

impl Column<'_> {
    fn words(&self) -> String {
        let number = format!("{}/{}", self.port.port, self.port.protocol.name());
        match self.port.name.as_str() {
            "" => format!("svc:{} {number}", self.service.key),
            name => format!("svc:{} {number} ({name})", self.service.key),
        }
    }
}

/// What a source reaches of a column.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Reached {
    verdict: Joint,
    backends: usize,
    allowed: usize,
}

/// Sources that every policy treats alike reach the same, if they are on one node and have the same families.
type Alike = ([EndClass; 2], Option<String>, [bool; 2]);

struct Reach<'a> {
    judge: Judge,
    directory: Directory<'a>,
    columns: Vec<Column<'a>>,
    loaded: &'a Loaded,
    known: BTreeMap<Alike, Vec<Result<Reached, String>>>,
}

impl Reach<'_> {
    /// What a source reaches of each column; an error where they have no family in common.
    fn of(&mut self, src: &EndName) -> Result<Vec<Result<Reached, String>>, String> {
        let (end, _) = self.judge.ends(&self.loaded.cluster, src, src)?;
        let pod = self
            .judge
            .pod(&end)
            .and_then(|key| self.loaded.cluster.pods.get(&key));
        let families = match (src, pod) {
            (EndName::Pod(_), Some(pod)) => {
                let has =
                    |v4: bool| pod.addresses.is_empty() || pod.addresses.iter().any(|it| it.is_ipv4() == v4);
                [has(true), has(false)]
            }
            _ => {
                let v4 = end.address.is_some_and(|address| address.is_ipv4());
                [v4, !v4]
            }
        };
        // Endpoints are their own peers, so they are like no other.
        let behind = pod.is_some_and(|pod| {
            let selects = |service: &Service| {
                let mut labels = service.selector.iter();
                service.key.namespace == pod.key.namespace
                    && labels.all(|(key, value)| pod.labels.get(key) == Some(value))
            };
            self.columns.iter().any(|column| selects(column.service))
        });
        let alike = (
            self.judge.class(&end, true),
            pod.and_then(|pod| pod.node.clone()),
            families,
        );
        if let Some(known) = self.known.get(&alike).filter(|_| !behind) {
            return Ok(known.clone());
        }
        let reached: Vec<Result<Reached, String>> = self
            .columns
            .iter()
            .map(|column| self.reached(src, column))
            .collect();
        if !behind {
            self.known.insert(alike, reached.clone());
        }
        Ok(reached)
    }

    fn reached(&self, src: &EndName, column: &Column<'_>) -> Result<Reached, String> {
        let dst = EndName::Service(column.service.key.clone());
        let asked = flow::Service::new(column.port.protocol.number(), Some(column.port.port))?;
        let name = (column.service.kind == ServiceKind::Headless).then_some(column.port.name.as_str());
        let name = name.filter(|name| !name.is_empty());
        let resolved = self.directory.resolve(&self.judge, (src, &dst), asked, name)?;
        let Some(resolved) = resolved else {
            return Err(format!("{dst} is no Service"));
        };
        let (verdict, answers) = self.directory.judge(&self.judge, src, &resolved)?;
        Ok(Reached {
            verdict,
            backends: answers.len(),
            allowed: answers
                .iter()
                .filter(|answer| answer.fate() == Fate::Allow)
                .count(),
        })
    }
}

pub(super) fn run(args: &MatrixArgs, loaded: &Loaded, output: Output) -> anyhow::Result<ExitCode> {
    let cluster = &loaded.cluster;
    let shown =
        |namespace: &str| args.namespaces.is_empty() || args.namespaces.iter().any(|it| it == namespace);
    let asked = |port: &&ServicePort| {
        args.ports.is_empty()
            || args
                .ports
                .iter()
                .any(|asked| (asked.protocol, asked.port) == (port.protocol.number(), Some(port.port)))
    };
    let services = loaded.services.services.values().map(AsRef::as_ref);
    let services = services.filter(|service| {
        shown(&service.key.namespace) && !matches!(service.kind, ServiceKind::ExternalName(_))
    });
    let columns: Vec<Column<'_>> = services
        .flat_map(|service: &Service| {
            let ports = service.ports.iter().filter(asked);
            ports.map(move |port| Column { service, port })
        })
        .collect();
    let pods = cluster
        .pods
        .values()
        .filter(|pod| !pod.finished && !pod.host_network);
    let pods = pods.filter(|pod| shown(&pod.key.namespace));
    let sources: Vec<EndName> = pods
        .map(|pod| EndName::Pod(pod.key.clone()))
        .chain(
            args.external
                .iter()
                .map(|address| EndName::Address(address.to_canonical())),
        )
        .collect();
    let mut reach = Reach {
        judge: Judge::new(cluster)?,
        directory: Directory::new(cluster, &loaded.services),
        columns,
        loaded,
        known: BTreeMap::new(),
    };
    let gaps = Gaps::of(cluster);
    let mut out = io::BufWriter::new(io::stdout().lock());
    let mut rows = Vec::new();
    for src in sources {
        match reach.of(&src) {
            Ok(reached) => rows.push((src, reached)),
            // A pod whose address another one has.
            Err(error) => eprintln!("ringwall: {error}"),
        }
    }
    match output {
        Output::Json => {
            for (src, reached) in &rows {
                for (column, reached) in reach.columns.iter().zip(reached) {
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
        Output::Human => table(&reach.columns, &rows, &gaps, &mut out)?,
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
