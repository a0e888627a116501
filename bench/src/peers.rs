//! What else forwards packets, on the same wire, under the same load, in turns with ringwall: forwarders without a policy
//! above, the kernel with the same policy below.

mod nft;
pub(crate) mod raw;

use std::{
    path::PathBuf,
    process::{Child, Command, ExitCode},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, anyhow, bail};
use clap::ValueEnum;
use ringwall_bpf::peers::Peers;
use ringwall_testbed::netns::Netns;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;

use crate::{
    arguments::{positive, seconds},
    generate::stream::Script,
    recorder::{Recorder, Recording},
    report::count,
    rounds::{Contender, interleave},
    samples::{Better, Plan, Reading, Row, Section},
    wire::{self, LoadedWire, WORKER_CPU, Wire},
};

/// Options of the benchmark.
#[derive(clap::Args, Clone, Debug)]
#[command(
    after_help = "Peers: l2fwd on ringwall's rings, a forwarder on raw rings, dpdk-testpmd (net_af_xdp: io and macswap; \
    Debian: apt-get install dpdk-dev, or DPDK_TESTPMD=PROGRAM), XDP with a hash table or without, and the kernel's \
    forwarding with nftables: conntrack, verdict map, interval set, a line per rule. Those that are missing are skipped.\n\n\
    Examples:\n  \
    ringwall-bench peers\n  \
    ringwall-bench peers --scale 1m --rounds 1                 # 100,000 rules, a million flows\n  \
    ringwall-bench peers --scale 1k,1m --only raw,nft-linear"
)]
pub(crate) struct Options {
    /// How often all of them take turns
    #[arg(long, default_value_t = 3, value_parser = positive::<usize>)]
    rounds: usize,
    /// How long one measurement counts, in seconds
    #[arg(long, default_value_t = 2.0, value_parser = seconds)]
    seconds: f64,
    /// How many rules and flows
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = [Scale::Small])]
    scale: Vec<Scale>,
    /// Only these peers, as their rows are named: raw, l2fwd, testpmd-io, testpmd-macswap, xdp-devmap, xdp-hash, kernel,
    /// nft-conntrack, nft-verdict-map, nft-interval-set, nft-linear
    #[arg(long, value_delimiter = ',', value_name = "PEER", value_parser = peer_name)]
    only: Vec<&'static str>,
    #[command(flatten)]
    recording: Recording,
}

impl Options {
    /// What `make bench` (or `make bench-full`) measures.
    pub(crate) fn suite(full: bool, rounds: usize) -> Self {
        Self {
            rounds,
            seconds: 2.0,
            scale: if full {
                vec![Scale::Small, Scale::Large]
            } else {
                vec![Scale::Small]
            },
            only: Vec::new(),
            recording: Recording::default(),
        }
    }

    fn wants(&self, peer: &str) -> bool {
        self.only.is_empty() || self.only.contains(&peer)
    }
}

/// The name of a peer.
fn peer_name(text: &str) -> Result<&'static str, String> {
    let names = PEERS.map(|(id, ..)| id);
    names
        .into_iter()
        .find(|name| *name == text)
        .ok_or_else(|| format!("the peers are {}", names.join(", ")))
}

/// How much there is of what costs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Scale {
    /// 1,000 rules, 1,000 flows
    #[value(name = "1k")]
    Small,
    /// 100,000 rules, a million flows
    #[value(name = "1m")]
    Large,
}

impl Scale {
    /// In ids of rows.
    fn name(self) -> &'static str {
        match self {
            Self::Small => "1k",
            Self::Large => "1m",
        }
    }

    fn rules(self) -> usize {
        match self {
            Self::Small => 1_000,
            Self::Large => 100_000,
        }
    }

    fn flows(self) -> u32 {
        match self {
            Self::Small => 1_000,
            Self::Large => 1_000_000,
        }
    }
}

/// Ring sizes of the raw forwarder that are tried; the best one is measured.
const RAW_RINGS: [u32; 4] = [256, 512, 1024, 2048];
/// How long a ring size is tried.
const RAW_TRIAL: Duration = Duration::from_millis(500);
/// What a peer takes to be ready, with room.
const BINDING: Duration = Duration::from_millis(500);
/// How long a peer that was asked to end may take.
const ENDING: Duration = Duration::from_secs(5);

pub(crate) fn run(options: &Options) -> anyhow::Result<ExitCode> {
    let mut recorder = options.recording.recorder();
    rows(options, &mut recorder)?;
    Ok(recorder.finish())
}

