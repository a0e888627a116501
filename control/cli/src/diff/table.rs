//! A difference for people: grouped by the policies that decide.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{self, Write},
    sync::Arc,
};

use ipnet::IpNet;
use ringwall_analyse::{
    judge::SAY_WHERE,
    refine,
    refine::{Difference, Family, Region, Service, Span, What, said, source_words, type_words},
};
use ringwall_policy::{ObjectKey, TierDefault};

use super::{incomplete, lines};
use crate::count;

/// How text looks.
#[derive(Clone, Copy, Debug)]
pub(super) struct Style {
    pub(super) colour: bool,
}

impl Style {
    /// A line with + in green where something is opened, - in red where it is closed.
    pub(super) fn mark(self, opened: bool, text: &str) -> String {
        let (sign, colour) = if opened { ('+', 32) } else { ('-', 31) };
        match self.colour {
            true => format!("\x1b[{colour}m{sign} {text}\x1b[0m"),
            false => format!("{sign} {text}"),
        }
    }

    fn head(self, text: &str) -> String {
        match self.colour {
            true => format!("\x1b[1m{text}\x1b[0m"),
            false => text.to_owned(),
        }
    }
}

/// `allow -> deny`, `deny -> depends` and so on; those of two certain verdicts equally wide.
pub(super) fn arrow([from, to]: [&'static str; 2]) -> String {
    format!("{from:<5} -> {to:<5}")
}

/// Whether more is allowed after than before, as far as that is known.
pub(super) fn opens([from, to]: [&'static str; 2]) -> bool {
    to == "allow" || from == "deny"
}

/// What one line of the table is about: whether it was allowed, on which sides it depends, source, destination, family.
type Line<'a> = (bool, [bool; 2], &'a [u32], &'a [u32], Option<Family>);

/// Writes the table and the summary.
pub(super) fn write(found: &Difference<'_>, style: Style, out: &mut impl Write) -> io::Result<()> {
    let mut groups: BTreeMap<&[Arc<str>], BTreeMap<Line<'_>, Vec<&Region>>> = BTreeMap::new();
    for region in &found.regions {
        let line = (
            region.from,
            region.depends,
            &*region.src,
            &*region.dst,
            region.family,
        );
        let group = groups.entry(&region.policies).or_default();
        group.entry(line).or_default().push(region);
    }
    let names = Names::of(found);
    for (policies, group) in &groups {
        writeln!(out, "{}", style.head(&heading(found, policies)))?;
        let rows: Vec<([&'static str; 2], [String; 3])> = group
            .iter()
            .map(|((from, depends, src, dst, family), regions)| {
                let family = family.map_or(String::new(), |family| format!(" ({} only)", family.name()));
                let itself = match regions.iter().any(|region| region.excepts_self(&found.ends)) {
                    true => ", not to itself",
                    false => "",
                };
                let services = format!("{}{family}{itself}", services(regions));
                (
                    refine::verdicts([*from, !from], *depends),
                    [names.words(found, src), names.words(found, dst), services],
                )
            })
            .collect();
        let width = |column: usize| {
            let cells = rows.iter().filter_map(|(_, row)| row.get(column));
            cells.map(|cell| cell.chars().count()).max().unwrap_or(0).min(60)
        };
        let (src_width, dst_width) = (width(0), width(1));
        for (verdicts, [src, dst, services]) in &rows {
            let row = format!(
                "{}  {src:src_width$}  ->  {dst:dst_width$}  {services}",
                arrow(*verdicts)
            );
            writeln!(out, "  {}", style.mark(opens(*verdicts), &row))?;
        }
        writeln!(out)?;
    }
    for endpoint in &found.one_sided {
        let family = endpoint
            .family
            .map_or(String::new(), |family| format!(" over {}", family.name()));
        let text = format!("{} is {}{family}", endpoint.key, lines::change(endpoint));
        writeln!(out, "{}", style.mark(endpoint.side == 1, &text))?;
    }
    summary(found, out)
}

pub(super) fn summary(found: &Difference<'_>, out: &mut impl Write) -> io::Result<()> {
    if found.regions.is_empty() {
        writeln!(out, "No verdict changes.")?;
    } else {
        let distinct = |from: bool| {
            let certain = found.regions.iter().filter(|region| region.is_certain());
            count(certain.filter(|region| region.from == from).count(), "region")
        };
        write!(out, "{} closed, {} opened", distinct(true), distinct(false))?;
        let depend = match found.regions.iter().filter(|region| !region.is_certain()).count() {
            0 => String::new(),
            1 => format!("; 1 region depends on addresses that pods will have{SAY_WHERE}"),
            some => format!("; {some} regions depend on addresses that pods will have{SAY_WHERE}"),
        };
        writeln!(out, "{depend}.")?;
    }
    let sided = |side| {
        found
            .one_sided
            .iter()
            .filter(|endpoint| endpoint.side == side)
            .count()
    };
    if !found.one_sided.is_empty() {
        writeln!(
            out,
            "{} added, {} removed.",
            count(sided(1), "endpoint"),
            sided(0)
        )?;
    }
    let incomplete = incomplete(found);
    if !incomplete.is_empty() {
        writeln!(out, "Incomplete: {} are not evaluated.", incomplete.join(", "))?;
    }
    Ok(())
}

/// The policies that decide, each with what became of it.
fn heading(found: &Difference<'_>, policies: &[Arc<str>]) -> String {
    if policies.is_empty() {
        return "No policy decides (who an address belongs to does)".to_owned();
    }
    let named: Vec<String> = policies
        .iter()
        .map(|name| {
            // A NetworkPolicy's tier goes without saying.
            let tier = name.contains(' ').then(|| tier_of(found, name)).flatten();
            let words: Vec<String> = tier
                .into_iter()
                .chain(became(found, name).map(str::to_owned))
                .collect();
            match words.is_empty() {
                true => name.to_string(),
                false => format!("{name} ({})", words.join(", ")),
            }
        })
        .collect();
    let mut heading = named.join(", ");
    let tiers: BTreeSet<String> = policies
        .iter()
        .filter_map(|name| tier_change(found, name))
        .collect();
    let unchanged = policies.iter().all(|name| became(found, name).is_none());
    if !tiers.is_empty() {
        let tiers: Vec<String> = tiers.into_iter().collect();
        heading.push_str(&format!(": {}", tiers.join("; ")));
    } else if unchanged {
        heading.push_str(": unchanged, but the pods that they select or match are not");
    }
    heading
}

/// The tier of a policy, after the change if it is still there.
fn tier_of(found: &Difference<'_>, name: &str) -> Option<String> {
    let sides = found.ends.sides.iter().rev();
    let mut tiers = sides.filter_map(|side| refine::tier_of(side.cluster, name));
    tiers.next().map(|tier| tier.name)
}

/// What changed about the tier of a policy that stays in it.
fn tier_change(found: &Difference<'_>, name: &str) -> Option<String> {
    let [from, to] = &found.ends.sides;
    let (from, to) = (
        refine::tier_of(from.cluster, name)?,
        refine::tier_of(to.cluster, name)?,
    );
    let mut changes = Vec::new();
    if from.order != to.order {
        changes.push(format!("order {} -> {}", from.order, to.order));
    }
    if from.default != to.default {
        let word = |default| match default {
            TierDefault::Deny => "deny",
            TierDefault::Pass => "pass",
        };
        changes.push(format!("default {} -> {}", word(from.default), word(to.default)));
    }
    let same = from.name == to.name && !changes.is_empty();
    same.then(|| format!("tier {} changed: {}", to.name, changes.join(", ")))
}

/// What became of the policy that is called so.
pub(super) fn became(found: &Difference<'_>, name: &str) -> Option<&'static str> {
    let policy = |side: usize| said(found.ends.sides.get(side)?.cluster, name);
    match (policy(0), policy(1)) {
        (None, Some(_)) => Some("added"),
        (Some(_), None) => Some("removed"),
        (Some(from), Some(to)) if from != to => Some("changed"),
        _ => None,
    }
}

/// `all`, or `80/TCP, 8000-8080/TCP, UDP, other`, or `53/UDP from 1024-65535`.
fn services(regions: &[&Region]) -> String {
    // By the source ports; most regions are from all.
    let mut by_sources: Vec<(&[Span], Vec<&Region>)> = Vec::new();
    for region in regions {
        match by_sources
            .iter_mut()
            .find(|(sources, _)| **sources == *region.sources)
        {
            Some((_, own)) => own.push(region),
            None => by_sources.push((&region.sources, vec![region])),
        }
    }
    let words = by_sources.iter().map(|(sources, regions)| {
        let from = source_words(sources);
        let words = services_from(regions).into_iter().map(|words| words + &from);
        words.collect::<Vec<_>>().join(", ")
    });
    words.collect::<Vec<_>>().join(", ")
}

/// The same of regions from the same source ports.
fn services_from(regions: &[&Region]) -> Vec<String> {
    let spans = |service: Service| -> Vec<Span> {
        let own = regions.iter().filter(|region| region.service == service);
        own.flat_map(|region| region.ports.iter().copied()).collect()
    };
    let whole = |service: &Service| spans(*service) == [(0, u16::MAX)];
    // Types of ICMP are there only where rules tell them apart.
    let absent = |service: &Service| service.has_types() && spans(*service).is_empty();
    if Service::ALL
        .iter()
        .all(|service| whole(service) || absent(service))
    {
        return vec!["all".to_owned()];
    }
    let words = Service::ALL.into_iter().flat_map(|service| {
        spans(service).into_iter().map(move |(lo, hi)| match (lo, hi) {
            (0, u16::MAX) => service.name().to_owned(),
            (lo, hi) if service == Service::Other && lo == hi => format!("IP protocol {lo}"),
            (lo, hi) if service == Service::Other => format!("IP protocols {lo}-{}", hi.min(255)),
            span if service.has_types() => format!("{}/{}", type_words(span), service.name()),
            (lo, hi) if lo == hi => format!("{lo}/{}", service.name()),
            (lo, hi) => format!("{lo}-{hi}/{}", service.name()),
        })
    });
    words.collect()
}

/// How many endpoints there are.
struct Names<'a> {
    all: usize,
    /// By namespace.
    sizes: BTreeMap<&'a str, usize>,
}

/// As many are told one by one.
const FEW: usize = 3;

impl<'a> Names<'a> {
    fn of(found: &'a Difference<'_>) -> Self {
        let mut sizes: BTreeMap<&str, usize> = BTreeMap::new();
        let all: Vec<u32> = (0..found.ends.all.len() as u32).collect();
        for key in found.ends.sides.iter().flat_map(|side| side.cluster.pods.keys()) {
            sizes.entry(&key.namespace).or_default();
        }
        let mut count = 0;
        for key in found.ends.names(&all) {
            count += 1;
            if let Some(size) = sizes.get_mut(key.namespace.as_str()) {
                *size += 1;
            }
        }
        Self { all: count, sizes }
    }

    /// Ends in words: few by name, many by namespace.
    fn words(&self, found: &Difference<'_>, ends: &[u32]) -> String {
        let mut by_namespace: BTreeMap<&str, Vec<&ObjectKey>> = BTreeMap::new();
        for key in found.ends.names(ends) {
            by_namespace.entry(&key.namespace).or_default().push(key);
        }
        let mut words: Vec<String> = Vec::new();
        let count: usize = by_namespace.values().map(Vec::len).sum();
        if count == self.all && count > 1 {
            words.push("every pod".to_owned());
            by_namespace.clear();
        }
        for (namespace, keys) in &by_namespace {
            let all = self.sizes.get(namespace).copied().unwrap_or(0);
            match keys.len() {
                _ if count <= FEW => words.extend(keys.iter().map(ToString::to_string)),
                own if own == all => words.push(format!("{namespace}/* ({all})")),
                own => words.push(format!("{namespace}/ ({own} of {all})")),
            }
        }
        let namespaces = words.len();
        if namespaces > FEW {
            words.truncate(FEW - 1);
            words.push(format!(
                "{} more namespaces ({count} endpoints)",
                namespaces + 1 - FEW
            ));
        }
        words.extend(addresses(found, ends));
        words.join(", ")
    }
}

/// The addresses among ends in words: as networks, or as all of a family but some, whichever is shorter.
fn addresses(found: &Difference<'_>, ends: &[u32]) -> Vec<String> {
    let list = |networks: &[IpNet]| {
        let mut words: Vec<String> = networks.iter().take(FEW).map(ToString::to_string).collect();
        if networks.len() > FEW {
            words.push(format!("{} more networks", networks.len() - FEW));
        }
        words
    };
    let mut words = Vec::new();
    let mut whole = 0;
    for family in Family::BOTH {
        let (mut own, mut others) = (Vec::new(), Vec::new());
        for (end, index) in found.ends.all.iter().zip(0..) {
            match &end.what {
                What::Range { first, .. } if Family::of(*first) == family => {
                    match ends.binary_search(&index) {
                        Ok(_) => own.push(index),
                        Err(_) => others.push(index),
                    }
                }
                _ => {}
            }
        }
        let (own, others) = (found.ends.networks(&own), found.ends.networks(&others));
        if !own.is_empty() && others.is_empty() {
            whole += 1;
        }
        if others.is_empty() || own.len() <= others.len() {
            words.extend(list(&own));
        } else {
            let all = if family == Family::V4 { "0.0.0.0/0" } else { "::/0" };
            words.push(format!("{all} but {}", list(&others).join(" and ")));
        }
    }
    if whole == Family::BOTH.len() {
        return vec!["every other address".to_owned()];
    }
    words
}
