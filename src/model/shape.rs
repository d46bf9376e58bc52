//! The numbers that describe a decoder, checked, whatever file they were read from.

use super::architecture::{Architecture, RopePairs};
use super::attention::AttentionShape;
use super::kv_cache::{KvDtype, KvLayout};
use super::tensor_name::TensorName;

/// Upper bound for every count in a file: far above any real model, and low enough that no
/// product of three of them overflows.
pub const MAX_COUNT: u64 = 1 << 20;

/// Most weights of all matrices: a hundred times the largest published models, and a sum of bytes
/// of them overflows nothing.
const MAX_WEIGHTS: u64 = 1 << 48;

/// Most layers: far above any real model, whose weights are all named in memory.
pub const MAX_LAYERS: usize = 1 << 12;

/// Most entries that the table of rotary positions may grow to, a gigabyte: a context of a million
/// tokens with a head of 256.
const MAX_ROPE_ENTRIES: usize = 1 << 28;

/// Rotary positions: angles, and what they turn.
#[derive(Clone, Debug, PartialEq)]
pub struct Rope {
    /// Base of the angles.
    pub base: f32,
    /// Elements that turn together.
    pub pairs: RopePairs,
    /// What each frequency is divided by, `(head_dim / 2)`, where positions are scaled.
    pub divisors: Option<Vec<f64>>,
}

/// Llama 3.1's way to scale rotary positions beyond the context that a model was trained on.
#[derive(Clone, Copy, Debug)]
pub struct Llama3Scaling {
    pub factor: f64,
    pub low_freq_factor: f64,
    pub high_freq_factor: f64,
    /// Context of the training.
    pub original_context_tokens: f64,
}

impl Llama3Scaling {
    /// Divisors of the frequencies: 1 where a wave is short against the original context, `factor`
    /// where it is long, and in between what joins the two smoothly.
    pub fn divisors(&self, base: f32, head_dim: usize) -> Vec<f64> {
        let divisor = |frequency: f64| {
            let wave_tokens = std::f64::consts::TAU / frequency;
            let waves = self.original_context_tokens / wave_tokens;
            let smooth =
                (waves - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor);
            let smooth = smooth.clamp(0.0, 1.0);
            1.0 / ((1.0 - smooth) / self.factor + smooth)
        };
        (frequencies(base, head_dim).map(divisor)).collect()
    }
}

fn frequencies(base: f32, head_dim: usize) -> impl Iterator<Item = f64> {
    (0..head_dim / 2).map(move |i| f64::from(base).powf(-2.0 * i as f64 / head_dim as f64))
}

impl Rope {
    /// Angle by which each pair turns from a position to the next, `(head_dim / 2)`, in radians.
    pub fn frequencies(&self, head_dim: usize) -> Vec<f64> {
        let plain = frequencies(self.base, head_dim);
        match &self.divisors {
            Some(divisors) => plain.zip(divisors).map(|(f, d)| f / d).collect(),
            None => plain.collect(),
        }
    }
}

/// Sizes and constants of a decoder.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelShape {
    /// What its layers consist of.
    pub architecture: &'static Architecture,
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
    /// Rotary positions.
    pub rope: Rope,
    /// Tokens that attention sees in each layer, the newest included; `None` is all of them.
    pub windows: Vec<Option<usize>>,
    /// Epsilon of the RMS norms.
    pub norm_eps: f32,
    /// The output matrix is the embedding.
    pub is_output_tied: bool,
}

