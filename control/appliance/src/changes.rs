//! What ringwall changes on the machine, on record before it is changed, and the way back.
//!
//! The record is a file of lines, each flushed to disk before the change that it names is made. So whoever comes next finds
//! everything that was made, whatever ended the process: `ringwall detach`, a start that fails, the next start. What the
//! record cannot have is on the objects themselves: programs by their pins, neighbours by their protocol number.
//!
//! A change is taken back only where the machine still has what ringwall made of it: what somebody has set since is theirs. A record is of one boot
//! and one network namespace: in any other, its interfaces are not those of the same name and index.

use std::{
    fs::{self, File},
    io::{self, Write},
    net::IpAddr,
    path::{Path, PathBuf},
};

use anyhow::{Context, bail};
use ringwall_xsk::device::Device;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{
    kept_table,
    kernel_state::KernelState,
    netlink::{Netlink, NetlinkError},
    network_namespace::NetworkNamespace,
};

/// Name of the record in the state directory.
pub const RECORD_FILE: &str = "changes.jsonl";
/// The record of versions up to 0.1: links, addresses and MTUs.
const LEGACY_FILE: &str = "made.json";
/// Where the kernel says which boot this is: a record of another boot says nothing about this one.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// An interface by name and index: one that was made anew has the name and nothing of what was changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interface {
    /// Its name at the time.
    pub name: String,
    /// Its index.
    pub index: u32,
}

/// A change of the machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Change {
    /// A BPF file system was mounted.
    Mount {
        /// Where.
        path: PathBuf,
    },
    /// A veth pair was made.
    Pair {
        /// The judged end.
        inner: String,
        /// The kernel's end.
        outer: String,
    },
    /// A table of nf_tables was made.
    Table {
        /// Its name, in each family.
        name: String,
    },
    /// An address was added.
    Address {
        /// To which interface.
        interface: Interface,
        /// The address.
        address: IpAddr,
        /// Length of its prefix.
        length: u8,
    },
    /// An MTU was set.
    Mtu {
        /// Of which interface.
        interface: Interface,
        /// What it was.
        before: u32,
        /// What was made of it.
        after: u32,
    },
    /// An interface was set up or down.
    Up {
        /// Which.
        interface: Interface,
        /// What was made of it.
        after: bool,
    },
    /// An interface was made to take in frames for every Ethernet address.
    Promiscuous {
        /// Which.
        interface: Interface,
    },
    /// A setting below `/proc/sys` was written.
    Setting {
        /// Its path below `/proc/sys`.
        path: String,
        /// The interface that it is of; none for `all`.
        interface: Option<Interface>,
        /// What it was.
        before: String,
        /// What was made of it.
        after: String,
    },
    /// VLAN offloads were turned off.
    VlanOffload {
        /// Of which interface.
        interface: Interface,
        /// `ETHTOOL_GFLAGS` before.
        before: u32,
    },
    /// The numbers of queues were set.
    Queues {
        /// Of which interface.
        interface: Interface,
        /// What they were: receive, transmit, combined.
        before: [u32; 3],
        /// What was made of them.
        after: [u32; 3],
    },
}

impl Change {
    /// The interface that the change is of.
    pub fn interface(&self) -> Option<&Interface> {
        match self {
            Self::Mount { .. } | Self::Pair { .. } | Self::Table { .. } => None,
            Self::Setting { interface, .. } => interface.as_ref(),
            Self::Address { interface, .. }
            | Self::Mtu { interface, .. }
            | Self::Up { interface, .. }
            | Self::Promiscuous { interface }
            | Self::VlanOffload { interface, .. }
            | Self::Queues { interface, .. } => Some(interface),
        }
    }

    /// Whether both are changes of one thing: the first of them knows how it was before ringwall.
    fn is_of_same(&self, other: &Self) -> bool {
        match (self, other) {
            (
                Self::Address {
                    interface,
                    address,
                    length,
                },
                Self::Address {
                    interface: i,
                    address: a,
                    length: l,
                },
            ) => (interface, address, length) == (i, a, l),
            (
                Self::Setting { path, interface, .. },
                Self::Setting {
                    path: p,
                    interface: i,
                    ..
                },
            ) => (path, interface) == (p, i),
            (Self::Mtu { interface, .. }, Self::Mtu { interface: i, .. })
            | (Self::Up { interface, .. }, Self::Up { interface: i, .. })
            | (Self::VlanOffload { interface, .. }, Self::VlanOffload { interface: i, .. })
            | (Self::Queues { interface, .. }, Self::Queues { interface: i, .. }) => interface == i,
            (a, b) => a == b,
        }
    }

