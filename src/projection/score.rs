//! A projection held against what was measured on that link: exposed transfer, and the change
//! (split less one node) of TTST and E2E.

use serde::Serialize;

use super::measured::{MODES, Request, against_single, median, requests};
use super::outlook::tcp;
use super::{Links, Measured};
use crate::metrics::figures::Figures;
use crate::metrics::{Arm, Case, Node, Record, Transfer};
use crate::stats::{DEFAULT_SEED, median_interval, percentile};

/// Largest error of a change, as a share of it or in ms, whichever is more.
const CHANGE_ERROR_SHARE: f64 = 0.10;
const CHANGE_ERROR_MS: f64 = 1.0;

/// Largest error of the exposed transfer in bulk.
pub const EXPOSED_ERROR_SHARE: f64 = 0.10;

/// Largest error of all changes, in errors of predicting that the transfer takes nothing.
const NO_TRANSFER_ERROR_SHARE: f64 = 0.2;

/// A change as predicted and as measured, in ms.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct ScoredChange {
    /// Split less one node, projected.
    pub predicted_ms: f64,
    /// The same, measured: median over rounds of what the split takes longer behind its first token
    /// and, layered, in prefill.
    pub measured_ms: f64,
    /// Median of the differences of the same round, prefill's own scatter included.
    pub paired_ms: f64,
    /// Low end of that median's 95% interval; null below five rounds.
    pub paired_low_ms: Option<f64>,
    /// High end.
    pub paired_high_ms: Option<f64>,
    /// What would have been projected, had the transfer taken nothing.
    pub without_transfer_ms: f64,
}

impl ScoredChange {
    /// Projected less measured.
    pub fn error_ms(&self) -> f64 {
        self.predicted_ms - self.measured_ms
    }

    /// Error of a prediction in which the transfer takes nothing.
    pub fn no_transfer_error_ms(&self) -> f64 {
        self.without_transfer_ms - self.measured_ms
    }

    /// Whether the error is within the bar.
    pub fn holds(&self) -> bool {
        self.is_within_bar(self.error_ms())
    }

    /// Whether a prediction in which the transfer takes nothing is within the bar too.
    fn holds_without_transfer(&self) -> bool {
        self.is_within_bar(self.no_transfer_error_ms())
    }

    fn is_within_bar(&self, error_ms: f64) -> bool {
        error_ms.abs() <= (CHANGE_ERROR_SHARE * self.measured_ms.abs()).max(CHANGE_ERROR_MS)
    }

    /// Whether the rounds scatter so much that the paired change could be what was predicted.
    pub fn is_within_scatter(&self) -> bool {
        let interval = self.paired_low_ms.zip(self.paired_high_ms);
        interval.is_some_and(|(low, high)| (low..=high).contains(&self.predicted_ms))
    }
}

/// One prompt in one mode.
#[derive(Clone, Debug, Serialize)]
pub struct ScoredRow {
    /// The run that it is held against.
    pub run: String,
    /// Prompt length.
    pub prompt_tokens: u32,
    /// Bulk or layered.
    pub transfer: Transfer,
    /// Prefill of that run over prefill of the projected one: how much the machine's own speed was
    /// another, which no fit of a link can know.
    pub prefill_ratio: f64,
    /// The same of the decode steps.
    pub decode_ratio: f64,
    /// Exposed transfer, projected.
    pub exposed_predicted_ms: f64,
    /// Exposed transfer, measured.
    pub exposed_measured_ms: f64,
    /// Change of the time to the second token; null without a single arm.
    pub ttst: Option<ScoredChange>,
    /// Change of E2E; null without a single arm.
    pub e2e: Option<ScoredChange>,
}

impl ScoredRow {
    /// Whether the exposed transfer is within the bar, which there is for bulk.
    pub fn exposed_holds(&self) -> bool {
        let off = self.exposed_predicted_ms / self.exposed_measured_ms - 1.0;
        self.transfer != Transfer::Bulk || off.abs() <= EXPOSED_ERROR_SHARE
    }

