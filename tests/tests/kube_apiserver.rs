//! The manifests that we ship, and the rights that they give, against a real kube-apiserver. By hand: `tests/DESIGN.md` says how to come by one.
#![allow(clippy::unwrap_used, clippy::panic)] // a failed step is a failed test

use std::{
    fs,
    path::Path,
    process::{Child, Command},
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use ringwall_testbed::{
    appliance::{Appliance, Options, PATIENCE, built_binary},
    preflight::runs_here,
    probe::Service,
    topology::{Bed, GATEWAY, Plan, Role},
    world::{World, differences},
};
use serde_json::{Value, json};

/// Where each kind is, and whether it is in a namespace.
const KINDS: [(&str, &str, &str, bool); 12] = [
    ("Namespace", "api/v1", "namespaces", false),
    ("Node", "api/v1", "nodes", false),
    ("ServiceAccount", "api/v1", "serviceaccounts", true),
    ("ConfigMap", "api/v1", "configmaps", true),
    ("Pod", "api/v1", "pods", true),
    ("Service", "api/v1", "services", true),
    (
        "ClusterRole",
        "apis/rbac.authorization.k8s.io/v1",
        "clusterroles",
        false,
    ),
    (
        "ClusterRoleBinding",
        "apis/rbac.authorization.k8s.io/v1",
        "clusterrolebindings",
        false,
    ),
    ("DaemonSet", "apis/apps/v1", "daemonsets", true),
    ("Deployment", "apis/apps/v1", "deployments", true),
    ("StatefulSet", "apis/apps/v1", "statefulsets", true),
    (
        "NetworkPolicy",
        "apis/networking.k8s.io/v1",
        "networkpolicies",
        true,
    ),
];

/// A program that is ended with the test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = kill(Pid::from_raw(self.0.id() as i32), Signal::SIGKILL);
        let _ = self.0.wait();
    }
}

/// etcd and a kube-apiserver in the gateway's namespace, with a token of an administrator.
struct Cluster<'a> {
    bed: &'a Bed,
    _programs: [Running; 2],
}

impl<'a> Cluster<'a> {
    fn start(bed: &'a Bed) -> Self {
        let program =
            |name: &str| std::env::var_os(name).unwrap_or_else(|| panic!("{name} does not name a program"));
        let folder = |name: &str| bed.folder().join(name).display().to_string();
        let start = |mut command: Command, log: &str| {
            // Its words would fill a pipe that is not read.
            let arguments: Vec<String> = std::iter::once(command.get_program())
                .chain(command.get_args())
                .map(|part| format!("'{}'", part.to_string_lossy()))
                .collect();
            command = Command::new("sh");
            command
                .arg("-c")
                .arg(format!("exec {} > {} 2>&1", arguments.join(" "), folder(log)));
            Running(bed.gateway.spawn(command).unwrap())
        };
        let mut etcd = Command::new(program("ETCD"));
        etcd.args(["--data-dir", &folder("etcd")]);
        let key = Command::new("openssl")
            .args(["genrsa", "-out", &folder("sa.key"), "2048"])
            .output()
            .unwrap();
        assert!(key.status.success());
        fs::write(folder("tokens.csv"), "administrator,admin,admin,system:masters\n").unwrap();
        let mut server = Command::new(program("KUBE_APISERVER"));
        server.args([
            "--etcd-servers=http://127.0.0.1:2379".to_owned(),
            "--authorization-mode=RBAC".to_owned(),
            "--allow-privileged".to_owned(),
            "--service-cluster-ip-range=10.112.0.0/16".to_owned(),
            "--service-account-issuer=https://kubernetes.default.svc".to_owned(),
            format!("--service-account-key-file={}", folder("sa.key")),
            format!("--service-account-signing-key-file={}", folder("sa.key")),
            format!("--token-auth-file={}", folder("tokens.csv")),
            format!("--cert-dir={}", folder("certs")),
            format!("--advertise-address={GATEWAY}"),
        ]);
        let programs = [start(etcd, "etcd.log"), start(server, "server.log")];
        let cluster = Self {
            bed,
            _programs: programs,
        };
        let end = Instant::now() + PATIENCE;
        while cluster.ask("GET", "readyz", None).0 != 200 {
            let log = || fs::read_to_string(folder("server.log")).unwrap_or_default();
            assert!(Instant::now() < end, "the server is not ready: {}", log());
            std::thread::sleep(Duration::from_millis(300));
        }
        cluster
    }

    /// Status and body of an answer.
    fn ask(&self, method: &str, path: &str, body: Option<&Value>) -> (u16, String) {
        let patch = "application/merge-patch+json";
        let kind = if method == "PATCH" {
            patch
        } else {
            "application/json"
        };
        let mut curl = Command::new("curl");
        curl.args(["-sk", "-X", method, "-w", "\n%{http_code}"])
            .args(["-H", "Authorization: Bearer administrator"])
            .args(["-H", &format!("Content-Type: {kind}")]);
        if let Some(body) = body {
            let file = self.bed.folder().join("body.json");
            fs::write(&file, body.to_string()).unwrap();
            curl.arg("--data").arg(format!("@{}", file.display()));
        }
        curl.arg(format!("https://127.0.0.1:6443/{path}"));
        let output = self.bed.gateway.output(curl).unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let (body, status) = text.rsplit_once('\n').unwrap();
        (status.parse().unwrap(), body.to_owned())
    }

