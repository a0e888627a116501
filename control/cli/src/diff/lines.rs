//! A difference as JSON, one object per line.

use std::{
    collections::{BTreeSet, HashMap},
    io::{self, Write},
    rc::Rc,
    sync::Arc,
};

use ringwall_analyse::refine::{Difference, Ends, OneSided, Region, What, tier_of, type_words};
use serde_json::json;

use super::incomplete;

/// Writes every region, then the endpoints of one side.
pub(super) fn write(found: &Difference<'_>, out: &mut impl Write) -> io::Result<()> {
    let mut writer = Writer::new(found);
    for region in &found.regions {
        writer.region(region, out)?;
    }
    for endpoint in &found.one_sided {
        writeln!(out, "{}", one_sided(endpoint))?;
    }
    Ok(())
}

/// `added` or `removed`.
pub(super) fn change(endpoint: &OneSided) -> &'static str {
    match endpoint.side {
        0 => "removed",
        _ => "added",
    }
}

fn one_sided(endpoint: &OneSided) -> serde_json::Value {
    let mut line = json!({ "endpoint": endpoint.key.to_string(), "change": change(endpoint) });
    if let Some(family) = endpoint.family {
        line["family"] = family.name().into();
    }
    line
}

/// Writes regions straight from their lists: there may be a million of them, and gigabytes of names.
struct Writer<'a> {
    ends: &'a Ends<'a, 2>,
    /// Names of all endpoints as a list of JSON: those that follow one another in the list of ends do so here.
    names: String,
    /// Where in `names` each endpoint begins, and where the next one would.
    begins: Vec<usize>,
    /// Networks as JSON, by the list of ends.
    networks: HashMap<*const u32, Rc<str>>,
    /// The same, by what of the list is ranges.
    known: HashMap<&'a [u32], Rc<str>>,
    /// The source of the last region as JSON: many have the same.
    source: (&'a [u32], Vec<u8>),
    /// The last lists of source and destination, and whether they hold pairs that are not meant.
    excepts_self: (Option<(*const u32, *const u32)>, bool),
    /// Policy kinds that are not evaluated, as the end of a line.
    incomplete: String,
    /// Whether there are tiers to speak of.
    tiered: bool,
    /// The tiers of a policy, on either side.
    tiers: HashMap<Arc<str>, BTreeSet<String>>,
}

impl<'a> Writer<'a> {
    fn new(found: &'a Difference<'a>) -> Self {
        let mut names = String::new();
        let mut begins = Vec::new();
        for end in &found.ends.all {
            // Endpoints come first.
            let What::Endpoint(key) = &end.what else { break };
            begins.push(names.len());
            names.push_str(&json!(key.to_string()).to_string());
            names.push(',');
        }
        begins.push(names.len());
        let incomplete = incomplete(found);
        Self {
            ends: &found.ends,
            names,
            begins,
            networks: HashMap::new(),
            known: HashMap::new(),
            source: (&[], Vec::new()),
            excepts_self: (None, false),
            tiered: found
                .ends
                .sides
                .iter()
                .any(|side| !side.cluster.tiered.is_empty()),
            tiers: HashMap::new(),
            incomplete: match incomplete.as_slice() {
                [] => "}\n".to_owned(),
                kinds => format!(",\"incomplete\":{}}}\n", json!(kinds)),
            },
        }
    }

    fn tiers_of(&mut self, policy: &Arc<str>) -> BTreeSet<String> {
        let sides = &self.ends.sides;
        let tiers = self.tiers.entry(Arc::clone(policy)).or_insert_with(|| {
            let tiers = sides.iter().filter_map(|side| tier_of(side.cluster, policy));
            tiers.map(|tier| tier.name).collect()
        });
        tiers.clone()
    }

