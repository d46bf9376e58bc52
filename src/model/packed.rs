//! Quantised matrices of our own: packed for the machine's widest byte products, 16 rows side by
//! side, in the values of the file for Q8_0, Q4_0 and Q4_1.
//!
//! Candle's packed kernels want inner widths of 256 (SmolLM2's 576 would grow by a third), know no
//! Q4_1, keep the originals beside what they pack, share one scale among 256 activations, and leave
//! their sums in memory. Here a block is 32 values throughout, nothing is held twice, and every way
//! of computing gives the same bits: sums inside a block are whole numbers, and blocks are added in
//! order, each fused, whatever the instruction set, the number of rows or of threads.

mod activations;
#[cfg(test)]
mod tests;
#[cfg(target_arch = "x86_64")]
mod x86;

use std::ops::Range;

use half::f16;

use super::parallel::{self, Block};

pub use activations::Activations;

/// Values that share a scale.
pub const BLOCK_VALUES: usize = 32;

/// Rows that lie side by side.
const LANES: usize = 16;

/// Values of a row that lie together: what one byte product sums.
const QUAD: usize = 4;

/// Largest magnitude of a quantised value.
const LARGEST: f32 = 127.0;

/// Rows of the input that a unit of work takes: their activations stay in the second-level cache
/// while the columns go by.
const UNIT_ROWS: usize = 48;

/// Tiles whose columns a unit of work takes: two share what is read of the activations.
const UNIT_TILES: usize = 2;

/// A block of [`LANES`] rows: 4 values of every row, then the next 4.
///
/// Byte products take one operand without a sign: with `N` of [`BYTES`] a value has 128 added. With
/// `N` of [`NIBBLES`] values are 0 to 15, those of the block's second half in the high bits.
#[repr(C, align(64))]
#[derive(Clone, Debug)]
struct Tile<const N: usize>([[u8; LANES * QUAD]; N]);

/// Quads of a block.
const BYTES: usize = BLOCK_VALUES / QUAD;

/// Half of them: two lie in one place.
const NIBBLES: usize = BYTES / 2;

/// What a value of zero is in a tile of bytes.
const ZERO: u8 = 128;

/// The values of a matrix, `(row tiles, blocks)`.
#[derive(Debug)]
enum Values {
    Bytes(Vec<Tile<BYTES>>),
    Nibbles(Vec<Tile<NIBBLES>>),
}

/// Of every tile, one for each of its rows.
type OfRows = [f16; LANES];

/// How a product is computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kernel {
    /// 64 products an instruction.
    #[cfg(target_arch = "x86_64")]
    Avx512Vnni,
    /// 32 products in three instructions.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// Loops that any machine runs, slowly.
    Plain,
}

impl Kernel {
    /// The fastest that this machine runs.
    pub fn here() -> Self {
        #[cfg(target_arch = "x86_64")]
        {
            use std::arch::is_x86_feature_detected as has;
            if has!("avx2") && has!("fma") && has!("f16c") {
                let wide = has!("avx512f") && has!("avx512bw") && has!("avx512vnni");
                return if wide { Self::Avx512Vnni } else { Self::Avx2 };
            }
        }
        Self::Plain
    }

    /// Whether it is faster than what candle has for the format.
    pub fn pays(self) -> bool {
        self != Self::Plain
    }

    /// For the record.
    pub fn name(self) -> &'static str {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Avx512Vnni => "own, avx512-vnni",
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => "own, avx2",
            Self::Plain => "own, plain",
        }
    }
}

/// A matrix `(rows, width)` in blocks of small whole numbers with a scale each.
#[derive(Debug)]
pub struct PackedMatrix {
    rows: usize,
    /// A multiple of [`BLOCK_VALUES`]; behind the true width are zeros.
    width: usize,
    values: Values,
    scales: Vec<OfRows>,
    /// What is added to every value of a block; none where that is nothing.
    offsets: Vec<OfRows>,
}

impl PackedMatrix {
    /// Quantises a matrix to bytes; `read(row, values)` fills in a row's values, the rest being
    /// zeros. What is Q8_0 already stays as it is.
    pub fn pack(rows: usize, width: usize, read: impl Fn(usize, &mut [f32]) + Sync) -> Self {
        let width = width.next_multiple_of(BLOCK_VALUES);
        let blocks = width / BLOCK_VALUES;
        let n_tiles = rows.div_ceil(LANES) * blocks;
        let mut tiles = vec![Tile([[ZERO; LANES * QUAD]; BYTES]); n_tiles];
        let mut scales = vec![OfRows::default(); n_tiles];
        let mut room = vec![Vec::new(); parallel::threads()];
        parallel::for_rows_of_two(
            &mut tiles,
            blocks,
            &mut scales,
            blocks,
            &mut room,
            |groups, tiles, scales, values| {
                values.resize(width, 0.0);
                let parts = tiles.chunks_mut(blocks).zip(scales.chunks_mut(blocks));
                for (group, (tiles, scales)) in groups.zip(parts) {
                    for lane in 0..LANES.min(rows - group * LANES) {
                        values.fill(0.0);
                        read(group * LANES + lane, values);
                        let (of_row, _) = values.as_chunks::<BLOCK_VALUES>();
                        for ((tile, scales), block) in
                            tiles.iter_mut().zip(&mut *scales).zip(of_row)
                        {
                            scales[lane] = tile.write(lane, block);
                        }
                    }
                }
            },
        );
        Self {
            rows,
            width,
            values: Values::Bytes(tiles),
            scales,
            offsets: Vec::new(),
        }
    }

