//! Where a split breaks even: the change of E2E over prompt length and rate of the link, projected,
//! with the run's own link marked.

use plotters::element::{Circle, PathElement};
use plotters::style::{Color, RGBColor};

use super::{
    Area, BODY, Drawn, Entry, INK, Mark, ON_DARK, ON_LIGHT, ORANGE, Page, Painted, SKY, SMALL,
    Size, VERMILION, draw, legend, legend_height, rectangle, text,
};
use crate::metrics::Record;
use crate::projection::{Column, SURFACE_RATES_GBPS, Surface, surface};
use crate::report::number::{one_line, significant};
use crate::verdict::rules::LATENCY_MATTERS_PCT;

const CELL: i32 = 22;
const HEADING: i32 = 36;
const BELOW: i32 = 76;
/// Room between columns for the names below them.
const NAME_GAP: i32 = 8;

/// Where cells start and end.
fn sides(page: Page) -> (i32, i32) {
    (page.pick(110, 56), page.width() - page.pick(40, 12))
}

/// With more prompts than this, some are left out: the values would not be legible.
fn most_columns(page: Page) -> usize {
    page.pick(10, 4)
}

/// Changes from which on a cell has a colour, in percent, its colour and what it means.
const CLASSES: [(f64, RGBColor, &str); 5] = [
    (f64::NEG_INFINITY, SKY, "faster"),
    (
        -LATENCY_MATTERS_PCT,
        RGBColor(0xE8, 0xE8, 0xE8),
        "as fast, within 1%",
    ),
    (
        LATENCY_MATTERS_PCT,
        RGBColor(0xFB, 0xE0, 0xB0),
        "up to 5% slower",
    ),
    (5.0, ORANGE, "up to 20%"),
    (20.0, VERMILION, "more"),
];

/// `None` where nothing can be projected.
pub(super) fn chart(record: &Record, page: Page) -> Option<Drawn> {
    let mut surfaces = surface(record);
    let most = most_columns(page);
    surfaces
        .iter_mut()
        .for_each(|surface| thin_out(surface, most));
    let longest = surfaces.first()?.columns.last()?;
    let entries = entries(&surfaces);
    let top = 100 + legend_height(&entries, page);
    let height = HEADING + CELL * SURFACE_RATES_GBPS.len() as i32 + BELOW;
    let subtitle = format!(
        "PROJECTED change of E2E against one node. {}",
        one_line(&record.model.name, 40)
    );
    draw(
        page,
        "break-even.svg",
        top + height * surfaces.len() as i32,
        "Where a split breaks even",
        &subtitle,
        caption(longest),
        |area| {
            legend(area, &entries, page)?;
            for (i, surface) in surfaces.iter().enumerate() {
                draw_surface(area, surface, page, top + height * i as i32)?;
            }
            Ok(())
        },
    )
}

/// Leaves out prompts between the first and the last where there are too many.
fn thin_out(surface: &mut Surface, most: usize) {
    let last = surface.columns.len() - 1;
    let every = last.div_ceil(most - 1).max(1);
    let mut i = 0;
    surface.columns.retain(|_| {
        i += 1;
        (i - 1) % every == 0 || i - 1 == last
    });
}

fn class(change_pct: f64) -> usize {
    let reached = CLASSES.iter().filter(|(from, ..)| change_pct >= *from);
    reached.count().max(1) - 1
}

fn entries(surfaces: &[Surface]) -> Vec<Entry> {
    let changes = || {
        surfaces
            .iter()
            .flat_map(|s| &s.columns)
            .flat_map(|c| &c.changes_pct)
    };
    let occurs = |i: &usize| changes().any(|change| class(*change) == *i);
    let classes = (0..CLASSES.len()).filter(occurs);
    let classes = classes.map(|i| Entry::new(CLASSES[i].2, CLASSES[i].1));
    let own = Entry::new("this link", INK).drawn_as(Mark::Ring);
    classes.chain([own]).collect()
}

fn draw_surface(area: &Area, surface: &Surface, page: Page, top: i32) -> Painted {
    let (left, right) = sides(page);
    let title = format!("{}: rate of the link, Gbps of payload", surface.transfer);
    text(area, &title, (page.margin(), top + HEADING / 2 - 4), BODY)?;
    let top = top + HEADING;
    let rows = SURFACE_RATES_GBPS.len() as i32;
    let bottom = top + CELL * rows;
    for (i, rate) in SURFACE_RATES_GBPS.iter().enumerate() {
        let middle = bottom - CELL * i as i32 - CELL / 2;
        text(
            area,
            &rate.to_string(),
            (left - 12, middle),
            SMALL.to_left(),
        )?;
    }
    let edges = edges(surface.columns.len(), (left, right));
    let mut label_y = bottom + 40;
    for (column, edge) in surface.columns.iter().zip(&edges) {
        draw_column(area, column, *edge, bottom)?;
        let alike = |other: &&Column| other.prompt_tokens == column.prompt_tokens;
        if surface.columns.iter().filter(alike).count() > 1 {
            draw_name(area, &column.prompt, *edge, bottom + 34)?;
            label_y = bottom + 54;
        }
    }
    let path = frontier(surface, &edges, bottom);
    area.draw(&PathElement::new(path, ON_LIGHT.stroke_width(3)))?;
    let middle = ((left + right) / 2, label_y);
    text(area, "prompt tokens", middle, BODY.centred())
}

/// Left and right of every column.
fn edges(columns: usize, (left, right): (i32, i32)) -> Vec<(i32, i32)> {
    let at = |i: usize| left + (right - left) * i as i32 / columns as i32;
    (0..columns).map(|i| (at(i), at(i + 1))).collect()
}

