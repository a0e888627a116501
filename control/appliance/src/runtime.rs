//! The running dataplane, as its unpinned threads share it: ports, sockets, publication, numbers.
//!
//! Locks are taken in the order of the fields, and never on a worker.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    os::fd::AsFd,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::Context;
use ipnet::IpNet;
use ringwall_bpf::XdpMode;
use ringwall_config::Umem;
use ringwall_dataplane::{
    dataplane::Dataplane,
    port::{PortId, PortKind, QueueId, Side},
    stats::StatsReader,
    verdict::DropReason,
    wire::tunnel::TunnelKind,
};
use ringwall_messages::{AnswerCounts, DataplaneStatus, FlowStatus, FrameAccounts, PortStatus, WorkerStatus};
use ringwall_xsk::{PortConfig, QueueStats, Sockets, device::Device, preflight::Repair};

use super::{
    changes::{Change, Changes},
    kernel_state::KernelState,
    netlink::{Netlink, name_of},
    node::NodeGuard,
    plan::{Plan, PlannedPort},
    pod_networks::PodNetworks,
    port_numbers::{PortNumbers, REST},
    ports::{self, FAIL_MODE, GUARDED, LivePort, TO_KERNEL, Traffic},
    quarantine::{DROP_REASON, Quarantine},
    snapshot_server::{SnapshotServer, locked},
    stations::Stations,
    worker_thread::RequestSignal,
};

/// Frames kept ready in the fill ring of a pod's queue.
const POD_FRAMES: u32 = 512;
/// The same of a queue of any other port.
pub const FILL_FRAMES: u32 = 2048;
/// How long it is an alarm that somebody changed settings.
pub(crate) const MEDDLED_FOR: Duration = Duration::from_secs(900);
/// How long a pod's port that is gone keeps its number and its place in the status: an interface that is made anew under its
/// name is the port it was.
const FORGET_AFTER: Duration = Duration::from_secs(30);

/// What is wrong where the table that holds them cannot be made.
const UNGUARDED: &str = "what pods send before their interfaces are guarded is not held back";

/// An interface that should be a port and cannot be one in this process.
pub struct Refused {
    index: u32,
    /// Whether its programs are attached: the fail mode holds.
    guarded: bool,
    problem: String,
}

/// The running dataplane.
pub struct DataplaneRuntime {
    /// Grows when interfaces that match a pattern appear.
    pub plan: Mutex<Plan>,
    /// The ports with their programs.
    pub live: Mutex<Vec<LivePort>>,
    /// Interfaces that match a pattern and have no number.
    pub refused: Mutex<BTreeMap<String, Refused>>,
    /// The sockets; None until they are opened.
    pub sockets: Mutex<Option<Sockets>>,
    /// The publishing side of the packet plane.
    pub plane: Arc<Mutex<Dataplane>>,
    /// Snapshots.
    pub publication: Arc<SnapshotServer>,
    /// The workers' numbers.
    pub stats: StatsReader,
    /// Where pods live: as configured, and as the newest snapshot says.
    pub pods: Mutex<PodNetworks>,
    /// Sizes of packet memory.
    pub umem: Umem,
    /// Told to end.
    pub stop: AtomicBool,
    /// Workers want a neighbour resolved, or report a station; also signalled when the process stops.
    pub requests: RequestSignal,
    /// By worker: whether it takes its turns.
    pub alive: Vec<AtomicBool>,
    /// Numbers of ports.
    pub numbers: Mutex<PortNumbers>,
    /// The host's own addresses.
    pub local: Mutex<Vec<IpAddr>>,
    /// Held while a port's programs are attached or taken off.
    pub attaching: Mutex<()>,
    /// What the kernel does with pods' interfaces that are not guarded yet: nothing.
    pub quarantine: Mutex<Option<Quarantine>>,
    /// Whether new interfaces are being guarded right now.
    pub guarding: AtomicBool,
    /// What was changed on the machine.
    pub changes: Mutex<Changes>,
    /// Settings that somebody changed and that were put back, and when last.
    pub meddled: Mutex<Option<(Instant, String)>>,
    /// The nodes on wires.
    pub stations: Mutex<Stations>,
    /// By interface: whether its packets may carry partial checksums.
    pub partial: Mutex<BTreeMap<String, bool>>,
    /// The kernel's path, where that is guarded instead of ports.
    pub node: Option<Arc<NodeGuard>>,
    /// When the process began.
    pub started: Instant,
}

