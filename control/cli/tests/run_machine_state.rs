//! The machine is left as it was found: by `detach`, by starts that are refused or fail, after crashes.
#![cfg(feature = "afxdp")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test that panics has failed
#![allow(missing_docs, unreachable_pub, dead_code)] // a test

mod run_bed;

use std::{collections::BTreeMap, path::Path};

use ringwall_appliance::{
    kept_table,
    netfilter::{Family, Netfilter},
};
use run_bed::*;

/// What of a machine anybody could have set, by name.
type State = BTreeMap<String, String>;

/// Settings that the kernel itself moves.
const MOVES: [&str; 3] = ["stable_secret", "nf_conntrack_count", "net/ipv4/route/flush"];

fn settings(dir: &Path, state: &mut State) {
    let Ok(entries) = std::fs::read_dir(dir) else {
        return;
    };
    for entry in entries.flatten() {
        let path = entry.path();
        let name = path.display().to_string();
        if path.is_dir() {
            settings(&path, state);
        } else if !MOVES.iter().any(|moves| name.contains(moves)) {
            state.insert(name, std::fs::read_to_string(&path).unwrap_or_default());
        }
    }
}

fn said(bed: &Bed, command: &str) -> String {
    let mut words = command.split_whitespace();
    let output = bed
        .gateway
        .command(words.next().unwrap())
        .args(words)
        .output()
        .unwrap();
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Everything of the gateway that ringwall changes, and much that it does not.
fn state(bed: &Bed) -> State {
    let mut state = bed.gateway.inside(|| {
        let mut state = State::new();
        settings(Path::new("/proc/sys/net"), &mut state);
        state
    });
    for command in [
        "ip -d link",
        "ip addr",
        "ip route show table all",
        "ip -6 route show table all",
        "ip rule",
        "ip -6 rule",
        "ip neigh show nud permanent",
        "tc qdisc",
        "nft list ruleset",
    ] {
        // Routes and neighbours come in no order of importance.
        let said = said(bed, command);
        let mut lines: Vec<&str> = said.lines().collect();
        if command.contains("route") || command.contains("neigh") {
            lines.sort_unstable();
        }
        state.insert(command.to_owned(), lines.join("\n"));
    }
    // The filter above lets managed ones through.
    if let Some(fixed) = state.get_mut("ip neigh show nud permanent") {
        *fixed = fixed
            .lines()
            .filter(|line| line.contains("PERMANENT"))
            .collect::<Vec<_>>()
            .join("\n");
    }
    let managed: Vec<String> = said(bed, "ip neigh show nud all")
        .lines()
        .filter(|line| line.contains("managed") || line.contains("extern_learn"))
        .map(str::to_owned)
        .collect();
    state.insert("managed neighbours".to_owned(), managed.join("\n"));
    for interface in ["pod-a", "pod-b", "up0"] {
        for what in ["-k", "-l", "-g"] {
            let command = format!("ethtool {what} {interface}");
            state.insert(command.clone(), said(bed, &command));
        }
        for side in ["ingress", "egress"] {
            let command = format!("tc filter show dev {interface} {side}");
            state.insert(command.clone(), said(bed, &command));
        }
    }
    let pins = Path::new("/sys/fs/bpf/ringwall").join(&bed.name).exists();
    state.insert("pins".to_owned(), pins.to_string());
    let table = kept_table::table_name(&bed.name);
    let tables = bed.gateway.inside(move || {
        let netfilter = Netfilter::open().unwrap();
        [Family::Inet, Family::Bridge].map(|family| netfilter.has_table(family, &table).unwrap())
    });
    state.insert("tables of nf_tables".to_owned(), format!("{tables:?}"));
    state
}

fn assert_same(before: &State, after: &State, when: &str) {
    let mut differences = String::new();
    for key in before
        .keys()
        .chain(after.keys().filter(|key| !before.contains_key(*key)))
    {
        let (was, is) = (before.get(key), after.get(key));
        if was != is {
            differences.push_str(&format!("{key}:\n  before: {was:?}\n  after:  {is:?}\n"));
        }
    }
    assert!(differences.is_empty(), "{when}:\n{differences}");
}

/// A machine with a past: a CNI's settings, an administrator's, addresses and routes that hang on each other.
fn machine() -> Bed {
    let bed = Bed::new();
    let (gw, outside) = (&bed.gateway.0, &bed.outside.0);
    sh(&format!(
        "ip netns exec {gw} sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1 \
           net.ipv4.conf.pod-a.proxy_arp=1 net.ipv4.conf.pod-a.rp_filter=1 net.ipv4.conf.all.accept_redirects=1
         ip -n {gw} link set pod-a mtu 1450
         ip netns exec {gw} ethtool -K pod-a rxvlan on txvlan on
         ip netns exec {gw} ethtool -K up0 rxvlan on txvlan off
         ip -n {gw} neigh add 192.0.2.77 lladdr 02:00:00:00:00:77 dev up0 nud permanent
         ip -n {gw} neigh add {POD_A} lladdr $(ip -n {a} -o link show eth0 | grep -o 'link/ether [^ ]*' | cut -d' ' -f2) dev pod-a nud permanent
         ip -n {gw} route add 198.51.100.0/24 via 192.0.2.77
         ip -n {gw} route add 203.0.113.0/24 via {OUTSIDE} metric 7
         ip -n {gw} route add 10.9.9.9/32 dev pod-b
         ip -n {outside} addr add 192.0.2.77/24 dev eth0",
        a = bed.a.0,
    ));
    settle(&bed);
    bed
}

/// Addresses of the link come when they have been asked about.
fn settle(bed: &Bed) {
    bed.wait_for("link addresses", |bed| {
        !said(bed, "ip -6 addr").contains("tentative") && !said(bed, "ip -6 addr show up0").is_empty()
    });
}

fn wait_for_end(bed: &Bed, processes: &[u32]) {
    bed.wait_for("end of every process", |_| {
        processes.iter().all(|pid| {
            std::fs::read_to_string(format!("/proc/{pid}/stat")).map_or(true, |stat| {
                stat.rsplit(") ").next().is_some_and(|rest| rest.starts_with('Z'))
            })
        })
    });
}

fn detach(bed: &Bed) {
    let output = bed.ask(&["detach"]);
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

fn servers(bed: &Bed) {
    serve(&bed.outside, OUTSIDE, 80);
    serve(&bed.b, POD_B, 80);
}

/// Traffic through the running one, so that neighbours are asked for and kept.
fn talk(bed: &Bed) {
    connect(&bed.a, OUTSIDE, 80).unwrap_or_else(|error| panic!("{error}\n{}", bed.log()));
    connect(&bed.a, POD_B, 80).unwrap_or_else(|error| panic!("{error}\n{}", bed.log()));
}

#[test]
fn run_and_detach_leave_the_machine_as_it_was() {
    if !may_run("run_and_detach_leave_the_machine_as_it_was") {
        return;
    }
    let mut bed = machine();
    servers(&bed);
    let before = state(&bed);
    bed.configure(
        &bed.config()
            .replace("name: up0, kind: uplink", "name: up0, kind: uplink, mtu: 1400"),
    );
    bed.start();
    talk(&bed);
    let running = state(&bed);
    for (key, why) in [
        (
            "/proc/sys/net/ipv4/conf/pod-a/forwarding",
            "the test sees what is changed",
        ),
        ("ip addr", "the pods' gateway"),
        ("ethtool -k pod-a", "VLAN offloads"),
        ("ip -d link", "MTU, programs, the host port"),
        ("managed neighbours", "routers"),
    ] {
        assert_ne!(before.get(key), running.get(key), "{why}");
    }
    for (key, why) in [
        (
            "ip neigh show nud permanent",
            "an administrator's neighbours stay his own",
        ),
        (
            "/proc/sys/net/ipv6/conf/up0/accept_ra",
            "an uplink may live by advertisements",
        ),
    ] {
        assert_eq!(before.get(key), running.get(key), "{why}");
    }
    let of_pod = said(&bed, "ip -4 addr show dev pod-a");
    assert!(
        of_pod.is_empty(),
        "no IPv4 address, whose loss would take routes along: {of_pod}"
    );
    assert_eq!(bed.stop(), Some(0), "{}", bed.log());
    detach(&bed);
    assert_same(&before, &state(&bed), "after run and detach");
    detach(&bed);
    assert_same(&before, &state(&bed), "after another detach");
    talk_by_the_kernel(&bed);
}

/// The record names interfaces by name and index, and both exist elsewhere.
#[test]
fn another_network_namespace_is_left_alone() {
    if !may_run("another_network_namespace_is_left_alone") {
        return;
    }
    let mut bed = machine();
    let elsewhere = |bed: &Bed, subcommand: &str| {
        let mut command = bed.outside.command("timeout");
        command.args(["20", env!("CARGO_BIN_EXE_ringwall"), subcommand, "--config"]);
        command.arg(bed.config_file()).output().unwrap()
    };
    let before = state(&bed);
    bed.start();
    assert_eq!(bed.stop(), Some(0), "{}", bed.log());
    settle(&bed);
    let stopped = state(&bed);
    assert_ne!(before, stopped, "there is something to take off");
    // Interfaces with the names of ports, which a detach here would take for its own.
    let (outside, record) = (&bed.outside.0, bed.dir.path().join("state/changes.jsonl"));
    sh(&format!(
        "ip -n {outside} link add pod-a mtu 1300 type veth peer name up0"
    ));
    let links = || {
        sh_output(&format!(
            "for end in pod-a up0; do ip -n {outside} -d link show $end; tc -n {outside} qdisc show dev $end; done"
        ))
    };
    let (foreign, on_record) = (links(), std::fs::read(&record).unwrap());
    for subcommand in ["detach", "run"] {
        let output = elsewhere(&bed, subcommand);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{subcommand}: {said}");
        let way = format!("nsenter --net={} ringwall detach", bed.gateway.path().display());
        assert!(
            said.contains("network namespace") && said.contains(&way),
            "{said}"
        );
        assert_eq!(links(), foreign, "{subcommand}");
        assert_same(&stopped, &state(&bed), subcommand);
        assert_eq!(std::fs::read(&record).unwrap(), on_record, "{subcommand}");
    }
    detach(&bed);
    assert_same(&before, &state(&bed), "detach in its own namespace");
    assert_eq!(
        elsewhere(&bed, "detach").status.code(),
        Some(0),
        "nothing is left of it"
    );
    assert_eq!(links(), foreign);
}

fn sh_output(command: &str) -> String {
    let output = std::process::Command::new("sh")
        .args(["-ec", command])
        .output()
        .unwrap();
    String::from_utf8(output.stdout).unwrap()
}

/// The kernel still knows the ways that it knew.
fn talk_by_the_kernel(bed: &Bed) {
    connect(&bed.gateway, POD_B, 80).expect("host to pod by the kernel's own route");
}

#[test]
fn what_is_refused_or_fails_leaves_the_machine_as_it_was() {
    if !may_run("what_is_refused_or_fails_leaves_the_machine_as_it_was") {
        return;
    }
    let bed = machine();
    let good = bed.config();
    let before = state(&bed);
    let uplink = "name: up0, kind: uplink";
    for (from, to, says) in [
        (
            uplink,
            "name: up0, kind: uplink, zeroCopy: require",
            "`up0` (veth) has no zero-copy",
        ),
        (uplink, "name: up0, kind: uplink, rxQueues: 4000", "queues"),
        (
            uplink,
            "name: up0, kind: uplink, xdpMode: generic",
            "xdpMode: generic on a veth",
        ),
        (uplink, "name: up9, kind: uplink", "`up9` does not exist"),
        (uplink, "name: up0, kind: uplink, mtu: 9300", "576 to 9216 bytes"),
        ("cpus: \"0\"", "cpus: \"4000\"", "CPU 4000"),
        ("mode: enforce", "mode: enforced", "mode"),
        ("/manifests}", "/nothing}", "nothing"),
        ("{maxEntries: 16384}", "{maxEntries: 400000000000}", "maxEntries"),
    ] {
        assert!(good.contains(from), "{from}");
        bed.configure(&good.replace(from, to));
        let output = bed.ask_shortly(&["run"]);
        let words = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{to}: {words}");
        assert!(words.contains(says), "{to}: {words}");
        assert_same(&before, &state(&bed), to);
    }
    bed.configure(&good);

    // A setting of all interfaces that is not ringwall's to change.
    let gw = &bed.gateway.0;
    sh(&format!(
        "ip netns exec {gw} sysctl -qw net.ipv4.conf.all.arp_ignore=1"
    ));
    let ignoring = state(&bed);
    let output = bed.ask_shortly(&["run"]);
    let words = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(words.contains("arp_ignore"), "{words}");
    assert_same(&ignoring, &state(&bed), "arp_ignore");
    sh(&format!(
        "ip netns exec {gw} sysctl -qw net.ipv4.conf.all.arp_ignore=0"
    ));

    // Found when much has been changed already: the socket of the dataplane cannot be made.
    std::fs::create_dir_all(bed.dir.path().join("run/dataplane.sock/in-the-way")).unwrap();
    let output = bed.ask_shortly(&["dataplane"]);
    let words = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_ne!(output.status.code(), Some(0), "{words}");
    assert_same(&before, &state(&bed), "a start that fails at its end");
}

#[test]
fn devices_made_of_others_are_refused_by_name() {
    if !may_run("devices_made_of_others_are_refused_by_name") {
        return;
    }
    let bed = machine();
    let gw = &bed.gateway.0;
    let good = bed.config();
    for (name, make) in [
        ("br9", "ip link add br9 type bridge"),
        ("bond9", "ip link add bond9 type bond"),
        ("team9", "ip link add team9 type team"),
        ("vlan9", "ip link add link up0 name vlan9 type vlan id 9"),
    ] {
        let made = bed.gateway.command("sh").args(["-c", make]).output().unwrap();
        if !made.status.success() {
            eprintln!("not tried: this kernel has no {name}");
            continue;
        }
        let before = state(&bed);
        bed.configure(&good.replace("name: up0, kind", &format!("name: {name}, kind")));
        let output = bed.ask_shortly(&["run"]);
        let words = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{words}");
        assert!(
            words.contains(name) && words.contains("made of other interfaces"),
            "{words}"
        );
        assert_same(&before, &state(&bed), name);
        sh(&format!("ip -n {gw} link del {name}"));
    }
}

#[test]
fn after_a_crash_detach_and_the_next_start_know_how_it_was() {
    if !may_run("after_a_crash_detach_and_the_next_start_know_how_it_was") {
        return;
    }
    let mut bed = machine();
    servers(&bed);
    let before = state(&bed);
    let crash = |bed: &mut Bed| {
        bed.start();
        talk(bed);
        let mut processes = vec![bed.supervisor()];
        processes.extend(["dataplane", "control"].map(|child| bed.child(child).unwrap()));
        let all = processes.iter().map(u32::to_string).collect::<Vec<_>>().join(" ");
        sh(&format!("kill -9 {all}"));
        bed.kill_supervisor();
        wait_for_end(bed, &processes);
    };
    crash(&mut bed);
    detach(&bed);
    assert_same(&before, &state(&bed), "kill -9 of everything, detach");

    crash(&mut bed);
    bed.start();
    assert_eq!(bed.stop(), Some(0), "{}", bed.log());
    detach(&bed);
    assert_same(
        &before,
        &state(&bed),
        "kill -9 of everything, another run, detach",
    );

    // The next start has another configuration: what is no port any more is as it was.
    crash(&mut bed);
    let good = bed.config();
    bed.configure(&good.replace("match: \"pod-*\"", "match: \"pod-b*\""));
    bed.start();
    let now = state(&bed);
    for key in [
        "ethtool -k pod-a",
        "/proc/sys/net/ipv4/conf/pod-a/forwarding",
        "/proc/sys/net/ipv4/conf/pod-a/proxy_arp",
    ] {
        assert_eq!(before.get(key), now.get(key), "{key}");
    }
    assert!(!said(&bed, "ip -d link show pod-a").contains("xdp"));
    assert_eq!(bed.stop(), Some(0), "{}", bed.log());
    detach(&bed);
    assert_same(
        &before,
        &state(&bed),
        "kill -9 of everything, a run with fewer ports, detach",
    );
}

/// Whether each end of the wire takes in what is for others.
fn promiscuous(bed: &Bed) -> [bool; 2] {
    ["w0", "w1"].map(|end| said(bed, &format!("ip link show {end}")).contains("PROMISC"))
}

/// A NIC drops what is for other stations before any program sees it, and a wire carries nothing else.
#[test]
fn ends_of_a_wire_take_in_what_is_for_others_until_detach() {
    if !may_run("ends_of_a_wire_take_in_what_is_for_others_until_detach") {
        return;
    }
    let mut bed = Bed::wire("open");
    said(&bed, "ip link set w1 promisc on");
    assert_eq!(promiscuous(&bed), [false, true]);
    bed.start();
    assert_eq!(promiscuous(&bed), [true, true]);
    let mut processes = vec![bed.supervisor()];
    processes.extend(["dataplane", "control"].map(|child| bed.child(child).unwrap()));
    let all = processes.iter().map(u32::to_string).collect::<Vec<_>>().join(" ");
    sh(&format!("kill -9 {all}"));
    bed.kill_supervisor();
    wait_for_end(&bed, &processes);
    assert_eq!(promiscuous(&bed), [true, true], "failMode: open forwards");
    detach(&bed);
    assert_eq!(promiscuous(&bed), [false, true], "as it was found");
}