fn draw_column(area: &Area, column: &Column, (left, right): (i32, i32), bottom: i32) -> Painted {
    for (i, change) in column.changes_pct.iter().enumerate() {
        let low = bottom - CELL * i as i32;
        let colour = CLASSES[class(*change)].1;
        rectangle(area, (left, low - CELL), (right - 1, low - 1), colour)?;
        let at = ((left + right) / 2, low - CELL / 2);
        text(
            area,
            &change_text(*change),
            at,
            SMALL.centred().coloured(ON_LIGHT),
        )?;
    }
    let own = (left + 11, bottom - row_pixels(column.own_gbps));
    area.draw(&Circle::new(own, 6, ON_DARK.filled()))?;
    area.draw(&Circle::new(own, 6, ON_LIGHT.stroke_width(2)))?;
    let tokens = column.prompt_tokens.to_string();
    text(
        area,
        &tokens,
        ((left + right) / 2, bottom + 16),
        SMALL.centred(),
    )
}

/// What tells a prompt from others of its length, as far as it fits below its column.
fn draw_name(area: &Area, name: &str, (left, right): (i32, i32), y: i32) -> Painted {
    let fits = (right - left - NAME_GAP) / Size::Small.width("m");
    let name = one_line(name, usize::try_from(fits).unwrap_or(0));
    text(area, &name, ((left + right) / 2, y), SMALL.centred())
}

/// How far above the lowest row's lower edge a rate stands; between two rows in proportion.
fn row_pixels(gbps: f64) -> i32 {
    let rates = SURFACE_RATES_GBPS;
    let above = rates.partition_point(|rate| *rate < gbps);
    let row = match above {
        0 => 0.0,
        i if i == rates.len() => (i - 1) as f64,
        i => {
            let (low, high) = (rates[i - 1].ln(), rates[i].ln());
            (i - 1) as f64 + (gbps.ln() - low) / (high - low)
        }
    };
    ((row + 0.5) * f64::from(CELL)).round() as i32
}

/// Above this line a split costs no more than what matters.
fn frontier(surface: &Surface, edges: &[(i32, i32)], bottom: i32) -> Vec<(i32, i32)> {
    let steps = surface
        .columns
        .iter()
        .zip(edges)
        .flat_map(|(column, edge)| {
            let slower = rows_that_cost(column);
            let y = bottom - CELL * slower as i32;
            [(edge.0, y), (edge.1 - 1, y)]
        });
    steps.collect()
}

/// Rows from the slowest rate up in which a split costs more than what matters.
fn rows_that_cost(column: &Column) -> usize {
    let costs = |change: &&f64| **change >= LATENCY_MATTERS_PCT;
    column.changes_pct.iter().take_while(costs).count()
}

/// A change in few characters.
fn change_text(change_pct: f64) -> String {
    match change_pct {
        pct if pct >= 900.0 => format!("{:.0}x", 1.0 + pct / 100.0),
        pct if pct.abs() >= 9.95 => format!("{pct:+.0}%"),
        // What rounds to zero has no sign.
        pct if pct.abs() < 0.05 => "0.0%".to_owned(),
        pct => format!("{pct:+.1}%"),
    }
}

/// What to see.
fn caption(longest: &Column) -> String {
    format!(
        "Projected: compute and fixed costs as this run measured them, only the rate of the link is another. Every value is a middle estimate and as uncertain as the run's own change of E2E at that length, whose interval is in the table of changes: where that may be chance, so is the line. Above the thick line a split is estimated to cost less than {LATENCY_MATTERS_PCT}% of E2E. The circles are this run's link, {} Gbps at {} prompt tokens.",
        significant(longest.own_gbps, 3),
        longest.prompt_tokens,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_have_their_class_and_few_characters() {
        for (change, wanted, text) in [
            (-7.0, "faster", "-7.0%"),
            (0.4, "as fast, within 1%", "+0.4%"),
            (-0.01, "as fast, within 1%", "0.0%"),
            (1.0, "up to 5% slower", "+1.0%"),
            (19.9, "up to 20%", "+20%"),
            (26_000.0, "more", "261x"),
        ] {
            assert_eq!(CLASSES[class(change)].2, wanted, "{change}");
            assert_eq!(change_text(change), text);
        }
    }

    #[test]
    fn a_link_between_two_rates_stands_between_their_rows() {
        assert_eq!(row_pixels(0.001), CELL / 2);
        assert_eq!(row_pixels(1e6), CELL * 12 - CELL / 2);
        let (low, high) = (row_pixels(10.0), row_pixels(25.0));
        assert_eq!(high - low, CELL);
        assert!((low..high).contains(&row_pixels(15.0)));
    }

    #[test]
    fn many_lengths_are_thinned_out() {
        let column = |prompt_tokens| Column {
            prompt: String::new(),
            prompt_tokens,
            own_gbps: 1.0,
            changes_pct: vec![0.0; 12],
        };
        let mut surface = Surface {
            transfer: crate::metrics::Transfer::Bulk,
            columns: (1..=25).map(column).collect(),
        };
        thin_out(&mut surface, most_columns(Page::Wide));
        let lengths: Vec<u32> = surface.columns.iter().map(|c| c.prompt_tokens).collect();
        assert!(lengths.len() <= most_columns(Page::Wide), "{lengths:?}");
        assert_eq!((lengths[0], lengths[lengths.len() - 1]), (1, 25));
    }
}
