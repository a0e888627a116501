//! YAML as `kubectl` reads it: the scalars and keys of sigs.k8s.io/yaml, which is the go-yaml of YAML 1.1.
//!
//! The parser's events carry no types. What a plain scalar is follows go-yaml's resolution, word by word; a key becomes the
//! string that Go makes of it on the way to JSON; a merge key sets what is not set after it.

use std::collections::{HashMap, HashSet};

use granit_parser::{ErrorKind, Event, Parser, ScalarStyle, ScanError, Span, StructureStyle, Tag};
use serde_json::{Number, Value};

use super::document::{Entry, Located, Node, Position, SyntaxError};

/// So many values may be repeated by aliases in one file.
const MOST_REPEATED: usize = 100_000;

/// So many lines of a file may have to be indented for the parser.
const MOST_INDENTED: usize = 64;

/// The documents of a text.
pub(super) fn load(text: &str) -> Result<Vec<Located>, SyntaxError> {
    let error = match Loader::default().load(text) {
        Ok(documents) => return Ok(documents),
        Err(error) => error,
    };
    // The parser wants lines inside brackets and quotes to be indented, by spaces; libyaml and its port to Go do not.
    let mut patched: Vec<String> = text.split_inclusive('\n').map(str::to_owned).collect();
    let spaces = patched
        .iter()
        .map(|line| line.len() - line.trim_start().len())
        .max()
        .unwrap_or(0)
        + 1;
    let mut tabs = HashSet::new();
    let mut again = error.clone();
    for _ in 0..MOST_INDENTED {
        let Some(index) = again
            .line
            .and_then(|line| usize::try_from(line).ok()?.checked_sub(1))
        else {
            return Err(error);
        };
        let Some(line) = patched.get_mut(index) else {
            return Err(error);
        };
        match again.indentation {
            Some(Indentation::Tab) if tabs.insert(index as u64 + 1) => {
                let bare = line.trim_start_matches([' ', '\t']);
                *line = " ".repeat(spaces) + bare;
            }
            Some(Indentation::Quoted) if line.len() - line.trim_start().len() < spaces => {
                *line = " ".repeat(spaces) + line.trim_start_matches([' ', '\t']);
            }
            _ => return Err(error),
        }
        let mut loader = Loader::default();
        match loader.load(&patched.concat()) {
            // Between blocks, tabs are no indentation for anybody.
            Ok(documents) if tabs.iter().all(|line| loader.in_brackets(*line)) => return Ok(documents),
            Ok(_) => return Err(error),
            Err(next) => again = next,
        }
    }
    Err(error)
}

/// What the parser does not take as indentation, though others do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Indentation {
    /// A tab in front of a line.
    Tab,
    /// A line of a quoted text that begins too far to the left.
    Quoted,
}

impl From<&ScanError> for SyntaxError {
    fn from(error: &ScanError) -> Self {
        Self {
            line: Some(error.marker().line() as u64),
            message: error.kind().to_string(),
            indentation: match error.kind() {
                ErrorKind::TabInBlockIndentation | ErrorKind::TabNotAllowed => Some(Indentation::Tab),
                ErrorKind::InvalidQuotedScalarIndent | ErrorKind::TabInIndentation => {
                    Some(Indentation::Quoted)
                }
                _ => None,
            },
        }
    }
}

/// A collection that is not complete yet.
enum Open {
    List(Vec<Located>),
    Mapping {
        entries: Vec<Entry>,
        /// Where a key is in `entries`.
        known: HashMap<String, usize>,
        /// Those that a merge key has set: they may be set again.
        merged: HashSet<String>,
        key: Option<Key>,
    },
}

enum Key {
    Plain {
        text: String,
        written: Option<Box<str>>,
        place: Position,
    },
    Merge(Position),
}

#[derive(Default)]
struct Loader {
    documents: Vec<Located>,
    /// The collections around, with their places and anchors.
    open: Vec<(Open, Position, usize)>,
    /// Complete values by anchor.
    anchors: HashMap<usize, Located>,
    repeated: usize,
    /// First and last lines of what stands in brackets.
    brackets: Vec<(u64, u64)>,
    flow: Vec<u64>,
}

