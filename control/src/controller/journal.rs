//! One line of the log for each generation, once every worker decides by it: what changed and from where, which flows
//! that opens and closes, how it was proven and how long it took.

use std::{
    collections::BTreeSet,
    fmt::{Display, Write},
    sync::Arc,
    time::Duration,
};

use imbl::{OrdMap, ordmap::DiffItem};
use ringwall_dataplane::classify::Snapshot;
use tokio::sync::Semaphore;

use super::{deciding::Deciding, pipeline::Made};
use crate::{
    cluster::Cluster,
    refine::{self, Compiled},
};

/// As many objects of a kind are named in one line, and as many files.
const NAMED: usize = 6;

/// Flows are counted in clusters of at most so many pods: about a tenth of a second of one CPU, beside the work.
const COUNTED_PODS: usize = 5_000;

/// What there is to say about a generation besides what changed.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    /// The source.
    pub(super) source: String,
    /// What there changed, such as files; may be empty.
    pub(super) files: BTreeSet<String>,
    /// How it was proven.
    pub(super) proven: String,
}

impl Entry {
    pub(super) fn new(source: String, files: BTreeSet<String>, made: &Made) -> Self {
        let proven = match &made.proof {
            None => "not".to_owned(),
            Some(proof) => format!(
                "{} in {:.1} ms",
                if proof.report.whole {
                    "all of it"
                } else {
                    "what changed"
                },
                millis(proof.took)
            ),
        };
        Self {
            source,
            files,
            proven,
        }
    }

    fn from(&self) -> String {
        if self.files.is_empty() {
            self.source.clone()
        } else {
            format!("{}: {}", self.source, listed(self.files.iter()))
        }
    }
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

/// Writes the lines.
#[derive(Debug)]
pub(super) struct Journal {
    /// So that flows are counted for one generation at a time.
    counting: Arc<Semaphore>,
}

impl Default for Journal {
    fn default() -> Self {
        Self {
            counting: Arc::new(Semaphore::new(1)),
        }
    }
}

impl Journal {
    /// Says that `after` is in force, `before` was. Within a tokio runtime.
    pub(super) fn adopted(
        &self,
        before: Option<Arc<Deciding>>,
        after: Arc<Deciding>,
        entry: Entry,
        adoption: Duration,
        total: Duration,
    ) {
        let changes = Changes::between(before.as_ref().map(|it| &it.state.cluster), &after.state.cluster);
        let generation = after.generation;
        let write = move |flows: Result<Flows, String>| {
            let (opened, closed, flows) = match flows {
                Ok(Flows { opened, closed }) => (Some(opened), Some(closed), None),
                Err(why) => (None, None, Some(why)),
            };
            tracing::info!(
                generation,
                from = entry.from(),
                pairs_opened = opened,
                pairs_closed = closed,
                flows,
                proven = entry.proven,
                adopted_micros = adoption.as_micros() as u64,
                since_event_micros = total.as_micros() as u64,
                "policy in force: {}",
                changes.text
            );
        };
        let small = |it: &Deciding| it.state.cluster.pods.len() <= COUNTED_PODS;
        match before {
            Some(before) if changes.of_policy && small(&before) && small(&after) => {
                match Arc::clone(&self.counting).try_acquire_owned() {
                    Ok(permit) => drop(tokio::spawn(async move {
                        let counted = tokio::task::spawn_blocking(move || Flows::between(&before, &after));
                        let counted = counted.await;
                        drop(permit);
                        write(counted.unwrap_or_else(|error| Err(format!("not counted: {error}"))));
                    })),
                    Err(_) => write(Err("not counted: those before are still being counted".to_owned())),
                }
            }
            Some(_) if changes.of_policy => {
                write(Err(format!("not counted: more than {COUNTED_PODS} pods")));
            }
            Some(_) => write(Err("not counted: no policy changed".to_owned())),
            None => write(Err("not counted: the first".to_owned())),
        }
    }
}

/// Pairs of ends between which one generation lets something pass that the one before did not, and the other way round.
struct Flows {
    opened: u64,
    closed: u64,
}

impl Flows {
    fn between(before: &Deciding, after: &Deciding) -> Result<Self, String> {
        let side = |deciding: &Deciding| Snapshot::from_image(&deciding.image);
        let from = Compiled {
            cluster: &before.state.cluster,
            snapshot: side(before),
        };
        let to = Compiled {
            cluster: &after.state.cluster,
            snapshot: side(after),
        };
        let difference = refine::difference(&from, &to).map_err(|error| format!("not counted: {error}"))?;
        let mut flows = Self { opened: 0, closed: 0 };
        for (_, pairs) in difference.totals.pairs() {
            flows.opened += pairs.opened;
            flows.closed += pairs.closed;
        }
        Ok(flows)
    }
}

/// What changed, in words.
#[derive(Debug, PartialEq, Eq)]
struct Changes {
    text: String,
    /// Whether anything but pods did.
    of_policy: bool,
}

impl Changes {
    fn between(before: Option<&Cluster>, after: &Cluster) -> Self {
        let Some(before) = before else {
            return Self {
                text: format!(
                    "{} NetworkPolicies, {} Namespaces, {} Nodes, {} Pods",
                    after.policies.len(),
                    after.namespaces.len(),
                    after.nodes.len(),
                    after.pods.len()
                ),
                of_policy: true,
            };
        };
        let mut parts = Vec::new();
        of_kind("NetworkPolicy", &before.policies, &after.policies, &mut parts);
        of_kind("Namespace", &before.namespaces, &after.namespaces, &mut parts);
        of_kind("Node", &before.nodes, &after.nodes, &mut parts);
        let of_policy = !parts.is_empty() || before.settings != after.settings;
        of_kind("Pod", &before.pods, &after.pods, &mut parts);
        if parts.is_empty() {
            parts.push("nothing that counts".to_owned());
        }
        Self {
            text: parts.join("; "),
            of_policy,
        }
    }
}

fn of_kind<K: Ord + Clone + Display, V: PartialEq + Clone>(
    kind: &str,
    before: &OrdMap<K, V>,
    after: &OrdMap<K, V>,
    parts: &mut Vec<String>,
) {
    let (mut added, mut changed, mut removed) = (Vec::new(), Vec::new(), Vec::new());
    for item in before.diff(after) {
        match item {
            DiffItem::Add(key, _) => added.push(key),
            DiffItem::Update { new: (key, _), .. } => changed.push(key),
            DiffItem::Remove(key, _) => removed.push(key),
        }
    }
    for (how, keys) in [("added", added), ("changed", changed), ("removed", removed)] {
        if !keys.is_empty() {
            parts.push(format!("{how} {kind} {}", listed(keys.into_iter())));
        }
    }
}

/// The first ones by name, the others by their number.
fn listed<T: Display>(items: impl Iterator<Item = T>) -> String {
    let mut text = String::new();
    let mut more = 0_usize;
    for (at, item) in items.enumerate() {
        if at >= NAMED {
            more += 1;
        } else {
            // Writing into a String cannot fail.
            let _ = write!(text, "{}{item}", if at == 0 { "" } else { ", " });
        }
    }
    if more > 0 {
        let _ = write!(text, " and {more} more");
    }
    text
}

#[cfg(test)]
#[allow(clippy::unwrap_used)] // a failed step is a failed test
mod tests {
    use super::*;
    use crate::cluster::{Namespace, Node, Pod};

