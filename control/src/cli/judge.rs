//! Asks the compiled snapshot about a flow between named ends.

use std::net::IpAddr;

use anyhow::Context;
use ringwall_dataplane::{
    addr::Addr,
    classify::{
        DirectionVerdict, Effect, Generation, Identity, IdentityKind, Judgement, L4, NodeExemption,
        Provenance, Snapshot,
    },
};
use serde::Serialize;

use super::flow::{EndName, Service};
use crate::{
    cluster::{Cluster, ObjectKey, Pod},
    compile::{self, EpochKey},
    reference::{self, Cause},
};

/// A compiled cluster.
pub(crate) struct Judge {
    snapshot: Snapshot,
}

/// One end of a flow, in the words of a snapshot.
#[derive(Clone, Copy, Debug)]
pub(crate) struct End {
    /// Its address; None for a pod or template without one.
    pub(crate) address: Option<IpAddr>,
    identity: Identity,
    template: bool,
}

/// Which end's policies decide.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Direction {
    Egress,
    Ingress,
}

/// Why a direction is decided as it is; in the order of `query`'s output.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub(crate) struct Reason {
    pub(crate) direction: Direction,
    pub(crate) tier: Option<String>,
    pub(crate) kind: Option<String>,
    pub(crate) policy: Option<String>,
    pub(crate) rule: Option<u32>,
    pub(crate) effect: &'static str,
}

/// The answer about a flow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) ingress: bool,
    pub(crate) egress: bool,
    pub(crate) reasons: Vec<Reason>,
}

impl Answer {
    pub(crate) fn allow(&self) -> bool {
        self.ingress && self.egress
    }
}

/// `allow` or `deny`.
pub(crate) fn word(allow: bool) -> &'static str {
    if allow { "allow" } else { "deny" }
}

impl Judge {
    /// Compiles the cluster.
    ///
    /// # Errors
    /// It cannot be compiled.
    pub(crate) fn new(cluster: &Cluster) -> anyhow::Result<Self> {
        let image = compile::compile(cluster, Generation(1), &EpochKey::OFFLINE)
            .context("cannot compile the policies")?;
        let snapshot = Snapshot::open(&image.bytes).context("the compiled snapshot does not validate")?;
        Ok(Self { snapshot })
    }

    /// Asks a snapshot that somebody else has made.
    pub(crate) fn over(snapshot: Snapshot) -> Self {
        Self { snapshot }
    }

    /// Who an end is, to the snapshot: `pod ns/name`, `node name`, `outside` or `unknown`.
    pub(crate) fn who(&self, end: &End) -> String {
        let identity = end.identity;
        match identity.kind {
            IdentityKind::Pod => match self.snapshot.endpoint(identity.endpoint) {
                Some(endpoint) => format!("pod {}/{}", endpoint.namespace, endpoint.name),
                None => "a pod without a name".to_owned(),
            },
            IdentityKind::Node => {
                format!(
                    "node {}",
                    self.snapshot.node_name(identity.node).unwrap_or_default()
                )
            }
            IdentityKind::External | IdentityKind::Service => "outside".to_owned(),
            IdentityKind::Unknown => "unknown".to_owned(),
        }
    }

    /// Finds both ends of a flow: by the addresses of one family, IPv4 where there is a choice.
    ///
    /// # Errors
    /// A name that is not known or whose addresses are not its own, or no common family.
    pub(crate) fn ends(&self, cluster: &Cluster, src: &EndName, dst: &EndName) -> Result<(End, End), String> {
        let (a, b) = (Candidates::of(cluster, src)?, Candidates::of(cluster, dst)?);
        let family = [true, false]
            .into_iter()
            .find(|v4| a.speaks(*v4) && b.speaks(*v4));
        let Some(v4) = family else {
            return Err(format!(
                "{src} and {dst} have no address family in common: {src} has {}, {dst} has {}",
                a.families(),
                b.families()
            ));
        };
        Ok((self.end(&a, v4)?, self.end(&b, v4)?))
    }

