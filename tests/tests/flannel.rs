//! Pods of two nodes that the real flanneld joins, judged on one of the nodes and by a gateway between them. By hand: `tests/DESIGN.md` says how.
#![allow(clippy::unwrap_used, clippy::panic)] // a failed step is a failed test

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, TcpListener},
    path::{Path, PathBuf},
    process::{Child, Command},
    sync::Arc,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use ringwall_testbed::{
    api_server::ApiServer,
    appliance::{Appliance, Options, PATIENCE, built_binary},
    manifests::{Pod, labels},
    netns::Netns,
    preflight::runs_here,
    probe::{Attempt, Outcome, Service, attempt_all},
    serve::Servers,
    topology::{Bed, Plan, Role},
    world::World,
};
use serde_json::{Value, json};

const HTTP: Service = Service::Tcp(80);
const DNS: Service = Service::Udp(53);
/// How long what should not arrive gets.
const SILENCE: Duration = Duration::from_millis(700);

/// A backend of flannel's.
struct Backend {
    name: &'static str,
    /// Families of pods' packets that it carries.
    families: &'static [bool],
    /// ringwall's word for its tunnel at a gateway, if it has one.
    tunnel: Option<&'static str>,
}

const BACKENDS: [Backend; 3] = [
    Backend {
        name: "vxlan",
        families: &[false, true],
        tunnel: Some("vxlan"),
    },
    Backend {
        name: "host-gw",
        families: &[false, true],
        tunnel: None,
    },
    Backend {
        name: "udp",
        families: &[false],
        tunnel: Some("flannel-udp"),
    },
];

/// The program on a node.
struct Flanneld(Child);

impl Drop for Flanneld {
    fn drop(&mut self) {
        let _ = kill(Pid::from_raw(self.0.id() as i32), Signal::SIGTERM);
        let _ = self.0.wait();
    }
}

/// A node: its namespace, the interface towards the other one, and where it reaches the API server.
struct Node {
    name: &'static str,
    ns: Arc<Netns>,
    interface: &'static str,
    server: &'static str,
    /// The third number of its pods' IPv4 network, the fourth part of that of IPv6.
    network: u8,
}

impl Node {
    /// Without the addresses of the node: flanneld notes its own.
    fn object(&self) -> Value {
        let networks = [
            format!("10.111.{}.0/24", self.network),
            format!("fd00:111:0:{}::/64", self.network),
        ];
        json!({
            "apiVersion": "v1", "kind": "Node",
            // flanneld takes for granted that there are some, as controllers make.
            "metadata": {"name": self.name, "annotations": {"node.alpha.kubernetes.io/ttl": "0"}},
            "spec": {"podCIDR": networks[0], "podCIDRs": networks},
        })
    }

    fn address(&self, pod: u8, v6: bool) -> IpAddr {
        let text = match v6 {
            false => format!("10.111.{}.{pod}", self.network),
            true => format!("fd00:111:0:{}::{pod}", self.network),
        };
        text.parse().unwrap()
    }
}

/// A pod, and the index of its node.
struct Member {
    name: &'static str,
    ns: Arc<Netns>,
    addresses: [IpAddr; 2],
    node: usize,
}

/// Two nodes and their pods.
struct Cluster<'a> {
    bed: Bed,
    api: ApiServer,
    nodes: [Node; 2],
    pods: Vec<Member>,
    backend: &'a Backend,
    program: &'a Path,
    _servers: Vec<Servers>,
}

/// The pods of the first node, then those of the other.
const PODS: [(&str, usize); 5] = [
    ("shop/web", 0),
    ("shop/client", 0),
    ("shop/other", 0),
    ("shop/far", 1),
    ("shop/stranger", 1),
];

/// An API server at a port that the bed's nodes reach.
fn serve_api(bed: &Bed) -> ApiServer {
    let listener = bed.gateway.run(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)));
    ApiServer::start_on(listener.unwrap().unwrap()).unwrap()
}

