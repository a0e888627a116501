//! Each trap of `docs/semantics.md` on real packets: every case of `tests/src/traps/cases.txt` is given to a running appliance, its packets
//! are sent from their sources' namespaces, and each one either arrives at its destination's, or the appliance says that it dropped it,
//! and by which policy and rule. `control/cli/tests/traps` asks the same cases in memory.
#![allow(clippy::unwrap_used, clippy::panic)] // a failed step is a failed test

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    time::{Duration, Instant},
};

use ringwall_analyse::judge::{Reason, reference_reasons};
use ringwall_dataplane::{addr::Addr, wire::build::Template};
use ringwall_evaluate::{identify, judge};
use ringwall_messages::{
    Connection, DATAPLANE_SOCKET, FlowFilter, LiveDrop, LiveRecord, Reply, Request, VERSION,
};
use ringwall_policy::{Cluster, Decider, Settings};
use ringwall_source::folder;
use ringwall_testbed::{
    api_server::ApiServer,
    appliance::{Appliance, Options, PATIENCE, built_binary},
    preflight::runs_here,
    tap::{Tap, mac_of},
    topology::{Bed, Member, POD_CIDR, POD_CIDR_V6, Plan, Role},
    traps::{self, Case, Level, MEMBERS, Packet, PacketEnd},
};
use serde_json::Value;

/// How long to wait before looking again for what became of a packet.
const LOOK: Duration = Duration::from_millis(2);

/// A member of the bed with the port of the gateway that leads to it.
struct Station<'b> {
    member: &'b Member,
    tap: Tap,
    /// The Ethernet address of the gateway's port.
    gateway: [u8; 6],
}

struct Stations<'b>(BTreeMap<&'b str, Station<'b>>);

impl<'b> Stations<'b> {
    fn of(bed: &'b Bed) -> Self {
        let station = |member: &'b Member| Station {
            member,
            tap: Tap::open(&member.ns, "eth0").unwrap(),
            gateway: mac_of(&bed.gateway, &member.port).unwrap(),
        };
        let members = bed.pods.iter().chain([&bed.external]);
        Self(
            members
                .map(|member| (member.name.as_str(), station(member)))
                .collect(),
        )
    }

    fn at(&self, end: PacketEnd) -> &Station<'b> {
        &self.0[end.member]
    }
}

/// What became of a packet.
enum Fate {
    Arrived,
    Dropped(Box<LiveDrop>),
}

/// The drops of the running dataplane.
struct Drops(Connection);

impl Drops {
    fn of(bed: &Bed) -> Self {
        let connection = Connection::connect(&bed.folder().join("run").join(DATAPLANE_SOCKET)).unwrap();
        connection.set_receive_timeout(Some(PATIENCE)).unwrap();
        connection
            .send(&Request::Hello { version: VERSION }, None)
            .unwrap();
        let hello = connection.receive::<Reply>().unwrap().message;
        assert!(matches!(hello, Reply::Hello { .. }), "{hello:?}");
        Self(connection)
    }

    /// Those under a generation of the policy.
    fn under(&self, generation: u64) -> Vec<LiveDrop> {
        let filter = FlowFilter {
            dropped: true,
            ..FlowFilter::default()
        };
        let ask = Request::Flows { filter, cursor: None };
        self.0.send(&ask, None).unwrap();
        let page = loop {
            match self.0.receive::<Reply>().unwrap().message {
                Reply::Flows { page } => break page,
                Reply::Adopted { .. } => {}
                other => panic!("{other:?}"),
            }
        };
        let drops = page.records.into_iter().filter_map(|record| match record {
            LiveRecord::Drop(drop) => Some(drop),
            LiveRecord::Flow(_) => None,
        });
        drops.filter(|drop| drop.generation == generation).collect()
    }
}

/// Packets on their way, each with its source port.
struct Sent<'c> {
    packet: &'c Packet,
    own: u16,
    /// What is to arrive, without its Ethernet header.
    arrives: Vec<u8>,
    fate: Option<Fate>,
}

impl<'c> Sent<'c> {
    fn new(packet: &'c Packet, own: u16, stations: &Stations<'_>) -> Self {
        let (from, to) = (stations.at(packet.src), stations.at(packet.dst));
        let addresses = [packet.src, packet.dst].map(|end| Addr::from(end.address));
        let mut template = Template::new(addresses[0], addresses[1]);
        template.eth_src = from.tap.mac();
        template.eth_dst = from.gateway;
        assert_ne!(from.member.name, to.member.name, "{}", packet.text);
        from.tap.send(&packet.frame_by(&template, own)).unwrap();
        template.ttl -= 1;
        Self {
            packet,
            own,
            arrives: packet.frame_by(&template, own)[14..].to_vec(),
            fate: None,
        }
    }