impl ModelShape {
    /// Itself, where a decoder of these sizes can be; the error says what was found and wanted.
    pub fn checked(self) -> Result<Self, String> {
        if !(1..=MAX_LAYERS).contains(&self.n_layers) {
            return Err(format!(
                "{} layers, wanted 1 to {MAX_LAYERS}",
                self.n_layers
            ));
        }
        let counts = [
            ("width", self.hidden),
            ("feed-forward width", self.feed_forward),
            ("query heads", self.n_heads),
            ("K/V heads", self.n_kv_heads),
            ("vocabulary", self.vocabulary),
            ("context", self.context_tokens),
        ];
        for (name, count) in counts {
            if count == 0 || count as u64 > MAX_COUNT {
                return Err(format!("{name} is {count}, wanted 1 to {MAX_COUNT}"));
            }
        }
        if !self.n_heads.is_multiple_of(self.n_kv_heads) {
            return Err(format!(
                "{} query heads cannot share {} K/V heads",
                self.n_heads, self.n_kv_heads
            ));
        }
        let head_dim = self.head_dim;
        if head_dim == 0 || !head_dim.is_multiple_of(2) || head_dim as u64 > MAX_COUNT {
            return Err(format!("head width {head_dim}, wanted an even one"));
        }
        if self.context_tokens * head_dim > MAX_ROPE_ENTRIES {
            return Err(format!(
                "a context of {} tokens with heads of width {head_dim}: wanted no more than \
                 {MAX_ROPE_ENTRIES} of both together",
                self.context_tokens
            ));
        }
        let Rope { base, divisors, .. } = &self.rope;
        if !(base.is_finite() && *base > 0.0 && self.norm_eps.is_finite()) {
            return Err(format!(
                "rotary base {base} and norm epsilon {}: wanted finite ones, the base above 0",
                self.norm_eps
            ));
        }
        let scales = |d: &f64| d.is_finite() && *d > 0.0;
        if let Some(divisors) = divisors
            && !(divisors.len() == head_dim / 2 && divisors.iter().all(scales))
        {
            return Err(format!(
                "{} divisors of rotary frequencies, wanted {} finite ones above 0",
                divisors.len(),
                head_dim / 2
            ));
        }
        let weights = self.matrix_weights();
        if weights > MAX_WEIGHTS {
            return Err(format!("{weights} weights, wanted at most {MAX_WEIGHTS}"));
        }
        if self.windows.len() != self.n_layers {
            return Err(format!(
                "{} windows for {} layers",
                self.windows.len(),
                self.n_layers
            ));
        }
        if self.windows.contains(&Some(0)) {
            return Err("an attention window of 0 tokens, wanted 1 or more".into());
        }
        Ok(self)
    }

    /// Head counts and widths for a layer's attention.
    pub fn attention(&self, layer: usize) -> AttentionShape {
        AttentionShape {
            n_heads: self.n_heads,
            n_kv_heads: self.n_kv_heads,
            head_dim: self.head_dim,
            window_tokens: self.windows[layer],
        }
    }

    /// Weights of all layers' matrices; embedding and head are not among them.
    pub fn layer_weights(&self) -> u64 {
        self.weights_of(|name| matches!(name, TensorName::Layer(..)))
    }

    fn matrix_weights(&self) -> u64 {
        self.weights_of(|_| true)
    }

    /// Saturating: sizes may be those of a file that nobody checked yet.
    fn weights_of(&self, is_counted: impl Fn(&TensorName) -> bool) -> u64 {
        let names = TensorName::all(self).into_iter().filter(is_counted);
        let dims = names.map(|name| name.dims(self));
        let matrices = dims.filter(|dims| dims.len() == 2);
        let weights = matrices.map(|dims| dims[0] as u64 * dims[1] as u64);
        weights.fold(0, u64::saturating_add)
    }

    /// Bytes of working memory that a prefill takes at most for each token of a chunk: between the
    /// weights and the caches all is f32, and as wide as the widest layer.
    pub fn prefill_bytes_per_token(&self) -> u64 {
        let [hidden, feed_forward, heads, kv_heads, head_dim] = [
            self.hidden,
            self.feed_forward,
            self.n_heads,
            self.n_kv_heads,
            self.head_dim,
        ]
        .map(|n| n as u64);
        let (q, kv) = (heads * head_dim, 2 * kv_heads * head_dim);
        // Candle's products are there in parts, joined, and copied.
        let products = 3 * (2 * feed_forward).max(q + kv).max(hidden);
        // The residual stream and its norm; queries, and twice what attention gives; the
        // activation; K and V of a layer, widened.
        4 * (2 * hidden + 3 * q + feed_forward + kv + products)
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::published;

    #[test]
    fn no_file_can_ask_for_more_weights_than_can_be_counted() {
        let shape = published::find("llama-3.1-8b").unwrap().stand_in().unwrap();
        let widest = 1 << 20;
        let refused = ModelShape {
            n_heads: widest,
            n_kv_heads: widest,
            head_dim: 128,
            hidden: widest,
            ..shape
        };
        let error = refused.checked().unwrap_err();
        assert!(error.contains("weights, wanted at most"), "{error}");
    }

    #[test]
    fn llama_3_scales_long_waves_alone() {
        // As Llama 3.1 has it: factor 8, waves shorter than 2,048 tokens stay.
        let scaling = Llama3Scaling {
            factor: 8.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_context_tokens: 8192.0,
        };
        let divisors = scaling.divisors(500_000.0, 128);
        assert_eq!(divisors.len(), 64);
        assert!(divisors[..29].iter().all(|d| *d == 1.0), "{divisors:?}");
        assert!(divisors[36..].iter().all(|d| *d == 8.0), "{divisors:?}");
        assert!(divisors.is_sorted());
        assert!((1.0..8.0).contains(&divisors[31]) && divisors[31] > 1.0);
    }
}
