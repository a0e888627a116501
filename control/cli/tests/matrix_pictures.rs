//! The pictures of `ringwall matrix`: valid, the same every time, and saying what its JSON says.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test says what failed by panicking

mod ran;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use ran::{Ran, ringwall};
use ringwall_testbed::synthetic::{Spec, Synthetic};
use serde_json::{Value, json};

fn matrix(manifests: &Path, more: &[&str]) -> Ran {
    ringwall(&[&["matrix", "--manifests", manifests.to_str().unwrap()], more].concat())
}

fn drawn(manifests: &Path, more: &[&str]) -> String {
    let ran = matrix(manifests, more);
    assert_eq!(ran.status, 0, "{}", ran.err);
    ran.out
}

/// Workloads by name that stand for themselves, so that every one has its own row or shares one; and policies.
fn shop() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/examples/shop.yaml");
    std::fs::copy(docs, dir.path().join("shop.yaml")).unwrap();
    dir
}

/// By source and destination, each `namespace/name`: what is allowed.
fn wanted(manifests: &Path, more: &[&str]) -> BTreeMap<(String, String), Vec<String>> {
    let out = drawn(manifests, &[more, &["-o", "json"]].concat());
    out.lines()
        .map(|line| {
            let line: Value = serde_json::from_str(line).unwrap();
            let text = |key: &str| line[key].as_str().unwrap().to_owned();
            let allowed = line["allowed"].as_array().unwrap();
            let words = allowed
                .iter()
                .map(|word| word.as_str().unwrap().to_owned())
                .collect();
            ((text("src"), text("dst")), words)
        })
        .collect()
}

#[test]
fn every_cell_of_the_svg_says_what_the_json_says() {
    let dir = shop();
    let svg = drawn(dir.path(), &["--svg", "-"]);
    let document = roxmltree::Document::parse(&svg).unwrap();
    let root = document.root_element();
    assert_eq!(root.attribute("role"), Some("img"));
    for id in root.attribute("aria-labelledby").unwrap().split(' ') {
        let named = root.descendants().find(|node| node.attribute("id") == Some(id));
        assert!(!named.unwrap().text().unwrap().is_empty());
    }
    // `a/b to c/d: words`: the tooltip of a cell.
    let tooltips: BTreeMap<(String, String), (String, String)> = root
        .descendants()
        .filter(|node| node.has_tag_name("rect") && node.attribute("rx").is_some())
        .map(|cell| {
            let title = cell
                .parent()
                .unwrap()
                .children()
                .find(|node| node.has_tag_name("title"))
                .unwrap();
            let (pair, words) = title
                .text()
                .unwrap()
                .split_once(": ")
                .unwrap_or((title.text().unwrap(), ""));
            let (src, dst) = pair.split_once(" to ").unwrap_or((pair, ""));
            let form = cell.attribute("class").unwrap().to_owned();
            ((src.to_owned(), dst.to_owned()), (form, words.to_owned()))
        })
        .collect();
    let wanted = wanted(dir.path(), &[]);
    let mut compared = 0;
    let mut forms = BTreeSet::new();
    for ((src, dst), words) in &wanted {
        let Some((form, said)) = tooltips.get(&(src.clone(), dst.clone())) else {
            continue;
        };
        compared += 1;
        forms.insert(form.clone());
        let (wanted_form, wanted_words) = match words.join(", ").as_str() {
            "all" => ("a", "everything".to_owned()),
            "" => ("n", "nothing".to_owned()),
            ports => ("p", ports.to_owned()),
        };
        assert_eq!(
            (form.as_str(), said),
            (wanted_form, &wanted_words),
            "{src} to {dst}"
        );
    }
    // cart, catalogue and recommendations share a row; the others have one each.
    assert_eq!(compared, 9 * 9);
    assert_eq!(forms.len(), 3, "{forms:?}");
    assert!(
        tooltips
            .keys()
            .any(|(src, _)| src == "shop/cart, catalogue +1 ×3"),
        "{:?}",
        tooltips.keys()
    );
}

#[test]
fn pictures_are_the_same_every_time() {
    let dir = tempfile::tempdir().unwrap();
    Synthetic::new(Spec::sized(40, 200, 5))
        .unwrap()
        .write(dir.path())
        .unwrap();
    for option in ["--svg", "--dot"] {
        let first = drawn(dir.path(), &[option, "-"]);
        assert!(first.len() > 1000);
        assert_eq!(first, drawn(dir.path(), &[option, "-"]));
    }
}

