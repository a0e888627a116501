//! What a guarded node costs traffic from pod to pod: real sockets, on the kernel's own path with ringwall and without, in turns.

use std::{
    io::{Read, Write},
    net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket},
    path::Path,
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, anyhow};
use clap::ValueEnum;
use ringwall_testbed::{
    appliance::{self, Appliance, built_binary},
    netns::Netns,
    topology::{Bed, Plan as MemberPlan, Role},
    world::World,
};
use serde_json::json;

use crate::{
    arguments::positive,
    recorder::{Recorder, Recording},
    rounds::{Contender, interleave},
    samples::{Better, Plan, Reading, Row, Section},
};

/// Options of the benchmark.
#[derive(clap::Args, Debug)]
pub(crate) struct Options {
    /// Rounds; each measures both, one after the other.
    #[arg(long, default_value_t = 7, value_parser = positive::<usize>)]
    pub(crate) rounds: usize,
    /// How long each measurement takes, in milliseconds.
    #[arg(long, default_value_t = 700, value_parser = positive::<u64>)]
    pub(crate) millis: u64,
    /// How pods are joined.
    #[arg(long, value_enum, default_value_t = Shape::Routed)]
    pub(crate) shape: Shape,
    #[command(flatten)]
    pub(crate) recording: Recording,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum Shape {
    /// A route to each pod
    Routed,
    /// A bridge
    Bridge,
}

/// The kernel's own types.
const BTF: &str = "/sys/kernel/btf/vmlinux";
/// A bulk transfer's pieces.
const PIECE: usize = 128 << 10;
/// Bytes of a datagram's content: with its headers 64.
const DATAGRAM: usize = 22;
/// Clients that connect at the same time.
const CLIENTS: usize = 8;

/// What is measured: an id, a name, the unit, and how.
type Measurement = (
    &'static str,
    &'static str,
    &'static str,
    fn(&Rig, Duration) -> anyhow::Result<f64>,
);

const ROWS: [Measurement; 6] = [
    ("bulk", "bulk TCP", "Mbit/s", bulk),
    ("requests", "TCP request and response", "1/s", requests),
    (
        "connections-1",
        "connections, one client after the other",
        "1/s",
        |rig, time| connections(rig, time, 1),
    ),
    ("connections-8", "connections, 8 clients", "1/s", |rig, time| {
        connections(rig, time, CLIENTS)
    }),
    ("datagrams", "UDP of 64 bytes received", "1/s", datagrams),
    ("new-flows", "new UDP flows of one pod received", "1/s", new_flows),
];

/// Two pods of one node, and ringwall if it guards them.
struct Rig {
    bed: Bed,
    /// Dropped first.
    firewall: Option<Appliance>,
}

impl Rig {
    fn new(shape: Shape, guarded: bool) -> anyhow::Result<Self> {
        let role = match shape {
            Shape::Routed => Role::Node,
            Shape::Bridge => Role::Bridge,
        };
        let plans = [MemberPlan::new("shop/server"), MemberPlan::new("shop/client")];
        let bed = Bed::new(role, &plans, 1)?;
        // Connections are tracked in both, as on every node with Services.
        let rules = bed.folder().join("track.nft");
        std::fs::write(
            &rules,
            "table inet bench { chain before { type filter hook prerouting priority 0; ct state invalid counter; }; }",
        )?;
        let mut nft = std::process::Command::new("nft");
        nft.arg("-f").arg(&rules);
        let output = bed.gateway.output(nft)?;
        anyhow::ensure!(
            output.status.success(),
            "nft: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        let firewall = if guarded {
            let mut world = World::of(&bed);
            // A policy that decides, and allows what is measured.
            world.policy(
                "shop",
                "from-clients",
                json!({"podSelector": {"matchLabels": {"app": "server"}},
                       "ingress": [{"from": [{"podSelector": {"matchLabels": {"app": "client"}}}]}]}),
            );
            Some(Appliance::start(
                &bed,
                &built_binary()?,
                &appliance::Options::default(),
                &world.objects(),
            )?)
        } else {
            None
        };
        Ok(Self { bed, firewall })
    }

    fn server(&self) -> anyhow::Result<(&Netns, Ipv4Addr)> {
        let member = self.bed.member("shop/server")?;
        Ok((&member.ns, member.v4))
    }

    fn client(&self) -> anyhow::Result<&Netns> {
        Ok(&self.bed.member("shop/client")?.ns)
    }

    fn listen(&self) -> anyhow::Result<(TcpListener, SocketAddr)> {
        let (server, address) = self.server()?;
        let listener = server.run(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)))??;
        let port = listener.local_addr()?.port();
        Ok((listener, SocketAddr::new(address.into(), port)))
    }
}

pub(crate) fn run(options: &Options) -> anyhow::Result<ExitCode> {
    let mut recorder = options.recording.recorder();
    rows(options, &mut recorder)?;
    Ok(recorder.finish())
}

