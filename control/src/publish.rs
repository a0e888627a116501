//! The line to the dataplane: hands it snapshots and asks it how it is doing.
//!
//! One task owns the connection and makes it again when it breaks. A snapshot is sent to every connection that does
//! not have it yet, the newest only; while the dataplane looks at one, a newer one waits.

use std::{
    collections::VecDeque,
    os::fd::AsFd,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{
    io::unix::AsyncFd,
    sync::{mpsc, oneshot, watch},
    time::{sleep, sleep_until, timeout},
};

use crate::protocol::{
    Connection, ContentHash, DataplaneStatus, ProtocolError, Reply, Request, VERSION, image_memfd,
};

/// A snapshot on its way.
#[derive(Clone, Debug)]
pub struct Outgoing {
    /// Its generation.
    pub generation: u64,
    /// Its canonical hash.
    pub hash: ContentHash,
    /// Its image.
    pub image: Arc<Vec<u8>>,
}

/// What happens on the line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The dataplane is there.
    Connected {
        /// Generation of its newest snapshot; 0 for none.
        generation: u64,
        /// That snapshot's hash.
        hash: Option<ContentHash>,
        /// Its workers.
        workers: u32,
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
pub struct Publication {
    outgoing: watch::Sender<Option<Outgoing>>,
    questions: mpsc::Sender<StatusAnswer>,
    task: tokio::task::JoinHandle<()>,
}

/// Asks the dataplane how it is doing.
#[derive(Clone, Debug)]
pub struct DataplaneInquiry {
    questions: mpsc::Sender<StatusAnswer>,
}

impl Publication {
    /// Begins to connect to the socket at `path`. Must be called within a tokio runtime.
    pub fn start(path: &Path, timing: Timing) -> (Self, mpsc::UnboundedReceiver<Event>) {
        let (outgoing, newest) = watch::channel(None);
        let (questions, asked) = mpsc::channel(16);
        // Unbounded, but a handful for each snapshot, and read by the one who makes the snapshots.
        let (events, received) = mpsc::unbounded_channel();
        let line = Line {
            path: path.to_owned(),
            timing,
            newest,
            asked,
            events,
        };
        let task = tokio::spawn(line.run());
        (
            Self {
                outgoing,
                questions,
                task,
            },
            received,
        )
    }

    /// Makes this the newest snapshot: it is sent as soon as the dataplane has answered for the one before.
    pub fn publish(&self, snapshot: Outgoing) {
        self.outgoing.send_replace(Some(snapshot));
    }

    /// Sends nothing on connections to come until [`Self::publish`] is called again.
    pub fn withdraw(&self) {
        self.outgoing.send_replace(None);
    }

    /// For those who want to ask the dataplane.
    pub fn inquiry(&self) -> DataplaneInquiry {
        DataplaneInquiry {
            questions: self.questions.clone(),
        }
    }
}

impl Drop for Publication {
    fn drop(&mut self) {
        self.task.abort();
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

struct Line {
    path: PathBuf,
    timing: Timing,
    newest: watch::Receiver<Option<Outgoing>>,
    asked: mpsc::Receiver<StatusAnswer>,
    events: mpsc::UnboundedSender<Event>,
}

/// A connection in use.
struct Session {
    connection: AsyncFd<Connection>,
    /// Generation that the dataplane has, or was offered on this connection.
    offered: u64,
    /// Whether an offer has not been answered yet, and by when it must be.
    answer_due: Option<Instant>,
    /// Questions sent, in order.
    asked: VecDeque<StatusAnswer>,
}

impl Line {
    async fn run(mut self) {
        let mut pause = self.timing.retry_first;
        let mut told = None;
        let mut ever = false;
        loop {
            let reason = match self.connect().await {
                Ok(session) => {
                    ever = true;
                    pause = self.timing.retry_first;
                    told = None;
                    self.serve(session).await.to_string()
                }
                Err(error) => error.to_string(),
            };
            if told.as_ref() != Some(&reason) {
                if ever {
                    tracing::warn!("no line to the dataplane: {reason}");
                } else {
                    // `ringwall run` starts control first.
                    tracing::info!("no line to the dataplane yet: {reason}");
                }
                told = Some(reason.clone());
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
                workers,
            } => {
                // The receiver lives as long as the controller.
                let _ = self.events.send(Event::Connected {
                    generation,
                    hash,
                    workers,
                });
                Ok(Session {
                    connection,
                    offered: generation,
                    answer_due: None,
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
        let idle = session.answer_due.is_none();
        tokio::select! {
            reply = receive(&session.connection) => self.take(session, reply?),
            changed = self.newest.changed(), if idle => {
                changed.map_err(|_| ProtocolError::Closed)?;
                let newest = self.newest.borrow_and_update().clone();
                match newest {
                    Some(snapshot) if snapshot.generation > session.offered => {
                        self.offer(session, snapshot).await
                    }
                    _ => Ok(()),
                }
            }
            Some(question) = self.asked.recv() => {
                send(&session.connection, &Request::Status, None).await?;
                session.asked.push_back(question);
                Ok(())
            }
            () = until(session.answer_due) => Err(ProtocolError::TimedOut),
        }
    }

    async fn offer(&mut self, session: &mut Session, snapshot: Outgoing) -> Result<(), ProtocolError> {
        let Outgoing {
            generation,
            hash,
            image,
        } = snapshot;
        let bytes = image.len() as u64;
        let memory = tokio::task::spawn_blocking(move || image_memfd("ringwall-snapshot", &image))
            .await
            .map_err(|error| ProtocolError::Unexpected(error.to_string()))??;
        let publish = Request::Publish {
            generation,
            hash,
            bytes,
        };
        send(&session.connection, &publish, Some(&memory)).await?;
        session.offered = generation;
        session.answer_due = Some(Instant::now() + self.timing.answer);
        // The receiver lives as long as the controller.
        let _ = self.events.send(Event::Sent { generation });
        Ok(())
    }

    fn take(&mut self, session: &mut Session, reply: Reply) -> Result<(), ProtocolError> {
        let event = match reply {
            Reply::Status { status } => {
                if let Some(question) = session.asked.pop_front() {
                    // Whoever asked may have gone.
                    let _ = question.send(Ok(*status));
                }
                return Ok(());
            }
            Reply::Accepted { generation } => {
                session.answer_due = None;
                Event::Accepted { generation }
            }
            Reply::Refused { generation, reason } => {
                session.answer_due = None;
                Event::Refused { generation, reason }
            }
            Reply::Adopted { generation, micros } => Event::Adopted { generation, micros },
            Reply::Error { message } => return Err(ProtocolError::Unexpected(message)),
            Reply::Hello { .. } => return Err(ProtocolError::Unexpected("a second hello".to_owned())),
        };
        // The receiver lives as long as the controller.
        let _ = self.events.send(event);
        Ok(())
    }
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
