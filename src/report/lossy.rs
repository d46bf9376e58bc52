//! What lossy wire formats save and cost: a line under the tables, a section of the report.

use super::document::Block;
use super::number::{count, significant, small};
use super::table::{NONE, Table, numbers, words};
use super::tables;
use crate::metrics::summary::{Summary, SummaryArm, SummaryCase};
use crate::stats::Figure;

/// Significant digits of bytes, times and shares.
const DIGITS: usize = 3;

/// What each format cost over all prompts, in a line.
pub(super) fn notes(summary: &Summary) -> Vec<String> {
    let costs = || summary.cases.iter().flat_map(|case| &case.lossy);
    let mut dtypes: Vec<_> = costs().map(|cost| cost.wire_dtype).collect();
    dtypes.sort();
    dtypes.dedup();
    let notes = dtypes.into_iter().map(|dtype| {
        let of_dtype = || costs().filter(|cost| cost.wire_dtype == dtype);
        let steps = of_dtype().map(|cost| f64::from(cost.steps)).sum::<f64>();
        let same = of_dtype().map(|cost| cost.same_top_pct * f64::from(cost.steps));
        let same_pct = same.sum::<f64>() / steps;
        let sums: Option<Vec<f64>> = of_dtype()
            .map(|cost| Some(cost.kl_mean_nats? * f64::from(cost.steps)))
            .collect();
        let mean = sums.map(|sums| sums.iter().sum::<f64>() / steps);
        let largest: Option<Vec<f64>> = of_dtype().map(|cost| cost.kl_max_nats).collect();
        let largest = largest.and_then(|all| all.into_iter().max_by(f64::total_cmp));
        format!(
            "{dtype} is lossy: KL(single || {dtype}) {} nats in the mean, {} at most; the best token is the same in {}% of {} over {}",
            nats(mean),
            nats(largest),
            significant(same_pct, DIGITS),
            count(steps as usize, "step"),
            count(of_dtype().count(), "prompt"),
        )
    });
    notes.collect()
}

/// Every lossy arm beside the one that differs from it in nothing but the wire format.
pub(super) fn section(summary: &Summary) -> Vec<Block> {
    let table = table(summary);
    match table.is_empty() {
        true => Vec::new(),
        false => vec![Block::Table(table), Block::text(TABLE_NOTE)],
    }
}

/// What lossy means, and how its cost is measured.
const TABLE_NOTE: &str = "Lossy: decode starts from another cache than prefill left, so the answers of these arms are in \
     no check of outputs. What that costs is measured by teacher forcing on the prefill node, \
     untimed: the single arm's tokens from the exact cache and from the quantised one, KL(single || \
     lossy) over the whole vocabulary at every step after the first token.";

fn table(summary: &Summary) -> Table {
    let figures = [
        "MB sent",
        "instead of",
        "exposed\nms",
        "instead of",
        "E2E\nms",
        "instead of",
        "KL mean\nnats",
        "KL max\nnats",
        "same best token",
        "equal greedy tokens",
    ];
    let lead = [words("prompt"), numbers("tokens"), words("arm")];
    let mut table = Table::new(lead.into_iter().chain(figures.map(numbers)));
    for case in &summary.cases {
        for arm in case.arms.iter().filter(|arm| arm.is_lossy()) {
            table.push(row(case, arm));
        }
    }
    table
}

fn row(case: &SummaryCase, arm: &SummaryArm) -> Vec<String> {
    let twin = case.lossless_twin(arm);
    let cost = case.cost_of(arm);
    let megabytes = |arm: &SummaryArm| significant(arm.wire_bytes as f64 / 1e6, DIGITS);
    let median = |figure: Option<Figure>| or_none(figure.map(|f| f.median));
    vec![
        case.prompt.clone(),
        case.prompt_tokens.to_string(),
        tables::name(case, arm, " "),
        megabytes(arm),
        twin.map_or(NONE.to_owned(), megabytes),
        median(arm.exposed_transfer_ms),
        median(twin.and_then(|t| t.exposed_transfer_ms)),
        median(arm.e2e_ms),
        median(twin.and_then(|t| t.e2e_ms)),
        nats(cost.and_then(|c| c.kl_mean_nats)),
        nats(cost.and_then(|c| c.kl_max_nats)),
        cost.map_or(NONE.to_owned(), |c| {
            let share = significant(c.same_top_pct, DIGITS);
            format!("{share}% of {}", count(c.steps as usize, "step"))
        }),
        cost.map_or(NONE.to_owned(), |c| {
            format!("{} of {}", c.same_tokens, c.steps + 1)
        }),
    ]
}

fn nats(value: Option<f64>) -> String {
    value.map_or(NONE.to_owned(), small)
}

fn or_none(value: Option<f64>) -> String {
    value.map_or(NONE.to_owned(), |value| significant(value, DIGITS))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::fixture::{record, usual_case, with_int8};

    #[test]
    fn what_is_saved_stands_beside_what_it_costs() {
        let case = with_int8(usual_case(512));
        let summary = Summary::of(&record(vec![case]));
        let table = table(&summary).to_markdown();
        let row: Vec<&str> = table
            .lines()
            .nth(2)
            .unwrap()
            .split('|')
            .map(str::trim)
            .collect();
        assert_eq!(row[2..6], ["512", "split bulk x1 int8", "5.90", "11.8"]);
        assert_eq!(row[6..8], ["4.72", "9.44"]);
        assert_eq!(
            row[10..14],
            ["0.0020", "0.030", "98.0% of 49 steps", "7 of 50"]
        );
        let notes = notes(&summary);
        assert_eq!(
            notes,
            [
                "int8 is lossy: KL(single || int8) 0.0020 nats in the mean, 0.030 at most; the best \
                 token is the same in 98.0% of 49 steps over 1 prompt"
            ]
        );
    }

    #[test]
    fn formats_that_lose_nothing_have_no_section() {
        let summary = Summary::of(&record(vec![usual_case(512)]));
        assert!(section(&summary).is_empty() && notes(&summary).is_empty());
    }

    #[test]
    fn what_was_not_measured_is_a_dash() {
        let mut case = with_int8(usual_case(512));
        case.lossy.clear();
        case.samples.retain(|s| s.is_lossy());
        let summary = Summary::of(&record(vec![case]));
        let table = table(&summary).to_markdown();
        let row = table.lines().nth(2).unwrap();
        let dashes = row.split('|').filter(|cell| cell.trim() == NONE);
        assert_eq!(dashes.count(), 7, "{row}");
        assert!(notes(&summary).is_empty());
    }
}
