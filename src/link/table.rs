//! A sweep as people see it: the fixed table, what was left out, the fits and the limit.

use tabled::builder::Builder;
use tabled::settings::object::{Columns, FirstColumn};
use tabled::settings::{Alignment, Modify, Padding, Style};

use super::{Fit, LeftOut, Row, Sweep};

impl Sweep {
    /// The fixed table, what was left out, the fits and the limit.
    pub fn to_terminal(&self) -> String {
        let mut parts = vec![self.table(), self.frame()];
        parts.extend(left_out(&self.left_out));
        parts.push(self.fits.iter().map(fit).collect::<Vec<_>>().join("\n"));
        parts.push(format!("limit: {}", self.limit));
        parts.retain(|part| !part.is_empty());
        parts.join("\n\n")
    }

    fn table(&self) -> String {
        let mut table = Builder::new();
        table.push_record([
            "bytes", "streams", "pieces", "ms", "p95 ms", "Gbps", "ceiling", "cold", "idle",
        ]);
        for row in &self.rows {
            table.push_record(self.cells(row));
        }
        let mut table = table.build();
        table
            .with(Style::empty())
            .with(Modify::new(Columns::new(..)).with(Alignment::right()))
            .with(Modify::new(Columns::new(1..)).with(Padding::new(2, 0, 0, 0)))
            .with(Modify::new(FirstColumn).with(Padding::zero()));
        table.to_string()
    }

    fn cells(&self, row: &Row) -> [String; 9] {
        let or_dash = |value: Option<String>| value.unwrap_or("-".into());
        [
            row.bytes.to_string(),
            row.streams.to_string(),
            row.pieces.to_string(),
            short(row.transfer_ms.median),
            or_dash(row.transfer_ms.p95.map(short)),
            format!("{:.2}", row.gbps.median),
            format!("{:.0}%", 100.0 * row.gbps.median / self.ceiling_gbps),
            format!("{:.2}", row.cold_gbps),
            or_dash(row.after_idle_gbps.map(|gbps| format!("{gbps:.2}"))),
        ]
    }

    /// What all rows have in common.
    fn frame(&self) -> String {
        let control = self.socket.congestion_control.as_deref();
        let idle = match self.idle_gap_ms {
            Some(gap) => format!("; idle: Gbps after {gap} ms without a byte"),
            None => String::new(),
        };
        format!(
            "ms, p95 and Gbps: warm, back to back; cold: Gbps of the first transfer of new \
             connections{idle}\nceiling {:.2} Gbps of KV payload, {} caches, smallest round trip \
             {:.0} us, {}",
            self.ceiling_gbps,
            self.shape,
            self.min_round_trip_us,
            control.unwrap_or("unknown congestion control"),
        )
    }
}

/// Four digits or so: the table has 80 columns.
fn short(ms: f64) -> String {
    let decimals = match ms {
        _ if ms < 10.0 => 3,
        _ if ms < 100.0 => 2,
        _ if ms < 1000.0 => 1,
        _ => 0,
    };
    format!("{ms:.decimals$}")
}

/// One line a size, with the reason of its first combination.
fn left_out(all: &[LeftOut]) -> Option<String> {
    let lines: Vec<String> = all
        .chunk_by(|a, b| a.bytes == b.bytes)
        .map(|same| {
            let mut streams: Vec<u32> = same.iter().map(|l| l.streams).collect();
            streams.dedup();
            let streams: Vec<String> = streams.iter().map(u32::to_string).collect();
            let LeftOut { bytes, reason, .. } = &same[0];
            format!("left out: {bytes} bytes x {}: {reason}", streams.join(", "))
        })
        .collect();
    (!lines.is_empty()).then(|| lines.join("\n"))
}

