//! What the objects of a source come to together: rules with the addresses of network sets, host endpoints and services
//! in them, and pods with the labels of their service accounts.
//!
//! A rule names such addresses as a set; what is in the set is told apart from the policies, which stay what they are
//! when members come and go.
//!
//! The result depends on the objects alone, never on their order.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use imbl::OrdMap;
use ipnet::IpNet;
use ringwall_policy::{
    ACCOUNT_LABEL, AddressSet, Condition, Fault, Labels, NAMESPACE_NAME_LABEL, Namespace, NetworkPolicy,
    ObjectKey, Operator, Peer, Pod, PolicyKind, PortMatch, Protocol, Requirement, Selector, TieredPolicy,
    TieredRule,
};

use super::{
    super::{
        field::fault,
        tiered::{
            self,
            nodes::{Nodes, in_words, selects},
        },
    },
    Awaiting, Direction, Family, HostEndpoint, Input, PolicyInput, PortsOf, RulePlace, Set, StagedAction,
    StagedPolicyInput, Wanted,
    rules::{comes_to, kind_name, nothing},
    selector::Expression,
    terms::{NAME, NAMESPACE, OF_NAMESPACE, account_name_key},
};

/// A policy that is staged, as it would be enforced.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Staged {
    /// Its kind, such as `StagedNetworkPolicy`.
    pub kind: &'static str,
    /// Its name; the namespace is empty for one of the whole cluster.
    pub key: ObjectKey,
    /// What it does to the policy of its name.
    pub action: StagedAction,
    /// What would be enforced.
    pub policy: StagedPolicy,
}

impl Staged {
    /// `namespace/name`, or the name alone.
    pub fn name(&self) -> String {
        match self.key.namespace.as_str() {
            "" => self.key.name.clone(),
            _ => self.key.to_string(),
        }
    }
}

/// What a staged policy is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StagedPolicy {
    /// Of a kind of Calico.
    Calico(TieredPolicy),
    /// A `networking.k8s.io` policy.
    Kubernetes(NetworkPolicy),
}

/// An object that has a part in what others mean.
#[derive(Clone, Debug)]
struct Given {
    input: Arc<Input>,
    /// Where it is a policy in force of which rules await other objects.
    policy: Option<TieredPolicy>,
}

impl Given {
    /// What of a policy awaits other objects.
    fn awaits(&self) -> &[Awaiting] {
        match &*self.input {
            Input::Policy(input) => &input.rules,
            Input::Staged(staged) => match &staged.policy {
                StagedPolicyInput::Calico(_, input) => &input.rules,
                StagedPolicyInput::Kubernetes(_) => &[],
            },
            _ => &[],
        }
    }
}

/// A policy whose rules other objects have a part in.
#[derive(Clone, Debug)]
pub(crate) struct Completed<K> {
    /// By what the world knows it.
    pub(crate) key: K,
    pub(crate) policy: TieredPolicy,
    /// What of it is valid and not evaluated.
    pub(crate) unevaluated: Vec<Fault>,
}

/// The objects of a source that have a part in what others mean, each under a key of the source's, and what they come to
/// together. A change costs a look at the policies that speak of what changed.
#[derive(Clone, Debug)]
pub(crate) struct World<K> {
    given: BTreeMap<K, Given>,
    /// Policies, in force or staged.
    policies: BTreeSet<K>,
    /// How many of them ask for service accounts.
    ask_for_accounts: usize,
    /// How many of them speak of services.
    speak_of_services: usize,
    /// Network sets, with the labels that they have of their namespaces as well.
    sets: BTreeMap<K, Labels>,
    endpoints: BTreeSet<K>,
    nodes: Nodes<K>,
    services: BTreeMap<ObjectKey, K>,
    slices: BTreeMap<ObjectKey, BTreeSet<K>>,
    accounts: BTreeMap<ObjectKey, K>,
    /// Whether services and their endpoints cannot be read.
    services_unseen: bool,
    /// Policies that have to be completed again.
    stale: BTreeSet<K>,
    /// What the address sets of rules are made of, by name, and how many policies name each.
    address_sets: BTreeMap<String, (Addresses, usize)>,
    /// Names of the sets that a policy names, as it was completed last.
    named_by: BTreeMap<K, Vec<String>>,
    /// Those whose members may be others.
    stale_sets: BTreeSet<String>,
    staged: BTreeMap<K, Staged>,
    /// Since [`Self::newly_staged`] was asked last.
    staged_changed: bool,
}

impl<K> Default for World<K> {
    fn default() -> Self {
        Self {
            given: BTreeMap::new(),
            policies: BTreeSet::new(),
            ask_for_accounts: 0,
            speak_of_services: 0,
            sets: BTreeMap::new(),
            endpoints: BTreeSet::new(),
            nodes: Nodes::default(),
            services: BTreeMap::new(),
            slices: BTreeMap::new(),
            accounts: BTreeMap::new(),
            services_unseen: false,
            stale: BTreeSet::new(),
            address_sets: BTreeMap::new(),
            named_by: BTreeMap::new(),
            stale_sets: BTreeSet::new(),
            staged: BTreeMap::new(),
            staged_changed: false,
        }
    }
}

