//! What a list of rules decides about every protocol and port.

use hashbrown::HashMap;
use ringwall_policy::{Action, Protocol};

use super::{
    matching::{PortOf, borders, port_matches},
    policy::Tier,
    rules::Rules,
};

/// What comes of a packet in one direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Outcome {
    /// This rule allows or denies it.
    Rule(u32),
    /// NetworkPolicies isolate the pod, and no rule decides.
    Isolated,
    /// Nothing decides, or it was passed on by all that would: it passes.
    Open,
}

impl Outcome {
    /// Whether the packet passes.
    fn passes(self, rules: &Rules) -> bool {
        match self {
            Self::Rule(rule) => rules.rule(rule).action == Action::Allow,
            Self::Isolated => false,
            Self::Open => true,
        }
    }
}

/// Protocols that have ports.
pub(super) const WITH_PORTS: [Protocol; 3] = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp];

/// What a destination calls its ports: protocol, name and number, in order, no name of a protocol twice.
pub(super) type PortNames = Vec<(Protocol, String, u16)>;

/// What is decided, by protocol and port.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Spans {
    /// For TCP, UDP and SCTP, from each port on; the first is 0 and neighbours differ.
    pub protocols: [Vec<(u16, Outcome)>; 3],
    /// Where no port is known, and for all other protocols.
    pub portless: Outcome,
}

/// What passes, whatever the rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Passes {
    protocols: [Vec<(u16, bool)>; 3],
    portless: bool,
}

impl Passes {
    pub(super) fn everything() -> Self {
        Self {
            protocols: [(); 3].map(|()| vec![(0, true)]),
            portless: true,
        }
    }
}

impl Spans {
    /// What passes by them.
    pub(super) fn passes(&self, rules: &Rules) -> Passes {
        let protocols = [0, 1, 2].map(|protocol: usize| {
            let mut passes: Vec<(u16, bool)> = Vec::new();
            for (first, outcome) in &self.protocols[protocol] {
                let pass = outcome.passes(rules);
                if passes.last().is_none_or(|(_, last)| *last != pass) {
                    passes.push((*first, pass));
                }
            }
            passes
        });
        Passes {
            protocols,
            portless: self.portless.passes(rules),
        }
    }

    /// What comes of a packet.
    pub(super) fn outcome(&self, asked: PortOf) -> Outcome {
        let Some((protocol, port)) = asked else {
            return self.portless;
        };
        let spans = &self.protocols[protocol as usize];
        let above = spans.partition_point(|(first, _)| *first <= port);
        spans[above - 1].1
    }
}

/// Lists without rules: of a pod that NetworkPolicies isolate, and of one that none does.
const ISOLATED: u32 = 0;
const NOT_ISOLATED: u32 = 1;

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
    /// The list before its last rule; itself where it has none.
    before: u32,
    /// Its last rule.
    rule: u32,
    closed: Closed,
    /// Whether some rule passes on.
    passes_on: bool,
}

/// Lists of rules that match a peer, and what they decide; both numbered, so that equal ones are looked at once.
#[derive(Debug)]
pub(super) struct Decisions {
    /// The first two are [`ISOLATED`] and [`NOT_ISOLATED`].
    lists: Vec<List>,
    list_numbers: HashMap<(u32, u32), u32>,
    spans: Vec<Spans>,
    /// Of each of them, whether it has [`Outcome::Isolated`].
    isolating: Vec<bool>,
    span_numbers: HashMap<Spans, u32>,
    /// By list and port names.
    decided: HashMap<(u32, u32), u32>,
}

impl Decisions {
    pub(super) fn new() -> Self {
        let empty = |number| List {
            before: number,
            rule: u32::MAX,
            closed: Closed::Open,
            passes_on: false,
        };
        Self {
            lists: [ISOLATED, NOT_ISOLATED].map(empty).into(),
            list_numbers: HashMap::new(),
            spans: Vec::new(),
            isolating: Vec::new(),
            span_numbers: HashMap::new(),
            decided: HashMap::new(),
        }
    }

    /// The list without rules.
    pub(super) fn none(isolated: bool) -> u32 {
        if isolated { ISOLATED } else { NOT_ISOLATED }
    }

    /// The list with one more rule at its end.
    pub(super) fn and(&mut self, list: u32, rule: u32, rules: &Rules) -> u32 {
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
            let closed = match (rules.ports(rule).is_none(), passes_on) {
                (false, _) => Closed::Open,
                (true, true) => Closed::Tier,
                (true, false) => Closed::All,
            };
            self.lists.push(List {
                before: list,
                rule,
                closed,
                passes_on,
            });
        }
        number
    }

    /// What a list decides for a destination with these port names.
    pub(super) fn decide(&mut self, list: u32, names: u32, of_names: &[PortNames], rules: &Rules) -> u32 {
        if let Some(number) = self.decided.get(&(list, names)) {
            return *number;
        }
        let spans = self.spans_of(list, &of_names[names as usize], rules);
        let next = self.spans.len() as u32;
        let number = *self.span_numbers.entry_ref(&spans).or_insert(next);
        if number == next {
            let mut all = spans.protocols.iter().flatten().map(|(_, outcome)| *outcome);
            let isolates =
                spans.portless == Outcome::Isolated || all.any(|outcome| outcome == Outcome::Isolated);
            self.isolating.push(isolates);
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
        self.isolating[number as usize]
    }

    fn spans_of(&self, mut list: u32, names: &PortNames, rules: &Rules) -> Spans {
        let mut in_order = Vec::new();
        while list > NOT_ISOLATED {
            let List { before, rule, .. } = self.lists[list as usize];
            in_order.push((rule, rules.ports(rule)));
            list = before;
        }
        in_order.reverse();
        let undecided = if list == ISOLATED {
            Outcome::Isolated
        } else {
            Outcome::Open
        };
        let named = |protocol, name: &str| {
            let found = names
                .iter()
                .find(|(of, called, _)| *of == protocol && called == name);
            found.map(|(_, _, number)| *number)
        };
        let outcome = |asked: PortOf| {
            let mut passed_on: Option<Tier> = None;
            for (number, ports) in &in_order {
                let rule = rules.rule(*number);
                let holds = passed_on != Some(rule.tier)
                    && ports.is_none_or(|ports| ports.iter().any(|entry| port_matches(entry, asked, &named)));
                match rule.action {
                    _ if !holds => {}
                    Action::Pass => passed_on = Some(rule.tier), // TIERS 69.1
                    Action::Allow | Action::Deny => return Outcome::Rule(*number),
                }
            }
            undecided
        };
        let protocols = WITH_PORTS.map(|protocol| {
            let mut cuts = vec![0];
            for entry in in_order
                .iter()
                .flat_map(|(_, ports)| ports.iter().copied().flatten())
            {
                borders(entry, protocol, &named, &mut cuts);
            }
            cuts.sort_unstable();
            cuts.dedup();
            let mut spans: Vec<(u16, Outcome)> = Vec::new();
            for port in cuts {
                let found = outcome(Some((protocol, port)));
                if spans.last().is_none_or(|(_, last)| *last != found) {
                    spans.push((port, found));
                }
            }
            spans
        });
        Spans {
            protocols,
            portless: outcome(None),
        }
    }
}
