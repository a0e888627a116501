//! The hidden `ringwall dataplane`: the process that owns the ports.
//!
//! Whatever is slow comes before the sockets are bound, so that a restart loses little: memory, programs, snapshot,
//! routes; then sockets, workers, and last the entries of the XSKMAP. Packet memory comes first of all: a process that
//! the supervisor has started and not yet told to go stands by with it ([`stand_by`]).

use std::{
    collections::BTreeMap,
    num::NonZeroU32,
    os::{fd::OwnedFd, unix::net::UnixStream},
    path::{Path, PathBuf},
    process::ExitCode,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use anyhow::Context;
use ipnet::IpNet;
use ringwall_config::{Config, FailMode, IdlePolicy, Midstream, Mode, TcpTracking, Timeouts, ZeroCopy};
use ringwall_dataplane::{
    classify::{DenialAnswer, Snapshot},
    dataplane::{Dataplane, DataplaneConfig},
    failsafe::{Failsafe, FailsafeRule, Prefix},
    flow::{self, FlowConfig, RateLimit},
    port::PortKind,
    time::Nanos,
    tunnels::{OpaqueAction, Tunnels},
    wire::tunnel::TunnelKind,
    worker::Worker,
};
use ringwall_messages::{
    ChildReport, ContentHash, DATAPLANE_SOCKET, Lifeline, REPORT_INTERVAL, Received, SupervisorOrder,
    read_image,
};
use ringwall_process::{
    cpus,
    essential::{EXIT_SOFTWARE, Essential, Exits, StallDetector},
};
use ringwall_xsk::{SpareMemory, XskIo};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::{
    changes::{Change, Changes},
    flow_table,
    flows::LiveFlows,
    kept_table::table_name,
    kernel_state::KernelState,
    kernel_sync::KernelSync,
    last_snapshot::{LastSnapshot, SnapshotInputs},
    netlink::Netlink,
    node::{NodeGuard, cni},
    plan::{Plan, PlannedPort},
    pod_guard::PodGuard,
    pod_networks::PodNetworks,
    port_numbers::PortNumbers,
    ports,
    quarantine::Quarantine,
    runtime::{DataplaneRuntime, port_config},
    snapshot_server::{SnapshotServer, Sources, locked, serve, serve_after},
    stop_signal::{StopSignal, take_line},
    worker_thread::{self, RequestSignal, WorkerWakers},
};

/// How often the watchdog looks, and after how many looks without a turn a worker counts as stuck.
const LOOK: Duration = Duration::from_millis(500);
const STUCK_AFTER: u32 = 6;
/// How long workers may take to end.
const GRACE: Duration = Duration::from_secs(2);
/// How often a process that stands by looks whether its packet memory is still what it would take.
const STANDBY_LOOK: Duration = Duration::from_secs(1);
/// Most packet memory that a process that stands by has; one that needs more makes it when it goes.
const MAX_STANDBY_MEMORY: u64 = 256 << 20;
/// How long a queue that the process before still holds is tried again.
const BIND_TIMEOUT_MS: u64 = 3000;
/// The same, for each port more: the kernel closes the sockets of a killed process one after the other.
const BIND_TIMEOUT_PER_PORT_MS: u64 = 50;
/// Port numbers there are room for, beside those of the start: pods at one time, and those that went and are still named by
/// flows.
const SPARE_PORTS: usize = 4096;

/// Arguments of `ringwall dataplane`, which `ringwall run` starts.
#[derive(Clone, Debug, clap::Args)]
pub struct DataplaneArgs {
    /// Configuration file
    #[arg(long, value_name = "FILE")]
    pub config: PathBuf,
    /// Begin when told to on standard input, end when that ends: the supervisor holds its other end
    #[arg(long, hide = true)]
    pub supervised: bool,
    /// Folder of manifests that policies come from, whatever the configuration says
    #[arg(long, value_name = "DIR", hide = true)]
    pub manifests: Option<PathBuf>,
    /// Kubeconfig of the API server that policies come from, whatever the configuration says
    #[arg(long, value_name = "FILE", hide = true)]
    pub kubeconfig: Option<PathBuf>,
}

/// Runs until SIGTERM, or until the supervisor is gone. The programs stay on the ports, and the fail mode holds.
pub fn run(args: &DataplaneArgs) -> anyhow::Result<ExitCode> {
    ringwall_process::log::start();
    let stop = StopSignal::catch().context("cannot catch signals")?;
    // Before there is another thread. A configuration that cannot be read is reported when it is needed.
    if let Ok(config) = load(args) {
        cpus::leave_to_workers(&config);
    }
    let beginning = if args.supervised {
        let line = Arc::new(take_line()?);
        match stand_by(args, &stop, line)? {
            Some(beginning) => beginning,
            None => return Ok(ExitCode::SUCCESS),
        }
    } else {
        StartOptions::default()
    };
    let started = Instant::now();
    let config = load(args)?;
    cpus::leave_to_workers(&config); // it may have changed while this process stood by
    let plan = Plan::make(&config)?;
    done(started, "configuration and plan");
    super::make_private_dir(&plan.runtime_dir)?;
    super::make_private_dir(&plan.state_dir)?;
    let mut changes = Changes::open(&plan.state_dir)?;
    revert_former_ports(&plan, &mut changes);
    let (mark, pins, state_dir) = (changes.mark(), plan.pins.clone(), plan.state_dir.clone());
    let first = mark == 0 && ringwall_bpf::pinned_ports(&pins).is_empty();
    let start = |mut changes: Changes| {
        // A process that gave up its rights mounts nothing.
        if ringwall_bpf::needs_bpffs(&config.bpffs) {
            changes.record([Change::Mount {
                path: config.bpffs.clone(),
            }])?;
            ringwall_bpf::ensure_bpffs(&config.bpffs)?;
        }
        // Before there is another thread: it would keep its rights.
        ringwall_process::confine::dataplane(&config)?;
        let line = beginning.line.clone();
        let orders = line.map(|line| stop.follow_supervisor(line)).transpose()?;
        Running::start(&config, plan, changes, beginning, orders, started)
    };
    let mut running = start(changes).inspect_err(|_| {
        // What an earlier process made stays: its fail mode holds.
        if let Err(error) = revert_failed_start(mark, first, &pins, &state_dir) {
            report_not_reverted(&[format!("{error:#}")]);
        }
    })?;
    let outcome = running.watch(&stop);
    running.end();
    outcome
}

/// Takes programs and changes off interfaces that were ports of an earlier process and are none now.
fn revert_former_ports(plan: &Plan, changes: &mut Changes) {
    let is_port = |name: &str| {
        let host = plan.host.as_ref();
        plan.ports.iter().any(|port| port.name == name) || host.is_some_and(|host| host.outer == name)
    };
    let mut failed = Vec::new();
    for name in ringwall_bpf::pinned_ports(&plan.pins)
        .into_iter()
        .filter(|name| !is_port(name))
    {
        failed.extend(
            ringwall_bpf::detach(&plan.pins, &name)
                .err()
                .map(|error| error.to_string()),
        );
    }
    if !plan.kernel_path {
        failed.extend(
            ringwall_bpf::node::detach(&plan.pins)
                .err()
                .map(|error| error.to_string()),
        );
    }
    let table = Quarantine::planned(&plan.name, plan)
        .map(|quarantine| quarantine.table().to_owned())
        .or_else(|| NodeGuard::planned_table(plan));
    failed.extend(changes.take_back(
        0,
        |change| matches!(change, Change::Table { name } if table.as_ref() != Some(name)),
    ));
    failed.extend(changes.take_back(0, |change| {
        let gateway = matches!(change, Change::Address { interface, .. } if interface.name == "lo");
        !gateway
            && change
                .interface()
                .is_some_and(|interface| !is_port(&interface.name))
    }));
    report_not_reverted(&failed);
}

/// Takes back what a start that failed has made; where it was the `first`, whatever of ringwall is on the machine.
fn revert_failed_start(mark: usize, first: bool, pins: &Path, state_dir: &Path) -> anyhow::Result<()> {
    if first {
        for name in ringwall_bpf::pinned_ports(pins) {
            ringwall_bpf::detach(pins, &name)?;
        }
        ringwall_bpf::node::detach(pins)?;
        Netlink::open()?.forget_managed()?;
    }
    ports::remove_empty(pins);
    let mut changes = Changes::open(state_dir)?;
    report_not_reverted(&changes.take_back(mark, |_| true));
    if first && changes.is_empty() {
        changes.remove()?;
    }
    Ok(())
}

/// Takes back the mount of the BPF file system that a first start left which failed: a process that gave up its rights
/// cannot.
pub(super) fn revert_mount(state_dir: &Path) -> anyhow::Result<()> {
    let mut changes = Changes::open(state_dir)?;
    report_not_reverted(&changes.take_back(0, |change| matches!(change, Change::Mount { .. })));
    if changes.is_empty() {
        changes.remove()?;
    }
    Ok(())
}

fn report_not_reverted(failed: &[String]) {
    for error in failed {
        tracing::warn!(error, "cannot be taken back");
    }
}

/// The configuration, with the source that the command line names.
fn load(args: &DataplaneArgs) -> anyhow::Result<Config> {
    let mut config = super::load_config(&args.config)?;
    let source = &mut config.source.kind;
    source.replace_by(args.manifests.as_deref(), args.kubeconfig.as_deref());
    Ok(config)
}

/// What a process begins with that has stood by.
#[derive(Default)]
struct StartOptions {
    spare: Option<SpareMemory>,
    /// What it decides by from the first packet, instead of the snapshot on disk.
    snapshot: Option<Snapshot>,
    /// Its flow table, where it has another layout than the one in use.
    flows: Option<flow_table::Prepared>,
    /// The line to the supervisor.
    line: Option<Arc<Lifeline>>,
    /// Whether it has to wait for [`SupervisorOrder::Serve`].
    on_trial: bool,
}

/// Waits for the supervisor's word to begin; None where there is none to come. Until then nothing is changed on the machine,
/// and nothing is kept but packet memory and, in an upgrade, a snapshot and an empty flow table: whatever else could be
/// outdated by then is read afterwards, as at every start.
fn stand_by(
    args: &DataplaneArgs,
    stop: &StopSignal,
    line: Arc<Lifeline>,
) -> anyhow::Result<Option<StartOptions>> {
    let mut beginning = StartOptions::default();
    let mut patience = Duration::ZERO;
    loop {
        let timespec = Timespec {
            tv_sec: patience.as_secs() as i64,
            tv_nsec: i64::from(patience.subsec_nanos()),
        };
        let mut fds = [
            PollFd::new(stop, PollFlags::IN),
            PollFd::new(&*line, PollFlags::IN),
        ];
        match poll(&mut fds, Some(&timespec)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error).context("cannot wait for the supervisor"),
        }
        let told = !fds[1].revents().is_empty();
        if stop.is_set() {
            return Ok(None);
        }
        if told {
            let Some(Received { message, fd }) = line.hear() else {
                return Ok(None);
            };
            match message {
                SupervisorOrder::Go { on_trial } => {
                    beginning.on_trial = on_trial;
                    beginning.line = Some(line);
                    return Ok(Some(beginning));
                }
                SupervisorOrder::Snapshot {
                    generation,
                    hash,
                    bytes,
                } => {
                    let image = fd.context("no memory came with the snapshot");
                    let ready = image
                        .and_then(|fd| check(args, fd, bytes, generation, hash))
                        .and_then(|snapshot| Ok((snapshot, prepare(args)?)));
                    beginning.spare = refresh_or_none(beginning.spare.take(), &args.config);
                    let report = match ready {
                        Ok((snapshot, flows)) => {
                            beginning.snapshot = Some(snapshot);
                            beginning.flows = flows;
                            ChildReport::Ready
                        }
                        Err(error) => ChildReport::Refused {
                            reason: format!("{error:#}"),
                        },
                    };
                    line.report(&report, None);
                }
                SupervisorOrder::Serve => {}
            }
            continue;
        }
        beginning.spare = refresh_or_none(beginning.spare.take(), &args.config);
        patience = STANDBY_LOOK;
    }
}

