//! Asks the compiled snapshot about a flow between named ends.

use std::{collections::HashMap, net::IpAddr};

use anyhow::Context;
use ringwall_compile::EpochKey;
use ringwall_dataplane::{
    addr::Addr,
    classify::{
        DirectionVerdict, Effect, Generation, Identity, IdentityKind, Judgement, NodeExemption, PortSpans,
        Provenance, Row, Snapshot,
    },
    tunnels::Tunnels,
};
use ringwall_evaluate::{Cause, Passed, Trace};
use ringwall_policy::{
    Action, Cluster, Decider, ObjectKey, PASS, Pod, PolicyId, TieredPolicy, policy_words, tier_denial,
};
use serde::Serialize;

use super::flow::{EndName, Service};

/// A compiled cluster.
pub struct Judge {
    /// Where ipBlocks match pods without addresses surely.
    snapshot: Snapshot,
    /// Where they match them possibly, if that is not the same.
    possible: Option<Snapshot>,
    /// Whether some rule asks for a source port or a type of ICMP.
    nests: bool,
}

/// What is decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Fate {
    /// It does not pass.
    Deny,
    /// The manifests do not say: it depends on the address that a pod will have; or the question does not, on the type of ICMP.
    Depends,
    /// It passes.
    Allow,
}

impl Fate {
    /// From what passes where ipBlocks match pods without addresses surely, and where they match them possibly.
    pub fn of(surely: bool, possibly: bool) -> Self {
        match (surely, possibly) {
            (true, _) => Self::Allow,
            (false, true) => Self::Depends,
            (false, false) => Self::Deny,
        }
    }

    /// As JSON has it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Deny => "deny",
            Self::Depends => "depends",
            Self::Allow => "allow",
        }
    }
}

/// One end of a flow, in the words of a snapshot.
#[derive(Clone, Copy, Debug)]
pub struct End {
    /// Its address; None for a pod or template without one.
    pub address: Option<IpAddr>,
    identity: Identity,
    /// In the words of the other snapshot, where there is one.
    possible: Option<Identity>,
    template: bool,
}

/// Whether a gateway with the defaults drops this as `encapsulation`, whatever policy says: what is inside of a tunnel is another
/// packet, of another source. With `overlay.fromPods: allow`, policy decides; `overlay.ports` replaces the ports.
pub fn drops_as_encapsulation(src: &End, dst: &End, service: Service) -> bool {
    use IdentityKind::{Node, Pod, Unknown};
    let (from, to) = (src.identity.kind, dst.identity.kind);
    let may_not_send_tunnels = matches!(from, Pod | Unknown) || to == Node && from != Node;
    let is_own = from == Pod && to == Pod && src.identity.endpoint == dst.identity.endpoint;
    may_not_send_tunnels
        && !is_own
        && Tunnels::default().include(service.protocol, service.port.unwrap_or_default())
}

/// What policies see of an end, in the words of one snapshot.
pub type EndClass = (u8, u32, u32, u32, u32);

/// Which end's policies decide.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Direction {
    /// The source's.
    Egress,
    /// The destination's.
    Ingress,
}

/// Why a direction is decided as it is; in the order of `query`'s output.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Reason {
    /// Of which end.
    pub direction: Direction,
    /// Name of the tier that decides.
    pub tier: Option<String>,
    /// Kind of the policy.
    pub kind: Option<String>,
    /// `namespace/name` of the policy, or the name of a cluster-wide one.
    pub policy: Option<String>,
    /// Index of the rule in the policy.
    pub rule: Option<u32>,
    /// As in [`Decider`].
    pub effect: &'static str,
}

impl Reason {
    /// The policy in words; None where none decides.
    pub fn policy_words(&self) -> Option<String> {
        policy_words(self.tier.as_deref(), self.kind.as_deref(), self.policy.as_deref())
    }

