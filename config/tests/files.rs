//! Whole files: the examples load, and every kind of mistake is shown where it was made.
#![allow(clippy::unwrap_used, clippy::panic)] // tests

use std::{path::Path, time::Duration};

use ringwall_config::{
    AntiSpoofing, Config, ConfigError, Cpus, DenialAnswer, FailMode, InterfaceKind, Kind, Midstream, Mode,
    NetworkPlacement, OnDeadline, ReversePath, Role, RxQueues, Side, SourceKind, TcpTracking, Verify,
    VlanTags, raw::Raw,
};

const GOOD: &str = "\
apiVersion: ringwall.io/v1alpha1
kind: Gateway
name: gw
cluster:
  podCIDRs: [10.111.0.0/16]
source:
  manifests: policies
interfaces:
  - {name: p1, kind: pod}
  - {name: up, kind: uplink, side: outside}
";

fn parse(text: &str) -> Result<Config, ConfigError> {
    Config::parse("gw.yaml", text, Path::new("/etc/ringwall"), |variable| {
        (variable == "NODE_NAME").then(|| "kube01".to_owned())
    })
}

#[test]
fn the_examples_load() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples");
    let mut count = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            continue; // assertions, which `check` reads
        }
        let text = std::fs::read_to_string(&path).unwrap();
        let config = parse(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        assert_eq!(config.interfaces.is_empty(), config.kind == Kind::Node);
        count += 1;
    }
    assert!(count >= 3, "the examples are gone");
}

#[test]
fn defaults_are_safe() {
    let config = parse(GOOD).unwrap();
    assert_eq!(config.kind, Kind::Gateway);
    assert_eq!(config.mode, Mode::Enforce);
    assert_eq!(config.verify, Verify::Changed);
    assert_eq!(config.role, Role::Routed);
    assert_eq!(config.fail_mode, FailMode::Closed);
    assert_eq!(
        config.source.kind,
        SourceKind::Manifests {
            dir: "/etc/ringwall/policies".into()
        }
    );
    assert_eq!(config.source.stale_after, Duration::from_secs(900));
    assert_eq!(config.source.full_list_every, Duration::from_secs(3600));
    assert_eq!(config.workers.cpus, Cpus::Auto);
    assert_eq!(config.interface("p1").unwrap().kind, Some(InterfaceKind::Pod));
    assert_eq!(config.interface("p1").unwrap().side, Side::Pods);
    assert_eq!(config.interface("up").unwrap().rx_queues, RxQueues::All);
    assert!(config.interface("p2").is_none());
    assert!(config.telemetry.metrics_listen.ip().is_loopback());
    assert_eq!(config.runtime_dir, Path::new("/run/ringwall/gw"));
    assert_eq!(config.state_dir, Path::new("/var/lib/ringwall/gw"));
    assert_eq!(config.pin_dir("p1"), Path::new("/sys/fs/bpf/ringwall/gw/p1"));
}

#[test]
fn the_name_may_come_from_the_environment() {
    assert_eq!(
        parse(&GOOD.replace("name: gw", "name: n-${NODE_NAME}"))
            .unwrap()
            .name,
        "n-kube01"
    );
}

#[test]
fn what_is_proven_before_a_publication_can_be_chosen() {
    for (word, verify) in [
        ("full", Verify::Full),
        ("changed", Verify::Changed),
        ("off", Verify::Off),
    ] {
        assert_eq!(parse(&format!("{GOOD}verify: {word}\n")).unwrap().verify, verify);
        let config = parse(&format!(
            "{GOOD}verify: {{proof: {word}, deadline: 2s, onDeadline: publish}}\n"
        ))
        .unwrap();
        assert_eq!(config.verify, verify);
        assert_eq!(config.verify_deadline, Duration::from_secs(2));
        assert_eq!(config.on_deadline, OnDeadline::Publish);
    }
    let config = parse(&format!("{GOOD}verify: {{}}\n")).unwrap();
    assert_eq!(
        (config.verify, config.on_deadline),
        (Verify::Changed, OnDeadline::Hold)
    );
}