/// Whether this process could begin with a snapshot, as far as that can be known without changing anything.
fn check(
    args: &DataplaneArgs,
    image: OwnedFd,
    bytes: u64,
    generation: u64,
    hash: ContentHash,
) -> anyhow::Result<Snapshot> {
    Plan::make(&load(args)?)?;
    let image = read_image(image, bytes).context("the snapshot cannot be read")?;
    let snapshot = Snapshot::open(&image).context("the snapshot is not valid")?;
    anyhow::ensure!(
        snapshot.generation().0 == generation && snapshot.hash() == hash.0,
        "the snapshot is not the announced one"
    );
    Ok(snapshot)
}

/// What is not taken over from the dataplane that runs, because it has another layout: the BPF programs, which stay with
/// this process until it begins, and the flow table.
fn prepare(args: &DataplaneArgs) -> anyhow::Result<Option<flow_table::Prepared>> {
    let config = load(args)?;
    ringwall_bpf::prepare(&Plan::outline(&config)?.pins)?;
    flow_table::prepare(&config.runtime_dir, config.conntrack.max_entries.get() as usize)
}

fn refresh_or_none(spare: Option<SpareMemory>, config: &Path) -> Option<SpareMemory> {
    refresh(spare, config).unwrap_or_else(|error| {
        tracing::debug!("no packet memory is kept: {error:#}");
        None
    })
}

