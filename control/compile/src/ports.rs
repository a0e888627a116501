//! One cell: from the ordered rules that match a peer to decisions by protocol and port.

use ringwall_dataplane::classify::{Decision, NONE, PortDecision, PortRange, icmp};
use ringwall_policy::{Action, PortMatch, Protocol};

/// A rule, as a cell needs it.
#[derive(Clone, Copy, Debug)]
pub(super) struct CellRule<'a> {
    /// Position of its tier.
    pub tier: u32,
    pub action: Action,
    /// Its provenance in the image.
    pub provenance: u32,
    pub ports: Option<&'a [PortMatch]>,
    /// What it does not match.
    pub not_ports: &'a [PortMatch],
    /// Source ports; None for all.
    pub source_ports: Option<&'a [PortMatch]>,
    /// Source ports that it does not match.
    pub not_source_ports: &'a [PortMatch],
}

impl<'a> CellRule<'a> {
    /// Every protocol and port that it names.
    fn named_ports(&self) -> impl Iterator<Item = &'a PortMatch> {
        self.ports.unwrap_or_default().iter().chain(self.not_ports)
    }

    /// Whether it asks for the source port of a protocol.
    fn asks_for_sources(&self, protocol: Protocol) -> bool {
        self.source_ports.is_some() || self.not_source_ports.iter().any(|port| is_of(port, protocol))
    }

    /// The source ports of a protocol that it matches.
    fn sources(&self, protocol: Protocol, named: &[NamedPort]) -> Vec<(u16, u16)> {
        let ranges = |ports: &[PortMatch]| -> Vec<(u16, u16)> {
            let ranges = ports.iter().filter_map(|port| range(port, protocol, named));
            ranges.collect()
        };
        let some = self.source_ports.map_or(vec![(0, u16::MAX)], ranges);
        without(some, &ranges(self.not_source_ports))
    }
}

/// A port name that policies ask for, and the number of an end for it.
pub(super) type NamedPort = ((Protocol, String), u16);

/// Named ports of both ends.
#[derive(Clone, Copy, Debug)]
pub(super) struct PortNames<'a> {
    pub destination: &'a [NamedPort],
    pub source: &'a [NamedPort],
}

/// What a cell decides.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Cell {
    /// For packets without ports, and for ports in no range.
    pub otherwise: PortDecision,
    pub ranges: Vec<PortRange>,
    /// Ports of which source ports are told apart, and ICMP where types are; there is no range of these.
    pub nested: Vec<Nested>,
}

/// What a cell decides about ports of a protocol by source port, or about ICMP or ICMPv6 by type and code.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Nested {
    pub protocol: u8,
    /// First port; 0 of ICMP.
    pub lo: u16,
    /// Last port; the last there is of ICMP.
    pub hi: u16,
    /// For packets whose source port or type is not known, and for those in no range.
    pub otherwise: PortDecision,
    /// By source port, or type and code, as TCP ports.
    pub ranges: Vec<PortRange>,
}

/// A tier that denies what none of its rules matches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Isolation {
    /// Position of the tier.
    pub tier: u32,
    /// Why it denies, in the image: [`NONE`] for what the row has.
    pub provenance: u32,
}

impl Isolation {
    fn deny(self) -> PortDecision {
        match self.provenance {
            NONE => PortDecision::DENY,
            provenance => PortDecision {
                decision: Decision::DENY_BY_DEFAULT,
                provenance,
            },
        }
    }
}

