//! Every kernel against the plain loop, bit for bit, and the plain loop against double precision.

use super::*;

fn noise(count: usize, seed: u32) -> Vec<f32> {
    let value = |i: u32| (i.wrapping_add(seed).wrapping_mul(2_654_435_761) >> 8) as f32;
    let centred = |i: u32| value(i) / (1 << 23) as f32 - 1.0;
    // Blocks of very different sizes, as activations have.
    (0..count as u32)
        .map(|i| centred(i) * (1 + i / 32 % 7 * 5) as f32)
        .collect()
}

fn matrix(rows: usize, width: usize) -> (Vec<f32>, PackedMatrix) {
    let weights = noise(rows * width, 3);
    let packed = PackedMatrix::pack(rows, width, |row, out| {
        out[..width].copy_from_slice(&weights[row * width..][..width]);
    });
    (weights, packed)
}

/// A matrix of Q4_1 blocks, and what they stand for.
fn nibbles(rows: usize, width: usize) -> (Vec<f32>, PackedMatrix) {
    let block = |row: usize, b: usize| {
        let bytes = std::array::from_fn(|i| (row * 31 + b * 7 + i * i * 13) as u8);
        let mut block = NibbleBlock::from_q4_1(&bytes);
        block.scale = f16::from_f32(0.01 + (row % 5) as f32 / 50.0);
        block.offset = f16::from_f32(b as f32 / 10.0 - 0.7);
        block
    };
    let weights = (0..rows * width).map(|i| {
        let (row, column) = (i / width, i % width);
        let block = block(row, column / BLOCK_VALUES);
        let value = f32::from(block.values[column % BLOCK_VALUES]);
        value * block.scale.to_f32() + block.offset.to_f32()
    });
    (
        weights.collect(),
        PackedMatrix::pack_nibbles(rows, width, block),
    )
}

fn input(n: usize, width: usize) -> (Vec<f32>, Activations) {
    let x = noise(n * width, 11);
    let mut quantised = Activations::default();
    quantised.quantise(&x, width);
    (x, quantised)
}

fn product(matrix: &PackedMatrix, kernel: Kernel, x: &Activations, n: usize) -> Vec<f32> {
    let mut out = vec![f32::NAN; n * matrix.rows()];
    matrix.multiply(kernel, x, &mut out, matrix.rows(), 0);
    out
}

fn kernels_here() -> Vec<Kernel> {
    match Kernel::here() {
        #[cfg(target_arch = "x86_64")]
        Kernel::Avx512Vnni => vec![Kernel::Avx512Vnni, Kernel::Avx2],
        other => vec![other],
    }
}

#[test]
fn every_kernel_gives_the_bits_of_the_plain_loop_however_many_rows_there_are() {
    // Whole tiles, an odd number of them, and a last one that is not whole.
    for rows in [32, 48, 37, 5] {
        let (_, matrix) = matrix(rows, 96);
        for n in [1, 2, 3, 4, 5, 6, 7, 13, 48, 101] {
            let (_, x) = input(n, 96);
            let plain = product(&matrix, Kernel::Plain, &x, n);
            for kernel in kernels_here() {
                assert_eq!(
                    product(&matrix, kernel, &x, n),
                    plain,
                    "{kernel:?} {rows} {n}"
                );
            }
            let (_, alone) = input(1, 96);
            assert_eq!(product(&matrix, Kernel::here(), &alone, 1), plain[..rows]);
        }
    }
}

#[test]
fn the_largest_values_of_either_sign_do_not_overflow() {
    for (w, x) in [(1.0, 1.0), (-1.0, 1.0), (1.0, -1.0), (-1.0, -1.0)] {
        let matrix = PackedMatrix::pack(16, 64, |_, row| row.fill(w));
        let mut quantised = Activations::default();
        quantised.quantise(&[x; 64], 64);
        for kernel in kernels_here() {
            for sum in product(&matrix, kernel, &quantised, 1) {
                // The scale of a weight is rounded to 11 bits.
                assert!((sum - 64.0 * w * x).abs() < 0.05, "{kernel:?}: {sum}");
            }
        }
    }
}

#[test]
fn a_product_is_as_close_as_eight_bits_are() {
    let (rows, width, n) = (40, 576, 3);
    for (weights, matrix) in [matrix(rows, width), nibbles(rows, width)] {
        let (x, quantised) = input(n, width);
        let got = product(&matrix, Kernel::here(), &quantised, n);
        for (i, x) in x.chunks(width).enumerate() {
            for (r, row) in weights.chunks(width).enumerate() {
                let pairs = row.iter().zip(x);
                let want: f64 = pairs.map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
                let size = |v: &[f32]| v.iter().map(|v| f64::from(v * v)).sum::<f64>().sqrt();
                let error = (f64::from(got[i * rows + r]) - want).abs() / (size(row) * size(x));
                assert!(error < 1e-3, "row {i}, column {r}: {error}");
            }
        }
    }
}

#[test]
fn rows_come_back_and_what_is_q8_0_already_stays_as_it_is() {
    let (weights, matrix) = matrix(21, 60);
    assert_eq!((matrix.rows(), matrix.width()), (21, 64));
    let mut rows = vec![0.0; 21 * 60];
    for (row, out) in rows.chunks_mut(60).enumerate() {
        matrix.read_row(row, out);
    }
    let largest = weights.iter().fold(0f32, |m, w| m.max(w.abs()));
    for (got, want) in rows.iter().zip(&weights) {
        assert!((got - want).abs() < largest / 200.0);
    }
    let again = PackedMatrix::pack(21, 60, |row, out| {
        out[..60].copy_from_slice(&rows[row * 60..][..60]);
    });
    let mut second = vec![0.0; 60];
    for (row, first) in rows.chunks(60).enumerate() {
        again.read_row(row, &mut second);
        assert_eq!(first, second);
    }
}

#[test]
fn blocks_of_a_file_are_read_as_candle_reads_them() {
    use candle_core::quantized::{GgmlDType, QTensor};
    use candle_core::{Device, Tensor};
    let dense = Tensor::from_vec(noise(20 * 64, 5), (20, 64), &Device::Cpu).unwrap();
    for format in [GgmlDType::Q4_0, GgmlDType::Q4_1] {
        let tensor = QTensor::quantize(&dense, format).unwrap();
        let bytes = tensor.data().unwrap();
        let packed = PackedMatrix::pack_nibbles(20, 64, |row, block| {
            let bytes = &bytes[(row * 2 + block) * format.type_size()..];
            match format {
                GgmlDType::Q4_1 => NibbleBlock::from_q4_1(bytes.first_chunk().unwrap()),
                _ => NibbleBlock::from_q4_0(bytes.first_chunk().unwrap()),
            }
        });
        let wanted = tensor
            .dequantize(&Device::Cpu)
            .unwrap()
            .to_vec2::<f32>()
            .unwrap();
        let mut row = [0.0; 64];
        for (i, wanted) in wanted.iter().enumerate() {
            packed.read_row(i, &mut row);
            for (got, wanted) in row.iter().zip(wanted) {
                assert!(
                    (got - wanted).abs() <= 1e-6 * wanted.abs().max(1.0),
                    "{format:?}"
                );
            }
        }
    }
}

#[test]
fn a_row_of_zeros_gives_zeros() {
    let matrix = PackedMatrix::pack(16, 32, |_, _| ());
    let mut x = Activations::default();
    x.quantise(&[0.0; 32], 32);
    assert_eq!(product(&matrix, Kernel::here(), &x, 1), [0.0; 16]);
}