fn refresh(spare: Option<SpareMemory>, config: &Path) -> anyhow::Result<Option<SpareMemory>> {
    let config = super::load_config(config)?;
    let plan = Plan::outline(&config)?;
    let wanted = socket_config(&config, &plan, &usable_ports(&plan, &BTreeMap::new())?);
    Ok(SpareMemory::refresh(spare, &wanted, MAX_STANDBY_MEMORY)?)
}

/// A worker's thread.
struct Thread {
    index: usize,
    handle: JoinHandle<()>,
}

/// Everything that runs.
struct Running {
    /// The line to the supervisor.
    line: Option<Arc<Lifeline>>,
    machine: Arc<DataplaneRuntime>,
    stop_workers: Arc<AtomicBool>,
    sleepers: Arc<WorkerWakers>,
    workers: Vec<Thread>,
    disk: JoinHandle<()>,
    /// Of every thread that goes on as long as the process.
    ends: Exits,
    /// Readable once one of them has ended.
    bell: UnixStream,
    socket: PathBuf,
}

impl Running {
    fn start(
        config: &Config,
        plan: Plan,
        mut changes: Changes,
        beginning: StartOptions,
        orders: Option<mpsc::Receiver<SupervisorOrder>>,
        started: Instant,
    ) -> anyhow::Result<Self> {
        let StartOptions {
            spare,
            snapshot,
            flows,
            line,
            on_trial,
        } = beginning;
        ports::prepare_interfaces(&plan, &mut Netlink::open()?, &mut changes)?;
        let found = ports::repair_interfaces(&plan, &mut changes)?;
        for remark in &found.remarks {
            tracing::info!("{remark}");
        }
        let node = if plan.kernel_path {
            changes.record([Change::Table {
                name: table_name(&plan.name),
            }])?;
            Some(Arc::new(NodeGuard::open(config, &plan.pins, plan.cpus.len())?))
        } else {
            None
        };
        done(started, "interfaces ready");

        // Packet memory and sockets take as long as all the rest together: beside it. Nothing comes in before the
        // sockets are registered.
        let sockets = {
            let wanted = socket_config(config, &plan, &usable_ports(&plan, &found.unfit)?);
            let node = node.clone();
            spawn("rw-sockets", move || {
                let open = || ringwall_xsk::open_with(&wanted, spare);
                let opened = match node {
                    None => open()?,
                    Some(node) => node
                        .pair()
                        .inside(open)
                        .context("cannot enter the worker's namespace")??,
                };
                done(started, "sockets open");
                anyhow::Ok(opened)
            })?
        };
        let port_limit = plan.ports.len() + SPARE_PORTS;
        let (plane, seats) = packet_plane(flows, config, &plan, node.as_deref(), port_limit, started)?;
        let stats = plane.stats();
        let plane = Arc::new(Mutex::new(plane));
        let sleepers_cell: Arc<std::sync::OnceLock<Arc<WorkerWakers>>> = Arc::default();
        let is_staged = snapshot.is_some();
        let publication = {
            let last = LastSnapshot::new(
                config.snapshot_file(),
                SnapshotInputs::of(config),
                config.source.max_age,
            );
            let sleepers = Arc::clone(&sleepers_cell);
            let wake = move || {
                if let Some(sleepers) = sleepers.get() {
                    sleepers.wake_all();
                }
            };
            let (plane, workers) = (Arc::clone(&plane), seats.len() as u32);
            Arc::new(match snapshot {
                Some(snapshot) => SnapshotServer::staged(plane, last, workers, wake, snapshot),
                None => SnapshotServer::new(plane, last, workers, wake),
            })
        };
        let machine = Arc::new(DataplaneRuntime {
            plan: Mutex::new(plan.clone()),
            live: Mutex::new(Vec::new()),
            refused: Mutex::default(),
            sockets: Mutex::new(None),
            plane,
            publication: Arc::clone(&publication),
            stats,
            pods: Mutex::new(PodNetworks::new(config.cluster.pod_cidrs.clone())),
            umem: config.umem,
            stop: AtomicBool::new(false),
            requests: RequestSignal::new().context("cannot create an event")?,
            alive: seats.iter().map(|_| AtomicBool::new(true)).collect(),
            numbers: Mutex::new(PortNumbers::new(plan.ports.len(), port_limit)),
            local: Mutex::default(),
            attaching: Mutex::new(()),
            quarantine: Mutex::new(Quarantine::planned(&plan.name, &plan)),
            guarding: AtomicBool::new(false),
            changes: Mutex::new(changes),
            meddled: Mutex::default(),
            stations: Mutex::default(),
            partial: Mutex::default(),
            node: node.clone(),
            started,
        });
        let mut follower = KernelSync::new(Arc::clone(&machine))?;
        follower.publish();
        machine.learn_pods(); // from the last snapshot, where there is one
        done(started, "snapshot and routes");

        let pods = locked(&machine.pods).known.clone();
        // From here on the machine's ports change; what fails takes back what was not there before.
        *locked(&machine.live) =
            ports::attach_all(&plan, follower.local(), &pods, &mut locked(&machine.changes))?;
        done(started, "programs attached");
        let named_and_generic = locked(&machine.live)
            .iter()
            .find(|port| !port.planned.matched && port.would_lose_segments())
            .map(|port| port.planned.name.clone());
        if let Some(name) = named_and_generic {
            ports::roll_back(std::mem::take(&mut *locked(&machine.live)));
            anyhow::bail!(
                "interface `{name}` is a veth and cannot have native XDP (the log says why): generic XDP would lose the large segments that its other end sends"
            );
        }
        machine.hold_unguarded();
        let undo = |machine: &DataplaneRuntime| ports::roll_back(std::mem::take(&mut *locked(&machine.live)));
        let opened = sockets
            .join()
            .map_err(|_| anyhow::anyhow!("the thread that opens the sockets panicked"))
            .and_then(|opened| opened);
        let (sockets, ios) = match opened {
            Ok(opened) => opened,
            Err(error) => {
                undo(&machine);
                return Err(error);
            }
        };
        done(started, "sockets bound");
        let sleepers = Arc::new(WorkerWakers::new(ios.iter().map(XskIo::waker).collect()));
        let _ = sleepers_cell.set(Arc::clone(&sleepers));
        *locked(&machine.sockets) = Some(sockets);
        let stop_workers = Arc::new(AtomicBool::new(false));
        let workers = seats
            .into_iter()
            .zip(ios)
            .zip(&plan.cpus)
            .map(|((seat, io), cpu)| (Worker::new(seat, io), *cpu))
            .collect();
        let (bell, rope) = UnixStream::pair()?;
        let (essential, ends) = Essential::with_exit_signal(rope)?;
        let begun = start_workers(workers, plan.idle, &sleepers, &machine, &stop_workers, &essential)
            .and_then(|threads| {
                machine.register(None)?;
                machine.node.as_ref().map_or(Ok(()), |node| node.guard())?;
                Ok(threads)
            });
        let workers = match begun {
            Ok(threads) => threads,
            Err(error) => {
                stop_workers.store(true, Ordering::Relaxed);
                undo(&machine);
                return Err(error);
            }
        };
        done(started, "workers receive");

        let disk = {
            let publication = Arc::clone(&publication);
            spawn_essential(&essential, "rw-disk", move || publication.keep_on_disk())?
        };
        let socket = plan.runtime_dir.join(DATAPLANE_SOCKET);
        let reporter = Arc::clone(&machine);
        let flows = LiveFlows::new(Arc::clone(&machine));
        let drops = Arc::clone(&flows);
        spawn_essential(&essential, "rw-drops", move || drops.gather_drops())?;
        let starting = node.clone();
        let sources = Sources {
            status: Arc::new(move || reporter.status()),
            flows: Arc::new(move |filter, cursor| flows.page(filter, cursor)),
            pod_starts: Arc::new(move || starting.as_ref().map_or_else(Vec::new, |node| node.pod_starts())),
        };
        if let Some(node) = &node {
            node.follow(&publication);
        }
        match orders.filter(|_| on_trial) {
            Some(orders) => {
                let kept = Arc::clone(&publication);
                let word = move || {
                    let stays = orders.iter().any(|order| order == SupervisorOrder::Serve);
                    if stays {
                        kept.keep();
                    }
                    stays
                };
                serve_after(word, &socket, publication, sources, &essential)?;
            }
            None => {
                if is_staged {
                    publication.keep();
                }
                serve(&socket, publication, sources, &essential)?;
            }
        }
        let newcomers = PodGuard::new(Arc::clone(&machine))?;
        // The last: these keep the machine as it has to be, and a start that fails takes it back.
        {
            let machine = Arc::clone(&machine);
            spawn_essential(&essential, "rw-pods", move || machine.follow_pods())?;
        }
        spawn_essential(&essential, "rw-newcomers", move || newcomers.run())?;
        if let Some(node) = node {
            {
                let (node, machine) = (Arc::clone(&node), Arc::clone(&machine));
                let listener = cni::listen(&plan.runtime_dir)?;
                spawn_essential(&essential, "rw-cni", move || {
                    cni::serve(&listener, &node, &machine.stop)
                })?;
            }
            let machine = Arc::clone(&machine);
            spawn_essential(&essential, "rw-node", move || {
                node.run(&machine.stats, &machine.stop);
            })?;
        }
        spawn_essential(&essential, "rw-netlink", move || follower.run())?;
        if let Some(line) = &line {
            line.report(&ChildReport::Receiving, None);
        }
        Ok(Self {
            line,
            machine,
            stop_workers,
            sleepers,
            workers,
            disk,
            ends,
            bell,
            socket,
        })
    }

