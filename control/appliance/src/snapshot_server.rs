//! Takes snapshots in, hands them to the workers, and answers on the dataplane's socket.
//!
//! Nothing here runs on a worker's CPU share: an image is copied out of the sender's memory, or made from the one in force
//! and a delta, validated, swapped in by [`rcu::Publisher`](ringwall_dataplane::rcu::Publisher), and freed here when every
//! worker has moved on. What is kept on disk for a restart is a whole image and the changes since ([`last_snapshot`]).

use std::{
    collections::VecDeque,
    path::Path,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use ringwall_dataplane::{classify::Snapshot, dataplane::Dataplane};
use ringwall_messages::{
    ClusterUid, Connection, ContentHash, DataplaneStatus, FlowCursor, FlowFilter, FlowPage, Listener,
    ProtocolError, Received, Reply, Request, SnapshotOrigin, SnapshotStatus, VERSION, cni::PodStart,
    read_image,
};
use ringwall_process::essential::Essential;

use super::last_snapshot::{self, Delta, LastSnapshot, SnapshotFile};

/// How often it is looked whether every worker has adopted, after [`ADOPTION_YIELDS`].
const ADOPTION_POLL: Duration = Duration::from_micros(50);
/// How often it is looked at once: a worker's turn takes microseconds, a sleep at least fifty and as many until it ends.
/// Each time the CPU is offered to whoever else wants it, such as that worker.
const ADOPTION_YIELDS: u32 = 50;
/// How long adoption is waited for; a worker that takes longer is the watchdog's business.
const ADOPTION_LIMIT: Duration = Duration::from_secs(10);
/// Changes that follow each other within this time are written to disk together.
const APPEND_PAUSE: Duration = Duration::from_millis(100);
/// As many changes wait to be written.
const MAX_DELTAS: usize = 1024;
/// Least time between two writes of the whole snapshot to disk.
const WRITE_PAUSE: Duration = Duration::from_secs(1);
/// And at least so many times as long as the write before took, so that large images under constant change take a small
/// share of a CPU and of the disk.
const WRITE_SHARE: u32 = 20;
/// Snapshots remembered for what they decided: so many, and so many bytes of them besides the newest.
const REMEMBERED: usize = 64;
const REMEMBERED_BYTES: usize = 64 << 20;
/// Clients at a time.
const MAX_CLIENTS: usize = 32;

/// The newest snapshot and the way to the workers.
pub struct SnapshotServer {
    plane: Arc<Mutex<Dataplane>>,
    state: Mutex<State>,
    to_disk: Mutex<PendingWrite>,
    disk_news: Condvar,
    last: LastSnapshot,
    workers: u32,
    /// Gets parked workers to look.
    wake: Box<dyn Fn() + Send + Sync>,
    /// Told of a snapshot that every worker decides by, with the one it was told of before.
    after_adoption: OnceLock<AfterAdoption>,
    /// The last snapshots, newest last, each with the bytes that came for it, which is about what it has of its own: they name who decided about flows and drops.
    past: Mutex<VecDeque<(Arc<Snapshot>, usize)>>,
    /// Notified when `past` gets another.
    past_news: Condvar,
}

/// What is done when every worker has adopted a snapshot: with the one before it for which this was done, and the new one.
pub type AfterAdoption = Box<dyn Fn(Option<&Snapshot>, &Snapshot) + Send + Sync>;

struct State {
    sequence: u64,
    /// What deltas are to.
    newest: Option<Snapshot>,
    /// The last one that [`SnapshotServer::after_adoption`] was called with.
    adopted: Option<Snapshot>,
    status: SnapshotStatus,
    problem: Option<String>,
    /// When it was loaded from disk, and how old it was then.
    loaded: Option<(Instant, Duration)>,
}

/// A snapshot that was announced and lies in memory.
#[derive(Clone)]
struct ReceivedSnapshot {
    generation: u64,
    hash: ContentHash,
    /// Generation that `bytes` are a delta to; None: they are a whole image.
    base: Option<u64>,
    bytes: Vec<u8>,
    cluster: Option<ClusterUid>,
}

#[derive(Default)]
struct PendingWrite {
    newest: Option<Snapshot>,
    /// The cluster that it was made from.
    cluster: Option<ClusterUid>,
    /// What leads to it from one before; empty where that is not known.
    deltas: Vec<Delta>,
    /// Whether control has said since that it is what the source says.
    confirmed: bool,
    closing: bool,
    problem: Option<String>,
}

/// The content of a mutex.
pub fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What is guarded is replaced as a whole, so a panic elsewhere leaves nothing half-done.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl SnapshotServer {
    /// Starts with the snapshot of the process before, where one is on disk.
    pub fn new(
        plane: Arc<Mutex<Dataplane>>,
        last: LastSnapshot,
        workers: u32,
        wake: impl Fn() + Send + Sync + 'static,
    ) -> Self {
        let publication = Self::without_any(plane, last, workers, wake);
        publication.load();
        publication
    }

    /// Starts with the snapshot that was staged for this process; it is kept on disk by [`Self::keep`].
    pub fn staged(
        plane: Arc<Mutex<Dataplane>>,
        last: LastSnapshot,
        workers: u32,
        wake: impl Fn() + Send + Sync + 'static,
        snapshot: Snapshot,
    ) -> Self {
        let publication = Self::without_any(plane, last, workers, wake);
        let bytes = usize::try_from(snapshot.image().bytes()).unwrap_or(usize::MAX);
        if let Err(reason) = publication.install(snapshot, bytes, SnapshotOrigin::Control, None) {
            tracing::warn!(reason, "ignoring the staged snapshot");
            publication.load();
        }
        publication
    }

    fn without_any(
        plane: Arc<Mutex<Dataplane>>,
        last: LastSnapshot,
        workers: u32,
        wake: impl Fn() + Send + Sync + 'static,
    ) -> Self {
        Self {
            plane,
            state: Mutex::new(State {
                sequence: 0,
                newest: None,
                adopted: None,
                status: SnapshotStatus::default(),
                problem: None,
                loaded: None,
            }),
            to_disk: Mutex::new(PendingWrite::default()),
            disk_news: Condvar::new(),
            last,
            workers,
            wake: Box::new(wake),
            after_adoption: OnceLock::new(),
            past: Mutex::default(),
            past_news: Condvar::new(),
        }
    }

    /// Has the staged snapshot, or what has come since, written to disk.
    pub fn keep(&self) {
        let (newest, cluster) = {
            let state = locked(&self.state);
            (state.newest.clone(), state.status.cluster.clone())
        };
        let mut to_disk = locked(&self.to_disk);
        if to_disk.newest.is_none() {
            to_disk.newest = newest;
            to_disk.cluster = cluster;
            self.disk_news.notify_all();
        }
    }

    fn load(&self) {
        let loaded = match self.last.load() {
            Ok(Some(loaded)) => loaded,
            Ok(None) => return,
            Err(reason) => return self.cannot_load(&reason),
        };
        let last_snapshot::Loaded {
            snapshot,
            cluster,
            bytes,
            age,
        } = loaded;
        tracing::info!(
            generation = snapshot.generation().0,
            file = %self.last.file().display(),
            age_seconds = age.map(|age| age.as_secs()),
            "last snapshot loaded"
        );
        match self.install(snapshot, bytes, SnapshotOrigin::Disk, cluster) {
            Ok(()) => locked(&self.state).loaded = age.map(|age| (Instant::now(), age)),
            Err(reason) => self.cannot_load(&reason),
        }
    }

    fn cannot_load(&self, error: &dyn std::fmt::Display) {
        let problem = format!(
            "the last snapshot {} cannot be used ({error}): pod traffic waits for control",
            self.last.file().display()
        );
        tracing::warn!("{problem}");
        locked(&self.state).problem = Some(problem);
    }

    /// Publishes. Refuses what is not above the generation in force: two clients may have been found in order at the
    /// same time, and flows that one snapshot allowed would be taken for allowed by another of the same generation.
    fn install(
        &self,
        snapshot: Snapshot,
        bytes: usize,
        origin: SnapshotOrigin,
        cluster: Option<ClusterUid>,
    ) -> Result<(), String> {
        let mut state = locked(&self.state);
        above(snapshot.generation().0, state.status.generation)?;
        state.status = SnapshotStatus {
            generation: snapshot.generation().0,
            hash: Some(ContentHash(snapshot.hash())),
            bytes: snapshot.image().bytes(),
            origin,
            cluster,
            age_seconds: None,
            adoption_micros: None,
            accepted: state.status.accepted + u64::from(origin == SnapshotOrigin::Control),
            refused: state.status.refused,
        };
        state.problem = None;
        state.newest = Some(snapshot.clone());
        self.remember(&snapshot, bytes);
        state.sequence = locked(&self.plane).snapshots.publish(snapshot);
        Ok(())
    }

    /// Keeps a snapshot for what it decides. Successors by delta share their tables; whole images do not, so that few of
    /// those are kept.
    fn remember(&self, snapshot: &Snapshot, bytes: usize) {
        let mut past = locked(&self.past);
        past.push_back((Arc::new(snapshot.clone()), bytes));
        self.past_news.notify_all();
        let mut own: usize = past.iter().map(|(_, bytes)| bytes).sum();
        own -= bytes;
        while past.len() > REMEMBERED || (past.len() > 1 && own > REMEMBERED_BYTES) {
            own -= past.pop_front().map_or(0, |(_, bytes)| bytes);
        }
    }

    /// The snapshot that a predicate on generations chooses, where it is still there; the newest of several.
    pub fn remembered(&self, chosen: impl Fn(u64) -> bool) -> Option<Arc<Snapshot>> {
        let past = locked(&self.past);
        let found = past.iter().rev().find(|(it, _)| chosen(it.generation().0));
        found.map(|(snapshot, _)| Arc::clone(snapshot))
    }

    /// Waits up to `timeout` for a snapshot of another generation than this.
    pub fn wait_for_other_than(&self, generation: u64, timeout: Duration) {
        let unchanged = |past: &mut VecDeque<(Arc<Snapshot>, usize)>| {
            past.back()
                .is_none_or(|(newest, _)| newest.generation().0 == generation)
        };
        // A thread that panicked while it held the lock leaves the list as it is.
        drop(
            self.past_news
                .wait_timeout_while(locked(&self.past), timeout, unchanged),
        );
    }

    /// Gets parked workers to look.
    pub fn wake(&self) {
        (self.wake)();
    }

    /// Takes a snapshot over; the workers now have to adopt it.
    fn accept(&self, announced: ReceivedSnapshot) -> Result<(), String> {
        let taken = self.open(&announced).and_then(|snapshot| {
            let (bytes, cluster) = (announced.bytes.len(), announced.cluster.clone());
            self.install(snapshot.clone(), bytes, SnapshotOrigin::Control, cluster)?;
            Ok(snapshot)
        });
        match taken {
            Ok(snapshot) => {
                (self.wake)();
                let mut to_disk = locked(&self.to_disk);
                to_disk.newest = Some(snapshot);
                to_disk.cluster = announced.cluster;
                // More than a disk that hangs is waited for: then the whole one is written.
                if to_disk.deltas.len() >= MAX_DELTAS {
                    to_disk.deltas.clear();
                }
                match announced.base {
                    Some(base) => to_disk.deltas.push(Delta {
                        base,
                        generation: announced.generation,
                        bytes: announced.bytes,
                    }),
                    None => to_disk.deltas.clear(),
                }
                self.disk_news.notify_all();
                Ok(())
            }
            Err(reason) => {
                locked(&self.state).status.refused += 1;
                Err(reason)
            }
        }
    }

    fn open(&self, announced: &ReceivedSnapshot) -> Result<Snapshot, String> {
        let ReceivedSnapshot {
            generation,
            hash,
            base,
            ref bytes,
            cluster: _,
        } = *announced;
        let newest = {
            let state = locked(&self.state);
            above(generation, state.status.generation)?;
            state.newest.clone()
        };
        let snapshot = match (base, newest) {
            (None, _) => Snapshot::open(bytes).map_err(|error| format!("the image is not valid: {error}")),
            (Some(base), Some(newest)) if newest.generation().0 == base => newest
                .apply(bytes)
                .map_err(|error| format!("the delta to generation {base} cannot be applied: {error}")),
            (Some(base), _) => Err(format!("a delta to generation {base}, which is not in force")),
        }?;
        if snapshot.generation().0 != generation {
            return Err(format!(
                "announced as generation {generation}, but the image says {}",
                snapshot.generation().0
            ));
        }
        if snapshot.hash() != hash.0 {
            return Err("the image's hash is not the announced one".to_owned());
        }
        Ok(snapshot)
    }

    /// Has something done whenever every worker has adopted a snapshot, before control hears of it. At once where there is one.
    pub fn after_adoption(&self, action: AfterAdoption) {
        let _ = self.after_adoption.set(action); // once in a process
        let began = Instant::now();
        let generation = locked(&self.state).status.generation;
        if generation != 0 {
            (self.wake)();
            self.adopted(generation, began);
        }
    }

    fn follow_adoption(&self, state: &mut State) {
        if let (Some(action), Some(newest)) = (self.after_adoption.get(), &state.newest) {
            action(state.adopted.as_ref(), newest);
            state.adopted = Some(newest.clone());
        }
    }

    /// Waits until every worker decides by this generation or a newer one: the time since `since`, in microseconds.
    /// None where one does not in time.
    fn adopted(&self, generation: u64, since: Instant) -> Option<u64> {
        let deadline = Instant::now() + ADOPTION_LIMIT;
        for look in 0_u32.. {
            {
                let mut state = locked(&self.state);
                let mut plane = locked(&self.plane);
                if plane.snapshots.all_adopted(state.sequence) {
                    self.follow_adoption(&mut state);
                    let micros = since.elapsed().as_micros() as u64;
                    if state.status.generation == generation {
                        state.status.adoption_micros = Some(micros);
                    }
                    plane.snapshots.reclaim();
                    return Some(micros);
                }
            }
            if look < ADOPTION_YIELDS {
                std::thread::yield_now();
            } else if Instant::now() > deadline {
                break;
            } else {
                std::thread::sleep(ADOPTION_POLL);
            }
        }
        None
    }

    /// For the status.
    pub fn status(&self) -> SnapshotStatus {
        let state = locked(&self.state);
        let age = state
            .loaded
            .filter(|_| state.status.origin == SnapshotOrigin::Disk);
        SnapshotStatus {
            age_seconds: age.map(|(at, age)| (at.elapsed() + age).as_secs_f64()),
            ..state.status.clone()
        }
    }

    /// The snapshot of this generation is what the source says, which is of this cluster.
    fn confirm(&self, generation: u64, cluster: Option<ClusterUid>) {
        let rewrite = {
            let mut state = locked(&self.state);
            if state.status.generation != generation {
                return;
            }
            // One that was staged came without.
            let differs = state.status.cluster != cluster;
            state.status.cluster.clone_from(&cluster);
            // It was on the disk, and is what control would have sent.
            state.status.origin = SnapshotOrigin::Control;
            state.newest.clone().filter(|_| differs)
        };
        let mut to_disk = locked(&self.to_disk);
        to_disk.confirmed = true;
        // A newer one that waits to be written has its own.
        let waiting = to_disk.newest.as_ref();
        if let Some(snapshot) = rewrite
            && waiting.is_none_or(|it| it.generation().0 <= generation)
        {
            to_disk.newest = Some(snapshot);
            to_disk.cluster = cluster;
            to_disk.deltas.clear();
        }
        self.disk_news.notify_all();
    }

    /// What is wrong, in words.
    pub fn alarms(&self) -> Vec<String> {
        let mut alarms: Vec<String> = locked(&self.state).problem.iter().cloned().collect();
        alarms.extend(locked(&self.to_disk).problem.iter().cloned());
        alarms
    }

    /// Keeps the newest snapshot on disk until [`Self::close`]: appends what changes it, and writes it whole now and then.
    /// For a thread of its own.
    pub fn keep_on_disk(&self) {
        let mut disk = SnapshotWriter {
            last: &self.last,
            kept: None,
            whole_at: Instant::now(),
            behind: None,
            cluster: None,
        };
        let mut to_disk = locked(&self.to_disk);
        loop {
            let (newest, deltas) = (to_disk.newest.take(), std::mem::take(&mut to_disk.deltas));
            let (confirmed, closing) = (std::mem::take(&mut to_disk.confirmed), to_disk.closing);
            if newest.is_some() || confirmed || disk.is_due(closing) {
                if newest.is_some() {
                    disk.cluster.clone_from(&to_disk.cluster);
                }
                drop(to_disk);
                let done = disk.keep(newest, &deltas, confirmed, closing);
                let problem = done.err().map(|error| {
                    format!(
                        "the snapshot cannot be written to {} ({error}): a restart without control would begin without policies",
                        self.last.file().display()
                    )
                });
                if let Some(problem) = &problem {
                    tracing::warn!("{problem}");
                }
                to_disk = locked(&self.to_disk);
                if problem.is_some() || disk.kept.is_some() {
                    to_disk.problem = problem;
                }
                if closing && to_disk.newest.is_none() {
                    return;
                }
                // So that changes that follow each other are written together.
                to_disk = self
                    .disk_news
                    .wait_timeout_while(to_disk, APPEND_PAUSE, |to_disk| !to_disk.closing)
                    .unwrap_or_else(PoisonError::into_inner)
                    .0;
            } else if closing {
                return;
            } else {
                let idle = |to_disk: &mut PendingWrite| {
                    to_disk.newest.is_none() && !to_disk.confirmed && !to_disk.closing
                };
                to_disk = match disk.until_due() {
                    Some(left) => {
                        let waited = self.disk_news.wait_timeout_while(to_disk, left, idle);
                        waited.unwrap_or_else(PoisonError::into_inner).0
                    }
                    None => self
                        .disk_news
                        .wait_while(to_disk, idle)
                        .unwrap_or_else(PoisonError::into_inner),
                };
            }
        }
    }

    /// Lets [`Self::keep_on_disk`] write what is left and return.
    pub fn close(&self) {
        locked(&self.to_disk).closing = true;
        self.disk_news.notify_all();
    }
}

/// The last snapshot's file and what of it is to be done.
struct SnapshotWriter<'a> {
    last: &'a LastSnapshot,
    kept: Option<SnapshotFile>,
    /// When the whole snapshot may be written next.
    whole_at: Instant,
    /// The newest one, where the file has it as changes of another alone: a restart has to apply each.
    behind: Option<Snapshot>,
    /// The cluster that the newest one was made from.
    cluster: Option<ClusterUid>,
}

