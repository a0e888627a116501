//! Takes snapshots in, hands them to the workers, and answers on the dataplane's socket.
//!
//! Nothing here runs on a worker's CPU share: an image is copied out of the sender's memory, validated, swapped in by
//! [`rcu::Publisher`](ringwall_dataplane::rcu::Publisher), and freed here when every worker has moved on.

use std::{
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use ringwall_dataplane::{classify::Snapshot, plane::Plane};

use crate::protocol::{
    Connection, ContentHash, DataplaneStatus, Listener, ProtocolError, Received, Reply, Request,
    SnapshotOrigin, SnapshotStatus, VERSION, read_image,
};

/// How often it is looked whether every worker has adopted.
const ADOPTION_POLL: Duration = Duration::from_micros(50);
/// How long adoption is waited for; a worker that takes longer is the watchdog's business.
const ADOPTION_LIMIT: Duration = Duration::from_secs(10);
/// Least time between two writes of the snapshot to disk.
const WRITE_PAUSE: Duration = Duration::from_secs(1);
/// Clients at a time.
const CLIENTS: usize = 32;

/// The newest snapshot and the way to the workers.
pub struct Publication {
    plane: Arc<Mutex<Plane>>,
    state: Mutex<State>,
    to_disk: Mutex<ToDisk>,
    disk_news: Condvar,
    file: PathBuf,
    workers: u32,
    /// Gets parked workers to look.
    wake: Box<dyn Fn() + Send + Sync>,
}

struct State {
    sequence: u64,
    status: SnapshotStatus,
    problem: Option<String>,
}

#[derive(Default)]
struct ToDisk {
    newest: Option<Vec<u8>>,
    closing: bool,
    problem: Option<String>,
}

/// The content of a mutex.
pub fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What is guarded is replaced as a whole, so a panic elsewhere leaves nothing half-done.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Publication {
    /// Starts with the snapshot of the process before, where one is on disk.
    pub fn new(
        plane: Arc<Mutex<Plane>>,
        file: PathBuf,
        workers: u32,
        wake: impl Fn() + Send + Sync + 'static,
    ) -> Self {
        let publication = Self {
            plane,
            state: Mutex::new(State {
                sequence: 0,
                status: SnapshotStatus::default(),
                problem: None,
            }),
            to_disk: Mutex::new(ToDisk::default()),
            disk_news: Condvar::new(),
            file,
            workers,
            wake: Box::new(wake),
        };
        publication.load();
        publication
    }

    fn load(&self) {
        let bytes = match std::fs::read(&self.file) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return,
            Err(error) => return self.cannot_load(&error),
        };
        match Snapshot::open(&bytes) {
            Ok(snapshot) => {
                tracing::info!(generation = snapshot.generation().0, file = %self.file.display(), "last snapshot loaded");
                if let Err(reason) = self.install(snapshot, bytes.len() as u64, SnapshotOrigin::Disk) {
                    self.cannot_load(&reason);
                }
            }
            Err(error) => self.cannot_load(&error),
        }
    }

    fn cannot_load(&self, error: &dyn std::fmt::Display) {
        let problem = format!(
            "the last snapshot {} cannot be used ({error}): pod traffic waits for control",
            self.file.display()
        );
        tracing::warn!("{problem}");
        locked(&self.state).problem = Some(problem);
    }

    /// Publishes. Refuses what is not above the generation in force: two clients may have been found in order at the
    /// same time, and flows that one snapshot allowed would be taken for allowed by another of the same generation.
    fn install(&self, snapshot: Snapshot, bytes: u64, origin: SnapshotOrigin) -> Result<(), String> {
        let mut state = locked(&self.state);
        above(snapshot.generation().0, state.status.generation)?;
        state.status = SnapshotStatus {
            generation: snapshot.generation().0,
            hash: Some(ContentHash(snapshot.hash())),
            bytes,
            origin,
            adoption_micros: None,
            accepted: state.status.accepted + u64::from(origin == SnapshotOrigin::Control),
            refused: state.status.refused,
        };
        state.problem = None;
        state.sequence = locked(&self.plane).snapshots.publish(snapshot);
        Ok(())
    }

    /// Takes an image; the answer is what the workers now have to adopt.
    fn accept(&self, generation: u64, hash: ContentHash, image: Vec<u8>) -> Result<(), String> {
        let bytes = image.len() as u64;
        let result = self
            .check(generation, hash, &image)
            .and_then(|snapshot| self.install(snapshot, bytes, SnapshotOrigin::Control));
        match result {
            Ok(()) => {
                (self.wake)();
                let mut to_disk = locked(&self.to_disk);
                to_disk.newest = Some(image);
                self.disk_news.notify_all();
                Ok(())
            }
            Err(reason) => {
                locked(&self.state).status.refused += 1;
                Err(reason)
            }
        }
    }

    fn check(&self, generation: u64, hash: ContentHash, image: &[u8]) -> Result<Snapshot, String> {
        above(generation, locked(&self.state).status.generation)?;
        let snapshot = Snapshot::open(image).map_err(|error| format!("the image is not valid: {error}"))?;
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

    /// Waits until every worker decides by this generation or a newer one: the time since `since`, in microseconds.
    /// None where one does not in time.
    fn adopted(&self, generation: u64, since: Instant) -> Option<u64> {
        let deadline = Instant::now() + ADOPTION_LIMIT;
        loop {
            {
                let mut state = locked(&self.state);
                let mut plane = locked(&self.plane);
                if plane.snapshots.all_adopted(state.sequence) {
                    let micros = since.elapsed().as_micros() as u64;
                    if state.status.generation == generation {
                        state.status.adoption_micros = Some(micros);
                    }
                    plane.snapshots.reclaim();
                    return Some(micros);
                }
            }
            if Instant::now() > deadline {
                return None;
            }
            std::thread::sleep(ADOPTION_POLL);
        }
    }

    /// For the status.
    pub fn status(&self) -> SnapshotStatus {
        locked(&self.state).status.clone()
    }

    /// What is wrong, in words.
    pub fn alarms(&self) -> Vec<String> {
        let mut alarms: Vec<String> = locked(&self.state).problem.iter().cloned().collect();
        alarms.extend(locked(&self.to_disk).problem.iter().cloned());
        alarms
    }

    /// Writes the newest snapshot to disk whenever there is one, until [`Self::close`]. For a thread of its own.
    pub fn keep_on_disk(&self) {
        let mut to_disk = locked(&self.to_disk);
        loop {
            if let Some(image) = to_disk.newest.take() {
                drop(to_disk);
                let problem = super::write_atomically(&self.file, &image).err().map(|error| {
                    format!(
                        "the snapshot cannot be written to {} ({error}): a restart without control would begin without policies",
                        self.file.display()
                    )
                });
                if let Some(problem) = &problem {
                    tracing::warn!("{problem}");
                }
                to_disk = locked(&self.to_disk);
                to_disk.problem = problem;
                if !to_disk.closing {
                    to_disk = self
                        .disk_news
                        .wait_timeout_while(to_disk, WRITE_PAUSE, |to_disk| !to_disk.closing)
                        .unwrap_or_else(PoisonError::into_inner)
                        .0;
                }
            } else if to_disk.closing {
                return;
            } else {
                to_disk = self
                    .disk_news
                    .wait(to_disk)
                    .unwrap_or_else(PoisonError::into_inner);
            }
        }
    }

    /// Lets [`Self::keep_on_disk`] write what is left and return.
    pub fn close(&self) {
        locked(&self.to_disk).closing = true;
        self.disk_news.notify_all();
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

/// Listens, and serves each client on a thread of its own. Returns at once.
pub fn serve(
    socket: &Path,
    publication: Arc<Publication>,
    status: StatusSource,
) -> Result<(), ProtocolError> {
    let listener = Listener::bind(socket)?;
    let clients = Arc::new(AtomicUsize::new(0));
    let serve = move || {
        loop {
            let connection = match listener.accept() {
                Ok(connection) => connection,
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a client");
                    std::thread::sleep(Duration::from_millis(100));
                    continue;
                }
            };
            if clients.fetch_add(1, Ordering::Relaxed) >= CLIENTS {
                clients.fetch_sub(1, Ordering::Relaxed);
                continue; // closed by dropping it
            }
            let (publication, status, left) = (
                Arc::clone(&publication),
                Arc::clone(&status),
                Arc::clone(&clients),
            );
            let thread = std::thread::Builder::new().name("rw-client".to_owned());
            let client = move || {
                if let Err(error) = converse(&connection, &publication, &status) {
                    tracing::debug!(%error, "client left");
                }
                left.fetch_sub(1, Ordering::Relaxed);
            };
            if thread.spawn(client).is_err() {
                clients.fetch_sub(1, Ordering::Relaxed);
            }
        }
    };
    std::thread::Builder::new()
        .name("rw-socket".to_owned())
        .spawn(serve)?;
    Ok(())
}

fn converse(
    connection: &Connection,
    publication: &Publication,
    status: &StatusSource,
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
                        workers: publication.workers,
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
            } => {
                publish(connection, publication, generation, hash, bytes, fd)?;
            }
            Request::Status => connection.send(
                &Reply::Status {
                    status: Box::new(status()),
                },
                None,
            )?,
        }
    }
}

