//! The control process: source -> compile -> prove -> publish -> adopted, for ever.
//!
//! [`Controller::turn`] is the whole of it. One state is compiled and proven at a time, on a thread of its own
//! ([`pipeline`]), and the next one not before the dataplane has answered for it; what the source says meanwhile waits,
//! the newest only. Whatever fails, the dataplane goes on with the snapshot it has. Beside it the snapshot in force is
//! proven whole, slowly ([`rolling_proof`]).
#![forbid(unsafe_code)]

mod active_policy;
pub mod api;
pub mod dataplane_client;
pub mod frontends;
mod journal;
pub mod metrics;
mod overview;
mod pipeline;
mod pod_starts;
mod rolling_proof;
pub mod staged;

#[cfg(test)]
mod tests;

use std::{
    collections::BTreeSet,
    fs::{File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Context;
use ringwall_compile::{Budget, CompileError, EpochKey};
use ringwall_config::{Config, OnDeadline, SourceKind, UnknownEndpoints, Verify};
use ringwall_dataplane::classify::Image;
use ringwall_messages::{
    CONTROL_SOCKET, ChildReport, ClusterUid, ContentHash, DATAPLANE_SOCKET, Lifeline, REPORT_INTERVAL,
    SUPERVISION_FILE, Status, SupervisorOrder, client,
    cni::{POD_STARTS, PodStart},
    image_memfd,
};
use ringwall_policy::{Cluster, Settings};
use ringwall_process::{
    confine,
    confine::{CONTROL_FOLDER, EPOCH_KEY_FILE, POLICIES_FILE},
    cpus,
    essential::{EXIT_SOFTWARE, Essential, Exits, StallDetector, TaskExit},
};
use ringwall_source::{
    feed::{Feed, SourceState},
    folder::{FolderError, WatchOptions},
    kube,
    kube::{Access, KubeError},
    watched,
};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::mpsc,
};

pub(crate) use self::active_policy::AskError;
use self::{
    active_policy::CompiledPolicy,
    journal::{Adopted, Entry, Journal},
    overview::{Limits, Progress},
    pipeline::{CompiledSnapshot, Failure, Job, Outcome, Pipeline, Proof, StageFactory},
    rolling_proof::{ProofPass, RollingProof},
};
pub use self::{
    overview::{Overview, Reason},
    rolling_proof::ProofShare,
};
use crate::{
    api::Servers,
    dataplane_client::{DataplaneClient, Event},
};

/// How often the loop shows that it is not stuck.
const HEARTBEAT: Duration = Duration::from_secs(1);

/// How often the dataplane is told that what it decides by is what the source says.
const CONFIRM: Duration = Duration::from_secs(30);

/// How often it is looked whether it is.
const CONFIRM_CHECK: Duration = Duration::from_millis(500);

/// After a state over the budget, how many times as long as it took the next one waits unless its policies differ.
const BUDGET_BACKOFF_FACTOR: u32 = 10;

/// And how long at most.
const MAX_BUDGET_BACKOFF: Duration = Duration::from_secs(60);

/// How long after its second failure a state is compiled once more; doubled each time.
const FIRST_RETRY: Duration = Duration::from_secs(1);

/// And how long at most.
const MAX_RETRY: Duration = Duration::from_secs(60);

/// Generations that change nothing but pods share a line of the log for so long: there may be hundreds of them in a second.
const LOG_INTERVAL: Duration = Duration::from_secs(1);

/// How long a staged process waits for each word of the one in charge: about the generation in force, about pods that have started.
const GENERATION_TIMEOUT: Duration = Duration::from_secs(3);

/// The first generation of a staged process is so far above the one in force: others may come meanwhile, and numbers go on
/// to grow. Nothing but the order in the log depends on it.
const STAGED_GENERATION_GAP: u64 = 1000;

/// As many files are remembered for the log.
const MAX_FILES: usize = 100;

/// Arguments of `ringwall control`.
#[derive(Clone, Debug, clap::Args)]
pub struct ControlArgs {
    /// Configuration file
    #[arg(long, value_name = "FILE")]
    pub config: PathBuf,
    /// Folder of manifests to take policies from, whatever the configuration says
    #[arg(long, value_name = "DIR", conflicts_with = "kubeconfig")]
    pub manifests: Option<PathBuf>,
    /// Kubeconfig of the API server to take policies from, whatever the configuration says
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// End when standard input ends
    #[arg(long)]
    pub supervised: bool,
    /// Hand the first snapshot to the supervisor, and take over when it says so
    #[arg(long, hide = true, requires = "supervised")]
    pub staged: bool,
}

/// Why the control process cannot begin.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// The folder of manifests cannot be used.
    #[error(transparent)]
    Folder(#[from] FolderError),
    /// The folder says nothing about any address.
    #[error(
        "no pod in {} has an address, so all traffic in cluster.podCIDRs would be dropped as that of unknown endpoints; \
         export what runs (`kubectl get namespaces,nodes,pods,networkpolicies -A -o yaml`), take policies from the API \
         server (`source.kubeconfig`), or say `source.allowNoPods: true`",
        .0.display()
    )]
    NoPods(PathBuf),
    /// The taint of a node without a name is to be removed.
    #[error(
        "`untaintNode: true` takes the name of this machine's Node object, and the environment variable NODE_NAME {0}; set it \
         (in a pod by `fieldRef: {{fieldPath: spec.nodeName}}`), or remove `untaintNode`"
    )]
    NodeName(String),
    /// The API server cannot be used.
    #[error(transparent)]
    Kube(#[from] KubeError),
    /// It could not be asked.
    #[error(transparent)]
    Api(#[from] crate::api::ApiError),
    /// A thread cannot be started.
    #[error("cannot start a thread: {0}; raise the limit of processes")]
    Thread(io::Error),
    /// A file of the state directory.
    #[error("{}: {reason}", path.display())]
    StateFile {
        /// The file.
        path: PathBuf,
        /// What is wrong, and what to do.
        reason: String,
    },
}

/// What the control process needs of the configuration.
#[derive(Clone, Debug)]
pub struct Options {
    /// Name of the installation.
    pub name: String,
    /// Name of the node whose taint is removed once it is guarded; None where that is not wanted.
    pub untaint: Option<String>,
    /// Where objects come from.
    pub source: SourceKind,
    /// What the administrator says about the cluster.
    pub settings: Settings,
    /// Alarm after so long without connection to the source.
    pub stale_after: Duration,
    /// Alarm, and not ready, where a state is not adopted within this time.
    pub adopt_within: Duration,
    /// Whether to begin with a folder in which no pod has an address.
    pub allow_no_pods: bool,
    /// The dataplane's socket, and what the supervisor counts.
    pub runtime_dir: PathBuf,
    /// Its own socket.
    pub socket: PathBuf,
    /// The key of the epochs, and the policies seen last.
    pub state_dir: PathBuf,
    /// `/metrics`.
    pub metrics_listen: std::net::SocketAddr,
    /// `/livez` and `/readyz`; with the metrics where None.
    pub health_listen: Option<std::net::SocketAddr>,
    /// What is proven of a snapshot before it is published.
    pub verify: Verify,
    /// How long a proof may take, and what happens then.
    pub deadline: (Duration, OnDeadline),
    /// What failed is tried again at once, then after this time, doubled each time.
    pub retry: Duration,
    /// Generations that change nothing but pods share a line of the log for so long.
    pub gather: Duration,
    /// What one snapshot may take.
    pub budget: Budget,
    /// What the proof in the background may take.
    pub share: ProofShare,
    /// Of the line to the dataplane.
    pub publication: dataplane_client::Timing,
    /// Of the API server's watches; `stale_after` is taken from above.
    pub watches: kube::Timing,
    /// Of the folder's watch.
    pub folder: WatchOptions,
}

impl Options {
    /// Takes what is needed from the configuration, and the node's name from its variable in the environment.
    ///
    /// # Errors
    /// The node's taint is to be removed, and the variable is no name.
    pub fn new(config: &Config, environment: impl Fn(&str) -> Option<String>) -> Result<Self, ControlError> {
        let untaint = config
            .untaint_node
            .then(|| node_name(environment(NODE_NAME)))
            .transpose()?;
        Ok(Self {
            name: config.name.clone(),
            untaint,
            source: config.source.kind.clone(),
            settings: Settings {
                pod_cidrs: config.cluster.pod_cidrs.clone(),
                node_cidrs: config.cluster.node_cidrs.clone(),
                service_cidrs: config.cluster.service_cidrs.clone(),
                allow_unknown: config.cluster.unknown_endpoints == UnknownEndpoints::Allow,
            },
            stale_after: config.source.stale_after,
            adopt_within: config.source.adopt_within,
            allow_no_pods: config.source.allow_no_pods,
            runtime_dir: config.runtime_dir.clone(),
            socket: config.runtime_dir.join(CONTROL_FOLDER).join(CONTROL_SOCKET),
            state_dir: config.state_dir.join(CONTROL_FOLDER),
            metrics_listen: config.telemetry.metrics_listen,
            health_listen: config.telemetry.health_listen,
            verify: config.verify,
            deadline: (config.verify_deadline, config.on_deadline),
            retry: FIRST_RETRY,
            gather: LOG_INTERVAL,
            budget: Budget {
                bytes: config.snapshot_budget,
            },
            share: ProofShare::default(),
            publication: dataplane_client::Timing::default(),
            watches: kube::Timing {
                full_list: config.source.full_list_every,
                ..kube::Timing::default()
            },
            folder: WatchOptions::default(),
        })
    }
}

/// The variable of the environment with the name of this machine's Node object.
const NODE_NAME: &str = "NODE_NAME";

/// The name of a Node object: a subdomain, as RFC 1123 has it.
fn node_name(value: Option<String>) -> Result<String, ControlError> {
    let is_part = |part: &str| {
        let fits = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        !part.is_empty() && !part.starts_with('-') && !part.ends_with('-') && part.bytes().all(fits)
    };
    match value {
        Some(name) if name.len() <= 253 && name.split('.').all(is_part) => Ok(name),
        Some(name) => Err(ControlError::NodeName(format!(
            "is `{name}`, which cannot be a node's name"
        ))),
        None => Err(ControlError::NodeName("is not set".to_owned())),
    }
}

/// `ringwall control`: runs until SIGTERM or SIGINT, or until the supervisor is gone.
///
/// # Errors
/// Something it needs at the start is wrong: the configuration, the kubeconfig, the manifests, an address.
pub fn run(args: &ControlArgs) -> anyhow::Result<ExitCode> {
    let config = Config::load(&args.config)?;
    let mut options = Options::new(&config, |variable| std::env::var(variable).ok())?;
    options
        .source
        .replace_by(args.manifests.as_deref(), args.kubeconfig.as_deref());
    ringwall_process::log::start();
    // While there is no other thread.
    cpus::leave_to_workers(&config);
    confine::control(&config, ringwall_source::needs(&options.source))?;
    // Watches and requests are few; compiling has threads of its own.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .thread_name("rw-control")
        .build()
        .context("cannot start the asynchronous runtime")?;
    let (supervised, staged) = (args.supervised, args.staged);
    let code = runtime.block_on(async move {
        // First of all: a signal that comes while the folder is read is one, too.
        let mut orders = SupervisorCommands::receive_orders(supervised)?;
        let mut controller = if staged {
            Controller::stage(options).await?
        } else {
            Controller::start(options).await?
        };
        let line = orders.line.take();
        if let Some(line) = line.clone() {
            controller.report_milestones_to(Box::new(move |milestone| report(&line, milestone)));
        }
        watch_loop(controller.overview(), line)?;
        loop {
            tokio::select! {
                ended = controller.run() => {
                    tracing::error!("{ended}: exiting; the last snapshot stays in force");
                    return Ok(ExitCode::from(EXIT_SOFTWARE));
                }
                _ = orders.stop.recv() => {
                    tracing::info!("stopping");
                    return Ok::<_, anyhow::Error>(ExitCode::SUCCESS);
                }
                Some(()) = orders.go.recv() => controller.take_over().await?,
            }
        }
    })?;
    // A compilation that still runs is of no use to anybody.
    runtime.shutdown_background();
    Ok(code)
}

/// Ends the process where the loop stands still: nothing else could, as the servers of health share its thread.
/// The supervisor hears that it turns.
fn watch_loop(overview: Arc<Overview>, line: Option<Arc<Lifeline>>) -> anyhow::Result<()> {
    let mut beat = Instant::now();
    let mut stalls = StallDetector::after((overview::STUCK.as_millis() / CONFIRM_CHECK.as_millis()) as u32);
    let look = move || {
        loop {
            std::thread::sleep(CONFIRM_CHECK);
            if stalls.is_stuck(overview.turns()) {
                tracing::error!(
                    seconds = overview::STUCK.as_secs(),
                    "the control loop is stuck: exiting; the last snapshot stays in force"
                );
                std::process::exit(i32::from(EXIT_SOFTWARE));
            }
            if let Some(line) = line.as_ref().filter(|_| beat.elapsed() >= REPORT_INTERVAL) {
                beat = Instant::now();
                line.report(&ChildReport::Alive, None);
            }
        }
    };
    std::thread::Builder::new()
        .name("rw-watchdog".to_owned())
        .spawn(look)
        .context("cannot start a thread")?;
    Ok(())
}

/// What the process is told from outside.
struct SupervisorCommands {
    /// To stop.
    stop: mpsc::Receiver<()>,
    /// To take over.
    go: mpsc::UnboundedReceiver<()>,
    /// Where to report; None without a supervisor.
    line: Option<Arc<Lifeline>>,
}

impl SupervisorCommands {
    fn receive_orders(supervised: bool) -> anyhow::Result<Self> {
        let (sender, stop) = mpsc::channel(1);
        let (goes, go) = mpsc::unbounded_channel();
        for kind in [SignalKind::terminate(), SignalKind::interrupt()] {
            let mut signal = signal(kind).context("cannot catch signals")?;
            let sender = sender.clone();
            tokio::spawn(async move {
                signal.recv().await;
                let _ = sender.send(()).await;
            });
        }
        // Sent to the whole group when a terminal closes.
        let mut hangup = signal(SignalKind::hangup()).context("cannot catch signals")?;
        tokio::spawn(async move { while hangup.recv().await.is_some() {} });
        let mut line = None;
        if supervised {
            let ours = Arc::new(Lifeline::of_stdin().context("cannot hear the supervisor")?);
            line = Some(Arc::clone(&ours));
            std::thread::Builder::new()
                .name("rw-lifeline".to_owned())
                .spawn(move || {
                    // It ends with the supervisor, however that ends.
                    while let Some(received) = ours.hear() {
                        if let SupervisorOrder::Go { .. } = received.message {
                            let _ = goes.send(());
                        }
                    }
                    let _ = sender.blocking_send(());
                })
                .context("cannot start a thread")?;
        } else {
            // Open for ever, so that nothing but a signal is received.
            tokio::spawn(async move {
                let _keep = (sender, goes);
                std::future::pending::<()>().await;
            });
        }
        Ok(Self { stop, go, line })
    }
}

/// What a supervisor hears of.
enum Milestone {
    /// The first snapshot of a staged process.
    Staged(Image),
    /// There is none.
    NoSnapshot(String),
    /// The dataplane is connected, and this process can be asked.
    InCharge,
}

fn report(line: &Lifeline, milestone: Milestone) {
    let refused = |reason: String| (ChildReport::Refused { reason }, None);
    let (report, fd) = match milestone {
        Milestone::Staged(image) => {
            let bytes = image.to_bytes();
            match image_memfd("ringwall-staged", &bytes) {
                Ok(memory) => {
                    let staged = ChildReport::Staged {
                        generation: image.generation().0,
                        hash: ContentHash(image.hash()),
                        bytes: bytes.len() as u64,
                    };
                    (staged, Some(memory))
                }
                Err(error) => refused(format!("the snapshot cannot be handed over: {error}")),
            }
        }
        Milestone::NoSnapshot(reason) => refused(reason),
        Milestone::InCharge => (ChildReport::InCharge, None),
    };
    line.report(&report, fd);
}

/// Reads the key of the epochs, or makes it.
///
/// # Errors
/// The file cannot be read or written, or is no key.
pub fn epoch_key(state_dir: &Path) -> Result<EpochKey, ControlError> {
    let path = state_dir.join(EPOCH_KEY_FILE);
    let failed = |reason: String| ControlError::StateFile {
        path: path.clone(),
        reason,
    };
    let unusable = |error: io::Error| failed(error.to_string());
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(state_dir)
        .map_err(unusable)?;
    match File::open(&path) {
        Ok(mut file) => {
            let mut bytes = Vec::new();
            file.read_to_end(&mut bytes).map_err(unusable)?;
            let length = bytes.len();
            <[u8; 32]>::try_from(bytes).map(EpochKey).map_err(|_| {
                failed(format!(
                    "{length} bytes are no key (32 are); remove it: all flows will be judged again once"
                ))
            })
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let mut key = [0; 32];
            File::open("/dev/urandom")
                .and_then(|mut file| file.read_exact(&mut key))
                .map_err(unusable)?;
            // Complete before it has its name.
            let new = state_dir.join(format!("{EPOCH_KEY_FILE}.new"));
            let write = || -> io::Result<()> {
                match std::fs::remove_file(&new) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                    _ => {}
                }
                let mut file = OpenOptions::new()
                    .write(true)
                    .create_new(true)
                    .mode(0o600)
                    .open(&new)?;
                file.write_all(&key)?;
                file.sync_all()?;
                std::fs::rename(&new, &path)
            };
            write().map_err(unusable)?;
            Ok(EpochKey(key))
        }
        Err(error) => Err(unusable(error)),
    }
}

