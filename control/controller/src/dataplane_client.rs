//! The line to the dataplane: hands it snapshots and asks it how it is doing.
//!
//! One task owns the connection and makes it again when it breaks. A snapshot is sent to every connection that does
//! not have it yet, the newest only; while the dataplane looks at one, a newer one waits.
//!
//! What the dataplane accepted last is kept, so that the next snapshot travels as a delta to it: as long as that is
//! shorter, and the dataplane has what it had, which it says when it is greeted. A delta that it refuses for whatever
//! reason is followed by the whole image; only that one's refusal is told.

use std::{
    collections::VecDeque,
    os::fd::AsFd,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use ringwall_dataplane::classify::Image;
use ringwall_messages::{
    ClusterUid, Connection, ContentHash, DataplaneStatus, ProtocolError, Reply, Request, VERSION,
    cni::PodStart, image_memfd,
};
use ringwall_process::essential::Essential;
use tokio::{
    io::unix::AsyncFd,
    sync::{mpsc, oneshot, watch},
    time::{sleep, sleep_until, timeout},
};

/// What happens on the line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The dataplane is there.
    Connected {
        /// Generation of its newest snapshot; 0 for none.
        generation: u64,
        /// That snapshot's hash.
        hash: Option<ContentHash>,
        /// The cluster that snapshot was made from, where that is known.
        cluster: Option<ClusterUid>,
        /// Its workers.
        workers: u32,
        /// The pods of this node that the CNI plugin started.
        pod_starts: Vec<PodStart>,
    },
    /// It is not there any more.
    Disconnected {
        /// Why.
        reason: String,
    },
    /// A snapshot was sent.
    Sent {
        /// Its generation.
        generation: u64,
    },
    /// A snapshot was found valid.
    Accepted {
        /// Its generation.
        generation: u64,
    },
    /// A snapshot was not.
    Refused {
        /// Its generation.
        generation: u64,
        /// Why.
        reason: String,
    },
    /// Every worker decides by the snapshot.
    Adopted {
        /// Its generation.
        generation: u64,
        /// From its arrival to the adoption by the last worker, in microseconds.
        micros: u64,
    },
}

/// How long things may take.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// First pause before connecting again.
    pub retry_first: Duration,
    /// Longest pause before connecting again.
    pub retry_most: Duration,
    /// For an answer of the dataplane; after that the connection is given up.
    pub answer: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            retry_first: Duration::from_millis(20),
            retry_most: Duration::from_secs(1),
            answer: Duration::from_secs(10),
        }
    }
}

type StatusAnswer = oneshot::Sender<Result<DataplaneStatus, String>>;

/// The line. It is cut when this is dropped.
#[derive(Debug)]
pub struct DataplaneClient {
    outgoing: watch::Sender<Option<Outgoing>>,
    questions: mpsc::Sender<StatusAnswer>,
    current: mpsc::Sender<(u64, Option<ClusterUid>)>,
    /// Before it is started.
    line: Option<ClientLoop>,
    task: Option<tokio::task::JoinHandle<()>>,
}

/// A snapshot to be sent.
#[derive(Clone, Debug)]
struct Outgoing {
    image: Image,
    cluster: Option<ClusterUid>,
}

/// Asks the dataplane how it is doing.
#[derive(Clone, Debug)]
pub struct DataplaneInquiry {
    questions: mpsc::Sender<StatusAnswer>,
}

impl DataplaneClient {
    /// Begins to connect to the socket at `path`. Must be called within a tokio runtime.
    pub fn start(
        path: &Path,
        timing: Timing,
        essential: &Essential,
    ) -> (Self, mpsc::UnboundedReceiver<Event>) {
        let (mut publication, events) = Self::prepare(path, timing);
        publication.connect(essential);
        (publication, events)
    }

