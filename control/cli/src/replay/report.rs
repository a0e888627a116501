//! What is written about a replay: a line for each packet, and a summary for people.

use std::{
    collections::BTreeMap,
    io::{self, Write},
    path::Path,
};

use ringwall_analyse::flow::protocol_name;
use ringwall_dataplane::{
    addr::Addr,
    classify::{Generation, IdentityKind, PolicyName, Provenance, Snapshot},
    verdict::DropReason,
    wire::{FlowKey, protocol},
};
use ringwall_policy::policy_words;
use ringwall_replay::{
    capture::CapturedPacket,
    replay::{Answer, Verdict},
};
use serde_json::json;

use crate::{Output, count};

/// Writes answers, and counts them.
pub(super) struct Report {
    output: Output,
    head_written: bool,
    forwarded: u64,
    passed: u64,
    drops: BTreeMap<DropReason, u64>,
    errors: u64,
    generation: u64,
}

impl Report {
    pub(super) fn new(output: Output) -> Self {
        Self {
            output,
            head_written: false,
            forwarded: 0,
            passed: 0,
            drops: BTreeMap::new(),
            errors: 0,
            generation: 1,
        }
    }

    /// Packets that could not be replayed.
    pub(super) fn errors(&self) -> u64 {
        self.errors
    }

    /// The answer about a packet, so many nanoseconds after the first one.
    pub(super) fn answer(
        &mut self,
        packet: &CapturedPacket<'_>,
        elapsed: u64,
        answer: &Answer,
        snapshot: Option<&Snapshot>,
        out: &mut impl Write,
    ) -> io::Result<()> {
        match answer.verdict {
            Verdict::Forward => self.forwarded += 1,
            Verdict::Pass(_) => self.passed += 1,
            Verdict::Drop(reason) => *self.drops.entry(reason).or_default() += 1,
        }
        let verdict = answer.verdict.word();
        let reason = answer.verdict.reason();
        if self.output == Output::Json {
            write!(
                out,
                "{{\"n\":{},\"verdict\":\"{verdict}\",\"reason\":",
                packet.number
            )?;
            match reason {
                Some(reason) => write!(out, "\"{reason}\"")?,
                None => write!(out, "null")?,
            }
            match answer.flow {
                Some(flow) => write!(out, ",\"flow\":\"{flow}\"")?,
                None => write!(out, ",\"flow\":null")?,
            }
            write!(out, ",\"generation\":{}", answer.generation.0)?;
            if let Some(tunnel) = answer.tunnel {
                write!(out, ",\"tunnel\":\"{}\"", tunnel.name())?;
            }
            return writeln!(out, "}}");
        }
        let flow = answer
            .flow
            .map_or_else(|| "-".to_owned(), |flow| flow.to_string());
        let mut words = match (&answer.key, snapshot) {
            (Some(key), Some(snapshot)) => ends(key, snapshot),
            _ if packet.is_truncated() => {
                format!("{} of {} bytes captured", packet.bytes.len(), packet.length)
            }
            _ => String::new(),
        };
        if let Some(tunnel) = answer.tunnel {
            words.push_str(&format!(", in {}", tunnel.name()));
        }
        if let Some(why) = snapshot.and_then(|snapshot| denier(answer, snapshot)) {
            words.push_str(&format!("; {why}"));
        }
        self.row(
            packet.number,
            elapsed,
            [verdict, reason.unwrap_or("-"), &flow],
            &words,
            out,
        )
    }

    /// A packet that cannot be replayed.
    pub(super) fn error(
        &mut self,
        packet: &CapturedPacket<'_>,
        elapsed: u64,
        why: &str,
        out: &mut impl Write,
    ) -> io::Result<()> {
        self.errors += 1;
        match self.output {
            Output::Json => writeln!(out, "{}", json!({ "n": packet.number, "error": why })),
            Output::Human => self.row(packet.number, elapsed, ["error", "-", "-"], why, out),
        }
    }

    fn row(
        &mut self,
        number: u64,
        elapsed: u64,
        [verdict, reason, flow]: [&str; 3],
        words: &str,
        out: &mut impl Write,
    ) -> io::Result<()> {
        if !self.head_written {
            self.head_written = true;
            writeln!(
                out,
                "{:>7}  {:>12}  {:<7}  {:<16}  {:<16}  PACKET",
                "N", "SECONDS", "VERDICT", "REASON", "FLOW"
            )?;
        }
        let line = format!(
            "{number:>7}  {:>5}.{:06}  {verdict:<7}  {reason:<16}  {flow:<16}  {words}",
            elapsed / 1_000_000_000,
            elapsed % 1_000_000_000 / 1000,
        );
        writeln!(out, "{}", line.trim_end())
    }

