//! Packets lost while a killed dataplane is replaced.

use std::{
    net::{IpAddr, SocketAddr, UdpSocket},
    process::ExitCode,
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use anyhow::{Context, anyhow, bail};
use ringwall_testbed::{
    appliance::{self, Appliance, Signal, built_binary},
    manifests,
    topology::{Bed, Member, Plan as MemberPlan, Role},
};

use crate::{
    arguments::positive,
    recorder::{Recorder, Recording},
    samples::{Better, Party, Plan, Reading, Row, Section, Target},
};

/// Options of the benchmark.
#[derive(clap::Args, Debug)]
pub(crate) struct Options {
    /// How often the dataplane is killed.
    #[arg(long, default_value_t = 10, value_parser = positive::<usize>)]
    pub(crate) rounds: usize,
    /// Pods, each with a port of its own.
    #[arg(long, default_value_t = 4)]
    pub(crate) pods: usize,
    /// Show what the appliance logged; with `RUST_LOG=ringwall=debug,ringwall_xsk=debug`, when each phase was done.
    #[arg(long)]
    pub(crate) log: bool,
    #[command(flatten)]
    pub(crate) recording: Recording,
}

/// Time between two datagrams.
const SEND_INTERVAL: Duration = Duration::from_micros(200);
const PORT: u16 = 7000;
/// After such a life a process that dies is replaced at once again, however often others died before it. A little more
/// than the supervisor's own figure, since that counts from the process's start.
const STABLE_AFTER: Duration = Duration::from_millis(10_500);

pub(crate) fn run(options: &Options) -> anyhow::Result<ExitCode> {
    if options.pods < 2 {
        bail!("--pods {}: two must talk with each other", options.pods);
    }
    let mut recorder = options.recording.recorder();
    rows(options, &mut recorder)?;
    Ok(recorder.finish())
}

/// How long no packet passes when the dataplane is killed.
pub(crate) fn rows(options: &Options, recorder: &mut Recorder) -> anyhow::Result<()> {
    let plan = Plan {
        id: "killed-dataplane".into(),
        title: format!(
            "time without packets when the dataplane is killed, {} ports, a datagram every {} us",
            options.pods + 2,
            SEND_INTERVAL.as_micros()
        ),
        section: Section::Failures,
        unit: "ms".into(),
        better: Better::Lower,
        target: Some(Target::Subject(50.0)),
        parameters: [].into(),
    };
    recorder.measure(std::slice::from_ref(&plan), |machine| {
        let blocked = kills(options)?;
        let subject = Party::new(
            "ringwall",
            "`ringwall run`, routed, one worker; SIGKILL to its dataplane",
        );
        let readings = blocked.into_iter().map(Reading::from);
        Ok(vec![Row::alone(&plan, machine, subject, readings)])
    })
}

/// Milliseconds without packets of each kill.
fn kills(options: &Options) -> anyhow::Result<Vec<f64>> {
    crate::can_make_namespaces()?;
    let binary = built_binary()?;
    let plans: Vec<_> = (0..options.pods)
        .map(|index| MemberPlan::new(&format!("bench/pod-{index}")))
        .collect();
    let bed = Bed::new(Role::Routed, &plans, 1)?;
    let labels = manifests::labels([("app", "bench")]);
    let mut objects = vec![manifests::namespace("bench", &manifests::labels([]))];
    objects.extend(bed.pods.iter().enumerate().map(|(index, pod)| {
        manifests::Pod {
            namespace: "bench".to_owned(),
            name: format!("pod-{index}"),
            labels: labels.clone(),
            addresses: vec![pod.v4.into(), pod.v6.into()],
            node: "n1".to_owned(),
            ports: Vec::new(),
        }
        .object()
    }));
    let appliance = Appliance::start(&bed, &binary, &appliance::Options::default(), &objects)?;
    let (from, to) = (&bed.pods[0], &bed.pods[1]);
    let mut lost = Vec::new();
    for round in 1..=options.rounds {
        if round > 1 {
            // Else the supervisor waits on purpose before it starts a successor, and that would be measured.
            std::thread::sleep(STABLE_AFTER);
        }
        let blocked = kill_under_load(&appliance, from, to)? * 1e3;
        eprintln!("  round {round}: {blocked:.1} ms without packets");
        lost.push(blocked);
    }
    if options.log {
        eprint!("{}", appliance.log());
    }
    Ok(lost)
}

/// Kills the dataplane in the middle of a stream of datagrams; answers how many seconds' worth of them was lost.
fn kill_under_load(appliance: &Appliance, from: &Member, to: &Member) -> anyhow::Result<f64> {
    let receiver = socket(to, PORT)?;
    receiver.set_read_timeout(Some(Duration::from_millis(500)))?;
    let sender = socket(from, 0)?;
    let target = SocketAddr::new(IpAddr::V4(to.v4), PORT);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let sending = scope.spawn(|| -> anyhow::Result<u64> {
            let start = Instant::now();
            let mut sent = 0;
            while !stop.load(Ordering::Relaxed) {
                // Paced by the clock, so that a late wake-up does not lower the rate.
                let due = (start.elapsed().as_nanos() / SEND_INTERVAL.as_nanos()) as u64;
                while sent < due {
                    sender.send_to(&u64::to_be_bytes(sent), target)?;
                    sent += 1;
                }
                std::thread::sleep(SEND_INTERVAL / 2);
            }
            Ok(sent)
        });
        let receiving = scope.spawn(|| {
            let mut received = 0_u64;
            let mut datagram = [0; 8];
            while receiver.recv(&mut datagram).is_ok() {
                received += 1;
            }
            received
        });
        let killed = (|| -> anyhow::Result<()> {
            std::thread::sleep(Duration::from_millis(300));
            appliance.signal("dataplane", Signal::SIGKILL)?;
            std::thread::sleep(Duration::from_secs(2));
            Ok(())
        })();
        stop.store(true, Ordering::Relaxed);
        let sent = sending.join().map_err(|_| anyhow!("the sender panicked"))??;
        let received = receiving.join().map_err(|_| anyhow!("the receiver panicked"))?;
        killed?;
        if received == 0 {
            bail!("nothing arrived at all: {}", appliance.log());
        }
        Ok(sent.saturating_sub(received) as f64 * SEND_INTERVAL.as_secs_f64())
    })
}

fn socket(member: &Member, port: u16) -> anyhow::Result<UdpSocket> {
    member
        .ns
        .run(|| UdpSocket::bind((member.v4, port)))?
        .with_context(|| format!("cannot bind port {port} of {}", member.name))
}
