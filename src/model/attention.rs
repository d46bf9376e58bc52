//! Causal grouped-query attention straight over the KV cache, and the rope that fills it.
//!
//! Prompts go in blocks of [`QUERY_BLOCK`] positions through gemm, single tokens through a
//! streaming kernel. K and V heads are never repeated. Blocks start at multiples of
//! [`QUERY_BLOCK`] of the absolute position, so prefill chunks that are multiples of it give the
//! same bits here as one whole prefill. Matrices do so too, but for a last chunk of a few tokens
//! (1 to 4 in f32, 1 in Q8_0 where it was tried), which takes another path in candle and gemm.
#![expect(unsafe_code, reason = "gemm takes raw pointers and strides")]

use std::ops::Range;

use candle_core::{CpuStorage, Device, Storage, Tensor};
use half::{bf16, f16};
use zerocopy::FromBytes;

use super::kernels::{self, Partial};
use super::kv_cache::{KvCache, KvDtype};
use super::parallel;

/// Query positions handled together in prefill.
pub const QUERY_BLOCK: usize = 64;

/// Keys handled together in prefill: scores of one tile stay in the second-level cache.
const KEY_TILE: usize = 512;

/// Tokens of one unit of work of a decode step; partial results are joined in order.
const DECODE_SEGMENT: usize = 64;

/// Head counts and widths of one attention layer.
#[derive(Clone, Copy, Debug)]
pub struct AttentionShape {
    /// Query heads.
    pub n_heads: usize,
    /// K/V heads; divides `n_heads`.
    pub n_kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
}

impl AttentionShape {
    /// Query heads that share a K/V head.
    fn group(&self) -> usize {
        self.n_heads / self.n_kv_heads
    }

    fn q_width(&self) -> usize {
        self.n_heads * self.head_dim
    }

    /// Width of a fused Q, K, V row.
    pub fn qkv_width(&self) -> usize {
        (self.n_heads + 2 * self.n_kv_heads) * self.head_dim
    }

    fn kv_row(&self) -> usize {
        2 * self.n_kv_heads * self.head_dim
    }
}

/// Cosines and sines of rotary positions: `(max_tokens, head_dim / 2)` each.
#[derive(Debug)]
pub struct RopeTable {
    cos: Vec<f32>,
    sin: Vec<f32>,
    half: usize,
}

impl RopeTable {
    /// Angles `position / base^(2 i / head_dim)`.
    pub fn new(base: f32, head_dim: usize, max_tokens: usize) -> Self {
        let half = head_dim / 2;
        let inverse: Vec<f64> = (0..half)
            .map(|i| f64::from(base).powf(-2.0 * i as f64 / head_dim as f64))
            .collect();
        let angles = (0..max_tokens).flat_map(|p| inverse.iter().map(move |f| p as f64 * f));
        let (sin, cos) = angles.map(|a| (a.sin() as f32, a.cos() as f32)).unzip();
        Self { cos, sin, half }
    }

    fn at(&self, position: usize) -> (&[f32], &[f32]) {
        let range = position * self.half..(position + 1) * self.half;
        (&self.cos[range.clone()], &self.sin[range])
    }
}

/// The elements of a contiguous f32 tensor on the CPU.
pub fn with_slice<R>(
    tensor: &Tensor,
    read: impl FnOnce(&[f32]) -> R,
) -> Result<R, candle_core::Error> {
    let (storage, layout) = tensor.storage_and_layout();
    let Storage::Cpu(CpuStorage::F32(data)) = &*storage else {
        candle_core::bail!("expected an f32 tensor on the CPU, got {tensor:?}")
    };
    let Some((start, end)) = layout.contiguous_offsets() else {
        candle_core::bail!("expected a contiguous tensor, got {layout:?}")
    };
    Ok(read(&data[start..end]))
}

