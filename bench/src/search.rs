//! Search for the highest load of which no more than a share of the packets is lost, as MLRsearch does
//! (draft-ietf-bmwg-mlrsearch): trials begin short and coarse, later ones are longer and finer; a load is judged by the
//! trials at it together, so that one disturbed trial does not decide; what a disturbed trial cost is subtracted from the
//! figure (conditional throughput).

use std::time::Duration;

use serde_json::{Value, json};

/// What is looked for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Goal {
    /// `NDR`, `PDR`
    pub(crate) name: &'static str,
    /// Highest share of packets lost of a good trial
    pub(crate) loss: f64,
    /// Highest share of a load's trial time that may be bad: above a half, the load is too high
    pub(crate) exceed: f64,
    /// Distance of the bounds when the search ends, relative to the upper one
    pub(crate) width: f64,
    /// Length of the trials that decide
    pub(crate) trial: Duration,
    /// Trial time that decides about a load, unless what is missing could not change it
    pub(crate) sum: Duration,
}

impl Goal {
    /// No packet lost.
    pub(crate) fn ndr(width: f64, trial: Duration, sum: Duration) -> Self {
        Self {
            name: "NDR",
            loss: 0.0,
            exceed: 0.5,
            width,
            trial,
            sum,
        }
    }

    /// At most 0.5 % of the packets lost.
    pub(crate) fn pdr(width: f64, trial: Duration, sum: Duration) -> Self {
        Self {
            name: "PDR",
            loss: 0.005,
            ..Self::ndr(width, trial, sum)
        }
    }
}

/// One measurement.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Trial {
    /// Load that was wanted, frames per second
    pub(crate) load: f64,
    /// How long it was wanted
    pub(crate) duration: Duration,
    /// What the generator made of it, frames per second
    pub(crate) offered: f64,
    /// Frames sent
    pub(crate) sent: u64,
    /// Frames that arrived
    pub(crate) received: u64,
}

impl Trial {
    /// Share of frames lost.
    pub(crate) fn loss(&self) -> f64 {
        match self.sent {
            0 => 0.0,
            sent => 1.0 - self.received as f64 / sent as f64,
        }
    }
}

/// What was found: between `lower`, which the goal allows, and `upper`, which it does not.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Found {
    /// Highest load that is good; None where even the lowest is not
    pub(crate) lower: Option<f64>,
    /// Lowest load that is bad; None where even the highest is good
    pub(crate) upper: Option<f64>,
    /// Frames per second that are forwarded at `lower` by its worst trial that still counts; 0 without `lower`
    pub(crate) throughput: f64,
}

/// Number of phases; trials grow by the same factor from one to the next.
const PHASES: u32 = 3;
/// Length of the first phase's trials, at most.
const FIRST_TRIAL: Duration = Duration::from_millis(50);
/// More trials than this mean that something else is wrong.
const MOST_TRIALS: usize = 300;

/// A search over loads from `least` to `most`, frames per second.
pub(crate) struct Search<M> {
    measure: M,
    least: f64,
    most: f64,
    trials: Vec<Trial>,
}

impl<M: FnMut(f64, Duration) -> anyhow::Result<Trial>> Search<M> {
    /// `measure` makes a trial.
    pub(crate) fn new(least: f64, most: f64, measure: M) -> Self {
        Self {
            measure,
            least,
            most,
            trials: Vec::new(),
        }
    }

    /// All trials, for the samples: load wanted, seconds, frames sent and received, load sent.
    pub(crate) fn trials(&self) -> Value {
        self.trials
            .iter()
            .map(|trial| {
                json!([
                    trial.load.round(),
                    trial.duration.as_secs_f64(),
                    trial.sent,
                    trial.received,
                    trial.offered.round()
                ])
            })
            .collect()
    }

    /// Looks for a goal. Trials of earlier goals count.
    ///
    /// # Errors
    /// A trial failed, or there were 300 of them.
    pub(crate) fn find(&mut self, goal: &Goal) -> anyhow::Result<Found> {
        if self.trials.is_empty() {
            // What is forwarded of far too much says where to begin.
            self.trial(self.most, FIRST_TRIAL.min(goal.trial))?;
        }
        let first = &self.trials[0];
        let forwarded = first.load * (1.0 - first.loss());
        let mut guess = (forwarded / 1.3, forwarded);
        for phase in 0..PHASES {
            let coarser = PHASES - 1 - phase;
            let shortest = FIRST_TRIAL.min(goal.trial);
            let factor = (goal.trial.as_secs_f64() / shortest.as_secs_f64())
                .powf(f64::from(phase) / f64::from(PHASES - 1));
            let goal = Goal {
                width: (goal.width * f64::from(1 << coarser)).min(0.5),
                trial: shortest.mul_f64(factor),
                sum: if coarser == 0 { goal.sum } else { Duration::ZERO },
                ..*goal
            };
            guess = self.narrow(&goal, guess)?;
        }
        let last = Goal { ..*goal };
        let (lower, upper) = self.bounds(&last);
        Ok(Found {
            lower,
            upper,
            throughput: lower.map_or(0.0, |load| self.conditional_throughput(&last, load)),
        })
    }

