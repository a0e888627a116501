//! Members: pods and templates that have a place in the policy, by number. A number stays while the pod's name is there.

use std::{hash::BuildHasher, sync::Arc};

use hashbrown::{DefaultHashBuilder, HashTable};
use ringwall_policy::{ObjectKey, Pod};

use super::content::Sum;

/// A pod or template that is neither finished nor on the host network.
#[derive(Debug)]
pub(super) struct Member {
    pub pod: Arc<Pod>,
    /// Number of its combination of words.
    pub shape: u32,
    /// Its number in the image; [`ringwall_dataplane::classify::NONE`] before it was identified.
    pub endpoint: u32,
    /// Its identity apart from any address; None where its namespace has not been seen.
    pub identity: Option<u32>,
    /// Its cohort; None where its namespace has not been seen.
    pub cohort: Option<u32>,
    /// Whether the cohort is that of the state.
    pub attached: bool,
    /// Its place among the cohort's members.
    pub position: usize,
    /// How it was counted in the canonical hash.
    pub counted: Option<Counted>,
}

/// What the canonical hash holds of a member's name.
#[derive(Clone, Copy, Debug)]
pub(super) struct Counted {
    pub piece: Sum,
    /// Its class and its part among the rows; None where its namespace has not been seen.
    pub place: Option<(u32, u32)>,
}

/// All members.
#[derive(Debug, Default)]
pub(super) struct Members {
    members: Vec<Option<Member>>,
    free: Vec<u32>,
    by_name: HashTable<u32>,
    hasher: DefaultHashBuilder,
}

impl Members {
    pub(super) fn with_capacity(capacity: usize) -> Self {
        Self {
            members: Vec::with_capacity(capacity),
            by_name: HashTable::with_capacity(capacity),
            ..Self::default()
        }
    }

    pub(super) fn len(&self) -> usize {
        self.members.len() - self.free.len()
    }

    pub(super) fn get(&self, number: u32) -> Option<&Member> {
        self.members.get(number as usize)?.as_ref()
    }

    pub(super) fn get_mut(&mut self, number: u32) -> Option<&mut Member> {
        self.members.get_mut(number as usize)?.as_mut()
    }

    /// Numbers and members.
    pub(super) fn iter(&self) -> impl Iterator<Item = (u32, &Member)> {
        let all = self.members.iter().zip(0..);
        all.filter_map(|(member, number)| Some((number, member.as_ref()?)))
    }

    pub(super) fn find(&self, key: &ObjectKey) -> Option<u32> {
        let named = |number: &u32| self.get(*number).is_some_and(|member| member.pod.key == *key);
        self.by_name.find(self.hasher.hash_one(key), named).copied()
    }

    /// Adds a member whose name is new; answers its number.
    pub(super) fn insert(&mut self, member: Member) -> u32 {
        let hash = self.hasher.hash_one(&member.pod.key);
        let number = match self.free.pop() {
            Some(number) => {
                if let Some(place) = self.members.get_mut(number as usize) {
                    *place = Some(member);
                }
                number
            }
            None => {
                self.members.push(Some(member));
                self.members.len() as u32 - 1
            }
        };
        let Self {
            members,
            by_name,
            hasher,
            ..
        } = self;
        by_name.insert_unique(hash, number, |number| {
            let member = members.get(*number as usize).and_then(Option::as_ref);
            member.map_or(0, |member| hasher.hash_one(&member.pod.key))
        });
        number
    }

    pub(super) fn remove(&mut self, number: u32) -> Option<Member> {
        let hash = self.hasher.hash_one(&self.get(number)?.pod.key);
        if let Ok(entry) = self.by_name.find_entry(hash, |known| *known == number) {
            entry.remove();
        }
        self.free.push(number);
        self.members.get_mut(number as usize)?.take()
    }
}
