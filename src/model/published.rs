//! Shapes of caches that models keep, without their weights: a table of published ones, and what a
//! `config.json` says.

mod stand_in;

use std::path::Path;
use std::sync::LazyLock;

use serde::Deserialize;
use serde_json::Value;

use super::folder;
use super::shape::ModelShape;
use crate::text_file::{self, MAX_CONFIGURATION_BYTES};

/// The table, with the source of every line.
const TABLE: &str = include_str!("model_shapes.json");

/// Bytes of an element of the caches in the table.
const ELEMENT_BYTES: u64 = 2;

/// Far above any real model.
const MAX_LAYERS: u64 = 10_000;
const MAX_WIDTH: u64 = 1 << 20;

/// Most elements that a layer keeps of a token, times the longest prompt and the widest element
/// still a count of bytes: GPT-3, which shares no heads, keeps 24,576.
const MAX_ROW_ELEMENTS: u64 = 1 << 20;

/// Where Gemma 3 has a full layer unless its file says otherwise: every sixth.
const GEMMA3_PATTERN: u64 = 6;

/// What a model keeps of a token.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct PublishedShape {
    /// Name of the model.
    pub model: String,
    layers_full: u32,
    #[serde(default)]
    layers_sliding: u32,
    /// Tokens that sliding layers keep.
    #[serde(default)]
    window: u64,
    kv_heads: Option<u64>,
    head_dim: Option<u64>,
    kv_lora_rank: Option<u64>,
    qk_rope_head_dim: Option<u64>,
    /// What caches do not depend on; a `config.json` is not asked for it.
    #[serde(flatten)]
    sizes: Sizes,
}

/// Sizes of a decoder beside those of its caches.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
struct Sizes {
    hidden: usize,
    /// Of experts: those that a token goes through.
    feed_forward: usize,
    heads: usize,
    vocabulary: usize,
}

impl PublishedShape {
    /// Layers that keep a cache, full and sliding.
    pub fn n_layers(&self) -> u32 {
        self.layers_full + self.layers_sliding
    }

    /// Layers that keep no more than a window of tokens, and the window.
    pub fn sliding(&self) -> (u32, u64) {
        (self.layers_sliding, self.window)
    }

    /// Whether layers keep MLA's latent instead of K and V.
    pub fn is_latent(&self) -> bool {
        self.kv_lora_rank.is_some()
    }

    /// Elements that a layer keeps of a token: K and V of all heads, or MLA's latent.
    pub fn row_elements(&self) -> u64 {
        match (self.kv_lora_rank, self.kv_heads, self.head_dim) {
            (Some(latent), ..) => latent + self.qk_rope_head_dim.unwrap_or(0),
            (None, Some(heads), Some(width)) => 2 * heads * width,
            _ => 0,
        }
    }

    /// Bytes that a layer keeps of a token, in f16.
    pub fn row_bytes(&self) -> u64 {
        self.row_elements() * ELEMENT_BYTES
    }

    /// Whether each layer keeps all tokens; sliding and full layers take turns.
    fn full_layers(&self) -> impl Iterator<Item = bool> {
        let (n, full) = (u64::from(self.n_layers()), u64::from(self.layers_full));
        (0..n).map(move |layer| (layer + 1) * full / n > layer * full / n)
    }

    /// Bytes of the cache of a prompt, layer by layer.
    pub fn layer_bytes(&self, prompt_tokens: u64, element_bytes: u64) -> Vec<u64> {
        let row_bytes = self.row_elements() * element_bytes;
        (self.full_layers())
            .map(|is_full| {
                let kept_tokens = match is_full {
                    true => prompt_tokens,
                    false => prompt_tokens.min(self.window),
                };
                kept_tokens * row_bytes
            })
            .collect()
    }

    fn of_decoder(model: String, shape: &ModelShape) -> Self {
        let windows = || shape.windows.iter().flatten();
        let layers_sliding = windows().count();
        Self {
            model,
            layers_full: (shape.n_layers - layers_sliding) as u32,
            layers_sliding: layers_sliding as u32,
            window: windows().next().map_or(0, |window| *window as u64),
            kv_heads: Some(shape.n_kv_heads as u64),
            head_dim: Some(shape.head_dim as u64),
            kv_lora_rank: None,
            qk_rope_head_dim: None,
            sizes: Sizes {
                hidden: shape.hidden,
                feed_forward: shape.feed_forward,
                heads: shape.n_heads,
                vocabulary: shape.vocabulary,
            },
        }
    }