    /// Until told to stop. A thread that ends, or a worker that takes no turn, ends the process: the fail mode holds until
    /// its successor is there.
    fn watch(&mut self, stop: &StopSignal) -> anyhow::Result<ExitCode> {
        let mut standstills: Vec<StallDetector> = self
            .workers
            .iter()
            .map(|_| StallDetector::after(STUCK_AFTER))
            .collect();
        let mut beat = Instant::now();
        loop {
            let timespec = Timespec {
                tv_sec: 0,
                tv_nsec: LOOK.as_nanos() as i64,
            };
            let mut fds = [
                PollFd::new(stop, PollFlags::IN),
                PollFd::new(&self.bell, PollFlags::IN),
            ];
            match poll(&mut fds, Some(&timespec)) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error).context("cannot wait for signals"),
            }
            if stop.is_set() {
                return Ok(ExitCode::SUCCESS);
            }
            if let Some(ended) = self.ends.take() {
                tracing::error!("{ended}: exiting; the fail mode applies");
                // Not by returning: the successor would wait until the workers have closed their sockets.
                std::process::exit(i32::from(EXIT_SOFTWARE));
            }
            for (thread, standstill) in self.workers.iter().zip(&mut standstills) {
                let turns = self
                    .machine
                    .stats
                    .worker(thread.index)
                    .map_or(0, |counters| counters.turns.get());
                if standstill.is_stuck(turns) {
                    self.machine.alive[thread.index].store(false, Ordering::Relaxed);
                    tracing::error!(
                        worker = thread.index,
                        seconds = (LOOK * STUCK_AFTER).as_secs(),
                        "the worker is stuck: exiting; the fail mode applies"
                    );
                    // Not by returning: that would wait for the worker.
                    std::process::exit(i32::from(EXIT_SOFTWARE));
                }
            }
            if let Some(line) = self.line.as_ref().filter(|_| beat.elapsed() >= REPORT_INTERVAL) {
                beat = Instant::now();
                line.report(&ChildReport::Alive, None);
            }
        }
    }

    /// Ends the workers, whose sockets close; writes what is to be kept.
    fn end(self) {
        self.machine.stop.store(true, Ordering::Relaxed);
        self.machine.requests.signal();
        self.stop_workers.store(true, Ordering::Relaxed);
        self.sleepers.wake_all();
        self.machine.publication.close();
        let deadline = Instant::now() + GRACE;
        for handle in self
            .workers
            .into_iter()
            .map(|thread| thread.handle)
            .chain([self.disk])
        {
            while !handle.is_finished() && Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(1));
            }
            if handle.is_finished() {
                let _ = handle.join(); // a panic has been reported by the thread itself
            }
        }
        let _ = std::fs::remove_file(&self.socket);
    }
}