impl DataplaneRuntime {
    /// Whether packets on an interface may carry partial checksums; looked up once.
    pub fn partial_checksums(&self, name: &str) -> bool {
        let mut known = locked(&self.partial);
        if let Some(partial) = known.get(name) {
            return *partial;
        }
        match Device::lookup(name) {
            Ok(device) => {
                let partial = device.partial_checksums();
                known.insert(name.to_owned(), partial);
                partial
            }
            Err(error) => {
                tracing::debug!(%error, "driver unknown");
                false // never mend a packet of a NIC
            }
        }
    }

    /// Tells the XDP programs which addresses are the host's own.
    pub fn set_local(&self, local: &[IpAddr]) {
        *locked(&self.local) = local.to_vec();
        for port in locked(&self.live).iter_mut() {
            if let Some(attached) = &mut port.attached
                && let Err(error) = attached.set_local_addresses(local)
            {
                tracing::error!(port = port.planned.name, %error, "the host's own addresses are not up to date");
                port.problem = Some(error.to_string());
            }
        }
    }

    /// What all programs are told: the host's own addresses, and where pods live.
    pub fn addresses(&self) -> (Vec<IpAddr>, Vec<IpNet>) {
        (locked(&self.local).clone(), locked(&self.pods).known.clone())
    }

    /// Gives the open queues of a port (or of all) to its program.
    pub fn register(&self, only: Option<PortId>) -> anyhow::Result<()> {
        let mut live = locked(&self.live);
        let sockets = locked(&self.sockets);
        let Some(sockets) = sockets.as_ref() else {
            return Ok(());
        };
        for queue in sockets.queues() {
            if only.is_some_and(|only| only != queue.port) {
                continue;
            }
            if let Some(node) = &self.node {
                node.register_socket(queue.queue.0, queue.as_fd())?;
                continue;
            }
            let port = ports::by_id(&mut live, queue.port).filter(|port| !port.would_lose_segments());
            if let Some(attached) = port.and_then(|port| port.attached.as_mut()) {
                attached.register_socket(queue.queue.0, queue.as_fd())?;
            }
        }
        for port in live.iter_mut().filter(|port| port.attached.is_some()) {
            let id = port.planned.id;
            if only.is_none_or(|only| only == id) && has_queues(sockets, id) && !port.would_lose_segments() {
                port.open = true;
                port.problem = None;
            }
        }
        Ok(())
    }

    /// After a change of the links: closes ports whose interface is gone, opens those whose interface is (back) there,
    /// takes in new ones that match a pattern. Other ports are not touched.
    pub fn look_after_ports(&self, view: &KernelState, local: &[IpAddr]) {
        self.close_gone(view);
        self.take_in_new(view, local);
        let planned: Vec<PlannedPort> = locked(&self.plan).ports.clone();
        for port in planned {
            let Some((index, link)) = view.link_named(&port.name) else {
                continue;
            };
            {
                let mut live = locked(&self.live);
                if let Some(found) = ports::by_id(&mut live, port.id) {
                    found.up = link.up;
                    if found.open {
                        continue;
                    }
                }
            }
            self.let_newcomers_through();
            match self.open(&port, index, link.up, local) {
                Ok(()) if port.kind == PortKind::Pod && !link.up => {}
                Ok(()) => tracing::info!(port = port.name, index, "port opened"),
                Err(error) => self.note_problem(port, &error),
            }
        }
    }

    /// Waits while new interfaces are being guarded, though not for ever: to open a port changes links, and the kernel changes
    /// one at a time.
    fn let_newcomers_through(&self) {
        const AT_MOST: Duration = Duration::from_millis(100);
        const LOOK: Duration = Duration::from_micros(200);
        let began = Instant::now();
        while self.guarding.load(Ordering::Relaxed) && began.elapsed() < AT_MOST {
            std::thread::sleep(LOOK);
        }
    }

