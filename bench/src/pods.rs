//! `ringwall-bench pods`: what ports cost that have nothing to send: packets from pod to pod through ringwall's own rings, with
//! many pods attached and with two, in turns. A worker looks at the rings of every port.

use std::{process::ExitCode, time::Duration};

use ringwall_bpf::generator::{Generator, mac};
use ringwall_testbed::{
    appliance::{self, Appliance, built_binary},
    topology::{Bed, Plan as MemberPlan, Role},
    world::World,
};
use serde_json::json;

use crate::{
    arguments::{positive, seconds},
    generate::stream::{Addresses, Ports, Script, Stream},
    recorder::{Recorder, Recording},
    report::count,
    rounds::{Contender, interleave},
    samples::{Better, Plan, Reading, Row, Section},
    wire,
};

/// Options of the benchmark.
#[derive(clap::Args, Debug)]
#[command(after_help = "Examples:\n  \
    ringwall-bench pods                     # 110 pods, as many as a node has by default, against two\n  \
    ringwall-bench pods --pods 30 --rounds 5")]
pub(crate) struct Options {
    /// How often both take turns
    #[arg(long, default_value_t = 3, value_parser = positive::<usize>)]
    pub(crate) rounds: usize,
    /// How long one measurement counts, in seconds
    #[arg(long, default_value_t = 2.0, value_parser = seconds)]
    pub(crate) seconds: f64,
    /// Pods, each with a port of its own; 3 to 250
    #[arg(long, default_value_t = 110, value_parser = clap::value_parser!(u16).range(3..=250))]
    pub(crate) pods: u16,
    #[command(flatten)]
    pub(crate) recording: Recording,
}

/// Flows between the two pods that talk.
const FLOWS: u32 = 1000;
const PORT: u16 = 9;

pub(crate) fn run(options: &Options) -> anyhow::Result<ExitCode> {
    let mut recorder = options.recording.recorder();
    rows(options, &mut recorder)?;
    Ok(recorder.finish())
}

/// Many ports against two.
pub(crate) fn rows(options: &Options, recorder: &mut Recorder) -> anyhow::Result<()> {
    let pods = usize::from(options.pods);
    let plan = Plan {
        id: format!("pod-ports-{pods}"),
        title: format!(
            "pod to pod through ringwall's rings, 64-byte frames, {} flows, flooded: {pods} pods attached against 2",
            count(FLOWS.into())
        ),
        section: Section::Pods,
        unit: "Mpps".into(),
        better: Better::Higher,
        target: None,
        parameters: [("pods".to_owned(), f64::from(options.pods))].into(),
    };
    recorder.measure(std::slice::from_ref(&plan), |machine| {
        crate::can_make_namespaces()?;
        let time = Duration::from_secs_f64(options.seconds);
        let contender = |pods: usize| {
            Contender::new(
                format!("ringwall, {pods} pods"),
                format!(
                    "`ringwall run`, routed, one worker, {pods} pods with a port each, of which two talk"
                ),
                move || between_pods(pods, time),
            )
        };
        let runs = interleave(options.rounds, &mut [contender(pods), contender(2)]);
        Ok(vec![Row::compare(&plan, machine, &runs, 0, Some(1))])
    })
}

/// Packets per microsecond from the first pod to the second.
fn between_pods(pods: usize, time: Duration) -> anyhow::Result<Reading> {
    let plans: Vec<_> = (0..pods)
        .map(|index| MemberPlan {
            tcp: Vec::new(),
            udp: Vec::new(),
            ..MemberPlan::new(&format!("bench/pod-{index}"))
        })
        .collect();
    let bed = Bed::new(Role::Routed, &plans, 1)?;
    let mut world = World::of(&bed);
    // A policy that decides, and allows what is measured.
    let from = json!([{"podSelector": {}}]);
    world.policy(
        "bench",
        "from-pods",
        json!({"podSelector": {}, "ingress": [{"from": from}]}),
    );
    let (sender, receiver) = (&bed.pods[0], &bed.pods[1]);
    let gateway = bed.gateway.run(|| mac(&sender.port))??;
    let [a, b, c, d, e, f] = receiver.ns.run(|| mac("eth0"))??;
    // The sink answers no request for the receiver's address.
    bed.gateway.ip(&[format!(
        "neigh replace {} lladdr {a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x} dev {} nud permanent",
        receiver.v4, receiver.port
    )])?;
    let one = |address: std::net::Ipv4Addr| Addresses {
        first: address.into(),
        count: 1,
    };
    let stream = Stream {
        macs: (sender.ns.run(|| mac("eth0"))??, gateway),
        from: one(sender.v4),
        to: one(receiver.v4),
        from_ports: Ports {
            first: 1024,
            count: FLOWS,
        },
        to_ports: Ports {
            first: PORT,
            count: 1,
        },
        script: Script::Udp,
        sizes: None,
        flows: FLOWS,
        shuffled: true,
        new_flow_every: 0,
    };
    let generator = Generator::load(&stream.load(1)?)?;
    let _sink = receiver.ns.run(|| generator.sink("eth0"))??;
    let _native = sender.ns.run(|| generator.discard("eth0"))??;
    let _firewall = Appliance::start(
        &bed,
        &built_binary()?,
        &appliance::Options::default(),
        &world.objects(),
    )?;
    wire::flood(&generator, &sender.ns, "eth0", 0, wire::WARM_UP, time)
}
