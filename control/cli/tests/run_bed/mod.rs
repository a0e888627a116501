//! A gateway with two pods and an external host, each a network namespace, for the tests of the running appliance.

use std::{
    fs::File,
    io::{self, Read, Write},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use tempfile::TempDir;

/// Addresses of the pods and of the host beyond the uplink.
pub const POD_A: &str = "10.1.1.2";
pub const POD_B: &str = "10.1.1.3";
pub const POD_A_V6: &str = "fd00:1::2";
pub const POD_B_V6: &str = "fd00:1::3";
pub const OUTSIDE: &str = "192.0.2.9";
pub const GATEWAY: &str = "192.0.2.1";

static NUMBER: AtomicU32 = AtomicU32::new(0);

/// Whether the test can run here; without root it is skipped, unless `REQUIRE_ROOT=1`.
pub fn may_run(test: &str) -> bool {
    if rustix::process::geteuid().is_root() {
        return true;
    }
    assert!(
        std::env::var("REQUIRE_ROOT").as_deref() != Ok("1"),
        "REQUIRE_ROOT=1, but not root"
    );
    eprintln!("SKIPPED {test}: needs root");
    false
}

/// Runs a command; its failure is the test's.
pub fn sh(command: &str) {
    let output = Command::new("sh").args(["-ec", command]).output().unwrap();
    assert!(
        output.status.success(),
        "{command}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// A network namespace with a name, gone with the value.
pub struct Namespace(pub String);

impl Namespace {
    pub fn new(what: &str) -> Self {
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("run-{}-{number}-{what}", std::process::id());
        sh(&format!("ip netns add {name}; ip -n {name} link set lo up"));
        Self(name)
    }

    pub fn path(&self) -> PathBuf {
        Path::new("/run/netns").join(&self.0)
    }

    /// Runs `body` on a thread inside. Only the network is the namespace's.
    pub fn inside<T: Send + 'static>(&self, body: impl FnOnce() -> T + Send + 'static) -> T {
        let path = self.path();
        std::thread::spawn(move || {
            let file = File::open(path).unwrap();
            move_into_link_name_space(std::os::fd::AsFd::as_fd(&file), Some(LinkNameSpaceType::Network))
                .unwrap();
            body()
        })
        .join()
        .unwrap()
    }

    /// A command that will run inside.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--net={}", self.path().display()))
            .arg(program);
        command
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.0]).status();
    }
}

/// The whole.
pub struct Bed {
    pub name: String,
    pub gateway: Namespace,
    pub a: Namespace,
    pub b: Namespace,
    pub outside: Namespace,
    pub dir: TempDir,
    running: Option<Child>,
}

impl Bed {
    pub fn new() -> Self {
        let bed = Self {
            name: format!(
                "rt{}-{}",
                std::process::id(),
                NUMBER.fetch_add(1, Ordering::Relaxed)
            ),
            gateway: Namespace::new("gw"),
            a: Namespace::new("a"),
            b: Namespace::new("b"),
            outside: Namespace::new("x"),
            dir: tempfile::tempdir().unwrap(),
            running: None,
        };
        bed.add_pod(&bed.a, "pod-a", POD_A, POD_A_V6);
        bed.add_pod(&bed.b, "pod-b", POD_B, POD_B_V6);
        let (gw, x) = (&bed.gateway.0, &bed.outside.0);
        sh(&format!(
            "ip -n {gw} link add up0 type veth peer name eth0 netns {x}
             ip -n {gw} link set up0 up; ip -n {x} link set eth0 up
             ip -n {gw} addr add {GATEWAY}/24 dev up0; ip -n {x} addr add {OUTSIDE}/24 dev eth0
             ip -n {x} route add default via {GATEWAY}"
        ));
        std::fs::create_dir(bed.dir.path().join("manifests")).unwrap();
        bed.manifest("base", &base());
        bed.configure(&bed.config());
        bed
    }

    /// The pods on one network, with the gateway as a wire between them: `w0` towards a, `w1` towards b.
    pub fn wire(fail_mode: &str) -> Self {
        let bed = Self {
            name: format!(
                "rt{}-{}",
                std::process::id(),
                NUMBER.fetch_add(1, Ordering::Relaxed)
            ),
            gateway: Namespace::new("gw"),
            a: Namespace::new("a"),
            b: Namespace::new("b"),
            outside: Namespace::new("x"),
            dir: tempfile::tempdir().unwrap(),
            running: None,
        };
        let gw = &bed.gateway.0;
        for (end, pod, v4, v6) in [
            ("w0", &bed.a.0, POD_A, POD_A_V6),
            ("w1", &bed.b.0, POD_B, POD_B_V6),
        ] {
            sh(&format!(
                "ip -n {gw} link add {end} type veth peer name eth0 netns {pod}
                 ip -n {gw} link set {end} up; ip -n {pod} link set eth0 up
                 ip -n {pod} addr add {v4}/24 dev eth0; ip -n {pod} addr add {v6}/64 dev eth0 nodad"
            ));
        }
        std::fs::create_dir(bed.dir.path().join("manifests")).unwrap();
        bed.manifest("base", &base());
        let usual = bed.config();
        let (head, _) = usual.split_once("interfaces:").unwrap();
        let (_, tail) = usual.split_once("failMode: closed\n").unwrap();
        bed.configure(&format!(
            "{}antiSpoofing: off\ninterfaces:\n  - {{name: w0, side: any}}\n  - {{name: w1, side: any}}\nwires:\n  - {{name: w, interfaces: [w0, w1], failMode: {fail_mode}}}\n{tail}",
            head.replace("datapath: afxdp\n", "")
        ));
        bed
    }

