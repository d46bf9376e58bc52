//! What other links would save of the exposed transfer: projected, as ranges.

use plotters::style::RGBColor;

use super::scale::Scale;
use super::{
    Area, BLUE, BODY, Drawn, Entry, FAINT, GREEN, GREY, INK, LEGEND_TOP, ORANGE, PAPER, PURPLE,
    Page, Painted, SMALL, Size, VERMILION, draw, draw_ticks, legend, legend_height, line,
    rectangle, text, time,
};
use crate::metrics::Transfer;
use crate::metrics::summary::Summary;
use crate::projection::{Outlook, Projection, Range, Transport};
use crate::report::number::{one_line, significant};

const HEADING: i32 = 26;
const GAP: i32 = 10;
const AXIS: i32 = 62;
/// Room above the ranges for what their ends mean.
const LIMITS: i32 = 32;

/// Where ranges start, and the largest ends.
fn edges(page: Page) -> (i32, i32) {
    let margin = page.margin();
    page.pick((150, 700), (margin, page.width() - 2 * margin))
}

/// From one range to the next; on a narrow page its name stands above it.
fn pitch(page: Page) -> i32 {
    page.pick(20, 38)
}

/// Slowest line that is drawn: below, all of them take longer than what they are compared with.
const SLOWEST_GBPS: f64 = 10.0;

/// `None` when there is no transfer, or none that a request waits for.
pub(super) fn chart(summary: &Summary, outlooks: &[Outlook], page: Page) -> Option<Drawn> {
    let outlook = of_longest(outlooks)?;
    let exposed_ms = outlook.mode().exposed_ms;
    let drawn = |p: &&Projection| p.line_rate_gbps.is_some_and(|rate| rate >= SLOWEST_GBPS);
    let rows: Vec<&Projection> = outlook.projections.iter().filter(drawn).collect();
    let groups: Vec<&[&Projection]> =
        (rows.chunk_by(|a, b| a.line_rate_gbps == b.line_rate_gbps)).collect();
    let entries = Transport::ALL.map(|t| Entry::new(&t.to_string(), colour(t)));
    let top = LEGEND_TOP + legend_height(&entries, page) + LIMITS;
    let group_height = HEADING + pitch(page) * Transport::ALL.len() as i32 + GAP;
    let bottom = top + group_height * groups.len() as i32;
    let transfer = outlook.mode().transfer;
    let subtitle = format!(
        "PROJECTED, low to high. {}, {} prompt tokens, {} MB, {transfer}",
        one_line(&summary.model.name, 24),
        outlook.prompt_tokens,
        significant(outlook.measured.kv_bytes as f64 / 1e6, 3),
    );
    let scale = scale(&rows, transfer, exposed_ms, edges(page));
    draw(
        page,
        "savings.svg",
        bottom + AXIS,
        "What other links would save",
        &subtitle,
        caption(outlook, summary.link.as_ref().is_some_and(|l| l.loopback)),
        |area| {
            legend(area, &entries, page)?;
            draw_ticks(area, scale, (top, bottom))?;
            draw_limits(area, scale, exposed_ms, page, (top, bottom))?;
            for (i, group) in groups.iter().enumerate() {
                let y = top + group_height * i as i32;
                draw_group(area, group, transfer, scale, page, y)?;
            }
            let label = page.pick(
                "exposed transfer saved, ms: measured less projected",
                "exposed transfer saved, ms",
            );
            let (left, right) = edges(page);
            let middle = ((left + right) / 2, bottom + 40);
            text(area, label, middle, BODY.centred())
        },
    )
}

/// The prompt with the largest payload, if there is anything to save.
pub(in crate::report) fn of_longest(outlooks: &[Outlook]) -> Option<&Outlook> {
    let longest = outlooks.iter().max_by_key(|o| o.measured.kv_bytes)?;
    (longest.mode().exposed_ms > 0.0).then_some(longest)
}

/// Pixels of savings. Losses beyond the measured exposed time are cut; their numbers are not.
fn scale(rows: &[&Projection], transfer: Transfer, exposed_ms: f64, edges: (i32, i32)) -> Scale {
    let worst = rows.iter().map(|p| p.of(transfer).saving_ms.low);
    let worst = worst.fold(0.0, f64::min);
    Scale::linear(worst.max(-exposed_ms), exposed_ms, edges)
}

