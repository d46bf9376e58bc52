//! What a hub's `config.json` says of a decoder. Keys that ask for something that the decoder does
//! not do are refused by name.

use serde::Deserialize;
use serde_json::Value;

use crate::model::architecture::{Architecture, RopePairs};
use crate::model::shape::{Llama3Scaling, MAX_LAYERS, ModelShape, Rope};

/// What transformers take where a file says nothing.
const USUAL_ROPE_BASE: f32 = 10_000.0;
const USUAL_NORM_EPS: f32 = 1e-6;
const USUAL_MISTRAL_WINDOW: usize = 4_096;
const USUAL_QWEN_WINDOW: usize = 4_096;
const USUAL_QWEN_FULL_LAYERS: usize = 28;

/// The keys that matter, as transformers name them.
#[derive(Deserialize)]
struct Config {
    architectures: Vec<String>,
    num_hidden_layers: usize,
    hidden_size: usize,
    intermediate_size: usize,
    num_attention_heads: usize,
    num_key_value_heads: Option<usize>,
    head_dim: Option<usize>,
    vocab_size: usize,
    max_position_embeddings: usize,
    rms_norm_eps: Option<f32>,
    rope_theta: Option<f32>,
    rope_scaling: Option<RopeParameters>,
    /// Of transformers 5, in place of the two above.
    rope_parameters: Option<RopeParameters>,
    tie_word_embeddings: Option<bool>,
    /// Absent and null differ.
    #[serde(default, deserialize_with = "present")]
    sliding_window: Option<Option<usize>>,
    use_sliding_window: Option<bool>,
    max_window_layers: Option<usize>,
    layer_types: Option<Vec<String>>,
    hidden_act: Option<String>,
    partial_rotary_factor: Option<f64>,
    quantization_config: Option<Value>,
}

fn present<'de, D: serde::Deserializer<'de>, T: Deserialize<'de>>(
    deserializer: D,
) -> Result<Option<Option<T>>, D::Error> {
    Option::deserialize(deserializer).map(Some)
}

/// How rotary positions are scaled.
#[derive(Deserialize)]
struct RopeParameters {
    rope_type: Option<String>,
    /// Its older name, which newer files keep beside it.
    r#type: Option<String>,
    rope_theta: Option<f32>,
    factor: Option<f64>,
    low_freq_factor: Option<f64>,
    high_freq_factor: Option<f64>,
    original_max_position_embeddings: Option<f64>,
    partial_rotary_factor: Option<f64>,
}

/// The shape that a `config.json` describes; `has_output` says whether the weights have an output
/// matrix of their own.
pub fn shape(text: &str, has_output: bool) -> Result<ModelShape, String> {
    let config: Config = serde_json::from_str(text).map_err(|e| e.to_string())?;
    let class = config.architectures.first().map_or("", String::as_str);
    let architecture = Architecture::of_class(class)?;
    config.refuse_what_is_not_done()?;
    let n_heads = config.num_attention_heads;
    let head_dim = match config.head_dim {
        Some(width) => width,
        None => (config.hidden_size.checked_div(n_heads)).unwrap_or_default(),
    };
    let shape = ModelShape {
        architecture,
        n_layers: config.num_hidden_layers,
        hidden: config.hidden_size,
        feed_forward: config.intermediate_size,
        n_heads,
        n_kv_heads: config.num_key_value_heads.unwrap_or(n_heads),
        head_dim,
        vocabulary: config.vocab_size,
        context_tokens: config.max_position_embeddings,
        rope: Rope {
            base: USUAL_ROPE_BASE,
            pairs: RopePairs::Halves,
            divisors: None,
        },
        windows: vec![None; config.num_hidden_layers.min(MAX_LAYERS)],
        norm_eps: config.rms_norm_eps.unwrap_or(USUAL_NORM_EPS),
        is_output_tied: config.tie_word_embeddings.unwrap_or(!has_output),
    };
    // What has an element a layer or a frequency comes after the sizes are known to be sane.
    let shape = shape.checked()?;
    let windows = config.windows(class)?;
    let rope = config.rope(head_dim)?;
    ModelShape {
        windows,
        rope,
        ..shape
    }
    .checked()
}

