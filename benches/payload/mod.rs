//! The caches that the benchmarks move, the same in every one of them, and how they are cut into
//! pieces. Measuring is left to the benchmarks.

use disagg_bench::model::cache_pool::Pooled;
use disagg_bench::model::kv_cache::{KvDtype, KvLayout};
use disagg_bench::wire::{MAX_PIECE_BYTES, PieceHeader};
use rand::{RngCore, SeedableRng, rngs::StdRng};

/// Memory for caches, in bytes: a source and a destination of the largest payload.
pub const POOL_BYTES: usize = 256 << 20;

/// A cache of a given shape and length.
#[derive(Clone, Copy, Debug)]
pub struct Payload {
    /// Name in the output.
    pub name: &'static str,
    /// Shape and element type.
    pub layout: KvLayout,
    /// Tokens in every layer.
    pub tokens: usize,
}

/// What is measured: the notebook's dummy cache (K and V of 1x8x100x64 in each of 4 layers) and
/// 1,024 tokens of the default model.
pub const PAYLOADS: [Payload; 3] = [
    Payload {
        name: "dummy-f32",
        layout: KvLayout {
            n_layers: 4,
            n_kv_heads: 8,
            head_dim: 64,
            dtype: KvDtype::F32,
        },
        tokens: 100,
    },
    Payload {
        name: "default-1024-f32",
        layout: DEFAULT_MODEL,
        tokens: 1024,
    },
    Payload {
        name: "default-1024-f16",
        layout: KvLayout {
            dtype: KvDtype::F16,
            ..DEFAULT_MODEL
        },
        tokens: 1024,
    },
];

/// SmolLM2-135M.
const DEFAULT_MODEL: KvLayout = KvLayout {
    n_layers: 30,
    n_kv_heads: 3,
    head_dim: 64,
    dtype: KvDtype::F32,
};

impl Payload {
    /// K and V of all tokens, in bytes.
    pub fn kv_bytes(&self) -> usize {
        self.layout.bytes_per_token() * self.tokens
    }

    /// The pieces in the order in which a bulk transfer sends them.
    pub fn pieces(self) -> impl Iterator<Item = PieceHeader> {
        let piece_tokens = (MAX_PIECE_BYTES as usize / self.layout.row_bytes()).max(1);
        (0..self.layout.n_layers).flat_map(move |layer| {
            (0..self.tokens)
                .step_by(piece_tokens)
                .map(move |start| PieceHeader {
                    session: 1,
                    request: 1,
                    layer: layer as u32,
                    token_start: start as u32,
                    token_count: piece_tokens.min(self.tokens - start) as u32,
                })
        })
    }

    /// Fills an empty cache with seeded bytes.
    pub fn fill(&self, cache: &Pooled) {
        let mut random = StdRng::seed_from_u64(1);
        for layer in 0..self.layout.n_layers {
            let mut claim = (cache.claim(layer, 0, self.tokens)).expect("the cache is empty");
            random.fill_bytes(&mut claim);
            claim.land();
        }
    }
}

/// The bytes of a piece where they lie in the cache.
pub fn slice_of(cache: &Pooled, piece: PieceHeader) -> &[u8] {
    let start = piece.token_start as usize;
    (cache.read(
        piece.layer as usize,
        start..start + piece.token_count as usize,
    ))
    .expect("the cache is full")
}
