//! One list and watch, for ever.
//!
//! kube's own watcher is not used: it hides bookmarks (a sign of life), begins a watch again at a version that is
//! gone where the server answers with status 410 instead of an event, and skips an event that it cannot read. Here
//! each of those leads to a new list, and the state before stands until that is complete.
//!
//! A watch goes on from its last version only where the server closed it in its time. Where it broke, the server may
//! have been started anew on older data (etcd restored from a snapshot), of which a version says nothing: its number may
//! come to stand for something else.

use std::{
    collections::BTreeSet,
    hash::{BuildHasher, Hasher, RandomState},
    pin::pin,
    sync::Arc,
    time::{Duration, Instant},
};

use futures::{AsyncBufRead, AsyncBufReadExt};
use kube::core::{
    Request, Status,
    params::{ListParams, WatchParams},
};
use serde::{Deserialize, de::IgnoredAny};
use serde_json::{Value, value::RawValue};
use tokio::{
    sync::{mpsc, watch as latest},
    time::{sleep, timeout},
};

use super::{
    EventMeta, Message, Timing,
    connection::{Connection, Order, RequestError},
    discovery::Presence,
    kind::{Api, Kind},
    object::{identify, item},
    state::{Item, Reading},
    trim,
};
use crate::feed::Health;

/// Keeps the watch of one kind going, wherever the API server serves it. Returns only when the receiver of `messages` is gone.
pub(super) struct Watcher {
    pub(super) kind: Kind,
    pub(super) connection: Arc<Connection>,
    pub(super) timing: Timing,
    pub(super) health: Arc<Health>,
    pub(super) messages: mpsc::Sender<Message>,
}

/// So many times in a row a kind is refused before its objects count as out of reach.
const REFUSALS: u32 = 2;

/// Objects of a list that are decoded before somebody else has a turn: a few milliseconds.
const DECODED_AT_ONCE: usize = 64;

/// Those who wait for the server come back within so long once somebody has reached it.
const WAKE_SPREAD: Duration = Duration::from_millis(200);

/// Longest that the server may have us wait.
const MOST_RETRY_AFTER: Duration = Duration::from_secs(60);

/// Why a list or a watch ended.
#[derive(Debug)]
enum End {
    /// The server closed the watch in its time, as it does every few minutes: go on from the last version.
    Closed,
    /// The server is busy: go on from the last version where there is one, after a while.
    Busy { reason: String, after: Option<Duration> },
    /// Something failed: list, after a while.
    Failed {
        reason: String,
        after: Option<Duration>,
        /// Whether a success elsewhere means that this is worth another try.
        unreachable: bool,
        /// Status code of the answer; None where none came.
        code: Option<u16>,
    },
    /// The last version is no use any more: list again.
    Gone(String),
    /// The receiver is gone.
    Unheard,
}

impl End {
    fn failed(reason: String) -> Self {
        Self::Failed {
            reason,
            after: None,
            unreachable: false,
            code: None,
        }
    }

    fn broken(reason: String) -> Self {
        Self::Failed {
            reason,
            after: None,
            unreachable: true,
            code: None,
        }
    }

    fn of(verb: &str, api: &Api, error: &RequestError, advice: bool) -> Self {
        let reason = explain(verb, &api.resource(), error, advice);
        if error.code() == Some(429) {
            return Self::Busy {
                reason,
                after: error.retry_after(),
            };
        }
        Self::Failed {
            reason,
            after: error.retry_after(),
            unreachable: error.is_unreachable(),
            code: error.code(),
        }
    }

    fn after(&self) -> Option<Duration> {
        match self {
            Self::Busy { after, .. } | Self::Failed { after, .. } => *after,
            Self::Closed | Self::Gone(_) | Self::Unheard => None,
        }
    }
}

#[derive(Deserialize)]
struct Page {
    #[serde(default)]
    metadata: PageMeta,
    /// Each is read for itself: the trees of a whole page would be ten times its text.
    items: Option<Vec<Box<RawValue>>>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct PageMeta {
    resource_version: String,
    r#continue: String,
}

#[derive(Deserialize)]
struct Event<'a> {
    r#type: &'a str,
    #[serde(borrow)]
    object: &'a RawValue,
}

