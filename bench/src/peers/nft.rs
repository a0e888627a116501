//! The load's policy as nftables rules, in the four ways in which people write one. IPv4 only: the load has nothing else.
//!
//! * `Conntrack`: what is established passes; the rest goes to the verdict map.
//! * `VerdictMap`: a map from each sender to the chain of its policies, which asks one interval set per policy.
//! * `IntervalSet`: one set of (destination, protocol, port) for all policies together.
//! * `Linear`: a line per rule. The one that lets the load pass is the last, as a policy's rules have no order.

use std::{fmt::Write as _, fs, process::Command};

use anyhow::{Context, bail, ensure};
use ringwall_testbed::{netns::Netns, topology::Bed};
use serde_json::Value;

const TABLE: &str = "ringwall_bench";
const TRACKED: &str = "/proc/sys/net/netfilter/nf_conntrack_max";

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

/// The most connections that the kernel follows; what it was is put back when this is dropped.
pub(super) struct Tracked(String);

impl Tracked {
    /// At least so many. Of the whole machine: namespaces cannot have a limit of their own.
    pub(super) fn at_least(connections: u32) -> anyhow::Result<Self> {
        let before = match fs::read_to_string(TRACKED) {
            Ok(before) => before.trim().to_owned(),
            // The module comes with the first ruleset, and with a limit of 262,144 in a machine with a gigabyte or more.
            Err(_) => return Ok(Self(String::new())),
        };
        if before.parse::<u32>().unwrap_or(0) >= connections {
            return Ok(Self(String::new()));
        }
        fs::write(TRACKED, connections.to_string()).with_context(|| format!("writing {TRACKED}"))?;
        Ok(Self(before))
    }
}

impl Drop for Tracked {
    fn drop(&mut self) {
        if !self.0.is_empty() {
            let _ = fs::write(TRACKED, &self.0);
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

    use super::{Kind, ruleset};

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
