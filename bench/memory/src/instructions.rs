//! Instructions per packet and stage, counted by callgrind, and what they may be.
//!
//! A count says nothing of stalls, and does not depend on what else the machine does: it is what CI can hold.

use std::{
    collections::{BTreeMap, HashMap},
    fs,
    io::Read as _,
    os::fd::AsRawFd as _,
    path::Path,
    process::Command,
};

use addr2line::Loader;
use anyhow::{Context, anyhow, bail, ensure};
use nix::sys::memfd::{MFdFlags, memfd_create};

use crate::{
    mix::Mix,
    stages::{self, Frame, OUTSIDE, STAGES},
};

/// The line that holds what all stages but the source need together.
pub const TOTAL: &str = "total";
/// How much a total may grow before the gate closes, in 1/100.
const TOTAL_GROWTH: f64 = 3.0;
/// The same of one stage, as the compiler moves instructions from one to the other; and of a total, where another compiler
/// made the baseline.
const STAGE_GROWTH: f64 = 10.0;
/// What a stage may grow by in any case, in instructions.
const STAGE_SLACK: f64 = 8.0;

/// Instructions per packet (or turn) of a mix, by stage, with the [`TOTAL`].
pub type Counts = BTreeMap<String, f64>;

/// Counts a mix: runs `program`, which is given the mix as its argument, under callgrind.
///
/// # Errors
/// There is no valgrind, the program fails, or its debug information cannot be read.
pub fn count(program: &Path, mix: Mix) -> anyhow::Result<Counts> {
    // Gone with this process, however it ends.
    let mut output =
        fs::File::from(memfd_create("callgrind", MFdFlags::empty()).context("making a file in memory")?);
    let path = format!("/proc/{}/fd/{}", std::process::id(), output.as_raw_fd());
    let run = Command::new("valgrind")
        .args([
            "--tool=callgrind",
            "--dump-instr=yes",
            "--compress-strings=no",
            "--compress-pos=no",
        ])
        .arg("--toggle-collect=*Load*measured*")
        .arg(format!("--callgrind-out-file={path}"))
        .arg(program)
        .arg(mix.name())
        .output()
        .context("starting valgrind; on Debian: apt-get install valgrind")?;
    if !run.status.success() {
        bail!(
            "{} {mix} under valgrind: {}",
            program.display(),
            String::from_utf8_lossy(&run.stderr)
        );
    }
    let printed = String::from_utf8_lossy(&run.stdout);
    let packets: f64 = printed
        .split_whitespace()
        .nth(1)
        .and_then(|text| text.parse().ok())
        .ok_or_else(|| {
            anyhow!(
                "{} {mix} printed {printed:?}, and not how many packets there were",
                program.display()
            )
        })?;
    let mut profile = String::new();
    output
        .read_to_string(&mut profile)
        .context("reading what callgrind wrote")?;
    let costs = costs(&profile, &program.to_string_lossy())?;
    by_stage(program, &costs, packets)
}

/// Instructions at each address of the program; what it calls in other objects counts where it is called.
fn costs(profile: &str, program: &str) -> anyhow::Result<HashMap<u64, u64>> {
    let mut costs: HashMap<u64, u64> = HashMap::new();
    let (mut is_own, mut called_own, mut is_start, mut is_call, mut collected) =
        (false, true, false, false, 0);
    for line in profile.lines() {
        if let Some(object) = line.strip_prefix("ob=") {
            (is_own, called_own) = (object == program, object == program);
        } else if let Some(object) = line.strip_prefix("cob=") {
            called_own = object == program;
        } else if let Some(function) = line.strip_prefix("fn=") {
            // What starts the program calls it by way of the C library: all of it would count once more.
            is_start = function == "(below main)";
        } else if line.starts_with("calls=") {
            is_call = true;
        } else if let Some(sum) = line.strip_prefix("summary: ") {
            collected = sum.trim().parse()?;
        } else if line.starts_with("0x") {
            let mut fields = line.split_whitespace();
            let (address, cost) = (fields.next(), fields.nth(1));
            let address =
                address.and_then(|text| u64::from_str_radix(text.trim_start_matches("0x"), 16).ok());
            let (address, cost) = address
                .zip(cost.and_then(|text| text.parse::<u64>().ok()))
                .ok_or_else(|| anyhow!("callgrind wrote {line:?}: not an address, a line and a cost"))?;
            if is_own && !is_start && (!is_call || !called_own) {
                *costs.entry(address).or_default() += cost;
            }
            if is_call {
                (is_call, called_own) = (false, is_own);
            }
        }
    }
    let attributed: u64 = costs.values().sum();
    ensure!(attributed > 0, "callgrind counted nothing");
    // What it counts outside of the program without a call from there: the loader.
    ensure!(
        attributed <= collected && collected - attributed <= collected / 100,
        "{attributed} of {collected} instructions were found in the profile: it is not what this reads"
    );
    Ok(costs)
}

