//! The manifests in `config/deploy/kubernetes`: what they say against what the program takes, and its containers run with what
//! they give.
#![allow(clippy::unwrap_used, clippy::panic)] // a failed step is a failed test

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Child, Command},
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use ringwall_config::{Config, PodStart, SourceKind};
use ringwall_testbed::{
    appliance::{Options, built_binary},
    manifests,
    preflight::runs_here,
    probe::Service,
    topology::{Bed, Plan, Role},
    world::{World, differences},
};
use serde_json::{Value, json};

const HTTP: Service = Service::Tcp(80);
/// Capabilities that a dataplane keeps, with their numbers (linux/capability.h).
const NUMBERS: [(&str, u32); 8] = [
    ("net_admin", 12),
    ("net_raw", 13),
    ("ipc_lock", 14),
    ("sys_admin", 21),
    ("sys_nice", 23),
    ("sys_resource", 24),
    ("perfmon", 38),
    ("bpf", 39),
];

fn objects(file: &str) -> Vec<Value> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../config/deploy/kubernetes")
        .join(file);
    serde_saphyr::from_multiple(&fs::read_to_string(path).unwrap()).unwrap()
}

fn of_kind<'a>(objects: &'a [Value], kind: &str) -> &'a Value {
    objects.iter().find(|object| object["kind"] == kind).unwrap()
}

fn list<'a>(value: &'a Value, key: &str) -> &'a [Value] {
    value[key].as_array().map_or(&[], Vec::as_slice)
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_else(|| panic!("{value} is no text"))
}

fn texts(values: &[Value]) -> Vec<&str> {
    values.iter().map(text).collect()
}

/// The pod of the file's DaemonSet.
fn pod(objects: &[Value]) -> &Value {
    &of_kind(objects, "DaemonSet")["spec"]["template"]["spec"]
}

/// All containers, by name.
fn containers(pod: &Value) -> BTreeMap<&str, &Value> {
    list(pod, "initContainers")
        .iter()
        .chain(list(pod, "containers"))
        .map(|container| (text(&container["name"]), container))
        .collect()
}

/// Capabilities as `setpriv` names them.
fn capabilities(container: &Value) -> BTreeSet<String> {
    let added = list(&container["securityContext"]["capabilities"], "add");
    texts(added).into_iter().map(str::to_lowercase).collect()
}

/// Volumes by where they are mounted.
fn mounts(container: &Value) -> BTreeMap<&str, &str> {
    list(container, "volumeMounts")
        .iter()
        .map(|mount| (text(&mount["mountPath"]), text(&mount["name"])))
        .collect()
}