/// The arrows of the graph, taken apart again: who may send what to whom.
fn taken_apart(dot: &str) -> BTreeMap<(String, String), String> {
    let quoted = |line: &str, key: &str| {
        let (_, rest) = line.split_once(&format!("{key}=\""))?;
        Some(rest.split_once('"')?.0.to_owned())
    };
    let (mut spaces, mut names, mut homes) = (Vec::new(), BTreeMap::new(), BTreeMap::new());
    let (mut among, mut everyone) = (BTreeMap::new(), BTreeMap::new());
    let mut arrows = Vec::new();
    for line in dot.lines().map(str::trim) {
        if line.starts_with("subgraph") {
            spaces.push(String::new());
        } else if let Some(label) = line
            .starts_with("label=")
            .then(|| quoted(line, "label"))
            .flatten()
        {
            let Some(space) = spaces.last_mut() else { continue };
            let (name, rest) = label.split_once("\\n").unwrap_or((&label, ""));
            *space = name.to_owned();
            if let Some(words) = rest.strip_prefix("(among themselves: ") {
                among.insert(spaces.len() - 1, words.trim_end_matches(')').to_owned());
            }
        } else if line.contains(" -> ") {
            arrows.push(line.to_owned());
        } else if let Some((node, _)) = line.split_once(" [label=").filter(|_| line.starts_with('n')) {
            let label = quoted(line, "label").unwrap();
            let (name, rest) = label.split_once("\\n").unwrap_or((&label, ""));
            names.insert(node.to_owned(), format!("{}/{name}", spaces.last().unwrap()));
            homes.insert(node.to_owned(), spaces.len() - 1);
            if let Some(words) = rest.strip_prefix("from everyone: ") {
                everyone.insert(node.to_owned(), words.to_owned());
            }
        }
    }
    let mut out = BTreeMap::new();
    let mut say = |src: &String, dst: &String, words: &str| {
        if src != dst {
            let before = out.insert((names[src].clone(), names[dst].clone()), words.to_owned());
            assert!(
                before.is_none_or(|before| before == words),
                "{src} to {dst} twice"
            );
        }
    };
    let all: Vec<&String> = homes.keys().collect();
    let of = |space: usize| -> Vec<&String> {
        homes
            .iter()
            .filter(|(_, it)| **it == space)
            .map(|(node, _)| node)
            .collect()
    };
    for (space, words) in &among {
        of(*space)
            .iter()
            .for_each(|src| of(*space).iter().for_each(|dst| say(src, dst, words)));
    }
    for (dst, words) in &everyone {
        all.iter().for_each(|src| say(src, dst, words));
    }
    for line in arrows {
        let (src, rest) = line.split_once(" -> ").unwrap();
        let (dst, more) = rest.split_once(" [").unwrap();
        let frame = |key: &str| -> Option<usize> {
            let (_, number) = more.split_once(&format!("{key}=cluster_"))?;
            number
                .chars()
                .take_while(char::is_ascii_digit)
                .collect::<String>()
                .parse()
                .ok()
        };
        let node = |name: &str| homes.get_key_value(name).map(|(node, _)| vec![node]).unwrap();
        let sources = frame("ltail").map_or_else(|| node(src), of);
        let targets = frame("lhead").map_or_else(|| node(dst), of);
        let words = quoted(more, "label").unwrap_or_else(|| "all".to_owned());
        for src in &sources {
            for dst in &targets {
                say(src, dst, &words);
                if more.contains("dir=both") {
                    say(dst, src, &words);
                }
            }
        }
    }
    out
}

#[test]
fn the_arrows_of_the_graph_taken_apart_are_the_matrix() {
    let dir = shop();
    // With a row that everyone reaches, and a namespace whose rows are all open to each other.
    let open = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "open", "namespace": "lab"}});
    let probe = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "probe", "namespace": "lab",
        "labels": {"role": "probe"}}});
    let policy = json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"name": "all", "namespace": "lab"},
        "spec": {"podSelector": {"matchLabels": {"role": "probe"}}, "ingress": [{"from": [{"namespaceSelector": {}}]}]}});
    let file = [open, probe, policy]
        .map(|object| format!("---\n{object}\n"))
        .concat();
    std::fs::write(dir.path().join("lab.yaml"), file).unwrap();
    let dot = drawn(dir.path(), &["--dot", "-"]);
    assert_eq!(dot.matches('{').count(), dot.matches('}').count());
    for merged in ["dir=both", "ltail=", "lhead=", "among themselves"] {
        assert!(dot.contains(merged), "no {merged} in\n{dot}");
    }
    let found = taken_apart(&dot);
    let mut compared = 0;
    for ((src, dst), words) in wanted(dir.path(), &[]) {
        let shared = |name: &str| ["shop/cart", "shop/catalogue", "shop/recommendations"].contains(&name);
        if src == dst || shared(&src) || shared(&dst) {
            continue;
        }
        let said = found
            .get(&(src.clone(), dst.clone()))
            .cloned()
            .unwrap_or_default();
        assert_eq!(said, words.join(", "), "{src} to {dst} in\n{dot}");
        compared += 1;
    }
    assert_eq!(compared, 11 * 10);
}

