//! What a request does on the compute thread, the same in every arm: prefill, then steps, a turn
//! each, with an event for everything, and proofs of all tokens taken after the last one.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::metrics::{Event, EventName, Finish, Node, StepProof};
use crate::model::cache_pool::Pooled;
use crate::model::decoder::LayerDone;
use crate::model::engine::{Engine, Landing};
use crate::model::kv_cache::{KvCache, KvDtype};
use crate::model::kv_int8::WireRows;
use crate::model::logits::Logits;

/// A request with all its settings.
#[derive(Clone, Debug)]
pub struct Request {
    /// Prompt token ids.
    pub prompt: Vec<u32>,
    /// Tokens to generate, the first included.
    pub output_tokens: u32,
    /// Whether to go on behind the end-of-sequence token.
    pub ignore_eos: bool,
    /// Element type of the cache.
    pub kv_dtype: KvDtype,
    /// What its rows are on the wire; of no meaning where none is sent.
    pub wire_rows: WireRows,
    /// Prefill chunk; `None` for the whole prompt at once.
    pub chunk_tokens: Option<u32>,
}

impl Request {
    /// Tokens that the cache must hold: the last token generated is never fed back.
    pub fn cache_tokens(&self) -> usize {
        self.prompt.len() + self.output_tokens as usize - 1
    }

    /// Whether `token` ends this request.
    pub fn ends_with(&self, token: u32, engine: &Engine) -> bool {
        !self.ignore_eos && engine.tokenizer.is_end(token)
    }
}

/// Reads one node's clock, from when the node learned of a request.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    node: Node,
    zero: Instant,
}

impl Clock {
    /// Starts at zero now.
    pub fn start(node: Node) -> Self {
        Self {
            node,
            zero: Instant::now(),
        }
    }