    /// The same in the words that processes exchange.
    pub fn decider(&self) -> Decider {
        Decider {
            direction: match self.direction {
                Direction::Egress => "egress",
                Direction::Ingress => "ingress",
            }
            .to_owned(),
            tier: self.tier.clone(),
            kind: self.kind.clone(),
            policy: self.policy.clone(),
            rule: self.rule,
            effect: self.effect.to_owned(),
        }
    }
}

/// The answer about a flow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// At the destination.
    pub ingress: Fate,
    /// At the source.
    pub egress: Fate,
    /// Of a direction that depends: the rules that may allow or deny it, with the effect `depends`.
    pub reasons: Vec<Reason>,
    /// What was not asked for, in the words of `query`, and decides.
    pub lacks: Option<&'static str>,
}

impl Answer {
    /// What becomes of the flow.
    pub fn fate(&self) -> Fate {
        self.ingress.min(self.egress)
    }

    /// Whether it passes, wherever pods are.
    pub fn allow(&self) -> bool {
        self.fate() == Fate::Allow
    }

    /// The ends whose addresses decide: a direction is about the other end's address.
    pub fn depends_on<'n>(&self, src: &'n EndName, dst: &'n EndName) -> Vec<&'n EndName> {
        let depends = self.fate() == Fate::Depends && self.lacks.is_none();
        let of = |fate, end: &'n EndName| (depends && fate == Fate::Depends).then_some(end);
        let mut ends: Vec<&EndName> = of(self.ingress, src)
            .into_iter()
            .chain(of(self.egress, dst))
            .collect();
        ends.dedup();
        ends
    }
}

/// Why a verdict depends, for people.
pub fn depends_words(on: &[&EndName]) -> String {
    let names: Vec<String> = on.iter().map(ToString::to_string).collect();
    format!(
        "depends on the address that {} will have: an ipBlock holds some of the pod network{}",
        names.join(" and "),
        SAY_WHERE
    )
}

/// What makes a verdict that depends a sure one.
pub const SAY_WHERE: &str = " (name it with --pod-cidr, or select pods by label)";

/// `allow` or `deny`.
pub fn word(allow: bool) -> &'static str {
    if allow { "allow" } else { "deny" }
}

impl Judge {
    /// Compiles the cluster.
    ///
    /// # Errors
    /// It cannot be compiled.
    pub fn new(cluster: &Cluster) -> anyhow::Result<Self> {
        let snapshot = |cluster: &Cluster| {
            let image = ringwall_compile::compile(&cluster.for_compiler(), Generation(1), &EpochKey::OFFLINE)
                .context("cannot compile the policies")?;
            Snapshot::open(&image.bytes).context("the compiled snapshot does not validate")
        };
        Ok(match cluster.readings() {
            None => Self::over(snapshot(cluster)?),
            Some([surely, possibly]) => Self {
                possible: Some(snapshot(&possibly)?),
                ..Self::over(snapshot(&surely)?)
            },
        })
    }

    /// Asks a snapshot that somebody else has made, of pods that all have their addresses.
    pub fn over(snapshot: Snapshot) -> Self {
        Self {
            nests: snapshot.nests(),
            snapshot,
            possible: None,
        }
    }

