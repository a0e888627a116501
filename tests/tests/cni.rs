//! Pods made by the real plugins of CNI, with ringwall's at the end of the chain, driven as a runtime drives them.
#![allow(clippy::unwrap_used, clippy::panic)] // a failed step is a failed test

use std::{
    collections::BTreeMap,
    fs,
    net::{IpAddr, SocketAddr, UdpSocket},
    path::{Path, PathBuf},
    process::{Command, Output},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use ringwall_testbed::{
    appliance::{Appliance, Options, PATIENCE, Signal, built_binary},
    manifests::{Pod, labels},
    netns::Netns,
    preflight::runs_here,
    probe::{Service, attempt},
    serve::Servers,
    topology::{Bed, EXTERNAL, EXTERNAL_V6, Role},
    world::World,
};
use serde_json::{Value, json};

const HTTP: Service = Service::Tcp(80);
/// Where Debian's package `containernetworking-plugins` puts them.
const PLUGINS: &str = "/usr/lib/cni";
const WITHIN: Duration = Duration::from_millis(400);

/// A container runtime: runs the plugins of the first configuration of its folder.
struct Runtime<'a> {
    bed: &'a Bed,
    conf: PathBuf,
    bin: PathBuf,
    /// How long pods are held back, instead of the plugin's own limit.
    hold_seconds: Option<u64>,
    /// The UIDs of pods that it says.
    uids: BTreeMap<String, String>,
}

impl<'a> Runtime<'a> {
    /// With one network of a plugin of the main kind, addresses by `host-local` and `portmap` behind.
    fn new(bed: &'a Bed, main: &Value) -> Self {
        let runtime = Self {
            bed,
            conf: bed.folder().join("net.d"),
            bin: bed.folder().join("cni-bin"),
            hold_seconds: None,
            uids: BTreeMap::new(),
        };
        fs::create_dir_all(&runtime.conf).unwrap();
        let mut main = main.clone();
        main["ipam"] = json!({
            "type": "host-local",
            "dataDir": bed.folder().join("ipam"),
            "ranges": [[{"subnet": "10.111.7.0/24"}], [{"subnet": "fd00:111:0:7::/64"}]],
            "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
        });
        let network = json!({
            "cniVersion": "1.0.0",
            "name": "pods",
            "plugins": [main, {"type": "portmap", "capabilities": {"portMappings": true}}],
        });
        fs::write(runtime.conf.join("10-pods.conflist"), network.to_string()).unwrap();
        runtime
    }

    fn install(&self, firewall: &Appliance) {
        let plugin = built_binary().unwrap().with_file_name("ringwall-cni");
        let [conf, bin, config, plugin] =
            [&self.conf, &self.bin, &firewall.config, &plugin].map(|path| path.display().to_string());
        let output = firewall
            .ringwall(&[
                "cni",
                "install",
                "--config",
                &config,
                "--conf-dir",
                &conf,
                "--bin-dir",
                &bin,
                "--plugin",
                &plugin,
            ])
            .unwrap();
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
    }

    /// The plugins of the first file, as `plugin configuration` with the network's name and version.
    fn chain(&self) -> Vec<Value> {
        let mut files: Vec<PathBuf> = fs::read_dir(&self.conf)
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .collect();
        files.sort();
        let network: Value = serde_json::from_str(&fs::read_to_string(&files[0]).unwrap()).unwrap();
        let plugins = network["plugins"].as_array().unwrap().clone();
        plugins
            .into_iter()
            .map(|mut plugin| {
                plugin["name"] = network["name"].clone();
                plugin["cniVersion"] = network["cniVersion"].clone();
                if let Some(seconds) = self.hold_seconds {
                    plugin["holdSeconds"] = json!(seconds);
                }
                plugin
            })
            .collect()
    }

    fn run(&self, command: &str, container: &str, namespace: &Netns, plugin: &Value) -> Output {
        let name = plugin["type"].as_str().unwrap();
        let own = self.bin.join(name);
        let program = if own.exists() {
            own
        } else {
            Path::new(PLUGINS).join(name)
        };
        let mut run = Command::new("sh");
        // The plugin's input is a file: the bed starts programs without one.
        let input = self.bed.folder().join(format!("{container}.{name}.json"));
        fs::write(&input, plugin.to_string()).unwrap();
        let uid = self.uids.get(container).map(|uid| format!(";K8S_POD_UID={uid}"));
        let uid = uid.unwrap_or_default();
        run.arg("-c")
            .arg(format!("exec {} < {}", program.display(), input.display()))
            .env("CNI_COMMAND", command)
            .env("CNI_CONTAINERID", container)
            .env("CNI_NETNS", namespace.path())
            .env("CNI_IFNAME", "eth0")
            .env(
                "CNI_ARGS",
                format!("IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME={container}{uid}"),
            )
            .env("CNI_PATH", format!("{}:{PLUGINS}", self.bin.display()));
        self.bed.gateway.output(run).unwrap()
    }

