//! What some architectures do to Q, K and V before they are rotated: biases, and norms of heads.

use super::AttentionShape;
use crate::model::kernels;
use crate::model::parallel;

/// Norms of query and K heads.
#[derive(Debug)]
pub struct QueryKeyNorm {
    /// Of every query head, `(head_dim)`.
    pub query: Vec<f32>,
    /// Of every K head, `(head_dim)`.
    pub key: Vec<f32>,
    /// Epsilon of both.
    pub eps: f32,
}

/// Adds `bias`, `((n_heads + 2 n_kv_heads) x head_dim)`, to every row of `qkv` and norms its query
/// and K heads.
pub fn adjust(
    shape: AttentionShape,
    bias: Option<&[f32]>,
    norm: Option<&QueryKeyNorm>,
    qkv: &mut [f32],
) {
    let width = shape.qkv_width();
    let k_width = shape.n_kv_heads * shape.head_dim;
    parallel::for_rows(qkv, width, |_, rows| {
        for row in rows.chunks_mut(width) {
            if let Some(bias) = bias {
                kernels::add(row, bias);
            }
            if let Some(norm) = norm {
                let (q, kv) = row.split_at_mut(shape.q_width());
                kernels::rms_norm_heads(q, &norm.query, norm.eps);
                kernels::rms_norm_heads(&mut kv[..k_width], &norm.key, norm.eps);
            }
        }
    });
}
