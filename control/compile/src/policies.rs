//! The policies, the sets of pods and blocks that their rules name, and which of them are in force.
//!
//! A policy is in force while it selects a pod; a set or a block while a policy in force names it. What is not in force
//! has its place in the tables, and no part in what the snapshot means.

use std::ops::Range;

use hashbrown::HashMap;
use ringwall_dataplane::classify::{self, ImageBuilder, PolicyName};
use ringwall_policy::{
    DenialAnswer, PolicyId,
    tiers::{self, Peer, Policy, Rank, Rule},
};

use super::{
    Budget, CompileError,
    blocks::Block,
    content::{self, Content, Digest},
    rows::{Atom, ClassSet, Condition, Parties, RowRule},
    selectors::{Index, Label, Matcher, Vocabulary},
};

/// One direction of a policy.
#[derive(Debug)]
pub(super) struct Direction {
    /// Its rules.
    pub rules: Range<u32>,
    /// All that they say.
    pub content: Content,
}

/// A policy.
#[derive(Debug)]
pub(super) struct Slot {
    pub id: PolicyId,
    /// Position of its tier.
    tier: u32,
    /// Its order there.
    rank: Rank,
    /// Its tier, where that denies by default.
    pub isolating: Option<u32>,
    /// Its number in the image.
    pub number: u32,
    /// Whom it selects: the pods that any of these holds.
    pub subjects: Vec<Matcher>,
    pub ingress: Option<Direction>,
    pub egress: Option<Direction>,
    /// Distinct sets and blocks that its rules name.
    sets: Vec<u32>,
    blocks: Vec<u32>,
    /// Whether a rule of it asks for the address of the pod that it selects.
    pub by_own_address: bool,
    /// Cohorts with pods that it selects.
    pub cohorts: u32,
    in_force: bool,
    removed: bool,
}

impl Slot {
    pub(super) fn direction(&self, ingress: bool) -> Option<&Direction> {
        if ingress {
            self.ingress.as_ref()
        } else {
            self.egress.as_ref()
        }
    }

    fn rules(&self) -> u32 {
        let count = |direction: &Option<Direction>| direction.as_ref().map_or(0, |it| it.rules.len());
        (count(&self.ingress) + count(&self.egress)) as u32
    }
}

/// A set of pods that rules name.
#[derive(Debug)]
pub(super) struct Set {
    pub matcher: Matcher,
    pub named: Named,
}

/// What is known of a set of pods, or of a block.
#[derive(Debug)]
pub(super) struct Named {
    pub content: Content,
    /// Policies that name it.
    users: u32,
    /// Policies in force that name it.
    force: u32,
    /// The classes that it holds.
    pub classes: ClassSet,
    /// The rows with a rule that names it.
    pub rows: Vec<u32>,
}

impl Named {
    fn new(content: Content) -> Self {
        Self {
            content,
            users: 0,
            force: 0,
            classes: ClassSet::new(),
            rows: Vec::new(),
        }
    }

    pub(super) fn is_named(&self) -> bool {
        self.users > 0
    }

    pub(super) fn in_force(&self) -> bool {
        self.force > 0
    }
}

/// What went in or out of force.
#[derive(Debug, Default)]
pub(super) struct PolicyTurnover {
    pub sets: Vec<u32>,
    pub blocks: Vec<u32>,
}

/// How many policies, rules, sets and blocks are in force.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Counts {
    pub policies: u32,
    pub rules: u32,
    pub sets: u32,
    pub blocks: u32,
}

/// All policies of a cluster.
#[derive(Debug, Default)]
pub(super) struct Policies {
    pub slots: Vec<Slot>,
    by_id: HashMap<PolicyId, u32>,
    pub rules: Vec<RowRule>,
    pub sets: Vec<Set>,
    known_sets: HashMap<Content, u32>,
    pub blocks: Vec<Block>,
    pub named_blocks: Vec<Named>,
    known_blocks: HashMap<Block, u32>,
    subjects: Index,
    peers: Index,
    pub counts: Counts,
    /// Policies of which it is not settled whether they are in force.
    touched: Vec<u32>,
    /// Blocks that a policy began or ceased to name, with repetition.
    touched_blocks: Vec<u32>,
    pub removed: u32,
}

/// An answer as images have it.
fn in_image(answer: DenialAnswer) -> classify::DenialAnswer {
    match answer {
        DenialAnswer::Drop => classify::DenialAnswer::Drop,
        DenialAnswer::Prohibited => classify::DenialAnswer::Prohibited,
        DenialAnswer::Reset => classify::DenialAnswer::Reset,
    }
}

