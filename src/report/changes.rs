//! How arms differ, with intervals: the lines under the terminal's table, a section of the
//! report.

use super::document::Block;
use super::number::{significant, small};
use super::table::{NONE, Table, numbers, words};
use super::tables::name;
use crate::metrics::changes::SummaryChange;
use crate::metrics::summary::{Summary, SummaryCase};
use crate::stats::{Change, Estimate};

/// Significant digits of times.
const DIGITS: usize = 3;

/// Stands for a change that may be chance.
pub const CHANCE: &str = "~";

/// How E2E changes in every case, one line each.
pub(super) fn notes(summary: &Summary) -> Vec<String> {
    let mut notes = Vec::new();
    for (case, change) in all(summary) {
        let Some(e2e) = change.e2e_ms else { continue };
        notes.push(format!(
            "  {} tokens, {}: {}{}, p {}",
            case.prompt_tokens,
            arms(case, change),
            if e2e.significant { "" } else { "~ " },
            percent(e2e.pct),
            probability(e2e.shift.p),
        ));
    }
    if !notes.is_empty() {
        let title = "change of E2E, pair by pair, with its 95% interval; ~: may be chance";
        notes.insert(0, title.to_owned());
    }
    notes.extend(stops(summary));
    notes.extend(outliers(summary));
    notes
}

/// What ended `--repeats auto`.
fn stops(summary: &Summary) -> Vec<String> {
    let stopped = summary.cases.iter().filter_map(|c| Some((c, c.stopped?)));
    stopped
        .map(|(case, stopped)| {
            let (tokens, repeats) = (case.prompt_tokens, stopped.repeats);
            format!("repeats at {tokens} tokens: {repeats}; {stopped}")
        })
        .collect()
}

/// Where E2E has samples far outside the others.
fn outliers(summary: &Summary) -> Option<String> {
    let arms = summary
        .cases
        .iter()
        .flat_map(|c| c.arms.iter().map(move |a| (c, a)));
    let some = arms.filter_map(|(case, arm)| {
        let figure = arm.e2e_ms.filter(|figure| figure.outliers > 0)?;
        let (tokens, arm) = (case.prompt_tokens, name(case, arm, " "));
        Some(format!(
            "{} of {} ({arm}, {tokens} tokens)",
            figure.outliers, figure.n
        ))
    });
    let some: Vec<String> = some.collect();
    (!some.is_empty())
        .then(|| format!("outliers of E2E, kept in every figure: {}", some.join(", ")))
}

/// Every change of every figure, as a table, and what there is to say of it.
pub(super) fn section(summary: &Summary) -> Vec<Block> {
    let table = table(summary);
    let mut blocks = Vec::new();
    if !table.is_empty() {
        blocks.extend([Block::Table(table), Block::text(TABLE_NOTE)]);
    }
    let notes = stops(summary).into_iter().chain(outliers(summary));
    blocks.extend(notes.map(Block::text));
    blocks
}

/// What the columns of the table mean.
const TABLE_NOTE: &str = "The second arm less the first. Change: median over the pairs of one repeat, with its BCa \
     bootstrap interval; without pairs, the shift. Shift: Hodges-Lehmann, over all samples, with the \
     two-sided Mann-Whitney p. ~: not significant at 5% (METHODOLOGY.md, Statistics).";

fn table(summary: &Summary) -> Table {
    let mut table = Table::new([
        words("prompt"),
        numbers("tokens"),
        words("arms"),
        words("figure"),
        numbers("change\nms"),
        numbers("95% interval"),
        numbers("change\n%"),
        numbers("shift\nms"),
        numbers("p"),
        numbers("pairs"),
    ]);
    for (case, change) in all(summary) {
        let figures = [
            ("TTFT", change.ttft_ms),
            ("TTST", change.ttst_ms),
            ("TPOT", change.tpot_ms),
            ("E2E", change.e2e_ms),
        ];
        for (figure, change_of) in figures {
            let Some(of) = change_of else { continue };
            let lead = [
                case.prompt.clone(),
                case.prompt_tokens.to_string(),
                arms(case, change),
                figure.to_owned(),
            ];
            table.push(lead.into_iter().chain(row(&of)));
        }
    }
    table
}

fn row(change: &Change) -> [String; 6] {
    let absolute = change.absolute();
    [
        match change.significant {
            true => signed(absolute.value),
            false => format!("{CHANCE} {}", signed(absolute.value)),
        },
        interval(absolute, "").unwrap_or(NONE.to_owned()),
        change.pct.map_or(NONE.to_owned(), |pct| signed(pct.value)),
        signed(change.shift.shift),
        probability(change.shift.p),
        change.difference.map_or(0, |d| d.n).to_string(),
    ]
}

