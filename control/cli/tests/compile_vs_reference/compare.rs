//! Asking both sides the same.

use std::{collections::BTreeMap, sync::Arc};

use ringwall_compile::{CompiledImage, EpochKey, compile};
use ringwall_dataplane::classify::{
    DirectionVerdict, Effect, Generation, Identity, IdentityKind, Judgement, NodeExemption, PolicyName,
    Provenance, Snapshot,
};
use ringwall_evaluate::{Cause, End};
use ringwall_policy::{Cluster, PolicyId, PolicyKind};

use crate::generate::{Flow, FlowEnd};

pub(crate) struct Compiled {
    pub image: CompiledImage,
    pub snapshot: Arc<Snapshot>,
}

impl Compiled {
    pub(crate) fn of(cluster: &Cluster) -> Self {
        let image = compile(cluster, Generation(7), &EpochKey::OFFLINE).expect("the cluster compiles");
        let snapshot = Arc::new(Snapshot::open(&image.bytes).expect("the image opens"));
        Self { image, snapshot }
    }

    /// What an incremental compiler answered, and what a dataplane has of it.
    pub(crate) fn from_parts(compiled: ringwall_compile::Compiled, snapshot: Arc<Snapshot>) -> Self {
        let image = CompiledImage {
            bytes: Vec::new(),
            image: compiled.image,
            hash: compiled.hash,
            stats: compiled.stats,
        };
        Self { image, snapshot }
    }

    /// None where the name does not exist.
    fn identify(&self, place: &FlowEnd) -> Option<(Identity, bool)> {
        match place {
            FlowEnd::Address(address) => Some((self.snapshot.identify((*address).into()), false)),
            FlowEnd::Name(key) => {
                let endpoint = self.snapshot.find_endpoint(&key.namespace, &key.name)?;
                Some((endpoint.identity, endpoint.template))
            }
        }
    }

    pub(crate) fn judge(&self, flow: &Flow) -> Option<(Identity, Identity, Judgement)> {
        let (src, template) = self.identify(&flow.src)?;
        let (dst, _) = self.identify(&flow.dst)?;
        let same = flow.src == flow.dst && !template;
        let l4 = flow.l4();
        let judgement = self
            .snapshot
            .judge_ends(&src, &dst, same, l4, NodeExemption::Trusted);
        if let (FlowEnd::Address(from), FlowEnd::Address(to)) = (&flow.src, &flow.dst) {
            let by_address = self.snapshot.judge(
                &src,
                &dst,
                (*from).into(),
                (*to).into(),
                l4,
                NodeExemption::Trusted,
            );
            assert_eq!(by_address, judgement);
        }
        Some((src, dst, judgement))
    }
}

impl Compiled {
    /// Verdicts and causes of a flow.
    pub(crate) fn answer(&self, flow: &Flow) -> Option<[(bool, Cause); 2]> {
        let (_, _, judgement) = self.judge(flow)?;
        Some(
            [judgement.ingress, judgement.egress]
                .map(|verdict| (verdict.allow, cause(&self.snapshot, &verdict))),
        )
    }
}

/// How often which kind of answer came, so that a test that asks too little fails.
#[derive(Debug, Default)]
pub(crate) struct Outcomes(BTreeMap<String, u64>);

impl Outcomes {
    fn count(&mut self, what: String) {
        *self.0.entry(what).or_default() += 1;
    }

    /// Fails where something was asked less than three times.
    #[allow(dead_code)] // not every test that shares this module asks
    pub(crate) fn assert_seen(&self, what: &str) {
        assert!(
            self.0.get(what).is_some_and(|count| *count > 2),
            "asked too little: {what}\n{self:#?}"
        );
    }

