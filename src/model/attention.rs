//! Causal grouped-query attention straight over the KV cache, and the rope that fills it.
//!
//! Chunks of a prompt go in blocks of [`QUERY_BLOCK`] positions through gemm, single tokens, of
//! one sequence or of several at once, through a streaming kernel. K and V heads are never
//! repeated. Blocks start at multiples of [`QUERY_BLOCK`] of the absolute position, so prefill
//! chunks that are multiples of it give the same bits here as one whole prefill, but for a last
//! chunk of one token, which goes as a step does. Matrices of our own (`packed`) do so whatever the
//! chunk; in f32 gemm takes another path for a last chunk of 1 to 4 tokens. A single token has the same bits here whatever other
//! sequences are stepped with it.

mod adjust;
mod blocks;
mod rope;
mod steps;

use std::ops::Range;

use half::{bf16, f16};
use zerocopy::FromBytes;

use super::kernels;
use super::kv_cache::{KvCache, KvDtype, KvError};
use super::parallel;

pub use adjust::{QueryKeyNorm, adjust};
pub use blocks::QUERY_BLOCK;
pub use rope::{RopeTable, rotate_and_store};

/// Head counts and widths of one attention layer.
#[derive(Clone, Copy, Debug)]
pub struct AttentionShape {
    /// Query heads.
    pub n_heads: usize,
    /// K/V heads; divides `n_heads`.
    pub n_kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Tokens that a token sees, itself included; `None` is all of them.
    pub window_tokens: Option<usize>,
}

impl AttentionShape {
    /// Query heads that share a K/V head.
    fn group(&self) -> usize {
        self.n_heads / self.n_kv_heads
    }

    /// Width of the queries of a token.
    pub fn q_width(&self) -> usize {
        self.n_heads * self.head_dim
    }

    /// Width of a fused Q, K, V row.
    pub fn qkv_width(&self) -> usize {
        (self.n_heads + 2 * self.n_kv_heads) * self.head_dim
    }

    fn kv_row(&self) -> usize {
        2 * self.n_kv_heads * self.head_dim
    }

    /// The tokens that the one at `position` sees.
    pub(super) fn seen_from(&self, position: usize) -> Range<usize> {
        let end = position + 1;
        let start = self.window_tokens.map_or(0, |w| end.saturating_sub(w));
        start..end
    }
}

/// A token's place: a position of a sequence.
#[derive(Clone, Copy, Debug)]
pub struct Place<'a> {
    /// K and V of the sequence.
    pub cache: &'a KvCache,
    /// Tokens before this one.
    pub position: usize,
}

/// What the rows are that go through the decoder together.
#[derive(Clone, Copy, Debug)]
pub enum Rows<'a> {
    /// Neighbouring tokens of one sequence, from this place on.
    Chunk(Place<'a>),
    /// One token of each of several sequences.
    Steps(&'a [Place<'a>]),
}

/// Memory that attention uses again for every layer, chunk and step.
#[derive(Debug, Default)]
pub struct Scratch {
    threads: Vec<ThreadScratch>,
    /// Partial results of single tokens.
    parts: Vec<f32>,
    /// Results of blocks, in their own order.
    results: Vec<f32>,
    /// K and V of a layer in f32, where the cache holds less.
    wide: Vec<f32>,
}

impl Scratch {
    fn threads(&mut self) -> &mut [ThreadScratch] {
        if self.threads.is_empty() {
            (self.threads).resize_with(parallel::threads(), Default::default);
        }
        &mut self.threads
    }
}

/// Memory of one thread.
#[derive(Debug, Default)]
struct ThreadScratch {
    wide: Vec<f32>,
    block: blocks::BlockScratch,
}

/// The first `len` elements of `buffer`, made longer if need be; what they hold is left over.
fn sized(buffer: &mut Vec<f32>, len: usize) -> &mut [f32] {
    if buffer.len() < len {
        buffer.resize(len, 0.0);
    }
    &mut buffer[..len]
}

/// Attention of every row over the tokens up to it, itself included: all of them, or a window.
///
/// `q` is `(n, n_heads, head_dim)`, rotated and scaled; `out` is `(n, out_width)` and gets zeros
/// behind `n_heads x head_dim`. Fails where a token before a row has not landed in the cache.
pub fn attend(
    shape: AttentionShape,
    q: &[f32],
    rows: Rows<'_>,
    layer: usize,
    out: &mut [f32],
    out_width: usize,
    scratch: &mut Scratch,
) -> Result<(), KvError> {
    scratch.threads();
    match rows {
        Rows::Steps(places) => {
            steps::attend_steps(shape, q, places, layer, out, out_width, scratch)
        }
        Rows::Chunk(place) if q.len() == shape.q_width() => {
            steps::attend_steps(shape, q, &[place], layer, out, out_width, scratch)
        }
        Rows::Chunk(place) => blocks::attend_chunk(shape, q, place, layer, out, out_width, scratch),
    }
}

/// K/V rows `(tokens, n_kv_heads, 2 x head_dim)` of one layer.
#[derive(Clone, Copy)]
enum KvRows<'a> {
    F32(&'a [f32]),
    F16(&'a [f16]),
    Bf16(&'a [bf16]),
}

impl<'a> KvRows<'a> {
    /// The first `tokens` tokens of a sequence.
    fn read(cache: &'a KvCache, layer: usize, tokens: usize) -> Result<Self, KvError> {
        let bytes = cache.read(layer, 0..tokens)?;
        Ok(match cache.layout().dtype {
            KvDtype::F32 => Self::F32(elements(bytes)),
            KvDtype::F16 => Self::F16(elements(bytes)),
            KvDtype::Bf16 => Self::Bf16(elements(bytes)),
        })
    }

    /// Writes a range of elements as f32.
    fn widen(&self, range: Range<usize>, out: &mut [f32]) {
        match self {
            Self::F32(rows) => out.copy_from_slice(&rows[range]),
            Self::F16(rows) => kernels::widen_f16(&rows[range], out),
            Self::Bf16(rows) => kernels::widen_bf16(&rows[range], out),
        }
    }
}

/// Cache rows are multiples of the element size from an aligned start, so this cannot fail.
fn elements<T: FromBytes + zerocopy::Immutable>(bytes: &[u8]) -> &[T] {
    <[T]>::ref_from_bytes(bytes).expect("cache rows are aligned and whole")
}

fn elements_mut<T: FromBytes + zerocopy::IntoBytes>(bytes: &mut [u8]) -> &mut [T] {
    <[T]>::mut_from_bytes(bytes).expect("cache rows are aligned and whole")
}

#[cfg(test)]
mod tests;
