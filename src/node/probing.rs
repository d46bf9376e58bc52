//! Measuring the link with made-up caches over an open session: one transfer timed, and the short
//! fit that a run makes before its first request.
//!
//! Sweeping is `cmd::link`'s, what the times mean is [`crate::link`]'s, and the decode node's side
//! is `decode::probe`.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{RngCore, SeedableRng};

use super::decode::probe_layout;
use super::prefill::Connection;
use crate::environment::current_core;
use crate::link::{Fit, Point};
use crate::metrics::EventName;
use crate::metrics::figures::wire_busy_ns;
use crate::model::cache_pool::{CachePool, PoolFull, Pooled};
use crate::model::kv_cache::KvLayout;
use crate::stats::Figure;
use crate::wire::message::{Probe, Receiving, RefuseCode};
use crate::wire::{MAX_PIECE_BYTES, WireError};

/// Smallest payload of a short fit, and the factor from one size to the next.
const SHORT_SMALLEST_BYTES: u64 = 64 << 10;
const SHORT_GROWTH: u64 = 4;

/// Sizes that a fit needs to be scored.
const SCORED_SIZES: usize = 3;

/// Smaller pieces of a short fit: far enough from the largest that a piece's cost shows.
const SHORT_PIECE_BYTES: u64 = 64 << 10;

/// Warm transfers of each size and piece size in a short fit: some, and more where that costs next
/// to nothing, since small transfers scatter most.
const SHORT_REPEATS: usize = 5;
const SHORT_MAX_REPEATS: usize = 25;
const SHORT_SIZE: Duration = Duration::from_millis(20);

/// A short fit grows no further than a size that takes this long, nor for longer than this in all.
const SHORT_TRANSFER: Duration = Duration::from_millis(150);
const SHORT_BUDGET: Duration = Duration::from_secs(2);

/// What the link needs to know of a cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CacheShape {
    /// Layers.
    pub n_layers: u32,
    /// Bytes of one token in one layer; a multiple of 8, as probes demand.
    pub row_bytes: u32,
}

impl From<KvLayout> for CacheShape {
    fn from(layout: KvLayout) -> Self {
        Self {
            n_layers: layout.n_layers as u32,
            row_bytes: layout.row_bytes().next_multiple_of(8) as u32,
        }
    }
}

impl CacheShape {
    /// Bytes of one token over all layers.
    pub fn bytes_per_token(self) -> u64 {
        u64::from(self.n_layers) * u64::from(self.row_bytes)
    }

    /// A cache of as many whole tokens as come closest to `size_bytes`, at least one.
    pub fn probe(self, size_bytes: u64) -> Probe {
        let token_bytes = self.bytes_per_token().max(1);
        let tokens = (size_bytes.saturating_add(token_bytes / 2) / token_bytes).max(1);
        Probe {
            n_layers: self.n_layers,
            row_bytes: self.row_bytes,
            tokens: u32::try_from(tokens).unwrap_or(u32::MAX),
        }
    }

    /// Pieces of a whole cache of `tokens` tokens, each of at most `piece_bytes`.
    pub fn pieces(self, tokens: u32, piece_bytes: u64) -> u64 {
        let piece_tokens = (piece_bytes / u64::from(self.row_bytes).max(1)).max(1);
        u64::from(self.n_layers) * u64::from(tokens).div_ceil(piece_tokens)
    }
}

/// A cache of random bytes, as incompressible as a real one.
pub fn filled(pool: &Arc<CachePool>, probe: Probe) -> Result<Pooled, PoolFull> {
    let cache = pool.take_once(probe_layout(probe), probe.tokens as usize)?;
    let mut random = StdRng::seed_from_u64(1);
    for layer in 0..probe.n_layers as usize {
        let claim = cache.claim(layer, 0, probe.tokens as usize);
        let mut claim = claim.expect("the cache is new and was taken for these tokens");
        random.fill_bytes(&mut claim);
        claim.land();
    }
    Ok(cache)
}

/// One transfer of a made-up cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timed {
    /// KV bytes.
    pub bytes: u64,
    /// Pieces.
    pub pieces: u64,
    /// First piece offered to last piece acknowledged.
    pub busy_ns: u64,
    /// The core that this node's thread was on at the end.
    pub core: Option<u32>,
    /// What the decode node says of its own work.
    pub receiving: Option<Receiving>,
}

