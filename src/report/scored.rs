//! Projections held against measurement, as tables: a run's own link against its own transfers, and
//! one run over the link of another.

use super::number::{one_line, significant};
use super::projected::plain_table;
use super::table::{NONE, Table, numbers, words};
use crate::metrics::{Record, Transfer};
use crate::projection::{Links, Measured, ScoredChange, ScoredRow, against_no_transfer, predict};

/// What the run's link, as it was fitted before the first request, says of the run's own exposed
/// transfers; `None` where it was not fitted or nothing was sent.
pub(super) fn own_score(record: &Record) -> Option<Table> {
    let links = Links::as_fitted(record)?;
    let mut table = Table::new([
        numbers("prompt\ntokens"),
        words("mode"),
        numbers("exposed, predicted\nms"),
        numbers("measured\nms"),
        numbers("error\nms"),
        numbers("error\n%"),
    ]);
    for case in &record.cases {
        let Some(measured) = Measured::of(record, case) else {
            continue;
        };
        for mode in &measured.modes {
            let Some(said_ms) = predict(record, case, &links, mode.transfer) else {
                continue;
            };
            let was_ms = mode.exposed_ms;
            table.push([
                case.prompt_tokens.to_string(),
                mode.transfer.to_string(),
                significant(said_ms, 3),
                significant(was_ms, 3),
                significant(said_ms - was_ms, 3),
                off_pct(said_ms, was_ms),
            ]);
        }
    }
    (!table.is_empty()).then_some(table)
}

/// A projection held against runs: a table a run, three rows a prompt and mode.
pub fn score_table(rows: &[ScoredRow]) -> String {
    let heads = [
        "mode", "tokens", "", "said", "was", "off", "%", "paired", "bar",
    ];
    let mut lines = Vec::new();
    for of_run in rows.chunk_by(|a, b| a.run == b.run) {
        let cells = of_run.iter().flat_map(|row| {
            let case = [row.transfer.to_string(), row.prompt_tokens.to_string()];
            let blank = [String::new(), String::new()];
            let lead = std::iter::once(case).chain(std::iter::repeat(blank));
            (lead.zip(scored(row))).map(|(lead, scored)| scored.after(&lead))
        });
        lines.push(format!("against {}", one_line(&of_run[0].run, 60)));
        lines.push(plain_table(&heads, cells.collect()));
        lines.extend(of_run.iter().map(|row| {
            format!(
                "{} {}: prefill took {:.2}x, decode steps {:.2}x what the projected run's did",
                row.transfer, row.prompt_tokens, row.prefill_ratio, row.decode_ratio
            )
        }));
        lines.push(String::new());
    }
    lines.extend(against_no_transfer(rows).map(|errors| {
        format!(
            "errors of all changes are {:.2} of those of predicting no transfer at all:\n{}",
            errors.share,
            match (errors.no_transfer_holds, errors.holds) {
                (true, _) => "the bar of 0.2 tells nothing here, as that prediction holds too",
                (false, true) => "within the bar of 0.2",
                (false, false) => "MISSES the bar of 0.2",
            }
        )
    }));
    lines.push(SCORE_NOTE.to_owned());
    lines.join("\n")
}

/// A quantity as it was projected and as it was measured, in cells.
struct Scored {
    name: &'static str,
    said_ms: f64,
    was_ms: f64,
    /// The interval of the paired difference, or that difference; none for the exposed transfer.
    paired: Option<String>,
    judged: &'static str,
}

impl Scored {
    /// A row of the terminal's table behind its first cells.
    fn after(self, lead: &[String]) -> Vec<String> {
        let ms = |value: f64| significant(value, 4);
        let cells = [
            self.name.to_owned(),
            ms(self.said_ms),
            ms(self.was_ms),
            significant(self.said_ms - self.was_ms, 3),
            off_pct(self.said_ms, self.was_ms),
            self.paired.unwrap_or(NONE.to_owned()),
            self.judged.to_owned(),
        ];
        lead.iter().cloned().chain(cells).collect()
    }
}

/// Exposed transfer and both changes of a prompt in one mode.
fn scored(row: &ScoredRow) -> impl Iterator<Item = Scored> {
    let of_change = |name, change: &ScoredChange| {
        let ms = |value: f64| significant(value, 4);
        let interval = change.paired_low_ms.zip(change.paired_high_ms);
        let interval = interval.map(|(low, high)| format!("{}..{}", ms(low), ms(high)));
        Scored {
            name,
            said_ms: change.predicted_ms,
            was_ms: change.measured_ms,
            paired: Some(interval.unwrap_or_else(|| ms(change.paired_ms))),
            judged: match (change.holds(), change.is_within_scatter()) {
                (true, _) => "holds",
                (false, true) => "scatter",
                (false, false) => "MISSES",
            },
        }
    };
    let exposed = Scored {
        name: "exposed",
        said_ms: row.exposed_predicted_ms,
        was_ms: row.exposed_measured_ms,
        paired: None,
        judged: match (row.transfer, row.exposed_holds()) {
            (Transfer::Bulk, true) => "holds",
            (Transfer::Bulk, false) => "MISSES",
            _ => NONE,
        },
    };
    let ttst = row.ttst.as_ref().map(|c| of_change("TTST +", c));
    let e2e = row.e2e.as_ref().map(|c| of_change("E2E +", c));
    std::iter::once(exposed).chain(ttst).chain(e2e)
}

/// The same rows as a table of a report.
pub(super) fn scores(rows: &[ScoredRow]) -> Table {
    let mut table = Table::new([
        words("run"),
        words("mode"),
        numbers("prompt\ntokens"),
        words("of"),
        numbers("predicted\nms"),
        numbers("measured\nms"),
        numbers("error\nms"),
        numbers("error\n%"),
        words("bar"),
    ]);
    for row in rows {
        for scored in scored(row) {
            table.push([
                row.run.clone(),
                row.transfer.to_string(),
                row.prompt_tokens.to_string(),
                scored.name.to_owned(),
                significant(scored.said_ms, 4),
                significant(scored.was_ms, 4),
                significant(scored.said_ms - scored.was_ms, 3),
                off_pct(scored.said_ms, scored.was_ms),
                scored.judged.to_owned(),
            ]);
        }
    }
    table
}

/// What the columns of a score mean.
const SCORE_NOTE: &str = "\
ms; said: projected; was: measured; off: said less was; +: split less one node,
median of the differences of same rounds; paired: 95% interval of these,
prefill's own scatter included. Bar: exposed in bulk within 10%, a change within
10% or 1 ms; scatter: beyond it, and the prediction lies within the paired
interval";

/// How far a prediction is off, in percent of what was measured.
fn off_pct(said_ms: f64, was_ms: f64) -> String {
    match was_ms == 0.0 {
        true => NONE.to_owned(),
        false => format!("{:+.1}", 100.0 * (said_ms / was_ms - 1.0)),
    }
}
