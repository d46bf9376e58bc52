//! Requests that measure the link alone: a made-up cache is received as a real one is, and nothing
//! is computed.

use std::sync::Arc;
use std::time::Instant;

use tokio::io::{AsyncRead, AsyncWrite};

use super::admission::take_cache;
use super::answer::Answer;
use super::{Abort, Peer};
use crate::environment::{current_core, thread_cpu_time};
use crate::metrics::{Finish, Node};
use crate::model::cache_pool::{CachePool, Pooled};
use crate::model::kv_cache::{KvDtype, KvLayout};
use crate::model::kv_int8::WireRows;
use crate::node::generation::Clock;
use crate::node::reception::Reception;
use crate::wire::message::{Admit, Probe, Receiving, Refuse, RefuseCode};
use crate::wire::{Kind, MAX_PIECE_BYTES};

/// Most layers of a probe: above any published model.
const MAX_PROBE_LAYERS: u32 = 1024;

/// The cache of a probe, the same on both nodes: rows of the width that was asked for.
pub fn probe_layout(probe: Probe) -> KvLayout {
    KvLayout {
        n_layers: probe.n_layers as usize,
        n_kv_heads: 1,
        // K and V of one head of f32.
        head_dim: probe.row_bytes as usize / 8,
        dtype: KvDtype::F32,
    }
}

impl<R: AsyncRead + Unpin, W: AsyncWrite + Unpin> Peer<'_, R, W> {
    /// Receives a made-up cache and answers with when its pieces landed.
    pub(super) async fn serve_probe(&mut self, number: u64, probe: Probe) -> Result<(), Abort> {
        let clock = Clock::start(Node::Decode);
        let place = match self.place() {
            Ok(place) => place,
            Err(refuse) => return self.refuse(number, refuse).await,
        };
        let cache = match self.admit_probe(probe).await {
            Ok(cache) => Arc::new(cache),
            Err(refuse) => return self.refuse(number, refuse).await,
        };
        let tokens = probe.tokens as usize;
        let rows = WireRows::Same;
        let reception = Reception::new(number, tokens, Arc::clone(&cache), rows, clock, None);
        // There is no first token to wait for.
        reception.start(0)?;
        self.shared.set_current(Some(Arc::clone(&reception)));
        let admit = Admit {
            capacity_tokens: probe.tokens,
            others_in_flight: place.most_others(),
        };
        (self.writer)
            .write_control(Kind::Admit, self.session.id, number, &admit)
            .await?;
        let (wall, cpu) = (Instant::now(), thread_cpu_time());
        let ended = match self.receive_cache(&reception).await {
            Ok((_, events)) => {
                let receiving = Receiving {
                    cpu_ns: thread_cpu_time().saturating_sub(cpu).as_nanos() as u64,
                    wall_ns: wall.elapsed().as_nanos() as u64,
                    core: current_core(),
                };
                let answer = Answer {
                    events,
                    tokens: Vec::new(),
                };
                let mut done = answer.done(
                    Finish::Length,
                    &[],
                    None,
                    self.node.memory(),
                    self.node.activity(),
                );
                done.receiving = Some(receiving);
                done.others_in_flight = Some(place.most_others());
                (self.writer)
                    .write_control(Kind::Done, self.session.id, number, &done)
                    .await
                    .map_err(Abort::from)
            }
            Err(abort) => Err(abort),
        };
        self.end_request(number, ended).await
    }

    async fn admit_probe(&self, probe: Probe) -> Result<Pooled, Refuse> {
        let width = u64::from(probe.row_bytes);
        let layer_bytes = width * u64::from(probe.tokens);
        let sane = (8..=MAX_PIECE_BYTES).contains(&width)
            && width.is_multiple_of(8)
            && (1..=MAX_PROBE_LAYERS).contains(&probe.n_layers)
            && probe.tokens > 0
            && layer_bytes <= self.node.introduction.limits.max_cache_bytes;
        if !sane {
            return Err(Refuse {
                code: RefuseCode::BadRequest,
                reason: format!(
                    "a probe of {} layers and {} tokens of {width} bytes makes no sense here",
                    probe.n_layers, probe.tokens
                ),
            });
        }
        let (pool, layout) = (Arc::clone(&self.node.pool), probe_layout(probe));
        let tokens = probe.tokens as usize;
        // A node with a model measures the link for a moment and then needs the memory for
        // requests; one without has nothing else to do.
        let take = match self.node.compute {
            Some(_) => CachePool::take_once,
            None => CachePool::take,
        };
        take_cache(move || take(&pool, layout, tokens)).await
    }
}
