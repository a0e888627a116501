//! Everything that a policy can get wrong, as an API server's validation lists it: refused by `check` with path, line and
//! reason; elsewhere the policy isolates what can be read of it, and others are untouched.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test may stop at the first surprise"
)]

use std::{fs, path::Path, process::Command};

use serde_json::{Value, json};

/// Which directions of `shop/web` a bad policy still isolates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Isolates {
    Ingress,
    Egress,
    Both,
    /// Every pod of the namespace, since the selector cannot be read.
    Namespace,
    /// The same in both directions, since nothing can be.
    All,
}
use Isolates::{All, Both, Egress, Ingress, Namespace};

struct Case {
    /// `spec` in YAML, from its first key on; or the whole object, where it begins with `apiVersion`.
    text: &'static str,
    path: &'static str,
    /// Part of the reason.
    says: &'static str,
    isolates: Isolates,
}

const fn case(text: &'static str, path: &'static str, says: &'static str, isolates: Isolates) -> Case {
    Case {
        text,
        path,
        says,
        isolates,
    }
}

const WEB: &str = "podSelector: {matchLabels: {app: web}}";

/// Bad `ingress` items, below a good selector. Paths begin with `spec.ingress[0].`.
const RULES: &[(&str, &str, &str)] = &[
    // Peers.
    (
        "from: [{}]",
        "from[0]",
        "write podSelector, namespaceSelector or ipBlock",
    ),
    ("from: [null]", "from[0]", "an empty peer"),
    (
        "from: [{podSelector: {}, ipBlock: {cidr: 10.0.0.0/8}}]",
        "from[0].ipBlock",
        "a separate list entry",
    ),
    (
        "from: [{namespaceSelector: {}, ipBlock: {cidr: 10.0.0.0/8}}]",
        "from[0].ipBlock",
        "a separate list entry",
    ),
    (
        "from: [{podSelctor: {}}]",
        "from[0].podSelctor",
        "known are podSelector, namespaceSelector, ipBlock",
    ),
    (
        "from: [{podselector: {}}]",
        "from[0].podselector",
        "write podSelector",
    ),
    ("from: [web]", "from[0]", "must be a mapping"),
    ("from: {podSelector: {}}", "from", "must be a list"),
    ("to: [{podSelector: {}}]", "to", "known are ports, from"),
    ("form: [{podSelector: {}}]", "form", "known are ports, from"),
    (
        "from: [{podSelector: [app]}]",
        "from[0].podSelector",
        "must be a mapping",
    ),
    // Selectors.
    (
        "from: [{podSelector: {app: web}}]",
        "from[0].podSelector.app",
        "known are matchLabels, matchExpressions",
    ),
    (
        "from: [{podSelector: {matchLabels: {'a b': x}}}]",
        "from[0].podSelector.matchLabels[\"a b\"]",
        "is not a label key",
    ),
    (
        "from: [{podSelector: {matchLabels: {'A/b': x}}}]",
        "from[0].podSelector.matchLabels[\"A/b\"]",
        "must be a DNS name",
    ),
    (
        "from: [{podSelector: {matchLabels: {'a/b/c': x}}}]",
        "from[0].podSelector.matchLabels[\"a/b/c\"]",
        "is not a label key",
    ),
    (
        "from: [{podSelector: {matchLabels: {app: 'a b'}}}]",
        "from[0].podSelector.matchLabels.app",
        "is not a label value",
    ),
    (
        "from: [{podSelector: {matchLabels: {app: -a}}}]",
        "from[0].podSelector.matchLabels.app",
        "at both ends",
    ),
    (
        "from: [{podSelector: {matchLabels: {app: 1}}}]",
        "from[0].podSelector.matchLabels.app",
        "write \"1\"",
    ),
    (
        "from: [{podSelector: {matchLabels: {app: true}}}]",
        "from[0].podSelector.matchLabels.app",
        "write \"true\"",
    ),
    (
        "from: [{podSelector: {matchExpressions: [{key: a, operator: in, values: [x]}]}}]",
        "from[0].podSelector.matchExpressions[0].operator",
        "write In, NotIn, Exists or DoesNotExist",
    ),
    (
        "from: [{podSelector: {matchExpressions: [{key: a, operator: Gt, values: ['1']}]}}]",
        "from[0].podSelector.matchExpressions[0].operator",
        "is not an operator",
    ),
    (
        "from: [{podSelector: {matchExpressions: [{key: a, values: [x]}]}}]",
        "from[0].podSelector.matchExpressions[0].operator",
        "is missing: write In",
    ),
    (
        "from: [{podSelector: {matchExpressions: [{key: a, operator: In}]}}]",
        "from[0].podSelector.matchExpressions[0].values",
        "at least one value",
    ),
    (
        "from: [{podSelector: {matchExpressions: [{key: a, operator: NotIn, values: []}]}}]",
        "from[0].podSelector.matchExpressions[0].values",
        "at least one value",
    ),
    (
        "from: [{podSelector: {matchExpressions: [{key: a, operator: Exists, values: [x]}]}}]",
        "from[0].podSelector.matchExpressions[0].values",
        "takes no values",
    ),
    (
        "from: [{podSelector: {matchExpressions: [{key: a, operator: DoesNotExist, values: ['']}]}}]",
        "from[0].podSelector.matchExpressions[0].values",
        "takes no values",
    ),
    (
        "from: [{podSelector: {matchExpressions: [{key: 'a b', operator: Exists}]}}]",
        "from[0].podSelector.matchExpressions[0].key",
        "is not a label key",
    ),
    (
        "from: [{podSelector: {matchExpressions: [{operator: Exists}]}}]",
        "from[0].podSelector.matchExpressions[0].key",
        "is not a label key",
    ),
    (
        "from: [{podSelector: {matchExpressions: [{key: a, operator: In, values: [x, 'y z']}]}}]",
        "from[0].podSelector.matchExpressions[0].values[1]",
        "is not a label value",
    ),
    (
        "from: [{podSelector: {matchExpressions: [{key: a, operator: In, value: x}]}}]",
        "from[0].podSelector.matchExpressions[0].value",
        "known are key, operator, values",
    ),
    (
        "from: [{namespaceSelector: {matchExpressions: {key: a}}}]",
        "from[0].namespaceSelector.matchExpressions",
        "must be a list",
    ),
    (
        "from: [{namespaceSelector: {matchExpressions: [{key: a, operator: is}]}, podSelector: {matchLabels: {-a: x}}}]",
        "from[0].podSelector.matchLabels.-a",
        "is not a label key",
    ),
    // Blocks.
    ("from: [{ipBlock: {}}]", "from[0].ipBlock.cidr", "is missing"),
    (
        "from: [{ipBlock: {cidr: ''}}]",
        "from[0].ipBlock.cidr",
        "is missing",
    ),
    (
        "from: [{ipBlock: {cidr: 10.0.0.1}}]",
        "from[0].ipBlock.cidr",
        "write an address and a prefix length",
    ),
    (
        "from: [{ipBlock: {cidr: 10.0.0.0/33}}]",
        "from[0].ipBlock.cidr",
        "longer than 32 bits",
    ),
    (
        "from: [{ipBlock: {cidr: 'fd00::/129'}}]",
        "from[0].ipBlock.cidr",
        "longer than 128 bits",
    ),
    (
        "from: [{ipBlock: {cidr: 10.0.0.256/8}}]",
        "from[0].ipBlock.cidr",
        "is not a CIDR block",
    ),
    (
        "from: [{ipBlock: {cidr: 10.0.0.0/8, expect: []}}]",
        "from[0].ipBlock.expect",
        "known are cidr, except",
    ),
    (
        "from: [{ipBlock: {cidr: 10.0.0.0/8, except: [11.0.0.0/16]}}]",
        "from[0].ipBlock.except[0]",
        "is not strictly inside 10.0.0.0/8",
    ),
    (
        "from: [{ipBlock: {cidr: 10.0.0.0/8, except: [10.0.0.0/8]}}]",
        "from[0].ipBlock.except[0]",
        "is the whole block",
    ),
    (
        "from: [{ipBlock: {cidr: 10.0.0.0/16, except: [10.1.0.0/16, 10.0.0.0/8]}}]",
        "from[0].ipBlock.except[1]",
        "is not strictly inside",
    ),
    // Oddly written besides.
    (
        "from: [{ipBlock: {cidr: '::ffff:10.0.0.1/128', except: ['::ffff:10.0.0.1/128']}}]",
        "from[0].ipBlock.except[0]",
        "is the whole block",
    ),
    (
        "from: [{ipBlock: {cidr: 10.0.0.0/8, except: [11.0.0.1/16]}}]",
        "from[0].ipBlock.except[0]",
        "is not strictly inside 10.0.0.0/8",
    ),
    (
        "from: [{ipBlock: {cidr: 10.0.0.0/8, except: ['fd00::/16']}}]",
        "from[0].ipBlock.except[0]",
        "is not strictly inside",
    ),
    (
        "from: [{ipBlock: {cidr: 10.0.0.0/8, except: [x]}}]",
        "from[0].ipBlock.except[0]",
        "is not a CIDR block",
    ),
    (
        "from: [{ipBlock: {cidr: 10.0.0.0/8, except: 10.1.0.0/16}}]",
        "from[0].ipBlock.except",
        "must be a list",
    ),
    (
        "from: [{ipBlock: 10.0.0.0/8}]",
        "from[0].ipBlock",
        "a mapping with cidr",
    ),
    // Ports.
    (
        "ports: [{protocol: ICMP}]",
        "ports[0].protocol",
        "no rule can name it",
    ),
    ("ports: [{protocol: tcp}]", "ports[0].protocol", "write TCP"),
    (
        "ports: [{protocol: ''}]",
        "ports[0].protocol",
        "write TCP, UDP or SCTP",
    ),
    (
        "ports: [{protocol: 6}]",
        "ports[0].protocol",
        "write TCP, UDP or SCTP",
    ),
    ("ports: [{port: 0}]", "ports[0].port", "from 1 to 65535"),
    ("ports: [{port: 65536}]", "ports[0].port", "from 1 to 65535"),
    ("ports: [{port: -1}]", "ports[0].port", "from 1 to 65535"),
    ("ports: [{port: 80.5}]", "ports[0].port", "from 1 to 65535"),
    ("ports: [{port: true}]", "ports[0].port", "from 1 to 65535"),
    ("ports: [{port: '80'}]", "ports[0].port", "written without quotes"),
    ("ports: [{port: ''}]", "ports[0].port", "1 to 15 characters"),
    (
        "ports: [{port: a-name-that-is-too-long}]",
        "ports[0].port",
        "1 to 15 characters",
    ),
    ("ports: [{port: HTTP}]", "ports[0].port", "lower case"),
    (
        "ports: [{port: my_port}]",
        "ports[0].port",
        "lower case letters, digits and '-'",
    ),
    ("ports: [{port: -http}]", "ports[0].port", "may not begin or end"),
    ("ports: [{port: a--b}]", "ports[0].port", "nor contain '--'"),
    (
        "ports: [{endPort: 90}]",
        "ports[0].endPort",
        "write the first port of the range as port",
    ),
    (
        "ports: [{port: http, endPort: 90}]",
        "ports[0].endPort",
        "needs a numeric port",
    ),
    (
        "ports: [{port: 80, endPort: 79}]",
        "ports[0].endPort",
        "is below port 80",
    ),
    (
        "ports: [{port: 80, endPort: 65536}]",
        "ports[0].endPort",
        "from 1 to 65535",
    ),
    (
        "ports: [{port: 80, endPort: 0}]",
        "ports[0].endPort",
        "from 1 to 65535",
    ),
    (
        "ports: [{port: 80, endPort: x}]",
        "ports[0].endPort",
        "must be a number",
    ),
    (
        "ports: [{port: 80, endport: 90}]",
        "ports[0].endport",
        "write endPort",
    ),
    ("ports: [80]", "ports[0]", "must be a mapping"),
    ("ports: {port: 80}", "ports", "must be a list"),
    ("port: [{port: 80}]", "port", "known are ports, from"),
];