/// Fetches the pages of a list one by one. Nothing but an object's own place in it is kept.
pub(super) struct Pages<'a> {
    connection: &'a Connection,
    timing: &'a Timing,
    kind: Kind,
    api: &'static Api,
    params: ListParams,
    done: bool,
    /// The list's version; empty before the last page.
    pub(super) version: String,
}

/// Why a page cannot be had.
pub(super) enum PageError {
    Request(RequestError),
    /// It came and is no use.
    Unusable(String),
}

impl<'a> Pages<'a> {
    pub(super) fn new(
        connection: &'a Connection,
        timing: &'a Timing,
        (kind, api): (Kind, &'static Api),
        params: ListParams,
    ) -> Self {
        let params = ListParams {
            limit: Some(timing.page),
            ..params
        };
        Self {
            connection,
            timing,
            kind,
            api,
            params,
            done: false,
            version: String::new(),
        }
    }

    /// The objects of the next page; None after the last.
    pub(super) async fn next(&mut self) -> Result<Option<Vec<Item>>, PageError> {
        if self.done {
            return Ok(None);
        }
        let request = Request::new(self.api.path())
            .list(&self.params)
            .map_err(|error| PageError::Unusable(error.to_string()))?;
        let page: Page = self
            .connection
            .call(self.timing.list_timeout, |client| async move {
                client.request(request).await
            })
            .await
            .map_err(PageError::Request)?;
        let mut items = Vec::new();
        for (number, object) in page.items.unwrap_or_default().into_iter().enumerate() {
            if number % DECODED_AT_ONCE == 0 {
                tokio::task::yield_now().await;
            }
            let read = trim::read(self.kind, object.get()).map_err(|error| error.to_string());
            // A list that lacks an object would delete it.
            let item = read
                .and_then(|object| item(self.kind, self.api, object))
                .map_err(|reason| PageError::Unusable(format!("an object in it {reason}")))?;
            items.push(item);
        }
        if page.metadata.r#continue.is_empty() {
            self.done = true;
            self.version = page.metadata.resource_version;
        } else {
            self.params.continue_token = Some(page.metadata.r#continue);
        }
        Ok(Some(items))
    }
}

impl Watcher {
    pub(super) async fn run(self) {
        let mut presence = self.connection.presences().follow(self.kind);
        loop {
            let now = presence.borrow_and_update().clone();
            let reading = match now {
                Presence::Unasked => None,
                Presence::Served(api) => {
                    self.health.wanted(self.kind.number(), Some(api.resource()));
                    let watch = Watch { watcher: &self, api };
                    tokio::select! {
                        () = watch.run() => return,
                        Ok(()) = presence.changed() => {}
                    }
                    self.health.connected(self.kind.number(), false);
                    self.connection.seen(self.kind, None);
                    continue;
                }
                Presence::Unknown => Some(Reading::Unknown),
                Presence::Absent | Presence::NotAskedFor => Some(Reading::Absent),
                Presence::Foreign(version) => Some(self.foreign(&version)),
            };
            if let Some(reading) = reading {
                if reading == Reading::Absent {
                    self.health.unread(self.kind.number(), None);
                }
                self.health.wanted(self.kind.number(), None);
                if self.send(Message::Reading(self.kind, reading)).await.is_err() {
                    return;
                }
            }
            if presence.changed().await.is_err() {
                // What it is followed by is in the connection, which is here.
                return;
            }
        }
    }

    /// There are objects, in a version that is not understood.
    fn foreign(&self, version: &str) -> Reading {
        let name = format!("{}.{version}", self.kind.name());
        let known: Vec<String> = self.kind.apis().iter().map(Api::api_version).collect();
        let text = format!(
            "the API server serves {} as {version} alone, and this version of ringwall reads {}: none of its objects is \
             evaluated, and those read before stay in force; serve that version, too, or upgrade ringwall",
            self.kind.shown(),
            known.join(" or "),
        );
        self.unread(name, text)
    }

