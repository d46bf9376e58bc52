//! The three answers of a run with both arms: what the split costs an unloaded request, what it
//! saves a loaded one, what two nodes do with it; then what limits it and what to do first.
//!
//! The figures are gathered here, judged by `rules`, and put into words.

use serde::{Deserialize, Serialize};

use super::fastest;
use super::rules::{
    self, Advice, CAPACITY_MATTERS_PCT, Circumstances, Effect, LATENCY_MATTERS_PCT, Limit,
    STALL_MATTERS_GAPS, effect,
};
use super::words::{advice_text, signed, words};
use crate::metrics::summary::{SummaryArm, SummaryCase};
use crate::metrics::{Arm, LinkRecord, Node, Record, Transfer};
use crate::projection::{LINE_RATES_GBPS, Rdma, outlooks};
use crate::report::number::significant;
use crate::stats::{Change, Estimate, Figure};

/// All answers of a run.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Answers {
    /// What the split does to an unloaded request.
    pub latency: Answer,
    /// What it does to the worst stall of a running sequence.
    pub interference: Answer,
    /// What two nodes carry, against two whole ones.
    pub capacity: Answer,
    /// What limits a split request.
    pub limit: Limit,
    /// The same in words.
    pub limit_text: String,
    /// Most that RDMA is projected to save, in percent of E2E; null where nothing is projected.
    pub rdma_saves_pct: Option<f64>,
    /// Rate of payload in Gbps from which the split in bulk is no slower than one node; null where
    /// there is none. Projected.
    pub break_even_gbps: Option<f64>,
    /// Prompt length at which the change of E2E changes its sign; null where it does not.
    /// Interpolated between measured lengths.
    pub break_even_prompt_tokens: Option<f64>,
    /// What to do, first things first.
    pub advice: Vec<Advised>,
}

/// One answer.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Answer {
    /// What it rests on.
    pub basis: Basis,
    /// The judgement; null where nothing was measured.
    pub effect: Option<Effect>,
    /// The change that was judged, with its 95% interval, in `unit`; below zero is an improvement.
    pub change: Option<Estimate>,
    /// Unit of the change.
    pub unit: String,
    /// The answer in words, with its reasons.
    pub text: String,
}

/// What an answer rests on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Basis {
    /// On what it speaks of.
    Measured,
    /// On other measurements.
    Projected,
    /// On nothing: it was not asked for.
    NotMeasured,
}

/// Something to do, and why.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Advised {
    /// What.
    pub what: Advice,
    /// In words.
    pub text: String,
}

/// Both arms of the case that speaks for the run.
struct Pair<'a> {
    case: &'a SummaryCase,
    single: &'a SummaryArm,
    split: &'a SummaryArm,
    e2e: Change,
}

impl<'a> Pair<'a> {
    fn of(case: &'a SummaryCase) -> Option<Self> {
        let (single, _) = fastest(case, Arm::Single)?;
        let (split, _) = fastest(case, Arm::Split)?;
        let e2e = case.change(single, split)?.e2e_ms?;
        Some(Self {
            case,
            single,
            split,
            e2e,
        })
    }
}

impl Answers {
    /// Of a run whose answers can be believed and that has both arms; `None` of any other.
    pub fn of(record: &Record, cases: &[SummaryCase]) -> Option<Self> {
        if record.check_failed() {
            return None;
        }
        let mut pairs: Vec<Pair<'_>> = cases.iter().filter_map(Pair::of).collect();
        pairs.sort_by_key(|pair| pair.case.prompt_tokens);
        let longest = pairs.last()?;
        let median = |figure: Option<Figure>| figure.map_or(0.0, |f| f.median);
        let (exposed_ms, handoff_ms, e2e_ms) = (
            median(longest.split.exposed_transfer_ms),
            median(longest.split.handoff_ms),
            median(longest.split.e2e_ms),
        );
        let latency = latency(longest);
        let interference = interference(record);
        let capacity = capacity(&pairs);
        let limit = rules::limit(exposed_ms, handoff_ms, e2e_ms);
        let rdma = rdma(record, longest.case);
        let transfers = cases
            .iter()
            .flat_map(|c| &c.arms)
            .filter_map(|a| a.transfer);
        let advice = rules::advice(&Circumstances {
            limit,
            only_bulk: transfers.clone().all(|t| t == Transfer::Bulk),
            streams: longest.split.streams,
            effective_gbps: median(longest.split.effective_gbps),
            kv_demand_gbps: median(longest.split.kv_demand_gbps),
            line_gbps: record.link.as_ref().and_then(line_gbps),
            rdma_pays: rdma.as_ref().is_some_and(|rdma| !rdma.buys_nothing),
            latency: latency.effect.unwrap_or(Effect::Undecided),
            interference: interference.effect,
            capacity: capacity.effect.unwrap_or(Effect::Undecided),
        });
        let change_ms = longest.e2e.absolute().value;
        // Between changes that may be chance a sign means nothing.
        let changes: Vec<(f64, f64)> = (pairs.iter())
            .filter(|p| p.e2e.significant)
            .map(|p| (f64::from(p.case.prompt_tokens), p.e2e.absolute().value))
            .collect();
        Some(Self {
            limit_text: limit_text(limit, exposed_ms, handoff_ms, e2e_ms, rdma.as_ref()),
            break_even_gbps: (longest.split.transfer == Some(Transfer::Bulk)
                && longest.e2e.significant)
                .then(|| rules::break_even_gbps(longest.split.wire_bytes, exposed_ms, change_ms))
                .flatten(),
            break_even_prompt_tokens: rules::break_even_tokens(&changes),
            latency,
            interference,
            capacity,
            limit,
            rdma_saves_pct: rdma.map(|rdma| saves_pct(&rdma, e2e_ms)),
            advice: (advice.into_iter())
                .map(|what| Advised {
                    what,
                    text: advice_text(what).to_owned(),
                })
                .collect(),
        })
    }
}