impl Loader {
    fn load(&mut self, text: &str) -> Result<Vec<Located>, SyntaxError> {
        for event in Parser::new_from_str(text) {
            let (event, span) = event.map_err(|error| SyntaxError::from(&error))?;
            self.take(event, span)?;
        }
        Ok(std::mem::take(&mut self.documents))
    }

    /// Whether a line begins inside brackets.
    fn in_brackets(&self, line: u64) -> bool {
        self.brackets
            .iter()
            .any(|(first, last)| *first < line && line <= *last)
    }

    fn take(&mut self, event: Event<'_>, span: Span) -> Result<(), SyntaxError> {
        let place = Position::of(&span);
        match event {
            Event::Scalar(text, style, anchor, tag) => {
                let wants_key = self.wants_key();
                let scalar = scalar(&text, style, tag.as_deref(), place, wants_key)?;
                if wants_key {
                    return self.key(scalar, style, tag.as_deref(), &text);
                }
                self.value(scalar, anchor)
            }
            Event::SequenceStart(style, anchor, _) => {
                self.opens(Open::List(Vec::new()), style, place, anchor)
            }
            Event::MappingStart(style, anchor, _) => {
                let mapping = Open::Mapping {
                    entries: Vec::new(),
                    known: HashMap::new(),
                    merged: HashSet::new(),
                    key: None,
                };
                self.opens(mapping, style, place, anchor)
            }
            Event::SequenceEnd | Event::MappingEnd => {
                let Some((open, start, anchor)) = self.open.pop() else {
                    return Err(wrong(place, "it ends what has not begun"));
                };
                if let Some(first) = self.flow.pop().filter(|first| *first != 0) {
                    self.brackets.push((first, place.line));
                }
                let node = match open {
                    Open::List(items) => Node::List(items),
                    Open::Mapping { entries, .. } => Node::Mapping(entries),
                };
                self.value(
                    Located {
                        place: start,
                        node,
                        written: None,
                    },
                    anchor,
                )
            }
            Event::Alias(anchor) => {
                let Some(found) = self.anchors.get(&anchor) else {
                    return Err(wrong(place, "it refers to what it is a part of"));
                };
                self.repeated += found.size();
                if self.repeated > MOST_REPEATED {
                    return Err(wrong(place, "too much is repeated by aliases"));
                }
                let mut value = found.clone();
                value.place = place;
                if self.wants_key() {
                    return match &value.node {
                        Node::Scalar(_) => {
                            let text = value.written.clone().unwrap_or_default();
                            self.key(value, ScalarStyle::Plain, None, &text)
                        }
                        _ => Err(wrong(place, NO_KEY)),
                    };
                }
                self.value(value, 0)
            }
            _ => Ok(()),
        }
    }

    fn wants_key(&self) -> bool {
        matches!(self.open.last(), Some((Open::Mapping { key: None, .. }, ..)))
    }

    fn opens(
        &mut self,
        open: Open,
        style: StructureStyle,
        place: Position,
        anchor: usize,
    ) -> Result<(), SyntaxError> {
        if self.wants_key() {
            return Err(wrong(place, NO_KEY));
        }
        self.flow.push(match style {
            StructureStyle::Flow => place.line,
            StructureStyle::Block => 0,
        });
        self.open.push((open, place, anchor));
        Ok(())
    }

    fn key(
        &mut self,
        scalar: Located,
        style: ScalarStyle,
        tag: Option<&Tag>,
        text: &str,
    ) -> Result<(), SyntaxError> {
        let place = scalar.place;
        let merge = text == "<<"
            && (style == ScalarStyle::Plain && tag.is_none()
                || tag.is_some_and(|tag| tag.suffix_in_namespace(YAML).as_deref() == Some("merge")));
        let new = match merge {
            true => Key::Merge(place),
            false => Key::Plain {
                text: key_text(&scalar).map_err(|why| wrong(place, why))?,
                written: scalar.written,
                place,
            },
        };
        if let Some((
            Open::Mapping {
                key, known, merged, ..
            },
            ..,
        )) = self.open.last_mut()
        {
            if let Key::Plain { text, .. } = &new
                && known.contains_key(text)
                && !merged.contains(text)
            {
                return Err(wrong(place, &format!("duplicate mapping key: {text}")));
            }
            *key = Some(new);
        }
        Ok(())
    }

