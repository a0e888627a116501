//! Sets of ends as whole classes and single ends more or less, each under a number: what they stand for is written out
//! only once, and only where somebody asks.

use std::sync::Arc;

use hashbrown::HashMap;

use super::{Ends, cells::Interner};

/// Number of a set of ends.
pub(super) type SetId = u32;

/// In normal form, so that equal sets are equal values: a class is in the list where more than half of it is there.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Set {
    /// Number of the list of classes.
    classes: u32,
    /// Ends of other classes, in order.
    added: Vec<u32>,
    /// Ends of those classes, in order.
    removed: Vec<u32>,
}

/// Sets of the ends of `N` clusters.
pub(super) struct Sets<'e, 'a, const N: usize> {
    ends: &'e Ends<'a, N>,
    /// Lists of classes, in order; 0 has none.
    lists: Interner<Vec<u32>>,
    sets: Interner<Set>,
}

impl<'e, 'a, const N: usize> Sets<'e, 'a, N> {
    pub(super) fn new(ends: &'e Ends<'a, N>) -> Self {
        let mut lists = Interner::new();
        lists.number(Vec::new());
        Self {
            ends,
            lists,
            sets: Interner::new(),
        }
    }

    /// Whole classes, in order; there is one.
    pub(super) fn whole(&mut self, classes: &[u32]) -> SetId {
        let classes = self.lists.number_of(classes);
        self.known(classes, Vec::new(), Vec::new())
    }

    /// Whole classes, in order, with ends of others and without some of theirs, in any order; None where nothing is left.
    pub(super) fn with(&mut self, classes: &[u32], added: Vec<u32>, removed: Vec<u32>) -> Option<SetId> {
        let list = self.lists.number_of(classes);
        self.normal(list, added, removed)
    }

    /// As [`Self::with`], of the classes of a set of whole ones; of none where there is no set.
    pub(super) fn but(&mut self, whole: Option<SetId>, added: Vec<u32>, removed: Vec<u32>) -> Option<SetId> {
        let list = whole
            .and_then(|set| self.sets.get(set))
            .map_or(0, |set| set.classes);
        self.normal(list, added, removed)
    }

    /// `added` are of classes that are not in the list, `removed` of those that are.
    fn normal(&mut self, mut list: u32, mut added: Vec<u32>, mut removed: Vec<u32>) -> Option<SetId> {
        added.sort_unstable();
        removed.sort_unstable();
        let few = self.mostly(&removed, |gone, all| gone < all - gone);
        let many = self.mostly(&added, |there, all| there <= all - there);
        if !few.is_empty() || !many.is_empty() {
            let classes = self.lists.get(list).into_iter().flatten();
            let kept = classes.filter(|class| !few.contains(class));
            let mut kept: Vec<u32> = kept.chain(&many).copied().collect();
            kept.sort_unstable();
            list = self.lists.number(kept).0;
            let (mut more, mut less) = (Vec::new(), Vec::new());
            for (classes, from, to) in [(&few, &mut removed, &mut more), (&many, &mut added, &mut less)] {
                for class in classes {
                    let members = self.ends.classes.get(*class as usize).map(|class| &class.members);
                    let others = members.into_iter().flatten().copied();
                    to.extend(others.filter(|end| from.binary_search(end).is_err()));
                }
                from.retain(|end| !self.class_of(*end).is_some_and(|class| classes.contains(&class)));
            }
            added.extend(more);
            removed.extend(less);
            added.sort_unstable();
            removed.sort_unstable();
        }
        (list != 0 || !added.is_empty()).then(|| self.known(list, added, removed))
    }

    /// The same ends but one of them; None where nothing is left.
    pub(super) fn without(&mut self, set: SetId, end: u32) -> Option<SetId> {
        let Set {
            classes,
            mut added,
            mut removed,
        } = self.sets.get(set)?.clone();
        match added.binary_search(&end) {
            Ok(at) => {
                added.remove(at);
            }
            Err(_) => removed.push(end),
        }
        self.normal(classes, added, removed)
    }

