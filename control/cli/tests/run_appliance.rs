//! `ringwall run` on real interfaces: policy on real connections, deaths, restarts, interfaces that come and go.
#![cfg(feature = "afxdp")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test that panics has failed
#![allow(missing_docs, unreachable_pub)] // a test

mod run_bed;

use run_bed::*;

#[test]
fn connections_pass_and_stop_with_the_policy_and_every_frame_is_accounted_for() {
    if !may_run("connections_pass_and_stop_with_the_policy_and_every_frame_is_accounted_for") {
        return;
    }
    let mut bed = Bed::new();
    bed.start();
    serve(&bed.a, POD_A, 80);
    serve(&bed.b, POD_B, 80);
    serve(&bed.a, POD_A_V6, 80);
    serve(&bed.b, POD_B_V6, 80);
    serve(&bed.outside, OUTSIDE, 80);
    serve(&bed.gateway, GATEWAY, 80);
    let paths = [
        ("pod to pod", &bed.a, POD_B),
        ("pod to pod, IPv6", &bed.a, POD_B_V6),
        ("pod to the outside", &bed.a, OUTSIDE),
        ("outside to pod", &bed.outside, POD_B),
        ("host to pod", &bed.gateway, POD_B),
        ("pod to host", &bed.b, GATEWAY),
        ("outside to host", &bed.outside, GATEWAY),
    ];
    for (path, from, to) in paths {
        connect(from, to, 80).unwrap_or_else(|error| panic!("{path}: {error}\n{}", bed.log()));
    }

    let mut open = connect(&bed.a, POD_B, 80).unwrap();
    let before = bed.generation();
    bed.manifest("np", ISOLATE_B);
    bed.wait_newer(before);
    for (from, to) in [(&bed.a, POD_B), (&bed.a, POD_B_V6), (&bed.outside, POD_B)] {
        assert!(connect(from, to, 80).is_err(), "{to} is isolated");
    }
    open.set_read_timeout(Some(std::time::Duration::from_secs(1)))
        .unwrap();
    assert!(echo(&mut open).is_err(), "a running connection is cut, too");
    connect(&bed.b, POD_A, 80).expect("the other direction is open");
    connect(&bed.gateway, POD_B, 80).expect("the hosting node always reaches its pods");

    bed.remove_manifest("np");
    bed.wait_newer(before + 1);
    connect(&bed.a, POD_B, 80).expect("open again");

    // At rest: retransmissions of the cut connection may still be under way, so look until two looks agree.
    let accounts = |status: &serde_json::Value| {
        let frames = &status["dataplane"]["frames"];
        let number = |key: &str| frames[key].as_u64().unwrap();
        (
            number("received") + number("generated"),
            number("forwarded") + number("dropped") + number("held"),
        )
    };
    bed.wait_for("balance of frames", |bed| {
        let (came, went) = accounts(&bed.status());
        came == went
    });
    let status = bed.status();
    let drops = status["dataplane"]["drops"]["policy-ingress"].as_u64().unwrap();
    assert!(drops >= 4, "{status}");
    let lost: u64 = status["dataplane"]["frames"]["lost"].as_u64().unwrap();
    assert_eq!(lost, 0, "{status}");
    assert_eq!(bed.stop(), Some(0), "{}", bed.log());
}

/// Who may reach b: the members of a set.
const PARTNERS_REACH_B: &str = "apiVersion: projectcalico.org/v3
kind: GlobalNetworkPolicy
metadata: {name: partners}
spec:
  selector: app == 'b'
  types: [Ingress]
  ingress: [{action: Allow, source: {selector: role == 'partner'}}]
";

fn partners(nets: &[&str]) -> String {
    let nets = nets.join(", ");
    format!(
        "apiVersion: projectcalico.org/v3\nkind: GlobalNetworkSet\nmetadata: {{name: partners, labels: {{role: partner}}}}\n\
         spec: {{nets: [{nets}]}}\n"
    )
}