impl<'a> Cluster<'a> {
    /// ringwall's machine is the first node, with its pods on a bridge, as flannel's plugin makes it.
    fn on_a_node(program: &'a Path, backend: &'a Backend) -> Self {
        let plans: Vec<Plan> = PODS[..3].iter().map(|(name, _)| Plan::new(name)).collect();
        let bed = Bed::new(Role::Bridge, &plans, 1).unwrap();
        let node = |name, ns: &Arc<Netns>, interface, network| Node {
            name,
            ns: ns.clone(),
            interface,
            server: "192.0.2.1",
            network,
        };
        let nodes = [
            node("node-a", &bed.gateway, "uplink", 0),
            node("node-b", &bed.external.ns, "eth0", 2),
        ];
        let pods = bed.pods.iter().zip(PODS).map(|(member, (name, node))| Member {
            name,
            ns: member.ns.clone(),
            addresses: [member.v4.into(), member.v6.into()],
            node,
        });
        let pods = pods.collect();
        Self::of(bed, nodes, pods, program, backend)
    }

    /// ringwall's machine is a wire between both nodes.
    fn across_a_gateway(program: &'a Path, backend: &'a Backend) -> Self {
        let bed = Bed::new(Role::Wire, &[], 1).unwrap();
        // The nodes reach the API server by another way than the one that is judged.
        for (index, router) in bed.routers.iter().enumerate() {
            bed.gateway
                .ip(&[
                    format!(
                        "link add manage{index} type veth peer name manage netns {}",
                        router.path()
                    ),
                    format!("address add 10.250.{index}.1/30 dev manage{index}"),
                    format!("link set manage{index} up"),
                ])
                .unwrap();
            router
                .ip(&[
                    format!("address add 10.250.{index}.2/30 dev manage"),
                    "link set manage up".to_owned(),
                ])
                .unwrap();
        }
        let node = |name, index: usize, server| Node {
            name,
            ns: bed.routers[index].clone(),
            interface: "wire",
            server,
            network: index as u8 + 1,
        };
        let nodes = [node("node-a", 0, "10.250.0.1"), node("node-b", 1, "10.250.1.1")];
        Self::of(bed, nodes, Vec::new(), program, backend)
    }

    fn of(
        bed: Bed,
        nodes: [Node; 2],
        mut pods: Vec<Member>,
        program: &'a Path,
        backend: &'a Backend,
    ) -> Self {
        for node in &nodes {
            node.ns.sysctl("net/ipv4/ip_forward", "1").unwrap();
            node.ns.sysctl("net/ipv6/conf/all/forwarding", "1").unwrap();
        }
        let mut servers = Vec::new();
        for (index, (name, node)) in PODS.into_iter().enumerate().skip(pods.len()) {
            let ns = Arc::new(Netns::new(name).unwrap());
            let addresses = [false, true].map(|v6| nodes[node].address(index as u8 + 10, v6));
            join(&nodes[node].ns, &format!("pod{index}"), &ns, addresses);
            servers.push(Servers::start(&ns, name, &[80], &[53]).unwrap());
            pods.push(Member {
                name,
                ns,
                addresses,
                node,
            });
        }
        let api = serve_api(&bed);
        let cluster = Self {
            bed,
            api,
            nodes,
            pods,
            backend,
            program,
            _servers: servers,
        };
        for object in cluster.world().objects() {
            if object["kind"] != "Node" {
                cluster.api.apply(object);
            }
        }
        for node in &cluster.nodes {
            cluster.api.apply(node.object());
        }
        cluster
    }

    fn world(&self) -> World {
        let mut world = World::of(&self.bed);
        world.namespaces.entry("shop".to_owned()).or_default();
        for pod in &self.pods {
            let name = pod.name.rsplit('/').next().unwrap();
            let object = Pod {
                namespace: "shop".to_owned(),
                name: name.to_owned(),
                labels: labels([("app", name)]),
                addresses: pod.addresses.to_vec(),
                node: self.nodes[pod.node].name.to_owned(),
                ports: Vec::new(),
            };
            world.pods.insert(pod.name.to_owned(), object);
        }
        world
    }

    fn kubeconfig(&self, server: &str) -> PathBuf {
        let file = self.bed.folder().join(format!("kubeconfig-{server}"));
        fs::write(&file, self.api.kubeconfig("t").replace("0.0.0.0", server)).unwrap();
        file
    }

    fn log_of(&self, node: &Node) -> PathBuf {
        self.bed.folder().join(format!("flanneld-{}.log", node.name))
    }

