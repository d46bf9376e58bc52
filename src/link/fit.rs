//! What a transfer takes on a link: `alpha + pieces x overhead + bytes / beta(size)`, fitted to
//! measured transfers, and how well that predicts sizes it was not fitted on.
//!
//! Beta depends on the size because links do: buffers and token buckets take the first bytes
//! faster, processor caches lose the last ones. So the time of the bytes is a line from one
//! measured size to the next, and goes on as the last one does. What a connection that idled takes
//! longer (it starts slowly) or shorter (a token bucket is full again) is kept apart, by size.

use serde::{Deserialize, Serialize};

use super::Row;
use crate::metrics::limits::is_amount;

/// Share of the smallest transfer that its bytes take at least: what is fixed and what is the
/// bytes' cannot be told apart to the last microsecond.
const LEAST_BYTES_SHARE: f64 = 0.1;

/// The cost of a transfer, for one number of streams.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Fit {
    /// TCP connections.
    pub streams: u32,
    /// Fixed cost of a transfer.
    pub alpha_us: f64,
    /// Cost of a piece.
    pub overhead_us_per_piece: f64,
    /// Rate at which a transfer beyond the largest size goes on; null where bytes cost nothing
    /// measurable.
    pub beta_gbps: Option<f64>,
    /// Time of the bytes alone at every measured size, rising with the size.
    pub sizes: Vec<SizeTime>,
    /// The same over connections that had idled before; empty where that was not measured.
    #[serde(default)]
    pub after_idle: Vec<SizeTime>,
    /// Largest relative error over the transfers that were fitted.
    pub worst_residual_pct: f64,
    /// Largest relative error over the sizes in between when only every second one is fitted; null
    /// where there are fewer than three.
    pub held_out_error_pct: Option<f64>,
}

/// Time that the bytes of one size take.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct SizeTime {
    /// KV bytes.
    pub bytes: u64,
    /// Their time, without what is fixed and what is the pieces'.
    pub wire_ms: f64,
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
    /// The same over connections that had idled; none where that was not measured.
    pub after_idle_ms: Option<f64>,
}

impl From<&Row> for Point {
    fn from(row: &Row) -> Self {
        Self {
            bytes: row.bytes,
            pieces: row.pieces,
            transfer_ms: row.transfer_ms.median,
            after_idle_ms: row.times.median_after_idle_ns().map(|ns| ns / 1e6),
        }
    }
}

