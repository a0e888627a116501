//! The lints as people and programs meet them: pages, recipes, silence, formats, and that what is called redundant is.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test may stop at the first surprise"
)]

mod ran;

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use ran::{Ran, ringwall};
use ringwall_analyse::lint::{Severity, rules, rules::Rule};
use serde_json::{Value, json};
use tempfile::TempDir;

fn check(dir: &Path, more: &[&str]) -> Ran {
    let mut args = vec!["check", "--manifests", dir.to_str().unwrap()];
    args.extend(more);
    ringwall(&args)
}

/// Every finding, and the summary.
fn findings(dir: &Path, more: &[&str]) -> (Vec<Value>, Value) {
    let ran = check(dir, &[&["-o", "json"], more].concat());
    assert_eq!(ran.err, "");
    let mut lines = ran.lines();
    let summary = lines.pop().unwrap();
    assert_eq!(ran.status == 0, summary["ok"] == true, "{summary}");
    (lines, summary)
}

fn ids(findings: &[Value]) -> BTreeSet<String> {
    findings
        .iter()
        .map(|it| it["id"].as_str().unwrap().to_owned())
        .collect()
}

fn folder(text: &str) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("all.yaml"), text).unwrap();
    dir
}

/// The example of a page.
fn example<'p>(page: &'p str, which: &str) -> Option<&'p str> {
    let (_, rest) = page.split_once(&format!("```yaml {which}\n"))?;
    Some(rest.split_once("```").unwrap().0)
}

/// What is no matter of manifests alone, so has no example of them.
const WITHOUT_EXAMPLE: &[&Rule] = &[rules::NOT_PROVEN, rules::INTENT_FAILED, rules::INTENT_VACUOUS];

#[test]
fn every_page_has_an_example_that_fires_and_one_that_does_not() {
    for rule in rules::ALL.iter().filter(|rule| !WITHOUT_EXAMPLE.contains(rule)) {
        let page = rule.page;
        assert!(
            page.starts_with(&format!("# {}: {}\n", rule.id, rule.name)),
            "{}",
            rule.id
        );
        for section in ["## Example", "## Why it surprises", "## What to do"] {
            assert!(page.contains(section), "{}: {section}", rule.id);
        }
        let bad = folder(example(page, "fires").unwrap());
        let (found, _) = findings(bad.path(), &[]);
        let Some(finding) = found.iter().find(|it| it["id"] == rule.id) else {
            panic!("{}: the example does not fire: {found:#?}", rule.id);
        };
        assert!(finding["line"].is_u64(), "{}: {finding}", rule.id);
        assert_eq!(finding["page"], rule.page_path());
        // Every lint shows a packet; what cannot be read has none.
        let of_reading = rule.id.starts_with("RW0");
        assert_eq!(
            finding["witness"].is_object(),
            !of_reading,
            "{}: {finding}",
            rule.id
        );
        if !of_reading {
            let severity = finding["severity"].as_str().unwrap();
            assert_eq!(severity, rule.severity.to_string(), "{}", rule.id);
            assert!(
                finding["fix"].as_str().is_some_and(|fix| !fix.is_empty()),
                "{}",
                rule.id
            );
        }
        let good = folder(example(page, "fixed").unwrap());
        let (found, _) = findings(good.path(), &[]);
        assert!(
            !ids(&found).contains(rule.id),
            "{}: the fixed example fires: {found:#?}",
            rule.id
        );
        // The remedy of one is not the cause of another.
        let others = found.iter().filter(|it| it["severity"] != "note").count();
        assert_eq!(
            others, 0,
            "{}: the fixed example has another fault: {found:#?}",
            rule.id
        );
    }
}

/// `docs/lints/README.md`, from the rules. `UPDATE=1` writes it.
#[test]
fn the_index_of_pages_is_up_to_date() {
    let mut index = "# What `ringwall check` finds\n\nEach page says what it is, shows an example that fires, why it surprises and what to do. \
        `ringwall check --explain ID`\nprints one. Silence a finding by `--allow ID`, by the annotation `ringwall.io/allow-ID: reason` on the \
        object, or in a file for\n`--decisions`; errors cannot be silenced.\n\n| id | name | severity | what |\n|---|---|---|---|\n"
        .to_owned();
    for rule in rules::ALL {
        index.push_str(&format!(
            "| [{0}]({0}.md) | {1} | {2} | {3} |\n",
            rule.id, rule.name, rule.severity, rule.summary
        ));
    }
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/lints/README.md");
    if std::env::var_os("UPDATE").is_some() {
        fs::write(&file, &index).unwrap();
    }
    assert_eq!(
        fs::read_to_string(&file).unwrap(),
        index,
        "run the test with UPDATE=1"
    );
}

