//! One pod changed, with the whole appliance: `ringwall run` with its dataplane process and AF_XDP workers on veth pairs.

use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail};
use ringwall_testbed::{
    api_server::ApiServer,
    appliance::{self, Appliance, built_binary},
    preflight,
    topology::{Bed, Plan, Role},
};
use serde_json::Value;

use super::{
    Options, Size, cluster,
    control::Owners,
    report::{Report, Target},
};
use crate::figures::Figures;

/// How long the first snapshot may take, and any change.
const PATIENCE: Duration = Duration::from_secs(120);
/// After a change, before the next: beyond every debounce.
const PAUSE: Duration = Duration::from_millis(30);
/// Longest time for the row.
const LIMIT: Duration = Duration::from_secs(60);

/// The figure is what control measured, from the event's arrival to the answer that all workers have adopted.
pub(super) fn run(options: &Options, size: Size, report: &mut Report) -> anyhow::Result<()> {
    if let Some(obstacle) = preflight::obstacle() {
        println!("appliance: left out: {obstacle}");
        return Ok(());
    }
    let mut synthetic = cluster::synthetic(size)?;
    let bed = Bed::new(Role::Routed, &[Plan::new("bench/a"), Plan::new("bench/b")], 1)?;
    let server = bed.gateway.run(ApiServer::start)??;
    server.load(synthetic.objects());
    let kubeconfig = bed.folder().join("kubeconfig");
    std::fs::write(&kubeconfig, server.kubeconfig("none"))?;
    let source = appliance::Options {
        source: Some(format!("{{kubeconfig: {}}}", kubeconfig.display())),
        ..appliance::Options::default()
    };
    let appliance = Appliance::launch(&bed, &built_binary()?, &source, &[])?;
    adopted_above(&appliance, 0).context("the first snapshot")?;
    let mut owners = Owners::of(&synthetic);
    let mut taken = Vec::new();
    let began = Instant::now();
    while taken.len() < options.changes && began.elapsed() < LIMIT {
        let event = synthetic.churn();
        let changes = owners.said(&event).is_some();
        let before = generation(&appliance.status()?);
        server.event(event);
        if changes {
            let status = adopted_above(&appliance, before)?;
            let micros = status["control"]["publication"]["eventToAdoptedMicros"]
                .as_u64()
                .ok_or_else(|| anyhow!("the status has no publication.eventToAdoptedMicros"))?;
            taken.push(micros as f64 / 1e3);
        }
        std::thread::sleep(PAUSE);
    }
    let bound = match size {
        Size::Small => Target::None,
        Size::Medium => Target::P99(2.0),
        Size::Large => Target::P99(10.0),
    };
    let what = format!("one pod changed to adopted by AF_XDP workers, {}", size.words());
    report.add(
        "appliance",
        what,
        bound,
        Figures::of(taken, "ms"),
        "as control measures it, proof included",
    )
}

fn generation(status: &Value) -> u64 {
    status["dataplane"]["workers"][0]["generation"]
        .as_u64()
        .unwrap_or(0)
}

/// Waits until the worker decides by a snapshot above `before`, and control knows it. The status then.
fn adopted_above(appliance: &Appliance, before: u64) -> anyhow::Result<Value> {
    let until = Instant::now() + PATIENCE;
    loop {
        // Not there yet, at the start.
        if let Ok(status) = appliance.status() {
            let now = generation(&status);
            let known = status["control"]["publication"]["adopted"].as_u64().unwrap_or(0);
            if now > before && known >= now {
                return Ok(status);
            }
        }
        if Instant::now() > until {
            bail!(
                "not adopted within {} s:\n{}",
                PATIENCE.as_secs(),
                appliance.log()
            );
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}