    /// The objects of a cluster whose pods have the UIDs that it says.
    fn objects(&self, world: &World) -> Vec<Value> {
        let mut objects = world.objects();
        for pod in objects.iter_mut().filter(|object| object["kind"] == "Pod") {
            let uid = self.uids.get(pod["metadata"]["name"].as_str().unwrap());
            pod["metadata"]["uid"] = json!(uid);
        }
        objects
    }

    /// Makes a pod's interface; the answer is the result of the chain, or the error of the plugin that failed.
    fn add(&self, container: &str, namespace: &Netns) -> Result<Value, String> {
        let mut previous = Value::Null;
        for mut plugin in self.chain() {
            if !previous.is_null() {
                plugin["prevResult"] = previous.clone();
            }
            let output = self.run("ADD", container, namespace, &plugin);
            let printed = String::from_utf8_lossy(&output.stdout).into_owned();
            if !output.status.success() {
                return Err(format!("{printed}{}", String::from_utf8_lossy(&output.stderr)));
            }
            previous = serde_json::from_str(&printed).unwrap();
        }
        Ok(previous)
    }

    fn delete(&self, container: &str, namespace: &Netns) {
        for plugin in self.chain().iter().rev() {
            let output = self.run("DEL", container, namespace, plugin);
            assert!(
                output.status.success(),
                "{}",
                String::from_utf8_lossy(&output.stdout)
            );
        }
    }

    /// As a kubelet does, which tries until it works.
    fn pod_at_last(&self, name: &str) -> RunningPod {
        self.pod_at_last_in(name, &Arc::new(Netns::new(name).unwrap()))
    }

