//! Peer classes: addresses and names that rules see alike.
//!
//! A class is what sets of pods, what set of blocks and what named ports. Classes and lists stay when no end is left in
//! them; a list whose cohorts a new set holds all of is changed in place.

use hashbrown::HashMap;

use super::{
    canonical::{Members, MultisetSums},
    content::{Content, Digest, Sum},
    policies::Policies,
    rows::{add_class, classes_of},
    selectors::Vocabulary,
};

/// What rules can see of an address: sets of pods (as an index of distinct lists), blocks (likewise) and named ports.
pub(super) type Sight = (u32, u32, u32);

/// A class.
#[derive(Debug)]
pub(super) struct Class {
    sight: Sight,
    members: Members,
    /// Its part in the canonical hash.
    part: u32,
}

impl Class {
    /// Its list of named ports.
    pub(super) fn ports(&self) -> u32 {
        self.sight.2
    }
}

/// A distinct list of sets of pods.
#[derive(Debug)]
struct List {
    /// In ascending order.
    sets: Vec<u32>,
    /// None until a class sees it.
    content: Option<Content>,
    /// Classes that see it.
    classes: Vec<u32>,
    /// Cohorts that have it.
    cohorts: u32,
}

/// All classes.
#[derive(Debug)]
pub(super) struct Classes {
    classes: Vec<Class>,
    numbers: HashMap<Sight, u32>,
    lists: Vec<List>,
    known_lists: HashMap<Vec<u32>, u32>,
    /// Distinct sets of blocks, each in ascending order, and what they are.
    block_sets: Vec<(Vec<u32>, Content)>,
    bag: MultisetSums,
    /// Classes with members.
    pub live: u32,
}

impl Classes {
    pub(super) fn new(policies: &Policies, block_sets: &[Vec<u32>]) -> Self {
        let sets = block_sets.iter();
        let nothing = List {
            sets: Vec::new(),
            content: None,
            classes: Vec::new(),
            cohorts: 0,
        };
        Self {
            classes: Vec::new(),
            numbers: HashMap::new(),
            lists: vec![nothing],
            known_lists: HashMap::from([(Vec::new(), 0)]),
            block_sets: sets
                .map(|set| (set.clone(), policies.blocks_content(set)))
                .collect(),
            bag: MultisetSums::new("class"),
            live: 0,
        }
    }

    pub(super) fn get(&self, class: u32) -> Option<&Class> {
        self.classes.get(class as usize)
    }

    pub(super) fn len(&self) -> usize {
        self.classes.len()
    }

    /// Takes up the sets of blocks that are new.
    pub(super) fn more_block_sets(&mut self, sets: &[Vec<u32>], policies: &Policies) {
        let new = sets.iter().skip(self.block_sets.len());
        self.block_sets
            .extend(new.map(|set| (set.clone(), policies.blocks_content(set))));
    }

    /// The part that classes have in the canonical hash.
    pub(super) fn total(&mut self) -> Sum {
        self.bag.total()
    }

    /// The sets of pods and the blocks that hold a class, each in ascending order.
    pub(super) fn held_by(&self, class: &Class) -> (&[u32], &[u32]) {
        let (list, blocks, _) = class.sight;
        let sets = self.lists.get(list as usize).map(|list| list.sets.as_slice());
        let blocks = self.block_sets.get(blocks as usize).map(|set| set.0.as_slice());
        (sets.unwrap_or_default(), blocks.unwrap_or_default())
    }

    /// Index of a list of sets, one cohort more of which there is.
    pub(super) fn list(&mut self, sets: Vec<u32>) -> u32 {
        let next = self.lists.len() as u32;
        let number = *self.known_lists.entry(sets).or_insert_with_key(|sets| {
            self.lists.push(List {
                sets: sets.clone(),
                content: None,
                classes: Vec::new(),
                cohorts: 0,
            });
            next
        });
        if let Some(list) = self.lists.get_mut(number as usize) {
            list.cohorts += 1;
        }
        number
    }

    /// One cohort less has a list.
    pub(super) fn leave_list(&mut self, list: u32) {
        if let Some(list) = self.lists.get_mut(list as usize) {
            list.cohorts -= 1;
        }
    }

    /// The sets of a list.
    pub(super) fn sets(&self, list: u32) -> &[u32] {
        self.lists
            .get(list as usize)
            .map(|list| list.sets.as_slice())
            .unwrap_or_default()
    }

    /// The blocks of a set of blocks.
    pub(super) fn blocks(&self, set: u32) -> &[u32] {
        self.block_sets
            .get(set as usize)
            .map(|set| set.0.as_slice())
            .unwrap_or_default()
    }

    /// Adds a set that holds so many of the cohorts with a list to the list itself, if it holds all of them.
    pub(super) fn widen(
        &mut self,
        number: u32,
        set: u32,
        held: u32,
        policies: &mut Policies,
        vocabulary: &Vocabulary,
    ) -> bool {
        let Some(list) = self.lists.get_mut(number as usize) else {
            return false;
        };
        // List 0 is also that of addresses that are no pod's.
        if list.cohorts != held || list.sets.is_empty() {
            return false;
        }
        let mut sets = list.sets.clone();
        sets.push(set); // it is new, so above all others
        if self.known_lists.contains_key(&sets) {
            return false;
        }
        self.known_lists.remove(&list.sets);
        self.known_lists.insert(sets.clone(), number);
        list.sets = sets;
        let classes = list.classes.clone();
        if let Some(set) = policies.sets.get_mut(set as usize) {
            for class in classes {
                add_class(&mut set.named.classes, class);
            }
        }
        self.lists_changed([number], policies, vocabulary);
        true
    }

