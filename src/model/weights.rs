//! Weight matrices in a form that runs fast: packed, fused, and where need be requantised at load.
//!
//! Q8_0, Q4_1 and Q4_0 run as they are in the file on kernels of our own, where this machine has
//! fast ones. Other formats, which candle runs slowly, are requantised to Q8_0, which changes the
//! weights: the format is part of the model's identity and is recorded with every run. Where our
//! kernels are not fast, Q8_0 runs on candle's, whose packed ones take inner widths that are
//! multiples of 256.

use std::borrow::Cow;
use std::sync::{Arc, Mutex};

use candle_core::quantized::{GgmlDType, QMatMul, QStorage, QTensor};
use candle_core::{Device, Module, Tensor};
use serde::{Deserialize, Serialize};

use super::ModelError;
use super::checkpoint::Checkpoint;
use super::decoder::with_slice;
use super::kernels;
use super::packed::{self, Kernel, NibbleBlock, PackedMatrix};
use super::parallel;
use super::shape::ModelShape;
use super::tensor_name::TensorName;

/// Inner width that candle's packed kernels need a multiple of.
const PACKED_WIDTH: usize = 256;

/// What the matrices of a file are turned into at load.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum WeightsFormat {
    /// The file's own formats, through candle's kernels for them.
    AsIs,
    /// Q8_0.
    Q8,
    /// Single precision: slowest, and the closest to the file's values.
    F32,
}

impl WeightsFormat {
    /// F32 for a file without quantised matrices, as they are where all of them run on kernels of
    /// our own, else Q8.
    pub fn default_for(formats: &[GgmlDType]) -> Self {
        if formats.iter().all(is_float) {
            Self::F32
        } else if Kernel::here().pays() && formats.iter().all(is_packable) {
            Self::AsIs
        } else {
            Self::Q8
        }
    }

    /// On a device: F32 for a file without quantised matrices, else as they are.
    pub fn default_on_device(formats: &[GgmlDType]) -> Self {
        match formats.iter().all(is_float) {
            true => Self::F32,
            false => Self::AsIs,
        }
    }

    /// What runs and what it was made of, such as `as-is: q4_1, q8_0`.
    pub fn label(self, formats: &[GgmlDType]) -> String {
        let formats: Vec<String> = (formats.iter())
            .map(|f| format!("{f:?}").to_lowercase())
            .collect();
        match self {
            Self::AsIs => format!("as-is: {}", formats.join(", ")),
            Self::Q8 => format!("q8_0 from {}", formats.join(", ")),
            Self::F32 => format!("f32 from {}", formats.join(", ")),
        }
    }

    /// Bytes that a matrix takes as loaded, candle's packed copy of it included.
    pub fn loaded_bytes(self, from: GgmlDType, elements: usize) -> u64 {
        let own = Kernel::here();
        let (format, is_own) = match self {
            Self::F32 => return (elements * size_of::<f32>()) as u64,
            Self::Q8 => (GgmlDType::Q8_0, own.pays()),
            Self::AsIs => (from, own.pays() && is_packable(&from)),
        };
        let bytes = (elements.div_ceil(format.block_size()) * format.type_size()) as u64;
        match is_own {
            true => bytes,
            false => 2 * bytes,
        }
    }

    /// Bytes that stand beside a matrix while it is made: as it was, and in f32 where it goes through
    /// that.
    pub fn transient_bytes(self, from: GgmlDType, elements: usize) -> u64 {
        let as_it_was = elements.div_ceil(from.block_size()) * from.type_size();
        let wide = match self {
            Self::F32 => elements * size_of::<f32>(),
            Self::Q8 if !Kernel::here().pays() => elements * size_of::<f32>(),
            Self::Q8 | Self::AsIs => 0,
        };
        (as_it_was + wide) as u64
    }

    /// What computes on this machine, such as `matrices own, avx512-vnni; vectors avx512`.
    pub fn kernels(self, formats: &[GgmlDType]) -> String {
        let own = Kernel::here();
        let on_own = match self {
            Self::Q8 => own.pays(),
            Self::AsIs => own.pays() && formats.iter().any(is_packable),
            Self::F32 => false,
        };
        let on_candle = match self {
            Self::Q8 => !own.pays(),
            Self::AsIs => !own.pays() || !formats.iter().all(is_packable),
            Self::F32 => true,
        };
        let matrices = match (on_own, on_candle) {
            (true, false) => own.name().to_owned(),
            (true, true) => format!("{} and candle's", own.name()),
            (false, _) => "candle's".to_owned(),
        };
        format!("matrices {matrices}; vectors {}", kernels::instructions())
    }
}

