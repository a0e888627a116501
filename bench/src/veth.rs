//! Throughput of a wire between two veth pairs.
//!
//! ```text
//! CPU 0: generator -> in |   CPU 1: worker   | out -> sink (an XDP program that counts)
//! ```
//! More is offered than can be forwarded; what the sink counts in a second is the throughput. The worker's core also
//! pays for the kernel's transmit path and for the sink. Control and firewall take turns.

use std::{
    path::{Path, PathBuf},
    process::{Child, Command, ExitCode},
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use anyhow::{Context, anyhow, bail};
use ringwall_bpf::traffic::Traffic;
use ringwall_testbed::{
    appliance::{self, Appliance, built_binary},
    manifests,
    topology::{Bed, Plan as MemberPlan, Role, pod_addresses},
};
use serde_json::{Value, json};

use crate::{
    packets::{self, LENGTH},
    recorder::{Recorder, Recording},
    rounds::{Contender, Run, interleave},
    samples::{Better, Plan, Row, Section, Target},
};

/// Options of the benchmark.
#[derive(clap::Args, Debug)]
pub(crate) struct Options {
    /// How often control and firewall take turns.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// How long one measurement counts, in seconds.
    #[arg(long, default_value_t = 3)]
    seconds: u64,
    /// Flows, at most 65536.
    #[arg(long, default_value_t = 1000)]
    flows: usize,
    /// Policies that the firewall holds.
    #[arg(long, default_value_t = 200)]
    policies: usize,
    #[command(flatten)]
    recording: Recording,
}

/// Pods that send; each has an equal share of the flows.
const PODS: usize = 100;
const GENERATOR_CPU: usize = 0;
const WORKER_CPU: usize = 1;
/// Frames of one run of the generator: long enough that its 20 ms of preparation hardly count.
const BATCH: u32 = 4_000_000;
/// How long the bare forwarder takes to be ready, with room.
const BINDING: Duration = Duration::from_secs(1);
/// How long the load runs before the sink's counter counts.
const WARM_UP: Duration = Duration::from_secs(1);

pub(crate) fn run(options: &Options) -> anyhow::Result<ExitCode> {
    if !(1..=65_536).contains(&options.flows) {
        bail!("--flows {}: give a number from 1 to 65536", options.flows);
    }
    let mut recorder = options.recording.recorder();
    rows(options, &mut recorder)?;
    Ok(recorder.finish())
}

/// The wire against bare l2fwd.
pub(crate) fn rows(options: &Options, recorder: &mut Recorder) -> anyhow::Result<()> {
    let plan = Plan {
        id: "wire-l2fwd".into(),
        title: format!(
            "wire on veth, {LENGTH}-byte frames, {} flows, {} policies, flooded",
            options.flows, options.policies
        ),
        section: Section::Throughput,
        unit: "Mpps".into(),
        better: Better::Higher,
        target: Some(Target::Ratio(0.9)),
        parameters: [("flows".to_owned(), options.flows as f64)].into(),
    };
    recorder.measure(std::slice::from_ref(&plan), |machine| {
        crate::can_make_namespaces()?;
        let runs = take_turns(options)?;
        Ok(vec![Row::compare(&plan, machine, &runs, 0, Some(1))])
    })
}

fn take_turns(options: &Options) -> anyhow::Result<Vec<Run>> {
    let binary = built_binary()?;
    let l2fwd = sibling(&binary, "examples/l2fwd")?;
    let bed = Bed::new(
        Role::Wire,
        &[
            MemberPlan::new("bench/pod-0"),
            MemberPlan::new("bench/far").outside(),
        ],
        1,
    )?;
    let [inner, outer] = bed.routers.as_slice() else {
        bail!("a wire has two routers, this bed has {}", bed.routers.len());
    };
    let load: Vec<_> = (0..options.flows)
        .map(|flow| {
            let (src, _) = pod_addresses(flow % PODS);
            let dst = std::net::Ipv4Addr::from(u32::from_be_bytes([198, 18, 0, 0]) + flow as u32);
            packets::udp(src, dst, 1024 + (flow / 256) as u16, 53)
        })
        .collect();
    let traffic = Traffic::load(&load, LENGTH)?;
    let _sink = outer.run(|| traffic.sink("wire"))??;
    let _native = inner.run(|| traffic.pass("wire"))??;
    let firewall = Contender::new(
        "ringwall",
        format!(
            "`ringwall run` on a wire, {} policies, worker on CPU {WORKER_CPU}",
            options.policies
        ),
        || {
            let mut appliance = Appliance::start(
                &bed,
                &binary,
                &appliance::Options::default(),
                &objects(options.policies),
            )?;
            let rate = measure(options, &traffic, inner)?;
            let status = appliance.status()?;
            let dropped = status["dataplane"]["frames"]["dropped"].as_u64();
            if dropped != Some(0) {
                bail!(
                    "the firewall dropped packets of an allowed flow: {}",
                    status["dataplane"]["drops"]
                );
            }
            appliance.stop()?;
            let output = appliance.ringwall(&["detach", "--config", &appliance.config.to_string_lossy()])?;
            if !output.status.success() {
                bail!("ringwall detach: {}", String::from_utf8_lossy(&output.stderr));
            }
            Ok(rate.into())
        },
    );
    let control = Contender::new(
        "bare l2fwd",
        format!("`l2fwd in out SECONDS {WORKER_CPU}` (dataplane/xsk/examples) on the same rings"),
        || {
            let seconds = (BINDING + WARM_UP).as_secs() + options.seconds + 1;
            let forwarder = L2fwd::start(&bed, &l2fwd, seconds)?;
            let rate = measure(options, &traffic, inner)?;
            forwarder.end()?;
            Ok(rate.into())
        },
    );
    Ok(interleave(options.rounds, &mut [firewall, control]))
}

/// Packets per microsecond that reach the sink.
fn measure(
    options: &Options,
    traffic: &Traffic,
    inner: &ringwall_testbed::netns::Netns,
) -> anyhow::Result<f64> {
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let generator = scope.spawn(|| -> anyhow::Result<()> {
            inner.enter().context("entering the generator's namespace")?;
            core_affinity::set_for_current(core_affinity::CoreId { id: GENERATOR_CPU });
            while !stop.load(Ordering::Relaxed) {
                traffic.send("wire", BATCH)?;
            }
            Ok(())
        });
        let counted = (|| -> anyhow::Result<f64> {
            std::thread::sleep(WARM_UP);
            let (before, start) = (traffic.received()?, Instant::now());
            std::thread::sleep(Duration::from_secs(options.seconds));
            let packets = traffic.received()? - before;
            Ok(packets as f64 / start.elapsed().as_secs_f64() / 1e6)
        })();
        stop.store(true, Ordering::Relaxed);
        generator
            .join()
            .map_err(|_| anyhow!("the generator panicked"))??;
        counted
    })
}