/// Sends a made-up cache in pieces of at most `piece_bytes` and times it.
pub async fn timed(
    connection: &mut Connection,
    cache: &Pooled,
    probe: Probe,
    piece_bytes: u64,
) -> anyhow::Result<Timed> {
    let probed = connection.probe(cache, probe, piece_bytes).await?;
    let offered = (probed.events.iter()).filter(|e| e.name == EventName::PieceOffered);
    Ok(Timed {
        bytes: probed.sent.payload_bytes,
        pieces: offered.count() as u64,
        busy_ns: wire_busy_ns(&probed.events).max(1),
        core: current_core(),
        receiving: probed.receiving,
    })
}

/// Fits the link of an open session in a fraction of a second, in two on a slow link: warm
/// transfers of growing caches of this shape, to `largest_bytes` where that does not take too
/// long. `None` where the link is too slow, or memory too small, for two sizes.
pub async fn short_fit(
    connection: &mut Connection,
    pool: &Arc<CachePool>,
    shape: CacheShape,
    largest_bytes: u64,
) -> anyhow::Result<Option<Fit>> {
    let started = Instant::now();
    let mut points: Vec<Point> = Vec::new();
    for probe in short_probes(shape, largest_bytes) {
        let Some(measured) = short_points(connection, pool, shape, probe).await? else {
            break;
        };
        points.extend(&measured);
        let slowest_ms = measured.iter().map(|p| p.transfer_ms).fold(0.0, f64::max);
        let next = Duration::from_secs_f64(slowest_ms * SHORT_GROWTH as f64 / 1e3);
        let too_long = slowest_ms > SHORT_TRANSFER.as_secs_f64() * 1e3 && points.len() > 1;
        if too_long || started.elapsed() + next > SHORT_BUDGET {
            break;
        }
    }
    Ok(Fit::of(&points, connection.streams()))
}

/// Sizes that grow to the largest, which is always one of them.
fn short_sizes(largest_bytes: u64) -> Vec<u64> {
    let smaller = std::iter::successors(Some(SHORT_SMALLEST_BYTES), |size| {
        size.checked_mul(SHORT_GROWTH)
    });
    let mut sizes: Vec<u64> = smaller.take_while(|size| *size < largest_bytes).collect();
    sizes.push(largest_bytes.max(SHORT_SMALLEST_BYTES));
    sizes
}

/// Caches of these sizes; of a model with many bytes a token several sizes are the same number of
/// tokens, and larger ones follow until there are enough to score a fit.
fn short_probes(shape: CacheShape, largest_bytes: u64) -> Vec<Probe> {
    let sizes = short_sizes(largest_bytes);
    let mut probes: Vec<Probe> = sizes.iter().map(|size| shape.probe(*size)).collect();
    probes.dedup();
    let largest = probes[probes.len() - 1];
    let times = |factor| Probe {
        tokens: largest.tokens.saturating_mul(factor),
        ..largest
    };
    let missing = SCORED_SIZES.saturating_sub(probes.len());
    probes.extend([2, 4].map(times).into_iter().take(missing));
    probes
}

/// The medians of one size, one a way of cutting it into pieces; `None` where a node has no memory
/// for it.
async fn short_points(
    connection: &mut Connection,
    pool: &Arc<CachePool>,
    shape: CacheShape,
    probe: Probe,
) -> anyhow::Result<Option<Vec<Point>>> {
    let Ok(cache) = filled(pool, probe) else {
        return Ok(None);
    };
    let first = match timed(connection, &cache, probe, MAX_PIECE_BYTES).await {
        Ok(first) => first,
        Err(error) if is_refusal(&error) => return Ok(None),
        Err(error) => return Err(error),
    };
    if Duration::from_nanos(first.busy_ns) > SHORT_TRANSFER {
        // Over a link this slow the first transfer is as good as any.
        return Ok(Some(vec![point(&[first])]));
    }
    let mut piece_sizes = vec![MAX_PIECE_BYTES];
    let pieces = |piece_bytes| shape.pieces(probe.tokens, piece_bytes);
    if pieces(SHORT_PIECE_BYTES) != pieces(MAX_PIECE_BYTES) {
        piece_sizes.push(SHORT_PIECE_BYTES);
    }
    let mut samples = vec![Vec::new(); piece_sizes.len()];
    let started = Instant::now();
    for repeat in 0..SHORT_MAX_REPEATS {
        let limit = match repeat {
            0 => Duration::MAX,
            _ if repeat < SHORT_REPEATS => 2 * SHORT_TRANSFER,
            _ => SHORT_SIZE,
        };
        if started.elapsed() > limit {
            break;
        }
        for (samples, piece_bytes) in samples.iter_mut().zip(&piece_sizes) {
            samples.push(timed(connection, &cache, probe, *piece_bytes).await?);
        }
    }
    Ok(Some(samples.iter().map(|s| point(s)).collect()))
}

