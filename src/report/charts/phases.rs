//! Where the time of a request goes: one bar an arm and prompt, stacked by phase.

use plotters::style::RGBColor;

use super::{
    Area, BLUE, BODY, Chart, Entry, FAINT, GREEN, GREY, MARGIN, ON_DARK, ON_LIGHT, PURPLE, Painted,
    SMALL, Size, VERMILION, draw, legend, line, plain, rectangle, text, ticks, time,
};
use crate::metrics::summary::{Summary, SummaryArm, SummaryCase};
use crate::report::number::one_line;
use crate::report::tables;
use crate::stats::Figure;

const TITLE: &str = "Where the time of a request goes";
/// Where bars start, and the longest ends, in pixels.
const LEFT: i32 = 200;
const RIGHT: i32 = 730;
const TOP: i32 = 112;
const HEADING: i32 = 26;
const BAR: i32 = 22;
const PITCH: i32 = 28;
const GAP: i32 = 14;
const AXIS: i32 = 54;

/// Longest and shortest case may differ by this much on one scale; beyond it the short ones
/// would be slivers, and every prompt gets its own.
const ONE_SCALE: f64 = 30.0;

/// Phases in the order of time, with their colour and the colour of text on it.
const PHASES: [(&str, RGBColor, RGBColor); 5] = [
    ("prefill", BLUE, ON_DARK),
    ("exposed transfer", VERMILION, ON_LIGHT),
    ("handoff", PURPLE, ON_LIGHT),
    ("decode", GREEN, ON_LIGHT),
    ("other", GREY, ON_LIGHT),
];

/// Median time of each phase, in ms; `other` is what they leave of E2E.
fn phases_ms(arm: &SummaryArm) -> Option<[f64; 5]> {
    let median = |figure: Option<Figure>| figure.map_or(0.0, |f| f.median.max(0.0));
    let known = [
        median(arm.prefill_ms),
        median(arm.exposed_transfer_ms),
        median(arm.handoff_ms),
        median(arm.decode_ms),
    ];
    let other = arm.e2e_ms?.median - known.iter().sum::<f64>();
    let [prefill, exposed, handoff, decode] = known;
    Some([prefill, exposed, handoff, decode, other.max(0.0)])
}

/// Length of a case's longest bar, in ms.
fn longest_ms(case: &SummaryCase) -> Option<f64> {
    let bars = case.arms.iter().filter_map(phases_ms);
    let longest = bars.map(|p| p.iter().sum::<f64>()).max_by(f64::total_cmp);
    longest.filter(|ms| *ms > 0.0)
}

/// `None` when no request was measured.
pub(super) fn chart(summary: &Summary) -> Option<Chart> {
    let lengths: Vec<f64> = summary.cases.iter().filter_map(longest_ms).collect();
    let longest = lengths.iter().copied().max_by(f64::total_cmp)?;
    let shortest = lengths.iter().copied().min_by(f64::total_cmp)?;
    let one_scale = (longest <= ONE_SCALE * shortest).then_some(longest);
    let scale = match one_scale {
        Some(_) => "one scale for all prompts",
        None => "each prompt on its own scale",
    };
    let subtitle = format!(
        "{}; medians of each phase; {scale}",
        one_line(&summary.model.name, 40)
    );
    let rows: i32 = summary.cases.iter().map(case_height).sum();
    let axis = if one_scale.is_some() { AXIS } else { MARGIN };
    draw(
        "phases.svg",
        TOP + rows + axis,
        TITLE,
        &subtitle,
        caption(summary),
        |area| {
            legend(area, &legend_entries(summary), (MARGIN, 84))?;
            if let Some(longest) = one_scale {
                draw_axis(area, longest, TOP + rows)?;
            }
            let mut y = TOP;
            for case in &summary.cases {
                if let Some(longest) = one_scale {
                    draw_grid(area, longest, y + HEADING - 3, y + case_height(case) - GAP)?;
                }
                draw_case(area, case, one_scale.or_else(|| longest_ms(case)), y)?;
                y += case_height(case);
            }
            Ok(())
        },
    )
}

fn case_height(case: &SummaryCase) -> i32 {
    HEADING + PITCH * case.arms.len().max(1) as i32 + GAP
}

fn legend_entries(summary: &Summary) -> Vec<Entry> {
    let arms = || summary.cases.iter().flat_map(|c| &c.arms);
    let occurs = |i: usize| arms().filter_map(phases_ms).any(|phases| phases[i] > 0.0);
    let shown = PHASES.iter().enumerate().filter(|(i, _)| occurs(*i));
    let entries = shown.map(|(_, (name, colour, _))| Entry::new(name, *colour));
    entries.collect()
}