/// Bad `spec`s and objects.
const CASES: &[Case] = &[
    case(
        "podSelector: {matchLabels: {app: web}}\npolicyTypes: [ingress]",
        "spec.policyTypes[0]",
        "write Ingress",
        Both,
    ),
    case(
        "podSelector: {matchLabels: {app: web}}\npolicyTypes: [Egress, Both]",
        "spec.policyTypes[1]",
        "write Ingress or Egress",
        Both,
    ),
    case(
        "podSelector: {matchLabels: {app: web}}\npolicyTypes: [Egress, Egress, Egress]",
        "spec.policyTypes",
        "each once",
        Egress,
    ),
    case(
        "podSelector: {matchLabels: {app: web}}\npolicyTypes: Ingress",
        "spec.policyTypes",
        "must be a list",
        Both,
    ),
    case(
        "podSelector: {matchLabels: {app: web}}\npolicytypes: [Egress]",
        "spec.policytypes",
        "write policyTypes",
        Both,
    ),
    case(
        "podSelector: {matchLabels: {app: web}}\nengress: [{}]",
        "spec.engress",
        "unknown field",
        Both,
    ),
    case(
        "podSelector: {matchLabels: {app: web}}\nfrom: [{podSelector: {}}]",
        "spec.from",
        "belongs in a rule",
        Ingress,
    ),
    case(
        "podSelector: {matchLabels: {app: web}}\ningress: {from: []}",
        "spec.ingress",
        "must be a list",
        Ingress,
    ),
    case(
        "podSelector: {matchLabels: {app: web}}\ningress: [x]",
        "spec.ingress[0]",
        "must be a mapping",
        Ingress,
    ),
    case(
        "podSelector: {matchLabels: {app: web}}\npolicyTypes: [Egress]\negress: [{from: []}]",
        "spec.egress[0].from",
        "known are ports, to",
        Egress,
    ),
    case(
        "podSelector: {matchLabels: {app: web}}\npolicyTypes: [Ingress, Egress]\negress: [{ports: [{port: 0}]}]",
        "spec.egress[0].ports[0].port",
        "from 1 to 65535",
        Both,
    ),
    case(
        "podSelector: {matchLabels: {'a b': web}}",
        "spec.podSelector.matchLabels[\"a b\"]",
        "is not a label key",
        Namespace,
    ),
    case(
        "podSelector: {matchExpressions: [{key: app, operator: is, values: [web]}]}",
        "spec.podSelector.matchExpressions[0].operator",
        "is not an operator",
        Namespace,
    ),
    case(
        "podSelector: {app: web}",
        "spec.podSelector.app",
        "known are matchLabels",
        Namespace,
    ),
    case(
        "podSelector: web",
        "spec.podSelector",
        "must be a mapping",
        Namespace,
    ),
    case(
        "podSelectors: {}",
        "spec.podSelectors",
        "unknown field",
        Namespace,
    ),
    case(
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: bad, namespace: shop}\nspec: [x]\n",
        "spec",
        "must be a mapping",
        All,
    ),
    case(
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: bad, namespace: shop}\nspecs: {}\nspec: {podSelector: {matchLabels: {app: web}}}\n",
        "specs",
        "unknown field",
        Ingress,
    ),
    case(
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: Bad, namespace: shop}\nspec: {podSelector: {matchLabels: {app: web}}}\n",
        "metadata.name",
        "lower case",
        Ingress,
    ),
    case(
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: bad-, namespace: shop}\nspec: {podSelector: {matchLabels: {app: web}}}\n",
        "metadata.name",
        "at both ends",
        Ingress,
    ),
    case(
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: bad, namespace: shop, lables: {a: b}}\nspec: {podSelector: {matchLabels: {app: web}}}\n",
        "metadata.lables",
        "unknown field",
        Ingress,
    ),
    case(
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: bad, namespace: shop, labels: {a: 'b c'}}\nspec: {podSelector: {matchLabels: {app: web}}}\n",
        "metadata.labels.a",
        "is not a label value",
        Ingress,
    ),
    case(
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: bad, namespace: shop, labels: {'a b': c}}\nspec: {podSelector: {matchLabels: {app: web}}}\n",
        "metadata.labels[\"a b\"]",
        "is not a label key",
        Ingress,
    ),
    case(
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {generateName: Bad-, namespace: shop}\nspec: {podSelector: {matchLabels: {app: web}}}\n",
        "metadata.generateName",
        "lower case",
        Ingress,
    ),
    case(
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: bad, namespace: shop, uid: 7}\nspec: {podSelector: {matchLabels: {app: web}}}\n",
        "metadata.uid",
        "write \"7\"",
        Ingress,
    ),
    case(
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: bad, namespace: shop, generation: x}\nspec: {podSelector: {matchLabels: {app: web}}}\n",
        "metadata.generation",
        "must be a whole number",
        Ingress,
    ),
    case(
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: bad, namespace: shop, finalizers: {}}\nspec: {podSelector: {matchLabels: {app: web}}}\n",
        "metadata.finalizers",
        "must be a list",
        Ingress,
    ),
    case(
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: bad, namespace: shop, creationTimestamp: yesterday}\nspec: {podSelector: {matchLabels: {app: web}}}\n",
        "metadata.creationTimestamp",
        "is not a time",
        Ingress,
    ),
    case(
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: bad, namespace: shop, annotations: {a: 1}}\nspec: {podSelector: {matchLabels: {app: web}}}\n",
        "metadata.annotations.a",
        "write \"1\"",
        Ingress,
    ),
    case(
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: bad, namespace: shop, annotations: {'a b': x}}\nspec: {podSelector: {matchLabels: {app: web}}}\n",
        "metadata.annotations[\"a b\"]",
        "is not an annotation key",
        Ingress,
    ),
    case(
        "apiVersion: networking.k8s.io/v1beta1\nkind: NetworkPolicy\nmetadata: {name: bad, namespace: shop}\nspec: {podSelector: {matchLabels: {app: web}}}\n",
        "apiVersion",
        "write networking.k8s.io/v1",
        Ingress,
    ),
    case(
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicies\nmetadata: {name: bad, namespace: shop}\nspec: {podSelector: {matchLabels: {app: web}}}\n",
        "kind",
        "write NetworkPolicy",
        Ingress,
    ),
];