    /// The class of a sight; the second says that it is new: it has no column in the rows yet.
    pub(super) fn of(
        &mut self,
        sight: Sight,
        policies: &mut Policies,
        vocabulary: &Vocabulary,
    ) -> (u32, bool) {
        if let Some(known) = self.numbers.get(&sight) {
            return (*known, false);
        }
        let number = self.classes.len() as u32;
        let content = self.content(sight, policies, vocabulary);
        let part = self.bag.part(content);
        self.classes.push(Class {
            sight,
            members: Members::default(),
            part,
        });
        self.numbers.insert(sight, number);
        if let Some(list) = self.lists.get_mut(sight.0 as usize) {
            list.classes.push(number);
            for set in &list.sets {
                if let Some(set) = policies.sets.get_mut(*set as usize) {
                    add_class(&mut set.named.classes, number);
                }
            }
        }
        for block in self
            .block_sets
            .get(sight.1 as usize)
            .into_iter()
            .flat_map(|set| &set.0)
        {
            if let Some(block) = policies.named_blocks.get_mut(*block as usize) {
                add_class(&mut block.classes, number);
            }
        }
        (number, true)
    }

    /// The rows that name a set or a block which holds a class, with repetition.
    pub(super) fn rows_about(&self, class: u32, policies: &Policies) -> Vec<u32> {
        let Some(class) = self.get(class) else {
            return Vec::new();
        };
        let (sets, blocks) = self.held_by(class);
        let sets = sets.iter().filter_map(|set| policies.sets.get(*set as usize));
        let blocks = blocks
            .iter()
            .filter_map(|block| policies.named_blocks.get(*block as usize));
        let named = sets.map(|set| &set.named).chain(blocks);
        named.flat_map(|named| named.rows.iter().copied()).collect()
    }

    fn content(&mut self, sight: Sight, policies: &Policies, vocabulary: &Vocabulary) -> Content {
        let (list, blocks, ports) = sight;
        let mut digest = Digest::new("class");
        let list = self.lists.get_mut(list as usize).map(|list| {
            let content = || policies.sets_content(&list.sets);
            *list.content.get_or_insert_with(content)
        });
        digest.content(&list.unwrap_or_default());
        let blocks = self.block_sets.get(blocks as usize);
        digest.content(blocks.map_or(&[0; 32], |set| &set.1));
        digest.content(&vocabulary.ports_content(ports));
        digest.finish()
    }

    /// What a class is, for comparing neighbouring ranges.
    pub(super) fn part(&self, class: u32) -> u32 {
        self.get(class).map_or(u32::MAX, |class| class.part)
    }

    /// Counts a member of a class.
    pub(super) fn add(&mut self, class: u32, piece: &Sum) {
        if let Some(class) = self.classes.get_mut(class as usize) {
            self.live += u32::from(class.members.count == 0);
            class.members.add(piece);
            self.bag.add(class.part, piece);
        }
    }

    /// Counts it no longer.
    pub(super) fn remove(&mut self, class: u32, piece: &Sum) {
        if let Some(class) = self.classes.get_mut(class as usize) {
            class.members.remove(piece);
            self.live -= u32::from(class.members.count == 0);
            self.bag.remove(class.part, piece);
        }
    }

    /// Sets and blocks went in or out of force: what the classes are that they hold.
    pub(super) fn turned(
        &mut self,
        sets: &[u32],
        blocks: &[u32],
        policies: &Policies,
        vocabulary: &Vocabulary,
    ) {
        let named = |set: &u32| policies.sets.get(*set as usize).map(|set| &set.named);
        let classes = sets
            .iter()
            .filter_map(named)
            .flat_map(|set| classes_of(&set.classes));
        let mut lists: Vec<u32> = classes
            .filter_map(|class| self.get(class).map(|class| class.sight.0))
            .collect();
        lists.sort_unstable();
        lists.dedup();
        self.lists_changed(lists, policies, vocabulary);
        if blocks.is_empty() {
            return;
        }
        for (set, content) in &mut self.block_sets {
            if blocks.iter().any(|block| set.binary_search(block).is_ok()) {
                *content = policies.blocks_content(set);
            }
        }
        let held = |block: &u32| policies.named_blocks.get(*block as usize);
        let mut classes: Vec<u32> = blocks
            .iter()
            .filter_map(held)
            .flat_map(|block| classes_of(&block.classes))
            .collect();
        classes.sort_unstable();
        classes.dedup();
        self.classes_changed(&classes, policies, vocabulary);
    }

    fn lists_changed(
        &mut self,
        lists: impl IntoIterator<Item = u32>,
        policies: &Policies,
        vocabulary: &Vocabulary,
    ) {
        for number in lists {
            let Some(list) = self.lists.get_mut(number as usize) else {
                continue;
            };
            list.content = None;
            let classes = list.classes.clone();
            self.classes_changed(&classes, policies, vocabulary);
        }
    }

    fn classes_changed(&mut self, classes: &[u32], policies: &Policies, vocabulary: &Vocabulary) {
        for number in classes {
            let Some(sight) = self.get(*number).map(|class| class.sight) else {
                continue;
            };
            let content = self.content(sight, policies, vocabulary);
            let part = self.bag.part(content);
            if let Some(class) = self.classes.get_mut(*number as usize)
                && class.part != part
            {
                self.bag.shift(class.part, part, &class.members);
                class.part = part;
            }
        }
    }
}