impl SnapshotWriter<'_> {
    fn keep(
        &mut self,
        newest: Option<Snapshot>,
        deltas: &[Delta],
        confirmed: bool,
        closing: bool,
    ) -> std::io::Result<()> {
        if let Some(snapshot) = newest {
            let generation = snapshot.generation().0;
            self.behind = Some(snapshot);
            let may_append = !closing && Instant::now() < self.whole_at && !deltas.is_empty();
            // The head says of which cluster all of it is.
            let appends = |kept: &mut SnapshotFile| may_append && kept.cluster() == self.cluster.as_ref();
            if let Some(mut kept) = self.kept.take_if(appends) {
                // One that fails is not gone on with.
                let appended = kept.append(deltas)? && kept.generation() == generation;
                self.kept = appended.then_some(kept);
            } else {
                self.kept = None;
            }
        }
        let whole = self.kept.is_none() || closing || Instant::now() >= self.whole_at;
        if let Some(snapshot) = self.behind.take_if(|_| whole) {
            let began = Instant::now();
            let written = self.last.write(&snapshot, self.cluster.as_ref());
            self.whole_at = Instant::now() + WRITE_PAUSE.max(began.elapsed() * WRITE_SHARE);
            match written {
                Ok(kept) => self.kept = Some(kept),
                Err(error) => {
                    self.kept = None;
                    self.behind = Some(snapshot);
                    return Err(error);
                }
            }
        } else if confirmed && let Some(kept) = &self.kept {
            kept.confirm()?;
        }
        Ok(())
    }

    /// Whether the whole snapshot is to be written though there is nothing new.
    fn is_due(&self, closing: bool) -> bool {
        self.behind.is_some() && (closing || Instant::now() >= self.whole_at)
    }

    fn until_due(&self) -> Option<Duration> {
        let _ = self.behind.as_ref()?;
        Some(self.whole_at.saturating_duration_since(Instant::now()))
    }
}

