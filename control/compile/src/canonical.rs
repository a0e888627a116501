//! The canonical hash, kept up to date.
//!
//! A sum of hashes over contents, whatever their numbers: of each class what it is and who is in it (names, addresses,
//! ranges), of each pair of rows what they say and whose they are. So what a pod is costs as much as the pod, and what
//! a class is as much as a class, however many there are of both.

use hashbrown::HashMap;

use super::content::{Content, Digest, Sum};

/// Things by what they are, each with the sum of its members.
#[derive(Debug)]
pub(super) struct MultisetSums {
    of: &'static str,
    parts: Vec<Part>,
    by_content: HashMap<Content, u32>,
    changed: Vec<u32>,
    total: Sum,
}

#[derive(Debug)]
struct Part {
    content: Content,
    members: Members,
    /// What the total holds of it.
    counted: Sum,
    changed: bool,
}

/// Members of a part: the sum of their contents, and how many they are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Members {
    sum: Sum,
    pub count: u32,
}

impl Members {
    pub(super) fn add(&mut self, piece: &Sum) {
        self.sum.add(piece);
        self.count += 1;
    }

    pub(super) fn remove(&mut self, piece: &Sum) {
        self.sum.subtract(piece);
        self.count -= 1;
    }
}

impl MultisetSums {
    pub(super) fn new(of: &'static str) -> Self {
        Self {
            of,
            parts: Vec::new(),
            by_content: HashMap::new(),
            changed: Vec::new(),
            total: Sum::default(),
        }
    }

    /// The part that is `content`.
    pub(super) fn part(&mut self, content: Content) -> u32 {
        *self.by_content.entry(content).or_insert_with(|| {
            self.parts.push(Part {
                content,
                members: Members::default(),
                counted: Sum::default(),
                changed: false,
            });
            self.parts.len() as u32 - 1
        })
    }

    fn change(&mut self, part: u32, change: impl FnOnce(&mut Members)) {
        let Some(known) = self.parts.get_mut(part as usize) else {
            return;
        };
        change(&mut known.members);
        if !known.changed {
            known.changed = true;
            self.changed.push(part);
        }
    }

    /// Adds a member to a part.
    pub(super) fn add(&mut self, part: u32, piece: &Sum) {
        self.change(part, |members| members.add(piece));
    }

    /// Removes a member of a part.
    pub(super) fn remove(&mut self, part: u32, piece: &Sum) {
        self.change(part, |members| members.remove(piece));
    }

    /// Moves members from one part to another.
    pub(super) fn shift(&mut self, from: u32, to: u32, moved: &Members) {
        self.change(from, |members| {
            members.sum.subtract(&moved.sum);
            members.count -= moved.count;
        });
        self.change(to, |members| {
            members.sum.add(&moved.sum);
            members.count += moved.count;
        });
    }

    /// The sum over all parts that have members.
    pub(super) fn total(&mut self) -> Sum {
        for part in std::mem::take(&mut self.changed) {
            let Some(part) = self.parts.get_mut(part as usize) else {
                continue;
            };
            part.changed = false;
            self.total.subtract(&part.counted);
            part.counted = Sum::default();
            if part.members.count > 0 {
                let mut digest = Digest::new(self.of);
                digest.content(&part.content);
                digest.number(u64::from(part.members.count));
                part.members.sum.digest(&mut digest);
                part.counted = Sum::of(&digest.finish());
            }
            self.total.add(&part.counted);
        }
        self.total
    }
}
