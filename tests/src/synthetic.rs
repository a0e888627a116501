//! Synthetic clusters: any size, the same for the same [`Spec`], with what happens in them afterwards.
//!
//! ```
//! use ringwall_testbed::synthetic::{Spec, Synthetic};
//! let mut cluster = Synthetic::new(Spec::sized(100, 1_000, 20)).unwrap();
//! let objects: Vec<serde_json::Value> = cluster.objects().collect();
//! assert_eq!(cluster.counts().pods, 1_000);
//! let event = cluster.churn(); // e.g. MODIFIED, a pod that now has its address
//! println!("{} {}", event.kind.word(), event.object["metadata"]["name"]);
//! ```
//!
//! Addresses: pods in 10.0.0.0/8, a /24 for each node (fd00:10::/32, a /64); nodes in 172.16.0.0/12 (fd00:ac10::/64); Services
//! in 10.96.0.0/12; what blocks name in 198.18.0.0/15 and 2001:db8::/32.

mod catalogue;
mod churn;
mod object;
mod policy;
pub mod random;
mod spec;

use std::{collections::BTreeSet, path::Path};

use serde_json::Value;

use self::{
    catalogue::{APPS, App, Controller, SYSTEM, TEAMS},
    churn::Script,
    policy::{Block, Policy},
    random::{Random, long_tailed_parts},
};
pub use self::{
    churn::{Event, EventKind},
    spec::{Churn, Spec, SpecError},
};
use crate::{BedError, Result, manifests};

/// The network of the cluster's Services, for configurations.
pub const SERVICE_CIDR: &str = "10.96.0.0/12";

/// The networks of the cluster's pods, for configurations: all that the nodes' networks can be.
pub const POD_CIDRS: [&str; 2] = ["10.0.0.0/10", "10.64.0.0/11"];

/// A threshold of Kubernetes SIG Scalability.
const MOST_PODS_OF_NAMESPACE: usize = 3_000;
/// A threshold of Kubernetes SIG Scalability, there for the endpoints of a Service.
const MOST_PODS_OF_WORKLOAD: usize = 250;

/// A synthetic cluster as it is now.
#[derive(Clone, Debug)]
pub struct Synthetic {
    spec: Spec,
    random: Random,
    namespaces: Vec<Space>,
    workloads: Vec<Workload>,
    /// Pods that are gone leave a hole.
    pods: Vec<Option<Pod>>,
    live_pods: usize,
    nodes: Vec<Node>,
    policies: Vec<Policy>,
    blocks: Vec<Block>,
    /// Counts every object that ever was: uids, times, names.
    serial: u64,
    scripts: Vec<Script>,
}

/// How much there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counts {
    /// Namespaces.
    pub namespaces: usize,
    /// Nodes.
    pub nodes: usize,
    /// Workloads: groups of like pods.
    pub workloads: usize,
    /// Pods.
    pub pods: usize,
    /// NetworkPolicies.
    pub policies: usize,
}

/// A namespace.
#[derive(Clone, Debug)]
struct Space {
    name: String,
    team: &'static str,
    environment: &'static str,
    serial: u64,
    /// Whether its policies isolate egress, too.
    egress: bool,
    /// Whether its pods may reach each other, whatever else is said.
    open_inside: bool,
    /// One of those that every cluster has: it stays.
    system: bool,
    life: Life,
    workloads: Vec<usize>,
    /// Its pods, by place; none of them gone.
    pods: BTreeSet<usize>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Life {
    Active,
    Terminating,
    Gone,
}

/// A group of like pods.
#[derive(Clone, Debug)]
struct Workload {
    space: usize,
    app: &'static App,
    /// The first of an app has its name, the others a number.
    instance: String,
    version: u32,
    template: u32,
    /// Its pods, by place; none of them gone.
    pods: Vec<usize>,
    /// How many it should have; what else changes it brings it back there.
    wanted: usize,
    /// Gone with its namespace.
    gone: bool,
}

/// How far a pod has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Created,
    Scheduled,
    Running,
    Ready,
    Finished,
    Terminating,
}

#[derive(Clone, Debug)]
struct Pod {
    workload: usize,
    name: String,
    serial: u64,
    stage: Stage,
    host_network: bool,
    version: u32,
    template: u32,
    role: Option<&'static str>,
    canary: bool,
    node: Option<usize>,
    /// The last byte of its address. A finished pod still says it, but others may have it.
    slot: Option<u8>,
    holds_address: bool,
}

