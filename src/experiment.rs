//! The measuring loop: every prompt in every arm, warm-up first, then repeats in a seeded random
//! order, each answer checked, the record written after every case, and after rounds within one.
//!
//! It measures and records; what is printed meanwhile is the observer's business.

mod interference;
mod plan;
mod remote;
mod repeats;
mod resume;

pub use interference::{check_cores, check_scene};
pub use plan::{Plan, Way};
pub use remote::Remote;
pub use repeats::Auto;
pub use resume::continued;

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Context;
use rand::SeedableRng;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;

use self::plan::{fill, sample_of};
use self::repeats::Rounds;
use crate::baseline::BaselineFile;
use crate::check::{self, Tolerance};
use crate::environment::{Activity, MemoryCopy, process_peak_rss_bytes, reset_peak_rss};
use crate::link::FitOrigin;
use crate::metrics::summary::Derivation;
use crate::metrics::{Arm, Case, Choice, Look, Record, Sample, Status, Transfer};
use crate::model::engine::Engine;
use crate::model::kv_cache::KvLayout;
use crate::model::kv_int8::WireRows;
use crate::node::generation::Request;
use crate::node::prefill::{Outcome, PrefillNode, single};
use crate::node::probing::short_fit;
use crate::node::{Departure, accuracy};
use crate::projection::exposure::{self, Cut, Prefill};
use crate::wire::MAX_PIECE_BYTES;
use crate::workload::Prompt;

/// Round trips taken before the first request; their smallest is the link's.
const ROUND_TRIPS: u64 = 32;

/// A fit reaches at least to this size, so that short prompts alone still show the link's rate.
const FIT_MIN_BYTES: u64 = 16 << 20;

/// Within a case the record is written after a round when this many times the last writing has
/// passed: a crash costs little, and writing a large record does not become the work.
const WRITING_SHARE: u32 = 4;

/// Sizes of the copy that the memory's rate is read from: that of the largest cache, since small
/// ones stay in the processor's caches, but no more than takes a moment.
const COPY_MIN_BYTES: usize = 64 << 10;
const COPY_MAX_BYTES: usize = 64 << 20;

/// A running experiment.
pub struct Experiment<'a> {
    /// Compute and memory of this node.
    pub node: &'a PrefillNode,
    /// The decode node, where there is one.
    pub remote: Option<Remote<'a>>,
    /// What is filled.
    pub record: &'a mut Record,
    /// Where it is written.
    pub path: &'a Path,
    /// A baseline whose samples are the single arm.
    pub stand_in: Option<&'a BaselineFile>,
    /// Told before and after every request; must not block.
    pub observer: &'a dyn Fn(Progress),
}

/// How far the measuring is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress<'a> {
    /// A request of this prompt, or a scene of this name, is next.
    Next(&'a str),
    /// It is over, well or not.
    Done,
}

/// How far a run has come.
struct Course {
    random: StdRng,
    /// Position of the prompt that is measured.
    case: usize,
    /// Requests so far.
    order: u32,
    /// The latest of each length, for `auto`.
    prefills: Vec<Prefill>,
    first_failure: Option<anyhow::Error>,
    /// When the record was last written, and how long that took.
    written: (Instant, Duration),
}

