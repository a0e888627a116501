//! What strangers and tenants who send as much as they can take from everybody else.

use std::{
    fs,
    io::{Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpStream},
    process::ExitCode,
    sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    time::{Duration, Instant},
};

use anyhow::{Context, anyhow, bail, ensure};
use ringwall_bpf::generator::{Generator, Order, mac};
use ringwall_testbed::{
    appliance::{self, Appliance, built_binary},
    netns::Netns,
    topology::{Bed, EXTERNAL, Member, Plan as MemberPlan, Role},
    world::World,
};
use serde_json::{Value, json};

use crate::{
    arguments::positive,
    generate::stream::{Addresses, Ports, Script, Stream},
    recorder::{Recorder, Recording},
    report::count,
    samples::{Better, Party, Plan, Reading, Row, Section, Target},
};

/// Options of the benchmark.
#[derive(clap::Args, Debug)]
pub(crate) struct Options {
    /// How long each attack lasts, in seconds.
    #[arg(long, default_value_t = 20, value_parser = positive::<u64>)]
    pub(crate) seconds: u64,
    /// Packets a second.
    #[arg(long, default_value_t = 500_000, value_parser = positive::<u64>)]
    pub(crate) rate: u64,
    #[command(flatten)]
    pub(crate) recording: Recording,
}

/// Frames of one run of the generator, which costs some milliseconds beside.
const BATCH: u64 = 25_000;
/// How long one of the others waits for its connection: a SYN that is lost is sent again after a second.
const CONNECT_TIMEOUT: Duration = Duration::from_millis(2500);
/// Between two connections of the others.
const CONNECT_INTERVAL: Duration = Duration::from_millis(20);
/// Networks behind the uplink that forged sources are of.
const STRANGERS: &str = "198.18.0.0/15";
const HTTP: u16 = 80;

/// An attack: who sends what.
struct Attack {
    from: Sender,
    stream: Stream,
}

#[derive(Clone, Copy, PartialEq)]
enum Sender {
    Outsider,
    Pod,
}

/// What the others saw.
#[derive(Default)]
struct BystanderReport {
    connections: AtomicU64,
    failed: AtomicU64,
    rounds: AtomicU64,
    broken: AtomicU64,
}

/// Status 1 where an attack takes more from the others than it may.
pub(crate) fn run(options: &Options) -> anyhow::Result<ExitCode> {
    let mut recorder = options.recording.recorder();
    let missed = rows(options, &mut recorder)?;
    Ok(match missed.as_slice() {
        [] => recorder.finish(),
        missed => crate::held(Err(anyhow!("not held: {}", missed.join(", ")))),
    })
}

/// A row for each attack; the names of those that were not held.
pub(crate) fn rows(options: &Options, recorder: &mut Recorder) -> anyhow::Result<Vec<&'static str>> {
    let plans = ATTACKS.map(|(id, name, share)| Plan {
        id: format!("flood-{id}"),
        title: format!(
            "others' connections that work while {name}, {} packets/s offered",
            count(options.rate)
        ),
        section: Section::Failures,
        unit: "%".into(),
        better: Better::Higher,
        target: Some(Target::Subject(share * 100.0)),
        parameters: [].into(),
    });
    let mut missed = Vec::new();
    recorder.measure(&plans, |machine| {
        let readings = attack(options)?;
        let rows = plans.iter().zip(ATTACKS).zip(readings).map(|((plan, (_, name, share)), reading)| {
            if reading.value < share * 100.0 || reading.detail["standingBroken"] != 0 {
                missed.push(name);
            }
            let subject = Party::new(
                "ringwall",
                format!(
                    "`ringwall run`, routed, one worker; {} s, of the others a new connection every {} ms and a standing one",
                    options.seconds,
                    CONNECT_INTERVAL.as_millis()
                ),
            );
            Row::alone(plan, machine, subject, [reading])
        });
        Ok(rows.collect())
    })?;
    Ok(missed)
}

/// Attacks: an id, what happens, and the share of the others' new connections that has to work.
const ATTACKS: [(&str, &str, f64); 4] = [
    ("allowed-port", "strangers forge SYNs to an allowed port", 0.95),
    ("denied-port", "strangers forge SYNs to a denied port", 0.95),
    ("full-table", "a pod fills the table", 0.99),
    ("scan", "a pod scans absent neighbours", 0.99),
];