    /// A pod as a CNI with routes makes it.
    pub fn add_pod(&self, pod: &Namespace, port: &str, v4: &str, v6: &str) {
        let (gw, ns) = (&self.gateway.0, &pod.0);
        sh(&format!(
            "ip -n {gw} link add {port} numrxqueues 2 numtxqueues 2 type veth peer name eth0 netns {ns}
             ip -n {gw} link set {port} up; ip -n {ns} link set eth0 up
             ip -n {ns} addr add {v4}/32 dev eth0
             ip -n {ns} route add 169.254.1.1 dev eth0 scope link
             ip -n {ns} route add default via 169.254.1.1
             ip -n {ns} addr add {v6}/128 dev eth0 nodad
             ip -n {ns} route add default via fe80::1 dev eth0
             ip -n {gw} route add {v4}/32 dev {port}
             ip -n {gw} route add {v6}/128 dev {port}"
        ));
    }

    /// The usual configuration.
    pub fn config(&self) -> String {
        let dir = self.dir.path().display();
        let name = &self.name;
        format!(
            "apiVersion: ringwall.io/v1alpha1
kind: Gateway
datapath: afxdp
name: {name}
mode: enforce
source: {{manifests: {dir}/manifests}}
cluster: {{podCIDRs: [10.1.0.0/16, \"fd00:1::/64\"], nodeCIDRs: [192.0.2.1/32]}}
workers: {{cpus: \"0\", idlePolicy: adaptive}}
interfaces:
  - {{match: \"pod-*\", kind: pod}}
  - {{name: up0, kind: uplink, side: outside}}
  - {{name: rw-host, kind: host}}
failMode: closed
conntrack: {{maxEntries: 16384}}
runtimeDir: {dir}/run
stateDir: {dir}/state
telemetry: {{metricsListen: \"127.0.0.1:9469\"}}
"
        )
    }

    pub fn config_file(&self) -> PathBuf {
        self.dir.path().join("ringwall.yaml")
    }

    pub fn configure(&self, text: &str) {
        std::fs::write(self.config_file(), text).unwrap();
    }

    pub fn manifest(&self, name: &str, text: &str) {
        let folder = self.dir.path().join("manifests");
        let next = self.dir.path().join("next");
        std::fs::write(&next, text).unwrap();
        std::fs::rename(next, folder.join(format!("{name}.yaml"))).unwrap();
    }

    pub fn remove_manifest(&self, name: &str) {
        std::fs::remove_file(self.dir.path().join("manifests").join(format!("{name}.yaml"))).unwrap();
    }

    /// A ringwall command inside the gateway.
    pub fn ringwall(&self, arguments: &[&str]) -> Command {
        let mut command = self.gateway.command(env!("CARGO_BIN_EXE_ringwall"));
        command.args(arguments).arg("--config").arg(self.config_file());
        command
    }

    /// Runs a ringwall command to its end.
    pub fn ask(&self, arguments: &[&str]) -> Output {
        self.ringwall(arguments).output().unwrap()
    }

    /// Runs a ringwall command that should end by itself soon; killed where it does not.
    pub fn ask_shortly(&self, arguments: &[&str]) -> Output {
        let mut command = self.gateway.command("timeout");
        command
            .args(["-k", "1", "20", env!("CARGO_BIN_EXE_ringwall")])
            .args(arguments)
            .arg("--config")
            .arg(self.config_file());
        command.output().unwrap()
    }

    /// Starts `ringwall run` and waits until policies are in force.
    pub fn start(&mut self) {
        self.launch();
        self.wait_for("policies in force", |bed| bed.log().contains("policies in force"));
    }

    /// Starts `ringwall run` and waits for nothing.
    pub fn launch(&mut self) {
        let log = File::create(self.log_file()).unwrap();
        let child = self
            .ringwall(&["run"])
            .env(
                "RUST_LOG",
                std::env::var("RUST_LOG").unwrap_or_else(|_| "info".to_owned()),
            )
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        self.running = Some(child);
    }

    fn log_file(&self) -> PathBuf {
        self.dir.path().join("log")
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.log_file()).unwrap_or_default()
    }

    /// Process id of the supervisor.
    pub fn supervisor(&self) -> u32 {
        // nsenter executes the program in its own place.
        self.running.as_ref().unwrap().id()
    }

    /// Process ids of the supervisor's children by the name of their subcommand.
    pub fn child(&self, subcommand: &str) -> Option<u32> {
        let supervisor = self.supervisor();
        let children =
            std::fs::read_to_string(format!("/proc/{supervisor}/task/{supervisor}/children")).ok()?;
        children
            .split_whitespace()
            .filter_map(|pid| pid.parse().ok())
            .find(|pid: &u32| {
                std::fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| {
                    line.split(|byte| *byte == 0)
                        .any(|word| word == subcommand.as_bytes())
                })
            })
    }

    /// Waits up to 20 s.
    pub fn wait_for(&self, what: &str, until: impl Fn(&Self) -> bool) {
        let deadline = Instant::now() + Duration::from_secs(20);
        while !until(self) {
            assert!(
                Instant::now() < deadline,
                "no {what} in time; log:\n{}",
                self.log()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// `ringwall status -o json`.
    pub fn status(&self) -> serde_json::Value {
        let output = self.ask(&["status", "-o", "json"]);
        // 1 where something is not ready or alarmed.
        assert!(
            matches!(output.status.code(), Some(0 | 1)),
            "{}\n{}",
            String::from_utf8_lossy(&output.stderr),
            self.log()
        );
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// Waits until the workers decide by a newer generation than this.
    pub fn wait_newer(&self, generation: u64) {
        self.wait_for("newer generation", |bed| {
            let status = bed.status();
            let workers = status["dataplane"]["workers"].as_array().unwrap();
            workers
                .iter()
                .all(|worker| worker["generation"].as_u64().unwrap() > generation)
        });
    }

    pub fn generation(&self) -> u64 {
        self.status()["dataplane"]["snapshot"]["generation"]
            .as_u64()
            .unwrap()
    }

    /// Ends it with SIGTERM; true where it ended by itself in time.
    pub fn stop(&mut self) -> Option<i32> {
        let mut child = self.running.take()?;
        let _ = Command::new("kill").arg(child.id().to_string()).status();
        let deadline = Instant::now() + Duration::from_secs(8);
        loop {
            if let Some(status) = child.try_wait().unwrap() {
                return status.code();
            }
            if Instant::now() > deadline {
                let _ = child.kill();
                let _ = child.wait();
                return None;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Kills the supervisor outright.
    pub fn kill_supervisor(&mut self) {
        let mut child = self.running.take().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        self.stop();
        let _ = self.ask(&["detach"]);
    }
}

/// A server that sends back what it gets, until the process ends.
pub fn serve(namespace: &Namespace, address: &str, port: u16) {
    let address = SocketAddr::new(address.parse::<IpAddr>().unwrap(), port);
    let listener = namespace.inside(move || TcpListener::bind(address)).unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { continue };
            std::thread::spawn(move || {
                let mut buffer = [0; 4096];
                while let Ok(n @ 1..) = stream.read(&mut buffer) {
                    if stream.write_all(&buffer[..n]).is_err() {
                        break;
                    }
                }
            });
        }
    });
}

/// A connection, after one word went there and back.
pub fn connect(namespace: &Namespace, address: &str, port: u16) -> io::Result<TcpStream> {
    let address = SocketAddr::new(address.parse::<IpAddr>().unwrap(), port);
    let mut stream =
        namespace.inside(move || TcpStream::connect_timeout(&address, Duration::from_millis(1500)))?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    echo(&mut stream)?;
    Ok(stream)
}

/// One word there and back.
pub fn echo(stream: &mut TcpStream) -> io::Result<()> {
    stream.write_all(b"word")?;
    let mut answer = [0; 4];
    stream.read_exact(&mut answer)?;
    assert_eq!(&answer, b"word");
    Ok(())
}

fn base() -> String {
    let pod = |name: &str, v4: &str, v6: &str| {
        format!(
            "---
apiVersion: v1
kind: Pod
metadata: {{name: {name}, namespace: default, labels: {{app: {name}}}}}
spec: {{nodeName: node1, containers: [{{name: c, image: x}}]}}
status: {{phase: Running, podIP: {v4}, podIPs: [{{ip: {v4}}}, {{ip: \"{v6}\"}}]}}
"
        )
    };
    format!(
        "apiVersion: v1
kind: Namespace
metadata: {{name: default}}
---
apiVersion: v1
kind: Node
metadata: {{name: node1}}
spec: {{podCIDRs: [10.1.1.0/24, \"fd00:1::/64\"]}}
status: {{addresses: [{{type: InternalIP, address: {GATEWAY}}}]}}
{}{}",
        pod("a", POD_A, POD_A_V6),
        pod("b", POD_B, POD_B_V6)
    )
}

/// Nothing may come in to pod b.
pub const ISOLATE_B: &str = "apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: isolate-b, namespace: default}
spec:
  podSelector: {matchLabels: {app: b}}
  policyTypes: [Ingress]
";
