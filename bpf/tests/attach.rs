//! Programs on real interfaces: attach, take over, refuse, detach; and what the guard does to the kernel's own packets.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test says what went wrong by panicking

#[path = "../../dataplane/xsk/tests/net/mod.rs"]
mod net;

use std::{
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    path::Path,
    time::Duration,
};

use net::{Bpffs, Namespace, join, privileged, run};
use ringwall_bpf::{
    AttachMode, BpfError, Counter, EgressGuard, FailMode, Failsafe, PortRole, PortSpec, XdpMode, attach,
    detach, prepare,
};

fn spec(bpffs: &Bpffs, name: &str) -> PortSpec {
    PortSpec {
        name: name.to_owned(),
        pins: bpffs.pins(),
        role: PortRole::Pod,
        fail_mode: FailMode::Closed,
        mode: AttachMode::Auto,
        guard: EgressGuard::Drop,
        local_addresses: Vec::new(),
        pod_cidrs: vec!["10.0.0.0/24".parse().unwrap()],
        failsafe: Vec::new(),
        tunnel_ports: Vec::new(),
    }
}

/// The only entries that a port's pins may leave behind.
fn pins(path: &Path) -> usize {
    std::fs::read_dir(path).map_or(0, Iterator::count)
}

#[test]
fn a_successor_takes_over_and_detach_leaves_nothing() {
    if !privileged() {
        return;
    }
    let (pod, host, bpffs) = (Namespace::new("p"), Namespace::new("h"), Bpffs::new());
    join(&pod, "e0", &host, "p0", "10.0.0.1/24");
    host.within(|| {
        let first = attach(&spec(&bpffs, "p0")).unwrap();
        assert_eq!(first.mode(), XdpMode::Native);
        assert_eq!(first.fallback(), None);
        let id = first.program_id();
        assert!(host.ip("link show p0").contains(&format!("prog/xdp id {id}")));
        drop(first);
        assert!(
            host.ip("link show p0").contains(&format!("prog/xdp id {id}")),
            "it stays without a process"
        );

        let mut second = attach(&spec(&bpffs, "p0")).unwrap();
        assert!(second.inherited() && second.reused());
        assert_eq!(second.program_id(), id);
        second
            .set_pod_cidrs(&["10.1.0.0/16".parse().unwrap(), "fd00::/8".parse().unwrap()])
            .unwrap();
        second
            .set_local_addresses(&["10.0.0.9".parse().unwrap(), "fd00::9".parse().unwrap()])
            .unwrap();
        let families = Failsafe {
            from: "10.0.0.0/8".parse().unwrap(),
            to: "fd00::/8".parse().unwrap(),
            protocol: None,
            ports: None,
        };
        assert!(matches!(
            second.set_failsafe(&[families]),
            Err(BpfError::Failsafe { .. })
        ));
        let many: Vec<_> = (0..5000u32)
            .map(|number| std::net::Ipv4Addr::from(number).into())
            .collect();
        assert!(matches!(
            second.set_local_addresses(&many),
            Err(BpfError::TooMany { .. })
        ));

        // A program of another build, as far as the pins tell: replaced in place, the interface never without one.
        std::fs::remove_file(bpffs.pins().join("programs-and-maps/port_config")).unwrap();
        let third = attach(&spec(&bpffs, "p0")).unwrap();
        assert!(third.inherited() && !third.reused());
        assert_ne!(third.program_id(), id);
        assert!(
            host.ip("link show p0")
                .contains(&format!("prog/xdp id {}", third.program_id()))
        );
        let fourth = attach(&spec(&bpffs, "p0")).unwrap();
        assert!(fourth.reused());

        // Another installation finds the interface taken.
        let mut other = spec(&bpffs, "p0");
        other.pins = bpffs.pins().join("other");
        match attach(&other) {
            Err(BpfError::OtherProgram { interface, id, name }) => {
                assert_eq!(
                    (interface.as_str(), id, name.as_str()),
                    ("p0", fourth.program_id(), "ringwall_port")
                );
            }
            answer => panic!("{answer:?}"),
        }

        // Generic, where natively attached before: as it was asked for.
        let mut generic = spec(&bpffs, "p0");
        generic.mode = AttachMode::Generic;
        drop((second, third, fourth));
        let generic = attach(&generic).unwrap();
        assert_eq!(generic.mode(), XdpMode::Generic);

        assert!(host_filters(&host).contains("ringwall_guard"));
        generic.detach().unwrap();
        assert!(!host.ip("link show p0").contains("prog/xdp"));
        assert!(!host_filters(&host).contains("ringwall"));
        let qdiscs = || run(&format!("tc -n {} qdisc show dev p0", host.name));
        assert!(!qdiscs().contains("clsact"), "{}", qdiscs());
        for of in ["p0", "programs-and-maps"] {
            assert!(
                !bpffs.pins().join(of).exists(),
                "nothing of the last port stays: {of}"
            );
        }
        detach(&bpffs.pins(), "p0").unwrap();
        detach(&bpffs.pins(), "never there").unwrap();

        // The qdisc of somebody else stays, empty as it is, whoever attached in between and with what.
        run(&format!("tc -n {} qdisc add dev p0 clsact", host.name));
        drop(attach(&spec(&bpffs, "p0")).unwrap());
        let again = attach(&spec(&bpffs, "p0")).unwrap();
        assert!(again.inherited());
        again.detach().unwrap();
        assert!(qdiscs().contains("clsact") && !host_filters(&host).contains("ringwall"));
        run(&format!("tc -n {} qdisc del dev p0 clsact", host.name));

        // Ours goes, whoever takes it off.
        drop(attach(&spec(&bpffs, "p0")).unwrap());
        drop(attach(&spec(&bpffs, "p0")).unwrap());
        detach(&bpffs.pins(), "p0").unwrap();
        assert!(!qdiscs().contains("clsact"), "{}", qdiscs());

        // A filter of somebody else keeps its qdisc.
        let port = attach(&spec(&bpffs, "p0")).unwrap();
        let program = bpffs.pins().join("programs-and-maps/cross").display().to_string();
        run(&format!(
            "tc -n {} filter add dev p0 ingress prio 9 bpf da object-pinned {program}",
            host.name
        ));
        port.detach().unwrap();
        assert!(qdiscs().contains("clsact"));
        let kept = run(&format!("tc -n {} filter show dev p0 ingress", host.name));
        assert!(kept.contains("pref 9"), "{kept}");
    });
}

