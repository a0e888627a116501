//! What a list of rules decides about every protocol and port.

use hashbrown::HashMap;
use ringwall_policy::{Action, PortMatch, Protocol};

use super::{
    matching::{Asked, borders, port_matches, type_borders},
    rules::Rules,
};

/// What comes of a packet in one direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Outcome {
    /// This rule allows or denies it.
    Rule(u32),
    /// No rule decides, and a tier with policies that select the pod denies what they say nothing about: these, or
    /// where there are none, those of the first such tier of the subject.
    Denied(Option<u32>),
    /// Nothing decides, or it was passed on by all that would: it passes.
    Open,
}

impl Outcome {
    /// Whether the packet passes.
    fn passes(self, rules: &Rules) -> bool {
        match self {
            Self::Rule(rule) => rules.rule(rule).action == Action::Allow,
            Self::Denied(_) => false,
            Self::Open => true,
        }
    }
}

/// Stands for a protocol that is not known; no rule names it.
pub(super) const UNKNOWN_PROTOCOL: u8 = 255;

/// Protocols that have ports.
pub(super) const WITH_PORTS: [Protocol; 3] = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp];

/// What a destination calls its ports: protocol, name and number, in order, no name of a protocol twice.
pub(super) type PortNames = Vec<(Protocol, String, u16)>;

/// What is decided by source port.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum BySource<T> {
    /// Whatever it is.
    Same(T),
    /// From each on; the first is 0, neighbours differ, and there is more than one.
    Each(Vec<(u16, T)>),
}

impl<T: Copy + PartialEq> BySource<T> {
    /// From each on, where neighbours may be the same; the first is 0.
    fn of(all: impl Iterator<Item = (u16, T)>) -> Self {
        let mut each: Vec<(u16, T)> = Vec::new();
        for (first, value) in all {
            if each.last().is_none_or(|(_, last)| *last != value) {
                each.push((first, value));
            }
        }
        match each[..] {
            [(_, value)] => Self::Same(value),
            _ => Self::Each(each),
        }
    }

    fn at(&self, source: u16) -> T {
        match self {
            Self::Same(value) => *value,
            Self::Each(each) => each[each.partition_point(|(first, _)| *first <= source) - 1].1,
        }
    }

    /// From each on.
    pub(super) fn each(&self) -> impl Iterator<Item = (u16, T)> {
        let (one, each) = match self {
            Self::Same(value) => (Some((0, *value)), &[][..]),
            Self::Each(each) => (None, &each[..]),
        };
        one.into_iter().chain(each.iter().copied())
    }
}

/// What is decided, by protocol and port.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Spans {
    /// For TCP, UDP and SCTP, from each port on; the first is 0 and neighbours differ.
    pub protocols: [Vec<(u16, BySource<Outcome>)>; 3],
    /// Protocols without ports of which something else is decided, in order.
    pub others: Vec<(u8, Outcome)>,
    /// ICMP and ICMPv6 where types are told apart, from each type and code on; the first is 0 and neighbours differ.
    pub by_type: Vec<(u8, Vec<(u16, Outcome)>)>,
    /// Where no port is known, and for all other protocols.
    pub portless: Outcome,
}

/// What passes, whatever the rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Passes {
    protocols: [Vec<(u16, BySource<bool>)>; 3],
    others: Vec<(u8, bool)>,
    by_type: Vec<(u8, Vec<(u16, bool)>)>,
    portless: bool,
}

impl Passes {
    pub(super) fn everything() -> Self {
        Self {
            protocols: [(); 3].map(|()| vec![(0, BySource::Same(true))]),
            others: Vec::new(),
            by_type: Vec::new(),
            portless: true,
        }
    }
}