fn above(generation: u64, newest: u64) -> Result<(), String> {
    if generation > newest {
        return Ok(());
    }
    Err(format!(
        "generation {generation} is not above {newest}, which is in force"
    ))
}

/// Answers the status of the dataplane.
pub type StatusSource = Arc<dyn Fn() -> DataplaneStatus + Send + Sync>;

/// Answers which flows there are.
pub type FlowSource = Arc<dyn Fn(&FlowFilter, Option<FlowCursor>) -> FlowPage + Send + Sync>;

/// Answers which pods the CNI plugin started.
pub type PodStartSource = Arc<dyn Fn() -> Vec<PodStart> + Send + Sync>;

/// What clients may ask for besides snapshots.
#[derive(Clone)]
pub struct Sources {
    /// With [`Request::Status`].
    pub status: StatusSource,
    /// With [`Request::Flows`].
    pub flows: FlowSource,
    /// With [`Request::Hello`].
    pub pod_starts: PodStartSource,
}

/// Listens, and serves each client on a thread of its own. Returns at once.
pub fn serve(
    socket: &Path,
    publication: Arc<SnapshotServer>,
    sources: Sources,
    essential: &Essential,
) -> Result<(), ProtocolError> {
    let listener = Listener::bind(socket)?;
    essential.thread("rw-socket", move || accept(&listener, &publication, &sources))?;
    Ok(())
}

