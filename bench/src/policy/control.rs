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
    Size, cluster,
    inside::{Inside, Said},
    report::{Report, Target},
};
use crate::figures::Figures;

/// How long a control process may take for its first snapshot.
const PATIENCE: Duration = Duration::from_secs(120);
/// Events that the API server keeps.
const REMEMBERED: usize = 50_000;
/// Clock ticks of /proc in a second, on every Linux of today.
const TICKS: f64 = 100.0;

/// API server, control process and dataplane.
pub(super) struct Bed {
    pub(super) synthetic: Synthetic,
    pub(super) server: ApiServer,
    pub(super) inside: Inside,
    child: Child,
    /// From the start of the control process to the first snapshot at the workers.
    pub(super) first: Duration,
    log: PathBuf,
    _scratch: Scratch,
}

impl Bed {
    /// Starts everything and waits for the first snapshot. `verify` is the configuration's.
    pub(super) fn start(size: Size, verify: &str) -> anyhow::Result<Self> {
        let binary = built_binary()?;
        let synthetic = cluster::synthetic(size)?;
        let server = ApiServer::start()?;
        server.remember(REMEMBERED);
        server.load(synthetic.objects());
        let scratch = Scratch::new()?;
        let path = |name: &str| scratch.path().join(name);
        fs::create_dir(path("run")).context("make a folder for sockets")?;
        fs::write(path("kubeconfig"), server.kubeconfig("none"))?;
        let config = format!(
            "apiVersion: ringwall.io/v1alpha1\nkind: Gateway\nname: bench\nmode: enforce\nverify: {verify}\n\
             cluster: {{podCIDRs: [{1}], serviceCIDRs: [{SERVICE_CIDR}]}}\n\
             source: {{kubeconfig: {0}/kubeconfig}}\n\
             interfaces:\n- {{name: lan0, side: inside}}\n- {{name: lan1, side: outside}}\n\
             wires:\n- {{name: w0, interfaces: [lan0, lan1], failMode: closed}}\n\
             runtimeDir: {0}/run\nstateDir: {0}/state\ntelemetry: {{metricsListen: \"127.0.0.1:0\"}}\n",
            scratch.path().display(),
            POD_CIDRS.join(", ")
        );
        fs::write(path("config.yaml"), config)?;
        let inside = Inside::start(&path("run"))?;
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
        let mut bed = Self {
            synthetic,
            server,
            inside,
            child,
            first: Duration::ZERO,
            log,
            _scratch: scratch,
        };
        while bed.inside.adopted().is_none_or(|sequence| sequence == 0) {
            bed.lives()?;
            if start.elapsed() > PATIENCE {
                bail!(
                    "no snapshot within {} s; control says:\n{}",
                    PATIENCE.as_secs(),
                    bed.said()
                );
            }
            std::thread::sleep(Duration::from_micros(200));
        }
        bed.first = start.elapsed();
        Ok(bed)
    }

    /// The end of its log.
    pub(super) fn said(&self) -> String {
        let text = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(20)..].join("\n")
    }

    /// Fails if the control process has ended.
    pub(super) fn lives(&mut self) -> anyhow::Result<()> {
        match self.child.try_wait()? {
            None => Ok(()),
            Some(status) => bail!("control ended ({status}):\n{}", self.said()),
        }
    }

    /// Bytes of a line of its /proc/status: VmRSS, VmHWM.
    fn memory(&self, line: &str) -> anyhow::Result<f64> {
        let text = fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let kilobytes = text
            .lines()
            .find_map(|it| {
                it.strip_prefix(line)?
                    .trim_start_matches(':')
                    .trim()
                    .strip_suffix(" kB")
            })
            .ok_or_else(|| anyhow!("/proc/{}/status has no {line}", self.child.id()))?;
        Ok(kilobytes.trim().parse::<f64>()? * 1024.0)
    }

    /// Seconds of CPU that it has had.
    pub(super) fn cpu(&self) -> anyhow::Result<f64> {
        let text = fs::read_to_string(format!("/proc/{}/stat", self.child.id()))?;
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

impl Drop for Bed {
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
    pub(super) fn said(&mut self, event: &Event) -> Option<Said> {
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
            return Some(Said { address, owner: None });
        }
        if before == Some(&pod) {
            return None;
        }
        self.0.insert(address, pod.clone());
        Some(Said {
            address,
            owner: Some(pod),
        })
    }
}

pub(super) fn memory(size: Size, report: &mut Report) -> anyhow::Result<()> {
    let bed = Bed::start(size, "changed")?;
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
    let first = Figures::of(vec![bed.first.as_secs_f64()], "s");
    report.add(
        "memory",
        format!("start to first snapshot adopted, {words}"),
        Target::None,
        first,
        "",
    )
}
