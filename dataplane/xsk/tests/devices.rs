//! Interfaces, preflight, and what is refused when sockets are opened.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test says what went wrong by panicking

mod net;

use net::{Namespace, join, privileged, run};
use ringwall_dataplane::port::PortId;
use ringwall_xsk::{
    Config, PortConfig, RingSizes, XskError, ZeroCopy,
    device::Device,
    open,
    preflight::{Finding, PortInterface, Repair, Request, preflight},
};

fn pair() -> (Namespace, Namespace) {
    let (far, near) = (Namespace::new("f"), Namespace::new("n"));
    join(&far, "e0", &near, "p0", "10.0.0.1/24");
    (far, near)
}

fn config(name: &str) -> Config {
    Config {
        ports: vec![PortConfig {
            id: PortId(0),
            name: name.to_owned(),
            queues: None,
            fill_frames: 64,
        }],
        workers: 1,
        zero_copy: ZeroCopy::Off,
        rings: RingSizes::default(),
        frames: None,
        late_ports: 0,
        bind_timeout_ms: 50,
    }
}

#[test]
fn a_device_is_seen_in_the_threads_own_namespace() {
    if !privileged() {
        return;
    }
    let (_far, near) = pair();
    assert!(matches!(Device::lookup("p0"), Err(XskError::NoInterface(name)) if name == "p0"));
    assert!(matches!(Device::lookup(""), Err(XskError::NoInterface(_))));
    assert!(matches!(
        Device::lookup("a-name-that-is-too-long"),
        Err(XskError::NoInterface(_))
    ));
    near.ip("link set p0 mtu 1400");
    near.within(|| {
        let mut device = Device::lookup("p0").unwrap();
        assert_eq!((device.mtu, device.queues, device.up), (1400, 1, true));
        assert_eq!(device.driver, "veth");
        assert!(device.partial_checksums());
        let mac: Vec<String> = device.mac.iter().map(|byte| format!("{byte:02x}")).collect();
        assert!(near.ip("link show p0").contains(&mac.join(":")));
        if device.max_queues > 1 {
            device.set_queues(2).unwrap();
            assert_eq!(Device::lookup("p0").unwrap().queues, 2);
        }
        assert!(device.set_queues(device.max_queues + 1).is_err());
    });
}

fn about<'a>(findings: &'a [Finding], what: &str) -> Option<&'a Finding> {
    findings.iter().find(|finding| finding.problem.contains(what))
}

/// Makes what the findings propose, as whoever keeps the record would.
fn mend(findings: &[Finding]) {
    for finding in findings {
        match &finding.repair {
            Some(Repair::Setting {
                path, before, after, ..
            }) => {
                let path = std::path::Path::new("/proc/sys").join(path);
                assert_eq!(std::fs::read_to_string(&path).unwrap().trim(), before);
                std::fs::write(path, after).unwrap();
            }
            Some(Repair::VlanOffload { .. }) => {
                let name = finding.interface.as_deref().unwrap();
                Device::lookup(name).unwrap().disable_vlan_offload().unwrap();
            }
            None => {}
        }
    }
}

#[test]
fn preflight_finds_and_says_what_mends() {
    if !privileged() {
        return;
    }
    let (_far, near) = pair();
    near.exec("sysctl -qw net.ipv4.conf.p0.forwarding=1 net.ipv4.conf.p0.send_redirects=1");
    near.exec("sysctl -qw net.ipv6.conf.p0.accept_ra=1 net.ipv4.conf.all.accept_redirects=1");
    near.exec("ethtool -K p0 rxvlan on txvlan on");
    near.within(|| {
        let asked = |name: &str, pod| PortInterface {
            name: name.to_owned(),
            pod,
            mtu: None,
        };
        let interfaces = [asked("p0", true), asked("p9", false)];
        let mut request = Request {
            interfaces: &interfaces,
            kernel_takes_over: false,
            routed: true,
            workers: 1,
        };
        let found = preflight(&request).unwrap();
        for what in [
            "p0.forwarding is 1",
            "p0.send_redirects is 1",
            "all.accept_redirects is 1",
            "p0.accept_ra is 1",
            "takes VLAN tags out",
        ] {
            let finding = about(&found, what).unwrap_or_else(|| panic!("{what}: {found:?}"));
            assert!(
                finding.fatal && finding.repair.is_some() && finding.interface.as_deref() == Some("p0"),
                "{finding:?}"
            );
        }
        let missing = about(&found, "does not exist").unwrap();
        assert!(missing.fatal && missing.repair.is_none() && missing.interface.as_deref() == Some("p9"));
        let uplink = [asked("p0", false)];
        let found = preflight(&Request {
            interfaces: &uplink,
            ..request.clone()
        });
        assert!(
            about(&found.unwrap(), "accept_ra").is_none(),
            "an uplink may live by advertisements"
        );
        near.exec("sysctl -qw net.ipv4.conf.all.arp_ignore=1");
        let found = preflight(&request).unwrap();
        let finding = about(&found, "all.arp_ignore is 1").unwrap();
        assert!(
            finding.fatal && finding.repair.is_none(),
            "not ours to change: {finding:?}"
        );
        near.exec("sysctl -qw net.ipv4.conf.all.arp_ignore=0");

        mend(&preflight(&request).unwrap());
        request.interfaces = &interfaces[..1];
        let found = preflight(&request).unwrap();
        assert!(
            found.iter().all(|finding| !finding.fatal),
            "what was mended stays so: {found:?}"
        );

        // Where the kernel is to take over, it must be able to.
        request.kernel_takes_over = true;
        let found = preflight(&request).unwrap();
        let finding = about(&found, "p0.forwarding is 0").unwrap();
        assert!(finding.fatal, "{finding:?}");
        mend(&found);
        let found = preflight(&request).unwrap();
        assert!(found.iter().all(|finding| !finding.fatal), "{found:?}");
        request.kernel_takes_over = false;
        assert!(about(&preflight(&request).unwrap(), "p0.forwarding is 1").is_some());

        // A wire leaves the kernel's forwarding alone.
        run(&format!(
            "ip netns exec {} sysctl -qw net.ipv4.conf.p0.forwarding=1",
            near.name
        ));
        request.routed = false;
        assert!(about(&preflight(&request).unwrap(), "forwarding").is_none());

        // A packet must fit, with the MTU that the port is going to have.
        let large = [PortInterface {
            mtu: Some(9300),
            ..asked("p0", false)
        }];
        request.interfaces = &large;
        let found = preflight(&request).unwrap();
        assert!(
            about(&found, "MTU 9300").is_some_and(|finding| finding.fatal),
            "{found:?}"
        );
    });
}