    fn value(&mut self, value: Located, anchor: usize) -> Result<(), SyntaxError> {
        if anchor != 0 {
            self.anchors.insert(anchor, value.clone());
        }
        match self.open.last_mut() {
            None => self.documents.push(value),
            Some((Open::List(items), ..)) => items.push(value),
            Some((
                Open::Mapping {
                    entries,
                    known,
                    merged,
                    key,
                },
                ..,
            )) => match key.take() {
                Some(Key::Plain { text, written, place }) => {
                    merged.remove(&text);
                    let entry = Entry {
                        key: text.clone(),
                        place,
                        value,
                        written,
                    };
                    set(entries, known, entry);
                }
                Some(Key::Merge(place)) => merge(value, place, entries, known, merged)?,
                None => return Err(wrong(value.place, NO_KEY)),
            },
        }
        Ok(())
    }
}

const NO_KEY: &str = "a key must be a plain word, not a list or mapping";

/// The namespace of YAML's own tags.
const YAML: &str = "tag:yaml.org,2002:";

fn set(entries: &mut Vec<Entry>, known: &mut HashMap<String, usize>, entry: Entry) {
    match known.get(&entry.key).and_then(|index| entries.get_mut(*index)) {
        Some(before) => *before = entry,
        None => {
            known.insert(entry.key.clone(), entries.len());
            entries.push(entry);
        }
    }
}

/// Sets what a merge key brings, over what stands before it. Of a list, earlier mappings win.
fn merge(
    value: Located,
    place: Position,
    entries: &mut Vec<Entry>,
    known: &mut HashMap<String, usize>,
    merged: &mut HashSet<String>,
) -> Result<(), SyntaxError> {
    let mappings = match value.node {
        Node::Mapping(entries) => vec![entries],
        Node::List(items) => items
            .into_iter()
            .rev()
            .map(|item| match item.node {
                Node::Mapping(entries) => Ok(entries),
                _ => Err(wrong(place, NO_MERGE)),
            })
            .collect::<Result<_, _>>()?,
        Node::Scalar(_) => return Err(wrong(place, NO_MERGE)),
    };
    for entry in mappings.into_iter().flatten() {
        merged.insert(entry.key.clone());
        set(entries, known, entry);
    }
    Ok(())
}

const NO_MERGE: &str = "<< wants a mapping, or a list of mappings";

fn wrong(place: Position, message: &str) -> SyntaxError {
    SyntaxError {
        line: Some(place.line).filter(|line| *line != 0),
        message: message.to_owned(),
        indentation: None,
    }
}

/// A scalar by its style, tag and text.
fn scalar(
    text: &str,
    style: ScalarStyle,
    tag: Option<&Tag>,
    place: Position,
    is_key: bool,
) -> Result<Located, SyntaxError> {
    let string = || Node::Scalar(Value::String(text.to_owned()));
    let own = tag.and_then(|tag| tag.suffix_in_namespace(YAML));
    let unspecific = tag.is_some_and(|tag| tag.original_handle() == "" && tag.suffix() == "!");
    let plain = style == ScalarStyle::Plain && tag.is_none() || unspecific;
    let (node, written) = match own.as_deref() {
        None if plain => match resolve(text) {
            Resolved::String => (string(), None),
            Resolved::Float(it) if is_key && !it.is_finite() => {
                (Node::Scalar(Value::String(go_float(it))), None)
            }
            other => (
                other
                    .node()
                    .ok_or_else(|| wrong(place, "a number that is not finite"))?,
                Some(text.into()),
            ),
        },
        Some("bool" | "int" | "float" | "null") => {
            let resolved = resolve(text);
            let node = match (own.as_deref(), &resolved) {
                (Some("bool"), Resolved::Bool(_))
                | (Some("int"), Resolved::Int(_) | Resolved::Large(_))
                | (Some("float"), Resolved::Int(_) | Resolved::Large(_) | Resolved::Float(_))
                | (Some("null"), Resolved::Null) => resolved.node(),
                _ => None,
            };
            let node = node.ok_or_else(|| wrong(place, &format!("{text:?} is not what its tag says")))?;
            (node, Some(text.into()))
        }
        // Unknown tags make strings.
        _ => (string(), None),
    };
    Ok(Located { place, node, written })
}

