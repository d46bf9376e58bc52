//! Where the time of a request goes: one bar an arm and prompt, stacked by phase.

use plotters::style::RGBColor;

use super::{
    Area, BLUE, BODY, Drawn, Entry, FAINT, GREEN, GREY, LEGEND_TOP, ON_DARK, ON_LIGHT, PURPLE,
    Page, Painted, SMALL, Size, VERMILION, draw, legend, legend_height, line, plain, rectangle,
    text, ticks, time,
};
use crate::metrics::summary::{Summary, SummaryArm, SummaryCase};
use crate::report::number::one_line;
use crate::report::tables;
use crate::stats::Figure;

const TITLE: &str = "Where the time of a request goes";
const HEADING: i32 = 26;
const BAR: i32 = 22;
const GAP: i32 = 14;
const AXIS: i32 = 54;
/// Room between the legend and the first prompt.
const BELOW_LEGEND: i32 = 6;
/// Above a bar on a narrow page: room for its name.
const NAME: i32 = 18;

/// Where bars start, and the longest ends.
fn edges(page: Page) -> (i32, i32) {
    let margin = page.margin();
    page.pick((200, 730), (margin, page.width() - 2 * margin))
}

/// From one bar to the next.
fn pitch(page: Page) -> i32 {
    page.pick(28, 28 + NAME)
}

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
pub(super) fn chart(summary: &Summary, page: Page) -> Option<Drawn> {
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
    let entries = legend_entries(summary);
    let top = LEGEND_TOP + legend_height(&entries, page) + BELOW_LEGEND;
    let height = |case: &SummaryCase| case_height(case, page);
    let rows: i32 = summary.cases.iter().map(height).sum();
    let axis = one_scale.map_or(page.margin(), |_| AXIS);
    draw(
        page,
        "phases.svg",
        top + rows + axis,
        TITLE,
        &subtitle,
        caption(summary),
        |area| {
            legend(area, &entries, page)?;
            if let Some(longest) = one_scale {
                draw_axis(area, longest, edges(page), top + rows)?;
            }
            let mut y = top;
            for case in &summary.cases {
                if let Some(longest) = one_scale {
                    let rows = (y + HEADING - 3, y + height(case) - GAP);
                    draw_grid(area, longest, edges(page), rows)?;
                }
                draw_case(area, case, one_scale.or_else(|| longest_ms(case)), page, y)?;
                y += height(case);
            }
            Ok(())
        },
    )
}

fn case_height(case: &SummaryCase, page: Page) -> i32 {
    HEADING + pitch(page) * case.arms.len().max(1) as i32 + GAP
}

fn legend_entries(summary: &Summary) -> Vec<Entry> {
    let arms = || summary.cases.iter().flat_map(|c| &c.arms);
    let occurs = |i: usize| arms().filter_map(phases_ms).any(|phases| phases[i] > 0.0);
    let shown = PHASES.iter().enumerate().filter(|(i, _)| occurs(*i));
    let entries = shown.map(|(_, (name, colour, _))| Entry::new(name, *colour));
    entries.collect()
}

fn draw_axis(area: &Area, longest: f64, edges: (i32, i32), bottom: i32) -> Painted {
    let (unit, per_ms) = if longest >= 10_000.0 {
        ("s", 1e-3)
    } else {
        ("ms", 1.0)
    };
    for tick in ticks(longest) {
        let x = edges.0 + pixels(tick, longest, edges);
        text(
            area,
            &plain(tick * per_ms),
            (x, bottom + 14),
            SMALL.centred(),
        )?;
    }
    let middle = (edges.0 + edges.1) / 2;
    let label = format!("time since the request started, {unit}");
    text(area, &label, (middle, bottom + 36), BODY.centred())
}

/// Lines at the ticks behind a case's bars.
fn draw_grid(area: &Area, longest: f64, edges: (i32, i32), (top, bottom): (i32, i32)) -> Painted {
    for tick in ticks(longest) {
        let x = edges.0 + pixels(tick, longest, edges);
        line(area, (x, top), (x, bottom), FAINT)?;
    }
    Ok(())
}

fn pixels(ms: f64, longest_ms: f64, (left, right): (i32, i32)) -> i32 {
    (ms / longest_ms * f64::from(right - left)).round() as i32
}

fn draw_case(
    area: &Area,
    case: &SummaryCase,
    longest_ms: Option<f64>,
    page: Page,
    y: i32,
) -> Painted {
    let tokens = case.prompt_tokens;
    let heading = page.pick(
        format!(
            "{}: {tokens} prompt tokens, {} output tokens",
            one_line(&case.prompt, 64),
            case.output_tokens
        ),
        format!("{}: {tokens} prompt tokens", one_line(&case.prompt, 20)),
    );
    text(area, &heading, (page.margin(), y + HEADING / 2), BODY)?;
    let middle = y + HEADING + page.pick(0, NAME) + BAR / 2;
    let (left, _) = edges(page);
    let (Some(longest_ms), false) = (longest_ms, case.arms.is_empty()) else {
        let error = case.errors.first().map_or("", |e| e.as_str());
        let error = one_line(error, page.pick(80, 32));
        let why = format!("nothing measured: {error}");
        return text(area, why.trim_end_matches(": "), (left, middle), SMALL);
    };
    for (i, arm) in case.arms.iter().enumerate() {
        let middle = middle + pitch(page) * i as i32;
        let name = tables::name(case, arm, " ");
        let end = draw_bar(area, arm, longest_ms, edges(page), middle)?;
        match page {
            Page::Wide => {
                text(area, &name, (left - 10, middle), BODY.to_left())?;
                text(area, &outcome(arm), (end + 8, middle), BODY)?;
            }
            Page::Narrow => {
                let label = format!("{name}: {}", outcome(arm));
                let at = (left, middle - BAR / 2 - NAME / 2);
                text(area, &label, at, BODY)?;
            }
        }
    }
    Ok(())
}

/// Draws the phases of an arm; returns where the bar ends.
fn draw_bar(
    area: &Area,
    arm: &SummaryArm,
    longest_ms: f64,
    edges: (i32, i32),
    middle: i32,
) -> Painted<i32> {
    let (mut x, mut sum_ms) = (edges.0, 0.0);
    let phases = phases_ms(arm).unwrap_or_default();
    for (ms, (_, colour, ink)) in phases.into_iter().zip(PHASES) {
        if ms <= 0.0 {
            continue;
        }
        sum_ms += ms;
        // What takes time is seen, if only as a line.
        let end = (edges.0 + pixels(sum_ms, longest_ms, edges)).max(x + 1);
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
