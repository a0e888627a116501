//! A running node: its devices guarded, its pods known, first packets on their way to the workers.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    os::fd::BorrowedFd,
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::Context;
use ipnet::IpNet;
use ringwall_bpf::node::{
    Address, Area, AskLimit, Device, DeviceKind, Hook, Node, NodeConfig, NodeMemory, TcAttachment,
};
use ringwall_config::{Config, FailMode, Mode};
use ringwall_dataplane::{
    classify::Snapshot,
    io::BURST,
    node::{
        self,
        ask::Nonce,
        cache::{CacheError, CacheMaps, FlowCache, MappedMemory},
        owners::AddressOwners,
        queues::AskQueues,
        renewal::end_decisions,
    },
    stats::StatsReader,
};
use ringwall_messages::{
    GuardedInterface, NodeStatus,
    cni::{Attachment, CniReply, CniRequest, PodStart},
};

use super::{
    ask_pair::{self, AskPair},
    backstop::{Backstop, KnownInterfaces},
    containers::Containers,
    inventory::{FarEnd, Guarded, Interface, Inventory, is_link_local},
    preflight,
};
use crate::{
    kept_table::table_name,
    kernel_state,
    netfilter::Netfilter,
    netlink::{ChangeStream, KernelChange, Netlink},
    plan::Plan,
    quarantine::DROP_REASON,
    runtime::{FILL_FRAMES, MEDDLED_FOR},
    snapshot_server::{SnapshotServer, locked},
    worker_thread,
};

/// How often the programs are told that the workers take their turns; they wait a second for that.
const HEARTBEAT: Duration = Duration::from_millis(100);
/// How often pods' ports without an address are looked at.
const SETTLING_LOOK: Duration = Duration::from_millis(50);
/// How often it is looked whether programs and the table of nf_tables are still there.
const REMOVAL_LOOK: Duration = Duration::from_secs(1);
/// How often it is looked for what carries packets past the programs.
const OBSTACLE_LOOK: Duration = Duration::from_secs(2);

/// What a pod may ask, however quick the workers are: first packets of a flood make entries in conntrack.
const ASK_LIMIT: AskLimit = AskLimit {
    per_second: 50_000,
    burst: 10_000,
};
/// Frames that a socket of the ask pair has room for while its worker has a burst in hand.
const ASK_PLACES: u32 = FILL_FRAMES - BURST as u32;
/// Drop reason of first packets for which the worker's socket had no room.
const SOCKET_FULL: &str = "ask-socket-full";
/// Drop reason of first packets for which the pair to the workers had no room.
const PAIR_FULL: &str = "ask-pair-full";
/// Entries of a bucket of the flow cache.
const WAYS: u32 = 8;

/// What stands between the kernel's path and the workers.
pub struct NodeGuard {
    programs: Mutex<Node>,
    config: NodeConfig,
    pair: AskPair,
    nonce: Nonce,
    cache: Arc<FlowCache>,
    /// Pods' addresses, and the interfaces behind which they were when it was looked last.
    assigned: Mutex<BTreeSet<(IpAddr, u32)>>,
    /// Who had the addresses of pods.
    owners: Arc<AddressOwners>,
    /// How far the workers have got with what is asked.
    queues: Arc<AskQueues>,
    memory: Arc<NodeMemory>,
    /// Whether new pods have the addresses that the CNI plugin names, and no others.
    only_assigned: bool,
    /// Whether they start once control's snapshot has them.
    held: bool,
    /// None with `failMode: open`: a device that appears while nothing runs has to pass then.
    backstop: Mutex<Option<Backstop>>,
    inventory: Mutex<Inventory>,
    /// Held from looking at interfaces until the programs know what was seen: what was seen before must not come after.
    refreshing: Mutex<()>,
    /// What carries programs, by index.
    guarded: Mutex<BTreeMap<u32, (Interface, Guarded)>>,
    /// What is wrong, by what it is about.
    problems: Mutex<BTreeMap<String, String>>,
    /// What carries packets past the programs since it came later than they.
    obstacles: Mutex<Vec<String>>,
    /// What somebody removed or broke and that was put back, and when last.
    meddled: Mutex<Option<(Instant, String)>>,
    pod_networks: Vec<IpNet>,
    /// Whose interfaces the CNI plugin named.
    containers: Mutex<Containers>,
}

