//! Rows: what the pods of a cohort let in or out, by peer class.
//!
//! A selector's or block's classes are held as pages and 64-bit masks, so a rule is laid over 64 classes at a time and
//! a page costs what differs on it. Pages that no rule with peers touches are the same page; classes that do not exist
//! yet are decided as those that no such rule matches.

use hashbrown::{Equivalent, HashMap};
use ringwall_dataplane::classify::{CLASSES_PER_PAGE, ImageBuilder, NONE, Page, PortRange};
use ringwall_policy::{Action, PolicyKind, PortMatch, tiers::Rule};

use super::{
    classes::{Class, Classes},
    content::{Content, Digest},
    policies::Policies,
    ports::{self, CellRule, Isolation, PortNames},
    selectors::Vocabulary,
};

/// Classes: pages and masks, in ascending order of pages.
pub(super) type ClassSet = Vec<(u32, u64)>;

/// Adds a class.
pub(super) fn add_class(set: &mut ClassSet, class: u32) {
    let page = class / CLASSES_PER_PAGE as u32;
    let bit = 1 << (class % CLASSES_PER_PAGE as u32);
    match set.binary_search_by_key(&page, |(page, _)| *page) {
        Ok(at) => {
            if let Some((_, mask)) = set.get_mut(at) {
                *mask |= bit;
            }
        }
        Err(at) => set.insert(at, (page, bit)),
    }
}

/// The classes of a set, in ascending order.
pub(super) fn classes_of(set: &ClassSet) -> impl Iterator<Item = u32> {
    set.iter().flat_map(|(page, mask)| {
        let bits = (0..CLASSES_PER_PAGE as u32).filter(move |bit| mask >> bit & 1 == 1);
        bits.map(move |bit| page * CLASSES_PER_PAGE as u32 + bit)
    })
}

/// Who a rule is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Atom {
    /// Index of a set of pods.
    Pods(u32),
    /// Index of a block.
    Block(u32),
}

/// What one end has to be.
#[derive(Clone, Debug)]
pub(super) struct Condition {
    /// None of these, or else one of them.
    pub negated: bool,
    pub any: Vec<Atom>,
}

impl Condition {
    /// Whether it holds of what these sets and blocks hold, each in ascending order.
    fn holds(&self, sets: &[u32], blocks: &[u32]) -> bool {
        is_one_of(&self.any, sets, blocks) != self.negated
    }
}

fn is_one_of(atoms: &[Atom], sets: &[u32], blocks: &[u32]) -> bool {
    atoms.iter().any(|atom| match atom {
        Atom::Pods(set) => sets.binary_search(set).is_ok(),
        Atom::Block(block) => blocks.binary_search(block).is_ok(),
    })
}

/// Who a rule is for: all of it has to hold.
#[derive(Clone, Debug, Default)]
pub(super) struct Parties {
    /// One of these is the peer; None for everyone.
    pub peers: Option<Vec<Atom>>,
    /// What the peer has to be besides.
    pub of_peer: Vec<Condition>,
    /// What the pod has to be that the row is of.
    pub of_own: Vec<Condition>,
}

impl Parties {
    /// Everything that is named.
    pub(super) fn atoms(&self) -> impl Iterator<Item = Atom> {
        let conditions = self.of_peer.iter().chain(&self.of_own);
        let named = conditions.flat_map(|condition| &condition.any);
        self.peers.iter().flatten().chain(named).copied()
    }

    /// Whether a peer is among them that these sets and blocks hold.
    fn has_peer(&self, sets: &[u32], blocks: &[u32]) -> bool {
        let peers = self.peers.as_deref();
        peers.is_none_or(|peers| is_one_of(peers, sets, blocks))
            && self.of_peer.iter().all(|condition| condition.holds(sets, blocks))
    }

    /// Whether every peer is among them.
    fn is_everyone(&self) -> bool {
        self.peers.is_none() && self.of_peer.is_empty()
    }

    /// Whether peers that nothing holds are among them, and others are not.
    fn is_everyone_else(&self) -> bool {
        let negated = self.of_peer.iter().all(|condition| condition.negated);
        self.peers.is_none() && negated && !self.of_peer.is_empty()
    }
}

/// A rule of a policy.
#[derive(Debug)]
pub(super) struct RowRule {
    tier: u32,
    action: Action,
    parties: Parties,
    ports: Option<Vec<PortMatch>>,
    not_ports: Vec<PortMatch>,
    source_ports: Option<Vec<PortMatch>>,
    not_source_ports: Vec<PortMatch>,
    /// Whether what it does depends on named ports of the pod that the row is of.
    asks_own_names: bool,
    /// Likewise on the peer's.
    asks_peer_names: bool,
    provenance: u32,
}

