//! Where the objects of each kind are: asked of the API server again and again.
//!
//! * Kinds that are evaluated and that not every API server serves ([`Kind::discovered`]): in which version, if in any.
//! * Policy kinds that are not evaluated: whether there are any objects ([`UNEVALUATED`]).
//!
//! Discovery itself is asked, since it needs no permission beyond what every account has, and knows CRDs and aggregated
//! servers alike. What it cannot say, the paths of the kinds are asked for. A failure to look something up is never taken
//! for its absence.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::Arc,
    time::{Duration, Instant},
};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::APIResource;
use kube::core::{Request, params::ListParams};
use ringwall_policy::UNKNOWN_KINDS;
use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::{
    sync::{Notify, mpsc, watch as latest},
    time::{sleep, timeout},
};

use super::{
    Message, Timing,
    connection::{Connection, RequestError},
    kind::{Api, Kind, POLICY_GROUP},
    watch::{Backoff, explain},
};
use crate::feed::{Condition, Health};

/// Group and kind of what else decides about packets in a cluster.
pub(super) const UNEVALUATED: &[(&str, &str)] = &[
    ("cilium.io", "CiliumNetworkPolicy"),
    ("cilium.io", "CiliumClusterwideNetworkPolicy"),
    ("crd.antrea.io", "NetworkPolicy"),
    ("crd.antrea.io", "ClusterNetworkPolicy"),
];

/// Looks that may fail before that is an alarm.
const LOOKS_BEFORE_ALARM: u32 = 4;

/// How long one question may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// Where the objects of a kind are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Presence {
    /// Not asked yet.
    Unasked,
    /// The API server has not said so far.
    Unknown,
    /// Nowhere: there can be none.
    Absent,
    /// No policy speaks of its objects.
    NotAskedFor,
    /// Here.
    Served(&'static Api),
    /// In a version that is not understood alone, as `group/version`; and there are some, or that cannot be seen.
    Foreign(String),
}

impl fmt::Display for Presence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unasked | Self::Unknown => f.write_str("it is not known whether the API server serves it"),
            Self::Absent => f.write_str("the API server does not serve it"),
            Self::NotAskedFor => f.write_str("no policy refers to its objects"),
            Self::Served(api) => write!(f, "the API server serves it as {}", api.api_version()),
            Self::Foreign(version) => write!(f, "the API server serves it only as {version}"),
        }
    }
}

/// That of every kind, as far as it is known.
pub(super) struct Presences {
    of: Vec<latest::Sender<Presence>>,
    /// Somebody has reason to think that it is out of date.
    doubt: Notify,
}

impl Presences {
    pub(super) fn new() -> Self {
        let at_first = |kind: Kind| match kind.required() {
            true => Presence::Served(kind.api()),
            false => Presence::Unasked,
        };
        Self {
            of: Kind::all()
                .map(|kind| latest::channel(at_first(kind)).0)
                .collect(),
            doubt: Notify::new(),
        }
    }

    /// Changes with where a kind's objects are.
    pub(super) fn follow(&self, kind: Kind) -> latest::Receiver<Presence> {
        self.of[kind.number()].subscribe()
    }

    /// Where a kind is watched; None where it is not.
    pub(super) fn api(&self, kind: Kind) -> Option<&'static Api> {
        match *self.of[kind.number()].borrow() {
            Presence::Served(api) => Some(api),
            _ => None,
        }
    }

    /// Has a kind watched that is watched only while policies speak of its objects, or not any more.
    pub(super) fn ask_for(&self, kind: Kind, asked_for: bool) {
        match (asked_for, self.get(kind)) {
            (true, _) => self.set(kind, Presence::Served(kind.api())),
            (false, Presence::Unasked) => {}
            (false, _) => self.set(kind, Presence::NotAskedFor),
        }
    }

    /// Has discovery look again soon.
    pub(super) fn doubt(&self) {
        self.doubt.notify_one();
    }

    fn get(&self, kind: Kind) -> Presence {
        self.of[kind.number()].borrow().clone()
    }

    fn set(&self, kind: Kind, presence: Presence) {
        self.of[kind.number()].send_if_modified(|now| {
            let differs = *now != presence;
            if differs {
                match (&*now, &presence) {
                    (Presence::Unasked, Presence::Absent | Presence::Unknown) => {}
                    _ => tracing::info!("{}: {presence}", kind.shown()),
                }
                *now = presence;
            }
            differs
        });
    }
}

/// What could not be looked at.
#[derive(Debug)]
struct Unseen {
    /// The kind, as `kind.group`; None where it may be any.
    of: Option<String>,
    /// Why.
    reason: String,
}

