//! The answer in a line, and what makes it doubtful, both from measured medians.
//!
//! Figures are `metrics`' business; tables and charts are `report`'s.

mod lossy;

use crate::environment::{Environment, NetworkInterface};
use crate::metrics::clock::ClockOffset;
use crate::metrics::summary::{SummaryArm, SummaryCase};
use crate::metrics::{Arm, Case, Record, Status};
use crate::report::number::{count, one_line, significant};
use crate::stats::Figure;

/// Samples below which a median says little.
const MIN_SAMPLES: usize = 5;

/// A residual below this is scheduling noise on any machine.
const RESIDUAL_FLOOR_MS: f64 = 1.0;

/// Share of the gap to the second token that may stay unexplained.
const RESIDUAL_SHARE: f64 = 0.05;

/// Share of E2E below which two arms are called equally fast.
const EQUAL_SHARE: f64 = 0.005;

/// Characters of an error or finding that are quoted.
const QUOTED_CHARS: usize = 160;

/// What was found, in one line; `None` where nothing was asked.
pub fn finding(record: &Record) -> Option<String> {
    if record.check_failed() {
        return Some(difference(record));
    }
    let cases = summarised(record);
    let measured = compared(record, &cases)
        .or_else(|| split_alone(&cases))
        .or_else(|| lossy::alone(&cases))
        .or_else(|| single_alone(&cases));
    let nothing = || (!record.cases.is_empty()).then(|| "nothing was measured".to_owned());
    let parts: Vec<String> = [ending(record, &cases), measured.or_else(nothing)]
        .into_iter()
        .flatten()
        .collect();
    if parts.is_empty() {
        return None;
    }
    let lossy = lossy::sentence(&cases).map_or(String::new(), |sentence| format!("; {sentence}"));
    let shared = match record.environment.shared_machine() {
        true => "; both nodes share one machine",
        false => "",
    };
    Some(parts.join(": ") + &lossy + shared)
}

fn summarised(record: &Record) -> Vec<SummaryCase> {
    let round_trip = record.link.as_ref().and_then(|l| l.min_round_trip_ns());
    (record.cases.iter())
        .map(|case| SummaryCase::of(case, round_trip))
        .collect()
}

/// Says which check failed first.
fn difference(record: &Record) -> String {
    let checked = (record.cases.iter()).filter_map(|c| Some((c, c.check.as_ref()?)));
    let failed: Vec<_> = checked.filter(|(_, check)| !check.passed()).collect();
    let what = failed.first().map(|(case, check)| {
        let why = match (check.findings.first(), check.landed) {
            (Some(finding), _) => one_line(finding, QUOTED_CHARS),
            (None, Some(false)) => "the cache that landed is not the one that was sent".into(),
            (None, _) => {
                let outputs = check
                    .outputs
                    .map_or("not compared".into(), |o| o.to_string());
                format!("{outputs} where {} is demanded", check.demanded)
            }
        };
        format!("prompt {}: {why}", one_line(&case.prompt, 40))
    });
    format!(
        "OUTPUTS DIFFER: {} ({} of {}); the times of this run answer nothing until that is cured",
        what.unwrap_or_default(),
        failed.len(),
        count(record.cases.len(), "prompt"),
    )
}

/// How a run ended that did not end well.
fn ending(record: &Record, cases: &[SummaryCase]) -> Option<String> {
    let measured = cases.iter().filter(|c| !c.arms.is_empty()).count();
    let measured = format!("with {} measured", count(measured, "prompt"));
    match (record.run.status, &record.run.error) {
        (Status::Complete, _) => None,
        (Status::Running, _) => Some(format!("RUN NOT FINISHED, {measured}")),
        (Status::Interrupted, _) => Some(format!("RUN INTERRUPTED {measured}")),
        (Status::Failed, None) => Some(format!("RUN FAILED {measured}")),
        (Status::Failed, Some(error)) => Some(format!(
            "RUN FAILED {measured} ({})",
            one_line(error, QUOTED_CHARS)
        )),
    }
}

/// The fastest lossless way of running a case in an arm: a split has to beat the better single
/// node, and with the same answer.
fn fastest(case: &SummaryCase, arm: Arm) -> Option<(&SummaryArm, Figure)> {
    (case.arms.iter().filter(|a| a.arm == arm && !a.is_lossy()))
        .filter_map(|a| Some((a, a.e2e_ms?)))
        .min_by(|(_, a), (_, b)| a.median.total_cmp(&b.median))
}