    /// The time now, in ns.
    pub fn now_ns(&self) -> u64 {
        u64::try_from(self.zero.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    /// What this clock read at a moment, in ns.
    pub fn at_ns(&self, moment: Instant) -> u64 {
        let since = moment.saturating_duration_since(self.zero);
        u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
    }

    /// The copying of K and V between a device and the host, as start and end on `event`.
    fn staging(&self, copied: &Range<Instant>, event: &Event) -> [Emission; 2] {
        let at = |name, moment| {
            Emission::Event(Event {
                name,
                t_ns: self.at_ns(moment),
                ..event.clone()
            })
        };
        [
            at(EventName::StagingStart, copied.start),
            at(EventName::StagingEnd, copied.end),
        ]
    }

    /// An event of this node, now.
    pub fn event(&self, name: EventName) -> Event {
        Event {
            clock: self.node,
            name,
            layer: None,
            chunk: None,
            token_start: None,
            stream: None,
            t_ns: self.now_ns(),
        }
    }

    /// The moment that this clock calls `t_ns`.
    pub fn moment(&self, t_ns: u64) -> Instant {
        self.zero + Duration::from_nanos(t_ns)
    }

    /// An event that belongs to the token or step `index`.
    pub fn indexed(&self, name: EventName, index: u32) -> Event {
        Event {
            chunk: Some(index),
            ..self.event(name)
        }
    }
}

/// What compute tells while it runs.
#[derive(Debug)]
pub enum Emission {
    /// Something happened.
    Event(Event),
    /// A layer's K and V of a chunk are in the cache.
    LayerDone(LayerDone),
    /// A token was chosen.
    Token {
        /// Position in the answer.
        index: u32,
        /// Id.
        token: u32,
    },
}

/// Bytes of logits that may wait for their proof in this process, all requests together; beyond it
/// they are proven between two steps.
const UNPROVEN_LIMIT_BYTES: usize = 256 << 20;

/// Those that wait now.
static UNPROVEN_BYTES: AtomicUsize = AtomicUsize::new(0);

/// Proofs of the tokens of one answer, taken where they disturb no figure: at the end.
#[derive(Debug, Default)]
pub struct Proofs {
    unproven: Vec<Logits>,
    unproven_bytes: usize,
    taken: Vec<StepProof>,
}

impl Proofs {
    /// Keeps the logits that a token was chosen from.
    pub fn push(&mut self, logits: Logits) {
        let bytes = size_of_val(&logits.0[..]);
        self.unproven.push(logits);
        self.unproven_bytes += bytes;
        if UNPROVEN_BYTES.fetch_add(bytes, Ordering::Relaxed) + bytes > UNPROVEN_LIMIT_BYTES {
            self.take_all();
        }
    }

    /// One proof a token, in order.
    pub fn finish(&mut self) -> Vec<StepProof> {
        self.take_all();
        std::mem::take(&mut self.taken)
    }

    fn take_all(&mut self) {
        self.taken.extend(self.unproven.drain(..).map(|logits| {
            let started = Instant::now();
            let (digest, top) = (logits.digest(), logits.top());
            StepProof {
                digest,
                top,
                proof_ns: started.elapsed().as_nanos() as u64,
            }
        }));
        self.forget();
    }

    fn forget(&mut self) {
        let bytes = std::mem::take(&mut self.unproven_bytes);
        UNPROVEN_BYTES.fetch_sub(bytes, Ordering::Relaxed);
    }
}

impl Drop for Proofs {
    fn drop(&mut self) {
        self.forget();
    }
}

/// Prefills the cache and chooses the first token; fails at the next chunk once nobody wants it.
pub fn prefill(
    engine: &Engine,
    request: &Request,
    (cache, landing): (&KvCache, Landing),
    clock: Clock,
    proofs: &mut Proofs,
    is_wanted: &dyn Fn() -> bool,
    emit: &mut dyn FnMut(Emission),
) -> anyhow::Result<u32> {
    emit(Emission::Event(clock.event(EventName::PrefillStart)));
    let chunk = request.chunk_tokens.map(|n| n as usize);
    let on_layer = |done: LayerDone| {
        let event = Event {
            layer: Some(done.layer as u32),
            token_start: Some(done.tokens.start as u32),
            ..clock.indexed(EventName::LayerDone, done.chunk as u32)
        };
        if let Some(copied) = &done.staging {
            clock
                .staging(copied, &event)
                .into_iter()
                .for_each(&mut *emit);
        }
        emit(Emission::Event(event));
        emit(Emission::LayerDone(done));
    };
    let prompt = &request.prompt;
    let goes_on = || {
        anyhow::ensure!(is_wanted(), "the request was taken back amid its prefill");
        Ok(())
    };
    let logits = engine.prefill_to(landing, prompt, chunk, cache, on_layer, goes_on)?;
    emit(Emission::Event(clock.event(EventName::PrefillEnd)));
    Ok(choose(logits, 0, proofs, emit))
}

/// A request on the compute thread. Its first turn is the prefill, unless the first token is known;
/// each further one a step.
pub struct Generation {
    request: Request,
    cache: Arc<Pooled>,
    clock: Clock,
    /// The latest token, and its position in the answer.
    latest: Option<(u32, u32)>,
    proofs: Proofs,
}

impl Generation {
    /// A request whose cache is empty.
    pub fn new(request: Request, cache: Arc<Pooled>, clock: Clock) -> Self {
        Self {
            request,
            cache,
            clock,
            latest: None,
            proofs: Proofs::default(),
        }
    }

    /// A request whose prompt was prefilled elsewhere and chose `first_token`, if that is known.
    pub fn behind(self, first_token: Option<u32>) -> Self {
        Self {
            latest: first_token.map(|token| (token, 0)),
            ..self
        }
    }

    /// The first token, if it was known from the start; to be asked before the first turn.
    pub fn first_token(&self) -> Option<u32> {
        self.latest.map(|(token, _)| token)
    }

    /// What it works on.
    pub fn cache(&self) -> &KvCache {
        &self.cache
    }

    /// One proof a token that was chosen here, in order.
    pub fn proofs(&mut self) -> Vec<StepProof> {
        self.proofs.finish()
    }

    /// Takes a turn; gives how the request ended once it has. A prefill in chunks fails between two
    /// of them once nobody wants it.
    pub fn advance(
        &mut self,
        engine: &Engine,
        is_wanted: &dyn Fn() -> bool,
        emit: &mut dyn FnMut(Emission),
    ) -> anyhow::Result<Option<Finish>> {
        let Some((token, index)) = self.latest else {
            let (request, place) = (&self.request, (&**self.cache, Landing::InPlace));
            let (clock, proofs) = (self.clock, &mut self.proofs);
            let first = prefill(engine, request, place, clock, proofs, is_wanted, emit)?;
            self.latest = Some((first, 0));
            return Ok(self.end(engine));
        };
        // Of a request that was over before its first step.
        if let Some(finish) = self.end(engine) {
            return Ok(Some(finish));
        }
        if let Some(copied) = engine.stage(&self.cache)? {
            let event = self.clock.event(EventName::StagingEnd);
            (self.clock.staging(&copied, &event).into_iter()).for_each(&mut *emit);
        }
        let index = index + 1;
        emit(Emission::Event(
            self.clock.indexed(EventName::StepStart, index),
        ));
        let logits = engine.step(token, &self.cache)?;
        emit(Emission::Event(
            self.clock.indexed(EventName::StepEnd, index),
        ));
        self.latest = Some((choose(logits, index, &mut self.proofs, emit), index));
        Ok(self.end(engine))
    }

    /// How the request ended, if its latest token was the last.
    fn end(&self, engine: &Engine) -> Option<Finish> {
        let (token, index) = self.latest?;
        if self.request.ends_with(token, engine) {
            return Some(Finish::EndOfSequence);
        }
        (index + 1 >= self.request.output_tokens).then_some(Finish::Length)
    }
}

/// Chooses greedily, lets the token go, and keeps the logits for their proof.
fn choose(logits: Logits, index: u32, proofs: &mut Proofs, emit: &mut dyn FnMut(Emission)) -> u32 {
    let token = logits.argmax();
    emit(Emission::Token { index, token });
    proofs.push(logits);
    token
}
