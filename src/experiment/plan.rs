//! What is to be measured, and how a request of it is told from its sample.

use super::repeats::Auto;
use crate::metrics::{Arm, Node, Sample, Transfer};
use crate::model::kv_cache::KvDtype;
use crate::model::kv_int8::WireRows;
use crate::node::generation::Request;
use crate::node::prefill::Outcome;
use crate::node::wire_dtype;
use crate::wire::message::WireDtype;
use crate::workload::Prompt;

/// Whole prompt on one node, chunked on one node, split.
const INTERFERENCE_ARMS: u64 = 3;

/// One way of running a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// Both phases on the prefill node.
    SingleHere,
    /// Both phases on the decode node: measured where the nodes are unlike.
    SingleThere,
    /// Prefill here, decode there, with the cache in this form on the wire.
    Split(Transfer, WireRows),
}

/// What is to be measured.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The prompts, tokenized and within the context.
    pub prompts: Vec<Prompt>,
    /// The ways that take turns on each of them.
    pub ways: Vec<Way>,
    /// Measured rounds a prompt; with `auto` as many as an interval takes.
    pub repeats: u32,
    /// Rounds until something is known well enough, instead of a number.
    pub auto: Option<Auto>,
    /// Rounds before.
    pub warmup: u32,
    /// Seed of the order of ways within a round.
    pub seed: u64,
    /// Element type of all caches.
    pub kv_dtype: KvDtype,
    /// Prefill chunk.
    pub chunk_tokens: Option<u32>,
    /// Whether to see what a running sequence suffers from another prompt's prefill.
    pub interference: bool,
}

impl Plan {
    /// Requests in all; with `auto` the fewest.
    pub fn requests(&self) -> u64 {
        let rounds = u64::from(self.repeats) + u64::from(self.warmup);
        let scenes = if self.interference {
            INTERFERENCE_ARMS
        } else {
            0
        };
        rounds * ((self.prompts.len() * self.ways.len()) as u64 + scenes)
    }

    /// The request that a prompt becomes under this plan, in one of its ways.
    pub fn request(&self, prompt: &Prompt, way: Way) -> Request {
        Request {
            prompt: prompt.tokens.clone(),
            output_tokens: prompt.output_tokens,
            ignore_eos: prompt.ignore_eos,
            kv_dtype: self.kv_dtype,
            wire_rows: match way {
                Way::Split(_, rows) => rows,
                Way::SingleHere | Way::SingleThere => WireRows::Same,
            },
            chunk_tokens: self.chunk_tokens,
        }
    }
}

/// The sample of a request that is not answered yet.
pub(super) fn sample_of(
    way: Way,
    plan: &Plan,
    streams: u32,
    repeat: u32,
    warmup: bool,
    order: u32,
) -> Sample {
    let (arm, node, transfer, wire_rows) = match way {
        Way::SingleHere => (Arm::Single, Node::Prefill, None, None),
        Way::SingleThere => (Arm::Single, Node::Decode, None, None),
        Way::Split(transfer, rows) => (Arm::Split, Node::Decode, Some(transfer), Some(rows)),
    };
    Sample {
        arm,
        node,
        transfer,
        choice: None,
        idle_before_ns: None,
        others_in_flight: None,
        waiting_ahead: None,
        connect_attempts: None,
        kv_dtype: plan.kv_dtype.into(),
        wire_dtype: wire_rows.map(|rows| wire_dtype(rows, plan.kv_dtype)),
        streams: transfer.map_or(0, |_| streams),
        chunk_tokens: plan.chunk_tokens,
        warmup,
        repeat,
        order,
        wire_payload_bytes: 0,
        wire_framing_bytes: 0,
        output: None,
        events: Vec::new(),
        error: None,
    }
}

/// The way in which a sample was run.
pub(super) fn way_of(sample: &Sample) -> Option<Way> {
    match (sample.arm, sample.node) {
        (Arm::Single, Node::Prefill) => Some(Way::SingleHere),
        (Arm::Single, Node::Decode) => Some(Way::SingleThere),
        (Arm::Split, _) => {
            let rows = match sample.wire_dtype? {
                WireDtype::Int8 => WireRows::Int8,
                _ => WireRows::Same,
            };
            Some(Way::Split(sample.transfer?, rows))
        }
    }
}

/// Puts the answer into the sample of its request.
pub(super) fn fill(sample: &mut Sample, outcome: Outcome) {
    sample.wire_payload_bytes = outcome.wire_payload_bytes;
    sample.wire_framing_bytes = outcome.wire_framing_bytes;
    sample.idle_before_ns = outcome.idle_before_ns;
    sample.others_in_flight = outcome.others_in_flight;
    sample.output = Some(outcome.output);
    sample.events = outcome.events;
}