impl RowRule {
    pub(super) fn new(tier: u32, ingress: bool, rule: &Rule<'_>, parties: Parties, provenance: u32) -> Self {
        let named = |port: &PortMatch| matches!(port, PortMatch::Named { .. });
        // A port's name is the destination's, a source port's the source's.
        let asks_destination = rule.named_ports().any(named);
        let asks_source = rule.named_source_ports().any(named);
        let (asks_own_names, asks_peer_names) = match ingress {
            true => (asks_destination, asks_source),
            false => (asks_source, asks_destination),
        };
        Self {
            tier,
            action: rule.action,
            parties,
            ports: rule.ports.map(<[PortMatch]>::to_vec),
            not_ports: rule.not_ports.to_vec(),
            source_ports: rule.source_ports.map(<[_]>::to_vec),
            not_source_ports: rule.not_source_ports.to_vec(),
            asks_own_names,
            asks_peer_names,
            provenance,
        }
    }

    /// Blocks that it names.
    pub(super) fn blocks(&self) -> u64 {
        let atoms = self.parties.atoms();
        atoms.filter(|atom| matches!(atom, Atom::Block(_))).count() as u64
    }

    /// Whether it is for a pod that these sets and blocks hold.
    fn is_of(&self, own: Own<'_>) -> bool {
        let mut conditions = self.parties.of_own.iter();
        conditions.all(|condition| condition.holds(own.sets, own.blocks))
    }

    /// Whether no later rule decides anything that it matches.
    fn ends(&self) -> bool {
        let of_sources = self.source_ports.is_some() || !self.not_source_ports.is_empty();
        let everything = self.ports.is_none() && self.not_ports.is_empty() && !of_sources;
        everything && matches!(self.action, Action::Allow | Action::Deny)
    }
}

/// The pods that a row is of, as conditions see them: sets and blocks that hold them, each in ascending order.
#[derive(Clone, Copy, Debug)]
pub(super) struct Own<'a> {
    pub sets: &'a [u32],
    pub blocks: &'a [u32],
}

/// Policies, whether of ingress, the list of named ports of the pods that the row is of, and rules of theirs that are not for these
/// pods.
type RowKey = (Vec<u32>, bool, u32, Vec<u32>);

/// What a row was written from.
#[derive(Debug)]
struct Row {
    /// Indices of rules, in the order in which they decide.
    rules: Vec<u32>,
    /// So many of them are of policies that are no NetworkPolicies, before the first of one: pods of many namespaces have the same.
    shared: usize,
    ingress: bool,
    /// Named ports of the pods that it is of: number of their list; 0 where no rule asks for them.
    own_names: u32,
    /// Number of the list of tiers that deny what none of their rules matches.
    isolations: u32,
    /// Whether a rule may lead past one that matches everything.
    passes: bool,
    /// All that its policies say.
    content: Content,
}

/// What rows are written from.
#[derive(Clone, Copy)]
pub(super) struct Sources<'a> {
    pub policies: &'a Policies,
    pub vocabulary: &'a Vocabulary,
    pub classes: &'a Classes,
}

/// All rows, numbered from 1.
#[derive(Debug, Default)]
pub(super) struct Rows {
    rows: Vec<Row>,
    known: HashMap<RowKey, u32>,
    /// Lists of tiers that deny what none of their rules matches, each once.
    isolations: Vec<Vec<Isolation>>,
    known_isolations: HashMap<Vec<Isolation>, u32>,
    /// Port map by rules, named ports and isolating tiers.
    maps: HashMap<MapKey<Vec<u32>>, u32>,
    /// Bytes of the rules in `maps`.
    pub remembered: u64,
    /// Rows with a rule for everyone whose ports each peer names for itself.
    asking: Vec<u32>,
    /// Rows with a rule for everyone but some, who include classes that nothing holds.
    for_others: Vec<u32>,
    /// Sets and blocks that new rows name, for whoever keeps count of them.
    pub named: Vec<(Atom, u32)>,
    /// Bytes by policy, shared evenly by the policies of a row.
    pub costs: Vec<u64>,
    /// Pages of each row.
    pages: usize,
    /// By page: rules (position in the row) and the classes that they match.
    laid: Vec<Vec<(u32, u64)>>,
    /// Memory for lists of rules.
    spare: Vec<Vec<u32>>,
    /// What rows begin with, while they are written one after the other and nothing else happens: by rules, and whether one of
    /// the row may lead past one that matches everything.
    beginnings: Option<HashMap<(Vec<u32>, bool), Beginning>>,
}

