//! A running sequence while another prompt is prefilled: what is recorded, and what it amounts to.

use serde::{Deserialize, Serialize};

use super::{Agreement, Arm, Record};
use crate::cores::CoreList;
use crate::environment::Environment;
use crate::stats::{Figure, percentile};

/// The whole experiment; one in a run.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Interference {
    /// Prompt length of the running sequence.
    pub running_prompt_tokens: u32,
    /// Tokens that it generates.
    pub running_output_tokens: u32,
    /// Tokens that it had when the other prompt came.
    pub comes_after_tokens: u32,
    /// Length of the prompt that comes.
    pub newcomer_prompt_tokens: u32,
    /// Whether the running sequence must give the same tokens in every arm.
    pub demanded: Agreement,
    /// All samples, in the order measured.
    pub samples: Vec<InterferenceSample>,
}

/// One run of the scene in one arm.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
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
    /// The most that one of its connections was tried right before it until it was open; null where
    /// all were kept from before, on one node, and in records of earlier builds.
    #[serde(default)]
    pub connect_attempts: Option<u32>,
    /// What happened when; null where it failed.
    pub moments: Option<Moments>,
    /// Why it failed, or null.
    pub error: Option<String>,
}

/// What happened when, on the prefill node's clock, in ns since the running sequence's request.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Moments {
    /// Tokens of the running sequence.
    pub tokens: Vec<u32>,
    /// When each of them was known.
    pub token_ns: Vec<u64>,
    /// When the other prompt came.
    pub newcomer_start_ns: u64,
    /// When its first token was known.
    pub newcomer_first_token_ns: u64,
    /// When all of its cache was in place on the decode node: the last acknowledgement was back.
    /// Null where none was sent, and in records from before it was taken.
    #[serde(default)]
    pub newcomer_landed_ns: Option<u64>,
}

/// Figures of one sample.
#[derive(Clone, Debug, PartialEq)]
pub struct Suffered {
    /// Median gap between tokens before the other prompt came.
    pub undisturbed_ms: f64,
    /// Gaps of which any part lies between the other prompt's coming and the end of what it takes
    /// from the running sequence, rising.
    pub gaps_ms: Vec<f64>,
    /// Time from the other prompt's coming to its first token.
    pub newcomer_ttft_ms: f64,
    /// Whether the running sequence outlived that end, so that all of it was seen.
    pub is_whole: bool,
}

impl Suffered {
    /// The longest gap.
    pub fn worst_ms(&self) -> f64 {
        self.gaps_ms.last().copied().unwrap_or(0.0)
    }

    /// By how much the tokens came later than at the undisturbed pace.
    pub fn lost_ms(&self) -> f64 {
        let undisturbed_ms = self.gaps_ms.len() as f64 * self.undisturbed_ms;
        self.gaps_ms.iter().sum::<f64>() - undisturbed_ms
    }
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

    /// When the other prompt has taken from the running sequence what prefill takes: it has its
    /// first token and, where its cache was sent, that is in place.
    fn end_ns(&self) -> u64 {
        let landed_ns = self.newcomer_landed_ns.unwrap_or(0);
        self.newcomer_first_token_ns.max(landed_ns)
    }

    /// What the running sequence suffered; `None` with too few tokens on either side.
    pub fn suffered(&self) -> Option<Suffered> {
        let (start, end) = (self.newcomer_start_ns, self.end_ns());
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
            gaps_ms: (!during.is_empty()).then_some(during)?,
            newcomer_ttft_ms: self.newcomer_first_token_ns.saturating_sub(start) as f64 / 1e6,
            is_whole: self.token_ns.last().is_some_and(|last| *last >= end),
        })
    }
}

/// What the running sequence suffered in one arm.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct InterferenceArm {
    /// Where both sequences were.
    pub arm: Arm,
    /// Prefill chunk on one node; null for the whole prompt.
    pub chunk_tokens: Option<u32>,
    /// Gap between tokens before the other prompt came.
    pub undisturbed_itl_ms: Option<Figure>,
    /// Longest gap until it had its first token and, split, its cache was in place.
    pub worst_itl_ms: Option<Figure>,
    /// 95th percentile of the gaps in that time, over all samples; null below 20 gaps.
    pub p95_itl_ms: Option<f64>,
    /// By how much the tokens of that time came later than at the undisturbed pace.
    pub lost_ms: Option<Figure>,
    /// Coming to first token of the other prompt.
    pub newcomer_ttft_ms: Option<Figure>,
    /// Samples in which the running sequence ended before that; they are in no figure.
    pub cut_short: usize,
    /// Samples that failed.
    pub failed: usize,
}

impl InterferenceArm {
    /// How both sequences shared a node, or that they did not.
    pub fn way(&self) -> String {
        match (self.arm, self.chunk_tokens) {
            (Arm::Split, _) => "split".to_owned(),
            (Arm::Single, None) => "single, whole prompt".to_owned(),
            (Arm::Single, Some(chunk)) => format!("single, chunks of {chunk}"),
        }
    }

