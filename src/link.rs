//! What a sweep over a link says about it: rates, a fitted model, and what limits it.
//!
//! Pure functions of measured transfers; measuring is `cmd::link`'s.

mod kept;

pub use kept::KeptFit;

use serde::{Deserialize, Serialize};
use tabled::builder::Builder;
use tabled::settings::object::Columns;
use tabled::settings::{Alignment, Modify, Style};

use crate::stats::Figure;
use crate::wire::socket::{SocketFacts, TcpInfo};

/// Shares of time above which something is called the limit.
const LIMITING_SHARE: f64 = 0.3;
const BUSY_CORE_SHARE: f64 = 0.9;

/// Retransmitted share of bytes above which the network is called lossy.
const LOSSY_SHARE: f64 = 0.001;

/// One combination of a sweep.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Row {
    /// KV bytes of one transfer.
    pub bytes: u64,
    /// TCP connections.
    pub streams: u32,
    /// Pieces of one transfer.
    pub pieces: u64,
    /// First piece offered to last piece acknowledged, warm.
    pub transfer_ms: Figure,
    /// KV bits over that time, warm.
    pub gbps: Figure,
    /// The transfer before those: the first of its size on its connections.
    pub first_gbps: f64,
}

/// t = alpha + pieces x overhead + bytes / beta, for one number of streams.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Fit {
    /// TCP connections.
    pub streams: u32,
    /// Fixed cost of a transfer.
    pub alpha_us: f64,
    /// Cost of a piece.
    pub overhead_us_per_piece: f64,
    /// Rate of an endless transfer; null where bytes cost nothing measurable.
    pub beta_gbps: Option<f64>,
    /// Largest relative error over the rows that were fitted.
    pub worst_residual_pct: f64,
    /// Largest relative error over every second size when only the others are fitted; null where
    /// there are too few sizes.
    pub held_out_error_pct: Option<f64>,
}

/// What was seen of the connections while the fastest combination ran.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Observed {
    /// CPU time of this process over wall time.
    pub cpu_share: f64,
    /// The kernel's counters before, of the first connection.
    pub before: Option<TcpInfo>,
    /// And after.
    pub after: Option<TcpInfo>,
}

/// A whole sweep.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Sweep {
    /// Version of this file's schema.
    pub schema_version: u32,
    /// The command line.
    pub argv: Vec<String>,
    /// Revision of the tool.
    pub git_revision: String,
    /// When, UTC.
    pub measured_at: String,
    /// Model whose cache is imitated.
    pub shape: String,
    /// Bytes that a token of it takes.
    pub kv_bytes_per_token: u64,
    /// Socket options of the first connection, as read back.
    pub socket: SocketFacts,
    /// Smallest round trip of an empty message.
    pub min_round_trip_us: f64,
    /// One entry a combination.
    pub rows: Vec<Row>,
    /// Highest median rate of all.
    pub ceiling_gbps: f64,
    /// One a number of streams, where there are enough rows.
    pub fits: Vec<Fit>,
    /// What was seen while the fastest combination ran.
    pub observed: Observed,
    /// What limits the rate, in a sentence.
    pub limit: String,
}

/// Highest median rate.
pub fn ceiling_gbps(rows: &[Row]) -> f64 {
    rows.iter().map(|row| row.gbps.median).fold(0.0, f64::max)
}

/// A transfer that a fit is made of.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Point {
    /// KV bytes.
    pub bytes: u64,
    /// Pieces.
    pub pieces: u64,
    /// First piece offered to last piece acknowledged: a median of warm transfers.
    pub transfer_ms: f64,
}

impl From<&Row> for Point {
    fn from(row: &Row) -> Self {
        Self {
            bytes: row.bytes,
            pieces: row.pieces,
            transfer_ms: row.transfer_ms.median,
        }
    }
}

/// Where a run's fit came from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FitOrigin {
    /// Measured by the run itself, over its own connections.
    Measured,
    /// Taken from what `link` wrote, by file name.
    File(String),
}

