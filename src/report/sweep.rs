//! The report of a sweep over a link: its chart, its rows, its fits and what limits it.

use super::charts;
use super::definitions::LINK_DEFINITIONS;
use super::document::{Block, Document};
use super::provenance::{made_by, or_unknown, table};
use super::table::{Table, numbers};
use crate::link::Sweep;

/// The report of a sweep.
pub(super) fn document(sweep: &Sweep) -> Document {
    let mut document = Document {
        title: format!(
            "the link carries {:.2} Gbps of KV payload at most; limit: {}",
            sweep.ceiling_gbps, sweep.limit
        ),
        sections: Vec::new(),
        definitions: LINK_DEFINITIONS,
        stamp: made_by(&format!("revision {}", sweep.git_revision), &sweep.argv),
    };
    let chart = charts::sweep(sweep).map(Block::Chart);
    let causes = sweep.causes.iter().map(ToString::to_string);
    for (title, blocks) in [
        ("Charts", chart.into_iter().collect()),
        ("What limits it", vec![Block::list(causes)]),
        (
            "Figures",
            [Block::Table(rows(sweep))]
                .into_iter()
                .chain(sweep.frame_lines().map(Block::text))
                .collect(),
        ),
        ("Fits", vec![Block::list(sweep.fit_lines())]),
        ("Left out", vec![Block::list(sweep.left_out_lines())]),
        ("Link", vec![Block::Table(link(sweep))]),
    ] {
        document.add(title, blocks);
    }
    document
}

fn rows(sweep: &Sweep) -> Table {
    let mut table = Table::new(Sweep::HEADS.map(numbers));
    for row in &sweep.rows {
        table.push(sweep.cells(row));
    }
    table
}

fn link(sweep: &Sweep) -> Table {
    let socket = &sweep.socket;
    let mut rows = vec![
        ["measured".into(), sweep.measured_at.clone()],
        ["from".into(), socket.local.to_string()],
        ["to".into(), socket.peer.to_string()],
    ];
    if let Some(interface) = &sweep.interface {
        let speed = match interface.speed_mbps {
            Some(mbps) => format!("{} Gbit/s", mbps as f64 / 1e3),
            None => "of unknown speed".to_owned(),
        };
        rows.push(["interface".into(), format!("{} {speed}", interface.name)]);
    }
    let segment = socket.mss_bytes.map(|bytes| format!("{bytes} bytes"));
    rows.extend([
        [
            "congestion control".into(),
            or_unknown(socket.congestion_control.clone()),
        ],
        ["largest segment".into(), or_unknown(segment)],
        [
            "KV cache a token".into(),
            format!("{} bytes ({})", sweep.kv_bytes_per_token, sweep.shape),
        ],
    ]);
    table(["", ""], rows)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::link::{Fit, Row, Times, fixture};
    use crate::report::{markdown, page};

    #[test]
    fn a_sweep_has_its_chart_its_rows_and_its_limit() {
        let mut sweep = fixture::sweep();
        let times = Times {
            cold_ns: 10_000_000,
            warm_ns: vec![4_000_000; 5],
            ..Times::default()
        };
        sweep.rows.extend(Row::of(1_059_840, 1, 30, times));
        sweep.fits.extend(Fit::of_rows(&sweep.rows, 1));
        let document = document(&sweep);
        let chart = document.charts().next().expect("a chart");
        assert_eq!(chart.file, "sweep.svg");
        assert!(chart.svg.contains("1 stream, fitted"), "{}", chart.svg);
        assert!(chart.svg.contains("ceiling, 2.40 Gbps"), "{}", chart.svg);
        let text = markdown::written(&document);
        for part in [
            "# the link carries 2.40 Gbps of KV payload at most; limit: network",
            "| 69120 | 1 | 30 | 0.230 |",
            "## Left out",
            "10.0.0.2:5556",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
        let page = page::written(&document).unwrap();
        assert!(page.contains("first transfer of new connections"), "{page}");
        assert!(!page.contains("handoff"), "{page}");
    }
}
