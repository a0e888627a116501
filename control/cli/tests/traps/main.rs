//! Each trap of `docs/semantics.md` (T1 to T76) at every level: one cluster and its packets (`cases.txt`) are asked of the reference
//! evaluator, of the compiled snapshot and of a worker in memory; the snapshot is proven; and a snapshot that decides one packet the
//! other way is refused by the checker. `tests/TRAPS.md` is the table of what that came to.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test may stop at the first surprise"
)]

mod orders;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    fs,
    net::IpAddr,
    path::Path,
    sync::Arc,
};

use ringwall_compile::{EpochKey, compile};
use ringwall_dataplane::{
    addr::Addr,
    classify::{Generation, L4, NodeExemption, Snapshot},
    time::Nanos,
    wire::{TcpFlags, build::Template},
};
use ringwall_evaluate::{End, Identity, Service, identify, judge};
use ringwall_policy::{
    Action, Cluster, Conditions, NAMESPACE_NAME_LABEL, Operator, Order, Peer, Pod, PodSelection, PolicyId,
    PolicyKind, Requirement, Selector, Settings, Tier, TierDefault, TieredPolicy, TieredRule,
};
use ringwall_prove::Checker;
use ringwall_replay::replay::{Replay, Verdict};
use ringwall_source::folder;

/// Namespaces, nodes and pods of every case. The account `s` is that of `web` and `x`.
const CLUSTER: &str = r"
{apiVersion: v1, kind: Namespace, metadata: {name: shop, labels: {team: a}}}
{apiVersion: v1, kind: Namespace, metadata: {name: other, labels: {team: b}}}
{apiVersion: v1, kind: Node, metadata: {name: n1, labels: {zone: a}}, status: {addresses: [{type: InternalIP, address: 192.0.2.1}]}}
{apiVersion: v1, kind: Node, metadata: {name: n2, labels: {zone: b}}, status: {addresses: [{type: Hostname, address: 192.0.2.2}]}}
{apiVersion: v1, kind: Pod, metadata: {name: web, namespace: shop, labels: {role: web, pcns.team: admin}}, spec: {nodeName: n1, serviceAccountName: s}, status: {podIPs: [{ip: 10.0.0.1}, {ip: 'fd00::1'}]}}
{apiVersion: v1, kind: Pod, metadata: {name: db, namespace: shop, labels: {role: db, x: '1'}}, spec: {nodeName: n2, containers: [{name: c, ports: [{name: web, containerPort: 80}, {name: sql, containerPort: 5432}, {name: dns, containerPort: 53}, {name: dns, containerPort: 53, protocol: UDP}]}]}, status: {podIPs: [{ip: 10.0.0.2}, {ip: 'fd00::2'}]}}
{apiVersion: v1, kind: Pod, metadata: {name: x, namespace: other, labels: {role: web}}, spec: {nodeName: n2, serviceAccountName: s, containers: [{name: c, ports: [{name: web, containerPort: 8080, protocol: UDP}]}]}, status: {podIPs: [{ip: 10.0.1.1}, {ip: 'fd00::1:1'}]}}
{apiVersion: v1, kind: Pod, metadata: {name: agent, namespace: shop, labels: {role: agent}}, spec: {nodeName: n1, hostNetwork: true}, status: {podIP: 192.0.2.1}}
";

/// The ends of packets, by name.
const ENDS: [(&str, &str); 10] = [
    ("web", "10.0.0.1"),
    ("web6", "fd00::1"),
    ("db", "10.0.0.2"),
    ("db6", "fd00::2"),
    ("x", "10.0.1.1"),
    ("x6", "fd00::1:1"),
    ("n1", "192.0.2.1"),
    ("n2", "192.0.2.2"),
    ("out", "203.0.113.9"),
    ("out6", "2001:db8::9"),
];

/// Traps that no verdict about a packet shows, and what holds them instead.
const WITHOUT_PACKETS: [(u32, &str); 4] = [
    (31, "such an object is refused"),
    (35, "names of domains are not evaluated"),
    (54, "policies of host endpoints are not evaluated"),
    (56, "such an object is refused"),
];

/// Traps of which a worker decides every packet before policy does.
const UNSEEN_BY_WORKERS: [(u32, &str); 1] = [(76, "tunnels of pods drop as `encapsulation`")];

/// A packet and its verdict.
#[derive(Clone, Debug)]
struct Packet {
    text: String,
    src: IpAddr,
    dst: IpAddr,
    protocol: u8,
    port: Option<u16>,
    allowed: bool,
    /// A worker decides it without policy.
    unseen: bool,
}

/// The source port of packets that have one.
const SOURCE: u16 = 40_000;