/// Rotates Q and K of `qkv` `(n, (n_heads + 2 n_kv_heads) x head_dim)`, writes K and V of the
/// `n` tokens from `start` into the cache, and returns Q scaled by `1 / sqrt(head_dim)`:
/// `n x n_heads x head_dim` elements.
pub fn rope_and_store(
    shape: AttentionShape,
    rope: &RopeTable,
    qkv: &Tensor,
    cache: &KvCache,
    layer: usize,
    start: usize,
) -> anyhow::Result<Vec<f32>> {
    let n = qkv.dim(0)?;
    let mut claim = cache.claim(layer, start, n)?;
    let (dtype, row_bytes) = (cache.layout().dtype, cache.layout().row_bytes());
    let mut q = vec![0f32; n * shape.q_width()];
    with_slice(qkv, |qkv| {
        parallel::for_rows_of_two(
            &mut q,
            shape.q_width(),
            &mut claim,
            row_bytes,
            |tokens, q, kv| {
                let mut wide = vec![0f32; shape.kv_row()];
                let rows = q.chunks_mut(shape.q_width()).zip(kv.chunks_mut(row_bytes));
                for (token, (q, kv)) in tokens.zip(rows) {
                    let angles = rope.at(start + token);
                    rope_token(
                        shape,
                        angles,
                        row(qkv, shape, token),
                        q,
                        dtype,
                        kv,
                        &mut wide,
                    );
                }
            },
        );
    })?;
    claim.land();
    Ok(q)
}

fn row(qkv: &[f32], shape: AttentionShape, token: usize) -> &[f32] {
    &qkv[token * shape.qkv_width()..][..shape.qkv_width()]
}

/// Cache rows are multiples of the element size from an aligned start, so this cannot fail.
fn elements<T: FromBytes + zerocopy::Immutable>(bytes: &[u8]) -> &[T] {
    <[T]>::ref_from_bytes(bytes).expect("cache rows are aligned and whole")
}

fn elements_mut<T: FromBytes + zerocopy::IntoBytes>(bytes: &mut [u8]) -> &mut [T] {
    <[T]>::mut_from_bytes(bytes).expect("cache rows are aligned and whole")
}

/// One token: `q` is `(n_heads, head_dim)` out, `kv` is its row of a cache of `dtype`, `wide` is
/// room for the same row in f32.
fn rope_token(
    shape: AttentionShape,
    angles: (&[f32], &[f32]),
    qkv: &[f32],
    q: &mut [f32],
    dtype: KvDtype,
    kv: &mut [u8],
    wide: &mut [f32],
) {
    match dtype {
        KvDtype::F32 => rope_token_wide(shape, angles, qkv, q, elements_mut(kv)),
        KvDtype::F16 => {
            rope_token_wide(shape, angles, qkv, q, wide);
            kernels::narrow_f16(wide, elements_mut(kv));
        }
        KvDtype::Bf16 => {
            rope_token_wide(shape, angles, qkv, q, wide);
            kernels::narrow_bf16(wide, elements_mut(kv));
        }
    }
}

/// As [`rope_token`], with `kv` as `(n_kv_heads, 2 x head_dim)` in f32.
fn rope_token_wide(
    shape: AttentionShape,
    (cos, sin): (&[f32], &[f32]),
    qkv: &[f32],
    q: &mut [f32],
    kv: &mut [f32],
) {
    let dim = shape.head_dim;
    let (q_in, kv_in) = qkv.split_at(shape.q_width());
    let (k_in, v_in) = kv_in.split_at(shape.n_kv_heads * dim);
    let scale = 1.0 / (dim as f32).sqrt();
    for (x, out) in q_in.chunks(dim).zip(q.chunks_mut(dim)) {
        kernels::rope_interleaved_head(x, cos, sin, out);
        out.iter_mut().for_each(|x| *x *= scale);
    }
    for ((k, v), out) in (k_in.chunks(dim).zip(v_in.chunks(dim))).zip(kv.chunks_mut(2 * dim)) {
        let (k_out, v_out) = out.split_at_mut(dim);
        kernels::rope_interleaved_head(k, cos, sin, k_out);
        v_out.copy_from_slice(v);
    }
}