/// What an address set is made of.
#[derive(Clone, Debug)]
enum Addresses {
    /// Network sets and host endpoints.
    Objects(Expression, Option<Family>),
    /// Host endpoints of which certain ports have names that a rule asks for.
    Endpoints {
        expression: Expression,
        family: Option<Family>,
        asked: AskedNames,
        named: NamedPorts,
    },
    Nodes(Selector),
    /// The endpoints that a service's slices list; those of slices with these ports alone where there are some.
    Service {
        key: ObjectKey,
        family: Option<Family>,
        ports: Option<PortNumbers>,
    },
}

/// Protocols and ports, in order.
type PortNumbers = Vec<(Protocol, u16)>;

/// Protocols and names of ports that a rule matches, and of those that it does not.
#[derive(Clone, Debug)]
struct AskedNames([Vec<(Protocol, String)>; 2]);

/// What an endpoint has for the names of [`AskedNames`].
type NamedPorts = [PortNumbers; 2];

impl AskedNames {
    fn of(rule: &TieredRule, ports: PortsOf) -> Self {
        let names = |ports: &[PortMatch]| {
            let named = ports.iter().filter_map(|port| match port {
                PortMatch::Named { protocol, name } => Some((*protocol, name.clone())),
                _ => None,
            });
            named.collect()
        };
        let conditions = &rule.conditions;
        let (some, not) = match ports {
            PortsOf::Destination => (&rule.ports, &conditions.not_ports),
            PortsOf::Source => (&conditions.source_ports, &conditions.not_source_ports),
        };
        Self([names(some.as_deref().unwrap_or_default()), names(not)])
    }

    fn is_empty(&self) -> bool {
        self.0.iter().all(Vec::is_empty)
    }

    /// The ports of an endpoint that have such names.
    fn at(&self, endpoint: &HostEndpoint) -> NamedPorts {
        self.0.each_ref().map(|names| {
            let asked =
                |protocol: Protocol, name: &str| names.iter().any(|(of, own)| *of == protocol && own == name);
            let ports = endpoint.ports.iter();
            let ports = ports.filter(|(name, protocol, _)| asked(*protocol, name));
            ports.map(|(_, protocol, number)| (*protocol, *number)).collect()
        })
    }
}

impl Addresses {
    /// By what rules name it: the same for what is the same.
    fn name(&self) -> String {
        let (what, family) = match self {
            Self::Objects(expression, family) => (
                format!("network sets and host endpoints with {expression}"),
                family,
            ),
            Self::Endpoints {
                expression,
                family,
                asked: AskedNames([some, not]),
                named: [named, not_named],
            } => {
                let names = |names: &[(Protocol, String)]| -> Vec<String> {
                    names
                        .iter()
                        .map(|(protocol, name)| format!("{name}/{}", protocol_name(*protocol)))
                        .collect()
                };
                let ports = |asked: &[(Protocol, String)], named: &PortNumbers| {
                    format!("{} for {}", ports_in_words(named), names(asked).join(", "))
                };
                let (some, not) = (ports(some, named), ports(not, not_named));
                (
                    format!("host endpoints with {expression} and {some}, not {not}"),
                    family,
                )
            }
            Self::Nodes(nodes) => (format!("nodes with {}", in_words(nodes)), &None),
            Self::Service { key, family, ports } => {
                let at = ports
                    .as_ref()
                    .map_or(String::new(), |ports| format!(" at {}", ports_in_words(ports)));
                (format!("service {key}{at}"), family)
            }
        };
        match family {
            None => what,
            Some(Family::V4) => format!("{what}, IPv4"),
            Some(Family::V6) => format!("{what}, IPv6"),
        }
    }
}

/// Namespaces by name.
type Namespaces = OrdMap<String, Arc<Namespace>>;

impl<K: Ord + Clone> World<K> {
    /// Takes what an object is now; `policy` where it is a policy in force.
    pub(crate) fn put(
        &mut self,
        key: K,
        input: Arc<Input>,
        policy: Option<&TieredPolicy>,
        namespaces: &Namespaces,
    ) {
        if let Some(before) = self.given.get(&key)
            && before.input == input
            && (before.policy.is_none() || before.policy.as_ref() == policy)
        {
            return;
        }
        self.take(&key);
        let policy = match &*input {
            Input::Policy(PolicyInput { rules, .. }) if !rules.is_empty() => policy.cloned(),
            _ => None,
        };
        let given = Given { input, policy };
        match &*given.input {
            Input::Policy(_) | Input::Staged(_) => {
                self.policies.insert(key.clone());
                self.count(&given, 1);
                self.stale.insert(key.clone());
            }
            Input::Set(set) => {
                let labels = inherited(set, namespaces);
                self.labelled(&labels);
                self.sets.insert(key.clone(), labels);
            }
            Input::HostEndpoint(endpoint) => {
                self.labelled(&endpoint.labels);
                self.endpoints.insert(key.clone());
            }
            Input::Service(service) => {
                self.of_service(&service.key);
                self.services.insert(service.key.clone(), key.clone());
            }
            Input::Slice(slice) => {
                self.of_service(&slice.service);
                let slices = self.slices.entry(slice.service.clone()).or_default();
                slices.insert(key.clone());
            }
            Input::Account(account) => drop(self.accounts.insert(account.key.clone(), key.clone())),
            Input::Node(node) => {
                let first = self.nodes.insert(key.clone(), Arc::clone(node));
                self.of_node(&node.labels, first);
            }
        }
        self.given.insert(key, given);
    }