/// Costs at addresses of a program, for each of so many packets, by stage, with the [`TOTAL`].
pub(crate) fn by_stage(program: &Path, costs: &HashMap<u64, u64>, packets: f64) -> anyhow::Result<Counts> {
    let loader = Loader::new(program).map_err(|error| anyhow!("{}: {error}", program.display()))?;
    let mut counts: Counts = STAGES.iter().map(|stage| ((*stage).to_owned(), 0.0)).collect();
    for (address, cost) in costs {
        let stage = stages::of(&frames(&loader, *address)?).unwrap_or(OUTSIDE);
        *counts.entry(stage.to_owned()).or_default() += *cost as f64 / packets;
    }
    let total = counts
        .iter()
        .filter(|(stage, _)| *stage != "source")
        .map(|(_, count)| count)
        .sum();
    counts.insert(TOTAL.to_owned(), total);
    Ok(counts)
}

/// The functions around an address, innermost first.
fn frames(loader: &Loader, address: u64) -> anyhow::Result<Vec<Frame>> {
    let read = |error| anyhow!("debug information of {address:#x}: {error}");
    let mut found = Vec::new();
    let mut frames = loader
        .find_frames(address)
        .map_err(|error| read(format!("{error}")))?;
    while let Some(frame) = frames.next().map_err(|error| read(format!("{error}")))? {
        let function = match &frame.function {
            Some(function) => function
                .demangle()
                .map_err(|error| read(format!("{error}")))?
                .into_owned(),
            None => String::new(),
        };
        let file = frame
            .location
            .and_then(|location| location.file)
            .unwrap_or_default()
            .to_owned();
        found.push(Frame { function, file });
    }
    Ok(found)
}

/// Counts that are not to be exceeded, and which compiler's they are.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Baseline {
    /// As `rustc --version` says.
    pub compiler: String,
    /// By name of the mix.
    pub mixes: BTreeMap<String, Counts>,
}

