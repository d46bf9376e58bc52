//! Every figure of one sample, derived from its events. Definitions are those of METHODOLOGY.md.
//!
//! What is undefined is `None`: a one-token answer has no second token, the single arm no transfer.

use serde::{Deserialize, Serialize};

use super::{Arm, Event, EventName, Node, Sample};

/// Figures of one request. Client-side times are on the prefill node's clock.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Figures {
    /// Request start to first token.
    pub ttft_ns: Option<u64>,
    /// Request start to second token: where the handoff shows.
    pub ttst_ns: Option<u64>,
    /// (E2E - TTFT) / (output tokens - 1).
    pub tpot_ns: Option<f64>,
    /// Request start to last token.
    pub e2e_ns: Option<u64>,
    /// Output tokens / E2E.
    pub tokens_per_s: Option<f64>,
    /// Gaps between tokens.
    pub itl_ns: Vec<u64>,
    /// Prefill start to the logits of the first token, on the clock of the node that prefilled.
    pub prefill_ns: Option<u64>,
    /// Of prefill: K and V copied out of a device's memory. `None` where the processor computes.
    pub staging_out_ns: Option<u64>,
    /// Of the handoff: K and V copied into a device's memory.
    pub staging_in_ns: Option<u64>,
    /// Sum of the decode steps on the clock of the node that decoded.
    pub decode_ns: Option<u64>,
    /// Union of the intervals from a piece being offered until its acknowledgement.
    pub wire_busy_ns: Option<u64>,
    /// Prefill end to the last acknowledgement, less half the smallest round trip.
    pub exposed_transfer_ns: Option<u64>,
    /// Wire busy less exposed.
    pub hidden_transfer_ns: Option<u64>,
    /// On the decode node: last piece verified to first step started.
    pub handoff_ns: Option<u64>,
    /// On the decode node: the first decode step.
    pub first_step_ns: Option<u64>,
    /// TTST - TTFT - exposed - handoff - first step: should be near zero.
    pub residual_ns: Option<i64>,
    /// Exposed transfer / E2E, in percent.
    pub transfer_overhead_pct: Option<f64>,
    /// Wire busy / E2E, in percent.
    pub wire_busy_pct: Option<f64>,
    /// The notebook's step 5: wire busy / (prefill + wire busy), in percent.
    pub notebook_pipeline_pct: Option<f64>,
    /// KV payload bits as they were on the wire / wire busy.
    pub effective_gbps: Option<f64>,
    /// The same bits / prefill: the rate that a link needs so that prefill never waits.
    pub kv_demand_gbps: Option<f64>,
}

/// Idle time after which Linux starts a connection slowly again: its shortest retransmission
/// time-out (`tcp_slow_start_after_idle`).
const SLOW_AGAIN_AFTER_NS: u64 = 200_000_000;

/// In what state the connections were when a cache was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ConnectionState {
    /// They had carried no cache before.
    Cold,
    /// They had carried one less than 200 ms before.
    Warm,
    /// The one before was longer ago.
    AfterIdle,
}

impl ConnectionState {
    /// Of a request that sent a cache.
    pub fn of(sample: &Sample) -> Option<Self> {
        if sample.wire_payload_bytes == 0 {
            return None;
        }
        Some(match sample.idle_before_ns {
            None => Self::Cold,
            Some(idle_ns) if idle_ns < SLOW_AGAIN_AFTER_NS => Self::Warm,
            Some(_) => Self::AfterIdle,
        })
    }
}

/// Decimal gigabits per second; bits per nanosecond are the same number.
fn gbps(bytes: u64, ns: u64) -> Option<f64> {
    (ns > 0).then(|| bytes as f64 * 8.0 / ns as f64)
}

fn percent(part: u64, whole: u64) -> Option<f64> {
    (whole > 0).then(|| 100.0 * part as f64 / whole as f64)
}

