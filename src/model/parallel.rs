//! Row-parallel loops over candle's own barrier pool.
//!
//! Candle's quantized matmuls run on that pool and its workers spin between calls; a second pool
//! (rayon) would fight them for the same cores. What is computed for a row never depends on how
//! rows are spread over threads, so results do not depend on the thread count.
#![expect(
    unsafe_code,
    reason = "rows of one buffer are written by several threads"
)]

use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

use candle_core::utils::barrier_pool;

/// How often a thread comes for more rows: often enough that none waits long for the slowest,
/// seldom enough that they do not queue for the counter.
const GRABS: usize = 8;

/// Threads that [`for_rows_of_two`] runs on, and so the scratch places it wants.
pub fn threads() -> usize {
    barrier_pool().n_workers() + 1
}

/// Calls `body(rows, slice)` for disjoint runs of rows that together cover `out`;
/// `slice` holds those rows, `row_len` elements each.
pub fn for_rows<T: Send>(
    out: &mut [T],
    row_len: usize,
    body: impl Fn(Range<usize>, &mut [T]) + Sync,
) {
    let mut nothing = vec![(); threads()];
    for_rows_with(out, row_len, &mut nothing, |rows, out, ()| body(rows, out));
}

/// As [`for_rows`]; `body` also gets the one of the [`threads`] places of `scratch` that no other
/// thread has.
pub fn for_rows_with<T: Send, S: Send>(
    out: &mut [T],
    row_len: usize,
    scratch: &mut [S],
    body: impl Fn(Range<usize>, &mut [T], &mut S) + Sync,
) {
    let mut nothing: [(); 0] = [];
    for_rows_of_two(out, row_len, &mut nothing, 0, scratch, |rows, a, _, s| {
        body(rows, a, s);
    });
}

/// As [`for_rows_with`], over two buffers of the same number of rows.
///
/// The number of rows is `a.len() / a_row_len`; `b_row_len` may be zero for an empty `b`.
pub fn for_rows_of_two<A: Send, B: Send, S: Send>(
    a: &mut [A],
    a_row_len: usize,
    b: &mut [B],
    b_row_len: usize,
    scratch: &mut [S],
    body: impl Fn(Range<usize>, &mut [A], &mut [B], &mut S) + Sync,
) {
    let n_rows = a.len() / a_row_len;
    assert_eq!(
        a.len(),
        n_rows * a_row_len,
        "whole rows of the first buffer"
    );
    assert_eq!(b.len(), n_rows * b_row_len, "as many rows in the second");
    let threads = threads();
    assert!(scratch.len() >= threads, "scratch for every thread");
    if n_rows == 1 {
        // Waking the pool costs more than one row.
        body(0..1, a, b, &mut scratch[0]);
        return;
    }
    let (a_start, b_start) = (SendPtr(a.as_mut_ptr()), SendPtr(b.as_mut_ptr()));
    let scratch_start = SendPtr(scratch.as_mut_ptr());
    let rows_a_grab = n_rows.div_ceil(threads * GRABS).max(1);
    let cursor = AtomicUsize::new(0);
    barrier_pool().execute(|thread| {
        // SAFETY: `execute` calls this once for each thread, with numbers below `threads`, and
        // returns before `scratch` is used again; the assertion above keeps it inside.
        let [scratch] = (unsafe { scratch_start.slice(thread, 1) }) else {
            unreachable!("a slice of one element")
        };
        loop {
            let start = cursor.fetch_add(rows_a_grab, Ordering::Relaxed);
            if start >= n_rows {
                break;
            }
            let rows = start..n_rows.min(start + rows_a_grab);
            // SAFETY: the cursor hands out every row once, so these slices are disjoint; they
            // lie inside `a` and `b` by the assertions above; and `execute` returns before `a`
            // and `b` are used again.
            let (a, b) = unsafe {
                (
                    a_start.slice(rows.start * a_row_len, rows.len() * a_row_len),
                    b_start.slice(rows.start * b_row_len, rows.len() * b_row_len),
                )
            };
            body(rows, a, b, scratch);
        }
    });
}

