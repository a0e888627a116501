//! What a snapshot was compiled from and to, so that the next one costs what changed.
//!
//! There is one way to each table, taken for every object by a full compile and for changed ones by an update: pods
//! are *attached* to their cohort, then *identified*; addresses are *resolved* to their owner. Numbers depend on what
//! came before; what they stand for does not.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use hashbrown::HashMap;
use ipnet::IpNet;
use ringwall_dataplane::{
    addr::Addr,
    classify::{Generation, Identity, IdentityKind, Image, ImageBuilder, NONE, Snapshot, epoch},
};
use ringwall_policy::{
    Cluster, Pod,
    tiers::{Model, Tiers},
};

use super::{
    Budget, CompileError, CompileStats, EpochKey,
    blocks::{self, Blocks, Span, Unowned},
    canonical::MultisetSums,
    classes::{Classes, Sight},
    cohorts::{CohortRows, Cohorts},
    content::{Digest, Sum},
    members::{Counted, Member, Members},
    owners::{Owner, Owners},
    policies::Policies,
    rows::{Own, Rows, Sources},
    selectors::{TermTurnover, Vocabulary},
    shapes::Shapes,
    survey::{PodHashes, Surveyor, incarnation_of, is_live},
};

/// A compiled state.
#[derive(Debug)]
pub(super) struct State {
    pub(super) cluster: Cluster,
    pub(super) tiers: Tiers,
    key: EpochKey,
    pub(super) vocabulary: Vocabulary,
    pub(super) policies: Policies,
    pub(super) cohorts: Cohorts,
    pub(super) blocks: Blocks,
    pub(super) classes: Classes,
    rows: Rows,
    pub(super) owners: Owners,
    pub(super) members: Members,
    pub(super) shapes: Shapes,
    hosts: HashMap<IpAddr, Host>,
    nodes: HashMap<String, u32>,
    /// Identities of addresses that are no pod's and no node's, by kind and class.
    places: HashMap<(u32, u32), u32>,
    /// Endpoints by their rows.
    by_rows: MultisetSums,
    /// What the canonical hash holds besides classes and rows.
    loose: Sum,
    /// Prefixes of the image's tries, with their identities.
    prefixed: BTreeMap<IpNet, u32>,
    /// How the address ranges were counted, by family (whether IPv6) and first address: class and content.
    ranges: BTreeMap<(bool, u128), (u32, Sum)>,
    pub(super) tables: ImageBuilder,
    /// The most cache lines that a lookup of an address and one of a direction read.
    worst: (u32, u32),
}

/// An address that a pod or node owns.
#[derive(Debug)]
struct Host {
    identity: u32,
    /// Whether the identity is of this address alone.
    own: bool,
    class: u32,
    /// The set of blocks that hold it.
    set: u32,
    /// How it was counted.
    piece: Sum,
}

/// The most addresses that are looked up one by one; of more, all hosts are gone through.
const FEW_ADDRESSES: u128 = 4096;

impl State {
    /// Compiles in full.
    pub(super) fn full(
        cluster: &Cluster,
        key: EpochKey,
        seed: Option<u64>,
        budget: &Budget,
    ) -> Result<Self, CompileError> {
        let surveyor = Surveyor::start(cluster);
        let model = Model::of(cluster);
        let mut tables = match seed {
            Some(seed) => ImageBuilder::seeded(Generation(0), seed),
            None => ImageBuilder::new(Generation(0)),
        };
        tables.allow_unknown(cluster.settings.allow_unknown);
        let (mut vocabulary, mut policies) = (Vocabulary::default(), Policies::default());
        for policy in &model.policies {
            vocabulary.learn(policy, &mut TermTurnover::default());
        }
        for policy in &model.policies {
            policies.add(policy, &mut vocabulary, &mut tables);
        }
        policies.take_touched_blocks(); // all of them
        let blocks = Blocks::of(cluster, &policies.blocks, most_members(budget))
            .ok_or_else(|| policies.block_budget(budget))?;
        let mut state = Self {
            cluster: cluster.clone(),
            tiers: model.tiers,
            key,
            vocabulary,
            classes: Classes::new(&policies, &blocks.sets),
            policies,
            cohorts: Cohorts::default(),
            blocks,
            rows: Rows::default(),
            owners: Owners::with_capacity(cluster.pods.len()),
            members: Members::with_capacity(cluster.pods.len()),
            shapes: Shapes::default(),
            hosts: HashMap::with_capacity(cluster.pods.len()),
            nodes: HashMap::new(),
            places: HashMap::new(),
            by_rows: MultisetSums::new("rows"),
            loose: Sum::default(),
            prefixed: BTreeMap::new(),
            ranges: BTreeMap::new(),
            tables,
            worst: (0, 0),
        };
        state.fill(surveyor, budget)?;
        Ok(state)
    }

