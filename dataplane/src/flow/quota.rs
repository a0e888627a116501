//! How many entries of the flow table each endpoint holds, so no endpoint can use up the share of others.
//!
//! A count-min sketch: two rows of counters, indexed by independent parts of a seeded hash of the address. The
//! smaller of an endpoint's two counters is an upper bound of what it holds. Fixed memory, no lists.

/// Counters in a row.
const WIDTH: usize = 4096;

/// Counts per quota account.
#[derive(Debug)]
pub(crate) struct QuotaSketch {
    rows: [Box<[u32]>; 2],
}

impl QuotaSketch {
    pub(crate) fn new() -> Self {
        Self {
            rows: std::array::from_fn(|_| vec![0; WIDTH].into_boxed_slice()),
        }
    }

    /// Upper bound of what an account holds.
    #[inline]
    pub(crate) fn estimate(&self, account: u32) -> u32 {
        let [first, second] = columns(account);
        self.rows[0][first].min(self.rows[1][second])
    }

    pub(crate) fn add(&mut self, account: u32) {
        for (row, place) in self.rows.iter_mut().zip(columns(account)) {
            row[place] = row[place].saturating_add(1);
        }
    }

    pub(crate) fn remove(&mut self, account: u32) {
        for (row, place) in self.rows.iter_mut().zip(columns(account)) {
            row[place] = row[place].saturating_sub(1);
        }
    }
}

#[inline]
fn columns(account: u32) -> [usize; 2] {
    [account as usize % WIDTH, (account as usize >> 16) % WIDTH]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_account_is_counted_for_less_than_it_holds() {
        let mut holdings = QuotaSketch::new();
        let account = |n: u32| n.wrapping_mul(0x9e37_79b1);
        for n in 0..2000 {
            for _ in 0..=n % 7 {
                holdings.add(account(n));
            }
        }
        let exact = (0..2000)
            .filter(|n| holdings.estimate(account(*n)) == n % 7 + 1)
            .count();
        assert!((0..2000).all(|n| holdings.estimate(account(n)) > n % 7));
        assert!(exact > 1500, "{exact} of 2000");
        for n in 0..2000 {
            for _ in 0..=n % 7 {
                holdings.remove(account(n));
            }
        }
        assert!((0..2000).all(|n| holdings.estimate(account(n)) == 0));
    }
}
