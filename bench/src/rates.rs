//! `ringwall-bench search`: rates without loss and with little of it, latency at shares of them, and connections per
//! second, of a wire with ringwall and with a bare AF_XDP forwarder, in turns.

use std::{process::ExitCode, time::Duration};

use anyhow::{Context, ensure};
use serde_json::json;

use crate::{
    arguments::{positive, seconds, share},
    generate::{
        histogram,
        stream::{Script, Sizes, Stream},
    },
    recorder::{Recorder, Recording},
    report::count,
    rounds::{Contender, Run, interleave},
    samples::{Better, Plan, Reading, Row, Section, Target},
    search::{Goal, Search, Trial},
    veth::l2fwd,
    wire::{self, Forwarder, LoadedWire, Wire},
};

/// Options of the search.
#[derive(clap::Args, Clone, Debug)]
#[command(after_help = "Examples:\n  \
    ringwall-bench search                                  # 64 bytes and IMIX\n  \
    ringwall-bench search --size 64 128 256 512 1024 1280 1518 imix --trial 5\n  \
    ringwall-bench search --ipv6 --size 84 --flows 100000\n\n\
    NDR is the highest rate at which nothing is lost, PDR that at which at most 0.5 % is; both are conditional\n\
    throughput as MLRsearch defines it (draft-ietf-bmwg-mlrsearch). Latency is measured at half and nine tenths of\n\
    ringwall's NDR, for both, at the first size. Connections per second are those of which at most 0.5 % of the segments\n\
    with data are lost: SYN, ACK, data, FIN, ACK, each answered. Lengths count the frame check sequence.")]
pub(crate) struct Options {
    /// Lengths of frames: LENGTH, LENGTH:WEIGHT,... or imix
    #[arg(long, num_args = 1.., default_values = ["64", "imix"])]
    pub(crate) size: Vec<Sizes>,
    /// How often control and firewall take turns
    #[arg(long, default_value_t = 5, value_parser = positive::<usize>)]
    pub(crate) rounds: usize,
    /// Seconds of a trial of the search's last phase
    #[arg(long, default_value_t = 1.0, value_parser = seconds)]
    pub(crate) trial: f64,
    /// Trials of the last phase that decide about a load
    #[arg(long, default_value_t = 3, value_parser = positive::<u32>)]
    pub(crate) trials: u32,
    /// Distance of the bounds when a search ends, relative to the upper one
    #[arg(long, default_value_t = 0.01, value_parser = share)]
    pub(crate) width: f64,
    /// Seconds of each measurement of latency
    #[arg(long, default_value_t = 2.0, value_parser = seconds)]
    pub(crate) latency_seconds: f64,
    /// Flows
    #[arg(long, default_value_t = 1000, value_parser = positive::<u32>)]
    pub(crate) flows: u32,
    /// Rules that the firewall holds
    #[arg(long, default_value_t = 1000, value_parser = positive::<usize>)]
    pub(crate) rules: usize,
    /// Send IPv6
    #[arg(long)]
    pub(crate) ipv6: bool,
    #[command(flatten)]
    pub(crate) recording: Recording,
}

/// Frames per second between which is searched.
const LEAST: f64 = 2000.0;
const MOST: f64 = 3e6;
/// A load of which less than this share is sent is not offered.
const OFFERED: f64 = 0.95;
/// Frames per second that every idle machine can send.
const SLOW: f64 = 100_000.0;
/// How often a load that was not offered is tried again.
const OFFERS: usize = 3;
/// Shares of the NDR at which latency is measured, and the percentiles.
const LOADS: [f64; 2] = [0.5, 0.9];
const PERCENTILES: [f64; 3] = [50.0, 99.0, 99.9];
/// A connection: SYN, ACK, data, FIN, ACK.
const SCRIPT: Script = Script::Tcp {
    data: 1,
    closes: true,
};

pub(crate) fn run(options: &Options) -> anyhow::Result<ExitCode> {
    let mut recorder = options.recording.recorder();
    rows(options, &mut recorder)?;
    Ok(recorder.finish())
}

/// All rows.
pub(crate) fn rows(options: &Options, recorder: &mut Recorder) -> anyhow::Result<()> {
    let mut rate = None;
    for size in &options.size {
        let found = throughput(options, size, recorder)?;
        rate = rate.or(found);
    }
    latency(options, rate, recorder)?;
    connections(options, recorder)
}

fn plan(id: String, title: String, section: Section, unit: &str, better: Better) -> Plan {
    Plan {
        id,
        title,
        section,
        unit: unit.to_owned(),
        better,
        target: None,
        parameters: [].into(),
    }
}

