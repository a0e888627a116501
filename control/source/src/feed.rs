//! What every source hands on: complete states, the latest only, and how it is doing.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use ringwall_messages::{ClusterUid, ResourceVersions, SourceStatus, WatchStatus};
use ringwall_policy::{Cluster, services::Services};
use tokio::sync::watch;

use crate::{problems::Problems, staged::Staged};

/// A complete state.
#[derive(Clone, Debug)]
pub struct SourceState {
    /// The state.
    pub cluster: Cluster,
    /// What is wrong with objects in it.
    pub problems: Problems,
    /// Policies that are staged: nothing is enforced of them, and they are no part of the state.
    pub staged: Arc<Vec<Staged>>,
    /// The cluster that it is of; None where the source does not say.
    pub cluster_uid: Option<ClusterUid>,
    /// The newest version of each kind in it; empty where the source has none.
    pub versions: ResourceVersions,
    /// When the first event that this state has over the one before arrived.
    pub began: Instant,
}

/// As much of what changed at the source is remembered.
const CHANGED: usize = 1000;

/// A running source. It ends when this is dropped.
#[derive(Debug)]
pub struct Feed {
    /// The latest complete state; None before the first. The sender goes when the source ends, which no source does
    /// while all is well: [`Health::ended`] says why.
    pub states: watch::Receiver<Option<Arc<SourceState>>>,
    /// How it is doing.
    pub health: Arc<Health>,
    /// Its Services.
    pub services: ServiceFeed,
    /// Takes a state that the source holds back; None where it never does.
    pub accept: Option<Accept>,
    /// Where to say whether this node is guarded, so that its taint goes; None where that is not wanted.
    pub guarded: Option<watch::Sender<bool>>,
    /// What runs for it, as long as this lives.
    pub(super) _task: Option<AbortOnDrop>,
}

/// The Services of a source. They are no part of its states, so that what changes in them compiles nothing, and they are not watched
/// before they are asked for.
#[derive(Clone, Debug)]
pub struct ServiceFeed {
    latest: watch::Receiver<Option<Arc<Services>>>,
    wanted: watch::Sender<bool>,
}

/// Who fills a [`ServiceFeed`].
#[derive(Debug)]
pub(super) struct ServicePublisher {
    latest: watch::Sender<Option<Arc<Services>>>,
    /// Whether somebody asks for them.
    pub(super) wanted: watch::Receiver<bool>,
}

impl ServiceFeed {
    pub(super) fn new() -> (ServicePublisher, Self) {
        let (publisher, latest) = watch::channel(None);
        let (wanted, is_wanted) = watch::channel(false);
        let publisher = ServicePublisher {
            latest: publisher,
            wanted: is_wanted,
        };
        (publisher, Self { latest, wanted })
    }

    /// Has them watched from now on, and waits until they are known; None where that takes longer than `patience`.
    pub async fn get(&self, patience: Duration) -> Option<Arc<Services>> {
        self.wanted.send_replace(true);
        let mut latest = self.latest.clone();
        let known = tokio::time::timeout(patience, latest.wait_for(Option::is_some)).await;
        known.ok()?.ok()?.clone()
    }
}

impl ServicePublisher {
    /// Says what they are now.
    pub(super) fn publish(&self, services: &Services) {
        self.latest.send_if_modified(|latest| {
            // What is shared with the last ones is not compared.
            let same = latest.as_ref().is_some_and(|latest| latest.same_as(services));
            if !same {
                *latest = Some(Arc::new(services.clone()));
            }
            !same
        });
    }
}

/// Takes a state that the source holds back.
pub struct Accept(pub(super) Box<dyn Fn() + Send + Sync>);

impl Accept {
    /// Does it.
    pub fn accept(&self) {
        (self.0)();
    }
}

impl std::fmt::Debug for Accept {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Accept")
    }
}