    /// Takes a matrix over as it is in a file; `read(row, block)` gives blocks of 4-bit values.
    pub fn pack_nibbles(
        rows: usize,
        width: usize,
        read: impl Fn(usize, usize) -> NibbleBlock + Sync,
    ) -> Self {
        assert!(width.is_multiple_of(BLOCK_VALUES), "rows of whole blocks");
        let blocks = width / BLOCK_VALUES;
        let n_tiles = rows.div_ceil(LANES) * blocks;
        let mut tiles = vec![Tile([[0; LANES * QUAD]; NIBBLES]); n_tiles];
        let mut ends = vec![(OfRows::default(), OfRows::default()); n_tiles];
        parallel::for_rows_of_two(
            &mut tiles,
            blocks,
            &mut ends,
            blocks,
            &mut vec![(); parallel::threads()],
            |groups, tiles, ends, ()| {
                let parts = tiles.chunks_mut(blocks).zip(ends.chunks_mut(blocks));
                for (group, (tiles, ends)) in groups.zip(parts) {
                    for lane in 0..LANES.min(rows - group * LANES) {
                        for (b, (tile, ends)) in tiles.iter_mut().zip(&mut *ends).enumerate() {
                            let block = read(group * LANES + lane, b);
                            tile.write(lane, &block.values);
                            (ends.0[lane], ends.1[lane]) = (block.scale, block.offset);
                        }
                    }
                }
            },
        );
        let (scales, offsets) = ends.into_iter().unzip();
        Self {
            rows,
            width,
            values: Values::Nibbles(tiles),
            scales,
            offsets,
        }
    }

    /// Rows, the width of a product.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Width of the input that [`PackedMatrix::multiply`] wants.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        let values = match &self.values {
            Values::Bytes(tiles) => size_of_val(&tiles[..]),
            Values::Nibbles(tiles) => size_of_val(&tiles[..]),
        };
        values + size_of_val(&self.scales[..]) + size_of_val(&self.offsets[..])
    }

    fn blocks(&self) -> usize {
        self.width / BLOCK_VALUES
    }

    /// The first values of a row.
    pub fn read_row(&self, row: usize, out: &mut [f32]) {
        for (b, out) in out.chunks_mut(BLOCK_VALUES).enumerate() {
            let (tile, lane) = (row / LANES * self.blocks() + b, row % LANES);
            let scale = self.scales[tile][lane].to_f32();
            let offset = self.offset(tile, lane);
            for (i, out) in out.iter_mut().enumerate() {
                *out = self.value(tile, lane, i) as f32 * scale + offset;
            }
        }
    }

    fn value(&self, tile: usize, lane: usize, i: usize) -> i32 {
        match &self.values {
            Values::Bytes(tiles) => tiles[tile].value(lane, i),
            Values::Nibbles(tiles) => tiles[tile].value(lane, i),
        }
    }

    fn offset(&self, tile: usize, lane: usize) -> f32 {
        (self.offsets.get(tile)).map_or(0.0, |offsets| offsets[lane].to_f32())
    }

    /// `x` `(n, width)` to the columns from `first_column` on of `out` `(n, out_width)`, as many as
    /// the matrix has rows; no row changes another's bits.
    pub fn multiply(
        &self,
        kernel: Kernel,
        x: &Activations,
        out: &mut [f32],
        out_width: usize,
        first_column: usize,
    ) {
        assert_eq!(
            x.blocks_a_row(),
            self.blocks(),
            "an input as wide as the matrix"
        );
        parallel::for_blocks(
            out,
            out_width,
            first_column..first_column + self.rows,
            UNIT_ROWS,
            UNIT_TILES * LANES,
            |rows, columns, out| {
                let columns = columns.start - first_column..columns.end - first_column;
                self.multiply_unit(kernel, x, rows, columns, out);
            },
        );
    }

    fn multiply_unit(
        &self,
        kernel: Kernel,
        x: &Activations,
        rows: Range<usize>,
        columns: Range<usize>,
        mut out: Block<'_, f32>,
    ) {
        let group = columns.start / LANES;
        match kernel {
            #[cfg(target_arch = "x86_64")]
            Kernel::Avx512Vnni => x86::multiply_avx512(self, group, x, rows, &mut out),
            #[cfg(target_arch = "x86_64")]
            Kernel::Avx2 => x86::multiply_avx2(self, group, x, rows, &mut out),
            Kernel::Plain => {
                for (i, row) in rows.enumerate() {
                    for (column, out) in columns.clone().zip(out.row(i)) {
                        *out = self.dot(column, x.row(row));
                    }
                }
            }
        }
    }

    /// One element of a product, as every kernel computes it.
    fn dot(&self, row: usize, x: &[activations::Block]) -> f32 {
        let mut sum = 0f32;
        for (b, x) in x.iter().enumerate() {
            let (tile, lane) = (row / LANES * self.blocks() + b, row % LANES);
            let whole: i32 = (x.quads.as_flattened().iter().enumerate())
                .map(|(i, x)| i32::from(*x) * self.value(tile, lane, i))
                .sum();
            let scale = self.scales[tile][lane].to_f32() * x.scale;
            sum = (whole as f32).mul_add(scale, sum);
            if let Values::Nibbles(_) = self.values {
                sum = self.offset(tile, lane).mul_add(x.total, sum);
            }
        }
        sum
    }

    fn groups(&self) -> usize {
        self.rows.div_ceil(LANES)
    }

    /// The tiles of [`LANES`] rows, a block after the other.
    fn of_group<'a, T>(&self, group: usize, all: &'a [T]) -> &'a [T] {
        match all {
            [] => all,
            all => &all[group * self.blocks()..(group + 1) * self.blocks()],
        }
    }
}

