//! Pods that come after the start: packet memory, numbers, guards.
#![cfg(feature = "afxdp")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test that panics has failed
#![allow(missing_docs, unreachable_pub, dead_code)] // a test, and a bed that other tests use more of

mod run_bed;

use std::{
    collections::BTreeMap,
    io,
    time::{Duration, Instant},
};

use netlink_packet_route::{RouteNetlinkMessage, link::LinkAttribute};
use ringwall_appliance::netlink::{ChangeStream, KernelChange};
use run_bed::*;

/// The gateway without a pod that is a port, and with objects for pods `late0` to `late(COUNT-1)`.
fn bed(count: usize, more: &str) -> Bed {
    let bed = Bed::new();
    let objects: String = (0..count)
        .map(|number| {
            format!(
                "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: late{number}, namespace: default}}\nspec: {{nodeName: node1, containers: [{{name: c, image: x}}]}}\nstatus: {{phase: Running, podIP: {0}, podIPs: [{{ip: {0}}}]}}\n",
                address(number)
            )
        })
        .collect();
    bed.manifest("late", &objects);
    bed.configure(&format!(
        "{}{more}",
        bed.config().replace("match: \"pod-*\"", "match: \"late*\"")
    ));
    bed
}

fn address(number: usize) -> String {
    format!("10.1.{}.{}", 2 + number / 200, 1 + number % 200)
}

/// Makes a pod as a CNI with routes does, and waits until its port is open.
fn add(bed: &Bed, pod: &Namespace, number: usize) {
    make(bed, pod, number);
    bed.wait_for("open port", |bed| {
        port(bed, &format!("late{number}")).is_some_and(|port| port["queues"].as_u64() > Some(0))
    });
}

fn make(bed: &Bed, pod: &Namespace, number: usize) {
    let (v4, v6) = (address(number), format!("fd00:1::1:{number:x}"));
    bed.add_pod(pod, &format!("late{number}"), &v4, &v6);
}

fn port(bed: &Bed, name: &str) -> Option<serde_json::Value> {
    let status = bed.status();
    let ports = status["dataplane"]["ports"].as_array().unwrap();
    ports.iter().find(|port| port["name"] == name).cloned()
}

/// The first connection may come before the route to the pod is published.
fn reaches_outside(bed: &Bed, pod: &Namespace) -> bool {
    (0..8).any(|_| connect(pod, OUTSIDE, 80).is_ok()) || {
        eprintln!("{}", bed.log());
        false
    }
}

/// A packet for each frame that a small port has, several times over, so that frames have to come home.
fn many_packets(pod: &Namespace) -> io::Result<()> {
    let mut stream = connect(pod, OUTSIDE, 80)?;
    for _ in 0..500 {
        echo(&mut stream)?;
    }
    Ok(())
}

#[test]
fn forty_pods_that_come_after_the_start_all_have_packet_memory() {
    if !may_run("forty_pods_that_come_after_the_start_all_have_packet_memory") {
        return;
    }
    let mut bed = bed(40, "");
    bed.start();
    serve(&bed.outside, OUTSIDE, 80);
    let mut pods = Vec::new();
    for number in 0..40 {
        let pod = Namespace::new(&format!("l{number}"));
        add(&bed, &pod, number);
        assert!(reaches_outside(&bed, &pod), "late{number}");
        many_packets(&pod).unwrap_or_else(|error| panic!("late{number}: {error}"));
        pods.push(pod);
    }
    for (number, pod) in pods.iter().enumerate() {
        many_packets(pod).unwrap_or_else(|error| panic!("late{number}, with all others there: {error}"));
    }
    let status = bed.status();
    for port in status["dataplane"]["ports"].as_array().unwrap() {
        // A busy machine may lose some; a port without frames loses all.
        assert!(port["rxLost"].as_u64().unwrap() < 100, "{port}");
        assert!(port["problem"].is_null(), "{port}");
    }
    assert_eq!(
        status["dataplane"]["alarms"].as_array().unwrap().len(),
        0,
        "{status}"
    );
}

#[test]
fn a_pod_without_packet_memory_is_refused_with_an_alarm_until_there_is_some() {
    if !may_run("a_pod_without_packet_memory_is_refused_with_an_alarm_until_there_is_some") {
        return;
    }
    // Room for ten, beside the uplink and the host port.
    let mut bed = bed(11, "umem: {total: 12MiB}\n");
    bed.start();
    serve(&bed.outside, OUTSIDE, 80);
    let pods: Vec<Namespace> = (0..11)
        .map(|number| Namespace::new(&format!("l{number}")))
        .collect();
    for (number, pod) in pods.iter().enumerate().take(10) {
        add(&bed, pod, number);
        assert!(reaches_outside(&bed, pod), "late{number}");
    }
    make(&bed, &pods[10], 10);
    bed.wait_for("refusal", |bed| {
        port(bed, "late10").is_some_and(|port| {
            port["problem"].as_str().is_some_and(|problem| {
                problem.contains("no packet memory is left") && problem.contains("umem.total")
            })
        })
    });
    let alarms = bed.status()["dataplane"]["alarms"].to_string();
    assert!(alarms.contains("late10"), "{alarms}");
    let words = bed.ask(&["status"]);
    assert!(String::from_utf8_lossy(&words.stdout).contains("no packet memory is left"));
    assert!(connect(&pods[10], OUTSIDE, 80).is_err(), "closed");
    for (number, pod) in pods.iter().enumerate().take(10) {
        many_packets(pod).unwrap_or_else(|error| panic!("late{number} keeps what it was promised: {error}"));
    }
    sh(&format!("ip -n {} link del late3", bed.gateway.0));
    bed.wait_for("port that is open", |bed| {
        port(bed, "late10").is_some_and(|port| port["problem"].is_null())
    });
    many_packets(&pods[10]).unwrap();
}

