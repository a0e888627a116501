//! From an event at the API server to its adoption, by the real process, at size. Takes minutes:
//!
//! ```text
//! PODS=100000 POLICIES=10000 NAMESPACES=1000 RATE=1000 SECONDS=60 VERIFY=changed \
//!   cargo test --release -p ringwall --no-default-features --test stream_speed -- --ignored --nocapture
//! ```
//!
//! The dataplane here has no packets: it validates and applies what it gets, and answers.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)] // a failed step is a failed test

use std::{
    collections::VecDeque,
    io::{Read, Write},
    os::unix::net::UnixStream,
    path::Path,
    process::{Child, Command, Stdio},
    sync::{Arc, Condvar, Mutex},
    thread,
    time::{Duration, Instant},
};

use ringwall_dataplane::classify::Snapshot;
use ringwall_messages::{Connection, ContentHash, Listener, Reply, Request, Status, VERSION, read_image};
use ringwall_testbed::{
    api_server::ApiServer,
    synthetic::{Churn, Spec, Synthetic},
};
use serde_json::{Value, json};

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().unwrap())
}

/// What the dataplane knows.
#[derive(Default)]
struct Kept {
    snapshot: Option<(u64, Arc<Snapshot>)>,
    hash: Option<ContentHash>,
    adopted: Option<Instant>,
    deltas: u64,
    delta_bytes: u64,
    /// Pods that are expected, and since when.
    expected: VecDeque<(String, Instant)>,
    lags: Vec<Duration>,
}

#[derive(Default)]
struct Dataplane {
    kept: Mutex<Kept>,
    changed: Condvar,
}

impl Dataplane {
    fn serve(&self, connection: &Connection) {
        while let Ok(received) = connection.receive::<Request>() {
            for reply in self.answer(received.message, received.fd) {
                connection.send(&reply, None).unwrap();
            }
        }
    }

    fn answer(&self, request: Request, fd: Option<std::os::fd::OwnedFd>) -> Vec<Reply> {
        let mut kept = self.kept.lock().unwrap();
        match request {
            Request::Hello { .. } => vec![Reply::Hello {
                version: VERSION,
                generation: kept.snapshot.as_ref().map_or(0, |(generation, _)| *generation),
                hash: kept.hash,
                cluster: None,
                workers: 1,
                pod_starts: Vec::new(),
            }],
            Request::Publish {
                generation,
                hash,
                bytes,
                base,
                cluster: _,
            } => {
                let image = read_image(fd.unwrap(), bytes).unwrap();
                kept.deltas += u64::from(base.is_some());
                kept.delta_bytes += base.map_or(0, |_| bytes);
                let snapshot = match (base, &kept.snapshot) {
                    (None, _) => Snapshot::open(&image),
                    (Some(base), Some((newest, snapshot))) if *newest == base => snapshot.apply(&image),
                    (Some(base), _) => panic!("a delta to {base}, which this has not"),
                };
                let snapshot = Arc::new(snapshot.unwrap());
                let now = Instant::now();
                while let Some((name, since)) = kept.expected.pop_front() {
                    if snapshot.find_endpoint("default", &name).is_none() {
                        kept.expected.push_front((name, since));
                        break;
                    }
                    kept.lags.push(now - since);
                }
                kept.snapshot = Some((generation, snapshot));
                kept.hash = Some(hash);
                kept.adopted = Some(now);
                self.changed.notify_all();
                vec![
                    Reply::Accepted { generation },
                    Reply::Adopted {
                        generation,
                        micros: 1,
                    },
                ]
            }
            Request::Status => vec![Reply::Status {
                status: Box::default(),
            }],
            other => panic!("not asked by control: {other:?}"),
        }
    }

    fn generation(&self) -> u64 {
        let kept = self.kept.lock().unwrap();
        kept.snapshot.as_ref().map_or(0, |(generation, _)| *generation)
    }

    /// Waits for a generation above this one; when it was adopted.
    fn above(&self, generation: u64, patience: Duration) -> Instant {
        let kept = self.kept.lock().unwrap();
        let above = |kept: &mut Kept| {
            kept.snapshot
                .as_ref()
                .is_none_or(|(newest, _)| *newest <= generation)
        };
        let (kept, late) = self.changed.wait_timeout_while(kept, patience, above).unwrap();
        assert!(!late.timed_out(), "nothing above generation {generation}");
        kept.adopted.unwrap()
    }
}