/// The line of a run with both arms.
fn compared(record: &Record, cases: &[SummaryCase]) -> Option<String> {
    let pairs: Vec<_> = (cases.iter())
        .filter_map(|c| Some((c, fastest(c, Arm::Single)?.1, fastest(c, Arm::Split)?)))
        .filter(|(_, single, _)| single.median > 0.0)
        .collect();
    let (case, single, (arm, split)) = pairs.iter().max_by_key(|(c, ..)| c.prompt_tokens)?;
    let ratio = split.median / single.median;
    let judged = if (ratio - 1.0).abs() < EQUAL_SHARE {
        "as fast end to end as".to_owned()
    } else if ratio > 1.0 {
        format!("{ratio:.2}x slower end to end than")
    } else {
        format!("{:.2}x faster end to end than", 1.0 / ratio)
    };
    let overlap = match single.min <= split.max && split.min <= single.max {
        true => ", within the spread of the samples",
        false => "",
    };
    let ratios = || {
        pairs
            .iter()
            .map(|(_, single, (_, split))| split.median / single.median)
    };
    let over_all = match pairs.len() {
        1 => String::new(),
        n => format!(
            "; {:.2}x to {:.2}x its time over {n} prompts",
            ratios().fold(f64::INFINITY, f64::min),
            ratios().fold(0.0, f64::max),
        ),
    };
    Some(format!(
        "split is {judged} one node ({} against {} ms at {} prompt tokens{overlap}{over_all}); {}; {}",
        significant(split.median, 3),
        significant(single.median, 3),
        case.prompt_tokens,
        transfer(arm),
        equality(record, pairs.len()),
    ))
}

/// What the transfer cost.
fn transfer(arm: &SummaryArm) -> String {
    match (arm.transfer_overhead_pct, arm.effective_gbps) {
        (Some(overhead), Some(gbps)) => format!(
            "transfer exposes {:.1}% of E2E at {} Gbps effective",
            overhead.median,
            significant(gbps.median, 3),
        ),
        _ => "no cache was sent".to_owned(),
    }
}

/// How equal the answers are, and in how many prompts that was looked at.
fn equality(record: &Record, measured: usize) -> String {
    let checked = (record.cases.iter()).filter(|c| c.check.is_some()).count();
    match record.outputs() {
        None => "outputs not compared".to_owned(),
        Some(agreement) if checked >= measured => format!("outputs {agreement}"),
        Some(agreement) => {
            format!("outputs {agreement} where compared ({checked} of {measured} prompts)")
        }
    }
}

/// The line of a run with the split arm only.
fn split_alone(cases: &[SummaryCase]) -> Option<String> {
    let split = cases
        .iter()
        .filter_map(|c| Some((c, fastest(c, Arm::Split)?)));
    let (case, (arm, e2e)) = split.max_by_key(|(c, _)| c.prompt_tokens)?;
    Some(format!(
        "split takes {} ms end to end at {} prompt tokens; {}; no single arm to compare it with",
        significant(e2e.median, 3),
        case.prompt_tokens,
        transfer(arm),
    ))
}

/// The line of a run with the single arm only.
fn single_alone(cases: &[SummaryCase]) -> Option<String> {
    let single = cases
        .iter()
        .filter_map(|c| Some((c, fastest(c, Arm::Single)?)));
    let (case, (arm, e2e)) = single.max_by_key(|(c, _)| c.prompt_tokens)?;
    let text = |figure: Option<Figure>| figure.map_or("-".into(), |f| significant(f.median, 3));
    Some(format!(
        "one node gives {} tok/s (TTFT {} ms, TPOT {} ms, E2E {} ms at {} prompt tokens)",
        text(arm.tokens_per_s),
        text(arm.ttft_ms),
        text(arm.tpot_ms),
        significant(e2e.median, 3),
        case.prompt_tokens,
    ))
}

/// What makes the figures doubtful, one sentence each, with what to do about it.
pub fn alarms(record: &Record) -> Vec<String> {
    let cases = summarised(record);
    [
        debug_build(record),
        failed_requests(&record.cases),
        too_few_samples(&cases),
        unexplained_residual(record, &cases),
        implausible_rate(record, &cases),
        contradicting_clocks(record),
        cold_connections(&cases),
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