    fn is_that_of(&self, drop: &LiveDrop) -> bool {
        let Some(ends) = drop.ends.as_ref().filter(|_| !drop.audit) else {
            return false;
        };
        let ports = [Some(self.own), self.packet.port];
        (ends.src, ends.dst, ends.protocol)
            == (
                self.packet.src.address,
                self.packet.dst.address,
                self.packet.protocol,
            )
            && (!self.packet.has_ports() || [ends.src_port, ends.dst_port] == ports)
    }
}

/// The members of a bed around a running appliance.
struct Scene<'b> {
    stations: Stations<'b>,
    drops: Drops,
    /// Packets that were dropped, by reason.
    dropped: BTreeMap<String, u64>,
    /// The same as they would have arrived.
    absent: BTreeSet<Vec<u8>>,
}

impl<'b> Scene<'b> {
    fn new(bed: &'b Bed) -> Self {
        Self {
            stations: Stations::of(bed),
            drops: Drops::of(bed),
            dropped: BTreeMap::new(),
            absent: BTreeSet::new(),
        }
    }

    /// Sends the packets of a case whose policy is in force under a generation, each from a source port of its own, so that no flow
    /// answers for another. Waits until it is known of each whether it arrived or was dropped.
    fn send<'c>(
        &self,
        case: &'c Case,
        source_ports: &mut impl Iterator<Item = u16>,
        generation: u64,
    ) -> Vec<Sent<'c>> {
        // What a pod sends to itself does not leave it.
        let leave = case.packets.iter().filter(|packet| packet.src != packet.dst);
        let mut sent: Vec<Sent<'_>> = leave
            .zip(source_ports)
            .map(|(packet, own)| Sent::new(packet, own, &self.stations))
            .collect();
        let end = Instant::now() + PATIENCE;
        while sent.iter().any(|sent| sent.fate.is_none()) && Instant::now() < end {
            for packet in self.arrived() {
                for sent in sent.iter_mut().filter(|sent| sent.arrives == packet) {
                    sent.fate = Some(Fate::Arrived);
                }
            }
            if sent.iter().any(|sent| sent.fate.is_none()) {
                for drop in self.drops.under(generation) {
                    for sent in sent.iter_mut().filter(|sent| sent.is_that_of(&drop)) {
                        sent.fate = Some(Fate::Dropped(Box::new(drop.clone())));
                    }
                }
                std::thread::sleep(LOOK);
            }
        }
        sent
    }

    /// The packets that arrived anywhere since this was asked, without their Ethernet headers. None of them may be one that was dropped.
    fn arrived(&self) -> Vec<Vec<u8>> {
        let mut arrived = Vec::new();
        for station in self.stations.0.values() {
            while let Some(frame) = station.tap.receive(Duration::ZERO).unwrap() {
                let packet = frame[14..].to_vec();
                assert!(
                    !self.absent.contains(&packet),
                    "dropped, and it arrived: {packet:02x?}"
                );
                arrived.push(packet);
            }
        }
        arrived
    }

    /// Holds what became of packets against the cases and the evaluator. Answers their number.
    fn hold(&mut self, trap: &str, cluster: &Cluster, sent: &[Sent<'_>]) -> usize {
        for sent in sent {
            let packet = sent.packet;
            let what = format!("{trap}: {}", packet.text);
            let [src, dst] = [packet.src, packet.dst].map(|end| identify(cluster, end.address));
            let verdict = judge(cluster, &src, &dst, packet.service(sent.own));
            assert_eq!(verdict.allow(), packet.allowed, "{what}, by the evaluator");
            let drop = match &sent.fate {
                None => panic!("{what}: it did not arrive, and no drop is known of it"),
                Some(Fate::Arrived) => {
                    assert!(packet.allowed, "{what}: it arrived");
                    continue;
                }
                Some(Fate::Dropped(drop)) => drop,
            };
            assert!(!packet.allowed, "{what}: {drop:?}");
            let reasons = reference_reasons(&verdict, &verdict);
            // Of policies that isolate together, each has its own order.
            let deciders: Vec<Decider> = reasons.iter().map(Reason::decider).collect();
            let same = drop.reasons.len() == deciders.len()
                && deciders.iter().all(|decider| drop.reasons.contains(decider));
            assert!(same, "{what}: {drop:?}, but the evaluator: {deciders:?}");
            let reason = match verdict.egress.allow {
                _ if reasons.iter().any(|reason| reason.effect == "unknown") => "unknown-endpoint",
                false => "policy-egress",
                true => "policy-ingress",
            };
            assert_eq!(drop.reason, reason, "{what}");
            *self.dropped.entry(reason.to_owned()).or_default() += 1;
            self.absent.insert(sent.arrives.clone());
        }
        sent.len()
    }

    /// Waits until the appliance has counted every packet that it dropped; none of them has arrived meanwhile.
    fn counted(&self, firewall: &Appliance) {
        let counted =
            |status: &Value, reason: &str| status["dataplane"]["drops"][reason].as_u64().unwrap_or(0);
        let all = |status: &Value| {
            self.dropped
                .iter()
                .all(|(reason, dropped)| counted(status, reason) >= *dropped)
        };
        firewall
            .wait_until(&format!("drops are counted: {:?}", self.dropped), all)
            .unwrap();
        self.arrived();
    }
}