/// Attention of the queries of tokens `start..start + n` over all tokens up to each of them.
///
/// `q` is `(n, n_heads, head_dim)`, rotated and scaled. Returns `(n, out_width)` with zeros
/// behind `n_heads x head_dim`.
pub fn attend(
    shape: AttentionShape,
    q: &[f32],
    cache: &KvCache,
    layer: usize,
    start: usize,
    out_width: usize,
) -> anyhow::Result<Tensor> {
    let n = q.len() / shape.q_width();
    let kv = cache.read(layer, 0..start + n)?;
    let mut out = vec![0f32; n * out_width];
    let rows = match cache.layout().dtype {
        KvDtype::F32 => KvRows::F32(elements(kv)),
        KvDtype::F16 => KvRows::F16(elements(kv)),
        KvDtype::Bf16 => KvRows::Bf16(elements(kv)),
    };
    match (n, &rows) {
        (1, _) => attend_one(shape, q, &rows, start + 1, &mut out),
        (_, KvRows::F32(kv)) => attend_blocks(shape, q, kv, start, &mut out, out_width),
        (_, rows) => {
            let width = shape.kv_row();
            let mut wide = vec![0f32; (start + n) * width];
            parallel::for_rows(&mut wide, width, |tokens, wide| {
                rows.widen(tokens.start * width..tokens.end * width, wide);
            });
            attend_blocks(shape, q, &wide, start, &mut out, out_width);
        }
    }
    Ok(Tensor::from_vec(out, (n, out_width), &Device::Cpu)?)
}

/// K/V rows `(tokens, n_kv_heads, 2 x head_dim)` of one layer.
enum KvRows<'a> {
    F32(&'a [f32]),
    F16(&'a [f16]),
    Bf16(&'a [bf16]),
}

impl KvRows<'_> {
    /// A range of elements as f32, through `scratch` where they are narrower.
    fn wide<'s>(&'s self, range: Range<usize>, scratch: &'s mut Vec<f32>) -> &'s [f32] {
        if let Self::F32(rows) = self {
            return &rows[range];
        }
        scratch.resize(range.len(), 0.0);
        self.widen(range, scratch);
        scratch
    }

    /// Writes a range of elements as f32.
    fn widen(&self, range: Range<usize>, out: &mut [f32]) {
        match self {
            Self::F32(rows) => out.copy_from_slice(&rows[range]),
            Self::F16(rows) => kernels::widen_f16(&rows[range], out),
            Self::Bf16(rows) => kernels::widen_bf16(&rows[range], out),
        }
    }
}

/// One query position over `len` tokens, in segments that run in parallel.
fn attend_one(shape: AttentionShape, q: &[f32], kv: &KvRows<'_>, len: usize, out: &mut [f32]) {
    let dim = shape.head_dim;
    // Of each segment: for every query head its max, its sum and (head_dim) accumulators.
    let part_width = dim + 2;
    let segment_width = shape.n_heads * part_width;
    let mut parts = vec![0f32; len.div_ceil(DECODE_SEGMENT) * segment_width];
    parallel::for_rows(&mut parts, segment_width, |segments, parts| {
        let mut wide = Vec::new();
        let mut scores = [0f32; DECODE_SEGMENT];
        for (index, part) in segments.zip(parts.chunks_mut(segment_width)) {
            let first = index * DECODE_SEGMENT;
            let tokens = first..len.min(first + DECODE_SEGMENT);
            let scores = &mut scores[..tokens.len()];
            let width = shape.kv_row();
            let kv = kv.wide(tokens.start * width..tokens.end * width, &mut wide);
            for (head, part) in part.chunks_mut(part_width).enumerate() {
                let (ends, acc) = part.split_at_mut(2);
                let (max, sum) = ends.split_at_mut(1);
                max[0] = f32::NEG_INFINITY;
                let partial = Partial {
                    max: &mut max[0],
                    sum: &mut sum[0],
                    acc,
                };
                let kv = &kv[head / shape.group() * 2 * dim..];
                kernels::attend_tile(&q[head * dim..][..dim], kv, shape.kv_row(), scores, partial);
            }
        }
    });
    for (head, out) in out[..shape.q_width()].chunks_mut(dim).enumerate() {
        let (mut max, mut sum) = (f32::NEG_INFINITY, 0.0);
        for part in parts.chunks(segment_width) {
            let part = &part[head * part_width..][..part_width];
            let whole = Partial {
                max: &mut max,
                sum: &mut sum,
                acc: out,
            };
            kernels::merge_partials(whole, (part[0], part[1], &part[2..]));
        }
        let inverse = 1.0 / sum;
        out.iter_mut().for_each(|x| *x *= inverse);
    }
}

/// Many query positions: blocks of them against tiles of keys, by gemm.
///
/// `kv` is `(start + n, n_kv_heads, 2 x head_dim)`.
fn attend_blocks(
    shape: AttentionShape,
    q: &[f32],
    kv: &[f32],
    start: usize,
    out: &mut [f32],
    out_width: usize,
) {
    let n = q.len() / shape.q_width();
    let end = start + n;
    let (dim, group) = (shape.head_dim, shape.group());
    let first_block = start / QUERY_BLOCK;
    let n_blocks = end.div_ceil(QUERY_BLOCK) - first_block;
    let head_block = QUERY_BLOCK * group * dim;
    let block_width = shape.n_kv_heads * head_block;
    // Results lie as (block, kv head, position in block, head in group, head_dim) at first, so
    // that every unit of work writes one contiguous run.
    let mut results = vec![0f32; n_blocks * block_width];
    parallel::for_rows(&mut results, head_block, |units, results| {
        let mut scratch = Scratch::new(group, dim);
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
            let kv = &kv[kv_head * 2 * dim..];
            block_attention(&mut scratch, rows, group, low, kv, shape, result);
        }
    });
    parallel::for_rows(out, out_width, |tokens, out| {
        for (token, out) in tokens.zip(out.chunks_mut(out_width)) {
            let position = start + token;
            let block = position / QUERY_BLOCK - first_block;
            let low = (position / QUERY_BLOCK * QUERY_BLOCK).max(start);
            for kv_head in 0..shape.n_kv_heads {
                let source =
                    block * block_width + kv_head * head_block + (position - low) * group * dim;
                out[kv_head * group * dim..][..group * dim]
                    .copy_from_slice(&results[source..][..group * dim]);
            }
        }
    });
}