    fn node(name: &str) -> Arc<Node> {
        Arc::new(Node {
            name: name.to_owned(),
            addresses: Vec::new(),
            pod_cidrs: Vec::new(),
        })
    }

    #[test]
    fn changes_are_named_by_kind_the_first_ones_by_name() {
        let mut before = Cluster::default();
        for number in 0..9 {
            before
                .nodes
                .insert(format!("n{number}"), node(&format!("n{number}")));
        }
        let mut after = before.clone();
        assert_eq!(
            Changes::between(Some(&before), &after),
            Changes {
                text: "nothing that counts".to_owned(),
                of_policy: false
            }
        );
        after.nodes.clear();
        after.namespaces.insert(
            "a".to_owned(),
            Arc::new(Namespace {
                name: "a".to_owned(),
                labels: Default::default(),
                terminating: false,
            }),
        );
        assert_eq!(
            Changes::between(Some(&before), &after),
            Changes {
                text: "added Namespace a; removed Node n0, n1, n2, n3, n4, n5 and 3 more".to_owned(),
                of_policy: true
            }
        );
        let mut more = after.clone();
        let key = crate::cluster::ObjectKey {
            namespace: "a".to_owned(),
            name: "p".to_owned(),
        };
        more.pods.insert(
            key.clone(),
            Arc::new(Pod {
                key,
                uid: String::new(),
                created: None,
                labels: Default::default(),
                addresses: Vec::new(),
                node: None,
                host_network: false,
                finished: false,
                named_ports: Vec::new(),
                template_of: None,
            }),
        );
        assert_eq!(
            Changes::between(Some(&after), &more),
            Changes {
                text: "added Pod a/p".to_owned(),
                of_policy: false
            }
        );
        let first = Changes::between(None, &more);
        assert_eq!(first.text, "0 NetworkPolicies, 1 Namespaces, 0 Nodes, 1 Pods");
    }
}
