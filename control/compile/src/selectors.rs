//! What policies ask for, in numbers: label keys and values, port names, and which selectors hold a pod.
//!
//! Only labels whose key some selector names are looked at, so a label that differs from pod to pod (a template hash,
//! a pod name) splits nothing until a policy asks for it. An index by namespace and label finds the selectors that may
//! hold a pod, so that a new kind of pod costs what holds it, not what there is.

use hashbrown::{HashMap, HashSet};
use ringwall_policy::{
    Labels, Operator, Part, Pod, PortMatch, Protocol, Selector,
    tiers::{NamespaceSet, Peer, PodSet, Policy},
};

use super::{
    content::{Content, Digest},
    ports::NamedPort,
};

/// A label whose key some selector names: numbers of key and value.
pub(super) type Label = (u32, u32);

/// Keys, with how many selectors name each. What none names any more keeps its number.
#[derive(Debug, Default)]
struct Keys {
    numbers: HashMap<String, (u32, u32)>,
    /// Texts that selectors look for in values, by key. Each is a label of its own, without values, of what has the text.
    likes: HashMap<String, Vec<Like>>,
    /// How many numbers were given out.
    next: u32,
}

/// A text that selectors look for in the values of a key.
#[derive(Debug)]
struct Like {
    part: Part,
    text: String,
    number: u32,
    users: u32,
}

impl Keys {
    /// The number of a key that is named.
    fn number(&self, key: &str) -> Option<u32> {
        let known = self.numbers.get(key).filter(|(_, users)| *users > 0);
        known.map(|(number, _)| *number)
    }

    /// The number of a text that is looked for.
    fn like(&self, key: &str, part: Part, text: &str) -> Option<u32> {
        let mut likes = self.likes.get(key).into_iter().flatten();
        let found = likes.find(|like| (like.part, like.text.as_str()) == (part, text));
        found.map(|like| like.number)
    }

    /// One selector more names a key; whether it is the first.
    fn learn(&mut self, key: &str) -> bool {
        if let Some((_, users)) = self.numbers.get_mut(key) {
            *users += 1;
            return *users == 1;
        }
        self.numbers.insert(key.to_owned(), (self.next, 1));
        self.next += 1;
        true
    }

    /// One selector more looks for a text in its values; whether it is the first.
    fn learn_like(&mut self, key: &str, part: Part, text: &str) -> bool {
        if let Some(users) = self.like_users(key, part, text) {
            *users += 1;
            return *users == 1;
        }
        self.likes.entry_ref(key).or_default().push(Like {
            part,
            text: text.to_owned(),
            number: self.next,
            users: 1,
        });
        self.next += 1;
        true
    }

    /// One selector less names a key; whether it was the last.
    fn forget(&mut self, key: &str) -> bool {
        self.numbers.get_mut(key).is_some_and(|(_, users)| {
            *users = users.saturating_sub(1);
            *users == 0
        })
    }

    fn forget_like(&mut self, key: &str, part: Part, text: &str) -> bool {
        self.like_users(key, part, text).is_some_and(|users| {
            *users = users.saturating_sub(1);
            *users == 0
        })
    }

    fn like_users(&mut self, key: &str, part: Part, text: &str) -> Option<&mut u32> {
        let mut likes = self.likes.get_mut(key).into_iter().flatten();
        let found = likes.find(|like| (like.part, like.text.as_str()) == (part, text));
        found.map(|like| &mut like.users)
    }

    fn project_into(&self, labels: &Labels, values: &mut HashMap<String, u32>, to: &mut Vec<Label>) {
        for (key, value) in labels {
            if let Some(number) = self.number(key) {
                to.push((number, value_number(values, value)));
            }
            if self.likes.is_empty() {
                continue;
            }
            let likes = self.likes.get(key).into_iter().flatten();
            let has = likes.filter(|like| like.users > 0 && like.part.holds(value, &like.text));
            to.extend(has.map(|like| (like.number, 0)));
        }
        // In one order, whatever was learnt since.
        to.sort_unstable();
    }

    /// As [`Self::project_into`], with what was ever named.
    fn project_known_into(&self, labels: &Labels, values: &mut HashMap<String, u32>, to: &mut Vec<Label>) {
        for (key, value) in labels {
            if let Some((number, _)) = self.numbers.get(key) {
                to.push((*number, value_number(values, value)));
            }
            let likes = self.likes.get(key).into_iter().flatten();
            let has = likes.filter(|like| like.part.holds(value, &like.text));
            to.extend(has.map(|like| (like.number, 0)));
        }
        to.sort_unstable();
    }