/// The loop, and everything that it holds.
pub struct Controller {
    overview: Arc<Overview>,
    /// Of the tasks and threads below.
    exits: Exits,
    feed: Feed,
    pipeline: Pipeline,
    /// None unless snapshots are proven by what changed.
    rolling: Option<RollingProof>,
    passes: mpsc::UnboundedReceiver<ProofPass>,
    publication: DataplaneClient,
    events: mpsc::UnboundedReceiver<Event>,
    /// What it listens on and where it connects to.
    resources: ActiveResources,
    essential: Essential,
    /// Ends the servers with the loop; None before this process is in charge.
    servers: Option<Servers>,
    /// Whether the first snapshot is handed over instead of being published.
    staging: bool,
    milestones: Option<Box<dyn FnMut(Milestone) + Send>>,
    /// The newest state that has not been compiled.
    waiting: Option<Arc<SourceState>>,
    /// The newest state as the source has it, without the addresses of pods that are about to start.
    of_source: Option<Arc<SourceState>>,
    /// The newest state of all, to be compiled once more where that is needed.
    newest: Option<Arc<SourceState>>,
    /// Whether what was compiled and proven before is not to be built on.
    from_scratch: bool,
    /// The state that is being compiled; None where none is.
    compiling: Option<Compiling>,
    /// First event of the states that could not be published and that none after them has replaced.
    failed: Option<Instant>,
    retry: Retry,
    /// Files of the source that changed since a snapshot was published last.
    files: BTreeSet<String>,
    journal: Journal,
    /// When the dataplane was last told that what it decides by is what the source says; None where it is due.
    confirmed: Option<Instant>,
    /// The cluster that was last known to be behind the policy in force; None where none was.
    cluster: Option<ClusterUid>,
    /// None unless the last state was over the budget.
    over_budget: Option<OverBudget>,
    /// Generation that was published and that a connected dataplane has not answered for. What comes meanwhile is
    /// gathered: it would only wait behind it.
    unanswered: Option<u64>,
    connected: bool,
    /// Newest generation that the dataplane or this process has given out; None before the dataplane has said.
    generation: Option<u64>,
    /// The compiled snapshot that was published last.
    published: Option<Published>,
}

