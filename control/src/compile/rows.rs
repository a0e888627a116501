//! Rows: what the pods of a group let in or out, by peer class.
//!
//! A selector's or block's classes are held as pages and 64-bit masks, so a rule is laid over 64 classes at a time and
//! a page costs what differs on it. Pages that no rule with peers touches are the same page.

use hashbrown::HashMap;
use ringwall_dataplane::classify::{CLASSES_PER_PAGE, ImageBuilder, Page, PortDecision};

use super::{
    cohorts::Cohorts,
    content::{Content, Digest, Sum},
    ports::{self, CellRule},
};
use crate::{cluster::PortMatch, model::Action};

/// Classes: pages and masks, in ascending order of pages.
pub(super) type ClassSet = Vec<(u32, u64)>;

/// Adds a class with a number not below any in the set.
pub(super) fn add_class(set: &mut ClassSet, class: u32) {
    let (page, bit) = (
        class / CLASSES_PER_PAGE as u32,
        1 << (class % CLASSES_PER_PAGE as u32),
    );
    match set.last_mut() {
        Some((last, mask)) if *last == page => *mask |= bit,
        _ => set.push((page, bit)),
    }
}

/// Who a rule is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Atom {
    /// Index of a set of pods.
    Pods(u32),
    /// Index of a block.
    Block(u32),
}

/// A rule of a policy that selects a pod.
#[derive(Debug)]
pub(super) struct RowRule<'a> {
    pub tier: u32,
    pub action: Action,
    /// None for everyone.
    pub peers: Option<Vec<Atom>>,
    pub ports: Option<&'a [PortMatch]>,
    pub provenance: u32,
    /// Names the rule for people: tier, policy, index.
    pub content: Content,
}

impl RowRule<'_> {
    /// Whether what it does depends on the destination's named ports.
    pub(super) fn asks_names(&self) -> bool {
        let named = |port: &PortMatch| matches!(port, PortMatch::Named { .. });
        self.ports.is_some_and(|ports| ports.iter().any(named))
    }

    /// Whether no later rule decides anything that it matches.
    fn ends(&self) -> bool {
        self.ports.is_none() && matches!(self.action, Action::Allow | Action::Deny)
    }
}

/// Whose named ports count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum NamesOf {
    /// The pods' that the row is of (ingress); the list.
    Subject(u32),
    /// The peer's (egress).
    Peer,
}

/// A row to be written.
pub(super) struct RowSpec<'s> {
    /// Indices of rules, in the order in which they decide.
    pub rules: &'s [u32],
    pub names: NamesOf,
    /// The tier that denies what none of its rules matches.
    pub isolating: Option<u32>,
    /// Provenance of the policies that isolate.
    pub isolating_provenance: u32,
    /// Names of the policies that isolate.
    pub isolating_content: Content,
}

/// Writes rows.
pub(super) struct Rows<'a, 'c> {
    rules: &'c [RowRule<'a>],
    cohorts: &'c Cohorts<'a>,
    asks_names: Vec<bool>,
    pod_classes: Vec<ClassSet>,
    block_classes: Vec<ClassSet>,
    /// By class, filled up to whole pages with zeros.
    class_sums: Vec<Sum>,
    /// By page.
    page_sums: Vec<Sum>,
    /// Of all classes.
    all_sums: Sum,
    /// Egress port list by class, filled up like the sums.
    class_ports: Vec<u32>,
    classes: usize,
    /// Port map by rules, named ports and isolating tier.
    maps: HashMap<(Vec<u32>, u32, Option<u32>), u32>,
    /// By port map.
    map_contents: HashMap<u32, Content>,
    /// By page: rules (position in the row) and the classes that they match.
    laid: Vec<Vec<(u32, u64)>>,
}

/// A page of a row.
struct WrittenPage {
    /// Positions of rules and the classes that they match.
    laid: Vec<(u32, u64)>,
    page: Page,
    /// Classes and their port maps.
    parts: Vec<(u64, u32)>,
}

/// What the writer needs to know of each class, by number.
pub(super) struct ClassFacts {
    pub content: Content,
    pub egress_ports: u32,
}

