//! The architectures that the decoder runs, as the options that tell them apart.
//!
//! There is one decoder. What a file may ask of it stands here; anything else is refused by name.

/// Which two elements of a head a rotary position turns together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RopePairs {
    /// Neighbours: the order in which GGUF stores Llama's Q and K.
    Neighbours,
    /// An element of the first half and its counterpart in the second.
    Halves,
}

/// A family of models that share their layers' parts.
#[derive(Debug, PartialEq, Eq)]
pub struct Architecture {
    /// `general.architecture` of GGUF files.
    pub gguf_name: &'static str,
    /// Names in the list `architectures` of a `config.json`.
    pub classes: &'static [&'static str],
    /// Models of it that people know, for documents and messages.
    pub models: &'static [&'static str],
    /// Order of Q and K in GGUF files; the hub's files have halves.
    pub gguf_rope_pairs: RopePairs,
    /// Q, K and V have biases.
    pub has_qkv_bias: bool,
    /// Q and K are normed head by head before they are rotated.
    pub has_qk_norm: bool,
}

/// All architectures that run.
pub const ARCHITECTURES: [Architecture; 3] = [
    Architecture {
        gguf_name: "llama",
        classes: &["LlamaForCausalLM", "MistralForCausalLM"],
        models: &["Llama 2, 3, 3.1, 3.2", "TinyLlama", "SmolLM2", "Mistral 7B"],
        gguf_rope_pairs: RopePairs::Neighbours,
        has_qkv_bias: false,
        has_qk_norm: false,
    },
    Architecture {
        gguf_name: "qwen2",
        classes: &["Qwen2ForCausalLM"],
        models: &["Qwen2", "Qwen2.5"],
        gguf_rope_pairs: RopePairs::Halves,
        has_qkv_bias: true,
        has_qk_norm: false,
    },
    Architecture {
        gguf_name: "qwen3",
        classes: &["Qwen3ForCausalLM"],
        models: &["Qwen3 (dense)"],
        gguf_rope_pairs: RopePairs::Halves,
        has_qkv_bias: false,
        has_qk_norm: true,
    },
];

impl Architecture {
    /// The one that a GGUF file names; the error lists what runs.
    pub fn of_gguf(name: &str) -> Result<&'static Self, String> {
        let found = ARCHITECTURES.iter().find(|a| a.gguf_name == name);
        found.ok_or_else(|| unknown(name, |a| vec![a.gguf_name]))
    }

    /// The one that a `config.json` names; the error lists what runs.
    pub fn of_class(name: &str) -> Result<&'static Self, String> {
        let found = ARCHITECTURES.iter().find(|a| a.classes.contains(&name));
        found.ok_or_else(|| unknown(name, |a| a.classes.to_vec()))
    }
}

fn unknown(name: &str, names: impl Fn(&Architecture) -> Vec<&'static str>) -> String {
    let known: Vec<&str> = ARCHITECTURES.iter().flat_map(names).collect();
    format!(
        "architecture {name} is not supported, these are: {}",
        known.join(", ")
    )
}