#[test]
fn a_hundred_pods_one_after_the_other_are_each_served_and_forgotten() {
    if !may_run("a_hundred_pods_one_after_the_other_are_each_served_and_forgotten") {
        return;
    }
    let mut bed = bed(100, "");
    bed.start();
    serve(&bed.outside, OUTSIDE, 80);
    for number in 0..100 {
        let pod = Namespace::new(&format!("l{number}"));
        add(&bed, &pod, number);
        assert!(reaches_outside(&bed, &pod), "late{number}");
        let counted = port(&bed, &format!("late{number}")).unwrap();
        assert!(
            counted["rxFrames"].as_u64().unwrap() < 100,
            "its own packets alone: {counted}"
        );
        sh(&format!("ip -n {} link del late{number}", bed.gateway.0));
    }
    let status = bed.status();
    assert_eq!(
        status["dataplane"]["alarms"].as_array().unwrap().len(),
        0,
        "pods that end are no alarm: {status}"
    );
    // Those that went first are forgotten, while the last ones may still come back.
    bed.wait_for("oblivion", |bed| {
        port(bed, "late0").is_none() && port(bed, "up0").is_some()
    });
}

/// How long after the kernel's event each interface carried a program.
fn watch_links(namespace: &Namespace, names: Vec<String>) -> std::thread::JoinHandle<Vec<Duration>> {
    let (ready, started) = std::sync::mpsc::channel();
    let path = namespace.path();
    let watcher = std::thread::spawn(move || {
        let file = std::fs::File::open(path).unwrap();
        rustix::thread::move_into_link_name_space(
            std::os::fd::AsFd::as_fd(&file),
            Some(rustix::thread::LinkNameSpaceType::Network),
        )
        .unwrap();
        let changes = ChangeStream::of_links().unwrap();
        ready.send(()).unwrap();
        let mut open: BTreeMap<String, Instant> = BTreeMap::new();
        let mut took: Vec<Duration> = Vec::new();
        let deadline = Instant::now() + Duration::from_secs(30);
        while took.len() < names.len() && Instant::now() < deadline {
            // The kernel says nothing of a program that is attached by a link.
            let patience = if open.is_empty() { 500_000 } else { 50 };
            if let Ok(KernelChange::Messages(messages)) = changes.wait(Duration::from_micros(patience)) {
                let now = Instant::now();
                for message in messages {
                    let RouteNetlinkMessage::NewLink(link) = message else {
                        continue;
                    };
                    for attribute in &link.attributes {
                        if let LinkAttribute::IfName(name) = attribute
                            && names.contains(name)
                            && took.len() + open.len() < names.len()
                        {
                            open.entry(name.clone()).or_insert(now);
                        }
                    }
                }
            }
            open.retain(|name, since| {
                let no_pins = std::path::Path::new("/sys/fs/bpf/no-pins");
                let guarded =
                    ringwall_bpf::inspect(no_pins, name).is_ok_and(|found| found.other_program.is_some());
                if guarded {
                    took.push(since.elapsed());
                }
                !guarded
            });
        }
        took
    });
    started.recv().unwrap();
    watcher
}

#[test]
fn new_pods_ports_are_guarded_at_once() {
    if !may_run("new_pods_ports_are_guarded_at_once") {
        return;
    }
    let mut bed = bed(24, "");
    bed.start();
    let gw = bed.gateway.0.clone();
    // One after the other, then twelve by one command.
    for (count, from, batch) in [(12, 0, 1), (12, 12, 12)] {
        let mut all: Vec<Duration> = Vec::new();
        for first in (from..from + count).step_by(batch) {
            let numbers: Vec<usize> = (first..first + batch).collect();
            let names = numbers.iter().map(|number| format!("late{number}")).collect();
            let watcher = watch_links(&bed.gateway, names);
            let script: String = numbers
                .iter()
                .map(|number| format!("link add late{number} up type veth peer name peer{number}\n"))
                .collect();
            sh(&format!("printf '{script}' | ip -n {gw} -batch -"));
            let took = watcher.join().unwrap();
            assert_eq!(took.len(), batch, "{}", bed.log());
            all.extend(took);
        }
        all.sort_unstable();
        eprintln!(
            "{batch} at once: unguarded after the link event for {:?} (median), {:?} (most)",
            all[all.len() / 2],
            all[all.len() - 1]
        );
        // The target is 2 ms each on a machine with nothing else to do; this is for one that is busy.
        let limit = Duration::from_millis(100) * batch as u32;
        assert!(all[all.len() / 2] < limit, "{all:?}");
    }
}