impl Packet {
    fn read(text: &str) -> Option<Self> {
        let words: Vec<&str> = text.split(' ').collect();
        let [src, dst, service, verdict @ ("allow" | "deny"), ref more @ ..] = words[..] else {
            return None;
        };
        let address = |name: &str| -> IpAddr {
            let known = ENDS.iter().find(|(known, _)| *known == name);
            known.map_or(name, |(_, address)| address).parse().unwrap()
        };
        let (protocol, number) = service.split_once('/').unwrap_or((service, ""));
        let number = (!number.is_empty()).then(|| number.parse::<u16>().unwrap());
        let (protocol, port) = match protocol {
            "TCP" => (6, number),
            "UDP" => (17, number),
            // An echo request, as a type and a code.
            "ICMP" => (1, Some(8 << 8)),
            "ICMPv6" => (58, Some(128 << 8)),
            "IP" => (u8::try_from(number.unwrap()).unwrap(), None),
            _ => panic!("{text}"),
        };
        Some(Self {
            text: text.to_owned(),
            src: address(src),
            dst: address(dst),
            protocol,
            port,
            allowed: verdict == "allow",
            unseen: match more {
                [] => false,
                ["unseen"] => true,
                _ => panic!("{text}"),
            },
        })
    }

    fn service(&self) -> Service {
        Service {
            protocol: self.protocol,
            port: self.port,
            source_port: matches!(self.protocol, 6 | 17).then_some(SOURCE),
        }
    }

    /// The first packet of a flow.
    fn frame(&self) -> Vec<u8> {
        let template = Template::new(Addr::from(self.src), Addr::from(self.dst));
        let v4 = self.src.is_ipv4();
        match (self.protocol, self.port) {
            (6, Some(port)) => template.tcp(SOURCE, port, TcpFlags::SYN, &[]),
            (17, Some(port)) => template.udp(SOURCE, port, b"x"),
            (1, _) if v4 => template.echo(1, true),
            (58, _) if !v4 => template.echo(1, true),
            (number, _) => template.ip(number, &[8, 0, 0, 0, 0, 1, 0, 1]),
        }
    }
}

/// A cluster with its packets.
#[derive(Default)]
struct Case {
    documents: Vec<String>,
    forgotten: Vec<String>,
    packets: Vec<Packet>,
}

impl Case {
    fn line(&mut self, line: &str) {
        if let Some(packet) = Packet::read(line) {
            return self.packets.push(packet);
        }
        let (kind, rest) = line.split_once(' ').unwrap();
        let (name, spec) = rest.split_once(' ').unwrap_or((rest, ""));
        let (version, kind, namespace) = match kind {
            "-" => return self.documents.push(rest.to_owned()),
            "forget" => return self.forgotten.push(rest.to_owned()),
            "cnp" => ("policy.networking.k8s.io/v1alpha2", "ClusterNetworkPolicy", ""),
            "anp" => ("policy.networking.k8s.io/v1alpha1", "AdminNetworkPolicy", ""),
            "np" => ("networking.k8s.io/v1", "NetworkPolicy", "shop"),
            "gnp" => ("projectcalico.org/v3", "GlobalNetworkPolicy", ""),
            "calico" => ("projectcalico.org/v3", "NetworkPolicy", "shop"),
            "staged" => ("projectcalico.org/v3", "StagedGlobalNetworkPolicy", ""),
            "tier" => ("projectcalico.org/v3", "Tier", ""),
            "set" => ("projectcalico.org/v3", "GlobalNetworkSet", ""),
            _ => panic!("{line}"),
        };
        let namespace = match namespace {
            "" => String::new(),
            namespace => format!(", namespace: {namespace}"),
        };
        self.documents.push(format!(
            "apiVersion: {version}\nkind: {kind}\nmetadata: {{name: {name}{namespace}}}\nspec: {spec}"
        ));
    }

    fn cluster(&self) -> Cluster {
        let dir = tempfile::tempdir().unwrap();
        let common = CLUSTER.trim().lines();
        let documents: Vec<&str> = common.chain(self.documents.iter().map(String::as_str)).collect();
        fs::write(dir.path().join("all.yaml"), documents.join("\n---\n")).unwrap();
        let mut cluster = folder::load(dir.path(), &Settings::default()).unwrap().cluster;
        for name in &self.forgotten {
            assert!(cluster.namespaces.remove(name).is_some(), "{name}");
        }
        cluster
    }
}

/// The cases of every trap.
fn traps() -> BTreeMap<u32, Vec<Case>> {
    let mut traps: BTreeMap<u32, Vec<Case>> = BTreeMap::new();
    let mut number = 0;
    for line in include_str!("cases.txt")
        .lines()
        .filter(|line| !line.starts_with('#'))
    {
        let begins = line.strip_prefix('T').and_then(|number| number.parse().ok());
        if let Some(begins) = begins {
            number = begins;
            assert!(traps.insert(number, vec![Case::default()]).is_none(), "{line}");
            continue;
        }
        let cases = traps.get_mut(&number).unwrap();
        match line {
            "" => cases.push(Case::default()),
            line => cases.last_mut().unwrap().line(line),
        }
    }
    traps
}

