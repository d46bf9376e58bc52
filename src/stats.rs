//! Statistics over raw samples: pure functions, no clock, no file, no chance but a seeded one.
//!
//! `interval` says how sure a median is, `shift` how far two sets of samples lie apart and whether
//! that may be chance, `change` compares two arms, `normal` is the distribution behind them.
//! METHODOLOGY.md has the rules.

mod change;
mod interval;
mod normal;
mod shift;
#[cfg(test)]
mod tests;

pub use change::{Change, Estimate};
pub use interval::median_interval;
pub use shift::Shift;

use serde::{Deserialize, Serialize};

/// Error that is allowed: intervals cover 95%, and a p above it is called chance.
pub const ALPHA: f64 = 0.05;

/// Seed of figures that belong to no run with a seed of its own; `--seed` has the same default.
pub const DEFAULT_SEED: u64 = 1;

/// Samples below which a 95th percentile would be a guess.
const P95_MIN_SAMPLES: usize = 20;

/// Samples below which a 99th percentile would be a guess.
const P99_MIN_SAMPLES: usize = 100;

/// Samples below which nothing is called an outlier: there is no bulk that it could lie outside of.
const OUTLIERS_MIN_SAMPLES: usize = 5;

/// Distance from the median, in standard deviations as the median absolute deviation estimates
/// them, from which a sample is an outlier (Iglewicz and Hoaglin, 1993).
const OUTLIER_DEVIATIONS: f64 = 3.5;

/// Standard deviations of a normal distribution in its median absolute deviation: 1 / Φ⁻¹(3/4).
const DEVIATIONS_IN_MAD: f64 = 1.482_602_218_505_602;

/// One quantity over the samples of an arm, in the unit of its name.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Figure {
    /// Median.
    pub median: f64,
    /// Smallest sample.
    pub min: f64,
    /// Largest sample.
    pub max: f64,
    /// Number of samples.
    pub n: usize,
    /// 95th percentile; null below 20 samples.
    pub p95: Option<f64>,
    /// 99th percentile; null below 100 samples.
    #[serde(default)]
    pub p99: Option<f64>,
    /// Lower end of the median's 95% interval; null below 5 samples.
    #[serde(default)]
    pub ci_low: Option<f64>,
    /// Upper end of it.
    #[serde(default)]
    pub ci_high: Option<f64>,
    /// Samples that lie far outside the others; they are in all of the above.
    #[serde(default)]
    pub outliers: usize,
}

impl Figure {
    /// Of samples that belong to no seeded run; `None` without samples.
    pub fn of(samples: &[f64]) -> Option<Self> {
        Self::seeded(samples, DEFAULT_SEED)
    }

    /// Of a run's samples; its seed is that of the interval's resamples. `None` without samples.
    pub fn seeded(samples: &[f64], seed: u64) -> Option<Self> {
        let sorted = sorted(samples);
        let n = sorted.len();
        let interval = median_interval(&sorted, seed);
        Some(Self {
            median: percentile(&sorted, 0.5)?,
            min: *sorted.first()?,
            max: *sorted.last()?,
            n,
            p95: percentile(&sorted, 0.95).filter(|_| n >= P95_MIN_SAMPLES),
            p99: percentile(&sorted, 0.99).filter(|_| n >= P99_MIN_SAMPLES),
            ci_low: interval.map(|(low, _)| low),
            ci_high: interval.map(|(_, high)| high),
            outliers: outliers(samples).into_iter().filter(|is| *is).count(),
        })
    }

    /// Whether both medians have intervals and these do not meet: a careful way to tell two
    /// figures apart whose samples are not at hand.
    pub fn lies_apart_from(&self, other: &Self) -> bool {
        match self.interval().zip(other.interval()) {
            Some(((low, high), (other_low, other_high))) => high < other_low || other_high < low,
            None => false,
        }
    }

    /// Both ends of the median's interval.
    pub fn interval(&self) -> Option<(f64, f64)> {
        self.ci_low.zip(self.ci_high)
    }
}

/// Percentile of sorted samples by linear interpolation (Hyndman and Fan's type 7).
pub fn percentile(sorted: &[f64], p: f64) -> Option<f64> {
    let last = sorted.len().checked_sub(1)?;
    let rank = p * last as f64;
    let (low, high) = (rank.floor() as usize, rank.ceil() as usize);
    Some(sorted[low] + (sorted[high] - sorted[low]) * (rank - low as f64))
}

/// For each sample, whether it is an outlier: further from the median than 3.5 standard
/// deviations, estimated from the median absolute deviation, which outliers do not move.
pub fn outliers(samples: &[f64]) -> Vec<bool> {
    let centre = percentile(&sorted(samples), 0.5).unwrap_or(0.0);
    let deviations: Vec<f64> = samples.iter().map(|x| (x - centre).abs()).collect();
    let mad = percentile(&sorted(&deviations), 0.5).unwrap_or(0.0);
    let limit = OUTLIER_DEVIATIONS * DEVIATIONS_IN_MAD * mad;
    let is_judged = samples.len() >= OUTLIERS_MIN_SAMPLES;
    (deviations.into_iter())
        .map(|deviation| is_judged && mad > 0.0 && deviation > limit)
        .collect()
}

fn sorted(samples: &[f64]) -> Vec<f64> {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted
}