/// Notes how far the start is: what a restart costs is found here.
fn done(started: Instant, what: &str) {
    tracing::debug!(micros = started.elapsed().as_micros() as u64, what, "start");
}

/// Bytes of a frame, for turning `umem.total` into frames.
const FRAME_BYTES: u64 = 2048;

fn spawn<T: Send + 'static>(
    name: &str,
    body: impl FnOnce() -> T + Send + 'static,
) -> anyhow::Result<JoinHandle<T>> {
    std::thread::Builder::new()
        .name(name.to_owned())
        .spawn(body)
        .with_context(|| format!("cannot start the thread {name}"))
}

/// Starts a thread that goes on as long as the process.
fn spawn_essential(
    essential: &Essential,
    name: &str,
    body: impl FnOnce() + Send + 'static,
) -> anyhow::Result<JoinHandle<()>> {
    essential
        .thread(name, body)
        .with_context(|| format!("cannot start the thread {name}"))
}

/// Starts the workers, each pinned to its CPU; fails where one cannot be pinned.
fn start_workers(
    workers: Vec<(Worker<XskIo>, u16)>,
    idle: IdlePolicy,
    sleepers: &Arc<WorkerWakers>,
    machine: &Arc<DataplaneRuntime>,
    stop: &Arc<AtomicBool>,
    essential: &Essential,
) -> anyhow::Result<Vec<Thread>> {
    let (pinned, answers) = mpsc::channel();
    let mut threads = Vec::new();
    for (worker, cpu) in workers {
        let index = worker.index();
        let (sleepers, stop, pinned) = (Arc::clone(sleepers), Arc::clone(stop), pinned.clone());
        let machine = Arc::clone(machine);
        let handle = spawn_essential(essential, &format!("rw-worker-{index}"), move || {
            let result = ringwall_xsk::pin_to(usize::from(cpu));
            let fine = result.is_ok();
            let _ = pinned.send(result);
            drop(pinned); // the receiver waits for the last one
            if fine {
                worker_thread::worker_loop(worker, idle, &sleepers, &machine.requests, &stop);
            }
        })?;
        threads.push(Thread { index, handle });
    }
    drop(pinned);
    for answer in answers {
        answer?;
    }
    Ok(threads)
}

