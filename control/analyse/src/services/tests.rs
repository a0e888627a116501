//! What Services mean, as kube-proxy and the controllers of endpoints have it.
#![allow(clippy::unwrap_used, reason = "a test may stop at the first surprise")]

use ringwall_policy::Settings;
use ringwall_source::folder::{self, Loaded};

use super::*;

const PODS: &str = "
apiVersion: v1
kind: Node
metadata: {name: n1, labels: {topology.kubernetes.io/zone: a}}
spec: {podCIDRs: [10.1.1.0/24]}
status: {addresses: [{type: InternalIP, address: 192.168.0.1}]}
---
apiVersion: v1
kind: Node
metadata: {name: n2, labels: {topology.kubernetes.io/zone: b}}
spec: {podCIDRs: [10.1.2.0/24]}
status: {addresses: [{type: InternalIP, address: 192.168.0.2}]}
---
apiVersion: v1
kind: Pod
metadata: {name: client, namespace: shop}
spec: {nodeName: n1}
status: {podIPs: [{ip: 10.1.1.100}, {ip: 'fd00::100'}]}
---
apiVersion: v1
kind: Pod
metadata: {name: w1, namespace: shop, labels: {app: web}}
spec: {nodeName: n1, containers: [{name: c, ports: [{name: http, containerPort: 8080}, {name: dns, containerPort: 53, protocol: UDP}]}]}
status: {podIPs: [{ip: 10.1.1.1}, {ip: 'fd00::1'}], conditions: [{type: Ready, status: 'True'}]}
---
apiVersion: v1
kind: Pod
metadata: {name: w2, namespace: shop, labels: {app: web}}
spec: {nodeName: n2, containers: [{name: c, ports: [{name: http, containerPort: 9090}]}]}
status: {podIPs: [{ip: 10.1.2.1}, {ip: 'fd00::2'}]}
---
apiVersion: v1
kind: Pod
metadata: {name: late, namespace: shop, labels: {app: web}}
spec: {nodeName: n2, containers: [{name: c, ports: [{name: http, containerPort: 7070}]}]}
status: {podIP: 10.1.2.2, conditions: [{type: Ready, status: 'False'}]}
---
apiVersion: v1
kind: Pod
metadata: {name: done, namespace: shop, labels: {app: web}}
spec: {nodeName: n2, containers: [{name: c, ports: [{name: http, containerPort: 6060}]}]}
status: {podIP: 10.1.2.3, phase: Succeeded}
---
apiVersion: v1
kind: Pod
metadata: {name: other, namespace: shop, labels: {app: other}}
spec: {nodeName: n2}
status: {podIP: 10.1.2.9}
";

fn load(manifests: &str) -> Loaded {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("all.yaml");
    std::fs::write(&file, format!("{PODS}---\n{manifests}")).unwrap();
    folder::load(&file, &Settings::default()).unwrap()
}

/// `w1:8080 w2:9090<n1`: endpoints with their ports and, where it is not the client, whom they see; `reject` or `drop`.
fn ends(loaded: &Loaded, (src, dst): (&str, &str), port: &str, protocol: u8) -> (String, Vec<String>) {
    let directory = Directory::new(&loaded.cluster, &loaded.services);
    let judge = Judge::new(&loaded.cluster).unwrap();
    let ends = (EndName::read(src).unwrap(), EndName::read(dst).unwrap());
    let number: Option<u16> = port.parse().ok();
    let asked = flow::Service {
        port: number,
        ..flow::Service::with_port_unknown(protocol)
    };
    let name = number.is_none().then_some(port);
    let resolved = match directory.resolve(&judge, (&ends.0, &ends.1), asked, name) {
        Ok(Some(resolved)) => resolved,
        Ok(None) => return ("no Service".to_owned(), Vec::new()),
        Err(error) => return (format!("error: {error}"), Vec::new()),
    };
    let words = match &resolved.outcome {
        Outcome::Rejected(_) => "reject".to_owned(),
        Outcome::Dropped(_) => "drop".to_owned(),
        Outcome::Backends(backends) => {
            let words = backends.iter().map(|backend| {
                let end = match (&backend.pod, &backend.end) {
                    (Some(pod), EndName::Address(IpAddr::V6(_))) => format!("{}/6", pod.name),
                    (Some(pod), _) => pod.name.clone(),
                    (None, end) => end.to_string(),
                };
                let seen = match &backend.seen {
                    VisibleSource::Client => String::new(),
                    VisibleSource::Node { name, .. } => format!("<{name}"),
                };
                let sent = if backend.sent_to.is_some() { "!" } else { "" };
                format!("{end}:{}{seen}{sent}", backend.port)
            });
            words.collect::<Vec<_>>().join(" ")
        }
    };
    (words, resolved.notes)
}