impl Fit {
    /// Fits the rows of one number of streams, as [`Fit::of`].
    pub fn of_rows(rows: &[Row], streams: u32) -> Option<Self> {
        let rows = rows.iter().filter(|row| row.streams == streams);
        Self::of(&rows.map(Point::from).collect::<Vec<_>>(), streams)
    }

    /// Time from the first piece offered to the last one acknowledged, in ns, over warm
    /// connections: the model at `bytes` in `pieces`.
    pub fn transfer_ns(&self, bytes: u64, pieces: u64) -> f64 {
        let bytes_ns = self.beta_gbps.map_or(0.0, |beta| bytes as f64 * 8.0 / beta);
        (self.alpha_us + pieces as f64 * self.overhead_us_per_piece) * 1e3 + bytes_ns
    }

    /// Fits points measured over `streams` connections; `None` with fewer than two.
    pub fn of(points: &[Point], streams: u32) -> Option<Self> {
        let rows: Vec<&Point> = points.iter().collect();
        let terms = solve(&rows)?;
        let mut sizes: Vec<u64> = rows.iter().map(|row| row.bytes).collect();
        sizes.sort_unstable();
        sizes.dedup();
        let fitted =
            |row: &&Point| sizes.iter().position(|b| *b == row.bytes).unwrap_or(0) % 2 == 0;
        let (known, held_out): (Vec<&Point>, Vec<&Point>) =
            rows.iter().partition(|row| fitted(row));
        // Of three sizes two are fitted and one lies between them.
        let score = (sizes.len() >= 3).then(|| solve(&known)).flatten();
        Some(Self {
            streams,
            alpha_us: terms[0] * 1e3,
            overhead_us_per_piece: terms[1] * 1e3,
            beta_gbps: (terms[2] > 0.0).then(|| 8.0 / terms[2] / 1e6),
            worst_residual_pct: worst_error_pct(&rows, terms),
            held_out_error_pct: score.map(|terms| worst_error_pct(&held_out, terms)),
        })
    }
}

fn factors(row: &Point) -> [f64; 3] {
    [1.0, row.pieces as f64, row.bytes as f64]
}

fn predict_ms(row: &Point, terms: [f64; 3]) -> f64 {
    factors(row).iter().zip(terms).map(|(x, t)| x * t).sum()
}

fn worst_error_pct(rows: &[&Point], terms: [f64; 3]) -> f64 {
    let error = |row: &&Point| (predict_ms(row, terms) / row.transfer_ms - 1.0).abs();
    100.0 * rows.iter().map(error).fold(0.0, f64::max)
}

/// Relative least squares without negative terms: milliseconds a transfer, a piece and a byte.
fn solve(rows: &[&Point]) -> Option<[f64; 3]> {
    if rows.len() < 2 {
        return None;
    }
    let mut used = vec![0, 1, 2];
    loop {
        let solution = normal_equations(rows, &used);
        // A term that comes out negative, or cannot be told from the others, is left out.
        let drop = match &solution {
            None => Some(used.iter().position(|term| *term == 1).unwrap_or(0)),
            Some(values) => values.iter().position(|value| *value < 0.0),
        };
        match (drop, solution) {
            (Some(at), _) if used.len() > 1 => {
                used.remove(at);
            }
            (_, Some(values)) => {
                let mut terms = [0.0; 3];
                for (term, value) in used.into_iter().zip(values) {
                    terms[term] = value.max(0.0);
                }
                return Some(terms);
            }
            (_, None) => return None,
        }
    }
}