fn latency(pair: &Pair<'_>) -> Answer {
    let interval = pair.e2e.pct.and_then(|pct| pct.interval());
    let effect = effect(interval, !pair.e2e.significant, LATENCY_MATTERS_PCT);
    let change = pair
        .e2e
        .pct
        .map_or("unknown".to_owned(), |pct| signed(pct, "%"));
    Answer {
        basis: Basis::Measured,
        effect: Some(effect),
        change: pair.e2e.pct,
        unit: "% of E2E".into(),
        text: format!(
            "{}: E2E {change} at {} prompt tokens",
            words(
                effect,
                [
                    "an unloaded request is faster",
                    "an unloaded request is slower",
                    "an unloaded request is as fast",
                    "the samples do not tell whether an unloaded request is as fast",
                ]
            ),
            pair.case.prompt_tokens,
        ),
    }
}

fn interference(record: &Record) -> Answer {
    let unit = "ms of the worst gap".to_owned();
    let not_measured = |text: &str| Answer {
        basis: Basis::NotMeasured,
        effect: None,
        change: None,
        unit: unit.clone(),
        text: text.to_owned(),
    };
    let Some(all) = &record.interference else {
        return not_measured("not measured: use --interference");
    };
    let arms = all.arms();
    let worst = |arm: &crate::metrics::interference::InterferenceArm| arm.worst_itl_ms;
    let single = (arms.iter().filter(|a| a.arm == Arm::Single))
        .filter_map(|a| Some((a, worst(a)?)))
        .min_by(|(_, a), (_, b)| a.median.total_cmp(&b.median));
    let split = (arms.iter().find(|a| a.arm == Arm::Split)).and_then(|a| Some((a, worst(a)?)));
    let Some(((single, before), (split, after))) = single.zip(split) else {
        return not_measured("asked for, and an arm has no whole sample: see the table");
    };
    let change = Change::paired(
        &all.worst_ms(single.arm, single.chunk_tokens),
        &all.worst_ms(split.arm, split.chunk_tokens),
        record.run.seed,
    );
    let gap_ms = single.undisturbed_itl_ms.map_or(0.0, |f| f.median);
    let judged = change.map(|change| {
        let is_chance = !change.significant;
        let interval = change.absolute().interval();
        effect(interval, is_chance, STALL_MATTERS_GAPS * gap_ms)
    });
    let effect = judged.unwrap_or(Effect::Undecided);
    let ttft = |figure: Option<Figure>| figure.map_or("-".into(), |f| significant(f.median, 3));
    Answer {
        basis: Basis::Measured,
        effect: Some(effect),
        change: change.map(|c| c.absolute()),
        unit,
        text: format!(
            "{} while a prompt of {} tokens is prefilled: its worst gap is {} ms split, {} ms on one node ({}){}; the prompt's own TTFT is {} against {} ms",
            words(
                effect,
                [
                    "a running sequence stalls less",
                    "a running sequence stalls more",
                    "a running sequence stalls as much",
                    "the samples do not tell whether a running sequence stalls less",
                ]
            ),
            all.newcomer_prompt_tokens,
            significant(after.median, 3),
            significant(before.median, 3),
            single.way(),
            change.map_or(String::new(), |c| format!(
                ", {}",
                signed(c.absolute(), " ms")
            )),
            ttft(split.newcomer_ttft_ms),
            ttft(single.newcomer_ttft_ms),
        ),
    }
}

/// The median of a figure, or an end of its interval.
type End = fn(Figure) -> Option<f64>;

