//! The Llama-family decoder: tokens and a cache in, hidden states and logits out, a call-back per layer and chunk.
//!
//! Matrices run on candle; norms, rope, attention and the activation are in `kernels` and
//! `attention`. The decoder holds weights only, so any number of sequences can be alive.

use std::ops::Range;

use candle_core::{Device, Tensor};

use super::ModelError;
use super::attention::{self, RopeTable, with_slice};
use super::gguf::Gguf;
use super::kernels;
use super::kv_cache::KvCache;
use super::parallel;
use super::shape::ModelShape;
use super::weights::{Matrix, WeightsFormat};

/// New K and V of a token range of one layer have landed in the cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayerDone {
    /// Layer, counted from 0.
    pub layer: usize,
    /// Prefill chunk, counted from 0.
    pub chunk: usize,
    /// Positions.
    pub tokens: Range<usize>,
}

#[derive(Debug)]
struct Layer {
    attention_norm: Vec<f32>,
    qkv: Matrix,
    attention_out: Matrix,
    feed_forward_norm: Vec<f32>,
    gate_up: Matrix,
    down: Matrix,
}

/// Weights of a model, ready to run.
#[derive(Debug)]
pub struct Decoder {
    shape: ModelShape,
    rope: RopeTable,
    embedding: Matrix,
    layers: Vec<Layer>,
    final_norm: Vec<f32>,
    /// None where the output matrix is the embedding.
    output: Option<Matrix>,
}

impl Decoder {
    /// Loads all weights; `progress(done, total)` is called after each layer.
    pub fn load(
        gguf: &mut Gguf,
        shape: ModelShape,
        format: WeightsFormat,
        progress: &dyn Fn(usize, usize),
    ) -> Result<Self, ModelError> {
        let (hidden, inner) = (shape.hidden, shape.feed_forward);
        let q_rows = shape.n_heads * shape.head_dim;
        let kv_rows = shape.n_kv_heads * shape.head_dim;
        let mut layers = Vec::with_capacity(shape.n_layers);
        for i in 0..shape.n_layers {
            let name = |part: &str| format!("blk.{i}.{part}.weight");
            for unsupported in ["attn_q.bias", "attn_q_norm.weight"] {
                let tensor = format!("blk.{i}.{unsupported}");
                if gguf.has_tensor(&tensor) {
                    return Err(gguf.error(format!("tensor {tensor} is not supported yet")));
                }
            }
            layers.push(Layer {
                attention_norm: gguf.vector(&name("attn_norm"), hidden)?,
                qkv: Matrix::load(
                    gguf,
                    format,
                    &[
                        (name("attn_q"), q_rows),
                        (name("attn_k"), kv_rows),
                        (name("attn_v"), kv_rows),
                    ],
                    hidden,
                )?,
                attention_out: Matrix::load(
                    gguf,
                    format,
                    &[(name("attn_output"), hidden)],
                    q_rows,
                )?,
                feed_forward_norm: gguf.vector(&name("ffn_norm"), hidden)?,
                gate_up: Matrix::load(
                    gguf,
                    format,
                    &[(name("ffn_gate"), inner), (name("ffn_up"), inner)],
                    hidden,
                )?,
                down: Matrix::load(gguf, format, &[(name("ffn_down"), hidden)], inner)?,
            });
            progress(i + 1, shape.n_layers);
        }
        let vocabulary = |name: &str| [(name.to_string(), shape.vocabulary)];
        let output = match gguf.has_tensor("output.weight") {
            true => Some(Matrix::load(
                gguf,
                format,
                &vocabulary("output.weight"),
                hidden,
            )?),
            false => None,
        };
        Ok(Self {
            rope: RopeTable::new(shape.rope_base, shape.head_dim, shape.context_tokens),
            embedding: Matrix::load(gguf, format, &vocabulary("token_embd.weight"), hidden)?,
            layers,
            final_norm: gguf.vector("output_norm.weight", hidden)?,
            output,
            shape,
        })
    }

