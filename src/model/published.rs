//! Shapes of published models, to imitate their caches without their weights.

use std::sync::LazyLock;

use serde::Deserialize;

/// The table, with the source of every line.
const TABLE: &str = include_str!("model_shapes.json");

/// Bytes of an element of the caches in the table.
const ELEMENT_BYTES: u64 = 2;

/// What a model keeps of a token.
#[derive(Clone, Debug, Deserialize)]
pub struct PublishedShape {
    /// Name of the model.
    pub model: String,
    layers_full: u32,
    #[serde(default)]
    layers_sliding: u32,
    kv_heads: Option<u64>,
    head_dim: Option<u64>,
    kv_lora_rank: Option<u64>,
    qk_rope_head_dim: Option<u64>,
}

impl PublishedShape {
    /// Layers that keep a cache, full and sliding.
    pub fn n_layers(&self) -> u32 {
        self.layers_full + self.layers_sliding
    }

    /// Bytes that a layer keeps of a token, in f16: K and V of all heads, or MLA's latent.
    pub fn row_bytes(&self) -> u64 {
        let elements = match (self.kv_heads, self.head_dim) {
            (Some(heads), Some(width)) => 2 * heads * width,
            _ => self.kv_lora_rank.unwrap_or(0) + self.qk_rope_head_dim.unwrap_or(0),
        };
        elements * ELEMENT_BYTES
    }
}

static SHAPES: LazyLock<Vec<PublishedShape>> =
    LazyLock::new(|| serde_json::from_str(TABLE).expect("the table is part of the source"));

/// All published shapes.
pub fn all() -> &'static [PublishedShape] {
    &SHAPES
}

/// A shape by its name, whatever its case.
pub fn find(name: &str) -> Option<&'static PublishedShape> {
    all()
        .iter()
        .find(|shape| shape.model.eq_ignore_ascii_case(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_per_token_are_those_of_the_table() {
        let table: Vec<serde_json::Value> = serde_json::from_str(TABLE).unwrap();
        assert_eq!(table.len(), all().len());
        for (shape, row) in all().iter().zip(table) {
            let want = row["naive_bytes_per_token"].as_u64().unwrap();
            assert_eq!(
                u64::from(shape.n_layers()) * shape.row_bytes(),
                want,
                "{}",
                shape.model
            );
        }
    }

    #[test]
    fn names_are_found_in_any_case() {
        assert_eq!(find("llama-3.1-8b").unwrap().model, "Llama-3.1-8B");
        assert!(find("no such model").is_none());
    }
}
