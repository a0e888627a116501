//! `ringwall-bench suite`: every row of the data sheet, one measurement after the other, and the report of it.

use std::{
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Context, bail};

use crate::{
    generate::stream::{IMIX, Sizes},
    hostile, latency, memory, node, peers, pods, policy, rates,
    recorder::{Recorder, Recording},
    report, restart, under_load, veth,
};

/// Options of the suite.
#[derive(clap::Args, Debug)]
#[command(after_help = "Examples:\n  \
    ringwall-bench suite                          # `make bench`: under ten minutes\n  \
    ringwall-bench suite --full                   # `make bench-full`\n  \
    ringwall-bench suite --only search,node --folder /tmp/sheet --even-if-busy\n\n\
    A row that cannot be measured says why and is skipped. Status 2 where none could be measured.")]
pub(crate) struct Options {
    /// Every length of RFC 2544, a million flows, 100,000 rules, more rounds and longer trials; no limit of time
    #[arg(long)]
    full: bool,
    /// How often subjects and controls take turns [default: 3; with --full 7]
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..))]
    rounds: Option<u16>,
    /// Only these parts
    #[arg(long, value_delimiter = ',', value_name = "PART")]
    only: Vec<String>,
    /// Folder that gets `results/ROW.json`, `REPORT.md` and `plots`; a run of all parts removes other rows from `results`
    #[arg(long, value_name = "DIR", default_value = env!("CARGO_MANIFEST_DIR"), hide_default_value = true)]
    folder: PathBuf,
    /// Measure even if others use the CPUs; the rows say how much
    #[arg(long)]
    even_if_busy: bool,
}

/// How much is measured.
struct Effort {
    full: bool,
    rounds: usize,
}

/// A part of the suite.
type Part = (&'static str, fn(&Effort, &mut Recorder) -> anyhow::Result<()>);

/// In the order in which they are measured: what a short run may have no time for comes last.
const PARTS: [Part; 11] = [
    ("veth", wire),
    ("search", search),
    ("node", guarded_node),
    ("under-load", changes),
    ("latency", adoption),
    ("hostile", floods),
    ("policy", |effort, recorder| {
        policy::rows(effort.full, effort.rounds, recorder)
    }),
    ("peers", |effort, recorder| {
        peers::rows(&peers::Options::suite(effort.full, effort.rounds), recorder)
    }),
    ("pods", ports),
    ("restart", kills),
    ("memory", |effort, recorder| {
        memory::rows(&memory::Options::suite(effort.full, effort.rounds), recorder)
    }),
];

/// A short run begins no row after this; the longest rows take a minute.
const SHORT: Duration = Duration::from_secs(510);

pub(crate) fn run(options: &Options) -> anyhow::Result<ExitCode> {
    for name in &options.only {
        if !PARTS.iter().any(|(part, _)| part == name) {
            let names: Vec<&str> = PARTS.iter().map(|(part, _)| *part).collect();
            bail!("--only {name}: the parts are {}", names.join(", "));
        }
    }
    let effort = Effort {
        full: options.full,
        rounds: options
            .rounds
            .map_or(if options.full { 7 } else { 3 }, usize::from),
    };
    let results = options.folder.join("results");
    let mut recorder = Recording::to(&results, options.even_if_busy).recorder();
    if !options.full {
        recorder.end_by(Instant::now() + SHORT);
    }
    for (name, part) in PARTS {
        if options.only.is_empty() || options.only.iter().any(|only| only == name) {
            println!("== {name}");
            part(&effort, &mut recorder)?;
        }
    }
    if options.only.is_empty() {
        remove_others(&results, recorder.kept())?;
    }
    report::write_all(&options.folder)?;
    println!("== report: {}", options.folder.join("REPORT.md").display());
    Ok(recorder.finish())
}

/// Removes rows of earlier runs that this one did not measure: a report is of one run.
fn remove_others(results: &Path, kept: &[String]) -> anyhow::Result<()> {
    for entry in fs::read_dir(results).with_context(|| format!("cannot read {}", results.display()))? {
        let path = entry?.path();
        let is_row = path.extension().is_some_and(|extension| extension == "json");
        let is_kept = path
            .file_stem()
            .is_some_and(|stem| kept.iter().any(|kept| stem == kept.as_str()));
        if is_row && !is_kept {
            fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))?;
        }
    }
    Ok(())
}

