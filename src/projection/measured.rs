//! What a run measured of one prompt, taken apart so that it can be put together for another link:
//! prefill, what follows the first token but for the transfer, and what sending takes from prefill.

use serde::Serialize;

use super::exposure::{Cut, Prefill};
use crate::metrics::figures::Figures;
use crate::metrics::{Arm, Case, EventName, Node, Record, Sample, Transfer};
use crate::stats::{DEFAULT_SEED, Figure, median_interval, percentile};
use crate::wire::MAX_PIECE_BYTES;

/// Modes that can be projected; `auto` is one of them each time.
pub(super) const MODES: [Transfer; 2] = [Transfer::Bulk, Transfer::Layered];

/// Idle time after which Linux starts a connection slowly again, in ms.
const SLOW_AGAIN_AFTER_MS: f64 = 200.0;

/// Medians of one mode as it was measured.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct ModeFigures {
    /// Bulk or layered.
    pub transfer: Transfer,
    /// Transfer that the request waited for.
    pub exposed_ms: f64,
    /// Request start to second token.
    pub ttst_ms: f64,
    /// Request start to last token.
    pub e2e_ms: f64,
    /// What sending took from prefill: nothing in bulk.
    pub tax_ms: f64,
}

impl ModeFigures {
    /// What a request waited for because of its transfer.
    pub(super) fn waits_ms(&self) -> f64 {
        self.exposed_ms + self.tax_ms
    }
}

/// Medians of one prompt over the requests of a run.
#[derive(Clone, Debug, Serialize)]
pub struct Measured {
    /// Bytes that cross the link.
    pub kv_bytes: u64,
    /// Request start to first token, with nothing sent before it.
    pub ttft_ms: f64,
    /// Prefill alone, with nothing sent meanwhile.
    pub prefill_ms: f64,
    /// The node that is faster alone; null where no single arm was measured.
    pub single_node: Option<Node>,
    /// Time to the second token of the one node; null where no single arm was measured.
    pub single_ttst_ms: Option<f64>,
    /// End to end on one node; null where no single arm was measured.
    pub single_e2e_ms: Option<f64>,
    /// Last piece verified to first decode step.
    pub handoff_ms: f64,
    /// First to second token of the split less its exposed transfer.
    pub second_token_rest_ms: f64,
    /// First to last token of the split less its exposed transfer.
    pub last_token_rest_ms: f64,
    /// All decode steps.
    pub decode_ms: f64,
    /// The modes that were measured.
    pub modes: Vec<ModeFigures>,
    /// What a byte that is sent while prefill computes adds to prefill, in ns; null where no layers
    /// were sent behind prefill.
    pub tax_ns_per_byte: Option<f64>,
    /// Whether the connections had idled before a transfer.
    pub is_after_idle: bool,
    /// When the layers were there.
    #[serde(skip)]
    pub(super) prefill: Prefill,
    /// Smallest round trip of the run's link.
    #[serde(skip)]
    pub(super) round_trip_ms: f64,
}

/// A measured request in figures.
pub(super) struct Request<'a> {
    sample: &'a Sample,
    figures: Figures,
}

impl Request<'_> {
    pub(super) fn ms(&self, of: fn(&Figures) -> Option<u64>) -> Option<f64> {
        Some(of(&self.figures)? as f64 / 1e6)
    }

    pub(super) fn repeat(&self) -> u32 {
        self.sample.repeat
    }

    pub(super) fn is(&self, arm: Arm, transfer: Option<Transfer>) -> bool {
        self.sample.arm == arm && self.sample.transfer == transfer
    }

    pub(super) fn is_single_on(&self, node: Node) -> bool {
        self.sample.arm == Arm::Single && self.sample.node == node
    }

    /// On whose prefill nothing but itself weighs.
    fn prefills_alone(&self) -> bool {
        self.is(Arm::Split, Some(Transfer::Bulk)) || self.is_single_on(Node::Prefill)
    }

    /// How much longer its prefill took than those of the same round that nothing weighs on.
    pub(super) fn prefill_disturbed_ms(&self, all: &[Request]) -> Option<f64> {
        let alone = (all.iter()).filter(|r| r.prefills_alone() && r.repeat() == self.repeat());
        let alone_ms = median(alone.filter_map(|r| r.ms(|f| f.prefill_ns)))?;
        Some(self.ms(|f| f.prefill_ns)? - alone_ms)
    }
}

