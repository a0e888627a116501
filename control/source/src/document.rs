//! YAML and JSON text as generic values that remember their lines.

use std::fmt;

use serde::{
    Deserialize, Deserializer,
    de::{MapAccess, SeqAccess, Visitor},
};
use serde_json::{Map, Number, Value};

use super::{
    decode::{item, join},
    yaml,
};

/// Text that is neither YAML nor JSON, or not what is wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SyntaxError {
    /// Line, from 1.
    pub line: Option<u64>,
    /// What is wrong.
    pub message: String,
    /// What the parser alone takes for wrong.
    pub(crate) indentation: Option<yaml::Indentation>,
}

/// One document of a file.
pub(crate) struct Document {
    root: Located,
}

#[derive(Clone)]
pub(super) struct Located {
    /// Where the value begins.
    pub(super) place: Position,
    pub(super) node: Node,
    /// A scalar that is no string to YAML, as it is written.
    pub(super) written: Option<Box<str>>,
}

/// A place in the file.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Position {
    /// Line, from 1; 0 where unknown.
    pub(super) line: u64,
    /// Column, from 1; 0 where unknown.
    column: u64,
    /// Characters.
    length: u64,
}

impl Position {
    /// Where an event begins.
    pub(super) fn of(span: &granit_parser::Span) -> Self {
        Self {
            line: span.start.line() as u64,
            column: span.start.col() as u64 + 1,
            length: span.len() as u64,
        }
    }
}

/// Where a field stands: what to point at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Spot {
    /// Line, from 1.
    pub(super) line: u64,
    /// Column of the first character, from 1.
    pub(super) column: u64,
    /// Characters from there, all on this line as far as the place is a key or a plain value.
    pub(super) length: u64,
}

#[derive(Clone)]
pub(super) enum Node {
    Scalar(Value),
    List(Vec<Located>),
    Mapping(Vec<Entry>),
}

#[derive(Clone)]
pub(super) struct Entry {
    pub(super) key: String,
    pub(super) place: Position,
    pub(super) value: Located,
    /// The key as it is written, where it is no string to YAML.
    pub(super) written: Option<Box<str>>,
}

/// Splits a file into its documents. `json` also accepts what only a JSON parser can read (tabs, documents one after
/// the other without a separator), without lines.
pub(crate) fn parse(text: &str, json: bool) -> Result<Vec<Document>, SyntaxError> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    match yaml::load(text) {
        Ok(roots) => Ok(roots
            .into_iter()
            .filter(|root| !matches!(&root.node, Node::Scalar(Value::Null)))
            .map(|root| Document { root })
            .collect()),
        Err(error) if !json => Err(error),
        Err(_) => serde_json::Deserializer::from_str(text)
            .into_iter::<Child>()
            .map(|child| child.map(|Child(root)| Document { root }))
            .collect::<Result<_, _>>()
            .map_err(|error| SyntaxError {
                line: Some(error.line() as u64),
                message: plain(&error.to_string()),
                indentation: None,
            }),
    }
}

fn plain(text: &str) -> String {
    text.split(" at line ").next().unwrap_or_default().to_owned()
}

impl From<&serde_saphyr::Error> for SyntaxError {
    /// The parser's words without the place, and without advice for programmers.
    fn from(error: &serde_saphyr::Error) -> Self {
        let text = error.without_snippet().to_string();
        let text = plain(text.lines().next().unwrap_or_default());
        Self {
            line: error.location().map(|location| location.line()),
            message: text
                .split(", set DuplicateKeyPolicy")
                .next()
                .unwrap_or_default()
                .to_owned(),
            indentation: None,
        }
    }
}

/// The value of a text that is one YAML document, as manifests are read; None where it is not.
pub fn only_value(text: &str) -> Option<Value> {
    match parse(text, false).ok()?.as_slice() {
        [only] => Some(only.value()),
        _ => None,
    }
}

impl Document {
    /// The value without lines.
    pub(super) fn value(&self) -> Value {
        self.root.value()
    }