/// Decides for every protocol and port. `rules` are in the order in which they decide; `isolating` are the tiers, in order,
/// that deny what none of their rules matches, of those with a policy that selects the pod.
pub(super) fn decide(rules: &[CellRule<'_>], isolating: &[Isolation], named: PortNames<'_>) -> Cell {
    let for_all = rules.iter();
    let for_all = for_all.filter(|rule| rule.ports.is_none() && rule.source_ports.is_none());
    let otherwise = first_match(for_all, isolating);
    let mut ranges = Vec::new();
    let mut nested = Vec::new();
    for protocol in [Protocol::Tcp, Protocol::Udp, Protocol::Sctp] {
        let names = |rule: &CellRule<'_>| {
            rule.asks_for_sources(protocol) || rule.named_ports().any(|port| is_of(port, protocol))
        };
        if !rules.iter().any(names) {
            continue;
        }
        // What each matches by source port; None where no rule asks.
        let asks = rules.iter().any(|rule| rule.asks_for_sources(protocol));
        let sources: Option<Vec<Vec<(u16, u16)>>> = asks.then(|| {
            let of_rules = rules.iter().map(|rule| rule.sources(protocol, named.source));
            of_rules.collect()
        });
        let covered = cover(rules, protocol, named.destination);
        // By rule, how many of its ranges hold the port.
        let mut active: Vec<u32> = rules
            .iter()
            .map(|rule| {
                let everything =
                    rule.ports.is_none() && !rule.not_ports.iter().any(|port| is_of(port, protocol));
                u32::from(everything)
            })
            .collect();
        let mut decide = |active: &[u32], lo: u16, hi: u16| {
            let matching = || {
                let rules = rules.iter().zip(active);
                rules.filter(|(_, count)| **count > 0).map(|(rule, _)| rule)
            };
            let Some(sources) = &sources else {
                let then = first_match(matching(), isolating);
                if then != otherwise {
                    ranges.push(PortRange {
                        protocol: protocol.number(),
                        lo,
                        hi,
                        then,
                    });
                }
                return;
            };
            let from = || {
                let rules = rules.iter().zip(sources).zip(active);
                rules.filter(|(_, count)| **count > 0).map(|(rule, _)| rule)
            };
            let known = by_source(from, isolating);
            match &known[..] {
                [then] if then.then == otherwise => {}
                [then] => ranges.push(PortRange {
                    protocol: protocol.number(),
                    lo,
                    hi,
                    ..*then
                }),
                _ => {
                    let unknown = matching().filter(|rule| rule.source_ports.is_none());
                    nested.push(Nested {
                        protocol: protocol.number(),
                        lo,
                        hi,
                        otherwise: first_match(unknown, isolating),
                        ranges: known,
                    });
                }
            }
        };
        // By port; at one port, what begins before what ends, so that no count falls below zero.
        let mut edges: Vec<(u32, bool, usize)> = Vec::with_capacity(2 * covered.len());
        for (lo, hi, position) in covered {
            edges.push((u32::from(lo), false, position));
            edges.push((u32::from(hi) + 1, true, position));
        }
        edges.sort_unstable();
        // Up to the first of them, what no edge is of.
        let first = edges.first().map_or(u32::from(u16::MAX) + 1, |edge| edge.0);
        if let Some(hi) = first.checked_sub(1) {
            decide(&active, 0, hi as u16);
        }
        let mut edges = edges.chunk_by(|one, other| one.0 == other.0).peekable();
        while let Some(changes) = edges.next() {
            for (_, ends, position) in changes {
                let Some(count) = active.get_mut(*position) else {
                    continue;
                };
                if *ends {
                    *count -= 1;
                } else {
                    *count += 1;
                }
            }
            let first = |changes: &&[(u32, bool, usize)]| changes.first().map(|edge| edge.0);
            let Some(lo) = first(&changes).and_then(|lo| u16::try_from(lo).ok()) else {
                break;
            };
            let hi = edges
                .peek()
                .and_then(first)
                .map_or(u16::MAX, |next| (next - 1) as u16);
            decide(&active, lo, hi);
        }
    }
    let mut others: Vec<u8> = rules
        .iter()
        .flat_map(CellRule::named_ports)
        .filter_map(|port| match port {
            PortMatch::IpProtocol(number) | PortMatch::Icmp { protocol: number, .. } => Some(*number),
            _ => None,
        })
        .collect();
    others.sort_unstable();
    others.dedup();
    for number in others {
        let then = portless(rules, isolating, number, None);
        let by_type = types(rules, isolating, number, then);
        if !by_type.is_empty() {
            nested.push(Nested {
                protocol: number,
                lo: 0,
                hi: u16::MAX,
                otherwise: then,
                ranges: by_type,
            });
        } else if then != otherwise {
            ranges.push(PortRange {
                protocol: number,
                lo: 0,
                hi: u16::MAX,
                then,
            });
        }
    }
    merge(&mut ranges);
    Cell {
        otherwise,
        ranges,
        nested,
    }
}