    /// As [`Self::start`], but nothing is connected before [`Self::connect`].
    pub fn prepare(path: &Path, timing: Timing) -> (Self, mpsc::UnboundedReceiver<Event>) {
        let (outgoing, newest) = watch::channel(None);
        let (questions, asked) = mpsc::channel(16);
        let (current, confirmed) = mpsc::channel(1);
        // Unbounded, but a handful for each snapshot, and read by the one who makes the snapshots.
        let (events, received) = mpsc::unbounded_channel();
        let line = ClientLoop {
            path: path.to_owned(),
            timing,
            newest,
            accepted: None,
            asked,
            confirmed,
            events,
        };
        (
            Self {
                outgoing,
                questions,
                current,
                line: Some(line),
                task: None,
            },
            received,
        )
    }

    /// Begins to connect. Must be called within a tokio runtime.
    pub fn connect(&mut self, essential: &Essential) {
        if let Some(line) = self.line.take() {
            self.task = Some(essential.task("the line to the dataplane", line.run()));
        }
    }

    /// Makes this the newest snapshot, made from a cluster: it is sent as soon as the dataplane has answered for the one
    /// before.
    pub fn publish(&self, image: Image, cluster: Option<ClusterUid>) {
        self.outgoing.send_replace(Some(Outgoing { image, cluster }));
    }

    /// Sends nothing on connections to come until [`Self::publish`] is called again.
    pub fn withdraw(&self) {
        self.outgoing.send_replace(None);
    }

    /// Tells the dataplane that the snapshot of this generation is what the source says now, and of which cluster.
    pub fn confirm(&self, generation: u64, cluster: Option<ClusterUid>) {
        // One that waits to be sent will do.
        let _ = self.current.try_send((generation, cluster));
    }

    /// For those who want to ask the dataplane.
    pub fn inquiry(&self) -> DataplaneInquiry {
        DataplaneInquiry {
            questions: self.questions.clone(),
        }
    }
}

impl Drop for DataplaneClient {
    fn drop(&mut self) {
        if let Some(task) = &self.task {
            task.abort();
        }
    }
}

impl DataplaneInquiry {
    /// Asks; the error says why there is no answer.
    pub async fn status(&self, patience: Duration) -> Result<DataplaneStatus, String> {
        let ask = async {
            let (sender, answer) = oneshot::channel();
            self.questions
                .send(sender)
                .await
                .map_err(|_| "control is ending".to_owned())?;
            answer
                .await
                .map_err(|_| "the connection to the dataplane broke".to_owned())?
        };
        timeout(patience, ask)
            .await
            .map_err(|_| "the dataplane does not answer".to_owned())?
    }
}

#[derive(Debug)]
struct ClientLoop {
    path: PathBuf,
    timing: Timing,
    newest: watch::Receiver<Option<Outgoing>>,
    /// What the dataplane accepted last, on whichever connection.
    accepted: Option<Image>,
    asked: mpsc::Receiver<StatusAnswer>,
    confirmed: mpsc::Receiver<(u64, Option<ClusterUid>)>,
    events: mpsc::UnboundedSender<Event>,
}

/// A connection in use.
struct Session {
    connection: AsyncFd<Connection>,
    /// Generation that the dataplane has, or was offered on this connection.
    offered: u64,
    /// The offer that has not been answered yet.
    offer: Option<Offer>,
    /// Questions sent, in order.
    asked: VecDeque<StatusAnswer>,
}

/// A snapshot that was sent.
struct Offer {
    sent: Outgoing,
    /// Whether it went as a delta.
    is_delta: bool,
    /// By when it must be answered.
    due: Instant,
}

impl ClientLoop {
    async fn run(mut self) {
        let mut pause = self.timing.retry_first;
        let mut logged = None;
        let mut ever = false;
        loop {
            let reason = match self.connect().await {
                Ok(session) => {
                    ever = true;
                    pause = self.timing.retry_first;
                    logged = None;
                    self.serve(session).await.to_string()
                }
                Err(error) => error.to_string(),
            };
            if logged.as_ref() != Some(&reason) {
                if ever {
                    tracing::warn!("not connected to the dataplane: {reason}");
                } else {
                    // `ringwall run` starts control first.
                    tracing::info!("not connected to the dataplane yet: {reason}");
                }
                logged = Some(reason.clone());
            }
            if self.events.send(Event::Disconnected { reason }).is_err() {
                return;
            }
            self.refuse_questions_for(pause).await;
            pause = (pause * 2).min(self.timing.retry_most);
        }
    }

