//! A running sequence while another prompt is prefilled: what is recorded, and what it amounts to.

use serde::{Deserialize, Serialize};

use super::Arm;
use crate::stats::{Figure, percentile};

/// The whole experiment; one in a run.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Interference {
    /// Prompt length of the running sequence.
    pub running_prompt_tokens: u32,
    /// Tokens that it generates.
    pub running_output_tokens: u32,
    /// Tokens that it had when the other prompt came.
    pub comes_after_tokens: u32,
    /// Length of the prompt that comes.
    pub newcomer_prompt_tokens: u32,
    /// All samples, in the order measured.
    pub samples: Vec<InterferenceSample>,
}

/// One run of the scene in one arm.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct InterferenceSample {
    /// Where both sequences were: on one node, or decode apart from prefill.
    pub arm: Arm,
    /// Prefill chunk of the newcomer on one node, with a step of the running sequence behind each;
    /// null for the whole prompt at once, and in the split arm.
    pub chunk_tokens: Option<u32>,
    /// Not part of any figure.
    pub warmup: bool,
    /// Which repeat, counted from 0.
    pub repeat: u32,
    /// What happened when; null where it failed.
    pub moments: Option<Moments>,
    /// Why it failed, or null.
    pub error: Option<String>,
}

/// What happened when, on the prefill node's clock, in ns since the running sequence's request.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Moments {
    /// Tokens of the running sequence.
    pub tokens: Vec<u32>,
    /// When each of them was known.
    pub token_ns: Vec<u64>,
    /// When the other prompt came.
    pub newcomer_start_ns: u64,
    /// When its first token was known.
    pub newcomer_first_token_ns: u64,
}

/// Figures of one sample.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Suffered {
    /// Median gap between tokens before the other prompt came.
    pub undisturbed_ms: f64,
    /// Longest gap of which any part lies between the other prompt's coming and its first token.
    pub worst_ms: f64,
    /// 95th percentile of those gaps; `None` below 20 of them.
    pub p95_ms: Option<f64>,
    /// Coming to first token of the other prompt.
    pub newcomer_ttft_ms: f64,
    /// Whether the running sequence outlived the prefill, so that all of it was seen.
    pub is_whole: bool,
}

/// Gaps below which a 95th percentile would be a guess.
const P95_MIN_GAPS: usize = 20;

impl Moments {
    /// Notes a token of the running sequence.
    pub fn token(&mut self, t_ns: u64, token: u32) {
        self.token_ns.push(t_ns);
        self.tokens.push(token);
    }

    /// Gaps between tokens in ms, each with when it started and ended.
    pub fn gaps(&self) -> impl Iterator<Item = (f64, u64, u64)> {
        let pairs = self.token_ns.windows(2);
        pairs.map(|w| (w[1].saturating_sub(w[0]) as f64 / 1e6, w[0], w[1]))
    }

    /// What the running sequence suffered; `None` with too few tokens on either side.
    pub fn suffered(&self) -> Option<Suffered> {
        let (start, end) = (self.newcomer_start_ns, self.newcomer_first_token_ns);
        let before = self
            .gaps()
            .filter(|(_, _, to)| *to <= start)
            .map(|(ms, ..)| ms);
        let mut during: Vec<f64> = self
            .gaps()
            .filter(|(_, from, to)| *to > start && *from < end)
            .map(|(ms, ..)| ms)
            .collect();
        during.sort_by(f64::total_cmp);
        Some(Suffered {
            undisturbed_ms: Figure::of(&before.collect::<Vec<_>>())?.median,
            worst_ms: *during.last()?,
            p95_ms: percentile(&during, 0.95).filter(|_| during.len() >= P95_MIN_GAPS),
            newcomer_ttft_ms: end.saturating_sub(start) as f64 / 1e6,
            is_whole: self.token_ns.last().is_some_and(|last| *last >= end),
        })
    }
}

/// Medians over the samples of one arm.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct InterferenceArm {
    /// Where both sequences were.
    pub arm: Arm,
    /// Prefill chunk on one node; null for the whole prompt.
    pub chunk_tokens: Option<u32>,
    /// Gap between tokens before the other prompt came.
    pub undisturbed_itl_ms: Option<Figure>,
    /// Longest gap while it was prefilled.
    pub worst_itl_ms: Option<Figure>,
    /// 95th percentile of the gaps in that time; null below 20 of them.
    pub p95_itl_ms: Option<Figure>,
    /// Coming to first token of the other prompt.
    pub newcomer_ttft_ms: Option<Figure>,
}

