//! Ways past the verdict that the kernel of the machine would open: groups, link-local addresses, forwarding, settings, pods
//! outside of the configured networks. Each way is shown to be open without ringwall first.
#![cfg(feature = "afxdp")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test that panics has failed
#![allow(missing_docs, unreachable_pub, dead_code)] // a test, and a bed that other tests use more of

mod run_bed;

use std::{
    net::{SocketAddr, UdpSocket},
    time::Duration,
};

use run_bed::*;

/// Hears datagrams in a namespace.
struct Ear(UdpSocket);

impl Ear {
    fn new(namespace: &Namespace, at: &str) -> Self {
        let at: SocketAddr = at.parse().unwrap();
        let socket = namespace.inside(move || UdpSocket::bind(at)).unwrap();
        socket.set_nonblocking(true).unwrap();
        Self(socket)
    }

    /// What has come since the last question.
    fn heard(&self) -> Vec<String> {
        let mut words = Vec::new();
        let mut buffer = [0; 256];
        while let Ok(length) = self.0.recv(&mut buffer) {
            words.push(String::from_utf8_lossy(&buffer[..length]).into_owned());
        }
        words
    }
}

/// Says a word to an address, several times.
fn say(namespace: &Namespace, to: &str, word: &str) {
    let to: SocketAddr = to.parse().unwrap();
    let word = word.to_owned();
    namespace.inside(move || {
        let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
        let socket = UdpSocket::bind(any).unwrap();
        socket.set_broadcast(true).unwrap();
        for _ in 0..3 {
            // Some ways end at the sender.
            let _ = socket.send_to(word.as_bytes(), to);
        }
    });
}

fn index(namespace: &Namespace, interface: &str) -> u32 {
    let output = namespace
        .command("ip")
        .args(["-o", "link", "show", interface])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.split(':').next().unwrap().trim().parse().unwrap()
}

fn link_local(namespace: &Namespace, interface: &str) -> String {
    let output = namespace
        .command("ip")
        .args(["-6", "-o", "addr", "show", interface, "scope", "link"])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let address = text
        .split_whitespace()
        .find(|word| word.starts_with("fe80::") && *word != "fe80::1/64");
    address.unwrap().split('/').next().unwrap().to_owned()
}

/// Addresses of the link come when they have been asked about.
fn wait_for_link_local(bed: &Bed, interfaces: &[(&Namespace, &str)]) {
    bed.wait_for("link-local addresses", |_| {
        interfaces.iter().all(|(namespace, interface)| {
            let output = namespace
                .command("ip")
                .args(["-6", "addr", "show", interface])
                .output()
                .unwrap();
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            text.contains("fe80::") && !text.contains("tentative")
        })
    });
}

/// Says a word on each way and answers which ones arrive at one of the ears.
fn open_ways(from: &Namespace, ways: &[String], ears: &[&Ear]) -> Vec<String> {
    for ear in ears {
        ear.heard();
    }
    for way in ways {
        say(from, way, way);
    }
    // On one machine a datagram is there when it was sent, unless a worker has it.
    std::thread::sleep(Duration::from_millis(300));
    let mut heard: Vec<String> = ears.iter().flat_map(|ear| ear.heard()).collect();
    heard.sort();
    heard.dedup();
    heard
}

fn everything_dead(bed: &mut Bed) {
    let children = ["dataplane", "control"].map(|child| bed.child(child).unwrap());
    bed.kill_supervisor();
    bed.wait_for("end of the orphans", |_| {
        children
            .iter()
            .all(|pid| !std::path::Path::new(&format!("/proc/{pid}")).exists())
    });
}

/// Nothing may go out of pod a.
const SILENCE_A: &str = "apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: silence-a, namespace: default}
spec:
  podSelector: {matchLabels: {app: a}}
  policyTypes: [Egress]
";

#[test]
fn a_pod_reaches_the_gateways_services_neither_by_groups_nor_by_broadcast_dead_or_alive() {
    if !may_run("a_pod_reaches_the_gateways_services_neither_by_groups_nor_by_broadcast_dead_or_alive") {
        return;
    }
    let mut bed = Bed::new();
    bed.manifest("np", SILENCE_A);
    let (v4, v6) = (
        Ear::new(&bed.gateway, "0.0.0.0:7100"),
        Ear::new(&bed.gateway, "[::]:7101"),
    );
    let ears = [&v4, &v6];
    let eth0 = index(&bed.a, "eth0");
    wait_for_link_local(&bed, &[(&bed.a, "eth0"), (&bed.gateway, "pod-a")]);
    let gateway = link_local(&bed.gateway, "pod-a");
    let ways = [
        "255.255.255.255:7100".to_owned(),
        "224.0.0.1:7100".to_owned(),
        format!("[ff02::1%{eth0}]:7101"),
        format!("[{gateway}%{eth0}]:7101"),
    ];
    let open = open_ways(&bed.a, &ways, &ears);
    assert_eq!(
        open.len(),
        ways.len(),
        "without ringwall every way is open: {open:?}"
    );
    bed.start();
    assert_eq!(open_ways(&bed.a, &ways, &ears), [""; 0], "alive");
    everything_dead(&mut bed);
    assert_eq!(open_ways(&bed.a, &ways, &ears), [""; 0], "dead and closed");
}

