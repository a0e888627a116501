//! Files and their last good objects, and the cluster they make up together.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet, hash_map::Entry},
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::SystemTime,
};

use super::{FolderError, Loaded, Problem, ProblemKind, Severity, Written};
use crate::{
    cluster::{Cluster, Fault, Object, ObjectKey, ObjectRef, Settings},
    source::{
        decode,
        document::{self, Document},
    },
};

/// Which files may have changed since the last look, besides those whose metadata say so.
#[derive(Clone, Debug)]
pub(super) enum Changed {
    /// Any.
    All,
    /// These.
    Paths(HashSet<PathBuf>),
}

/// What tells a changed file from an unchanged one without reading it.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Stamp {
    length: u64,
    modified: Option<SystemTime>,
    identity: (u64, u64),
}

/// One object as it stands in a file.
#[derive(Clone)]
struct Item {
    label: String,
    line: Option<u64>,
    object: Object,
    /// Faults and notes, ready to show.
    problems: Vec<Problem>,
    /// As it stands in its file; only for a reader that keeps documents.
    written: Option<Written>,
}

struct FileState {
    stamp: Stamp,
    text: Vec<u8>,
    /// The objects of the last content that could be understood.
    good: Vec<Item>,
    /// Why the present content cannot be.
    broken: Option<Problem>,
    /// The look at which `good` was taken over; of two files with one object, the older keeps it.
    since: u64,
}

/// A folder and what has been read of it.
pub(super) struct Reader {
    dir: PathBuf,
    keep_documents: bool,
    files: BTreeMap<PathBuf, FileState>,
    looks: u64,
    /// Problems between files, found when they were last put together.
    clashes: Vec<Problem>,
}

impl Reader {
    pub(super) fn new(dir: &Path) -> Self {
        Self {
            dir: dir.to_owned(),
            keep_documents: false,
            files: BTreeMap::new(),
            looks: 0,
            clashes: Vec::new(),
        }
    }

    /// A reader that can say afterwards where each field stands.
    pub(super) fn keeping_documents(dir: &Path) -> Self {
        Self {
            keep_documents: true,
            ..Self::new(dir)
        }
    }

    /// The objects of all files as they stand there.
    pub(super) fn written(&self) -> Vec<Written> {
        self.files
            .values()
            .flat_map(|file| &file.good)
            .filter_map(|item| item.written.clone())
            .collect()
    }

    /// Looks at the folder again.
    ///
    /// # Errors
    /// It cannot be listed. Files that cannot be read count as broken.
    pub(super) fn refresh(&mut self, changed: &Changed) -> Result<(), FolderError> {
        self.refresh_except(changed, &HashSet::new())
    }

    /// As [`Self::refresh`], passing over files that somebody is still writing.
    pub(super) fn refresh_except(
        &mut self,
        changed: &Changed,
        unfinished: &HashSet<PathBuf>,
    ) -> Result<(), FolderError> {
        self.looks += 1;
        let found = manifests(&self.dir)?;
        self.files.retain(|path, _| found.contains(path));
        for path in found {
            if unfinished.contains(&path) {
                continue;
            }
            let old = self.files.remove(&path);
            let state = self.look(&path, old, changed);
            self.files.extend(state.map(|state| (path, state)));
        }
        Ok(())
    }

    fn look(&self, path: &Path, old: Option<FileState>, changed: &Changed) -> Option<FileState> {
        let told = match changed {
            Changed::All => true,
            Changed::Paths(paths) => paths.contains(path),
        };
        let (stamp, text) = match stamp(path) {
            Ok(stamp) if !told && old.as_ref().is_some_and(|old| old.stamp == stamp) => return old,
            Ok(stamp) => match fs::read(path) {
                Ok(text) => (stamp, text),
                Err(error) => return self.unreadable(path, old, &error),
            },
            Err(error) => return self.unreadable(path, old, &error),
        };
        if let Some(old) = old
            .as_ref()
            .filter(|old| old.text == text && !old.text.is_empty())
        {
            return Some(FileState {
                stamp,
                text,
                good: old.good.clone(),
                broken: old.broken.clone(),
                since: old.since,
            });
        }
        Some(match read(path, &text, self.keep_documents) {
            Ok(good) => FileState {
                stamp,
                text,
                good,
                broken: None,
                since: self.looks,
            },
            Err(problem) => {
                let (good, since) = old.map(|old| (old.good, old.since)).unwrap_or_default();
                FileState {
                    stamp,
                    text,
                    good,
                    broken: Some(*problem),
                    since,
                }
            }
        })
    }