    /// Takes the end of an object.
    pub(crate) fn take(&mut self, key: &K) {
        let Some(given) = self.given.remove(key) else {
            return;
        };
        match &*given.input {
            Input::Policy(_) | Input::Staged(_) => {
                self.policies.remove(key);
                self.count(&given, -1);
                self.name_sets(key, BTreeMap::new());
                self.stale.remove(key);
                self.staged_changed |= self.staged.remove(key).is_some();
            }
            Input::Set(_) => {
                if let Some(labels) = self.sets.remove(key) {
                    self.labelled(&labels);
                }
            }
            Input::HostEndpoint(endpoint) => {
                self.endpoints.remove(key);
                self.labelled(&endpoint.labels);
            }
            Input::Service(service) => {
                if self.services.get(&service.key) == Some(key) {
                    self.services.remove(&service.key);
                }
                self.of_service(&service.key);
            }
            Input::Slice(slice) => {
                if let Some(slices) = self.slices.get_mut(&slice.service) {
                    slices.remove(key);
                    if slices.is_empty() {
                        self.slices.remove(&slice.service);
                    }
                }
                self.of_service(&slice.service);
            }
            Input::Account(account) => {
                if self.accounts.get(&account.key) == Some(key) {
                    self.accounts.remove(&account.key);
                }
            }
            Input::Node(node) => {
                let last = self.nodes.remove(key);
                self.of_node(&node.labels, last);
            }
        }
    }

    /// A namespace came, went or has other labels, which its sets have, too.
    pub(crate) fn namespace(&mut self, name: &str, namespaces: &Namespaces) {
        let of_it = self.sets.iter().filter_map(|(key, before)| {
            let Input::Set(set) = &*self.given.get(key)?.input else {
                return None;
            };
            let now = (set.namespace.as_deref() == Some(name)).then(|| inherited(set, namespaces))?;
            (now != *before).then(|| (key.clone(), now))
        });
        let changed: Vec<(K, Labels)> = of_it.collect();
        for (key, now) in changed {
            self.labelled(&now);
            if let Some(before) = self.sets.insert(key, now) {
                self.labelled(&before);
            }
        }
    }

    /// Says whether services and their endpoints can be read: while they cannot, it is unknown whom a rule about one is for.
    pub(crate) fn see_services(&mut self, seen: bool) {
        if std::mem::replace(&mut self.services_unseen, !seen) == seen {
            self.outdate(|wanted| matches!(wanted, Wanted::Service { .. }));
        }
    }

    /// Says whether every node can be read: while one cannot, it is unknown which addresses a rule about nodes is for.
    pub(crate) fn see_nodes(&mut self, seen: bool) {
        if self.nodes.see_all(seen) {
            self.outdate(|wanted| matches!(wanted, Wanted::Nodes(_)));
        }
    }

    /// Whether a policy follows other objects, so that [`Self::complete`] has it.
    pub(crate) fn completes(&mut self, key: &K) -> bool {
        let completes = self.given.get(key).is_some_and(|given| given.policy.is_some());
        if completes {
            self.stale.insert(key.clone());
        }
        completes
    }

    /// Whether there is a policy that follows other objects, staged or not.
    pub(crate) fn any(&self) -> bool {
        !self.policies.is_empty()
    }

    /// Whether a policy asks for the labels or names of service accounts.
    pub(crate) const fn asks_for_accounts(&self) -> bool {
        self.ask_for_accounts > 0
    }

    /// Whether a policy speaks of services.
    pub(crate) const fn speaks_of_services(&self) -> bool {
        self.speak_of_services > 0
    }

    /// Gives a pod what its service account has where policies ask for it (TIERS 96, 96.1).
    pub(crate) fn describe(&self, pod: &mut Pod) {
        pod.labels.retain(|key, _| !key.starts_with(ACCOUNT_LABEL));
        if !self.asks_for_accounts() {
            return;
        }
        let key = ObjectKey {
            namespace: pod.key.namespace.clone(),
            name: pod.service_account.clone(),
        };
        let account = self
            .accounts
            .get(&key)
            .and_then(|account| self.given.get(account));
        if let Some(Input::Account(account)) = account.map(|given| &*given.input) {
            for (label, value) in &account.labels {
                pod.labels
                    .insert(format!("{ACCOUNT_LABEL}{label}"), value.clone());
            }
        }
        pod.labels.insert(account_name_key(), key.name);
    }

    /// The policies that have to be completed again, with what other objects have for them now.
    pub(crate) fn complete(&mut self) -> Vec<Completed<K>> {
        let mut out = Vec::new();
        for key in std::mem::take(&mut self.stale) {
            let Some(given) = self.given.get(&key) else {
                continue;
            };
            match (&*given.input, &given.policy) {
                (Input::Policy(input), Some(policy)) => {
                    let mut policy = policy.clone();
                    let Completion { unevaluated, sets } = self.completed(&mut policy, input);
                    self.name_sets(&key, sets);
                    out.push(Completed {
                        key,
                        policy,
                        unevaluated,
                    });
                }
                (Input::Staged(staged), _) => {
                    let mut sets = BTreeMap::new();
                    let policy = match &staged.policy {
                        StagedPolicyInput::Calico(policy, input) => {
                            let mut policy = policy.clone();
                            sets = self.completed(&mut policy, input).sets;
                            StagedPolicy::Calico(policy)
                        }
                        StagedPolicyInput::Kubernetes(policy) => StagedPolicy::Kubernetes(policy.clone()),
                    };
                    let staged = Staged {
                        kind: staged.kind,
                        key: staged.key.clone(),
                        action: staged.action,
                        policy,
                    };
                    self.staged_changed |= self.staged.get(&key) != Some(&staged);
                    self.name_sets(&key, sets);
                    self.staged.insert(key, staged);
                }
                _ => {}
            }
        }
        out
    }