#[test]
fn portability_notes_name_their_sources() {
    for rule in rules::ALL.iter().filter(|rule| rule.id.starts_with("RW5")) {
        assert_eq!(rule.severity, Severity::Note);
        let (_, sources) = rule.page.split_once("## Sources").unwrap();
        assert!(sources.contains("https://"), "{}", rule.id);
    }
}

#[test]
fn a_witness_is_what_query_answers() {
    // Ends that exist can be asked about again; the verdict is the snapshot's.
    let mut asked = 0;
    for rule in rules::ALL {
        let Some(example) = example(rule.page, "fires").filter(|_| !rule.id.starts_with("RW0")) else {
            continue;
        };
        let dir = folder(example);
        for finding in findings(dir.path(), &[]).0 {
            let witness = &finding["witness"];
            if witness["imagined"] != false {
                continue;
            }
            let service = witness["service"].as_str().unwrap();
            let flow = match service.split_once('/') {
                Some((port, protocol)) => serde_json::json!({
                    "src": witness["from"], "dst": witness["to"], "protocol": protocol,
                    "dst_port": port.parse::<u16>().unwrap(),
                }),
                None => {
                    serde_json::json!({ "src": witness["from"], "dst": witness["to"], "protocol": service })
                }
            };
            let flows = dir.path().join("flows.jsonl");
            fs::write(&flows, flow.to_string()).unwrap();
            let manifests = dir.path().to_str().unwrap();
            let ran = ringwall(&[
                "query",
                "--manifests",
                manifests,
                "--flows",
                flows.to_str().unwrap(),
                "-o",
                "json",
            ]);
            let answer: Value = serde_json::from_str(ran.out.trim()).unwrap();
            assert_eq!(answer["verdict"], witness["verdict"], "{finding} {answer}");
            asked += 1;
        }
    }
    assert!(asked > 30, "{asked}");
}

/// The recipes of the demo, each with the demo's cluster.
fn recipes() -> Vec<(String, TempDir)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../config/demo");
    let base = fs::read_to_string(root.join("cluster.yaml")).unwrap();
    let mut folders: Vec<PathBuf> = fs::read_dir(root.join("recipes"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    folders.sort();
    folders
        .iter()
        .map(|recipe| {
            let mut objects: Vec<String> = Vec::new();
            let mut add = |text: &str| {
                for document in text.split("\n---\n").filter(|it| it.contains("kind:")) {
                    objects.push(document.to_owned());
                }
            };
            for file in ["policy.yaml", "cluster.yaml"] {
                if let Ok(text) = fs::read_to_string(recipe.join(file)) {
                    add(&text);
                }
            }
            add(&base);
            // A recipe's own objects come before the base's of the same name.
            let mut seen = BTreeSet::new();
            objects.retain(|document| {
                let kind = document.lines().find(|line| line.starts_with("kind:"));
                let metadata = document.lines().find(|line| line.starts_with("metadata: {"));
                let name = metadata.map(|line| line.split("labels").next().unwrap().to_owned());
                name.is_none_or(|name| seen.insert((kind.map(str::to_owned), name)))
            });
            let name = recipe.file_name().unwrap().to_str().unwrap().to_owned();
            (name, folder(&objects.join("\n---\n")))
        })
        .collect()
}

#[test]
fn recipes_that_are_fine_are_left_alone() {
    let mut unexpected = String::new();
    let all = recipes();
    assert_eq!(all.len(), 45);
    for (name, dir) in &all {
        for finding in findings(dir.path(), &[]).0 {
            let id = finding["id"].as_str().unwrap();
            // Notes about other implementations, and about the demo's bystanders, occur nearly everywhere.
            if id.starts_with("RW5") || id == "RW404" {
                assert_eq!(finding["severity"], "note");
                continue;
            }
            unexpected.push_str(&format!(
                "{name}: {id} {} {}: {}\n",
                finding["severity"].as_str().unwrap(),
                finding["path"].as_str().unwrap_or_default(),
                finding["message"].as_str().unwrap()
            ));
        }
    }
    insta::assert_snapshot!(unexpected);
}

const TWO_WARNINGS: &str = "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: web, namespace: shop}
spec:
  podSelector: {matchLabels: {app: web}}
  egress: []
  ingress:
  - ports: []
---
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: shop, labels: {app: web}}
";