    /// Whether there are interfaces whose port is not open: to be tried again.
    pub fn has_closed_ports(&self, view: &KernelState) -> bool {
        locked(&self.live)
            .iter()
            .any(|port| !port.open && view.link_named(&port.planned.name).is_some())
    }

    /// Puts back settings of the ports that somebody changed. Meanwhile the programs let nothing past.
    pub fn keep_settings(&self, view: &KernelState) {
        let mut plan = locked(&self.plan).clone();
        plan.ports.retain(|port| view.link_named(&port.name).is_some());
        if plan
            .host
            .as_ref()
            .is_some_and(|host| view.link_named(&host.outer).is_none())
        {
            plan.host = None;
        }
        let found = match plan.findings() {
            Ok(found) => found,
            Err(error) => return tracing::debug!(%error, "settings"),
        };
        // VLAN offloads and what is of ports that are not open yet is not meddling, and is looked after elsewhere.
        let open: BTreeSet<String> = locked(&self.live)
            .iter()
            .filter(|port| port.open)
            .map(|port| port.planned.name.clone())
            .collect();
        let meddled: Vec<String> = found
            .repairs
            .iter()
            .filter(|(name, repair, _)| matches!(repair, Repair::Setting { .. }) && open.contains(name))
            .map(|(_, _, text)| text.split(": ").next().unwrap_or(text).to_owned())
            .collect();
        let (Some(first), count) = (meddled.first(), meddled.len()) else {
            return;
        };
        let mut said = format!("settings that ringwall depends on were changed: {first}");
        if count > 1 {
            said = format!("{said} and {} more", count - 1);
        }
        said = match ports::repair_interfaces(&plan, &mut locked(&self.changes)) {
            Ok(_) => format!("{said}; put back"),
            Err(error) => format!("{said}; cannot be put back: {error:#}"),
        };
        tracing::warn!("{said}");
        *locked(&self.meddled) = Some((Instant::now(), said));
    }

    /// Forgets changes of interfaces that are no more.
    fn forget_changes(&self, view: &KernelState) {
        locked(&self.changes).forget(|change| {
            change
                .interface()
                .is_some_and(|interface| !view.links.contains_key(&interface.index))
        });
    }

    fn note_problem(&self, port: PlannedPort, error: &anyhow::Error) {
        let problem = ringwall_process::whole_message(error);
        let mut live = locked(&self.live);
        let known = ports::by_id(&mut live, port.id);
        // It is tried again and again, and said once.
        if known.as_ref().and_then(|found| found.problem.as_ref()) != Some(&problem) {
            tracing::error!(port = port.name, "cannot be opened: {problem}");
        }
        match known {
            Some(found) => found.problem = Some(problem),
            None => live.push(LivePort::absent(port, problem)),
        }
    }

    fn close_gone(&self, view: &KernelState) {
        let mut gone = Vec::new();
        for port in locked(&self.live).iter_mut() {
            let index = view.link_named(&port.planned.name).map(|(index, _)| index);
            if index.is_some() {
                port.gone = None;
            } else if port.gone.is_none() {
                port.gone = Some(Instant::now());
            }
            let Some(attached) = &port.attached else { continue };
            if index != Some(attached.ifindex()) {
                tracing::info!(port = port.planned.name, "the interface is gone");
                port.attached = None;
                port.open = false;
                port.up = false;
                port.problem = Some("the interface is gone".to_owned());
                gone.push((port.planned.id, port.planned.name.clone()));
            }
        }
        if !gone.is_empty() {
            self.forget_changes(view);
        }
        for (id, name) in gone {
            locked(&self.partial).remove(&name);
            if let Some(sockets) = locked(&self.sockets).as_mut()
                && has_queues(sockets, id)
                && let Err(error) = sockets.close(id)
            {
                tracing::warn!(port = name, %error, "sockets");
            }
            // The pins of a device that is no more hold nothing.
            let pins = locked(&self.plan).pins.clone();
            let _one_at_a_time = locked(&self.attaching);
            // Unless it is there again already.
            if Device::lookup(&name).is_err()
                && let Err(error) = ringwall_bpf::detach(&pins, &name)
            {
                tracing::debug!(port = name, %error, "pins");
            }
        }
    }

