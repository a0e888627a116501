//! Reading one field of a generic value, with its path in every complaint.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use ringwall_policy::Fault;
use serde_json::{Map, Value};

/// An object's fields.
pub(super) type Fields = Map<String, Value>;

/// What an absent `spec`, selector or the like reads as.
pub(super) static NO_FIELDS: std::sync::LazyLock<Fields> = std::sync::LazyLock::new(Fields::new);

pub(super) fn fault(path: impl Into<String>, message: impl Into<String>) -> Fault {
    Fault {
        path: path.into(),
        message: message.into(),
    }
}

/// `parent.key`, or `parent["key"]` where the key would be mistaken for more than one step.
pub fn join(parent: &str, key: &str) -> String {
    let plain = !key.is_empty()
        && key
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '-');
    match (parent.is_empty(), plain) {
        (true, true) => key.to_owned(),
        (false, true) => format!("{parent}.{key}"),
        (_, false) => format!("{parent}[{key:?}]"),
    }
}

/// `parent[index]`.
pub(crate) fn item(parent: &str, index: usize) -> String {
    format!("{parent}[{index}]")
}

/// What a value is, in words.
pub(super) fn kind_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "nothing",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "a mapping",
    }
}

/// What is wrong with a value of the wrong type. Scalars that YAML did not read as strings are the usual case.
pub(super) fn wrong_type(value: &Value, wanted: &str) -> String {
    match value {
        Value::Bool(_) | Value::Number(_) if wanted == "a string" => {
            format!(
                "must be a string, but YAML reads {value} as {}: write \"{value}\"",
                kind_of(value)
            )
        }
        _ => format!("must be {wanted}, not {}", kind_of(value)),
    }
}

/// A field that is there: null counts as absent, as the API server has it.
pub(super) fn present<'a>(fields: &'a Fields, key: &str) -> Option<&'a Value> {
    fields.get(key).filter(|value| !value.is_null())
}

/// A mapping; absent reads as empty.
pub(super) fn mapping<'a>(fields: &'a Fields, at: &str, key: &str) -> Result<&'a Fields, Fault> {
    match present(fields, key) {
        None => Ok(&NO_FIELDS),
        Some(Value::Object(map)) => Ok(map),
        Some(other) => Err(fault(join(at, key), wrong_type(other, "a mapping"))),
    }
}

/// A list; absent reads as empty.
pub(super) fn list<'a>(fields: &'a Fields, at: &str, key: &str) -> Result<&'a [Value], Fault> {
    match present(fields, key) {
        None => Ok(&[]),
        Some(Value::Array(items)) => Ok(items),
        Some(other) => Err(fault(join(at, key), wrong_type(other, "a list"))),
    }
}

/// A string; None where absent.
pub(super) fn string<'a>(fields: &'a Fields, at: &str, key: &str) -> Result<Option<&'a str>, Fault> {
    match present(fields, key) {
        None => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(other) => Err(fault(join(at, key), wrong_type(other, "a string"))),
    }
}

/// A boolean; absent is false.
pub(super) fn boolean(fields: &Fields, at: &str, key: &str) -> Result<bool, Fault> {
    match present(fields, key) {
        None => Ok(false),
        Some(Value::Bool(it)) => Ok(*it),
        Some(other) => Err(fault(join(at, key), wrong_type(other, "true or false"))),
    }
}

/// A whole number, however it is written (`80`, `80.0`).
pub(super) fn whole(value: &Value) -> Option<i64> {
    value.as_i64().or_else(|| {
        let float = value.as_f64()?;
        // Beyond 2^53 a float no longer names one whole number; no field of ours is that large.
        (float.fract() == 0.0 && float.abs() < 9_007_199_254_740_992.0).then_some(float as i64)
    })
}

/// Complains about fields that the API does not know: lenient decoding would drop them and with them, often, the
/// restriction they were meant to be (SEMANTICS 25).
pub(super) fn only(fields: &Fields, at: &str, known: &[&str], faults: &mut Vec<Fault>) {
    only_hinting(fields, at, known, faults, |key| match key {
        "ports" if known.contains(&"ipBlock") => Some("it belongs beside from or to, one level higher"),
        "ports" | "from" | "to" if known.contains(&"policyTypes") => {
            Some("it belongs in a rule of ingress or egress, one level deeper")
        }
        _ => None,
    });
}

