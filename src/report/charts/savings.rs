//! What other links would save of the exposed transfer: projected, as ranges.

use plotters::style::RGBColor;

use super::{
    Area, BLUE, BODY, Chart, Entry, FAINT, GREEN, GREY, INK, MARGIN, ORANGE, PURPLE, Painted,
    SMALL, VERMILION, draw, legend, line, rectangle, text, time,
};
use crate::metrics::Transfer;
use crate::metrics::summary::Summary;
use crate::projection::{Outlook, Projection, Range, Transport};
use crate::report::number::{one_line, significant};

/// Where ranges start, and the largest ends, in pixels.
const LEFT: i32 = 150;
const RIGHT: i32 = 700;
const TOP: i32 = 138;
const HEADING: i32 = 26;
const PITCH: i32 = 20;
const GAP: i32 = 10;
const AXIS: i32 = 58;

/// Slowest line that is drawn: below, all of them take longer than what they are compared with.
const SLOWEST_GBPS: f64 = 10.0;

/// `None` when there is no transfer, or none that a request waits for.
pub(super) fn chart(summary: &Summary, outlooks: &[Outlook]) -> Option<Chart> {
    let outlook = of_longest(outlooks)?;
    let exposed_ms = outlook.mode().exposed_ms;
    let drawn = |p: &&Projection| p.line_rate_gbps.is_some_and(|rate| rate >= SLOWEST_GBPS);
    let rows: Vec<&Projection> = outlook.projections.iter().filter(drawn).collect();
    let groups: Vec<&[&Projection]> =
        (rows.chunk_by(|a, b| a.line_rate_gbps == b.line_rate_gbps)).collect();
    let group_height = HEADING + PITCH * Transport::ALL.len() as i32 + GAP;
    let bottom = TOP + group_height * groups.len() as i32;
    let transfer = outlook.mode().transfer;
    let subtitle = format!(
        "PROJECTED, low to high. {}, {} prompt tokens, {} MB, {transfer}",
        one_line(&summary.model.name, 24),
        outlook.prompt_tokens,
        significant(outlook.measured.kv_bytes as f64 / 1e6, 3),
    );
    let scale = Scale::of(&rows, transfer, exposed_ms);
    draw(
        "savings.svg",
        bottom + AXIS,
        "What other links would save",
        &subtitle,
        caption(outlook, summary.link.as_ref().is_some_and(|l| l.loopback)),
        |area| {
            let entry = |t: Transport| Entry::new(&t.to_string(), colour(t));
            legend(area, &Transport::ALL.map(entry), (MARGIN, 84))?;
            draw_limits(area, scale, exposed_ms, bottom)?;
            for (i, group) in groups.iter().enumerate() {
                let y = TOP + group_height * i as i32;
                draw_group(area, group, transfer, scale, y)?;
            }
            let label = "exposed transfer saved, measured less projected";
            let middle = ((LEFT + RIGHT) / 2, bottom + 34);
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
#[derive(Clone, Copy)]
struct Scale {
    from_ms: f64,
    to_ms: f64,
}

impl Scale {
    fn of(rows: &[&Projection], transfer: Transfer, exposed_ms: f64) -> Self {
        let worst = rows.iter().map(|p| p.of(transfer).saving_ms.low);
        let worst = worst.fold(0.0, f64::min);
        Self {
            from_ms: worst.max(-exposed_ms),
            to_ms: exposed_ms,
        }
    }

    fn at(self, ms: f64) -> i32 {
        let share = ((ms - self.from_ms) / (self.to_ms - self.from_ms)).clamp(0.0, 1.0);
        LEFT + (share * f64::from(RIGHT - LEFT)).round() as i32
    }
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
fn draw_limits(area: &Area, scale: Scale, exposed_ms: f64, bottom: i32) -> Painted {
    let (none, all) = (scale.at(0.0), scale.at(exposed_ms));
    line(area, (none, TOP - 6), (none, bottom), INK)?;
    line(area, (all, TOP - 6), (all, bottom), VERMILION)?;
    text(area, "nothing", (none, TOP - 18), SMALL.centred())?;
    let label = format!("all that was measured: {}", time(exposed_ms));
    text(area, &label, (all, TOP - 18), SMALL.centred())
}

fn draw_group(
    area: &Area,
    rows: &[&Projection],
    transfer: Transfer,
    scale: Scale,
    y: i32,
) -> Painted {
    let rate = rows.first().and_then(|p| p.line_rate_gbps).unwrap_or(0.0);
    text(
        area,
        &format!("{rate} Gbit/s"),
        (MARGIN, y + HEADING / 2),
        BODY,
    )?;
    line(
        area,
        (LEFT, y + HEADING / 2),
        (RIGHT, y + HEADING / 2),
        FAINT,
    )?;
    for (i, row) in rows.iter().enumerate() {
        let middle = y + HEADING + PITCH * i as i32 + PITCH / 2;
        text(
            area,
            &row.transport.to_string(),
            (LEFT - 12, middle),
            SMALL.to_left(),
        )?;
        let saving = row.of(transfer).saving_ms;
        let (from, mid) = (scale.at(saving.low), scale.at(saving.mid));
        // A narrow range is still seen.
        let to = scale.at(saving.high).max(from + 2);
        rectangle(
            area,
            (from, middle - 6),
            (to, middle + 6),
            colour(row.transport),
        )?;
        line(area, (mid, middle - 8), (mid, middle + 8), INK)?;
        text(area, &range(saving), (RIGHT + 16, middle), SMALL)?;
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