/// All rows.
pub(crate) fn rows(options: &Options, recorder: &mut Recorder) -> anyhow::Result<()> {
    options
        .scale
        .iter()
        .try_for_each(|scale| at_scale(options, recorder, *scale))
}

/// A peer: its name in ids, in tables, and its set-up.
const PEERS: [(&str, &str, &str); 11] = [
    (
        "raw",
        "raw AF_XDP rings",
        "ringwall-bench raw-forward, the best of four ring sizes; no policy, no flows",
    ),
    (
        "l2fwd",
        "l2fwd on ringwall's rings",
        "dataplane/xsk/examples/l2fwd; no policy, no flows",
    ),
    (
        "testpmd-io",
        "dpdk-testpmd io",
        "net_af_xdp, --forward-mode=io, rings of 512; no policy, no flows",
    ),
    (
        "testpmd-macswap",
        "dpdk-testpmd macswap",
        "net_af_xdp, --forward-mode=macswap, rings of 512; no policy, no flows",
    ),
    (
        "xdp-devmap",
        "XDP, devmap",
        "native XDP, bpf_redirect_map; no policy, no flows",
    ),
    (
        "xdp-hash",
        "XDP, hash and devmap",
        "native XDP, BPF_MAP_TYPE_HASH of flows that it learns; no policy",
    ),
    ("kernel", "kernel, routed", "ip_forward without a ruleset"),
    (
        "nft-conntrack",
        "kernel, nft, conntrack",
        "ct state established accept, then the verdict map",
    ),
    (
        "nft-verdict-map",
        "kernel, nft, verdict map",
        "map from source to the chain of its policies, an interval set each",
    ),
    (
        "nft-interval-set",
        "kernel, nft, interval set",
        "one set of address, protocol and port",
    ),
    (
        "nft-linear",
        "kernel, nft, a line per rule",
        "the rule that lets the load pass is the last one",
    ),
];

fn at_scale(options: &Options, recorder: &mut Recorder, scale: Scale) -> anyhow::Result<()> {
    let peers: Vec<_> = PEERS.into_iter().filter(|(id, ..)| options.wants(id)).collect();
    let plans: Vec<Plan> = peers
        .iter()
        .map(|(id, ..)| Plan {
            id: format!("peer-{}-{id}", scale.name()),
            title: format!(
                "wire, 64-byte frames, {} rules, {} flows, flooded",
                count(scale.rules() as u64),
                count(scale.flows().into())
            ),
            section: Section::Throughput,
            unit: "Mpps".into(),
            better: Better::Higher,
            target: None,
            parameters: [
                ("rules".to_owned(), scale.rules() as f64),
                ("flows".to_owned(), f64::from(scale.flows())),
            ]
            .into(),
        })
        .collect();
    recorder.measure(&plans, |machine| {
        let wire = Wire::new()?;
        let stream = wire::stream(Script::Udp, scale.flows(), None, false);
        let load = wire.load(&stream, 1)?;
        let field = Field {
            wire: &wire,
            load: &load,
            scale,
            station: stream.macs.1,
            warm_up: Duration::from_secs(1) + Duration::from_micros(2) * scale.flows(),
            time: Duration::from_secs_f64(options.seconds),
        };
        let more = wire::room_for(scale.flows().into());
        let ringwall = || {
            let forwarder = wire.ringwall(scale.rules(), &more)?;
            let reading = load.opened(&forwarder).and_then(|()| field.read());
            // Also after a failure: the next one needs the ports.
            let ended = forwarder.end();
            let reading = reading?;
            ended?;
            Ok(reading)
        };
        let mut ring = None;
        let mut contenders = vec![Contender::new(
            "ringwall",
            format!(
                "`ringwall run` on a wire, {} rules, a worker on CPU {WORKER_CPU}",
                count(scale.rules() as u64)
            ),
            ringwall,
        )];
        let mut raw_ring = Some(&mut ring);
        for (id, name, setup) in peers {
            let field = &field;
            let mut ring = if id == "raw" { raw_ring.take() } else { None };
            contenders.push(Contender::new(name, setup, move || match &mut ring {
                Some(ring) => field.raw(ring),
                None => field.peer(id),
            }));
        }
        let runs = interleave(options.rounds, &mut contenders);
        drop(contenders);
        Ok(plans
            .iter()
            .enumerate()
            .map(|(index, plan)| Row::compare(plan, machine, &runs, 0, Some(index + 1)))
            .collect())
    })
}