    /// What a `config.json` of a hub's model says. The error tells what was found and wanted.
    pub fn of_config(path: &Path) -> Result<Self, String> {
        let text = text_file::read(path, MAX_CONFIGURATION_BYTES).map_err(|e| e.to_string())?;
        let config: Value = serde_json::from_str(&text).map_err(|e| e.to_string())?;
        let parent = path.parent().and_then(Path::file_name);
        let name = parent.map_or("config.json".into(), |f| f.to_string_lossy().into_owned());
        // What the decoder runs, it reads by the rules of its class.
        if let Ok(shape) = folder::shape_of_config(&text) {
            return Ok(Self::of_decoder(name, &shape));
        }
        // Models that also see or hear have their decoder one level down.
        let decoder = config.get("text_config").unwrap_or(&config);
        Config(decoder).shape(name)
    }
}

/// The part of a `config.json` that describes the decoder.
struct Config<'a>(&'a Value);

impl Config<'_> {
    fn shape(&self, model: String) -> Result<PublishedShape, String> {
        let layers = self.demand("num_hidden_layers", MAX_LAYERS)?;
        let (sliding, window) = self.sliding(layers)?;
        let latent = self.count("kv_lora_rank", MAX_WIDTH)?;
        let (kv_heads, head_dim) = match latent {
            Some(_) => (None, None),
            None => (Some(self.kv_heads()?), Some(self.head_dim()?)),
        };
        let shape = PublishedShape {
            model,
            layers_full: (layers - sliding) as u32,
            layers_sliding: sliding as u32,
            window,
            kv_heads,
            head_dim,
            kv_lora_rank: latent,
            qk_rope_head_dim: self.count("qk_rope_head_dim", MAX_WIDTH)?,
            sizes: Sizes::default(),
        };
        match shape.row_elements() {
            1..=MAX_ROW_ELEMENTS => Ok(shape),
            other => Err(format!(
                "a layer keeps {other} elements of a token, wanted 1 to {MAX_ROW_ELEMENTS}"
            )),
        }
    }

    fn kv_heads(&self) -> Result<u64, String> {
        match self.count("num_key_value_heads", MAX_WIDTH)? {
            Some(heads) => Ok(heads),
            None => self.demand("num_attention_heads", MAX_WIDTH),
        }
    }

    fn head_dim(&self) -> Result<u64, String> {
        match self.count("head_dim", MAX_WIDTH)? {
            Some(width) => Ok(width),
            None => {
                let heads = self.demand("num_attention_heads", MAX_WIDTH)?;
                Ok(self.demand("hidden_size", MAX_WIDTH)? / heads)
            }
        }
    }

    /// Layers that slide, and the tokens they keep.
    fn sliding(&self, layers: u64) -> Result<(u64, u64), String> {
        let window = self.count("sliding_window", u64::from(u32::MAX))?;
        let types = self.0.get("layer_types").and_then(Value::as_array);
        let sliding = match (types, window) {
            (Some(types), _) => {
                let of = |name: &str| types.iter().filter(|t| t.as_str() == Some(name)).count();
                let (full, sliding) = (of("full_attention"), of("sliding_attention"));
                if full + sliding != types.len() || types.len() as u64 != layers {
                    return Err(format!(
                        "layer_types has {full} full and {sliding} sliding of {} layers: only \
                         full_attention and sliding_attention are known, wanted {layers} of them",
                        types.len()
                    ));
                }
                sliding as u64
            }
            // Qwen files name a window that is not in use.
            (None, Some(_)) if self.0.get("use_sliding_window") == Some(&false.into()) => 0,
            (None, Some(_)) => match self.0.get("model_type").and_then(Value::as_str) {
                Some("gemma2" | "gpt_oss") => layers / 2,
                Some("gemma3" | "gemma3_text") => {
                    let pattern = self.count("sliding_window_pattern", MAX_LAYERS)?;
                    layers - layers / pattern.unwrap_or(GEMMA3_PATTERN)
                }
                _ => layers,
            },
            (None, None) => 0,
        };
        match (sliding, window) {
            (0, _) => Ok((0, 0)),
            (_, Some(window)) => Ok((sliding, window)),
            (_, None) => Err("some layers slide, but there is no sliding_window".to_owned()),
        }
    }

    /// A count that has to be there.
    fn demand(&self, key: &str, most: u64) -> Result<u64, String> {
        let missing = || format!("{key} is missing: wanted the config.json of a decoder");
        self.count(key, most)?.ok_or_else(missing)
    }

    /// A count above 0, where there is one.
    fn count(&self, key: &str, most: u64) -> Result<Option<u64>, String> {
        match self.0.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => match value.as_u64() {
                Some(count) if (1..=most).contains(&count) => Ok(Some(count)),
                _ => Err(format!("{key} is {value}, wanted 1 to {most}")),
            },
        }
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
            // Of a long prompt, sliding layers keep their window.
            let long: u64 = shape.layer_bytes(8192, 2).iter().sum();
            assert_eq!(
                long,
                row["bytes_at_8192"].as_u64().unwrap(),
                "{}",
                shape.model
            );
        }
    }

    fn config(text: &str) -> Result<PublishedShape, String> {
        Config(&serde_json::from_str(text).unwrap()).shape("x".into())
    }

    #[test]
    fn a_config_gives_the_shape_of_the_table() {
        for (name, text) in [
            (
                "Llama-3.1-70B",
                r#"{"num_hidden_layers": 80, "num_key_value_heads": 8, "head_dim": 128}"#,
            ),
            (
                "Qwen2.5-7B",
                r#"{"num_hidden_layers": 28, "num_attention_heads": 28, "hidden_size": 3584,
                    "num_key_value_heads": 4, "sliding_window": 131072,
                    "use_sliding_window": false}"#,
            ),
            (
                "Mistral-7B-v0.1",
                r#"{"num_hidden_layers": 32, "num_attention_heads": 32, "hidden_size": 4096,
                    "num_key_value_heads": 8, "sliding_window": 4096, "model_type": "mistral"}"#,
            ),
            (
                "Gemma-3-27B",
                r#"{"num_hidden_layers": 62, "num_key_value_heads": 16, "head_dim": 128,
                    "sliding_window": 1024, "model_type": "gemma3_text"}"#,
            ),
            (
                "DeepSeek-V3/R1 (MLA)",
                r#"{"num_hidden_layers": 61, "num_attention_heads": 128, "hidden_size": 7168,
                    "kv_lora_rank": 512, "qk_rope_head_dim": 64}"#,
            ),
        ] {
            let bytes = |shape: &PublishedShape| -> u64 { shape.layer_bytes(9000, 2).iter().sum() };
            let of_table = find(name).unwrap();
            assert_eq!(bytes(&config(text).unwrap()), bytes(of_table), "{name}");
        }
    }

    #[test]
    fn a_config_that_says_too_little_or_nonsense_is_refused() {
        for (text, part) in [
            ("{}", "num_hidden_layers is missing"),
            (r#"{"num_hidden_layers": 0}"#, "is 0, wanted 1 to"),
            (
                r#"{"num_hidden_layers": 2}"#,
                "num_attention_heads is missing",
            ),
            (
                r#"{"num_hidden_layers": 2, "layer_types": ["full_attention", "linear_attention"]}"#,
                "only full_attention and sliding_attention are known",
            ),
            (
                r#"{"num_hidden_layers": 2, "num_key_value_heads": 1024, "head_dim": 1024}"#,
                "keeps 2097152 elements of a token",
            ),
            (
                r#"{"num_hidden_layers": 2, "num_attention_heads": 8, "hidden_size": 4}"#,
                "keeps 0 elements of a token",
            ),
        ] {
            let error = config(text).unwrap_err();
            assert!(error.contains(part), "{text}: {error}");
        }
    }

    #[test]
    fn names_are_found_in_any_case() {
        assert_eq!(find("llama-3.1-8b").unwrap().model, "Llama-3.1-8B");
        assert!(find("no such model").is_none());
    }
}
