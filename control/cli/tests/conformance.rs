//! Public truth tables: for every case, the reference evaluator and the compiled snapshot give exactly their verdicts.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test may stop at the first surprise"
)]

use std::{
    collections::BTreeMap,
    io::Read,
    net::IpAddr,
    path::{Path, PathBuf},
};

use ringwall_compile::{EpochKey, compile};
use ringwall_dataplane::{
    addr::Addr,
    classify::{Generation, L4, NodeExemption, Snapshot},
};
use ringwall_policy::{Cluster, NamedPort, Namespace, Object, ObjectKey, Pod, Protocol};
use ringwall_source::decode;
use serde::Deserialize;

#[derive(Deserialize)]
struct Case {
    description: String,
    steps: Vec<Step>,
}

#[derive(Deserialize)]
struct Step {
    namespaces: BTreeMap<String, BTreeMap<String, String>>,
    pods: Vec<TestPod>,
    policies: Vec<serde_json::Value>,
    columns: Vec<String>,
    ingress: Vec<Table>,
    egress: Vec<Table>,
    combined: Vec<Table>,
}

#[derive(Deserialize)]
struct TestPod {
    namespace: String,
    name: String,
    labels: BTreeMap<String, String>,
    ip: IpAddr,
}

#[derive(Deserialize)]
struct Table {
    port: u16,
    #[serde(rename = "portName")]
    port_name: String,
    protocol: String,
    rows: BTreeMap<String, String>,
}

/// The truth tables, beside the workspace.
fn truth() -> Option<Vec<Case>> {
    let path: PathBuf =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/conformance/cyclonus-truth.json.gz");
    if !path.exists() {
        println!("SKIPPED: {} is not there", path.display());
        return None;
    }
    let mut text = String::new();
    flate2::read::GzDecoder::new(std::fs::File::open(path).unwrap())
        .read_to_string(&mut text)
        .unwrap();
    Some(serde_json::from_str(&text).unwrap())
}

fn protocol(name: &str) -> Protocol {
    match name {
        "TCP" => Protocol::Tcp,
        "UDP" => Protocol::Udp,
        "SCTP" => Protocol::Sctp,
        other => panic!("protocol {other}"),
    }
}

fn cluster(step: &Step) -> Cluster {
    let mut cluster = Cluster::default();
    for (name, labels) in &step.namespaces {
        let namespace = Namespace {
            name: name.clone(),
            labels: labels.clone(),
            terminating: false,
        };
        cluster.insert(Object::Namespace(namespace));
    }
    for pod in &step.pods {
        let named_ports = [80, 81]
            .into_iter()
            .flat_map(|number| ["TCP", "UDP", "SCTP"].map(|name| (number, name)))
            .map(|(number, name)| NamedPort {
                name: format!("serve-{number}-{}", name.to_lowercase()),
                protocol: protocol(name),
                number,
            })
            .collect();
        cluster.insert(Object::Pod(Pod {
            labels: pod.labels.clone(),
            addresses: vec![pod.ip],
            named_ports,
            ..Pod::new(ObjectKey {
                namespace: pod.namespace.clone(),
                name: pod.name.clone(),
            })
        }));
    }
    for policy in &step.policies {
        // Some of the tables leave out what the kind of the list says already.
        let mut policy = policy.clone();
        policy["kind"] = "NetworkPolicy".into();
        policy["apiVersion"] = "networking.k8s.io/v1".into();
        for decoded in decode::decode(&policy).unwrap() {
            if let Object::NetworkPolicy(policy) = &decoded.object {
                assert_eq!(policy.faults, [], "{}", decoded.label);
            }
            cluster.insert(decoded.object);
        }
    }
    cluster
}

/// Calls `check` with (source, destination, port, protocol, [ingress, egress, combined] wanted) for every verdict of
/// the truth but the diagonals.
fn for_each(step: &Step, mut check: impl FnMut(IpAddr, IpAddr, u16, u8, [bool; 3], &str)) -> usize {
    let address: BTreeMap<String, IpAddr> = step
        .pods
        .iter()
        .map(|pod| (format!("{}/{}", pod.namespace, pod.name), pod.ip))
        .collect();
    let mut count = 0;
    for ((ingress, egress), combined) in step.ingress.iter().zip(&step.egress).zip(&step.combined) {
        assert!(ingress.port == combined.port && egress.port == combined.port);
        assert!(ingress.protocol == combined.protocol && egress.protocol == combined.protocol);
        assert!(combined.port_name.starts_with("serve-"));
        for (src, row) in &combined.rows {
            for (column, dst) in step.columns.iter().enumerate() {
                if src == dst {
                    continue;
                }
                let wanted =
                    [&ingress.rows[src], &egress.rows[src], row].map(|row| match row.as_bytes()[column] {
                        b'.' => true,
                        b'X' => false,
                        other => panic!("cell {other}"),
                    });
                let number = protocol(&combined.protocol).number();
                let what = format!("{src} -> {dst} {}/{}", combined.port, combined.protocol);
                check(address[src], address[dst], combined.port, number, wanted, &what);
                count += 1;
            }
        }
    }
    count
}

#[test]
fn the_reference_agrees_with_the_truth_tables() {
    let Some(cases) = truth() else { return };
    let mut verdicts = 0;
    for case in &cases {
        for (index, step) in case.steps.iter().enumerate() {
            let cluster = cluster(step);
            verdicts += for_each(step, |src, dst, port, protocol, wanted, what| {
                let verdict = ringwall_evaluate::judge(
                    &cluster,
                    &ringwall_evaluate::identify(&cluster, src),
                    &ringwall_evaluate::identify(&cluster, dst),
                    ringwall_evaluate::Service {
                        protocol,
                        port: Some(port),
                        source_port: None,
                    },
                );
                let got = [verdict.ingress.allow, verdict.egress.allow, verdict.allow()];
                assert_eq!(got, wanted, "{} step {index}: {what}", case.description);
            });
        }
    }
    assert!(verdicts > 100_000, "only {verdicts} verdicts");
}

#[test]
fn the_compiled_snapshot_agrees_with_the_truth_tables() {
    let Some(cases) = truth() else { return };
    let mut verdicts = 0;
    for case in &cases {
        for (index, step) in case.steps.iter().enumerate() {
            let image = compile(&cluster(step), Generation(1), &EpochKey::OFFLINE).unwrap();
            let snapshot = Snapshot::open(&image.bytes).unwrap();
            verdicts += for_each(step, |src, dst, port, protocol, wanted, what| {
                let (src, dst) = (Addr::from(src), Addr::from(dst));
                let verdict = snapshot.judge(
                    &snapshot.identify(src),
                    &snapshot.identify(dst),
                    src,
                    dst,
                    L4::Port {
                        protocol,
                        port,
                        source: 0,
                    },
                    NodeExemption::Trusted,
                );
                let got = [verdict.ingress.allow, verdict.egress.allow, verdict.allow()];
                assert_eq!(got, wanted, "{} step {index}: {what}", case.description);
            });
        }
    }
    assert!(verdicts > 100_000, "only {verdicts} verdicts");
}
