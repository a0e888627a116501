//! What `ringwall run` does when a part of it fails that cannot be made to fail from outside by ordinary means.
#![cfg(feature = "afxdp")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test that panics has failed
#![allow(dead_code, missing_docs, unreachable_pub)] // a test, and parts of the bed serve others

mod run_bed;
#[cfg(target_arch = "x86_64")]
#[path = "run_bed/traced.rs"]
mod traced;

use std::{
    net::UdpSocket,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use nix::{
    sys::{
        ptrace,
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::Pid,
};
use ringwall_appliance::last_snapshot::{LastSnapshot, SnapshotInputs};
use ringwall_config::Config;
use ringwall_messages::ClusterUid;
use ringwall_testbed::api_server::ApiServer;
use run_bed::*;
use serde_json::json;

/// The thread of the first worker.
fn worker_thread(dataplane: u32) -> Pid {
    let task = std::fs::read_dir(format!("/proc/{dataplane}/task"))
        .unwrap()
        .flatten()
        .find(|task| {
            std::fs::read_to_string(task.path().join("comm")).is_ok_and(|name| name.trim() == "rw-worker-0")
        })
        .expect("a worker");
    Pid::from_raw(task.file_name().to_str().unwrap().parse().unwrap())
}

#[test]
fn a_worker_that_hangs_is_replaced_with_its_process() {
    if !may_run("a_worker_that_hangs_is_replaced_with_its_process") {
        return;
    }
    let mut bed = Bed::new();
    bed.start();
    serve(&bed.b, POD_B, 80);
    let mut open = connect(&bed.a, POD_B, 80).unwrap();
    let hung = bed.child("dataplane").unwrap();
    let thread = worker_thread(hung);
    // Who traces a thread stops it alone.
    ptrace::attach(thread).unwrap();
    let stopped = waitpid(thread, Some(WaitPidFlag::__WALL)).unwrap();
    assert!(matches!(stopped, WaitStatus::Stopped(..)), "{stopped:?}");
    assert!(connect(&bed.a, POD_B, 80).is_err(), "the worker hangs");
    // Its end is the tracer's to be told; the process is gone only then.
    let ended = waitpid(thread, Some(WaitPidFlag::__WALL)).unwrap();
    assert_eq!(ended, WaitStatus::Exited(thread, 70), "{}", bed.log());
    bed.wait_for("successor", |bed| {
        bed.child("dataplane").is_some_and(|pid| pid != hung) && connect(&bed.a, POD_B, 80).is_ok()
    });
    echo(&mut open).unwrap_or_else(|error| panic!("the connection: {error}\n{}", bed.log()));
    assert!(bed.log().contains("the worker is stuck"), "{}", bed.log());
    assert_eq!(bed.status()["supervision"]["dataplaneRestarts"], 1);
}

/// A question each millisecond and its answer, from pod b to pod a.
struct Questions {
    stop: Arc<AtomicBool>,
    thread: std::thread::JoinHandle<Duration>,
}

impl Questions {
    fn ask(bed: &Bed) -> Self {
        let a = bed.a.inside(|| UdpSocket::bind((POD_A, 7))).unwrap();
        let b = bed.b.inside(|| UdpSocket::bind((POD_B, 0))).unwrap();
        b.connect((POD_A, 7)).unwrap();
        b.set_read_timeout(Some(Duration::from_millis(1))).unwrap();
        a.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        std::thread::spawn(move || {
            let mut question = [0; 8];
            while !stopped.load(Ordering::Relaxed) {
                if let Ok((n, from)) = a.recv_from(&mut question) {
                    let _ = a.send_to(&question[..n], from);
                }
            }
        });
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let (mut answered, mut longest) = (Instant::now(), Duration::ZERO);
            while !stopped.load(Ordering::Relaxed) {
                let _ = b.send(b"question");
                if b.recv(&mut [0; 8]).is_ok() {
                    longest = longest.max(answered.elapsed());
                    answered = Instant::now();
                    std::thread::sleep(Duration::from_millis(1));
                }
            }
            longest
        });
        Self { stop, thread }
    }

    /// The longest time without an answer.
    fn longest_silence(self) -> Duration {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap()
    }
}

