//! From the state of the cluster to a snapshot image. Pure and deterministic: equal states and keys give equal bytes.
//!
//! 1. [`cohorts`]: pods that no selector can tell apart; each selector is evaluated once per cohort.
//! 2. Policies to the rules of each cohort, and the sets of pods and [`blocks`] that those rules name.
//! 3. Peer classes: cohorts and address ranges that the same sets and blocks hold, numbered by namespace.
//! 4. [`rows`]: one per distinct list of policies, direction and named ports; [`ports`] decides each cell.
//! 5. [`owners`] of addresses become identities, with the epochs and [`content`] of all that decides about them.

mod blocks;
mod cohorts;
mod compiler;
mod content;
mod owners;
mod ports;
mod rows;
#[cfg(test)]
mod tests;

use std::{net::IpAddr, ops::Range};

use hashbrown::HashMap;
use ringwall_dataplane::{
    addr::Addr,
    classify::{BuildError, Generation, Identity, IdentityKind, Image, ImageBuilder, NONE},
};

pub use self::compiler::{Compiled, Compiler};
use self::{
    blocks::{Block, Blocks, Place},
    cohorts::Cohorts,
    content::{Content, Digest},
    owners::Owners,
    rows::{Atom, ClassFacts, ClassSet, NamesOf, RowRule, RowSpec, Rows, add_class},
};
use crate::{
    cluster::{Cluster, Pod},
    model::{Model, Peer, PodSet, Rule},
};

/// Key of the installation's epochs: 32 random bytes that stay with the installation, zero offline.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct EpochKey(pub [u8; 32]);

impl EpochKey {
    /// The key of the offline commands, whose epochs nobody compares.
    pub const OFFLINE: Self = Self([0; 32]);
}

impl std::fmt::Debug for EpochKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("EpochKey(..)")
    }
}

/// What a snapshot may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budget {
    /// Bytes of the image.
    pub bytes: u64,
}

impl Default for Budget {
    fn default() -> Self {
        Self { bytes: 512 << 20 }
    }
}

/// A snapshot, ready to be published.
#[derive(Clone, Debug)]
pub struct CompiledImage {
    /// The image; read it with [`ringwall_dataplane::classify::Snapshot::from_image`].
    pub image: Image,
    /// The image as a whole; open it with [`ringwall_dataplane::classify::Snapshot::open`].
    pub bytes: Vec<u8>,
    /// Hash of the canonical content: equal for clusters whose snapshots mean the same, whatever the generation, the
    /// epoch key and the order in which the cluster came to be.
    pub hash: [u8; 32],
    /// Figures about it.
    pub stats: CompileStats,
}

/// Figures about a snapshot. Worst lookups: [`ringwall_dataplane::classify::Snapshot::sizes`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CompileStats {
    /// Bytes of the image.
    pub bytes: u64,
    /// Pods and templates with a place in the policy.
    pub endpoints: u32,
    /// Addresses of pods and nodes.
    pub hosts: u32,
    /// Groups of pods that no selector tells apart.
    pub cohorts: u32,
    /// Policies that select a pod.
    pub policies: u32,
    /// Rules of those policies.
    pub rules: u32,
    /// Distinct peer selectors of those policies.
    pub selectors: u32,
    /// Distinct ipBlocks of those policies.
    pub blocks: u32,
    /// Peer classes.
    pub classes: u32,
    /// Rows.
    pub rows: u32,
}

/// Why there is no snapshot.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum CompileError {
    /// It would be larger than its budget.
    #[error(
        "the snapshot would take at least {needed} bytes, its budget is {budget}; the heaviest policies are {}. Raise \
         the budget, or give those policies fewer distinct selectors and blocks",
        shares(heaviest)
    )]
    OverBudget {
        /// Bytes that it takes at least.
        needed: u64,
        /// Bytes that it may take.
        budget: u64,
        /// The heaviest policies and their share of what was counted, between 0 and 1; the heaviest first.
        heaviest: Vec<(String, f64)>,
    },
    /// The tables do not fit the image.
    #[error(transparent)]
    Image(#[from] BuildError),
}

