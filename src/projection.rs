//! What other links would change, projected from published measurements of them.
//!
//! A transfer takes `alpha + bytes / beta`. Alpha and the share of the line rate that beta reaches
//! come from published tables, as ranges; they are not fitted on the link that was measured. So
//! every number from here is a projection, has a low and a high end, and is labelled as such.

pub mod exposure;

use std::fmt;

use anyhow::Context;
use serde::Deserialize;

use crate::metrics::summary::{SummaryArm, SummaryCase};
use crate::metrics::{Arm, Transfer};

/// Published measurements with their sources.
const CALIBRATION: &str = include_str!("projection/transport_calibration.json");

/// Line rates that are looked at, in decimal gigabits per second.
pub const LINE_RATES_GBPS: [f64; 5] = [10.0, 25.0, 100.0, 200.0, 400.0];

/// TCP streams of "better TCP".
const TCP_STREAMS: f64 = 4.0;

/// What carries the bytes, and whose clock its fixed cost is on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tier {
    /// TCP on the same link, tuned, four streams.
    Tcp,
    /// RDMA, raw verbs.
    Wire,
    /// RDMA through a transfer library such as NIXL, UCX or Mooncake's.
    Library,
    /// RDMA as a whole request inside an engine such as vLLM or SGLang pays it.
    Engine,
}

impl fmt::Display for Tier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "better TCP",
            Self::Wire => "RDMA wire",
            Self::Library => "RDMA library",
            Self::Engine => "RDMA engine",
        })
    }
}

/// A projected quantity, in ms. There is no single value to quote.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Range {
    /// Low end.
    pub low: f64,
    /// From the middle of the published values.
    pub mid: f64,
    /// High end.
    pub high: f64,
}

/// One tier on one link.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Projection {
    /// What would carry the bytes.
    pub tier: Tier,
    /// Line rate of the link, in decimal gigabits per second.
    pub line_rate_gbps: f64,
    /// Time that the request would wait for its cache.
    pub wait_ms: Range,
    /// Measured exposed transfer less that; negative where the measured link is the better one.
    pub saving_ms: Range,
}

/// What other links would save one prompt.
#[derive(Clone, Debug)]
pub struct Savings {
    /// Prompt length.
    pub prompt_tokens: u32,
    /// KV bytes of one transfer.
    pub kv_bytes: u64,
    /// Measured: transfer that the request waited for, in ms. No link saves more.
    pub exposed_ms: f64,
    /// Measured: end to end, in ms.
    pub e2e_ms: f64,
    /// Every tier on every line rate, slowest link first.
    pub projections: Vec<Projection>,
    /// Whether the payload is smaller than the published fits hold for.
    pub is_below_fits: bool,
}

impl Savings {
    /// Projects a case's bulk transfer. `None` where there is none; with layers sent while others
    /// compute, exposed time is no longer one transfer, and this model does not hold.
    pub fn of(case: &SummaryCase) -> anyhow::Result<Option<Self>> {
        let is_bulk = |a: &&SummaryArm| {
            a.arm == Arm::Split && a.transfer == Some(Transfer::Bulk) && !a.is_lossy()
        };
        let measured = case.arms.iter().filter(is_bulk).find_map(|a| {
            let (exposed, e2e) = (a.exposed_transfer_ms?, a.e2e_ms?);
            (a.wire_bytes > 0).then_some((a.wire_bytes, exposed.median, e2e.median))
        });
        let Some((kv_bytes, exposed_ms, e2e_ms)) = measured else {
            return Ok(None);
        };
        let calibration = Calibration::embedded()?;
        let tiers = calibration.tiers()?;
        let projections = LINE_RATES_GBPS.iter().flat_map(|&line_rate_gbps| {
            (tiers.iter()).map(move |t| t.project(kv_bytes, line_rate_gbps, exposed_ms))
        });
        Ok(Some(Self {
            prompt_tokens: case.prompt_tokens,
            kv_bytes,
            exposed_ms,
            e2e_ms,
            projections: projections.collect(),
            is_below_fits: calibration.valid_from_bytes() > kv_bytes,
        }))
    }

    /// The most that any RDMA tier on any of the links would save, in ms.
    pub fn most_by_rdma_ms(&self) -> f64 {
        (self.projections.iter())
            .filter(|p| p.tier != Tier::Tcp)
            .map(|p| p.saving_ms.high)
            .fold(f64::NEG_INFINITY, f64::max)
    }
}

/// Where the published values are from.
pub fn sources() -> anyhow::Result<Vec<String>> {
    let calibration = Calibration::embedded()?;
    let fits = calibration
        .fits
        .iter()
        .map(|f| format!("{}: {}", f.name, f.source));
    let used = calibration
        .points
        .iter()
        .filter(|p| POINTS_USED.contains(&p.what.as_str()));
    Ok(fits
        .chain(used.map(|p| format!("{}: {}", p.what, p.source)))
        .collect())
}

const RAW_RDMA_100G: &str = "raw RDMA, one 100G link, DGX Spark";
const RAW_RDMA_400G: &str = "AMD 400G: ib_write_bw 64 KB / ucx_perftest 4 MB / nixlbench 16 MB";
const SMALL_MESSAGE: &str = "raw RDMA small-message latency / TCP small-message latency";
const TCP_BESIDE_ROCE: &str = "RoCE vs TCP x4, one DGX Spark, cabled loopback";
const TCP_PER_CORE: &str = "Linux TCP per core, receiver copy-bound";
const POINTS_USED: [&str; 5] = [
    RAW_RDMA_100G,
    RAW_RDMA_400G,
    SMALL_MESSAGE,
    TCP_BESIDE_ROCE,
    TCP_PER_CORE,
];

