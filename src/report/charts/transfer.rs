//! What the transfer costs by prompt length, and how fast it runs by payload.

use std::collections::BTreeMap;

use plotters::style::RGBColor;

use super::axes::{self, Axes, Curve, Series, Ticks};
use super::{BLUE, Drawn, Entry, GREEN, GREY, Mark, ORANGE, PURPLE, Page, SKY, VERMILION};
use crate::link::Fit;
use crate::metrics::summary::{Summary, SummaryArm, SummaryCase};
use crate::metrics::{Arm, Record};
use crate::report::number::{one_line, significant};
use crate::stats::Figure;
use crate::wire::MAX_PIECE_BYTES;

/// Colours of the ways of transferring, in the order in which they occur.
pub(super) const COLOURS: [RGBColor; 6] = [VERMILION, BLUE, GREEN, PURPLE, ORANGE, SKY];

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
    mark: Mark,
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
                mark,
            };
            (!points.is_empty()).then_some(Series {
                entry,
                points,
                is_line: true,
            })
        })
        .collect()
}

/// Transfer overhead in percent of E2E over prompt length; `None` when no cache was sent.
pub(super) fn overhead(summary: &Summary, page: Page) -> Option<Drawn> {
    let tokens = |case: &SummaryCase| f64::from(case.prompt_tokens);
    let exposed = |c: &SummaryCase, a: &SummaryArm| Some((tokens(c), a.transfer_overhead_pct?));
    let busy = |c: &SummaryCase, a: &SummaryArm| Some((tokens(c), a.wire_busy_pct?));
    let mut all = series(
        summary,
        page.pick("exposed: the request waited for it", "exposed"),
        Mark::Filled,
        exposed,
    );
    let worst = highest(&all)?;
    for mut series in series(summary, "wire busy", Mark::Ring, busy) {
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
        caption: overhead_caption(summary, worst),
        x_label: "prompt tokens",
        y_label: "% of the split arm's E2E",
        x_text: |tokens| format!("{tokens:.0}"),
        y_at_least: 1.0,
        y_may_be_log: false,
        x_at_least: None,
        is_labelled: true,
        x_ticks: Ticks::Occurring,
    };
    axes::chart(page, axes, &all, &[])
}

/// What to see, with what the difference of exposed and wire busy is where there is one.
fn overhead_caption(summary: &Summary, worst_pct: f64) -> String {
    let arms = summary.cases.iter().flat_map(|case| &case.arms);
    let shares = arms.filter_map(|a| Some((a.transfer_overhead_pct?, a.wire_busy_pct?)));
    let shares: Vec<(f64, f64)> = shares.map(|(e, busy)| (e.median, busy.median)).collect();
    let mut caption = format!(
        "Share of E2E that the transfer takes. Exposed is what the request waits for, at most {}%.",
        significant(worst_pct, 3)
    );
    if shares.iter().any(|(exposed, busy)| exposed < busy) {
        caption += " Where wire busy is higher, the rest hides behind prefill.";
    }
    if shares.iter().any(|(exposed, busy)| exposed > busy) {
        caption += " Where exposed is higher, nothing was under way for a part of the wait: between prefill's end and the first piece, or between pieces.";
    }
    caption
}

