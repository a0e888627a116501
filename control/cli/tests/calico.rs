//! Policies of Calico from manifests to verdicts: every trap that a verdict shows, by its number (`docs/semantics.md`), asked of
//! `ringwall query`, of the reference evaluator and of the compiled snapshot, and proven.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test may stop at the first surprise"
)]

use std::{net::IpAddr, sync::Arc};

use ringwall_compile::{EpochKey, compile};
use ringwall_dataplane::{
    addr::Addr,
    classify::{Generation, L4, NodeExemption, Snapshot},
};
use ringwall_policy::Settings;
use ringwall_prove::Checker;
use ringwall_source::folder;
use serde_json::{Value, json};

#[path = "ran/mod.rs"]
mod ran;
#[path = "calico/verdicts.rs"]
mod verdicts;

/// Pods, namespaces and service accounts. `shop/web` 10.0.0.1, `shop/db` 10.0.0.2 with a port `sql` 5432, `other/x` 10.0.1.1; all of
/// both versions of IP.
const CLUSTER: &str = r#"
{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop", "labels": {"team": "a"}}}
{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "other", "labels": {"team": "b"}}}
{"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "s", "namespace": "shop", "labels": {"tier": "front"}}}
{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "web", "namespace": "shop", "labels": {"role": "web", "pcns.team": "admin"}}, "spec": {"serviceAccountName": "s"}, "status": {"podIPs": [{"ip": "10.0.0.1"}, {"ip": "fd00::1"}]}}
{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "db", "namespace": "shop", "labels": {"role": "db", "x": "1"}}, "spec": {"containers": [{"name": "c", "ports": [{"name": "sql", "containerPort": 5432}, {"name": "dns", "containerPort": 53}, {"name": "dns", "containerPort": 53, "protocol": "UDP"}]}]}, "status": {"podIPs": [{"ip": "10.0.0.2"}, {"ip": "fd00::2"}]}}
{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x", "namespace": "other", "labels": {"role": "web"}}, "spec": {"serviceAccountName": "s"}, "status": {"podIPs": [{"ip": "10.0.1.1"}, {"ip": "fd00::1:1"}]}}
"#;

fn object(kind: &str, name: &str, spec: Value) -> Value {
    let (namespace, name) = name
        .split_once('/')
        .map_or((None, name), |(namespace, name)| (Some(namespace), name));
    json!({"apiVersion": "projectcalico.org/v3", "kind": kind, "metadata": {"name": name, "namespace": namespace}, "spec": spec})
}

fn gnp(name: &str, spec: Value) -> Value {
    object("GlobalNetworkPolicy", name, spec)
}

fn np(name: &str, spec: Value) -> Value {
    object("NetworkPolicy", name, spec)
}

fn tier(name: &str, spec: Value) -> Value {
    object("Tier", name, spec)
}

fn set(name: &str, labels: Value, nets: Value) -> Value {
    let mut set = object("GlobalNetworkSet", name, json!({"nets": nets}));
    set["metadata"]["labels"] = labels;
    set
}

/// A NetworkPolicy of Kubernetes that selects every pod of `shop`.
fn kubernetes(name: &str, ingress: Value) -> Value {
    json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"name": name, "namespace": "shop"},
        "spec": {"podSelector": {}, "policyTypes": ["Ingress"], "ingress": ingress}})
}

fn cluster_policy(tier: &str, priority: u32, action: &str) -> Value {
    json!({"apiVersion": "policy.networking.k8s.io/v1alpha2", "kind": "ClusterNetworkPolicy", "metadata": {"name": "c"},
        "spec": {"tier": tier, "priority": priority, "subject": {"namespaces": {}},
            "ingress": [{"action": action, "from": [{"namespaces": {}}]}]}})
}

struct World {
    dir: tempfile::TempDir,
    loaded: folder::Loaded,
    snapshot: Arc<Snapshot>,
}

impl World {
    fn new(objects: &[Value]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut documents: Vec<String> = CLUSTER.lines().map(str::to_owned).collect();
        documents.extend(objects.iter().map(ToString::to_string));
        std::fs::write(dir.path().join("all.yaml"), documents.join("\n---\n")).unwrap();
        let loaded = folder::load(dir.path(), &Settings::default()).unwrap();
        let image = compile(&loaded.cluster, Generation(1), &EpochKey::OFFLINE).unwrap();
        let snapshot = Arc::new(Snapshot::open(&image.bytes).unwrap());
        Checker::new()
            .full(&loaded.cluster, &snapshot)
            .unwrap_or_else(|wrong| panic!("not proven: {wrong:?}"));
        Self {
            dir,
            loaded,
            snapshot,
        }
    }

    /// Whether a flow passes: `PORT/PROTOCOL`, or a protocol's number or ICMP, between pods or addresses.
    fn passes(&self, src: &str, dst: &str, service: &str) -> bool {
        let (port, protocol) = match service.split_once('/') {
            Some((port, protocol)) => (Some(port.parse::<u16>().unwrap()), protocol),
            None => (None, service),
        };
        let number = match protocol {
            "TCP" => 6,
            "UDP" => 17,
            "ICMP" => 1,
            "ICMPv6" => 58,
            number => number.parse::<u8>().unwrap(),
        };
        let named = number.to_string() != protocol;
        let flow = json!({"src": src, "dst": dst, "dst_port": port,
            "protocol": if named { json!(protocol) } else { json!(number) }});
        let mut flow = flow;
        if port.is_none() {
            flow.as_object_mut().unwrap().remove("dst_port");
        }
        let ran = ran::ringwall_reading(
            &[
                "query",
                "--manifests",
                self.dir.path().to_str().unwrap(),
                "--flows",
                "-",
                "-o",
                "json",
            ],
            &flow.to_string(),
        );
        let lines = ran.lines();
        let verdict = lines.first().unwrap_or_else(|| panic!("{flow}: {}", ran.err))["verdict"].clone();
        let [a, b] = [src, dst].map(|it| self.address(it, src.contains("::") || dst.contains("::")));
        let passes = verdict == "allow";
        assert_eq!(
            self.judged(a, b, number, port, 0),
            passes,
            "reference and query: {flow}"
        );
        passes
    }

    /// Whether a flow passes, by the reference evaluator and compiled.
    fn judged(&self, a: IpAddr, b: IpAddr, number: u8, port: Option<u16>, source: u16) -> bool {
        let service = ringwall_evaluate::Service {
            protocol: number,
            port,
            source_port: matches!(number, 6 | 17 | 132).then_some(source),
        };
        let cluster = &self.loaded.cluster;
        let wanted = ringwall_evaluate::judge(
            cluster,
            &ringwall_evaluate::identify(cluster, a),
            &ringwall_evaluate::identify(cluster, b),
            service,
        );
        let compiled = self.snapshot.judge_ends(
            &self.snapshot.identify(Addr::from(a)),
            &self.snapshot.identify(Addr::from(b)),
            a == b,
            L4::of(number, port, source),
            NodeExemption::Trusted,
        );
        assert_eq!(
            compiled.ingress.allow && compiled.egress.allow,
            wanted.allow(),
            "compiled and reference: {a} -> {b} {number} {port:?}"
        );
        wanted.allow()
    }

    fn address(&self, name: &str, v6: bool) -> IpAddr {
        let Some((namespace, name)) = name.split_once('/') else {
            return name.parse().unwrap();
        };
        let key = ringwall_policy::ObjectKey {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
        };
        let addresses = &self.loaded.cluster.pods[&key].addresses;
        *addresses.iter().find(|it| it.is_ipv6() == v6).unwrap()
    }

    fn incomplete(&self) -> Vec<&str> {
        self.loaded
            .cluster
            .unevaluated_kinds
            .iter()
            .map(String::as_str)
            .collect()
    }
}

