//! The figures that answer first, of the longest prompt: what stands above all tables.

use serde::Serialize;

use super::changes::{CHANCE, interval, signed};
use super::number::significant;
use super::table::{Table, numbers, words};
use crate::metrics::Arm;
use crate::metrics::summary::{Summary, SummaryArm, SummaryCase};
use crate::stats::{Estimate, Figure};
use crate::verdict::fastest;

/// Significant digits of a figure.
const DIGITS: usize = 3;

/// One figure with how sure it is.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct KeyFigure {
    /// What it is of.
    pub(super) name: String,
    /// With its unit.
    pub(super) value: String,
    /// Its 95% interval, with the unit; empty with too few samples.
    pub(super) interval: String,
    /// What to read it by.
    pub(super) note: String,
}

impl KeyFigure {
    fn new(name: &str, value: String, interval: Option<String>, note: impl Into<String>) -> Self {
        Self {
            name: name.to_owned(),
            value,
            interval: interval.unwrap_or_default(),
            note: note.into(),
        }
    }

    /// A median with its interval; nothing where there is no such figure.
    fn median(
        name: &str,
        figure: Option<Figure>,
        unit: &str,
        note: impl Into<String>,
    ) -> Option<Self> {
        let figure = figure?;
        let value = format!("{} {unit}", significant(figure.median, DIGITS));
        let ends = figure.interval().map(|(low, high)| {
            let (low, high) = (significant(low, DIGITS), significant(high, DIGITS));
            format!("{low} to {high} {unit}")
        });
        Some(Self::new(name, value, ends, note))
    }

    /// A change in percent.
    fn change(name: &str, pct: Estimate, is_significant: bool) -> Self {
        let chance = match is_significant {
            true => String::new(),
            false => format!("{CHANCE} "),
        };
        let note = match is_significant {
            true => "split against one node",
            false => "split against one node; may be chance",
        };
        let value = format!("{chance}{}%", signed(pct.value));
        Self::new(name, value, interval(pct, "%"), note)
    }
}

/// Of the longest prompt that was measured; empty without one.
pub(super) fn of(summary: &Summary) -> Vec<KeyFigure> {
    let measured = summary.cases.iter().filter(|c| !c.arms.is_empty());
    let Some(case) = measured.max_by_key(|c| c.prompt_tokens) else {
        return Vec::new();
    };
    let single = fastest(case, Arm::Single).map(|(arm, _)| arm);
    let split = fastest(case, Arm::Split).map(|(arm, _)| arm);
    let mut figures = Vec::new();
    figures.extend(single.and_then(|arm| end_to_end(case, arm, "one node")));
    figures.extend(split.and_then(|arm| end_to_end(case, arm, "split")));
    if let Some((single, split)) = single.zip(split)
        && let Some(e2e) = case.change(single, split).and_then(|c| c.e2e_ms)
        && let Some(pct) = e2e.pct
    {
        figures.push(KeyFigure::change("change of E2E", pct, e2e.significant));
    }
    if let Some(arm) = split {
        figures.extend(transfer(arm));
    } else if let Some(arm) = single {
        let note = "request start to first token";
        figures.extend(KeyFigure::median("TTFT", arm.ttft_ms, "ms", note));
        let note = "each further token";
        figures.extend(KeyFigure::median("TPOT", arm.tpot_ms, "ms", note));
    }
    figures.extend(stalls(summary));
    figures
}

fn end_to_end(case: &SummaryCase, arm: &SummaryArm, name: &str) -> Option<KeyFigure> {
    let note = format!(
        "{} prompt tokens, {} output tokens",
        case.prompt_tokens, case.output_tokens
    );
    KeyFigure::median(&format!("E2E, {name}"), arm.e2e_ms, "ms", note)
}

/// What a split pays and how fast its link was.
fn transfer(arm: &SummaryArm) -> impl Iterator<Item = KeyFigure> {
    let share = arm.transfer_overhead_pct.map_or(String::new(), |f| {
        format!("{}% of E2E", significant(f.median, DIGITS))
    });
    let exposed = "exposed transfer";
    let sent = format!(
        "{} MB of KV cache a request",
        significant(arm.wire_bytes as f64 / 1e6, DIGITS)
    );
    let rate = "effective rate";
    [
        KeyFigure::median(exposed, arm.exposed_transfer_ms, "ms", share),
        KeyFigure::median(rate, arm.effective_gbps, "Gbps", sent),
    ]
    .into_iter()
    .flatten()
}

/// The worst stall of a running sequence, on one node and split.
fn stalls(summary: &Summary) -> Vec<KeyFigure> {
    let arms = summary.interference.iter().flat_map(|i| &i.arms);
    arms.filter_map(|arm| {
        let name = format!("worst gap, {}", arm.way());
        KeyFigure::median(&name, arm.worst_itl_ms, "ms", "of a running sequence")
    })
    .collect()
}

/// The same as a table.
pub(super) fn table(figures: &[KeyFigure]) -> Table {
    let columns = [
        words("figure"),
        numbers("median"),
        numbers("95% interval"),
        words("of"),
    ];
    let mut table = Table::new(columns);
    for figure in figures {
        let KeyFigure {
            name,
            value,
            interval,
            note,
        } = figure.clone();
        table.push([name, value, interval, note]);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::fixture::{interference, record, usual_case};

    fn names(figures: &[KeyFigure]) -> Vec<&str> {
        figures.iter().map(|f| f.name.as_str()).collect()
    }

    #[test]
    fn the_longest_prompt_speaks() {
        let mut record = record(vec![usual_case(512), usual_case(128)]);
        record.interference = Some(interference());
        let figures = of(&Summary::of(&record));
        assert_eq!(
            names(&figures),
            [
                "E2E, one node",
                "E2E, split",
                "change of E2E",
                "exposed transfer",
                "effective rate",
                "worst gap, single, whole prompt",
                "worst gap, single, chunks of 256",
                "worst gap, split",
            ]
        );
        assert_eq!(figures[0].note, "512 prompt tokens, 50 output tokens");
        assert_eq!(figures[2].value, "+0.66%");
        assert!(figures[2].interval.starts_with("+0.6"), "{figures:?}");
        assert_eq!(figures[3].value, "9.44 ms");
        assert_eq!(figures[3].note, "0.63% of E2E");
        assert_eq!(figures[4].value, "10.0 Gbps");
    }

    #[test]
    fn one_arm_has_no_change() {
        let mut case = usual_case(512);
        case.samples.retain(|s| s.arm == Arm::Single);
        let figures = of(&Summary::of(&record(vec![case])));
        assert_eq!(names(&figures), ["E2E, one node", "TTFT", "TPOT"]);
        assert!(of(&Summary::of(&record(vec![]))).is_empty());
    }
}
