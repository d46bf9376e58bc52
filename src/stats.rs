//! Statistics over raw samples.

use serde::{Deserialize, Serialize};

/// Samples below which a 95th percentile would be a guess.
const P95_MIN_SAMPLES: usize = 20;

/// One quantity over the samples of an arm, in the unit of its name.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
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
}

impl Figure {
    /// `None` without samples.
    pub fn of(samples: &[f64]) -> Option<Self> {
        let mut sorted = samples.to_vec();
        sorted.sort_by(f64::total_cmp);
        Some(Self {
            median: percentile(&sorted, 0.5)?,
            min: *sorted.first()?,
            max: *sorted.last()?,
            n: sorted.len(),
            p95: percentile(&sorted, 0.95).filter(|_| sorted.len() >= P95_MIN_SAMPLES),
        })
    }
}

/// Percentile of sorted samples by linear interpolation (Hyndman and Fan's type 7).
pub fn percentile(sorted: &[f64], p: f64) -> Option<f64> {
    let last = sorted.len().checked_sub(1)?;
    let rank = p * last as f64;
    let (low, high) = (rank.floor() as usize, rank.ceil() as usize);
    Some(sorted[low] + (sorted[high] - sorted[low]) * (rank - low as f64))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_type_7() {
        // R: quantile(c(1, 2, 4, 8), c(0.25, 0.5, 0.95), type = 7)
        let x = [1.0, 2.0, 4.0, 8.0];
        assert_eq!(percentile(&x, 0.25), Some(1.75));
        assert_eq!(percentile(&x, 0.5), Some(3.0));
        assert!((percentile(&x, 0.95).unwrap() - 7.4).abs() < 1e-12);
        assert_eq!(percentile(&[], 0.5), None);
    }

    #[test]
    fn p95_needs_twenty_samples() {
        assert_eq!(Figure::of(&[1.0; 19]).unwrap().p95, None);
        assert_eq!(Figure::of(&[1.0; 20]).unwrap().p95, Some(1.0));
        assert_eq!(Figure::of(&[]), None);
    }
}