fn service(spec: &str) -> String {
    format!("apiVersion: v1\nkind: Service\nmetadata: {{name: web, namespace: shop}}\nspec: {{{spec}}}\n")
}

fn slice(name: &str, ports: &str, endpoints: &[&str]) -> String {
    format!(
        "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: {name}, namespace: shop, labels: \
         {{kubernetes.io/service-name: web}}}}\naddressType: IPv4\nports: [{ports}]\nendpoints: [{}]\n",
        endpoints.join(", ")
    )
}

const CLIENT: &str = "shop/client";
const WEB: &str = "svc:shop/web";
const OUTSIDE: &str = "203.0.113.9";
const HTTP: &str =
    "clusterIP: 10.96.0.7, selector: {app: web}, ports: [{name: http, port: 80, targetPort: http}]";

#[test]
fn without_slices_the_endpoints_are_the_ready_pods_that_are_selected() {
    let of = |spec: &str, dst: &str, port: &str| ends(&load(&service(spec)), (CLIENT, dst), port, 6).0;
    // By name and by number, at the name, at the address; each pod at its own port.
    for (dst, port) in [(WEB, "80"), (WEB, "http"), ("10.96.0.7", "80")] {
        assert_eq!(of(HTTP, dst, port), "w1:8080 w2:9090", "{dst} {port}");
    }
    let numbered = "clusterIP: 10.96.0.7, selector: {app: web}, ports: [{port: 80, targetPort: 8443}]";
    assert_eq!(of(numbered, WEB, "80"), "w1:8443 w2:8443");
    let without_target = "clusterIP: 10.96.0.7, selector: {app: web}, ports: [{port: 80}]";
    assert_eq!(of(without_target, WEB, "80"), "w1:80 w2:80");
    // Those that lack the name are no endpoints.
    let named = "selector: {app: web}, ports: [{name: d, port: 53, targetPort: dns, protocol: UDP}]";
    assert_eq!(ends(&load(&service(named)), (CLIENT, WEB), "53", 17).0, "w1:53");
    let early = format!("{HTTP}, publishNotReadyAddresses: true");
    assert_eq!(of(&early, WEB, "80"), "late:7070 w1:8080 w2:9090");
    let nobody = "clusterIP: 10.96.0.7, selector: {app: nobody}, ports: [{port: 80}]";
    assert_eq!(of(nobody, WEB, "80"), "reject");
    let no_selector = "clusterIP: 10.96.0.7, ports: [{port: 80}]";
    assert_eq!(of(no_selector, WEB, "80"), "reject");
    // A port that a known address does not have.
    assert_eq!(of(HTTP, "10.96.0.7", "81"), "reject");
    assert_eq!(of(HTTP, WEB, "81"), "reject");
    assert!(of(HTTP, WEB, "https").starts_with("error: Service shop/web has no port named \"https\""));
    assert_eq!(of(HTTP, "10.96.0.8", "80"), "no Service");
    assert_eq!(of(HTTP, "shop/w1", "80"), "no Service");
}