    /// Forgets ports that a pattern found and whose interface has been gone for a while; their numbers rest.
    pub fn retire_gone(&self) {
        if let Some(sockets) = locked(&self.sockets).as_mut() {
            sockets.free_quarantined();
        }
        let mut plan = locked(&self.plan);
        let mut live = locked(&self.live);
        let mut numbers = locked(&self.numbers);
        live.retain(|port| {
            let over = port.has_ended() && port.gone.is_some_and(|gone| gone.elapsed() >= FORGET_AFTER);
            if over {
                plan.ports.retain(|planned| planned.id != port.planned.id);
                numbers.retire(port.planned.id, self.started.elapsed());
            }
            !over
        });
    }

    /// What a number has counted, whoever's it was.
    fn traffic(&self, id: PortId, stats: &[(PortId, QueueId, QueueStats)]) -> Traffic {
        let of_port = || {
            stats
                .iter()
                .filter(|(port, _, _)| *port == id)
                .map(|(_, _, stats)| stats)
        };
        Traffic {
            rx_frames: self.stats.sum_port(id, |counters| counters.rx_frames.get()),
            rx_bytes: self.stats.sum_port(id, |counters| counters.rx_bytes.get()),
            tx_frames: self
                .stats
                .sum_port(id, |counters| counters.tx_frames.get())
                .saturating_sub(of_port().map(|stats| stats.tx_lost + stats.port_lost).sum()),
            tx_bytes: self.stats.sum_port(id, |counters| counters.tx_bytes.get()),
            rx_lost: of_port().map(lost_before).sum(),
        }
    }

    fn take_in_new(&self, view: &KernelState, local: &[IpAddr]) {
        let (plan, newcomers) = {
            let mut plan = locked(&self.plan);
            let newcomers = plan.plan_matching_ports(view, &mut locked(&self.numbers));
            let known = !locked(&self.refused).is_empty();
            if newcomers.is_empty() && !known {
                return;
            }
            (plan.clone(), newcomers)
        };
        let mut refused = locked(&self.refused);
        let index_of = |name: &str| view.link_named(name).map(|(index, _)| index);
        refused.retain(|name, known| {
            let there = index_of(name) == Some(known.index);
            if !there && let Err(error) = ringwall_bpf::detach(&plan.pins, name) {
                tracing::debug!(port = name, %error, "pins");
            }
            there
        });
        for port in newcomers {
            let Some(index) = index_of(&port.name) else {
                continue;
            };
            if refused.get(&port.name).is_some_and(|known| known.guarded) {
                continue;
            }
            let mut one = plan.clone();
            one.ports = vec![port.clone()];
            // Programs without sockets: the fail mode holds there.
            let attached = self.attach(&plan, &one, local);
            let guarded = attached.is_ok();
            let mut problem = format!(
                "not taken in: every port number is in use, or rests for {} s after its port went; it is taken in when one is free",
                REST.as_secs()
            );
            if let Err(error) = attached {
                let blocked = ports::block(&port, index, error, &mut locked(&self.changes));
                problem = format!("{problem}; {blocked:#}");
            }
            if refused
                .get(&port.name)
                .is_none_or(|known| known.problem != problem)
            {
                tracing::error!(port = port.name, "{problem}");
            }
            refused.insert(
                port.name,
                Refused {
                    index,
                    guarded,
                    problem,
                },
            );
        }
    }

