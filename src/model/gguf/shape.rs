//! The shape of a decoder out of GGUF metadata.

use candle_core::Device;

use super::{Gguf, ROPE_DIVISORS};
use crate::model::ModelError;
use crate::model::architecture::Architecture;
use crate::model::shape::{MAX_COUNT, ModelShape, Rope};
use crate::model::tensor_name::TensorName;

/// Base of the rotary angles where a file names none.
const USUAL_ROPE_BASE: f32 = 10_000.0;

/// Metadata of the file's architecture.
struct Keys<'a> {
    gguf: &'a Gguf,
    prefix: &'static str,
}

impl Keys<'_> {
    fn key(&self, suffix: &str) -> String {
        format!("{}.{suffix}", self.prefix)
    }

    fn has(&self, suffix: &str) -> bool {
        self.gguf.has(&self.key(suffix))
    }

    fn count(&self, suffix: &str) -> Result<usize, ModelError> {
        let key = self.key(suffix);
        let value = self.gguf.unsigned(&key)?;
        match (1..=MAX_COUNT).contains(&value) {
            true => Ok(value as usize),
            false => Err(self.gguf.error(format!(
                "metadata {key} is {value}, wanted 1 to {MAX_COUNT}"
            ))),
        }
    }

    fn count_or(&self, suffix: &str, default: usize) -> Result<usize, ModelError> {
        match self.has(suffix) {
            true => self.count(suffix),
            false => Ok(default),
        }
    }

    /// What rotary frequencies are divided by: of the file's own tensor, or the same for all.
    fn rope_divisors(&self, head_dim: usize) -> Result<Option<Vec<f64>>, ModelError> {
        let gguf = self.gguf;
        if gguf.has_tensor(ROPE_DIVISORS) {
            let divisors = (gguf.tensor(ROPE_DIVISORS, &[head_dim / 2])?)
                .dequantize(&Device::Cpu)
                .and_then(|tensor| tensor.to_vec1::<f32>())
                .map_err(|e| gguf.error(format!("tensor {ROPE_DIVISORS}: {e}")))?;
            return Ok(Some(divisors.into_iter().map(f64::from).collect()));
        }
        if !self.has("rope.scaling.type") {
            return Ok(None);
        }
        match gguf.text(&self.key("rope.scaling.type"))? {
            "none" => Ok(None),
            "linear" => {
                let factor = gguf.float(&self.key("rope.scaling.factor"))?;
                Ok(Some(vec![f64::from(factor); head_dim / 2]))
            }
            other => Err(gguf.error(format!(
                "rotary positions scaled by {other} are not supported, these are: none, linear, \
                 and the tensor {ROPE_DIVISORS}"
            ))),
        }
    }
}

/// Reads and checks the shape.
pub(super) fn read(gguf: &Gguf) -> Result<ModelShape, ModelError> {
    let architecture =
        Architecture::of_gguf(gguf.text("general.architecture")?).map_err(|why| gguf.error(why))?;
    let keys = Keys {
        gguf,
        prefix: architecture.gguf_name,
    };
    let hidden = keys.count("embedding_length")?;
    let n_heads = keys.count("attention.head_count")?;
    let head_dim = keys.count_or("attention.key_length", hidden / n_heads)?;
    let value_dim = keys.count_or("attention.value_length", head_dim)?;
    let rope_dim = keys.count_or("rope.dimension_count", head_dim)?;
    if rope_dim != head_dim || value_dim != head_dim {
        return Err(gguf.error(format!(
            "heads of width {head_dim}, values of width {value_dim}, rotary width {rope_dim}: \
             wanted equal ones"
        )));
    }
    let n_layers = keys.count("block_count")?;
    let window = match keys.has("attention.sliding_window") {
        true => Some(keys.count("attention.sliding_window")?),
        false => None,
    };
    let shape = ModelShape {
        architecture,
        n_layers,
        hidden,
        feed_forward: keys.count("feed_forward_length")?,
        n_heads,
        n_kv_heads: keys.count_or("attention.head_count_kv", n_heads)?,
        head_dim,
        vocabulary: gguf.texts("tokenizer.ggml.tokens")?.len(),
        context_tokens: keys.count("context_length")?,
        rope: Rope {
            base: match keys.has("rope.freq_base") {
                true => gguf.float(&keys.key("rope.freq_base"))?,
                false => USUAL_ROPE_BASE,
            },
            pairs: architecture.gguf_rope_pairs,
            divisors: keys.rope_divisors(head_dim)?,
        },
        windows: vec![window; n_layers],
        norm_eps: gguf.float(&keys.key("attention.layer_norm_rms_epsilon"))?,
        is_output_tied: !gguf.has_tensor(&TensorName::Output.gguf()),
    };
    shape.checked().map_err(|why| gguf.error(why))
}
