//! A suspicion, and the packets that would show it.

use ringwall_policy::{PolicyKind, Protocol};
use ringwall_source::folder::ManifestObject;

use super::{
    Finding, Severity, Witness,
    rules::Rule,
    subject::{Direction, Policy, place},
    witnesses::Witnesses,
};
use crate::{
    flow::{EndName, Service},
    judge,
    judge::{Answer, Judge, Reason},
};

/// A packet that is asked about.
#[derive(Clone, Debug)]
pub(super) struct Ask {
    pub(super) src: EndName,
    pub(super) dst: EndName,
    pub(super) service: Service,
    /// The direction that shows it.
    pub(super) direction: Direction,
    /// Whether that direction allows it, if the suspicion is right.
    pub(super) expect: bool,
    /// What the author most likely wanted.
    pub(super) wanted: String,
}

/// What shows a suspicion to be right.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shown {
    /// One packet that shows it.
    OnePacket,
    /// One packet whose whole fate shows it.
    OneFate,
    /// That every packet shows it.
    EveryPacket,
    /// Nothing: it is a fact; a packet makes it plain if there is one.
    Itself,
}

/// A suspicion.
#[derive(Clone, Debug)]
pub(super) struct Draft<'a> {
    pub(super) rule: &'static Rule,
    pub(super) severity: Severity,
    pub(super) written: Option<&'a ManifestObject>,
    /// Path within the object.
    pub(super) field: String,
    pub(super) message: String,
    pub(super) fix: String,
    pub(super) asks: Vec<Ask>,
    pub(super) shown: Shown,
    /// Whether it is about policies of every kind: else what a rule of another tier decides shows nothing of a NetworkPolicy.
    pub(super) of_any_tier: bool,
}

impl<'a> Draft<'a> {
    /// A draft about a field of a policy.
    pub(super) fn of(
        rule: &'static Rule,
        policy: &Policy<'a>,
        field: impl Into<String>,
        message: impl Into<String>,
        fix: impl Into<String>,
    ) -> Self {
        Self::about(rule, Some(policy.written), field, message, fix)
    }

    /// A draft about a field of any object.
    pub(super) fn about(
        rule: &'static Rule,
        written: Option<&'a ManifestObject>,
        field: impl Into<String>,
        message: impl Into<String>,
        fix: impl Into<String>,
    ) -> Self {
        Self {
            rule,
            severity: rule.severity,
            written,
            field: field.into(),
            message: message.into(),
            fix: fix.into(),
            asks: Vec::new(),
            shown: Shown::OnePacket,
            of_any_tier: false,
        }
    }

    pub(super) fn asking(mut self, asks: impl IntoIterator<Item = Ask>) -> Self {
        self.asks.extend(asks);
        self
    }

    pub(super) fn severity(mut self, severity: Severity) -> Self {
        self.severity = severity;
        self
    }

    pub(super) fn shown(mut self, shown: Shown) -> Self {
        self.shown = shown;
        self
    }

    pub(super) fn of_any_tier(mut self) -> Self {
        self.of_any_tier = true;
        self
    }

    /// What the snapshot makes of it; None where it does not show.
    pub(super) fn finding(&self, witnesses: &Witnesses<'_>, judge: &Judge) -> Option<Finding> {
        let answered: Vec<(&Ask, Answer)> = self
            .asks
            .iter()
            .filter_map(|ask| Some((ask, ask.answer(witnesses, judge)?)))
            .collect();
        let shows = |ask: &Ask, answer: &Answer| {
            ask.directed(answer) == ask.expect && (self.of_any_tier || !ask.is_decided_elsewhere(answer))
        };
        // Best is one whose fate is the direction's: the other end's policies do not blur it.
        let shown = answered
            .iter()
            .find(|(ask, answer)| shows(ask, answer) && answer.allow() == ask.expect)
            .or_else(|| answered.iter().find(|(ask, answer)| shows(ask, answer)));
        let enough = match self.shown {
            Shown::OnePacket => shown.is_some(),
            Shown::OneFate => shown.is_some_and(|(ask, answer)| answer.allow() == ask.expect),
            Shown::EveryPacket => {
                !answered.is_empty() && answered.iter().all(|(ask, answer)| shows(ask, answer))
            }
            Shown::Itself => true,
        };
        if !enough {
            return None;
        }
        let written = self.written;
        let object = written.map(|it| it.label().to_owned());
        Some(Finding {
            id: self.rule.id,
            severity: self.severity,
            place: written.map(|it| place(it, &self.field)),
            object,
            path: written
                .map(|it| it.path(&self.field))
                .filter(|path| !path.is_empty()),
            message: self.message.clone(),
            witness: shown.map(|(ask, answer)| ask.witness(answer, witnesses)),
            fix: Some(self.fix.clone()).filter(|fix| !fix.is_empty()),
        })
    }
}