#[test]
fn a_member_that_leaves_a_network_set_loses_its_connections_and_the_others_keep_theirs() {
    if !may_run("a_member_that_leaves_a_network_set_loses_its_connections_and_the_others_keep_theirs") {
        return;
    }
    let mut bed = Bed::new();
    bed.manifest("policy", PARTNERS_REACH_B);
    bed.manifest("set", &partners(&["192.0.2.9/32", "10.1.1.2/32"]));
    bed.start();
    serve(&bed.b, POD_B, 80);
    let connect_to_b = |from: &Namespace| {
        let mut open = connect(from, POD_B, 80).expect("a member");
        open.set_read_timeout(Some(std::time::Duration::from_secs(1)))
            .unwrap();
        echo(&mut open).expect("a member");
        open
    };
    let (mut outside, mut pod) = (connect_to_b(&bed.outside), connect_to_b(&bed.a));
    let set_to = |nets: &[&str]| {
        let before = bed.generation();
        bed.manifest("set", &partners(nets));
        bed.wait_newer(before);
    };
    set_to(&["10.1.1.2/32", "198.51.100.0/24"]);
    assert!(echo(&mut outside).is_err(), "it is no member any more");
    assert!(
        connect(&bed.outside, POD_B, 80).is_err(),
        "it is no member any more"
    );
    echo(&mut pod).expect("still a member");
    set_to(&["192.0.2.0/24", "198.51.100.0/24"]);
    assert!(echo(&mut pod).is_err(), "it is no member any more");
    drop(connect_to_b(&bed.outside));
    assert_eq!(bed.stop(), Some(0), "{}", bed.log());
}

#[test]
fn a_killed_dataplane_is_replaced_and_connections_go_on() {
    if !may_run("a_killed_dataplane_is_replaced_and_connections_go_on") {
        return;
    }
    let mut bed = Bed::new();
    // Only what began under the first process may pass: the second one has to know it.
    bed.manifest("np", ISOLATE_B);
    bed.start();
    serve(&bed.a, POD_A, 80);
    let mut open: Vec<_> = (0..20).map(|_| connect(&bed.b, POD_A, 80).unwrap()).collect();
    let first = bed.child("dataplane").unwrap();
    sh(&format!("kill -9 {first}"));
    bed.wait_for("successor", |bed| {
        bed.child("dataplane").is_some_and(|pid| pid != first)
            && bed.ask(&["status", "-o", "json"]).status.success()
            && bed.status()["dataplane"]["pid"].as_u64() != Some(u64::from(first))
            && bed.status()["dataplane"]["snapshot"]["generation"].as_u64() > Some(0)
    });
    for (number, stream) in open.iter_mut().enumerate() {
        echo(stream).unwrap_or_else(|error| panic!("connection {number}: {error}\n{}", bed.log()));
    }
    let status = bed.status();
    assert_eq!(status["supervision"]["dataplaneRestarts"], 1, "{status}");
    assert!(
        status["dataplane"]["flows"]["inherited"].as_u64().unwrap() >= 20,
        "{status}"
    );
}

#[test]
fn a_killed_dataplane_would_let_go_of_lifeline_and_flow_table_before_its_sockets() {
    if !may_run("a_killed_dataplane_would_let_go_of_lifeline_and_flow_table_before_its_sockets") {
        return;
    }
    let mut bed = Bed::new();
    bed.start();
    let dataplane = bed.child("dataplane").unwrap();
    // The kernel closes from the highest number down.
    let open: Vec<(u32, String)> = std::fs::read_dir(format!("/proc/{dataplane}/fd"))
        .unwrap()
        .filter_map(|entry| {
            let path = entry.ok()?.path();
            let number = path.file_name()?.to_str()?.parse().ok()?;
            Some((number, std::fs::read_link(&path).ok()?.display().to_string()))
        })
        .collect();
    let numbers = |what: &str| -> Vec<u32> {
        open.iter()
            .filter(|(number, target)| *number > 2 && target.contains(what))
            .map(|(number, _)| *number)
            .collect()
    };
    let mut sockets = numbers("socket:");
    sockets.sort_unstable();
    let (line, last_socket) = (sockets.pop().unwrap(), sockets.pop().unwrap());
    let flows = numbers("/flows-");
    assert!(
        line > last_socket + 1000 && !flows.is_empty() && flows.iter().all(|number| *number > line),
        "line {line}, flows {flows:?}, other sockets up to {last_socket}: {open:?}"
    );
    assert!(open.contains(&(0, "/dev/null".to_owned())), "{open:?}");
}