fn shares(heaviest: &[(String, f64)]) -> String {
    let shares: Vec<String> = heaviest
        .iter()
        .map(|(policy, share)| format!("{policy} ({:.0} %)", share * 100.0))
        .collect();
    shares.join(", ")
}

/// Compiles the cluster's policies, within the default [`Budget`].
pub fn compile(
    cluster: &Cluster,
    generation: Generation,
    key: &EpochKey,
) -> Result<CompiledImage, CompileError> {
    compile_within(cluster, generation, key, &Budget::default())
}

/// Compiles the cluster's policies.
pub fn compile_within(
    cluster: &Cluster,
    generation: Generation,
    key: &EpochKey,
    budget: &Budget,
) -> Result<CompiledImage, CompileError> {
    let model = Model::of(cluster);
    let cohorts = Cohorts::of(cluster, &model);
    let mut image = ImageBuilder::new(generation);
    image.allow_unknown(cluster.settings.allow_unknown);
    let force = Force::of(&model, &cohorts, &mut image);
    let blocks = Blocks::of(cluster, &force.blocks, budget.bytes / size_of::<u32>() as u64)
        .ok_or_else(|| force.block_budget(budget))?;
    let owners = Owners::of(cluster, &cohorts);
    let classes = Classes::of(&cohorts, &force, &blocks, &owners);
    let groups = Groups::of(&cohorts, &force, &classes, &mut image, budget)?;
    let writer = Writer {
        cluster,
        key,
        cohorts: &cohorts,
        blocks: &blocks,
        owners: &owners,
        classes: &classes,
        groups: &groups,
        image,
        places: HashMap::new(),
        canonical: Digest::new("snapshot"),
    };
    let (mut image, hash, hosts) = writer.write();
    let image = image.image(generation, hash)?;
    let stats = CompileStats {
        bytes: image.bytes(),
        endpoints: cohorts.members.len() as u32,
        hosts,
        cohorts: cohorts.cohorts.len() as u32,
        policies: force.policies.len() as u32,
        rules: force.rules.len() as u32,
        selectors: force.sets.len() as u32,
        blocks: force.blocks.len() as u32,
        classes: classes.facts.len() as u32,
        rows: groups.rows,
    };
    if stats.bytes > budget.bytes {
        return Err(over_budget(&force, &groups.costs, stats.bytes, budget));
    }
    Ok(CompiledImage {
        bytes: image.to_bytes(),
        image,
        hash,
        stats,
    })
}

/// A policy that selects a pod.
struct ForcePolicy {
    name: String,
    /// Position of its tier, where that isolates.
    isolating: Option<u32>,
    /// Its number in the image.
    number: u32,
    /// Tier, kind and name.
    content: Content,
    ingress: Range<u32>,
    /// All that its ingress rules say.
    ingress_content: Content,
    egress: Range<u32>,
    /// All that its egress rules say.
    egress_content: Content,
}

/// The policies in force: those that select a pod, in the order in which they decide.
struct Force<'a> {
    policies: Vec<ForcePolicy>,
    rules: Vec<RowRule<'a>>,
    /// Distinct sets of pods that rules name, and the cohorts in them.
    sets: Vec<(PodSet<'a>, Vec<u32>)>,
    /// Distinct blocks that rules name.
    blocks: Vec<Block>,
    /// By cohort: policies for ingress and for egress, in order.
    selected: Vec<(Vec<u32>, Vec<u32>)>,
}

