//! Gaps between the tokens of a running sequence while another prompt is prefilled: one line an
//! arm.

use plotters::element::{PathElement, Polygon};
use plotters::style::{Color, RGBColor};

use super::scale::Scale;
use super::{
    Area, BLUE, BODY, Drawn, Entry, FAINT, INK, Mark, ORANGE, Page, Painted, SMALL, Size,
    VERMILION, draw, legend, legend_height, line, plain, text,
};
use crate::metrics::interference::{Interference, InterferenceArm, Moments};
use crate::metrics::{Arm, Record};
use crate::report::number::{count, one_line, significant};
use crate::stats::Figure;

const PLOT: i32 = 300;
const BELOW: i32 = 70;

/// Where the plot starts and ends.
fn edges(page: Page) -> (i32, i32) {
    (page.pick(84, 60), page.width() - page.pick(40, 20))
}

/// How much of what lies behind it a band lets through.
const BAND: f64 = 0.2;

/// The gaps of one arm by the index of the token that ends them.
struct Gaps {
    arm: InterferenceArm,
    colour: RGBColor,
    by_token: Vec<(f64, Figure)>,
    samples: usize,
}

/// `None` where no running sequence was watched.
pub(super) fn chart(record: &Record, page: Page) -> Option<Drawn> {
    let all = record.interference.as_ref()?;
    let arms = all.arms().into_iter();
    let gaps: Vec<Gaps> = arms.filter_map(|arm| gaps(all, arm)).collect();
    let of = |of: fn(&Figure) -> f64| {
        let figures = gaps.iter().flat_map(|g| &g.by_token);
        figures.map(|(_, figure)| of(figure)).collect::<Vec<f64>>()
    };
    let min = of(|f| f.min).into_iter().min_by(f64::total_cmp)?;
    let max = of(|f| f.max).into_iter().max_by(f64::total_cmp)?;
    let last = (gaps.iter().filter_map(|g| g.by_token.last()))
        .map(|(token, _)| *token)
        .max_by(f64::total_cmp)?;
    let entries: Vec<Entry> = (gaps.iter())
        .map(|g| Entry::new(&g.arm.way(), g.colour).drawn_as(Mark::Line))
        .collect();
    let top = 124 + legend_height(&entries, page);
    let bottom = top + PLOT;
    let x = Scale::linear(1.0, last.max(2.0), edges(page));
    let y = Scale::up_to(min, max, true, (bottom, top));
    let samples = gaps.iter().map(|g| g.samples).min()?;
    let subtitle = format!(
        "{}; medians of {}, bands from min to max",
        one_line(&record.model.name, 40),
        count(samples, "sample")
    );
    draw(
        page,
        "itl.svg",
        bottom + BELOW,
        "Gaps between tokens while another prompt is prefilled",
        &subtitle,
        caption(all),
        |area| {
            legend(area, &entries, page)?;
            text(area, "ITL, ms", (page.margin(), top - 34), BODY)?;
            draw_axes(area, x, y, edges(page), bottom)?;
            draw_arrival(area, all, x, edges(page), (top, bottom))?;
            gaps.iter().try_for_each(|g| draw_band(area, g, x, y))?;
            gaps.iter().try_for_each(|g| draw_line(area, g, x, y))
        },
    )
}

/// Of an arm, over the samples that saw the whole prefill.
fn gaps(all: &Interference, arm: InterferenceArm) -> Option<Gaps> {
    let of_arm = all
        .samples
        .iter()
        .filter(|s| !s.warmup && (s.arm, s.chunk_tokens) == (arm.arm, arm.chunk_tokens));
    let whole = of_arm.filter_map(|s| {
        let moments = s.moments.as_ref()?;
        moments.suffered()?.is_whole.then_some(moments)
    });
    let whole: Vec<Vec<f64>> = whole.map(gaps_ms).collect();
    let tokens = whole.iter().map(Vec::len).min()?;
    let by_token = (0..tokens).filter_map(|i| {
        let gaps: Vec<f64> = whole.iter().map(|gaps| gaps[i]).collect();
        Some(((i + 1) as f64, Figure::of(&gaps)?))
    });
    Some(Gaps {
        arm,
        colour: colour(&arm),
        by_token: by_token.collect(),
        samples: whole.len(),
    })
}

fn gaps_ms(moments: &Moments) -> Vec<f64> {
    moments.gaps().map(|(ms, ..)| ms).collect()
}

fn colour(arm: &InterferenceArm) -> RGBColor {
    match (arm.arm, arm.chunk_tokens) {
        (Arm::Split, _) => BLUE,
        (Arm::Single, None) => VERMILION,
        (Arm::Single, Some(_)) => ORANGE,
    }
}

fn draw_axes(area: &Area, x: Scale, y: Scale, edges: (i32, i32), bottom: i32) -> Painted {
    let (left, right) = edges;
    for tick in y.ticks() {
        line(area, (left, y.at(tick)), (right, y.at(tick)), FAINT)?;
        text(area, &plain(tick), (left - 10, y.at(tick)), SMALL.to_left())?;
    }
    line(area, (left, bottom), (right, bottom), INK)?;
    for tick in x.ticks().into_iter().filter(|tick| x.holds(*tick)) {
        let at = x.at(tick);
        line(area, (at, bottom), (at, bottom + 5), INK)?;
        text(area, &plain(tick), (at, bottom + 22), SMALL.centred())?;
    }
    let middle = ((left + right) / 2, bottom + 50);
    let label = "index of the token that ends the gap";
    text(area, label, middle, BODY.centred())
}

/// Where the other prompt comes.
fn draw_arrival(
    area: &Area,
    all: &Interference,
    x: Scale,
    (left, right): (i32, i32),
    (top, bottom): (i32, i32),
) -> Painted {
    // Between the last token before it and the one whose gap it makes.
    let at = x.at(f64::from(all.comes_after_tokens) - 0.5);
    line(area, (at, top), (at, bottom), INK)?;
    let label = format!("a prompt of {} tokens comes", all.newcomer_prompt_tokens);
    let half = Size::Small.width(&label) / 2;
    let middle = at.clamp(left + half, right - half);
    text(area, &label, (middle, top - 12), SMALL.centred())
}

fn draw_band(area: &Area, gaps: &Gaps, x: Scale, y: Scale) -> Painted {
    let edge = |of: fn(&Figure) -> f64| {
        let points = gaps.by_token.iter();
        points.map(move |(token, figure)| (x.at(*token), y.at(of(figure))))
    };
    let outline: Vec<(i32, i32)> = edge(|f| f.max).chain(edge(|f| f.min).rev()).collect();
    area.draw(&Polygon::new(outline, gaps.colour.mix(BAND)))
}

fn draw_line(area: &Area, gaps: &Gaps, x: Scale, y: Scale) -> Painted {
    let points = gaps.by_token.iter();
    let path: Vec<(i32, i32)> = points.map(|(t, f)| (x.at(*t), y.at(f.median))).collect();
    area.draw(&PathElement::new(path, gaps.colour.stroke_width(2)))
}

/// What to see: the worst gap of every arm against an undisturbed one.
fn caption(all: &Interference) -> String {
    let worst = all.arms().into_iter().filter_map(|arm| {
        let worst = significant(arm.worst_itl_ms?.median, 3);
        let usual = significant(arm.undisturbed_itl_ms?.median, 3);
        Some(format!("{} {worst} ms (undisturbed {usual})", arm.way()))
    });
    format!(
        "A running sequence, token by token. The peak behind the line is the stall that the other prompt's prefill causes; its worst gap: {}.",
        worst.collect::<Vec<_>>().join("; ")
    )
}
