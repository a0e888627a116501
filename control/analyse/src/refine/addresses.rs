//! Address space cut into ranges, and sets of ranges as CIDRs.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ipnet::{IpNet, Ipv4Subnets, Ipv6Subnets};

/// An address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// Both, in order.
    pub const BOTH: [Self; 2] = [Self::V4, Self::V6];

    /// The family of an address.
    pub fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }

    /// `IPv4` or `IPv6`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        }
    }

    /// The last address as a number.
    pub(super) const fn last(self) -> u128 {
        match self {
            Self::V4 => u32::MAX as u128,
            Self::V6 => u128::MAX,
        }
    }

    /// The address with a number.
    pub(super) fn address(self, number: u128) -> IpAddr {
        match self {
            Self::V4 => IpAddr::V4(Ipv4Addr::from(u32::try_from(number).unwrap_or(u32::MAX))),
            Self::V6 => IpAddr::V6(Ipv6Addr::from(number)),
        }
    }
}

/// An address as a number of its family.
pub(super) fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u128::from(u32::from(address)),
        IpAddr::V6(address) => u128::from(address),
    }
}

/// IPv6 addresses that stand for IPv4 ones: no packet has them.
const MAPPED: (u128, u128) = (0xffff_0000_0000, 0xffff_ffff_ffff);

/// Where one family's addresses are cut: the first addresses of ranges.
#[derive(Debug)]
pub(super) struct Cuts {
    family: Family,
    starts: BTreeSet<u128>,
}

/// Addresses `first..=last`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Slot {
    pub first: u128,
    pub last: u128,
    /// One of them that no pod has; None where there is none.
    pub example: Option<u128>,
}

impl Cuts {
    pub(super) fn new(family: Family) -> Self {
        let mut this = Self {
            family,
            starts: BTreeSet::from([0]),
        };
        if family == Family::V6 {
            this.cut(MAPPED.0, MAPPED.1);
        }
        this
    }

    fn cut(&mut self, first: u128, last: u128) {
        self.starts.insert(first);
        if last < self.family.last() {
            self.starts.insert(last + 1);
        }
    }

    /// Cuts at the ends of a network; other families are passed over.
    pub(super) fn net(&mut self, net: &IpNet) {
        if Family::of(net.addr()) == self.family {
            self.cut(number(net.network()), number(net.broadcast()));
        }
    }

    /// Cuts out one address.
    pub(super) fn address(&mut self, address: IpAddr) {
        if Family::of(address) == self.family {
            self.cut(number(address), number(address));
        }
    }

    /// The ranges in order. `taken`: the pods' addresses, sorted.
    pub(super) fn slots(&self, taken: &[u128]) -> Vec<Slot> {
        let ends = self.starts.iter().skip(1).map(|next| next - 1);
        let ends = ends.chain([self.family.last()]);
        let mut slots = Vec::with_capacity(self.starts.len());
        let mut at = 0;
        for (first, last) in self.starts.iter().copied().zip(ends) {
            while taken.get(at).is_some_and(|taken| *taken < first) {
                at += 1;
            }
            let mut example = Some(first);
            // Addresses are sorted: those taken from the begin of the range on leave the first gap free.
            while let (Some(free), Some(taken)) = (example, taken.get(at))
                && *taken <= free
            {
                if *taken == free {
                    example = (free < last).then(|| free + 1);
                }
                at += 1;
            }
            if self.family == Family::V6 && first == MAPPED.0 {
                example = None;
            }
            slots.push(Slot { first, last, example });
        }
        slots
    }
}

/// The fewest networks that together are the ranges `first..=last`, in order.
pub(super) fn networks(family: Family, first: u128, last: u128, out: &mut Vec<IpNet>) {
    match (family.address(first), family.address(last)) {
        (IpAddr::V4(first), IpAddr::V4(last)) => {
            out.extend(Ipv4Subnets::new(first, last, 0).map(IpNet::V4));
        }
        (IpAddr::V6(first), IpAddr::V6(last)) => {
            out.extend(Ipv6Subnets::new(first, last, 0).map(IpNet::V6));
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn ranges_begin_where_networks_do_and_have_an_example_without_owner() {
        let mut cuts = Cuts::new(Family::V4);
        cuts.net(&"10.0.0.0/30".parse().unwrap());
        cuts.net(&"255.255.255.255/32".parse().unwrap());
        let taken = [0x0a00_0000, 0x0a00_0001, 0x0a00_0003, 0xffff_ffff];
        let got: Vec<_> = cuts
            .slots(&taken)
            .into_iter()
            .map(|slot| (slot.first, slot.last, slot.example))
            .collect();
        let wanted = vec![
            (0, 0x09ff_ffff, Some(0)),
            (0x0a00_0000, 0x0a00_0003, Some(0x0a00_0002)),
            (0x0a00_0004, 0xffff_fffe, Some(0x0a00_0004)),
            (0xffff_ffff, 0xffff_ffff, None),
        ];
        assert_eq!(got, wanted);
    }

    #[test]
    fn addresses_that_stand_for_ipv4_have_no_owner() {
        let slots = Cuts::new(Family::V6).slots(&[]);
        let none: Vec<_> = slots
            .iter()
            .filter(|slot| slot.example.is_none())
            .map(|slot| (slot.first, slot.last))
            .collect();
        assert_eq!(none, [MAPPED]);
    }
}
