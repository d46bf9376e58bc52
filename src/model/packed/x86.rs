//! Products on x86-64: a few rows of the input against two tiles, with all sums in registers.
#![expect(
    unsafe_code,
    reason = "instructions that a machine may not have, and loads of whole registers"
)]
#![expect(
    clippy::needless_range_loop,
    reason = "several arrays of registers go by the same row, tile and half"
)]

use std::arch::x86_64::*;
use std::ops::Range;
use std::sync::atomic::{Ordering, compiler_fence};

use super::activations::{self, Activations};
use super::{BYTES, LANES, NIBBLES, OfRows, PackedMatrix, QUAD, Tile, UNIT_TILES, Values};
use crate::model::parallel::Block;

/// Rows whose sums fit into the 32 registers of AVX-512 beside two tiles' values: 12 of whole
/// numbers, 12 of fractions.
const ROWS_512: usize = 6;

/// Rows whose sums fit into the 16 registers of AVX2 beside one tile's values.
const ROWS_256: usize = 2;

/// The rows of a matrix from `group` on, whatever their values are, and what is around them.
struct Place<'a, 'b, const N: usize> {
    matrix: &'a PackedMatrix,
    tiles: &'a [Tile<N>],
    group: usize,
    x: &'a Activations,
    rows: Range<usize>,
    out: &'a mut Block<'b, f32>,
}