impl Spans {
    /// What passes by them.
    pub(super) fn passes(&self, rules: &Rules) -> Passes {
        let spans = |outcomes: &[(u16, Outcome)]| {
            let mut passes: Vec<(u16, bool)> = Vec::new();
            for (first, outcome) in outcomes {
                let pass = outcome.passes(rules);
                if passes.last().is_none_or(|(_, last)| *last != pass) {
                    passes.push((*first, pass));
                }
            }
            passes
        };
        let protocols = [0, 1, 2].map(|protocol: usize| {
            let mut passes: Vec<(u16, BySource<bool>)> = Vec::new();
            for (first, outcomes) in &self.protocols[protocol] {
                let pass = BySource::of(outcomes.each().map(|(source, it)| (source, it.passes(rules))));
                if passes.last().is_none_or(|(_, last)| *last != pass) {
                    passes.push((*first, pass));
                }
            }
            passes
        });
        let portless = self.portless.passes(rules);
        let by_type = self.by_type.iter().map(|(number, outcomes)| {
            let unknown = self.outcome(Asked::Portless(*number)).passes(rules);
            (*number, spans(outcomes), unknown)
        });
        let others = self.others.iter();
        Passes {
            protocols,
            others: others
                .map(|(number, outcome)| (*number, outcome.passes(rules)))
                .filter(|(_, passes)| *passes != portless)
                .collect(),
            by_type: by_type
                .filter(|(_, passes, unknown)| passes[..] != [(0, *unknown)])
                .map(|(number, passes, _)| (number, passes))
                .collect(),
            portless,
        }
    }

    /// What comes of a packet.
    pub(super) fn outcome(&self, asked: Asked) -> Outcome {
        let (protocol, port, source) = match asked {
            Asked::Port(protocol, port, source) => (protocol, port, source),
            Asked::Portless(asked) => {
                let mut others = self.others.iter();
                let found = others.find(|(number, _)| *number == asked);
                return found.map_or(self.portless, |(_, outcome)| *outcome);
            }
            Asked::Icmp(asked, of_type) => {
                let Some((_, spans)) = self.by_type.iter().find(|(number, _)| *number == asked) else {
                    return self.outcome(Asked::Portless(asked));
                };
                let above = spans.partition_point(|(first, _)| *first <= of_type);
                return spans[above - 1].1;
            }
        };
        let spans = &self.protocols[protocol as usize];
        let above = spans.partition_point(|(first, _)| *first <= port);
        spans[above - 1].1.at(source)
    }
}

/// A tier that denies to a pod what its policies say nothing about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Denial {
    /// The tier.
    pub tier: u32,
    /// As in [`Outcome::Denied`].
    pub policies: Option<u32>,
}

/// What a list without rules has for its last rule.
const NO_RULE: u32 = u32::MAX;

/// Which further rules cannot matter to a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Closed {
    /// Each can.
    Open,
    /// Those of the tier of its last rule: what is left has been passed on.
    Tier,
    /// None can.
    All,
}

/// A list of rules that match a peer.
#[derive(Debug)]
struct List {
    /// The list before its last rule; where it has none, the number of its denials.
    before: u32,
    /// Its last rule, or [`NO_RULE`].
    rule: u32,
    closed: Closed,
    /// Whether some rule passes on.
    passes_on: bool,
    /// Whether a rule asks for names of the source's ports.
    names_sources: bool,
}

/// Lists of rules that match a peer, and what they decide; both numbered, so that equal ones are looked at once.
#[derive(Debug)]
pub(super) struct Decisions {
    lists: Vec<List>,
    /// Lists of tiers that deny by default, in the order of the tiers; and the list without rules of each.
    denials: Vec<Vec<Denial>>,
    empty_lists: HashMap<Vec<Denial>, u32>,
    list_numbers: HashMap<(u32, u32), u32>,
    spans: Vec<Spans>,
    /// Of each of them, whether it has [`Outcome::Denied`].
    denying: Vec<bool>,
    span_numbers: HashMap<Spans, u32>,
    /// By list and names of the ports of destination and source.
    decided: HashMap<(u32, [u32; 2]), u32>,
}

impl Decisions {
    pub(super) fn new() -> Self {
        Self {
            lists: Vec::new(),
            denials: Vec::new(),
            empty_lists: HashMap::new(),
            list_numbers: HashMap::new(),
            spans: Vec::new(),
            denying: Vec::new(),
            span_numbers: HashMap::new(),
            decided: HashMap::new(),
        }
    }