/// Egress to the nodes of a zone, before NetworkPolicies.
fn to_nodes(action: &str) -> Value {
    json!({"apiVersion": "policy.networking.k8s.io/v1alpha2", "kind": "ClusterNetworkPolicy", "metadata": {"name": "n"},
        "spec": {"tier": "Admin", "priority": 1, "subject": {"namespaces": {}},
            "egress": [{"action": action, "to": [{"nodes": {"matchLabels": {"zone": "a"}}}]}]}})
}

fn node(name: &str, zone: &str, addresses: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": {"zone": zone}},
        "status": {"addresses": addresses}})
}

#[test]
fn t22_t23_t24_nodes_peers_are_the_addresses_of_nodes_and_no_pods_on_them() {
    let on_n1 = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "own", "namespace": "shop"},
        "spec": {"nodeName": "n1"}, "status": {"podIPs": [{"ip": "10.0.0.9"}]}});
    let nodes = [
        node("n1", "a", json!([{"type": "InternalIP", "address": "192.0.2.1"}])),
        node(
            "n2",
            "a",
            json!([{"type": "Hostname", "address": "192.0.2.2"}, {"type": "Hostname", "address": "n2"}]),
        ),
        node("n3", "b", json!([{"type": "InternalIP", "address": "192.0.2.3"}])),
    ];
    let [n1, n2, n3] = ["192.0.2.1", "192.0.2.2", "192.0.2.3"];
    for (action, to_nodes_pass) in [("Deny", false), ("Accept", true)] {
        let mut objects = vec![to_nodes(action), on_n1.clone()];
        objects.extend(nodes.clone());
        // Without it, everything passes.
        let isolated = np("shop/isolated", json!({"types": ["Egress"], "egress": deny()}));
        objects.extend((action == "Accept").then_some(isolated));
        let others = action == "Deny";
        check(
            &objects,
            &[
                ("shop/own", n1, "80/TCP", to_nodes_pass),
                (WEB, n1, "80/TCP", to_nodes_pass),
                (WEB, n2, "ICMP", to_nodes_pass),
                (WEB, n3, "80/TCP", others),
                (WEB, "shop/own", "80/TCP", others),
                (WEB, OUT, "80/TCP", others),
                (n1, "shop/own", "80/TCP", true),
            ],
        );
    }
    // Of no node anything is known.
    let world = World::new(&[to_nodes("Deny")]);
    assert_eq!(
        world.incomplete(),
        ["nodes peers of ClusterNetworkPolicy.policy.networking.k8s.io"]
    );
    assert!(!world.passes(WEB, OUT, "80/TCP"));
}

/// Whether each flow passes.
#[track_caller]
fn check(objects: &[Value], flows: &[(&str, &str, &str, bool)]) {
    let world = World::new(objects);
    assert_eq!(world.incomplete(), [""; 0]);
    for (src, dst, service, passes) in flows {
        assert_eq!(
            world.passes(src, dst, service),
            *passes,
            "{src} -> {dst} {service}"
        );
    }
}

const WEB: &str = "shop/web";
const DB: &str = "shop/db";
const X: &str = "other/x";
const OUT: &str = "203.0.113.9";

fn allow() -> Value {
    json!([{"action": "Allow"}])
}

fn deny() -> Value {
    json!([{"action": "Deny"}])
}

fn from(source: Value) -> Value {
    json!([{"action": "Allow", "source": source}])
}

#[test]
fn t37_a_tier_without_order_stands_at_the_default_tier_by_name() {
    for (name, denied) in [("app", true), ("zone", false)] {
        let objects = [
            tier(name, json!({})),
            gnp("p", json!({"tier": name, "ingress": deny()})),
            kubernetes("k", json!([{}])),
        ];
        check(&objects, &[(X, DB, "80/TCP", !denied)]);
    }
}

#[test]
fn t38_t39_staged_policies_do_not_make_a_tier_apply() {
    let staged = object(
        "StagedGlobalNetworkPolicy",
        "s",
        json!({"tier": "t", "ingress": allow()}),
    );
    check(
        &[tier("t", json!({"order": 1})), staged.clone()],
        &[(X, DB, "80/TCP", true)],
    );
    let none = gnp(
        "p",
        json!({"tier": "t", "ingress": [{"action": "Allow", "protocol": "UDP"}]}),
    );
    check(
        &[tier("t", json!({"order": 1})), staged, none],
        &[(X, DB, "80/TCP", false)],
    );
}

#[test]
fn t40_a_tier_counts_by_direction() {
    let objects = [
        tier("t", json!({"order": 1})),
        gnp(
            "p",
            json!({"tier": "t", "types": ["Ingress"], "selector": "role == 'db'"}),
        ),
    ];
    check(&objects, &[(DB, X, "80/TCP", true), (X, DB, "80/TCP", false)]);
}

#[test]
fn t41_a_policy_that_logs_alone_isolates() {
    check(
        &[gnp("p", json!({"ingress": [{"action": "Log"}]}))],
        &[(X, DB, "80/TCP", false)],
    );
}

#[test]
fn t42_what_the_last_tier_passes_is_allowed_to_pods() {
    check(
        &[gnp("p", json!({"ingress": [{"action": "Pass"}]}))],
        &[(X, DB, "80/TCP", true)],
    );
}

#[test]
fn t43_a_tier_that_does_not_exist_is_the_last_and_denies() {
    let nope = gnp(
        "p",
        json!({"tier": "nope", "ingress": from(json!({"selector": "role == 'web'"}))}),
    );
    check(
        std::slice::from_ref(&nope),
        &[(X, DB, "80/TCP", true), (OUT, DB, "80/TCP", false)],
    );
    let zone = [
        nope,
        tier("zone", json!({"order": 1e9})),
        gnp("q", json!({"tier": "zone", "ingress": deny()})),
    ];
    check(&zone, &[(X, DB, "80/TCP", false)]);
}

#[test]
fn t44_t45_policies_of_the_default_tier_stand_around_networkpolicies() {
    check(
        &[
            gnp("p", json!({"ingress": from(json!({"nets": ["203.0.113.0/24"]}))})),
            kubernetes("k", json!([])),
        ],
        &[(OUT, DB, "80/TCP", true), (X, DB, "80/TCP", false)],
    );
    let deny = gnp("p", json!({"order": 999, "ingress": deny()}));
    check(&[deny, kubernetes("k", json!([{}]))], &[(X, DB, "80/TCP", false)]);
}

#[test]
fn t46_at_one_order_names_decide() {
    let port = |number: u16| json!([{"ports": [{"port": number}]}]);
    let objects = [
        gnp("m", json!({"order": 1000, "ingress": deny()})),
        kubernetes("a", port(80)),
        kubernetes("z", port(81)),
    ];
    check(&objects, &[(X, DB, "80/TCP", true), (X, DB, "81/TCP", false)]);
}

#[test]
fn t47_what_the_default_tier_passes_goes_to_baseline() {
    let objects = [
        gnp("p", json!({"order": 1, "ingress": [{"action": "Pass"}]})),
        kubernetes("k", json!([{}])),
        cluster_policy("Baseline", 1, "Deny"),
    ];
    check(&objects, &[(X, DB, "80/TCP", false)]);
}

#[test]
fn t48_policies_may_stand_before_those_of_the_cluster() {
    let objects = [
        gnp(
            "p",
            json!({"tier": "kube-admin", "order": 0.5, "ingress": deny()}),
        ),
        cluster_policy("Admin", 1, "Accept"),
    ];
    check(&objects, &[(X, DB, "80/TCP", false)]);
}

#[test]
fn t49_notselector_of_a_networkpolicy_is_of_its_namespace() {
    check(
        &[np(
            "shop/p",
            json!({"ingress": from(json!({"notSelector": "has(y)"}))}),
        )],
        &[
            (OUT, DB, "80/TCP", false),
            (WEB, DB, "80/TCP", true),
            (X, DB, "80/TCP", false),
        ],
    );
}

