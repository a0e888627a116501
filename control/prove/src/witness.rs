//! From what is wrong to a packet that shows it, with both answers in words.

use std::{collections::BTreeSet, net::IpAddr};

use ringwall_dataplane::classify::{
    DirectionVerdict, Effect, Identity, L4, NodeExemption, PolicyName, Provenance,
};
use ringwall_policy::Action;

use super::{
    address_ranges,
    expected::{End, Owner},
    matching::{self, Asked},
    number_relation::EndRef,
    policy::in_words,
    ports::{Outcome, WITH_PORTS},
    proof::{Proof, Suspect, Wrong},
    report::{Answer, Difference},
    rules::Direction,
};

/// The reason of what no policy applies to.
const OPEN: &str = "open";

/// The reason of what policies apply to and none decides.
const PROFILE: &str = "profile";

/// Most ends and ports that are tried in search of a packet.
const TRIED_ENDS: usize = 256;
const TRIED_PORTS: usize = 64;

/// An answer, with the policies that it names.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Expectation {
    sides: [(bool, String); 2],
    policies: BTreeSet<String>,
}

/// The answer about a name that no pod has.
fn no_such_pod() -> Expectation {
    Expectation {
        sides: [(); 2].map(|()| (false, "no such name".to_owned())),
        policies: BTreeSet::new(),
    }
}

impl Expectation {
    fn answer(&self) -> Answer {
        let [(ingress, in_words), (egress, out_words)] = &self.sides;
        Answer {
            allow: *ingress && *egress,
            ingress: in_words.clone(),
            egress: out_words.clone(),
        }
    }

    fn allow(&self) -> bool {
        self.sides.iter().all(|(allow, _)| *allow)
    }
}

