//! The verdict's rules: thresholds, and what follows from them. Plain numbers come in, judgements
//! go out; METHODOLOGY.md says the same in words.

use serde::{Deserialize, Serialize};

/// Change of E2E, in percent, that is no reason for or against a split.
pub const LATENCY_MATTERS_PCT: f64 = 1.0;

/// The same of the rate that two nodes sustain, in percent: it is projected, so less is noise.
pub const CAPACITY_MATTERS_PCT: f64 = 5.0;

/// Change of the worst stall that nobody sees, in gaps between undisturbed tokens.
pub const STALL_MATTERS_GAPS: f64 = 1.0;

/// Share of E2E, in percent, from which transfer and handoff limit a split; below it compute does.
pub const TRANSFER_LIMITS_PCT: f64 = 2.0;

/// Share of the line rate below which one TCP stream leaves room for more of them.
pub const STREAMS_LINE_SHARE: f64 = 0.5;

/// What the split does to a quantity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Effect {
    /// It improves it.
    Better,
    /// It makes it worse.
    Worse,
    /// Whatever it does is too little to matter.
    Same,
    /// The samples do not tell.
    Undecided,
}

/// Judges a change of which less is better by its 95% interval: too small to matter wherever it
/// lies in it, else better or worse where the interval leaves out zero and the change is no chance.
pub fn effect(interval: Option<(f64, f64)>, is_chance: bool, matters: f64) -> Effect {
    match interval {
        None => Effect::Undecided,
        Some((low, high)) if low >= -matters && high <= matters => Effect::Same,
        Some(_) if is_chance => Effect::Undecided,
        Some((_, high)) if high < 0.0 => Effect::Better,
        Some((low, _)) if low > 0.0 => Effect::Worse,
        Some(_) => Effect::Undecided,
    }
}

/// What the time of a split request, beyond that of one node, is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Limit {
    /// Nothing of it worth naming: prefill and decode steps are the request.
    Compute,
    /// The transfer that it waits for.
    Wire,
    /// The way from the last byte to the first decode step.
    Handoff,
}

/// What limits a split request.
pub fn limit(exposed_ms: f64, handoff_ms: f64, e2e_ms: f64) -> Limit {
    if 100.0 * (exposed_ms + handoff_ms) < TRANSFER_LIMITS_PCT * e2e_ms {
        Limit::Compute
    } else if exposed_ms >= handoff_ms {
        Limit::Wire
    } else {
        Limit::Handoff
    }
}

/// Requests per second of two whole nodes, from what each takes for prefill and for decode.
pub fn replicated_per_s(nodes_ms: [(f64, f64); 2]) -> f64 {
    nodes_ms
        .iter()
        .map(|(prefill, decode)| 1e3 / (prefill + decode))
        .sum()
}

/// Requests per second of a split: its slowest stage decides.
pub fn split_per_s(prefill_ms: f64, wire_ms: f64, decode_ms: f64) -> f64 {
    1e3 / prefill_ms.max(wire_ms).max(decode_ms)
}

/// Rate of payload in Gbps from which a split in bulk is no slower than one node, where there is
/// one: the time that it loses (`change_ms` above one node) must be less than what it waits for
/// bytes.
pub fn break_even_gbps(wire_bytes: u64, exposed_ms: f64, change_ms: f64) -> Option<f64> {
    let allowed_ms = exposed_ms - change_ms;
    (exposed_ms > 0.0 && allowed_ms > 0.0).then(|| wire_bytes as f64 * 8.0 / allowed_ms / 1e6)
}

/// Prompt length at which a change turns from one sign to the other, between two of these rising
/// lengths (tokens, change) that follow each other; the first one.
pub fn break_even_tokens(changes: &[(f64, f64)]) -> Option<f64> {
    changes.windows(2).find_map(|pair| {
        let ((a, before), (b, after)) = (pair[0], pair[1]);
        let turns = (before < 0.0) != (after < 0.0);
        (turns && before != after).then(|| a + (b - a) * before / (before - after))
    })
}

/// What is known when it comes to what to do first.
#[derive(Clone, Copy, Debug)]
pub struct Circumstances {
    /// What limits the split.
    pub limit: Limit,
    /// Whether it was only ever sent after prefill.
    pub only_bulk: bool,
    /// TCP connections.
    pub streams: u32,
    /// Rate that they reached.
    pub effective_gbps: f64,
    /// Rate at which prefill would never wait for the link.
    pub kv_demand_gbps: f64,
    /// Speed of the link, where it is known to be one.
    pub line_gbps: Option<f64>,
    /// Whether RDMA is projected to save something worth naming.
    pub rdma_pays: bool,
    /// Judgement of an unloaded request.
    pub latency: Effect,
    /// Judgement of a loaded one; none where it was not measured.
    pub interference: Option<Effect>,
    /// Judgement of two nodes against two nodes.
    pub capacity: Effect,
}

