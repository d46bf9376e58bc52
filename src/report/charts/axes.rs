//! Points over two axes: what charts of one quantity over another share.

use plotters::element::{Circle, PathElement};
use plotters::style::{Color, RGBColor};

use super::{
    Area, BODY, Chart, Entry, FAINT, INK, MARGIN, Painted, SMALL, Size, WIDTH, draw, legend,
    legend_height, line, plain, text, ticks,
};
use crate::report::number::significant;
use crate::stats::Figure;

const LEFT: i32 = 84;
const RIGHT: i32 = WIDTH - 64;
const PLOT: i32 = 280;
const BELOW: i32 = 70;

/// An axis is logarithmic where its values span more than this.
const LOG_FROM: f64 = 8.0;
/// As above, for axes that could start at zero, which says more.
const LOG_FROM_ZERO: f64 = 30.0;
/// With more points than this, their values are not written beside them.
const LABELLED_POINTS: usize = 8;
/// Space between labels, in pixels.
const LABEL_GAP: i32 = 10;

/// Figures over x, with whiskers from the smallest to the largest sample.
pub(super) struct Series {
    pub(super) entry: Entry,
    /// By x.
    pub(super) points: Vec<(f64, Figure)>,
}

/// What a chart is called and how its axes are.
pub(super) struct Axes {
    pub(super) file: &'static str,
    pub(super) title: &'static str,
    pub(super) subtitle: String,
    pub(super) caption: String,
    pub(super) x_label: &'static str,
    pub(super) y_label: &'static str,
    /// Text of a value on the x axis.
    pub(super) x_text: fn(f64) -> String,
    /// The y axis reaches at least this.
    pub(super) y_at_least: f64,
    /// Whether y may be logarithmic; zeros cannot be.
    pub(super) y_may_be_log: bool,
}

/// Pixels of values.
#[derive(Clone, Copy)]
struct Scale {
    from: f64,
    to: f64,
    is_log: bool,
    pixels: (i32, i32),
}

impl Scale {
    fn at(&self, value: f64) -> i32 {
        let measure = |v: f64| if self.is_log { v.ln() } else { v };
        let (from, to) = (measure(self.from), measure(self.to));
        let share = ((measure(value) - from) / (to - from)).clamp(0.0, 1.0);
        let (start, end) = self.pixels;
        start + (share * f64::from(end - start)).round() as i32
    }

    /// Values with some room on both sides.
    fn around(min: f64, max: f64, pixels: (i32, i32)) -> Self {
        let is_log = min > 0.0 && max / min > LOG_FROM;
        let (from, to) = match (is_log, max > min) {
            (true, _) => (min / 1.15, max * 1.15),
            (false, true) => (min - 0.06 * (max - min), max + 0.06 * (max - min)),
            (false, false) => (min - 1.0, max + 1.0),
        };
        Self {
            from,
            to,
            is_log,
            pixels,
        }
    }

    fn ticks(&self) -> Vec<f64> {
        if !self.is_log {
            return ticks(self.to);
        }
        let decades = self.from.log10().floor() as i32..=self.to.log10().ceil() as i32;
        let all = decades.flat_map(|d| [1.0, 2.0, 5.0].map(|m| m * 10f64.powi(d)));
        let inside: Vec<f64> = all.filter(|t| (self.from..=self.to).contains(t)).collect();
        match inside.len() {
            0..=9 => inside,
            _ => inside.into_iter().step_by(3).collect(),
        }
    }
}

