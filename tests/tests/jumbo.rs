//! Jumbo frames: packets of several buffers through wires, routers, tunnels and fail modes, with real sockets.
#![allow(clippy::unwrap_used, clippy::panic)] // a failed step is a failed test

use std::{
    io::{ErrorKind, Read, Write},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    time::Duration,
};

use nix::sys::socket::{getsockopt, sockopt};
use ringwall_testbed::{
    appliance::{Appliance, Options, Signal, built_binary},
    netns::Netns,
    preflight::runs_here,
    topology::{Bed, Member, Plan, Role},
    world::World,
};
use serde_json::{Value, json};

const MTU: u32 = 9000;
/// TCP and UDP ports that policy opens, and one that it does not.
const TCP: u16 = 5001;
const UDP: u16 = 5002;
const DENIED: u16 = 5003;
/// What a socket waits.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long nothing has to come where no counter tells that a packet was dropped.
const SILENCE: Duration = Duration::from_millis(300);

fn set_mtu(namespace: &Netns, device: &str, mtu: u32) {
    namespace.ip(&[format!("link set {device} mtu {mtu}")]).unwrap();
}

/// A bed all of whose links have an MTU.
fn bed(role: Role, plans: &[Plan], queues: u32, mtu: u32) -> Bed {
    let bed = Bed::new(role, plans, queues).unwrap();
    for (index, pod) in bed.pods.iter().enumerate() {
        set_mtu(&pod.ns, "eth0", mtu);
        let host = match role {
            Role::Wire => &bed.routers[usize::from(pod.outside)],
            _ => &bed.gateway,
        };
        set_mtu(host, &format!("pod{index}"), mtu);
    }
    set_mtu(&bed.external.ns, "eth0", mtu);
    match role {
        Role::Wire => {
            set_mtu(&bed.routers[1], "uplink", mtu);
            for router in &bed.routers {
                set_mtu(router, "wire", mtu);
            }
            for port in ["in", "out"] {
                set_mtu(&bed.gateway, port, mtu);
            }
        }
        _ => set_mtu(&bed.gateway, "uplink", mtu),
    }
    bed
}

/// Bytes none of which is like its neighbours.
fn payload(length: usize) -> Vec<u8> {
    (0..length)
        .map(|at| (at as u32).wrapping_mul(2_654_435_761).to_be_bytes()[0])
        .collect()
}

fn udp(member: &Member, address: IpAddr, port: u16) -> UdpSocket {
    let socket = member
        .ns
        .run(|| UdpSocket::bind((address, port)).unwrap())
        .unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
    socket
}

/// Whether a datagram of so many bytes arrives, byte for byte. A kernel verifies its checksum before its receiver gets it.
fn datagram(from: &Member, to: &Member, v6: bool, port: u16, length: usize) -> bool {
    let receiver = udp(to, to.address(v6), port);
    let sender = udp(from, from.address(v6), 0);
    let sent = payload(length);
    // The first may be lost while an address is resolved.
    for _ in 0..3 {
        sender
            .send_to(&sent, SocketAddr::new(to.address(v6), port))
            .unwrap();
        let mut buffer = vec![0; 1 << 16];
        if let Ok((got, _)) = receiver.recv_from(&mut buffer) {
            assert!(buffer[..got] == sent, "{length} bytes came as {got} others");
            return true;
        }
    }
    false
}

/// Sends a datagram and waits for `dropped`; nothing may have arrived then.
fn is_dropped(
    from: &Member,
    to: &Member,
    (v6, port, length): (bool, u16, usize),
    dropped: impl FnOnce(),
) -> bool {
    let receiver = udp(to, to.address(v6), port);
    let sender = udp(from, from.address(v6), 0);
    sender
        .send_to(&payload(length), SocketAddr::new(to.address(v6), port))
        .unwrap();
    dropped();
    receiver.set_nonblocking(true).unwrap();
    receiver
        .recv_from(&mut [0; 16])
        .is_err_and(|error| error.kind() == ErrorKind::WouldBlock)
}

/// A listener, and what becomes of a connection to it within a time.
fn connection(
    from: &Member,
    to: &Member,
    v6: bool,
    patience: Duration,
) -> (TcpListener, std::io::Result<TcpStream>) {
    let address = SocketAddr::new(to.address(v6), TCP);
    let listener = to.ns.run(|| TcpListener::bind(address).unwrap()).unwrap();
    let connect = || TcpStream::connect_timeout(&address, patience);
    (listener, from.ns.run(connect).unwrap())
}

