//! Files and their last good objects, and the cluster they make up together.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    fs,
    io::{self, Read},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::SystemTime,
};

use imbl::OrdMap;
use ringwall_policy::{
    Cluster, Fault, NetworkPolicy, Object, ObjectKey, PolicyId, Settings, TieredPolicy,
    services::ServiceObject,
};
use ringwall_process::{confine, confine::SourceFiles};

use super::{FolderError, Loaded, ManifestObject, Problem, ProblemKind, Severity, merged::MergedFolder};
use crate::{decode, decode::calico::Input, document, document::Document};

/// What standard input is called.
pub(super) const STANDARD_INPUT: &str = "-";

/// Which files may have changed since the last look.
#[derive(Clone, Debug)]
pub(super) enum Changed {
    /// Any: all are read again.
    All,
    /// These, and others whose metadata say so.
    These(HashSet<PathBuf>),
    /// These alone.
    Only(HashSet<PathBuf>),
}

/// What tells a changed file from an unchanged one without reading it.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Stamp {
    length: u64,
    modified: Option<SystemTime>,
    identity: (u64, u64),
}

impl Stamp {
    /// Of what is not there.
    const NONE: Self = Self {
        length: 0,
        modified: None,
        identity: (0, 0),
    };
}

/// One object as it stands in a file.
pub(super) struct Item {
    pub(super) label: String,
    pub(super) line: Option<u64>,
    pub(super) object: Object,
    /// Faults and notes, ready to show.
    pub(super) problems: Vec<Problem>,
    /// What the state needs of it besides.
    pub(super) input: Option<Arc<Input>>,
    /// What it says about Services.
    pub(super) service: Option<ServiceObject>,
    /// As it stands in its file; only for a reader that keeps documents.
    written: Option<ManifestObject>,
}

impl Item {
    /// Says of what is wrong with it that another version is in force.
    fn keep(&mut self) {
        for problem in &mut self.problems {
            problem.kept = problem.severity == Severity::Error;
        }
    }
}

pub(super) struct FileState {
    stamp: Stamp,
    text: Vec<u8>,
    /// The objects of the last content that could be understood.
    pub(super) good: Arc<Vec<Item>>,
    /// Why the present content cannot be; empty where it can.
    pub(super) broken: Vec<Problem>,
    /// The look at which `good` was taken over; of two files with one object, the older keeps it.
    pub(super) since: u64,
}

impl FileState {
    /// What changes when it says something else.
    fn says(&self) -> (u64, Vec<Problem>) {
        (self.since, self.broken.clone())
    }
}

/// The objects that files held, by path.
pub(super) type Before = BTreeMap<PathBuf, Arc<Vec<Item>>>;

/// A folder and what has been read of it.
pub(super) struct Reader {
    dir: PathBuf,
    settings: Settings,
    keep_documents: bool,
    files: BTreeMap<PathBuf, FileState>,
    /// The folders that `files` are in.
    folders: HashSet<PathBuf>,
    /// Whether none of these and no file has a second name, so that what happens at one path is no news of another.
    plain: bool,
    looks: u64,
    /// Policies that are in force: what one of them is replaced by has to be valid.
    in_force: OrdMap<ObjectKey, Arc<NetworkPolicy>>,
    /// The same, of those whose rules decide in order.
    tiered_in_force: OrdMap<PolicyId, Arc<TieredPolicy>>,
    /// What the files said together when they were last put together.
    whole: Option<MergedFolder>,
    /// Which files have changed since, and their objects before.
    before: Before,
}

impl Reader {
    pub(super) fn new(dir: &Path, settings: &Settings) -> Self {
        Self {
            dir: dir.to_owned(),
            settings: settings.clone(),
            keep_documents: false,
            files: BTreeMap::new(),
            folders: HashSet::new(),
            plain: false,
            looks: 0,
            in_force: OrdMap::new(),
            tiered_in_force: OrdMap::new(),
            whole: None,
            before: Before::new(),
        }
    }

    /// A reader that can say afterwards where each field stands.
    pub(super) fn keeping_documents(dir: &Path, settings: &Settings) -> Self {
        Self {
            keep_documents: true,
            ..Self::new(dir, settings)
        }
    }

    /// Puts the files together as if they never had been.
    #[cfg(test)]
    pub(super) fn anew(&mut self) -> Loaded {
        self.whole = None;
        self.assemble()
    }