    /// Bounds no further apart than the goal's width, begun at a guess.
    fn narrow(&mut self, goal: &Goal, (low, high): (f64, f64)) -> anyhow::Result<(f64, f64)> {
        // A guess of earlier trials is near; the step grows where it was not.
        let mut step = (1.0 + goal.width).max(high / low);
        let mut probe = low.clamp(self.least, self.most);
        while self.bounds(goal).0.is_none() {
            if !self.decide(goal, probe)? && probe <= self.least {
                return Ok((self.least, self.least));
            }
            probe = (probe / step).max(self.least);
            step *= step;
        }
        let mut step = (1.0 + goal.width).max(high / low);
        let mut probe = high.clamp(self.least, self.most);
        while self.bounds(goal).1.is_none() {
            if self.decide(goal, probe)? && probe >= self.most {
                return Ok((self.most, self.most));
            }
            probe = (probe * step).min(self.most);
            step *= step;
        }
        loop {
            let (Some(lower), Some(upper)) = self.bounds(goal) else {
                // A trial more has moved a load to the other side.
                return Ok((low, high));
            };
            if upper - lower <= goal.width * upper {
                return Ok((lower, upper));
            }
            self.decide(goal, (lower * upper).sqrt())?;
        }
    }

    /// Measures at a load until it is known whether it is good.
    fn decide(&mut self, goal: &Goal, load: f64) -> anyhow::Result<bool> {
        loop {
            if let Some(good) = self.judge(goal, load) {
                return Ok(good);
            }
            self.trial(load, goal.trial)?;
        }
    }

    fn trial(&mut self, load: f64, duration: Duration) -> anyhow::Result<()> {
        anyhow::ensure!(
            self.trials.len() < MOST_TRIALS,
            "{MOST_TRIALS} trials and no end: the device forwards now this and now that"
        );
        let trial = (self.measure)(load, duration)?;
        self.trials.push(trial);
        Ok(())
    }

    /// Trials at a load that are long enough to count.
    fn at(&self, goal: &Goal, load: f64) -> impl Iterator<Item = &Trial> {
        let shortest = goal.trial.mul_f64(0.999);
        self.trials
            .iter()
            .filter(move |trial| trial.load == load && trial.duration >= shortest)
    }

    /// Whether a load is good; None while trials that are missing could change it.
    fn judge(&self, goal: &Goal, load: f64) -> Option<bool> {
        let seconds = |bad: bool| -> f64 {
            self.at(goal, load)
                .filter(|trial| (trial.loss() > goal.loss) == bad)
                .map(|trial| trial.duration.as_secs_f64())
                .sum()
        };
        let (good, bad) = (seconds(false), seconds(true));
        if good + bad == 0.0 {
            return None;
        }
        let missing = (goal.sum.as_secs_f64() - good - bad).max(0.0);
        let whole = good + bad + missing;
        if (bad + missing) / whole <= goal.exceed {
            return Some(true);
        }
        (bad / whole > goal.exceed || missing == 0.0).then_some(false)
    }

    /// Highest good and lowest bad load.
    fn bounds(&self, goal: &Goal) -> (Option<f64>, Option<f64>) {
        let loads = |wanted: bool| {
            self.trials
                .iter()
                .map(|trial| trial.load)
                .filter(move |load| self.judge(goal, *load) == Some(wanted))
        };
        let upper = loads(false).min_by(f64::total_cmp);
        // A good load above a bad one is luck.
        let lower = loads(true)
            .filter(|load| upper.is_none_or(|upper| *load < upper))
            .max_by(f64::total_cmp);
        (lower, upper)
    }

    /// What a good load's trials forward, without the share of the worst ones that the goal allows for.
    fn conditional_throughput(&self, goal: &Goal, load: f64) -> f64 {
        let mut trials: Vec<&Trial> = self.at(goal, load).collect();
        trials.sort_by(|a, b| a.loss().total_cmp(&b.loss()));
        let whole: f64 = trials.iter().map(|trial| trial.duration.as_secs_f64()).sum();
        let mut counted = 0.0;
        for trial in trials {
            counted += trial.duration.as_secs_f64();
            if counted >= whole * (1.0 - goal.exceed) {
                // Of a load that the generator made less of, no more was forwarded than what it made.
                return load.min(trial.offered) * (1.0 - trial.loss());
            }
        }
        load
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)] // a test that panics has failed
mod tests {
    use std::time::Duration;

    use super::{Goal, Search, Trial};