/// Every row, guarded against the kernel alone.
pub(crate) fn rows(options: &Options, recorder: &mut Recorder) -> anyhow::Result<()> {
    let joined = match options.shape {
        Shape::Routed => "routed",
        Shape::Bridge => "on a bridge",
    };
    let plans = ROWS.map(|(id, name, unit, _)| Plan {
        id: format!("node-{joined}-{id}").replace(' ', "-"),
        title: format!("pod to pod on a node, {joined}: {name}"),
        section: Section::Pods,
        unit: unit.into(),
        better: Better::Higher,
        target: None,
        parameters: [].into(),
    });
    recorder.measure(&plans, |machine| {
        crate::can_make_namespaces()?;
        anyhow::ensure!(
            Path::new(BTF).exists(),
            "this kernel does not show its types ({BTF}), which a node's programs need: it has to be built with BTF \
             (CONFIG_DEBUG_INFO_BTF)"
        );
        let plain = Rig::new(options.shape, false)?;
        let guarded = Rig::new(options.shape, true)?;
        let time = Duration::from_millis(options.millis);
        let mut rows = Vec::new();
        for (plan, (_, _, _, measure)) in plans.iter().zip(ROWS) {
            let mut contenders = [
                Contender::new(
                    "ringwall",
                    format!(
                        "the kernel forwards, {joined}, tracks connections; `ringwall run` guards the node"
                    ),
                    || reading(measure(&guarded, time)?),
                ),
                Contender::new(
                    "kernel alone",
                    format!("the kernel forwards, {joined}, tracks connections"),
                    || reading(measure(&plain, time)?),
                ),
            ];
            let runs = interleave(options.rounds, &mut contenders);
            rows.push(Row::compare(plan, machine, &runs, 0, Some(1)));
        }
        if let Some(firewall) = &guarded.firewall {
            let outcomes = &firewall.status()?["dataplane"]["node"]["outcomes"];
            println!(
                "packets that the kernel decided {}, that it asked about {}",
                outcomes["exit-hit"], outcomes["exit-asked"]
            );
        }
        Ok(rows)
    })
}

/// Of nothing there is no rate.
fn reading(rate: f64) -> anyhow::Result<Reading> {
    anyhow::ensure!(rate > 0.0, "nothing arrived");
    Ok(rate.into())
}

/// Mbit/s that arrive.
fn bulk(rig: &Rig, time: Duration) -> anyhow::Result<f64> {
    let (listener, to) = rig.listen()?;
    let client = rig.client()?;
    thread::scope(|scope| {
        let receiver = scope.spawn(move || -> std::io::Result<(u64, Duration)> {
            let (mut stream, _) = listener.accept()?;
            let mut piece = vec![0; PIECE];
            let begin = Instant::now();
            let mut bytes = 0;
            loop {
                match stream.read(&mut piece)? {
                    0 => return Ok((bytes, begin.elapsed())),
                    count => bytes += count as u64,
                }
            }
        });
        client.run(|| -> std::io::Result<()> {
            let mut stream = TcpStream::connect(to)?;
            let piece = vec![7; PIECE];
            let begin = Instant::now();
            while begin.elapsed() < time {
                stream.write_all(&piece)?;
            }
            stream.shutdown(Shutdown::Write)
        })??;
        let (bytes, took) = receiver.join().map_err(|_| anyhow!("the receiver panicked"))??;
        Ok(bytes as f64 * 8.0 / 1e6 / took.as_secs_f64())
    })
}

/// Answers of one byte to questions of one byte, a second.
fn requests(rig: &Rig, time: Duration) -> anyhow::Result<f64> {
    let (listener, to) = rig.listen()?;
    let client = rig.client()?;
    thread::scope(|scope| {
        scope.spawn(move || -> std::io::Result<()> {
            let (mut stream, _) = listener.accept()?;
            stream.set_nodelay(true)?;
            let mut byte = [0];
            while stream.read(&mut byte)? > 0 {
                stream.write_all(&byte)?;
            }
            Ok(())
        });
        let (count, took) = client.run(|| -> std::io::Result<(u64, Duration)> {
            let mut stream = TcpStream::connect(to)?;
            stream.set_nodelay(true)?;
            let mut byte = [1];
            let begin = Instant::now();
            let mut count = 0;
            while begin.elapsed() < time {
                stream.write_all(&byte)?;
                stream.read_exact(&mut byte)?;
                count += 1;
            }
            Ok((count, begin.elapsed()))
        })??;
        Ok(count as f64 / took.as_secs_f64())
    })
}