impl Interference {
    /// Every arm that has a sample, whole prompt first, split last.
    pub fn arms(&self) -> Vec<InterferenceArm> {
        let mut ways: Vec<_> = self
            .samples
            .iter()
            .map(|s| (s.arm, s.chunk_tokens))
            .collect();
        ways.sort_unstable();
        ways.dedup();
        let arm = |(arm, chunk_tokens)| {
            let of_arm = |s: &&InterferenceSample| {
                !s.warmup && (s.arm, s.chunk_tokens) == (arm, chunk_tokens)
            };
            let suffered: Vec<Suffered> = (self.samples.iter())
                .filter(of_arm)
                .filter_map(|s| s.moments.as_ref()?.suffered())
                .filter(|s| s.is_whole)
                .collect();
            let figure = |of: fn(&Suffered) -> Option<f64>| {
                Figure::of(&suffered.iter().filter_map(of).collect::<Vec<_>>())
            };
            InterferenceArm {
                arm,
                chunk_tokens,
                undisturbed_itl_ms: figure(|s| Some(s.undisturbed_ms)),
                worst_itl_ms: figure(|s| Some(s.worst_ms)),
                p95_itl_ms: figure(|s| s.p95_ms),
                newcomer_ttft_ms: figure(|s| Some(s.newcomer_ttft_ms)),
            }
        };
        ways.into_iter().map(arm).collect()
    }

    /// Whether the running sequence gave the same tokens whatever came beside it; `None` with
    /// fewer than two samples.
    pub fn same_tokens(&self) -> Option<bool> {
        let mut answers = self
            .samples
            .iter()
            .filter_map(|s| Some(&s.moments.as_ref()?.tokens));
        let first = answers.next()?;
        let mut others = answers.peekable();
        others.peek()?;
        Some(others.all(|tokens| tokens == first))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Tokens every 10 ms, but for one gap, and a prompt that comes at 45 ms and takes 200 ms.
    fn moments(stall_ms: u64) -> Moments {
        let mut moments = Moments {
            newcomer_start_ns: 45_000_000,
            newcomer_first_token_ns: 245_000_000,
            ..Moments::default()
        };
        let mut t_ms = 0;
        for i in 0..40 {
            t_ms += if i == 5 { stall_ms } else { 10 };
            moments.token(t_ms * 1_000_000, i);
        }
        moments
    }

    #[test]
    fn a_stall_is_the_worst_gap_while_the_other_prompt_is_prefilled() {
        let suffered = moments(210).suffered().unwrap();
        assert_eq!((suffered.undisturbed_ms, suffered.worst_ms), (10.0, 210.0));
        assert_eq!((suffered.p95_ms, suffered.newcomer_ttft_ms), (None, 200.0));
        assert!(suffered.is_whole);
        let smooth = moments(10).suffered().unwrap();
        assert_eq!((smooth.worst_ms, smooth.p95_ms), (10.0, Some(10.0)));
    }

    #[test]
    fn a_sequence_that_ends_before_the_prefill_saw_only_part_of_it() {
        let mut short = moments(10);
        short.token_ns.truncate(12);
        assert!(!short.suffered().unwrap().is_whole);
        short.token_ns.truncate(1);
        assert_eq!(short.suffered(), None);
    }

    #[test]
    fn arms_are_told_apart_and_answers_compared() {
        let sample = |arm, chunk_tokens, stall_ms| InterferenceSample {
            arm,
            chunk_tokens,
            warmup: false,
            repeat: 0,
            moments: Some(moments(stall_ms)),
            error: None,
        };
        let mut all = Interference {
            running_prompt_tokens: 10,
            running_output_tokens: 40,
            comes_after_tokens: 5,
            newcomer_prompt_tokens: 100,
            samples: vec![
                sample(Arm::Split, None, 10),
                sample(Arm::Single, Some(64), 60),
                sample(Arm::Single, None, 210),
            ],
        };
        let worst: Vec<f64> = all
            .arms()
            .iter()
            .map(|a| a.worst_itl_ms.unwrap().median)
            .collect();
        assert_eq!(worst, [210.0, 60.0, 10.0]);
        assert_eq!(all.same_tokens(), Some(true));
        all.samples[0].moments.as_mut().unwrap().tokens[3] = 99;
        assert_eq!(all.same_tokens(), Some(false));
    }
}
