//! An API server in this process: it serves collections of objects by list and watch as Kubernetes does (versions,
//! pages, bookmarks, expiry), and misbehaves on request.
//!
//! Threads and blocking sockets, so that it can listen in any network namespace: give it a listener made there.
//!
//! Objects are kept as text, made once when they are applied, so that a page or an event is only copied: 100,000 pods and
//! thousands of events a second are no load. All pages of one list show the version at which it began.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    fmt::Write as _,
    io::{self, BufRead, BufReader, Read, Write},
    net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream},
    ops::Bound,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use crate::{
    BedError, Result,
    synthetic::{Event, EventKind},
};

/// A resource: the collection of one kind of object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Resource {
    /// API group; empty for the core.
    pub group: &'static str,
    /// Version within the group.
    pub version: &'static str,
    /// Name in paths.
    pub plural: &'static str,
    /// Name in objects.
    pub kind: &'static str,
    /// Whether its objects live in namespaces.
    pub namespaced: bool,
}

/// Namespaces.
pub const NAMESPACES: Resource = Resource {
    group: "",
    version: "v1",
    plural: "namespaces",
    kind: "Namespace",
    namespaced: false,
};
/// Nodes.
pub const NODES: Resource = Resource {
    group: "",
    version: "v1",
    plural: "nodes",
    kind: "Node",
    namespaced: false,
};
/// Pods.
pub const PODS: Resource = Resource {
    group: "",
    version: "v1",
    plural: "pods",
    kind: "Pod",
    namespaced: true,
};
/// NetworkPolicies.
pub const NETWORK_POLICIES: Resource = Resource {
    group: "networking.k8s.io",
    version: "v1",
    plural: "networkpolicies",
    kind: "NetworkPolicy",
    namespaced: true,
};

/// ClusterNetworkPolicies.
pub const CLUSTER_NETWORK_POLICIES: Resource = Resource {
    group: "policy.networking.k8s.io",
    version: "v1alpha2",
    plural: "clusternetworkpolicies",
    kind: "ClusterNetworkPolicy",
    namespaced: false,
};
/// AdminNetworkPolicies.
pub const ADMIN_NETWORK_POLICIES: Resource = Resource {
    group: "policy.networking.k8s.io",
    version: "v1alpha1",
    plural: "adminnetworkpolicies",
    kind: "AdminNetworkPolicy",
    namespaced: false,
};
/// BaselineAdminNetworkPolicies.
pub const BASELINE_ADMIN_NETWORK_POLICIES: Resource = Resource {
    group: "policy.networking.k8s.io",
    version: "v1alpha1",
    plural: "baselineadminnetworkpolicies",
    kind: "BaselineAdminNetworkPolicy",
    namespaced: false,
};

impl Resource {
    fn path(&self) -> String {
        if self.group.is_empty() {
            format!("/api/{}/{}", self.version, self.plural)
        } else {
            format!("/apis/{}/{}/{}", self.group, self.version, self.plural)
        }
    }

    fn api_version(&self) -> String {
        if self.group.is_empty() {
            self.version.to_owned()
        } else {
            format!("{}/{}", self.group, self.version)
        }
    }
}

/// How a resource misbehaves.
#[derive(Clone, Debug, Default)]
pub struct Faults {
    /// Lists are not answered while this is set.
    pub hold_lists: bool,
    /// Events do not arrive at watches while this is set.
    pub hold_events: bool,
    /// Events are lost on the way to watches while this is set.
    pub lose_events: bool,
    /// Lists are answered so much later.
    pub list_delay: Duration,
    /// Status codes of the next requests, in order, instead of answers.
    pub fail_next: Vec<u16>,
    /// Every request is answered by this status code.
    pub fail_always: Option<u16>,
    /// Every watch is answered by this status code.
    pub fail_watches: Option<u16>,
    /// Every patch is answered by this status code.
    pub fail_patches: Option<u16>,
    /// Somebody else's changes: each next patch finds the next of these objects in place of what was there.
    pub before_patches: VecDeque<Value>,
    /// Objects of this tier (`spec.tier`) are left out of lists, and a list of that tier alone is forbidden: as Calico's API server
    /// does for an account without rights to the tier.
    pub hidden_tier: Option<String>,
    /// The next pages after a first one are answered by 410.
    pub expire_pages: u32,
    /// Watches from a forgotten version are answered by status 410 instead of an event that says so.
    pub gone_by_status: bool,
    /// What comes with a 429: `Retry-After`, in seconds.
    pub retry_after: Option<u64>,
    /// Watches are closed after so long, in order and before their time.
    pub close_watches_after: Option<Duration>,
}

/// A request that was answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReceivedRequest {
    /// Such as `GET`.
    pub method: String,
    /// Its path.
    pub path: String,
    /// Its query, by key.
    pub query: BTreeMap<String, String>,
    /// The bearer token that came with it.
    pub token: Option<String>,
}

impl ReceivedRequest {
    /// Whether it is a watch.
    pub fn is_watch(&self) -> bool {
        self.query
            .get("watch")
            .is_some_and(|value| value == "true" || value == "1")
    }
}

/// Namespace (empty where there is none) and name.
type Key = (String, String);

/// An object as text.
#[derive(Clone)]
struct Stored {
    /// With kind and apiVersion.
    text: Arc<str>,
    /// Where the text goes on after these two: items of a list do not say what they are.
    item: usize,
    uid: String,
    created: String,
}

impl Stored {
    fn new(resource: &Resource, object: Value) -> Self {
        let of = |field: &str| object["metadata"][field].as_str().unwrap_or_default().to_owned();
        let (uid, created) = (of("uid"), of("creationTimestamp"));
        let head = format!(
            "{{\"kind\":{},\"apiVersion\":{},",
            json!(resource.kind),
            json!(resource.api_version())
        );
        let mut object = object;
        if let Value::Object(fields) = &mut object {
            fields.shift_remove("kind");
            fields.shift_remove("apiVersion");
        }
        let rest = object.to_string();
        Self {
            item: head.len(),
            // The object has metadata at least, so there is something after the comma.
            text: Arc::from(head + rest.strip_prefix('{').unwrap_or(&rest)),
            uid,
            created,
        }
    }

