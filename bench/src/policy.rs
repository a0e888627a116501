//! What the policy engine costs: one row for each figure, on synthetic clusters, with the control where there is one.

mod churn;
mod cluster;
mod compile;
mod control;
mod in_process;
mod nft;
mod policy_change;
mod proof;
mod report;
mod two_process;

use std::path::PathBuf;

use anyhow::Context;
use clap::ValueEnum;

use self::report::Report;
use crate::{
    arguments::positive,
    machine::Machine,
    recorder::Recorder,
    samples::{Better, Plan, Section},
};

/// Options of the benchmark.
#[derive(clap::Args, Debug)]
#[command(after_help = "Examples:\n  \
    ringwall-bench policy                    # every row, some minutes\n  \
    ringwall-bench policy compile --rounds 5\n  \
    ringwall-bench policy change churn --json figures.json\n  \
    ringwall-bench policy change churn --dataplane afxdp\n\n\
    Rows that start the control process need `ringwall` beside this program, built with the same profile.\n\
    Figures of a machine that does something else are worth nothing.")]
pub(crate) struct Options {
    /// Which figures; all where none is named
    #[arg(value_enum)]
    rows: Vec<RowName>,
    /// Sizes to measure at
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = [Size::Medium, Size::Large])]
    sizes: Vec<Size>,
    /// How often what is repeated is repeated; rows with many events have their own numbers
    #[arg(long, default_value_t = 7, value_parser = positive::<usize>)]
    rounds: usize,
    /// Changes measured one after the other (`change`, `policy-change`)
    #[arg(long, default_value_t = 200, value_parser = positive::<usize>)]
    changes: usize,
    /// How long pods come and go (`churn`)
    #[arg(long, default_value_t = 60, value_parser = positive::<u32>)]
    seconds: u32,
    /// Events in a second (`churn`)
    #[arg(long, default_value_t = 1000, value_parser = positive::<u32>)]
    events_per_second: u32,
    /// Where the dataplane of `memory`, `change` and `churn` is
    #[arg(long, value_enum, default_value_t = Dataplane::Memory)]
    dataplane: Dataplane,
    /// Write the figures to this file as JSON, one object
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// A figure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum RowName {
    /// Full compile, size of the image.
    Compile,
    /// Memory of the control process, fed by the HTTP watch; time from its start to the first adopted snapshot.
    Memory,
    /// One pod changed, to the adoption by all workers.
    Change,
    /// Pods come and go for a while: lag, CPU, flows judged again.
    Churn,
    /// Whole proof; one changed pod compiled and proven.
    Checker,
    /// One policy with words or blocks of its own, or one member of an address set, compiled, proven and handed over.
    PolicyChange,
    /// Difference of two clusters.
    Diff,
    /// First packets, alone and batched, from few rules to many; its sizes are its own.
    FirstPacket,
    /// The same rules loaded by `nft -f`, for comparison; needs root.
    Nft,
}

/// A dataplane.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Dataplane {
    /// In this process, with one worker on frames in memory
    Memory,
    /// Both processes of `ringwall run`, with two AF_XDP workers on a wire between veth pairs; needs root
    Afxdp,
}

impl Dataplane {
    fn words(self) -> &'static str {
        match self {
            Self::Memory => "workers on memory",
            Self::Afxdp => "AF_XDP workers",
        }
    }
}

/// A cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Size {
    /// 200 policies, 1,000 pods, 20 namespaces
    Small,
    /// 1,000 policies, 10,000 pods, 100 namespaces
    Medium,
    /// 10,000 policies, 100,000 pods, 1,000 namespaces
    Large,
}

impl Size {
    /// Policies, pods, namespaces.
    fn counts(self) -> (usize, usize, usize) {
        match self {
            Self::Small => (200, 1_000, 20),
            Self::Medium => (1_000, 10_000, 100),
            Self::Large => (10_000, 100_000, 1_000),
        }
    }

    fn words(self) -> String {
        let (policies, pods, namespaces) = self.counts();
        format!("{policies} policies, {pods} pods, {namespaces} namespaces")
    }
}

pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    let mut report = Report::new(Machine::now()?);
    println!("{}\n", report.machine());
    measure(options, &mut report)?;
    println!("\n{}", report.table());
    if let Some(file) = &options.json {
        std::fs::write(file, format!("{}\n", report.json()))
            .with_context(|| format!("cannot write {}", file.display()))?;
    }
    Ok(())
}

/// Rows of the data sheet.
pub(crate) fn rows(full: bool, rounds: usize, recorder: &mut Recorder) -> anyhow::Result<()> {
    // The rows' own names are known once they are measured.
    let plan = Plan {
        id: "policy-engine".into(),
        title: "compiling and proving policies".into(),
        section: Section::Policy,
        unit: "ms".into(),
        better: Better::Lower,
        target: None,
        parameters: [].into(),
    };
    let options = Options {
        rows: vec![RowName::Compile, RowName::Checker],
        sizes: if full {
            vec![Size::Medium, Size::Large]
        } else {
            vec![Size::Medium]
        },
        rounds,
        changes: 200,
        seconds: 60,
        events_per_second: 1000,
        dataplane: Dataplane::Memory,
        json: None,
    };
    recorder.measure(&[plan], |machine| {
        let mut report = Report::new(machine.clone());
        measure(&options, &mut report)?;
        Ok(report.samples(machine))
    })
}

fn measure(options: &Options, report: &mut Report) -> anyhow::Result<()> {
    let rows: &[RowName] = if options.rows.is_empty() {
        RowName::value_variants()
    } else {
        &options.rows
    };
    for row in rows {
        if *row == RowName::FirstPacket {
            proof::first_packet(options, report)?;
            continue;
        }
        for size in &options.sizes {
            match row {
                RowName::Compile => compile::run(options, *size, report)?,
                RowName::Memory => control::memory(*size, options.dataplane, report)?,
                RowName::Change => churn::change(options, *size, report)?,
                RowName::Checker => proof::checker(options, *size, report)?,
                RowName::PolicyChange => {
                    policy_change::words(options, *size, report)?;
                    policy_change::members(options, *size, report)?;
                }
                RowName::Diff => proof::diff(options, *size, report)?,
                RowName::FirstPacket => {}
                RowName::Nft => nft::run(options, *size, report)?,
                RowName::Churn => churn::sustained(options, *size, report)?,
            }
        }
    }
    Ok(())
}
