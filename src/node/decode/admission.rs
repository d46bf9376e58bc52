//! Whether a request is taken: a place among those in flight, lengths within the limits, and memory.

use std::sync::Arc;

use tokio::io::{AsyncRead, AsyncWrite};

use super::Peer;
use super::in_flight::Place;
use crate::model::cache_pool::{PoolFull, Pooled};
use crate::node::compute::Compute;
use crate::node::generation::Request;
use crate::node::wire_rows;
use crate::wire::message::{Open, OpenRole, Refuse, RefuseCode};

/// What a peer's prefill may take as working memory beside its cache, as a share of what all caches
/// may take: enough for chunks of any useful length, and little beside the caches.
const PREFILL_SHARE_OF_CACHES: u64 = 4;

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
        if open.role == OpenRole::Whole {
            let chunk = open
                .chunk_tokens
                .map_or(open.prompt_tokens.len(), |n| n as usize);
            let chunk = chunk.min(open.prompt_tokens.len()) as u64;
            let caches_bytes = self.node.pool.limit_bytes() as u64;
            prefill_fits(
                chunk,
                engine.shape().prefill_bytes_per_token(),
                caches_bytes,
            )
            .map_err(|reason| refuse(RefuseCode::Limit, reason))?;
        }
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

/// Whether the working memory of a prefill in chunks of `chunk_tokens` is within its bound.
fn prefill_fits(chunk_tokens: u64, bytes_a_token: u64, caches_bytes: u64) -> Result<(), String> {
    let limit_bytes = caches_bytes / PREFILL_SHARE_OF_CACHES;
    let wanted_bytes = chunk_tokens.saturating_mul(bytes_a_token);
    if wanted_bytes <= limit_bytes {
        return Ok(());
    }
    Err(format!(
        "a prefill of {chunk_tokens} tokens at once takes {wanted_bytes} bytes of working memory \
         and this node has {limit_bytes} for it: use --chunk-tokens {} or less, or start it with a \
         higher --max-cache",
        (limit_bytes / bytes_a_token.max(1)).max(1)
    ))
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::published;

    #[test]
    fn a_prefill_that_is_too_large_at_once_is_told_the_chunk_that_is_not() {
        let shape = published::find("llama-3.1-8b").unwrap().stand_in().unwrap();
        let (token_bytes, caches_bytes) = (shape.prefill_bytes_per_token(), 16 << 30);
        assert_eq!(token_bytes, 491_520);
        let largest = caches_bytes / 4 / token_bytes;
        assert_eq!(prefill_fits(largest, token_bytes, caches_bytes), Ok(()));
        for tokens in [largest + 1, 131_072, u64::MAX] {
            let reason = prefill_fits(tokens, token_bytes, caches_bytes).unwrap_err();
            let wanted = format!("use --chunk-tokens {largest} or less");
            assert!(reason.contains(&wanted), "{reason}");
        }
    }
}
