//! Measuring several things in turns, so that what the machine does besides meets all of them.

use anyhow::Context;

use crate::samples::{Party, Reading};

/// Something that is measured once a round.
pub(crate) struct Contender<'a> {
    party: Party,
    measure: Box<dyn FnMut() -> anyhow::Result<Reading> + 'a>,
}

impl<'a> Contender<'a> {
    /// `setup` is its command, or its set-up in words. `measure` starts it, takes one reading, and ends it. Where it
    /// cannot be measured here, `measure` fails with the reason ("the package dpdk is missing"), and its rows say so.
    pub(crate) fn new(
        name: impl Into<String>,
        setup: impl Into<String>,
        measure: impl FnMut() -> anyhow::Result<Reading> + 'a,
    ) -> Self {
        Self {
            party: Party {
                name: name.into(),
                setup: setup.into(),
            },
            measure: Box::new(measure),
        }
    }
}

/// What the rounds of one contender gave.
#[derive(Clone, Debug)]
pub(crate) struct Run {
    /// Who
    pub(crate) party: Party,
    /// One of each round; why there are none, where a round failed
    pub(crate) readings: Result<Vec<Taken>, String>,
}

impl Run {
    /// The same run with another number of each reading's detail as its value.
    pub(crate) fn pick(&self, key: &str) -> Self {
        let number = |taken: &Taken| {
            let value = taken.reading.detail[key]
                .as_f64()
                .ok_or_else(|| format!("a reading has no number `{key}`"))?;
            Ok(Taken {
                position: taken.position,
                reading: Reading {
                    value,
                    detail: taken.reading.detail.clone(),
                },
            })
        };
        Self {
            party: self.party.clone(),
            readings: self
                .readings
                .clone()
                .and_then(|readings| readings.iter().map(number).collect()),
        }
    }
}

/// A reading and when it was taken.
#[derive(Clone, Debug)]
pub(crate) struct Taken {
    /// How many contenders were measured before in the same round
    pub(crate) position: usize,
    /// What was read
    pub(crate) reading: Reading,
}

/// Measures all contenders `rounds` times. Round *n* begins with contender *n* modulo their number, so that with two
/// the first one alternates. A contender that fails is left out of later rounds and has no readings; the others go on.
pub(crate) fn interleave(rounds: usize, contenders: &mut [Contender<'_>]) -> Vec<Run> {
    let count = contenders.len();
    let mut runs: Vec<Run> = contenders
        .iter()
        .map(|contender| Run {
            party: contender.party.clone(),
            readings: Ok(Vec::new()),
        })
        .collect();
    for round in 0..rounds {
        for position in 0..count {
            let index = (round + position) % count;
            let Run { party, readings } = &mut runs[index];
            let Ok(taken) = readings else { continue };
            match (contenders[index].measure)().with_context(|| format!("round {}", round + 1)) {
                Ok(reading) => {
                    eprintln!("  round {}: {}: {}", round + 1, party.name, reading.value);
                    taken.push(Taken { position, reading });
                }
                Err(error) => {
                    eprintln!("  {}: not measured: {error:#}", party.name);
                    *readings = Err(format!("{error:#}"));
                }
            }
        }
    }
    runs
}

#[cfg(test)]
#[allow(clippy::unwrap_used)] // a test that panics has failed
mod tests {
    use std::cell::RefCell;

    use anyhow::anyhow;

    use super::{Contender, interleave};

    #[test]
    fn who_comes_first_alternates_and_a_failure_stops_only_its_own() {
        let log = RefCell::new(String::new());
        let mut failing = 0;
        let mut contenders = [
            Contender::new("a", "", || {
                log.borrow_mut().push('a');
                Ok(1.0.into())
            }),
            Contender::new("b", "", || {
                log.borrow_mut().push('b');
                Ok(2.0.into())
            }),
            Contender::new("c", "", || {
                log.borrow_mut().push('c');
                failing += 1;
                if failing == 2 {
                    Err(anyhow!("gone"))
                } else {
                    Ok(3.0.into())
                }
            }),
        ];
        let runs = interleave(4, &mut contenders);
        drop(contenders);
        assert_eq!(log.into_inner(), "abcbcaabab");
        let positions: Vec<Vec<usize>> = runs
            .iter()
            .filter_map(|run| run.readings.as_ref().ok())
            .map(|readings| readings.iter().map(|taken| taken.position).collect())
            .collect();
        assert_eq!(positions, [vec![0, 2, 1, 0], vec![1, 0, 2, 1]]);
        assert_eq!(
            runs[2].readings.as_ref().err().map(String::as_str),
            Some("round 2: gone")
        );
    }
}