#[test]
fn t50_t53_sets_are_what_selectors_say_of_them() {
    let all = set("g", json!({}), json!(["0.0.0.0/0"]));
    let rule = |source: Value| {
        gnp(
            "p",
            json!({"selector": "role == 'db'", "types": ["Ingress"], "ingress": from(source)}),
        )
    };
    check(
        &[all.clone(), rule(json!({"selector": "!has(x)"}))],
        &[(OUT, DB, "80/TCP", true), ("2001:db8::9", DB, "80/TCP", false)],
    );
    check(
        &[all.clone(), rule(json!({"namespaceSelector": "team != \"a\""}))],
        &[(OUT, DB, "80/TCP", true)],
    );
    check(
        &[all, rule(json!({"namespaceSelector": "all()"}))],
        &[(OUT, DB, "80/TCP", false), (X, DB, "80/TCP", true)],
    );
}

#[test]
fn t51_t52_addresses_match_by_any_object() {
    let to = |destination: Value| {
        let rules = json!([{"action": "Allow", "destination": destination}]);
        gnp(
            "p",
            json!({"selector": "role == 'web'", "types": ["Egress"], "egress": rules}),
        )
    };
    let db = |labels: Value| set("g", labels, json!(["10.0.0.2"]));
    check(
        &[
            db(json!({"role": "db", "y": "1"})),
            to(json!({"selector": "role == 'db'", "notSelector": "has(y)"})),
        ],
        &[(WEB, DB, "80/TCP", true)],
    );
    check(
        &[
            db(json!({"role": "db"})),
            to(json!({"selector": "role == 'db' && !has(x)"})),
        ],
        &[(WEB, DB, "80/TCP", true)],
    );
    check(
        &[to(json!({"selector": "role == 'db' && !has(x)"}))],
        &[(WEB, DB, "80/TCP", false)],
    );
}

#[test]
fn t55_a_pod_s_label_does_not_claim_its_namespace_s() {
    check(
        &[gnp(
            "p",
            json!({"selector": "role == 'db'", "types": ["Ingress"], "ingress": from(json!({"selector": "pcns.team == 'admin'"}))}),
        )],
        &[(WEB, DB, "80/TCP", false)],
    );
}

#[test]
fn t57_sets_of_a_namespace_are_no_peers_of_cluster_policies() {
    let mut set = object("NetworkSet", "other/s", json!({"nets": ["203.0.113.0/24"]}));
    set["metadata"]["labels"] = json!({"role": "web"});
    check(
        &[set, cluster_policy("Admin", 1, "Deny")],
        &[(OUT, DB, "80/TCP", true), (X, DB, "80/TCP", false)],
    );
}

#[test]
fn t58_notnets_are_for_their_version_of_ip() {
    let objects = [gnp(
        "p",
        json!({"selector": "role == 'db'", "ingress": from(json!({"notNets": ["10.0.0.0/8"]}))}),
    )];
    check(
        &objects,
        &[
            (OUT, DB, "80/TCP", true),
            (WEB, DB, "80/TCP", false),
            ("2001:db8::9", DB, "80/TCP", false),
        ],
    );
}

#[test]
fn t60_t62_services_are_their_endpoints() {
    let service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "s", "namespace": "shop"},
        "spec": {"clusterIP": "172.20.0.1", "selector": {"role": "db"}, "ports": [{"port": 80, "targetPort": "sql"}]}});
    let slice = json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "ports": [{"port": 5432}],
        "metadata": {"name": "s1", "namespace": "shop", "labels": {"kubernetes.io/service-name": "s"}},
        "endpoints": [{"addresses": ["10.0.0.2"], "conditions": {"ready": false}}]});
    let policy = np(
        "shop/p",
        json!({"selector": "role == 'web'", "egress": [{"action": "Allow", "destination": {"services": {"name": "s"}}}]}),
    );
    let flows = [
        (WEB, DB, "5432/TCP", true),
        (WEB, DB, "80/TCP", false),
        // The Service's own address is none of them.
        (WEB, "172.20.0.1", "5432/TCP", false),
        (WEB, X, "5432/TCP", false),
    ];
    check(&[service.clone(), policy.clone()], &flows);
    check(&[service, slice, policy], &flows);
}

/// Each endpoint of a service has the ports of the slice that lists it.
#[test]
fn t99_4_endpoints_of_a_service_may_have_different_ports() {
    let slice = |name: &str, ports: Value, address: &str| {
        json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "ports": ports,
            "metadata": {"name": name, "namespace": "shop", "labels": {"kubernetes.io/service-name": "s"}},
            "endpoints": [{"addresses": [address]}]})
    };
    let slices = [
        slice("s1", json!([{"port": 5432}]), "10.0.0.2"),
        slice(
            "s2",
            json!([{"port": 80}, {"port": 53, "protocol": "UDP"}]),
            "10.0.1.1",
        ),
        slice("s3", json!([{"port": 80}]), OUT),
    ];
    let policy = |action: &str| {
        let rules = json!([{"action": "Allow", "destination": {"nets": ["10.0.1.1/32"], "ports": [7]}, "protocol": "TCP"},
            {"action": action, "destination": {"services": {"name": "s"}}}, {"action": if action == "Allow" { "Deny" } else { "Allow" }}]);
        np("shop/p", json!({"selector": "role == 'web'", "egress": rules}))
    };
    for (action, passes) in [("Allow", true), ("Deny", false)] {
        let objects = [&slices[..], &[policy(action)]].concat();
        check(
            &objects,
            &[
                (WEB, DB, "5432/TCP", passes),
                (WEB, DB, "80/TCP", !passes),
                (WEB, X, "80/TCP", passes),
                (WEB, X, "53/UDP", passes),
                (WEB, X, "5432/TCP", !passes),
                (WEB, OUT, "80/TCP", passes),
                (WEB, OUT, "53/UDP", !passes),
                (WEB, X, "7/TCP", true),
            ],
        );
        // One rule of the object, whichever of its alternatives matches.
        let world = World::new(&objects);
        let folder = world.dir.path().to_str().unwrap();
        for (to, port) in [(DB, 5432), (OUT, 80)] {
            let flow = json!({"src": WEB, "dst": to, "protocol": "TCP", "dst_port": port}).to_string();
            let args = ["query", "--manifests", folder, "--flows", "-", "-o", "json"];
            let answer = ran::ringwall_reading(&args, &flow).lines()[0].clone();
            let egress = answer["reasons"].as_array().unwrap().iter();
            let mut egress = egress.filter(|reason| reason["direction"] == "egress");
            assert_eq!(egress.next().unwrap()["rule"], 1, "{answer}");
            let args = [
                "explain",
                "--manifests",
                folder,
                WEB,
                to,
                &format!("{port}/TCP"),
                "-o",
                "json",
            ];
            let explained = ran::ringwall(&args).lines()[0].clone();
            let rules = explained["egress"]["policies"][0]["rules"]
                .as_array()
                .unwrap()
                .clone();
            let deciding: Vec<&Value> = rules.iter().filter(|rule| rule["decides"] == true).collect();
            assert_eq!(deciding.len(), 1, "{explained}");
            assert_eq!(
                [&deciding[0]["rule"], &deciding[0]["matches"]],
                [&json!(1), &json!(true)]
            );
        }
    }
}

