//! What is wrong with the objects of a source.

use std::sync::Arc;

use imbl::OrdMap;
use ringwall_messages::ObjectProblem;

use crate::kube::Reference;

/// What is wrong with objects. A clone costs a pointer: one goes with every state.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Problems {
    /// By object; under None those of a source that does not keep them by object.
    by_object: OrdMap<Option<Reference>, Arc<[ObjectProblem]>>,
}

impl Problems {
    /// Sets what is wrong with an object. Answers whether that is news.
    pub(super) fn set(&mut self, object: &Reference, problems: Vec<ObjectProblem>) -> bool {
        if problems.is_empty() {
            return self.remove(object);
        }
        let problems: Arc<[ObjectProblem]> = problems.into();
        let before = self.by_object.insert(Some(object.clone()), Arc::clone(&problems));
        before != Some(problems)
    }

    /// Nothing is wrong with an object any more. Answers whether that is news.
    pub(super) fn remove(&mut self, object: &Reference) -> bool {
        // Nearly always there is none, and nothing to look for.
        !self.by_object.is_empty() && self.by_object.remove(&Some(object.clone())).is_some()
    }

    /// The objects that something is wrong with.
    pub(super) fn objects(&self) -> impl Iterator<Item = &Reference> {
        self.by_object.keys().flatten()
    }

    /// Every problem, in the order of the objects.
    pub fn iter(&self) -> impl Iterator<Item = &ObjectProblem> {
        self.by_object.values().flat_map(|problems| problems.iter())
    }

    /// Whether all is well.
    pub fn is_empty(&self) -> bool {
        self.by_object.is_empty()
    }
}

impl FromIterator<ObjectProblem> for Problems {
    fn from_iter<I: IntoIterator<Item = ObjectProblem>>(problems: I) -> Self {
        let problems: Arc<[ObjectProblem]> = problems.into_iter().collect();
        let by_object = if problems.is_empty() {
            OrdMap::new()
        } else {
            OrdMap::unit(None, problems)
        };
        Self { by_object }
    }
}
