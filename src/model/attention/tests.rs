//! Every way through attention against the textbook, and against itself bit by bit.

use super::*;
use crate::model::architecture::RopePairs;
use crate::model::kv_cache::KvLayout;
use crate::model::shape::Rope;

const SHAPE: AttentionShape = AttentionShape {
    n_heads: 6,
    n_kv_heads: 2,
    head_dim: 16,
    window_tokens: None,
};

/// What a token sees: everything, a window inside a segment, some that begin amid segments and
/// tiles of keys, itself alone, more than there is.
const WINDOWS: [Option<usize>; 6] = [None, Some(20), Some(100), Some(550), Some(1), Some(700)];

fn with_window(window_tokens: Option<usize>) -> AttentionShape {
    AttentionShape {
        window_tokens,
        ..SHAPE
    }
}

fn rope(max_tokens: usize) -> RopeTable {
    let rope = Rope {
        base: 10_000.0,
        pairs: RopePairs::Neighbours,
        divisors: None,
    };
    RopeTable::new(&rope, SHAPE.head_dim, max_tokens)
}

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

fn layout(dtype: KvDtype) -> KvLayout {
    KvLayout {
        n_layers: 1,
        n_kv_heads: SHAPE.n_kv_heads,
        head_dim: SHAPE.head_dim,
        dtype,
    }
}

/// Width of a result with some padding.
const OUT_WIDTH: usize = 100;

/// Stores the rows of `qkv` and attends from them; the results without their padding.
fn pass(
    shape: AttentionShape,
    rope: &RopeTable,
    qkv: &[f32],
    rows: Rows<'_>,
    scratch: &mut Scratch,
) -> Vec<f32> {
    let n = qkv.len() / SHAPE.qkv_width();
    let mut q = vec![7.0; n * SHAPE.q_width()];
    rotate_and_store(shape, rope, qkv, rows, 0, &mut q, scratch).unwrap();
    let mut out = vec![7.0; n * OUT_WIDTH];
    attend(shape, &q, rows, 0, &mut out, OUT_WIDTH, scratch).unwrap();
    let mut kept = Vec::new();
    for row in out.chunks(OUT_WIDTH) {
        let (heads, padding) = row.split_at(SHAPE.q_width());
        assert_eq!(padding, [0.0; 4]);
        kept.extend_from_slice(heads);
    }
    kept
}

/// Runs tokens through rope, cache and attention in the given chunks.
fn run(shape: AttentionShape, chunks: &[usize], dtype: KvDtype) -> Vec<f32> {
    let total: usize = chunks.iter().sum();
    let cache = &KvCache::new(layout(dtype), total);
    let rope = rope(total);
    let qkv = noise(total * SHAPE.qkv_width(), 7);
    let mut scratch = Scratch::default();
    let mut out = Vec::new();
    let mut position = 0;
    for &n in chunks {
        let rows = &qkv[position * SHAPE.qkv_width()..][..n * SHAPE.qkv_width()];
        let first = Place { cache, position };
        out.extend(pass(shape, &rope, rows, Rows::Chunk(first), &mut scratch));
        position += n;
    }
    out
}

/// The textbook way in f64, K and V heads repeated.
fn plain(window: Option<usize>, total: usize) -> Vec<f64> {
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
            let first = window.map_or(0, |w| (t + 1).saturating_sub(w));
            let scores: Vec<f64> = (first..=t)
                .map(|s| {
                    let k = rotate(s, head(s, kv));
                    q.iter().zip(&k).map(|(a, b)| a * b).sum::<f64>() / (dim as f64).sqrt()
                })
                .collect();
            let top = scores.iter().cloned().fold(f64::MIN, f64::max);
            let sum: f64 = scores.iter().map(|s| (s - top).exp()).sum();
            for i in 0..dim {
                let v = |s: usize| f64::from(head(s, kv + SHAPE.n_kv_heads)[i]);
                let weighted = (first..=t)
                    .zip(&scores)
                    .map(|(s, score)| (score - top).exp() * v(s));
                let x: f64 = weighted.sum();
                out.push(x / sum);
            }
        }
    }
    out
}

#[test]
fn every_way_through_agrees_with_the_textbook() {
    for window in WINDOWS {
        let want = plain(window, 600);
        for (chunks, dtype, tolerance) in [
            (vec![600], KvDtype::F32, 1e-5),
            (vec![100, 37, 1, 462], KvDtype::F32, 1e-5),
            (vec![598, 1, 1], KvDtype::F32, 1e-5),
            (vec![599, 1], KvDtype::F16, 2e-3),
            (vec![100, 498, 1, 1], KvDtype::Bf16, 1.6e-2),
        ] {
            let got = run(with_window(window), &chunks, dtype);
            assert_eq!(got.len(), want.len());
            for (i, (g, w)) in got.iter().zip(&want).enumerate() {
                let error = (f64::from(*g) - w).abs();
                assert!(
                    error < tolerance,
                    "{window:?} {chunks:?} {dtype}: element {i}: {g} {w}"
                );
            }
        }
    }
}

#[test]
fn chunks_aligned_to_the_query_block_give_the_same_bits() {
    for (dtype, window) in [
        (KvDtype::F32, None),
        (KvDtype::F16, None),
        (KvDtype::Bf16, None),
        (KvDtype::F32, Some(100)),
    ] {
        let shape = with_window(window);
        let whole = run(shape, &[600], dtype);
        assert_eq!(whole, run(shape, &[128, 64, 320, 88], dtype));
    }
}

#[test]
fn sequences_stepped_together_have_the_bits_that_they_have_alone() {
    let rope = rope(400);
    for (dtype, window) in [
        (KvDtype::F32, None),
        (KvDtype::F16, None),
        (KvDtype::Bf16, None),
        (KvDtype::F32, Some(100)),
    ] {
        let shape = with_window(window);
        let lengths = [0, 1, 63, 64, 65, 200, 333];
        let mut scratch = Scratch::default();
        let mut sequences = |seed: u64| -> Vec<KvCache> {
            let of_length = |(i, &n): (usize, &usize)| {
                let cache = KvCache::new(layout(dtype), n + 1);
                if n > 0 {
                    let qkv = noise(n * SHAPE.qkv_width(), seed + i as u64);
                    let first = Place {
                        cache: &cache,
                        position: 0,
                    };
                    pass(shape, &rope, &qkv, Rows::Chunk(first), &mut scratch);
                }
                cache
            };
            lengths.iter().enumerate().map(of_length).collect()
        };
        let (alone, together) = (sequences(1), sequences(1));
        let qkv = noise(lengths.len() * SHAPE.qkv_width(), 99);
        let place = |cache| Place {
            cache,
            position: KvCache::len_tokens(cache),
        };
        let places: Vec<_> = together.iter().map(place).collect();
        let got = pass(shape, &rope, &qkv, Rows::Steps(&places), &mut scratch);
        let mut want = Vec::new();
        for (qkv, cache) in qkv.chunks(SHAPE.qkv_width()).zip(&alone) {
            want.extend(pass(
                shape,
                &rope,
                qkv,
                Rows::Steps(&[place(cache)]),
                &mut scratch,
            ));
        }
        assert_eq!(got, want, "{dtype} {window:?}");
        for (cache, n) in together.iter().zip(lengths) {
            assert_eq!(cache.len_tokens(), n + 1);
        }
    }
}