#[test]
fn t64_t99_7_names_of_ports_are_those_of_endpoints_beside_network_sets() {
    let to = |more: Value| {
        let mut destination = json!({"selector": "role == 'db'"});
        destination
            .as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        let rules = json!([{"action": "Allow", "protocol": "TCP", "destination": destination}]);
        let host = json!({"apiVersion": "projectcalico.org/v3", "kind": "HostEndpoint",
            "metadata": {"name": "h", "labels": {"role": "db"}},
            "spec": {"node": "n", "expectedIPs": ["192.0.2.77"], "profiles": ["projectcalico-default-allow"],
                "ports": [{"name": "sql", "port": 3306, "protocol": "TCP"}]}});
        [
            gnp(
                "p",
                json!({"selector": "role == 'web'", "types": ["Egress"], "egress": rules}),
            ),
            // It holds a pod, too: X has no such label itself.
            set("s", json!({"role": "db"}), json!(["192.0.2.0/26", "10.0.1.1/32"])),
            host,
        ]
    };
    check(
        &to(json!({"ports": ["sql", 80]})),
        &[
            (WEB, DB, "5432/TCP", true),
            (WEB, DB, "80/TCP", true),
            (WEB, DB, "81/TCP", false),
            (WEB, "192.0.2.1", "80/TCP", true),
            (WEB, "192.0.2.1", "5432/TCP", false),
            (WEB, X, "80/TCP", true),
            (WEB, X, "5432/TCP", false),
            (WEB, "192.0.2.77", "3306/TCP", true),
            (WEB, "192.0.2.77", "80/TCP", true),
            (WEB, "192.0.2.77", "5432/TCP", false),
            (WEB, "192.0.2.78", "80/TCP", false),
        ],
    );
    check(
        &to(json!({"notPorts": ["sql", 80]})),
        &[
            (WEB, DB, "5432/TCP", false),
            (WEB, DB, "80/TCP", false),
            (WEB, DB, "81/TCP", true),
            (WEB, "192.0.2.1", "80/TCP", false),
            (WEB, "192.0.2.1", "5432/TCP", true),
            (WEB, X, "5432/TCP", true),
            (WEB, "192.0.2.77", "3306/TCP", false),
            (WEB, "192.0.2.77", "5432/TCP", true),
            (WEB, "192.0.2.78", "5432/TCP", false),
        ],
    );
    // A set that holds the pod does not take its port's name away.
    let over_db = set("over", json!({"role": "db"}), json!(["10.0.0.0/24"]));
    let objects = [&to(json!({"notPorts": ["sql"]}))[..], &[over_db]].concat();
    check(
        &objects,
        &[(WEB, DB, "5432/TCP", false), (WEB, DB, "5433/TCP", true)],
    );
}

#[test]
fn t96_4_a_pod_that_shares_its_address_with_a_host_endpoint_has_the_names_of_both() {
    let to = |destination: Value| {
        let rules = json!([{"action": "Allow", "protocol": "TCP", "destination": destination}]);
        let host = json!({"apiVersion": "projectcalico.org/v3", "kind": "HostEndpoint",
            "metadata": {"name": "h", "labels": {"role": "db"}},
            "spec": {"node": "n", "expectedIPs": ["10.0.0.2"], "profiles": ["projectcalico-default-allow"],
                "ports": [{"name": "sql", "port": 3306, "protocol": "TCP"}, {"name": "dns", "port": 5353, "protocol": "TCP"}]}});
        [
            gnp(
                "p",
                json!({"selector": "role == 'web'", "types": ["Egress"], "egress": rules}),
            ),
            host,
        ]
    };
    for selector in ["role == 'db'", ""] {
        check(
            &to(json!({"selector": selector, "ports": ["sql"]})),
            &[
                (WEB, DB, "5432/TCP", true),
                (WEB, DB, "3306/TCP", true),
                (WEB, DB, "80/TCP", false),
            ],
        );
        check(
            &to(json!({"selector": selector, "notPorts": ["sql"]})),
            &[
                (WEB, DB, "5432/TCP", false),
                (WEB, DB, "3306/TCP", false),
                (WEB, DB, "80/TCP", true),
            ],
        );
        check(
            &to(json!({"selector": selector, "ports": ["sql", "1:6000"], "notPorts": ["dns"]})),
            &[
                (WEB, DB, "5432/TCP", true),
                (WEB, DB, "3306/TCP", true),
                (WEB, DB, "53/TCP", false),
                (WEB, DB, "5353/TCP", false),
                (WEB, DB, "6001/TCP", false),
            ],
        );
    }
    // The pod's names are not its own where the selector is not for it (99.7).
    check(
        &to(json!({"selector": "role == 'db' && !has(x)", "notPorts": ["sql"]})),
        &[(WEB, DB, "5432/TCP", true), (WEB, DB, "3306/TCP", false)],
    );
}

#[test]
fn t63_a_named_port_without_protocol_is_of_any() {
    check(
        &[np(
            "shop/p",
            json!({"selector": "role == 'db'", "ingress": [{"action": "Allow", "destination": {"ports": ["dns"]}}]}),
        )],
        &[
            (X, DB, "53/UDP", true),
            (X, DB, "53/TCP", true),
            (X, DB, "5432/TCP", false),
        ],
    );
}

#[test]
fn t66_t67_icmp_by_name_and_number() {
    let icmp = |protocol: Value| {
        [np(
            "shop/p",
            json!({"selector": "role == 'db'", "ingress": [{"action": "Allow", "protocol": protocol}]}),
        )]
    };
    check(
        &icmp(json!("ICMP")),
        &[
            (OUT, DB, "ICMP", true),
            ("2001:db8::9", DB, "ICMPv6", false),
            ("2001:db8::9", DB, "1", false),
        ],
    );
    check(
        &icmp(json!(1)),
        &[
            (OUT, DB, "ICMP", true),
            ("2001:db8::9", DB, "1", true),
            (OUT, DB, "80/TCP", false),
        ],
    );
}

#[test]
fn flows_without_a_source_port_depend_on_it_where_rules_do() {
    let from = np(
        "shop/p",
        json!({"selector": "role == 'db'", "ingress": [{"action": "Allow", "protocol": "TCP",
            "source": {"ports": ["1024:65535"]}, "destination": {"ports": [5432]}}]}),
    );
    let world = World::new(&[from]);
    let folder = world.dir.path().to_str().unwrap();
    let query = |port: u16, more: &str| {
        let flow =
            format!("{{\"src\":\"{OUT}\",\"dst\":\"{DB}\",\"protocol\":\"TCP\",\"dst_port\":{port}{more}}}");
        let args = ["query", "--manifests", folder, "--flows", "-", "-o", "json"];
        let answer = ran::ringwall_reading(&args, &flow).lines()[0].clone();
        (answer["verdict"].clone(), answer["depends_on"].clone())
    };
    assert_eq!(query(5432, ",\"src_port\":1024"), (json!("allow"), Value::Null));
    assert_eq!(query(5432, ",\"src_port\":1023"), (json!("deny"), Value::Null));
    assert_eq!(query(5432, ""), (json!("depends"), json!(["src_port"])));
    assert_eq!(query(5433, ""), (json!("deny"), Value::Null));
    let explain = |service: &str, more: &[&str]| {
        let mut args = vec!["explain", "--manifests", folder, OUT, DB, service];
        args.extend(more);
        ran::ringwall_reading(&args, "")
    };
    let explained = explain("5432/TCP", &["--source-port", "40000"]);
    assert!(
        explained
            .out
            .lines()
            .next()
            .unwrap_or_default()
            .ends_with(": allow"),
        "{}{}",
        explained.out,
        explained.err
    );
    let explained = explain("5432/TCP from 53", &[]);
    assert!(
        explained
            .out
            .lines()
            .next()
            .unwrap_or_default()
            .ends_with(": DENY"),
        "{}{}",
        explained.out,
        explained.err
    );
    assert!(
        explained.out.contains("from port 1024-65535"),
        "{}",
        explained.out
    );
    assert!(
        explained.out.contains("the flow is from port 53"),
        "{}",
        explained.out
    );
    let asked = explain("5432/TCP", &[]);
    assert_ne!(asked.status, 0);
    assert!(
        asked.err.contains("rules tell source ports apart"),
        "{}",
        asked.err
    );
    assert!(
        explain("5433/TCP", &[])
            .out
            .lines()
            .next()
            .unwrap_or_default()
            .ends_with(": DENY")
    );
}

