//! A difference that is too long to read, summed up by namespaces.

use std::{
    cmp::Reverse,
    collections::BTreeMap,
    io::{self, Write},
};

use ringwall_analyse::refine::{Difference, Pairs};
use ringwall_policy::PolicyId;

use super::table;

/// As many pairs of namespaces are told one by one.
const ROWS: usize = 40;

/// Writes the sums, what became of the policies, and the summary.
pub(super) fn write(found: &Difference<'_>, out: &mut impl Write) -> io::Result<()> {
    let place = |name: Option<&str>| name.unwrap_or("addresses outside").to_owned();
    let mut rows: Vec<([String; 2], Pairs)> = found
        .totals
        .pairs()
        .map(|(places, pairs)| (places.map(place), pairs))
        .collect();
    rows.sort_by_key(|(_, pairs)| Reverse(pairs.closed + pairs.opened));
    writeln!(
        out,
        "Pairs of source and destination of which some flow closes or opens, by namespaces\n\
         (addresses that no policy tells apart count as one):\n"
    )?;
    writeln!(out, "{:>12} {:>12}", "closed", "opened")?;
    let mut line =
        |pairs: &Pairs, what: &str| writeln!(out, "{:>12} {:>12}  {what}", pairs.closed, pairs.opened);
    let (shown, rest) = rows.split_at(rows.len().min(ROWS));
    for ([src, dst], pairs) in shown {
        line(pairs, &format!("{src} -> {dst}"))?;
    }
    if !rest.is_empty() {
        line(&sum(rest), &format!("{} more pairs of namespaces", rest.len()))?;
        line(&sum(&rows), "in all")?;
    }
    writeln!(out)?;
    let mut fates: BTreeMap<&str, usize> = BTreeMap::new();
    let names = found.ends.sides.iter().flat_map(|side| {
        let own = side.cluster.policies.keys().map(ToString::to_string);
        own.chain(side.cluster.tiered.keys().map(PolicyId::label))
    });
    let names: std::collections::BTreeSet<String> = names.collect();
    for fate in names.iter().filter_map(|name| table::became(found, name)) {
        *fates.entry(fate).or_default() += 1;
    }
    if !fates.is_empty() {
        let fates: Vec<String> = fates
            .iter()
            .map(|(fate, count)| format!("{count} {fate}"))
            .collect();
        writeln!(out, "Policies: {}.", fates.join(", "))?;
    }
    table::summary(found, out)?;
    writeln!(out, "All of them: --all, or -o json.")
}

fn sum(rows: &[([String; 2], Pairs)]) -> Pairs {
    rows.iter().fold(Pairs::default(), |sum, (_, pairs)| Pairs {
        closed: sum.closed + pairs.closed,
        opened: sum.opened + pairs.opened,
    })
}