    /// Opens one port while the others run. The programs come first and stay whatever fails after them: without sockets
    /// they hold the fail mode. May be called again for a port that is attached and not open. A pod's port that is down
    /// waits for who sets it up.
    fn open(&self, port: &PlannedPort, index: u32, up: bool, local: &[IpAddr]) -> anyhow::Result<()> {
        let plan = locked(&self.plan).clone();
        let mut one = plan.clone();
        one.ports.retain(|other| other.id == port.id);
        let attached =
            ports::by_id(&mut locked(&self.live), port.id).is_some_and(|found| found.attached.is_some());
        if !attached {
            let mut attached = self
                .attach(&plan, &one, local)
                .map_err(|error| ports::block(port, index, error, &mut locked(&self.changes)))?;
            ports::unblock(port, index, &mut locked(&self.changes))?;
            let stats = locked(&self.sockets)
                .as_ref()
                .map(Sockets::stats)
                .unwrap_or_default();
            let mut live = locked(&self.live);
            // One that comes back goes on counting; a number that was another port's does not.
            attached.before = match ports::by_id(&mut live, port.id) {
                Some(known) => known.before,
                None => self.traffic(port.id, &stats),
            };
            live.retain(|other| other.planned.id != port.id);
            live.push(attached);
            live.sort_by_key(|port| port.planned.id);
            // A wire's other end, or the guards that lead to the host port, know the interface that was there before.
            for other in live.iter_mut().filter(|other| other.planned.id != port.id) {
                if let Some(attached) = &mut other.attached
                    && let Err(error) = attached.refresh()
                {
                    tracing::debug!(port = other.planned.name, %error, "not refreshed");
                }
            }
        }
        if port.kind == PortKind::Pod && !up {
            return Ok(());
        }
        self.open_sockets(port, &one, local)
            .context("attached without sockets, the fail mode holds (closed: pod traffic drops)")
    }

    /// A veth whose programs run generically gets no sockets: its other end sends segments that no frame holds. What is in the
    /// way of native XDP may be gone by now.
    fn insist_on_native(&self, plan: &Plan, port: &PlannedPort, local: &[IpAddr]) -> anyhow::Result<()> {
        let loses =
            ports::by_id(&mut locked(&self.live), port.id).is_some_and(|port| port.would_lose_segments());
        if !loses {
            return Ok(());
        }
        let native = PlannedPort {
            xdp: ringwall_config::XdpMode::Native,
            ..port.clone()
        };
        let (attached, error) = match self.attach_as_it_is(plan, &native, local) {
            Ok(attached) => (attached, None),
            Err(error) => (self.attach_as_it_is(plan, port, local)?, Some(error)),
        };
        if let Some(known) = ports::by_id(&mut locked(&self.live), port.id) {
            known.attached = attached.attached;
        }
        error.map_or(Ok(()), |error| {
            Err(error.context(
                "a veth needs native XDP: generic XDP would lose the large segments that its other end sends",
            ))
        })
    }

    /// Attaches the only port of `one`, which may be down: it is set up when its programs are there.
    fn attach(&self, plan: &Plan, one: &Plan, local: &[IpAddr]) -> anyhow::Result<LivePort> {
        // Guarded first, where the interface is as it should be: its programs may be there already.
        if let Some(port) = one
            .ports
            .first()
            .filter(|port| port.xdp == ringwall_config::XdpMode::Auto)
        {
            let native = PlannedPort {
                xdp: ringwall_config::XdpMode::Native,
                ..port.clone()
            };
            if let Ok(mut attached) = self.attach_as_it_is(plan, &native, local) {
                attached.planned = port.clone();
                return Ok(attached);
            }
        }
        // What can be put in order before lets the program run natively. The rest is said when it is attached.
        let in_order = Netlink::open()
            .map_err(anyhow::Error::from)
            .and_then(|mut netlink| {
                let mut changes = locked(&self.changes);
                ports::set_mtus(one, &mut netlink, &mut changes)?;
                ports::repair_interfaces(one, &mut changes)
            });
        if let Err(error) = in_order {
            tracing::debug!("not in order: {error:#}");
        }
        let port = one.ports.first().context("no port")?;
        self.attach_as_it_is(plan, port, local)
    }

    fn attach_as_it_is(&self, plan: &Plan, port: &PlannedPort, local: &[IpAddr]) -> anyhow::Result<LivePort> {
        let _one_at_a_time = locked(&self.attaching);
        let pods = locked(&self.pods).known.clone();
        let attached = ports::attach(plan, port, local, &pods)?;
        if let Some(guarded) = &attached.attached {
            self.release(&port.name, guarded.ifindex());
        }
        Ok(attached)
    }