    fn pod_at_last_in(&self, name: &str, namespace: &Arc<Netns>) -> RunningPod {
        let until = Instant::now() + PATIENCE;
        loop {
            match self.pod_in(name, namespace.clone()) {
                Ok(pod) => return pod,
                Err(error) => assert!(Instant::now() < until, "{name} never starts: {error}"),
            }
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    /// Asks the last plugin whether a pod is as it was made.
    fn check(&self, pod: &RunningPod) -> bool {
        let mut plugin = self.chain().pop().unwrap();
        plugin["prevResult"] = pod.result.clone();
        let output = self.run("CHECK", &pod.name, &pod.namespace, &plugin);
        output.status.success()
    }

    /// The files of the folder of configurations, with what is in them.
    fn files(&self) -> BTreeMap<PathBuf, Vec<u8>> {
        let files = fs::read_dir(&self.conf)
            .unwrap()
            .map(|entry| entry.unwrap().path());
        files
            .map(|file| (file.clone(), fs::read(file).unwrap()))
            .collect()
    }

    /// Makes a pod that runs, with a server. One that cannot start is deleted, as runtimes do.
    fn pod(&self, name: &str) -> Result<RunningPod, String> {
        self.pod_in(name, Arc::new(Netns::new(name).unwrap()))
    }

    /// The same, in a namespace that is there.
    fn pod_in(&self, name: &str, namespace: Arc<Netns>) -> Result<RunningPod, String> {
        let result = match self.add(name, &namespace) {
            Ok(result) => result,
            Err(error) => {
                self.delete(name, &namespace);
                return Err(error);
            }
        };
        let addresses: Vec<IpAddr> = result["ips"]
            .as_array()
            .unwrap()
            .iter()
            .map(|ip| {
                ip["address"]
                    .as_str()
                    .unwrap()
                    .split('/')
                    .next()
                    .unwrap()
                    .parse()
                    .unwrap()
            })
            .collect();
        let servers = Servers::start(&namespace, name, &[80], &[53]).unwrap();
        Ok(RunningPod {
            name: name.to_owned(),
            namespace,
            addresses,
            result,
            _servers: servers,
        })
    }
}

struct RunningPod {
    name: String,
    namespace: Arc<Netns>,
    addresses: Vec<IpAddr>,
    /// Of the chain.
    result: Value,
    _servers: Servers,
}

/// As it is scheduled, before a kubelet has said its addresses.
fn scheduled(name: &str) -> Pod {
    Pod {
        namespace: "shop".to_owned(),
        name: name.to_owned(),
        labels: labels([("app", name)]),
        addresses: Vec::new(),
        node: "node-a".to_owned(),
        ports: Vec::new(),
    }
}

impl RunningPod {
    fn object(&self) -> Pod {
        Pod {
            addresses: self.addresses.clone(),
            ..scheduled(&self.name)
        }
    }

    /// Whether it reaches another by every address.
    fn reaches(&self, other: &Self) -> bool {
        let answers: Vec<bool> = other
            .addresses
            .iter()
            .map(|address| {
                self.namespace
                    .run(|| attempt(None, *address, HTTP, WITHIN))
                    .unwrap()
                    .answered()
            })
            .collect();
        assert!(
            answers.iter().all(|answer| *answer == answers[0]),
            "one family passes and the other does not: {answers:?}"
        );
        answers[0]
    }
}

fn networks() -> [Value; 2] {
    [
        json!({"type": "bridge", "bridge": "cni0", "isGateway": true, "hairpinMode": true}),
        json!({"type": "ptp"}),
    ]
}

#[test]
fn pods_of_real_plugins_start_guarded_and_not_at_all_without_a_guard() {
    let Some(_alone) = runs_here("CNI plugins") else {
        return;
    };
    for main in networks() {
        let bed = Bed::new(Role::Node, &[], 1).unwrap();
        for family in ["ip", "ip6"] {
            bed.gateway
                .sysctl(&format!("net/bridge/bridge-nf-call-{family}tables"), "1")
                .unwrap();
        }
        let mut world = World::of(&bed);
        world.namespaces.insert("shop".to_owned(), labels([]));
        let options = Options {
            more: "podStart: attach\n".to_owned(),
            source: Some(format!(
                "{{manifests: {}, allowNoPods: true}}",
                bed.manifests().display()
            )),
            ..Options::default()
        };
        let mut firewall =
            Appliance::start(&bed, &built_binary().unwrap(), &options, &world.objects()).unwrap();
        let runtime = Runtime::new(&bed, &main);
        let files = runtime.files();
        runtime.install(&firewall);
        let web = runtime.pod("web").unwrap();
        let client = runtime.pod("client").unwrap();
        let status = firewall.status().unwrap();
        let guarded = status["dataplane"]["node"]["interfaces"].as_array().unwrap();
        for pod in [&web, &client] {
            for address in &pod.addresses {
                assert!(
                    guarded.iter().any(|interface| interface["addresses"]
                        .as_array()
                        .is_some_and(|addresses| addresses.contains(&json!(address.to_string())))),
                    "{address} of {} is not in {guarded:?}",
                    pod.name
                );
            }
        }
        // No policy, and an address of the pod network that no Pod has: unknown, until the API server says whose it is.
        assert!(!client.reaches(&web), "{main}");
        for pod in [&web, &client] {
            world.pods.insert(format!("shop/{}", pod.name), pod.object());
        }
        world.apply(&firewall).unwrap();
        assert!(client.reaches(&web), "{main}");
        world.policy(
            "shop",
            "deny",
            json!({"podSelector": {"matchLabels": {"app": "web"}}, "ingress": []}),
        );
        world.apply(&firewall).unwrap();
        assert!(!client.reaches(&web), "{main}");

        // The address of a pod that ended is another's at once, and not the old one's.
        runtime.delete("client", &client.namespace);
        world.pods.remove("shop/client");
        world.policies.clear();
        world.apply(&firewall).unwrap();

        let away = firewall.stop().unwrap();
        assert!(away.success());
        let error = runtime.pod("late").map(|pod| pod.name).unwrap_err();
        assert!(error.contains("does not answer"), "{error}");
        let failed: Value = serde_json::from_str(&error).unwrap();
        assert_eq!(failed["code"], 11, "try again later: {failed}");

        // Back again, as after an upgrade: what could not start starts, what ran goes on.
        let mut firewall = Appliance::launch_with(&bed, &built_binary().unwrap(), &firewall.config).unwrap();
        let late = runtime.pod_at_last("late");
        assert!(runtime.check(&late) && runtime.check(&web));
        world.pods.insert("shop/late".to_owned(), late.object());
        firewall
            .wait_until("it is ready", |status| status["control"]["ready"] == true)
            .unwrap();
        world.apply(&firewall).unwrap();
        assert!(late.reaches(&web), "{main}");

        uninstall(&bed, &runtime, &mut firewall);
        assert_eq!(runtime.files(), files, "{main}");
        assert!(late.reaches(&web) && web.reaches(&late), "{main}");
        let after = runtime.pod("after").unwrap();
        assert!(after.reaches(&web), "{main}");
    }
}

/// In the order of the manual; nothing is left.
fn uninstall(bed: &Bed, runtime: &Runtime<'_>, firewall: &mut Appliance) {
    let [conf, bin, config] =
        [&runtime.conf, &runtime.bin, &firewall.config].map(|path| path.display().to_string());
    let run = |arguments: &[&str], firewall: &Appliance| {
        let output = firewall.ringwall(arguments).unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{arguments:?}: {said}");
    };
    run(
        &["cni", "remove", "--conf-dir", &conf, "--bin-dir", &bin],
        firewall,
    );
    assert!(firewall.stop().unwrap().success());
    run(&["detach", "--config", &config], firewall);
    assert_eq!(fs::read_dir(&runtime.bin).unwrap().count(), 0, "plugins");
    for folder in ["bpf/ringwall", "run"] {
        let folder = bed.folder().join(folder);
        let left: Vec<_> = fs::read_dir(&folder)
            .into_iter()
            .flatten()
            .map(|entry| entry.unwrap().path())
            .collect();
        assert!(left.is_empty(), "{left:?}");
    }
    for (program, arguments) in [("nft", ["list", "ruleset"]), ("ip", ["-o", "link"])] {
        let mut command = Command::new(program);
        command.args(arguments);
        let output = bed.gateway.output(command).unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{program}");
        assert!(!said.contains("ringwall") && !said.contains("rw-ask"), "{said}");
    }
}

/// A node that holds pods until they are known, with three that are scheduled there: `web` takes connections from `client` alone.
fn held_pods() -> (Bed, World, Options) {
    let bed = Bed::new(Role::Node, &[], 1).unwrap();
    for family in ["ip", "ip6"] {
        bed.gateway
            .sysctl(&format!("net/bridge/bridge-nf-call-{family}tables"), "1")
            .unwrap();
    }
    let mut world = World::of(&bed);
    world.namespaces.insert("shop".to_owned(), labels([]));
    for name in ["web", "client", "other"] {
        world.pods.insert(format!("shop/{name}"), scheduled(name));
    }
    world.policy(
        "shop",
        "web",
        json!({"podSelector": {"matchLabels": {"app": "web"}}, "ingress": [
            {"from": [{"podSelector": {"matchLabels": {"app": "client"}}}]}]}),
    );
    let options = Options {
        more: "podStart: hold\n".to_owned(),
        source: Some(format!(
            "{{manifests: {}, allowNoPods: true}}",
            bed.manifests().display()
        )),
        ..Options::default()
    };
    (bed, world, options)
}

#[test]
fn held_pods_are_known_to_policies_from_their_first_packet() {
    let Some(_alone) = runs_here("held pods") else {
        return;
    };
    let (bed, mut world, options) = held_pods();
    let firewall = Appliance::start(&bed, &built_binary().unwrap(), &options, &world.objects()).unwrap();
    let mut runtime = Runtime::new(&bed, &networks()[0]);
    runtime.install(&firewall);
    // The source has none of their addresses, and does not learn them in between.
    let [web, client, other] = ["web", "client", "other"].map(|name| runtime.pod(name).unwrap());
    assert!(client.reaches(&web), "{}", firewall.log());
    assert!(!other.reaches(&web));
    assert!(web.reaches(&other));

    // A pod that the source does not have.
    runtime.hold_seconds = Some(1);
    let error = runtime.pod("late").map(|pod| pod.name).unwrap_err();
    let failed: Value = serde_json::from_str(&error).unwrap();
    assert_eq!(failed["code"], 11, "{failed}");
    assert!(
        failed["details"].as_str().unwrap().contains("no such pod"),
        "{failed}"
    );

    // The kubelet has reported the others. One that comes while the plugin waits, and control is killed meanwhile.
    for pod in [&web, &client, &other] {
        world.pods.insert(format!("shop/{}", pod.name), pod.object());
    }
    world.apply(&firewall).unwrap();
    runtime.hold_seconds = Some(60);
    let late = std::thread::scope(|scope| {
        let starting = scope.spawn(|| runtime.pod("late"));
        firewall.signal("control", Signal::SIGKILL).unwrap();
        let mut pod = scheduled("late");
        pod.labels = labels([("app", "client")]);
        world.pods.insert("shop/late".to_owned(), pod);
        firewall.write(&world.objects()).unwrap();
        starting.join().unwrap().unwrap()
    });
    assert!(late.reaches(&web), "{}", firewall.log());
    assert!(runtime.check(&late));
}

/// Kills processes of a firewall and waits until others in their place have a snapshot in force.
fn restart(firewall: &Appliance, processes: &[&str]) {
    let killed: Vec<(&str, i64)> = processes
        .iter()
        .map(|process| {
            let pid = firewall.signal(process, Signal::SIGKILL).unwrap();
            (*process, pid.as_raw().into())
        })
        .collect();
    firewall
        .wait_until("they are back", |status| {
            let is_another =
                |(process, old): &(&str, i64)| status[process]["pid"].as_i64().is_some_and(|pid| pid != *old);
            status["control"]["ready"] == true && killed.iter().all(is_another)
        })
        .unwrap();
}

#[test]
fn held_pods_stay_known_to_policies_when_processes_are_restarted() {
    let Some(_alone) = runs_here("held pods and restarts") else {
        return;
    };
    let (bed, mut world, options) = held_pods();
    let mut runtime = Runtime::new(&bed, &networks()[0]);
    for name in ["web", "client", "other"] {
        runtime.uids.insert(name.to_owned(), format!("{name}-1"));
    }
    let mut firewall =
        Appliance::start(&bed, &built_binary().unwrap(), &options, &runtime.objects(&world)).unwrap();
    runtime.install(&firewall);
    // No kubelet ever says their addresses.
    let [web, client, other] = ["web", "client", "other"].map(|name| runtime.pod(name).unwrap());
    for processes in [&["control"][..], &["dataplane"], &["dataplane", "control"]] {
        restart(&firewall, processes);
        assert!(client.reaches(&web), "{processes:?}: {}", firewall.log());
        assert!(!other.reaches(&web), "{processes:?}");
    }
    // Not even while control is away.
    let back = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let attempts = scope.spawn(|| {
            let mut attempts = 0;
            while !back.load(Ordering::Relaxed) {
                assert!(client.reaches(&web), "attempt {attempts}: {}", firewall.log());
                attempts += 1;
            }
            attempts
        });
        restart(&firewall, &["control"]);
        back.store(true, Ordering::Relaxed);
        assert!(attempts.join().unwrap() > 0);
    });

