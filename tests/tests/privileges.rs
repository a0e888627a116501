//! The appliance with no more rights than the unit gives it: what it keeps of them, and that it works.
#![allow(clippy::unwrap_used, clippy::panic)] // a failed step is a failed test

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use ringwall_testbed::{
    appliance::{Appliance, Options, Signal, built_binary, built_neighbour},
    preflight::runs_here,
    probe::Service,
    topology::{Bed, Plan, Role},
    world::{World, differences},
};
use serde_json::json;

const HTTP: Service = Service::Tcp(80);

/// What the unit in `config/deploy` lets the appliance have, as `setpriv` calls it.
fn of_the_unit() -> Vec<String> {
    let unit = Path::new(env!("CARGO_MANIFEST_DIR")).join("../config/deploy/ringwall@.service");
    let text = fs::read_to_string(unit).unwrap();
    let sets = text
        .lines()
        .filter_map(|line| line.strip_prefix("CapabilityBoundingSet="));
    let words = sets.flat_map(str::split_whitespace);
    words
        .map(|word| word.strip_prefix("CAP_").unwrap().to_lowercase())
        .collect()
}

/// A program that begins as systemd would begin it.
fn under_the_unit(bed: &Bed) -> PathBuf {
    let kept: String = of_the_unit().iter().map(|name| format!(",+{name}")).collect();
    let program = bed.folder().join("under-the-unit");
    let script = format!(
        "#!/bin/sh\nexec setpriv --bounding-set=-all{kept} --inh-caps=-all --no-new-privs {} \"$@\"\n",
        built_binary().unwrap().display()
    );
    fs::write(&program, script).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    program
}

/// A line of the status of every thread of a process.
fn of_threads(pid: i32, key: &str) -> Vec<String> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let text = |task: fs::DirEntry| fs::read_to_string(task.path().join("status")).ok();
    let line = |text: String| {
        text.lines()
            .find_map(|line| Some(line.strip_prefix(key)?.trim().to_owned()))
    };
    let mut values: Vec<String> = tasks.flatten().filter_map(text).filter_map(line).collect();
    values.sort();
    values.dedup();
    values
}

/// The only value that all threads have.
fn of_all(pid: i32, key: &str) -> String {
    let values = of_threads(pid, key);
    assert_eq!(values.len(), 1, "{key} of {pid}: {values:?}");
    values[0].clone()
}

const NOTHING: &str = "0000000000000000";

/// CAP_NET_ADMIN 12, CAP_NET_RAW 13, CAP_IPC_LOCK 14, CAP_SYS_ADMIN 21, CAP_SYS_NICE 23, CAP_SYS_RESOURCE 24,
/// CAP_PERFMON 38, CAP_BPF 39; those of them that this machine gives to anybody.
fn of_the_dataplane() -> String {
    let bits = [12, 13, 14, 21, 23, 24, 38, 39];
    let given = u64::from_str_radix(&of_all(std::process::id() as i32, "CapBnd:"), 16).unwrap();
    format!(
        "{:016x}",
        given & bits.iter().fold(0_u64, |set, bit| set | 1 << bit)
    )
}

#[test]
fn the_unit_gives_enough_and_the_processes_keep_less() {
    the_unit_gives_enough(true);
}

#[test]
fn the_unit_gives_enough_where_control_needs_a_capability_to_read() {
    the_unit_gives_enough(false);
}

