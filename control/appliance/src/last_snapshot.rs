//! The last snapshot on disk: what a start decides by until control has published.
//!
//! One file: a head that says from which source and with which settings the snapshot was made and when it was last known to
//! be what the source says; a whole image; and the deltas that came since, so that a change is durable at once however
//! large the image is. What was made of something else, or is too old, or was written by another version, decides nothing.
//!
//! ```text
//! magic [8] | confirmed, seconds since 1970, u64 | head, length u32, JSON | image, length u64 | (delta, length u32)*
//! ```
//! Numbers are little-endian.

use std::{
    fs::File,
    io::{self, Write},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use ringwall_config::{Config, SourceKind};
use ringwall_dataplane::classify::Snapshot;
use ringwall_messages::ClusterUid;
use serde::{Deserialize, Serialize};

/// What the file begins with; another one for another layout.
const MAGIC: [u8; 8] = *b"rwsnap01";

/// Where the time is.
const CONFIRMED_AT: u64 = MAGIC.len() as u64;

/// Longest head, in bytes.
const MAX_HEADER: usize = 1 << 20;

/// What a snapshot is made of besides objects.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SnapshotInputs {
    /// The source: kind and place.
    pub source: String,
    /// What the configuration says about the cluster.
    pub settings: String,
}

/// The head of the file.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct FileHeader {
    source: String,
    settings: String,
    /// Which cluster the source was. It does not decide whether the snapshot may be used: nobody knows it before the API
    /// server answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    cluster: Option<ClusterUid>,
}

impl SnapshotInputs {
    /// What the configuration says.
    pub fn of(config: &Config) -> Self {
        // The place itself, whatever links lead there.
        let place = |path: &Path| {
            let place = path.canonicalize();
            place.unwrap_or_else(|_| path.to_owned()).display().to_string()
        };
        let source = match &config.source.kind {
            SourceKind::Manifests { dir } => format!("folder {}", place(dir)),
            SourceKind::Kubeconfig { file, context } => match context {
                Some(context) => format!("kubeconfig {}, context {context}", place(file)),
                None => format!("kubeconfig {}", place(file)),
            },
            SourceKind::InCluster => "the cluster around".to_owned(),
        };
        let cluster = &config.cluster;
        let settings = format!(
            "podCIDRs {:?}, nodeCIDRs {:?}, serviceCIDRs {:?}, unknownEndpoints {:?}",
            cluster.pod_cidrs, cluster.node_cidrs, cluster.service_cidrs, cluster.unknown_endpoints
        );
        Self { source, settings }
    }
}

/// Where the last snapshot is kept, and which one may be used.
#[derive(Clone, Debug)]
pub struct LastSnapshot {
    file: PathBuf,
    made_of: SnapshotInputs,
    max_age: Option<Duration>,
}

/// One that may be used.
#[derive(Debug)]
pub struct Loaded {
    /// The snapshot.
    pub snapshot: Snapshot,
    /// The cluster that it was made from, where control knew.
    pub cluster: Option<ClusterUid>,
    /// Bytes that were read.
    pub bytes: usize,
    /// Since it was last known to be what the source says; None where the clock was set back.
    pub age: Option<Duration>,
}

/// The file, to go on with.
#[derive(Debug)]
pub struct SnapshotFile {
    file: File,
    end: u64,
    generation: u64,
    cluster: Option<ClusterUid>,
}

/// A change of one snapshot into the next.
#[derive(Debug)]
pub struct Delta {
    /// Generation that it changes.
    pub base: u64,
    /// Generation that comes of it.
    pub generation: u64,
    /// As it came.
    pub bytes: Vec<u8>,
}

impl LastSnapshot {
    /// Keeps it in `file`; one made of something else or older than `max_age` is not used.
    pub fn new(file: PathBuf, made_of: SnapshotInputs, max_age: Option<Duration>) -> Self {
        Self {
            file,
            made_of,
            max_age,
        }
    }