/// Lossless requests that count.
pub(super) fn requests(case: &Case, round_trip_ns: Option<u64>) -> Vec<Request<'_>> {
    let counts = |s: &&Sample| !s.warmup && s.error.is_none() && !s.is_lossy();
    (case.samples.iter().filter(counts))
        .map(|sample| Request {
            sample,
            figures: Figures::of(sample, round_trip_ns),
        })
        .collect()
}

pub(super) fn median(values: impl Iterator<Item = f64>) -> Option<f64> {
    Some(Figure::of(&values.collect::<Vec<_>>())?.median)
}

impl Measured {
    /// Of a case; `None` where no cache was sent in bulk or behind prefill.
    pub fn of(record: &Record, case: &Case) -> Option<Self> {
        let round_trip_ns = record.link.as_ref().and_then(|l| l.min_round_trip_ns());
        let requests = requests(case, round_trip_ns);
        let tax_ns_per_byte = tax_ns_per_byte(record);
        let modes: Vec<ModeFigures> = (MODES.iter())
            .filter_map(|transfer| mode(&requests, *transfer, tax_ns_per_byte))
            .collect();
        let split = || {
            let modes = MODES.map(Some);
            (requests.iter()).filter(move |r| modes.contains(&r.sample.transfer))
        };
        let kv_bytes = split().map(|r| r.sample.wire_payload_bytes).max()?;
        // Of the split, what is neither prefill nor exposed transfer.
        let rest = |until: fn(&Figures) -> Option<u64>| {
            median(split().filter_map(|r| {
                let behind_ms = r.ms(until)? - r.ms(|f| f.ttft_ns)?;
                Some(behind_ms - r.ms(|f| f.exposed_transfer_ns)?)
            }))
        };
        let alone: Vec<&Request> = requests.iter().filter(|r| r.prefills_alone()).collect();
        let undisturbed = match alone.is_empty() {
            false => alone,
            true => split().collect(),
        };
        let of_undisturbed =
            |of: fn(&Figures) -> Option<u64>| median(undisturbed.iter().filter_map(|r| r.ms(of)));
        let prefill_ms = of_undisturbed(|f| f.prefill_ns)?;
        let ttft_ms = of_undisturbed(|f| f.ttft_ns)?;
        let single = single(&requests, ttft_ms);
        let typical = undisturbed.iter().min_by(|a, b| {
            let off = |r: &Request| (r.ms(|f| f.prefill_ns).unwrap_or(0.0) - prefill_ms).abs();
            off(a).total_cmp(&off(b))
        })?;
        let idle_ns = split().filter_map(|r| r.sample.idle_before_ns);
        let idle_ms = median(idle_ns.map(|ns| ns as f64 / 1e6));
        Some(Self {
            kv_bytes,
            ttft_ms,
            prefill_ms,
            single_node: single.as_ref().map(|s| s.node),
            single_ttst_ms: single.as_ref().map(|s| s.ttst_ms),
            single_e2e_ms: single.as_ref().map(|s| s.e2e_ms),
            handoff_ms: median(split().filter_map(|r| r.ms(|f| f.handoff_ns)))?,
            second_token_rest_ms: rest(|f| f.ttst_ns)?,
            last_token_rest_ms: rest(|f| f.e2e_ns)?,
            decode_ms: median(split().filter_map(|r| r.ms(|f| f.decode_ns)))?,
            modes,
            tax_ns_per_byte,
            is_after_idle: idle_ms.is_some_and(|ms| ms >= SLOW_AGAIN_AFTER_MS),
            prefill: Prefill::of(typical.sample, case.prompt_tokens, cut(record))?
                .taking(prefill_ms * 1e6),
            round_trip_ms: round_trip_ns.unwrap_or(0) as f64 / 1e6,
        })
    }

    /// The figures of a mode, where it was measured.
    pub fn mode(&self, transfer: Transfer) -> Option<&ModeFigures> {
        self.modes.iter().find(|m| m.transfer == transfer)
    }
}