/// Writes `rows` of the product with [`UNIT_TILES`] groups of rows from `group` on, if there are as
/// many.
///
/// To be called where AVX-512 F, BW and VNNI were found.
pub fn multiply_avx512(
    matrix: &PackedMatrix,
    group: usize,
    x: &Activations,
    rows: Range<usize>,
    out: &mut Block<'_, f32>,
) {
    let one = matrix.groups() - group == 1;
    macro_rules! rows_of {
        ($tiles:expr) => {{
            let place = Place {
                matrix,
                tiles: $tiles,
                group,
                x,
                rows,
                out,
            };
            // SAFETY: what `Kernel::here` found.
            unsafe {
                match one {
                    true => rows_avx512::<_, 1>(place),
                    false => rows_avx512::<_, UNIT_TILES>(place),
                }
            }
        }};
    }
    match &matrix.values {
        Values::Bytes(tiles) => rows_of!(tiles),
        Values::Nibbles(tiles) => rows_of!(tiles),
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn rows_avx512<const N: usize, const TILES: usize>(mut place: Place<'_, '_, N>) {
    for first in place.rows.clone().step_by(ROWS_512) {
        match place.rows.end - first {
            1 => few_avx512::<1, TILES, N>(&mut place, first),
            2 => few_avx512::<2, TILES, N>(&mut place, first),
            3 => few_avx512::<3, TILES, N>(&mut place, first),
            4 => few_avx512::<4, TILES, N>(&mut place, first),
            5 => few_avx512::<5, TILES, N>(&mut place, first),
            _ => few_avx512::<ROWS_512, TILES, N>(&mut place, first),
        }
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn few_avx512<const ROWS: usize, const TILES: usize, const N: usize>(
    place: &mut Place<'_, '_, N>,
    first: usize,
) {
    let (matrix, group) = (place.matrix, place.group);
    let n_blocks = matrix.blocks();
    let mut x: [&[activations::Block]; ROWS] = [&[]; ROWS];
    for r in 0..ROWS {
        x[r] = &place.x.row(first + r)[..n_blocks];
    }
    let mut tiles: [&[Tile<N>]; TILES] = [&[]; TILES];
    let mut scales: [&[OfRows]; TILES] = [&[]; TILES];
    let mut offsets: [&[OfRows]; TILES] = [&[]; TILES];
    for t in 0..TILES {
        tiles[t] = &matrix.of_group(group + t, place.tiles)[..n_blocks];
        scales[t] = &matrix.of_group(group + t, &matrix.scales)[..n_blocks];
        if N == NIBBLES {
            offsets[t] = &matrix.of_group(group + t, &matrix.offsets)[..n_blocks];
        }
    }
    let low = _mm512_set1_epi8(0x0f);
    let mut sums = [[_mm512_setzero_ps(); TILES]; ROWS];
    for b in 0..n_blocks {
        let mut whole = [[_mm512_setzero_si512(); TILES]; ROWS];
        if N == BYTES {
            for r in 0..ROWS {
                whole[r] = [_mm512_set1_epi32(x[r][b].start); TILES];
            }
        }
        for q in 0..BYTES {
            let mut values = [_mm512_setzero_si512(); TILES];
            for t in 0..TILES {
                // SAFETY: 64 bytes, all inside the tile.
                let both = unsafe { _mm512_load_si512(tiles[t][b].0[q % N].as_ptr().cast()) };
                values[t] = match (N, q / NIBBLES) {
                    (BYTES, _) => both,
                    (_, 0) => _mm512_and_si512(both, low),
                    _ => _mm512_and_si512(_mm512_srli_epi16::<4>(both), low),
                };
            }
            for r in 0..ROWS {
                let quad = _mm512_set1_epi32(four(x[r][b].quads[q]));
                for t in 0..TILES {
                    whole[r][t] = _mm512_dpbusd_epi32(whole[r][t], values[t], quad);
                }
            }
            // Else the compiler reads all quads of the block at once, for which there are not
            // registers enough.
            compiler_fence(Ordering::SeqCst);
        }
        for t in 0..TILES {
            let scales = widen_512(&scales[t][b]);
            for r in 0..ROWS {
                let scales = _mm512_mul_ps(scales, _mm512_set1_ps(x[r][b].scale));
                sums[r][t] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(whole[r][t]), scales, sums[r][t]);
            }
            if N == NIBBLES {
                let offsets = widen_512(&offsets[t][b]);
                for r in 0..ROWS {
                    let total = _mm512_set1_ps(x[r][b].total);
                    sums[r][t] = _mm512_fmadd_ps(offsets, total, sums[r][t]);
                }
            }
        }
    }
    let at = first - place.rows.start;
    for (r, sums) in sums.iter().enumerate() {
        for (out, sums) in place.out.row(at + r).chunks_mut(LANES).zip(sums) {
            let mut lanes = [0f32; LANES];
            // SAFETY: 64 bytes, all of them the array.
            unsafe { _mm512_storeu_ps(lanes.as_mut_ptr(), *sums) };
            match out.first_chunk_mut() {
                Some(whole) => *whole = lanes,
                None => out.copy_from_slice(&lanes[..out.len()]),
            }
        }
    }
}

#[target_feature(enable = "avx512f")]
fn widen_512(halves: &OfRows) -> __m512 {
    // SAFETY: 32 bytes, all of them the array.
    _mm512_cvtph_ps(unsafe { _mm256_loadu_si256(halves.as_ptr().cast()) })
}

/// As [`multiply_avx512`]; to be called where AVX2, FMA and F16C were found.
pub fn multiply_avx2(
    matrix: &PackedMatrix,
    group: usize,
    x: &Activations,
    rows: Range<usize>,
    out: &mut Block<'_, f32>,
) {
    for t in 0..UNIT_TILES.min(matrix.groups() - group) {
        macro_rules! rows_of {
            ($tiles:expr) => {{
                let mut place = Place {
                    matrix,
                    tiles: $tiles,
                    group,
                    x,
                    rows: rows.clone(),
                    out,
                };
                for first in rows.clone().step_by(ROWS_256) {
                    // SAFETY: what `Kernel::here` found.
                    unsafe {
                        match rows.end - first {
                            1 => few_avx2::<1, _>(&mut place, t, first),
                            _ => few_avx2::<ROWS_256, _>(&mut place, t, first),
                        }
                    }
                }
            }};
        }
        match &matrix.values {
            Values::Bytes(tiles) => rows_of!(tiles),
            Values::Nibbles(tiles) => rows_of!(tiles),
        }
    }
}

/// Registers that the rows of a tile take in AVX2, and how many rows each has.
const HALVES: usize = 2;
const HALF: usize = LANES / HALVES;

#[target_feature(enable = "avx2,fma,f16c")]
fn few_avx2<const ROWS: usize, const N: usize>(
    place: &mut Place<'_, '_, N>,
    t: usize,
    first: usize,
) {
    let (matrix, group) = (place.matrix, place.group + t);
    let n_blocks = matrix.blocks();
    let mut x: [&[activations::Block]; ROWS] = [&[]; ROWS];
    for r in 0..ROWS {
        x[r] = &place.x.row(first + r)[..n_blocks];
    }
    let tiles = &matrix.of_group(group, place.tiles)[..n_blocks];
    let scales = &matrix.of_group(group, &matrix.scales)[..n_blocks];
    let offsets = matrix.of_group(group, &matrix.offsets);
    let (sign, low) = (_mm256_set1_epi8(i8::MIN), _mm256_set1_epi8(0x0f));
    let ones = _mm256_set1_epi16(1);
    let mut sums = [[_mm256_setzero_ps(); HALVES]; ROWS];
    for b in 0..n_blocks {
        let mut whole = [[_mm256_setzero_si256(); HALVES]; ROWS];
        for q in 0..BYTES {
            for h in 0..HALVES {
                let bytes = &tiles[b].0[q % N][h * HALF * QUAD..][..HALF * QUAD];
                // SAFETY: 32 bytes, all of them the slice.
                let both = unsafe { _mm256_loadu_si256(bytes.as_ptr().cast()) };
                let values = match (N, q / NIBBLES) {
                    // Without the 128 added, for sums of two products are kept in 16 bits.
                    (BYTES, _) => _mm256_xor_si256(both, sign),
                    (_, 0) => _mm256_and_si256(both, low),
                    _ => _mm256_and_si256(_mm256_srli_epi16::<4>(both), low),
                };
                let magnitudes = _mm256_abs_epi8(values);
                for r in 0..ROWS {
                    let quad = _mm256_set1_epi32(four(x[r][b].quads[q]));
                    let quad = match N {
                        BYTES => _mm256_sign_epi8(quad, values),
                        _ => quad,
                    };
                    let pairs = _mm256_maddubs_epi16(magnitudes, quad);
                    let fours = _mm256_madd_epi16(pairs, ones);
                    whole[r][h] = _mm256_add_epi32(whole[r][h], fours);
                }
            }
            // As in AVX-512.
            compiler_fence(Ordering::SeqCst);
        }
        for h in 0..HALVES {
            let scales = widen_256(&scales[b], h);
            for r in 0..ROWS {
                let scales = _mm256_mul_ps(scales, _mm256_set1_ps(x[r][b].scale));
                sums[r][h] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(whole[r][h]), scales, sums[r][h]);
            }
            if N == NIBBLES {
                let offsets = widen_256(&offsets[b], h);
                for r in 0..ROWS {
                    let total = _mm256_set1_ps(x[r][b].total);
                    sums[r][h] = _mm256_fmadd_ps(offsets, total, sums[r][h]);
                }
            }
        }
    }
    let at = first - place.rows.start;
    for (r, sums) in sums.iter().enumerate() {
        let row = &mut place.out.row(at + r)[t * LANES..];
        let wanted = row.len().min(LANES);
        for (out, sums) in row[..wanted].chunks_mut(HALF).zip(sums) {
            let mut lanes = [0f32; HALF];
            // SAFETY: 32 bytes, all of them the array.
            unsafe { _mm256_storeu_ps(lanes.as_mut_ptr(), *sums) };
            match out.first_chunk_mut() {
                Some(whole) => *whole = lanes,
                None => out.copy_from_slice(&lanes[..out.len()]),
            }
        }
    }
}

#[target_feature(enable = "avx2,f16c")]
fn widen_256(halves: &OfRows, half: usize) -> __m256 {
    let halves = &halves[half * HALF..][..HALF];
    // SAFETY: 16 bytes, all of them the slice.
    _mm256_cvtph_ps(unsafe { _mm_loadu_si128(halves.as_ptr().cast()) })
}

/// A quad as the one number that instructions spread.
#[inline(always)]
fn four(quad: [i8; QUAD]) -> i32 {
    i32::from_ne_bytes(quad.map(|x| x as u8))
}