#[test]
fn comparisons_matrices_and_assertions_tell_source_ports_apart() {
    let from = |ports: &str| {
        World::new(&[np(
            "shop/p",
            json!({"selector": "role == 'db'", "ingress": [{"action": "Allow", "protocol": "TCP",
                "source": {"ports": [ports]}, "destination": {"ports": [5432]}}]}),
        )])
    };
    let (before, after) = (from("1024:65535"), from("1024:2047"));
    let [before, after] = [&before, &after].map(|world| world.dir.path().to_str().unwrap());
    let lines = ran::ringwall(&["matrix", "--manifests", before, "-o", "json"]).lines();
    let to_db = lines
        .iter()
        .find(|line| line["src"] == "other/x" && line["dst"] == "shop/db")
        .unwrap();
    assert_eq!(to_db["allowed"], json!(["5432/TCP from 1024-65535"]), "{to_db}");
    assert!(to_db.get("incomplete").is_none(), "{to_db}");
    for (port, verdict) in [
        ("5432/TCP", "partial"),
        ("5432/TCP from 1024", "allow"),
        ("5432/TCP from 80", "deny"),
    ] {
        let lines = ran::ringwall(&["matrix", "--manifests", before, "--port", port, "-o", "json"]).lines();
        let mut lines = lines.iter();
        let to_db = lines.find(|line| line["src"] == "other/x" && line["dst"] == "shop/db");
        assert_eq!(to_db.unwrap()["verdict"], verdict, "{port}");
    }

    let diff = ["diff", "--from", before, "--to", after];
    let regions = ran::ringwall(&[&diff[..], &["-o", "json"]].concat()).lines();
    let [region] = &regions[..] else {
        panic!("{regions:#?}");
    };
    assert_eq!(
        [
            &region["ports"],
            &region["src_ports"],
            &region["from"],
            &region["to"]
        ],
        [
            &json!([[5432, 5432]]),
            &json!([[2048, 65535]]),
            &json!("allow"),
            &json!("deny")
        ]
    );
    let words = ran::ringwall(&diff).out;
    assert!(words.contains("5432/TCP from 2048-65535"), "{words}");

    let flow = |more: &str| {
        format!("{{\"src\":\"{OUT}\",\"dst\":\"{DB}\",\"protocol\":\"TCP\",\"dst_port\":5432{more}}}\n")
    };
    let flows = [
        ",\"src_port\":3000",
        ",\"src_port\":4000",
        ",\"src_port\":1500",
        "",
    ]
    .map(flow);
    let recorded = [&diff[..], &["--flows", "-", "-o", "json"]].concat();
    let lines = ran::ringwall_reading(&recorded, &flows.concat()).lines();
    let about = |flows: u64, src_ports: Value| {
        let mut lines = lines.iter();
        lines.find(|line| line["flows"] == flows && line["src_ports"] == src_ports)
    };
    assert_eq!(
        about(2, json!([[2048, 65535]])).unwrap()["to"],
        "deny",
        "{lines:#?}"
    );
    let unmatched = about(1, Value::Null).unwrap();
    assert!(
        unmatched["unmatched"]
            .as_str()
            .unwrap()
            .contains("record src_port"),
        "{unmatched}"
    );
    assert_eq!(about(1, json!([[1024, 2047]])), None, "it stays");

    let intents = |claim: &str| {
        let file = tempfile::NamedTempFile::new().unwrap();
        let text = json!({"apiVersion": "ringwall.io/v1alpha1", "kind": "Intents", "assertions": [{"name": "a",
            claim: {"from": [{"outside": true}], "to": [{"pod": "shop/db"}], "ports": ["5432/TCP"]}}]});
        std::fs::write(file.path(), text.to_string()).unwrap();
        let path = file.path().to_str().unwrap();
        let args = ["check", "--manifests", after, "--intents", path, "-o", "json"];
        let lines = ran::ringwall(&args).lines();
        lines.into_iter().find(|line| line["intent"] == "a").unwrap()
    };
    // Neither from every source port nor from none.
    for (claim, source, verdict) in [("allow", 0, "deny"), ("deny", 1024, "allow")] {
        let line = intents(claim);
        assert_eq!(line["ok"], false, "{line}");
        let example = &line["counterexample"];
        assert_eq!(
            [&example["src_port"], &example["verdict"]],
            [&json!(source), &json!(verdict)]
        );
    }
}

#[test]
fn flows_of_icmp_without_a_type_depend_on_it_where_rules_do() {
    let ping = np(
        "shop/p",
        json!({"selector": "role == 'db'", "ingress": [{"action": "Allow", "protocol": "ICMP", "icmp": {"type": 8}}]}),
    );
    let world = World::new(&[ping]);
    let query = |more: &str| {
        let flow = format!("{{\"src\":\"{OUT}\",\"dst\":\"{DB}\",\"protocol\":\"ICMP\"{more}}}");
        let folder = world.dir.path().to_str().unwrap();
        let args = ["query", "--manifests", folder, "--flows", "-", "-o", "json"];
        ran::ringwall_reading(&args, &flow).lines()[0].clone()
    };
    let verdicts = |answer: &Value| (answer["verdict"].clone(), answer["ingress"].clone());
    assert_eq!(
        verdicts(&query(",\"icmp_type\":8")),
        (json!("allow"), json!("allow"))
    );
    assert_eq!(
        verdicts(&query(",\"icmp_type\":13")),
        (json!("deny"), json!("deny"))
    );
    let answer = query("");
    assert_eq!(verdicts(&answer), (json!("depends"), json!("depends")));
    assert_eq!(answer["depends_on"], json!(["icmp_type"]));
    assert_eq!(answer["egress"], json!("allow"));
    let rule = json!({"direction": "ingress", "tier": "default", "kind": "NetworkPolicy.projectcalico.org", "policy": "shop/p", "rule": 0,
        "effect": "depends"});
    assert!(answer["reasons"].as_array().unwrap().contains(&rule), "{answer}");
    let explain = |service: &str| {
        let folder = world.dir.path().to_str().unwrap();
        ran::ringwall_reading(&["explain", "--manifests", folder, OUT, DB, service], "")
    };
    assert!(
        explain("8/ICMP")
            .out
            .lines()
            .next()
            .unwrap_or_default()
            .ends_with(": allow"),
        "{}",
        explain("8/ICMP").out
    );
    assert!(
        explain("13:2/ICMP")
            .out
            .lines()
            .next()
            .unwrap_or_default()
            .ends_with(": DENY"),
        "{}",
        explain("13:2/ICMP").out
    );
    let asked = explain("ICMP");
    assert_ne!(asked.status, 0);
    assert!(
        asked
            .err
            .contains("rules tell types of ICMP apart: ask for one, such as 8/ICMP"),
        "{}",
        asked.err
    );
}

#[test]
fn t68_http_matches_every_connection_and_is_incomplete() {
    let world = World::new(&[np(
        "shop/p",
        json!({"ingress": [{"action": "Allow", "http": {"methods": ["GET"]}}]}),
    )]);
    assert!(world.passes(X, DB, "443/TCP"));
    assert_eq!(world.incomplete(), ["http of NetworkPolicy.projectcalico.org"]);
}

#[test]
fn t69_policies_of_hosts_leave_pods_alone() {
    let world = World::new(&[gnp(
        "p",
        json!({"doNotTrack": true, "applyOnForward": true, "ingress": deny()}),
    )]);
    assert!(world.passes(X, DB, "80/TCP"));
    assert_eq!(
        world.incomplete(),
        ["doNotTrack GlobalNetworkPolicy.projectcalico.org"]
    );
}

#[test]
fn t71_accounts_are_of_any_namespace_in_a_globalnetworkpolicy() {
    let names = json!({"serviceAccounts": {"names": ["s"]}});
    let objects = [gnp(
        "p",
        json!({"selector": "role == 'db'", "ingress": from(names.clone())}),
    )];
    check(
        &objects,
        &[
            (WEB, DB, "80/TCP", true),
            (X, DB, "80/TCP", true),
            (OUT, DB, "80/TCP", false),
        ],
    );
    check(
        &[np(
            "shop/p",
            json!({"selector": "role == 'db'", "ingress": from(names)}),
        )],
        &[(WEB, DB, "80/TCP", true), (X, DB, "80/TCP", false)],
    );
    let labels = json!({"serviceAccounts": {"selector": "tier == 'front'"}});
    check(
        &[gnp(
            "p",
            json!({"selector": "role == 'db'", "ingress": from(labels)}),
        )],
        &[(WEB, DB, "80/TCP", true), (X, DB, "80/TCP", false)],
    );
    check(
        &[gnp(
            "p",
            json!({"serviceAccountSelector": "has(tier)", "ingress": deny()}),
        )],
        &[(X, WEB, "80/TCP", false), (X, DB, "80/TCP", true)],
    );
}