impl<'a> Force<'a> {
    fn of(model: &Model<'a>, cohorts: &Cohorts<'a>, image: &mut ImageBuilder) -> Self {
        let mut this = Self {
            policies: Vec::new(),
            rules: Vec::new(),
            sets: Vec::new(),
            blocks: Vec::new(),
            selected: vec![(Vec::new(), Vec::new()); cohorts.cohorts.len()],
        };
        let mut known_sets = HashMap::new();
        let mut known_blocks = HashMap::new();
        for (tier, number) in model.tiers.iter().zip(0..) {
            for policy in &tier.policies {
                let subjects = cohorts.select(&policy.subjects);
                if subjects.is_empty() {
                    continue;
                }
                let mut digest = Digest::new("policy");
                digest.text(tier.name);
                digest.text(policy.kind);
                digest.text(&policy.key.namespace);
                digest.text(&policy.key.name);
                let content = digest.finish();
                let named = image.policy(tier.name, policy.kind, &policy.key.namespace, &policy.key.name);
                let mut direction = |rules: &Option<Vec<Rule<'a>>>| {
                    let first = this.rules.len() as u32;
                    let mut all = Digest::new("direction");
                    all.content(&content);
                    for rule in rules.iter().flatten() {
                        all.rule(rule);
                        let peers = rule.peers.as_ref().map(|peers| {
                            peers
                                .iter()
                                .map(|peer| match peer {
                                    Peer::Pods(set) => {
                                        Atom::Pods(*known_sets.entry(*set).or_insert_with(|| {
                                            this.sets.push((*set, cohorts.select(set)));
                                            this.sets.len() as u32 - 1
                                        }))
                                    }
                                    Peer::Block { cidr, except } => Atom::Block(
                                        *known_blocks.entry(Block::new(*cidr, except)).or_insert_with_key(
                                            |block| {
                                                this.blocks.push(block.clone());
                                                this.blocks.len() as u32 - 1
                                            },
                                        ),
                                    ),
                                })
                                .collect()
                        });
                        let mut digest = Digest::new("rule");
                        digest.content(&content);
                        digest.number(u64::from(rule.index));
                        this.rules.push(RowRule {
                            tier: number,
                            action: rule.action,
                            peers,
                            ports: rule.ports,
                            provenance: image.rule(named, rule.index),
                            content: digest.finish(),
                        });
                    }
                    (first..this.rules.len() as u32, all.finish())
                };
                let (ingress, ingress_content) = direction(&policy.ingress);
                let (egress, egress_content) = direction(&policy.egress);
                let index = this.policies.len() as u32;
                for cohort in subjects {
                    if let Some((own_ingress, own_egress)) = this.selected.get_mut(cohort as usize) {
                        own_ingress.extend(policy.ingress.is_some().then_some(index));
                        own_egress.extend(policy.egress.is_some().then_some(index));
                    }
                }
                this.policies.push(ForcePolicy {
                    name: policy.key.to_string(),
                    isolating: tier.isolates.then_some(number),
                    number: named,
                    content,
                    ingress,
                    ingress_content,
                    egress,
                    egress_content,
                });
            }
        }
        this
    }

    fn list<'s>(&'s self, policies: &'s [u32]) -> impl Iterator<Item = &'s ForcePolicy> + Clone {
        policies
            .iter()
            .filter_map(|policy| self.policies.get(*policy as usize))
    }

    /// The sets of blocks alone are over budget.
    fn block_budget(&self, budget: &Budget) -> CompileError {
        let mut costs = vec![0; self.policies.len()];
        for (policy, cost) in self.policies.iter().zip(&mut costs) {
            for rule in policy.ingress.clone().chain(policy.egress.clone()) {
                let peers = self
                    .rules
                    .get(rule as usize)
                    .and_then(|rule| rule.peers.as_deref());
                let blocks = peers
                    .unwrap_or_default()
                    .iter()
                    .filter(|peer| matches!(peer, Atom::Block(_)));
                *cost += blocks.count() as u64;
            }
        }
        over_budget(self, &costs, budget.bytes + 1, budget)
    }
}

fn over_budget(force: &Force<'_>, costs: &[u64], needed: u64, budget: &Budget) -> CompileError {
    let total = costs.iter().sum::<u64>().max(1);
    let mut heaviest: Vec<(&str, u64)> = force
        .policies
        .iter()
        .zip(costs)
        .map(|(policy, cost)| (policy.name.as_str(), *cost))
        .collect();
    heaviest.sort_by_key(|(name, cost)| (std::cmp::Reverse(*cost), *name));
    CompileError::OverBudget {
        needed,
        budget: budget.bytes,
        heaviest: heaviest
            .into_iter()
            .take(5)
            .filter(|(_, cost)| *cost > 0)
            .map(|(name, cost)| (name.to_owned(), cost as f64 / total as f64))
            .collect(),
    }
}

