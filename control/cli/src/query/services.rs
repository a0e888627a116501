//! What is said of a flow to a Service: the verdict of each endpoint, and what they come to together.

use std::collections::BTreeSet;

use ringwall_analyse::{
    flow::{EndName, Flow, Verbatim},
    judge::{Direction, Fate},
    services::{Backend, Joint, Leg, Legs, Outcome, Resolved, joint},
};
use serde_json::{Value, json};

use super::{Answered, Asker, end_words, verbatim_then};

/// What is said of a flow to a Service.
pub(super) struct ServiceAnswered {
    flow: Flow,
    resolved: Resolved,
    verdict: Joint,
    /// Of each endpoint; where a node translates the connection, what either end's policies see of it.
    backends: Vec<(Backend, Answered, Option<Answered>)>,
}

/// The verdict on an endpoint.
fn fate(sent: &Answered, received: Option<&Answered>) -> Fate {
    match received {
        None => sent.answer.fate(),
        Some(received) => sent.answer.egress.min(received.answer.ingress),
    }
}

impl Asker<'_> {
    pub(super) fn ask_service(&mut self, flow: Flow, resolved: Resolved) -> Result<ServiceAnswered, String> {
        let mut backends = Vec::new();
        let found = match &resolved.outcome {
            Outcome::Backends(found) => found.as_slice(),
            Outcome::Rejected(_) | Outcome::Dropped(_) => &[],
        };
        for backend in found {
            let Legs { egress, ingress } = backend.legs(&flow.src, resolved.asked);
            let received = match ingress == egress {
                true => None,
                false => Some(self.ask_leg(ingress)?),
            };
            backends.push((backend.clone(), self.ask_leg(egress)?, received));
        }
        let fates = backends
            .iter()
            .map(|(_, sent, received)| fate(sent, received.as_ref()));
        let verdict = match (&resolved.outcome, joint(fates)) {
            (_, Some(verdict)) => verdict,
            (Outcome::Dropped(_), None) => Joint::Drop,
            (_, None) => Joint::Reject,
        };
        Ok(ServiceAnswered {
            flow,
            resolved,
            verdict,
            backends,
        })
    }

    fn ask_leg(&mut self, leg: Leg) -> Result<Answered, String> {
        self.ask(Flow {
            verbatim: Verbatim(Vec::new()),
            src: leg.src,
            dst: leg.dst,
            service: leg.service,
            port_name: None,
        })
    }

    pub(super) fn service_json(&self, answered: &ServiceAnswered) -> String {
        let backends: Vec<Value> = answered
            .backends
            .iter()
            .map(|(backend, sent, received)| self.backend_value(backend, sent, received.as_ref()))
            .collect();
        let direction = |of: &dyn Fn(&Answered, &Answered) -> Fate| {
            let fates = answered
                .backends
                .iter()
                .map(|(_, sent, received)| of(sent, received.as_ref().unwrap_or(sent)));
            joint(fates).map(Joint::word)
        };
        let first = answered.backends.first();
        let mut ours = json!({
            "service": answered.resolved.report(),
            "src_ip": first.and_then(|(_, sent, _)| sent.src.address),
            "dst_ip": match &answered.flow.dst {
                EndName::Address(address) => Some(address),
                _ => None,
            },
            "verdict": answered.verdict.word(),
            "ingress": direction(&|_, received| received.answer.ingress),
            "egress": direction(&|sent, _| sent.answer.egress),
            "reasons": union(&backends, "reasons"),
            "backends": backends,
        });
        for key in ["depends_on", "invalid"] {
            if let found @ [_, ..] = union(&backends, key).as_slice() {
                ours[key] = json!(found);
            }
        }
        if let Some(why) = answered.resolved.why() {
            ours["why"] = json!(why);
        }
        if !answered.resolved.notes.is_empty() {
            ours["notes"] = json!(answered.resolved.notes);
        }
        if !self.cluster.unevaluated_kinds.is_empty() {
            ours["incomplete"] = json!(self.cluster.unevaluated_kinds);
        }
        verbatim_then(&answered.flow, &ours)
    }

    fn backend_value(&self, backend: &Backend, sent: &Answered, received: Option<&Answered>) -> Value {
        let mut value = json!(backend.report());
        let mut set = |key: &str, field: Value| value[key] = field;
        let end = received.unwrap_or(sent);
        set("src_ip", json!(end.src.address));
        set("verdict", json!(fate(sent, received).word()));
        set("ingress", json!(end.answer.ingress.word()));
        set("egress", json!(sent.answer.egress.word()));
        let (sent_fields, mut own) = (self.fields(sent), self.fields(end));
        if received.is_some() {
            let of = |value: &Value, direction: &str| -> Vec<Value> {
                let reasons = value["reasons"].as_array().into_iter().flatten();
                let own = reasons.filter(|reason| reason["direction"] == direction);
                own.cloned().collect()
            };
            own["reasons"] = json!([of(&sent_fields, "egress"), of(&own, "ingress")].concat());
        }
        for key in ["reasons", "pending", "depends_on", "gateway_drop", "invalid"] {
            if let Some(field) = own.get(key) {
                set(key, field.clone());
            }
        }
        value
    }

    pub(super) fn service_words(&self, answered: &ServiceAnswered) -> String {
        let src = match answered.backends.first() {
            Some((_, sent, _)) => end_words(&sent.flow.src, &sent.src),
            None => answered.flow.src.to_string(),
        };
        let mut text = format!(
            "{:<7}  {src} -> {} {}\n           {}",
            answered.verdict.word(),
            answered.flow.dst,
            answered.resolved.asked,
            answered.resolved.words()
        );
        for note in &answered.resolved.notes {
            text.push_str(&format!("\n           {note}"));
        }
        for (backend, sent, received) in &answered.backends {
            let word = fate(sent, received.as_ref()).word();
            let words = backend.words(answered.resolved.asked);
            text.push_str(&format!("\n  {word:<7}  {words}"));
            let why = match received {
                None => self.why(sent),
                // Each end's policies about what they see.
                Some(received) => [
                    self.why_of(sent, &[Direction::Egress]),
                    self.why_of(received, &[Direction::Ingress]),
                ]
                .concat(),
            };
            text.push_str(&why.replace("\n         ", "\n           "));
        }
        text
    }
}

/// What any endpoint has under a key.
fn union(backends: &[Value], key: &str) -> Vec<Value> {
    let mut seen = BTreeSet::new();
    let all = backends
        .iter()
        .filter_map(|backend| backend[key].as_array())
        .flatten();
    all.filter(|value| seen.insert(value.to_string()))
        .cloned()
        .collect()
}