/// Where a run's fit came from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
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

    /// Fits points measured over `streams` connections; `None` with fewer than two sizes.
    pub fn of(points: &[Point], streams: u32) -> Option<Self> {
        let sizes = by_size(points);
        let bare = Self::of_sizes(&sizes, streams)?;
        // The first and the last size stay in, so that what is left out lies between.
        let last = sizes.len() - 1;
        let is_kept = |i: usize| i.is_multiple_of(2) || i == last;
        let (mut kept, mut held_out) = (Vec::new(), Vec::new());
        for (i, size) in sizes.iter().enumerate() {
            match is_kept(i) {
                true => kept.push(size.clone()),
                false => held_out.extend(size),
            }
        }
        let scored = Self::of_sizes(&kept, streams).filter(|_| !held_out.is_empty());
        Some(Self {
            worst_residual_pct: bare.worst_error_pct(points),
            held_out_error_pct: scored.map(|fit| fit.worst_error_pct(&held_out)),
            ..bare
        })
    }

    /// Fits points of one size each, sizes rising, without a score.
    fn of_sizes(sizes: &[Vec<Point>], streams: u32) -> Option<Self> {
        if sizes.len() < 2 {
            return None;
        }
        let overhead_ms = overhead_ms(sizes);
        // Of one size, the time that is not its pieces'.
        let rest: Vec<(f64, f64)> = (sizes.iter())
            .map(|points| {
                let bytes = points[0].bytes as f64;
                let times = points.iter();
                let times = times.map(|p| p.transfer_ms - p.pieces as f64 * overhead_ms);
                (bytes, mean(times).max(0.0))
            })
            .collect();
        let ((b0, t0), (b1, t1)) = (rest[0], rest[1]);
        let alpha_ms = (t0 - b0 * (t1 - t0) / (b1 - b0)).clamp(0.0, t0 * (1.0 - LEAST_BYTES_SHARE));
        let mut longest_ms = 0.0f64;
        let size_times: Vec<SizeTime> = (rest.iter())
            .map(|(bytes, time_ms)| {
                // More bytes never take less.
                longest_ms = longest_ms.max(time_ms - alpha_ms);
                SizeTime {
                    bytes: *bytes as u64,
                    wire_ms: longest_ms,
                }
            })
            .collect();
        let last_ms_per_byte = slope(&size_times[size_times.len() - 2..]);
        let after_idle = after_idle(sizes, &size_times, alpha_ms, overhead_ms);
        Some(Self {
            streams,
            alpha_us: alpha_ms * 1e3,
            overhead_us_per_piece: overhead_ms * 1e3,
            beta_gbps: (last_ms_per_byte > 0.0).then(|| 8.0 / last_ms_per_byte / 1e6),
            sizes: size_times,
            after_idle,
            worst_residual_pct: 0.0,
            held_out_error_pct: None,
        })
    }

    /// Says which number of a fit that was read no link has.
    pub(crate) fn check(&self) -> Result<(), String> {
        is_amount("alpha_us", self.alpha_us)?;
        is_amount("overhead_us_per_piece", self.overhead_us_per_piece)?;
        is_amount("beta_gbps", self.beta_gbps.unwrap_or(0.0))?;
        is_amount("worst_residual_pct", self.worst_residual_pct)?;
        is_amount("held_out_error_pct", self.held_out_error_pct.unwrap_or(0.0))?;
        let mut sizes = self.sizes.iter().chain(&self.after_idle);
        sizes.try_for_each(|size| is_amount("wire_ms", size.wire_ms))
    }

    /// Time from the first piece offered to the last one acknowledged, in ns, over warm
    /// connections.
    pub fn transfer_ns(&self, bytes: u64, pieces: u64) -> f64 {
        (self.alpha_us + pieces as f64 * self.overhead_us_per_piece) * 1e3 + self.wire_ns(bytes)
    }

    /// Time of the bytes alone, in ns.
    pub fn wire_ns(&self, bytes: u64) -> f64 {
        self.between(&self.sizes, bytes)
    }

    /// The same over connections that had idled before; as if they had not where that was not
    /// measured.
    pub fn wire_after_idle_ns(&self, bytes: u64) -> f64 {
        match self.after_idle.is_empty() {
            true => self.wire_ns(bytes),
            false => self.between(&self.after_idle, bytes),
        }
    }

    /// A line from nothing through the measured sizes, and on at the fitted rate.
    fn between(&self, sizes: &[SizeTime], bytes: u64) -> f64 {
        let zero = SizeTime {
            bytes: 0,
            wire_ms: 0.0,
        };
        let at = sizes.partition_point(|size| size.bytes < bytes);
        let wire_ms = match (at, sizes.get(at)) {
            (0, None) => 0.0,
            (_, None) => {
                let last = sizes[at - 1];
                let beyond = (bytes - last.bytes) as f64;
                last.wire_ms + self.beta_gbps.map_or(0.0, |beta| beyond * 8.0 / beta / 1e6)
            }
            (_, Some(above)) => {
                let below = at.checked_sub(1).map_or(zero, |i| sizes[i]);
                below.wire_ms + slope(&[below, *above]) * (bytes - below.bytes) as f64
            }
        };
        wire_ms * 1e6
    }

    fn worst_error_pct(&self, points: &[Point]) -> f64 {
        let error = |p: &Point| {
            let predicted_ms = self.transfer_ns(p.bytes, p.pieces) / 1e6;
            (predicted_ms / p.transfer_ms - 1.0).abs()
        };
        100.0 * points.iter().map(error).fold(0.0, f64::max)
    }
}

/// Points of one size together, smallest size first.
fn by_size(points: &[Point]) -> Vec<Vec<Point>> {
    let mut sorted = points.to_vec();
    sorted.sort_by_key(|p| p.bytes);
    let groups = sorted.chunk_by(|a, b| a.bytes == b.bytes);
    groups.map(<[Point]>::to_vec).collect()
}

/// What the bytes take over connections that had idled: all of such a transfer that is neither
/// fixed nor the pieces', as over warm ones.
fn after_idle(
    sizes: &[Vec<Point>],
    warm: &[SizeTime],
    alpha_ms: f64,
    overhead_ms: f64,
) -> Vec<SizeTime> {
    let mut longest_ms = 0.0f64;
    (sizes.iter().zip(warm))
        .filter_map(|(points, warm)| {
            let (point, idle_ms) = points.iter().find_map(|p| Some((p, p.after_idle_ms?)))?;
            let fixed_ms = alpha_ms + point.pieces as f64 * overhead_ms;
            // More bytes never take less.
            longest_ms = longest_ms.max(idle_ms - fixed_ms);
            Some(SizeTime {
                bytes: warm.bytes,
                wire_ms: longest_ms,
            })
        })
        .collect()
}

/// What a piece costs: the median over sizes that were cut in more ways than one, of the time that
/// more pieces took over their number.
fn overhead_ms(sizes: &[Vec<Point>]) -> f64 {
    let mut slopes: Vec<f64> = (sizes.iter())
        .filter_map(|points| {
            let few = points.iter().min_by_key(|p| p.pieces)?;
            let many = points.iter().max_by_key(|p| p.pieces)?;
            let more = many.pieces - few.pieces;
            (more > 0).then(|| (many.transfer_ms - few.transfer_ms) / more as f64)
        })
        .collect();
    slopes.sort_by(f64::total_cmp);
    let median = crate::stats::percentile(&slopes, 0.5).unwrap_or(0.0);
    // No more than the smallest transfer took altogether.
    let most = sizes.iter().flatten();
    let most = most.map(|p| p.transfer_ms / p.pieces.max(1) as f64);
    median.clamp(0.0, most.fold(f64::INFINITY, f64::min))
}