#[test]
fn a_killed_control_loses_nothing() {
    if !may_run("a_killed_control_loses_nothing") {
        return;
    }
    let mut bed = Bed::new();
    bed.start();
    serve(&bed.b, POD_B, 80);
    let mut open = connect(&bed.a, POD_B, 80).unwrap();
    let first = bed.child("control").unwrap();
    sh(&format!("kill -9 {first}"));
    echo(&mut open).unwrap();
    connect(&bed.a, POD_B, 80).expect("new connections pass without control");
    bed.wait_for("successor", |bed| {
        bed.child("control").is_some_and(|pid| pid != first)
    });
    let before = bed.generation();
    bed.manifest("np", ISOLATE_B);
    bed.wait_newer(before);
    // The first that it publishes may be what was there already.
    bed.wait_for("the successor publishes the policy", |bed| {
        connect(&bed.a, POD_B, 80).is_err()
    });
    assert_eq!(bed.status()["supervision"]["controlRestarts"], 1);
}

#[test]
fn without_its_supervisor_everything_ends_and_the_fail_mode_holds_until_detached() {
    if !may_run("without_its_supervisor_everything_ends_and_the_fail_mode_holds_until_detached") {
        return;
    }
    let mut bed = Bed::new();
    bed.start();
    serve(&bed.b, POD_B, 80);
    serve(&bed.gateway, GATEWAY, 80);
    connect(&bed.a, POD_B, 80).unwrap();
    let children = [bed.child("dataplane").unwrap(), bed.child("control").unwrap()];
    bed.kill_supervisor();
    bed.wait_for("end of the orphans", |_| {
        children
            .iter()
            .all(|pid| !std::path::Path::new(&format!("/proc/{pid}")).exists())
    });
    assert!(connect(&bed.a, POD_B, 80).is_err(), "closed: pod traffic drops");
    assert!(
        connect(&bed.gateway, POD_B, 80).is_err(),
        "and no way around it by the kernel"
    );
    connect(&bed.outside, GATEWAY, 80).expect("the host's own traffic passes");
    let status = bed.ask(&["status"]);
    assert_eq!(status.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&status.stderr).contains("is not running"));

    for _ in 0..2 {
        let detach = bed.ask(&["detach"]);
        assert!(
            detach.status.success(),
            "{}",
            String::from_utf8_lossy(&detach.stderr)
        );
    }
    let left = bed.gateway.command("ip").args(["link"]).output().unwrap();
    let left = String::from_utf8_lossy(&left.stdout).into_owned();
    assert!(!left.contains("rw-host") && !left.contains("xdp"), "{left}");
    assert!(
        !std::path::Path::new("/sys/fs/bpf/ringwall")
            .join(&bed.name)
            .exists()
    );
    let addresses = bed.gateway.command("ip").args(["addr"]).output().unwrap();
    assert!(!String::from_utf8_lossy(&addresses.stdout).contains("169.254.1.1"));
}

#[test]
fn pods_that_come_go_and_come_back_do_not_disturb_others() {
    if !may_run("pods_that_come_go_and_come_back_do_not_disturb_others") {
        return;
    }
    let mut bed = Bed::new();
    bed.start();
    serve(&bed.outside, OUTSIDE, 80);
    let mut other = connect(&bed.a, OUTSIDE, 80).unwrap();

    let third = Namespace::new("c");
    bed.add_pod(&third, "pod-c", "10.1.1.4", "fd00:1::4");
    bed.manifest(
        "c",
        "apiVersion: v1\nkind: Pod\nmetadata: {name: c, namespace: default}\nspec: {nodeName: node1, containers: [{name: c, image: x}]}\nstatus: {phase: Running, podIP: 10.1.1.4, podIPs: [{ip: 10.1.1.4}]}\n",
    );
    bed.wait_for("new pod", |_| connect(&third, OUTSIDE, 80).is_ok());

    sh(&format!("ip -n {} link del pod-b", bed.gateway.0));
    bed.wait_for("port that is gone", |bed| {
        let status = bed.status();
        let ports = status["dataplane"]["ports"].as_array().unwrap();
        ports
            .iter()
            .any(|port| port["name"] == "pod-b" && port["problem"] == "the interface is gone")
    });
    echo(&mut other).expect("others are not affected");
    bed.add_pod(&bed.b, "pod-b", POD_B, POD_B_V6);
    bed.wait_for("pod that is back", |bed| connect(&bed.b, OUTSIDE, 80).is_ok());
    echo(&mut other).expect("others are not affected");
}