/// Both forwarders, each measured by a function that gets it running.
fn contenders<'a>(
    options: &'a Options,
    wire: &'a Wire,
    flows: u64,
    measure: &'a dyn Fn(&Forwarder) -> anyhow::Result<Reading>,
) -> [Contender<'a>; 2] {
    let run = move |forwarder: anyhow::Result<Forwarder>| {
        let forwarder = forwarder?;
        let reading = measure(&forwarder);
        // Also after a failure: the next one needs the ports.
        let ended = forwarder.end();
        let reading = reading?;
        ended?;
        Ok(reading)
    };
    let more = wire::room_for(flows);
    [
        Contender::new(
            "ringwall",
            format!(
                "`ringwall run` on a wire, {} rules, one worker",
                count(options.rules as u64)
            ),
            move || run(wire.ringwall(options.rules, &more)),
        ),
        l2fwd(move || run(wire.l2fwd())),
    ]
}

/// NDR and PDR of a size; the subject's median NDR.
fn throughput(options: &Options, size: &Sizes, recorder: &mut Recorder) -> anyhow::Result<Option<f64>> {
    let family = if options.ipv6 { "IPv6, " } else { "" };
    let name = size.to_string().to_lowercase().replace([':', ','], "-");
    let plans = [("ndr", "nothing lost"), ("pdr", "at most 0.5 % lost")].map(|(goal, words)| {
        let what = match size.to_string().as_str() {
            "IMIX" => "IMIX".to_owned(),
            size => format!("{size}-byte frames"),
        };
        let mut plan = plan(
            format!("{goal}-{}{name}", if options.ipv6 { "ipv6-" } else { "" }),
            format!(
                "{}: {words}, {family}{what}, {} flows, {} rules",
                goal.to_uppercase(),
                count(options.flows.into()),
                count(options.rules as u64)
            ),
            Section::Throughput,
            "Mpps",
            Better::Higher,
        );
        plan.target = Some(Target::Ratio(0.9));
        plan
    });
    let mut found = None;
    recorder.measure(&plans, |machine| {
        let wire = Wire::new()?;
        let stream = wire::stream(Script::Udp, options.flows, Some(size.clone()), options.ipv6);
        let load = wire.load(&stream, 1)?;
        let measure = |forwarder: &Forwarder| {
            load.opened(forwarder)?;
            let mut search = Search::new(LEAST, MOST, |rate, time| trial(&load, rate, time));
            let (trial, sum) = lengths(options);
            let ndr = search.find(&Goal::ndr(options.width, trial, sum))?;
            let pdr = search.find(&Goal::pdr(options.width, trial, sum))?;
            ensure!(
                ndr.lower.is_some(),
                "packets are lost at {LEAST} a second already: {}",
                search.trials()
            );
            let mpps = |rate: f64| rate / 1e6;
            Ok(Reading {
                value: mpps(ndr.throughput),
                detail: json!({
                    "ndr": mpps(ndr.throughput),
                    "pdr": mpps(pdr.throughput),
                    "trials": search.trials(),
                }),
            })
        };
        let runs = interleave(
            options.rounds,
            &mut contenders(options, &wire, options.flows.into(), &measure),
        );
        let rows: Vec<Row> = plans
            .iter()
            .zip(["ndr", "pdr"])
            .map(|(plan, key)| {
                let picked: Vec<Run> = runs.iter().map(|run| run.pick(key)).collect();
                Row::compare(plan, machine, &picked, 0, Some(1))
            })
            .collect();
        found = rows[0].subject().map(|spread| spread.median * 1e6);
        Ok(rows)
    })?;
    Ok(found)
}

/// Length of a trial, and trial time that decides.
fn lengths(options: &Options) -> (Duration, Duration) {
    let trial = Duration::from_secs_f64(options.trial);
    (trial, trial * options.trials)
}

/// One trial on a wire. A load that the generator does not reach, since the machine is busy or the load is too high for
/// it, counts what is missing as lost: it is not shown to be forwarded.
fn trial(load: &LoadedWire<'_>, rate: f64, time: Duration) -> anyhow::Result<Trial> {
    let frames = (rate * time.as_secs_f64()).max(1.0) as u64;
    for offer in 1.. {
        let passed = load.pass(Some(rate as u64), frames)?;
        // Of one frame there is no rate.
        let sent = if passed.sent.frames > 1 {
            passed.sent.rate()
        } else {
            rate
        };
        let offered = sent / rate;
        if offered < OFFERED && offer < OFFERS {
            continue;
        }
        ensure!(
            offered >= OFFERED || rate > SLOW,
            "the generator could send {sent:.0} of {rate:.0} packets a second: the machine is too busy to measure"
        );
        let received = passed.received.packets.min(passed.countable);
        let shown = if offered < OFFERED {
            ((passed.countable as f64 * offered) as u64).min(received)
        } else {
            received
        };
        return Ok(Trial {
            load: rate,
            duration: time,
            offered: sent,
            sent: passed.countable,
            received: shown,
        });
    }
    unreachable!("the last offer is taken")
}

