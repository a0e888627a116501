//! `ringwall status`: what runs, in which generation, and where every frame went.

use std::{
    fmt::Write as _,
    io::Write,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use anyhow::bail;
use ringwall_messages::{
    AnswerCounts, CONTROL_SOCKET, ControlStatus, DATAPLANE_SOCKET, DataplaneStatus, NodeStatus, ProofStatus,
    ProtocolError, SUPERVISION_FILE, SnapshotOrigin, Status, Supervision, client,
};

/// Arguments of `ringwall status`.
#[derive(Clone, Debug, clap::Args)]
pub struct StatusArgs {
    /// Configuration file of the running instance
    #[arg(long, value_name = "FILE")]
    pub config: PathBuf,
}

/// How long either process may take to answer.
const PATIENCE: Duration = Duration::from_secs(3);

/// Asks the control process, or the dataplane where that is away. Status 1 where something is not ready or alarmed, 2
/// where nothing runs or this user may not look.
pub(crate) fn run(args: &StatusArgs, json: bool) -> anyhow::Result<ExitCode> {
    let config = ringwall_config::Config::load(&args.config)?;
    let status = ask(&config.name, &config.runtime_dir)?;
    let mut out = std::io::stdout().lock();
    if json {
        serde_json::to_writer(&mut out, &status)?;
        writeln!(out)?;
    } else {
        out.write_all(describe(&status).as_bytes())?;
    }
    Ok(if is_fine(&status) {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(1)
    })
}

/// Whether everything is there, ready and without an alarm.
fn is_fine(status: &Status) -> bool {
    let control = status.control.as_ref();
    let dataplane = status.dataplane.as_ref();
    control.is_some_and(|control| control.ready && control.alarms.is_empty())
        && dataplane.is_some_and(|dataplane| {
            dataplane.alarms.is_empty() && dataplane.workers.iter().all(|worker| worker.alive)
        })
}

/// The status of the instance whose sockets are in `runtime`.
fn ask(name: &str, runtime: &Path) -> anyhow::Result<Status> {
    if let Err(error) = std::fs::metadata(runtime.join(CONTROL_SOCKET))
        && error.kind() == std::io::ErrorKind::PermissionDenied
    {
        bail!(forbidden(name, runtime));
    }
    if let Ok(mut status) = ask_control(&runtime.join(CONTROL_SOCKET)) {
        if status.dataplane.is_none() {
            status.dataplane = client::ask_dataplane(&runtime.join(DATAPLANE_SOCKET), PATIENCE).ok();
        }
        return Ok(status);
    }
    match client::ask_dataplane(&runtime.join(DATAPLANE_SOCKET), PATIENCE) {
        Ok(dataplane) => Ok(Status {
            name: name.to_owned(),
            control: None,
            dataplane: Some(dataplane),
            supervision: read_supervision(runtime),
        }),
        Err(ProtocolError::Io(error)) if error.kind() == std::io::ErrorKind::PermissionDenied => {
            bail!(forbidden(name, runtime))
        }
        Err(error) => bail!(
            "{name} is not running: neither {CONTROL_SOCKET} nor {DATAPLANE_SOCKET} in {} answers ({error}); start it with `ringwall run`",
            runtime.display()
        ),
    }
}

/// What a user is told who may not look: whether anything runs, only root can say.
pub(super) fn forbidden(name: &str, runtime: &Path) -> String {
    format!(
        "no access to {name}: only root can read {}; run this as root",
        runtime.display()
    )
}

fn read_supervision(runtime: &Path) -> Option<Supervision> {
    serde_json::from_slice(&std::fs::read(runtime.join(SUPERVISION_FILE)).ok()?).ok()
}

/// Asks control.
fn ask_control(socket: &Path) -> anyhow::Result<Status> {
    let answer = client::ask_control(socket, "/v1/status", None, PATIENCE)?;
    if answer.status != 200 {
        bail!("status {}", answer.status);
    }
    Ok(serde_json::from_slice(&answer.body)?)
}

/// The status for a person.
fn describe(status: &Status) -> String {
    let mut text = String::new();
    // Writing into a String cannot fail.
    let _ = write!(text, "{}", status.name);
    if let Some(record) = &status.supervision {
        let _ = write!(
            text,
            ", restarts: dataplane {}, control {}",
            record.dataplane_restarts, record.control_restarts
        );
        for (what, how) in [
            ("dataplane", &record.dataplane_last_exit),
            ("control", &record.control_last_exit),
        ] {
            if let Some(how) = how {
                let _ = write!(text, " ({what}: {how})");
            }
        }
    }
    text.push('\n');
    describe_versions(&mut text, status);
    match &status.control {
        Some(control) => describe_control(&mut text, control),
        None => text.push_str("\ncontrol    not running: the last policy stays in force\n"),
    }
    match &status.dataplane {
        Some(dataplane) => describe_dataplane(&mut text, dataplane),
        None => text.push_str("\ndataplane  not running: the fail mode applies\n"),
    }
    text
}

/// Which versions run, where they are not one, and what became of the last upgrade.
fn describe_versions(text: &mut String, status: &Status) {
    let supervisor = status.supervision.as_ref().map(|it| it.version.as_str());
    let control = status.control.as_ref().map(|it| it.version.as_str());
    let dataplane = status.dataplane.as_ref().map(|it| it.version.as_str());
    let versions = [
        ("supervisor", supervisor),
        ("control", control),
        ("dataplane", dataplane),
    ];
    let known: Vec<(&str, &str)> = versions
        .into_iter()
        .filter_map(|(what, version)| Some((what, version.filter(|version| !version.is_empty())?)))
        .collect();
    if known.windows(2).any(|pair| pair[0].1 != pair[1].1) {
        let known: Vec<String> = known
            .iter()
            .map(|(what, version)| format!("{what} {version}"))
            .collect();
        let _ = writeln!(text, "versions   {}", known.join(", "));
    }
    if let Some(upgrade) = status.supervision.as_ref().and_then(|it| it.upgrade.as_ref()) {
        let _ = writeln!(text, "upgrade    {}", upgrade);
    }
}

fn describe_control(text: &mut String, control: &ControlStatus) {
    let source = &control.source;
    let _ = writeln!(
        text,
        "\ncontrol    {}, pid {}, up {}",
        if control.ready { "ready" } else { "NOT READY" },
        control.pid,
        period(control.uptime_seconds)
    );
    for reason in &control.not_ready {
        let _ = writeln!(text, "           {reason}");
    }
    let _ = writeln!(
        text,
        "  source   {} {}, {}",
        source.kind,
        source.location,
        match (source.synced, source.stale) {
            (_, true) => "STALE",
            (true, false) => "synced",
            (false, false) => "not synced",
        }
    );
    if let Some(seconds) = source.stale_seconds {
        let _ = writeln!(text, "           possibly outdated for {}", period(seconds));
    }
    if let (Some(error), Some(seconds)) = (&source.last_error, source.last_error_seconds) {
        let _ = writeln!(text, "           last error, {} ago: {error}", period(seconds));
    }
    let objects = &control.objects;
    let staged = match objects.staged_policies {
        0 => String::new(),
        staged => format!("; {staged} staged and not enforced: see `ringwall flows --staged`"),
    };
    let _ = writeln!(
        text,
        "  objects  {} namespaces, {} nodes, {} pods, {} policies{staged}",
        objects.namespaces,
        objects.nodes,
        objects.pods,
        objects.policies + objects.cluster_policies
    );
    if !control.incomplete.is_empty() {
        let _ = writeln!(text, "  not evaluated: {}", control.incomplete.join(", "));
    }
    for problem in &control.problems {
        let path = match problem.path.as_str() {
            "" => String::new(),
            path => format!(" {path}"),
        };
        let _ = writeln!(
            text,
            "  fault    {} {}{path}: {}",
            problem.kind, problem.object, problem.message
        );
    }
    if let Some(seconds) = control.publication.unadopted_seconds {
        let _ = writeln!(
            text,
            "  policy   the newest has not been adopted for {}",
            period(seconds)
        );
    }
    describe_proof(text, &control.proof);
    if let Some(error) = &control.snapshot.error {
        let _ = writeln!(text, "  compile  {error}");
    }
    if let Some(refusal) = &control.publication.refusal {
        let _ = writeln!(text, "  refused  {refusal}");
    }
    for alarm in &control.alarms {
        let _ = writeln!(text, "  alarm    {alarm}");
    }
}

fn describe_proof(text: &mut String, proof: &ProofStatus) {
    let _ = write!(text, "  proof    verify: {}", proof.verify);
    if proof.proven > 0 {
        let _ = write!(
            text,
            "; {} proven before use, the last in {:.1} ms ({}: {} classes, {} pairs)",
            proof.proven,
            proof.micros as f64 / 1000.0,
            if proof.whole { "all of it" } else { "what changed" },
            proof.classes,
            proof.pairs
        );
    }
    if let Some(seconds) = proof.full_seconds {
        let _ = write!(
            text,
            "; all of generation {} proven {} ago",
            proof.full_generation,
            period(seconds)
        );
    }
    if proof.differences > 0 {
        let _ = write!(text, "; {} DIFFERENCES", proof.differences);
    }
    text.push('\n');
    if let Some(difference) = &proof.difference {
        let _ = writeln!(text, "           {difference}");
    }
}

fn describe_dataplane(text: &mut String, dataplane: &DataplaneStatus) {
    let snapshot = &dataplane.snapshot;
    let _ = writeln!(
        text,
        "\ndataplane  pid {}, up {}",
        dataplane.pid,
        period(dataplane.uptime_seconds)
    );
    let hash = snapshot
        .hash
        .map_or("-".to_owned(), |hash| hash.to_string().chars().take(12).collect());
    let _ = writeln!(
        text,
        "  snapshot generation {}, hash {hash}, {} bytes{}{}",
        snapshot.generation,
        snapshot.bytes,
        match (snapshot.origin, snapshot.age_seconds) {
            (SnapshotOrigin::Disk, Some(seconds)) => {
                format!(
                    ", STALE: from disk, last known to be current {} ago",
                    period(seconds)
                )
            }
            (SnapshotOrigin::Disk, None) => ", STALE: from disk".to_owned(),
            _ => String::new(),
        },
        match snapshot.adoption_micros {
            Some(micros) => format!(", adopted in {:.1} ms", micros as f64 / 1000.0),
            None => String::new(),
        }
    );
    for alarm in &dataplane.alarms {
        let _ = writeln!(text, "  alarm    {alarm}");
    }
    let mut workers = vec![row(&[
        "WORKER",
        "CPU",
        "GENERATION",
        "RECEIVED",
        "HANDED OVER",
        "STATE",
    ])];
    for worker in &dataplane.workers {
        workers.push(vec![
            worker.id.to_string(),
            worker.cpu.map_or("-".to_owned(), |cpu| cpu.to_string()),
            worker.generation.to_string(),
            worker.received.to_string(),
            worker.handed_over.to_string(),
            if worker.alive { "running" } else { "STUCK" }.to_owned(),
        ]);
    }
    table(text, &workers);
    let mut ports = vec![row(&[
        "PORT",
        "KIND",
        "SIDE",
        "XDP",
        "MODE",
        "QUEUES",
        "MTU",
        "RX",
        "TX",
        "KERNEL",
        "FAIL MODE",
        "GUARDED",
        "LOST",
        "STATE",
    ])];
    for port in &dataplane.ports {
        ports.push(vec![
            port.name.clone(),
            port.kind.clone(),
            port.side.clone(),
            port.xdp.clone(),
            if port.zero_copy { "zero-copy" } else { "copy" }.to_owned(),
            port.queues.to_string(),
            port.mtu.to_string(),
            port.rx_frames.to_string(),
            port.tx_frames.to_string(),
            port.to_kernel.to_string(),
            port.fail_mode.to_string(),
            port.guarded.to_string(),
            port.rx_lost.to_string(),
            match (&port.problem, port.up) {
                (Some(problem), _) => problem.clone(),
                (None, true) => "up".to_owned(),
                (None, false) => "DOWN".to_owned(),
            },
        ]);
    }
    if let Some(node) = &dataplane.node {
        describe_node(text, node);
    } else {
        table(text, &ports);
    }
    let frames = &dataplane.frames;
    let _ = writeln!(
        text,
        "\n  frames   {} received + {} generated = {} forwarded + {} dropped + {} queued; {} to the kernel, {} lost before a worker",
        frames.received,
        frames.generated,
        frames.forwarded,
        frames.dropped,
        frames.held,
        frames.to_kernel,
        frames.lost
    );
    let flows = &dataplane.flows;
    let _ = writeln!(
        text,
        "  flows    {} of {}, {} half open; {} created, {} expired, {} cut by policy, {} restored",
        flows.used,
        flows.capacity,
        flows.half_open,
        flows.created,
        flows.expired,
        flows.revoked,
        flows.inherited
    );
    let drops: Vec<String> = dataplane
        .drops
        .iter()
        .filter(|(_, count)| **count > 0)
        .map(|(reason, count)| format!("{reason} {count}"))
        .collect();
    let _ = writeln!(
        text,
        "  drops    {}",
        if drops.is_empty() {
            "none".to_owned()
        } else {
            drops.join(", ")
        }
    );
    let tunnelled: Vec<String> = dataplane
        .tunnelled
        .iter()
        .filter(|(_, count)| **count > 0)
        .map(|(tunnel, count)| format!("{tunnel} {count}"))
        .collect();
    if !tunnelled.is_empty() {
        let _ = writeln!(text, "  tunnels  packets judged inside: {}", tunnelled.join(", "));
    }
    let answers = dataplane.answers;
    if answers != AnswerCounts::default() {
        let _ = writeln!(
            text,
            "  answers  {} to senders of denied packets, {} more over the limit",
            answers.sent, answers.limited
        );
    }
}

fn describe_node(text: &mut String, node: &NodeStatus) {
    let mut interfaces = vec![row(&["INTERFACE", "KIND", "ADDRESSES"])];
    for interface in &node.interfaces {
        let addresses: Vec<String> = interface.addresses.iter().map(ToString::to_string).collect();
        interfaces.push(vec![
            interface.name.clone(),
            interface.kind.clone(),
            if addresses.is_empty() {
                "-".to_owned()
            } else {
                addresses.join(", ")
            },
        ]);
    }
    table(text, &interfaces);
    let outcome = |name: &str| node.outcomes.get(name).copied().unwrap_or_default();
    let _ = writeln!(
        text,
        "\n  kernel   {} by known flows, {} asked about, {} of no pod, {} of this machine; {} of {} decisions known",
        outcome("exit-hit"),
        outcome("exit-asked"),
        outcome("exit-no-pod"),
        outcome("exit-own-stack"),
        node.cached,
        node.cache_capacity
    );
}

fn row(cells: &[&str]) -> Vec<String> {
    cells.iter().map(|cell| (*cell).to_owned()).collect()
}

/// Columns as wide as their widest cell.
fn table(text: &mut String, rows: &[Vec<String>]) {
    let columns = rows.first().map_or(0, Vec::len);
    let width = |column: usize| {
        rows.iter()
            .filter_map(|row| row.get(column))
            .map(|cell| cell.chars().count())
            .max()
            .unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    text.push('\n');
    for row in rows {
        let mut line = String::from("  ");
        for (cell, width) in row.iter().zip(&widths) {
            let _ = write!(line, "{cell:<width$}  ");
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
}

fn period(seconds: f64) -> String {
    let seconds = seconds.max(0.0) as u64;
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{} min {} s", seconds / 60, seconds % 60),
        3600..86400 => format!("{} h {} min", seconds / 3600, seconds / 60 % 60),
        _ => format!("{} d {} h", seconds / 86400, seconds / 3600 % 24),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)] // a test that panics has failed
mod tests {
    use ringwall_messages::{
        FrameAccounts, ObjectProblem, PortStatus, SnapshotStatus, UpgradeOutcome, UpgradeStatus, WorkerStatus,
    };

    use super::*;

    #[test]
    fn a_status_names_what_a_person_asks_for() {
        let text = describe(&Status {
            name: "gw".to_owned(),
            control: None,
            dataplane: Some(DataplaneStatus {
                snapshot: SnapshotStatus {
                    generation: 7,
                    ..SnapshotStatus::default()
                },
                workers: vec![WorkerStatus {
                    cpu: Some(3),
                    alive: true,
                    ..WorkerStatus::default()
                }],
                ports: vec![PortStatus {
                    name: "veth-a".to_owned(),
                    problem: Some("the interface is gone".to_owned()),
                    ..PortStatus::default()
                }],
                drops: [("policy-ingress".to_owned(), 4), ("malformed".to_owned(), 0)].into(),
                frames: FrameAccounts {
                    received: 10,
                    forwarded: 6,
                    dropped: 4,
                    ..FrameAccounts::default()
                },
                ..DataplaneStatus::default()
            }),
            supervision: None,
        });
        for part in [
            "control    not running",
            "generation 7",
            "veth-a",
            "the interface is gone",
            "policy-ingress 4",
            "10 received + 0 generated = 6 forwarded + 4 dropped",
        ] {
            assert!(text.contains(part), "{part} is not in:\n{text}");
        }
        assert!(!text.contains("malformed"), "{text}");
    }

    #[test]
    fn versions_are_said_where_they_differ_and_the_last_upgrade_always() {
        let status = |dataplane: &str, upgrade| {
            describe(&Status {
                control: Some(ControlStatus {
                    version: "1.1".to_owned(),
                    ..ControlStatus::default()
                }),
                dataplane: Some(DataplaneStatus {
                    version: dataplane.to_owned(),
                    ..DataplaneStatus::default()
                }),
                supervision: Some(Supervision {
                    version: "1.1".to_owned(),
                    upgrade,
                    ..Supervision::default()
                }),
                ..Status::default()
            })
        };
        let same = status("1.1", None);
        assert!(!same.contains("versions") && !same.contains("upgrade"), "{same}");
        let text = status(
            "1.2",
            Some(UpgradeStatus {
                outcome: UpgradeOutcome::RolledBack,
                from: "1.1".to_owned(),
                to: "1.2".to_owned(),
                reason: Some("it died".to_owned()),
                ..UpgradeStatus::default()
            }),
        );
        for line in [
            "versions   supervisor 1.1, control 1.1, dataplane 1.2\n",
            "upgrade    rolled back from 1.2 to 1.1: it died\n",
        ] {
            assert!(text.contains(line), "{text}");
        }
    }

    #[test]
    fn the_proof_is_said_in_one_line_and_a_difference_in_another() {
        let text = |proof: ProofStatus| {
            describe(&Status {
                control: Some(ControlStatus {
                    proof,
                    ..ControlStatus::default()
                }),
                ..Status::default()
            })
        };
        let off = text(ProofStatus {
            verify: "off".to_owned(),
            ..ProofStatus::default()
        });
        assert!(off.contains("\n  proof    verify: off\n"), "{off}");
        let proven = ProofStatus {
            verify: "changed".to_owned(),
            proven: 3,
            micros: 1234,
            classes: 5,
            pairs: 20,
            full_generation: 7,
            full_seconds: Some(63.0),
            ..ProofStatus::default()
        };
        let line = "\n  proof    verify: changed; 3 proven before use, the last in 1.2 ms (what changed: 5 classes, \
                    20 pairs); all of generation 7 proven 1 min 3 s ago\n";
        let said = text(proven.clone());
        assert!(said.contains(line), "{said}");
        let wrong = text(ProofStatus {
            differences: 1,
            difference: Some("a packet that shows it".to_owned()),
            ..proven
        });
        assert!(
            wrong.contains("ago; 1 DIFFERENCES\n           a packet that shows it\n"),
            "{wrong}"
        );
    }

    #[test]
    fn nothing_running_is_said_with_the_place() {
        let dir = tempfile::tempdir().unwrap();
        let error = ask("gw", dir.path()).unwrap_err().to_string();
        assert!(error.contains("gw is not running"), "{error}");
        assert!(error.contains(&dir.path().display().to_string()), "{error}");
    }

    #[test]
    fn what_is_not_ready_alarmed_or_away_is_not_fine() {
        let fine = || Status {
            control: Some(ControlStatus {
                ready: true,
                ..ControlStatus::default()
            }),
            dataplane: Some(DataplaneStatus {
                workers: vec![WorkerStatus {
                    alive: true,
                    ..WorkerStatus::default()
                }],
                ..DataplaneStatus::default()
            }),
            ..Status::default()
        };
        assert!(is_fine(&fine()));
        let spoils: [fn(&mut Status); 6] = [
            |status| status.control = None,
            |status| status.dataplane = None,
            |status| status.control.as_mut().unwrap().ready = false,
            |status| status.control.as_mut().unwrap().alarms.push("a".to_owned()),
            |status| status.dataplane.as_mut().unwrap().alarms.push("a".to_owned()),
            |status| status.dataplane.as_mut().unwrap().workers[0].alive = false,
        ];
        for (at, spoil) in spoils.into_iter().enumerate() {
            let mut status = fine();
            spoil(&mut status);
            assert!(!is_fine(&status), "{at}: {status:?}");
        }
    }

    #[test]
    fn a_snapshot_of_the_disk_is_said_to_be_stale_and_how_old() {
        let text = describe(&Status {
            dataplane: Some(DataplaneStatus {
                snapshot: SnapshotStatus {
                    generation: 7,
                    origin: SnapshotOrigin::Disk,
                    age_seconds: Some(7200.0),
                    ..SnapshotStatus::default()
                },
                ..DataplaneStatus::default()
            }),
            ..Status::default()
        });
        let said = "STALE: from disk, last known to be current 2 h 0 min ago";
        assert!(text.contains(said), "{text}");
    }

    #[test]
    fn a_fault_says_its_place_once() {
        let text = describe(&Status {
            control: Some(ControlStatus {
                problems: vec![
                    ObjectProblem {
                        kind: "file".to_owned(),
                        object: "/x/np.yaml:3".to_owned(),
                        path: String::new(),
                        message: "mapping values are not allowed".to_owned(),
                    },
                    ObjectProblem {
                        kind: "NetworkPolicy".to_owned(),
                        object: "a/deny".to_owned(),
                        path: "spec.podSelctor".to_owned(),
                        message: "/x/np.yaml:7: unknown field".to_owned(),
                    },
                ],
                ..ControlStatus::default()
            }),
            ..Status::default()
        });
        for line in [
            "  fault    file /x/np.yaml:3: mapping values are not allowed\n",
            "  fault    NetworkPolicy a/deny spec.podSelctor: /x/np.yaml:7: unknown field\n",
        ] {
            assert!(text.contains(line), "{text}");
        }
    }
}
