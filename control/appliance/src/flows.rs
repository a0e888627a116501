//! Flows and drops of the workers, named: by the snapshot that decided, where that is still there.
//!
//! Workers are asked through their queues and answer between packets; drops are taken from their samples. Nothing here
//! runs on a worker, and no worker waits for it.

use std::{
    collections::{BTreeSet, VecDeque},
    net::IpAddr,
    sync::{Arc, Mutex, atomic::Ordering},
    time::{Duration, Instant},
};

use ringwall_dataplane::{
    addr::Addr,
    classify::{
        DirectionVerdict, Effect, IdentityKind, Judgement, L4, NONE, NodeExemption, Provenance, Snapshot,
    },
    flow::{FlowDump, FlowRecord},
    port::PortId,
    stats::DropSample,
    time::Nanos,
    wire::FlowKey,
};
use ringwall_messages::{
    FlowCursor, FlowFilter, FlowPage, LiveDrop, LiveEnds, LiveFlow, LiveRecord, PAGE_RECORDS,
};
use ringwall_policy::{Decider, tier_denial};

use super::{runtime::DataplaneRuntime, snapshot_server::locked, worker_thread};

/// Drops that are remembered.
const MAX_DROPS: usize = 4096;
/// How often drops are taken from the workers, and how many of them are named then: the newest.
const GATHER_INTERVAL: Duration = Duration::from_millis(100);
const MAX_NAMED_DROPS: usize = 512;
/// Entries that a worker is asked for at a time.
const RECORDS_PER_REQUEST: usize = 64;
/// How long a worker may take to answer; one that takes longer is the watchdog's business.
const WORKER_TIMEOUT: Duration = Duration::from_secs(1);
/// How long to wait before looking for an answer again.
const LOOK: Duration = Duration::from_micros(20);

/// Shows flows and drops.
pub(super) struct LiveFlows {
    machine: Arc<DataplaneRuntime>,
    /// Oldest first, with the time of each.
    drops: Mutex<VecDeque<(Nanos, LiveDrop)>>,
    /// Held while workers are asked: answers do not say whose they are.
    asking: Mutex<()>,
}

impl LiveFlows {
    pub(super) fn new(machine: Arc<DataplaneRuntime>) -> Arc<Self> {
        Arc::new(Self {
            machine,
            drops: Mutex::default(),
            asking: Mutex::default(),
        })
    }

    /// Takes drops from the workers until the process ends. For a thread of its own.
    pub(super) fn gather_drops(&self) {
        while !self.machine.stop.load(Ordering::Relaxed) {
            self.gather();
            self.free_numbers();
            std::thread::sleep(GATHER_INTERVAL);
        }
    }

    /// Where numbers for ports become few: frees those that rest and that no flow names any more.
    fn free_numbers(&self) {
        let asked = self.machine.started.elapsed();
        if !locked(&self.machine.numbers).is_low(asked) {
            return;
        }
        let Some(named) = self.named_ports() else { return };
        locked(&self.machine.numbers).release(&named, asked);
    }

    /// The ports that flows name; None where a worker does not answer.
    fn named_ports(&self) -> Option<BTreeSet<PortId>> {
        let mut named = BTreeSet::new();
        let mut at = FlowCursor::default();
        while at.worker < self.machine.alive.len() {
            let dump = {
                let _asking = locked(&self.asking);
                self.ask(at)?
            };
            named.extend(dump.records.iter().flat_map(|record| record.ports).flatten());
            at = if dump.done {
                next_worker(at)
            } else {
                FlowCursor {
                    entry: dump.cursor,
                    ..at
                }
            };
        }
        Some(named)
    }

    fn gather(&self) {
        let mut drops = locked(&self.drops);
        let mut samples: Vec<DropSample> = Vec::new();
        // Workers may go on dropping meanwhile.
        while samples.len() < MAX_DROPS
            && let Some(sample) = self.machine.stats.next_sample()
        {
            samples.push(sample);
        }
        samples.sort_by_key(|sample| sample.at);
        let ports = self.port_names();
        for sample in samples.iter().skip(samples.len().saturating_sub(MAX_NAMED_DROPS)) {
            if drops.len() == MAX_DROPS {
                drops.pop_front();
            }
            drops.push_back((sample.at, self.drop_record(sample, &ports)));
        }
    }

    /// Whether this is an address, or a pod of the newest snapshot.
    fn knows(&self, end: &str) -> bool {
        if end.parse::<std::net::IpAddr>().is_ok() {
            return true;
        }
        let Some((namespace, name)) = end.split_once('/') else {
            return false;
        };
        let newest = self.machine.publication.remembered(|_| true);
        newest.is_some_and(|snapshot| snapshot.find_endpoint(namespace, name).is_some())
    }

