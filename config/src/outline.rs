//! Where in the text each key and value stands.
//!
//! The file is read twice: into [`crate::raw::Raw`] for what it says, and into an outline for where it says it, so that
//! an error found by validation can still show its line.

use std::fmt;

use serde::{
    Deserialize, Deserializer,
    de::{MapAccess, SeqAccess, Visitor},
};
use serde_saphyr::{Location, Spanned};

/// A document with every position.
pub(crate) struct Outline(Spanned<Node>);

enum Node {
    Map(Vec<(Spanned<String>, Spanned<Node>)>),
    Seq(Vec<Spanned<Node>>),
    Scalar,
}

impl Outline {
    /// Reads the positions of a document.
    ///
    /// # Errors
    /// The document is no YAML, or has a key twice.
    pub(crate) fn read(text: &str) -> Result<Self, serde_saphyr::Error> {
        serde_saphyr::from_str(text).map(Self)
    }

    /// Position of the key at a path such as `interfaces[1].name`, or of the nearest part of the path that exists.
    pub(crate) fn find(&self, path: &str) -> Option<Location> {
        let mut node = &self.0;
        let mut found = None;
        for step in path.split(['.', '[']).map(|step| step.trim_end_matches(']')) {
            let next = match &node.value {
                Node::Map(entries) => entries
                    .iter()
                    .find(|(key, _)| key.value == step)
                    .map(|(key, value)| (key.referenced, value)),
                Node::Seq(items) => step
                    .parse::<usize>()
                    .ok()
                    .and_then(|index| items.get(index))
                    .map(|item| (item.referenced, item)),
                Node::Scalar => None,
            };
            let Some((location, value)) = next else { break };
            found = Some(location);
            node = value;
        }
        found
    }

    /// Path of the key or scalar that begins at a position.
    pub(crate) fn path_at(&self, line: u64, column: u64) -> Option<String> {
        fn walk(node: &Spanned<Node>, path: &str, at: (u64, u64)) -> Option<String> {
            let position = |location: Location| (location.line(), location.column());
            match &node.value {
                Node::Map(entries) => entries.iter().find_map(|(key, value)| {
                    let path = if path.is_empty() {
                        key.value.clone()
                    } else {
                        format!("{path}.{}", key.value)
                    };
                    if position(key.referenced) == at
                        || (position(value.referenced) == at && matches!(value.value, Node::Scalar))
                    {
                        return Some(path);
                    }
                    walk(value, &path, at)
                }),
                Node::Seq(items) => items.iter().enumerate().find_map(|(index, item)| {
                    let path = format!("{path}[{index}]");
                    if position(item.referenced) == at && matches!(item.value, Node::Scalar) {
                        return Some(path);
                    }
                    walk(item, &path, at)
                }),
                Node::Scalar => None,
            }
        }
        walk(&self.0, "", (line, column))
    }
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct NodeVisitor;

        impl<'de> Visitor<'de> for NodeVisitor {
            type Value = Node;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("any YAML")
            }

            fn visit_bool<E>(self, _: bool) -> Result<Node, E> {
                Ok(Node::Scalar)
            }
            fn visit_i64<E>(self, _: i64) -> Result<Node, E> {
                Ok(Node::Scalar)
            }
            fn visit_u64<E>(self, _: u64) -> Result<Node, E> {
                Ok(Node::Scalar)
            }
            fn visit_i128<E>(self, _: i128) -> Result<Node, E> {
                Ok(Node::Scalar)
            }
            fn visit_u128<E>(self, _: u128) -> Result<Node, E> {
                Ok(Node::Scalar)
            }
            fn visit_f64<E>(self, _: f64) -> Result<Node, E> {
                Ok(Node::Scalar)
            }
            fn visit_str<E>(self, _: &str) -> Result<Node, E> {
                Ok(Node::Scalar)
            }
            fn visit_unit<E>(self) -> Result<Node, E> {
                Ok(Node::Scalar)
            }
            fn visit_none<E>(self) -> Result<Node, E> {
                Ok(Node::Scalar)
            }
            fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Node, D::Error> {
                Node::deserialize(deserializer)
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Node, A::Error> {
                let mut items = Vec::new();
                while let Some(item) = access.next_element()? {
                    items.push(item);
                }
                Ok(Node::Seq(items))
            }
            fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Node, A::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = access.next_entry()? {
                    entries.push(entry);
                }
                Ok(Node::Map(entries))
            }
        }

        deserializer.deserialize_any(NodeVisitor)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)] // tests
mod tests {
    use super::*;

    #[test]
    fn paths_lead_to_keys_and_back() {
        let outline = Outline::read("a: 1\nb:\n  - {c: x, d: ~}\n  - c: [1, 2]\n").unwrap();
        let at = |path| {
            outline
                .find(path)
                .map(|location| (location.line(), location.column()))
        };
        assert_eq!(at("a"), Some((1, 1)));
        assert_eq!(at("b[0].d"), Some((3, 12)));
        assert_eq!(at("b[1].c[1]"), Some((4, 12)));
        assert_eq!(at("b[1].missing"), Some((4, 5)), "the nearest part that exists");
        assert_eq!(at("missing"), None);
        assert_eq!(outline.path_at(3, 12).as_deref(), Some("b[0].d"));
        assert_eq!(outline.path_at(4, 12).as_deref(), Some("b[1].c[1]"));
        assert_eq!(outline.path_at(9, 1), None);
    }
}