    fn flanneld(&self, node: &Node) -> Flanneld {
        let folder = self.bed.folder();
        let network = folder.join("net-conf.json");
        let conf = json!({
            "Network": "10.111.0.0/16", "IPv6Network": "fd00:111::/48",
            "EnableIPv4": true, "EnableIPv6": self.backend.families.contains(&true),
            "Backend": {"Type": self.backend.name},
        });
        fs::write(&network, conf.to_string()).unwrap();
        let mut command = Command::new("sh");
        command
            .arg("-c")
            .arg(format!(
                "exec '{}' --kube-subnet-mgr --kubeconfig-file='{}' --net-config-path='{}' --subnet-file='{}' --iface={} --ip-masq \
                 --set-node-network-unavailable=false --healthz-port=0 > '{}' 2>&1",
                self.program.display(),
                self.kubeconfig(node.server).display(),
                network.display(),
                folder.join(format!("subnet-{}.env", node.name)).display(),
                node.interface,
                self.log_of(node).display(),
            ))
            .env("NODE_NAME", node.name);
        Flanneld(node.ns.spawn(command).unwrap())
    }

    fn logs(&self) -> String {
        let logs = self
            .nodes
            .each_ref()
            .map(|node| fs::read_to_string(self.log_of(node)).unwrap_or_default());
        logs.join("\n")
    }

    fn pod(&self, name: &str) -> &Member {
        self.pods.iter().find(|pod| pod.name == name).unwrap()
    }

    /// What becomes of attempts over each family that flannel carries, all at once.
    fn outcomes(&self, tries: &[(&str, &str, Service)], within: Duration) -> Vec<Outcome> {
        let families = self.backend.families;
        let attempts: Vec<Attempt<'_>> = families
            .iter()
            .flat_map(|v6| tries.iter().map(move |one| (usize::from(*v6), one)))
            .map(|(family, (from, to, service))| Attempt {
                from: &self.pod(from).ns,
                source: Some(self.pod(from).addresses[family]),
                to: self.pod(to).addresses[family],
                service: *service,
            })
            .collect();
        attempt_all(&attempts, within).unwrap()
    }

    fn all_answer(&self, when: &str, tries: &[(&str, &str, Service)]) {
        let end = Instant::now() + PATIENCE;
        loop {
            let outcomes = self.outcomes(tries, PATIENCE / 5);
            if outcomes.iter().all(Outcome::answered) {
                return;
            }
            assert!(
                Instant::now() < end,
                "{}, {when}: {tries:?}: {outcomes:?}\n{}",
                self.backend.name,
                self.logs()
            );
        }
    }

    /// Those of some attempts whose packets ringwall sees: a gateway sees those between nodes.
    fn seen<const N: usize>(
        &self,
        tries: [(&'static str, &'static str, Service); N],
    ) -> Vec<(&'static str, &'static str, Service)> {
        let crosses = |(from, to, _): &(&str, &str, Service)| self.pod(from).node != self.pod(to).node;
        tries
            .into_iter()
            .filter(|one| self.bed.role.is_node() || crosses(one))
            .collect()
    }

