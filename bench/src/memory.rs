//! Packets from memory to memory: nanoseconds and instructions per packet, without a socket or a kernel. Takes turns with
//! a loop that only reads headers and finds flows in a table of one cache line per packet.

use std::{path::PathBuf, process::ExitCode, thread::available_parallelism, time::Duration};

use anyhow::{Context, bail};
use ringwall_bench_memory::{
    clock::thread_nanos,
    control::Control,
    instructions::{self, TOTAL},
    load::{self, Load, Round},
    mix::Mix,
    pair::{Pair, Steering},
    sampling,
};
use serde_json::json;

use crate::{
    arguments::positive,
    recorder::{Recorder, Recording},
    rounds::{Contender, interleave},
    samples::{Better, Outcome, Party, Plan, Reading, Row, Section, Target, Turn},
};

/// Options of the benchmark.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct Options {
    /// How often subject and control take turns
    #[arg(long, default_value_t = 5, value_parser = positive::<usize>)]
    rounds: usize,
    /// Up to 8 million flows instead of 1 million, which takes 5 GB of memory
    #[arg(long)]
    full: bool,
    /// Measure only rows whose names begin with this, for example memory-mix
    #[arg(long, default_value = "")]
    only: String,
    #[command(flatten)]
    recording: Recording,
}

impl Options {
    /// What `make bench` (or `make bench-full`) measures.
    pub(crate) fn suite(full: bool, rounds: usize) -> Self {
        Self {
            rounds,
            full,
            only: String::new(),
            recording: Recording::default(),
        }
    }
}

impl Options {
    fn wants(&self, plan: &Plan) -> bool {
        plan.id.starts_with(&self.only)
    }
}

/// Packets of one reading, at least; enough for a few tens of milliseconds.
const PACKETS: usize = 400_000;
const RULES: usize = 1_000;
/// Flows of mixes that are not about their number.
const FLOWS: usize = 1_000;
/// New flows of one round.
const NEW_FLOWS: usize = 20_000;
/// Flows of two workers.
const PAIR_FLOWS: usize = 10_000;
/// How long two workers run for one reading.
const PAIR_TIME: Duration = Duration::from_millis(500);

pub(crate) fn run(options: &Options) -> anyhow::Result<ExitCode> {
    let mut recorder = options.recording.recorder();
    rows(options, &mut recorder)?;
    Ok(recorder.finish())
}

/// All rows.
pub(crate) fn rows(options: &Options, recorder: &mut Recorder) -> anyhow::Result<()> {
    let rounds = options.rounds;
    let most = if options.full { 8_000_000 } else { 1_000_000 };
    for flows in [1_000, 10_000, 60_000, 250_000, 1_000_000, 8_000_000] {
        for shuffled in [false, true] {
            let order = if shuffled { "shuffled" } else { "in-order" };
            let load = load::Plan {
                mix: Mix::Established,
                flows,
                shuffled,
                rules: RULES,
            };
            let plan = Plan {
                parameters: [("flows".to_owned(), flows as f64)].into(),
                ..plan(
                    format!("memory-flows-{order}-{flows}"),
                    format!("established IPv4, {flows} flows, {}", order.replace('-', " ")),
                )
            };
            if flows <= most && options.wants(&plan) {
                against_control(recorder, &plan, load, rounds)?;
            }
        }
    }
    for mix in Mix::ALL {
        let load = load::Plan {
            mix,
            flows: if mix == Mix::NewFlows { NEW_FLOWS } else { FLOWS },
            shuffled: false,
            rules: RULES,
        };
        let plan = plan(
            format!("memory-mix-{mix}"),
            format!("{mix}, {} flows, {RULES} rules", load.flows),
        );
        if !options.wants(&plan) {
            continue;
        }
        if mix == Mix::EmptyTurn {
            empty_turns(recorder, plan, load, rounds)?;
        } else {
            against_control(recorder, &plan, load, rounds)?;
        }
    }
    for mix in [Mix::NewFlows, Mix::Denied] {
        for rules in [10, 100, 1_000, 10_000, 100_000] {
            let plan = Plan {
                parameters: [("rules".to_owned(), rules as f64)].into(),
                ..plan(
                    format!("memory-{mix}-rules-{rules}"),
                    format!("{mix}, {NEW_FLOWS} flows, {rules} rules"),
                )
            };
            let load = load::Plan {
                mix,
                flows: NEW_FLOWS,
                shuffled: false,
                rules,
            };
            if options.wants(&plan) {
                against_control(recorder, &plan, load, rounds)?;
            }
        }
    }
    for steering in [Steering::Symmetric, Steering::Apart] {
        two_workers(options, recorder, steering)?;
    }
    let established = |flows, shuffled| load::Plan {
        mix: Mix::Established,
        flows,
        shuffled,
        rules: RULES,
    };
    times_by_stage(options, recorder, established(1_000, false))?;
    times_by_stage(options, recorder, established(60_000, true))?;
    if options.full {
        times_by_stage(options, recorder, established(1_000_000, true))?;
        for mix in Mix::ALL
            .into_iter()
            .filter(|mix| !matches!(mix, Mix::Established | Mix::EmptyTurn))
        {
            let load = load::Plan {
                mix,
                flows: if mix == Mix::NewFlows { NEW_FLOWS } else { FLOWS },
                shuffled: false,
                rules: RULES,
            };
            times_by_stage(options, recorder, load)?;
        }
    }
    Mix::ALL
        .into_iter()
        .try_for_each(|mix| instructions_by_stage(options, recorder, mix))
}

