//! Charts as SVG, drawn with plotters: what they share. One file a chart.
//!
//! Readable on light and dark pages: every chart brings its own background, and both it and the
//! ink follow the reader's colour scheme. Series colours are those of Okabe and Ito, which
//! colour-blind people tell apart, and work on either background.

mod axes;
mod break_even;
mod gantt;
mod itl;
mod overlaid;
mod phases;
mod predicted;
pub(super) mod savings;
mod scale;
mod sweep;
mod transfer;

use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};
use serde::Serialize;

use super::number::significant;
use super::overlay::Named;
use super::prose::wrapped;
use scale::{Scale, texts, ticks};

use crate::link::Sweep;
use crate::metrics::summary::{Summary, SummaryArm, SummaryCase};
use crate::metrics::{Record, Transfer};
use crate::projection::Outlook;

/// A finished chart.
#[derive(Debug, Serialize)]
pub struct Chart {
    /// Name of its file.
    pub file: &'static str,
    /// Title, as drawn.
    pub title: String,
    /// What to see in it, in a sentence.
    pub caption: String,
    /// The picture, as wide as a screen and as paper.
    pub svg: String,
    /// The same for a phone.
    pub narrow: String,
}

/// What a chart is drawn for. Text has the same size on both.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Page {
    Wide,
    Narrow,
}

impl Page {
    /// One value or the other.
    fn pick<T>(self, wide: T, narrow: T) -> T {
        match self {
            Self::Wide => wide,
            Self::Narrow => narrow,
        }
    }

    /// In pixels.
    fn width(self) -> i32 {
        self.pick(960, 400)
    }

    /// Free space at the edges, in pixels.
    fn margin(self) -> i32 {
        self.pick(24, 12)
    }

    /// Characters of a size that a line has room for.
    fn chars(self, size: Size) -> usize {
        let room = f64::from(self.width() - 2 * self.margin());
        (room / (CHAR_WIDTH * size.px())) as usize
    }
}

/// A chart on one of the pages.
struct Drawn {
    file: &'static str,
    title: String,
    caption: String,
    svg: String,
}

/// A chart as it is drawn for either page.
fn on_both(draw: impl Fn(Page) -> Option<Drawn>) -> Option<Chart> {
    let (wide, narrow) = (draw(Page::Wide)?, draw(Page::Narrow)?);
    Some(Chart {
        file: wide.file,
        title: wide.title,
        caption: wide.caption,
        svg: wide.svg,
        narrow: narrow.svg,
    })
}

