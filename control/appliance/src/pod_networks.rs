//! Where pods live, as the kernel's programs have to know it: the configured networks, and what the newest snapshot says
//! (nodes' networks, pods whose address lies in none).

use std::{
    collections::BTreeSet,
    net::IpAddr,
    sync::atomic::Ordering,
    time::{Duration, Instant},
};

use ipnet::IpNet;
use ringwall_bpf::MAX_PREFIXES;
use ringwall_dataplane::classify::Snapshot;

use super::{runtime::DataplaneRuntime, snapshot_server::locked};

/// Between two looks whether the machine stops.
const LOOK: Duration = Duration::from_millis(500);
/// After a snapshot, at least so many times as long as it took to follow it.
const PAUSE_SHARE: u32 = 20;

/// The networks.
#[derive(Debug, Default)]
pub struct PodNetworks {
    /// Of the configuration.
    pub configured: Vec<IpNet>,
    /// All, joined where they can be: what the programs hold.
    pub known: Vec<IpNet>,
    /// The snapshot that they are of.
    generation: u64,
    /// What is wrong, in words.
    pub problem: Option<String>,
}

impl PodNetworks {
    /// Of the configuration alone.
    pub fn new(configured: Vec<IpNet>) -> Self {
        Self {
            known: join(&configured, &[]),
            configured,
            generation: 0,
            problem: None,
        }
    }

    /// Takes what a snapshot says; whether that changes anything.
    pub fn take(&mut self, snapshot: &Snapshot) -> bool {
        if snapshot.generation().0 == self.generation {
            return false;
        }
        self.generation = snapshot.generation().0;
        let mut known = join(&self.configured, &snapshot.pod_networks());
        self.problem = None;
        if known.len() > MAX_PREFIXES {
            self.problem = Some(format!(
                "{} pod addresses lie outside the pod networks, and the BPF programs hold {MAX_PREFIXES}: without a dataplane, every address counts as a pod's; add the networks to cluster.podCIDRs",
                known.len()
            ));
            known = everything();
        }
        let changed = known != self.known;
        self.known = known;
        changed
    }
}

fn everything() -> Vec<IpNet> {
    [IpAddr::from([0; 4]), IpAddr::from([0; 16])]
        .into_iter()
        .filter_map(|address| IpNet::new(address, 0).ok())
        .collect()
}

fn join(configured: &[IpNet], found: &[(IpAddr, u8)]) -> Vec<IpNet> {
    let found = found
        .iter()
        .filter_map(|(address, length)| IpNet::new(*address, *length).ok());
    let all: Vec<IpNet> = configured.iter().map(IpNet::trunc).chain(found).collect();
    let joined: BTreeSet<IpNet> = IpNet::aggregate(&all).into_iter().collect();
    joined.into_iter().collect()
}

impl DataplaneRuntime {
    /// Takes what the newest snapshot says of pods, and tells the programs.
    pub fn learn_pods(&self) {
        let Some(snapshot) = self.publication.remembered(|_| true) else {
            return;
        };
        let known = {
            let mut pods = locked(&self.pods);
            if !pods.take(&snapshot) {
                return;
            }
            pods.known.clone()
        };
        for port in locked(&self.live).iter_mut() {
            if let Some(attached) = &mut port.attached
                && let Err(error) = attached.set_pod_cidrs(&known)
            {
                tracing::error!(port = port.planned.name, %error, "cannot tell the XDP program the pod networks");
                port.problem = Some(error.to_string());
            }
        }
    }

    /// Follows the snapshots until the machine stops. For a thread of its own.
    pub fn follow_pods(&self) {
        while !self.stop.load(Ordering::Relaxed) {
            let began = Instant::now();
            self.learn_pods();
            std::thread::sleep(began.elapsed() * PAUSE_SHARE);
            let generation = locked(&self.pods).generation;
            self.publication.wait_for_other_than(generation, LOOK);
        }
    }
}
