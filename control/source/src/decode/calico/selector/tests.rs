//! The grammar, case by case. The first three tables hold the cases of Calico's own tests as data.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test may stop at the first surprise"
)]

use super::*;

/// Whether a selector holds for `a=1,b=2`.
fn holds(selector: &str, labels: &str) -> bool {
    let labels: Vec<(&str, &str)> = labels
        .split(';')
        .filter(|pair| !pair.is_empty())
        .map(|pair| pair.split_once('=').unwrap())
        .collect();
    let expression = parse(selector).unwrap_or_else(|wrong| panic!("{selector}: {wrong}"));
    expression.matches(&|key: &str| labels.iter().find(|(k, _)| *k == key).map(|(_, value)| *value))
}

/// Selectors, label sets that match (`|` between them) and ones that do not.
const MATCHES: &[(&str, &[&str], &[&str])] = &[
    (r#"a == "b""#, &["a=b", "a=b;c=d"], &["", "a=c", "c=d"]),
    (
        r#"a == "b" && c == "d""#,
        &["a=b;c=d"],
        &["", "a=b;c=e", "a=c;c=d", "c=d", "a=b"],
    ),
    (
        r#"a == "b" || c == "d""#,
        &["a=b;c=d", "a=b", "c=d"],
        &["", "a=e;c=e", "c=e", "a=e"],
    ),
    (r#"a in {"'", '"', "c"}"#, &["a=c", "a=\"", "a='"], &["", "a=e"]),
    (
        r#"a not in {"'", '"', "c"}"#,
        &["", "a=e"],
        &["a=c", "a=\"", "a='"],
    ),
    ("a == 'a'", &["a=a"], &["a=b", ""]),
    (r#"a != "b""#, &["a=a"], &["a=b"]),
    (r#"a != "a""#, &[""], &["a=a"]),
    (
        r#"a contains "a""#,
        &["a=a", "a=bab", "a=aaa;b=c"],
        &["", "a=b", "b=aaa"],
    ),
    (
        r#"a starts with "a""#,
        &["a=a", "a=abb", "a=aaa;b=c"],
        &["", "a=b", "a=baa", "b=aaa"],
    ),
    (
        r#"a ends with "a""#,
        &["a=a", "a=bba", "a=aaa;b=c"],
        &["", "a=b", "a=aab", "b=aaa"],
    ),
    (r#"a in {"a"}"#, &["a=a"], &["a=b"]),
    (r#"!a in {"a"}"#, &["a=b", ""], &["a=a"]),
    (r#"a in {"a", "b"}"#, &["a=a", "a=b"], &["a=c"]),
    (r#"a not in {"d", "e"}"#, &["a=a", ""], &["a=d"]),
    ("has(a)", &["a=b", "a="], &["", "b=b"]),
    ("!has(a)", &["b=b"], &["a=b"]),
    ("", &["", "a=b"], &[]),
    (" ", &[""], &[]),
    ("all()", &["", "a=b"], &[]),
    (" all()", &["", "a=b"], &[]),
    ("global()", &["", "a=b"], &[]),
    ("!!has(b)", &["b=x"], &["a=b"]),
    ("! has(a)", &[""], &["a=b"]),
    ("!!! has(a)", &[""], &["a=b"]),
    ("!!!has(a)", &[""], &["a=b"]),
    ("!! ! has(a)", &[""], &["a=b"]),
    ("! !!has(a)", &[""], &["a=b"]),
    ("a == 'a1' && b == 'b1'", &["a=a1;b=b1"], &["a=a1"]),
    ("a == 'a1' && b != 'b1'", &["a=a1"], &["a=a1;b=b1"]),
    ("a != 'a1' && b == 'b1'", &["b=b1"], &["a=a1;b=b1"]),
    ("a != 'a1' && b != 'b1'", &[""], &["a=a1;b=b1"]),
    ("a != 'a1' && !b == 'b1'", &[""], &["a=a1;b=b1"]),
    ("!a == 'a1' && b == 'b1'", &["b=b1"], &["a=a1;b=b1"]),
    ("has(a) && !has(b)", &["a=a"], &["a=a;b=b"]),
    ("!has(b) && has(a)", &["a=a"], &[""]),
    ("!(!has(a) || has(b))", &["a=a"], &["", "a=a;b=b"]),
    ("!(has(b) || !has(a))", &["a=a"], &["", "a=a;b=b"]),
    ("a == 'a1' || b == 'b1'", &["a=a1;b=b1"], &[""]),
    ("a == 'a1' || b != 'b1'", &["a=a1;b=b1"], &["b=b1"]),
    ("a != 'a1' || b == 'b1'", &["a=a1;b=b1"], &["a=a1"]),
    ("a != 'a1' || b != 'b1'", &["a=a1"], &["a=a1;b=b1"]),
    ("! a == 'a1' || ! b == 'b1'", &["a=a1"], &["a=a1;b=b1"]),
    (
        "!(!(k == 'v' && has(t) || all()) && (a in {'b', 'c'}))",
        &["", "k=v;t=t", "a=b"],
        &[],
    ),
];

const REFUSED: &[&str] = &[
    "b == b",
    "b contains b",
    "b starts with b",
    "b ends with b",
    "'b1' == b",
    "b",
    "a b",
    "!",
    r#"foo == "bar" &"#,
    r#"foo == "bar" |"#,
    "foo != ||",
    r#"foo in {"", ||"#,
    r#"foo in """#,
    r#""FOO"#,
    r#""FOO'"#,
    "'FOO",
    "(",
    r#"(a == "foo""#,
    ")",
    "()",
    "%",
    r#"a == "b" && %"#,
    r#"a == "b" || %"#,
    "a ",
    "has(foo) &&",
    r#"label == "value"#,
    "label == 'value",
    r#"label = "value""#,
    "all(",
    "global(",
    "has()",
    "has(foo",
    "has( foo ",
    r#"a == "b" & has(foo)"#,
    r#"a == "b" | has(foo)"#,
    r#"label starts foo "value""#,
    r#"label inf "value""#,
    r#"label ends foo "value""#,
    r#"label ends withs "value""#,
    r#"label squiggles "value""#,
    r#"a not in "bar" && !has(foo) || b in c"#,
];

/// Texts that say the same.
const SAME: &[(&str, &str)] = &[
    ("", "all()"),
    (" all() ", "all()"),
    (" (all() )", "all()"),
    ("! (has( b)||! has(a ))", "!(has(b) || !has(a))"),
    (r#"! (a == "b"&&! c != "d")"#, r#"!(a == "b" && !c != "d")"#),
    (r#"a startswith '"'"#, r#"a starts with '"'"#),
    (r#"a endswith "'""#, r#"a ends with "'""#),
    (r#"a!='"'"#, r#"a != '"'"#),
    (
        r#"a in {"z", "z", "x", "y", "x", "a"}"#,
        r#"a in {"a", "x", "y", "z"}"#,
    ),
    (r#"label contains"value""#, r#"label contains "value""#),
    (r#"label starts  with "value""#, r#"label startswith "value""#),
    (
        r#"a notin{"bar"}&&!has(foo)||b in{"c"}"#,
        r#"a not in {"bar"} && !has(foo) || b in {"c"}"#,
    ),
    ("all( )", "all()"),
];

#[test]
fn selectors_match_as_in_calico() {
    for (selector, matching, others) in MATCHES {
        for labels in *matching {
            assert!(holds(selector, labels), "{selector} does not match {labels}");
        }
        for labels in *others {
            assert!(!holds(selector, labels), "{selector} matches {labels}");
        }
    }
}

#[test]
fn what_calico_refuses_is_refused() {
    for selector in REFUSED {
        assert!(parse(selector).is_err(), "{selector} is taken");
    }
}

#[test]
fn spelling_changes_nothing() {
    for (one, other) in SAME {
        assert_eq!(parse(one).unwrap(), parse(other).unwrap(), "{one}");
    }
}

#[test]
fn t72_what_parses_and_what_does_not() {
    for selector in [r#"a in {"b",}"#, "a not in {}", r#"in == "x""#, r#"!a == "b""#] {
        parse(selector).unwrap();
    }
    for selector in ["all ()", r#"a = "b""#, "a == 'b'\n"] {
        parse(selector).unwrap_err();
    }
    assert!(holds(r#"!a == "b""#, ""));
    assert!(!holds(r#"!a == "b""#, "a=b"));
    assert!(!holds("a in {}", "a=b"));
    assert!(holds("a not in {}", "a=b"));
}

#[test]
fn t73_and_binds_before_or() {
    let selector = r#"has(a) || b == "c" && d == "e""#;
    assert!(holds(selector, "a=x"));
    assert!(holds(selector, "b=c;d=e"));
    assert!(!holds(selector, "b=c"));
    assert_eq!(
        parse(selector).unwrap(),
        parse(r#"has(a) || (b == "c" && d == "e")"#).unwrap()
    );
    assert_ne!(
        parse(selector).unwrap(),
        parse(r#"(has(a) || b == "c") && d == "e""#).unwrap()
    );
}

#[test]
fn t97_an_absent_label_is_unequal_and_nothing_else() {
    for (selector, expected) in [
        (r#"a != "b""#, true),
        (r#"a not in {"b"}"#, true),
        (r#"a == "b""#, false),
        (r#"a in {"b"}"#, false),
        (r#"a contains """#, false),
        (r#"a starts with """#, false),
        (r#"a ends with """#, false),
        ("has(a)", false),
        (r#"!a contains """#, true),
    ] {
        assert_eq!(holds(selector, "c=d"), expected, "{selector}");
    }
    assert!(holds(r#"a contains """#, "a="));
}

#[test]
fn t97_values_have_no_escapes_and_labels_may_begin_with_anything() {
    assert!(holds(r#"a == "x\""#, "a=x\\"));
    parse(r#"a == "x\"y""#).unwrap_err();
    for label in ["-a", ".", "/", "a/b/c", "1", "a.b_c-d/e", "all", "has", "not"] {
        assert!(
            holds(&format!("{label} == 'v'"), &format!("{label}=v")),
            "{label}"
        );
        assert!(holds(&format!("has({label})"), &format!("{label}=v")), "{label}");
    }
    parse(&format!("{} == 'v'", "a".repeat(LONGEST_LABEL))).unwrap();
    parse(&format!("has({})", "a".repeat(LONGEST_LABEL + 1))).unwrap_err();
    parse(&format!("{} == 'v'", "a".repeat(LONGEST_LABEL + 1))).unwrap_err();
    parse("ä == 'v'").unwrap_err();
    assert!(holds("a == 'ä'", "a=ä"));
}

#[test]
fn t97_operators_are_words_only_after_a_label() {
    for label in ["contains", "starts", "ends", "not", "in", "with", "startswith"] {
        assert!(
            holds(&format!("{label} contains 'v'"), &format!("{label}=v")),
            "{label}"
        );
        assert!(
            holds(&format!("{label} in {{'v'}}"), &format!("{label}=v")),
            "{label}"
        );
    }
    // Words of an operator have to end; two of them may stand together or apart.
    for selector in [
        "a inx {'b'}",
        "a containsx 'b'",
        "a in-{'b'}",
        "a starts\twithx 'b'",
    ] {
        parse(selector).unwrap_err();
    }
    for selector in [
        "a not\t in {'b'}",
        "a notin {'b'}",
        "a starts\twith 'b'",
        "a\tin\t{'b'}",
    ] {
        parse(selector).unwrap();
    }
}

#[test]
fn t97_functions_take_blanks_inside_alone() {
    for selector in ["has( a )", "has(\ta)", "all( )", "global(\t)"] {
        parse(selector).unwrap();
    }
    for selector in [
        "has (a)",
        "all ()",
        "global ()",
        "has(a b)",
        "has('a')",
        "all(a)",
        "all() all()",
    ] {
        parse(selector).unwrap_err();
    }
}

#[test]
fn t97_white_space_is_blank_and_tab() {
    parse("\t a\t==\t'b' ").unwrap();
    for space in ["\n", "\r\n", "\u{a0}", "\u{b}", "\u{2003}"] {
        for selector in [
            format!("a == 'b'{space}"),
            format!("a =={space}'b'"),
            space.to_owned(),
        ] {
            parse(&selector).unwrap_err();
        }
    }
    let wrong = parse("has(a)\n").unwrap_err();
    assert!(wrong.message.contains("one line"), "{wrong}");
    assert_eq!(wrong.at, 7);
}

#[test]
fn t97_sets_end_where_they_end() {
    for selector in [
        "a in {'b' 'c'}",
        "a in {,}",
        "a in {'b',,}",
        "a in {b}",
        "a in {'b'",
        "a in 'b'",
    ] {
        parse(selector).unwrap_err();
    }
    for selector in ["a in{}", "a in {'b',}", "a in {'b','b'}", "a in { 'b' , 'c' }"] {
        parse(selector).unwrap();
    }
}

#[test]
fn t97_global_stands_alone() {
    for selector in ["global()", " global( ) "] {
        assert!(is_global_alone(selector), "{selector}");
    }
    for selector in [
        "!global()",
        "(global())",
        "global() || has(a)",
        "a == 'global()'",
        "global(",
        "all()",
    ] {
        assert!(!is_global_alone(selector), "{selector}");
    }
}

#[test]
fn errors_say_where_and_what_to_write() {
    for (selector, at, message) in [
        ("a = 'b'", 3, "write =="),
        ("a == b", 6, "a value in quotes"),
        ("a == 'b' c == 'd'", 10, "&& or ||"),
        ("a == 'ä' & has(b)", 10, "write &&"),
        ("(a == 'b'", 10, "expected )"),
        ("a", 2, "expected =="),
        ("has(a) &&", 10, "expected a label"),
        ("a == 'b", 6, "has no closing quote"),
        ("a is 'b'", 3, "an operator is missing"),
    ] {
        let wrong = parse(selector).unwrap_err();
        assert_eq!(wrong.at, at, "{selector}: {wrong}");
        assert!(wrong.message.contains(message), "{selector}: {wrong}");
    }
}

#[test]
fn nested_deeply_it_ends() {
    let nested = |depth| format!("{}all(){}", "(".repeat(depth), ")".repeat(depth));
    parse(&nested(DEEPEST)).unwrap();
    parse(&nested(DEEPEST + 1)).unwrap_err();
    parse(&"(".repeat(1 << 16)).unwrap_err();
    parse(&format!("{}has(a)", "!".repeat(1 << 16))).unwrap();
    // One pair after the other is no depth.
    parse(&vec!["(has(a))"; 10_000].join(" && ")).unwrap();
}

#[test]
fn prefixes_reach_every_label() {
    let nothing = Expression::All.negated();
    let prefixed = parse("!(k == 'v' && has(t) || all()) && global()")
        .unwrap()
        .prefixed("p.", &Expression::has("in"), &nothing);
    let expected = Expression::And(vec![
        Expression::Or(vec![
            Expression::And(vec![Expression::is("p.k", "v"), Expression::has("p.t")]),
            Expression::has("in"),
        ])
        .negated(),
        nothing,
    ]);
    assert_eq!(prefixed, expected);
}
