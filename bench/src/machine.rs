//! What a figure was measured on, and whether the machine was doing something else.

use std::{
    fmt, fs,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::Context;
use serde::{Deserialize, Serialize};

/// The largest share of all CPUs' time that others may take for a measurement to begin.
const IDLE_ENOUGH: f64 = 0.10;
/// How long each look at the CPUs' time lasts.
const LOOK: Duration = Duration::from_millis(500);
/// How long a measurement waits for the machine to become idle.
const PATIENCE: Duration = Duration::from_secs(10);

/// A machine, and what it did around one measurement.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct Machine {
    /// Model of the CPU, as the kernel names it
    pub(crate) cpu: String,
    /// CPUs that are online
    pub(crate) cpus: usize,
    /// Whether it runs under a hypervisor
    #[serde(rename = "virtual")]
    pub(crate) is_virtual: bool,
    /// Policy of the CPUs' clock; empty where the kernel sets none, as in most virtual machines
    pub(crate) governor: String,
    /// MemTotal, kilobytes
    pub(crate) memory_kb: u64,
    /// Version of the kernel, without what whoever built it adds
    pub(crate) kernel: String,
    /// `release` or `debug`: how this program was built
    pub(crate) profile: String,
    /// Share of all CPUs' time that others took for half a second before the measurement, 0 to 1
    pub(crate) busy_before: f64,
    /// The kernel's load averages over 1, 5 and 15 minutes before the measurement
    pub(crate) load_before: String,
    /// The same after it
    pub(crate) load_after: String,
}

impl Machine {
    /// This machine, now. Takes half a second in which the caller should do nothing.
    ///
    /// # Errors
    /// The kernel does not show its CPUs' time.
    pub(crate) fn now() -> anyhow::Result<Self> {
        let cpuinfo = read("/proc/cpuinfo");
        let memory = field(&read("/proc/meminfo"), "MemTotal");
        let load = load();
        Ok(Self {
            cpu: field(&cpuinfo, "model name"),
            cpus: cpuinfo
                .lines()
                .filter(|line| line.starts_with("processor"))
                .count(),
            is_virtual: cpuinfo.contains(" hypervisor"),
            governor: read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
            memory_kb: memory
                .split(' ')
                .next()
                .and_then(|number| number.parse().ok())
                .unwrap_or_default(),
            kernel: read("/proc/sys/kernel/osrelease")
                .split('-')
                .next()
                .unwrap_or_default()
                .to_owned(),
            profile: if cfg!(debug_assertions) {
                "debug"
            } else {
                "release"
            }
            .to_owned(),
            busy_before: busy_share()?,
            load_after: load.clone(),
            load_before: load,
        })
    }

    /// This machine, once it is idle.
    ///
    /// # Errors
    /// The kernel does not show its CPUs' time.
    pub(crate) fn when_idle() -> anyhow::Result<Self> {
        let start = Instant::now();
        loop {
            let machine = Self::now()?;
            if machine.obstacle().is_none() || start.elapsed() >= PATIENCE {
                return Ok(machine);
            }
        }
    }

    /// Why a figure measured now would be worth nothing; None where nothing speaks against it.
    pub(crate) fn obstacle(&self) -> Option<String> {
        (self.busy_before > IDLE_ENOUGH).then(|| {
            format!(
                "the machine is busy: others take {:.0} % of its CPUs' time, at most {:.0} % is allowed; end them, or pass \
                 --even-if-busy",
                self.busy_before * 100.0,
                IDLE_ENOUGH * 100.0
            )
        })
    }

    /// With the load of now as the one after the measurement.
    pub(crate) fn finished(mut self) -> Self {
        self.load_after = load();
        self
    }

    /// Whether absolute figures of both can stand in one table.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        let identity = |machine: &Self| {
            (
                machine.cpu.clone(),
                machine.cpus,
                machine.is_virtual,
                machine.governor.clone(),
                machine.memory_kb,
                machine.kernel.clone(),
                machine.profile.clone(),
            )
        };
        identity(self) == identity(other)
    }
}

