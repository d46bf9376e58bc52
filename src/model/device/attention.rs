//! Causal grouped-query attention as tensor operations over K and V in a device's memory.
//!
//! Queries that share a K/V head are rows of one product, so K and V heads are never repeated.
//! Everything is computed in f32, whatever the cache's element type.

use candle_core::{DType, Device, Result, Tensor};
use candle_nn::ops::softmax_last_dim;

use crate::model::attention::AttentionShape;

/// Positions that are scored together: what bounds the scores, `(n_heads, 512, tokens)` in f32.
const QUERY_BLOCK: usize = 512;

/// Added to the score of what a token does not see, once for each token that it is off: nothing is
/// left of its probability, and no sum of a million of them overflows.
const UNSEEN: f64 = -1e30;

/// Attention of queries `(n, n_heads, head_dim)`, rotated, from `position` on, over a layer's rows
/// `(capacity_tokens, n_kv_heads, 2 x head_dim)`; gives `(n, n_heads x head_dim)`.
pub(super) fn attend(
    shape: AttentionShape,
    q: &Tensor,
    rows: &Tensor,
    position: usize,
) -> Result<Tensor> {
    let n = q.dim(0)?;
    let blocks = (0..n)
        .step_by(QUERY_BLOCK)
        .map(|first| {
            let q = q.narrow(0, first, QUERY_BLOCK.min(n - first))?;
            attend_block(shape, &q, rows, position + first)
        })
        .collect::<Result<Vec<_>>>()?;
    Tensor::cat(&blocks, 0)
}

fn attend_block(
    shape: AttentionShape,
    q: &Tensor,
    rows: &Tensor,
    position: usize,
) -> Result<Tensor> {
    let (n, dim, kv_heads) = (q.dim(0)?, shape.head_dim, shape.n_kv_heads);
    let group = shape.n_heads / kv_heads;
    let start = shape.seen_from(position).start;
    let seen = position + n - start;
    let rows = rows.narrow(0, start, seen)?.to_dtype(DType::F32)?;
    let heads = |from| rows.narrow(2, from, dim)?.transpose(0, 1)?.contiguous();
    let (k, v) = (heads(0)?, heads(dim)?); // (n_kv_heads, seen, head_dim)
    let q = (q
        .reshape((n, kv_heads, group, dim))?
        .permute((1, 2, 0, 3))?)
    .contiguous()?
    .reshape((kv_heads, group * n, dim))?;
    let mut scores = (q.matmul(&k.t()?)? * (1.0 / (dim as f64).sqrt()))?;
    // A single token sees all of these.
    if n > 1 {
        let unseen = unseen(shape, position..position + n, start, q.device())?;
        scores = (scores.reshape((shape.n_heads, n, seen))?)
            .broadcast_add(&unseen)?
            .reshape((kv_heads, group * n, seen))?;
    }
    let attended = softmax_last_dim(&scores)?.matmul(&v)?; // (n_kv_heads, group x n, head_dim)
    (attended.reshape((kv_heads, group, n, dim))?)
        .permute((2, 0, 1, 3))?
        .contiguous()?
        .reshape((n, shape.q_width()))
}

/// What is added to the scores of `queries` over the tokens from `start` on, `(n, seen)`: zero
/// where a query sees the token.
fn unseen(
    shape: AttentionShape,
    queries: std::ops::Range<usize>,
    start: usize,
    device: &Device,
) -> Result<Tensor> {
    let positions = |range: std::ops::Range<usize>| {
        // Whole numbers up to the longest context are exact in f32.
        Tensor::arange(range.start as f32, range.end as f32, device)
    };
    let keys = positions(start..queries.end)?.unsqueeze(0)?;
    let back = positions(queries)?.unsqueeze(1)?.broadcast_sub(&keys)?;
    let mut off = back.neg()?.relu()?;
    if let Some(window) = shape.window_tokens {
        off = (off + (back - (window - 1) as f64)?.relu()?)?;
    }
    off * UNSEEN
}
