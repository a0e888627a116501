//! The netlink thread: follows the kernel's changes, publishes what follows from them, and keeps ports open.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    net::IpAddr,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use ringwall_dataplane::{classify::Snapshot, forward::ResolveRequest, port::PortId, wire::neighbour_probe};

use super::{
    kernel_forwarding::{KernelForwarding, forwarding_from_kernel},
    kernel_state::{KernelNeighbour, KernelState, OutOfDate},
    netlink::{ChangeStream, KernelChange, Netlink, NetlinkError},
    plan::PlannedPlace,
    runtime::DataplaneRuntime,
    snapshot_server::locked,
    stations::NextStep,
};

/// How long after a change others are waited for, and how long at most.
const DEBOUNCE: Duration = Duration::from_millis(2);
const DEBOUNCE_LIMIT: Duration = Duration::from_millis(20);
/// How long after a failure ports are tried to be opened again: at first, and at most (doubled each time). A port that a
/// link's change makes possible is opened at that change.
const RETRY_FIRST: Duration = Duration::from_secs(1);
const RETRY_MOST: Duration = Duration::from_secs(30);
/// How often settings are read of whose changes the kernel says nothing (redirects, proxy ARP).
const SETTINGS_POLL: Duration = Duration::from_secs(2);
/// Least time between questions for nodes: their addresses are looked for among all of the snapshot's.
const NODES_PAUSE: Duration = Duration::from_millis(100);
/// Neighbours that are resolved because traffic asked for them, at most. The oldest goes for a new one, so that a scan
/// of an on-link network cannot fill the kernel's table.
const ASKED_LIMIT: usize = 1024;

/// Follows the kernel.
pub struct KernelSync {
    machine: Arc<DataplaneRuntime>,
    netlink: Netlink,
    changes: ChangeStream,
    view: KernelState,
    /// Neighbours that routes need: kept resolved.
    wanted: BTreeSet<(u32, IpAddr)>,
    /// Neighbours that traffic asked for, oldest first.
    asked: VecDeque<(u32, IpAddr)>,
    local: Vec<IpAddr>,
    /// Nodes on wires that are to be asked for their Ethernet addresses, and when that may be done.
    nodes_to_ask: BTreeSet<(PortId, String)>,
    nodes_due: Instant,
    /// When ports that could not be opened are tried again, and how long it waited for that.
    retry: (Instant, Duration),
    /// When settings are read again, even where the kernel says nothing.
    settings_due: Instant,
}

impl KernelSync {
    /// Subscribes, then reads everything once.
    pub fn new(machine: Arc<DataplaneRuntime>) -> Result<Self, NetlinkError> {
        let changes = ChangeStream::subscribe()?;
        let mut follower = Self {
            machine,
            netlink: Netlink::open()?,
            changes,
            view: KernelState::default(),
            wanted: BTreeSet::new(),
            asked: VecDeque::new(),
            local: Vec::new(),
            nodes_to_ask: BTreeSet::new(),
            nodes_due: Instant::now(),
            retry: (Instant::now() + RETRY_FIRST, RETRY_FIRST),
            settings_due: Instant::now() + SETTINGS_POLL,
        };
        follower.read_all()?;
        Ok(follower)
    }

    fn read_all(&mut self) -> Result<(), NetlinkError> {
        self.view.set_links(&self.netlink.links()?);
        self.view.set_addresses(&self.netlink.addresses()?);
        self.view.set_routes(&self.netlink.routes()?);
        self.view.set_neighbours(&self.netlink.neighbours()?);
        Ok(())
    }

    /// The addresses of this host as of the last reading.
    pub fn local(&self) -> &[IpAddr] {
        &self.local
    }

    /// Publishes the state as it was read last.
    pub fn publish(&mut self) {
        let KernelForwarding {
            forwarding,
            local,
            needed_neighbours: wanted,
            ..
        } = {
            let plan = locked(&self.machine.plan);
            forwarding_from_kernel(
                &self.view,
                &plan.ports,
                &plan.places,
                &locked(&self.machine.stations),
                plan.host.as_ref(),
                plan.routed,
                &|name| self.machine.partial_checksums(name),
            )
        };
        {
            let mut plane = locked(&self.machine.plane);
            plane.forwarding.publish(forwarding);
            plane.forwarding.reclaim();
        }
        if local != self.local {
            self.machine.set_local(&local);
            self.local = local;
        }
        self.keep_resolved(wanted);
    }