fn newest_program() -> u32 {
    libbpf_rs::query::ProgInfoIter::default()
        .map(|program| program.id)
        .max()
        .unwrap()
}

#[test]
fn prepared_programs_are_those_that_are_attached() {
    if !privileged() {
        return;
    }
    let (pod, host, bpffs) = (Namespace::new("p"), Namespace::new("h"), Bpffs::new());
    join(&pod, "e0", &host, "p0", "10.0.0.1/24");
    host.within(|| {
        prepare(&bpffs.pins()).unwrap();
        assert_eq!(pins(&bpffs.pins()), 0, "nothing is pinned");
        let prepared = newest_program();
        let port = attach(&spec(&bpffs, "p0")).unwrap();
        assert!(
            port.program_id() <= prepared,
            "nothing is loaded when it is attached"
        );
        // Programs of the same build are there now: there is nothing to prepare.
        prepare(&bpffs.pins()).unwrap();
        let again = attach(&spec(&bpffs, "p0")).unwrap();
        assert!(again.reused());
        assert_eq!(again.program_id(), port.program_id());
        detach(&bpffs.pins(), "p0").unwrap();
        let anew = attach(&spec(&bpffs, "p0")).unwrap();
        assert!(anew.program_id() > prepared, "what was prepared is used once");
        detach(&bpffs.pins(), "p0").unwrap();
    });
}

fn host_filters(host: &Namespace) -> String {
    run(&format!("tc -n {} filter show dev p0 egress", host.name))
}

#[test]
fn errors_say_what_and_where() {
    if !privileged() {
        return;
    }
    let (pod, host, bpffs) = (Namespace::new("p"), Namespace::new("h"), Bpffs::new());
    join(&pod, "e0", &host, "p0", "10.0.0.1/24");
    host.within(|| {
        let error = attach(&spec(&bpffs, "p9")).unwrap_err();
        assert!(
            matches!(&error, BpfError::NoInterface(name) if name == "p9"),
            "{error}"
        );

        let mut wire = spec(&bpffs, "p0");
        wire.role = PortRole::Wire {
            peer: "p8".to_owned(),
            judge_all: true,
        };
        assert!(matches!(attach(&wire), Err(BpfError::NoInterface(name)) if name == "p8"));

        let directory = tempfile::tempdir().unwrap();
        let mut elsewhere = spec(&bpffs, "p0");
        elsewhere.pins = directory.path().to_owned();
        assert!(matches!(attach(&elsewhere), Err(BpfError::NoBpffs { .. })));

        // No native XDP: the loopback has none. Generic is taken, and said.
        let mut loopback = spec(&bpffs, "lo");
        loopback.mode = AttachMode::Native;
        assert!(matches!(attach(&loopback), Err(BpfError::NoNative { .. })));
        assert_eq!(pins(&bpffs.pins().join("lo")), 0, "nothing is left behind");
        loopback.mode = AttachMode::Auto;
        let port = attach(&loopback).unwrap();
        assert_eq!(port.mode(), XdpMode::Generic);
        assert!(port.fallback().unwrap().contains("`lo`"));
        port.detach().unwrap();
    });
}

