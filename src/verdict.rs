//! What a run means: its finding in a line, from measured medians, and three answers with their
//! intervals and reasons, judged by the thresholds in `rules`.
//!
//! Figures are `metrics`' business, what makes them doubtful is `alarms`'; tables and charts are
//! `report`'s.

mod answers;
mod lossy;
pub mod rules;
mod words;

pub use answers::{Advised, Answer, Answers, Basis};

use crate::metrics::summary::{SummaryArm, SummaryCase};
use crate::metrics::{Arm, Record, Status};
use crate::report::number::{count, one_line, significant};
use crate::stats::Figure;

/// Share of E2E below which two arms are called equally fast.
const EQUAL_SHARE: f64 = 0.005;

/// Characters of an error or finding that are quoted.
const QUOTED_CHARS: usize = 160;

/// What was found, in one line; `None` where nothing was asked.
pub fn finding(record: &Record) -> Option<String> {
    if record.check_failed() {
        return Some(difference(record));
    }
    let cases = SummaryCase::all(record);
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

/// Says which check failed first.
fn difference(record: &Record) -> String {
    if record
        .interference
        .as_ref()
        .is_some_and(|all| !all.passed())
    {
        return "OUTPUTS DIFFER: a running sequence got other tokens while a prompt was prefilled; the times of this run answer nothing until that is cured".to_owned();
    }
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
pub(crate) fn fastest(case: &SummaryCase, arm: Arm) -> Option<(&SummaryArm, Figure)> {
    (case.arms.iter().filter(|a| a.arm == arm && !a.is_lossy()))
        .filter_map(|a| Some((a, a.e2e_ms?)))
        .min_by(|(_, a), (_, b)| a.median.total_cmp(&b.median))
}

/// The line of a run with both arms.
fn compared(record: &Record, cases: &[SummaryCase]) -> Option<String> {
    let pairs: Vec<_> = (cases.iter())
        .filter_map(|c| Some((c, fastest(c, Arm::Single)?, fastest(c, Arm::Split)?)))
        .filter(|(_, (_, single), _)| single.median > 0.0)
        .collect();
    let (case, (single_arm, single), (arm, split)) =
        pairs.iter().max_by_key(|(c, ..)| c.prompt_tokens)?;
    let ratio = split.median / single.median;
    let is_equal = (ratio - 1.0).abs() < EQUAL_SHARE;
    let judged = if is_equal {
        "as fast end to end as".to_owned()
    } else if ratio > 1.0 {
        format!("{ratio:.2}x slower end to end than")
    } else {
        format!("{:.2}x faster end to end than", 1.0 / ratio)
    };
    let change = case
        .change(single_arm, arm)
        .and_then(|change| change.e2e_ms);
    let chance = match is_equal || change.is_some_and(|change| change.significant) {
        true => "",
        false => ", which may be chance",
    };
    let ratios = || {
        pairs
            .iter()
            .map(|(_, (_, single), (_, split))| split.median / single.median)
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
        "split is {judged} one node ({} against {} ms at {} prompt tokens{chance}{over_all}); {}; {}",
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

#[cfg(test)]
mod tests;
