//! Why a flow passes or does not, in steps that a person can follow, and the smallest change that would turn it round.
//!
//! * `conditions` what matches, and the first condition at which something does not.
//! * `trace` one direction, policy by policy and rule by rule. `parties` who the ends are.
//! * [`edit`] changes of policies and labels. `changes` the search for the smallest. `effects` what else they change.
//! * [`services`] a connection to a Service, endpoint by endpoint.
//! * [`report`] the explanation as data. [`words`] as text.
//!
//! The steps are this module's own reading of the objects. The verdict is the compiled snapshot's; it, the reference
//! evaluator and the steps must agree, and each call checks that they do.

mod changes;
pub mod conditions;
pub mod edit;
mod effects;
mod parties;
pub mod render;
pub mod report;
pub mod services;
mod trace;
mod yaml;

use std::sync::Arc;

pub use changes::{Change, Found, smallest_changes};
use report::{Explanation, Side, Word};
use ringwall_dataplane::classify::Snapshot;
use ringwall_evaluate::End;
use ringwall_policy::{Cluster, NetworkPolicy, Rule, TieredPolicy, TieredRule};
use trace::{Case, Words};

use crate::{
    flow::{EndName, Service},
    hypothetical::HypotheticalStates,
    judge,
    judge::{Fate, Judge, Reason},
    refine::RefineError,
};

/// Which end's policies decide.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Direction {
    /// The source's.
    Egress,
    /// The destination's.
    Ingress,
}

impl Direction {
    /// A policy's rules of the direction; None where it has no part in it.
    pub fn rules(self, policy: &NetworkPolicy) -> Option<&[Rule]> {
        match self {
            Self::Egress => policy.egress.as_deref(),
            Self::Ingress => policy.ingress.as_deref(),
        }
    }

    /// Likewise, of a policy of an ordered kind.
    pub fn tiered(self, policy: &TieredPolicy) -> Option<&[TieredRule]> {
        match self {
            Self::Egress => policy.egress.as_deref(),
            Self::Ingress => policy.ingress.as_deref(),
        }
    }

    /// What a manifest calls the peers of its rules.
    fn peers_key(self) -> &'static str {
        match self {
            Self::Egress => "to",
            Self::Ingress => "from",
        }
    }
}

impl std::fmt::Display for Direction {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Egress => "egress",
            Self::Ingress => "ingress",
        })
    }
}

/// What is to be explained.
#[derive(Clone, Debug)]
pub struct Question {
    /// Who sends the first packet.
    pub src: EndName,
    /// To whom.
    pub dst: EndName,
    /// By which protocol, to which port.
    pub service: Service,
}

impl Question {
    /// Reads a question: ends as addresses or `namespace/pod`, then `80/TCP`, `ICMP`, `8/ICMP` or `ip/47`.
    ///
    /// # Errors
    /// Says what to write instead.
    pub fn read(src: &str, dst: &str, service: &str) -> Result<Self, String> {
        Ok(Self {
            src: EndName::read(src)?,
            dst: EndName::read(dst)?,
            service: Service::read(service)?,
        })
    }
}

/// Why there is no explanation.
#[derive(Debug, thiserror::Error)]
pub enum ExplainError {
    /// An end cannot be found.
    #[error("{0}")]
    End(String),
    /// The question leaves open what decides.
    #[error("{0}")]
    Lacks(String),
    /// Snapshot, reference and steps do not say the same.
    #[error(
        "{src} -> {dst} {service}: {what}. At most one of them can be right, so nothing is explained; please report this \
         with the manifests"
    )]
    Contradiction {
        /// The source.
        src: String,
        /// The destination.
        dst: String,
        /// Protocol and port.
        service: String,
        /// Who says what.
        what: String,
    },
    /// Changes of the state cannot be compared.
    #[error("the changes that would flip the verdict cannot be compared: {0}")]
    Changes(#[from] RefineError),
}

/// A state and the snapshot compiled of it, ready to be asked.
pub struct Explainer<'a> {
    cluster: &'a Cluster,
    /// Where ipBlocks match pods without addresses surely, and possibly; None where that is the same.
    readings: Option<[Cluster; 2]>,
    judge: Judge,
    states: Arc<HypotheticalStates>,
}

impl<'a> Explainer<'a> {
    /// Compiles a state.
    ///
    /// # Errors
    /// It cannot be compiled.
    pub fn new(cluster: &'a Cluster) -> anyhow::Result<Self> {
        Ok(Self {
            cluster,
            readings: cluster.readings(),
            judge: Judge::new(cluster)?,
            states: Arc::default(),
        })
    }

    /// Explains by a snapshot that was compiled of the state before. `states` compiles what changes would make of the state.
    pub fn over(cluster: &'a Cluster, snapshot: Snapshot, states: Arc<HypotheticalStates>) -> Self {
        Self {
            cluster,
            readings: None,
            judge: Judge::over(snapshot),
            states,
        }
    }