/// What rules can see of an address: sets of pods (as an index of distinct lists), blocks (likewise) and named ports.
type Sight = (u32, u32, u32);

/// Peer classes: addresses and names that rules see alike.
struct Classes {
    numbers: HashMap<Sight, u32>,
    /// By cohort: index of its list of sets.
    set_lists: Vec<u32>,
    /// By number.
    facts: Vec<ClassFacts>,
    pod_sets: Vec<ClassSet>,
    block_sets: Vec<ClassSet>,
}

impl Classes {
    fn of(cohorts: &Cohorts<'_>, force: &Force<'_>, blocks: &Blocks, owners: &Owners<'_>) -> Self {
        // The sets that hold each cohort.
        let mut sets_of: Vec<Vec<u32>> = vec![Vec::new(); cohorts.cohorts.len()];
        for ((_, members), set) in force.sets.iter().zip(0..) {
            for cohort in members {
                if let Some(sets) = sets_of.get_mut(*cohort as usize) {
                    sets.push(set);
                }
            }
        }
        let mut lists: Vec<Vec<u32>> = vec![Vec::new()];
        let mut known: HashMap<Vec<u32>, u32> = HashMap::from([(Vec::new(), 0)]);
        let set_lists: Vec<u32> = sets_of
            .into_iter()
            .map(|sets| {
                *known.entry(sets).or_insert_with_key(|sets| {
                    lists.push(sets.clone());
                    lists.len() as u32 - 1
                })
            })
            .collect();
        drop(known);

        // Which sights there are, each with the first namespace in which: classes are numbered by that, so that a
        // selector within a namespace touches few pages. 0 is outside of namespaces.
        let mut sights: HashMap<Sight, u32> = HashMap::new();
        let mut saw = |sight: Sight, space: u32| {
            let first = sights.entry(sight).or_insert(space);
            *first = (*first).min(space);
        };
        for prefix in &blocks.prefixes {
            saw((0, prefix.set, 0), 0);
        }
        for address in owners.node_addresses.keys().chain(owners.pods.keys()) {
            saw((0, blocks.set_of(*address), 0), 0);
        }
        for (pod, cohort) in &cohorts.members {
            let Some((lists, cohort)) = cohort.and_then(|cohort| {
                Some((
                    set_lists.get(cohort as usize)?,
                    cohorts.cohorts.get(cohort as usize)?,
                ))
            }) else {
                continue;
            };
            saw((*lists, 0, cohort.egress_ports), cohort.space + 1);
            for address in &pod.addresses {
                let set = blocks.set_of(*address);
                if set != 0 {
                    saw((*lists, set, cohort.egress_ports), cohort.space + 1);
                }
            }
        }
        saw((0, 0, 0), 0);

        let set_contents: Vec<Content> = force
            .sets
            .iter()
            .map(|(set, _)| content::of_pod_set(set))
            .collect();
        let block_contents: Vec<Content> = force.blocks.iter().map(content::of_block).collect();
        let list_contents = contents_of_lists(&lists, &set_contents);
        let blocks_contents = contents_of_lists(&blocks.sets, &block_contents);
        let mut ordered: Vec<(u32, Content, Sight)> = sights
            .into_iter()
            .map(|(sight, space)| {
                let (list, blocks, ports) = sight;
                let mut digest = Digest::new("class");
                digest.content(list_contents.get(list as usize).unwrap_or(&[0; 32]));
                digest.content(blocks_contents.get(blocks as usize).unwrap_or(&[0; 32]));
                digest.named_ports(cohorts.ports(ports));
                (space, digest.finish(), sight)
            })
            .collect();
        ordered.sort_unstable();

        let mut this = Self {
            numbers: HashMap::with_capacity(ordered.len()),
            set_lists,
            facts: Vec::with_capacity(ordered.len()),
            pod_sets: vec![Vec::new(); force.sets.len()],
            block_sets: vec![Vec::new(); force.blocks.len()],
        };
        for ((_, content, sight), number) in ordered.into_iter().zip(0..) {
            let (list, set, egress_ports) = sight;
            this.numbers.insert(sight, number);
            this.facts.push(ClassFacts {
                content,
                egress_ports,
            });
            for index in lists.get(list as usize).into_iter().flatten() {
                if let Some(set) = this.pod_sets.get_mut(*index as usize) {
                    add_class(set, number);
                }
            }
            for index in blocks.sets.get(set as usize).into_iter().flatten() {
                if let Some(set) = this.block_sets.get_mut(*index as usize) {
                    add_class(set, number);
                }
            }
        }
        this
    }