    fn fill(&mut self, surveyor: Surveyor<'_>, budget: &Budget) -> Result<(), CompileError> {
        let cluster = self.cluster.clone();
        let (survey, hashing) = surveyor.survey();
        let mut settings = Digest::new("settings");
        settings.number(u64::from(cluster.settings.allow_unknown));
        self.loose.add(&Sum::of(&settings.finish()));
        for name in &survey.nodes {
            self.node_number(name);
        }
        for node in cluster.nodes.values() {
            self.owners.node(node, true);
        }

        self.tables.expect_hosts(survey.v4, survey.v6);

        let mut numbers = Vec::with_capacity(cluster.pods.len());
        // Addresses whose owner is not known before all pods are.
        let mut open: Vec<IpAddr> = Vec::new();
        // Cohorts, with sets of blocks that hold addresses of their pods.
        let mut placed: Vec<(u32, u32)> = Vec::new();
        // Replicas come one after the other, in the same cohort.
        let mut last: Option<u32> = None;
        for (index, (pod, is_replica)) in cluster.pods.values().zip(survey.replicas).enumerate() {
            let replica_of = last
                .filter(|_| is_replica)
                .and_then(|other| self.members.get(other));
            let like = replica_of.map(|other| (other.shape, other.cohort));
            let Some(number) = self.admit_like(pod, like.map(|(shape, _)| shape)) else {
                open.extend(&pod.addresses);
                continue;
            };
            numbers.push((index, number));
            match like {
                Some((_, cohort)) => self.join(number, cohort),
                None => self.attach(number),
            }
            let cohort = self.members.get(number).and_then(|member| member.cohort);
            last = Some(number);
            for address in &pod.addresses {
                let place = cohort.map(|cohort| (cohort, self.blocks.set_of(*address)));
                if placed.last() != place.as_ref() {
                    placed.extend(place.filter(|(_, set)| *set != 0));
                }
            }
        }
        placed.sort_unstable();
        placed.dedup();
        // What is in force before what lists and classes are, which is of that.
        let turned = self.policies.settle();
        self.classes
            .turned(&turned.sets, &turned.blocks, &self.policies, &self.vocabulary);
        // All classes before any row. Class 0 is of addresses that nothing is known of.
        self.class((0, 0, 0));
        for set in 0..self.blocks.sets.len() as u32 {
            self.class((0, set, 0));
        }
        let mut placed = placed.into_iter().peekable();
        for number in 0..self.cohorts.cohorts.len() as u32 {
            let Some(cohort) = self.cohorts.get(number) else {
                continue;
            };
            let (list, ports) = (cohort.list, cohort.peer_ports);
            self.class((list, 0, ports));
            while let Some((_, set)) = placed.next_if(|place| place.0 == number) {
                self.class((list, set, ports));
            }
        }
        self.tables.expect_endpoints(numbers.len());
        self.rows.make_room(self.classes.len(), &mut self.tables);
        self.rows.write_at_once(true);
        for cohort in 0..self.cohorts.cohorts.len() as u32 {
            self.rows_of(cohort, 0);
            self.within(budget)?;
        }
        self.rows.write_at_once(false);
        let hashes = hashing.finish();
        for (index, number) in numbers {
            self.identify_by(number, hashes.get(index));
            let Some(pod) = self.members.get(number).map(|member| Arc::clone(&member.pod)) else {
                continue;
            };
            for address in &pod.addresses {
                if self.owners.is_claimed_once(*address) {
                    self.resolve(*address);
                } else {
                    open.push(*address);
                }
            }
        }
        open.extend(cluster.nodes.values().flat_map(|node| &node.addresses));
        for address in open {
            if !self.hosts.contains_key(&address) {
                self.resolve(address);
            }
        }
        for v4 in [true, false] {
            self.prefixes(Span::family(v4));
            self.count_ranges(Span::family(v4));
        }
        Ok(())
    }