/// All charts of a run that have something to show.
pub fn all(record: &Record, summary: &Summary, outlooks: &[Outlook]) -> Vec<Chart> {
    [
        on_both(|page| phases::chart(summary, page)),
        on_both(|page| gantt::chart(record, page)),
        on_both(|page| transfer::overhead(summary, page)),
        on_both(|page| transfer::bandwidth(record, summary, page)),
        on_both(|page| predicted::chart(record, summary, page)),
        on_both(|page| itl::chart(record, page)),
        on_both(|page| break_even::chart(record, page)),
        on_both(|page| savings::chart(summary, outlooks, page)),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// All charts of several runs that have something to show.
pub(super) fn overlaid(runs: &[Named]) -> Vec<Chart> {
    overlaid::all(runs)
}

/// The chart of a sweep over a link, if anything was measured.
pub(super) fn sweep(sweep: &Sweep) -> Option<Chart> {
    on_both(|page| sweep::chart(sweep, page))
}

/// The stacked phases of every arm as SVG; `None` when no request was measured.
pub fn phases(summary: &Summary) -> Option<String> {
    phases::chart(summary, Page::Wide).map(|chart| chart.svg)
}

// Okabe and Ito's palette.
const BLUE: RGBColor = RGBColor(0x00, 0x72, 0xB2);
const VERMILION: RGBColor = RGBColor(0xD5, 0x5E, 0x00);
const GREEN: RGBColor = RGBColor(0x00, 0x9E, 0x73);
const PURPLE: RGBColor = RGBColor(0xCC, 0x79, 0xA7);
const ORANGE: RGBColor = RGBColor(0xE6, 0x9F, 0x00);
const SKY: RGBColor = RGBColor(0x56, 0xB4, 0xE9);
const GREY: RGBColor = RGBColor(0x99, 0x99, 0x99);

// These change with the reader's colour scheme, so nothing else may use them.
const PAPER: RGBColor = RGBColor(0xFF, 0xFF, 0xFF);
const INK: RGBColor = RGBColor(0x1B, 0x1B, 0x1B);
const FAINT: RGBColor = RGBColor(0xD8, 0xD8, 0xD8);

// These do not: they stand on series colours.
const ON_DARK: RGBColor = RGBColor(0xFE, 0xFE, 0xFE);
const ON_LIGHT: RGBColor = RGBColor(0x0A, 0x0A, 0x0A);

/// Swaps paper and ink where the reader prefers dark. plotters writes colours as attributes,
/// which any rule of a style sheet overrides.
const STYLE: &str = "<style>@media screen and (prefers-color-scheme: dark) {\
    .disagg-chart [fill=\"#FFFFFF\"] { fill: #15181C }\
    .disagg-chart [fill=\"#1B1B1B\"] { fill: #ECECEC }\
    .disagg-chart [stroke=\"#1B1B1B\"] { stroke: #ECECEC }\
    .disagg-chart [stroke=\"#D8D8D8\"] { stroke: #3A4048 }\
    }</style>";

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type Painted<T = ()> = Result<T, DrawingAreaErrorKind<std::io::Error>>;

/// Lines of a title and a subtitle are so far from each other, in pixels.
const TITLE_ROW: i32 = 22;
const SUBTITLE_ROW: i32 = 18;

/// A chart `height` pixels high with its title and subtitle, the rest painted by `paint`, and
/// higher where they take more than a line each.
fn draw(
    page: Page,
    file: &'static str,
    height: i32,
    title: &str,
    subtitle: &str,
    caption: String,
    paint: impl for<'a> FnOnce(&Area<'a>) -> Painted,
) -> Option<Drawn> {
    let titles = wrapped(title, page.chars(Size::Title));
    let subtitles = wrapped(subtitle, page.chars(Size::Body));
    let below_title = TITLE_ROW * (titles.len().max(1) - 1) as i32;
    let lower = below_title + SUBTITLE_ROW * (subtitles.len().max(1) - 1) as i32;
    let mut svg = String::new();
    {
        let (width, whole) = (page.width(), height + lower);
        let size = (u32::try_from(width).ok()?, u32::try_from(whole).ok()?);
        let area = SVGBackend::with_string(&mut svg, size).into_drawing_area();
        let painted = (|| {
            area.fill(&PAPER)?;
            let x = page.margin();
            for (title, i) in titles.iter().zip(0..) {
                text(&area, title, (x, 30 + TITLE_ROW * i), LARGE)?;
            }
            for (subtitle, i) in subtitles.iter().zip(0..) {
                let y = 54 + below_title + SUBTITLE_ROW * i;
                text(&area, subtitle, (x, y), BODY)?;
            }
            paint(&area.clone().shrink((0, lower), (width, height)))?;
            area.present()
        })();
        // Into a string there is nothing to fail; a chart less is better than a run less.
        painted.ok()?;
    }
    let name = file.trim_end_matches(".svg");
    // Both stand in one page, where an id is to be the only one of its kind.
    let id = page.pick(name.to_owned(), format!("{name}-narrow"));
    Some(Drawn {
        file,
        svg: accessible(&svg, &id, title, &caption),
        title: title.to_owned(),
        caption,
    })
}

/// Gives a picture its name and description for screen readers, and its style.
fn accessible(svg: &str, id: &str, title: &str, description: &str) -> String {
    let opening = format!(
        "<svg class=\"disagg-chart\" role=\"img\" aria-labelledby=\"{id}-title {id}-desc\" \
         style=\"max-width:100%;height:auto\" "
    );
    let head = format!(
        ">\n<title id=\"{id}-title\">{}</title>\n<desc id=\"{id}-desc\">{}</desc>\n{STYLE}\n",
        escaped(title),
        escaped(description),
    );
    svg.replacen("<svg ", &opening, 1).replacen(">\n", &head, 1)
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

/// What a character takes at most of its font's size, in a usual sans-serif font; there is no font to
/// ask.
const CHAR_WIDTH: f64 = 0.6;

/// Text sizes.
#[derive(Clone, Copy)]
enum Size {
    Title,
    Body,
    Small,
}

impl Size {
    /// Font size in pixels.
    fn px(self) -> f64 {
        match self {
            Self::Title => 18.0,
            Self::Body => 14.0,
            Self::Small => 12.0,
        }
    }

    /// Room that a text takes at most.
    fn width(self, text: &str) -> i32 {
        (text.chars().count() as f64 * CHAR_WIDTH * self.px()).ceil() as i32
    }
}

/// How text is written.
#[derive(Clone, Copy)]
struct Pen {
    size: Size,
    anchor: HPos,
    colour: RGBColor,
}

const LARGE: Pen = Pen::new(Size::Title);
const BODY: Pen = Pen::new(Size::Body);
const SMALL: Pen = Pen::new(Size::Small);

impl Pen {
    const fn new(size: Size) -> Self {
        Self {
            size,
            anchor: HPos::Left,
            colour: INK,
        }
    }

    /// The text ends where it is put.
    const fn to_left(self) -> Self {
        Self {
            anchor: HPos::Right,
            ..self
        }
    }

    const fn centred(self) -> Self {
        Self {
            anchor: HPos::Center,
            ..self
        }
    }

    const fn coloured(self, colour: RGBColor) -> Self {
        Self { colour, ..self }
    }
}

/// Writes a line of text, vertically centred on `at`.
fn text(area: &Area, text: &str, at: (i32, i32), pen: Pen) -> Painted {
    // plotters' SVG sizes are 1.24 times the font size that it writes.
    let mut font = ("sans-serif", pen.size.px() * 1.24).into_font();
    if matches!(pen.size, Size::Title) {
        font = font.style(FontStyle::Bold);
    }
    let style = TextStyle::from(font)
        .pos(Pos::new(pen.anchor, VPos::Center))
        .color(&pen.colour);
    area.draw(&Text::new(text.to_owned(), at, style))
}

fn rectangle(area: &Area, from: (i32, i32), to: (i32, i32), colour: RGBColor) -> Painted {
    area.draw(&Rectangle::new([from, to], colour.filled()))
}

fn line(area: &Area, from: (i32, i32), to: (i32, i32), colour: RGBColor) -> Painted {
    area.draw(&PathElement::new(vec![from, to], colour.stroke_width(1)))
}

/// One name of a legend.
#[derive(Clone)]
struct Entry {
    name: String,
    colour: RGBColor,
    mark: Mark,
}

/// How a series is drawn, and so its name in a legend.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Mark {
    /// An area or points.
    Filled,
    /// Rings, around what would hide points.
    Ring,
    /// A line.
    Line,
    /// A line that is no measurement and no fit of one.
    Dashed,
}

impl Entry {
    fn new(name: &str, colour: RGBColor) -> Self {
        Self {
            name: name.to_owned(),
            colour,
            mark: Mark::Filled,
        }
    }

    /// The same, drawn otherwise.
    fn drawn_as(self, mark: Mark) -> Self {
        Self { mark, ..self }
    }
}

const LEGEND_ROW: i32 = 22;

/// Where the entries of a legend stand, from its left upper corner.
fn legend_places(entries: &[Entry], page: Page) -> Vec<(i32, i32)> {
    let (mut x, mut y) = (0, 0);
    let mut places = Vec::new();
    for entry in entries {
        let width = 20 + Size::Body.width(&entry.name) + 14;
        if x > 0 && x + width > page.width() - 2 * page.margin() {
            (x, y) = (0, y + LEGEND_ROW);
        }
        places.push((x, y));
        x += width;
    }
    places
}

/// Height of a legend, in pixels.
fn legend_height(entries: &[Entry], page: Page) -> i32 {
    legend_places(entries, page)
        .last()
        .map_or(0, |(_, y)| y + LEGEND_ROW)
}

/// Where the first row of a legend stands.
const LEGEND_TOP: i32 = 84;

/// A legend that breaks into rows where it has to.
fn legend(area: &Area, entries: &[Entry], page: Page) -> Painted {
    for (entry, (x, y)) in entries.iter().zip(legend_places(entries, page)) {
        let (x, y) = (page.margin() + x, LEGEND_TOP + y);
        let (thick, stroke) = (entry.colour.filled(), entry.colour.stroke_width(2));
        match entry.mark {
            Mark::Filled => area.draw(&Rectangle::new([(x, y - 6), (x + 13, y + 7)], thick))?,
            Mark::Ring => area.draw(&Circle::new((x + 7, y), 6, stroke))?,
            Mark::Line => area.draw(&PathElement::new(vec![(x, y), (x + 14, y)], stroke))?,
            Mark::Dashed => {
                for from in [x, x + 9] {
                    area.draw(&PathElement::new(vec![(from, y), (from + 5, y)], stroke))?;
                }
            }
        }
        text(area, &entry.name, (x + 20, y), BODY)?;
    }
    Ok(())
}

/// Lines at round values of x, each with its value below where there is room.
fn draw_ticks(area: &Area, x: Scale, (top, bottom): (i32, i32)) -> Painted {
    let ticks = x.ticks();
    let mut free_from = 0;
    for (tick, label) in ticks.iter().zip(texts(&ticks)) {
        let (at, half) = (x.at(*tick), Size::Small.width(&label) / 2);
        line(area, (at, top), (at, bottom), FAINT)?;
        if at - half >= free_from {
            text(area, &label, (at, bottom + 14), SMALL.centred())?;
            free_from = at + half + TICK_GAP;
        }
    }
    Ok(())
}

/// Space between the values of ticks, in pixels.
const TICK_GAP: i32 = 4;

/// The lossless arm of a mode.
fn in_mode(case: &SummaryCase, transfer: Transfer) -> Option<&SummaryArm> {
    let mut arms = case.arms.iter();
    arms.find(|a| a.transfer == Some(transfer) && !a.is_lossy())
}

/// A tick's value without zeros at its end.
fn plain(value: f64) -> String {
    let text = significant(value, 3);
    match text.contains('.') {
        true => text.trim_end_matches('0').trim_end_matches('.').to_owned(),
        false => text,
    }
}

/// A time in the unit that suits it.
fn time(ms: f64) -> String {
    match ms {
        ms if ms >= 10_000.0 => format!("{} s", significant(ms / 1e3, 3)),
        ms => format!("{} ms", significant(ms, 3)),
    }
}

#[cfg(test)]
mod tests;