    /// The class of a sight; every sight asked for was collected.
    fn number(&self, sight: Sight) -> u32 {
        self.numbers.get(&sight).copied().unwrap_or(NONE)
    }

    fn content(&self, class: u32) -> Content {
        self.facts
            .get(class as usize)
            .map_or([0; 32], |class| class.content)
    }
}

/// For each list of things: what it means, whatever the numbers of the things are.
fn contents_of_lists(lists: &[Vec<u32>], things: &[Content]) -> Vec<Content> {
    lists
        .iter()
        .map(|list| {
            let mut contents: Vec<&Content> = list
                .iter()
                .filter_map(|index| things.get(*index as usize))
                .collect();
            contents.sort_unstable();
            let mut digest = Digest::new("list");
            digest.number(contents.len() as u64);
            for content in contents {
                digest.content(content);
            }
            digest.finish()
        })
        .collect()
}

/// The rows of a cohort.
#[derive(Clone, Copy)]
struct Group {
    /// Rows' numbers in the image.
    rows: (u32, u32),
    /// What the rows decide.
    ingress: Content,
    egress: Content,
    /// What the policies say, apart from the classes that there are: for epochs.
    rules: Content,
}

/// Rows and groups.
struct Groups {
    /// By cohort.
    groups: Vec<Group>,
    rows: u32,
    /// By policy: bytes of the rows that it is in, shared evenly with the row's other policies.
    costs: Vec<u64>,
}

#[derive(Clone, Copy)]
struct WrittenRow {
    number: u32,
    content: Content,
    rules: Content,
}

impl WrittenRow {
    const OPEN: Self = Self {
        number: 0,
        content: [0; 32],
        rules: [0; 32],
    };
}

impl Groups {
    fn of(
        cohorts: &Cohorts<'_>,
        force: &Force<'_>,
        classes: &Classes,
        image: &mut ImageBuilder,
        budget: &Budget,
    ) -> Result<Self, CompileError> {
        image.classes(classes.facts.len() as u32);
        let mut rows = Rows::new(
            &force.rules,
            cohorts,
            &classes.facts,
            classes.pod_sets.clone(),
            classes.block_sets.clone(),
        );
        let mut this = Self {
            groups: Vec::with_capacity(cohorts.cohorts.len()),
            rows: 0,
            costs: vec![0; force.policies.len()],
        };
        let mut ingress_rows: HashMap<(&[u32], u32), WrittenRow> = HashMap::new();
        let mut egress_rows: HashMap<&[u32], WrittenRow> = HashMap::new();
        let asks_names: Vec<bool> = force
            .policies
            .iter()
            .map(|policy| {
                let mut rules = policy
                    .ingress
                    .clone()
                    .filter_map(|rule| force.rules.get(rule as usize));
                rules.any(RowRule::asks_names)
            })
            .collect();
        for (cohort, (ingress, egress)) in cohorts.cohorts.iter().zip(&force.selected) {
            let asks = ingress
                .iter()
                .any(|policy| asks_names.get(*policy as usize) == Some(&true));
            let names = if asks { cohort.ingress_ports } else { 0 };
            let ingress_row = if ingress.is_empty() {
                WrittenRow::OPEN
            } else if let Some(row) = ingress_rows.get(&(ingress.as_slice(), names)) {
                *row
            } else {
                let row = this.row(
                    cohorts,
                    force,
                    &mut rows,
                    image,
                    ingress,
                    NamesOf::Subject(names),
                    budget,
                )?;
                ingress_rows.insert((ingress, names), row);
                row
            };
            let egress_row = if egress.is_empty() {
                WrittenRow::OPEN
            } else if let Some(row) = egress_rows.get(egress.as_slice()) {
                *row
            } else {
                let row = this.row(cohorts, force, &mut rows, image, egress, NamesOf::Peer, budget)?;
                egress_rows.insert(egress, row);
                row
            };
            let mut digest = Digest::new("rules");
            digest.content(&ingress_row.rules);
            digest.content(&egress_row.rules);
            this.groups.push(Group {
                rows: (ingress_row.number, egress_row.number),
                ingress: ingress_row.content,
                egress: egress_row.content,
                rules: digest.finish(),
            });
        }
        Ok(this)
    }

