//! What makes the figures of a run doubtful.
//!
//! Every alarm is a sentence that says what was found and what to do; none is silent. What the
//! figures mean is `verdict`'s.

use crate::environment::{Environment, NetworkInterface};
use crate::metrics::clock::ClockOffset;
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
        debug_build(record),
        failed_requests(&record.cases),
        too_few_samples(cases),
        unexplained_residual(record, cases),
        implausible_rate(record, cases),
        contradicting_clocks(record),
        cold_connections(cases),
        shared_cores(record),
    ]
    .into_iter()
    .flatten()
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

fn debug_build(record: &Record) -> Option<String> {
    let decode = record.environment.decode.as_ref();
    let is_debug = |e: &Environment| !e.build.is_optimised();
    let node = if is_debug(&record.environment.prefill) || record.run.profile == "debug" {
        "prefill"
    } else if decode.is_some_and(is_debug) {
        "decode"
    } else {
        return None;
    };
    Some(format!(
        "the {node} node is a debug build, its times mean nothing: build with --release"
    ))
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

fn implausible_rate(record: &Record, cases: &[SummaryCase]) -> Option<String> {
    if record.link.as_ref().is_none_or(|link| link.loopback) {
        return None;
    }
    let nodes = [
        Some(&record.environment.prefill),
        record.environment.decode.as_ref(),
    ];
    let ceiling = (nodes.into_iter().flatten())
        .filter_map(|e| physical_gbps(&e.network_interfaces))
        .min_by(f64::total_cmp)?;
    let fastest = arms(cases)
        .filter_map(|(_, a)| Some(a.effective_gbps?.median))
        .max_by(f64::total_cmp)?;
    (fastest > ceiling).then(|| {
        format!(
            "{} Gbps effective is more than the node's network cards carry ({} Gbps): the bytes went another way, check the peer's address",
            significant(fastest, 3),
            significant(ceiling, 3),
        )
    })
}

/// What all network cards of a node carry together; `None` if that is not known of every one.
/// Virtual interfaces are left out, because they name a speed that does not bind them.
fn physical_gbps(interfaces: &[NetworkInterface]) -> Option<f64> {
    let cards = (interfaces.iter()).filter(|i| i.is_up && !i.is_loopback && i.driver.is_some());
    let speeds: Option<Vec<u64>> = cards.map(|card| card.speed_mbps).collect();
    let mbps: u64 = speeds?.iter().sum();
    (mbps > 0).then_some(mbps as f64 / 1e3)
}

fn contradicting_clocks(record: &Record) -> Option<String> {
    let samples = || record.cases.iter().flat_map(|c| &c.samples);
    let worst = (samples().filter_map(ClockOffset::of).map(|c| c.error_ns)).min()?;
    (worst < 0).then(|| {
        format!(
            "messages of one request contradict each other by {} us on the two nodes' clocks: a clock was stepped or drifts, do not compare times across nodes",
            significant(-worst as f64 / 1e3, 3),
        )
    })
}

fn cold_connections(cases: &[SummaryCase]) -> Option<String> {
    let connections = || arms(cases).filter_map(|(_, a)| a.connections);
    let cold: usize = connections().map(|c| c.cold).sum();
    let all: usize = connections().map(|c| c.cold + c.warm + c.after_idle).sum();
    (cold > 0).then(|| {
        format!(
            "{cold} of {} were the first on their connection, which starts slowly: use --warmup 1 or more, and see whether requests failed before them",
            count(all, "transfer"),
        )
    })
}

fn shared_cores(record: &Record) -> Option<String> {
    (record.environment.shared_machine()).then(|| {
        "both nodes share one machine, its cores and its memory bus: for your own link, start serve-decode on a second machine and give --peer HOST:PORT".to_owned()
    })
}

#[cfg(test)]
mod tests;
