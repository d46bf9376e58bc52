//! The weights that a decoder consists of: their names in files of either kind, and their shapes.

use super::shape::ModelShape;

/// A weight of the decoder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TensorName {
    /// Rows of the vocabulary, `(vocabulary, hidden)`.
    Embedding,
    /// Norm behind the last layer, `(hidden)`.
    FinalNorm,
    /// Output matrix, `(vocabulary, hidden)`, where it is not the embedding.
    Output,
    /// Part of a layer, counted from 0.
    Layer(usize, LayerTensor),
}

/// A weight of a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LayerTensor {
    AttentionNorm,
    Query,
    Key,
    Value,
    QueryBias,
    KeyBias,
    ValueBias,
    /// Of every query head, `(head_dim)`.
    QueryNorm,
    /// Of every K head, `(head_dim)`.
    KeyNorm,
    AttentionOut,
    FeedForwardNorm,
    Gate,
    Up,
    Down,
}

/// Names of a layer's weights: here, in GGUF files, and in the hub's.
const LAYER_NAMES: [(LayerTensor, &str, &str); 14] = {
    use LayerTensor::*;
    [
        (AttentionNorm, "attn_norm.weight", "input_layernorm.weight"),
        (Query, "attn_q.weight", "self_attn.q_proj.weight"),
        (Key, "attn_k.weight", "self_attn.k_proj.weight"),
        (Value, "attn_v.weight", "self_attn.v_proj.weight"),
        (QueryBias, "attn_q.bias", "self_attn.q_proj.bias"),
        (KeyBias, "attn_k.bias", "self_attn.k_proj.bias"),
        (ValueBias, "attn_v.bias", "self_attn.v_proj.bias"),
        (QueryNorm, "attn_q_norm.weight", "self_attn.q_norm.weight"),
        (KeyNorm, "attn_k_norm.weight", "self_attn.k_norm.weight"),
        (
            AttentionOut,
            "attn_output.weight",
            "self_attn.o_proj.weight",
        ),
        (
            FeedForwardNorm,
            "ffn_norm.weight",
            "post_attention_layernorm.weight",
        ),
        (Gate, "ffn_gate.weight", "mlp.gate_proj.weight"),
        (Up, "ffn_up.weight", "mlp.up_proj.weight"),
        (Down, "ffn_down.weight", "mlp.down_proj.weight"),
    ]
};

impl LayerTensor {
    fn names(self) -> (&'static str, &'static str) {
        let found = LAYER_NAMES.iter().find(|(tensor, ..)| *tensor == self);
        let (_, gguf, hub) = found.expect("the table has every weight of a layer");
        (gguf, hub)
    }
}

impl TensorName {
    /// Every weight that a model of this shape consists of.
    pub fn all(shape: &ModelShape) -> Vec<Self> {
        use LayerTensor::{KeyBias, KeyNorm, QueryBias, QueryNorm, ValueBias};
        let architecture = shape.architecture;
        let has = |tensor: LayerTensor| match tensor {
            QueryBias | KeyBias | ValueBias => architecture.has_qkv_bias,
            QueryNorm | KeyNorm => architecture.has_qk_norm,
            _ => true,
        };
        let mut all = vec![Self::Embedding, Self::FinalNorm];
        if !shape.is_output_tied {
            all.push(Self::Output);
        }
        for layer in 0..shape.n_layers {
            let parts = LAYER_NAMES.iter().map(|(tensor, ..)| *tensor);
            all.extend((parts.filter(|t| has(*t))).map(|t| Self::Layer(layer, t)));
        }
        all
    }

    /// Name in a GGUF file.
    pub fn gguf(self) -> String {
        match self {
            Self::Embedding => "token_embd.weight".into(),
            Self::FinalNorm => "output_norm.weight".into(),
            Self::Output => "output.weight".into(),
            Self::Layer(layer, tensor) => format!("blk.{layer}.{}", tensor.names().0),
        }
    }

    /// Name in the hub's files.
    pub fn hub(self) -> String {
        match self {
            Self::Embedding => "model.embed_tokens.weight".into(),
            Self::FinalNorm => "model.norm.weight".into(),
            Self::Output => "lm_head.weight".into(),
            Self::Layer(layer, tensor) => format!("model.layers.{layer}.{}", tensor.names().1),
        }
    }

    /// Rows and width of a matrix, or the length of a vector.
    pub fn dims(self, shape: &ModelShape) -> Vec<usize> {
        use LayerTensor::*;
        let q_width = shape.n_heads * shape.head_dim;
        let kv_width = shape.n_kv_heads * shape.head_dim;
        let (hidden, inner) = (shape.hidden, shape.feed_forward);
        match self {
            Self::Embedding | Self::Output => vec![shape.vocabulary, hidden],
            Self::FinalNorm | Self::Layer(_, AttentionNorm | FeedForwardNorm) => vec![hidden],
            Self::Layer(_, Query) => vec![q_width, hidden],
            Self::Layer(_, Key | Value) => vec![kv_width, hidden],
            Self::Layer(_, QueryBias) => vec![q_width],
            Self::Layer(_, KeyBias | ValueBias) => vec![kv_width],
            Self::Layer(_, QueryNorm | KeyNorm) => vec![shape.head_dim],
            Self::Layer(_, AttentionOut) => vec![hidden, q_width],
            Self::Layer(_, Gate | Up) => vec![inner, hidden],
            Self::Layer(_, Down) => vec![hidden, inner],
        }
    }
}