    /// Refuses what is over the budget.
    pub(super) fn within(&self, budget: &Budget) -> Result<(), CompileError> {
        // What remembers the port maps is no part of the image, and yet memory.
        match self.tables.size().max(self.rows.remembered) {
            size if size > budget.bytes => Err(self.policies.over_budget(&self.rows.costs, size, budget)),
            _ => Ok(()),
        }
    }

    /// The image of the tables as they are.
    ///
    /// The worst lookups are counted when it was compiled in full: that looks at all tables.
    pub(super) fn image(
        &mut self,
        generation: Generation,
        budget: &Budget,
    ) -> Result<(Image, CompileStats), CompileError> {
        let mut digest = Digest::new("snapshot");
        self.loose.digest(&mut digest);
        self.classes.total().digest(&mut digest);
        self.by_rows.total().digest(&mut digest);
        let image = self.tables.image(generation, digest.finish())?;
        if self.worst == (0, 0) {
            let sizes = Snapshot::from_image(&image).sizes();
            self.worst = (sizes.worst_identify, sizes.worst_judge);
        }
        let counts = self.policies.counts;
        let stats = CompileStats {
            bytes: image.bytes(),
            endpoints: self.members.len() as u32,
            hosts: self.hosts.len() as u32,
            cohorts: self.cohorts.live,
            policies: counts.policies,
            rules: counts.rules,
            selectors: counts.sets,
            blocks: counts.blocks,
            classes: self.classes.len() as u32,
            rows: self.rows.len(),
            worst_identify: self.worst.0,
            worst_judge: self.worst.1,
        };
        if stats.bytes > budget.bytes {
            return Err(self.policies.over_budget(&self.rows.costs, stats.bytes, budget));
        }
        Ok((image, stats))
    }

    /// Whether more than half of what grows with changes is of no use any more.
    pub(super) fn is_mostly_waste(&self) -> bool {
        let wasted = |all: usize, used: usize| all > 2 * used + 256;
        wasted(self.classes.len(), self.classes.live as usize)
            || wasted(self.cohorts.cohorts.len(), self.cohorts.live as usize)
            || wasted(
                self.policies.slots.len(),
                self.policies.slots.len() - self.policies.removed as usize,
            )
            || wasted(self.shapes.len(), self.members.len())
            || wasted(self.rows.len() as usize, 2 * self.cohorts.live as usize)
            || self.tables.waste() > 0.5
    }

    fn node_number(&mut self, name: &str) -> u32 {
        if let Some(number) = self.nodes.get(name) {
            return *number;
        }
        let number = self.tables.node(name);
        self.nodes.insert(name.to_owned(), number);
        number
    }

    /// The class of a sight. A new one gets its column in the rows that are there.
    fn class(&mut self, sight: Sight) -> u32 {
        let (class, is_new) = self.classes.of(sight, &mut self.policies, &self.vocabulary);
        if is_new && self.rows.len() > 0 {
            self.rows.make_room(self.classes.len(), &mut self.tables);
            let rows = self.classes.rows_about(class, &self.policies);
            let from = Sources {
                policies: &self.policies,
                vocabulary: &self.vocabulary,
                classes: &self.classes,
            };
            self.rows.add_column(class, rows, &from, &mut self.tables);
        }
        class
    }

    /// Takes up a live pod: None where it has no place of its own in the policy.
    pub(super) fn admit(&mut self, pod: &Arc<Pod>) -> Option<u32> {
        self.admit_like(pod, None)
    }

    /// As [`Self::admit`]; `shape` is the number of the pod's combination of words, where it is known.
    fn admit_like(&mut self, pod: &Arc<Pod>, shape: Option<u32>) -> Option<u32> {
        if !is_live(pod) {
            if !pod.finished {
                self.owners.hosted(pod, true);
            }
            return None;
        }
        let member = self.members.insert(Member {
            pod: Arc::clone(pod),
            shape: shape.unwrap_or_else(|| self.shapes.of(pod)),
            endpoint: NONE,
            identity: None,
            cohort: None,
            position: 0,
            attached: false,
            counted: None,
        });
        for address in &pod.addresses {
            self.owners.claim(*address, member);
        }
        Some(member)
    }

