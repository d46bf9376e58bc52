//! How long a request waits for its cache on a link of known cost: one queue of parts that exist
//! when prefill has made them and go one after the other.
//!
//! The measured prefill says when each part exists, the carrier what it costs to send. What sending
//! takes from prefill is left to the caller, who gets the bytes that went meanwhile.

use super::Carrier;
use crate::link::Fit;
use crate::metrics::{Choice, EventName, Node, Sample, Transfer};

/// Saving below which layers are not sent behind prefill: within what it costs to disturb it.
const LEAST_SAVING_NS: f64 = 100_000.0;

/// And the same as a share of prefill.
const LEAST_SAVING_SHARE: f64 = 0.002;

/// Part of a cache that exists at one moment.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Part {
    /// When, since prefill started.
    ready_ns: f64,
    bytes: f64,
    /// Frames that it is cut into.
    pieces: f64,
}

/// The prefill of one request as it was measured.
#[derive(Clone, Debug, PartialEq)]
pub struct Prefill {
    /// Prompt length.
    pub tokens: u32,
    pub(super) prefill_ns: f64,
    parts: Vec<Part>,
}

/// What becomes of a transfer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sent {
    /// What the request waits for behind prefill, in ns.
    pub exposed_ns: f64,
    /// Bytes that went while prefill computed.
    pub hidden_bytes: f64,
}

/// How a cache is cut.
#[derive(Clone, Copy, Debug)]
pub struct Cut {
    /// Bytes of one token in one layer.
    pub row_bytes: u64,
    /// Largest piece.
    pub piece_bytes: u64,
}

impl Prefill {
    /// Of a sample that prefilled `tokens` on the prefill node; `None` where its events do not
    /// tell.
    pub fn of(sample: &Sample, tokens: u32, cut: Cut) -> Option<Self> {
        let here = || sample.events.iter().filter(|e| e.clock == Node::Prefill);
        let at = |name| here().find(|e| e.name == name).map(|e| e.t_ns);
        let (start, end) = (at(EventName::PrefillStart)?, at(EventName::PrefillEnd)?);
        let done: Vec<(u32, u64)> = here()
            .filter(|e| e.name == EventName::LayerDone)
            .map(|e| Some((e.token_start?, e.t_ns.saturating_sub(start))))
            .collect::<Option<_>>()?;
        let mut starts: Vec<u32> = done.iter().map(|(start, _)| *start).collect();
        starts.sort_unstable();
        starts.dedup();
        let piece_tokens = (cut.piece_bytes / cut.row_bytes.max(1)).max(1);
        let parts: Vec<Part> = (done.iter())
            .map(|(start, ready_ns)| {
                let next = starts.iter().find(|s| *s > start).unwrap_or(&tokens);
                let part_tokens = u64::from(next.saturating_sub(*start));
                Part {
                    ready_ns: *ready_ns as f64,
                    bytes: (part_tokens * cut.row_bytes) as f64,
                    pieces: part_tokens.div_ceil(piece_tokens) as f64,
                }
            })
            .collect();
        (!parts.is_empty()).then(|| Self {
            tokens,
            prefill_ns: end.saturating_sub(start) as f64,
            parts,
        })
    }

    /// A prompt whose layers take equally long and leave as many bytes each, the first of them
    /// `1 / layers` of the whole time after the start.
    pub fn even(tokens: u32, prefill_ns: f64, layer_bytes: &[f64], piece_bytes: f64) -> Self {
        let n = layer_bytes.len() as f64;
        let parts = (1..).zip(layer_bytes).map(|(i, bytes)| Part {
            ready_ns: prefill_ns * f64::from(i) / n,
            bytes: *bytes,
            pieces: (bytes / piece_bytes).ceil(),
        });
        Self {
            tokens,
            prefill_ns,
            parts: parts.collect(),
        }
    }

    /// Bytes of the whole cache.
    pub fn bytes(&self) -> f64 {
        self.parts.iter().map(|p| p.bytes).sum()
    }

