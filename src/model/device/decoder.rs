//! The decoder as candle's tensor operations on a device: what `decoder` is for the processor.
//!
//! K and V stay on the device; where they are needed on the host, each layer is copied there as
//! soon as it exists. Sequences go through it one by one, so none changes another's bits.

use std::borrow::Cow;
use std::ops::Range;
use std::time::Instant;

use anyhow::Context;
use candle_core::quantized::{GgmlDType, QMatMul, QStorage, QTensor};
use candle_core::{Device, Module, Tensor};
use candle_nn::ops::rms_norm;
use candle_nn::rotary_emb::{rope, rope_i};

use super::attention::attend;
use super::memory::{self, DeviceMemory};
use crate::model::ModelError;
use crate::model::architecture::RopePairs;
use crate::model::attention::{Place, RopeTable};
use crate::model::checkpoint::Checkpoint;
use crate::model::kv_cache::KvCache;
use crate::model::shape::ModelShape;
use crate::model::tensor_name::{LayerTensor, TensorName};
use crate::model::weights::WeightsFormat;

struct Layer {
    attention_norm: Tensor,
    /// Q, K and V.
    qkv: [QMatMul; 3],
    qkv_bias: Option<[Tensor; 3]>,
    /// Of query heads and of K heads.
    qk_norm: Option<[Tensor; 2]>,
    attention_out: QMatMul,
    feed_forward_norm: Tensor,
    gate: QMatMul,
    up: QMatMul,
    down: QMatMul,
}

/// Weights of a model on a device, ready to run.
pub struct DeviceDecoder {
    shape: ModelShape,
    device: Device,
    rope: RopeTable,
    embedding: QMatMul,
    layers: Vec<Layer>,
    final_norm: Tensor,
    /// None where the output matrix is the embedding.
    output: Option<QMatMul>,
}

/// Reads weights and puts them on a device.
struct Loader<'a> {
    checkpoint: &'a Checkpoint,
    shape: &'a ModelShape,
    format: WeightsFormat,
    device: &'a Device,
}

impl Loader<'_> {
    fn matrix(&self, name: TensorName) -> Result<QMatMul, ModelError> {
        let tensor = self.checkpoint.matrix(name, self.shape)?;
        self.place(tensor)
            .map_err(|e| self.checkpoint.error(format!("tensor {name:?}: {e}")))
    }

    fn place(&self, tensor: QTensor) -> candle_core::Result<QMatMul> {
        let wide = || tensor.dequantize(&Device::Cpu);
        let tensor = match self.format {
            WeightsFormat::F32 => return Ok(QMatMul::Tensor(wide()?.to_device(self.device)?)),
            WeightsFormat::Q8 if tensor.dtype() != GgmlDType::Q8_0 => {
                QTensor::quantize(&wide()?, GgmlDType::Q8_0)?
            }
            WeightsFormat::Q8 | WeightsFormat::AsIs => tensor,
        };
        let bytes = Cow::Owned(tensor.data()?.into_owned());
        let storage = QStorage::from_data(bytes, self.device, tensor.dtype())?;
        QMatMul::from_qtensor(QTensor::new(storage, tensor.shape())?)
    }

    fn vector(&self, name: TensorName) -> Result<Tensor, ModelError> {
        let values = self.checkpoint.vector(name, self.shape)?;
        Tensor::new(values, self.device)
            .map_err(|e| self.checkpoint.error(format!("tensor {name:?}: {e}")))
    }

    fn layer(&self, i: usize) -> Result<Layer, ModelError> {
        use LayerTensor::*;
        let matrix = |tensor| self.matrix(TensorName::Layer(i, tensor));
        let vector = |tensor| self.vector(TensorName::Layer(i, tensor));
        let architecture = self.shape.architecture;
        let qkv_bias = match architecture.has_qkv_bias {
            true => Some([vector(QueryBias)?, vector(KeyBias)?, vector(ValueBias)?]),
            false => None,
        };
        let qk_norm = match architecture.has_qk_norm {
            true => Some([vector(QueryNorm)?, vector(KeyNorm)?]),
            false => None,
        };
        Ok(Layer {
            attention_norm: vector(AttentionNorm)?,
            qkv: [matrix(Query)?, matrix(Key)?, matrix(Value)?],
            qkv_bias,
            qk_norm,
            attention_out: matrix(AttentionOut)?,
            feed_forward_norm: vector(FeedForwardNorm)?,
            gate: matrix(Gate)?,
            up: matrix(Up)?,
            down: matrix(Down)?,
        })
    }
}