#[test]
fn a_pod_port_that_cannot_be_opened_holds_the_fail_mode_until_it_can() {
    if !may_run("a_pod_port_that_cannot_be_opened_holds_the_fail_mode_until_it_can") {
        return;
    }
    let mut bed = Bed::new();
    bed.start();
    serve(&bed.gateway, GATEWAY, 80);
    serve(&bed.outside, OUTSIDE, 80);
    let mut other = connect(&bed.a, OUTSIDE, 80).unwrap();
    let port = |bed: &Bed| {
        let status = bed.status();
        let ports = status["dataplane"]["ports"].as_array().unwrap();
        ports.iter().find(|port| port["name"] == "pod-c").cloned()
    };
    let problem = |bed: &Bed, says: &str| {
        port(bed).is_some_and(|port| port["problem"].as_str().is_some_and(|text| text.contains(says)))
    };

    // Its packets need several frames, which packet memory was not made for: programs and no sockets.
    let third = Namespace::new("c");
    let gw = bed.gateway.0.clone();
    sh(&format!(
        "ip -n {gw} link add pod-c mtu 9000 numrxqueues 2 numtxqueues 2 type veth peer name eth0 mtu 9000 netns {}
         ip -n {0} link set eth0 up; ip -n {gw} link set pod-c up
         ip -n {0} addr add 10.1.1.4/32 dev eth0
         ip -n {0} route add 169.254.1.1 dev eth0 scope link; ip -n {0} route add default via 169.254.1.1
         ip -n {gw} route add 10.1.1.4/32 dev pod-c",
        third.0
    ));
    bed.manifest(
        "c",
        "apiVersion: v1\nkind: Pod\nmetadata: {name: c, namespace: default}\nspec: {nodeName: node1, containers: [{name: c, image: x}]}\nstatus: {phase: Running, podIP: 10.1.1.4, podIPs: [{ip: 10.1.1.4}]}\n",
    );
    bed.wait_for("port without sockets", |bed| {
        problem(bed, "attached without sockets")
    });
    serve(&third, "10.1.1.4", 80);
    assert!(
        connect(&third, GATEWAY, 80).is_err(),
        "closed: a pod does not reach the host"
    );
    assert!(
        connect(&bed.gateway, "10.1.1.4", 80).is_err(),
        "nor the host the pod"
    );
    let counted = port(&bed).unwrap();
    assert_ne!(counted["xdp"], "none", "{counted}");
    assert!(counted["failMode"].as_u64().unwrap() > 0, "{counted}");
    echo(&mut other).expect("others are not affected");

    sh(&format!(
        "ip -n {} link set eth0 mtu 1500; ip -n {gw} link set pod-c mtu 1500",
        third.0
    ));
    bed.wait_for("pod that is open", |_| connect(&third, GATEWAY, 80).is_ok());
    assert!(port(&bed).unwrap()["problem"].is_null());
    echo(&mut other).expect("others are not affected");
}

