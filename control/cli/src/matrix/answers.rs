//! What is asked about every two endpoints, and the answers in words.

use std::{
    collections::{BTreeMap, BTreeSet},
    rc::Rc,
};

use ringwall_analyse::{
    flow::{self, protocol_name},
    judge::Fate,
    refine::{
        Decided, Decisions, End, Family, Ports, RefineError, Service, Span, What, source_words, type_words,
    },
};

/// What is asked about a pair of endpoints.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Asked {
    /// Every protocol and port.
    Everything,
    /// These alone.
    Only(Vec<flow::Service>),
}

impl Asked {
    /// In words.
    pub(super) fn words(&self) -> String {
        match self {
            Self::Everything => "everything".to_owned(),
            Self::Only(services) => {
                let words: Vec<String> = services.iter().map(ToString::to_string).collect();
                words.join(" ")
            }
        }
    }
}

/// What becomes of the asked between two endpoints.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Answer {
    /// What passes, in words.
    pub(super) allowed: Vec<String>,
    /// What depends on addresses that are not known, likewise.
    pub(super) depends: Vec<String>,
    /// All that becomes of some of it.
    pub(super) fates: BTreeSet<Fate>,
    /// The tiers that decide.
    pub(super) tiers: BTreeSet<String>,
}

/// Asks about pairs of ends; of those that are decided alike, once.
pub(super) struct Answers<'a> {
    pub(super) decisions: Decisions<'a>,
    asked: Asked,
    known: BTreeMap<Vec<Decided>, Rc<Answer>>,
}

impl<'a> Answers<'a> {
    pub(super) fn new(decisions: Decisions<'a>, asked: Asked) -> Self {
        Self {
            decisions,
            asked,
            known: BTreeMap::new(),
        }
    }

    /// Whether two ends are one pod or address, and not the template of several pods.
    pub(super) fn is_itself(&self, (src, dst): (u32, u32)) -> bool {
        let of_several = |end: &End<1>| end.meets_itself && matches!(end.what, What::Endpoint(_));
        src == dst
            && !self
                .decisions
                .ends()
                .all
                .get(src as usize)
                .is_some_and(of_several)
    }

    /// About two ends; None where they have no address family in common.
    ///
    /// # Errors
    /// The snapshot contradicts itself.
    pub(super) fn between(&mut self, pair: (u32, u32)) -> Result<Option<Rc<Answer>>, RefineError> {
        let mut decided: Vec<Decided> = Vec::new();
        if self.is_itself(pair) {
            // A pod always reaches itself.
            return Ok(Some(Rc::new(self.all())));
        }
        for family in Family::BOTH {
            decided.extend(self.decisions.between(pair, family)?);
        }
        if decided.is_empty() {
            return Ok(None);
        }
        if let Some(known) = self.known.get(&decided) {
            return Ok(Some(Rc::clone(known)));
        }
        let answer = Rc::new(self.answer(&decided));
        self.known.insert(decided, Rc::clone(&answer));
        Ok(Some(answer))
    }

    /// Everything passes.
    fn all(&self) -> Answer {
        Answer {
            allowed: match &self.asked {
                Asked::Everything => vec!["all".to_owned()],
                Asked::Only(services) => services.iter().map(ToString::to_string).collect(),
            },
            fates: BTreeSet::from([Fate::Allow]),
            ..Answer::default()
        }
    }

    /// Of both families, where the ends have both.
    fn answer(&self, decided: &[Decided]) -> Answer {
        let of_family = |decided: &Decided| (decided.family(), self.of_family(decided));
        let mut answers: Vec<(Family, Answer)> = decided.iter().map(of_family).collect();
        let alike = answers.windows(2).all(
            |pair| matches!(pair, [(_, a), (_, b)] if (&a.allowed, &a.depends) == (&b.allowed, &b.depends)),
        );
        let mut whole = Answer::default();
        for (family, answer) in &mut answers {
            whole.fates.append(&mut answer.fates);
            whole.tiers.append(&mut answer.tiers);
            let over = |words: &mut Vec<String>| -> Vec<String> {
                let words = words.drain(..);
                words
                    .map(|word| format!("{word} over {}", family.name()))
                    .collect()
            };
            if alike {
                whole.allowed = std::mem::take(&mut answer.allowed);
                whole.depends = std::mem::take(&mut answer.depends);
            } else {
                whole.allowed.extend(over(&mut answer.allowed));
                whole.depends.extend(over(&mut answer.depends));
            }
        }
        whole
    }

