//! The other operand of a product: rows in blocks of bytes, quantised while they are in a cache.

use super::{BLOCK_VALUES, LARGEST, QUAD, ZERO};
use crate::model::kernels;
use crate::model::parallel;

/// A block of a row.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Block {
    /// Whole numbers up to [`LARGEST`], as many together as a byte product sums.
    pub quads: [[i8; QUAD]; BLOCK_VALUES / QUAD],
    /// What they are multiplied by.
    pub scale: f32,
    /// What a sum over values with [`ZERO`] added begins with to end where it should.
    pub start: i32,
    /// Their sum, multiplied.
    pub total: f32,
}

/// Rows `(n, width)`, quantised.
#[derive(Debug, Default)]
pub struct Activations {
    blocks: Vec<Block>,
    blocks_a_row: usize,
}

impl Activations {
    /// Takes in `x` `(n, width)`, `width` being a multiple of [`BLOCK_VALUES`].
    pub fn quantise(&mut self, x: &[f32], width: usize) {
        self.blocks_a_row = width / BLOCK_VALUES;
        let (x, rest) = x.as_chunks::<BLOCK_VALUES>();
        assert!(rest.is_empty(), "rows of whole blocks");
        self.blocks.resize(x.len(), Block::default());
        let blocks_a_row = self.blocks_a_row;
        parallel::for_rows(&mut self.blocks, blocks_a_row, |rows, blocks| {
            let x = &x[rows.start * blocks_a_row..rows.end * blocks_a_row];
            kernels::vectorised(
                #[inline(always)]
                || {
                    for (block, x) in blocks.iter_mut().zip(x) {
                        *block = quantise(x);
                    }
                },
            );
        });
    }

    /// Blocks of every row.
    pub fn blocks_a_row(&self) -> usize {
        self.blocks_a_row
    }

    /// The blocks of one row.
    pub fn row(&self, row: usize) -> &[Block] {
        &self.blocks[row * self.blocks_a_row..][..self.blocks_a_row]
    }
}

#[inline(always)]
fn quantise(x: &[f32; BLOCK_VALUES]) -> Block {
    // Adding 1.5 x 2^23 rounds to the nearest integer and leaves it in the low bits.
    const ROUND: f32 = 12_582_912.0;
    /// Partial results of the loops: one register of the widest.
    const LANES: usize = 16;
    let (parts, _) = x.as_chunks::<LANES>();
    let mut lanes = [0f32; LANES];
    for part in parts {
        for i in 0..LANES {
            let magnitude = part[i].abs();
            lanes[i] = if magnitude > lanes[i] {
                magnitude
            } else {
                lanes[i]
            };
        }
    }
    let mut half = LANES / 2;
    while half > 0 {
        for i in 0..half {
            let other = lanes[i + half];
            lanes[i] = if other > lanes[i] { other } else { lanes[i] };
        }
        half /= 2;
    }
    let largest = lanes[0];
    let inverse = if largest > 0.0 {
        LARGEST / largest
    } else {
        0.0
    };
    let mut values = [0i8; BLOCK_VALUES];
    let mut sum = 0i32;
    for (value, x) in values.iter_mut().zip(x) {
        *value = (x * inverse + ROUND).to_bits() as i8;
        sum += i32::from(*value);
    }
    let (quads, _) = values.as_chunks::<QUAD>();
    let scale = largest / LARGEST;
    Block {
        quads: std::array::from_fn(|i| quads[i]),
        scale,
        start: -i32::from(ZERO) * sum,
        total: sum as f32 * scale,
    }
}
