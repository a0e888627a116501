//! A node beside the real kube-proxy, fed by an API server in this process. By hand: `tests/DESIGN.md` says how to come by a kube-proxy.
#![allow(clippy::unwrap_used, clippy::panic)] // a failed step is a failed test

use std::{
    fs,
    io::Read,
    net::IpAddr,
    path::{Path, PathBuf},
    process::{Child, Command},
    sync::{Arc, Mutex},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use ringwall_testbed::{
    api_server::{ApiServer, Resource},
    appliance::{Appliance, Options, PATIENCE, built_binary},
    preflight::runs_here,
    probe::{Outcome, Service, attempt},
    topology::{Bed, Plan, Role},
    world::{World, wait_for_answer},
};
use serde_json::{Value, json};

const SERVICES: Resource = Resource {
    group: "",
    version: "v1",
    plural: "services",
    kind: "Service",
    namespaced: true,
};
const ENDPOINT_SLICES: Resource = Resource {
    group: "discovery.k8s.io",
    version: "v1",
    plural: "endpointslices",
    kind: "EndpointSlice",
    namespaced: true,
};
const SERVICE_CIDRS: Resource = Resource {
    group: "networking.k8s.io",
    version: "v1",
    plural: "servicecidrs",
    kind: "ServiceCIDR",
    namespaced: false,
};
const HTTP: Service = Service::Tcp(80);
const WEB: &str = "10.112.0.10";
const DB: &str = "10.112.0.11";
/// Of a Service whose endpoints have gone.
const EMPTY: &str = "10.112.0.12";
const WITHIN: std::time::Duration = std::time::Duration::from_millis(1300);

/// The program, in one of its modes.
struct KubeProxy {
    child: Child,
    said: Arc<Mutex<String>>,
}

impl KubeProxy {
    fn start(bed: &Bed, program: &Path, mode: &str, kubeconfig: &Path) -> Self {
        let mut command = Command::new(program);
        command
            .arg(format!("--kubeconfig={}", kubeconfig.display()))
            .arg(format!("--proxy-mode={mode}"))
            .args([
                "--hostname-override=gateway",
                "--cluster-cidr=10.111.0.0/16",
                "--nodeport-addresses=192.0.2.0/24",
                "--feature-gates=WatchListClient=false",
                // Settings of the whole machine.
                "--conntrack-max-per-core=0",
                "--conntrack-min=0",
                "--conntrack-tcp-timeout-established=0s",
                "--conntrack-tcp-timeout-close-wait=0s",
            ]);
        let mut child = bed.gateway.spawn(command).unwrap();
        let said = Arc::new(Mutex::new(String::new()));
        let mut stream = child.stderr.take().unwrap();
        let log = Arc::clone(&said);
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(length @ 1..) = stream.read(&mut buffer) {
                log.lock()
                    .unwrap()
                    .push_str(&String::from_utf8_lossy(&buffer[..length]));
            }
        });
        Self { child, said }
    }
}

impl Drop for KubeProxy {
    fn drop(&mut self) {
        let _ = kill(Pid::from_raw(self.child.id() as i32), Signal::SIGTERM);
        let _ = self.child.wait();
    }
}

/// A Service, and its slice with at most one endpoint.
fn service(name: &str, address: &str, ports: Value, backend: Option<(IpAddr, u16)>) -> [Value; 2] {
    let endpoints: Vec<Value> = backend
        .iter()
        .map(|(address, _)| json!({"addresses": [address.to_string()], "conditions": {"ready": true}, "nodeName": "node-a"}))
        .collect();
    let port = backend.map_or(80, |(_, port)| port);
    let node_port = ports["nodePort"].is_u64();
    [
        json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": "shop"},
            "spec": {"type": if node_port { "NodePort" } else { "ClusterIP" }, "clusterIP": address, "clusterIPs": [address],
                     "ipFamilies": ["IPv4"], "ports": [ports], "externalTrafficPolicy": if node_port { json!("Cluster") } else { Value::Null }},
        }),
        json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
            "metadata": {"name": format!("{name}-1"), "namespace": "shop", "labels": {"kubernetes.io/service-name": name}},
            "endpoints": endpoints, "ports": [{"name": "http", "port": port, "protocol": "TCP"}],
        }),
    ]
}

#[test]
#[ignore = "needs a kube-proxy: KUBE_PROXY=/path/to/kube-proxy"]
fn services_of_the_real_kube_proxy_are_judged_by_their_backends() {
    let Some(_alone) = runs_here("the real kube-proxy") else {
        return;
    };
    let program = PathBuf::from(std::env::var_os("KUBE_PROXY").unwrap());
    let modes = std::env::var("KUBE_PROXY_MODES").unwrap_or_else(|_| "nftables,iptables".to_owned());
    for mode in modes.split(',') {
        beside(&program, mode);
    }
}