    fn seen<'a>(&self, labels: &'a Labels) -> impl Iterator<Item = (&'a str, &'a str)> {
        let labels = labels.iter().map(|(key, value)| (key.as_str(), value.as_str()));
        labels.filter(|(key, _)| self.number(key).is_some())
    }
}

fn value_number(values: &mut HashMap<String, u32>, value: &str) -> u32 {
    if let Some(number) = values.get(value) {
        return *number;
    }
    let next = values.len() as u32;
    values.insert(value.to_owned(), next);
    next
}

/// A port name, with how many rules ask for it: of the pods that policies select and of their peers, by protocol.
#[derive(Debug)]
struct Name {
    number: u32,
    users: [u32; 6],
}

fn user(of_peer: bool, protocol: Protocol) -> usize {
    let protocol = match protocol {
        Protocol::Tcp => 0,
        Protocol::Udp => 1,
        Protocol::Sctp => 2,
    };
    if of_peer { protocol + 3 } else { protocol }
}

/// One thing that a policy asks for.
enum Word<'a> {
    PodKey(&'a str, Option<(Part, &'a str)>),
    NamespaceKey(&'a str, Option<(Part, &'a str)>),
    PortName {
        of_peer: bool,
        protocol: Protocol,
        name: &'a str,
    },
}

/// What policies began or ceased to ask for: whatever has it looks different.
#[derive(Debug, Default)]
pub(super) struct TermTurnover {
    pub pod_keys: HashSet<String>,
    pub namespace_keys: HashSet<String>,
    pub ports: HashSet<(Protocol, String)>,
}

impl TermTurnover {
    fn pod_key(&mut self, key: &str, turned: bool) {
        if turned {
            self.pod_keys.insert(key.to_owned());
        }
    }

    fn namespace_key(&mut self, key: &str, turned: bool) {
        if turned {
            self.namespace_keys.insert(key.to_owned());
        }
    }

    fn port(&mut self, protocol: Protocol, name: &str, turned: bool) {
        if turned {
            self.ports.insert((protocol, name.to_owned()));
        }
    }

    /// Whether pods look different by what they have themselves.
    pub(super) fn of_pods(&self) -> bool {
        !(self.pod_keys.is_empty() && self.ports.is_empty())
    }
}

fn words<'a>(policy: &Policy<'a>, say: &mut impl FnMut(Word<'a>)) {
    let keys = |set: &PodSet<'a>, say: &mut dyn FnMut(Word<'a>)| {
        for requirement in &set.pods.requirements {
            say(Word::PodKey(&requirement.key, text_of(requirement)));
        }
        if let NamespaceSet::Matching(selector) = set.namespaces {
            for requirement in &selector.requirements {
                say(Word::NamespaceKey(&requirement.key, text_of(requirement)));
            }
        }
    };
    for subjects in &policy.subjects {
        keys(subjects, say);
    }
    let ingress = policy.ingress.iter().flatten().map(|rule| (rule, true));
    let egress = policy.egress.iter().flatten().map(|rule| (rule, false));
    for (rule, ingress) in ingress.chain(egress) {
        for peer in rule.named_peers() {
            if let Peer::Pods(set) = peer {
                keys(set, say);
            }
        }
        // A port's name is the destination's, a source port's the source's.
        let to = rule.named_ports().map(|port| (port, !ingress));
        let from = rule.named_source_ports().map(|port| (port, ingress));
        for (port, of_peer) in to.chain(from) {
            if let PortMatch::Named { protocol, name } = port {
                say(Word::PortName {
                    of_peer,
                    protocol: *protocol,
                    name,
                });
            }
        }
    }
}

/// A distinct list of named ports.
#[derive(Debug)]
pub(super) struct PortList {
    /// In order of protocol and name.
    pub ports: Vec<NamedPort>,
    /// What it is.
    pub content: Content,
}

impl PortList {
    fn of(ports: Vec<NamedPort>) -> Self {
        let mut digest = Digest::new("ports");
        digest.named_ports(&ports);
        Self {
            content: digest.finish(),
            ports,
        }
    }
}

