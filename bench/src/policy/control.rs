//! The real control process, fed by an API server of this process over HTTP.

use std::{
    collections::HashMap,
    fs,
    net::IpAddr,
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, anyhow, bail};
use ringwall_testbed::{
    api_server::ApiServer,
    appliance::built_binary,
    scratch::Scratch,
    synthetic::{Event, EventKind, POD_CIDRS, SERVICE_CIDR, Synthetic},
};
use serde_json::Value;

use super::{
    Dataplane, Size, cluster,
    in_process::{AdoptionTracker, Established, ExpectedOwner, InProcess},
    report::{Report, Target},
    two_process::TwoProcess,
};
use crate::figures::Figures;

/// How long a control process may take for its first snapshot.
const START_TIMEOUT: Duration = Duration::from_secs(120);
/// Events that the API server keeps.
const REMEMBERED: usize = 50_000;
/// Clock ticks of /proc in a second, on every Linux of today.
const TICKS: f64 = 100.0;

/// API server, control process and dataplane.
pub(super) struct Bed {
    pub(super) synthetic: Synthetic,
    pub(super) server: ApiServer,
    running: Running,
}

/// Control, and the dataplane that it feeds.
enum Running {
    /// Frames in the memory of this process.
    Memory(Box<ControlOnly>),
    /// Both processes of `ringwall run`.
    AfXdp(Box<TwoProcess>),
}

impl Bed {
    /// Starts everything and waits for the first snapshot. `verify` is the configuration's; `nodes` says whether nodes
    /// change, too.
    pub(super) fn start(size: Size, verify: &str, dataplane: Dataplane, nodes: bool) -> anyhow::Result<Self> {
        let synthetic = cluster::synthetic(size, nodes)?;
        let serve = || -> anyhow::Result<ApiServer> {
            let server = ApiServer::start()?;
            server.remember(REMEMBERED);
            server.load(synthetic.objects());
            Ok(server)
        };
        let (running, server) = match dataplane {
            Dataplane::Memory => {
                let server = serve()?;
                (
                    Running::Memory(Box::new(ControlOnly::start(&server, verify)?)),
                    server,
                )
            }
            Dataplane::Afxdp => {
                let (two_process, server) = TwoProcess::start(serve, verify)?;
                (Running::AfXdp(Box::new(two_process)), server)
            }
        };
        Ok(Self {
            synthetic,
            server,
            running,
        })
    }

    /// From the start of the processes to the first snapshot at the workers.
    pub(super) fn first(&self) -> Duration {
        match &self.running {
            Running::Memory(alone) => alone.first,
            Running::AfXdp(two_process) => two_process.first,
        }
    }

    /// Snapshots that all workers adopted so far.
    pub(super) fn adopted(&self) -> u64 {
        match &self.running {
            Running::Memory(alone) => alone.in_process.adopted().unwrap_or(0),
            Running::AfXdp(two_process) => two_process.adopted(),
        }
    }

    /// Looks what has arrived at the workers since the last look, which `seen` is about.
    pub(super) fn poll_adoptions(&self, arrivals: &mut AdoptionTracker, seen: &mut Option<u64>) {
        match &self.running {
            Running::Memory(alone) => alone.in_process.poll_adoptions(arrivals, seen),
            Running::AfXdp(two_process) => two_process.poll_adoptions(arrivals),
        }
    }

    /// Lets connections pass between these addresses from now on; answers how many it found.
    pub(super) fn establish(&self, addresses: &[IpAddr], wanted: usize) -> anyhow::Result<usize> {
        match &self.running {
            Running::Memory(alone) => Ok(alone.in_process.establish(addresses, wanted)),
            Running::AfXdp(two_process) => two_process.establish(addresses, wanted),
        }
    }

    /// What became of their packets.
    pub(super) fn established(&self) -> anyhow::Result<Established> {
        match &self.running {
            Running::Memory(alone) => Ok(alone.in_process.established()),
            Running::AfXdp(two_process) => two_process.established(),
        }
    }