    // A pod that ends while control cannot hear of it. Its object stays, as one whose sandbox is made anew, and another pod has
    // its addresses next.
    let control = firewall.signal("control", Signal::SIGSTOP).unwrap();
    runtime.delete("client", &client.namespace);
    nix::sys::signal::kill(control, Signal::SIGKILL).unwrap();
    for range in 0..2 {
        let _ = fs::remove_file(bed.folder().join(format!("ipam/pods/last_reserved_ip.{range}")));
    }
    world.pods.insert("shop/heir".to_owned(), scheduled("heir"));
    firewall.write(&runtime.objects(&world)).unwrap();
    let heir = runtime.pod_at_last("heir");
    assert_eq!(heir.addresses, client.addresses);
    assert!(!heir.reaches(&web), "{}", firewall.log());
    assert!(web.reaches(&heir));

    // Another pod of the same name, which is not here: the addresses are not its own.
    runtime.uids.insert("web".to_owned(), "web-2".to_owned());
    firewall.write(&runtime.objects(&world)).unwrap();
    restart(&firewall, &["control"]);
    assert!(other.reaches(&heir) && !web.reaches(&heir), "{}", firewall.log());
    // It comes here, as a runtime has it that ends the one before.
    runtime.delete("web", &web.namespace);
    let web = runtime.pod_at_last("web");
    assert!(web.reaches(&heir) && !heir.reaches(&web), "{}", firewall.log());

