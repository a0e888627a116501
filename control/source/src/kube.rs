//! A Kubernetes API server as the source: a watch for each kind, put together.
//!
//! * [`connect`] makes a client of a kubeconfig or a service account; [`exec`] runs the program that it may name.
//! * [`connection`] is what the watches share: the client in use, its credentials, and orders to list anew.
//! * [`kind`] has a line for each kind that is watched.
//! * [`discovery`] finds out where the objects of each kind are, and what else there is that is not evaluated.
//! * [`watch`] lists and watches one kind, for ever.
//! * [`pulse`] asks whether the server still answers, and from the same history as before.
//! * [`compare`] holds what a watch has said against a full list.
//! * [`object`] decodes what arrives.
//! * [`state`] puts them together (pure), and holds policies of ending namespaces (SEMANTICS 54).
//! * [`kept`] remembers the policies over a restart.
//! * [`taint`] takes a taint off the node that this process runs on, once it is guarded.
//!
//! Nothing is handed on before all lists are complete, but for kinds that are not served, that cannot be read, or that no policy
//! speaks of; after that, every state handed on is one that the last complete word of each watch describes. A list that is fetched again replaces the one before at once (SEMANTICS 55).
//! While the server cannot be reached, the last state stands.

mod compare;
mod connect;
mod connection;
mod discovery;
mod exec;
mod kept;
mod kind;
mod object;
mod pulse;
mod state;
mod taint;
mod trim;
mod watch;

