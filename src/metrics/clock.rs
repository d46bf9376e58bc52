//! How the decode node's clock stands to the prefill node's, from the messages of one request.
//!
//! Every exchange bounds it: what arrived was sent before, and what came back was sent after. The
//! bounds of all pieces and tokens together are as tight as the fastest of them was. It is for
//! drawing both nodes on one axis; no figure subtracts one node's clock from the other's.

use std::collections::HashMap;
use std::ops::RangeInclusive;

use super::{Event, EventName, Node, Sample};

/// How far two clocks may run apart: above what quartz and its temperature do.
const DRIFT_PPM: i64 = 100;

/// Where the zero of the decode node's clock lies on the prefill node's clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClockOffset {
    /// Middle of where it can be, in ns; add it to a time of the decode node.
    pub offset_ns: i64,
    /// The truth is at most this far away. Negative where the events contradict each other: then
    /// one of the clocks was not steady.
    pub error_ns: i64,
}

impl ClockOffset {
    /// Of a request in which the decode node took part; `None` where too little was exchanged.
    pub fn of(sample: &Sample) -> Option<Self> {
        let (mut low, mut high): (Option<i64>, Option<i64>) = (None, None);
        let mut after = |there_ns: u64, here_ns: u64| {
            let bound = here_ns as i64 - there_ns as i64;
            low = Some(low.map_or(bound, |low| low.max(bound)));
        };
        let mut before = |there_ns: u64, here_ns: u64| {
            let bound = here_ns as i64 - there_ns as i64;
            high = Some(high.map_or(bound, |high| high.min(bound)));
        };
        let times = |clock: Node, name: EventName| -> HashMap<_, u64> {
            let events = sample.events.iter();
            let events = events.filter(move |e| e.clock == clock && e.name == name);
            events.map(|e| (key(e), e.t_ns)).collect()
        };
        let pairs = |theirs: EventName, ours: EventName| {
            let ours = times(Node::Prefill, ours);
            let theirs = times(Node::Decode, theirs).into_iter();
            theirs
                .filter_map(move |(key, t)| Some((t, *ours.get(&key)?)))
                .collect::<Vec<_>>()
        };
        // Its zero is when it read the request, which was announced after this one's start.
        for start in times(Node::Prefill, EventName::RequestStart).into_values() {
            after(0, start);
        }
        for (landed, offered) in pairs(EventName::PieceLanded, EventName::PieceOffered) {
            after(landed, offered);
        }
        for (theirs, ours) in [
            (EventName::Admitted, EventName::Admitted),
            (EventName::PieceLanded, EventName::PieceAcknowledged),
            (EventName::StepEnd, EventName::Token),
        ] {
            for (there, here) in pairs(theirs, ours) {
                before(there, here);
            }
        }
        let (low, high) = (low?, high?);
        Some(Self {
            offset_ns: low + (high - low) / 2,
            error_ns: (high - low + 1) / 2 + drift_ns(sample),
        })
    }

    /// Where a time of the decode node can lie on the prefill node's clock.
    pub fn on_prefill_clock(&self, there_ns: u64) -> RangeInclusive<i64> {
        let middle = there_ns as i64 + self.offset_ns;
        middle - self.error_ns..=middle + self.error_ns
    }
}

/// How far the clocks may run apart while the request lasts.
fn drift_ns(sample: &Sample) -> i64 {
    let longest = sample.events.iter().map(|e| e.t_ns).max().unwrap_or(0);
    longest as i64 / 1_000_000 * DRIFT_PPM
}

/// What an event is about, whichever node noted it: a piece, a token, or the request.
fn key(event: &Event) -> (Option<u32>, Option<u32>, Option<u32>) {
    (event.layer, event.token_start, event.chunk)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::fixture::{record, usual_case};

    fn exchange(offered: u64, landed: u64, acknowledged: u64, layer: u32) -> [Event; 3] {
        let event = |clock, name, t_ns| Event {
            clock,
            name,
            layer: Some(layer),
            chunk: None,
            token_start: Some(0),
            stream: Some(0),
            t_ns,
        };
        [
            event(Node::Prefill, EventName::PieceOffered, offered),
            event(Node::Decode, EventName::PieceLanded, landed),
            event(Node::Prefill, EventName::PieceAcknowledged, acknowledged),
        ]
    }

    fn sample(events: Vec<Event>) -> Sample {
        let mut sample = record(vec![usual_case(128)]).cases[0].samples[0].clone();
        sample.events = events;
        sample
    }

    #[test]
    fn the_tightest_exchange_bounds_the_offset() {
        // The decode node's zero is at 1,000; the second piece took 10 there and 6 back.
        let events = [
            exchange(1_500, 700, 1_900, 0),
            exchange(2_000, 1_010, 2_016, 1),
        ];
        let offset = ClockOffset::of(&sample(events.concat())).unwrap();
        assert_eq!((offset.offset_ns, offset.error_ns), (998, 8));
        assert!((offset.offset_ns - 1_000).abs() <= offset.error_ns);
    }

    #[test]
    fn a_long_request_leaves_room_for_drift() {
        let events = exchange(5_000_000, 4_000_000, 5_000_010, 0);
        let offset = ClockOffset::of(&sample(events.to_vec())).unwrap();
        assert_eq!(offset.error_ns, 5 + 5 * DRIFT_PPM);
        assert!(offset.on_prefill_clock(4_000_000).contains(&5_000_005));
    }

    #[test]
    fn clocks_that_contradict_each_other_have_a_negative_error() {
        let events = [
            exchange(1_500, 700, 1_900, 0),
            exchange(9_000, 1_010, 9_100, 1),
        ];
        assert!(ClockOffset::of(&sample(events.concat())).unwrap().error_ns < 0);
        assert_eq!(ClockOffset::of(&sample(Vec::new())), None);
    }
}
