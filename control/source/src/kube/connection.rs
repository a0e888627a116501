//! What all watches share: the client in use, whose credentials are taken up again, and what every watch has to hear.
//!
//! Credentials are read again when a file that they came from changes, before they expire, and when the API server
//! refuses them or its certificate is refused. Where no client can be made of what is there now (a certificate whose key
//! has not been written yet), the one before stays in use.

use std::{
    collections::BTreeSet,
    fmt,
    future::Future,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use kube::Client;
use ringwall_process::confine;
use tokio::{
    sync::{Notify, watch as latest},
    time::{sleep, timeout},
};

use super::{
    Access, KubeError, Timing,
    connect::{Built, Busy, Fingerprint, build, fingerprint, needs},
    discovery::Presences,
    kind::Kind,
    watch::chain,
};
use crate::feed::{Condition, Health};

/// Credentials are renewed so long before they expire.
const BEFORE_EXPIRY: Duration = Duration::from_secs(60);

/// Why a request has no answer that is of use.
#[derive(Debug)]
pub(super) enum RequestError {
    /// Nothing came in time.
    Silence(Duration),
    /// The API server or the way to it says no.
    Kube(kube::Error),
}

impl RequestError {
    /// The status code of the API server's answer; None where it has not answered.
    pub(super) fn code(&self) -> Option<u16> {
        match self {
            Self::Kube(kube::Error::Api(status)) => Some(status.code),
            error => error.busy().map(|busy| busy.status),
        }
    }

    fn busy(&self) -> Option<&Busy> {
        match self {
            Self::Kube(kube::Error::Service(error)) => error.downcast_ref(),
            _ => None,
        }
    }

    /// When the API server wants to be asked again.
    pub(super) fn retry_after(&self) -> Option<Duration> {
        self.busy().map(|busy| busy.after)
    }

    /// Whether a version is gone.
    pub(super) fn is_gone(&self) -> bool {
        self.code() == Some(410)
    }

    /// Whether the API server cannot be reached or does not answer.
    pub(super) fn is_unreachable(&self) -> bool {
        match self {
            Self::Silence(_) => true,
            Self::Kube(kube::Error::Service(_) | kube::Error::HyperError(_) | kube::Error::ReadEvents(_)) => {
                self.code().is_none()
            }
            Self::Kube(_) => false,
        }
    }

    /// Whether other credentials may help: ours are refused, or the server's are.
    fn is_about_credentials(&self) -> bool {
        match self {
            Self::Kube(kube::Error::Auth(_)) => true,
            // What TLS says has no type that is ours to name.
            _ if self.is_unreachable() => self.says(&["certificate", "tls", "handshake", "alert"]),
            _ => self.code() == Some(401),
        }
    }

    /// Whether other credentials are worth a try: a server that refuses a client's certificate may close the connection
    /// before it can be read why.
    fn may_be_about_credentials(&self) -> bool {
        self.is_about_credentials() || self.is_unreachable() && self.says(&["reset", "broken pipe"])
    }

    fn says(&self, words: &[&str]) -> bool {
        let text = self.to_string().to_lowercase();
        words.iter().any(|word| text.contains(word))
    }
}

impl fmt::Display for RequestError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Silence(patience) => write!(f, "no answer within {} s", patience.as_secs_f64()),
            Self::Kube(kube::Error::Service(error)) => f.write_str(&chain(&**error)),
            Self::Kube(error) => f.write_str(&chain(error)),
        }
    }
}

/// What every watch has to do, with a number that grows each time.
#[derive(Clone, Debug, Default)]
pub(super) struct Order {
    number: u64,
    /// Why.
    pub(super) reason: String,
}

struct InUse {
    client: Client,
    number: u64,
    location: String,
}