/// A node gives its addresses out in turn, as host-local does: one that was freed is not taken at once.
#[derive(Clone, Debug)]
struct Node {
    serial: u64,
    /// How often it has said that it is there.
    beats: u32,
    gone: bool,
    taken: [bool; 256],
    next: u8,
}

impl Node {
    /// A free address's last byte, from 2 to 254; None where all are taken.
    fn take(&mut self) -> Option<u8> {
        if self.gone {
            return None;
        }
        for _ in 0..253 {
            let slot = self.next;
            self.next = if slot == 254 { 2 } else { slot + 1 };
            if !self.taken[usize::from(slot)] {
                self.taken[usize::from(slot)] = true;
                return Some(slot);
            }
        }
        None
    }
}

impl Synthetic {
    /// Makes the cluster.
    ///
    /// # Errors
    /// There can be no such cluster.
    pub fn new(spec: Spec) -> Result<Self, SpecError> {
        spec.validate()?;
        let random = Random::new(spec.seed);
        let mut cluster = Self {
            random,
            namespaces: Vec::new(),
            workloads: Vec::new(),
            pods: Vec::with_capacity(spec.pods),
            live_pods: 0,
            nodes: Vec::with_capacity(spec.nodes),
            policies: Vec::with_capacity(spec.policies),
            blocks: Vec::new(),
            serial: 0,
            scripts: Vec::new(),
            spec,
        };
        cluster.add_nodes();
        cluster.add_namespaces();
        cluster.add_pods();
        cluster.blocks = Block::pool(&mut cluster.random, &cluster.spec);
        cluster.add_policies();
        Ok(cluster)
    }

    /// What it was made from.
    pub fn spec(&self) -> &Spec {
        &self.spec
    }

    /// How much there is now.
    pub fn counts(&self) -> Counts {
        Counts {
            namespaces: self.namespaces.iter().filter(|it| !it.is_gone()).count(),
            nodes: self.nodes_there().count(),
            workloads: self
                .workloads
                .iter()
                .filter(|it| !it.gone && !it.pods.is_empty())
                .count(),
            pods: self.live_pods,
            policies: self.policies.iter().filter(|it| !it.gone).count(),
        }
    }

