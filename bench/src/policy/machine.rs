//! What the figures were measured on.

use std::fs;

use serde_json::{Value, json};

/// The machine and its load now.
pub(super) fn describe() -> Value {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let cpuinfo = read("/proc/cpuinfo");
    let field = |text: &str, key: &str| {
        text.lines()
            .find_map(|line| {
                line.strip_prefix(key)?
                    .split_once(':')
                    .map(|(_, value)| value.trim().to_owned())
            })
            .unwrap_or_default()
    };
    let kilobytes = field(&read("/proc/meminfo"), "MemTotal");
    let load: Vec<String> = read("/proc/loadavg")
        .split(' ')
        .take(3)
        .map(str::to_owned)
        .collect();
    json!({
        "cpu": field(&cpuinfo, "model name"),
        "cpus": cpuinfo.lines().filter(|line| line.starts_with("processor")).count(),
        "virtual": cpuinfo.contains(" hypervisor"),
        "memory": kilobytes,
        "kernel": read("/proc/sys/kernel/osrelease").trim(),
        "profile": if cfg!(debug_assertions) { "debug" } else { "release" },
        "loadAtStart": load.join(" "),
    })
}