/// As [`serve`], once `word` has come, which answers whether it will ever: until then nobody can connect.
///
/// # Errors
/// There is no thread to be had.
pub fn serve_after(
    word: impl FnOnce() -> bool + Send + 'static,
    socket: &Path,
    publication: Arc<SnapshotServer>,
    sources: Sources,
    essential: &Essential,
) -> std::io::Result<()> {
    let socket = socket.to_owned();
    essential.thread("rw-socket", move || {
        if !word() {
            return;
        }
        match Listener::bind(&socket) {
            Ok(listener) => accept(&listener, &publication, &sources),
            Err(error) => tracing::error!("{error}"),
        }
    })?;
    Ok(())
}

fn accept(listener: &Listener, publication: &Arc<SnapshotServer>, sources: &Sources) {
    let clients = Arc::new(AtomicUsize::new(0));
    loop {
        let connection = match listener.accept() {
            Ok(connection) => connection,
            Err(error) => {
                tracing::warn!(%error, "cannot accept a client");
                std::thread::sleep(Duration::from_millis(100));
                continue;
            }
        };
        if clients.fetch_add(1, Ordering::Relaxed) >= MAX_CLIENTS {
            clients.fetch_sub(1, Ordering::Relaxed);
            continue; // closed by dropping it
        }
        let place = ClientSlot(Arc::clone(&clients));
        let (publication, sources) = (Arc::clone(publication), sources.clone());
        let thread = std::thread::Builder::new().name("rw-client".to_owned());
        let client = move || {
            let _place = place;
            if let Err(error) = serve_client(&connection, &publication, &sources) {
                tracing::debug!(%error, "client left");
            }
        };
        if let Err(error) = thread.spawn(client) {
            tracing::warn!(%error, "cannot serve a client");
        }
    }
}

