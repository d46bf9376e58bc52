//! The numbers that describe a Llama-family decoder, read from GGUF metadata and checked.

use serde::{Deserialize, Serialize};

use super::ModelError;
use super::attention::AttentionShape;
use super::gguf::Gguf;
use super::kv_cache::{KvDtype, KvLayout};

/// Architectures that the decoder implements.
pub const ARCHITECTURES: &[&str] = &["llama"];

/// Upper bound for every count in a file: far above any real model, and low enough that no
/// product of three of them overflows.
const MAX_COUNT: u64 = 1 << 20;

/// Most entries of the table of rotary positions, a gigabyte: a context of a million tokens with a
/// head of 256.
const MAX_ROPE_ENTRIES: usize = 1 << 28;

/// Sizes and constants of a decoder.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ModelShape {
    /// Decoder layers.
    pub n_layers: usize,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Width of the feed-forward part.
    pub feed_forward: usize,
    /// Query heads.
    pub n_heads: usize,
    /// K/V heads.
    pub n_kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Entries of the vocabulary.
    pub vocabulary: usize,
    /// The most tokens a sequence may have.
    pub context_tokens: usize,
    /// Base of the rotary angles.
    pub rope_base: f32,
    /// Epsilon of the RMS norms.
    pub norm_eps: f32,
}

impl ModelShape {
    /// Reads and checks the shape of a GGUF file.
    pub fn read(gguf: &Gguf) -> Result<Self, ModelError> {
        let architecture = gguf.text("general.architecture")?;
        if !ARCHITECTURES.contains(&architecture) {
            return Err(gguf.error(format!(
                "architecture {architecture} is not supported, these are: {}",
                ARCHITECTURES.join(", ")
            )));
        }
        let key = |suffix: &str| format!("{architecture}.{suffix}");
        let count = |suffix: &str| {
            let value = gguf.unsigned(&key(suffix))?;
            if value == 0 || value > MAX_COUNT {
                return Err(gguf.error(format!(
                    "metadata {} is {value}, wanted 1 to {MAX_COUNT}",
                    key(suffix)
                )));
            }
            Ok(value as usize)
        };
        let count_or = |suffix: &str, default: usize| match gguf.has(&key(suffix)) {
            true => count(suffix),
            false => Ok(default),
        };
        let hidden = count("embedding_length")?;
        let n_heads = count("attention.head_count")?;
        let n_kv_heads = count_or("attention.head_count_kv", n_heads)?;
        let head_dim = count_or("attention.key_length", hidden / n_heads)?;
        let rope_dim = count_or("rope.dimension_count", head_dim)?;
        if gguf.has(&key("rope.scaling.type")) && gguf.text(&key("rope.scaling.type"))? != "none"
            || gguf.has_tensor("rope_freqs.weight")
        {
            return Err(gguf.error("scaled rotary positions are not supported yet"));
        }
        let vocabulary = gguf.texts("tokenizer.ggml.tokens")?.len();
        let context_tokens = count("context_length")?;
        let rope_base = match gguf.has(&key("rope.freq_base")) {
            true => gguf.float(&key("rope.freq_base"))?,
            false => 10_000.0,
        };
        let norm_eps = gguf.float(&key("attention.layer_norm_rms_epsilon"))?;
        let problem = if !n_heads.is_multiple_of(n_kv_heads) {
            Some(format!(
                "{n_heads} query heads cannot share {n_kv_heads} K/V heads"
            ))
        } else if head_dim == 0 || !head_dim.is_multiple_of(2) || rope_dim != head_dim {
            Some(format!(
                "head width {head_dim} with rotary width {rope_dim}: wanted equal and even"
            ))
        } else if vocabulary == 0 || vocabulary as u64 > MAX_COUNT {
            Some(format!(
                "tokenizer.ggml.tokens has {vocabulary} tokens, wanted 1 to {MAX_COUNT}"
            ))
        } else if context_tokens * head_dim > MAX_ROPE_ENTRIES {
            Some(format!(
                "a context of {context_tokens} tokens with heads of width {head_dim}: wanted no \
                 more than {MAX_ROPE_ENTRIES} of both together"
            ))
        } else if !(rope_base.is_finite() && rope_base > 0.0 && norm_eps.is_finite()) {
            Some(format!(
                "rotary base {rope_base} and norm epsilon {norm_eps}: wanted finite ones, the base \
                 above 0"
            ))
        } else {
            None
        };
        if let Some(problem) = problem {
            return Err(gguf.error(problem));
        }
        Ok(Self {
            n_layers: count("block_count")?,
            hidden,
            feed_forward: count("feed_forward_length")?,
            n_heads,
            n_kv_heads,
            head_dim,
            vocabulary,
            context_tokens,
            rope_base,
            norm_eps,
        })
    }

    /// Head counts and widths for attention.
    pub fn attention(&self) -> AttentionShape {
        AttentionShape {
            n_heads: self.n_heads,
            n_kv_heads: self.n_kv_heads,
            head_dim: self.head_dim,
        }
    }

    /// Weights of all layers' matrices; embedding and head are not among them.
    pub fn layer_weights(&self) -> u64 {
        let (queries, keys) = (
            self.n_heads * self.head_dim,
            self.n_kv_heads * self.head_dim,
        );
        let attention = 2 * (queries + keys) as u64;
        let layer = self.hidden as u64 * (attention + 3 * self.feed_forward as u64);
        self.n_layers as u64 * layer
    }

    /// Layout of a cache for this model.
    pub fn kv_layout(&self, dtype: KvDtype) -> KvLayout {
        KvLayout {
            n_layers: self.n_layers,
            n_kv_heads: self.n_kv_heads,
            head_dim: self.head_dim,
            dtype,
        }
    }
}
