//! Every recipe in both roles, by the demo, which fails where anything is otherwise than wanted; and what it leaves
//! behind: nothing, however it ends.
#![allow(clippy::unwrap_used)] // a failed step is a failed test

use std::{
    io::{BufRead, BufReader},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use ringwall_testbed::preflight::runs_here;

fn demo(arguments: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_ringwall-demo"))
        .args(arguments)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let failed: Vec<&str> = text.lines().filter(|line| line.contains("FAIL")).collect();
    assert!(
        output.status.success(),
        "ringwall-demo {arguments:?}: {}\n{}\n{}",
        output.status,
        failed.join("\n"),
        String::from_utf8_lossy(&output.stderr)
    );
    text
}

#[test]
fn every_recipe_routed_and_the_incidents() {
    let Some(_alone) = runs_here("recipes, routed") else {
        return;
    };
    let text = demo(&[]);
    assert!(text.contains("[45/45]"), "{text}");
    assert!(text.contains("failMode: open"), "{text}");
}

#[test]
fn every_recipe_on_a_wire() {
    let Some(_alone) = runs_here("recipes, wire") else {
        return;
    };
    let text = demo(&["--wire"]);
    assert!(text.contains("\n0 promises have both ends on one side"), "{text}");
}

/// Processes whose command line names the folder of a bed.
fn processes(of: &str) -> Vec<String> {
    std::fs::read_dir("/proc")
        .unwrap()
        .filter_map(|entry| std::fs::read(entry.unwrap().path().join("cmdline")).ok())
        .map(|line| String::from_utf8_lossy(&line).replace('\0', " "))
        .filter(|line| line.contains(of))
        .collect()
}

#[test]
fn nothing_is_left_behind_however_it_ends() {
    let Some(_alone) = runs_here("nothing left") else {
        return;
    };
    for signal in ["KILL", "TERM", "INT"] {
        let mut child = Command::new(env!("CARGO_BIN_EXE_ringwall-demo"))
            .args(["--only", "no-policy"])
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let folder = format!("/tmp/ringwall-bed.{}.0", child.id());
        // Up to the picture everything is there.
        let picture = BufReader::new(child.stdout.take().unwrap())
            .lines()
            .any(|line| line.unwrap().contains("external"));
        assert!(picture);
        assert!(processes(&folder).len() >= 3, "{:?}", processes(&folder));
        let killed = Command::new("kill")
            .args(["-s", signal, &child.id().to_string()])
            .status()
            .unwrap();
        assert!(killed.success());
        child.wait().unwrap();
        let end = Instant::now() + Duration::from_secs(10);
        while Instant::now() < end
            && (!processes(&folder).is_empty() || std::path::Path::new(&folder).exists())
        {
            std::thread::sleep(Duration::from_millis(20));
        }
        assert_eq!(processes(&folder), [""; 0], "after SIG{signal}");
        assert!(
            !std::path::Path::new(&folder).exists(),
            "{folder} after SIG{signal}"
        );
    }
}
