//! Rotary positions: Q, K and V as a matrix gives them become rotated queries and cache rows.

use super::{AttentionShape, Place, Rows, Scratch, elements_mut, sized};
use crate::model::architecture::RopePairs;
use crate::model::kernels;
use crate::model::kv_cache::{KvDtype, KvError};
use crate::model::parallel;
use crate::model::shape::Rope;

/// Cosines and sines of rotary positions: `(max_tokens, head_dim / 2)` each.
#[derive(Debug)]
pub struct RopeTable {
    cos: Vec<f32>,
    sin: Vec<f32>,
    half: usize,
    pairs: RopePairs,
}

/// The rotation of one position.
#[derive(Clone, Copy)]
struct Rotation<'a> {
    cos: &'a [f32],
    sin: &'a [f32],
    pairs: RopePairs,
}

impl RopeTable {
    /// Angles `position x frequency`.
    pub fn new(rope: &Rope, head_dim: usize, max_tokens: usize) -> Self {
        let frequencies = rope.frequencies(head_dim);
        let angles = (0..max_tokens).flat_map(|p| frequencies.iter().map(move |f| p as f64 * f));
        let (sin, cos) = angles.map(|a| (a.sin() as f32, a.cos() as f32)).unzip();
        Self {
            cos,
            sin,
            half: head_dim / 2,
            pairs: rope.pairs,
        }
    }

    /// Cosines `(max_tokens, head_dim / 2)`.
    pub fn cosines(&self) -> &[f32] {
        &self.cos
    }

    /// Sines `(max_tokens, head_dim / 2)`.
    pub fn sines(&self) -> &[f32] {
        &self.sin
    }

    fn at(&self, position: usize) -> Rotation<'_> {
        let range = position * self.half..(position + 1) * self.half;
        Rotation {
            cos: &self.cos[range.clone()],
            sin: &self.sin[range],
            pairs: self.pairs,
        }
    }
}

impl Rotation<'_> {
    /// Turns one head.
    fn apply(&self, x: &[f32], out: &mut [f32]) {
        match self.pairs {
            RopePairs::Neighbours => kernels::rope_neighbours(x, self.cos, self.sin, out),
            RopePairs::Halves => kernels::rope_halves(x, self.cos, self.sin, out),
        }
    }
}

/// Rotates Q and K of `qkv` `(n, (n_heads + 2 n_kv_heads) x head_dim)`, writes K and V of every
/// row into its cache, and Q scaled by `1 / sqrt(head_dim)` into `q` `(n, n_heads, head_dim)`.
///
/// Fails where a place does not exist or was written before.
pub fn rotate_and_store(
    shape: AttentionShape,
    rope: &RopeTable,
    qkv: &[f32],
    rows: Rows<'_>,
    layer: usize,
    q: &mut [f32],
    scratch: &mut Scratch,
) -> Result<(), KvError> {
    match rows {
        Rows::Chunk(first) => store_chunk(shape, rope, qkv, first, layer, q, scratch),
        Rows::Steps(places) => {
            // A few tokens are not worth waking other threads for.
            let wide = sized(&mut scratch.threads()[0].wide, shape.kv_row());
            let tokens = qkv
                .chunks(shape.qkv_width())
                .zip(q.chunks_mut(shape.q_width()));
            for (place, (qkv, q)) in places.iter().zip(tokens) {
                let mut claim = place.cache.claim(layer, place.position, 1)?;
                let dtype = place.cache.layout().dtype;
                let rotation = rope.at(place.position);
                rotate_token(shape, rotation, qkv, q, dtype, &mut claim, wide);
                claim.land();
            }
            Ok(())
        }
    }
}

fn store_chunk(
    shape: AttentionShape,
    rope: &RopeTable,
    qkv: &[f32],
    first: Place<'_>,
    layer: usize,
    q: &mut [f32],
    scratch: &mut Scratch,
) -> Result<(), KvError> {
    let (q_width, layout) = (shape.q_width(), first.cache.layout());
    let n = q.len() / q_width;
    let mut claim = first.cache.claim(layer, first.position, n)?;
    parallel::for_rows_of_two(
        q,
        q_width,
        &mut claim,
        layout.row_bytes(),
        scratch.threads(),
        |tokens, q, kv, scratch| {
            let wide = sized(&mut scratch.wide, shape.kv_row());
            let rows = q.chunks_mut(q_width).zip(kv.chunks_mut(layout.row_bytes()));
            for (token, (q, kv)) in tokens.zip(rows) {
                let qkv = &qkv[token * shape.qkv_width()..][..shape.qkv_width()];
                let rotation = rope.at(first.position + token);
                rotate_token(shape, rotation, qkv, q, layout.dtype, kv, wide);
            }
        },
    );
    claim.land();
    Ok(())
}

/// One token: `q` is `(n_heads, head_dim)` out, `kv` is its row of a cache of `dtype`, `wide` is
/// room for the same row in f32.
fn rotate_token(
    shape: AttentionShape,
    rotation: Rotation<'_>,
    qkv: &[f32],
    q: &mut [f32],
    dtype: KvDtype,
    kv: &mut [u8],
    wide: &mut [f32],
) {
    match dtype {
        KvDtype::F32 => rotate_token_wide(shape, rotation, qkv, q, elements_mut(kv)),
        KvDtype::F16 => {
            rotate_token_wide(shape, rotation, qkv, q, wide);
            kernels::narrow_f16(wide, elements_mut(kv));
        }
        KvDtype::Bf16 => {
            rotate_token_wide(shape, rotation, qkv, q, wide);
            kernels::narrow_bf16(wide, elements_mut(kv));
        }
    }
}

/// As [`rotate_token`], with `kv` as `(n_kv_heads, 2 x head_dim)` in f32.
fn rotate_token_wide(
    shape: AttentionShape,
    rotation: Rotation<'_>,
    qkv: &[f32],
    q: &mut [f32],
    kv: &mut [f32],
) {
    let dim = shape.head_dim;
    let (q_in, kv_in) = qkv.split_at(shape.q_width());
    let (k_in, v_in) = kv_in.split_at(shape.n_kv_heads * dim);
    let scale = 1.0 / (dim as f32).sqrt();
    for (x, out) in q_in.chunks(dim).zip(q.chunks_mut(dim)) {
        rotation.apply(x, out);
        out.iter_mut().for_each(|x| *x *= scale);
    }
    for ((k, v), out) in (k_in.chunks(dim).zip(v_in.chunks(dim))).zip(kv.chunks_mut(2 * dim)) {
        let (k_out, v_out) = out.split_at_mut(dim);
        rotation.apply(k, k_out);
        v_out.copy_from_slice(v);
    }
}