fn ringwall(arguments: &[&str]) -> String {
    let output = Command::new(built_binary().unwrap())
        .args(arguments)
        .env("COLUMNS", "500")
        .output()
        .unwrap();
    assert!(output.status.success(), "{arguments:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// Through the API's own type and back: a field that it does not have is lost on the way, and a wrong type fails.
fn as_read<T: serde::de::DeserializeOwned + serde::Serialize>(object: &Value) -> Value {
    let read: T = serde_json::from_value(object.clone())
        .unwrap_or_else(|error| panic!("{} {}: {error}", object["kind"], object["metadata"]["name"]));
    serde_json::to_value(read).unwrap()
}

#[test]
fn an_api_server_would_know_every_field() {
    use k8s_openapi::api::{
        apps::v1::DaemonSet,
        core::v1::{ConfigMap, Namespace, ServiceAccount},
        rbac::v1::{ClusterRole, ClusterRoleBinding},
    };
    for file in ["node.yaml", "uninstall.yaml", "../rbac.yaml"] {
        for object in objects(file) {
            let read = match text(&object["kind"]) {
                "DaemonSet" => as_read::<DaemonSet>(&object),
                "ConfigMap" => as_read::<ConfigMap>(&object),
                "Namespace" => as_read::<Namespace>(&object),
                "ServiceAccount" => as_read::<ServiceAccount>(&object),
                "ClusterRole" => as_read::<ClusterRole>(&object),
                "ClusterRoleBinding" => as_read::<ClusterRoleBinding>(&object),
                other => panic!("{file}: {other}"),
            };
            assert_eq!(read, object, "{file}");
        }
    }
    // Pods, selector and role are each other's.
    for file in ["node.yaml", "uninstall.yaml"] {
        let all = objects(file);
        let set = of_kind(&all, "DaemonSet");
        assert_eq!(
            set["spec"]["selector"]["matchLabels"], set["spec"]["template"]["metadata"]["labels"],
            "{file}"
        );
    }
    let (node, rbac) = (objects("node.yaml"), objects("../rbac.yaml"));
    let account = &of_kind(&rbac, "ServiceAccount")["metadata"];
    assert_eq!(pod(&node)["serviceAccountName"], account["name"]);
    assert_eq!(
        of_kind(&node, "DaemonSet")["metadata"]["namespace"],
        account["namespace"]
    );
}

#[test]
fn every_container_is_given_what_its_command_takes_and_no_more() {
    for file in ["node.yaml", "uninstall.yaml"] {
        let all = objects(file);
        let pod = pod(&all);
        // Pods of the host's network need no CNI, nor a Service of the cluster's DNS.
        assert_eq!(pod["hostNetwork"], true, "{file}");
        assert_eq!(pod["dnsPolicy"], "Default", "{file}");
        assert_eq!(pod["tolerations"], json!([{"operator": "Exists"}]), "{file}");
        assert_eq!(pod["automountServiceAccountToken"], false, "{file}");
        let volumes: BTreeSet<&str> = list(pod, "volumes")
            .iter()
            .map(|volume| text(&volume["name"]))
            .collect();
        let mut mounted = BTreeSet::new();
        for (name, container) in containers(pod) {
            let security = &container["securityContext"];
            assert_eq!(security["privileged"], Value::Null, "{file} {name}");
            assert_eq!(security["allowPrivilegeEscalation"], false, "{file} {name}");
            assert_eq!(security["readOnlyRootFilesystem"], true, "{file} {name}");
            assert_eq!(security["capabilities"]["drop"], json!(["ALL"]), "{file} {name}");
            mounted.extend(mounts(container).into_values());
            if text(&container["command"][0]) != "ringwall" {
                continue;
            }
            let command = texts(list(container, "command"));
            let words: Vec<&str> = command[1..]
                .iter()
                .take_while(|word| !word.starts_with('-'))
                .copied()
                .collect();
            let help = ringwall(&[&words[..], &["--help"]].concat());
            for flag in command.iter().filter(|word| word.starts_with("--")) {
                assert!(
                    help.contains(&format!("{flag}\n")) || help.contains(&format!("{flag} ")),
                    "{flag}: {help}"
                );
            }
            if words[0] == "cni" {
                // The defaults of both flags.
                for folder in ["/etc/cni/net.d", "/opt/cni/bin"] {
                    assert!(help.contains(&format!("[default: {folder}]")), "{help}");
                    assert!(mounts(container).contains_key(folder), "{file} {name}");
                }
            }
        }
        assert_eq!(mounted, volumes, "{file}");
    }
}

#[test]
fn paths_and_ports_are_those_of_the_configuration() {
    let all = objects("node.yaml");
    let map = of_kind(&all, "ConfigMap");
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("node.yaml");
    fs::write(&file, text(&map["data"]["node.yaml"])).unwrap();
    let config = Config::load(&file).unwrap();
    assert_eq!(config.pod_start, PodStart::Hold);
    assert!(matches!(config.source.kind, SourceKind::InCluster));

    let pod = pod(&all);
    let containers = containers(pod);
    // Credentials are in one of them, where the source looks for them.
    let token = "/var/run/secrets/kubernetes.io/serviceaccount";
    for (name, container) in &containers {
        assert_eq!(
            mounts(container).contains_key(token),
            *name == "control",
            "{name}"
        );
        if *name != "control" {
            assert_eq!(container["env"], Value::Null, "{name}");
        }
    }
    for name in ["dataplane", "control"] {
        for dir in [&config.runtime_dir, &config.state_dir] {
            let parent = dir.parent().unwrap().to_str().unwrap();
            assert!(mounts(containers[name]).contains_key(parent), "{name} {parent}");
        }
    }
    let bpffs = config.bpffs.to_str().unwrap();
    assert_eq!(mounts(containers["dataplane"]).get(bpffs), Some(&"bpffs"));
    // The plugin finds the sockets on the node where the pod has them.
    for volume in list(pod, "volumes")
        .iter()
        .filter(|volume| !volume["hostPath"].is_null())
    {
        let path = text(&volume["hostPath"]["path"]);
        for container in containers.values() {
            for (place, name) in mounts(container) {
                assert!(volume["name"] != *name || place == path, "{place}");
            }
        }
    }
    let health = config.telemetry.health_listen.unwrap();
    for probe in ["startupProbe", "livenessProbe", "readinessProbe"] {
        let get = &containers["control"][probe]["httpGet"];
        assert_eq!(text(&get["host"]), health.ip().to_string(), "{probe}");
        assert_eq!(get["port"], health.port(), "{probe}");
    }
    // What is removed is what was installed.
    let uninstall = objects("uninstall.yaml");
    let paths = |pod: &Value| -> BTreeMap<String, Value> {
        let volumes = list(pod, "volumes").iter();
        volumes
            .filter(|volume| volume["name"] != "token")
            .map(|volume| (text(&volume["name"]).to_owned(), volume.clone()))
            .collect()
    };
    assert_eq!(paths(self::pod(&uninstall)), paths(pod));
}

/// Runs containers of the manifests, with what they are given of rights and with paths on a bed.
struct Runtime<'a> {
    bed: &'a Bed,
    config: PathBuf,
    binary: PathBuf,
}

/// A container that runs until it is dropped.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = kill(Pid::from_raw(self.0.id() as i32), Signal::SIGTERM);
        let _ = self.0.wait();
    }
}