#[test]
fn queues_and_vlan_offloads_go_back_to_what_they_were() {
    if !privileged() {
        return;
    }
    let (_far, near) = pair();
    run(&format!(
        "ip -n {0} link add q0 numrxqueues 4 numtxqueues 4 type veth peer name q1",
        near.name
    ));
    near.exec("ethtool -L q0 rx 1 tx 3");
    near.exec("ethtool -K q0 rxvlan on txvlan off");
    near.within(|| {
        let device = Device::lookup("q0").unwrap();
        let (channels, flags) = (device.channels().unwrap(), device.vlan_flags());
        assert_eq!(channels, [1, 3, 0]);
        let after = device.channels_for(2).unwrap();
        assert_eq!(after, [2, 2, 0]);
        device.set_channels(after).unwrap();
        device.disable_vlan_offload().unwrap();
        assert!(!device.offloads_vlan());
        device.set_channels(channels).unwrap();
        device.set_vlan_flags(flags).unwrap();
        assert_eq!(device.channels().unwrap(), channels);
        assert_eq!(device.vlan_flags(), flags);
    });
}

#[test]
fn what_cannot_work_is_refused_with_a_reason() {
    if !privileged() {
        return;
    }
    let (_far, near) = pair();
    near.within(|| {
        let refused = |config: &Config| open(config).map(drop).expect_err("refused");
        assert!(matches!(refused(&config("p9")), XskError::NoInterface(name) if name == "p9"));

        let mut wrong = config("p0");
        wrong.rings.tx = 1000;
        assert!(refused(&wrong).to_string().contains("TX ring of 1000"));
        let mut wrong = config("p0");
        wrong.workers = 0;
        assert!(refused(&wrong).to_string().contains("0 workers"));
        let mut wrong = config("p0");
        wrong.ports.clear();
        assert!(refused(&wrong).to_string().contains("no port"));
        let mut wrong = config("p0");
        wrong.ports.push(wrong.ports[0].clone());
        assert!(refused(&wrong).to_string().contains("port number 0"));
        let mut wrong = config("p0");
        wrong.ports[0].queues = Some(4000);
        assert!(refused(&wrong).to_string().contains("4000"));

        let mut zero_copy = config("p0");
        zero_copy.zero_copy = ZeroCopy::Require;
        assert!(matches!(refused(&zero_copy), XskError::NoZeroCopy { interface, .. } if interface == "p0"));
        zero_copy.zero_copy = ZeroCopy::Prefer;
        let (sockets, _workers) = open(&zero_copy).unwrap();
        assert!(!sockets.zero_copy(), "a veth copies");

        // Held by the sockets above.
        assert!(matches!(
            refused(&config("p0")),
            XskError::Busy {
                queue: 0,
                waited_ms: 50..,
                ..
            }
        ));
        drop((sockets, _workers));
        let both = (open(&config("p0")).unwrap(), Namespace::new("x"));

        // Two instances side by side, each with a pool of its own.
        run(&format!("ip -n {} link add p1 type veth peer name e1", near.name));
        drop((open(&config("p1")).unwrap(), both));
    });
    near.ip("link set p0 mtu 9300");
    near.within(|| {
        let error = open(&config("p0")).map(drop).expect_err("refused");
        assert!(matches!(&error, XskError::Mtu { mtu: 9300, .. }), "{error}");
    });
}
