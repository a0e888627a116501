//! What the control process has to read.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

/// Files by which names are resolved.
const NAMES: [&str; 3] = ["/etc/resolv.conf", "/etc/hosts", "/etc/nsswitch.conf"];

/// Device and inode.
type Identity = (u64, u64);

fn identity(path: &Path) -> Option<Identity> {
    let metadata = fs::metadata(path).ok()?;
    Some((metadata.dev(), metadata.ino()))
}

/// The source of policies, as it is on disk.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SourceFiles {
    /// The kubeconfig and what it names.
    files: Vec<PathBuf>,
    /// The folder of manifests.
    folder: Option<PathBuf>,
    /// Folders, and files, below which everything may be read: a file is replaced by renaming another to its name. With
    /// what tells each from another of its name.
    below: BTreeMap<PathBuf, Identity>,
    /// Whether the kubeconfig names a program that makes credentials. What it reads and starts is not known.
    pub(super) runs_programs: bool,
    /// Whether links out of the folder are not followed.
    inside: bool,
}

impl SourceFiles {
    /// Of the credentials of an API server: the kubeconfig first, then what it names; whether it names a program that
    /// makes credentials. What cannot be read is left out: opening the source says what is wrong with it.
    pub fn of_credentials(files: Vec<PathBuf>, runs_programs: bool) -> Self {
        let mut needs = Self {
            runs_programs,
            ..Self::default()
        };
        for file in files {
            needs.below.extend(around(&file));
            needs.files.push(file);
        }
        needs
            .below
            .extend(Self::of_names().flat_map(|(_, names)| names.below));
        needs
    }

    /// Of a folder of manifests.
    pub fn of_folder(dir: &Path) -> Self {
        let mut needs = Self {
            folder: Some(dir.to_owned()),
            ..Self::default()
        };
        needs.below.extend(around(dir));
        needs
            .below
            .extend(Self::of_names().flat_map(|(_, names)| names.below));
        let _ = walk(dir, &mut |path| {
            if path.is_symlink() {
                needs.below.extend(around(path));
            }
            Ok(())
        });
        needs
    }

    /// Of one file more, such as what a new link leads to.
    pub fn of_file(file: &Path) -> Self {
        Self {
            below: around(file).collect(),
            ..Self::default()
        }
    }

    /// Files by which the system resolves names, which are replaced by others of their names.
    pub fn of_names() -> impl Iterator<Item = (&'static Path, Self)> {
        NAMES.iter().map(|name| {
            let path = Path::new(name);
            let real = path.canonicalize().ok();
            let found = real.and_then(|real| identity(&real).map(|identity| (real, identity)));
            let below = found.into_iter().collect();
            (
                path,
                Self {
                    below,
                    ..Self::default()
                },
            )
        })
    }

    /// For who may read what its user may not: whoever writes the folder must not choose what that is.
    pub(super) fn stay_inside(&mut self) {
        self.inside = true;
        if let Some(folder) = &self.folder {
            self.below = around(folder).collect();
            for (_, names) in Self::of_names() {
                self.below.extend(names.below);
            }
        }
    }

    /// Whether a process that starts now with the same rules would cover `other`.
    pub(super) fn would_cover(&self, other: &Self) -> bool {
        let Some(folder) = self.folder.as_ref().filter(|_| self.inside) else {
            return true;
        };
        let roots: Vec<PathBuf> = around(folder).map(|(path, _)| path).collect();
        let named = |path: &PathBuf| {
            NAMES
                .iter()
                .any(|name| Path::new(name).canonicalize().ok().as_ref() == Some(path))
        };
        other
            .below
            .keys()
            .all(|path| named(path) || roots.iter().any(|root| path.starts_with(root)))
    }

    /// Whether nothing of `other` is missing here.
    pub(super) fn covers(&self, other: &Self) -> bool {
        (self.runs_programs || !other.runs_programs)
            && other.below.keys().all(|path| {
                let mut granted = self.below.iter();
                granted.any(|(folder, as_it_was)| {
                    path.starts_with(folder) && identity(folder) == Some(*as_it_was)
                })
            })
    }

    /// Folders and files below which everything may be read.
    pub(super) fn below(&self) -> impl Iterator<Item = &Path> {
        self.below.keys().map(PathBuf::as_path)
    }

    /// Who owns the kubeconfig or the folder.
    pub(super) fn owner(&self) -> Option<u32> {
        let path = self.folder.as_ref().or(self.files.first())?;
        fs::metadata(path).ok().map(|metadata| metadata.uid())
    }

    /// Reads everything once; the first that the caller is not let read. What is not there is for the source to complain
    /// of.
    pub(super) fn read_all(&self) -> Result<(), (PathBuf, io::Error)> {
        for file in &self.files {
            readable(file)?;
        }
        self.folder.as_ref().map_or(Ok(()), |folder| {
            walk(folder, &mut |path| {
                if path.is_dir() { Ok(()) } else { readable(path) }
            })
        })
    }
}

fn readable(path: &Path) -> Result<(), (PathBuf, io::Error)> {
    // A pipe would be waited for.
    if fs::metadata(path).is_ok_and(|metadata| !metadata.is_file()) {
        return Ok(());
    }
    denied(path, File::open(path).map(drop))
}

fn denied<T>(path: &Path, outcome: io::Result<T>) -> Result<(), (PathBuf, io::Error)> {
    match outcome {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Err((path.to_owned(), error)),
        _ => Ok(()),
    }
}

/// The folder that a file is in, and the one that it is in once links are followed; the file itself in the root folder.
fn around(file: &Path) -> impl Iterator<Item = (PathBuf, Identity)> {
    let folder = |path: PathBuf| match path.parent() {
        Some(parent) if !path.is_dir() && parent != Path::new("/") => parent.canonicalize().ok(),
        _ => path.canonicalize().ok(),
    };
    let real = file.canonicalize().ok().and_then(folder);
    let folders = [folder(file.to_owned()), real].into_iter().flatten();
    folders.filter_map(|folder| identity(&folder).map(|identity| (folder, identity)))
}

/// Visits everything below a folder, links followed, each folder once.
fn walk(
    folder: &Path,
    visit: &mut impl FnMut(&Path) -> Result<(), (PathBuf, io::Error)>,
) -> Result<(), (PathBuf, io::Error)> {
    let mut seen = BTreeSet::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        let metadata = fs::metadata(&folder);
        if !metadata.is_ok_and(|metadata| seen.insert((metadata.dev(), metadata.ino()))) {
            continue;
        }
        let listing = fs::read_dir(&folder);
        if listing.is_err() {
            denied(&folder, listing.map(drop))?;
            continue;
        }
        for entry in listing.into_iter().flatten().flatten() {
            // As the source does: what is hidden is no manifest.
            if entry.file_name().as_encoded_bytes().starts_with(b".") {
                continue;
            }
            let path = entry.path();
            visit(&path)?;
            if path.is_dir() {
                folders.push(path);
            }
        }
    }
    Ok(())
}