#[test]
fn a_pod_port_that_can_have_no_program_is_set_down_until_it_can() {
    if !may_run("a_pod_port_that_can_have_no_program_is_set_down_until_it_can") {
        return;
    }
    let mut bed = Bed::new();
    // Native programs alone: a veth has none while its other end has more transmit queues than it has receive queues.
    bed.configure(&bed.config().replace("kind: pod}", "kind: pod, xdpMode: native}"));
    bed.start();
    serve(&bed.gateway, GATEWAY, 80);
    let third = Namespace::new("c");
    let gw = bed.gateway.0.clone();
    sh(&format!(
        "ip -n {gw} link add pod-c numrxqueues 2 numtxqueues 2 type veth peer name eth0 numtxqueues 4 netns {0}
         ip -n {0} link set eth0 up; ip -n {gw} link set pod-c up
         ip -n {0} addr add 10.1.1.4/32 dev eth0
         ip -n {0} route add 169.254.1.1 dev eth0 scope link; ip -n {0} route add default via 169.254.1.1",
        third.0
    ));
    let is_up = |bed: &Bed| {
        let output = bed
            .gateway
            .command("ip")
            .args(["-o", "link", "show", "pod-c"])
            .output()
            .unwrap();
        String::from_utf8_lossy(&output.stdout).contains(",UP")
    };
    bed.wait_for("alarm", |bed| {
        let status = bed.status();
        let alarms = status["dataplane"]["alarms"].as_array().unwrap();
        alarms.iter().any(|alarm| {
            alarm.as_str().unwrap().contains("pod-c") && alarm.as_str().unwrap().contains("was set down")
        })
    });
    // It may have been down when it was first looked at, and set up since.
    bed.wait_for("interface that is down", |bed| !is_up(bed));
    sh(&format!(
        "ip netns exec {} ethtool -L eth0 tx 1; ip -n {gw} link set pod-c mtu 1450",
        third.0
    ));
    bed.wait_for("port that is open", |bed| {
        let status = bed.status();
        let ports = status["dataplane"]["ports"].as_array().unwrap();
        is_up(bed)
            && ports
                .iter()
                .any(|port| port["name"] == "pod-c" && port["problem"].is_null())
    });
}

#[test]
fn what_cannot_run_is_refused_before_anything_is_changed() {
    if !may_run("what_cannot_run_is_refused_before_anything_is_changed") {
        return;
    }
    let mut bed = Bed::new();
    let good = bed.config();
    let links = |bed: &Bed| {
        let output = bed.gateway.command("ip").args(["-o", "addr"]).output().unwrap();
        let links = bed.gateway.command("ip").args(["-o", "link"]).output().unwrap();
        // An address that is still looked for on its link stops being so by itself.
        [output.stdout, links.stdout].map(|text| String::from_utf8_lossy(&text).replace(" tentative", ""))
    };
    // Addresses of the link come when they have been asked about.
    bed.wait_for("addresses", |bed| !links(bed)[0].contains("tentative"));
    let before = links(&bed);
    for (from, to, says) in [
        ("name: up0", "name: up9", "interface `up9` does not exist"),
        ("cpus: \"0\"", "cpus: \"4000\"", "CPU 4000"),
        ("mode: enforce", "mode: enforced", "mode"),
        ("failMode: closed", "failMode: closed\nfoo: 1", "foo"),
        ("/manifests}", "/nothing}", "nothing"),
    ] {
        assert!(good.contains(from), "{from}");
        bed.configure(&good.replace(from, to));
        let output = bed.ask_shortly(&["run"]);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{to}: {said}");
        assert!(said.contains(says), "{to}: {said}");
        assert_eq!(links(&bed), before, "{to} changed something");
        assert!(
            !std::path::Path::new("/sys/fs/bpf/ringwall")
                .join(&bed.name)
                .exists()
        );
    }
    bed.configure(&good);
    bed.start();
    let second = bed.ask_shortly(&["run"]);
    assert_eq!(second.status.code(), Some(2));
    assert!(
        String::from_utf8_lossy(&second.stderr).contains("another `ringwall run`"),
        "{}",
        String::from_utf8_lossy(&second.stderr)
    );
    let detach = bed.ask(&["detach"]);
    assert_eq!(detach.status.code(), Some(2), "not while it runs");
}

