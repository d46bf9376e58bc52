//! Many query positions of one sequence: blocks of them against tiles of keys, by gemm.
#![expect(unsafe_code, reason = "gemm takes raw pointers and strides")]

use super::{AttentionShape, KvRows, Place, Scratch, sized};
use crate::model::kernels;
use crate::model::kv_cache::KvError;
use crate::model::parallel;

/// Query positions handled together in prefill.
pub const QUERY_BLOCK: usize = 64;

/// Keys handled together in prefill: scores of one tile stay in the second-level cache.
const KEY_TILE: usize = 512;

/// Attention of neighbouring tokens, the first at `first`; see [`super::attend`].
pub fn attend_chunk(
    shape: AttentionShape,
    q: &[f32],
    first: Place<'_>,
    layer: usize,
    out: &mut [f32],
    out_width: usize,
    scratch: &mut Scratch,
) -> Result<(), KvError> {
    let (start, width) = (first.position, shape.kv_row());
    let end = start + q.len() / shape.q_width();
    let rows = KvRows::read(first.cache, layer, end)?;
    let kv = match rows {
        KvRows::F32(kv) => kv,
        narrow => {
            let wide = sized(&mut scratch.wide, end * width);
            parallel::for_rows(wide, width, |tokens, wide| {
                narrow.widen(tokens.start * width..tokens.end * width, wide);
            });
            wide
        }
    };
    let (dim, group) = (shape.head_dim, shape.group());
    let first_block = start / QUERY_BLOCK;
    let n_blocks = end.div_ceil(QUERY_BLOCK) - first_block;
    let head_block = QUERY_BLOCK * group * dim;
    let block_width = shape.n_kv_heads * head_block;
    // Results lie as (block, kv head, position in block, head in group, head_dim) at first, so
    // that every unit of work writes one contiguous run.
    let results = sized(&mut scratch.results, n_blocks * block_width);
    parallel::for_rows_with(
        results,
        head_block,
        &mut scratch.threads,
        |units, results, scratch| {
            let scratch = &mut scratch.block;
            scratch.fit(group, dim);
            for (unit, result) in units.zip(results.chunks_mut(head_block)) {
                let block = first_block + unit / shape.n_kv_heads;
                let kv_head = unit % shape.n_kv_heads;
                let low = (block * QUERY_BLOCK).max(start);
                let high = ((block + 1) * QUERY_BLOCK).min(end);
                let rows = (high - low) * group;
                let q_width = shape.q_width();
                for (i, position) in (low..high).enumerate() {
                    let source = (position - start) * q_width + kv_head * group * dim;
                    scratch.q[i * group * dim..][..group * dim]
                        .copy_from_slice(&q[source..][..group * dim]);
                }
                result.fill(0.0);
                let kv = &kv[kv_head * 2 * dim..];
                block_attention(scratch, rows, group, low, kv, shape, result);
            }
        },
    );
    let results = &*results;
    parallel::for_rows(out, out_width, |tokens, out| {
        for (token, out) in tokens.zip(out.chunks_mut(out_width)) {
            let position = start + token;
            let block = position / QUERY_BLOCK - first_block;
            let low = (position / QUERY_BLOCK * QUERY_BLOCK).max(start);
            let (heads, padding) = out.split_at_mut(shape.q_width());
            for (kv_head, out) in heads.chunks_mut(group * dim).enumerate() {
                let source =
                    block * block_width + kv_head * head_block + (position - low) * group * dim;
                out.copy_from_slice(&results[source..][..group * dim]);
            }
            padding.fill(0.0);
        }
    });
    Ok(())
}

/// Working memory of one thread.
#[derive(Debug, Default)]
pub struct BlockScratch {
    /// `(rows, head_dim)`, rows being (position, head in group).
    q: Vec<f32>,
    /// `(rows, KEY_TILE)`.
    scores: Vec<f32>,
    max: Vec<f32>,
    sum: Vec<f32>,
}

impl BlockScratch {
    fn fit(&mut self, group: usize, dim: usize) {
        let rows = QUERY_BLOCK * group;
        sized(&mut self.q, rows * dim);
        sized(&mut self.scores, rows * KEY_TILE);
        sized(&mut self.max, rows);
        sized(&mut self.sum, rows);
    }
}

/// Online softmax over key tiles for the first `rows` rows of `scratch.q`; `acc` `(rows,
/// head_dim)` starts as zeros. `kv` starts at the head's K of token 0.
fn block_attention(
    scratch: &mut BlockScratch,
    rows: usize,
    group: usize,
    low: usize,
    kv: &[f32],
    shape: AttentionShape,
    acc: &mut [f32],
) {
    let (dim, stride) = (shape.head_dim, shape.kv_row());
    let last = low + rows / group - 1;
    let (q, scores) = (&scratch.q, &mut scratch.scores);
    let (max, sum) = (&mut scratch.max[..rows], &mut scratch.sum[..rows]);
    max.fill(f32::NEG_INFINITY);
    sum.fill(0.0);
    let first_tile = shape.seen_from(low).start / KEY_TILE * KEY_TILE;
    for tile_start in (first_tile..=last).step_by(KEY_TILE) {
        let keys = KEY_TILE.min(last + 1 - tile_start);
        let tile = &kv[tile_start * stride..];
        // scores (rows, keys) = q (rows, dim) x k^T (dim, keys)
        matmul(
            (rows, keys, dim),
            (scores, KEY_TILE),
            false,
            (q, dim, 1),
            (tile, 1, stride),
        );
        for (r, scores) in scores.chunks_mut(KEY_TILE).take(rows).enumerate() {
            let seen = shape.seen_from(low + r / group);
            let [start, end] =
                [seen.start, seen.end].map(|token| token.saturating_sub(tile_start).min(keys));
            if start < end {
                let acc = &mut acc[r * dim..][..dim];
                kernels::softmax_step(&mut scores[start..end], &mut max[r], &mut sum[r], acc);
            }
            scores[..start].fill(0.0);
            scores[end..keys].fill(0.0);
        }
        // acc (rows, dim) += weights (rows, keys) x v (keys, dim)
        matmul(
            (rows, dim, keys),
            (acc, dim),
            true,
            (scores, KEY_TILE, 1),
            (&tile[dim..], stride, 1),
        );
    }
    for (acc, sum) in acc.chunks_mut(dim).zip(sum) {
        let inverse = 1.0 / *sum;
        acc.iter_mut().for_each(|x| *x *= inverse);
    }
}

/// `out (m, n) = [out +] a (m, k) x b (k, n)` on this thread; operands carry row and column
/// strides in elements, `out` is row-major with the given row stride.
fn matmul(
    (m, n, k): (usize, usize, usize),
    (out, out_row): (&mut [f32], usize),
    accumulate: bool,
    (a, a_row, a_col): (&[f32], usize, usize),
    (b, b_row, b_col): (&[f32], usize, usize),
) {
    let last =
        |rows: usize, row: usize, cols: usize, col: usize| (rows - 1) * row + (cols - 1) * col;
    assert!(last(m, out_row, n, 1) < out.len(), "out holds (m, n)");
    assert!(last(m, a_row, k, a_col) < a.len(), "a holds (m, k)");
    assert!(last(k, b_row, n, b_col) < b.len(), "b holds (k, n)");
    let beta = 1.0;
    // SAFETY: every element that the strides reach is inside its slice by the assertions.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            out.as_mut_ptr(),
            1,
            out_row as isize,
            accumulate,
            a.as_ptr(),
            a_col as isize,
            a_row as isize,
            b.as_ptr(),
            b_col as isize,
            b_row as isize,
            1.0,
            beta,
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
    }
}