impl NodeGuard {
    /// Loads the programs, or takes those of an earlier process over, and makes the way to the workers. No packet is
    /// asked about before [`Self::guard`].
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn open(config: &Config, pins: &Path, workers: usize) -> anyhow::Result<Self> {
        let pair = AskPair::make(workers as u32)?;
        // Both directions of a flow that nothing tracks have an entry each, and half of the places stay free.
        let buckets = (config.conntrack.max_entries.get() / WAYS * 2)
            .max(1)
            .next_power_of_two();
        let attachment = TcAttachment::of_kernel();
        let programs = Node::load(pins, buckets, attachment)?;
        tracing::info!(
            ?attachment,
            reused = programs.reused(),
            entries = buckets * WAYS,
            "node's programs"
        );
        let told = NodeConfig {
            ask_ifindex: pair.near,
            ask_queues: workers as u32,
            ask_mtu: ask_pair::LONGEST_FRAME,
            ask_limit: Some(ASK_LIMIT),
            ask_places: ASK_PLACES,
            fail_mode: match config.fail_mode {
                FailMode::Open => ringwall_bpf::FailMode::Open,
                FailMode::Closed => ringwall_bpf::FailMode::Closed,
            },
            audit: config.mode == Mode::Audit,
            enforcing: true,
            overlay_ports: if config.tunnels.allowed {
                Vec::new()
            } else {
                config.tunnels.ports.clone()
            },
            ..NodeConfig::default()
        };
        programs.set_service_cidrs(&config.cluster.service_cidrs)?;
        let nonce = Nonce(programs.nonce());
        let memory = programs.memory();
        let (cache, queues) = shared_memory(&programs, buckets as usize, workers)?;
        let backstop = (config.fail_mode == FailMode::Closed)
            .then(|| Backstop::new(&config.name, config.cluster.pod_cidrs.clone()));
        let (containers, problem) = Containers::read(&config.runtime_dir);
        if let Some(problem) = &problem {
            tracing::error!("{problem}");
        }
        Ok(Self {
            programs: Mutex::new(programs),
            config: told,
            pair,
            nonce,
            cache: Arc::new(cache),
            assigned: Mutex::default(),
            owners: Arc::default(),
            queues: Arc::new(queues),
            memory,
            only_assigned: config.pod_start != ringwall_config::PodStart::Off,
            held: config.pod_start == ringwall_config::PodStart::Hold,
            backstop: Mutex::new(backstop),
            inventory: Mutex::default(),
            refreshing: Mutex::default(),
            guarded: Mutex::default(),
            problems: Mutex::default(),
            obstacles: Mutex::default(),
            meddled: Mutex::new(problem.map(|problem| (Instant::now(), problem))),
            pod_networks: config.cluster.pod_cidrs.clone(),
            containers: Mutex::new(containers),
        })
    }

    /// The name of the table of nf_tables that a plan asks for.
    pub fn planned_table(plan: &Plan) -> Option<String> {
        (plan.kernel_path && plan.fail_mode == FailMode::Closed).then(|| table_name(&plan.name))
    }

    /// Where the worker's end of the pair is.
    pub fn pair(&self) -> &AskPair {
        &self.pair
    }

    /// What the workers have to know.
    pub fn of_workers(&self) -> node::NodeConfig {
        node::NodeConfig {
            nonce: self.nonce,
            cache: Arc::clone(&self.cache),
            owners: Arc::clone(&self.owners),
            queues: Arc::clone(&self.queues),
        }
    }

