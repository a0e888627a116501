//! What the objects of a source come to together: rules with the addresses of network sets, host endpoints and services
//! in them, and pods with the labels of their service accounts.
//!
//! The result depends on the objects alone, never on their order. Where nothing is Calico's, it costs a look at each.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
};

use imbl::OrdMap;
use ipnet::IpNet;
use ringwall_policy::{
    ACCOUNT_LABEL, Fault, Labels, NAMESPACE_NAME_LABEL, Namespace, NetworkPolicy, ObjectKey, Operator, Peer,
    Pod, PortMatch, Requirement, Selector, TieredPolicy, TieredRule,
};

use super::{
    super::field::fault,
    Awaiting, Direction, EndpointSlice, Family, HostEndpoint, Input, PolicyInput, Service, Set, StagedAction,
    StagedPolicyInput, Wanted,
    rules::{comes_to, kind_name, nothing},
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

/// What the objects come to.
#[derive(Debug, Default)]
pub(crate) struct Lowered {
    /// The policies whose rules other objects have a part in.
    pub(crate) policies: Vec<TieredPolicy>,
    /// Policies that are staged, in order of their names.
    pub(crate) staged: Vec<Staged>,
    /// Kinds, and parts of objects, that are not evaluated, besides those that the policies name.
    pub(crate) unevaluated: BTreeSet<String>,
    /// What is valid and not evaluated: the number of the input, and what and where.
    pub(crate) findings: Vec<(usize, Fault)>,
    /// What pods have of their service accounts; None where no policy asks.
    pub(crate) accounts: Option<Accounts>,
    /// Whether a policy of Calico is there, staged or not.
    pub(crate) any: bool,
}

/// The labels of service accounts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Accounts(HashMap<ObjectKey, Labels>);

impl Accounts {
    /// Gives a pod what its service account has (TIERS 96, 96.1).
    pub(crate) fn describe(&self, pod: &mut Pod) {
        pod.labels.retain(|key, _| !key.starts_with(ACCOUNT_LABEL));
        let key = ObjectKey {
            namespace: pod.key.namespace.clone(),
            name: pod.service_account.clone(),
        };
        for (label, value) in self.0.get(&key).into_iter().flatten() {
            pod.labels
                .insert(format!("{ACCOUNT_LABEL}{label}"), value.clone());
        }
        pod.labels.insert(account_name_key(), key.name);
    }
}

/// An object that has a part: what is needed of it, and its policy where it is one in force.
pub(crate) struct Given<'a> {
    pub(crate) input: &'a Input,
    pub(crate) policy: Option<&'a TieredPolicy>,
}

/// Puts together what the objects of a source come to.
pub(crate) fn lower<'a>(
    given: &[Given<'a>],
    namespaces: &OrdMap<String, std::sync::Arc<Namespace>>,
) -> Lowered {
    let mut out = Lowered {
        any: given
            .iter()
            .any(|it| matches!(it.input, Input::Policy(_) | Input::Staged(_))),
        ..Lowered::default()
    };
    let hosts = given.iter().any(|it| matches!(it.input, Input::HostEndpoint(_)));
    if !out.any && !hosts {
        return out;
    }
    let world = World::of(given, namespaces);
    if out.any {
        let mut asked = false;
        for (number, it) in given.iter().enumerate() {
            match (it.input, it.policy) {
                (Input::Policy(input), Some(policy)) => {
                    asked |= input.accounts;
                    if input.rules.is_empty() {
                        continue;
                    }
                    let mut policy = policy.clone();
                    let found = world.complete(&mut policy, input, &mut asked);
                    out.findings.extend(found.into_iter().map(|it| (number, it)));
                    out.policies.push(policy);
                }
                (Input::Staged(staged), _) => {
                    let policy = match &staged.policy {
                        StagedPolicyInput::Calico(policy, input) => {
                            asked |= input.accounts;
                            let mut policy = policy.clone();
                            world.complete(&mut policy, input, &mut asked);
                            StagedPolicy::Calico(policy)
                        }
                        StagedPolicyInput::Kubernetes(policy) => StagedPolicy::Kubernetes(policy.clone()),
                    };
                    out.staged.push(Staged {
                        kind: staged.kind,
                        key: staged.key.clone(),
                        action: staged.action,
                        policy,
                    });
                }
                _ => {}
            }
        }
        out.staged.sort_by(|a, b| (a.kind, &a.key).cmp(&(b.kind, &b.key)));
        out.accounts = asked.then(|| accounts(given));
    }
    for (number, it) in given.iter().enumerate() {
        if let Input::HostEndpoint(endpoint) = it.input
            && world.governs(endpoint, given)
        {
            let kind = format!("HostEndpoint.{}", super::GROUP);
            let message =
                "what policies say to the host itself is not evaluated: every verdict is incomplete";
            out.findings.push((number, fault("spec", message)));
            out.unevaluated.insert(kind);
        }
    }
    out
}

