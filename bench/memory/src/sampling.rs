//! Nanoseconds per packet and stage: how often a timer finds the program in each stage, of the time that packets took.
//!
//! Unlike a count of instructions this has what a stage waits for memory, and what the machine did meanwhile. The timer is the
//! kernel's (`perf record -e cpu-clock`), since virtual machines have no counters of cycles. An instruction that waits is
//! found at the one behind it at the latest, so a stage has its own waits.

use std::{
    cell::RefCell,
    collections::HashMap,
    fs,
    io::Read as _,
    path::Path,
    process::{Command, Stdio},
    thread,
};

use anyhow::{Context, anyhow, bail, ensure};

use crate::{
    clock::{monotonic_nanos, thread_nanos},
    instructions::{Counts, by_stage},
    load::{Load, Plan, Round},
};

/// Looks a second. More of them would be what is measured.
const RATE: u32 = 10_000;
/// Fewer looks than these say too little about stages.
const LEAST_LOOKS: usize = 1_000;
/// Of the lines that a program under the timer prints for [`sample`].
const BASE: &str = "base";
const WINDOW: &str = "window";

/// Nanoseconds per packet of a plan, by stage, with their total: runs `program`, which prints [`report`], under the timer.
///
/// # Errors
/// There is no perf, the program fails, or its debug information cannot be read.
pub fn sample(program: &Path, plan: Plan, packets: usize) -> anyhow::Result<Counts> {
    let missing = "starting perf; on Debian: apt-get install linux-perf";
    let mut record = Command::new("perf")
        .args(["record", "-q", "-k", "CLOCK_MONOTONIC", "-e", "cpu-clock:u"])
        .args(["-F", &RATE.to_string(), "-o", "-", "--"])
        // The looks go to its output, so the program's words go where errors go.
        .args(["sh", "-c", "exec \"$@\" >&2", "sh"])
        .arg(program)
        .args([plan.mix.name(), &plan.flows.to_string(), &plan.rules.to_string()])
        .arg(if plan.shuffled { "shuffled" } else { "in-order" })
        .args([&packets.to_string(), "sampled"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context(missing)?;
    let looks = record.stdout.take().context("perf record has no output")?;
    let mut errors = record.stderr.take().context("perf record has no errors")?;
    let script = Command::new("perf")
        .args(["script", "-i", "-", "--ns", "-F", "time,ip"])
        .stdin(looks)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .context(missing)?;
    let words = thread::spawn(move || {
        let mut words = String::new();
        errors.read_to_string(&mut words).map(|_| words)
    });
    let output = script.wait_with_output()?;
    let words = words.join().map_err(|_| anyhow!("a thread panicked"))??;
    let status = record.wait()?;
    ensure!(
        status.success(),
        "perf record {} {}: {words}",
        program.display(),
        plan.mix
    );
    let run = Run::read(&words).with_context(|| format!("{} printed {words:?}", program.display()))?;
    let looks = run.looks(&String::from_utf8_lossy(&output.stdout))?;
    let count: u64 = looks.values().sum();
    ensure!(
        count as usize >= LEAST_LOOKS,
        "the timer found the program {count} times in {} windows, fewer than {LEAST_LOOKS}: too few to tell stages apart",
        run.windows.len()
    );
    by_stage(program, &looks, count as f64 / run.nanos_per_packet)
}

/// Runs a load and prints what [`sample`] reads: mix, packets and nanoseconds for each; where the program lies in memory; and
/// when packets were measured.
///
/// # Errors
/// The load fails, or the kernel does not say where the program lies.
pub fn report(load: &mut Load, packets: usize) -> anyhow::Result<Round> {
    let times = RefCell::new(Vec::new());
    let round = load.round(packets, || {
        times.borrow_mut().push(monotonic_nanos()?);
        thread_nanos()
    })?;
    println!("{BASE} {:x}", base()?);
    for window in times.into_inner().chunks_exact(2) {
        println!("{WINDOW} {} {}", window[0], window[1]);
    }
    Ok(round)
}

/// Where this program begins in memory.
fn base() -> anyhow::Result<u64> {
    let program = fs::read_link("/proc/self/exe").context("reading /proc/self/exe")?;
    let maps = fs::read_to_string("/proc/self/maps").context("reading /proc/self/maps")?;
    maps.lines()
        .find(|line| line.ends_with(&*program.to_string_lossy()))
        .and_then(|line| u64::from_str_radix(line.split('-').next()?, 16).ok())
        .with_context(|| format!("/proc/self/maps does not have {}", program.display()))
}

/// What the program printed.
#[derive(Debug, PartialEq)]
struct Run {
    nanos_per_packet: f64,
    base: u64,
    /// Begin and end of what was measured, nanoseconds of the monotonic clock
    windows: Vec<(u64, u64)>,
}

impl Run {
    fn read(words: &str) -> anyhow::Result<Self> {
        let (mut nanos, mut base, mut windows) = (None, None, Vec::new());
        for line in words.lines() {
            let fields: Vec<&str> = line.split_whitespace().collect();
            match fields.as_slice() {
                [BASE, number] => base = Some(u64::from_str_radix(number, 16)?),
                [WINDOW, begin, end] => windows.push((begin.parse()?, end.parse()?)),
                [_, _, number] => nanos = Some(number.parse()?),
                _ => bail!("`{line}`"),
            }
        }
        Ok(Self {
            nanos_per_packet: nanos.context("no nanoseconds")?,
            base: base.context("no base")?,
            windows,
        })
    }

    /// How often each address of the program was seen within a window, of lines of seconds and address.
    fn looks(&self, lines: &str) -> anyhow::Result<HashMap<u64, u64>> {
        let mut looks = HashMap::new();
        for line in lines.lines() {
            let mut fields = line.split_whitespace();
            let (time, address) = fields
                .next()
                .zip(fields.next())
                .and_then(|(time, address)| {
                    let (seconds, nanos) = time.trim_end_matches(':').split_once('.')?;
                    let seconds: u64 = seconds.parse().ok()?;
                    Some((
                        seconds * 1_000_000_000 + nanos.parse::<u64>().ok()?,
                        u64::from_str_radix(address, 16).ok()?,
                    ))
                })
                .ok_or_else(|| anyhow!("perf script wrote {line:?}: not a time and an address"))?;
            if self
                .windows
                .iter()
                .any(|(begin, end)| (*begin..*end).contains(&time))
            {
                // What lies before the program, as libraries do, has no stage.
                *looks.entry(address.wrapping_sub(self.base)).or_default() += 1;
            }
        }
        Ok(looks)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)] // in tests a failed unwrap is the failure

    use std::collections::HashMap;

    use super::Run;

    #[test]
    fn looks_within_windows_count_at_their_address_in_the_program() {
        let run =
            Run::read("base 1000\nwindow 5000000010 5000000020\nwindow 5000000040 5000000050\ntcp 7 12.5\n")
                .unwrap();
        assert_eq!(
            (run.nanos_per_packet, run.base, run.windows.len()),
            (12.5, 0x1000, 2)
        );
        let lines = "5.000000009:  1234\n5.000000010:  1234\n5.000000019:  1234\n5.000000020:  1234\n 5.000000045: 1fff\n";
        let want = HashMap::from([(0x234, 2), (0xfff, 1)]);
        assert_eq!(run.looks(lines).unwrap(), want);
        assert!(run.looks("5.1 zz").is_err() && run.looks("soon 12").is_err());
        assert!(Run::read("tcp 7 12.5").is_err() && Run::read("base 10\nwindow 1 2").is_err());
    }

    #[test]
    fn this_program_is_found_in_memory() {
        let here = super::base as *const () as usize as u64;
        let base = super::base().unwrap();
        assert!(base < here && here - base < 1 << 30, "{base:x} {here:x}");
    }
}
