//! A wire between two veth pairs, with ringwall on it or a bare AF_XDP forwarder, and load on it.
//!
//! ```text
//! CPU 0: generator -> in |   CPU 1: worker   | out -> sink (an XDP program that counts)
//! ```
//! The worker's core also pays for the kernel's transmit path and for the sink.

use std::{
    io::{BufRead as _, BufReader},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::{Path, PathBuf},
    process::{Child, ChildStdout, Command},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, anyhow, bail, ensure};
use ringwall_bpf::generator::{Generator, Order, Received, Sent};
use ringwall_testbed::{
    appliance::{self, Appliance, built_binary},
    manifests,
    netns::Netns,
    topology::{Bed, Plan, Role, pod_addresses},
};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use crate::{
    generate::stream::{Addresses, Ports, Script, Sizes, Stream},
    samples::Reading,
};

/// Pods that send; flows take turns in them.
pub(crate) const PODS: u32 = 100;
/// Where flows go.
const DESTINATIONS: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 0);
const DESTINATIONS_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 0);
/// How many addresses of destinations there are: 6.5 million flows with the pods.
const DESTINATION_COUNT: u32 = 65_536;
const UDP_PORT: u16 = 53;
const TCP_PORT: u16 = 80;
const GENERATOR_CPU: usize = 0;
/// Where the worker is.
pub(crate) const WORKER_CPU: usize = 1;
/// How long a flood runs before the sink's counter counts.
pub(crate) const WARM_UP: Duration = Duration::from_secs(1);
/// No measurement takes longer.
const LONGEST_RUN: &str = "3600";
/// Between two looks at a sink that may still count.
const QUIET: Duration = Duration::from_millis(20);
/// Nothing is under way for longer.
const UNDER_WAY: Duration = Duration::from_secs(2);

/// The bed of a wire.
pub(crate) struct Wire {
    /// Its namespaces
    pub(crate) bed: Bed,
    binary: PathBuf,
    l2fwd: PathBuf,
}

/// What forwards on the wire.
pub(crate) enum Forwarder {
    /// `ringwall run`
    Ringwall(Box<Appliance>),
    /// `l2fwd`
    L2fwd(L2fwd),
}

/// The bare forwarder; killed when this is dropped, which takes its programs off no port.
pub(crate) struct L2fwd {
    child: Option<Child>,
    /// What it goes on writing
    _output: BufReader<ChildStdout>,
}

impl L2fwd {
    /// Ends it as it likes.
    fn end(mut self) -> anyhow::Result<()> {
        let Some(child) = self.child.take() else {
            return Ok(());
        };
        kill_process(Pid::from_child(&child), Signal::TERM).context("ending l2fwd")?;
        let output = child.wait_with_output()?;
        ensure!(
            output.status.success(),
            "l2fwd: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(())
    }
}

impl Drop for L2fwd {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.kill(); // it may have ended
            let _ = child.wait();
        }
    }
}

impl Wire {
    /// Two routers with a wire between them.
    ///
    /// # Errors
    /// Namespaces cannot be made, there is one CPU only, or a program is not built.
    pub(crate) fn new() -> anyhow::Result<Self> {
        let cpus = thread::available_parallelism().map_or(1, usize::from);
        ensure!(
            cpus >= 2,
            "this machine has one CPU; one has to send and another one to forward"
        );
        crate::can_make_namespaces()?;
        let binary = built_binary()?;
        let l2fwd = sibling(&binary, "examples/l2fwd")?;
        let plans = [Plan::new("bench/pod-0"), Plan::new("bench/far").outside()];
        let bed = Bed::new(Role::Wire, &plans, 1)?;
        ensure!(
            bed.routers.len() == 2,
            "a wire has two routers, this bed has {}",
            bed.routers.len()
        );
        Ok(Self { bed, binary, l2fwd })
    }

    fn inner(&self) -> &Netns {
        &self.bed.routers[0]
    }

    fn outer(&self) -> &Netns {
        &self.bed.routers[1]
    }

    /// Starts ringwall with rules of which one lets the load pass; `more` are lines of its configuration.
    ///
    /// # Errors
    /// It ends, or is not ready in time.
    pub(crate) fn ringwall(&self, rules: usize, more: &str) -> anyhow::Result<Forwarder> {
        let options = appliance::Options {
            more: more.to_owned(),
            ..appliance::Options::default()
        };
        let appliance = Appliance::start(&self.bed, &self.binary, &options, &objects(rules))?;
        Ok(Forwarder::Ringwall(Box::new(appliance)))
    }