fn compiled(cluster: &Cluster) -> Arc<Snapshot> {
    let image = compile(cluster, Generation(1), &EpochKey::OFFLINE).unwrap();
    Arc::new(Snapshot::open(&image.bytes).unwrap())
}

fn ends<'c>(cluster: &'c Cluster, packet: &Packet) -> (End<'c>, End<'c>) {
    (identify(cluster, packet.src), identify(cluster, packet.dst))
}

fn reference(cluster: &Cluster, packet: &Packet) -> bool {
    let (src, dst) = ends(cluster, packet);
    judge(cluster, &src, &dst, packet.service()).allow()
}

fn by_snapshot(snapshot: &Snapshot, packet: &Packet) -> bool {
    let [src, dst] = [packet.src, packet.dst].map(|end| snapshot.identify(Addr::from(end)));
    let port = packet.port.unwrap_or_default();
    let l4 = L4::of(packet.protocol, packet.port.is_some().then_some(port), SOURCE);
    let own = packet.src == packet.dst;
    let judged = snapshot.judge_ends(&src, &dst, own, l4, NodeExemption::Trusted);
    judged.ingress.allow && judged.egress.allow
}

fn by_worker(cluster: &Cluster, packet: &Packet) -> bool {
    let image = compile(cluster, Generation(1), &EpochKey::OFFLINE).unwrap();
    let snapshot = Snapshot::open(&image.bytes).unwrap();
    let mut replay = Replay::new(1, None, snapshot, Nanos(0)).unwrap();
    match replay.judge(&packet.frame(), Some(Nanos(0))).unwrap().verdict {
        Verdict::Forward => true,
        Verdict::Drop(reason) => {
            let by_policy = matches!(
                reason.name(),
                "policy-ingress" | "policy-egress" | "unknown-endpoint"
            );
            assert!(by_policy, "{}: {}", packet.text, reason.name());
            false
        }
        Verdict::Pass(kind) => panic!("{}: passes as {}", packet.text, kind.name()),
    }
}

/// The cluster in which what passes between the ends of a packet is the other way round, before all other policies.
fn mutated(cluster: &Cluster, packet: &Packet) -> Cluster {
    let mut cluster = cluster.clone();
    let first = Tier {
        name: "first".to_owned(),
        order: Order::new(-1.0).unwrap(),
        default: TierDefault::Pass,
    };
    let (src, dst) = ends(&cluster, packet);
    let pod = |end: &End<'_>| match end.identity {
        Identity::Pod(pod) => Some(pod.clone()),
        _ => None,
    };
    let (src, dst) = (pod(&src), pod(&dst));
    let rule = |other: IpAddr| {
        vec![TieredRule {
            continues: false,
            action: if packet.allowed {
                Action::Deny
            } else {
                Action::Allow
            },
            peers: Some(vec![Peer::Block {
                cidr: other.into(),
                except: Vec::new(),
            }]),
            ports: None,
            conditions: Conditions::NONE,
        }]
    };
    let policy = |name: &str, pod: Pod, ingress, egress| TieredPolicy {
        id: PolicyId {
            kind: PolicyKind::GlobalNetworkPolicy,
            namespace: String::new(),
            name: name.to_owned(),
        },
        uid: String::new(),
        tier: first.name.clone(),
        order: Order::LAST,
        subjects: vec![PodSelection {
            namespaces: having([(NAMESPACE_NAME_LABEL, pod.key.namespace.as_str())]),
            pods: having(
                pod.labels
                    .iter()
                    .map(|(key, value)| (key.as_str(), value.as_str())),
            ),
        }],
        answer: None,
        ingress,
        egress,
        faults: Vec::new(),
        unevaluated: BTreeSet::new(),
    };
    let policies = [
        dst.map(|pod| policy("into", pod, Some(rule(packet.src)), None)),
        src.map(|pod| policy("out-of", pod, None, Some(rule(packet.dst)))),
    ];
    for policy in policies.into_iter().flatten() {
        cluster.tiered.insert(policy.id.clone(), Arc::new(policy));
    }
    cluster.tiers.insert(first.name.clone(), Arc::new(first));
    cluster
}

fn having<'l>(labels: impl IntoIterator<Item = (&'l str, &'l str)>) -> Selector {
    let requirement = |(key, value): (&str, &str)| Requirement {
        key: key.to_owned(),
        operator: Operator::In([value.to_owned()].into()),
    };
    Selector {
        requirements: labels.into_iter().map(requirement).collect(),
    }
}