fn mean(values: impl ExactSizeIterator<Item = f64>) -> f64 {
    let n = values.len() as f64;
    values.sum::<f64>() / n
}

/// Milliseconds a byte from one size to the next.
fn slope(sizes: &[SizeTime]) -> f64 {
    let [a, b] = sizes else { return 0.0 };
    (b.wire_ms - a.wire_ms) / (b.bytes - a.bytes) as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn point(bytes: u64, pieces: u64, transfer_ms: f64) -> Point {
        Point {
            bytes,
            pieces,
            transfer_ms,
            after_idle_ms: None,
        }
    }

    /// 50 us + 2 us a piece + bytes at 20 Gbps.
    fn exact(bytes: u64, pieces: u64) -> Point {
        let ms = 0.05 + pieces as f64 * 0.002 + bytes as f64 * 8.0 / 20e6;
        point(bytes, pieces, ms)
    }

    #[test]
    fn an_exact_line_is_found_again() {
        let sizes = [1u64 << 16, 1 << 18, 1 << 20, 1 << 22, 1 << 24];
        let points: Vec<Point> = (sizes.iter())
            .flat_map(|b| [exact(*b, 30), exact(*b, 30 + b / 65_536)])
            .collect();
        let fit = Fit::of(&points, 1).unwrap();
        assert!((fit.alpha_us - 50.0).abs() < 0.01, "{fit:?}");
        assert!((fit.overhead_us_per_piece - 2.0).abs() < 0.001);
        assert!((fit.beta_gbps.unwrap() - 20.0).abs() < 0.001);
        assert!(fit.worst_residual_pct < 0.01);
        assert!(fit.held_out_error_pct.unwrap() < 0.01);
        for (bytes, pieces) in [(1 << 10, 1), (3 << 19, 31), (1 << 30, 1024)] {
            let predicted_ms = fit.transfer_ns(bytes, pieces) / 1e6;
            let want_ms = exact(bytes, pieces).transfer_ms;
            assert!(
                (predicted_ms / want_ms - 1.0).abs() < 1e-6,
                "{bytes} {predicted_ms}"
            );
        }
    }

    #[test]
    fn what_a_buffer_swallows_is_no_rate_of_the_link() {
        // A token bucket: 128 KiB at once, the rest at 1 Gbps.
        let bucket = |bytes: u64| {
            let ms = (bytes.saturating_sub(131_072)) as f64 * 8.0 / 1e6 + 0.1;
            point(bytes, 30, ms)
        };
        let points: Vec<Point> = [16, 18, 20, 22, 24].map(|k| bucket(1 << k)).to_vec();
        let fit = Fit::of(&points, 1).unwrap();
        assert!((fit.beta_gbps.unwrap() - 1.0).abs() < 0.001, "{fit:?}");
        let predicted_ms = fit.transfer_ns(10 << 20, 30) / 1e6;
        assert!((predicted_ms / bucket(10 << 20).transfer_ms - 1.0).abs() < 0.01);
    }

    #[test]
    fn too_few_sizes_give_no_score_or_no_fit() {
        let fit = Fit::of(&[exact(1 << 16, 30), exact(1 << 18, 30)], 2).unwrap();
        assert_eq!((fit.streams, fit.held_out_error_pct), (2, None));
        assert!((fit.beta_gbps.unwrap() - 20.0).abs() < 0.001, "{fit:?}");
        assert_eq!(Fit::of(&[exact(1 << 16, 30), exact(1 << 16, 60)], 1), None);
        assert_eq!(Fit::of(&[], 1), None);
    }

    #[test]
    fn nonsense_is_fitted_badly_and_says_so() {
        let falling = [point(1, 1, 3.0), point(2, 1, 2.0), point(3, 1, 1.0)];
        let fit = Fit::of(&falling, 1).unwrap();
        assert!(fit.alpha_us >= 0.0 && fit.beta_gbps.is_none());
        assert!(fit.worst_residual_pct > 10.0, "{fit:?}");
    }

    proptest! {
        #[test]
        fn a_transfer_takes_longer_the_more_it_is(
            times_ms in prop::collection::vec(0.001f64..100.0, 2..10),
            bytes in 0u64..1 << 32,
            more in 0u64..1 << 30,
            pieces in 1u64..10_000,
        ) {
            let points: Vec<Point> = (16u32..).zip(&times_ms)
                .flat_map(|(k, ms)| [point(1 << k, 30, *ms), point(1 << k, 60, ms * 1.1)])
                .collect();
            let fit = Fit::of(&points, 1).unwrap();
            prop_assert!(fit.alpha_us >= 0.0 && fit.overhead_us_per_piece >= 0.0);
            let small_ns = fit.transfer_ns(bytes, pieces);
            prop_assert!(small_ns >= 0.0);
            prop_assert!(small_ns <= fit.transfer_ns(bytes + more, pieces + 1) * (1.0 + 1e-9));
        }
    }
}
