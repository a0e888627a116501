//! Which container has which interface, and which pod it is of with which addresses, as the CNI plugin said. A file in the
//! runtime directory keeps it over a restart, and ends with the interfaces: at the next boot.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    net::IpAddr,
    path::{Path, PathBuf},
};

use ringwall_messages::cni::{Attachment, PodStart};
use serde::{Deserialize, Serialize};

/// Name of the file in the runtime directory.
pub const CONTAINERS_FILE: &str = "containers.json";

/// A container: its interface on the host, and its pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Container {
    /// Of the interface.
    name: String,
    /// Of the interface.
    index: u32,
    /// `namespace/name`; None where the runtime did not say, a later container is of the same pod, or an earlier release wrote
    /// the file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pod: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    uid: Option<String>,
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    addresses: BTreeSet<IpAddr>,
}

/// Containers by id.
#[derive(Debug)]
pub struct Containers {
    file: PathBuf,
    by_id: BTreeMap<String, Container>,
}

impl Containers {
    /// What a predecessor kept, and what is wrong with that, in words; nothing where it kept nothing, or nothing that can be read.
    pub fn read(runtime_dir: &Path) -> (Self, Option<String>) {
        let file = runtime_dir.join(CONTAINERS_FILE);
        let read = match fs::read(&file) {
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(io::Error::from),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(BTreeMap::new()),
            Err(error) => Err(error),
        };
        let problem = read.as_ref().err().map(|error| {
            format!(
                "{} cannot be read ({error}) and begins anew: a pod that has started and whose address the API server does not \
                 have yet is an unknown endpoint until it has",
                file.display()
            )
        });
        let by_id = read.unwrap_or_default();
        (Self { file, by_id }, problem)
    }

    /// Forgets containers whose interface is gone. `there` are names by index.
    pub fn retain(&mut self, there: &BTreeMap<u32, &str>) {
        self.by_id
            .retain(|_, known| there.get(&known.index) == Some(&known.name.as_str()));
    }

    /// Keeps whose an interface is.
    ///
    /// # Errors
    /// The file cannot be written: a later process would not know.
    pub fn insert(&mut self, attachment: &Attachment, name: &str, index: u32) -> io::Result<()> {
        // A pod has one container at a time that counts: a runtime that tries again does so under another id.
        if attachment.pod.is_some() {
            for other in self
                .by_id
                .values_mut()
                .filter(|other| other.pod == attachment.pod)
            {
                other.pod = None;
            }
        }
        let container = Container {
            name: name.to_owned(),
            index,
            pod: attachment.pod.clone(),
            uid: attachment.uid.clone(),
            addresses: attachment.addresses.clone(),
        };
        self.by_id.insert(attachment.container.clone(), container);
        self.write()
    }

    /// The pods of containers, each with its interface's index and name.
    pub fn pod_starts(&self) -> Vec<(u32, String, PodStart)> {
        let starts = self.by_id.iter().filter_map(|(id, container)| {
            let start = PodStart {
                container: id.clone(),
                pod: container.pod.clone()?,
                uid: container.uid.clone(),
                addresses: container.addresses.clone(),
            };
            Some((container.index, container.name.clone(), start))
        });
        starts.collect()
    }

    /// Forgets a container; its interface's index, if it was known.
    pub fn remove(&mut self, container: &str) -> Option<u32> {
        let known = self.by_id.remove(container)?;
        if let Err(error) = self.write() {
            // A later process releases the interface once more, or finds it gone.
            tracing::warn!(file = %self.file.display(), %error, "containers' interfaces");
        }
        Some(known.index)
    }

    /// Forgets all containers but these; their interfaces' indices.
    pub fn remove_all_but(&mut self, valid: &BTreeSet<String>) -> BTreeSet<u32> {
        let all: Vec<String> = self.by_id.keys().cloned().collect();
        let lost: BTreeSet<u32> = all
            .iter()
            .filter(|container| !valid.contains(*container))
            .filter_map(|container| self.remove(container))
            .collect();
        // An index may be another interface's by now.
        let in_use: BTreeSet<u32> = self.by_id.values().map(|known| known.index).collect();
        lost.difference(&in_use).copied().collect()
    }

    fn write(&self) -> io::Result<()> {
        let next = self.file.with_extension("json.next");
        fs::write(&next, serde_json::to_vec(&self.by_id)?)?;
        fs::rename(&next, &self.file)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)] // a failed step is a failed test
mod tests {
    use super::*;

