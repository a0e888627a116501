//! One list and watch, for ever.
//!
//! kube's own watcher is not used: it hides bookmarks (a sign of life), begins a watch again at a version that is
//! gone where the server answers with status 410 instead of an event, and skips an event that it cannot read. Here
//! each of those leads to a new list, and the state before stands until that is complete.

use std::{
    hash::{BuildHasher, Hasher, RandomState},
    pin::pin,
    sync::Arc,
    time::{Duration, Instant},
};

use futures::{AsyncBufRead, AsyncBufReadExt};
use kube::{
    Client,
    core::{Request, Status, params::ListParams, params::WatchParams},
};
use serde::Deserialize;
use serde_json::{Value, value::RawValue};
use tokio::{
    sync::mpsc,
    time::{sleep, timeout},
};

use super::{
    Message, Timing,
    object::{identify, item},
    state::Kind,
    trim,
};
use crate::source::feed::Health;

/// Keeps one watch going. Returns only when nobody listens to `messages` any more.
pub(super) struct Watcher {
    pub(super) kind: Kind,
    /// Its number in `health`.
    pub(super) number: usize,
    pub(super) client: Client,
    pub(super) timing: Timing,
    pub(super) health: Arc<Health>,
    pub(super) messages: mpsc::Sender<Message>,
}

/// Objects of a list that are decoded before somebody else has a turn: a few milliseconds.
const DECODED_AT_ONCE: usize = 64;

/// Why a list or a watch ended.
enum End {
    /// The server closed the watch, as it does every few minutes: go on from the last version.
    Closed,
    /// Something failed: go on from the last version, after a while.
    Failed(String),
    /// The last version is no use any more: list again.
    Gone(String),
    /// Nobody listens.
    Unheard,
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

impl Watcher {
    pub(super) async fn run(self) {
        let mut pauses = Pauses::new(&self.timing);
        let mut version: Option<String> = None;
        loop {
            let began = Instant::now();
            let end = match &mut version {
                None => match self.list().await {
                    Ok(listed) => {
                        version = Some(listed);
                        pauses.listed();
                        continue;
                    }
                    Err(end) => end,
                },
                Some(version) => {
                    let end = self.watch(version).await;
                    self.health.connected(self.number, false);
                    end
                }
            };
            let pause = pauses.after(&end, began.elapsed());
            match end {
                End::Unheard => return,
                End::Closed => {}
                End::Failed(reason) => self.trouble(reason),
                End::Gone(reason) => {
                    tracing::info!(resource = self.kind.resource(), reason, "listing again");
                    version = None;
                }
            }
            sleep(pause).await;
        }
    }

    fn trouble(&self, message: String) {
        tracing::warn!(resource = self.kind.resource(), "{message}");
        self.health.error(Some(self.number), message);
    }

    /// Fetches every page, then hands them on together. Answers the version of the list.
    async fn list(&self) -> Result<String, End> {
        let mut items = Vec::new();
        let mut continuation: Option<String> = None;
        loop {
            let params = ListParams {
                limit: Some(self.timing.page),
                continue_token: continuation.take(),
                ..ListParams::default()
            };
            let request = Request::new(self.kind.path())
                .list(&params)
                .map_err(|error| End::Failed(error.to_string()))?;
            let page: Page = match timeout(self.timing.list_timeout, self.client.request(request)).await {
                Err(_) => {
                    return Err(End::Failed(format!(
                        "list {}: no answer within {} s",
                        self.kind.resource(),
                        self.timing.list_timeout.as_secs_f64()
                    )));
                }
                Ok(Err(error)) if is_gone(&error) => {
                    return Err(End::Gone("the list expired between two pages".to_owned()));
                }
                Ok(Err(error)) => return Err(End::Failed(explain("list", self.kind.resource(), &error))),
                Ok(Ok(page)) => page,
            };
            for (number, object) in page.items.unwrap_or_default().into_iter().enumerate() {
                if number % DECODED_AT_ONCE == 0 {
                    tokio::task::yield_now().await;
                }
                let read = trim::read(self.kind, object.get()).map_err(|error| error.to_string());
                match read.and_then(|object| item(self.kind, object)) {
                    Ok(item) => items.push(item),
                    // A list that lacks an object would delete it.
                    Err(reason) => {
                        return Err(End::Failed(format!(
                            "list {}: an object in it {reason}",
                            self.kind.resource()
                        )));
                    }
                }
            }
            if !page.metadata.r#continue.is_empty() {
                continuation = Some(page.metadata.r#continue);
                continue;
            }
            if page.metadata.resource_version.is_empty() {
                return Err(End::Failed(format!(
                    "list {}: it has no resourceVersion",
                    self.kind.resource()
                )));
            }
            self.health.listed(self.number);
            self.send(Message::Listed(self.kind, items)).await?;
            return Ok(page.metadata.resource_version);
        }
    }

    async fn watch(&self, version: &mut String) -> End {
        match self.watch_until_end(version).await {
            Ok(()) => End::Closed,
            Err(end) => end,
        }
    }

