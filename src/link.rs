//! What a sweep over a link says about it: rates, a fitted model, and what limits it.
//!
//! Pure functions of measured transfers; measuring is `cmd::link`'s. `fit` is the model, `kept` one
//! that is read back, `limit` judges, `cause` has the sentences, `table` is what people see.

mod cause;
mod fit;
#[cfg(test)]
pub(crate) mod fixture;
mod kept;
mod limit;
mod table;

pub use cause::{Cause, sentence};
pub use fit::{Fit, FitOrigin, Point, SizeTime};
pub use kept::KeptFit;
pub use limit::{Evidence, Observed, Totals, causes};

use serde::{Deserialize, Serialize};

use crate::environment::NetworkInterface;
use crate::metrics::limits;
use crate::stats::Figure;
use crate::wire::Transport;
use crate::wire::socket::SocketFacts;

/// Raw times of one combination, each from the first piece offered to the last one acknowledged.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Times {
    /// The first transfer of new connections.
    pub cold_ns: u64,
    /// Transfers behind it, back to back.
    pub warm_ns: Vec<u64>,
    /// One more after the connections had idled; null where that was not measured.
    pub after_idle_ns: Option<u64>,
    /// Further ones, each after idling again.
    #[serde(default)]
    pub more_after_idle_ns: Vec<u64>,
}

impl Times {
    /// The median of the transfers after idle.
    pub fn median_after_idle_ns(&self) -> Option<f64> {
        let all = self.after_idle_ns.iter().chain(&self.more_after_idle_ns);
        Some(Figure::of(&all.map(|ns| *ns as f64).collect::<Vec<_>>())?.median)
    }
}

/// One combination of a sweep. Cold, warm and after idle are told apart: a median is of warm
/// transfers alone.
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
    /// KV bits over the time of the first transfer of new connections.
    pub cold_gbps: f64,
    /// The same after the connections had idled, a median; null where that was not measured.
    pub after_idle_gbps: Option<f64>,
    /// What was measured.
    pub times: Times,
}

impl Row {
    /// Derives a row from its times; `None` without a warm transfer.
    pub fn of(bytes: u64, streams: u32, pieces: u64, times: Times) -> Option<Self> {
        let warm: Vec<f64> = times.warm_ns.iter().map(|ns| *ns as f64).collect();
        let gbps = |ns: f64| bytes as f64 * 8.0 / ns.max(1.0);
        let figure = |derive: &dyn Fn(f64) -> f64| {
            Figure::of(&warm.iter().map(|ns| derive(*ns)).collect::<Vec<_>>())
        };
        Some(Self {
            bytes,
            streams,
            pieces,
            transfer_ms: figure(&|ns| ns / 1e6)?,
            gbps: figure(&gbps)?,
            cold_gbps: gbps(times.cold_ns as f64),
            after_idle_gbps: times.median_after_idle_ns().map(gbps),
            times,
        })
    }
}

/// A combination that was asked for and not measured.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeftOut {
    /// KV bytes of one transfer.
    pub bytes: u64,
    /// TCP connections.
    pub streams: u32,
    /// Pieces of one transfer.
    pub pieces: u64,
    /// Why, and what to do about it.
    pub reason: String,
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
    /// What carried it: `tcp`, or `tls over tcp`.
    #[serde(default = "plain_tcp")]
    pub transport: String,
    /// The interface that carried it; null where the system does not tell.
    #[serde(default)]
    pub interface: Option<NetworkInterface>,
    /// Smallest round trip of an empty message.
    pub min_round_trip_us: f64,
    /// Pause before the transfers after idle; null where none were measured.
    pub idle_gap_ms: Option<u64>,
    /// One entry a combination.
    pub rows: Vec<Row>,
    /// Combinations that were not measured.
    pub left_out: Vec<LeftOut>,
    /// Highest median rate of all.
    pub ceiling_gbps: f64,
    /// One a number of streams, where there are enough rows.
    pub fits: Vec<Fit>,
    /// What was seen while the fastest combination ran.
    pub observed: Observed,
    /// What limits the rate, first, and what else is wrong.
    #[serde(default)]
    pub causes: Vec<Cause>,
    /// The same in a sentence.
    pub limit: String,
}

/// What carried a sweep from before there was TLS.
fn plain_tcp() -> String {
    Transport::Tcp.name().into()
}

impl Sweep {
    /// Says which number of a sweep that was read no link has.
    fn check(&self) -> Result<(), String> {
        limits::is_amount("min_round_trip_us", self.min_round_trip_us)?;
        limits::is_amount("ceiling_gbps", self.ceiling_gbps)?;
        for row in &self.rows {
            let times = &row.times;
            let after_idle = times.after_idle_ns.iter().chain(&times.more_after_idle_ns);
            let times = times
                .warm_ns
                .iter()
                .chain(after_idle)
                .chain([&times.cold_ns]);
            limits::all_at_most("a time of a row in ns", times.copied())?;
            limits::all_at_most("bytes or pieces of a row", [row.bytes, row.pieces])?;
            limits::figure(&row.transfer_ms)?;
            limits::figure(&row.gbps)?;
        }
        self.fits.iter().try_for_each(Fit::check)
    }
}

/// Highest median rate.
pub fn ceiling_gbps(rows: &[Row]) -> f64 {
    rows.iter().map(|row| row.gbps.median).fold(0.0, f64::max)
}