    /// There may be objects, and they cannot be read. What is known of them stays.
    fn unread(&self, name: String, text: String) -> Reading {
        self.health.unread(self.kind.number(), Some((name.clone(), text)));
        Reading::Unread(name)
    }

    async fn send(&self, message: Message) -> Result<(), End> {
        self.messages.send(message).await.map_err(|_| End::Unheard)
    }
}

/// What may have a watch end and list anew.
struct Orders {
    all: latest::Receiver<Order>,
    tiers: latest::Receiver<BTreeSet<String>>,
    /// Whether new tiers concern it.
    by_tier: bool,
}

impl Orders {
    /// What was ordered so far is done.
    fn catch_up(&mut self) {
        self.all.borrow_and_update();
        self.tiers.borrow_and_update();
    }

    /// Waits for the next, and says why.
    async fn next(&mut self) -> String {
        tokio::select! {
            Ok(()) = self.all.changed() => self.all.borrow_and_update().reason.clone(),
            Ok(()) = self.tiers.changed(), if self.by_tier => {
                self.tiers.borrow_and_update();
                "a tier has come, whose policies a watch from before it does not show".to_owned()
            }
            else => std::future::pending().await,
        }
    }
}

/// One list and watch, as long as the kind is served there.
struct Watch<'a> {
    watcher: &'a Watcher,
    api: &'static Api,
}

impl std::ops::Deref for Watch<'_> {
    type Target = Watcher;

    fn deref(&self) -> &Watcher {
        self.watcher
    }
}