/// What only the process in charge may have.
struct ActiveResources {
    socket: PathBuf,
    metrics: std::net::SocketAddr,
    health: Option<std::net::SocketAddr>,
}

/// A state on its way.
struct Compiling {
    /// Since when it is compiled.
    since: Instant,
    /// Its first event.
    began: Instant,
}

/// When the newest state is compiled once more that failed in a way that may be the failure of a step rather than its own.
struct Retry {
    first: Duration,
    failures: u32,
    due: Option<Instant>,
}

impl Retry {
    fn after(first: Duration) -> Self {
        Self {
            first,
            failures: 0,
            due: None,
        }
    }

    /// At once, then after longer and longer.
    fn failed(&mut self) {
        let pause = match self.failures {
            0 => Duration::ZERO,
            failures => (self.first * (1 << (failures - 1).min(16))).min(MAX_RETRY),
        };
        self.failures = self.failures.saturating_add(1);
        self.due = Some(Instant::now() + pause);
    }

    fn succeeded(&mut self) {
        *self = Self::after(self.first);
    }

    /// How long until then; None where nothing is to be tried again.
    fn left(&self) -> Option<Duration> {
        let due = self.due?;
        Some(due.saturating_duration_since(Instant::now()))
    }
}

/// A state that was over the budget. The next one is likely to be, too, and can only be compiled in full.
struct OverBudget {
    cluster: Cluster,
    /// When the next one is tried, whatever it is.
    until: Instant,
}

