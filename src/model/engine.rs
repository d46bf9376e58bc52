//! A loaded model: tokenizer, decoder and identity, with prefill in chunks and single steps.

use std::ops::Range;
use std::path::Path;
use std::time::Instant;

use anyhow::Context;
use candle_core::Device;
use serde::{Deserialize, Serialize};

use super::ModelError;
use super::attention::Place;
use super::checkpoint::Checkpoint;
use super::decoder::{Decoder, LayerDone};
use super::device::{DeviceDecoder, DeviceFacts};
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

/// Where K and V of a prompt are needed next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Landing {
    /// In the cache, for whoever reads it: a device's are copied there.
    Host,
    /// Where this engine's steps read them: a device's stay on it.
    InPlace,
}

/// The decoder, for where it computes.
enum Backend {
    Host(Box<Decoder>),
    Device(Box<DeviceDecoder>),
}

/// A model ready to run.
pub struct Engine {
    /// What is loaded.
    pub identity: ModelIdentity,
    /// What computes on this machine, such as `matrices own, avx512-vnni; vectors avx512`.
    pub kernels: String,
    /// What computes, where it is not the processor.
    pub device: Option<DeviceFacts>,
    /// Text to tokens and back.
    pub tokenizer: Tokenizer,
    backend: Backend,
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
        Self::load_on(None, path, name, file_sha256, weights, progress)
    }

    /// As [`Engine::load`], on a device; `None` is the processor. Any device of candle's serves,
    /// its CPU too, which gives other bits than the processor on kernels of our own.
    pub fn load_on(
        device: Option<&Device>,
        path: &Path,
        name: &str,
        file_sha256: &str,
        weights: Option<WeightsFormat>,
        progress: &dyn Fn(usize, usize),
    ) -> Result<Self, ModelError> {
        Self::from_checkpoint(
            device,
            &Checkpoint::open(path)?,
            name,
            file_sha256,
            weights,
            progress,
        )
    }

    /// As [`Engine::load_on`], of an open checkpoint.
    pub fn from_checkpoint(
        device: Option<&Device>,
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
        let format = weights.unwrap_or_else(|| match device {
            None => WeightsFormat::default_for(&formats),
            Some(_) => WeightsFormat::default_on_device(&formats),
        });
        let identity = ModelIdentity {
            name: name.to_string(),
            file_sha256: file_sha256.to_string(),
            weights: checkpoint.weights_label(format),
        };
        let facts = device.map(DeviceFacts::of);
        Ok(Self {
            identity,
            kernels: match &facts {
                None => format.kernels(&formats),
                Some(facts) => format!("matrices and vectors candle's, {}", facts.kind),
            },
            device: facts,
            tokenizer,
            backend: match device {
                None => {
                    let decoder = Decoder::load(checkpoint, shape, format, progress)?;
                    Backend::Host(Box::new(decoder))
                }
                Some(device) => {
                    let decoder = DeviceDecoder::load(checkpoint, shape, format, device, progress)?;
                    Backend::Device(Box::new(decoder))
                }
            },
        })
    }

    /// Sizes and constants of the model.
    pub fn shape(&self) -> &ModelShape {
        match &self.backend {
            Backend::Host(decoder) => decoder.shape(),
            Backend::Device(decoder) => decoder.shape(),
        }
    }

    /// Bytes of all matrices as loaded.
    pub fn weight_bytes(&self) -> usize {
        match &self.backend {
            Backend::Host(decoder) => decoder.weight_bytes(),
            Backend::Device(decoder) => decoder.weight_bytes(),
        }
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
        self.prefill_to(Landing::Host, tokens, chunk_tokens, cache, on_layer, || {
            Ok(())
        })
    }

    /// As [`Engine::prefill`], calling `pause` between two chunks: other sequences may take a step
    /// there. Where K and V stay on a device, `on_layer` is never called.
    pub fn prefill_to(
        &self,
        landing: Landing,
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
            let mut on_layer = |layer, tokens, staging| {
                on_layer(LayerDone {
                    layer,
                    chunk,
                    tokens,
                    staging,
                });
            };
            let first = Place { cache, position };
            last = Some(match &self.backend {
                Backend::Host(decoder) => decoder.prefill(part, first, &mut |layer, tokens| {
                    on_layer(layer, tokens, None);
                })?,
                Backend::Device(decoder) if landing == Landing::Host => {
                    let mut on_layer = |layer, tokens, staging| {
                        on_layer(layer, tokens, Some(staging));
                    };
                    decoder.prefill(part, first, Some(&mut on_layer))?
                }
                Backend::Device(decoder) => decoder.prefill(part, first, None)?,
            });
            position += part.len();
        }
        // Only the last chunk's last token needs the output head.
        let last = last.context("a prompt has at least one chunk")?;
        Ok(Logits(match &self.backend {
            Backend::Host(decoder) => decoder.logits(&last)?,
            Backend::Device(decoder) => decoder.logits(&last)?,
        }))
    }

    /// Copies to the device what landed in the cache from elsewhere, and tells when; `None` where
    /// nothing was to be copied. A step does it too, untold.
    pub fn stage(&self, cache: &KvCache) -> anyhow::Result<Option<Range<Instant>>> {
        match &self.backend {
            Backend::Host(_) => Ok(None),
            Backend::Device(decoder) => decoder.stage(cache),
        }
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
        let logits = match &self.backend {
            Backend::Host(decoder) => decoder.step(&tokens, &places)?,
            Backend::Device(decoder) => decoder.step(&tokens, &places)?,
        };
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