    /// The file.
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// Reads it; None where there is none.
    ///
    /// # Errors
    /// It cannot be read, or must not be used: why, in words.
    pub fn load(&self) -> Result<Option<Loaded>, String> {
        match std::fs::read(&self.file) {
            Ok(bytes) => self.read(&bytes, SystemTime::now()).map(Some),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error.to_string()),
        }
    }

    fn read(&self, bytes: &[u8], now: SystemTime) -> Result<Loaded, String> {
        let damaged = || "it is damaged".to_owned();
        let rest = bytes
            .strip_prefix(&MAGIC)
            .ok_or("it was written by another version")?;
        let (confirmed, rest) = rest.split_first_chunk::<8>().ok_or_else(damaged)?;
        let (length, rest) = rest.split_first_chunk::<4>().ok_or_else(damaged)?;
        let length = u32::from_le_bytes(*length) as usize;
        let (head, rest) = rest
            .split_at_checked(length)
            .filter(|_| length <= MAX_HEADER)
            .ok_or_else(damaged)?;
        let made_of: FileHeader = serde_json::from_slice(head).map_err(|_| damaged())?;
        if made_of.source != self.made_of.source {
            return Err(format!(
                "it was made from {}, and the source is {}",
                made_of.source, self.made_of.source
            ));
        }
        if made_of.settings != self.made_of.settings {
            return Err(format!(
                "it was made with other settings: {}; now {}",
                made_of.settings, self.made_of.settings
            ));
        }
        let confirmed = UNIX_EPOCH.checked_add(Duration::from_secs(u64::from_le_bytes(*confirmed)));
        let age = confirmed.and_then(|confirmed| now.duration_since(confirmed).ok());
        if let Some(most) = self.max_age {
            match age {
                Some(age) if age <= most => {}
                Some(age) => {
                    return Err(format!(
                        "it was last known to be current {} s ago, longer than source.maxAge ({} s)",
                        age.as_secs(),
                        most.as_secs()
                    ));
                }
                None => {
                    return Err("it is from the future, and source.maxAge is set: check the clock".to_owned());
                }
            }
        }
        let (length, rest) = rest.split_first_chunk::<8>().ok_or_else(damaged)?;
        let length = usize::try_from(u64::from_le_bytes(*length)).map_err(|_| damaged())?;
        let (image, deltas) = rest.split_at_checked(length).ok_or_else(damaged)?;
        let snapshot = Snapshot::open(image).map_err(|error| error.to_string())?;
        Ok(Loaded {
            snapshot: applied(snapshot, deltas)?,
            cluster: made_of.cluster,
            bytes: bytes.len(),
            age,
        })
    }

    /// Replaces the file by one rename: a reader finds the old content or the new, whenever power fails.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn write(&self, snapshot: &Snapshot, cluster: Option<&ClusterUid>) -> io::Result<SnapshotFile> {
        let head = serde_json::to_vec(&FileHeader {
            source: self.made_of.source.clone(),
            settings: self.made_of.settings.clone(),
            cluster: cluster.cloned(),
        })?;
        let image = snapshot.image().to_bytes();
        let mut next = self.file.as_os_str().to_owned();
        next.push(".next");
        let mut file = File::create(&next)?;
        let mut end = 0;
        for part in [
            &MAGIC[..],
            &seconds(SystemTime::now()).to_le_bytes(),
            &(head.len() as u32).to_le_bytes(),
            &head,
            &(image.len() as u64).to_le_bytes(),
            &image,
        ] {
            file.write_all(part)?;
            end += part.len() as u64;
        }
        file.sync_all()?;
        std::fs::rename(&next, &self.file)?;
        if let Some(folder) = self.file.parent() {
            File::open(folder)?.sync_all()?;
        }
        Ok(SnapshotFile {
            file,
            end,
            generation: snapshot.generation().0,
            cluster: cluster.cloned(),
        })
    }
}

/// The snapshot that deltas make of one. Of the last one power may have gone before all of it was there.
fn applied(mut snapshot: Snapshot, mut deltas: &[u8]) -> Result<Snapshot, String> {
    while let Some((length, rest)) = deltas.split_first_chunk::<4>() {
        let Some((delta, rest)) = rest.split_at_checked(u32::from_le_bytes(*length) as usize) else {
            break;
        };
        match snapshot.apply(delta) {
            Ok(next) => snapshot = next,
            Err(_) if rest.is_empty() => break,
            Err(error) => return Err(format!("a change in it cannot be applied: {error}")),
        }
        deltas = rest;
    }
    Ok(snapshot)
}

