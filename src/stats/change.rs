//! From one arm to another, of one quantity.

use serde::{Deserialize, Serialize};

use super::{ALPHA, Figure, Shift};

/// A value with its 95% interval.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Estimate {
    /// The value.
    pub value: f64,
    /// Lower end; null where there are too few samples.
    pub ci_low: Option<f64>,
    /// Upper end.
    pub ci_high: Option<f64>,
}

impl Estimate {
    fn of(figure: Figure) -> Self {
        Self {
            value: figure.median,
            ci_low: figure.ci_low,
            ci_high: figure.ci_high,
        }
    }

    fn times(self, factor: f64) -> Self {
        Self {
            value: self.value * factor,
            ci_low: self.ci_low.map(|end| end * factor),
            ci_high: self.ci_high.map(|end| end * factor),
        }
    }

    /// Both ends.
    pub fn interval(&self) -> Option<(f64, f64)> {
        self.ci_low.zip(self.ci_high)
    }

    /// Whether the interval is known and zero lies outside of it.
    pub fn leaves_out_zero(&self) -> bool {
        self.interval()
            .is_some_and(|(low, high)| low > 0.0 || high < 0.0)
    }
}

/// How a quantity changes from one arm to another.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Change {
    /// Over the pairs of one repeat, second less first: null where the arms were not measured in
    /// turns.
    pub difference: Option<Figure>,
    /// Hodges-Lehmann shift of all samples, paired or not, with the Mann-Whitney p.
    pub shift: Shift,
    /// The change in percent of the first arm: the median over pairs, else the shift over the
    /// first arm's median. Null where that is not above zero.
    pub pct: Option<Estimate>,
    /// Whether it is more than chance: p is at most 0.05, and the interval of the difference (of
    /// the shift, where there are no pairs) leaves out zero.
    pub significant: bool,
}

impl Change {
    /// Between arms that took turns. A pair is the two samples of one repeat; what failed in one
    /// arm has no pair, but counts in the other arm's shift.
    pub fn paired(before: &[(u32, f64)], after: &[(u32, f64)], seed: u64) -> Option<Self> {
        let pairs: Vec<(f64, f64)> = (before.iter())
            .filter_map(|(repeat, b)| {
                let (_, a) = after.iter().find(|(other, _)| other == repeat)?;
                Some((*b, *a))
            })
            .collect();
        let differences: Vec<f64> = pairs.iter().map(|(b, a)| a - b).collect();
        let is_positive = pairs.iter().all(|(b, _)| *b > 0.0);
        let shares: Vec<f64> = pairs.iter().map(|(b, a)| 100.0 * (a - b) / b).collect();
        let values = |samples: &[(u32, f64)]| samples.iter().map(|(_, x)| *x).collect::<Vec<_>>();
        let shift = Shift::between(&values(before), &values(after))?;
        let difference = Figure::seeded(&differences, seed)?;
        let pct = Figure::seeded(&shares, seed).filter(|_| is_positive);
        Some(Self {
            difference: Some(difference),
            shift,
            pct: pct.map(Estimate::of),
            significant: shift.p <= ALPHA && Estimate::of(difference).leaves_out_zero(),
        })
    }

    /// Between samples that have nothing to do with each other, as of two runs.
    pub fn unpaired(before: &[f64], after: &[f64]) -> Option<Self> {
        let shift = Shift::between(before, after)?;
        let estimate = Estimate {
            value: shift.shift,
            ci_low: shift.ci_low,
            ci_high: shift.ci_high,
        };
        let base = super::percentile(&super::sorted(before), 0.5)?;
        Some(Self {
            difference: None,
            shift,
            pct: (base > 0.0).then(|| estimate.times(100.0 / base)),
            significant: shift.p <= ALPHA && estimate.leaves_out_zero(),
        })
    }

    /// The change in the unit of the quantity: the median over pairs, else the shift.
    pub fn absolute(&self) -> Estimate {
        match self.difference {
            Some(difference) => Estimate::of(difference),
            None => Estimate {
                value: self.shift.shift,
                ci_low: self.shift.ci_low,
                ci_high: self.shift.ci_high,
            },
        }
    }
}