    /// Numbers from 0 to 1 that look random and are the same in every run (xorshift64*).
    fn random(state: &mut u64) -> f64 {
        *state ^= *state >> 12;
        *state ^= *state << 25;
        *state ^= *state >> 27;
        (state.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// A device that forwards up to `capacity` frames per second, which a share of trials finds lowered by `depth`.
    fn device(
        capacity: f64,
        disturbed: f64,
        depth: f64,
        seed: u64,
    ) -> impl FnMut(f64, Duration) -> anyhow::Result<Trial> {
        let mut state = seed;
        move |load, duration| {
            let lowered = random(&mut state) < disturbed;
            let rate = if lowered {
                capacity * (1.0 - depth)
            } else {
                capacity
            };
            let sent = (load * duration.as_secs_f64()) as u64;
            Ok(Trial {
                load,
                duration,
                offered: load,
                sent,
                received: sent.min((rate * duration.as_secs_f64()) as u64),
            })
        }
    }

    fn ndr() -> Goal {
        Goal::ndr(0.01, Duration::from_secs(1), Duration::from_secs(5))
    }

    #[test]
    fn a_quiet_device_is_found_within_the_width_in_few_trials() {
        for capacity in [12_345.0, 1e5, 876_543.0, 3.9e6] {
            let mut search = Search::new(1e4, 4e6, device(capacity, 0.0, 0.0, 1));
            let found = search.find(&ndr()).unwrap();
            let (lower, upper) = (found.lower.unwrap(), found.upper.unwrap());
            assert!(
                lower <= capacity + 1.0 && capacity <= upper,
                "{capacity}: {found:?}"
            );
            assert!(
                upper - lower <= 0.01 * upper && found.throughput == lower,
                "{found:?}"
            );
            let trials = search.trials().as_array().unwrap().len();
            assert!(trials < 60, "{capacity}: {trials} trials");
        }
    }

    #[test]
    fn pdr_allows_half_a_percent_and_reuses_trials() {
        let mut search = Search::new(1e4, 4e6, device(1e6, 0.0, 0.0, 1));
        let ndr = search.find(&ndr()).unwrap();
        let before = search.trials().as_array().unwrap().len();
        let goal = Goal::pdr(0.001, Duration::from_secs(1), Duration::from_secs(1));
        let pdr = search.find(&goal).unwrap();
        // 1 of 1.005 arrives.
        let exact = 1e6 / 0.995;
        assert!(
            pdr.lower.unwrap() <= exact + 1.0 && exact <= pdr.upper.unwrap() + 1.0,
            "{pdr:?}"
        );
        assert!(pdr.lower > ndr.lower);
        assert!(search.trials().as_array().unwrap().len() - before < 40);
        let lost = pdr.throughput / pdr.lower.unwrap();
        assert!(
            (0.995..=1.0).contains(&lost),
            "what is lost at the bound is not throughput: {lost}"
        );
    }

    #[test]
    fn disturbed_trials_do_not_decide_and_frequent_ones_do() {
        let mut low = 0;
        for seed in 1..=20 {
            // One of ten trials is hit; each load of the last phase is judged by five.
            let mut search = Search::new(1e4, 4e6, device(1e6, 0.1, 0.3, seed));
            let found = search.find(&ndr()).unwrap();
            let lower = found.lower.unwrap();
            assert!(lower <= 1e6 + 1.0, "{found:?}");
            low += u32::from(lower < 0.97e6);
        }
        assert!(low <= 2, "{low} of 20 searches were led astray");
        for seed in 1..=20 {
            let mut search = Search::new(1e4, 4e6, device(1e6, 0.9, 0.3, seed));
            let lower = search.find(&ndr()).unwrap().lower.unwrap();
            assert!((0.68e6..0.72e6).contains(&lower), "{lower}");
        }
    }

    #[test]
    fn what_is_beyond_the_range_is_said() {
        let mut search = Search::new(1e5, 1e6, device(2e6, 0.0, 0.0, 1));
        let found = search.find(&ndr()).unwrap();
        assert_eq!((found.lower, found.upper), (Some(1e6), None));
        let mut search = Search::new(1e5, 1e6, device(1e4, 0.0, 0.0, 1));
        let found = search.find(&ndr()).unwrap();
        assert_eq!(
            (found.lower, found.upper, found.throughput),
            (None, Some(1e5), 0.0)
        );
    }

    #[test]
    fn what_the_generator_did_not_send_is_no_throughput() {
        let mut quiet = device(1e6, 0.0, 0.0, 1);
        let slow_generator = |load: f64, duration: Duration| {
            Ok(Trial {
                offered: load * 0.97,
                ..quiet(load, duration)?
            })
        };
        let found = Search::new(1e4, 4e6, slow_generator).find(&ndr()).unwrap();
        let forwarded = found.throughput / found.lower.unwrap();
        assert!((forwarded - 0.97).abs() < 1e-9, "{found:?}");
    }

    #[test]
    fn a_device_without_any_rule_ends_the_search() {
        let mut state = 7;
        let measure = |load: f64, duration: Duration| {
            let sent = (load * duration.as_secs_f64()) as u64;
            let received = sent - u64::from(random(&mut state) < 0.5);
            Ok(Trial {
                load,
                duration,
                offered: load,
                sent,
                received,
            })
        };
        // Either bounds or an error, but an end.
        let _ = Search::new(1e4, 4e6, measure).find(&ndr());
    }

    #[test]
    fn an_error_of_a_trial_is_the_searchs() {
        let mut search = Search::new(1e4, 4e6, |_, _| anyhow::bail!("no link"));
        assert_eq!(search.find(&ndr()).unwrap_err().to_string(), "no link");
    }
}