/// Connections that are opened, used for one byte each way and closed, a second.
fn connections(rig: &Rig, time: Duration, clients: usize) -> anyhow::Result<f64> {
    let (listener, to) = rig.listen()?;
    listener.set_nonblocking(true)?;
    let client = rig.client()?;
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        for _ in 0..clients {
            let listener = listener.try_clone()?;
            let over = &over;
            scope.spawn(move || {
                while !over.load(Ordering::Relaxed) {
                    let Ok((mut stream, _)) = listener.accept() else {
                        thread::yield_now();
                        continue;
                    };
                    let mut byte = [0];
                    let _ = stream.set_nonblocking(false);
                    if stream.read_exact(&mut byte).is_ok() {
                        let _ = stream.write_all(&byte); // the client counts what comes back
                    }
                }
            });
        }
        let workers: Vec<_> = (0..clients)
            .map(|_| {
                scope.spawn(move || -> anyhow::Result<(u64, Duration)> {
                    client.enter()?;
                    let begin = Instant::now();
                    let mut count = 0;
                    while begin.elapsed() < time {
                        let mut stream = TcpStream::connect(to)?;
                        let mut byte = [1];
                        stream.write_all(&byte)?;
                        stream.read_exact(&mut byte)?;
                        // Without the wait of a closed connection, ports would run out.
                        rst_on_close(&stream)?;
                        count += 1;
                    }
                    Ok((count, begin.elapsed()))
                })
            })
            .collect();
        let mut rate = 0.0;
        let mut failed = None;
        for worker in workers {
            match worker.join().map_err(|_| anyhow!("a client panicked")) {
                Ok(Ok((count, took))) => rate += count as f64 / took.as_secs_f64(),
                Ok(Err(error)) | Err(error) => failed = Some(error),
            }
        }
        over.store(true, Ordering::Relaxed);
        failed.map_or(Ok(rate), Err)
    })
}

fn rst_on_close(stream: &TcpStream) -> std::io::Result<()> {
    socket2::SockRef::from(stream).set_linger(Some(Duration::ZERO))
}

/// Datagrams that arrive, a second.
fn datagrams(rig: &Rig, time: Duration) -> anyhow::Result<f64> {
    let (server, address) = rig.server()?;
    let receiver = server.run(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)))??;
    receiver.set_read_timeout(Some(Duration::from_millis(20)))?;
    let to = SocketAddr::new(address.into(), receiver.local_addr()?.port());
    let received = Arc::new(AtomicU64::new(0));
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let count = Arc::clone(&received);
        let over = &over;
        scope.spawn(move || {
            let mut datagram = [0; 64];
            while !over.load(Ordering::Relaxed) {
                if receiver.recv(&mut datagram).is_ok() {
                    count.fetch_add(1, Ordering::Relaxed);
                }
            }
        });
        let sent = rig.client()?.run(|| -> std::io::Result<Duration> {
            let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
            socket.connect(to)?;
            let begin = Instant::now();
            while begin.elapsed() < time {
                for _ in 0..64 {
                    let _ = socket.send(&[7; DATAGRAM]); // a full queue drops, as it does without ringwall
                }
            }
            Ok(begin.elapsed())
        });
        thread::sleep(Duration::from_millis(30));
        over.store(true, Ordering::Relaxed);
        Ok(received.load(Ordering::Relaxed) as f64 / sent??.as_secs_f64())
    })
}

/// Datagrams that arrive, a second, each the first of its flow. A guarded pod may ask 50,000 times a second.
fn new_flows(rig: &Rig, time: Duration) -> anyhow::Result<f64> {
    /// Without a listener, so that what arrives is counted by the kernel and not read.
    const PORTS: std::ops::Range<u16> = 20_000..50_000;
    let (server, address) = rig.server()?;
    // Else each is answered by an error.
    server.sysctl("net/ipv4/icmp_ratelimit", "1000")?;
    // Connection tracking has no room for all of them for half a minute.
    rig.bed
        .gateway
        .sysctl("net/netfilter/nf_conntrack_udp_timeout", "1")?;
    let arrived = || -> anyhow::Result<u64> {
        let text = server.read("/proc/thread-self/net/snmp")?;
        let lines: Vec<&str> = text.lines().filter(|line| line.starts_with("Udp: ")).collect();
        let [names, counts] = lines.as_slice() else {
            return Err(anyhow!("no counts of UDP"));
        };
        let of_name = names
            .split(' ')
            .zip(counts.split(' '))
            .find(|(name, _)| *name == "NoPorts");
        Ok(of_name
            .context("no count of ports without a listener")?
            .1
            .parse()?)
    };
    let before = arrived()?;
    let took = rig.client()?.run(|| -> std::io::Result<Duration> {
        let begin = Instant::now();
        while begin.elapsed() < time {
            let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
            for port in PORTS {
                let _ = socket.send_to(&[7; DATAGRAM], (address, port)); // a full queue drops, as it does without ringwall
                if port % 64 == 0 && begin.elapsed() >= time {
                    break;
                }
            }
        }
        Ok(begin.elapsed())
    })??;
    thread::sleep(Duration::from_millis(30));
    Ok((arrived()? - before) as f64 / took.as_secs_f64())
}