/// As [`only`], with what to do about a field that stands in the wrong place or has another name here.
pub(super) fn only_hinting(
    fields: &Fields,
    at: &str,
    known: &[&str],
    faults: &mut Vec<Fault>,
    hint: impl Fn(&str) -> Option<&'static str>,
) {
    for key in fields.keys() {
        if known.contains(&key.as_str()) {
            continue;
        }
        let place = if at.is_empty() { "here" } else { at };
        let hint = match known.iter().find(|name| name.eq_ignore_ascii_case(key)) {
            Some(name) => format!("write {name}"),
            None => hint(key).map_or_else(
                || format!("known are {}; check the indentation", known.join(", ")),
                str::to_owned,
            ),
        };
        faults.push(fault(
            join(at, key),
            format!("unknown field {key:?} in {place}: {hint}"),
        ));
    }
}

/// An address as Kubernetes reads it: leading zeros are decimal (SEMANTICS 41), an IPv4-mapped IPv6 address is the
/// IPv4 one (SEMANTICS 42). The flag says that it was written in such an odd way.
pub(super) fn address(text: &str) -> Option<(IpAddr, bool)> {
    let (parsed, odd) = literal(text)?;
    let canonical = parsed.to_canonical();
    Some((canonical, odd || canonical != parsed))
}

fn literal(text: &str) -> Option<(IpAddr, bool)> {
    if !text.contains(':') {
        return dotted(text).map(|(v4, odd)| (IpAddr::V4(v4), odd));
    }
    if let Ok(v6) = text.parse::<Ipv6Addr>() {
        return Some((IpAddr::V6(v6), false));
    }
    // Leading zeros in an embedded IPv4 address.
    let (head, tail) = text.rsplit_once(':')?;
    let (v4, _) = dotted(tail)?;
    format!("{head}:{v4}")
        .parse::<Ipv6Addr>()
        .ok()
        .map(|v6| (IpAddr::V6(v6), true))
}

fn dotted(text: &str) -> Option<(Ipv4Addr, bool)> {
    let mut octets = [0u8; 4];
    let mut odd = false;
    let mut parts = text.split('.');
    for octet in &mut octets {
        let part = parts.next()?;
        if part.is_empty() || !part.bytes().all(|b| b.is_ascii_digit()) {
            return None;
        }
        odd |= part.len() > 1 && part.starts_with('0');
        *octet = part.parse().ok()?;
    }
    parts.next().is_none().then(|| (Ipv4Addr::from(octets), odd))
}

/// A CIDR block, host bits masked (SEMANTICS 40), with what is odd about how it was written.
pub(super) fn cidr(text: &str) -> Result<(IpNet, Option<String>), String> {
    let example = "write an address and a prefix length, such as 10.0.0.0/8 or fd00::/48";
    let Some((base, length)) = text.split_once('/') else {
        return Err(format!("{text:?} is not a CIDR block: {example}"));
    };
    let (Some((ip, zeros)), true, Ok(bits)) = (
        literal(base),
        length.bytes().all(|b| b.is_ascii_digit()),
        length.parse::<u8>(),
    ) else {
        return Err(format!("{text:?} is not a CIDR block: {example}"));
    };
    let too_long = |most: u8| format!("{text:?} has a prefix longer than {most} bits");
    let block = match ip {
        IpAddr::V4(v4) => IpNet::V4(Ipv4Net::new(v4, bits).map_err(|_| too_long(32))?.trunc()),
        IpAddr::V6(v6) => match v6.to_ipv4_mapped() {
            None => IpNet::V6(Ipv6Net::new(v6, bits).map_err(|_| too_long(128))?.trunc()),
            Some(_) if bits > 128 => return Err(too_long(128)),
            Some(_) if bits < 96 => {
                return Err(format!(
                    "{text:?} holds more than IPv4-mapped addresses: write an IPv4 or a plain IPv6 block"
                ));
            }
            Some(v4) => IpNet::V4(Ipv4Net::new(v4, bits - 96).map_err(|_| too_long(128))?.trunc()),
        },
    };
    let mapped = ip != ip.to_canonical();
    let odd = if mapped {
        Some(format!(
            "{text:?} is an IPv4-mapped block, read as {block}: write that"
        ))
    } else if zeros || (length.len() > 1 && length.starts_with('0')) {
        Some(format!(
            "{text:?} has leading zeros, read as decimal {block}: write that"
        ))
    } else if ip != block.addr() {
        Some(format!(
            "{text:?} has bits set outside of its prefix, read as {block}: write that"
        ))
    } else {
        None
    };
    Ok((block, odd))
}