    async fn refuse_questions_for(&mut self, pause: Duration) {
        let end = sleep(pause);
        tokio::pin!(end);
        loop {
            tokio::select! {
                () = &mut end => return,
                question = self.asked.recv() => match question {
                    // Whoever asked may have gone.
                    Some(question) => drop(question.send(Err("the dataplane is not connected".to_owned()))),
                    None => return end.await,
                },
            }
        }
    }

    async fn connect(&mut self) -> Result<Session, ProtocolError> {
        let connection = Connection::connect(&self.path)?;
        connection.set_nonblocking()?;
        // Deprecated for descriptors that may change under the reactor; a Connection owns one for life.
        #[allow(deprecated)]
        let connection = AsyncFd::new(connection)?;
        send(&connection, &Request::Hello { version: VERSION }, None).await?;
        let hello = timeout(self.timing.answer, receive(&connection))
            .await
            .map_err(|_| ProtocolError::TimedOut)??;
        match hello {
            Reply::Hello {
                version: VERSION,
                generation,
                hash,
                cluster,
                workers,
                pod_starts,
            } => {
                // One that began anew, or got a snapshot from elsewhere.
                self.accepted = self.accepted.take().filter(|held| {
                    held.generation().0 == generation && hash == Some(ContentHash(held.hash()))
                });
                // The receiver lives as long as the controller.
                let _ = self.events.send(Event::Connected {
                    generation,
                    hash,
                    cluster,
                    workers,
                    pod_starts,
                });
                Ok(Session {
                    connection,
                    offered: generation,
                    offer: None,
                    asked: VecDeque::new(),
                })
            }
            Reply::Hello { version, .. } => Err(ProtocolError::Unexpected(format!(
                "the dataplane speaks version {version}, control version {VERSION}; restart `ringwall run`"
            ))),
            other => Err(ProtocolError::Unexpected(format!("{other:?} instead of hello"))),
        }
    }

    /// Uses a connection until it breaks.
    async fn serve(&mut self, mut session: Session) -> ProtocolError {
        // What is there already counts as new for this connection.
        self.newest.mark_changed();
        loop {
            if let Err(error) = self.step(&mut session).await {
                return error;
            }
        }
    }

    async fn step(&mut self, session: &mut Session) -> Result<(), ProtocolError> {
        let idle = session.offer.is_none();
        tokio::select! {
            reply = receive(&session.connection) => self.take(session, reply?).await,
            changed = self.newest.changed(), if idle => {
                changed.map_err(|_| ProtocolError::Closed)?;
                let newest = self.newest.borrow_and_update().clone();
                match newest {
                    Some(newest) if newest.image.generation().0 > session.offered => {
                        let base = self.accepted.clone();
                        self.offer(session, newest, base).await
                    }
                    _ => Ok(()),
                }
            }
            Some((generation, cluster)) = self.confirmed.recv() => {
                send(&session.connection, &Request::Current { generation, cluster }, None).await
            }
            Some(question) = self.asked.recv() => {
                send(&session.connection, &Request::Status, None).await?;
                session.asked.push_back(question);
                Ok(())
            }
            () = until(session.offer.as_ref().map(|offer| offer.due)) => Err(ProtocolError::TimedOut),
        }
    }