    /// Puts a member into its cohort, where its namespace has been seen.
    pub(super) fn attach(&mut self, number: u32) {
        let Some(member) = self.members.get(number).filter(|member| !member.attached) else {
            return;
        };
        let Some(namespace) = self.cluster.namespaces.get(&member.pod.key.namespace) else {
            self.join(number, None);
            return;
        };
        let (index, is_new) = self.cohorts.of(&member.pod, namespace, &mut self.vocabulary);
        if is_new {
            let (policies, sets) = self.cohorts.policies_and_sets(index, &self.policies);
            let list = self.classes.list(sets);
            if let Some(cohort) = self.cohorts.cohorts.get_mut(index as usize) {
                cohort.policies = policies;
                cohort.list = list;
            }
        }
        self.join(number, Some(index));
    }

    /// Makes a member one of a cohort; None where its namespace has not been seen.
    fn join(&mut self, number: u32, index: Option<u32>) {
        let Some(member) = self.members.get_mut(number) else {
            return;
        };
        member.attached = true;
        member.cohort = index;
        let Some(cohort) = index.and_then(|index| self.cohorts.cohorts.get_mut(index as usize)) else {
            return;
        };
        member.position = cohort.members.len();
        if cohort.members.is_empty() {
            self.policies.selects(&cohort.policies, true);
            self.cohorts.live += 1;
        }
        cohort.members.push(number);
    }

    /// Takes a member out of its cohort.
    pub(super) fn detach(&mut self, number: u32) {
        let Some(member) = self.members.get_mut(number) else {
            return;
        };
        member.attached = false;
        let position = member.position;
        let cohort = member.cohort.take();
        let Some(cohort) = cohort.and_then(|cohort| self.cohorts.cohorts.get_mut(cohort as usize)) else {
            return;
        };
        cohort.members.swap_remove(position);
        let moved = cohort.members.get(position).copied();
        if cohort.members.is_empty() {
            self.policies.selects(&cohort.policies, false);
            self.cohorts.live -= 1;
        }
        if let Some(moved) = moved.and_then(|moved| self.members.get_mut(moved)) {
            moved.position = position;
        }
    }

    /// What decides about a cohort, at addresses in a set of blocks.
    fn rows_of(&mut self, index: u32, blocks: u32) -> CohortRows {
        let Some(cohort) = self.cohorts.get(index) else {
            return CohortRows::default();
        };
        let by_address = blocks != 0 && self.policies.ask_for_own_address(&cohort.policies);
        if let Some(rows) = cohort.rows.filter(|_| !by_address) {
            return rows;
        }
        let blocks = if by_address { blocks } else { 0 };
        // Classes that came while there was no row have no column yet.
        self.rows.make_room(self.classes.len(), &mut self.tables);
        let own = Own {
            sets: self.classes.sets(cohort.list),
            blocks: self.classes.blocks(blocks),
        };
        let from = Sources {
            policies: &self.policies,
            vocabulary: &self.vocabulary,
            classes: &self.classes,
        };
        let (policies, ports) = (&cohort.policies, cohort.own_ports);
        let tables = &mut self.tables;
        let ingress = self.rows.of(policies, (true, ports), own, &from, tables);
        let egress = self.rows.of(policies, (false, ports), own, &from, tables);
        let mut digest = Digest::new("rules");
        digest.content(&self.rows.content(ingress));
        digest.content(&self.rows.content(egress));
        let content = digest.finish();
        let mut epoch = Digest::new("epoch");
        epoch.content(&cohort.seen);
        epoch.content(&content);
        let rows = CohortRows {
            ingress,
            egress,
            part: self.by_rows.part(content),
            epoch: epoch.finish(),
        };
        self.policies.named_by(self.rows.named.drain(..));
        if let Some(cohort) = self.cohorts.cohorts.get_mut(index as usize)
            && !by_address
        {
            cohort.rows = Some(rows);
        }
        rows
    }

    /// Says who an attached member is apart from any address: identity, name, place in the canonical hash. Its
    /// addresses are to be resolved afterwards.
    pub(super) fn identify(&mut self, number: u32) {
        self.identify_by(number, None);
    }

