//! Input: a configuration file.
//!
//! What must hold: it is refused with at least one problem, each of which can be shown and has a place within the file; or
//! it is taken, and then an unknown key would not have gone unnoticed, wherever it stood.

use std::path::Path;

use ringwall_config::{Config, ConfigError};
use serde_json::{Map, Value};

/// Places where an unknown key is put.
const PLACES: usize = 24;

fn parse(text: &str) -> Result<Config, ConfigError> {
    Config::parse("ringwall.yaml", text, Path::new("/etc/ringwall"), |name| {
        (name == "NODE").then(|| "node-1".to_owned())
    })
}

/// Checks one input.
pub fn run(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    match parse(text) {
        Ok(config) => check_keys(text, &config),
        Err(error) => check_error(text, &error),
    }
}

fn check_error(text: &str, error: &ConfigError) {
    assert!(!error.problems().is_empty(), "refused for nothing");
    assert!(!error.to_string().is_empty());
    for problem in error.problems() {
        assert!(!problem.message.is_empty(), "{problem:?}");
        if let Some((line, column)) = problem.position {
            // The parser counts other ends of lines than `lines` does.
            let lines = text
                .matches(['\n', '\r', '\u{85}', '\u{2028}', '\u{2029}'])
                .count()
                + 2;
            assert!(line >= 1 && column >= 1 && line <= lines, "{problem:?}");
        }
    }
    let shown = format!("{error:?}");
    assert!(!shown.is_empty());
}

fn check_keys(text: &str, config: &Config) {
    let Ok(value) = serde_saphyr::from_str::<Value>(text) else {
        return; // keys that are no text, say
    };
    let again = parse(&value.to_string());
    match &again {
        Ok(again) => assert_eq!(again, config, "the same in JSON"),
        // Scalars that are text to the one reading and numbers to the other.
        Err(_) => return,
    }
    for nth in 0..PLACES {
        let mut changed = value.clone();
        if !put(&mut changed, &mut { nth }) {
            break;
        }
        assert!(
            parse(&changed.to_string()).is_err(),
            "an unknown key goes unnoticed: {changed}"
        );
    }
}

/// Puts an unknown key into the nth mapping.
fn put(value: &mut Value, nth: &mut usize) -> bool {
    match value {
        Value::Object(map) if *nth == 0 => {
            let mut with: Map<String, Value> = std::mem::take(map);
            with.insert("zzUnknown".to_owned(), Value::Bool(true));
            *map = with;
            true
        }
        Value::Object(map) => {
            *nth -= 1;
            map.values_mut().any(|value| put(value, nth))
        }
        Value::Array(items) => items.iter_mut().any(|value| put(value, nth)),
        _ => false,
    }
}