#[test]
fn t76_tunnels_of_a_pod_are_judged_as_anything_else() {
    check(
        &[gnp("p", json!({"egress": allow()}))],
        &[(WEB, OUT, "4789/UDP", true)],
    );
}

#[test]
fn notports_leave_the_rest() {
    let rule = |rule: Value| {
        let mut rule = rule;
        rule["action"] = json!("Allow");
        [np(
            "shop/p",
            json!({"selector": "role == 'db'", "ingress": [rule]}),
        )]
    };
    check(
        &rule(json!({"protocol": "TCP", "destination": {"notPorts": [80, "8000:9000"]}})),
        &[
            (X, DB, "80/TCP", false),
            (X, DB, "79/TCP", true),
            (X, DB, "0/TCP", true),
            (X, DB, "65535/TCP", true),
            (X, DB, "8500/TCP", false),
            (X, DB, "1/UDP", false),
        ],
    );
}

#[test]
fn a_protocol_that_is_not_itself_matches_nothing() {
    let rule = |rule: Value| {
        let mut rule = rule;
        rule["action"] = json!("Allow");
        [np(
            "shop/p",
            json!({"selector": "role == 'db'", "ingress": [rule]}),
        )]
    };
    check(
        &rule(json!({"protocol": "TCP", "notProtocol": "TCP"})),
        &[(X, DB, "80/TCP", false), (X, DB, "80/UDP", false)],
    );
}

#[test]
fn labels_are_compared_by_parts() {
    let objects = |selector: &str| {
        [np(
            "other/p",
            json!({"ingress": from(json!({"selector": selector, "namespaceSelector": "all()"}))}),
        )]
    };
    check(
        &objects("role contains 'e'"),
        &[(WEB, X, "80/TCP", true), (DB, X, "80/TCP", false)],
    );
    check(
        &objects("!role starts with 'w'"),
        &[(WEB, X, "80/TCP", false), (DB, X, "80/TCP", true)],
    );
    check(
        &objects("role ends with 'b' && !has(x)"),
        &[(WEB, X, "80/TCP", true), (DB, X, "80/TCP", false)],
    );
}

#[test]
fn what_is_not_understood_fails_closed() {
    let rule = |action: &str| json!({"action": action, "source": {"nets": ["10.0.0.0/33"]}});
    for (rules, passes) in [
        (json!([rule("Allow")]), false),
        (json!([rule("Deny"), {"action": "Allow"}]), false),
        (json!([rule("Pass"), {"action": "Allow"}]), false),
        (json!([rule("Log"), {"action": "Allow"}]), true),
    ] {
        let world = World::new(&[np("shop/p", json!({"ingress": rules}))]);
        assert_eq!(world.passes(X, DB, "80/TCP"), passes, "{rules}");
        let policies = world.loaded.cluster.tiered.values();
        assert_eq!(policies.map(|policy| policy.faults.len()).sum::<usize>(), 1);
    }
}

/// A rule of ingress of the pods with `role: db`, as a policy of the whole cluster.
fn to_db(rule: Value) -> Vec<Value> {
    let mut rule = rule;
    rule["action"] = json!("Allow");
    vec![gnp(
        "p",
        json!({"selector": "role == 'db'", "types": ["Ingress"], "ingress": [rule]}),
    )]
}

#[test]
fn t49_notselector_of_a_globalnetworkpolicy_is_for_every_address_without_such_an_object() {
    let mut objects = to_db(json!({"source": {"notSelector": "role == 'web' || has(x)"}}));
    check(
        &objects,
        &[
            (OUT, DB, "80/TCP", true),
            ("2001:db8::9", DB, "80/TCP", true),
            (WEB, DB, "80/TCP", false),
            (X, DB, "80/TCP", false),
        ],
    );
    // An object of several at an address is enough.
    objects.push(set("g", json!({"x": "1"}), json!(["203.0.113.0/24"])));
    check(
        &objects,
        &[(OUT, DB, "80/TCP", false), ("198.51.100.1", DB, "80/TCP", true)],
    );
    let web = |source: Value| {
        let rules = json!([{"action": "Deny", "source": source}, {"action": "Allow"}]);
        [gnp("p", json!({"selector": "role == 'db'", "ingress": rules}))]
    };
    check(
        &web(json!({"notSelector": "role == 'web'"})),
        &[(OUT, DB, "80/TCP", false), (WEB, DB, "80/TCP", true)],
    );
}

#[test]
fn t99_what_a_side_says_has_to_hold_at_once() {
    let selector = json!({"selector": "role == 'web'", "nets": ["10.0.0.0/24", "203.0.113.0/24"]});
    check(
        &to_db(json!({"source": selector})),
        &[
            (WEB, DB, "80/TCP", true),
            (X, DB, "80/TCP", false),
            (OUT, DB, "80/TCP", false),
            ("fd00::1", DB, "80/TCP", false),
        ],
    );
    check(
        &to_db(json!({"source": {"namespaceSelector": "has(team)", "notNets": ["10.0.0.0/24"]}})),
        &[
            (WEB, DB, "80/TCP", false),
            (X, DB, "80/TCP", true),
            ("fd00::1:1", DB, "80/TCP", false),
        ],
    );
    check(
        &to_db(
            json!({"source": {"notSelector": "role == 'web'", "nets": ["10.0.0.0/8", "203.0.113.0/24"],
            "notNets": ["203.0.113.8/30"]}}),
        ),
        &[
            (WEB, DB, "80/TCP", false),
            ("203.0.113.1", DB, "80/TCP", true),
            (OUT, DB, "80/TCP", false),
            ("198.51.100.1", DB, "80/TCP", false),
        ],
    );
    check(
        &to_db(
            json!({"source": {"serviceAccounts": {"names": ["s"]}, "namespaceSelector": "team == 'b'",
            "selector": "role == 'web'"}}),
        ),
        &[(WEB, DB, "80/TCP", false), (X, DB, "80/TCP", true)],
    );
    // A set and a block hold an address together.
    let mut objects = to_db(json!({"source": {"selector": "has(y)", "nets": ["203.0.113.0/24"]}}));
    objects.push(set(
        "g",
        json!({"y": "1"}),
        json!(["203.0.113.0/28", "198.51.100.0/24"]),
    ));
    check(
        &objects,
        &[
            (OUT, DB, "80/TCP", true),
            ("203.0.113.99", DB, "80/TCP", false),
            ("198.51.100.1", DB, "80/TCP", false),
        ],
    );
}

#[test]
fn t66_t67_icmp_beside_a_selector_is_of_its_version() {
    let icmp =
        |protocol: Value| to_db(json!({"protocol": protocol, "source": {"selector": "role == 'web'"}}));
    check(
        &icmp(json!("ICMP")),
        &[
            (WEB, DB, "ICMP", true),
            (OUT, DB, "ICMP", false),
            ("fd00::1", "fd00::2", "1", false),
            ("fd00::1", "fd00::2", "ICMPv6", false),
        ],
    );
    check(
        &icmp(json!(1)),
        &[(WEB, DB, "ICMP", true), ("fd00::1", "fd00::2", "1", true)],
    );
    let v6 = to_db(json!({"ipVersion": 6, "source": {"selector": "role == 'web'"}}));
    check(
        &v6,
        &[(WEB, DB, "80/TCP", false), ("fd00::1", "fd00::2", "80/TCP", true)],
    );
}

