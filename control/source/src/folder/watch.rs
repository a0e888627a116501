//! A folder under watch: inotify where it works, else by looking again and again.

use std::{
    collections::{HashMap, HashSet},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{
        Arc,
        mpsc::{self, Receiver, RecvTimeoutError, Sender},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use notify::{
    Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher,
    event::{AccessKind, AccessMode, ModifyKind},
};
use ringwall_policy::{Cluster, Settings, services::Services};

use super::{
    FolderError, Loaded, Problem, ProblemKind, Severity,
    reader::{Changed, Reader},
};
use crate::staged::Staged;

/// A file that is written and not closed is left alone for so long.
const UNFINISHED: Duration = Duration::from_secs(1);

/// What a watched folder says.
#[derive(Clone, Debug)]
#[allow(
    clippy::large_enum_variant,
    reason = "nearly all are the large one, and there is one at a time"
)]
pub enum Update {
    /// A complete new state. Broken files are in it with their last good objects; `problems` names them.
    State(Box<Loaded>),
    /// Other Services, and nothing else.
    Services(Services),
    /// The folder's content would take away all objects or over half of the policies at once, or the folder cannot
    /// be read: the old state stays until [`FolderWatch::accept`] or a less drastic content.
    Held {
        /// Why, in words.
        reason: String,
        /// What is wrong besides.
        problems: Vec<Problem>,
    },
}

/// How a folder is watched.
#[derive(Clone, Debug)]
pub struct WatchOptions {
    /// A change is read once the folder has been quiet for so long.
    pub settle: Duration,
    /// But no later than this after it began.
    pub limit: Duration,
    /// How often a folder is looked at where the system cannot notify; a tenth as often where it can.
    pub poll: Duration,
    /// Whether a state that lacks all objects, or over half of two or more policies, is held back.
    pub hold_vanished: bool,
}

impl Default for WatchOptions {
    fn default() -> Self {
        Self {
            settle: Duration::from_millis(5),
            limit: Duration::from_millis(25),
            poll: Duration::from_secs(1),
            hold_vanished: true,
        }
    }
}

enum Wake {
    Event(notify::Result<Event>),
    Accept,
    Stop,
}

/// Tells a watch to take the folder's content as it is.
#[derive(Clone, Debug)]
pub struct Acceptor {
    wake: Sender<Wake>,
}

impl Acceptor {
    /// Takes the folder's content as it is, however much has gone.
    pub fn accept(&self) {
        // A watch that has ended has nothing to accept.
        let _ = self.wake.send(Wake::Accept);
    }
}

/// A folder under watch by a thread of its own, which ends when this is dropped.
#[derive(Debug)]
pub struct FolderWatch {
    updates: Receiver<Update>,
    wake: Sender<Wake>,
    thread: Option<JoinHandle<()>>,
}

impl FolderWatch {
    /// Reads the folder and begins to watch it.
    ///
    /// # Errors
    /// As [`super::load`]; or no thread can be started.
    pub fn start(
        dir: &Path,
        settings: Settings,
        options: WatchOptions,
    ) -> Result<(Loaded, FolderWatch), FolderError> {
        Self::begin(dir, settings, options, true)
    }

    /// As [`Self::start`], as if the system could not notify.
    #[cfg(test)]
    pub(super) fn start_polling(
        dir: &Path,
        settings: Settings,
        options: WatchOptions,
    ) -> Result<(Loaded, FolderWatch), FolderError> {
        Self::begin(dir, settings, options, false)
    }

    fn begin(
        dir: &Path,
        settings: Settings,
        options: WatchOptions,
        notify: bool,
    ) -> Result<(Loaded, FolderWatch), FolderError> {
        let (wake, wakes) = mpsc::channel();
        // Before the first look, so that nothing falls between the two.
        let watcher = if notify { watcher(dir, wake.clone()) } else { None };
        let mut reader = Reader::new(dir, &settings);
        reader.refresh(&Changed::All)?;
        let loaded = reader.assemble();
        reader.in_force(&loaded.cluster);
        let broken = reader.broken();
        if !broken.is_empty() {
            return Err(FolderError::Broken(broken));
        }
        let (out, updates) = mpsc::channel();
        let watch = Watch {
            dir: dir.to_owned(),
            options,
            reader,
            watched: watcher.is_some().then(|| inode(dir)).flatten(),
            renew: notify.then(|| wake.clone()),
            watcher,
            walked: Instant::now(),
            writing: HashMap::new(),
            current: loaded.cluster.clone(),
            problems: loaded.problems.clone(),
            staged: Arc::clone(&loaded.staged),
            services: loaded.services.clone(),
            held: None,
            out,
        };
        let thread = std::thread::Builder::new()
            .name("folder-watch".to_owned())
            .spawn(move || watch.run(&wakes))
            .map_err(|error| FolderError::Unwatchable {
                path: dir.to_owned(),
                reason: error.to_string(),
            })?;
        Ok((
            loaded,
            Self {
                updates,
                wake,
                thread: Some(thread),
            },
        ))
    }