    /// Policies that are staged, in order of their names, as of the last [`Self::complete`].
    pub(crate) fn staged(&self) -> Vec<Staged> {
        let mut staged: Vec<Staged> = self.staged.values().cloned().collect();
        staged.sort_by(|a, b| (a.kind, &a.key).cmp(&(b.kind, &b.key)));
        staged
    }

    /// The same, where it is not what it was the last time.
    pub(crate) fn newly_staged(&mut self) -> Option<Vec<Staged>> {
        std::mem::take(&mut self.staged_changed).then(|| self.staged())
    }

    /// Host endpoints where policies decide about the host's own traffic, which is not evaluated.
    pub(crate) fn governed(&self) -> BTreeSet<K> {
        let governed = self.endpoints.iter().filter(|key| match self.input(key) {
            Some(Input::HostEndpoint(endpoint)) => self.governs(endpoint),
            _ => false,
        });
        governed.cloned().collect()
    }

    fn input(&self, key: &K) -> Option<&Input> {
        self.given.get(key).map(|given| &*given.input)
    }

    /// Counts a policy in or out.
    fn count(&mut self, given: &Given, by: isize) {
        let add = |number: &mut usize, counts| {
            if counts {
                *number = number.saturating_add_signed(by);
            }
        };
        let asks = match &*given.input {
            Input::Policy(input) => input.accounts,
            Input::Staged(staged) => {
                matches!(&staged.policy, StagedPolicyInput::Calico(_, input) if input.accounts)
            }
            _ => false,
        };
        add(&mut self.ask_for_accounts, asks);
        let speaks = given
            .awaits()
            .iter()
            .any(|it| matches!(it.wanted, Wanted::Service { .. }));
        add(&mut self.speak_of_services, speaks);
    }

    /// Takes which sets a policy names now.
    fn name_sets(&mut self, key: &K, sets: BTreeMap<String, Addresses>) {
        let before = match sets.is_empty() {
            true => self.named_by.remove(key),
            false => self.named_by.insert(key.clone(), sets.keys().cloned().collect()),
        };
        for (name, addresses) in sets {
            let (_, policies) = self.address_sets.entry(name.clone()).or_insert((addresses, 0));
            *policies += 1;
            if *policies == 1 {
                self.stale_sets.insert(name);
            }
        }
        for name in before.into_iter().flatten() {
            if let Some((_, policies)) = self.address_sets.get_mut(&name) {
                *policies = policies.saturating_sub(1);
                if *policies == 0 {
                    self.stale_sets.insert(name);
                }
            }
        }
    }

    /// A set or host endpoint with these labels changed.
    fn labelled(&mut self, labels: &Labels) {
        self.outdate(|wanted| match wanted {
            Wanted::Objects { expression, .. } => {
                expression.matches(&|key: &str| labels.get(key).map(String::as_str))
            }
            Wanted::Service { .. } | Wanted::Nodes(_) => false,
        });
        self.outdate_sets(|addresses| match addresses {
            Addresses::Objects(expression, _) | Addresses::Endpoints { expression, .. } => {
                expression.matches(&|key: &str| labels.get(key).map(String::as_str))
            }
            Addresses::Service { .. } | Addresses::Nodes(_) => false,
        });
    }

    /// A node with these labels changed, or the first came, or the last went.
    fn of_node(&mut self, labels: &Labels, edge: bool) {
        self.outdate(|wanted| matches!(wanted, Wanted::Nodes(nodes) if edge || selects(nodes, labels)));
        self.outdate_sets(|it| matches!(it, Addresses::Nodes(nodes) if selects(nodes, labels)));
    }

    /// The endpoints of a service changed.
    fn of_service(&mut self, service: &ObjectKey) {
        self.outdate(|wanted| matches!(wanted, Wanted::Service { key, .. } if key == service));
        self.outdate_sets(|it| matches!(it, Addresses::Service { key, .. } if key == service));
    }

    /// Has address sets put together again.
    fn outdate_sets(&mut self, concerns: impl Fn(&Addresses) -> bool) {
        let stale = self.address_sets.iter().filter(|(_, (it, _))| concerns(it));
        self.stale_sets.extend(stale.map(|(name, _)| name.clone()));
    }

    /// Address sets that may be others since this was last asked, by name; None for one without members.
    pub(crate) fn take_address_sets(&mut self) -> Vec<(String, Option<AddressSet>)> {
        let mut out = Vec::new();
        for name in std::mem::take(&mut self.stale_sets) {
            let members = match self.address_sets.get(&name) {
                Some((addresses, 1..)) => self.members(addresses),
                // No policy names it any more.
                _ => {
                    self.address_sets.remove(&name);
                    AddressSet::new()
                }
            };
            out.push((name, Some(members).filter(|members| !members.is_empty())));
        }
        out
    }

