//! Whether a request is taken: a place among those in flight, lengths within the limits, and memory.

use std::sync::Arc;

use tokio::io::{AsyncRead, AsyncWrite};

use super::Peer;
use super::in_flight::Place;
use crate::model::cache_pool::{PoolFull, Pooled};
use crate::node::compute::Compute;
use crate::node::generation::Request;
use crate::node::wire_rows;
use crate::wire::message::{Open, Refuse, RefuseCode};

impl<R: AsyncRead + Unpin, W: AsyncWrite + Unpin> Peer<'_, R, W> {
    /// A place among the requests in flight.
    pub(super) fn place(&self) -> Result<Place, Refuse> {
        let limit = self.node.limits.requests;
        self.node.in_flight.enter(limit).map_err(|others| Refuse {
            code: RefuseCode::Busy,
            reason: format!(
                "{others} requests are in flight and this node takes {limit} at once: try again \
                 later or start it with a higher --max-requests"
            ),
        })
    }

    /// Checks a request and takes memory for it.
    pub(super) async fn admit(&self, open: Open) -> Result<(Request, Pooled, Compute), Refuse> {
        let refuse = |code, reason: String| Refuse { code, reason };
        let Some(compute) = self.node.compute.clone() else {
            let reason = "this node only measures the link: start it without --link-only";
            return Err(refuse(RefuseCode::BadRequest, reason.into()));
        };
        let engine = compute.engine();
        if open.prompt_tokens.is_empty() || open.output_tokens == 0 || open.chunk_tokens == Some(0)
        {
            let reason = "a request needs a prompt, at least one output token and, if given, a \
                          chunk of at least one token";
            return Err(refuse(RefuseCode::BadRequest, reason.into()));
        }
        let limits = &self.node.limits;
        let lengths = [
            (
                "prompt",
                open.prompt_tokens.len(),
                limits.prompt_tokens,
                "--max-prompt-tokens",
            ),
            (
                "answer",
                open.output_tokens as usize,
                limits.output_tokens,
                "--max-output-tokens",
            ),
        ];
        for (what, tokens, limit, flag) in lengths {
            if limit.is_some_and(|limit| tokens > limit as usize) {
                let limit = limit.unwrap_or_default();
                let reason = format!(
                    "the {what} has {tokens} tokens and this node takes {limit}: send a shorter one \
                     or start it with a higher {flag}"
                );
                return Err(refuse(RefuseCode::Limit, reason));
            }
        }
        let wire_rows = wire_rows(&open).ok_or_else(|| {
            let reason = "pieces come in the element type of the cache or as int8, in no other";
            refuse(RefuseCode::BadRequest, reason.into())
        })?;
        (engine.check_length(open.prompt_tokens.len(), open.output_tokens as usize))
            .map_err(|e| refuse(RefuseCode::Limit, e.to_string()))?;
        let request = Request {
            prompt: open.prompt_tokens,
            output_tokens: open.output_tokens,
            ignore_eos: open.ignore_eos,
            kv_dtype: open.kv_dtype.into(),
            wire_rows,
            chunk_tokens: open.chunk_tokens,
        };
        let layout = engine.shape().kv_layout(request.kv_dtype);
        let (pool, tokens) = (Arc::clone(&self.node.pool), request.cache_tokens());
        let cache = take_cache(move || pool.take(layout, tokens)).await?;
        Ok((request, cache, compute))
    }
}

/// Memory for a request, as `take` gets it.
pub(super) async fn take_cache(
    take: impl FnOnce() -> Result<Pooled, PoolFull> + Send + 'static,
) -> Result<Pooled, Refuse> {
    // Touching fresh memory takes long enough to hold up other peers' tokens.
    let (code, reason) = match tokio::task::spawn_blocking(take).await {
        Ok(Ok(cache)) => return Ok(cache),
        Ok(Err(full)) if full.may_pass() => (RefuseCode::Busy, full.to_string()),
        Ok(Err(full)) => (RefuseCode::Limit, full.to_string()),
        Err(error) => (RefuseCode::Busy, error.to_string()),
    };
    Err(Refuse { code, reason })
}
