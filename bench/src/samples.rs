//! What a measurement leaves behind: the raw readings of a subject and of its control, in the order in which they were
//! taken. Every measurement writes one [`Row`] per figure to `bench/results/<id>.json`; every figure of the report is
//! computed from these files and from nothing else.
//!
//! ```text
//! let plan = Plan { id, title, section: Section::Throughput, unit: "Mpps".into(), better: Better::Higher,
//!                   target: Some(Target::Ratio(0.9)), parameters: [("flows".into(), 1000.0)].into() };
//! recorder.measure(&[plan], |machine| {                                   // recorder.rs
//!     let runs = interleave(5, &mut [                                     // rounds.rs
//!         Contender::new("ringwall", "wire, 1,000 rules", || Ok(mpps_of_ringwall()?.into())),
//!         Contender::new("bare l2fwd", "`l2fwd in out`", || Ok(mpps_of_l2fwd()?.into())),
//!     ]);
//!     Ok(vec![Row::compare(&plan, machine, &runs, 0, Some(1))])
//! })?;
//! ```

use std::{
    collections::BTreeMap,
    fs,
    io::Write,
    path::{Path, PathBuf},
};

use anyhow::{Context, bail, ensure};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{machine::Machine, rounds::Run};

/// Version of the files' format; a file of another one is refused.
const FORMAT: u32 = 1;

/// Largest movement of a control between rounds for its figure to count as steady; see [`Ratios::control_movement`].
pub(crate) const STEADY: f64 = 0.05;

/// What is going to be measured.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Plan {
    /// Name of the row and of its file: lower-case letters, digits and `-`
    pub(crate) id: String,
    /// What is measured, in a few words, for the report's tables and plots
    pub(crate) title: String,
    /// Part of the report
    pub(crate) section: Section,
    /// Unit of the readings, for example `Mpps`
    pub(crate) unit: String,
    /// Which readings are the good ones
    pub(crate) better: Better,
    /// What should be reached
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) target: Option<Target>,
    /// Numbers by which rows of one plot differ, for example `flows` or `percentile`
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) parameters: BTreeMap<String, f64>,
}

/// A part of the report.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Section {
    /// Packets per second on a wire or through a router.
    Throughput,
    /// Delay of packets.
    Latency,
    /// Connections per second, concurrent connections, flows that begin.
    Connections,
    /// Nanoseconds and instructions per packet in memory, by stage.
    Memory,
    /// Pods behind one machine: their TCP, their ports.
    Pods,
    /// Changed policy: its delay, and what it costs traffic.
    Policy,
    /// Killed processes, floods.
    Failures,
    /// Bytes.
    Footprint,
}

/// Which of two readings is better.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Better {
    /// The higher one, as for packets per second.
    Higher,
    /// The lower one, as for a delay.
    Lower,
}

/// What a row should reach: at least this where more is better, else at most.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Target {
    /// The median of the ratios of subject to control.
    Ratio(f64),
    /// The median of the subject's readings, in the row's unit.
    Subject(f64),
}

/// A row: a figure's plan and what came of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Row {
    format: u32,
    /// What was to be measured
    pub(crate) plan: Plan,
    /// The machine, before and after
    pub(crate) machine: Machine,
    /// Commit of the source, with `-dirty` where files differed from it
    pub(crate) commit: String,
    /// When the row was measured (RFC 3339, UTC)
    pub(crate) date: String,
    /// The readings, or why there are none
    pub(crate) outcome: Outcome,
}

/// What came of a row.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Outcome {
    /// It was measured.
    Measured {
        /// What was measured
        subject: Party,
        /// What it was measured against
        #[serde(default, skip_serializing_if = "Option::is_none")]
        control: Option<Party>,
        /// In the order in which they were run
        rounds: Vec<Round>,
    },
    /// It was not, and why.
    Skipped(String),
}

/// Who was measured.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Party {
    /// Name in tables and plots
    pub(crate) name: String,
    /// Its command, or its set-up in words
    pub(crate) setup: String,
}

/// One reading of each.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Round {
    /// Who was measured first
    pub(crate) first: Turn,
    /// The subject's reading
    pub(crate) subject: Reading,
    /// The control's, where there is one
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) control: Option<Reading>,
}

/// Whose turn it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Turn {
    /// The subject's.
    Subject,
    /// The control's.
    Control,
}

/// What one measurement in one round gave.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Reading {
    /// In the row's unit
    pub(crate) value: f64,
    /// What it was computed from: counts sent and received, trials, a histogram; null where there is no more to say
    #[serde(default, skip_serializing_if = "Value::is_null")]
    pub(crate) detail: Value,
}

impl Party {
    /// `setup` is its command, or its set-up in words.
    pub(crate) fn new(name: impl Into<String>, setup: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            setup: setup.into(),
        }
    }
}

impl From<f64> for Reading {
    fn from(value: f64) -> Self {
        Self {
            value,
            detail: Value::Null,
        }
    }
}