/// What one look found of a kind.
enum Found {
    At(&'static Api),
    Foreign(String),
    Nowhere,
    Unclear,
}

/// The answer of one path.
enum Answer {
    Objects,
    Empty,
    /// There is no such path.
    NotServed,
    /// Why it is not known.
    Failed(String),
}

#[derive(Deserialize)]
struct AnyList {
    items: Option<Vec<Box<RawValue>>>,
}

/// Looks, again and again. Objects of the kinds in `held` may be in the state already.
pub(super) struct Discovery {
    pub(super) connection: Arc<Connection>,
    pub(super) timing: Timing,
    pub(super) health: Arc<Health>,
    pub(super) messages: mpsc::Sender<Message>,
    /// Kinds of which the state may hold objects.
    pub(super) held: BTreeSet<Kind>,
}

impl Discovery {
    /// What was found once stays until a look that could see everything says otherwise. What cannot be looked up is said
    /// to be unknown, and holds nothing up.
    pub(super) async fn run(mut self) {
        let mut backoff = Backoff::up_to(self.timing.probe, &self.timing);
        let mut known = BTreeSet::new();
        // Kinds that were not found any more, and since when.
        let mut missed = BTreeMap::new();
        let connection = Arc::clone(&self.connection);
        loop {
            let mut look = Look::new(&connection).await;
            for kind in Kind::discovered() {
                let watched = connection.presences().api(kind);
                let found = look.find(kind, watched, self.held.contains(&kind)).await;
                self.note(kind, found, &mut missed);
            }
            let unevaluated = look.unevaluated().await;
            let errors = look.errors;
            for error in &errors {
                self.health.error(
                    None,
                    format!("{} (policies there would go unnoticed)", error.reason),
                );
            }
            if errors.is_empty() {
                known = unevaluated;
            } else {
                known.extend(unevaluated);
            }
            let unknown = errors.iter().find(|error| {
                let of = error.of.as_ref();
                of.is_none_or(|of| !known.contains(of))
            });
            self.health.condition(
                Condition::Discovery,
                self.timing.probe * LOOKS_BEFORE_ALARM,
                unknown.map(|error| {
                    format!(
                        "cannot find out whether there are policies of kinds that are not evaluated: {}",
                        error.reason
                    )
                }),
            );
            let mut said = known.clone();
            if unknown.is_some() {
                said.insert(UNKNOWN_KINDS.to_owned());
            }
            if self.messages.send(Message::Unevaluated(said)).await.is_err() {
                return;
            }
            let pause = if errors.is_empty() {
                backoff.reset();
                self.timing.probe
            } else {
                backoff.next()
            };
            // Whoever doubts it again and again does not have the server asked without end.
            let least = self.timing.backoff_first.min(pause);
            sleep(least).await;
            let doubted = connection.presences().doubt.notified();
            // Neither is news: time passed, or somebody asks.
            let _ = timeout(pause - least, doubted).await;
        }
    }

    /// Takes what a look found. A kind of which objects are held is gone only when nothing but its absence has been found for
    /// an interval: an API server that starts may not know its CRDs yet.
    fn note(&mut self, kind: Kind, found: Found, missed: &mut BTreeMap<Kind, Instant>) {
        let presences = self.connection.presences();
        let as_before = || match presences.get(kind) {
            Presence::Unasked => Presence::Unknown,
            before => before,
        };
        let since = missed.remove(&kind);
        let now = match found {
            Found::At(api) => {
                self.held.insert(kind);
                Presence::Served(api)
            }
            Found::Foreign(version) => Presence::Foreign(version),
            Found::Unclear => as_before(),
            Found::Nowhere => {
                let since = since.unwrap_or_else(Instant::now);
                if self.held.contains(&kind) && since.elapsed() < self.timing.probe {
                    missed.insert(kind, since);
                    as_before()
                } else {
                    self.held.remove(&kind);
                    Presence::Absent
                }
            }
        };
        presences.set(kind, now);
    }
}

/// One look at what the API server serves.
struct Look<'a> {
    connection: &'a Connection,
    /// By group and `group/version`, of the groups that matter; None where the API server does not say what there is.
    groups: BTreeMap<String, BTreeMap<String, Option<Vec<APIResource>>>>,
    /// Whether `groups` has all groups there are.
    whole: bool,
    /// Whether the server answers: one that hangs is not asked for one kind after another.
    answers: bool,
    errors: Vec<Unseen>,
}

impl<'a> Look<'a> {
    async fn new(connection: &'a Connection) -> Self {
        let mut look = Self {
            connection,
            groups: BTreeMap::new(),
            whole: false,
            answers: true,
            errors: Vec::new(),
        };
        let groups = connection
            .call(PATIENCE, |client| async move { client.list_api_groups().await })
            .await;
        match groups {
            Ok(groups) => {
                look.whole = true;
                let versions = groups
                    .groups
                    .into_iter()
                    .flat_map(|group| group.versions.into_iter().map(move |it| (group.name.clone(), it)));
                for (group, version) in versions.filter(|(group, _)| matters(group)) {
                    let resources = look.resources(&version.group_version).await;
                    let versions = look.groups.entry(group).or_default();
                    versions.insert(version.group_version, resources);
                }
            }
            Err(error) => look.failed("the API groups", &error),
        }
        look
    }

    /// What there is cannot be looked up.
    fn failed(&mut self, what: &str, error: &RequestError) {
        self.answers &= !error.is_unreachable();
        self.unseen(None, explain("list", what, error, false));
    }

