//! The load's policy as nftables rules, in the four ways in which people write one. IPv4 only: the load has nothing else.
//!
//! * `Conntrack`: what is established passes; the rest goes to the verdict map.
//! * `VerdictMap`: a map from each sender to the chain of its policies, which asks one interval set per policy.
//! * `IntervalSet`: one set of (destination, protocol, port) for all policies together.
//! * `Linear`: a line per rule. The one that lets the load pass is the last, as a policy's rules have no order.

use std::{
    fmt::Write as _,
    fs,
    os::unix::process::CommandExt as _,
    path::Path,
    process::{Child, ChildStdin, Command, Stdio},
};

use anyhow::{Context, bail, ensure};
use ringwall_testbed::{netns::Netns, topology::Bed};
use serde_json::Value;

const TABLE: &str = "ringwall_bench";
const TRACKING: &str = "/proc/sys/net/netfilter";

/// A way to write the policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Conntrack,
    VerdictMap,
    IntervalSet,
    Linear,
}

/// A policy's rules: destination, protocol, port.
type Rules = Vec<(String, String, u64)>;

/// A ruleset that is loaded until this is dropped.
pub(super) struct Loaded<'a>(&'a Netns);

impl<'a> Loaded<'a> {
    pub(super) fn load(gateway: &'a Netns, bed: &Bed, kind: Kind, objects: &[Value]) -> anyhow::Result<Self> {
        let file = bed.folder().join("peer.nft");
        fs::write(&file, ruleset(kind, objects)?)?;
        let mut nft = Command::new("nft");
        nft.arg("-f").arg(&file);
        let output = gateway
            .output(nft)
            .context("starting nft; on Debian: apt-get install nftables")?;
        if !output.status.success() {
            let words = String::from_utf8_lossy(&output.stderr);
            bail!("nft -f: {}", words.lines().take(3).collect::<Vec<_>>().join("; "));
        }
        Ok(Self(gateway))
    }
}

impl Drop for Loaded<'_> {
    fn drop(&mut self) {
        let mut nft = Command::new("nft");
        nft.args(["delete", "table", "ip", TABLE]);
        let _ = self.0.output(nft); // the namespace goes with the bed
    }
}

/// Room for connections in the kernel's table. What it was is put back when this is dropped, and by a process of its own if
/// this one is killed.
#[derive(Debug, Default)]
pub(super) struct Tracked(Option<(Child, ChildStdin)>);

impl Tracked {
    /// Room for at least so many, and as many buckets, as the kernel has them by default. It is the whole machine's:
    /// namespaces have none of their own.
    pub(super) fn at_least(connections: u32) -> anyhow::Result<Self> {
        Self::raise(Path::new(TRACKING), connections)
    }

    fn raise(folder: &Path, connections: u32) -> anyhow::Result<Self> {
        let mut lower = Vec::new();
        for name in ["nf_conntrack_max", "nf_conntrack_buckets"] {
            let file = folder.join(name);
            let before = fs::read_to_string(&file).with_context(|| format!("reading {}", file.display()))?;
            let number: u32 = before
                .trim()
                .parse()
                .with_context(|| format!("{}", file.display()))?;
            if number < connections {
                lower.push((file, number.to_string()));
            }
        }
        if lower.is_empty() {
            return Ok(Self::default());
        }
        let mut restorer = Command::new("sh");
        restorer.args([
            "-c",
            "read -r _; while [ $# -gt 0 ]; do echo \"$2\" >\"$1\"; shift 2; done",
            "sh",
        ]);
        for (file, before) in &lower {
            restorer.arg(file).arg(before);
        }
        let mut restorer = restorer
            .stdin(Stdio::piped())
            // Out of reach of the terminal's Ctrl-C.
            .process_group(0)
            .spawn()
            .context("starting sh")?;
        let line = restorer.stdin.take().context("sh has no input")?;
        let tracked = Self(Some((restorer, line)));
        for (file, _) in &lower {
            fs::write(file, connections.to_string())
                .with_context(|| format!("writing {}", file.display()))?;
        }
        Ok(tracked)
    }
}

impl Drop for Tracked {
    fn drop(&mut self) {
        if let Some((mut restorer, line)) = self.0.take() {
            drop(line); // its end of file
            let _ = restorer.wait();
        }
    }
}