    // What nobody can read says nothing: pods are unknown until the API server has their addresses.
    assert!(firewall.stop().unwrap().success());
    fs::write(bed.folder().join("run/containers.json"), "{\"web\":").unwrap();
    let firewall = Appliance::launch_with(&bed, &built_binary().unwrap(), &firewall.config).unwrap();
    let status = firewall
        .wait_until("it is ready", |status| status["control"]["ready"] == true)
        .unwrap();
    let alarms = status["dataplane"]["alarms"].to_string();
    assert!(
        alarms.contains("containers.json cannot be read") && alarms.contains("unknown endpoint"),
        "{alarms}"
    );
    assert!(!web.reaches(&heir), "{}", firewall.log());
    for pod in [&web, &heir] {
        world.pods.insert(format!("shop/{}", pod.name), pod.object());
    }
    firewall.apply(&runtime.objects(&world)).unwrap();
    assert!(web.reaches(&heir), "{}", firewall.log());
    // And those that start from now on are kept again.
    world.pods.insert("shop/client".to_owned(), scheduled("client"));
    firewall.apply(&runtime.objects(&world)).unwrap();
    let client = runtime.pod_at_last("client");
    restart(&firewall, &["dataplane", "control"]);
    assert!(client.reaches(&web), "{}", firewall.log());
}