    /// The same where prefill takes another time, every layer in proportion.
    pub fn taking(&self, prefill_ns: f64) -> Self {
        let by = prefill_ns / self.prefill_ns.max(1.0);
        let part = |p: &Part| Part {
            ready_ns: p.ready_ns * by,
            ..*p
        };
        Self {
            tokens: self.tokens,
            prefill_ns,
            parts: self.parts.iter().map(part).collect(),
        }
    }

    /// The same for another prompt length, every time and size in proportion, and with
    /// `wire_share` of the bytes on the wire.
    fn scaled(&self, tokens: u32, wire_share: f64) -> Self {
        let by = f64::from(tokens) / f64::from(self.tokens.max(1));
        let part = |p: &Part| Part {
            ready_ns: p.ready_ns * by,
            bytes: p.bytes * by * wire_share,
            pieces: (p.pieces * by * wire_share).ceil(),
        };
        Self {
            tokens,
            prefill_ns: self.prefill_ns * by,
            parts: self.parts.iter().map(part).collect(),
        }
    }
}

/// Sends the cache of a request after prefill, or layer by layer behind it.
pub fn send(carrier: &Carrier, prefill: &Prefill, is_layered: bool) -> Sent {
    let bytes = prefill.bytes();
    // Parts of one stream go at the rate of the whole of it.
    let ns_per_byte = carrier.wire_ns(bytes) / bytes.max(1.0);
    let ready = |part: &Part| match is_layered {
        true => part.ready_ns,
        false => prefill.prefill_ns,
    };
    let mut parts: Vec<&Part> = prefill.parts.iter().collect();
    parts.sort_by(|a, b| ready(a).total_cmp(&ready(b)));
    let (mut free_ns, mut hidden_bytes) = (0.0f64, 0.0);
    for part in parts {
        let cost_ns = part.pieces * carrier.ns_per_piece() + part.bytes * ns_per_byte;
        let start_ns = free_ns.max(ready(part));
        free_ns = start_ns + cost_ns;
        let before_end = (prefill.prefill_ns - start_ns).max(0.0);
        hidden_bytes += part.bytes * (before_end / cost_ns.max(f64::MIN_POSITIVE)).min(1.0);
    }
    Sent {
        exposed_ns: (free_ns + carrier.fixed_ns() - prefill.prefill_ns).max(0.0),
        hidden_bytes,
    }
}