    /// The list without rules of a pod to which these tiers deny by default, in their order.
    pub(super) fn none(&mut self, denials: Vec<Denial>) -> u32 {
        let Self {
            lists,
            denials: known,
            empty_lists,
            ..
        } = self;
        *empty_lists.entry(denials).or_insert_with_key(|denials| {
            known.push(denials.clone());
            lists.push(List {
                before: known.len() as u32 - 1,
                rule: NO_RULE,
                closed: Closed::Open,
                passes_on: false,
                names_sources: false,
            });
            lists.len() as u32 - 1
        })
    }

    /// The list with one more rule at its end.
    pub(super) fn and(&mut self, list: u32, rule: u32, rules: &Rules) -> u32 {
        if rules.rule(rule).action == Action::Log {
            return list; // it decides nothing
        }
        let last = &self.lists[list as usize];
        match last.closed {
            Closed::All => return list,
            Closed::Tier if rules.rule(last.rule).tier == rules.rule(rule).tier => return list,
            Closed::Tier | Closed::Open => {}
        }
        let next = self.lists.len() as u32;
        let number = *self.list_numbers.entry((list, rule)).or_insert(next);
        if number == next {
            let passes_on = rules.rule(rule).action == Action::Pass || last.passes_on;
            // A rule for every port takes whatever no rule before it has passed on to a later tier.
            let closed = match (rules.ports(rule).is_all(), passes_on) {
                (false, _) => Closed::Open,
                (true, true) => Closed::Tier,
                (true, false) => Closed::All,
            };
            let mut sources = rules.ports(rule).source_entries();
            let names_sources =
                last.names_sources || sources.any(|entry| matches!(entry, PortMatch::Named { .. }));
            self.lists.push(List {
                before: list,
                rule,
                closed,
                passes_on,
                names_sources,
            });
        }
        number
    }

    /// What a list decides for a destination and a source with these port names.
    pub(super) fn decide(
        &mut self,
        list: u32,
        [destination, source]: [u32; 2],
        of_names: &[PortNames],
        rules: &Rules,
    ) -> u32 {
        // Few rules ask for the source's.
        let source = match self.lists[list as usize].names_sources {
            true => source,
            false => 0,
        };
        let names = [destination, source];
        if let Some(number) = self.decided.get(&(list, names)) {
            return *number;
        }
        let spans = self.spans_of(list, names.map(|names| &of_names[names as usize]), rules);
        let next = self.spans.len() as u32;
        let number = *self.span_numbers.entry_ref(&spans).or_insert(next);
        if number == next {
            let denied = {
                let with_ports = spans.protocols.iter().flatten();
                let with_ports = with_ports.flat_map(|(_, outcomes)| outcomes.each().map(|(_, it)| it));
                let without = spans.others.iter().map(|(_, outcome)| *outcome);
                let of_types = spans.by_type.iter().flat_map(|(_, spans)| spans);
                let of_types = of_types.map(|(_, outcome)| *outcome);
                let mut all = with_ports.chain(without).chain(of_types).chain([spans.portless]);
                all.any(|outcome| matches!(outcome, Outcome::Denied(_)))
            };
            self.denying.push(denied);
            self.spans.push(spans);
        }
        self.decided.insert((list, names), number);
        number
    }

    pub(super) fn spans(&self, number: u32) -> &Spans {
        &self.spans[number as usize]
    }

    /// Whether some packet is denied because no rule decides about it.
    pub(super) fn isolates(&self, number: u32) -> bool {
        self.denying[number as usize]
    }