/// Most characters that an API server takes for a block where it reads it strictly.
const MOST_OF_STRICT: usize = 43;

/// A CIDR block where an API server reads it strictly: without leading zeros and IPv4-mapped addresses, which
/// [`cidr`] takes. Bits outside of the prefix are masked in both.
pub(super) fn strict_cidr(text: &str) -> Result<(IpNet, Option<String>), String> {
    let (block, odd) = cidr(text)?;
    let strict = text.split_once('/').is_some_and(|(base, length)| {
        let plain = base.parse::<IpAddr>().is_ok_and(|ip| ip == ip.to_canonical());
        plain && (length == "0" || !length.starts_with('0'))
    });
    if strict && text.len() <= MOST_OF_STRICT {
        return Ok((block, odd));
    }
    Err(format!(
        "an API server refuses {text:?} here (leading zeros, IPv4-mapped, or over {MOST_OF_STRICT} characters): write {block}"
    ))
}

fn name_part(text: &str) -> bool {
    let bytes = text.as_bytes();
    let edge = |b: Option<&u8>| b.is_some_and(u8::is_ascii_alphanumeric);
    (1..=63).contains(&bytes.len())
        && edge(bytes.first())
        && edge(bytes.last())
        && bytes
            .iter()
            .all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(b))
}

/// Whether this is a DNS label: lower case, digits, `-`, at most 63 bytes.
pub(super) fn dns_label(text: &str) -> bool {
    let bytes = text.as_bytes();
    let inner = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    (1..=63).contains(&bytes.len())
        && bytes.first().is_some_and(inner)
        && bytes.last().is_some_and(inner)
        && bytes.iter().all(|b| inner(b) || *b == b'-')
}

/// Whether this is a DNS subdomain: DNS labels joined by dots, at most 253 bytes.
pub(super) fn dns_subdomain(text: &str) -> bool {
    // A label inside a subdomain has no length limit of its own in the API's rules; the whole has.
    text.len() <= 253
        && text.split('.').all(|part| {
            let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
            !part.is_empty()
                && part.bytes().all(|b| inner(b) || b == b'-')
                && part.bytes().next().is_some_and(inner)
                && part.bytes().last().is_some_and(inner)
        })
}

/// What is wrong with a label key; None if nothing.
pub(super) fn bad_label_key(key: &str) -> Option<String> {
    let (prefix, name) = match key.split_once('/') {
        Some((prefix, name)) => (Some(prefix), name),
        None => (None, key),
    };
    if prefix.is_some_and(|prefix| !dns_subdomain(prefix)) {
        return Some(format!(
            "{key:?} is not a label key: what stands before / must be a DNS name"
        ));
    }
    (!name_part(name)).then(|| {
        format!(
            "{key:?} is not a label key: 1 to 63 letters, digits, '-', '_' or '.', a letter or digit at both ends"
        )
    })
}

/// What is wrong with a label value; None if nothing.
pub(super) fn bad_label_value(value: &str) -> Option<String> {
    (!value.is_empty() && !name_part(value)).then(|| {
        format!(
            "{value:?} is not a label value: at most 63 letters, digits, '-', '_' or '.', a letter or digit at both ends"
        )
    })
}

/// What is wrong with the name of a port; None if nothing.
pub(super) fn bad_port_name(name: &str) -> Option<String> {
    let bytes = name.as_bytes();
    let why = if bytes.is_empty() || bytes.len() > 15 {
        "must have 1 to 15 characters"
    } else if !bytes
        .iter()
        .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'-')
    {
        "may contain only lower case letters, digits and '-'"
    } else if !bytes.iter().any(u8::is_ascii_lowercase) {
        "must contain a letter; a port number is written without quotes"
    } else if name.contains("--") || name.starts_with('-') || name.ends_with('-') {
        "may not begin or end with '-' nor contain '--'"
    } else {
        return None;
    };
    Some(format!("{name:?} is not a port name: it {why}"))
}