/// Picks for a prompt of `tokens` from the fitted link and the closest measured prefill; of each
/// byte of cache, `wire_share` crosses the link.
///
/// Without either, layers are sent behind prefill: that waits for less on any link, and only the
/// disturbance of prefill speaks against it.
pub fn choose(
    fit: Option<&Fit>,
    round_trip_ns: u64,
    measured: &[Prefill],
    tokens: u32,
    wire_share: f64,
) -> Choice {
    let closest = measured.iter().min_by_key(|p| p.tokens.abs_diff(tokens));
    let Some((fit, closest)) = fit.zip(closest) else {
        return Choice {
            picked: Transfer::Layered,
            bulk_exposed_ns: None,
            layered_exposed_ns: None,
            measured_prompt_tokens: None,
        };
    };
    let prefill = closest.scaled(tokens, wire_share);
    let carrier = Carrier::fitted(fit, round_trip_ns);
    let [bulk, layered] = [false, true].map(|layered| send(&carrier, &prefill, layered).exposed_ns);
    let worth_ns = LEAST_SAVING_NS.max(LEAST_SAVING_SHARE * prefill.prefill_ns);
    Choice {
        picked: match bulk - layered > worth_ns {
            true => Transfer::Layered,
            false => Transfer::Bulk,
        },
        bulk_exposed_ns: Some(bulk.round() as u64),
        layered_exposed_ns: Some(layered.round() as u64),
        measured_prompt_tokens: Some(closest.tokens),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::link::SizeTime;
    use proptest::prelude::*;

    fn fit(alpha_us: f64, overhead_us_per_piece: f64, beta_gbps: f64) -> Fit {
        Fit {
            streams: 1,
            alpha_us,
            overhead_us_per_piece,
            beta_gbps: Some(beta_gbps),
            sizes: vec![SizeTime {
                bytes: 1 << 16,
                wire_ms: 65_536.0 * 8.0 / beta_gbps / 1e6,
            }],
            after_idle: Vec::new(),
            worst_residual_pct: 0.0,
            held_out_error_pct: None,
        }
    }

    fn exposed_ns(fit: &Fit, round_trip_ns: u64, prefill: &Prefill, is_layered: bool) -> f64 {
        send(&Carrier::fitted(fit, round_trip_ns), prefill, is_layered).exposed_ns
    }

    /// Layers of 1 MB each, evenly over 100 ms.
    fn prefill(layers: usize) -> Prefill {
        let part = |i: usize| Part {
            ready_ns: 100e6 * (i as f64 + 0.5) / layers as f64,
            bytes: 1e6,
            pieces: 1.0,
        };
        Prefill {
            tokens: 1000,
            prefill_ns: 100e6,
            parts: (0..layers).map(part).collect(),
        }
    }

    #[test]
    fn a_fast_link_hides_all_but_the_last_layer_and_a_slow_one_all_but_prefill() {
        // 1 MB at 8 Gbps is 1 ms; the last layer exists 5 ms before the end.
        let fast = fit(0.0, 0.0, 8.0);
        assert_eq!(exposed_ns(&fast, 0, &prefill(10), false), 10e6);
        assert_eq!(exposed_ns(&fast, 0, &prefill(10), true), 0.0);
        // At 0.08 Gbps a layer takes 100 ms: the first goes at 5 ms, the last is in at 1,005 ms.
        let slow = fit(0.0, 0.0, 0.08);
        assert!((exposed_ns(&slow, 0, &prefill(10), false) - 1_000e6).abs() < 1.0);
        assert!((exposed_ns(&slow, 0, &prefill(10), true) - 905e6).abs() < 1.0);
    }

    #[test]
    fn fixed_costs_count_once_and_pieces_each() {
        let link = fit(300.0, 50.0, 8.0);
        let got = exposed_ns(&link, 100_000, &prefill(10), false);
        assert!((got - (10e6 + 10.0 * 50e3 + 250e3)).abs() < 1.0, "{got}");
        // A fixed cost below the way back of the acknowledgement is none.
        let got = exposed_ns(&fit(30.0, 0.0, 8.0), 100_000, &prefill(10), false);
        assert!((got - 10e6).abs() < 1.0);
    }

    #[test]
    fn auto_picks_the_lesser_and_stays_out_of_prefills_way_where_nothing_is_saved() {
        let slow = choose(Some(&fit(0.0, 0.0, 1.0)), 0, &[prefill(10)], 1000, 1.0);
        assert_eq!(slow.picked, Transfer::Layered);
        assert!(slow.bulk_exposed_ns > slow.layered_exposed_ns);
        let fast = choose(Some(&fit(0.0, 0.0, 1e6)), 0, &[prefill(10)], 1000, 1.0);
        assert_eq!(fast.picked, Transfer::Bulk);
        let unknown = choose(None, 0, &[prefill(10)], 1000, 1.0);
        assert_eq!(
            (unknown.picked, unknown.bulk_exposed_ns),
            (Transfer::Layered, None)
        );
    }

    #[test]
    fn another_length_goes_in_proportion_from_the_closest() {
        let long = Prefill {
            tokens: 9000,
            ..prefill(4)
        };
        let choice = choose(
            Some(&fit(0.0, 0.0, 8.0)),
            0,
            &[prefill(10), long],
            2000,
            1.0,
        );
        assert_eq!(choice.measured_prompt_tokens, Some(1000));
        assert_eq!(choice.bulk_exposed_ns, Some(20_000_000));
    }

    proptest! {
        /// Over a fit of several sizes, whatever its rates, as projections use it.
        #[test]
        fn over_a_fit_of_sizes_more_bytes_never_wait_less_and_the_line_is_never_beaten(
            steps_ms in prop::collection::vec((0.0f64..20.0, 0.0f64..20.0), 2..8),
            has_idled: bool,
            is_after_idle: bool,
            beta_gbps in prop::option::of(0.01f64..400.0),
            (alpha_us, overhead_us) in (0.0f64..1e4, 0.0f64..100.0),
            times in 0.25f64..4.0,
            line_gbps in 0.01f64..400.0,
            layers in 1usize..40,
            (layer_bytes, growth) in (1e3f64..1e8, 1.0f64..8.0),
            is_layered: bool,
        ) {
            let sizes = |of: fn(&(f64, f64)) -> f64| {
                let mut wire_ms = 0.0;
                let sizes = steps_ms.iter().enumerate().map(|(i, step)| {
                    wire_ms += of(step);
                    SizeTime { bytes: 1 << (16 + 2 * i), wire_ms }
                });
                sizes.collect::<Vec<_>>()
            };
            let mut link = fit(alpha_us, overhead_us, 1.0);
            link.beta_gbps = beta_gbps;
            link.sizes = sizes(|(warm, _)| *warm);
            if has_idled {
                link.after_idle = sizes(|(_, idle)| *idle);
            }
            let free = Carrier::fitted(&link, 0).slower(times).after_idle(is_after_idle);
            let on_line = free.on_line(line_gbps);
            let cache = |bytes: f64| {
                let mut prefill = prefill(layers);
                prefill.parts.iter_mut().for_each(|p| p.bytes = bytes);
                prefill
            };
            let (small, large) = (cache(layer_bytes), cache(layer_bytes * growth));
            let waits = |carrier: &Carrier, prefill| send(carrier, prefill, is_layered).exposed_ns;
            for carrier in [&free, &on_line] {
                let (less, more) = (waits(carrier, &small), waits(carrier, &large));
                prop_assert!(less >= 0.0);
                prop_assert!(less <= more * (1.0 + 1e-9) + 1e-3, "{} {}", less, more);
            }
            prop_assert!(waits(&free, &large) <= waits(&on_line, &large) * (1.0 + 1e-9) + 1e-3);
            let line_ns = 8.0 * large.bytes() / line_gbps;
            let behind_prefill_ns = if is_layered { large.prefill_ns } else { 0.0 };
            let least_ns = line_ns * (1.0 - 1e-9) - behind_prefill_ns - 1e-3;
            prop_assert!(waits(&on_line, &large) >= least_ns);
        }

        #[test]
        fn more_bytes_never_wait_less_and_the_line_rate_is_never_beaten(
            layers in 1usize..40,
            alpha_us in 0.0f64..1e4,
            overhead_us in 0.0f64..100.0,
            gbps in 0.01f64..400.0,
            growth in 1.0f64..8.0,
            is_layered: bool,
        ) {
            let link = fit(alpha_us, overhead_us, gbps);
            let (small, mut large) = (prefill(layers), prefill(layers));
            large.parts.iter_mut().for_each(|p| p.bytes *= growth);
            let waits = exposed_ns(&link, 0, &small, is_layered);
            prop_assert!(waits >= 0.0);
            prop_assert!(waits <= exposed_ns(&link, 0, &large, is_layered) + 1e-6);
            let bulk = exposed_ns(&link, 0, &small, false);
            prop_assert!(waits <= bulk + 1e-6);
            let wire_ns = 8.0 * 1e6 * layers as f64 / gbps;
            prop_assert!(bulk >= wire_ns * (1.0 - 1e-12));
            prop_assert!(exposed_ns(&link, 0, &small, true) >= wire_ns - small.prefill_ns - 1e-3);
        }
    }
}