/// What a plain scalar is.
#[derive(Clone, Debug, PartialEq)]
enum Resolved {
    Null,
    Bool(bool),
    Int(i64),
    /// More than an i64 holds.
    Large(u64),
    Float(f64),
    String,
}

impl Resolved {
    /// As JSON has it; None where it has no such number.
    fn node(&self) -> Option<Node> {
        Some(Node::Scalar(match self {
            Self::Null => Value::Null,
            Self::Bool(it) => Value::Bool(*it),
            Self::Int(it) => Value::Number((*it).into()),
            Self::Large(it) => Value::Number((*it).into()),
            // In JSON from Go a whole number has no point.
            Self::Float(it) if it.fract() == 0.0 && it.abs() < 1e15 => Value::Number((*it as i64).into()),
            Self::Float(it) => Value::Number(Number::from_f64(*it)?),
            Self::String => return None,
        }))
    }
}

/// Whether a plain scalar is text.
pub fn is_text(scalar: &str) -> bool {
    resolve(scalar) == Resolved::String
}

/// go-yaml's `resolve` for untagged plain scalars.
fn resolve(text: &str) -> Resolved {
    match text {
        "y" | "Y" | "yes" | "Yes" | "YES" | "true" | "True" | "TRUE" | "on" | "On" | "ON" => {
            return Resolved::Bool(true);
        }
        "n" | "N" | "no" | "No" | "NO" | "false" | "False" | "FALSE" | "off" | "Off" | "OFF" => {
            return Resolved::Bool(false);
        }
        "" | "~" | "null" | "Null" | "NULL" => return Resolved::Null,
        ".nan" | ".NaN" | ".NAN" => return Resolved::Float(f64::NAN),
        ".inf" | ".Inf" | ".INF" | "+.inf" | "+.Inf" | "+.INF" => return Resolved::Float(f64::INFINITY),
        "-.inf" | "-.Inf" | "-.INF" => return Resolved::Float(f64::NEG_INFINITY),
        _ => {}
    }
    let float = |text: &str| {
        let value = is_float(text).then(|| text.parse::<f64>().ok()).flatten();
        value.filter(|value| value.is_finite()).map(Resolved::Float)
    };
    match text.as_bytes().first() {
        Some(b'.') => float(text).unwrap_or(Resolved::String),
        Some(b'0'..=b'9' | b'+' | b'-') => {
            let plain = text.replace('_', "");
            integer(&plain)
                .or_else(|| float(&plain))
                .unwrap_or(Resolved::String)
        }
        _ => Resolved::String,
    }
}

/// Go's `strconv.ParseInt` and `ParseUint` with base 0, of a text without underscores.
fn integer(text: &str) -> Option<Resolved> {
    let (negative, digits) = match text.as_bytes().first()? {
        b'-' => (true, text.get(1..)?),
        b'+' => (false, text.get(1..)?),
        _ => (false, text),
    };
    let (radix, digits) = match digits.get(..2).map(str::to_ascii_lowercase).as_deref() {
        Some("0x") => (16, digits.get(2..)?),
        Some("0o") => (8, digits.get(2..)?),
        Some("0b") => (2, digits.get(2..)?),
        Some(two) if two.starts_with('0') => (8, digits.get(1..)?),
        _ => (10, digits),
    };
    // Rust takes a second sign, Go does not.
    if !digits.bytes().next()?.is_ascii_alphanumeric() {
        return None;
    }
    let size = u64::from_str_radix(digits, radix).ok()?;
    match (negative, i64::try_from(size)) {
        (false, Ok(it)) => Some(Resolved::Int(it)),
        // Go knows no unsigned number with a sign.
        (false, Err(_)) => (!text.starts_with('+')).then_some(Resolved::Large(size)),
        (true, Ok(it)) => Some(Resolved::Int(-it)),
        (true, Err(_)) => (size == 1 << 63).then_some(Resolved::Int(i64::MIN)),
    }
}