fn accounts(given: &[Given<'_>]) -> Accounts {
    let accounts = given.iter().filter_map(|it| match it.input {
        Input::Account(account) => Some((account.key.clone(), account.labels.clone())),
        _ => None,
    });
    Accounts(accounts.collect())
}

/// What rules can speak of.
struct World<'a> {
    sets: Vec<(&'a Set, Labels)>,
    endpoints: Vec<&'a HostEndpoint>,
    services: BTreeMap<&'a ObjectKey, &'a Service>,
    slices: BTreeMap<&'a ObjectKey, Vec<&'a EndpointSlice>>,
}

/// What other objects add to a rule.
enum Completed {
    /// These peers, and ports where they are theirs.
    Peers(Vec<Peer>, Option<Vec<PortMatch>>),
    /// It cannot be said.
    Unsayable(&'static str),
}

impl<'a> World<'a> {
    fn of(given: &[Given<'a>], namespaces: &OrdMap<String, std::sync::Arc<Namespace>>) -> Self {
        let mut world = Self {
            sets: Vec::new(),
            endpoints: Vec::new(),
            services: BTreeMap::new(),
            slices: BTreeMap::new(),
        };
        for it in given {
            match it.input {
                Input::Set(set) => world.sets.push((set, inherited(set, namespaces))),
                Input::HostEndpoint(endpoint) => world.endpoints.push(endpoint),
                Input::Service(service) => drop(world.services.insert(&service.key, service)),
                Input::Slice(slice) => world.slices.entry(&slice.service).or_default().push(slice),
                Input::Policy(_) | Input::Staged(_) | Input::Account(_) => {}
            }
        }
        world
    }

    /// Puts into a policy's rules what other objects have for them; what cannot be said comes back.
    fn complete(&self, policy: &mut TieredPolicy, input: &PolicyInput, asked: &mut bool) -> Vec<Fault> {
        let mut found = Vec::new();
        let kind = policy.id.kind;
        for awaiting in &input.rules {
            let rules = match awaiting.direction {
                Direction::Ingress => policy.ingress.as_mut(),
                Direction::Egress => policy.egress.as_mut(),
            };
            let Some(rule) = rules.and_then(|rules| rules.get_mut(awaiting.rule)) else {
                continue;
            };
            match self.rule(awaiting, rule.ports.as_deref()) {
                Completed::Peers(more, ports) => {
                    let peers = rule.peers.get_or_insert_default();
                    peers.extend(more);
                    peers.sort_by_cached_key(order_of_peers);
                    peers.dedup();
                    rule.ports = ports.or(rule.ports.take());
                    if rule.ports.as_ref().is_some_and(Vec::is_empty) {
                        *rule = nothing(rule.action);
                    }
                }
                Completed::Unsayable(what) => {
                    let comes_to = comes_to(rule.action);
                    *rule = TieredRule::not_understood(rule.action);
                    policy
                        .unevaluated
                        .insert(format!("{what} of {}", kind_name(kind)));
                    found.push(fault(
                        &awaiting.path,
                        format!(
                            "{what} are not evaluated yet: the rule {comes_to}, and every verdict is incomplete"
                        ),
                    ));
                }
            }
        }
        *asked |= input.accounts;
        found
    }

    fn rule(&self, awaiting: &Awaiting, ports: Option<&[PortMatch]>) -> Completed {
        match &awaiting.wanted {
            Wanted::Objects {
                expression,
                family,
                names,
                numbers,
            } => {
                let mut blocks = BTreeSet::new();
                for (set, labels) in &self.sets {
                    if expression.matches(&|key: &str| labels.get(key).map(String::as_str)) {
                        blocks.extend(set.blocks.iter().copied());
                    }
                }
                for endpoint in &self.endpoints {
                    if expression.matches(&|key: &str| endpoint.labels.get(key).map(String::as_str)) {
                        if endpoint.ports.iter().any(|port| names.contains(port)) {
                            return Completed::Unsayable("named ports of host endpoints");
                        }
                        blocks.extend(endpoint.addresses.iter().map(|address| IpNet::from(*address)));
                    }
                }
                blocks.retain(|block| family.is_none_or(|family| Family::of(block) == family));
                // Sets have no ports with names (TIERS 99.7).
                match (blocks.is_empty() || names.is_empty(), numbers) {
                    (true, _) => Completed::Peers(blocks.into_iter().map(block).collect(), None),
                    (false, false) => Completed::Peers(Vec::new(), None),
                    (false, true) => Completed::Unsayable("named ports beside numbers and network sets"),
                }
            }
            Wanted::Service {
                key,
                family,
                ports: with_ports,
            } => self.service(key, *family, *with_ports, ports),
        }
    }

    /// The endpoints of a service: those that its slices list, or else the pods that it selects.
    fn service(
        &self,
        key: &ObjectKey,
        family: Option<Family>,
        with_ports: bool,
        ports: Option<&[PortMatch]>,
    ) -> Completed {
        let restricted = |own: Vec<PortMatch>| {
            with_ports.then(|| match ports {
                None => own,
                Some(allowed) => own.into_iter().filter(|port| is_of_any(port, allowed)).collect(),
            })
        };
        if let Some(slices) = self.slices.get(key) {
            let mut by_ports: BTreeMap<Vec<PortMatch>, BTreeSet<IpAddr>> = BTreeMap::new();
            for slice in slices {
                let own = slice.ports.iter().map(|&(protocol, number)| PortMatch::Range {
                    protocol,
                    lo: number,
                    hi: number,
                });
                let own = if with_ports { own.collect() } else { Vec::new() };
                let addresses = slice.addresses.iter().copied();
                by_ports.entry(own).or_default().extend(addresses);
            }
            by_ports.retain(|ports, addresses| !(addresses.is_empty() || with_ports && ports.is_empty()));
            let mut groups = by_ports.into_iter();
            return match (groups.next(), groups.next()) {
                (None, _) => Completed::Peers(Vec::new(), restricted(Vec::new())),
                (Some((own, addresses)), None) => {
                    let blocks = addresses.into_iter().map(IpNet::from);
                    let blocks = blocks.filter(|it| family.is_none_or(|family| Family::of(it) == family));
                    Completed::Peers(blocks.map(block).collect(), restricted(own))
                }
                _ => Completed::Unsayable("services with other ports at other endpoints"),
            };
        }
        let Some(service) = self.services.get(key) else {
            return Completed::Peers(Vec::new(), restricted(Vec::new()));
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
        Completed::Peers(vec![peer], restricted(service.ports.clone()))
    }

    /// Whether policies decide about the host's own traffic at an endpoint.
    fn governs(&self, endpoint: &HostEndpoint, given: &[Given<'_>]) -> bool {
        let label = |key: &str| endpoint.labels.get(key).map(String::as_str);
        !endpoint.open
            || given.iter().any(|it| match it.input {
                Input::Policy(PolicyInput {
                    subject: Some(subject),
                    ..
                }) => subject.matches(&label),
                _ => false,
            })
    }
}

/// The labels of a set: its own, and what it has of its namespace (TIERS 96.3).
fn inherited(set: &Set, namespaces: &OrdMap<String, std::sync::Arc<Namespace>>) -> Labels {
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

fn block(cidr: IpNet) -> Peer {
    Peer::Block {
        cidr,
        except: Vec::new(),
    }
}

/// Whether a port of a service is of a protocol that a rule is for.
fn is_of_any(port: &PortMatch, allowed: &[PortMatch]) -> bool {
    let protocol = |port: &PortMatch| match port {
        PortMatch::All(protocol) | PortMatch::Range { protocol, .. } | PortMatch::Named { protocol, .. } => {
            Some(*protocol)
        }
        PortMatch::IpProtocol(_) => None,
    };
    allowed
        .iter()
        .any(|other| matches!(other, PortMatch::All(_)) && protocol(other) == protocol(port))
}

/// Pods first, then blocks by address.
fn order_of_peers(peer: &Peer) -> (bool, Option<IpNet>, String) {
    match peer {
        Peer::Pods { .. } => (false, None, format!("{peer:?}")),
        Peer::Block { cidr, .. } => (true, Some(*cidr), String::new()),
    }
}
