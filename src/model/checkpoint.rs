//! What a model is read from, whatever that is: its shape, matrices and vectors by name.

use std::path::Path;

use candle_core::Device;
use candle_core::quantized::{GgmlDType, QTensor};

use super::ModelError;
use super::folder::ModelFolder;
use super::gguf::Gguf;
use super::random::RandomModel;
use super::shape::ModelShape;
use super::source::{Location, ModelFiles};
use super::tensor_name::TensorName;
use super::weights::WeightsFormat;

/// An open source of weights.
pub enum Checkpoint {
    /// A GGUF file.
    Gguf(Box<Gguf>),
    /// A folder as the hub keeps models.
    Folder(Box<ModelFolder>),
    /// Weights that a seed gives.
    Random(Box<RandomModel>),
}

impl Checkpoint {
    /// Opens a model that was found.
    pub fn of(files: &ModelFiles) -> Result<Self, ModelError> {
        Ok(match &files.location {
            Location::Gguf(path) | Location::Folder(path) => Self::open(path)?,
            Location::Random(random) => Self::Random(random.clone()),
        })
    }

    /// Opens a GGUF file, or a folder with `config.json` and safetensors.
    pub fn open(path: &Path) -> Result<Self, ModelError> {
        Ok(match path.is_dir() {
            true => Self::Folder(Box::new(ModelFolder::open(path)?)),
            false => Self::Gguf(Box::new(Gguf::open(path)?)),
        })
    }

    /// An error about this source.
    pub fn error(&self, why: impl Into<String>) -> ModelError {
        match self {
            Self::Gguf(gguf) => gguf.error(why),
            Self::Folder(folder) => folder.error(why),
            Self::Random(random) => random.error(why),
        }
    }

    /// Sizes and constants of the decoder, where it consists of weights that it knows and no
    /// others.
    pub fn shape(&self) -> Result<ModelShape, ModelError> {
        let (shape, unknown) = match self {
            Self::Gguf(gguf) => {
                let shape = gguf.shape()?;
                let unknown = gguf.unknown_tensor(&TensorName::all(&shape));
                (shape, unknown)
            }
            Self::Folder(folder) => {
                let shape = folder.shape().clone();
                let unknown = folder.unknown_tensor(&TensorName::all(&shape));
                (shape, unknown)
            }
            Self::Random(random) => (random.shape.clone(), None),
        };
        match unknown {
            Some(name) => Err(self.error(format!(
                "tensor {name} is no part of a {} of {} layers as this build runs it",
                shape.architecture.gguf_name, shape.n_layers
            ))),
            None => Ok(shape),
        }
    }

    /// A matrix of the decoder, of exactly the rows and width that its shape asks for.
    pub fn matrix(&self, name: TensorName, shape: &ModelShape) -> Result<QTensor, ModelError> {
        let dims = name.dims(shape);
        match self {
            Self::Gguf(gguf) => gguf.tensor(&name.gguf(), &dims),
            Self::Folder(folder) => folder.tensor(&name.hub(), &dims),
            Self::Random(random) => random.matrix(name),
        }
    }

    /// A vector of the decoder, of exactly the length that its shape asks for.
    pub fn vector(&self, name: TensorName, shape: &ModelShape) -> Result<Vec<f32>, ModelError> {
        if let Self::Random(random) = self {
            return Ok(random.vector(name));
        }
        (self.matrix(name, shape)?.dequantize(&Device::Cpu))
            .and_then(|tensor| tensor.to_vec1::<f32>())
            .map_err(|e| self.error(format!("tensor {name:?}: {e}")))
    }

    /// Element format of a matrix of the decoder, where it is there.
    pub fn format_of(&self, name: TensorName) -> Option<GgmlDType> {
        match self {
            Self::Gguf(gguf) => gguf.format_of(&name.gguf()),
            Self::Folder(folder) => folder.format_of(&name.hub()),
            Self::Random(_) => Some(RandomModel::FORMAT),
        }
    }

    /// What runs and what it was made of, such as `as-is: q4_1, q8_0`: part of what must be equal
    /// on both nodes.
    pub fn weights_label(&self, format: WeightsFormat) -> String {
        let label = format.label(&self.matrix_formats());
        match self {
            Self::Random(random) => {
                let (layers, of) = (random.shape.n_layers, random.of_layers);
                format!("{label} (random, {layers} of {of} layers)")
            }
            _ => label,
        }
    }

    /// Element format of every matrix, without repetition, sorted by name.
    pub fn matrix_formats(&self) -> Vec<GgmlDType> {
        let mut formats: Vec<GgmlDType> = match self {
            Self::Gguf(gguf) => gguf.matrix_formats().collect(),
            Self::Folder(folder) => folder.matrix_formats().collect(),
            Self::Random(_) => vec![RandomModel::FORMAT],
        };
        formats.sort_by_key(|f| format!("{f:?}"));
        formats.dedup();
        formats
    }
}
