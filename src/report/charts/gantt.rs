//! One request layer by layer on both nodes: when each layer was computed, sent and landed, and
//! when decoding went on.

mod timeline;

use plotters::style::RGBColor;

use super::scale::Scale;
use super::{
    Area, BLUE, BODY, Drawn, Entry, GREEN, INK, Mark, PURPLE, Page, Painted, SKY, SMALL, Size,
    VERMILION, draw, draw_ticks, legend, legend_height, line, rectangle, text, time,
};
use crate::metrics::{Record, Transfer};
use crate::report::number::{one_line, small};
use timeline::{Bar, Timeline};

const HEADING: i32 = 28;
/// Room for the names of tokens above a panel.
const MARKS: i32 = 22;
const LANE_GAP: i32 = 10;
/// The decode node's pieces, and its steps below them.
const LANDED: i32 = 12;
const STEPS: i32 = 18;
const AXIS: i32 = 58;

/// Where bars start and end.
fn edges(page: Page) -> (i32, i32) {
    (page.pick(130, 100), page.width() - page.pick(86, 84))
}

/// All layers together are about this high, in pixels.
const LAYERS: i32 = 150;

/// What follows prefill gets a panel of its own where it takes less of the whole than this.
const ENLARGED_BELOW: f64 = 0.3;

/// A stretch of a request.
struct Panel<'a> {
    title: String,
    timeline: &'a Timeline,
    from_ms: f64,
    to_ms: f64,
}

/// `None` where no request sent a cache.
pub(super) fn chart(record: &Record, page: Page) -> Option<Drawn> {
    let modes = [Transfer::Bulk, Transfer::Layered, Transfer::Auto];
    let timelines = modes
        .iter()
        .filter_map(|mode| Timeline::typical(record, *mode));
    // `auto` is one of the others each time.
    let timelines: Vec<Timeline> = timelines.take(2).collect();
    let first = timelines.first()?;
    let panels: Vec<Panel> = timelines.iter().flat_map(panels).collect();
    let entries = [
        Entry::new("prefill, to the layer's K and V", BLUE),
        Entry::new("sent, until acknowledged", VERMILION),
        Entry::new("landed", SKY),
        Entry::new("handoff", PURPLE),
        Entry::new("decode step", GREEN),
        Entry::new("clock error", INK).drawn_as(Mark::Line),
    ];
    let top = 92 + legend_height(&entries, page);
    let subtitle = format!(
        "{}; {} prompt tokens; the request with the median E2E",
        one_line(&record.model.name, 40),
        first.prompt_tokens
    );
    let height: i32 = panels.iter().map(|p| panel_height(p.timeline)).sum();
    draw(
        page,
        "gantt.svg",
        top + height,
        "One request, layer by layer",
        &subtitle,
        caption(&timelines),
        |area| {
            legend(area, &entries, page)?;
            let mut y = top;
            for panel in &panels {
                draw_panel(area, panel, page, y)?;
                y += panel_height(panel.timeline);
            }
            Ok(())
        },
    )
}

/// The whole request until its second token, and what follows prefill where that is a sliver.
fn panels(timeline: &Timeline) -> Vec<Panel<'_>> {
    let mode = timeline.transfer;
    let end_ms = timeline.end_ms;
    let mut panels = vec![Panel {
        title: format!("{mode}: from the start to the second token"),
        timeline,
        from_ms: 0.0,
        to_ms: end_ms,
    }];
    let tail_ms = 1.15 * (end_ms - timeline.prefill_end_ms);
    let from_ms = end_ms - tail_ms;
    let is_sliver = tail_ms > 0.0 && tail_ms < ENLARGED_BELOW * end_ms;
    // Where all went behind prefill there is nothing of a layer to see.
    if is_sliver && timeline.acknowledged_ms > from_ms {
        panels.push(Panel {
            title: format!("{mode}: the last {} of it", time(tail_ms)),
            timeline,
            from_ms,
            to_ms: end_ms,
        });
    }
    panels
}

/// Height of a layer's row, in pixels.
fn row(timeline: &Timeline) -> i32 {
    (LAYERS / timeline.layers.max(1) as i32).clamp(4, 14)
}

fn lanes_height(timeline: &Timeline) -> i32 {
    row(timeline) * timeline.layers as i32 + LANE_GAP + LANDED + STEPS
}

fn panel_height(timeline: &Timeline) -> i32 {
    HEADING + MARKS + lanes_height(timeline) + AXIS
}

fn draw_panel(area: &Area, panel: &Panel, page: Page, top: i32) -> Painted {
    let timeline = panel.timeline;
    let at = (page.margin(), top + HEADING / 2);
    text(area, &panel.title, at, BODY)?;
    let top = top + HEADING + MARKS;
    let bottom = top + lanes_height(timeline);
    let (left, right) = edges(page);
    let x = Scale::linear(panel.from_ms, panel.to_ms, (left, right));
    draw_ticks(area, x, (top, bottom))?;
    let label = page.pick(
        "ms since the request started, on the prefill node's clock",
        "ms since the request started",
    );
    let middle = ((left + right) / 2, bottom + 36);
    text(area, label, middle, SMALL.centred())?;
    draw_layers(area, timeline, x, page, top)?;
    let lane = top + row(timeline) * timeline.layers as i32 + LANE_GAP;
    draw_decode(area, timeline, x, page, lane)?;
    draw_tokens(area, timeline, x, left, (top, bottom))
}