impl Runtime<'_> {
    fn command(&self, container: &Value) -> Command {
        let security = &container["securityContext"];
        let kept: String = capabilities(container)
            .iter()
            .map(|name| format!(",+{name}"))
            .collect();
        let folder = self.bed.folder().display().to_string();
        let place = |word: &str| {
            word.replace("/etc/ringwall/node.yaml", &self.config.display().to_string())
                .replace("/run/ringwall", &format!("{folder}/k/run"))
                .replace("/var/lib/ringwall", &format!("{folder}/k/state"))
        };
        let mut words = vec![
            "setpriv".to_owned(),
            format!("--bounding-set=-all{kept}"),
            "--inh-caps=-all".to_owned(),
            "--no-new-privs".to_owned(),
        ];
        if security["runAsUser"] != 0 {
            let (user, group) = (&security["runAsUser"], &security["runAsGroup"]);
            words.extend([
                format!("--reuid={user}"),
                format!("--regid={group}"),
                "--clear-groups".to_owned(),
            ]);
        }
        let own = texts(list(container, "command"));
        words.extend(
            own.iter()
                .chain(&texts(list(container, "args")))
                .map(|word| match *word {
                    "ringwall" => self.binary.display().to_string(),
                    word => place(word),
                }),
        );
        // Settings of the kernel can be read, as in a container that is not privileged.
        let mut command = Command::new("unshare");
        command
            .args(["--mount", "sh", "-c"])
            .arg("mount --bind -o ro /proc/sys /proc/sys && exec \"$@\"")
            .arg("sh")
            .args(words)
            .env("NO_COLOR", "1");
        command
    }

    fn run(&self, container: &Value) {
        let output = self.bed.gateway.output(self.command(container)).unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{}: {said}", container["name"]);
    }

    fn start(&self, container: &Value) -> Running {
        let mut child = self.bed.gateway.spawn(self.command(container)).unwrap();
        // So that it is never held up by a full pipe.
        for stream in [
            child
                .stdout
                .take()
                .map(|it| Box::new(it) as Box<dyn std::io::Read + Send>),
            child
                .stderr
                .take()
                .map(|it| Box::new(it) as Box<dyn std::io::Read + Send>),
        ]
        .into_iter()
        .flatten()
        {
            std::thread::spawn(move || std::io::copy(&mut { stream }, &mut std::io::stderr()));
        }
        Running(child)
    }

    fn status(&self) -> Value {
        let mut command = Command::new(&self.binary);
        let config = self.config.display().to_string();
        command.args(["status", "--config", &config, "-o", "json"]);
        let output = self.bed.gateway.output(command).unwrap();
        serde_json::from_slice(&output.stdout).unwrap_or_default()
    }
}