impl OverBudget {
    /// Whether a state is not to be tried yet.
    fn defers(&self, next: &Cluster) -> bool {
        let policies_differ = self.cluster.policies.diff(&next.policies).next().is_some()
            || self.cluster.tiered.diff(&next.tiered).next().is_some();
        Instant::now() < self.until && !policies_differ
    }
}

struct Published {
    state: Arc<SourceState>,
    generation: u64,
    hash: ContentHash,
    compiled: Instant,
    accepted: Option<Instant>,
    adopted: bool,
    /// First event that it has over what the workers decided by; since they lost it, where they had it.
    unadopted: Instant,
    entry: Entry,
}

impl Controller {
    /// Opens the source, then the sockets.
    ///
    /// # Errors
    /// One of them cannot be used. Whether the API server or the dataplane answers is another question.
    pub async fn start(options: Options) -> Result<Self, ControlError> {
        let tools = StageFactory::with_budget(options.budget);
        Self::start_with(options, tools).await
    }

    async fn start_with(options: Options, tools: StageFactory) -> Result<Self, ControlError> {
        let key = epoch_key(&options.state_dir)?;
        let feed = open_source(&options).await?;
        Self::start_from(feed, key, options, tools).await
    }

    async fn start_from(
        feed: Feed,
        key: EpochKey,
        options: Options,
        tools: StageFactory,
    ) -> Result<Self, ControlError> {
        let mut controller = Self::prepare(feed, key, options, tools)?;
        controller.take_over().await?;
        Ok(controller)
    }