/// go-yaml's `^[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?$`.
fn is_float(text: &str) -> bool {
    let unsigned = |text: &str| text.strip_prefix(['-', '+']).unwrap_or(text).to_owned();
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    let text = unsigned(text);
    let (mantissa, exponent) = match text.split_once(['e', 'E']) {
        Some((mantissa, exponent)) => (mantissa, Some(unsigned(exponent))),
        None => (text.as_str(), None),
    };
    let mantissa = match mantissa.split_once('.') {
        Some(("", after)) => !after.is_empty() && digits(after),
        Some((before, after)) => digits(before) && digits(after),
        None => !mantissa.is_empty() && digits(mantissa),
    };
    mantissa && exponent.is_none_or(|exponent| !exponent.is_empty() && digits(&exponent))
}

/// The string that a key becomes on its way to JSON.
fn key_text(scalar: &Located) -> Result<String, &'static str> {
    match (&scalar.node, scalar.written.as_deref().map(resolve)) {
        (Node::Scalar(Value::String(text)), _) => Ok(text.clone()),
        (_, Some(Resolved::Bool(it))) => Ok(it.to_string()),
        (_, Some(Resolved::Int(it))) => Ok(it.to_string()),
        (_, Some(Resolved::Float(it))) => Ok(go_float(it)),
        (_, Some(Resolved::Large(_))) => Err("a key must be a string: put the number in quotes"),
        (Node::Scalar(_), _) => {
            Err("a key must be a string, and YAML reads this one as nothing: put it in quotes")
        }
        _ => Err(NO_KEY),
    }
}

