//! Small vector kernels over `f32` slices, compiled for the instruction set found at run time.
//!
//! Sums are kept in [`LANES`] partial sums whatever the vector width is, and products are not
//! fused into additions, so that every instruction set computes the same bits here.

use half::slice::HalfFloatSliceExt;
use pulp::{Arch, NullaryFnOnce};

/// Partial sums of a reduction: one AVX-512 register, two AVX2 ones.
const LANES: usize = 16;

/// Runs `kernel` compiled for the widest instructions that this machine has.
///
/// A closure that may be called again, called as one that may not, goes through a shim that
/// nothing forces inline; its body would then be compiled for any machine. `FnMut` has no shim.
#[inline(always)]
pub(super) fn vectorised<R>(kernel: impl FnMut() -> R) -> R {
    struct Kernel<F>(F);
    impl<R, F: FnMut() -> R> NullaryFnOnce for Kernel<F> {
        type Output = R;
        #[inline(always)]
        fn call(mut self) -> R {
            (self.0)()
        }
    }
    Arch::new().dispatch(Kernel(kernel))
}

/// The instructions that these kernels are compiled for on this machine, for the record.
pub fn instructions() -> &'static str {
    match Arch::new() {
        #[cfg(target_arch = "x86_64")]
        Arch::V4(_) => "avx512",
        #[cfg(target_arch = "x86_64")]
        Arch::V3(_) => "avx2",
        _ => "the target's",
    }
}

/// `e^x` within 2 units in the last place, for `x <= 88`; results below `e^-87` become `e^-87`.
///
/// The polynomial is Cephes' `expf`; it is here because the C library's cannot be vectorised and
/// the softmax of a 1,024-token prompt calls it 140 million times.
#[inline(always)]
fn exp(x: f32) -> f32 {
    // Adding 1.5 x 2^23 rounds to the nearest integer and leaves it in the low bits.
    const ROUND: f32 = 12_582_912.0;
    let x = x.max(-87.0);
    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = x - n * 0.693_359_4 + n * 2.121_944_4e-4;
    let p = 1.987_569_1e-4;
    let p = p * r + 1.398_2e-3;
    let p = p * r + 8.333_452e-3;
    let p = p * r + 4.166_579_6e-2;
    let p = p * r + 1.666_666_5e-1;
    let p = p * r + 5.000_000_3e-1;
    let p = p * r * r + r + 1.0;
    let power = (shifted.to_bits() as i32)
        .wrapping_sub(ROUND.to_bits() as i32)
        .wrapping_add(127)
        << 23;
    p * f32::from_bits(power as u32)
}

/// Sums the lanes in a fixed order.
#[inline(always)]
fn sum_lanes(lanes: [f32; LANES]) -> f32 {
    let mut half = LANES / 2;
    let mut lanes = lanes;
    while half > 0 {
        for i in 0..half {
            lanes[i] += lanes[i + half];
        }
        half /= 2;
    }
    lanes[0]
}

#[inline(always)]
fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut lanes = [0f32; LANES];
    let (a_chunks, a_rest) = a.as_chunks::<LANES>();
    let (b_chunks, b_rest) = b.as_chunks::<LANES>();
    for (x, y) in a_chunks.iter().zip(b_chunks) {
        for i in 0..LANES {
            lanes[i] += x[i] * y[i];
        }
    }
    let rest: f32 = a_rest.iter().zip(b_rest).map(|(x, y)| x * y).sum();
    sum_lanes(lanes) + rest
}

#[inline(always)]
fn max(xs: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let (chunks, rest) = xs.as_chunks::<LANES>();
    for x in chunks {
        for i in 0..LANES {
            lanes[i] = if x[i] > lanes[i] { x[i] } else { lanes[i] };
        }
    }
    (lanes.iter().chain(rest)).fold(f32::NEG_INFINITY, |m, &x| if x > m { x } else { m })
}

