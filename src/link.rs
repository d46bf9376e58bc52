//! What a sweep over a link says about it: rates, a fitted model, and what limits it.
//!
//! Pure functions of measured transfers; measuring is `cmd::link`'s.

mod fit;
mod kept;

pub use fit::{Fit, FitOrigin, Point, SizeTime};
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