    #[expect(
        clippy::too_many_arguments,
        reason = "one row needs all tables; it has one caller"
    )]
    fn row(
        &mut self,
        cohorts: &Cohorts<'_>,
        force: &Force<'_>,
        rows: &mut Rows<'_, '_>,
        image: &mut ImageBuilder,
        policies: &[u32],
        names: NamesOf,
        budget: &Budget,
    ) -> Result<WrittenRow, CompileError> {
        let before = image.size();
        let ingress = names != NamesOf::Peer;
        let rules: Vec<u32> = force
            .list(policies)
            .flat_map(|policy| {
                if ingress {
                    policy.ingress.clone()
                } else {
                    policy.egress.clone()
                }
            })
            .collect();
        let isolating = force.list(policies).filter(|policy| policy.isolating.is_some());
        let numbers: Vec<u32> = isolating.clone().map(|policy| policy.number).collect();
        let mut names_digest = Digest::new("isolating");
        let mut rules_digest = Digest::new("rows");
        for policy in isolating {
            names_digest.content(&policy.content);
        }
        for policy in force.list(policies) {
            rules_digest.content(if ingress {
                &policy.ingress_content
            } else {
                &policy.egress_content
            });
        }
        if let NamesOf::Subject(list) = names {
            rules_digest.named_ports(cohorts.ports(list));
        }
        let spec = RowSpec {
            rules: &rules,
            names,
            isolating: force.list(policies).find_map(|policy| policy.isolating),
            isolating_provenance: if numbers.is_empty() {
                NONE
            } else {
                image.isolating(&numbers)
            },
            isolating_content: names_digest.finish(),
        };
        let (number, content) = rows.write(image, &spec);
        self.rows += 1;
        let after = image.size();
        let share = (after - before) / policies.len().max(1) as u64;
        for policy in policies {
            if let Some(cost) = self.costs.get_mut(*policy as usize) {
                *cost += share;
            }
        }
        if after > budget.bytes {
            return Err(over_budget(force, &self.costs, after, budget));
        }
        Ok(WrittenRow {
            number,
            content,
            rules: rules_digest.finish(),
        })
    }
}

/// Writes identities, hosts and prefixes, and the canonical hash over them.
struct Writer<'a, 'c> {
    cluster: &'a Cluster,
    key: &'c EpochKey,
    cohorts: &'c Cohorts<'a>,
    blocks: &'c Blocks,
    owners: &'c Owners<'a>,
    classes: &'c Classes,
    groups: &'c Groups,
    image: ImageBuilder,
    /// Identities of addresses that are no pod's and no node's, by kind and class.
    places: HashMap<(u32, u32), u32>,
    canonical: Digest<'static>,
}

/// A host, before its place in the order of addresses is known.
struct Host {
    addr: Addr,
    identity: u32,
    owner: Owner,
    class: u32,
}

#[derive(Clone, Copy)]
enum Owner {
    /// Number of the endpoint.
    Pod(u32),
    /// Number of the node.
    Node(u32),
}

impl Writer<'_, '_> {
    /// Answers the image, the canonical hash and the number of hosts.
    fn write(mut self) -> (ImageBuilder, Content, u32) {
        for node in &self.owners.nodes {
            self.image.node(node);
        }
        self.canonical
            .number(u64::from(self.cluster.settings.allow_unknown));
        let mut hosts = Vec::with_capacity(self.owners.pods.len() + self.owners.node_addresses.len());
        self.endpoints(&mut hosts);
        self.nodes(&mut hosts);
        hosts.sort_unstable_by_key(|host| host.addr.to_u128());
        self.canonical.number(hosts.len() as u64);
        for host in &hosts {
            self.image.host(host.addr, host.identity);
            let canonical = &mut self.canonical;
            canonical.bytes(&host.addr.octets());
            match host.owner {
                // Endpoints are numbered in order of their names.
                Owner::Pod(number) => canonical.number(u64::from(number)),
                Owner::Node(number) => {
                    canonical.number(u64::MAX);
                    canonical.text(
                        self.owners
                            .nodes
                            .get(number as usize)
                            .copied()
                            .unwrap_or_default(),
                    );
                }
            }
            canonical.content(&self.classes.content(host.class));
        }
        self.prefixes();
        let hash = self.canonical.finish();
        (self.image, hash, hosts.len() as u32)
    }

