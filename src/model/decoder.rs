//! The one decoder: tokens and caches in, hidden states and logits out, a call-back per
//! layer and chunk.
//!
//! Matrices are in `weights`; norms, rope, attention and the activation in `kernels` and
//! `attention`. The decoder holds weights and working memory only, so any number of sequences can
//! be alive; one pass runs at a time.

use std::ops::Range;
use std::sync::{Mutex, MutexGuard};
use std::time::Instant;

use anyhow::Context;
use candle_core::{CpuStorage, Storage, Tensor};

use super::ModelError;
use super::attention::{self, Place, QueryKeyNorm, RopeTable, Rows};
use super::checkpoint::Checkpoint;
use super::kernels;
use super::parallel;
use super::shape::ModelShape;
use super::tensor_name::{LayerTensor, TensorName};
use super::weights::{Matrix, Product, WeightsFormat};
use super::workspace::{Input, Workspace};

/// New K and V of a token range of one layer have landed in the cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayerDone {
    /// Layer, counted from 0.
    pub layer: usize,
    /// Prefill chunk, counted from 0.
    pub chunk: usize,
    /// Positions.
    pub tokens: Range<usize>,
    /// When they were copied out of a device's memory; `None` where the processor computes.
    pub staging: Option<Range<Instant>>,
}

#[derive(Debug)]
struct Layer {
    attention_norm: Vec<f32>,
    qkv: Matrix,
    /// Of Q, K and V side by side.
    qkv_bias: Option<Vec<f32>>,
    qk_norm: Option<QueryKeyNorm>,
    attention_out: Matrix,
    feed_forward_norm: Vec<f32>,
    gate_up: Matrix,
    down: Matrix,
}

/// Where weights are loaded from, and as what.
struct Loader<'a> {
    checkpoint: &'a Checkpoint,
    shape: &'a ModelShape,
    format: WeightsFormat,
}

impl Loader<'_> {
    /// Matrices that share their input of `width`, fused into one.
    fn matrix(&self, names: &[TensorName], width: usize) -> Result<Matrix, ModelError> {
        Matrix::load(self.checkpoint, self.shape, self.format, names, width)
    }

    fn vector(&self, name: TensorName) -> Result<Vec<f32>, ModelError> {
        self.checkpoint.vector(name, self.shape)
    }

    fn layer(&self, i: usize) -> Result<Layer, ModelError> {
        use LayerTensor::*;
        let shape = self.shape;
        let name = |tensor| TensorName::Layer(i, tensor);
        let qkv_bias = match shape.architecture.has_qkv_bias {
            true => {
                let parts = [QueryBias, KeyBias, ValueBias].map(|part| self.vector(name(part)));
                let parts = parts.into_iter().collect::<Result<Vec<_>, _>>()?;
                Some(parts.concat())
            }
            false => None,
        };
        let qk_norm = match shape.architecture.has_qk_norm {
            true => Some(QueryKeyNorm {
                query: self.vector(name(QueryNorm))?,
                key: self.vector(name(KeyNorm))?,
                eps: shape.norm_eps,
            }),
            false => None,
        };
        let q_width = shape.n_heads * shape.head_dim;
        Ok(Layer {
            attention_norm: self.vector(name(AttentionNorm))?,
            qkv: self.matrix(&[Query, Key, Value].map(name), shape.hidden)?,
            qkv_bias,
            qk_norm,
            attention_out: self.matrix(&[name(AttentionOut)], q_width)?,
            feed_forward_norm: self.vector(name(FeedForwardNorm))?,
            gate_up: self.matrix(&[Gate, Up].map(name), shape.hidden)?,
            down: self.matrix(&[name(Down)], shape.feed_forward)?,
        })
    }
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
    workspace: Mutex<Workspace>,
}