    fn value(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_default()
    }
}

/// Objects by namespace and name, in the order of a list. Shared with the lists that have begun.
type Objects = Arc<BTreeMap<Key, Stored>>;

/// Lists that may still be asked for their further pages.
const OPEN_LISTS: usize = 8;

/// The data at some time, as a snapshot of etcd.
pub struct Backup {
    version: u64,
    collections: Vec<Collection>,
}

#[derive(Clone)]
struct Collection {
    resource: Resource,
    /// Whether there is a path for it.
    served: bool,
    objects: Objects,
    /// What happened, by version: the type of event and the object as it was then.
    history: VecDeque<(u64, &'static str, Arc<str>)>,
    /// Version of the newest event that there was no more room for.
    trimmed: u64,
    /// The objects at versions at which lists began, and what those hold.
    open_lists: VecDeque<(u64, Objects)>,
    /// Lines for every watch that is connected, numbered.
    injected: Vec<String>,
    faults: Faults,
}

struct World {
    version: u64,
    uids: u64,
    /// Events of this version and before are forgotten.
    forgotten: u64,
    /// How many events of a resource are kept at most.
    remembered: usize,
    collections: Vec<Collection>,
    token: Option<String>,
    /// Status code that every request for the groups and resources that there are is answered with.
    discovery: Option<u16>,
    seen: Vec<ReceivedRequest>,
}

struct Shared {
    world: Mutex<World>,
    changed: Condvar,
    away: AtomicBool,
    hung: AtomicBool,
    ended: AtomicBool,
    connections: Mutex<BTreeMap<u64, (TcpStream, Option<&'static str>)>>,
    numbers: AtomicU64,
}

/// The server. It ends when this is dropped.
pub struct ApiServer {
    shared: Arc<Shared>,
    address: SocketAddr,
}

impl ApiServer {
    /// Serves on a free port of 127.0.0.1 of this thread's network namespace.
    ///
    /// # Errors
    /// There is none.
    pub fn start() -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
            .map_err(|error| BedError::new("listen as an API server", error))?;
        Self::start_on(listener)
    }

