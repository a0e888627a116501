//! A Kubernetes API server as the source: four watches, put together.
//!
//! * [`watch`] lists and watches one resource, for ever.
//! * [`object`] decodes what arrives.
//! * [`state`] puts the four together (pure), and holds policies of ending namespaces (SEMANTICS 54).
//! * [`kept`] remembers the policies over a restart.
//! * [`unevaluated`] looks for policy kinds that nobody evaluates here.
//!
//! Nothing is handed on before all four lists are complete; after that, every state handed on is one that the last
//! complete word of each watch describes. A list that is fetched again replaces the one before at once (SEMANTICS 55).
//! While the server cannot be reached, the last state stands.

mod connect;
mod kept;
mod object;
mod state;
mod trim;
mod unevaluated;
mod watch;

use std::{
    collections::BTreeSet,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use kube::{
    Client,
    config::{Config, KubeConfigOptions, Kubeconfig},
    core::{Request, params::ListParams},
};
use serde::Deserialize;
use serde_json::Value;
use tokio::{
    sync::{mpsc, watch as latest},
    task::JoinSet,
    time::{sleep, sleep_until, timeout},
};

use self::{
    kept::Keeper,
    state::{Item, Kind, NamespaceNow, State},
    watch::{Backoff, Watcher, chain, explain},
};
use super::feed::{AbortOnDrop, Feed, Health, SourceState};
use crate::{
    cluster::{ObjectRef, Settings},
    protocol::WatchStatus,
};

/// How to reach the API server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Access {
    /// By a kubeconfig.
    Kubeconfig {
        /// The file.
        file: PathBuf,
        /// Its context; the current one where None.
        context: Option<String>,
    },
    /// By the service account of the pod that this process runs in.
    InCluster,
}

/// How long things may take.
#[derive(Clone, Debug)]
pub struct Timing {
    /// For one page of a list, or for a watch to begin.
    pub list_timeout: Duration,
    /// Objects in a page.
    pub page: u32,
    /// After this many seconds the server ends a watch; below 295.
    pub watch_seconds: u32,
    /// A watch that is silent for so much longer is dead.
    pub watch_margin: Duration,
    /// First pause after an error.
    pub backoff_first: Duration,
    /// Longest pause after errors.
    pub backoff_most: Duration,
    /// An event that comes when all is quiet is handed on at once; under churn, states are handed on no more often
    /// than this.
    pub spacing: Duration,
    /// How often to look for policy kinds that are not evaluated.
    pub probe: Duration,
    /// Alarm after so long without connection.
    pub stale_after: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            list_timeout: Duration::from_secs(60),
            page: 500,
            watch_seconds: 290,
            watch_margin: Duration::from_secs(5),
            backoff_first: Duration::from_millis(200),
            backoff_most: Duration::from_secs(10),
            spacing: Duration::from_millis(4),
            probe: Duration::from_secs(60),
            stale_after: Duration::from_secs(15 * 60),
        }
    }
}

/// Why the API server cannot be a source at all. Whether it can be reached is another question.
#[derive(Debug, thiserror::Error)]
pub enum KubeError {
    /// The kubeconfig cannot be read, or says nothing usable.
    #[error("kubeconfig {}: {reason}", path.display())]
    Kubeconfig {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// Not in a pod, or without a service account.
    #[error(
        "source.inCluster: {0}; this works in a pod with a service account only, elsewhere set source.kubeconfig"
    )]
    InCluster(String),
    /// The credentials cannot be used.
    #[error("the credentials of {location} cannot be used: {reason}")]
    Credentials {
        /// The API server.
        location: String,
        /// What is wrong with them.
        reason: String,
    },
}

/// What the watches and their helpers say.
enum Message {
    /// A complete list.
    Listed(Kind, Vec<Item>),
    /// A new or changed object, and when it was read.
    Applied(Box<Item>, Instant),
    /// The end of an object, and when it was read.
    Deleted(ObjectRef, Instant),
    /// What became of a namespace.
    Namespace(String, NamespaceNow),
    /// The policy kinds that are not evaluated.
    Unevaluated(BTreeSet<String>),
}

impl Message {
    /// When it came.
    fn at(&self) -> Instant {
        match self {
            Self::Applied(_, at) | Self::Deleted(_, at) => *at,
            Self::Listed(..) | Self::Namespace(..) | Self::Unevaluated(_) => Instant::now(),
        }
    }
}

/// Events taken before a state is handed on, at most.
const TAKEN_AT_ONCE: usize = 256;