const OTHERS: &str = "
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: shop, labels: {app: web}}
status: {podIP: 10.1.0.1}
---
apiVersion: v1
kind: Pod
metadata: {name: db, namespace: shop, labels: {app: db}}
status: {podIP: 10.1.0.2}
---
apiVersion: v1
kind: Pod
metadata: {name: other, namespace: else, labels: {app: web}}
status: {podIP: 10.1.0.3}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: good, namespace: else}
spec:
  podSelector: {}
  ingress:
  - ports: [{port: 80}]
";

fn ringwall(args: &[&str]) -> (i32, Vec<Value>) {
    let output = Command::new(env!("CARGO_BIN_EXE_ringwall"))
        .args(args)
        .args(["-o", "json"])
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    (
        output.status.code().unwrap(),
        text.lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect(),
    )
}

/// Writes a case's file; its text, for lines.
fn write(dir: &Path, text: &str) -> String {
    let text = if text.starts_with("apiVersion") {
        text.to_owned()
    } else {
        let spec = text.replace('\n', "\n  ");
        format!(
            "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: bad, namespace: shop}}\nspec:\n  {spec}\n"
        )
    };
    fs::write(dir.join("bad.yaml"), &text).unwrap();
    fs::write(dir.join("others.yaml"), OTHERS).unwrap();
    text
}

