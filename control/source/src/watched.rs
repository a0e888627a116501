//! The watched folder as a [`Feed`].

use std::{
    path::Path,
    sync::{Arc, mpsc::RecvTimeoutError},
    time::Duration,
};

use ringwall_messages::{ObjectProblem, ResourceVersions};
use ringwall_policy::Settings;
use tokio::sync::watch;

use super::{
    feed::{Accept, Feed, Health, ServiceFeed, ServicePublisher, SourceState},
    folder::{FolderError, FolderWatch, Loaded, Problem, Update, WatchOptions},
};

/// How often the thread looks whether it is still wanted.
const LOOK: Duration = Duration::from_millis(100);

/// Reads a folder and hands it on, now and whenever it changes. Blocks until it has been read.
///
/// # Errors
/// The folder cannot be read, or not understood.
pub fn start(
    folder: &Path,
    settings: Settings,
    options: WatchOptions,
    stale_after: Duration,
) -> Result<Feed, FolderError> {
    let (loaded, folder_watch) = FolderWatch::start(folder, settings, options)?;
    let health = Arc::new(Health::new(
        "folder",
        folder.display().to_string(),
        stale_after,
        [],
    ));
    let (states, received) = watch::channel(None);
    let (publisher, services) = ServiceFeed::new();
    let mut reader = Reader {
        states,
        services: publisher,
        health: Arc::clone(&health),
    };
    let acceptor = folder_watch.acceptor();
    // That of whoever starts it.
    let log = tracing::dispatcher::get_default(Clone::clone);
    reader.hand_on(loaded);
    std::thread::Builder::new()
        .name("rw-folder".to_owned())
        .spawn(move || {
            let _log = tracing::dispatcher::set_default(&log);
            reader.run(&folder_watch);
        })
        .map_err(|error| FolderError::Unwatchable {
            path: folder.to_owned(),
            reason: error.to_string(),
        })?;
    Ok(Feed {
        states: received,
        health,
        services,
        accept: Some(Accept(Box::new(move || acceptor.accept()))),
        guarded: None,
        _task: None,
    })
}

struct Reader {
    states: watch::Sender<Option<Arc<SourceState>>>,
    services: ServicePublisher,
    health: Arc<Health>,
}

impl Reader {
    fn run(mut self, folder: &FolderWatch) {
        while !self.states.is_closed() {
            match folder.updates().recv_timeout(LOOK) {
                Ok(Update::State(loaded)) => {
                    self.health.event(None);
                    self.hand_on(*loaded);
                }
                Ok(Update::Services(services)) => {
                    self.health.event(None);
                    self.services.publish(&services);
                }
                Ok(Update::Held { reason, problems }) => {
                    self.health.event(None);
                    tracing::warn!("change rejected, keeping the last good policies: {reason}");
                    for problem in &problems {
                        tracing::warn!("{problem}");
                    }
                    self.health.held_back(reason);
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => {
                    self.health.end("the folder is no longer watched".to_owned());
                    self.health.current(false);
                    return;
                }
            }
        }
    }

    fn hand_on(&mut self, loaded: Loaded) {
        let began = loaded.began;
        self.health.kept(loaded.kept().map(Problem::to_string).collect());
        let problems = loaded.problems.iter().map(describe).collect();
        self.health.current(true);
        self.health
            .changed(loaded.changed.iter().map(|file| file.display().to_string()));
        self.health.handed_on();
        self.services.publish(&loaded.services);
        self.states.send_replace(Some(Arc::new(SourceState {
            cluster: loaded.cluster,
            problems,
            staged: loaded.staged,
            cluster_uid: None,
            versions: ResourceVersions::default(),
            began,
        })));
    }
}

/// A problem as status shows it.
pub fn describe(problem: &Problem) -> ObjectProblem {
    let place = match problem.line {
        Some(line) => format!("{}:{line}", problem.file.display()),
        None => problem.file.display().to_string(),
    };
    let (kind, object) = match problem.object.as_deref().map(|object| object.split_once(' ')) {
        Some(Some((kind, object))) => (kind.to_owned(), object.to_owned()),
        _ => (
            "file".to_owned(),
            problem.object.clone().unwrap_or_else(|| place.clone()),
        ),
    };
    let message = if object == place {
        problem.message.clone()
    } else {
        format!("{place}: {}", problem.message)
    };
    ObjectProblem {
        kind,
        object,
        path: problem.path.clone().unwrap_or_default(),
        message,
    }
}