/// Classes, the rules that match them, and whether no further rule matters.
type Part = (u64, Vec<u32>, bool);

/// What the rules that several rows begin with say about each page.
#[derive(Debug)]
struct Beginning {
    /// By page: classes, and the number of their list.
    pages: Vec<Vec<(u64, usize)>>,
    /// Distinct lists of rules that match, and whether no further rule matters.
    lists: Vec<(Vec<u32>, bool)>,
    /// Rules for everyone.
    everyone: Vec<u32>,
    /// Pages that no further rule with peers touches, as far as rows had them, by what tells rows apart there.
    untouched: HashMap<UntouchedKey, Vec<Option<Page>>>,
}

/// Further rules for everyone, the direction and names of the row, and its isolating tiers.
type UntouchedKey = (Vec<u32>, (bool, Names), u32);

/// The most of them that are kept.
const MOST_BEGINNINGS: usize = 256;

/// The most variants of untouched pages that are kept of one.
const MOST_UNTOUCHED: usize = 64;

/// Rules, named ports of both ends and isolating tiers (numbers of their lists), owned or borrowed.
#[derive(Debug, PartialEq, Eq, Hash)]
struct MapKey<R>(R, Names, u32);

/// Named ports of both ends of a cell: numbers of their lists, 0 where no rule asks for them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Names {
    own: u32,
    peer: u32,
}

impl Equivalent<MapKey<Vec<u32>>> for MapKey<&[u32]> {
    fn equivalent(&self, key: &MapKey<Vec<u32>>) -> bool {
        (self.0, self.1, self.2) == (key.0.as_slice(), key.1, key.2)
    }
}

/// A page of a row.
struct WrittenPage {
    at: usize,
    laid: Vec<(u32, u64)>,
    page: Page,
}

impl Rows {
    pub(super) fn len(&self) -> u32 {
        self.rows.len() as u32
    }

    /// All that the policies of a row say; zeros for row 0.
    pub(super) fn content(&self, row: u32) -> Content {
        let row = (row as usize).checked_sub(1).and_then(|row| self.rows.get(row));
        row.map_or([0; 32], |row| row.content)
    }

