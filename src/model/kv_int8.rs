//! Rows of a cache as int8: the lossy form that they may take on the wire, and the way back.
//!
//! A row keeps its order, `(n_kv_heads, k | v)`; a head becomes the scale of its K and that of its
//! V (f32, little-endian), then `head_dim` signed bytes of K and as many of V. A value is its byte
//! times the scale, which is the largest value of its vector / 127.
//!
//! Bytes in, bytes out: sending and receiving them is `node`'s business.

use half::{bf16, f16};
use pulp::Arch;
use serde::{Deserialize, Serialize};

use super::kernels;
use super::kv_cache::{KvCache, KvDtype, KvError, KvLayout};

/// Largest byte: -128 is not used, so that a value and its opposite lose the same.
const STEPS: f32 = 127.0;

/// Bytes of a scale.
const SCALE_BYTES: usize = size_of::<f32>();

/// Rows that are taken through int8 at a time where a whole cache is: they stay in the
/// processor's cache.
const ROWS_AT_ONCE: usize = 256;

/// What the rows of a cache are on the wire.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, clap::ValueEnum,
)]
#[serde(rename_all = "lowercase")]
pub enum WireRows {
    /// The bytes of the cache, in its KV dtype.
    Same,
    /// Int8 with a scale a head, for K and V each. Lossy.
    Int8,
}

impl WireRows {
    /// Bytes of one token in one layer, K and V together.
    pub const fn row_bytes(self, layout: KvLayout) -> usize {
        match self {
            Self::Same => layout.row_bytes(),
            Self::Int8 => layout.n_kv_heads * 2 * (SCALE_BYTES + layout.head_dim),
        }
    }

    /// Digest of the first `tokens` tokens of a cache as they are behind the wire; of
    /// [`WireRows::Same`] that of the cache itself.
    pub fn digest(self, cache: &KvCache, tokens: usize) -> Result<blake3::Hash, KvError> {
        if self == Self::Same {
            return cache.digest(tokens);
        }
        let layout = cache.layout();
        let mut hasher = blake3::Hasher::new();
        let (mut bytes, mut rows) = (Vec::new(), Vec::new());
        for layer in 0..layout.n_layers {
            for exact in (cache.read(layer, 0..tokens)?).chunks(ROWS_AT_ONCE * layout.row_bytes()) {
                quantise(layout, exact, &mut bytes);
                rows.resize(exact.len(), 0);
                dequantise(layout, &bytes, &mut rows);
                hasher.update(&rows);
            }
        }
        Ok(hasher.finalize())
    }

    /// Fills an empty cache with the first `tokens` tokens of another as they are behind the wire.
    pub fn carry(self, from: &KvCache, tokens: usize, to: &KvCache) -> Result<(), KvError> {
        let layout = from.layout();
        let mut bytes = Vec::new();
        for layer in 0..layout.n_layers {
            let exact = from.read(layer, 0..tokens)?;
            let mut claim = to.claim(layer, 0, tokens)?;
            match self {
                Self::Same => claim.copy_from_slice(exact),
                Self::Int8 => {
                    quantise(layout, exact, &mut bytes);
                    dequantise(layout, &bytes, &mut claim);
                }
            }
            claim.land();
        }
        Ok(())
    }
}

/// Quantises whole rows of a cache into `out`, whose content is replaced.
///
/// Where values are finite, none is off by more than half a step, which is its scale / 2. NaN
/// becomes 0 and an infinity the largest finite value of its vector. A vector without a value
/// above 127 times the smallest normal f32 becomes zeros, with scale 0.
pub fn quantise(layout: KvLayout, rows: &[u8], out: &mut Vec<u8>) {
    let head_bytes = 2 * layout.head_dim * layout.dtype.bytes();
    assert!(
        rows.len().is_multiple_of(layout.row_bytes()),
        "whole rows are quantised"
    );
    // What is in it already is overwritten, so no byte is cleared twice.
    out.resize(
        rows.len() / layout.row_bytes() * WireRows::Int8.row_bytes(layout),
        0,
    );
    let mut wide = Wide::new(layout);
    Arch::new().dispatch(
        #[inline(always)]
        || {
            let quantised_bytes = 2 * (SCALE_BYTES + layout.head_dim);
            for (head, out) in
                (rows.chunks_exact(head_bytes)).zip(out.chunks_exact_mut(quantised_bytes))
            {
                let (k, v) = wide.load(head).split_at(layout.head_dim);
                let (scales, bytes) = out.split_at_mut(2 * SCALE_BYTES);
                let (k_bytes, v_bytes) = bytes.split_at_mut(layout.head_dim);
                let (k_scale, v_scale) = scales.split_at_mut(SCALE_BYTES);
                k_scale.copy_from_slice(&quantise_vector(k, k_bytes).to_le_bytes());
                v_scale.copy_from_slice(&quantise_vector(v, v_bytes).to_le_bytes());
            }
        },
    );
}

