//! Longest prefix match: one hash table per family and prefix length, tried from the longest that occurs.
//!
//! A node has a few hundred routes of three to six lengths, and rebuilds them on every change: a trie would be faster
//! only from far larger tables on.

use hashbrown::HashMap;

use super::Route;
use crate::addr::Addr;

/// Routes of one family.
#[derive(Clone, Debug, Default)]
struct Family {
    /// By masked prefix; sorted from the longest after [`Fib::finish`].
    lengths: Vec<(u8, HashMap<u128, Route>)>,
}

/// Both families' routes.
#[derive(Clone, Debug, Default)]
pub(super) struct Fib {
    v4: Family,
    v6: Family,
}

/// The first `length` bits of an address that has `bits` significant low bits.
#[inline]
fn masked(addr: u128, length: u8, bits: u8) -> u128 {
    match bits - length {
        0 => addr,
        shift if shift >= 128 => 0,
        shift => addr >> shift << shift,
    }
}

impl Fib {
    pub(super) fn insert(&mut self, prefix: Addr, length: u8, route: Route) {
        let (family, bits) = if prefix.is_v4() {
            (&mut self.v4, 32)
        } else {
            (&mut self.v6, 128)
        };
        let length = length.min(bits);
        let key = masked(prefix.to_u128(), length, bits);
        match family.lengths.iter_mut().find(|(have, _)| *have == length) {
            Some((_, routes)) => {
                routes.insert(key, route);
            }
            None => family.lengths.push((length, HashMap::from_iter([(key, route)]))),
        }
    }

    pub(super) fn finish(&mut self) {
        for family in [&mut self.v4, &mut self.v6] {
            family
                .lengths
                .sort_by_key(|(length, _)| std::cmp::Reverse(*length));
        }
    }

    #[inline]
    pub(super) fn lookup(&self, dst: Addr) -> Option<&Route> {
        let (family, bits) = if dst.is_v4() {
            (&self.v4, 32)
        } else {
            (&self.v6, 128)
        };
        let addr = dst.to_u128();
        family
            .lengths
            .iter()
            .find_map(|(length, routes)| routes.get(&masked(addr, *length, bits)))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)] // in tests a failed unwrap is the failure

    use super::*;
    use crate::port::PortId;

    fn v6(text: &str) -> Addr {
        Addr::from(text.parse::<std::net::IpAddr>().unwrap())
    }

    #[test]
    fn the_longest_prefix_wins_in_both_families() {
        let mut fib = Fib::default();
        let to = |n| Route::connected(PortId(n));
        fib.insert(v6("0.0.0.0"), 0, to(0));
        fib.insert(v6("10.0.0.77"), 8, to(1));
        fib.insert(v6("10.1.2.3"), 32, to(2));
        fib.insert(v6("10.1.0.0"), 16, Route::Blackhole);
        fib.insert(v6("::"), 0, to(3));
        fib.insert(v6("fd00::"), 8, to(4));
        fib.insert(v6("fd00::1"), 128, to(5));
        fib.finish();
        for (dst, want) in [
            ("9.9.9.9", to(0)),
            ("10.2.2.3", to(1)),
            ("10.1.2.3", to(2)),
            ("10.1.2.4", Route::Blackhole),
            ("2001:db8::1", to(3)),
            ("fd77::1", to(4)),
            ("fd00::1", to(5)),
        ] {
            assert_eq!(fib.lookup(v6(dst)), Some(&want), "{dst}");
        }
        assert_eq!(Fib::default().lookup(v6("1.2.3.4")), None);
    }
}
