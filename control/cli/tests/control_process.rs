//! `ringwall control` as a process: how it begins, answers and ends.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs)] // a failed step is a failed test

use std::{
    io::{Read, Write},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};

const PATIENCE: Duration = Duration::from_secs(20);

struct Bed {
    dir: tempfile::TempDir,
}

impl Bed {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("manifests")).unwrap();
        std::fs::create_dir(dir.path().join("run")).unwrap();
        let config = format!(
            "apiVersion: ringwall.io/v1alpha1\nkind: Gateway\nname: kubetest\nmode: enforce\n\
             cluster: {{podCIDRs: [10.0.0.0/16]}}\nsource: {{manifests: manifests, allowNoPods: true}}\n\
             interfaces:\n- {{name: lan0, side: inside}}\n- {{name: lan1, side: outside}}\n\
             wires:\n- {{name: w0, interfaces: [lan0, lan1], failMode: closed}}\n\
             runtimeDir: {0}/run\nstateDir: {0}/state\ntelemetry: {{metricsListen: \"127.0.0.1:0\"}}\n",
            dir.path().display()
        );
        std::fs::write(dir.path().join("config.yaml"), config).unwrap();
        Self { dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn command(&self, more: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ringwall"));
        command
            .arg("control")
            .arg("--config")
            .arg(self.path("config.yaml"))
            .args(more);
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    /// Starts it and waits for its socket.
    fn start(&self, more: &[&str]) -> Child {
        self.spawn(self.command(more))
    }

    /// Starts a command and waits for its socket.
    fn spawn(&self, mut command: Command) -> Child {
        let child = command.spawn().unwrap();
        let until = Instant::now() + PATIENCE;
        while !self.path("run/control.sock").exists() {
            assert!(Instant::now() < until, "no socket");
            std::thread::sleep(Duration::from_millis(5));
        }
        child
    }

    /// Runs it to its end: status and messages.
    fn refused(&self, more: &[&str]) -> (Option<i32>, String) {
        let output = self.command(more).output().unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    }
}

/// Waits for the end, and for its socket to be gone.
fn ended(mut child: Child, socket: &Path) -> Option<i32> {
    let until = Instant::now() + PATIENCE;
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        if Instant::now() > until {
            child.kill().unwrap();
            panic!("it does not end");
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    assert!(!socket.exists(), "the socket is left over");
    status.code()
}

fn get(socket: &Path, path: &str) -> String {
    let mut stream = UnixStream::connect(socket).unwrap();
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    )
    .unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text
}

#[test]
fn it_answers_without_a_dataplane_and_ends_when_told() {
    let bed = Bed::new();
    let socket = bed.path("run/control.sock");
    for signal in [Signal::TERM, Signal::INT] {
        let child = bed.start(&[]);
        let status = get(&socket, "/v1/status");
        assert!(status.starts_with("HTTP/1.1 200"), "{status}");
        assert!(
            status.contains("\"name\":\"kubetest\"") && status.contains("\"dataplane\":null"),
            "{status}"
        );
        assert!(get(&socket, "/readyz").starts_with("HTTP/1.1 503"));
        kill_process(Pid::from_child(&child), signal).unwrap();
        assert_eq!(ended(child, &socket), Some(0));
    }
    assert!(bed.path("state/control/epoch.key").exists());
}

#[test]
fn a_hangup_ends_nothing() {
    let bed = Bed::new();
    let socket = bed.path("run/control.sock");
    let mut child = bed.start(&[]);
    kill_process(Pid::from_child(&child), Signal::HUP).unwrap();
    // Answered after the signal was delivered.
    assert!(get(&socket, "/v1/status").starts_with("HTTP/1.1 200"));
    assert!(child.try_wait().unwrap().is_none());
    kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
    assert_eq!(ended(child, &socket), Some(0));
}

#[test]
fn with_json_every_line_of_the_log_is_json() {
    let bed = Bed::new();
    let socket = bed.path("run/control.sock");
    let mut command = bed.command(&[]);
    command.env("RINGWALL_LOG_FORMAT", "json").env_remove("RUST_LOG");
    let child = bed.spawn(command);
    assert!(get(&socket, "/v1/status").starts_with("HTTP/1.1 200"));
    kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
    let output = child.wait_with_output().unwrap();
    let log = String::from_utf8(output.stderr).unwrap();
    assert!(
        log.contains("control is running"),
        "the default level says so: {log}"
    );
    for line in log.lines() {
        assert!(serde_json::from_str::<serde_json::Value>(line).is_ok(), "{line}");
    }
}

#[test]
fn it_ends_with_its_supervisor() {
    let bed = Bed::new();
    let mut child = bed.start(&["--supervised"]);
    std::thread::sleep(Duration::from_millis(100));
    assert!(
        child.try_wait().unwrap().is_none(),
        "as long as the supervisor lives, it does"
    );
    drop(child.stdin.take());
    assert_eq!(ended(child, &bed.path("run/control.sock")), Some(0));
}

#[test]
fn what_cannot_be_read_at_the_start_ends_with_status_2_and_its_place() {
    let bed = Bed::new();
    let absent = bed.path("absent");
    let absent = absent.to_str().unwrap();
    for option in ["--kubeconfig", "--manifests"] {
        let (code, message) = bed.refused(&[option, absent]);
        assert_eq!(code, Some(2), "{message}");
        assert!(message.contains(absent), "{message}");
    }
    std::fs::write(bed.path("kubeconfig"), "clusters: 5\n").unwrap();
    let kubeconfig = bed.path("kubeconfig");
    let (code, message) = bed.refused(&["--kubeconfig", kubeconfig.to_str().unwrap()]);
    assert_eq!(code, Some(2), "{message}");
    assert!(message.contains("kubeconfig"), "{message}");

    std::fs::write(bed.path("manifests/bad.yaml"), "apiVersion: v1\nkind: [\n").unwrap();
    let (code, message) = bed.refused(&[]);
    assert_eq!(code, Some(2), "{message}");
    assert_eq!(message.matches("bad.yaml:").count(), 1, "said once: {message}");
    std::fs::remove_file(bed.path("manifests/bad.yaml")).unwrap();

    let config = std::fs::read_to_string(bed.path("config.yaml")).unwrap();
    std::fs::write(bed.path("config.yaml"), config.replace(", allowNoPods: true", "")).unwrap();
    let (code, message) = bed.refused(&[]);
    assert_eq!(code, Some(2), "{message}");
    assert!(
        message.contains("no pod in") && message.contains("allowNoPods"),
        "{message}"
    );
    assert!(!bed.path("run/control.sock").exists());
}