#[test]
fn each_family_has_its_own_endpoints() {
    let of = |spec: &str, src: &str, dst: &str| ends(&load(&service(spec)), (src, dst), "80", 6).0;
    let ports = "selector: {app: web}, ports: [{port: 80}]";
    let dual = format!("{ports}, clusterIPs: [10.96.0.7, 'fd96::7'], ipFamilies: [IPv4, IPv6]");
    assert_eq!(of(&dual, CLIENT, WEB), "w1:80 w1/6:80 w2:80 w2/6:80");
    assert_eq!(of(&dual, CLIENT, "fd96::7"), "w1/6:80 w2/6:80");
    assert_eq!(of(&dual, "shop/other", WEB), "w1:80 w2:80");
    let six = format!("{ports}, clusterIP: 'fd96::7', ipFamilies: [IPv6]");
    assert_eq!(of(&six, CLIENT, WEB), "w1/6:80 w2/6:80");
    assert!(of(&six, "shop/other", WEB).contains("no address family in common"));
    // A Service that does not say is of the family that two names would have.
    assert_eq!(of(ports, CLIENT, WEB), "w1:80 w2:80");
    assert_eq!(
        of(&format!("{ports}, ipFamilyPolicy: PreferDualStack"), CLIENT, WEB),
        "w1:80 w1/6:80 w2:80 w2/6:80"
    );
}

#[test]
fn where_there_are_slices_they_are_the_authority() {
    let of = |ports: &str, endpoints: &[&str]| {
        let manifests = [service(HTTP), slice("web-1", ports, endpoints)].concat();
        ends(&load(&manifests), (CLIENT, WEB), "80", 6).0
    };
    let w1 = "{addresses: [10.1.1.1], nodeName: n1, targetRef: {kind: Pod, name: w1, namespace: shop}}";
    let with =
        |address: &str, conditions: &str| format!("{{addresses: [{address}], conditions: {{{conditions}}}}}");
    let port = "{name: http, port: 8080}";
    assert_eq!(of(port, &[w1]), "w1:8080", "absent conditions mean ready");
    assert_eq!(of(port, &[]), "reject", "the selector has no part in it");
    // Ports join by name and protocol; those without a number are none.
    assert_eq!(of("{name: other, port: 8080}", &[w1]), "reject");
    assert_eq!(of("{name: http, port: 8080, protocol: UDP}", &[w1]), "reject");
    assert_eq!(of("{name: http}", &[w1]), "reject");
    assert_eq!(of("{name: http, port: 0}", &[w1]), "reject");
    // Ready ones, or else those that are going and still answer.
    let ready = with("10.1.1.1", "ready: true");
    let unready = with("10.1.2.1", "ready: false");
    let leaving = with("10.1.2.2", "ready: false, serving: true, terminating: true");
    let silent = with("10.1.2.3", "ready: false, serving: false, terminating: true");
    let null = with("10.1.2.4", "ready: null, serving: null");
    let many = |of_these: &[&String]| -> String {
        let texts: Vec<&str> = of_these.iter().map(|it| it.as_str()).collect();
        of(port, &texts)
    };
    assert_eq!(many(&[&ready, &unready, &leaving, &silent]), "10.1.1.1:8080");
    assert_eq!(many(&[&unready, &leaving, &silent]), "10.1.2.2:8080");
    assert_eq!(many(&[&unready, &silent]), "reject");
    assert_eq!(many(&[&unready, &null]), "10.1.2.4:8080");
    // An endpoint uses its first address; it may be anything.
    assert_eq!(
        of(port, &["{addresses: [198.51.100.1, 198.51.100.2]}"]),
        "198.51.100.1:8080"
    );
    // A port may be another number in another slice.
    let both = [
        service(HTTP),
        slice("web-1", port, &[w1]),
        slice("web-2", "{name: http, port: 9090}", &["{addresses: [10.1.2.1]}"]),
    ];
    assert_eq!(
        ends(&load(&both.concat()), (CLIENT, WEB), "80", 6).0,
        "10.1.2.1:9090 w1:8080"
    );
}

