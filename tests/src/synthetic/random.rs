//! Choices from a seed: SplitMix64, and the few distributions that are drawn from here.
//!
//! Only divisions of whole numbers and of binary fractions are used, never a logarithm or a power, so that one seed
//! gives one cluster on every machine.

/// A sequence of choices.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// The one of a seed.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `bound`; 0 where there is none below.
    pub fn below(&mut self, bound: usize) -> usize {
        (self.next() % (bound.max(1) as u64)) as usize
    }

    /// One of some things, each as likely as the others.
    pub fn pick<'a, T>(&mut self, things: &'a [T]) -> &'a T {
        &things[self.below(things.len())]
    }

    /// A number of `[0, 1)`.
    fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// True with this probability.
    pub fn chance(&mut self, probability: f64) -> bool {
        self.unit() < probability
    }

    /// The place of one of some weights, in proportion to them.
    pub fn weighted(&mut self, weights: &[f64]) -> usize {
        let mut left = self.unit() * weights.iter().sum::<f64>();
        for (place, weight) in weights.iter().enumerate() {
            if left < *weight {
                return place;
            }
            left -= weight;
        }
        // Rounding, or nothing but zeros.
        weights.len().saturating_sub(1)
    }

    /// A whole number from `least` to `most` whose chance to be at least x is least / x: a long tail.
    pub fn long_tailed(&mut self, least: usize, most: usize) -> usize {
        let drawn = least as f64 / (1.0 - self.unit());
        (drawn as usize).clamp(least, most.max(least))
    }
}

/// Parts of `total` by weight 1 / (place + 8), each at least one and none above `most` unless all are: few large ones
/// and many small ones. Their sum is `total` where that is not below the number of parts.
pub fn long_tailed_parts(total: usize, parts: usize, most: usize) -> Vec<usize> {
    let weights: Vec<f64> = (0..parts).map(|place| 1.0 / (place + 8) as f64).collect();
    let sum: f64 = weights.iter().sum();
    let most = most.max(total.div_ceil(parts.max(1)));
    let mut out: Vec<usize> = weights
        .iter()
        .map(|weight| ((total as f64 * weight / sum) as usize).clamp(1, most))
        .collect();
    let mut given: usize = out.iter().sum();
    // What rounding and the limits left over, or took too much.
    let mut place = 0;
    while given != total && parts > 0 {
        let part = &mut out[place % parts];
        if given < total && *part < most {
            *part += 1;
            given += 1;
        } else if given > total && *part > 1 {
            *part -= 1;
            given -= 1;
        } else if given > total && total < parts {
            break;
        }
        place += 1;
    }
    out
}

#[cfg(test)]
mod tests {
    use super::{Random, long_tailed_parts};

    #[test]
    fn parts_sum_up_and_keep_their_limits() {
        for (total, parts, most) in [(100_000, 1_000, 3_000), (10, 10, 5), (1_000, 3, 3_000), (7, 2, 1)] {
            let out = long_tailed_parts(total, parts, most);
            assert_eq!((out.len(), out.iter().sum::<usize>()), (parts, total));
            assert!(
                out.iter()
                    .all(|part| *part >= 1 && *part <= most.max(total.div_ceil(parts)))
            );
        }
        assert_eq!(long_tailed_parts(2, 3, 9), [1, 1, 1]);
    }

    #[test]
    fn the_long_tail_is_long() {
        let random = &mut Random::new(7);
        let mut drawn: Vec<usize> = (0..20_000).map(|_| random.long_tailed(2, 250)).collect();
        drawn.sort_unstable();
        let mean = drawn.iter().sum::<usize>() as f64 / drawn.len() as f64;
        assert_eq!(
            (drawn[0], drawn[drawn.len() / 2], drawn[drawn.len() - 1]),
            (2, 3, 250)
        );
        assert!((10.0..13.0).contains(&mean), "{mean}");
    }

    #[test]
    fn weights_are_heeded() {
        let random = &mut Random::new(7);
        let mut counts = [0; 3];
        for _ in 0..10_000 {
            counts[random.weighted(&[1.0, 0.0, 3.0])] += 1;
        }
        assert_eq!(counts[1], 0);
        assert!((2_300..2_700).contains(&counts[0]), "{counts:?}");
    }
}