fn refused(dir: &Path, text: &str, path: &str, says: &str, at: &str) {
    let (status, lines) = ringwall(&["check", "--manifests", dir.to_str().unwrap()]);
    assert_eq!(status, 1, "{text}");
    let errors: Vec<&Value> = lines.iter().filter(|line| line["severity"] == "error").collect();
    let found = errors.iter().find(|line| line["path"] == path);
    let Some(found) = found else {
        panic!("{text}: nothing about {path}: {errors:#?}");
    };
    assert!(
        found["message"].as_str().unwrap().contains(says),
        "{text}: {found}"
    );
    assert!(found["file"].as_str().unwrap().ends_with("bad.yaml"));
    let line = usize::try_from(found["line"].as_u64().unwrap()).unwrap();
    let line = text.lines().nth(line - 1).unwrap();
    assert!(line.contains(at), "{text}: {line:?} is not where {at:?} stands");
    // One mistake is reported once.
    let once = errors.iter().filter(|line| line["path"] == path).count();
    assert_eq!(once, 1, "{text}: {errors:#?}");
}

/// Whether a new flow passes.
fn passes(dir: &Path, flows: &[(&str, &str)]) -> Vec<bool> {
    let lines: Vec<String> = flows
        .iter()
        .map(|(src, dst)| json!({"src": src, "dst": dst, "protocol": "TCP", "dst_port": 80}).to_string())
        .collect();
    let file = dir.join("flows.jsonl");
    fs::write(&file, lines.join("\n")).unwrap();
    let (status, answers) = ringwall(&[
        "query",
        "--manifests",
        dir.to_str().unwrap(),
        "--flows",
        file.to_str().unwrap(),
    ]);
    assert_eq!(status, 0);
    answers
        .iter()
        .map(|answer| answer["verdict"] == "allow")
        .collect()
}