/// Turns quantised rows back into rows of the cache. Whatever the bytes are, so are the values:
/// a scale that is not finite gives values that are not.
pub fn dequantise(layout: KvLayout, bytes: &[u8], rows: &mut [u8]) {
    let head_bytes = 2 * layout.head_dim * layout.dtype.bytes();
    let row_bytes = WireRows::Int8.row_bytes(layout);
    assert!(
        bytes.len().is_multiple_of(row_bytes)
            && bytes.len() / row_bytes * layout.row_bytes() == rows.len(),
        "there is a row for every quantised one"
    );
    let mut wide = Wide::new(layout);
    Arch::new().dispatch(
        #[inline(always)]
        || {
            let quantised_bytes = 2 * (SCALE_BYTES + layout.head_dim);
            for (head, bytes) in
                (rows.chunks_exact_mut(head_bytes)).zip(bytes.chunks_exact(quantised_bytes))
            {
                let (scales, bytes) = bytes.split_at(2 * SCALE_BYTES);
                let vectors = wide.values.chunks_exact_mut(layout.head_dim);
                let bytes = bytes.chunks_exact(layout.head_dim);
                for ((vector, bytes), scale) in vectors.zip(bytes).zip(scales.as_chunks().0) {
                    let scale = f32::from_le_bytes(*scale);
                    for (value, byte) in vector.iter_mut().zip(bytes) {
                        *value = f32::from(*byte as i8) * scale;
                    }
                }
                wide.store(head);
            }
        },
    );
}

/// Quantises one vector and gives its scale.
#[inline(always)]
fn quantise_vector(vector: &[f32], bytes: &mut [u8]) -> f32 {
    // Adding 1.5 x 2^23 rounds to the nearest integer and leaves it in the low bits.
    const ROUND: f32 = 12_582_912.0;
    const INFINITY_BITS: u32 = f32::INFINITY.to_bits();
    // Of positive floats the larger one has the larger bits, and integers have no NaN.
    let largest = vector.iter().fold(0, |largest: u32, value| {
        let bits = value.abs().to_bits();
        largest.max(if bits < INFINITY_BITS { bits } else { 0 })
    });
    let scale = f32::from_bits(largest) / STEPS;
    if !scale.is_normal() {
        bytes.fill(0);
        return 0.0;
    }
    let inverse = 1.0 / scale;
    for (byte, value) in bytes.iter_mut().zip(vector) {
        let value = if value.is_nan() { 0.0 } else { *value };
        let steps = (value * inverse).clamp(-STEPS, STEPS);
        *byte = (steps + ROUND).to_bits() as u8;
    }
    // Next to the largest f32 the way back must not end in infinity.
    match (scale * STEPS).is_finite() {
        true => scale,
        false => scale.next_down(),
    }
}

/// K and V of one head in f32, on their way from or to the cache's own type.
struct Wide {
    dtype: KvDtype,
    values: Vec<f32>,
    narrow: Vec<f16>,
    brain: Vec<bf16>,
}

impl Wide {
    fn new(layout: KvLayout) -> Self {
        let values = 2 * layout.head_dim;
        Self {
            dtype: layout.dtype,
            values: vec![0.0; values],
            narrow: vec![f16::ZERO; values],
            brain: vec![bf16::ZERO; values],
        }
    }

    #[inline(always)]
    fn load(&mut self, head: &[u8]) -> &[f32] {
        match self.dtype {
            KvDtype::F32 => {
                for (value, bytes) in self.values.iter_mut().zip(head.as_chunks().0) {
                    *value = f32::from_le_bytes(*bytes);
                }
            }
            KvDtype::F16 => {
                for (value, bytes) in self.narrow.iter_mut().zip(head.as_chunks().0) {
                    *value = f16::from_le_bytes(*bytes);
                }
                kernels::widen_f16(&self.narrow, &mut self.values);
            }
            KvDtype::Bf16 => {
                for (value, bytes) in self.brain.iter_mut().zip(head.as_chunks().0) {
                    *value = bf16::from_le_bytes(*bytes);
                }
                kernels::widen_bf16(&self.brain, &mut self.values);
            }
        }
        &self.values
    }

    #[inline(always)]
    fn store(&mut self, head: &mut [u8]) {
        match self.dtype {
            KvDtype::F32 => {
                for (bytes, value) in head.as_chunks_mut().0.iter_mut().zip(&self.values) {
                    *bytes = value.to_le_bytes();
                }
            }
            KvDtype::F16 => {
                kernels::narrow_f16(&self.values, &mut self.narrow);
                for (bytes, value) in head.as_chunks_mut().0.iter_mut().zip(&self.narrow) {
                    *bytes = value.to_le_bytes();
                }
            }
            KvDtype::Bf16 => {
                kernels::narrow_bf16(&self.values, &mut self.brain);
                for (bytes, value) in head.as_chunks_mut().0.iter_mut().zip(&self.brain) {
                    *bytes = value.to_le_bytes();
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
