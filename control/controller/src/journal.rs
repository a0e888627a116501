//! One line of the log for each generation, once every worker decides by it: what changed and from where, which flows
//! that opens and closes, how it was proven and how long it took. Generations that follow each other within a second and
//! change nothing but pods share a line: there may be hundreds of them.

use std::{
    collections::BTreeSet,
    fmt::{Display, Write},
    sync::Arc,
    time::{Duration, Instant},
};

use imbl::{OrdMap, ordmap::DiffItem};
use ringwall_analyse::{
    refine,
    refine::{Compiled, RefineError},
};
use ringwall_dataplane::classify::Snapshot;
use ringwall_messages::ResourceVersions;
use ringwall_policy::{Cluster, PolicyId, PolicyKind, TieredPolicy};
use tokio::sync::Semaphore;

use super::{active_policy::CompiledPolicy, pipeline::CompiledSnapshot};

/// As many objects of a kind are named in one line, and as many files.
const MAX_NAMED: usize = 6;

/// Flows are counted in clusters of at most so many pods: about a tenth of a second of one CPU, beside the work.
const MAX_COUNTED_PODS: usize = 5_000;

/// What there is to say about a generation besides what changed.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    /// The source.
    pub(super) source: String,
    /// What there changed, such as files; may be empty.
    pub(super) files: BTreeSet<String>,
    /// Which versions of the API server's objects it reflects; empty where the source has none.
    pub(super) versions: String,
    /// How it was proven.
    pub(super) proven: String,
}