#[test]
fn a_wire_lets_through_what_policy_allows_and_fails_as_told() {
    if !may_run("a_wire_lets_through_what_policy_allows_and_fails_as_told") {
        return;
    }
    for (fail_mode, passes) in [("closed", false), ("open", true)] {
        let mut bed = Bed::wire(fail_mode);
        bed.start();
        serve(&bed.a, POD_A, 80);
        serve(&bed.b, POD_B, 80);
        serve(&bed.b, POD_B_V6, 80);
        connect(&bed.a, POD_B, 80).unwrap_or_else(|error| panic!("{error}\n{}", bed.log()));
        connect(&bed.a, POD_B_V6, 80).expect("IPv6");
        let before = bed.generation();
        bed.manifest("np", ISOLATE_B);
        bed.wait_newer(before);
        assert!(connect(&bed.a, POD_B, 80).is_err(), "isolated");
        connect(&bed.b, POD_A, 80).expect("the other direction");
        bed.remove_manifest("np");
        bed.wait_newer(before + 1);
        connect(&bed.a, POD_B, 80).expect("open again");
        bed.kill_supervisor();
        bed.wait_for("end of the dataplane", |bed| {
            bed.ask(&["status"]).status.code() == Some(2)
        });
        assert_eq!(connect(&bed.a, POD_B, 80).is_ok(), passes, "failMode {fail_mode}");
    }
}

#[test]
fn two_workers_share_the_ports() {
    if !may_run("two_workers_share_the_ports") {
        return;
    }
    let mut bed = Bed::new();
    bed.configure(&bed.config().replace("cpus: \"0\"", "cpus: \"0-1\""));
    bed.start();
    serve(&bed.b, POD_B, 80);
    serve(&bed.outside, OUTSIDE, 80);
    for _ in 0..16 {
        connect(&bed.a, POD_B, 80).unwrap();
        connect(&bed.a, OUTSIDE, 80).unwrap();
        connect(&bed.outside, POD_B, 80).unwrap();
    }
    let status = bed.status();
    let workers = status["dataplane"]["workers"].as_array().unwrap();
    assert_eq!(workers.len(), 2, "{status}");
    let cpus: Vec<_> = workers
        .iter()
        .map(|worker| worker["cpu"].as_u64().unwrap())
        .collect();
    assert_eq!(cpus, [0, 1]);
    bed.wait_for("balance of frames", |bed| {
        let frames = &bed.status()["dataplane"]["frames"];
        let number = |key: &str| frames[key].as_u64().unwrap();
        number("received") + number("generated") == number("forwarded") + number("dropped") + number("held")
    });
}

/// By thread of a process: its name and the CPUs that it may run on.
fn cpus_of_threads(process: u32) -> Vec<(String, String)> {
    std::fs::read_dir(format!("/proc/{process}/task"))
        .unwrap()
        .flatten()
        .filter_map(|task| {
            let name = std::fs::read_to_string(task.path().join("comm")).ok()?;
            let status = std::fs::read_to_string(task.path().join("status")).ok()?;
            let cpus = status
                .lines()
                .find_map(|line| line.strip_prefix("Cpus_allowed_list:"))?;
            Some((name.trim().to_owned(), cpus.trim().to_owned()))
        })
        .collect()
}

#[test]
fn workers_have_their_cpus_to_themselves() {
    if !may_run("workers_have_their_cpus_to_themselves") {
        return;
    }
    let mut bed = Bed::new();
    bed.start();
    let of_test = &cpus_of_threads(std::process::id())[0].1;
    let (dataplane, control) = (bed.child("dataplane").unwrap(), bed.child("control").unwrap());
    let (workers, others): (Vec<_>, Vec<_>) = cpus_of_threads(dataplane)
        .into_iter()
        .chain(cpus_of_threads(control))
        .partition(|(name, _)| name.starts_with("rw-worker-"));
    assert_eq!(workers, [("rw-worker-0".to_owned(), "0".to_owned())]);
    assert!(others.len() > 8, "{others:?}");
    for (name, cpus) in others {
        assert!(
            cpus == "1" || cpus.starts_with("1-") || of_test == "0",
            "{name} may run on CPU {cpus}, and the worker has CPU 0"
        );
    }
}
