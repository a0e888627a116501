//! What the benchmarks do where they cannot measure: every row says why, the status is 2, and nothing is left behind.

#![allow(clippy::panic, clippy::unwrap_used)] // a test that panics has failed

use std::{
    collections::BTreeMap,
    fs,
    path::Path,
    process::{Command, Output, Stdio},
    time::{Duration, Instant},
};

use ringwall_testbed::preflight::runs_here;
use serde_json::Value;

/// An unprivileged user's id, where this test is root's.
const UNPRIVILEGED: &str = "65534";
/// Parts that need namespaces.
const PARTS: &str = "veth,search,peers,under-load,node,pods,latency,restart,hostile";

/// Runs the suite without rights, with words before its command.
fn suite(folder: &Path, before: &[&str], more: &[&str]) -> Output {
    fs::set_permissions(folder, std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
    // A copy that this user may read, too: the build's folder may be its owner's alone.
    let program = folder.join("ringwall-bench");
    if !program.exists() {
        fs::copy(env!("CARGO_BIN_EXE_ringwall-bench"), &program).unwrap();
    }
    let mut words: Vec<&str> = before.to_vec();
    if rustix::process::geteuid().is_root() {
        words.extend([
            "setpriv",
            "--reuid",
            UNPRIVILEGED,
            "--regid",
            UNPRIVILEGED,
            "--clear-groups",
        ]);
    }
    let program = program.to_string_lossy().into_owned();
    words.push(&program);
    let folder = folder.to_string_lossy().into_owned();
    words.extend(["suite", "--rounds", "1", "--even-if-busy", "--folder", &folder]);
    words.extend(more);
    Command::new(words[0]).args(&words[1..]).output().unwrap()
}

/// Runs the suite with all rights on a machine whose kernel does not show its types.
fn suite_without_btf(folder: &Path, more: &[&str]) -> Output {
    let hidden = "mount -t tmpfs none /sys/kernel/btf && exec \"$@\"";
    Command::new("unshare")
        .args(["--mount", "sh", "-c", hidden, "sh"])
        .arg(env!("CARGO_BIN_EXE_ringwall-bench"))
        .args(["suite", "--rounds", "1", "--even-if-busy", "--folder"])
        .arg(folder)
        .args(more)
        .output()
        .unwrap()
}

/// Why each row was skipped.
fn skipped(folder: &Path) -> BTreeMap<String, String> {
    fs::read_dir(folder.join("results"))
        .unwrap()
        .map(|entry| {
            let path = entry.unwrap().path();
            let row: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
            let why = row["outcome"]["skipped"]
                .as_str()
                .unwrap_or_else(|| panic!("{row}"));
            (
                path.file_stem().unwrap().to_string_lossy().into_owned(),
                why.to_owned(),
            )
        })
        .collect()
}

#[test]
fn without_root_every_row_says_so_and_the_status_is_2() {
    let folder = tempfile::tempdir().unwrap();
    let output = suite(folder.path(), &[], &["--only", PARTS]);
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    let rows = skipped(folder.path());
    for expected in [
        "wire-1000-flows-1000-rules",
        "ndr-64",
        "pdr-imix",
        "latency-p999-at-90",
        "connections-per-second",
    ] {
        assert!(rows.contains_key(expected), "{expected}: {rows:?}");
    }
    for (row, why) in &rows {
        let expected = if row.starts_with("latency-p") {
            ["NDR", "root"]
        } else {
            ["root"; 2]
        };
        assert!(expected.iter().any(|word| why.contains(word)), "{row}: {why}");
    }
    let report = fs::read_to_string(folder.path().join("REPORT.md")).unwrap();
    let listed = report.lines().filter(|line| line.contains("root")).count();
    assert!(
        listed >= rows.len() - 6,
        "every skipped row is in the report: {report}"
    );
}

#[test]
fn one_cpu_cannot_send_and_forward() {
    let folder = tempfile::tempdir().unwrap();
    let output = suite(folder.path(), &["taskset", "-c", "0"], &["--only", "veth"]);
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    let rows = skipped(folder.path());
    assert!(
        rows.values().all(|why| why.contains("one CPU")) && !rows.is_empty(),
        "{rows:?}"
    );
}

#[test]
fn without_btf_the_rows_of_a_node_say_so() {
    let Some(_alone) = runs_here("a machine without BTF") else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let output = suite_without_btf(folder.path(), &["--only", "node"]);
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    let rows = skipped(folder.path());
    assert!(
        rows.values().all(|why| why.contains("CONFIG_DEBUG_INFO_BTF")) && rows.len() == 6,
        "{rows:?}"
    );
    let report = fs::read_to_string(folder.path().join("REPORT.md")).unwrap();
    assert_eq!(report.matches("CONFIG_DEBUG_INFO_BTF").count(), 6, "{report}");
}

/// Processes and folders that belong to the bed of a benchmark.
fn of_bed(bench: u32) -> Vec<String> {
    let bed = format!("/tmp/ringwall-bed.{bench}.");
    let processes = fs::read_dir("/proc").unwrap().flatten().filter_map(|entry| {
        let command = fs::read(entry.path().join("cmdline")).ok()?;
        let command = String::from_utf8_lossy(&command).replace('\0', " ");
        // The one that removes the folder names it, too.
        (command.contains(&bed) && !command.starts_with("sh -c read")).then_some(command)
    });
    let folders = fs::read_dir("/tmp").unwrap().flatten();
    let folders = folders.map(|entry| entry.path().to_string_lossy().into_owned());
    processes
        .chain(folders.filter(|path| path.starts_with(&bed)))
        .collect()
}

/// Waits for half a minute at most; what there was last.
fn wait_for(bench: u32, enough: impl Fn(&[String]) -> bool) -> Vec<String> {
    let end = Instant::now() + Duration::from_secs(30);
    loop {
        let found = of_bed(bench);
        if enough(&found) || Instant::now() > end {
            return found;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Needs `ringwall` and the example `l2fwd` beside the benchmarks: `cargo build -p ringwall -p ringwall-xsk --bins --examples`.
#[test]
fn a_benchmark_that_is_killed_leaves_no_process_and_no_folder() {
    let Some(_alone) = runs_here("a killed benchmark") else {
        return;
    };
    let mut bench = Command::new(env!("CARGO_BIN_EXE_ringwall-bench"))
        .args(["veth", "--rounds", "1", "--seconds", "60", "--even-if-busy"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    // The folder, the supervisor, control and the dataplane.
    let found = wait_for(bench.id(), |found| found.len() >= 4);
    bench.kill().unwrap();
    bench.wait().unwrap();
    assert!(found.len() >= 4, "the firewall was not started: {found:?}");
    let left = wait_for(bench.id(), <[String]>::is_empty);
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn an_unknown_part_is_refused_with_the_known_ones() {
    let folder = tempfile::tempdir().unwrap();
    let output = suite(folder.path(), &[], &["--only", "speed"]);
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{error}");
    assert!(error.contains("speed") && error.contains("under-load"), "{error}");
    assert!(!folder.path().join("results").exists());
}

#[test]
fn a_folder_that_cannot_be_written_is_named() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("results"), "in the way").unwrap();
    let output = suite(folder.path(), &[], &["--only", "veth"]);
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{error}");
    assert!(
        error.contains("results/wire-1000-flows-1000-rules.json"),
        "{error}"
    );
}
