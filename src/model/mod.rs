//! The engine: where a model comes from, its tokenizer, its decoder and the KV cache.
//!
//! Knows no network. A [`kv_cache::KvCache`] belongs to a sequence, never to the engine, so
//! several sequences can be alive and a cache can arrive from another machine.

pub mod architecture;
pub mod attention;
pub mod cache_pool;
pub mod checkpoint;
pub mod decoder;
pub mod device;
pub mod engine;
pub mod folder;
pub mod gguf;
pub mod kernels;
pub mod kv_cache;
pub mod kv_int8;
pub mod logits;
pub mod mapped;
pub mod memory;
pub mod packed;
mod parallel;
pub mod published;
pub mod random;
pub mod shape;
pub mod source;
pub mod tensor_name;
pub mod tokenizer;
pub mod weights;
mod workspace;

use std::path::PathBuf;

/// Why a model cannot be loaded or used.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// A file or folder cannot be read or holds something that this build does not run.
    #[error("model {}: {why}", path.display())]
    File {
        /// The file or folder.
        path: PathBuf,
        /// What was found and what was wanted.
        why: String,
    },
    /// A file of the tokenizer cannot be read or holds something that this build does not know.
    #[error("tokenizer {}: {why}", path.display())]
    Tokenizer {
        /// The file.
        path: PathBuf,
        /// What was found and what was wanted.
        why: String,
    },
    /// A device cannot be used.
    #[error("device {device}: {why}")]
    Device {
        /// As it was asked for.
        device: String,
        /// What is wrong and what to do.
        why: String,
    },
    /// A text cannot be turned into tokens.
    #[error("text cannot be tokenized: {0}")]
    Tokenize(String),
    /// The model's own chat template fails.
    #[error("the model's chat template fails: {0}: --raw sends a prompt without it")]
    ChatTemplate(String),
    /// A prompt does not fit the model's context.
    #[error(
        "{prompt_tokens} prompt tokens and {output_tokens} output tokens do not fit the model's \
         context of {context_tokens}: shorten the prompt or ask for fewer tokens"
    )]
    TooLong {
        /// Prompt length.
        prompt_tokens: usize,
        /// Tokens asked for.
        output_tokens: usize,
        /// The model's limit.
        context_tokens: usize,
    },
}