fn isolated(dir: &Path, text: &str, isolates: Isolates) {
    let answers = passes(
        dir,
        &[
            ("203.0.113.9", "shop/web"),
            ("shop/web", "203.0.113.9"),
            ("203.0.113.9", "shop/db"),
            ("shop/db", "203.0.113.9"),
            ("203.0.113.9", "else/other"),
            ("else/other", "203.0.113.9"),
        ],
    );
    let (ingress, egress, namespace) = match isolates {
        Ingress => (true, false, false),
        Egress => (false, true, false),
        Both => (true, true, false),
        Namespace => (true, false, true),
        All => (true, true, true),
    };
    let others_out = isolates != All;
    assert_eq!(
        answers,
        [!ingress, !egress, !namespace, others_out, true, true],
        "{text}: isolates {isolates:?}; others are untouched"
    );
}

#[test]
fn bad_rules_are_refused_and_isolate() {
    let dir = tempfile::tempdir().unwrap();
    for (rule, path, says) in RULES {
        let text = write(dir.path(), &format!("{WEB}\ningress:\n- {rule}"));
        refused(dir.path(), &text, &format!("spec.ingress[0].{path}"), says, rule);
        isolated(dir.path(), &text, Ingress);
    }
}

#[test]
fn bad_specs_and_metadata_are_refused_and_isolate() {
    let dir = tempfile::tempdir().unwrap();
    for Case {
        text,
        path,
        says,
        isolates,
    } in CASES
    {
        let text = write(dir.path(), text);
        // In these each key of the first two levels has a line of its own.
        let at = path
            .split(['.', '['])
            .find(|step| *step != "spec")
            .unwrap_or("spec");
        refused(dir.path(), &text, path, says, at);
        isolated(dir.path(), &text, *isolates);
    }
}