    fn members(&self, addresses: &Addresses) -> AddressSet {
        let is_of = |family: &Option<Family>, net: &IpNet| family.is_none_or(|it| Family::of(net) == it);
        match addresses {
            Addresses::Objects(expression, family) => {
                let nets = self
                    .sets_with(expression)
                    .flat_map(|set| set.blocks.iter().copied());
                let hosts = self.endpoints_with(expression).flat_map(|it| &it.addresses);
                let all = nets.chain(hosts.map(|address| IpNet::from(*address)));
                all.filter(|net| is_of(family, net)).collect()
            }
            Addresses::Endpoints {
                expression,
                family,
                asked,
                named,
            } => {
                let by_ports = self.endpoints_by_ports(expression, *family, asked);
                let own = by_ports.into_iter().filter(|(_, ports)| ports == named);
                own.map(|(address, _)| IpNet::from(address)).collect()
            }
            Addresses::Nodes(nodes) => self.nodes.addresses(nodes),
            Addresses::Service { key, family, ports } => {
                let slices = self.slices.get(key).into_iter().flatten();
                let slices = slices.filter_map(|key| match self.input(key) {
                    Some(Input::Slice(slice)) if ports.as_ref().is_none_or(|ports| *ports == slice.ports) => {
                        Some(&slice.addresses)
                    }
                    _ => None,
                });
                let all = slices.flatten().map(|address| IpNet::from(*address));
                all.filter(|net| is_of(family, net)).collect()
            }
        }
    }

    /// Network sets that an expression matches.
    fn sets_with(&self, expression: &Expression) -> impl Iterator<Item = &Set> {
        self.sets
            .iter()
            .filter_map(|(key, labels)| match self.input(key) {
                Some(Input::Set(set)) => expression
                    .matches(&|key: &str| labels.get(key).map(String::as_str))
                    .then_some(set),
                _ => None,
            })
    }

    /// Host endpoints that an expression matches.
    fn endpoints_with(&self, expression: &Expression) -> impl Iterator<Item = &HostEndpoint> {
        self.endpoints.iter().filter_map(|key| match self.input(key) {
            Some(Input::HostEndpoint(endpoint)) => expression
                .matches(&|key: &str| endpoint.labels.get(key).map(String::as_str))
                .then_some(endpoint),
            _ => None,
        })
    }

    /// The addresses of host endpoints that an expression matches, of a family, each with its ports that have names.
    fn endpoints_by_ports(
        &self,
        expression: &Expression,
        family: Option<Family>,
        asked: &AskedNames,
    ) -> BTreeMap<IpAddr, NamedPorts> {
        let mut out: BTreeMap<IpAddr, NamedPorts> = BTreeMap::new();
        for endpoint in self.endpoints_with(expression) {
            let is_of = |address: &&IpAddr| family.is_none_or(|it| Family::of(&IpNet::from(**address)) == it);
            for address in endpoint.addresses.iter().filter(is_of) {
                let known = out.entry(*address).or_default();
                for (known, more) in known.iter_mut().zip(asked.at(endpoint)) {
                    known.extend(more);
                    known.sort_unstable();
                    known.dedup();
                }
            }
        }
        out
    }

    /// Has policies completed again that want something.
    fn outdate(&mut self, concerns: impl Fn(&Wanted) -> bool) {
        let stale = self.policies.iter().filter(|key| {
            let awaits = self.given.get(key).map_or(&[][..], Given::awaits);
            !self.stale.contains(*key) && awaits.iter().any(|it| concerns(&it.wanted))
        });
        let stale: Vec<K> = stale.cloned().collect();
        self.stale.extend(stale);
    }

    /// Puts into a policy's rules what other objects have for them.
    fn completed(&self, policy: &mut TieredPolicy, input: &PolicyInput) -> Completion {
        let mut out = Completion::default();
        let kind = policy.id.kind;
        for direction in [Direction::Ingress, Direction::Egress] {
            let rules = match direction {
                Direction::Ingress => policy.ingress.as_mut(),
                Direction::Egress => policy.egress.as_mut(),
            };
            let Some(rules) = rules else { continue };
            let awaits = |it: &&Awaiting, rule: usize| it.direction == direction && it.rule == rule;
            let mut unevaluated = Vec::new();
            // From the last, so that those before stand where they stood.
            for at in (0..rules.len()).rev() {
                let awaiting = || input.rules.iter().filter(|it| awaits(it, at));
                let Some(rule) = rules.get(at).filter(|_| awaiting().next().is_some()) else {
                    continue;
                };
                let alternatives = match self.alternatives(rule, awaiting(), &mut out.sets) {
                    Ok(alternatives) => alternatives,
                    Err((path, Unsayable { what, why })) => {
                        policy
                            .unevaluated
                            .insert(format!("{what} of {}", with_group(kind)));
                        let comes_to = comes_to(rule.action);
                        unevaluated.push(fault(
                            path,
                            format!("{what} {why}: the rule {comes_to}, and every verdict is incomplete"),
                        ));
                        vec![TieredRule::not_understood(rule.action)]
                    }
                };
                rules.splice(at..=at, alternatives);
            }
            out.unevaluated.extend(unevaluated.into_iter().rev());
        }
        out
    }