    /// Makes an object, or only has the server look at it. Unknown fields are errors.
    fn create(&self, object: &Value, dry: bool) {
        let kind = object["kind"].as_str().unwrap();
        let (_, group, plural, namespaced) = *KINDS
            .iter()
            .find(|known| known.0 == kind)
            .unwrap_or_else(|| panic!("{kind}"));
        let place = match object["metadata"]["namespace"].as_str().unwrap_or("default") {
            namespace if namespaced => format!("namespaces/{namespace}/"),
            _ => String::new(),
        };
        let dry = if dry { "&dryRun=All" } else { "" };
        let path = format!("{group}/{place}{plural}?fieldValidation=Strict{dry}");
        let (status, body) = self.ask("POST", &path, Some(object));
        // 409: it is there already, as the namespaces are that a server makes by itself.
        assert!(
            status == 201 || status == 409,
            "{} {kind}: {status} {body}",
            object["metadata"]
        );
    }

    /// Makes a namespace, and what a controller would make in it.
    fn namespace(&self, name: &str) {
        self.create(
            &json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}),
            false,
        );
        let account = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default", "namespace": name}});
        self.create(&account, false);
    }
}

fn objects(file: &str) -> Vec<Value> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(file);
    serde_saphyr::from_multiple(&fs::read_to_string(path).unwrap()).unwrap()
}

#[test]
#[ignore = "needs a kube-apiserver and etcd: KUBE_APISERVER=/path/to/kube-apiserver ETCD=/path/to/etcd"]
fn a_real_server_takes_what_we_ship_and_the_rights_suffice() {
    let Some(_alone) = runs_here("the real kube-apiserver") else {
        return;
    };
    let bed = Bed::new(Role::Node, &[Plan::new("shop/web"), Plan::new("shop/client")], 1).unwrap();
    let cluster = Cluster::start(&bed);

    // What the manifests say is what a server understands, all of it.
    for object in objects("config/deploy/rbac.yaml") {
        cluster.create(&object, false);
    }
    for file in [
        "config/deploy/kubernetes/node.yaml",
        "config/deploy/kubernetes/uninstall.yaml",
        "docs/examples/shop.yaml",
        "config/demo/cluster.yaml",
    ] {
        let objects = objects(file);
        let names = objects
            .iter()
            .filter_map(|object| object["metadata"]["namespace"].as_str());
        for name in names.chain(["default"]) {
            cluster.namespace(name);
        }
        for object in &objects {
            cluster.create(object, true);
        }
    }

    // Control with the rights of its account, and nothing else, follows the server.
    let mut world = World::of(&bed);
    let objects = world.objects();
    world.policy(
        "shop",
        "web",
        json!({"podSelector": {"matchLabels": {"app": "web"}}, "ingress": []}),
    );
    for object in objects {
        cluster.create(&object, false);
        if object["kind"] == "Pod" || object["kind"] == "Node" {
            // Its own kubelet's word.
            let (name, status) = (object["metadata"]["name"].as_str().unwrap(), &object["status"]);
            let path = match object["kind"] == "Pod" {
                true => format!("api/v1/namespaces/shop/pods/{name}/status"),
                false => format!("api/v1/nodes/{name}/status"),
            };
            let (code, body) = cluster.ask("PATCH", &path, Some(&json!({"status": status})));
            assert_eq!(code, 200, "{name}: {body}");
        }
    }
    let request = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}});
    let (code, body) = cluster.ask(
        "POST",
        "api/v1/namespaces/ringwall/serviceaccounts/ringwall/token",
        Some(&request),
    );
    assert_eq!(code, 201, "{body}");
    let token = serde_json::from_str::<Value>(&body).unwrap()["status"]["token"].clone();
    let kubeconfig = bed.folder().join("kubeconfig");
    let text = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "bed",
        "clusters": [{"name": "bed", "cluster": {"server": "https://127.0.0.1:6443", "insecure-skip-tls-verify": true}}],
        "users": [{"name": "ringwall", "user": {"token": token}}],
        "contexts": [{"name": "bed", "context": {"cluster": "bed", "user": "ringwall"}}],
    });
    fs::write(&kubeconfig, text.to_string()).unwrap();
    let options = Options {
        source: Some(format!("{{kubeconfig: {}}}", kubeconfig.display())),
        ..Options::default()
    };
    let firewall = Appliance::start(&bed, &built_binary().unwrap(), &options, &[]).unwrap();
    let reaches = |answer: bool| {
        let wanted = [("shop/client", "shop/web", Service::Tcp(80), answer)];
        let differ = differences(&bed, &wanted).unwrap();
        assert!(differ.is_empty(), "{differ:#?}\n{}", firewall.log());
    };
    let policies = |count: u64| {
        firewall
            .wait_until("the policies are in force", |status| {
                status["control"]["objects"]["policies"] == count
                    && status["control"]["publication"]["adopted"]
                        == status["control"]["snapshot"]["generation"]
            })
            .unwrap()
    };
    reaches(true);
    cluster.create(&world.policies[0], false);
    policies(1);
    reaches(false);
    let (code, body) = cluster.ask(
        "DELETE",
        "apis/networking.k8s.io/v1/namespaces/shop/networkpolicies/web",
        None,
    );
    assert_eq!(code, 200, "{body}");
    policies(0);
    reaches(true);
}