/// The wire, flooded, by flows and rules.
fn wire(effort: &Effort, recorder: &mut Recorder) -> anyhow::Result<()> {
    let sizes: &[(u32, usize)] = if effort.full {
        &[
            (1_000, 1_000),
            (100_000, 1_000),
            (1_000_000, 1_000),
            (1_000_000, 100_000),
        ]
    } else {
        &[(1_000, 1_000), (100_000, 1_000)]
    };
    for (flows, rules) in sizes {
        let options = veth::Options {
            rounds: effort.rounds,
            seconds: if effort.full { 3.0 } else { 1.5 },
            flows: *flows,
            rules: *rules,
            recording: Recording::default(),
        };
        veth::rows(&options, recorder)?;
    }
    Ok(())
}

fn search(effort: &Effort, recorder: &mut Recorder) -> anyhow::Result<()> {
    /// Of RFC 2544.
    const LENGTHS: [u16; 7] = [64, 128, 256, 512, 1024, 1280, 1518];
    let one = |length: &u16| Sizes(vec![(*length, 1)]);
    let mut size: Vec<Sizes> = match effort.full {
        true => LENGTHS.iter().map(one).collect(),
        false => LENGTHS[..1].iter().map(one).collect(),
    };
    size.push(Sizes(IMIX.to_vec()));
    let options = rates::Options {
        size,
        rounds: effort.rounds,
        trial: if effort.full { 2.0 } else { 0.25 },
        trials: if effort.full { 3 } else { 1 },
        width: if effort.full { 0.01 } else { 0.05 },
        latency_seconds: if effort.full { 5.0 } else { 1.0 },
        flows: 1000,
        rules: 1000,
        ipv6: false,
        recording: Recording::default(),
    };
    rates::rows(&options, recorder)
}

fn guarded_node(effort: &Effort, recorder: &mut Recorder) -> anyhow::Result<()> {
    let shapes: &[node::Shape] = if effort.full {
        &[node::Shape::Routed, node::Shape::Bridge]
    } else {
        &[node::Shape::Routed]
    };
    for shape in shapes {
        let options = node::Options {
            rounds: effort.rounds,
            millis: if effort.full { 2000 } else { 700 },
            shape: *shape,
            recording: Recording::default(),
        };
        node::rows(&options, recorder)?;
    }
    Ok(())
}

fn ports(effort: &Effort, recorder: &mut Recorder) -> anyhow::Result<()> {
    let options = pods::Options {
        rounds: effort.rounds,
        seconds: if effort.full { 3.0 } else { 1.5 },
        pods: 110,
        recording: Recording::default(),
    };
    pods::rows(&options, recorder)
}

fn changes(effort: &Effort, recorder: &mut Recorder) -> anyhow::Result<()> {
    let options = under_load::Options {
        rounds: effort.rounds,
        rate: 200_000,
        flows: if effort.full { 1_000_000 } else { 200_000 },
        changes: if effort.full { 20 } else { 6 },
        rules: 1000,
        recording: Recording::default(),
    };
    under_load::rows(&options, recorder)
}

fn adoption(effort: &Effort, recorder: &mut Recorder) -> anyhow::Result<()> {
    let options = latency::Options {
        pods: 1000,
        policies: 200,
        changes: if effort.full { 200 } else { 50 },
        recording: Recording::default(),
    };
    latency::rows(&options, recorder)
}

fn kills(effort: &Effort, recorder: &mut Recorder) -> anyhow::Result<()> {
    let options = restart::Options {
        rounds: if effort.full { 15 } else { effort.rounds.min(2) },
        pods: 4,
        log: false,
        recording: Recording::default(),
    };
    restart::rows(&options, recorder)
}

fn floods(effort: &Effort, recorder: &mut Recorder) -> anyhow::Result<()> {
    let options = hostile::Options {
        seconds: if effort.full { 20 } else { 4 },
        rate: 500_000,
        recording: Recording::default(),
    };
    // The rows say which attacks were not held.
    hostile::rows(&options, recorder).map(|_| ())
}
