//! What a command prints when it is done.

use super::changes::CHANCE;
use super::projected::Projected;
use super::prose::WIDTH;
use super::tables::{comparison_table, name, pipeline_summary};
use crate::metrics::summary::Summary;
use crate::metrics::{Arm, BaselineUse, Record};

/// The finding first, then tables, then what makes them doubtful.
pub fn to_terminal(record: &Record) -> String {
    let summary = Summary::of(record);
    let mut parts: Vec<String> = summary.verdict.iter().cloned().collect();
    parts.extend(super::answers::to_terminal(&summary, WIDTH));
    let single = |arm: &crate::metrics::summary::SummaryArm| arm.arm == Arm::Single;
    if summary
        .cases
        .iter()
        .any(|case| case.arms.iter().any(single))
    {
        parts.push(comparison_table(&summary, WIDTH));
    } else {
        for case in &summary.cases {
            parts.extend(case.arms.iter().map(|arm| pipeline_summary(case, arm)));
        }
    }
    parts.extend(super::interference::to_terminal(&summary, WIDTH));
    parts.extend(
        record
            .baseline
            .as_ref()
            .and_then(|b| against_baseline(b, &summary)),
    );
    parts.extend(Projected::of(record).notes());
    parts.extend(summary.alarms.iter().map(|alarm| format!("! {alarm}")));
    let parts: Vec<&str> = parts.iter().map(|part| part.trim_end()).collect();
    parts.join("\n\n")
}

/// E2E of every arm against an earlier baseline.
fn against_baseline(baseline: &BaselineUse, summary: &Summary) -> Option<String> {
    let mut lines = Vec::new();
    for case in &summary.cases {
        let Some(before) = baseline.e2e_ms.get(&case.prompt) else {
            continue;
        };
        let now = (case.arms.iter())
            .filter(|arm| !(baseline.stands_in && arm.arm == Arm::Single))
            .filter_map(|arm| {
                let now = arm.e2e_ms?;
                let ratio = match now.lies_apart_from(before) {
                    true => format!("{:.2}x", now.median / before.median),
                    false => CHANCE.to_owned(),
                };
                Some(format!("{} {ratio}", name(case, arm, " ")))
            });
        let now: Vec<String> = now.collect();
        if !now.is_empty() {
            lines.push(format!(
                "  {}: {:.1} ms then; now {}",
                case.prompt,
                before.median,
                now.join(", ")
            ));
        }
    }
    let title = format!(
        "E2E against {} of {}; {CHANCE}: the intervals overlap",
        baseline.file, baseline.measured_at
    );
    (!lines.is_empty()).then(|| format!("{title}\n{}", lines.join("\n")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::summary::single_e2e_ms;
    use crate::report::fixture::{record, usual_case};

    #[test]
    fn a_baseline_that_may_be_equal_is_marked() {
        let record = record(vec![usual_case(128), usual_case(512)]);
        let mut baseline = BaselineUse {
            file: "baseline_metrics.json".into(),
            measured_at: "2026-01-01T00:00:00Z".into(),
            stands_in: false,
            warnings: Vec::new(),
            e2e_ms: single_e2e_ms(&record),
        };
        let summary = Summary::of(&record);
        let text = against_baseline(&baseline, &summary).unwrap();
        assert!(
            text.contains("128 tokens: 1108.0 ms then; now single ~, split ~"),
            "{text}"
        );
        assert!(
            text.contains("512 tokens: 1492.0 ms then; now single ~, split 1.01x"),
            "{text}"
        );
        // An older file has no intervals.
        for figure in baseline.e2e_ms.values_mut() {
            (figure.ci_low, figure.ci_high) = (None, None);
        }
        let text = against_baseline(&baseline, &summary).unwrap();
        assert!(
            text.contains("now single ~, split ~") && !text.contains("1.01x"),
            "{text}"
        );
    }
}