/// The sending pods, and policies of which one lets them send.
fn objects(policies: usize) -> Vec<Value> {
    let labels = manifests::labels([("app", "sender")]);
    let mut objects = vec![manifests::namespace("bench", &manifests::labels([]))];
    objects.extend((0..PODS).map(|index| {
        let (v4, _) = pod_addresses(index);
        manifests::Pod {
            namespace: "bench".to_owned(),
            name: format!("pod-{index}"),
            labels: labels.clone(),
            addresses: vec![v4.into()],
            node: "n1".to_owned(),
            ports: Vec::new(),
        }
        .object()
    }));
    objects.extend((0..policies).map(|index| {
        let block = if index == 0 {
            "198.18.0.0/15".to_owned()
        } else {
            format!("203.0.113.{}/32", index % 256)
        };
        json!({
            "apiVersion": "networking.k8s.io/v1",
            "kind": "NetworkPolicy",
            "metadata": {"name": format!("policy-{index:05}"), "namespace": "bench"},
            "spec": {
                "podSelector": {"matchLabels": {"app": "sender"}},
                "policyTypes": ["Egress"],
                "egress": [{
                    "to": [{"ipBlock": {"cidr": block}}],
                    "ports": [{"protocol": "UDP", "port": 53 + index / 256}],
                }],
            },
        })
    }));
    objects
}

/// The bare forwarder, running for as long as a measurement takes.
struct L2fwd(Child);

impl L2fwd {
    fn start(bed: &Bed, program: &Path, seconds: u64) -> anyhow::Result<Self> {
        let mut command = Command::new(program);
        command
            .args(["in", "out", &seconds.to_string()])
            .arg(WORKER_CPU.to_string());
        let child = bed.gateway.spawn(command)?;
        std::thread::sleep(BINDING);
        Ok(Self(child))
    }

    /// Waits until it has taken its programs off the ports.
    fn end(self) -> anyhow::Result<()> {
        let output = self.0.wait_with_output()?;
        if !output.status.success() {
            bail!("l2fwd: {}", String::from_utf8_lossy(&output.stderr));
        }
        Ok(())
    }
}

/// A program that cargo built beside the binary.
fn sibling(binary: &Path, name: &str) -> anyhow::Result<PathBuf> {
    let program = binary.with_file_name(name);
    if program.is_file() {
        return Ok(program);
    }
    bail!(
        "no {}: build it first: cargo build --release -p ringwall-xsk --example l2fwd",
        program.display()
    )
}