impl Figures {
    /// Derives the figures of a sample. `min_round_trip_ns` is the link's smallest round trip.
    pub fn of(sample: &Sample, min_round_trip_ns: Option<u64>) -> Self {
        let mut figures = Self::default();
        if sample.error.is_some() {
            return figures;
        }
        let at = |clock: Node, name: EventName| -> Option<u64> {
            (sample.events.iter())
                .find_map(|e| (e.clock == clock && e.name == name).then_some(e.t_ns))
        };
        let user = |name| at(Node::Prefill, name);
        let start = user(EventName::RequestStart);
        let since_start = |t: Option<u64>| Some(t?.saturating_sub(start?));
        let tokens: Vec<u64> = (sample.events.iter())
            .filter(|e| e.clock == Node::Prefill && e.name == EventName::Token)
            .map(|e| e.t_ns)
            .collect();
        figures.ttft_ns = since_start(tokens.first().copied());
        figures.ttst_ns = since_start(tokens.get(1).copied());
        figures.e2e_ns = since_start(tokens.last().copied());
        figures.itl_ns = tokens
            .windows(2)
            .map(|w| w[1].saturating_sub(w[0]))
            .collect();
        if let (Some(e2e), Some(ttft)) = (figures.e2e_ns, figures.ttft_ns) {
            figures.tpot_ns = (tokens.len() > 1)
                .then(|| e2e.saturating_sub(ttft) as f64 / (tokens.len() - 1) as f64);
            figures.tokens_per_s = (e2e > 0).then(|| tokens.len() as f64 / (e2e as f64 / 1e9));
        }
        let prefill_clock = match sample.arm {
            Arm::Single => sample.node,
            Arm::Split => Node::Prefill,
        };
        let prefill_end = at(prefill_clock, EventName::PrefillEnd);
        figures.prefill_ns = prefill_end
            .zip(at(prefill_clock, EventName::PrefillStart))
            .map(|(end, start)| end.saturating_sub(start));
        let staging_ns = |on_layers: bool| {
            let events = sample.events.iter();
            let copies = intervals(
                events.filter(move |e| e.layer.is_some() == on_layers),
                EventName::StagingStart,
                EventName::StagingEnd,
            );
            (!copies.is_empty()).then(|| union_ns(copies))
        };
        (figures.staging_out_ns, figures.staging_in_ns) = (staging_ns(true), staging_ns(false));
        let steps = intervals(
            sample.events.iter(),
            EventName::StepStart,
            EventName::StepEnd,
        );
        if !steps.is_empty() {
            let steps_ns = steps.iter().map(|(s, e)| e - s);
            figures.decode_ns = Some(steps_ns.fold(0, u64::saturating_add));
            figures.first_step_ns = steps.first().map(|(start, end)| end - start);
        }
        if sample.arm == Arm::Split {
            figures.derive_transfer(sample, prefill_end, min_round_trip_ns, &steps);
        }
        figures
    }

    fn derive_transfer(
        &mut self,
        sample: &Sample,
        prefill_end: Option<u64>,
        min_round_trip_ns: Option<u64>,
        steps: &[(u64, u64)],
    ) {
        let pieces = intervals(
            sample.events.iter(),
            EventName::PieceOffered,
            EventName::PieceAcknowledged,
        );
        let (Some(last_ack), Some(prefill_end)) =
            (pieces.iter().map(|(_, ack)| *ack).max(), prefill_end)
        else {
            // A one-token answer sends no cache.
            return;
        };
        let way_back = min_round_trip_ns.unwrap_or(0) / 2;
        let busy = union_ns(pieces);
        let exposed = last_ack
            .saturating_sub(prefill_end)
            .saturating_sub(way_back);
        self.wire_busy_ns = Some(busy);
        self.exposed_transfer_ns = Some(exposed);
        self.hidden_transfer_ns = Some(busy.saturating_sub(exposed));
        self.effective_gbps = gbps(sample.wire_payload_bytes, busy);
        self.kv_demand_gbps = self
            .prefill_ns
            .and_then(|ns| gbps(sample.wire_payload_bytes, ns));
        self.transfer_overhead_pct = self.e2e_ns.and_then(|e2e| percent(exposed, e2e));
        self.wire_busy_pct = self.e2e_ns.and_then(|e2e| percent(busy, e2e));
        self.notebook_pipeline_pct = self.prefill_ns.and_then(|p| percent(busy, p + busy));
        let complete = (sample.events.iter())
            .find(|e| e.clock == Node::Decode && e.name == EventName::CacheComplete);
        self.handoff_ns = (complete.zip(steps.first()))
            .map(|(complete, (start, _))| start.saturating_sub(complete.t_ns));
        if let (Some(ttst), Some(ttft), Some(handoff), Some(step)) = (
            self.ttst_ns,
            self.ttft_ns,
            self.handoff_ns,
            self.first_step_ns,
        ) {
            self.residual_ns =
                Some(ttst as i64 - ttft as i64 - exposed as i64 - handoff as i64 - step as i64);
        }
    }
}