    /// Gives a worker's socket what is asked on its queue.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn register_socket(&self, queue: u16, socket: BorrowedFd<'_>) -> anyhow::Result<()> {
        Ok(locked(&self.programs).register_socket(queue, socket)?)
    }

    /// Guards every interface that is there. Sockets are registered before: from here on packets are asked about.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn guard(&self) -> anyhow::Result<()> {
        {
            let programs = locked(&self.programs);
            let far = self.pair.far;
            self.pair
                .inside(|| programs.attach(far, Hook::Judge))
                .context("cannot enter the worker's namespace")??;
            programs.memory().beat(worker_thread::now().0);
            programs.guard(self.pair.near, &Device::new(DeviceKind::Ask))?;
            programs.set_config(&self.config)?;
        }
        self.inherit()?;
        self.refresh()?;
        if self.only_assigned {
            locked(&self.inventory).expect_assignments();
        }
        anyhow::ensure!(
            !locked(&self.guarded).is_empty(),
            "no interface of this network namespace could be guarded"
        );
        Ok(())
    }

    /// Takes over from a predecessor what each pod may call itself: by now, pods may have changed their ends.
    fn inherit(&self) -> anyhow::Result<()> {
        let (addresses, macs) = {
            let programs = locked(&self.programs);
            (programs.addresses()?, programs.pod_macs()?)
        };
        let mut pods: BTreeMap<u32, FarEnd> = BTreeMap::new();
        for (address, whose) in addresses {
            if let Address::Pod { port } = whose {
                let end = pods.entry(port).or_insert_with(|| FarEnd {
                    mac: macs.get(&port).copied().unwrap_or_default(),
                    addresses: BTreeSet::new(),
                });
                end.addresses.insert(address);
            }
        }
        let ports = pods
            .iter()
            .flat_map(|(port, end)| end.addresses.iter().map(|address| (*address, *port)));
        *locked(&self.assigned) = ports.collect();
        let links = Netlink::open()?.links()?;
        let interfaces: Vec<Interface> = links.iter().filter_map(Interface::of).collect();
        locked(&self.inventory).inherit(&interfaces, &pods);
        let there = interfaces
            .iter()
            .map(|interface| (interface.index, interface.name.as_str()));
        locked(&self.containers).retain(&there.collect());
        Ok(())
    }

    /// Looks at all interfaces again, and guards what is new.
    fn refresh(&self) -> anyhow::Result<()> {
        let _one_at_a_time = locked(&self.refreshing);
        let now = Instant::now();
        let mut netlink = Netlink::open()?;
        let links = netlink.links()?;
        let own: BTreeSet<(u32, IpAddr, u8)> = netlink
            .addresses()?
            .iter()
            .filter_map(kernel_state::address)
            .collect();
        let interfaces: Vec<Interface> = links
            .iter()
            .filter_map(Interface::of)
            .filter(|interface| interface.index != self.pair.near)
            .collect();
        let found =
            locked(&self.inventory).update(&interfaces, &own, &self.pod_networks, now, |id, index| {
                far_end(&mut netlink, id, index)
            });
        let wanted: BTreeMap<u32, (Interface, Guarded)> = interfaces
            .into_iter()
            .filter_map(|interface| {
                let guarded = found.get(&interface.index)?.clone();
                Some((interface.index, (interface, guarded)))
            })
            .collect();
        self.set_addresses(&wanted, &own)?;
        self.forget_pods_that_left(&wanted);
        self.set_devices(wanted, &own.iter().map(|(_, address, _)| *address).collect());
        let known = known_interfaces(&locked(&self.guarded));
        let told = locked(&self.backstop)
            .as_mut()
            .map(|backstop| backstop.guard(known));
        if let Some(Err(error)) = told {
            self.note(
                "nf_tables",
                Some(format!("what no program guards is not held back: {error}")),
            );
        }
        Ok(())
    }

    /// Ends what connection tracking knows of addresses whose pods have gone: it would let the next pod there answer for them.
    fn forget_pods_that_left(&self, wanted: &BTreeMap<u32, (Interface, Guarded)>) {
        let now: BTreeSet<(IpAddr, u32)> = pods_of(wanted.values())
            .flat_map(|(index, end)| end.addresses.iter().map(move |address| (*address, index)))
            .collect();
        let before = std::mem::replace(&mut *locked(&self.assigned), now.clone());
        self.forget_connections(&before.difference(&now).map(|(address, _)| *address).collect());
    }

    fn forget_connections(&self, of: &BTreeSet<IpAddr>) {
        if of.is_empty() {
            return;
        }
        let problem = match Netfilter::open().and_then(|netfilter| netfilter.forget_connections(of)) {
            Ok(connections) => {
                tracing::debug!(
                    addresses = of.len(),
                    connections,
                    "connections of earlier pods forgotten"
                );
                None
            }
            Err(error) => Some(format!(
                "connections of pods that have gone outlive them: {error}; the kernel needs the module nf_conntrack_netlink"
            )),
        };
        self.note("conntrack", problem);
    }

    fn set_addresses(
        &self,
        wanted: &BTreeMap<u32, (Interface, Guarded)>,
        own: &BTreeSet<(u32, IpAddr, u8)>,
    ) -> anyhow::Result<()> {
        let hosts = own.iter().map(|(_, address, _)| (*address, Address::Host));
        let pods = wanted.iter().flat_map(|(index, (_, guarded))| {
            let addresses = match guarded {
                Guarded::Pod(end) => end.addresses.clone(),
                Guarded::Bridge | Guarded::Other => BTreeSet::new(),
            };
            addresses
                .into_iter()
                .map(|address| (address, Address::Pod { port: *index }))
        });
        // The host's come last: no pod has one of them.
        let table: BTreeMap<IpAddr, Address> = pods.chain(hosts).collect();
        Ok(locked(&self.programs).set_addresses(&table)?)
    }

    fn set_devices(&self, wanted: BTreeMap<u32, (Interface, Guarded)>, own: &BTreeSet<IpAddr>) {
        let programs = locked(&self.programs);
        let mut guarded = locked(&self.guarded);
        let bridges = bridges_of_pods(&wanted);
        let gone: Vec<u32> = guarded
            .keys()
            .filter(|index| !wanted.contains_key(index))
            .copied()
            .collect();
        for index in gone {
            guarded.remove(&index);
            if let Err(error) = programs.release(index) {
                tracing::debug!(index, %error, "device");
            }
        }
        for (index, (interface, kind)) in wanted {
            let known = guarded.get(&index);
            // What a bridge is depends on its ports.
            let is_bridge = matches!(kind, Guarded::Bridge);
            if !is_bridge && known.is_some_and(|known| *known == (interface.clone(), kind.clone())) {
                continue;
            }
            let is_new = known.is_none();
            let addresses = || {
                let of_pod = match &kind {
                    Guarded::Pod(end) => Some(end.addresses.iter().copied()),
                    Guarded::Bridge | Guarded::Other => None,
                };
                of_pod
                    .into_iter()
                    .flatten()
                    .filter(|address| !own.contains(address))
            };
            let device = Device {
                kind: device_kind(&interface, &kind, &bridges),
                no_link: !interface.ethernet,
                address_v4: addresses().find_map(|address| match address {
                    IpAddr::V4(v4) => Some(v4),
                    IpAddr::V6(_) => None,
                }),
                address_v6: addresses().find_map(|address| match address {
                    IpAddr::V6(v6) => Some(v6),
                    IpAddr::V4(_) => None,
                }),
            };
            match programs.guard(index, &device) {
                Ok(()) => {
                    if is_new {
                        tracing::debug!(interface = interface.name, index, kind = ?kind, "guarded");
                    }
                    self.note(&interface.name, None);
                    guarded.insert(index, (interface, kind));
                }
                Err(error) => {
                    let problem = format!("interface {} cannot be guarded: {error}", interface.name);
                    self.note(&interface.name, Some(problem));
                }
            }
        }
    }

    /// Notes what is wrong with something, once, or that nothing is.
    fn note(&self, about: &str, problem: Option<String>) {
        let mut problems = locked(&self.problems);
        match problem {
            Some(problem) => {
                if problems.get(about) != Some(&problem) {
                    tracing::error!("{problem}");
                    problems.insert(about.to_owned(), problem);
                }
            }
            None => drop(problems.remove(about)),
        }
    }

    /// What is guarded and what became of packets; what the programs dropped, and what was lost on the way to the workers, goes to
    /// the drops by reason. `lost_by_sockets` are frames for which the workers' sockets had no room.
    pub fn status(&self, drops: &mut BTreeMap<String, u64>, lost_by_sockets: u64) -> NodeStatus {
        drops.insert(SOCKET_FULL.to_owned(), lost_by_sockets);
        match self.pair.lost() {
            Ok(lost) => drop(drops.insert(PAIR_FULL.to_owned(), lost)),
            Err(error) => tracing::debug!(%error, "frames that the ask pair has lost"),
        }
        let mut outcomes = BTreeMap::new();
        match locked(&self.programs).counters() {
            Ok(counters) => {
                for (outcome, count) in counters.iter() {
                    outcomes.insert(outcome.as_str().to_owned(), count.packets);
                    if outcome.drops() {
                        drops.insert(outcome.as_str().to_owned(), count.packets - count.audited);
                    }
                }
            }
            Err(error) => self.note(
                "counters",
                Some(format!("the programs' counters cannot be read: {error}")),
            ),
        }
        if let Some(backstop) = locked(&self.backstop).as_mut() {
            drops.insert(DROP_REASON.to_owned(), backstop.dropped());
        }
        NodeStatus {
            interfaces: locked(&self.guarded)
                .iter()
                .map(|(index, (interface, guarded))| GuardedInterface {
                    name: interface.name.clone(),
                    index: *index,
                    kind: match guarded {
                        Guarded::Pod(_) => "pod",
                        Guarded::Bridge => "bridge",
                        Guarded::Other => "other",
                    }
                    .to_owned(),
                    addresses: match guarded {
                        Guarded::Pod(end) => end.addresses.iter().copied().collect(),
                        Guarded::Bridge | Guarded::Other => Vec::new(),
                    },
                })
                .collect(),
            outcomes,
            cached: self.cache.used() as u64,
            cache_capacity: self.cache.capacity() as u64,
        }
    }

    /// The addresses of this node's pods.
    pub fn pod_addresses(&self) -> BTreeSet<IpAddr> {
        let guarded = locked(&self.guarded);
        pods_of(guarded.values())
            .flat_map(|(_, end)| end.addresses.iter().copied())
            .collect()
    }

    /// With `podStart: hold`, the pods that the CNI plugin named and whose interfaces are guarded with just the addresses that it
    /// named: policies are to know them whether the API server has their addresses or not.
    pub fn pod_starts(&self) -> Vec<PodStart> {
        if !self.held {
            return Vec::new();
        }
        let starts = locked(&self.containers).pod_starts();
        let guarded = locked(&self.guarded);
        let is_guarded = |index: u32, name: &str, addresses: &BTreeSet<IpAddr>| match guarded.get(&index) {
            Some((interface, Guarded::Pod(end))) => interface.name == name && end.addresses == *addresses,
            _ => false,
        };
        starts
            .into_iter()
            .filter(|(index, name, start)| is_guarded(*index, name, &start.addresses))
            .map(|(.., start)| start)
            .collect()
    }

    /// What is wrong, for `status`.
    pub fn alarms(&self) -> Vec<String> {
        let mut alarms: Vec<String> = locked(&self.problems).values().cloned().collect();
        alarms.extend(locked(&self.inventory).problems().map(str::to_owned));
        alarms.extend(locked(&self.obstacles).iter().cloned());
        alarms.extend(
            locked(&self.meddled)
                .iter()
                .filter(|(when, _)| when.elapsed() < MEDDLED_FOR)
                .map(|(_, said)| said.clone()),
        );
        alarms
    }

    /// Notes which pods have addresses, and has flows whose ends changed asked about again, whenever every worker decides by a new snapshot.
    pub fn follow(self: &Arc<Self>, publication: &SnapshotServer) {
        let cache = Arc::clone(&self.cache);
        let node = Arc::clone(self);
        publication.after_adoption(Box::new(move |before: Option<&Snapshot>, now: &Snapshot| {
            let addresses = node.pod_addresses();
            for snapshot in before.into_iter().chain([now]) {
                node.owners
                    .note(snapshot, addresses.iter().map(|address| (*address).into()));
            }
            let done = end_decisions(&cache, now, before);
            tracing::debug!(renewed = done.renewed, ended = done.ended, "cached decisions");
        }));
    }

    /// Until the process stops: guards what comes, and keeps the programs told that the workers turn.
    pub fn run(&self, stats: &StatsReader, stop: &AtomicBool) {
        let mut changes = None;
        let mut turns = Vec::new();
        let (mut beat_due, mut removal_due) = (Instant::now(), Instant::now() + REMOVAL_LOOK);
        let mut obstacles_due = Instant::now() + OBSTACLE_LOOK;
        while !stop.load(Ordering::Relaxed) {
            let Some(stream) = &changes else {
                match ChangeStream::of_links_and_addresses() {
                    Ok(stream) => {
                        changes = Some(stream);
                        self.look_again(); // what came before the subscription
                    }
                    Err(error) => {
                        self.note(
                            "netlink",
                            Some(format!("cannot watch for new interfaces: {error}")),
                        );
                        std::thread::sleep(HEARTBEAT);
                    }
                }
                continue;
            };
            let settling = locked(&self.inventory).is_settling(Instant::now());
            let patience = if settling { SETTLING_LOOK } else { HEARTBEAT };
            match stream.wait(patience) {
                Ok(KernelChange::Messages(messages)) if messages.is_empty() && !settling => {}
                Ok(_) => {
                    let begin = Instant::now();
                    self.look_again();
                    // Where pods come faster than looks end, the lock would never be free for those that the CNI plugin waits for.
                    std::thread::sleep(begin.elapsed().min(HEARTBEAT));
                }
                Err(error) => {
                    self.note(
                        "netlink",
                        Some(format!("cannot watch for new interfaces: {error}")),
                    );
                    changes = None;
                }
            }
            if Instant::now() >= beat_due {
                beat_due = Instant::now() + HEARTBEAT;
                self.beat(stats, &mut turns);
            }
            if Instant::now() >= removal_due {
                removal_due = Instant::now() + REMOVAL_LOOK;
                self.keep_table();
                self.keep_programs();
            }
            if Instant::now() >= obstacles_due {
                obstacles_due = Instant::now() + OBSTACLE_LOOK;
                self.look_for_obstacles();
            }
        }
    }

    /// Answers questions of the CNI plugin, in order.
    pub fn answer(&self, requests: &[CniRequest]) -> Vec<CniReply> {
        let is_start = |request: &CniRequest| matches!(request, CniRequest::Add(_));
        let groups = requests.chunk_by(|one, next| is_start(one) && is_start(next));
        groups.flat_map(|group| self.answer_group(group)).collect()
    }

    /// Answers starts, or one question of another kind.
    fn answer_group(&self, group: &[CniRequest]) -> Vec<CniReply> {
        let attachments: Vec<&Attachment> = group
            .iter()
            .filter_map(|request| match request {
                CniRequest::Add(attachment) => Some(attachment),
                _ => None,
            })
            .collect();
        let mut started = self.attach_pods(&attachments).into_iter();
        let reply = |request: &CniRequest| {
            let held = self.held && matches!(request, CniRequest::Add(_) | CniRequest::Status);
            let done = match request {
                CniRequest::Add(_) => started
                    .next()
                    .unwrap_or_else(|| Err("it was not looked at".to_owned())),
                CniRequest::Check(attachment) => self.check_pod(attachment),
                CniRequest::Delete { container } => {
                    let known = locked(&self.containers).remove(container);
                    if let Some(index) = known {
                        locked(&self.inventory).release(index);
                        self.look_again();
                    }
                    Ok(())
                }
                CniRequest::Collect { containers } => {
                    self.release_all_but(containers);
                    Ok(())
                }
                CniRequest::Status => Ok(()),
            };
            match done {
                Ok(()) if held => CniReply::AwaitSnapshot,
                Ok(()) => CniReply::Done,
                Err(reason) => CniReply::Refused(reason),
            }
        };
        group.iter().map(reply).collect()
    }

    /// Guards pods' interfaces before their first processes start, with the addresses that they were given.
    fn attach_pods(&self, attachments: &[&Attachment]) -> Vec<Result<(), String>> {
        if attachments.is_empty() {
            return Vec::new();
        }
        let refresh = || self.refresh().map_err(|error| format!("{error:#}"));
        // What the plugins before made may be news.
        if let Err(reason) = refresh() {
            return vec![Err(reason); attachments.len()];
        }
        let assigned: Vec<Result<u32, String>> = attachments
            .iter()
            .map(|attachment| {
                let index = self.pods_interface(attachment)?;
                locked(&self.inventory).assign(index, &attachment.addresses)?;
                Ok(index)
            })
            .collect();
        if let Err(reason) = refresh() {
            return vec![Err(reason); attachments.len()];
        }
        // None of these pods has sent anything yet: what is known of their addresses is earlier pods', of which this process may know nothing.
        let given = attachments
            .iter()
            .zip(&assigned)
            .filter(|(_, index)| index.is_ok());
        self.forget_connections(
            &given
                .flat_map(|(attachment, _)| attachment.addresses.clone())
                .collect(),
        );
        let keep = |(attachment, index): (&&Attachment, Result<u32, String>)| {
            let index = index?;
            let name = locked(&self.guarded)
                .get(&index)
                .map(|(interface, _)| interface.name.clone())
                .unwrap_or_default();
            locked(&self.containers)
                .insert(attachment, &name, index)
                .map_err(|error| format!("whose interface {name} is cannot be kept: {error}"))?;
            self.check_pod(attachment)
        };
        attachments.iter().zip(assigned).map(keep).collect()
    }

    /// Releases what a runtime has lost without ending it.
    fn release_all_but(&self, valid: &BTreeSet<String>) {
        let lost = locked(&self.containers).remove_all_but(valid);
        for index in &lost {
            locked(&self.inventory).release(*index);
        }
        if !lost.is_empty() {
            self.look_again();
        }
    }

    fn check_pod(&self, attachment: &Attachment) -> Result<(), String> {
        let index = self.pods_interface(attachment)?;
        let guarded = locked(&self.guarded);
        match guarded.get(&index) {
            Some((_, Guarded::Pod(end))) if end.addresses == attachment.addresses => Ok(()),
            Some((interface, _)) => Err(format!(
                "interface {} is guarded with other addresses",
                interface.name
            )),
            None => Err(format!("interface {index} is not guarded")),
        }
    }

    /// The one interface among those that were made on the host that leads into a pod.
    fn pods_interface(&self, attachment: &Attachment) -> Result<u32, String> {
        let guarded = locked(&self.guarded);
        let mut found = guarded.values().filter(|(interface, kind)| {
            matches!(kind, Guarded::Pod(_)) && attachment.host_interfaces.contains(&interface.name)
        });
        let named = attachment.host_interfaces.join(", ");
        match (found.next(), found.next()) {
            (Some((interface, _)), None) => Ok(interface.index),
            (None, _) => Err(format!(
                "none of the interfaces {named} is a guarded end of a pair that leads into a pod"
            )),
            _ => Err(format!("several of the interfaces {named} lead into pods")),
        }
    }

    fn look_again(&self) {
        let problem = self.refresh().err();
        self.note(
            "interfaces",
            problem.map(|error| format!("the interfaces are not up to date: {error:#}")),
        );
    }

    /// A worker that takes no turn leaves what is asked on its queues without an answer.
    fn beat(&self, stats: &StatsReader, before: &mut Vec<u64>) {
        let turns: Vec<u64> = (0..stats.workers())
            .map(|index| stats.worker(index).map_or(0, |worker| worker.turns.get()))
            .collect();
        let all_turn =
            turns.len() == before.len() && turns.iter().zip(before.iter()).all(|(now, then)| now != then);
        *before = turns;
        if all_turn {
            self.memory.beat(worker_thread::now().0);
        }
    }

    fn keep_table(&self) {
        let mut backstop = locked(&self.backstop);
        let Some(backstop) = backstop.as_mut().filter(|backstop| !backstop.is_there()) else {
            return;
        };
        match backstop.restore() {
            Ok(()) => {
                let said =
                    "the table of nf_tables that holds back what no program guards was removed; put back";
                tracing::warn!("{said}");
                *locked(&self.meddled) = Some((Instant::now(), said.to_owned()));
                self.note("nf_tables", None);
            }
            Err(error) => self.note(
                "nf_tables",
                Some(format!("what no program guards is not held back: {error}")),
            ),
        }
    }

    /// Attaches programs again that somebody took off.
    fn keep_programs(&self) {
        let missing = self.devices_without_programs();
        if missing.is_empty() {
            return;
        }
        locked(&self.guarded).retain(|index, _| !missing.contains(index));
        let near = self.pair.near;
        if missing.contains(&near) {
            let guarded = locked(&self.programs).guard(near, &Device::new(DeviceKind::Ask));
            self.note(
                ask_pair::NEAR,
                guarded
                    .err()
                    .map(|error| format!("what workers let pass does not come back: {error}")),
            );
        }
        self.look_again();
        let guarded = locked(&self.guarded);
        // Others went with their interface.
        let put_back: Vec<&str> = missing
            .iter()
            .filter_map(|index| match guarded.get(index) {
                Some((interface, _)) => Some(interface.name.as_str()),
                None => (*index == near).then_some(ask_pair::NEAR),
            })
            .collect();
        if !put_back.is_empty() {
            let said = format!("programs of {} were taken off; put back", put_back.join(", "));
            tracing::warn!("{said}");
            *locked(&self.meddled) = Some((Instant::now(), said));
        }
    }

    fn devices_without_programs(&self) -> Vec<u32> {
        let programs = locked(&self.programs);
        let has_all =
            |index: u32, hooks: &[Hook]| hooks.iter().all(|&hook| programs.is_attached(index, hook));
        let guarded = locked(&self.guarded);
        let of_interfaces = guarded
            .iter()
            .filter(|(index, (interface, kind))| {
                !has_all(**index, device_kind(interface, kind, &BTreeSet::new()).hooks())
            })
            .map(|(index, _)| *index);
        let near = self.pair.near;
        of_interfaces
            .chain((!has_all(near, DeviceKind::Ask.hooks())).then_some(near))
            .collect()
    }

    /// Filters of others that packets meet before the programs.
    fn filters_asked_before(&self) -> Vec<String> {
        let programs = locked(&self.programs);
        let mut found = Vec::new();
        for (index, (interface, kind)) in locked(&self.guarded).iter() {
            for &hook in device_kind(interface, kind, &BTreeSet::new()).hooks() {
                let said = match programs.asked_before(*index, hook) {
                    Ok(None) => continue,
                    Ok(Some(filter)) => format!(
                        "interface {}: {filter} is asked before ringwall's and may let packets pass unjudged: give it a higher priority number",
                        interface.name
                    ),
                    Err(error) => error.to_string(),
                };
                found.push(said);
            }
        }
        found
    }

    /// Looks for what start would have refused. The programs let nothing of a pod leave whose sender they cannot tell any more;
    /// what they can tell is judged by its own addresses.
    fn look_for_obstacles(&self) {
        let mut found = match preflight::obstacles() {
            Ok(found) => found,
            Err(error) => vec![format!(
                "whether anything carries packets past the programs cannot be looked up: {error:#}"
            )],
        };
        found.extend(self.filters_asked_before());
        let mut known = locked(&self.obstacles);
        for obstacle in found.iter().filter(|obstacle| !known.contains(obstacle)) {
            tracing::error!("{obstacle}");
        }
        *known = found;
    }
}