impl Config {
    fn refuse_what_is_not_done(&self) -> Result<(), String> {
        if let Some(quantization) = &self.quantization_config {
            let method = quantization.get("quant_method").and_then(Value::as_str);
            return Err(format!(
                "weights quantised by {} are not supported: take the original model, or a GGUF file",
                method.unwrap_or("quantization_config")
            ));
        }
        if let Some(activation) = &self.hidden_act
            && activation != "silu"
        {
            return Err(format!("hidden_act is {activation}, wanted silu"));
        }
        let rope = self.rope_parameters.as_ref().or(self.rope_scaling.as_ref());
        let of_rope = rope.and_then(|rope| rope.partial_rotary_factor);
        match self.partial_rotary_factor.or(of_rope) {
            Some(part) if part != 1.0 => Err(format!("partial_rotary_factor is {part}, wanted 1")),
            _ => Ok(()),
        }
    }

    /// Tokens that attention sees, layer by layer, by the rules of the class.
    fn windows(&self, class: &str) -> Result<Vec<Option<usize>>, String> {
        let (window, first_sliding) = match class {
            "MistralForCausalLM" => {
                let usual = Some(USUAL_MISTRAL_WINDOW);
                (self.sliding_window.unwrap_or(usual), 0)
            }
            "Qwen2ForCausalLM" | "Qwen3ForCausalLM" if self.use_sliding_window == Some(true) => {
                let usual = Some(USUAL_QWEN_WINDOW);
                let first = self.max_window_layers.unwrap_or(USUAL_QWEN_FULL_LAYERS);
                (self.sliding_window.unwrap_or(usual), first)
            }
            // Qwen's files name a window that is not in use; Llama has none, whatever a file says.
            _ => (None, 0),
        };
        if let Some(types) = &self.layer_types {
            let window_of = |kind: &String| match (&kind[..], window) {
                ("full_attention", _) => Ok(None),
                ("sliding_attention", Some(window)) => Ok(Some(window)),
                (other, _) => Err(format!(
                    "layer_types has {other} with sliding_window {window:?}: wanted full_attention, \
                     or sliding_attention and its window"
                )),
            };
            return types.iter().map(window_of).collect();
        }
        let layers = 0..self.num_hidden_layers;
        Ok(layers
            .map(|layer| window.filter(|_| layer >= first_sliding))
            .collect())
    }