#[test]
fn the_host_reaches_an_isolated_pod_neither_by_its_link_local_address_nor_by_groups() {
    if !may_run("the_host_reaches_an_isolated_pod_neither_by_its_link_local_address_nor_by_groups") {
        return;
    }
    let mut bed = Bed::new();
    bed.manifest("np", ISOLATE_B);
    let gw = &bed.gateway.0;
    sh(&format!(
        "ip -n {gw} route add 255.255.255.255/32 dev pod-b; ip -n {gw} route add 224.0.0.1/32 dev pod-b"
    ));
    wait_for_link_local(&bed, &[(&bed.b, "eth0"), (&bed.gateway, "pod-b")]);
    let (v4, v6) = (Ear::new(&bed.b, "0.0.0.0:7100"), Ear::new(&bed.b, "[::]:7101"));
    let ears = [&v4, &v6];
    let port = index(&bed.gateway, "pod-b");
    let pod = link_local(&bed.b, "eth0");
    let ways = [
        "255.255.255.255:7100".to_owned(),
        "224.0.0.1:7100".to_owned(),
        format!("[ff02::1%{port}]:7101"),
        format!("[{pod}%{port}]:7101"),
    ];
    let open = open_ways(&bed.gateway, &ways, &ears);
    assert_eq!(
        open.len(),
        ways.len(),
        "without ringwall every way is open: {open:?}"
    );
    bed.start();
    assert_eq!(open_ways(&bed.gateway, &ways, &ears), [""; 0], "alive");
    everything_dead(&mut bed);
    assert_eq!(open_ways(&bed.gateway, &ways, &ears), [""; 0], "dead and closed");
}

