//! Processes that are replaced by those of another version, under traffic.
#![allow(clippy::unwrap_used, clippy::panic)] // a failed step is a failed test

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{IpAddr, SocketAddr, TcpStream, UdpSocket},
    path::Path,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use ringwall_testbed::{
    appliance::{Appliance, Options, PATIENCE, Signal, built_binary, built_neighbour},
    preflight::runs_here,
    probe::Service,
    topology::{Bed, Member, Plan, Role},
    world::{World, differences},
};
use serde_json::{Value, json};

const HTTP: Service = Service::Tcp(80);
const UDP: u16 = 7000;
const PACE: Duration = Duration::from_micros(500);

fn bed() -> (Bed, World) {
    let bed = Bed::new(
        Role::Routed,
        &[
            Plan::new("shop/web"),
            Plan::new("shop/client"),
            Plan::new("shop/stranger"),
        ],
        1,
    )
    .unwrap();
    let mut world = World::of(&bed);
    world.policy(
        "shop",
        "web",
        json!({
            "podSelector": {"matchLabels": {"app": "web"}},
            "ingress": [{"from": [{"podSelector": {"matchLabels": {"app": "client"}}}]}],
        }),
    );
    (bed, world)
}

/// What a program says that it is.
fn about(program: &Path) -> Value {
    let output = Command::new(program).arg("about").output().unwrap();
    serde_json::from_slice(&output.stdout).unwrap()
}

fn version(program: &Path) -> String {
    about(program)["version"].as_str().unwrap().to_owned()
}

/// A connection to the server's echo.
fn echo(from: &Member, to: &Member, v6: bool) -> TcpStream {
    let address = SocketAddr::new(to.address(v6), 80);
    let mut stream = from
        .ns
        .run(|| TcpStream::connect_timeout(&address, Duration::from_secs(3)))
        .unwrap()
        .unwrap();
    stream.set_nodelay(true).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(b"GET /echo HTTP/1.0\r\n\r\n").unwrap();
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        stream.read_exact(&mut byte).unwrap();
        head.push(byte[0]);
    }
    stream
}

/// Sends and wants the same back.
fn round(stream: &mut TcpStream) -> std::io::Result<()> {
    stream.write_all(b"still there?")?;
    let mut answer = [0; 12];
    stream.read_exact(&mut answer)
}

/// Datagrams and connections that may pass and that may not, all the time.
struct Traffic {
    stop: Arc<AtomicBool>,
    sent: Arc<AtomicU64>,
    received: Arc<AtomicU64>,
    /// Of the stranger: asked, and got through.
    tried: Arc<AtomicU64>,
    passed: Arc<AtomicU64>,
    rounds: Arc<AtomicU64>,
    threads: Vec<JoinHandle<()>>,
    connections: Vec<JoinHandle<std::io::Result<()>>>,
}

