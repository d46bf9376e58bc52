//! A model as the hub keeps it: a folder with `config.json` and safetensors files, whole or in
//! shards. The tokenizer's files in it are the tokenizer's to read.

mod config;

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};

use candle_core::Device;
use candle_core::quantized::{GgmlDType, QStorage, QTensor};
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, Metadata, TensorInfo};

use super::ModelError;
use super::mapped::MappedFile;
use super::shape::ModelShape;
use super::source;
use super::tensor_name::TensorName;
use crate::text_file::{self, MAX_CONFIGURATION_BYTES};

/// What describes the decoder.
pub const CONFIG_FILE: &str = "config.json";

/// Largest header of a weight file, in bytes: those of the largest published shards have about a
/// hundred thousand.
const MAX_HEADER_BYTES: u64 = 8 << 20;

/// Most tensors of all files together: far above any real model that runs here.
const MAX_TENSORS: usize = 1 << 17;

/// Tables that old checkpoints keep, and every implementation computes anew.
const COMPUTED_ANEW: &str = ".rotary_emb.inv_freq";

/// A file of weights.
struct Shard {
    file: MappedFile,
    metadata: Metadata,
    /// Where the tensors' bytes begin.
    data_start: usize,
}

/// An open folder.
pub struct ModelFolder {
    path: PathBuf,
    shape: ModelShape,
    shards: Vec<Shard>,
    /// The shard that holds each tensor.
    places: HashMap<String, usize>,
}

/// The shape that the text of a `config.json` describes, without the weights beside it.
pub fn shape_of_config(text: &str) -> Result<ModelShape, String> {
    config::shape(text, true)
}

impl ModelFolder {
    /// Reads the configuration and the headers of all weight files.
    pub fn open(path: &Path) -> Result<Self, ModelError> {
        let refuse = |why: String| ModelError::File {
            path: path.to_path_buf(),
            why,
        };
        let config = text_file::read(&path.join(CONFIG_FILE), MAX_CONFIGURATION_BYTES)
            .map_err(|e| refuse(format!("{CONFIG_FILE}: {e}")))?;
        let mut shards = Vec::new();
        let mut places = HashMap::new();
        for name in source::weight_files(path).map_err(|e| refuse(e.to_string()))? {
            let shard = Shard::open(&path.join(&name))
                .map_err(|why| refuse(format!("{name}: {why}: the file is damaged")))?;
            for tensor in shard.metadata.offset_keys() {
                if places.insert(tensor.clone(), shards.len()).is_some() {
                    return Err(refuse(format!("tensor {tensor} stands in two files")));
                }
            }
            shards.push(shard);
            if places.len() > MAX_TENSORS {
                return Err(refuse(format!("more than {MAX_TENSORS} tensors")));
            }
        }
        let has_output = places.contains_key(&TensorName::Output.hub());
        let shape = config::shape(&config, has_output)
            .map_err(|why| refuse(format!("{CONFIG_FILE}: {why}")))?;
        Ok(Self {
            path: path.to_path_buf(),
            shape,
            shards,
            places,
        })
    }

    /// Where the folder is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// An error about this folder.
    pub fn error(&self, why: impl Into<String>) -> ModelError {
        ModelError::File {
            path: self.path.clone(),
            why: why.into(),
        }
    }

    /// Sizes and constants of the decoder.
    pub fn shape(&self) -> &ModelShape {
        &self.shape
    }

    /// A tensor that a decoder of this shape has no use for, if there is one.
    pub fn unknown_tensor(&self, known: &[TensorName]) -> Option<&str> {
        let mut known: HashSet<String> = known.iter().map(|name| name.hub()).collect();
        // A tied output may stand in the file nonetheless.
        known.insert(TensorName::Output.hub());
        let mut names = self.places.keys().map(String::as_str);
        names.find(|name| !known.contains(*name) && !name.ends_with(COMPUTED_ANEW))
    }

    /// Element format of every matrix that can be read.
    pub fn matrix_formats(&self) -> impl Iterator<Item = GgmlDType> {
        let infos = self.places.keys().filter_map(|name| self.info(name));
        let matrices = infos.filter(|info| info.shape.len() == 2);
        matrices.filter_map(|info| element_format(info.dtype))
    }

    /// Element format of a tensor, where it can be read.
    pub fn format_of(&self, name: &str) -> Option<GgmlDType> {
        element_format(self.info(name)?.dtype)
    }

    fn info(&self, name: &str) -> Option<&TensorInfo> {
        self.shards[*self.places.get(name)?].metadata.info(name)
    }