    /// Says which policies are in force from now on.
    pub(super) fn in_force(&mut self, cluster: &Cluster) {
        self.in_force = cluster.policies.clone();
        self.tiered_in_force = cluster.tiered.clone();
    }

    /// Keeps what is in force of those that are invalid now; `before` is what the file held.
    fn keep_good(&self, items: &mut [Item], before: &[Item]) {
        for item in items {
            if let Object::Tiered(policy) = &item.object
                && !policy.faults.is_empty()
                && let Some(good) = self
                    .tiered_in_force
                    .get(&policy.id)
                    .filter(|good| good.faults.is_empty())
            {
                // What was decoded of it goes on following the objects that it speaks of.
                let decoded = before.iter().find_map(|it| match &it.object {
                    Object::Tiered(old) if old.id == policy.id && old.faults.is_empty() => {
                        Some((old.clone(), it.input.clone()))
                    }
                    _ => None,
                });
                let (good, input) = decoded.unwrap_or_else(|| {
                    let settled = good.id.kind.is_calico().then(|| Arc::new(Input::settled(good)));
                    (TieredPolicy::clone(good), settled)
                });
                item.object = Object::Tiered(good);
                item.input = input;
                item.keep();
            }
            if let Object::NetworkPolicy(policy) = &item.object
                && !policy.faults.is_empty()
                && let Some(good) = self
                    .in_force
                    .get(&policy.key)
                    .filter(|good| good.faults.is_empty())
            {
                item.object = Object::NetworkPolicy(NetworkPolicy::clone(good));
                item.keep();
            }
        }
    }

    /// The objects of all files as they stand there.
    pub(super) fn written(&self) -> Vec<ManifestObject> {
        self.files
            .values()
            .flat_map(|file| file.good.iter())
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
        if let Changed::Only(paths) = changed
            && let Some(manifests) = self.alone(paths)
        {
            for path in manifests.difference(unfinished) {
                self.look(path, true);
            }
            return Ok(());
        }
        let found = walk(&self.dir)?;
        self.folders = found.folders;
        self.plain = found.plain;
        for (path, file) in self
            .files
            .extract_if(.., |path, _| !found.manifests.contains(path))
        {
            self.before.entry(path).or_insert(file.good);
        }
        let named = match changed {
            Changed::All => None,
            Changed::These(paths) | Changed::Only(paths) => Some(paths),
        }
        // Behind a hidden name may be what a link leads to.
        .filter(|paths| self.plain || !paths.iter().any(|path| hidden(&self.dir, path)));
        for path in found.manifests.iter().filter(|path| !unfinished.contains(*path)) {
            self.look(path, named.is_none_or(|named| named.contains(path)));
        }
        Ok(())
    }

    /// The manifests among paths at which something happened, where nothing else can have changed by it. None asks for
    /// a walk: something may have come by another name, or gone to one.
    fn alone(&self, paths: &HashSet<PathBuf>) -> Option<HashSet<PathBuf>> {
        if !self.plain {
            return None;
        }
        let mut manifests = HashSet::new();
        for path in paths.iter().filter(|path| !hidden(&self.dir, path)) {
            if self.folders.contains(path) || !self.folders.contains(path.parent()?) {
                return None;
            }
            match path.symlink_metadata() {
                Ok(it) if it.is_file() && it.nlink() == 1 => {
                    manifests.extend(is_manifest(path).then(|| path.clone()));
                }
                // Never was one of ours: the first name of a file that is then put in place.
                Err(error) if error.kind() == io::ErrorKind::NotFound && !self.files.contains_key(path) => {}
                _ => return None,
            }
        }
        Some(manifests)
    }

    /// Takes a file up as it is now. One that was not named is read if its metadata have changed.
    fn look(&mut self, path: &Path, is_named: bool) {
        let old = self.files.remove(path);
        let good = old.as_ref().map(|old| Arc::clone(&old.good)).unwrap_or_default();
        let said = old.as_ref().map(FileState::says);
        let state = self.state(path, old, is_named);
        if state.as_ref().map(FileState::says) != said {
            self.before.entry(path.to_owned()).or_insert(good);
        }
        self.files.extend(state.map(|state| (path.to_owned(), state)));
    }