/// Minimises the sum of squared relative errors over the given terms, by Gaussian elimination.
fn normal_equations(rows: &[&Point], used: &[usize]) -> Option<Vec<f64>> {
    let n = used.len();
    let mut matrix = vec![vec![0.0; n + 1]; n];
    // Columns are scaled to about one, so that the pivots can be compared.
    let scale = |term: usize| {
        rows.iter()
            .map(|row| factors(row)[term])
            .fold(0.0, f64::max)
    };
    let scales: Vec<f64> = used.iter().map(|term| scale(*term)).collect();
    for row in rows {
        let time = row.transfer_ms;
        let x: Vec<f64> = (used.iter().zip(&scales))
            .map(|(term, scale)| factors(row)[*term] / scale / time)
            .collect();
        for i in 0..n {
            for j in 0..n {
                matrix[i][j] += x[i] * x[j];
            }
            matrix[i][n] += x[i];
        }
    }
    let largest = (0..n).map(|i| matrix[i][i]).fold(0.0, f64::max);
    for column in 0..n {
        let pivot = (column..n)
            .max_by(|a, b| (matrix[*a][column].abs()).total_cmp(&matrix[*b][column].abs()))?;
        if matrix[pivot][column].abs() <= largest * 1e-12 {
            return None;
        }
        matrix.swap(column, pivot);
        let pivot_row = matrix[column].clone();
        for (at, row) in matrix.iter_mut().enumerate() {
            if at != column {
                let factor = row[column] / pivot_row[column];
                for (value, pivot) in row.iter_mut().zip(&pivot_row) {
                    *value -= factor * pivot;
                }
            }
        }
    }
    Some(
        (0..n)
            .map(|i| matrix[i][n] / matrix[i][i] / scales[i])
            .collect(),
    )
}

/// What limits the rate, in a sentence, from what was seen while the fastest combination ran.
pub fn limit(socket: &SocketFacts, observed: &Observed) -> String {
    if socket.loopback {
        return "loopback: no network is in the way, the rate is that of copying and checking \
                memory in two processes on one machine"
            .into();
    }
    let (before, after) = (observed.before, observed.after);
    if let Some((before, after)) = before.zip(after) {
        let busy = after
            .busy_time_us
            .saturating_sub(before.busy_time_us)
            .max(1) as f64;
        let share = |after: u64, before: u64| after.saturating_sub(before) as f64 / busy;
        let sent = after.bytes_sent.saturating_sub(before.bytes_sent).max(1) as f64;
        let resent = after.bytes_retrans.saturating_sub(before.bytes_retrans) as f64;
        if resent / sent > LOSSY_SHARE {
            return format!(
                "network: {:.2}% of the bytes were sent again, so it drops packets at this rate",
                100.0 * resent / sent
            );
        }
        let receiver = share(after.rwnd_limited_us, before.rwnd_limited_us);
        if receiver > LIMITING_SHARE {
            return format!(
                "receiver: {:.0}% of the busy time waited for the peer's receive window, so its \
                 processor or its net.ipv4.tcp_rmem is the limit",
                100.0 * receiver
            );
        }
        let buffer = share(after.sndbuf_limited_us, before.sndbuf_limited_us);
        if buffer > LIMITING_SHARE {
            return format!(
                "window: {:.0}% of the busy time waited for this node's send buffer: raise \
                 net.ipv4.tcp_wmem or use more streams",
                100.0 * buffer
            );
        }
    }
    if observed.cpu_share > BUSY_CORE_SHARE {
        return format!(
            "sender: this process used {:.0}% of a core, and one connection's work is one core's",
            100.0 * observed.cpu_share
        );
    }
    "network: neither end was busy or out of buffer, so the link or a card on it sets the rate; \
     compare with the speed of the interface"
        .into()
}