fn is_float(format: &GgmlDType) -> bool {
    matches!(format, GgmlDType::F32 | GgmlDType::F16 | GgmlDType::BF16)
}

/// Whether a format runs as it is on kernels of our own.
fn is_packable(format: &GgmlDType) -> bool {
    matches!(format, GgmlDType::Q8_0 | GgmlDType::Q4_1 | GgmlDType::Q4_0)
}

/// A matrix, or several that share their input stacked row by row.
#[derive(Debug)]
pub struct Matrix {
    parts: Parts,
    /// Width of the input that `forward` wants; behind the true width it must hold zeros.
    pub input_width: usize,
}

#[derive(Debug)]
enum Parts {
    Candle(Vec<QMatMul>),
    Packed(Kernel, Vec<PackedMatrix>),
}

/// Working memory of products, and the latest of them.
#[derive(Debug, Default)]
pub struct Product {
    activations: packed::Activations,
    out: Vec<f32>,
}

impl Matrix {
    /// Loads matrices that share their input of `width`, fused into one.
    pub fn load(
        checkpoint: &Checkpoint,
        shape: &ModelShape,
        format: WeightsFormat,
        names: &[TensorName],
        width: usize,
    ) -> Result<Self, ModelError> {
        let tensors = (names.iter())
            .map(|name| checkpoint.matrix(*name, shape))
            .collect::<Result<Vec<_>, _>>()?;
        Self::build(tensors, format, width)
            .map_err(|e| checkpoint.error(format!("tensors {names:?}: {e}")))
    }

    fn build(
        tensors: Vec<QTensor>,
        format: WeightsFormat,
        width: usize,
    ) -> candle_core::Result<Self> {
        let own = Kernel::here();
        match format {
            WeightsFormat::AsIs
                if own.pays() && tensors.iter().all(|t| is_packable(&t.dtype())) =>
            {
                let same = |a: &QTensor, b: &QTensor| a.dtype() == b.dtype();
                let packed = tensors.chunk_by(same).map(|same| pack(same, width));
                Self::packed(own, packed.collect::<candle_core::Result<_>>()?)
            }
            WeightsFormat::AsIs => {
                let parts = tensors.into_iter().map(QMatMul::from_qtensor);
                Ok(Self {
                    parts: Parts::Candle(parts.collect::<candle_core::Result<_>>()?),
                    input_width: width,
                })
            }
            WeightsFormat::F32 => {
                let parts: Vec<Tensor> = (tensors.iter())
                    .map(|t| t.dequantize(&Device::Cpu))
                    .collect::<candle_core::Result<_>>()?;
                let stacked = QMatMul::Tensor(Tensor::cat(&parts, 0)?);
                Ok(Self {
                    parts: Parts::Candle(vec![stacked]),
                    input_width: width,
                })
            }
            WeightsFormat::Q8 if own.pays() => {
                Self::packed(own, vec![pack_as_bytes(&tensors, width)?])
            }
            WeightsFormat::Q8 => {
                let padded = width.next_multiple_of(PACKED_WIDTH);
                let mut bytes = Vec::new();
                let mut rows = 0;
                for tensor in &tensors {
                    append_q8_rows(tensor, width, padded, &mut bytes)?;
                    rows += tensor.shape().dims()[0];
                }
                let storage =
                    QStorage::from_data(Cow::Owned(bytes), &Device::Cpu, GgmlDType::Q8_0)?;
                let stacked = Arc::new(QTensor::new(storage, (rows, padded))?);
                Ok(Self {
                    parts: Parts::Candle(vec![QMatMul::QTensor(stacked)]),
                    input_width: padded,
                })
            }
        }
    }

    fn packed(kernel: Kernel, parts: Vec<PackedMatrix>) -> candle_core::Result<Self> {
        let Some(first) = parts.first() else {
            candle_core::bail!("a matrix of no parts")
        };
        Ok(Self {
            input_width: first.width(),
            parts: Parts::Packed(kernel, parts),
        })
    }