#[test]
fn a_headless_service_is_its_pods_at_their_own_ports() {
    let spec = "clusterIP: None, selector: {app: web}, ports: [{name: http, port: 80, targetPort: http}]";
    let of = |port: &str| ends(&load(&service(spec)), (CLIENT, WEB), port, 6);
    let (words, notes) = of("80");
    assert_eq!(words, "w1:80 w2:80");
    assert!(notes[0].contains("translates no port"), "{notes:?}");
    assert_eq!(of("1234"), ("w1:1234 w2:1234".to_owned(), Vec::new()));
    // By name DNS answers with each pod's port.
    assert_eq!(of("http").0, "w1:8080 w2:9090");
    // It has no endpoint that is going away.
    let leaving = "{addresses: [10.1.1.1], conditions: {ready: false, serving: true, terminating: true}}";
    let manifests = [
        service(spec),
        slice("web-1", "{name: http, port: 8080}", &[leaving]),
    ]
    .concat();
    assert_eq!(ends(&load(&manifests), (CLIENT, WEB), "80", 6).0, "reject");
}

#[test]
fn templates_stand_for_pods_that_are_not_there() {
    let template = |name: &str, labels: &str| {
        format!(
            "---\napiVersion: apps/v1\nkind: Deployment\nmetadata: {{name: {name}, namespace: shop}}\nspec: {{template: {{metadata: \
             {{labels: {{{labels}}}}}, spec: {{containers: [{{name: c, ports: [{{name: http, containerPort: 5050}}]}}]}}}}}}\n"
        )
    };
    let of = |spec: &str, templates: &str| {
        ends(
            &load(&[service(spec), templates.to_owned()].concat()),
            (CLIENT, WEB),
            "80",
            6,
        )
        .0
    };
    let api = "selector: {app: api}, ports: [{port: 80, targetPort: http}]";
    assert_eq!(of(api, &template("api", "app: api")), "api:5050");
    // The pods of a Deployment are there.
    assert_eq!(of(HTTP, &template("web", "app: web")), "w1:8080 w2:9090");
    assert_eq!(
        of(HTTP, &template("web", "app: web, track: new")),
        "w1:8080 w2:9090 web:5050"
    );
}

#[test]
fn internal_traffic_policy_local_keeps_to_the_clients_node() {
    let local = format!("{HTTP}, internalTrafficPolicy: Local");
    let of = |src: &str, dst: &str, rest: &str| {
        ends(
            &load(&[service(&local), rest.to_owned()].concat()),
            (src, dst),
            "80",
            6,
        )
    };
    assert_eq!(of(CLIENT, WEB, "").0, "w1:8080");
    assert_eq!(of("shop/other", WEB, "").0, "w2:9090");
    assert_eq!(of("192.168.0.1", WEB, "").0, "w1:8080");
    let elsewhere = "{addresses: [10.1.2.1], nodeName: n2}";
    let of_n2 = slice("web-1", "{name: http, port: 8080}", &[elsewhere]);
    assert_eq!(of(CLIENT, WEB, &of_n2).0, "drop");
    let (words, notes) = of(OUTSIDE, WEB, "");
    assert_eq!(words.split(' ').count(), 4, "{words}");
    assert!(notes[0].contains("internalTrafficPolicy is Local"), "{notes:?}");
}