/// A client's place among [`CLIENTS`]; free again when it leaves, however it does.
struct ClientSlot(Arc<AtomicUsize>);

impl Drop for ClientSlot {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

fn serve_client(
    connection: &Connection,
    publication: &SnapshotServer,
    sources: &Sources,
) -> Result<(), ProtocolError> {
    connection.set_send_timeout(Some(Duration::from_secs(5)))?;
    let mut greeted = false;
    loop {
        let Received { message, fd } = match connection.receive::<Request>() {
            Ok(received) => received,
            Err(error @ ProtocolError::Malformed(_)) => {
                return refuse(connection, &error.to_string());
            }
            Err(error) => return Err(error),
        };
        match message {
            Request::Hello { version: VERSION } => {
                greeted = true;
                let newest = publication.status();
                connection.send(
                    &Reply::Hello {
                        version: VERSION,
                        generation: newest.generation,
                        hash: newest.hash,
                        cluster: newest.cluster,
                        workers: publication.workers,
                        pod_starts: (sources.pod_starts)(),
                    },
                    None,
                )?;
            }
            Request::Hello { version } => {
                return refuse(
                    connection,
                    &format!(
                        "version {version} of the messages, and this is {VERSION}: both processes must come from one release"
                    ),
                );
            }
            _ if !greeted => return refuse(connection, "say hello first"),
            Request::Publish {
                generation,
                hash,
                bytes,
                base,
                cluster,
            } => {
                let arrived = Instant::now();
                let announced = fd
                    .ok_or_else(|| "no memory came with the announcement".to_owned())
                    .and_then(|fd| read_image(fd, bytes).map_err(|error| error.to_string()))
                    .map(|bytes| ReceivedSnapshot {
                        generation,
                        hash,
                        base,
                        bytes,
                        cluster,
                    });
                publish(connection, publication, generation, announced, arrived)?;
            }
            Request::Current { generation, cluster } => publication.confirm(generation, cluster),
            Request::Flows { filter, cursor } => connection.send(
                &Reply::Flows {
                    page: Box::new((sources.flows)(&filter, cursor)),
                },
                None,
            )?,
            Request::Status => connection.send(
                &Reply::Status {
                    status: Box::new((sources.status)()),
                },
                None,
            )?,
        }
    }
}

fn publish(
    connection: &Connection,
    publication: &SnapshotServer,
    generation: u64,
    announced: Result<ReceivedSnapshot, String>,
    arrived: Instant,
) -> Result<(), ProtocolError> {
    let accepted = announced.and_then(|announced| publication.accept(announced));
    if let Err(reason) = accepted {
        tracing::warn!(generation, reason, "snapshot refused");
        return connection.send(&Reply::Refused { generation, reason }, None);
    }
    connection.send(&Reply::Accepted { generation }, None)?;
    match publication.adopted(generation, arrived) {
        Some(micros) => {
            // Control says it, with what it brings.
            tracing::debug!(generation, micros, "snapshot adopted");
            connection.send(&Reply::Adopted { generation, micros }, None)
        }
        None => {
            tracing::error!(generation, "a worker has not adopted the snapshot");
            Ok(())
        }
    }
}

fn refuse(connection: &Connection, message: &str) -> Result<(), ProtocolError> {
    connection.send(
        &Reply::Error {
            message: message.to_owned(),
        },
        None,
    )
}

#[cfg(test)]
#[allow(clippy::unwrap_used)] // a test that panics has failed
mod tests {
    use std::path::PathBuf;

