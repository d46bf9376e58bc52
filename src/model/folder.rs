//! A model as the hub keeps it: a folder with `config.json` and safetensors files, whole or in
//! shards. The tokenizer's files in it are the tokenizer's to read.

mod config;

use std::borrow::Cow;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::path::{Path, PathBuf};

use candle_core::Device;
use candle_core::quantized::{GgmlDType, QStorage, QTensor};
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, Metadata};
use serde::Deserialize;

use super::ModelError;
use super::mapped::MappedFile;
use super::shape::ModelShape;
use super::tensor_name::TensorName;
use crate::text_file::{self, MAX_CONFIGURATION_BYTES};

/// What describes the decoder.
pub const CONFIG_FILE: &str = "config.json";

/// All weights in one file.
const WEIGHTS_FILE: &str = "model.safetensors";

/// Which weight is in which of several files.
const INDEX_FILE: &str = "model.safetensors.index.json";

/// Most bytes of an index: that of Llama 3.1 405B has 0.1 MB.
const MAX_INDEX_BYTES: u64 = 16 << 20;

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

/// The part of an index that matters here.
#[derive(Deserialize)]
struct Index {
    weight_map: HashMap<String, String>,
}

/// The shape that the text of a `config.json` describes, without the weights beside it.
pub fn shape_of_config(text: &str) -> Result<ModelShape, String> {
    config::shape(text, true)
}

/// Names of a folder's weight files, from its index where there is one. They are bare names.
pub fn weight_files(folder: &Path) -> Result<BTreeSet<String>, String> {
    let index = folder.join(INDEX_FILE);
    if !index.exists() {
        return match folder.join(WEIGHTS_FILE).exists() {
            true => Ok(BTreeSet::from([WEIGHTS_FILE.to_owned()])),
            false => Err(format!(
                "no {WEIGHTS_FILE} and no {INDEX_FILE}: wanted a folder with the weights as \
                 safetensors"
            )),
        };
    }
    let of_index = |why: String| format!("{INDEX_FILE}: {why}");
    let text = text_file::read(&index, MAX_INDEX_BYTES).map_err(|e| of_index(e.to_string()))?;
    files_of_index(&text).map_err(of_index)
}

/// Names of the files in the text of an index. They are bare names.
pub fn files_of_index(text: &str) -> Result<BTreeSet<String>, String> {
    let index: Index = serde_json::from_str(text).map_err(|e| e.to_string())?;
    let names: BTreeSet<String> = index.weight_map.into_values().collect();
    let is_bare = |name: &String| Path::new(name).file_name().is_some_and(|n| n == &**name);
    match names.iter().find(|name| !is_bare(name)) {
        Some(name) => Err(format!("{name:?} is no name of a file in the same folder")),
        None if names.is_empty() => Err("it names no files".into()),
        None => Ok(names),
    }
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
        for name in weight_files(path).map_err(refuse)? {
            let shard = Shard::open(&path.join(&name))
                .map_err(|why| refuse(format!("{name}: {why}: fetch it again")))?;
            for tensor in shard.metadata.offset_keys() {
                if places.insert(tensor.clone(), shards.len()).is_some() {
                    return Err(refuse(format!("tensor {tensor} stands in two files")));
                }
            }
            shards.push(shard);
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

    /// Element format and number of elements of every matrix.
    pub fn matrices(&self) -> impl Iterator<Item = (GgmlDType, usize)> {
        let tensors = self.places.iter().filter_map(|(name, shard)| {
            let info = self.shards[*shard].metadata.info(name)?;
            Some((element_format(info.dtype)?, &info.shape))
        });
        let matrices = tensors.filter(|(_, shape)| shape.len() == 2);
        matrices.map(|(format, shape)| (format, shape.iter().product()))
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
        QStorage::from_data(Cow::Borrowed(bytes), &Device::Cpu, format)
            .and_then(|storage| QTensor::new(storage, shape))
            .map_err(|e| self.error(format!("tensor {name}: {e}")))
    }
}

impl Shard {
    fn open(path: &Path) -> Result<Self, String> {
        let file = MappedFile::open(path).map_err(|e| e.to_string())?;
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

    #[test]
    fn an_index_names_bare_files_alone() {
        let files = |text: &str| files_of_index(&format!(r#"{{"weight_map": {{{text}}}}}"#));
        let both = files(r#""a": "x.safetensors", "b": "y.safetensors", "c": "x.safetensors""#);
        assert_eq!(both.unwrap().len(), 2);
        for bad in ["../x", "/x", "a/b", "..", ""] {
            let error = files(&format!(r#""a": "{bad}""#)).unwrap_err();
            assert!(error.contains("no name of a file"), "{error}");
        }
        assert!(files("").unwrap_err().contains("names no files"));
        assert!(files_of_index("[]").is_err());
    }
}