    /// The updates, in order. Disconnected only when the watch has ended.
    pub fn updates(&self) -> &Receiver<Update> {
        &self.updates
    }

    /// Takes the folder's content as it is, however much has gone.
    pub fn accept(&self) {
        self.acceptor().accept();
    }

    /// Something that accepts from another thread.
    pub fn acceptor(&self) -> Acceptor {
        Acceptor {
            wake: self.wake.clone(),
        }
    }
}

impl Drop for FolderWatch {
    fn drop(&mut self) {
        let _ = self.wake.send(Wake::Stop);
        if let Some(thread) = self.thread.take() {
            // A panic of the watch has been reported by its own thread.
            let _ = thread.join();
        }
    }
}

/// None where the system cannot notify (limits reached, a file system without events).
fn watcher(dir: &Path, wake: Sender<Wake>) -> Option<RecommendedWatcher> {
    let mut watcher = notify::recommended_watcher(move |event| {
        let _ = wake.send(Wake::Event(event));
    })
    .ok()?;
    watcher.watch(dir, RecursiveMode::Recursive).ok()?;
    Some(watcher)
}

fn inode(dir: &Path) -> Option<(u64, u64)> {
    std::fs::metadata(dir)
        .ok()
        .map(|metadata| (metadata.dev(), metadata.ino()))
}

struct Watch {
    dir: PathBuf,
    options: WatchOptions,
    reader: Reader,
    watcher: Option<RecommendedWatcher>,
    /// The folder that the watcher holds, by device and inode; None where the system does not notify.
    watched: Option<(u64, u64)>,
    /// To watch another folder that took the name of the first; None where nothing is to notify.
    renew: Option<Sender<Wake>>,
    /// When every file was last looked at.
    walked: Instant,
    /// Files that were written to and not closed yet.
    writing: HashMap<PathBuf, Instant>,
    /// What was last handed out.
    current: Cluster,
    problems: Vec<Problem>,
    staged: Arc<Vec<Staged>>,
    services: Services,
    /// Why the folder's content is not handed out.
    held: Option<String>,
    out: Sender<Update>,
}

/// What a burst of events asks for.
#[derive(Default)]
struct Pending {
    /// When the first of it was noticed.
    began: Option<Instant>,
    paths: HashSet<PathBuf>,
    /// Events were lost.
    all: bool,
    any: bool,
    accept: bool,
}

impl Watch {
    fn run(mut self, wakes: &Receiver<Wake>) {
        loop {
            let mut pending = Pending::default();
            match wakes.recv_timeout(self.idle()) {
                Ok(wake) => {
                    if self.take(wake, &mut pending) {
                        return;
                    }
                }
                Err(RecvTimeoutError::Timeout) => {
                    pending.paths.extend(self.left_open());
                    pending.any = !pending.paths.is_empty() || self.due().is_zero();
                }
                Err(RecvTimeoutError::Disconnected) => return,
            }
            let began = Instant::now();
            pending.began = Some(began);
            while !pending.accept {
                let left = self.options.limit.saturating_sub(began.elapsed());
                match wakes.recv_timeout(self.options.settle.min(left)) {
                    Ok(wake) => {
                        if self.take(wake, &mut pending) {
                            return;
                        }
                    }
                    Err(RecvTimeoutError::Timeout) => break,
                    Err(RecvTimeoutError::Disconnected) => return,
                }
            }
            if (pending.any || pending.accept) && !self.look(pending) {
                return;
            }
        }
    }

    /// How long until every file is looked at, in case an event was lost.
    fn due(&self) -> Duration {
        let interval = match self.watched {
            Some(_) => self.options.poll * 10,
            None => self.options.poll,
        };
        interval.saturating_sub(self.walked.elapsed())
    }

    /// How long to wait for an event.
    fn idle(&self) -> Duration {
        let due = self.due();
        if self.writing.is_empty() {
            due
        } else {
            due.min(self.options.limit)
        }
    }

    /// Takes the files that have been written to for long enough, or were left open.
    fn left_open(&mut self) -> HashSet<PathBuf> {
        self.writing
            .extract_if(|_, since| since.elapsed() >= UNFINISHED)
            .map(|(path, _)| path)
            .collect()
    }