    /// Opens the source and nothing else, beside the process that is in charge: the first snapshot that comes of it is
    /// handed to the supervisor, and what follows waits for [`Self::take_over`].
    ///
    /// # Errors
    /// The source cannot be used.
    pub async fn stage(options: Options) -> Result<Self, ControlError> {
        let key = epoch_key(&options.state_dir)?;
        let feed = open_source(&options).await?;
        let socket = options.socket.clone();
        let ask = move || (generation_in_force(&socket), pod_starts_in_charge(&socket));
        let (generation, pod_starts) = tokio::task::spawn_blocking(ask).await.unwrap_or_default();
        let tools = StageFactory::with_budget(options.budget);
        let mut controller = Self::prepare(feed, key, options, tools)?;
        controller.overview.pod_starts().restore(pod_starts);
        controller.generation = Some(generation.unwrap_or(0) + STAGED_GENERATION_GAP);
        controller.staging = true;
        Ok(controller)
    }

    /// Becomes the process that answers and publishes.
    ///
    /// # Errors
    /// A socket cannot be used.
    pub async fn take_over(&mut self) -> Result<(), ControlError> {
        if self.servers.is_some() {
            return Ok(());
        }
        self.staging = false;
        self.publication.connect(&self.essential);
        let servers = Servers::start(
            self.overview(),
            &self.resources.socket,
            self.resources.metrics,
            self.resources.health,
            &self.essential,
        )
        .await?;
        tracing::info!(metrics = %servers.metrics, health = %servers.health, "control is running");
        self.servers = Some(servers);
        Ok(())
    }

    /// Has someone told how far this process is.
    fn report_milestones_to(&mut self, milestones: Box<dyn FnMut(Milestone) + Send>) {
        self.milestones = Some(milestones);
    }

    fn milestone(&mut self, milestone: Milestone) {
        if let Some(tell) = &mut self.milestones {
            tell(milestone);
        }
    }

    fn prepare(
        mut feed: Feed,
        key: EpochKey,
        options: Options,
        tools: StageFactory,
    ) -> Result<Self, ControlError> {
        let (essential, ends) = Essential::new();
        let (publication, events) =
            DataplaneClient::prepare(&options.runtime_dir.join(DATAPLANE_SOCKET), options.publication);
        let (limit, on_deadline) = options.deadline;
        let publish_after = (on_deadline == OnDeadline::Publish).then_some(limit);
        // What is not proven before it is published is proven afterwards.
        let behind =
            options.verify == Verify::Changed || (options.verify == Verify::Full && publish_after.is_some());
        let (rolling, passes) = if behind {
            let (rolling, passes) =
                RollingProof::start(&tools, options.share, &essential).map_err(ControlError::Thread)?;
            (Some(rolling), passes)
        } else {
            (None, mpsc::unbounded_channel().1)
        };
        let pipeline = Pipeline::start(tools, key, options.verify, publish_after, &essential)
            .map_err(ControlError::Thread)?;
        let overview = Arc::new(Overview::new(
            options.name,
            options.verify,
            &mut feed,
            publication.inquiry(),
            options.runtime_dir.join(SUPERVISION_FILE),
            Limits {
                adoption: options.publication.answer,
                unadopted: options.adopt_within,
                proof: options.deadline.0,
            },
        ));
        let resources = ActiveResources {
            socket: options.socket,
            metrics: options.metrics_listen,
            health: options.health_listen,
        };
        // The state that is there already counts as new.
        feed.states.mark_changed();
        Ok(Self {
            overview,
            exits: ends,
            feed,
            pipeline,
            rolling,
            passes,
            publication,
            events,
            resources,
            essential,
            servers: None,
            staging: false,
            milestones: None,
            waiting: None,
            of_source: None,
            newest: None,
            from_scratch: false,
            compiling: None,
            failed: None,
            retry: Retry::after(options.retry),
            files: BTreeSet::new(),
            journal: Journal::new(options.gather),
            confirmed: Some(Instant::now()),
            cluster: None,
            over_budget: None,
            unanswered: None,
            connected: false,
            generation: None,
            published: None,
        })
    }

    /// What is known of everything.
    pub fn overview(&self) -> Arc<Overview> {
        Arc::clone(&self.overview)
    }

    /// Where it can be asked; None before it is in charge.
    pub fn servers(&self) -> Option<&Servers> {
        self.servers.as_ref()
    }

    /// Runs until it is dropped, or until something ends that it cannot do without.
    pub async fn run(&mut self) -> TaskExit {
        loop {
            if let Some(ended) = self.turn().await {
                return ended;
            }
        }
    }

