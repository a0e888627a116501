//! Endpoints that are treated alike, and what is allowed between each two of those groups.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use ringwall_analyse::{
    flow::EndName,
    judge::Fate,
    refine::{Decisions, RefineError, What},
};
use ringwall_policy::{Cluster, Pod};

use super::answers::Answers;

/// Letters of a short name of several workloads.
const SHORT: usize = 24;

/// Endpoints that every policy treats alike.
pub(super) struct Group {
    /// Namespace, empty for addresses outside.
    pub(super) namespace: String,
    /// By name and number among the ends.
    pub(super) members: Vec<(EndName, u32)>,
    /// Names of the workloads that the members belong to.
    pub(super) workloads: BTreeSet<String>,
}

impl Group {
    /// Short enough to stand beside a row: the workloads that fit, how many more there are, and how many endpoints.
    pub(super) fn short_name(&self) -> String {
        match self.members.len() {
            1 => self.short_workloads(),
            members => format!("{} \u{d7}{members}", self.short_workloads()),
        }
    }

    fn short_workloads(&self) -> String {
        let mut short = String::new();
        for (place, name) in self.workloads.iter().enumerate() {
            if place > 0 && short.len() + name.len() > SHORT {
                return format!("{short} +{}", self.workloads.len() - place);
            }
            short.push_str(if place > 0 { ", " } else { "" });
            short.push_str(name);
        }
        short
    }

    /// All of it in words.
    pub(super) fn long_name(&self) -> String {
        let names: Vec<&str> = self.workloads.iter().map(String::as_str).collect();
        let place = if self.namespace.is_empty() {
            "outside".to_owned()
        } else {
            self.namespace.clone()
        };
        match self.members.len() {
            1 => format!("{place}/{}", names.join(", ")),
            members => format!("{place}/{} ({members} endpoints)", names.join(", ")),
        }
    }
}

/// What one group may send to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cell {
    /// They have no address family in common.
    Apart,
    /// One endpoint, to itself.
    Itself,
    /// All that was asked about.
    All,
    /// Nothing of it.
    Nothing,
    /// All of it depends on addresses that are not known.
    Depends,
    /// What [`Grid::marks`] has at this place.
    Some(usize),
}

/// Every group to every group.
pub(super) struct Grid {
    pub(super) groups: Vec<Group>,
    /// By source, then destination.
    pub(super) cells: Vec<Vec<Cell>>,
    /// What is allowed where it is neither all nor nothing, in the order of first appearance: ports in words, with a
    /// question mark where it depends.
    pub(super) marks: Vec<Vec<String>>,
}

impl Grid {
    /// Asks about every two groups.
    ///
    /// # Errors
    /// The snapshot contradicts itself.
    pub(super) fn of(answers: &mut Answers<'_>, groups: Vec<Group>) -> Result<Self, RefineError> {
        let mut marks: Vec<Vec<String>> = Vec::new();
        let mut places: BTreeMap<Vec<String>, usize> = BTreeMap::new();
        let mut cells = Vec::with_capacity(groups.len());
        for src in &groups {
            let mut row = Vec::with_capacity(groups.len());
            for dst in &groups {
                let Some(pair) = pair(answers, src, dst) else {
                    row.push(Cell::Itself);
                    continue;
                };
                let Some(answer) = answers.between(pair)? else {
                    row.push(Cell::Apart);
                    continue;
                };
                let only = answer.fates.first().filter(|_| answer.fates.len() == 1);
                row.push(match only {
                    Some(Fate::Allow) => Cell::All,
                    Some(Fate::Deny) => Cell::Nothing,
                    Some(Fate::Depends) => Cell::Depends,
                    None => {
                        let mut words = answer.allowed.clone();
                        words.extend(answer.depends.iter().map(|word| format!("{word}?")));
                        Cell::Some(*places.entry(words.clone()).or_insert_with(|| {
                            marks.push(words);
                            marks.len() - 1
                        }))
                    }
                });
            }
            cells.push(row);
        }
        Ok(Self { groups, cells, marks })
    }

    /// Whether some cell depends on addresses that are not known.
    pub(super) fn depends(&self) -> bool {
        let marked = self.marks.iter().flatten().any(|word| word.ends_with('?'));
        marked || self.cells.iter().flatten().any(|cell| *cell == Cell::Depends)
    }