/// Where all of them are measured.
struct Field<'a> {
    wire: &'a Wire,
    load: &'a LoadedWire<'a>,
    scale: Scale,
    /// Whom the load is addressed to.
    station: [u8; 6],
    warm_up: Duration,
    time: Duration,
}

impl Field<'_> {
    fn gateway(&self) -> &Netns {
        &self.wire.bed.gateway
    }

    /// What arrives under flood.
    fn read(&self) -> anyhow::Result<Reading> {
        self.load.flood(self.warm_up, self.time)
    }

    fn peer(&self, id: &str) -> anyhow::Result<Reading> {
        match id {
            "l2fwd" => {
                let forwarder = self.wire.l2fwd()?;
                let reading = self.read();
                // Also after a failure: the next one needs the ports.
                let ended = forwarder.end();
                let reading = reading?;
                ended?;
                Ok(reading)
            }
            "testpmd-io" => self.testpmd("io"),
            "testpmd-macswap" => self.testpmd("macswap"),
            "xdp-devmap" => self.xdp(false),
            "xdp-hash" => self.xdp(true),
            "kernel" => self.kernel(None),
            "nft-conntrack" => self.kernel(Some(nft::Kind::Conntrack)),
            "nft-verdict-map" => self.kernel(Some(nft::Kind::VerdictMap)),
            "nft-interval-set" => self.kernel(Some(nft::Kind::IntervalSet)),
            "nft-linear" => self.kernel(Some(nft::Kind::Linear)),
            other => Err(anyhow!("no peer `{other}`")),
        }
    }

    /// The raw forwarder, with the ring size that was found to be the best when it was measured first.
    fn raw(&self, best: &mut Option<u32>) -> anyhow::Result<Reading> {
        let start = |ring: u32| {
            let mut command = Command::new(std::env::current_exe()?);
            command.env("RUST_BACKTRACE", "0"); // its error is enough
            command.args([
                "raw-forward",
                "in",
                "out",
                &ring.to_string(),
                &WORKER_CPU.to_string(),
            ]);
            Process::start(self.gateway(), command)
        };
        if best.is_none() {
            let mut rates = Vec::new();
            for ring in RAW_RINGS {
                let process = start(ring)?;
                // On a busy machine nothing may arrive in so short a time.
                let rate = self.load.flood(RAW_TRIAL, RAW_TRIAL);
                rates.push((rate.map_or(0.0, |reading| reading.value), ring));
                process.end()?;
            }
            *best = rates
                .into_iter()
                .max_by(|one, other| one.0.total_cmp(&other.0))
                .map(|(_, ring)| ring);
        }
        let ring = best.context("no ring size was tried")?;
        let process = start(ring)?;
        let reading = self.read()?;
        process.end()?;
        let mut detail = reading.detail;
        detail["ring"] = json!(ring);
        Ok(Reading { detail, ..reading })
    }

    fn testpmd(&self, mode: &str) -> anyhow::Result<Reading> {
        let program = testpmd()?;
        let mut command = Command::new(program);
        command.args([
            "-l",
            &format!("0,{WORKER_CPU}"),
            "--main-lcore",
            "0",
            "--no-huge",
            "-m",
            "512",
            "--no-pci",
        ]);
        command.args([
            "--no-telemetry",
            "--file-prefix",
            &format!("ringwall-bench-{}", std::process::id()),
        ]);
        for (number, interface) in ["in", "out"].iter().enumerate() {
            command.args(["--vdev", &format!("net_af_xdp{number},iface={interface}")]);
        }
        command.args([
            "--",
            "--auto-start",
            "--stats-period",
            "3600",
            "--rxd",
            "512",
            "--txd",
            "512",
        ]);
        command.args([
            "--nb-cores",
            "1",
            "--total-num-mbufs",
            "16384",
            &format!("--forward-mode={mode}"),
        ]);
        // It attaches its programs without a link, so they stay if it is killed.
        let _off = ProgramsOff(self.gateway());
        let process = Process::start(self.gateway(), command)?;
        thread::sleep(4 * BINDING);
        let reading = self.read();
        // What it says explains more than that nothing arrived.
        let words = process.interrupt()?;
        reading.with_context(|| words.lines().rev().take(5).collect::<Vec<_>>().join("; "))
    }

    fn xdp(&self, knows_flows: bool) -> anyhow::Result<Reading> {
        let peers = Peers::load()?;
        let _forwarding = self.gateway().run(|| peers.forward("in", "out", knows_flows))??;
        self.read()
    }

    /// The kernel's routing, with a ruleset or without.
    fn kernel(&self, ruleset: Option<nft::Kind>) -> anyhow::Result<Reading> {
        // Redirected frames are taken only by a device with a program.
        let generator = self.load.generator();
        let _pass = self.gateway().run(|| generator.pass("in"))??;
        let _routing = Routing::start(self.gateway(), self.station)?;
        let _ruleset = ruleset
            .map(|kind| {
                nft::Loaded::load(
                    self.gateway(),
                    &self.wire.bed,
                    kind,
                    &wire::objects(self.scale.rules()),
                )
            })
            .transpose()?;
        // After the ruleset, with which the kernel begins to follow connections.
        let _tracked = matches!(ruleset, Some(nft::Kind::Conntrack))
            .then(|| nft::Tracked::at_least(self.scale.flows() * 2))
            .transpose()?;
        if ruleset == Some(nft::Kind::Conntrack) {
            // As ringwall's are: first packets are not what is asked about.
            self.load.send_each_flow(false)?;
        }
        self.read()
    }
}

