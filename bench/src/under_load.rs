//! `ringwall-bench under-load`: what changes of policy cost the packets of a wire, how many flows it holds at once, and
//! what they take of memory.

use std::{
    fs,
    process::ExitCode,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, anyhow, ensure};
use ringwall_testbed::appliance::Appliance;
use serde_json::{Value, json};

use crate::{
    arguments::positive,
    generate::stream::{Script, Stream},
    recorder::{Recorder, Recording},
    report::count,
    rounds::{Contender, interleave},
    samples::{Better, Plan, Reading, Row, Section, Target},
    wire::{self, LoadedWire, Wire},
};

/// Options of the benchmark.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct Options {
    /// How often each row is measured
    #[arg(long, default_value_t = 5, value_parser = positive::<usize>)]
    pub(crate) rounds: usize,
    /// Packets per second
    #[arg(long, default_value_t = 200_000, value_parser = positive::<u64>)]
    pub(crate) rate: u64,
    /// Flows that are there while policy changes, and that are held at once
    #[arg(long, default_value_t = 1_000_000, value_parser = positive::<u32>)]
    pub(crate) flows: u32,
    /// Changes of a row
    #[arg(long, default_value_t = 20, value_parser = positive::<u32>)]
    pub(crate) changes: u32,
    /// Rules that the firewall holds
    #[arg(long, default_value_t = 1000, value_parser = positive::<usize>)]
    pub(crate) rules: usize,
    #[command(flatten)]
    pub(crate) recording: Recording,
}

/// Changes per second of the row with few and of the one with many.
const PACES: [u32; 2] = [2, 100];

pub(crate) fn run(options: &Options) -> anyhow::Result<ExitCode> {
    let mut recorder = options.recording.recorder();
    rows(options, &mut recorder)?;
    Ok(recorder.finish())
}

/// All rows.
pub(crate) fn rows(options: &Options, recorder: &mut Recorder) -> anyhow::Result<()> {
    for pace in PACES {
        swaps(options, pace, recorder)?;
    }
    capacity(options, recorder)
}

fn plan(id: String, title: String, section: Section, unit: &str, target: Option<Target>) -> Plan {
    Plan {
        id,
        title,
        section,
        unit: unit.to_owned(),
        better: Better::Lower,
        target,
        parameters: [].into(),
    }
}

/// Time for which no packet passed, per change: packets lost divided by their rate, as RFC 9411 and FD.io CSIT do.
/// Every change concerns the rules by which all flows pass, so each of them is judged again.
fn swaps(options: &Options, pace: u32, recorder: &mut Recorder) -> anyhow::Result<()> {
    let plan = plan(
        format!("swaps-{pace}-a-second"),
        format!(
            "time without packets per change of the rules that all of {} flows pass by, {pace} changes a second, {} packets/s",
            count(options.flows.into()),
            count(options.rate)
        ),
        Section::Policy,
        "us",
        None,
    );
    recorder.measure(std::slice::from_ref(&plan), |machine| {
        let wire = Wire::new()?;
        let stream = wire::stream(Script::Udp, options.flows, None, false);
        let load = wire.load(&stream, 1)?;
        let more = wire::room_for(options.flows.into());
        let mut contenders = [Contender::new(
            "ringwall",
            format!(
                "`ringwall run` on a wire, {} rules; a port more or less in a policy that selects every pod, by a file",
                count(options.rules as u64)
            ),
            || {
                write(&wire, 9999)?;
                let forwarder = wire.ringwall(options.rules, &more)?;
                load.opened(&forwarder)?;
                let reading = swap(options, pace, &wire, &load, forwarder.appliance()?)?;
                forwarder.end()?;
                Ok(reading)
            },
        )];
        let runs = interleave(options.rounds, &mut contenders);
        drop(contenders);
        Ok(vec![Row::compare(&plan, machine, &runs, 0, None)])
    })
}

