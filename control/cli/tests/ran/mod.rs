//! The `ringwall` binary, run as people and programs run it.
#![allow(dead_code, reason = "each test takes what it needs")]

use std::{
    io::Write,
    process::{Command, Stdio},
};

use serde_json::Value;

/// What came of it.
pub(crate) struct Ran {
    pub(crate) status: i32,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Ran {
    /// What `-o json` wrote.
    pub(crate) fn lines(&self) -> Vec<Value> {
        let parse = |line: &str| serde_json::from_str(line).unwrap_or_else(|_| panic!("not JSON: {line}"));
        self.out.lines().map(parse).collect()
    }
}

pub(crate) fn ringwall(args: &[&str]) -> Ran {
    ringwall_reading(args, "")
}

/// With something on standard input.
pub(crate) fn ringwall_reading(args: &[&str], input: &str) -> Ran {
    let mut child = Command::new(env!("CARGO_BIN_EXE_ringwall"))
        .args(args)
        .env("NODE_NAME", "n1")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // A command that ends early does not read what it is given.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    let output = child.wait_with_output().unwrap();
    Ran {
        status: output.status.code().unwrap(),
        out: String::from_utf8(output.stdout).unwrap(),
        err: String::from_utf8(output.stderr).unwrap(),
    }
}
