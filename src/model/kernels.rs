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
fn vectorised<R>(kernel: impl FnMut() -> R) -> R {
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
            let mean_square = dot(x, x) / x.len() as f32;
            let scale = 1.0 / (mean_square + eps).sqrt();
            let (out, padding) = out.split_at_mut(x.len());
            for ((o, x), w) in out.iter_mut().zip(x).zip(weight) {
                *o = x * scale * w;
            }
            padding.fill(0.0);
        },
    );
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

/// Rotates neighbouring pairs of one head (the order in which GGUF stores Llama's Q and K):
/// `x` and `out` are `(head_dim)`, `cos` and `sin` are `(head_dim / 2)`.
pub fn rope_interleaved_head(x: &[f32], cos: &[f32], sin: &[f32], out: &mut [f32]) {
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
mod tests {
    use super::*;

    #[test]
    fn exp_is_within_two_units_in_the_last_place() {
        let mut x = -86.9f32;
        while x < 88.0 {
            let want = (f64::from(x)).exp();
            let relative = (f64::from(exp(x)) - want).abs() / want;
            assert!(relative < 2.4e-7, "exp({x}): relative error {relative:e}");
            x += 0.0137;
        }
        assert_eq!(exp(0.0), 1.0);
        assert!(exp(-1000.0) < 2e-38);
    }

    #[test]
    fn products_have_the_same_bits_however_many_vectors_there_are() {
        let width = 83;
        let wave = |i: usize| (i as f32 * 0.37).sin();
        let rows: Vec<f32> = (0..3 * width).map(wave).collect();
        let x: Vec<f32> = (0..11 * width).map(|i| wave(i + 7)).collect();
        let mut together = vec![0.0; 3 * 11];
        dot_rows(&rows, width, &x, &mut together);
        for (i, x) in x.chunks(width).enumerate() {
            let mut alone = vec![0.0; 3];
            dot_rows(&rows, width, x, &mut alone);
            for (r, row) in rows.chunks(width).enumerate() {
                let plain: f64 = (row.iter().zip(x)).map(|(a, b)| f64::from(a * b)).sum();
                assert!((f64::from(alone[r]) - plain).abs() < 1e-5);
                assert_eq!(together[r * 11 + i].to_bits(), alone[r].to_bits());
            }
        }
    }

    #[test]
    fn half_precision_values_are_those_of_half() {
        let narrow: Vec<_> = (0..=u16::MAX).map(half::f16::from_bits).collect();
        let mut wide = vec![0.0; narrow.len()];
        widen_f16(&narrow, &mut wide);
        for (narrow, wide) in narrow.iter().zip(&wide) {
            let want = narrow.to_f32();
            match want.is_nan() {
                true => assert!(wide.is_nan()),
                false => assert_eq!(wide.to_bits(), want.to_bits(), "{narrow:?}"),
            }
        }
    }

    #[test]
    fn brain_floats_are_those_of_half() {
        let ties = [
            0x3f80_8000,
            0x3f81_8000,
            0x7f7f_ffff,
            0x7f80_0001,
            0xff80_0000,
        ];
        let many = (0..200_000u32).map(|i| i.wrapping_mul(2_654_435_761));
        let x: Vec<f32> = many.chain(ties).map(f32::from_bits).collect();
        let mut narrow = vec![half::bf16::ZERO; x.len()];
        narrow_bf16(&x, &mut narrow);
        let mut wide = vec![0.0; x.len()];
        widen_bf16(&narrow, &mut wide);
        for ((x, narrow), wide) in x.iter().zip(&narrow).zip(&wide) {
            let want = half::bf16::from_f32(*x);
            assert_eq!(narrow.to_bits(), want.to_bits(), "{x:e}");
            assert_eq!(wide.to_bits(), want.to_f32().to_bits(), "{x:e}");
        }
    }

    #[test]
    fn rms_norm_pads_with_zeros() {
        let x: Vec<f32> = (0..20).map(|i| i as f32 - 7.5).collect();
        let weight: Vec<f32> = (0..20).map(|i| 1.0 + i as f32 / 10.0).collect();
        let mut out = vec![9.0; 32];
        rms_norm_row(&x, &weight, 1e-5, &mut out);
        let rms = (x.iter().map(|v| f64::from(v * v)).sum::<f64>() / 20.0 + 1e-5).sqrt();
        for i in 0..20 {
            let want = f64::from(x[i]) / rms * f64::from(weight[i]);
            assert!((f64::from(out[i]) - want).abs() < 1e-5);
        }
        assert_eq!(out[20..], [0.0; 12]);
    }

    #[test]
    fn swiglu_survives_extreme_gates() {
        let gate_up = [-200.0, -1.0, 0.0, 1.0, 200.0, 1.0, 2.0, 3.0, 4.0, 5.0];
        let mut out = [9.0; 6];
        swiglu_row(&gate_up, &mut out);
        for i in 0..5 {
            let g = f64::from(gate_up[i]);
            let want = g / (1.0 + (-g).exp()) * f64::from(gate_up[5 + i]);
            assert!((f64::from(out[i]) - want).abs() < 1e-4, "{i}: {}", out[i]);
        }
        assert_eq!(out[5], 0.0);
    }

    #[test]
    fn tiles_of_any_size_give_the_same_attention() {
        let (head_dim, tokens, stride) = (24, 37, 60);
        let wave = |i: usize, f: f32| (i as f32 * f).sin() * 3.0;
        let q: Vec<f32> = (0..head_dim).map(|i| wave(i, 0.7)).collect();
        let kv: Vec<f32> = (0..tokens * stride).map(|i| wave(i, 0.31)).collect();
        let scores: Vec<f64> = (0..tokens)
            .map(|t| {
                (0..head_dim)
                    .map(|i| f64::from(q[i] * kv[t * stride + i]))
                    .sum()
            })
            .collect();
        let top = scores.iter().cloned().fold(f64::MIN, f64::max);
        let total: f64 = scores.iter().map(|s| (s - top).exp()).sum();
        for tile in [5, 37] {
            let (mut max, mut sum, mut acc) = (f32::NEG_INFINITY, 0.0, vec![0.0; head_dim]);
            for part in kv.chunks(tile * stride) {
                let mut scores = vec![0.0; part.len() / stride];
                let (mut m, mut s, mut a) = (f32::NEG_INFINITY, 0.0, vec![0.0; head_dim]);
                let partial = Partial {
                    max: &mut m,
                    sum: &mut s,
                    acc: &mut a,
                };
                attend_tile(&q, part, stride, &mut scores, partial);
                let whole = Partial {
                    max: &mut max,
                    sum: &mut sum,
                    acc: &mut acc,
                };
                merge_partials(whole, (m, s, &a));
            }
            for i in 0..head_dim {
                let want: f64 = (0..tokens)
                    .map(|t| (scores[t] - top).exp() * f64::from(kv[t * stride + head_dim + i]))
                    .sum::<f64>()
                    / total;
                assert!((f64::from(acc[i] / sum) - want).abs() < 1e-4);
            }
        }
    }
}
