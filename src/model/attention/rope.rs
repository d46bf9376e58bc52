//! Rotary positions: Q, K and V as a matrix gives them become rotated queries and cache rows.

use super::{AttentionShape, Place, Rows, Scratch, elements_mut, sized};
use crate::model::kernels;
use crate::model::kv_cache::{KvDtype, KvError};
use crate::model::parallel;

/// Cosines and sines of rotary positions: `(max_tokens, head_dim / 2)` each.
#[derive(Debug)]
pub struct RopeTable {
    cos: Vec<f32>,
    sin: Vec<f32>,
    half: usize,
}

impl RopeTable {
    /// Angles `position / base^(2 i / head_dim)`.
    pub fn new(base: f32, head_dim: usize, max_tokens: usize) -> Self {
        let half = head_dim / 2;
        let inverse: Vec<f64> = (0..half)
            .map(|i| f64::from(base).powf(-2.0 * i as f64 / head_dim as f64))
            .collect();
        let angles = (0..max_tokens).flat_map(|p| inverse.iter().map(move |f| p as f64 * f));
        let (sin, cos) = angles.map(|a| (a.sin() as f32, a.cos() as f32)).unzip();
        Self { cos, sin, half }
    }

    fn at(&self, position: usize) -> (&[f32], &[f32]) {
        let range = position * self.half..(position + 1) * self.half;
        (&self.cos[range.clone()], &self.sin[range])
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
                let angles = rope.at(place.position);
                rotate_token(shape, angles, qkv, q, dtype, &mut claim, wide);
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
                let angles = rope.at(first.position + token);
                rotate_token(shape, angles, qkv, q, layout.dtype, kv, wide);
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
    angles: (&[f32], &[f32]),
    qkv: &[f32],
    q: &mut [f32],
    dtype: KvDtype,
    kv: &mut [u8],
    wide: &mut [f32],
) {
    match dtype {
        KvDtype::F32 => rotate_token_wide(shape, angles, qkv, q, elements_mut(kv)),
        KvDtype::F16 => {
            rotate_token_wide(shape, angles, qkv, q, wide);
            kernels::narrow_f16(wide, elements_mut(kv));
        }
        KvDtype::Bf16 => {
            rotate_token_wide(shape, angles, qkv, q, wide);
            kernels::narrow_bf16(wide, elements_mut(kv));
        }
    }
}

/// As [`rotate_token`], with `kv` as `(n_kv_heads, 2 x head_dim)` in f32.
fn rotate_token_wide(
    shape: AttentionShape,
    (cos, sin): (&[f32], &[f32]),
    qkv: &[f32],
    q: &mut [f32],
    kv: &mut [f32],
) {
    let dim = shape.head_dim;
    let (q_in, kv_in) = qkv.split_at(shape.q_width());
    let (k_in, v_in) = kv_in.split_at(shape.n_kv_heads * dim);
    let scale = 1.0 / (dim as f32).sqrt();
    for (x, out) in q_in.chunks(dim).zip(q.chunks_mut(dim)) {
        kernels::rope_interleaved_head(x, cos, sin, out);
        out.iter_mut().for_each(|x| *x *= scale);
    }
    for ((k, v), out) in (k_in.chunks(dim).zip(v_in.chunks(dim))).zip(kv.chunks_mut(2 * dim)) {
        let (k_out, v_out) = out.split_at_mut(dim);
        kernels::rope_interleaved_head(k, cos, sin, k_out);
        v_out.copy_from_slice(v);
    }
}