    /// Explains a flow.
    ///
    /// # Errors
    /// An end is not known, or the snapshot, the reference evaluator and the steps contradict each other.
    pub fn explain(&self, question: &Question) -> Result<Explanation, ExplainError> {
        let [surely, possibly] = match &self.readings {
            Some([surely, possibly]) => [surely, possibly],
            None => [self.cluster; 2],
        };
        explain([surely, possibly], &self.judge, &self.states, question)
    }
}

fn explain(
    [cluster, possibly]: [&Cluster; 2],
    judge: &Judge,
    states: &HypotheticalStates,
    question: &Question,
) -> Result<Explanation, ExplainError> {
    // Where no rule asks for source ports, one says nothing.
    let told_apart = cluster.source_ports().next().is_some();
    let question = &Question {
        service: question
            .service
            .from_port(question.service.source_port.filter(|_| told_apart)),
        ..question.clone()
    };
    let (src, dst) = judge
        .ends(cluster, &question.src, &question.dst)
        .map_err(ExplainError::End)?;
    let contradiction = |what: String| ExplainError::Contradiction {
        src: question.src.to_string(),
        dst: question.dst.to_string(),
        service: question.service.to_string(),
        what,
    };
    let answer = judge.judge(&src, &dst, question.service).map_err(contradiction)?;
    let asked = question.service;
    match answer.lacks {
        None => {}
        Some(_) if asked.lacks_type() => {
            return Err(ExplainError::Lacks(format!(
                "rules tell types of {asked} apart: ask for one, such as 8/{asked}, or 3:4/{asked} for type 3 and code 4"
            )));
        }
        Some(_) => {
            return Err(ExplainError::Lacks(format!(
                "rules tell source ports apart: ask for one, such as \"{asked} from 40000\""
            )));
        }
    }
    let (a, b) = reference_ends(cluster, question, &src, &dst).map_err(ExplainError::End)?;
    for (name, end, compiled) in [(&question.src, &a, &src), (&question.dst, &b, &dst)] {
        let (says, compiled) = (who(end), judge.who(compiled));
        if says != compiled {
            return Err(contradiction(format!(
                "the reference evaluator takes {name} for {says}, the compiled snapshot for {compiled}"
            )));
        }
    }
    let words = Words {
        src: call(&question.src, &a),
        dst: call(&question.dst, &b),
        service: question.service.to_string(),
        source: match question.service.source_port {
            Some(source) => format!("the flow is from port {source}"),
            None if question.service.lacks_source_port() => "the question names no source port".to_owned(),
            None => "the flow has no source port".to_owned(),
        },
    };
    let service = question.service.evaluated();
    // The steps, and the decision that the reference evaluator agrees they come to.
    let decide = |cluster, src, dst| -> Result<_, ExplainError> {
        let case = Case {
            cluster,
            src,
            dst,
            service,
        };
        let (egress, egress_decision) = case.side(Direction::Egress, &words);
        let (ingress, ingress_decision) = case.side(Direction::Ingress, &words);
        let steps = ringwall_evaluate::Verdict {
            ingress: ingress_decision,
            egress: egress_decision,
        };
        let wanted = ringwall_evaluate::judge(cluster, &src, &dst, service);
        if steps != wanted {
            return Err(contradiction(format!(
                "the steps come to {steps:?}, the reference evaluator to {wanted:?}"
            )));
        }
        Ok((case, wanted, egress, ingress))
    };
    let (case, surely_wanted, egress, ingress) = decide(cluster, a, b)?;
    let (c, d) = reference_ends(possibly, question, &src, &dst).map_err(ExplainError::End)?;
    let (possible_case, wanted, possible_egress, possible_ingress) = decide(possibly, c, d)?;
    let fates = [
        (&surely_wanted.ingress, &wanted.ingress),
        (&surely_wanted.egress, &wanted.egress),
    ]
    .map(|(surely, possibly)| Fate::of(surely.allow, possibly.allow));
    if [answer.ingress, answer.egress] != fates
        || answer.reasons != judge::reference_reasons(&surely_wanted, &wanted)
    {
        return Err(contradiction(format!(
            "the compiled snapshot says {answer:?}, the reference evaluator {surely_wanted:?} surely and {wanted:?} \
             possibly"
        )));
    }
    let passing = judge::passing(&case.trace(), &possible_case.trace());
    let [ingress_fate, egress_fate] = fates;
    let egress = of_both_readings(egress_fate, egress, possible_egress, &words.dst);
    let ingress = of_both_readings(ingress_fate, ingress, possible_ingress, &words.src);
    let depends_on: Vec<String> = answer
        .depends_on(&question.src, &question.dst)
        .iter()
        .map(ToString::to_string)
        .collect();
    // What is to be denied must be denied wherever pods are, what is to be allowed allowed wherever they are.
    let found = match answer.fate() {
        Fate::Deny => smallest_changes(cluster, states, &a, &b, service)?,
        Fate::Allow => smallest_changes(possibly, states, &c, &d, service)?,
        Fate::Depends => Found::None(format!(
            "it depends on the address that {} will have{}",
            depends_on.join(" and "),
            judge::SAY_WHERE
        )),
    };
    let (changes, no_change) = match found {
        Found::Changes(changes) => (changes.iter().map(changes::Change::record).collect(), None),
        Found::None(why) => (Vec::new(), Some(why)),
    };
    let icmp = question.service.icmp();
    Ok(Explanation {
        src: parties::party(cluster, &question.src, &a),
        dst: parties::party(cluster, &question.dst, &b),
        protocol: question.service.protocol,
        port: question.service.port.filter(|_| icmp.is_none()),
        source_port: question.service.source_port,
        icmp_type: icmp.map(|(kind, _)| kind),
        icmp_code: icmp.map(|(_, code)| code),
        service: words.service,
        verdict: word_of(answer.fate()),
        depends_on,
        exemption: case.exemption().map(|_| egress.why.clone()),
        notes: notes(&case),
        egress,
        ingress,
        reasons: judge::with_passing(&answer.reasons, passing)
            .iter()
            .map(Reason::decider)
            .collect(),
        incomplete: cluster.unevaluated_kinds.iter().cloned().collect(),
        changes,
        no_change,
        generation: None,
    })
}