/// Pod b, isolated, with addresses outside of all configured networks.
fn stray_b() -> String {
    format!(
        "apiVersion: v1
kind: Pod
metadata: {{name: b, namespace: default, labels: {{app: b}}}}
spec: {{nodeName: node1, containers: [{{name: c, image: x}}]}}
status: {{phase: Running, podIP: 172.30.0.5, podIPs: [{{ip: 172.30.0.5}}, {{ip: \"fd77::5\"}}]}}
---
{ISOLATE_B}"
    )
}

fn without_b(bed: &Bed) -> String {
    let base = std::fs::read_to_string(bed.dir.path().join("manifests/base.yaml")).unwrap();
    let mut documents: Vec<&str> = base.split("---\n").collect();
    documents.retain(|document| !document.contains("name: b,"));
    documents.join("---\n")
}

#[test]
fn pods_outside_of_the_configured_networks_are_guarded_without_a_dataplane() {
    if !may_run("pods_outside_of_the_configured_networks_are_guarded_without_a_dataplane") {
        return;
    }
    let mut bed = Bed::new();
    let (gw, b, x) = (&bed.gateway.0, &bed.b.0, &bed.outside.0);
    sh(&format!(
        "ip netns exec {gw} sysctl -qw net.ipv6.conf.all.forwarding=1 net.ipv4.ip_forward=1
         ip -n {b} addr add 172.30.0.5/32 dev eth0; ip -n {b} addr add fd77::5/128 dev eth0 nodad
         ip -n {gw} route add 172.30.0.5/32 dev pod-b; ip -n {gw} route add fd77::5/128 dev pod-b
         ip -n {gw} addr add 2001:db8::1/64 dev up0 nodad; ip -n {x} addr add 2001:db8::9/64 dev eth0 nodad
         ip -n {x} route add default via 2001:db8::1"
    ));
    bed.manifest("base", &without_b(&bed));
    bed.manifest("stray", &stray_b());
    let (v4, v6) = (Ear::new(&bed.b, "0.0.0.0:7100"), Ear::new(&bed.b, "[::]:7101"));
    let ears = [&v4, &v6];
    let ways = ["172.30.0.5:7100".to_owned(), "[fd77::5]:7101".to_owned()];
    let mut open = Vec::new();
    bed.wait_for("way by the kernel", |bed| {
        let mut now = open_ways(&bed.outside, &ways, &ears);
        now.extend(open_ways(&bed.gateway, &ways, &ears));
        now.len() == 4
    });
    open.clear();
    bed.start();
    open.extend(open_ways(&bed.outside, &ways, &ears));
    assert!(open.is_empty(), "alive: {open:?}");
    everything_dead(&mut bed);
    // Whatever the settings are now.
    let gw = &bed.gateway.0;
    sh(&format!(
        "ip netns exec {gw} sysctl -qw net.ipv4.ip_forward=0; ip netns exec {gw} sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1"
    ));
    for (who, from) in [("outside", &bed.outside), ("host", &bed.gateway)] {
        assert_eq!(open_ways(from, &ways, &ears), [""; 0], "{who}, dead and closed");
    }
    // Nor does such a pod reach the host by its own address.
    let host = Ear::new(&bed.gateway, "0.0.0.0:7102");
    assert_eq!(open_ways(&bed.b, &[format!("{GATEWAY}:7102")], &[&host]), [""; 0]);
}

#[test]
fn a_closed_wire_is_closed_to_pods_outside_of_the_configured_networks() {
    if !may_run("a_closed_wire_is_closed_to_pods_outside_of_the_configured_networks") {
        return;
    }
    let mut bed = Bed::wire("closed");
    let (a, b) = (&bed.a.0, &bed.b.0);
    sh(&format!(
        "ip -n {b} addr add 172.30.0.5/24 dev eth0; ip -n {a} addr add 172.30.0.9/24 dev eth0
         ip -n {b} addr add fd77::5/64 dev eth0 nodad; ip -n {a} addr add fd77::9/64 dev eth0 nodad"
    ));
    bed.manifest("base", &without_b(&bed));
    bed.manifest("stray", &stray_b());
    bed.start();
    let (v4, v6) = (Ear::new(&bed.b, "0.0.0.0:7100"), Ear::new(&bed.b, "[::]:7101"));
    let ways = ["172.30.0.5:7100".to_owned(), "[fd77::5]:7101".to_owned()];
    assert_eq!(open_ways(&bed.a, &ways, &[&v4, &v6]), [""; 0], "alive");
    // The wire is there: who is no pod is heard.
    let (c, d) = (Ear::new(&bed.a, "0.0.0.0:7103"), ["172.30.0.9:7103".to_owned()]);
    bed.manifest("stray", stray_b().split("---").next().unwrap());
    bed.wait_for("open policy", |bed| open_ways(&bed.b, &d, &[&c]).len() == 1);
    everything_dead(&mut bed);
    assert_eq!(open_ways(&bed.a, &ways, &[&v4, &v6]), [""; 0], "dead and closed");
    assert_eq!(
        open_ways(&bed.b, &d, &[&c]),
        [""; 0],
        "dead and closed, from the pod"
    );
}

#[test]
fn settings_that_somebody_turns_on_are_turned_off_again_with_an_alarm() {
    if !may_run("settings_that_somebody_turns_on_are_turned_off_again_with_an_alarm") {
        return;
    }
    let mut bed = Bed::new();
    bed.start();
    let gw = bed.gateway.0.clone();
    let read = |path: &str| {
        let path = format!("/proc/sys/net/{path}");
        bed.gateway
            .inside(move || std::fs::read_to_string(path).unwrap().trim().to_owned())
    };
    let ports = ["up0", "pod-a", "pod-b", "rw-host"];
    // As a container runtime does it, which knows nothing of ringwall.
    sh(&format!("ip netns exec {gw} sysctl -qw net.ipv4.ip_forward=1"));
    bed.wait_for("forwarding to be off", |_| {
        ports
            .iter()
            .all(|port| read(&format!("ipv4/conf/{port}/forwarding")) == "0")
    });
    assert_eq!(read("ipv4/ip_forward"), "1", "other interfaces may be routed");
    let alarms = bed.status()["dataplane"]["alarms"].to_string();
    assert!(
        alarms.contains("forwarding is 1") && alarms.contains("put back"),
        "{alarms}"
    );
    sh(&format!(
        "ip netns exec {gw} sysctl -qw net.ipv4.conf.all.accept_redirects=1 net.ipv4.conf.pod-a.proxy_arp=1"
    ));
    bed.wait_for("redirects and proxy ARP to be off", |_| {
        read("ipv4/conf/all/accept_redirects") == "0" && read("ipv4/conf/pod-a/proxy_arp") == "0"
    });
}