/// A task that ends with its owner.
#[derive(Debug)]
pub(super) struct AbortOnDrop(pub(super) tokio::task::JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// What may be wrong with a source.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Condition {
    /// The API server refuses the credentials, or they its certificate.
    Credentials,
    /// New credentials cannot be used.
    Renewal,
    /// Which policy kinds there are cannot be looked up.
    Discovery,
    /// The API server's data became older.
    WentBack,
    /// A full list was not what the watch had said.
    Differences,
    /// What the source says cannot be used; what it said before stays.
    Invalid,
    /// Policies cannot be read, and never could.
    Unreadable,
    /// The node's taint cannot be removed, or looked for.
    Taint,
    /// There may be objects of a kind that cannot be read: that of the watch of this number.
    Unread(usize),
}

/// A policy whose present content cannot be read.
pub(super) struct Unreadable {
    /// Its name, and why not.
    pub(super) policy: String,
    /// Its kind, as it stands among those that are not evaluated.
    pub(super) kind: String,
    /// Whether an earlier version of it is in force.
    pub(super) kept: bool,
}

/// One watch, and what is expected of it.
#[derive(Debug)]
struct Watch {
    status: WatchStatus,
    /// Whether the API server serves what it watches.
    wanted: bool,
    /// The kind, as it stands among those that are not evaluated, where its objects cannot be read.
    unread: Option<String>,
}

impl Watch {
    /// Whether the state is current, as far as this watch goes. One that cannot be is said to be incomplete instead.
    fn is_current(&self) -> bool {
        self.status.connected || !self.wanted || self.unread.is_some()
    }
}

/// What is wrong since when.
#[derive(Debug)]
struct Standing {
    since: Instant,
    /// An alarm after so long.
    patience: Duration,
    /// Until then; for as long as it is not taken back where None.
    until: Option<Instant>,
    text: String,
}

impl Standing {
    fn alarm(&self) -> Option<String> {
        let lasts = self.since.elapsed();
        let over = self.until.is_some_and(|until| Instant::now() >= until);
        (lasts >= self.patience && !over).then(|| match self.until {
            None => format!("{} (for {} s)", self.text, lasts.as_secs()),
            Some(_) => format!("{} ({} s ago)", self.text, lasts.as_secs()),
        })
    }
}

/// What happened once stays an alarm for so long.
const REMEMBER: Duration = Duration::from_secs(15 * 60);

/// Held policies that an alarm names.
const NAMED: usize = 5;

/// How a source is doing. Written by the source, read for status and metrics.
#[derive(Debug)]
pub struct Health {
    kind: &'static str,
    stale_after: Duration,
    /// Alarm where a deleted policy stays in force without an answer for so long.
    hold_alarm: Duration,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    location: String,
    /// Why the source has ended.
    ended: Option<String>,
    synced: bool,
    last_event: Option<Instant>,
    stale_since: Option<Instant>,
    states: u64,
    events: u64,
    errors: u64,
    last_error: Option<(Instant, String)>,
    held_policies: u64,
    /// Policies that are gone and stay until the API server says what became of their namespace, and since when.
    unanswered: BTreeMap<String, Instant>,
    held_back: Option<String>,
    renewals: u64,
    full_lists: u64,
    differences: u64,
    conditions: BTreeMap<Condition, Standing>,
    /// What is wrong with what stays as it was.
    kept: Vec<String>,
    /// What cannot be read and never could.
    never_read: Vec<String>,
    /// Kinds of policies among these, as they stand among those that are not evaluated.
    never_read_kinds: BTreeSet<String>,
    /// What changed at the source since it was last asked for.
    changed: Vec<String>,
    watches: Vec<Watch>,
}

impl Inner {
    fn watch(&mut self, number: usize) -> Option<&mut WatchStatus> {
        self.watches.get_mut(number).map(|watch| &mut watch.status)
    }

    /// Stale since the first of the watches went.
    fn look_for_stale(&mut self) {
        if self.watches.iter().all(Watch::is_current) {
            self.stale_since = None;
        } else if self.stale_since.is_none() {
            self.stale_since = Some(Instant::now());
        }
    }
}