#[test]
fn hints_leave_endpoints_near_the_node_that_chooses() {
    let of = |src: &str, endpoints: &[&str]| {
        let manifests = [service(HTTP), slice("web-1", "{name: http, port: 80}", endpoints)].concat();
        ends(&load(&manifests), (src, WEB), "80", 6).0
    };
    let hinted = |address: &str, hints: &str| format!("{{addresses: [{address}], hints: {{{hints}}}}}");
    let of_a = hinted("10.1.1.1", "forZones: [{name: a}]");
    let of_b = hinted("10.1.2.1", "forZones: [{name: b}]");
    let plain = "{addresses: [10.1.2.2]}";
    assert_eq!(of(CLIENT, &[&of_a, &of_b]), "10.1.1.1:80");
    assert_eq!(of("shop/other", &[&of_a, &of_b]), "10.1.2.1:80");
    assert_eq!(
        of(CLIENT, &[&of_a, &of_b, plain]).split(' ').count(),
        3,
        "all have to have hints"
    );
    assert_eq!(of(CLIENT, &[&of_b]), "10.1.2.1:80", "no zone is ours: all");
    let of_n1 = hinted("10.1.1.1", "forNodes: [{name: n1}], forZones: [{name: b}]");
    let of_n2 = hinted("10.1.2.1", "forNodes: [{name: n2}], forZones: [{name: a}]");
    assert_eq!(
        of(CLIENT, &[&of_n1, &of_n2]),
        "10.1.1.1:80",
        "the node goes before the zone"
    );
}

#[test]
fn from_outside_the_traffic_policy_decides_who_is_seen() {
    let node_port = "type: NodePort, clusterIP: 10.96.0.7, selector: {app: web}, ports: [{port: 80, targetPort: http, nodePort: 30080}]";
    let local = format!("{node_port}, externalTrafficPolicy: Local");
    let of =
        |spec: &str, src: &str, dst: &str, port: &str| ends(&load(&service(spec)), (src, dst), port, 6).0;
    // At a node, an endpoint there sees the client, others the node.
    assert_eq!(
        of(node_port, OUTSIDE, "192.168.0.1", "30080"),
        "w1:8080! w2:9090<n1!"
    );
    assert_eq!(of(&local, OUTSIDE, "192.168.0.1", "30080"), "w1:8080!");
    assert_eq!(of(node_port, OUTSIDE, "192.168.0.1", "30081"), "no Service");
    // At whichever node.
    assert_eq!(
        of(node_port, OUTSIDE, WEB, "80"),
        "w1:8080 w1:8080<n2 w2:9090 w2:9090<n1"
    );
    assert_eq!(of(&local, OUTSIDE, WEB, "80"), "w1:8080 w2:9090");
    // A pod's own node translates at once; another one gets the packet first.
    assert_eq!(
        of(node_port, CLIENT, "192.168.0.1", "30080"),
        "w1:8080 w2:9090<n1"
    );
    assert_eq!(
        of(&local, CLIENT, "192.168.0.1", "30080"),
        "w1:8080 w2:9090",
        "as from inside"
    );
    assert_eq!(
        of(node_port, CLIENT, "192.168.0.2", "30080"),
        "w1:8080<n2! w2:9090!"
    );
    // Inside, no client is masqueraded.
    assert_eq!(of(node_port, CLIENT, WEB, "80"), "w1:8080 w2:9090");
    assert_eq!(of(node_port, "192.168.0.2", "10.96.0.7", "80"), "w1:8080 w2:9090");
    // No endpoint where it arrives.
    let empty = [
        service(&local),
        slice(
            "web-1",
            "{name: '', port: 8080}",
            &["{addresses: [10.1.2.1], nodeName: n2}"],
        ),
    ];
    let loaded = load(&empty.concat());
    assert_eq!(ends(&loaded, (OUTSIDE, "192.168.0.1"), "30080", 6).0, "drop");
    assert_eq!(
        ends(&loaded, (OUTSIDE, "192.168.0.2"), "30080", 6).0,
        "10.1.2.1:8080!"
    );
}