impl SnapshotFile {
    /// Appends deltas; false, and nothing done, where they do not lead on from what is there.
    ///
    /// # Errors
    /// They cannot be written: what is there may end with half of one.
    pub fn append(&mut self, deltas: &[Delta]) -> io::Result<bool> {
        let mut generation = self.generation;
        let mut bytes = Vec::new();
        for delta in deltas {
            let Ok(length) = u32::try_from(delta.bytes.len()) else {
                return Ok(false);
            };
            if delta.base != generation {
                return Ok(false);
            }
            generation = delta.generation;
            bytes.extend(length.to_le_bytes());
            bytes.extend(&delta.bytes);
        }
        self.file.write_all_at(&bytes, self.end)?;
        self.file.sync_data()?;
        self.end += bytes.len() as u64;
        self.generation = generation;
        self.confirm()?;
        Ok(true)
    }

    /// The cluster that it was made from.
    pub fn cluster(&self) -> Option<&ClusterUid> {
        self.cluster.as_ref()
    }

    /// Which generation comes of all of it.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// Says that it is what the source says.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn confirm(&self) -> io::Result<()> {
        // Not synced: at worst it is taken to be older than it is.
        self.file
            .write_all_at(&seconds(SystemTime::now()).to_le_bytes(), CONFIRMED_AT)
    }
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)] // a test that panics has failed
mod tests {
    use ringwall_dataplane::classify::{Generation, Image, ImageBuilder};

    use super::*;

    fn made_of(source: &str, settings: &str) -> SnapshotInputs {
        SnapshotInputs {
            source: source.to_owned(),
            settings: settings.to_owned(),
        }
    }

    /// Images of more and more nodes.
    fn images(count: u64) -> Vec<Image> {
        let mut builder = ImageBuilder::new(Generation(0));
        (1..=count)
            .map(|generation| {
                builder.node(&format!("node-{generation}"));
                builder
                    .image(Generation(generation), [generation as u8; 32])
                    .unwrap()
            })
            .collect()
    }

    fn delta(images: &[Image], from: usize, to: usize) -> Delta {
        Delta {
            base: images[from].generation().0,
            generation: images[to].generation().0,
            bytes: images[to].delta_since(&images[from]).unwrap(),
        }
    }

    fn generation(last: &LastSnapshot) -> Result<u64, String> {
        Ok(last.load()?.unwrap().snapshot.generation().0)
    }

    #[test]
    fn what_was_written_is_found_with_every_change_since() {
        let folder = tempfile::tempdir().unwrap();
        let last = LastSnapshot::new(folder.path().join("s"), made_of("a", "b"), None);
        assert!(last.load().unwrap().is_none());
        let images = images(5);
        let mut kept = last.write(&Snapshot::from_image(&images[0]), None).unwrap();
        assert_eq!(generation(&last), Ok(1));
        assert!(
            kept.append(&[delta(&images, 0, 1), delta(&images, 1, 2)])
                .unwrap()
        );
        assert_eq!((generation(&last), kept.generation()), (Ok(3), 3));
        assert!(!kept.append(&[delta(&images, 3, 4)]).unwrap(), "one is missing");
        assert!(kept.append(&[delta(&images, 2, 3)]).unwrap());
        let loaded = last.load().unwrap().unwrap();
        assert_eq!(loaded.snapshot.image().to_bytes(), images[3].to_bytes());
        assert!(loaded.age.unwrap() < Duration::from_secs(60));

        // Power goes while the last change is written: it is as if it had not come.
        let whole = std::fs::read(last.file()).unwrap();
        let tail = delta(&images, 2, 3).bytes.len() + 4;
        for cut in 1..=tail {
            std::fs::write(last.file(), &whole[..whole.len() - cut]).unwrap();
            assert_eq!(generation(&last), Ok(3), "{cut} bytes less");
        }
        let mut zeros = whole.clone();
        zeros[whole.len() - 9..].fill(0);
        std::fs::write(last.file(), zeros).unwrap();
        assert_eq!(generation(&last), Ok(3));
        // Elsewhere it is damage.
        let mut middle = whole.clone();
        let at = whole.len() - tail - 9;
        middle[at] ^= 1;
        std::fs::write(last.file(), middle).unwrap();
        assert!(generation(&last).unwrap_err().contains("cannot be applied"));
    }