/// Of a trap, what its packets were asked of.
#[derive(Default)]
struct Levels {
    packets: usize,
    mutations: usize,
    by_workers: usize,
}

fn levels(name: &str, cases: &[Case]) -> Levels {
    let mut levels = Levels::default();
    for case in cases {
        assert!(!case.packets.is_empty(), "{name} has a cluster without packets");
        let cluster = case.cluster();
        let snapshot = compiled(&cluster);
        let proven = Checker::new().full(&cluster, &snapshot);
        assert!(proven.is_ok(), "{name} is not proven: {:?}", proven.err());
        for packet in &case.packets {
            let what = format!("{name}: {}", packet.text);
            levels.packets += 1;
            assert_eq!(
                reference(&cluster, packet),
                packet.allowed,
                "{what}, by the evaluator"
            );
            assert_eq!(by_snapshot(&snapshot, packet), packet.allowed, "{what}, compiled");
            if !packet.unseen {
                assert_eq!(by_worker(&cluster, packet), packet.allowed, "{what}, by a worker");
                levels.by_workers += 1;
            }
            // Exemptions and addresses that are not known are no matter of policies.
            let wrong = mutated(&cluster, packet);
            if reference(&wrong, packet) == packet.allowed {
                continue;
            }
            let wrong = compiled(&wrong);
            assert_ne!(by_snapshot(&wrong, packet), packet.allowed, "{what}, mutated");
            let refused = Checker::new().full(&cluster, &wrong);
            assert!(
                refused.is_err(),
                "{what}: the checker passes over a wrong snapshot"
            );
            levels.mutations += 1;
        }
    }
    levels
}

/// The text of every trap.
fn texts(root: &Path) -> BTreeMap<u32, String> {
    let semantics = fs::read_to_string(root.join("docs/semantics.md")).unwrap();
    let mut texts: BTreeMap<u32, String> = BTreeMap::new();
    let mut last = None;
    for line in semantics.lines() {
        let trap = line.strip_prefix("* **T").and_then(|rest| rest.split_once("** "));
        if let Some((number, text)) = trap {
            let number = number.parse().unwrap();
            texts.insert(number, text.to_owned());
            last = Some(number);
        } else if let Some(number) = last.filter(|_| line.starts_with("  ")) {
            let text = texts.get_mut(&number).unwrap();
            text.push(' ');
            text.push_str(line.trim());
        } else {
            last = None;
        }
    }
    texts
}

/// `tests/TRAPS.md`, from what the traps came to. `UPDATE=1` writes it.
#[test]
fn every_trap_is_held_at_every_level() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let (traps, texts) = (traps(), texts(&root));
    assert_eq!(
        texts.keys().copied().collect::<Vec<_>>(),
        (1..=76).collect::<Vec<_>>()
    );
    let mut table = "# Traps, and what holds them\n\n\
        Each trap of [semantics](../docs/semantics.md) is a cluster with packets in `control/cli/tests/traps/cases.txt`. Each packet is asked of the\n\
        reference evaluator, of the compiled snapshot and of a worker in memory; the checker proves the snapshot, and refuses one in which the packet is\n\
        decided the other way. `cargo test -p ringwall --no-default-features --test traps` does so and fails if this table is not what it came to;\n\
        `UPDATE=1` writes it. Columns count packets.\n\n\
        | trap | what | evaluated, compiled, proven | wrong snapshots refused | by a worker | instead |\n|---|---|---|---|---|---|\n"
        .to_owned();
    for (number, text) in &texts {
        let reason = |list: &[(u32, &'static str)]| {
            let found = list.iter().find(|(of, _)| of == number);
            found.map(|(_, why)| *why)
        };
        let text = text.replace('|', "\\|");
        let Some(cases) = traps.get(number) else {
            let why = reason(&WITHOUT_PACKETS).unwrap_or_else(|| panic!("T{number} has no cluster"));
            writeln!(table, "| T{number} | {text} | | | | {why} |").unwrap();
            continue;
        };
        let Levels {
            packets,
            mutations,
            by_workers,
        } = levels(&format!("T{number}"), cases);
        assert!(mutations > 0, "T{number}: no wrong snapshot was tried");
        assert_eq!(
            by_workers == 0,
            reason(&UNSEEN_BY_WORKERS).is_some(),
            "T{number}: workers"
        );
        let instead = reason(&UNSEEN_BY_WORKERS).unwrap_or_default();
        writeln!(
            table,
            "| T{number} | {text} | {packets} | {mutations} | {by_workers} | {instead} |"
        )
        .unwrap();
    }
    let file = root.join("tests/TRAPS.md");
    if std::env::var_os("UPDATE").is_some() {
        fs::write(&file, &table).unwrap();
    }
    let written = fs::read_to_string(&file).unwrap_or_default();
    assert_eq!(written, table, "run the test with UPDATE=1");
}
