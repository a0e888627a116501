//! YAML and JSON text as generic values that remember their lines.

use std::fmt;

use serde::{
    Deserialize, Deserializer,
    de::{MapAccess, SeqAccess, Visitor},
};
use serde_json::{Map, Number, Value};
use serde_saphyr::{Location, Spanned};

use super::decode::{item, join};

/// Text that is neither YAML nor JSON, or not what is wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SyntaxError {
    /// Line, from 1.
    pub(crate) line: Option<u64>,
    /// What is wrong.
    pub(crate) message: String,
}

/// One document of a file.
pub(super) struct Document {
    root: Located,
}

struct Located {
    /// Where the value begins.
    place: Place,
    node: Node,
}

/// A place in the file.
#[derive(Clone, Copy, Default)]
struct Place {
    /// Line, from 1; 0 where unknown.
    line: u64,
    /// Column, from 1; 0 where unknown.
    column: u64,
    /// Characters.
    length: u64,
    /// Byte of the text that it was read from, from 0.
    byte: Option<u64>,
}

impl<T> From<&Spanned<T>> for Place {
    /// What an alias stands for is pointed at where the alias is, and read where it is written.
    fn from(value: &Spanned<T>) -> Self {
        let location: Location = value.referenced;
        Self {
            line: location.line(),
            column: location.column(),
            length: location.span().len(),
            byte: value.defined.span().byte_offset(),
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

enum Node {
    Scalar(Value),
    List(Vec<Located>),
    Mapping(Vec<Entry>),
}

struct Entry {
    key: String,
    place: Place,
    value: Located,
}

/// Splits a file into its documents. `json` also accepts what only a JSON parser can read (tabs, documents one after
/// the other without a separator), without lines.
pub(super) fn parse(text: &str, json: bool) -> Result<Vec<Document>, SyntaxError> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut budget = serde_saphyr::Budget::default();
    // A folder may hold a dump of a whole cluster in one file; what is bounded is amplification, by the alias limits.
    budget.max_events = usize::MAX;
    budget.max_nodes = usize::MAX;
    budget.max_documents = usize::MAX;
    budget.max_total_scalar_bytes = usize::MAX;
    budget.max_total_comment_bytes = usize::MAX;
    let mut options = serde_saphyr::Options::default();
    options.budget = Some(budget);
    options.with_snippet = false;
    options.alias_limits.max_total_replayed_events = 100_000;
    match serde_saphyr::from_multiple_with_options::<Child<true>>(text, options) {
        Ok(roots) => Ok(roots
            .into_iter()
            .map(|Child(mut root)| {
                root.read_as_written(text);
                Document { root }
            })
            .collect()),
        Err(error) if !json => Err(SyntaxError::from(&error)),
        Err(_) => serde_json::Deserializer::from_str(text)
            .into_iter::<Child<false>>()
            .map(|child| child.map(|Child(root)| Document { root }))
            .collect::<Result<_, _>>()
            .map_err(|error| SyntaxError {
                line: Some(error.line() as u64),
                message: plain(&error.to_string()),
            }),
    }
}

impl From<&serde_saphyr::Error> for SyntaxError {
    /// The parser's words without the place, and without advice for programmers.
    fn from(error: &serde_saphyr::Error) -> Self {
        let text = error.without_snippet().to_string();
        Self {
            line: error.location().map(|location| location.line()),
            message: plain(text.lines().next().unwrap_or_default()),
        }
    }
}

fn plain(text: &str) -> String {
    let text = text.split(" at line ").next().unwrap_or_default();
    text.split(", set DuplicateKeyPolicy")
        .next()
        .unwrap_or_default()
        .to_owned()
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

    fn value(&self) -> Value {
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

    /// Puts right where the parser and Kubernetes part. YAML 1.1 reads a plain `y` or `n` as a boolean, and so does the parser. Most writers of YAML do not quote the
    /// two and Kubernetes has names of one letter, so they stay what they look like. `yes`, `no`, `on` and `off` are
    /// booleans for an API server too. A number with a leading zero is octal for it.
    fn read_as_written(&mut self, text: &str) {
        let word = |place: Place| {
            let rest = text.get(usize::try_from(place.byte?).ok()?..)?;
            rest.split(|c: char| !c.is_ascii_alphanumeric() && c != '.')
                .next()
        };
        let letter = |place| {
            word(place)
                .filter(|word| matches!(*word, "y" | "Y" | "n" | "N"))
                .map(str::to_owned)
        };
        match &mut self.node {
            Node::Scalar(value) => {
                if value.is_boolean()
                    && let Some(word) = letter(self.place)
                {
                    *value = Value::String(word);
                } else if value.is_f64()
                    && let Some(digits) = word(self.place).and_then(|word| word.strip_prefix('0'))
                    && let Ok(number) = u64::from_str_radix(digits, 8)
                {
                    *value = Value::Number(number.into());
                }
            }
            Node::List(items) => items.iter_mut().for_each(|value| value.read_as_written(text)),
            Node::Mapping(entries) => {
                for entry in entries {
                    if matches!(entry.key.as_str(), "true" | "false")
                        && let Some(word) = letter(entry.place)
                    {
                        entry.key = word;
                    }
                    entry.value.read_as_written(text);
                }
            }
        }
    }

    fn find(&self, at: &str, wanted: &str, best: &mut Place) {
        let mut step = |here: String, place: Place, value: &Self| {
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
    fn beginning(&self) -> Place {
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

/// A value as it is deserialized. `LINES` says whether the parser knows places: only [`serde_saphyr`] does, and
/// asking another one for them would confuse a mapping that has a key called `value`.
struct Child<const LINES: bool>(Located);

impl<'de, const LINES: bool> Deserialize<'de> for Child<LINES> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        if LINES {
            let spanned = Spanned::<Tree<LINES>>::deserialize(deserializer)?;
            Ok(Self(Located {
                place: Place::from(&spanned),
                node: spanned.value.0,
            }))
        } else {
            let Tree(node) = Tree::<LINES>::deserialize(deserializer)?;
            Ok(Self(Located {
                place: Place::default(),
                node,
            }))
        }
    }
}

/// A value without a place of its own.
struct Tree<const LINES: bool>(Node);

impl<'de, const LINES: bool> Deserialize<'de> for Tree<LINES> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(TreeVisitor::<LINES>)
    }
}

struct TreeVisitor<const LINES: bool>;

impl<'de, const LINES: bool> Visitor<'de> for TreeVisitor<LINES> {
    type Value = Tree<LINES>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a YAML value")
    }

    fn visit_unit<E>(self) -> Result<Self::Value, E> {
        Ok(Tree(Node::Scalar(Value::Null)))
    }

    fn visit_none<E: serde::de::Error>(self) -> Result<Self::Value, E> {
        self.visit_unit()
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        Tree::deserialize(deserializer)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Self::Value, E> {
        Ok(Tree(Node::Scalar(Value::Bool(value))))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Self::Value, E> {
        Ok(Tree(Node::Scalar(Value::Number(value.into()))))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Self::Value, E> {
        Ok(Tree(Node::Scalar(Value::Number(value.into()))))
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<Self::Value, E> {
        let number = Number::from_f64(value).ok_or_else(|| E::custom("a number that is not finite"))?;
        Ok(Tree(Node::Scalar(Value::Number(number))))
    }

    fn visit_str<E>(self, value: &str) -> Result<Self::Value, E> {
        Ok(Tree(Node::Scalar(Value::String(value.to_owned()))))
    }

    fn visit_string<E>(self, value: String) -> Result<Self::Value, E> {
        Ok(Tree(Node::Scalar(Value::String(value))))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Self::Value, A::Error> {
        let mut items = Vec::new();
        while let Some(value) = access.next_element::<Child<LINES>>()? {
            items.push(value.0);
        }
        Ok(Tree(Node::List(items)))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Self::Value, A::Error> {
        let mut entries: Vec<Entry> = Vec::new();
        let mut seen = std::collections::HashSet::new();
        while let Some(Child(key)) = access.next_key::<Child<LINES>>()? {
            let Child(value) = access.next_value::<Child<LINES>>()?;
            // Numbers and booleans become the strings that they are in JSON.
            let text = match key.node {
                Node::Scalar(Value::String(text)) => text,
                Node::Scalar(other) => other.to_string(),
                Node::List(_) | Node::Mapping(_) => {
                    return Err(serde::de::Error::custom(
                        "a key must be a plain word, not a list or mapping",
                    ));
                }
            };
            // The YAML parser looks for this itself, and knows `y` from `true`.
            if !LINES && !seen.insert(text.clone()) {
                return Err(serde::de::Error::custom(format!(
                    "the key {text:?} stands there twice"
                )));
            }
            entries.push(Entry {
                key: text,
                place: key.place,
                value,
            });
        }
        Ok(Tree(Node::Mapping(entries)))
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
            one("a: 80\nb: '80'\nc: yes\nd: ~\ne:\nf: 1.5\ng: 010\nh: 2024-01-01T00:00:00Z\n1: x\ni: 0x10\ny: n\n'true': 'n'\nj: ''")
                .value();
        let text = value.to_string();
        insta::assert_snapshot!(text, @r#"{"a":80,"b":"80","c":true,"d":null,"e":null,"f":1.5,"g":8,"h":"2024-01-01T00:00:00Z","1":"x","i":16,"y":"n","true":"n","j":""}"#);
    }

    #[test]
    fn what_an_alias_stands_for_is_read_like_the_original() {
        let value = one("a: &a {app: y, n: 010, o: 010.5}\nb: *a\nc: {<<: *a}\nd: [&d y, *d]\n").value();
        let text = value.to_string();
        insta::assert_snapshot!(text, @r#"{"a":{"app":"y","n":8,"o":10.5},"b":{"app":"y","n":8,"o":10.5},"c":{"app":"y","n":8,"o":10.5},"d":["y","y"]}"#);
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
            one("x: &a {k: v}\ny:\n  <<: *a\n  l: w\n").value()["y"].to_string(),
            r#"{"l":"w","k":"v"}"#
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
