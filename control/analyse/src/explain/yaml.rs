//! JSON values as the YAML that people write.

use serde_json::Value;

/// A value as a document.
pub(super) fn of(value: &Value) -> String {
    let mut out = String::new();
    write(value, 0, &mut out);
    out
}

/// A value of a field, under a comment that says which.
pub(super) fn at(path: &str, value: &Value) -> String {
    format!("# {path}\n{}", of(value))
}

fn write(value: &Value, indent: usize, out: &mut String) {
    let pad = " ".repeat(indent);
    match value {
        Value::Object(fields) if !fields.is_empty() => {
            for (key, value) in fields {
                let key = scalar(&Value::String(key.clone()));
                out.push_str(&format!("{pad}{key}:"));
                field(value, indent, out);
            }
        }
        Value::Array(items) if !items.is_empty() => {
            for item in items {
                let mut text = String::new();
                write(item, indent + 2, &mut text);
                out.push_str(&format!("{pad}- {}", text.trim_start()));
            }
        }
        other => out.push_str(&format!("{pad}{}\n", scalar(other))),
    }
}

fn field(value: &Value, indent: usize, out: &mut String) {
    match value {
        Value::Object(fields) if !fields.is_empty() => {
            out.push('\n');
            write(value, indent + 2, out);
        }
        Value::Array(items) if !items.is_empty() => {
            out.push('\n');
            write(value, indent, out);
        }
        other => out.push_str(&format!(" {}\n", scalar(other))),
    }
}

/// Text is quoted where YAML would read something else, or where it is not plainly a word.
fn scalar(value: &Value) -> String {
    let Value::String(text) = value else {
        return value.to_string();
    };
    let letters = |c: char| c.is_ascii_alphanumeric() || "-_./".contains(c);
    let plain = text.starts_with(|c: char| c.is_ascii_alphabetic())
        && text.chars().all(letters)
        && ringwall_source::yaml_text(text);
    if plain { text.clone() } else { value.to_string() }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)] // a test says what failed by panicking

    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_written_is_read_as_the_same() {
        for value in [
            json!({"spec": {"podSelector": {"matchLabels": {"app": "web", "n": "7", "on": "true"}}, "policyTypes": ["Ingress"]}}),
            json!({"from": [{"namespaceSelector": {}, "podSelector": {}}, {"ipBlock": {"cidr": "::/0", "except": ["fd00::/8"]}}]}),
            json!({"ports": [{"protocol": "TCP", "port": 80}], "e": [], "l": [[1, 2], ["y", ""]], "a: b": "c #d"}),
        ] {
            let text = of(&value);
            assert_eq!(
                ringwall_source::document::only_value(&text),
                Some(value),
                "{text}"
            );
        }
    }
}