/// What looks wrong and is not: an API server takes all of it.
#[test]
fn odd_but_valid_policies_are_taken() {
    let dir = tempfile::tempdir().unwrap();
    for text in [
        "podSelector: {}\npolicyTypes: [Ingress, Ingress]",
        "podSelector: {matchLabels: {}}",
        "podSelector: {matchLabels: {app: ''}}",
        "podSelector: {matchLabels: {app: null}}",
        "podSelector: {matchExpressions: [{key: app, operator: Exists, values: []}]}",
        "podSelector: {matchExpressions: [{key: app, operator: In, values: [web]}, {key: app, operator: NotIn, values: [web]}]}",
        "podSelector: {}\ningress: [{ports: [{port: 80, endPort: 80}]}]",
        "podSelector: {}\ningress: [{ports: [{port: 80.0}, {port: a}, {port: x-11, protocol: UDP}, {protocol: SCTP}, {}]}]",
        "podSelector: {}\ningress: [{from: [{ipBlock: {cidr: 10.0.0.5/8, except: [10.1.0.0/16, 10.1.2.3/32]}}]}]",
        "podSelector: {}\ningress: [{from: [{podSelector: {}, namespaceSelector: null, ipBlock: null}]}]",
        "podSelector: {}\ningress: [null]\negress: null",
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {generateName: bad-, namespace: shop}\nspec: {}\n",
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: bad.x-1, namespace: shop, annotations: {Example.com/Note: any text}}\nspec: {podSelector: {}}\n",
    ] {
        write(dir.path(), text);
        let (status, lines) = ringwall(&["check", "--manifests", dir.path().to_str().unwrap()]);
        assert_eq!(status, 0, "{text}: {lines:#?}");
    }
}
