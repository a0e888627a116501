//! Where there are only NetworkPolicies, nothing has changed with the tiers: verdicts, deciding policies and hashes of meaning of
//! random folders are those that the last version without tiers gave (commit 0cea193, `ringwall query` and `compile`).
//!
//! `before_tiers/golden.txt.gz` has a line per folder: its number; the first 16 digits of the hash of meaning; per flow `d` where both directions
//! deny, `i` where ingress does alone, `e` where egress does alone, `a` where none does, `?` where either depends on an address,
//! `x` where there is no answer; a hash of who decided. Folders depend on their number alone; `write_the_folders` writes them for another version to
//! answer.
#![allow(clippy::unwrap_used, reason = "a test may stop at the first surprise")]

use std::{fmt::Write, fs, io::Read, path::Path};

use random::Random;
use ringwall_analyse::{
    flow::Flow,
    judge::{Answer, Fate, Judge},
};
use ringwall_compile::{EpochKey, compile};
use ringwall_dataplane::classify::Generation;
use ringwall_policy::Settings;
use ringwall_source::folder;
use serde_json::{Value, json};

#[path = "compile_vs_reference/random.rs"]
#[allow(dead_code, reason = "each test takes what it needs")]
mod random;

const FOLDERS: u64 = 900;
const FLOWS: usize = 48;

impl Random {
    fn labels(&mut self) -> Value {
        let mut labels = json!({});
        for (key, values) in [
            ("app", &["web", "db", ""][..]),
            ("tier", &["x", "y"]),
            ("env", &["prod"]),
        ] {
            if self.percent(55) {
                labels[key] = json!(self.one(values));
            }
        }
        labels
    }

    fn selector(&mut self) -> Value {
        let mut selector = json!({});
        if self.percent(40) {
            return selector;
        }
        if self.percent(50) {
            selector["matchLabels"] = self.labels();
        }
        let expressions: Vec<Value> = (0..self.below(3))
            .map(|_| {
                let key = *self.one(&["app", "tier", "env", "other"]);
                match self.below(4) {
                    0 => json!({"key": key, "operator": "Exists"}),
                    1 => json!({"key": key, "operator": "DoesNotExist"}),
                    2 => json!({"key": key, "operator": "In", "values": [self.one(&["web", "x", "prod"]), "db"]}),
                    _ => json!({"key": key, "operator": "NotIn", "values": [self.one(&["web", "x", "prod", ""])]}),
                }
            })
            .collect();
        if !expressions.is_empty() && self.percent(40) {
            selector["matchExpressions"] = json!(expressions);
        }
        selector
    }

    fn block(&mut self) -> Value {
        match self.below(6) {
            0 => json!({"cidr": "0.0.0.0/0"}),
            1 => json!({"cidr": "0.0.0.0/0", "except": ["10.0.0.0/29"]}),
            2 => json!({"cidr": "10.0.0.0/28", "except": ["10.0.0.3/32", "10.0.0.8/30"]}),
            3 => json!({"cidr": "192.168.0.0/30"}),
            4 => json!({"cidr": "fd00::/16", "except": ["fd00::4/126"]}),
            _ => json!({"cidr": format!("10.0.0.{}/32", self.below(14))}),
        }
    }

    fn peer(&mut self) -> Value {
        match self.below(4) {
            0 => json!({"ipBlock": self.block()}),
            1 => json!({"podSelector": self.selector()}),
            2 => json!({"namespaceSelector": self.selector()}),
            _ => json!({"namespaceSelector": self.selector(), "podSelector": self.selector()}),
        }
    }

    fn port(&mut self) -> Value {
        let protocol = *self.one(&["TCP", "TCP", "UDP", "SCTP"]);
        match self.below(5) {
            0 => json!({"protocol": protocol}),
            1 => json!({"port": self.one(&["http", "dns"]), "protocol": protocol}),
            2 => json!({"port": 79 + self.below(4), "endPort": 82, "protocol": protocol}),
            3 => json!({"port": 53}),
            _ => json!({"port": self.one(&[1, 80, 81, 65535]), "protocol": protocol}),
        }
    }