fn all(summary: &Summary) -> impl Iterator<Item = (&SummaryCase, &SummaryChange)> {
    let cases = summary.cases.iter();
    cases.flat_map(|case| case.changes.iter().map(move |change| (case, change)))
}

/// `split against single`, with what tells them from other ways of running these arms.
fn arms(case: &SummaryCase, change: &SummaryChange) -> String {
    let name = |key| {
        case.arm_of(key)
            .map_or(String::new(), |arm| name(case, arm, " "))
    };
    format!("{} against {}", name(change.to), name(change.from))
}

/// `+1.20% (+0.80 to +1.60)`.
pub fn percent(estimate: Option<Estimate>) -> String {
    let Some(estimate) = estimate else {
        return NONE.to_owned();
    };
    match interval(estimate, "") {
        Some(interval) => format!("{}% ({interval})", signed(estimate.value)),
        None => format!(
            "{}% (too few samples for an interval)",
            signed(estimate.value)
        ),
    }
}

/// Both ends of an interval, as `+0.80 to +1.60`.
pub fn interval(estimate: Estimate, unit: &str) -> Option<String> {
    let (low, high) = estimate.interval()?;
    Some(format!("{} to {}{unit}", signed(low), signed(high)))
}

/// A number with its sign, whichever it is.
pub fn signed(value: f64) -> String {
    let text = significant(value, DIGITS);
    match text.starts_with('-') {
        true => text,
        false => format!("+{text}"),
    }
}

/// A probability with two digits.
pub fn probability(p: f64) -> String {
    match p {
        _ if p > 0.995 => "1".to_owned(),
        _ if p < 1e-4 => "< 0.0001".to_owned(),
        _ => small(p),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::{Stopped, StoppedBy};
    use crate::report::fixture::{record, usual_case};

    fn summary() -> Summary {
        Summary::of(&record(vec![usual_case(512)]))
    }

    #[test]
    fn a_change_has_its_interval_and_p() {
        let notes = notes(&summary());
        assert_eq!(
            notes[0],
            "change of E2E, pair by pair, with its 95% interval; ~: may be chance"
        );
        assert!(
            notes[1].starts_with("  512 tokens, split against single: +0.66% (+0.6"),
            "{notes:?}"
        );
        assert!(notes[1].ends_with("p 0.0079"), "{notes:?}");
        assert_eq!(notes.len(), 2);
    }

    #[test]
    fn what_may_be_chance_is_marked() {
        let table = table(&summary()).to_markdown();
        let row = |figure: &str| -> Vec<String> {
            let line = table
                .lines()
                .find(|l| l.contains(&format!("| {figure} ")))
                .unwrap();
            line.split('|').map(|cell| cell.trim().to_owned()).collect()
        };
        assert_eq!(row("TTFT")[5..7], ["~ +0.00", "+0.00 to +0.00"]);
        assert_eq!(row("E2E")[5..7], ["+9.84", "+9.84 to +9.84"]);
        assert_eq!(row("E2E")[9..11], ["0.0079", "5"]);
    }

    #[test]
    fn what_ended_the_rounds_and_what_lies_outside_are_said() {
        let mut summary = summary();
        summary.cases[0].stopped = Some(Stopped {
            by: StoppedBy::TimeBudget,
            repeats: 7,
            wanted_pct: 2.0,
            reached_pct: Some(3.456),
        });
        summary.cases[0].arms[1].e2e_ms.as_mut().unwrap().outliers = 1;
        let text = notes(&summary).join("\n");
        assert!(text.contains(
            "repeats at 512 tokens: 7; --time-budget ended it, its interval of 3.46% wider than the 2% of --ci-width"
        ), "{text}");
        assert!(
            text.ends_with("outliers of E2E, kept in every figure: 1 of 5 (split, 512 tokens)"),
            "{text}"
        );
        let said = section(&summary)
            .into_iter()
            .filter_map(|block| match block {
                Block::Text { text } => Some(text),
                _ => None,
            });
        assert!(said.collect::<String>().contains("--time-budget ended it"));
    }

    #[test]
    fn numbers_have_their_sign() {
        assert_eq!(
            (signed(1.5), signed(-1.5), signed(0.0)),
            ("+1.50".into(), "-1.50".into(), "+0.00".into())
        );
        assert_eq!(probability(0.00793), "0.0079");
        assert_eq!(
            (probability(1.0), probability(1e-9)),
            ("1".into(), "< 0.0001".into())
        );
    }
}