    /// `(n, input_width)` to `(n, rows)`.
    pub fn forward<'p>(
        &self,
        x: &Tensor,
        product: &'p mut Product,
    ) -> candle_core::Result<&'p mut [f32]> {
        self.apply(x, product, |part| part.forward(x))
    }

    /// As [`Matrix::forward`] for a few rows, each of which gets the bits that it gets alone.
    pub fn forward_each<'p>(
        &self,
        x: &Tensor,
        product: &'p mut Product,
    ) -> candle_core::Result<&'p mut [f32]> {
        self.apply(x, product, |part| forward_each(part, x))
    }

    /// Our own product, or what candle's `multiply` gives for each part, side by side.
    fn apply<'p>(
        &self,
        x: &Tensor,
        product: &'p mut Product,
        multiply: impl Fn(&QMatMul) -> candle_core::Result<Tensor>,
    ) -> candle_core::Result<&'p mut [f32]> {
        let Product { activations, out } = product;
        match &self.parts {
            Parts::Packed(kernel, parts) => {
                with_slice(x, |x| activations.quantise(x, self.input_width))?;
                let rows = parts.iter().map(PackedMatrix::rows).sum();
                out.resize(x.dim(0)? * rows, 0.0);
                let mut first = 0;
                for part in parts {
                    part.multiply(*kernel, activations, out, rows, first);
                    first += part.rows();
                }
            }
            Parts::Candle(parts) => {
                let outputs: Vec<Tensor> = (parts.iter())
                    .map(multiply)
                    .collect::<candle_core::Result<_>>()?;
                let whole = match &outputs[..] {
                    [only] => only.clone(),
                    several => Tensor::cat(several, 1)?.contiguous()?,
                };
                out.clear();
                with_slice(&whole, |whole| out.extend_from_slice(whole))?;
            }
        }
        Ok(out)
    }

    /// Appends rows `ids` as f32, `(n, width)`: the embedding of tokens.
    pub fn rows(&self, ids: &[u32], width: usize, out: &mut Vec<f32>) -> candle_core::Result<()> {
        match &self.parts {
            // The embedding is one matrix, never a fused one.
            Parts::Packed(_, parts) => {
                let start = out.len();
                out.resize(start + ids.len() * width, 0.0);
                for (id, out) in ids.iter().zip(out[start..].chunks_mut(width)) {
                    parts[0].read_row(*id as usize, out);
                }
                Ok(())
            }
            Parts::Candle(parts) => {
                let ids = Tensor::new(ids, &Device::Cpu)?;
                let rows = (parts[0].embedding(&ids)?.narrow(1, 0, width)?).contiguous()?;
                with_slice(&rows, |rows| out.extend_from_slice(rows))
            }
        }
    }

    /// Bytes of the weights as loaded, without candle's packed copies.
    pub fn bytes(&self) -> usize {
        let size = |m: &QMatMul| match m {
            QMatMul::QTensor(t) => t.storage_size_in_bytes(),
            QMatMul::Tensor(t) | QMatMul::TensorF16(t) => {
                t.elem_count() * t.dtype().size_in_bytes()
            }
        };
        match &self.parts {
            Parts::Candle(parts) => parts.iter().map(size).sum(),
            Parts::Packed(_, parts) => parts.iter().map(PackedMatrix::bytes).sum(),
        }
    }
}

/// Stacks matrices of one format row by row, as they are in the file.
fn pack(tensors: &[QTensor], width: usize) -> candle_core::Result<PackedMatrix> {
    let (dtype, rows) = (tensors[0].dtype(), stacked_rows(tensors));
    if dtype == GgmlDType::Q8_0 {
        return pack_as_bytes(tensors, width);
    }
    let parts: Vec<Cow<'_, [u8]>> = (tensors.iter())
        .map(QTensor::data)
        .collect::<candle_core::Result<_>>()?;
    let blocks = width / dtype.block_size();
    Ok(PackedMatrix::pack_nibbles(rows, width, |row, block| {
        let (part, row) = locate(tensors, row);
        let bytes = &parts[part][(row * blocks + block) * dtype.type_size()..];
        match dtype {
            GgmlDType::Q4_1 => {
                let block = bytes.first_chunk().expect("a block of the tensor's bytes");
                NibbleBlock::from_q4_1(block)
            }
            _ => {
                let block = bytes.first_chunk().expect("a block of the tensor's bytes");
                NibbleBlock::from_q4_0(block)
            }
        }
    }))
}

