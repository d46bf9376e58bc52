//! What the verdict adds about lossy wire formats; they take no part in the comparison itself.

use crate::metrics::summary::{SummaryArm, SummaryCase};
use crate::report::number::{significant, small};
use crate::stats::Figure;

/// The fastest lossy arm of the longest prompt that has one.
fn fastest(cases: &[SummaryCase]) -> Option<(&SummaryCase, &SummaryArm, Figure)> {
    let lossy = cases.iter().filter_map(|case| {
        (case.arms.iter().filter(|a| a.is_lossy()))
            .filter_map(|a| Some((case, a, a.e2e_ms?)))
            .min_by(|(.., a), (.., b)| a.median.total_cmp(&b.median))
    });
    lossy.max_by_key(|(case, ..)| case.prompt_tokens)
}

/// What a lossy format saved and cost, in a sentence; `None` without a lossy arm.
pub(super) fn sentence(cases: &[SummaryCase]) -> Option<String> {
    let (case, arm, _) = fastest(cases)?;
    let dtype = arm.wire_dtype?;
    let twin = case.lossless_twin(arm);
    let number = |value: f64| significant(value, 3);
    let megabytes = |bytes: u64| number(bytes as f64 / 1e6);
    let exposed = match (
        arm.exposed_transfer_ms,
        twin.and_then(|t| t.exposed_transfer_ms),
    ) {
        (Some(lossy), Some(exact)) => format!(
            "exposes {} instead of {} ms",
            number(lossy.median),
            number(exact.median)
        ),
        (Some(lossy), None) => format!("exposes {} ms", number(lossy.median)),
        (None, _) => "sends no cache".to_owned(),
    };
    let cost = match case.cost_of(arm) {
        Some(cost) => match (cost.kl_mean_nats, cost.kl_max_nats) {
            (Some(mean), Some(largest)) => format!(
                "costs KL {} nats a step in the mean, {} at most",
                small(mean),
                small(largest)
            ),
            _ => "gives scores that are no numbers".to_owned(),
        },
        None => "what it costs the answer was not measured".to_owned(),
    };
    Some(format!(
        "{dtype} on the wire (lossy) sends {} instead of {} MB, {exposed} and {cost} at {} prompt tokens",
        megabytes(arm.wire_bytes),
        megabytes(twin.map_or(case.kv_bytes, |t| t.wire_bytes)),
        case.prompt_tokens,
    ))
}

/// The finding of a run whose split arms were all lossy.
pub(super) fn alone(cases: &[SummaryCase]) -> Option<String> {
    let (case, arm, e2e) = fastest(cases)?;
    Some(format!(
        "split was measured with {} on the wire alone, which is lossy ({} ms end to end at {} prompt tokens): for a comparison with one node add --wire-dtype same,{}",
        arm.wire_dtype?,
        significant(e2e.median, 3),
        case.prompt_tokens,
        arm.wire_dtype?,
    ))
}