    /// Sends a snapshot: what changes `base`, or the whole of it.
    async fn offer(
        &mut self,
        session: &mut Session,
        outgoing: Outgoing,
        base: Option<Image>,
    ) -> Result<(), ProtocolError> {
        let image = &outgoing.image;
        let packed = image.clone();
        let (memory, bytes, base) = tokio::task::spawn_blocking(move || pack(&packed, base.as_ref()))
            .await
            .map_err(|error| ProtocolError::Unexpected(error.to_string()))??;
        let generation = image.generation().0;
        let publish = Request::Publish {
            generation,
            hash: ContentHash(image.hash()),
            bytes,
            base,
            cluster: outgoing.cluster.clone(),
        };
        send(&session.connection, &publish, Some(&memory)).await?;
        session.offered = generation;
        session.offer = Some(Offer {
            sent: outgoing,
            is_delta: base.is_some(),
            due: Instant::now() + self.timing.answer,
        });
        // The receiver lives as long as the controller.
        let _ = self.events.send(Event::Sent { generation });
        Ok(())
    }

    async fn take(&mut self, session: &mut Session, reply: Reply) -> Result<(), ProtocolError> {
        let event = match reply {
            Reply::Status { status } => {
                if let Some(question) = session.asked.pop_front() {
                    // Whoever asked may have gone.
                    let _ = question.send(Ok(*status));
                }
                return Ok(());
            }
            Reply::Accepted { generation } => {
                let offer = session.offer.take();
                self.accepted = offer
                    .map(|offer| offer.sent.image)
                    .filter(|image| image.generation().0 == generation);
                Event::Accepted { generation }
            }
            Reply::Refused { generation, reason } => match session.offer.take() {
                Some(offer) if offer.is_delta => {
                    tracing::info!(generation, reason, "delta refused: sending the whole snapshot");
                    self.accepted = None;
                    return self.offer(session, offer.sent, None).await;
                }
                _ => Event::Refused { generation, reason },
            },
            Reply::Adopted { generation, micros } => Event::Adopted { generation, micros },
            Reply::Error { message } => return Err(ProtocolError::Unexpected(message)),
            Reply::Flows { .. } => {
                return Err(ProtocolError::Unexpected(
                    "an answer about flows without a question".to_owned(),
                ));
            }
            Reply::Hello { .. } => return Err(ProtocolError::Unexpected("a second hello".to_owned())),
        };
        // The receiver lives as long as the controller.
        let _ = self.events.send(event);
        Ok(())
    }
}

/// An image in memory to be sent, its length, and the generation that it is a delta to.
fn pack(
    image: &Image,
    base: Option<&Image>,
) -> Result<(std::os::fd::OwnedFd, u64, Option<u64>), ProtocolError> {
    let delta = base
        .and_then(|base| Some((base.generation().0, image.delta_since(base)?)))
        .filter(|(_, delta)| (delta.len() as u64) < image.bytes());
    let (base, bytes) = match delta {
        Some((base, delta)) => (Some(base), delta),
        None => (None, image.to_bytes()),
    };
    let memory = image_memfd("ringwall-snapshot", &bytes)?;
    Ok((memory, bytes.len() as u64, base))
}

async fn until(due: Option<Instant>) {
    match due {
        Some(due) => sleep_until(due.into()).await,
        None => std::future::pending().await,
    }
}

async fn send(
    connection: &AsyncFd<Connection>,
    request: &Request,
    memory: Option<&std::os::fd::OwnedFd>,
) -> Result<(), ProtocolError> {
    loop {
        let mut ready = connection.writable().await?;
        match connection.get_ref().send(request, memory.map(AsFd::as_fd)) {
            Err(ProtocolError::TimedOut) => ready.clear_ready(),
            outcome => return outcome,
        }
    }
}