fn plan(id: String, title: String) -> Plan {
    Plan {
        id,
        title,
        section: Section::Memory,
        unit: "ns/packet".into(),
        better: Better::Lower,
        target: None,
        parameters: [].into(),
    }
}

fn per_packet(round: Round) -> Reading {
    Reading {
        value: round.elapsed as f64 / round.packets as f64,
        detail: json!({"packets": round.packets, "nanoseconds": round.elapsed}),
    }
}

/// A worker against the control loop with as many flows, both in this process.
fn against_control(
    recorder: &mut Recorder,
    plan: &Plan,
    load: load::Plan,
    rounds: usize,
) -> anyhow::Result<()> {
    recorder.measure(std::slice::from_ref(plan), |machine| {
        let (mut subject, mut control) = (Load::new(load)?, Control::new(load)?);
        let packets = PACKETS.max(load.flows);
        // Pages and predictors.
        subject.round(packets.min(load.flows), thread_nanos)?;
        let runs = interleave(
            rounds,
            &mut [
                Contender::new(
                    "worker",
                    "run_once from memory to memory, CPU time of its thread",
                    || Ok(per_packet(subject.round(packets, thread_nanos)?)),
                ),
                Contender::new(
                    "parse, hash, table",
                    "IPv4 headers, one multiplication, prefetched buckets of 64 bytes; no state, no policy",
                    || Ok(per_packet(control.round(packets, thread_nanos)?)),
                ),
            ],
        );
        Ok(vec![Row::compare(plan, machine, &runs, 0, Some(1))])
    })
}

fn empty_turns(recorder: &mut Recorder, plan: Plan, load: load::Plan, rounds: usize) -> anyhow::Result<()> {
    let plan = Plan {
        title: "a turn without a packet".into(),
        unit: "ns/turn".into(),
        ..plan
    };
    recorder.measure(std::slice::from_ref(&plan), |machine| {
        let mut subject = Load::new(load)?;
        let mut worker = [Contender::new(
            "worker",
            "run_once with nothing to receive",
            || Ok(per_packet(subject.round(PACKETS, thread_nanos)?)),
        )];
        let runs = interleave(rounds, &mut worker);
        Ok(vec![Row::compare(&plan, machine, &runs, 0, None)])
    })
}