impl Watch<'_> {
    async fn run(self) {
        let mut pauses = Pauses::new(&self.timing);
        let mut orders = Orders {
            all: self.connection.relists(),
            tiers: self.connection.tiers(),
            by_tier: self.kind.is_shown_by_tier(self.api),
        };
        let mut retries = self.connection.retries();
        let mut version: Option<String> = None;
        let mut compared = Instant::now();
        let mut compare_after = jittered(self.timing.full_list, 0.75, 1.25);
        let mut refusals: u32 = 0;
        loop {
            let began = Instant::now();
            retries.borrow_and_update();
            let watching = version.is_some();
            let end = match &mut version {
                None => {
                    // What is ordered from here on, this list may not have seen.
                    orders.catch_up();
                    match self.list(refusals > 0).await {
                        Ok(listed) => {
                            version = Some(listed);
                            pauses.listed();
                            continue;
                        }
                        Err(end) => end,
                    }
                }
                Some(version) => {
                    let end = self.watch(version, &mut orders, refusals > 0).await;
                    self.health.connected(self.kind.number(), false);
                    end
                }
            };
            let pause = pauses.after(&end, began.elapsed(), watching);
            let mut wake = false;
            refusals = match &end {
                End::Failed { code: Some(403), .. } => refusals + 1,
                // Policies must not wait for ever for what a few of them speak of.
                End::Failed { .. } if self.kind.asked_for() => refusals + 1,
                End::Closed | End::Failed { code: None, .. } => 0,
                End::Busy { .. } | End::Failed { .. } | End::Gone(_) | End::Unheard => refusals,
            };
            if let End::Failed { reason, code, .. } = &end
                && !self.kind.required()
                && self.failed(reason, *code, refusals).await.is_err()
            {
                return;
            }
            match end {
                End::Unheard => return,
                End::Closed => {
                    if compared.elapsed() >= compare_after
                        && let Some(version) = &version
                    {
                        compared = Instant::now();
                        compare_after = jittered(self.timing.full_list, 0.75, 1.25);
                        // All events up to this version have been sent before.
                        let compare = Message::Compare(self.kind, self.api, version.clone());
                        if self.send(compare).await.is_err() {
                            return;
                        }
                    }
                }
                End::Busy { reason, .. } => self.trouble(reason),
                End::Failed {
                    reason, unreachable, ..
                } => {
                    wake = unreachable;
                    if refusals > REFUSALS && !self.kind.required() {
                        // An alarm by now, and perhaps for ever.
                        self.health.error(Some(self.kind.number()), reason);
                    } else {
                        self.trouble(reason);
                    }
                    version = None;
                }
                End::Gone(reason) => {
                    tracing::info!(resource = self.api.resource(), reason, "listing again");
                    version = None;
                }
            }
            if wake {
                tokio::select! {
                    () = sleep(pause) => {}
                    // Not all in one moment.
                    Ok(()) = retries.changed() => sleep(jittered(pause.min(WAKE_SPREAD), 0.0, 1.0)).await,
                }
            } else {
                sleep(pause).await;
            }
        }
    }

    /// What follows where a kind that not every API server serves, or lets everybody read, cannot be read.
    async fn failed(&self, reason: &str, code: Option<u16>, refusals: u32) -> Result<(), End> {
        let refused = code == Some(403) || self.kind.asked_for();
        match code {
            // It is served no more, or in another version.
            Some(404) if !self.kind.asked_for() => self.connection.presences().doubt(),
            // A server that starts refuses what it allows a moment later.
            _ if refused && refusals >= REFUSALS => {
                let follows = match self.kind.decides() {
                    _ if self.kind.is_of_services() => {
                        "answers about Services are made without them, verdicts are incomplete where a policy speaks of them, and \
                         what was read before stays in force"
                    }
                    true => "every verdict is incomplete, and what was read before stays in force",
                    false => "what was read before stays staged",
                };
                let text = format!("{} cannot be read: {follows}: {reason}", self.api.resource());
                let reading = self.unread(self.kind.label(), text);
                self.send(Message::Reading(self.kind, reading)).await?;
            }
            _ => {}
        }
        Ok(())
    }

    fn trouble(&self, message: String) {
        tracing::warn!(resource = self.api.resource(), "{message}");
        self.health.error(Some(self.kind.number()), message);
    }

    /// A tier whose policies this account may not read. A list leaves them out without a word; only whoever asks for that tier is
    /// refused.
    async fn refused_tier(&self, advice: bool) -> Result<Option<End>, End> {
        if !self.kind.is_shown_by_tier(self.api) {
            return Ok(None);
        }
        let tiers = self.connection.tiers().borrow().clone();
        for tier in tiers {
            let params = ListParams {
                limit: Some(1),
                field_selector: Some(format!("spec.tier={tier}")),
                ..ListParams::default()
            };
            let request = Request::new(self.api.path())
                .list(&params)
                .map_err(|error| End::failed(error.to_string()))?;
            let answer = self
                .connection
                .call(self.timing.list_timeout, |client| async move {
                    client.request::<IgnoredAny>(request).await
                })
                .await;
            let Err(error) = answer else { continue };
            match error.code() {
                Some(403) => {
                    let resource = format!("{} of tier `{tier}`", self.api.resource());
                    return Ok(Some(End::Failed {
                        reason: explain("list", &resource, &error, advice),
                        after: None,
                        unreachable: false,
                        code: Some(403),
                    }));
                }
                // A server that knows no such field shows everything; a tier may be gone.
                Some(400 | 404 | 422) => {}
                _ => return Err(End::of("list", self.api, &error, advice)),
            }
        }
        Ok(None)
    }

    /// Fetches every page, then hands them on together. Answers the version of the list.
    async fn list(&self, advice: bool) -> Result<String, End> {
        let before = self.connection.version(self.kind);
        self.connection.seen(self.kind, None);
        let resource = self.api.resource();
        let mut items = Vec::new();
        let of = (self.kind, self.api);
        let mut pages = Pages::new(&self.connection, &self.timing, of, ListParams::default());
        loop {
            match pages.next().await {
                Ok(Some(page)) => items.extend(page),
                Ok(None) => break,
                Err(PageError::Request(error)) if error.is_gone() => {
                    return Err(End::Gone("the list expired between two pages".to_owned()));
                }
                Err(PageError::Request(error)) => return Err(End::of("list", self.api, &error, advice)),
                Err(PageError::Unusable(reason)) => {
                    return Err(End::failed(format!("list {resource}: {reason}")));
                }
            }
        }
        let version = pages.version;
        if version.is_empty() {
            return Err(End::failed(format!("list {resource}: it has no resourceVersion")));
        }
        let refused = self.refused_tier(advice).await?;
        if let Some(end) = refused {
            // What can be read is in force together with what was read before, and every verdict incomplete at the same time.
            for item in items.into_iter().filter(|_| advice) {
                let meta = EventMeta {
                    at: Instant::now(),
                    version: version.clone(),
                };
                self.send(Message::Applied(Box::new(item), meta)).await?;
            }
            return Err(end);
        }
        self.connection.seen(self.kind, Some(&version));
        self.health.listed(self.kind.number());
        self.send(Message::Listed(self.kind, version.clone(), items))
            .await?;
        if let (Some(before), Some(now)) = (before, self.connection.version(self.kind))
            && now < before
        {
            // The other watches may not have noticed.
            self.connection.went_back(self.kind, before, now);
        }
        Ok(version)
    }

    async fn watch(&self, version: &mut String, orders: &mut Orders, advice: bool) -> End {
        let seconds = jittered(
            Duration::from_secs(u64::from(self.timing.watch_seconds)),
            0.75,
            1.0,
        )
        .as_secs()
        .max(1);
        let asked = Instant::now();
        match self
            .watch_until_end(version, seconds as u32, orders, advice)
            .await
        {
            Err(end) => end,
            Ok(()) if asked.elapsed() >= Duration::from_secs(seconds).mul_f64(0.9) => End::Closed,
            Ok(()) => End::Gone("the watch was closed early".to_owned()),
        }
    }

    async fn watch_until_end(
        &self,
        version: &mut String,
        seconds: u32,
        orders: &mut Orders,
        advice: bool,
    ) -> Result<(), End> {
        let params = WatchParams {
            timeout: Some(seconds),
            bookmarks: true,
            ..WatchParams::default()
        };
        let request = Request::new(self.api.path())
            .watch(&params, version)
            .map_err(|error| End::failed(error.to_string()))?;
        let resource = self.api.resource();
        let answer = self
            .connection
            .call(self.timing.list_timeout, |client| async move {
                client.request_stream(request).await
            })
            .await;
        let stream = match answer {
            Err(error) if error.is_gone() => return Err(End::Gone(format!("version {version} is gone"))),
            Err(error) => return Err(End::of("watch", self.api, &error, advice)),
            Ok(stream) => stream,
        };
        self.health.connected(self.kind.number(), true);
        if !self.kind.required() {
            self.health.unread(self.kind.number(), None);
            self.send(Message::Reading(self.kind, Reading::Current)).await?;
        }
        let mut stream = pin!(stream);
        let mut line = Vec::new();
        // The server ends the watch in time; a connection that is silent for longer is dead. One that had a bookmark
        // gets another each minute.
        let mut patience = Duration::from_secs(u64::from(seconds)) + self.timing.watch_margin;
        loop {
            line.clear();
            let read = tokio::select! {
                read = timeout(patience, next_line(&mut stream, &mut line)) => read,
                reason = orders.next() => return Err(End::Gone(reason)),
            };
            match read {
                Err(_) => {
                    return Err(End::broken(format!("watch {resource}: the connection is dead")));
                }
                Ok(Err(error)) => {
                    return Err(End::broken(format!(
                        "watch {resource}: the connection broke: {error}"
                    )));
                }
                Ok(Ok(false)) => return Ok(()),
                Ok(Ok(true)) => {}
            }
            if line.iter().all(u8::is_ascii_whitespace) {
                continue;
            }
            if self.take(&line, version).await? {
                patience = patience.min(self.timing.bookmark_patience);
            }
        }
    }

    /// Takes one event; answers whether it is a bookmark. What it says may be lost where it cannot be read, so that
    /// leads to a new list, and so does every error.
    async fn take(&self, line: &[u8], version: &mut String) -> Result<bool, End> {
        let resource = self.api.resource();
        let unreadable = |what: String| {
            self.trouble(format!("watch {resource}: an event {what}; listing again"));
            End::Gone("an event could not be read".to_owned())
        };
        let at = Instant::now();
        let Event { r#type, object } =
            serde_json::from_slice(line).map_err(|error| unreadable(format!("is not readable: {error}")))?;
        if r#type == "ERROR" {
            let status: Status = serde_json::from_str(object.get())
                .map_err(|error| unreadable(format!("of an error is not readable: {error}")))?;
            if status.code != 410 && status.reason != "Expired" && status.reason != "Gone" {
                self.trouble(format!("watch {resource}: {} ({})", status.message, status.code));
            }
            return Err(End::Gone(status.message));
        }
        let object = trim::read(self.kind, object.get())
            .map_err(|error| unreadable(format!("is not readable: {error}")))?;
        let newer = object
            .pointer("/metadata/resourceVersion")
            .and_then(Value::as_str)
            .filter(|version| !version.is_empty())
            .map(str::to_owned)
            .ok_or_else(|| unreadable("has no resourceVersion".to_owned()))?;
        let meta = EventMeta {
            at,
            version: newer.clone(),
        };
        match r#type {
            "BOOKMARK" => self.health.alive(),
            "ADDED" | "MODIFIED" => {
                let item = item(self.kind, self.api, object).map_err(unreadable)?;
                self.health.event(Some(self.kind.number()));
                self.send(Message::Applied(Box::new(item), meta)).await?;
            }
            "DELETED" => {
                let (reference, _) = identify(self.kind, &object).map_err(unreadable)?;
                self.health.event(Some(self.kind.number()));
                self.send(Message::Deleted(reference, meta)).await?;
            }
            other => return Err(unreadable(format!("is of the unknown type {other:?}"))),
        }
        self.connection.seen(self.kind, Some(&newer));
        *version = newer;
        Ok(r#type == "BOOKMARK")
    }
}