    /// What a rule comes to with what other objects have for it: it matches what any of these does.
    ///
    /// # Errors
    /// It cannot be said.
    fn alternatives<'i>(
        &self,
        rule: &TieredRule,
        awaiting: impl Iterator<Item = &'i Awaiting>,
        sets: &mut BTreeMap<String, Addresses>,
    ) -> Result<Vec<TieredRule>, (&'i str, Unsayable)> {
        let mut found = vec![rule.clone()];
        let mut named = BTreeMap::new();
        for awaiting in awaiting {
            let mut next = Vec::new();
            for rule in &found {
                let more = self.with(rule, &awaiting.wanted, &mut named);
                next.extend(more.map_err(|why| (awaiting.path.as_str(), why))?);
            }
            // What matches no port matches nothing.
            next.retain(|rule| {
                let lists = [&rule.ports, &rule.conditions.source_ports];
                lists.into_iter().flatten().all(|ports| !ports.is_empty())
            });
            found = next;
        }
        for (rule, at) in found.iter_mut().zip(0..) {
            rule.continues = at > 0;
            let conditions = &mut rule.conditions;
            let conditions = conditions.peer.iter_mut().chain(&mut conditions.own);
            for peers in rule
                .peers
                .iter_mut()
                .chain(conditions.map(|condition| &mut condition.any))
            {
                peers.sort_by_cached_key(order_of_peers);
                peers.dedup();
            }
        }
        if found.is_empty() {
            found.push(nothing(rule.action));
        }
        let is_named = |name: &String| {
            let mut peers = found.iter().flat_map(TieredRule::named_peers);
            peers.any(|peer| matches!(peer, Peer::Addresses(own) if own == name))
        };
        sets.extend(named.into_iter().filter(|(name, _)| is_named(name)));
        Ok(found)
    }

    /// A rule with what other objects have for one part of it.
    fn with(
        &self,
        rule: &TieredRule,
        wanted: &Wanted,
        sets: &mut BTreeMap<String, Addresses>,
    ) -> Result<Vec<TieredRule>, Unsayable> {
        let mut named = |addresses: Addresses| {
            let name = addresses.name();
            sets.insert(name.clone(), addresses);
            Peer::Addresses(name)
        };
        Ok(match wanted {
            Wanted::Objects {
                expression,
                place,
                family,
                by_name,
            } => {
                let there = self.sets_with(expression).next().is_some()
                    || self.endpoints_with(expression).next().is_some();
                let asked = by_name.map(|ports| (ports, AskedNames::of(rule, ports)));
                match (there, asked.filter(|(_, asked)| !asked.is_empty())) {
                    (false, _) => vec![rule.clone()],
                    (true, None) => {
                        let set = named(Addresses::Objects(expression.clone(), *family));
                        vec![place.with(rule, vec![set])]
                    }
                    (true, Some((ports, asked))) => {
                        self.by_name(rule, (expression, *place, *family), (ports, &asked), named)
                    }
                }
            }
            Wanted::Service { .. } if self.services_unseen => {
                return Err(Unsayable {
                    what: "services",
                    why: "cannot be read",
                });
            }
            Wanted::Service { key, family, ports } => match self.slices.get(key) {
                Some(slices) => {
                    let slices = slices.iter().filter_map(|key| match self.input(key) {
                        Some(Input::Slice(slice)) if !slice.addresses.is_empty() => Some(slice),
                        _ => None,
                    });
                    // Endpoints have the ports of the slice that lists them.
                    let lists: BTreeSet<Option<&PortNumbers>> =
                        slices.map(|slice| ports.then_some(&slice.ports)).collect();
                    let of_list = |list: Option<&PortNumbers>| {
                        let set = named(Addresses::Service {
                            key: key.clone(),
                            family: *family,
                            ports: list.cloned(),
                        });
                        let rule = RulePlace::Peers.with(rule, vec![set]);
                        match list {
                            None => rule,
                            Some(list) => restricted(&rule, list.iter().map(number).collect()),
                        }
                    };
                    match lists.is_empty() {
                        true => vec![of_service_without_endpoints(rule, *ports)],
                        false => lists.into_iter().map(of_list).collect(),
                    }
                }
                None => vec![self.selected_by_service(rule, key, *ports)],
            },
            Wanted::Nodes(_) if !self.nodes.are_known() => {
                return Err(Unsayable {
                    what: "nodes peers",
                    why: "cannot be evaluated, because there is no Node or a Node cannot be read",
                });
            }
            Wanted::Nodes(nodes) => {
                let set = named(Addresses::Nodes(nodes.clone()));
                vec![RulePlace::Peers.with(rule, vec![set])]
            }
        })
    }

    /// A rule that names ports where it reaches network sets, which have no names for theirs, and host endpoints, which have
    /// some of their own (TIERS 99.7). A name is that of an endpoint's port, so what is excluded by name is excluded at the
    /// pods and host endpoints that the rule selects, also where a set holds their addresses. Where a host endpoint and a pod
    /// have one address, the names of both count (96.4).
    fn by_name(
        &self,
        rule: &TieredRule,
        (expression, place, family): (&Expression, RulePlace, Option<Family>),
        (ports, asked): (PortsOf, &AskedNames),
        mut named: impl FnMut(Addresses) -> Peer,
    ) -> Vec<TieredRule> {
        let AskedNames([_, not_asked]) = asked;
        let pods = place.list(rule).map(<[Peer]>::to_vec).unwrap_or_default();
        // Addresses by what their host endpoints have for the names.
        let by_ports = self.endpoints_by_ports(expression, family, asked);
        let groups: BTreeSet<NamedPorts> = by_ports.into_values().collect();
        let groups: Vec<(NamedPorts, Peer)> = groups
            .into_iter()
            .filter(|ports| ports.iter().any(|ports| !ports.is_empty()))
            .map(|ports| {
                let set = Addresses::Endpoints {
                    expression: expression.clone(),
                    family,
                    asked: asked.clone(),
                    named: ports.clone(),
                };
                (ports, named(set))
            })
            .collect();
        // The rule with the numbers of ports that have the names at certain addresses, and with the names, if it is for pods.
        let numbered = |mut rule: TieredRule, [named, not_named]: &NamedPorts, of_pods: bool| {
            let numbers = |list: &mut Vec<PortMatch>, more: &PortNumbers| {
                list.retain(|port| of_pods || !matches!(port, PortMatch::Named { .. }));
                list.extend(more.iter().map(number));
            };
            let conditions = &mut rule.conditions;
            let (some, not) = match ports {
                PortsOf::Destination => (&mut rule.ports, &mut conditions.not_ports),
                PortsOf::Source => (&mut conditions.source_ports, &mut conditions.not_source_ports),
            };
            if let Some(list) = some {
                numbers(list, named);
            }
            numbers(not, not_named);
            rule
        };
        let alternative = |peer: &Peer, ports: &NamedPorts, others: Vec<Peer>| {
            let rule = place.instead(rule, vec![peer.clone()]);
            without(&numbered(rule, ports, false), place, others)
        };
        // For pods that have an address of certain endpoints (TIERS 96.4): all of both have the names.
        let pods_at = |peer: &Peer, ports: &NamedPorts| {
            let mut rule = rule.clone();
            place.conditions(&mut rule).push(Condition {
                negated: false,
                any: vec![peer.clone()],
            });
            numbered(rule, ports, true)
        };
        let excluded_pods = match not_asked.is_empty() {
            true => Vec::new(),
            false => pods,
        };
        let excluding = groups.iter().filter(|([_, not_ports], _)| !not_ports.is_empty());
        let excluding: Vec<Peer> = excluding.map(|(_, peer)| peer.clone()).collect();
        let mut out = vec![without(rule, place, excluding.clone())];
        if !not_asked.is_empty() {
            out.extend(groups.iter().map(|(ports, peer)| pods_at(peer, ports)));
        }
        if place != RulePlace::PeerBesides {
            let all = named(Addresses::Objects(expression.clone(), family));
            let others = [excluded_pods.as_slice(), &excluding].concat();
            out.push(alternative(&all, &NamedPorts::default(), others));
        }
        if place != RulePlace::PeerBesides || not_asked.is_empty() {
            let of_groups = groups.iter();
            out.extend(of_groups.map(|(ports, peer)| alternative(peer, ports, excluded_pods.clone())));
        }
        out
    }

    /// A rule for the pods that a service selects, of which no slices are known.
    fn selected_by_service(&self, rule: &TieredRule, key: &ObjectKey, with_ports: bool) -> TieredRule {
        let service = self.services.get(key).and_then(|service| self.input(service));
        let Some(Input::Service(service)) = service else {
            return of_service_without_endpoints(rule, with_ports);
        };
        let namespaces = Selector {
            requirements: vec![Requirement {
                key: NAMESPACE_NAME_LABEL.to_owned(),
                operator: Operator::In([key.namespace.clone()].into()),
            }],
        };
        let peer = Peer::Pods {
            namespaces: Some(namespaces),
            pods: service.pods.clone(),
        };
        let rule = RulePlace::Peers.with(rule, vec![peer]);
        match with_ports {
            true => restricted(&rule, service.ports.clone()),
            false => rule,
        }
    }

    /// Whether policies decide about the host's own traffic at an endpoint.
    fn governs(&self, endpoint: &HostEndpoint) -> bool {
        let label = |key: &str| endpoint.labels.get(key).map(String::as_str);
        let selects = |key: &K| match self.input(key) {
            Some(Input::Policy(PolicyInput {
                subject: Some(subject),
                ..
            })) => subject.matches(&label),
            _ => false,
        };
        !endpoint.open || self.policies.iter().any(selects)
    }
}