    fn region(&mut self, region: &'a Region, out: &mut impl Write) -> io::Result<()> {
        if !std::ptr::eq(self.source.0, &*region.src) || self.source.1.is_empty() {
            let mut text = std::mem::take(&mut self.source.1);
            text.clear();
            self.ends(&region.src, &mut text)?;
            self.source = (&region.src, text);
        }
        out.write_all(b"{\"src\":")?;
        out.write_all(&self.source.1)?;
        out.write_all(b",\"dst\":")?;
        self.ends(&region.dst, out)?;
        write!(out, ",\"protocol\":\"{}\",\"ports\":", region.service.name())?;
        if region.service.has_ports() {
            for (index, (lo, hi)) in region.ports.iter().enumerate() {
                let before = if index == 0 { '[' } else { ',' };
                write!(out, "{before}[{lo},{hi}]")?;
            }
            out.write_all(b"]")?;
            if *region.sources != [(0, u16::MAX)] {
                out.write_all(b",\"src_ports\":")?;
                serde_json::to_writer(&mut *out, &*region.sources)?;
            }
        } else if region.service.has_types() {
            let types: Vec<String> = region.ports.iter().map(|span| type_words(*span)).collect();
            out.write_all(b"null,\"types\":")?;
            serde_json::to_writer(&mut *out, &types)?;
        } else if *region.ports == [(0, u16::MAX)] {
            out.write_all(b"null")?;
        } else {
            out.write_all(b"null,\"protocols\":")?;
            serde_json::to_writer(&mut *out, &protocol_numbers(&region.ports))?;
        }
        let [from, to] = region.verdicts();
        write!(out, ",\"from\":\"{from}\",\"to\":\"{to}\",\"policies\":[")?;
        for (index, policy) in region.policies.iter().enumerate() {
            if index > 0 {
                out.write_all(b",")?;
            }
            serde_json::to_writer(&mut *out, &**policy)?;
        }
        out.write_all(b"]")?;
        if self.tiered {
            let tiers: BTreeSet<String> = region.policies.iter().flat_map(|it| self.tiers_of(it)).collect();
            out.write_all(b",\"tiers\":")?;
            serde_json::to_writer(&mut *out, &tiers)?;
        }
        if let Some(family) = region.family {
            write!(out, ",\"family\":\"{}\"", family.name())?;
        }
        if self.excepts_self(region) {
            out.write_all(b",\"except\":\"self\"")?;
        }
        out.write_all(self.incomplete.as_bytes())
    }

    fn ends(&mut self, list: &'a [u32], out: &mut impl Write) -> io::Result<()> {
        out.write_all(b"{\"pods\":[")?;
        let endpoints = self.begins.len() - 1;
        let (pods, ranges) = list.split_at(list.partition_point(|end| (*end as usize) < endpoints));
        let mut first = true;
        for run in pods.chunk_by(|a, b| a + 1 == *b) {
            let (Some(begin), Some(end)) = (run.first(), run.last()) else {
                continue;
            };
            let place = |end: usize| self.begins.get(end).copied().unwrap_or_default();
            let names = self.names.get(place(*begin as usize)..place(*end as usize + 1));
            let names = names
                .and_then(|names| names.strip_suffix(','))
                .unwrap_or_default();
            if !first {
                out.write_all(b",")?;
            }
            first = false;
            out.write_all(names.as_bytes())?;
        }
        out.write_all(b"],\"cidrs\":")?;
        let Self { ends, known, .. } = self;
        let networks = self.networks.entry(list.as_ptr()).or_insert_with(|| {
            let networks = known.entry(ranges);
            networks
                .or_insert_with(|| json!(ends.networks(ranges)).to_string().into())
                .clone()
        });
        out.write_all(networks.as_bytes())?;
        out.write_all(b"}")
    }

    fn excepts_self(&mut self, region: &Region) -> bool {
        let lists = Some((region.src.as_ptr(), region.dst.as_ptr()));
        if self.excepts_self.0 != lists {
            self.excepts_self = (lists, region.excepts_self(self.ends));
        }
        self.excepts_self.1
    }
}

/// Spans of protocol numbers, of a region of protocols without ports.
fn protocol_numbers(spans: &[(u16, u16)]) -> Vec<(u16, u16)> {
    let last = u16::from(u8::MAX);
    spans.iter().map(|(lo, hi)| (*lo, (*hi).min(last))).collect()
}
