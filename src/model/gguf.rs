//! A GGUF file opened for reading: typed metadata, tensors with checked shapes.
//!
//! The container format is candle's; what is added here is that the header is looked through
//! before candle trusts it, every answer is checked, and every refusal says what was found and what
//! was wanted.

mod header;
mod shape;

use std::collections::HashSet;
use std::io::Cursor;
use std::path::{Path, PathBuf};

use candle_core::Device;
use candle_core::quantized::gguf_file::{Content, TensorInfo, Value};
use candle_core::quantized::{GgmlDType, QTensor};

use super::ModelError;
use super::mapped::MappedFile;
use super::shape::ModelShape;
use super::tensor_name::TensorName;

/// What each rotary frequency is divided by.
const ROPE_DIVISORS: &str = "rope_freqs.weight";

/// An open GGUF file.
pub struct Gguf {
    path: PathBuf,
    content: Content,
    file: MappedFile,
}

impl Gguf {
    /// Reads the header and checks that every tensor lies inside the file, and all of them side by
    /// side.
    pub fn open(path: &Path) -> Result<Self, ModelError> {
        let unreadable = |why: String| ModelError::File {
            path: path.to_path_buf(),
            why,
        };
        let damaged = |why: String| {
            unreadable(format!(
                "{why}: the file is truncated, damaged, or of a format that this build does not know"
            ))
        };
        let file = MappedFile::open(path).map_err(|e| unreadable(e.to_string()))?;
        let file_bytes = file.bytes().len() as u64;
        header::check(Cursor::new(file.bytes()), file_bytes).map_err(damaged)?;
        let content =
            Content::read(&mut Cursor::new(file.bytes())).map_err(|e| damaged(e.to_string()))?;
        let mut tensor_bytes = 0u64;
        for (name, info) in &content.tensor_infos {
            // candle makes references out of an empty buffer's address.
            if info.shape.dims().contains(&0) {
                return Err(unreadable(format!(
                    "tensor {name} of shape {:?} is empty, wanted 1 or more in each dimension: the \
                     file is damaged, fetch it again",
                    info.shape.dims()
                )));
            }
            let bytes = bytes_of(info);
            let end = bytes.and_then(|bytes| {
                (bytes.checked_add(info.offset)?).checked_add(content.tensor_data_offset)
            });
            if end.is_none_or(|end| end > file_bytes) {
                return Err(unreadable(format!(
                    "tensor {name} of shape {:?} ends behind the end of the file ({file_bytes} \
                     bytes): the file is truncated or damaged, fetch it again",
                    info.shape.dims()
                )));
            }
            tensor_bytes = tensor_bytes.saturating_add(bytes.unwrap_or(0));
        }
        // Else a small file could ask for any amount of memory.
        if tensor_bytes > file_bytes {
            return Err(unreadable(format!(
                "its tensors have {tensor_bytes} bytes together, the file has {file_bytes}: they \
                 overlap, the file is damaged, fetch it again"
            )));
        }
        Ok(Self {
            path: path.to_path_buf(),
            content,
            file,
        })
    }

    /// Where the file is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// An error about this file.
    pub fn error(&self, why: impl Into<String>) -> ModelError {
        ModelError::File {
            path: self.path.clone(),
            why: why.into(),
        }
    }

    fn value(&self, key: &str) -> Result<&Value, ModelError> {
        (self.content.metadata.get(key)).ok_or_else(|| self.error(format!("no metadata {key}")))
    }

    /// Whether the metadata has `key`.
    pub fn has(&self, key: &str) -> bool {
        self.content.metadata.contains_key(key)
    }

    /// A text.
    pub fn text(&self, key: &str) -> Result<&str, ModelError> {
        match self.value(key)? {
            Value::String(text) => Ok(text),
            other => Err(self.error(format!(
                "metadata {key} is {:?}, wanted text",
                other.value_type()
            ))),
        }
    }

    /// A non-negative integer.
    pub fn unsigned(&self, key: &str) -> Result<u64, ModelError> {
        let signed = |v: i64| u64::try_from(v).ok();
        let number = match self.value(key)? {
            Value::U8(v) => Some(u64::from(*v)),
            Value::U16(v) => Some(u64::from(*v)),
            Value::U32(v) => Some(u64::from(*v)),
            Value::U64(v) => Some(*v),
            Value::I8(v) => signed(i64::from(*v)),
            Value::I16(v) => signed(i64::from(*v)),
            Value::I32(v) => signed(i64::from(*v)),
            Value::I64(v) => signed(*v),
            _ => None,
        };
        number.ok_or_else(|| self.error(format!("metadata {key} is not a count")))
    }