/// What a policy comes to with other objects.
#[derive(Debug, Default)]
struct Completion {
    /// What of it is valid and not evaluated.
    unevaluated: Vec<Fault>,
    /// The address sets that it names.
    sets: BTreeMap<String, Addresses>,
}

/// Why a rule cannot be said.
struct Unsayable {
    what: &'static str,
    why: &'static str,
}

impl RulePlace {
    /// The list of a rule; None where there is no such condition.
    fn of(self, rule: &mut TieredRule) -> Option<&mut Vec<Peer>> {
        let conditions = &mut rule.conditions;
        match self {
            Self::Peers => Some(rule.peers.get_or_insert_default()),
            Self::OfPeer(index) => conditions.peer.get_mut(index).map(|it| &mut it.any),
            Self::OfOwn(index) => conditions.own.get_mut(index).map(|it| &mut it.any),
            Self::PeerBesides => None,
        }
    }

    /// The same to read.
    fn list(self, rule: &TieredRule) -> Option<&[Peer]> {
        let conditions = &rule.conditions;
        match self {
            Self::Peers => rule.peers.as_deref(),
            Self::OfPeer(index) => conditions.peer.get(index).map(|it| it.any.as_slice()),
            Self::OfOwn(index) => conditions.own.get(index).map(|it| it.any.as_slice()),
            Self::PeerBesides => None,
        }
    }

