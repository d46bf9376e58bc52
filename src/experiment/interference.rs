//! What a running sequence suffers while another prompt is prefilled: the scene in every arm, in
//! turns, after the cases were measured.

use anyhow::Context;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;

use super::{Experiment, Plan, Way};
use crate::metrics::figures::Figures;
use crate::metrics::interference::{Interference, InterferenceSample};
use crate::metrics::{Arm, Case};
use crate::node::interference::{Scene, on_one_node, split};
use crate::node::prefill::Connection;
use crate::workload::Prompt;

/// Tokens of the running sequence before the other prompt comes: enough for a median gap.
const COMES_AFTER_TOKENS: u32 = 16;

/// Tokens behind the expected end of the other prompt's prefill.
const TAIL_TOKENS: u32 = 24;

/// By how much the prefill may take longer than alone and still be seen to its end.
const SLOWER: f64 = 1.5;

/// Prefill chunk of the chunked arm, unless the run has one of its own.
const CHUNK_TOKENS: u32 = 256;

impl Experiment<'_> {
    /// Measures the scene of the shortest and the longest prompt: the one runs, the other comes.
    /// Failed samples become rows; the first failure is returned at the end.
    pub(super) async fn measure_interference(
        &mut self,
        plan: &Plan,
        random: &mut StdRng,
    ) -> anyhow::Result<()> {
        let scene = self.scene(plan)?;
        let chunk = plan.chunk_tokens.unwrap_or(CHUNK_TOKENS);
        self.record.interference = Some(Interference {
            running_prompt_tokens: scene.running.prompt.len() as u32,
            running_output_tokens: scene.running.output_tokens,
            comes_after_tokens: scene.comes_after_tokens,
            newcomer_prompt_tokens: scene.newcomer.prompt.len() as u32,
            samples: Vec::new(),
        });
        let mut second = None;
        let mut first_failure = None;
        for round in 0..plan.warmup + plan.repeats {
            let warmup = round < plan.warmup;
            let mut ways = [
                (Arm::Single, None),
                (Arm::Single, Some(chunk)),
                (Arm::Split, None),
            ];
            ways.shuffle(random);
            for (arm, chunk_tokens) in ways {
                (self.observer)("interference", None);
                let moments = match arm {
                    Arm::Single => on_one_node(self.node, &scene, chunk_tokens).await,
                    Arm::Split => self.split_scene(&scene, &mut second).await,
                };
                let sample = InterferenceSample {
                    arm,
                    chunk_tokens,
                    warmup,
                    repeat: if warmup { round } else { round - plan.warmup },
                    error: moments.as_ref().err().map(|e| format!("{e:#}")),
                    moments: match moments {
                        Ok(moments) => Some(moments),
                        Err(error) => {
                            first_failure.get_or_insert(error);
                            None
                        }
                    },
                };
                if let Some(all) = &mut self.record.interference {
                    all.samples.push(sample);
                }
            }
            self.write()?;
            self.stay_connected().await?;
        }
        match first_failure {
            Some(error) => Err(error.context("at least one request of the interference failed")),
            None => Ok(()),
        }
    }

    /// The newcomer has a session of its own, so that its cache does not queue behind the running
    /// sequence's tokens.
    async fn split_scene(
        &mut self,
        scene: &Scene,
        second: &mut Option<Connection>,
    ) -> anyhow::Result<crate::metrics::interference::Moments> {
        let remote = self
            .remote
            .as_mut()
            .context("this arm needs a decode node")?;
        let mut first = match remote.connection.take() {
            Some(open) => open,
            None => Connection::open(remote.peer, remote.introduction).await?,
        };
        let mut other = match second.take() {
            Some(open) => open,
            None => Connection::open(remote.peer, remote.introduction).await?,
        };
        let moments = split(self.node, scene, &mut first, &mut other).await?;
        // Kept only behind requests that ended well.
        remote.connection = Some(first);
        *second = Some(other);
        Ok(moments)
    }

    /// The running sequence is as long as the other prompt's prefill takes, by what the cases gave.
    fn scene(&self, plan: &Plan) -> anyhow::Result<Scene> {
        let by_length = || plan.prompts.iter();
        let shortest = by_length().min_by_key(|p| p.tokens.len());
        let longest = by_length().max_by_key(|p| p.tokens.len());
        let (shortest, longest) = shortest.zip(longest).context("there is no prompt")?;
        let prefill_ms = self.median(longest, |f| Some(f.prefill_ns? as f64 / 1e6))?;
        let step_ms = self.median(shortest, |f| Some(f.tpot_ns? / 1e6))?;
        let meanwhile = (SLOWER * prefill_ms / step_ms.max(1e-3)).ceil() as u32;
        let wanted = COMES_AFTER_TOKENS + meanwhile + TAIL_TOKENS;
        let context = self.node.compute.engine().shape().context_tokens;
        let fits = context.saturating_sub(shortest.tokens.len()) as u32;
        let request = |prompt: &Prompt, output_tokens| {
            let mut request = plan.request(prompt, Way::SingleHere);
            (request.output_tokens, request.ignore_eos) = (output_tokens, true);
            request
        };
        anyhow::ensure!(
            fits > COMES_AFTER_TOKENS + TAIL_TOKENS,
            "a prompt of {} tokens leaves no room in the context of {context} for a running \
             sequence: give a shorter one with --prompt-tokens",
            shortest.tokens.len(),
        );
        Ok(Scene {
            running: request(shortest, wanted.min(fits)),
            // Of one token no cache would be sent.
            newcomer: request(longest, 2),
            comes_after_tokens: COMES_AFTER_TOKENS,
        })
    }

    /// Median over the measured single arms of a prompt.
    fn median(
        &self,
        prompt: &Prompt,
        figure: impl Fn(&Figures) -> Option<f64>,
    ) -> anyhow::Result<f64> {
        let digest = prompt.digest();
        let is_of = |case: &&Case| case.prompt_digest == digest;
        let samples = self
            .record
            .cases
            .iter()
            .filter(is_of)
            .flat_map(|c| &c.samples);
        let single = samples.filter(|s| s.arm == Arm::Single && s.error.is_none());
        let values: Vec<f64> = single
            .filter_map(|s| figure(&Figures::of(s, None)))
            .collect();
        let figure = crate::stats::Figure::of(&values);
        Ok(figure
            .context("interference needs a single arm with more than one output token")?
            .median)
    }
}