    fn keep_resolved(&mut self, wanted: BTreeSet<(u32, IpAddr)>) {
        // What an administrator has set needs nothing, until it is gone.
        let wanted: BTreeSet<(u32, IpAddr)> = wanted.difference(&self.view.fixed).copied().collect();
        for (link, address) in wanted.difference(&self.wanted) {
            if let Err(error) = self.netlink.manage_neighbour(*link, *address) {
                tracing::warn!(%error, "neighbour");
            }
        }
        let gone: Vec<(u32, IpAddr)> = self.wanted.difference(&wanted).copied().collect();
        self.wanted = wanted;
        for key in gone {
            self.forget(key);
        }
    }

    /// Forgets a neighbour, unless an administrator has set it since.
    fn forget(&mut self, key: (u32, IpAddr)) {
        if !self.view.fixed.contains(&key) {
            let _ = self.netlink.forget_neighbour(key.0, key.1); // gone with its link, mostly
        }
    }

    /// What workers ask for.
    fn resolve(&mut self) {
        while let Some(request) = { locked(&self.machine.plane).next_resolve() } {
            let ResolveRequest { port, addr } = request;
            let name = {
                let plan = locked(&self.machine.plan);
                plan.ports
                    .iter()
                    .find(|planned| planned.id == port)
                    .map(|planned| planned.name.clone())
            };
            let Some((link, _)) = name.and_then(|name| self.view.link_named(&name)) else {
                continue;
            };
            let key = (link, IpAddr::from(addr));
            if self.view.fixed.contains(&key) {
                continue;
            }
            if !self.wanted.contains(&key) && !self.asked.contains(&key) {
                if self.asked.len() >= ASKED_LIMIT
                    && let Some(oldest) = self.asked.pop_front()
                {
                    self.forget(oldest);
                }
                self.asked.push_back(key);
            }
            if let Err(error) = self.netlink.manage_neighbour(link, key.1) {
                tracing::debug!(%error, "neighbour");
            }
        }
    }

    /// What workers hear of nodes on wires, and the nodes that traffic waits for.
    fn follow_stations(&mut self) {
        let mut changed = false;
        while let Some(news) = { locked(&self.machine.plane).next_station_report() } {
            let named = |snapshot: &Snapshot| snapshot.node_name(news.node).map(str::to_owned);
            let snapshot = self
                .machine
                .publication
                .remembered(|generation| generation == news.generation.0);
            let Some(node) = snapshot.as_deref().and_then(named) else {
                continue;
            };
            let mut stations = locked(&self.machine.stations);
            let next = match news.claimed {
                Some(mac) => stations.observe(news.port, &node, mac, Instant::now()),
                None => stations.request(news.port, &node, Instant::now()),
            };
            match next {
                NextStep::Nothing => {}
                NextStep::Publish => changed = true,
                NextStep::Ask => drop(self.nodes_to_ask.insert((news.port, node))),
            }
        }
        if changed {
            self.publish();
        }
        if !self.nodes_to_ask.is_empty() && self.nodes_due <= Instant::now() {
            let asked = std::mem::take(&mut self.nodes_to_ask);
            self.ask_nodes(&asked);
            self.nodes_due = Instant::now() + NODES_PAUSE;
        }
    }

    /// Has nodes asked for their Ethernet addresses, by all their addresses, in the VLANs that these have a place in.
    fn ask_nodes(&self, asked: &BTreeSet<(PortId, String)>) {
        let Some(snapshot) = self.machine.publication.remembered(|_| true) else {
            return;
        };
        let addresses = snapshot.addresses_of_nodes();
        let plan = locked(&self.machine.plan);
        for (port, node) in asked {
            let planned = plan.ports.iter().find(|planned| planned.id == *port);
            let Some((_, link)) = planned.and_then(|planned| self.view.link_named(&planned.name)) else {
                continue;
            };
            for address in addresses.get(node.as_str()).into_iter().flatten() {
                let holds = |place: &&PlannedPlace| place.network.contains(address);
                let vlan = plan.places.iter().find(holds).and_then(|place| place.place.vlan);
                let frame = neighbour_probe((*address).into(), link.mac, vlan.unwrap_or(0));
                if !locked(&self.machine.plane).send(*port, &frame) {
                    tracing::debug!(node, "no room for a question");
                }
            }
        }
        self.machine.publication.wake();
    }