/// A chart of series; `None` without a point.
pub(super) fn chart(axes: Axes, series: &[Series]) -> Option<Chart> {
    let points = || series.iter().flat_map(|s| &s.points);
    let least = |values: &mut dyn Iterator<Item = f64>| values.min_by(f64::total_cmp);
    let most = |values: &mut dyn Iterator<Item = f64>| values.max_by(f64::total_cmp);
    let x_min = least(&mut points().map(|(x, _)| *x))?;
    let x_max = most(&mut points().map(|(x, _)| *x))?;
    let y_min = least(&mut points().map(|(_, f)| f.min))?;
    let y_max = most(&mut points().map(|(_, f)| f.max))?.max(axes.y_at_least);
    let entries: Vec<Entry> = series.iter().map(|s| s.entry.clone()).collect();
    let top = 106 + legend_height(&entries);
    let bottom = top + PLOT;
    let x = Scale::around(x_min, x_max, (LEFT, RIGHT));
    let is_log = axes.y_may_be_log && y_min > 0.0 && y_max / y_min > LOG_FROM_ZERO;
    let y = Scale {
        from: if is_log { y_min / 1.5 } else { 0.0 },
        to: if is_log { y_max * 1.8 } else { y_max * 1.15 },
        is_log,
        pixels: (bottom, top),
    };
    let mut xs: Vec<f64> = points().map(|(x, _)| *x).collect();
    xs.sort_by(f64::total_cmp);
    xs.dedup();
    let count = points().count();
    draw(
        axes.file,
        bottom + BELOW,
        axes.title,
        &axes.subtitle,
        axes.caption.clone(),
        |area| {
            legend(area, &entries, (MARGIN, 84))?;
            text(area, axes.y_label, (MARGIN, top - 18), BODY)?;
            draw_y(area, y)?;
            draw_x(area, x, &xs, axes.x_text, bottom)?;
            let middle = ((LEFT + RIGHT) / 2, bottom + 50);
            text(area, axes.x_label, middle, BODY.centred())?;
            for (i, series) in series.iter().enumerate() {
                draw_series(area, series, x, y)?;
                if i == 0 && count <= LABELLED_POINTS {
                    label_points(area, series, x, y)?;
                }
            }
            Ok(())
        },
    )
}

fn draw_y(area: &Area, y: Scale) -> Painted {
    for tick in y.ticks() {
        line(area, (LEFT, y.at(tick)), (RIGHT, y.at(tick)), FAINT)?;
        let label = plain(tick);
        text(area, &label, (LEFT - 10, y.at(tick)), SMALL.to_left())?;
    }
    Ok(())
}

/// The values that occur are the ticks, as far as their labels do not collide; the last has one.
fn draw_x(
    area: &Area,
    x: Scale,
    values: &[f64],
    x_text: fn(f64) -> String,
    bottom: i32,
) -> Painted {
    line(area, (LEFT, bottom), (RIGHT, bottom), INK)?;
    let half = |value: f64| Size::Small.width(&x_text(value)) / 2;
    let last_from = values
        .last()
        .map_or(RIGHT, |v| x.at(*v) - half(*v) - LABEL_GAP);
    let mut free_from = 0;
    for (i, value) in values.iter().enumerate() {
        let (at, half) = (x.at(*value), half(*value));
        line(area, (at, bottom), (at, bottom + 5), INK)?;
        let is_last = i + 1 == values.len();
        if is_last || (free_from..=last_from - 2 * half).contains(&(at - half)) {
            text(area, &x_text(*value), (at, bottom + 22), SMALL.centred())?;
            free_from = at + half + LABEL_GAP;
        }
    }
    Ok(())
}

fn draw_series(area: &Area, series: &Series, x: Scale, y: Scale) -> Painted {
    let colour: RGBColor = series.entry.colour;
    let at = |(value, figure): &(f64, Figure)| (x.at(*value), y.at(figure.median));
    let path: Vec<(i32, i32)> = series.points.iter().map(at).collect();
    if path.len() > 1 {
        area.draw(&PathElement::new(path.clone(), colour.stroke_width(2)))?;
    }
    for ((_, figure), at) in series.points.iter().zip(path) {
        line(
            area,
            (at.0, y.at(figure.min)),
            (at.0, y.at(figure.max)),
            colour,
        )?;
        match series.entry.is_hollow {
            true => area.draw(&Circle::new(at, 8, colour.stroke_width(2)))?,
            false => area.draw(&Circle::new(at, 4, colour.filled()))?,
        }
    }
    Ok(())
}

fn label_points(area: &Area, series: &Series, x: Scale, y: Scale) -> Painted {
    let mut free_from = 0;
    for (value, figure) in &series.points {
        let (at, label) = (x.at(*value), significant(figure.median, 3));
        let half = Size::Small.width(&label) / 2;
        if at - half >= free_from {
            let above = y.at(figure.max.max(figure.median)) - 18;
            text(area, &label, (at, above), SMALL.centred())?;
            free_from = at + half + LABEL_GAP;
        }
    }
    Ok(())
}