    /// As [`Self::identify`], with the pod's hashes where they are known.
    fn identify_by(&mut self, number: u32, hashes: Option<&PodHashes>) {
        self.uncount(number);
        let Some(member) = self.members.get(number) else {
            return;
        };
        let pod = Arc::clone(&member.pod);
        let (own, mut endpoint) = (member.identity, member.endpoint);
        let is_new = endpoint == NONE;
        if is_new {
            endpoint = self.tables.next_endpoint();
        }
        let cohort = member.cohort.and_then(|cohort| {
            let known = self.cohorts.get(cohort)?;
            Some((cohort, known.list, known.peer_ports))
        });
        let (identity, own, counted) = match cohort {
            Some((cohort, list, ports)) => {
                let rows = self.rows_of(cohort, 0);
                let class = self.class((list, 0, ports));
                let hashes = hashes.copied().unwrap_or_else(|| PodHashes::of(&pod));
                let who = self.who((&pod, hashes.incarnation), endpoint, class, 0, &rows);
                let identity = match own {
                    Some(own) => {
                        self.tables.set_identity(own, who);
                        own
                    }
                    None => self.tables.identity(who),
                };
                let piece = Sum::of(&hashes.endpoint);
                self.classes.add(class, &piece);
                self.by_rows.add(rows.part, &piece);
                let place = Some((class, rows.part));
                (identity, Some(identity), Counted { piece, place })
            }
            // Which selectors match a pod is unknown while its Namespace is missing.
            None => {
                let unknown = self.place(IdentityKind::Unknown, 0);
                if let Some(own) = own {
                    self.tables.free_identity(own);
                }
                let mut digest = Digest::new("unknown endpoint");
                digest.text(&pod.key.namespace);
                digest.text(&pod.key.name);
                digest.number(u64::from(pod.template_of.is_some()));
                let piece = Sum::of(&digest.finish());
                self.loose.add(&piece);
                (unknown, None, Counted { piece, place: None })
            }
        };
        let template = pod.template_of.is_some();
        if is_new {
            self.tables
                .endpoint(&pod.key.namespace, &pod.key.name, template, identity);
        } else {
            self.tables.set_endpoint(endpoint, template, identity);
        }
        if let Some(member) = self.members.get_mut(number) {
            member.endpoint = endpoint;
            member.identity = own;
            member.counted = Some(counted);
        }
    }

    /// Puts into an epoch which address sets hold an address: members come and go. Which ipBlocks hold it never changes, and what
    /// blocks mean to a pod is in that pod's epoch.
    fn add_address_sets(&self, blocks: u32, epoch: &mut Digest<'_>) {
        let sets = self.policies.address_sets_among(self.classes.blocks(blocks));
        if !sets.is_empty() {
            epoch.set(sets);
        }
    }

    /// A pod, with the hash of its incarnation, at addresses in a set of blocks.
    fn who(
        &mut self,
        (pod, incarnation): (&Pod, u64),
        endpoint: u32,
        class: u32,
        blocks: u32,
        rows: &CohortRows,
    ) -> Identity {
        let node = match &pod.node {
            Some(node) => self.node_number(node),
            None => NONE,
        };
        let mut digest = Digest::keyed(&self.key.0, "pod");
        digest.number(incarnation);
        digest.text(pod.node.as_deref().unwrap_or_default());
        digest.content(&rows.epoch);
        self.add_address_sets(blocks, &mut digest);
        Identity {
            kind: IdentityKind::Pod,
            endpoint,
            node,
            peer_class: class,
            ingress: rows.ingress,
            egress: rows.egress,
            epoch: epoch(incarnation, digest.short()),
        }
    }

    fn uncount(&mut self, number: u32) {
        let member = self.members.get_mut(number);
        let Some(counted) = member.and_then(|member| member.counted.take()) else {
            return;
        };
        match counted.place {
            Some((class, part)) => {
                self.classes.remove(class, &counted.piece);
                self.by_rows.remove(part, &counted.piece);
            }
            None => self.loose.subtract(&counted.piece),
        }
    }

    /// Forgets a member. Its addresses are to be resolved afterwards.
    pub(super) fn dismiss(&mut self, number: u32) {
        self.detach(number);
        self.uncount(number);
        let Some(member) = self.members.remove(number) else {
            return;
        };
        for address in &member.pod.addresses {
            self.owners.release(*address, number);
        }
        if member.endpoint != NONE {
            self.tables.free_endpoint(member.endpoint);
        }
        if let Some(identity) = member.identity {
            self.tables.free_identity(identity);
        }
    }