    /// Begins to hold pods' interfaces that are not guarded, or makes anew what holds them.
    pub fn hold_unguarded(&self) {
        let of_live = |port: &LivePort| Some((port.planned.name.clone(), port.attached.as_ref()?.ifindex()));
        let guarded: BTreeSet<(String, u32)> = locked(&self.live).iter().filter_map(of_live).collect();
        let plan = locked(&self.plan).clone();
        let _one_at_a_time = locked(&self.attaching);
        let mut quarantine = locked(&self.quarantine);
        let Some(quarantine) = quarantine.as_mut() else {
            return;
        };
        let mut install = || {
            let table = quarantine.table().to_owned();
            locked(&self.changes).record([Change::Table { name: table }])?;
            let mut released = BTreeSet::new();
            for link in Netlink::open()?.links()? {
                let (Some(name), index) = (name_of(&link), link.header.index) else {
                    continue;
                };
                let link = (name.to_owned(), index);
                let is_pods = plan
                    .port_named(name)
                    .is_some_and(|port| port.kind == PortKind::Pod);
                if quarantine.holds(name)
                    && (!is_pods || guarded.contains(&link) || quarantine.has_released(name, index))
                {
                    released.insert(link);
                }
            }
            Ok(quarantine.install(released)?)
        };
        let done: anyhow::Result<()> = install();
        if let Err(error) = &done {
            tracing::error!("{UNGUARDED}: {error:#}");
        }
        quarantine.problem = done.err().map(|error| format!("{UNGUARDED}: {error:#}"));
    }

    /// Lets the kernel use an interface that is guarded, or is no pod's port.
    pub fn release(&self, name: &str, index: u32) {
        if let Some(quarantine) = locked(&self.quarantine).as_mut()
            && let Err(error) = quarantine.release(name, index)
        {
            tracing::warn!(port = name, %error, "cannot release the interface; holding all interfaces again");
        }
    }

    /// An interface is gone: what has its index next is another.
    pub fn hold_again(&self, index: u32) {
        if let Some(quarantine) = locked(&self.quarantine).as_mut()
            && let Err(error) = quarantine.forget(index)
        {
            tracing::warn!(index, %error, "cannot hold the interface again; holding all interfaces again");
        }
    }

    /// The same for every index but these.
    pub fn hold_again_all_but(&self, there: &BTreeSet<u32>) {
        let gone = locked(&self.quarantine)
            .as_ref()
            .map(|quarantine| quarantine.released_but(there));
        for index in gone.unwrap_or_default() {
            self.hold_again(index);
        }
    }

    /// Puts the table back that holds unguarded interfaces, if somebody has removed it.
    pub fn keep_quarantine(&self) {
        let (gone, was_fine) = match locked(&self.quarantine).as_ref() {
            Some(quarantine) => (!quarantine.is_there(), quarantine.problem.is_none()),
            None => return,
        };
        if !gone {
            return;
        }
        self.hold_unguarded();
        let is_fine = |quarantine: &Quarantine| quarantine.problem.is_none();
        if was_fine && locked(&self.quarantine).as_ref().is_some_and(is_fine) {
            let said = "the nf_tables table that holds pods' interfaces until they are guarded had been removed; put back";
            tracing::warn!("{said}");
            *locked(&self.meddled) = Some((Instant::now(), said.to_owned()));
        }
    }

    fn open_sockets(&self, port: &PlannedPort, one: &Plan, local: &[IpAddr]) -> anyhow::Result<()> {
        {
            let mut changes = locked(&self.changes);
            ports::prepare_interfaces(one, &mut Netlink::open()?, &mut changes)?;
            if let Some(problem) = ports::repair_interfaces(one, &mut changes)?
                .unfit
                .remove(&port.name)
            {
                anyhow::bail!(problem);
            }
        }
        self.insist_on_native(one, port, local)?;
        {
            let mut sockets = locked(&self.sockets);
            let sockets = sockets.as_mut().context("the sockets are not open yet")?;
            if has_queues(sockets, port.id) {
                sockets.close(port.id)?; // opened before, and not registered
            }
            sockets.reopen(&port_config(port, self.umem))?;
        }
        self.register(Some(port.id))
    }