/// Which of some addresses connection tracking knows on the node.
fn tracked(bed: &Bed, addresses: &[IpAddr]) -> Vec<IpAddr> {
    let table = bed.gateway.read("/proc/thread-self/net/nf_conntrack").unwrap();
    let known: Vec<IpAddr> = table
        .split_whitespace()
        .filter_map(|word| {
            word.strip_prefix("src=")
                .or(word.strip_prefix("dst="))?
                .parse()
                .ok()
        })
        .collect();
    let mut found: Vec<IpAddr> = addresses.to_vec();
    found.retain(|address| known.contains(address));
    found
}

/// A pod's socket at a port that the next pod with the address may have, too.
fn socket_at(pod: &RunningPod, port: u16) -> UdpSocket {
    let socket = pod
        .namespace
        .run(|| UdpSocket::bind(("::", port)))
        .unwrap()
        .unwrap();
    socket.set_read_timeout(Some(WITHIN)).unwrap();
    socket
}

/// Whether what one socket sends to an address reaches another. Names say which datagram it was.
fn arrives(from: &UdpSocket, to: SocketAddr, at: &UdpSocket, text: &str) -> bool {
    from.send_to(text.as_bytes(), to).unwrap();
    let mut bytes = [0; 100];
    while let Ok(length) = at.recv(&mut bytes) {
        if &bytes[..length] == text.as_bytes() {
            return true;
        }
    }
    false
}

#[test]
fn connections_of_a_pod_that_has_ended_are_not_the_next_ones() {
    let Some(_alone) = runs_here("CNI plugins and connection tracking") else {
        return;
    };
    for main in networks() {
        let bed = Bed::new(Role::Node, &[], 1).unwrap();
        for family in ["ip", "ip6"] {
            bed.gateway
                .sysctl(&format!("net/bridge/bridge-nf-call-{family}tables"), "1")
                .unwrap();
        }
        let track = "chain in { type filter hook prerouting priority 0; ct state new counter; };";
        bed.translate(&format!("table inet track {{ {track} }};"))
            .unwrap();
        let mut world = World::of(&bed);
        world.namespaces.insert("shop".to_owned(), labels([]));
        world.policy("shop", "no-ingress", json!({"podSelector": {}, "ingress": []}));
        let options = Options {
            more: "podStart: attach\n".to_owned(),
            source: Some(format!(
                "{{manifests: {}, allowNoPods: true}}",
                bed.manifests().display()
            )),
            ..Options::default()
        };
        let mut firewall =
            Appliance::start(&bed, &built_binary().unwrap(), &options, &world.objects()).unwrap();
        let runtime = Runtime::new(&bed, &main);
        runtime.install(&firewall);
        let outside = bed
            .external
            .ns
            .run(|| UdpSocket::bind("[::]:5555"))
            .unwrap()
            .unwrap();
        outside.set_read_timeout(Some(WITHIN)).unwrap();
        // host-local begins at its lowest free address again.
        let start = |name: &str| {
            for range in 0..2 {
                let _ = fs::remove_file(bed.folder().join(format!("ipam/pods/last_reserved_ip.{range}")));
            }
            runtime.pod_at_last(name)
        };
        let mapped = |address: &IpAddr, socket: &UdpSocket| {
            let port = socket.local_addr().unwrap().port();
            match address {
                IpAddr::V4(v4) => SocketAddr::from((v4.to_ipv6_mapped(), port)),
                IpAddr::V6(v6) => SocketAddr::from((*v6, port)),
            }
        };
        // Both ways by each family: the answers pass because the pod began.
        let talks = |pod: &RunningPod, socket: &UdpSocket| {
            for (address, (family, sink)) in pod.addresses.iter().zip(sinks()) {
                let out = arrives(socket, sink, &outside, &format!("{} by {family}", pod.name));
                let back = arrives(
                    &outside,
                    mapped(address, socket),
                    socket,
                    &format!("answer by {family}"),
                );
                assert!(out && back, "{main}: {} {family}: {out} {back}", pod.name);
            }
        };
        let known = |world: &mut World, pod: &RunningPod, firewall: &Appliance| {
            world.pods.insert(format!("shop/{}", pod.name), pod.object());
            world.apply(firewall).unwrap();
        };

        let bystander = start("bystander");
        known(&mut world, &bystander, &firewall);
        let own = socket_at(&bystander, 6000);
        talks(&bystander, &own);
        let first = start("first");
        known(&mut world, &first, &firewall);
        talks(&first, &socket_at(&first, 6000));
        assert_eq!(tracked(&bed, &first.addresses), first.addresses, "{main}");
        runtime.delete("first", &first.namespace);
        assert_eq!(
            tracked(&bed, &first.addresses),
            [] as [IpAddr; 0],
            "{main}: at its end"
        );
        assert_eq!(tracked(&bed, &bystander.addresses), bystander.addresses, "{main}");
        world.pods.remove("shop/first");

        // One that ends while ringwall is away, and whose addresses no process has seen since.
        let second = start("second");
        assert_eq!(second.addresses, first.addresses);
        known(&mut world, &second, &firewall);
        talks(&second, &socket_at(&second, 6000));
        assert!(firewall.stop().unwrap().success());
        runtime.delete("second", &second.namespace);
        world.pods.remove("shop/second");
        let config = firewall.config.display().to_string();
        let output = firewall.ringwall(&["detach", "--config", &config]).unwrap();
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        firewall.write(&world.objects()).unwrap();
        let firewall = Appliance::launch_with(&bed, &built_binary().unwrap(), &firewall.config).unwrap();
        firewall
            .wait_until("it is ready", |status| status["control"]["ready"] == true)
            .unwrap();
        assert_eq!(
            tracked(&bed, &second.addresses),
            second.addresses,
            "{main}: nobody knew"
        );
        let third = start("third");
        assert_eq!(third.addresses, second.addresses);
        assert_eq!(
            tracked(&bed, &third.addresses),
            [] as [IpAddr; 0],
            "{main}: before it starts"
        );
        known(&mut world, &third, &firewall);
        let socket = socket_at(&third, 6000);
        for (address, (family, _)) in third.addresses.iter().zip(sinks()) {
            let late = arrives(&outside, mapped(address, &socket), &socket, "to the pod before");
            assert!(!late, "{main}: {family}");
        }
        // From another port: connection tracking takes what it sends from this one for answers to what was just denied.
        talks(&third, &socket_at(&third, 6001));
        // What went on all the time.
        talks(&bystander, &own);
    }
}

