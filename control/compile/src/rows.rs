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
    /// What rows begin with, while they are written one after the other and nothing else happens: by rules, and whether one of
    /// the row may lead past one that matches everything.
    beginnings: Option<HashMap<(Vec<u32>, bool), Beginning>>,
}

/// What the rules that several rows begin with say about each page.
#[derive(Debug)]
struct Beginning {
    /// By page: classes, and the number of their list.
    pages: Vec<Vec<Part>>,
    /// Distinct lists of rules that match, and whether no further rule matters.
    lists: Vec<(Vec<u32>, bool)>,
    /// Rules for everyone.
    everyone: Vec<u32>,
    /// Pages that no further rule with peers touches, as far as rows had them, by what tells rows apart there.
    untouched: HashMap<UntouchedKey, Vec<Option<Page>>>,
}

/// Classes of a page, and the number of the list of rules that match them.
type Part = (u64, usize);

/// No rule, after which others matter.
const NO_RULES: &[(Vec<u32>, bool)] = &[(Vec::new(), false)];

/// Lists of rules that match parts of pages, each said as one more rule after a list that is known, so that nothing is copied or
/// compared for a rule that is laid over a part.
struct RuleLists<'a> {
    /// Rules of the first lists.
    first: &'a [(Vec<u32>, bool)],
    /// All lists: the first ones, then those that rules after them make.
    lists: Vec<RuleList>,
    /// Number of the list that a rule after a list makes.
    known: HashMap<(usize, u32), usize>,
}

struct RuleList {
    /// Its last rule, and the list before that; of no matter to a first one.
    rule: u32,
    before: usize,
    /// Whether no further rule matters.
    ends: bool,
    /// The rule that was laid over it last, and the list that this made: most often the next one is the same.
    last: Option<(u32, usize)>,
    /// Its port map with the names of the row alone, once it was needed.
    map: Option<u32>,
}

impl RuleList {
    const fn of(rule: u32, before: usize, ends: bool) -> Self {
        Self {
            rule,
            before,
            ends,
            last: None,
            map: None,
        }
    }
}

impl<'a> RuleLists<'a> {
    fn after(first: &'a [(Vec<u32>, bool)]) -> Self {
        Self {
            first,
            lists: first
                .iter()
                .map(|(_, ends)| RuleList::of(NONE, 0, *ends))
                .collect(),
            known: HashMap::new(),
        }
    }

    /// The list with one rule more; itself where that does not matter.
    fn with(&mut self, list: usize, rule: u32, ends: bool) -> usize {
        let next = self.lists.len();
        let Some(before) = self.lists.get_mut(list).filter(|before| !before.ends) else {
            return list;
        };
        if let Some((_, same)) = before.last.filter(|(last, _)| *last == rule) {
            return same;
        }
        let with = *self.known.entry((list, rule)).or_insert(next);
        before.last = Some((rule, with));
        if with == next {
            self.lists.push(RuleList::of(rule, list, ends));
        }
        with
    }

    /// Its rules, in the order in which they decide, and whether no further rule matters.
    fn rules(&self, number: usize) -> (Vec<u32>, bool) {
        let (mut at, mut last) = (number, Vec::new());
        while at >= self.first.len()
            && let Some(list) = self.lists.get(at)
        {
            last.push(list.rule);
            at = list.before;
        }
        let first = self.first.get(at).map(|(rules, _)| rules.as_slice());
        let mut rules = first.unwrap_or_default().to_vec();
        rules.extend(last.iter().rev());
        (rules, self.lists.get(number).is_some_and(|list| list.ends))
    }

    /// Cuts parts of a page by the rules that are laid over it, in the order of their positions among `rules`. `passes`: whether
    /// one of the row may lead past one that matches everything.
    fn cut(
        &mut self,
        parts: &mut Vec<Part>,
        laid: &[(u32, u64)],
        (rules, passes): (&[u32], bool),
        from: &Sources<'_>,
    ) {
        for (position, mask) in laid {
            let Some(rule) = rules.get(*position as usize).copied() else {
                continue;
            };
            let known = from.policies.rules.get(rule as usize);
            let ends = !passes && known.is_some_and(RowRule::ends);
            for at in 0..parts.len() {
                let Some((of_part, list)) = parts.get(at).copied() else {
                    break;
                };
                let inside = of_part & mask;
                let with = match inside {
                    0 => list,
                    _ => self.with(list, rule, ends),
                };
                if with == list {
                    continue;
                }
                if let Some(part) = parts.get_mut(at) {
                    *part = (inside, with);
                }
                if inside != of_part {
                    parts.push((of_part & !mask, list));
                }
            }
        }
    }
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

