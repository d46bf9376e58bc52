//! What a running sequence suffers while another prompt is prefilled: the scene in every arm, in
//! turns, after the cases were measured.

use anyhow::Context;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;

use super::{Experiment, Plan, Progress, Way, resume};
use crate::check;
use crate::failure::Failure;
use crate::metrics::figures::Figures;
use crate::metrics::interference::{Interference, InterferenceSample};
use crate::metrics::{Arm, Case, Record, Sample};
use crate::model::engine::Engine;
use crate::node::interference::{Scene, on_one_node, split};
use crate::node::prefill::Connection;
use crate::stats::Figure;
use crate::workload::Prompt;

/// Tokens of the running sequence before the other prompt comes: enough for a median gap.
const COMES_AFTER_TOKENS: u32 = 16;

/// Tokens behind the expected end of the other prompt's prefill.
const TAIL_TOKENS: u32 = 24;

/// By how much prefill and transfer may take longer than alone and still be seen to their end.
const SLOWER: f64 = 1.5;

/// Tokens that the newcomer asks for: of one token no cache would be sent.
const NEWCOMER_OUTPUT_TOKENS: u32 = 2;

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
        let ways = [
            (Arm::Single, None),
            (Arm::Single, Some(chunk)),
            (Arm::Split, None),
        ];
        let demanded = check::demanded(self.record);
        // Of a run that is resumed some of it may be there already.
        self.record.interference.get_or_insert(Interference {
            running_prompt_tokens: scene.running.prompt.len() as u32,
            running_output_tokens: scene.running.output_tokens,
            comes_after_tokens: scene.comes_after_tokens,
            newcomer_prompt_tokens: scene.newcomer.prompt.len() as u32,
            demanded,
            samples: Vec::new(),
        });
        if (0..plan.repeats).all(|repeat| ways.iter().all(|way| self.has_seen(*way, repeat))) {
            return Ok(());
        }
        let mut second = None;
        let mut first_failure = None;
        for round in 0..plan.warmup + plan.repeats {
            let warmup = round < plan.warmup;
            let repeat = if warmup { round } else { round - plan.warmup };
            let mut lacking = ways.to_vec();
            lacking.shuffle(random);
            lacking.retain(|way| warmup || !self.has_seen(*way, repeat));
            for (arm, chunk_tokens) in lacking {
                (self.observer)(Progress::Next("interference"));
                let moments = match arm {
                    Arm::Single => on_one_node(self.node, &scene, chunk_tokens).await,
                    Arm::Split => self.split_scene(&scene, &mut second).await,
                };
                let sample = InterferenceSample {
                    arm,
                    chunk_tokens,
                    warmup,
                    repeat,
                    connect_attempts: match arm {
                        Arm::Single => None,
                        Arm::Split => self.remote.as_mut().and_then(|r| r.attempts.take()),
                    },
                    error: moments.as_ref().err().map(|e| format!("{e:#}")),
                    moments: match moments {
                        Ok(moments) => Some(moments),
                        Err(error) => {
                            first_failure.get_or_insert(error);
                            None
                        }
                    },
                };
                (self.observer)(Progress::Done);
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

    /// Whether a round was seen in an arm: in a resumed run alone.
    fn has_seen(&self, way: (Arm, Option<u32>), repeat: u32) -> bool {
        let begun = self.record.interference.as_ref();
        begun.is_some_and(|begun| resume::is_seen(&begun.samples, way, repeat))
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
        let mut first = remote.take().await?;
        let mut other = match second.take() {
            Some(open) => open,
            None => {
                let open = Connection::open(remote.peer, remote.introduction).await?;
                remote.attempts = remote.attempts.max(Some(open.attempts()));
                open
            }
        };
        let moments = split(self.node, scene, &mut first, &mut other).await?;
        // Kept only behind requests that ended well.
        remote.connection = Some(first);
        *second = Some(other);
        Ok(moments)
    }

    fn scene(&self, plan: &Plan) -> anyhow::Result<Scene> {
        let (shortest, longest) = both(&plan.prompts).context("there is no prompt")?;
        let wanted = match &self.record.interference {
            // What is left of a resumed scene is the same scene, as far as its file can be believed.
            Some(begun) => begun
                .running_output_tokens
                .max(COMES_AFTER_TOKENS + TAIL_TOKENS),
            None => self.running_output_tokens(longest)?,
        };
        let request = |prompt: &Prompt, output_tokens| {
            let mut request = plan.request(prompt, Way::SingleHere);
            (request.output_tokens, request.ignore_eos) = (output_tokens, true);
            request
        };
        Ok(Scene {
            running: request(
                shortest,
                wanted.min(room(self.node.compute.engine(), shortest)),
            ),
            newcomer: request(longest, NEWCOMER_OUTPUT_TOKENS),
            comes_after_tokens: COMES_AFTER_TOKENS,
            tail_tokens: TAIL_TOKENS,
        })
    }

    /// The running sequence is as long as the other prompt's prefill takes, and as its cache takes
    /// to arrive, by what the cases gave.
    fn running_output_tokens(&self, longest: &Prompt) -> anyhow::Result<u32> {
        let prefills = self.single(Some(longest), |f| Some(f.prefill_ns? as f64 / 1e6));
        let prefill = Figure::of(&prefills).context("interference needs a single arm")?;
        // The newcomer's cache goes layer by layer; where that was not measured, bulk takes longer.
        let of_split = |sample: &Sample| sample.arm == Arm::Split && !sample.is_lossy();
        let second_token = |f: &Figures| Some(f.ttst_ns? as f64 / 1e6);
        let arrival_ms = (self
            .figures(Some(longest), of_split, second_token)
            .into_iter())
        .min_by(f64::total_cmp)
        .unwrap_or(0.0);
        // The quickest of all: with too many tokens the prefill is seen to its end all the same.
        let steps = self.single(None, |f| Some(f.tpot_ns? / 1e6));
        let step = Figure::of(&steps)
            .context("interference needs an answer of more than one token in the single arm")?;
        let takes_ms = prefill.median.max(arrival_ms);
        let meanwhile = (SLOWER * takes_ms / step.min.max(1e-3)).ceil() as u32;
        Ok(meanwhile.saturating_add(COMES_AFTER_TOKENS + TAIL_TOKENS))
    }

    /// A figure of the measured single arms of a prompt, or of all.
    fn single(
        &self,
        prompt: Option<&Prompt>,
        figure: impl Fn(&Figures) -> Option<f64>,
    ) -> Vec<f64> {
        self.figures(prompt, |sample| sample.arm == Arm::Single, figure)
    }

    /// A figure of some of the measured samples of a prompt, or of all prompts.
    fn figures(
        &self,
        prompt: Option<&Prompt>,
        is_wanted: impl Fn(&Sample) -> bool,
        figure: impl Fn(&Figures) -> Option<f64>,
    ) -> Vec<f64> {
        let digest = prompt.map(Prompt::digest);
        let is_of = |case: &&Case| digest.as_ref().is_none_or(|d| *d == case.prompt_digest);
        let cases = self.record.cases.iter().filter(is_of);
        let samples = cases.flat_map(|c| &c.samples);
        let wanted = samples.filter(|s| is_wanted(s) && s.is_measured());
        wanted
            .filter_map(|s| figure(&Figures::of(s, None)))
            .collect()
    }
}

/// The prompt that runs and the one that comes: the shortest and the longest.
fn both(prompts: &[Prompt]) -> Option<(&Prompt, &Prompt)> {
    let length = |p: &&Prompt| p.tokens.len();
    prompts
        .iter()
        .min_by_key(length)
        .zip(prompts.iter().max_by_key(length))
}

/// Tokens that the context leaves to an answer.
fn room(engine: &Engine, prompt: &Prompt) -> u32 {
    let left = engine
        .shape()
        .context_tokens
        .saturating_sub(prompt.tokens.len());
    u32::try_from(left).unwrap_or(u32::MAX)
}

/// Refuses prompts that no scene can be made of, before anything runs.
pub fn check_scene(engine: &Engine, prompts: &[Prompt]) -> Result<(), Failure> {
    let refuse = |why: String| Err(Failure::Setting(format!("--interference: {why}")));
    let Some((shortest, longest)) = both(prompts) else {
        return refuse("there is no prompt".into());
    };
    let (left, least) = (room(engine, shortest), COMES_AFTER_TOKENS + TAIL_TOKENS);
    if left <= least {
        return refuse(format!(
            "prompt {} leaves {left} tokens of the context to a running sequence, wanted more than \
             {least}: give a shorter prompt beside it",
            shortest.name,
        ));
    }
    if room(engine, longest) < NEWCOMER_OUTPUT_TOKENS {
        return refuse(format!(
            "prompt {} leaves no room for {NEWCOMER_OUTPUT_TOKENS} output tokens: give a shorter one",
            longest.name
        ));
    }
    if prompts.iter().all(|p| p.output_tokens < 2) {
        return refuse(
            "no prompt has more than one output token, so no step is timed: use \
                       --output-tokens 2 or more"
                .into(),
        );
    }
    Ok(())
}

/// Refuses two nodes that share cores of one machine: each would wait for the other's.
pub fn check_cores(record: &Record) -> Result<(), Failure> {
    let environment = &record.environment;
    let Some(decode) = environment
        .decode
        .as_ref()
        .filter(|_| environment.shared_machine())
    else {
        return Ok(());
    };
    let (ours, theirs) = (
        &environment.prefill.processor.cores,
        &decode.processor.cores,
    );
    let shared = ours
        .as_ref()
        .zip(theirs.as_ref())
        .map(|(a, b)| a.shared_with(b));
    match shared.filter(|shared| !shared.is_empty()) {
        None => Ok(()),
        Some(shared) => Err(Failure::Setting(format!(
            "--interference: both nodes run on cores {shared} of one machine and each needs cores \
             of its own: start serve-decode with --cores LIST and this node with others"
        ))),
    }
}