    /// The state for `ringwall status` and control.
    pub fn status(&self) -> DataplaneStatus {
        let cpus = locked(&self.plan).cpus.clone();
        let queues = locked(&self.sockets).as_ref().map(|sockets| {
            let open: Vec<(PortId, bool)> = sockets
                .queues()
                .iter()
                .map(|queue| (queue.port, queue.zero_copy))
                .collect();
            (sockets.stats(), sockets.accounts(), open)
        });
        let (stats, pool, open) = queues.unwrap_or_default();
        let mut alarms = self.publication.alarms();
        alarms.extend(
            locked(&self.refused)
                .iter()
                .map(|(name, refused)| format!("port {name}: {}", refused.problem)),
        );
        alarms.extend(locked(&self.pods).problem.clone());
        alarms.extend(
            locked(&self.quarantine)
                .as_ref()
                .and_then(|quarantine| quarantine.problem.clone()),
        );
        let names: BTreeMap<PortId, String> = {
            let plan = locked(&self.plan);
            plan.ports
                .iter()
                .map(|port| (port.id, port.name.clone()))
                .collect()
        };
        alarms.extend(locked(&self.stations).alarms(Instant::now(), &names));
        alarms.extend(self.node.iter().flat_map(|node| node.alarms()));
        alarms.extend(
            locked(&self.meddled)
                .as_ref()
                .filter(|(when, _)| when.elapsed() < MEDDLED_FOR)
                .map(|(_, said)| said.clone()),
        );
        let mut ports = Vec::new();
        let mut to_kernel = 0;
        for port in locked(&self.live).iter() {
            let id = port.planned.id;
            let passed = port.count(&TO_KERNEL);
            to_kernel += passed;
            if let Some(problem) = port.problem.as_ref().filter(|_| !port.has_ended()) {
                alarms.push(format!("port {}: {problem}", port.planned.name));
            }
            let device = Device::lookup(&port.planned.name).ok();
            let traffic = self.traffic(id, &stats).since(port.before);
            ports.push(PortStatus {
                name: port.planned.name.clone(),
                kind: kind_name(port.planned.kind).to_owned(),
                side: side_name(port.planned.side).to_owned(),
                driver: device.as_ref().map(|device| device.driver.clone()),
                xdp: match port.attached.as_ref().map(|attached| attached.mode()) {
                    Some(XdpMode::Native) => "native",
                    Some(XdpMode::Generic) => "generic",
                    None => "none",
                }
                .to_owned(),
                zero_copy: open.iter().any(|(port, zero_copy)| *port == id && *zero_copy),
                queues: open.iter().filter(|(port, _)| *port == id).count() as u32,
                mtu: device.as_ref().map_or(0, |device| device.mtu),
                up: port.attached.is_some() && device.is_some_and(|device| device.up),
                rx_frames: traffic.rx_frames,
                rx_bytes: traffic.rx_bytes,
                tx_frames: traffic.tx_frames,
                tx_bytes: traffic.tx_bytes,
                to_kernel: passed,
                fail_mode: port.count(&FAIL_MODE),
                guarded: port.count(&GUARDED),
                rx_lost: traffic.rx_lost,
                problem: port.problem.clone(),
            });
        }
        // Accepted by a TX ring and lost by the device: a drop after all.
        let tx_lost: u64 = stats
            .iter()
            .map(|(_, _, stats)| stats.tx_lost + stats.port_lost)
            .sum();
        let mut drops: BTreeMap<String, u64> = DropReason::ALL
            .iter()
            .map(|reason| (reason.name().to_owned(), self.stats.drops(*reason)))
            .collect();
        *drops.entry(DropReason::TxFull.name().to_owned()).or_default() += tx_lost;
        let frames = FrameAccounts {
            received: self.stats.sum(|worker| worker.received.get()),
            generated: self.stats.sum(|worker| worker.generated.get()),
            forwarded: self
                .stats
                .sum(|worker| worker.forwarded.get())
                .saturating_sub(tx_lost),
            dropped: drops.values().sum(),
            held: self.stats.sum(|worker| worker.held.get()),
            to_kernel,
            lost: stats.iter().map(|(_, _, stats)| lost_before(stats)).sum(),
            pool_frames: pool.total,
            pool_free: pool.free,
        };
        // What the kernel dropped never was a frame of the workers.
        if let Some(quarantine) = locked(&self.quarantine).as_mut() {
            drops.insert(DROP_REASON.to_owned(), quarantine.dropped());
        }
        let lost = frames.lost;
        let node = self.node.as_ref().map(|node| node.status(&mut drops, lost));
        let flows = |read: fn(&ringwall_dataplane::stats::FlowCounters) -> u64| {
            self.stats.sum(|worker| read(&worker.flows))
        };
        DataplaneStatus {
            version: ringwall_messages::RELEASE.to_owned(),
            pid: std::process::id(),
            uptime_seconds: self.started.elapsed().as_secs_f64(),
            snapshot: self.publication.status(),
            workers: self.workers(&cpus),
            ports,
            drops,
            answers: AnswerCounts {
                sent: self.stats.sum(|worker| worker.denials_answered.get()),
                limited: self.stats.sum(|worker| worker.answers_limited.get()),
            },
            tunnelled: match self.node {
                Some(_) => BTreeMap::new(),
                None => TunnelKind::ALL
                    .map(|kind| {
                        let judged = self.stats.sum(|worker| worker.tunnelled.get(kind));
                        (kind.name().to_owned(), judged)
                    })
                    .into(),
            },
            flows: FlowStatus {
                used: flows(|f| f.used.get()),
                capacity: flows(|f| f.capacity.get()),
                half_open: flows(|f| f.half_open.get()),
                half_open_limit: flows(|f| f.half_open_limit.get()),
                created: flows(|f| f.created.get()),
                expired: flows(|f| f.expired.get()),
                revoked: flows(|f| f.revoked.get()),
                rejudged: self.stats.sum(|worker| worker.rejudged.get()),
                restamped: self.stats.sum(|worker| worker.restamped.get()),
                picked_up: flows(|f| f.picked_up.get()),
                inherited: flows(|f| f.inherited.get()),
            },
            frames,
            node,
            alarms,
        }
    }

