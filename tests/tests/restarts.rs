//! Processes that die and come back under traffic.
#![allow(clippy::unwrap_used, clippy::panic)] // a failed step is a failed test

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use ringwall_testbed::{
    appliance::{Appliance, Options, Signal, built_binary},
    preflight::runs_here,
    probe::Service,
    topology::{Bed, Member, Plan, Role},
    world::{World, differences, wait_for_answer},
};
use serde_json::json;

const HTTP: Service = Service::Tcp(80);

fn bed() -> Bed {
    Bed::new(
        Role::Routed,
        &[Plan::new("shop/web"), Plan::new("shop/client")],
        1,
    )
    .unwrap()
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
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
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
fn round(stream: &mut TcpStream, text: &[u8]) -> std::io::Result<()> {
    stream.write_all(text)?;
    let mut answer = vec![0; text.len()];
    stream.read_exact(&mut answer)?;
    if answer == text {
        Ok(())
    } else {
        Err(std::io::Error::other("another answer"))
    }
}

#[test]
fn control_is_killed_and_nothing_is_lost() {
    let Some(_alone) = runs_here("control restart") else {
        return;
    };
    let bed = bed();
    let mut world = World::of(&bed);
    let firewall = Appliance::start(
        &bed,
        &built_binary().unwrap(),
        &Options::default(),
        &world.objects(),
    )
    .unwrap();
    let (client, web) = (
        bed.member("shop/client").unwrap(),
        bed.member("shop/web").unwrap(),
    );
    let before = firewall.status().unwrap();
    let generation = before["dataplane"]["snapshot"]["generation"].as_u64().unwrap();

    let socket = client
        .ns
        .run(|| UdpSocket::bind(("0.0.0.0", 0)))
        .unwrap()
        .unwrap();
    socket.connect((web.v4, 53)).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let (sent, answered) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let traffic = std::thread::spawn({
        let (stop, sent, answered) = (stop.clone(), sent.clone(), answered.clone());
        move || {
            let mut buffer = [0; 256];
            while !stop.load(Ordering::Relaxed) {
                sent.fetch_add(1, Ordering::Relaxed);
                if socket.send(b"ask").is_ok() && socket.recv(&mut buffer).is_ok() {
                    answered.fetch_add(1, Ordering::Relaxed);
                }
            }
        }
    });
    std::thread::sleep(Duration::from_millis(300));
    let old = firewall.signal("control", Signal::SIGKILL).unwrap();
    let back = firewall
        .wait_until("control is back", |status| {
            status["control"]["pid"]
                .as_i64()
                .is_some_and(|pid| pid != i64::from(old.as_raw()))
                && status["control"]["ready"] == true
                && status["control"]["publication"]["connected"] == true
        })
        .unwrap();
    std::thread::sleep(Duration::from_millis(300));
    stop.store(true, Ordering::Relaxed);
    traffic.join().unwrap();
    let (sent, answered) = (sent.load(Ordering::Relaxed), answered.load(Ordering::Relaxed));
    assert!(sent > 200, "{sent} datagrams are no traffic");
    assert_eq!(sent, answered, "datagrams were lost while control was away");
    assert_eq!(back["supervision"]["controlRestarts"], 1);
    assert!(back["dataplane"]["snapshot"]["generation"].as_u64().unwrap() >= generation);
    // It decides again.
    world.policy(
        "shop",
        "nobody",
        json!({"podSelector": {}, "policyTypes": ["Ingress"]}),
    );
    world.apply(&firewall).unwrap();
    let different = differences(&bed, &[("shop/client", "shop/web", HTTP, false)]).unwrap();
    assert!(different.is_empty(), "{}", different.join("\n"));
}

#[test]
fn connections_outlive_the_dataplane() {
    let Some(_alone) = runs_here("dataplane restart") else {
        return;
    };
    let bed = bed();
    let mut world = World::of(&bed);
    // The server may not begin a connection to the client, so only inherited state lets its words through.
    world.policy(
        "shop",
        "client",
        json!({"podSelector": {"matchLabels": {"app": "client"}}, "policyTypes": ["Ingress"]}),
    );
    let options = Options {
        more: "conntrack: {tcpMidstream: strict}\n".into(),
        ..Options::default()
    };
    let firewall = Appliance::start(&bed, &built_binary().unwrap(), &options, &world.objects()).unwrap();
    let (client, web) = (
        bed.member("shop/client").unwrap(),
        bed.member("shop/web").unwrap(),
    );
    let mut idle: Vec<TcpStream> = (0..100)
        .map(|number| echo(client, web, number % 2 == 1))
        .collect();
    let stop = Arc::new(AtomicBool::new(false));
    let rounds = Arc::new(AtomicU64::new(0));
    let busy: Vec<_> = (0..100)
        .map(|number| {
            let mut stream = echo(client, web, number % 2 == 1);
            let (stop, rounds) = (stop.clone(), rounds.clone());
            std::thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    round(&mut stream, b"busy busy busy")?;
                    rounds.fetch_add(1, Ordering::Relaxed);
                    std::thread::sleep(Duration::from_millis(20));
                }
                Ok::<_, std::io::Error>(())
            })
        })
        .collect();
    std::thread::sleep(Duration::from_millis(500));
    let made = firewall.status().unwrap()["dataplane"]["flows"]["used"]
        .as_u64()
        .unwrap();
    assert!(made >= 200, "{made} flows");

    let killed = Instant::now();
    let old = firewall.signal("dataplane", Signal::SIGKILL).unwrap();
    // The client may not be reached by new connections, so it has to ask.
    wait_for_answer(&bed, "shop/client", web.v4.into(), HTTP, Duration::from_secs(15)).unwrap();
    let outage = killed.elapsed();
    let status = firewall
        .wait_until("the dataplane is back", |status| {
            status["dataplane"]["pid"]
                .as_i64()
                .is_some_and(|pid| pid != i64::from(old.as_raw()))
        })
        .unwrap();
    eprintln!(
        "dataplane killed: new connections again after {:.0} ms (from SIGKILL)",
        outage.as_secs_f64() * 1e3
    );
    assert!(
        status["dataplane"]["flows"]["inherited"].as_u64().unwrap() >= 200,
        "{:#}",
        status["dataplane"]["flows"]
    );
    let so_far = rounds.load(Ordering::Relaxed);
    std::thread::sleep(Duration::from_secs(2));
    stop.store(true, Ordering::Relaxed);
    let broken: Vec<_> = busy
        .into_iter()
        .map(|thread| thread.join().unwrap())
        .filter_map(Result::err)
        .collect();
    assert!(
        broken.is_empty(),
        "{} busy connections broke: {broken:?}",
        broken.len()
    );
    assert!(
        rounds.load(Ordering::Relaxed) > so_far,
        "the busy ones stand still"
    );
    let broken: Vec<_> = idle
        .iter_mut()
        .filter_map(|stream| round(stream, b"still there?").err())
        .collect();
    assert!(
        broken.is_empty(),
        "{} idle connections broke: {broken:?}",
        broken.len()
    );
}