/// The ports that can be opened at the start. A pod's that is down waits for who sets it up, one that is unfit for who
/// mends it.
fn usable_ports(plan: &Plan, unfit: &BTreeMap<String, String>) -> anyhow::Result<Vec<PlannedPort>> {
    let mut view = KernelState::default();
    view.set_links(&Netlink::open()?.links()?);
    let waits = |port: &PlannedPort| {
        unfit.contains_key(&port.name)
            || port.kind == PortKind::Pod && view.link_named(&port.name).is_some_and(|(_, link)| !link.up)
    };
    Ok(plan.ports.iter().filter(|port| !waits(port)).cloned().collect())
}

/// The sockets of these ports.
fn socket_config(config: &Config, plan: &Plan, fit: &[PlannedPort]) -> ringwall_xsk::Config {
    ringwall_xsk::Config {
        ports: fit.iter().map(|port| port_config(port, config.umem)).collect(),
        workers: plan.cpus.len(),
        zero_copy: zero_copy(plan),
        rings: Default::default(),
        frames: config
            .umem
            .total
            .map(|bytes| u32::try_from(bytes / FRAME_BYTES).unwrap_or(u32::MAX)),
        late_ports: late_ports(plan),
        bind_timeout_ms: BIND_TIMEOUT_MS + BIND_TIMEOUT_PER_PORT_MS * plan.ports.len() as u64,
    }
}