    /// The row of the pods that `policies` select in a direction: one that is there, or a new one. 0 where none does.
    /// `ports` is the list of the pods' named ports that rules ask for of the pods that their policies select.
    pub(super) fn of(
        &mut self,
        policies: &[u32],
        (ingress, ports): (bool, u32),
        pods: Own<'_>,
        from: &Sources<'_>,
        tables: &mut ImageBuilder,
    ) -> u32 {
        let slots = || {
            let slots = policies
                .iter()
                .filter_map(|policy| from.policies.slots.get(*policy as usize));
            slots.filter(|slot| slot.direction(ingress).is_some())
        };
        let own: Vec<u32> = policies
            .iter()
            .copied()
            .filter(|policy| {
                let slot = from.policies.slots.get(*policy as usize);
                slot.is_some_and(|slot| slot.direction(ingress).is_some())
            })
            .collect();
        if own.is_empty() {
            return 0;
        }
        let all_rules = || {
            let directions = slots().filter_map(|slot| slot.direction(ingress));
            directions.flat_map(|direction| direction.rules.clone())
        };
        let is_of_others = |rule: &u32| {
            let rule = from.policies.rules.get(*rule as usize);
            rule.is_some_and(|rule| !rule.is_of(pods))
        };
        let mut of_others: Vec<u32> = all_rules().filter(is_of_others).collect();
        of_others.sort_unstable();
        let rules = || all_rules().filter(|rule| of_others.binary_search(rule).is_err());
        let asks = |rule: u32| {
            let rule = from.policies.rules.get(rule as usize);
            rule.is_some_and(|rule| rule.asks_own_names)
        };
        let own_names = match ports != 0 && rules().any(asks) {
            true => ports,
            false => 0,
        };
        let key: RowKey = (own, ingress, own_names, of_others.clone());
        if let Some(row) = self.known.get(&key) {
            return *row;
        }
        let before = tables.size();
        let mut content = Digest::new("row");
        for direction in slots().filter_map(|slot| slot.direction(ingress)) {
            content.content(&direction.content);
        }
        if ingress || own_names != 0 {
            content.content(&from.vocabulary.ports_content(own_names));
        }
        // Policies by isolating tier. What the first such tier denies is the row's; later ones deny what a Pass leads to.
        let mut by_tier: Vec<(u32, Vec<u32>)> = Vec::new();
        for (tier, number) in slots().filter_map(|slot| Some((slot.isolating?, slot.number))) {
            match by_tier.last_mut() {
                Some((last, numbers)) if *last == tier => numbers.push(number),
                _ => by_tier.push((tier, vec![number])),
            }
        }
        let isolating = by_tier
            .first()
            .map_or(NONE, |(_, numbers)| tables.isolating(numbers));
        let isolations = by_tier
            .iter()
            .enumerate()
            .map(|(position, (tier, numbers))| Isolation {
                tier: *tier,
                provenance: match position {
                    0 => NONE,
                    _ => tables.isolating(numbers),
                },
            });
        let isolations: Vec<Isolation> = isolations.collect();
        let isolations = *self
            .known_isolations
            .entry(isolations)
            .or_insert_with_key(|list| {
                self.isolations.push(list.clone());
                self.isolations.len() as u32 - 1
            });
        let passes = |rule: u32| {
            let rule = from.policies.rules.get(rule as usize);
            rule.is_some_and(|rule| rule.action == Action::Pass)
        };
        let shared = slots().take_while(|slot| slot.id.kind != PolicyKind::NetworkPolicy);
        let shared = shared.filter_map(|slot| slot.direction(ingress));
        let shared = shared.flat_map(|direction| direction.rules.clone());
        let shared = shared.filter(|rule| of_others.binary_search(rule).is_err());
        let row = Row {
            ingress,
            own_names,
            isolations,
            passes: rules().any(passes),
            content: content.finish(),
            shared: shared.count(),
            rules: rules().collect(),
        };
        let number = self.write(row, isolating, from, tables);
        self.note(number, from.policies);
        self.charge(&key.0, tables.size() - before);
        // NetworkPolicies do not govern what goes to the own node; all others do (TIERS 85).
        if !ingress {
            let tiered = |policy: &u32| {
                let slot = from.policies.slots.get(*policy as usize);
                slot.is_some_and(|slot| slot.id.kind != PolicyKind::NetworkPolicy)
            };
            let others: Vec<u32> = key.0.iter().copied().filter(tiered).collect();
            let own_node = if others.len() == key.0.len() {
                number
            } else {
                self.of(&others, (false, ports), pods, from, tables)
            };
            tables.set_own_node(number, own_node);
        }
        self.known.insert(key, number);
        number
    }

    fn charge(&mut self, policies: &[u32], bytes: u64) {
        let share = bytes / policies.len().max(1) as u64;
        for policy in policies {
            let policy = *policy as usize;
            if self.costs.len() <= policy {
                self.costs.resize(policy + 1, 0);
            }
            if let Some(cost) = self.costs.get_mut(policy) {
                *cost += share;
            }
        }
    }

    /// Notes which sets and blocks a row names.
    fn note(&mut self, number: u32, policies: &Policies) {
        let Some(row) = self.rows.get(number as usize - 1) else {
            return;
        };
        let (mut asks, mut for_others) = (false, false);
        for rule in &row.rules {
            let Some(rule) = policies.rules.get(*rule as usize) else {
                continue;
            };
            asks |= rule.parties.is_everyone() && rule.asks_peer_names;
            for_others |= rule.parties.is_everyone_else();
            let conditions = rule.parties.of_peer.iter().flat_map(|condition| &condition.any);
            let peers = rule.parties.peers.iter().flatten().chain(conditions);
            self.named.extend(peers.map(|peer| (*peer, number)));
        }
        if for_others {
            self.for_others.push(number);
        } else if asks {
            self.asking.push(number);
        }
    }

    /// Begins or ends a time in which rows are written and nothing else happens: no class comes.
    pub(super) fn write_at_once(&mut self, begins: bool) {
        self.beginnings = begins.then(HashMap::new);
    }

    /// Makes room for so many classes.
    pub(super) fn make_room(&mut self, classes: usize, tables: &mut ImageBuilder) {
        tables.classes(classes as u32);
        self.pages = classes.div_ceil(CLASSES_PER_PAGE);
        self.laid.resize_with(self.pages, Vec::new);
    }