/// Requests per second of both ways to use two nodes, each request alone on its node, for one
/// request of every prompt.
fn capacity(pairs: &[Pair<'_>]) -> Answer {
    let total = |of: &dyn Fn(&Pair<'_>) -> Option<Figure>, at: End| {
        let values = pairs.iter().map(|pair| of(pair).map_or(Some(0.0), at));
        values.sum::<Option<f64>>()
    };
    let on = |pair: &Pair<'_>, node: Node| {
        let arms = pair.case.arms.iter();
        let mut singles = arms.filter(|a| a.arm == Arm::Single);
        // Like nodes are measured once.
        singles
            .find(|a| a.node == node)
            .unwrap_or(pair.single)
            .clone()
    };
    let whole = |at: End| {
        let node = |node| {
            let prefill = total(&|p| on(p, node).prefill_ms, at)?;
            Some((prefill, total(&|p| on(p, node).decode_ms, at)?))
        };
        Some(rules::replicated_per_s([
            node(Node::Prefill)?,
            node(Node::Decode)?,
        ]))
    };
    let split = |at: End| {
        let prefill = total(&|p| p.split.prefill_ms, at)?;
        let wire = total(&|p| p.split.wire_busy_ms, at)?;
        let handoff = total(&|p| p.split.handoff_ms, at)?;
        let decode = total(&|p| p.split.decode_ms, at)?;
        Some((
            rules::split_per_s(prefill, wire, handoff + decode),
            prefill,
            wire,
            handoff + decode,
        ))
    };
    let (median, low, high): (End, End, End) = (|f| Some(f.median), |f| f.ci_low, |f| f.ci_high);
    let unit = "% of the requests per second of two whole nodes".to_owned();
    let known = split(median)
        .zip(whole(median))
        .filter(|(_, whole)| whole.is_finite());
    let Some(((split_per_s, prefill, wire, decode), whole_per_s)) = known else {
        return Answer {
            basis: Basis::NotMeasured,
            effect: None,
            change: None,
            unit,
            text: "not known: no prefill and decode times".into(),
        };
    };
    // Less is better, as in the other answers.
    let lost_pct = |split: f64, whole: f64| 100.0 * (1.0 - split / whole);
    // Times at their long ends make rates at their low ends.
    let most = split(high)
        .zip(whole(low))
        .map(|((s, ..), w)| lost_pct(s, w));
    let least = split(low)
        .zip(whole(high))
        .map(|((s, ..), w)| lost_pct(s, w));
    let change = Estimate {
        value: lost_pct(split_per_s, whole_per_s),
        ci_low: least,
        ci_high: most,
    };
    let effect = effect(change.interval(), false, CAPACITY_MATTERS_PCT);
    let stage = if wire >= prefill.max(decode) {
        "the wire"
    } else if prefill >= decode {
        "prefill"
    } else {
        "decode"
    };
    let sets = if pairs.len() > 1 {
        " sets of these prompts"
    } else {
        " requests"
    };
    let ratio = Estimate {
        value: split_per_s / whole_per_s,
        ci_low: most.map(|pct| 1.0 - pct / 100.0),
        ci_high: least.map(|pct| 1.0 - pct / 100.0),
    };
    let range = ratio.interval().map_or(String::new(), |(low, high)| {
        format!(" [{low:.2}, {high:.2}]")
    });
    Answer {
        basis: Basis::Projected,
        effect: Some(effect),
        change: Some(change),
        unit,
        text: format!(
            "{}: {:.2}x{range} of two whole nodes, {} against {}{sets}/s, one at a time on a node; {stage} is the slowest stage",
            words(
                effect,
                [
                    "a split carries more",
                    "a split carries less",
                    "a split carries as much",
                    "the samples do not tell whether a split carries as much",
                ]
            ),
            ratio.value,
            significant(split_per_s, 3),
            significant(whole_per_s, 3),
        ),
    }
}

/// What RDMA is projected to buy a case; none where nothing is projected.
fn rdma(record: &Record, case: &SummaryCase) -> Option<Rdma> {
    let projected = outlooks(record, None, &LINE_RATES_GBPS).ok()?;
    let of_case = projected.into_iter().find(|o| o.prompt == case.prompt);
    of_case.map(|outlook| outlook.rdma)
}

/// The most that it saves, in percent of E2E.
fn saves_pct(rdma: &Rdma, e2e_ms: f64) -> f64 {
    match e2e_ms > 0.0 {
        true => 100.0 * rdma.most_ms.high / e2e_ms,
        false => 0.0,
    }
}

/// Speed of the interface that carried the bytes; virtual ones name a speed that does not bind.
fn line_gbps(link: &LinkRecord) -> Option<f64> {
    let interface = link.interface.as_ref().filter(|i| i.driver.is_some())?;
    (!link.loopback).then_some(interface.speed_mbps? as f64 / 1e3)
}

fn limit_text(
    limit: Limit,
    exposed_ms: f64,
    handoff_ms: f64,
    e2e_ms: f64,
    rdma: Option<&Rdma>,
) -> String {
    let share = |ms: f64| format!("{} ms", significant(ms, 3));
    let rdma = match rdma {
        None => "what RDMA would buy is not projected".to_owned(),
        Some(rdma) if rdma.buys_nothing => "RDMA would buy nothing here".to_owned(),
        Some(rdma) => format!(
            "RDMA is projected to save at most {:.1}% of it",
            saves_pct(rdma, e2e_ms)
        ),
    };
    let what = match limit {
        Limit::Compute => "compute",
        Limit::Wire => "the wire",
        Limit::Handoff => "the handoff",
    };
    format!(
        "{what}: of {} E2E a split request waits {} for bytes and {} for the handoff; {rdma}",
        share(e2e_ms),
        share(exposed_ms),
        share(handoff_ms),
    )
}

#[cfg(test)]
mod tests;