    /// Starts the bare forwarder.
    ///
    /// # Errors
    /// It cannot be started.
    pub(crate) fn l2fwd(&self) -> anyhow::Result<Forwarder> {
        let mut command = Command::new(&self.l2fwd);
        command
            .args(["in", "out", LONGEST_RUN])
            .arg(WORKER_CPU.to_string())
            // Of the bed's own, which goes with it however it ends.
            .env("BPFFS", self.bed.folder().join("bpf"));
        let mut child = self.bed.gateway.spawn(command)?;
        let output = child.stdout.take().context("l2fwd has no output")?;
        let mut output = BufReader::new(output);
        let (mut bound, mut line) = (0, String::new());
        // It says so of each port, and then goes on writing: whoever closed its output would end it.
        while bound < 2 && output.read_line(&mut line)? > 0 {
            bound += usize::from(line.contains("bound in"));
            line.clear();
        }
        let forwarder = L2fwd {
            child: Some(child),
            _output: output,
        };
        if bound < 2 {
            forwarder.end()?;
            bail!("l2fwd ended before it had bound both ports");
        }
        Ok(Forwarder::L2fwd(forwarder))
    }

    /// Loads a stream's generator, and lets the outer end count.
    ///
    /// # Errors
    /// The stream does not fit the generator, or the kernel refuses.
    pub(crate) fn load(&self, stream: &Stream, counted: u64) -> anyhow::Result<LoadedWire<'_>> {
        let generator = Generator::load(&stream.load(counted)?)?;
        let links = match stream.script {
            Script::Udp => vec![
                self.outer().run(|| generator.sink("wire"))??,
                // Answers end here, too.
                self.inner().run(|| generator.discard("wire"))??,
            ],
            // Answers end where they arrive.
            Script::Tcp { .. } | Script::SynFlood => vec![
                self.outer().run(|| generator.answer("wire"))??,
                self.inner().run(|| generator.sink("wire"))??,
            ],
        };
        Ok(LoadedWire {
            wire: self,
            stream: stream.clone(),
            generator,
            next: std::cell::Cell::new(0),
            _links: links,
        })
    }
}

impl Forwarder {
    /// The firewall.
    ///
    /// # Errors
    /// This is the bare forwarder.
    pub(crate) fn appliance(&self) -> anyhow::Result<&Appliance> {
        match self {
            Self::Ringwall(appliance) => Ok(appliance),
            Self::L2fwd(_) => Err(anyhow!("the bare forwarder is no firewall")),
        }
    }

    /// Ends it, and takes its programs off the ports.
    ///
    /// # Errors
    /// It failed, or the firewall dropped packets for a reason: all of the load is allowed.
    pub(crate) fn end(self) -> anyhow::Result<()> {
        match self {
            Self::Ringwall(mut appliance) => {
                let status = appliance.status()?;
                let dropped = status["dataplane"]["frames"]["dropped"].as_u64();
                let reasons = status["dataplane"]["drops"].clone();
                appliance.stop()?;
                let output =
                    appliance.ringwall(&["detach", "--config", &appliance.config.to_string_lossy()])?;
                if !output.status.success() {
                    bail!("ringwall detach: {}", String::from_utf8_lossy(&output.stderr));
                }
                ensure!(
                    dropped == Some(0),
                    "the firewall dropped packets of allowed flows: {reasons}"
                );
            }
            Self::L2fwd(forwarder) => forwarder.end()?,
        }
        Ok(())
    }
}

/// A wire with a load at hand.
pub(crate) struct LoadedWire<'a> {
    wire: &'a Wire,
    stream: Stream,
    generator: Generator,
    /// Number of the next frame
    next: std::cell::Cell<u64>,
    _links: Vec<ringwall_bpf::generator::Link>,
}

/// What one run of the load gave.
pub(crate) struct Passed {
    /// What was sent
    pub(crate) sent: Sent,
    /// Frames of those that the sink can tell
    pub(crate) countable: u64,
    /// What arrived
    pub(crate) received: Received,
}

