//! What is gathered of one answer, and the forms in which it leaves the node.

use std::net::SocketAddr;

use super::ServedRequest;
use crate::environment::Activity;
use crate::metrics::{Event, EventName, Finish, StepProof};
use crate::node::generation::Request;
use crate::wire::message::{self, Done, NodeMemory, StepRecord};

/// What has been gathered of one answer.
pub(super) struct Answer {
    pub(super) events: Vec<Event>,
    pub(super) tokens: Vec<u32>,
}

impl Answer {
    pub(super) fn done(
        &self,
        finish: Finish,
        proofs: &[StepProof],
        cache_digest: Option<String>,
        memory: NodeMemory,
        activity: Activity,
    ) -> Done {
        let step = |proof: &StepProof| StepRecord {
            digest: proof.digest.clone(),
            top: proof.top.clone(),
            digest_ns: proof.proof_ns,
        };
        Done {
            steps: proofs.iter().map(step).collect(),
            finish: match finish {
                Finish::Length => "length".into(),
                Finish::EndOfSequence => "eos".into(),
            },
            events: self.events.iter().map(to_wire).collect(),
            cache_digest,
            memory: Some(memory),
            activity: serde_json::to_value(activity).unwrap_or_default(),
            others_in_flight: None,
            receiving: None,
        }
    }

    pub(super) fn report(
        self,
        peer: SocketAddr,
        number: u64,
        request: &Request,
        kv_bytes: u64,
    ) -> ServedRequest {
        let times = |name| {
            let times = self.events.iter().filter(move |e| e.name == name);
            times.map(|e| e.t_ns)
        };
        let started = times(EventName::StepStart).next();
        let ended = times(EventName::StepEnd).next_back();
        let decode_ns = (ended.zip(started)).map_or(0, |(end, start)| end - start);
        ServedRequest {
            peer,
            number,
            prompt_tokens: request.prompt.len(),
            kv_bytes,
            receive_ns: (times(EventName::PieceLanded).next_back())
                .zip(times(EventName::PieceLanded).next())
                .map_or(0, |(last, first)| last - first),
            decode_ns,
            tokens: self.tokens,
        }
    }
}

/// An event as it travels: names as in the record.
fn to_wire(event: &Event) -> message::Event {
    message::Event {
        name: serde_json::to_value(event.name)
            .ok()
            .and_then(|name| name.as_str().map(str::to_owned))
            .unwrap_or_default(),
        layer: event.layer,
        chunk: event.chunk,
        token_start: event.token_start,
        stream: event.stream,
        t_ns: event.t_ns,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Node;
    use crate::node::generation::Clock;
    use crate::node::reception::LANDED_BYTES_IN_DONE;

    #[test]
    fn a_piece_takes_no_more_of_done_than_is_reckoned() {
        let landed = Event {
            layer: Some(u32::MAX),
            token_start: Some(u32::MAX),
            stream: Some(u32::MAX),
            t_ns: u64::MAX,
            ..Clock::start(Node::Decode).event(EventName::PieceLanded)
        };
        let with_comma = serde_json::to_vec(&to_wire(&landed)).unwrap().len() as u64 + 1;
        assert!(with_comma < LANDED_BYTES_IN_DONE, "{with_comma}");
    }
}
