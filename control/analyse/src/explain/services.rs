//! Why a connection to a Service passes or does not: which endpoints it may end at, and why each of them is reached or not.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{
    ExplainError, Explainer, Question,
    render::{Style, render},
    report::Explanation,
};
use crate::{
    judge::{Fate, Reason},
    services::{BackendReport, Directory, Joint, Legs, Outcome, ServiceReport},
};

/// The explanation of a connection to a Service: the stable JSON of `ringwall explain -o json` for one.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ServiceExplanation {
    /// The source, as asked for.
    pub src: String,
    /// The destination, as asked for.
    pub dst: String,
    /// Which Service, port and frontend that is.
    pub service: ServiceReport,
    /// What the verdicts of all endpoints come to.
    pub verdict: Joint,
    /// Why the connection ends nowhere.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
    /// The Service and its endpoints in a sentence.
    pub summary: String,
    /// The endpoints that the connection may end at.
    pub backends: Vec<BackendExplanation>,
    /// What else is worth knowing about this connection.
    pub notes: Vec<String>,
    /// Generation of the snapshot that answered; None offline.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generation: Option<u64>,
}

/// The explanation of one endpoint.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BackendExplanation {
    /// Which it is.
    #[serde(flatten)]
    pub end: BackendReport,
    /// `allow`, `deny` or `depends`.
    pub verdict: String,
    /// The endpoint in a few words.
    pub summary: String,
    /// The first endpoint that is decided in the same way, and explained.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub like: Option<String>,
    /// Why; None where it is like another.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub explanation: Option<Box<Explanation>>,
    /// Where a node translates the connection: why the endpoint receives it or does not, and `explanation` is about what the
    /// client sends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub received: Option<Box<Explanation>>,
}

/// An explanation of a flow, or of a connection to a Service.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Explained {
    /// Of a connection to a Service.
    Service(Box<ServiceExplanation>),
    /// Of a flow.
    Flow(Box<Explanation>),
}

impl Explained {
    /// Where it says which snapshot answered, and what else is worth knowing.
    pub fn generation_and_notes(&mut self) -> (&mut Option<u64>, &mut Vec<String>) {
        match self {
            Self::Service(it) => (&mut it.generation, &mut it.notes),
            Self::Flow(it) => (&mut it.generation, &mut it.notes),
        }
    }

    /// As text for people.
    pub fn render(&self, style: Style) -> String {
        match self {
            Self::Service(explanation) => render_service(explanation, style),
            Self::Flow(explanation) => render(explanation, style),
        }
    }
}

impl Explainer<'_> {
    /// Explains a flow, or a connection to a Service where that is what the destination is.
    ///
    /// # Errors
    /// As those of [`Self::explain`] and [`Self::explain_service`].
    pub fn explain_any(
        &self,
        directory: &Directory<'_>,
        question: &Question,
        port_name: Option<&str>,
    ) -> Result<Explained, ExplainError> {
        if let Some(explanation) = self.explain_service(directory, question, port_name)? {
            return Ok(Explained::Service(Box::new(explanation)));
        }
        match port_name {
            Some(name) => Err(ExplainError::End(format!(
                "{name} is the name of a port, and {} is no Service: write its number",
                question.dst
            ))),
            None => self.explain(question).map(Box::new).map(Explained::Flow),
        }
    }

    /// Explains a connection to a Service; None where the destination is none.
    ///
    /// # Errors
    /// As those of [`Self::explain`], and where there is no such Service or port.
    pub fn explain_service(
        &self,
        directory: &Directory<'_>,
        question: &Question,
        port_name: Option<&str>,
    ) -> Result<Option<ServiceExplanation>, ExplainError> {
        let ends = (&question.src, &question.dst);
        let resolved = directory.resolve(&self.judge, ends, question.service, port_name);
        let Some(resolved) = resolved.map_err(ExplainError::End)? else {
            return Ok(None);
        };
        let judged = directory.judge(&self.judge, &question.src, &resolved);
        let (verdict, answers) = judged.map_err(ExplainError::End)?;
        let mut explained: BTreeMap<(Fate, Vec<Reason>), String> = BTreeMap::new();
        let mut backends = Vec::new();
        let found = match &resolved.outcome {
            Outcome::Backends(found) => found.as_slice(),
            Outcome::Rejected(_) | Outcome::Dropped(_) => &[],
        };
        for (backend, answer) in found.iter().zip(&answers) {
            let summary = backend.words(resolved.asked);
            let like = explained.get(&(answer.fate(), answer.reasons.clone())).cloned();
            let (mut explanation, mut received) = (None, None);
            if like.is_none() {
                let Legs { egress, ingress } = backend.legs(&question.src, resolved.asked);
                let leg = |leg: &crate::services::Leg| {
                    let question = Question {
                        src: leg.src.clone(),
                        dst: leg.dst.clone(),
                        service: leg.service,
                    };
                    self.explain(&question).map(Box::new)
                };
                explanation = Some(leg(&egress)?);
                received = (egress != ingress).then(|| leg(&ingress)).transpose()?;
                explained.insert((answer.fate(), answer.reasons.clone()), summary.clone());
            }
            backends.push(BackendExplanation {
                end: backend.report(),
                verdict: answer.fate().word().to_owned(),
                summary,
                like,
                explanation,
                received,
            });
        }
        Ok(Some(ServiceExplanation {
            src: question.src.to_string(),
            dst: question.dst.to_string(),
            service: resolved.report(),
            verdict,
            why: resolved.why().map(str::to_owned),
            summary: resolved.words(),
            backends,
            notes: resolved.notes,
            generation: None,
        }))
    }
}

/// Writes it for people.
fn render_service(explanation: &ServiceExplanation, style: Style) -> String {
    let ServiceExplanation {
        src, dst, verdict, ..
    } = explanation;
    let port = match (&explanation.service.port_name, explanation.service.port) {
        (Some(name), Some(port)) => format!("{port} ({name})"),
        (None, Some(port)) => port.to_string(),
        (_, None) => String::new(),
    };
    let mut text = format!(
        "{src} -> {dst} {port}: {}\n\n{}\n",
        verdict.word(),
        explanation.summary
    );
    for backend in &explanation.backends {
        text.push_str(&format!("  {:<7} {}\n", backend.verdict, backend.summary));
    }
    for note in &explanation.notes {
        text.push_str(&format!("Note: {note}\n"));
    }
    for backend in &explanation.backends {
        let Some(why) = &backend.explanation else {
            continue;
        };
        let alike = explanation
            .backends
            .iter()
            .filter(|other| other.like.as_ref() == Some(&backend.summary));
        let also: Vec<&str> = alike.map(|other| other.summary.as_str()).collect();
        text.push_str(&format!("\n{} {}\n", "=".repeat(3), backend.summary));
        if !also.is_empty() {
            text.push_str(&format!("    The same decides about {}.\n", also.join("; ")));
        }
        if backend.received.is_some() {
            text.push_str("    As the client's policies see it (egress):\n");
        }
        text.push_str(&render(why, style));
        if let Some(received) = &backend.received {
            text.push_str("\n    As the endpoint's policies see it (ingress):\n");
            text.push_str(&render(received, style));
        }
    }
    text
}