    /// Answers a question, or its next part.
    pub(super) fn page(&self, filter: &FlowFilter, cursor: Option<FlowCursor>) -> FlowPage {
        let mut page = FlowPage::default();
        if cursor.is_none() {
            page.unknown_pod = filter.pod.as_deref().is_some_and(|pod| !self.knows(pod));
            self.gather();
            let now = worker_thread::now();
            for (at, drop) in locked(&self.drops).iter().rev() {
                let record = LiveRecord::Drop(LiveDrop {
                    age_seconds: seconds(now.since(*at)),
                    ..drop.clone()
                });
                if wanted(filter, &record) {
                    page.records.push(record);
                }
            }
        }
        if filter.dropped {
            return page;
        }
        let asking = locked(&self.asking);
        let ports = self.port_names();
        let local = self.machine.node.as_ref().map(|node| node.pod_addresses());
        let mut at = cursor.unwrap_or_default();
        while at.worker < self.machine.alive.len() {
            if page.records.len() >= PAGE_RECORDS {
                page.next = Some(at);
                break;
            }
            let Some(dump) = self.ask(at) else {
                at = next_worker(at);
                continue;
            };
            let now = worker_thread::now();
            let named = dump
                .records
                .iter()
                .map(|record| LiveRecord::Flow(self.flow_record(record, now, &ports, local.as_ref())))
                .filter(|record| wanted(filter, record));
            page.records.extend(named);
            at = if dump.done {
                next_worker(at)
            } else {
                FlowCursor {
                    entry: dump.cursor,
                    ..at
                }
            };
        }
        drop(asking);
        page
    }

    /// Asks a worker for its next few flows; None where it does not answer.
    fn ask(&self, at: FlowCursor) -> Option<FlowDump> {
        let mut dump = FlowDump::new(RECORDS_PER_REQUEST);
        dump.cursor = at.entry;
        let plane = &self.machine.plane;
        // What an asker before did not wait for.
        while locked(plane).next_flows(at.worker).is_some() {}
        locked(plane).request_flows(at.worker, dump).ok()?;
        self.machine.publication.wake();
        let deadline = Instant::now() + WORKER_TIMEOUT;
        loop {
            if let Some(answer) = locked(plane).next_flows(at.worker) {
                return Some(answer);
            }
            if Instant::now() > deadline {
                return None;
            }
            std::thread::sleep(LOOK);
        }
    }

    fn port_names(&self) -> impl Fn(PortId) -> Option<String> + use<> {
        let ports: Vec<(PortId, String)> = locked(&self.machine.plan)
            .ports
            .iter()
            .map(|port| (port.id, port.name.clone()))
            .collect();
        move |id| {
            let found = ports.iter().find(|(port, _)| *port == id);
            found.map(|(_, name)| name.clone())
        }
    }

    fn flow_record(
        &self,
        record: &FlowRecord,
        now: Nanos,
        ports: &impl Fn(PortId) -> Option<String>,
        local: Option<&BTreeSet<IpAddr>>,
    ) -> LiveFlow {
        // The record has the lower half of the generation. Zero is none: the process before decided.
        let deciding = (record.decided != 0)
            .then(|| {
                self.machine
                    .publication
                    .remembered(|it| it as u32 == record.decided)
            })
            .flatten();
        let named_by = deciding
            .clone()
            .or_else(|| self.machine.publication.remembered(|_| true));
        let mut reasons = named_by.as_ref().map_or(Vec::new(), |snapshot| {
            let judged = judge(snapshot, &record.key);
            let [ingress, egress] = record.provenance;
            match &deciding {
                Some(_) => reasons(
                    snapshot,
                    recorded(judged.ingress, ingress),
                    recorded(judged.egress, egress),
                ),
                None => reasons(snapshot, judged.ingress, judged.egress),
            }
        });
        if let Some(local) = local {
            let [src, dst] = [record.key.src, record.key.dst].map(|end| local.contains(&end.into()));
            reasons.retain(|reason| decides_here(reason, src, dst));
        }
        LiveFlow {
            id: record.id.to_string(),
            ends: ends(named_by.as_deref(), &record.key, record.key.policy_l4(false)),
            frontend: record.frontend.map(|(address, _)| address.into()),
            frontend_port: record.frontend.map(|(_, port)| port).filter(|port| *port != 0),
            state: record.state.name().to_owned(),
            oriented: record.oriented,
            would_drop: record.would_drop.map(|reason| reason.name().to_owned()),
            age_seconds: seconds(now.since(record.began)),
            idle_seconds: seconds(now.since(record.last_seen)),
            ports: record.ports.map(|port| port.and_then(ports)),
            packets: record.packets,
            bytes: record.bytes,
            generation: record.generation.0,
            decided: deciding.map(|snapshot| snapshot.generation().0),
            reasons,
        }
    }

    fn drop_record(&self, sample: &DropSample, ports: &impl Fn(PortId) -> Option<String>) -> LiveDrop {
        let publication = &self.machine.publication;
        let deciding = publication.remembered(|it| it == sample.generation.0);
        let recorded = deciding.is_some();
        let named_by = deciding.or_else(|| publication.remembered(|_| true));
        let reasons = match (&named_by, sample.ingress, sample.egress) {
            (Some(snapshot), Some(ingress), Some(egress)) if recorded => reasons(snapshot, ingress, egress),
            _ => Vec::new(),
        };
        LiveDrop {
            id: sample.id.to_string(),
            ends: sample.key.map(|key| ends(named_by.as_deref(), &key, sample.l4)),
            reason: sample.reason.name().to_owned(),
            audit: sample.audit,
            age_seconds: 0.0,
            port: ports(sample.port),
            length: sample.length,
            tunnel: sample.tunnel.map(|kind| kind.name().to_owned()),
            generation: sample.generation.0,
            recorded,
            reasons,
        }
    }
}