impl Decoder {
    /// Loads all weights; `progress(done, total)` is called after each layer.
    pub fn load(
        checkpoint: &Checkpoint,
        shape: ModelShape,
        format: WeightsFormat,
        progress: &dyn Fn(usize, usize),
    ) -> Result<Self, ModelError> {
        let loader = Loader {
            checkpoint,
            shape: &shape,
            format,
        };
        let mut layers = Vec::with_capacity(shape.n_layers);
        for i in 0..shape.n_layers {
            layers.push(loader.layer(i)?);
            progress(i + 1, shape.n_layers);
        }
        let hidden = shape.hidden;
        let output = match shape.is_output_tied {
            true => None,
            false => Some(loader.matrix(&[TensorName::Output], hidden)?),
        };
        Ok(Self {
            rope: RopeTable::new(&shape.rope, shape.head_dim, shape.context_tokens),
            embedding: loader.matrix(&[TensorName::Embedding], hidden)?,
            layers,
            final_norm: loader.vector(TensorName::FinalNorm)?,
            output,
            workspace: Mutex::default(),
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

    /// Runs a chunk of a prompt from `first` on and returns the hidden state after its last
    /// token, `(hidden)`. K and V are appended to the cache, which must hold all tokens before.
    ///
    /// `on_layer` is called as soon as a layer's K and V have landed, before the layer goes on.
    pub fn prefill(
        &self,
        tokens: &[u32],
        first: Place<'_>,
        on_layer: &mut dyn FnMut(usize, Range<usize>),
    ) -> anyhow::Result<Vec<f32>> {
        let mut workspace = self.workspace();
        let positions = first.position..first.position + tokens.len();
        self.run(tokens, Rows::Chunk(first), &mut workspace, &mut |layer| {
            on_layer(layer, positions.clone());
        })?;
        let last = (tokens.len() - 1) * self.shape.hidden;
        Ok(workspace.residual[last..].to_vec())
    }

    /// Appends one token to each of several sequences and returns the logits after each,
    /// `(vocabulary)`. A row has the bits that it has in a batch of its own.
    pub fn step(&self, tokens: &[u32], places: &[Place<'_>]) -> anyhow::Result<Vec<Vec<f32>>> {
        let mut workspace = self.workspace();
        self.run(tokens, Rows::Steps(places), &mut workspace, &mut |_| {})?;
        let Workspace {
            residual,
            last,
            product,
            ..
        } = &mut *workspace;
        self.output(residual, last, product)
    }

    /// Logits `(vocabulary)` of a hidden state `(hidden)`.
    pub fn logits(&self, hidden: &[f32]) -> anyhow::Result<Vec<f32>> {
        let Workspace { last, product, .. } = &mut *self.workspace();
        let mut all = self.output(hidden, last, product)?;
        all.pop().context("a hidden state is as wide as the model")
    }

    fn workspace(&self) -> MutexGuard<'_, Workspace> {
        // Whatever a pass left in it is written over by the next.
        (self.workspace.lock()).unwrap_or_else(|e| e.into_inner())
    }

    /// Puts `tokens` through all layers, which leaves their hidden states in the workspace.
    fn run(
        &self,
        tokens: &[u32],
        rows: Rows<'_>,
        workspace: &mut Workspace,
        on_layer: &mut dyn FnMut(usize),
    ) -> anyhow::Result<()> {
        let (n, hidden) = (tokens.len(), self.shape.hidden);
        let apply = match rows {
            Rows::Chunk(_) => Matrix::forward,
            Rows::Steps(_) => Matrix::forward_each,
        };
        let Workspace {
            residual: x,
            q,
            normed,
            attended,
            activated,
            product,
            attention: scratch,
            ..
        } = workspace;
        x.clear();
        self.embedding.rows(tokens, hidden, x)?;
        q.resize(n * self.shape.n_heads * self.shape.head_dim, 0.0);
        for (i, layer) in self.layers.iter().enumerate() {
            let shape = self.shape.attention(i);
            let width = layer.qkv.input_width;
            let h = normed.write(n, width, |out| {
                self.norm(x, &layer.attention_norm, out, width);
                Ok(())
            })?;
            let qkv = apply(&layer.qkv, h, product)?;
            if layer.qkv_bias.is_some() || layer.qk_norm.is_some() {
                attention::adjust(
                    shape,
                    layer.qkv_bias.as_deref(),
                    layer.qk_norm.as_ref(),
                    qkv,
                );
            }
            attention::rotate_and_store(shape, &self.rope, qkv, rows, i, q, scratch)?;
            on_layer(i);
            let width = layer.attention_out.input_width;
            let a = attended.write(n, width, |out| {
                attention::attend(shape, q, rows, i, out, width, scratch)?;
                Ok(())
            })?;
            add(x, hidden, apply(&layer.attention_out, a, product)?);
            let width = layer.gate_up.input_width;
            let h = normed.write(n, width, |out| {
                self.norm(x, &layer.feed_forward_norm, out, width);
                Ok(())
            })?;
            let gate_up = apply(&layer.gate_up, h, product)?;
            let width = layer.down.input_width;
            let h = activated.write(n, width, |out| {
                let in_width = 2 * self.shape.feed_forward;
                map_rows(gate_up, in_width, out, width, kernels::swiglu_row);
                Ok(())
            })?;
            add(x, hidden, apply(&layer.down, h, product)?);
        }
        Ok(())
    }

    /// Logits of hidden states `(n, hidden)`, a vector each; rows do not change each other's bits.
    fn output(
        &self,
        hidden: &[f32],
        input: &mut Input,
        product: &mut Product,
    ) -> anyhow::Result<Vec<Vec<f32>>> {
        let output = self.output.as_ref().unwrap_or(&self.embedding);
        let width = output.input_width;
        let h = input.write(hidden.len() / self.shape.hidden, width, |out| {
            self.norm(hidden, &self.final_norm, out, width);
            Ok(())
        })?;
        let logits = output.forward_each(h, product)?;
        let each = logits.chunks(self.shape.vocabulary);
        Ok(each.map(<[f32]>::to_vec).collect())
    }

    /// RMS norm of the rows of `x` `(n, hidden)` into `(n, width)`, zeros behind `hidden`.
    fn norm(&self, x: &[f32], weight: &[f32], out: &mut [f32], width: usize) {
        map_rows(x, self.shape.hidden, out, width, |row, out| {
            kernels::rms_norm_row(row, weight, self.shape.norm_eps, out);
        });
    }
}

/// Applies `f(row, out_row)` to every row of `x`.
fn map_rows(
    x: &[f32],
    in_width: usize,
    out: &mut [f32],
    width: usize,
    f: impl Fn(&[f32], &mut [f32]) + Sync,
) {
    parallel::for_rows(out, width, |rows, out| {
        for (row, out) in rows.zip(out.chunks_mut(width)) {
            f(&x[row * in_width..][..in_width], out);
        }
    });
}

/// Adds a matrix's result `(n, width)` to the residual stream.
fn add(residual: &mut [f32], width: usize, x: &[f32]) {
    parallel::for_rows(residual, width, |rows, sum| {
        kernels::add(sum, &x[rows.start * width..rows.end * width]);
    });
}

/// The elements of a contiguous f32 tensor on the CPU.
pub(super) fn with_slice<R>(
    tensor: &Tensor,
    read: impl FnOnce(&[f32]) -> R,
) -> candle_core::Result<R> {
    let (storage, layout) = tensor.storage_and_layout();
    let Storage::Cpu(CpuStorage::F32(data)) = &*storage else {
        candle_core::bail!("expected an f32 tensor on the CPU, got {tensor:?}")
    };
    let Some((start, end)) = layout.contiguous_offsets() else {
        candle_core::bail!("expected a contiguous tensor, got {layout:?}")
    };
    Ok(read(&data[start..end]))
}