/// Go's `FormatFloat(it, 'g', -1, 32)`, with the words that YAML has for what is no number.
fn go_float(it: f64) -> String {
    let it = it as f32;
    if it.is_nan() {
        return ".nan".to_owned();
    }
    if it.is_infinite() {
        return if it > 0.0 { ".inf" } else { "-.inf" }.to_owned();
    }
    let scientific = format!("{it:e}");
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    match exponent.parse::<i32>() {
        Ok(-4..6) | Err(_) => it.to_string(),
        Ok(exponent) => {
            let sign = if exponent < 0 { '-' } else { '+' };
            format!("{digits}e{sign}{:02}", exponent.abs())
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may stop at the first surprise")]

    use super::*;

    /// A scalar as a value and as a key: None where kubectl refuses it.
    fn read(scalar: &str) -> (Option<Value>, Option<String>) {
        let value = load(&format!("a: {scalar}\n"))
            .ok()
            .map(|documents| match &documents[0].node {
                Node::Mapping(entries) => entries[0].value.value(),
                _ => unreachable!(),
            });
        let key = load(&format!("{scalar}: a\n"))
            .ok()
            .map(|documents| match &documents[0].node {
                Node::Mapping(entries) => entries[0].key.clone(),
                _ => unreachable!(),
            });
        (value, key)
    }

    /// As kubectl 1.36 reads each as the value and the key of a label.
    #[test]
    fn scalars_and_keys_are_those_of_kubectl() {
        let yes = |key: &str| (Value::from(true), Some(key.to_owned()));
        let no = |key: &str| (Value::from(false), Some(key.to_owned()));
        let text = |text: &str| (Value::from(text), Some(text.to_owned()));
        let number = |value: i64, key: &str| (Value::from(value), Some(key.to_owned()));
        let float = |value: f64, key: &str| (Value::from(value), Some(key.to_owned()));
        let nothing = || (Value::Null, None);
        let table = [
            ("y", yes("true")),
            ("Y", yes("true")),
            ("n", no("false")),
            ("N", no("false")),
            ("yes", yes("true")),
            ("Yes", yes("true")),
            ("YES", yes("true")),
            ("yES", text("yES")),
            ("no", no("false")),
            ("No", no("false")),
            ("NO", no("false")),
            ("nO", text("nO")),
            ("on", yes("true")),
            ("On", yes("true")),
            ("ON", yes("true")),
            ("oN", text("oN")),
            ("off", no("false")),
            ("Off", no("false")),
            ("OFF", no("false")),
            ("oFF", text("oFF")),
            ("true", yes("true")),
            ("True", yes("true")),
            ("TRUE", yes("true")),
            ("tRUE", text("tRUE")),
            ("false", no("false")),
            ("False", no("false")),
            ("FALSE", no("false")),
            ("fALSE", text("fALSE")),
            ("~", nothing()),
            ("null", nothing()),
            ("Null", nothing()),
            ("NULL", nothing()),
            ("nULL", text("nULL")),
            ("'n'", text("n")),
            ("\"on\"", text("on")),
            ("!!str n", text("n")),
            ("'8'", text("8")),
            ("0", number(0, "0")),
            ("80", number(80, "80")),
            ("-80", number(-80, "-80")),
            ("+80", number(80, "80")),
            ("010", number(8, "8")),
            ("0o10", number(8, "8")),
            ("08", number(8, "8")),
            ("0x10", number(16, "16")),
            ("0b11", number(3, "3")),
            ("1_000", number(1000, "1000")),
            ("1__0", number(10, "10")),
            ("_10", text("_10")),
            ("1.0", number(1, "1")),
            ("1.", number(1, "1")),
            ("0.", number(0, "0")),
            (".5", float(0.5, "0.5")),
            (".", text(".")),
            ("1.10", float(1.1, "1.1")),
            ("1e3", number(1000, "1000")),
            ("12e03", number(12000, "12000")),
            ("1e6", number(1_000_000, "1e+06")),
            ("1234567.0", number(1_234_567, "1.234567e+06")),
            ("1e-5", float(1e-5, "1e-05")),
            ("0.0001", float(0.0001, "0.0001")),
            ("1e999", text("1e999")),
            ("1.2.3", text("1.2.3")),
            ("1:30", text("1:30")),
            ("2024-01-01", text("2024-01-01")),
            ("0x", text("0x")),
            ("+", text("+")),
            ("1-", text("1-")),
            ("18446744073709551615", (Value::from(u64::MAX), None)),
            ("99999999999999999999", float(1e20, "1e+20")),
            ("<", text("<")),
        ];
        for (scalar, (value, key)) in table {
            assert_eq!(read(scalar), (Some(value), key), "{scalar}");
        }
        // JSON has no such numbers; as keys they are words.
        for (scalar, key) in [(".inf", ".inf"), ("-.INF", "-.inf"), (".NaN", ".nan")] {
            assert_eq!(read(scalar), (None, Some(key.to_owned())), "{scalar}");
        }
    }

    #[test]
    fn merge_keys_set_what_is_not_set_after_them() {
        let merged = |text: &str| load(text).unwrap()[0].value()["z"].to_string();
        assert_eq!(
            merged("x: &a {k: 1, l: 2}\nz: {<<: *a, l: 3}\n"),
            r#"{"k":1,"l":3}"#
        );
        assert_eq!(
            merged("x: &a {k: 1}\ny: &b {k: 2, l: 2}\nz: {<<: [*a, *b]}\n"),
            r#"{"k":1,"l":2}"#
        );
        // go-yaml takes them in their order.
        assert_eq!(merged("x: &a {k: 1}\nz: {k: 2, <<: *a}\n"), r#"{"k":1}"#);
        assert!(load("z: {<<: 3}\n").is_err());
        assert!(load("z: {k: 1, <<: {l: 2}, k: 3}\n").is_err());
        assert!(load("x: &a [*a]\n").is_err());
    }

    #[test]
    fn lines_in_brackets_and_quotes_need_no_indentation() {
        let value = |text: &str| load(text).map(|documents| documents[0].value());
        let args = "a:\n  b:\n    [\n\t\"x\",\n\t\tz\n    ]\n  c: 1\n";
        assert_eq!(
            value(args).unwrap(),
            serde_json::json!({"a": {"b": ["x", "z"], "c": 1}})
        );
        let quoted = "spec:\n  config: '{\n    \"type\": \"macvlan\"\n}'\n  d: 1\n";
        let wanted = serde_json::json!({"spec": {"config": "{ \"type\": \"macvlan\" }", "d": 1}});
        assert_eq!(value(quoted).unwrap(), wanted);
        // Between blocks a tab is not allowed.
        for text in [
            "a:\n\tb: 1\n",
            "a:\n- [x]\n\t- y\n",
            "a:\n  b:\n    [\n    x\n    ]\n\tc: 1\n",
        ] {
            assert!(load(text).is_err(), "{text:?}");
        }
        assert!(load("a: [\nx: {\n\tb").err().unwrap().line.is_some());
    }
}
