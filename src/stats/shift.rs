//! How far two sets of samples lie apart, and whether that may be chance: the Hodges-Lehmann shift
//! with its interval, and the Mann-Whitney test.

use serde::{Deserialize, Serialize};

use super::{ALPHA, normal, sorted};

/// Samples of both sets together up to which the distribution of U is counted out. All counts stay
/// below 2^63: the largest, of 30 out of 60, is 1.2e17.
const EXACT_MAX_SAMPLES: usize = 60;

/// How far one set of samples lies from another one.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Shift {
    /// Median of all differences between a sample of the second set and one of the first.
    pub shift: f64,
    /// Lower end of its 95% interval; null where so few samples cannot have one.
    pub ci_low: Option<f64>,
    /// Upper end of it.
    pub ci_high: Option<f64>,
    /// Two-sided Mann-Whitney p of no shift.
    pub p: f64,
}

impl Shift {
    /// From `before` to `after`; `None` where either is empty or holds what is no finite number.
    pub fn between(before: &[f64], after: &[f64]) -> Option<Self> {
        let is_number = |x: &f64| x.is_finite();
        if before.is_empty() || after.is_empty() || !before.iter().chain(after).all(is_number) {
            return None;
        }
        let differences = Differences {
            before: sorted(before),
            after: sorted(after),
        };
        let null = Null::of(before, after);
        let pairs = before.len() * after.len();
        let middle = |k| differences.smallest(k);
        let interval = null.left_out().map(|k| (middle(k), middle(pairs + 1 - k)));
        Some(Self {
            shift: 0.5 * (middle(pairs.div_ceil(2)) + middle(pairs / 2 + 1)),
            ci_low: interval.map(|(low, _)| low),
            ci_high: interval.map(|(_, high)| high),
            p: null.p(differences.u()),
        })
    }
}

/// All differences of two sorted sets, never written out.
struct Differences {
    before: Vec<f64>,
    after: Vec<f64>,
}

impl Differences {
    /// How many are at most `limit`.
    fn at_most(&self, limit: f64) -> usize {
        self.count(|difference| difference <= limit)
    }

    /// How many fulfil what every smaller one fulfils too.
    fn count(&self, is_small: impl Fn(f64) -> bool) -> usize {
        let mut reached = 0;
        let counts = self.before.iter().map(|b| {
            // The larger `b`, the more of `after` are near enough.
            while self.after.get(reached).is_some_and(|a| is_small(a - b)) {
                reached += 1;
            }
            reached
        });
        counts.sum()
    }

    /// The `k`-th smallest, counted from 1: the smallest double that so many do not exceed, found
    /// by halving the range of all doubles in their order.
    fn smallest(&self, k: usize) -> f64 {
        let (mut low, mut high) = (rank(f64::NEG_INFINITY), rank(f64::INFINITY));
        while low < high {
            let middle = low + (high - low) / 2;
            match self.at_most(unrank(middle)) >= k {
                true => high = middle,
                false => low = middle + 1,
            }
        }
        // What is nearest to zero on both sides is zero.
        unrank(low) + 0.0
    }

    /// Mann and Whitney's U of the second set: pairs in which it is larger, equal ones half.
    fn u(&self) -> f64 {
        let pairs = self.before.len() * self.after.len();
        let smaller = self.count(|difference| difference < 0.0);
        let not_larger = self.at_most(0.0);
        (pairs - not_larger) as f64 + 0.5 * (not_larger - smaller) as f64
    }
}

/// The place of a double among all of them, in their order.
fn rank(x: f64) -> u64 {
    let bits = x.to_bits();
    match bits >> 63 {
        0 => bits | 1 << 63,
        _ => !bits,
    }
}

fn unrank(rank: u64) -> f64 {
    f64::from_bits(match rank >> 63 {
        1 => rank & !(1 << 63),
        _ => !rank,
    })
}

/// How U is distributed where there is no shift.
enum Null {
    /// Number of orders of all samples that give each U; without ties, few samples.
    Counted(Vec<f64>),
    /// The normal distribution that it comes close to.
    Normal { mean: f64, deviation: f64 },
}

impl Null {
    fn of(before: &[f64], after: &[f64]) -> Self {
        let all = sorted(&[before, after].concat());
        let (m, n, total) = (before.len(), after.len(), all.len());
        let ties = all.chunk_by(|a, b| a == b).map(|equal| equal.len() as f64);
        let tied: f64 = ties.map(|t| t.powi(3) - t).sum();
        if tied == 0.0 && total <= EXACT_MAX_SAMPLES {
            return Self::Counted(orders(m, n));
        }
        let (pairs, total) = ((m * n) as f64, total as f64);
        let correction = tied / (total * (total - 1.0));
        Self::Normal {
            mean: pairs / 2.0,
            deviation: (pairs / 12.0 * (total + 1.0 - correction)).max(0.0).sqrt(),
        }
    }

    /// Two-sided probability of a U at least as far out.
    fn p(&self, u: f64) -> f64 {
        let p = match self {
            Self::Counted(orders) => {
                let outer = u.min((orders.len() - 1) as f64 - u) as usize;
                2.0 * orders[..=outer].iter().sum::<f64>() / orders.iter().sum::<f64>()
            }
            Self::Normal { mean, deviation } if *deviation > 0.0 => {
                let distance = ((u - mean).abs() - 0.5).max(0.0);
                2.0 * normal::cdf(-distance / deviation)
            }
            // All samples are equal.
            Self::Normal { .. } => 1.0,
        };
        p.min(1.0)
    }

    /// The rank of the difference at which the 95% interval begins; `None` where even the whole
    /// range covers less. It begins behind 0 where the test calls the shift significant.
    fn left_out(&self) -> Option<usize> {
        match self {
            Self::Counted(orders) => {
                let all: f64 = orders.iter().sum();
                let sums = orders.iter().scan(0.0, |sum, count| {
                    *sum += count;
                    Some(*sum)
                });
                let rank = sums.take_while(|sum| 2.0 * sum / all <= ALPHA).count();
                (rank > 0).then_some(rank)
            }
            Self::Normal { mean, deviation } => {
                let rank = mean + normal::quantile(ALPHA / 2.0) * deviation + 0.5;
                (rank >= 1.0).then_some(rank as usize)
            }
        }
    }
}

/// Number of orders of `m` and `n` samples that give each U from 0 to m n: the coefficients of the
/// Gaussian binomial, the product of (1 - q^(n + i)) / (1 - q^i) for i from 1 to m.
fn orders(m: usize, n: usize) -> Vec<f64> {
    let mut counts = vec![0i64; m * n + 1];
    counts[0] = 1;
    for i in 1..=m {
        for u in (n + i..counts.len()).rev() {
            counts[u] -= counts[u - n - i];
        }
        for u in i..counts.len() {
            counts[u] += counts[u - i];
        }
    }
    counts.into_iter().map(|count| count as f64).collect()
}