/// Every key, value and port name that the policies of a cluster ask for.
#[derive(Debug)]
pub(super) struct Vocabulary {
    pod_keys: Keys,
    namespace_keys: Keys,
    /// Of keys that are asked for: numbers, in order of first sight.
    values: HashMap<String, u32>,
    names: HashMap<String, Name>,
    /// Distinct lists of named ports; 0 is empty.
    port_lists: Vec<PortList>,
    known_lists: HashMap<Vec<(u8, u32, u16)>, u32>,
    scratch: Vec<(u8, u32, u16)>,
}

impl Default for Vocabulary {
    fn default() -> Self {
        Self {
            pod_keys: Keys::default(),
            namespace_keys: Keys::default(),
            values: HashMap::new(),
            names: HashMap::new(),
            port_lists: vec![PortList::of(Vec::new())],
            known_lists: HashMap::from([(Vec::new(), 0)]),
            scratch: Vec::new(),
        }
    }
}

impl Vocabulary {
    /// Takes up what a policy asks for, and notes what none asked for before.
    pub(super) fn learn(&mut self, policy: &Policy<'_>, turned: &mut TermTurnover) {
        words(policy, &mut |word| match word {
            Word::PodKey(key, text) => turned.pod_key(key, learn_key(&mut self.pod_keys, key, text)),
            Word::NamespaceKey(key, text) => {
                turned.namespace_key(key, learn_key(&mut self.namespace_keys, key, text));
            }
            Word::PortName {
                of_peer,
                protocol,
                name,
            } => {
                if !self.names.contains_key(name) {
                    let number = self.names.len() as u32;
                    let users = [0; 6];
                    self.names.insert(name.to_owned(), Name { number, users });
                }
                if let Some(known) = self.names.get_mut(name) {
                    let users = &mut known.users[user(of_peer, protocol)];
                    *users += 1;
                    turned.port(protocol, name, *users == 1);
                }
            }
        });
    }

    /// Takes back what [`Self::learn`] took up, and notes what none asks for any more.
    pub(super) fn forget(&mut self, policy: &Policy<'_>, turned: &mut TermTurnover) {
        words(policy, &mut |word| match word {
            Word::PodKey(key, text) => turned.pod_key(key, forget_key(&mut self.pod_keys, key, text)),
            Word::NamespaceKey(key, text) => {
                turned.namespace_key(key, forget_key(&mut self.namespace_keys, key, text));
            }
            Word::PortName {
                of_peer,
                protocol,
                name,
            } => {
                if let Some(known) = self.names.get_mut(name) {
                    let users = &mut known.users[user(of_peer, protocol)];
                    *users = users.saturating_sub(1);
                    turned.port(protocol, name, *users == 0);
                }
            }
        });
    }

    /// The labels that selectors can see of a pod.
    pub(super) fn pod_labels_into(&mut self, pod: &Pod, to: &mut Vec<Label>) {
        self.pod_keys.project_into(&pod.labels, &mut self.values, to);
    }

    /// The labels that selectors can see of a namespace, or ever could: so a set or a policy that names a key again holds what it held.
    pub(super) fn namespace_labels(&mut self, labels: &Labels) -> Vec<Label> {
        let mut projected = Vec::new();
        self.namespace_keys
            .project_known_into(labels, &mut self.values, &mut projected);
        projected
    }