/// The thread of the worker ends by what `end` does to it. Its process is replaced, and its successor judges.
#[cfg(target_arch = "x86_64")]
fn a_worker_that_ends(end: impl FnOnce(traced::Traced, &traced::Symbols) -> bool, said: &str) {
    let mut bed = Bed::new();
    bed.manifest("np", ISOLATE_B);
    bed.start();
    serve(&bed.a, POD_A, 80);
    serve(&bed.b, POD_B, 80);
    let mut open = connect(&bed.b, POD_A, 80).unwrap();
    assert!(connect(&bed.a, POD_B, 80).is_err(), "what policy denies");
    bed.wait_for("standby", |bed| {
        bed.status()["supervision"]["dataplaneStandby"].is_u64()
    });
    let questions = Questions::ask(&bed);
    let symbols = traced::Symbols::of(env!("CARGO_BIN_EXE_ringwall").as_ref());
    let was = bed.child("dataplane").unwrap();
    let worker = traced::Traced::stop(was, worker_thread(was));
    if !end(worker, &symbols) {
        eprintln!("SKIPPED: the program has no symbols of the functions that this needs");
        return;
    }
    bed.wait_for("successor", |bed| {
        bed.status()["supervision"]["dataplaneRestarts"] == 1 && connect(&bed.b, POD_A, 80).is_ok()
    });
    assert_ne!(bed.child("dataplane"), Some(was));
    echo(&mut open).unwrap_or_else(|error| panic!("the connection: {error}\n{}", bed.log()));
    assert!(connect(&bed.a, POD_B, 80).is_err(), "what policy denies");
    let log = bed.log();
    assert!(log.contains(said), "{log}");
    let how = bed.status()["supervision"]["dataplaneLastExit"].to_string();
    assert!(how.contains("70"), "{how}");
    eprintln!("{said}: {:?} without traffic", questions.longest_silence());
}

#[test]
#[cfg(target_arch = "x86_64")]
fn a_worker_that_panics_is_replaced_with_its_process() {
    if may_run("a_worker_that_panics_is_replaced_with_its_process") {
        let turn = "ringwall_dataplane::worker::Worker<Io>::run_once";
        a_worker_that_ends(
            |worker, symbols| worker.panic_in(symbols, turn),
            "rw-worker-0 panicked: exiting",
        );
    }
}

#[test]
#[cfg(target_arch = "x86_64")]
fn a_worker_that_returns_is_replaced_with_its_process() {
    if may_run("a_worker_that_returns_is_replaced_with_its_process") {
        let run = "ringwall_appliance::worker_thread::worker_loop";
        a_worker_that_ends(
            |worker, symbols| worker.raise_flag_of(symbols, run),
            "rw-worker-0 ended unexpectedly: exiting",
        );
    }
}

#[test]
#[cfg(target_arch = "x86_64")]
fn a_worker_whose_thread_vanishes_is_replaced_with_its_process() {
    if may_run("a_worker_whose_thread_vanishes_is_replaced_with_its_process") {
        let vanish = |worker: traced::Traced, _: &traced::Symbols| {
            worker.vanish();
            true
        };
        a_worker_that_ends(vanish, "the worker is stuck: exiting");
    }
}

/// A bed that has run with `ISOLATE_B`, whose source is an API server that does not answer from now on: its last snapshot
/// is that server's.
fn without_source() -> Bed {
    let (bed, before) = with_another_source();
    let config = Config::load(&bed.config_file()).unwrap();
    let file = config.snapshot_file();
    let last = LastSnapshot::new(file.clone(), before, None).load().unwrap();
    let now = LastSnapshot::new(file, SnapshotInputs::of(&config), None);
    now.write(&last.unwrap().snapshot, None).unwrap();
    bed
}