/// Reads the next line, without its end; false at the end of the stream. A line that the end cuts off is no line.
async fn next_line(stream: &mut (impl AsyncBufRead + Unpin), line: &mut Vec<u8>) -> std::io::Result<bool> {
    stream.read_until(b'\n', line).await?;
    Ok(line.pop() == Some(b'\n'))
}

/// A random time between two parts of one.
pub(super) fn jittered(time: Duration, least: f64, most: f64) -> Duration {
    let random = RandomState::new().build_hasher().finish() as f64 / u64::MAX as f64;
    time.mul_f64(least + random * (most - least))
}

/// An error of a request, with what to do about it where `advice` is wanted: a server that starts refuses what it
/// allows a moment later.
pub(super) fn explain(verb: &str, resource: &str, error: &RequestError, advice: bool) -> String {
    if let RequestError::Kube(kube::Error::Api(status)) = error {
        return match status.code {
            401 => format!(
                "{verb} {resource}: the API server does not accept the credentials ({}); renew the token or \
                 certificate of the kubeconfig's user",
                status.message
            ),
            403 if !advice => format!("{verb} {resource}: forbidden ({})", status.message),
            403 => format!(
                "{verb} {resource}: forbidden ({}); bind the account to a ClusterRole that allows `{verb}` on \
                 {resource}",
                status.message
            ),
            404 => format!(
                "{verb} {resource}: the API server does not serve it ({})",
                status.message
            ),
            code => format!("{verb} {resource}: {} ({code})", status.message),
        };
    }
    format!("{verb} {resource}: {error}")
}