    fn state(&self, path: &Path, old: Option<FileState>, is_named: bool) -> Option<FileState> {
        let (stamp, text) = match stamp(path) {
            Ok(stamp) if !is_named && old.as_ref().is_some_and(|old| old.stamp == stamp) => return old,
            Ok(stamp) => match contents(path) {
                Ok(text) => (stamp, text),
                Err(error) => return self.unreadable(path, old, &error),
            },
            Err(error) => return self.unreadable(path, old, &error),
        };
        let old = match old {
            Some(old) if old.text == text && !old.text.is_empty() => return Some(FileState { stamp, ..old }),
            old => old,
        };
        Some(self.taken(path, stamp, text, old))
    }

    /// What a file says with this content.
    fn taken(&self, path: &Path, stamp: Stamp, text: Vec<u8>, old: Option<FileState>) -> FileState {
        match read(path, &text, self.keep_documents) {
            Ok(mut good) => {
                let before = old.as_ref().map(|old| Arc::clone(&old.good)).unwrap_or_default();
                self.keep_good(&mut good, &before);
                FileState {
                    stamp,
                    text,
                    good: Arc::new(good),
                    broken: Vec::new(),
                    since: self.looks,
                }
            }
            Err(problems) => {
                let (good, since) = old.map(|old| (old.good, old.since)).unwrap_or_default();
                let broken = problems.into_iter();
                FileState {
                    stamp,
                    text,
                    good,
                    broken: broken.map(|it| Problem { kept: true, ..it }).collect(),
                    since,
                }
            }
        }
    }

    /// Reads everything once: the folder, or standard input where that is what it is called.
    ///
    /// # Errors
    /// The folder cannot be listed, standard input not be read.
    pub(super) fn read_once(&mut self) -> Result<(), FolderError> {
        if self.dir.as_os_str() != STANDARD_INPUT {
            return self.refresh(&Changed::All);
        }
        let path = PathBuf::from("stdin");
        let mut text = Vec::new();
        if let Err(reason) = io::stdin().lock().read_to_end(&mut text) {
            return Err(FolderError::Unreadable { path, reason });
        }
        self.looks += 1;
        let state = self.taken(&path, Stamp::NONE, text, None);
        self.files.insert(path, state);
        Ok(())
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
        let broken = vec![Problem {
            kept: true,
            ..problem(path, None, None, None, message)
        }];
        Some(FileState {
            stamp: Stamp::NONE,
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
            .flat_map(|file| file.broken.iter().cloned())
            .chain(self.whole.iter().flat_map(|whole| whole.clashes.iter().cloned()))
            .collect()
    }

    /// The good objects of all files together.
    pub(super) fn assemble(&mut self) -> Loaded {
        let before = std::mem::take(&mut self.before);
        let changed = match self.whole {
            Some(_) => before.keys().cloned().collect(),
            None => Vec::new(),
        };
        let whole = match self.whole.take() {
            Some(mut whole) => match whole.follow(&self.files, &before) {
                true => whole,
                false => MergedFolder::of(&self.files, whole.cluster),
            },
            None => MergedFolder::of(
                &self.files,
                Cluster {
                    settings: self.settings.clone(),
                    ..Cluster::default()
                },
            ),
        };
        let whole = self.whole.insert(whole);
        Loaded {
            cluster: whole.cluster.clone(),
            problems: whole.problems.clone(),
            staged: whole.staged.clone(),
            services: whole.services.clone(),
            files: self.files.len(),
            changed,
            began: std::time::Instant::now(),
        }
    }
}

pub(super) fn problem(
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
        kept: false,
    }
}

/// Decodes a file, whole or not at all: else everything that keeps it from being used, in order.
fn read(path: &Path, bytes: &[u8], keep_documents: bool) -> Result<Vec<Item>, Vec<Problem>> {
    let text = std::str::from_utf8(bytes).map_err(|error| {
        let line = bytes
            .get(..error.valid_up_to())
            .map_or(1, |good| 1 + good.iter().filter(|b| **b == b'\n').count());
        let message = "is not UTF-8 text".to_owned();
        vec![problem(path, Some(line as u64), None, None, message)]
    })?;
    let json = match path.extension() {
        Some(extension) => extension == "json",
        // Of standard input; a file without one is read only where it alone was named.
        None => text.trim_start().starts_with(['{', '[']),
    };
    let unparsable = |error: document::SyntaxError| {
        let message = match text.contains("{{") {
            true => format!(
                "{}; this is a template: render it first (helm template)",
                error.message
            ),
            false => error.message,
        };
        problem(path, error.line, None, None, message)
    };
    let mut problems = Vec::new();
    let documents = match document::parse(text, json) {
        Ok(documents) => documents,
        Err(error) => {
            problems.push(unparsable(error));
            // What is wrong with the documents that can be told apart from that one.
            let apart = if json { Vec::new() } else { pieces(text) };
            let mut documents = Vec::new();
            for piece in apart {
                match document::parse(&piece, false) {
                    Ok(read) => documents.extend(read),
                    Err(error) => problems.push(unparsable(error)),
                }
            }
            problems.dedup();
            documents
        }
    };
    let chart = path.file_name().is_some_and(|name| name == "Chart.yaml");
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
                    as_written(&document, fault),
                )
            }
        };
        match decode::decode(&value) {
            Ok(decoded) => {
                let item = |it| self::item(path, &document, it, keep_documents, &at);
                items.extend(decoded.into_iter().map(item));
            }
            Err(error) => {
                let mut problem = at(&error.label, &error.fault);
                if chart {
                    problem.message = "is a Helm chart: render it first (helm template)".to_owned();
                }
                problems.push(problem);
            }
        }
    }
    if problems.is_empty() {
        return Ok(items);
    }
    // Nothing of the file is taken over, and everything that is wrong with it is said at once.
    let of_others = items.into_iter().flat_map(|item| item.problems);
    problems.extend(of_others.filter(|it| it.severity == Severity::Error && it.kind == ProblemKind::Invalid));
    problems.sort_by_key(|problem| problem.line);
    Err(problems)
}