/// A bed that has run with `ISOLATE_B` of a folder, whose source is an API server that does not answer from now on, and
/// what its last snapshot was made of.
fn with_another_source() -> (Bed, SnapshotInputs) {
    let mut bed = Bed::new();
    bed.manifest("np", ISOLATE_B);
    bed.start();
    assert_eq!(bed.stop(), Some(0), "{}", bed.log());
    let kubeconfig = bed.dir.path().join("kubeconfig");
    std::fs::write(
        &kubeconfig,
        "apiVersion: v1
kind: Config
clusters: [{name: gone, cluster: {server: \"http://127.0.0.1:1\"}}]
users: [{name: nobody, user: {}}]
contexts: [{name: gone, context: {cluster: gone, user: nobody}}]
current-context: gone
",
    )
    .unwrap();
    let folder = format!("manifests: {}/manifests", bed.dir.path().display());
    let config = bed.config();
    assert!(config.contains(&folder));
    let before = SnapshotInputs::of(&Config::load(&bed.config_file()).unwrap());
    bed.configure(&config.replace(&folder, &format!("kubeconfig: {}", kubeconfig.display())));
    (bed, before)
}

fn snapshot_of(bed: &Bed) -> Option<serde_json::Value> {
    let output = bed.ask(&["status", "-o", "json"]);
    let status: serde_json::Value = serde_json::from_slice(&output.stdout).ok()?;
    status["dataplane"]["workers"].get(0)?;
    Some(status)
}

#[test]
fn the_last_snapshot_decides_until_there_is_an_api_server() {
    if !may_run("the_last_snapshot_decides_until_there_is_an_api_server") {
        return;
    }
    let mut bed = without_source();
    serve(&bed.a, POD_A, 80);
    serve(&bed.b, POD_B, 80);
    bed.launch();
    bed.wait_for("worker with the last snapshot", |bed| {
        snapshot_of(bed).is_some_and(|status| status["dataplane"]["workers"][0]["generation"] != 0)
    });
    let status = bed.status();
    assert_eq!(status["dataplane"]["snapshot"]["origin"], "disk", "{status}");
    assert_eq!(status["control"]["ready"], false, "{status}");
    let age = status["dataplane"]["snapshot"]["ageSeconds"].as_f64();
    assert!(age.is_some_and(|age| age < 60.0), "{status}");
    let text = String::from_utf8(bed.ask(&["status"]).stdout).unwrap();
    assert!(text.contains("STALE: from disk"), "{text}");
    connect(&bed.b, POD_A, 80).expect("what it allows");
    assert!(connect(&bed.a, POD_B, 80).is_err(), "what it denies");
}

#[test]
fn the_last_snapshot_decides_until_the_cluster_turns_out_to_be_another() {
    if !may_run("the_last_snapshot_decides_until_the_cluster_turns_out_to_be_another") {
        return;
    }
    let mut bed = without_source();
    let config = Config::load(&bed.config_file()).unwrap();
    let last = LastSnapshot::new(config.snapshot_file(), SnapshotInputs::of(&config), None);
    let before = ClusterUid::try_from("the-old-cluster".to_owned()).unwrap();
    let stored = last.load().unwrap().unwrap().snapshot;
    last.write(&stored, Some(&before)).unwrap();
    let server = bed.gateway.inside(|| ApiServer::start().unwrap());
    server.set_away(true);
    std::fs::write(bed.dir.path().join("kubeconfig"), server.kubeconfig("t")).unwrap();
    for name in ["kube-system", "default"] {
        let uid = format!("the-new-{name}");
        server
            .apply(json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "uid": uid}}));
    }
    for (name, ip) in [("a", POD_A), ("b", POD_B)] {
        server.apply(json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": name, "namespace": "default", "labels": {"app": name}},
            "spec": {"containers": [{"name": "c", "image": "i"}]},
            "status": {"phase": "Running", "podIPs": [{"ip": ip}]},
        }));
    }
    serve(&bed.b, POD_B, 80);
    bed.launch();
    bed.wait_for("worker with the last snapshot", |bed| {
        snapshot_of(bed).is_some_and(|status| status["dataplane"]["workers"][0]["generation"] != 0)
    });
    let cluster = |bed: &Bed| bed.status()["dataplane"]["snapshot"]["cluster"].clone();
    assert_eq!(cluster(&bed), "the-old-cluster");
    assert!(connect(&bed.a, POD_B, 80).is_err(), "what the last one denies");

    server.set_away(false);
    bed.wait_for("the new cluster's policy", |bed| {
        cluster(bed) == "the-new-kube-system"
    });
    bed.wait_for("readiness", |bed| bed.status()["control"]["ready"] == true);
    connect(&bed.a, POD_B, 80).expect("what the new cluster allows");
    let alarms = bed.status()["control"]["alarms"].to_string();
    assert!(
        alarms.contains("is another cluster than before")
            && alarms.contains("the-new-kube-system")
            && alarms.contains("the-old-cluster"),
        "{alarms}"
    );
    assert!(
        bed.log().contains("is another cluster than before"),
        "{}",
        bed.log()
    );
}