fn word_of(fate: Fate) -> Word {
    match fate {
        Fate::Allow => Word::Allow,
        Fate::Depends => Word::Depends,
        Fate::Deny => Word::Deny,
    }
}

/// A direction in steps: those of what is possible where it depends on the address of `other`.
fn of_both_readings(fate: Fate, surely: Side, possibly: Side, other: &str) -> Side {
    if fate != Fate::Depends {
        return surely;
    }
    let why = if surely.effect == "deny" && surely.why != possibly.why {
        format!(
            "it depends on the address that {other} will have, and on which blocks hold it: {}, or {}",
            possibly.why, surely.why
        )
    } else {
        format!(
            "it depends on the address that {other} will have: {} if its ipBlock holds it",
            possibly.why
        )
    };
    Side {
        verdict: Word::Depends,
        effect: "depends".to_owned(),
        why,
        ..possibly
    }
}

/// The ends as the reference evaluator finds them, by the same addresses.
fn reference_ends<'a>(
    cluster: &'a Cluster,
    question: &Question,
    src: &judge::End,
    dst: &judge::End,
) -> Result<(End<'a>, End<'a>), String> {
    let find = |name, end| judge::reference_end(cluster, name, end);
    Ok((find(&question.src, src)?, find(&question.dst, dst)?))
}

/// Who an end is, in the words of [`Judge::who`].
fn who(end: &End<'_>) -> String {
    match end.identity {
        ringwall_evaluate::Identity::Pod(pod) => format!("pod {}", pod.key),
        ringwall_evaluate::Identity::Node(name) => format!("node {}", name.unwrap_or_default()),
        ringwall_evaluate::Identity::External => "outside".to_owned(),
        ringwall_evaluate::Identity::Unknown => "unknown".to_owned(),
    }
}

/// What to call an end in a sentence.
fn call(asked: &EndName, end: &End<'_>) -> String {
    match end.identity {
        ringwall_evaluate::Identity::Pod(pod) => pod.key.to_string(),
        ringwall_evaluate::Identity::Node(Some(name)) => format!("node {name}"),
        _ => end
            .address
            .map_or_else(|| asked.to_string(), |address| address.to_string()),
    }
}

/// What else is worth knowing about a flow.
fn notes(case: &Case<'_>) -> Vec<String> {
    use ringwall_evaluate::{Cause, Identity::Pod};
    let mut notes = Vec::new();
    if case.exemption() == Some(Cause::HostingNode) {
        notes.push(
            "on the wire this holds where the node's address can be believed: towards the node, or from the host port or a port of side nodes"
                .to_owned(),
        );
    }
    if let (Pod(src), Pod(dst)) = (case.src.identity, case.dst.identity)
        && src.key != dst.key
        && src.node.is_some()
        && src.node == dst.node
    {
        notes.push("both pods are on one node: a gateway beside the node does not see this flow".to_owned());
    }
    let service_networks = &case.cluster.settings.service_cidrs;
    if let (ringwall_evaluate::Identity::External, Some(address)) = (case.dst.identity, case.dst.address)
        && service_networks.iter().any(|network| network.contains(&address))
    {
        notes.push(
            "packets to Service addresses are dropped as service-unsupported: policies speak of the pods behind a Service"
                .to_owned(),
        );
    }
    if case.service.port == Some(0) && !matches!(case.service.protocol, 1 | 58) {
        notes.push("port 0 is matched by rules without a port number alone".to_owned());
    }
    notes
}