fn draw_axis(area: &Area, longest: f64, bottom: i32) -> Painted {
    let (unit, per_ms) = if longest >= 10_000.0 {
        ("s", 1e-3)
    } else {
        ("ms", 1.0)
    };
    for tick in ticks(longest) {
        let x = LEFT + pixels(tick, longest);
        text(
            area,
            &plain(tick * per_ms),
            (x, bottom + 14),
            SMALL.centred(),
        )?;
    }
    let middle = (LEFT + RIGHT) / 2;
    let label = format!("time since the request started, {unit}");
    text(area, &label, (middle, bottom + 36), BODY.centred())
}

/// Lines at the ticks behind a case's bars.
fn draw_grid(area: &Area, longest: f64, top: i32, bottom: i32) -> Painted {
    for tick in ticks(longest) {
        let x = LEFT + pixels(tick, longest);
        line(area, (x, top), (x, bottom), FAINT)?;
    }
    Ok(())
}

fn pixels(ms: f64, longest_ms: f64) -> i32 {
    (ms / longest_ms * f64::from(RIGHT - LEFT)).round() as i32
}

fn draw_case(area: &Area, case: &SummaryCase, longest_ms: Option<f64>, y: i32) -> Painted {
    let heading = format!(
        "{}: {} prompt tokens, {} output tokens",
        one_line(&case.prompt, 64),
        case.prompt_tokens,
        case.output_tokens
    );
    text(area, &heading, (MARGIN, y + HEADING / 2), BODY)?;
    let middle = y + HEADING + BAR / 2;
    let (Some(longest_ms), false) = (longest_ms, case.arms.is_empty()) else {
        let error = case.errors.first().map_or("", |e| e.as_str());
        let why = format!("nothing measured: {}", one_line(error, 80));
        return text(area, why.trim_end_matches(": "), (LEFT, middle), SMALL);
    };
    for (i, arm) in case.arms.iter().enumerate() {
        let middle = middle + PITCH * i as i32;
        let name = tables::name(case, arm, " ");
        text(area, &name, (LEFT - 10, middle), BODY.to_left())?;
        let end = draw_bar(area, arm, longest_ms, middle)?;
        text(area, &outcome(arm), (end + 8, middle), BODY)?;
    }
    Ok(())
}

/// Draws the phases of an arm; returns where the bar ends.
fn draw_bar(area: &Area, arm: &SummaryArm, longest_ms: f64, middle: i32) -> Painted<i32> {
    let (mut x, mut sum_ms) = (LEFT, 0.0);
    let phases = phases_ms(arm).unwrap_or_default();
    for (ms, (_, colour, ink)) in phases.into_iter().zip(PHASES) {
        if ms <= 0.0 {
            continue;
        }
        sum_ms += ms;
        // What takes time is seen, if only as a line.
        let end = (LEFT + pixels(sum_ms, longest_ms)).max(x + 1);
        rectangle(area, (x, middle - BAR / 2), (end, middle + BAR / 2), colour)?;
        let label = time(ms);
        if Size::Small.width(&label) + 8 <= end - x {
            text(
                area,
                &label,
                ((x + end) / 2, middle),
                SMALL.centred().coloured(ink),
            )?;
        }
        x = end;
    }
    Ok(x)
}

/// What stands after a bar.
fn outcome(arm: &SummaryArm) -> String {
    let e2e = arm.e2e_ms.map_or("-".to_owned(), |f| time(f.median));
    match arm.transfer_overhead_pct {
        Some(share) => format!("{e2e}, transfer {:.1}%", share.median),
        None => e2e,
    }
}

fn caption(summary: &Summary) -> String {
    let case = summary.cases.iter().filter(|c| longest_ms(c).is_some());
    let case = case.max_by_key(|c| c.prompt_tokens);
    let arms = case
        .iter()
        .flat_map(|c| c.arms.iter().map(|a| (tables::name(c, a, " "), a)));
    let arms: Vec<String> = arms
        .map(|(name, arm)| format!("{name} {}", outcome(arm)))
        .collect();
    format!(
        "Prefill, exposed transfer, handoff and decode of every prompt in every arm. Longest prompt, {} tokens: {}. The transfer's share is of E2E.",
        case.map_or(0, |c| c.prompt_tokens),
        arms.join("; "),
    )
}