/// Sends as much as it can for a while; answers the bytes that arrived.
fn bulk(server: &Namespace, client: &Namespace, address: &str) -> u64 {
    let listener = server.within(|| TcpListener::bind(address).unwrap());
    let receiver = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
        let mut buffer = vec![0; 1 << 16];
        let mut bytes = 0;
        while let Ok(length @ 1..) = stream.read(&mut buffer) {
            bytes += length as u64;
        }
        bytes
    });
    let mut stream = client.within(|| TcpStream::connect(address).unwrap());
    stream.set_write_timeout(Some(Duration::from_secs(2))).unwrap();
    let data = vec![7; 1 << 16];
    for _ in 0..512 {
        if stream.write_all(&data).is_err() {
            break;
        }
    }
    drop(stream);
    receiver.join().unwrap()
}

#[test]
fn the_kernel_reaches_pods_by_the_host_port_alone_large_segments_too() {
    if !privileged() {
        return;
    }
    // The pod's port has the guard; the host port is a veth pair, outer end the kernel's. To see what comes out of its
    // inner end, that end is in a third namespace, without program, where the "pod" lives: what the guard redirects
    // arrives there, whole.
    let (pod, host, bpffs) = (Namespace::new("p"), Namespace::new("h"), Bpffs::new());
    join(&pod, "e0", &host, "p0", "10.0.0.1/24");
    host.ip("addr add 10.0.0.9/24 dev p0");
    run(&format!(
        "ip link add inner netns {} type veth peer name outer netns {}",
        pod.name, host.name
    ));
    for (namespace, end) in [(&pod, "inner"), (&host, "outer")] {
        namespace.ip(&format!("link set {end} up"));
    }
    // The pod answers over the same way that the guard uses, since its own port's XDP is closed.
    for setting in ["all", "inner", "e0"] {
        pod.exec(&format!("sysctl -qw net.ipv4.conf.{setting}.rp_filter=0"));
    }
    for setting in ["all", "outer", "p0"] {
        host.exec(&format!("sysctl -qw net.ipv4.conf.{setting}.rp_filter=0"));
    }
    let of = |namespace: &Namespace, end: &str| {
        let text = namespace.ip(&format!("link show {end}"));
        text.split_whitespace()
            .skip_while(|word| *word != "link/ether")
            .nth(1)
            .unwrap()
            .to_owned()
    };
    let (inner_mac, outer_mac) = (of(&pod, "inner"), of(&host, "outer"));
    pod.ip("route del 10.0.0.0/24 dev e0");
    pod.ip("route add 10.0.0.9/32 dev inner");
    pod.ip(&format!("neigh add 10.0.0.9 lladdr {outer_mac} dev inner"));

    let mut port = host.within(|| {
        // The address of the judged end, read by name: a stand-in, since the real one is in another namespace here.
        run(&format!(
            "ip -n {} link add twin address {inner_mac} type veth peer name twin-end",
            host.name
        ));
        let mut spec = spec(&bpffs, "p0");
        spec.guard = EgressGuard::Redirect {
            outer: "outer".to_owned(),
            inner: "twin".to_owned(),
        };
        attach(&spec).unwrap()
    });
    let bytes = bulk(&pod, &host, "10.0.0.1:7100");
    let counted = port.counters().unwrap();
    assert_eq!(bytes, 512 << 16, "{counted:?}");
    let redirected = counted.get(Counter::GuardRedirected);
    assert!(
        redirected > 0 && redirected < bytes / 1448,
        "large segments go as one: {counted:?}"
    );
    assert_eq!(counted.get(Counter::GuardDropped), 0);

    // With an XDP program on the inner end, as the real one has it, the kernel cuts segments up before: slower, whole.
    let inner = pod.within(|| {
        let mut spec = spec(&bpffs, "inner");
        spec.pins = bpffs.pins().join("inner-side"); // another namespace: another installation
        spec.role = PortRole::Host;
        spec.guard = EgressGuard::Off;
        spec.fail_mode = FailMode::Open;
        attach(&spec).unwrap()
    });
    let bytes = bulk(&pod, &host, "10.0.0.1:7101");
    assert_eq!(bytes, 512 << 16, "{:?}", inner.counters());
    assert!(
        inner.counters().unwrap().get(Counter::FailPassed) >= bytes / 1500,
        "{:?}",
        inner.counters()
    );

    // No way around: without the host port, nothing.
    port = host.within(|| {
        drop(port);
        attach(&spec(&bpffs, "p0")).unwrap()
    });
    let refused = host
        .within(|| TcpStream::connect_timeout(&"10.0.0.1:7100".parse().unwrap(), Duration::from_millis(300)));
    assert!(refused.is_err());
    assert!(port.counters().unwrap().get(Counter::GuardDropped) > 0);
    pod.within(|| inner.detach().unwrap());
    host.within(|| port.detach().unwrap());
}
