//! Weight matrices in a form that runs fast: padded, requantised and fused at load.
//!
//! Candle's packed kernels take Q8_0 where the inner width is a multiple of 256; SmolLM2's 576 is
//! not, and its Q4_1 runs through scalar code. Rows are therefore padded with zeros and, where
//! needed, requantised to Q8_0, which changes the weights: the format is part of the model's
//! identity and is recorded with every run.

use std::borrow::Cow;
use std::sync::Arc;

use candle_core::quantized::{GgmlDType, QMatMul, QStorage, QTensor};
use candle_core::{Device, Module, Tensor};
use serde::{Deserialize, Serialize};

use super::ModelError;
use super::decoder::with_slice;
use super::gguf::Gguf;
use super::kernels;
use super::parallel;

/// Inner width that candle's packed kernels need a multiple of.
const PACKED_WIDTH: usize = 256;

/// What the matrices of a file are turned into at load.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum WeightsFormat {
    /// The file's own formats, through candle's kernels for them.
    AsIs,
    /// Q8_0, inner widths padded to a multiple of 256.
    Q8,
    /// Single precision: slowest, and the closest to the file's values.
    F32,
}

impl WeightsFormat {
    /// Q8 for a file with quantised matrices, f32 for one without.
    pub fn default_for(gguf: &Gguf) -> Self {
        let float = |f: &GgmlDType| matches!(f, GgmlDType::F32 | GgmlDType::F16 | GgmlDType::BF16);
        if gguf.matrix_formats().iter().all(float) {
            Self::F32
        } else {
            Self::Q8
        }
    }

    /// What runs and what it was made of, such as `q8_0 from q4_1, q8_0`.
    pub fn label(self, gguf: &Gguf) -> String {
        let formats: Vec<String> = (gguf.matrix_formats().iter())
            .map(|f| format!("{f:?}").to_lowercase())
            .collect();
        match self {
            Self::AsIs => format!("as-is: {}", formats.join(", ")),
            Self::Q8 => format!("q8_0 from {}", formats.join(", ")),
            Self::F32 => format!("f32 from {}", formats.join(", ")),
        }
    }
}

/// A matrix, or several that share their input stacked row by row.
#[derive(Debug)]
pub struct Matrix {
    parts: Vec<QMatMul>,
    /// Width of the input that `forward` wants; behind the true width it must hold zeros.
    pub input_width: usize,
}

impl Matrix {
    /// Loads matrices `(rows, width)` that share their input, fused into one.
    pub fn load(
        gguf: &mut Gguf,
        format: WeightsFormat,
        names_and_rows: &[(String, usize)],
        width: usize,
    ) -> Result<Self, ModelError> {
        let mut tensors = Vec::new();
        for (name, rows) in names_and_rows {
            tensors.push(gguf.tensor(name, &[*rows, width])?);
        }
        let first = &names_and_rows[0].0;
        Self::build(tensors, format, width).map_err(|e| gguf.error(format!("tensor {first}: {e}")))
    }

    fn build(
        tensors: Vec<QTensor>,
        format: WeightsFormat,
        width: usize,
    ) -> candle_core::Result<Self> {
        match format {
            WeightsFormat::AsIs => {
                let parts = tensors.into_iter().map(QMatMul::from_qtensor);
                Ok(Self {
                    parts: parts.collect::<candle_core::Result<_>>()?,
                    input_width: width,
                })
            }
            WeightsFormat::F32 => {
                let parts: Vec<Tensor> = (tensors.iter())
                    .map(|t| t.dequantize(&Device::Cpu))
                    .collect::<candle_core::Result<_>>()?;
                Ok(Self {
                    parts: vec![QMatMul::Tensor(Tensor::cat(&parts, 0)?)],
                    input_width: width,
                })
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
                Ok(Self {
                    parts: vec![QMatMul::QTensor(Arc::new(QTensor::new(
                        storage,
                        (rows, padded),
                    )?))],
                    input_width: padded,
                })
            }
        }
    }

    /// `(n, input_width)` to `(n, rows)`.
    pub fn forward(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        self.apply(|part| part.forward(x))
    }

    /// As [`Matrix::forward`] for a few rows, each of which gets the bits that it gets alone.
    pub fn forward_each(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        self.apply(|part| forward_each(part, x))
    }

    /// What `multiply` gives for each part, side by side.
    fn apply(
        &self,
        multiply: impl Fn(&QMatMul) -> candle_core::Result<Tensor>,
    ) -> candle_core::Result<Tensor> {
        match &self.parts[..] {
            [only] => multiply(only),
            parts => {
                let outputs: Vec<Tensor> = (parts.iter())
                    .map(multiply)
                    .collect::<candle_core::Result<_>>()?;
                Tensor::cat(&outputs, 1)?.contiguous()
            }
        }
    }

    /// Rows `ids` as f32, `(n, width)`: the embedding of tokens.
    pub fn rows(&self, ids: &[u32], width: usize) -> candle_core::Result<Tensor> {
        let ids = Tensor::new(ids, &Device::Cpu)?;
        // The embedding is one matrix, never a fused one.
        (self.parts[0].embedding(&ids)?.narrow(1, 0, width)?).contiguous()
    }

    /// Bytes of the weights as loaded, without candle's packed copies.
    pub fn bytes(&self) -> usize {
        let size = |m: &QMatMul| match m {
            QMatMul::QTensor(t) => t.storage_size_in_bytes(),
            QMatMul::Tensor(t) | QMatMul::TensorF16(t) => {
                t.elem_count() * t.dtype().size_in_bytes()
            }
        };
        self.parts.iter().map(size).sum()
    }
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
                let together = matrix.forward_each(&x).unwrap();
                let together = together.to_vec2::<f32>().unwrap();
                for (i, together) in together.iter().enumerate() {
                    let alone = matrix.forward_each(&x.narrow(0, i, 1).unwrap()).unwrap();
                    let alone = alone.to_vec2::<f32>().unwrap();
                    assert_eq!(
                        *together, alone[0],
                        "{format:?} {weights:?}: row {i} of {n}"
                    );
                }
            }
        }
    }

    #[test]
    fn rows_apart_and_rows_together_are_the_same_product() {
        for weights in [WeightsFormat::F32, WeightsFormat::Q8] {
            let matrix = matrix(GgmlDType::F32, weights);
            let x = Tensor::from_vec(noise(6 * SHAPE.1, 9), (6, SHAPE.1), &Device::Cpu).unwrap();
            let apart = matrix.forward_each(&x).unwrap();
            let together = matrix.forward(&x).unwrap();
            assert_eq!(apart.dims(), together.dims());
            let difference = (apart - together)
                .unwrap()
                .abs()
                .unwrap()
                .max_all()
                .unwrap();
            let difference = difference.to_scalar::<f32>().unwrap();
            // Sums of 512 products of up to 1.
            assert!(difference < 1e-3, "{weights:?}: {difference}");
        }
    }
}