/// The compiler that builds here, as it calls itself.
///
/// # Errors
/// There is none.
pub fn compiler() -> anyhow::Result<String> {
    let output = Command::new("rustc")
        .arg("--version")
        .output()
        .context("starting rustc")?;
    ensure!(output.status.success(), "rustc --version: {}", output.status);
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

impl Baseline {
    /// Reads lines of mix, stage and instructions, and one of the compiler; `#` begins a comment.
    ///
    /// # Errors
    /// A line is something else.
    pub fn read(text: &str) -> anyhow::Result<Self> {
        let mut baseline = Self::default();
        for line in text
            .lines()
            .map(|line| line.split('#').next().unwrap_or_default().trim())
        {
            if let Some(compiler) = line.strip_prefix("compiler ") {
                baseline.compiler = compiler.to_owned();
                continue;
            }
            let fields: Vec<&str> = line.split_whitespace().collect();
            match fields.as_slice() {
                [] => {}
                [mix, stage, count] => {
                    let count = count.parse().with_context(|| format!("`{line}`: no number"))?;
                    let counts = baseline.mixes.entry((*mix).to_owned()).or_default();
                    counts.insert((*stage).to_owned(), count);
                }
                _ => bail!("`{line}`: want a mix, a stage and a number"),
            }
        }
        Ok(baseline)
    }

    /// As [`Self::read`] reads it.
    pub fn text(&self) -> String {
        let mut text = format!(
            "# Instructions per packet (empty-turn: per turn) by stage. `sh bench/instructions.sh --write` writes this.\n\
             compiler {}\n",
            self.compiler
        );
        for (mix, counts) in &self.mixes {
            for (stage, count) in counts.iter().filter(|(_, count)| count.round() > 0.0) {
                text += &format!("{mix} {stage} {count:.0}\n");
            }
        }
        text
    }

    /// Stages of a mix that need more than they may, in words: a total more than 3 % over the baseline (10 % if another
    /// compiler made it), a stage more than 10 %. The load's own instructions do not count.
    ///
    /// # Errors
    /// The baseline does not have the mix.
    pub fn exceeded(&self, mix: Mix, counts: &Counts, compiler: &str) -> anyhow::Result<Vec<String>> {
        let baseline = self
            .mixes
            .get(mix.name())
            .with_context(|| format!("the baseline has no `{mix}`: write one with --write"))?;
        let growth = |percent: f64| 1.0 + percent / 100.0;
        let is_same = self.compiler == compiler;
        let all = counts.iter().filter(|(stage, _)| *stage != "source");
        let over = all.filter_map(|(stage, now)| {
            let before = baseline.get(stage).copied().unwrap_or(0.0);
            let most = if stage == TOTAL {
                before * growth(if is_same { TOTAL_GROWTH } else { STAGE_GROWTH }) + 0.5
            } else {
                (before * growth(STAGE_GROWTH)).max(before + STAGE_SLACK)
            };
            (*now > most).then(|| {
                format!("{mix}, {stage}: {now:.0} instructions, {before:.0} before, at most {most:.0}")
            })
        });
        Ok(over.collect())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)] // in tests a failed unwrap is the failure

    use super::*;

    fn counts(of: &[(&str, f64)]) -> Counts {
        of.iter()
            .map(|(stage, count)| ((*stage).to_owned(), *count))
            .collect()
    }

    #[test]
    fn a_baseline_is_read_as_it_is_written() {
        let baseline = Baseline {
            compiler: "rustc 1.2.3 (abc)".to_owned(),
            mixes: BTreeMap::from([
                ("denied".to_owned(), counts(&[("judge", 300.0), ("total", 900.0)])),
                ("established".to_owned(), counts(&[("parse", 120.0)])),
            ]),
        };
        assert_eq!(Baseline::read(&baseline.text()).unwrap(), baseline);
        assert!(Baseline::read("established parse").is_err());
        assert!(Baseline::read("established parse many").is_err());
    }

    #[test]
    fn the_gate_closes_where_a_total_or_a_stage_grows() {
        let before = counts(&[("parse", 100.0), ("judge", 20.0), ("total", 900.0)]);
        let baseline = Baseline {
            compiler: "this".to_owned(),
            mixes: BTreeMap::from([("tcp".to_owned(), before.clone())]),
        };
        let over = |counts: &Counts, compiler| baseline.exceeded(Mix::Tcp, counts, compiler).unwrap().len();
        assert_eq!(over(&before, "this"), 0);
        let most = counts(&[
            ("parse", 110.0),
            ("judge", 28.0),
            ("total", 927.0),
            ("source", 500.0),
        ]);
        assert_eq!(over(&most, "this"), 0);
        let more = counts(&[("parse", 111.0), ("judge", 29.0), ("total", 928.0), ("drop", 9.0)]);
        assert_eq!(over(&more, "this"), 4);
        assert_eq!(
            over(&more, "another"),
            3,
            "another compiler's total may be 10 % more"
        );
        assert!(baseline.exceeded(Mix::Denied, &before, "this").is_err());
    }

    #[test]
    fn calls_into_other_objects_count_where_they_are_called() {
        let profile = "summary: 1000\nob=/lib/c\nfn=memset\n0x10 1 100\n\nob=/bin/load\nfn=run\n0x20 5 700\n\
                       cob=/lib/c\ncfi=a\ncfn=memset\ncalls=3 0x10 1\n0x20 5 100\n0x28 6 150\n\
                       calls=1 0x30 9\n0x28 6 50\n\nfn=other\n0x30 9 50\n\n\
                       fn=(below main)\ncob=/lib/c\ncfn=main\ncalls=1 0x0 0\n0x40 0 1000\n";
        let want = HashMap::from([(0x20, 800), (0x28, 150), (0x30, 50)]);
        assert_eq!(costs(profile, "/bin/load").unwrap(), want);
        assert!(costs(profile, "/bin/another").is_err());
    }
}