struct Control {
    child: Child,
    dir: tempfile::TempDir,
}

impl Drop for Control {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Control {
    fn start(server: &ApiServer, dataplane: &Arc<Dataplane>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let at = dir.path();
        std::fs::create_dir(at.join("run")).unwrap();
        let verify = std::env::var("VERIFY").unwrap_or_else(|_| "changed".to_owned());
        let config = format!(
            "apiVersion: ringwall.io/v1alpha1\nkind: Gateway\nname: speed\nmode: enforce\nverify: {verify}\n\
             cluster: {{podCIDRs: [10.0.0.0/10, \"fd00:10::/32\"], serviceCIDRs: [10.96.0.0/12]}}\n\
             source: {{kubeconfig: kubeconfig}}\n\
             interfaces:\n- {{name: lan0, side: inside}}\n- {{name: lan1, side: outside}}\n\
             wires:\n- {{name: w0, interfaces: [lan0, lan1], failMode: closed}}\n\
             runtimeDir: {0}/run\nstateDir: {0}/state\ntelemetry: {{metricsListen: \"127.0.0.1:0\"}}\n",
            at.display()
        );
        std::fs::write(at.join("config.yaml"), config).unwrap();
        std::fs::write(at.join("kubeconfig"), server.kubeconfig("t")).unwrap();
        let listener = Listener::bind(&at.join("run/dataplane.sock")).unwrap();
        let dataplane = Arc::clone(dataplane);
        thread::spawn(move || {
            while let Ok(connection) = listener.accept() {
                let dataplane = Arc::clone(&dataplane);
                thread::spawn(move || dataplane.serve(&connection));
            }
        });
        let child = Command::new(env!("CARGO_BIN_EXE_ringwall"))
            .arg("control")
            .arg("--config")
            .arg(at.join("config.yaml"))
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let mut control = Self { child, dir };
        while !control.dir.path().join("run/control.sock").exists() {
            assert_eq!(control.child.try_wait().unwrap(), None, "it has ended");
            thread::sleep(Duration::from_millis(10));
        }
        control
    }

    fn get(&self, path: &str) -> String {
        get(&self.dir.path().join("run/control.sock"), path)
    }

    fn status(&self) -> Status {
        serde_json::from_str(&self.get("/v1/status")).unwrap()
    }

    /// Seconds of processor time so far.
    fn cpu(&self) -> f64 {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap();
        let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
        (fields[11].parse::<f64>().unwrap() + fields[12].parse::<f64>().unwrap()) / 100.0
    }

    /// As the kernel counts it, in MiB: `VmRSS` or `VmHWM`.
    fn memory(&self, what: &str) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find(|line| line.starts_with(what)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() / 1024
    }
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
    text.split_once("\r\n\r\n").unwrap().1.to_owned()
}

fn figures(what: &str, mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    let at = |share: f64| times[((times.len() - 1) as f64 * share) as usize];
    println!(
        "{what}: median {:.2?}, p90 {:.2?}, p99 {:.2?}, most {:.2?} (of {})",
        at(0.5),
        at(0.9),
        at(0.99),
        at(1.0),
        times.len()
    );
    at(0.99)
}

fn marker(number: u64) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": format!("marker-{number}"), "namespace": "default", "labels": {"app": "marker"}},
        "spec": {"nodeName": "n1", "containers": [{"name": "c", "image": "i"}]},
        "status": {"phase": "Running", "podIPs": [{"ip": format!("10.60.{}.{}", number / 250, number % 250 + 1)}]},
    })
}

#[test]
#[ignore = "takes minutes in release"]
fn an_event_is_adopted_in_time() {
    let (pods, policies) = (setting("PODS", 10_000), setting("POLICIES", 1_000));
    let namespaces = setting("NAMESPACES", 100);
    let spec = Spec {
        churn: Churn::of_pods(),
        ..Spec::sized(policies as usize, pods as usize, namespaces as usize)
    };
    let mut cluster = Synthetic::new(spec).unwrap();
    let server = ApiServer::start().unwrap();
    server.load(cluster.objects());
    server.apply(json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "default"}}));
    server.remember(100_000);
    println!("{:?}", cluster.counts());

    let dataplane = Arc::new(Dataplane::default());
    let began = Instant::now();
    let control = Control::start(&server, &dataplane);
    let first = dataplane.above(0, Duration::from_secs(1200)) - began;
    let status = control.status().control.unwrap();
    println!(
        "start to first adoption {first:.2?} (compiled in {:.1} ms, proven in {:.1} ms), image {:.1} MB, resident {} MiB, most {} MiB",
        status.snapshot.compile_micros as f64 / 1e3,
        status.proof.micros as f64 / 1e3,
        status.snapshot.bytes as f64 / 1e6,
        control.memory("VmRSS"),
        control.memory("VmHWM"),
    );
    thread::sleep(Duration::from_secs(2));

    single(&server, &dataplane, &control);
    storm(&server, &mut cluster, &dataplane, &control);
    println!(
        "resident {} MiB, most {} MiB",
        control.memory("VmRSS"),
        control.memory("VmHWM")
    );
}

