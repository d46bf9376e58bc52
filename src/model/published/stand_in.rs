//! A decoder of a published shape's sizes: what random weights are made for.
//!
//! Its caches have the published model's bytes, layer by layer. Its compute is that of a dense
//! decoder of the same widths: experts count as the feed-forward width of those that a token goes
//! through, and a latent as one K/V head of its size.
//!
//! The table's sources stand for the sizes of caches. The others (hidden, feed forward, heads,
//! vocabulary) were added without one: those of dense models give the published numbers of weights,
//! those of models with experts were held against nothing.

use super::PublishedShape;
use crate::model::architecture::{ARCHITECTURES, RopePairs};
use crate::model::shape::{ModelShape, Rope};

/// What is not part of a cache's or a matrix's size, as Llama 3 has it.
const ROPE_BASE: f32 = 500_000.0;
const NORM_EPS: f32 = 1e-5;
const CONTEXT_TOKENS: usize = 131_072;

impl PublishedShape {
    /// The decoder's sizes; the error says what is wrong with them.
    pub fn stand_in(&self) -> Result<ModelShape, String> {
        let n_layers = self.n_layers() as usize;
        let (n_kv_heads, head_dim) = match (self.kv_heads, self.head_dim) {
            (Some(heads), Some(width)) => (heads as usize, width as usize),
            // K and V together are the latent.
            _ => (1, self.row_elements() as usize / 2),
        };
        let window = |is_full: bool| (!is_full).then_some(self.window as usize);
        ModelShape {
            architecture: &ARCHITECTURES[0],
            n_layers,
            hidden: self.sizes.hidden,
            feed_forward: self.sizes.feed_forward,
            n_heads: self.sizes.heads,
            n_kv_heads,
            head_dim,
            vocabulary: self.sizes.vocabulary,
            context_tokens: CONTEXT_TOKENS,
            rope: Rope {
                base: ROPE_BASE,
                pairs: RopePairs::Halves,
                divisors: None,
            },
            windows: self.full_layers().map(window).collect(),
            norm_eps: NORM_EPS,
            is_output_tied: false,
        }
        .checked()
    }
}

#[cfg(test)]
mod tests {
    use super::super::all;
    use crate::model::kv_cache::KvDtype;

    #[test]
    fn every_stand_in_keeps_the_bytes_of_its_model() {
        for published in all() {
            let shape = published.stand_in().unwrap();
            let row_bytes = shape.kv_layout(KvDtype::F16).row_bytes() as u64;
            assert_eq!(row_bytes, published.row_bytes(), "{}", published.model);
            let long = 1 << 16;
            let kept = |window: &Option<usize>| window.map_or(long, |w| w as u64) * row_bytes;
            let layers: Vec<u64> = shape.windows.iter().map(kept).collect();
            assert_eq!(
                layers,
                published.layer_bytes(long, 2),
                "{}",
                published.model
            );
        }
    }

    #[test]
    fn the_weights_of_dense_models_are_as_many_as_their_names_say() {
        for (name, billions) in [
            ("Llama-3.1-8B", 8.0),
            ("Llama-3.1-70B", 70.6),
            ("Llama-3.1-405B", 405.9),
            ("Qwen2.5-72B", 72.7),
            ("Mistral-7B-v0.1", 7.2),
            ("TinyLlama-1.1B", 1.1),
        ] {
            let shape = super::super::find(name).unwrap().stand_in().unwrap();
            let ends = 2 * shape.vocabulary as u64 * shape.hidden as u64;
            let weights = (shape.layer_weights() + ends) as f64 / 1e9;
            assert!((weights / billions - 1.0).abs() < 0.01, "{name}: {weights}");
        }
    }
}