/// Calls `body(rows, columns, block)` for disjoint blocks of `rows_a_block` rows and
/// `columns_a_block` columns, less at the ends, that together cover the columns `within` of `out`,
/// whose rows have `row_len` elements each.
///
/// Blocks of the same rows follow each other.
pub fn for_blocks<T: Send>(
    out: &mut [T],
    row_len: usize,
    within: Range<usize>,
    rows_a_block: usize,
    columns_a_block: usize,
    body: impl Fn(Range<usize>, Range<usize>, Block<'_, T>) + Sync,
) {
    let n_rows = out.len() / row_len;
    assert_eq!(out.len(), n_rows * row_len, "whole rows");
    assert!(within.end <= row_len, "columns that the rows have");
    let across = within.len().div_ceil(columns_a_block);
    let n_blocks = n_rows.div_ceil(rows_a_block) * across;
    let start = SendPtr(out.as_mut_ptr());
    let blocks_a_grab = n_blocks.div_ceil(threads() * GRABS).max(1);
    let cursor = AtomicUsize::new(0);
    barrier_pool().execute(|_| {
        loop {
            let first = cursor.fetch_add(blocks_a_grab, Ordering::Relaxed);
            if first >= n_blocks {
                break;
            }
            for block in first..n_blocks.min(first + blocks_a_grab) {
                let row = block / across * rows_a_block;
                let column = within.start + block % across * columns_a_block;
                let rows = row..n_rows.min(row + rows_a_block);
                let columns = column..within.end.min(column + columns_a_block);
                let block = Block {
                    start: &start,
                    row_len,
                    rows: rows.clone(),
                    columns: columns.clone(),
                };
                body(rows, columns, block);
            }
        }
    });
}

/// A block of a larger matrix, row by row.
pub struct Block<'a, T> {
    start: &'a SendPtr<T>,
    row_len: usize,
    rows: Range<usize>,
    columns: Range<usize>,
}

impl<T> Block<'_, T> {
    /// A row of the block.
    pub fn row(&mut self, row: usize) -> &mut [T] {
        assert!(row < self.rows.len(), "a row of this block");
        let offset = (self.rows.start + row) * self.row_len + self.columns.start;
        // SAFETY: `for_blocks` makes blocks of the rows and columns that the buffer has, hands out
        // each of them once, and returns before the buffer is used again.
        unsafe { self.start.slice(offset, self.columns.len()) }
    }
}

/// A pointer that may cross threads because each uses a part of its own.
struct SendPtr<T>(*mut T);

// SAFETY: see `for_rows_of_two` and `for_blocks`, its only users.
unsafe impl<T: Send> Sync for SendPtr<T> {}

impl<T> SendPtr<T> {
    /// SAFETY: `offset..offset + len` is inside the buffer and no other thread uses it.
    unsafe fn slice<'a>(&self, offset: usize, len: usize) -> &'a mut [T] {
        // SAFETY: the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.0.add(offset), len) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_is_visited_once_with_its_own_slices() {
        let mut a = vec![0u32; 100 * 3];
        let mut b = vec![0u64; 100 * 2];
        let mut visits = vec![0; threads()];
        for_rows_of_two(&mut a, 3, &mut b, 2, &mut visits, |rows, a, b, visits| {
            for (i, row) in rows.enumerate() {
                a[i * 3..][..3].iter_mut().for_each(|x| *x += row as u32);
                b[i * 2..][..2].iter_mut().for_each(|x| *x += row as u64);
                *visits += 1;
            }
        });
        for row in 0..100 {
            assert!(a[row * 3..][..3].iter().all(|&x| x == row as u32));
            assert!(b[row * 2..][..2].iter().all(|&x| x == row as u64));
        }
        assert_eq!(visits.iter().sum::<usize>(), 100);
    }

    #[test]
    fn every_element_is_in_one_block() {
        let mut out = vec![0u32; 50 * 37];
        for within in [0..5, 5..37] {
            for_blocks(&mut out, 37, within, 8, 16, |rows, columns, mut block| {
                for (i, row) in rows.enumerate() {
                    assert_eq!(block.row(i).len(), columns.len());
                    for (column, x) in columns.clone().zip(block.row(i)) {
                        *x += (row * 37 + column) as u32;
                    }
                }
            });
        }
        assert!(out.iter().enumerate().all(|(i, &x)| x == i as u32));
        let mut nothing: [u32; 0] = [];
        for_blocks(&mut nothing, 37, 0..37, 8, 16, |_, _, _| panic!("no rows"));
    }
}
