//! A loaded model: tokenizer, decoder and identity, with prefill in chunks and single steps.

use std::path::Path;

use anyhow::Context;
use serde::{Deserialize, Serialize};

use super::ModelError;
use super::attention::Place;
use super::checkpoint::Checkpoint;
use super::decoder::{Decoder, LayerDone};
use super::kv_cache::KvCache;
use super::logits::Logits;
use super::shape::ModelShape;
use super::tokenizer::Tokenizer;
use super::weights::WeightsFormat;

/// What must be equal on both nodes for their answers to be comparable.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelIdentity {
    /// Name for people; not part of what must be equal.
    pub name: String,
    /// SHA-256 of the file.
    pub file_sha256: String,
    /// Weights that run, such as `as-is: q4_1, q8_0`.
    pub weights: String,
}

impl ModelIdentity {
    /// Digest over file and weights format (32 hex digits of blake3).
    pub fn fingerprint(&self) -> String {
        let text = format!("{}\n{}", self.file_sha256, self.weights);
        blake3::hash(text.as_bytes()).to_hex()[..32].to_string()
    }
}

/// A model ready to run.
pub struct Engine {
    /// What is loaded.
    pub identity: ModelIdentity,
    /// What computes on this machine, such as `matrices own, avx512-vnni; vectors avx512`.
    pub kernels: String,
    /// Text to tokens and back.
    pub tokenizer: Tokenizer,
    decoder: Decoder,
}

impl Engine {
    /// Loads what [`Checkpoint::open`] opens under a name for people. The caller has taken its
    /// digest; `weights` of `None` means what suits the file. `progress(done, total)` counts layers.
    pub fn load(
        path: &Path,
        name: &str,
        file_sha256: &str,
        weights: Option<WeightsFormat>,
        progress: &dyn Fn(usize, usize),
    ) -> Result<Self, ModelError> {
        Self::from_checkpoint(
            &Checkpoint::open(path)?,
            name,
            file_sha256,
            weights,
            progress,
        )
    }

    /// As [`Engine::load`], of an open checkpoint.
    pub fn from_checkpoint(
        checkpoint: &Checkpoint,
        name: &str,
        file_sha256: &str,
        weights: Option<WeightsFormat>,
        progress: &dyn Fn(usize, usize),
    ) -> Result<Self, ModelError> {
        let shape = checkpoint.shape()?;
        let tokenizer = match checkpoint {
            Checkpoint::Gguf(gguf) => Tokenizer::from_gguf(gguf)?,
            Checkpoint::Folder(folder) => Tokenizer::from_folder(folder.path())?,
            Checkpoint::Random(_) => Tokenizer::of_bytes(shape.vocabulary)?,
        };
        // Padding of the embedding is common, an id without a row is a file of another model.
        if tokenizer.largest_id() as usize >= shape.vocabulary {
            return Err(checkpoint.error(format!(
                "the tokenizer has ids up to {}, the embedding has {} rows",
                tokenizer.largest_id(),
                shape.vocabulary
            )));
        }
        let formats = checkpoint.matrix_formats();
        let format = weights.unwrap_or_else(|| WeightsFormat::default_for(&formats));
        let identity = ModelIdentity {
            name: name.to_string(),
            file_sha256: file_sha256.to_string(),
            weights: checkpoint.weights_label(format),
        };
        Ok(Self {
            identity,
            kernels: format.kernels(&formats),
            tokenizer,
            decoder: Decoder::load(checkpoint, shape, format, progress)?,
        })
    }

    /// Sizes and constants of the model.
    pub fn shape(&self) -> &ModelShape {
        self.decoder.shape()
    }

    /// Bytes of all matrices as loaded.
    pub fn weight_bytes(&self) -> usize {
        self.decoder.weight_bytes()
    }

    /// Whether a prompt and its answer fit the context.
    pub fn check_length(
        &self,
        prompt_tokens: usize,
        output_tokens: usize,
    ) -> Result<(), ModelError> {
        let context_tokens = self.shape().context_tokens;
        if prompt_tokens.saturating_add(output_tokens) > context_tokens {
            return Err(ModelError::TooLong {
                prompt_tokens,
                output_tokens,
                context_tokens,
            });
        }
        Ok(())
    }