impl LoadedWire<'_> {
    /// Whose frames they are.
    pub(crate) fn generator(&self) -> &Generator {
        &self.generator
    }

    /// Sends for a while, frames per second, and waits until everything has arrived.
    ///
    /// # Errors
    /// The kernel refuses.
    pub(crate) fn pass(&self, rate: Option<u64>, frames: u64) -> anyhow::Result<Passed> {
        // Whole scripts, so that no connection stays half open.
        let script = match self.stream.script.steps() {
            1 => 1,
            steps => u64::from(self.stream.flows) * steps,
        };
        let order = Order {
            first: self.next.get(),
            count: frames.div_ceil(script) * script,
            rate,
            answered: false,
        };
        let before = self.generator.received()?;
        let sent = self.send(order)?;
        self.next.set(order.first + order.count);
        let received = self.settled()?.since(&before);
        Ok(Passed {
            sent,
            countable: crate::generate::stamped(&self.stream, sent.frames),
            received,
        })
    }

    /// Lets each flow of datagrams be answered once, if a firewall forwards them, so that it holds all of them: unanswered
    /// flows get a share of its table, and the packets of the others are judged each time.
    ///
    /// # Errors
    /// The kernel refuses, or some flows are not held after all attempts: then the row would not be of so many.
    pub(crate) fn opened(&self, forwarder: &Forwarder) -> anyhow::Result<()> {
        let Forwarder::Ringwall(firewall) = forwarder else {
            return Ok(());
        };
        /// Where the machine is busy, packets are lost.
        const ATTEMPTS: usize = 8;
        /// Of 1,000 flows.
        const ENOUGH: u64 = 999;
        let flows = u64::from(self.stream.flows);
        let mut held = 0;
        for _ in 0..ATTEMPTS {
            self.send_each_flow(true)?;
            held = firewall.status()?["dataplane"]["flows"]["used"]
                .as_u64()
                .unwrap_or(0);
            if held * 1000 >= flows * ENOUGH {
                return Ok(());
            }
        }
        bail!("the firewall holds {held} of {flows} flows")
    }

    /// Sends a packet of each flow, so that who knows flows knows all of them; whether the sink answers.
    ///
    /// # Errors
    /// The kernel refuses.
    pub(crate) fn send_each_flow(&self, answered: bool) -> anyhow::Result<()> {
        /// Frames a second: a million flows within the half minute that new ones are remembered.
        const RATE: u64 = 100_000;
        let order = Order {
            first: self.next.get(),
            count: self.stream.flows.into(),
            rate: Some(RATE),
            answered,
        };
        self.next.set(order.first + order.count);
        self.send(order)?;
        self.settled().map(|_| ())
    }

    /// As [`flood`], through the wire.
    ///
    /// # Errors
    /// As [`flood`].
    pub(crate) fn flood(&self, warm_up: Duration, time: Duration) -> anyhow::Result<Reading> {
        let reading = flood(
            &self.generator,
            self.wire.inner(),
            "wire",
            self.next.get(),
            warm_up,
            time,
        );
        self.next.set(self.next.get() + most_frames(warm_up + time));
        reading
    }

    fn send(&self, order: Order) -> anyhow::Result<Sent> {
        let (generator, namespace) = (&self.generator, self.wire.inner());
        thread::scope(|scope| {
            scope
                .spawn(|| send(generator, namespace, "wire", order))
                .join()
                .map_err(|_| anyhow!("the generator panicked"))?
        })
    }

    /// Counters of the sinks once nothing more arrives.
    fn settled(&self) -> anyhow::Result<Received> {
        let start = Instant::now();
        let mut packets = self.generator.packets()?;
        loop {
            thread::sleep(QUIET);
            let later = self.generator.packets()?;
            if later == packets || start.elapsed() > UNDER_WAY {
                return Ok(self.generator.received()?);
            }
            packets = later;
        }
    }
}

/// More frames than a core makes in so long: a flood is stopped, and does not end by itself.
fn most_frames(time: Duration) -> u64 {
    const MOST_PER_SECOND: f64 = 1e8;
    (time.as_secs_f64() * MOST_PER_SECOND) as u64
}

/// Packets per microsecond that sinks count under as much load as the generator can make out of an interface, from the frame of
/// a number on; `offered` in the detail is that load, with what is not counted before and after.
///
/// # Errors
/// The kernel refuses, or nothing arrives.
pub(crate) fn flood(
    generator: &Generator,
    namespace: &Netns,
    interface: &str,
    first: u64,
    warm_up: Duration,
    time: Duration,
) -> anyhow::Result<Reading> {
    thread::scope(|scope| {
        let order = Order {
            first,
            count: most_frames(warm_up + time),
            rate: None,
            answered: false,
        };
        let sending = scope.spawn(move || send(generator, namespace, interface, order));
        let counted = (|| -> anyhow::Result<f64> {
            thread::sleep(warm_up);
            let (before, start) = (generator.packets()?, Instant::now());
            thread::sleep(time);
            let packets = generator.packets()? - before;
            Ok(packets as f64 / start.elapsed().as_secs_f64() / 1e6)
        })();
        generator.stop()?;
        let sent = sending.join().map_err(|_| anyhow!("the generator panicked"))??;
        let arrived = counted?;
        ensure!(arrived > 0.0, "nothing arrived");
        Ok(Reading {
            value: arrived,
            detail: json!({"offered": sent.rate() / 1e6}),
        })
    })
}