    /// As [`Self::pod_labels_into`], in words and in order of their keys.
    pub(super) fn seen_of_pod<'a>(&self, labels: &'a Labels) -> impl Iterator<Item = (&'a str, &'a str)> {
        self.pod_keys.seen(labels)
    }

    /// The labels that selectors can see of a namespace, in words and in order of their keys.
    pub(super) fn seen_of_namespace<'a>(
        &self,
        labels: &'a Labels,
    ) -> impl Iterator<Item = (&'a str, &'a str)> {
        self.namespace_keys.seen(labels)
    }

    /// The pod's numbers for port names that rules ask for of peers, or of the pods that their policies select: index of their
    /// list.
    pub(super) fn ports_of(&mut self, pod: &Pod, of_peer: bool) -> u32 {
        if self.names.is_empty() || pod.named_ports.is_empty() {
            return 0;
        }
        let mut list = std::mem::take(&mut self.scratch);
        list.clear();
        for port in &pod.named_ports {
            let Some(name) = self.names.get(&port.name) else {
                continue;
            };
            let protocol = port.protocol.number();
            // Of the same name and protocol the first counts.
            let listed = list
                .iter()
                .any(|listed| (listed.0, listed.1) == (protocol, name.number));
            if name.users[user(of_peer, port.protocol)] > 0 && !listed {
                list.push((protocol, name.number, port.number));
            }
        }
        list.sort_unstable();
        if let Some(known) = self.known_lists.get(&list) {
            let known = *known;
            self.scratch = list;
            return known;
        }
        let mut ports: Vec<NamedPort> = Vec::new();
        for port in &pod.named_ports {
            let listed = list.iter().any(|listed| {
                let number = self.names.get(&port.name).map(|name| name.number);
                (Some(listed.1), listed.0, listed.2) == (number, port.protocol.number(), port.number)
            });
            let named = (port.protocol, port.name.clone());
            if listed && ports.iter().all(|(known, _)| *known != named) {
                ports.push((named, port.number));
            }
        }
        ports.sort_unstable();
        let number = self.port_lists.len() as u32;
        self.port_lists.push(PortList::of(ports));
        self.known_lists.insert(list, number);
        number
    }

    /// Named ports of a list.
    pub(super) fn ports(&self, list: u32) -> &[NamedPort] {
        self.port_lists
            .get(list as usize)
            .map(|list| list.ports.as_slice())
            .unwrap_or_default()
    }

    /// What a list of named ports is.
    pub(super) fn ports_content(&self, list: u32) -> Content {
        self.port_lists
            .get(list as usize)
            .map_or([0; 32], |list| list.content)
    }

    fn requirements(&mut self, selector: &Selector, pods: bool) -> Vec<Requirement> {
        let keys = if pods {
            &self.pod_keys
        } else {
            &self.namespace_keys
        };
        let values = &mut self.values;
        let requirement = |requirement: &ringwall_policy::Requirement| Requirement {
            // Keys of all selectors are known. One that is not would be on nothing.
            key: match text_of(requirement) {
                Some((part, text)) => keys.like(&requirement.key, part, text),
                None => keys.number(&requirement.key),
            }
            .unwrap_or(u32::MAX),
            test: match &requirement.operator {
                Operator::In(some) => {
                    Test::In(some.iter().map(|value| value_number(values, value)).collect())
                }
                Operator::NotIn(some) => {
                    Test::NotIn(some.iter().map(|value| value_number(values, value)).collect())
                }
                Operator::Exists => Test::Exists,
                Operator::DoesNotExist | Operator::Like { negated: true, .. } => Test::DoesNotExist,
                Operator::Like { negated: false, .. } => Test::Exists,
            },
        };
        selector.requirements.iter().map(requirement).collect()
    }

    /// A set of pods in numbers, all of whose keys have been learnt.
    pub(super) fn matcher(&mut self, set: &PodSet<'_>) -> Matcher {
        Matcher {
            spaces: match set.namespaces {
                NamespaceSet::Named(name) => Spaces::Named(name.to_owned()),
                NamespaceSet::Matching(selector) => Spaces::Matching(self.requirements(selector, false)),
            },
            pods: self.requirements(set.pods, true),
        }
    }
}

/// Whether labels of this key look different from now on.
fn learn_key(keys: &mut Keys, key: &str, text: Option<(Part, &str)>) -> bool {
    keys.learn(key) | text.is_some_and(|(part, text)| keys.learn_like(key, part, text))
}

fn forget_key(keys: &mut Keys, key: &str, text: Option<(Part, &str)>) -> bool {
    keys.forget(key) | text.is_some_and(|(part, text)| keys.forget_like(key, part, text))
}

/// The text that a requirement looks for in values.
fn text_of(requirement: &ringwall_policy::Requirement) -> Option<(Part, &str)> {
    match &requirement.operator {
        Operator::Like { part, text, .. } => Some((*part, text)),
        _ => None,
    }
}

#[derive(Debug)]
struct Requirement {
    key: u32,
    test: Test,
}

/// How a label is tested, by numbers of values.
#[derive(Debug)]
enum Test {
    In(Vec<u32>),
    NotIn(Vec<u32>),
    Exists,
    DoesNotExist,
}

impl Requirement {
    fn holds(&self, labels: &[Label]) -> bool {
        let value = labels
            .iter()
            .find(|(key, _)| *key == self.key)
            .map(|(_, value)| value);
        match &self.test {
            Test::In(values) => value.is_some_and(|value| values.contains(value)),
            Test::NotIn(values) => value.is_none_or(|value| !values.contains(value)),
            Test::Exists => value.is_some(),
            Test::DoesNotExist => value.is_none(),
        }
    }

