//! Several requests at once, as the notebook's `batch_processing` has them.

use serde::{Deserialize, Serialize};

use crate::metrics::{Case, Output, Record};
use crate::node::batch::{Answer, Batch};
use crate::stats::Figure;
use crate::workload::Prompt;

/// The notebook's batch, and behind its keys what makes it a record.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BatchProcessing {
    /// Requests.
    pub batch_size: usize,
    /// Tokens generated, all requests together.
    pub total_tokens: usize,
    /// Those over the whole time.
    pub throughput_tokens_per_sec: f64,
    /// The notebook's: the whole time over the requests.
    pub avg_latency_ms: f64,
    /// The whole time, which is what every request waits for.
    pub total_ms: f64,
    /// All tokens but the first of each request, over the time of the steps.
    pub decode_tokens_per_sec: Option<f64>,
    /// Whether every answer is the one that its request gets alone, and its last logits too.
    pub identical_to_single: Option<bool>,
    /// Names of the prompts.
    pub prompts: Vec<String>,
    /// Of each measured batch: all prefills, one after another.
    pub prefill_ns: Vec<u64>,
    /// Of each measured batch: all steps.
    pub decode_ns: Vec<u64>,
}

impl BatchProcessing {
    /// Requests of a batch, as many as the notebook has.
    pub const SIZE: usize = 8;

    /// Batches that are measured, if there are as many repeats.
    pub const REPEATS: u32 = 3;

    /// Which prompts make a batch: each in its turn, from the start again where they are few.
    pub fn prompts(prompts: &[Prompt]) -> impl Iterator<Item = &Prompt> {
        prompts.iter().cycle().take(Self::SIZE)
    }

    /// Of measured batches, all of the same requests; none without any.
    pub fn of(batches: &[Batch], prompts: &[Prompt], record: &Record) -> Option<Self> {
        let answers = &batches.first()?.answers;
        let total_tokens = answers.iter().map(|a| a.tokens.len()).sum();
        let median = |ns: &dyn Fn(&Batch) -> u64| {
            let all: Vec<f64> = batches.iter().map(|b| ns(b) as f64 / 1e6).collect();
            Some(Figure::of(&all)?.median)
        };
        let total_ms = median(&|b| b.prefill_ns + b.decode_ns)?;
        let decode_ms = median(&|b| b.decode_ns)?;
        let stepped = total_tokens - answers.len();
        Some(Self {
            batch_size: answers.len(),
            total_tokens,
            throughput_tokens_per_sec: total_tokens as f64 / (total_ms / 1e3),
            avg_latency_ms: total_ms / answers.len() as f64,
            total_ms,
            decode_tokens_per_sec: (stepped > 0).then(|| stepped as f64 / (decode_ms / 1e3)),
            identical_to_single: identical(batches, record),
            prompts: Self::prompts(prompts).map(|p| p.name.clone()).collect(),
            prefill_ns: batches.iter().map(|b| b.prefill_ns).collect(),
            decode_ns: batches.iter().map(|b| b.decode_ns).collect(),
        })
    }
}

/// None where a prompt has no answer of its own.
fn identical(batches: &[Batch], record: &Record) -> Option<bool> {
    let answer = |case: &Case| case.samples.iter().find_map(|s| s.output.clone());
    let alone = (record.cases.iter())
        .map(answer)
        .collect::<Option<Vec<_>>>()?;
    let same = |(answer, alone): (&Answer, &Output)| {
        let digest = alone.steps.last().map(|step| &step.digest);
        answer.tokens == alone.tokens && Some(&answer.last_digest) == digest
    };
    let mut all = (batches.iter()).map(|b| b.answers.iter().zip(alone.iter().cycle()));
    (!alone.is_empty()).then(|| all.all(|mut pairs| pairs.all(same)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::{Arm, Finish, StepProof};
    use crate::report::fixture::{self, Times};

    fn prompt(name: &str) -> Prompt {
        Prompt {
            name: name.into(),
            tokens: vec![1],
            output_tokens: 4,
            ignore_eos: true,
        }
    }

    fn batch(prefill_ms: u64, decode_ms: u64) -> Batch {
        let answer = |i: usize| Answer {
            tokens: vec![i as u32 % 2; 4],
            last_digest: format!("digest {}", i % 2),
        };
        Batch {
            prefill_ns: prefill_ms * 1_000_000,
            decode_ns: decode_ms * 1_000_000,
            answers: (0..BatchProcessing::SIZE).map(answer).collect(),
        }
    }

    /// A record of two prompts, with an answer each.
    fn record() -> Record {
        let mut record = fixture::record(vec![]);
        for i in 0..2 {
            let mut case = fixture::case("p", 8, 4, Times::default());
            case.samples.retain(|s| s.arm == Arm::Single);
            case.samples[0].output = Some(Output {
                tokens: vec![i; 4],
                text: String::new(),
                finish: Finish::Length,
                steps: vec![StepProof {
                    digest: format!("digest {i}"),
                    top: vec![],
                    proof_ns: 0,
                }],
                sent_cache_digest: None,
                landed_cache_digest: None,
            });
            record.cases.push(case);
        }
        record
    }

    #[test]
    fn the_figures_are_medians_and_the_latency_is_the_notebooks() {
        let prompts = [prompt("a"), prompt("b")];
        let batches = [batch(100, 300), batch(200, 500), batch(10, 20)];
        let got = BatchProcessing::of(&batches, &prompts, &record()).unwrap();
        assert_eq!((got.batch_size, got.total_tokens), (8, 32));
        assert_eq!((got.total_ms, got.avg_latency_ms), (400.0, 50.0));
        assert_eq!(got.throughput_tokens_per_sec, 80.0);
        assert_eq!(got.decode_tokens_per_sec, Some(24.0 / 0.3));
        assert_eq!(got.prompts, ["a", "b", "a", "b", "a", "b", "a", "b"]);
        assert_eq!(got.identical_to_single, Some(true));
        assert_eq!(BatchProcessing::of(&[], &prompts, &record()), None);
    }

    #[test]
    fn another_answer_than_alone_is_seen() {
        let prompts = [prompt("a"), prompt("b")];
        let identical = |record: &Record, batch: Batch| {
            let whole = BatchProcessing::of(&[batch], &prompts, record).unwrap();
            whole.identical_to_single
        };
        let mut other = batch(1, 1);
        other.answers[5].tokens[2] = 9;
        assert_eq!(identical(&record(), other), Some(false));
        let mut other = batch(1, 1);
        other.answers[7].last_digest = "another".into();
        assert_eq!(identical(&record(), other), Some(false));
        let mut unanswered = record();
        unanswered.cases[1].samples[0].output = None;
        assert_eq!(identical(&unanswered, batch(1, 1)), None);
    }
}