impl<'a, 'c> Rows<'a, 'c> {
    pub(super) fn new(
        rules: &'c [RowRule<'a>],
        cohorts: &'c Cohorts<'a>,
        classes: &[ClassFacts],
        pod_classes: Vec<ClassSet>,
        block_classes: Vec<ClassSet>,
    ) -> Self {
        let pages = classes.len().div_ceil(CLASSES_PER_PAGE);
        let mut class_sums: Vec<Sum> = classes.iter().map(|class| Sum::of(&class.content)).collect();
        class_sums.resize(pages * CLASSES_PER_PAGE, Sum::default());
        let mut class_ports: Vec<u32> = classes.iter().map(|class| class.egress_ports).collect();
        class_ports.resize(pages * CLASSES_PER_PAGE, 0);
        let page_sums: Vec<Sum> = class_sums
            .chunks(CLASSES_PER_PAGE)
            .map(|page| {
                let mut sum = Sum::default();
                page.iter().for_each(|class| sum.add(class));
                sum
            })
            .collect();
        let mut all_sums = Sum::default();
        page_sums.iter().for_each(|page| all_sums.add(page));
        Self {
            all_sums,
            rules,
            cohorts,
            asks_names: rules.iter().map(RowRule::asks_names).collect(),
            pod_classes,
            block_classes,
            class_sums,
            page_sums,
            class_ports,
            classes: classes.len(),
            maps: HashMap::new(),
            map_contents: HashMap::new(),
            laid: vec![Vec::new(); pages],
        }
    }

    /// Pages in each row.
    pub(super) fn pages(&self) -> usize {
        self.laid.len()
    }

    fn asks(&self, rule: u32) -> bool {
        self.asks_names.get(rule as usize) == Some(&true)
    }

    /// Writes a row; answers its number and what it means.
    pub(super) fn write(&mut self, image: &mut ImageBuilder, spec: &RowSpec<'_>) -> (u32, Content) {
        // Rules for everyone, and the pages that rules for some touch.
        let mut everyone: Vec<u32> = Vec::new();
        let mut touched: Vec<u32> = Vec::new();
        for (rule, position) in spec.rules.iter().zip(0..) {
            let Some(rule) = self.rules.get(*rule as usize) else {
                continue;
            };
            let Some(peers) = &rule.peers else {
                everyone.push(position);
                continue;
            };
            for peer in peers {
                let classes = match peer {
                    Atom::Pods(index) => self.pod_classes.get(*index as usize),
                    Atom::Block(index) => self.block_classes.get(*index as usize),
                };
                for (page, mask) in classes.into_iter().flatten() {
                    let Some(laid) = self.laid.get_mut(*page as usize) else {
                        continue;
                    };
                    if laid.is_empty() {
                        touched.push(*page);
                    }
                    match laid.last_mut() {
                        Some((last, laid)) if *last == position => *laid |= mask,
                        _ => laid.push((position, *mask)),
                    }
                }
            }
        }
        let peer_names = spec.names == NamesOf::Peer;
        let rule_at = |position: u32| spec.rules.get(position as usize).copied();
        let asks = |position: u32| peer_names && rule_at(position).is_some_and(|rule| self.asks(rule));
        // Rules for everyone whose ports each peer names for itself leave no two pages alike.
        if everyone.iter().any(|position| asks(*position)) {
            touched = (0..self.pages() as u32).collect();
        }
        touched.sort_unstable();

        // Pages that no rule with peers touches.
        let rules: Vec<u32> = everyone
            .iter()
            .filter_map(|position| rule_at(*position))
            .collect();
        let names = match spec.names {
            NamesOf::Subject(list) if rules.iter().any(|rule| self.asks(*rule)) => list,
            _ => 0,
        };
        let map = self.map(image, &rules, names, spec.isolating);
        let mut pages = vec![image.page(&[(u64::MAX, map)]); self.pages()];
        let mut sums: HashMap<u32, Sum> = HashMap::new();
        if map != ImageBuilder::ISOLATED && touched.len() < self.pages() {
            let mut sum = self.all_sums;
            for page in &touched {
                if let Some(page) = self.page_sums.get(*page as usize) {
                    sum.subtract(page);
                }
            }
            sums.insert(map, sum);
        }

        // The page written last, by what was laid over it: neighbours are often alike.
        let mut last: Option<WrittenPage> = None;
        for page in touched {
            let page = page as usize;
            let mut laid = self.laid.get_mut(page).map(std::mem::take).unwrap_or_default();
            laid.extend(everyone.iter().map(|position| (*position, u64::MAX)));
            laid.sort_unstable_by_key(|(position, _)| *position);
            let valid = valid_classes(self.classes, page);
            let by_class = peer_names
                && laid
                    .iter()
                    .any(|(position, _)| rule_at(*position).is_some_and(|rule| self.asks(rule)));
            let written = match last.take() {
                Some(written) if written.laid == laid && !by_class && valid == u64::MAX => written,
                _ => {
                    let parts = self.parts(image, spec, &laid, page, valid, by_class);
                    let page = image.page(&parts);
                    WrittenPage { laid, page, parts }
                }
            };
            if let Some(page) = pages.get_mut(page) {
                *page = written.page;
            }
            for (mask, map) in &written.parts {
                if *map != ImageBuilder::ISOLATED {
                    let sum = self.sum(page, *mask);
                    sums.entry(*map).or_default().add(&sum);
                }
            }
            if !by_class && valid == u64::MAX {
                last = Some(written);
            }
        }
        let row = image.row_of_pages(spec.isolating_provenance, &pages, ImageBuilder::ISOLATED);

        let mut cells: Vec<(Content, Sum)> = sums
            .into_iter()
            .filter_map(|(map, sum)| Some((*self.map_contents.get(&map)?, sum)))
            .collect();
        cells.sort_unstable_by_key(|(content, _)| *content);
        let mut digest = Digest::new("row");
        digest.content(&spec.isolating_content);
        for (content, sum) in cells {
            digest.content(&content);
            sum.digest(&mut digest);
        }
        (row, digest.finish())
    }

    /// Cuts a page's classes by the rules that match them; answers masks and port maps.
    fn parts(
        &mut self,
        image: &mut ImageBuilder,
        spec: &RowSpec<'_>,
        laid: &[(u32, u64)],
        page: usize,
        valid: u64,
        by_class: bool,
    ) -> Vec<(u64, u32)> {
        // Classes and the rules that match them; the flag says that no further rule matters.
        let mut parts: Vec<(u64, Vec<u32>, bool)> = vec![(valid, Vec::new(), false)];
        // A Pass may lead past a rule that matches everything.
        let rule_passes = |rule: &u32| {
            self.rules
                .get(*rule as usize)
                .is_some_and(|rule| rule.action == Action::Pass)
        };
        let passes = spec.rules.iter().any(rule_passes);
        for (position, mask) in laid {
            let Some(rule) = spec.rules.get(*position as usize).copied() else {
                continue;
            };
            let ends = !passes && self.rules.get(rule as usize).is_some_and(RowRule::ends);
            for at in 0..parts.len() {
                let Some(part) = parts.get_mut(at) else { break };
                let inside = part.0 & mask;
                if inside == 0 || part.2 {
                    continue;
                }
                if inside != part.0 {
                    let outside = (part.0 & !mask, part.1.clone(), part.2);
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
        let mut mapped = Vec::with_capacity(parts.len());
        for (mask, rules, _) in parts {
            if mask == 0 {
                continue;
            }
            let asks = rules.iter().any(|rule| self.asks(*rule));
            match spec.names {
                NamesOf::Peer if asks && by_class => {
                    let own = self
                        .class_ports
                        .get(page * CLASSES_PER_PAGE..)
                        .unwrap_or_default();
                    let mut split: Vec<(u32, u64)> = Vec::new();
                    for (ports, bit) in own.iter().zip(0..CLASSES_PER_PAGE) {
                        if mask >> bit & 1 == 0 {
                            continue;
                        }
                        match split.iter_mut().find(|(known, _)| known == ports) {
                            Some((_, mask)) => *mask |= 1 << bit,
                            None => split.push((*ports, 1 << bit)),
                        }
                    }
                    for (ports, mask) in split {
                        mapped.push((mask, self.map(image, &rules, ports, spec.isolating)));
                    }
                }
                NamesOf::Subject(ports) if asks => {
                    mapped.push((mask, self.map(image, &rules, ports, spec.isolating)));
                }
                _ => mapped.push((mask, self.map(image, &rules, 0, spec.isolating))),
            }
        }
        mapped
    }

    /// The port map of rules that all match.
    fn map(&mut self, image: &mut ImageBuilder, rules: &[u32], ports: u32, isolating: Option<u32>) -> u32 {
        let key = (rules.to_vec(), ports, isolating);
        if let Some(map) = self.maps.get(&key) {
            return *map;
        }
        let own: Vec<&RowRule<'_>> = rules
            .iter()
            .filter_map(|rule| self.rules.get(*rule as usize))
            .collect();
        let cell_rules: Vec<CellRule<'_>> = own
            .iter()
            .map(|rule| CellRule {
                tier: rule.tier,
                action: rule.action,
                provenance: rule.provenance,
                ports: rule.ports,
            })
            .collect();
        let cell = ports::decide(&cell_rules, isolating, self.cohorts.ports(ports));
        let map = image.port_map(cell.otherwise, &cell.ranges);
        self.map_contents.entry(map).or_insert_with(|| {
            let mut digest = Digest::new("port map");
            let decision = |digest: &mut Digest<'_>, then: PortDecision| {
                digest.number(u64::from(then.decision.0));
                match own.iter().find(|rule| rule.provenance == then.provenance) {
                    Some(rule) => digest.content(&rule.content),
                    None => digest.content(&[0; 32]),
                }
            };
            decision(&mut digest, cell.otherwise);
            for range in &cell.ranges {
                digest.number(u64::from(range.protocol));
                digest.number(u64::from(range.lo) << 16 | u64::from(range.hi));
                decision(&mut digest, range.then);
            }
            digest.finish()
        });
        self.maps.insert(key, map);
        map
    }

    fn sum(&self, page: usize, mask: u64) -> Sum {
        if mask == u64::MAX {
            return self.page_sums.get(page).copied().unwrap_or_default();
        }
        let mut sum = Sum::default();
        let classes = self.class_sums.get(page * CLASSES_PER_PAGE..).unwrap_or_default();
        for (class, bit) in classes.iter().zip(0..CLASSES_PER_PAGE) {
            if mask >> bit & 1 == 1 {
                sum.add(class);
            }
        }
        sum
    }
}

/// The classes that exist of a page.
fn valid_classes(classes: usize, page: usize) -> u64 {
    match classes.saturating_sub(page * CLASSES_PER_PAGE) {
        0 => 0,
        left @ 1..CLASSES_PER_PAGE => (1 << left) - 1,
        _ => u64::MAX,
    }
}