/// What a layer's row holds on the prefill node: computing, then sending.
fn draw_layers(area: &Area, timeline: &Timeline, x: Scale, page: Page, top: i32) -> Painted {
    let (left, _) = edges(page);
    let row = row(timeline);
    let last = top + row * timeline.layers as i32;
    let middle = (top + last) / 2;
    text(area, "prefill node", (page.margin(), middle), SMALL)?;
    text(area, "layer 1", (left - 8, top + 6), SMALL.to_left())?;
    if timeline.layers > 1 && last - top > 28 {
        let name = timeline.layers.to_string();
        text(area, &name, (left - 8, last - 7), SMALL.to_left())?;
    }
    // In chunks a layer is computed again while its first part is sent.
    let half = if timeline.is_chunked { row / 2 } else { 0 };
    for bar in &timeline.computed {
        let y = top + row * bar.layer as i32;
        draw_bar(area, bar, x, (y, y + row - 1 - half), BLUE)?;
    }
    for bar in &timeline.sent {
        let y = top + row * bar.layer as i32;
        draw_bar(area, bar, x, (y + half, y + row - 1), VERMILION)?;
    }
    Ok(())
}

/// Pieces that landed, the handoff and steps on the decode node, each as far from its place as its
/// clock may be off.
fn draw_decode(area: &Area, timeline: &Timeline, x: Scale, page: Page, top: i32) -> Painted {
    let (left, right) = edges(page);
    let middle = top + (LANDED + STEPS) / 2;
    text(area, "decode node", (page.margin(), middle), SMALL)?;
    let Some(error_ms) = timeline.clock_error_ms else {
        let why = "its clock cannot be placed on the other's";
        return text(area, why, (left, middle), SMALL);
    };
    for at_ms in timeline.landed_ms.iter().filter(|ms| x.holds(**ms)) {
        let at = x.at(*at_ms);
        rectangle(area, (at, top), (at + 2, top + LANDED - 3), SKY)?;
    }
    let (top, bottom) = (top + LANDED, top + LANDED + STEPS);
    for bar in &timeline.steps {
        draw_bar(area, bar, x, (top, bottom), GREEN)?;
    }
    if let Some(handoff) = &timeline.handoff {
        draw_bar(area, handoff, x, (top, bottom), PURPLE)?;
    }
    if let Some(step) = timeline.steps.first().filter(|step| x.holds(step.from_ms)) {
        draw_error(area, step.from_ms, error_ms, x, (top + bottom) / 2)?;
    }
    let label = format!("±{} ms", small(error_ms));
    text(area, &label, (right + 10, (top + bottom) / 2), SMALL)
}

/// Where a moment of the decode node can lie on this clock.
fn draw_error(area: &Area, at_ms: f64, error_ms: f64, x: Scale, y: i32) -> Painted {
    let (from, to) = (x.at(at_ms - error_ms), x.at(at_ms + error_ms));
    line(area, (from, y), (to, y), INK)?;
    for end in [from, to] {
        line(area, (end, y - 5), (end, y + 5), INK)?;
    }
    Ok(())
}

/// When the user has the first two tokens.
fn draw_tokens(
    area: &Area,
    timeline: &Timeline,
    x: Scale,
    left: i32,
    (top, bottom): (i32, i32),
) -> Painted {
    let names = ["1st token", "2nd token"];
    let mut free_from = left;
    for (name, at_ms) in names.iter().zip(&timeline.tokens_ms) {
        if !x.holds(*at_ms) {
            continue;
        }
        let at = x.at(*at_ms);
        line(area, (at, top - 6), (at, bottom), INK)?;
        let width = Size::Small.width(name);
        let y = top - 14;
        match at - width < free_from {
            true => text(area, name, (at, y), SMALL)?,
            false => text(area, name, (at, y), SMALL.to_left())?,
        }
        free_from = at + 6;
    }
    Ok(())
}

/// A bar as far as it lies in the panel; what takes time is seen, if only as a line.
fn draw_bar(area: &Area, bar: &Bar, x: Scale, (top, bottom): (i32, i32), c: RGBColor) -> Painted {
    if !x.holds(bar.from_ms) && !x.holds(bar.to_ms) && !bar.spans(&x) {
        return Ok(());
    }
    let (from, to) = (x.at(bar.from_ms), x.at(bar.to_ms));
    rectangle(area, (from, top), (to.max(from + 1), bottom), c)
}

/// What to see, in numbers of each mode.
fn caption(timelines: &[Timeline]) -> String {
    let modes = timelines.iter().map(|t| {
        let clock = match t.clock_error_ms {
            Some(error_ms) => format!("the decode node stands within ±{} ms", small(error_ms)),
            None => "the decode node's clock cannot be placed".to_owned(),
        };
        format!(
            "{}: the last layer is acknowledged {} after prefill's end, {clock}",
            t.transfer,
            time((t.acknowledged_ms - t.prefill_end_ms).max(0.0)),
        )
    });
    format!(
        "Each row is a layer: prefill from the K and V of the layer before to its own (the last one on to the logits), then under way until its acknowledgement is back. {}. Its clock is placed by the messages of this request, none of the figures rests on it.",
        modes.collect::<Vec<_>>().join("; ")
    )
}
