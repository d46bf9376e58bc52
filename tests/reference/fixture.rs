//! The reference values as `make_reference.py` writes them, and the distance of logits from them.

use disagg_bench::model::logits::Logits;
use serde::Deserialize;

/// Byte values that the vocabulary has no token for, as far as the texts use them.
const UNKNOWN_BYTES: [char; 6] = ['\x04', '\x06', '\x13', '\x14', '\x16', '\x1d'];

/// Special tokens that the texts use; decoding leaves them out.
const SPECIAL_TOKENS: [&str; 6] = [
    "<|im_start|>",
    "<|im_end|>",
    "<|endoftext|>",
    "<repo_name>",
    "<file_sep>",
    "<empty_output>",
];

#[derive(Deserialize)]
pub struct Fixture {
    pub model: ModelFacts,
    /// Ids of the logits that are kept of every prompt beside its best.
    pub probe_ids: Vec<u32>,
    pub prompts: Vec<Prompt>,
    pub tokenizer: Vec<TokenizedText>,
    pub chat_template: Vec<Chat>,
}

#[derive(Deserialize)]
pub struct ModelFacts {
    pub sha256: String,
}

#[derive(Deserialize)]
pub struct Prompt {
    pub name: String,
    pub text: String,
    pub ids: Vec<u32>,
    pub first: FirstToken,
    pub greedy: Greedy,
}

/// Logits after the prompt.
#[derive(Deserialize)]
pub struct FirstToken {
    pub top_ids: Vec<u32>,
    pub top_logits: Vec<f32>,
    /// Beside [`Fixture::probe_ids`].
    pub probe_logits: Vec<f32>,
}

/// The greedy tokens, and the two best logits of every step.
#[derive(Deserialize)]
pub struct Greedy {
    pub ids: Vec<u32>,
    pub top_logits: Vec<f32>,
    pub second_ids: Vec<u32>,
    pub second_logits: Vec<f32>,
}

#[derive(Deserialize)]
pub struct TokenizedText {
    pub text: String,
    pub ids: Vec<u32>,
}

#[derive(Deserialize)]
pub struct Chat {
    pub name: String,
    pub messages: Vec<Message>,
    pub rendered: String,
    pub ids: Vec<u32>,
}

#[derive(Deserialize)]
pub struct Message {
    pub role: String,
    pub content: String,
}

impl Fixture {
    pub fn read() -> anyhow::Result<Self> {
        Ok(serde_json::from_str(include_str!(
            "smollm2-135m-q4_1.json"
        ))?)
    }

    /// Largest distance of any kept logit, and the root mean square over the probes after their
    /// mean shift is taken out.
    pub fn distance(&self, prompt: &Prompt, logits: &Logits) -> (f32, f32) {
        let first = &prompt.first;
        let off = |(&id, &wanted): (&u32, &f32)| logits.0[id as usize] - wanted;
        let probes: Vec<f32> = (self.probe_ids.iter().zip(&first.probe_logits))
            .map(off)
            .collect();
        let top = first.top_ids.iter().zip(&first.top_logits).map(off);
        let largest = largest(top.chain(probes.iter().copied()));
        (largest, centred_rms(&probes))
    }
}

/// Largest distance of two equally long lists.
pub fn largest_distance(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len(), "logits of one vocabulary");
    largest(a.iter().zip(b).map(|(a, b)| a - b))
}

/// Largest absolute value; a NaN counts as infinite, where a plain maximum would lose it.
fn largest(values: impl Iterator<Item = f32>) -> f32 {
    values.fold(0f32, |worst, value| match value.is_nan() {
        true => f32::INFINITY,
        false => worst.max(value.abs()),
    })
}

/// Root mean square around the mean.
fn centred_rms(values: &[f32]) -> f32 {
    let n = values.len() as f32;
    let mean = values.iter().sum::<f32>() / n;
    (values.iter().map(|v| (v - mean).powi(2)).sum::<f32>() / n).sqrt()
}

impl TokenizedText {
    /// What decoding the ids gives back, or `None` where parts of a character are lost.
    pub fn text_that_survives(&self) -> Option<String> {
        if self.text.contains(['\u{50000}', '\u{c0000}']) {
            return None;
        }
        let text = SPECIAL_TOKENS
            .iter()
            .fold(self.text.clone(), |text, token| text.replace(token, ""));
        Some(text.replace(UNKNOWN_BYTES, ""))
    }
}