/// The way to the API server.
pub(super) struct Connection {
    timing: Timing,
    health: Arc<Health>,
    in_use: Mutex<InUse>,
    /// Whether a request has failed since the last one that did not, for want of an answer.
    unreachable: AtomicBool,
    /// Number of the client whose credentials were refused last.
    refused: AtomicU64,
    renew: Notify,
    /// Grows when whoever waits after a failure had better try now.
    retry: latest::Sender<u64>,
    relist: latest::Sender<Order>,
    /// Names of the tiers that there are; changes when one has come.
    tiers: latest::Sender<BTreeSet<String>>,
    /// Where the objects of each kind are.
    presences: Presences,
    /// The newest version that each watch has seen; 0 where it has none.
    versions: [AtomicU64; Kind::count()],
}

impl Connection {
    pub(super) fn new(built: &Built, timing: Timing, health: Arc<Health>) -> Self {
        Self {
            timing,
            health,
            in_use: Mutex::new(InUse {
                client: built.client.clone(),
                number: 1,
                location: built.location.clone(),
            }),
            unreachable: AtomicBool::new(false),
            refused: AtomicU64::new(0),
            renew: Notify::new(),
            retry: latest::channel(0).0,
            relist: latest::channel(Order::default()).0,
            tiers: latest::channel(BTreeSet::new()).0,
            presences: Presences::new(),
            versions: std::array::from_fn(|_| AtomicU64::new(0)),
        }
    }

    fn in_use(&self) -> std::sync::MutexGuard<'_, InUse> {
        // Replaced as a whole: as good after a panic elsewhere as before.
        self.in_use.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where the objects of each kind are.
    pub(super) fn presences(&self) -> &Presences {
        &self.presences
    }

    /// Makes a request with the client in use.
    pub(super) async fn call<T, F>(
        &self,
        patience: Duration,
        request: impl FnOnce(Client) -> F,
    ) -> Result<T, RequestError>
    where
        F: Future<Output = Result<T, kube::Error>>,
    {
        let (client, number) = {
            let in_use = self.in_use();
            (in_use.client.clone(), in_use.number)
        };
        let answer = match timeout(patience, request(client)).await {
            Ok(answer) => answer.map_err(RequestError::Kube),
            Err(_) => Err(RequestError::Silence(patience)),
        };
        self.note(number, answer.as_ref().err());
        answer
    }

    fn note(&self, number: u64, error: Option<&RequestError>) {
        if error.is_some_and(RequestError::may_be_about_credentials) {
            self.refused.fetch_max(number, Ordering::SeqCst);
            self.renew.notify_one();
        }
        if let Some(error) = error
            && error.is_about_credentials()
        {
            self.health.condition(
                Condition::Credentials,
                self.timing.refused_alarm,
                Some(format!(
                    "the API server refuses the credentials, or its certificate is refused: {error}"
                )),
            );
        }
        if error.is_some_and(RequestError::is_unreachable) {
            self.unreachable.store(true, Ordering::SeqCst);
            return;
        }
        if error.is_none_or(|error| !error.is_about_credentials()) {
            self.health
                .condition(Condition::Credentials, self.timing.refused_alarm, None);
        }
        if self.unreachable.swap(false, Ordering::SeqCst) {
            self.retry_now();
        }
    }

    /// Wakes whoever waits after a failure.
    fn retry_now(&self) {
        self.retry.send_modify(|number| *number += 1);
    }

    /// Changes when whoever waits after a failure had better try now.
    pub(super) fn retries(&self) -> latest::Receiver<u64> {
        self.retry.subscribe()
    }

    /// Has every watch end and list anew.
    pub(super) fn relist(&self, reason: String) {
        tracing::warn!("listing all objects again: {reason}");
        self.relist.send_modify(|order| {
            order.number += 1;
            order.reason = reason;
        });
    }

    /// Changes when every watch has to list anew.
    pub(super) fn relists(&self) -> latest::Receiver<Order> {
        self.relist.subscribe()
    }

    /// A tier has come: has the watches of policies that are shown by tier end and list anew.
    pub(super) fn tier_came(&self) {
        self.tiers.send_modify(|_| ());
    }

    /// Says which tiers there are.
    pub(super) fn set_tiers(&self, names: BTreeSet<String>) {
        self.tiers.send_if_modified(|known| {
            *known = names;
            false
        });
    }