    fn workers(&self, cpus: &[u16]) -> Vec<WorkerStatus> {
        (0..self.stats.workers())
            .filter_map(|index| {
                let counters = self.stats.worker(index)?;
                Some(WorkerStatus {
                    id: index as u32,
                    cpu: cpus.get(index).map(|cpu| u32::from(*cpu)),
                    generation: counters.generation.get(),
                    received: counters.received.get(),
                    handed_over: counters.handed_over.get(),
                    bursts: counters.bursts.get(),
                    alive: self
                        .alive
                        .get(index)
                        .is_some_and(|alive| alive.load(Ordering::Relaxed)),
                })
            })
            .collect()
    }
}

fn has_queues(sockets: &Sockets, port: PortId) -> bool {
    sockets.queues().iter().any(|queue| queue.port == port)
}

/// How the sockets of a port are to be opened.
pub fn port_config(port: &PlannedPort, umem: Umem) -> PortConfig {
    PortConfig {
        id: port.id,
        name: port.name.clone(),
        queues: port.queues_asked(),
        fill_frames: match port.kind {
            PortKind::Pod => umem
                .frames_per_pod_port
                .map_or(POD_FRAMES, |frames| frames.get().min(FILL_FRAMES)),
            _ => FILL_FRAMES,
        },
    }
}

/// Frames that the kernel lost between the XDP program and the worker. `kernel_rx_dropped` counts an empty fill ring,
/// too.
fn lost_before(stats: &QueueStats) -> u64 {
    stats.kernel_rx_dropped + stats.kernel_rx_ring_full
}

fn kind_name(kind: PortKind) -> &'static str {
    match kind {
        PortKind::Wire { .. } => "wire",
        PortKind::Pod => "pod",
        PortKind::Uplink => "uplink",
        PortKind::Host => "host",
        PortKind::Ask => "ask",
    }
}

fn side_name(side: Side) -> &'static str {
    match side {
        Side::Pods => "pods",
        Side::Nodes => "nodes",
        Side::Inside => "inside",
        Side::Outside => "outside",
        Side::Any => "any",
        Side::Unguarded => "unguarded",
    }
}