/// Working memory of one thread.
struct Scratch {
    /// `(rows, head_dim)`, rows being (position, head in group).
    q: Vec<f32>,
    /// `(rows, KEY_TILE)`.
    scores: Vec<f32>,
    max: Vec<f32>,
    sum: Vec<f32>,
}

impl Scratch {
    fn new(group: usize, dim: usize) -> Self {
        let rows = QUERY_BLOCK * group;
        Self {
            q: vec![0.0; rows * dim],
            scores: vec![0.0; rows * KEY_TILE],
            max: vec![0.0; rows],
            sum: vec![0.0; rows],
        }
    }
}

/// Online softmax over key tiles for the first `rows` rows of `scratch.q`; `acc` `(rows,
/// head_dim)` starts as zeros. `kv` starts at the head's K of token 0.
fn block_attention(
    scratch: &mut Scratch,
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
    for tile_start in (0..=last).step_by(KEY_TILE) {
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
            let visible = (low + r / group + 1).saturating_sub(tile_start).min(keys);
            if visible > 0 {
                let acc = &mut acc[r * dim..][..dim];
                kernels::softmax_step(&mut scores[..visible], &mut max[r], &mut sum[r], acc);
            }
            scores[visible..keys].fill(0.0);
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::kv_cache::KvLayout;

    const SHAPE: AttentionShape = AttentionShape {
        n_heads: 6,
        n_kv_heads: 2,
        head_dim: 16,
    };

    fn noise(n: usize, seed: u64) -> Vec<f32> {
        let mut state = seed;
        (0..n)
            .map(|_| {
                state = state
                    .wrapping_mul(6364136223846793005)
                    .wrapping_add(1442695040888963407);
                (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
            })
            .collect()
    }

    /// Runs tokens through rope, cache and attention in the given chunks.
    fn run(chunks: &[usize], dtype: KvDtype) -> Vec<f32> {
        let total: usize = chunks.iter().sum();
        let layout = KvLayout {
            n_layers: 1,
            n_kv_heads: SHAPE.n_kv_heads,
            head_dim: SHAPE.head_dim,
            dtype,
        };
        let cache = KvCache::new(layout, total);
        let rope = RopeTable::new(10_000.0, SHAPE.head_dim, total);
        let qkv = noise(total * SHAPE.qkv_width(), 7);
        let mut out = Vec::new();
        let mut start = 0;
        for &n in chunks {
            let rows = qkv[start * SHAPE.qkv_width()..][..n * SHAPE.qkv_width()].to_vec();
            let rows = Tensor::from_vec(rows, (n, SHAPE.qkv_width()), &Device::Cpu).unwrap();
            let q = rope_and_store(SHAPE, &rope, &rows, &cache, 0, start).unwrap();
            let a = attend(SHAPE, &q, &cache, 0, start, 100).unwrap();
            for row in a.to_vec2::<f32>().unwrap() {
                assert_eq!(row[96..], [0.0; 4]);
                out.extend_from_slice(&row[..96]);
            }
            start += n;
        }
        out
    }

    /// The textbook way in f64, K and V heads repeated.
    fn plain(total: usize) -> Vec<f64> {
        let qkv = noise(total * SHAPE.qkv_width(), 7);
        let dim = SHAPE.head_dim;
        let head = |t: usize, h: usize| &qkv[t * SHAPE.qkv_width() + h * dim..][..dim];
        let rotate = |t: usize, x: &[f32]| -> Vec<f64> {
            let mut out = vec![0.0; dim];
            for i in 0..dim / 2 {
                let angle = t as f64 * 10_000f64.powf(-2.0 * i as f64 / dim as f64);
                let (a, b) = (f64::from(x[2 * i]), f64::from(x[2 * i + 1]));
                out[2 * i] = a * angle.cos() - b * angle.sin();
                out[2 * i + 1] = a * angle.sin() + b * angle.cos();
            }
            out
        };
        let mut out = Vec::new();
        for t in 0..total {
            for h in 0..SHAPE.n_heads {
                let kv = SHAPE.n_heads + h / SHAPE.group();
                let q = rotate(t, head(t, h));
                let scores: Vec<f64> = (0..=t)
                    .map(|s| {
                        let k = rotate(s, head(s, kv));
                        q.iter().zip(&k).map(|(a, b)| a * b).sum::<f64>() / (dim as f64).sqrt()
                    })
                    .collect();
                let top = scores.iter().cloned().fold(f64::MIN, f64::max);
                let sum: f64 = scores.iter().map(|s| (s - top).exp()).sum();
                for i in 0..dim {
                    let v = |s: usize| f64::from(head(s, kv + SHAPE.n_kv_heads)[i]);
                    let x: f64 = (0..=t).map(|s| (scores[s] - top).exp() * v(s)).sum();
                    out.push(x / sum);
                }
            }
        }
        out
    }

    #[test]
    fn every_way_through_agrees_with_the_textbook() {
        let total = 600;
        let want = plain(total);
        for (chunks, dtype, tolerance) in [
            (vec![600], KvDtype::F32, 1e-5),
            (vec![100, 37, 1, 462], KvDtype::F32, 1e-5),
            (vec![598, 1, 1], KvDtype::F32, 1e-5),
            (vec![599, 1], KvDtype::F16, 2e-3),
            (vec![100, 498, 1, 1], KvDtype::Bf16, 1.6e-2),
        ] {
            let got = run(&chunks, dtype);
            for (i, (g, w)) in got.iter().zip(&want).enumerate() {
                let error = (f64::from(*g) - w).abs();
                assert!(
                    error < tolerance,
                    "{chunks:?} {dtype}: element {i}: {g} {w}"
                );
            }
        }
    }

    #[test]
    fn chunks_aligned_to_the_query_block_give_the_same_bits() {
        for dtype in [KvDtype::F32, KvDtype::F16, KvDtype::Bf16] {
            let whole = run(&[600], dtype);
            assert_eq!(whole, run(&[128, 64, 320, 88], dtype));
        }
    }
}
