//! What comes back from the decode node, checked and in the record's terms.

use crate::environment::Activity;
use crate::metrics::{Event, Finish, Node, StepProof};
use crate::wire::message::{Done, NodeMemory, StepRecord};

/// What came back from the decode node.
pub(super) struct RemoteAnswer {
    pub(super) tokens: Vec<u32>,
    pub(super) finish: Finish,
    pub(super) steps: Vec<StepProof>,
    pub(super) remote_events: Vec<Event>,
    pub(super) cache_digest: Option<String>,
    pub(super) memory: Option<NodeMemory>,
    pub(super) activity: Option<Activity>,
    pub(super) others_in_flight: Option<u32>,
}

impl RemoteAnswer {
    /// `tokens` are all of the answer, of which the decode node sent those from position `sent_from`
    /// on; at most `due` of them were asked for.
    pub(super) fn new(
        tokens: Vec<u32>,
        sent_from: usize,
        due: usize,
        done: Done,
    ) -> anyhow::Result<Self> {
        let finish = match done.finish.as_str() {
            "length" => Finish::Length,
            "eos" => Finish::EndOfSequence,
            other => anyhow::bail!(
                "the decode node ended with {other:?}: build both nodes from one commit"
            ),
        };
        // It proves each token that it chose, so a token that was lost on the way shows here.
        let (sent, proven) = (tokens.len().saturating_sub(sent_from), done.steps.len());
        anyhow::ensure!(
            sent == proven && (finish != Finish::Length || tokens.len() == due),
            "the decode node is done with {proven} tokens and {sent} came, of {} that were due: \
             frames were lost between the nodes",
            due.saturating_sub(sent_from)
        );
        let proof = |step: StepRecord| StepProof {
            digest: step.digest,
            top: step.top,
            proof_ns: step.digest_ns,
        };
        Ok(Self {
            tokens,
            finish,
            steps: done.steps.into_iter().map(proof).collect(),
            remote_events: done.events.into_iter().filter_map(from_wire).collect(),
            cache_digest: done.cache_digest,
            memory: done.memory,
            // A decode node of another version may tell it in other words.
            activity: serde_json::from_value(done.activity).ok(),
            others_in_flight: done.others_in_flight,
        })
    }
}

/// A decode node's event; those of kinds that this build does not know are left out.
pub(super) fn from_wire(event: crate::wire::message::Event) -> Option<Event> {
    Some(Event {
        clock: Node::Decode,
        name: serde_json::from_value(event.name.into()).ok()?,
        layer: event.layer,
        chunk: event.chunk,
        token_start: event.token_start,
        stream: event.stream,
        t_ns: event.t_ns,
    })
}