impl Policies {
    /// Adds a policy, whose words the vocabulary has learnt. Answers its number, and the sets that no policy named before.
    pub(super) fn add(
        &mut self,
        policy: &Policy<'_>,
        vocabulary: &mut Vocabulary,
        tables: &mut ImageBuilder,
    ) -> (u32, Vec<u32>) {
        let (tier, id) = (&policy.tier, &policy.id);
        let mut digest = Digest::new("policy");
        digest.text(&tier.name);
        digest.text(id.kind.name());
        digest.text(&id.namespace);
        digest.text(&id.name);
        let answer = policy.answer.map(|answer| {
            let answer = in_image(answer);
            digest.text(answer.name());
            answer
        });
        let content = digest.finish();
        let name = PolicyName {
            tier: &tier.name,
            kind: id.kind.name(),
            namespace: &id.namespace,
            name: &id.name,
        };
        let number = tables.policy_that_answers(name, answer);
        let first_set = self.sets.len() as u32;
        let (mut sets, mut blocks) = (Vec::new(), Vec::new());
        let mut by_own_address = false;
        let mut direction = |rules: &Option<Vec<Rule<'_>>>, ingress: bool| {
            let rules = rules.as_ref()?;
            let first = self.rules.len() as u32;
            let mut digest = Digest::new("direction");
            digest.content(&content);
            for rule in rules {
                let mut atoms = |peers: &Vec<Peer<'_>>| -> (Vec<Atom>, Vec<Content>) {
                    peers.iter().map(|peer| self.peer(peer, vocabulary)).unzip()
                };
                let peers = rule.peers.as_ref().map(&mut atoms);
                let mut conditions = |conditions: &[tiers::Condition<'_>]| -> (Vec<Condition>, Vec<_>) {
                    let each = |condition: &tiers::Condition<'_>| {
                        let negated = condition.negated;
                        let (any, contents) = atoms(&condition.any);
                        (Condition { negated, any }, (negated, contents))
                    };
                    conditions.iter().map(each).unzip()
                };
                let (of_peer, peer_contents) = conditions(&rule.of_peer);
                let (of_own, own_contents) = conditions(&rule.of_own);
                let (peers, contents) = peers.unzip();
                digest.rule(rule, contents, [peer_contents, own_contents]);
                let parties = Parties {
                    peers,
                    of_peer,
                    of_own,
                };
                for atom in parties.atoms() {
                    match atom {
                        Atom::Pods(set) => sets.push(set),
                        Atom::Block(block) => blocks.push(block),
                    }
                }
                let in_block = |condition: &Condition| {
                    let mut any = condition.any.iter();
                    any.any(|atom| matches!(atom, Atom::Block(_)))
                };
                by_own_address |= parties.of_own.iter().any(in_block);
                let provenance = tables.rule(number, rule.index);
                let rule = RowRule::new(tier.number, ingress, rule, parties, provenance);
                self.rules.push(rule);
            }
            Some(Direction {
                rules: first..self.rules.len() as u32,
                content: digest.finish(),
            })
        };
        let (ingress, egress) = (direction(&policy.ingress, true), direction(&policy.egress, false));
        for named in [&mut sets, &mut blocks] {
            named.sort_unstable();
            named.dedup();
        }
        self.name_blocks(&blocks, true);
        let slot = self.slots.len() as u32;
        let subjects: Vec<Matcher> = policy
            .subjects
            .iter()
            .map(|subjects| vocabulary.matcher(subjects))
            .collect();
        for subjects in &subjects {
            self.subjects.insert(slot, subjects);
        }
        self.by_id.insert(id.clone(), slot);
        self.slots.push(Slot {
            id: id.clone(),
            tier: tier.number,
            rank: policy.rank.clone(),
            isolating: tier.isolates.then_some(tier.number),
            number,
            subjects,
            ingress,
            egress,
            sets,
            blocks,
            by_own_address,
            cohorts: 0,
            in_force: false,
            removed: false,
        });
        (slot, (first_set..self.sets.len() as u32).collect())
    }

    fn peer(&mut self, peer: &Peer<'_>, vocabulary: &mut Vocabulary) -> (Atom, Content) {
        match peer {
            Peer::Pods(set) => {
                let content = content::of_pod_set(set);
                let number = *self.known_sets.entry(content).or_insert_with(|| {
                    let number = self.sets.len() as u32;
                    let matcher = vocabulary.matcher(set);
                    self.peers.insert(number, &matcher);
                    self.sets.push(Set {
                        matcher,
                        named: Named::new(content),
                    });
                    number
                });
                (Atom::Pods(number), content)
            }
            Peer::Block { cidr, except } => self.block(Block::new(*cidr, except)),
            Peer::Addresses(set) => self.block(Block::Set((*set).to_owned())),
        }
    }

    fn block(&mut self, block: Block) -> (Atom, Content) {
        let number = *self.known_blocks.entry(block).or_insert_with_key(|block| {
            self.named_blocks.push(Named::new(content::of_block(block)));
            self.blocks.push(block.clone());
            self.blocks.len() as u32 - 1
        });
        let content = self.named_blocks.get(number as usize);
        let content = content.map_or([0; 32], |block| block.content);
        (Atom::Block(number), content)
    }

    /// The number of an address set that some policy named.
    pub(super) fn address_set(&self, name: &str) -> Option<u32> {
        self.known_blocks.get(&Block::Set(name.to_owned())).copied()
    }

    /// What the address sets among these blocks are, in any order.
    pub(super) fn address_sets_among(&self, blocks: &[u32]) -> Vec<Content> {
        let is_set = |block: &&u32| matches!(self.blocks.get(**block as usize), Some(Block::Set(_)));
        let named = blocks.iter().filter(is_set);
        let named = named.filter_map(|block| self.named_blocks.get(*block as usize));
        named.map(|named| named.content).collect()
    }

    /// A policy that names these blocks comes or goes.
    fn name_blocks(&mut self, blocks: &[u32], comes: bool) {
        for block in blocks {
            if let Some(named) = self.named_blocks.get_mut(*block as usize) {
                named.users = if comes {
                    named.users + 1
                } else {
                    named.users.saturating_sub(1)
                };
            }
        }
        self.touched_blocks.extend(blocks);
    }

    /// Blocks that policies began or ceased to name since this was last asked, in ascending order, and those that were named
    /// and are again.
    pub(super) fn take_touched_blocks(&mut self) -> Vec<u32> {
        let mut blocks = std::mem::take(&mut self.touched_blocks);
        blocks.sort_unstable();
        blocks.dedup();
        blocks
    }

    /// Removes a policy and answers its number. It must be taken from the cohorts that it selects.
    pub(super) fn remove(&mut self, id: &PolicyId) -> Option<u32> {
        let number = self.by_id.remove(id)?;
        let slot = self.slots.get_mut(number as usize)?;
        slot.removed = true;
        for subjects in &slot.subjects {
            self.subjects.remove(number, subjects);
        }
        let blocks = slot.blocks.clone();
        self.name_blocks(&blocks, false);
        self.removed += 1;
        self.touched.push(number);
        Some(number)
    }

    /// The policies that select pods with these labels, in the order in which they decide.
    pub(super) fn selecting(&self, space: &str, space_labels: &[Label], labels: &[Label]) -> Vec<u32> {
        let holds = |slot: u32| {
            let slot = self.slots.get(slot as usize);
            slot.is_some_and(|slot| {
                slot.subjects
                    .iter()
                    .any(|it| it.holds(space, space_labels, labels))
            })
        };
        let mut found = self.subjects.find(space, space_labels, labels, holds);
        found.sort_by_key(|slot| {
            let slot = self.slots.get(*slot as usize);
            slot.map(|slot| (slot.tier, &slot.rank))
        });
        found
    }

    /// The sets that hold pods with these labels, in ascending order.
    pub(super) fn holding(&self, space: &str, space_labels: &[Label], labels: &[Label]) -> Vec<u32> {
        let holds = |set: u32| {
            let set = self.sets.get(set as usize);
            set.is_some_and(|set| set.matcher.holds(space, space_labels, labels))
        };
        self.peers.find(space, space_labels, labels, holds)
    }

    /// Whether a rule of these policies asks for the address of the pod that they select.
    pub(super) fn ask_for_own_address(&self, policies: &[u32]) -> bool {
        let mut slots = policies
            .iter()
            .filter_map(|policy| self.slots.get(*policy as usize));
        slots.any(|slot| slot.by_own_address)
    }

    /// A cohort that these policies select has its first pod (`more`), or lost its last.
    pub(super) fn selects(&mut self, policies: &[u32], more: bool) {
        for policy in policies {
            if let Some(slot) = self.slots.get_mut(*policy as usize) {
                slot.cohorts = if more { slot.cohorts + 1 } else { slot.cohorts - 1 };
                if (slot.cohorts > 0) != slot.in_force {
                    self.touched.push(*policy);
                }
            }
        }
    }

    /// Notes the rows that name a set or a block.
    pub(super) fn named_by(&mut self, named: impl IntoIterator<Item = (Atom, u32)>) {
        for (atom, row) in named {
            let named = match atom {
                Atom::Pods(set) => self.sets.get_mut(set as usize).map(|set| &mut set.named),
                Atom::Block(block) => self.named_blocks.get_mut(block as usize),
            };
            if let Some(named) = named
                && named.rows.last() != Some(&row)
            {
                named.rows.push(row);
            }
        }
    }

    /// The sets of blocks alone are over budget.
    pub(super) fn block_budget(&self, budget: &Budget) -> CompileError {
        let blocks = |rule: u32| self.rules.get(rule as usize).map_or(0, RowRule::blocks);
        let costs: Vec<u64> = self
            .slots
            .iter()
            .map(|slot| {
                let directions = [&slot.ingress, &slot.egress].into_iter().flatten();
                directions.flat_map(|it| it.rules.clone()).map(blocks).sum()
            })
            .collect();
        self.over_budget(&costs, budget.bytes + 1, budget)
    }

    /// The error that names the policies with the highest costs, which are by number.
    pub(super) fn over_budget(&self, costs: &[u64], needed: u64, budget: &Budget) -> CompileError {
        let total = costs.iter().sum::<u64>().max(1);
        let mut heaviest: Vec<(String, u64)> = self
            .slots
            .iter()
            .zip(costs)
            .map(|(slot, cost)| (slot.id.to_string(), *cost))
            .collect();
        heaviest.sort_by(|one, other| (other.1, &one.0).cmp(&(one.1, &other.0)));
        CompileError::OverBudget {
            needed,
            budget: budget.bytes,
            heaviest: heaviest
                .into_iter()
                .take(5)
                .filter(|(_, cost)| *cost > 0)
                .map(|(name, cost)| (name, cost as f64 / total as f64))
                .collect(),
        }
    }

    /// Settles which policies are in force; answers the sets and blocks that this put in or out of force.
    pub(super) fn settle(&mut self) -> PolicyTurnover {
        let mut turned = PolicyTurnover::default();
        for policy in std::mem::take(&mut self.touched) {
            let Some(slot) = self.slots.get_mut(policy as usize) else {
                continue;
            };
            let in_force = slot.cohorts > 0 && !slot.removed;
            if in_force == slot.in_force {
                continue;
            }
            slot.in_force = in_force;
            let counts = &mut self.counts;
            step(&mut counts.policies, 1, in_force);
            step(&mut counts.rules, slot.rules(), in_force);
            for set in &slot.sets {
                if let Some(named) = self.sets.get_mut(*set as usize).map(|set| &mut set.named)
                    && turn(named, in_force)
                {
                    step(&mut counts.sets, 1, in_force);
                    turned.sets.push(*set);
                }
            }
            for block in &slot.blocks {
                if let Some(named) = self.named_blocks.get_mut(*block as usize)
                    && turn(named, in_force)
                {
                    step(&mut counts.blocks, 1, in_force);
                    turned.blocks.push(*block);
                }
            }
        }
        turned
    }

    /// What a list of sets is: those of them that are in force.
    pub(super) fn sets_content(&self, sets: &[u32]) -> Content {
        let named = sets.iter().filter_map(|set| self.sets.get(*set as usize));
        of_named(named.map(|set| &set.named))
    }

    /// What a set of blocks is: those of them that are in force.
    pub(super) fn blocks_content(&self, blocks: &[u32]) -> Content {
        of_named(
            blocks
                .iter()
                .filter_map(|block| self.named_blocks.get(*block as usize)),
        )
    }
}

fn of_named<'a>(named: impl Iterator<Item = &'a Named>) -> Content {
    let mut digest = Digest::new("list");
    digest.set(
        named
            .filter(|named| named.in_force())
            .map(|named| named.content)
            .collect(),
    );
    digest.finish()
}

fn step(count: &mut u32, by: u32, more: bool) {
    *count = if more { *count + by } else { *count - by };
}

/// Counts a policy in or out; whether that puts what it names in or out of force.
fn turn(named: &mut Named, more: bool) -> bool {
    let before = named.in_force();
    step(&mut named.force, 1, more);
    named.in_force() != before
}
