//! Rotary positions: Q, K and V as a matrix gives them become rotated queries and cache rows.

use std::ops::Range;
use std::sync::OnceLock;

use super::{AttentionShape, Place, Rows, Scratch, elements_mut, sized};
use crate::model::architecture::RopePairs;
use crate::model::kernels;
use crate::model::kv_cache::{KvDtype, KvError};
use crate::model::parallel;
use crate::model::shape::Rope;

/// Angles of a block of positions, half a megabyte of cosines and sines.
const BLOCK_ANGLES: usize = 1 << 16;

/// Blocks that are there from the beginning, 8 MiB, so that no usual prompt waits for its own.
const FIRST_BLOCKS: usize = 16;

/// Cosines and sines of rotary positions, in blocks that are made when a position in them is first
/// needed: the length of a context is only what a model's file says.
#[derive(Debug)]
pub struct RopeTable {
    frequencies: Vec<f64>,
    max_tokens: usize,
    block_tokens: usize,
    blocks: Vec<OnceLock<Block>>,
    pairs: RopePairs,
}

/// Neighbouring positions, `(tokens, head_dim / 2)` each.
#[derive(Debug)]
struct Block {
    cos: Vec<f32>,
    sin: Vec<f32>,
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
        let block_tokens = (BLOCK_ANGLES / frequencies.len().max(1)).max(1);
        let n_blocks = max_tokens.div_ceil(block_tokens);
        let table = Self {
            frequencies,
            max_tokens,
            block_tokens,
            blocks: (0..n_blocks).map(|_| OnceLock::new()).collect(),
            pairs: rope.pairs,
        };
        (0..n_blocks.min(FIRST_BLOCKS)).for_each(|i| {
            table.block(i);
        });
        table
    }

    /// Cosines and sines of neighbouring positions, `(n, head_dim / 2)` each.
    pub fn rows(&self, positions: Range<usize>) -> (Vec<f32>, Vec<f32>) {
        let rows = positions.map(|position| self.at(position));
        let (cos, sin): (Vec<_>, Vec<_>) = rows.map(|row| (row.cos, row.sin)).unzip();
        (cos.concat(), sin.concat())
    }

    fn at(&self, position: usize) -> Rotation<'_> {
        let block = self.block(position / self.block_tokens);
        let (row, half) = (position % self.block_tokens, self.frequencies.len());
        let range = row * half..(row + 1) * half;
        Rotation {
            cos: &block.cos[range.clone()],
            sin: &block.sin[range],
            pairs: self.pairs,
        }
    }

    fn block(&self, i: usize) -> &Block {
        self.blocks[i].get_or_init(|| {
            let first = i * self.block_tokens;
            let positions = first..(first + self.block_tokens).min(self.max_tokens);
            let angles = positions.flat_map(|p| self.frequencies.iter().map(move |f| p as f64 * f));
            let (sin, cos) = angles.map(|a| (a.sin() as f32, a.cos() as f32)).unzip();
            Block { cos, sin }
        })
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_taken_for_positions_that_are_used_and_not_for_a_context() {
        let rope = Rope {
            base: 10_000.0,
            pairs: RopePairs::Halves,
            divisors: None,
        };
        let (head_dim, max_tokens) = (256, (1 << 20) - 3);
        let table = RopeTable::new(&rope, head_dim, max_tokens);
        let made = || table.blocks.iter().filter(|block| block.get().is_some());
        assert_eq!(made().count(), FIRST_BLOCKS);
        // From one block into the next, and the last of all.
        let edge = 100 * table.block_tokens;
        for positions in [edge - 1..edge + 1, max_tokens - 1..max_tokens] {
            let (cos, sin) = table.rows(positions.clone());
            let wanted = positions.flat_map(|p| {
                let frequencies = rope.frequencies(head_dim).into_iter();
                frequencies.map(move |f| p as f64 * f)
            });
            let wanted: Vec<f64> = wanted.collect();
            assert!(
                wanted
                    .iter()
                    .zip(&cos)
                    .all(|(a, cos)| a.cos() as f32 == *cos)
            );
            assert!(
                wanted
                    .iter()
                    .zip(&sin)
                    .all(|(a, sin)| a.sin() as f32 == *sin)
            );
            assert_eq!((cos.len(), sin.len()), (wanted.len(), wanted.len()));
        }
        assert_eq!(made().count(), FIRST_BLOCKS + 3);
        let angles = |block: &OnceLock<Block>| block.get().map(|block| block.cos.len());
        assert!(made().all(|block| angles(block) <= Some(BLOCK_ANGLES)));
    }
}