fn beside(program: &Path, mode: &str) {
    let plans = [
        Plan::new("shop/web").tcp(&[8080]),
        Plan::new("shop/client"),
        Plan::new("shop/db"),
        Plan::new("shop/probe"),
    ];
    let bed = Bed::new(Role::Bridge, &plans, 1).unwrap();
    // As a node has one: what is not translated would leave by it.
    bed.gateway.ip(&["route add default via 192.0.2.10"]).unwrap();
    let api = bed.gateway.run(ApiServer::start).unwrap().unwrap();
    for resource in [SERVICES, ENDPOINT_SLICES, SERVICE_CIDRS] {
        api.serve(resource);
    }
    let mut world = World::of(&bed);
    for object in world.objects() {
        api.apply(object);
    }
    let address = |name: &str| IpAddr::from(bed.member(name).unwrap().v4);
    let port = |node_port: Option<u16>| match node_port {
        Some(number) => {
            json!({"name": "http", "port": 80, "protocol": "TCP", "targetPort": 8080, "nodePort": number})
        }
        None => json!({"name": "http", "port": 80, "protocol": "TCP", "targetPort": 80}),
    };
    for object in [
        service("web", WEB, port(Some(30080)), Some((address("shop/web"), 8080))),
        service("db", DB, port(Some(30081)), Some((address("shop/db"), 80))),
        service("empty", EMPTY, port(None), None),
    ]
    .into_iter()
    .flatten()
    {
        api.apply(object);
    }
    let kubeconfig = bed.folder().join("kubeconfig");
    fs::write(&kubeconfig, api.kubeconfig("t")).unwrap();
    let proxy = KubeProxy::start(&bed, program, mode, &kubeconfig);
    let said = || proxy.said.lock().unwrap().clone();
    wait_for_answer(&bed, "shop/client", WEB.parse().unwrap(), HTTP, PATIENCE)
        .unwrap_or_else(|error| panic!("{mode}: {error}\n{}", said()));

    let tries = |from: &str, to: &str, service: Service| -> Outcome {
        let from = bed.member(from).unwrap();
        let to = to.parse().unwrap();
        from.ns.run(|| attempt(None, to, service, WITHIN)).unwrap()
    };
    // Everything that somebody may try, each by whom.
    let all = [
        ("shop/client", WEB, HTTP),
        ("shop/client", DB, HTTP),
        ("shop/probe", WEB, HTTP),
        ("external", "192.0.2.1", Service::Tcp(30080)),
        ("external", "192.0.2.1", Service::Tcp(30081)),
        ("shop/client", "192.0.2.1", Service::Tcp(30080)),
        ("shop/client", EMPTY, HTTP),
        // By its own Service: on this bridge kube-proxy's rules bring no answer back, with or without ringwall.
        ("shop/web", WEB, HTTP),
    ];
    let outcomes = || all.map(|(from, to, service)| tries(from, to, service));
    let without = outcomes();
    assert!(
        without[..6].iter().all(Outcome::answered),
        "{mode}: {without:?}\n{}",
        said()
    );
    assert!(matches!(without[6], Outcome::Refused(_)), "{mode}: {without:?}");

    // Allow-all: the same answers as without.
    let options = Options {
        source: Some(format!("{{kubeconfig: {}}}", kubeconfig.display())),
        more: "conntrack: {maxEntries: 16384}\n".to_owned(), // less to make at each start
        ..Options::default()
    };
    let firewall = Appliance::start(&bed, &built_binary().unwrap(), &options, &[]).unwrap();
    assert_eq!(outcomes(), without, "{mode}: allow-all\n{}", firewall.log());

    // By the pod and its port, whatever frontend; a client outside by its own address, though masqueraded.
    world.policy(
        "shop",
        "to-web",
        json!({"podSelector": {"matchLabels": {"app": "web"}}, "ingress": [
            {"from": [{"podSelector": {"matchLabels": {"app": "client"}}}, {"ipBlock": {"cidr": "192.0.2.10/32"}}],
             "ports": [{"port": 8080}]}]}),
    );
    world.policy(
        "shop",
        "to-db",
        json!({"podSelector": {"matchLabels": {"app": "db"}}, "ingress": []}),
    );
    for policy in &world.policies {
        api.apply(policy.clone());
    }
    let wanted = [
        true,
        false,
        false,
        true,
        false,
        true,
        false,
        without[7].answered(),
    ];
    firewall
        .wait_until("the policies are in force", |status| {
            status["control"]["objects"]["policies"] == 2
                && status["control"]["publication"]["adopted"] == status["control"]["snapshot"]["generation"]
        })
        .unwrap();
    let judged = outcomes();
    assert_eq!(
        judged.each_ref().map(Outcome::answered),
        wanted,
        "{mode}: {judged:?}"
    );
    assert!(
        matches!(judged[6], Outcome::Refused(_)),
        "the proxy's own refusal arrives: {judged:?}"
    );

    // kube-proxy starts anew under it.
    drop(proxy);
    let _proxy = KubeProxy::start(&bed, program, mode, &kubeconfig);
    let again = outcomes();
    assert_eq!(
        again.each_ref().map(Outcome::answered),
        wanted,
        "{mode}: {again:?}"
    );
    // A backend that is replaced: policy follows the pod, not the Service.
    let [_, slice] = service("web", WEB, port(Some(30080)), Some((address("shop/db"), 80)));
    api.apply(slice);
    let denied = || !tries("shop/client", WEB, HTTP).answered();
    let end = std::time::Instant::now() + PATIENCE;
    while !denied() {
        assert!(std::time::Instant::now() < end, "{mode}: db is reached as web");
    }
}