    /// Line where the document's content begins.
    pub(super) fn line(&self) -> Option<u64> {
        Some(self.root.place.line).filter(|line| *line != 0)
    }

    /// Keys and values of labels below a path that are no text to YAML: where, and what is to be said of it.
    pub(super) fn odd_labels(&self, prefix: &str) -> Vec<(String, String)> {
        let mut found = Vec::new();
        if let Some(root) = self.root.at("", prefix) {
            root.odd_labels(prefix, false, &mut found);
        }
        found
    }

    /// The text of a scalar that is no text to YAML.
    pub(super) fn written(&self, path: &str) -> Option<&str> {
        self.root.at("", path)?.written.as_deref()
    }

    /// The value of a field.
    pub(super) fn value_at(&self, path: &str) -> Option<Value> {
        self.root.at("", path).map(Located::value)
    }

    /// Line of a field; of the nearest field around it that exists where it does not.
    pub(super) fn line_of(&self, path: &str) -> Option<u64> {
        self.spot(path).map(|spot| spot.line)
    }

    /// Where a field stands, or the nearest field around it: its plain value, or the key of a list or mapping.
    pub(super) fn spot(&self, path: &str) -> Option<Spot> {
        let mut best = self.root.place;
        self.root.find("", path, &mut best);
        (best.line != 0).then_some(Spot {
            line: best.line,
            column: best.column.max(1),
            length: best.length.max(1),
        })
    }
}

impl Located {
    fn bare(node: Node) -> Self {
        Self {
            place: Position::default(),
            node,
            written: None,
        }
    }

    /// The subtree of a path; itself for the empty one.
    fn at(&self, at: &str, wanted: &str) -> Option<&Self> {
        if at == wanted {
            return Some(self);
        }
        let inside = |here: &str| {
            wanted
                .strip_prefix(here)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
        };
        match &self.node {
            Node::Scalar(_) => None,
            Node::List(items) => {
                let index = next_index(at, wanted)?;
                items.get(index)?.at(&item(at, index), wanted)
            }
            Node::Mapping(entries) => entries.iter().find_map(|entry| {
                let here = join(at, &entry.key);
                inside(&here).then(|| entry.value.at(&here, wanted)).flatten()
            }),
        }
    }

    pub(super) fn value(&self) -> Value {
        match &self.node {
            Node::Scalar(value) => value.clone(),
            Node::List(items) => Value::Array(items.iter().map(Self::value).collect()),
            Node::Mapping(entries) => Value::Object(
                entries
                    .iter()
                    .map(|entry| (entry.key.clone(), entry.value.value()))
                    .collect::<Map<_, _>>(),
            ),
        }
    }

    /// `labels`: whether it is a mapping of labels.
    fn odd_labels(&self, at: &str, labels: bool, found: &mut Vec<(String, String)>) {
        match &self.node {
            Node::Scalar(_) => {}
            Node::List(items) => {
                for (index, value) in items.iter().enumerate() {
                    value.odd_labels(&item(at, index), false, found);
                }
            }
            Node::Mapping(entries) => {
                for entry in entries {
                    let here = join(at, &entry.key);
                    let kind = |value: &Value| match value {
                        Value::Bool(_) => "a boolean",
                        _ => "a number",
                    };
                    if labels && let Some(written) = &entry.written {
                        let message = format!(
                            "YAML reads the key {written} as {}, and it becomes {:?}: put it in quotes if it is to be {written}",
                            if matches!(&*entry.key, "true" | "false") {
                                "a boolean"
                            } else {
                                "a number"
                            },
                            entry.key
                        );
                        found.push((here.clone(), message));
                    }
                    if labels
                        && let (Some(written), Node::Scalar(value)) =
                            (&entry.value.written, &entry.value.node)
                        && !value.is_null()
                    {
                        let message = format!(
                            "YAML reads {written} as {}, and an API server takes only text: write {:?}",
                            kind(value),
                            written
                        );
                        found.push((here.clone(), message));
                    }
                    let in_metadata = at == "metadata" || at.ends_with(".metadata");
                    let labels = entry.key == "matchLabels" || entry.key == "labels" && in_metadata;
                    entry.value.odd_labels(&here, labels, found);
                }
            }
        }
    }