#[test]
fn addresses_outside_of_the_cluster_are_frontends_where_nodes_know_them() {
    let balanced = |status: &str, more: &str| {
        format!(
            "{}status: {{loadBalancer: {{ingress: [{{ip: 198.51.100.7{status}}}]}}}}\n",
            service(&format!(
                "type: LoadBalancer, externalTrafficPolicy: Local, selector: {{app: web}}, externalIPs: [198.51.100.8], \
                 ports: [{{port: 80, targetPort: http}}]{more}"
            ))
        )
    };
    let of = |manifests: &str, src: &str, dst: &str| ends(&load(manifests), (src, dst), "80", 6).0;
    let plain = balanced("", "");
    for address in ["198.51.100.7", "198.51.100.8"] {
        assert_eq!(of(&plain, OUTSIDE, address), "w1:8080 w2:9090");
        assert_eq!(of(&plain, CLIENT, address), "w1:8080 w2:9090");
    }
    assert_eq!(
        of(&balanced(", ipMode: VIP", ""), OUTSIDE, "198.51.100.7"),
        "w1:8080 w2:9090"
    );
    // Traffic to it leaves for the load balancer.
    assert_eq!(
        of(&balanced(", ipMode: Proxy", ""), OUTSIDE, "198.51.100.7"),
        "no Service"
    );
    // For some clients alone, and not at other addresses.
    let restricted = balanced("", ", loadBalancerSourceRanges: [192.0.2.0/24]");
    assert_eq!(of(&restricted, OUTSIDE, "198.51.100.7"), "drop");
    assert_eq!(of(&restricted, "192.0.2.1", "198.51.100.7"), "w1:8080 w2:9090");
    assert_eq!(of(&restricted, OUTSIDE, "198.51.100.8"), "w1:8080 w2:9090");
}

#[test]
fn what_is_no_service_of_ours_is_said() {
    let external = service("type: ExternalName, externalName: db.example.com");
    let (words, _) = ends(&load(&external), (CLIENT, WEB), "80", 6);
    assert!(
        words.contains("ExternalName") && words.contains("db.example.com"),
        "{words}"
    );
    let foreign = "apiVersion: v1\nkind: Service\nmetadata: {name: web, namespace: shop, labels: \
        {service.kubernetes.io/service-proxy-name: mesh}}\nspec: {selector: {app: web}, ports: [{port: 80}]}\n";
    let (words, notes) = ends(&load(foreign), (CLIENT, WEB), "80", 6);
    assert_eq!(words, "w1:80 w2:80");
    assert!(notes[0].contains("mesh forwards to it"), "{notes:?}");
    let (words, _) = ends(&load(&service(HTTP)), (CLIENT, WEB), "80", 1);
    assert!(words.contains("TCP, UDP and SCTP alone"), "{words}");
}

#[test]
fn verdicts_come_to_one() {
    use Fate::{Allow, Deny, Depends};
    for (fates, wanted) in [
        (&[][..], None),
        (&[Allow, Allow], Some(Joint::Allow)),
        (&[Deny], Some(Joint::Deny)),
        (&[Allow, Deny], Some(Joint::Partial)),
        (&[Allow, Depends], Some(Joint::Depends)),
        (&[Allow, Deny, Depends], Some(Joint::Depends)),
    ] {
        assert_eq!(joint(fates.iter().copied()), wanted, "{fates:?}");
    }
}

#[test]
fn a_port_is_asked_for_by_number_or_name() {
    use flow::AskedPort;
    for (text, name, port, source) in [
        ("80/TCP", None, Some(80), None),
        ("http/tcp", Some("http"), None, None),
        ("web-1/UDP from 4000", Some("web-1"), None, Some(4000)),
        ("80/6 from 9", None, Some(80), Some(9)),
        ("ip/47", None, None, None),
    ] {
        let asked = AskedPort::read(text).unwrap();
        let service = asked.service;
        assert_eq!(
            (asked.name.as_deref(), service.port, service.source_port),
            (name, port, source),
            "{text}"
        );
        assert_eq!(AskedPort::read(&asked.asked()).unwrap(), asked, "{text}");
    }
    for text in ["http", "http/ICMP", "HTTP/TCP", "http/TCP from x", "80"] {
        assert!(AskedPort::read(text).is_err(), "{text}");
    }
}
