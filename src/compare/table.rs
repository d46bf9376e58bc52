//! A comparison as people see it: a block of lines for every prompt and arm, or a Markdown table.

use tabled::builder::Builder;
use tabled::settings::object::Columns;
use tabled::settings::{Alignment, Modify, Style};

use super::{ComparedArm, ComparedCase, ComparedFigure, Comparison, RunName};
use crate::metrics::changes::ArmKey;
use crate::report::changes::{CHANCE, interval, probability, signed};
use crate::report::number::{one_line, significant};
use crate::report::prose::unpadded;
use crate::report::table::{cell, escaped};

/// Significant digits of medians.
const DIGITS: usize = 4;

/// An arm with all that tells it from others.
pub(super) fn name(key: &ArmKey) -> String {
    let mut name = key.arm.to_string();
    match key.transfer {
        None => name += &format!("@{}", key.node),
        Some(transfer) => name += &format!(" {transfer} x{}", key.streams),
    }
    if let Some(dtype) = key.wire_dtype.filter(|dtype| dtype.is_lossy()) {
        name += &format!(" {dtype}");
    }
    name
}

impl RunName {
    fn line(&self) -> String {
        format!(
            "{}, revision {}, on {}",
            self.started_at, self.git_revision, self.host
        )
    }
}

impl Comparison {
    /// For a terminal.
    pub fn to_terminal(&self) -> String {
        let mut parts = vec![format!(
            "old: {}\nnew: {}",
            self.old.line(),
            self.new.line()
        )];
        for case in &self.cases {
            parts.extend(case.arms.iter().map(|arm| block(case, arm)));
        }
        parts.push(format!(
            "medians; change: Hodges-Lehmann shift in percent of the old median, with its 95%\ninterval and the Mann-Whitney p; {CHANCE}: not significant at 5%"
        ));
        parts.extend(self.warnings.iter().map(|warning| format!("! {warning}")));
        parts.join("\n\n")
    }

    /// For a report or a pull request.
    pub fn to_markdown(&self) -> String {
        let mut table = Builder::default();
        let heads = [
            "prompt",
            "tokens",
            "arm",
            "figure",
            "old",
            "new",
            "change",
            "95% interval",
        ];
        table.push_record(heads.into_iter().chain(["p", "n"]));
        for case in &self.cases {
            for arm in &case.arms {
                for figure in &arm.figures {
                    let lead = [
                        cell(&one_line(&case.prompt, 120)),
                        case.prompt_tokens.to_string(),
                        name(&arm.key),
                    ];
                    let n = format!("{}, {}", figure.old_n, figure.new_n);
                    table.push_record(lead.into_iter().chain(row(figure)).chain([n]));
                }
            }
        }
        let mut table = table.build();
        table
            .with(Style::markdown())
            .with(Modify::new(Columns::new(4..)).with(Alignment::right()));
        let warnings: String = self
            .warnings
            .iter()
            .map(|w| format!("- **{}**\n", escaped(w)))
            .collect();
        format!(
            "Old: {}  \nNew: {}\n\n{warnings}{}{table}\n\nMedians. Change: Hodges-Lehmann shift in percent of the old median, with its 95% interval and the two-sided Mann-Whitney p. {CHANCE}: not significant at 5%.\n",
            escaped(&self.old.line()),
            escaped(&self.new.line()),
            if warnings.is_empty() { "" } else { "\n" },
        )
    }
}

/// One arm of one prompt.
fn block(case: &ComparedCase, arm: &ComparedArm) -> String {
    let mut table = Builder::default();
    table.push_record(["  figure", "old", "new", "change", "95% interval", "p"]);
    for figure in &arm.figures {
        let mut row = row(figure);
        row[0].insert_str(0, "  ");
        table.push_record(row);
    }
    let mut table = table.build();
    table
        .with(Style::blank())
        .with(Modify::new(Columns::new(1..)).with(Alignment::right()));
    let table = unpadded(&table.to_string());
    let title = format!("{} prompt tokens, {}", case.prompt_tokens, name(&arm.key));
    format!("{title}\n{table}")
}

fn row(figure: &ComparedFigure) -> [String; 6] {
    let change = &figure.change;
    // Where the old median is zero there is no percentage.
    let (value, ends) = match change.pct {
        Some(pct) => (format!("{}%", signed(pct.value)), interval(pct, "%")),
        None => {
            let absolute = change.absolute();
            (signed(absolute.value), interval(absolute, ""))
        }
    };
    [
        figure.figure.clone(),
        significant(figure.old, DIGITS),
        significant(figure.new, DIGITS),
        if change.significant {
            value
        } else {
            CHANCE.to_owned()
        },
        ends.unwrap_or_else(|| "-".to_owned()),
        probability(change.shift.p),
    ]
}
