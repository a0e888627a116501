//! The ends of witness packets: pods of the cluster where there are any that fit, else pods imagined for the purpose.
//!
//! Manifests often hold policies alone. A pod that is imagined has labels, no address, and changes no verdict about
//! anybody else, so a snapshot of the cluster with them answers for both.

use std::{cell::Cell, collections::BTreeMap, net::IpAddr, sync::Arc};

use ipnet::IpNet;
use ringwall_policy::{
    Cluster, Labels, NAMESPACE_NAME_LABEL, Namespace, ObjectKey, Peer, Pod, PodSelection, Selector,
};

use super::selecting::{label_words, matches, satisfy};
use crate::flow::EndName;

/// Addresses reserved for documentation.
pub(super) const DOC_ADDRESSES: [IpAddr; 2] = [
    IpAddr::V4(std::net::Ipv4Addr::new(203, 0, 113, 9)),
    IpAddr::V6(std::net::Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 9)),
];

/// Which namespaces a pod may be of.
#[derive(Clone, Copy, Debug)]
pub(super) enum NamespaceFilter<'a> {
    /// One.
    Named(&'a str),
    /// Any that matches.
    Matching(&'a Selector),
    /// Any but one.
    Other(&'a str),
}

/// The cluster and whoever was imagined.
pub(super) struct Witnesses<'a> {
    cluster: &'a Cluster,
    by_namespace: BTreeMap<&'a str, Vec<&'a Pod>>,
    /// Live pods off the host network; of several with one address, any.
    by_address: BTreeMap<IpAddr, &'a Pod>,
    /// The cluster with them.
    with_synthetic: Cluster,
    synthetic: BTreeMap<ObjectKey, Labels>,
    /// The subject chosen last: the other end is never the same pod, since it may always talk to itself.
    subject: Option<ObjectKey>,
    /// How often the evaluator may still be asked for packets that only show a finding: it looks at every policy.
    questions_left: Cell<usize>,
}

/// Findings past this many questions have no packet.
const MOST_QUESTIONS: usize = 2000;

impl<'a> Witnesses<'a> {
    pub(super) fn new(cluster: &'a Cluster) -> Self {
        let mut by_namespace: BTreeMap<&str, Vec<&Pod>> = BTreeMap::new();
        let mut by_address: BTreeMap<IpAddr, &Pod> = BTreeMap::new();
        for (key, pod) in cluster.pods.iter().filter(|(_, pod)| !pod.finished) {
            by_namespace.entry(&key.namespace).or_default().push(pod);
            if !pod.host_network {
                by_address.extend(pod.addresses.iter().map(|address| (*address, &**pod)));
            }
        }
        Self {
            cluster,
            by_namespace,
            by_address,
            with_synthetic: cluster.clone(),
            synthetic: BTreeMap::new(),
            subject: None,
            questions_left: Cell::new(MOST_QUESTIONS),
        }
    }

    /// Whether one more packet may be looked for that only shows a finding.
    pub(super) fn may_ask(&self) -> bool {
        let left = self.questions_left.get();
        self.questions_left.set(left.saturating_sub(1));
        left > 0
    }

    /// The cluster with everybody who was imagined.
    pub(super) fn with_synthetic(&self) -> &Cluster {
        &self.with_synthetic
    }

    /// The pods of a namespace that have not finished, those on the host network too.
    pub(super) fn pods_of(&self, namespace: &str) -> &[&'a Pod] {
        self.by_namespace.get(namespace).map_or(&[], Vec::as_slice)
    }

    /// The pods of a namespace that policies know.
    pub(super) fn live(&self, namespace: &str) -> impl Iterator<Item = &'a Pod> {
        self.pods_of(namespace)
            .iter()
            .copied()
            .filter(|pod| !pod.host_network)
    }

    /// Every pod that policies know.
    pub(super) fn all(&self) -> impl Iterator<Item = &'a Pod> {
        self.by_namespace
            .values()
            .flatten()
            .copied()
            .filter(|pod| !pod.host_network)
    }

    /// The pods with an address in a block, in order of addresses.
    pub(super) fn pods_in<'s>(
        &'s self,
        cidr: &IpNet,
        except: &'s [IpNet],
    ) -> impl Iterator<Item = &'a Pod> + 's {
        let inside = self.by_address.range(cidr.network()..=cidr.broadcast());
        inside
            .filter(|(address, _)| !except.iter().any(|hole| hole.contains(*address)))
            .map(|(_, pod)| *pod)
    }

    /// Namespaces of the cluster.
    pub(super) fn namespaces(&self, place: NamespaceFilter<'_>) -> Vec<&'a str> {
        let it = self.cluster.namespaces.values();
        it.filter(|namespace| match place {
            NamespaceFilter::Named(name) => namespace.name == name,
            NamespaceFilter::Matching(selector) => matches(selector, &namespace.labels),
            NamespaceFilter::Other(name) => namespace.name != name,
        })
        .map(|namespace| namespace.name.as_str())
        .collect()
    }

    /// The real pods that a peer matches by selector; none for a block.
    pub(super) fn peer_pods(&self, own: &str, peer: &Peer) -> Vec<&'a Pod> {
        match peer {
            Peer::Block { .. } | Peer::Addresses(_) => Vec::new(),
            Peer::Pods { namespaces, pods } => {
                let place = namespaces
                    .as_ref()
                    .map_or(NamespaceFilter::Named(own), NamespaceFilter::Matching);
                self.namespaces(place)
                    .into_iter()
                    .flat_map(|namespace| self.live(namespace))
                    .filter(|pod| matches(pods, &pod.labels))
                    .collect()
            }
        }
    }

    /// A pod that matches `with` and `fits`, and is not the subject chosen last: a real one, else an imagined one. None
    /// where that cannot be.
    pub(super) fn pod(
        &mut self,
        place: NamespaceFilter<'_>,
        with: &[&Selector],
        fits: &dyn Fn(&Labels) -> bool,
    ) -> Option<EndName> {
        let suits = |labels: &Labels| with.iter().all(|it| matches(it, labels)) && fits(labels);
        for namespace in self.namespaces(place) {
            let free = |pod: &&Pod| self.subject.as_ref() != Some(&pod.key) && suits(&pod.labels);
            if let Some(pod) = self.live(namespace).find(free) {
                return Some(EndName::Pod(pod.key.clone()));
            }
        }
        let mut labels = Labels::new();
        with.iter().for_each(|selector| satisfy(selector, &mut labels));
        if !suits(&labels) {
            // Once more with a label that no selector asks for.
            labels.insert("another".to_owned(), "label".to_owned());
        }
        if !suits(&labels) {
            return None;
        }
        let namespace = self.namespace(place)?;
        Some(self.add_synthetic(namespace, labels))
    }

    /// A namespace that is there, else an imagined one.
    fn namespace(&mut self, place: NamespaceFilter<'_>) -> Option<String> {
        let found = self.namespaces(place).first().map(|name| (*name).to_owned());
        if let Some(name) = found {
            return Some(name);
        }
        let mut labels = Labels::new();
        if let NamespaceFilter::Matching(selector) = place {
            satisfy(selector, &mut labels);
        }
        let name = match place {
            NamespaceFilter::Named(name) => name.to_owned(),
            NamespaceFilter::Other("elsewhere") => "somewhere".to_owned(),
            NamespaceFilter::Other(_) => "elsewhere".to_owned(),
            NamespaceFilter::Matching(_) => labels
                .get(NAMESPACE_NAME_LABEL)
                .or(labels.get("name"))
                .cloned()
                .unwrap_or_else(|| "elsewhere".to_owned()),
        };
        // Two selectors may imagine one name with different labels.
        let name = std::iter::once(name.clone())
            .chain((2..).map(|n| format!("{name}-{n}")))
            .find(|name| {
                labels.insert(NAMESPACE_NAME_LABEL.to_owned(), name.clone());
                let there = self.with_synthetic.namespaces.get(name);
                there.is_none_or(|there| there.labels == labels)
            })?;
        if let NamespaceFilter::Matching(selector) = place
            && !matches(selector, &labels)
        {
            return None;
        }
        let namespace = Namespace {
            name: name.clone(),
            labels,
            terminating: false,
        };
        self.with_synthetic
            .namespaces
            .insert(name.clone(), Arc::new(namespace));
        Some(name)
    }

    fn add_synthetic(&mut self, namespace: String, labels: Labels) -> EndName {
        let same = |(key, there): (&ObjectKey, &Labels)| {
            let free = self.subject.as_ref() != Some(key);
            (free && key.namespace == namespace && *there == labels).then(|| key.clone())
        };
        if let Some(key) = self.synthetic.iter().find_map(same) {
            return EndName::Pod(key);
        }
        let key = (1 + self.synthetic.len()..)
            .map(|n| ObjectKey {
                namespace: namespace.clone(),
                name: format!("imagined-{n}"),
            })
            .find(|key| !self.with_synthetic.pods.contains_key(key))
            .unwrap_or_else(|| unreachable!("names do not run out"));
        let pod = Pod {
            labels: labels.clone(),
            ..Pod::new(key.clone())
        };
        self.with_synthetic.pods.insert(key.clone(), Arc::new(pod));
        self.synthetic.insert(key.clone(), labels);
        EndName::Pod(key)
    }

    /// A subject of a policy: a real pod, else an imagined one.
    pub(super) fn subject(&mut self, namespace: &str, subjects: &Selector) -> Option<EndName> {
        self.subject = None;
        let end = self.pod(NamespaceFilter::Named(namespace), &[subjects], &|_| true)?;
        self.set_subject(&end);
        Some(end)
    }

    /// A pod that a selection selects, as the subject: a real pod, else an imagined one.
    pub(super) fn selected(&mut self, selection: &PodSelection) -> Option<EndName> {
        self.subject = None;
        let place = NamespaceFilter::Matching(&selection.namespaces);
        let end = self.pod(place, &[&selection.pods], &|_| true)?;
        self.set_subject(&end);
        Some(end)
    }

    /// Makes an end the subject.
    pub(super) fn set_subject(&mut self, end: &EndName) {
        self.subject = match end {
            EndName::Pod(key) => Some(key.clone()),
            EndName::Address(_) | EndName::Service(_) => None,
        };
    }

    /// An end that a peer matches.
    pub(super) fn peer(&mut self, own: &str, peer: &Peer) -> Option<EndName> {
        match peer {
            Peer::Pods { namespaces, pods } => {
                let place = namespaces
                    .as_ref()
                    .map_or(NamespaceFilter::Named(own), NamespaceFilter::Matching);
                self.pod(place, &[pods], &|_| true)
            }
            Peer::Block { cidr, except } => address_in(cidr, except).map(EndName::Address),
            Peer::Addresses(_) => {
                let mut members = self.cluster.blocks_of(peer);
                members.find_map(|(cidr, except)| address_in(&cidr, except).map(EndName::Address))
            }
        }
    }

    /// Addresses outside of the cluster, of either family.
    pub(super) fn outsiders(&self) -> impl Iterator<Item = EndName> {
        DOC_ADDRESSES.into_iter().map(EndName::Address)
    }

    /// A pod of another namespace without labels that anybody asks for.
    pub(super) fn stranger(&mut self, own: &str) -> Option<EndName> {
        self.pod(NamespaceFilter::Other(own), &[], &|_| true)
    }

    /// An end in words.
    pub(super) fn words(&self, end: &EndName) -> String {
        match end {
            EndName::Address(_) | EndName::Service(_) => end.to_string(),
            EndName::Pod(key) => match self.synthetic.get(key) {
                None => key.to_string(),
                Some(labels) => {
                    let space = match self.synthetic_namespace(&key.namespace) {
                        None => format!("namespace {}", key.namespace),
                        Some(labels) => format!("a namespace with {labels}"),
                    };
                    format!("a pod of {space} with {}", label_words(labels))
                }
            },
        }
    }

    /// The labels of a namespace that was imagined, in words; None for one that was not, or that only its name matters of.
    fn synthetic_namespace(&self, name: &str) -> Option<String> {
        if self.cluster.namespaces.contains_key(name) {
            return None;
        }
        let mut labels = self.with_synthetic.namespaces.get(name)?.labels.clone();
        labels.remove(NAMESPACE_NAME_LABEL);
        (!labels.is_empty()).then(|| label_words(&labels))
    }

    /// Whether an end was imagined.
    pub(super) fn is_synthetic(&self, end: &EndName) -> bool {
        matches!(end, EndName::Pod(key) if self.synthetic.contains_key(key))
    }

    /// Whether a block holds a part of the pod network: of the known one, or of any where none is known.
    pub(super) fn may_hold_pods(&self, cidr: &IpNet, except: &[IpNet]) -> bool {
        let networks = self.pod_networks();
        let outside = |network: &IpNet| except.iter().any(|hole| hole.contains(network));
        let meets = |network: &IpNet| network.contains(cidr) || cidr.contains(network) && !outside(network);
        match networks.is_empty() {
            true => cidr.prefix_len() == 0,
            false => networks.iter().any(meets),
        }
    }

    /// The pod networks that are known.
    pub(super) fn pod_networks(&self) -> Vec<IpNet> {
        let nodes = self.cluster.nodes.values().flat_map(|node| &node.pod_cidrs);
        nodes.chain(&self.cluster.settings.pod_cidrs).copied().collect()
    }
}

/// An address of a block that no exception holds; not the network's own where there is another.
pub(super) fn address_in(cidr: &IpNet, except: &[IpNet]) -> Option<IpAddr> {
    let free = |address: &IpAddr| cidr.contains(address) && !except.iter().any(|hole| hole.contains(address));
    // The border of an exception is next to what is left of the block, if anything is.
    let after = |address: IpAddr| match address {
        IpAddr::V4(it) => u32::from(it).checked_add(1).map(|it| IpAddr::V4(it.into())),
        IpAddr::V6(it) => u128::from(it).checked_add(1).map(|it| IpAddr::V6(it.into())),
    };
    let before = |address: IpAddr| match address {
        IpAddr::V4(it) => u32::from(it).checked_sub(1).map(|it| IpAddr::V4(it.into())),
        IpAddr::V6(it) => u128::from(it).checked_sub(1).map(|it| IpAddr::V6(it.into())),
    };
    let first = cidr.network();
    after(first)
        .into_iter()
        .chain([first])
        .chain(except.iter().filter_map(|hole| after(hole.broadcast())))
        .chain(except.iter().filter_map(|hole| before(hole.network())))
        .find(free)
}