    fn end(&self, candidates: &Candidates<'_>, v4: bool) -> Result<End, String> {
        match candidates {
            Candidates::Address(address) => Ok(self.address(*address)),
            Candidates::Nameless(pod) => {
                let endpoint = self
                    .snapshot
                    .find_endpoint(&pod.key.namespace, &pod.key.name)
                    .ok_or_else(|| format!("{} has no address and no policy can know it", pod.key))?;
                Ok(End {
                    address: None,
                    identity: endpoint.identity,
                    template: endpoint.template,
                })
            }
            Candidates::Pod(pod, addresses) => {
                let address = addresses.iter().copied().find(|address| address.is_ipv4() == v4);
                let Some(address) = address else {
                    return Err(format!("{} has no address of the family", pod.key));
                };
                let end = self.address(address);
                let kind = end.identity.kind;
                if kind == IdentityKind::Unknown || (pod.host_network && kind != IdentityKind::Pod) {
                    return Ok(end);
                }
                let owner = self.snapshot.endpoint(end.identity.endpoint);
                match owner.filter(|_| kind == IdentityKind::Pod) {
                    Some(owner) if owner.namespace == pod.key.namespace && owner.name == pod.key.name => {
                        Ok(end)
                    }
                    Some(owner) => Err(format!(
                        "{}: its address {address} belongs to {}/{} now",
                        pod.key, owner.namespace, owner.name
                    )),
                    None => Err(format!("{}: its address {address} is not its own", pod.key)),
                }
            }
        }
    }

    /// Whether an end is a node.
    pub(crate) fn is_node(&self, end: &End) -> bool {
        end.identity.kind == IdentityKind::Node
    }

    /// Equal for ends that every policy treats alike, apart from traffic to themselves and, unless `with_node`, to and
    /// from their nodes.
    pub(crate) fn class(&self, end: &End, with_node: bool) -> (u8, u32, u32, u32, u32) {
        let Identity {
            kind,
            node,
            peer_class,
            ingress,
            egress,
            ..
        } = end.identity;
        (
            kind as u8,
            if with_node { node } else { 0 },
            peer_class,
            ingress,
            egress,
        )
    }

    fn address(&self, address: IpAddr) -> End {
        let identity = self.snapshot.identify(Addr::from(address));
        End {
            address: Some(address),
            identity,
            template: false,
        }
    }

    /// Judges a new flow.
    ///
    /// # Errors
    /// The snapshot contradicts itself.
    pub(crate) fn judge(&self, src: &End, dst: &End, service: Service) -> Result<Answer, String> {
        let l4 = L4::of(service.protocol, service.port);
        // Without addresses, one name is one pod, but a template stands for many.
        let same = src.address == dst.address && (src.address.is_some() || !src.template);
        let Judgement { ingress, egress } =
            self.snapshot
                .judge_ends(&src.identity, &dst.identity, same, l4, NodeExemption::Trusted);
        let mut reasons = Vec::new();
        self.reasons(Direction::Ingress, ingress, &mut reasons)?;
        self.reasons(Direction::Egress, egress, &mut reasons)?;
        reasons.sort();
        Ok(Answer {
            ingress: ingress.allow,
            egress: egress.allow,
            reasons,
        })
    }

