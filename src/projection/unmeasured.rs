//! A request that nobody ran: the cache of a model's shape, prefilled at a stated speed, on other
//! links and over other transports.

use serde::Serialize;

use super::exposure::{Prefill, send};
use super::outlook::ways;
use super::transport::Published;
use super::{Links, Range, Transport};
use crate::model::published::PublishedShape;
use crate::wire::MAX_PIECE_BYTES;

/// What is asked.
#[derive(Clone, Copy, Debug)]
pub struct Unmeasured<'a> {
    /// The model's cache.
    pub shape: &'a PublishedShape,
    /// Bytes of an element of it.
    pub element_bytes: u64,
    /// Prompt length.
    pub prompt_tokens: u32,
    /// Prompt tokens a second of the engine.
    pub prefill_tokens_per_s: f64,
    /// Tokens a second of one answer, where that is known.
    pub decode_tokens_per_s: Option<f64>,
}

/// One transport on one link.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Carried {
    /// Line rate of the link, in decimal gigabits per second.
    pub line_rate_gbps: f64,
    /// What would carry the bytes.
    pub transport: Transport,
    /// Transfer that the request waits for, sent after prefill.
    pub bulk_exposed_ms: Range,
    /// The same, sent layer by layer behind prefill.
    pub layered_exposed_ms: Range,
}

/// The answer. All of it is projected.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct WithoutModel {
    /// The model.
    pub model: String,
    /// Prompt length.
    pub prompt_tokens: u32,
    /// Bytes of its cache.
    pub kv_bytes: u64,
    /// The same over the tokens: with sliding layers less for long prompts than for short ones.
    pub kv_bytes_per_token: f64,
    /// Prefill at the stated speed.
    pub prefill_ms: f64,
    /// A decode step at the stated speed; null where none was stated.
    pub step_ms: Option<f64>,
    /// Payload rate that a link needs so that prefill never waits.
    pub kv_demand_gbps: f64,
    /// Every transport on every line rate, in the order asked for.
    pub carried: Vec<Carried>,
}

impl Unmeasured<'_> {
    /// Projects the request; TCP as fitted where there is a fit.
    pub fn project(
        &self,
        links: Option<&Links>,
        rates_gbps: &[f64],
    ) -> anyhow::Result<WithoutModel> {
        let (published, _) = Published::all()?;
        let prompt_tokens = self.prompt_tokens;
        let prefill_ms = f64::from(prompt_tokens) / self.prefill_tokens_per_s * 1e3;
        let layers = (self.shape).layer_bytes(u64::from(prompt_tokens), self.element_bytes);
        let kv_bytes: u64 = layers.iter().sum();
        let layers: Vec<f64> = layers.iter().map(|bytes| *bytes as f64).collect();
        let piece_bytes = MAX_PIECE_BYTES as f64;
        let prefill = Prefill::even(prompt_tokens, prefill_ms * 1e6, &layers, piece_bytes);
        let carried = rates_gbps.iter().flat_map(|&line_rate_gbps| {
            let all = Transport::ALL.map(|transport| {
                let ways = ways(links, &published, transport, line_rate_gbps);
                // The best of several ways, end by end of the range.
                let exposed = |is_layered| {
                    let ms = |i: usize| {
                        let all = ways.iter().map(|way| send(&way[i], &prefill, is_layered));
                        all.map(|sent| sent.exposed_ns / 1e6).min_by(f64::total_cmp)
                    };
                    Some(Range {
                        low: ms(0)?,
                        mid: ms(1)?,
                        high: ms(2)?,
                    })
                };
                Some(Carried {
                    line_rate_gbps,
                    transport,
                    bulk_exposed_ms: exposed(false)?,
                    layered_exposed_ms: exposed(true)?,
                })
            });
            all.into_iter().flatten()
        });
        Ok(WithoutModel {
            model: self.shape.model.clone(),
            prompt_tokens,
            kv_bytes,
            kv_bytes_per_token: kv_bytes as f64 / f64::from(prompt_tokens.max(1)),
            prefill_ms,
            step_ms: self.decode_tokens_per_s.map(|per_s| 1e3 / per_s),
            kv_demand_gbps: kv_bytes as f64 * 8.0 / prefill_ms / 1e6,
            carried: carried.collect(),
        })
    }
}