    /// Decides about a class that is new, in each row that says anything of its own about it. `rows` are those that
    /// name a set or a block that holds it, with or without repetition.
    pub(super) fn add_column(
        &mut self,
        number: u32,
        mut rows: Vec<u32>,
        from: &Sources<'_>,
        tables: &mut ImageBuilder,
    ) {
        let Some(class) = from.classes.get(number) else {
            return;
        };
        self.beginnings = None; // they do not know this one
        if class.ports() != 0 {
            rows.extend(&self.asking);
        }
        rows.extend(&self.for_others);
        rows.sort_unstable();
        rows.dedup();
        let (sets, blocks) = from.classes.held_by(class);
        let mut rules = Vec::new();
        for row in rows {
            let Some(written) = self.rows.get(row as usize - 1) else {
                continue;
            };
            rules.clear();
            for rule in &written.rules {
                let Some(known) = from.policies.rules.get(*rule as usize) else {
                    continue;
                };
                if known.parties.has_peer(sets, blocks) {
                    rules.push(*rule);
                    if known.ends() && !written.passes {
                        break;
                    }
                }
            }
            let names = Names {
                own: written.own_names,
                peer: class.ports(),
            };
            let (ingress, isolations) = (written.ingress, written.isolations);
            let map = self.map(&rules, (ingress, names), isolations, from, tables);
            tables.set_cell(row, number, map);
        }
    }

    /// Lays rules over the pages that they touch, which it answers in any order; `first` is the position of the first of them. Those for
    /// everyone are noted by their positions instead.
    fn lay(&mut self, rules: &[u32], first: u32, everyone: &mut Vec<u32>, from: &Sources<'_>) -> Vec<u32> {
        let mut touched: Vec<u32> = Vec::new();
        for (rule, position) in rules.iter().zip(first..) {
            let Some(rule) = from.policies.rules.get(*rule as usize) else {
                continue;
            };
            if rule.parties.is_everyone() {
                everyone.push(position);
                continue;
            }
            let mut lay = |page: u32, mask: u64| {
                let Some(laid) = self.laid.get_mut(page as usize) else {
                    return;
                };
                if laid.is_empty() {
                    touched.push(page);
                }
                match laid.last_mut() {
                    Some((last, laid)) if *last == position => *laid |= mask,
                    _ => laid.push((position, mask)),
                }
            };
            match (&rule.parties.peers, rule.parties.of_peer.as_slice()) {
                (Some(peers), []) => {
                    for (page, mask) in peers.iter().filter_map(|peer| classes_in(*peer, from)).flatten() {
                        lay(*page, *mask);
                    }
                }
                _ => {
                    for (page, mask) in peers_of(&rule.parties, self.pages, from) {
                        lay(page, mask);
                    }
                }
            }
        }
        touched
    }

    /// Writes a row and answers its number.
    fn write(&mut self, row: Row, isolating: u32, from: &Sources<'_>, tables: &mut ImageBuilder) -> u32 {
        let asks = |rule: &u32| {
            let rule = from.policies.rules.get(*rule as usize);
            rule.is_some_and(|rule| rule.asks_peer_names)
        };
        let by_class = row.rules.iter().any(asks);
        if row.shared > 0
            && !by_class
            && let Some(mut beginnings) = self.beginnings.take()
        {
            if beginnings.len() >= MOST_BEGINNINGS {
                beginnings.clear();
            }
            let rules = row.rules.get(..row.shared).unwrap_or_default().to_vec();
            let beginning = beginnings
                .entry((rules, row.passes))
                .or_insert_with_key(|(rules, passes)| self.beginning(rules, *passes, from));
            let number = self.write_from(row, beginning, isolating, from, tables);
            self.beginnings = Some(beginnings);
            return number;
        }
        // Rules for everyone, and the pages that rules for some touch.
        let mut everyone: Vec<u32> = Vec::new();
        let mut touched = self.lay(&row.rules, 0, &mut everyone, from);
        let rule_of = |rule: u32| from.policies.rules.get(rule as usize);
        let rule_at = |position: u32| row.rules.get(position as usize).copied();
        let asks = |position: u32| {
            let rule = rule_at(position).and_then(rule_of);
            rule.is_some_and(|rule| rule.asks_peer_names)
        };
        // Rules for everyone whose ports each peer names for itself leave no two pages alike.
        if everyone.iter().any(|position| asks(*position)) {
            touched = (0..self.pages as u32).collect();
        }
        touched.sort_unstable();

        // Pages that no rule with peers touches.
        let rules: Vec<u32> = everyone
            .iter()
            .filter_map(|position| rule_at(*position))
            .collect();
        let names = Names {
            own: row.own_names,
            peer: 0,
        };
        let map = self.map(&rules, (row.ingress, names), row.isolations, from, tables);
        let rest = tables.page(&[(u64::MAX, map)]);
        let mut pages = vec![rest; self.pages];

        // The page written last, by what was laid over it: neighbours are often alike.
        let mut last: Option<WrittenPage> = None;
        for at in touched {
            let at = at as usize;
            let mut laid = self.laid.get_mut(at).map(std::mem::take).unwrap_or_default();
            laid.extend(everyone.iter().map(|position| (*position, u64::MAX)));
            laid.sort_unstable_by_key(|(position, _)| *position);
            let by_class = laid.iter().any(|(position, _)| asks(*position));
            let written = match last.take() {
                Some(written) if written.laid == laid && !by_class => {
                    self.clear(at, laid);
                    written
                }
                before => {
                    if let Some(before) = before {
                        self.clear(before.at, before.laid);
                    }
                    let parts = self.parts(&row, &laid, at, by_class, from, tables);
                    let page = tables.page(&parts);
                    WrittenPage { at, laid, page }
                }
            };
            if let Some(page) = pages.get_mut(at) {
                *page = written.page;
            }
            if by_class {
                self.clear(written.at, written.laid);
            } else {
                last = Some(written);
            }
        }
        if let Some(written) = last {
            self.clear(written.at, written.laid);
        }
        self.rows.push(row);
        tables.row_of_pages(isolating, &pages, map)
    }

