//! When a prompt has been measured often enough.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::metrics::summary::Derivation;
use crate::metrics::{Case, Stopped, StoppedBy, width_pct};

/// Deriving all figures again takes longer with every round: behind 20 rounds it is done once in
/// so much of them.
const LOOKS_SHARE: u32 = 20;

/// Rounds after which an arm that has only failed is given up.
const ROUNDS_OF_FAILURES: u32 = 3;

/// Rounds of `--repeats auto`: until an interval is narrow or time is over.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Auto {
    /// Width of the interval that ends the rounds, in percent.
    pub ci_width_pct: f64,
    /// Time for all prompts together.
    pub time_budget: Duration,
}

/// The rounds of one prompt.
#[derive(Clone, Copy, Debug)]
pub(super) enum Rounds {
    /// So many.
    Counted(u32),
    /// Until the interval is so narrow, in percent, or this moment.
    Until(f64, Instant),
}

impl Rounds {
    /// Of a prompt with `waiting` further ones behind it: every prompt gets an equal share of the
    /// time that is left, so that what one does not need helps the others.
    pub(super) fn new(repeats: u32, auto: Option<Auto>, started: Instant, waiting: usize) -> Self {
        let Some(auto) = auto else {
            return Self::Counted(repeats);
        };
        let left = auto.time_budget.saturating_sub(started.elapsed());
        Self::Until(
            auto.ci_width_pct,
            Instant::now() + left / (waiting as u32 + 1),
        )
    }

    /// Whether `measured` rounds are enough, and what ended them if that was not their number.
    pub(super) fn end(
        self,
        measured: u32,
        case: &Case,
        derivation: &Derivation,
    ) -> Option<Option<Stopped>> {
        match self {
            Self::Counted(repeats) => (measured >= repeats).then_some(None),
            Self::Until(..) if measured == 0 => None,
            Self::Until(wanted_pct, ends_at) => {
                let is_over = Instant::now() >= ends_at;
                let is_hopeless = measured >= ROUNDS_OF_FAILURES && has_only_failures(case);
                if !is_over
                    && !is_hopeless
                    && !measured.is_multiple_of((measured / LOOKS_SHARE).max(1))
                {
                    return None;
                }
                let reached_pct = width_pct(case, derivation);
                let by = if reached_pct.is_some_and(|reached| reached <= wanted_pct) {
                    StoppedBy::Interval
                } else if is_hopeless {
                    StoppedBy::Failures
                } else if is_over {
                    StoppedBy::TimeBudget
                } else {
                    return None;
                };
                Some(Some(Stopped {
                    by,
                    repeats: measured,
                    wanted_pct,
                    reached_pct,
                }))
            }
        }
    }
}

/// Whether an arm was measured and never succeeded: its interval would never come.
fn has_only_failures(case: &Case) -> bool {
    let mut arms: BTreeMap<_, bool> = BTreeMap::new();
    for sample in case.samples.iter().filter(|s| !s.warmup) {
        let key = (sample.arm, sample.transfer, sample.wire_dtype);
        *arms.entry(key).or_default() |= sample.error.is_none();
    }
    arms.values().any(|has_succeeded| !has_succeeded)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Arm;
    use crate::report::fixture::usual_case;

    const DERIVATION: Derivation = Derivation {
        round_trip_ns: None,
        seed: 1,
        single_stands_in: false,
    };

    #[test]
    fn a_number_is_a_number() {
        let rounds = Rounds::new(3, None, Instant::now(), 0);
        assert_eq!(rounds.end(2, &usual_case(512), &DERIVATION), None);
        assert_eq!(rounds.end(3, &usual_case(512), &DERIVATION), Some(None));
    }

    #[test]
    fn a_narrow_interval_ends_the_rounds_and_else_the_time_does() {
        let auto = |ci_width_pct, seconds| {
            let time_budget = Duration::from_secs(seconds);
            let auto = Auto {
                ci_width_pct,
                time_budget,
            };
            Rounds::new(5, Some(auto), Instant::now(), 3)
        };
        let case = usual_case(512);
        let ended = |rounds: Rounds| rounds.end(5, &case, &DERIVATION).flatten();
        let narrow = ended(auto(2.0, 3600)).unwrap();
        assert_eq!((narrow.by, narrow.repeats), (StoppedBy::Interval, 5));
        assert!(narrow.to_string().contains("within the 2% of --ci-width"));
        assert_eq!(ended(auto(1e-9, 3600)), None);
        let late = ended(auto(1e-9, 0)).unwrap();
        assert_eq!(late.by, StoppedBy::TimeBudget);
        assert!(
            late.to_string().starts_with("--time-budget ended it"),
            "{late}"
        );
        let mut failing = case.clone();
        for sample in failing.samples.iter_mut().filter(|s| s.arm == Arm::Split) {
            sample.error = Some("the peer closed the connection".into());
        }
        let patient = auto(1e-9, 3600);
        assert_eq!(patient.end(2, &failing, &DERIVATION), None);
        let hopeless = patient.end(3, &failing, &DERIVATION).flatten().unwrap();
        assert_eq!(hopeless.by, StoppedBy::Failures);
        assert!(
            hopeless.to_string().contains("after 3 rounds"),
            "{hopeless}"
        );
        // However short the time, one round is measured.
        assert_eq!(auto(2.0, 0).end(0, &case, &DERIVATION), None);
    }
}
