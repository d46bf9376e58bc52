//! A projected quantity: never a single value to quote.

use serde::Serialize;

/// Low, middle and high end, in the unit of its name.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Range {
    /// Low end.
    pub low: f64,
    /// From the middle of what is known.
    pub mid: f64,
    /// High end.
    pub high: f64,
}

impl Range {
    /// Smallest, median and largest of several values; NaN without any.
    pub fn of(values: &[f64]) -> Self {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        let at = |p| crate::stats::percentile(&sorted, p).unwrap_or(f64::NAN);
        Self {
            low: at(0.0),
            mid: at(0.5),
            high: at(1.0),
        }
    }

    /// Each end of it, through a function that rises.
    pub fn map(self, f: impl Fn(f64) -> f64) -> Self {
        Self {
            low: f(self.low),
            mid: f(self.mid),
            high: f(self.high),
        }
    }

    /// What is left of `whole` behind it.
    pub fn less_than(self, whole: f64) -> Self {
        Self {
            low: whole - self.high,
            mid: whole - self.mid,
            high: whole - self.low,
        }
    }

    /// The better of two ways, end by end.
    pub fn least(self, other: Self) -> Self {
        Self {
            low: self.low.min(other.low),
            mid: self.mid.min(other.mid),
            high: self.high.min(other.high),
        }
    }
}