fn alive(pid: i64) -> bool {
    std::path::Path::new(&format!("/proc/{pid}")).exists()
}

/// The dataplane that stands by, once there is one besides `not`.
fn standby(firewall: &Appliance, not: Option<i64>) -> i64 {
    let pid = |status: &serde_json::Value| status["supervision"]["dataplaneStandby"].as_i64();
    let status = firewall
        .wait_until("another dataplane stands by", |status| {
            pid(status).is_some() && pid(status) != not
        })
        .unwrap();
    pid(&status).unwrap()
}

#[test]
fn the_dataplane_that_stands_by_takes_over_what_is_true_then_and_is_never_left() {
    let Some(_alone) = runs_here("standby") else {
        return;
    };
    let bed = bed();
    let world = World::of(&bed);
    let mut firewall = Appliance::start(
        &bed,
        &built_binary().unwrap(),
        &Options::default(),
        &world.objects(),
    )
    .unwrap();
    let running = i64::from(firewall.pid("dataplane").unwrap().as_raw());
    let first = standby(&firewall, None);
    assert_ne!(first, running);

    // One that dies is replaced, and nothing else notices.
    let kill = |pid: i64| {
        let status = std::process::Command::new("kill")
            .args(["-9", &pid.to_string()])
            .status();
        assert!(status.unwrap().success());
    };
    kill(first);
    let second = standby(&firewall, Some(first));
    assert_eq!(i64::from(firewall.pid("dataplane").unwrap().as_raw()), running);
    assert!(!alive(first));

    // It goes by the configuration of the moment, not by that of its start.
    let text = std::fs::read_to_string(&firewall.config).unwrap();
    std::fs::write(
        &firewall.config,
        format!("{text}conntrack: {{maxEntries: 16384}}\n"),
    )
    .unwrap();
    firewall.signal("dataplane", Signal::SIGKILL).unwrap();
    let status = firewall
        .wait_until("it has taken over", |status| {
            status["dataplane"]["pid"].as_i64() == Some(second)
                && status["control"]["publication"]["connected"] == true
        })
        .unwrap();
    assert_eq!(status["dataplane"]["flows"]["capacity"], 16384);
    assert_eq!(status["supervision"]["dataplaneRestarts"], 1);
    assert!(
        status["dataplane"]["uptimeSeconds"].as_f64().unwrap() < 5.0,
        "{status:#}"
    );
    let different = differences(&bed, &[("shop/client", "shop/web", HTTP, true)]).unwrap();
    assert!(different.is_empty(), "{}", different.join("\n"));

    // It ends with the others, in order or not.
    let third = standby(&firewall, Some(second));
    assert!(firewall.stop().unwrap().success());
    assert!(!alive(third) && !alive(second));
    let mut firewall = Appliance::start(
        &bed,
        &built_binary().unwrap(),
        &Options::default(),
        &world.objects(),
    )
    .unwrap();
    let fourth = standby(&firewall, None);
    firewall.end(Signal::SIGKILL).unwrap();
    let patience = Instant::now() + Duration::from_secs(5);
    while alive(fourth) {
        assert!(Instant::now() < patience, "it outlived its supervisor");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A server that speaks first on a connection that was idle over the restart: only inherited state tells that it may.
#[test]
fn the_first_word_after_a_restart_may_be_the_servers() {
    let Some(_alone) = runs_here("reply first") else {
        return;
    };
    let bed = bed();
    let mut world = World::of(&bed);
    world.policy(
        "shop",
        "client",
        json!({"podSelector": {"matchLabels": {"app": "client"}}, "policyTypes": ["Ingress"]}),
    );
    let options = Options {
        more: "conntrack: {tcpMidstream: strict}\n".into(),
        ..Options::default()
    };
    let firewall = Appliance::start(&bed, &built_binary().unwrap(), &options, &world.objects()).unwrap();
    let (client, web) = (
        bed.member("shop/client").unwrap(),
        bed.member("shop/web").unwrap(),
    );
    let listener = web
        .ns
        .run(|| std::net::TcpListener::bind(("0.0.0.0", 7000)))
        .unwrap()
        .unwrap();
    let mut pairs: Vec<_> = (0..100)
        .map(|_| {
            let near = client
                .ns
                .run(|| {
                    TcpStream::connect_timeout(&SocketAddr::new(web.v4.into(), 7000), Duration::from_secs(3))
                })
                .unwrap()
                .unwrap();
            near.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
            (near, listener.accept().unwrap().0)
        })
        .collect();
    let old = firewall.signal("dataplane", Signal::SIGKILL).unwrap();
    firewall
        .wait_until("the dataplane is back", |status| {
            status["dataplane"]["pid"]
                .as_i64()
                .is_some_and(|pid| pid != i64::from(old.as_raw()))
                && status["control"]["publication"]["connected"] == true
        })
        .unwrap();
    for (near, far) in &mut pairs {
        far.write_all(b"first word").unwrap();
        let mut text = [0; 10];
        near.read_exact(&mut text).unwrap();
        assert_eq!(&text, b"first word");
    }
}

#[test]
fn a_transfer_is_cut_and_permitted_again_while_it_runs() {
    let Some(_alone) = runs_here("live change") else {
        return;
    };
    let bed = bed();
    let mut world = World::of(&bed);
    let firewall = Appliance::start(
        &bed,
        &built_binary().unwrap(),
        &Options::default(),
        &world.objects(),
    )
    .unwrap();
    let (client, web) = (
        bed.member("shop/client").unwrap(),
        bed.member("shop/web").unwrap(),
    );
    for v6 in [false, true] {
        let mut stream = echo(client, web, v6);
        round(&mut stream, b"before").unwrap();
        world.policy(
            "shop",
            "nobody",
            json!({"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}),
        );
        world.apply(&firewall).unwrap();
        stream.set_read_timeout(Some(Duration::from_millis(700))).unwrap();
        assert!(
            round(&mut stream, b"denied").is_err(),
            "a packet passed after the policy was adopted"
        );
        world.policies.clear();
        world.apply(&firewall).unwrap();
        // What was sent meanwhile is sent again by TCP.
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let mut late = [0; 6];
        stream.read_exact(&mut late).unwrap();
        assert_eq!(&late, b"denied");
        round(&mut stream, b"after").unwrap();
    }
    assert!(
        firewall.status().unwrap()["dataplane"]["flows"]["revoked"]
            .as_u64()
            .unwrap()
            >= 2
    );
}

/// As a debugger, a full cgroup or a fault of the kernel leaves it: it neither ends nor goes on.
#[test]
fn processes_that_stand_still_are_replaced() {
    let Some(_alone) = runs_here("standing still") else {
        return;
    };
    let bed = bed();
    let world = World::of(&bed);
    let firewall = Appliance::start(
        &bed,
        &built_binary().unwrap(),
        &Options::default(),
        &world.objects(),
    )
    .unwrap();
    // They have said once that they are alive: from then on their silence counts.
    std::thread::sleep(Duration::from_secs(6));
    let stopped = ["control", "dataplane"].map(|process| {
        let pid = firewall.pid(process).unwrap();
        (process, pid)
    });
    for (_, pid) in stopped {
        nix::sys::signal::kill(pid, Signal::SIGSTOP).unwrap();
    }
    let until = Instant::now() + Duration::from_secs(60);
    for (process, pid) in stopped {
        while std::fs::exists(format!("/proc/{pid}")).unwrap() {
            assert!(
                Instant::now() < until,
                "{process} is still there: {}",
                firewall.log()
            );
            std::thread::sleep(Duration::from_millis(50));
        }
    }
    firewall
        .wait_until("others are there", |status| {
            stopped.iter().all(|(process, before)| {
                let pid = status[process]["pid"].as_i64();
                pid.is_some_and(|pid| pid != i64::from(before.as_raw()))
            })
        })
        .unwrap();
    let found = differences(&bed, &[("shop/client", "shop/web", HTTP, true)]).unwrap();
    assert!(found.is_empty(), "{found:#?}");
    let log = firewall.log();
    assert_eq!(log.matches("does not respond").count(), 2, "{log}");
    assert_eq!(log.matches("killed by SIGKILL").count(), 2, "{log}");
}