impl Traffic {
    fn begin(bed: &Bed) -> Self {
        let member = |name| bed.member(name).unwrap();
        let (web, client, stranger) = (member("shop/web"), member("shop/client"), member("shop/stranger"));
        let mut traffic = Self {
            stop: Arc::default(),
            sent: Arc::default(),
            received: Arc::default(),
            tried: Arc::default(),
            passed: Arc::default(),
            rounds: Arc::default(),
            threads: Vec::new(),
            connections: Vec::new(),
        };
        let socket = |member: &Member, port| {
            let address = (member.v4, port);
            member.ns.run(|| UdpSocket::bind(address)).unwrap().unwrap()
        };
        let receiver = socket(web, UDP);
        receiver
            .set_read_timeout(Some(Duration::from_millis(50)))
            .unwrap();
        traffic.thread({
            let (stop, received, passed) = (
                traffic.stop.clone(),
                traffic.received.clone(),
                traffic.passed.clone(),
            );
            let allowed = IpAddr::V4(client.v4);
            move || {
                let mut datagram = [0; 64];
                while !stop.load(Ordering::Relaxed) {
                    if let Ok((_, from)) = receiver.recv_from(&mut datagram) {
                        let count = if from.ip() == allowed { &received } else { &passed };
                        count.fetch_add(1, Ordering::Relaxed);
                    }
                }
            }
        });
        for (from, sent) in [(client, traffic.sent.clone()), (stranger, traffic.tried.clone())] {
            let (sender, stop) = (socket(from, 0), traffic.stop.clone());
            let target = SocketAddr::new(web.v4.into(), UDP);
            traffic.thread(move || {
                let start = Instant::now();
                while !stop.load(Ordering::Relaxed) {
                    // Paced by the clock, so that a late wake-up does not lower the rate.
                    let due = (start.elapsed().as_nanos() / PACE.as_nanos()) as u64;
                    while sent.load(Ordering::Relaxed) < due {
                        sender.send_to(b"datagram", target).unwrap();
                        sent.fetch_add(1, Ordering::Relaxed);
                    }
                    std::thread::sleep(PACE / 2);
                }
            });
        }
        for v6 in [false, true] {
            let target = SocketAddr::new(web.address(v6), 80);
            let (ns, stop, tried, passed) = (
                stranger.ns.clone(),
                traffic.stop.clone(),
                traffic.tried.clone(),
                traffic.passed.clone(),
            );
            traffic.thread(move || {
                ns.run(|| {
                    while !stop.load(Ordering::Relaxed) {
                        tried.fetch_add(1, Ordering::Relaxed);
                        let connected = TcpStream::connect_timeout(&target, Duration::from_millis(20));
                        passed.fetch_add(u64::from(connected.is_ok()), Ordering::Relaxed);
                    }
                })
                .unwrap();
            });
        }
        for number in 0..20 {
            let mut stream = echo(client, web, number % 2 == 1);
            let (stop, rounds) = (traffic.stop.clone(), traffic.rounds.clone());
            traffic.connections.push(std::thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    round(&mut stream)?;
                    rounds.fetch_add(1, Ordering::Relaxed);
                    std::thread::sleep(Duration::from_millis(10));
                }
                Ok(())
            }));
        }
        traffic.flows();
        traffic
    }

    fn thread(&mut self, body: impl FnOnce() + Send + 'static) {
        self.threads.push(std::thread::spawn(body));
    }

    /// Waits until everything that may pass passes.
    fn flows(&self) {
        let count = || {
            (
                self.received.load(Ordering::Relaxed),
                self.rounds.load(Ordering::Relaxed),
            )
        };
        let before = count();
        let end = Instant::now() + PATIENCE;
        while count().0 < before.0 + 200 || count().1 < before.1 + 20 {
            assert!(Instant::now() < end, "nothing passes");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn missing(&self) -> u64 {
        let received = self.received.load(Ordering::Relaxed);
        self.sent.load(Ordering::Relaxed).saturating_sub(received)
    }

    /// For how long nothing passed during something, by the datagrams that are missing.
    fn lost(&self, event: impl FnOnce()) -> Duration {
        self.flows();
        let before = self.missing();
        event();
        self.flows();
        PACE * u32::try_from(self.missing().saturating_sub(before)).unwrap()
    }

    fn end(self) {
        self.flows();
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads {
            thread.join().unwrap();
        }
        for connection in self.connections {
            connection.join().unwrap().unwrap();
        }
        assert!(self.tried.load(Ordering::Relaxed) > 1000, "nothing was tried");
        assert_eq!(self.passed.load(Ordering::Relaxed), 0, "denied packets passed");
    }
}

/// Asks for an upgrade; its status, and all that was said.
fn upgrade(firewall: &Appliance, program: &Path) -> (i32, Vec<Value>) {
    let output = firewall
        .ringwall(&[
            "upgrade",
            "--config",
            &firewall.config.to_string_lossy(),
            "--program",
            &program.to_string_lossy(),
            "-o",
            "json",
        ])
        .unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    let said: Vec<Value> = said
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    (output.status.code().unwrap(), said)
}

fn upgraded(firewall: &Appliance, program: &Path) {
    let (code, said) = upgrade(firewall, program);
    assert_eq!(code, 0, "{said:#?}\n{}", firewall.log());
}

/// The file of a program's flow table.
fn flow_table(program: &Path) -> String {
    format!("flows-{}.bin", about(program)["flows"])
}

/// The files of flow tables that are there.
fn flow_tables(firewall: &Appliance) -> Vec<String> {
    std::fs::read_dir(firewall.config.with_file_name("run"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.starts_with("flows"))
        .collect()
}

/// The versions of control and dataplane.
fn versions(status: &Value) -> [String; 2] {
    ["control", "dataplane"].map(|it| status[it]["version"].as_str().unwrap_or_default().to_owned())
}

/// Waits until everything is ready and there is a dataplane that stands by, of the version of the others.
fn settled(firewall: &Appliance, program: &Path) -> Value {
    let version = version(program);
    let status = firewall
        .wait_until("all is ready", |status| {
            versions(status) == [version.clone(), version.clone()]
                && status["control"]["ready"] == true
                && status["supervision"]["dataplaneStandby"].as_i64().is_some()
        })
        .unwrap();
    let standby = status["supervision"]["dataplaneStandby"].as_i64().unwrap();
    let of = std::fs::read_link(format!("/proc/{standby}/exe")).unwrap();
    assert_eq!(of, program, "the standby is of another version");
    status
}

/// Allows the stranger as well, and denies it again.
fn still_enforced(bed: &Bed, world: &World, firewall: &Appliance) {
    let mut open = world.clone();
    open.policies.clear();
    for (world, allowed) in [(&open, true), (world, false)] {
        world.apply(firewall).unwrap();
        let wanted = [
            ("shop/client", "shop/web", HTTP, true),
            ("shop/stranger", "shop/web", HTTP, allowed),
        ];
        let different = differences(bed, &wanted).unwrap();
        assert!(different.is_empty(), "{}", different.join("\n"));
    }
}

#[test]
fn another_version_takes_over_and_back_again_as_if_a_dataplane_had_died() {
    let Some(_alone) = runs_here("upgrade") else {
        return;
    };
    let (ours, neighbour) = (built_binary().unwrap(), built_neighbour().unwrap());
    let (a, b) = (about(&ours), about(&neighbour));
    for number in ["version", "messages", "snapshots", "flows"] {
        assert_ne!(a[number], b[number], "both programs have one {number}");
    }
    let (bed, world) = bed();
    let firewall = Appliance::start(&bed, &ours, &Options::default(), &world.objects()).unwrap();
    settled(&firewall, &ours);
    let traffic = Traffic::begin(&bed);

    let killed = traffic.lost(|| {
        let old = firewall.signal("dataplane", Signal::SIGKILL).unwrap();
        firewall
            .wait_until("the dataplane is back", |status| {
                let pid = status["dataplane"]["pid"].as_i64();
                pid.is_some_and(|pid| pid != i64::from(old.as_raw()))
            })
            .unwrap();
    });
    let before = settled(&firewall, &ours);
    let mut restarts = before["supervision"]["dataplaneRestarts"].clone();
    let mut generation = before["dataplane"]["snapshot"]["generation"].as_u64().unwrap();

    let mut figures = vec![("kill", killed)];
    for (what, program) in [("upgrade", &neighbour), ("downgrade", &ours)] {
        let lost = traffic.lost(|| upgraded(&firewall, program));
        figures.push((what, lost));
        let status = settled(&firewall, program);
        assert_eq!(status["supervision"]["upgrade"]["outcome"], "done", "{status:#}");
        assert_eq!(flow_tables(&firewall), [flow_table(program)]);
        assert_eq!(status["supervision"]["version"], a["version"]);
        assert_eq!(
            status["supervision"]["dataplaneRestarts"], restarts,
            "a planned replacement is no restart"
        );
        assert_eq!(status["supervision"]["controlRestarts"], 0);
        let newer = status["dataplane"]["snapshot"]["generation"].as_u64().unwrap();
        assert!(newer > generation, "{newer} after {generation}");
        generation = newer;
        // What is there now is what comes back, with the snapshot that the other version could not have read.
        firewall.signal("dataplane", Signal::SIGKILL).unwrap();
        let status = firewall
            .wait_until("the dataplane is back", |status| {
                status["supervision"]["dataplaneRestarts"] != restarts
                    && status["dataplane"]["pid"].as_i64().is_some()
            })
            .unwrap();
        restarts = status["supervision"]["dataplaneRestarts"].clone();
        assert_eq!(status["dataplane"]["alarms"], json!([]), "{status:#}");
        settled(&firewall, program);
        let human = firewall
            .ringwall(&["status", "--config", &firewall.config.to_string_lossy()])
            .unwrap();
        let human = String::from_utf8(human.stdout).unwrap();
        assert!(human.contains("upgrade    upgraded from"), "{human}");
        assert_eq!(
            human.contains("versions   supervisor"),
            program == &neighbour,
            "{human}"
        );
    }
    // A program with the same layouts takes the flows over.
    let twin = bed.folder().join("twin");
    std::fs::copy(&ours, &twin).unwrap();
    let lost = traffic.lost(|| upgraded(&firewall, &twin));
    figures.push(("upgrade with the flow table", lost));
    let status = settled(&firewall, &twin);
    assert!(
        status["dataplane"]["flows"]["inherited"].as_u64().unwrap() >= 20,
        "{status:#}"
    );
    traffic.end();
    eprintln!("without packets: {figures:?}");
    // What a kill costs in the same run, and what a busy machine adds; one of the three may have been disturbed.
    let mut planned: Vec<Duration> = figures.iter().skip(1).map(|(_, lost)| *lost).collect();
    planned.sort();
    assert!(
        planned[1] < killed * 2 + Duration::from_millis(150),
        "{figures:?}"
    );
    // A terminal that closes ends nothing.
    firewall.signal_supervisor(Signal::SIGHUP).unwrap();
    upgraded(&firewall, &neighbour);
    settled(&firewall, &neighbour);
    still_enforced(&bed, &world, &firewall);
}

#[test]
fn what_cannot_run_replaces_nothing() {
    let Some(_alone) = runs_here("refused upgrades") else {
        return;
    };
    let (ours, neighbour) = (built_binary().unwrap(), built_neighbour().unwrap());
    let (bed, world) = bed();
    // A file of its own, to be replaced.
    let program = bed.folder().join("ringwall");
    std::fs::copy(&ours, &program).unwrap();
    let mut firewall = Appliance::start(&bed, &program, &Options::default(), &world.objects()).unwrap();
    let before = settled(&firewall, &program);
    let traffic = Traffic::begin(&bed);
    let refused = |program: &Path, why: &str| {
        let (code, said) = upgrade(&firewall, program);
        let end = said.last().unwrap();
        assert_eq!((code, &end["outcome"]), (1, &json!("refused")), "{said:#?}");
        let reason = end["reason"].as_str().unwrap();
        assert!(reason.contains(why), "{reason}");
        let status = firewall.status().unwrap();
        for process in ["control", "dataplane"] {
            assert_eq!(
                status[process]["pid"], before[process]["pid"],
                "{process} was replaced"
            );
        }
    };
    let lost = traffic.lost(|| {
        refused(Path::new("/bin/cat"), "no ringwall");
        refused(Path::new("/etc/hostname"), "cannot be started");

        let config = std::fs::read_to_string(&firewall.config).unwrap();
        std::fs::write(&firewall.config, format!("{config}noSuchKey: 1\n")).unwrap();
        // The command reads it, too.
        let (code, said) = upgrade(&firewall, &neighbour);
        assert_eq!(code, 2, "{said:#?}");
        std::fs::write(
            &firewall.config,
            config.replace("interfaces:\n", "interfaces:\n  - {name: nowhere, kind: pod}\n"),
        )
        .unwrap();
        refused(&neighbour, "nowhere");
        std::fs::write(&firewall.config, &config).unwrap();

        // A new control refuses what the running one has kept from before.
        let broken = bed.manifests().join("broken.yaml");
        std::fs::write(&broken, "kind: [\n").unwrap();
        refused(&neighbour, "the new control ended (exit status 2)");
        std::fs::remove_file(&broken).unwrap();

        // Root without capabilities may not have any program started with them.
        let output = firewall
            .run_inside(
                Path::new("setpriv"),
                &[
                    "--bounding-set=-all",
                    "--inh-caps=-all",
                    &neighbour.to_string_lossy(),
                    "upgrade",
                    "--config",
                    &firewall.config.to_string_lossy(),
                ],
            )
            .unwrap();
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        assert!(
            String::from_utf8_lossy(&output.stdout).contains("run this as root"),
            "{output:?}"
        );
    });
    assert!(lost < Duration::from_millis(20), "{lost:?}");
    traffic.end();

    // Another file under the name of the program is nothing before it is asked for.
    let next = bed.folder().join("next");
    std::fs::copy(&neighbour, &next).unwrap();
    std::fs::rename(&next, &program).unwrap();
    for process in ["dataplane", "control"] {
        let old = firewall.signal(process, Signal::SIGKILL).unwrap();
        let status = firewall
            .wait_until("it is back", |status| {
                let pid = status[process]["pid"].as_i64();
                pid.is_some_and(|pid| pid != i64::from(old.as_raw())) && status["control"]["ready"] == true
            })
            .unwrap();
        assert_eq!(versions(&status), [version(&ours), version(&ours)]);
    }
    upgraded(&firewall, &program);
    let same = firewall
        .wait_until("all is ready", |status| status["control"]["ready"] == true)
        .unwrap();
    assert_eq!(versions(&same), [version(&neighbour), version(&neighbour)]);
    // Once more is nothing to do.
    let (code, said) = upgrade(&firewall, &program);
    assert_eq!((code, said.len()), (0, 1), "{said:#?}");
    assert_eq!(
        firewall.pid("dataplane").unwrap().as_raw(),
        same["dataplane"]["pid"].as_i64().unwrap() as i32
    );
    still_enforced(&bed, &world, &firewall);
    assert!(firewall.stop().unwrap().success());
}

/// Begins an upgrade and kills a process of the new version once the new dataplane is on trial; how it ended.
fn fails_on_trial(firewall: &Appliance, neighbour: &Path, victim: &str) -> (Option<i32>, Value) {
    let mut upgrading = firewall
        .begin(&[
            "upgrade",
            "--config",
            &firewall.config.to_string_lossy(),
            "--program",
            &neighbour.to_string_lossy(),
            "-o",
            "json",
        ])
        .unwrap();
    let mut end = Value::Null;
    for line in BufReader::new(upgrading.stdout.take().unwrap()).lines() {
        end = serde_json::from_str(&line.unwrap()).unwrap();
        if end["step"].as_str().is_some_and(|step| step.contains("on trial")) {
            let pid = match victim {
                "supervisor" => firewall.supervisor().as_raw(),
                role => process_of(firewall, neighbour, role),
            };
            kill(pid);
        }
    }
    (upgrading.wait().unwrap().code(), end)
}

fn kill(pid: i32) {
    let status = Command::new("kill").args(["-9", &pid.to_string()]).status();
    assert!(status.unwrap().success());
}

/// The children of the supervisor.
fn children(firewall: &Appliance) -> Vec<i32> {
    let parent = firewall.supervisor();
    let children = std::fs::read_to_string(format!("/proc/{parent}/task/{parent}/children"));
    let children = children.unwrap_or_default();
    children
        .split_whitespace()
        .map(|pid| pid.parse().unwrap())
        .collect()
}

/// The child of the supervisor that runs a program in a role.
fn process_of(firewall: &Appliance, program: &Path, role: &str) -> i32 {
    let is = |pid: &i32| {
        let arguments = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        std::fs::read_link(format!("/proc/{pid}/exe")).is_ok_and(|exe| exe == program)
            && arguments.split(|byte| *byte == 0).nth(1) == Some(role.as_bytes())
    };
    children(firewall).into_iter().find(is).unwrap()
}

#[test]
fn what_fails_on_trial_leads_back() {
    let Some(_alone) = runs_here("rolled back upgrades") else {
        return;
    };
    let (ours, neighbour) = (built_binary().unwrap(), built_neighbour().unwrap());
    let (bed, world) = bed();
    let firewall = Appliance::start(&bed, &ours, &Options::default(), &world.objects()).unwrap();
    let traffic = Traffic::begin(&bed);
    for victim in ["dataplane", "control"] {
        let mut tries = 1..=3;
        let (control, code, end) = loop {
            let control = settled(&firewall, &ours)["control"]["pid"].clone();
            let (code, end) = fails_on_trial(&firewall, &neighbour, victim);
            // On a busy machine the trial may be over before this process has heard of it.
            if end["outcome"] != "done" || tries.next().is_none() {
                break (control, code, end);
            }
            settled(&firewall, &neighbour);
            upgraded(&firewall, &ours);
        };
        assert_eq!(
            (code, &end["outcome"]),
            (Some(1), &json!("rolled-back")),
            "{end:#}"
        );
        assert!(end["reason"].as_str().unwrap().contains(victim), "{end:#}");
        let status = settled(&firewall, &ours);
        assert_eq!(status["control"]["pid"], control, "the old control was replaced");
        assert_eq!(status["supervision"]["upgrade"]["outcome"], "rolled-back");
        if victim == "dataplane" {
            assert!(
                status["dataplane"]["flows"]["inherited"].as_u64().unwrap() >= 20,
                "the flows were not found again: {status:#}"
            );
        }
        assert_eq!(flow_tables(&firewall), [flow_table(&ours)]);
        traffic.flows();
        let of_neighbour =
            |pid: &i32| std::fs::read_link(format!("/proc/{pid}/exe")).is_ok_and(|it| it == neighbour);
        let left: Vec<i32> = children(&firewall).into_iter().filter(of_neighbour).collect();
        assert!(left.is_empty(), "{left:?} are left over");
    }
    traffic.end();
    still_enforced(&bed, &world, &firewall);
    // Nothing is in the way of a next one.
    upgraded(&firewall, &neighbour);
    settled(&firewall, &neighbour);
    still_enforced(&bed, &world, &firewall);
}

#[test]
fn a_supervisor_that_dies_in_an_upgrade_leaves_nothing_behind() {
    let Some(_alone) = runs_here("supervisor killed in an upgrade") else {
        return;
    };
    let (ours, neighbour) = (built_binary().unwrap(), built_neighbour().unwrap());
    let (bed, world) = bed();
    let mut firewall = Appliance::start(&bed, &ours, &Options::default(), &world.objects()).unwrap();
    settled(&firewall, &ours);
    let (code, end) = fails_on_trial(&firewall, &neighbour, "supervisor");
    assert_eq!(code, Some(2), "how it ended is unknown, but: {end:#}");
    assert!(firewall.ended(PATIENCE).unwrap().is_some());
    let alive = || {
        std::fs::read_dir("/proc")
            .unwrap()
            .flatten()
            .any(|entry| std::fs::read_link(entry.path().join("exe")).is_ok_and(|exe| exe == neighbour))
    };
    let end = Instant::now() + PATIENCE;
    while alive() {
        assert!(
            Instant::now() < end,
            "a process of the new version outlives its supervisor"
        );
        std::thread::sleep(Duration::from_millis(10));
    }
    // The fail mode holds, and the version before finds its own snapshot.
    let closed = [
        ("shop/client", "shop/web", HTTP, false),
        ("shop/stranger", "shop/web", HTTP, false),
    ];
    let different = differences(&bed, &closed).unwrap();
    assert!(different.is_empty(), "{}", different.join("\n"));
    let firewall = Appliance::start(&bed, &ours, &Options::default(), &world.objects()).unwrap();
    assert!(
        firewall.log().contains("last snapshot loaded"),
        "{}",
        firewall.log()
    );
    still_enforced(&bed, &world, &firewall);
}
