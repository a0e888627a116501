//! Which container has which interface, as the CNI plugin said. A file in the runtime directory keeps it over a restart, and
//! ends with the interfaces: at the next boot.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

/// Name of the file in the runtime directory.
pub const CONTAINERS_FILE: &str = "containers.json";

/// A container's interface on the host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct HostInterface {
    name: String,
    index: u32,
}

/// Containers by id.
#[derive(Debug)]
pub struct Containers {
    file: PathBuf,
    interfaces: BTreeMap<String, HostInterface>,
}

impl Containers {
    /// What a predecessor kept; nothing where it kept nothing, or nothing that can be read.
    pub fn read(runtime_dir: &Path) -> Self {
        let file = runtime_dir.join(CONTAINERS_FILE);
        let interfaces = match fs::read(&file) {
            Ok(bytes) => serde_json::from_slice(&bytes).unwrap_or_else(|error| {
                tracing::warn!(file = %file.display(), %error, "containers' interfaces are forgotten");
                BTreeMap::new()
            }),
            Err(_) => BTreeMap::new(),
        };
        Self { file, interfaces }
    }

    /// Forgets containers whose interface is gone. `there` are names by index.
    pub fn retain(&mut self, there: &BTreeMap<u32, &str>) {
        self.interfaces
            .retain(|_, known| there.get(&known.index) == Some(&known.name.as_str()));
    }

    /// Keeps whose an interface is.
    ///
    /// # Errors
    /// The file cannot be written: a later process would not know.
    pub fn insert(&mut self, container: &str, name: &str, index: u32) -> io::Result<()> {
        let interface = HostInterface {
            name: name.to_owned(),
            index,
        };
        self.interfaces.insert(container.to_owned(), interface);
        self.write()
    }

    /// Forgets a container; its interface's index, if it was known.
    pub fn remove(&mut self, container: &str) -> Option<u32> {
        let known = self.interfaces.remove(container)?;
        if let Err(error) = self.write() {
            // A later process releases the interface once more, or finds it gone.
            tracing::warn!(file = %self.file.display(), %error, "containers' interfaces");
        }
        Some(known.index)
    }

    /// Forgets all containers but these; their interfaces' indices.
    pub fn remove_all_but(&mut self, valid: &BTreeSet<String>) -> BTreeSet<u32> {
        let all: Vec<String> = self.interfaces.keys().cloned().collect();
        let lost: BTreeSet<u32> = all
            .iter()
            .filter(|container| !valid.contains(*container))
            .filter_map(|container| self.remove(container))
            .collect();
        // An index may be another interface's by now.
        let in_use: BTreeSet<u32> = self.interfaces.values().map(|known| known.index).collect();
        lost.difference(&in_use).copied().collect()
    }

    fn write(&self) -> io::Result<()> {
        let next = self.file.with_extension("json.next");
        fs::write(&next, serde_json::to_vec(&self.interfaces)?)?;
        fs::rename(&next, &self.file)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)] // a failed step is a failed test
mod tests {
    use super::*;

    #[test]
    fn what_a_runtime_has_lost_is_forgotten_and_its_interface_released() {
        let folder = tempfile::tempdir().unwrap();
        let mut known = Containers::read(folder.path());
        for (container, name, index) in [("a", "veth1", 5), ("b", "veth2", 6), ("c", "veth3", 6)] {
            known.insert(container, name, index).unwrap();
        }
        let valid = BTreeSet::from(["c".to_owned(), "z".to_owned()]);
        // b's index is c's interface by now.
        assert_eq!(known.remove_all_but(&valid), BTreeSet::from([5]));
        assert_eq!(known.remove("c"), Some(6));
    }

    #[test]
    fn a_successor_knows_whose_interfaces_are_still_there() {
        let folder = tempfile::tempdir().unwrap();
        let mut first = Containers::read(folder.path());
        for (container, name, index) in [("a", "veth1", 5), ("b", "veth2", 6), ("c", "veth3", 7)] {
            first.insert(container, name, index).unwrap();
        }
        assert_eq!(first.remove("c"), Some(7));
        let mut second = Containers::read(folder.path());
        // The index of b's interface is another one's by now.
        second.retain(&BTreeMap::from([(5, "veth1"), (6, "eth7"), (7, "veth3")]));
        assert_eq!(second.remove("a"), Some(5));
        assert_eq!([second.remove("b"), second.remove("c")], [None; 2]);
        fs::write(folder.path().join(CONTAINERS_FILE), b"{").unwrap();
        assert_eq!(Containers::read(folder.path()).remove("a"), None);
    }
}