impl Entry {
    pub(super) fn new(
        source: String,
        files: BTreeSet<String>,
        versions: ResourceVersions,
        made: &CompiledSnapshot,
    ) -> Self {
        let proven = match &made.proof {
            None if made.unproven.is_some() => "not yet: it took longer than verify.deadline".to_owned(),
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
            versions: versions.to_string(),
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

/// A generation, or several, that every worker has adopted.
#[derive(Debug)]
pub(super) struct Adopted {
    /// What decided before.
    pub(super) before: Option<Arc<CompiledPolicy>>,
    /// What decides now.
    pub(super) after: Arc<CompiledPolicy>,
    pub(super) entry: Entry,
    /// From its arrival at the dataplane to the adoption by the last worker.
    pub(super) adoption: Duration,
    /// From its first event to that.
    pub(super) total: Duration,
    /// How many generations.
    pub(super) generations: u64,
}

impl Adopted {
    fn followed_by(&mut self, next: Self) {
        let Self {
            after,
            mut entry,
            adoption,
            total,
            generations,
            ..
        } = next;
        entry.files.append(&mut self.entry.files);
        self.after = after;
        self.entry = entry;
        self.adoption = self.adoption.max(adoption);
        self.total = self.total.max(total);
        self.generations += generations;
    }

    fn changes(&self) -> Changes {
        let before = self.before.as_ref().map(|it| &it.state.cluster);
        Changes::between(before, &self.after.state.cluster)
    }

    /// Whether flows can be counted beside the work.
    fn is_small(&self) -> bool {
        let small = |it: &Arc<CompiledPolicy>| it.state.cluster.pods.len() <= MAX_COUNTED_PODS;
        self.before.as_ref().is_some_and(small) && small(&self.after)
    }

    fn write(&self, changes: &Changes, flows: Result<Flows, String>) {
        let (opened, closed, flows) = match flows {
            Ok(Flows { opened, closed }) => (Some(opened), Some(closed), None),
            Err(why) => (None, None, Some(why)),
        };
        tracing::info!(
            generation = self.after.generation,
            generations = (self.generations > 1).then_some(self.generations),
            from = self.entry.from(),
            resource_versions = (!self.entry.versions.is_empty()).then_some(self.entry.versions.as_str()),
            pairs_opened = opened,
            pairs_closed = closed,
            flows,
            proven = self.entry.proven,
            adopted_micros = self.adoption.as_micros() as u64,
            since_event_micros = self.total.as_micros() as u64,
            "policy in force: {}",
            changes.text
        );
    }
}

/// Writes the lines.
#[derive(Debug)]
pub(super) struct Journal {
    /// So that flows are counted for one generation at a time.
    counting: Arc<Semaphore>,
    /// What has not been written yet.
    gathered: Option<Adopted>,
    /// Generations that change nothing but pods share a line for so long.
    gather: Duration,
    /// When a line about pods alone may be written next.
    next: Option<Instant>,
}

impl Journal {
    pub(super) fn new(gather: Duration) -> Self {
        Self {
            counting: Arc::new(Semaphore::new(1)),
            gathered: None,
            gather,
            next: None,
        }
    }

    /// Notes what is in force. Within a tokio runtime.
    pub(super) fn adopted(&mut self, adopted: Adopted) {
        let before = adopted.before.as_ref().map(|it| &it.state.cluster);
        if of_policy(before, &adopted.after.state.cluster) {
            self.write_gathered();
            return self.write(adopted);
        }
        match &mut self.gathered {
            Some(gathered) => gathered.followed_by(adopted),
            None => self.gathered = Some(adopted),
        }
        self.write_due();
    }

    /// Writes what is due.
    pub(super) fn write_due(&mut self) {
        if self.next.is_none_or(|next| next <= Instant::now()) {
            self.write_gathered();
        }
    }

    fn write_gathered(&mut self) {
        if let Some(gathered) = self.gathered.take() {
            self.next = Some(Instant::now() + self.gather);
            self.write(gathered);
        }
    }

    fn write(&self, adopted: Adopted) {
        let changes = adopted.changes();
        let why_not = match &adopted.before {
            None => "the first".to_owned(),
            Some(_) if !changes.of_policy => "no policy changed".to_owned(),
            Some(_) if !adopted.is_small() => format!("more than {MAX_COUNTED_PODS} pods"),
            Some(before) => match Arc::clone(&self.counting).try_acquire_owned() {
                Ok(permit) => {
                    let (before, after) = (Arc::clone(before), Arc::clone(&adopted.after));
                    tokio::spawn(async move {
                        let counted = tokio::task::spawn_blocking(move || Flows::between(&before, &after));
                        let counted = counted.await;
                        drop(permit);
                        let failed = |error: &dyn Display| format!("not counted: {error}");
                        adopted.write(
                            &changes,
                            counted
                                .map_err(|error| failed(&error))
                                .and_then(|counted| counted.map_err(|error| failed(&error))),
                        );
                    });
                    return;
                }
                Err(_) => "those before are still being counted".to_owned(),
            },
        };
        adopted.write(&changes, Err(format!("not counted: {why_not}")));
    }
}

/// Pairs of ends between which one generation lets something pass that the one before did not, and the other way round.
struct Flows {
    opened: u64,
    closed: u64,
}

impl Flows {
    fn between(before: &CompiledPolicy, after: &CompiledPolicy) -> Result<Self, RefineError> {
        let side = |policy: &CompiledPolicy| Snapshot::from_image(&policy.image);
        let from = Compiled {
            cluster: &before.state.cluster,
            snapshot: side(before),
        };
        let to = Compiled {
            cluster: &after.state.cluster,
            snapshot: side(after),
        };
        let difference = refine::difference(&from, &to)?;
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
                    "{} NetworkPolicies,{} {} Namespaces, {} Nodes, {} Pods",
                    after.policies.len(),
                    match after.tiered.len() {
                        0 => String::new(),
                        cluster_wide => format!(" {cluster_wide} cluster-wide policies,"),
                    },
                    after.namespaces.len(),
                    after.nodes.len(),
                    after.pods.len()
                ),
                of_policy: true,
            };
        };
        let mut parts = Vec::new();
        of_kind("NetworkPolicy", &before.policies, &after.policies, &mut parts);
        for kind in PolicyKind::TIERED {
            let own = |cluster: &Cluster| -> OrdMap<PolicyId, Arc<TieredPolicy>> {
                let own = cluster.tiered.iter().filter(|(id, _)| id.kind == kind);
                own.map(|(id, policy)| (id.clone(), Arc::clone(policy))).collect()
            };
            of_kind(kind.name(), &own(before), &own(after), &mut parts);
        }
        of_kind("Namespace", &before.namespaces, &after.namespaces, &mut parts);
        of_kind("Node", &before.nodes, &after.nodes, &mut parts);
        of_kind("Pod", &before.pods, &after.pods, &mut parts);
        if parts.is_empty() {
            parts.push("nothing that counts".to_owned());
        }
        Self {
            text: parts.join("; "),
            of_policy: of_policy(Some(before), after),
        }
    }
}

/// Whether anything but pods differs.
fn of_policy(before: Option<&Cluster>, after: &Cluster) -> bool {
    let Some(before) = before else { return true };
    before.policies.diff(&after.policies).next().is_some()
        || before.tiered.diff(&after.tiered).next().is_some()
        || before.namespaces.diff(&after.namespaces).next().is_some()
        || before.nodes.diff(&after.nodes).next().is_some()
        || before.settings != after.settings
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
        if at >= MAX_NAMED {
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
    use ringwall_policy::{Namespace, Node, Pod};

    use super::*;

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
        let key = ringwall_policy::ObjectKey {
            namespace: "a".to_owned(),
            name: "p".to_owned(),
        };
        more.pods.insert(key.clone(), Arc::new(Pod::new(key)));
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
