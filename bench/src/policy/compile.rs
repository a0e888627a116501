//! Full compile.

use std::time::Instant;

use anyhow::anyhow;
use ringwall_compile::{EpochKey, compile};
use ringwall_dataplane::classify::{Generation, Snapshot};

use super::{
    Options, Size, cluster,
    report::{Report, Target},
};
use crate::figures::Figures;

pub(super) fn run(options: &Options, size: Size, report: &mut Report) -> anyhow::Result<()> {
    let cluster = cluster::decoded(&cluster::synthetic(size, false)?)?;
    let (mut compiling, mut opening, mut image) = (Vec::new(), Vec::new(), 0);
    for _ in 0..options.rounds {
        let start = Instant::now();
        let compiled = compile(&cluster, Generation(1), &EpochKey::OFFLINE)
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
    let words = size.words();
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
