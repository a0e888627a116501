//! Selector expressions of Calico (TIERS 97): `role == "db" && (!has(old) || tier in {"a", "b"})`.
//!
//! The grammar, including what it takes only by accident, is that of Calico itself: a selector that Calico reads in
//! another way than ringwall would move a policy to other pods.

#[cfg(test)]
mod tests;

use std::collections::BTreeSet;

/// Longest name of a label.
const LONGEST_LABEL: usize = 512;

/// How deep parentheses may nest; a selector that an API server takes is too short to have more.
const DEEPEST: usize = 512;

/// A selector as it is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Expression {
    /// `all()`, or an empty selector.
    All,
    /// `global()`: what is in no namespace, where it may stand; true elsewhere.
    Global,
    /// A label and what is asked of it.
    Label(String, Test),
    /// `!`.
    Not(Box<Self>),
    /// `&&`.
    And(Vec<Self>),
    /// `||`.
    Or(Vec<Self>),
}

impl std::fmt::Display for Expression {
    /// As one would write it; expressions that match differently in different words.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let joined = |f: &mut std::fmt::Formatter<'_>, parts: &[Self], by: &str| {
            f.write_str("(")?;
            for (number, part) in parts.iter().enumerate() {
                let by = if number == 0 { "" } else { by };
                write!(f, "{by}{part}")?;
            }
            f.write_str(")")
        };
        match self {
            Self::All => f.write_str("all()"),
            Self::Global => f.write_str("global()"),
            Self::Label(label, test) => match test {
                Test::Present => write!(f, "has({label})"),
                Test::In(values) => write!(f, "{label} in {values:?}"),
                Test::NotIn(values) => write!(f, "{label} not in {values:?}"),
                Test::Contains(text) => write!(f, "{label} contains {text:?}"),
                Test::StartsWith(text) => write!(f, "{label} starts with {text:?}"),
                Test::EndsWith(text) => write!(f, "{label} ends with {text:?}"),
            },
            Self::Not(inner) => write!(f, "!{inner}"),
            Self::And(parts) | Self::Or(parts) if parts.len() == 1 => {
                parts.iter().try_for_each(|part| part.fmt(f))
            }
            Self::And(parts) => joined(f, parts, " && "),
            Self::Or(parts) if parts.is_empty() => f.write_str("!all()"),
            Self::Or(parts) => joined(f, parts, " || "),
        }
    }
}

/// What is asked of a label.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Test {
    /// `has(label)`.
    Present,
    /// `==`, `in`: present with one of these values.
    In(BTreeSet<String>),
    /// `!=`, `not in`: absent, or with another value.
    NotIn(BTreeSet<String>),
    /// `contains`.
    Contains(String),
    /// `starts with`.
    StartsWith(String),
    /// `ends with`.
    EndsWith(String),
}

impl Test {
    fn holds(&self, value: Option<&str>) -> bool {
        match (self, value) {
            (Self::NotIn(values), Some(value)) => !values.contains(value),
            (Self::NotIn(_), None) => true,
            (_, None) => false,
            (Self::Present, Some(_)) => true,
            (Self::In(values), Some(value)) => values.contains(value),
            (Self::Contains(text), Some(value)) => value.contains(text.as_str()),
            (Self::StartsWith(text), Some(value)) => value.starts_with(text.as_str()),
            (Self::EndsWith(text), Some(value)) => value.ends_with(text.as_str()),
        }
    }
}