/// An error and its causes.
pub(super) fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    text
}

/// How long to wait before the next attempt. A server that answers that a version is gone is well: after an outage, that
/// answer must not wait as long as the attempts before it came to wait.
#[derive(Debug)]
struct Pauses {
    failures: Backoff,
    lists: Backoff,
}

impl Pauses {
    fn new(timing: &Timing) -> Self {
        Self {
            failures: Backoff::new(timing),
            lists: Backoff::new(timing),
        }
    }

    /// A list has come. A server whose watches end at once is not listed again for that.
    fn listed(&mut self) {
        self.failures.reset();
    }

    /// After an attempt that lasted so long: a watch, or a list. A watch that ends otherwise than it should leads to a
    /// list, and one that does so again and again must not have the server list without end.
    fn after(&mut self, end: &End, lasted: Duration, watching: bool) -> Duration {
        if lasted > self.failures.most {
            self.failures.reset();
            self.lists.reset();
        }
        let pause = match end {
            End::Closed if lasted >= self.failures.first => {
                self.failures.reset();
                Duration::ZERO
            }
            End::Gone(_) => self.lists.next(),
            End::Failed { .. } if watching => self.lists.next(),
            End::Closed | End::Busy { .. } | End::Failed { .. } | End::Unheard => self.failures.next(),
        };
        match end.after() {
            // Not all that were sent away come back in one moment.
            Some(after) => pause.max(jittered(after.min(MOST_RETRY_AFTER), 1.0, 1.25)),
            None => pause,
        }
    }
}