    use ringwall_dataplane::{
        addr::Addr,
        classify::{Generation, Identity, IdentityKind, Image, ImageBuilder, NONE},
        dataplane::DataplaneConfig,
        flow::FlowMemory,
        time::Nanos,
    };

    use super::*;

    const ADDRESS: [u8; 4] = [192, 0, 2, 1];

    fn addr() -> Addr {
        std::net::IpAddr::from(ADDRESS).into()
    }

    /// Images of one node whose epoch is the generation, and the builder that they come from.
    struct Images(ImageBuilder, u32);

    impl Images {
        fn new() -> Self {
            let mut builder = ImageBuilder::new(Generation(0));
            builder.node("node");
            let identity = builder.identity(Self::node(0));
            builder.host(addr(), identity);
            Self(builder, identity)
        }

        fn node(epoch: u64) -> Identity {
            Identity {
                kind: IdentityKind::Node,
                endpoint: NONE,
                node: 0,
                peer_class: 0,
                ingress: 0,
                egress: 0,
                epoch,
            }
        }

        fn next(&mut self, generation: u64) -> Image {
            self.0.set_identity(self.1, Self::node(generation));
            self.0.image(Generation(generation), [7; 32]).unwrap()
        }
    }

    fn announced(image: &Image, base: Option<&Image>) -> ReceivedSnapshot {
        ReceivedSnapshot {
            generation: image.generation().0,
            hash: ContentHash(image.hash()),
            base: base.map(|base| base.generation().0),
            bytes: base.map_or_else(|| image.to_bytes(), |base| image.delta_since(base).unwrap()),
            cluster: None,
        }
    }