/// Sends bytes over a connection and compares them at the other end. Answers the sender's maximum segment size.
fn stream(from: &Member, to: &Member, v6: bool, length: usize) -> u32 {
    let (listener, client) = connection(from, to, v6, PATIENCE);
    let mut client = client.unwrap();
    let (mut server, _) = listener.accept().unwrap();
    client.set_write_timeout(Some(PATIENCE)).unwrap();
    server.set_read_timeout(Some(PATIENCE)).unwrap();
    let segment = getsockopt(&client, sockopt::TcpMaxSeg).unwrap();
    let sent = payload(length);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            client.write_all(&sent).unwrap();
            client.shutdown(std::net::Shutdown::Write).unwrap();
        });
        let mut got = Vec::new();
        server.read_to_end(&mut got).unwrap();
        assert!(got == sent, "{} of {length} bytes are right", got.len());
    });
    segment
}

fn number(status: &Value, path: &[&str]) -> u64 {
    path.iter()
        .fold(status, |value, key| &value[*key])
        .as_u64()
        .unwrap_or_else(|| panic!("no {path:?} in {status}"))
}

/// Bytes per received frame of a port since `before`.
fn mean_frame(before: &Value, after: &Value, port: &str) -> u64 {
    let of = |status: &Value, key: &str| {
        let ports = status["dataplane"]["ports"].as_array().unwrap();
        let port = ports.iter().find(|one| one["name"] == port).unwrap();
        port[key].as_u64().unwrap()
    };
    let since = |key: &str| of(after, key) - of(before, key);
    since("rxBytes") / since("rxFrames").max(1)
}

/// Waits until nothing is on its way, and demands that every packet is accounted for and every frame of packet memory is back.
fn assert_accounts(firewall: &Appliance, free_before: u64) {
    firewall
        .wait_until("every frame is back", |status| {
            let frames = |key: &str| number(status, &["dataplane", "frames", key]);
            frames("poolFree") == free_before
                && frames("received") + frames("generated")
                    == frames("forwarded") + frames("dropped") + frames("held")
        })
        .unwrap();
}

/// `shop/web` takes the ports from `shop/far`, and nothing else from anybody.
fn world(bed: &Bed) -> World {
    let mut world = World::of(bed);
    world.policy(
        "shop",
        "web",
        json!({"podSelector": {"matchLabels": {"app": "web"}}, "policyTypes": ["Ingress"], "ingress": [{
            "from": [{"podSelector": {"matchLabels": {"app": "far"}}}],
            "ports": [{"protocol": "TCP", "port": TCP}, {"protocol": "UDP", "port": UDP}]}]}),
    );
    world
}

fn plans() -> [Plan; 3] {
    [
        Plan::new("shop/web"),
        Plan::new("shop/far").outside(),
        Plan::new("shop/other").outside(),
    ]
}

/// What passes and what does not, in jumbo frames: packets around the size of a buffer, streams, fragments.
fn judged(bed: &Bed, firewall: &Appliance, port: &str, mtu: u32) {
    let [web, far, other] = ["shop/web", "shop/far", "shop/other"].map(|name| bed.member(name).unwrap());
    let denied = |status: &Value| {
        let drops = &status["dataplane"]["drops"]["policy-ingress"];
        drops.as_u64().unwrap_or(0) // absent before the first
    };
    let before = firewall.status().unwrap();
    for v6 in [false, true] {
        let headers = if v6 { 48 } else { 28 };
        let largest = mtu as usize - headers;
        // A buffer has 3,840 bytes, Ethernet header and all.
        let edges = [1usize, 2].map(|nth| nth * 3840 - 14 - headers);
        for length in [
            18,
            edges[0] - 1,
            edges[0],
            edges[0] + 1,
            edges[1] - 1,
            edges[1],
            edges[1] + 1,
            8900 - headers,
            largest - 1,
            largest,
        ] {
            assert!(datagram(far, web, v6, UDP, length), "v6 {v6}: {length} bytes");
            assert!(
                datagram(web, far, v6, UDP, length),
                "v6 {v6}: {length} bytes back"
            );
        }
        // In fragments as long as the MTU.
        for length in [mtu as usize, 20_000, 60_000] {
            assert!(
                datagram(far, web, v6, UDP, length),
                "v6 {v6}: {length} bytes in fragments"
            );
        }
        for (from, port) in [(far, DENIED), (other, UDP)] {
            let before = denied(&firewall.status().unwrap());
            let counted = || {
                let one_more = |status: &Value| denied(status) > before;
                firewall.wait_until("the drop is counted", one_more).unwrap();
            };
            assert!(
                is_dropped(from, web, (v6, port, 8900), counted),
                "v6 {v6}: {port}"
            );
        }
        let refused = connection(other, web, v6, SILENCE).1;
        assert_eq!(
            refused.unwrap_err().kind(),
            ErrorKind::TimedOut,
            "v6 {v6}: denied"
        );
        for (from, to) in [(far, web), (web, far)] {
            let segment = stream(from, to, v6, 20 << 20);
            let room = mtu - if v6 { 60 } else { 40 };
            assert!(
                (room - 12..=room).contains(&segment),
                "v6 {v6}: segments of {segment} bytes"
            );
        }
    }
    let after = firewall.status().unwrap();
    assert!(
        mean_frame(&before, &after, port) > 4000,
        "frames of {} bytes",
        mean_frame(&before, &after, port)
    );
}

