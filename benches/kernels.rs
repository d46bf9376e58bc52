//! The vector kernels on the default model's widths, each beside the loop that it stands for as
//! the compiler makes it for any machine of this architecture.
//!
//! Run with `cargo bench --bench kernels`; one thread, but for products with a packed matrix, which
//! take those of candle's pool (`CANDLE_NUM_THREADS`). What a kernel gains here is why it exists.

use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use disagg_bench::model::kernels::{self, Partial};
use disagg_bench::model::packed::{Activations, Kernel, NibbleBlock, PackedMatrix};
use half::{bf16, f16};

const HIDDEN: usize = 576;
const FEED_FORWARD: usize = 1536;
const HEAD_DIM: usize = 64;
/// Keys of a tile of scores, and tokens of a segment of a step.
const KEYS: usize = 512;
const SEGMENT: usize = 64;
/// A token's K and V of one layer.
const KV_ROW: usize = 2 * 3 * HEAD_DIM;

fn wave(count: usize) -> Vec<f32> {
    (0..count).map(|i| (i as f32 * 0.37).sin() * 3.0).collect()
}

fn norm(criterion: &mut Criterion) {
    let (x, weight, mut out) = (wave(HIDDEN), wave(HIDDEN), vec![0.0; 768]);
    let mut group = criterion.benchmark_group("kernels/rms-norm");
    group.bench_function("ours", |bencher| {
        bencher.iter(|| kernels::rms_norm_row(black_box(&x), &weight, 1e-5, &mut out));
    });
    group.bench_function("plain", |bencher| {
        bencher.iter(|| {
            let x = black_box(&x);
            let squares: f32 = x.iter().map(|x| x * x).sum();
            let scale = 1.0 / (squares / x.len() as f32 + 1e-5).sqrt();
            for ((out, x), weight) in out.iter_mut().zip(x).zip(&weight) {
                *out = x * scale * weight;
            }
        });
    });
}

fn swiglu(criterion: &mut Criterion) {
    let (gate_up, mut out) = (wave(2 * FEED_FORWARD), vec![0.0; FEED_FORWARD]);
    let mut group = criterion.benchmark_group("kernels/swiglu");
    group.bench_function("ours", |bencher| {
        bencher.iter(|| kernels::swiglu_row(black_box(&gate_up), &mut out));
    });
    group.bench_function("plain", |bencher| {
        bencher.iter(|| {
            let (gate, up) = black_box(&gate_up).split_at(FEED_FORWARD);
            for ((out, gate), up) in out.iter_mut().zip(gate).zip(up) {
                *out = gate / (1.0 + (-gate).exp()) * up;
            }
        });
    });
}

fn softmax(criterion: &mut Criterion) {
    let (scores, mut room, mut acc) = (wave(KEYS), vec![0.0; KEYS], wave(HEAD_DIM));
    let mut group = criterion.benchmark_group("kernels/softmax-of-512");
    group.bench_function("ours", |bencher| {
        bencher.iter(|| {
            room.copy_from_slice(black_box(&scores));
            let (mut max, mut sum) = (f32::NEG_INFINITY, 0.0);
            kernels::softmax_step(&mut room, &mut max, &mut sum, &mut acc);
            sum
        });
    });
    group.bench_function("plain", |bencher| {
        bencher.iter(|| {
            room.copy_from_slice(black_box(&scores));
            let max = room.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            room.iter_mut().for_each(|x| *x = (*x - max).exp());
            room.iter().sum::<f32>()
        });
    });
}

fn attention(criterion: &mut Criterion) {
    let (q, kv, mut scores) = (wave(HEAD_DIM), wave(SEGMENT * KV_ROW), vec![0.0; SEGMENT]);
    let mut acc = vec![0.0; HEAD_DIM];
    let mut group = criterion.benchmark_group("kernels/attention-over-64");
    group.bench_function("ours", |bencher| {
        bencher.iter(|| {
            acc.fill(0.0);
            let (mut max, mut sum) = (f32::NEG_INFINITY, 0.0);
            let partial = Partial {
                max: &mut max,
                sum: &mut sum,
                acc: &mut acc,
            };
            kernels::attend_tile(black_box(&q), &kv, KV_ROW, &mut scores, partial);
            sum
        });
    });
    group.bench_function("plain", |bencher| {
        bencher.iter(|| {
            let q = black_box(&q);
            for (score, row) in scores.iter_mut().zip(kv.chunks(KV_ROW)) {
                *score = q.iter().zip(row).map(|(a, b)| a * b).sum();
            }
            let max = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            scores.iter_mut().for_each(|x| *x = (*x - max).exp());
            acc.fill(0.0);
            for (score, row) in scores.iter().zip(kv.chunks(KV_ROW)) {
                for (acc, v) in acc.iter_mut().zip(&row[HEAD_DIM..]) {
                    *acc += score * v;
                }
            }
            scores.iter().sum::<f32>()
        });
    });
}