impl Health {
    /// A source that has said nothing yet, and is stale from now on until it does. `watches`: what they watch, and whether
    /// that is always there.
    pub(super) fn new(
        kind: &'static str,
        location: String,
        stale_after: Duration,
        watches: impl IntoIterator<Item = (String, bool)>,
    ) -> Self {
        let watches = watches.into_iter().map(|(resource, wanted)| Watch {
            status: WatchStatus {
                resource,
                ..WatchStatus::default()
            },
            wanted,
            unread: None,
        });
        let inner = Inner {
            location,
            stale_since: Some(Instant::now()),
            watches: watches.collect(),
            ..Inner::default()
        };
        Self {
            kind,
            stale_after,
            hold_alarm: Duration::from_secs(5),
            inner: Mutex::new(inner),
        }
    }

    /// The same with another patience for deleted policies that wait for an answer.
    pub(super) fn with_hold_alarm(self, hold_alarm: Duration) -> Self {
        Self { hold_alarm, ..self }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        // Only counters and texts are in it: as good after a panic elsewhere as before.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An event arrived, by a watch where it has several.
    pub(super) fn event(&self, watch: Option<usize>) {
        let mut inner = self.inner();
        inner.events += 1;
        inner.last_event = Some(Instant::now());
        if let Some(watch) = watch.and_then(|watch| inner.watch(watch)) {
            watch.events += 1;
        }
    }

    /// A sign of life that changes nothing.
    pub(super) fn alive(&self) {
        self.inner().last_event = Some(Instant::now());
    }

    /// Something went wrong.
    pub(super) fn error(&self, watch: Option<usize>, message: String) {
        let mut inner = self.inner();
        inner.errors += 1;
        if let Some(watch) = watch.and_then(|watch| inner.watch(watch)) {
            watch.errors += 1;
            watch.last_error = Some(message.clone());
        }
        inner.last_error = Some((Instant::now(), message));
    }

    /// The source has ended, which it never should.
    pub(super) fn end(&self, reason: String) {
        tracing::error!("the source has ended: {reason}");
        self.inner().ended.get_or_insert(reason);
    }

    /// Why the source has ended; None while it runs. It does not come back: whoever depends on it must start anew.
    pub fn ended(&self) -> Option<String> {
        self.inner().ended.clone()
    }

    /// What is wrong as long as it is, or None where nothing is; an alarm where it lasts longer than `patience`.
    pub(super) fn condition(&self, condition: Condition, patience: Duration, text: Option<String>) {
        let conditions = &mut self.inner().conditions;
        match text {
            None => {
                if let Some(standing) = conditions.remove(&condition) {
                    tracing::info!(
                        seconds = standing.since.elapsed().as_secs(),
                        "over: {}",
                        standing.text
                    );
                }
            }
            Some(text) => {
                let since = match conditions.get(&condition) {
                    Some(standing) => standing.since,
                    None => {
                        tracing::warn!("{text}");
                        Instant::now()
                    }
                };
                let standing = Standing {
                    since,
                    patience,
                    until: None,
                    text,
                };
                conditions.insert(condition, standing);
            }
        }
    }

    /// Says what stays though the source says something else that cannot be used.
    pub(super) fn kept(&self, faults: Vec<String>) {
        let before = std::mem::replace(&mut self.inner().kept, faults.clone());
        for fault in faults.iter().filter(|fault| !before.contains(fault)) {
            tracing::warn!("rejected, the last good version stays in force: {fault}");
        }
        if faults.is_empty() && !before.is_empty() {
            tracing::info!("all objects are valid again");
        }
        let alarm = faults.first().map(|first| match faults.len() {
            1 => format!("rejected, the last good version stays in force: {first}"),
            many => format!("{many} problems; the last good versions stay in force; first: {first}"),
        });
        self.condition(Condition::Invalid, Duration::ZERO, alarm);
    }

    /// Policies whose present content cannot be read: those of which an earlier version is in force, and others.
    pub(super) fn unreadable(&self, policies: impl Iterator<Item = Unreadable>) {
        let (kept, never): (Vec<_>, Vec<_>) = policies.partition(|it| it.kept);
        self.kept(kept.into_iter().map(|it| it.policy).collect());
        let kinds = never.iter().map(|it| it.kind.clone()).collect();
        let never: Vec<String> = never.into_iter().map(|it| it.policy).collect();
        let before = {
            let mut inner = self.inner();
            inner.never_read_kinds = kinds;
            std::mem::replace(&mut inner.never_read, never.clone())
        };
        for policy in never.iter().filter(|policy| !before.contains(policy)) {
            tracing::warn!("not enforced, because it cannot be read and has no earlier version: {policy}");
        }
        let alarm = never.first().map(|first| match never.len() {
            1 => format!("not enforced, because it cannot be read and has no earlier version: {first}"),
            many => format!(
                "{many} policies are not enforced, because they cannot be read and have no earlier version; first: {first}"
            ),
        });
        self.condition(Condition::Unreadable, Duration::ZERO, alarm);
    }

    /// Something happened that is to be known for a while.
    pub(super) fn remember(&self, condition: Condition, text: String) {
        let standing = Standing {
            since: Instant::now(),
            patience: Duration::ZERO,
            until: Some(Instant::now() + REMEMBER),
            text,
        };
        self.inner().conditions.insert(condition, standing);
    }

    /// The credentials were read again.
    pub(super) fn renewed(&self) {
        self.inner().renewals += 1;
    }

    /// The source is somewhere else now.
    pub(super) fn moved(&self, location: String) {
        self.inner().location = location;
    }

    /// What was watched was compared with a full list, with so many differences.
    pub(super) fn compared(&self, differences: u64) {
        let mut inner = self.inner();
        inner.full_lists += 1;
        inner.differences += differences;
    }

    /// Policies that are gone and stay until the API server says what became of their namespace.
    pub(super) fn unanswered(&self, policies: impl Iterator<Item = String>) {
        let mut inner = self.inner();
        let before = std::mem::take(&mut inner.unanswered);
        inner.unanswered = policies
            .map(|policy| {
                let since = before.get(&policy).copied().unwrap_or_else(Instant::now);
                (policy, since)
            })
            .collect();
    }

    /// What needs somebody's attention.
    pub fn alarms(&self) -> Vec<String> {
        let inner = self.inner();
        let mut alarms: Vec<String> = inner.conditions.values().filter_map(Standing::alarm).collect();
        let late: Vec<(&str, Duration)> = inner
            .unanswered
            .iter()
            .map(|(policy, since)| (policy.as_str(), since.elapsed()))
            .filter(|(_, waits)| *waits >= self.hold_alarm)
            .collect();
        if let Some(longest) = late.iter().map(|(_, waits)| waits).max() {
            let named: Vec<&str> = late.iter().take(NAMED).map(|(policy, _)| *policy).collect();
            let more = late.len() - named.len();
            alarms.push(format!(
                "deleted policies are still in force ({}, for up to {} s), since the API server does not say whether \
                 their namespace lives: {}{}",
                late.len(),
                longest.as_secs(),
                named.join(", "),
                if more > 0 { format!(" and {more} more") } else { String::new() },
            ));
        }
        alarms
    }

    /// A watch's list has come; `first` where it is its first one.
    pub(super) fn listed(&self, watch: usize) {
        let mut inner = self.inner();
        inner.last_event = Some(Instant::now());
        if let Some(watch) = inner.watch(watch) {
            watch.relists += u64::from(watch.synced);
            watch.synced = true;
        }
    }

    /// A watch is connected, or not any more. Stale since the first of them went.
    pub(super) fn connected(&self, watch: usize, connected: bool) {
        let mut inner = self.inner();
        if let Some(watch) = inner.watch(watch) {
            watch.connected = connected;
        }
        inner.look_for_stale();
    }

    /// A watch has something to watch, which is called so, or nothing.
    pub(super) fn wanted(&self, watch: usize, resource: Option<String>) {
        let mut inner = self.inner();
        if let Some(watch) = inner.watches.get_mut(watch) {
            watch.wanted = resource.is_some();
            if let Some(resource) = resource {
                watch.status.resource = resource;
            }
        }
        inner.look_for_stale();
    }

    /// There may be objects that a watch cannot read: the name of their kind among those that are not evaluated, and why.
    pub(super) fn unread(&self, watch: usize, unread: Option<(String, String)>) {
        let (name, text) = unread.unzip();
        self.condition(Condition::Unread(watch), Duration::ZERO, text);
        let mut inner = self.inner();
        if let Some(watch) = inner.watches.get_mut(watch) {
            watch.unread = name;
        }
        inner.look_for_stale();
    }

    /// Whether the alarms say why a kind is not evaluated, or not all of it.
    pub fn explains(&self, kind: &str) -> bool {
        let inner = self.inner();
        let unread = |watch: &Watch| watch.unread.as_deref() == Some(kind);
        inner.never_read_kinds.contains(kind) || inner.watches.iter().any(unread)
    }

    /// Whether what the source says is current, for sources without watches.
    pub(super) fn current(&self, current: bool) {
        let mut inner = self.inner();
        if current {
            inner.stale_since = None;
        } else if inner.stale_since.is_none() {
            inner.stale_since = Some(Instant::now());
        }
    }

    /// A watch has seen a version; None where it lists anew.
    pub(super) fn seen(&self, watch: usize, version: Option<u64>) {
        if let Some(watch) = self.inner().watch(watch) {
            watch.version = version;
        }
    }

    /// How many objects each watch holds, and how many policies stay though they are gone.
    pub(super) fn holds(&self, objects: &[u64], held_policies: u64) {
        let mut inner = self.inner();
        inner.held_policies = held_policies;
        for (watch, objects) in inner.watches.iter_mut().zip(objects) {
            watch.status.objects = *objects;
        }
    }

    /// A complete state was handed on.
    pub(super) fn handed_on(&self) {
        let mut inner = self.inner();
        inner.synced = true;
        inner.states += 1;
        inner.held_back = None;
    }

    /// A state is held back, for a reason.
    pub(super) fn held_back(&self, reason: String) {
        self.inner().held_back = Some(reason);
    }

    /// Something at the source changed, such as a file. Before the state that it is in is handed on.
    pub(super) fn changed(&self, what: impl Iterator<Item = String>) {
        let mut inner = self.inner();
        let room = CHANGED.saturating_sub(inner.changed.len());
        inner.changed.extend(what.take(room));
    }

    /// What changed at the source since this was last asked: not all of it where that is very much.
    pub fn take_changed(&self) -> Vec<String> {
        std::mem::take(&mut self.inner().changed)
    }

    /// The folder, or the API server's address.
    pub fn location(&self) -> String {
        self.inner().location.clone()
    }

    /// Why a state is held back; None where none is.
    pub fn holding_back(&self) -> Option<String> {
        self.inner().held_back.clone()
    }

    /// For `status`.
    pub fn status(&self) -> SourceStatus {
        let inner = self.inner();
        let stale = inner.stale_since.map(|begin| begin.elapsed());
        let shown = inner.watches.iter().filter(|watch| watch.wanted);
        SourceStatus {
            kind: self.kind.to_owned(),
            location: inner.location.clone(),
            synced: inner.synced,
            last_event_seconds: inner.last_event.map(|at| at.elapsed().as_secs_f64()),
            stale_seconds: stale.map(|age| age.as_secs_f64()),
            stale: stale.is_some_and(|age| age > self.stale_after),
            states: inner.states,
            events: inner.events,
            relists: inner.watches.iter().map(|watch| watch.status.relists).sum(),
            errors: inner.errors,
            last_error: inner.last_error.as_ref().map(|(_, error)| error.clone()),
            last_error_seconds: inner
                .last_error
                .as_ref()
                .map(|(at, _)| at.elapsed().as_secs_f64()),
            renewals: inner.renewals,
            full_lists: inner.full_lists,
            differences: inner.differences,
            held_policies: inner.held_policies,
            held_back: inner.held_back.clone(),
            watches: shown.map(|watch| watch.status.clone()).collect(),
        }
    }
}