    fn unreadable(&self, path: &Path, old: Option<FileState>, error: &io::Error) -> Option<FileState> {
        // Gone between listing and reading: as if it had not been listed.
        if error.kind() == io::ErrorKind::NotFound && path.symlink_metadata().is_err() {
            return None;
        }
        let (good, since) = old.map(|old| (old.good, old.since)).unwrap_or_default();
        let message = match error.kind() {
            io::ErrorKind::NotFound => "links to a file that does not exist".to_owned(),
            _ => format!("cannot be read: {error}"),
        };
        let stamp = Stamp {
            length: 0,
            modified: None,
            identity: (0, 0),
        };
        let broken = Some(problem(path, None, None, None, message));
        Some(FileState {
            stamp,
            text: Vec::new(),
            good,
            broken,
            since,
        })
    }

    /// Problems that keep a folder from being used at a cold start.
    pub(super) fn broken(&self) -> Vec<Problem> {
        self.files
            .values()
            .filter_map(|file| file.broken.clone())
            .chain(self.clashes.iter().cloned())
            .collect()
    }

    /// Puts the good objects of all files together.
    pub(super) fn assemble(&mut self, settings: &Settings) -> Loaded {
        let mut cluster = Cluster {
            settings: settings.clone(),
            ..Cluster::default()
        };
        let mut problems = Vec::new();
        let mut clashes = Vec::new();
        let mut owners: HashMap<(String, ObjectRef), (&Path, &Item)> = HashMap::new();
        let mut templates: Vec<(&Path, &Item)> = Vec::new();
        let mut by_age: Vec<(&PathBuf, &FileState)> = self.files.iter().collect();
        by_age.sort_by_key(|(path, file)| (file.since, *path));
        for (path, file) in by_age {
            problems.extend(file.broken.clone());
            for item in &file.good {
                if let Some(reference) = item.object.reference() {
                    // A Pod and a Deployment of one name are two objects.
                    let kind = item.label.split(' ').next().unwrap_or_default().to_owned();
                    match owners.entry((kind, reference)) {
                        Entry::Vacant(free) => {
                            free.insert((path, item));
                        }
                        Entry::Occupied(taken) => {
                            let (first, other) = *taken.get();
                            let place = other.line.map_or_else(String::new, |line| format!(":{line}"));
                            let message =
                                format!("is described in {}{place} already: remove one", first.display());
                            clashes.push(Problem {
                                kind: ProblemKind::Duplicate,
                                ..problem(path, item.line, Some(&item.label), None, message)
                            });
                            continue;
                        }
                    }
                }
                problems.extend(item.problems.iter().cloned());
                match &item.object {
                    Object::Pod(pod) if pod.template_of.is_some() => templates.push((path, item)),
                    object => cluster.insert(object.clone()),
                }
            }
        }
        templates.sort_by(|a, b| a.1.label.cmp(&b.1.label));
        for (path, item) in templates {
            let Object::Pod(pod) = &item.object else { continue };
            let mut pod = pod.clone();
            if let Some(other) = cluster.pods.get(&pod.key) {
                let other = other.template_of.as_deref().unwrap_or("Pod");
                let kind = pod.template_of.clone().unwrap_or_default().to_ascii_lowercase();
                let ObjectKey { namespace, name } = &pod.key;
                let key = ObjectKey {
                    namespace: namespace.clone(),
                    name: format!("{kind}/{name}"),
                };
                let message = format!("has the name of a {other}: ask for it as {key}");
                let odd = problem(path, item.line, Some(&item.label), None, message);
                problems.push(Problem {
                    severity: Severity::Warning,
                    kind: ProblemKind::Odd,
                    ..odd
                });
                pod.key = key;
            }
            cluster.insert(Object::Pod(pod));
        }
        cluster.supply_namespaces();
        problems.extend(clashes.iter().cloned());
        problems.sort_by(|a, b| (&a.file, a.line, &a.path).cmp(&(&b.file, b.line, &b.path)));
        let loaded = Loaded {
            cluster,
            problems,
            files: self.files.len(),
            began: std::time::Instant::now(),
        };
        self.clashes = clashes;
        loaded
    }
}

fn problem(
    file: &Path,
    line: Option<u64>,
    object: Option<&str>,
    path: Option<&str>,
    message: String,
) -> Problem {
    Problem {
        severity: Severity::Error,
        kind: ProblemKind::Unreadable,
        file: file.to_owned(),
        line,
        span: None,
        object: object.map(str::to_owned),
        path: path.map(str::to_owned),
        message,
    }
}

