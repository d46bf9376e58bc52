//! The exposed transfer as it was predicted, against what was measured.

use plotters::style::RGBColor;

use super::axes::{self, Axes, Curve, Series, Ticks};
use super::{BLUE, Drawn, Entry, GREY, Mark, ORANGE, Page, VERMILION, in_mode, plain};
use crate::metrics::summary::{Summary, SummaryArm};
use crate::metrics::{Record, Transfer};
use crate::projection::{EXPOSED_ERROR_SHARE, Links, predict};
use crate::report::changes::signed;
use crate::report::number::one_line;
use crate::stats::Figure;

/// `None` where the link was not fitted or nothing was sent.
pub(super) fn chart(record: &Record, summary: &Summary, page: Page) -> Option<Drawn> {
    let links = Links::as_fitted(record)?;
    let mut all = Vec::new();
    for (transfer, colour) in [(Transfer::Bulk, VERMILION), (Transfer::Layered, BLUE)] {
        let cases = summary.cases.iter().zip(&record.cases);
        let points = cases.filter_map(|(seen, case)| {
            let measured = in_mode(seen, transfer)?.exposed_transfer_ms?;
            Some((predict(record, case, &links, transfer)?, measured))
        });
        let name = format!("{transfer}, from the link's fit");
        all.extend(series(&name, colour, points.collect()));
    }
    let auto = summary.cases.iter().filter_map(|seen| {
        let arm = in_mode(seen, Transfer::Auto)?;
        Some((said_by_auto(arm)?, arm.exposed_transfer_ms?))
    });
    all.extend(series("auto, before each request", ORANGE, auto.collect()));
    let subtitle = format!(
        "{}; medians, whiskers from min to max",
        one_line(&summary.model.name, 40)
    );
    let caption = "A point a prompt and mode, predicted from the link as it was fitted before the first request and the measured prefill, nothing else.";
    over_its_bar(page, subtitle, caption.to_owned(), &all)
}

/// Measured over predicted, with how far a prediction may be off; `None` without a point.
pub(super) fn over_its_bar(
    page: Page,
    subtitle: String,
    caption: String,
    series: &[Series],
) -> Option<Drawn> {
    let points = || series.iter().flat_map(|s| &s.points);
    let all = || points().flat_map(|(said, was)| [*said, was.min, was.max]);
    let least = all().min_by(f64::total_cmp)?;
    let most = all().max_by(f64::total_cmp)?;
    let off = points().map(|(said, was)| 100.0 * (said / was.median - 1.0));
    let worst = off.max_by(|a, b| a.abs().total_cmp(&b.abs()))?;
    let axes = Axes {
        file: "predicted.svg",
        title: "Exposed transfer, predicted against measured",
        subtitle,
        caption: format!(
            "{caption} On the dashed line it is right, between the others within {:.0}%; the worst is off by {}%.",
            100.0 * EXPOSED_ERROR_SHARE,
            signed(worst),
        ),
        x_label: "predicted, ms",
        y_label: "measured, ms",
        x_text: plain,
        y_at_least: 0.0,
        y_may_be_log: true,
        x_at_least: Some((least / 1.5, most * 1.2)),
        is_labelled: true,
        x_ticks: Ticks::Round,
    };
    axes::chart(page, axes, series, &bar())
}

/// Points of predicted and measured times; `None` without one.
pub(super) fn series(
    name: &str,
    colour: RGBColor,
    mut points: Vec<(f64, Figure)>,
) -> Option<Series> {
    // Nothing predicted or nothing measured has no place on an axis of ratios.
    points.retain(|(said, was)| *said > 0.0 && was.min > 0.0);
    (!points.is_empty()).then(|| Series {
        entry: Entry::new(name, colour),
        points,
        is_line: false,
    })
}

/// What `auto` expected of the mode that it picked each time.
fn said_by_auto(arm: &SummaryArm) -> Option<f64> {
    let auto = arm.auto?;
    match (auto.bulk, auto.layered) {
        (_, 0) => Some(auto.bulk_exposed_ms?.median),
        (0, _) => Some(auto.layered_exposed_ms?.median),
        // Picked now one, now the other: no single prediction stands for them.
        _ => None,
    }
}

/// Where a prediction is right, and how far it may be off.
fn bar() -> Vec<Curve> {
    let times = |name: &str, times: f64, mark| Curve {
        entry: Entry::new(name, GREY).drawn_as(mark),
        at: Box::new(move |said| (said > 0.0).then_some(said * times)),
    };
    vec![
        times("as predicted", 1.0, Mark::Dashed),
        times(
            "said 10% too little",
            1.0 / (1.0 - EXPOSED_ERROR_SHARE),
            Mark::Line,
        ),
        times(
            "said 10% too much",
            1.0 / (1.0 + EXPOSED_ERROR_SHARE),
            Mark::Line,
        ),
    ]
}
