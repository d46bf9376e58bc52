//! The kernels against plain loops in double precision.

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
