//! The two roles: joins the engine and the wire.
//!
//! `compute` owns the thread that runs the model, `generation` says what a request does on it,
//! `batch` what several do at once, `prefill` and `decode` are the two ends of a request, `sending`
//! is a cache on its way, `reception` one while it arrives, `accuracy` what a lossy way there costs
//! the answer, `interference` two requests that meet, `probing` measures the link with made-up
//! caches, `observing` is what both ends did meanwhile. Nothing here prints or writes files.

pub mod accuracy;
pub mod batch;
pub mod compute;
pub mod decode;
pub mod generation;
pub mod interference;
pub mod observing;
pub mod prefill;
pub mod probing;
pub mod reception;
mod sending;

pub use sending::Departure;

use crate::environment::Environment;
use crate::model::engine::Engine;
use crate::model::kv_cache::KvDtype;
use crate::model::kv_int8::WireRows;
use crate::wire::message::{
    BuildIdentity, CacheLayout, Introduction, LayerLayout, Limits, ModelIdentity, NodeIdentity,
    WireDtype,
};
use crate::wire::{self, MAX_PIECE_BYTES};

/// Share of the machine's memory that caches may take: the rest is for weights and the system.
const CACHE_SHARE_OF_MEMORY: u64 = 2;

/// Bytes of cache where the machine does not tell its memory.
const CACHE_BYTES_WITHOUT_KNOWLEDGE: u64 = 4 << 30;

/// Bytes that the caches of a node may take together.
pub fn cache_limit_bytes(environment: &Environment) -> usize {
    let host = &environment.host;
    let memory = host.memory_limit_bytes.or(host.memory_bytes);
    let limit = memory.map_or(CACHE_BYTES_WITHOUT_KNOWLEDGE, |m| m / CACHE_SHARE_OF_MEMORY);
    usize::try_from(limit).unwrap_or(usize::MAX)
}

/// What a node without a model says of itself in the handshake.
pub fn introduction_for_link(environment: &Environment) -> anyhow::Result<Introduction> {
    Ok(Introduction {
        build: BuildIdentity {
            tool_version: environment.build.tool_version.clone(),
            git_revision: environment.build.git_revision.clone(),
            target: environment.build.target.clone(),
            instruction_set: environment.processor.instruction_set.clone(),
            threads: environment.threads,
        },
        node: NodeIdentity {
            host: environment.host.hostname.clone(),
            machine: environment.host.machine_id.clone(),
        },
        model: None,
        layout: None,
        limits: Limits {
            max_tokens: u32::MAX,
            max_piece_bytes: MAX_PIECE_BYTES,
            max_cache_bytes: cache_limit_bytes(environment) as u64,
        },
        environment: serde_json::to_value(environment)?,
    })
}

/// What a node with a model says of itself in the handshake.
pub fn introduction(engine: &Engine, environment: &Environment) -> anyhow::Result<Introduction> {
    let shape = engine.shape();
    let layer = |window: &Option<usize>| LayerLayout {
        n_kv_heads: shape.n_kv_heads as u32,
        head_dim: shape.head_dim as u32,
        window: window.map(|tokens| tokens as u32),
    };
    let bare = introduction_for_link(environment)?;
    Ok(Introduction {
        model: Some(ModelIdentity {
            name: engine.identity.name.clone(),
            weights: engine.identity.weights.clone(),
            fingerprint: engine.identity.fingerprint(),
        }),
        layout: Some(CacheLayout::new(shape.windows.iter().map(layer).collect())),
        limits: Limits {
            max_tokens: u32::try_from(shape.context_tokens).unwrap_or(u32::MAX),
            ..bare.limits
        },
        ..bare
    })
}

impl From<KvDtype> for wire::message::KvDtype {
    fn from(dtype: KvDtype) -> Self {
        match dtype {
            KvDtype::F32 => Self::F32,
            KvDtype::F16 => Self::F16,
            KvDtype::Bf16 => Self::Bf16,
        }
    }
}

impl From<wire::message::KvDtype> for KvDtype {
    fn from(dtype: wire::message::KvDtype) -> Self {
        match dtype {
            wire::message::KvDtype::F32 => Self::F32,
            wire::message::KvDtype::F16 => Self::F16,
            wire::message::KvDtype::Bf16 => Self::Bf16,
        }
    }
}

/// Element type of pieces whose cache is of `kv_dtype`.
pub fn wire_dtype(rows: WireRows, kv_dtype: KvDtype) -> WireDtype {
    match rows {
        WireRows::Same => wire::message::KvDtype::from(kv_dtype).into(),
        WireRows::Int8 => WireDtype::Int8,
    }
}

/// The rows of a request's pieces; none where they could not land in its cache.
fn wire_rows(open: &wire::message::Open) -> Option<WireRows> {
    match open.wire_dtype {
        None => Some(WireRows::Same),
        Some(WireDtype::Int8) => Some(WireRows::Int8),
        Some(same) if same == open.kv_dtype.into() => Some(WireRows::Same),
        Some(_) => None,
    }
}
