//! What flows would come to if staged policies were enforced: a second decision beside the enforced one, made when it is
//! asked for, so that it costs the dataplane nothing.

use std::net::IpAddr;

use anyhow::Context;
use ringwall_analyse::{
    flow::{EndName, Service},
    hypothetical::HypotheticalStates,
    judge::{Answer, Judge, Reason, word},
};
use ringwall_dataplane::classify::Snapshot;
use ringwall_policy::{Cluster, Decider};
use ringwall_source::staged::pending;
use serde::{Deserialize, Serialize};

use crate::active_policy::CompiledPolicy;

/// Most flows of one question.
pub const MAX_FLOWS: usize = 10_000;

/// What `POST /v1/staged` takes.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StagedRequest {
    /// At most [`MAX_FLOWS`].
    pub flows: Vec<AskedFlow>,
}

/// A flow that is asked about.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AskedFlow {
    /// Source address.
    pub src: IpAddr,
    /// Destination address.
    pub dst: IpAddr,
    /// IP protocol number.
    pub protocol: u8,
    /// Destination port; of ICMP and ICMPv6 the type, times 256, and the code. None for a protocol without.
    pub dst_port: Option<u16>,
    /// Source port, where it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub src_port: Option<u16>,
}

/// What it answers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StagedAnswer {
    /// Generation of the snapshot in force.
    pub generation: u64,
    /// The policies that are staged.
    pub staged: Vec<StagedEffect>,
    /// What would become of the flows, in their order.
    pub flows: Vec<PendingVerdict>,
}

/// What one staged policy would do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StagedEffect {
    /// `namespace/name`, or the name alone.
    pub staged: String,
    /// Its kind.
    pub kind: String,
    /// `set` or `delete`.
    pub action: String,
    /// How many of the flows it alone would change.
    pub flows: u64,
}

/// What policy would decide with all staged policies enforced.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PendingVerdict {
    /// `allow` or `deny`.
    pub verdict: String,
    /// Whether the policies in force say otherwise.
    pub differs: bool,
    /// Who would decide.
    pub reasons: Vec<Decider>,
}

impl StagedAnswer {
    /// Judges flows by the policies in force, by all of the staged ones too, and by each of them alone.
    pub(super) fn of(
        policy: &CompiledPolicy,
        states: &HypotheticalStates,
        flows: &[AskedFlow],
    ) -> anyhow::Result<Self> {
        let (cluster, staged) = (&policy.state.cluster, &policy.state.staged);
        let enforced = answers(&Judge::over(Snapshot::from_image(&policy.image)), cluster, flows)?;
        let under = |cluster: &Cluster| {
            let snapshot = states.compile(cluster);
            let snapshot = snapshot.context("the staged policies cannot be compiled")?;
            answers(&Judge::over(snapshot), cluster, flows)
        };
        let all = match staged.is_empty() {
            true => enforced.clone(),
            false => under(&pending(cluster, staged.iter()))?,
        };
        let mut effects = Vec::with_capacity(staged.len());
        for one in staged.iter() {
            let alone = match staged.len() {
                1 => all.clone(),
                _ => under(&pending(cluster, [one]))?,
            };
            let changed = enforced.iter().zip(&alone);
            effects.push(StagedEffect {
                staged: one.name(),
                kind: one.kind.to_owned(),
                action: one.action.word().to_owned(),
                flows: changed.filter(|(now, then)| now.allow() != then.allow()).count() as u64,
            });
        }
        let verdicts = enforced.iter().zip(all).map(|(now, then)| PendingVerdict {
            verdict: word(then.allow()).to_owned(),
            differs: now.allow() != then.allow(),
            reasons: then.reasons.iter().map(Reason::decider).collect(),
        });
        Ok(Self {
            generation: policy.generation,
            staged: effects,
            flows: verdicts.collect(),
        })
    }
}

fn answers(judge: &Judge, cluster: &Cluster, flows: &[AskedFlow]) -> anyhow::Result<Vec<Answer>> {
    let answer = |flow: &AskedFlow| {
        let (src, dst) = judge.ends(cluster, &EndName::Address(flow.src), &EndName::Address(flow.dst))?;
        let service = Service {
            protocol: flow.protocol,
            port: flow.dst_port,
            source_port: flow.src_port,
        };
        judge.judge(&src, &dst, service)
    };
    let answers: Result<_, String> = flows.iter().map(answer).collect();
    answers.map_err(anyhow::Error::msg)
}
