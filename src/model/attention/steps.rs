//! One query position of each of several sequences, every one over its own cache, in segments
//! that run in parallel and are joined in order.

use std::ops::Range;

use super::{AttentionShape, KvRows, Place, Scratch, sized};
use crate::model::kernels::{self, Partial};
use crate::model::kv_cache::KvError;
use crate::model::parallel;

/// Tokens of one unit of work; partial results are joined in order.
const SEGMENT_TOKENS: usize = 64;

/// Numbers of the segments that the newest token of a sequence sees something of.
fn segments(shape: AttentionShape, place: &Place<'_>) -> Range<usize> {
    let seen = shape.seen_from(place.position);
    seen.start / SEGMENT_TOKENS..seen.end.div_ceil(SEGMENT_TOKENS)
}

/// Attention of one token of each sequence; see [`super::attend`].
pub fn attend_steps(
    shape: AttentionShape,
    q: &[f32],
    places: &[Place<'_>],
    layer: usize,
    out: &mut [f32],
    out_width: usize,
    scratch: &mut Scratch,
) -> Result<(), KvError> {
    let (alone, several);
    // The usual batch of one goes without a list on the heap.
    let rows: &[KvRows<'_>] = match places {
        [only] => {
            alone = [rows_up_to(only, layer)?];
            &alone
        }
        places => {
            let read = places.iter().map(|place| rows_up_to(place, layer));
            several = read.collect::<Result<Vec<_>, _>>()?;
            &several
        }
    };
    let (dim, q_width) = (shape.head_dim, shape.q_width());
    // Of each segment: for every query head its max, its sum and (head_dim) accumulators.
    let part_width = dim + 2;
    let segment_width = shape.n_heads * part_width;
    let n_segments: usize = (places.iter())
        .map(|place| segments(shape, place).len())
        .sum();
    let parts = sized(&mut scratch.parts, n_segments * segment_width);
    parallel::for_rows_with(
        parts,
        segment_width,
        &mut scratch.threads,
        |units, parts, scratch| {
            for (unit, part) in units.zip(parts.chunks_mut(segment_width)) {
                let (sequence, segment) = locate(shape, places, unit);
                let q = &q[sequence * q_width..][..q_width];
                let seen = shape.seen_from(places[sequence].position);
                let start = segment * SEGMENT_TOKENS;
                let tokens = seen.start.max(start)..seen.end.min(start + SEGMENT_TOKENS);
                attend_segment(shape, q, rows[sequence], tokens, part, &mut scratch.wide);
            }
        },
    );
    let parts = &*parts;
    parallel::for_rows(out, out_width, |sequences, out| {
        for (sequence, out) in sequences.zip(out.chunks_mut(out_width)) {
            let count = |place: &Place<'_>| segments(shape, place).len();
            let before: usize = places[..sequence].iter().map(count).sum();
            let own = &parts[before * segment_width..][..count(&places[sequence]) * segment_width];
            let (heads, padding) = out.split_at_mut(q_width);
            for (head, out) in heads.chunks_mut(dim).enumerate() {
                let parts = own.chunks(segment_width);
                join(
                    parts.map(|part| &part[head * part_width..][..part_width]),
                    out,
                );
            }
            padding.fill(0.0);
        }
    });
    Ok(())
}

fn rows_up_to<'a>(place: &Place<'a>, layer: usize) -> Result<KvRows<'a>, KvError> {
    KvRows::read(place.cache, layer, place.position + 1)
}

/// The sequence that a unit of work belongs to, and the number of its segment.
fn locate(shape: AttentionShape, places: &[Place<'_>], unit: usize) -> (usize, usize) {
    let mut left = unit;
    let mut sequence = 0;
    loop {
        let segments = segments(shape, &places[sequence]);
        if left < segments.len() {
            return (sequence, segments.start + left);
        }
        left -= segments.len();
        sequence += 1;
    }
}

/// All query heads of one token over the tokens of a segment.
fn attend_segment(
    shape: AttentionShape,
    q: &[f32],
    rows: KvRows<'_>,
    tokens: Range<usize>,
    part: &mut [f32],
    wide: &mut Vec<f32>,
) {
    let (dim, group, row) = (shape.head_dim, shape.group(), shape.kv_row());
    let mut scores = [0f32; SEGMENT_TOKENS];
    let scores = &mut scores[..tokens.len()];
    part.fill(0.0);
    // Read in one go, whatever heads there are: the cache comes from memory, and strides would
    // make it wait.
    let range = tokens.start * row..tokens.end * row;
    let kv = match rows {
        KvRows::F32(rows) => &rows[range],
        narrow => {
            let wide = sized(wide, range.len());
            narrow.widen(range, wide);
            wide
        }
    };
    for (head, (part, q)) in part.chunks_mut(dim + 2).zip(q.chunks(dim)).enumerate() {
        let (ends, acc) = part.split_at_mut(2);
        let (max, sum) = ends.split_at_mut(1);
        max[0] = f32::NEG_INFINITY;
        let partial = Partial {
            max: &mut max[0],
            sum: &mut sum[0],
            acc,
        };
        let kv = &kv[head / group * 2 * dim..];
        kernels::attend_tile(q, kv, row, scores, partial);
    }
}

/// Joins the parts of one query head, each its max, its sum and its accumulators.
fn join<'a>(parts: impl Iterator<Item = &'a [f32]>, out: &mut [f32]) {
    out.fill(0.0);
    let (mut max, mut sum) = (f32::NEG_INFINITY, 0.0);
    for part in parts {
        let whole = Partial {
            max: &mut max,
            sum: &mut sum,
            acc: out,
        };
        kernels::merge_partials(whole, (part[0], part[1], &part[2..]));
    }
    let inverse = 1.0 / sum;
    out.iter_mut().for_each(|x| *x *= inverse);
}