impl Proof {
    /// Finds a packet that shows what is wrong: best one whose verdict differs, else one whose reason does.
    pub(super) fn explain(&mut self, wrong: Wrong) -> Box<Difference> {
        let tried = match wrong.suspect {
            Suspect::Packet { src, dst, l4 } => vec![(src, dst, l4)],
            Suspect::End(place) => self.around(place),
            Suspect::Anything => {
                let unknown = self.unknown_address();
                self.around(EndRef::Address(unknown))
            }
        };
        let mut shown: Option<(EndRef, EndRef, L4, NodeExemption, Expectation, Expectation)> = None;
        'tried: for (src, dst, l4) in &tried {
            for trust in [
                NodeExemption::Trusted,
                NodeExemption::Untrusted,
                NodeExemption::ThisNode,
            ] {
                let wanted = self.wanted(*src, *dst, *l4, trust);
                let got = self.got(*src, *dst, *l4, trust);
                let better = match &shown {
                    None => true,
                    Some((.., before, told)) => before == told && wanted != got,
                };
                let decided = wanted.allow() != got.allow();
                if better || decided {
                    shown = Some((*src, *dst, *l4, trust, wanted, got));
                }
                if decided {
                    break 'tried;
                }
            }
        }
        let (src, dst, l4, trust, wanted, got) = shown.unwrap_or_else(|| {
            // Not reached: every suspect gives at least one packet.
            let nowhere = EndRef::Address(IpAddr::from([0; 4]));
            let nothing = Expectation {
                sides: [(false, String::new()), (false, String::new())],
                policies: BTreeSet::new(),
            };
            let l4 = L4::NoPort { protocol: 255 };
            (
                nowhere,
                nowhere,
                l4,
                NodeExemption::Trusted,
                nothing.clone(),
                nothing,
            )
        });
        let mut what = wrong.what;
        match trust {
            NodeExemption::Trusted => {}
            NodeExemption::Untrusted => what.push_str(" (where node addresses are not trusted)"),
            NodeExemption::ThisNode => what.push_str(" (where the one that is no pod is the pod's node)"),
        }
        let (protocol, port, source_port) = match l4 {
            L4::Port {
                protocol: protocol @ (1 | 58),
                port,
                ..
            } => (protocol, Some(port), None),
            L4::Port {
                protocol,
                port,
                source,
            } => (protocol, Some(port), Some(source)),
            L4::NoPort { protocol } => (protocol, None, None),
        };
        Box::new(Difference {
            src: self.words(src),
            dst: self.words(dst),
            protocol,
            port,
            source_port,
            wanted: wanted.answer(),
            got: got.answer(),
            what,
            policies: wanted.policies.union(&got.policies).cloned().collect(),
        })
    }

    /// Packets to and from an end.
    fn around(&self, place: EndRef) -> Vec<(EndRef, EndRef, L4)> {
        let mut others = vec![place];
        let fits = |other: &EndRef| match (place, *other) {
            (EndRef::Address(a), EndRef::Address(b)) => a.is_ipv4() == b.is_ipv4(),
            _ => true,
        };
        let known = self.relation.places();
        let stride = known.len().div_ceil(TRIED_ENDS).max(1);
        others.extend(known.into_iter().step_by(stride).filter(fits));
        let mut asked = vec![L4::NoPort { protocol: 255 }];
        for protocol in WITH_PORTS {
            let ports = self.expected.rules.ports_named().into_iter();
            let named = self.expected.named_ports(place);
            let own = ports
                .chain(named)
                .filter(|(of, _)| *of == protocol)
                .map(|(_, port)| port);
            let ports: BTreeSet<u16> = own.chain([0]).collect();
            let sources: BTreeSet<u16> = self
                .expected
                .rules
                .source_ports_named()
                .into_iter()
                .chain(self.expected.named_ports(place).into_iter().map(|(_, port)| port))
                .chain([0])
                .collect();
            let both = sources
                .into_iter()
                .flat_map(|source| ports.iter().map(move |port| (*port, source)));
            asked.extend(both.take(TRIED_PORTS).map(|(port, source)| L4::Port {
                protocol: protocol.number(),
                port,
                source,
            }));
        }
        let types = self.expected.rules.types_named().into_iter().take(TRIED_PORTS);
        asked.extend(types.map(|(protocol, port)| L4::Port {
            protocol,
            port,
            source: 0,
        }));
        let mut packets = Vec::new();
        for other in others {
            for l4 in &asked {
                packets.push((other, place, *l4));
                packets.push((place, other, *l4));
            }
        }
        packets
    }

    fn unknown_address(&self) -> IpAddr {
        for v4 in [true, false] {
            let ranges = self.expected.space.family(v4).iter();
            let mut unknown = ranges.filter(|range| range.place == address_ranges::Unowned::PodNetwork);
            if let Some(range) = unknown.next() {
                return matching::address(v4, range.first);
            }
        }
        IpAddr::from([0; 4])
    }

    fn end_at(&mut self, place: EndRef) -> End {
        match place {
            EndRef::Address(address) => self.expected.end(address),
            EndRef::Name(slot) => self.expected.nameless(slot),
        }
    }

    fn identity_at(&self, place: EndRef) -> Option<Identity> {
        match place {
            EndRef::Address(address) => Some(self.snapshot.identify(address.into())),
            EndRef::Name(slot) => {
                let key = &self.expected.pod(slot)?.pod.key;
                let endpoint = self.snapshot.find_endpoint(&key.namespace, &key.name)?;
                Some(endpoint.identity)
            }
        }
    }

    /// Whether a place is not the name of a pod that has no place of its own.
    fn has_name(&self, place: EndRef) -> bool {
        match place {
            EndRef::Address(_) => true,
            EndRef::Name(slot) => self.expected.pod(slot).is_some_and(|known| known.is_endpoint()),
        }
    }

    /// Whether two places are one end's, to which its traffic to itself is open.
    fn is_one(&self, src: EndRef, dst: EndRef) -> bool {
        src == dst && !matches!(src, EndRef::Name(slot) if self.is_template(slot))
    }

    /// What the objects say.
    fn wanted(&mut self, src: EndRef, dst: EndRef, l4: L4, trust: NodeExemption) -> Expectation {
        let (from, to) = (self.end_at(src), self.end_at(dst));
        let both = |words: &str| Expectation {
            sides: [(true, words.to_owned()), (true, words.to_owned())],
            policies: BTreeSet::new(),
        };
        if !self.has_name(src) || !self.has_name(dst) {
            return no_such_pod();
        }
        if let (Owner::Pod(a), Owner::Pod(b)) = (from.who, to.who)
            && a == b
            && self.is_one(src, dst)
        {
            return both("self");
        }
        if self.is_exempt(from.who, to.who, trust) {
            let mut expectation = both("its node");
            if matches!(from.who, Owner::Pod(_)) {
                let (allow, words) =
                    self.by_policies(from.own_node, to.meaning, l4, &mut expectation.policies);
                if ![OPEN, PROFILE].contains(&words.as_str()) {
                    expectation.sides[Direction::Egress as usize] = (allow, words);
                }
            }
            return expectation;
        }
        let mut policies = BTreeSet::new();
        let sides = [
            self.side(Direction::Ingress, &to, &from, l4, &mut policies),
            self.side(Direction::Egress, &from, &to, l4, &mut policies),
        ];
        Expectation { sides, policies }
    }

    fn side(
        &mut self,
        direction: Direction,
        own: &End,
        other: &End,
        l4: L4,
        policies: &mut BTreeSet<String>,
    ) -> (bool, String) {
        if own.who.is_unknown() && !self.expected.settings().allow_unknown {
            return (false, "unknown".to_owned());
        }
        let of = own.subjects[direction as usize];
        self.by_policies(of, other.meaning, l4, policies)
    }

    /// Whether one is a pod and the other its node.
    fn is_exempt(&self, from: Owner, to: Owner, trust: NodeExemption) -> bool {
        match (from, to, trust) {
            (_, _, NodeExemption::Untrusted) => false,
            (Owner::Pod(pod), Owner::Node(node), NodeExemption::Trusted)
            | (Owner::Node(node), Owner::Pod(pod), NodeExemption::Trusted) => self
                .expected
                .pod(pod)
                .is_some_and(|known| known.node == Some(node)),
            (_, _, NodeExemption::Trusted) => false,
            (from, to, NodeExemption::ThisNode) => {
                matches!(from, Owner::Pod(_)) != matches!(to, Owner::Pod(_))
            }
        }
    }

    /// What a subject's policies say about a peer.
    fn by_policies(
        &mut self,
        of: u32,
        meaning: u32,
        l4: L4,
        policies: &mut BTreeSet<String>,
    ) -> (bool, String) {
        let asked = match l4 {
            L4::Port {
                protocol,
                port,
                source,
            } => {
                let of = WITH_PORTS.into_iter().find(|of| of.number() == protocol);
                of.map_or(Asked::Icmp(protocol, port), |of| Asked::Port(of, port, source))
            }
            L4::NoPort { protocol } => Asked::Portless(protocol),
        };
        let outcome = self.expected.outcome(of, meaning, asked);
        let rules = &self.expected.rules;
        match outcome {
            Outcome::Open if self.expected.subject_of(of).policies.is_empty() => (true, OPEN.to_owned()),
            Outcome::Open => (true, PROFILE.to_owned()),
            Outcome::Rule(rule) => {
                let rule = rules.rule(rule);
                let allow = rule.action == Action::Allow;
                let words = by_rule(allow, rule.index, &rules.named(rule.policy), policies);
                (allow, words)
            }
            Outcome::Denied(list) => {
                let denying = rules.denying(list, &self.expected.subject_of(of).policies);
                let names = denying.iter().map(|number| rules.named(*number));
                (false, by_isolation(names, policies))
            }
        }
    }

    /// What the snapshot says.
    fn got(&self, src: EndRef, dst: EndRef, l4: L4, trust: NodeExemption) -> Expectation {
        let mut policies = BTreeSet::new();
        let (Some(from), Some(to)) = (self.identity_at(src), self.identity_at(dst)) else {
            return no_such_pod();
        };
        let same = self.is_one(src, dst);
        let decided = self.snapshot.judge_ends(&from, &to, same, l4, trust);
        let mut words = |side: DirectionVerdict| {
            let words = match side.effect {
                Effect::Open => OPEN.to_owned(),
                Effect::Profile => PROFILE.to_owned(),
                Effect::SelfTraffic => "self".to_owned(),
                Effect::Node => "its node".to_owned(),
                Effect::Unknown => "unknown".to_owned(),
                Effect::Invalid => "numbers that are not the snapshot's".to_owned(),
                Effect::Allow | Effect::Isolated | Effect::Deny => {
                    match self.snapshot.provenance(side.provenance) {
                        Some(Provenance::Rule { policy, rule }) => {
                            by_rule(side.allow, rule, &policy, &mut policies)
                        }
                        Some(Provenance::Isolating(isolating)) => by_isolation(isolating, &mut policies),
                        None => "for a reason that it does not know".to_owned(),
                    }
                }
            };
            (side.allow, words)
        };
        let sides = [words(decided.ingress), words(decided.egress)];
        Expectation { sides, policies }
    }

    /// An end in words.
    pub(super) fn words(&self, place: EndRef) -> String {
        match place {
            EndRef::Address(address) => address.to_string(),
            EndRef::Name(slot) => match self.expected.pod(slot) {
                Some(known) => known.pod.key.to_string(),
                None => "a pod that does not exist".to_owned(),
            },
        }
    }

    pub(super) fn describe(&self, who: Owner) -> String {
        let key = |slot| match self.expected.pod(slot) {
            Some(known) => known.pod.key.to_string(),
            None => "a pod that does not exist".to_owned(),
        };
        match who {
            Owner::Pod(slot) => format!("pod {}", key(slot)),
            Owner::Unseen(slot) => format!("{}, whose namespace has not been seen", key(slot)),
            Owner::Node(name) => format!("node {}", self.expected.node_name(name)),
            Owner::Unowned(address_ranges::Unowned::PodNetwork) => {
                "an unknown endpoint in a pod network".to_owned()
            }
            Owner::Unowned(address_ranges::Unowned::Service) => "a Service's".to_owned(),
            Owner::Unowned(address_ranges::Unowned::Outside) => "outside".to_owned(),
        }
    }
}

/// The reason of what a rule decides.
fn by_rule(allow: bool, index: u32, policy: &PolicyName<'_>, policies: &mut BTreeSet<String>) -> String {
    let policy = in_words(policy);
    let denies = if allow { "" } else { "denied by " };
    let words = format!("{denies}rule {index} of {policy}");
    policies.insert(policy);
    words
}

/// The reason of what NetworkPolicies do not allow.
fn by_isolation<'a>(
    isolating: impl IntoIterator<Item = PolicyName<'a>>,
    policies: &mut BTreeSet<String>,
) -> String {
    let names: Vec<String> = isolating.into_iter().map(|policy| in_words(&policy)).collect();
    let words = format!("isolated by {}", names.join(", "));
    policies.extend(names);
    words
}