    /// Notes what a wake-up means; true to end.
    fn take(&mut self, wake: Wake, pending: &mut Pending) -> bool {
        let event = match wake {
            Wake::Stop => return true,
            Wake::Accept => {
                pending.accept = true;
                return false;
            }
            Wake::Event(Ok(event)) => event,
            Wake::Event(Err(_)) => {
                pending.all = true;
                pending.any = true;
                return false;
            }
        };
        match event.kind {
            EventKind::Access(AccessKind::Close(AccessMode::Write)) => {
                for path in &event.paths {
                    self.writing.remove(path);
                }
            }
            EventKind::Access(_) => return false, // our own reading, too
            EventKind::Modify(ModifyKind::Data(_)) => {
                for path in &event.paths {
                    self.writing.insert(path.clone(), Instant::now());
                }
            }
            EventKind::Modify(ModifyKind::Name(_)) | EventKind::Remove(_) => {
                for path in &event.paths {
                    self.writing.remove(path);
                }
            }
            _ => {}
        }
        pending.any = true;
        pending.all |= event.need_rescan();
        pending.paths.extend(event.paths);
        false
    }

    /// Reads the folder and reports the result; false when the receiver is gone.
    fn look(&mut self, mut pending: Pending) -> bool {
        let present = inode(&self.dir);
        if let Some(wake) = self.renew.as_ref().filter(|_| self.watched != present) {
            // Removed, made anew or put in place by a rename: a watch stays with the old one.
            self.watcher = present.and_then(|_| watcher(&self.dir, wake.clone()));
            self.watched = present.filter(|_| self.watcher.is_some());
            pending.all = true;
        }
        pending.paths.extend(self.left_open());
        let unfinished: HashSet<PathBuf> = self.writing.keys().cloned().collect();
        let paths = std::mem::take(&mut pending.paths);
        let changed = if pending.all {
            Changed::All
        } else if pending.accept || self.due().is_zero() {
            Changed::These(paths)
        } else {
            Changed::Only(paths)
        };
        if !matches!(changed, Changed::Only(_)) {
            self.walked = Instant::now();
        }
        if let Err(error) = self.reader.refresh_except(&changed, &unfinished) {
            let unreadable = Problem {
                kind: ProblemKind::Unreadable,
                span: None,
                severity: Severity::Error,
                file: self.dir.clone(),
                line: None,
                object: None,
                path: None,
                kept: true,
                message: error.to_string(),
            };
            return self.hold(
                format!("{error}; the last good state stays in force"),
                vec![unreadable],
            );
        }
        let mut loaded = self.reader.assemble();
        loaded.began = pending.began.unwrap_or(loaded.began);
        if self.options.hold_vanished
            && !pending.accept
            && let Some(reason) = vanished(&self.current, &loaded.cluster)
        {
            return self.hold(reason, loaded.problems);
        }
        let unchanged = self.held.is_none()
            && loaded.cluster == self.current
            && loaded.problems == self.problems
            && loaded.staged == self.staged;
        let same_services = loaded.services.same_as(&self.services);
        self.services.clone_from(&loaded.services);
        if unchanged {
            return same_services || self.out.send(Update::Services(loaded.services)).is_ok();
        }
        self.held = None;
        self.current = loaded.cluster.clone();
        self.reader.in_force(&self.current);
        self.problems.clone_from(&loaded.problems);
        self.staged = Arc::clone(&loaded.staged);
        self.out.send(Update::State(Box::new(loaded))).is_ok()
    }

    fn hold(&mut self, reason: String, problems: Vec<Problem>) -> bool {
        if self.held.as_ref() == Some(&reason) {
            return true;
        }
        self.held = Some(reason.clone());
        self.out.send(Update::Held { reason, problems }).is_ok()
    }
}

/// Why the step from one state to the next looks like an accident rather than a decision.
fn vanished(old: &Cluster, new: &Cluster) -> Option<String> {
    let policies = |cluster: &Cluster| cluster.policies.len() + cluster.tiered.len();
    let objects = |cluster: &Cluster| cluster.pods.len() + policies(cluster) + cluster.nodes.len();
    let stays = "the last state stays in force until this is accepted or the objects are back";
    if objects(old) > 0 && objects(new) == 0 {
        return Some(format!("all objects are gone from the folder; {stays}"));
    }
    let (before, after) = (policies(old), policies(new));
    // A single policy that goes is an everyday change.
    (before >= 2 && (before.saturating_sub(after)) * 2 > before).then(|| {
        format!(
            "{} of {before} policies are gone from the folder at once; {stays}",
            before - after
        )
    })
}