/// Stacks matrices of any formats row by row as Q8_0.
fn pack_as_bytes(tensors: &[QTensor], width: usize) -> candle_core::Result<PackedMatrix> {
    let mut parts = Vec::new();
    for tensor in tensors {
        parts.push((tensor.dtype(), tensor.data()?));
    }
    let failed = Mutex::new(Ok(()));
    let packed = PackedMatrix::pack(stacked_rows(tensors), width, |row, values| {
        let (part, row) = locate(tensors, row);
        let (dtype, bytes) = &parts[part];
        let row_bytes = width / dtype.block_size() * dtype.type_size();
        let bytes = &bytes[row * row_bytes..][..row_bytes];
        if let Err(error) = dequantise(*dtype, bytes, &mut values[..width]) {
            *failed.lock().unwrap_or_else(|e| e.into_inner()) = Err(error);
        }
    });
    failed.into_inner().unwrap_or_else(|e| e.into_inner())?;
    Ok(packed)
}

fn stacked_rows(tensors: &[QTensor]) -> usize {
    tensors.iter().map(|tensor| tensor.shape().dims()[0]).sum()
}

/// Which tensor a row of the stack is of, and which of its rows.
fn locate(tensors: &[QTensor], row: usize) -> (usize, usize) {
    let (mut row, mut part) = (row, 0);
    while row >= tensors[part].shape().dims()[0] {
        row -= tensors[part].shape().dims()[0];
        part += 1;
    }
    (part, row)
}

/// One row of a matrix in its file's format, as candle reads it.
fn dequantise(dtype: GgmlDType, bytes: &[u8], out: &mut [f32]) -> candle_core::Result<()> {
    let storage = QStorage::from_data(Cow::Borrowed(bytes), &Device::Cpu, dtype)?;
    let row = QTensor::new(storage, (1, out.len()))?.dequantize(&Device::Cpu)?;
    with_slice(&row, |row| out.copy_from_slice(row))
}

/// Most rows for which candle does not turn to AMX tiles for Q4K.
const ROWS_WITHOUT_AMX: usize = 31;

/// One matrix and rows that shall not see each other. Of candle's quantised kernels most compute
/// rows apart; the others are led around.
fn forward_each(matrix: &QMatMul, x: &Tensor) -> candle_core::Result<Tensor> {
    let rows_at_once = match matrix {
        QMatMul::Tensor(weights) => return dot_each(weights, x),
        QMatMul::TensorF16(_) => 1,
        QMatMul::QTensor(weights) => match weights.dtype() {
            // One row goes past the packed copy that several go through.
            GgmlDType::Q6K => 1,
            GgmlDType::Q4K => ROWS_WITHOUT_AMX,
            _ => usize::MAX,
        },
    };
    let n = x.dim(0)?;
    if n <= rows_at_once {
        return matrix.forward(x);
    }
    let groups: Vec<Tensor> = (0..n)
        .step_by(rows_at_once)
        .map(|first| matrix.forward(&x.narrow(0, first, rows_at_once.min(n - first))?))
        .collect::<candle_core::Result<_>>()?;
    Tensor::cat(&groups, 0)
}

/// `x` `(n, width)` times the transpose of `weights` `(rows, width)` in f32, each row by itself.
///
/// gemm sums a single row in another order than several, and on one thread.
fn dot_each(weights: &Tensor, x: &Tensor) -> candle_core::Result<Tensor> {
    let (rows, width) = weights.dims2()?;
    let n = x.dim(0)?;
    let mut by_row = vec![0f32; rows * n];
    with_slice(weights, |weights| {
        with_slice(x, |x| {
            parallel::for_rows(&mut by_row, n, |rows, out| {
                kernels::dot_rows(
                    &weights[rows.start * width..rows.end * width],
                    width,
                    x,
                    out,
                );
            });
        })
    })??;
    match n {
        1 => Tensor::from_vec(by_row, (1, rows), &Device::Cpu),
        _ => Tensor::from_vec(by_row, (rows, n), &Device::Cpu)?
            .t()?
            .contiguous(),
    }
}