#[test]
fn how_old_a_policy_may_be_can_be_chosen() {
    let source = parse(GOOD).unwrap().source;
    assert_eq!(source.adopt_within, Duration::from_secs(30));
    assert_eq!((source.max_age, source.allow_no_pods), (None, false));
    let text = GOOD.replace(
        "manifests: policies",
        "manifests: policies\n  adoptWithin: 1m\n  maxAge: 12h\n  allowNoPods: true",
    );
    assert_ne!(text, GOOD);
    let source = parse(&text).unwrap().source;
    assert_eq!(source.adopt_within, Duration::from_secs(60));
    assert_eq!(
        (source.max_age, source.allow_no_pods),
        (Some(Duration::from_secs(12 * 3600)), true)
    );
}

#[test]
fn a_value_that_asks_for_what_happens_anyway_is_accepted() {
    let text = format!(
        "{GOOD}routing: {{kernelTables: [main], ecmp: 5-tuple, controlProtocols: [bgp, bfd]}}\nantiSpoofing: strict\n\
         kernelPath: judge\nendpointDiscovery: routes\n\
         logging: {{denied: none, ipfix: null}}\n"
    );
    parse(&text).unwrap();
}

/// Replaces `from` by `to` in the good file and wants exactly one problem, at line (0: none) and path, with words in it.
#[test]
fn every_mistake_is_named_with_its_place() {
    let wire = "wires:\n  - {name: w0, interfaces: [a, b]}\n";
    let wired = "  - {name: a, side: inside}\n  - {name: b, side: outside}\n";
    let mut wrong = Vec::new();
    let pods = "  - {name: p1, kind: pod}\n  - {name: up, kind: uplink, side: outside}\n";
    for (from, to, line, path, words) in [
        (
            "kind: Gateway",
            "kind: Gatway",
            2,
            "kind",
            &["unknown value `Gatway`", "did you mean `Gateway`?"][..],
        ),
        (
            "ringwall.io/v1alpha1",
            "ringwall.io/v1",
            1,
            "apiVersion",
            &["ringwall.io/v1alpha1"],
        ),
        (
            "name: gw\n",
            "name: gw\nverify: sometimes\n",
            4,
            "verify",
            &["unknown value `sometimes`", "full, changed, off"],
        ),
        (
            "name: gw\n",
            "name: gw\nverify: {deadline: 0s}\n",
            4,
            "verify.deadline",
            &["no time", "verify: off"],
        ),
        (
            "name: gw\n",
            "name: gw\nverify: {onDeadline: perhaps}\n",
            4,
            "verify.onDeadline",
            &["unknown value `perhaps`", "hold, publish"],
        ),
        (
            "name: gw\n",
            "nmae: gw\n",
            3,
            "nmae",
            &["unknown key `nmae`", "did you mean `name`?"],
        ),
        (
            "  podCIDRs:",
            "  podCidrs:",
            5,
            "cluster.podCidrs",
            &["did you mean `podCIDRs`?"],
        ),
        (
            "kind: pod}",
            "kind: pod, rxQueue: 1}",
            9,
            "interfaces[0].rxQueue",
            &["did you mean `rxQueues`?"],
        ),
        ("name: gw\n", "", 0, "", &["the key `name` is missing"]),
        (
            "  podCIDRs: [10.111.0.0/16]",
            "  nodeCIDRs: []",
            4,
            "cluster",
            &["the key `podCIDRs` is missing in `cluster`"],
        ),
        (
            "name: gw\n",
            "name: gw\nname: gw\n",
            4,
            "",
            &["`name` stands here twice"],
        ),
        ("name: gw\n", "name: [gw\n", 4, "", &[]),
        ("name: gw\n", "name: ../gw\n", 3, "name", &["cannot be a name"]),
        (
            "name: gw\n",
            "name: ${NOBODY}\n",
            3,
            "name",
            &["NOBODY is not set"],
        ),
        (
            "[10.111.0.0/16]",
            "[10.111.0.0/33]",
            5,
            "cluster.podCIDRs[0]",
            &[],
        ),
        (
            "[10.111.0.0/16]",
            "[]",
            5,
            "cluster.podCIDRs",
            &["list the pod networks"],
        ),
        (
            "[10.111.0.0/16]\n",
            "[10.111.0.0/16]\n  nodeCIDRs: [10.111.4.0/24]\n",
            6,
            "cluster.nodeCIDRs[0]",
            &["10.111.4.0/24 overlaps 10.111.0.0/16 of podCIDRs"],
        ),
        (
            "  manifests: policies",
            "  staleAfter: 15m",
            6,
            "source",
            &["nowhere to take policy from"],
        ),
        (
            "  manifests: policies",
            "  manifests: p\n  inCluster: true",
            6,
            "source",
            &["more than one place"],
        ),
        (
            "  manifests: policies",
            "  manifests: p\n  context: c",
            8,
            "source.context",
            &["no kubeconfig"],
        ),
        (
            "  manifests: policies",
            "  manifests: p\n  staleAfter: soon",
            8,
            "source.staleAfter",
            &["`soon` is not a duration"],
        ),
        (
            "  manifests: policies",
            "  manifests: p\n  fullListEvery: 10s",
            8,
            "source.fullListEvery",
            &["5m or more"],
        ),
        (
            "interfaces:\n",
            "workers: {cpus: 5-2}\ninterfaces:\n",
            8,
            "workers.cpus",
            &["`5-2` is not part of a CPU list"],
        ),
        (
            "interfaces:\n",
            "workers: {count: 0}\ninterfaces:\n",
            8,
            "workers.count",
            &["at least 1"],
        ),
        (
            "interfaces:\n",
            "workers: {cpus: [1], count: 2}\ninterfaces:\n",
            8,
            "workers.count",
            &["2 workers on 1 CPUs"],
        ),
        (
            "interfaces:\n",
            "management: {interface: up}\ninterfaces:\n",
            11,
            "interfaces[1].name",
            &["never taken over"],
        ),
        (
            "interfaces:\n",
            "umem: {total: 12 parsecs}\ninterfaces:\n",
            8,
            "umem.total",
            &["not a size"],
        ),
        (
            "interfaces:\n",
            "snapshot: {budget: 2GiB}\ninterfaces:\n",
            8,
            "snapshot.budget",
            &["out of range", "1MiB to 1GiB"],
        ),
        (
            "interfaces:\n",
            "conntrack: {maxEntries: 7}\ninterfaces:\n",
            8,
            "conntrack.maxEntries",
            &["out of range"],
        ),
        (
            "interfaces:\n",
            "conntrack: {timeouts: {udpNew: 0s}}\ninterfaces:\n",
            8,
            "conntrack.timeouts.udpNew",
            &["shorter than a second"],
        ),
        (
            "interfaces:\n",
            "telemetry: {metricsListen: everywhere}\ninterfaces:\n",
            8,
            "telemetry.metricsListen",
            &["ADDRESS:PORT"],
        ),
        (
            "{name: p1, kind: pod}",
            "{kind: pod}",
            9,
            "interfaces[0]",
            &["either a `name` or a `match`"],
        ),
        (
            "{name: p1, kind",
            "{name: averyveryverylongname, kind",
            9,
            "interfaces[0].name",
            &["1 to 15 bytes"],
        ),
        (
            "{name: up,",
            "{name: p1,",
            10,
            "interfaces[1].name",
            &["already is interfaces[0]"],
        ),
        (
            "kind: pod}",
            "kind: pod, rxQueues: many}",
            9,
            "interfaces[0].rxQueues",
            &["1 and up"],
        ),
        (
            "kind: pod}",
            "kind: pod, mtu: 99}",
            9,
            "interfaces[0].mtu",
            &["576 to 9216"],
        ),
        (
            "kind: pod}",
            "kind: pod, zeroCopy: require, xdpMode: generic}",
            9,
            "interfaces[0].zeroCopy",
            &["impossible"],
        ),
        (
            "name: up, kind: uplink, side: outside}",
            "name: h, kind: host}\nfailMode: open",
            11,
            "failMode",
            &["lead back by the `host` interface"],
        ),
        (
            pods,
            &format!("{wired}wires:\n  - {{name: w, interfaces: [a, b, a]}}\n"),
            12,
            "wires[0].interfaces",
            &["two ends"],
        ),
        (
            pods,
            &format!("{wired}  - {{name: c}}\n{wire}"),
            11,
            "interfaces[2].name",
            &["no end of a wire"],
        ),
        (
            pods,
            &format!("  - {{name: a, side: inside}}\n{wire}"),
            11,
            "wires[0].interfaces[1]",
            &["`b` is not in `interfaces`"],
        ),
        (
            pods,
            &format!("  - {{name: a, kind: uplink, side: inside}}\n  - {{name: b, side: outside}}\n{wire}"),
            12,
            "wires[0].interfaces[0]",
            &["remove its `kind`"],
        ),
        (
            pods,
            &format!("{wired}{wire}routing: {{}}\n"),
            13,
            "routing",
            &["either wired or routed"],
        ),
        (
            "interfaces:\n",
            "overlay: {opaque: alarm}\ninterfaces:\n",
            8,
            "overlay.opaque",
            &["not supported yet", "remove it"],
        ),
        (
            "interfaces:\n",
            "logging: {denied: all}\ninterfaces:\n",
            8,
            "logging.denied",
            &["not supported yet"],
        ),
        (
            "interfaces:\n",
            "routing: {reversePath: feasible}\ninterfaces:\n",
            8,
            "routing.reversePath",
            &["unknown value `feasible`", "strict, loose, off"],
        ),
        (
            "kind: pod}",
            "kind: pod, vlan: 100}",
            9,
            "interfaces[0].vlan",
            &["not supported yet"],
        ),
    ] {
        assert!(GOOD.contains(from), "{from} is not in the good file");
        let text = GOOD.replacen(from, to, 1);
        let error = match parse(&text) {
            Ok(_) => {
                wrong.push(format!("accepted: {to}"));
                continue;
            }
            Err(error) => error,
        };
        let [problem] = error.problems() else {
            wrong.push(format!("wanted one problem for {to}, got:\n{error}"));
            continue;
        };
        if problem.position.map_or(0, |(line, _)| line) != line || problem.path != path {
            wrong.push(format!(
                "wanted line {line}, path `{path}` for {to}, got `{}`: {error}",
                problem.path
            ));
        }
        for word in words.iter().filter(|word| !error.to_string().contains(**word)) {
            wrong.push(format!("`{word}` is not in: {error}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn a_gateway_names_the_side_of_every_interface() {
    let unnamed = GOOD.replace(", side: outside", "");
    for more in ["", "antiSpoofing: strict\n", "mode: audit\n"] {
        let error = parse(&format!("{unnamed}{more}")).unwrap_err();
        assert_eq!(error.problems().len(), 1, "{error}");
        assert_eq!(error.problems()[0].path, "interfaces[1]");
    }
    let any = GOOD.replace("side: outside", "side: any");
    let error = parse(&any).unwrap_err();
    assert_eq!(error.problems()[0].path, "interfaces[1].side");
    parse(&format!("{any}mode: audit\n")).unwrap();
    parse(&format!("{any}antiSpoofing: off\n")).unwrap();
    let hosting = unnamed.replace("kind: Gateway", "kind: Gateway\ndatapath: afxdp");
    assert_eq!(parse(&hosting).unwrap().interface("up").unwrap().side, Side::Any);
}

#[test]
fn what_packets_may_claim_can_be_chosen() {
    let config = parse(GOOD).unwrap();
    assert_eq!(config.anti_spoofing, AntiSpoofing::Sides);
    assert_eq!(config.reverse_path, ReversePath::Strict);
    assert_eq!(config.tunnels.ports, [4789, 6081, 8285, 8472]);
    assert_eq!(
        (config.tunnels.allowed, config.conntrack.tcp),
        (false, TcpTracking::Strict)
    );
    let config = parse(&format!(
        "{GOOD}antiSpoofing: strict\nrouting: {{reversePath: loose}}\noverlay: {{fromPods: allow, ports: [4790]}}\n\
         conntrack: {{tcp: loose, tcpMidstream: pickupAnswers}}\n"
    ))
    .unwrap();
    assert_eq!(config.anti_spoofing, AntiSpoofing::Strict);
    assert_eq!(config.reverse_path, ReversePath::Loose);
    assert_eq!((config.tunnels.allowed, config.tunnels.ports), (true, vec![4790]));
    assert_eq!(config.tunnels.kinds, []);
    assert_eq!(config.conntrack.tcp, TcpTracking::Loose);
    assert_eq!(config.conntrack.tcp_midstream, Midstream::PickupAnswers);
}

#[test]
fn tunnels_are_looked_into_unless_they_are_configured_otherwise() {
    use ringwall_config::{
        OverlayNetwork,
        UdpTunnel::{Flannel, Geneve, Vxlan},
    };
    let tunnels = parse(GOOD).unwrap().tunnels;
    assert_eq!(
        tunnels.kinds,
        [(4789, Vxlan), (6081, Geneve), (8285, Flannel), (8472, Vxlan)]
    );
    assert_eq!(
        (tunnels.ip_in_ip, tunnels.gre, tunnels.opaque_allowed),
        (true, true, false)
    );
    assert_eq!(tunnels.networks, []);
    let of = |overlay: &str| parse(&format!("{GOOD}overlay: {{{overlay}}}\n")).map(|config| config.tunnels);
    let tunnels = of("vxlanPorts: [4790, 8472], ipip: false, gre: false, opaque: allow, networks: [{vni: 1}, {vni: 4096, zone: 7}]").unwrap();
    assert_eq!(
        tunnels.kinds,
        [(4790, Vxlan), (6081, Geneve), (8285, Flannel), (8472, Vxlan)]
    );
    assert_eq!(tunnels.ports, [4790, 6081, 8285, 8472]);
    assert_eq!(
        (tunnels.ip_in_ip, tunnels.gre, tunnels.opaque_allowed),
        (false, false, true)
    );
    assert_eq!(
        tunnels.networks,
        [
            OverlayNetwork { vni: 1, zone: 0 },
            OverlayNetwork { vni: 4096, zone: 7 }
        ]
    );
    // A port that is unpacked by something else is known, and cannot be looked into.
    let tunnels = of("ports: [5000, 8472], vxlanPorts: [8472, 8473]").unwrap();
    assert_eq!(
        (tunnels.ports, tunnels.kinds),
        (vec![5000, 8472, 8473], vec![(8472, Vxlan), (8473, Vxlan)])
    );
    for (overlay, path, word) in [
        (
            "vxlanPorts: [6081], genevePorts: [6081]",
            "overlay.genevePorts",
            "another kind",
        ),
        ("ports: [0]", "overlay.ports", "no UDP port"),
        (
            "ports: [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17]",
            "overlay.ports",
            "too many",
        ),
        ("networks: []", "overlay.networks", "no network"),
        (
            "networks: [{vni: 16777216}]",
            "overlay.networks[0].vni",
            "out of range",
        ),
        (
            "networks: [{vni: 1}, {vni: 1, zone: 2}]",
            "overlay.networks[1].vni",
            "twice",
        ),
        ("opaque: alarm", "overlay.opaque", "not supported"),
    ] {
        let text = format!("{:?}", of(overlay).unwrap_err());
        assert!(text.contains(path) && text.contains(word), "{overlay}: {text}");
    }
}

#[test]
fn failsafe_rules_become_pairs_of_networks_and_runs_of_ports() {
    let config = parse(&format!(
        "{GOOD}failsafe:\n  allow:\n    - {{from: podCIDRs, to: [192.0.2.10/32, \"2001:db8::/64\"], protocol: TCP, ports: [6443, 80, 81]}}\n    \
         - {{from: [198.51.100.7/24], to: podCIDRs}}\n"
    ))
    .unwrap();
    let shown: Vec<_> = config
        .failsafe
        .iter()
        .map(|entry| {
            let (from, to) = (entry.from, entry.to);
            format!("{from} {to} {:?} {:?}", entry.protocol, entry.ports)
        })
        .collect();
    let pods = config.cluster.pod_cidrs[0];
    assert_eq!(
        shown,
        [
            format!("{pods} 192.0.2.10/32 Some(6) Some((80, 81))"),
            format!("{pods} 192.0.2.10/32 Some(6) Some((6443, 6443))"),
            format!("198.51.100.0/24 {pods} None None"),
        ]
    );
}

#[test]
fn failsafe_rules_that_cannot_be_meant_are_refused() {
    for (rule, path, word) in [
        ("{from: nodes, to: podCIDRs}", "from", "nodeCIDRs"),
        ("{from: [], to: podCIDRs}", "from", "no network"),
        (
            "{from: [\"2001:db8::/64\"], to: [10.0.0.0/8]}",
            "to",
            "same family",
        ),
        ("{from: podCIDRs, to: podCIDRs, ports: [80]}", "ports", "protocol"),
        (
            "{from: podCIDRs, to: podCIDRs, protocol: TCP, ports: []}",
            "ports",
            "empty",
        ),
        (
            "{from: podCIDRs, to: podCIDRs, protocol: ICMP}",
            "protocol",
            "ICMP",
        ),
    ] {
        let error = parse(&format!("{GOOD}failsafe:\n  allow:\n    - {rule}\n")).unwrap_err();
        let problem = &error.problems()[0];
        assert_eq!(problem.path, format!("failsafe.allow[0].{path}"), "{rule}");
        assert!(
            problem.to_string().contains(word) || format!("{problem:?}").contains(word),
            "{rule}: {problem:?}"
        );
    }
    let ports: Vec<_> = (0..33).map(|index| (index * 2 + 1).to_string()).collect();
    let text = format!(
        "{GOOD}failsafe:\n  allow:\n    - {{from: podCIDRs, to: podCIDRs, protocol: TCP, ports: [{}]}}\n",
        ports.join(", ")
    );
    let error = parse(&text).unwrap_err();
    assert_eq!(error.problems()[0].path, "failsafe.allow");
    assert!(error.to_string().contains("at most 32"), "{error}");
}

#[test]
fn every_unsupported_key_of_the_format_is_named() {
    let text = format!(
        "{GOOD}routing:\n  ecmp: random\n  icmpErrors: {{rateLimit: 1000/s}}\nfailsafe: {{confirmTimeout: 5m}}\n\
         masqueradedSources: alarm\n"
    );
    let error = parse(&text).unwrap_err();
    let paths: Vec<_> = error
        .problems()
        .iter()
        .map(|problem| problem.path.as_str())
        .collect();
    assert_eq!(
        paths,
        [
            "routing.ecmp",
            "routing.icmpErrors.rateLimit",
            "failsafe.confirmTimeout",
            "masqueradedSources"
        ]
    );
}

#[test]
fn the_report_shows_the_line() {
    let error = parse(&GOOD.replace("kind: pod", "kind: bod")).unwrap_err();
    let mut shown = String::new();
    miette::GraphicalReportHandler::new_themed(miette::GraphicalTheme::unicode_nocolor())
        .render_report(&mut shown, &error)
        .unwrap();
    for part in ["gw.yaml:9", "{name: p1, kind: bod}", "did you mean `pod`"] {
        assert!(shown.contains(part), "`{part}` is not in:\n{shown}");
    }
}

#[test]
fn a_file_that_cannot_be_read_is_named() {
    let error = Config::load(Path::new("/nowhere/gw.yaml"))
        .unwrap_err()
        .to_string();
    assert!(
        error.starts_with("/nowhere/gw.yaml: cannot be read: No such file"),
        "{error}"
    );
}

/// `config/schema.json` is generated: `UPDATE_SCHEMA=1 cargo test -p ringwall-config` writes it.
#[test]
fn the_schema_is_up_to_date() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("schema.json");
    let generated = serde_json::to_string_pretty(&schemars::schema_for!(Raw)).unwrap() + "\n";
    if std::env::var_os("UPDATE_SCHEMA").is_some() {
        std::fs::write(&file, &generated).unwrap();
    }
    let stored = std::fs::read_to_string(&file).unwrap_or_default();
    assert!(
        stored == generated,
        "config/schema.json is out of date: run UPDATE_SCHEMA=1 cargo test -p ringwall-config"
    );
}

const WIRED: &str = "interfaces:
  - {name: a, side: inside}
  - {name: b, side: outside}
  - {name: c, side: inside}
  - {name: d, side: outside}
wires:
  - {name: w0, interfaces: [a, b]}
  - {name: w1, interfaces: [c, d]}
";

/// The good file with these interfaces and places.
fn placed(interfaces: &str, places: &str) -> String {
    let (before, _) = GOOD.split_once("interfaces:").unwrap();
    let places = format!("cluster:\n  places: {places}\n");
    format!("{}{interfaces}", before.replacen("cluster:\n", &places, 1))
}

#[test]
fn networks_have_places() {
    let text = placed(
        WIRED,
        "[{networks: [10.10.1.7/16, \"fd00:10::/48\"], wire: w0, vlan: 10}, {networks: [10.20.0.0/16], interfaces: [a, c], vlan: 20, \
         outerVlan: 100}, {networks: [10.30.0.0/16], vlan: untagged}, {networks: [10.40.0.0/16], interfaces: [b]}]",
    );
    let places = parse(&text).unwrap().cluster.places;
    let place = |network: &str, interfaces: Option<&[&str]>, vlan| NetworkPlacement {
        network: network.parse().unwrap(),
        interfaces: interfaces.map(|names| names.iter().map(|name| (*name).to_owned()).collect()),
        vlan,
    };
    assert_eq!(
        places,
        [
            place("10.10.0.0/16", Some(&["a", "b"]), Some(VlanTags::Single(10))),
            place("fd00:10::/48", Some(&["a", "b"]), Some(VlanTags::Single(10))),
            place(
                "10.20.0.0/16",
                Some(&["a", "c"]),
                Some(VlanTags::Double {
                    outer: 100,
                    inner: 20
                })
            ),
            place("10.30.0.0/16", None, Some(VlanTags::Untagged)),
            place("10.40.0.0/16", Some(&["b"]), None),
        ]
    );
    let routed = placed(
        "interfaces:\n  - {name: up, side: outside}\n",
        "[{networks: [10.10.0.0/16], interfaces: [up]}]",
    );
    assert_eq!(
        parse(&routed).unwrap().cluster.places[0].interfaces,
        Some(vec!["up".to_owned()])
    );
}

#[test]
fn places_that_are_none_are_refused() {
    let routed = "interfaces:\n  - {name: up, side: outside}\n  - {match: \"cali*\", kind: pod}\n";
    for (interfaces, place, path, words) in [
        (WIRED, "networks: [], vlan: 1", "networks", "an empty list"),
        (WIRED, "networks: [10.1.0.0/16]", "", "says no place"),
        (
            WIRED,
            "networks: [10.1.0.0/16], wire: w2",
            "wire",
            "there is no wire called `w2`|the wires are: w0, w1",
        ),
        (
            WIRED,
            "networks: [10.1.0.0/16], wire: w0, interfaces: [a]",
            "wire",
            "say two places",
        ),
        (
            WIRED,
            "networks: [10.1.0.0/16], interfaces: [e]",
            "interfaces[0]",
            "`e` is not in `interfaces`",
        ),
        (
            WIRED,
            "networks: [10.1.0.0/16], interfaces: []",
            "interfaces",
            "an empty list",
        ),
        (
            WIRED,
            "networks: [10.1.0.0/16], vlan: 4095",
            "vlan",
            "4095 is no VLAN|1 to 4094",
        ),
        (WIRED, "networks: [10.1.0.0/16], vlan: 0", "vlan", "0 is no VLAN"),
        (
            WIRED,
            "networks: [10.1.0.0/16], vlan: all",
            "vlan",
            "`all` is no VLAN|`untagged`",
        ),
        (
            WIRED,
            "networks: [10.1.0.0/16], vlan: 1, outerVlan: 5000",
            "outerVlan",
            "5000 is no VLAN",
        ),
        (
            WIRED,
            "networks: [10.1.0.0/16], outerVlan: 5",
            "outerVlan",
            "without an inner one",
        ),
        (
            WIRED,
            "networks: [10.1.0.0/16], vlan: untagged, outerVlan: 5",
            "outerVlan",
            "without an inner one",
        ),
        (
            WIRED,
            "networks: [10.1.0.0/16, 10.1.2.0/24], vlan: 5",
            "networks[1]",
            "10.1.2.0/24 overlaps 10.1.0.0/16 of cluster.places[0].networks[0]",
        ),
        (
            routed,
            "networks: [10.1.0.0/16], wire: w0",
            "wire",
            "there is no wire called `w0`|no wires",
        ),
        (
            routed,
            "networks: [10.1.0.0/16], interfaces: [\"cali*\"]",
            "interfaces[0]",
            "`cali*` is not in `interfaces` by its name",
        ),
        (
            routed,
            "networks: [10.1.0.0/16], interfaces: [up], vlan: 10",
            "vlan",
            "VLANs are told apart on wires|make a VLAN interface",
        ),
    ] {
        let error = parse(&placed(interfaces, &format!("[{{{place}}}]"))).unwrap_err();
        let [problem] = error.problems() else {
            panic!("{place}: {error}")
        };
        let path = match path {
            "" => "cluster.places[0]".to_owned(),
            key => format!("cluster.places[0].{key}"),
        };
        assert_eq!(problem.path, path, "{error}");
        for word in words.split('|') {
            assert!(error.to_string().contains(word), "{word}: {error}");
        }
    }
}

const NODE: &str = "apiVersion: ringwall.io/v1alpha1\nkind: Node\nname: rw\n\
     cluster: {podCIDRs: [10.0.0.0/8]}\nsource: {manifests: /m}\n";

#[test]
fn a_node_guards_the_kernels_path_and_lists_no_interfaces() {
    let config = parse(NODE).unwrap();
    assert_eq!(config.role, Role::KernelPath);
    assert!(config.interfaces.is_empty() && !config.hosts_pods);
    assert_eq!(parse(&format!("{NODE}datapath: kernel\n")).unwrap(), config);
    let frank = parse(&format!("{NODE}denied: {{answer: reset}}\n")).unwrap();
    assert_eq!(frank.denied, DenialAnswer::Reset);
    for (more, path) in [
        ("interfaces: [{name: eth0, kind: uplink}]\n", "interfaces"),
        ("routing: {reversePath: loose}\n", "routing"),
        ("datapath: afxdp\n", "datapath"),
        ("untaintNode: true\n", "untaintNode"),
    ] {
        let error = parse(&format!("{NODE}{more}")).unwrap_err();
        assert_eq!(error.problems()[0].path, path, "{error}");
    }
    for (more, path) in [
        ("interfaces: [eth0]", "cluster.places"),
        ("wire: w", "cluster.places"),
    ] {
        let places = NODE.replace(
            "podCIDRs: [10.0.0.0/8]",
            &format!("podCIDRs: [10.0.0.0/8], places: [{{networks: [10.0.0.0/8], {more}}}]"),
        );
        let error = parse(&places).unwrap_err();
        assert!(
            error.problems().iter().any(|problem| problem.path == path),
            "{error}"
        );
    }
    let gateway = NODE.replace("kind: Node", "kind: Gateway");
    assert_eq!(parse(&gateway).unwrap_err().problems()[0].path, "interfaces");
    let gateway = format!("{gateway}datapath: kernel\n");
    let error = parse(&gateway).unwrap_err();
    let found: Vec<&str> = error
        .problems()
        .iter()
        .map(|problem| problem.path.as_str())
        .collect();
    assert_eq!(found, ["interfaces", "datapath"]);
}

#[test]
fn a_node_of_an_api_server_may_lose_its_taint_and_a_gateway_has_none() {
    let node = NODE.replace("manifests: /m", "kubeconfig: /k");
    assert!(!parse(&node).unwrap().untaint_node);
    assert!(parse(&format!("{node}untaintNode: true\n")).unwrap().untaint_node);
    let error = parse(&format!("{GOOD}untaintNode: true\n")).unwrap_err();
    assert_eq!(error.problems()[0].path, "untaintNode", "{error}");
}

#[test]
fn denied_packets_can_be_answered() {
    let silent = parse(GOOD).unwrap();
    assert_eq!((silent.denied, silent.denied_rate), (DenialAnswer::Drop, 50));
    let frank = parse(&format!("{GOOD}denied: {{answer: prohibited, rate: 7}}\n")).unwrap();
    assert_eq!((frank.denied, frank.denied_rate), (DenialAnswer::Prohibited, 7));
    for (more, path) in [
        ("denied: {answer: reset, rate: 0}\n", "denied.rate"),
        ("denied: {answer: reject}\n", "denied.answer"),
    ] {
        let error = parse(&format!("{GOOD}{more}")).unwrap_err();
        assert_eq!(error.problems()[0].path, path, "{error}");
    }
}

#[test]
fn a_gateway_can_be_the_node_of_the_pods_behind_its_ports() {
    assert!(!parse(GOOD).unwrap().hosts_pods);
    let hosting = GOOD.replace("kind: Gateway", "kind: Gateway\ndatapath: afxdp");
    assert!(parse(&hosting).unwrap().hosts_pods);
}