#[test]
fn names_cannot_break_out_of_a_picture() {
    let dir = tempfile::tempdir().unwrap();
    let odd = r#"a"><script>&amp;\"#;
    let pod =
        |name: &str| json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "x"}});
    let file = [pod(odd), pod("b")]
        .map(|object| format!("---\n{object}\n"))
        .concat();
    std::fs::write(dir.path().join("pods.yaml"), file).unwrap();
    let svg = drawn(dir.path(), &["--svg", "-"]);
    let document = roxmltree::Document::parse(&svg).unwrap();
    assert!(document.descendants().all(|node| !node.has_tag_name("script")));
    assert!(
        document
            .descendants()
            .any(|node| node.text().is_some_and(|text| text.contains(odd)))
    );
    let dot = drawn(dir.path(), &["--dot", "-"]);
    assert!(dot.contains(r#"a\"><script>&amp;\\"#), "{dot}");
}

#[test]
fn what_cannot_be_drawn_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    // Each pod a row of its own: each has a policy.
    let mut file = String::new();
    for number in 0..201 {
        let name = format!("p{number}");
        let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "x", "labels": {"n": name}}});
        let policy = json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
            "metadata": {"name": name, "namespace": "x"}, "spec": {"podSelector": {"matchLabels": {"n": name}}}});
        file += &format!("---\n{pod}\n---\n{policy}\n");
    }
    std::fs::write(dir.path().join("many.yaml"), file).unwrap();
    let refused = matrix(dir.path(), &["--svg", "-"]);
    assert_eq!(refused.status, 2, "{}", refused.err);
    assert!(
        refused.err.contains("201 rows") && refused.err.contains("--namespace"),
        "{}",
        refused.err
    );
    let refused = matrix(dir.path(), &["--svg", "-", "--namespace", "y"]);
    assert_eq!(refused.status, 2, "{}", refused.err);
    assert!(refused.err.contains("--namespace y"), "{}", refused.err);
    let refused = matrix(dir.path(), &["--dot", "/nonexistent/x.dot", "--namespace", "x"]);
    assert_eq!(refused.status, 2, "{}", refused.err);
}

#[test]
fn the_example_in_the_documentation_is_what_is_drawn() {
    let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs");
    for (option, file) in [("--svg", "matrix.svg"), ("--dot", "matrix.dot")] {
        let kept = std::fs::read_to_string(docs.join(file)).unwrap();
        let now = drawn(
            &docs.join("examples"),
            &["--external", "203.0.113.9", option, "-"],
        );
        assert_eq!(kept, now, "draw {file} again");
    }
}

#[test]
fn a_picture_too_large_to_read_is_refused_and_a_part_of_it_shown() {
    let dir = tempfile::tempdir().unwrap();
    let pods: String = (0..501)
        .map(|n| {
            format!("---\napiVersion: v1\nkind: Pod\nmetadata: {{name: p, namespace: n{n}}}\nspec: {{}}\n")
        })
        .collect();
    std::fs::write(dir.path().join("pods.yaml"), pods).unwrap();
    for (more, most) in [(&[][..], 500), (&["--svg", "-"], 200), (&["--dot", "-"], 200)] {
        let ran = matrix(dir.path(), more);
        assert_eq!((ran.status, ran.out.as_str()), (2, ""), "{more:?}");
        let says = format!(
            "501 rows are too many for a {} (most: {most})",
            if more.is_empty() { "table" } else { "picture" }
        );
        assert!(
            ran.err.contains(&says) && ran.err.contains("--namespace"),
            "{}",
            ran.err
        );
        let part = drawn(
            dir.path(),
            &[more, &["--namespace", "n0", "--namespace", "n500"]].concat(),
        );
        assert!(part.contains("n0/p") && part.contains("n500/p"), "{part}");
    }
}