/// What each attack left of the others' connections, in per cent.
fn attack(options: &Options) -> anyhow::Result<Vec<Reading>> {
    crate::can_make_namespaces()?;
    let names = ["web", "db", "client", "tenant"];
    let bed = Bed::new(
        Role::Routed,
        &names.map(|name| MemberPlan::new(&format!("shop/{name}"))),
        1,
    )?;
    bed.gateway
        .ip(&[format!("route add {STRANGERS} via {EXTERNAL}")])?;
    let mut world = World::of(&bed);
    for name in names {
        world.label(&format!("shop/{name}"), "app", name)?;
    }
    let only = |app: &str, from: Value| json!({"podSelector": {"matchLabels": {"app": app}}, "policyTypes": ["Ingress"], "ingress": [from]});
    // Everybody may come to the web, the client alone to the database.
    world.policy("shop", "web", only("web", json!({"ports": [{"port": HTTP}]})));
    let client = json!({"from": [{"podSelector": {"matchLabels": {"app": "client"}}}]});
    world.policy("shop", "db", only("db", client));
    let [web, db, client, tenant] = bed.pods.as_slice() else {
        bail!("a bed of four pods has {}", bed.pods.len());
    };
    // SYNs from addresses to addresses and ports, each a flow of its own.
    let flood =
        |from: Sender, (first, sources), (to, destinations), to_ports: Ports| -> anyhow::Result<Attack> {
            let (member, port) = match from {
                Sender::Outsider => (&bed.external, "uplink"),
                Sender::Pod => (tenant, tenant.port.as_str()),
            };
            let addresses = |first: Ipv4Addr, count| Addresses {
                first: first.into(),
                count,
            };
            Ok(Attack {
                from,
                stream: Stream {
                    macs: (member.ns.run(|| mac("eth0"))??, bed.gateway.run(|| mac(port))??),
                    from: addresses(first, sources),
                    to: addresses(to, destinations),
                    from_ports: Ports {
                        first: 1024,
                        count: 60_000,
                    },
                    to_ports,
                    script: Script::SynFlood,
                    sizes: None,
                    flows: 1,
                    shuffled: false,
                    new_flow_every: 0,
                },
            })
        };
    let strangers = (Ipv4Addr::new(198, 18, 0, 1), 131_070);
    let (web_port, many) = (
        Ports {
            first: HTTP,
            count: 1,
        },
        Ports {
            first: 1,
            count: 50_000,
        },
    );
    let attacks = [
        flood(Sender::Outsider, strangers, (web.v4, 1), web_port)?,
        flood(Sender::Outsider, strangers, (db.v4, 1), web_port)?,
        flood(Sender::Pod, (tenant.v4, 1), strangers, many)?,
        flood(
            Sender::Pod,
            (tenant.v4, 1),
            (Ipv4Addr::new(192, 0, 2, 20), 200),
            many,
        )?,
    ];
    let firewall = Appliance::start(
        &bed,
        &built_binary()?,
        &appliance::Options::default(),
        &world.objects(),
    )?;
    let mut readings = Vec::new();
    for (attack, (_, name, _)) in attacks.iter().zip(ATTACKS) {
        let (namespace, interface) = match attack.from {
            Sender::Outsider => (&bed.external.ns, "eth0"),
            Sender::Pod => (&tenant.ns, "eth0"),
        };
        let generator = Generator::load(&attack.stream.load(1)?)?;
        let _native = namespace.run(|| generator.pass(interface))??;
        let others = BystanderReport::default();
        let stop = AtomicBool::new(false);
        let resident = memory(&firewall)?;
        let received = |status: &Value| status["dataplane"]["frames"]["received"].as_u64().unwrap_or(0);
        let before = received(&firewall.status()?);
        let sent = std::thread::scope(|scope| -> anyhow::Result<u64> {
            let standing = scope.spawn(|| transfers(client, db, &others, &stop));
            let connecting = scope.spawn(|| connections(client, db, &others, &stop));
            let sent = send(options, namespace, interface, &generator);
            stop.store(true, Relaxed);
            for thread in [standing, connecting] {
                thread
                    .join()
                    .map_err(|_| anyhow!("one of the others panicked"))??;
            }
            sent
        })?;
        let status = firewall.status()?;
        let (made, failed) = (others.connections.load(Relaxed), others.failed.load(Relaxed));
        let taken_in = received(&status) - before;
        ensure!(
            made > 0 && others.rounds.load(Relaxed) > 0,
            "{name}: the others did nothing meanwhile"
        );
        // The others' own packets are far fewer.
        ensure!(
            taken_in >= sent / 100,
            "{name}: of {sent} packets the firewall took in {taken_in}: that was no flood"
        );
        let share = 1.0 - failed as f64 / made as f64;
        eprintln!("  {name}: {:.1} % of {made} connections", share * 100.0);
        readings.push(Reading {
            value: share * 100.0,
            detail: json!({
                "sentPerSecond": sent as f64 / options.seconds as f64,
                "takenInPerSecond": taken_in as f64 / options.seconds as f64,
                "connections": made,
                "failed": failed,
                "standingRounds": others.rounds.load(Relaxed),
                "standingBroken": others.broken.load(Relaxed),
                "flows": status["dataplane"]["flows"]["used"],
                "residentKbBefore": resident,
                "residentKbAfter": memory(&firewall)?,
            }),
        });
    }
    Ok(readings)
}

