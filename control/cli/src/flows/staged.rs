//! Flows and drops as they would be decided if the staged policies were enforced.

use std::{collections::HashMap, io::Write, path::Path, time::Duration};

use ringwall_controller::staged::{
    AskedFlow, MAX_FLOWS, PendingVerdict, StagedAnswer, StagedEffect, StagedRequest,
};
use ringwall_messages::LiveRecord;
use serde::Serialize;

use super::{HEAD, ServiceNames, deciders_words, row, table};
use crate::{
    Output,
    explain::{ask_control, service_of},
    progress::Progress,
};

/// How long control may take for one question: it compiles all policies, and once more for each that is staged.
const PATIENCE: Duration = Duration::from_secs(120);

/// A record, and what would become of it; None of a packet whose headers could not be read.
#[derive(Serialize)]
struct WithPending<'a> {
    #[serde(flatten)]
    record: &'a LiveRecord,
    pending: Option<&'a PendingVerdict>,
}

/// Asks control about flows and drops, and writes what it says.
pub(super) fn write(
    config: &Path,
    records: &[LiveRecord],
    output: Output,
    out: &mut impl Write,
) -> anyhow::Result<()> {
    let (verdicts, effects) = ask(config, records)?;
    let pending = |record: &LiveRecord| asked(record).and_then(|flow| verdicts.get(&flow));
    match output {
        Output::Json => {
            for record in records {
                let pending = pending(record);
                writeln!(
                    out,
                    "{}",
                    serde_json::to_string(&WithPending { record, pending })?
                )?;
            }
            for effect in &effects {
                writeln!(out, "{}", serde_json::to_string(effect)?)?;
            }
        }
        Output::Human => {
            let rows: Vec<Vec<String>> = records
                .iter()
                .map(|record| {
                    let mut row = row(record, &ServiceNames::default()).to_vec();
                    row.push(words(pending(record)));
                    row
                })
                .collect();
            let head: Vec<&str> = HEAD.into_iter().chain(["STAGED"]).collect();
            out.write_all(table(&head, &rows).as_bytes())?;
            let differ = records
                .iter()
                .filter(|record| pending(record).is_some_and(|pending| pending.differs));
            match effects.as_slice() {
                [] => writeln!(out, "No policy is staged.")?,
                _ => writeln!(
                    out,
                    "With the staged policies, {} of {} flows and drops would be decided differently.",
                    differ.count(),
                    records.len(),
                )?,
            }
            for StagedEffect {
                staged,
                kind,
                action,
                flows,
            } in &effects
            {
                writeln!(out, "{kind} {staged} ({action}): {flows} by itself")?;
            }
        }
    }
    Ok(())
}

fn words(pending: Option<&PendingVerdict>) -> String {
    match pending {
        None => "-".to_owned(),
        Some(pending) if !pending.differs => "same".to_owned(),
        Some(pending) => format!("{}: {}", pending.verdict, deciders_words(&pending.reasons)),
    }
}

/// What policy knows of a record.
fn asked(record: &LiveRecord) -> Option<AskedFlow> {
    let ends = record.ends()?;
    Some(AskedFlow {
        src: ends.src,
        dst: ends.dst,
        protocol: ends.protocol,
        dst_port: service_of(ends).port,
        src_port: service_of(ends).source_port,
    })
}

/// The verdicts about all flows, and how many records each staged policy would change.
fn ask(
    config: &Path,
    records: &[LiveRecord],
) -> anyhow::Result<(HashMap<AskedFlow, PendingVerdict>, Vec<StagedEffect>)> {
    let progress = Progress::new("judging by the staged policies");
    let mut verdicts = HashMap::new();
    let mut effects: Vec<StagedEffect> = Vec::new();
    let flows: Vec<AskedFlow> = records.iter().filter_map(asked).collect();
    // Once where there are none, to hear what is staged.
    let parts = flows.chunks(MAX_FLOWS).chain(flows.is_empty().then_some(&[][..]));
    for flows in parts {
        let request = StagedRequest {
            flows: flows.to_vec(),
        };
        let answer: StagedAnswer = ask_control(config, "/v1/staged", &request, PATIENCE)?;
        verdicts.extend(flows.iter().cloned().zip(answer.flows));
        for effect in answer.staged {
            let same = |it: &&mut StagedEffect| it.staged == effect.staged && it.kind == effect.kind;
            match effects.iter_mut().find(same) {
                Some(known) => known.flows += effect.flows,
                None => effects.push(effect),
            }
        }
    }
    drop(progress);
    Ok((verdicts, effects))
}