    /// What rules say about each page, whatever comes after them.
    fn beginning(&mut self, rules: &[u32], passes: bool, from: &Sources<'_>) -> Beginning {
        let mut everyone: Vec<u32> = Vec::new();
        self.lay(rules, 0, &mut everyone, from);
        let mut numbers: HashMap<(Vec<u32>, bool), usize> = HashMap::new();
        let mut lists: Vec<(Vec<u32>, bool)> = Vec::new();
        let mut pages = Vec::with_capacity(self.pages);
        for at in 0..self.pages {
            let mut laid = self.laid.get_mut(at).map(std::mem::take).unwrap_or_default();
            laid.extend(everyone.iter().map(|position| (*position, u64::MAX)));
            laid.sort_unstable_by_key(|(position, _)| *position);
            let mut parts: Vec<Part> = vec![(u64::MAX, self.spare.pop().unwrap_or_default(), false)];
            self.cut(&mut parts, &laid, rules, passes, from);
            self.clear(at, laid);
            let numbered = parts.into_iter().map(|(mask, rules, ends)| {
                let number = *numbers.entry((rules, ends)).or_insert_with_key(|list| {
                    lists.push(list.clone());
                    lists.len() - 1
                });
                (mask, number)
            });
            pages.push(numbered.collect());
        }
        let everyone = everyone.iter().filter_map(|at| rules.get(*at as usize));
        Beginning {
            everyone: everyone.copied().collect(),
            pages,
            lists,
            untouched: HashMap::new(),
        }
    }

