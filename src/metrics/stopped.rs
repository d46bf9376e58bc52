//! What ends the rounds of `--repeats auto`.

use serde::{Deserialize, Serialize};

use super::summary::{Derivation, SummaryArm};
use super::{Arm, Case};
use crate::metrics::changes::changes;
use crate::stats::Figure;

/// How the rounds of one prompt ended.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Stopped {
    /// What ended them.
    pub by: StoppedBy,
    /// Measured rounds.
    pub repeats: u32,
    /// Width that was asked for, in percent.
    pub wanted_pct: f64,
    /// Width that was reached; null below five rounds.
    pub reached_pct: Option<f64>,
}

/// What ended the rounds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum StoppedBy {
    /// The interval is as narrow as was asked for.
    Interval,
    /// The time is over.
    TimeBudget,
    /// One of the arms has not had a single request that succeeded.
    Failures,
}

impl std::fmt::Display for Stopped {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { wanted_pct, .. } = self;
        match (self.by, self.reached_pct) {
            (StoppedBy::Interval, Some(reached)) => write!(
                f,
                "its interval of {reached:.2}% is within the {wanted_pct}% of --ci-width"
            ),
            (StoppedBy::Failures, _) => write!(
                f,
                "it ended after {} rounds in which every request of an arm failed",
                self.repeats
            ),
            (_, Some(reached)) => write!(
                f,
                "--time-budget ended it, its interval of {reached:.2}% wider than the {wanted_pct}% of --ci-width"
            ),
            (_, None) => write!(f, "--time-budget ended it before there was an interval"),
        }
    }
}

/// Width in percent of the widest interval that `--repeats auto` looks at: of the change of E2E
/// from single to split arms, or of every arm's E2E where only one kind was measured. `None` while
/// one of them has no interval.
pub fn width_pct(case: &Case, derivation: &Derivation) -> Option<f64> {
    let changes = changes(case, derivation);
    let compared = changes.iter().filter(|c| c.from.arm == Arm::Single);
    let mut widths: Vec<Option<f64>> = compared
        .map(|change| {
            let (low, high) = change.e2e_ms?.pct?.interval()?;
            Some(high - low)
        })
        .collect();
    if widths.is_empty() {
        let own = |figure: Figure| {
            let (low, high) = figure.interval()?;
            (figure.median > 0.0).then(|| 100.0 * (high - low) / figure.median)
        };
        let arms = SummaryArm::all(case, derivation);
        widths.extend(arms.iter().map(|arm| arm.e2e_ms.and_then(own)));
    }
    let widths: Vec<f64> = widths.into_iter().collect::<Option<_>>()?;
    widths.into_iter().max_by(f64::total_cmp)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::fixture::usual_case;

    const DERIVATION: Derivation = Derivation {
        round_trip_ns: None,
        seed: 1,
        single_stands_in: false,
    };

    #[test]
    fn the_change_counts_where_there_is_one_and_else_each_arm() {
        let mut case = usual_case(512);
        // Pairs that differ by the same in every repeat: narrow.
        let change = width_pct(&case, &DERIVATION).unwrap();
        assert!(change < 0.01, "{change}");
        // Five E2E times of one arm, 0.2% around their median.
        case.samples.retain(|s| s.arm == Arm::Single);
        let own = width_pct(&case, &DERIVATION).unwrap();
        assert!((own - 0.4).abs() < 0.01, "{own}");
        case.samples.pop();
        assert_eq!(width_pct(&case, &DERIVATION), None);
        case.samples.clear();
        assert_eq!(width_pct(&case, &DERIVATION), None);
    }
}
