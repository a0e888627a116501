//! A difference as JSON, one object per line.

use std::io::{self, Write};

use serde_json::json;

use super::incomplete;
use crate::{
    cli::judge::word,
    refine::{Difference, Ends, OneSided, Region},
};

/// Writes every region, then the endpoints of one side.
pub(super) fn write(found: &Difference<'_>, out: &mut impl Write) -> io::Result<()> {
    let incomplete = incomplete(found);
    // Regions share most of their lists: the text of the last one on each side.
    let mut dst: Option<(&[u32], String)> = None;
    for region in &found.regions {
        let own: &[u32] = &region.dst;
        let dst = match &mut dst {
            Some((last, text)) if std::ptr::eq(*last, own) => text,
            place => &mut place.insert((own, ends(&found.ends, own))).1,
        };
        let src = ends(&found.ends, &region.src);
        let rest = rest(&found.ends, region, &incomplete);
        writeln!(out, "{{\"src\":{src},\"dst\":{dst},{rest}")?;
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

fn ends(all: &Ends<'_, 2>, ends: &[u32]) -> String {
    let pods: Vec<String> = all.names(ends).map(ToString::to_string).collect();
    json!({ "pods": pods, "cidrs": all.networks(ends) }).to_string()
}

/// All but source and destination, with the closing brace.
fn rest(ends: &Ends<'_, 2>, region: &Region, incomplete: &[String]) -> String {
    let ports = region.service.has_ports().then(|| {
        let spans = region.ports.iter().map(|(lo, hi)| [*lo, *hi]);
        spans.collect::<Vec<_>>()
    });
    let mut rest = json!({
        "protocol": region.service.name(),
        "ports": ports,
        "from": word(region.from),
        "to": word(!region.from),
        "policies": &region.policies[..],
    });
    if let Some(family) = region.family {
        rest["family"] = family.name().into();
    }
    if region.excepts_self(ends) {
        rest["except"] = "self".into();
    }
    if !incomplete.is_empty() {
        rest["incomplete"] = json!(incomplete);
    }
    let rest = rest.to_string();
    rest.strip_prefix('{').unwrap_or(&rest).to_owned()
}