/// Median and range.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Spread {
    /// The middle value; of an even number of values, the mean of the two in the middle
    pub(crate) median: f64,
    /// The lowest value
    pub(crate) least: f64,
    /// The highest value
    pub(crate) most: f64,
}

impl Spread {
    /// None of no values.
    pub(crate) fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut sorted: Vec<f64> = values.into_iter().collect();
        sorted.sort_by(f64::total_cmp);
        let (&least, &most) = (sorted.first()?, sorted.last()?);
        let half = sorted.len() / 2;
        let median = if sorted.len() % 2 == 1 {
            sorted[half]
        } else {
            f64::midpoint(sorted[half - 1], sorted[half])
        };
        Some(Self { median, least, most })
    }
}

/// Subject against control, round by round.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Ratios {
    /// Subject's reading divided by the control's of the same round
    pub(crate) ratio: Spread,
    /// How far the control moved between rounds: (highest - lowest reading) / median reading. Zero with one round, which
    /// says nothing
    pub(crate) control_movement: f64,
    /// Number of rounds
    pub(crate) rounds: usize,
}

impl Ratios {
    /// Whether the control moved by more than [`STEADY`], or ran once only: then it is unknown what the machine did
    /// meanwhile.
    pub(crate) fn is_unsteady(&self) -> bool {
        self.rounds < 2 || self.control_movement > STEADY
    }
}

impl Row {
    /// A row of readings that [`crate::rounds::interleave`] took: `subject` and `control` are indices of `runs`. Skipped
    /// where either could not be measured.
    pub(crate) fn compare(
        plan: &Plan,
        machine: &Machine,
        runs: &[Run],
        subject: usize,
        control: Option<usize>,
    ) -> Self {
        let outcome = pair(runs, subject, control).unwrap_or_else(Outcome::Skipped);
        Self::new(plan, machine, outcome)
    }

    /// A row that was not measured.
    pub(crate) fn skipped(plan: &Plan, machine: &Machine, why: impl Into<String>) -> Self {
        Self::new(plan, machine, Outcome::Skipped(why.into()))
    }

    /// A row of readings without a control.
    pub(crate) fn alone(
        plan: &Plan,
        machine: &Machine,
        subject: Party,
        readings: impl IntoIterator<Item = Reading>,
    ) -> Self {
        let rounds: Vec<Round> = readings
            .into_iter()
            .map(|subject| Round {
                first: Turn::Subject,
                subject,
                control: None,
            })
            .collect();
        let outcome = if rounds.is_empty() {
            Outcome::Skipped("no round was run".to_owned())
        } else {
            Outcome::Measured {
                subject,
                control: None,
                rounds,
            }
        };
        Self::new(plan, machine, outcome)
    }

    /// A row of the source that this program was built from, now; reads the machine's load once more.
    pub(crate) fn new(plan: &Plan, machine: &Machine, outcome: Outcome) -> Self {
        Self {
            format: FORMAT,
            plan: plan.clone(),
            machine: machine.clone().finished(),
            commit: crate::machine::commit(),
            date: jiff::Timestamp::now()
                .round(jiff::Unit::Second)
                .unwrap_or_default()
                .to_string(),
            outcome,
        }
    }

    /// Why it was not measured; None if it was.
    pub(crate) fn why_skipped(&self) -> Option<&str> {
        match &self.outcome {
            Outcome::Skipped(why) => Some(why),
            Outcome::Measured { .. } => None,
        }
    }

    /// The rounds; empty where it was skipped.
    pub(crate) fn rounds(&self) -> &[Round] {
        match &self.outcome {
            Outcome::Measured { rounds, .. } => rounds,
            Outcome::Skipped(_) => &[],
        }
    }

    /// The subject's readings.
    pub(crate) fn subject(&self) -> Option<Spread> {
        Spread::of(self.rounds().iter().map(|round| round.subject.value))
    }

    /// The control's readings; None without a control.
    pub(crate) fn control(&self) -> Option<Spread> {
        Spread::of(
            self.rounds()
                .iter()
                .filter_map(|round| Some(round.control.as_ref()?.value)),
        )
    }

    /// Subject against control; None without a control.
    pub(crate) fn ratios(&self) -> Option<Ratios> {
        let control = self.control()?;
        let ratio = Spread::of(
            self.rounds()
                .iter()
                .filter_map(|round| Some(round.subject.value / round.control.as_ref()?.value)),
        )?;
        Some(Ratios {
            ratio,
            control_movement: (control.most - control.least) / control.median,
            rounds: self.rounds().len(),
        })
    }

    /// Whether the target is reached; None without one, or where nothing was measured.
    pub(crate) fn reached(&self) -> Option<bool> {
        let (value, bound) = match self.plan.target? {
            Target::Ratio(bound) => (self.ratios()?.ratio.median, bound),
            Target::Subject(bound) => (self.subject()?.median, bound),
        };
        Some(match self.plan.better {
            Better::Higher => value >= bound,
            Better::Lower => value <= bound,
        })
    }