    fn of_family(&self, decided: &Decided) -> Answer {
        let ports = self.decisions.ports(decided);
        let mut answer = Answer::default();
        let mut note = |ports: &Ports<'_>| {
            answer.fates.insert(ports.fate);
            let tiers = ports.reasons.iter().filter_map(|reason| reason.tier.clone());
            answer.tiers.extend(tiers);
        };
        match &self.asked {
            Asked::Everything => {
                ports.iter().for_each(note);
                answer.allowed = everything(&ports, Fate::Allow);
                answer.depends = everything(&ports, Fate::Depends);
            }
            Asked::Only(services) => {
                let (mut allowed, mut depends) = (Vec::new(), Vec::new());
                for service in services {
                    let own = of_service(&ports, *service);
                    own.iter().copied().for_each(&mut note);
                    let fates: BTreeSet<Fate> = own.iter().map(|ports| ports.fate).collect();
                    match fates.first() {
                        None => {}
                        Some(Fate::Allow) => allowed.push(service.to_string()),
                        Some(Fate::Deny) if fates.len() == 1 => {}
                        // On the type of ICMP or the source port, too.
                        Some(_) => depends.push(service.to_string()),
                    }
                }
                (answer.allowed, answer.depends) = (allowed, depends);
            }
        }
        answer
    }
}

/// What is decided about a service: one span, or those of all types of ICMP and of all source ports where it names none and
/// rules tell them apart.
fn of_service<'d, 'p>(ports: &'d [Ports<'p>], service: flow::Service) -> Vec<&'d Ports<'p>> {
    let among = |kind: Service, number: u16| -> Vec<&'d Ports<'p>> {
        let holds = |it: &&Ports<'_>| it.service == kind && (it.ports.0..=it.ports.1).contains(&number);
        ports.iter().filter(holds).collect()
    };
    let by_type = match service.protocol {
        1 => Some(Service::Icmp),
        58 => Some(Service::IcmpV6),
        _ => None,
    };
    let by_number = || among(Service::Other, u16::from(service.protocol));
    match (by_type, service.port) {
        (Some(kind), Some(of_type)) => match among(kind, of_type) {
            found if found.is_empty() => by_number(),
            found => found,
        },
        (Some(kind), None) => {
            let all = ports.iter().filter(|it| it.service == kind);
            all.chain(by_number()).collect()
        }
        (None, Some(port)) => {
            let mut found = among(Service::of(service.protocol), port);
            if let Some(source) = service.source_port {
                found.retain(|it| (it.sources.0..=it.sources.1).contains(&source));
            }
            found
        }
        (None, None) => by_number(),
    }
}

/// What of everything has a fate, in words.
fn everything(ports: &[Ports<'_>], wanted: Fate) -> Vec<String> {
    if ports.iter().all(|ports| ports.fate == wanted) {
        return vec!["all".to_owned()];
    }
    let mut words = Vec::new();
    for service in Service::ALL {
        // Of each span of source ports, then those with the same ports as one.
        let mut by_ports: Vec<(Vec<Span>, Vec<Span>)> = Vec::new();
        let own: Vec<&Ports<'_>> = ports.iter().filter(|it| it.service == service).collect();
        for ports in own.chunk_by(|one, other| one.sources == other.sources) {
            let Some(sources) = ports.first().map(|ports| ports.sources) else {
                continue;
            };
            let mut spans: Vec<Span> = Vec::new();
            for ports in ports.iter().filter(|it| it.fate == wanted) {
                push(&mut spans, ports.ports);
            }
            match by_ports.iter_mut().find(|(known, _)| *known == spans) {
                Some((_, from)) => push(from, sources),
                None => by_ports.push((spans, vec![sources])),
            }
        }
        for (spans, sources) in by_ports {
            let from = source_words(&sources);
            words.extend(spans.into_iter().map(|span| span_words(service, span) + &from));
        }
    }
    words
}

/// Adds a span to a list in order; one that follows the last at once is joined to it.
fn push(spans: &mut Vec<Span>, (lo, hi): Span) {
    match spans.last_mut() {
        Some((_, last)) if last.checked_add(1) == Some(lo) => *last = hi,
        _ => spans.push((lo, hi)),
    }
}

fn span_words(service: Service, (lo, hi): Span) -> String {
    let name = service.name();
    match (service, lo, hi) {
        (_, 0, u16::MAX) => name.to_owned(),
        _ if service.has_types() => format!("{}/{name}", type_words((lo, hi))),
        // Protocol numbers, of which there are 256.
        (Service::Other, lo, hi) if lo == hi => protocol_name(u8::try_from(lo).unwrap_or(u8::MAX)),
        (Service::Other, lo, hi) => format!("protocols {lo}-{}", hi.min(255)),
        (_, lo, hi) if lo == hi => format!("{lo}/{name}"),
        _ => format!("{lo}-{hi}/{name}"),
    }
}