/// Percentiles of latency at shares of a rate.
fn latency(options: &Options, rate: Option<f64>, recorder: &mut Recorder) -> anyhow::Result<()> {
    let kinds: Vec<(f64, f64)> = LOADS
        .iter()
        .flat_map(|share| PERCENTILES.map(|percentile| (*share, percentile)))
        .collect();
    let plans: Vec<Plan> = kinds
        .iter()
        .map(|(share, percentile)| {
            let name = percentile.to_string().replace('.', "");
            let mut plan = plan(
                format!("latency-p{name}-at-{}", (share * 100.0) as u64),
                format!("latency p{percentile} at {share} of ringwall's NDR"),
                Section::Latency,
                "us",
                Better::Lower,
            );
            plan.parameters = [
                ("percentile".to_owned(), *percentile),
                ("load".to_owned(), *share),
            ]
            .into();
            plan
        })
        .collect();
    recorder.measure(&plans, |machine| {
        let rate = rate.context("without an NDR there is no share of it")?;
        let wire = Wire::new()?;
        let stream = wire::stream(
            Script::Udp,
            options.flows,
            options.size.first().cloned(),
            options.ipv6,
        );
        let load = wire.load(&stream, 1)?;
        let measure = |forwarder: &Forwarder| {
            load.opened(forwarder)?;
            let mut detail = json!({});
            for share in LOADS {
                for (key, value) in latencies(options, &load, rate * share)? {
                    detail[format!("{key}-at-{share}")] = json!(value);
                }
            }
            let value = detail[format!("p50-at-{}", LOADS[0])]
                .as_f64()
                .unwrap_or_default();
            Ok(Reading { value, detail })
        };
        let runs = interleave(
            options.rounds,
            &mut contenders(options, &wire, options.flows.into(), &measure),
        );
        Ok(plans
            .iter()
            .zip(&kinds)
            .map(|(plan, (share, percentile))| {
                let key = format!("p{percentile}-at-{share}");
                let picked: Vec<Run> = runs.iter().map(|run| run.pick(&key)).collect();
                Row::compare(plan, machine, &picked, 0, Some(1))
            })
            .collect())
    })
}

/// Latencies in microseconds at a rate, and what was sent and received, by name.
fn latencies(options: &Options, load: &LoadedWire<'_>, rate: f64) -> anyhow::Result<Vec<(String, f64)>> {
    let frames = |seconds: f64| (rate * seconds).max(1000.0) as u64;
    // The first packets of flows are not what is asked about.
    load.pass(Some(rate as u64), frames(0.2).max(options.flows.into()))?;
    let passed = load.pass(Some(rate as u64), frames(options.latency_seconds))?;
    ensure!(passed.received.packets > 0, "nothing arrived");
    let latency = histogram(&passed.received)?;
    let us = |nanoseconds: u64| nanoseconds as f64 / 1e3;
    let mut values = vec![
        ("framesPerSecond".to_owned(), passed.sent.rate()),
        ("sent".to_owned(), passed.sent.frames as f64),
        ("received".to_owned(), passed.received.packets as f64),
        ("least".to_owned(), us(latency.min())),
        ("most".to_owned(), us(latency.max())),
    ];
    values.extend(PERCENTILES.map(|percentile| {
        (
            format!("p{percentile}"),
            us(latency.value_at_percentile(percentile)),
        )
    }));
    Ok(values)
}

/// Connections per second.
fn connections(options: &Options, recorder: &mut Recorder) -> anyhow::Result<()> {
    let plan = plan(
        "connections-per-second".into(),
        format!(
            "TCP connections per second: open, one segment, close; {} at once, {} rules, at most 0.5 % of the segments lost",
            count(options.flows.into()),
            count(options.rules as u64)
        ),
        Section::Connections,
        "1/s",
        Better::Higher,
    );
    recorder.measure(std::slice::from_ref(&plan), |machine| {
        let wire = Wire::new()?;
        let stream = Stream {
            // The order of connections is theirs anyway.
            shuffled: false,
            ..wire::stream(SCRIPT, options.flows, None, options.ipv6)
        };
        let load = wire.load(&stream, 1)?;
        let measure = |_: &Forwarder| {
            let mut search = Search::new(LEAST, MOST, |rate, time| trial(&load, rate, time));
            let (trial, sum) = lengths(options);
            let found = search.find(&Goal::pdr(options.width, trial, sum))?;
            ensure!(
                found.lower.is_some(),
                "segments are lost at {LEAST} frames a second already: {}",
                search.trials()
            );
            Ok(Reading {
                value: found.throughput / SCRIPT.steps() as f64,
                detail: json!({"trials": search.trials()}),
            })
        };
        // Closed connections keep their place for a minute: room for those of a whole search.
        let opened = 1.5e6 * options.trial * f64::from(options.trials);
        let room = opened.clamp(5e5, 4e6) as u64;
        let runs = interleave(options.rounds, &mut contenders(options, &wire, room, &measure));
        Ok(vec![Row::compare(&plan, machine, &runs, 0, Some(1))])
    })
}