    /// Whether the row can be computed with.
    ///
    /// # Errors
    /// Says what is wrong: another format, a name that is no file name, readings that are no numbers, a control of some
    /// rounds only, or a control of zero.
    fn check(&self) -> anyhow::Result<()> {
        ensure!(
            self.format == FORMAT,
            "format {}, this program reads {FORMAT}: measure again",
            self.format
        );
        let id = &self.plan.id;
        ensure!(
            !id.is_empty()
                && id
                    .bytes()
                    .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-'),
            "id `{id}`: use lower-case letters, digits and `-`"
        );
        let Outcome::Measured { control, rounds, .. } = &self.outcome else {
            return Ok(());
        };
        ensure!(!rounds.is_empty(), "measured, but without rounds");
        for (index, round) in rounds.iter().enumerate() {
            ensure!(
                round.subject.value.is_finite(),
                "round {}: the subject's reading is no number",
                index + 1
            );
            match (&round.control, control) {
                (None, None) => {}
                (Some(reading), Some(_)) => ensure!(
                    reading.value.is_finite() && reading.value > 0.0,
                    "round {}: the control's reading is {}, a ratio to it says nothing",
                    index + 1,
                    reading.value
                ),
                (Some(_), None) => bail!("round {} has a control, the row has none", index + 1),
                (None, Some(_)) => bail!("round {} lacks the control's reading", index + 1),
            }
        }
        Ok(())
    }

    /// The row, or as skipped if nothing can be computed with it: its readings are no numbers, or its control measured
    /// nothing.
    pub(crate) fn or_skipped(mut self) -> Self {
        if let (Err(error), Outcome::Measured { .. }) = (self.check(), &self.outcome) {
            self.outcome = Outcome::Skipped(format!("{error:#}"));
        }
        self
    }

    /// Writes `<folder>/<id>.json`, whole or not at all, and makes the folder.
    ///
    /// # Errors
    /// Nothing can be computed with the row, its id is no file name, or the file cannot be written.
    pub(crate) fn save(&self, folder: &Path) -> anyhow::Result<PathBuf> {
        self.check()?;
        let file = folder.join(format!("{}.json", self.plan.id));
        let write = || -> anyhow::Result<()> {
            fs::create_dir_all(folder)?;
            let mut staged = tempfile::Builder::new()
                .permissions(std::os::unix::fs::PermissionsExt::from_mode(0o644))
                .tempfile_in(folder)?;
            serde_json::to_writer_pretty(&mut staged, self)?;
            staged.write_all(b"\n")?;
            staged.persist(&file)?;
            Ok(())
        };
        write().with_context(|| format!("cannot write {}", file.display()))?;
        Ok(file)
    }

    /// Reads one file.
    ///
    /// # Errors
    /// It cannot be read, is no row, or holds one of another name.
    pub(crate) fn load(file: &Path) -> anyhow::Result<Self> {
        let read = || -> anyhow::Result<Self> {
            let row: Self = serde_json::from_slice(&fs::read(file)?)?;
            row.check()?;
            ensure!(
                file.file_stem().is_some_and(|stem| stem == row.plan.id.as_str()),
                "holds row `{}`: a row's file has its name",
                row.plan.id
            );
            Ok(row)
        };
        read().with_context(|| format!("cannot use {}", file.display()))
    }
}

/// Every row of a folder, by section and id; numbers in an id count as numbers.
///
/// # Errors
/// The folder or one of its `.json` files cannot be read, or is damaged.
pub(crate) fn load_all(folder: &Path) -> anyhow::Result<Vec<Row>> {
    let entries = fs::read_dir(folder)
        .with_context(|| format!("cannot read {}: `make bench` writes it", folder.display()))?;
    let mut rows = Vec::new();
    for entry in entries {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "json") {
            rows.push(Row::load(&path)?);
        }
    }
    rows.sort_by_cached_key(|row| (row.plan.section, by_number(&row.plan.id)));
    Ok(rows)
}

/// An id's parts between hyphens, so that `flows-250000` comes before `flows-1000000`.
fn by_number(id: &str) -> Vec<(u64, String)> {
    id.split('-')
        .map(|part| (part.parse().unwrap_or(u64::MAX), part.to_owned()))
        .collect()
}

/// The rounds of two runs side by side, or why there is none.
fn pair(runs: &[Run], subject: usize, control: Option<usize>) -> Result<Outcome, String> {
    let readings = |index: usize| {
        runs[index]
            .readings
            .as_ref()
            .map_err(|why| format!("{}: {why}", runs[index].party.name))
    };
    let measured = readings(subject)?;
    let against = control.map(readings).transpose()?;
    let rounds = measured
        .iter()
        .enumerate()
        .map(|(round, taken)| {
            let control = against.map(|readings| &readings[round]);
            let control_first = control.is_some_and(|control| control.position < taken.position);
            Round {
                first: if control_first {
                    Turn::Control
                } else {
                    Turn::Subject
                },
                subject: taken.reading.clone(),
                control: control.map(|taken| taken.reading.clone()),
            }
        })
        .collect();
    Ok(Outcome::Measured {
        subject: runs[subject].party.clone(),
        control: control.map(|index| runs[index].party.clone()),
        rounds,
    })
}