    fn attachment(container: &str, pod: &str, address: &str) -> Attachment {
        Attachment {
            container: container.to_owned(),
            pod: Some(pod.to_owned()),
            uid: Some(format!("{pod}-1")),
            host_interfaces: Vec::new(),
            addresses: BTreeSet::from([address.parse().unwrap()]),
        }
    }

    fn read(folder: &Path) -> Containers {
        let (known, problem) = Containers::read(folder);
        assert_eq!(problem, None);
        known
    }

    #[test]
    fn what_a_runtime_has_lost_is_forgotten_and_its_interface_released() {
        let folder = tempfile::tempdir().unwrap();
        let mut known = read(folder.path());
        for (container, name, index) in [("a", "veth1", 5), ("b", "veth2", 6), ("c", "veth3", 6)] {
            let attachment = attachment(container, &format!("shop/{container}"), "10.1.0.5");
            known.insert(&attachment, name, index).unwrap();
        }
        let valid = BTreeSet::from(["c".to_owned(), "z".to_owned()]);
        // b's index is c's interface by now.
        assert_eq!(known.remove_all_but(&valid), BTreeSet::from([5]));
        assert_eq!(known.remove("c"), Some(6));
    }

    #[test]
    fn a_successor_knows_whose_interfaces_are_still_there() {
        let folder = tempfile::tempdir().unwrap();
        let mut first = read(folder.path());
        for (container, name, index) in [("a", "veth1", 5), ("b", "veth2", 6), ("c", "veth3", 7)] {
            let attachment = attachment(
                container,
                &format!("shop/{container}"),
                &format!("10.1.0.{index}"),
            );
            first.insert(&attachment, name, index).unwrap();
        }
        assert_eq!(first.remove("c"), Some(7));
        let mut second = read(folder.path());
        // The index of b's interface is another one's by now.
        second.retain(&BTreeMap::from([(5, "veth1"), (6, "eth7"), (7, "veth3")]));
        let start = PodStart {
            container: "a".to_owned(),
            pod: "shop/a".to_owned(),
            uid: Some("shop/a-1".to_owned()),
            addresses: BTreeSet::from(["10.1.0.5".parse().unwrap()]),
        };
        assert_eq!(second.pod_starts(), [(5, "veth1".to_owned(), start)]);
        assert_eq!(second.remove("a"), Some(5));
        assert_eq!([second.remove("b"), second.remove("c")], [None; 2]);
    }

    #[test]
    fn a_pod_is_in_its_newest_container() {
        let folder = tempfile::tempdir().unwrap();
        let mut known = read(folder.path());
        for (container, index) in [("z", 5), ("a", 6)] {
            let attachment = attachment(container, "shop/web", &format!("10.1.0.{index}"));
            known.insert(&attachment, "veth", index).unwrap();
        }
        let starts = read(folder.path()).pod_starts();
        let containers: Vec<&str> = starts
            .iter()
            .map(|(.., start)| start.container.as_str())
            .collect();
        assert_eq!(containers, ["a"]);
        // The other one's interface is still its own.
        assert_eq!(known.remove("z"), Some(5));
    }

    #[test]
    fn a_file_of_an_earlier_release_names_no_pods_and_a_broken_one_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join(CONTAINERS_FILE);
        fs::write(&file, r#"{"a": {"name": "veth1", "index": 5}}"#).unwrap();
        let mut earlier = read(folder.path());
        assert_eq!(earlier.pod_starts(), []);
        assert_eq!(earlier.remove("a"), Some(5));
        let of_a = attachment("a", "shop/a", "10.1.0.5");
        let whole = |containers: &mut Containers| containers.insert(&of_a, "veth1", 5).unwrap();
        for broken in [
            "",
            "{",
            "[]",
            r#"{"a": {"name": "veth1"}}"#,
            r#"{"a": {"name": "veth1", "index": 5, "addresses": ["x"]}}"#,
        ] {
            fs::write(&file, broken).unwrap();
            let (mut known, problem) = Containers::read(folder.path());
            let problem = problem.unwrap();
            assert!(problem.contains("containers.json cannot be read"), "{problem}");
            assert_eq!(known.remove("a"), None, "{broken}");
            whole(&mut known);
            assert_eq!(read(folder.path()).pod_starts().len(), 1, "{broken}");
        }
        // Not only what is in it.
        fs::remove_file(&file).unwrap();
        fs::create_dir(&file).unwrap();
        let (_, problem) = Containers::read(folder.path());
        assert!(problem.unwrap().contains("directory"));
    }
}