    /// Sizes and constants.
    pub fn shape(&self) -> &ModelShape {
        &self.shape
    }

    /// Bytes of all matrices as loaded, without candle's packed copies.
    pub fn weight_bytes(&self) -> usize {
        let layers = self
            .layers
            .iter()
            .flat_map(|l| [&l.qkv, &l.attention_out, &l.gate_up, &l.down].map(Matrix::bytes));
        layers.sum::<usize>()
            + self.embedding.bytes()
            + self.output.as_ref().map_or(0, Matrix::bytes)
    }

    /// Runs `tokens` at positions `start..` and returns the hidden state after the last of them,
    /// `(1, hidden)`. Their K and V are appended to the cache, which must hold `start` tokens.
    ///
    /// `on_layer` is called as soon as a layer's K and V have landed, before the layer goes on.
    pub fn forward(
        &self,
        tokens: &[u32],
        start: usize,
        cache: &KvCache,
        on_layer: &mut dyn FnMut(usize, Range<usize>),
    ) -> anyhow::Result<Tensor> {
        let shape = self.shape.attention();
        let mut x = self.embedding.rows(tokens, self.shape.hidden)?;
        for (i, layer) in self.layers.iter().enumerate() {
            let h = self.norm(&x, &layer.attention_norm, layer.qkv.input_width)?;
            let qkv = layer.qkv.forward(&h)?;
            let q = attention::rope_and_store(shape, &self.rope, &qkv, cache, i, start)?;
            on_layer(i, start..start + tokens.len());
            let width = layer.attention_out.input_width;
            let a = attention::attend(shape, &q, cache, i, start, width)?;
            x = (x + layer.attention_out.forward(&a)?)?;
            let h = self.norm(&x, &layer.feed_forward_norm, layer.gate_up.input_width)?;
            let gate_up = layer.gate_up.forward(&h)?;
            let h = swiglu(&gate_up, layer.down.input_width)?;
            x = (x + layer.down.forward(&h)?)?;
        }
        Ok(x.narrow(0, tokens.len() - 1, 1)?.contiguous()?)
    }

    /// Logits `(vocabulary)` of a hidden state `(1, hidden)`.
    pub fn logits(&self, last: &Tensor) -> anyhow::Result<Vec<f32>> {
        let output = self.output.as_ref().unwrap_or(&self.embedding);
        let h = self.norm(last, &self.final_norm, output.input_width)?;
        Ok(output.forward(&h)?.flatten_all()?.to_vec1()?)
    }

    /// RMS norm of the rows of `x` `(n, hidden)` into `(n, width)`, zeros behind `hidden`.
    fn norm(&self, x: &Tensor, weight: &[f32], width: usize) -> candle_core::Result<Tensor> {
        let hidden = self.shape.hidden;
        map_rows(x, width, |row, out| {
            kernels::rms_norm_row(&row[..hidden], weight, self.shape.norm_eps, out);
        })
    }
}

/// SwiGLU of the rows of `gate_up` `(n, 2 x inner)` into `(n, width)`, zeros behind `inner`.
fn swiglu(gate_up: &Tensor, width: usize) -> candle_core::Result<Tensor> {
    map_rows(gate_up, width, kernels::swiglu_row)
}

/// Applies `f(row, out_row)` to every row of `x`, giving `(n, width)`.
fn map_rows(
    x: &Tensor,
    width: usize,
    f: impl Fn(&[f32], &mut [f32]) + Sync,
) -> candle_core::Result<Tensor> {
    let (n, in_width) = x.dims2()?;
    let mut out = vec![0f32; n * width];
    with_slice(x, |x| {
        parallel::for_rows(&mut out, width, |rows, out| {
            for (row, out) in rows.zip(out.chunks_mut(width)) {
                f(&x[row * in_width..][..in_width], out);
            }
        });
    })?;
    Tensor::from_vec(out, (n, width), &Device::Cpu)
}