        let mut lists = RuleLists::after(NO_RULES);
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
                    let parts = self.parts(&mut lists, &row, (&laid, at, by_class), from, tables);
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
        let mut cut = RuleLists::after(NO_RULES);
        let mut numbers: HashMap<usize, usize> = HashMap::new();
        let mut lists: Vec<(Vec<u32>, bool)> = Vec::new();
        let mut pages = Vec::with_capacity(self.pages);
        let mut parts: Vec<Part> = Vec::new();
        for at in 0..self.pages {
            let mut laid = self.laid.get_mut(at).map(std::mem::take).unwrap_or_default();
            laid.extend(everyone.iter().map(|position| (*position, u64::MAX)));
            laid.sort_unstable_by_key(|(position, _)| *position);
            parts.clear();
            parts.push((u64::MAX, 0));
            cut.cut(&mut parts, &laid, (rules, passes), from);
            self.clear(at, laid);
            let numbered = parts.iter().map(|(mask, list)| {
                let number = *numbers.entry(*list).or_insert_with(|| {
                    lists.push(cut.rules(*list));
                    lists.len() - 1
                });
                (*mask, number)
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
        let rest = row.rules.get(row.shared..).unwrap_or_default();
        let mut everyone: Vec<u32> = Vec::new();
        self.lay(rest, row.shared as u32, &mut everyone, from);
        let rule_at = |position: &u32| row.rules.get(*position as usize).copied();
        let for_all: Vec<u32> = everyone.iter().filter_map(rule_at).collect();
        let mut pages: Vec<Page> = Vec::with_capacity(beginning.pages.len());
        let key = (for_all.clone(), (row.ingress, names), row.isolations);
        if beginning.untouched.len() >= MOST_UNTOUCHED && !beginning.untouched.contains_key(&key) {
            beginning.untouched.clear();
        }
        let untouched = beginning.untouched.entry(key);
        let untouched = untouched.or_insert_with(|| vec![None; beginning.pages.len()]);
        let mut lists = RuleLists::after(&beginning.lists);
        let everyone: Vec<(u32, u64)> = everyone.iter().map(|position| (*position, u64::MAX)).collect();
        let mut parts: Vec<Part> = Vec::new();
        let mut mapped: Vec<(u64, u32)> = Vec::new();
        for ((at, known), untouched) in beginning.pages.iter().enumerate().zip(untouched) {
            let is_untouched = self.laid.get(at).is_none_or(Vec::is_empty);
            if is_untouched && let Some(page) = untouched {
                pages.push(*page);
                continue;
            }
            let mut laid = self.laid.get_mut(at).map(std::mem::take).unwrap_or_default();
            laid.extend(&everyone);
            laid.sort_unstable_by_key(|(position, _)| *position);
            parts.clear();
            parts.extend(known);
            lists.cut(&mut parts, &laid, (&row.rules, row.passes), from);
            self.clear(at, laid);
            mapped.clear();
            for (mask, list) in &parts {
                mapped.push((
                    *mask,
                    self.map_of_list(&mut lists, *list, names, &row, from, tables),
                ));
            }
            let page = tables.page(&mapped);
            if is_untouched {
                *untouched = Some(page);
            }
            pages.push(page);
        }
        let mut for_others = beginning.everyone.clone();
        for_others.extend(&for_all);
        let map = self.map(&for_others, (row.ingress, names), row.isolations, from, tables);
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

    /// Cuts a page's classes by the rules that are laid over it; answers masks and port maps. `by_class`: whether a rule asks each
    /// peer for the names of its ports.
    fn parts(
        &mut self,
        lists: &mut RuleLists<'_>,
        row: &Row,
        (laid, page, by_class): (&[(u32, u64)], usize, bool),
        from: &Sources<'_>,
        tables: &mut ImageBuilder,
    ) -> Vec<(u64, u32)> {
        let mut parts: Vec<Part> = vec![(u64::MAX, 0)];
        lists.cut(&mut parts, laid, (&row.rules, row.passes), from);
        let own = row.own_names;
        let mut mapped = Vec::with_capacity(parts.len());
        for (mask, list) in parts {
            if !by_class {
                let names = Names { own, peer: 0 };
                mapped.push((mask, self.map_of_list(lists, list, names, row, from, tables)));
                continue;
            }
            let mut split: Vec<(u32, u64)> = Vec::new();
            for bit in (0..CLASSES_PER_PAGE).filter(|bit| mask >> bit & 1 == 1) {
                let class = from.classes.get((page * CLASSES_PER_PAGE + bit) as u32);
                let ports = class.map_or(0, Class::ports);
                match split.iter_mut().find(|(known, _)| *known == ports) {
                    Some((_, mask)) => *mask |= 1 << bit,
                    None => split.push((ports, 1 << bit)),
                }
            }
            let (rules, _) = lists.rules(list);
            for (peer, mask) in split {
                let names = (row.ingress, Names { own, peer });
                mapped.push((mask, self.map(&rules, names, row.isolations, from, tables)));
            }
        }
        mapped
    }

    /// The port map of a list of rules, with the names of the row alone.
    fn map_of_list(
        &mut self,
        lists: &mut RuleLists<'_>,
        list: usize,
        names: Names,
        row: &Row,
        from: &Sources<'_>,
        tables: &mut ImageBuilder,
    ) -> u32 {
        if let Some(map) = lists.lists.get(list).and_then(|list| list.map) {
            return map;
        }
        let (rules, _) = lists.rules(list);
        let map = self.map(&rules, (row.ingress, names), row.isolations, from, tables);
        if let Some(list) = lists.lists.get_mut(list) {
            list.map = Some(map);
        }
        map
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