/// Pairs of start and end events that belong to the same layer, position and index, by start.
fn intervals<'a>(
    events: impl Iterator<Item = &'a Event> + Clone,
    start: EventName,
    end: EventName,
) -> Vec<(u64, u64)> {
    let key = |e: &Event| (e.clock, e.layer, e.chunk, e.token_start);
    let ends: std::collections::BTreeMap<_, u64> = (events.clone())
        .filter(|e| e.name == end)
        .map(|e| (key(e), e.t_ns))
        .collect();
    let mut pairs: Vec<(u64, u64)> = events
        .filter(|e| e.name == start)
        .filter_map(|e| Some((e.t_ns, (*ends.get(&key(e))?).max(e.t_ns))))
        .collect();
    pairs.sort_unstable();
    pairs
}

/// Union of the intervals from a piece being offered until its acknowledgement.
pub fn wire_busy_ns(events: &[Event]) -> u64 {
    let pieces = intervals(
        events.iter(),
        EventName::PieceOffered,
        EventName::PieceAcknowledged,
    );
    union_ns(pieces)
}

/// Length of the union of intervals.
fn union_ns(mut intervals: Vec<(u64, u64)>) -> u64 {
    intervals.sort_unstable();
    let mut total = 0;
    let mut covered_to = 0;
    for (start, end) in intervals {
        if end > covered_to {
            total += end - start.max(covered_to);
            covered_to = end;
        }
    }
    total
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Transfer;
    use crate::wire::message::{KvDtype, WireDtype};

    fn event(node: Node, name: EventName, chunk: Option<u32>, t_ns: u64) -> Event {
        Event {
            clock: node,
            name,
            layer: None,
            chunk,
            token_start: None,
            stream: None,
            t_ns,
        }
    }

    fn sample(arm: Arm, events: Vec<Event>) -> Sample {
        Sample {
            arm,
            node: Node::Decode,
            transfer: Some(Transfer::Bulk),
            choice: None,
            idle_before_ns: None,
            others_in_flight: None,
            waiting_ahead: None,
            connect_attempts: None,
            kv_dtype: KvDtype::F16,
            wire_dtype: Some(WireDtype::F16),
            streams: 1,
            chunk_tokens: None,
            warmup: false,
            repeat: 0,
            order: 0,
            wire_payload_bytes: 1_000_000,
            wire_framing_bytes: 0,
            output: None,
            events,
            error: None,
        }
    }

    fn split_sample() -> Sample {
        use EventName::*;
        let (p, d) = (Node::Prefill, Node::Decode);
        let mut events = vec![
            event(p, RequestStart, None, 0),
            event(p, PrefillStart, None, 10),
            event(p, PrefillEnd, None, 1_010),
            event(p, Token, Some(0), 1_020),
            event(d, CacheComplete, None, 700),
            event(d, StepStart, Some(1), 730),
            event(d, StepEnd, Some(1), 830),
            event(p, Token, Some(1), 1_700),
            event(p, Token, Some(2), 1_900),
        ];
        for (layer, offered, acked) in [(0, 1_020, 1_400), (1, 1_100, 1_560)] {
            for (name, t) in [(PieceOffered, offered), (PieceAcknowledged, acked)] {
                let mut e = event(p, name, Some(0), t);
                e.layer = Some(layer);
                events.push(e);
            }
        }
        sample(Arm::Split, events)
    }

    #[test]
    fn a_split_sample_adds_up() {
        let f = Figures::of(&split_sample(), Some(40));
        assert_eq!(f.ttft_ns, Some(1_020));
        assert_eq!(f.ttst_ns, Some(1_700));
        assert_eq!(f.e2e_ns, Some(1_900));
        assert_eq!(f.tpot_ns, Some(440.0));
        assert_eq!(f.itl_ns, [680, 200]);
        assert_eq!(f.prefill_ns, Some(1_000));
        assert_eq!(f.wire_busy_ns, Some(540));
        assert_eq!(f.exposed_transfer_ns, Some(1_560 - 1_010 - 20));
        assert_eq!(f.hidden_transfer_ns, Some(10));
        assert_eq!(f.handoff_ns, Some(30));
        assert_eq!(f.first_step_ns, Some(100));
        assert_eq!(f.residual_ns, Some(680 - 530 - 30 - 100));
        // The notebook printed megabits as gigabits: 1 MB in 540 ns is 14,815 Gbps, no more.
        assert!((f.effective_gbps.unwrap() - 14_814.8).abs() < 0.1);
        assert!((f.transfer_overhead_pct.unwrap() - 100.0 * 530.0 / 1_900.0).abs() < 1e-9);
    }

    #[test]
    fn staging_is_told_by_direction_and_only_where_it_is() {
        use EventName::*;
        let mut staged = split_sample();
        let f = Figures::of(&staged, None);
        assert_eq!((f.staging_out_ns, f.staging_in_ns), (None, None));
        for (layer, from, to) in [(0, 100, 130), (1, 500, 540)] {
            for (name, t) in [(StagingStart, from), (StagingEnd, to)] {
                let mut e = event(Node::Prefill, name, Some(0), t);
                e.layer = Some(layer);
                staged.events.push(e);
            }
        }
        for (name, t) in [(StagingStart, 705), (StagingEnd, 725)] {
            staged.events.push(event(Node::Decode, name, None, t));
        }
        let f = Figures::of(&staged, None);
        assert_eq!((f.staging_out_ns, f.staging_in_ns), (Some(70), Some(20)));
        assert_eq!((f.prefill_ns, f.handoff_ns), (Some(1_000), Some(30)));
    }

    #[test]
    fn events_of_a_damaged_file_that_go_backwards_take_no_time() {
        let mut backwards = split_sample();
        let times = (0..).map(|i| 10_000 - 1_000 * i);
        (backwards.events.iter_mut().zip(times)).for_each(|(event, t_ns)| event.t_ns = t_ns);
        let f = Figures::of(&backwards, Some(40));
        assert_eq!((f.e2e_ns, f.tpot_ns), (Some(0), Some(0.0)));
        assert_eq!(f.itl_ns, [0, 0]);
        assert_eq!((f.prefill_ns, f.decode_ns), (Some(0), Some(0)));
    }

    #[test]
    fn what_is_undefined_is_none() {
        let mut one_token = split_sample();
        one_token.events.retain(|e| match e.name {
            EventName::Token => e.chunk == Some(0),
            EventName::RequestStart | EventName::PrefillStart | EventName::PrefillEnd => true,
            _ => false,
        });
        let f = Figures::of(&one_token, None);
        assert_eq!(f.e2e_ns, f.ttft_ns);
        assert_eq!((f.ttst_ns, f.tpot_ns), (None, None));
        assert_eq!((f.wire_busy_ns, f.transfer_overhead_pct), (None, None));

        let mut failed = split_sample();
        failed.error = Some("peer closed".into());
        assert_eq!(Figures::of(&failed, None), Figures::default());
    }

    #[test]
    fn exposed_is_never_negative() {
        let f = Figures::of(&split_sample(), Some(1_000_000));
        assert_eq!(f.exposed_transfer_ns, Some(0));
        assert_eq!(f.hidden_transfer_ns, f.wire_busy_ns);
    }

    #[test]
    fn the_union_counts_overlap_once() {
        assert_eq!(union_ns(vec![(0, 10), (5, 15), (20, 30), (22, 25)]), 25);
        assert_eq!(union_ns(vec![]), 0);
    }
}