/// Where testpmd is.
fn testpmd() -> anyhow::Result<PathBuf> {
    if let Some(program) = std::env::var_os("DPDK_TESTPMD") {
        return Ok(program.into());
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .map(|folder| folder.join("dpdk-testpmd"))
        .find(|program| program.is_file())
        .context("dpdk-testpmd is missing: apt-get install dpdk-dev, or name it in DPDK_TESTPMD")
}

/// A peer that is a program; killed when this is dropped.
struct Process(Option<Child>);

impl Process {
    /// Starts it in a namespace, and gives it the time that it takes to bind.
    fn start(namespace: &Netns, command: Command) -> anyhow::Result<Self> {
        let mut process = Self(Some(namespace.spawn(command)?));
        let start = Instant::now();
        while start.elapsed() < BINDING {
            if let Some(child) = &mut process.0
                && let Some(status) = child.try_wait()?
            {
                bail!("it ended at once ({status}): {}", process.end()?);
            }
            thread::sleep(BINDING / 10);
        }
        Ok(process)
    }

    /// Asks it to end, which it does as it likes; answers what it printed.
    fn interrupt(mut self) -> anyhow::Result<String> {
        if let Some(child) = &mut self.0 {
            kill_process(Pid::from_child(child), Signal::INT).context("ending it")?;
            let start = Instant::now();
            while child.try_wait()?.is_none() && start.elapsed() < ENDING {
                thread::sleep(BINDING / 10);
            }
        }
        self.end()
    }

    /// Ends it; answers what it printed.
    fn end(mut self) -> anyhow::Result<String> {
        let Some(mut child) = self.0.take() else {
            return Ok(String::new());
        };
        let _ = child.kill(); // it may have ended
        let output = child.wait_with_output()?;
        let text = [output.stdout, output.stderr].concat();
        Ok(String::from_utf8_lossy(&text).trim().to_owned())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Some(child) = &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Takes every program off the gateway's ports when this is dropped.
struct ProgramsOff<'a>(&'a Netns);

impl Drop for ProgramsOff<'_> {
    fn drop(&mut self) {
        for interface in ["in", "out"] {
            let _ = self.0.ip(&[format!("link set {interface} xdp off")]); // it may have none
        }
    }
}

/// The gateway routes the load from `in` to `out`, until this is dropped.
struct Routing<'a>(&'a Netns);

impl<'a> Routing<'a> {
    fn start(gateway: &'a Netns, station: [u8; 6]) -> anyhow::Result<Self> {
        let [a, b, c, d, e, f] = station;
        let routing = Self(gateway);
        gateway.ip(&[
            format!("link set in address {a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}"),
            "addr add 100.64.0.1/24 dev in".to_owned(),
            "addr add 100.64.1.1/24 dev out".to_owned(),
            "neigh replace 100.64.1.2 lladdr 02:00:00:00:00:09 dev out".to_owned(),
            "route replace default via 100.64.1.2 dev out".to_owned(),
        ])?;
        for key in ["all", "in", "out"] {
            gateway.sysctl(&format!("net/ipv4/conf/{key}/rp_filter"), "0")?;
        }
        gateway.sysctl("net/ipv4/ip_forward", "1")?;
        Ok(routing)
    }
}

impl Drop for Routing<'_> {
    fn drop(&mut self) {
        // Each may have failed to begin.
        let _ = self.0.sysctl("net/ipv4/ip_forward", "0");
        for line in ["addr flush dev in", "addr flush dev out", "neigh flush dev out"] {
            let _ = self.0.ip(&[line]);
        }
    }
}