fn send(generator: &Generator, namespace: &Netns, interface: &str, order: Order) -> anyhow::Result<Sent> {
    namespace.enter().context("entering the generator's namespace")?;
    core_affinity::set_for_current(core_affinity::CoreId { id: GENERATOR_CPU });
    Ok(generator.send(interface, order)?)
}

/// Lines of configuration for a table that has room for so many flows, at half its load.
pub(crate) fn room_for(flows: u64) -> String {
    /// Flows that the table has room for without a word about it.
    const DEFAULT: u64 = 262_144;
    match flows * 2 {
        wanted if wanted <= DEFAULT => String::new(),
        wanted => format!("conntrack: {{maxEntries: {}}}\n", wanted.next_power_of_two()),
    }
}

/// Flows of the pods that the rules let pass.
pub(crate) fn stream(script: Script, flows: u32, sizes: Option<Sizes>, v6: bool) -> Stream {
    let (pod, pod_v6) = pod_addresses(0);
    let addresses = |v4: Ipv4Addr, six: Ipv6Addr, count| Addresses {
        first: if v6 { IpAddr::V6(six) } else { IpAddr::V4(v4) },
        count,
    };
    Stream {
        macs: ([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]),
        from: addresses(pod, pod_v6, PODS),
        to: addresses(DESTINATIONS, DESTINATIONS_V6, DESTINATION_COUNT),
        from_ports: Ports {
            first: 1024,
            count: 64_512,
        },
        to_ports: Ports {
            first: if script == Script::Udp { UDP_PORT } else { TCP_PORT },
            count: 1,
        },
        script,
        sizes,
        flows,
        shuffled: true,
        new_flow_every: 0,
    }
}

/// The sending pods, and rules of which one lets them send.
pub(crate) fn objects(rules: usize) -> Vec<Value> {
    let labels = manifests::labels([("app", "sender")]);
    let mut objects = vec![manifests::namespace("bench", &manifests::labels([]))];
    objects.extend((0..PODS as usize).map(|index| {
        let (v4, v6) = pod_addresses(index);
        manifests::Pod {
            namespace: "bench".to_owned(),
            name: format!("pod-{index}"),
            labels: labels.clone(),
            addresses: vec![v4.into(), v6.into()],
            node: "n1".to_owned(),
            ports: Vec::new(),
        }
        .object()
    }));
    objects.push(policy(0, vec![allowed(&[])]));
    // A policy has at most 500 rules, as people's have.
    let others: Vec<Value> = (1..rules)
        .map(|index| {
            let address = Ipv4Addr::from(u32::from(Ipv4Addr::new(203, 0, 0, 0)) + (index / 256) as u32);
            json!({
                "to": [{"ipBlock": {"cidr": format!("{address}/32")}}],
                "ports": [{"protocol": "UDP", "port": 1000 + index % 256}],
            })
        })
        .collect();
    objects.extend(
        others
            .chunks(500)
            .enumerate()
            .map(|(index, rules)| policy(index + 1, rules.to_vec())),
    );
    objects
}

/// The rule that lets the load pass, with more ports.
pub(crate) fn allowed(more: &[u16]) -> Value {
    let mut ports = vec![
        json!({"protocol": "UDP", "port": UDP_PORT}),
        json!({"protocol": "TCP", "port": TCP_PORT}),
    ];
    ports.extend(more.iter().map(|port| json!({"protocol": "TCP", "port": port})));
    json!({
        "to": [
            {"ipBlock": {"cidr": format!("{DESTINATIONS}/15")}},
            {"ipBlock": {"cidr": format!("{DESTINATIONS_V6}/64")}},
        ],
        "ports": ports,
    })
}

/// The policy of an index, with rules of egress.
pub(crate) fn policy(index: usize, rules: Vec<Value>) -> Value {
    json!({
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": format!("policy-{index:05}"), "namespace": "bench"},
        "spec": {
            "podSelector": {"matchLabels": {"app": "sender"}},
            "policyTypes": ["Egress"],
            "egress": rules,
        },
    })
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