    /// What a cell stands for, in words.
    pub(super) fn words(&self, cell: Cell) -> String {
        match cell {
            Cell::Apart => "no address family in common".to_owned(),
            Cell::Itself => "itself".to_owned(),
            Cell::All => "everything".to_owned(),
            Cell::Nothing => "nothing".to_owned(),
            Cell::Depends => "depends on the address that a pod will have".to_owned(),
            Cell::Some(mark) => self
                .marks
                .get(mark)
                .map(|words| words.join(", "))
                .unwrap_or_default(),
        }
    }
}

/// Who stands for two groups; None for one endpoint and itself.
fn pair(answers: &Answers<'_>, src: &Group, dst: &Group) -> Option<(u32, u32)> {
    let (_, from) = src.members.first()?;
    let other = dst.members.get(1).filter(|_| std::ptr::eq(src, dst));
    let (_, to) = other.or(dst.members.first())?;
    let pair = (*from, *to);
    (!answers.is_itself(pair)).then_some(pair)
}

/// The groups, by namespace, then in the order of their first member; addresses last. `namespaces` are the ones to show;
/// all where empty.
pub(super) fn groups(
    cluster: &Cluster,
    decisions: &Decisions<'_>,
    external: &[IpAddr],
    namespaces: &[String],
) -> Vec<Group> {
    let ends = decisions.ends();
    let outside: Vec<(IpAddr, u32)> = external
        .iter()
        .map(IpAddr::to_canonical)
        .filter_map(|address| Some((address, ends.of_address(address)?)))
        .collect();
    let mut groups: Vec<Group> = Vec::new();
    let mut by_class = BTreeMap::new();
    for (end, number) in ends.all.iter().zip(0..) {
        let What::Endpoint(key) = &end.what else { break };
        let Some(pod) = cluster.pods.get(key) else {
            continue;
        };
        if !namespaces.is_empty() && !namespaces.contains(&key.namespace) {
            continue;
        }
        // Which node a pod is on matters to nodes alone; templates stand for several pods and pods for one.
        let hosted: Vec<bool> = outside
            .iter()
            .map(|(_, address)| ends.hosts(number, *address) == [true])
            .collect();
        let class = (
            key.namespace.clone(),
            decisions.classes(number),
            end.meets_itself,
            hosted,
        );
        let index = *by_class.entry(class).or_insert_with(|| {
            groups.push(Group {
                namespace: key.namespace.clone(),
                members: Vec::new(),
                workloads: BTreeSet::new(),
            });
            groups.len() - 1
        });
        if let Some(group) = groups.get_mut(index) {
            group.members.push((EndName::Pod(key.clone()), number));
            group.workloads.insert(workload(pod));
        }
    }
    tell_apart(&mut groups);
    groups.extend(outside.into_iter().map(|(address, number)| Group {
        namespace: String::new(),
        members: vec![(EndName::Address(address), number)],
        workloads: BTreeSet::from([address.to_string()]),
    }));
    groups
}

/// Pods of one workload may be treated differently (a canary): alone in its row, one goes by its own name.
fn tell_apart(groups: &mut [Group]) {
    let mut taken: BTreeMap<(String, BTreeSet<String>), usize> = BTreeMap::new();
    for group in groups.iter() {
        *taken
            .entry((group.namespace.clone(), group.workloads.clone()))
            .or_default() += 1;
    }
    for group in groups {
        let rows = taken.get(&(group.namespace.clone(), group.workloads.clone()));
        if let ([(EndName::Pod(only), _)], Some(2..)) = (group.members.as_slice(), rows) {
            group.workloads = BTreeSet::from([only.name.clone()]);
        }
    }
}

/// The name of the workload that a pod belongs to, from the labels that the controllers put on their pods; else its own.
fn workload(pod: &Pod) -> String {
    let name = pod.key.name.as_str();
    let label = |key: &str| pod.labels.get(key).map(String::as_str);
    let before = |hash: &str| name.find(&format!("-{hash}")).map(|end| &name[..end]);
    let found = if let Some(hash) = label("pod-template-hash") {
        before(hash)
    } else if label("statefulset.kubernetes.io/pod-name") == Some(name) {
        name.rsplit_once('-').map(|(set, _)| set)
    } else if let Some(job) = label("batch.kubernetes.io/job-name") {
        Some(job)
    } else if label("controller-revision-hash").is_some() {
        // Of a DaemonSet: five random characters.
        name.rsplit_once('-').map(|(set, _)| set)
    } else {
        None
    };
    found.filter(|found| !found.is_empty()).unwrap_or(name).to_owned()
}