    /// The end of the log.
    pub(super) fn log_text(&self) -> String {
        let text = match &self.running {
            Running::Memory(alone) => fs::read_to_string(&alone.log).unwrap_or_default(),
            Running::AfXdp(two_process) => two_process.log_text(),
        };
        last_lines(&text)
    }

    /// Fails if what was started has ended.
    pub(super) fn check_alive(&mut self) -> anyhow::Result<()> {
        match &mut self.running {
            Running::Memory(alone) => alone.check_alive(),
            Running::AfXdp(two_process) => two_process.check_alive(),
        }
    }

    /// Process id of control.
    fn control(&self) -> u32 {
        match &self.running {
            Running::Memory(alone) => alone.child.id(),
            Running::AfXdp(two_process) => two_process.control,
        }
    }

    /// Bytes of a line of its /proc/status: VmRSS, VmHWM.
    fn memory(&self, line: &str) -> anyhow::Result<f64> {
        let pid = self.control();
        let text = fs::read_to_string(format!("/proc/{pid}/status"))?;
        let kilobytes = text
            .lines()
            .find_map(|it| {
                it.strip_prefix(line)?
                    .trim_start_matches(':')
                    .trim()
                    .strip_suffix(" kB")
            })
            .ok_or_else(|| anyhow!("/proc/{pid}/status has no {line}"))?;
        Ok(kilobytes.trim().parse::<f64>()? * 1024.0)
    }

    /// Seconds of CPU that it has had.
    pub(super) fn cpu(&self) -> anyhow::Result<f64> {
        let text = fs::read_to_string(format!("/proc/{}/stat", self.control()))?;
        // The name in brackets may hold spaces.
        let (_, rest) = text
            .rsplit_once(')')
            .ok_or_else(|| anyhow!("/proc/PID/stat is odd: {text}"))?;
        let fields: Vec<&str> = rest.split_whitespace().collect();
        let ticks = |place: usize| {
            fields
                .get(place)
                .and_then(|it| it.parse::<f64>().ok())
                .unwrap_or(0.0)
        };
        Ok((ticks(11) + ticks(12)) / TICKS)
    }
}

fn last_lines(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(20)..].join("\n")
}

/// A control process, and a dataplane in this one.
struct ControlOnly {
    in_process: InProcess,
    child: Child,
    first: Duration,
    log: PathBuf,
    _scratch: Scratch,
}

impl ControlOnly {
    fn start(server: &ApiServer, verify: &str) -> anyhow::Result<Self> {
        let binary = built_binary()?;
        let scratch = Scratch::new()?;
        let path = |name: &str| scratch.path().join(name);
        fs::create_dir(path("run")).context("make a folder for sockets")?;
        fs::write(path("kubeconfig"), server.kubeconfig("none"))?;
        let config = format!(
            "apiVersion: ringwall.io/v1alpha1\nkind: Gateway\nname: bench\nmode: enforce\nverify: {verify}\n\
             cluster: {{podCIDRs: [{1}], serviceCIDRs: [{SERVICE_CIDR}]}}\n\
             source: {{kubeconfig: {0}/kubeconfig}}\n\
             interfaces:\n- {{name: lan0, side: in_process}}\n- {{name: lan1, side: outside}}\n\
             wires:\n- {{name: w0, interfaces: [lan0, lan1], failMode: closed}}\n\
             runtimeDir: {0}/run\nstateDir: {0}/state\ntelemetry: {{metricsListen: \"127.0.0.1:0\"}}\n",
            scratch.path().display(),
            POD_CIDRS.join(", ")
        );
        fs::write(path("config.yaml"), config)?;
        let in_process = InProcess::start(&path("run"))?;
        let log = path("log");
        let start = Instant::now();
        let child = Command::new(&binary)
            .arg("control")
            .arg("--config")
            .arg(path("config.yaml"))
            .env("RUST_LOG", "ringwall=warn")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(fs::File::create(&log)?)
            .spawn()
            .with_context(|| format!("cannot start {}", binary.display()))?;
        let mut alone = Self {
            in_process,
            child,
            first: Duration::ZERO,
            log,
            _scratch: scratch,
        };
        while alone.in_process.adopted().is_none_or(|sequence| sequence == 0) {
            alone.check_alive()?;
            if start.elapsed() > START_TIMEOUT {
                bail!(
                    "no snapshot within {} s; control says:\n{}",
                    START_TIMEOUT.as_secs(),
                    alone.said()
                );
            }
            std::thread::sleep(Duration::from_micros(200));
        }
        alone.first = start.elapsed();
        Ok(alone)
    }