/// Effective Gbps over payload, with what the link was fitted to do; `None` when no cache was sent.
pub(super) fn bandwidth(record: &Record, summary: &Summary, page: Page) -> Option<Drawn> {
    let point = |_: &SummaryCase, a: &SummaryArm| Some((a.wire_bytes as f64, a.effective_gbps?));
    let all = series(summary, "effective", Mark::Filled, point);
    let best = highest(&all)?;
    let link = summary.link.as_ref().map_or(String::new(), |link| {
        let on = if link.loopback { "loopback" } else { "network" };
        format!("; {} over {on}", link.transport)
    });
    let fit = record.link.as_ref().and_then(|link| link.fit.as_ref());
    let layers = u64::from(record.model.n_layers).max(1);
    let payloads = all.iter().flat_map(|s| &s.points).map(|(bytes, _)| *bytes);
    let largest = payloads.fold(0.0, f64::max) as u64;
    let ceiling = fit.and_then(|fit| ceiling_gbps(fit, layers, largest));
    let against = ceiling.map_or(String::new(), |ceiling| {
        format!(
            " The line is what transfers of that size were fitted to take back to back before the first request; they reach {} Gbps at most.",
            significant(ceiling, 3)
        )
    });
    let axes = Axes {
        file: "bandwidth.svg",
        title: "Effective bandwidth by payload",
        subtitle: format!(
            "{}{link}; medians, whiskers from min to max",
            model(summary)
        ),
        caption: format!(
            "KV payload bits, as they were on the wire, over the time in which pieces were under way, in decimal gigabits; the best prompt reaches {} Gbps.{against}",
            significant(best, 3)
        ),
        x_label: "KV payload of a request",
        y_label: "Gbps (decimal)",
        x_text: |bytes| format!("{} MB", significant(bytes / 1e6, 3)),
        y_at_least: 0.0,
        y_may_be_log: true,
        x_at_least: fit.and_then(sizes),
        is_labelled: true,
        x_ticks: Ticks::Occurring,
    };
    let curves = fit.map_or(Vec::new(), |fit| curves(fit, layers, ceiling));
    axes::chart(page, axes, &all, &curves)
}

/// The smallest and the largest size that a fit was made of.
fn sizes(fit: &Fit) -> Option<(f64, f64)> {
    let (first, last) = (fit.sizes.first()?, fit.sizes.last()?);
    Some((first.bytes as f64, last.bytes as f64))
}

/// The rate at which a fitted link carries so many bytes, cut as a request's cache is: every layer
/// into as few pieces as it can be.
fn fitted_gbps(fit: &Fit, layers: u64, bytes: u64) -> Option<f64> {
    let pieces = layers * bytes.div_ceil(layers).div_ceil(MAX_PIECE_BYTES);
    let ns = fit.transfer_ns(bytes, pieces);
    (ns > 0.0).then(|| bytes as f64 * 8.0 / ns)
}

/// Sizes at which the fit's highest rate is looked for.
const CEILING_POINTS: u32 = 500;

/// How far an axis goes beyond its largest value, at most.
const BEYOND: f64 = 2.0;

/// The highest rate that the fit reaches up to the largest of its sizes and of the run's payloads, and
/// somewhat beyond, as far as the axis goes.
fn ceiling_gbps(fit: &Fit, layers: u64, largest: u64) -> Option<f64> {
    let first = fit.sizes.first().map_or(1, |s| s.bytes.max(1)) as f64;
    let last = fit.sizes.last().map_or(largest, |s| s.bytes.max(largest)) as f64 * BEYOND;
    let at = |i: u32| first * (last / first).powf(f64::from(i) / f64::from(CEILING_POINTS));
    let rates = (0..=CEILING_POINTS).filter_map(|i| fitted_gbps(fit, layers, at(i) as u64));
    // A layer that just fills its pieces is the fastest of its kind.
    let full = (1..).map(|pieces| pieces * MAX_PIECE_BYTES * layers);
    let full = full.take_while(|bytes| (*bytes as f64) < last);
    let full = full.filter_map(|bytes| fitted_gbps(fit, layers, bytes));
    rates.chain(full).max_by(f64::total_cmp)
}

/// The fit over sizes, and its ceiling.
fn curves(fit: &Fit, layers: u64, ceiling: Option<f64>) -> Vec<Curve> {
    let fitted = fit.clone();
    let mut curves = vec![Curve {
        entry: Entry::new("link as fitted", GREY).drawn_as(Mark::Line),
        at: Box::new(move |bytes| fitted_gbps(&fitted, layers, bytes.round() as u64)),
    }];
    if let Some(ceiling) = ceiling {
        let name = format!("its ceiling, {} Gbps", significant(ceiling, 3));
        curves.push(Curve {
            entry: Entry::new(&name, GREY).drawn_as(Mark::Dashed),
            at: Box::new(move |_| Some(ceiling)),
        });
    }
    curves
}

fn highest(series: &[Series]) -> Option<f64> {
    let medians = series.iter().flat_map(|s| &s.points).map(|(_, f)| f.median);
    medians.max_by(f64::total_cmp)
}

fn model(summary: &Summary) -> String {
    one_line(&summary.model.name, 40)
}