    pub(crate) fn assert_complete(&self) {
        let mut wanted = Vec::new();
        for direction in ["ingress", "egress"] {
            for (protocol, port) in [
                (6, "port"),
                (17, "port"),
                (132, "port"),
                (1, "none"),
                (6, "none"),
                (6, "zero"),
            ] {
                for effect in ["Allow", "Isolated", "Open", "SelfTraffic", "Node", "Unknown"] {
                    wanted.push(format!("{direction} {effect} {protocol} {port}"));
                }
            }
            for peer in ["Pod", "Node", "External", "Unknown", "Service"] {
                wanted.push(format!("{direction} Allow from {peer}"));
                wanted.push(format!("{direction} Isolated from {peer}"));
            }
            wanted.push(format!("{direction} second rule"));
            wanted.push(format!("{direction} several isolate"));
        }
        wanted.extend(["v6 allow", "v6 deny", "template allow", "template deny"].map(str::to_owned));
        let rare: Vec<_> = wanted
            .iter()
            .filter(|what| self.0.get(*what).is_none_or(|count| *count < 3))
            .collect();
        assert!(rare.is_empty(), "asked too little: {rare:?}\n{self:#?}");
    }
}

/// A flow about which the two disagree.
pub(crate) struct Difference {
    pub flow: Flow,
    what: String,
}

impl std::fmt::Display for Difference {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}: {}", self.flow, self.what)
    }
}

fn end<'a>(cluster: &'a Cluster, place: &FlowEnd) -> Option<End<'a>> {
    match place {
        FlowEnd::Address(address) => Some(ringwall_evaluate::identify(cluster, *address)),
        FlowEnd::Name(key) => ringwall_evaluate::named(cluster, key),
    }
}

pub(crate) fn first_difference(
    cluster: &Cluster,
    compiled: &Compiled,
    flows: &[Flow],
    outcomes: &mut Outcomes,
) -> Option<Difference> {
    flows.iter().find_map(|flow| {
        let what = difference(cluster, compiled, flow, outcomes)?;
        Some(Difference {
            flow: flow.clone(),
            what,
        })
    })
}

fn difference(
    cluster: &Cluster,
    compiled: &Compiled,
    flow: &Flow,
    outcomes: &mut Outcomes,
) -> Option<String> {
    let expected = end(cluster, &flow.src).zip(end(cluster, &flow.dst));
    let actual = compiled.judge(flow);
    let ((src, dst), (src_identity, dst_identity, judgement)) = match (expected, actual) {
        (None, None) => return None,
        (Some(expected), Some(actual)) => (expected, actual),
        (expected, actual) => {
            return Some(format!(
                "evaluator knows the ends: {}, snapshot: {}",
                expected.is_some(),
                actual.is_some()
            ));
        }
    };
    for (end, identity) in [(&src, &src_identity), (&dst, &dst_identity)] {
        let expected = match end.identity {
            ringwall_evaluate::Identity::Pod(pod) => format!("pod {}", pod.key),
            ringwall_evaluate::Identity::Node(name) => format!("node {name:?}"),
            ringwall_evaluate::Identity::External => "outside".to_owned(),
            ringwall_evaluate::Identity::Unknown => "unknown".to_owned(),
        };
        let actual = match identity.kind {
            IdentityKind::Pod => {
                let endpoint = compiled
                    .snapshot
                    .endpoint(identity.endpoint)
                    .expect("pods have names");
                format!("pod {}/{}", endpoint.namespace, endpoint.name)
            }
            IdentityKind::Node => format!("node {:?}", compiled.snapshot.node_name(identity.node)),
            IdentityKind::External | IdentityKind::Service => "outside".to_owned(),
            IdentityKind::Unknown => "unknown".to_owned(),
        };
        if expected != actual {
            return Some(format!("evaluator says {expected}, snapshot {actual}"));
        }
    }
    let verdict = ringwall_evaluate::judge(cluster, &src, &dst, flow.service());
    let ends = [
        ("ingress", &verdict.ingress, &judgement.ingress, &src_identity),
        ("egress", &verdict.egress, &judgement.egress, &dst_identity),
    ];
    for (direction, expected, actual, peer) in ends {
        let cause = cause(&compiled.snapshot, actual);
        if (expected.allow, &expected.cause) != (actual.allow, &cause) {
            return Some(format!(
                "{direction}: evaluator says {} because {:?}, snapshot {} because {cause:?}",
                expected.allow, expected.cause, actual.allow
            ));
        }
        let port = match flow.port {
            None => "none",
            Some(0) => "zero",
            Some(_) => "port",
        };
        outcomes.count(format!(
            "{direction} {:?} {} {port}",
            actual.effect, flow.protocol
        ));
        outcomes.count(format!("{direction} {:?} from {:?}", actual.effect, peer.kind));
        match cause {
            Cause::Rule { index: 1.., .. } => outcomes.count(format!("{direction} second rule")),
            Cause::Isolated { policies, .. } if policies.len() > 1 => {
                outcomes.count(format!("{direction} several isolate"));
            }
            _ => {}
        }
    }
    let answer = if verdict.allow() { "allow" } else { "deny" };
    if dst.address.is_some_and(|address| address.is_ipv6()) {
        outcomes.count(format!("v6 {answer}"));
    }
    if matches!(dst.identity, ringwall_evaluate::Identity::Pod(pod) if pod.template_of.is_some()) {
        outcomes.count(format!("template {answer}"));
    }
    None
}