#[test]
fn the_containers_guard_a_node_with_the_rights_that_they_are_given() {
    let Some(_alone) = runs_here("containers of a DaemonSet") else {
        return;
    };
    let plans = ["shop/web", "shop/client", "shop/other"].map(Plan::new);
    let bed = Bed::new(Role::Node, &plans, 1).unwrap();
    fs::set_permissions(bed.folder(), fs::Permissions::from_mode(0o755)).unwrap();
    fs::create_dir(bed.folder().join("k")).unwrap();
    let mut world = World::of(&bed);
    for name in ["web", "client", "other"] {
        world.label(&format!("shop/{name}"), "app", name).unwrap();
    }
    world.policy(
        "shop",
        "web",
        json!({"podSelector": {"matchLabels": {"app": "web"}}, "ingress": [
            {"from": [{"podSelector": {"matchLabels": {"app": "client"}}}]}]}),
    );
    fs::write(
        bed.manifests().join("bed.yaml"),
        manifests::file(&world.objects()),
    )
    .unwrap();
    // Where another user than root can read it.
    let binary = bed.folder().join("ringwall-in-image");
    fs::copy(built_binary().unwrap(), &binary).unwrap();
    let config = bed.folder().join("k/node.yaml");
    let folder = bed.folder().display();
    let written = bed
        .configuration(&Options::default())
        .replace(
            &format!("runtimeDir: {folder}/run"),
            &format!("runtimeDir: {folder}/k/run/node"),
        )
        .replace(
            &format!("stateDir: {folder}/state"),
            &format!("stateDir: {folder}/k/state/node"),
        );
    fs::write(&config, written).unwrap();
    let runtime = Runtime {
        bed: &bed,
        config,
        binary,
    };

    let all = objects("node.yaml");
    let node = containers(pod(&all));
    runtime.run(node["folders"]);
    let dataplane = runtime.start(node["dataplane"]);
    let control = runtime.start(node["control"]);
    let until = Instant::now() + Duration::from_secs(60);
    loop {
        let status = runtime.status();
        if status["control"]["ready"] == true {
            break;
        }
        assert!(Instant::now() < until, "never ready: {status:#}");
        std::thread::sleep(Duration::from_millis(50));
    }
    let found = differences(
        &bed,
        &[
            ("shop/client", "shop/web", HTTP, true),
            ("shop/other", "shop/web", HTTP, false),
        ],
    )
    .unwrap();
    assert!(found.is_empty(), "{found:#?}");

    // It needs all that it is given: what a process does not need it gives up.
    let held = |process: &Running, set: &str| {
        let status = fs::read_to_string(format!("/proc/{}/status", process.0.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix(set)).unwrap();
        u64::from_str_radix(line.trim(), 16).unwrap()
    };
    // As far as this machine gives them to anybody.
    let given = fs::read_to_string("/proc/self/status").unwrap();
    let given = given
        .lines()
        .find_map(|line| line.strip_prefix("CapBnd:"))
        .unwrap();
    let given = u64::from_str_radix(given.trim(), 16).unwrap();
    let asked = capabilities(node["dataplane"]);
    let bits = asked
        .iter()
        .map(|name| NUMBERS.iter().find(|(known, _)| known == name).unwrap().1);
    let asked = bits.fold(0_u64, |set, bit| set | 1 << bit);
    assert_eq!(held(&dataplane, "CapPrm:"), asked & given);
    assert_eq!(held(&dataplane, "CapBnd:"), asked & given);
    assert_eq!(held(&control, "CapBnd:"), 0);

    drop((control, dataplane));
    let all = objects("uninstall.yaml");
    runtime.run(containers(pod(&all))["detach"]);
    for folder in ["bpf/ringwall", "k/run/node"] {
        let left: Vec<_> = fs::read_dir(bed.folder().join(folder))
            .into_iter()
            .flatten()
            .map(|entry| entry.unwrap().path())
            .collect();
        assert!(left.is_empty(), "{left:?}");
    }
    let found = differences(&bed, &[("shop/other", "shop/web", HTTP, true)]).unwrap();
    assert!(found.is_empty(), "{found:#?}");
}
