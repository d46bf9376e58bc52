//! The cache of one request while it arrives, in pieces, over any connection of its session.
//!
//! The session's first connection opens the request and waits for the outcome; connections that
//! joined it bring pieces of whatever request is open.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, Weak};

use tokio::io::AsyncRead;
use tokio::sync::{Notify, watch};

use super::decode::Abort;
use super::generation::Clock;
use crate::metrics::{Event, EventName};
use crate::model::cache_pool::Pooled;
use crate::model::kv_int8::{WireRows, dequantise};
use crate::wire::frame::MAX_DONE_BYTES;
use crate::wire::{FrameReader, Header};

/// Bytes that the landing of a piece takes in a DONE at most, and some for the rest of it.
pub const LANDED_BYTES_IN_DONE: u64 = 128;

/// Most pieces of one request: DONE tells of each, and before it each is an event in memory.
const MAX_PIECES: usize = (MAX_DONE_BYTES / LANDED_BYTES_IN_DONE) as usize;

/// A request whose cache is arriving.
pub struct Reception {
    /// The peer's number for it.
    pub number: u64,
    prompt_tokens: usize,
    cache: Arc<Pooled>,
    /// What its rows are in a piece.
    rows: WireRows,
    clock: Clock,
    /// Negative control: flip a bit of this layer after its checksum was verified.
    corrupt_layer: Option<usize>,
    state: Mutex<State>,
    changed: Notify,
}

struct State {
    /// Layers times tokens that have not landed.
    missing: usize,
    first_token: Option<u32>,
    failed: Option<Abort>,
    events: Vec<Event>,
}

impl Reception {
    /// A request `number` of `prompt_tokens` tokens into an empty cache.
    pub fn new(
        number: u64,
        prompt_tokens: usize,
        cache: Arc<Pooled>,
        rows: WireRows,
        clock: Clock,
        corrupt_layer: Option<usize>,
    ) -> Arc<Self> {
        Arc::new(Self {
            number,
            prompt_tokens,
            rows,
            clock,
            corrupt_layer,
            state: Mutex::new(State {
                missing: prompt_tokens * cache.layout().n_layers,
                first_token: None,
                failed: None,
                events: Vec::new(),
            }),
            cache,
            changed: Notify::new(),
        })
    }

    /// Reads one piece into its final place and verifies it, through the buffer `quantised` where
    /// its rows are not those of the cache; it is the caller's to acknowledge. Not cancel safe.
    pub async fn take_piece<R: AsyncRead + Unpin>(
        &self,
        reader: &mut FrameReader<R>,
        header: &Header,
        stream: u32,
        quantised: &mut Vec<u8>,
    ) -> Result<(), Abort> {
        let (start, count) = (header.token_start as usize, header.token_count as usize);
        if header.request != self.number {
            return Err(Abort::Failed(format!(
                "a piece of request {} came during request {}",
                header.request, self.number
            )));
        }
        if start.saturating_add(count) > self.prompt_tokens {
            return Err(Abort::Failed(format!(
                "a piece of tokens {start}..{} is outside the prompt of {} tokens",
                start.saturating_add(count),
                self.prompt_tokens
            )));
        }
        if self.state().events.len() >= MAX_PIECES {
            return Err(Abort::Failed(format!(
                "request {} came in more than {MAX_PIECES} pieces, the most that DONE can tell of: \
                 send larger ones",
                self.number
            )));
        }
        let layer = header.layer as usize;
        let mut claim =
            (self.cache.claim(layer, start, count)).map_err(|e| Abort::Failed(e.to_string()))?;
        match self.rows {
            WireRows::Same => reader.read_payload_into(header, &mut claim).await?,
            WireRows::Int8 => {
                let layout = self.cache.layout();
                header.demand_payload(count * self.rows.row_bytes(layout))?;
                quantised.resize(count * self.rows.row_bytes(layout), 0);
                reader.read_payload_into(header, quantised).await?;
                dequantise(layout, quantised, &mut claim);
            }
        }
        if self.corrupt_layer == Some(layer) && start == 0 {
            let middle = claim.len() / 2;
            claim[middle] ^= 0x10;
        }
        claim.land();
        let mut state = self.state();
        state.missing -= count;
        state.events.push(Event {
            layer: Some(header.layer),
            token_start: Some(header.token_start),
            stream: Some(stream),
            ..self.clock.event(EventName::PieceLanded)
        });
        self.note_completion(state);
        Ok(())
    }

    /// The first token is known; it cannot be changed.
    pub fn start(&self, first_token: u32) -> Result<(), Abort> {
        let mut state = self.state();
        if state.first_token.replace(first_token).is_some() {
            return Err(Abort::Failed(format!(
                "START came twice in request {}",
                self.number
            )));
        }
        self.note_completion(state);
        Ok(())
    }

    /// The request cannot be completed.
    pub fn fail(&self, why: Abort) {
        self.state().failed.get_or_insert(why);
        self.changed.notify_one();
    }