impl Expression {
    /// Whether it holds for an object with these labels.
    pub(crate) fn matches<'a>(&self, label: &impl Fn(&str) -> Option<&'a str>) -> bool {
        match self {
            Self::All | Self::Global => true,
            Self::Label(name, test) => test.holds(label(name)),
            Self::Not(inner) => !inner.matches(label),
            Self::And(parts) => parts.iter().all(|part| part.matches(label)),
            Self::Or(parts) => parts.iter().any(|part| part.matches(label)),
        }
    }

    /// The same of labels whose names begin with a prefix; what stands for `all()` and `global()` is given.
    pub(crate) fn prefixed(self, prefix: &str, all: &Self, global: &Self) -> Self {
        let each = |parts: Vec<Self>| {
            parts
                .into_iter()
                .map(|it| it.prefixed(prefix, all, global))
                .collect()
        };
        match self {
            Self::All => all.clone(),
            Self::Global => global.clone(),
            Self::Label(name, test) => Self::Label(format!("{prefix}{name}"), test),
            Self::Not(inner) => Self::Not(Box::new(inner.prefixed(prefix, all, global))),
            Self::And(parts) => Self::And(each(parts)),
            Self::Or(parts) => Self::Or(each(parts)),
        }
    }

    /// `has(label)`.
    pub(crate) fn has(label: &str) -> Self {
        Self::Label(label.to_owned(), Test::Present)
    }

    /// `label == value`.
    pub(crate) fn is(label: &str, value: &str) -> Self {
        Self::Label(label.to_owned(), Test::In(BTreeSet::from([value.to_owned()])))
    }

    /// `!self`.
    pub(crate) fn negated(self) -> Self {
        Self::Not(Box::new(self))
    }
}

/// Why a text is no selector.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("at character {at}: {message}")]
pub(crate) struct SelectorError {
    /// The character at which it fails, from 1.
    pub(crate) at: usize,
    /// What is wrong there and what to write.
    pub(crate) message: String,
}

/// Reads a selector. An empty one, or one of white space, is `all()`.
///
/// # Errors
/// It is none.
pub(crate) fn parse(text: &str) -> Result<Expression, SelectorError> {
    let tokens = tokens(text)?;
    let mut parser = Parser {
        text,
        tokens: &tokens,
        depth: 0,
    };
    if parser.peek() == &Token::End {
        return Ok(Expression::All);
    }
    let expression = parser.or()?;
    match parser.peek() {
        Token::End => Ok(expression),
        _ => Err(parser.expected("&& or || before another comparison")),
    }
}