    /// Neighbours that traffic asked for and nobody answered: asked for again when traffic does.
    fn drop_failed(&mut self) {
        let failed: Vec<(u32, IpAddr)> = self
            .asked
            .iter()
            .filter(|key| self.view.neighbours.get(key) == Some(&KernelNeighbour::Failed))
            .copied()
            .collect();
        for key in failed {
            self.asked.retain(|other| *other != key);
            self.forget(key);
        }
    }

    /// Until the machine stops.
    pub fn run(mut self) {
        while !self.machine.stop.load(Ordering::Relaxed) {
            self.retry_ports();
            if self.changes.settings_changed() || self.settings_due <= Instant::now() {
                self.machine.keep_settings(&self.view);
                self.machine.keep_quarantine();
                self.settings_due = Instant::now() + SETTINGS_POLL;
            }
            if let Err(error) = self.turn() {
                tracing::error!(%error, "cannot follow the kernel's routes; retrying");
                std::thread::sleep(Duration::from_secs(1));
                if self.read_all().is_ok() {
                    self.machine.look_after_ports(&self.view, &self.local);
                    self.publish();
                }
            }
        }
    }

    /// What kept a port closed may be over without any change of a link: frames, a queue that somebody held.
    fn retry_ports(&mut self) {
        let (due, pause) = self.retry;
        if Instant::now() < due {
            return;
        }
        self.machine.retire_gone();
        let pause = if self.machine.has_closed_ports(&self.view) {
            self.machine.look_after_ports(&self.view, &self.local);
            self.publish();
            (pause * 2).min(RETRY_MOST)
        } else {
            RETRY_FIRST
        };
        self.retry = (Instant::now() + pause, pause);
    }

    /// How long there is nothing to do unless the kernel or a worker has news.
    fn next_due(&self) -> Duration {
        let nodes = (!self.nodes_to_ask.is_empty()).then_some(self.nodes_due);
        [self.retry.0, self.settings_due]
            .into_iter()
            .chain(nodes)
            .min()
            .map_or(Duration::ZERO, |due| {
                due.saturating_duration_since(Instant::now())
            })
    }

    fn turn(&mut self) -> Result<(), NetlinkError> {
        let mut stale = OutOfDate::default();
        let mut overrun = false;
        if self.changes.is_ready(self.next_due(), &self.machine.requests)? {
            overrun = self.take(Duration::ZERO, &mut stale)?;
        }
        // Cleared before the queues are emptied: what comes later signals again.
        self.machine.requests.clear();
        self.resolve();
        self.follow_stations();
        if !stale.any() && !overrun {
            return Ok(());
        }
        let begin = Instant::now();
        while begin.elapsed() < DEBOUNCE_LIMIT {
            let mut more = OutOfDate::default();
            overrun |= self.take(DEBOUNCE, &mut more)?;
            if !more.any() {
                break;
            }
            stale = stale.and(more);
        }
        if overrun {
            tracing::warn!("missed changes of the kernel's tables: reading them again");
            self.read_all()?;
            stale.all = true;
        } else if stale.all {
            self.view.set_links(&self.netlink.links()?);
            self.view.set_addresses(&self.netlink.addresses()?);
            self.view.set_routes(&self.netlink.routes()?);
            // Neighbours of links that are gone went without a word.
            let links: BTreeMap<u32, ()> = self.view.links.keys().map(|index| (*index, ())).collect();
            self.view
                .neighbours
                .retain(|(link, _), _| links.contains_key(link));
            self.view.fixed.retain(|(link, _)| links.contains_key(link));
        } else if stale.routes {
            self.view.set_routes(&self.netlink.routes()?);
        }
        if stale.all {
            self.machine.look_after_ports(&self.view, &self.local);
        }
        self.publish();
        self.drop_failed();
        Ok(())
    }

    /// Takes what there is, waiting up to `timeout`; the answer is whether messages were lost.
    fn take(&mut self, timeout: Duration, stale: &mut OutOfDate) -> Result<bool, NetlinkError> {
        match self.changes.wait(timeout)? {
            KernelChange::Overrun => Ok(true),
            KernelChange::Messages(messages) => {
                for message in &messages {
                    *stale = stale.and(self.view.apply(message));
                }
                Ok(false)
            }
        }
    }
}