    fn reasons(
        &self,
        direction: Direction,
        verdict: DirectionVerdict,
        out: &mut Vec<Reason>,
    ) -> Result<(), String> {
        let effect = effect_name(verdict.effect);
        let plain = Reason {
            direction,
            tier: None,
            kind: None,
            policy: None,
            rule: None,
            effect,
        };
        if !matches!(verdict.effect, Effect::Allow | Effect::Isolated | Effect::Deny) {
            out.push(plain);
            return Ok(());
        }
        let named = |policy: ringwall_dataplane::classify::PolicyName<'_>, rule| Reason {
            tier: Some(policy.tier.to_owned()),
            kind: Some(policy.kind.to_owned()),
            policy: Some(policy.to_string()),
            rule,
            ..plain.clone()
        };
        match self.snapshot.provenance(verdict.provenance) {
            Some(Provenance::Rule { policy, rule }) => out.push(named(policy, Some(rule))),
            Some(Provenance::Isolating(policies)) => {
                out.extend(policies.into_iter().map(|policy| named(policy, None)));
            }
            None => return Err("the snapshot does not say which policy decided".to_owned()),
        }
        Ok(())
    }
}

/// The reference's causes in the words of `query`.
pub(crate) fn reference_reasons(verdict: &reference::Verdict) -> Vec<Reason> {
    use Direction::{Egress, Ingress};
    let mut out = Vec::new();
    for (direction, decided) in [(Egress, &verdict.egress), (Ingress, &verdict.ingress)] {
        let plain = |effect| Reason {
            direction,
            tier: None,
            kind: None,
            policy: None,
            rule: None,
            effect,
        };
        let named = |policy: &ObjectKey, rule: Option<usize>, effect| Reason {
            tier: Some("NetworkPolicy".to_owned()),
            kind: Some("NetworkPolicy".to_owned()),
            policy: Some(policy.to_string()),
            rule: rule.and_then(|index| u32::try_from(index).ok()),
            ..plain(effect)
        };
        match &decided.cause {
            Cause::Rule { policy, index } => out.push(named(policy, Some(*index), "allow")),
            Cause::Isolated(policies) => {
                out.extend(policies.iter().map(|policy| named(policy, None, "isolated")));
            }
            Cause::Open => out.push(plain("open")),
            Cause::SelfTraffic => out.push(plain("self")),
            Cause::HostingNode => out.push(plain("node")),
            Cause::Unknown => out.push(plain("unknown")),
        }
    }
    out.sort();
    out
}

pub(crate) fn effect_name(effect: Effect) -> &'static str {
    match effect {
        Effect::Allow => "allow",
        Effect::Isolated => "isolated",
        Effect::Open => "open",
        Effect::SelfTraffic => "self",
        Effect::Node => "node",
        Effect::Unknown => "unknown",
        Effect::Deny => "deny",
        Effect::Invalid => "invalid",
    }
}

/// What an end may be, before a family is chosen.
enum Candidates<'a> {
    Address(IpAddr),
    Pod(&'a Pod, &'a [IpAddr]),
    /// A pod or template that has no address.
    Nameless(&'a Pod),
}

impl<'a> Candidates<'a> {
    fn of(cluster: &'a Cluster, end: &EndName) -> Result<Self, String> {
        let key = match end {
            EndName::Address(address) => return Ok(Self::Address(*address)),
            EndName::Pod(key) => key,
        };
        let Some(pod) = cluster.pods.get(key) else {
            return Err(format!("no pod or workload is named {key}"));
        };
        if pod.finished {
            return Err(format!("{key} has finished: it has no address any more"));
        }
        match (pod.addresses.as_slice(), pod.host_network) {
            ([], true) => Err(format!(
                "{key} is on its node's network and its address is not known: ask by address"
            )),
            ([], false) => Ok(Self::Nameless(pod)),
            (addresses, _) => Ok(Self::Pod(pod, addresses)),
        }
    }

    fn speaks(&self, v4: bool) -> bool {
        match self {
            Self::Address(address) => address.is_ipv4() == v4,
            Self::Pod(_, addresses) => addresses.iter().any(|address| address.is_ipv4() == v4),
            Self::Nameless(_) => true,
        }
    }

    fn families(&self) -> &'static str {
        match (self.speaks(true), self.speaks(false)) {
            (true, true) => "both",
            (true, false) => "IPv4",
            (false, _) => "IPv6",
        }
    }
}