async fn receive(connection: &AsyncFd<Connection>) -> Result<Reply, ProtocolError> {
    loop {
        let mut ready = connection.readable().await?;
        match connection.get_ref().receive::<Reply>() {
            Err(ProtocolError::TimedOut) => ready.clear_ready(),
            outcome => return outcome.map(|received| received.message),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic)] // a failed step is a failed test
mod tests {
    use ringwall_dataplane::classify::{Generation, ImageBuilder, Snapshot};
    use ringwall_messages::{Listener, read_image};

    use super::*;

    /// What a dataplane was sent: generation, base, whether it is the whole image.
    type Sent = (u64, Option<u64>, bool);

    /// Greets one connection as one that has `has`, and reads a snapshot, which it accepts or not.
    fn answer(listener: &Listener, has: Option<&Image>, accepts: &[bool]) -> Vec<Sent> {
        let connection = listener.accept().unwrap();
        let hello = connection.receive::<Request>().unwrap();
        assert!(matches!(hello.message, Request::Hello { .. }));
        let greeting = Reply::Hello {
            version: VERSION,
            generation: has.map_or(0, |image| image.generation().0),
            hash: has.map(|image| ContentHash(image.hash())),
            cluster: None,
            workers: 1,
            pod_starts: Vec::new(),
        };
        connection.send(&greeting, None).unwrap();
        let mut sent = Vec::new();
        for accept in accepts {
            let received = connection.receive::<Request>().unwrap();
            let Request::Publish {
                generation,
                bytes,
                base,
                ..
            } = received.message
            else {
                panic!("{:?}", received.message);
            };
            let bytes = read_image(received.fd.unwrap(), bytes).unwrap();
            sent.push((generation, base, Snapshot::open(&bytes).is_ok()));
            let reply = match accept {
                true => Reply::Accepted { generation },
                false => Reply::Refused {
                    generation,
                    reason: "a bad day".to_owned(),
                },
            };
            connection.send(&reply, None).unwrap();
        }
        sent
    }

    async fn until_event(events: &mut mpsc::UnboundedReceiver<Event>, wanted: &Event) {
        loop {
            let event = timeout(Duration::from_secs(10), events.recv())
                .await
                .unwrap()
                .unwrap();
            assert!(
                !matches!(event, Event::Refused { .. }) || event == *wanted,
                "{event:?}"
            );
            if event == *wanted {
                return;
            }
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_delta_goes_to_whoever_has_its_base_and_the_whole_image_to_others() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("socket");
        let listener = Listener::bind(&socket).unwrap();
        let mut builder = ImageBuilder::new(Generation(0));
        for number in 0..1000 {
            builder.node(&format!("node-{number}")); // so that a delta is the shorter one
        }
        let images: Vec<Image> = (1..=6)
            .map(|generation| {
                builder.node(&format!("new-{generation}"));
                builder
                    .image(Generation(generation), [generation as u8; 32])
                    .unwrap()
            })
            .collect();
        let kept = images.clone();
        let dataplane = std::thread::spawn(move || {
            let mut sent = Vec::new();
            // Begins with nothing. The second refuses a delta, and then the whole image too.
            sent.push(answer(&listener, None, &[true, true, false, true]));
            // Comes back with what it had.
            sent.push(answer(&listener, Some(&kept[2]), &[true]));
            // Comes back from its disk, which is behind.
            sent.push(answer(&listener, Some(&kept[0]), &[true]));
            // Comes back with the same number of another's.
            let stranger = ImageBuilder::new(Generation(5))
                .image(Generation(5), [9; 32])
                .unwrap();
            sent.push(answer(&listener, Some(&stranger), &[false]));
            sent
        });
        let (publication, mut events) =
            DataplaneClient::start(&socket, Timing::default(), &Essential::new().0);
        for generation in 1..=5 {
            publication.publish(images[generation - 1].clone(), None);
            let accepted = Event::Accepted {
                generation: generation as u64,
            };
            until_event(&mut events, &accepted).await;
        }
        publication.publish(images[5].clone(), None);
        let refused = Event::Refused {
            generation: 6,
            reason: "a bad day".to_owned(),
        };
        until_event(&mut events, &refused).await;
        assert_eq!(
            dataplane.join().unwrap(),
            [
                vec![
                    (1, None, true),
                    (2, Some(1), false),
                    (3, Some(2), false),
                    (3, None, true)
                ],
                vec![(4, Some(3), false)],
                vec![(5, None, true)],
                vec![(6, None, true)],
            ]
        );
    }
}