/// Whether a selector of namespaces in a rule that holds `global(` is `global()` and nothing else (TIERS 97.5).
pub(crate) fn is_global_alone(text: &str) -> bool {
    tokens(text).is_ok_and(|tokens| matches!(tokens.as_slice(), [(_, Token::Global), (_, Token::End)]))
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Token<'a> {
    Open,
    Close,
    OpenSet,
    CloseSet,
    Comma,
    Equal,
    NotEqual,
    Not,
    And,
    Or,
    Contains,
    StartsWith,
    EndsWith,
    In,
    NotIn,
    All,
    Global,
    Has(&'a str),
    Label(&'a str),
    Text(&'a str),
    End,
}

/// The tokens of a selector, each with the byte at which it begins. The last one is the end.
fn tokens(text: &str) -> Result<Vec<(usize, Token<'_>)>, SelectorError> {
    let mut out: Vec<(usize, Token<'_>)> = Vec::new();
    let mut rest = text;
    loop {
        rest = without_blanks(rest);
        let start = text.len() - rest.len();
        let Some(first) = rest.chars().next() else {
            out.push((start, Token::End));
            return Ok(out);
        };
        let after_label = matches!(out.last(), Some((_, Token::Label(_))));
        let (token, after) =
            token(rest, first, after_label).map_err(|message| error(text, start, message))?;
        out.push((start, token));
        rest = after;
    }
}

/// The token that a text begins with, and what follows it.
fn token(rest: &str, first: char, after_label: bool) -> Result<(Token<'_>, &str), String> {
    const SIGNS: [(&str, Token<'static>); 10] = [
        ("(", Token::Open),
        (")", Token::Close),
        ("{", Token::OpenSet),
        ("}", Token::CloseSet),
        (",", Token::Comma),
        ("==", Token::Equal),
        ("!=", Token::NotEqual),
        ("!", Token::Not),
        ("&&", Token::And),
        ("||", Token::Or),
    ];
    for (sign, token) in SIGNS {
        if let Some(after) = rest.strip_prefix(sign) {
            return Ok((token, after));
        }
    }
    match first {
        '"' | '\'' => {
            let inside = rest.get(1..).unwrap_or_default();
            let (value, after) = inside
                .split_once(first)
                .ok_or_else(|| format!("a value begins with {first} and has no closing quote"))?;
            return Ok((Token::Text(value), after));
        }
        '=' => return Err("write == to compare".to_owned()),
        '&' => return Err("write && for \"and\"".to_owned()),
        '|' => return Err("write || for \"or\"".to_owned()),
        '\n' | '\r' => {
            return Err("a selector is one line, without a line break at its end: write it beside its key, in quotes, not below | or >".to_owned());
        }
        _ => {}
    }
    if after_label {
        return operator(rest).ok_or_else(|| {
            "an operator is missing after the label: write ==, !=, in, not in, contains, starts with or ends with"
                .to_owned()
        });
    }
    if let Some(inside) = rest.strip_prefix("has(") {
        let (label, after) = label(without_blanks(inside))?;
        return Ok((Token::Has(label), closed(after, "has(")?));
    }
    if let Some(inside) = rest.strip_prefix("all(") {
        return Ok((Token::All, closed(inside, "all(")?));
    }
    if let Some(inside) = rest.strip_prefix("global(") {
        return Ok((Token::Global, closed(inside, "global(")?));
    }
    let (label, after) = label(rest)?;
    Ok((Token::Label(label), after))
}

/// An operator that is a word, which has to end there.
fn operator(rest: &str) -> Option<(Token<'static>, &str)> {
    const WORDS: [(&[&str], Token<'static>); 5] = [
        (&["contains"], Token::Contains),
        (&["starts", "with"], Token::StartsWith),
        (&["ends", "with"], Token::EndsWith),
        (&["not", "in"], Token::NotIn),
        (&["in"], Token::In),
    ];
    WORDS.into_iter().find_map(|(words, token)| {
        let mut after = rest;
        for (index, word) in words.iter().enumerate() {
            after = if index == 0 { after } else { without_blanks(after) };
            after = after.strip_prefix(word)?;
        }
        // The words of one operator may stand apart; after them, blanks do not count either.
        let next = if words.len() > 1 {
            without_blanks(after)
        } else {
            after
        };
        (!next.starts_with(of_label)).then_some((token, next))
    })
}

/// What follows the closing parenthesis of a function.
fn closed<'a>(rest: &'a str, function: &str) -> Result<&'a str, String> {
    without_blanks(rest)
        .strip_prefix(')')
        .ok_or_else(|| format!("{function} is not closed: write )"))
}

/// The name of a label at the beginning of a text, and what follows it.
fn label(rest: &str) -> Result<(&str, &str), String> {
    let end = rest.find(|c| !of_label(c)).unwrap_or(rest.len());
    let (label, after) = rest.split_at(end);
    match (label.len(), rest.chars().next()) {
        (0, Some(other)) => Err(format!(
            "{other:?} is not valid here: write the name of a label (letters, digits, '_', '.', '/', '-'), has(), all(), ! or ("
        )),
        (0, None) => Err("the name of a label is missing".to_owned()),
        (length, _) if length > LONGEST_LABEL => Err(format!(
            "the name of a label has {length} characters, and {LONGEST_LABEL} are the most"
        )),
        _ => Ok((label, after)),
    }
}

/// Whether a label's name may hold this character, at any place.
fn of_label(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '/' | '-')
}

fn without_blanks(text: &str) -> &str {
    text.trim_start_matches([' ', '\t'])
}

fn error(text: &str, byte: usize, message: String) -> SelectorError {
    let at = text.get(..byte).map_or(0, |before| before.chars().count()) + 1;
    SelectorError { at, message }
}

struct Parser<'a> {
    text: &'a str,
    /// What is left; the last one is the end, and never taken.
    tokens: &'a [(usize, Token<'a>)],
    depth: usize,
}

impl<'a> Parser<'a> {
    fn peek(&self) -> &'a Token<'a> {
        self.tokens.first().map_or(&Token::End, |(_, token)| token)
    }

