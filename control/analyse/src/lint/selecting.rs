//! Selectors and labels: matching, words, and labels that satisfy a selector.

pub(super) use ringwall_evaluate::{holds, selects as matches};
use ringwall_policy::{Labels, Operator, Requirement, Selector};

pub(super) use crate::explain::conditions::labels_words as label_words;
use crate::explain::conditions::requirement_words;

/// `app=web, tier in (a, b)`.
pub(super) fn words(selector: &Selector) -> String {
    if selector.requirements.is_empty() {
        return "any labels".to_owned();
    }
    let words: Vec<String> = selector.requirements.iter().map(requirement_words).collect();
    words.join(", ")
}

/// Adds the labels that a selector asks for to `labels`, the fewest that will do. They satisfy it unless it contradicts
/// itself or what was there before.
pub(super) fn satisfy(selector: &Selector, labels: &mut Labels) {
    for Requirement { key, operator } in &selector.requirements {
        if let Operator::In(values) = operator
            && let Some(value) = values.first()
            && !labels.get(key).is_some_and(|value| values.contains(value))
        {
            labels.insert(key.clone(), value.clone());
        }
    }
    for Requirement { key, operator } in &selector.requirements {
        if matches!(operator, Operator::Exists) && !labels.contains_key(key) {
            labels.insert(key.clone(), "any".to_owned());
        }
    }
}

/// The keys that a selector wants to be absent or different, and never asks to be there.
pub(super) fn keys_not_in(selector: &Selector) -> Vec<&str> {
    let asked = |key: &str| {
        selector
            .requirements
            .iter()
            .any(|it| it.key == key && matches!(it.operator, Operator::In(_) | Operator::Exists))
    };
    selector
        .requirements
        .iter()
        .filter(|it| matches!(it.operator, Operator::NotIn(_)) && !asked(&it.key))
        .map(|it| it.key.as_str())
        .collect()
}
