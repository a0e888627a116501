//! What all files say together, and how it changes with some of them.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet, hash_map::Entry},
    path::{Path, PathBuf},
    sync::Arc,
};

use ringwall_policy::{Cluster, Fault, Object, ObjectKey, ObjectRef, Pod, services::Services};

use super::{
    Problem, ProblemKind, Severity, Staged,
    reader::{Before, FileState, Item, problem},
};
use crate::decode::calico::{Input, governed_host, lower::World};

/// By what a folder knows an object.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Name {
    /// One of the state. A Pod and a Deployment of one name are two: the kind is that of a template.
    Object(Option<String>, ObjectRef),
    /// One that the state is made from.
    Input(&'static str, ObjectKey),
}

/// The good objects of all files.
pub(super) struct MergedFolder {
    pub(super) cluster: Cluster,
    /// What is wrong, in order of file and place.
    pub(super) problems: Vec<Problem>,
    /// Of these, what is wrong between files.
    pub(super) clashes: Vec<Problem>,
    /// The file that each object is in.
    owners: HashMap<Name, PathBuf>,
    /// Whether one stands for pods that are made of it: its name depends on the pods there are.
    templates: bool,
    /// What follows other objects, and these, by their places in the order of files.
    world: World<usize>,
    /// Policies that are staged.
    pub(super) staged: Arc<Vec<Staged>>,
    /// Services: no verdict depends on them.
    pub(super) services: Services,
}

impl MergedFolder {
    /// Puts all files together. What is equal in `old` is shared with it.
    pub(super) fn of(files: &BTreeMap<PathBuf, FileState>, old: Cluster) -> Self {
        let mut cluster = Cluster {
            settings: old.settings.clone(),
            ..Cluster::default()
        };
        let mut problems = Vec::new();
        let mut clashes = Vec::new();
        let mut owners: HashMap<Name, (&PathBuf, &Item)> = HashMap::new();
        let mut templates: Vec<(&Path, &Item)> = Vec::new();
        let mut inputs: Vec<(&Path, &Item, &Arc<Input>)> = Vec::new();
        let mut by_age: Vec<(&PathBuf, &FileState)> = files.iter().collect();
        by_age.sort_by_key(|(path, file)| (file.since, *path));
        for (path, file) in by_age {
            problems.extend(file.broken.clone());
            for item in file.good.iter() {
                if let Some(name) = item.name() {
                    match owners.entry(name) {
                        Entry::Vacant(free) => {
                            free.insert((path, item));
                        }
                        Entry::Occupied(taken) => {
                            let (first, other) = *taken.get();
                            let place = other.line.map_or_else(String::new, |line| format!(":{line}"));
                            let message = format!(
                                "already defined at {}{place}; remove one of them",
                                first.display()
                            );
                            clashes.push(Problem {
                                kept: true,
                                kind: ProblemKind::Duplicate,
                                ..problem(path, item.line, Some(&item.label), None, message)
                            });
                            continue;
                        }
                    }
                }
                problems.extend(item.problems.iter().cloned());
                inputs.extend(item.input.iter().map(|input| (path.as_path(), item, input)));
                match &item.object {
                    Object::Pod(pod) if pod.template_of.is_some() => templates.push((path, item)),
                    object => cluster.insert(object.clone()),
                }
            }
        }
        let any_template = !templates.is_empty();
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
                let message = format!("has the same name as a {other}: refer to it as {key}");
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
        let mut world = World::default();
        for (number, (_, item, input)) in inputs.iter().enumerate() {
            let policy = match &item.object {
                Object::Tiered(policy) => Some(policy),
                _ => None,
            };
            world.put(number, Arc::clone(input), policy, &cluster.namespaces);
        }
        let mut unevaluated = |number: usize, fault: &Fault| {
            problems.extend(inputs.get(number).map(|(path, item, _)| Problem {
                kind: ProblemKind::Unevaluated,
                ..problem(
                    path,
                    item.line,
                    Some(&item.label),
                    Some(&fault.path),
                    fault.message.clone(),
                )
            }));
        };
        for completed in world.complete() {
            for fault in &completed.unevaluated {
                unevaluated(completed.key, fault);
            }
            cluster.insert(Object::Tiered(completed.policy));
        }
        for (name, members) in world.take_address_sets() {
            cluster.set_addresses(&name, members.as_ref());
        }
        for host in world.governed() {
            let (kind, fault) = governed_host();
            unevaluated(host, &fault);
            cluster.unevaluated_kinds.insert(kind);
        }
        if world.asks_for_accounts() {
            let describe = |(key, pod): (&ObjectKey, &Arc<Pod>)| {
                let mut pod = Pod::clone(pod);
                world.describe(&mut pod);
                (key.clone(), Arc::new(pod))
            };
            cluster.pods = cluster.pods.iter().map(describe).collect();
        }
        problems.extend(clashes.iter().cloned());
        sort(&mut problems);
        Self {
            cluster: old.turned_into(cluster),
            problems,
            clashes,
            owners: owners
                .into_iter()
                .map(|(name, (path, _))| (name, path.clone()))
                .collect(),
            templates: any_template,
            staged: Arc::new(world.staged()),
            services: services(files),
            world,
        }
    }