    fn publication(file: PathBuf) -> SnapshotServer {
        let memory = FlowMemory::private(1, 1).unwrap();
        let (plane, _seats) = Dataplane::new(DataplaneConfig::default(), memory, Nanos(0)).unwrap();
        let last = LastSnapshot::new(file, last_snapshot::SnapshotInputs::default(), None);
        SnapshotServer::new(Arc::new(Mutex::new(plane)), last, 1, || {})
    }

    /// Generation in force and the epoch of the node by it.
    fn in_force(publication: &SnapshotServer) -> (u64, u64) {
        let plane = locked(&publication.plane);
        let snapshot = plane.snapshots.current().unwrap();
        (snapshot.generation().0, snapshot.identify(addr()).epoch)
    }

    #[test]
    fn of_two_clients_with_one_generation_the_second_is_refused_even_if_both_were_in_order() {
        let publication = publication(PathBuf::from("/nonexistent/snapshot.img"));
        let mut images = Images::new();
        let five = announced(&images.next(5), None);
        let both = [(); 2].map(|()| publication.open(&five).unwrap());
        let answers = both.map(|snapshot| {
            publication
                .install(snapshot, 1, SnapshotOrigin::Control, None)
                .is_ok()
        });
        assert_eq!(answers, [true, false]);
        assert!(publication.accept(five).is_err());
        assert!(publication.accept(announced(&images.next(6), None)).is_ok());
        let status = publication.status();
        assert_eq!((status.generation, status.accepted, status.refused), (6, 2, 1));
    }

    #[test]
    fn the_last_snapshots_are_remembered_as_far_as_they_cost_little() {
        let publication = publication(PathBuf::from("/nonexistent/snapshot.img"));
        let mut images = Images::new();
        let snapshots: Vec<Snapshot> = (0..REMEMBERED as u64 + 3)
            .map(|generation| Snapshot::from_image(&images.next(generation + 1)))
            .collect();
        let is = |generation| {
            publication
                .remembered(|it| it == generation)
                .map(|it| it.generation().0)
        };
        for snapshot in &snapshots {
            publication.remember(snapshot, 1);
        }
        assert_eq!([is(1), is(3), is(4), is(67)], [None, None, Some(4), Some(67)]);
        // Whole images share nothing: two of more than the limit are not kept.
        publication.remember(&snapshots[0], REMEMBERED_BYTES);
        assert_eq!([is(1), is(67)], [Some(1), Some(67)]);
        publication.remember(&snapshots[1], REMEMBERED_BYTES + 1);
        assert_eq!([is(2), is(1), is(67)], [Some(2), Some(1), None]);
        publication.remember(&snapshots[2], 1);
        assert_eq!([is(3), is(2)], [Some(3), None]);
    }

    #[test]
    fn a_delta_changes_what_is_in_force_and_no_other() {
        let publication = publication(PathBuf::from("/nonexistent/snapshot.img"));
        let mut images = Images::new();
        let [one, two, three, four] = [1, 2, 3, 4].map(|generation| images.next(generation));
        // Nothing is in force yet.
        let error = publication.accept(announced(&two, Some(&one))).unwrap_err();
        assert!(error.contains("not in force"), "{error}");
        publication.accept(announced(&one, None)).unwrap();
        publication.accept(announced(&two, Some(&one))).unwrap();
        assert_eq!(in_force(&publication), (2, 2));
        // A base that is gone, one that is not there yet.
        for base in [&one, &three] {
            let error = publication.accept(announced(&four, Some(base))).unwrap_err();
            assert!(error.contains("not in force"), "{error}");
        }
        // The generation is right, the image another's: control lost its state, and counts as before.
        let other = Images::new().next(2);
        let mut stranger = Images::new();
        stranger.0.node("another");
        let (other_two, other_three) = (stranger.next(2), stranger.next(3));
        assert!(
            publication
                .accept(announced(&other_three, Some(&other_two)))
                .is_err()
        );
        assert_eq!(
            other.to_bytes(),
            two.to_bytes(),
            "equal images may stand in for each other"
        );
        assert_eq!(in_force(&publication), (2, 2));
        publication.accept(announced(&four, Some(&two))).unwrap();
        assert_eq!(in_force(&publication), (4, 4));
        assert_eq!(publication.status().bytes, four.bytes());
    }

    #[test]
    fn a_corrupted_delta_changes_nothing() {
        let publication = publication(PathBuf::from("/nonexistent/snapshot.img"));
        let mut images = Images::new();
        let (one, two) = (images.next(1), images.next(2));
        publication.accept(announced(&one, None)).unwrap();
        let mut delta = announced(&two, Some(&one));
        for at in 0..delta.bytes.len() {
            delta.bytes[at] ^= 1;
            assert!(publication.accept(delta.clone()).is_err(), "byte {at}");
            delta.bytes[at] ^= 1;
        }
        assert_eq!(in_force(&publication), (1, 1));
        publication.accept(delta.clone()).unwrap();
        assert_eq!(in_force(&publication), (2, 2));
    }