    /// The conditions of the end that the list is about.
    fn conditions(self, rule: &mut TieredRule) -> &mut Vec<Condition> {
        match self {
            Self::Peers | Self::OfPeer(_) | Self::PeerBesides => &mut rule.conditions.peer,
            Self::OfOwn(_) => &mut rule.conditions.own,
        }
    }

    /// The rule with more in the list.
    fn with(self, rule: &TieredRule, more: Vec<Peer>) -> TieredRule {
        let mut rule = rule.clone();
        if let Some(peers) = self.of(&mut rule) {
            peers.extend(more);
        }
        rule
    }

    /// The rule with something else in the list.
    fn instead(self, rule: &TieredRule, peers: Vec<Peer>) -> TieredRule {
        let mut rule = rule.clone();
        match self.of(&mut rule) {
            Some(list) => *list = peers,
            None => self.conditions(&mut rule).push(Condition {
                negated: false,
                any: peers,
            }),
        }
        rule
    }
}

/// A rule for none of these at the end that a list is about.
fn without(rule: &TieredRule, place: RulePlace, others: Vec<Peer>) -> TieredRule {
    let mut rule = rule.clone();
    if !others.is_empty() {
        place.conditions(&mut rule).push(Condition {
            negated: true,
            any: others,
        });
    }
    rule
}

/// A rule at the ports of a service, as far as it is for their protocols.
fn restricted(rule: &TieredRule, own: Vec<PortMatch>) -> TieredRule {
    let ports = match &rule.ports {
        None => own,
        Some(allowed) => own.into_iter().filter(|port| is_of_any(port, allowed)).collect(),
    };
    TieredRule {
        ports: Some(ports),
        ..rule.clone()
    }
}

fn of_service_without_endpoints(rule: &TieredRule, with_ports: bool) -> TieredRule {
    match with_ports {
        true => restricted(rule, Vec::new()),
        false => rule.clone(),
    }
}

fn number(&(protocol, number): &(Protocol, u16)) -> PortMatch {
    PortMatch::Range {
        protocol,
        lo: number,
        hi: number,
    }
}

const fn protocol_name(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Tcp => "TCP",
        Protocol::Udp => "UDP",
        Protocol::Sctp => "SCTP",
    }
}

/// `80/TCP, 53/UDP`, or `no port`.
fn ports_in_words(ports: &[(Protocol, u16)]) -> String {
    let words: Vec<String> = ports
        .iter()
        .map(|(protocol, number)| format!("{number}/{}", protocol_name(*protocol)))
        .collect();
    match words.is_empty() {
        true => "no port".to_owned(),
        false => words.join(", "),
    }
}

/// The labels of a set: its own, and what it has of its namespace (TIERS 96.3).
fn inherited(set: &Set, namespaces: &Namespaces) -> Labels {
    let mut labels = set.labels.clone();
    let Some(name) = &set.namespace else { return labels };
    labels.insert(NAMESPACE.to_owned(), name.clone());
    if let Some(namespace) = namespaces.get(name) {
        let of_namespace = namespace.labels.iter();
        labels.extend(of_namespace.map(|(key, value)| (format!("{OF_NAMESPACE}{key}"), value.clone())));
    }
    labels.insert(format!("{OF_NAMESPACE}{NAMESPACE_NAME_LABEL}"), name.clone());
    labels.insert(format!("{OF_NAMESPACE}{NAME}"), name.clone());
    labels
}

/// A kind with its group.
fn with_group(kind: PolicyKind) -> String {
    match kind.is_calico() {
        true => kind_name(kind),
        false => format!("{}.{}", kind.name(), tiered::GROUP),
    }
}

/// Whether a port of a service is of a protocol that a rule is for.
fn is_of_any(port: &PortMatch, allowed: &[PortMatch]) -> bool {
    let protocol = |port: &PortMatch| match port {
        PortMatch::All(protocol) | PortMatch::Range { protocol, .. } | PortMatch::Named { protocol, .. } => {
            Some(*protocol)
        }
        PortMatch::IpProtocol(_) | PortMatch::Icmp { .. } => None,
    };
    allowed
        .iter()
        .any(|other| matches!(other, PortMatch::All(_)) && protocol(other) == protocol(port))
}

/// Pods first, then address sets, then blocks by address.
fn order_of_peers(peer: &Peer) -> (bool, Option<IpNet>, String) {
    match peer {
        Peer::Pods { .. } => (false, None, format!("{peer:?}")),
        Peer::Addresses(set) => (true, None, set.clone()),
        Peer::Block { cidr, .. } => (true, Some(*cidr), String::new()),
    }
}