    async fn turn(&mut self) -> Option<TaskExit> {
        if self.retry.left().is_some_and(|left| left.is_zero()) {
            self.retry.due = None;
            self.from_scratch = true;
            self.compile_again();
        }
        self.journal.write_due();
        self.confirm();
        self.begin_compiling();
        self.overview.beat(self.progress());
        self.say_whether_guarded();
        if let Some(idle) = self.overview.active_policy().take_idle(Instant::now()) {
            tokio::task::spawn_blocking(move || drop(idle));
        }
        let pause = self.pause();
        let overview = Arc::clone(&self.overview);
        tokio::select! {
            changed = self.feed.states.changed() => match changed {
                Ok(()) => {
                    let files = self.feed.health.take_changed();
                    self.files.extend(files.into_iter().take(MAX_FILES));
                    let state = self.feed.states.borrow_and_update().clone();
                    if let Some(state) = state {
                        self.of_source = Some(Arc::clone(&state));
                        let state = self.overview.pod_starts().complete(state);
                        self.take_state(state);
                    }
                }
                // It has said why itself.
                Err(_) => return Some(TaskExit {
                    name: "the source".to_owned(),
                    panicked: false,
                }),
            },
            ended = self.exits.next() => return Some(ended),
            event = self.events.recv() => if let Some(event) = event {
                self.take_event(event);
            },
            outcome = self.pipeline.finished() => self.take_outcome(outcome),
            Some(pass) = self.passes.recv() => self.take_pass(pass),
            () = overview.pod_starts().changed() => self.take_pod_starts(),
            () = tokio::time::sleep(pause) => {}
        }
        None
    }

    /// Says whether this node is guarded: the dataplane is there, and every worker decides by what the source says.
    fn say_whether_guarded(&self) {
        if let Some(guarded) = &self.feed.guarded {
            let now = self.servers.is_some() && self.overview.not_ready().is_empty();
            guarded.send_if_modified(|before| std::mem::replace(before, now) != now);
        }
    }

    /// How long to wait for anything to happen.
    fn pause(&self) -> Duration {
        let over_budget = self.over_budget.as_ref().filter(|_| self.compiling.is_none());
        let rest = over_budget
            .map(|it| it.until.saturating_duration_since(Instant::now()))
            .filter(|left| !left.is_zero());
        let pauses = rest.into_iter().chain(self.retry.left());
        pauses.fold(HEARTBEAT, Duration::min)
    }

    /// Tells the dataplane now and then that what it decides by is what the source says.
    fn confirm(&mut self) {
        let due = self.confirmed.is_none_or(|at| at.elapsed() >= CONFIRM);
        if !due || self.progress().unadopted.is_some() {
            return;
        }
        self.confirmed = Some(Instant::now());
        let source = self.feed.health.status();
        let current = source.stale_seconds.is_none() && source.held_back.is_none();
        if let Some(published) = self.published.as_ref().filter(|_| current) {
            let cluster = published.state.cluster_uid.clone();
            self.publication.confirm(published.generation, cluster);
        }
    }

    /// How far the newest state is.
    fn progress(&self) -> Progress {
        let published = self.published.as_ref().filter(|it| !it.adopted);
        let waiting = self.waiting.as_ref().map(|state| state.began);
        let compiling = self.compiling.as_ref();
        let unadopted = [
            waiting,
            compiling.map(|it| it.began),
            self.failed,
            published.map(|it| it.unadopted),
        ];
        Progress {
            unadopted: unadopted.into_iter().flatten().min(),
            compiling: compiling.map(|it| it.since),
            waits_for: if compiling.is_some() {
                "the compiler and the proof"
            } else if self.unanswered.is_some() {
                "the dataplane's answer"
            } else if published.is_some() {
                "its adoption by the workers"
            } else if self.failed.is_some() {
                "a state that can be published"
            } else {
                "the dataplane"
            },
        }
    }

    /// The same state of the source, with pods that are about to start.
    fn take_pod_starts(&mut self) {
        if let Some(state) = &self.of_source {
            let state = self.overview.pod_starts().complete(Arc::clone(state));
            let newest = self.newest.as_ref().map(|newest| &newest.cluster.pods);
            if newest.is_some_and(|pods| pods.diff(&state.cluster.pods).next().is_none()) {
                return; // the source does not have them yet
            }
            self.take_state(Arc::new(SourceState {
                began: Instant::now(),
                ..SourceState::clone(&state)
            }));
        }
    }

    fn take_state(&mut self, state: Arc<SourceState>) {
        self.overview.state(&state);
        // One that was never compiled is part of this one: its first event is the one that counts.
        let began = self
            .waiting
            .as_ref()
            .map_or(state.began, |waiting| waiting.began.min(state.began));
        let state = if began == state.began {
            state
        } else {
            Arc::new(SourceState {
                began,
                ..SourceState::clone(&state)
            })
        };
        self.newest = Some(Arc::clone(&state));
        self.compare_clusters();
        self.waiting = Some(state);
    }

    /// Says where the source is another cluster than the one behind the policy in force: somebody has built it anew, or
    /// put another one in its place.
    fn compare_clusters(&mut self) {
        let Some(now) = self.newest.as_ref().and_then(|state| state.cluster_uid.clone()) else {
            return;
        };
        if let Some(before) = &self.cluster
            && *before != now
        {
            let place = self.feed.health.location();
            self.overview.another_cluster(&place, before, &now);
        }
        self.cluster = Some(now);
    }

    /// Has the newest state compiled once more.
    fn compile_again(&mut self) {
        if self.waiting.is_some() {
            return;
        }
        let Some(newest) = &self.newest else { return };
        // Where it has been published, its first event is not what it waits since.
        let published = self.published.as_ref();
        let again = published
            .filter(|it| Arc::ptr_eq(&it.state, newest))
            .map(|it| if it.adopted { Instant::now() } else { it.unadopted });
        self.waiting = Some(match again {
            None => Arc::clone(newest),
            Some(began) => Arc::new(SourceState {
                began,
                ..SourceState::clone(newest)
            }),
        });
    }