    fn said(&self) -> String {
        last_lines(&fs::read_to_string(&self.log).unwrap_or_default())
    }

    fn check_alive(&mut self) -> anyhow::Result<()> {
        match self.child.try_wait()? {
            None => Ok(()),
            Some(status) => bail!("control ended ({status}):\n{}", self.said()),
        }
    }
}

impl Drop for ControlOnly {
    fn drop(&mut self) {
        // It has ended already: as well.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Who has which address, as the events so far say.
#[derive(Debug, Default)]
pub(super) struct Owners(HashMap<IpAddr, (String, String)>);

impl Owners {
    /// As the cluster is now.
    pub(super) fn of(synthetic: &Synthetic) -> Self {
        let mut owners = Self::default();
        for object in synthetic.objects() {
            owners.said(&Event {
                kind: EventKind::Added,
                object,
            });
        }
        owners
    }

    /// Addresses of pods, in order.
    pub(super) fn addresses(&self) -> Vec<IpAddr> {
        let mut addresses: Vec<IpAddr> = self.0.keys().copied().collect();
        addresses.sort_unstable();
        addresses
    }

    /// What an event says about an address; None where nothing changes for any.
    pub(super) fn said(&mut self, event: &Event) -> Option<ExpectedOwner> {
        let pod = &event.object;
        let text = |pointer: &str| pod.pointer(pointer).and_then(Value::as_str);
        if text("/kind") != Some("Pod") || pod.pointer("/spec/hostNetwork").is_some() {
            return None;
        }
        let address: IpAddr = text("/status/podIP")?.parse().ok()?;
        let pod = (
            text("/metadata/namespace")?.to_owned(),
            text("/metadata/name")?.to_owned(),
        );
        let leaves = event.kind == EventKind::Deleted || text("/status/phase") == Some("Succeeded");
        let before = self.0.get(&address);
        if leaves {
            // What it had may have gone to another before.
            before.filter(|owner| **owner == pod)?;
            self.0.remove(&address);
            return Some(ExpectedOwner { address, owner: None });
        }
        if before == Some(&pod) {
            return None;
        }
        self.0.insert(address, pod.clone());
        Some(ExpectedOwner {
            address,
            owner: Some(pod),
        })
    }
}

pub(super) fn memory(size: Size, dataplane: Dataplane, report: &mut Report) -> anyhow::Result<()> {
    let bed = Bed::start(size, "changed", dataplane, false)?;
    std::thread::sleep(Duration::from_secs(2));
    let words = size.words();
    let target = if size == Size::Large {
        Target::Most(2.0)
    } else {
        Target::None
    };
    let most = Figures::of(vec![bed.memory("VmHWM")? / 1e9], "GB");
    report.add(
        "memory",
        format!("control at its most, {words}"),
        target,
        most,
        "resident, HTTP watch, pods of 4 kB",
    )?;
    let now = Figures::of(vec![bed.memory("VmRSS")? / 1e9], "GB");
    report.add(
        "memory",
        format!("control afterwards, {words}"),
        Target::None,
        now,
        "",
    )?;
    let first = Figures::of(vec![bed.first().as_secs_f64()], "s");
    report.add(
        "memory",
        format!("start to first snapshot adopted, {words}"),
        Target::None,
        first,
        "",
    )
}
