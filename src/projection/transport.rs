//! Published measurements of transports, as ranges with their sources.
//!
//! Alpha and the share of the line rate that large transfers reach come from published tables; they
//! are not fitted on the link that was measured.

use std::fmt;

use anyhow::Context;
use serde::{Deserialize, Serialize};

use super::{Carrier, Range};

/// Published measurements with their sources.
const CALIBRATION: &str = include_str!("transport_calibration.json");

/// TCP streams of "better TCP" where only published values are known.
const TCP_STREAMS: f64 = 4.0;

/// What carries the bytes, and, of RDMA, whose clock its fixed cost is on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Transport {
    /// TCP with the streams of the run, as fitted.
    Tcp,
    /// TCP on the same link with more streams.
    BetterTcp,
    /// RDMA, raw verbs.
    RdmaWire,
    /// RDMA through a transfer library such as NIXL, UCX or Mooncake's.
    RdmaLibrary,
    /// RDMA as a whole request inside an engine such as vLLM or SGLang pays it.
    RdmaEngine,
}

impl Transport {
    /// All of them, in the order shown.
    pub const ALL: [Self; 5] = [
        Self::Tcp,
        Self::BetterTcp,
        Self::RdmaWire,
        Self::RdmaLibrary,
        Self::RdmaEngine,
    ];

    /// Whether it is a tier of RDMA.
    pub fn is_rdma(self) -> bool {
        !matches!(self, Self::Tcp | Self::BetterTcp)
    }
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "TCP as fitted",
            Self::BetterTcp => "better TCP",
            Self::RdmaWire => "RDMA wire",
            Self::RdmaLibrary => "RDMA library",
            Self::RdmaEngine => "RDMA engine",
        })
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

/// Published values of one transport.
pub(super) struct Published {
    pub(super) transport: Transport,
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

    fn transports(&self) -> anyhow::Result<Vec<Published>> {
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
        let fitted = |transport, name: &str| {
            let fits = || self.fits.iter().filter(|f| f.tier == name);
            Published {
                transport,
                alphas_us: fits().map(|f| f.alpha_us).collect(),
                shares: fits().map(|f| f.beta_gbps / f.line_rate_gbps).collect(),
                ceiling_gbps: f64::INFINITY,
            }
        };
        Ok(vec![
            Published {
                transport: Transport::BetterTcp,
                alphas_us: tcp_us.to_vec(),
                shares: tcp_shares.collect(),
                ceiling_gbps: TCP_STREAMS * per_core,
            },
            Published {
                transport: Transport::RdmaWire,
                alphas_us: rdma_us.to_vec(),
                shares: wire_shares,
                ceiling_gbps: f64::INFINITY,
            },
            fitted(Transport::RdmaLibrary, "library"),
            fitted(Transport::RdmaEngine, "engine"),
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

impl Published {
    /// All that there are, and the smallest payload that all of their fits hold for.
    pub(super) fn all() -> anyhow::Result<(Vec<Self>, u64)> {
        let calibration = Calibration::embedded()?;
        Ok((calibration.transports()?, calibration.valid_from_bytes()))
    }

    /// Its cost on a line, low, middle and high; never above the line's rate.
    pub(super) fn carriers(&self, line_rate_gbps: f64) -> [Carrier<'static>; 3] {
        let alpha_us = Range::of(&self.alphas_us);
        let share = Range::of(&self.shares);
        let carrier = |alpha_us, share: f64| {
            let gbps = (share.min(1.0) * line_rate_gbps).min(self.ceiling_gbps);
            Carrier::published(alpha_us, gbps)
        };
        [
            carrier(alpha_us.low, share.high),
            carrier(alpha_us.mid, share.mid),
            carrier(alpha_us.high, share.low),
        ]
    }
}