fn swap(
    options: &Options,
    pace: u32,
    wire: &Wire,
    load: &LoadedWire<'_>,
    appliance: &Appliance,
) -> anyhow::Result<Reading> {
    let generation = |status: &Value| status["control"]["snapshot"]["generation"].as_u64();
    let before = generation(&appliance.status()?).context("the status has no generation")?;
    let time = Duration::from_secs(1) * options.changes / pace;
    let frames = ((time + Duration::from_millis(500)).as_secs_f64() * options.rate as f64) as u64;
    let (passed, written) = thread::scope(|scope| -> anyhow::Result<_> {
        let changing = scope.spawn(|| -> anyhow::Result<u32> {
            let start = Instant::now();
            for change in 0..options.changes {
                thread::sleep((Duration::from_secs(1) * change / pace).saturating_sub(start.elapsed()));
                let port = 10_000 + (change % 2) as u16;
                write(wire, port)?;
            }
            Ok(options.changes)
        });
        let passed = load.pass(Some(options.rate), frames);
        let written = changing.join().map_err(|_| anyhow!("the changes panicked"))??;
        Ok((passed?, written))
    })?;
    let status = appliance.wait_until("every worker has the last change", |status| {
        let compiled = generation(status);
        status["dataplane"]["workers"].as_array().is_some_and(|workers| {
            workers
                .iter()
                .all(|worker| worker["generation"].as_u64() == compiled)
        })
    })?;
    let adopted = generation(&status).unwrap_or(before) - before;
    ensure!(adopted > 0, "none of {written} changes was adopted");
    let lost = passed.countable.saturating_sub(passed.received.packets);
    let latency = crate::generate::histogram(&passed.received)?;
    Ok(Reading {
        value: lost as f64 / options.rate as f64 * 1e6 / f64::from(written),
        detail: json!({
            "sent": passed.countable,
            "lost": lost,
            "changes": written,
            "generationsAdopted": adopted,
            "latencyP99": latency.value_at_percentile(99.0) as f64 / 1e3,
            "latencyMost": latency.max() as f64 / 1e3,
        }),
    })
}

/// Replaces a policy that selects every pod, and allows one more port.
fn write(wire: &Wire, port: u16) -> anyhow::Result<()> {
    /// Behind all others.
    const INDEX: usize = 99_999;
    let folder = wire.bed.manifests();
    let staged = folder.join(".swapped");
    fs::write(
        &staged,
        wire::policy(INDEX, vec![wire::allowed(&[port])]).to_string(),
    )?;
    fs::rename(&staged, folder.join("swapped.yaml"))?;
    Ok(())
}

/// How many connections are held at once, and what they take of memory. They are TCP connections, opened and not closed,
/// since unanswered flows get only a share of the table.
fn capacity(options: &Options, recorder: &mut Recorder) -> anyhow::Result<()> {
    /// Connections that open at the same time.
    const OPENING: u32 = 1000;
    const SCRIPT: Script = Script::Tcp {
        data: 1,
        closes: false,
    };
    let connections = options.flows.next_multiple_of(OPENING);
    let mut held = plan(
        format!("connections-held-of-{connections}"),
        format!(
            "TCP connections held at once, of {} opened one after the other",
            count(connections.into())
        ),
        Section::Connections,
        "connections",
        Some(Target::Subject(f64::from(connections))),
    );
    held.better = Better::Higher;
    let memory = plan(
        "memory-per-million-flows".into(),
        format!(
            "resident memory of the dataplane per million connections, with {}",
            count(connections.into())
        ),
        Section::Footprint,
        "MB",
        None,
    );
    recorder.measure(&[held.clone(), memory.clone()], |machine| {
        let wire = Wire::new()?;
        let stream = Stream {
            shuffled: false,
            ..wire::stream(SCRIPT, OPENING, None, false)
        };
        let more = wire::room_for(connections.into());
        let mut contenders = [Contender::new(
            "ringwall",
            format!("`ringwall run` on a wire, {} rules", count(options.rules as u64)),
            || {
                let load = wire.load(&stream, 1)?;
                let forwarder = wire.ringwall(options.rules, &more)?;
                let before = resident(forwarder.appliance()?)?;
                let passed = load.pass(Some(options.rate), u64::from(connections) * SCRIPT.steps())?;
                let after = resident(forwarder.appliance()?)?;
                let status = forwarder.appliance()?.status()?;
                let used = status["dataplane"]["flows"]["used"]
                    .as_u64()
                    .context("the status has no number of flows")?;
                forwarder.end()?;
                ensure!(used > 0, "no connection was held");
                Ok(Reading {
                    value: used as f64,
                    detail: json!({
                        "connections": used,
                        // Kilobytes of each are megabytes of a thousand, and gigabytes of a million.
                        "megabytes": (after - before) as f64 / used as f64 * 1e3,
                        "residentBefore": before,
                        "residentAfter": after,
                        "segmentsLost": passed.countable.saturating_sub(passed.received.packets),
                    }),
                })
            },
        )];
        let runs = interleave(options.rounds.min(3), &mut contenders);
        drop(contenders);
        Ok(vec![
            Row::compare(&held, machine, &[runs[0].pick("connections")], 0, None),
            Row::compare(&memory, machine, &[runs[0].pick("megabytes")], 0, None),
        ])
    })
}

/// Kilobytes that the dataplane has in memory.
fn resident(firewall: &Appliance) -> anyhow::Result<i64> {
    let status = fs::read_to_string(format!("/proc/{}/status", firewall.pid("dataplane")?))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let number = line
        .and_then(|line| line.split_whitespace().next())
        .context("no VmRSS")?;
    Ok(number.parse()?)
}