    #[test]
    fn after_deltas_a_restart_finds_the_whole_image() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("snapshot.img");
        let mut images = Images::new();
        let (one, two) = (images.next(1), images.next(2));
        let before = Arc::new(publication(file.clone()));
        let keeper = {
            let before = Arc::clone(&before);
            std::thread::spawn(move || before.keep_on_disk())
        };
        before.accept(announced(&one, None)).unwrap();
        before.accept(announced(&two, Some(&one))).unwrap();
        before.close();
        keeper.join().unwrap();
        let after = publication(file.clone());
        assert_eq!(after.status().origin, SnapshotOrigin::Disk);
        assert!(after.status().age_seconds.is_some());
        assert_eq!(in_force(&after), (2, 2));
        after.confirm(1, None);
        assert_eq!(after.status().origin, SnapshotOrigin::Disk, "another generation");
        after.confirm(2, None);
        assert_eq!(after.status().origin, SnapshotOrigin::Control);
        assert_eq!(
            after.status().age_seconds,
            None,
            "control says that it is current"
        );
        // Control still has what it had: it goes on with deltas.
        after.accept(announced(&images.next(3), Some(&two))).unwrap();
        assert_eq!(in_force(&after), (3, 3));
    }

    #[test]
    fn the_file_says_of_which_cluster_the_newest_snapshot_is() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("snapshot.img");
        let uid = |text: &str| ClusterUid::try_from(text.to_owned()).ok();
        let of = |image: &Image, base: Option<&Image>, cluster: &str| ReceivedSnapshot {
            cluster: uid(cluster),
            ..announced(image, base)
        };
        let mut images = Images::new();
        let [one, two, three] = [1, 2, 3].map(|generation| images.next(generation));
        let publication = Arc::new(publication(file.clone()));
        let keeper = {
            let publication = Arc::clone(&publication);
            std::thread::spawn(move || publication.keep_on_disk())
        };
        let until_on_disk = |generation: u64, cluster: Option<ClusterUid>| {
            let last = LastSnapshot::new(file.clone(), last_snapshot::SnapshotInputs::default(), None);
            let until = Instant::now() + Duration::from_secs(20);
            loop {
                let found = last.load().unwrap();
                let found = found.map(|it| (it.snapshot.generation().0, it.cluster));
                if found == Some((generation, cluster.clone())) {
                    return;
                }
                assert_ne!(
                    found,
                    Some((3, uid("old"))),
                    "appended to what is of another cluster"
                );
                assert!(Instant::now() < until, "{found:?}");
                std::thread::sleep(Duration::from_millis(1));
            }
        };
        publication.accept(of(&one, None, "old")).unwrap();
        until_on_disk(1, uid("old"));
        publication.accept(of(&two, Some(&one), "old")).unwrap();
        until_on_disk(2, uid("old"));
        publication.accept(of(&three, Some(&two), "new")).unwrap();
        until_on_disk(3, uid("new"));
        assert_eq!(publication.status().cluster, uid("new"));
        // Learnt later, as with one that was staged.
        publication.confirm(2, uid("of another generation"));
        publication.confirm(3, uid("newest"));
        until_on_disk(3, uid("newest"));
        publication.close();
        keeper.join().unwrap();
        until_on_disk(3, uid("newest"));
    }

    #[test]
    fn a_change_is_on_disk_within_a_second() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("snapshot.img");
        let mut images = Images::new();
        let publication = Arc::new(publication(file.clone()));
        let keeper = {
            let publication = Arc::clone(&publication);
            std::thread::spawn(move || publication.keep_on_disk())
        };
        let on_disk = |wanted: u64| {
            let last = LastSnapshot::new(file.clone(), last_snapshot::SnapshotInputs::default(), None);
            let began = Instant::now();
            loop {
                let loaded = last.load().unwrap();
                if loaded.is_some_and(|loaded| loaded.snapshot.generation().0 == wanted) {
                    return began.elapsed();
                }
                assert!(began.elapsed() < Duration::from_secs(20), "never {wanted}");
                std::thread::sleep(Duration::from_millis(1));
            }
        };
        let mut before = images.next(1);
        publication.accept(announced(&before, None)).unwrap();
        on_disk(1);
        // The whole one is written once a second at most; the changes are there before.
        let began = Instant::now();
        for generation in 2..=5 {
            let next = images.next(generation);
            publication.accept(announced(&next, Some(&before))).unwrap();
            on_disk(generation);
            before = next;
        }
        let took = began.elapsed();
        assert!(
            took < Duration::from_secs(3),
            "{took:?} for four changes: each waited for a whole one"
        );
        publication.close();
        keeper.join().unwrap();
        assert_eq!(on_disk(5).as_secs(), 0);
    }
}