    fn some<T>(&mut self, most: usize, make: impl Fn(&mut Self) -> T) -> Vec<T> {
        (0..self.below(most + 1)).map(|_| make(self)).collect()
    }

    fn rules(&mut self, peers: &str) -> Value {
        let rules = self.some(3, |random| {
            let mut rule = json!({});
            if random.percent(70) {
                rule[peers] = json!(random.some(3, Self::peer));
            }
            if random.percent(60) {
                rule["ports"] = json!(random.some(3, Self::port));
            }
            rule
        });
        json!(rules)
    }

    fn policy(&mut self, number: usize) -> Value {
        let mut spec = json!({"podSelector": self.selector()});
        if self.percent(75) {
            spec["ingress"] = self.rules("from");
        }
        if self.percent(50) {
            spec["egress"] = self.rules("to");
        }
        match self.below(5) {
            0 => {}
            1 => spec["policyTypes"] = json!(["Ingress"]),
            2 => spec["policyTypes"] = json!(["Egress"]),
            _ => spec["policyTypes"] = json!(["Egress", "Ingress"]),
        }
        json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
            "metadata": {"name": format!("p{number}"), "namespace": self.one(&["a", "b"])}, "spec": spec})
    }

    fn pod(&mut self, number: usize) -> Value {
        let mut pod = json!({"apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": format!("pod{number}"), "namespace": self.one(&["a", "b", "c"]), "labels": self.labels(),
                "uid": format!("u{number}")},
            "spec": {"nodeName": self.one(&["n1", "n2"]), "containers": [{"name": "c", "ports": self.some(2, |random| json!({
                "name": random.one(&["http", "dns"]), "containerPort": random.one(&[53, 80, 81]),
                "protocol": random.one(&["TCP", "UDP"])}))}]},
            "status": {"podIPs": [{"ip": format!("10.0.0.{number}")}, {"ip": format!("fd00::{number:x}")}]}});
        match self.below(12) {
            0 => {
                pod["spec"]["hostNetwork"] = json!(true);
                pod["status"] = json!({"podIPs": [{"ip": "192.168.0.1"}]});
            }
            1 => pod["status"]["phase"] = json!("Succeeded"),
            2 | 3 => pod["status"] = json!({}),
            4 => pod["status"]["podIPs"] = json!([{"ip": format!("10.0.0.{number}")}]),
            _ => {}
        }
        pod
    }
}

/// The manifests and the questions of a folder.
fn folder(number: u64) -> (Vec<Value>, Vec<String>) {
    let mut random = Random::new(number);
    let random = &mut random;
    let mut objects = Vec::new();
    for name in ["a", "b", "c"] {
        let labels = random.labels();
        objects.push(
            json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}),
        );
    }
    for (name, address) in [("n1", "192.168.0.1"), ("n2", "192.168.0.2")] {
        objects.push(json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name},
            "spec": {"podCIDRs": ["10.0.0.0/28"]}, "status": {"addresses": [{"type": "InternalIP", "address": address}]}}));
    }
    let pods = 3 + random.below(8);
    let mut ends: Vec<String> = [
        "192.168.0.1",
        "192.168.0.3",
        "203.0.113.9",
        "10.0.0.14",
        "2001:db8::1",
        "fd00::99",
    ]
    .map(str::to_owned)
    .to_vec();
    for number in 1..=pods {
        let pod = random.pod(number);
        let meta = &pod["metadata"];
        let name = format!(
            "{}/{}",
            meta["namespace"].as_str().unwrap(),
            meta["name"].as_str().unwrap()
        );
        ends.extend([
            name.clone(),
            name,
            format!("10.0.0.{number}"),
            format!("fd00::{number:x}"),
        ]);
        objects.push(pod);
    }
    for number in 0..1 + random.below(6) {
        objects.push(random.policy(number));
    }
    let flows = (0..FLOWS).map(|_| {
        let src = random.one(&ends).clone();
        let dst = random.one(&ends).clone();
        // Mostly of one family: a name has both.
        let is_v6 = |end: &str| end.contains(':');
        let dst = match src.contains('/') || dst.contains('/') || is_v6(&src) == is_v6(&dst) {
            true => dst,
            false => src.clone(),
        };
        let protocol = *random.one(&["TCP", "TCP", "TCP", "UDP", "SCTP", "ICMP"]);
        match protocol {
            "ICMP" => json!({"src": src, "dst": dst, "protocol": protocol}),
            _ => json!({"src": src, "dst": dst, "protocol": protocol,
                "dst_port": random.one(&[1, 53, 79, 80, 81, 82, 83, 65535])}),
        }
        .to_string()
    });
    let flows = flows.collect();
    (objects, flows)
}

