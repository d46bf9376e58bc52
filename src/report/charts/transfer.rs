//! What the transfer costs by prompt length, and how fast it runs by payload.

use std::collections::BTreeMap;

use plotters::style::RGBColor;

use super::axes::{self, Axes, Series};
use super::{BLUE, Chart, Entry, GREEN, ORANGE, PURPLE, SKY, VERMILION};
use crate::metrics::Arm;
use crate::metrics::summary::{Summary, SummaryArm, SummaryCase};
use crate::report::number::{one_line, significant};
use crate::stats::Figure;

/// Colours of the ways of transferring, in the order in which they occur.
const COLOURS: [RGBColor; 6] = [VERMILION, BLUE, GREEN, PURPLE, ORANGE, SKY];

/// Split arms by way of transferring, each with the case it belongs to.
fn ways(summary: &Summary) -> BTreeMap<String, Vec<(&SummaryCase, &SummaryArm)>> {
    let mut ways: BTreeMap<String, Vec<_>> = BTreeMap::new();
    for case in &summary.cases {
        for arm in case.arms.iter().filter(|a| a.arm == Arm::Split) {
            if let Some(transfer) = arm.transfer {
                let mut way = format!("{transfer} x{}", arm.streams);
                if let Some(dtype) = arm.wire_dtype.filter(|dtype| dtype.is_lossy()) {
                    way += &format!(" {dtype}, lossy");
                }
                ways.entry(way).or_default().push((case, arm));
            }
        }
    }
    ways
}

/// One series a way of transferring; ways without a point are left out.
fn series(
    summary: &Summary,
    name: &str,
    is_hollow: bool,
    point: impl Fn(&SummaryCase, &SummaryArm) -> Option<(f64, Figure)>,
) -> Vec<Series> {
    let ways = ways(summary);
    let is_lossy = |arms: &[(&SummaryCase, &SummaryArm)]| arms.iter().any(|(_, a)| a.is_lossy());
    let is_only = ways.len() == 1 && !ways.values().any(|arms| is_lossy(arms));
    (ways.into_iter().enumerate())
        .filter_map(|(i, (way, arms))| {
            let mut points: Vec<_> = arms.iter().filter_map(|(c, a)| point(c, a)).collect();
            points.sort_by(|(a, _), (b, _)| a.total_cmp(b));
            let name = if is_only {
                name.to_owned()
            } else {
                format!("{name}, {way}")
            };
            let entry = Entry {
                name,
                colour: COLOURS[i % COLOURS.len()],
                is_hollow,
            };
            (!points.is_empty()).then_some(Series { entry, points })
        })
        .collect()
}

/// Transfer overhead in percent of E2E over prompt length; `None` when no cache was sent.
pub(super) fn overhead(summary: &Summary) -> Option<Chart> {
    let tokens = |case: &SummaryCase| f64::from(case.prompt_tokens);
    let exposed = |c: &SummaryCase, a: &SummaryArm| Some((tokens(c), a.transfer_overhead_pct?));
    let busy = |c: &SummaryCase, a: &SummaryArm| Some((tokens(c), a.wire_busy_pct?));
    let mut all = series(
        summary,
        "exposed: the request waited for it",
        false,
        exposed,
    );
    let worst = highest(&all)?;
    for mut series in series(summary, "wire busy", true, busy) {
        // With one way of transferring, the second colour is free for it.
        if all.len() == 1 {
            series.entry.colour = BLUE;
        }
        all.push(series);
    }
    let axes = Axes {
        file: "overhead.svg",
        title: "Transfer overhead by prompt length",
        subtitle: format!("{}; medians, whiskers from min to max", model(summary)),
        caption: format!(
            "Share of E2E that the transfer takes. Exposed is what the request waits for, at most {}%; where wire busy is higher, the rest hides behind prefill.",
            significant(worst, 3)
        ),
        x_label: "prompt tokens",
        y_label: "% of the split arm's E2E",
        x_text: |tokens| format!("{tokens:.0}"),
        y_at_least: 1.0,
        y_may_be_log: false,
    };
    axes::chart(axes, &all)
}

/// Effective Gbps over payload; `None` when no cache was sent.
pub(super) fn bandwidth(summary: &Summary) -> Option<Chart> {
    let point = |_: &SummaryCase, a: &SummaryArm| Some((a.wire_bytes as f64, a.effective_gbps?));
    let all = series(summary, "effective", false, point);
    let best = highest(&all)?;
    let link = summary.link.as_ref().map_or(String::new(), |link| {
        let on = if link.loopback { "loopback" } else { "network" };
        format!("; {} over {on}", link.transport)
    });
    let axes = Axes {
        file: "bandwidth.svg",
        title: "Effective bandwidth by payload",
        subtitle: format!(
            "{}{link}; medians, whiskers from min to max",
            model(summary)
        ),
        caption: format!(
            "KV payload bits, as they were on the wire, over the time in which pieces were under way, in decimal gigabits; the best prompt reaches {} Gbps.",
            significant(best, 3)
        ),
        x_label: "KV payload of a request",
        y_label: "Gbps (decimal)",
        x_text: |bytes| format!("{} MB", significant(bytes / 1e6, 3)),
        y_at_least: 0.0,
        y_may_be_log: true,
    };
    axes::chart(axes, &all)
}

fn highest(series: &[Series]) -> Option<f64> {
    let medians = series.iter().flat_map(|s| &s.points).map(|(_, f)| f.median);
    medians.max_by(f64::total_cmp)
}

fn model(summary: &Summary) -> String {
    one_line(&summary.model.name, 40)
}