/// How many pods may come later: as many as a kubelet runs unless told otherwise, less those that are there.
fn late_ports(plan: &Plan) -> u32 {
    /// `maxPods` of a kubelet's configuration.
    const PODS: u32 = 110;
    /// Pods that are replaced overlap with their successors.
    const LEAST: u32 = 32;
    if !plan.takes_pods() {
        return 0;
    }
    let there = plan
        .ports
        .iter()
        .filter(|port| port.kind == PortKind::Pod)
        .count();
    PODS.saturating_sub(there as u32).max(LEAST)
}

/// The packet plane over the flow table that the process before left, or that was prepared.
fn packet_plane(
    prepared: Option<flow_table::Prepared>,
    config: &Config,
    plan: &Plan,
    node: Option<&NodeGuard>,
    ports: usize,
    started: Instant,
) -> anyhow::Result<(Dataplane, Vec<ringwall_dataplane::dataplane::WorkerSlot>)> {
    let entries = config.conntrack.max_entries.get() as usize;
    let now = worker_thread::now();
    let flows = flow_table::take(prepared, &plan.runtime_dir, entries, now)?;
    done(started, "flow table locked and mapped");
    tracing::info!(
        inherited = flows.is_inherited(),
        entries = flows.capacity(),
        "flow table"
    );
    let plane = Dataplane::new(
        DataplaneConfig {
            mode: match config.mode {
                Mode::Audit => ringwall_dataplane::dataplane::Mode::Audit,
                Mode::Enforce => ringwall_dataplane::dataplane::Mode::Enforce,
            },
            failsafe: failsafe(config),
            hosts_pods: config.hosts_pods,
            tunnels: tunnels(config),
            flow: flow_config(config),
            denial_answer: match config.denied {
                ringwall_config::DenialAnswer::Drop => DenialAnswer::Drop,
                ringwall_config::DenialAnswer::Reset => DenialAnswer::Reset,
                ringwall_config::DenialAnswer::Prohibited => DenialAnswer::Prohibited,
            },
            denials_answered: RateLimit {
                per_second: config.denied_rate,
                burst: config.denied_rate,
            },
            workers: plan.cpus.len(),
            ports,
            node: node.map(NodeGuard::of_workers),
            ..DataplaneConfig::default()
        },
        flows,
        now,
    )?;
    done(started, "flow table indexed");
    Ok(plane)
}