/// One line without the load, which differs from row to row.
impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} {}CPUs {}, {}{:.0} GiB of memory, Linux {}, {} build",
            self.cpus,
            if self.is_virtual { "virtual " } else { "" },
            self.cpu,
            if self.governor.is_empty() {
                String::new()
            } else {
                format!("governor {}, ", self.governor)
            },
            self.memory_kb as f64 / 1024.0 / 1024.0,
            self.kernel,
            self.profile
        )
    }
}

/// Commit of the source that this program was built from, 12 digits, with `-dirty` where files outside of the results
/// differ from it; `unknown` without git or a checkout.
pub(crate) fn commit() -> String {
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
    let git = |arguments: &[&str]| {
        let output = Command::new("git")
            // Measured as root, in a checkout that belongs to somebody else.
            .args(["-c", "safe.directory=*", "-C", source])
            .args(arguments)
            .output()
            .ok()
            .filter(|output| output.status.success())?;
        Some(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let Some(commit) = git(&["rev-parse", "--short=12", "HEAD"]) else {
        return "unknown".to_owned();
    };
    let results = [
        ":(exclude)bench/results",
        ":(exclude)bench/plots",
        ":(exclude)bench/REPORT.md",
    ];
    let mut status = vec!["status", "--porcelain", "--", "."];
    status.extend(results);
    match git(&status) {
        Some(changes) if changes.is_empty() => commit,
        _ => format!("{commit}-dirty"),
    }
}

/// Trimmed; empty where the file cannot be read.
fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default().trim().to_owned()
}

fn load() -> String {
    read("/proc/loadavg")
        .split(' ')
        .take(3)
        .collect::<Vec<_>>()
        .join(" ")
}

/// Value of the first `key: value` line.
fn field(text: &str, key: &str) -> String {
    text.lines()
        .find_map(|line| {
            line.strip_prefix(key)?
                .split_once(':')
                .map(|(_, value)| value.trim().to_owned())
        })
        .unwrap_or_default()
}

/// Share of all CPUs' time that was not idle for [`LOOK`], a hypervisor's theft included.
fn busy_share() -> anyhow::Result<f64> {
    let before = cpu_time()?;
    thread::sleep(LOOK);
    let after = cpu_time()?;
    let (idle, total) = (after.0 - before.0, after.1 - before.1);
    Ok(if total == 0 {
        0.0
    } else {
        1.0 - idle as f64 / total as f64
    })
}

/// Idle and total time of all CPUs since boot, in ticks: the first line of `/proc/stat` (`proc_stat(5)`).
fn cpu_time() -> anyhow::Result<(u64, u64)> {
    let stat = fs::read_to_string("/proc/stat").context("cannot read /proc/stat")?;
    let line = stat.lines().next().unwrap_or_default();
    let ticks: Vec<u64> = line
        .split_whitespace()
        .skip(1)
        .map_while(|field| field.parse().ok())
        .collect();
    // user, nice, system, idle, iowait, irq, softirq, steal; guests' time is in user's already.
    let ticks = ticks.get(..8).context("/proc/stat has no line of all CPUs")?;
    Ok((ticks[3] + ticks[4], ticks.iter().sum()))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)] // a test that panics has failed
mod tests {
    use super::Machine;

    #[test]
    fn a_busy_machine_is_an_obstacle_and_says_what_to_do() {
        let mut machine = Machine::now().unwrap();
        assert!((0.0..=1.0).contains(&machine.busy_before) && machine.cpus > 0 && !machine.kernel.is_empty());
        machine.busy_before = 0.09;
        assert_eq!(machine.obstacle(), None);
        machine.busy_before = 0.42;
        let obstacle = machine.obstacle().unwrap();
        assert!(
            obstacle.contains("42 %") && obstacle.contains("--even-if-busy"),
            "{obstacle}"
        );
    }

    #[test]
    fn load_does_not_make_another_machine_and_a_build_does() {
        let machine = Machine::now().unwrap();
        let mut other = machine.clone();
        other.busy_before = 1.0;
        other.load_after = "9 9 9".into();
        assert!(machine.is_same(&other));
        other.profile = "another".into();
        assert!(!machine.is_same(&other));
    }
}