/// The policy that a snapshot names.
pub(crate) fn id_of(policy: &PolicyName<'_>) -> PolicyId {
    let mut kinds = [PolicyKind::NetworkPolicy].into_iter().chain(PolicyKind::TIERED);
    let kind = kinds.find(|kind| kind.name() == policy.kind);
    PolicyId {
        kind: kind.expect("a kind"),
        namespace: policy.namespace.to_owned(),
        name: policy.name.to_owned(),
    }
}

fn cause(snapshot: &Snapshot, verdict: &DirectionVerdict) -> Cause {
    match (verdict.effect, snapshot.provenance(verdict.provenance)) {
        (effect @ (Effect::Allow | Effect::Deny), Some(Provenance::Rule { policy, rule })) => {
            let (tier, index) = (policy.tier.to_owned(), rule as usize);
            let policy = id_of(&policy);
            match effect {
                Effect::Allow => Cause::Rule { tier, policy, index },
                _ => Cause::Denied { tier, policy, index },
            }
        }
        (Effect::Isolated, Some(Provenance::Isolating(policies))) => {
            let tier = policies[0].tier;
            assert!(policies.iter().all(|policy| policy.tier == tier), "{policies:?}");
            Cause::Isolated {
                tier: tier.to_owned(),
                policies: policies.iter().map(id_of).collect(),
            }
        }
        (Effect::Open, None) => Cause::Open,
        (Effect::Profile, None) => Cause::Profile,
        (Effect::SelfTraffic, None) => Cause::SelfTraffic,
        (Effect::Node, None) => Cause::HostingNode,
        (Effect::Unknown, None) => Cause::Unknown,
        other => panic!("effect and provenance do not fit: {other:?}"),
    }
}

/// Counts the flows that two snapshots decide differently, and fails where such a flow's epochs are the same.
pub(crate) fn decisions_that_changed(
    before: &Compiled,
    after: &Compiled,
    flows: &[Flow],
    seed: u64,
) -> usize {
    let mut changed = 0;
    for flow in flows {
        let (Some((src, dst, old)), Some((new_src, new_dst, new))) = (before.judge(flow), after.judge(flow))
        else {
            continue;
        };
        let directions = [(old.ingress, new.ingress), (old.egress, new.egress)];
        let same = directions.iter().all(|(old, new)| {
            old.allow == new.allow && cause(&before.snapshot, old) == cause(&after.snapshot, new)
        });
        if same {
            continue;
        }
        changed += 1;
        assert!(
            (src.epoch, dst.epoch) != (new_src.epoch, new_dst.epoch),
            "seed {seed}: {flow:?} was {old:?}, is {new:?}, and no epoch changed"
        );
    }
    changed
}
