//! Where rows go: to the terminal, and to the folder that the report reads.
//!
//! ```text
//! let mut recorder = options.recording.recorder();
//! recorder.measure(&[plan], |machine| {
//!     let runs = rounds::interleave(rounds, &mut [subject, control]);
//!     Ok(vec![Row::compare(&plan, machine, &runs, 0, Some(1))])
//! })?;
//! recorder.finish()
//! ```

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
    time::Instant,
};

use crate::{
    machine::Machine,
    report::number,
    samples::{Plan, Row},
};

/// Options of every benchmark that measures rows of the report.
#[derive(clap::Args, Clone, Debug, Default)]
pub(crate) struct Recording {
    /// Write each row's raw readings to DIR/ROW.json, as the report reads them from bench/results
    #[arg(long, value_name = "DIR")]
    samples: Option<PathBuf>,
    /// Measure even if others use the CPUs; the rows say how much
    #[arg(long)]
    even_if_busy: bool,
}

impl Recording {
    /// To a folder.
    pub(crate) fn to(folder: &Path, even_if_busy: bool) -> Self {
        Self {
            samples: Some(folder.to_owned()),
            even_if_busy,
        }
    }

    /// A recorder that has nothing yet.
    pub(crate) fn recorder(&self) -> Recorder {
        Recorder {
            options: self.clone(),
            deadline: None,
            kept: Vec::new(),
            measured: 0,
            skipped: 0,
        }
    }
}

/// Prints rows, saves them, and counts those that were measured.
pub(crate) struct Recorder {
    options: Recording,
    /// After which nothing is begun
    deadline: Option<Instant>,
    /// Names of all rows so far
    kept: Vec<String>,
    measured: usize,
    skipped: usize,
}

impl Recorder {
    /// Skips rows that would begin after this time.
    pub(crate) fn end_by(&mut self, deadline: Instant) {
        self.deadline = Some(deadline);
    }

    /// Names of all rows so far.
    pub(crate) fn kept(&self) -> &[String] {
        &self.kept
    }

    /// Waits until the machine is idle, then takes the rows of some plans. All of them are skipped, with the reason, if
    /// the machine stays busy or `take` fails.
    ///
    /// # Errors
    /// The samples cannot be written, or the kernel does not show its CPUs' time.
    pub(crate) fn measure(
        &mut self,
        plans: &[Plan],
        take: impl FnOnce(&Machine) -> anyhow::Result<Vec<Row>>,
    ) -> anyhow::Result<()> {
        let late = self.deadline.is_some_and(|deadline| Instant::now() > deadline);
        let machine = if self.options.even_if_busy || late {
            Machine::now()?
        } else {
            Machine::when_idle()?
        };
        let skipped = |why: String| {
            plans
                .iter()
                .map(|plan| Row::skipped(plan, &machine, why.clone()))
                .collect()
        };
        let rows: Vec<Row> = match machine.obstacle() {
            _ if late => {
                skipped("the time of a short run was over; `make bench-full` measures it".to_owned())
            }
            Some(why) if !self.options.even_if_busy => skipped(why),
            _ => take(&machine).unwrap_or_else(|error| skipped(format!("{error:#}"))),
        };
        rows.into_iter().try_for_each(|row| self.keep(row))
    }

    fn keep(&mut self, row: Row) -> anyhow::Result<()> {
        let row = row.or_skipped();
        println!("{}", line(&row));
        self.kept.push(row.plan.id.clone());
        match row.why_skipped() {
            Some(_) => self.skipped += 1,
            None => self.measured += 1,
        }
        if let Some(folder) = &self.options.samples {
            row.save(folder)?;
        }
        Ok(())
    }

    /// Status 2 if nothing could be measured.
    pub(crate) fn finish(self) -> ExitCode {
        if self.measured == 0 {
            eprintln!(
                "error: nothing could be measured; the {} rows say why",
                self.skipped
            );
            return ExitCode::from(2);
        }
        ExitCode::SUCCESS
    }
}

