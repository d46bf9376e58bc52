//! One request on one clock, in ms since its start.

use super::super::scale::Scale;
use crate::metrics::clock::ClockOffset;
use crate::metrics::figures::Figures;
use crate::metrics::{Event, EventName, Node, Record, Sample, Transfer};
use crate::stats::Figure;

/// Layers that a picture has rows for.
const MOST_LAYERS: u32 = 512;

/// Something that took time, of one layer or of none.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Bar {
    pub(super) layer: u32,
    pub(super) from_ms: f64,
    pub(super) to_ms: f64,
}

impl Bar {
    /// Whether it reaches over a whole axis.
    pub(super) fn spans(&self, x: &Scale) -> bool {
        let ends = x.samples(1);
        ends.into_iter()
            .all(|end| (self.from_ms..=self.to_ms).contains(&end))
    }
}

/// A request until its second token.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Timeline {
    pub(super) transfer: Transfer,
    pub(super) prompt_tokens: u32,
    pub(super) layers: u32,
    /// Whether prefill went in several chunks.
    pub(super) is_chunked: bool,
    /// From the layer before until this one was there.
    pub(super) computed: Vec<Bar>,
    /// Offered to acknowledged.
    pub(super) sent: Vec<Bar>,
    /// On the decode node, as all below.
    pub(super) landed_ms: Vec<f64>,
    /// Cache complete until the first step.
    pub(super) handoff: Option<Bar>,
    pub(super) steps: Vec<Bar>,
    /// How far the decode node's moments may be off; none where they cannot be placed.
    pub(super) clock_error_ms: Option<f64>,
    /// When the user had the first two tokens.
    pub(super) tokens_ms: Vec<f64>,
    pub(super) prefill_end_ms: f64,
    /// When the last acknowledgement was back.
    pub(super) acknowledged_ms: f64,
    /// Second token.
    pub(super) end_ms: f64,
}

impl Timeline {
    /// Of the longest prompt's request whose E2E is closest to the median; `None` where none was
    /// sent in this mode.
    pub(super) fn typical(record: &Record, transfer: Transfer) -> Option<Self> {
        let counts = |s: &&Sample| s.is_measured() && s.transfer == Some(transfer) && !s.is_lossy();
        let cases = record
            .cases
            .iter()
            .filter(|c| c.samples.iter().any(|s| counts(&s)));
        let case = cases.max_by_key(|c| c.prompt_tokens)?;
        let e2e_ns = |s: &Sample| Figures::of(s, None).e2e_ns.map(|ns| ns as f64);
        let all: Vec<f64> = (case.samples.iter().filter(counts))
            .filter_map(e2e_ns)
            .collect();
        let median = Figure::of(&all)?.median;
        let off = |s: &Sample| e2e_ns(s).map_or(f64::INFINITY, |ns| (ns - median).abs());
        let sample =
            (case.samples.iter().filter(counts)).min_by(|a, b| off(a).total_cmp(&off(b)))?;
        Self::of(sample, transfer, case.prompt_tokens)
    }

    fn of(sample: &Sample, transfer: Transfer, prompt_tokens: u32) -> Option<Self> {
        let here = |name| moments(sample, Node::Prefill, name);
        let start_ns = here(EventName::RequestStart).first()?.t_ns as f64;
        let ms = |ns: u64| (ns as f64 - start_ns) / 1e6;
        let prefill_end_ms = ms(here(EventName::PrefillEnd).first()?.t_ns);
        let tokens_ms: Vec<f64> = (here(EventName::Token).iter().take(2))
            .map(|e| ms(e.t_ns))
            .collect();
        let end_ms = *tokens_ms.get(1)?;
        let mut before_ms = ms(here(EventName::PrefillStart).first()?.t_ns);
        let mut computed: Vec<Bar> = (here(EventName::LayerDone).iter())
            .filter_map(|e| {
                let bar = Bar {
                    layer: e.layer?,
                    from_ms: before_ms,
                    to_ms: ms(e.t_ns),
                };
                before_ms = bar.to_ms;
                Some(bar)
            })
            .collect();
        let is_chunked = has_repeats(&computed);
        // A layer is told when its K and V are there; what the last one does then, and the logits,
        // stand in its row too.
        let last_layer = computed.iter().map(|bar| bar.layer).max()?;
        if last_layer >= MOST_LAYERS {
            return None;
        }
        computed.push(Bar {
            layer: last_layer,
            from_ms: before_ms,
            to_ms: prefill_end_ms,
        });
        let acknowledged = here(EventName::PieceAcknowledged);
        let sent: Vec<Bar> = (here(EventName::PieceOffered).iter())
            .filter_map(|e| {
                let end = acknowledged.iter().find(|a| is_same_piece(a, e))?;
                Some(Bar {
                    layer: e.layer?,
                    from_ms: ms(e.t_ns),
                    to_ms: ms(end.t_ns),
                })
            })
            .collect();
        let acknowledged_ms = acknowledged.last().map(|e| ms(e.t_ns))?;
        // A clock that contradicts itself places nothing.
        let clock = ClockOffset::of(sample).filter(|clock| clock.error_ns >= 0);
        let there = |name| -> Vec<(Option<u32>, f64)> {
            let offset_ns = clock.map_or(0.0, |clock| clock.offset_ns as f64);
            (moments(sample, Node::Decode, name).iter())
                .map(|e| (e.chunk, (e.t_ns as f64 + offset_ns - start_ns) / 1e6))
                .collect()
        };
        let ends = there(EventName::StepEnd);
        let steps: Vec<Bar> = (there(EventName::StepStart).into_iter())
            .filter_map(|(step, from_ms)| {
                let (_, to_ms) = *ends.iter().find(|(other, _)| *other == step)?;
                let layer = 0;
                (from_ms < end_ms).then_some(Bar {
                    layer,
                    from_ms,
                    to_ms,
                })
            })
            .collect();
        let complete = there(EventName::CacheComplete);
        let handoff = complete.first().zip(steps.first());
        Some(Self {
            transfer,
            prompt_tokens,
            layers: last_layer + 1,
            is_chunked,
            landed_ms: (there(EventName::PieceLanded).into_iter())
                .map(|(_, ms)| ms)
                .collect(),
            handoff: handoff.map(|((_, from_ms), step)| Bar {
                layer: 0,
                from_ms: *from_ms,
                to_ms: step.from_ms,
            }),
            computed,
            sent,
            steps,
            clock_error_ms: clock.map(|clock| clock.error_ns as f64 / 1e6),
            tokens_ms,
            prefill_end_ms,
            acknowledged_ms,
            end_ms,
        })
    }
}

/// Events of a name in the order in which they happened.
fn moments(sample: &Sample, node: Node, name: EventName) -> Vec<&Event> {
    let events = sample.events.iter();
    let mut found: Vec<&Event> = events
        .filter(|e| e.clock == node && e.name == name)
        .collect();
    found.sort_by_key(|e| e.t_ns);
    found
}

fn is_same_piece(one: &Event, other: &Event) -> bool {
    let key = |e: &Event| (e.layer, e.token_start, e.chunk);
    key(one) == key(other)
}

/// Whether a layer was computed more than once.
fn has_repeats(computed: &[Bar]) -> bool {
    let mut layers: Vec<u32> = computed.iter().map(|bar| bar.layer).collect();
    layers.sort_unstable();
    layers.windows(2).any(|pair| pair[0] == pair[1])
}