    /// The same ends and others, in any order.
    pub(super) fn and(&mut self, set: SetId, others: Vec<u32>) -> SetId {
        let Some(Set {
            classes,
            mut added,
            mut removed,
        }) = self.sets.get(set).cloned()
        else {
            return set;
        };
        for end in others.into_iter().filter(|end| !self.holds(set, *end)) {
            match removed.binary_search(&end) {
                Ok(at) => {
                    removed.remove(at);
                }
                Err(_) => added.push(end),
            }
        }
        self.normal(classes, added, removed).unwrap_or(set)
    }

    /// The only end of a set that has one.
    pub(super) fn only(&self, set: SetId) -> Option<u32> {
        let Set {
            classes,
            added,
            removed,
        } = self.sets.get(set)?;
        let mut one = None;
        for class in self.lists.get(*classes)? {
            let members = &self.ends.classes.get(*class as usize)?.members;
            for end in members {
                if removed.binary_search(end).is_err() && one.replace(*end).is_some() {
                    return None;
                }
            }
        }
        for end in added {
            if one.replace(*end).is_some() {
                return None;
            }
        }
        one
    }

    /// Whether an end is in a set.
    pub(super) fn holds(&self, set: SetId, end: u32) -> bool {
        let (Some(set), Some(class)) = (self.sets.get(set), self.class_of(end)) else {
            return false;
        };
        let classes = self.lists.get(set.classes);
        match classes.is_some_and(|classes| classes.binary_search(&class).is_ok()) {
            true => set.removed.binary_search(&end).is_err(),
            false => set.added.binary_search(&end).is_ok(),
        }
    }

    /// The ends of every set that is asked about, in order; equal sets share their list.
    pub(super) fn written_out(&self, wanted: impl Iterator<Item = SetId>) -> HashMap<SetId, Arc<[u32]>> {
        let mut out = HashMap::new();
        // Marking and collecting takes a pass over the ends; sorting many runs takes several.
        let mut there = vec![false; self.ends.all.len()];
        for set in wanted {
            out.entry(set)
                .or_insert_with(|| self.write_out(set, &mut there).into());
        }
        out
    }

    fn write_out(&self, set: SetId, there: &mut [bool]) -> Vec<u32> {
        let Some(set) = self.sets.get(set) else {
            return Vec::new();
        };
        let classes = self.lists.get(set.classes).into_iter().flatten();
        let members = classes.filter_map(|class| self.ends.classes.get(*class as usize));
        let mut mark = |end: &u32, is: bool| {
            if let Some(there) = there.get_mut(*end as usize) {
                *there = is;
            }
        };
        let mut count = 0;
        let (mut first, mut last) = (u32::MAX, 0);
        for class in members {
            count += class.members.len();
            // Members are in order.
            first = first.min(class.members.first().copied().unwrap_or(first));
            last = last.max(class.members.last().copied().unwrap_or(last));
            class.members.iter().for_each(|end| mark(end, true));
        }
        set.removed.iter().for_each(|end| mark(end, false));
        for end in &set.added {
            count += 1;
            first = first.min(*end);
            last = last.max(*end);
            mark(end, true);
        }
        let mut out = Vec::with_capacity(count);
        let reach = there.get_mut(first as usize..=last as usize).unwrap_or_default();
        for (there, end) in reach.iter_mut().zip(first..) {
            if std::mem::take(there) {
                out.push(end);
            }
        }
        out
    }

    fn known(&mut self, classes: u32, added: Vec<u32>, removed: Vec<u32>) -> SetId {
        let (number, _) = self.sets.number(Set {
            classes,
            added,
            removed,
        });
        number
    }

    fn class_of(&self, end: u32) -> Option<u32> {
        self.ends.all.get(end as usize).map(|end| end.class)
    }

    /// The classes of ends that are not `normal` as to how many of the class are there and how many it has.
    fn mostly(&self, list: &[u32], normal: impl Fn(usize, usize) -> bool) -> Vec<u32> {
        if list.is_empty() {
            return Vec::new();
        }
        let mut counts: HashMap<u32, usize> = HashMap::new();
        for class in list.iter().filter_map(|end| self.class_of(*end)) {
            *counts.entry(class).or_default() += 1;
        }
        counts.retain(|class, count| {
            let class = self.ends.classes.get(*class as usize);
            class.is_some_and(|class| !normal(*count, class.members.len()))
        });
        counts.into_keys().collect()
    }
}