/// The documents of a YAML file, each after as many empty lines as it had lines before it. At the beginning of a line
/// nothing but a separator begins with three dashes, not in a block of text either.
fn pieces(text: &str) -> Vec<String> {
    // Directives belong to the document below them.
    let is_content = |line: &str| !line.trim().is_empty() && !line.starts_with(['%', '#']);
    let mut pieces = Vec::new();
    let mut piece = String::new();
    for (number, line) in text.lines().enumerate() {
        let ends = line
            .strip_prefix("---")
            .is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', '\t', '\r']));
        if ends && piece.lines().any(is_content) {
            pieces.push(std::mem::replace(&mut piece, "\n".repeat(number)));
        }
        piece.push_str(line);
        piece.push('\n');
    }
    pieces.push(piece);
    pieces
}

/// What is wrong, with scalars that YAML does not read as text as they are written, not as they are read.
fn as_written(document: &Document, fault: &Fault) -> String {
    match (
        document.written(&fault.path),
        fault.message.rsplit_once(": write \""),
    ) {
        (Some(written), Some((before, proposed))) if before.contains(", but YAML reads ") => {
            let (before, _) = before.split_once(" reads ").unwrap_or((before, ""));
            let kind = match document.value_at(&fault.path) {
                Some(serde_json::Value::Bool(_)) => "a boolean",
                _ => "a number",
            };
            // What follows the value that is proposed.
            let rest = proposed.split_once('"').map_or("", |(_, rest)| rest);
            format!("{before} reads {written} as {kind}: write \"{written}\"{rest}")
        }
        _ => fault.message.clone(),
    }
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
        unevaluated,
        faults: refused,
        input,
        service,
    } = decoded;
    let line = if prefix.is_empty() {
        document.line()
    } else {
        document.line_of(&prefix)
    };
    let mut problems = Vec::new();
    let faults = match &object {
        Object::NetworkPolicy(policy) => policy.faults.as_slice(),
        Object::Tiered(policy) => policy.faults.as_slice(),
        _ => &[],
    };
    problems.extend(faults.iter().chain(&refused).map(|fault| at(&label, fault)));
    problems.extend(unevaluated.iter().map(|fault| Problem {
        kind: ProblemKind::Unevaluated,
        ..at(&label, fault)
    }));
    if let Object::Unevaluated { kind } = &object {
        let message = format!("policies of kind {kind} are not evaluated: every verdict is incomplete");
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
    for (path, message) in document.odd_labels(&prefix) {
        if problems
            .iter()
            .any(|problem: &Problem| problem.path.as_deref() == Some(path.as_str()))
        {
            continue;
        }
        problems.push(Problem {
            severity: Severity::Warning,
            kind: ProblemKind::LabelType,
            ..at(&label, &Fault { path, message })
        });
    }
    let written = keep_document.then(|| ManifestObject {
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
        input,
        service,
        written,
    }
}

/// What a folder holds.
#[derive(Default)]
struct Found {
    /// Every manifest, by the path it is met at first.
    manifests: BTreeSet<PathBuf>,
    /// It and the folders below.
    folders: HashSet<PathBuf>,
    /// See [`Reader::plain`].
    plain: bool,
}

fn walk(dir: &Path) -> Result<Found, FolderError> {
    let unreadable = |path: &Path| {
        let path = path.to_owned();
        move |reason| FolderError::Unreadable {
            reason: beyond_reach(reason, &path),
            path,
        }
    };
    let mut found = Found::default();
    let root = fs::metadata(dir).map_err(unreadable(dir))?;
    if !root.is_dir() {
        found.manifests.insert(dir.to_owned());
        return Ok(found);
    }
    found.plain = true;
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
            let entry = entry.map_err(unreadable(&folder))?;
            let path = entry.path();
            if hidden(&folder, &path) {
                continue;
            }
            found.plain &= entry.file_type().is_ok_and(|it| !it.is_symlink());
            paths.push(path);
        }
        found.folders.insert(folder);
        paths.sort();
        for path in paths {
            let named = is_manifest(&path);
            match fs::metadata(&path) {
                Ok(it) if !it.is_dir() && !named => {}
                Ok(it) if !seen.insert((it.dev(), it.ino())) => found.plain = false,
                Ok(it) if it.is_dir() => folders.push(path),
                Ok(it) => {
                    found.plain &= it.nlink() == 1;
                    found.manifests.insert(path);
                }
                // A link to nothing, or no permission: reading it will say so.
                Err(_) if named => {
                    found.manifests.insert(path);
                }
                Err(_) => {}
            }
        }
    }
    Ok(found)
}

