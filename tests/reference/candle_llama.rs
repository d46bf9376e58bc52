//! Candle's own quantised Llama on a GGUF file: another decoder that shares no code with ours but
//! candle's tensors.

use std::fs::File;
use std::io::BufReader;
use std::path::Path;

use candle_core::quantized::gguf_file::Content;
use candle_core::{Device, Tensor};
use candle_transformers::models::quantized_llama::ModelWeights;

/// One model with the cache of one sequence.
pub struct CandleLlama {
    weights: ModelWeights,
    len_tokens: usize,
}

impl CandleLlama {
    pub fn open(path: &Path) -> anyhow::Result<Self> {
        let mut reader = BufReader::new(File::open(path)?);
        let content = Content::read(&mut reader)?;
        Ok(Self {
            weights: ModelWeights::from_gguf(content, &mut reader, &Device::Cpu)?,
            len_tokens: 0,
        })
    }

    /// Logits after a prompt, in a fresh sequence.
    pub fn prefill(&mut self, tokens: &[u32]) -> anyhow::Result<Vec<f32>> {
        self.weights.clear_kv_cache();
        self.len_tokens = 0;
        self.append(tokens)
    }

    /// Logits after more tokens of the same sequence.
    pub fn append(&mut self, tokens: &[u32]) -> anyhow::Result<Vec<f32>> {
        let input = Tensor::new(tokens, &Device::Cpu)?.unsqueeze(0)?;
        let logits = self.weights.forward(&input, self.len_tokens)?;
        self.len_tokens += tokens.len();
        Ok(logits.flatten_all()?.to_vec1()?)
    }
}
