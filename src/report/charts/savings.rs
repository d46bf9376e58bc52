//! What other links would save of the exposed transfer: projected, as ranges.

use plotters::style::RGBColor;

use super::{
    Area, BLUE, BODY, Chart, Entry, FAINT, GREEN, GREY, INK, MARGIN, PURPLE, Painted, SMALL,
    VERMILION, draw, legend, line, rectangle, text, time,
};
use crate::metrics::summary::Summary;
use crate::projection::{LINE_RATES_GBPS, Projection, Savings, Tier};
use crate::report::number::{one_line, significant};

/// Where ranges start, and the largest ends, in pixels.
const LEFT: i32 = 150;
const RIGHT: i32 = 700;
const TOP: i32 = 138;
const HEADING: i32 = 26;
const PITCH: i32 = 20;
const GAP: i32 = 10;
const AXIS: i32 = 58;

/// `None` when there is no transfer, or none that a request waits for.
pub(super) fn chart(summary: &Summary) -> Option<Chart> {
    let savings = of_longest(summary)?;
    let tiers = savings.projections.len() / LINE_RATES_GBPS.len();
    let group = HEADING + PITCH * tiers as i32 + GAP;
    let bottom = TOP + group * LINE_RATES_GBPS.len() as i32;
    let subtitle = format!(
        "PROJECTED from published measurements, low to high. {}, {} prompt tokens, {} MB",
        one_line(&summary.model.name, 24),
        savings.prompt_tokens,
        significant(savings.kv_bytes as f64 / 1e6, 3),
    );
    let scale = Scale::of(&savings);
    draw(
        "savings.svg",
        bottom + AXIS,
        "What other links would save",
        &subtitle,
        caption(&savings, summary.link.as_ref().is_some_and(|l| l.loopback)),
        |area| {
            let entry = |tier: Tier| Entry::new(&tier.to_string(), colour(tier));
            let tiers = [Tier::Tcp, Tier::Wire, Tier::Library, Tier::Engine].map(entry);
            legend(area, &tiers, (MARGIN, 84))?;
            draw_limits(area, scale, savings.exposed_ms, bottom)?;
            let groups = savings
                .projections
                .chunks(savings.projections.len() / LINE_RATES_GBPS.len());
            for (i, group_rows) in groups.enumerate() {
                let y = TOP + group * i as i32;
                draw_group(area, group_rows, scale, y)?;
            }
            let label = "exposed transfer saved, measured less projected";
            let middle = ((LEFT + RIGHT) / 2, bottom + 34);
            text(area, label, middle, BODY.centred())
        },
    )
}

/// The savings of the prompt with the largest payload, if there is anything to save.
pub(in crate::report) fn of_longest(summary: &Summary) -> Option<Savings> {
    let all = summary.cases.iter().filter_map(|c| Savings::of(c).ok()?);
    let longest = all.max_by_key(|s| s.kv_bytes)?;
    (longest.exposed_ms > 0.0).then_some(longest)
}

/// Pixels of savings. Losses beyond the measured exposed time are cut; their numbers are not.
#[derive(Clone, Copy)]
struct Scale {
    from_ms: f64,
    to_ms: f64,
}

impl Scale {
    fn of(savings: &Savings) -> Self {
        let worst = savings.projections.iter().map(|p| p.saving_ms.low);
        let worst = worst.fold(0.0, f64::min);
        Self {
            from_ms: worst.max(-savings.exposed_ms),
            to_ms: savings.exposed_ms,
        }
    }

    fn at(self, ms: f64) -> i32 {
        let share = ((ms - self.from_ms) / (self.to_ms - self.from_ms)).clamp(0.0, 1.0);
        LEFT + (share * f64::from(RIGHT - LEFT)).round() as i32
    }
}

fn colour(tier: Tier) -> RGBColor {
    match tier {
        Tier::Tcp => GREY,
        Tier::Wire => BLUE,
        Tier::Library => GREEN,
        Tier::Engine => PURPLE,
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

fn draw_group(area: &Area, rows: &[Projection], scale: Scale, y: i32) -> Painted {
    let rate = rows.first().map_or(0.0, |p| p.line_rate_gbps);
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
            &row.tier.to_string(),
            (LEFT - 12, middle),
            SMALL.to_left(),
        )?;
        let (from, mid) = (scale.at(row.saving_ms.low), scale.at(row.saving_ms.mid));
        // A narrow range is still seen.
        let to = scale.at(row.saving_ms.high).max(from + 2);
        rectangle(area, (from, middle - 6), (to, middle + 6), colour(row.tier))?;
        line(area, (mid, middle - 8), (mid, middle + 8), INK)?;
        text(area, &range(row), (RIGHT + 16, middle), SMALL)?;
    }
    Ok(())
}

/// The ends of a projected saving.
pub(in crate::report) fn range(projection: &Projection) -> String {
    let saving = projection.saving_ms;
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

/// Share of E2E below which a saving is called nothing.
const NOTHING_SHARE: f64 = 0.01;

/// What to see, with the answer first where it is no.
fn caption(savings: &Savings, is_loopback: bool) -> String {
    let most = savings.most_by_rdma_ms().max(0.0);
    let answer = match most < NOTHING_SHARE * savings.e2e_ms {
        true => "RDMA would buy next to nothing here: ",
        false => "",
    };
    let loopback = match is_loopback {
        true => " What was measured is loopback, which is no link between machines.",
        false => "",
    };
    let small = match savings.is_below_fits {
        true => " The payload is smaller than the published fits hold for.",
        false => "",
    };
    format!(
        "{answer}projected, any RDMA tier on any of these links saves at most {} ms of the {} ms that the transfer exposes, in an E2E of {} ms. Ranges of published measurements, not fitted on this link; the same link with better TCP stands beside them.{loopback}{small}",
        significant(most, 3),
        significant(savings.exposed_ms, 3),
        significant(savings.e2e_ms, 3),
    )
}