#[test]
fn findings_are_silenced_and_denied() {
    let dir = folder(TWO_WARNINGS);
    let (found, summary) = findings(dir.path(), &[]);
    let warnings = |found: &[Value]| -> Vec<String> {
        let it = found.iter().filter(|it| it["severity"] == "warning");
        it.map(|it| it["id"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(warnings(&found), ["RW106", "RW109"]);
    assert_eq!(
        (&summary["warnings"], &summary["silenced"]),
        (&2.into(), &0.into())
    );
    assert_eq!(check(dir.path(), &[]).status, 0);
    assert_eq!(check(dir.path(), &["--strict"]).status, 1);
    let (found, summary) = findings(dir.path(), &["--allow", "RW106"]);
    assert_eq!(warnings(&found), ["RW109"]);
    assert_eq!(summary["silenced"], 1);
    assert_eq!(
        check(dir.path(), &["--strict", "--allow", "RW106", "--allow", "RW109"]).status,
        0
    );
    assert_eq!(check(dir.path(), &["--deny", "RW106"]).status, 1);

    // What reading warns of is silenced, too; what is an error is not.
    let odd = folder(
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: web, namespace: shop}\n",
    );
    assert!(ids(&findings(odd.path(), &[]).0).contains("RW005"));
    let (found, summary) = findings(odd.path(), &["--allow", "RW005"]);
    assert!(!ids(&found).contains("RW005"));
    assert_eq!(summary["silenced"], 1);
    assert_eq!(check(odd.path(), &["--allow", "RW002"]).status, 2);
    let contradictory = "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: web, namespace: shop}\nspec:\n  podSelector: {matchExpressions: [{key: a, operator: Exists}, {key: a, operator: DoesNotExist}]}\n  ports: [{port: 1}]\n";
    assert_eq!(
        check(folder(contradictory).path(), &["--allow", "RW101"]).status,
        1
    );

    let decisions = dir.path().join("decisions.txt");
    let file = decisions.to_str().unwrap();
    fs::write(
        &decisions,
        "allow:\n  RW109: everything is meant\ndeny: [RW106]\n",
    )
    .unwrap();
    let (found, _) = findings(dir.path(), &["--decisions", file]);
    assert_eq!(warnings(&found), Vec::<String>::new());
    assert!(
        found
            .iter()
            .any(|it| it["id"] == "RW106" && it["severity"] == "error")
    );
    for (text, wrong) in [
        ("allow: {RW109: ''}", "without a reason"),
        ("allow: {RW999: x}", "no rule has the id \"RW999\""),
        ("allow: {RW002: x}", "cannot be ignored"),
        ("alow: {}", "alow"),
    ] {
        fs::write(&decisions, text).unwrap();
        let ran = check(dir.path(), &["--decisions", file]);
        assert_eq!(ran.status, 2, "{text}");
        assert!(ran.err.contains(wrong), "{text}: {}", ran.err);
    }
    fs::remove_file(decisions).unwrap();

    let annotated = TWO_WARNINGS.replace(
        "namespace: shop}\nspec",
        "namespace: shop, annotations: {ringwall.io/allow-RW106: it is left open, ringwall.io/allow-RW109: ''}}\nspec",
    );
    let (found, summary) = findings(folder(&annotated).path(), &[]);
    assert_eq!(warnings(&found), ["RW006", "RW109"]);
    assert_eq!(summary["silenced"], 1);
}

#[test]
fn words_point_at_the_place() {
    let dir = folder(TWO_WARNINGS);
    let ran = check(
        dir.path(),
        &["--allow", "RW502", "--allow", "RW506", "--allow", "RW404"],
    );
    assert_eq!(ran.status, 0);
    // How long the proof took differs.
    let (findings, _) = ran.out.split_once("; the snapshot is proven").unwrap();
    insta::assert_snapshot!(findings.replace(dir.path().to_str().unwrap(), "DIR"));
    // One line of JSON is cut, and the caret stays below its word.
    let long = format!(
        "{{\"apiVersion\": \"networking.k8s.io/v1\", \"kind\": \"NetworkPolicy\", \"metadata\": {{\"name\": \"p\", \"annotations\": {{\"x\": \"{}\"}}}}, \"spec\": {{\"policyTypes\": [\"ingress\"]}}}}",
        "y".repeat(300)
    );
    let ran = check(folder(&long).path(), &[]);
    let lines: Vec<&str> = ran.out.lines().collect();
    let caret = lines.iter().position(|line| line.contains('^')).unwrap();
    let at = lines[caret].find('^').unwrap();
    assert!(lines[caret - 1][at..].starts_with("\"ingress\""), "{}", ran.out);
    assert!(lines[caret - 1].len() < 130);
}

/// What the schema of SARIF 2.1.0 demands of what is written here, and what code hosts demand beyond it.
#[test]
fn sarif_is_as_its_schema_demands() {
    let dir = folder(&format!(
        "{TWO_WARNINGS}---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: x}}\nspec: {{podSelectr: {{}}}}\n---\napiVersion: v1\nkind: Pod\nmetadata: {{name: db, namespace: shop}}\n"
    ));
    let file = dir.path().join("findings.sarif");
    let ran = check(dir.path(), &["--sarif", file.to_str().unwrap()]);
    assert_eq!(ran.status, 1);
    assert!(ran.out.contains("failed: "), "{}", ran.out);
    let log: Value = serde_json::from_str(&fs::read_to_string(file).unwrap()).unwrap();
    assert_eq!(log["version"], "2.1.0");
    assert!(log["$schema"].as_str().unwrap().contains("sarif-2.1.0"));
    let keys = |value: &Value| -> BTreeSet<String> { value.as_object().unwrap().keys().cloned().collect() };
    let within = |value: &Value, allowed: &[&str]| {
        for key in keys(value) {
            assert!(allowed.contains(&key.as_str()), "{key} in {value}");
        }
    };
    let [run] = log["runs"].as_array().unwrap().as_slice() else {
        panic!("one run")
    };
    within(run, &["tool", "results", "columnKind"]);
    let driver = &run["tool"]["driver"];
    within(driver, &["name", "version", "semanticVersion", "rules"]);
    assert_eq!(driver["name"], "ringwall");
    let rules = driver["rules"].as_array().unwrap();
    for rule in rules {
        within(
            rule,
            &[
                "id",
                "name",
                "shortDescription",
                "help",
                "helpUri",
                "defaultConfiguration",
            ],
        );
        assert!(!rule["shortDescription"]["text"].as_str().unwrap().is_empty());
        let page = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("../..")
            .join(rule["helpUri"].as_str().unwrap());
        assert!(page.is_file(), "{}", page.display());
    }
    let names: BTreeSet<&str> = rules.iter().map(|rule| rule["id"].as_str().unwrap()).collect();
    assert_eq!(names.len(), rules.len(), "ids are unique");
    let results = run["results"].as_array().unwrap();
    assert!(results.len() > 3);
    let mut levels = BTreeSet::new();
    for result in results {
        within(
            result,
            &[
                "ruleId",
                "ruleIndex",
                "level",
                "message",
                "locations",
                "partialFingerprints",
                "properties",
            ],
        );
        let index = usize::try_from(result["ruleIndex"].as_u64().unwrap()).unwrap();
        assert_eq!(rules[index]["id"], result["ruleId"]);
        let level = result["level"].as_str().unwrap();
        assert!(["error", "warning", "note"].contains(&level));
        levels.insert(level);
        assert!(!result["message"]["text"].as_str().unwrap().is_empty());
        let location = &result["locations"][0];
        within(location, &["physicalLocation", "logicalLocations"]);
        let physical = &location["physicalLocation"];
        let uri = physical["artifactLocation"]["uri"].as_str().unwrap();
        assert!(uri.starts_with("file:///") && !uri.contains(' '), "{uri}");
        let region = &physical["region"];
        within(region, &["startLine", "startColumn", "endColumn"]);
        assert!(region["startLine"].as_u64().unwrap() >= 1);
        let (start, end) = (
            region["startColumn"].as_u64().unwrap(),
            region["endColumn"].as_u64().unwrap(),
        );
        assert!(1 <= start && start < end, "{region}");
    }
    assert_eq!(levels, BTreeSet::from(["error", "note", "warning"]));
    // Relative where the folder was.
    let output = Command::new(env!("CARGO_BIN_EXE_ringwall"))
        .args(["check", "--manifests", ".", "--sarif", "-"])
        .current_dir(dir.path())
        .output()
        .unwrap();
    let log: Value = serde_json::from_slice(&output.stdout).unwrap();
    let uri = &log["runs"][0]["results"][0]["locations"][0]["physicalLocation"]["artifactLocation"]["uri"];
    assert_eq!(uri, "all.yaml");
}

#[test]
fn pages_and_rules_can_be_read_from_the_command() {
    let page = ringwall(&["check", "--explain", "RW102"]);
    assert_eq!((page.status, page.out.as_str()), (0, rules::OR_WHERE_AND.page));
    let all = ringwall(&["check", "--explain", "all", "-o", "json"]);
    let lines: Vec<Value> = all
        .out
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(lines.len(), rules::ALL.len());
    assert_eq!(ringwall(&["check", "--explain", "RW9"]).status, 2);
}

#[test]
fn a_fatal_error_is_json_where_that_is_asked_for() {
    for args in [
        vec!["check", "--manifests", "/nonexistent", "-o", "json"],
        vec!["check", "--output=json"],
        vec![
            "-o",
            "json",
            "query",
            "--manifests",
            "/nonexistent",
            "--flows",
            "-",
        ],
        vec!["frobnicate", "-ojson"],
    ] {
        let ran = ringwall(&args);
        assert_eq!((ran.status, ran.err.as_str()), (2, ""), "{args:?}");
        let error: Value = serde_json::from_str(ran.out.trim()).unwrap();
        assert!(
            error["error"].as_str().is_some_and(|it| it.len() > 10),
            "{args:?}: {error}"
        );
    }
    let ran = ringwall(&["check", "--output=human", "--manifests", "/nonexistent"]);
    assert_eq!((ran.status, ran.out.as_str()), (2, ""));
}

/// Findings by id and the time that the lints take, on synthetic clusters.
#[test]
#[ignore = "a figure, not a check: run it with --release --ignored --nocapture"]
fn lints_of_synthetic_clusters() {
    use ringwall_analyse::lint;
    use ringwall_policy::Settings;
    use ringwall_source::folder;
    use ringwall_testbed::synthetic::{Spec, Synthetic};
    let sizes = std::env::var("SIZES").unwrap_or_else(|_| "200/2000/20 1000/10000/100".to_owned());
    for size in sizes.split(' ') {
        let of: Vec<usize> = size.split('/').map(|it| it.parse().unwrap()).collect();
        let dir = tempfile::tempdir().unwrap();
        Synthetic::new(Spec::sized(of[0], of[1], of[2]))
            .unwrap()
            .write(dir.path())
            .unwrap();
        // CLUSTER_WIDE policies of the Admin and Baseline tiers.
        let cluster_wide = std::env::var("CLUSTER_WIDE").map_or(0, |it| it.parse().unwrap());
        for index in 0..cluster_wide {
            let (tier, action) = [("Admin", "Accept"), ("Admin", "Pass"), ("Baseline", "Deny")][index % 3];
            let policy = format!(
                "apiVersion: policy.networking.k8s.io/v1alpha2\nkind: ClusterNetworkPolicy\nmetadata: {{name: wide-{index}}}\nspec: {{tier: {tier}, priority: {index}, subject: {{namespaces: {{}}}}, ingress: [{{action: {action}, from: [{{namespaces: {{matchLabels: {{team: t{index}}}}}}}], protocols: [{{tcp: {{destinationPort: {{number: 80}}}}}}]}}, {{action: Deny, from: [{{namespaces: {{matchLabels: {{team: x{index}}}}}}}]}}]}}\n"
            );
            fs::write(dir.path().join(format!("wide-{index}.yaml")), policy).unwrap();
        }
        let (loaded, written) = folder::inspect(dir.path(), &Settings::default()).unwrap();
        let began = std::time::Instant::now();
        let linted = lint::run(
            &loaded.cluster,
            &loaded.services,
            &written,
            &loaded.problems,
            &lint::Suppressions::default(),
        )
        .unwrap();
        let took = began.elapsed();
        let mut counts = std::collections::BTreeMap::new();
        for finding in &linted.findings {
            *counts.entry(finding.id).or_insert(0) += 1;
        }
        println!("{size} (policies/pods/namespaces): {took:?} {counts:?}");
    }
}

/// Workloads have no addresses yet, but will have some of the pod network.
#[test]
fn blocks_that_will_hold_the_pods_of_workloads_are_told() {
    let workload = |name: &str| {
        format!(
            "apiVersion: apps/v1\nkind: Deployment\nmetadata: {{name: {name}, namespace: shop}}\nspec:\n  \
             selector: {{matchLabels: {{app: {name}}}}}\n  template:\n    metadata: {{labels: {{app: {name}}}}}\n    \
             spec: {{containers: [{{name: c}}]}}\n---\n"
        )
    };
    let said = |cidr: &str, pods: &[&str]| {
        let policy = format!(
            "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: db, namespace: shop}}\nspec:\n  \
             podSelector: {{matchLabels: {{app: db}}}}\n  ingress: [{{from: [{{ipBlock: {{cidr: {cidr}}}}}]}}]\n"
        );
        let dir = folder(&(workload("web") + &workload("db") + &policy));
        let more: Vec<&str> = pods.iter().flat_map(|network| ["--pod-cidr", network]).collect();
        ids(&findings(dir.path(), &more).0).contains("RW501")
    };
    assert!(said("10.0.0.0/8", &["10.0.0.0/8"]));
    assert!(said("10.1.0.0/16", &["10.0.0.0/8"]));
    assert!(said("0.0.0.0/0", &[]));
    assert!(!said("203.0.113.0/24", &["10.0.0.0/8"]));
    // Nothing says that pods are there.
    assert!(!said("203.0.113.0/24", &[]));
}

/// A selector is what `kubectl` makes of it, and its words are those of the file.
#[test]
fn labels_that_are_no_text_to_yaml_are_told_as_they_are_written() {
    let policy = |labels: &str| {
        folder(&format!(
            "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: web, namespace: shop}}\nspec:\n  \
             podSelector: {{matchLabels: {{{labels}}}}}\n  policyTypes: [Ingress]\n"
        ))
    };
    let (found, summary) = findings(policy("on: x").path(), &[]);
    let finding = found.iter().find(|it| it["id"] == "RW007").unwrap();
    assert_eq!(
        (&finding["line"], &summary["ok"]),
        (&json!(5), &json!(true)),
        "{finding}"
    );
    assert!(
        finding["message"]
            .as_str()
            .unwrap()
            .contains("the key on as a boolean, and it becomes \"true\""),
        "{finding}"
    );
    for (labels, says) in [
        ("app: on", "YAML reads on as a boolean: write \"on\""),
        ("app: 1.10", "YAML reads 1.10 as a number: write \"1.10\""),
        ("app: y", "YAML reads y as a boolean: write \"y\""),
    ] {
        let (found, summary) = findings(policy(labels).path(), &[]);
        assert_eq!(summary["ok"], false, "{labels}");
        let finding = found.iter().find(|it| it["id"] == "RW002").unwrap();
        assert!(finding["message"].as_str().unwrap().contains(says), "{finding}");
        assert!(!ids(&found).contains("RW007"), "{found:?}");
    }
    // Of kinds that have no part in policy, too.
    let other = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: web, labels: {app: 1.10}}\ndata: {n: x}\n";
    let (found, _) = findings(folder(other).path(), &["--allow-empty"]);
    let finding = found.iter().find(|it| it["id"] == "RW007").unwrap();
    assert!(
        finding["message"].as_str().unwrap().contains("write \"1.10\""),
        "{finding}"
    );
    assert_eq!(
        found.iter().filter(|it| it["id"] == "RW007").count(),
        1,
        "{found:?}"
    );
}

const SELECTING: &str = "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: p, namespace: shop}\nspec:\n  \
                         podSelector: {matchLabels: {app: web}}\n  policyTypes: [Ingress]\n---\n";

const OTHER_POD: &str =
    "apiVersion: v1\nkind: Pod\nmetadata: {name: db, namespace: shop, labels: {app: db}}\n---\n";

/// An unknown kind may hold a template of pods, or make pods in its own way.
#[test]
fn pods_of_unknown_kinds_are_read_or_allowed_for() {
    let rollout = "apiVersion: argoproj.io/v1alpha1\nkind: Rollout\nmetadata: {name: web, namespace: shop}\nspec:\n  \
                   template:\n    metadata: {labels: {app: web}}\n    spec: {containers: [{name: c}]}\n";
    let (found, summary) = findings(folder(&format!("{SELECTING}{OTHER_POD}{rollout}")).path(), &[]);
    assert_eq!(
        (summary["pods"].as_u64(), ids(&found).contains("RW202")),
        (Some(2), false),
        "{found:#?}"
    );
    let database = "apiVersion: db.example.com/v1\nkind: Database\nmetadata: {name: web, namespace: shop}\nspec: {size: 3}\n";
    let (found, _) = findings(folder(&format!("{SELECTING}{OTHER_POD}{database}")).path(), &[]);
    let finding = found.iter().find(|it| it["id"] == "RW202").unwrap();
    assert_eq!(finding["severity"], "note", "{finding}");
    assert!(
        finding["message"]
            .as_str()
            .unwrap()
            .contains("pods that Database may make"),
        "{finding}"
    );
    let (found, _) = findings(folder(&format!("{SELECTING}{OTHER_POD}")).path(), &[]);
    let finding = found.iter().find(|it| it["id"] == "RW202").unwrap();
    assert_eq!(finding["severity"], "warning", "{finding}");
}

#[test]
fn a_namespace_that_is_named_and_not_here_is_elsewhere() {
    let spaces = "apiVersion: v1\nkind: Namespace\nmetadata: {name: shop, labels: {team: red}}\n---\n";
    let policy = |selector: &str| {
        format!(
            "{spaces}{OTHER_POD}apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: p, namespace: \
             shop}}\nspec:\n  podSelector: {{}}\n  ingress: [{{from: [{{namespaceSelector: {{matchLabels: \
             {{{selector}}}}}}}]}}]\n"
        )
    };
    for (selector, severity) in [
        ("kubernetes.io/metadata.name: istio-system", "note"),
        ("kubernetes.io/metadata.name: shopp", "warning"),
        ("team: blue", "warning"),
    ] {
        let (found, _) = findings(folder(&policy(selector)).path(), &[]);
        let finding = found.iter().find(|it| it["id"] == "RW201").unwrap();
        assert_eq!(finding["severity"], severity, "{finding}");
    }
}

#[test]
fn dns_is_where_its_pods_listen() {
    let policy = |rule: &str| {
        format!(
            "{OTHER_POD}apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: p, namespace: shop}}\n\
             spec:\n  podSelector: {{}}\n  policyTypes: [Egress]\n  egress: [{rule}]\n"
        )
    };
    let dns = "---\napiVersion: v1\nkind: Pod\nmetadata: {name: dns, namespace: kube-system, labels: {k8s-app: kube-dns}}\n";
    let web = "{to: [{podSelector: {}}], ports: [{port: 80}]}";
    let openshift = "{to: [{namespaceSelector: {}}], ports: [{port: 5353, protocol: UDP}]}";
    let dns_lints = |text: &str| -> BTreeSet<String> {
        let found = ids(&findings(folder(text).path(), &[]).0);
        found
            .into_iter()
            .filter(|id| ["RW103", "RW104", "RW105"].contains(&id.as_str()))
            .collect()
    };
    let only = |id: &str| BTreeSet::from([id.to_owned()]);
    assert_eq!(dns_lints(&policy(web)), only("RW103"));
    assert_eq!(
        dns_lints(&policy(&format!("{web}, {openshift}"))),
        BTreeSet::new()
    );
    // Where the servers are known, they listen on 53.
    assert_eq!(
        dns_lints(&(policy(&format!("{web}, {openshift}")) + dns)),
        only("RW103")
    );
    // A rule without ports has not opened port 53 on purpose.
    assert_eq!(
        dns_lints(&(policy("{to: [{podSelector: {}}]}") + dns)),
        only("RW103")
    );
}

#[test]
fn what_is_no_manifest_yet_says_what_to_do_first() {
    let patch = "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: x}\n$patch: delete\n---\n";
    let (found, summary) = findings(folder(&format!("{OTHER_POD}{patch}")).path(), &[]);
    assert_eq!(
        (summary["ok"].as_bool(), summary["pods"].as_u64()),
        (Some(true), Some(1)),
        "{found:#?}"
    );
    assert!(found.iter().any(|it| {
        it["message"]
            .as_str()
            .unwrap()
            .contains("check the output of kustomize build")
    }));
    let kustomization =
        "apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\nnamespace: auth\n---\n";
    let (found, _) = findings(folder(&format!("{OTHER_POD}{kustomization}")).path(), &[]);
    assert!(
        found
            .iter()
            .any(|it| { it["message"].as_str().unwrap().contains("kustomize may change") })
    );
    let template = "apiVersion: v1\nkind: Pod\nmetadata:\n  name: {{ .Values.name }}\n  {{- if .Values.x }}\n  x: y\n  {{- end }}\n";
    for (name, text) in [
        ("a.yaml", template),
        ("Chart.yaml", "apiVersion: v2\nname: x\nversion: 1.0.0\n"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(name), text).unwrap();
        let (found, _) = findings(dir.path(), &[]);
        assert!(
            found[0]["message"].as_str().unwrap().contains("helm template"),
            "{found:#?}"
        );
    }
}

/// A Service whose pods listen on another port than its own, a client, a node, the API server on that.
const BEHIND_SERVICE: &str = r"
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {clusterIP: 10.96.0.7, selector: {app: web}, ports: [{port: 80, targetPort: 8080}]}
---
apiVersion: v1
kind: Node
metadata: {name: n1}
spec: {podCIDRs: [10.244.0.0/24]}
status: {addresses: [{type: InternalIP, address: 192.168.0.10}]}
---
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: shop, labels: {app: web}}
---
apiVersion: v1
kind: Pod
metadata: {name: client, namespace: shop, labels: {app: client}}
---
";