impl Sweep {
    /// The fixed table, the fits and the limit.
    pub fn to_terminal(&self) -> String {
        let mut table = Builder::new();
        table.push_record([
            "bytes", "streams", "pieces", "ms", "p95 ms", "Gbps", "ceiling", "1st Gbps",
        ]);
        for row in &self.rows {
            table.push_record([
                row.bytes.to_string(),
                row.streams.to_string(),
                row.pieces.to_string(),
                format!("{:.3}", row.transfer_ms.median),
                row.transfer_ms
                    .p95
                    .map_or("-".into(), |p95| format!("{p95:.3}")),
                format!("{:.2}", row.gbps.median),
                format!("{:.0}%", 100.0 * row.gbps.median / self.ceiling_gbps),
                format!("{:.2}", row.first_gbps),
            ]);
        }
        let mut table = table.build();
        table
            .with(Style::blank())
            .with(Modify::new(Columns::new(..)).with(Alignment::right()));
        let fits = self.fits.iter().map(|fit| {
            let beta = fit.beta_gbps.map_or("-".into(), |beta| format!("{beta:.2} Gbps"));
            let score = (fit.held_out_error_pct)
                .map_or(String::new(), |e| format!(", {e:.0}% on sizes left out"));
            format!(
                "{} stream{}: t = {:.0} us + pieces x {:.1} us + bytes / {beta}; worst error {:.0}%{score}",
                fit.streams,
                if fit.streams == 1 { "" } else { "s" },
                fit.alpha_us,
                fit.overhead_us_per_piece,
                fit.worst_residual_pct,
            )
        });
        let fits: Vec<String> = fits.collect();
        format!(
            "{table}\n\nceiling {:.2} Gbps of KV payload, {} caches, smallest round trip {:.0} us, {}\n\n{}\n\nlimit: {}",
            self.ceiling_gbps,
            self.shape,
            self.min_round_trip_us,
            self.socket
                .congestion_control
                .as_deref()
                .unwrap_or("unknown congestion control"),
            fits.join("\n"),
            self.limit
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(bytes: u64, pieces: u64, transfer_ms: f64) -> Point {
        Point {
            bytes,
            pieces,
            transfer_ms,
        }
    }

    /// 50 us + 2 us a piece + bytes at 20 Gbps.
    fn exact(bytes: u64, pieces: u64) -> Point {
        row(
            bytes,
            pieces,
            0.05 + pieces as f64 * 0.002 + bytes as f64 * 8.0 / 20e6,
        )
    }

    #[test]
    fn an_exact_line_is_found_again() {
        let sizes = [1u64 << 16, 1 << 18, 1 << 20, 1 << 22, 1 << 24];
        let rows: Vec<Point> = (sizes.iter())
            .flat_map(|b| [exact(*b, 30), exact(*b, 30 + b / 65_536)])
            .collect();
        let fit = Fit::of(&rows, 1).unwrap();
        assert!((fit.alpha_us - 50.0).abs() < 0.01, "{fit:?}");
        assert!((fit.overhead_us_per_piece - 2.0).abs() < 0.001);
        assert!((fit.beta_gbps.unwrap() - 20.0).abs() < 0.001);
        assert!(fit.worst_residual_pct < 0.01);
        assert!(fit.held_out_error_pct.unwrap() < 0.01);
        let predicted_ns = fit.transfer_ns(1 << 20, 30);
        assert!((predicted_ns / 1e6 / exact(1 << 20, 30).transfer_ms - 1.0).abs() < 1e-6);
    }

    #[test]
    fn two_sizes_give_a_rate_and_no_score() {
        let fit = Fit::of(&[exact(1 << 16, 30), exact(1 << 18, 30)], 2).unwrap();
        assert_eq!((fit.streams, fit.held_out_error_pct), (2, None));
        assert!((fit.beta_gbps.unwrap() - 20.0).abs() < 0.001, "{fit:?}");
    }

    #[test]
    fn terms_that_cannot_be_told_apart_or_are_negative_are_left_out() {
        // Pieces in proportion to bytes: their cost is part of the bytes'.
        let rows: Vec<Point> = [1u64, 2, 4].map(|k| exact(k << 20, 30 * k)).to_vec();
        let fit = Fit::of(&rows, 1).unwrap();
        assert_eq!(fit.overhead_us_per_piece, 0.0);
        assert!(fit.worst_residual_pct < 1.0, "{fit:?}");
        let falling = [row(1, 1, 3.0), row(2, 1, 2.0), row(3, 1, 1.0)];
        let fit = Fit::of(&falling, 1).unwrap();
        assert!(fit.alpha_us >= 0.0 && fit.beta_gbps.is_none());
        assert!(fit.worst_residual_pct > 10.0);
        assert_eq!(Fit::of(&falling[..1], 1), None);
    }
}
