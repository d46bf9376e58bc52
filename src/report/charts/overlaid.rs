//! Several runs in one chart each: a series a run, or a point a run over what its link does.

use std::collections::{BTreeMap, BTreeSet};

use plotters::style::RGBColor;

use super::axes::{self, Axes, Series, Ticks};
use super::{
    BLUE, Chart, Drawn, Entry, GREEN, GREY, Mark, ORANGE, PURPLE, Page, SKY, VERMILION, in_mode,
    on_both, predicted,
};
use crate::metrics::summary::{SummaryArm, SummaryCase};
use crate::metrics::{Arm, Transfer};
use crate::report::number::{count, significant, small};
use crate::report::overlay::{Named, of_first};
use crate::stats::Figure;
use crate::verdict::fastest;

/// Colours of the runs, in their order; behind the last one they begin anew, as rings.
const COLOURS: [RGBColor; 7] = [BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY, GREY];

/// Links are told apart from this ratio of their rates on.
const OTHER_LINK: f64 = 1.2;

/// What a case of a run shows at x.
type Point<'a> = &'a dyn Fn(&SummaryCase) -> Option<(f64, Figure)>;

/// All charts of several runs that have something to show.
pub(super) fn all(runs: &[Named]) -> Vec<Chart> {
    let by_link = on_both(|page| by_link(runs, page));
    // Over a single length the runs would stand upon each other, which their links tell apart.
    let by_length = by_link.is_none() || lengths(runs).len() > 1;
    let by_length = |chart: fn(&[Named], Page) -> Option<Drawn>| {
        (by_length.then(|| on_both(|page| chart(runs, page)))).flatten()
    };
    [
        by_length(e2e),
        by_length(overhead),
        by_length(bandwidth),
        by_link,
        on_both(|page| predictions(runs, page)),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// Prompt lengths of all runs, each once.
fn lengths(runs: &[Named]) -> BTreeSet<u32> {
    let cases = runs.iter().flat_map(|run| &run.summary.cases);
    cases.map(|case| case.prompt_tokens).collect()
}

fn tokens(case: &SummaryCase) -> f64 {
    f64::from(case.prompt_tokens)
}

/// The fastest lossless arm of a case: split where there is one.
fn best(case: &SummaryCase) -> Option<&SummaryArm> {
    let arm = fastest(case, Arm::Split).or_else(|| fastest(case, Arm::Single));
    arm.map(|(arm, _)| arm)
}

fn series(runs: &[Named], point: Point<'_>) -> Vec<Series> {
    let of_run = |(i, run): (usize, &Named)| {
        let mut points: Vec<_> = run.summary.cases.iter().filter_map(point).collect();
        points.sort_by(|(a, _), (b, _)| a.total_cmp(b));
        let entry = Entry::new(&run.label, COLOURS[i % COLOURS.len()]);
        let entry = match i / COLOURS.len() {
            0 => entry,
            _ => entry.drawn_as(Mark::Ring),
        };
        (!points.is_empty()).then_some(Series {
            entry,
            points,
            is_line: true,
        })
    };
    runs.iter().enumerate().filter_map(of_run).collect()
}

/// Axes of a chart over `x_label`, from zero or logarithmic.
fn over(file: &'static str, title: &'static str, x_label: &'static str, y: &'static str) -> Axes {
    Axes {
        file,
        title,
        subtitle: "medians, whiskers from min to max".to_owned(),
        caption: String::new(),
        x_label,
        y_label: y,
        x_text: |value| format!("{value:.0}"),
        y_at_least: 0.0,
        y_may_be_log: true,
        x_at_least: None,
        is_labelled: true,
        x_ticks: Ticks::Occurring,
    }
}

fn e2e(runs: &[Named], page: Page) -> Option<Drawn> {
    let all = series(runs, &|case| Some((tokens(case), best(case)?.e2e_ms?)));
    let axes = Axes {
        caption: format!(
            "{}: the fastest arm of each prompt, split where there is one.",
            count(all.len(), "run")
        ),
        ..over(
            "e2e.svg",
            "E2E by prompt length",
            "prompt tokens",
            "E2E, ms",
        )
    };
    axes::chart(page, axes, &all, &[])
}

fn overhead(runs: &[Named], page: Page) -> Option<Drawn> {
    let all = series(runs, &|case| {
        Some((tokens(case), best(case)?.transfer_overhead_pct?))
    });
    let axes = Axes {
        caption: "Exposed transfer in percent of E2E, of the fastest split arm of each prompt: what the request waited for.".to_owned(),
        y_may_be_log: false,
        y_at_least: 1.0,
        ..over(
            "overhead.svg",
            "Transfer overhead by prompt length",
            "prompt tokens",
            "% of the split arm's E2E",
        )
    };
    axes::chart(page, axes, &all, &[])
}

fn bandwidth(runs: &[Named], page: Page) -> Option<Drawn> {
    let all = series(runs, &|case| {
        let arm = in_mode(case, Transfer::Bulk)?;
        Some((arm.wire_bytes as f64, arm.effective_gbps?))
    });
    let axes = Axes {
        caption: "KV payload bits over the time in which pieces were under way, in bulk."
            .to_owned(),
        x_text: |bytes| format!("{} MB", significant(bytes / 1e6, 3)),
        ..over(
            "bandwidth.svg",
            "Effective bandwidth by payload",
            "KV payload of a request",
            "Gbps (decimal)",
        )
    };
    axes::chart(page, axes, &all, &[])
}

/// Of a mode, the same in every chart of several runs.
fn colour(mode: Transfer) -> RGBColor {
    match mode {
        Transfer::Bulk => VERMILION,
        Transfer::Layered => BLUE,
        Transfer::Auto => ORANGE,
    }
}

/// Overhead over the rate that each run's link was fitted to, for the longest prompt that all runs
/// have; `None` where their links are alike.
fn by_link(runs: &[Named], page: Page) -> Option<Drawn> {
    let has = |run: &Named, tokens: &u32| {
        let mut cases = run.summary.cases.iter();
        cases.any(|case| case.prompt_tokens == *tokens)
    };
    let in_all = |tokens: &u32| runs.iter().all(|run| has(run, tokens));
    let tokens = lengths(runs).into_iter().rev().find(in_all)?;
    let mut by_mode: BTreeMap<Transfer, Vec<(f64, Figure)>> = BTreeMap::new();
    for run in runs {
        let fit = run.record.link.as_ref().and_then(|link| link.fit.as_ref());
        let case = run.summary.cases.iter().find(|c| c.prompt_tokens == tokens);
        let (Some(gbps), Some(case)) = (fit.and_then(|fit| fit.beta_gbps), case) else {
            continue;
        };
        for mode in [Transfer::Bulk, Transfer::Layered, Transfer::Auto] {
            let overhead = in_mode(case, mode).and_then(|arm| arm.transfer_overhead_pct);
            if let Some(overhead) = overhead {
                by_mode.entry(mode).or_default().push((gbps, overhead));
            }
        }
    }
    let rates = || by_mode.values().flatten().map(|(gbps, _)| *gbps);
    let slowest = rates().min_by(f64::total_cmp)?;
    let fastest = rates().max_by(f64::total_cmp)?;
    if fastest < OTHER_LINK * slowest {
        return None;
    }
    let all: Vec<Series> = (by_mode.into_iter())
        .map(|(mode, mut points)| {
            points.sort_by(|(a, _), (b, _)| a.total_cmp(b));
            Series {
                entry: Entry::new(&mode.to_string(), colour(mode)),
                points,
                is_line: true,
            }
        })
        .collect();
    let axes = Axes {
        caption: format!(
            "A point a run, at the rate that its own fit has beyond the largest size. {tokens} prompt tokens; from {} to {} Gbps.",
            significant(slowest, 2),
            significant(fastest, 3)
        ),
        x_text: small,
        y_may_be_log: false,
        y_at_least: 1.0,
        ..over(
            "by-link.svg",
            "Transfer overhead by rate of the link",
            "fitted rate of the link, Gbps (decimal)",
            "% of the split arm's E2E",
        )
    };
    axes::chart(page, axes, &all, &[])
}

/// What the first run's compute and each other run's link would give, against what those runs
/// measured.
fn predictions(runs: &[Named], page: Page) -> Option<Drawn> {
    let (first, others) = runs.split_first()?;
    let mut by_mode: BTreeMap<Transfer, Vec<(f64, Figure)>> = BTreeMap::new();
    for other in others {
        for row in of_first(&first.record, other) {
            let mut cases = other.summary.cases.iter();
            let case = cases.find(|c| c.prompt_tokens == row.prompt_tokens);
            let measured = case.and_then(|c| in_mode(c, row.transfer)?.exposed_transfer_ms);
            if let Some(measured) = measured {
                let points = by_mode.entry(row.transfer).or_default();
                points.push((row.exposed_predicted_ms, measured));
            }
        }
    }
    let all = by_mode
        .into_iter()
        .filter_map(|(mode, points)| predicted::series(&mode.to_string(), colour(mode), points));
    let all: Vec<Series> = all.collect();
    let caption = format!(
        "A point a run, prompt and mode: the compute that {} measured, over the link as each other run fitted it before its first request.",
        first.label
    );
    predicted::over_its_bar(
        page,
        "medians, whiskers from min to max".into(),
        caption,
        &all,
    )
}