    /// Takes it back. Fine where it is gone, with its interface or by somebody else's hand.
    fn revert(&self, netlink: &mut Netlink, view: &KernelState) -> anyhow::Result<()> {
        if let Some(Interface { name, index }) = self.interface()
            && view.links.get(index).is_none_or(|link| link.name != *name)
        {
            return Ok(());
        }
        match self {
            Self::Mount { path } => Ok(ringwall_bpf::unmount_empty(path)?),
            Self::Pair { inner, outer } => {
                let found = view.link_named(inner).filter(|(_, link)| link.veth);
                match (found, view.link_named(outer)) {
                    (Some((index, link)), Some((other, _))) if link.peer == Some(other) => {
                        gone_is_fine(netlink.delete_link(index))
                    }
                    _ => Ok(()),
                }
            }
            Self::Table { name } => Ok(kept_table::remove(name)?),
            Self::Address {
                interface,
                address,
                length,
            } => gone_is_fine(netlink.delete_address(interface.index, *address, *length)),
            Self::Mtu {
                interface,
                before,
                after,
            } => match view.links.get(&interface.index) {
                Some(link) if link.mtu == *after => gone_is_fine(netlink.set_mtu(interface.index, *before)),
                _ => Ok(()),
            },
            Self::Up { interface, after } => match view.links.get(&interface.index) {
                Some(link) if link.up == *after && *after => gone_is_fine(netlink.set_down(interface.index)),
                Some(link) if link.up == *after => gone_is_fine(netlink.set_link(interface.index, None)),
                _ => Ok(()),
            },
            Self::Promiscuous { interface } => match view.links.get(&interface.index) {
                Some(link) if link.promiscuous => {
                    gone_is_fine(netlink.set_promiscuous(interface.index, false))
                }
                _ => Ok(()),
            },
            Self::Setting {
                path, before, after, ..
            } => {
                if read_setting(path).as_deref() == Some(after) {
                    write_setting(path, before)?;
                }
                Ok(())
            }
            Self::VlanOffload { interface, before } => {
                Ok(Device::lookup(&interface.name)?.set_vlan_flags(*before)?)
            }
            Self::Queues {
                interface,
                before,
                after,
            } => {
                let device = Device::lookup(&interface.name)?;
                if device.channels()? == *after {
                    device.set_channels(*before)?;
                }
                Ok(())
            }
        }
    }
}

fn gone_is_fine(result: Result<(), NetlinkError>) -> anyhow::Result<()> {
    let gone = [rustix::io::Errno::NODEV, rustix::io::Errno::ADDRNOTAVAIL];
    match result {
        Err(error) if gone.iter().any(|gone| error.errno() == Some(gone.raw_os_error())) => Ok(()),
        other => Ok(other?),
    }
}

/// A setting's value; none where there is no such setting (a family that is off, an interface that is gone).
pub fn read_setting(path: &str) -> Option<String> {
    let text = fs::read_to_string(Path::new("/proc/sys").join(path)).ok()?;
    Some(text.trim().to_owned())
}

/// Writes a setting.
pub fn write_setting(path: &str, value: &str) -> anyhow::Result<()> {
    let full = Path::new("/proc/sys").join(path);
    fs::write(&full, value).with_context(|| format!("cannot write {value} to {}", full.display()))
}

/// A line of the record, about a [`Change`] or what another version has in its place.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
enum RecordLine<C = Change> {
    /// The boot that the record is of: the first line.
    Boot(String),
    /// The network namespace that the record is of; versions before did not write it.
    Namespace(NetworkNamespace),
    /// About to be made.
    Made(C),
    /// Taken back, or gone with its interface.
    Gone(C),
}