    /// Says whose an address is.
    pub(super) fn resolve(&mut self, address: IpAddr) {
        let before = self.hosts.remove(&address);
        if let Some(host) = &before {
            self.classes.remove(host.class, &host.piece);
            if host.own {
                self.tables.free_identity(host.identity);
            }
        }
        let owner = self.owners.of(address, &self.members);
        let host = match &owner {
            None => None,
            Some(Owner::Pod(member)) => self.host_of_pod(address, *member),
            Some(Owner::Node(name)) => Some(self.host_of_node(address, name)),
        };
        match host {
            Some(host) => {
                self.tables.host(address.into(), host.identity);
                self.classes.add(host.class, &host.piece);
                self.hosts.insert(address, host);
            }
            None if before.is_some() => drop(self.tables.remove_host(address.into())),
            None => {}
        }
    }

    fn host_of_pod(&mut self, address: IpAddr, number: u32) -> Option<Host> {
        let member = self.members.get(number)?;
        let pod = Arc::clone(&member.pod);
        let mut digest = host_digest(address, true);
        digest.text(&pod.key.namespace);
        digest.text(&pod.key.name);
        let piece = Sum::of(&digest.finish());
        let set = self.blocks.set_of(address);
        let Some((cohort, identity, place)) = member
            .cohort
            .zip(member.identity)
            .zip(member.counted.and_then(|counted| counted.place))
            .map(|((cohort, identity), place)| (cohort, identity, place))
        else {
            return Some(Host {
                identity: self.place(IdentityKind::Unknown, set),
                own: false,
                class: self.class((0, set, 0)),
                set,
                piece,
            });
        };
        let endpoint = member.endpoint;
        let known = self.cohorts.get(cohort)?;
        let class = match set {
            0 => place.0,
            _ => self.class((known.list, set, known.peer_ports)),
        };
        if class == place.0 {
            return Some(Host {
                identity,
                own: false,
                class,
                set,
                piece,
            });
        }
        let rows = self.rows_of(cohort, set);
        let incarnation = incarnation_of(&pod);
        let who = self.who((&pod, incarnation), endpoint, class, set, &rows);
        Some(Host {
            identity: self.tables.identity(who),
            own: true,
            class,
            set,
            piece,
        })
    }

    fn host_of_node(&mut self, address: IpAddr, name: &str) -> Host {
        let mut digest = host_digest(address, false);
        digest.text(name);
        let piece = Sum::of(&digest.finish());
        let set = self.blocks.set_of(address);
        let class = self.class((0, set, 0));
        let node = self.node_number(name);
        let mut incarnation = Digest::new("node");
        incarnation.text(name);
        let mut digest = Digest::keyed(&self.key.0, "node");
        digest.text(name);
        self.add_address_sets(set, &mut digest);
        let who = Identity {
            kind: IdentityKind::Node,
            endpoint: NONE,
            node,
            peer_class: class,
            ingress: 0,
            egress: 0,
            epoch: epoch(incarnation.short(), digest.short()),
        };
        Host {
            identity: self.tables.identity(who),
            own: true,
            class,
            set,
            piece,
        }
    }

    /// The identity of addresses that are no pod's and no node's, in a set of blocks.
    fn place(&mut self, kind: IdentityKind, set: u32) -> u32 {
        let class = self.class((0, set, 0));
        if let Some(identity) = self.places.get(&(kind as u32, class)) {
            return *identity;
        }
        let mut digest = Digest::keyed(&self.key.0, "place");
        digest.number(kind as u64);
        digest.number(u64::from(self.cluster.settings.allow_unknown));
        self.add_address_sets(set, &mut digest);
        let identity = self.tables.identity(Identity {
            kind,
            endpoint: NONE,
            node: NONE,
            peer_class: class,
            ingress: 0,
            egress: 0,
            epoch: epoch(0, digest.short()),
        });
        self.places.insert((kind as u32, class), identity);
        identity
    }

    /// How many addresses are a pod's or a node's.
    pub(super) fn hosts(&self) -> usize {
        self.hosts.len()
    }