#[test]
fn jumbo_frames_cross_a_wire_and_are_judged() {
    let Some(_alone) = runs_here("jumbo frames, wire") else {
        return;
    };
    for (workers, mtu) in [(1, MTU), (2, 9001)] {
        let bed = bed(Role::Wire, &plans(), u32::from(workers), mtu);
        let options = Options {
            workers,
            ..Options::default()
        };
        let firewall =
            Appliance::start(&bed, &built_binary().unwrap(), &options, &world(&bed).objects()).unwrap();
        let free = number(&firewall.status().unwrap(), &["dataplane", "frames", "poolFree"]);
        judged(&bed, &firewall, "out", mtu);
        assert_accounts(&firewall, free);

        // A flood, more than the rings hold.
        let [web, far] = ["shop/web", "shop/far"].map(|name| bed.member(name).unwrap());
        for (from, to) in [(far, web), (web, far)] {
            let sender = udp(from, from.v4.into(), 0);
            let bytes = payload(8900);
            for nth in 0..40_000usize {
                let length = 8900 - nth % 8000;
                // The sender's own queue may be full.
                let _ = sender.send_to(&bytes[..length], (to.v4, [UDP, DENIED][nth % 2]));
            }
        }
        assert_accounts(&firewall, free);
        assert!(datagram(far, web, false, UDP, 8900), "after the flood");
    }
}

#[test]
fn fail_modes_hold_for_jumbo_frames() {
    let Some(_alone) = runs_here("jumbo frames, fail modes") else {
        return;
    };
    for fail_mode in ["closed", "open"] {
        let bed = bed(Role::Wire, &plans(), 1, MTU);
        let options = Options {
            fail_mode,
            more: "failsafe:\n  allow:\n    - {from: [192.0.2.10/32, \"2001:db8::10/128\"], to: podCIDRs, protocol: UDP, \
                   ports: [5002]}\n"
                .to_owned(),
            ..Options::default()
        };
        let mut firewall =
            Appliance::start(&bed, &built_binary().unwrap(), &options, &world(&bed).objects()).unwrap();
        let [web, far] = ["shop/web", "shop/far"].map(|name| bed.member(name).unwrap());
        // Without a dataplane there is no counter to wait for.
        let arrives = |from, v6, port, expected: bool| match expected {
            true => datagram(from, web, v6, port, 8900),
            false => !is_dropped(from, web, (v6, port, 8900), || std::thread::sleep(SILENCE)),
        };
        let check = |judged: bool| {
            let open = fail_mode == "open" && !judged;
            for v6 in [false, true] {
                let when = format!("{fail_mode}, judged {judged}, v6 {v6}");
                // On the failsafe list, in either state.
                assert!(arrives(&bed.external, v6, UDP, true), "{when}: failsafe");
                assert_eq!(arrives(&bed.external, v6, DENIED, open), open, "{when}");
                let passes = judged || open;
                assert_eq!(arrives(far, v6, UDP, passes), passes, "{when}");
                if open {
                    stream(far, web, v6, 1 << 20);
                }
            }
        };
        check(true);
        firewall.end(Signal::SIGKILL).unwrap();
        check(false);
    }
}

