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
    /// End to end on one node; null where no single arm was measured.
    pub single_e2e_ms: Option<f64>,
    /// TTST of the split less that of the one node, but for the transfer; null where no single arm
    /// was measured.
    pub ttst_rest_change_ms: Option<f64>,
    /// The same of E2E.
    pub e2e_rest_change_ms: Option<f64>,
    /// Last piece verified to first decode step.
    pub handoff_ms: f64,
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

    /// Split in a mode that can be projected.
    fn is_split(&self) -> bool {
        self.sample.transfer.is_some_and(|t| MODES.contains(&t))
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
        let split = || requests.iter().filter(|r| r.is_split());
        let kv_bytes = split().map(|r| r.sample.wire_payload_bytes).max()?;
        // Of the split, what is neither prefill nor exposed transfer.
        let last_token_rest_ms = median(split().filter_map(|r| {
            let behind_ms = r.ms(|f| f.e2e_ns)? - r.ms(|f| f.ttft_ns)?;
            Some(behind_ms - r.ms(|f| f.exposed_transfer_ns)?)
        }))?;
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
            single_e2e_ms: single.as_ref().map(|s| s.e2e_ms),
            ttst_rest_change_ms: (single.as_ref()).and_then(|s| {
                s.rest_change(&requests, ttft_ms, |f| f.ttst_ns, |f| f.first_step_ns)
            }),
            e2e_rest_change_ms: (single.as_ref())
                .and_then(|s| s.rest_change(&requests, ttft_ms, |f| f.e2e_ns, |f| f.decode_ns)),
            handoff_ms: median(split().filter_map(|r| r.ms(|f| f.handoff_ns)))?,
            last_token_rest_ms,
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
    /// Request start to first token.
    ttft_ms: f64,
    e2e_ms: f64,
}

impl Single {
    /// What a split takes longer until an event, but for its transfer: what lies beside the decode
    /// steps (handoff, a token's way back), and the steps themselves as far as their difference is
    /// seen.
    fn rest_change(
        &self,
        requests: &[Request],
        split_ttft_ms: f64,
        until: fn(&Figures) -> Option<u64>,
        steps: fn(&Figures) -> Option<u64>,
    ) -> Option<f64> {
        let beside_ms = |r: &Request| {
            let behind_ms = r.ms(until)? - r.ms(|f| f.ttft_ns)?;
            let exposed_ms = r.ms(|f| f.exposed_transfer_ns).unwrap_or(0.0);
            Some(behind_ms - exposed_ms - r.ms(steps)?)
        };
        let split = requests.iter().filter(|r| r.is_split());
        let single = requests.iter().filter(|r| r.is_single_on(self.node));
        let beside_ms =
            median(split.filter_map(beside_ms))? - median(single.filter_map(beside_ms))?;
        let slower_steps = against_single(requests, self.node, MODES.as_slice(), |r| r.ms(steps));
        Some(split_ttft_ms - self.ttft_ms + beside_ms + as_far_as_seen(&slower_steps))
    }
}

/// The better single node. Prefill of the same node is the same work in every arm, so its median
/// over all of them stands for that of this arm.
fn single(requests: &[Request], ttft_ms: f64) -> Option<Single> {
    let on = |node: Node| {
        let these = || requests.iter().filter(move |r| r.is_single_on(node));
        let behind = |r: &Request| Some(r.ms(|f| f.e2e_ns)? - r.ms(|f| f.ttft_ns)?);
        let ttft_ms = match node {
            Node::Prefill => Some(ttft_ms),
            Node::Decode => median(these().filter_map(|r| r.ms(|f| f.ttft_ns))),
        }?;
        Some(Single {
            node,
            ttft_ms,
            e2e_ms: ttft_ms + median(these().filter_map(behind))?,
        })
    };
    ([on(Node::Prefill), on(Node::Decode)].into_iter().flatten())
        .min_by(|a, b| a.e2e_ms.total_cmp(&b.e2e_ms))
}

/// What splits in these modes have more than the single node in the same round, sorted.
pub(super) fn against_single(
    requests: &[Request],
    node: Node,
    modes: &[Transfer],
    of: impl Fn(&Request) -> Option<f64>,
) -> Vec<f64> {
    let is_one = |r: &&Request| modes.iter().any(|mode| r.is(Arm::Split, Some(*mode)));
    let mut more: Vec<f64> = (requests.iter().filter(is_one))
        .filter_map(|split| {
            let same_round = |s: &&Request| s.is_single_on(node) && s.repeat() == split.repeat();
            Some(of(split)? - of(requests.iter().find(same_round)?)?)
        })
        .collect();
    more.sort_by(f64::total_cmp);
    more
}

/// The median of sorted differences, or nothing where its 95% interval reaches zero: then it is
/// scatter.
fn as_far_as_seen(differences: &[f64]) -> f64 {
    let is_seen = median_interval(differences, DEFAULT_SEED)
        .is_some_and(|(low, high)| low > 0.0 || high < 0.0);
    match percentile(differences, 0.5) {
        Some(median) if is_seen => median,
        _ => 0.0,
    }
}

/// What a byte that is sent while prefill computes adds to it: the median over all repeats of all
/// prompts of the difference to the undisturbed prefills of the same round, as far as it is seen.
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
    (!taxes.is_empty()).then(|| as_far_as_seen(&taxes).max(0.0))
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