/// Replaces `xs` by `e^(x - shift)` and returns the sum of them.
#[inline(always)]
fn exp_sum(xs: &mut [f32], shift: f32) -> f32 {
    let mut lanes = [0f32; LANES];
    let (chunks, rest) = xs.as_chunks_mut::<LANES>();
    for x in chunks {
        for i in 0..LANES {
            x[i] = exp(x[i] - shift);
            lanes[i] += x[i];
        }
    }
    let mut sum = sum_lanes(lanes);
    for x in rest {
        *x = exp(*x - shift);
        sum += *x;
    }
    sum
}

#[inline(always)]
fn scale_in_place(xs: &mut [f32], factor: f32) {
    for x in xs {
        *x *= factor;
    }
}

/// RMS norm of one row: `out[i] = x[i] / rms(x) * weight[i]`, and zeros behind `x.len()`.
pub fn rms_norm_row(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    vectorised(
        #[inline(always)]
        || {
            let scale = inverse_rms(x, eps);
            let (out, padding) = out.split_at_mut(x.len());
            for ((o, x), w) in out.iter_mut().zip(x).zip(weight) {
                *o = x * scale * w;
            }
            padding.fill(0.0);
        },
    );
}

/// RMS norm of each head of `heads` `(n, head_dim)` in place; `weight` is `(head_dim)`.
pub fn rms_norm_heads(heads: &mut [f32], weight: &[f32], eps: f32) {
    vectorised(
        #[inline(always)]
        || {
            for head in heads.chunks_mut(weight.len()) {
                let scale = inverse_rms(head, eps);
                for (x, w) in head.iter_mut().zip(weight) {
                    *x = *x * scale * w;
                }
            }
        },
    );
}

#[inline(always)]
fn inverse_rms(x: &[f32], eps: f32) -> f32 {
    let mean_square = dot(x, x) / x.len() as f32;
    1.0 / (mean_square + eps).sqrt()
}

/// SwiGLU of one row: `gate_up` is gate and up side by side, `out[i] = silu(gate[i]) * up[i]`,
/// and zeros behind `gate_up.len() / 2`.
pub fn swiglu_row(gate_up: &[f32], out: &mut [f32]) {
    vectorised(
        #[inline(always)]
        || {
            let (gate, up) = gate_up.split_at(gate_up.len() / 2);
            let (out, padding) = out.split_at_mut(gate.len());
            for ((o, g), u) in out.iter_mut().zip(gate).zip(up) {
                // Beyond 80 the sigmoid is 0 in f32 anyway; the bound keeps `exp` in its range.
                *o = g / (1.0 + exp((-g).min(80.0))) * u;
            }
            padding.fill(0.0);
        },
    );
}

/// Rotates neighbouring pairs of one head: `x` and `out` are `(head_dim)`, `cos` and `sin` are
/// `(head_dim / 2)`.
pub fn rope_neighbours(x: &[f32], cos: &[f32], sin: &[f32], out: &mut [f32]) {
    vectorised(
        #[inline(always)]
        || {
            let (pairs, _) = x.as_chunks::<2>();
            let (out_pairs, _) = out.as_chunks_mut::<2>();
            for (((o, x), c), s) in out_pairs.iter_mut().zip(pairs).zip(cos).zip(sin) {
                o[0] = x[0] * c - x[1] * s;
                o[1] = x[0] * s + x[1] * c;
            }
        },
    );
}

/// As [`rope_neighbours`], for pairs of an element of the first half and its counterpart in the
/// second.
pub fn rope_halves(x: &[f32], cos: &[f32], sin: &[f32], out: &mut [f32]) {
    vectorised(
        #[inline(always)]
        || {
            let (low, high) = x.split_at(x.len() / 2);
            let (out_low, out_high) = out.split_at_mut(x.len() / 2);
            for (((o, a), b), (c, s)) in
                (out_low.iter_mut().zip(low).zip(high)).zip(cos.iter().zip(sin))
            {
                *o = a * c - b * s;
            }
            for (((o, a), b), (c, s)) in
                (out_high.iter_mut().zip(low).zip(high)).zip(cos.iter().zip(sin))
            {
                *o = a * s + b * c;
            }
        },
    );
}