/// Sends at the rate for as long as told; the number of packets.
fn send(options: &Options, namespace: &Netns, interface: &str, generator: &Generator) -> anyhow::Result<u64> {
    std::thread::scope(|scope| {
        let sender = scope.spawn(|| -> anyhow::Result<u64> {
            namespace.enter()?;
            let (start, length) = (Instant::now(), Duration::from_secs(options.seconds));
            let mut sent = 0;
            while start.elapsed() < length {
                let due = (start.elapsed().as_secs_f64() * options.rate as f64) as u64;
                if sent < due {
                    generator.send(
                        interface,
                        Order {
                            first: sent,
                            count: BATCH,
                            rate: None,
                            answered: false,
                        },
                    )?;
                    sent += BATCH;
                } else {
                    std::thread::sleep(Duration::from_millis(1));
                }
            }
            Ok(sent)
        });
        sender.join().map_err(|_| anyhow!("the generator panicked"))?
    })
}

/// New connections, one after the other, until told to stop.
fn connections(
    from: &Member,
    to: &Member,
    others: &BystanderReport,
    stop: &AtomicBool,
) -> anyhow::Result<()> {
    from.ns.enter()?;
    let address = SocketAddr::new(to.v4.into(), HTTP);
    while !stop.load(Relaxed) {
        others.connections.fetch_add(1, Relaxed);
        if TcpStream::connect_timeout(&address, CONNECT_TIMEOUT).is_err() {
            others.failed.fetch_add(1, Relaxed);
        }
        std::thread::sleep(CONNECT_INTERVAL);
    }
    Ok(())
}

/// A connection that was there before, there and back until told to stop.
fn transfers(from: &Member, to: &Member, others: &BystanderReport, stop: &AtomicBool) -> anyhow::Result<()> {
    from.ns.enter()?;
    let mut stream = TcpStream::connect_timeout(&SocketAddr::new(to.v4.into(), HTTP), CONNECT_TIMEOUT)?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    stream.write_all(b"GET /echo HTTP/1.0\r\n\r\n")?;
    let (mut head, mut byte) = (Vec::new(), [0]);
    while !head.ends_with(b"\r\n\r\n") {
        stream.read_exact(&mut byte)?;
        head.push(byte[0]);
    }
    let mut answer = [0; 512];
    while !stop.load(Relaxed) {
        others.rounds.fetch_add(1, Relaxed);
        if stream
            .write_all(&[7; 512])
            .and_then(|()| stream.read_exact(&mut answer))
            .is_err()
        {
            others.broken.fetch_add(1, Relaxed);
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

/// Kilobytes that the dataplane has in memory.
fn memory(firewall: &Appliance) -> anyhow::Result<u64> {
    let status = fs::read_to_string(format!("/proc/{}/status", firewall.pid("dataplane")?))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let number = line
        .and_then(|line| line.split_whitespace().next())
        .context("no VmRSS")?;
    Ok(number.parse()?)
}
