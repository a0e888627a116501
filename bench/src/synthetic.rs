//! Synthetic clusters, as a folder of manifests or behind an API server's list and watch.

use std::{
    net::{SocketAddr, TcpListener},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use ringwall_testbed::{
    api_server::ApiServer,
    synthetic::{Churn, Spec, Synthetic},
};

/// Options of the command.
#[derive(clap::Args, Debug)]
#[command(after_help = "Examples:\n  \
    ringwall-bench synthetic --pods 10000 --namespaces 100 --policies 1000 --out /tmp/cluster\n  \
    ringwall-bench synthetic --pods 100000 --namespaces 1000 --policies 10000 --full \\\n    \
      --serve 127.0.0.1:8001 --kubeconfig /tmp/kubeconfig --events-per-second 1000\n\n\
    The numbers behind the defaults are in the documentation of ringwall_testbed::synthetic::Spec.")]
pub(crate) struct Options {
    #[command(flatten)]
    shape: Shape,
    /// Write the cluster as manifests into this folder, which must be empty or absent
    #[arg(long, value_name = "DIR", required_unless_present = "serve")]
    out: Option<PathBuf>,
    /// Serve the cluster on this address as an API server does, without credentials, until interrupted
    #[arg(long, value_name = "ADDRESS")]
    serve: Option<SocketAddr>,
    /// With --serve: write a kubeconfig for it
    #[arg(long, value_name = "FILE", requires = "serve")]
    kubeconfig: Option<PathBuf>,
    /// With --serve: how much happens
    #[arg(long, value_name = "N", default_value_t = 0, requires = "serve")]
    events_per_second: u32,
}

/// What the cluster is like.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct Shape {
    /// Pods
    #[arg(long, default_value_t = 10_000)]
    pub(crate) pods: usize,
    /// Namespaces
    #[arg(long, default_value_t = 100)]
    pub(crate) namespaces: usize,
    /// NetworkPolicies
    #[arg(long, default_value_t = 1_000)]
    pub(crate) policies: usize,
    /// Nodes; one for 30 pods where absent
    #[arg(long)]
    nodes: Option<usize>,
    /// Of all choices: the same seed, the same cluster
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Share of the namespaces with policies
    #[arg(long, value_name = "SHARE")]
    protected: Option<f64>,
    /// Share of the namespaces whose policies isolate egress
    #[arg(long, value_name = "SHARE")]
    egress: Option<f64>,
    /// Share of the peers that are address blocks
    #[arg(long, value_name = "SHARE")]
    blocks: Option<f64>,
    /// Share of the blocks with `except`
    #[arg(long, value_name = "SHARE")]
    excepts: Option<f64>,
    /// Share of the ports that are ranges
    #[arg(long, value_name = "SHARE")]
    ranges: Option<f64>,
    /// Share of the ports that are names
    #[arg(long, value_name = "SHARE")]
    named: Option<f64>,
    /// Share of the pods on the host network
    #[arg(long, value_name = "SHARE")]
    host_network: Option<f64>,
    /// IPv6 besides IPv4
    #[arg(long)]
    dual_stack: bool,
    /// Pods as large as an API server's, not only what a manifest needs
    #[arg(long)]
    full: bool,
    /// Only pods change, neither policies nor namespaces
    #[arg(long)]
    churn_of_pods: bool,
}

impl Shape {
    pub(crate) fn spec(&self) -> Spec {
        let usual = Spec::sized(self.policies, self.pods, self.namespaces);
        Spec {
            seed: self.seed,
            nodes: self.nodes.unwrap_or(usual.nodes),
            protected: self.protected.unwrap_or(usual.protected),
            egress: self.egress.unwrap_or(usual.egress),
            blocks: self.blocks.unwrap_or(usual.blocks),
            excepts: self.excepts.unwrap_or(usual.excepts),
            ranges: self.ranges.unwrap_or(usual.ranges),
            named: self.named.unwrap_or(usual.named),
            host_network: self.host_network.unwrap_or(usual.host_network),
            dual_stack: self.dual_stack,
            full: self.full,
            churn: if self.churn_of_pods {
                Churn::of_pods()
            } else {
                Churn::default()
            },
            ..usual
        }
    }
}

pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    let start = Instant::now();
    let cluster = Synthetic::new(options.shape.spec())?;
    let counts = cluster.counts();
    eprintln!(
        "{} pods of {} workloads in {} namespaces on {} nodes, {} policies, in {:.1} s",
        counts.pods,
        counts.workloads,
        counts.namespaces,
        counts.nodes,
        counts.policies,
        start.elapsed().as_secs_f64()
    );
    if let Some(folder) = &options.out {
        write(&cluster, folder)?;
    }
    match options.serve {
        Some(address) => serve(options, cluster, address),
        None => Ok(()),
    }
}

fn write(cluster: &Synthetic, folder: &Path) -> anyhow::Result<()> {
    let taken = folder
        .read_dir()
        .is_ok_and(|mut entries| entries.next().is_some());
    if taken {
        bail!(
            "{} is not empty: its files would be part of the cluster",
            folder.display()
        );
    }
    Ok(cluster.write(folder)?)
}

fn serve(options: &Options, mut cluster: Synthetic, address: SocketAddr) -> anyhow::Result<()> {
    let listener = TcpListener::bind(address).with_context(|| format!("cannot listen on {address}"))?;
    let server = ApiServer::start_on(listener)?;
    server.remember(200_000);
    server.load(cluster.objects());
    if let Some(file) = &options.kubeconfig {
        std::fs::write(file, server.kubeconfig("none"))
            .with_context(|| format!("cannot write {}", file.display()))?;
    }
    eprintln!("serving http://{} until interrupted", server.address());
    let pace = Pace::per_second(options.events_per_second.max(1));
    let mut sent = 0;
    loop {
        if options.events_per_second == 0 {
            std::thread::sleep(Duration::from_secs(3600));
            continue;
        }
        pace.wait(sent);
        server.event(cluster.churn());
        sent += 1;
    }
}

/// Even steps in time, kept by the clock: a late step does not make the next ones late.
#[derive(Debug)]
pub(crate) struct Pace {
    start: Instant,
    per_second: u32,
}

impl Pace {
    /// Begins now.
    pub(crate) fn per_second(per_second: u32) -> Self {
        Self {
            start: Instant::now(),
            per_second,
        }
    }

    /// Waits until the `number`-th step, from 0, is due.
    pub(crate) fn wait(&self, number: u64) {
        let due = self.start + Duration::from_nanos(number * 1_000_000_000 / u64::from(self.per_second));
        if let Some(left) = due.checked_duration_since(Instant::now()) {
            std::thread::sleep(left);
        }
    }
}
