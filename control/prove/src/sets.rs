//! Numbered sets of numbers.

use hashbrown::HashMap;

/// Distinct sets, by number; 0 is the empty one.
#[derive(Debug)]
pub(super) struct Sets {
    numbers: HashMap<Vec<u32>, u32>,
    members: Vec<Vec<u32>>,
    /// By member: the sets that hold it.
    holding: Vec<Vec<u32>>,
}

impl Sets {
    /// For members below `bound`.
    pub(super) fn new(bound: usize) -> Self {
        Self {
            numbers: HashMap::from([(Vec::new(), 0)]),
            members: vec![Vec::new()],
            holding: vec![Vec::new(); bound],
        }
    }

    /// Makes room for members below `bound`.
    pub(super) fn grow(&mut self, bound: usize) {
        if bound > self.holding.len() {
            self.holding.resize(bound, Vec::new());
        }
    }

    /// The number of a set, given in ascending order.
    pub(super) fn number(&mut self, set: Vec<u32>) -> u32 {
        if let Some(number) = self.numbers.get(&set) {
            return *number;
        }
        let number = self.members.len() as u32;
        for member in &set {
            self.holding[*member as usize].push(number);
        }
        self.members.push(set.clone());
        self.numbers.insert(set, number);
        number
    }

    /// A set's members, in ascending order.
    pub(super) fn members(&self, set: u32) -> &[u32] {
        &self.members[set as usize]
    }

    /// Numbers of the sets that hold a member.
    pub(super) fn holding(&self, member: u32) -> &[u32] {
        &self.holding[member as usize]
    }

    /// Whether a set holds any of these, which are in ascending order.
    pub(super) fn meets(&self, set: u32, others: &[u32]) -> bool {
        let set = &self.members[set as usize];
        let (few, many) = if set.len() < others.len() {
            (set.as_slice(), others)
        } else {
            (others, set.as_slice())
        };
        few.iter().any(|member| many.binary_search(member).is_ok())
    }

    /// How many sets there are.
    pub(super) fn len(&self) -> usize {
        self.members.len()
    }
}
