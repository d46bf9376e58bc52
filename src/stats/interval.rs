//! How sure a median is: the seeded BCa bootstrap interval (Efron, 1987).

use rand::SeedableRng;
use rand::rngs::StdRng;
use rand_distr::{Beta, Distribution, Open01};

use super::{ALPHA, normal, percentile};

/// Resamples of an interval.
const RESAMPLES: usize = 2000;

/// Below five samples not even the whole range covers the median in nine of ten runs (it does in
/// 1 - 2^(1 - n)), so that no interval could say 95%.
const MIN_SAMPLES: usize = 5;

/// The 95% interval of the median of sorted samples; `None` below five, or where one is not finite.
pub fn median_interval(sorted: &[f64], seed: u64) -> Option<(f64, f64)> {
    let is_finite = sorted.iter().all(|x| x.is_finite());
    if sorted.len() < MIN_SAMPLES || !is_finite {
        return None;
    }
    let median = percentile(sorted, 0.5)?;
    let mut medians = resampled_medians(sorted, seed);
    medians.sort_by(f64::total_cmp);
    let bias = bias(&medians, median);
    let acceleration = acceleration(sorted);
    let end = |p: f64| {
        let z = bias + normal::quantile(p);
        let corrected = normal::cdf(bias + z / (1.0 - acceleration * z));
        percentile(&medians, corrected)
    };
    let (low, high) = (end(ALPHA / 2.0)?, end(1.0 - ALPHA / 2.0)?);
    // The correction may never leave out what it is about.
    Some((low.min(median), high.max(median)))
}

/// Medians of resamples with replacement.
///
/// A resample is `sorted[floor(n u)]` for n uniform numbers u, and its median lies at the middle
/// ones of them, whose distribution is known: the k-th smallest of n is Beta(k, n + 1 - k), and
/// the next one is the smallest of n - k numbers above it. Drawing these alone gives the same
/// medians at a cost that does not grow with n.
fn resampled_medians(sorted: &[f64], seed: u64) -> Vec<f64> {
    let n = sorted.len();
    let lower_rank = n.div_ceil(2);
    let above = (n - lower_rank) as f64;
    let lower = Beta::new(lower_rank as f64, above + 1.0);
    let Ok(lower) = lower else {
        unreachable!("both parameters are at least 1");
    };
    let at = |u: f64| sorted[((u * n as f64) as usize).min(n - 1)];
    let mut random = StdRng::seed_from_u64(seed);
    let medians = (0..RESAMPLES).map(|_| {
        let u = lower.sample(&mut random);
        if !n.is_multiple_of(2) {
            return at(u);
        }
        let rest: f64 = Open01.sample(&mut random);
        let next = u + (1.0 - u) * (1.0 - rest.powf(1.0 / above));
        middle(at(u), at(next))
    });
    medians.collect()
}

/// As [`percentile`] rounds it, so that a resample's median can equal the samples'.
fn middle(low: f64, high: f64) -> f64 {
    low + (high - low) * 0.5
}

/// How far the resamples' medians lie to one side of the median, in standard deviations.
fn bias(medians: &[f64], median: f64) -> f64 {
    let below = medians.iter().filter(|m| **m < median).count() as f64;
    let equal = medians.iter().filter(|m| **m == median).count() as f64;
    let share = (below + 0.5 * equal) / medians.len() as f64;
    // Where all lie on one side no correction is known.
    let smallest = 1.0 / medians.len() as f64;
    normal::quantile(share.clamp(smallest, 1.0 - smallest))
}

/// How the median's spread changes with its value, from the medians without one sample each. They
/// take three values at most: without a small sample, the middle one, or a large one.
fn acceleration(sorted: &[f64]) -> f64 {
    let n = sorted.len();
    let half = n / 2;
    let between = |a: usize, b: usize| middle(sorted[a], sorted[b]);
    let left_out = match n.is_multiple_of(2) {
        true => vec![(half, sorted[half]), (half, sorted[half - 1])],
        false => vec![
            (half, between(half, half + 1)),
            (1, between(half - 1, half + 1)),
            (half, between(half - 1, half)),
        ],
    };
    let sum = |f: &dyn Fn(f64) -> f64| -> f64 {
        left_out
            .iter()
            .map(|(count, m)| *count as f64 * f(*m))
            .sum()
    };
    let mean = sum(&|m| m) / n as f64;
    let (squares, cubes) = (sum(&|m| (mean - m).powi(2)), sum(&|m| (mean - m).powi(3)));
    match squares > 0.0 {
        true => cubes / (6.0 * squares.powf(1.5)),
        false => 0.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resampled_medians_are_spread_as_those_of_real_resamples() {
        // P(median of 5 draws from 5 <= x(k)): the binomial probability of three or more draws
        // among the k smallest.
        let sorted = [1.0, 2.0, 3.0, 4.0, 5.0];
        let medians = resampled_medians(&sorted, 7);
        for (k, p) in [
            (1.0, 0.05792),
            (2.0, 0.31744),
            (3.0, 0.68256),
            (4.0, 0.94208),
        ] {
            let share = medians.iter().filter(|m| **m <= k).count() as f64 / RESAMPLES as f64;
            assert!((share - p).abs() < 0.03, "{k}: {share}");
        }
        // All 256 resamples of four samples, written out and counted.
        let medians = resampled_medians(&[1.0, 2.0, 3.0, 4.0], 7);
        for (limit, of_256) in [
            (1.0, 13.0),
            (1.5, 43.0),
            (2.0, 98.0),
            (2.5, 158.0),
            (3.5, 243.0),
        ] {
            let share = medians.iter().filter(|m| **m <= limit).count() as f64 / RESAMPLES as f64;
            assert!((share - of_256 / 256.0).abs() < 0.03, "{limit}: {share}");
        }
    }

    #[test]
    fn leaving_one_out_by_rank_is_leaving_one_out() {
        for sorted in [
            &[1.0, 2.0, 4.0, 8.0, 9.0][..],
            &[1.0, 2.0, 4.0, 8.0, 9.0, 30.0],
        ] {
            let medians: Vec<f64> = (0..sorted.len())
                .map(|i| {
                    let mut rest = sorted.to_vec();
                    rest.remove(i);
                    percentile(&rest, 0.5).unwrap()
                })
                .collect();
            let mean = medians.iter().sum::<f64>() / medians.len() as f64;
            let power = |p: i32| medians.iter().map(|m| (mean - m).powi(p)).sum::<f64>();
            let wanted = power(3) / (6.0 * power(2).powf(1.5));
            assert!((acceleration(sorted) - wanted).abs() < 1e-12, "{sorted:?}");
        }
    }
}