    /// Serves on a listener.
    ///
    /// # Errors
    /// It is no use.
    pub fn start_on(listener: TcpListener) -> Result<Self> {
        let failed = |error: io::Error| BedError::new("serve as an API server", error);
        let address = listener.local_addr().map_err(failed)?;
        let collections = [NAMESPACES, NODES, PODS, NETWORK_POLICIES]
            .into_iter()
            .map(Collection::new)
            .collect();
        let world = World {
            version: 100,
            uids: 0,
            forgotten: 0,
            remembered: usize::MAX,
            collections,
            token: None,
            discovery: None,
            seen: Vec::new(),
        };
        let shared = Arc::new(Shared {
            world: Mutex::new(world),
            changed: Condvar::new(),
            away: AtomicBool::new(false),
            hung: AtomicBool::new(false),
            ended: AtomicBool::new(false),
            connections: Mutex::new(BTreeMap::new()),
            numbers: AtomicU64::new(0),
        });
        let serving = Arc::clone(&shared);
        thread::Builder::new()
            .name("api-server".to_owned())
            .spawn(move || accept(&serving, &listener))
            .map_err(failed)?;
        Ok(Self { shared, address })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// A kubeconfig for it, with a context `test` and this bearer token.
    pub fn kubeconfig(&self, token: &str) -> String {
        format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: test\n\
             clusters:\n- name: here\n  cluster: {{server: \"http://{}\"}}\n\
             users:\n- name: me\n  user: {{token: \"{token}\"}}\n\
             contexts:\n- name: test\n  context: {{cluster: here, user: me}}\n",
            self.address
        )
    }

    /// Accepts only requests with this bearer token from now on.
    pub fn require_token(&self, token: &str) {
        self.shared.world().token = Some(token.to_owned());
    }

    /// Answers every request for the groups and resources that there are with a status code.
    pub fn refuse_discovery(&self, status: Option<u16>) {
        self.shared.world().discovery = status;
    }

    /// Serves another resource, too, or one again.
    pub fn serve(&self, resource: Resource) {
        let mut world = self.shared.world();
        match world.collections.iter_mut().find(|it| it.resource == resource) {
            Some(collection) => collection.served = true,
            None => world.collections.push(Collection::new(resource)),
        }
    }

    /// Serves a resource no more, as where its CRD is gone or has lost a version: its watches end, and what is in it stays,
    /// out of reach. A real server deletes the objects before it loses a CRD.
    pub fn withdraw(&self, resource: Resource) {
        let mut world = self.shared.world();
        for collection in world.collections.iter_mut().filter(|it| it.resource == resource) {
            collection.served = false;
        }
        self.shared.changed.notify_all();
    }

    /// Creates an object, or replaces the one of its name. Gives it what a server gives: uid, creation time, version.
    /// Answers the version.
    ///
    /// # Panics
    /// Its kind is not served, or it has no name: the caller's mistake.
    pub fn apply(&self, object: Value) -> u64 {
        let mut world = self.shared.world();
        let version = world.apply(object);
        self.shared.changed.notify_all();
        version
    }

    /// Creates objects as though they had always been there: no watch hears of them.
    ///
    /// # Panics
    /// As [`Self::apply`].
    pub fn load(&self, objects: impl IntoIterator<Item = Value>) {
        for object in objects {
            let mut world = self.shared.world();
            world.put(object);
        }
        let mut world = self.shared.world();
        world.forgotten = world.version;
    }

    /// Forgets all but so many events of each resource from now on: a long run would fill the memory with them.
    pub fn remember(&self, events: usize) {
        self.shared.world().remembered = events.max(1);
    }

    /// Lets happen what happens in a synthetic cluster. Answers the version.
    ///
    /// # Panics
    /// As [`Self::apply`].
    pub fn event(&self, event: Event) -> u64 {
        let mut world = self.shared.world();
        let version = match event.kind {
            EventKind::Added | EventKind::Modified => world.apply(event.object),
            EventKind::Deleted => world.delete_object(&event.object),
        };
        self.shared.changed.notify_all();
        version
    }

    /// Deletes an object. Answers the version, or None where it is not there.
    pub fn delete(&self, resource: Resource, namespace: &str, name: &str) -> Option<u64> {
        let mut world = self.shared.world();
        let version = world.delete(resource, namespace, name);
        self.shared.changed.notify_all();
        version
    }

    /// Marks a namespace as being deleted.
    ///
    /// # Panics
    /// It is not there: the caller's mistake.
    pub fn terminate_namespace(&self, name: &str) -> u64 {
        let mut object = self
            .object(NAMESPACES, "", name)
            .unwrap_or_else(|| missing("namespace", name));
        object["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
        object["status"]["phase"] = json!("Terminating");
        self.apply(object)
    }

    /// An object as it is now.
    pub fn object(&self, resource: Resource, namespace: &str, name: &str) -> Option<Value> {
        let key = (namespace.to_owned(), name.to_owned());
        let mut world = self.shared.world();
        world.collection(resource)?.objects.get(&key).map(Stored::value)
    }

    /// Every object that is served, as it is now.
    pub fn objects(&self) -> Vec<Value> {
        let world = self.shared.world();
        let served = world.collections.iter().filter(|it| it.served);
        served
            .flat_map(|it| it.objects.values().map(Stored::value))
            .collect()
    }

    /// Changes how a resource misbehaves.
    pub fn faults(&self, resource: Resource, change: impl FnOnce(&mut Faults)) {
        let mut world = self.shared.world();
        if let Some(collection) = world.collection(resource) {
            change(&mut collection.faults);
        }
        self.shared.changed.notify_all();
    }

    /// Forgets every event so far: watches that begin at an older version than now are told that it is gone.
    pub fn forget(&self) {
        let mut world = self.shared.world();
        world.forgotten = world.version;
    }

    /// Sends a line to every watch of a resource, whatever it is.
    pub fn inject(&self, resource: Resource, line: &str) {
        let mut world = self.shared.world();
        if let Some(collection) = world.collection(resource) {
            collection.injected.push(line.to_owned());
        }
        self.shared.changed.notify_all();
    }

    /// Sends a bookmark of the current version to every watch of a resource that is connected now. Answers the version.
    pub fn bookmark(&self, resource: Resource) -> u64 {
        let version = self.shared.world().version;
        let object = json!({
            "kind": resource.kind, "apiVersion": resource.api_version(),
            "metadata": {"resourceVersion": version.to_string(), "creationTimestamp": null},
        });
        self.inject(
            resource,
            &json!({"type": "BOOKMARK", "object": object}).to_string(),
        );
        version
    }

    /// Breaks the connections of a resource's watches.
    pub fn cut(&self, resource: Resource) {
        for (stream, watching) in lock(&self.shared.connections).values() {
            if *watching == Some(resource.plural) {
                // Broken already: as well.
                let _ = stream.shutdown(Shutdown::Both);
            }
        }
    }

    /// Hangs as a stopped process does, its connections open and accepted, or goes on.
    pub fn set_hung(&self, hung: bool) {
        self.shared.hung.store(hung, Ordering::SeqCst);
        self.shared.changed.notify_all();
    }

    /// The data as it is.
    pub fn backup(&self) -> Backup {
        let world = self.shared.world();
        Backup {
            version: world.version,
            collections: world.collections.clone(),
        }
    }

    /// Has older data again, versions included. Connections stay; [`Self::set_away`] breaks them.
    pub fn restore(&self, backup: &Backup) {
        let mut world = self.shared.world();
        world.version = backup.version;
        for (now, before) in world.collections.iter_mut().zip(&backup.collections) {
            now.objects = Arc::clone(&before.objects);
            now.history.clone_from(&before.history);
            now.trimmed = before.trimmed;
            now.open_lists.clear();
        }
        drop(world);
        self.shared.changed.notify_all();
    }

    /// Goes away, with every connection, or comes back.
    pub fn set_away(&self, away: bool) {
        self.shared.away.store(away, Ordering::SeqCst);
        if away {
            self.shared.cut_all();
        }
        self.shared.changed.notify_all();
    }

    /// The requests so far.
    pub fn seen(&self) -> Vec<ReceivedRequest> {
        self.shared.world().seen.clone()
    }

    /// Connected watches of a resource.
    pub fn watches(&self, resource: Resource) -> usize {
        lock(&self.shared.connections)
            .values()
            .filter(|(_, watching)| *watching == Some(resource.plural))
            .count()
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::SeqCst);
        self.shared.cut_all();
        self.shared.changed.notify_all();
        // Wakes the thread that accepts; where that fails it ends with the process.
        let _ = TcpStream::connect_timeout(&self.address, Duration::from_millis(200));
    }
}

#[expect(clippy::panic, reason = "a mistake of the test")]
fn missing(kind: &str, name: &str) -> Value {
    panic!("there is no {kind} {name}")
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    fn world(&self) -> MutexGuard<'_, World> {
        lock(&self.world)
    }

    fn cut_all(&self) {
        for (stream, _) in lock(&self.connections).values() {
            // Broken already: as well.
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    /// Waits until the server does not hang.
    fn awake<'a>(&'a self, mut world: MutexGuard<'a, World>) -> MutexGuard<'a, World> {
        while self.hung.load(Ordering::SeqCst) && !self.is_over() {
            world = self.changed.wait(world).unwrap_or_else(PoisonError::into_inner);
        }
        world
    }

    fn is_over(&self) -> bool {
        self.away.load(Ordering::SeqCst) || self.ended.load(Ordering::SeqCst)
    }
}

impl Collection {
    fn new(resource: Resource) -> Self {
        Self {
            resource,
            served: true,
            objects: Objects::default(),
            history: VecDeque::new(),
            trimmed: 0,
            open_lists: VecDeque::new(),
            injected: Vec::new(),
            faults: Faults::default(),
        }
    }
}

impl Collection {
    /// The objects as they were at a version that is not forgotten.
    fn at(&self, version: u64) -> Objects {
        let mut objects = Arc::clone(&self.objects);
        let later = self.history.partition_point(|(of, ..)| *of <= version);
        for (.., text) in self.history.range(later..) {
            let object: Value = serde_json::from_str(text).unwrap_or_default();
            let of = |field: &str| object["metadata"][field].as_str().unwrap_or_default().to_owned();
            let key = (of("namespace"), of("name"));
            let before = self.history.range(..later).rev().find(|(.., text)| {
                let object: Value = serde_json::from_str(text).unwrap_or_default();
                object["metadata"]["namespace"].as_str().unwrap_or_default() == key.0
                    && object["metadata"]["name"].as_str() == Some(&key.1)
            });
            let objects = Arc::make_mut(&mut objects);
            match before {
                Some((_, event, text)) if *event != "DELETED" => {
                    let object = serde_json::from_str(text).unwrap_or_default();
                    objects.insert(key, Stored::new(&self.resource, object));
                }
                _ => drop(objects.remove(&key)),
            }
        }
        objects
    }
}

impl World {
    fn collection(&mut self, resource: Resource) -> Option<&mut Collection> {
        self.collections.iter_mut().find(|it| it.resource == resource)
    }

    fn apply(&mut self, object: Value) -> u64 {
        let Some((index, event, text)) = self.put(object) else {
            return self.version;
        };
        self.happened(index, event, text);
        self.version
    }

    /// Patches an object of a kind without namespaces, or its `/status`, which is one with it here: by JSON patches, and by merges else, where
    /// lists are replaced (RFC 7396), and a real server would look for elements of the same key. The error is a status code and a message.
    fn patch(&mut self, request: &Request) -> Result<Value, (u16, String)> {
        let absent = || (404, "there is no such object".to_owned());
        let is_of = |it: &Collection| {
            let prefix = format!("{}/", it.resource.path());
            it.served && !it.resource.namespaced && request.path.starts_with(&prefix)
        };
        let index = self.collections.iter().position(is_of).ok_or_else(absent)?;
        let faults = &mut self.collections[index].faults;
        if let Some(status) = faults.fail_patches {
            return Err((status, "User \"me\" cannot patch that".to_owned()));
        }
        if let Some(change) = faults.before_patches.pop_front() {
            self.apply(change);
        }
        let collection = &self.collections[index];
        let name = request.path[collection.resource.path().len() + 1..].trim_end_matches("/status");
        let key = (String::new(), name.to_owned());
        let mut object = collection.objects.get(&key).ok_or_else(absent)?.value();
        let patch: Value = serde_json::from_slice(&request.body).map_err(|error| (400, error.to_string()))?;
        match request.content_type.as_deref() {
            Some("application/json-patch+json") => {
                apply_steps(&mut object, &patch).map_err(|reason| (422, reason))?;
            }
            _ => merge(&mut object, patch),
        }
        self.apply(object.clone());
        Ok(object)
    }

    fn happened(&mut self, index: usize, event: &'static str, text: Arc<str>) {
        let (version, remembered) = (self.version, self.remembered);
        let collection = &mut self.collections[index];
        collection.history.push_back((version, event, text));
        while collection.history.len() > remembered {
            if let Some((version, ..)) = collection.history.pop_front() {
                collection.trimmed = version;
            }
        }
    }

    /// Creates or replaces an object: which collection, what kind of event, the text.
    fn put(&mut self, mut object: Value) -> Option<(usize, &'static str, Arc<str>)> {
        let kind = object["kind"].as_str().unwrap_or_default().to_owned();
        let api_version = object["apiVersion"].as_str().unwrap_or_default().to_owned();
        let name = object["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        self.version += 1;
        self.uids += 1;
        let (version, uid) = (self.version, format!("00000000-0000-4000-8000-{:012}", self.uids));
        let Some(index) = self
            .collections
            .iter()
            .position(|it| it.resource.kind == kind && it.resource.api_version() == api_version)
            .filter(|_| !name.is_empty())
        else {
            missing("resource for", &object.to_string());
            return None;
        };
        let collection = &mut self.collections[index];
        let namespace = if collection.resource.namespaced {
            let namespace = object["metadata"]["namespace"]
                .as_str()
                .unwrap_or("default")
                .to_owned();
            object["metadata"]["namespace"] = json!(namespace);
            namespace
        } else {
            String::new()
        };
        if collection.resource == NAMESPACES {
            object["metadata"]["labels"]["kubernetes.io/metadata.name"] = json!(name);
        }
        let key = (namespace, name);
        let before = collection.objects.get(&key);
        let metadata = &mut object["metadata"];
        metadata["resourceVersion"] = json!(version.to_string());
        match before {
            Some(before) => {
                metadata["uid"] = json!(before.uid);
                metadata["creationTimestamp"] = json!(before.created);
            }
            None => {
                if metadata["uid"].is_null() {
                    metadata["uid"] = json!(uid);
                }
                if metadata["creationTimestamp"].is_null() {
                    let (minute, second) = (version / 60 % 60, version % 60);
                    metadata["creationTimestamp"] = json!(format!("2026-01-01T00:{minute:02}:{second:02}Z"));
                }
            }
        }
        if metadata["managedFields"].is_null() {
            // What a real server adds, and no reader needs.
            metadata["managedFields"] =
                json!([{"manager": "kubectl", "operation": "Update", "fieldsV1": {"f:spec": {}}}]);
        }
        let event = if before.is_some() { "MODIFIED" } else { "ADDED" };
        let stored = Stored::new(&collection.resource, object);
        let text = Arc::clone(&stored.text);
        Arc::make_mut(&mut collection.objects).insert(key, stored);
        Some((index, event, text))
    }

    /// Deletes the object of this kind and name. Answers the version, a new one if it was there.
    fn delete_object(&mut self, object: &Value) -> u64 {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let kind = text(&object["kind"]);
        let resource = self
            .collections
            .iter()
            .map(|it| it.resource)
            .find(|it| it.kind == kind);
        let (namespace, name) = (
            text(&object["metadata"]["namespace"]),
            text(&object["metadata"]["name"]),
        );
        resource
            .and_then(|resource| self.delete(resource, &namespace, &name))
            .unwrap_or(self.version)
    }

    fn delete(&mut self, resource: Resource, namespace: &str, name: &str) -> Option<u64> {
        let index = self.collections.iter().position(|it| it.resource == resource)?;
        let collection = &mut self.collections[index];
        let key = (namespace.to_owned(), name.to_owned());
        let stored = Arc::make_mut(&mut collection.objects).remove(&key)?;
        self.version += 1;
        let mut object = stored.value();
        object["metadata"]["resourceVersion"] = json!(self.version.to_string());
        let text = Stored::new(&resource, object).text;
        self.happened(index, "DELETED", text);
        Some(self.version)
    }
}

fn accept(shared: &Arc<Shared>, listener: &TcpListener) {
    for stream in listener.incoming() {
        if shared.ended.load(Ordering::SeqCst) {
            return;
        }
        let Ok(stream) = stream else { continue };
        if shared.away.load(Ordering::SeqCst) {
            continue;
        }
        let shared = Arc::clone(shared);
        // Without a thread the connection is dropped, and the client tries again.
        let _ = thread::Builder::new()
            .name("api-connection".to_owned())
            .spawn(move || {
                let number = shared.numbers.fetch_add(1, Ordering::SeqCst);
                if let Ok(copy) = stream.try_clone() {
                    lock(&shared.connections).insert(number, (copy, None));
                }
                // The client is gone, or was cut off.
                let _ = Connection {
                    shared: Arc::clone(&shared),
                    number,
                }
                .serve(stream);
                lock(&shared.connections).remove(&number);
            });
    }
}

struct Connection {
    shared: Arc<Shared>,
    number: u64,
}

/// A request, read.
struct Request {
    method: String,
    path: String,
    content_type: Option<String>,
    body: Vec<u8>,
    query: BTreeMap<String, String>,
    token: Option<String>,
}

impl Connection {
    fn serve(&self, stream: TcpStream) -> io::Result<()> {
        stream.set_nodelay(true)?;
        let mut output = stream.try_clone()?;
        let mut input = BufReader::new(stream);
        while let Some(request) = read_request(&mut input)? {
            if self.shared.is_over() {
                break;
            }
            self.answer(&request, &mut output)?;
        }
        Ok(())
    }

    fn answer(&self, request: &Request, output: &mut TcpStream) -> io::Result<()> {
        let mut world = self.shared.awake(self.shared.world());
        let seen = ReceivedRequest {
            method: request.method.clone(),
            path: request.path.clone(),
            query: request.query.clone(),
            token: request.token.clone(),
        };
        world.seen.push(seen.clone());
        if world.token.is_some() && world.token != request.token {
            return failure(output, 401, "Unauthorized", "the token is not known");
        }
        if request.path.starts_with("/apis")
            && !world
                .collections
                .iter()
                .any(|it| it.served && it.resource.path() == request.path)
            && let Some(status) = world.discovery
        {
            return failure(output, status, "Forbidden", "discovery is not for you");
        }
        let groups = groups(&world);
        if request.path == "/apis" {
            let list = json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups});
            return respond(output, 200, &list);
        }
        if let Some(resources) = resources_of(&world, &request.path) {
            return respond(output, 200, &resources);
        }
        if request.method == "PATCH" {
            let patched = world.patch(request);
            drop(world);
            self.shared.changed.notify_all();
            return match patched {
                Ok(object) => respond(output, 200, &object),
                Err((status, message)) => {
                    let reason = match status {
                        403 => "Forbidden",
                        404 => "NotFound",
                        422 => "Invalid",
                        _ => "BadRequest",
                    };
                    failure(output, status, reason, &message)
                }
            };
        }
        let Some(index) = world
            .collections
            .iter()
            .position(|it| it.served && it.resource.path() == request.path)
        else {
            return failure(
                output,
                404,
                "NotFound",
                "the server could not find the requested resource",
            );
        };
        let plural = world.collections[index].resource.plural;
        let faults = &mut world.collections[index].faults;
        let status = if faults.fail_next.is_empty() {
            faults
                .fail_always
                .or(faults.fail_watches.filter(|_| seen.is_watch()))
        } else {
            Some(faults.fail_next.remove(0))
        };
        let retry_after = faults.retry_after;
        if let Some(status) = status {
            let account = "User \"me\" cannot do that";
            return match status {
                403 => failure(
                    output,
                    403,
                    "Forbidden",
                    &format!("{plural} is forbidden: {account}"),
                ),
                410 => failure(output, 410, "Expired", "too old resource version"),
                429 => {
                    let header = retry_after.map(|seconds| format!("Retry-After: {seconds}\r\n"));
                    // As the filter for requests in flight says it: no Status.
                    respond_with(output, 429, &header.unwrap_or_default(), "Too many requests")
                }
                other => failure(output, other, "InternalError", "something went wrong"),
            };
        }
        drop(world);
        if seen.is_watch() {
            if let Some((_, watching)) = lock(&self.shared.connections).get_mut(&self.number) {
                *watching = Some(plural);
            }
            let outcome = self.watch(index, request, output);
            if let Some((_, watching)) = lock(&self.shared.connections).get_mut(&self.number) {
                *watching = None;
            }
            outcome
        } else {
            self.list(index, request, output)
        }
    }

    fn list(&self, index: usize, request: &Request, output: &mut TcpStream) -> io::Result<()> {
        let mut world = self.shared.world();
        while world.collections[index].faults.hold_lists && !self.shared.is_over() {
            world = self
                .shared
                .changed
                .wait(world)
                .unwrap_or_else(PoisonError::into_inner);
        }
        let delay = world.collections[index].faults.list_delay;
        if !delay.is_zero() {
            drop(world);
            thread::sleep(delay);
            world = self.shared.world();
        }
        let (version, last) = match request.query.get("continue").map(|token| token.splitn(3, '/')) {
            None => (world.version, None),
            Some(mut parts) => {
                let mut next = || parts.next().unwrap_or_default().to_owned();
                (next().parse().unwrap_or(0), Some((next(), next())))
            }
        };
        let latest = world.version;
        let exact = request
            .query
            .get("resourceVersionMatch")
            .filter(|how| *how == "Exact")
            .and_then(|_| request.query.get("resourceVersion")?.parse::<u64>().ok());
        let forgotten = world.forgotten;
        let collection = &mut world.collections[index];
        let mut objects = Some(Arc::clone(&collection.objects));
        let version = match exact {
            // As etcd says it of a version that is to come.
            Some(exact) if exact > latest => {
                let message = "etcdserver: mvcc: required revision is a future revision";
                return failure(output, 500, "InternalError", message);
            }
            Some(exact) => {
                objects = (exact >= forgotten.max(collection.trimmed)).then(|| collection.at(exact));
                exact
            }
            None => version,
        };
        if last.is_some() {
            if collection.faults.expire_pages > 0 {
                collection.faults.expire_pages -= 1;
                objects = None;
            } else if version != latest {
                let open = collection.open_lists.iter().find(|(of, _)| *of == version);
                objects = open.map(|(_, objects)| Arc::clone(objects));
            }
        }
        let Some(objects) = objects else {
            let message = "the provided continue parameter is too old";
            return failure(output, 410, "Expired", message);
        };
        let name = request
            .query
            .get("fieldSelector")
            .and_then(|text| text.strip_prefix("metadata.name="));
        let tier = request
            .query
            .get("fieldSelector")
            .and_then(|text| text.strip_prefix("spec.tier="));
        let hidden = collection.faults.hidden_tier.clone();
        if tier.is_some() && tier == hidden.as_deref() {
            let message = format!("{}: you may not get this tier", collection.resource.plural);
            return failure(output, 403, "Forbidden", &message);
        }
        let is_shown = |stored: &Stored| {
            if tier.is_none() && hidden.is_none() {
                return true;
            }
            let object: Value = serde_json::from_str(&stored.text).unwrap_or_default();
            let own = object.pointer("/spec/tier").and_then(Value::as_str);
            tier.is_none_or(|tier| own == Some(tier)) && (hidden.is_none() || own != hidden.as_deref())
        };
        let limit = request
            .query
            .get("limit")
            .and_then(|text| text.parse().ok())
            .unwrap_or(usize::MAX);
        let after = last.map_or(Bound::Unbounded, Bound::Excluded);
        let mut found = objects
            .range::<Key, _>((after, Bound::Unbounded))
            .filter(|((_, own), stored)| name.is_none_or(|name| own == name) && is_shown(stored))
            .peekable();
        let resource = collection.resource;
        let page: Vec<(&Key, &Stored)> = found.by_ref().take(limit).collect();
        let more = page.last().filter(|_| found.peek().is_some());
        let mut metadata = json!({"resourceVersion": version.to_string()});
        if let Some(((namespace, name), _)) = more {
            metadata["continue"] = json!(format!("{version}/{namespace}/{name}"));
            if collection.open_lists.iter().all(|(of, _)| *of != version) {
                collection.open_lists.push_back((version, Arc::clone(&objects)));
                if collection.open_lists.len() > OPEN_LISTS {
                    collection.open_lists.pop_front();
                }
            }
        }
        drop(world);
        let mut body = format!(
            "{{\"kind\":\"{}List\",\"apiVersion\":\"{}\",\"metadata\":{metadata},\"items\":[",
            resource.kind,
            resource.api_version()
        );
        for (place, (_, stored)) in page.iter().enumerate() {
            body.push_str(if place == 0 { "{" } else { ",{" });
            body.push_str(&stored.text[stored.item..]);
        }
        body.push_str("]}");
        respond_text(output, 200, &body)
    }

    fn watch(&self, index: usize, request: &Request, output: &mut TcpStream) -> io::Result<()> {
        let number = |key: &str| request.query.get(key).and_then(|text| text.parse::<u64>().ok());
        let mut last = number("resourceVersion").unwrap_or(0);
        let until = Instant::now() + Duration::from_secs(number("timeoutSeconds").unwrap_or(300));
        let mut world = self.shared.world();
        let mut injected = world.collections[index].injected.len();
        let oldest = world.forgotten.max(world.collections[index].trimmed);
        if last < oldest {
            let message = format!("too old resource version: {last} ({oldest})");
            if world.collections[index].faults.gone_by_status {
                return failure(output, 410, "Expired", &message);
            }
            drop(world);
            begin_chunks(output)?;
            return expired(output, &message);
        }
        begin_chunks(output)?;
        let began = Instant::now();
        loop {
            world = self.shared.awake(world);
            if self.shared.is_over() {
                return Ok(());
            }
            let close = world.collections[index]
                .faults
                .close_watches_after
                .map(|after| began + after);
            let until = close.map_or(until, |close| close.min(until));
            let version = world.version;
            let collection = &world.collections[index];
            if !collection.served {
                return output.write_all(b"0\r\n\r\n");
            }
            if collection.faults.lose_events {
                last = version;
            }
            if last < collection.trimmed && !collection.faults.hold_events {
                drop(world);
                return expired(
                    output,
                    "the watch is too slow: events that it has not had are forgotten",
                );
            }
            if !collection.faults.hold_events {
                let lines: Vec<String> = collection.injected[injected..].to_vec();
                injected = collection.injected.len();
                let next = collection
                    .history
                    .partition_point(|(version, ..)| *version <= last);
                let events: Vec<(&'static str, Arc<str>)> = collection
                    .history
                    .range(next..)
                    .map(|(_, event, text)| (*event, Arc::clone(text)))
                    .collect();
                last = last.max(version);
                if !lines.is_empty() || !events.is_empty() {
                    drop(world);
                    send(output, &lines, &events)?;
                    world = self.shared.world();
                    continue;
                }
            }
            let Some(left) = until.checked_duration_since(Instant::now()) else {
                return output.write_all(b"0\r\n\r\n");
            };
            world = self
                .shared
                .changed
                .wait_timeout(world, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }
}

/// The steps `test` and `remove` of a JSON patch (RFC 6902).
fn apply_steps(object: &mut Value, patch: &Value) -> Result<(), String> {
    for step in patch.as_array().ok_or("a JSON patch is a list")? {
        let path = step["path"].as_str().ok_or("a step has no path")?;
        let missing = || format!("{path} is not there");
        match step["op"].as_str() {
            Some("test") => {
                let found = object.pointer(path).ok_or_else(missing)?;
                if *found != step["value"] {
                    return Err(format!("testing value {path} failed"));
                }
            }
            Some("remove") => {
                let (parent, last) = path.rsplit_once('/').ok_or_else(missing)?;
                match object.pointer_mut(parent).ok_or_else(missing)? {
                    Value::Array(elements) => {
                        let index: usize = last.parse().map_err(|_| missing())?;
                        if index >= elements.len() {
                            return Err(missing());
                        }
                        elements.remove(index);
                    }
                    Value::Object(fields) => drop(fields.remove(last).ok_or_else(missing)?),
                    _ => return Err(missing()),
                }
            }
            other => return Err(format!("step {other:?} is not known here")),
        }
    }
    Ok(())
}

/// JSON Merge Patch.
fn merge(into: &mut Value, patch: Value) {
    let Value::Object(fields) = patch else {
        *into = patch;
        return;
    };
    if !into.is_object() {
        *into = json!({});
    }
    for (name, value) in fields {
        if value.is_null() {
            into.as_object_mut().map(|object| object.remove(&name));
        } else {
            merge(&mut into[name], value);
        }
    }
}

fn groups(world: &World) -> Vec<Value> {
    let mut groups: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for resource in world
        .collections
        .iter()
        .filter(|it| it.served)
        .map(|it| it.resource)
    {
        groups.entry(resource.group).or_default().insert(resource.version);
    }
    groups.remove("");
    groups
        .into_iter()
        .map(|(group, versions)| {
            let versions: Vec<Value> = versions
                .into_iter()
                .map(|version| json!({"groupVersion": format!("{group}/{version}"), "version": version}))
                .collect();
            json!({"name": group, "versions": versions, "preferredVersion": versions[0]})
        })
        .collect()
}

fn resources_of(world: &World, path: &str) -> Option<Value> {
    let version = path.strip_prefix("/apis/")?;
    let resources: Vec<Value> = world
        .collections
        .iter()
        .filter(|it| it.served)
        .map(|it| it.resource)
        .filter(|it| !it.group.is_empty() && it.api_version() == version)
        .map(|it| {
            json!({
                "name": it.plural, "singularName": it.kind.to_lowercase(), "namespaced": it.namespaced,
                "kind": it.kind, "verbs": ["get", "list", "watch"],
            })
        })
        .collect();
    (!resources.is_empty()).then(|| {
        json!({
            "kind": "APIResourceList", "apiVersion": "v1", "groupVersion": version, "resources": resources,
        })
    })
}

/// None where the client has no more requests.
fn read_request(input: &mut BufReader<TcpStream>) -> io::Result<Option<Request>> {
    let mut line = String::new();
    if input.read_line(&mut line)? == 0 {
        return Ok(None);
    }
    let mut words = line.split_whitespace();
    let method = words.next().unwrap_or_default().to_owned();
    let target = words.next().unwrap_or("/").to_owned();
    let (mut token, mut content_type) = (None, None);
    let mut length = 0;
    loop {
        let mut header = String::new();
        if input.read_line(&mut header)? == 0 {
            return Ok(None);
        }
        let Some((name, value)) = header.trim_end().split_once(':') else {
            break;
        };
        match name.to_ascii_lowercase().as_str() {
            "authorization" => token = value.trim().strip_prefix("Bearer ").map(str::to_owned),
            "content-type" => content_type = Some(value.trim().to_owned()),
            "content-length" => length = value.trim().parse().unwrap_or(0),
            _ => {}
        }
    }
    let mut body = Vec::new();
    input.take(length).read_to_end(&mut body)?;
    let (path, query) = target.split_once('?').unwrap_or((&target, ""));
    let query = query
        .split('&')
        .filter_map(|pair| pair.split_once('='))
        .map(|(key, value)| (decoded(key), decoded(value)))
        .collect();
    Ok(Some(Request {
        method,
        path: path.to_owned(),
        content_type,
        body,
        query,
        token,
    }))
}

/// Percent-decoded.
fn decoded(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        match (first, tail) {
            (b'%', [high, low, after @ ..]) => {
                let digits = [*high, *low];
                let value = std::str::from_utf8(&digits)
                    .ok()
                    .and_then(|it| u8::from_str_radix(it, 16).ok());
                bytes.push(value.unwrap_or(b'?'));
                rest = after;
            }
            (b'+', _) => {
                bytes.push(b' ');
                rest = tail;
            }
            _ => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn respond(output: &mut TcpStream, status: u16, body: &Value) -> io::Result<()> {
    respond_text(output, status, &body.to_string())
}

fn respond_text(output: &mut TcpStream, status: u16, body: &str) -> io::Result<()> {
    respond_with(output, status, "", body)
}

fn respond_with(output: &mut TcpStream, status: u16, headers: &str, body: &str) -> io::Result<()> {
    let head = format!(
        "HTTP/1.1 {status} -\r\nContent-Type: application/json\r\n{headers}Content-Length: {}\r\n\r\n",
        body.len()
    );
    output.write_all((head + body).as_bytes())
}

fn failure(output: &mut TcpStream, status: u16, reason: &str, message: &str) -> io::Result<()> {
    let body = json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": message, "reason": reason, "code": status,
    });
    respond(output, status, &body)
}

fn begin_chunks(output: &mut TcpStream) -> io::Result<()> {
    output
        .write_all(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n")
}

/// Ends a watch with the event that says that its version is gone.
fn expired(output: &mut TcpStream, message: &str) -> io::Result<()> {
    let status = json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": message, "reason": "Expired", "code": 410,
    });
    chunk(output, &json!({"type": "ERROR", "object": status}).to_string())?;
    output.write_all(b"0\r\n\r\n")
}

/// Sends lines and events, each a chunk, in one write.
fn send(output: &mut TcpStream, lines: &[String], events: &[(&'static str, Arc<str>)]) -> io::Result<()> {
    let mut text = String::new();
    for line in lines {
        // Writing to a string does not fail.
        let _ = write!(text, "{:x}\r\n{line}\n\r\n", line.len() + 1);
    }
    for (event, object) in events {
        let length = r#"{"type":"","object":}"#.len() + event.len() + object.len() + 1;
        let _ = write!(
            text,
            "{length:x}\r\n{{\"type\":\"{event}\",\"object\":{object}}}\n\r\n"
        );
    }
    output.write_all(text.as_bytes())
}

fn chunk(output: &mut TcpStream, line: &str) -> io::Result<()> {
    output.write_all(format!("{:x}\r\n{line}\n\r\n", line.len() + 1).as_bytes())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test says what failed by panicking

    use std::{
        io::{BufRead, BufReader, Read, Write},
        net::TcpStream,
        time::{Duration, Instant},
    };

    use serde_json::Value;

    use super::{ApiServer, PODS};
    use crate::{
        manifests,
        synthetic::{Churn, Spec, Synthetic},
    };

    /// A connection whose answer's head has been read.
    fn watch(server: &ApiServer, target: &str) -> BufReader<TcpStream> {
        let mut stream = TcpStream::connect(server.address()).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        write!(stream, "GET {target} HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
        let mut input = BufReader::new(stream);
        let mut line = String::from("-");
        while !line.trim_end().is_empty() {
            line.clear();
            input.read_line(&mut line).unwrap();
        }
        input
    }

    /// The next event of a watch.
    fn event(input: &mut BufReader<TcpStream>) -> Value {
        let mut line = String::new();
        input.read_line(&mut line).unwrap();
        let length = usize::from_str_radix(line.trim_end(), 16).unwrap();
        let mut chunk = vec![0; length + 2];
        input.read_exact(&mut chunk).unwrap();
        serde_json::from_slice(&chunk[..length]).unwrap()
    }

    fn get(server: &ApiServer, target: &str) -> Value {
        let mut stream = TcpStream::connect(server.address()).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        write!(stream, "GET {target} HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        let (_, body) = text.split_once("\r\n\r\n").unwrap();
        serde_json::from_str(body).unwrap()
    }

    fn version(object: &Value) -> u64 {
        object["metadata"]["resourceVersion"]
            .as_str()
            .unwrap()
            .parse()
            .unwrap()
    }

    /// A change between two pages is in neither of them, and comes by the watch from the list's version.
    #[test]
    fn pages_of_one_list_are_of_one_version() {
        let server = ApiServer::start().unwrap();
        let mut cluster = Synthetic::new(Spec::sized(10, 100, 4)).unwrap();
        server.load(cluster.objects());
        let first = get(&server, "/api/v1/pods?limit=30");
        let mut names: Vec<Value> = first["items"].as_array().unwrap().clone();
        let mut token = first["metadata"]["continue"].as_str().unwrap().to_owned();
        let mut pages = 1;
        let events = 300;
        for _ in 0..events {
            server.event(cluster.churn());
        }
        while !token.is_empty() {
            let page = get(&server, &format!("/api/v1/pods?limit=30&continue={token}"));
            assert_eq!(version(&page), version(&first));
            names.extend(page["items"].as_array().unwrap().iter().cloned());
            token = page["metadata"]["continue"]
                .as_str()
                .unwrap_or_default()
                .to_owned();
            pages += 1;
        }
        assert_eq!((pages, names.len()), (4, 100));
        assert!(
            names
                .iter()
                .all(|pod| version(pod) <= version(&first) && pod["kind"].is_null())
        );
        // What the watch says after it leads to what a new list says.
        let mut state: std::collections::BTreeMap<String, u64> =
            names.iter().map(|pod| (key(pod), version(pod))).collect();
        let target = format!("/api/v1/pods?watch=true&resourceVersion={}", version(&first));
        let mut input = watch(&server, &target);
        let now = get(&server, "/api/v1/pods");
        loop {
            let wanted = now["items"]
                .as_array()
                .unwrap()
                .iter()
                .map(|pod| (key(pod), version(pod)));
            if state == wanted.collect() {
                break;
            }
            let event = event(&mut input);
            assert_eq!(event["object"]["kind"], "Pod");
            if event["type"] == "DELETED" {
                assert!(state.remove(&key(&event["object"])).is_some());
            } else {
                state.insert(key(&event["object"]), version(&event["object"]));
            }
        }
    }

    fn key(object: &Value) -> String {
        format!(
            "{}/{}",
            object["metadata"]["namespace"], object["metadata"]["name"]
        )
    }

    #[test]
    fn a_watch_that_is_too_far_behind_is_told_so() {
        let server = ApiServer::start().unwrap();
        server.remember(5);
        server.apply(manifests::namespace("a", &manifests::labels([])));
        for _ in 0..20 {
            server.apply(manifests::namespace("b", &manifests::labels([])));
        }
        let mut input = watch(&server, "/api/v1/namespaces?watch=true&resourceVersion=101");
        let event = event(&mut input);
        assert_eq!(
            (event["type"].as_str(), event["object"]["code"].as_u64()),
            (Some("ERROR"), Some(410))
        );
    }

    /// Far more events than are asked of it, in an unoptimized build: serving them is no bottleneck.
    #[test]
    fn events_are_served_faster_than_anyone_needs() {
        let server = ApiServer::start().unwrap();
        let mut spec = Spec::sized(0, 1_000, 20);
        spec.churn = Churn::of_pods();
        let mut cluster = Synthetic::new(spec).unwrap();
        server.load(cluster.objects());
        let version = version(&get(&server, "/api/v1/pods?limit=1"));
        let mut input = watch(
            &server,
            &format!("/api/v1/pods?watch=true&resourceVersion={version}"),
        );
        let events: Vec<_> = (0..3_000).map(|_| cluster.churn()).collect();
        let start = Instant::now();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                events.into_iter().for_each(|event| {
                    server.event(event);
                })
            });
            (0..3_000).for_each(|_| drop(event(&mut input)));
        });
        let took = start.elapsed();
        assert!(took < Duration::from_secs(3), "{took:?} for 3,000 events");
        assert_eq!(server.watches(PODS), 1);
    }
}