    async fn watch_until_end(&self, version: &mut String) -> Result<(), End> {
        let params = WatchParams {
            timeout: Some(self.timing.watch_seconds),
            bookmarks: true,
            ..WatchParams::default()
        };
        let request = Request::new(self.kind.path())
            .watch(&params, version)
            .map_err(|error| End::Failed(error.to_string()))?;
        let resource = self.kind.resource();
        let stream = match timeout(self.timing.list_timeout, self.client.request_stream(request)).await {
            Err(_) => return Err(End::Failed(format!("watch {resource}: no answer in time"))),
            Ok(Err(error)) if is_gone(&error) => {
                return Err(End::Gone(format!("version {version} is gone")));
            }
            Ok(Err(error)) => return Err(End::Failed(explain("watch", resource, &error))),
            Ok(Ok(stream)) => stream,
        };
        self.health.connected(self.number, true);
        let mut stream = pin!(stream);
        // The server ends the watch in time; a connection that is silent for longer is dead.
        let patience = Duration::from_secs(u64::from(self.timing.watch_seconds)) + self.timing.watch_margin;
        loop {
            let line = match timeout(patience, next_line(&mut stream)).await {
                Err(_) => return Err(End::Failed(format!("watch {resource}: the connection is dead"))),
                Ok(Err(error)) => {
                    return Err(End::Failed(format!(
                        "watch {resource}: the connection broke: {error}"
                    )));
                }
                Ok(Ok(None)) => return Ok(()),
                Ok(Ok(Some(line))) => line,
            };
            if line.iter().all(u8::is_ascii_whitespace) {
                continue;
            }
            self.take(&line, version).await?;
        }
    }

    /// Takes one event. What it says may be lost where it cannot be read, so that leads to a new list.
    async fn take(&self, line: &[u8], version: &mut String) -> Result<(), End> {
        let resource = self.kind.resource();
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
            return Err(
                if status.code == 410 || status.reason == "Expired" || status.reason == "Gone" {
                    End::Gone(status.message)
                } else {
                    End::Failed(format!("watch {resource}: {} ({})", status.message, status.code))
                },
            );
        }
        let object = trim::read(self.kind, object.get())
            .map_err(|error| unreadable(format!("is not readable: {error}")))?;
        let newer = object
            .pointer("/metadata/resourceVersion")
            .and_then(Value::as_str)
            .filter(|version| !version.is_empty())
            .map(str::to_owned)
            .ok_or_else(|| unreadable("has no resourceVersion".to_owned()))?;
        match r#type {
            "BOOKMARK" => self.health.alive(),
            "ADDED" | "MODIFIED" => {
                let item = item(self.kind, object).map_err(unreadable)?;
                self.health.event(Some(self.number));
                self.send(Message::Applied(Box::new(item), at)).await?;
            }
            "DELETED" => {
                let (reference, _) = identify(self.kind, &object).map_err(unreadable)?;
                self.health.event(Some(self.number));
                self.send(Message::Deleted(reference, at)).await?;
            }
            other => return Err(unreadable(format!("is of the unknown type {other:?}"))),
        }
        *version = newer;
        Ok(())
    }

    async fn send(&self, message: Message) -> Result<(), End> {
        self.messages.send(message).await.map_err(|_| End::Unheard)
    }
}

/// The next line without its end; None at the end of the stream. A line that the end cuts off is no line.
async fn next_line(stream: &mut (impl AsyncBufRead + Unpin)) -> std::io::Result<Option<Vec<u8>>> {
    let mut line = Vec::new();
    stream.read_until(b'\n', &mut line).await?;
    Ok((line.pop() == Some(b'\n')).then_some(line))
}

fn is_gone(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 410)
}

/// An error of the API server, with what to do about it.
pub(super) fn explain(verb: &str, resource: &str, error: &kube::Error) -> String {
    if let kube::Error::Api(status) = error {
        return match status.code {
            401 => format!(
                "{verb} {resource}: the API server does not accept the credentials ({}); renew the token or \
                 certificate of the kubeconfig's user",
                status.message
            ),
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
    format!("{verb} {resource}: {}", chain(error))
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

    /// After an attempt that lasted so long.
    fn after(&mut self, end: &End, lasted: Duration) -> Duration {
        if lasted > self.failures.most {
            self.failures.reset();
            self.lists.reset();
        }
        match end {
            End::Closed if lasted >= self.failures.first => {
                self.failures.reset();
                Duration::ZERO
            }
            End::Gone(_) => self.lists.next(),
            End::Closed | End::Failed(_) | End::Unheard => self.failures.next(),
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
        Self {
            first: timing.backoff_first,
            most: timing.backoff_most,
            next: timing.backoff_first,
        }
    }

    pub(super) fn next(&mut self) -> Duration {
        let pause = self.next;
        self.next = (pause * 2).min(self.most);
        let random = RandomState::new().build_hasher().finish() as f64 / u64::MAX as f64;
        pause.mul_f64(0.5 + random / 2.0)
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
        let failed = || End::Failed(String::new());
        let gone = || End::Gone(String::new());
        let mut pauses = Pauses::new(&timing);
        let outage: Vec<Duration> = (0..10).map(|_| pauses.after(&failed(), Duration::ZERO)).collect();
        assert!(outage[9] >= timing.backoff_most / 2, "{outage:?}");
        assert!(pauses.after(&gone(), Duration::ZERO) <= timing.backoff_first);
        pauses.listed();
        assert!(pauses.after(&failed(), Duration::ZERO) <= timing.backoff_first);
        // One whose versions are gone again and again is not listed without end.
        let lists: Vec<Duration> = (0..10)
            .map(|_| {
                pauses.listed();
                pauses.after(&gone(), Duration::ZERO)
            })
            .collect();
        assert!(lists[9] >= timing.backoff_most / 2, "{lists:?}");
        assert!(pauses.after(&gone(), timing.backoff_most * 2) <= timing.backoff_first);
        // Closed by the server in its time.
        assert_eq!(pauses.after(&End::Closed, timing.backoff_first), Duration::ZERO);
    }
}