    fn spans_of(&self, mut list: u32, names: [&PortNames; 2], rules: &Rules) -> Spans {
        let mut in_order = Vec::new();
        let denials = loop {
            let List { before, rule, .. } = self.lists[list as usize];
            if rule == NO_RULE {
                break &self.denials[before as usize];
            }
            in_order.push((rule, rules.ports(rule)));
            list = before;
        };
        in_order.reverse();
        // What a tier that was not passed on denies by default.
        let default = |passed_on: Option<u32>| denials.iter().find(|it| Some(it.tier) > passed_on);
        let [named, named_source] = names.map(|names| {
            move |protocol: Protocol, name: &str| {
                let found = names
                    .iter()
                    .find(|(of, called, _)| *of == protocol && called == name);
                found.map(|(_, _, number)| *number)
            }
        });
        let outcome = |asked: Asked| {
            let mut passed_on: Option<u32> = None;
            for (number, ports) in &in_order {
                let rule = rules.rule(*number);
                if let Some(denial) = default(passed_on)
                    && denial.tier < rule.tier
                {
                    return Outcome::Denied(denial.policies); // TIERS 79.3
                }
                let one_of =
                    |entries: &[PortMatch]| entries.iter().any(|entry| port_matches(entry, asked, &named));
                let from_one_of = |entries: &[PortMatch]| {
                    let source = asked.source();
                    source.is_some_and(|source| {
                        let mut entries = entries.iter();
                        entries.any(|entry| port_matches(entry, source, &named_source))
                    })
                };
                let holds = passed_on != Some(rule.tier)
                    && ports.some.is_none_or(one_of)
                    && !one_of(ports.not)
                    && ports.from.is_none_or(from_one_of)
                    && !from_one_of(ports.not_from);
                match rule.action {
                    _ if !holds => {}
                    Action::Log => {}
                    Action::Pass => passed_on = Some(rule.tier), // TIERS 69.1
                    Action::Allow | Action::Deny => return Outcome::Rule(*number),
                }
            }
            default(passed_on).map_or(Outcome::Open, |denial| Outcome::Denied(denial.policies))
        };
        let protocols = WITH_PORTS.map(|protocol| {
            let mut sources = vec![0];
            for entry in in_order.iter().flat_map(|(_, ports)| ports.source_entries()) {
                borders(entry, protocol, &named_source, &mut sources);
            }
            sources.sort_unstable();
            sources.dedup();
            let mut cuts = vec![0];
            for entry in in_order.iter().flat_map(|(_, ports)| ports.entries()) {
                borders(entry, protocol, &named, &mut cuts);
            }
            cuts.sort_unstable();
            cuts.dedup();
            let mut spans: Vec<(u16, BySource<Outcome>)> = Vec::new();
            for port in cuts {
                let from = |source: &u16| (*source, outcome(Asked::Port(protocol, port, *source)));
                let found = match sources[..] {
                    [_] => BySource::Same(outcome(Asked::Port(protocol, port, 0))),
                    _ => BySource::of(sources.iter().map(from)),
                };
                if spans.last().is_none_or(|(_, last)| *last != found) {
                    spans.push((port, found));
                }
            }
            spans
        });
        let portless = outcome(Asked::Portless(UNKNOWN_PROTOCOL));
        let entries = in_order.iter().flat_map(|(_, ports)| ports.entries());
        let mut numbers: Vec<u8> = entries
            .filter_map(|entry| match entry {
                PortMatch::IpProtocol(number) => Some(*number),
                PortMatch::Icmp { protocol, .. } => Some(*protocol),
                _ => None,
            })
            .collect();
        numbers.sort_unstable();
        numbers.dedup();
        let mut by_type = Vec::new();
        for number in numbers.iter().copied() {
            let mut cuts = vec![0];
            for entry in in_order.iter().flat_map(|(_, ports)| ports.entries()) {
                type_borders(entry, number, &mut cuts);
            }
            cuts.sort_unstable();
            cuts.dedup();
            let mut spans: Vec<(u16, Outcome)> = Vec::new();
            for of_type in cuts {
                let found = outcome(Asked::Icmp(number, of_type));
                if spans.last().is_none_or(|(_, last)| *last != found) {
                    spans.push((of_type, found));
                }
            }
            if spans[..] != [(0, outcome(Asked::Portless(number)))] {
                by_type.push((number, spans));
            }
        }
        let others = numbers
            .into_iter()
            .map(|number| (number, outcome(Asked::Portless(number))));
        Spans {
            protocols,
            others: others.filter(|(_, outcome)| *outcome != portless).collect(),
            by_type,
            portless,
        }
    }
}