/// Called when K and V of a layer have been computed: the layer, and where and when they were
/// copied to the host, if they were.
pub(in crate::model) type OnLayer<'a> = &'a mut dyn FnMut(usize, Range<usize>, Range<Instant>);

impl DeviceDecoder {
    /// Loads all weights; `progress(done, total)` is called after each layer.
    pub fn load(
        checkpoint: &Checkpoint,
        shape: ModelShape,
        format: WeightsFormat,
        device: &Device,
        progress: &dyn Fn(usize, usize),
    ) -> Result<Self, ModelError> {
        let loader = Loader {
            checkpoint,
            shape: &shape,
            format,
            device,
        };
        let mut layers = Vec::with_capacity(shape.n_layers);
        for i in 0..shape.n_layers {
            layers.push(loader.layer(i)?);
            progress(i + 1, shape.n_layers);
        }
        let output = match shape.is_output_tied {
            true => None,
            false => Some(loader.matrix(TensorName::Output)?),
        };
        let rope = RopeTable::new(&shape.rope, shape.head_dim, shape.context_tokens);
        Ok(Self {
            rope,
            embedding: loader.matrix(TensorName::Embedding)?,
            layers,
            final_norm: loader.vector(TensorName::FinalNorm)?,
            output,
            device: device.clone(),
            shape,
        })
    }

    /// Sizes and constants.
    pub fn shape(&self) -> &ModelShape {
        &self.shape
    }

    /// Bytes of all matrices as loaded.
    pub fn weight_bytes(&self) -> usize {
        let of_layer = |l: &Layer| {
            let others = [&l.attention_out, &l.gate, &l.up, &l.down];
            (l.qkv.iter().chain(others))
                .map(matrix_bytes)
                .sum::<usize>()
        };
        self.layers.iter().map(of_layer).sum::<usize>()
            + matrix_bytes(&self.embedding)
            + self.output.as_ref().map_or(0, matrix_bytes)
    }

    /// Runs a chunk of a prompt from `first` on and returns the hidden state after its last
    /// token, `(hidden)`. The device must hold K and V of all tokens before.
    ///
    /// With `on_layer`, K and V of each layer land in the cache before the layer goes on, and it is
    /// told when they were copied; without, they stay on the device.
    pub fn prefill(
        &self,
        tokens: &[u32],
        first: Place<'_>,
        mut on_layer: Option<OnLayer<'_>>,
    ) -> anyhow::Result<Vec<f32>> {
        let Place { cache, position } = first;
        let positions = position..position + tokens.len();
        let hidden = self.run(tokens, first, &mut |layer, rows| {
            if let Some(on_layer) = &mut on_layer {
                let copied = memory::download(rows, cache, layer, position)?;
                on_layer(layer, positions.clone(), copied);
            }
            Ok(())
        })?;
        cache.on_device().len_tokens = positions.end;
        let last = hidden.narrow(0, tokens.len() - 1, 1)?.copy()?;
        // The copy to the host waits for the device.
        Ok(last.flatten_all()?.to_vec1()?)
    }