fn publish(
    connection: &Connection,
    publication: &Publication,
    generation: u64,
    hash: ContentHash,
    bytes: u64,
    fd: Option<OwnedFd>,
) -> Result<(), ProtocolError> {
    let arrived = Instant::now();
    let accepted = fd
        .ok_or_else(|| "no memory came with the announcement".to_owned())
        .and_then(|fd| read_image(fd, bytes).map_err(|error| error.to_string()))
        .and_then(|image| publication.accept(generation, hash, image));
    if let Err(reason) = accepted {
        tracing::warn!(generation, reason, "snapshot refused");
        return connection.send(&Reply::Refused { generation, reason }, None);
    }
    connection.send(&Reply::Accepted { generation }, None)?;
    match publication.adopted(generation, arrived) {
        Some(micros) => {
            tracing::info!(generation, micros, "snapshot adopted");
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
    use ringwall_dataplane::{
        classify::{Generation, Identity, IdentityKind, ImageBuilder, NONE},
        flow::FlowMemory,
        plane::PlaneConfig,
        time::Nanos,
    };

    use super::*;

    fn image(generation: u64) -> Vec<u8> {
        let mut image = ImageBuilder::new(Generation(generation));
        let node = image.node("node");
        let identity = image.identity(Identity {
            kind: IdentityKind::Node,
            endpoint: NONE,
            node,
            peer_class: 0,
            ingress: 0,
            egress: 0,
            epoch: 1,
        });
        image.host(std::net::IpAddr::from([192, 0, 2, 1]).into(), identity);
        image.finish([7; 32]).unwrap()
    }

    #[test]
    fn of_two_clients_with_one_generation_the_second_is_refused_even_if_both_were_in_order() {
        let memory = FlowMemory::private(1, 1).unwrap();
        let (plane, _seats) = Plane::new(PlaneConfig::default(), memory, Nanos(0)).unwrap();
        let nowhere = PathBuf::from("/nonexistent/snapshot.img");
        let publication = Publication::new(Arc::new(Mutex::new(plane)), nowhere, 1, || {});
        let both = [(); 2].map(|()| publication.check(5, ContentHash([7; 32]), &image(5)).unwrap());
        let answers = both.map(|snapshot| publication.install(snapshot, 1, SnapshotOrigin::Control).is_ok());
        assert_eq!(answers, [true, false]);
        assert!(publication.accept(5, ContentHash([7; 32]), image(5)).is_err());
        assert!(publication.accept(6, ContentHash([7; 32]), image(6)).is_ok());
        let status = publication.status();
        assert_eq!((status.generation, status.accepted, status.refused), (6, 2, 1));
    }
}
