//! Real packets between namespaces, through real sockets.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test says what went wrong by panicking

mod net;

use std::{
    net::UdpSocket,
    os::fd::AsFd,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use net::{Bpffs, Namespace, join, privileged};
use ringwall_bpf::{AttachMode, AttachedPort, Counter, EgressGuard, FailMode, PortRole, PortSpec, XdpMode};
use ringwall_dataplane::{
    io::{Burst, PacketIo},
    port::PortId,
};
use ringwall_xsk::{Config, PortConfig, RingSizes, Sockets, SpareMemory, XskIo, ZeroCopy};

const PORTS: [&str; 2] = ["p0", "p1"];

/// Two namespaces with a wire between them, whose ends are `p0` and `p1` in a third.
struct Wire {
    left: Namespace,
    right: Namespace,
    middle: Namespace,
    bpffs: Bpffs,
}

impl Wire {
    fn new() -> Self {
        Self::with_mtu(1500)
    }

    fn with_mtu(mtu: u32) -> Self {
        let wire = Self {
            left: Namespace::new("l"),
            right: Namespace::new("r"),
            middle: Namespace::new("m"),
            bpffs: Bpffs::new(),
        };
        join(&wire.left, "e0", &wire.middle, "p0", "10.0.0.1/24");
        join(&wire.right, "e1", &wire.middle, "p1", "10.0.0.2/24");
        if mtu != 1500 {
            for (namespace, end) in [
                (&wire.left, "e0"),
                (&wire.middle, "p0"),
                (&wire.right, "e1"),
                (&wire.middle, "p1"),
            ] {
                namespace.ip(&format!("link set {end} mtu {mtu}"));
            }
        }
        wire
    }

    fn spec(&self, port: usize, fail_mode: FailMode, pods: &str) -> PortSpec {
        PortSpec {
            name: PORTS[port].to_owned(),
            pins: self.bpffs.pins(),
            role: PortRole::Wire {
                peer: PORTS[1 - port].to_owned(),
                judge_all: true,
            },
            fail_mode,
            mode: AttachMode::Native,
            guard: EgressGuard::Off,
            local_addresses: Vec::new(),
            pod_cidrs: vec![pods.parse().unwrap()],
            failsafe: Vec::new(),
            tunnel_ports: Vec::new(),
        }
    }

    fn attach(&self, fail_mode: FailMode, pods: &str) -> Vec<AttachedPort> {
        self.middle.within(|| {
            (0..2)
                .map(|port| ringwall_bpf::attach(&self.spec(port, fail_mode, pods)).unwrap())
                .collect()
        })
    }
}

fn port(index: usize, queues: Option<u16>) -> PortConfig {
    PortConfig {
        id: PortId(index as u16),
        name: PORTS[index].to_owned(),
        queues,
        fill_frames: 512,
    }
}

fn config(workers: usize, queues: Option<u16>) -> Config {
    Config {
        ports: vec![port(0, queues), port(1, queues)],
        workers,
        zero_copy: ZeroCopy::Prefer,
        rings: RingSizes::default(),
        frames: None,
        late_ports: 0,
        bind_timeout_ms: 2000,
    }
}

fn register(ports: &mut [AttachedPort], sockets: &Sockets) {
    for queue in sockets.queues() {
        ports[usize::from(queue.port.0)]
            .register_socket(queue.queue.0, queue.as_fd())
            .unwrap();
    }
}

/// Workers that send what comes in on one port out of the other.
struct Workers {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<XskIo>>,
    /// Packets that could not be sent, as `send` said.
    refused: Arc<AtomicU64>,
}

impl Workers {
    fn start(workers: Vec<XskIo>) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let refused = Arc::new(AtomicU64::new(0));
        let threads = workers
            .into_iter()
            .map(|mut io| {
                let (stop, refused) = (Arc::clone(&stop), Arc::clone(&refused));
                std::thread::spawn(move || {
                    let mut burst = Burst::new();
                    while !stop.load(Ordering::Relaxed) {
                        let mut received = 0;
                        for source in 0..io.sources() {
                            io.receive(source, &mut burst);
                            received += burst.len();
                            for frame in burst.drain(..) {
                                let to = PortId(1 - frame.port().0);
                                if !io.send(to, frame) {
                                    refused.fetch_add(1, Ordering::Relaxed);
                                }
                            }
                        }
                        io.flush();
                        if received == 0 {
                            io.wait(Duration::from_millis(20));
                        }
                    }
                    io
                })
            })
            .collect();
        Self {
            stop,
            threads,
            refused,
        }
    }

    fn stop(self) -> Vec<XskIo> {
        self.stop.store(true, Ordering::Relaxed);
        self.threads
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .collect()
    }
}