#[test]
fn a_router_forwards_jumbo_frames_and_answers_those_that_are_too_big() {
    let Some(_alone) = runs_here("jumbo frames, routed") else {
        return;
    };
    let plans = [
        Plan::new("shop/web"),
        Plan::new("shop/far"),
        Plan::new("shop/other"),
    ];
    let bed = bed(Role::Routed, &plans, 2, MTU);
    // The network behind the uplink carries less than its far end believes.
    set_mtu(&bed.gateway, "uplink", 1500);
    let options = Options {
        workers: 2,
        ..Options::default()
    };
    let firewall =
        Appliance::start(&bed, &built_binary().unwrap(), &options, &world(&bed).objects()).unwrap();
    let free = number(&firewall.status().unwrap(), &["dataplane", "frames", "poolFree"]);
    judged(&bed, &firewall, "pod1", MTU);

    let far = bed.member("shop/far").unwrap();
    for v6 in [false, true] {
        // A datagram that may not be fragmented: the second try knows the path's MTU.
        let sender = udp(far, far.address(v6), 0);
        let to = SocketAddr::new(bed.external.address(v6), UDP);
        let mut learned = false;
        for _ in 0..100 {
            match sender.send_to(&payload(8900), to) {
                // IPv4 sockets that leave it to the kernel fragment once the path's MTU is known; IPv6 ones do, too.
                Ok(_) => {}
                Err(error) if error.raw_os_error() == Some(nix::libc::EMSGSIZE) => {}
                Err(error) => panic!("{error}"),
            }
            std::thread::sleep(Duration::from_millis(50));
            let family = if v6 { "-6" } else { "-4" };
            let mut command = std::process::Command::new("ip");
            command.args([family, "route", "get", &bed.external.address(v6).to_string()]);
            let route = far.ns.output(command).unwrap();
            learned = String::from_utf8_lossy(&route.stdout).contains("mtu 1500");
            if learned {
                break;
            }
        }
        assert!(learned, "v6 {v6}: the path's MTU");
        // And a stream, whose first segments are too big, arrives whole.
        far.ns.ip(&["route flush cache"]).unwrap();
        assert!(stream(far, &bed.external, v6, 4 << 20) > 1000);
    }
    let status = firewall.status().unwrap();
    assert!(
        number(&status, &["dataplane", "drops", "too-big"]) >= 2,
        "{status}"
    );
    assert_accounts(&firewall, free);
}

/// Outer addresses of the nodes on both ends of the wire.
const NODES: [&str; 2] = ["198.51.100.1", "198.51.100.2"];

#[test]
fn jumbo_packets_inside_of_vxlan_are_judged() {
    let Some(_alone) = runs_here("jumbo frames, VXLAN") else {
        return;
    };
    let bed = bed(Role::Wire, &plans(), 1, MTU);
    for (own, router) in bed.routers.iter().enumerate() {
        let mut lines = vec![
            format!(
                "link add vx0 mtu 8950 type vxlan id 1 local {} remote {} dev wire dstport 4789 nolearning",
                NODES[own],
                NODES[1 - own]
            ),
            format!("address add 10.200.0.{}/24 dev vx0", own + 1),
            format!("address add fd00:200::{}/64 dev vx0 nodad", own + 1),
            "link set vx0 up".to_owned(),
        ];
        for pod in bed.pods.iter().filter(|pod| pod.outside == (own == 0)) {
            lines.push(format!("route replace {}/32 via 10.200.0.{}", pod.v4, 2 - own));
            lines.push(format!("route replace {}/128 via fd00:200::{}", pod.v6, 2 - own));
        }
        router.ip(&lines).unwrap();
    }
    for (index, pod) in bed.pods.iter().enumerate() {
        set_mtu(&pod.ns, "eth0", 8950);
        set_mtu(
            &bed.routers[usize::from(pod.outside)],
            &format!("pod{index}"),
            8950,
        );
    }
    let mut world = world(&bed);
    for member in &bed.pods {
        let pod = world.pods.get_mut(&member.name).unwrap();
        pod.node = ["node-in", "node-out"][usize::from(member.outside)].to_owned();
    }
    for (own, name) in ["node-in", "node-out"].iter().enumerate() {
        world
            .nodes
            .insert((*name).to_owned(), vec![NODES[own].parse().unwrap()]);
    }
    let firewall = Appliance::start(
        &bed,
        &built_binary().unwrap(),
        &Options::default(),
        &world.objects(),
    )
    .unwrap();
    let free = number(&firewall.status().unwrap(), &["dataplane", "frames", "poolFree"]);
    judged(&bed, &firewall, "out", 8950);
    assert_accounts(&firewall, free);
}

#[test]
fn an_mtu_that_cannot_be_served_is_refused_by_name() {
    let Some(_alone) = runs_here("jumbo frames, refused") else {
        return;
    };
    let bed = bed(Role::Wire, &plans(), 1, 9300);
    let mut firewall = Appliance::launch(
        &bed,
        &built_binary().unwrap(),
        &Options::default(),
        &world(&bed).objects(),
    )
    .unwrap();
    let ended = firewall.ended(Duration::from_secs(20)).unwrap().unwrap();
    let log = firewall.log();
    assert_eq!(ended.code(), Some(2), "{log}");
    assert!(
        log.contains("has MTU 9300, at most 9216 works") && log.contains("`ip link set dev in mtu 9216`"),
        "{log}"
    );
}