fn is_manifest(path: &Path) -> bool {
    path.extension()
        .is_some_and(|it| it == "yaml" || it == "yml" || it == "json")
}

/// Whether a path lies under a name with a dot, as the links of a mounted ConfigMap do.
fn hidden(dir: &Path, path: &Path) -> bool {
    path.strip_prefix(dir)
        .is_ok_and(|below| below.iter().any(|name| name.as_encoded_bytes().starts_with(b".")))
}

/// What a folder passes over because of a name with a dot though it looks like manifests: the topmost such name, and how
/// many of them there are. Not what begins with two dots, where a mounted ConfigMap has what its links lead to.
pub(super) fn passed_over(dir: &Path) -> BTreeMap<PathBuf, usize> {
    let mut found = BTreeMap::new();
    let mut folders = vec![(dir.to_owned(), None)];
    while let Some((folder, top)) = folders.pop() {
        // What cannot be listed the reader itself has complained about.
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            let (path, name) = (entry.path(), entry.file_name());
            let name = name.as_encoded_bytes();
            let top: Option<PathBuf> = match &top {
                None if name.starts_with(b".") => Some(path.clone()),
                top => top.clone(),
            };
            let Ok(kind) = entry.file_type() else { continue };
            if name.starts_with(b"..") || name == b".git" {
                continue;
            } else if kind.is_dir() {
                folders.push((path, top));
            } else if let Some(top) = top
                && kind.is_file()
                && is_manifest(&path)
                && fs::read_to_string(&path)
                    .is_ok_and(|text| text.contains("apiVersion") && text.contains("kind"))
            {
                *found.entry(top).or_insert(0) += 1;
            }
        }
    }
    found
}

/// What is in a file. A pipe or device has no content that could be read again, and might never end.
fn contents(path: &Path) -> io::Result<Vec<u8>> {
    if !fs::metadata(path)?.is_file() {
        return Err(io::Error::other("it is neither a file nor a folder"));
    }
    fs::read(path).map_err(|error| beyond_reach(error, path))
}

/// Where the process may read less than its user, because something leads elsewhere since the start, it ends.
fn beyond_reach(error: io::Error, path: &Path) -> io::Error {
    if error.kind() == io::ErrorKind::PermissionDenied {
        confine::exit_unless_covered(&SourceFiles::of_file(path), path);
    }
    error
}

fn stamp(path: &Path) -> io::Result<Stamp> {
    let metadata = fs::metadata(path)?;
    Ok(Stamp {
        length: metadata.len(),
        modified: metadata.modified().ok(),
        identity: (metadata.dev(), metadata.ino()),
    })
}
