//! Judgements and advice in words.

use super::rules::{Advice, Effect};
use crate::report::number::significant;
use crate::stats::Estimate;

/// The words for a judgement out of those for better, worse, the same and undecided.
pub(super) fn words(
    effect: Effect,
    [better, worse, same, undecided]: [&'static str; 4],
) -> &'static str {
    match effect {
        Effect::Better => better,
        Effect::Worse => worse,
        Effect::Same => same,
        Effect::Undecided => undecided,
    }
}

/// A change with its sign and 95% interval.
pub(super) fn signed(change: Estimate, unit: &str) -> String {
    let number = |value: f64| {
        let text = significant(value, 3);
        match value > 0.0 && !text.starts_with('-') {
            true => format!("+{text}"),
            false => text,
        }
    };
    let value = format!("{}{unit}", number(change.value));
    match change.interval() {
        Some((low, high)) => format!("{value} [{}, {}]", number(low), number(high)),
        None => format!("{value}, too few samples for an interval"),
    }
}

/// What to do and why.
pub(super) fn advice_text(advice: Advice) -> &'static str {
    match advice {
        Advice::DoNotSplit => {
            "do not split: it makes no request faster, carries no more, and spares running sequences nothing"
        }
        Advice::Split => "split: a request is faster by itself",
        Advice::SplitForStalls => {
            "split if the stalls of running sequences matter more than what it costs otherwise"
        }
        Advice::MeasureInterference => {
            "measure what the split saves running sequences: --interference"
        }
        Advice::MoreRepeats => "measure more often, with --repeats auto or a number",
        Advice::Layered => "send layer by layer behind prefill: --transfer layered",
        Advice::MoreStreams => "use more TCP connections: --streams 4",
        Advice::FasterLink => {
            "get a faster link: prefill makes bytes quicker than this one takes them"
        }
        Advice::Rdma => "try RDMA: the transfer is long enough for it to be felt",
        Advice::QuickerHandoff => {
            "look at what the decode node does between the last byte and its first step; no link helps there"
        }
    }
}