impl Ask {
    /// A packet to or from a policy's subject: `peer` is the other end.
    pub(super) fn new(
        direction: Direction,
        subject: &EndName,
        peer: &EndName,
        (protocol, port): (Protocol, u16),
        expect: bool,
        wanted: impl Into<String>,
    ) -> Self {
        let (src, dst) = match direction {
            Direction::Ingress => (peer, subject),
            Direction::Egress => (subject, peer),
        };
        Self {
            src: src.clone(),
            dst: dst.clone(),
            service: Service {
                protocol: protocol.number(),
                port: Some(port),
                source_port: None,
            },
            direction,
            expect,
            wanted: wanted.into(),
        }
    }

    /// The snapshot's answer; None where the ends have no family in common, are unknown, or are exempt from policy.
    fn answer(&self, witnesses: &Witnesses<'_>, judge: &Judge) -> Option<Answer> {
        let (src, dst) = judge
            .ends(witnesses.with_synthetic(), &self.src, &self.dst)
            .ok()?;
        let answer = judge.judge(&src, &dst, self.service).ok()?;
        // A pod and itself, or its node: whatever the policies say.
        let exempt = |reason: &Reason| matches!(reason.effect, "self" | "node");
        // What depends on addresses shows nothing.
        let depends =
            answer.fate() == judge::Fate::Depends || self.directed_fate(&answer) == judge::Fate::Depends;
        (!depends && !answer.reasons.iter().any(exempt)).then_some(answer)
    }

    fn directed_fate(&self, answer: &Answer) -> judge::Fate {
        match self.direction {
            Direction::Ingress => answer.ingress,
            Direction::Egress => answer.egress,
        }
    }

    /// Whether a policy that is no NetworkPolicy decides the direction that shows it.
    fn is_decided_elsewhere(&self, answer: &Answer) -> bool {
        let direction = match self.direction {
            Direction::Ingress => judge::Direction::Ingress,
            Direction::Egress => judge::Direction::Egress,
        };
        answer.reasons.iter().any(|reason| {
            let kind = reason.kind.as_deref();
            reason.direction == direction && kind.is_some_and(|kind| kind != PolicyKind::NetworkPolicy.name())
        })
    }

    fn directed(&self, answer: &Answer) -> bool {
        self.directed_fate(answer) == judge::Fate::Allow
    }

    fn witness(&self, answer: &Answer, witnesses: &Witnesses<'_>) -> Witness {
        Witness {
            from: witnesses.words(&self.src),
            to: witnesses.words(&self.dst),
            imagined: witnesses.is_synthetic(&self.src) || witnesses.is_synthetic(&self.dst),
            service: self.service.to_string(),
            allowed: answer.allow(),
            why: why(answer),
            wanted: self.wanted.clone(),
        }
    }
}

/// Reasons in words: of the directions that deny, else of both.
fn why(answer: &Answer) -> String {
    let mut words = Vec::new();
    for (direction, name, allowed) in [
        (judge::Direction::Egress, "egress", answer.egress),
        (judge::Direction::Ingress, "ingress", answer.ingress),
    ] {
        if !answer.allow() && allowed == judge::Fate::Allow {
            continue;
        }
        let of: Vec<&Reason> = answer
            .reasons
            .iter()
            .filter(|reason| reason.direction == direction)
            .collect();
        let names: Vec<String> = of.iter().filter_map(|reason| reason.policy_words()).collect();
        words.push(match of.first() {
            Some(reason @ Reason { rule: Some(rule), .. }) => {
                let denied = if reason.effect == "deny" {
                    " is denied by"
                } else {
                    ""
                };
                format!("{name}{denied} rule {rule} of {}", names.join(", "))
            }
            Some(Reason { policy: Some(_), .. }) => format!("{name} is isolated by {}", names.join(", ")),
            Some(Reason {
                effect: "open" | "profile",
                ..
            }) => format!("no policy restricts {name}"),
            Some(reason) => format!("{name}: {}", reason.effect),
            None => continue,
        });
    }
    words.join("; ")
}