    /// As [`Self::write`], of a row none of whose rules asks for the names of a peer's ports.
    fn write_from(
        &mut self,
        row: Row,
        beginning: &mut Beginning,
        isolating: u32,
        from: &Sources<'_>,
        tables: &mut ImageBuilder,
    ) -> u32 {
        let names = Names {
            own: row.own_names,
            peer: 0,
        };
        let names = (row.ingress, names);
        let rest = row.rules.get(row.shared..).unwrap_or_default();
        let mut everyone: Vec<u32> = Vec::new();
        self.lay(rest, row.shared as u32, &mut everyone, from);
        let rule_at = |position: &u32| row.rules.get(*position as usize).copied();
        let for_all: Vec<u32> = everyone.iter().filter_map(rule_at).collect();
        let mut maps: Vec<Option<u32>> = vec![None; beginning.lists.len()];
        let mut pages: Vec<Page> = Vec::with_capacity(beginning.pages.len());
        let (lists, key) = (&beginning.lists, (for_all.clone(), names, row.isolations));
        if beginning.untouched.len() >= MOST_UNTOUCHED && !beginning.untouched.contains_key(&key) {
            beginning.untouched.clear();
        }
        let untouched = beginning.untouched.entry(key);
        let untouched = untouched.or_insert_with(|| vec![None; beginning.pages.len()]);
        for ((at, known), untouched) in beginning.pages.iter().enumerate().zip(untouched) {
            if self.laid.get(at).is_none_or(Vec::is_empty) {
                let page = untouched.get_or_insert_with(|| {
                    let mapped = known.iter().filter_map(|(mask, number)| {
                        let (place, (rules, ends)) = (maps.get_mut(*number)?, lists.get(*number)?);
                        let map = *place.get_or_insert_with(|| {
                            let mut all = rules.clone();
                            if !ends {
                                all.extend(&for_all);
                            }
                            self.map(&all, names, row.isolations, from, tables)
                        });
                        Some((*mask, map))
                    });
                    let mapped: Vec<(u64, u32)> = mapped.collect();
                    tables.page(&mapped)
                });
                pages.push(*page);
                continue;
            }
            let mut laid = self.laid.get_mut(at).map(std::mem::take).unwrap_or_default();
            laid.extend(everyone.iter().map(|position| (*position, u64::MAX)));
            laid.sort_unstable_by_key(|(position, _)| *position);
            let parts = known.iter().filter_map(|(mask, number)| {
                let (rules, ends) = lists.get(*number)?;
                Some((*mask, rules.clone(), *ends))
            });
            let mut parts: Vec<Part> = parts.collect();
            self.cut(&mut parts, &laid, &row.rules, row.passes, from);
            let mapped = parts
                .into_iter()
                .map(|(mask, rules, _)| (mask, self.map(&rules, names, row.isolations, from, tables)));
            let mapped: Vec<(u64, u32)> = mapped.collect();
            self.clear(at, laid);
            pages.push(tables.page(&mapped));
        }
        let mut for_others = beginning.everyone.clone();
        for_others.extend(&for_all);
        let map = self.map(&for_others, names, row.isolations, from, tables);
        self.rows.push(row);
        tables.row_of_pages(isolating, &pages, map)
    }

    /// Gives a page's rules back, so that the next row needs no memory for them.
    fn clear(&mut self, page: usize, mut laid: Vec<(u32, u64)>) {
        laid.clear();
        if let Some(place) = self.laid.get_mut(page) {
            *place = laid;
        }
    }

    /// Cuts a page's classes by the rules that match them; answers masks and port maps.
    fn parts(
        &mut self,
        row: &Row,
        laid: &[(u32, u64)],
        page: usize,
        by_class: bool,
        from: &Sources<'_>,
        tables: &mut ImageBuilder,
    ) -> Vec<(u64, u32)> {
        let mut parts: Vec<Part> = vec![(u64::MAX, self.spare.pop().unwrap_or_default(), false)];
        self.cut(&mut parts, laid, &row.rules, row.passes, from);
        let mut mapped = Vec::with_capacity(parts.len());
        for (mask, mut rules, _) in parts {
            let names = |peer| {
                let own = row.own_names;
                (row.ingress, Names { own, peer })
            };
            match by_class {
                true => {
                    let mut split: Vec<(u32, u64)> = Vec::new();
                    for bit in (0..CLASSES_PER_PAGE).filter(|bit| mask >> bit & 1 == 1) {
                        let class = from.classes.get((page * CLASSES_PER_PAGE + bit) as u32);
                        let ports = class.map_or(0, Class::ports);
                        match split.iter_mut().find(|(known, _)| *known == ports) {
                            Some((_, mask)) => *mask |= 1 << bit,
                            None => split.push((ports, 1 << bit)),
                        }
                    }
                    for (ports, mask) in split {
                        mapped.push((mask, self.map(&rules, names(ports), row.isolations, from, tables)));
                    }
                }
                false => mapped.push((mask, self.map(&rules, names(0), row.isolations, from, tables))),
            }
            rules.clear();
            self.spare.push(rules);
        }
        mapped
    }

    /// Cuts parts of a page by the rules that are laid over it, in the order of their positions among `rules`.
    fn cut(
        &mut self,
        parts: &mut Vec<Part>,
        laid: &[(u32, u64)],
        rules: &[u32],
        passes: bool,
        from: &Sources<'_>,
    ) {
        for (position, mask) in laid {
            let Some(rule) = rules.get(*position as usize).copied() else {
                continue;
            };
            let known = from.policies.rules.get(rule as usize);
            let ends = !passes && known.is_some_and(RowRule::ends);
            for at in 0..parts.len() {
                let Some(part) = parts.get_mut(at) else { break };
                let inside = part.0 & mask;
                if inside == 0 || part.2 {
                    continue;
                }
                if inside != part.0 {
                    let mut same = self.spare.pop().unwrap_or_default();
                    same.extend_from_slice(&part.1);
                    let outside = (part.0 & !mask, same, part.2);
                    part.0 = inside;
                    part.1.push(rule);
                    part.2 = ends;
                    parts.push(outside);
                } else {
                    part.1.push(rule);
                    part.2 = ends;
                }
            }
        }
    }