/// Decodes a file, whole or not at all.
fn read(path: &Path, bytes: &[u8], keep_documents: bool) -> Result<Vec<Item>, Box<Problem>> {
    let text = std::str::from_utf8(bytes).map_err(|error| {
        let line = bytes
            .get(..error.valid_up_to())
            .map_or(1, |good| 1 + good.iter().filter(|b| **b == b'\n').count());
        let message = "is not UTF-8 text".to_owned();
        Box::new(problem(path, Some(line as u64), None, None, message))
    })?;
    let json = path.extension().is_some_and(|extension| extension == "json");
    let documents = document::parse(text, json)
        .map_err(|error| Box::new(problem(path, error.line, None, None, error.message)))?;
    let mut items = Vec::new();
    for document in documents {
        let document = Arc::new(document);
        let value = document.value();
        let at = |label: &str, fault: &Fault| {
            let spot = document.spot(&fault.path);
            Problem {
                kind: ProblemKind::Invalid,
                span: spot.map(|spot| (spot.column, spot.length)),
                ..problem(
                    path,
                    spot.map(|spot| spot.line),
                    Some(label),
                    Some(&fault.path),
                    fault.message.clone(),
                )
            }
        };
        let decoded = decode::decode(&value).map_err(|error| Box::new(at(&error.label, &error.fault)))?;
        for it in decoded {
            items.push(self::item(path, &document, it, keep_documents, &at));
        }
    }
    Ok(items)
}

/// One decoded object with what is wrong with it.
fn item(
    path: &Path,
    document: &Arc<Document>,
    decoded: decode::Decoded,
    keep_document: bool,
    at: &dyn Fn(&str, &Fault) -> Problem,
) -> Item {
    let decode::Decoded {
        label,
        prefix,
        object,
        notes,
    } = decoded;
    let line = if prefix.is_empty() {
        document.line()
    } else {
        document.line_of(&prefix)
    };
    let mut problems = Vec::new();
    if let Object::NetworkPolicy(policy) = &object {
        problems.extend(policy.faults.iter().map(|fault| at(&label, fault)));
    }
    if let Object::Unevaluated { kind } = &object {
        let message = format!("policies of kind {kind} are not evaluated yet: every verdict is incomplete");
        problems.push(Problem {
            kind: ProblemKind::Unevaluated,
            ..problem(path, line, None, None, message)
        });
    }
    problems.extend(notes.iter().map(|note| Problem {
        severity: Severity::Warning,
        kind: ProblemKind::Odd,
        ..at(&label, note)
    }));
    let written = keep_document.then(|| Written {
        file: path.to_owned(),
        kind: label.split(' ').next().unwrap_or_default().to_owned(),
        label: label.clone(),
        prefix,
        document: document.clone(),
    });
    Item {
        label,
        line,
        object,
        problems,
        written,
    }
}

/// Every manifest of the folder, by the path it is met at first.
fn manifests(dir: &Path) -> Result<BTreeSet<PathBuf>, FolderError> {
    let unreadable = |path: &Path| {
        let path = path.to_owned();
        move |source| FolderError::Unreadable { path, source }
    };
    let mut found = BTreeSet::new();
    let root = fs::metadata(dir).map_err(unreadable(dir))?;
    if !root.is_dir() {
        found.insert(dir.to_owned());
        return Ok(found);
    }
    // By device and inode, so that links make nothing be read twice and lead nowhere endless.
    let mut seen = HashSet::new();
    seen.insert((root.dev(), root.ino()));
    let mut folders = vec![dir.to_owned()];
    while let Some(folder) = folders.pop() {
        let listing = match fs::read_dir(&folder) {
            Ok(listing) => listing,
            // A folder below that went away meanwhile.
            Err(error) if error.kind() == io::ErrorKind::NotFound && folder != dir => continue,
            Err(error) => return Err(unreadable(&folder)(error)),
        };
        let mut paths: Vec<PathBuf> = Vec::new();
        for entry in listing {
            paths.push(entry.map_err(unreadable(&folder))?.path());
        }
        paths.sort();
        for path in paths {
            if path
                .file_name()
                .is_some_and(|name| name.as_encoded_bytes().starts_with(b"."))
            {
                continue;
            }
            let named = path
                .extension()
                .is_some_and(|it| it == "yaml" || it == "yml" || it == "json");
            match fs::metadata(&path) {
                Ok(it) if !it.is_dir() && !named => {}
                Ok(it) if !seen.insert((it.dev(), it.ino())) => {}
                Ok(it) if it.is_dir() => folders.push(path),
                Ok(_) => {
                    found.insert(path);
                }
                // A link to nothing, or no permission: reading it will say so.
                Err(_) if named => {
                    found.insert(path);
                }
                Err(_) => {}
            }
        }
    }
    Ok(found)
}

fn stamp(path: &Path) -> io::Result<Stamp> {
    let metadata = fs::metadata(path)?;
    Ok(Stamp {
        length: metadata.len(),
        modified: metadata.modified().ok(),
        identity: (metadata.dev(), metadata.ino()),
    })
}