use std::{
    collections::{BTreeSet, HashMap},
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use kube::core::{Request, params::ListParams};
use ringwall_policy::{Settings, Tier};
use serde::Deserialize;
use serde_json::Value;
use tokio::{
    sync::{Semaphore, mpsc, watch as latest},
    task::{Id, JoinError, JoinSet},
    time::{sleep, sleep_until},
};

pub use self::taint::NODE_TAINT;
use self::{
    connect::Built,
    connection::Connection,
    discovery::Discovery,
    kept::Keeper,
    kind::{Api, Kind},
    state::{Item, NamespaceNow, Reading, State},
    watch::{Backoff, Watcher, explain},
};
pub(crate) use self::{connect::needs, kind::Reference};
use super::feed::{AbortOnDrop, Feed, Health, ServiceFeed, ServicePublisher, SourceState, Unreadable};

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
    /// After so many seconds, or up to a quarter less, the server ends a watch; below 295.
    pub watch_seconds: u32,
    /// A watch that is silent for so much longer is dead.
    pub watch_margin: Duration,
    /// A watch that has had a bookmark and is silent for so long is dead; a server sends one a minute.
    pub bookmark_patience: Duration,
    /// How often to ask whether the server answers.
    pub pulse: Duration,
    /// How long it may take to answer that; asked twice.
    pub pulse_patience: Duration,
    /// What a watch has said is held against a full list about this often.
    pub full_list: Duration,
    /// First pause after an error.
    pub backoff_first: Duration,
    /// Longest pause after errors.
    pub backoff_most: Duration,
    /// An event that comes when all is quiet is handed on at once; under churn, states are handed on no more often
    /// than this.
    pub spacing: Duration,
    /// How often to look which kinds of policy the API server serves, and in which versions.
    pub probe: Duration,
    /// Alarm after so long without connection.
    pub stale_after: Duration,
    /// Alarm where a deleted policy stays in force for so long because it is unknown whether its namespace still exists.
    pub hold_alarm: Duration,
    /// How often to look whether the files with the credentials have changed.
    pub credentials_check: Duration,
    /// Credentials that are refused are read again this often at most.
    pub renew_spacing: Duration,
    /// Refused credentials are an alarm after so long: a renewal takes less.
    pub refused_alarm: Duration,
    /// How long a program may take that makes credentials.
    pub exec_timeout: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            list_timeout: Duration::from_secs(60),
            page: 500,
            watch_seconds: 290,
            watch_margin: Duration::from_secs(5),
            bookmark_patience: Duration::from_secs(150),
            pulse: Duration::from_secs(30),
            pulse_patience: Duration::from_secs(10),
            full_list: Duration::from_secs(60 * 60),
            backoff_first: Duration::from_millis(200),
            backoff_most: Duration::from_secs(10),
            spacing: Duration::from_millis(4),
            probe: Duration::from_secs(15),
            stale_after: Duration::from_secs(15 * 60),
            hold_alarm: Duration::from_secs(5),
            credentials_check: Duration::from_secs(5),
            renew_spacing: Duration::from_secs(30),
            refused_alarm: Duration::from_secs(10),
            exec_timeout: Duration::from_secs(30),
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
    /// A complete list, and its version.
    Listed(Kind, String, Vec<Item>),
    /// A new or changed object.
    Applied(Box<Item>, EventMeta),
    /// The end of an object.
    Deleted(Reference, EventMeta),
    /// What became of a namespace.
    Namespace(String, NamespaceNow),
    /// The policy kinds that are not evaluated.
    Unevaluated(BTreeSet<String>),
    /// What is known of the objects of a kind.
    Reading(Kind, Reading),
    /// What a watch has said up to this version is to be held against a full list.
    Compare(Kind, &'static Api, String),
}

/// What an event of a watch has beside its object.
struct EventMeta {
    /// When it was read.
    at: Instant,
    /// `resourceVersion` of the change.
    version: String,
}

impl Message {
    /// When it came.
    fn at(&self) -> Instant {
        match self {
            Self::Applied(_, meta) | Self::Deleted(_, meta) => meta.at,
            Self::Listed(..)
            | Self::Namespace(..)
            | Self::Unevaluated(_)
            | Self::Reading(..)
            | Self::Compare(..) => Instant::now(),
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
    start_on_node(access, settings, timing, kept, None).await
}

/// As [`start`]. Where the name of this machine's node is given, its taint [`NODE_TAINT`] is removed whenever
/// [`Feed::guarded`] is true.
///
/// # Errors
/// As [`start`].
pub async fn start_on_node(
    access: &Access,
    settings: Settings,
    timing: Timing,
    kept: Option<PathBuf>,
    node: Option<String>,
) -> Result<Feed, KubeError> {
    let built = connect::build(access, &timing).await?;
    Ok(start_with(access.clone(), built, settings, timing, kept, node))
}

/// The tasks that a source cannot do without. None of them ever ends while all is well.
#[derive(Default)]
struct Essential {
    tasks: JoinSet<()>,
    names: HashMap<Id, String>,
}

impl Essential {
    fn spawn(&mut self, name: impl Into<String>, task: impl Future<Output = ()> + Send + 'static) {
        let id = self.tasks.spawn(task).id();
        self.names.insert(id, name.into());
    }

    /// Waits until one of them has ended, and says which and how.
    async fn ended(&mut self) -> String {
        let (id, how) = match self.tasks.join_next_with_id().await {
            // Without tasks there is nothing to end.
            None => return std::future::pending().await,
            Some(Ok((id, ()))) => (id, "ended"),
            Some(Err(error)) => (error.id(), described(&error)),
        };
        let name = self.names.get(&id).map_or("a task", String::as_str);
        format!("{name} {how}")
    }
}

fn start_with(
    access: Access,
    built: Built,
    settings: Settings,
    timing: Timing,
    kept: Option<PathBuf>,
    node: Option<String>,
) -> Feed {
    let watches = Kind::all().map(|kind| (kind.api().resource(), kind.required()));
    let health = Health::new("kubernetes", built.location.clone(), timing.stale_after, watches);
    let health = Arc::new(health.with_hold_alarm(timing.hold_alarm));
    let connection = Arc::new(Connection::new(&built, timing.clone(), Arc::clone(&health)));
    let (sender, messages) = mpsc::channel(1024);
    let assembler = Assembler {
        connection: Arc::clone(&connection),
        timing,
        health,
        messages: sender,
        questions: Arc::new(Semaphore::new(QUESTIONS)),
    };
    let mut state = State::new(settings);
    if let Some(kept) = &kept {
        state.remember(kept::read(kept));
    }
    let mut essential = assembler.watchers(&state);
    let guarded = node.map(|node| {
        let (guarded, is_guarded) = latest::channel(false);
        let (connection, health) = (Arc::clone(&connection), Arc::clone(&assembler.health));
        let task = taint::keep_off(node, is_guarded, connection, assembler.timing.clone(), health);
        essential.spawn("the removal of the node's taint", task);
        guarded
    });
    essential.spawn(
        "the renewal of credentials",
        connection.keep_credentials(access, built),
    );
    Feed {
        guarded,
        ..assembler.start(state, kept, messages, essential)
    }
}

/// Who is told what the watches come to.
struct Receivers<'a> {
    states: &'a latest::Sender<Option<Arc<SourceState>>>,
    services: ServicePublisher,
}

impl Receivers<'_> {
    /// Says what Services are now, where they are other than before.
    fn publish(&self, state: &State) {
        if let Some(services) = state.services() {
            self.services.publish(services);
        }
    }
}

/// Puts the watches together and hands complete states on.
#[derive(Clone)]
struct Assembler {
    connection: Arc<Connection>,
    timing: Timing,
    health: Arc<Health>,
    messages: mpsc::Sender<Message>,
    /// Questions about namespaces that are asked at once: whoever deletes a thousand namespaces must not have the
    /// server asked a thousand times in a moment.
    questions: Arc<Semaphore>,
}

/// So much later a server that shows policies by tier has surely heard of a tier, too.
const TIER_LAG: Duration = Duration::from_secs(5);

/// As many at once.
const QUESTIONS: usize = 8;

impl Assembler {
    /// Begins to watch, for a state that may hold what was there before.
    fn watchers(&self, state: &State) -> Essential {
        let mut essential = Essential::default();
        for kind in Kind::all() {
            let watcher = Watcher {
                kind,
                connection: Arc::clone(&self.connection),
                timing: self.timing.clone(),
                health: Arc::clone(&self.health),
                messages: self.messages.clone(),
            };
            essential.spawn(format!("the watch of {}", kind.api().resource()), watcher.run());
        }
        let discovery = Discovery {
            connection: Arc::clone(&self.connection),
            timing: self.timing.clone(),
            health: Arc::clone(&self.health),
            messages: self.messages.clone(),
            held: state.held_kinds(),
        };
        essential.spawn("the look for policy kinds", discovery.run());
        let it = self.clone();
        essential.spawn("the pulse", async move {
            pulse::run(&it.connection, &it.timing, &it.health).await;
        });
        essential
    }

    /// Puts together what the watches say, until one of them ends: the feed ends then, and says why.
    fn start(
        self,
        state: State,
        kept: Option<PathBuf>,
        messages: mpsc::Receiver<Message>,
        essential: Essential,
    ) -> Feed {
        let (sender, states) = latest::channel(None);
        let (publisher, services) = ServiceFeed::new();
        let health = Arc::clone(&self.health);
        let ending = Arc::clone(&health);
        let mut assembling = JoinSet::new();
        // As long as this is there, the feed has not ended: whoever sees its end must find the reason.
        let alive = sender.clone();
        assembling.spawn(async move {
            {
                let to = Receivers {
                    states: &sender,
                    services: publisher,
                };
                self.run(state, kept, messages, essential, to).await
            }
        });
        let task = AbortOnDrop(tokio::spawn(async move {
            let reason = match assembling.join_next().await {
                Some(Ok(reason)) => reason,
                Some(Err(error)) => format!("the assembly of the watches {}", described(&error)),
                None => "nothing runs".to_owned(),
            };
            ending.end(reason);
            drop(alive);
        }));
        Feed {
            states,
            health,
            services,
            accept: None,
            guarded: None,
            _task: Some(task),
        }
    }

    /// Answers why it ended.
    async fn run(
        self,
        mut state: State,
        kept: Option<PathBuf>,
        mut messages: mpsc::Receiver<Message>,
        mut essential: Essential,
        to: Receivers<'_>,
    ) -> String {
        let mut questions = JoinSet::new();
        let mut wanted = to.services.wanted.clone();
        let mut keeper = kept.map(Keeper::new);
        let mut tiers: BTreeSet<String> = BTreeSet::new();
        let mut began: Option<Instant> = None;
        let mut last: Option<Instant> = None;
        loop {
            let due = began
                .filter(|_| state.complete())
                .map(|began| last.map_or(began, |last| began.max(last + self.timing.spacing)));
            tokio::select! {
                biased;
                ended = essential.ended() => return ended,
                () = until(due) => {
                    self.hand_on(to.states, &state, began.take().unwrap_or_else(Instant::now));
                    last = Some(Instant::now());
                }
                () = until(keeper.as_ref().and_then(|keeper| keeper.due(&state))) => {
                    if let Some(keeper) = &mut keeper {
                        keeper.write(&state);
                    }
                }
                () = asked_for(&mut wanted), if !state.wants_services() => {
                    state.want_services();
                    self.watch_what_is_asked_for(&state);
                    to.publish(&state);
                }
                message = messages.recv() => {
                    // This task has a sender itself.
                    let Some(mut message) = message else { return "all watches have ended".to_owned() };
                    // What came together is one change.
                    let mut left = TAKEN_AT_ONCE;
                    loop {
                        let at = message.at();
                        if let Message::Compare(kind, api, version) = message {
                            questions.spawn(compare::compare(
                                Arc::clone(&self.connection),
                                self.timing.clone(),
                                Arc::clone(&self.health),
                                (kind, api, version),
                                state.watched(),
                            ));
                        } else if take(&mut state, message) {
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
                    self.watch_what_is_asked_for(&state);
                    let came = take_tiers(&mut tiers, &state);
                    if came.is_some() {
                        self.connection.set_tiers(tiers.clone());
                    }
                    if came == Some(true) {
                        self.connection.tier_came();
                        // The server that shows policies by tier may hear of it later than we do.
                        let connection = Arc::clone(&self.connection);
                        questions.spawn(async move {
                            sleep(TIER_LAG).await;
                            connection.tier_came();
                        });
                    }
                    to.publish(&state);
                    for namespace in state.questions() {
                        questions.spawn(ask(namespace, self.clone()));
                    }
                    while let Some(finished) = questions.try_join_next() {
                        if let Err(error) = finished {
                            return format!("a question about a namespace or a full list {}", described(&error));
                        }
                    }
                    self.health.unanswered(state.unanswered());
                    self.health.holds(&state.counts(), state.held().len() as u64);
                    self.health.unreadable(state.unreadable().map(|(policy, why, kept)| Unreadable {
                        policy: format!("{policy}: {why}"),
                        kind: policy.kind.label(),
                        kept,
                    }));
                }
            }
        }
    }

    fn watch_what_is_asked_for(&self, state: &State) {
        for (kind, asked_for) in state.asked_for() {
            self.connection.presences().ask_for(kind, asked_for);
        }
    }

    fn hand_on(&self, states: &latest::Sender<Option<Arc<SourceState>>>, state: &State, began: Instant) {
        let handed = SourceState {
            cluster: state.cluster().clone(),
            problems: state.problems(),
            staged: state.staged(),
            cluster_uid: state.cluster_uid(),
            versions: state.versions(),
            began,
        };
        self.health.handed_on();
        states.send_replace(Some(Arc::new(handed)));
    }
}

/// Takes which tiers there are now. Answers whether one has come that is not always there; None if nothing changed.
fn take_tiers(known: &mut BTreeSet<String>, state: &State) -> Option<bool> {
    let tiers = &state.cluster().tiers;
    if tiers.keys().eq(known.iter()) {
        return None;
    }
    let is_new = |name: &&String| !known.contains(*name);
    let built_in = Tier::built_in();
    let came = tiers
        .keys()
        .filter(is_new)
        .any(|name| built_in.iter().all(|tier| tier.name != *name));
    *known = tiers.keys().cloned().collect();
    Some(came)
}

/// What became of a task, in words.
fn described(error: &JoinError) -> &'static str {
    if error.is_panic() {
        "panicked; please report it with the log"
    } else {
        "was cancelled"
    }
}

fn take(state: &mut State, message: Message) -> bool {
    match message {
        Message::Listed(kind, version, items) => {
            state.seen(kind, &version);
            state.listed(kind, items)
        }
        Message::Applied(item, meta) => {
            state.seen(item.reference.kind, &meta.version);
            state.applied(*item)
        }
        Message::Deleted(reference, meta) => {
            state.seen(reference.kind, &meta.version);
            state.deleted(&reference)
        }
        Message::Namespace(name, now) => state.answered(&name, &now),
        Message::Unevaluated(kinds) => state.set_unevaluated(kinds),
        Message::Reading(kind, reading) => state.read(kind, reading),
        Message::Compare(..) => false,
    }
}

/// Waits until somebody asks for Services.
async fn asked_for(wanted: &mut latest::Receiver<bool>) {
    if wanted.wait_for(|wanted| *wanted).await.is_err() {
        // No task is left that might.
        std::future::pending().await
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
async fn ask(namespace: String, source: Assembler) {
    let mut backoff = Backoff::new(&source.timing);
    let mut retries = source.connection.retries();
    let params = ListParams {
        field_selector: Some(format!("metadata.name={namespace}")),
        ..ListParams::default()
    };
    let (mut attempts, mut refusals) = (0_u64, 0_u32);
    loop {
        retries.borrow_and_update();
        let request = match Request::new(Kind::NAMESPACE.api().path()).list(&params) {
            Ok(request) => request,
            Err(error) => return source.health.error(None, error.to_string()),
        };
        let turn = source.questions.acquire().await;
        let answer = source
            .connection
            .call(source.timing.list_timeout, |client| async move {
                client.request::<Namespaces>(request).await
            })
            .await;
        drop(turn);
        let error = match answer {
            Ok(list) => {
                let now = namespace_now(&namespace, list.items.unwrap_or_default());
                // The receiver is gone: the source has ended.
                let _ = source.messages.send(Message::Namespace(namespace, now)).await;
                return;
            }
            Err(error) => error,
        };
        let reason = explain("list", Kind::NAMESPACE.api().plural, &error, refusals > 0);
        let reason = format!("{reason} (policies of {namespace} stay meanwhile)");
        refusals += u32::from(error.code() == Some(403));
        if attempts == 0 {
            tracing::warn!("{reason}");
        }
        attempts += 1;
        source.health.error(None, reason);
        tokio::select! {
            () = sleep(backoff.next().max(error.retry_after().unwrap_or_default())) => {}
            Ok(()) = retries.changed() => {}
        }
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)] // a failed step is a failed test

    use super::*;

    /// A source of which one task does what is given, with a server that cannot be reached.
    async fn feed_with<F>(task: F) -> Feed
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("kubeconfig");
        std::fs::write(
            &file,
            "{current-context: c, clusters: [{name: c, cluster: {server: 'http://127.0.0.1:1'}}], \
             contexts: [{name: c, context: {cluster: c}}]}",
        )
        .unwrap();
        let access = Access::Kubeconfig { file, context: None };
        let timing = Timing::default();
        let built = connect::build(&access, &timing).await.unwrap();
        let health = Arc::new(Health::new("kubernetes", String::new(), timing.stale_after, []));
        let connection = Arc::new(Connection::new(&built, timing.clone(), Arc::clone(&health)));
        let (sender, messages) = mpsc::channel(8);
        let assembler = Assembler {
            connection,
            timing,
            health,
            messages: sender,
            questions: Arc::new(Semaphore::new(QUESTIONS)),
        };
        let state = State::new(Settings::default());
        let mut essential = assembler.watchers(&state);
        essential.spawn("the task", task);
        assembler.start(state, None, messages, essential)
    }

    async fn reason(mut feed: Feed) -> String {
        let ended = tokio::time::timeout(Duration::from_secs(20), feed.states.changed()).await;
        assert!(ended.unwrap().is_err(), "the end is an event");
        feed.health.ended().unwrap()
    }

    #[tokio::test]
    async fn a_task_that_panics_ends_the_source_with_its_reason() {
        let feed = feed_with(async { panic!("as a watcher might") }).await;
        let reason = reason(feed).await;
        assert!(reason.starts_with("the task panicked"), "{reason}");
    }

    #[tokio::test]
    async fn a_task_that_returns_ends_the_source_with_its_name() {
        let feed = feed_with(async {}).await;
        assert_eq!(reason(feed).await, "the task ended");
    }

    #[tokio::test]
    async fn a_source_that_is_well_does_not_end() {
        let mut feed = feed_with(std::future::pending()).await;
        let quiet = tokio::time::timeout(Duration::from_millis(100), feed.states.changed()).await;
        assert!(quiet.is_err() && feed.health.ended().is_none());
    }
}