/// The pods behind interfaces, by the interface's index.
fn pods_of<'a>(
    guarded: impl Iterator<Item = &'a (Interface, Guarded)>,
) -> impl Iterator<Item = (u32, &'a FarEnd)> {
    guarded.filter_map(|(interface, kind)| match kind {
        Guarded::Pod(end) => Some((interface.index, end)),
        Guarded::Bridge | Guarded::Other => None,
    })
}

/// What an interface is to the programs. `pods_bridges` are the bridges whose ports are all pods'.
fn device_kind(interface: &Interface, kind: &Guarded, pods_bridges: &BTreeSet<u32>) -> DeviceKind {
    match kind {
        Guarded::Pod(end) => DeviceKind::Pod {
            mac: end.mac,
            bridge: interface.master,
        },
        Guarded::Bridge => DeviceKind::Bridge {
            pods_alone: pods_bridges.contains(&interface.index),
        },
        Guarded::Other => DeviceKind::Other,
    }
}

/// The bridges with ports whose ports are all pods'.
fn bridges_of_pods(all: &BTreeMap<u32, (Interface, Guarded)>) -> BTreeSet<u32> {
    let ports = || {
        all.values()
            .filter_map(|(interface, kind)| Some((interface.master?, kind)))
    };
    let of = |is_pod: bool| -> BTreeSet<u32> {
        let wanted = ports().filter(|(_, kind)| matches!(kind, Guarded::Pod(_)) == is_pod);
        wanted.map(|(master, _)| master).collect()
    };
    of(true).difference(&of(false)).copied().collect()
}