fn write(dir: &Path, objects: &[Value]) {
    let documents: Vec<String> = objects.iter().map(ToString::to_string).collect();
    fs::write(dir.join("all.yaml"), documents.join("\n---\n")).unwrap();
}

fn letter(answer: &Answer) -> char {
    match (answer.ingress, answer.egress) {
        (Fate::Depends, _) | (_, Fate::Depends) => '?',
        (Fate::Deny, Fate::Deny) => 'd',
        (Fate::Deny, Fate::Allow) => 'i',
        (Fate::Allow, Fate::Deny) => 'e',
        (Fate::Allow, Fate::Allow) => 'a',
    }
}

/// A line of the golden file, as this version answers.
fn line(number: u64) -> String {
    let (objects, flows) = folder(number);
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), &objects);
    let cluster = folder::load(dir.path(), &Settings::default()).unwrap().cluster;
    let image = compile(&cluster.for_compiler(), Generation(1), &EpochKey::OFFLINE).unwrap();
    let hash: String = image
        .hash
        .iter()
        .take(8)
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let judge = Judge::new(&cluster).unwrap();
    let mut verdicts = String::new();
    let mut reasons = String::new();
    for flow in flows {
        let flow = Flow::read(&flow).unwrap();
        let answer = judge
            .ends(&cluster, &flow.src, &flow.dst)
            .and_then(|(src, dst)| judge.judge(&src, &dst, flow.service));
        verdicts.push(answer.as_ref().map_or('x', letter));
        for reason in answer.iter().flat_map(|answer| &answer.reasons) {
            let rule = reason.rule.map_or("-".to_owned(), |rule| rule.to_string());
            let policy = reason.policy.as_deref().unwrap_or("-");
            let direction = json!(reason.direction);
            writeln!(
                reasons,
                "{} {} {policy} {rule}",
                direction.as_str().unwrap(),
                reason.effect
            )
            .unwrap();
        }
        reasons.push('\n');
    }
    let reasons = blake3::hash(reasons.as_bytes()).to_hex();
    format!("{number} {hash} {verdicts} {}", &reasons[..16])
}

#[test]
fn folders_without_tiers_mean_what_they_meant() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/before_tiers/golden.txt.gz");
    let mut golden = String::new();
    let mut unzip = flate2::read::GzDecoder::new(fs::File::open(file).unwrap());
    unzip.read_to_string(&mut golden).unwrap();
    let golden: Vec<&str> = golden.lines().collect();
    assert_eq!(golden.len() as u64, FOLDERS);
    let mut letters = std::collections::BTreeMap::new();
    for (number, wanted) in golden.iter().enumerate() {
        assert_eq!(line(number as u64), **wanted, "see `write_the_folders`");
        for letter in wanted.split(' ').nth(2).unwrap().chars() {
            *letters.entry(letter).or_insert(0) += 1;
        }
    }
    for letter in "dieax?".chars() {
        assert!(
            letters.get(&letter).is_some_and(|count| *count > 20),
            "{letters:?}"
        );
    }
}

#[test]
#[ignore = "writes what another version is to answer: FOLDERS_TO=DIR"]
fn write_the_folders() {
    let to = std::env::var_os("FOLDERS_TO").unwrap();
    for number in 0..FOLDERS {
        let (objects, flows) = folder(number);
        let dir = Path::new(&to).join(number.to_string());
        fs::create_dir_all(dir.join("manifests")).unwrap();
        write(&dir.join("manifests"), &objects);
        fs::write(dir.join("flows.jsonl"), flows.join("\n") + "\n").unwrap();
    }
}