/// The median of transfers of one kind; at least one.
fn point(samples: &[Timed]) -> Point {
    let times_ms: Vec<f64> = samples.iter().map(|t| t.busy_ns as f64 / 1e6).collect();
    let median_ms = Figure::of(&times_ms).map_or(0.0, |figure| figure.median);
    Point {
        bytes: samples[0].bytes,
        pieces: samples[0].pieces,
        transfer_ms: median_ms,
        after_idle_ms: None,
    }
}

/// Whether the decode node did not take a probe, as for want of memory; the session goes on.
pub fn is_refusal(error: &anyhow::Error) -> bool {
    matches!(
        error.downcast_ref(),
        Some(WireError::Refused {
            code: RefuseCode::Limit | RefuseCode::Busy | RefuseCode::BadRequest,
            ..
        })
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMOLLM2: CacheShape = CacheShape {
        n_layers: 30,
        row_bytes: 768,
    };

    #[test]
    fn sizes_grow_to_the_largest() {
        let mib = 1 << 20;
        assert_eq!(
            short_sizes(20 * mib),
            [mib / 16, mib / 4, mib, 4 * mib, 16 * mib, 20 * mib]
        );
        assert_eq!(short_sizes(16 * mib).last(), Some(&(16 * mib)));
        assert_eq!(short_sizes(16 * mib).len(), 5);
        assert_eq!(short_sizes(1), [SHORT_SMALLEST_BYTES]);
    }

    #[test]
    fn a_model_of_many_bytes_a_token_is_probed_at_three_sizes_each_once() {
        let mib_a_token = CacheShape {
            n_layers: 64,
            row_bytes: 16_384,
        };
        let tokens = |shape, largest| -> Vec<u32> {
            let probes = short_probes(shape, largest);
            probes.iter().map(|probe| probe.tokens).collect()
        };
        assert_eq!(tokens(mib_a_token, 16 << 20), [1, 4, 16]);
        assert_eq!(tokens(mib_a_token, 2 << 20), [1, 2, 4]);
        assert_eq!(tokens(mib_a_token, 1), [1, 2, 4]);
        assert_eq!(tokens(SMOLLM2, 16 << 20), [3, 11, 46, 182, 728]);
    }

    #[test]
    fn a_probe_is_whole_tokens_cut_as_a_cache_is() {
        let probe = SMOLLM2.probe(64 << 10);
        assert_eq!((probe.tokens, SMOLLM2.bytes_per_token()), (3, 23_040));
        assert_eq!(SMOLLM2.probe(1).tokens, 1);
        assert_eq!(SMOLLM2.probe(u64::MAX).tokens, u32::MAX);
        // 728 tokens: a layer is one piece of 559,104 bytes, or eight of 85 tokens and a rest.
        let tokens = SMOLLM2.probe(16 << 20).tokens;
        assert_eq!(tokens, 728);
        assert_eq!(SMOLLM2.pieces(tokens, MAX_PIECE_BYTES), 30);
        assert_eq!(SMOLLM2.pieces(tokens, 64 << 10), 270);
    }

    #[test]
    fn rows_are_what_probes_take() {
        let layout = KvLayout {
            n_layers: 2,
            n_kv_heads: 1,
            head_dim: 3,
            dtype: crate::model::kv_cache::KvDtype::F16,
        };
        let shape = CacheShape::from(layout);
        assert_eq!((layout.row_bytes(), shape.row_bytes), (12, 16));
    }
}
