//! Each trap of `docs/semantics.md` (T1 to T76) has a test that is called by its number.
#![allow(clippy::unwrap_used)] // a failed step is a failed test

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

/// Traps about what is not evaluated (`domainNames`).
const NOT_EVALUATED: [u32; 1] = [35];

/// Names of functions in the Rust sources below a folder.
fn functions(folder: &Path, into: &mut Vec<String>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            functions(&path, into);
        } else if path.extension().is_some_and(|it| it == "rs") {
            let text = fs::read_to_string(&path).unwrap();
            let names = text
                .lines()
                .filter_map(|line| line.trim_start().trim_start_matches("async ").strip_prefix("fn "));
            into.extend(names.filter_map(|rest| rest.split(['(', '<']).next().map(str::to_owned)));
        }
    }
}

/// The numbers of traps in the name of a test: `t37_t38_...`, `trap_26_27_...`, `traps_2_to_4_...`, `s41_trap_12_...`.
fn numbers(name: &str) -> BTreeSet<u32> {
    let mut numbers = BTreeSet::new();
    let mut words = name.split('_').peekable();
    while let Some(word) = words.next() {
        let own: Option<u32> = word.strip_prefix('t').and_then(|digits| digits.parse().ok());
        numbers.extend(own);
        if !matches!(word, "trap" | "traps") {
            continue;
        }
        let mut last: Option<u32> = None;
        let mut to = false;
        while let Some(word) = words.peek() {
            match (word.parse::<u32>(), *word) {
                (Ok(number), _) => {
                    let first = last.filter(|_| to).unwrap_or(number);
                    numbers.extend(first..=number);
                    (last, to) = (Some(number), false);
                }
                (Err(_), "to") => to = true,
                (Err(_), "and") => {}
                (Err(_), _) => break,
            }
            words.next();
        }
    }
    numbers
}

#[test]
fn every_trap_has_a_test_by_its_number() {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../..");
    let mut names = Vec::new();
    for folder in ["control", "tests"] {
        functions(&root.join(folder), &mut names);
    }
    let tested: BTreeSet<u32> = names.iter().flat_map(|name| numbers(name)).collect();
    let text = fs::read_to_string(root.join("docs/semantics.md")).unwrap();
    let traps = text.lines().filter_map(|line| {
        let (number, _) = line.strip_prefix("* **T")?.split_once("**")?;
        number.parse().ok()
    });
    let traps: BTreeSet<u32> = traps.collect();
    assert_eq!(traps, (1..=76).collect());
    let missing: Vec<&u32> = traps.difference(&tested).collect();
    assert_eq!(missing, NOT_EVALUATED.each_ref());
}

#[test]
fn names_of_tests_say_which_traps_they_are_of() {
    let of = |name: &str| numbers(name).into_iter().collect::<Vec<_>>();
    assert_eq!(of("t37_t38_a_tier_without_order"), [37, 38]);
    assert_eq!(of("tiers_73_5_trap_10_11_networks"), [10, 11]);
    assert_eq!(of("traps_2_to_4_pass"), [2, 3, 4]);
    assert_eq!(of("tiers_85_traps_22_and_75_only"), [22, 75]);
    assert_eq!(of("s41_trap_12_leading_zeros"), [12]);
    assert_eq!(of("t99_4_services"), [99]);
    assert!(of("the_tests_of_traps").is_empty());
}