    /// Everybody reaches everybody without ringwall and beside one that has no policies. Then policies hold, also while flanneld starts anew.
    fn judged(&self) -> Appliance {
        let passes = self.seen([
            ("shop/client", "shop/far", HTTP),
            ("shop/client", "shop/web", HTTP),
            ("shop/far", "shop/web", HTTP),
            ("shop/other", "shop/far", HTTP),
            ("shop/web", "shop/stranger", DNS),
        ]);
        let drops = self.seen([
            ("shop/client", "shop/far", DNS),
            ("shop/client", "shop/stranger", HTTP),
            ("shop/far", "shop/web", DNS),
            ("shop/stranger", "shop/web", HTTP),
            ("shop/other", "shop/web", HTTP),
        ]);
        let all: Vec<_> = passes.iter().chain(&drops).copied().collect();
        let daemons = self.nodes.each_ref().map(|node| self.flanneld(node));
        let is_wire = self.bed.role == Role::Wire;
        if is_wire {
            self.bed.forward_by_kernel().unwrap();
        }
        self.all_answer("without ringwall", &all);
        if is_wire {
            self.bed.gateway.ip(&["link del bridge"]).unwrap();
        }
        let options = Options {
            source: Some(format!(
                "{{kubeconfig: {}}}",
                self.kubeconfig("127.0.0.1").display()
            )),
            more: "conntrack: {maxEntries: 16384}\n".to_owned(), // less to make at each start
            ..Options::default()
        };
        let firewall = Appliance::start(&self.bed, &built_binary().unwrap(), &options, &[]).unwrap();
        self.all_answer("without policies", &all);

        let mut world = self.world();
        let app = |name: &str| json!({"podSelector": {"matchLabels": {"app": name}}});
        let http = json!([{"protocol": "TCP", "port": 80}]);
        world.policy(
            "shop",
            "web",
            json!({"podSelector": {"matchLabels": {"app": "web"}}, "policyTypes": ["Ingress"],
                   "ingress": [{"from": [app("client"), app("far")], "ports": http}]}),
        );
        world.policy(
            "shop",
            "client",
            json!({"podSelector": {"matchLabels": {"app": "client"}}, "policyTypes": ["Egress"],
                   "egress": [{"to": [app("web"), app("far")], "ports": http}]}),
        );
        for policy in &world.policies {
            self.api.apply(policy.clone());
        }
        let are_silent = |outcomes: &[Outcome]| outcomes.iter().all(|outcome| *outcome == Outcome::Silence);
        let end = Instant::now() + PATIENCE;
        while !are_silent(&self.outcomes(&drops, SILENCE)) {
            assert!(
                Instant::now() < end,
                "{}: the policies do not come into force\n{}",
                self.backend.name,
                firewall.log()
            );
        }
        let hold = |when: &str| {
            self.all_answer(when, &passes);
            let outcomes = self.outcomes(&drops, SILENCE);
            assert!(
                are_silent(&outcomes),
                "{}, {when}: {drops:?}: {outcomes:?}",
                self.backend.name
            );
        };
        hold("with policies");
        drop(daemons);
        let _daemons = self.nodes.each_ref().map(|node| self.flanneld(node));
        hold("after flanneld started anew");
        firewall
    }
}

/// A pod's pair, as plugins make it that route.
fn join(host: &Netns, port: &str, ns: &Netns, [v4, v6]: [IpAddr; 2]) {
    host.ip(&[
        format!("link add {port} type veth peer name eth0 netns {}", ns.path()),
        format!("link set {port} up"),
        format!("address add 169.254.2.1/32 dev {port} scope link"),
        format!("address add fe80::1/64 dev {port} nodad"),
        format!("route add {v4}/32 dev {port} scope link"),
        format!("route add {v6}/128 dev {port}"),
    ])
    .unwrap();
    ns.ip(&[
        "link set eth0 up".to_owned(),
        format!("address add {v4}/32 dev eth0"),
        format!("address add {v6}/128 dev eth0 nodad"),
        "route add 169.254.2.1 dev eth0 scope link".to_owned(),
        "route add default via 169.254.2.1 dev eth0".to_owned(),
        "route add default via fe80::1 dev eth0".to_owned(),
    ])
    .unwrap();
}

fn program() -> PathBuf {
    PathBuf::from(std::env::var_os("FLANNELD").unwrap_or_else(|| panic!("FLANNELD does not name a program")))
}

#[test]
#[ignore = "needs a flanneld: FLANNELD=/path/to/flanneld"]
fn pods_across_the_real_flannel_are_judged_on_their_node() {
    let Some(_alone) = runs_here("the real flannel") else {
        return;
    };
    let program = program();
    for backend in &BACKENDS {
        Cluster::on_a_node(&program, backend).judged();
    }
}

#[test]
#[ignore = "needs a flanneld: FLANNELD=/path/to/flanneld"]
fn pods_across_the_real_flannel_are_judged_inside_its_tunnels_at_a_gateway() {
    let Some(_alone) = runs_here("the real flannel") else {
        return;
    };
    let program = program();
    for backend in &BACKENDS {
        let cluster = Cluster::across_a_gateway(&program, backend);
        let firewall = cluster.judged();
        let status = firewall.status().unwrap();
        let tunnelled: Vec<&String> = status["dataplane"]["tunnelled"]
            .as_object()
            .unwrap()
            .iter()
            .filter(|(_, packets)| packets.as_u64() != Some(0))
            .map(|(kind, _)| kind)
            .collect();
        assert_eq!(tunnelled, Vec::from_iter(backend.tunnel), "{}", backend.name);
    }
}
