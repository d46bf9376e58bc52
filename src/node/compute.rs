//! The thread that runs the model, never the network's. Jobs take turns on it: a request gives it
//! back behind every step, so that a long answer holds up nobody.

use std::collections::VecDeque;
use std::ops::ControlFlow;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::mpsc;

use anyhow::Context;

use crate::model::engine::Engine;
use crate::model::kv_cache::{KvCache, KvDtype};

/// How far compute stands back behind the network's thread where both want one core.
///
/// Candle's pool keeps every core busy, and a scheduler that shares fairly lets a token or a piece
/// wait behind it for 3 to 5 ms, until the network's thread, which has just sent a cache, has its
/// share again. On two cores over loopback at 1,472 tokens the residual (medians of 9 requests, two
/// runs) was 3.3 and 3.1 ms with 1, and 0.07 and 0.11 ms with 10; single requests of a disturbed run
/// still waited 3 ms. Prefill and decode stayed the same. It stands back behind everything else on the
/// machine too, which an idle machine does not have. Candle's workers inherit it.
const COMPUTE_NICENESS: i32 = 10;

/// Goes on where it stopped; called until it breaks.
type Job = Box<dyn FnMut(&Engine) -> ControlFlow<()> + Send>;

/// Hands jobs to the compute thread, which ends with the last handle.
#[derive(Clone)]
pub struct Compute {
    engine: Arc<Engine>,
    jobs: mpsc::Sender<Job>,
}

impl Compute {
    /// Starts the thread and warms it up.
    pub fn start(engine: Arc<Engine>) -> anyhow::Result<Self> {
        let (jobs, inbox) = mpsc::channel::<Job>();
        let model = Arc::clone(&engine);
        std::thread::Builder::new()
            .name("compute".into())
            .spawn(move || {
                // Without the right to it, as in some containers, it runs at the usual priority.
                let _ = rustix::process::setpriority_process(None, COMPUTE_NICENESS);
                let mut jobs = VecDeque::new();
                loop {
                    if jobs.is_empty() {
                        match inbox.recv() {
                            Ok(job) => jobs.push_back(job),
                            Err(_) => return,
                        }
                    }
                    jobs.extend(inbox.try_iter());
                    let Some(mut job) = jobs.pop_front() else {
                        continue;
                    };
                    // A job that panics drops its channel, which its owner sees as a failure;
                    // the thread must live on for the others.
                    let turn = std::panic::catch_unwind(AssertUnwindSafe(|| job(&model)));
                    if let Ok(ControlFlow::Continue(())) = turn {
                        jobs.push_back(job);
                    }
                }
            })
            .context("cannot start the compute thread")?;
        let compute = Self { engine, jobs };
        compute.warm_up()?;
        Ok(compute)
    }

    /// Runs a short request once: threads start and candle packs its weights when they are first
    /// used, which belongs to no request's time and memory.
    fn warm_up(&self) -> anyhow::Result<()> {
        let (done, finished) = mpsc::channel();
        self.submit(move |engine| {
            let prompt = [0u32; 2];
            let layout = engine.shape().kv_layout(KvDtype::F32);
            let cache = KvCache::new(layout, prompt.len() + 1);
            let outcome = (engine.prefill(&prompt, None, &cache, |_| {}))
                .and_then(|logits| engine.step(logits.argmax(), &cache));
            let _ = done.send(outcome.map(drop));
        });
        finished.recv().context("the compute thread failed")?
    }

    /// The model, for what needs no compute.
    pub fn engine(&self) -> &Engine {
        &self.engine
    }

    /// Queues a job of one turn behind those already there.
    pub fn submit(&self, job: impl FnOnce(&Engine) + Send + 'static) {
        let mut job = Some(job);
        self.submit_turns(move |engine| {
            if let Some(job) = job.take() {
                job(engine);
            }
            ControlFlow::Break(())
        });
    }

    /// Queues a job that is called until it breaks; between two of its turns every other job has
    /// one.
    pub fn submit_turns(&self, job: impl FnMut(&Engine) -> ControlFlow<()> + Send + 'static) {
        // The receiver lives as long as the thread, and that as long as this sender.
        let _ = self.jobs.send(Box::new(job));
    }
}