    /// Prefills an empty cache with `tokens`, `chunk_tokens` at a time (`None`: all at once), and
    /// returns the logits after the last one. `on_layer` is called when a layer's K and V of a
    /// chunk have landed in the cache.
    pub fn prefill(
        &self,
        tokens: &[u32],
        chunk_tokens: Option<usize>,
        cache: &KvCache,
        on_layer: impl FnMut(LayerDone),
    ) -> anyhow::Result<Logits> {
        self.prefill_with_pauses(tokens, chunk_tokens, cache, on_layer, || Ok(()))
    }

    /// As [`Engine::prefill`], calling `pause` between two chunks: other sequences may take a step
    /// there.
    pub fn prefill_with_pauses(
        &self,
        tokens: &[u32],
        chunk_tokens: Option<usize>,
        cache: &KvCache,
        mut on_layer: impl FnMut(LayerDone),
        mut pause: impl FnMut() -> anyhow::Result<()>,
    ) -> anyhow::Result<Logits> {
        anyhow::ensure!(
            !tokens.is_empty(),
            "a prompt of no tokens cannot be prefilled"
        );
        self.check_tokens(tokens)?;
        self.check_length(tokens.len(), 0)?;
        let chunk_tokens = chunk_tokens.unwrap_or(tokens.len()).max(1);
        let mut last = None;
        let mut position = 0;
        for (chunk, part) in tokens.chunks(chunk_tokens).enumerate() {
            if chunk > 0 {
                pause()?;
            }
            let mut on_layer = |layer, tokens| {
                on_layer(LayerDone {
                    layer,
                    chunk,
                    tokens,
                });
            };
            let first = Place { cache, position };
            last = Some(self.decoder.prefill(part, first, &mut on_layer)?);
            position += part.len();
        }
        // Only the last chunk's last token needs the output head.
        let last = last.context("a prompt has at least one chunk")?;
        Ok(Logits(self.decoder.logits(&last)?))
    }

    /// Appends one token to the cache and returns the logits after it.
    pub fn step(&self, token: u32, cache: &KvCache) -> anyhow::Result<Logits> {
        let mut all = self.step_batch(&[(token, cache)])?;
        all.pop().context("a batch of one gives one answer")
    }

    /// Appends one token to each of several caches, of any lengths, and returns the logits after
    /// each. Every answer has the bits that [`Engine::step`] gives.
    ///
    /// Where a cache is full or given twice, or a token is none, no cache is changed.
    pub fn step_batch(&self, batch: &[(u32, &KvCache)]) -> anyhow::Result<Vec<Logits>> {
        let mut tokens = Vec::with_capacity(batch.len());
        let mut places: Vec<Place<'_>> = Vec::with_capacity(batch.len());
        for &(token, cache) in batch {
            let position = cache.len_tokens();
            self.check_length(position, 1)?;
            anyhow::ensure!(
                position < cache.capacity_tokens(),
                "a cache of {position} tokens is full: take a larger one"
            );
            anyhow::ensure!(
                !places.iter().any(|other| std::ptr::eq(other.cache, cache)),
                "a batch has one token a sequence, and this one has a cache twice"
            );
            tokens.push(token);
            places.push(Place { cache, position });
        }
        self.check_tokens(&tokens)?;
        if batch.is_empty() {
            return Ok(Vec::new());
        }
        let logits = self.decoder.step(&tokens, &places)?;
        Ok(logits.into_iter().map(Logits).collect())
    }

    fn check_tokens(&self, tokens: &[u32]) -> anyhow::Result<()> {
        let vocabulary = self.shape().vocabulary;
        match tokens.iter().find(|&&t| t as usize >= vocabulary) {
            Some(token) => anyhow::bail!("token {token} is not in the vocabulary of {vocabulary}"),
            None => Ok(()),
        }
    }
}