/// Two workers on CPUs 0 and 1 against one of them.
fn two_workers(options: &Options, recorder: &mut Recorder, steering: Steering) -> anyhow::Result<()> {
    let (name, how, target) = match steering {
        Steering::Symmetric => ("symmetric", "symmetric steering", Some(Target::Ratio(1.8))),
        Steering::Apart => ("apart", "directions apart: half of the packets handed over", None),
    };
    let plan = Plan {
        unit: "Mpps".into(),
        better: Better::Higher,
        target,
        ..plan(
            format!("memory-two-workers-{name}"),
            format!("two workers, {how}, {PAIR_FLOWS} flows"),
        )
    };
    if !options.wants(&plan) {
        return Ok(());
    }
    recorder.measure(std::slice::from_ref(&plan), |machine| {
        let cpus = available_parallelism().context("counting CPUs")?.get();
        if cpus < 2 {
            bail!("two workers need two CPUs, there is {cpus}");
        }
        let load = load::Plan {
            mix: Mix::Established,
            flows: PAIR_FLOWS,
            shuffled: false,
            rules: RULES,
        };
        let pin = |cpu: usize| {
            core_affinity::set_for_current(core_affinity::CoreId { id: cpu });
        };
        let mut two = Pair::new(load, 2, steering)?;
        let mut one = Pair::new(load, 1, steering)?;
        let read = |pair: &mut Pair| -> anyhow::Result<Reading> {
            let (rate, handed) = pair.rate(PAIR_TIME, pin)?;
            Ok(Reading {
                value: rate / 1e6,
                detail: json!({"handedOver": handed}),
            })
        };
        let runs = interleave(
            options.rounds,
            &mut [
                Contender::new("two workers", "threads on CPUs 0 and 1, wall time", || {
                    read(&mut two)
                }),
                Contender::new("one worker", "a thread on CPU 0, wall time", || read(&mut one)),
            ],
        );
        Ok(vec![Row::compare(&plan, machine, &runs, 0, Some(1))])
    })
}

/// The program that is watched from outside, beside this one.
fn watched() -> anyhow::Result<PathBuf> {
    let program = std::env::current_exe()?.with_file_name("ringwall-memory-load");
    if !program.is_file() {
        bail!(
            "no {}: cargo build --release -p ringwall-bench-memory",
            program.display()
        );
    }
    Ok(program)
}

/// Nanoseconds of a load, as a timer finds it; those of each stage are in the reading's detail.
fn times_by_stage(options: &Options, recorder: &mut Recorder, load: load::Plan) -> anyhow::Result<()> {
    /// Enough for some thousand looks of the timer.
    const SAMPLED: usize = 10_000_000;
    let order = if load.shuffled { "shuffled" } else { "in order" };
    let plan = plan(
        format!("memory-stages-{}-{}", load.mix, load.flows),
        format!(
            "{}, {} flows, {order}, looked at by a timer",
            load.mix, load.flows
        ),
    );
    if !options.wants(&plan) {
        return Ok(());
    }
    recorder.measure(std::slice::from_ref(&plan), |machine| {
        let program = watched()?;
        let mut worker = [Contender::new(
            "worker",
            format!("perf record -e cpu-clock:u ringwall-memory-load {}", load.mix),
            || {
                let times = sampling::sample(&program, load, SAMPLED)?;
                Ok(Reading {
                    value: times.get(TOTAL).copied().context("no total")?,
                    detail: json!(times),
                })
            },
        )];
        let runs = interleave(options.rounds, &mut worker);
        Ok(vec![Row::compare(&plan, machine, &runs, 0, None)])
    })
}

/// Instructions of a mix; those of each stage are in the reading's detail.
fn instructions_by_stage(options: &Options, recorder: &mut Recorder, mix: Mix) -> anyhow::Result<()> {
    let plan = Plan {
        unit: if mix == Mix::EmptyTurn {
            "instructions/turn"
        } else {
            "instructions/packet"
        }
        .into(),
        ..plan(
            format!("memory-instructions-{mix}"),
            format!("{mix}, counted by callgrind"),
        )
    };
    if !options.wants(&plan) {
        return Ok(());
    }
    recorder.measure(std::slice::from_ref(&plan), |machine| {
        let program = watched()?;
        let counts = instructions::count(&program, mix)?;
        let total = counts.get(TOTAL).copied().context("no total")?;
        let outcome = Outcome::Measured {
            subject: Party {
                name: "worker".into(),
                setup: format!("valgrind --tool=callgrind ringwall-memory-load {mix}"),
            },
            control: None,
            rounds: vec![crate::samples::Round {
                first: Turn::Subject,
                subject: Reading {
                    value: total,
                    detail: json!(counts),
                },
                control: None,
            }],
        };
        Ok(vec![Row::new(&plan, machine, outcome)])
    })
}