    fn unseen(&mut self, of: Option<String>, reason: String) {
        self.errors.push(Unseen { of, reason });
    }

    async fn resources(&mut self, version: &str) -> Option<Vec<APIResource>> {
        let resources = self
            .connection
            .call(PATIENCE, |client| async move {
                client.list_api_group_resources(version).await
            })
            .await;
        match resources {
            Ok(resources) => Some(resources.resources),
            Err(error) => {
                self.failed(version, &error);
                None
            }
        }
    }

    /// Finds a kind, which is watched somewhere already, or of which objects are held.
    async fn find(&mut self, kind: Kind, watched: Option<&'static Api>, held: bool) -> Found {
        let mut unclear = !self.whole;
        for api in kind.apis() {
            let version = self
                .groups
                .get(api.group)
                .and_then(|group| group.get(&api.api_version()));
            let served = version.into_iter().flatten().flatten().any(|resource| {
                resource.name == api.plural && resource.kind == kind.name() && can(resource, "watch")
            });
            let unseen = !self.whole || matches!(version, Some(None));
            unclear |= unseen;
            if served {
                return Found::At(api);
            }
            if unseen || held {
                match self.ask(&api.path(), &api.resource()).await {
                    Answer::Objects | Answer::Empty => return Found::At(api),
                    Answer::NotServed => {}
                    // Another API may have the same objects by other names.
                    Answer::Failed(_) if watched == Some(api) => return Found::Unclear,
                    Answer::Failed(_) => unclear = true,
                }
            }
        }
        let mut versions = Vec::new();
        for api in kind.apis() {
            versions.extend(self.groups.get(api.group).into_iter().flatten());
        }
        let mut listable = Vec::new();
        for (version, resources) in versions {
            let Some(resources) = resources else {
                unclear = true;
                continue;
            };
            for resource in resources {
                if resource.kind == kind.name() && can(resource, "list") {
                    listable.push((version.clone(), format!("/apis/{version}/{}", resource.name)));
                }
            }
        }
        for (version, path) in listable {
            match self.ask(&path, &version).await {
                Answer::Empty | Answer::NotServed => {}
                Answer::Objects | Answer::Failed(_) => return Found::Foreign(version),
            }
        }
        match unclear {
            true => Found::Unclear,
            false => Found::Nowhere,
        }
    }

    /// Kinds that are not evaluated and of which there are objects, as `kind.group`.
    async fn unevaluated(&mut self) -> BTreeSet<String> {
        let mut listable = Vec::new();
        for (group, versions) in &self.groups {
            for (version, resources) in versions {
                for resource in resources.iter().flatten().filter(|it| can(it, "list")) {
                    if is_unevaluated(group, &resource.kind) {
                        let path = format!("/apis/{version}/{}", resource.name);
                        let [name, plural] =
                            [&resource.kind, &resource.name].map(|it| format!("{it}.{group}"));
                        listable.push((name, plural, path));
                    }
                }
            }
        }
        let mut found = BTreeSet::new();
        for (name, plural, path) in listable {
            if found.contains(&name) {
                continue;
            }
            match self.ask(&path, &plural).await {
                Answer::Objects => drop(found.insert(name)),
                // No longer served: it has no objects.
                Answer::Empty | Answer::NotServed => {}
                Answer::Failed(reason) => self.unseen(Some(name), reason),
            }
        }
        found
    }

    /// Whether there are objects under a path.
    async fn ask(&mut self, path: &str, resource: &str) -> Answer {
        if !self.answers {
            return Answer::Failed("the API server does not answer".to_owned());
        }
        let params = ListParams {
            limit: Some(1),
            ..ListParams::default()
        };
        let request = match Request::new(path).list(&params) {
            Ok(request) => request,
            Err(error) => return Answer::Failed(error.to_string()),
        };
        let list = self
            .connection
            .call(PATIENCE, |client| async move {
                client.request::<AnyList>(request).await
            })
            .await;
        match list {
            Ok(list) if list.items.as_ref().is_some_and(|items| !items.is_empty()) => Answer::Objects,
            Ok(_) => Answer::Empty,
            Err(error) if error.code() == Some(404) => Answer::NotServed,
            Err(error) => {
                self.answers &= !error.is_unreachable();
                Answer::Failed(explain("list", resource, &error, true))
            }
        }
    }
}

/// Whether a group has policies.
fn matters(group: &str) -> bool {
    UNEVALUATED.iter().any(|(name, _)| *name == group)
        || Kind::discovered()
            .flat_map(Kind::apis)
            .any(|api| api.group == group)
}

fn is_unevaluated(group: &str, kind: &str) -> bool {
    let evaluated =
        || Kind::all().any(|it| it.name() == kind && it.apis().iter().any(|api| api.group == group));
    UNEVALUATED.contains(&(group, kind)) || group == POLICY_GROUP && !evaluated()
}

/// Whether the objects of a resource can be asked for in this way. Subresources are no objects.
fn can(resource: &APIResource, verb: &str) -> bool {
    !resource.name.contains('/') && resource.verbs.iter().any(|it| it == verb)
}