/// One row for a terminal.
fn line(row: &Row) -> String {
    let Plan { id, title, unit, .. } = &row.plan;
    if let Some(why) = row.why_skipped() {
        return format!("{id}: {title}: skipped: {why}");
    }
    let absolute = |spread: Option<crate::samples::Spread>| {
        spread.map_or_else(String::new, |spread| {
            format!(
                "{} {unit} ({} to {})",
                number(spread.median),
                number(spread.least),
                number(spread.most)
            )
        })
    };
    let rounds = match row.rounds().len() {
        1 => "1 round".to_owned(),
        count => format!("{count} rounds"),
    };
    match row.ratios() {
        Some(ratios) => format!(
            "{id}: {title}: {}{} of the control ({} to {}, {rounds}, control moved {:.1} %); {} against {}",
            if ratios.is_unsteady() { "≈ " } else { "" },
            number(ratios.ratio.median),
            number(ratios.ratio.least),
            number(ratios.ratio.most),
            ratios.control_movement * 100.0,
            absolute(row.subject()),
            absolute(row.control()),
        ),
        None => format!("{id}: {title}: {}, {rounds}", absolute(row.subject())),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)] // a test that panics has failed
mod tests {
    use std::process::ExitCode;

    use anyhow::anyhow;

    use super::Recording;
    use crate::{
        rounds::{Contender, interleave},
        samples::{Better, Plan, Row, Section, load_all},
    };

    fn plan(id: &str) -> Plan {
        Plan {
            id: id.into(),
            title: "title".into(),
            section: Section::Throughput,
            unit: "Mpps".into(),
            better: Better::Higher,
            target: None,
            parameters: [].into(),
        }
    }

    fn recording(folder: &std::path::Path) -> Recording {
        Recording {
            samples: Some(folder.to_owned()),
            even_if_busy: true,
        }
    }

    #[test]
    fn a_failure_skips_its_rows_alone_and_status_2_is_for_nothing_at_all() {
        let folder = tempfile::tempdir().unwrap();
        let mut recorder = recording(folder.path()).recorder();
        recorder
            .measure(&[plan("a"), plan("b")], |_| Err(anyhow!("no such peer")))
            .unwrap();
        recorder
            .measure(&[plan("c")], |machine| {
                let runs = interleave(
                    1,
                    &mut [
                        Contender::new("subject", "", || Ok(1.0.into())),
                        Contender::new("control", "", || Ok(0.0.into())),
                    ],
                );
                Ok(vec![Row::compare(&plan("c"), machine, &runs, 0, Some(1))])
            })
            .unwrap();
        assert_eq!(
            format!("{:?}", recorder.finish()),
            format!("{:?}", ExitCode::from(2))
        );
        let mut recorder = recording(folder.path()).recorder();
        recorder
            .measure(&[plan("d"), plan("e")], |machine| {
                let runs = interleave(
                    2,
                    &mut [
                        Contender::new("subject", "", || Ok(2.0.into())),
                        Contender::new("control", "", || Ok(4.0.into())),
                        Contender::new("peer", "", || Err(anyhow!("the package is missing"))),
                    ],
                );
                Ok(vec![
                    Row::compare(&plan("d"), machine, &runs, 0, Some(1)),
                    Row::compare(&plan("e"), machine, &runs, 0, Some(2)),
                ])
            })
            .unwrap();
        assert_eq!(
            format!("{:?}", recorder.finish()),
            format!("{:?}", ExitCode::SUCCESS)
        );
        let rows = load_all(folder.path()).unwrap();
        let whys: Vec<Option<&str>> = rows.iter().map(Row::why_skipped).collect();
        assert_eq!(
            whys,
            [
                Some("no such peer"),
                Some("no such peer"),
                Some("round 1: the control's reading is 0, a ratio to it says nothing"),
                None,
                Some("peer: round 1: the package is missing")
            ]
        );
        assert_eq!(rows[3].ratios().unwrap().ratio.median, 0.5);
    }
}