    /// The changes that could be scored.
    pub fn changes(&self) -> impl Iterator<Item = &ScoredChange> {
        self.ttst.iter().chain(&self.e2e)
    }
}

/// The errors of all changes against those of predicting that the transfer takes nothing.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AgainstNoTransfer {
    /// Mean error over the mean error of that prediction.
    pub share: f64,
    /// Whether it is within the bar.
    pub holds: bool,
    /// Whether that prediction is within the bar of every change too, as where all of the transfer
    /// is hidden: then the share tells nothing.
    pub no_transfer_holds: bool,
}

/// None without changes.
pub fn against_no_transfer(rows: &[ScoredRow]) -> Option<AgainstNoTransfer> {
    let sum = |of: fn(&ScoredChange) -> f64| -> f64 {
        rows.iter()
            .flat_map(ScoredRow::changes)
            .map(|c| of(c).abs())
            .sum()
    };
    let none_ms = sum(ScoredChange::no_transfer_error_ms);
    let mut changes = rows.iter().flat_map(ScoredRow::changes);
    let no_transfer_holds = changes.all(ScoredChange::holds_without_transfer);
    (none_ms > 0.0).then(|| {
        let share = sum(ScoredChange::error_ms) / none_ms;
        AgainstNoTransfer {
            share,
            holds: share <= NO_TRANSFER_ERROR_SHARE,
            no_transfer_holds,
        }
    })
}

/// Projects the prompts of `base` for a link and holds them against those of the same length of a
/// run over it. An error says why the two are not alike.
pub fn score(
    base: &Record,
    links: &Links,
    line_rate_gbps: Option<f64>,
    against: &Record,
    run: &str,
) -> anyhow::Result<Vec<ScoredRow>> {
    anyhow::ensure!(
        base.model.fingerprint == against.model.fingerprint
            && base.model.kv_bytes_per_token == against.model.kv_bytes_per_token,
        "--against {run} is of {} ({} KV bytes a token), the projected run of {} ({}): measure both \
         with the same --model, --weights and --kv-dtype",
        against.model.name,
        against.model.kv_bytes_per_token,
        base.model.name,
        base.model.kv_bytes_per_token,
    );
    let mut rows = Vec::new();
    for case in &base.cases {
        let is_same = |c: &&Case| {
            (c.prompt_tokens, c.output_tokens) == (case.prompt_tokens, case.output_tokens)
        };
        let Some(other) = against.cases.iter().find(is_same) else {
            continue;
        };
        let (Some(from), Some(seen)) = (Measured::of(base, case), Measured::of(against, other))
        else {
            continue;
        };
        let projection = tcp(&from, links, line_rate_gbps);
        let round_trip_ns = against.link.as_ref().and_then(|l| l.min_round_trip_ns());
        let requests = requests(other, round_trip_ns);
        for transfer in MODES {
            let Some(mode) = seen.mode(transfer) else {
                continue;
            };
            let estimate = projection.of(transfer);
            let waits_ms = estimate.exposed_ms.mid + estimate.tax_ms.mid;
            let changed = |predicted: Option<super::Range>, until: fn(&Figures) -> Option<u64>| {
                let predicted_ms = predicted?.mid;
                let (measured_ms, paired) = change(&seen, &requests, transfer, until)?;
                let interval = median_interval(&paired, DEFAULT_SEED);
                Some(ScoredChange {
                    predicted_ms,
                    measured_ms,
                    paired_ms: percentile(&paired, 0.5)?,
                    paired_low_ms: interval.map(|(low, _)| low),
                    paired_high_ms: interval.map(|(_, high)| high),
                    without_transfer_ms: predicted_ms - waits_ms,
                })
            };
            rows.push(ScoredRow {
                run: run.to_owned(),
                prompt_tokens: case.prompt_tokens,
                transfer,
                prefill_ratio: seen.prefill_ms / from.prefill_ms,
                decode_ratio: seen.decode_ms / from.decode_ms,
                exposed_predicted_ms: estimate.exposed_ms.mid,
                exposed_measured_ms: mode.exposed_ms,
                ttst: changed(estimate.ttst_change_ms, |f| f.ttst_ns),
                e2e: changed(estimate.e2e_change_ms, |f| f.e2e_ns),
            });
        }
    }
    anyhow::ensure!(
        !rows.is_empty(),
        "--against {run} has no prompt of a length and answer that the projected run has: measure \
         both with the same --prompt-tokens and --output-tokens"
    );
    Ok(rows)
}