#[test]
fn t99_8_every_protocol_but_one() {
    check(
        &to_db(json!({"notProtocol": "TCP"})),
        &[
            (X, DB, "80/TCP", false),
            (X, DB, "0/TCP", false),
            (X, DB, "80/UDP", true),
            (X, DB, "ICMP", true),
            (X, DB, "47", true),
        ],
    );
    check(
        &to_db(json!({"notProtocol": "UDPLite"})),
        &[
            (X, DB, "80/TCP", true),
            (X, DB, "136", false),
            (X, DB, "47", true),
        ],
    );
    check(
        &to_db(json!({"notProtocol": "ICMP"})),
        &[(X, DB, "ICMP", false), (X, DB, "80/UDP", true)],
    );
    check(
        &to_db(json!({"notProtocol": "TCP", "destination": {"ports": ["dns"]}})),
        &[(X, DB, "53/TCP", false), (X, DB, "53/UDP", true)],
    );
}

#[test]
fn t64_notports_with_a_name_match_whoever_does_not_have_it() {
    let not = |ports: Value| {
        let rules = json!([{"action": "Allow", "protocol": "TCP", "destination": {"notPorts": ports}}]);
        [np(
            "shop/p",
            json!({"selector": "role == 'web'", "egress": rules}),
        )]
    };
    check(
        &not(json!(["dns"])),
        &[
            (WEB, OUT, "53/TCP", true),
            (WEB, X, "53/TCP", true),
            (WEB, DB, "53/TCP", false),
            (WEB, DB, "5432/TCP", true),
            (WEB, OUT, "53/UDP", false),
        ],
    );
    check(
        &not(json!(["dns", 80])),
        &[
            (WEB, OUT, "80/TCP", false),
            (WEB, DB, "53/TCP", false),
            (WEB, DB, "81/TCP", true),
        ],
    );
    let both =
        json!({"protocol": "TCP", "destination": {"ports": ["sql", "1:100"], "notPorts": ["dns", 80]}});
    check(
        &to_db(both),
        &[
            (X, DB, "5432/TCP", true),
            (X, DB, "53/TCP", false),
            (X, DB, "80/TCP", false),
            (X, DB, "100/TCP", true),
            (X, DB, "101/TCP", false),
        ],
    );
}

#[test]
fn t99_a_rule_may_be_for_some_of_the_selected_pods() {
    let rule = |destination: Value| {
        let rules = json!([{"action": "Allow", "destination": destination}]);
        [gnp("p", json!({"types": ["Ingress"], "ingress": rules}))]
    };
    for destination in [
        json!({"selector": "role == 'db'"}),
        json!({"notSelector": "role == 'web'"}),
        json!({"nets": ["10.0.0.2/32"]}),
        json!({"namespaceSelector": "team == 'a'", "notNets": ["10.0.0.0/31"]}),
    ] {
        check(
            &rule(destination),
            &[(OUT, DB, "80/TCP", true), (OUT, WEB, "80/TCP", false)],
        );
    }
    check(
        &rule(json!({"nets": ["10.0.0.2/32"]})),
        &[("2001:db8::9", DB, "80/TCP", false), (OUT, X, "80/TCP", false)],
    );
    check(
        &rule(json!({"serviceAccounts": {"names": ["s"]}, "namespaceSelector": "team == 'b'"})),
        &[
            (OUT, X, "80/TCP", true),
            (OUT, WEB, "80/TCP", false),
            (OUT, DB, "80/TCP", false),
        ],
    );
    let source = json!([{"action": "Deny", "source": {"selector": "role == 'web'"}, "destination": {"nets": ["203.0.113.0/24"]}},
        {"action": "Allow"}]);
    check(
        &[gnp("p", json!({"types": ["Egress"], "egress": source}))],
        &[
            (WEB, OUT, "80/TCP", false),
            (DB, OUT, "80/TCP", true),
            (WEB, DB, "80/TCP", true),
        ],
    );
    // A set makes an address one of those that the rule is for, whatever its pod is.
    let mut objects = rule(json!({"selector": "has(y)"})).to_vec();
    objects.push(set("g", json!({"y": "1"}), json!(["10.0.0.1"])));
    check(
        &objects,
        &[(OUT, WEB, "80/TCP", true), (OUT, DB, "80/TCP", false)],
    );
}

/// `explain` says at which condition a rule fails.
#[test]
fn conditions_of_a_rule_are_said_in_words() {
    let world = World::new(&to_db(
        json!({"protocol": "TCP", "source": {"selector": "role == 'web'", "nets": ["10.0.0.0/24"]},
        "destination": {"notPorts": [81]}}),
    ));
    let folder = world.dir.path().to_str().unwrap();
    let said =
        |src: &str, service: &str| ran::ringwall(&["explain", "--manifests", folder, src, DB, service]).out;
    let outside = said(X, "80/TCP");
    assert!(
        outside.contains("rule 0 (allow) fails at its conditions")
            && outside.contains("the peer must be ipBlock 10.0.0.0/24: other/x is not"),
        "{outside}"
    );
    let excluded = said(WEB, "81/TCP");
    assert!(excluded.contains("not 81/TCP"), "{excluded}");
    let passes = said(WEB, "80/TCP");
    assert!(
        passes.contains("rule 0 (allow) matches: this is the one that decides"),
        "{passes}"
    );
}

/// A person sees which tier denied by default, and where a policy of Calico stands.
#[test]
fn a_tiers_default_is_said_in_words() {
    let dir = tempfile::TempDir::new().unwrap();
    let text = "
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: shop}
status: {podIPs: [{ip: 10.0.0.1}]}
---
apiVersion: projectcalico.org/v3
kind: Tier
metadata: {name: app}
spec: {order: 5}
---
apiVersion: projectcalico.org/v3
kind: GlobalNetworkPolicy
metadata: {name: app.some}
spec: {tier: app, order: 2.5, types: [Ingress]}
";
    std::fs::write(dir.path().join("all.yaml"), text).unwrap();
    let folder = dir.path().to_str().unwrap();
    let flow = r#"{"src":"192.0.2.1","dst":"shop/web","protocol":"TCP","dst_port":80}"#;
    let args = ["query", "--manifests", folder, "--flows", "-"];
    let said = ran::ringwall_reading(&args, flow).out;
    assert!(
        said.contains(
            "GlobalNetworkPolicy app.some (app) selects it, no rule matches, and its tier denies by default"
        ),
        "{said}"
    );
    let said = ran::ringwall(&[
        "explain",
        "--manifests",
        folder,
        "192.0.2.1",
        "shop/web",
        "80/TCP",
    ])
    .out;
    assert!(
        said.contains("GlobalNetworkPolicy app.some (app, order 2.5) selects it"),
        "{said}"
    );
}