    fn rope(&self, head_dim: usize) -> Result<Rope, String> {
        let parameters = self.rope_parameters.as_ref();
        let base = parameters
            .and_then(|rope| rope.rope_theta)
            .or(self.rope_theta);
        let base = base.unwrap_or(USUAL_ROPE_BASE);
        let scaling = parameters.or(self.rope_scaling.as_ref());
        let kind = scaling.and_then(|s| s.rope_type.as_deref().or(s.r#type.as_deref()));
        let demand = |name: &str, value: Option<f64>| {
            value.ok_or_else(|| format!("rotary positions are scaled without {name}"))
        };
        let divisors = match (scaling, kind) {
            (None, _) | (_, None | Some("default")) => None,
            (Some(s), Some("linear")) => Some(vec![demand("factor", s.factor)?; head_dim / 2]),
            (Some(s), Some("llama3")) => {
                let scaling = Llama3Scaling {
                    factor: demand("factor", s.factor)?,
                    low_freq_factor: demand("low_freq_factor", s.low_freq_factor)?,
                    high_freq_factor: demand("high_freq_factor", s.high_freq_factor)?,
                    original_context_tokens: demand(
                        "original_max_position_embeddings",
                        s.original_max_position_embeddings,
                    )?,
                };
                Some(scaling.divisors(base, head_dim))
            }
            (_, Some(other)) => {
                return Err(format!(
                    "rotary positions scaled by {other} are not supported, these are: default, \
                     linear, llama3"
                ));
            }
        };
        Ok(Rope {
            base,
            pairs: RopePairs::Halves,
            divisors,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(more: &str) -> Result<ModelShape, String> {
        of_class("LlamaForCausalLM", more)
    }

    fn of_class(class: &str, more: &str) -> Result<ModelShape, String> {
        let text = format!(
            r#"{{"architectures": ["{class}"], "num_hidden_layers": 3, "hidden_size": 64,
                "intermediate_size": 128, "num_attention_heads": 4, "vocab_size": 100,
                "max_position_embeddings": 256{more}}}"#
        );
        shape(&text, true)
    }

    #[test]
    fn what_a_file_leaves_out_is_what_transformers_take() {
        let shape = with("").unwrap();
        assert_eq!((shape.n_kv_heads, shape.head_dim), (4, 16));
        assert_eq!((shape.rope.base, shape.norm_eps), (10_000.0, 1e-6));
        assert!(!shape.is_output_tied && shape.windows == [None; 3]);
    }

    #[test]
    fn windows_follow_the_rules_of_the_class() {
        let windows = |class: &str, more: &str| of_class(class, more).unwrap().windows;
        let window = r#", "sliding_window": 8"#;
        let mistral = |more: &str| windows("MistralForCausalLM", more);
        assert_eq!(mistral(window), [Some(8); 3]);
        assert_eq!(mistral(r#", "sliding_window": null"#), [None; 3]);
        assert_eq!(mistral(""), [Some(4096); 3]);
        assert_eq!(windows("LlamaForCausalLM", window), [None; 3]);
        for class in ["Qwen2ForCausalLM", "Qwen3ForCausalLM"] {
            let qwen = |more: &str| windows(class, &format!("{window}{more}"));
            assert_eq!(qwen(""), [None; 3]);
            let from_1 = r#", "max_window_layers": 1, "use_sliding_window": "#;
            assert_eq!(qwen(&format!("{from_1}false")), [None; 3]);
            assert_eq!(qwen(&format!("{from_1}true")), [None, Some(8), Some(8)]);
            assert_eq!(qwen(r#", "use_sliding_window": true"#), [None; 3]);
            let listed = r#", "use_sliding_window": true,
                "layer_types": ["sliding_attention", "full_attention", "full_attention"]"#;
            assert_eq!(qwen(listed), [Some(8), None, None]);
        }
    }

    #[test]
    fn rotary_scaling_is_read_in_the_words_of_both_ages() {
        let divisors = |more: &str| with(more).unwrap().rope.divisors;
        let old = r#", "rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 4.0}"#;
        assert_eq!(divisors(old), Some(vec![4.0; 8]));
        let both = r#", "rope_scaling": {"type": "linear", "rope_type": "linear", "factor": 4.0}"#;
        assert_eq!(divisors(both), divisors(old));
        let llama3 = r#"{"rope_theta": 5e5, "rope_type": "llama3", "factor": 8.0,
            "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192}"#;
        let new = format!(r#", "rope_parameters": {llama3}"#);
        let scaling = format!(r#", "rope_theta": 5e5, "rope_scaling": {llama3}"#);
        assert_eq!(divisors(&new), divisors(&scaling));
        assert_eq!(with(&new).unwrap().rope.base, 5e5);
        assert_eq!(
            divisors(r#", "rope_parameters": {"rope_type": "default"}"#),
            None
        );
    }

    #[test]
    fn what_is_not_done_is_refused_by_name() {
        for (more, part) in [
            (
                r#", "rope_scaling": {"rope_type": "yarn"}"#,
                "scaled by yarn",
            ),
            (r#", "rope_scaling": {"type": "linear"}"#, "without factor"),
            (r#", "hidden_act": "gelu""#, "hidden_act is gelu"),
            (
                r#", "quantization_config": {"quant_method": "gptq"}"#,
                "quantised by gptq",
            ),
            (
                r#", "partial_rotary_factor": 0.5"#,
                "partial_rotary_factor is 0.5",
            ),
            (
                r#", "num_key_value_heads": 3"#,
                "4 query heads cannot share 3",
            ),
            (r#", "num_key_value_heads": 0"#, "K/V heads is 0"),
            (r#", "head_dim": 7"#, "head width 7"),
            (
                r#", "layer_types": ["full_attention"]"#,
                "1 windows for 3 layers",
            ),
            (
                r#", "layer_types": ["linear_attention"]"#,
                "layer_types has linear_attention",
            ),
        ] {
            let error = with(more).unwrap_err();
            assert!(error.contains(part), "{more}: {error}");
        }
        let unknown = shape(
            r#"{"architectures": ["GPT2LMHeadModel"], "num_hidden_layers": 1, "hidden_size": 2,
                "intermediate_size": 1, "num_attention_heads": 1, "vocab_size": 1,
                "max_position_embeddings": 1}"#,
            true,
        );
        assert!(unknown.unwrap_err().contains("these are: LlamaForCausalLM"));
        assert!(shape("{}", true).unwrap_err().contains("missing field"));
    }
}
