//! Examples, which benchmarks take as controls: what they leave behind.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test says what went wrong by panicking

mod net;

use std::{
    fs,
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use net::{Bpffs, Namespace, join, privileged, run};

/// `l2fwd`, which cargo builds before tests.
fn program() -> PathBuf {
    let program = std::env::current_exe()
        .unwrap()
        .with_file_name("../examples/l2fwd");
    assert!(
        program.exists(),
        "no {}: cargo build -p ringwall-xsk --examples",
        program.display()
    );
    program
}

/// Starts it on both ports, and waits until it forwards.
fn start(middle: &Namespace, bpffs: &Path) -> Child {
    let mut child = middle.within(|| {
        Command::new(program())
            .args(["p0", "p1", "60"])
            .env("BPFFS", bpffs)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap()
    });
    let mut output = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    for _ in 0..2 {
        line.clear();
        output.read_line(&mut line).unwrap();
        assert!(line.contains("bound in"), "{line}");
    }
    // It goes on writing.
    std::thread::spawn(move || output.lines().count());
    child
}

#[test]
fn pins_of_an_example_that_was_killed_are_removed_by_the_next_one() {
    if !privileged() {
        return;
    }
    let (left, right, middle) = (Namespace::new("l"), Namespace::new("r"), Namespace::new("m"));
    join(&left, "e0", &middle, "p0", "10.0.0.1/24");
    join(&right, "e1", &middle, "p1", "10.0.0.2/24");
    let bpffs = Bpffs::new();
    let pins = bpffs.pins();
    let root = pins.parent().unwrap();
    let folders = || {
        let entries = fs::read_dir(root).unwrap().map(|entry| entry.unwrap());
        entries
            .map(|entry| entry.file_name().into_string().unwrap())
            .filter(|name| name.starts_with("ringwall-")) // the kernel has files of its own there
            .collect::<Vec<_>>()
    };
    let of = |child: &Child| vec![format!("ringwall-l2fwd-{}", child.id())];

    let mut killed = start(&middle, root);
    killed.kill().unwrap();
    killed.wait().unwrap();
    assert_eq!(folders(), of(&killed), "a kill leaves them");
    assert!(middle.ip("link show p0").contains("prog/xdp"), "and its programs");

    let mut next = start(&middle, root);
    assert_eq!(folders(), of(&next));

    run(&format!("kill -TERM {}", next.id()));
    assert!(next.wait().unwrap().success());
    assert_eq!(folders(), Vec::<String>::new(), "an end leaves nothing");
    assert!(!middle.ip("link show p0").contains("prog/xdp"), "nor a program");
}