/// The record of changes, kept by the one process that makes them.
#[derive(Debug)]
pub struct Changes {
    path: PathBuf,
    file: File,
    made: Vec<Change>,
    /// What another version made that this one does not know, as it is on record: kept for whoever does.
    unknown: Vec<Value>,
}

impl Changes {
    /// Opens the record of a state directory, which has to be there. What another network namespace's record has is lost: see [`may_start_here`].
    ///
    /// # Errors
    /// It cannot be read or written.
    pub fn open(state_dir: &Path) -> anyhow::Result<Self> {
        let path = state_dir.join(RECORD_FILE);
        let here = NetworkNamespace::current()?;
        let Record { made, unknown, .. } = match read(state_dir)? {
            Record {
                namespace: Some(other),
                ..
            } if other != here => Record::default(),
            record => record,
        };
        // Written anew, so that it does not grow over the years; complete before it takes the name.
        let next = state_dir.join(format!("{RECORD_FILE}.next"));
        let write = || -> io::Result<File> {
            let mut text = line(&RecordLine::<Change>::Boot(boot()))?;
            text.push_str(&line(&RecordLine::<Change>::Namespace(here))?);
            for change in &made {
                text.push_str(&line(&RecordLine::Made(change.clone()))?);
            }
            for change in &unknown {
                text.push_str(&line(&RecordLine::Made(change))?);
            }
            let mut file = File::create(&next)?;
            file.write_all(text.as_bytes())?;
            file.sync_data()?;
            fs::rename(&next, &path)?;
            File::open(state_dir)?.sync_all()?;
            Ok(file)
        };
        let file = write().with_context(|| format!("cannot write {}", path.display()))?;
        let _ = fs::remove_file(state_dir.join(LEGACY_FILE)); // none but after an upgrade
        Ok(Self {
            path,
            file,
            made,
            unknown,
        })
    }

    /// Whether nothing is on record.
    pub fn is_empty(&self) -> bool {
        self.made.is_empty() && self.unknown.is_empty()
    }

    /// What on record only another version can take back, one message for each.
    pub fn of_another_version(&self) -> Vec<String> {
        let message = |change: &Value| {
            format!(
                "{change}: another version of ringwall has made this change: run that version's `ringwall detach`, then this one's"
            )
        };
        self.unknown.iter().map(message).collect()
    }

    /// How much is on record: what [`Self::take_back`] may leave.
    pub fn mark(&self) -> usize {
        self.made.len()
    }

    /// Puts changes on record that are about to be made. What is on record already stays as it is: it knows the state
    /// before ringwall.
    ///
    /// # Errors
    /// The record cannot be written: the changes must not be made.
    pub fn record(&mut self, changes: impl IntoIterator<Item = Change>) -> anyhow::Result<()> {
        let mut fresh: Vec<Change> = Vec::new();
        for change in changes {
            if !self
                .made
                .iter()
                .chain(&fresh)
                .any(|known| known.is_of_same(&change))
            {
                fresh.push(change);
            }
        }
        self.append(fresh.iter().cloned().map(RecordLine::Made))?;
        self.made.extend(fresh);
        Ok(())
    }

    fn append(&mut self, lines: impl Iterator<Item = RecordLine>) -> anyhow::Result<()> {
        let mut text = String::new();
        for entry in lines {
            text.push_str(&line(&entry)?);
        }
        if text.is_empty() {
            return Ok(());
        }
        self.file
            .write_all(text.as_bytes())
            .and_then(|()| self.file.sync_data())
            .with_context(|| {
                format!(
                    "cannot write {}: nothing is changed on the machine",
                    self.path.display()
                )
            })
    }

    /// Whether a change is on record.
    pub fn has(&self, change: &Change) -> bool {
        self.made.contains(change)
    }

    /// Forgets changes that are no more: their interface is gone, or they were undone in passing.
    pub fn forget(&mut self, which: impl Fn(&Change) -> bool) {
        let (gone, kept) = std::mem::take(&mut self.made)
            .into_iter()
            .partition::<Vec<_>, _>(|change| which(change));
        self.made = kept;
        // Should it fail, the next one finds that they are no more.
        if let Err(error) = self.append(gone.into_iter().map(RecordLine::Gone)) {
            tracing::debug!("{error:#}");
        }
    }