    /// Appends one token to each of several sequences and returns the logits after each,
    /// `(vocabulary)`. They go one by one.
    pub fn step(&self, tokens: &[u32], places: &[Place<'_>]) -> anyhow::Result<Vec<Vec<f32>>> {
        let step = |(&token, &place): (&u32, &Place<'_>)| {
            self.stage(place.cache)?;
            let hidden = self.run(&[token], place, &mut |_, _| Ok(()))?;
            place.cache.on_device().len_tokens = place.position + 1;
            self.output(&hidden)
        };
        tokens.iter().zip(places).map(step).collect()
    }

    /// Copies to the device what the cache holds and the device does not; `None` where nothing is
    /// missing.
    pub fn stage(&self, cache: &KvCache) -> anyhow::Result<Option<Range<Instant>>> {
        memory::upload(cache, &self.device)
    }

    /// Logits `(vocabulary)` of a hidden state `(hidden)`.
    pub fn logits(&self, hidden: &[f32]) -> anyhow::Result<Vec<f32>> {
        let hidden = Tensor::from_slice(hidden, (1, hidden.len()), &self.device)?;
        self.output(&hidden)
    }

    fn output(&self, hidden: &Tensor) -> anyhow::Result<Vec<f32>> {
        let output = self.output.as_ref().unwrap_or(&self.embedding);
        let logits = output.forward(&self.norm(hidden, &self.final_norm)?)?;
        Ok(logits.flatten_all()?.to_vec1()?)
    }

    /// Puts neighbouring tokens of a sequence through all layers and gives their hidden states,
    /// `(n, hidden)`. `on_layer` gets each layer's new rows, `(n, n_kv_heads, 2 x head_dim)`.
    fn run(
        &self,
        tokens: &[u32],
        first: Place<'_>,
        on_layer: &mut dyn FnMut(usize, &Tensor) -> anyhow::Result<()>,
    ) -> anyhow::Result<Tensor> {
        let Place { cache, position } = first;
        let memory = DeviceMemory::of(cache, &self.device)?;
        let dtype = memory::dtype(cache.layout().dtype);
        let ids = Tensor::new(tokens, &self.device)?;
        let rotations = self.rotations(position..position + tokens.len())?;
        let mut x = self.embedding.embedding(&ids)?;
        for (i, layer) in self.layers.iter().enumerate() {
            let h = self.norm(&x, &layer.attention_norm)?;
            let [q, k, v] = self.qkv(layer, &h)?;
            let (q, k) = (self.rotate(&q, &rotations)?, self.rotate(&k, &rotations)?);
            let rows = Tensor::cat(&[k, v], 2)?.to_dtype(dtype)?;
            memory.write(i, position, &rows)?;
            on_layer(i, &rows)?;
            let a = attend(self.shape.attention(i), &q, memory.layer(i), position)?;
            x = (x + layer.attention_out.forward(&a)?)?;
            let h = self.norm(&x, &layer.feed_forward_norm)?;
            let h = (layer.gate.forward(&h)?.silu()? * layer.up.forward(&h)?)?;
            x = (x + layer.down.forward(&h)?)?;
        }
        Ok(x)
    }

    /// Q, K and V of hidden states `(n, hidden)`, not yet rotated: `(n, heads, head_dim)` each.
    fn qkv(&self, layer: &Layer, h: &Tensor) -> anyhow::Result<[Tensor; 3]> {
        let (n, dim) = (h.dim(0)?, self.shape.head_dim);
        let mut parts = Vec::with_capacity(3);
        for (i, matrix) in layer.qkv.iter().enumerate() {
            let mut part = matrix.forward(h)?;
            if let Some(bias) = &layer.qkv_bias {
                part = part.broadcast_add(&bias[i])?;
            }
            let heads = part.dim(1)? / dim;
            part = part.reshape((n, heads, dim))?;
            if let Some(norm) = layer.qk_norm.as_ref().and_then(|norms| norms.get(i)) {
                part = self.norm(&part, norm)?;
            }
            parts.push(part);
        }
        let parts: Option<[Tensor; 3]> = parts.try_into().ok();
        parts.context("a layer has Q, K and V")
    }

    fn norm(&self, x: &Tensor, weight: &Tensor) -> candle_core::Result<Tensor> {
        rms_norm(x, weight, self.shape.norm_eps)
    }

    /// Cosines and sines of neighbouring positions, `(n, head_dim / 2)` each.
    fn rotations(&self, positions: Range<usize>) -> candle_core::Result<[Tensor; 2]> {
        let shape = (positions.len(), self.shape.head_dim / 2);
        let (cos, sin) = self.rope.rows(positions);
        let on_device = |values| Tensor::from_vec(values, shape, &self.device);
        Ok([on_device(cos)?, on_device(sin)?])
    }

    /// Turns heads `(n, heads, head_dim)` of neighbouring positions.
    fn rotate(&self, x: &Tensor, [cos, sin]: &[Tensor; 2]) -> candle_core::Result<Tensor> {
        let x = x.transpose(0, 1)?.contiguous()?.unsqueeze(0)?; // (1, heads, n, head_dim)
        let turned = match self.shape.rope.pairs {
            RopePairs::Neighbours => rope_i(&x, cos, sin),
            RopePairs::Halves => rope(&x, cos, sin),
        };
        turned?.squeeze(0)?.transpose(0, 1)?.contiguous()
    }
}

fn matrix_bytes(matrix: &QMatMul) -> usize {
    match matrix {
        QMatMul::QTensor(t) => t.storage_size_in_bytes(),
        QMatMul::Tensor(t) | QMatMul::TensorF16(t) => t.elem_count() * t.dtype().size_in_bytes(),
    }
}