fn widths(criterion: &mut Criterion) {
    let wide = wave(SEGMENT * KV_ROW);
    let halves: Vec<f16> = wide.iter().map(|x| f16::from_f32(*x)).collect();
    let brains: Vec<bf16> = wide.iter().map(|x| bf16::from_f32(*x)).collect();
    let mut out = vec![0.0; wide.len()];
    let mut group = criterion.benchmark_group("kernels/widen");
    group.bench_function("f16", |bencher| {
        bencher.iter(|| kernels::widen_f16(black_box(&halves), &mut out));
    });
    group.bench_function("f16 plain", |bencher| {
        bencher.iter(|| {
            for (out, x) in out.iter_mut().zip(black_box(&halves)) {
                *out = x.to_f32();
            }
        });
    });
    group.bench_function("bf16", |bencher| {
        bencher.iter(|| kernels::widen_bf16(black_box(&brains), &mut out));
    });
    group.bench_function("bf16 plain", |bencher| {
        bencher.iter(|| {
            for (out, x) in out.iter_mut().zip(black_box(&brains)) {
                *out = x.to_f32();
            }
        });
    });
    group.finish();
    let (mut halves, mut brains) = (halves, brains);
    let mut group = criterion.benchmark_group("kernels/narrow");
    group.bench_function("f16", |bencher| {
        bencher.iter(|| kernels::narrow_f16(black_box(&wide), &mut halves));
    });
    group.bench_function("f16 plain", |bencher| {
        bencher.iter(|| {
            for (out, x) in halves.iter_mut().zip(black_box(&wide)) {
                *out = f16::from_f32(*x);
            }
        });
    });
    group.bench_function("bf16", |bencher| {
        bencher.iter(|| kernels::narrow_bf16(black_box(&wide), &mut brains));
    });
    group.bench_function("bf16 plain", |bencher| {
        bencher.iter(|| {
            for (out, x) in brains.iter_mut().zip(black_box(&wide)) {
                *out = bf16::from_f32(*x);
            }
        });
    });
}

fn dots(criterion: &mut Criterion) {
    let (rows, x) = (wave(64 * HIDDEN), wave(4 * HIDDEN));
    let mut out = vec![0.0; 64 * 4];
    let mut group = criterion.benchmark_group("kernels/64-rows-by-4");
    group.bench_function("ours", |bencher| {
        bencher.iter(|| kernels::dot_rows(black_box(&rows), HIDDEN, &x, &mut out));
    });
    group.bench_function("plain", |bencher| {
        bencher.iter(|| {
            for (row, out) in black_box(&rows).chunks(HIDDEN).zip(out.chunks_mut(4)) {
                for (x, out) in x.chunks(HIDDEN).zip(out) {
                    *out = row.iter().zip(x).map(|(a, b)| a * b).sum();
                }
            }
        });
    });
}

/// A feed-forward matrix as bytes (Q8_0) and as nibbles (Q4_1), times a step's row and a query block.
fn packed(criterion: &mut Criterion) {
    let row = wave(HIDDEN);
    let bytes = PackedMatrix::pack(FEED_FORWARD, HIDDEN, |_, values| {
        values[..HIDDEN].copy_from_slice(&row);
    });
    let nibbles = PackedMatrix::pack_nibbles(FEED_FORWARD, HIDDEN, |row, block| {
        NibbleBlock::from_q4_1(&std::array::from_fn(|i| (row + block + i * i) as u8 & 0x3f))
    });
    for (format, matrix) in [("bytes", bytes), ("nibbles", nibbles)] {
        for n in [1, 64] {
            let mut x = Activations::default();
            x.quantise(&wave(n * HIDDEN), HIDDEN);
            let mut out = vec![0.0; n * FEED_FORWARD];
            let mut group = criterion.benchmark_group(format!("kernels/packed-{format}-by-{n}"));
            for (name, kernel) in [("ours", Kernel::here()), ("plain", Kernel::Plain)] {
                group.bench_function(name, |bencher| {
                    bencher.iter(|| {
                        matrix.multiply(kernel, black_box(&x), &mut out, FEED_FORWARD, 0);
                    });
                });
            }
        }
    }
}

criterion_group!(
    benches, norm, swiglu, softmax, attention, widths, dots, packed
);
criterion_main!(benches);