impl Experiment<'_> {
    /// Measures the plan. Failed requests become rows and the run goes on; the first failure is
    /// returned at the end, unless the peer cannot be reached any more, which ends it at once.
    pub async fn run(&mut self, plan: &Plan) -> anyhow::Result<()> {
        let mut course = Course {
            random: StdRng::seed_from_u64(plan.seed),
            case: 0,
            order: self.next_order(),
            prefills: Vec::new(),
            first_failure: None,
            written: self.write()?,
        };
        self.measure_link(plan).await?;
        self.measure_memory(plan);
        // Only now, since these were measured with memory of their own that is gone again.
        reset_peak_rss();
        self.look(None, None);
        let started = Instant::now();
        for (number, prompt) in plan.prompts.iter().enumerate() {
            course.case = number;
            let waiting = plan.prompts.len() - 1 - number;
            let rounds = Rounds::new(plan.repeats, plan.auto, started, waiting);
            self.measure_prompt(plan, prompt, rounds, &mut course)
                .await?;
        }
        let Course {
            mut random,
            mut first_failure,
            ..
        } = course;
        if plan.interference
            && let Err(error) = self.measure_interference(plan, &mut random).await
        {
            first_failure.get_or_insert(error);
        }
        if let Some(connection) = self.remote.as_ref().and_then(|r| r.connection.as_ref()) {
            let after = connection.tcp_info();
            if let Some(link) = &mut self.record.link {
                link.tcp_info_after = after;
            }
        }
        self.record.memory.peak_bytes = process_peak_rss_bytes();
        self.record.memory.cache_bytes = self.node.pool.held_bytes() as u64;
        let losses = self.measure_losses(plan).await;
        match first_failure {
            Some(error) => Err(error.context("at least one request failed")),
            None => losses,
        }
    }

    /// All rounds of one prompt.
    async fn measure_prompt(
        &mut self,
        plan: &Plan,
        prompt: &Prompt,
        rounds: Rounds,
        course: &mut Course,
    ) -> anyhow::Result<()> {
        // Of a run that is resumed it may be there already.
        if course.case == self.record.cases.len() {
            self.record.cases.push(self.new_case(plan, prompt));
        }
        if self.is_complete(plan, course.case) {
            return Ok(());
        }
        for round in 0..plan.warmup {
            self.measure_round(plan, prompt, round, true, course)
                .await?;
        }
        let mut round = 0;
        let stopped = loop {
            let case = &self.record.cases[course.case];
            if let Some(stopped) = rounds.end(round, case, &Derivation::of(self.record)) {
                break stopped;
            }
            self.measure_round(plan, prompt, round, false, course)
                .await?;
            round += 1;
        };
        self.record.cases[course.case].stopped = stopped;
        course.written = self.write()?;
        Ok(())
    }

    fn new_case(&self, plan: &Plan, prompt: &Prompt) -> Case {
        let layout = self.node.compute.engine().shape().kv_layout(plan.kv_dtype);
        Case {
            prompt: prompt.name.clone(),
            prompt_digest: prompt.digest(),
            prompt_tokens: prompt.tokens.len() as u32,
            output_tokens: prompt.output_tokens,
            ignore_eos: prompt.ignore_eos,
            kv_bytes: (layout.bytes_per_token() * prompt.tokens.len()) as u64,
            samples: self.stand_in(prompt),
            check: None,
            lossy: Vec::new(),
            stopped: None,
        }
    }

    /// Whether a case has all that is asked for: in a resumed run alone.
    fn is_complete(&self, plan: &Plan, case: usize) -> bool {
        let case = &self.record.cases[case];
        let has = |way: &Way, repeat| resume::is_measured(&case.samples, *way, repeat);
        match plan.auto {
            Some(_) => case.stopped.is_some(),
            None => (0..plan.repeats).all(|repeat| plan.ways.iter().all(|way| has(way, repeat))),
        }
    }

    /// Position of the next request in the run: behind those of the part that was interrupted.
    fn next_order(&self) -> u32 {
        let samples = self.record.cases.iter().flat_map(|case| &case.samples);
        // Those of a baseline that stands in were not measured in this run.
        let own = samples.filter(|s| self.stand_in.is_none() || s.arm != Arm::Single);
        own.map(|s| s.order + 1).max().unwrap_or(0)
    }

    /// Every way once, in an order by chance, but for those that a resumed run has already.
    async fn measure_round(
        &mut self,
        plan: &Plan,
        prompt: &Prompt,
        repeat: u32,
        warmup: bool,
        course: &mut Course,
    ) -> anyhow::Result<()> {
        let layout = self.node.compute.engine().shape().kv_layout(plan.kv_dtype);
        let tokens = prompt.tokens.len() as u32;
        let mut ways = plan.ways.clone();
        ways.shuffle(&mut course.random);
        let samples = &self.record.cases[course.case].samples;
        ways.retain(|way| warmup || !resume::is_measured(samples, *way, repeat));
        for way in ways {
            (self.observer)(Progress::Next(&prompt.name));
            let order = course.order;
            let choice = self.choose(way, layout, &course.prefills, tokens);
            let outcome = (self.request(way, choice, &plan.request(prompt, way))).await;
            let mut sample = sample_of(way, plan, self.streams(), repeat, warmup, order);
            if way != Way::SingleHere {
                sample.connect_attempts = self.remote.as_mut().and_then(|r| r.attempts.take());
            }
            sample.choice = choice;
            course.order += 1;
            match outcome {
                Ok(outcome) => {
                    self.look(Some(order), outcome.decode_activity);
                    if let Some(memory) = outcome.decode_memory {
                        self.record.decode_memory = Some(memory.into());
                    }
                    fill(&mut sample, outcome);
                    if let Some(prefill) = Prefill::of(&sample, tokens, self.cut(layout)) {
                        course.prefills.retain(|p| p.tokens != tokens);
                        course.prefills.push(prefill);
                    }
                }
                Err(error) => {
                    sample.error = Some(format!("{error:#}"));
                    course.first_failure.get_or_insert(error);
                }
            }
            (self.observer)(Progress::Done);
            self.record.cases[course.case].samples.push(sample);
        }
        self.check_case(course.case);
        let (written, took) = course.written;
        if written.elapsed() > took * WRITING_SHARE {
            course.written = self.write()?;
        }
        self.stay_connected().await
    }

    /// Notes what both nodes did so far.
    fn look(&mut self, order: Option<u32>, decode: Option<Activity>) {
        self.record.observed.looks.push(Look {
            order,
            prefill: Activity::now(),
            decode,
        });
    }

    /// On loopback no cache can go faster than memory lets it.
    fn measure_memory(&mut self, plan: &Plan) {
        if self.record.link.as_ref().is_none_or(|link| !link.loopback) {
            return;
        }
        let layout = self.node.compute.engine().shape().kv_layout(plan.kv_dtype);
        let longest = plan.prompts.iter().map(|p| p.tokens.len()).max();
        let bytes = longest.unwrap_or(0) * layout.bytes_per_token();
        self.record.observed.memory_copy =
            MemoryCopy::measure(bytes.clamp(COPY_MIN_BYTES, COPY_MAX_BYTES));
    }

    /// Records how the run ended and writes the record a last time.
    pub fn finish(
        record: &mut Record,
        path: &Path,
        status: Status,
        error: Option<String>,
    ) -> anyhow::Result<()> {
        record.run.status = status;
        record.run.error = error;
        record.run.finished_at = Some(now());
        record.write(path)
    }

    /// The baseline's samples of a prompt, where one stands in for the single arm.
    fn stand_in(&self, prompt: &Prompt) -> Vec<Sample> {
        let digest = prompt.digest();
        let cases = self
            .stand_in
            .into_iter()
            .flat_map(|baseline| &baseline.cases);
        let of_prompt = cases.filter(|case| case.prompt_digest == digest);
        of_prompt.flat_map(|case| case.samples.clone()).collect()
    }

    async fn measure_link(&mut self, plan: &Plan) -> anyhow::Result<()> {
        let (Some(remote), Some(link)) = (&mut self.remote, &mut self.record.link) else {
            return Ok(());
        };
        let connection = remote.connection().await?;
        if link.round_trips_ns.is_empty() {
            link.round_trips_ns = connection.round_trips(ROUND_TRIPS).await?;
        }
        if link.fit.is_none() {
            let layout = self.node.compute.engine().shape().kv_layout(plan.kv_dtype);
            let longest = plan.prompts.iter().map(|p| p.tokens.len()).max();
            let largest_bytes = (longest.unwrap_or(0) * layout.bytes_per_token()) as u64;
            let (pool, largest_bytes) = (&self.node.pool, largest_bytes.max(FIT_MIN_BYTES));
            link.fit = short_fit(connection, pool, layout.into(), largest_bytes)
                .await
                .context("measuring the link before the first request")?;
            link.fit_origin = link.fit.as_ref().map(|_| FitOrigin::Measured);
        }
        Ok(())
    }

    /// What `auto` picks for a prompt of `tokens`; `None` in any other way.
    fn choose(
        &self,
        way: Way,
        layout: KvLayout,
        prefills: &[Prefill],
        tokens: u32,
    ) -> Option<Choice> {
        let Way::Split(Transfer::Auto, rows) = way else {
            return None;
        };
        let link = self.record.link.as_ref();
        let fit = link.and_then(|link| link.fit.as_ref());
        let round_trip_ns = link.and_then(|link| link.min_round_trip_ns()).unwrap_or(0);
        let wire_share = rows.row_bytes(layout) as f64 / layout.row_bytes() as f64;
        Some(exposure::choose(
            fit,
            round_trip_ns,
            prefills,
            tokens,
            wire_share,
        ))
    }

    /// How caches are cut on this connection.
    fn cut(&self, layout: KvLayout) -> Cut {
        let connection = self.remote.as_ref().and_then(|r| r.connection.as_ref());
        let theirs = connection.map(|c| c.peer().limits.max_piece_bytes);
        Cut {
            row_bytes: layout.row_bytes() as u64,
            piece_bytes: theirs.unwrap_or(MAX_PIECE_BYTES).min(MAX_PIECE_BYTES),
        }
    }

    /// What lossy ways cost the answers, behind everything that is timed or whose memory counts.
    async fn measure_losses(&mut self, plan: &Plan) -> anyhow::Result<()> {
        for (prompt, case) in plan.prompts.iter().zip(&mut self.record.cases) {
            let landed = |s: &&Sample| s.is_lossy() && s.error.is_none();
            if !case.samples.iter().any(|s| landed(&s)) {
                continue;
            }
            (self.observer)(Progress::Next(&prompt.name));
            let way = Way::Split(Transfer::Bulk, WireRows::Int8);
            let lossy = accuracy::lossy(self.node, &plan.request(prompt, way)).await;
            let lossy = lossy
                .with_context(|| format!("cannot tell what int8 costs prompt {}", prompt.name))?;
            case.lossy.extend(lossy);
        }
        Ok(())
    }

    async fn request(
        &mut self,
        way: Way,
        choice: Option<Choice>,
        request: &Request,
    ) -> anyhow::Result<Outcome> {
        if way == Way::SingleHere {
            return single(self.node, request).await;
        }
        let remote = self
            .remote
            .as_mut()
            .context("this way needs a decode node")?;
        let mut connection = remote.take().await?;
        let outcome = match way {
            Way::Split(transfer, _) => {
                let departure = match choice.map_or(transfer, |choice| choice.picked) {
                    Transfer::Bulk => Departure::AfterPrefill,
                    Transfer::Layered | Transfer::Auto => Departure::BehindPrefill,
                };
                connection.split(self.node, request, departure).await?
            }
            _ => connection.whole(self.node, request).await?,
        };
        // A connection is kept only behind a request that ended well: after any other it may be
        // in the middle of a frame.
        remote.connection = Some(connection);
        Ok(outcome)
    }

    /// After a failure: is the decode node still there? If not, the run cannot go on.
    async fn stay_connected(&mut self) -> anyhow::Result<()> {
        if let Some(remote) = &mut self.remote {
            (remote.connection().await).context("the decode node cannot be reached any more")?;
        }
        Ok(())
    }

    /// Writes the record; gives when that was done and how long it took.
    fn write(&self) -> anyhow::Result<(Instant, Duration)> {
        let started = Instant::now();
        self.record.write(self.path)?;
        Ok((Instant::now(), started.elapsed()))
    }

    /// Connections that carry pieces; 0 without a decode node.
    fn streams(&self) -> u32 {
        self.remote.as_ref().map_or(0, |remote| remote.peer.streams)
    }

    fn check_case(&mut self, case: usize) {
        let tolerance = Tolerance::for_weights(&self.record.model.weights);
        let demanded = check::demanded(self.record);
        let case = &mut self.record.cases[case];
        case.check = check::check(case, demanded, tolerance);
    }
}

/// The time as the record writes it.
pub fn now() -> String {
    #[expect(clippy::disallowed_methods, reason = "a date, no duration")]
    let now = jiff::Timestamp::now();
    format!("{now:.0}")
}

/// Checks that every prompt and its answer fit the model's context, before anything runs.
pub fn check_lengths(engine: &Engine, prompts: &[Prompt]) -> anyhow::Result<()> {
    let check = |p: &Prompt| engine.check_length(p.tokens.len(), p.output_tokens as usize);
    let mut unfit = prompts.iter().filter_map(|p| Some((p, check(p).err()?)));
    let Some((prompt, error)) = unfit.next() else {
        return Ok(());
    };
    let others = match unfit.count() {
        0 => String::new(),
        n => format!(", as {} of {} too", n, prompts.len()),
    };
    Err(error).with_context(|| format!("prompt {}{others}", prompt.name))
}