    /// The labels of which a pod or namespace has one if it meets this; None where there is no such list.
    fn one_of(&self) -> Option<Vec<Label>> {
        match &self.test {
            Test::In(values) => Some(values.iter().map(|value| (self.key, *value)).collect()),
            _ => None,
        }
    }
}

#[derive(Debug)]
enum Spaces {
    Named(String),
    Matching(Vec<Requirement>),
}

/// A set of pods, in numbers of a [`Vocabulary`].
#[derive(Debug)]
pub(super) struct Matcher {
    spaces: Spaces,
    pods: Vec<Requirement>,
}

impl Matcher {
    /// Whether it holds the pods that have these labels, in a namespace of this name and these labels.
    pub(super) fn holds(&self, space: &str, space_labels: &[Label], labels: &[Label]) -> bool {
        let in_space = match &self.spaces {
            Spaces::Named(name) => name == space,
            Spaces::Matching(requirements) => requirements.iter().all(|it| it.holds(space_labels)),
        };
        in_space && self.pods.iter().all(|it| it.holds(labels))
    }

    /// The one namespace that its pods are in, where there is one.
    pub(super) fn space(&self) -> Option<&str> {
        match &self.spaces {
            Spaces::Named(name) => Some(name),
            Spaces::Matching(_) => None,
        }
    }
}

/// Numbers of matchers, by a label that their pods have.
#[derive(Debug, Default)]
struct ByLabel {
    labelled: HashMap<Label, Vec<u32>>,
    rest: Vec<u32>,
}

impl ByLabel {
    fn places(&mut self, requirements: &[Requirement], mut at: impl FnMut(&mut Vec<u32>)) {
        match requirements.iter().find_map(Requirement::one_of) {
            Some(labels) => {
                for label in labels {
                    at(self.labelled.entry(label).or_default());
                }
            }
            None => at(&mut self.rest),
        }
    }

    fn find_into(&self, labels: &[Label], to: &mut Vec<u32>) {
        to.extend(&self.rest);
        for label in labels {
            to.extend(self.labelled.get(label).into_iter().flatten());
        }
    }
}

/// Finds the matchers that may hold a pod.
#[derive(Debug, Default)]
pub(super) struct Index {
    named: HashMap<String, ByLabel>,
    labelled: HashMap<Label, ByLabel>,
    rest: ByLabel,
}

impl Index {
    fn places(&mut self, matcher: &Matcher, mut at: impl FnMut(&mut Vec<u32>)) {
        let requirements = match &matcher.spaces {
            Spaces::Named(name) => {
                let space = self.named.entry_ref(name.as_str()).or_default();
                return space.places(&matcher.pods, at);
            }
            Spaces::Matching(requirements) => requirements,
        };
        match requirements.iter().find_map(Requirement::one_of) {
            Some(labels) => {
                for label in labels {
                    self.labelled
                        .entry(label)
                        .or_default()
                        .places(&matcher.pods, &mut at);
                }
            }
            None => self.rest.places(&matcher.pods, at),
        }
    }

    /// Adds a matcher under a number.
    pub(super) fn insert(&mut self, number: u32, matcher: &Matcher) {
        self.places(matcher, |numbers| numbers.push(number));
    }

    /// Removes it.
    pub(super) fn remove(&mut self, number: u32, matcher: &Matcher) {
        self.places(matcher, |numbers| numbers.retain(|known| *known != number));
    }

    /// The numbers whose matchers hold pods with these labels, as `holds` says; in ascending order.
    pub(super) fn find(
        &self,
        space: &str,
        space_labels: &[Label],
        labels: &[Label],
        holds: impl Fn(u32) -> bool,
    ) -> Vec<u32> {
        let mut found = Vec::new();
        self.rest.find_into(labels, &mut found);
        if let Some(named) = self.named.get(space) {
            named.find_into(labels, &mut found);
        }
        for label in space_labels {
            if let Some(labelled) = self.labelled.get(label) {
                labelled.find_into(labels, &mut found);
            }
        }
        // One number may have several matchers.
        found.sort_unstable();
        found.dedup();
        found.retain(|number| holds(*number));
        found
    }
}
