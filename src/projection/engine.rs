//! The shares of a run on an engine of another speed: the transfer takes what it took, compute
//! less or more. On faster compute the same transfer is a larger share.

use serde::Serialize;

use super::exposure::send;
use super::{Links, Measured};
use crate::metrics::Transfer;

/// Speeds beside which a run is shown unasked: about a server's processor and an accelerator
/// against a few cores.
pub const FASTER_ENGINES: [f64; 2] = [10.0, 100.0];

/// How fast an engine computes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum EngineSpeed {
    /// So many times the speed of the run's, in both phases.
    Times(f64),
    /// Prompt tokens a second, and tokens of the answer a second where that is known.
    TokensPerS {
        /// Prefill.
        prefill: f64,
        /// Decode, one sequence; the run's own speed where it is not given.
        decode: Option<f64>,
    },
}

/// One prompt in one mode on another engine. Projected.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Restated {
    /// Prompt length.
    pub prompt_tokens: u32,
    /// Bulk or layered.
    pub transfer: Transfer,
    /// Prompt tokens a second that this is for.
    pub prefill_tokens_per_s: f64,
    /// Tokens of the answer a second that this is for.
    pub decode_tokens_per_s: f64,
    /// Prefill on that engine.
    pub prefill_ms: f64,
    /// Transfer that the request waits for on the run's link.
    pub exposed_ms: f64,
    /// End to end with it.
    pub e2e_ms: f64,
    /// Exposed transfer / E2E, in percent.
    pub transfer_overhead_pct: f64,
    /// Link rate at which prefill would never wait.
    pub kv_demand_gbps: f64,
}

/// Restates a prompt of a run over `links` in one mode, with an answer of `output_tokens`. Handoff
/// and what is left over stay; what sending takes from prefill is left out.
pub fn restate(
    measured: &Measured,
    links: &Links,
    transfer: Transfer,
    prompt_tokens: u32,
    output_tokens: u32,
    speed: EngineSpeed,
) -> Restated {
    let steps = f64::from(output_tokens.saturating_sub(1));
    let own_prefill_per_s = f64::from(prompt_tokens) / measured.prefill_ms * 1e3;
    let own_decode_per_s = steps / measured.decode_ms * 1e3;
    let (prefill_per_s, decode_per_s) = match speed {
        EngineSpeed::Times(times) => (times * own_prefill_per_s, times * own_decode_per_s),
        EngineSpeed::TokensPerS { prefill, decode } => {
            (prefill, decode.unwrap_or(own_decode_per_s))
        }
    };
    let prefill_ms = f64::from(prompt_tokens) / prefill_per_s * 1e3;
    let exposed_ms = match measured.mode(transfer) {
        // Behind prefill it takes what it took.
        Some(bulk) if transfer == Transfer::Bulk => bulk.exposed_ms,
        _ => {
            let carrier = links.carrier(links.fit());
            let prefill = measured.prefill.taking(prefill_ms * 1e6);
            send(&carrier, &prefill, transfer == Transfer::Layered).exposed_ns / 1e6
        }
    };
    let rest_ms = measured.last_token_rest_ms - measured.decode_ms;
    let before_ms = measured.ttft_ms - measured.prefill_ms;
    let decode_ms = steps / decode_per_s * 1e3;
    let e2e_ms = before_ms + prefill_ms + exposed_ms + rest_ms + decode_ms;
    Restated {
        prompt_tokens,
        transfer,
        prefill_tokens_per_s: prefill_per_s,
        decode_tokens_per_s: decode_per_s,
        prefill_ms,
        exposed_ms,
        e2e_ms,
        transfer_overhead_pct: 100.0 * exposed_ms / e2e_ms,
        kv_demand_gbps: measured.kv_bytes as f64 * 8.0 / prefill_ms / 1e6,
    }
}