    /// A tensor of exactly the given shape.
    pub fn tensor(&self, name: &str, shape: &[usize]) -> Result<QTensor, ModelError> {
        let place = self.places.get(name).map(|shard| &self.shards[*shard]);
        let Some((shard, info)) = place.and_then(|s| Some((s, s.metadata.info(name)?))) else {
            return Err(self.error(format!("no tensor {name}")));
        };
        if info.shape != shape {
            return Err(self.error(format!(
                "tensor {name} has shape {:?}, {CONFIG_FILE} asks for {shape:?}",
                info.shape
            )));
        }
        let Some(format) = element_format(info.dtype) else {
            return Err(self.error(format!(
                "tensor {name} is of {:?}, wanted F32, F16 or BF16: quantised models run from GGUF \
                 files",
                info.dtype
            )));
        };
        // The offsets were checked against the file's size when it was opened.
        let (start, end) = info.data_offsets;
        let bytes = &shard.file.bytes()[shard.data_start + start..shard.data_start + end];
        // Candle wants elements aligned, which a file need not have them; what is allocated is.
        let bytes = match bytes.as_ptr().align_offset(size_of::<f32>()) {
            0 => Cow::Borrowed(bytes),
            _ => Cow::Owned(bytes.to_vec()),
        };
        QStorage::from_data(bytes, &Device::Cpu, format)
            .and_then(|storage| QTensor::new(storage, shape))
            .map_err(|e| self.error(format!("tensor {name}: {e}")))
    }
}

impl Shard {
    fn open(path: &Path) -> Result<Self, String> {
        let file = MappedFile::open(path).map_err(|e| e.to_string())?;
        let header = file
            .bytes()
            .first_chunk()
            .map(|bytes| u64::from_le_bytes(*bytes));
        if header.is_some_and(|bytes| bytes > MAX_HEADER_BYTES) {
            return Err(format!("its header has more than {MAX_HEADER_BYTES} bytes"));
        }
        // Checks that tensors fill the file to its last byte without overlapping.
        let (header_bytes, metadata) =
            SafeTensors::read_metadata(file.bytes()).map_err(|e| e.to_string())?;
        Ok(Self {
            file,
            metadata,
            data_start: size_of::<u64>() + header_bytes,
        })
    }
}

/// The same elements in candle's words for quantised tensors.
fn element_format(dtype: Dtype) -> Option<GgmlDType> {
    match dtype {
        Dtype::F32 => Some(GgmlDType::F32),
        Dtype::F16 => Some(GgmlDType::F16),
        Dtype::BF16 => Some(GgmlDType::BF16),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A folder with a model of no layers' worth: what is read before the shape is asked for.
    fn folder(header: &str, data: &[u8]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, content: &[u8]| {
            std::fs::write(folder.path().join(name), content).unwrap();
        };
        let config = r#"{"architectures": ["LlamaForCausalLM"], "num_hidden_layers": 1,
            "hidden_size": 2, "intermediate_size": 2, "num_attention_heads": 1, "vocab_size": 3,
            "max_position_embeddings": 8}"#;
        write(CONFIG_FILE, config.as_bytes());
        write("tokenizer.json", b"{}");
        let length = (header.len() as u64).to_le_bytes();
        write(
            "model.safetensors",
            &[&length, header.as_bytes(), data].concat(),
        );
        folder
    }

    #[test]
    fn elements_at_an_odd_place_are_read() {
        let values = [1.5f32, -2.0, 0.25, 8.0, 3.0, -0.5];
        let data: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        let header =
            r#"{"model.embed_tokens.weight":{"dtype":"F32","shape":[3,2],"data_offsets":[0,24]}}"#;
        for padding in 0..8 {
            let folder = folder(&format!("{header}{}", " ".repeat(padding)), &data);
            let model = ModelFolder::open(folder.path()).unwrap();
            let tensor = model.tensor("model.embed_tokens.weight", &[3, 2]).unwrap();
            let read = tensor.dequantize(&Device::Cpu).unwrap();
            let read = read.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            assert_eq!(read, values, "{padding} spaces behind the header");
        }
    }

    #[test]
    fn a_file_that_is_cut_short_or_has_another_form_is_refused() {
        let header = r#"{"a":{"dtype":"I32","shape":[1],"data_offsets":[0,4]}}"#;
        let refused = |header: &str, data: &[u8]| {
            let folder = folder(header, data);
            match ModelFolder::open(folder.path()) {
                Ok(model) => model.tensor("a", &[1]).unwrap_err().to_string(),
                Err(error) => error.to_string(),
            }
        };
        assert!(refused(header, &[0; 3]).contains("the file is damaged"));
        assert!(refused(header, &[0; 4]).contains("is of I32, wanted F32, F16 or BF16"));
        assert!(refused("[]", &[]).contains("the file is damaged"));
        let long = " ".repeat(MAX_HEADER_BYTES as usize + 1);
        assert!(refused(&long, &[]).contains("its header has more than"));
    }
}