/// One pod at a time, in a quiet cluster: a new one, another label, gone.
fn single(server: &ApiServer, dataplane: &Dataplane, control: &Control) {
    let mut times: [Vec<Duration>; 3] = Default::default();
    for round in 0..setting("ROUNDS", 200) {
        let name = format!("marker-{}", 10_000 + round);
        let mut pod = marker(10_000 + round);
        for (step, times) in times.iter_mut().enumerate() {
            thread::sleep(Duration::from_millis(10));
            let before = dataplane.generation();
            let began = Instant::now();
            match step {
                0 => drop(server.apply(pod.clone())),
                1 => {
                    pod["metadata"]["labels"]["role"] = json!("other");
                    server.apply(pod.clone());
                }
                _ => drop(server.delete(ringwall_testbed::api_server::PODS, "default", &name)),
            }
            times.push(dataplane.above(before, Duration::from_secs(60)) - began);
        }
    }
    for (what, times) in ["new pod", "other labels", "gone pod"].iter().zip(times) {
        figures(what, times);
    }
    let status = control.status().control.unwrap();
    println!(
        "last: compiled in {} us, proven in {} us; {} of {} compiled incrementally",
        status.snapshot.compile_micros,
        status.proof.micros,
        status.snapshot.compiled_incrementally,
        status.snapshot.compiled
    );
}

/// Many events a second, and now and then a pod whose adoption is watched for.
fn storm(server: &ApiServer, cluster: &mut Synthetic, dataplane: &Dataplane, control: &Control) {
    let (rate, seconds) = (setting("RATE", 1000), setting("SECONDS", 10));
    let events: Vec<_> = (0..rate * seconds).map(|_| cluster.churn()).collect();
    let before = control.status().control.unwrap();
    let (cpu, began) = (control.cpu(), Instant::now());
    for (number, event) in events.into_iter().enumerate() {
        let due = began + Duration::from_secs_f64(number as f64 / rate as f64);
        thread::sleep(due.saturating_duration_since(Instant::now()));
        if number.is_multiple_of(50) {
            let number = number as u64 / 50;
            let mut kept = dataplane.kept.lock().unwrap();
            kept.expected
                .push_back((format!("marker-{number}"), Instant::now()));
            drop(kept);
            server.apply(marker(number));
        }
        server.event(event);
    }
    let took = began.elapsed();
    let until = Instant::now() + Duration::from_secs(60);
    while !dataplane.kept.lock().unwrap().expected.is_empty() {
        assert!(Instant::now() < until, "a pod was never seen");
        thread::sleep(Duration::from_millis(1));
    }
    let status = control.status().control.unwrap();
    let (deltas, bytes) = {
        let kept = dataplane.kept.lock().unwrap();
        (kept.deltas.max(1), kept.delta_bytes)
    };
    println!(
        "{rate} events a second for {took:.1?}: {:.2} cores, {} events, {} states, {} snapshots, {} incremental; {} bytes a delta",
        (control.cpu() - cpu) / began.elapsed().as_secs_f64(),
        status.source.events - before.source.events,
        status.source.states - before.source.states,
        status.snapshot.compiled - before.snapshot.compiled,
        status.snapshot.compiled_incrementally - before.snapshot.compiled_incrementally,
        bytes / deltas,
    );
    figures("lag", std::mem::take(&mut dataplane.kept.lock().unwrap().lags));
    for line in control.get("/metrics").lines() {
        if line.starts_with("ringwall_publication_seconds_bucket") {
            println!("{}", line.trim_start_matches("ringwall_publication_seconds_"));
        }
    }
}