/// The published measurements, as in their file.
#[derive(Deserialize)]
struct Calibration {
    fits: Vec<Fit>,
    points: Vec<Point>,
}

#[derive(Deserialize)]
struct Fit {
    name: String,
    tier: String,
    line_rate_gbps: f64,
    alpha_us: f64,
    beta_gbps: f64,
    valid_from_bytes: Option<u64>,
    source: String,
}

#[derive(Deserialize)]
struct Point {
    what: String,
    #[serde(default)]
    gbps: serde_json::Value,
    #[serde(default)]
    us: serde_json::Value,
    source: String,
}

/// Published values of one tier.
struct TierValues {
    tier: Tier,
    alphas_us: Vec<f64>,
    /// Shares of the line rate that large transfers reach.
    shares: Vec<f64>,
    /// Rate beyond which a faster line does not help.
    ceiling_gbps: f64,
}

impl Calibration {
    fn embedded() -> anyhow::Result<Self> {
        serde_json::from_str(CALIBRATION)
            .context("the transport calibration of this build is broken")
    }

    /// Numbers of a point, in the order of its text.
    fn point(
        &self,
        what: &str,
        field: fn(&Point) -> &serde_json::Value,
    ) -> anyhow::Result<Vec<f64>> {
        fn numbers(value: &serde_json::Value, into: &mut Vec<f64>) {
            match value {
                serde_json::Value::Array(values) => values.iter().for_each(|v| numbers(v, into)),
                value => into.extend(value.as_f64()),
            }
        }
        let point = self.points.iter().find(|p| p.what == what);
        let mut found = Vec::new();
        numbers(
            field(point.with_context(|| format!("no calibration for {what}"))?),
            &mut found,
        );
        anyhow::ensure!(
            !found.is_empty(),
            "no numbers in the calibration for {what}"
        );
        Ok(found)
    }

    fn tiers(&self) -> anyhow::Result<Vec<TierValues>> {
        let wire_shares = vec![
            self.point(RAW_RDMA_100G, |p| &p.gbps)?[0] / 100.0,
            self.point(RAW_RDMA_400G, |p| &p.gbps)?[0] / 400.0,
        ];
        let latencies = self.point(SMALL_MESSAGE, |p| &p.us)?;
        let (rdma_us, tcp_us) = latencies.split_at(latencies.len() / 2);
        let beside = self.point(TCP_BESIDE_ROCE, |p| &p.gbps)?;
        anyhow::ensure!(
            beside.len() == 2,
            "two rates are wanted for {TCP_BESIDE_ROCE}"
        );
        let tcp_shares = wire_shares
            .iter()
            .map(|share| share * beside[1] / beside[0]);
        let per_core = self.point(TCP_PER_CORE, |p| &p.gbps)?[0];
        let fitted = |tier, name: &str| {
            let fits = || self.fits.iter().filter(|f| f.tier == name);
            TierValues {
                tier,
                alphas_us: fits().map(|f| f.alpha_us).collect(),
                shares: fits().map(|f| f.beta_gbps / f.line_rate_gbps).collect(),
                ceiling_gbps: f64::INFINITY,
            }
        };
        Ok(vec![
            TierValues {
                tier: Tier::Tcp,
                alphas_us: tcp_us.to_vec(),
                shares: tcp_shares.collect(),
                ceiling_gbps: TCP_STREAMS * per_core,
            },
            TierValues {
                tier: Tier::Wire,
                alphas_us: rdma_us.to_vec(),
                shares: wire_shares,
                ceiling_gbps: f64::INFINITY,
            },
            fitted(Tier::Library, "library"),
            fitted(Tier::Engine, "engine"),
        ])
    }

    fn valid_from_bytes(&self) -> u64 {
        self.fits
            .iter()
            .filter_map(|f| f.valid_from_bytes)
            .max()
            .unwrap_or(0)
    }
}

impl TierValues {
    fn project(&self, bytes: u64, line_rate_gbps: f64, exposed_ms: f64) -> Projection {
        let alpha = spread(&self.alphas_us);
        let share = spread(&self.shares);
        let wait_ms = Range {
            low: self.wait_ms(bytes, line_rate_gbps, alpha.low, share.high),
            mid: self.wait_ms(bytes, line_rate_gbps, alpha.mid, share.mid),
            high: self.wait_ms(bytes, line_rate_gbps, alpha.high, share.low),
        };
        Projection {
            tier: self.tier,
            line_rate_gbps,
            wait_ms,
            saving_ms: Range {
                low: exposed_ms - wait_ms.high,
                mid: exposed_ms - wait_ms.mid,
                high: exposed_ms - wait_ms.low,
            },
        }
    }

    /// `alpha + bytes / beta`, beta never above the line rate.
    fn wait_ms(&self, bytes: u64, line_rate_gbps: f64, alpha_us: f64, share: f64) -> f64 {
        let beta_gbps = (share.min(1.0) * line_rate_gbps).min(self.ceiling_gbps);
        // Bits over gigabits per second are ns.
        alpha_us.max(0.0) / 1e3 + bytes as f64 * 8.0 / beta_gbps / 1e6
    }
}

/// Smallest, median and largest of the published values; there is at least one.
fn spread(values: &[f64]) -> Range {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let at = |p| crate::stats::percentile(&sorted, p).unwrap_or(f64::NAN);
    Range {
        low: at(0.0),
        mid: at(0.5),
        high: at(1.0),
    }
}

#[cfg(test)]
mod tests;
