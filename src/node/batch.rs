//! Several requests at once on one node: prefilled one after another, then decoded together, a
//! token of each in every step.

use std::time::Instant;

use anyhow::Context;

use super::generation::Request;
use super::prefill::PrefillNode;
use crate::model::cache_pool::Pooled;
use crate::model::engine::{Engine, Landing};
use crate::model::kv_cache::KvCache;
use crate::model::logits::Logits;

/// A batch that was answered.
#[derive(Clone, Debug)]
pub struct Batch {
    /// All prefills, one after another.
    pub prefill_ns: u64,
    /// All steps, to the last token of the longest answer.
    pub decode_ns: u64,
    /// One answer a request.
    pub answers: Vec<Answer>,
}

/// The answer to one request of a batch.
#[derive(Clone, Debug)]
pub struct Answer {
    /// Token ids.
    pub tokens: Vec<u32>,
    /// Digest of the logits that the last of them was chosen from.
    pub last_digest: String,
}

/// Runs the requests together; fails where their caches do not fit this node's memory.
pub async fn together(node: &PrefillNode, requests: &[Request]) -> anyhow::Result<Batch> {
    let shape = node.compute.engine().shape();
    let mut work = Vec::new();
    for request in requests {
        let layout = shape.kv_layout(request.kv_dtype);
        let cache = node.pool.take(layout, request.cache_tokens())?;
        work.push((request.clone(), cache));
    }
    let (report, finished) = tokio::sync::oneshot::channel();
    node.compute.submit(move |engine| {
        let _ = report.send(run(engine, &work));
    });
    finished.await.context("the compute thread failed")?
}

/// A sequence that is being generated.
struct Sequence<'a> {
    request: &'a Request,
    cache: &'a KvCache,
    tokens: Vec<u32>,
    /// What the newest token was chosen from.
    logits: Logits,
    newest: u32,
}

fn run(engine: &Engine, work: &[(Request, Pooled)]) -> anyhow::Result<Batch> {
    let started = Instant::now();
    let mut sequences = (work.iter())
        .map(|(request, cache)| Sequence::prefill(engine, request, cache))
        .collect::<anyhow::Result<Vec<_>>>()?;
    let prefilled = Instant::now();
    loop {
        let goes_on = |sequence: &&mut Sequence<'_>| sequence.goes_on(engine);
        let mut going: Vec<_> = sequences.iter_mut().filter(goes_on).collect();
        if going.is_empty() {
            break;
        }
        let batch: Vec<_> = going.iter().map(|s| (s.newest, s.cache)).collect();
        for (sequence, logits) in going.iter_mut().zip(engine.step_batch(&batch)?) {
            sequence.append(logits);
        }
    }
    let decode_ns = prefilled.elapsed().as_nanos() as u64;
    let answer = |sequence: Sequence<'_>| Answer {
        last_digest: sequence.logits.digest(),
        tokens: sequence.tokens,
    };
    Ok(Batch {
        prefill_ns: (prefilled - started).as_nanos() as u64,
        decode_ns,
        answers: sequences.into_iter().map(answer).collect(),
    })
}

impl<'a> Sequence<'a> {
    fn prefill(engine: &Engine, request: &'a Request, cache: &'a KvCache) -> anyhow::Result<Self> {
        let chunk = request.chunk_tokens.map(|n| n as usize);
        let (landing, prompt) = (Landing::InPlace, &request.prompt);
        let logits = engine.prefill_to(landing, prompt, chunk, cache, |_| {}, || Ok(()))?;
        let newest = logits.argmax();
        Ok(Self {
            request,
            cache,
            tokens: vec![newest],
            logits,
            newest,
        })
    }

    fn append(&mut self, logits: Logits) {
        self.newest = logits.argmax();
        self.tokens.push(self.newest);
        self.logits = logits;
    }

    fn goes_on(&self, engine: &Engine) -> bool {
        self.tokens.len() < self.request.output_tokens as usize
            && !self.request.ends_with(self.newest, engine)
    }
}