const CLUSTER_WIDE: &str =
    "apiVersion: policy.networking.k8s.io/v1alpha2\nkind: ClusterNetworkPolicy\nmetadata: {name: it}\nspec: ";
const ADMIN: &str =
    "apiVersion: policy.networking.k8s.io/v1alpha1\nkind: AdminNetworkPolicy\nmetadata: {name: it}\nspec: ";
const GLOBAL: &str =
    "apiVersion: projectcalico.org/v3\nkind: GlobalNetworkPolicy\nmetadata: {name: it}\nspec: ";
const CALICO: &str =
    "apiVersion: projectcalico.org/v3\nkind: NetworkPolicy\nmetadata: {name: it, namespace: shop}\nspec: ";

/// RW401, RW402 and RW414 in policies of every kind whose rules decide in order: id, kind, spec, path of the finding, and the
/// verdict of its packet. With the last pair exchanged, the spec is free of it.
#[test]
fn policies_of_every_kind_are_checked_against_services() {
    let web = "pods: {namespaceSelector: {}, podSelector: {matchLabels: {app: web}}}";
    let client = "pods: {namespaceSelector: {}, podSelector: {matchLabels: {app: client}}}";
    let port = "tcp: {destinationPort: {number: 80}}";
    let everything = "action: Deny, from: [{namespaces: {}}]";
    let cases = [
        (
            "RW401",
            CLUSTER_WIDE,
            format!(
                "{{tier: Admin, priority: 1, subject: {{{web}}}, ingress: [{{action: Accept, from: [{{{client}}}], protocols: [{{{port}}}]}}, {{{everything}}}]}}"
            ),
            "spec.ingress[0].protocols[0].tcp.destinationPort.number",
            "deny",
            ("number: 80", "number: 8080"),
        ),
        // What is to be denied passes.
        (
            "RW401",
            CLUSTER_WIDE,
            format!(
                "{{tier: Admin, priority: 1, subject: {{{client}}}, egress: [{{action: Deny, to: [{{{web}}}], protocols: [{{{port}}}]}}]}}"
            ),
            "spec.egress[0].protocols[0].tcp.destinationPort.number",
            "allow",
            ("number: 80", "number: 8080"),
        ),
        (
            "RW401",
            ADMIN,
            format!(
                "{{priority: 1, subject: {{{web}}}, ingress: [{{action: Deny, from: [{{{client}}}], ports: [{{portNumber: {{protocol: TCP, port: 80}}}}]}}]}}"
            ),
            "spec.ingress[0].ports[0].portNumber.port",
            "allow",
            ("port: 80}", "port: 8080}"),
        ),
        (
            "RW401",
            GLOBAL,
            "{selector: app == 'web', ingress: [{action: Allow, protocol: TCP, source: {selector: app == 'client'}, destination: {ports: [443, 80]}}]}"
                .to_owned(),
            "spec.ingress[0].destination.ports[1]",
            "deny",
            ("80]", "8080]"),
        ),
        (
            "RW401",
            CALICO,
            "{selector: app == 'client', types: [Egress], egress: [{action: Allow, protocol: TCP, destination: {selector: app == 'web', ports: [80]}}]}"
                .to_owned(),
            "spec.egress[0].destination.ports[0]",
            "deny",
            ("[80]", "[8080]"),
        ),
        (
            "RW402",
            CLUSTER_WIDE,
            format!(
                "{{tier: Admin, priority: 1, subject: {{{client}}}, egress: [{{action: Deny, to: [{{networks: [192.0.2.0/24]}}, {{networks: [10.96.0.7/32]}}]}}]}}"
            ),
            "spec.egress[0].to[1].networks[0]",
            "allow",
            ("10.96.0.7/32", "10.97.0.7/32"),
        ),
        (
            "RW402",
            GLOBAL,
            "{selector: app == 'client', types: [Egress], egress: [{action: Allow, destination: {nets: [192.0.2.0/24, 10.96.0.7/32]}}]}"
                .to_owned(),
            "spec.egress[0].destination.nets[1]",
            "deny",
            ("10.96.0.7/32", "10.97.0.7/32"),
        ),
        (
            "RW414",
            CLUSTER_WIDE,
            format!(
                "{{tier: Admin, priority: 1, subject: {{{client}}}, egress: [{{action: Deny, to: [{{pods: {{namespaceSelector: {{}}, podSelector: {{matchLabels: {{component: kube-apiserver}}}}}}}}]}}]}}"
            ),
            "spec.egress[0].to",
            "allow",
            ("kube-apiserver", "web"),
        ),
        (
            "RW414",
            CALICO,
            "{selector: app == 'client', types: [Egress], egress: [{action: Allow, destination: {namespaceSelector: all(), selector: component == 'kube-apiserver'}}]}"
                .to_owned(),
            "spec.egress[0].destination.selector",
            "deny",
            ("kube-apiserver", "web"),
        ),
    ];
    for (id, kind, spec, path, verdict, (from, to)) in cases {
        let text = format!("{BEHIND_SERVICE}{kind}{spec}\n");
        let (found, _) = findings(folder(&text).path(), &[]);
        let mut of_it = found.iter().filter(|it| it["id"] == id);
        let Some(finding) = of_it.next() else {
            panic!("{id} is missing in\n{spec}\n{found:#?}");
        };
        assert_eq!(of_it.next(), None, "{id} is reported once: {spec}");
        assert_eq!(finding["path"], path, "{spec}");
        assert_eq!(finding["witness"]["verdict"], verdict, "{finding:#}");
        let mended = text.replace(from, to);
        assert_ne!(mended, text, "{spec}");
        let (found, _) = findings(folder(&mended).path(), &[]);
        assert!(!ids(&found).contains(id), "{mended}\n{found:#?}");
    }
}