    /// Blocks and networks of pods came or went in these spans: what their addresses are that no host is. Answers the
    /// hosts' addresses that other blocks hold.
    pub(super) fn cut_again(&mut self, spans: &[Span]) -> Vec<IpAddr> {
        self.classes.more_block_sets(&self.blocks.sets, &self.policies);
        for span in spans {
            self.prefixes(*span);
        }
        let (few, many): (Vec<Span>, Vec<Span>) = spans.iter().partition(|span| span.len() <= FEW_ADDRESSES);
        let few = few.into_iter().flat_map(|span| span.addresses());
        let few = few.filter_map(|address| self.hosts.get_key_value(&address));
        let inside = |address: &IpAddr| many.iter().any(|span| span.holds(*address));
        let hosts = if many.is_empty() { None } else { Some(&self.hosts) };
        let hosts = hosts.into_iter().flatten();
        few.chain(hosts.filter(|(address, _)| inside(address)))
            .filter(|(address, host)| self.blocks.set_of(**address) != host.set)
            .map(|(address, _)| *address)
            .collect()
    }

    /// Says what the addresses of a span are that no host is.
    fn prefixes(&mut self, span: Span) {
        let gone: Vec<IpNet> = match IpNet::new(blocks::address(span.v4, span.first), 0) {
            Ok(from) => {
                let inside = self.prefixed.range(from..).map(|(net, _)| *net);
                let inside = inside.take_while(|net| span.holds(net.network()));
                inside.filter(|net| !self.blocks.is_marked(net)).collect()
            }
            Err(_) => Vec::new(),
        };
        for net in gone {
            self.prefixed.remove(&net);
            self.tables.remove_prefix(net.network().into(), net.prefix_len());
        }
        for prefix in self.blocks.prefixes(span) {
            let net = prefix.net;
            let identity = self.place(kind_of(prefix.content.place), prefix.content.set);
            let outer = prefix
                .outer
                .map(|outer| self.place(kind_of(outer.place), outer.set));
            // What the surrounding prefix says anyway needs no place in the trie.
            if outer == Some(identity) {
                if self.prefixed.remove(&net).is_some() {
                    self.tables.remove_prefix(net.network().into(), net.prefix_len());
                }
            } else if self.prefixed.insert(net, identity) != Some(identity) {
                self.tables
                    .prefix(net.network().into(), net.prefix_len(), identity);
            }
        }
    }

    /// Counts the address ranges that begin in a span, and the one after it; neighbours of the same content joined, whatever
    /// prefixes they came from.
    pub(super) fn count_ranges(&mut self, span: Span) {
        let (before, ranges) = self.blocks.ranges(span);
        let ranges = ranges.to_vec();
        // What began between the span and the next range has been joined.
        let next = ranges
            .last()
            .map(|range| range.first)
            .filter(|next| *next > span.last);
        let last = next.unwrap_or(Span::family(span.v4).last);
        let counted = self.ranges.range((!span.v4, span.first)..=(!span.v4, last));
        let counted: Vec<(bool, u128)> = counted.map(|(first, _)| *first).collect();
        for first in counted {
            if let Some((class, piece)) = self.ranges.remove(&first) {
                self.classes.remove(class, &piece);
            }
        }
        let mut before = before.map(|content| self.range_content(content).1);
        for range in ranges {
            let (class, content) = self.range_content(range.content);
            if before == Some(content) {
                continue;
            }
            before = Some(content);
            let mut digest = Digest::new("range");
            digest.bytes(&blocks::in_tables(span.v4, range.first).octets());
            digest.number(content.0 as u64);
            let piece = Sum::of(&digest.finish());
            self.classes.add(class, &piece);
            self.ranges.insert((!span.v4, range.first), (class, piece));
        }
    }

    /// The class of a range's addresses, and what they are: kind and the part among the classes.
    fn range_content(&mut self, content: blocks::Content) -> (u32, (IdentityKind, u32)) {
        let class = self.class((0, content.set, 0));
        (class, (kind_of(content.place), self.classes.part(class)))
    }
}

/// The most members that all sets of blocks together may have.
pub(super) fn most_members(budget: &Budget) -> u64 {
    budget.bytes / size_of::<u32>() as u64
}

fn host_digest(address: IpAddr, pod: bool) -> Digest<'static> {
    let mut digest = Digest::new("host");
    digest.bytes(&Addr::from(address).octets());
    digest.number(u64::from(pod));
    digest
}

fn kind_of(place: Unowned) -> IdentityKind {
    match place {
        Unowned::Outside => IdentityKind::External,
        Unowned::Service => IdentityKind::Service,
        Unowned::PodNetwork => IdentityKind::Unknown,
    }
}