fn the_unit_gives_enough(reachable: bool) {
    let Some(_alone) = runs_here("rights") else {
        return;
    };
    let bed = Bed::new(
        Role::Routed,
        &[
            Plan::new("shop/web"),
            Plan::new("shop/client"),
            Plan::new("shop/other"),
        ],
        1,
    )
    .unwrap();
    // Control's own user reaches the manifests, or needs a capability for it.
    let mode = if reachable { 0o755 } else { 0o700 };
    fs::set_permissions(bed.folder(), fs::Permissions::from_mode(mode)).unwrap();
    let mut world = World::of(&bed);
    for name in ["web", "client", "other"] {
        world.label(&format!("shop/{name}"), "app", name).unwrap();
    }
    world.policy(
        "shop",
        "web",
        json!({"podSelector": {"matchLabels": {"app": "web"}}, "policyTypes": ["Ingress"], "ingress": [
            {"from": [{"podSelector": {"matchLabels": {"app": "client"}}}]}]}),
    );
    let wanted = [
        ("shop/client", "shop/web", HTTP, true),
        ("shop/other", "shop/web", HTTP, false),
    ];
    let firewall =
        Appliance::start(&bed, &under_the_unit(&bed), &Options::default(), &world.objects()).unwrap();
    let found = differences(&bed, &wanted).unwrap();
    assert!(found.is_empty(), "{found:#?}");

    let looked_at = |when: &str| {
        let status = firewall.wait_until("both say who they are", |status| {
            ["control", "dataplane"]
                .iter()
                .all(|process| status[*process]["pid"].is_i64())
        });
        let status = status.unwrap();
        let pid = |process: &str| status[process]["pid"].as_i64().unwrap() as i32;
        let control = pid("control");
        assert_ne!(
            of_all(control, "Uid:").split_whitespace().next(),
            Some("0"),
            "{when}: {}",
            firewall.log()
        );
        for set in ["CapInh:", "CapPrm:", "CapEff:", "CapBnd:", "CapAmb:"] {
            // CAP_DAC_READ_SEARCH 2.
            let kept = ["CapPrm:", "CapEff:", "CapBnd:"].contains(&set) && !reachable;
            let wanted = if kept { "0000000000000004" } else { NOTHING };
            assert_eq!(of_all(control, set), wanted, "{set} {when}");
        }
        assert_eq!(of_all(control, "NoNewPrivs:"), "1", "{when}");
        assert_eq!(of_all(control, "Seccomp:"), "2", "{when}");
        let dataplane = pid("dataplane");
        for set in ["CapPrm:", "CapEff:", "CapBnd:"] {
            assert_eq!(of_all(dataplane, set), of_the_dataplane(), "{set} {when}");
        }
        assert_eq!(of_all(dataplane, "NoNewPrivs:"), "1", "{when}");
    };
    looked_at("at first");
    for process in ["control", "dataplane"] {
        let before = firewall.signal(process, Signal::SIGKILL).unwrap();
        firewall
            .wait_until("another is there and decides", |status| {
                let generation = &status["dataplane"]["snapshot"]["generation"];
                status[process]["pid"]
                    .as_i64()
                    .is_some_and(|pid| pid != i64::from(before.as_raw()))
                    && status["dataplane"]["workers"]
                        .as_array()
                        .is_some_and(|workers| workers.iter().all(|it| it["generation"] == *generation))
            })
            .unwrap();
        looked_at(process);
        let found = differences(&bed, &wanted).unwrap();
        assert!(found.is_empty(), "{process}: {found:#?}");
    }
    // As the unit reloads; processes of another version give up as much.
    let upgraded = firewall
        .ringwall(&[
            "upgrade",
            "--config",
            &firewall.config.to_string_lossy(),
            "--program",
            &built_neighbour().unwrap().to_string_lossy(),
        ])
        .unwrap();
    assert!(upgraded.status.success(), "{upgraded:?}");
    looked_at("after an upgrade");
    let found = differences(&bed, &wanted).unwrap();
    assert!(found.is_empty(), "after an upgrade: {found:#?}");
    // What control compiles from now on arrives, too.
    world.policy(
        "shop",
        "all",
        json!({"podSelector": {}, "policyTypes": ["Ingress"], "ingress": [{}]}),
    );
    firewall.apply(&world.objects()).unwrap();
    let found = differences(&bed, &[("shop/other", "shop/web", HTTP, true)]).unwrap();
    assert!(found.is_empty(), "{found:#?}");
}