    /// A float.
    pub fn float(&self, key: &str) -> Result<f32, ModelError> {
        match self.value(key)? {
            Value::F32(v) => Ok(*v),
            Value::F64(v) => Ok(*v as f32),
            _ => Err(self.error(format!("metadata {key} is not a float"))),
        }
    }

    /// A flag; absent means `default`.
    pub fn flag(&self, key: &str, default: bool) -> Result<bool, ModelError> {
        match self.content.metadata.get(key) {
            None => Ok(default),
            Some(Value::Bool(v)) => Ok(*v),
            Some(_) => Err(self.error(format!("metadata {key} is not true or false"))),
        }
    }

    /// A list of texts.
    pub fn texts(&self, key: &str) -> Result<Vec<&str>, ModelError> {
        let Value::Array(values) = self.value(key)? else {
            return Err(self.error(format!("metadata {key} is not a list")));
        };
        (values.iter())
            .map(|v| match v {
                Value::String(text) => Ok(text.as_str()),
                _ => Err(self.error(format!("metadata {key} holds something other than text"))),
            })
            .collect()
    }

    /// A list of small integers.
    pub fn integers(&self, key: &str) -> Result<Vec<i64>, ModelError> {
        let Value::Array(values) = self.value(key)? else {
            return Err(self.error(format!("metadata {key} is not a list")));
        };
        (values.iter())
            .map(|v| match v {
                Value::I32(v) => Ok(i64::from(*v)),
                Value::U32(v) => Ok(i64::from(*v)),
                Value::U8(v) => Ok(i64::from(*v)),
                _ => Err(self.error(format!(
                    "metadata {key} holds something other than integers"
                ))),
            })
            .collect()
    }

    /// A list of floats.
    pub fn floats(&self, key: &str) -> Result<Vec<f32>, ModelError> {
        let Value::Array(values) = self.value(key)? else {
            return Err(self.error(format!("metadata {key} is not a list")));
        };
        (values.iter())
            .map(|v| match v {
                Value::F32(v) => Ok(*v),
                _ => Err(self.error(format!("metadata {key} holds something other than floats"))),
            })
            .collect()
    }

    /// Whether the file holds a tensor of that name.
    pub fn has_tensor(&self, name: &str) -> bool {
        self.content.tensor_infos.contains_key(name)
    }

    /// Sizes and constants of the decoder in the file.
    pub fn shape(&self) -> Result<ModelShape, ModelError> {
        shape::read(self)
    }

    /// A tensor that a decoder of this shape has no use for, if there is one.
    pub fn unknown_tensor(&self, known: &[TensorName]) -> Option<&str> {
        let known: HashSet<String> = known.iter().map(|name| name.gguf()).collect();
        let mut names = self.content.tensor_infos.keys();
        names
            .find(|name| !known.contains(*name) && *name != ROPE_DIVISORS)
            .map(String::as_str)
    }

    /// Element format of every matrix in the file.
    pub fn matrix_formats(&self) -> impl Iterator<Item = GgmlDType> {
        let matrices = (self.content.tensor_infos.values()).filter(|info| info.shape.rank() == 2);
        matrices.map(|info| info.ggml_dtype)
    }

    /// Element format of a tensor.
    pub fn format_of(&self, name: &str) -> Option<GgmlDType> {
        (self.content.tensor_infos.get(name)).map(|info| info.ggml_dtype)
    }

    /// A tensor of exactly the given shape.
    pub fn tensor(&self, name: &str, shape: &[usize]) -> Result<QTensor, ModelError> {
        let Some(info) = self.content.tensor_infos.get(name) else {
            return Err(self.error(format!("no tensor {name}")));
        };
        if info.shape.dims() != shape {
            return Err(self.error(format!(
                "tensor {name} has shape {:?}, its metadata ask for {shape:?}",
                info.shape.dims()
            )));
        }
        let mut reader = Cursor::new(self.file.bytes());
        let read = (self.content).tensor(&mut reader, name, &Device::Cpu);
        read.map_err(|e| self.error(format!("tensor {name}: {e}")))
    }
}

/// Size of a tensor in the file; `None` where its shape makes no whole blocks or overflows.
fn bytes_of(info: &TensorInfo) -> Option<u64> {
    let block_size = info.ggml_dtype.block_size() as u64;
    let mut dimensions = info.shape.dims().iter();
    let elements = dimensions.try_fold(1u64, |n, &d| n.checked_mul(d as u64))?;
    let blocks = elements
        .is_multiple_of(block_size)
        .then_some(elements / block_size)?;
    blocks.checked_mul(info.ggml_dtype.type_size() as u64)
}