fn known_interfaces(guarded: &BTreeMap<u32, (Interface, Guarded)>) -> KnownInterfaces {
    let ports = guarded
        .iter()
        .filter(|(_, (_, kind))| matches!(kind, Guarded::Pod(_)))
        .map(|(index, _)| *index);
    KnownInterfaces {
        guarded: guarded.keys().copied().collect(),
        pods: ports.chain(bridges_of_pods(guarded)).collect(),
    }
}

fn far_end(netlink: &mut Netlink, namespace: i32, index: u32) -> Option<FarEnd> {
    use netlink_packet_route::link::LinkAttribute;
    let (link, addresses) = match netlink.far_end(namespace, index) {
        Ok(found) => found,
        Err(error) => {
            tracing::debug!(%error, "far end");
            return None;
        }
    };
    let mac = link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::Address(bytes) => bytes.as_slice().try_into().ok(),
        _ => None,
    });
    Some(FarEnd {
        mac: mac.unwrap_or_default(),
        addresses: addresses
            .iter()
            .filter_map(kernel_state::address)
            .map(|(_, address, _)| address)
            .filter(|address| !is_link_local(address))
            .collect(),
    })
}

/// The flow cache and the queues' tickets over the maps' memory.
#[allow(unsafe_code)] // memory shared with the programs in the kernel
fn shared_memory(
    programs: &Node,
    buckets: usize,
    queues: usize,
) -> Result<(FlowCache, AskQueues), CacheError> {
    let memory = programs.memory();
    let map = |area: &Area| MappedMemory {
        begin: area.start(),
        bytes: area.length(),
    };
    let maps = CacheMaps {
        buckets: map(&memory.buckets),
        entries: map(&memory.entries),
        usage: map(&memory.usage),
        epochs: map(&memory.epochs),
    };
    let tickets = map(&memory.ask_queues);
    std::mem::forget(memory); // mapped for the rest of the process's life
    // SAFETY: as just said. Of it the rest of the process reaches the pulse, and the tickets by atomics alone.
    unsafe {
        Ok((
            FlowCache::from_raw(&maps, buckets)?,
            AskQueues::from_raw(tickets, queues)?,
        ))
    }
}