/// Something to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Advice {
    /// Leave it: it pays nowhere.
    DoNotSplit,
    /// Do it: it is faster by itself.
    Split,
    /// Do it where stalls of running answers matter more than what else it costs.
    SplitForStalls,
    /// Measure what it saves under load.
    MeasureInterference,
    /// Measure more often.
    MoreRepeats,
    /// Send layer by layer behind prefill.
    Layered,
    /// Use several TCP connections.
    MoreStreams,
    /// Get a faster link.
    FasterLink,
    /// Get RDMA.
    Rdma,
    /// Look at the decode node's scheduling.
    QuickerHandoff,
}

/// What to do, first things first.
pub fn advice(known: &Circumstances) -> Vec<Advice> {
    let mut advice = Vec::new();
    let all = [
        Some(known.latency),
        known.interference,
        Some(known.capacity),
    ];
    let pays_nothing = |effect| matches!(effect, Some(Effect::Same | Effect::Worse));
    if known.latency == Effect::Better {
        advice.push(Advice::Split);
    } else if known.interference == Some(Effect::Better) {
        advice.push(Advice::SplitForStalls);
    } else if all.into_iter().all(pays_nothing) {
        advice.push(Advice::DoNotSplit);
    }
    if all.contains(&Some(Effect::Undecided)) {
        advice.push(Advice::MoreRepeats);
    }
    match known.limit {
        Limit::Compute => {}
        Limit::Handoff => advice.push(Advice::QuickerHandoff),
        Limit::Wire => {
            let has_room = known.line_gbps.is_some_and(|line| {
                known.streams == 1 && known.effective_gbps < STREAMS_LINE_SHARE * line
            });
            let wire = [
                (known.only_bulk, Advice::Layered),
                (has_room, Advice::MoreStreams),
                (
                    known.effective_gbps < known.kv_demand_gbps,
                    Advice::FasterLink,
                ),
                (known.rdma_pays, Advice::Rdma),
            ];
            advice.extend(wire.iter().filter(|(applies, _)| *applies).map(|(_, a)| *a));
        }
    }
    if known.interference.is_none() {
        advice.push(Advice::MeasureInterference);
    }
    advice
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_matters_from_its_threshold_on() {
        let judged = |low, high| effect(Some((low, high)), false, 1.0);
        assert_eq!(judged(-1.0, 1.0), Effect::Same);
        assert_eq!(judged(0.2, 1.0), Effect::Same);
        assert_eq!(judged(0.2, 1.01), Effect::Worse);
        assert_eq!(judged(-1.01, -0.2), Effect::Better);
        assert_eq!(judged(0.0, 1.01), Effect::Undecided);
        assert_eq!(judged(-1.01, 0.0), Effect::Undecided);
        assert_eq!(judged(-3.0, 3.0), Effect::Undecided);
        assert_eq!(effect(Some((2.0, 3.0)), true, 1.0), Effect::Undecided);
        assert_eq!(effect(Some((0.5, 0.6)), true, 1.0), Effect::Same);
        assert_eq!(effect(None, false, 1.0), Effect::Undecided);
    }

    #[test]
    fn the_larger_part_of_what_is_worth_naming_limits() {
        assert_eq!(limit(1.0, 0.99, 100.0), Limit::Compute);
        assert_eq!(limit(1.0, 1.0, 100.0), Limit::Wire);
        assert_eq!(limit(0.9, 1.1, 100.0), Limit::Handoff);
    }

    #[test]
    fn like_nodes_never_do_more_split_than_whole_and_unlike_ones_can() {
        for (prefill, decode) in [(1.0, 1.0), (3.0, 1.0), (1.0, 50.0)] {
            let whole = replicated_per_s([(prefill, decode); 2]);
            assert!(split_per_s(prefill, 0.0, decode) <= whole);
        }
        assert_eq!(
            split_per_s(5.0, 0.0, 5.0),
            replicated_per_s([(5.0, 5.0); 2])
        );
        assert_eq!(split_per_s(1.0, 8.0, 2.0), 125.0);
        let whole = replicated_per_s([(1.0, 10.0), (10.0, 1.0)]);
        assert!(split_per_s(1.0, 0.0, 1.0) > 5.0 * whole);
    }

    #[test]
    fn a_rate_breaks_even_only_where_bytes_are_what_is_lost() {
        // 10 MB wait 80 ms; the split loses 60 ms, so bytes may take 20.
        let gbps = break_even_gbps(10_000_000, 80.0, 60.0).unwrap();
        assert!((gbps - 4.0).abs() < 1e-12, "{gbps}");
        assert_eq!(break_even_gbps(10_000_000, 80.0, 80.0), None);
        assert_eq!(break_even_gbps(10_000_000, 80.0, 90.0), None);
        assert_eq!(break_even_gbps(10_000_000, 0.0, -5.0), None);
    }

    #[test]
    fn a_length_breaks_even_where_the_sign_turns() {
        let turn = break_even_tokens(&[(100.0, 6.0), (200.0, 2.0), (400.0, -2.0)]);
        assert_eq!(turn, Some(300.0));
        assert_eq!(break_even_tokens(&[(100.0, 6.0), (200.0, 2.0)]), None);
        assert_eq!(break_even_tokens(&[(100.0, 6.0)]), None);
        assert_eq!(
            break_even_tokens(&[(100.0, -1.0), (200.0, 1.0)]),
            Some(150.0)
        );
    }

    fn known() -> Circumstances {
        Circumstances {
            limit: Limit::Compute,
            only_bulk: true,
            streams: 1,
            effective_gbps: 10.0,
            kv_demand_gbps: 1.0,
            line_gbps: Some(10.0),
            rdma_pays: false,
            latency: Effect::Same,
            interference: None,
            capacity: Effect::Worse,
        }
    }

    #[test]
    fn what_pays_nowhere_is_left_and_what_is_not_known_is_measured() {
        assert_eq!(advice(&known()), [Advice::MeasureInterference]);
        let with = |interference| Circumstances {
            interference: Some(interference),
            ..known()
        };
        assert_eq!(advice(&with(Effect::Same)), [Advice::DoNotSplit]);
        assert_eq!(advice(&with(Effect::Better)), [Advice::SplitForStalls]);
        let faster = Circumstances {
            latency: Effect::Better,
            ..with(Effect::Same)
        };
        assert_eq!(advice(&faster), [Advice::Split]);
        let carries_more = Circumstances {
            capacity: Effect::Better,
            ..with(Effect::Same)
        };
        assert_eq!(advice(&carries_more), []);
        let unsure = Circumstances {
            latency: Effect::Undecided,
            ..with(Effect::Better)
        };
        assert_eq!(
            advice(&unsure),
            [Advice::SplitForStalls, Advice::MoreRepeats]
        );
        // What the samples do not tell is no reason against a split.
        assert_eq!(advice(&with(Effect::Undecided)), [Advice::MoreRepeats]);
        for unsure in [
            Circumstances {
                latency: Effect::Undecided,
                ..with(Effect::Same)
            },
            Circumstances {
                capacity: Effect::Undecided,
                ..with(Effect::Worse)
            },
        ] {
            assert_eq!(advice(&unsure), [Advice::MoreRepeats]);
        }
    }

    #[test]
    fn a_wire_that_limits_is_helped_step_by_step() {
        let wire = Circumstances {
            limit: Limit::Wire,
            interference: Some(Effect::Better),
            latency: Effect::Worse,
            ..known()
        };
        let first = [Advice::SplitForStalls];
        let after = |known: &Circumstances| {
            let all = advice(known);
            assert_eq!(all[..1], first);
            all[1..].to_vec()
        };
        assert_eq!(after(&wire), [Advice::Layered]);
        let slow = Circumstances {
            effective_gbps: 4.99,
            kv_demand_gbps: 5.0,
            rdma_pays: true,
            ..wire
        };
        let all = [
            Advice::Layered,
            Advice::MoreStreams,
            Advice::FasterLink,
            Advice::Rdma,
        ];
        assert_eq!(after(&slow), all);
        let edge = Circumstances {
            only_bulk: false,
            effective_gbps: 5.0,
            rdma_pays: false,
            ..slow
        };
        assert_eq!(after(&edge), []);
        let handoff = Circumstances {
            limit: Limit::Handoff,
            ..slow
        };
        assert_eq!(after(&handoff), [Advice::QuickerHandoff]);
    }
}