/// One question and its answer; older ones that arrive late are passed over.
fn ask(client: &UdpSocket, server: &UdpSocket, what: u32) -> bool {
    let mut buffer = [0; 64];
    client.send_to(&what.to_be_bytes(), "10.0.0.2:7000").unwrap();
    let from = loop {
        match server.recv_from(&mut buffer) {
            Ok((length, from)) if buffer[..length] == what.to_be_bytes() => break from,
            Ok(_) => {}
            Err(_) => return false,
        }
    };
    server.send_to(&what.to_be_bytes(), from).unwrap();
    loop {
        match client.recv_from(&mut buffer) {
            Ok((length, _)) if buffer[..length] == what.to_be_bytes() => return true,
            Ok(_) => {}
            Err(_) => return false,
        }
    }
}

/// Waits until no frame is on its way, and demands that all are there.
fn assert_accounts(sockets: &mut Sockets, workers: &mut [XskIo]) {
    let end = Instant::now() + Duration::from_secs(2);
    loop {
        workers.iter_mut().for_each(PacketIo::flush);
        sockets.free_quarantined();
        let accounts = sockets.accounts();
        assert!(accounts.balanced(), "{accounts:?}");
        if accounts.sending == 0 && accounts.held == 0 && accounts.handed_over == 0 {
            return;
        }
        assert!(Instant::now() < end, "frames do not come home: {accounts:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn udp_crosses_and_every_frame_is_accounted_for() {
    if !privileged() {
        return;
    }
    for (workers, queues) in [(1, None), (2, None), (2, Some(1))] {
        let wire = Wire::new();
        let mut ports = wire.attach(FailMode::Closed, "10.0.0.0/24");
        assert!(
            ports
                .iter()
                .all(|port| port.mode() == XdpMode::Native && !port.inherited())
        );
        let (mut sockets, ios) = wire
            .middle
            .within(|| ringwall_xsk::open(&config(workers, queues)).unwrap());
        let per_port = if queues == Some(1) { 1 } else { workers };
        assert_eq!(
            sockets.queues().len(),
            2 * per_port,
            "queues are raised to the number of workers"
        );
        assert!(sockets.queues().iter().all(|queue| !queue.zero_copy));
        register(&mut ports, &sockets);
        let running = Workers::start(ios);
        let (client, server) = (wire.left.udp("10.0.0.1:0"), wire.right.udp("10.0.0.2:7000"));
        for number in 0..500 {
            assert!(
                ask(&client, &server, number),
                "{workers} workers, {queues:?} queues: packet {number} is lost: {:?} {:?} {:?}",
                sockets.stats(),
                sockets.accounts(),
                ports.iter().map(AttachedPort::counters).collect::<Vec<_>>()
            );
        }
        let mut ios = running.stop();
        assert_accounts(&mut sockets, &mut ios);
        let stats = sockets.stats();
        for port in 0..2 {
            let of = |value: fn(&ringwall_xsk::QueueStats) -> u64| -> u64 {
                stats
                    .iter()
                    .filter(|(id, _, _)| id.0 == port)
                    .map(|(_, _, stats)| value(stats))
                    .sum()
            };
            assert!(
                of(|stats| stats.rx_frames) >= 500 && of(|stats| stats.tx_frames) >= 500,
                "{stats:?}"
            );
            assert_eq!(
                of(|stats| stats.tx_full + stats.tx_lost + stats.tx_invalid + stats.bad_descriptors),
                0
            );
            assert_eq!(of(|stats| stats.kernel_rx_dropped + stats.kernel_rx_ring_full), 0);
            let counted = ports[usize::from(port)].counters().unwrap();
            assert_eq!(
                counted.get(Counter::Xsk),
                of(|stats| stats.rx_frames),
                "what XDP gave has arrived"
            );
        }
        ports
            .into_iter()
            .for_each(|port| wire.middle.within(|| port.detach().unwrap()));
    }
}

/// Whether UDP gets across at all, without a dataplane: one way is enough to see.
fn crosses(client: &UdpSocket, server: &UdpSocket) -> bool {
    let mut buffer = [0; 64];
    // The kernel takes a closed socket out of its map a while after the close: until then it takes packets and loses them.
    (0..5).any(|_| {
        client.send_to(b"anybody there", "10.0.0.2:7000").unwrap();
        server.recv_from(&mut buffer).is_ok()
    })
}

#[test]
fn the_fail_mode_holds_when_the_sockets_are_gone() {
    if !privileged() {
        return;
    }
    for (fail_mode, pods, passes) in [
        (FailMode::Closed, "10.0.0.0/24", false),
        (FailMode::Closed, "10.9.0.0/16", true),
        (FailMode::Open, "10.0.0.0/24", true),
    ] {
        let wire = Wire::new();
        let mut ports = wire.attach(fail_mode, pods);
        let (sockets, ios) = wire
            .middle
            .within(|| ringwall_xsk::open(&config(1, None)).unwrap());
        register(&mut ports, &sockets);
        let running = Workers::start(ios);
        let (client, server) = (wire.left.udp("10.0.0.1:0"), wire.right.udp("10.0.0.2:7000"));
        assert!(ask(&client, &server, 1), "with sockets");

        // What the kernel does for a process that is killed: sockets close, programs stay by their pins.
        drop(running.stop());
        drop(sockets);
        drop(ports);
        assert_eq!(
            crosses(&client, &server),
            passes,
            "{fail_mode:?}, pods in {pods}: without sockets"
        );

        // The successor takes over, without taking anything off, and its sockets carry on.
        let mut ports = wire.attach(fail_mode, pods);
        assert!(ports.iter().all(AttachedPort::inherited));
        let counted = ports[0].counters().unwrap();
        let reason = if passes {
            Counter::FailRedirected
        } else {
            Counter::FailDropped
        };
        assert!(counted.get(reason) >= 1, "{counted:?}");
        let (mut sockets, ios) = wire
            .middle
            .within(|| ringwall_xsk::open(&config(1, None)).unwrap());
        register(&mut ports, &sockets);
        let running = Workers::start(ios);
        while server.recv_from(&mut [0; 64]).is_ok() {} // what crossed before
        assert!(ask(&client, &server, 2), "with the successor's sockets");
        assert_accounts(&mut sockets, &mut running.stop());
        ports
            .into_iter()
            .for_each(|port| wire.middle.within(|| port.detach().unwrap()));
    }
}

#[test]
fn packet_memory_that_was_made_before_is_used_where_it_is_enough() {
    if !privileged() {
        return;
    }
    let wire = Wire::new();
    let mut ports = wire.attach(FailMode::Closed, "10.0.0.0/24");
    let (client, server) = (wire.left.udp("10.0.0.1:0"), wire.right.udp("10.0.0.2:7000"));
    let wanted = |frames: u32| Config {
        zero_copy: ZeroCopy::Off,
        frames: Some(frames),
        ..config(1, None)
    };
    let (small, large) = (wanted(8 << 10), wanted(16 << 10));
    let refresh = |spare, config: &Config, most| {
        wire.middle
            .within(|| SpareMemory::refresh(spare, config, most).unwrap())
    };
    let open = |config: &Config, spare| {
        wire.middle
            .within(|| ringwall_xsk::open_with(config, spare).unwrap())
    };
    assert!(refresh(None, &small, (8 << 10) * 2048 - 1).is_none(), "too much");

    // Made while another has the ports, as by a process that stands by.
    let (sockets, ios) = open(&small, None);
    register(&mut ports, &sockets);
    let running = Workers::start(ios);
    let spare = refresh(None, &large, u64::MAX);
    assert!(ask(&client, &server, 1), "nobody is disturbed");
    // More than enough: kept.
    let spare = refresh(spare, &small, u64::MAX);
    drop((running.stop(), sockets));
    let (mut sockets, ios) = open(&small, spare);
    assert_eq!(sockets.accounts().total, 16 << 10);
    register(&mut ports, &sockets);
    let running = Workers::start(ios);
    assert!(ask(&client, &server, 2));
    let mut ios = running.stop();
    assert_accounts(&mut sockets, &mut ios);
    drop((ios, sockets));

    // Not enough, by now.
    let spare = refresh(None, &small, u64::MAX);
    let (sockets, _ios) = open(&large, spare);
    assert_eq!(sockets.accounts().total, 16 << 10);
    drop(sockets);
    ports
        .into_iter()
        .for_each(|port| wire.middle.within(|| port.detach().unwrap()));
}

#[test]
fn frames_come_home_under_one_way_load_between_workers() {
    if !privileged() {
        return;
    }
    // One queue per port: worker 0 has p0's, worker 1 has p1's. All packets go from p0 to p1, so every frame of worker
    // 0 is sent, and freed, by worker 1. Several times as many packets as worker 0 has frames.
    const PACKETS: u32 = 30_000;
    let wire = Wire::new();
    let mut ports = wire.attach(FailMode::Closed, "10.0.0.0/24");
    let (mut sockets, ios) = wire
        .middle
        .within(|| ringwall_xsk::open(&config(2, Some(1))).unwrap());
    assert!(
        sockets.accounts().total < u64::from(PACKETS) / 2,
        "{:?}",
        sockets.accounts()
    );
    register(&mut ports, &sockets);
    let running = Workers::start(ios);
    let (client, server) = (wire.left.udp("10.0.0.1:0"), wire.right.udp("10.0.0.2:7000"));
    assert!(ask(&client, &server, 0), "neighbours are known");
    let receiver = std::thread::spawn(move || {
        let mut buffer = [0; 64];
        let mut received = 0u32;
        while server.recv_from(&mut buffer).is_ok() {
            received += 1;
        }
        received
    });
    for number in 0..PACKETS {
        client.send_to(&number.to_be_bytes(), "10.0.0.2:7000").unwrap();
        if number.is_multiple_of(64) {
            std::thread::sleep(Duration::from_micros(300)); // a load that two shared cores carry
        }
    }
    let received = receiver.join().unwrap();
    let refused = Arc::clone(&running.refused);
    assert_accounts(&mut sockets, &mut running.stop());
    let refused = refused.load(Ordering::Relaxed);
    let stats = sockets.stats();
    let rx: u64 = stats
        .iter()
        .filter(|(port, _, _)| port.0 == 0)
        .map(|(_, _, stats)| stats.rx_frames)
        .sum();
    let (tx, lost): (u64, u64) = stats
        .iter()
        .filter(|(port, _, _)| port.0 == 1)
        .map(|(_, _, stats)| (stats.tx_frames, stats.tx_lost))
        .fold((0, 0), |(a, b), (c, d)| (a + c, b + d));
    assert_eq!(sockets.stranded(), 0);
    assert!(
        (tx + refused..=tx + refused + lost).contains(&rx),
        "received = sent + refused + lost: {stats:?}, refused {refused}"
    );
    assert!(
        rx > sockets.accounts().total,
        "frames were used more than once: {stats:?}"
    );
    // How many arrive depends on what else the machine does; that it goes on when the pool was used up does not.
    assert!(
        u64::from(received) > sockets.accounts().total,
        "{received} of {PACKETS} arrived: {stats:?}, refused {refused}"
    );
    ports
        .into_iter()
        .for_each(|port| wire.middle.within(|| port.detach().unwrap()));
}

#[test]
fn a_port_that_goes_and_returns_is_opened_again_alone() {
    if !privileged() {
        return;
    }
    let wire = Wire::new();
    let mut ports = wire.attach(FailMode::Closed, "10.0.0.0/24");
    let (mut sockets, ios) = wire
        .middle
        .within(|| ringwall_xsk::open(&config(2, None)).unwrap());
    register(&mut ports, &sockets);
    let running = Workers::start(ios);
    let (client, server) = (wire.left.udp("10.0.0.1:0"), wire.right.udp("10.0.0.2:7000"));
    assert!(ask(&client, &server, 1));
    assert_eq!(sockets.lost(), []);

    wire.middle.ip("link delete p0"); // the first port that was bound: the UMEM must not depend on it
    let end = Instant::now() + Duration::from_secs(5);
    while sockets.lost() != [PortId(0)] {
        assert!(Instant::now() < end, "the loss is not noticed");
        std::thread::sleep(Duration::from_millis(5));
    }
    server
        .send_to(b"nobody there", client.local_addr().unwrap())
        .unwrap();
    sockets.close(PortId(0)).unwrap();
    let error = wire.middle.within(|| sockets.reopen(&port(0, None)).unwrap_err());
    assert!(error.to_string().contains("`p0`"), "{error}");

    join(&wire.left, "e0", &wire.middle, "p0", "10.0.0.1/24");
    drop(ports.remove(0));
    ports.insert(
        0,
        wire.middle
            .within(|| ringwall_bpf::attach(&wire.spec(0, FailMode::Closed, "10.0.0.0/24")).unwrap()),
    );
    assert!(
        !ports[0].inherited(),
        "the link of the old device is not taken for one of the new"
    );
    wire.middle.within(|| sockets.reopen(&port(0, None)).unwrap());
    for queue in sockets.queues().iter().filter(|queue| queue.port == PortId(0)) {
        ports[0].register_socket(queue.queue.0, queue.as_fd()).unwrap();
    }
    // The wire's other end has to know the new device, too.
    wire.middle.within(|| ports[1].refresh().unwrap());
    let client = wire.left.udp("10.0.0.1:0");
    let arrived = (0..20).any(|number| ask(&client, &server, 100 + number));
    assert!(arrived, "{:?}", sockets.stats());
    for number in 200..300 {
        assert!(ask(&client, &server, number));
    }

    // Down and up again: the same sockets go on.
    wire.middle.ip("link set p0 down");
    server
        .send_to(b"nobody there", client.local_addr().unwrap())
        .unwrap();
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(sockets.lost(), []);
    wire.middle.ip("link set p0 up");
    let arrived = (0..20).any(|number| ask(&client, &server, 400 + number));
    assert!(arrived, "{:?}", sockets.stats());
    for number in 500..600 {
        assert!(ask(&client, &server, number));
    }
    let mut ios = running.stop();
    assert_accounts(&mut sockets, &mut ios);
    ports
        .into_iter()
        .for_each(|port| wire.middle.within(|| port.detach().unwrap()));
}

/// Bytes of Ethernet, IPv4 and UDP headers.
const HEADERS: usize = 14 + 20 + 8;
/// Bytes of a packet that a frame of 4,096 bytes holds.
const PIECE: usize = 4096 - 256;

/// A datagram of so many bytes, none like its neighbours.
fn payload(length: usize) -> Vec<u8> {
    (0..length)
        .map(|at| (at as u32).wrapping_mul(2_654_435_761).to_be_bytes()[0])
        .collect()
}

#[test]
fn jumbo_frames_cross_byte_for_byte_at_every_boundary() {
    if !privileged() {
        return;
    }
    for (workers, queues, mtu) in [(1, None, 9000), (2, None, 9001), (2, Some(1), 9216)] {
        let wire = Wire::with_mtu(mtu);
        let mut ports = wire.attach(FailMode::Closed, "10.0.0.0/24");
        assert!(ports.iter().all(|port| port.mode() == XdpMode::Native));
        let (mut sockets, ios) = wire
            .middle
            .within(|| ringwall_xsk::open(&config(workers, queues)).unwrap());
        let before = sockets.accounts().total;
        register(&mut ports, &sockets);
        let running = Workers::start(ios);
        let (client, server) = (wire.left.udp("10.0.0.1:0"), wire.right.udp("10.0.0.2:7000"));
        assert!(ask(&client, &server, 1), "{mtu}");
        let largest = mtu as usize + 14;
        let mut packets = 0;
        for frame in [
            60,
            PIECE - 1,
            PIECE,
            PIECE + 1,
            2 * PIECE - 1,
            2 * PIECE,
            2 * PIECE + 1,
            largest - 1,
            largest,
        ] {
            let sent = payload(frame - HEADERS);
            for _ in 0..20 {
                client.send_to(&sent, "10.0.0.2:7000").unwrap();
                let mut buffer = vec![0; 16384];
                let (length, from) = server.recv_from(&mut buffer).unwrap_or_else(|error| {
                    panic!("{mtu}: frame of {frame} bytes: {error}: {:?}", sockets.stats())
                });
                assert_eq!(&buffer[..length], sent, "{mtu}: frame of {frame} bytes");
                server.send_to(&sent, from).unwrap();
                let (length, _) = client.recv_from(&mut buffer).unwrap();
                assert_eq!(&buffer[..length], sent, "{mtu}: frame of {frame} bytes back");
                packets += 1;
            }
        }
        let mut ios = running.stop();
        assert_accounts(&mut sockets, &mut ios);
        assert_eq!(sockets.accounts().total, before);
        for port in 0..2 {
            let mut all = ringwall_xsk::QueueStats::default();
            for (id, _, stats) in sockets.stats() {
                if id.0 == port {
                    all += stats;
                }
            }
            // A packet counts once, however many frames it has.
            let counted = ports[usize::from(port)].counters().unwrap();
            assert_eq!(counted.get(Counter::Xsk), all.rx_frames);
            assert!(all.rx_frames >= packets && all.rx_frames < 2 * packets, "{all:?}");
            assert!(all.rx_bytes > packets * 3000, "{all:?}");
            assert_eq!(
                all.tx_full + all.tx_lost + all.tx_invalid + all.bad_descriptors,
                0
            );
            assert_eq!(all.kernel_rx_dropped + all.kernel_tx_invalid, 0);
        }
        ports
            .into_iter()
            .for_each(|port| wire.middle.within(|| port.detach().unwrap()));
    }
}

#[test]
fn a_flood_of_jumbo_frames_leaks_no_frame() {
    if !privileged() {
        return;
    }
    let wire = Wire::with_mtu(9000);
    let mut ports = wire.attach(FailMode::Closed, "10.0.0.0/24");
    // Rings that chains fill up and do not divide: 64 places, three for each packet.
    let small = Config {
        rings: RingSizes {
            rx: 64,
            tx: 64,
            fill: 64,
            completion: 64,
        },
        ..config(1, None)
    };
    let (mut sockets, ios) = wire.middle.within(|| ringwall_xsk::open(&small).unwrap());
    register(&mut ports, &sockets);
    let running = Workers::start(ios);
    let (client, server) = (wire.left.udp("10.0.0.1:0"), wire.right.udp("10.0.0.2:7000"));
    assert!(ask(&client, &server, 1));
    let sent = payload(8900);
    for nth in 0..30_000 {
        // Of all lengths, so that chains of one to three frames take turns.
        client
            .send_to(&sent[..100 + nth * 7 % 8800], "10.0.0.2:7000")
            .unwrap();
    }
    // The peer goes away under load, which fills the TX ring in the middle of a chain, and comes back.
    wire.right.ip("link set e1 down");
    wire.middle.ip("link set p1 down");
    for nth in 0..2000 {
        client
            .send_to(&sent[..100 + nth * 7 % 8800], "10.0.0.2:7000")
            .unwrap();
    }
    wire.middle.ip("link set p1 up");
    wire.right.ip("link set e1 up");
    let end = Instant::now() + Duration::from_secs(5);
    while !ask(&client, &server, 2) {
        assert!(Instant::now() < end, "{:?}", sockets.stats());
        while server.recv_from(&mut [0; 9000]).is_ok() {}
    }
    let refused = Arc::clone(&running.refused);
    let mut ios = running.stop();
    assert_accounts(&mut sockets, &mut ios);
    let of = |port: u16| {
        let mut all = ringwall_xsk::QueueStats::default();
        for (id, _, stats) in sockets.stats() {
            if id.0 == port {
                all += stats;
            }
        }
        all
    };
    let (first, second) = (of(0), of(1));
    assert!(second.tx_full > 0, "the ring was full: {second:?}");
    assert_eq!(second.tx_full + first.tx_full, refused.load(Ordering::Relaxed));
    assert_eq!(
        first.rx_frames,
        second.tx_frames + second.tx_full,
        "every packet, once"
    );
    assert_eq!(
        first.bad_descriptors + second.bad_descriptors + second.kernel_tx_invalid,
        0
    );
    ports
        .into_iter()
        .for_each(|port| wire.middle.within(|| port.detach().unwrap()));
}

#[test]
fn a_port_that_goes_in_the_middle_of_jumbo_frames_gives_every_frame_back() {
    if !privileged() {
        return;
    }
    let wire = Wire::with_mtu(9000);
    let mut ports = wire.attach(FailMode::Closed, "10.0.0.0/24");
    let (mut sockets, ios) = wire
        .middle
        .within(|| ringwall_xsk::open(&config(2, Some(1))).unwrap());
    register(&mut ports, &sockets);
    let running = Workers::start(ios);
    let (client, server) = (wire.left.udp("10.0.0.1:0"), wire.right.udp("10.0.0.2:7000"));
    assert!(ask(&client, &server, 1));
    let sent = payload(8900);
    for round in 0..5u16 {
        let load = {
            let (client, sent) = (client.try_clone().unwrap(), sent.clone());
            std::thread::spawn(move || {
                for _ in 0..3000 {
                    client.send_to(&sent, "10.0.0.2:7000").unwrap();
                }
            })
        };
        std::thread::sleep(Duration::from_millis(3));
        let gone = round % 2;
        sockets.close(PortId(gone)).unwrap();
        load.join().unwrap();
        wire.middle
            .within(|| sockets.reopen(&port(usize::from(gone), Some(1))).unwrap());
        register(&mut ports, &sockets);
    }
    while server.recv_from(&mut [0; 9000]).is_ok() {}
    assert!(ask(&client, &server, 2));
    let mut ios = running.stop();
    std::thread::sleep(Duration::from_millis(1100)); // closed queues' frames rest
    assert_accounts(&mut sockets, &mut ios);
    ports
        .into_iter()
        .for_each(|port| wire.middle.within(|| port.detach().unwrap()));
}

#[test]
fn packet_memory_for_one_frame_each_refuses_a_port_of_jumbo_frames_by_name() {
    if !privileged() {
        return;
    }
    let wire = Wire::new();
    let (mut sockets, mut ios) = wire
        .middle
        .within(|| ringwall_xsk::open(&config(1, None)).unwrap());
    let closer = std::thread::scope(|scope| {
        let closing = scope.spawn(|| sockets.close(PortId(1)));
        while !closing.is_finished() {
            ios.iter_mut().for_each(PacketIo::flush);
        }
        closing.join().unwrap()
    });
    closer.unwrap();
    wire.middle.ip("link set p1 mtu 9000");
    let refused = wire.middle.within(|| sockets.reopen(&port(1, None)).unwrap_err());
    let text = refused.to_string();
    assert!(
        text.contains("`p1` has MTU 9000") && text.contains("restart ringwall"),
        "{text}"
    );
    wire.middle.ip("link set p1 mtu 9300");
    let refused = wire
        .middle
        .within(|| ringwall_xsk::open(&config(1, None)).unwrap_err());
    assert!(
        refused
            .to_string()
            .contains("`p1` has MTU 9300, at most 9216 works"),
        "{refused}"
    );
}