/// The ruleset for manifests of pods and of policies that have egress rules with blocks.
fn ruleset(kind: Kind, objects: &[Value]) -> anyhow::Result<String> {
    let senders: Vec<&str> = objects
        .iter()
        .filter(|object| object["kind"] == "Pod")
        .filter_map(|pod| pod["status"]["podIP"].as_str())
        .collect();
    ensure!(!senders.is_empty(), "the manifests have no pods with addresses");
    let policies: Vec<Rules> = objects
        .iter()
        .filter(|object| object["kind"] == "NetworkPolicy")
        .map(|policy| rules(&policy["spec"]["egress"]))
        .collect();
    let mut text = format!("table ip {TABLE} {{\n");
    let element = |(block, protocol, port): &(String, String, u64)| format!("{block} . {protocol} . {port}");
    let set = |text: &mut String, name: &str, rules: &mut dyn Iterator<Item = String>| {
        let elements = rules.collect::<Vec<_>>().join(", ");
        let kind = "type ipv4_addr . inet_proto . inet_service; flags interval;";
        writeln!(text, "set {name} {{ {kind} elements = {{ {elements} }} }}")
    };
    let hook = "type filter hook forward priority 0; policy accept;";
    match kind {
        Kind::Linear => {
            writeln!(text, "chain egress {{")?;
            let (first, others) = policies.split_first().context("the manifests have no policies")?;
            for (block, protocol, port) in others.iter().flatten().chain(first) {
                writeln!(text, "ip daddr {block} {protocol} dport {port} accept")?;
            }
            writeln!(
                text,
                "drop\n}}\nset senders {{ type ipv4_addr; elements = {{ {} }} }}",
                senders.join(", ")
            )?;
            writeln!(text, "chain forward {{ {hook} ip saddr @senders jump egress; }}")?;
        }
        Kind::IntervalSet => {
            set(&mut text, "allowed", &mut policies.iter().flatten().map(element))?;
            writeln!(
                text,
                "set senders {{ type ipv4_addr; elements = {{ {} }} }}",
                senders.join(", ")
            )?;
            writeln!(
                text,
                "chain egress {{ ip daddr . meta l4proto . th dport @allowed accept; drop; }}"
            )?;
            writeln!(text, "chain forward {{ {hook} ip saddr @senders jump egress; }}")?;
        }
        Kind::VerdictMap | Kind::Conntrack => {
            for (number, rules) in policies.iter().enumerate() {
                set(
                    &mut text,
                    &format!("policy{number}"),
                    &mut rules.iter().map(element),
                )?;
            }
            writeln!(text, "chain group {{")?;
            for number in (0..policies.len()).rev() {
                writeln!(text, "ip daddr . meta l4proto . th dport @policy{number} accept")?;
            }
            let elements: Vec<String> = senders
                .iter()
                .map(|sender| format!("{sender} : jump group"))
                .collect();
            writeln!(
                text,
                "drop\n}}\nmap pods {{ type ipv4_addr : verdict; elements = {{ {} }} }}",
                elements.join(", ")
            )?;
            let established = if kind == Kind::Conntrack {
                "ct state established,related accept;"
            } else {
                ""
            };
            writeln!(
                text,
                "chain forward {{ {hook} {established} ip saddr vmap @pods; }}"
            )?;
        }
    }
    text.push_str("}\n");
    Ok(text)
}

/// IPv4 rules of a policy's egress.
fn rules(egress: &Value) -> Rules {
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let mut rules = Rules::new();
    for rule in list(egress) {
        for peer in list(&rule["to"]) {
            let Some(block) = peer["ipBlock"]["cidr"]
                .as_str()
                .filter(|block| !block.contains(':'))
            else {
                continue;
            };
            for port in list(&rule["ports"]) {
                if let (Some(protocol), Some(number)) = (port["protocol"].as_str(), port["port"].as_u64()) {
                    rules.push((block.to_owned(), protocol.to_ascii_lowercase(), number));
                }
            }
        }
    }
    rules
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)] // in tests a failed unwrap is the failure

    use std::fs;

    use super::{Kind, Tracked, ruleset};

    #[test]
    fn room_for_connections_is_given_back_even_by_a_process_that_is_killed() {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str| folder.path().join(name);
        let read = || {
            ["nf_conntrack_max", "nf_conntrack_buckets"]
                .map(|name| fs::read_to_string(file(name)).unwrap().trim().to_owned())
        };
        fs::write(file("nf_conntrack_max"), "1000\n").unwrap();
        fs::write(file("nf_conntrack_buckets"), "9000\n").unwrap();
        let mut tracked = Tracked::raise(folder.path(), 5000).unwrap();
        assert_eq!(read(), ["5000", "9000"]);
        // All that the restorer sees of a kill is the end of its input.
        let (mut restorer, line) = tracked.0.take().unwrap();
        drop(line);
        restorer.wait().unwrap();
        assert_eq!(read(), ["1000", "9000"]);
        drop(Tracked::raise(folder.path(), 10_000).unwrap());
        assert_eq!(read(), ["1000", "9000"]);
        assert!(Tracked::raise(folder.path(), 1000).unwrap().0.is_none());
    }

    #[test]
    fn every_kind_has_every_rule_and_the_load_is_last_of_lines() {
        let objects = crate::wire::objects(1_200);
        for kind in [Kind::Conntrack, Kind::VerdictMap, Kind::IntervalSet, Kind::Linear] {
            let text = ruleset(kind, &objects).unwrap();
            // One rule has UDP and TCP.
            let found = text.matches("203.0.").count() + text.matches("198.18.0.0/15").count();
            assert_eq!(found, 1_201, "{kind:?}");
            assert_eq!(text.matches("10.111.").count(), 100, "{kind:?}: senders");
        }
        let linear = ruleset(Kind::Linear, &objects).unwrap();
        let at = |what| linear.find(what).unwrap();
        assert!(at("198.18.0.0/15") > linear.rfind("203.0.").unwrap());
        assert!(at("drop") > at("198.18.0.0/15"));
    }
}