    /// Another policy holds from the next packet on.
    pub(super) fn event(
        &mut self,
        generation: Generation,
        manifests: &Path,
        out: &mut impl Write,
    ) -> io::Result<()> {
        self.generation = generation.0;
        match self.output {
            // Each line says under which generation it was decided.
            Output::Json => Ok(()),
            Output::Human => writeln!(out, "-- generation {}: {}", generation.0, manifests.display()),
        }
    }

    /// The end, for people; `left`: events after the last packet.
    pub(super) fn summary(
        &self,
        elapsed: u64,
        flows: u64,
        left: usize,
        out: &mut impl Write,
    ) -> io::Result<()> {
        if self.output == Output::Json {
            return Ok(());
        }
        let number = |number: u64, what: &str| count(usize::try_from(number).unwrap_or(usize::MAX), what);
        let dropped: u64 = self.drops.values().sum();
        let all = self.forwarded + self.passed + dropped + self.errors;
        write!(
            out,
            "{} in {}.{:06} s: {} forwarded, {} passed, {dropped} dropped; {}",
            number(all, "packet"),
            elapsed / 1_000_000_000,
            elapsed % 1_000_000_000 / 1000,
            self.forwarded,
            self.passed,
            number(flows, "flow"),
        )?;
        match self.generation {
            1 => writeln!(out)?,
            generation => writeln!(out, "; generations 1 to {generation}")?,
        }
        let mut drops: Vec<_> = self.drops.iter().collect();
        drops.sort_by_key(|(reason, number)| (std::cmp::Reverse(**number), **reason));
        for (reason, number) in drops {
            writeln!(out, "{number:>7}  {:<16}  {}", reason.name(), reason.meaning())?;
        }
        if self.errors > 0 {
            writeln!(out, "{} could not be replayed.", number(self.errors, "packet"))?;
        }
        if left > 0 {
            writeln!(out, "{} after the last packet.", count(left, "event"))?;
        }
        Ok(())
    }
}

/// Both ends and the protocol, in words.
fn ends(key: &FlowKey, snapshot: &Snapshot) -> String {
    let has_ports = matches!(key.protocol, protocol::TCP | protocol::UDP | protocol::SCTP);
    let end = |addr: Addr, port: u16| {
        let identity = snapshot.identify(addr);
        let pod = snapshot
            .endpoint(identity.endpoint)
            .filter(|_| identity.kind == IdentityKind::Pod);
        let address = std::net::IpAddr::from(addr);
        match (pod, address) {
            (Some(pod), _) if has_ports => format!("{}/{}:{port}", pod.namespace, pod.name),
            (Some(pod), _) => format!("{}/{}", pod.namespace, pod.name),
            (None, std::net::IpAddr::V6(address)) if has_ports => format!("[{address}]:{port}"),
            (None, address) if has_ports => format!("{address}:{port}"),
            (None, address) => address.to_string(),
        }
    };
    format!(
        "{} -> {} {}",
        end(key.src, key.src_port),
        end(key.dst, key.dst_port),
        protocol_name(key.protocol)
    )
}

/// Which policies denied a packet, in words.
fn denier(answer: &Answer, snapshot: &Snapshot) -> Option<String> {
    let [egress, ingress] = answer.denied?;
    let verdict = match answer.verdict {
        Verdict::Drop(DropReason::PolicyEgress) => egress,
        Verdict::Drop(DropReason::PolicyIngress) => ingress,
        _ => return None,
    };
    let named = |policy: &PolicyName<'_>| {
        policy_words(Some(policy.tier), Some(policy.kind), Some(&policy.to_string()))
    };
    match snapshot.provenance(verdict.provenance)? {
        Provenance::Rule { policy, rule } => Some(format!("denied by {} rule {rule}", named(&policy)?)),
        Provenance::Isolating(policies) => {
            let names: Option<Vec<String>> = policies.iter().map(named).collect();
            Some(format!("isolated by {}", names?.join(", ")))
        }
    }
}