    /// Every object as it is now: namespaces, nodes, pods, policies.
    pub fn objects(&self) -> impl Iterator<Item = Value> + '_ {
        let namespaces = (0..self.namespaces.len())
            .filter(|place| !self.namespaces[*place].is_gone())
            .map(|place| self.namespace_object(place));
        let nodes = self.nodes_there().map(|place| self.node_object(place));
        let pods = (0..self.pods.len()).filter_map(|place| self.pod_object(place));
        let policies = (0..self.policies.len())
            .filter(|place| !self.policies[*place].gone)
            .map(|place| self.policy_object(place));
        namespaces.chain(nodes).chain(pods).chain(policies)
    }

    /// Writes every object into a folder as manifests: `namespaces.yaml`, `nodes.yaml`, and for each namespace
    /// `NAME/pods.yaml` and `NAME/policies.yaml`. A document is a line of JSON, which is YAML.
    ///
    /// # Errors
    /// A file cannot be written.
    pub fn write(&self, folder: &Path) -> Result<()> {
        let save = |path: &Path, objects: Vec<Value>| {
            if objects.is_empty() {
                return Ok(());
            }
            let failed = |error| BedError::new(format!("write {}", path.display()), error);
            if let Some(parent) = path.parent() {
                std::fs::create_dir_all(parent).map_err(failed)?;
            }
            std::fs::write(path, manifests::file(&objects)).map_err(failed)
        };
        let live: Vec<usize> = (0..self.namespaces.len())
            .filter(|place| !self.namespaces[*place].is_gone())
            .collect();
        let namespaces = live.iter().map(|place| self.namespace_object(*place)).collect();
        save(&folder.join("namespaces.yaml"), namespaces)?;
        let nodes = self.nodes_there().map(|place| self.node_object(place)).collect();
        save(&folder.join("nodes.yaml"), nodes)?;
        let mut policies: Vec<Vec<Value>> = vec![Vec::new(); self.namespaces.len()];
        for (place, policy) in self.policies.iter().enumerate().filter(|(_, it)| !it.gone) {
            policies[policy.space].push(self.policy_object(place));
        }
        for place in live {
            let space = &self.namespaces[place];
            let folder = folder.join(&space.name);
            let pods = space
                .pods
                .iter()
                .filter_map(|pod| self.pod_object(*pod))
                .collect();
            save(&folder.join("pods.yaml"), pods)?;
            save(
                &folder.join("policies.yaml"),
                std::mem::take(&mut policies[place]),
            )?;
        }
        Ok(())
    }

    fn next_serial(&mut self) -> u64 {
        self.serial += 1;
        self.serial
    }

    fn add_nodes(&mut self) {
        for _ in 0..self.spec.nodes {
            self.add_node();
        }
    }

    /// In the place of one that went, where there is one: then with its name and networks.
    fn add_node(&mut self) -> usize {
        let node = Node {
            serial: self.next_serial(),
            beats: 0,
            gone: false,
            taken: [false; 256],
            next: 2,
        };
        match self.nodes.iter().position(|node| node.gone) {
            Some(place) => {
                self.nodes[place] = node;
                place
            }
            None => {
                self.nodes.push(node);
                self.nodes.len() - 1
            }
        }
    }

    fn nodes_there(&self) -> impl Iterator<Item = usize> + '_ {
        (0..self.nodes.len()).filter(|place| !self.nodes[*place].gone)
    }

    fn add_namespaces(&mut self) {
        let system = if self.spec.namespaces > SYSTEM.len() {
            SYSTEM
        } else {
            &[]
        };
        for (name, _) in system {
            self.add_namespace((*name).to_owned(), "platform", true);
        }
        for number in system.len()..self.spec.namespaces {
            let team = *self.random.pick(TEAMS);
            self.add_namespace(format!("{team}-{number}"), team, false);
        }
    }

    fn add_namespace(&mut self, name: String, team: &'static str, system: bool) -> usize {
        let serial = self.next_serial();
        let environment = ["prod", "prod", "staging", "dev"][self.random.below(4)];
        let (egress, open_inside) = (self.random.chance(self.spec.egress), self.random.chance(0.5));
        self.namespaces.push(Space {
            name,
            egress,
            open_inside,
            team,
            environment: if system { "prod" } else { environment },
            serial,
            system,
            life: Life::Active,
            workloads: Vec::new(),
            pods: BTreeSet::new(),
        });
        self.namespaces.len() - 1
    }

    fn add_pods(&mut self) {
        let agents = (self.spec.pods as f64 * self.spec.host_network) as usize;
        let agents = agents.min(self.spec.pods - self.spec.namespaces);
        let system = self.namespaces.iter().filter(|it| it.system).count();
        let spaces = self.namespaces.len();
        let mut parts = long_tailed_parts(self.spec.pods - agents, spaces, MOST_PODS_OF_NAMESPACE);
        // Small ones first, since the system's own come first: they are small.
        parts.reverse();
        for (space, left) in parts.into_iter().enumerate() {
            let first = self.random.below(APPS.len());
            self.add_workloads(space, left, first);
        }
        for number in 0..agents {
            // Without namespaces of the system the agents run where everything does.
            let space = number % system.clamp(1, 2);
            let place = if system == 0 {
                self.workload(space, &SYSTEM[0].1[1])
            } else {
                let app = SYSTEM[space].1.last().unwrap_or(&APPS[0]);
                self.workload(space, app)
            };
            let node = number / system.clamp(1, 2) % self.nodes.len();
            let pod = self.create_pod(place, true);
            if let Some(pod) = &mut self.pods[pod] {
                pod.node = Some(node);
                pod.stage = Stage::Ready;
            }
        }
    }

    /// Fills a namespace with workloads until it has so many pods.
    fn add_workloads(&mut self, space: usize, mut left: usize, first: usize) {
        let system = self.namespaces[space].system;
        let mut number = first;
        while left > 0 {
            let app = if system {
                &SYSTEM[space].1[0]
            } else {
                &APPS[number % APPS.len()]
            };
            number += 1;
            let replicas = match app.controller {
                // A job's pods are few: most have gone.
                Controller::Job => 1 + self.random.below(3),
                _ => self.random.long_tailed(2, MOST_PODS_OF_WORKLOAD),
            }
            .min(left);
            left -= replicas;
            let place = self.add_workload(space, app);
            self.workloads[place].wanted = replicas;
            for _ in 0..replicas {
                let pod = self.create_pod(place, false);
                self.schedule(pod);
                self.run(pod);
                let finished = self.random.chance(self.spec.finished);
                if let Some(pod) = &mut self.pods[pod] {
                    pod.stage = if finished { Stage::Finished } else { Stage::Ready };
                }
                if finished {
                    self.free_address(pod);
                }
            }
        }
    }

    /// The workload of an app in a namespace; a new one where there is none.
    fn workload(&mut self, space: usize, app: &'static App) -> usize {
        let found = self.namespaces[space]
            .workloads
            .iter()
            .find(|place| self.workloads[**place].app.name == app.name);
        match found {
            Some(place) => *place,
            None => self.add_workload(space, app),
        }
    }

    fn add_workload(&mut self, space: usize, app: &'static App) -> usize {
        let like = self.namespaces[space]
            .workloads
            .iter()
            .filter(|place| self.workloads[**place].app.name == app.name)
            .count();
        let instance = if like == 0 {
            app.name.to_owned()
        } else {
            format!("{}-{}", app.name, like + 1)
        };
        let place = self.workloads.len();
        self.workloads.push(Workload {
            space,
            app,
            instance,
            version: 1 + self.random.below(4) as u32,
            template: self.random.below(1 << 30) as u32,
            pods: Vec::new(),
            wanted: 0,
            gone: false,
        });
        self.namespaces[space].workloads.push(place);
        place
    }

    fn create_pod(&mut self, workload: usize, host_network: bool) -> usize {
        let serial = self.next_serial();
        let random = &mut self.random;
        let of = &mut self.workloads[workload];
        let place = self.pods.len();
        let (name, role) = match of.app.controller {
            Controller::StatefulSet => {
                let taken: BTreeSet<&str> = of
                    .pods
                    .iter()
                    .filter_map(|pod| self.pods[*pod].as_ref())
                    .map(|pod| pod.name.as_str())
                    .collect();
                // The lowest number that is free, as its controller does it.
                let name = (0..=of.pods.len())
                    .map(|ordinal| format!("{}-{ordinal}", of.instance))
                    .find(|name| !taken.contains(name.as_str()))
                    .unwrap_or_default();
                let stateful = matches!(of.app.component, "database" | "cache");
                let role = if of.pods.is_empty() { "primary" } else { "replica" };
                (name, stateful.then_some(role))
            }
            _ => (format!("{}-{:07x}-{serial:06x}", of.instance, of.template), None),
        };
        of.pods.push(place);
        let (version, template, space) = (of.version, of.template, of.space);
        self.pods.push(Some(Pod {
            workload,
            name,
            serial,
            stage: Stage::Created,
            host_network,
            version,
            template,
            role,
            canary: random.chance(0.02),
            node: None,
            slot: None,
            holds_address: false,
        }));
        self.namespaces[space].pods.insert(place);
        self.live_pods += 1;
        place
    }

    /// Chooses a node and takes an address there, as it will have once it runs.
    fn schedule(&mut self, place: usize) {
        let chosen = self.random.below(self.nodes.len());
        // From there on the next that has room: there is one, since pods go as they come and the limit leaves a fifth.
        let nodes = self.nodes.len();
        let taken = (0..nodes)
            .map(|step| (chosen + step) % nodes)
            .find_map(|node| self.nodes[node].take().map(|slot| (node, slot)));
        if let (Some(pod), Some((node, slot))) = (&mut self.pods[place], taken) {
            pod.node = Some(node);
            pod.slot = Some(slot);
            pod.holds_address = true;
            pod.stage = Stage::Scheduled;
        }
    }

    fn run(&mut self, place: usize) {
        if let Some(pod) = &mut self.pods[place] {
            pod.stage = Stage::Running;
        }
    }

    fn free_address(&mut self, place: usize) {
        if let Some(pod) = &mut self.pods[place]
            && let (true, Some(node), Some(slot)) = (pod.holds_address, pod.node, pod.slot)
        {
            pod.holds_address = false;
            self.nodes[node].taken[usize::from(slot)] = false;
        }
    }

    fn remove_pod(&mut self, place: usize) {
        self.free_address(place);
        let Some(pod) = self.pods[place].take() else {
            return;
        };
        let workload = &mut self.workloads[pod.workload];
        workload.pods.retain(|it| *it != place);
        self.namespaces[workload.space].pods.remove(&place);
        self.live_pods -= 1;
    }
}

impl Space {
    fn is_gone(&self) -> bool {
        self.life == Life::Gone
    }
}

#[cfg(test)]
mod tests;