    fn begin_compiling(&mut self) {
        if self.compiling.is_some() || self.unanswered.is_some() {
            return;
        }
        // Before the dataplane has said what it has, no generation is safe.
        let Some(last) = self.generation else { return };
        let due = |state: &mut Arc<SourceState>| {
            let over_budget = self.over_budget.as_ref();
            !over_budget.is_some_and(|it| it.defers(&state.cluster))
        };
        let Some(state) = self.waiting.take_if(due) else {
            return;
        };
        let started = Instant::now();
        self.overview
            .latencies()
            .settle
            .observe(since(state.began, started));
        self.compiling = Some(Compiling {
            since: started,
            began: state.began,
        });
        self.pipeline.begin(Job {
            state,
            generation: last + 1,
            from_scratch: std::mem::take(&mut self.from_scratch),
        });
    }

    fn take_outcome(&mut self, outcome: Outcome) {
        let began = self.compiling.take();
        self.over_budget = None;
        let Outcome {
            state,
            generation,
            made,
        } = outcome;
        let made = match made {
            Ok(made) => made,
            Err(failure) => {
                self.failed = Some(self.failed.map_or(state.began, |first| first.min(state.began)));
                match failure {
                    // All of it is what it is.
                    Failure::Compile(_) => {}
                    Failure::Differs(_) | Failure::Panicked(_) => self.retry.failed(),
                }
                if let (Failure::Compile(CompileError::OverBudget { .. }), Some(began)) = (&failure, began) {
                    let took = began.since.elapsed();
                    self.over_budget = Some(OverBudget {
                        cluster: state.cluster.clone(),
                        until: Instant::now() + (took * BUDGET_BACKOFF_FACTOR).min(MAX_BUDGET_BACKOFF),
                    });
                }
                if std::mem::take(&mut self.staging) {
                    self.milestone(Milestone::NoSnapshot(failure.to_string()));
                }
                return self.overview.record_failure(&failure);
            }
        };
        let hash = ContentHash(made.compiled.hash);
        self.note(generation, &state, hash, &made);
        // The dataplane may have come back with a later generation meanwhile.
        if self.generation.is_some_and(|newest| newest >= generation) {
            self.compile_again();
            return;
        }
        self.prove_whole(generation, &state, &made);
        let source = self.feed.health.location();
        let entry = Entry::new(source, std::mem::take(&mut self.files), state.versions, &made);
        self.generation = Some(generation);
        self.overview.active_policy().publish(CompiledPolicy {
            generation,
            state: Arc::clone(&state),
            image: made.compiled.image.clone(),
        });
        self.unanswered = self.connected.then_some(generation);
        let cluster = state.cluster_uid.clone();
        let unadopted = self.published.as_ref().filter(|it| !it.adopted);
        let unadopted = unadopted.map(|it| it.unadopted).into_iter();
        self.published = Some(Published {
            unadopted: unadopted
                .chain(self.failed.take())
                .fold(state.began, Instant::min),
            state,
            generation,
            hash,
            compiled: Instant::now(),
            accepted: None,
            adopted: false,
            entry,
        });
        if std::mem::take(&mut self.staging) {
            self.milestone(Milestone::Staged(made.compiled.image.clone()));
        }
        self.publication.publish(made.compiled.image, cluster);
    }

    fn note(&self, generation: u64, state: &SourceState, hash: ContentHash, made: &CompiledSnapshot) {
        tracing::debug!(
            generation,
            incremental = made.compiled.incremental,
            compile = ?made.compile,
            verify = ?made.proof.as_ref().map(|proof| proof.took),
            report = ?made.proof.as_ref().map(|proof| proof.report),
            "compiled"
        );
        let latencies = self.overview.latencies();
        latencies.compile.observe(made.compile.as_secs_f64());
        if let Some(proof) = &made.proof {
            latencies.verify.observe(proof.took.as_secs_f64());
        }
        self.overview
            .record_compiled(generation, state.versions, hash, made);
    }

    /// What was proven by its change alone is proven whole in the background.
    fn prove_whole(&self, generation: u64, state: &SourceState, made: &CompiledSnapshot) {
        let Some(rolling) = &self.rolling else { return };
        match (&made.proof, &made.unproven) {
            (Some(proof), _) if proof.report.whole => rolling.clear(),
            (Some(Proof { snapshot, .. }), _) | (None, Some(snapshot)) => {
                rolling.set_newest(generation, &state.cluster, snapshot);
            }
            (None, None) => {}
        }
    }

    /// A snapshot that was proven by its change and is wrong: what all was built on is wrong.
    fn take_pass(&mut self, pass: ProofPass) {
        if pass.outcome.is_err() {
            self.from_scratch = true;
            self.compile_again();
        }
        self.overview.record_proof_pass(pass);
    }