/// Decides for every source port about ports that these rules match, each with its source ports; as TCP ports, from 0 on, all of
/// them. One range where source ports make no difference.
fn by_source<'a, R: Iterator<Item = (&'a CellRule<'a>, &'a Vec<(u16, u16)>)>>(
    matching: impl Fn() -> R,
    isolating: &[Isolation],
) -> Vec<PortRange> {
    let ranges = matching().flat_map(|(_, ranges)| ranges);
    let cuts = ranges.flat_map(|(lo, hi)| [Some(*lo), hi.checked_add(1)]);
    let mut starts: Vec<u16> = cuts.flatten().chain([0]).collect();
    starts.sort_unstable();
    starts.dedup();
    let ends = starts.iter().skip(1).map(|next| next - 1).chain([u16::MAX]);
    let ranges = starts.iter().zip(ends).map(|(lo, hi)| {
        let from_it = matching().filter_map(|(rule, ranges)| {
            let holds = ranges.iter().any(|(first, last)| (first..=last).contains(&lo));
            holds.then_some(rule)
        });
        PortRange {
            protocol: Protocol::Tcp.number(),
            lo: *lo,
            hi,
            then: first_match(from_it, isolating),
        }
    });
    let mut ranges: Vec<PortRange> = ranges.collect();
    merge(&mut ranges);
    ranges
}

