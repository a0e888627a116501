//! Full compile.

use std::time::Instant;

use anyhow::anyhow;
use ringwall_compile::{EpochKey, compile};
use ringwall_dataplane::classify::{Generation, Snapshot};
use ringwall_policy::Cluster;

use super::{
    Options, Size, cluster, policy_change,
    report::{Report, Target},
};
use crate::figures::Figures;

pub(super) fn run(options: &Options, size: Size, report: &mut Report) -> anyhow::Result<()> {
    let mut cluster = cluster::decoded(&cluster::synthetic(size, false)?)?;
    compiled(options, size, &cluster, "", report)?;
    policy_change::with_tiers(&mut cluster, 10, 10)?;
    compiled(options, size, &cluster, ", and 100 policies in ten tiers", report)
}

fn compiled(
    options: &Options,
    size: Size,
    cluster: &Cluster,
    more: &str,
    report: &mut Report,
) -> anyhow::Result<()> {
    let (mut compiling, mut opening, mut image) = (Vec::new(), Vec::new(), 0);
    for _ in 0..options.rounds {
        let start = Instant::now();
        let compiled = compile(cluster, Generation(1), &EpochKey::OFFLINE)
            .map_err(|error| anyhow!("the synthetic cluster does not compile: {error}"))?;
        compiling.push(start.elapsed().as_secs_f64() * 1e3);
        let start = Instant::now();
        Snapshot::open(&compiled.bytes)?;
        opening.push(start.elapsed().as_secs_f64() * 1e3);
        image = compiled.bytes.len();
    }
    let (time, bytes) = match size {
        Size::Small => (Target::Median(15.0), Target::None),
        Size::Medium => (Target::Median(50.0), Target::None),
        Size::Large => (Target::Median(1000.0), Target::Most(200.0)),
    };
    let words = format!("{}{more}", size.words());
    report.add(
        "compile",
        format!("full compile, {words}"),
        time,
        Figures::of(compiling, "ms"),
        "",
    )?;
    report.add(
        "compile",
        format!("open the image, {words}"),
        Target::None,
        Figures::of(opening, "ms"),
        "",
    )?;
    let megabytes = Figures::of(vec![image as f64 / 1e6], "MB");
    report.add(
        "compile",
        format!("size of the image, {words}"),
        bytes,
        megabytes,
        "",
    )
}