    /// Waits until the cache is complete and the first token known, and gives that token with the
    /// events of the reception. Cancel safe.
    pub async fn outcome(&self) -> Result<(u32, Vec<Event>), Abort> {
        loop {
            {
                let mut state = self.state();
                if let Some(why) = state.failed.take() {
                    return Err(why);
                }
                if let (0, Some(token)) = (state.missing, state.first_token) {
                    return Ok((token, std::mem::take(&mut state.events)));
                }
            }
            // A notification that comes in between is kept.
            self.changed.notified().await;
        }
    }

    fn note_completion(&self, mut state: MutexGuard<'_, State>) {
        if state.missing == 0 && state.first_token.is_some() {
            state
                .events
                .push(self.clock.event(EventName::CacheComplete));
            self.changed.notify_one();
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|e| e.into_inner())
    }
}

/// A session's part that its connections share.
pub struct SharedSession {
    /// Carried by every frame of the session.
    pub id: u64,
    current: Mutex<Option<Arc<Reception>>>,
    /// Number of the latest request whose pieces were taken.
    latest: AtomicU64,
    /// Whether it can be joined; that it is not, or its end, tells joined connections to go.
    open: watch::Sender<bool>,
}

impl SharedSession {
    /// Makes a request the one whose pieces are taken, or none.
    pub fn set_current(&self, reception: Option<Arc<Reception>>) {
        if let Some(reception) = &reception {
            self.latest.fetch_max(reception.number, Ordering::Relaxed);
        }
        *self.current.lock().unwrap_or_else(|e| e.into_inner()) = reception;
    }

    /// The request whose pieces are taken.
    pub fn current(&self) -> Option<Arc<Reception>> {
        (self.current.lock().unwrap_or_else(|e| e.into_inner())).clone()
    }

    /// Whether a request's pieces were taken, and are not any more.
    pub fn is_over(&self, number: u64) -> bool {
        let is_current = self.current().is_some_and(|r| r.number == number);
        !is_current && number <= self.latest.load(Ordering::Relaxed)
    }

    /// Resolves when the session's first connection is gone or has joined another session.
    pub fn closed(&self) -> impl Future<Output = ()> + use<> {
        let mut watched = self.open.subscribe();
        async move {
            // An error means that the sender is gone.
            let _ = watched.wait_for(|open| !open).await;
        }
    }
}

/// All sessions that connections can join.
#[derive(Default)]
pub struct Sessions(Mutex<HashMap<u64, Weak<SharedSession>>>);

impl Sessions {
    /// Registers a session; it can be joined as long as the result lives.
    pub fn open(&self, id: u64) -> Arc<SharedSession> {
        let session = Arc::new(SharedSession {
            id,
            current: Mutex::default(),
            latest: AtomicU64::new(0),
            open: watch::Sender::new(true),
        });
        let mut all = self.0.lock().unwrap_or_else(|e| e.into_inner());
        all.retain(|_, session| session.strong_count() > 0);
        all.insert(id, Arc::downgrade(&session));
        session
    }

    /// Closes a session to others, and lets those go that have joined it.
    pub fn close(&self, session: &SharedSession) {
        let mut all = self.0.lock().unwrap_or_else(|e| e.into_inner());
        all.remove(&session.id);
        session.open.send_replace(false);
    }

    /// A session that is open.
    pub fn find(&self, id: u64) -> Option<Arc<SharedSession>> {
        let all = self.0.lock().unwrap_or_else(|e| e.into_inner());
        all.get(&id)?.upgrade()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Node;
    use crate::model::cache_pool::CachePool;
    use crate::model::kv_cache::{KvDtype, KvLayout};
    use crate::wire::{FrameWriter, PieceHeader};

    #[tokio::test]
    async fn more_pieces_than_done_can_tell_of_fail_the_request() {
        let layout = KvLayout {
            n_layers: 1,
            n_kv_heads: 1,
            head_dim: 1,
            dtype: KvDtype::F32,
        };
        let cache = Arc::new(CachePool::new(1 << 20).take(layout, 2).unwrap());
        let clock = Clock::start(Node::Decode);
        let reception = Reception::new(1, 2, cache, WireRows::Same, clock, None);
        let mut frames = Vec::new();
        for token_start in 0..2 {
            let run = PieceHeader {
                session: 1,
                request: 1,
                layer: 0,
                token_start,
                token_count: 1,
            };
            let mut writer = FrameWriter::new(&mut frames);
            writer.write_piece(run, &[0; 8]).await.unwrap();
        }
        let mut reader = FrameReader::new(&frames[..]);
        reception.state().events = vec![clock.event(EventName::PieceLanded); MAX_PIECES - 1];
        let mut outcomes = Vec::new();
        for _ in 0..2 {
            let header = reader.read_header().await.unwrap();
            let mut unused = Vec::new();
            let taken = reception.take_piece(&mut reader, &header, 0, &mut unused);
            outcomes.push(taken.await);
        }
        assert!(outcomes[0].is_ok(), "{outcomes:?}");
        assert!(
            matches!(&outcomes[1], Err(Abort::Failed(why)) if why.contains("524288 pieces")),
            "{outcomes:?}"
        );
    }
}