    /// Takes back what was put on record after a mark and is chosen, newest first. The answer is what could not be taken
    /// back; it stays on record.
    pub fn take_back(&mut self, after: usize, chosen: impl Fn(&Change) -> bool) -> Vec<String> {
        let mut failed = Vec::new();
        let mut view = KernelState::default();
        let links = Netlink::open().and_then(|mut netlink| {
            view.set_links(&netlink.links()?);
            Ok(netlink)
        });
        let mut netlink = match links {
            Ok(netlink) => netlink,
            Err(error) => return vec![error.to_string()],
        };
        let mut gone = Vec::new();
        for change in self.made.iter().skip(after).rev().filter(|change| chosen(change)) {
            match change.revert(&mut netlink, &view) {
                Ok(()) => gone.push(change.clone()),
                Err(error) => failed.push(format!("{error:#}")),
            }
        }
        self.forget(|change| gone.contains(change));
        failed
    }

    /// Removes the record, which has to be empty.
    ///
    /// # Errors
    /// It cannot be removed.
    pub fn remove(self) -> anyhow::Result<()> {
        debug_assert!(self.is_empty());
        fs::remove_file(&self.path).with_context(|| format!("cannot remove {}", self.path.display()))
    }
}

/// The network namespace that a state directory's record is of, if it is another than the calling thread's.
fn other_namespace(state_dir: &Path) -> anyhow::Result<Option<(NetworkNamespace, NetworkNamespace)>> {
    let here = NetworkNamespace::current()?;
    let recorded = read(state_dir)?.namespace;
    Ok(recorded
        .filter(|namespace| *namespace != here)
        .map(|other| (other, here)))
}

/// Refuses to take anything off where the record is of another network namespace: what it names is not here, and interfaces that are called
/// the same are not ringwall's.
///
/// # Errors
/// It is, or cannot be read.
pub fn may_detach_here(state_dir: &Path) -> anyhow::Result<()> {
    let Some((other, here)) = other_namespace(state_dir)? else {
        return Ok(());
    };
    let record = state_dir.join(RECORD_FILE);
    let way = match other.entrance() {
        Some(entrance) => format!(
            "run it there: `nsenter --net={} ringwall detach ...`",
            entrance.display()
        ),
        None => format!(
            "run it there; if that namespace no longer exists, remove {} and run `ringwall detach` again",
            record.display()
        ),
    };
    bail!(
        "{}: ringwall ran in the network namespace {other}, and this is {here}: nothing was changed; {way}",
        record.display()
    )
}

/// Refuses to start where the record is of another network namespace that is still there: the start would forget what to take back in it.
/// One that is gone took everything along.
///
/// # Errors
/// It can be entered, or the record cannot be read.
pub fn may_start_here(state_dir: &Path) -> anyhow::Result<()> {
    let Some((other, here)) = other_namespace(state_dir)? else {
        return Ok(());
    };
    let record = state_dir.join(RECORD_FILE);
    let Some(entrance) = other.entrance() else {
        tracing::warn!(
            record = %record.display(),
            "the network namespace {other}, where ringwall ran before, was not found: its record is void in this one, {here}"
        );
        return Ok(());
    };
    bail!(
        "{}: ringwall ran in the network namespace {other}, and this is {here}: run `nsenter --net={} ringwall detach ...` first, or give this \
         instance a `name`, `stateDir` and `runtimeDir` of its own",
        record.display(),
        entrance.display()
    )
}

/// What a record says is made, oldest first.
#[derive(Debug, Default)]
struct Record {
    namespace: Option<NetworkNamespace>,
    made: Vec<Change>,
    unknown: Vec<Value>,
}

fn line<C: Serialize>(entry: &RecordLine<C>) -> io::Result<String> {
    Ok(serde_json::to_string(entry)? + "\n")
}

fn boot() -> String {
    fs::read_to_string(BOOT_ID)
        .map(|text| text.trim().to_owned())
        .unwrap_or_default()
}

/// What is on record; nothing where there is no record.
fn read(state_dir: &Path) -> anyhow::Result<Record> {
    let path = state_dir.join(RECORD_FILE);
    match fs::read(&path) {
        Ok(text) => Ok(parse(&text, &boot())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Record {
            made: read_legacy(state_dir),
            ..Record::default()
        }),
        Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
    }
}