    /// Pods and templates: their names, and the addresses that they own.
    fn endpoints(&mut self, hosts: &mut Vec<Host>) {
        let cohorts = self.cohorts;
        // What selectors see of a cohort's pods as peers and what decides about them: the part of the epoch that they
        // share.
        let shared: Vec<Content> = cohorts
            .cohorts
            .iter()
            .zip(&self.groups.groups)
            .map(|(cohort, group)| {
                let mut digest = Digest::new("cohort");
                let pod = cohort.example;
                digest.text(&pod.key.namespace);
                if let Some(namespace) = self.cluster.namespaces.get(&pod.key.namespace) {
                    digest.labels(cohorts.seen_of_namespace(&namespace.labels));
                }
                digest.labels(cohorts.seen_of_pod(&pod.labels));
                digest.named_ports(cohorts.ports(cohort.egress_ports));
                digest.content(&group.rules);
                digest.finish()
            })
            .collect();
        self.canonical.number(cohorts.members.len() as u64);
        for ((pod, cohort), member) in cohorts.members.iter().zip(0..) {
            let known = cohort.and_then(|index| {
                let index = index as usize;
                let cohort = cohorts.cohorts.get(index)?;
                let sight = (*self.classes.set_lists.get(index)?, cohort.egress_ports);
                Some((sight, *self.groups.groups.get(index)?, *shared.get(index)?))
            });
            let Some(((list, ports), group, shared)) = known else {
                self.pod_of_unseen_namespace(pod, member, hosts);
                continue;
            };
            let node = self
                .owners
                .hosts
                .get(member as usize)
                .copied()
                .flatten()
                .unwrap_or(NONE);
            let mut digest = Digest::keyed(&self.key.0, "pod");
            digest.text(&pod.uid);
            digest.text(&pod.key.name);
            digest.number(pod.created.map_or(u64::MAX, i64::cast_unsigned));
            digest.text(pod.node.as_deref().unwrap_or_default());
            digest.content(&shared);
            let epoch = digest.short();
            let identity = |peer_class| Identity {
                kind: IdentityKind::Pod,
                endpoint: member,
                node,
                peer_class,
                ingress: group.rows.0,
                egress: group.rows.1,
                epoch,
            };
            let class = self.classes.number((list, 0, ports));
            let nowhere = self.image.identity(identity(class));
            self.image.endpoint(
                &pod.key.namespace,
                &pod.key.name,
                pod.template_of.is_some(),
                nowhere,
            );
            let canonical = &mut self.canonical;
            canonical.text(&pod.key.namespace);
            canonical.text(&pod.key.name);
            canonical.number(u64::from(pod.template_of.is_some()));
            canonical.text(pod.node.as_deref().unwrap_or_default());
            canonical.content(&self.classes.content(class));
            canonical.content(&group.ingress);
            canonical.content(&group.egress);
            for address in self.owned(pod, member) {
                let of_address = self.classes.number((list, self.blocks.set_of(address), ports));
                let identity = if of_address == class {
                    nowhere
                } else {
                    self.image.identity(identity(of_address))
                };
                hosts.push(Host {
                    addr: address.into(),
                    identity,
                    owner: Owner::Pod(member),
                    class: of_address,
                });
            }
        }
    }