/// One online-softmax step over a tile of scores of one query row.
///
/// `scores` becomes `e^(score - max)`; `sum` and `acc` are rescaled to the new `max`.
pub fn softmax_step(scores: &mut [f32], max_so_far: &mut f32, sum: &mut f32, acc: &mut [f32]) {
    vectorised(
        #[inline(always)]
        || softmax_step_inline(scores, max_so_far, sum, acc),
    );
}

#[inline(always)]
fn softmax_step_inline(scores: &mut [f32], max_so_far: &mut f32, sum: &mut f32, acc: &mut [f32]) {
    let tile_max = max(scores);
    if tile_max > *max_so_far {
        if *sum > 0.0 {
            let rescale = exp(*max_so_far - tile_max);
            *sum *= rescale;
            scale_in_place(acc, rescale);
        }
        *max_so_far = tile_max;
    }
    *sum += exp_sum(scores, *max_so_far);
}

/// What attention over a part of the context leaves for one query head.
pub struct Partial<'a> {
    /// Largest score.
    pub max: &'a mut f32,
    /// Sum of `e^(score - max)`.
    pub sum: &'a mut f32,
    /// Sum of `e^(score - max) * v`: `(head_dim)`.
    pub acc: &'a mut [f32],
}

/// Attention of one query head over a tile of tokens, added to `partial`.
///
/// `q` is `(head_dim)`, already scaled; token `t` has its K at `kv[t * stride..]` and its V
/// right behind; `scores` is room for one number a token.
pub fn attend_tile(q: &[f32], kv: &[f32], stride: usize, scores: &mut [f32], partial: Partial<'_>) {
    let Partial { max, sum, acc } = partial;
    vectorised(
        #[inline(always)]
        || {
            let head_dim = q.len();
            for (score, row) in scores.iter_mut().zip(kv.chunks(stride)) {
                *score = dot(q, &row[..head_dim]);
            }
            softmax_step_inline(scores, max, sum, acc);
            // As many sums at a time as stay in registers while the tokens go by.
            let (blocks, rest) = acc.as_chunks_mut::<{ 4 * LANES }>();
            let mut column = head_dim;
            for block in blocks {
                add_weighted(scores, kv, stride, column, block);
                column += block.len();
            }
            let (blocks, rest) = rest.as_chunks_mut::<LANES>();
            for block in blocks {
                add_weighted(scores, kv, stride, column, block);
                column += block.len();
            }
            for sum in rest {
                add_weighted(scores, kv, stride, column, std::array::from_mut(sum));
                column += 1;
            }
        },
    );
}

/// Adds `weight x value` of every row to `sums`, the values being those from `column` on.
#[inline(always)]
fn add_weighted<const N: usize>(
    weights: &[f32],
    rows: &[f32],
    stride: usize,
    column: usize,
    sums: &mut [f32; N],
) {
    let mut kept = *sums;
    for (weight, row) in weights.iter().zip(rows.chunks(stride)) {
        for (sum, v) in kept.iter_mut().zip(&row[column..column + N]) {
            *sum += weight * v;
        }
    }
    *sums = kept;
}

/// Joins `part` to `whole`; both describe one query head over different tokens.
pub fn merge_partials(whole: Partial<'_>, part: (f32, f32, &[f32])) {
    vectorised(
        #[inline(always)]
        || {
            let (part_max, part_sum, part_acc) = part;
            let max = if part_max > *whole.max {
                part_max
            } else {
                *whole.max
            };
            let (keep, add) = (exp(*whole.max - max), exp(part_max - max));
            *whole.sum = *whole.sum * keep + part_sum * add;
            for (a, p) in whole.acc.iter_mut().zip(part_acc) {
                *a = *a * keep + p * add;
            }
            *whole.max = max;
        },
    );
}

/// Adds `x` to `sum`, element by element.
pub fn add(sum: &mut [f32], x: &[f32]) {
    vectorised(
        #[inline(always)]
        || {
            for (s, x) in sum.iter_mut().zip(x) {
                *s += x;
            }
        },
    );
}