/// What is wrong with the last snapshot.
fn alarm(bed: &Bed) -> Option<String> {
    let status = snapshot_of(bed)?;
    let alarms = status["dataplane"]["alarms"].as_array()?.clone();
    alarms
        .iter()
        .filter_map(|alarm| alarm.as_str())
        .find(|alarm| alarm.contains("snapshot.img"))
        .map(str::to_owned)
}

#[test]
fn a_snapshot_of_another_source_decides_nothing() {
    if !may_run("a_snapshot_of_another_source_decides_nothing") {
        return;
    }
    let (mut bed, _) = with_another_source();
    serve(&bed.a, POD_A, 80);
    bed.launch();
    bed.wait_for("alarm", |bed| alarm(bed).is_some());
    let alarm = alarm(&bed).unwrap();
    for words in [
        "it was made from folder ",
        "the source is kubeconfig ",
        "pod traffic waits",
    ] {
        assert!(alarm.contains(words), "{alarm}");
    }
    assert!(connect(&bed.b, POD_A, 80).is_err(), "what another source allowed");
}

#[test]
fn a_damaged_snapshot_on_disk_decides_nothing() {
    if !may_run("a_damaged_snapshot_on_disk_decides_nothing") {
        return;
    }
    let mut bed = without_source();
    serve(&bed.a, POD_A, 80);
    serve(&bed.gateway, GATEWAY, 80);
    let file = bed.dir.path().join("state/snapshot.img");
    let mut image = std::fs::read(&file).unwrap();
    let middle = image.len() / 2;
    image[middle] ^= 1;
    std::fs::write(&file, image).unwrap();
    bed.launch();
    bed.wait_for("alarm", |bed| alarm(bed).is_some());
    assert_eq!(bed.ask(&["status"]).status.code(), Some(1), "alarmed");
    assert!(
        alarm(&bed).unwrap().contains("pod traffic waits for control"),
        "{:?}",
        alarm(&bed)
    );
    assert!(
        connect(&bed.b, POD_A, 80).is_err(),
        "not even what was allowed: nothing says so"
    );
    connect(&bed.outside, GATEWAY, 80).expect("the host's own traffic is not pods'");
    let drops = bed.status()["dataplane"]["drops"].clone();
    assert!(
        drops["no-snapshot"].as_u64().is_some_and(|count| count > 0),
        "{drops}"
    );
}

/// How often a process has gone to sleep by itself.
fn sleeps(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
    line.unwrap().trim().parse().unwrap()
}

#[test]
fn a_supervisor_waits_quietly_for_the_first_policy_and_a_hangup_ends_nothing() {
    if !may_run("a_supervisor_waits_quietly_for_the_first_policy_and_a_hangup_ends_nothing") {
        return;
    }
    let mut bed = without_source();
    std::fs::remove_file(bed.dir.path().join("state/snapshot.img")).unwrap();
    bed.launch();
    bed.wait_for("dataplane", |bed| snapshot_of(bed).is_some());
    assert_eq!(bed.ask(&["status"]).status.code(), Some(1), "not ready");
    let supervisor = bed.supervisor();
    sh(&format!("kill -HUP {supervisor}"));
    bed.wait_for("word of the hangup", |bed| bed.log().contains("SIGHUP"));
    // Once a second for systemd, and less and less often for the first policy: it was a hundred times a second.
    let before = sleeps(supervisor);
    std::thread::sleep(std::time::Duration::from_secs(3));
    let slept = sleeps(supervisor) - before;
    assert!(slept < 150, "{slept} times in three seconds");
    assert!(bed.child("dataplane").is_some() && bed.child("control").is_some());
}