    /// Nobody can say which selectors match a pod whose namespace has not been seen.
    fn pod_of_unseen_namespace(&mut self, pod: &Pod, member: u32, hosts: &mut Vec<Host>) {
        let identity = self.place(IdentityKind::Unknown, 0);
        self.image.endpoint(
            &pod.key.namespace,
            &pod.key.name,
            pod.template_of.is_some(),
            identity,
        );
        let canonical = &mut self.canonical;
        canonical.text(&pod.key.namespace);
        canonical.text(&pod.key.name);
        canonical.number(2); // neither pod nor template: unknown
        for address in self.owned(pod, member) {
            let set = self.blocks.set_of(address);
            let identity = self.place(IdentityKind::Unknown, set);
            hosts.push(Host {
                addr: address.into(),
                identity,
                owner: Owner::Pod(member),
                class: self.classes.number((0, set, 0)),
            });
        }
    }

    /// The pod's addresses that no newer pod has.
    fn owned(&self, pod: &Pod, member: u32) -> Vec<IpAddr> {
        let mut owned: Vec<IpAddr> = pod
            .addresses
            .iter()
            .filter(|address| self.owners.pods.get(*address) == Some(&member))
            .copied()
            .collect();
        owned.sort_unstable();
        owned.dedup();
        owned
    }

    fn nodes(&mut self, hosts: &mut Vec<Host>) {
        let mut addresses: Vec<(IpAddr, u32)> = self
            .owners
            .node_addresses
            .iter()
            .map(|(address, node)| (*address, *node))
            .collect();
        addresses.sort_unstable();
        for (address, node) in addresses {
            let name = self.owners.nodes.get(node as usize).copied().unwrap_or_default();
            let class = self.classes.number((0, self.blocks.set_of(address), 0));
            let mut digest = Digest::keyed(&self.key.0, "node");
            digest.text(name);
            let identity = self.image.identity(Identity {
                kind: IdentityKind::Node,
                endpoint: NONE,
                node,
                peer_class: class,
                ingress: 0,
                egress: 0,
                epoch: digest.short(),
            });
            hosts.push(Host {
                addr: address.into(),
                identity,
                owner: Owner::Node(node),
                class,
            });
        }
    }

    /// The identity of addresses that are no pod's and no node's, in a set of blocks.
    fn place(&mut self, kind: IdentityKind, set: u32) -> u32 {
        let class = self.classes.number((0, set, 0));
        if let Some(identity) = self.places.get(&(kind as u32, class)) {
            return *identity;
        }
        // Which blocks hold an address never changes, and what the blocks mean to a pod is in that pod's epoch.
        let mut digest = Digest::keyed(&self.key.0, "place");
        digest.number(kind as u64);
        digest.number(u64::from(self.cluster.settings.allow_unknown));
        let identity = self.image.identity(Identity {
            kind,
            endpoint: NONE,
            node: NONE,
            peer_class: class,
            ingress: 0,
            egress: 0,
            epoch: digest.short(),
        });
        self.places.insert((kind as u32, class), identity);
        identity
    }

    fn prefixes(&mut self) {
        let kind = |place| match place {
            Place::Outside => IdentityKind::External,
            Place::Service => IdentityKind::Service,
            Place::PodNetwork => IdentityKind::Unknown,
        };
        let blocks = self.blocks;
        let mut identities: Vec<u32> = Vec::with_capacity(blocks.prefixes.len());
        for prefix in &blocks.prefixes {
            let identity = self.place(kind(prefix.place), prefix.set);
            let outer = prefix.outer.and_then(|outer| identities.get(outer as usize));
            // What the surrounding prefix says anyway needs no place in the trie.
            if outer != Some(&identity) {
                self.image
                    .prefix(prefix.net.network().into(), prefix.net.prefix_len(), identity);
            }
            identities.push(identity);
        }
        // Canonical: ranges, neighbours of the same content joined, whatever prefixes they came from.
        let mut last = None;
        for (first, prefix) in blocks.ranges() {
            let Some(prefix) = blocks.prefixes.get(prefix as usize) else {
                continue;
            };
            let class = self.classes.number((0, prefix.set, 0));
            let content = (
                kind(prefix.place) as u64,
                self.classes.content(class),
                first.is_v4(),
            );
            if last != Some(content) {
                self.canonical.bytes(&first.octets());
                self.canonical.number(content.0);
                self.canonical.content(&content.1);
                last = Some(content);
            }
        }
    }
}