fn colour(transport: Transport) -> RGBColor {
    match transport {
        Transport::Tcp => GREY,
        Transport::BetterTcp => ORANGE,
        Transport::RdmaWire => BLUE,
        Transport::RdmaLibrary => GREEN,
        Transport::RdmaEngine => PURPLE,
    }
}

/// Lines at nothing saved and at all of it saved.
fn draw_limits(
    area: &Area,
    scale: Scale,
    exposed_ms: f64,
    page: Page,
    (top, bottom): (i32, i32),
) -> Painted {
    let (none, all) = (scale.at(0.0), scale.at(exposed_ms));
    line(area, (none, top - 6), (none, bottom), INK)?;
    line(area, (all, top - 6), (all, bottom), VERMILION)?;
    let measured = time(exposed_ms);
    let labels = [
        (none, "nothing".to_owned()),
        (
            all,
            page.pick(
                format!("all that was measured: {measured}"),
                format!("all: {measured}"),
            ),
        ),
    ];
    for (at, label) in labels {
        let half = Size::Small.width(&label) / 2;
        let (first, last) = (page.margin() + half, page.width() - page.margin() - half);
        let at = (at.clamp(first, last), top - 18);
        text(area, &label, at, SMALL.centred())?;
    }
    Ok(())
}

fn draw_group(
    area: &Area,
    rows: &[&Projection],
    transfer: Transfer,
    scale: Scale,
    page: Page,
    y: i32,
) -> Painted {
    let rate = rows.first().and_then(|p| p.line_rate_gbps).unwrap_or(0.0);
    let (margin, middle) = (page.margin(), y + HEADING / 2);
    let (left, right) = edges(page);
    let heading = format!("{rate} Gbit/s");
    text(area, &heading, (margin, middle), BODY)?;
    let from = left.max(margin + Size::Body.width(&heading) + GAP);
    line(area, (from, middle), (right, middle), FAINT)?;
    for (i, row) in rows.iter().enumerate() {
        let below = y + HEADING + pitch(page) * i as i32;
        // The name and the ends of a range beside it, or above it.
        let (name, middle) = page.pick((below + 10, below + 10), (below + 10, below + 27));
        let saving = row.of(transfer).saving_ms;
        let transport = row.transport.to_string();
        match page {
            Page::Wide => {
                text(area, &transport, (left - 12, name), SMALL.to_left())?;
                text(area, &range(saving), (right + 16, name), SMALL)?;
            }
            Page::Narrow => {
                let label = format!("{transport}: {}", range(saving));
                // The lines of the axis run behind it.
                let end = margin + Size::Small.width(&label);
                rectangle(area, (margin, name - 7), (end, name + 7), PAPER)?;
                text(area, &label, (margin, name), SMALL)?;
            }
        }
        let (from, mid) = (scale.at(saving.low), scale.at(saving.mid));
        // A narrow range is still seen.
        let to = scale.at(saving.high).max(from + 2);
        let (top, bottom) = (middle - 6, middle + 6);
        rectangle(area, (from, top), (to, bottom), colour(row.transport))?;
        line(area, (mid, middle - 8), (mid, middle + 8), INK)?;
    }
    Ok(())
}

/// The ends of a projected saving.
pub(in crate::report) fn range(saving: Range) -> String {
    match saving.high <= 0.0 {
        true => format!(
            "loses {} to {} ms",
            significant(-saving.high, 3),
            significant(-saving.low, 3)
        ),
        false => format!(
            "{} to {} ms",
            significant(saving.low, 3),
            significant(saving.high, 3)
        ),
    }
}

/// What to see, with the answer first where it is no.
fn caption(outlook: &Outlook, is_loopback: bool) -> String {
    let loopback = match is_loopback {
        true => " What was measured is loopback, which is no link between machines.",
        false => "",
    };
    let small = match outlook.is_below_published_fits {
        true => " The payload is smaller than the published fits hold for.",
        false => "",
    };
    format!(
        "Projected: {}. TCP from the fit of the run's link, held to the line; RDMA from published measurements.{loopback}{small}",
        outlook.rdma.reason
    )
}