fn fit(fit: &Fit) -> String {
    let beta = (fit.beta_gbps).map_or("-".into(), |beta| format!("{beta:.2} Gbps"));
    let score =
        (fit.held_out_error_pct).map_or(String::new(), |e| format!(", {e:.0}% on sizes left out"));
    format!(
        "{} stream{}: t = {:.0} us + pieces x {:.1} us + bytes / {beta}; worst error {:.0}%{score}",
        fit.streams,
        if fit.streams == 1 { "" } else { "s" },
        fit.alpha_us,
        fit.overhead_us_per_piece,
        fit.worst_residual_pct,
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::link::{Observed, Times, ceiling_gbps};
    use crate::wire::socket::SocketFacts;

    /// A sweep of one small row and the widest that there can be.
    fn sweep() -> Sweep {
        let times = |ns: u64| Times {
            cold_ns: 2 * ns,
            warm_ns: vec![ns; 20],
            after_idle_ns: Some(4 * ns),
            more_after_idle_ns: Vec::new(),
        };
        let rows = vec![
            Row::of(69_120, 1, 30, times(230_000)).unwrap(),
            Row::of(1 << 30, 64, 16_800, times(8_589_934_592)).unwrap(),
        ];
        Sweep {
            schema_version: 1,
            argv: Vec::new(),
            git_revision: String::new(),
            measured_at: String::new(),
            shape: "SmolLM2-135M".into(),
            kv_bytes_per_token: 23_040,
            socket: SocketFacts {
                local: ([10, 0, 0, 1], 40_000).into(),
                peer: ([10, 0, 0, 2], 5556).into(),
                loopback: false,
                congestion_control: Some("cubic".into()),
                nodelay: true,
                send_buffer_bytes: 87_380,
                recv_buffer_bytes: 131_072,
                mss_bytes: Some(1_448),
            },
            interface: None,
            transport: "tcp".into(),
            min_round_trip_us: 40.0,
            idle_gap_ms: Some(1000),
            ceiling_gbps: ceiling_gbps(&rows),
            rows,
            left_out: [1, 1, 2]
                .map(|streams| LeftOut {
                    bytes: 4 << 30,
                    streams,
                    pieces: 30,
                    reason: "it would take too long".into(),
                })
                .to_vec(),
            fits: Vec::new(),
            observed: Observed {
                streams: 1,
                cpu_share: 0.5,
                peer_cpu_share: None,
                same_core_share: None,
                core: None,
                send_buffer_bytes: None,
                totals: None,
                before: None,
                after: None,
            },
            causes: Vec::new(),
            limit: "network".into(),
        }
    }

    #[test]
    fn the_table_is_fixed_and_fits_80_columns() {
        let text = sweep().to_terminal();
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[..3].iter().all(|l| l.chars().count() <= 80), "{text}");
        let words = |line: &str| {
            line.split_whitespace()
                .map(str::to_owned)
                .collect::<Vec<_>>()
        };
        let small = [
            "69120", "1", "30", "0.230", "0.230", "2.40", "100%", "1.20", "0.60",
        ];
        assert_eq!(words(lines[1]), small);
        let large = [
            "1073741824",
            "64",
            "16800",
            "8590",
            "8590",
            "1.00",
            "42%",
            "0.50",
            "0.25",
        ];
        assert_eq!(words(lines[2]), large);
        let left_out = "left out: 4294967296 bytes x 1, 2: it would take too long";
        assert!(lines.contains(&left_out), "{text}");
        assert_eq!(lines.last(), Some(&"limit: network"));
    }

    #[test]
    fn what_was_not_measured_is_a_dash() {
        let mut sweep = sweep();
        sweep.rows[0] = Row::of(
            69_120,
            1,
            30,
            Times {
                cold_ns: 1,
                warm_ns: vec![230_000; 19],
                after_idle_ns: None,
                more_after_idle_ns: Vec::new(),
            },
        )
        .unwrap();
        sweep.idle_gap_ms = None;
        let text = sweep.to_terminal();
        let row = text.lines().nth(1).unwrap();
        assert_eq!(row.split_whitespace().nth(4), Some("-"));
        assert!(
            row.ends_with(" -") && !text.contains("without a byte"),
            "{text}"
        );
        assert!(Row::of(1, 1, 1, Times::default()).is_none());
    }
}
