//! Points over two axes: what charts of one quantity over another share.

use plotters::element::{Circle, DashedPathElement, PathElement};
use plotters::style::{Color, RGBColor};

use super::scale::Scale;
use super::{
    Area, BODY, Drawn, Entry, FAINT, INK, Mark, Page, Painted, SMALL, Size, draw, legend,
    legend_height, line, plain, text,
};
use crate::report::number::significant;
use crate::stats::Figure;

const PLOT: i32 = 280;
const BELOW: i32 = 70;

/// With more points than this, their values are not written beside them.
const LABELLED_POINTS: usize = 8;
/// Space between labels, in pixels.
const LABEL_GAP: i32 = 10;

/// Where the plot starts and ends.
fn edges(page: Page) -> (i32, i32) {
    (page.pick(84, 60), page.width() - page.pick(64, 30))
}

/// Figures over x, with whiskers from the smallest to the largest sample.
pub(super) struct Series {
    pub(super) entry: Entry,
    /// By x.
    pub(super) points: Vec<(f64, Figure)>,
    /// Whether a line runs through them.
    pub(super) is_line: bool,
}

/// A line that is no measurement, behind the series.
pub(super) struct Curve {
    pub(super) entry: Entry,
    /// Its value at x; none where it is not defined.
    pub(super) at: Box<dyn Fn(f64) -> Option<f64>>,
}

/// Places along the x axis at which a curve is looked up.
const CURVE_SAMPLES: u32 = 160;

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
    /// The x axis reaches from and to at least these.
    pub(super) x_at_least: Option<(f64, f64)>,
    /// Whether the points of the first series, if they are few, have their values beside them.
    pub(super) is_labelled: bool,
    /// Whether the ticks of x are the values that occur, or round ones.
    pub(super) x_ticks: Ticks,
}

/// Which values are written at an axis.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Ticks {
    /// Those that occur.
    Occurring,
    /// Round ones.
    Round,
}

/// A chart of series over curves; `None` without a point.
pub(super) fn chart(page: Page, axes: Axes, series: &[Series], curves: &[Curve]) -> Option<Drawn> {
    let points = || series.iter().flat_map(|s| &s.points);
    let least = |values: &mut dyn Iterator<Item = f64>| values.min_by(f64::total_cmp);
    let most = |values: &mut dyn Iterator<Item = f64>| values.max_by(f64::total_cmp);
    let x_min = least(&mut points().map(|(x, _)| *x))?;
    let x_max = most(&mut points().map(|(x, _)| *x))?;
    let (x_min, x_max) = match axes.x_at_least {
        Some((from, to)) => (x_min.min(from), x_max.max(to)),
        None => (x_min, x_max),
    };
    let x = Scale::around(x_min, x_max, edges(page));
    let lines: Vec<Vec<(f64, f64)>> = (curves.iter())
        .map(|curve| {
            let points = x.samples(CURVE_SAMPLES);
            points
                .filter_map(|at| Some((at, (curve.at)(at)?)))
                .collect()
        })
        .collect();
    let drawn = || lines.iter().flatten().map(|(_, y)| *y);
    let y_min = least(&mut points().map(|(_, f)| f.min).chain(drawn()))?;
    let y_max = most(&mut points().map(|(_, f)| f.max).chain(drawn()))?.max(axes.y_at_least);
    let entries = series.iter().map(|s| &s.entry);
    let entries: Vec<Entry> = (entries.chain(curves.iter().map(|c| &c.entry)))
        .cloned()
        .collect();
    let top = 106 + legend_height(&entries, page);
    let bottom = top + PLOT;
    let y = Scale::up_to(y_min, y_max, axes.y_may_be_log, (bottom, top));
    let mut xs: Vec<f64> = points().map(|(x, _)| *x).collect();
    xs.sort_by(f64::total_cmp);
    xs.dedup();
    if axes.x_ticks == Ticks::Round {
        xs = x.ticks();
    }
    let count = points().count();
    let plot = Plot {
        edges: edges(page),
        bottom,
    };
    draw(
        page,
        axes.file,
        bottom + BELOW,
        axes.title,
        &axes.subtitle,
        axes.caption.clone(),
        |area| {
            legend(area, &entries, page)?;
            text(area, axes.y_label, (page.margin(), top - 18), BODY)?;
            plot.draw_y(area, y)?;
            plot.draw_x(area, x, &xs, axes.x_text)?;
            let middle = ((plot.edges.0 + plot.edges.1) / 2, bottom + 50);
            text(area, axes.x_label, middle, BODY.centred())?;
            for (curve, line) in curves.iter().zip(&lines) {
                draw_curve(area, curve, line, x, y)?;
            }
            for (i, series) in series.iter().enumerate() {
                draw_series(area, series, x, y)?;
                if i == 0 && axes.is_labelled && count <= LABELLED_POINTS {
                    label_points(area, series, x, y)?;
                }
            }
            Ok(())
        },
    )
}

/// Where the axes stand.
struct Plot {
    edges: (i32, i32),
    bottom: i32,
}

impl Plot {
    fn draw_y(&self, area: &Area, y: Scale) -> Painted {
        let (left, right) = self.edges;
        for tick in y.ticks() {
            line(area, (left, y.at(tick)), (right, y.at(tick)), FAINT)?;
            let label = plain(tick);
            text(area, &label, (left - 10, y.at(tick)), SMALL.to_left())?;
        }
        Ok(())
    }

    /// Values are written as far as their labels do not collide; the last has one.
    fn draw_x(&self, area: &Area, x: Scale, values: &[f64], x_text: fn(f64) -> String) -> Painted {
        let ((left, right), bottom) = (self.edges, self.bottom);
        line(area, (left, bottom), (right, bottom), INK)?;
        let half = |value: f64| Size::Small.width(&x_text(value)) / 2;
        let last = values.last();
        let last_from = last.map_or(right, |v| x.at(*v) - half(*v) - LABEL_GAP);
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
}

fn draw_curve(area: &Area, curve: &Curve, line: &[(f64, f64)], x: Scale, y: Scale) -> Painted {
    let at = |(value, result): &(f64, f64)| (x.at(*value), y.at(*result));
    let path: Vec<(i32, i32)> = line.iter().map(at).collect();
    let style = curve.entry.colour.stroke_width(2);
    match curve.entry.mark {
        Mark::Dashed => area.draw(&DashedPathElement::new(path, 7, 5, style)),
        _ => area.draw(&PathElement::new(path, style)),
    }
}

fn draw_series(area: &Area, series: &Series, x: Scale, y: Scale) -> Painted {
    let colour: RGBColor = series.entry.colour;
    let at = |(value, figure): &(f64, Figure)| (x.at(*value), y.at(figure.median));
    let path: Vec<(i32, i32)> = series.points.iter().map(at).collect();
    if series.is_line && path.len() > 1 {
        area.draw(&PathElement::new(path.clone(), colour.stroke_width(2)))?;
    }
    for ((_, figure), at) in series.points.iter().zip(path) {
        line(
            area,
            (at.0, y.at(figure.min)),
            (at.0, y.at(figure.max)),
            colour,
        )?;
        match series.entry.mark {
            Mark::Ring => area.draw(&Circle::new(at, 8, colour.stroke_width(2)))?,
            _ => area.draw(&Circle::new(at, 4, colour.filled()))?,
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