fn mode(
    requests: &[Request],
    transfer: Transfer,
    tax_ns_per_byte: Option<f64>,
) -> Option<ModeFigures> {
    let these = || requests.iter().filter(|r| r.is(Arm::Split, Some(transfer)));
    let of = |f: fn(&Figures) -> Option<u64>| median(these().filter_map(|r| r.ms(f)));
    let hidden_bytes = median(these().map(|r| hidden_bytes(r.sample)))?;
    Some(ModeFigures {
        transfer,
        exposed_ms: of(|f| f.exposed_transfer_ns)?,
        ttst_ms: of(|f| f.ttst_ns)?,
        e2e_ms: of(|f| f.e2e_ns)?,
        tax_ms: tax_ns_per_byte.unwrap_or(0.0) * hidden_bytes / 1e6,
    })
}

/// One node alone.
struct Single {
    node: Node,
    ttst_ms: f64,
    e2e_ms: f64,
}

/// Time to the second and to the last token on the better single node. Prefill of the same node is
/// the same work in every arm, so its median over all of them stands for that of this arm.
fn single(requests: &[Request], ttft_ms: f64) -> Option<Single> {
    let on = |node: Node| {
        let these = || requests.iter().filter(move |r| r.is_single_on(node));
        let behind = |until: fn(&Figures) -> Option<u64>| {
            median(these().filter_map(|r| Some(r.ms(until)? - r.ms(|f| f.ttft_ns)?)))
        };
        let first_ms = match node {
            Node::Prefill => Some(ttft_ms),
            Node::Decode => median(these().filter_map(|r| r.ms(|f| f.ttft_ns))),
        }?;
        Some(Single {
            node,
            ttst_ms: first_ms + behind(|f| f.ttst_ns)?,
            e2e_ms: first_ms + behind(|f| f.e2e_ns)?,
        })
    };
    ([on(Node::Prefill), on(Node::Decode)].into_iter().flatten())
        .min_by(|a, b| a.e2e_ms.total_cmp(&b.e2e_ms))
}

/// What a byte that is sent while prefill computes adds to it: the median over all repeats of all
/// prompts of the difference to the undisturbed prefills of the same round. Nothing where the 95%
/// interval of that median reaches down to nothing: then it is prefill's scatter.
fn tax_ns_per_byte(record: &Record) -> Option<f64> {
    let round_trip_ns = record.link.as_ref().and_then(|l| l.min_round_trip_ns());
    let taxes = record.cases.iter().flat_map(|case| {
        let requests = requests(case, round_trip_ns);
        let layered = |r: &&Request| r.is(Arm::Split, Some(Transfer::Layered));
        let tax = |r: &Request| {
            let hidden_bytes = hidden_bytes(r.sample);
            let tax_ns = r.prefill_disturbed_ms(&requests)? * 1e6;
            (hidden_bytes > 0.0).then(|| tax_ns / hidden_bytes)
        };
        (requests.iter().filter(layered))
            .filter_map(tax)
            .collect::<Vec<f64>>()
    });
    let mut taxes: Vec<f64> = taxes.collect();
    taxes.sort_by(f64::total_cmp);
    let median = percentile(&taxes, 0.5)?;
    let is_seen = median_interval(&taxes, DEFAULT_SEED).is_some_and(|(low, _)| low > 0.0);
    Some(if is_seen { median } else { 0.0 })
}

/// Bytes of a request that were in place before its prefill ended, going by the number of pieces.
fn hidden_bytes(sample: &Sample) -> f64 {
    let times = |name| {
        let here = sample.events.iter().filter(|e| e.clock == Node::Prefill);
        here.filter(move |e| e.name == name).map(|e| e.t_ns)
    };
    let Some(end_ns) = times(EventName::PrefillEnd).next() else {
        return 0.0;
    };
    let all = times(EventName::PieceAcknowledged).count();
    let hidden = times(EventName::PieceAcknowledged)
        .filter(|t| *t < end_ns)
        .count();
    sample.wire_payload_bytes as f64 * hidden as f64 / all.max(1) as f64
}

/// How a run cut its caches.
fn cut(record: &Record) -> Cut {
    Cut {
        row_bytes: record.model.kv_bytes_per_token / u64::from(record.model.n_layers).max(1),
        piece_bytes: MAX_PIECE_BYTES,
    }
}
