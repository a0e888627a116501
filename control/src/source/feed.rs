//! What every source hands on: complete states, the latest only, and how it is doing.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use tokio::sync::watch;

use crate::{
    cluster::Cluster,
    protocol::{SourceStatus, WatchStatus},
    source::problems::Problems,
};

/// A complete state.
#[derive(Clone, Debug)]
pub struct SourceState {
    /// The state.
    pub cluster: Cluster,
    /// What is wrong with objects in it.
    pub problems: Problems,
    /// When the first event that this state has over the one before arrived.
    pub began: Instant,
}

/// A running source. It ends when this is dropped.
#[derive(Debug)]
pub struct Feed {
    /// The latest complete state; None before the first. The sender goes when the source ends.
    pub states: watch::Receiver<Option<Arc<SourceState>>>,
    /// How it is doing.
    pub health: Arc<Health>,
    /// Takes a state that the source holds back; None where it never does.
    pub accept: Option<Accept>,
    /// What runs for it, as long as this lives.
    pub(super) _task: Option<AbortOnDrop>,
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

/// How a source is doing. Written by the source, read for status and metrics.
#[derive(Debug)]
pub struct Health {
    kind: &'static str,
    location: String,
    stale_after: Duration,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    synced: bool,
    last_event: Option<Instant>,
    stale_since: Option<Instant>,
    states: u64,
    events: u64,
    errors: u64,
    last_error: Option<String>,
    held_policies: u64,
    held_back: Option<String>,
    watches: Vec<WatchStatus>,
}

impl Health {
    /// A source that has said nothing yet, and is stale from now on until it does.
    pub(super) fn new(
        kind: &'static str,
        location: String,
        stale_after: Duration,
        watches: Vec<WatchStatus>,
    ) -> Self {
        let inner = Inner {
            stale_since: Some(Instant::now()),
            watches,
            ..Inner::default()
        };
        Self {
            kind,
            location,
            stale_after,
            inner: Mutex::new(inner),
        }
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
        if let Some(watch) = watch.and_then(|watch| inner.watches.get_mut(watch)) {
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
        if let Some(watch) = watch.and_then(|watch| inner.watches.get_mut(watch)) {
            watch.errors += 1;
            watch.last_error = Some(message.clone());
        }
        inner.last_error = Some(message);
    }

    /// A watch's list has come; `first` where it is its first one.
    pub(super) fn listed(&self, watch: usize) {
        let mut inner = self.inner();
        inner.last_event = Some(Instant::now());
        if let Some(watch) = inner.watches.get_mut(watch) {
            watch.relists += u64::from(watch.synced);
            watch.synced = true;
        }
    }

    /// A watch is connected, or not any more. Stale since the first of them went.
    pub(super) fn connected(&self, watch: usize, connected: bool) {
        let mut inner = self.inner();
        if let Some(watch) = inner.watches.get_mut(watch) {
            watch.connected = connected;
        }
        if inner.watches.iter().all(|watch| watch.connected) {
            inner.stale_since = None;
        } else if inner.stale_since.is_none() {
            inner.stale_since = Some(Instant::now());
        }
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

    /// How many objects each watch holds, and how many policies stay though they are gone.
    pub(super) fn holds(&self, objects: &[u64], held_policies: u64) {
        let mut inner = self.inner();
        inner.held_policies = held_policies;
        for (watch, objects) in inner.watches.iter_mut().zip(objects) {
            watch.objects = *objects;
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

    /// Why a state is held back; None where none is.
    pub fn holding_back(&self) -> Option<String> {
        self.inner().held_back.clone()
    }

    /// For `status`.
    pub fn status(&self) -> SourceStatus {
        let inner = self.inner();
        let stale = inner.stale_since.map(|since| since.elapsed());
        SourceStatus {
            kind: self.kind.to_owned(),
            location: self.location.clone(),
            synced: inner.synced,
            last_event_seconds: inner.last_event.map(|at| at.elapsed().as_secs_f64()),
            stale_seconds: stale.map(|since| since.as_secs_f64()),
            stale: stale.is_some_and(|since| since > self.stale_after),
            states: inner.states,
            events: inner.events,
            relists: inner.watches.iter().map(|watch| watch.relists).sum(),
            errors: inner.errors,
            last_error: inner.last_error.clone(),
            held_policies: inner.held_policies,
            held_back: inner.held_back.clone(),
            watches: inner.watches.clone(),
        }
    }
}