    /// The tiers that there are; changes when [`Self::tier_came`] is called.
    pub(super) fn tiers(&self) -> latest::Receiver<BTreeSet<String>> {
        self.tiers.subscribe()
    }

    /// A watch has seen a version; None where it lists anew.
    pub(super) fn seen(&self, kind: Kind, version: Option<&str>) {
        // A version that is no number cannot be compared.
        let number: Option<u64> = version.and_then(|version| version.parse().ok());
        self.versions[kind.number()].store(number.unwrap_or(0), Ordering::SeqCst);
        self.health.seen(kind.number(), number);
    }

    /// The newest version that a watch has seen.
    pub(super) fn version(&self, kind: Kind) -> Option<u64> {
        let version = self.versions[kind.number()].load(Ordering::SeqCst);
        (version != 0).then_some(version)
    }

    /// Whether there is a watch that has not begun to list anew.
    pub(super) fn is_watching(&self) -> bool {
        Kind::all().any(|kind| self.version(kind).is_some())
    }

    /// The API server has an older version than it had: its data is another's, an older snapshot's.
    pub(super) fn went_back(&self, kind: Kind, before: u64, now: u64) {
        let text = format!(
            "the API server's data went back: {} were at version {before} and are at {now} (etcd restored from an \
             older snapshot?); everything is listed again",
            self.presences.api(kind).unwrap_or(kind.api()).resource()
        );
        self.health.remember(Condition::WentBack, text.clone());
        self.relist(text);
    }

    /// Takes up credentials again, for ever.
    pub(super) async fn keep_credentials(self: Arc<Self>, access: Access, built: Built) {
        let mut valid_until = built.valid_until;
        let mut made_of = built.fingerprint;
        drop(built.client);
        // What could not be used.
        let mut failed: Option<Fingerprint> = None;
        let mut attempted: Option<Instant> = None;
        loop {
            tokio::select! {
                () = self.renew.notified() => {}
                () = sleep(self.timing.credentials_check) => {}
            }
            confine::exit_if_names_changed();
            let of = access.clone();
            let Ok(now) = tokio::task::spawn_blocking(move || fingerprint(&of)).await else {
                continue;
            };
            let changed = now != made_of && failed != Some(now);
            if changed && let Access::Kubeconfig { file, .. } = &access {
                confine::exit_unless_covered(&needs(&access), file);
            }
            let refused = self.refused.load(Ordering::SeqCst) >= self.in_use().number;
            let expires = valid_until.is_some_and(|at| at <= SystemTime::now() + BEFORE_EXPIRY);
            let rested = attempted.is_none_or(|at| at.elapsed() >= self.timing.renew_spacing);
            if !changed && !(rested && (refused || expires || failed.is_some())) {
                continue;
            }
            attempted = Some(Instant::now());
            match build(&access, &self.timing).await {
                Ok(built) => {
                    valid_until = built.valid_until;
                    made_of = built.fingerprint;
                    failed = None;
                    self.replace(built, changed);
                }
                Err(error) => {
                    failed = Some(now);
                    self.not_renewed(&error);
                }
            }
        }
    }

    fn replace(&self, built: Built, changed: bool) {
        tracing::info!(changed, "credentials reloaded");
        // Before the first request with them: whoever sees what they bring finds them counted.
        self.health.renewed();
        let moved = {
            let mut in_use = self.in_use();
            let moved = in_use.location != built.location;
            *in_use = InUse {
                client: built.client,
                number: in_use.number + 1,
                location: built.location.clone(),
            };
            moved
        };
        self.health.condition(Condition::Renewal, Duration::ZERO, None);
        if moved {
            self.health.moved(built.location.clone());
            self.relist(format!("the kubeconfig names another server, {}", built.location));
        }
        self.retry_now();
    }

    fn not_renewed(&self, error: &KubeError) {
        let text = format!("cannot read the credentials again; the previous ones stay in use: {error}");
        tracing::warn!("{text}");
        self.health.error(None, text.clone());
        // A certificate and its key are not written in one moment.
        self.health
            .condition(Condition::Renewal, self.timing.credentials_check * 3, Some(text));
    }
}