fn failsafe(config: &Config) -> Failsafe {
    let prefix = |network: &IpNet| Prefix::new(network.network().into(), network.prefix_len());
    Failsafe(
        config
            .failsafe
            .iter()
            .map(|entry| FailsafeRule {
                from: prefix(&entry.from),
                to: prefix(&entry.to),
                protocol: entry.protocol,
                ports: entry.ports,
            })
            .collect(),
    )
}

fn tunnels(config: &Config) -> Tunnels {
    use ringwall_config::UdpTunnel;
    let configured = &config.tunnels;
    Tunnels {
        allowed: configured.allowed,
        ports: configured.ports.clone(),
        kinds: configured
            .kinds
            .iter()
            .map(|(port, kind)| {
                let kind = match kind {
                    UdpTunnel::Vxlan => TunnelKind::Vxlan,
                    UdpTunnel::Geneve => TunnelKind::Geneve,
                    UdpTunnel::Flannel => TunnelKind::FlannelUdp,
                };
                (*port, kind)
            })
            .collect(),
        ip_in_ip: configured.ip_in_ip,
        gre: configured.gre,
        opaque: if configured.opaque_allowed {
            OpaqueAction::Allow
        } else {
            OpaqueAction::Drop
        },
        networks: configured
            .networks
            .iter()
            .map(|network| (network.vni, NonZeroU32::new(network.zone)))
            .collect(),
    }
}

fn flow_config(config: &Config) -> FlowConfig {
    FlowConfig {
        timeouts: timeouts(&config.conntrack.timeouts),
        pickup_window: match config.conntrack.tcp_midstream {
            Midstream::Pickup | Midstream::PickupAnswers => nanos(config.conntrack.pickup_window),
            Midstream::Strict => Nanos(0),
        },
        pickup_answers: config.conntrack.tcp_midstream == Midstream::PickupAnswers,
        tcp_strict: config.conntrack.tcp == TcpTracking::Strict,
        unseen: fails_open(config),
        ..FlowConfig::default()
    }
}

/// Whether anything passes while no dataplane runs.
fn fails_open(config: &Config) -> bool {
    let wires = match &config.role {
        ringwall_config::Role::Wire(wires) => wires.as_slice(),
        ringwall_config::Role::Routed | ringwall_config::Role::KernelPath => &[],
    };
    config.fail_mode == FailMode::Open || wires.iter().any(|wire| wire.fail_mode == FailMode::Open)
}

fn nanos(period: Duration) -> Nanos {
    Nanos(u64::try_from(period.as_nanos()).unwrap_or(u64::MAX))
}

fn timeouts(timeouts: &Timeouts) -> flow::Timeouts {
    flow::Timeouts {
        tcp_syn: nanos(timeouts.tcp_opening),
        tcp_handshake: nanos(timeouts.tcp_opening),
        tcp_established: nanos(timeouts.tcp_established),
        tcp_fin: nanos(timeouts.tcp_closing),
        tcp_time_wait: nanos(timeouts.tcp_closing),
        udp_new: nanos(timeouts.udp_new),
        udp_established: nanos(timeouts.udp_answered),
        sctp_established: nanos(timeouts.sctp),
        icmp: nanos(timeouts.icmp),
        other: nanos(timeouts.other),
        ..flow::Timeouts::default()
    }
}

/// One pool for all ports: zero-copy where all ask for it, or take it. Where one of them surely has none, it is not
/// tried: that would fill the pool's memory twice, in the time that a restart loses packets.
fn zero_copy(plan: &Plan) -> ringwall_xsk::ZeroCopy {
    let has = |what| plan.ports.iter().any(|port| port.zero_copy == what);
    let software = |name: &str| {
        ringwall_xsk::device::Device::lookup(name)
            .is_ok_and(|device| matches!(device.driver.as_str(), "veth" | "tun"))
    };
    if has(ZeroCopy::Require) {
        ringwall_xsk::ZeroCopy::Require
    } else if has(ZeroCopy::Off) || plan.ports.iter().any(|port| software(&port.name)) {
        ringwall_xsk::ZeroCopy::Off
    } else {
        ringwall_xsk::ZeroCopy::Prefer
    }
}
