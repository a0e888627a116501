//! From a changed manifest to its adoption by every worker.

use std::{
    fs,
    path::Path,
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{anyhow, bail};
use ringwall_testbed::{
    appliance::{self, Appliance, built_binary},
    manifests,
    topology::{Bed, Plan as MemberPlan, Role, pod_addresses},
};
use serde_json::{Value, json};

use crate::{
    arguments::positive,
    recorder::{Recorder, Recording},
    samples::{Better, Party, Plan, Reading, Row, Section, Target},
};

/// Options of the benchmark.
#[derive(clap::Args, Debug)]
pub(crate) struct Options {
    /// Pods of the cluster, in 20 namespaces.
    #[arg(long, default_value_t = 1000)]
    pub(crate) pods: usize,
    /// Policies, each in a file of its own.
    #[arg(long, default_value_t = 200, value_parser = positive::<usize>)]
    pub(crate) policies: usize,
    /// How many changes are measured, one after the other.
    #[arg(long, default_value_t = 50, value_parser = positive::<usize>)]
    pub(crate) changes: usize,
    #[command(flatten)]
    pub(crate) recording: Recording,
}

const NAMESPACES: usize = 20;
const APPS: usize = 25;

pub(crate) fn run(options: &Options) -> anyhow::Result<ExitCode> {
    let mut recorder = options.recording.recorder();
    rows(options, &mut recorder)?;
    Ok(recorder.finish())
}

/// Both rows: as control measures it, and as it is seen from outside.
pub(crate) fn rows(options: &Options, recorder: &mut Recorder) -> anyhow::Result<()> {
    let what = format!("{} pods, {} policies", options.pods, options.policies);
    let plans = [
        (
            "adoption",
            "changed policy noticed to adopted by all workers",
            Some(Target::Subject(50.0)),
        ),
        (
            "adoption-seen",
            "changed policy written to its adoption seen in the status",
            None,
        ),
    ]
    .map(|(id, title, target)| Plan {
        id: id.into(),
        title: format!("{title}, {what}"),
        section: Section::Policy,
        unit: "ms".into(),
        better: Better::Lower,
        target,
        parameters: [].into(),
    });
    recorder.measure(&plans, |machine| {
        let (reported, seen) = changes(options)?;
        let party = || {
            Party::new(
                "ringwall",
                format!(
                    "`ringwall run`, routed, one worker; {} changes of one policy's file",
                    options.changes
                ),
            )
        };
        Ok(plans
            .iter()
            .zip([reported, seen])
            .map(|(plan, values)| Row::alone(plan, machine, party(), values.into_iter().map(Reading::from)))
            .collect())
    })
}

/// Milliseconds of each change, as control reports it and as the status shows it.
fn changes(options: &Options) -> anyhow::Result<(Vec<f64>, Vec<f64>)> {
    crate::can_make_namespaces()?;
    let binary = built_binary()?;
    let bed = Bed::new(
        Role::Routed,
        &[MemberPlan::new("n0/pod-0"), MemberPlan::new("n1/pod-1")],
        1,
    )?;
    for index in 0..options.policies {
        write(&bed.manifests(), index, 1000)?;
    }
    let appliance = Appliance::start(
        &bed,
        &binary,
        &appliance::Options::default(),
        &objects(options.pods),
    )?;
    let (mut reported, mut seen) = (Vec::new(), Vec::new());
    for change in 0..options.changes {
        let before = generation(&appliance.status()?);
        let start = Instant::now();
        write(&bed.manifests(), change % options.policies, 2000 + change)?;
        let status = appliance.wait_until("the change is adopted", |status| {
            generation(status) > before && workers_at(status, generation(status))
        })?;
        seen.push(start.elapsed().as_secs_f64() * 1e3);
        let micros = status["control"]["publication"]["eventToAdoptedMicros"]
            .as_u64()
            .ok_or_else(|| anyhow!("the status has no publication.eventToAdoptedMicros"))?;
        reported.push(micros as f64 / 1e3);
        // Beyond every debounce, so that changes do not run into each other.
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok((reported, seen))
}

fn generation(status: &Value) -> u64 {
    status["control"]["snapshot"]["generation"].as_u64().unwrap_or(0)
}

/// Whether every worker decides by a generation.
fn workers_at(status: &Value, generation: u64) -> bool {
    status["dataplane"]["workers"].as_array().is_some_and(|workers| {
        !workers.is_empty()
            && workers
                .iter()
                .all(|worker| worker["generation"].as_u64() == Some(generation))
    })
}

/// Namespaces and pods.
fn objects(pods: usize) -> Vec<Value> {
    let namespaces = (0..NAMESPACES).map(|index| {
        let team = format!("team-{}", index % 5);
        manifests::namespace(&format!("n{index}"), &manifests::labels([("team", &team)]))
    });
    let pods = (0..pods).map(|index| {
        let (v4, v6) = pod_addresses(index);
        manifests::Pod {
            namespace: format!("n{}", index % NAMESPACES),
            name: format!("pod-{index}"),
            labels: manifests::labels([("app", &format!("app-{}", index % APPS)), ("tier", "backend")]),
            addresses: vec![v4.into(), v6.into()],
            node: format!("node-{}", index % 10),
            ports: vec![("web".to_owned(), 8080, "TCP")],
        }
        .object()
    });
    namespaces.chain(pods).collect()
}

/// Writes the policy of an index, in one step.
fn write(folder: &Path, index: usize, port: usize) -> anyhow::Result<()> {
    if index >= 100_000 {
        bail!("at most 100000 policies have names here");
    }
    let policy = json!({
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": format!("policy-{index:05}"), "namespace": format!("n{}", index % NAMESPACES)},
        "spec": {
            "podSelector": {"matchLabels": {"app": format!("app-{}", index % APPS)}},
            "policyTypes": ["Ingress", "Egress"],
            "ingress": [{
                "from": [
                    {"namespaceSelector": {"matchLabels": {"team": format!("team-{}", index % 5)}}},
                    {"podSelector": {"matchExpressions": [{"key": "app", "operator": "NotIn", "values": ["app-0"]}]}},
                ],
                "ports": [{"protocol": "TCP", "port": port}, {"protocol": "TCP", "port": "web"}],
            }],
            "egress": [{
                "to": [{"ipBlock": {"cidr": "10.0.0.0/8", "except": [format!("10.{}.0.0/16", index % 256)]}}],
            }],
        },
    });
    let staged = folder.join(format!(".policy-{index:05}"));
    fs::write(&staged, policy.to_string())?;
    fs::rename(staged, folder.join(format!("policy-{index:05}.yaml")))?;
    Ok(())
}