/// 32 values of a row as files keep them: `value * scale + offset`.
#[derive(Clone, Copy, Debug)]
pub struct NibbleBlock {
    /// 0 to 15.
    pub values: [u8; BLOCK_VALUES],
    /// What they are multiplied by.
    pub scale: f16,
    /// What is added.
    pub offset: f16,
}

impl NibbleBlock {
    /// Bytes of a Q4_1 block: scale, smallest value, and 16 bytes.
    pub const Q4_1_BYTES: usize = 4 + BLOCK_VALUES / 2;

    /// Bytes of a Q4_0 block: scale, and 16 bytes.
    pub const Q4_0_BYTES: usize = 2 + BLOCK_VALUES / 2;

    /// From the bytes of a Q4_1 block.
    pub fn from_q4_1(bytes: &[u8; Self::Q4_1_BYTES]) -> Self {
        let [s0, s1, o0, o1, values @ ..] = bytes;
        Self {
            values: Self::values(values),
            scale: f16::from_le_bytes([*s0, *s1]),
            offset: f16::from_le_bytes([*o0, *o1]),
        }
    }

    /// From the bytes of a Q4_0 block, whose values have 8 added.
    pub fn from_q4_0(bytes: &[u8; Self::Q4_0_BYTES]) -> Self {
        let [s0, s1, values @ ..] = bytes;
        let scale = f16::from_le_bytes([*s0, *s1]);
        Self {
            values: Self::values(values),
            scale,
            // A power of two: exact.
            offset: f16::from_f32(scale.to_f32() * -8.0),
        }
    }

    /// The first half lies in the low bits.
    fn values(bytes: &[u8; BLOCK_VALUES / 2]) -> [u8; BLOCK_VALUES] {
        std::array::from_fn(|i| bytes[i % bytes.len()] >> (i / bytes.len() * 4) & 0x0f)
    }
}

impl Tile<BYTES> {
    /// Quantises a block of one row, and returns its scale.
    fn write(&mut self, lane: usize, values: &[f32; BLOCK_VALUES]) -> f16 {
        let largest = values.iter().fold(0f32, |m, v| m.max(v.abs()));
        // What is kept is divided by what will be multiplied: the scale as it is rounded.
        let scale = f16::from_f32(largest / LARGEST);
        let inverse = match scale.to_f32() {
            0.0 => 0.0,
            scale => 1.0 / scale,
        };
        for (i, value) in values.iter().enumerate() {
            let whole = (value * inverse).round_ties_even().clamp(-LARGEST, LARGEST);
            self.0[i / QUAD][lane * QUAD + i % QUAD] = (whole as i8 as u8).wrapping_add(ZERO);
        }
        scale
    }

    fn value(&self, lane: usize, i: usize) -> i32 {
        i32::from(self.0[i / QUAD][lane * QUAD + i % QUAD]) - i32::from(ZERO)
    }
}

impl Tile<NIBBLES> {
    fn write(&mut self, lane: usize, values: &[u8; BLOCK_VALUES]) {
        for (i, value) in values.iter().enumerate() {
            let (place, shift) = Self::place(i);
            self.0[place][lane * QUAD + i % QUAD] |= value << shift;
        }
    }

    fn value(&self, lane: usize, i: usize) -> i32 {
        let (place, shift) = Self::place(i);
        i32::from(self.0[place][lane * QUAD + i % QUAD] >> shift & 0x0f)
    }

    fn place(i: usize) -> (usize, usize) {
        (i / QUAD % NIBBLES, i / QUAD / NIBBLES * 4)
    }
}