/// Growing pauses, each between half of and its full length, so that many clients do not come back at once.
#[derive(Debug)]
pub(super) struct Backoff {
    first: Duration,
    most: Duration,
    next: Duration,
}

impl Backoff {
    pub(super) fn new(timing: &Timing) -> Self {
        Self::up_to(timing.backoff_most, timing)
    }

    pub(super) fn up_to(most: Duration, timing: &Timing) -> Self {
        Self {
            first: timing.backoff_first,
            most,
            next: timing.backoff_first,
        }
    }

    pub(super) fn next(&mut self) -> Duration {
        let pause = self.next;
        self.next = (pause * 2).min(self.most);
        jittered(pause, 0.5, 1.0)
    }

    pub(super) fn reset(&mut self) {
        self.next = self.first;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_that_is_gone_after_an_outage_is_no_reason_to_wait() {
        let timing = Timing::default();
        let failed = || End::failed(String::new());
        let gone = || End::Gone(String::new());
        let mut pauses = Pauses::new(&timing);
        assert!(pauses.after(&failed(), Duration::ZERO, true) <= timing.backoff_first);
        let outage: Vec<Duration> = (0..10)
            .map(|_| pauses.after(&failed(), Duration::ZERO, false))
            .collect();
        assert!(outage[9] >= timing.backoff_most / 2, "{outage:?}");
        assert!(pauses.after(&gone(), Duration::ZERO, true) <= timing.backoff_first * 2);
        pauses.listed();
        assert!(pauses.after(&failed(), Duration::ZERO, false) <= timing.backoff_first);
        // One whose versions are gone, or whose watches break, again and again is not listed without end.
        for end in [gone, failed] {
            let mut pauses = Pauses::new(&timing);
            let lists: Vec<Duration> = (0..10)
                .map(|_| {
                    pauses.listed();
                    pauses.after(&end(), Duration::ZERO, true)
                })
                .collect();
            assert!(lists[9] >= timing.backoff_most / 2, "{lists:?}");
            assert!(pauses.after(&end(), timing.backoff_most * 2, true) <= timing.backoff_first);
        }
        // Closed by the server in its time.
        assert_eq!(
            pauses.after(&End::Closed, timing.backoff_first, true),
            Duration::ZERO
        );
    }

    #[test]
    fn a_server_that_says_when_to_come_again_is_not_asked_before() {
        let mut pauses = Pauses::new(&Timing::default());
        let mut busy = |seconds| {
            let after = Some(Duration::from_secs(seconds));
            let reason = String::new();
            pauses.after(&End::Busy { reason, after }, Duration::ZERO, true)
        };
        let seven = busy(7);
        assert!(
            seven >= Duration::from_secs(7) && seven <= Duration::from_secs(9),
            "{seven:?}"
        );
        let year = busy(365 * 86_400);
        assert!(year <= MOST_RETRY_AFTER.mul_f64(1.25), "{year:?}");
    }
}