/// Where pods send to: the external client, by family.
fn sinks() -> [(&'static str, SocketAddr); 2] {
    [
        ("IPv4", (EXTERNAL.to_ipv6_mapped(), 5555).into()),
        ("IPv6", (EXTERNAL_V6, 5555).into()),
    ]
}

/// Sends from a pod's namespace, from before there is an interface until it is told to stop. Answers how many datagrams of each
/// family the kernel took.
fn send_until(name: &str, namespace: &Netns, stop: &AtomicBool) -> [u32; 2] {
    let socket = namespace.run(|| UdpSocket::bind("[::]:0")).unwrap().unwrap();
    let mut sent = [0; 2];
    while !stop.load(Ordering::Relaxed) {
        for (count, (family, to)) in sent.iter_mut().zip(sinks()) {
            let datagram = format!("early {family} {name}");
            *count += u32::from(socket.send_to(datagram.as_bytes(), to).is_ok());
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    sent
}

/// How long the daemon took to guard each pod, shortest first, by its log.
fn attach_times(log: &str) -> Vec<Duration> {
    let micros = log
        .lines()
        .filter(|line| line.contains("request=Add(") && line.contains("reply=Done"))
        .map(|line| {
            let (_, rest) = line.split_once("micros=").unwrap();
            rest.split(|c: char| !c.is_ascii_digit())
                .next()
                .unwrap()
                .parse()
                .unwrap()
        });
    let mut times: Vec<Duration> = micros.map(Duration::from_micros).collect();
    times.sort_unstable();
    times
}

#[test]
fn pods_that_start_at_once_are_all_guarded_before_their_first_packet() {
    let Some(_alone) = runs_here("many pods by CNI plugins") else {
        return;
    };
    // PODS=110, as many as a node holds, take half a minute.
    let pods = std::env::var("PODS").map_or(40, |text| text.parse().unwrap());
    let bed = Bed::new(Role::Node, &[], 1).unwrap();
    let mut world = World::of(&bed);
    world.namespaces.insert("shop".to_owned(), labels([]));
    let options = Options {
        more: "podStart: attach\n".to_owned(),
        source: Some(format!(
            "{{manifests: {}, allowNoPods: true}}",
            bed.manifests().display()
        )),
        log: Some("warn,ringwall=info,ringwall_appliance::node::cni=debug"),
        ..Options::default()
    };
    let firewall = Appliance::start(&bed, &built_binary().unwrap(), &options, &world.objects()).unwrap();
    let runtime = Runtime::new(&bed, &networks()[1]);
    runtime.install(&firewall);
    let sink = bed
        .external
        .ns
        .run(|| UdpSocket::bind("[::]:5555"))
        .unwrap()
        .unwrap();
    let arrived = || {
        let mut bytes = [0; 100];
        let length = sink.recv(&mut bytes).ok()?;
        Some(String::from_utf8(bytes[..length].to_vec()).unwrap())
    };
    let namespaces: Vec<(String, Arc<Netns>)> = (0..pods)
        .map(|number| format!("pod-{number}"))
        .map(|name| (name.clone(), Arc::new(Netns::new(&name).unwrap())))
        .collect();

    // Each sends while its interface is made. The pods are not known yet: what is judged drops.
    let stop = AtomicBool::new(false);
    let (started, sent) = std::thread::scope(|scope| {
        let senders: Vec<_> = namespaces
            .iter()
            .map(|(name, namespace)| scope.spawn(|| send_until(name, namespace, &stop)))
            .collect();
        let starting: Vec<_> = namespaces
            .iter()
            .map(|(name, namespace)| scope.spawn(|| runtime.pod_at_last_in(name, namespace)))
            .collect();
        let started: Vec<_> = starting.into_iter().map(|starting| starting.join()).collect();
        std::thread::sleep(Duration::from_millis(50)); // a few datagrams more of the last ones
        stop.store(true, Ordering::Relaxed);
        let sent: Vec<[u32; 2]> = senders.into_iter().map(|sender| sender.join().unwrap()).collect();
        let started: Vec<RunningPod> = started.into_iter().map(|pod| pod.unwrap()).collect();
        (started, sent)
    });
    assert!(
        sent.iter().flatten().all(|count| *count > 0),
        "some sent nothing: {sent:?}"
    );
    let status = firewall.status().unwrap();
    let interfaces = status["dataplane"]["node"]["interfaces"].as_array().unwrap();
    let mut guarded: Vec<&str> = interfaces
        .iter()
        .filter(|interface| interface["kind"] == "pod")
        .flat_map(|interface| interface["addresses"].as_array().unwrap())
        .map(|address| address.as_str().unwrap())
        .collect();
    guarded.sort_unstable();
    let mut wanted: Vec<String> = started
        .iter()
        .flat_map(|pod| &pod.addresses)
        .map(IpAddr::to_string)
        .collect();
    wanted.sort_unstable();
    assert_eq!(guarded, wanted);

    sink.set_nonblocking(true).unwrap();
    assert_eq!(
        arrived(),
        None,
        "a pod's datagram arrived before the pod was known"
    );
    sink.set_nonblocking(false).unwrap();

    // Known, and without a policy: each family of each arrives.
    for pod in &started {
        world.pods.insert(format!("shop/{}", pod.name), pod.object());
    }
    world.apply(&firewall).unwrap();
    let mut missing: BTreeMap<String, (UdpSocket, SocketAddr)> = BTreeMap::new();
    for pod in &started {
        for (family, to) in sinks() {
            let socket = pod.namespace.run(|| UdpSocket::bind("[::]:0")).unwrap().unwrap();
            missing.insert(format!("known {family} {}", pod.name), (socket, to));
        }
    }
    // Of so many first datagrams at once some are lost, as while a neighbour is looked for: whoever is missing sends again.
    sink.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
    let until = Instant::now() + PATIENCE;
    while !missing.is_empty() {
        for (datagram, (socket, to)) in &missing {
            socket.send_to(datagram.as_bytes(), to).unwrap();
        }
        while let Some(datagram) = arrived() {
            // What waited for a neighbour since before is judged as all else.
            let is_known = missing.remove(&datagram).is_some() || datagram.starts_with("known");
            assert!(is_known || datagram.starts_with("early"), "{datagram}");
        }
        assert!(
            Instant::now() < until,
            "{:?} did not arrive",
            missing.keys().collect::<Vec<_>>()
        );
    }

    let times = attach_times(&firewall.log());
    assert_eq!(times.len(), pods);
    println!(
        "{pods} pods at once: guarded within {:?} each (median), at most {:?}",
        times[pods / 2],
        times[pods - 1]
    );
}