fn parse(text: &[u8], boot: &str) -> Record {
    let mut record = Record::default();
    for text in text.split_inclusive(|byte| *byte == b'\n') {
        match serde_json::from_slice(text) {
            Ok(RecordLine::Boot(other)) if other != boot => return Record::default(),
            Ok(RecordLine::Boot(_)) => {}
            Ok(RecordLine::Namespace(namespace)) => record.namespace = Some(namespace),
            Ok(RecordLine::Made(change)) => record.made.push(change),
            Ok(RecordLine::Gone(change)) => record.made.retain(|known: &Change| *known != change),
            Err(_) => match serde_json::from_slice::<RecordLine<Value>>(text) {
                Ok(RecordLine::Made(change)) => record.unknown.push(change),
                Ok(RecordLine::Gone(change)) => record.unknown.retain(|known| *known != change),
                // The last line may be cut off: then it was not on disk, and its change was not made.
                Ok(RecordLine::Boot(_) | RecordLine::Namespace(_)) | Err(_) => {}
            },
        }
    }
    record
}

/// What a version up to 0.1 made: interfaces by name alone, so the ones that have the names now are meant.
fn read_legacy(state_dir: &Path) -> Vec<Change> {
    #[derive(Default, Deserialize)]
    #[serde(default)]
    struct LegacyRecord {
        links: Vec<String>,
        addresses: Vec<(String, IpAddr, u8)>,
        mtus: Vec<(String, u32)>,
    }
    let Some(former) = fs::read(state_dir.join(LEGACY_FILE))
        .ok()
        .and_then(|text| serde_json::from_slice::<LegacyRecord>(&text).ok())
    else {
        return Vec::new();
    };
    let mut view = KernelState::default();
    if let Ok(links) = Netlink::open().and_then(|mut netlink| netlink.links()) {
        view.set_links(&links);
    }
    let mut made = Vec::new();
    for inner in former.links {
        let peer = view.link_named(&inner).and_then(|(_, link)| link.peer);
        if let Some(outer) = peer.and_then(|peer| view.links.get(&peer)) {
            made.push(Change::Pair {
                inner,
                outer: outer.name.clone(),
            });
        }
    }
    for (name, address, length) in former.addresses {
        // An IPv4 address that is the last of its interface takes the interface's routes along: it stays, said in the log.
        if address.is_ipv4() {
            tracing::warn!(
                interface = name,
                %address,
                "left by an earlier version: remove it when the interface has no routes"
            );
            continue;
        }
        if let Some((index, _)) = view.link_named(&name) {
            made.push(Change::Address {
                interface: Interface { name, index },
                address,
                length,
            });
        }
    }
    for (name, before) in former.mtus {
        if let Some((index, link)) = view.link_named(&name) {
            made.push(Change::Mtu {
                after: link.mtu,
                interface: Interface { name, index },
                before,
            });
        }
    }
    made
}

#[cfg(test)]
#[allow(clippy::unwrap_used)] // a test that panics has failed
mod tests {
    use super::*;

    fn setting(path: &str, before: &str) -> Change {
        Change::Setting {
            path: path.to_owned(),
            interface: None,
            before: before.to_owned(),
            after: "0".to_owned(),
        }
    }

    #[test]
    fn the_first_record_of_a_thing_is_the_one_that_counts() {
        let dir = tempfile::tempdir().unwrap();
        let mut changes = Changes::open(dir.path()).unwrap();
        changes
            .record([setting("net/a", "1"), setting("net/b", "2")])
            .unwrap();
        drop(changes);
        // Killed, and started again: what the machine has now is ringwall's own doing.
        let mut changes = Changes::open(dir.path()).unwrap();
        assert_eq!(changes.mark(), 2);
        changes
            .record([setting("net/a", "0"), setting("net/c", "3")])
            .unwrap();
        changes.forget(|change| *change == setting("net/b", "2"));
        let text = fs::read(dir.path().join(RECORD_FILE)).unwrap();
        assert_eq!(
            parse(&text, &boot()).made,
            [setting("net/a", "1"), setting("net/c", "3")]
        );
        assert_eq!(
            Changes::open(dir.path()).unwrap().made,
            [setting("net/a", "1"), setting("net/c", "3")]
        );
    }