/// What each command says about tiers, as text and as JSON.
#[test]
fn commands_name_the_tier_that_decides() {
    let security = |default: &str| {
        [
            tier("security", json!({"order": 500, "defaultAction": default})),
            gnp(
                "security.no-b",
                json!({"tier": "security", "selector": "all()", "types": ["Ingress"],
                "ingress": [{"action": "Deny", "source": {"namespaceSelector": "team == 'b'"}}]}),
            ),
            np(
                "shop/late.db",
                json!({"tier": "late", "selector": "role == 'db'", "types": ["Ingress"],
                "ingress": [{"action": "Allow", "protocol": "TCP", "destination": {"ports": [5432]}}]}),
            ),
            tier("late", json!({"order": 2_000_000})),
            cluster_policy("Baseline", 5, "Accept"),
        ]
    };
    let (before, after) = (World::new(&security("Pass")), World::new(&security("Deny")));
    let path = |world: &World| world.dir.path().to_str().unwrap().to_owned();
    let (from, to) = (path(&before), path(&after));
    let run = |args: &[&str]| ran::ringwall(args);

    let coverage = run(&["coverage", "--manifests", &from]);
    for line in [
        "  security: 1 policy selects 3 pods, default pass",
        "  late: 1 policy selects 1 pod, default deny",
        "  kube-baseline: 1 policy selects 3 pods, default pass",
    ] {
        assert!(coverage.out.contains(line), "{line}: {}", coverage.out);
    }
    let coverage = run(&["coverage", "--manifests", &from, "-o", "json"]).lines();
    let of = |kind: &str, name: &str| {
        let found = coverage
            .iter()
            .find(|it| it["type"] == kind && it["name"] == name);
        found
            .unwrap_or_else(|| panic!("{kind} {name}: {coverage:#?}"))
            .clone()
    };
    assert_eq!(of("policy", "late.db")["tier"], "late");
    assert_eq!(
        of("pod", "db")["tiers"],
        json!(["security", "late", "kube-baseline"])
    );
    assert_eq!(
        of("pod", "db")["ingressIsolated"],
        true,
        "its tier denies by default"
    );
    assert_eq!(of("pod", "web")["ingressIsolated"], false);

    let matrix = run(&["matrix", "--manifests", &from, "-o", "json"]).lines();
    let cell = matrix
        .iter()
        .find(|it| it["src"] == "other/x" && it["dst"] == "shop/db");
    assert_eq!(cell.unwrap()["tiers"], json!(["security"]));
    let cell = matrix
        .iter()
        .find(|it| it["src"] == "shop/web" && it["dst"] == "shop/db");
    assert_eq!(cell.unwrap()["tiers"], json!(["late"]));

    let intents = before.dir.path().join("intents");
    let asserted = "apiVersion: ringwall.io/v1alpha1\nkind: Intents\nassertions:\n- name: a\n  allow: {from: [{pod: other/x}], to: [{pod: shop/db}]}\n- name: b\n  allow: {from: [{pod: shop/web}], to: [{pod: shop/db}], ports: [80/TCP]}\n";
    std::fs::write(&intents, asserted).unwrap();
    let args = [
        "check",
        "--manifests",
        &from,
        "--intents",
        intents.to_str().unwrap(),
    ];
    let check = run(&args);
    for words in [
        "denied by GlobalNetworkPolicy security.no-b (security), rule 0",
        "tier late denies by default what NetworkPolicy.projectcalico.org shop/late.db does not match",
    ] {
        assert!(check.out.contains(words), "{words}: {}", check.out);
    }
    let check = run(&[&args[..], &["-o", "json"]].concat()).lines();
    let tiers: Vec<&Value> = check
        .iter()
        .filter_map(|it| it.pointer("/counterexample/reasons/1/tier"))
        .collect();
    assert_eq!(tiers, [&json!("security"), &json!("late")]);

    let diff = run(&["diff", "--from", &from, "--to", &to]);
    let words = "GlobalNetworkPolicy security.no-b (security): tier security changed: default pass -> deny";
    assert!(diff.out.contains(words), "{}", diff.out);
    let diff = run(&["diff", "--from", &from, "--to", &to, "-o", "json"]).lines();
    assert!(
        diff.iter().any(|it| it["tiers"] == json!(["late", "security"])),
        "{diff:#?}"
    );
    // A policy with a namespace that is added is called that.
    let without = World::new(&security("Pass")[..2]);
    let diff = run(&["diff", "--from", &path(&without), "--to", &from]);
    let words = "NetworkPolicy.projectcalico.org shop/late.db (late, added)";
    assert!(diff.out.contains(words), "{}", diff.out);
}

#[test]
fn commands_say_what_the_name_of_a_source_port_is() {
    let rule = json!({"action": "Allow", "protocol": "TCP", "source": {"namespaceSelector": "all()", "ports": ["sql"]},
        "destination": {"ports": [80]}});
    let policy = np(
        "shop/p",
        json!({"selector": "role == 'web'", "types": ["Ingress"], "ingress": [rule]}),
    );
    let world = World::new(std::slice::from_ref(&policy));
    assert_eq!(world.incomplete(), [""; 0]);
    let folder = world.dir.path().to_str().unwrap();
    let lines = ran::ringwall(&["matrix", "--manifests", folder, "-o", "json"]).lines();
    let into_web = |src: &str| {
        let mut lines = lines.iter();
        lines
            .find(|line| line["src"] == src && line["dst"] == "shop/web")
            .map(|line| line["allowed"].clone())
    };
    assert_eq!(into_web("shop/db"), Some(json!(["80/TCP from 5432"])));
    assert_eq!(into_web("other/x"), Some(json!([])));
    let explain = |src: &str, service: &str| {
        let args = ["explain", "--manifests", folder, src, "shop/web", service];
        ran::ringwall(&args).out
    };
    assert!(explain("shop/db", "80/TCP from 5432").contains("80/TCP from 5432: allow"));
    let denied = explain("shop/db", "80/TCP from 40000");
    let why = "from port \"sql\"";
    assert!(denied.contains("DENY") && denied.contains(why), "{denied}");
    assert!(denied.contains("that name is port 5432 of shop/db"), "{denied}");
    let nameless = explain("other/x", "80/TCP from 5432");
    assert!(
        nameless.contains("other/x has no port of that name"),
        "{nameless}"
    );

    // A pod that calls another port so changes what passes, though no policy does.
    let renamed = CLUSTER.replace("\"containerPort\": 5432", "\"containerPort\": 3306");
    let after = tempfile::tempdir().unwrap();
    let mut documents: Vec<String> = renamed.lines().map(str::to_owned).collect();
    documents.push(policy.to_string());
    std::fs::write(after.path().join("all.yaml"), documents.join("\n---\n")).unwrap();
    let diff = ["diff", "--from", folder, "--to", after.path().to_str().unwrap()];
    let words = ran::ringwall(&diff).out;
    for change in ["80/TCP from 5432", "80/TCP from 3306"] {
        assert!(words.contains(change), "{words}");
    }
}

#[test]
fn t65_a_plain_init_container_names_no_port() {
    let pod = |restart: Value| {
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "init", "namespace": "shop", "labels": {"role": "init"}},
            "spec": {"containers": [{"name": "c"}], "initContainers": [{"name": "i", "restartPolicy": restart,
                "ports": [{"name": "web", "containerPort": 81}]}]},
            "status": {"podIPs": [{"ip": "10.0.0.9"}]}})
    };
    let policy = np(
        "shop/p",
        json!({"selector": "role == 'init'", "ingress": [{"action": "Allow", "protocol": "TCP", "destination": {"ports": ["web"]}}]}),
    );
    check(
        &[policy.clone(), pod(Value::Null)],
        &[(X, "10.0.0.9", "81/TCP", false)],
    );
    // One that keeps running is a container like any other.
    check(
        &[policy, pod(json!("Always"))],
        &[(X, "10.0.0.9", "81/TCP", true)],
    );
}

#[test]
fn t36_a_pod_reaches_itself_through_its_service_once_the_address_is_its_own() {
    let objects = [
        json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "db", "namespace": "shop"},
            "spec": {"clusterIP": "10.96.0.7", "selector": {"role": "db"}, "ports": [{"port": 80, "targetPort": 5432}]}}),
        cluster_policy("Admin", 1, "Deny"),
        gnp("all", json!({"tier": "default", "types": ["Ingress", "Egress"]})),
    ];
    let world = World::new(&objects);
    let verdict = |src: &str| {
        let flow = json!({"src": src, "dst": "svc:shop/db", "dst_port": 80, "protocol": "TCP"});
        let folder = world.dir.path().to_str().unwrap();
        let args = ["query", "--manifests", folder, "--flows", "-", "-o", "json"];
        let ran = ran::ringwall_reading(&args, &flow.to_string());
        ran.lines().first().unwrap_or_else(|| panic!("{}", ran.err))["verdict"].clone()
    };
    assert_eq!([verdict(DB), verdict(WEB)], ["allow", "deny"]);
    // Its own address is exempt, and that of the Service is not while a packet has it.
    let [own, service] = ["10.0.0.2", "10.96.0.7"].map(|it| it.parse().unwrap());
    assert!(world.judged(own, own, 6, Some(5432), 40000));
    assert!(!world.judged(own, service, 6, Some(80), 40000));
}
