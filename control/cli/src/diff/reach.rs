//! Who reaches which port of which Service with another verdict.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::Write,
};

use ringwall_analyse::flow::EndName;
use ringwall_policy::ObjectKey;
use serde_json::json;

use super::{Outcome, Side};
use crate::{
    Output,
    progress::Progress,
    service_reach::{Reach, Reached, sources},
};

/// The most sources that a line names.
const MOST_NAMED: usize = 4;

/// Service, IP protocol and port, in the order in which they are printed.
type PortKey = (ObjectKey, u8, u16);

/// What one source reaches of a port on both sides; None where there is no such port, or no address of a family that it has.
struct Change {
    src: EndName,
    sides: [Option<Reached>; 2],
}

/// Writes what differs.
///
/// # Errors
/// The policies do not compile, or the output cannot be written.
pub(super) fn tell(sides: &[Side; 2], output: Output, out: &mut impl Write) -> anyhow::Result<Outcome> {
    let progress = Progress::new("judging");
    let changes = changes(sides)?;
    drop(progress);
    match output {
        Output::Human => lines(sides, &changes, out)?,
        Output::Json => objects(&changes, out)?,
    }
    Ok(Outcome {
        changes: !changes.is_empty(),
        failed: false,
    })
}

/// Changes by Service port.
fn changes(sides: &[Side; 2]) -> anyhow::Result<BTreeMap<PortKey, (String, Vec<Change>)>> {
    let [from, to] = sides;
    let mut reaches = [
        Reach::of(&from.cluster, &from.services, |_, _| true)?,
        Reach::of(&to.cluster, &to.services, |_, _| true)?,
    ];
    let mut ports: BTreeMap<PortKey, (String, [Option<usize>; 2])> = BTreeMap::new();
    for (side, reach) in reaches.iter().enumerate() {
        for (number, column) in reach.columns().iter().enumerate() {
            let port = (column.port.protocol.number(), column.port.port);
            let key = (column.service.key.clone(), port.0, port.1);
            let (_, places) = ports.entry(key).or_insert_with(|| (column.words(), [None; 2]));
            if let Some(place) = places.get_mut(side) {
                *place = Some(number);
            }
        }
    }
    let of_both: BTreeSet<&ObjectKey> = sources(&from.cluster).collect();
    let of_both = sources(&to.cluster).filter(|key| of_both.contains(key));
    let mut found: BTreeMap<PortKey, (String, Vec<Change>)> = BTreeMap::new();
    for key in of_both {
        let src = EndName::Pod(key.clone());
        let reached = match reaches.each_mut().map(|reach| reach.by_source(&src)) {
            [Ok(from), Ok(to)] => [from, to],
            // A pod whose address another one has.
            [Err(error), _] | [_, Err(error)] => {
                eprintln!("ringwall: {error}");
                continue;
            }
        };
        for (port, (words, places)) in &ports {
            let side = |side: usize| -> Option<Reached> {
                let number = *places.get(side)?.as_ref()?;
                reached.get(side)?.get(number)?.as_ref().ok().copied()
            };
            let sides = [side(0), side(1)];
            let [from, to] = sides.map(|reached| reached.map(|reached| reached.verdict));
            if from != to {
                let (_, changes) = found
                    .entry(port.clone())
                    .or_insert_with(|| (words.clone(), Vec::new()));
                let src = src.clone();
                changes.push(Change { src, sides });
            }
        }
    }
    Ok(found)
}

fn objects(changes: &BTreeMap<PortKey, (String, Vec<Change>)>, out: &mut impl Write) -> anyhow::Result<()> {
    let side = |reached: &Option<Reached>| {
        reached
            .map(|it| json!({"verdict": it.verdict.word(), "backends": it.backends, "allowed": it.allowed}))
    };
    for ((service, protocol, port), (_, changes)) in changes {
        for Change {
            src,
            sides: [from, to],
        } in changes
        {
            let line = json!({
                "src": src.to_string(),
                "dst": EndName::Service(service.clone()).to_string(),
                "protocol": ringwall_analyse::flow::protocol_name(*protocol),
                "port": port,
                "from": side(from),
                "to": side(to),
            });
            writeln!(out, "{line}")?;
        }
    }
    Ok(())
}

fn lines(
    sides: &[Side; 2],
    changes: &BTreeMap<PortKey, (String, Vec<Change>)>,
    out: &mut impl Write,
) -> anyhow::Result<()> {
    if sides.iter().all(|side| side.services.services.is_empty()) {
        writeln!(out, "No Services in either folder.")?;
        return Ok(());
    }
    if changes.is_empty() {
        writeln!(out, "Every pod reaches the same Services as before.")?;
        return Ok(());
    }
    for (words, changes) in changes.values() {
        writeln!(out, "{words}")?;
        // Sources whose verdicts change alike share a line.
        let mut grouped: BTreeMap<[String; 2], Vec<String>> = BTreeMap::new();
        for change in changes {
            let sides = change.sides.map(side_words);
            grouped.entry(sides).or_default().push(change.src.to_string());
        }
        for ([from, to], sources) in grouped {
            let named: Vec<&str> = sources.iter().take(MOST_NAMED).map(String::as_str).collect();
            let more = match sources.len().saturating_sub(MOST_NAMED) {
                0 => String::new(),
                more => format!(" and {more} more"),
            };
            writeln!(out, "  {from} -> {to}  {}{more}", named.join(", "))?;
        }
    }
    Ok(())
}

/// What a side says to a person.
fn side_words(reached: Option<Reached>) -> String {
    match reached {
        None => "none".to_owned(),
        Some(Reached {
            verdict, backends: 0, ..
        }) => verdict.word().to_owned(),
        Some(Reached {
            verdict,
            backends,
            allowed,
        }) => format!("{} ({allowed} of {backends})", verdict.word()),
    }
}