    fn take_event(&mut self, event: Event) {
        match event {
            Event::Connected {
                generation,
                hash,
                cluster,
                workers,
                pod_starts,
            } => {
                tracing::info!(generation, workers, "the dataplane is connected");
                // Before anything is compiled: a process that begins knows of no pod that its predecessor let start.
                self.overview.pod_starts().restore(pod_starts);
                self.take_pod_starts();
                self.take_stored_cluster(cluster);
                self.connected = true;
                self.unanswered = None;
                let ours = self
                    .published
                    .as_ref()
                    .is_some_and(|it| it.generation == generation && Some(it.hash) == hash);
                self.overview.connected(generation, ours);
                if ours {
                    self.take_adoption(generation, None);
                }
                self.take_hello(generation, ours);
                self.milestone(Milestone::InCharge);
            }
            Event::Disconnected { reason } => {
                self.connected = false;
                self.unanswered = None;
                self.overview.disconnected(reason);
            }
            Event::Sent { .. } => {}
            Event::Accepted { generation } => {
                self.answered(generation);
                self.retry.succeeded();
                self.overview.accepted(generation);
                if let Some(published) = self.published_as(generation) {
                    let now = Instant::now();
                    published.accepted = Some(now);
                    let elapsed = since(published.compiled, now);
                    self.overview.latencies().accept.observe(elapsed);
                }
            }
            Event::Refused { generation, reason } => {
                self.answered(generation);
                tracing::error!(generation, reason, "the dataplane refused a snapshot");
                self.overview.refused(reason);
                self.retry.failed();
            }
            Event::Adopted { generation, micros } => {
                self.take_adoption(generation, Some(Duration::from_micros(micros)));
            }
        }
    }

    /// The dataplane has a snapshot of this cluster, of another process or from its disk.
    fn take_stored_cluster(&mut self, stored: Option<ClusterUid>) {
        // Where it has the same snapshot, it is to know at once that it is current, and whose it is.
        self.confirmed = None;
        if stored.is_some() {
            self.cluster = stored;
            self.compare_clusters();
        }
    }

    fn answered(&mut self, generation: u64) {
        if self.unanswered.is_some_and(|waiting| waiting <= generation) {
            self.unanswered = None;
        }
    }

    /// Goes on above what the dataplane has. Where it has another snapshot than the one published last, that one is
    /// compiled again under a generation it will take.
    fn take_hello(&mut self, generation: u64, ours: bool) {
        let known = self.generation.unwrap_or(0);
        self.generation = Some(known.max(generation));
        let Some(published) = &mut self.published else {
            return;
        };
        if !ours && published.adopted {
            // Lost it.
            published.adopted = false;
            published.unadopted = Instant::now();
        }
        if published.generation <= generation && !ours {
            self.publication.withdraw();
            self.compile_again();
        }
    }

    /// Every worker decides by this generation; `took` is how long that took, where the dataplane said so.
    fn take_adoption(&mut self, generation: u64, took: Option<Duration>) {
        let mut total = None;
        if let Some(published) = self.published_as(generation)
            && !published.adopted
        {
            published.adopted = true;
            let now = Instant::now();
            let adopted = published.accepted.map(|accepted| since(accepted, now));
            let elapsed = now.saturating_duration_since(published.unadopted);
            let entry = published.entry.clone();
            let latencies = self.overview.latencies();
            if let Some(adopted) = adopted {
                latencies.adopt.observe(adopted);
            }
            latencies.total.observe(elapsed.as_secs_f64());
            total = Some(elapsed);
            if let Some((before, after)) = self.overview.active_policy().adopt(generation) {
                self.journal.adopted(Adopted {
                    before,
                    after,
                    entry,
                    adoption: took.unwrap_or_default(),
                    total: elapsed,
                    generations: 1,
                });
            }
        }
        // With the greeting of a dataplane that has it, that says so.
        if took.is_some() {
            self.overview.adopted(generation, total);
        }
    }

    fn published_as(&mut self, generation: u64) -> Option<&mut Published> {
        self.published
            .as_mut()
            .filter(|published| published.generation == generation)
    }
}

/// What the dataplane decides by, as the control process in charge says.
fn generation_in_force(control: &Path) -> Option<u64> {
    let answer = client::ask_control(control, "/v1/status", None, GENERATION_TIMEOUT).ok()?;
    let status: Status = serde_json::from_slice(&answer.body).ok()?;
    Some(status.dataplane?.snapshot.generation)
}

/// The pods of this node that the CNI plugin started, as the control process in charge says; none where it does not answer, or
/// its release does not say.
fn pod_starts_in_charge(control: &Path) -> Vec<PodStart> {
    client::ask_control(control, POD_STARTS, None, GENERATION_TIMEOUT)
        .ok()
        .filter(|answer| answer.status == 200)
        .and_then(|answer| serde_json::from_slice(&answer.body).ok())
        .unwrap_or_default()
}

fn since(earlier: Instant, later: Instant) -> f64 {
    later.saturating_duration_since(earlier).as_secs_f64()
}

/// Whether any pod has an address of its own.
fn has_address(cluster: &Cluster) -> bool {
    let mut pods = cluster.pods.values();
    pods.any(|pod| !pod.host_network && !pod.finished && !pod.addresses.is_empty())
}

async fn open_source(options: &Options) -> Result<Feed, ControlError> {
    let settings = options.settings.clone();
    let access = match &options.source {
        SourceKind::Manifests { dir } => {
            let feed = watched::start(dir, settings, options.folder.clone(), options.stale_after)?;
            let state = feed.states.borrow().clone();
            if state.is_some_and(|state| !has_address(&state.cluster)) {
                if !options.allow_no_pods {
                    return Err(ControlError::NoPods(dir.clone()));
                }
                tracing::warn!(
                    folder = %dir.display(),
                    "no pod in the folder has an address: all traffic in cluster.podCIDRs is that of unknown endpoints"
                );
            }
            return Ok(feed);
        }
        SourceKind::Kubeconfig { file, context } => Access::Kubeconfig {
            file: file.clone(),
            context: context.clone(),
        },
        SourceKind::InCluster => Access::InCluster,
    };
    let timing = kube::Timing {
        stale_after: options.stale_after,
        ..options.watches.clone()
    };
    Ok(kube::start_on_node(
        &access,
        settings,
        timing,
        Some(options.state_dir.join(POLICIES_FILE)),
        options.untaint.clone(),
    )
    .await?)
}