/// Begins to watch. Must be called within a tokio runtime. `kept` is a file of its own, where the policies last seen
/// survive a restart: without it, those deleted meanwhile with their namespace do not hold (SEMANTICS 54).
///
/// # Errors
/// The kubeconfig or the service account cannot be used. A server that does not answer is no error: it is asked again
/// until it does.
pub async fn start(
    access: &Access,
    settings: Settings,
    timing: Timing,
    kept: Option<PathBuf>,
) -> Result<Feed, KubeError> {
    let mut config = configuration(access).await?;
    config.connect_timeout = Some(Duration::from_secs(5));
    // Ours knows when a pause is due.
    config.default_retry = false;
    let location = config.cluster_url.to_string();
    let client = connect::client(config).map_err(|error| KubeError::Credentials {
        location: location.clone(),
        reason: chain(&error),
    })?;
    Ok(start_with(client, location, settings, timing, kept))
}

async fn configuration(access: &Access) -> Result<Config, KubeError> {
    match access {
        Access::InCluster => Config::incluster().map_err(|error| KubeError::InCluster(chain(&error))),
        Access::Kubeconfig { file, context } => {
            let failed = |reason: String| KubeError::Kubeconfig {
                path: file.clone(),
                reason,
            };
            let kubeconfig = Kubeconfig::read_from(file).map_err(|error| failed(chain(&error)))?;
            let options = KubeConfigOptions {
                context: context.clone(),
                ..KubeConfigOptions::default()
            };
            Config::from_custom_kubeconfig(kubeconfig, &options)
                .await
                .map_err(|error| match context {
                    Some(context) => failed(format!("context {context:?}: {}", chain(&error))),
                    None => failed(chain(&error)),
                })
        }
    }
}

fn start_with(
    client: Client,
    location: String,
    settings: Settings,
    timing: Timing,
    kept: Option<PathBuf>,
) -> Feed {
    let watches = Kind::ALL
        .iter()
        .map(|kind| WatchStatus {
            resource: kind.resource().to_owned(),
            ..WatchStatus::default()
        })
        .collect();
    let health = Arc::new(Health::new("kubernetes", location, timing.stale_after, watches));
    let (sender, states) = latest::channel(None);
    let assembler = Assembler {
        client,
        timing,
        health: Arc::clone(&health),
        states: sender,
    };
    let task = AbortOnDrop(tokio::spawn(assembler.run(settings, kept)));
    Feed {
        states,
        health,
        accept: None,
        _task: Some(task),
    }
}

/// Puts the watches together and hands complete states on.
struct Assembler {
    client: Client,
    timing: Timing,
    health: Arc<Health>,
    states: latest::Sender<Option<Arc<SourceState>>>,
}

impl Assembler {
    async fn run(self, settings: Settings, kept: Option<PathBuf>) {
        let (sender, mut messages) = mpsc::channel(1024);
        let mut tasks = JoinSet::new();
        for (number, kind) in Kind::ALL.into_iter().enumerate() {
            let watcher = Watcher {
                kind,
                number,
                client: self.client.clone(),
                timing: self.timing.clone(),
                health: Arc::clone(&self.health),
                messages: sender.clone(),
            };
            tasks.spawn(watcher.run());
        }
        tasks.spawn(probe(
            self.client.clone(),
            self.timing.clone(),
            Arc::clone(&self.health),
            sender.clone(),
        ));

        let mut state = State::new(settings);
        if let Some(kept) = &kept {
            state.remember(kept::read(kept));
        }
        let mut keeper = kept.map(Keeper::new);
        // Without the first look for other kinds a verdict could lack its "incomplete".
        let mut probed = false;
        let mut began: Option<Instant> = None;
        let mut last: Option<Instant> = None;
        loop {
            let due = began
                .filter(|_| state.synced() && probed)
                .map(|began| last.map_or(began, |last| began.max(last + self.timing.spacing)));
            tokio::select! {
                biased;
                () = until(due) => {
                    self.hand_on(&state, began.take().unwrap_or_else(Instant::now));
                    last = Some(Instant::now());
                }
                () = until(keeper.as_ref().and_then(|keeper| keeper.due(&state))) => {
                    if let Some(keeper) = &mut keeper {
                        keeper.write(&state);
                    }
                }
                message = messages.recv() => {
                    // The watches live as long as this task.
                    let Some(mut message) = message else { return };
                    // What came together is one change.
                    let mut left = TAKEN_AT_ONCE;
                    loop {
                        let first = matches!(message, Message::Unevaluated(_)) && !probed;
                        probed |= matches!(message, Message::Unevaluated(_));
                        let at = message.at();
                        if take(&mut state, message) | first {
                            began = Some(began.map_or(at, |began| began.min(at)));
                        }
                        left -= 1;
                        if left == 0 {
                            break;
                        }
                        match messages.try_recv() {
                            Ok(next) => message = next,
                            Err(_) => break,
                        }
                    }
                    for namespace in state.questions() {
                        tasks.spawn(ask(
                            namespace,
                            self.client.clone(),
                            self.timing.clone(),
                            Arc::clone(&self.health),
                            sender.clone(),
                        ));
                    }
                    // Finished questions.
                    while tasks.try_join_next().is_some() {}
                    let counts = state.counts();
                    self.health.holds(
                        &[counts.namespaces, counts.nodes, counts.pods, counts.policies],
                        state.held().len() as u64,
                    );
                }
            }
        }
    }

