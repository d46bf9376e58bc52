//! What a lossy wire format costs the answer.

use serde::{Deserialize, Serialize};

use crate::wire::message::WireDtype;

/// One wire format of one case, by teacher forcing on the prefill node, untimed: the single arm's
/// tokens from the cache as it is behind the wire, against the same from the exact cache.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Lossy {
    /// The format.
    pub wire_dtype: WireDtype,
    /// Decode steps compared: all tokens of the answer but the first, which prefill gives.
    pub steps: u32,
    /// Mean over the steps of KL(single || lossy) over the whole vocabulary, in nats; null where
    /// a score is not a number.
    pub kl_mean_nats: Option<f64>,
    /// The largest of them.
    pub kl_max_nats: Option<f64>,
    /// Share of steps whose best token is the same, in percent.
    pub same_top_pct: f64,
    /// Tokens of the greedy answer, the first included, before the first that differs.
    pub same_tokens: u32,
}