/// Rows of a matrix `(rows, width)` against `n` vectors `x` `(n, width)`: `out` is `(rows, n)`.
///
/// Every product has the bits that it has with `n` of one.
pub fn dot_rows(rows: &[f32], width: usize, x: &[f32], out: &mut [f32]) {
    /// Vectors that share one reading of a row.
    const TOGETHER: usize = 4;
    vectorised(
        #[inline(always)]
        || {
            let n = x.len() / width;
            for (row, out) in rows.chunks(width).zip(out.chunks_mut(n)) {
                let (groups, rest) = out.as_chunks_mut::<TOGETHER>();
                let (grouped, single) = x.split_at(groups.len() * TOGETHER * width);
                for (out, x) in groups.iter_mut().zip(grouped.chunks(TOGETHER * width)) {
                    *out = dots(row, std::array::from_fn(|i| &x[i * width..][..width]));
                }
                for (out, x) in rest.iter_mut().zip(single.chunks(width)) {
                    *out = dot(row, x);
                }
            }
        },
    );
}

/// Several [`dot`] with one operand in common.
#[inline(always)]
fn dots<const N: usize>(a: &[f32], b: [&[f32]; N]) -> [f32; N] {
    let mut lanes = [[0f32; LANES]; N];
    let (a_chunks, a_rest) = a.as_chunks::<LANES>();
    let b_chunks = b.map(|b| b.as_chunks::<LANES>().0);
    for (c, x) in a_chunks.iter().enumerate() {
        for (lanes, b) in lanes.iter_mut().zip(&b_chunks) {
            for i in 0..LANES {
                lanes[i] += x[i] * b[c][i];
            }
        }
    }
    std::array::from_fn(|i| {
        let b_rest = &b[i][a.len() - a_rest.len()..];
        let rest: f32 = a_rest.iter().zip(b_rest).map(|(x, y)| x * y).sum();
        sum_lanes(lanes[i]) + rest
    })
}

/// Widens half-precision values; NaN stays NaN.
///
/// Here because `half` converts 8 values a call, and decoding spent a tenth of its time on it.
pub fn widen_f16(x: &[half::f16], out: &mut [f32]) {
    /// 2^112: what the exponents of the two formats are apart.
    const REBIAS: f32 = f32::from_bits((127 + 112) << 23);
    vectorised(
        #[inline(always)]
        || {
            for (out, x) in out.iter_mut().zip(x) {
                let bits = u32::from(x.to_bits());
                let magnitude = (bits & 0x7fff) << 13;
                let finite = (f32::from_bits(magnitude) * REBIAS).to_bits();
                let special = magnitude | 0x7f80_0000;
                let is_special = bits & 0x7c00 == 0x7c00;
                let wide = if is_special { special } else { finite };
                *out = f32::from_bits(wide | (bits & 0x8000) << 16);
            }
        },
    );
}

/// Narrows to half precision, rounding to nearest even.
pub fn narrow_f16(x: &[f32], out: &mut [half::f16]) {
    out.convert_from_f32_slice(x);
}

/// Widens brain floats.
pub fn widen_bf16(x: &[half::bf16], out: &mut [f32]) {
    vectorised(
        #[inline(always)]
        || {
            for (out, x) in out.iter_mut().zip(x) {
                *out = f32::from_bits(u32::from(x.to_bits()) << 16);
            }
        },
    );
}

/// Narrows to brain floats, rounding to nearest even; NaN stays NaN.
///
/// Here because `half` does it one value at a time.
pub fn narrow_bf16(x: &[f32], out: &mut [half::bf16]) {
    vectorised(
        #[inline(always)]
        || {
            for (o, x) in out.iter_mut().zip(x) {
                let bits = x.to_bits();
                let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1));
                let quiet = bits | 0x0040_0000;
                let kept = if x.is_nan() { quiet } else { rounded };
                *o = half::bf16::from_bits((kept >> 16) as u16);
            }
        },
    );
}

#[cfg(test)]
mod tests;
