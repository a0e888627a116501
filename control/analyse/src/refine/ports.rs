//! Protocols and ports: TCP, UDP and SCTP by destination port, ICMP and ICMPv6 by type and code where rules tell those apart, and
//! everything else, which no rule with ports matches.

use ringwall_policy::Cluster;

/// What is asked for, but for its ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Service {
    /// Protocol 6.
    Tcp,
    /// Protocol 17.
    Udp,
    /// Protocol 132.
    Sctp,
    /// Every other protocol, and packets whose ports cannot be read (SEMANTICS 35, 63): by protocol number in place of a port.
    /// Few rules tell them apart. Where types of ICMP are told apart, ICMP here is what has a type that is not known.
    Other,
    /// Protocol 1 over IPv4, by type and code in place of a port ([`ringwall_dataplane::classify::icmp`]); nothing where no rule
    /// asks for a type.
    Icmp,
    /// Protocol 58 over IPv6, likewise.
    IcmpV6,
}

impl Service {
    /// All, in order.
    pub const ALL: [Self; 6] = [
        Self::Tcp,
        Self::Udp,
        Self::Sctp,
        Self::Other,
        Self::Icmp,
        Self::IcmpV6,
    ];

    /// Of an IP protocol number.
    pub const fn of(protocol: u8) -> Self {
        match protocol {
            6 => Self::Tcp,
            17 => Self::Udp,
            132 => Self::Sctp,
            _ => Self::Other,
        }
    }

    /// `TCP`, `UDP`, `SCTP`, or `other`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
            Self::Sctp => "SCTP",
            Self::Other => "other",
            Self::Icmp => "ICMP",
            Self::IcmpV6 => "ICMPv6",
        }
    }

    /// Whether it has ports.
    pub const fn has_ports(self) -> bool {
        matches!(self, Self::Tcp | Self::Udp | Self::Sctp)
    }

    /// Whether it has types in place of ports.
    pub const fn has_types(self) -> bool {
        matches!(self, Self::Icmp | Self::IcmpV6)
    }

    /// Whether its packets are of a family.
    pub const fn is_of(self, family: super::Family) -> bool {
        match self {
            Self::Icmp => matches!(family, super::Family::V4),
            Self::IcmpV6 => matches!(family, super::Family::V6),
            _ => true,
        }
    }

    /// The IP protocol number of a packet of this service: TCP, UDP, SCTP; else one from a span of numbers, ICMP where that is
    /// in it.
    pub fn protocol(self, family: super::Family, (lo, hi): Span) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Sctp => 132,
            Self::Icmp => 1,
            Self::IcmpV6 => 58,
            Self::Other => {
                let icmp = match family {
                    super::Family::V4 => 1,
                    super::Family::V6 => 58,
                };
                let with_ports = |number: &u16| [6, 17, 132].contains(number);
                let mut own = (lo..=hi.min(255)).filter(|number| !with_ports(number));
                match (lo..=hi).contains(&icmp) {
                    true => icmp as u8,
                    false => own.next().unwrap_or(lo) as u8,
                }
            }
        }
    }

    pub(super) const fn index(self) -> usize {
        self as usize
    }
}

/// Ports `lo..=hi`; for [`Service::Other`] protocol numbers, of which the last reaches to 65535; for ICMP types and codes.
pub type Span = (u16, u16);

/// Every port.
pub(super) const ALL_PORTS: Span = (0, u16::MAX);

/// Source ports, cut where a rule of some cluster begins or ceases to ask for them: those of one span are decided alike.
pub(super) fn source_spans<'a>(clusters: impl Iterator<Item = &'a Cluster>) -> Vec<Span> {
    let named = clusters.flat_map(Cluster::source_ports);
    let cuts = named.flat_map(|(lo, hi)| [Some(lo), hi.checked_add(1)]);
    let mut starts: Vec<u16> = cuts.flatten().chain([0]).collect();
    starts.sort_unstable();
    starts.dedup();
    let ends = starts.iter().skip(1).map(|next| next - 1).chain([u16::MAX]);
    starts.iter().copied().zip(ends).collect()
}

/// Source ports in words: ` from 1024-65535`, and nothing where they make no difference.
pub fn source_words(spans: &[Span]) -> String {
    if spans == [ALL_PORTS] {
        return String::new();
    }
    let words = spans.iter().map(|(lo, hi)| match lo == hi {
        true => lo.to_string(),
        false => format!("{lo}-{hi}"),
    });
    format!(" from {}", words.collect::<Vec<_>>().join(" and "))
}

/// Types and codes of ICMP in words: `8`, `3:4`, or `8-12`.
pub fn type_words((lo, hi): Span) -> String {
    let ([first, code], [last, last_code]) = (lo.to_be_bytes(), hi.to_be_bytes());
    match (first == last, code, last_code) {
        (true, 0, u8::MAX) => first.to_string(),
        (false, 0, u8::MAX) => format!("{first}-{last}"),
        (true, _, _) if code == last_code => format!("{first}:{code}"),
        _ => format!("{first}:{code}-{last}:{last_code}"),
    }
}

/// Walks over several lists of (first port, value), each beginning at port 0, and calls for each span in which none
/// changes.
pub(super) fn walk<T: Copy, const N: usize>(lists: [&[(u16, T)]; N], mut each: impl FnMut(Span, [T; N])) {
    let mut at = [0_usize; N];
    let mut lo = 0_u16;
    loop {
        let mut next = None;
        let mut values = [None; N];
        for ((list, at), value) in lists.iter().zip(&mut at).zip(&mut values) {
            while list.get(*at + 1).is_some_and(|(first, _)| *first <= lo) {
                *at += 1;
            }
            *value = list.get(*at).map(|(_, value)| *value);
            if let Some((first, _)) = list.get(*at + 1) {
                next = Some(next.map_or(*first, |next: u16| next.min(*first)));
            }
        }
        let mut whole = values.iter().flatten().copied();
        // A list without entries has nothing to say; the snapshot has none such.
        let Some(first) = whole.next() else { return };
        let mut found = [first; N];
        for (place, value) in found.iter_mut().zip(values) {
            let Some(value) = value else { return };
            *place = value;
        }
        let hi = next.map_or(u16::MAX, |next| next - 1);
        each((lo, hi), found);
        match next {
            Some(next) => lo = next,
            None => return,
        }
    }
}

/// Adds a span to a list of spans in order; one that follows the last at once is joined to it.
pub(super) fn push(spans: &mut Vec<Span>, span: Span) {
    match spans.last_mut() {
        Some(last) if last.1.checked_add(1) == Some(span.0) => last.1 = span.1,
        _ => spans.push(span),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_end_where_any_list_changes() {
        let a = [(0, 'a'), (80, 'b'), (81, 'c')];
        let b = [(0, 'x'), (81, 'y'), (65535, 'z')];
        let mut got = Vec::new();
        walk([&a[..], &b[..]], |span, values| got.push((span, values)));
        let wanted = vec![
            ((0, 79), ['a', 'x']),
            ((80, 80), ['b', 'x']),
            ((81, 65534), ['c', 'y']),
            ((65535, 65535), ['c', 'z']),
        ];
        assert_eq!(got, wanted);
    }
}