    /// Follows changes of some files, given what these held before. False, and nothing done, where more may depend on
    /// them: names that files dispute, names of workloads, the last object of a kind that is not evaluated.
    pub(super) fn follow(&mut self, files: &BTreeMap<PathBuf, FileState>, before: &Before) -> bool {
        let now = |path: &PathBuf| files.get(path).into_iter().flat_map(|file| file.good.iter());
        let mut names = HashSet::new();
        let free = before.keys().flat_map(now).filter_map(Item::name).all(|name| {
            let owner = self.owners.get(&name);
            owner.is_none_or(|owner| before.contains_key(owner)) && names.insert(name)
        });
        let of_calico = |item: &Item| match item.input.as_deref() {
            None => self.world.any() && matches!(item.object, Object::Namespace(_)),
            Some(Input::Account(_) | Input::Service(_) | Input::Slice(_) | Input::Node(_)) => {
                self.world.any()
            }
            Some(_) => true,
        };
        let entangled = |item: &Item| match &item.object {
            _ if of_calico(item) => true,
            Object::Pod(pod) => self.templates || pod.template_of.is_some(),
            Object::Unevaluated { .. } => true,
            Object::Tiered(policy) => !policy.unevaluated.is_empty(),
            _ => false,
        };
        let was = || before.values().flat_map(|items| items.iter());
        if !free || !self.clashes.is_empty() || was().chain(before.keys().flat_map(now)).any(entangled) {
            return false;
        }
        if was()
            .chain(before.keys().flat_map(now))
            .any(|item| item.service.is_some())
        {
            self.services = services(files);
        }
        let mut namespaces = BTreeSet::new();
        for name in was().filter_map(Item::name) {
            if let Name::Object(_, object) = &name {
                self.cluster.remove(object);
                namespaces.extend(namespace(object));
            }
            self.owners.remove(&name);
        }
        self.problems
            .retain(|problem| !before.contains_key(&problem.file));
        for path in before.keys() {
            self.problems.extend(
                files
                    .get(path)
                    .into_iter()
                    .flat_map(|file| file.broken.iter().cloned()),
            );
            for item in now(path) {
                self.problems.extend(item.problems.iter().cloned());
                let mut object = item.object.clone();
                if let Object::Pod(pod) = &mut object {
                    self.world.describe(pod);
                }
                self.cluster.insert(object);
                if let Some(name) = item.name() {
                    if let Name::Object(_, object) = &name {
                        namespaces.extend(namespace(object));
                    }
                    self.owners.insert(name, path.clone());
                }
            }
        }
        sort(&mut self.problems);
        for namespace in namespaces {
            let described = Name::Object(None, ObjectRef::Namespace(namespace.clone()));
            if !self.owners.contains_key(&described) {
                self.cluster.supply_namespace(&namespace);
            }
        }
        true
    }
}

/// What all files say about Services.
fn services(files: &BTreeMap<PathBuf, FileState>) -> Services {
    let mut services = Services::default();
    for said in files.values().flat_map(|file| file.good.iter()) {
        if let Some(said) = &said.service {
            services.insert(said);
        }
    }
    services
}

impl Item {
    fn name(&self) -> Option<Name> {
        let template = match &self.object {
            Object::Pod(pod) => pod.template_of.clone(),
            _ => None,
        };
        if let Some((kind, key)) = self.input.as_deref().and_then(Input::name) {
            return Some(Name::Input(kind, key));
        }
        Some(Name::Object(template, self.object.reference()?))
    }
}

/// The namespace that an object is, or is in.
fn namespace(reference: &ObjectRef) -> Option<String> {
    match reference {
        ObjectRef::Namespace(name) => Some(name.clone()),
        ObjectRef::Pod(key) | ObjectRef::NetworkPolicy(key) => Some(key.namespace.clone()),
        ObjectRef::Tiered(id) => Some(id.namespace.clone()).filter(|namespace| !namespace.is_empty()),
        ObjectRef::Node(_) | ObjectRef::Tier(_) => None,
    }
}

pub(super) fn sort(problems: &mut [Problem]) {
    problems.sort_by(|a, b| (&a.file, a.line, &a.path).cmp(&(&b.file, b.line, &b.path)));
}