    /// Values in it, itself included.
    pub(super) fn size(&self) -> usize {
        1 + match &self.node {
            Node::Scalar(_) => 0,
            Node::List(items) => items.iter().map(Self::size).sum(),
            Node::Mapping(entries) => entries.iter().map(|entry| entry.value.size()).sum(),
        }
    }

    fn find(&self, at: &str, wanted: &str, best: &mut Position) {
        let mut step = |here: String, place: Position, value: &Self| {
            let rest = wanted.strip_prefix(here.as_str());
            if rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '['])) {
                *best = place;
                value.find(&here, wanted, best);
            }
        };
        match &self.node {
            Node::Scalar(_) => {}
            Node::List(items) => {
                if let Some((index, value)) = next_index(at, wanted).and_then(|it| Some((it, items.get(it)?)))
                {
                    step(item(at, index), value.beginning(), value);
                }
            }
            Node::Mapping(entries) => {
                for entry in entries {
                    // A plain value says more than its key; a list or mapping has no extent of its own to point at.
                    let place = match &entry.value.node {
                        Node::Scalar(value)
                            if !value.is_null() && entry.value.place.line == entry.place.line =>
                        {
                            entry.value.place
                        }
                        _ => entry.place,
                    };
                    step(join(at, &entry.key), place, &entry.value);
                }
            }
        }
    }

    /// What to point at for an entry of a list: its first key, or its value.
    fn beginning(&self) -> Position {
        match &self.node {
            Node::Mapping(entries) => entries.first().map_or(self.place, |entry| entry.place),
            Node::Scalar(_) | Node::List(_) => self.place,
        }
    }
}

/// The index that a path goes on with below `at`: a list may have a hundred thousand entries.
fn next_index(at: &str, wanted: &str) -> Option<usize> {
    let (index, _) = wanted.strip_prefix(at)?.strip_prefix('[')?.split_once(']')?;
    index.parse().ok()
}

/// A value of JSON text, without places.
struct Child(Located);

impl<'de> Deserialize<'de> for Child {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(TreeVisitor)
    }
}

struct TreeVisitor;

impl TreeVisitor {
    fn scalar(value: Value) -> Child {
        Child(Located::bare(Node::Scalar(value)))
    }
}

impl<'de> Visitor<'de> for TreeVisitor {
    type Value = Child;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Child, E> {
        Ok(Self::scalar(Value::Null))
    }