    fn take(&mut self) -> &'a Token<'a> {
        let token = self.peek();
        if token != &Token::End {
            self.tokens = self.tokens.get(1..).unwrap_or_default();
        }
        token
    }

    fn takes(&mut self, wanted: &Token<'_>) -> bool {
        let here = self.peek() == wanted;
        if here {
            self.take();
        }
        here
    }

    fn expected(&self, what: &str) -> SelectorError {
        let byte = self.tokens.first().map_or(self.text.len(), |(byte, _)| *byte);
        error(self.text, byte, format!("expected {what}"))
    }

    fn or(&mut self) -> Result<Expression, SelectorError> {
        let mut parts = vec![self.and()?];
        while self.takes(&Token::Or) {
            parts.push(self.and()?);
        }
        Ok(joined(parts, Expression::Or))
    }

    fn and(&mut self) -> Result<Expression, SelectorError> {
        let mut parts = vec![self.operation()?];
        while self.takes(&Token::And) {
            parts.push(self.operation()?);
        }
        Ok(joined(parts, Expression::And))
    }

    /// One comparison, function or parenthesis, with the `!` before it, which covers all of it.
    fn operation(&mut self) -> Result<Expression, SelectorError> {
        let mut negated = false;
        while self.takes(&Token::Not) {
            negated = !negated;
        }
        let expression = match self.peek() {
            Token::Has(label) => {
                self.take();
                Expression::has(label)
            }
            Token::All => {
                self.take();
                Expression::All
            }
            Token::Global => {
                self.take();
                Expression::Global
            }
            Token::Label(label) => {
                self.take();
                Expression::Label((*label).to_owned(), self.test()?)
            }
            Token::Open => {
                self.take();
                self.depth += 1;
                if self.depth > DEEPEST {
                    return Err(self.expected("less deeply nested parentheses"));
                }
                let inside = self.or()?;
                self.depth -= 1;
                if !self.takes(&Token::Close) {
                    return Err(self.expected(")"));
                }
                inside
            }
            _ => return Err(self.expected("a label, has(), all(), ! or (")),
        };
        Ok(if negated { expression.negated() } else { expression })
    }

    /// What stands after a label.
    fn test(&mut self) -> Result<Test, SelectorError> {
        let operator = self.peek();
        let make: fn(String) -> Test = match operator {
            Token::Equal => |value| Test::In(BTreeSet::from([value])),
            Token::NotEqual => |value| Test::NotIn(BTreeSet::from([value])),
            Token::Contains => Test::Contains,
            Token::StartsWith => Test::StartsWith,
            Token::EndsWith => Test::EndsWith,
            Token::In | Token::NotIn => {
                self.take();
                let values = self.set()?;
                return Ok(match operator {
                    Token::In => Test::In(values),
                    _ => Test::NotIn(values),
                });
            }
            _ => {
                return Err(self.expected("==, !=, in, not in, contains, starts with or ends with"));
            }
        };
        self.take();
        match self.peek() {
            Token::Text(value) => {
                self.take();
                Ok(make((*value).to_owned()))
            }
            _ => Err(self.expected("a value in quotes")),
        }
    }

    /// `{"a", "b"}`; empty and with a comma at its end, too.
    fn set(&mut self) -> Result<BTreeSet<String>, SelectorError> {
        if !self.takes(&Token::OpenSet) {
            return Err(self.expected("a set of values, such as {\"a\", \"b\"}"));
        }
        let mut values = BTreeSet::new();
        while let Token::Text(value) = self.peek() {
            self.take();
            values.insert((*value).to_owned());
            if !self.takes(&Token::Comma) {
                break;
            }
        }
        if !self.takes(&Token::CloseSet) {
            return Err(self.expected("} or a value in quotes"));
        }
        Ok(values)
    }
}

/// The one part, or all of them together.
fn joined(mut parts: Vec<Expression>, join: fn(Vec<Expression>) -> Expression) -> Expression {
    match parts.pop() {
        Some(one) if parts.is_empty() => one,
        Some(last) => {
            parts.push(last);
            join(parts)
        }
        None => Expression::All,
    }
}
