//! An API server in this process: it serves collections of objects by list and watch as Kubernetes does (versions,
//! pages, bookmarks, expiry), and misbehaves on request.
//!
//! Threads and blocking sockets, so that it can listen in any network namespace: give it a listener made there.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{self, BufRead, BufReader, Read, Write},
    net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use crate::{BedError, Result};

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
    /// The next pages after a first one are answered by 410.
    pub expire_pages: u32,
    /// Watches from a forgotten version are answered by status 410 instead of an event that says so.
    pub gone_by_status: bool,
}

/// A request that was answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Its path.
    pub path: String,
    /// Its query, by key.
    pub query: BTreeMap<String, String>,
    /// The bearer token that came with it.
    pub token: Option<String>,
}

impl Seen {
    /// Whether it is a watch.
    pub fn is_watch(&self) -> bool {
        self.query
            .get("watch")
            .is_some_and(|value| value == "true" || value == "1")
    }
}

struct Collection {
    resource: Resource,
    objects: BTreeMap<(String, String), Value>,
    /// What happened, by version: the object's type of event and its content then.
    history: Vec<(u64, &'static str, Value)>,
    /// Lines for every watch that is connected, numbered.
    injected: Vec<String>,
    faults: Faults,
}

struct World {
    version: u64,
    uids: u64,
    /// Events of this version and before are forgotten.
    forgotten: u64,
    collections: Vec<Collection>,
    token: Option<String>,
    seen: Vec<Seen>,
}

struct Shared {
    world: Mutex<World>,
    changed: Condvar,
    away: AtomicBool,
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
            collections,
            token: None,
            seen: Vec::new(),
        };
        let shared = Arc::new(Shared {
            world: Mutex::new(world),
            changed: Condvar::new(),
            away: AtomicBool::new(false),
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

    /// Serves another resource, too.
    pub fn serve(&self, resource: Resource) {
        self.shared.world().collections.push(Collection::new(resource));
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
        world
            .collection(resource.plural, resource.group)?
            .objects
            .get(&key)
            .cloned()
    }

    /// Changes how a resource misbehaves.
    pub fn faults(&self, resource: Resource, change: impl FnOnce(&mut Faults)) {
        let mut world = self.shared.world();
        if let Some(collection) = world.collection(resource.plural, resource.group) {
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
        if let Some(collection) = world.collection(resource.plural, resource.group) {
            collection.injected.push(line.to_owned());
        }
        self.shared.changed.notify_all();
    }

    /// Sends a bookmark of the current version to every watch of a resource.
    pub fn bookmark(&self, resource: Resource) {
        let version = self.shared.world().version;
        let object = json!({
            "kind": resource.kind, "apiVersion": resource.api_version(),
            "metadata": {"resourceVersion": version.to_string(), "creationTimestamp": null},
        });
        self.inject(
            resource,
            &json!({"type": "BOOKMARK", "object": object}).to_string(),
        );
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

    /// Goes away, with every connection, or comes back.
    pub fn set_away(&self, away: bool) {
        self.shared.away.store(away, Ordering::SeqCst);
        if away {
            self.shared.cut_all();
        }
        self.shared.changed.notify_all();
    }

    /// The requests so far.
    pub fn seen(&self) -> Vec<Seen> {
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

    fn is_over(&self) -> bool {
        self.away.load(Ordering::SeqCst) || self.ended.load(Ordering::SeqCst)
    }
}

impl Collection {
    fn new(resource: Resource) -> Self {
        Self {
            resource,
            objects: BTreeMap::new(),
            history: Vec::new(),
            injected: Vec::new(),
            faults: Faults::default(),
        }
    }
}

impl World {
    fn collection(&mut self, plural: &str, group: &str) -> Option<&mut Collection> {
        self.collections
            .iter_mut()
            .find(|it| it.resource.plural == plural && it.resource.group == group)
    }

    fn apply(&mut self, mut object: Value) -> u64 {
        let kind = object["kind"].as_str().unwrap_or_default().to_owned();
        let api_version = object["apiVersion"].as_str().unwrap_or_default().to_owned();
        let name = object["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        self.version += 1;
        self.uids += 1;
        let (version, uid) = (self.version, format!("00000000-0000-4000-8000-{:012}", self.uids));
        let Some(collection) = self
            .collections
            .iter_mut()
            .find(|it| it.resource.kind == kind && it.resource.api_version() == api_version)
            .filter(|_| !name.is_empty())
        else {
            missing("resource for", &object.to_string());
            return version;
        };
        let namespace = if collection.resource.namespaced {
            object["metadata"]["namespace"]
                .as_str()
                .unwrap_or("default")
                .to_owned()
        } else {
            String::new()
        };
        if collection.resource.namespaced {
            object["metadata"]["namespace"] = json!(namespace);
        }
        if collection.resource == NAMESPACES {
            object["metadata"]["labels"]["kubernetes.io/metadata.name"] = json!(name);
        }
        let key = (namespace, name);
        let before = collection.objects.get(&key);
        let metadata = &mut object["metadata"];
        metadata["resourceVersion"] = json!(version.to_string());
        match before {
            Some(before) => {
                metadata["uid"] = before["metadata"]["uid"].clone();
                metadata["creationTimestamp"] = before["metadata"]["creationTimestamp"].clone();
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
        // What a real server adds, and nobody needs.
        metadata["managedFields"] =
            json!([{"manager": "kubectl", "operation": "Update", "fieldsV1": {"f:spec": {}}}]);
        let event = if before.is_some() { "MODIFIED" } else { "ADDED" };
        collection.history.push((version, event, object.clone()));
        collection.objects.insert(key, object);
        version
    }

    fn delete(&mut self, resource: Resource, namespace: &str, name: &str) -> Option<u64> {
        let version = self.version + 1;
        let collection = self.collection(resource.plural, resource.group)?;
        let mut object = collection
            .objects
            .remove(&(namespace.to_owned(), name.to_owned()))?;
        object["metadata"]["resourceVersion"] = json!(version.to_string());
        collection.history.push((version, "DELETED", object));
        self.version = version;
        Some(version)
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
    path: String,
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
        let mut world = self.shared.world();
        let seen = Seen {
            path: request.path.clone(),
            query: request.query.clone(),
            token: request.token.clone(),
        };
        world.seen.push(seen.clone());
        if world.token.is_some() && world.token != request.token {
            return failure(output, 401, "Unauthorized", "the token is not known");
        }
        let groups = groups(&world);
        if request.path == "/apis" {
            let list = json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups});
            return respond(output, 200, &list);
        }
        if let Some(resources) = resources_of(&world, &request.path) {
            return respond(output, 200, &resources);
        }
        let Some(index) = world
            .collections
            .iter()
            .position(|it| it.resource.path() == request.path)
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
            faults.fail_always
        } else {
            Some(faults.fail_next.remove(0))
        };
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
                429 => failure(output, 429, "TooManyRequests", "try again later"),
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
        let version = world.version;
        let collection = &mut world.collections[index];
        let mut first: usize = 0;
        if let Some(token) = request.query.get("continue") {
            if collection.faults.expire_pages > 0 {
                collection.faults.expire_pages -= 1;
                return failure(
                    output,
                    410,
                    "Expired",
                    "the provided continue parameter is too old",
                );
            }
            first = token.parse().unwrap_or(0);
        }
        let name = request
            .query
            .get("fieldSelector")
            .and_then(|text| text.strip_prefix("metadata.name="));
        let limit = request
            .query
            .get("limit")
            .and_then(|text| text.parse().ok())
            .unwrap_or(usize::MAX);
        let mut all: Vec<Value> = collection
            .objects
            .values()
            .filter(|object| name.is_none_or(|name| object["metadata"]["name"] == name))
            .cloned()
            .collect();
        // Items of a list do not say what they are.
        for object in &mut all {
            if let Value::Object(fields) = object {
                fields.remove("kind");
                fields.remove("apiVersion");
            }
        }
        let more = all.len() > first.saturating_add(limit);
        let items: Vec<Value> = all.into_iter().skip(first).take(limit).collect();
        let mut metadata = json!({"resourceVersion": version.to_string()});
        if more {
            metadata["continue"] = json!((first + limit).to_string());
        }
        let list = json!({
            "kind": format!("{}List", collection.resource.kind),
            "apiVersion": collection.resource.api_version(),
            "metadata": metadata,
            "items": items,
        });
        drop(world);
        respond(output, 200, &list)
    }

    fn watch(&self, index: usize, request: &Request, output: &mut TcpStream) -> io::Result<()> {
        let number = |key: &str| request.query.get(key).and_then(|text| text.parse::<u64>().ok());
        let mut last = number("resourceVersion").unwrap_or(0);
        let until = Instant::now() + Duration::from_secs(number("timeoutSeconds").unwrap_or(300));
        let mut world = self.shared.world();
        let mut injected = world.collections[index].injected.len();
        if last < world.forgotten {
            let message = format!("too old resource version: {last} ({})", world.forgotten);
            if world.collections[index].faults.gone_by_status {
                return failure(output, 410, "Expired", &message);
            }
            drop(world);
            begin_chunks(output)?;
            let status = json!({
                "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
                "message": message, "reason": "Expired", "code": 410,
            });
            chunk(output, &json!({"type": "ERROR", "object": status}).to_string())?;
            return output.write_all(b"0\r\n\r\n");
        }
        begin_chunks(output)?;
        loop {
            if self.shared.is_over() {
                return Ok(());
            }
            let version = world.version;
            let collection = &world.collections[index];
            if collection.faults.lose_events {
                last = version;
            }
            if !collection.faults.hold_events {
                let mut lines: Vec<String> = collection.injected[injected..].to_vec();
                injected = collection.injected.len();
                for (version, event, object) in &collection.history {
                    if *version > last {
                        lines.push(json!({"type": event, "object": object}).to_string());
                        last = *version;
                    }
                }
                if !lines.is_empty() {
                    drop(world);
                    for line in lines {
                        chunk(output, &line)?;
                    }
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

fn groups(world: &World) -> Vec<Value> {
    let groups: BTreeSet<(&str, &str)> = world
        .collections
        .iter()
        .filter(|it| !it.resource.group.is_empty())
        .map(|it| (it.resource.group, it.resource.version))
        .collect();
    groups
        .into_iter()
        .map(|(group, version)| {
            let version = json!({"groupVersion": format!("{group}/{version}"), "version": version});
            json!({"name": group, "versions": [version.clone()], "preferredVersion": version})
        })
        .collect()
}

fn resources_of(world: &World, path: &str) -> Option<Value> {
    let version = path.strip_prefix("/apis/")?;
    let resources: Vec<Value> = world
        .collections
        .iter()
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
    let target = line.split_whitespace().nth(1).unwrap_or("/").to_owned();
    let mut token = None;
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
            "content-length" => length = value.trim().parse().unwrap_or(0),
            _ => {}
        }
    }
    io::copy(&mut input.take(length), &mut io::sink())?;
    let (path, query) = target.split_once('?').unwrap_or((&target, ""));
    let query = query
        .split('&')
        .filter_map(|pair| pair.split_once('='))
        .map(|(key, value)| (decoded(key), decoded(value)))
        .collect();
    Ok(Some(Request {
        path: path.to_owned(),
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
    let body = body.to_string();
    let head = format!(
        "HTTP/1.1 {status} -\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    output.write_all((head + &body).as_bytes())
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

fn chunk(output: &mut TcpStream, line: &str) -> io::Result<()> {
    output.write_all(format!("{:x}\r\n{line}\n\r\n", line.len() + 1).as_bytes())
}