    #[test]
    fn a_record_may_be_cut_off_anywhere() {
        let dir = tempfile::tempdir().unwrap();
        let mut changes = Changes::open(dir.path()).unwrap();
        changes
            .record([setting("net/a", "1"), setting("net/b", "2")])
            .unwrap();
        let text = fs::read(dir.path().join(RECORD_FILE)).unwrap();
        let mut most = 0;
        for length in 0..=text.len() {
            let made = parse(&text[..length], &boot()).made;
            assert!(made.len() >= most && made.len() <= 2);
            most = made.len();
            fs::write(dir.path().join(RECORD_FILE), &text[..length]).unwrap();
            let again = Changes::open(dir.path()).unwrap();
            assert_eq!(
                again.made, made,
                "what can be read is kept, and the rest begins on a line of its own"
            );
        }
        assert_eq!(most, 2);
    }

    #[test]
    fn a_record_of_another_boot_says_nothing() {
        let text = line(&RecordLine::<Change>::Boot("then".to_owned())).unwrap()
            + &line(&RecordLine::Made(setting("net/a", "1"))).unwrap();
        assert_eq!(parse(text.as_bytes(), "now").made, []);
        assert_eq!(parse(text.as_bytes(), "then").made.len(), 1);
    }

    #[test]
    fn a_record_of_another_network_namespace_says_nothing_here() {
        let dir = tempfile::tempdir().unwrap();
        let here = NetworkNamespace::current().unwrap();
        let gone: NetworkNamespace = serde_json::from_str(r#"{"device":0,"inode":1}"#).unwrap();
        let write = |namespace: Option<NetworkNamespace>| {
            let mut text = line(&RecordLine::<Change>::Boot(boot())).unwrap();
            if let Some(namespace) = namespace {
                text += &line(&RecordLine::<Change>::Namespace(namespace)).unwrap();
            }
            text += &line(&RecordLine::Made(setting("net/a", "1"))).unwrap();
            fs::write(dir.path().join(RECORD_FILE), text).unwrap();
        };
        // An earlier version's record names none: it is of the namespace in which it is read.
        for namespace in [None, Some(here)] {
            write(namespace);
            may_detach_here(dir.path()).unwrap();
            may_start_here(dir.path()).unwrap();
            assert_eq!(Changes::open(dir.path()).unwrap().made, [setting("net/a", "1")]);
            assert_eq!(read(dir.path()).unwrap().namespace, Some(here));
        }
        write(Some(gone));
        let refusal = may_detach_here(dir.path()).unwrap_err().to_string();
        for word in [
            "net:[1]",
            &here.to_string(),
            RECORD_FILE,
            "nothing was changed",
            "remove",
        ] {
            assert!(refusal.contains(word), "{word}: {refusal}");
        }
        may_start_here(dir.path()).unwrap();
        assert_eq!(Changes::open(dir.path()).unwrap().made, []);
        may_detach_here(dir.path()).unwrap();
    }

    #[test]
    fn what_another_version_has_made_stays_on_record() {
        let dir = tempfile::tempdir().unwrap();
        let mut text = line(&RecordLine::<Change>::Boot(boot())).unwrap();
        for change in ["a", "b"] {
            text += &line(&RecordLine::Made(
                serde_json::json!({ "tunnel": { "name": change } }),
            ))
            .unwrap();
        }
        text += &line(&RecordLine::Made(setting("net/a", "1"))).unwrap();
        text += &line(&RecordLine::Gone(
            serde_json::json!({ "tunnel": { "name": "a" } }),
        ))
        .unwrap();
        fs::write(dir.path().join(RECORD_FILE), text).unwrap();
        for _ in 0..2 {
            let changes = Changes::open(dir.path()).unwrap();
            assert_eq!(changes.made, [setting("net/a", "1")]);
            let said = changes.of_another_version();
            assert_eq!(said.len(), 1, "{said:?}");
            assert!(
                said[0].starts_with(r#"{"tunnel":{"name":"b"}}: another version"#),
                "{said:?}"
            );
            assert!(!changes.is_empty());
        }
    }
}