/// How much longer than the one node a split took until an event: the median over rounds of the
/// differences, and these differences themselves, sorted. Where both prefill on the same node and
/// nothing is sent meanwhile, prefill is the same work, so its scatter stays out of the former.
fn change(
    seen: &Measured,
    requests: &[Request],
    transfer: Transfer,
    until: fn(&Figures) -> Option<u64>,
) -> Option<(f64, Vec<f64>)> {
    let node = seen.single_node?;
    let against =
        |of: &dyn Fn(&Request) -> Option<f64>| against_single(requests, node, &[transfer], of);
    let paired = against(&|r| r.ms(until));
    let behind = against(&|r| Some(r.ms(until)? - r.ms(|f| f.ttft_ns)?));
    let before_ms = match (node, transfer) {
        (Node::Prefill, Transfer::Bulk) => 0.0,
        (Node::Prefill, _) => {
            let split = (requests.iter()).filter(|r| r.is(Arm::Split, Some(transfer)));
            median(split.filter_map(|r| r.prefill_disturbed_ms(requests)))?
        }
        (Node::Decode, _) => percentile(&against(&|r| r.ms(|f| f.ttft_ns)), 0.5)?,
    };
    Some((before_ms + percentile(&behind, 0.5)?, paired))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_holds_within_a_tenth_or_a_millisecond() {
        let change = |predicted_ms, measured_ms| ScoredChange {
            predicted_ms,
            measured_ms,
            paired_ms: measured_ms,
            paired_low_ms: Some(measured_ms - 5.0),
            paired_high_ms: Some(measured_ms + 5.0),
            without_transfer_ms: 0.0,
        };
        assert!(change(109.0, 100.0).holds() && !change(111.0, 100.0).holds());
        assert!(change(1.9, 1.0).holds() && !change(2.1, 1.0).holds());
        assert!(change(4.0, 1.0).is_within_scatter() && !change(7.0, 1.0).is_within_scatter());
    }

    #[test]
    fn errors_against_no_transfer_tell_nothing_where_none_is_seen() {
        let row = |predicted_ms, measured_ms| ScoredRow {
            run: "seen".into(),
            prompt_tokens: 128,
            transfer: Transfer::Layered,
            prefill_ratio: 1.0,
            decode_ratio: 1.0,
            exposed_predicted_ms: 0.0,
            exposed_measured_ms: 0.0,
            ttst: Some(ScoredChange {
                predicted_ms,
                measured_ms,
                paired_ms: measured_ms,
                paired_low_ms: None,
                paired_high_ms: None,
                without_transfer_ms: 0.0,
            }),
            e2e: None,
        };
        let hidden = against_no_transfer(&[row(1.5, 0.5)]).unwrap();
        assert_eq!(
            (hidden.share, hidden.holds, hidden.no_transfer_holds),
            (2.0, false, true)
        );
        let both = against_no_transfer(&[row(1.5, 0.5), row(9.0, 9.5)]).unwrap();
        assert_eq!(
            (both.share, both.holds, both.no_transfer_holds),
            (0.15, true, false)
        );
        assert_eq!(against_no_transfer(&[]), None);
    }
}