    fn visit_bool<E>(self, value: bool) -> Result<Child, E> {
        Ok(Self::scalar(Value::Bool(value)))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Child, E> {
        Ok(Self::scalar(Value::Number(value.into())))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Child, E> {
        Ok(Self::scalar(Value::Number(value.into())))
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<Child, E> {
        let number = Number::from_f64(value).ok_or_else(|| E::custom("a number that is not finite"))?;
        Ok(Self::scalar(Value::Number(number)))
    }

    fn visit_str<E>(self, value: &str) -> Result<Child, E> {
        Ok(Self::scalar(Value::String(value.to_owned())))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Child, A::Error> {
        let mut items = Vec::new();
        while let Some(value) = access.next_element::<Child>()? {
            items.push(value.0);
        }
        Ok(Child(Located::bare(Node::List(items))))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Child, A::Error> {
        let mut entries: Vec<Entry> = Vec::new();
        let mut seen = std::collections::HashSet::new();
        while let Some(key) = access.next_key::<String>()? {
            let Child(value) = access.next_value::<Child>()?;
            if !seen.insert(key.clone()) {
                return Err(serde::de::Error::custom(format!(
                    "the key {key:?} is listed twice"
                )));
            }
            entries.push(Entry {
                key,
                place: Position::default(),
                value,
                written: None,
            });
        }
        Ok(Child(Located::bare(Node::Mapping(entries))))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may stop at the first surprise")]

    use super::*;

    fn one(text: &str) -> Document {
        let mut documents = parse(text, false).unwrap();
        assert_eq!(documents.len(), 1);
        documents.remove(0)
    }

    #[test]
    fn lines_count_through_the_whole_file() {
        let text = "# comment\n---\na: 1\n---\n\nb:\n  c:\n  - x\n  - d: true\n---\n# nothing\n";
        let documents = parse(text, false).unwrap();
        assert_eq!(documents.len(), 2);
        assert_eq!(documents[0].line_of("a"), Some(3));
        assert_eq!(documents[1].line(), Some(6));
        assert_eq!(documents[1].line_of("b.c[1].d"), Some(9));
        assert_eq!(documents[1].line_of("b.c[1].absent.deeper"), Some(9));
        assert_eq!(documents[1].line_of("b.c"), Some(7));
    }

    #[test]
    fn scalars_are_what_an_api_server_would_see() {
        let value =
            one("a: 80\nb: '80'\nc: yes\nd: ~\ne:\nf: 1.5\ng: 010\nh: 2024-01-01T00:00:00Z\n1: x\ni: 0x10\n'true': 'n'\nj: ''")
                .value();
        let text = value.to_string();
        insta::assert_snapshot!(text, @r#"{"a":80,"b":"80","c":true,"d":null,"e":null,"f":1.5,"g":8,"h":"2024-01-01T00:00:00Z","1":"x","i":16,"true":"n","j":""}"#);
    }

    #[test]
    fn what_an_alias_stands_for_is_read_like_the_original() {
        let value = one("a: &a {app: y, n: 010, o: 010.5}\nb: *a\nc: {<<: *a}\nd: [&d y, *d]\n").value();
        let text = value.to_string();
        insta::assert_snapshot!(text, @r#"{"a":{"app":true,"false":8,"o":10.5},"b":{"app":true,"false":8,"o":10.5},"c":{"app":true,"false":8,"o":10.5},"d":[true,true]}"#);
    }

    #[test]
    fn a_key_that_stands_there_twice_is_an_error_with_its_line() {
        let error = parse("a: 1\nb: 2\na: 3\n", false).err().unwrap();
        assert_eq!(error.line, Some(3), "{}", error.message);
        assert!(error.message.contains("duplicate"), "{}", error.message);
        let error = parse("{\"a\": 1,\n\t\"a\": 2}", true).err().unwrap();
        assert!(
            error.message.contains("twice") || error.message.contains("duplicate"),
            "{}",
            error.message
        );
    }

    #[test]
    fn syntax_errors_have_a_line() {
        let error = parse("a: 1\nb: [1,\nc: {", false).err().unwrap();
        assert!(error.line.is_some(), "{}", error.message);
    }

    #[test]
    fn json_with_tabs_and_several_documents_is_read() {
        let documents = parse("{\n\t\"a\": [1, \"x\\u0041\"]\n}\n{\"b\": null}", true).unwrap();
        let values: Vec<_> = documents
            .iter()
            .map(|document| document.value().to_string())
            .collect();
        assert_eq!(values, [r#"{"a":[1,"xA"]}"#, r#"{"b":null}"#]);
    }

    #[test]
    fn anchors_and_merge_keys_work_but_do_not_explode() {
        assert_eq!(
            one("x: &a {k: v}\nz:\n  <<: *a\n  l: w\n").value()["z"].to_string(),
            r#"{"k":"v","l":"w"}"#
        );
        let mut bomb = String::from("a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n");
        for n in 1..12 {
            let prev = n - 1;
            let list = vec![format!("*a{prev}"); 10].join(",");
            bomb.push_str(&format!("a{n}: &a{n} [{list}]\n"));
        }
        assert!(parse(&bomb, false).is_err());
    }
}