    #[test]
    fn what_is_of_something_else_or_another_version_is_not_used() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("s");
        let of = |source, settings| LastSnapshot::new(file.clone(), made_of(source, settings), None);
        let snapshot = Snapshot::from_image(&images(1)[0]);
        of("folder /a", "x").write(&snapshot, None).unwrap();
        assert_eq!(generation(&of("folder /a", "x")), Ok(1));
        let error = generation(&of("folder /b", "x")).unwrap_err();
        assert!(
            error.contains("made from folder /a, and the source is folder /b"),
            "{error}"
        );
        let error = generation(&of("folder /a", "y")).unwrap_err();
        assert!(error.contains("other settings: x; now y"), "{error}");
        // As versions before this one wrote it.
        std::fs::write(&file, snapshot.image().to_bytes()).unwrap();
        let error = generation(&of("folder /a", "x")).unwrap_err();
        assert!(error.contains("another version"), "{error}");
        for length in [0, 8, 12, 17, 30] {
            let whole = snapshot.image().to_bytes();
            std::fs::write(&file, [&MAGIC[..], &whole].concat().get(..length).unwrap()).unwrap();
            assert!(generation(&of("folder /a", "x")).is_err(), "{length} bytes");
        }
    }

    #[test]
    fn the_cluster_is_on_record_and_refuses_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let last = LastSnapshot::new(folder.path().join("s"), made_of("a", "b"), None);
        let snapshot = Snapshot::from_image(&images(1)[0]);
        let uid = ClusterUid::try_from("0b7d2bd0-7a3c".to_owned()).unwrap();
        let kept = last.write(&snapshot, Some(&uid)).unwrap();
        assert_eq!(kept.cluster(), Some(&uid));
        assert_eq!(last.load().unwrap().unwrap().cluster, Some(uid));
        // A head without one, as of a folder and of versions that did not know it.
        last.write(&snapshot, None).unwrap();
        let bytes = std::fs::read(last.file()).unwrap();
        let head = br#"{"source":"a","settings":"b"}"#;
        assert!(bytes.windows(head.len()).any(|window| window == head));
        assert_eq!(last.load().unwrap().unwrap().cluster, None);
    }

    #[test]
    fn what_is_too_old_is_not_used() {
        let folder = tempfile::tempdir().unwrap();
        let day = Duration::from_secs(86_400);
        let last = |max_age| LastSnapshot::new(folder.path().join("s"), made_of("a", "b"), max_age);
        let kept = last(None)
            .write(&Snapshot::from_image(&images(1)[0]), None)
            .unwrap();
        let bytes = std::fs::read(last(None).file()).unwrap();
        let now = SystemTime::now();
        let age = |most, now| last(most).read(&bytes, now).map(|loaded| loaded.age);
        assert!(age(Some(day), now).is_ok());
        let error = age(Some(day), now + 2 * day).unwrap_err();
        assert!(error.contains("source.maxAge"), "{error}");
        let old = age(None, now + 2 * day).unwrap().unwrap();
        assert!(old > day, "{old:?}");
        assert_eq!(age(None, now - day), Ok(None), "a clock that was set back");
        assert!(age(Some(day), now - day).is_err());
        // It was current later than it was written.
        let before = std::fs::read(last(None).file()).unwrap();
        let mut stale = before.clone();
        stale[8..16].fill(0);
        std::fs::write(last(None).file(), stale).unwrap();
        assert!(last(Some(day)).load().is_err());
        kept.confirm().unwrap();
        assert!(last(Some(day)).load().is_ok());
    }
}
