//! The rate of a link over the size of a transfer, one line a number of connections, with what was
//! fitted to it.

use super::axes::{self, Axes, Curve, Series, Ticks};
use super::transfer::COLOURS;
use super::{Drawn, Entry, GREY, Mark, Page, plain};
use crate::link::{Fit, Row, Sweep};
use crate::report::number::{count, one_line, significant};

/// `None` where nothing was measured.
pub(super) fn chart(sweep: &Sweep, page: Page) -> Option<Drawn> {
    let mut streams: Vec<u32> = sweep.rows.iter().map(|row| row.streams).collect();
    streams.sort_unstable();
    streams.dedup();
    let colours = COLOURS.into_iter().cycle();
    let (mut series, mut curves) = (Vec::new(), Vec::new());
    for (streams, colour) in streams.into_iter().zip(colours) {
        let rows = largest_pieces(&sweep.rows, streams);
        let name = count(streams as usize, "stream");
        series.push(Series {
            entry: Entry::new(&name, colour),
            points: (rows.iter())
                .map(|row| (row.bytes as f64, row.gbps))
                .collect(),
            is_line: false,
        });
        if let Some(fit) = sweep.fits.iter().find(|fit| fit.streams == streams) {
            let fit = fit.clone();
            let pieces: Vec<(u64, u64)> = rows.iter().map(|row| (row.bytes, row.pieces)).collect();
            curves.push(Curve {
                entry: Entry::new(&format!("{name}, fitted"), colour).drawn_as(Mark::Line),
                at: Box::new(move |bytes| fitted_gbps(&fit, &pieces, bytes)),
            });
        }
    }
    let ceiling = sweep.ceiling_gbps;
    let name = format!("ceiling, {} Gbps", significant(ceiling, 3));
    curves.push(Curve {
        entry: Entry::new(&name, GREY).drawn_as(Mark::Dashed),
        at: Box::new(move |_| Some(ceiling)),
    });
    let over = match sweep.socket.loopback {
        true => "loopback".to_owned(),
        false => format!("network, to {}", sweep.socket.peer.ip()),
    };
    let axes = Axes {
        file: "sweep.svg",
        title: "Rate of the link by size of a transfer",
        subtitle: format!(
            "caches like {}'s over {over}; warm medians, whiskers from min to max",
            one_line(&sweep.shape, 24)
        ),
        caption: format!(
            "KV payload bits over the time from the first piece offered to the last one acknowledged, back to back over warm connections, in the largest pieces of each size. The lines are t = alpha + pieces x overhead + bytes / beta(size) as fitted; the best median of all is {} Gbps.",
            significant(ceiling, 3)
        ),
        x_label: "KV bytes of a transfer",
        y_label: "Gbps (decimal)",
        x_text: size_text,
        y_at_least: 0.0,
        y_may_be_log: true,
        x_at_least: None,
        is_labelled: series.len() == 1,
        x_ticks: Ticks::Occurring,
    };
    axes::chart(page, axes, &series, &curves)
}

/// Of every size the row with the fewest pieces, sizes rising.
fn largest_pieces(rows: &[Row], streams: u32) -> Vec<&Row> {
    let mut rows: Vec<&Row> = rows.iter().filter(|row| row.streams == streams).collect();
    rows.sort_by_key(|row| (row.bytes, row.pieces));
    rows.dedup_by_key(|row| row.bytes);
    rows
}

/// The rate at a size, cut into pieces as the sizes beside it were; none beyond them.
fn fitted_gbps(fit: &Fit, pieces: &[(u64, u64)], bytes: f64) -> Option<f64> {
    let above = pieces.iter().position(|(size, _)| *size as f64 >= bytes)?;
    let (high, most) = pieces[above];
    let (low, least) = *pieces.get(above.checked_sub(1)?)?;
    let share = (bytes - low as f64) / (high - low) as f64;
    let between = least as f64 + share * (most as f64 - least as f64);
    let ns = fit.transfer_ns(bytes.round() as u64, between.round() as u64);
    (ns > 0.0).then(|| bytes * 8.0 / ns)
}

/// Bytes in the unit that suits them.
fn size_text(bytes: f64) -> String {
    match bytes {
        b if b < 1e6 => format!("{} kB", plain(b / 1e3)),
        b if b < 1e9 => format!("{} MB", plain(b / 1e6)),
        b => format!("{} GB", plain(b / 1e9)),
    }
}