/// Decides about a protocol without ports; of ICMP, about a type and code where those are known.
fn portless(rules: &[CellRule<'_>], isolating: &[Isolation], number: u8, asked: Option<u16>) -> PortDecision {
    let names = |port: &PortMatch| match type_range(port, number) {
        Some((lo, hi)) => asked.is_some_and(|asked| (lo..=hi).contains(&asked)),
        None => *port == PortMatch::IpProtocol(number),
    };
    let matching = rules.iter().filter(|rule| {
        let named = |ports: &[PortMatch]| ports.iter().any(names);
        rule.source_ports.is_none() && rule.ports.is_none_or(named) && !named(rule.not_ports)
    });
    first_match(matching, isolating)
}

/// Types and codes of ICMP of which something else is decided than where they are not known.
fn types(
    rules: &[CellRule<'_>],
    isolating: &[Isolation],
    number: u8,
    unknown: PortDecision,
) -> Vec<PortRange> {
    let named = rules.iter().flat_map(CellRule::named_ports);
    let named = named.filter_map(|port| type_range(port, number));
    let mut starts: Vec<u16> = named
        .flat_map(|(lo, hi)| [Some(lo), hi.checked_add(1)])
        .flatten()
        .collect();
    if starts.is_empty() {
        return Vec::new();
    }
    starts.push(0);
    starts.sort_unstable();
    starts.dedup();
    let ends = starts.iter().skip(1).map(|next| next - 1).chain([u16::MAX]);
    let ranges = starts.iter().zip(ends).map(|(lo, hi)| PortRange {
        protocol: Protocol::Tcp.number(),
        lo: *lo,
        hi,
        then: portless(rules, isolating, number, Some(*lo)),
    });
    let mut ranges: Vec<PortRange> = ranges.filter(|range| range.then != unknown).collect();
    merge(&mut ranges);
    ranges
}

/// The types and codes that an entry names of a protocol.
fn type_range(port: &PortMatch, number: u8) -> Option<(u16, u16)> {
    match port {
        PortMatch::Icmp { protocol, kind, code } if *protocol == number => Some((
            icmp(*kind, code.unwrap_or(0)),
            icmp(*kind, code.unwrap_or(u8::MAX)),
        )),
        _ => None,
    }
}

/// Whether an entry is of a protocol that has ports.
fn is_of(port: &PortMatch, protocol: Protocol) -> bool {
    match port {
        PortMatch::All(of)
        | PortMatch::Range { protocol: of, .. }
        | PortMatch::Named { protocol: of, .. } => *of == protocol,
        PortMatch::IpProtocol(_) | PortMatch::Icmp { .. } => false,
    }
}

/// Port ranges of a protocol that rules match by their ports, with the position of the rule.
fn cover(rules: &[CellRule<'_>], protocol: Protocol, named: &[NamedPort]) -> Vec<(u16, u16, usize)> {
    let mut covered = Vec::new();
    for (position, rule) in rules.iter().enumerate() {
        let ranges = |ports: &[PortMatch]| -> Vec<(u16, u16)> {
            let ranges = ports.iter().filter_map(|port| range(port, protocol, named));
            ranges.collect()
        };
        let not = ranges(rule.not_ports);
        let own = match rule.ports {
            Some(ports) => ranges(ports),
            // What names no port of the protocol is no matter of ports.
            None if rule.not_ports.iter().any(|port| is_of(port, protocol)) => vec![(0, u16::MAX)],
            None => continue,
        };
        let left = if not.is_empty() { own } else { without(own, &not) };
        covered.extend(left.into_iter().map(|(lo, hi)| (lo, hi, position)));
    }
    covered
}

/// The ports of a protocol that an entry matches.
fn range(port: &PortMatch, protocol: Protocol, named: &[NamedPort]) -> Option<(u16, u16)> {
    match port {
        _ if !is_of(port, protocol) => None,
        PortMatch::All(_) => Some((0, u16::MAX)),
        PortMatch::Range { lo, hi, .. } => (lo <= hi).then_some((*lo, *hi)),
        PortMatch::Named { protocol: of, name } => {
            let found = named
                .iter()
                .find(|((of_port, known), _)| (of_port, known) == (of, name));
            found.map(|(_, number)| (*number, *number))
        }
        PortMatch::IpProtocol(_) | PortMatch::Icmp { .. } => None,
    }
}

/// Ranges, without what others hold.
fn without(ranges: Vec<(u16, u16)>, others: &[(u16, u16)]) -> Vec<(u16, u16)> {
    let mut left = ranges;
    for &(lo, hi) in others {
        left = left
            .into_iter()
            .flat_map(|(first, last)| {
                let before = lo.checked_sub(1).map(|end| (first, last.min(end)));
                let after = hi.checked_add(1).map(|start| (first.max(start), last));
                before
                    .into_iter()
                    .chain(after)
                    .filter(|(first, last)| first <= last)
            })
            .collect();
    }
    left
}

/// The decision of rules that all match, in order.
fn first_match<'a>(rules: impl Iterator<Item = &'a CellRule<'a>>, isolating: &[Isolation]) -> PortDecision {
    let mut passed = None;
    // The first tier that isolates and was not left by a Pass.
    let next = |passed: Option<u32>| {
        let mut isolating = isolating.iter();
        isolating.find(|isolation| passed.is_none_or(|passed| passed < isolation.tier))
    };
    for rule in rules {
        if passed.is_some_and(|tier| rule.tier <= tier) {
            continue;
        }
        if let Some(isolation) = next(passed).filter(|isolation| isolation.tier < rule.tier) {
            return isolation.deny();
        }
        match rule.action {
            Action::Allow => return PortDecision::allow(rule.provenance),
            Action::Deny => {
                return PortDecision {
                    decision: Decision::DENY,
                    provenance: rule.provenance,
                };
            }
            Action::Pass => passed = Some(rule.tier),
            Action::Log => {}
        }
    }
    next(passed).map_or(PortDecision::OPEN, |isolation| isolation.deny())
}

/// Joins neighbours with the same decision.
fn merge(ranges: &mut Vec<PortRange>) {
    ranges.dedup_by(|next, last| {
        let joins = next.protocol == last.protocol
            && next.then == last.then
            && last.hi.checked_add(1).is_some_and(|after| after == next.lo);
        if joins {
            last.hi = next.hi;
        }
        joins
    });
}

#[cfg(test)]
mod tests {
    use ringwall_dataplane::classify::NONE;

    use super::*;

    const FIRST: &[Isolation] = &[isolation(0)];
    const SECOND: &[Isolation] = &[isolation(1)];

    const NO_NAMES: PortNames<'_> = to(&[]);

    /// Names of the destination alone.
    const fn to(destination: &[NamedPort]) -> PortNames<'_> {
        PortNames {
            destination,
            source: &[],
        }
    }

    const fn isolation(tier: u32) -> Isolation {
        Isolation {
            tier,
            provenance: NONE,
        }
    }

    fn tcp(lo: u16, hi: u16) -> PortMatch {
        PortMatch::Range {
            protocol: Protocol::Tcp,
            lo,
            hi,
        }
    }

    fn rule(tier: u32, action: Action, provenance: u32, ports: Option<&[PortMatch]>) -> CellRule<'_> {
        CellRule {
            tier,
            action,
            provenance,
            ports,
            not_ports: &[],
            source_ports: None,
            not_source_ports: &[],
        }
    }

    fn deny(provenance: u32) -> PortDecision {
        PortDecision {
            decision: Decision::DENY,
            provenance,
        }
    }

    fn at(cell: &Cell, protocol: u8, port: u16) -> PortDecision {
        let range = |range: &&PortRange| range.protocol == protocol && (range.lo..=range.hi).contains(&port);
        cell.ranges
            .iter()
            .find(range)
            .map_or(cell.otherwise, |range| range.then)
    }

    #[test]
    fn first_rule_names_the_port() {
        let (a, b) = ([tcp(10, 20)], [tcp(15, 30), PortMatch::All(Protocol::Udp)]);
        let rules = [
            rule(0, Action::Allow, 1, Some(&a)),
            rule(0, Action::Allow, 2, Some(&b)),
        ];
        let cell = decide(&rules, FIRST, NO_NAMES);
        assert_eq!(cell.otherwise, PortDecision::DENY);
        for (port, then) in [
            (9, PortDecision::DENY),
            (10, PortDecision::allow(1)),
            (20, PortDecision::allow(1)),
            (21, PortDecision::allow(2)),
            (30, PortDecision::allow(2)),
            (31, PortDecision::DENY),
        ] {
            assert_eq!(at(&cell, 6, port), then, "port {port}");
        }
        assert_eq!(at(&cell, 17, 0), PortDecision::allow(2));
        assert_eq!(at(&cell, 132, 10), PortDecision::DENY);
    }

    #[test]
    fn ordered_tiers_deny_pass_and_isolate() {
        let (low, all) = ([tcp(1, 100)], [tcp(1, 200)]);
        let admin = [
            rule(0, Action::Pass, 1, Some(&low)),
            rule(0, Action::Deny, 2, Some(&all)),
        ];
        let mut rules = admin.to_vec();
        rules.push(rule(1, Action::Allow, 3, Some(&low[..])));
        let isolated = decide(&rules, SECOND, NO_NAMES);
        assert_eq!(
            at(&isolated, 6, 50),
            PortDecision::allow(3),
            "passed on and allowed"
        );
        assert_eq!(at(&isolated, 6, 150), deny(2));
        assert_eq!(
            at(&isolated, 6, 250),
            PortDecision::DENY,
            "undecided, isolated by the second tier"
        );
        let open = decide(&admin, &[], NO_NAMES);
        assert_eq!(at(&open, 6, 50), PortDecision::OPEN);
        assert_eq!(at(&open, 6, 250), PortDecision::OPEN);
        let mut baseline = admin.to_vec();
        baseline.push(rule(2, Action::Deny, 4, None));
        assert_eq!(at(&decide(&baseline, &[], NO_NAMES), 6, 250), deny(4));
        assert_eq!(
            at(&decide(&baseline, SECOND, NO_NAMES), 6, 250),
            PortDecision::DENY,
            "baseline is for the others"
        );
    }

    #[test]
    fn names_are_the_destinations() {
        let ports = [PortMatch::Named {
            protocol: Protocol::Udp,
            name: "dns".to_owned(),
        }];
        let rules = [rule(0, Action::Allow, 1, Some(&ports))];
        let dns = |protocol, number| ((protocol, "dns".to_owned()), number);
        let named = [dns(Protocol::Tcp, 53), dns(Protocol::Udp, 5353)];
        let cell = decide(&rules, FIRST, to(&named));
        assert_eq!(at(&cell, 17, 5353), PortDecision::allow(1));
        assert_eq!(at(&cell, 17, 53), PortDecision::DENY);
        assert_eq!(at(&cell, 6, 53), PortDecision::DENY);
        assert_eq!(decide(&rules, FIRST, NO_NAMES).ranges, []);
    }

    #[test]
    fn what_a_rule_does_not_match_is_left_to_others() {
        let web = PortMatch::Named {
            protocol: Protocol::Tcp,
            name: "web".to_owned(),
        };
        let not = [tcp(10, 20), tcp(15, 30), web, PortMatch::IpProtocol(47)];
        let all_tcp = [PortMatch::All(Protocol::Tcp)];
        let named = [((Protocol::Tcp, "web".to_owned()), 8080)];
        let but = |ports, not_ports| CellRule {
            not_ports,
            ..rule(0, Action::Allow, 1, ports)
        };
        let cell = decide(&[but(None, &not)], FIRST, to(&named));
        for port in [0, 9, 31, 8079, 8081, 65535] {
            assert_eq!(at(&cell, 6, port), PortDecision::allow(1), "port {port}");
        }
        for port in [10, 14, 20, 21, 30, 8080] {
            assert_eq!(at(&cell, 6, port), PortDecision::DENY, "port {port}");
        }
        assert_eq!(at(&cell, 17, 10), PortDecision::allow(1));
        assert_eq!(at(&cell, 47, 0), PortDecision::DENY);
        assert_eq!(cell.otherwise, PortDecision::allow(1));
        // Of a destination without the name.
        assert_eq!(
            at(&decide(&[but(None, &not)], FIRST, NO_NAMES), 6, 8080),
            PortDecision::allow(1)
        );
        let cell = decide(&[but(Some(&all_tcp), &not)], FIRST, to(&named));
        assert_eq!(at(&cell, 6, 9), PortDecision::allow(1));
        assert_eq!(at(&cell, 6, 10), PortDecision::DENY);
        assert_eq!(at(&cell, 17, 9), PortDecision::DENY);
        // Every protocol but one.
        let rules = [but(None, &all_tcp), rule(0, Action::Allow, 2, None)];
        let cell = decide(&rules, FIRST, NO_NAMES);
        assert_eq!(at(&cell, 6, 0), PortDecision::allow(2));
        assert_eq!(at(&cell, 6, 65535), PortDecision::allow(2));
        assert_eq!(at(&cell, 17, 80), PortDecision::allow(1));
        assert_eq!(cell.otherwise, PortDecision::allow(1));
    }

    #[test]
    fn names_of_source_ports_are_the_sources() {
        let web = PortMatch::Named {
            protocol: Protocol::Tcp,
            name: "web".to_owned(),
        };
        let web = [web];
        let is_80 = [((Protocol::Tcp, "web".to_owned()), 80)];
        let named = PortNames {
            destination: &[],
            source: &is_80,
        };
        let from = |some, none| CellRule {
            source_ports: some,
            not_source_ports: none,
            ..rule(0, Action::Allow, 1, None)
        };
        let of = |cell: &Cell, protocol, source| {
            let nested = cell.nested.iter().find(|it| it.protocol == protocol)?;
            let range = nested
                .ranges
                .iter()
                .find(|it| (it.lo..=it.hi).contains(&source))?;
            Some(range.then)
        };
        let cell = decide(&[from(Some(&web), &[])], FIRST, named);
        assert_eq!(of(&cell, 6, 80), Some(PortDecision::allow(1)));
        assert_eq!(of(&cell, 6, 81), Some(PortDecision::DENY));
        assert_eq!(cell.otherwise, PortDecision::DENY);
        assert_eq!(at(&cell, 17, 80), PortDecision::DENY);
        // Without the name, from no port.
        let cell = decide(&[from(Some(&web), &[])], FIRST, to(&is_80));
        assert_eq!((at(&cell, 6, 80), cell.nested.len()), (PortDecision::DENY, 0));
        // All but that, and what has no ports at all.
        let cell = decide(&[from(None, &web)], FIRST, named);
        assert_eq!(of(&cell, 6, 80), Some(PortDecision::DENY));
        assert_eq!(of(&cell, 6, 79), Some(PortDecision::allow(1)));
        assert_eq!(of(&cell, 6, 65535), Some(PortDecision::allow(1)));
        assert_eq!(
            (at(&cell, 17, 80), cell.otherwise),
            (PortDecision::allow(1), PortDecision::allow(1))
        );
        let cell = decide(&[from(Some(&web), &[tcp(80, 90)])], FIRST, named);
        assert_eq!((at(&cell, 6, 80), cell.nested.len()), (PortDecision::DENY, 0));
    }
}