    /// The port map of rules of a direction that all match, with the lists of named ports of both ends.
    fn map(
        &mut self,
        rules: &[u32],
        (ingress, mut names): (bool, Names),
        isolations: u32,
        from: &Sources<'_>,
        tables: &mut ImageBuilder,
    ) -> u32 {
        let own = || {
            rules
                .iter()
                .filter_map(|rule| from.policies.rules.get(*rule as usize))
        };
        if names.own != 0 && !own().any(|rule| rule.asks_own_names) {
            names.own = 0;
        }
        if names.peer != 0 && !own().any(|rule| rule.asks_peer_names) {
            names.peer = 0;
        }
        if let Some(map) = self.maps.get(&MapKey(rules, names, isolations)) {
            return *map;
        }
        let cell_rules: Vec<CellRule<'_>> = own()
            .map(|rule| CellRule {
                tier: rule.tier,
                action: rule.action,
                provenance: rule.provenance,
                ports: rule.ports.as_deref(),
                not_ports: &rule.not_ports,
                source_ports: rule.source_ports.as_deref(),
                not_source_ports: &rule.not_source_ports,
            })
            .collect();
        let [own, peer] = [names.own, names.peer].map(|list| from.vocabulary.ports(list));
        let named = match ingress {
            true => PortNames {
                destination: own,
                source: peer,
            },
            false => PortNames {
                destination: peer,
                source: own,
            },
        };
        let isolating = self.isolations.get(isolations as usize);
        let isolating = isolating.map(Vec::as_slice).unwrap_or_default();
        let mut cell = ports::decide(&cell_rules, isolating, named);
        for nested in cell.nested {
            cell.ranges.push(PortRange {
                protocol: nested.protocol,
                lo: nested.lo,
                hi: nested.hi,
                then: tables.nested_port_map(nested.otherwise, &nested.ranges),
            });
        }
        let map = tables.port_map(cell.otherwise, &cell.ranges);
        self.remembered += size_of_val(rules) as u64;
        self.maps.insert(MapKey(rules.to_vec(), names, isolations), map);
        map
    }
}

/// The classes that a set of pods or a block holds.
fn classes_in<'a>(atom: Atom, from: &Sources<'a>) -> Option<&'a ClassSet> {
    let policies = from.policies;
    match atom {
        Atom::Pods(set) => policies.sets.get(set as usize).map(|set| &set.named.classes),
        Atom::Block(block) => policies
            .named_blocks
            .get(block as usize)
            .map(|block| &block.classes),
    }
}

/// The classes that a rule is for; those that do not exist among those that nothing holds.
fn peers_of(parties: &Parties, pages: usize, from: &Sources<'_>) -> ClassSet {
    let mut conditions: Vec<&Condition> = parties.of_peer.iter().collect();
    let whole = |atoms: &[Atom]| {
        let mut whole = ClassSet::new();
        for (page, mask) in atoms.iter().filter_map(|atom| classes_in(*atom, from)).flatten() {
            whole.push((*page, *mask));
        }
        whole.sort_unstable_by_key(|(page, _)| *page);
        whole.dedup_by(|next, last| {
            let same = next.0 == last.0;
            if same {
                last.1 |= next.1;
            }
            same
        });
        whole
    };
    // What is narrow first: the rest is looked up on its pages alone.
    let mut peers = if let Some(peers) = &parties.peers {
        whole(peers)
    } else if let Some(at) = conditions.iter().position(|condition| !condition.negated) {
        whole(&conditions.swap_remove(at).any)
    } else {
        (0..pages as u32).map(|page| (page, u64::MAX)).collect()
    };
    for condition in conditions {
        for (page, mask) in &mut peers {
            let on_page = |atom: &Atom| {
                let classes = classes_in(*atom, from)?;
                let at = classes.binary_search_by_key(page, |(page, _)| *page).ok()?;
                classes.get(at).map(|(_, mask)| *mask)
            };
            let named = condition.any.iter().filter_map(on_page).fold(0, |a, b| a | b);
            *mask &= if condition.negated { !named } else { named };
        }
    }
    peers.retain(|(_, mask)| *mask != 0);
    peers
}