    fn hand_on(&self, state: &State, began: Instant) {
        let handed = SourceState {
            cluster: state.cluster().clone(),
            problems: state.problems(),
            began,
        };
        self.health.handed_on();
        self.states.send_replace(Some(Arc::new(handed)));
    }
}

fn take(state: &mut State, message: Message) -> bool {
    match message {
        Message::Listed(kind, items) => state.listed(kind, items),
        Message::Applied(item, _) => state.applied(*item),
        Message::Deleted(reference, _) => state.deleted(&reference),
        Message::Namespace(name, now) => state.answered(&name, &now),
        Message::Unevaluated(kinds) => state.set_unevaluated(kinds),
    }
}

async fn until(due: Option<Instant>) {
    match due {
        // The timer's milliseconds end late: what is due would wait for the end of this one.
        Some(due) if due <= Instant::now() => {}
        Some(due) => sleep_until(due.into()).await,
        None => std::future::pending().await,
    }
}

#[derive(Deserialize)]
struct Namespaces {
    items: Option<Vec<Value>>,
}

/// Asks what became of a namespace until the server says. It is asked by a list, which needs no other permission than
/// the watch has.
async fn ask(
    namespace: String,
    client: Client,
    timing: Timing,
    health: Arc<Health>,
    messages: mpsc::Sender<Message>,
) {
    let mut backoff = Backoff::new(&timing);
    let params = ListParams {
        field_selector: Some(format!("metadata.name={namespace}")),
        ..ListParams::default()
    };
    loop {
        let answer = match Request::new(Kind::Namespace.path()).list(&params) {
            Ok(request) => match timeout(timing.list_timeout, client.request::<Namespaces>(request)).await {
                Ok(Ok(list)) => Ok(list),
                Ok(Err(error)) => Err(explain("list", Kind::Namespace.resource(), &error)),
                Err(_) => Err("list namespaces: no answer in time".to_owned()),
            },
            Err(error) => Err(error.to_string()),
        };
        match answer {
            Ok(list) => {
                let now = namespace_now(&namespace, list.items.unwrap_or_default());
                // Nobody listens: the source has ended.
                let _ = messages.send(Message::Namespace(namespace, now)).await;
                return;
            }
            Err(reason) => health.error(None, format!("{reason} (policies of {namespace} stay meanwhile)")),
        }
        sleep(backoff.next()).await;
    }
}

fn namespace_now(name: &str, items: Vec<Value>) -> NamespaceNow {
    let found = items
        .into_iter()
        .find(|item| item.pointer("/metadata/name").and_then(Value::as_str) == Some(name));
    match found {
        Some(item)
            if item
                .pointer("/metadata/deletionTimestamp")
                .is_none_or(Value::is_null) =>
        {
            let uid = item
                .pointer("/metadata/uid")
                .and_then(Value::as_str)
                .unwrap_or_default();
            NamespaceNow::Live { uid: uid.to_owned() }
        }
        _ => NamespaceNow::Ending,
    }
}

/// Looks for policy kinds that are not evaluated, again and again. What was found once stays until a look that could
/// see everything says otherwise.
async fn probe(client: Client, timing: Timing, health: Arc<Health>, messages: mpsc::Sender<Message>) {
    let mut backoff = Backoff::new(&timing);
    let mut known = BTreeSet::new();
    loop {
        match unevaluated::probe(&client).await {
            Ok(found) => {
                if found.errors.is_empty() {
                    known = found.kinds;
                } else {
                    known.extend(found.kinds);
                }
                for error in found.errors {
                    health.error(None, format!("{error} (policies there would go unnoticed)"));
                }
                if messages.send(Message::Unevaluated(known.clone())).await.is_err() {
                    return;
                }
                backoff.reset();
                sleep(timing.probe).await;
            }
            Err(reason) => {
                health.error(None, reason);
                sleep(backoff.next()).await;
            }
        }
    }
}
