//! What a list of rules decides about every protocol and port.

use hashbrown::HashMap;
use ringwall_policy::{PortMatch, Protocol};

use super::{
    matching::{PortOf, borders, port_matches},
    rules::Rules,
};

/// No rule matches: the pod is isolated.
pub(super) const NO_RULE: u32 = u32::MAX;

/// Protocols that have ports.
pub(super) const WITH_PORTS: [Protocol; 3] = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp];

/// What a destination calls its ports: protocol, name and number, in order, no name of a protocol twice.
pub(super) type PortNames = Vec<(Protocol, String, u16)>;

/// The first rule that matches, by protocol and port.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Spans {
    /// For TCP, UDP and SCTP, from each port on; the first is 0 and neighbours differ.
    pub protocols: [Vec<(u16, u32)>; 3],
    /// Where no port is known, and for all other protocols.
    pub portless: u32,
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
    pub(super) fn passes(&self) -> Passes {
        let protocols = [0, 1, 2].map(|protocol: usize| {
            let mut passes: Vec<(u16, bool)> = Vec::new();
            for (first, rule) in &self.protocols[protocol] {
                let pass = *rule != NO_RULE;
                if passes.last().is_none_or(|(_, last)| *last != pass) {
                    passes.push((*first, pass));
                }
            }
            passes
        });
        Passes {
            protocols,
            portless: self.portless != NO_RULE,
        }
    }

    /// The rule for a packet.
    pub(super) fn rule(&self, asked: PortOf) -> u32 {
        let Some((protocol, port)) = asked else {
            return self.portless;
        };
        let spans = &self.protocols[protocol as usize];
        let above = spans.partition_point(|(first, _)| *first <= port);
        spans[above - 1].1
    }
}

/// Lists of rules that match a peer, and what they decide; both numbered, so that equal ones are looked at once.
#[derive(Debug)]
pub(super) struct Decisions {
    /// Of each list: the list before its last rule, that rule, and whether some rule takes every port, so that no
    /// further one matters. List 0 is empty.
    lists: Vec<(u32, u32, bool)>,
    list_numbers: HashMap<(u32, u32), u32>,
    spans: Vec<Spans>,
    /// Of each of them, whether it has [`NO_RULE`].
    denying: Vec<bool>,
    span_numbers: HashMap<Spans, u32>,
    /// By list and port names.
    decided: HashMap<(u32, u32), u32>,
}

impl Decisions {
    pub(super) fn new() -> Self {
        Self {
            lists: vec![(0, NO_RULE, false)],
            list_numbers: HashMap::new(),
            spans: Vec::new(),
            denying: Vec::new(),
            span_numbers: HashMap::new(),
            decided: HashMap::new(),
        }
    }

    /// The list with one more rule at its end.
    pub(super) fn and(&mut self, list: u32, rule: u32, rules: &Rules) -> u32 {
        if self.lists[list as usize].2 {
            return list;
        }
        let next = self.lists.len() as u32;
        let number = *self.list_numbers.entry((list, rule)).or_insert(next);
        if number == next {
            self.lists.push((list, rule, rules.ports(rule).is_none()));
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
            let mut all = spans.protocols.iter().flatten().map(|(_, rule)| *rule);
            let denies = spans.portless == NO_RULE || all.any(|rule| rule == NO_RULE);
            self.denying.push(denies);
            self.spans.push(spans);
        }
        self.decided.insert((list, names), number);
        number
    }

    pub(super) fn spans(&self, number: u32) -> &Spans {
        &self.spans[number as usize]
    }

    /// Whether some packet is decided by no rule.
    pub(super) fn denies(&self, number: u32) -> bool {
        self.denying[number as usize]
    }

    fn spans_of(&self, mut list: u32, names: &PortNames, rules: &Rules) -> Spans {
        let mut in_order = Vec::new();
        while list != 0 {
            let (before, rule, _) = self.lists[list as usize];
            in_order.push((rule, rules.ports(rule)));
            list = before;
        }
        in_order.reverse();
        let named = |protocol, name: &str| {
            let found = names
                .iter()
                .find(|(of, called, _)| *of == protocol && called == name);
            found.map(|(_, _, number)| *number)
        };
        let first_match = |asked: PortOf| {
            let holds = |(_, ports): &&(u32, Option<&[PortMatch]>)| {
                ports.is_none_or(|ports| ports.iter().any(|entry| port_matches(entry, asked, &named)))
            };
            in_order.iter().find(holds).map_or(NO_RULE, |(rule, _)| *rule)
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
            let mut spans: Vec<(u16, u32)> = Vec::new();
            for port in cuts {
                let rule = first_match(Some((protocol, port)));
                if spans.last().is_none_or(|(_, last)| *last != rule) {
                    spans.push((port, rule));
                }
            }
            spans
        });
        Spans {
            protocols,
            portless: first_match(None),
        }
    }
}