fn bed() -> Bed {
    let plans = MEMBERS.map(|name| match name.contains('/') {
        true => Plan::new(name),
        false => Plan::new(name).node(),
    });
    Bed::new(Role::Routed, &plans, 1).unwrap()
}

fn options() -> Options {
    Options {
        host_port: false,
        // So that policy decides about T76.
        more: "overlay: {fromPods: allow}\nconntrack: {maxEntries: 16384}\n".to_owned(),
        ..Options::default()
    }
}

/// What a case came to by the evaluator's reading of its manifests.
fn cluster(bed: &Bed, settings: &Settings, case: &Case) -> Cluster {
    let mut cluster = folder::load(&bed.manifests(), settings).unwrap().cluster;
    case.forget_namespaces(&mut cluster);
    cluster
}

/// An appliance that reads a case from an API server, which has no Namespace for those that the case forgets: a folder would supply them.
fn served(bed: &Bed, case: &Case) -> (ApiServer, Appliance) {
    let server = bed.gateway.run(ApiServer::start).unwrap().unwrap();
    let kubeconfig = bed.folder().join("kubeconfig");
    std::fs::write(&kubeconfig, server.kubeconfig("secret")).unwrap();
    for document in case.manifests() {
        let object: Value = serde_saphyr::from_str(document).unwrap();
        let name = object["metadata"]["name"].as_str().unwrap().to_owned();
        if object["kind"] != "Namespace" || !case.forgotten.contains(&name) {
            server.apply(object);
        }
    }
    let options = Options {
        source: Some(format!("{{kubeconfig: {}}}", kubeconfig.display())),
        ..options()
    };
    let firewall = Appliance::start(bed, &built_binary().unwrap(), &options, &[]).unwrap();
    (server, firewall)
}

/// The column of `tests/TRAPS.md` of real packets. `UPDATE=1` writes it.
#[test]
fn every_trap_is_held_on_real_packets() {
    let Some(_alone) = runs_here("traps") else { return };
    let traps = traps::cases().unwrap();
    let cases = traps
        .iter()
        .flat_map(|(number, cases)| cases.iter().map(|case| (*number, case)));
    let (from_server, from_folder): (Vec<_>, Vec<_>) =
        cases.partition(|(_, case)| !case.forgotten.is_empty());
    let bed = bed();
    let settings = Settings {
        pod_cidrs: [POD_CIDR, POD_CIDR_V6]
            .map(|network| network.parse().unwrap())
            .into(),
        ..Settings::default()
    };
    let mut counts: BTreeMap<(u32, Level), usize> = BTreeMap::new();
    let mut source_ports = 20_000..;

    let file = bed.manifests().join("bed.yaml");
    let no_policies = written(&Case::default());
    std::fs::write(&file, &no_policies).unwrap();
    let mut firewall = Appliance::start(&bed, &built_binary().unwrap(), &options(), &[]).unwrap();
    let mut scene = Scene::new(&bed);
    for (number, case) in from_folder {
        // A policy that gets an error keeps what it was, so each case begins without policies.
        firewall.apply_text(&no_policies).unwrap();
        let adoption = firewall.apply_text(&written(case)).unwrap();
        let sent = scene.send(case, &mut source_ports, adoption.generation);
        let cluster = cluster(&bed, &settings, case);
        *counts.entry((number, Level::Real)).or_default() +=
            scene.hold(&format!("T{number}"), &cluster, &sent);
    }
    scene.counted(&firewall);
    firewall.stop().unwrap();

    for (number, case) in from_server {
        std::fs::write(&file, written(case)).unwrap();
        let (_server, mut firewall) = served(&bed, case);
        let mut scene = Scene::new(&bed);
        let generation = firewall.status().unwrap()["control"]["snapshot"]["generation"].as_u64();
        let sent = scene.send(case, &mut source_ports, generation.unwrap());
        let cluster = cluster(&bed, &settings, case);
        *counts.entry((number, Level::Real)).or_default() +=
            scene.hold(&format!("T{number}"), &cluster, &sent);
        scene.counted(&firewall);
        firewall.stop().unwrap();
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    traps::hold_table(&root, &[Level::Real], &counts).unwrap();
}

fn written(case: &Case) -> String {
    case.manifests().join("\n---\n")
}