fn next_worker(at: FlowCursor) -> FlowCursor {
    FlowCursor {
        worker: at.worker + 1,
        ..FlowCursor::default()
    }
}

fn seconds(time: Nanos) -> f64 {
    // To the millisecond: more digits say nothing.
    (time.0 / 1_000_000) as f64 / 1000.0
}

/// A decision that allowed, as it was recorded: the rule, or none; then what else allows is judged anew.
fn recorded(judged: DirectionVerdict, provenance: u32) -> DirectionVerdict {
    let effect = match (provenance, judged.provenance) {
        (NONE, NONE) if judged.allow => judged.effect,
        (NONE, _) => Effect::Open,
        _ => Effect::Allow,
    };
    DirectionVerdict {
        allow: true,
        effect,
        provenance,
    }
}

fn judge(snapshot: &Snapshot, key: &FlowKey) -> Judgement {
    let (src, dst) = (snapshot.identify(key.src), snapshot.identify(key.dst));
    let l4 = key.policy_l4(false);
    snapshot.judge(&src, &dst, key.src, key.dst, l4, NodeExemption::Trusted)
}

/// Whether a node decides in a direction: of its own pods alone. Of a flow without any it decides both.
fn decides_here(reason: &Decider, src_is_local: bool, dst_is_local: bool) -> bool {
    match reason.direction.as_str() {
        "egress" => src_is_local || !dst_is_local,
        _ => dst_is_local || !src_is_local,
    }
}

/// Both directions, egress first, in the words of `query`.
fn reasons(snapshot: &Snapshot, ingress: DirectionVerdict, egress: DirectionVerdict) -> Vec<Decider> {
    let mut out = Vec::new();
    for (direction, verdict) in [("egress", egress), ("ingress", ingress)] {
        let plain = Decider {
            direction: direction.to_owned(),
            tier: None,
            kind: None,
            policy: None,
            rule: None,
            effect: verdict.effect.word().to_owned(),
        };
        let named = |policy: ringwall_dataplane::classify::PolicyName<'_>, rule| Decider {
            tier: Some(policy.tier.to_owned()),
            kind: Some(policy.kind.to_owned()),
            policy: Some(policy.to_string()),
            rule,
            ..plain.clone()
        };
        match snapshot.provenance(verdict.provenance) {
            Some(Provenance::Rule { policy, rule }) => out.push(named(policy, Some(rule))),
            Some(Provenance::Isolating(policies)) => {
                let effect = tier_denial(policies.iter().map(|policy| policy.kind));
                out.extend(policies.into_iter().map(|policy| Decider {
                    effect: effect.to_owned(),
                    ..named(policy, None)
                }));
            }
            None => out.push(plain),
        }
    }
    out
}

fn ends(snapshot: Option<&Snapshot>, key: &FlowKey, l4: L4) -> LiveEnds {
    let pod = |addr: Addr| {
        let snapshot = snapshot?;
        let identity = snapshot.identify(addr);
        let endpoint = snapshot
            .endpoint(identity.endpoint)
            .filter(|_| identity.kind == IdentityKind::Pod)?;
        Some(format!("{}/{}", endpoint.namespace, endpoint.name))
    };
    let has_ports = matches!(key.protocol, 1 | 6 | 17 | 58 | 132);
    let icmp = match l4 {
        L4::Port {
            protocol: 1 | 58,
            port,
            ..
        } => Some(port.to_be_bytes()),
        _ => None,
    };
    LiveEnds {
        src: key.src.into(),
        dst: key.dst.into(),
        src_pod: pod(key.src),
        dst_pod: pod(key.dst),
        protocol: key.protocol,
        src_port: has_ports.then_some(key.src_port),
        dst_port: has_ports.then_some(key.dst_port),
        icmp_type: icmp.map(|[kind, _]| kind),
        icmp_code: icmp.map(|[_, code]| code),
    }
}

/// Whether a record is asked for.
fn wanted(filter: &FlowFilter, record: &LiveRecord) -> bool {
    let is_end = |wanted: &String| {
        record.ends().is_some_and(|ends| {
            let address = wanted.parse().ok();
            [&ends.src_pod, &ends.dst_pod].contains(&&Some(wanted.clone()))
                || address == Some(ends.src)
                || address == Some(ends.dst)
        })
    };
    let by = |wanted: &String| {
        let mut reasons = record.reasons().iter();
        reasons.any(|reason| reason.policy.as_ref() == Some(wanted))
    };
    filter
        .id
        .as_ref()
        .is_none_or(|id| id.eq_ignore_ascii_case(record.id()))
        && filter.pod.as_ref().is_none_or(is_end)
        && filter.policy.as_ref().is_none_or(by)
}
