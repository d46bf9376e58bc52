//! Weights out of a seed: real compute and real bytes for a shape whose weights are not at hand.
//!
//! What such a model answers means nothing; how long it takes and how large its caches are does.

use std::borrow::Cow;
use std::path::PathBuf;

use candle_core::Device;
use candle_core::quantized::{GgmlDType, QStorage, QTensor};
use half::f16;
use rand::rngs::StdRng;
use rand::{RngCore, SeedableRng};

use super::ModelError;
use super::shape::ModelShape;
use super::tensor_name::{LayerTensor, TensorName};

/// Standard deviation of evenly spread signed bytes.
const BYTE_DEVIATION: f32 = 73.9;

/// Random weights of a shape, each made when it is asked for.
#[derive(Clone, Debug, PartialEq)]
pub struct RandomModel {
    /// Sizes and constants of the decoder.
    pub shape: ModelShape,
    /// Layers of the shape that these are taken of.
    pub of_layers: usize,
    /// What the weights follow from.
    pub seed: u64,
}

impl RandomModel {
    /// Every matrix is of this format: what serves most models in a byte a weight.
    pub const FORMAT: GgmlDType = GgmlDType::Q8_0;

    /// An error about these weights.
    pub fn error(&self, why: impl Into<String>) -> ModelError {
        ModelError::File {
            path: PathBuf::from("of random weights"),
            why: why.into(),
        }
    }

    /// A matrix whose products have about the size of what they are applied to.
    pub fn matrix(&self, name: TensorName) -> Result<QTensor, ModelError> {
        let dims = name.dims(&self.shape);
        let values = Self::FORMAT.block_size();
        let (rows, width) = (dims[0], dims[1]);
        if !width.is_multiple_of(values) {
            return Err(self.error(format!("a width of {width}, wanted a multiple of {values}")));
        }
        let scale = f16::from_f32(1.0 / (BYTE_DEVIATION * (width as f32).sqrt())).to_le_bytes();
        let mut random = self.generator(name);
        let block_bytes = Self::FORMAT.type_size();
        let mut bytes = vec![0; rows * width / values * block_bytes];
        random.fill_bytes(&mut bytes);
        for block in bytes.chunks_exact_mut(block_bytes) {
            block[..scale.len()].copy_from_slice(&scale);
        }
        QStorage::from_data(Cow::Owned(bytes), &Device::Cpu, Self::FORMAT)
            .and_then(|storage| QTensor::new(storage, (rows, width)))
            .map_err(|e| self.error(format!("tensor {name:?}: {e}")))
    }

    /// Norms that change nothing, and no biases.
    pub fn vector(&self, name: TensorName) -> Vec<f32> {
        use LayerTensor::{KeyBias, QueryBias, ValueBias};
        let value = match name {
            TensorName::Layer(_, QueryBias | KeyBias | ValueBias) => 0.0,
            _ => 1.0,
        };
        vec![value; name.dims(&self.shape).iter().product()]
    }

    fn generator(&self, name: TensorName) -> StdRng {
        let text = format!("{} {}", self.seed, name.gguf());
        StdRng::from_seed(*blake3::hash(text.as_bytes()).as_bytes())
    }
}
