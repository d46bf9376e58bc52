//! The tables of a run's figures, and the summary of the prefill role.
//!
//! Everything here is text made from a [`Summary`]; what it means is `verdict`'s.

mod pipeline;

pub use pipeline::pipeline_summary;

use super::changes::CHANCE;
use super::document::Block;
use super::number::{count, one_line, significant};
use super::prose::wrapped;
use super::table::{NONE, Table, numbers, words};
use crate::metrics::Arm;
use crate::metrics::changes::SummaryChange;
use crate::metrics::summary::{Summary, SummaryArm, SummaryCase};
use crate::stats::{Change, Figure};

/// Significant digits of a table's figures.
const DIGITS: usize = 4;

/// A column of figures.
struct Column {
    /// Name over unit.
    head: [&'static str; 2],
    figure: fn(&SummaryArm) -> Option<Figure>,
    /// How it changes between arms, where that says something.
    change: Option<fn(&SummaryChange) -> Option<Change>>,
    /// The column with the smallest rank goes first where the width is too small.
    rank: u8,
}

const fn column(
    head: [&'static str; 2],
    figure: fn(&SummaryArm) -> Option<Figure>,
    change: Option<fn(&SummaryChange) -> Option<Change>>,
    rank: u8,
) -> Column {
    Column {
        head,
        figure,
        change,
        rank,
    }
}

const COLUMNS: [Column; 7] = [
    column(["TTFT", "ms"], |a| a.ttft_ms, Some(|c| c.ttft_ms), 3),
    column(["TTST", "ms"], |a| a.ttst_ms, Some(|c| c.ttst_ms), 2),
    column(["TPOT", "ms"], |a| a.tpot_ms, Some(|c| c.tpot_ms), 1),
    column(["E2E", "ms"], |a| a.e2e_ms, Some(|c| c.e2e_ms), 7),
    column(["exposed", "ms"], |a| a.exposed_transfer_ms, None, 5),
    column(
        ["overhead", "% of E2E"],
        |a| a.transfer_overhead_pct,
        None,
        6,
    ),
    column(["rate", "Gbps"], |a| a.effective_gbps, None, 4),
];

/// The arms of every case side by side, at most `width` columns wide: medians, how sure E2E is, a
/// row of ratios (`~` where the change may be chance), then how E2E changes and what the checks
/// gave. Columns that do not fit are left out.
pub fn comparison_table(summary: &Summary, width: usize) -> String {
    let mut columns: Vec<&Column> = COLUMNS.iter().collect();
    let table = loop {
        let table = terminal_table(summary, &columns);
        let is_wide = table.lines().any(|line| line.chars().count() > width);
        if !is_wide || columns.len() == 1 {
            break table;
        }
        let rank = columns.iter().map(|c| c.rank).min();
        columns.retain(|c| Some(c.rank) != rank);
    };
    let mut notes = vec![samples_note(summary) + "; ±: half of the median's 95% interval"];
    let mut arms = summary.cases.iter().flat_map(|c| &c.arms);
    let sends = arms.any(|arm| arm.exposed_transfer_ms.is_some());
    if sends && columns.iter().any(|c| c.head[0] == "TPOT") {
        notes.push("TPOT of a split holds exposed, spread over its tokens".to_owned());
    }
    notes.extend(super::changes::notes(summary));
    notes.extend(checks_note(summary));
    notes.extend(auto_notes(summary));
    notes.extend(super::lossy::notes(summary));
    notes.extend(failures(summary));
    let notes: Vec<String> = notes.iter().flat_map(|note| wrapped(note, width)).collect();
    format!("{table}\n{}\n", notes.join("\n"))
}

fn terminal_table(summary: &Summary, columns: &[&Column]) -> String {
    let heads = columns.iter().map(|c| numbers(c.head.join("\n")));
    let (first, last) = (
        [numbers("prompt\ntokens"), words("arm")],
        numbers("± %\nE2E"),
    );
    let mut table = Table::new(first.into_iter().chain(heads).chain([last]));
    for case in &summary.cases {
        let mut tokens = case.prompt_tokens.to_string();
        if case.arms.is_empty() {
            let nothing = columns.iter().map(|_| NONE.to_owned());
            let row = [tokens.clone(), "failed".to_owned()]
                .into_iter()
                .chain(nothing);
            table.push(row.chain([NONE.to_owned()]));
        }
        for arm in &case.arms {
            let figures = columns.iter().map(|c| median((c.figure)(arm)));
            let row = [std::mem::take(&mut tokens), name(case, arm, "\n")];
            table.push(row.into_iter().chain(figures).chain([spread(arm.e2e_ms)]));
        }
        if let Some((single, split)) = pair(case) {
            let change = case.change(single, split);
            let ratios = columns.iter().map(|c| match c.change {
                Some(of) => ratio((c.figure)(single), (c.figure)(split), change.and_then(of)),
                None => String::new(),
            });
            let row = [String::new(), "ratio".to_owned()]
                .into_iter()
                .chain(ratios);
            table.push(row.chain([String::new()]));
        }
    }
    table.to_terminal()
}

/// The same table with all columns, the prompts' names and the range of E2E, and what there is to
/// say of it.
pub(super) fn section(summary: &Summary) -> Vec<Block> {
    let table = figures_table(summary);
    let notes = [samples_note(summary)].into_iter();
    let notes = notes.chain(auto_notes(summary)).map(Block::text);
    [Block::Table(table)].into_iter().chain(notes).collect()
}

fn figures_table(summary: &Summary) -> Table {
    let lead = [
        words("prompt"),
        numbers("tokens"),
        words("arm"),
        numbers("n"),
    ];
    let figures = COLUMNS.iter().map(|c| numbers(c.head.join("\n")));
    let last = [
        numbers("E2E 95% interval\nms"),
        numbers("E2E min to max\nms"),
        words("check"),
    ];
    let mut table = Table::new(lead.into_iter().chain(figures).chain(last));
    for case in &summary.cases {
        let check = case.outputs.map_or(NONE.to_owned(), |o| o.to_string());
        let lead = |arm: String, n: String| {
            [case.prompt.clone(), case.prompt_tokens.to_string(), arm, n].into_iter()
        };
        if case.arms.is_empty() {
            let nothing = COLUMNS.iter().map(|_| NONE.to_owned());
            let last = [NONE.to_owned(), NONE.to_owned(), check.clone()];
            table.push(lead("failed".into(), "0".into()).chain(nothing).chain(last));
        }
        for arm in &case.arms {
            let figures = COLUMNS.iter().map(|c| median((c.figure)(arm)));
            let range = |ends: Option<(f64, f64)>| {
                ends.map_or(NONE.to_owned(), |(low, high)| {
                    let (low, high) = (significant(low, DIGITS), significant(high, DIGITS));
                    format!("{low} to {high}")
                })
            };
            let interval = range(arm.e2e_ms.and_then(|f| f.interval()));
            let range = range(arm.e2e_ms.map(|f| (f.min, f.max)));
            let n = arm.e2e_ms.map_or(0, |f| f.n).to_string();
            let row = lead(name(case, arm, " "), n).chain(figures);
            table.push(row.chain([interval, range, check.clone()]));
        }
    }
    table
}

fn median(figure: Option<Figure>) -> String {
    figure.map_or(NONE.to_owned(), |f| significant(f.median, DIGITS))
}

/// Half of the median's interval, in percent of the median.
fn spread(figure: Option<Figure>) -> String {
    let percent = |f: Figure| {
        let (low, high) = f.interval()?;
        (f.median > 0.0).then(|| 50.0 * (high - low) / f.median)
    };
    figure
        .and_then(percent)
        .map_or(NONE.to_owned(), |percent| format!("{percent:.1}"))
}

/// How many times the single arm's time the split arm takes, unless that may be chance.
fn ratio(single: Option<Figure>, split: Option<Figure>, change: Option<Change>) -> String {
    match (single, split) {
        _ if change.is_some_and(|change| !change.significant) => CHANCE.to_owned(),
        (Some(single), Some(split)) if single.median > 0.0 => {
            format!("{:.2}x", split.median / single.median)
        }
        _ => NONE.to_owned(),
    }
}

/// Both arms of a case that ran in one way each.
fn pair(case: &SummaryCase) -> Option<(&SummaryArm, &SummaryArm)> {
    match case.arms.as_slice() {
        [a, b] if (a.arm, b.arm) == (Arm::Single, Arm::Split) => Some((a, b)),
        _ => None,
    }
}

/// An arm's name, with what tells it from other ways of running the same arm.
pub(super) fn name(case: &SummaryCase, arm: &SummaryArm, separator: &str) -> String {
    let mut name = arm.arm.to_string();
    if case.arms.iter().filter(|a| a.arm == arm.arm).count() > 1 {
        name += separator;
        name += &match arm.transfer {
            None => format!("@{}", arm.node),
            Some(transfer) => format!("{transfer} x{}", arm.streams),
        };
    }
    // What is lossy is never shown without its name.
    if let Some(dtype) = arm.wire_dtype.filter(|dtype| dtype.is_lossy()) {
        name += &format!(" {dtype}");
    }
    name
}

fn samples_note(summary: &Summary) -> String {
    let arms = summary.cases.iter().flat_map(|c| &c.arms);
    let counts: Vec<usize> = arms.map(|a| a.e2e_ms.map_or(0, |f| f.n)).collect();
    let (Some(min), Some(max)) = (counts.iter().min(), counts.iter().max()) else {
        return "no request was measured".to_owned();
    };
    let samples = match min == max {
        true => count(*min, "sample"),
        false => format!("{min} to {max} samples"),
    };
    format!(
        "medians of {samples} an arm; exposed: transfer that the request waited for; rate: KV payload over wire-busy time, decimal Gbps"
    )
}

fn checks_note(summary: &Summary) -> Option<String> {
    let checked = summary.cases.iter().filter(|c| c.outputs.is_some()).count();
    summary.outputs.map(|outputs| {
        format!(
            "check: outputs {outputs} ({} of {} compared)",
            checked,
            count(summary.cases.len(), "prompt")
        )
    })
}

/// What `auto` picked, and whether its prediction held.
fn auto_notes(summary: &Summary) -> Vec<String> {
    let arms = (summary.cases.iter()).flat_map(|c| c.arms.iter().map(move |a| (c, a)));
    arms.filter_map(|(case, arm)| Some((case, arm, arm.auto?)))
        .map(|(case, arm, auto)| {
            let picked = match (auto.bulk, auto.layered) {
                (bulk, 0) => format!("bulk in {bulk}"),
                (0, layered) => format!("layered in {layered}"),
                (bulk, layered) => format!("bulk in {bulk} and layered in {layered}"),
            };
            let ms = |figure: Option<Figure>| {
                figure.map_or("unknown".to_owned(), |f| format!("{} ms", significant(f.median, 3)))
            };
            format!(
                "auto at {} tokens: {picked} of {}; predicted to wait {} in bulk and {} layered, measured {}",
                case.prompt_tokens,
                count(auto.bulk + auto.layered, "request"),
                ms(auto.bulk_exposed_ms),
                ms(auto.layered_exposed_ms),
                ms(arm.exposed_transfer_ms),
            )
        })
        .collect()
}

fn failures(summary: &Summary) -> Vec<String> {
    let failed = summary
        .cases
        .iter()
        .filter_map(|c| Some((c, c.errors.first()?)));
    failed
        .map(|(case, first)| {
            format!(
                "failed: {} of prompt {} ({} tokens): {}",
                count(case.errors.len(), "request"),
                one_line(&case.prompt, 40),
                case.prompt_tokens,
                one_line(first, 200),
            )
        })
        .collect()
}

#[cfg(test)]
mod tests;