/// Appends the rows of `tensor` as Q8_0 blocks, each padded with zeros to `padded` values.
fn append_q8_rows(
    tensor: &QTensor,
    width: usize,
    padded: usize,
    bytes: &mut Vec<u8>,
) -> candle_core::Result<()> {
    let block = GgmlDType::Q8_0.block_size();
    let row_bytes = |values: usize| values / block * GgmlDType::Q8_0.type_size();
    let requantised;
    let source = match tensor.dtype() {
        GgmlDType::Q8_0 => tensor,
        _ => {
            let wide = tensor.dequantize(&Device::Cpu)?;
            let wide = wide.pad_with_zeros(1, 0, width.next_multiple_of(block) - width)?;
            requantised = QTensor::quantize(&wide, GgmlDType::Q8_0)?;
            &requantised
        }
    };
    // A block of zero bytes is 32 zeros with scale zero.
    let padding = vec![0u8; row_bytes(padded) - row_bytes(width.next_multiple_of(block))];
    for row in source
        .data()?
        .chunks(row_bytes(width.next_multiple_of(block)))
    {
        bytes.extend_from_slice(row);
        bytes.extend_from_slice(&padding);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rows and inner width that all packed kernels take.
    const SHAPE: (usize, usize) = (48, 512);

    fn noise(count: usize, seed: u32) -> Vec<f32> {
        let value = |i: u32| (i.wrapping_add(seed).wrapping_mul(2_654_435_761) >> 8) as f32;
        (0..count as u32)
            .map(|i| value(i) / (1 << 23) as f32 - 1.0)
            .collect()
    }

    fn matrix(format: GgmlDType, weights: WeightsFormat) -> Matrix {
        let dense = Tensor::from_vec(noise(SHAPE.0 * SHAPE.1, 1), SHAPE, &Device::Cpu).unwrap();
        let quantised = QTensor::quantize(&dense, format).unwrap();
        Matrix::build(vec![quantised], weights, SHAPE.1).unwrap()
    }

    #[test]
    fn rows_of_a_batch_have_the_bits_that_they_have_alone() {
        use GgmlDType::{F32, Q4_0, Q4_1, Q4K, Q5_0, Q5K, Q6K, Q8_0};
        let as_is = [F32, Q4_0, Q4_1, Q4K, Q5_0, Q5K, Q6K, Q8_0].map(|f| (f, WeightsFormat::AsIs));
        let others = [(F32, WeightsFormat::F32), (Q4_1, WeightsFormat::Q8)];
        for (format, weights) in as_is.into_iter().chain(others) {
            let matrix = matrix(format, weights);
            for n in [1, 2, 3, 4, 5, 8, 33] {
                let x =
                    Tensor::from_vec(noise(n * SHAPE.1, 9), (n, SHAPE.1), &Device::Cpu).unwrap();
                let mut product = Product::default();
                let together = matrix.forward_each(&x, &mut product).unwrap().to_vec();
                for (i, together) in together.chunks(SHAPE.0).enumerate() {
                    let row = x.narrow(0, i, 1).unwrap();
                    let alone = matrix.forward_each(&row, &mut product).unwrap();
                    assert_eq!(together, alone, "{format:?} {weights:?}: row {i} of {n}");
                }
            }
        }
    }

    #[test]
    fn rows_apart_and_rows_together_are_the_same_product() {
        for weights in [WeightsFormat::F32, WeightsFormat::Q8] {
            let matrix = matrix(GgmlDType::F32, weights);
            let x = Tensor::from_vec(noise(6 * SHAPE.1, 9), (6, SHAPE.1), &Device::Cpu).unwrap();
            let (mut first, mut second) = (Product::default(), Product::default());
            let apart = matrix.forward_each(&x, &mut first).unwrap();
            let together = matrix.forward(&x, &mut second).unwrap();
            assert_eq!((apart.len(), together.len()), (6 * SHAPE.0, 6 * SHAPE.0));
            let pairs = apart.iter().zip(together);
            let difference = pairs.map(|(a, b)| (*a - *b).abs()).fold(0f32, f32::max);
            // Sums of 512 products of up to 1.
            assert!(difference < 1e-3, "{weights:?}: {difference}");
        }
    }
}
