//! What makes the figures of a run doubtful.
//!
//! Every alarm is a sentence that says what was found and what to do; none is silent. `machine` has
//! those of hosts and builds, `link` those of what lies between. What the figures mean is
//! `verdict`'s.

mod link;
mod machine;

use crate::metrics::summary::{SummaryArm, SummaryCase};
use crate::metrics::{Case, Record};
use crate::report::number::{count, one_line, significant};

/// Samples below which a median says little.
const MIN_SAMPLES: usize = 5;

/// A residual below this is scheduling noise on any machine.
const RESIDUAL_FLOOR_MS: f64 = 1.0;

/// Share of the gap to the second token that may stay unexplained.
const RESIDUAL_SHARE: f64 = 0.05;

/// Characters of an error that are quoted.
const QUOTED_CHARS: usize = 160;

/// One sentence each, with what to do about it. `cases` are the record's.
pub fn alarms(record: &Record, cases: &[SummaryCase]) -> Vec<String> {
    [
        machine::debug_build(record),
        machine::random_weights(record),
        failed_requests(&record.cases),
        too_few_samples(cases),
        unexplained_residual(record, cases),
        link::faster_than_cards(record, cases),
        link::faster_than_memory(record, cases),
        link::contradicting_clocks(record),
        link::cold_connections(cases),
        link::others_in_flight(record),
        link::retried_connections(record),
        machine::one_core(record),
        machine::shared_cores(record),
    ]
    .into_iter()
    .flatten()
    .chain(sittings(record))
    .chain(machine::slow_compute(record, cases))
    .chain(machine::other_load(record))
    .chain(machine::frequency(record))
    .chain(baseline(record))
    .collect()
}

fn arms(cases: &[SummaryCase]) -> impl Iterator<Item = (&SummaryCase, &SummaryArm)> {
    cases
        .iter()
        .flat_map(|c| c.arms.iter().map(move |a| (c, a)))
}

fn baseline(record: &Record) -> Vec<String> {
    let Some(baseline) = &record.baseline else {
        return Vec::new();
    };
    let stand_in = baseline.stands_in.then(|| {
        format!(
            "the single arm is that of {}, measured {} and not in turns with the split: leave out --baseline to measure both",
            baseline.file, baseline.measured_at
        )
    });
    let advice = "measure it again with `disagg-bench baseline`";
    let warnings = baseline.warnings.iter().map(|w| format!("{w}: {advice}"));
    stand_in.into_iter().chain(warnings).collect()
}

fn sittings(record: &Record) -> Option<String> {
    let resumed = &record.run.resumed_at;
    (!resumed.is_empty()).then(|| {
        format!(
            "the run was interrupted and taken up again at {}: warm-up was repeated, but the machine \
             may have been faster or slower, so look at the samples for a step",
            resumed.join(", ")
        )
    })
}

fn failed_requests(cases: &[Case]) -> Option<String> {
    let samples = || cases.iter().flat_map(|c| &c.samples);
    let mut errors = samples().filter_map(|s| s.error.as_deref());
    let first = one_line(errors.next()?, QUOTED_CHARS);
    Some(format!(
        "{} of {} failed and are in no figure: cure the first one ({first}) and run again",
        1 + errors.count(),
        count(samples().count(), "request"),
    ))
}

fn too_few_samples(cases: &[SummaryCase]) -> Option<String> {
    let measured = arms(cases).map(|(c, a)| (a.e2e_ms.map_or(0, |f| f.n), c, a));
    let (n, case, arm) = measured.min_by_key(|(n, ..)| *n)?;
    (n < MIN_SAMPLES).then(|| {
        format!(
            "only {} of {} at {} prompt tokens, so its median may be chance: use --repeats {MIN_SAMPLES} or more",
            count(n, "measured sample"),
            arm.arm,
            case.prompt_tokens,
        )
    })
}

fn unexplained_residual(record: &Record, cases: &[SummaryCase]) -> Option<String> {
    // The token's way back, and in layered mode the first token's way there, are no other phase's.
    let link = record.link.as_ref();
    let round_trip_ms = link.and_then(|l| l.min_round_trip_ns()).unwrap_or(0) as f64 / 1e6;
    let residuals = arms(cases).filter_map(|(case, arm)| {
        let gap_ms = arm.ttst_ms?.median - arm.ttft_ms?.median;
        Some((arm.residual_ms?.median, gap_ms, case))
    });
    let (residual_ms, gap_ms, case) = residuals
        .filter(|(residual_ms, gap_ms, _)| {
            let allowed_ms = (RESIDUAL_SHARE * gap_ms).max(RESIDUAL_FLOOR_MS);
            !(-allowed_ms..=allowed_ms + round_trip_ms).contains(residual_ms)
        })
        .max_by(|(a, ..), (b, ..)| a.abs().total_cmp(&b.abs()))?;
    Some(format!(
        "{} ms of the {} ms from first to second token at {} prompt tokens are neither transfer, handoff nor decode step: stop other load and run again",
        significant(residual_ms, 3),
        significant(gap_ms, 3),
        case.prompt_tokens,
    ))
}

#[cfg(test)]
mod tests;