    fn of(arm: Arm, chunk_tokens: Option<u32>, samples: &[&InterferenceSample]) -> Self {
        let all = samples.iter().filter_map(|s| s.moments.as_ref());
        let (whole, cut_short): (Vec<Suffered>, Vec<Suffered>) =
            all.filter_map(Moments::suffered).partition(|s| s.is_whole);
        let figure =
            |of: fn(&Suffered) -> f64| Figure::of(&whole.iter().map(of).collect::<Vec<_>>());
        let mut gaps_ms: Vec<f64> = whole.iter().flat_map(|s| s.gaps_ms.clone()).collect();
        gaps_ms.sort_by(f64::total_cmp);
        Self {
            arm,
            chunk_tokens,
            undisturbed_itl_ms: figure(|s| s.undisturbed_ms),
            worst_itl_ms: figure(Suffered::worst_ms),
            p95_itl_ms: percentile(&gaps_ms, 0.95).filter(|_| gaps_ms.len() >= P95_MIN_GAPS),
            lost_ms: figure(Suffered::lost_ms),
            newcomer_ttft_ms: figure(|s| s.newcomer_ttft_ms),
            cut_short: cut_short.len(),
            failed: samples.iter().filter(|s| s.error.is_some()).count(),
        }
    }
}

impl Interference {
    /// Every arm that has a sample, whole prompt first, split last.
    pub fn arms(&self) -> Vec<InterferenceArm> {
        let measured = || self.samples.iter().filter(|s| !s.warmup);
        let mut ways: Vec<_> = measured().map(|s| (s.arm, s.chunk_tokens)).collect();
        ways.sort_unstable();
        ways.dedup();
        let arm = |(arm, chunk_tokens)| {
            let of_arm = |s: &&InterferenceSample| (s.arm, s.chunk_tokens) == (arm, chunk_tokens);
            InterferenceArm::of(
                arm,
                chunk_tokens,
                &measured().filter(of_arm).collect::<Vec<_>>(),
            )
        };
        ways.into_iter().map(arm).collect()
    }

    /// The longest gap of every measured sample of an arm that was seen to its end, by repeat.
    pub fn worst_ms(&self, arm: Arm, chunk_tokens: Option<u32>) -> Vec<(u32, f64)> {
        let of_arm =
            |s: &&InterferenceSample| !s.warmup && (s.arm, s.chunk_tokens) == (arm, chunk_tokens);
        let samples = self.samples.iter().filter(of_arm);
        let suffered = samples.filter_map(|s| Some((s.repeat, s.moments.as_ref()?.suffered()?)));
        let whole = suffered.filter(|(_, suffered)| suffered.is_whole);
        whole
            .map(|(repeat, suffered)| (repeat, suffered.worst_ms()))
            .collect()
    }

    /// Whether the running sequence gave the same tokens whatever came beside it, as far as two
    /// answers go; `None` with fewer than two samples.
    pub fn same_tokens(&self) -> Option<bool> {
        let answers = self.samples.iter().filter_map(|s| s.moments.as_ref());
        let mut answers = answers.map(|m| &m.tokens);
        let first = answers.next()?;
        let mut others = answers.peekable();
        others.peek()?;
        let is_same = |tokens: &Vec<u32>| tokens.iter().zip(first).all(|(a, b)| a == b);
        Some(others.all(is_same))
    }

    /// Whether the answers may be believed.
    pub fn passed(&self) -> bool {
        self.demanded != Agreement::Identical || self.same_tokens() != Some(false)
    }
}

/// The experiment in figures.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SummaryInterference {
    /// Prompt length of the running sequence.
    pub running_prompt_tokens: u32,
    /// Tokens that it had when the other prompt came.
    pub comes_after_tokens: u32,
    /// Length of the prompt that comes.
    pub newcomer_prompt_tokens: u32,
    /// What the prefill node, and so the single arm, computed on.
    pub prefill_node: NodeCores,
    /// What the decode node computed on; null where it did not tell.
    pub decode_node: Option<NodeCores>,
    /// Whether the running sequence gave the same tokens in all samples; null below two.
    pub same_tokens: Option<bool>,
    /// One entry an arm.
    pub arms: Vec<InterferenceArm>,
}

/// What a node computed on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeCores {
    /// Cores that its process could run on; null where the system does not tell.
    pub cores: Option<CoreList>,
    /// Compute threads.
    pub threads: usize,
}

impl NodeCores {
    fn of(environment: &Environment) -> Self {
        Self {
            cores: environment.processor.cores.clone(),
            threads: environment.threads,
        }
    }
}

impl SummaryInterference {
    /// Derives the figures; `None` where nothing was measured.
    pub fn of(record: &Record) -> Option<Self> {
        let all = record.interference.as_ref()?;
        Some(Self {
            running_prompt_tokens: all.running_prompt_tokens,
            comes_after_tokens: all.comes_after_tokens,
            newcomer_prompt_tokens: all.newcomer_prompt_tokens,
            prefill_node: NodeCores::of(&record.environment.prefill),
            decode_node: record.environment.decode.as_ref().map(NodeCores::of),
            same_tokens: all.same_tokens(),
            arms: all.arms(),
        })
    }
}

#[cfg(test)]
mod tests;