    /// Who an end is, to the snapshot: `pod ns/name`, `node name`, `outside` or `unknown`.
    pub fn who(&self, end: &End) -> String {
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

    /// The pod that an end is.
    pub fn pod(&self, end: &End) -> Option<ObjectKey> {
        let endpoint = match end.identity.kind {
            IdentityKind::Pod => self.snapshot.endpoint(end.identity.endpoint)?,
            _ => return None,
        };
        Some(ObjectKey {
            namespace: endpoint.namespace.to_owned(),
            name: endpoint.name.to_owned(),
        })
    }

    /// Finds both ends of a flow: by the addresses of one family, IPv4 where there is a choice.
    ///
    /// # Errors
    /// A name that is not known or whose addresses are not its own, or no common family.
    pub fn ends(&self, cluster: &Cluster, src: &EndName, dst: &EndName) -> Result<(End, End), String> {
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
                let possible = self.possible.as_ref();
                let possible = possible.and_then(|it| it.find_endpoint(&pod.key.namespace, &pod.key.name));
                Ok(End {
                    address: None,
                    identity: endpoint.identity,
                    possible: possible.map(|endpoint| endpoint.identity),
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
    pub fn is_node(&self, end: &End) -> bool {
        end.identity.kind == IdentityKind::Node
    }

    /// Equal for ends that every policy treats alike, apart from traffic to themselves and, unless `with_node`, to and
    /// from their nodes.
    pub fn class(&self, end: &End, with_node: bool) -> [EndClass; 2] {
        [end.identity, end.possible.unwrap_or(end.identity)].map(
            |Identity {
                 kind,
                 node,
                 peer_class,
                 ingress,
                 egress,
                 ..
             }| {
                (
                    kind as u8,
                    if with_node { node } else { 0 },
                    peer_class,
                    ingress,
                    egress,
                )
            },
        )
    }

    fn address(&self, address: IpAddr) -> End {
        let address_of = Addr::from(address);
        End {
            address: Some(address),
            identity: self.snapshot.identify(address_of),
            possible: self.possible.as_ref().map(|it| it.identify(address_of)),
            template: false,
        }
    }

    /// Judges a new flow. Where rules tell apart what was not asked for, it depends.
    ///
    /// # Errors
    /// The snapshot contradicts itself.
    pub fn judge(&self, src: &End, dst: &End, service: Service) -> Result<Answer, String> {
        let mut answer = self.judge_one(src, dst, service)?;
        if !self.nests {
            return Ok(answer);
        }
        let (lacks, others) = match (service.lacks_type(), service.lacks_source_port()) {
            (true, _) => ("icmp_type", self.types(src, dst, service)),
            (_, true) => ("src_port", self.sources(src, dst, service)),
            _ => return Ok(answer),
        };
        let answers = others.into_iter().map(|other| self.judge_one(src, dst, other));
        for other in answers {
            let other = other?;
            for (direction, own, other_fate) in [
                (Direction::Ingress, &mut answer.ingress, other.ingress),
                (Direction::Egress, &mut answer.egress, other.egress),
            ] {
                if *own == other_fate {
                    continue;
                }
                *own = Fate::Depends;
                answer.lacks = Some(lacks);
                let deciding = other
                    .reasons
                    .iter()
                    .filter(|reason| reason.direction == direction);
                answer.reasons.extend(deciding.cloned());
            }
        }
        let fates = [answer.ingress, answer.egress];
        let depends = |reason: &Reason| match reason.direction {
            Direction::Ingress => fates[0] == Fate::Depends,
            Direction::Egress => fates[1] == Fate::Depends,
        };
        // Rules say more than what is denied where none matches.
        answer
            .reasons
            .retain(|reason| reason.rule.is_some() || !depends(reason));
        for reason in answer.reasons.iter_mut().filter(|reason| depends(reason)) {
            reason.effect = "depends";
        }
        answer.reasons.sort();
        answer.reasons.dedup();
        Ok(answer)
    }

    /// Of ICMP without a type, one of each span of types and codes that the cells between two ends decide alike; none where they
    /// tell no types apart.
    fn types(&self, src: &End, dst: &End, service: Service) -> Vec<Service> {
        let mut found = Vec::new();
        for spans in self.spans_between(src, dst) {
            let own = spans.by_type.into_iter();
            let own = own.filter(|(number, _)| *number == service.protocol);
            found.extend(own.flat_map(|(_, spans)| spans).map(|(first, _)| first));
        }
        found.sort_unstable();
        found.dedup();
        let of_type = |port| Service {
            port: Some(port),
            ..service
        };
        found.into_iter().map(of_type).collect()
    }

    /// Likewise of a service without a source port, one of each span of source ports.
    fn sources(&self, src: &End, dst: &End, service: Service) -> Vec<Service> {
        let mut found = Vec::new();
        for spans in self.spans_between(src, dst) {
            let of_protocol = spans
                .protocols
                .iter()
                .find(|(number, _)| *number == service.protocol);
            let firsts = of_protocol
                .into_iter()
                .flat_map(|(_, spans)| spans)
                .map(|(first, _)| *first);
            let span = firsts.take_while(|first| Some(*first) <= service.port).last();
            let own = spans.by_source.into_iter();
            let own = own.filter(|it| it.protocol == service.protocol && Some(it.first) == span);
            found.extend(own.flat_map(|it| it.spans).map(|(first, _)| first));
        }
        found.sort_unstable();
        found.dedup();
        found
            .into_iter()
            .map(|port| service.from_port(Some(port)))
            .collect()
    }

    /// What the cells that decide between two ends decide about every port.
    fn spans_between(&self, src: &End, dst: &End) -> Vec<PortSpans> {
        let mut found = Vec::new();
        let surely = (&self.snapshot, Some(src.identity), Some(dst.identity));
        let possibly = self.possible.iter().map(|it| (it, src.possible, dst.possible));
        for (snapshot, src, dst) in possibly.chain([surely]) {
            let (Some(src), Some(dst)) = (src, dst) else {
                continue;
            };
            let own_node = match snapshot.own_node_row(src.egress) {
                0 => Row::Open,
                row => Row::Cells(row),
            };
            for (row, class) in [
                (snapshot.rows_of(&dst).0, src.peer_class),
                (snapshot.rows_of(&src).1, dst.peer_class),
                (own_node, dst.peer_class),
            ] {
                found.extend(snapshot.port_spans(row, snapshot.port_map_of(row, class)));
            }
        }
        found
    }

    fn judge_one(&self, src: &End, dst: &End, service: Service) -> Result<Answer, String> {
        let l4 = service.l4();
        // Without addresses, one name is one pod, but a template stands for many.
        let same = src.address == dst.address && (src.address.is_some() || !src.template);
        let of = |snapshot: &Snapshot, src, dst| {
            let Judgement { ingress, egress } =
                snapshot.judge_ends(src, dst, same, l4, NodeExemption::Trusted);
            [(Direction::Ingress, ingress), (Direction::Egress, egress)]
        };
        let surely = of(&self.snapshot, &src.identity, &dst.identity);
        let possibly = match (&self.possible, src.possible, dst.possible) {
            (Some(snapshot), Some(src), Some(dst)) => Some((snapshot, of(snapshot, &src, &dst))),
            _ => None,
        };
        let mut reasons = Vec::new();
        let mut fates = [Fate::Deny; 2];
        for ((index, (direction, verdict)), fate) in surely.into_iter().enumerate().zip(&mut fates) {
            let other = possibly.as_ref();
            let other = other.and_then(|(snapshot, verdicts)| Some((*snapshot, verdicts.get(index)?.1)));
            *fate = Fate::of(
                verdict.allow,
                other.map_or(verdict.allow, |(_, other)| other.allow),
            );
            match other {
                Some((snapshot, other)) if *fate == Fate::Depends => {
                    let denied = verdict.effect == Effect::Deny;
                    if !denied || other.effect == Effect::Allow {
                        reasons_of(snapshot, direction, other, "depends", &mut reasons)?;
                    }
                    if denied {
                        reasons_of(&self.snapshot, direction, verdict, "depends", &mut reasons)?;
                    }
                }
                _ => reasons_of(
                    &self.snapshot,
                    direction,
                    verdict,
                    verdict.effect.word(),
                    &mut reasons,
                )?,
            }
        }
        reasons.sort();
        reasons.dedup();
        let [ingress, egress] = fates;
        Ok(Answer {
            ingress,
            egress,
            reasons,
            lacks: None,
        })
    }
}

fn reasons_of(
    snapshot: &Snapshot,
    direction: Direction,
    verdict: DirectionVerdict,
    effect: &'static str,
    out: &mut Vec<Reason>,
) -> Result<(), String> {
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
    match snapshot.provenance(verdict.provenance) {
        Some(Provenance::Rule { policy, rule }) => out.push(named(policy, Some(rule))),
        Some(Provenance::Isolating(policies)) => {
            let effect = tier_denial(policies.iter().map(|policy| policy.kind));
            out.extend(policies.into_iter().map(|policy| Reason {
                effect,
                ..named(policy, None)
            }));
        }
        None => return Err("the snapshot does not say which policy decided".to_owned()),
    }
    Ok(())
}

/// The reference's causes in the words of `query`.
///
/// `possibly`: its verdict where ipBlocks match pods without addresses possibly.
pub fn reference_reasons(
    surely: &ringwall_evaluate::Verdict,
    possibly: &ringwall_evaluate::Verdict,
) -> Vec<Reason> {
    use Direction::{Egress, Ingress};
    let mut out = Vec::new();
    for (direction, surely, possibly) in [
        (Egress, &surely.egress, &possibly.egress),
        (Ingress, &surely.ingress, &possibly.ingress),
    ] {
        let depends = Fate::of(surely.allow, possibly.allow) == Fate::Depends;
        let plain = |effect| Reason {
            direction,
            tier: None,
            kind: None,
            policy: None,
            rule: None,
            effect,
        };
        let named = |tier: &str, policy: &PolicyId, rule: Option<usize>, effect| Reason {
            tier: Some(tier.to_owned()),
            kind: Some(policy.kind.name().to_owned()),
            policy: Some(policy.to_string()),
            rule: rule.and_then(|index| u32::try_from(index).ok()),
            ..plain(effect)
        };
        let decided = match (depends, &surely.cause, &possibly.cause) {
            (false, ..) => surely,
            // Which of two rules is first is what depends.
            (true, Cause::Denied { tier, policy, index }, other) => {
                out.push(named(tier, policy, Some(*index), "depends"));
                if !matches!(other, Cause::Rule { .. }) {
                    continue;
                }
                possibly
            }
            (true, ..) => possibly,
        };
        match &decided.cause {
            Cause::Rule { tier, policy, index } => {
                let effect = if depends { "depends" } else { "allow" };
                out.push(named(tier, policy, Some(*index), effect));
            }
            Cause::Denied { tier, policy, index } => out.push(named(tier, policy, Some(*index), "deny")),
            Cause::Isolated { tier, policies } => {
                let effect = tier_denial(policies.iter().map(|policy| policy.kind.name()));
                out.extend(policies.iter().map(|policy| named(tier, policy, None, effect)));
            }
            Cause::Open => out.push(plain("open")),
            Cause::Profile => out.push(plain("profile")),
            Cause::SelfTraffic => out.push(plain("self")),
            Cause::HostingNode => out.push(plain("node")),
            Cause::Unknown => out.push(plain("unknown")),
        }
    }
    out.sort();
    out.dedup();
    out
}

/// Rules that passed a flow on to the next tier, each direction's in the order in which they did. Of the two traces, one reads
/// ipBlocks as holding pods without addresses surely, the other possibly: only what passes by both passes.
pub fn passing(surely: &Trace, possibly: &Trace) -> Vec<Reason> {
    let directions = [
        (Direction::Egress, &surely.passed_egress, &possibly.passed_egress),
        (
            Direction::Ingress,
            &surely.passed_ingress,
            &possibly.passed_ingress,
        ),
    ];
    let passed = directions.into_iter().flat_map(|(direction, surely, possibly)| {
        let both = surely.iter().filter(|it| possibly.contains(it));
        both.map(move |Passed { tier, policy, index }| Reason {
            direction,
            tier: Some(tier.clone()),
            kind: Some(policy.kind.name().to_owned()),
            policy: Some(policy.to_string()),
            rule: u32::try_from(*index).ok(),
            effect: PASS,
        })
    });
    passed.collect()
}

/// Who decides, and in each direction before it which rules passed.
pub fn with_passing(deciding: &[Reason], mut passing: Vec<Reason>) -> Vec<Reason> {
    passing.extend_from_slice(deciding);
    passing.sort_by_key(|reason| reason.direction);
    passing
}

/// Rules that pass flows on. The compiled snapshot holds who decides, not who passed, so the reference evaluator is asked:
/// once for all flows between ends that no policy tells apart.
pub struct Passing {
    surely: Cluster,
    possibly: Cluster,
    known: HashMap<Alike, Vec<Reason>>,
}

/// Ends that no policy tells apart, whether they are one, and the service.
type Alike = ([EndClass; 2], [EndClass; 2], bool, Service);

impl Passing {
    /// None where no rule passes anything.
    pub fn of(cluster: &Cluster) -> Option<Self> {
        let rules = |policy: &TieredPolicy| {
            let directions = [&policy.ingress, &policy.egress];
            directions
                .into_iter()
                .flatten()
                .flatten()
                .any(|rule| rule.action == Action::Pass)
        };
        if !cluster.tiered.values().any(|policy| rules(policy)) {
            return None;
        }
        let [surely, possibly] = cluster
            .readings()
            .unwrap_or_else(|| [cluster.clone(), cluster.clone()]);
        Some(Self {
            surely,
            possibly,
            known: HashMap::new(),
        })
    }

    /// Those of a flow.
    ///
    /// # Errors
    /// The evaluator does not know an end.
    pub fn rules(
        &mut self,
        judge: &Judge,
        [src, dst]: [(&EndName, &End); 2],
        service: Service,
    ) -> Result<Vec<Reason>, String> {
        let same = src.1.address.is_some() && src.1.address == dst.1.address;
        let alike = (judge.class(src.1, true), judge.class(dst.1, true), same, service);
        if let Some(known) = self.known.get(&alike) {
            return Ok(known.clone());
        }
        let trace = |cluster| {
            let (src, dst) = (
                reference_end(cluster, src.0, src.1)?,
                reference_end(cluster, dst.0, dst.1)?,
            );
            let service = service.evaluated();
            Ok::<_, String>(ringwall_evaluate::trace(cluster, &src, &dst, service))
        };
        let passing = passing(&trace(&self.surely)?, &trace(&self.possibly)?);
        self.known.insert(alike, passing.clone());
        Ok(passing)
    }
}

/// Who an end is to the reference evaluator.
///
/// # Errors
/// The cluster does not have it.
pub fn reference_end<'c>(
    cluster: &'c Cluster,
    name: &EndName,
    end: &End,
) -> Result<ringwall_evaluate::End<'c>, String> {
    match (end.address, name) {
        (Some(address), _) => Ok(ringwall_evaluate::identify(cluster, address)),
        (None, EndName::Pod(key)) => {
            ringwall_evaluate::named(cluster, key).ok_or_else(|| format!("no pod or workload is named {key}"))
        }
        (None, EndName::Address(address)) => Ok(ringwall_evaluate::identify(cluster, *address)),
        (None, EndName::Service(_)) => Err(no_end(name)),
    }
}

/// That a Service does not send or receive packets.
fn no_end(service: &EndName) -> String {
    format!("{service} is a Service, which cannot be an end here: name a pod behind it")
}

/// That a name does not exist, and which one is nearly the same.
fn unknown_name(cluster: &Cluster, key: &ObjectKey) -> String {
    let alike = |other: &&ObjectKey| {
        let whole = strsim::jaro_winkler(&key.to_string(), &other.to_string());
        let own = if key.name == other.name { 1.0 } else { 0.0 };
        whole.max(own)
    };
    let near = cluster.pods.keys().max_by(|a, b| alike(a).total_cmp(&alike(b)));
    match near.filter(|near| alike(near) > 0.9) {
        Some(near) => format!("no pod or workload is named {key}; did you mean {near}?"),
        None => format!("no pod or workload is named {key}"),
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
            EndName::Service(_) => return Err(no_end(end)),
        };
        let Some(pod) = cluster.pods.get(key) else {
            return Err(unknown_name(cluster, key));
        };
        if pod.finished {
            return Err(format!("{key} has finished and has no address any more"));
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
