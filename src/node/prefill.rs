//! The prefill node's end of a request: prefill here, have the cache shipped (`sending`), collect
//! the answer. `opening` reaches the decode node, `here` is what this node computes,
//! `remote_answer` what the other one gave.

mod here;
mod opening;
mod remote_answer;

pub use here::single;
pub use opening::Peer;

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::sync::watch;

use self::here::{first_token_alone, start_prefill};
use self::remote_answer::{RemoteAnswer, from_wire};
use super::compute::Compute;
use super::generation::{Clock, Emission, Request};
pub use super::sending::Patience;
use super::sending::{Answering, Departure, Progress, Sender, exchange, receive, silence};
use crate::environment::Activity;
use crate::metrics::{Event, EventName, Node, Output};
use crate::model::cache_pool::{CachePool, Pooled};
use crate::model::kv_int8::WireRows;
use crate::wire::message::{Admit, Introduction, NodeMemory, Open, OpenRole, Probe, Receiving};
use crate::wire::socket::{self, SocketFacts, TcpInfo};
use crate::wire::{
    FrameReader, FrameWriter, Kind, ReadHalf, Session, WireBytes, WireError, WriteHalf,
};

/// A connection that carried nothing for so long is tried before a request goes over it: what lies
/// between may have forgotten it.
const TRIED_AFTER: Duration = Duration::from_secs(30);

/// A segment that was sent again this many times in a row, each time after twice the wait, will not
/// get through.
const LOST_FOR_GOOD: u8 = 4;

/// This node's compute and memory.
#[derive(Clone)]
pub struct PrefillNode {
    /// Runs the model.
    pub compute: Compute,
    /// Memory for requests.
    pub pool: Arc<CachePool>,
}

/// A request that was answered.
#[derive(Debug)]
pub struct Outcome {
    /// The answer and its proofs.
    pub output: Output,
    /// Events of both nodes.
    pub events: Vec<Event>,
    /// KV bytes sent.
    pub wire_payload_bytes: u64,
    /// Headers and control messages sent.
    pub wire_framing_bytes: u64,
    /// Time that the connections had carried no cache before this one; `None` where they never
    /// had, or where no cache was sent.
    pub idle_before_ns: Option<u64>,
    /// Memory of the decode node, where it took part.
    pub decode_memory: Option<NodeMemory>,
    /// What its process and machine did so far.
    pub decode_activity: Option<Activity>,
    /// The most other requests that it had at any moment of this one.
    pub others_in_flight: Option<u32>,
}

/// A made-up cache that went over the link.
#[derive(Debug)]
pub struct Probed {
    /// Events of both nodes.
    pub events: Vec<Event>,
    /// Bytes sent.
    pub sent: WireBytes,
    /// How busy that kept the decode node; none where it does not tell.
    pub receiving: Option<Receiving>,
}

/// An open session with a decode node.
pub struct Connection {
    reader: FrameReader<ReadHalf>,
    writer: FrameWriter<WriteHalf>,
    /// Further connections of the session; they carry pieces alone.
    joined: Vec<Joined>,
    session: Session,
    facts: SocketFacts,
    next_request: u64,
    /// When anything last went over it.
    last_used: Instant,
    /// When the last cache that they carried was acknowledged.
    last_transfer: Option<Instant>,
    /// Tokens of the current request that came back so far.
    tokens_back: watch::Sender<u32>,
    /// How often it was tried until it was open.
    attempts: u32,
    patience: Patience,
}

/// A further connection of a session.
pub(super) struct Joined {
    pub(super) reader: FrameReader<ReadHalf>,
    pub(super) writer: FrameWriter<WriteHalf>,
}

impl Connection {
    /// Bytes sent so far over all connections.
    fn sent(&self) -> WireBytes {
        let joined = self.joined.iter().map(|joined| joined.writer.sent());
        joined.fold(self.writer.sent(), WireBytes::plus)
    }

    /// How often it was tried until it was open.
    pub fn attempts(&self) -> u32 {
        self.attempts
    }

    /// Whether the decode node still answers on it; asked only where it was idle for long.
    pub async fn is_alive(&mut self) -> bool {
        self.last_used.elapsed() < TRIED_AFTER || self.round_trips(1).await.is_ok()
    }

    /// What the decode node said of itself.
    pub fn peer(&self) -> &Introduction {
        &self.session.peer
    }

    /// Socket options as read back after connecting.
    pub fn facts(&self) -> &SocketFacts {
        &self.facts
    }

    /// Counts the tokens of the next request that come back from the decode node.
    pub fn watch_tokens(&self) -> watch::Receiver<u32> {
        // Those of the request before must not count.
        self.tokens_back.send_replace(0);
        self.tokens_back.subscribe()
    }

    /// The kernel's view of all connections of the session, the first one first; empty where it
    /// gives none.
    pub fn tcp_infos(&self) -> Vec<TcpInfo> {
        let joined = self.joined.iter().map(|joined| &joined.reader);
        let readers = std::iter::once(&self.reader).chain(joined);
        let infos = readers.map(|reader| socket::tcp_info(&reader.inner().socket()));
        infos.collect::<Option<_>>().unwrap_or_default()
    }

    /// Send buffer of the first connection as the kernel has tuned it by now, in bytes.
    pub fn send_buffer_bytes(&self) -> Option<u64> {
        let facts = socket::facts(&self.reader.inner().socket()).ok()?;
        Some(facts.send_buffer_bytes as u64)
    }

    /// The kernel's view of the first connection.
    pub fn tcp_info(&self) -> Option<TcpInfo> {
        socket::tcp_info(&self.reader.inner().socket())
    }

    /// Connections that carry pieces.
    pub fn streams(&self) -> u32 {
        1 + self.joined.len() as u32
    }

    /// Round trips of `count` empty messages, in ns.
    pub async fn round_trips(&mut self, count: u64) -> Result<Vec<u64>, WireError> {
        let mut round_trips = Vec::new();
        for number in 0..count {
            let sent = Instant::now();
            (self.writer)
                .write_empty(Kind::Ping, self.session.id, number)
                .await?;
            let header = tokio::time::timeout(self.patience.silence, self.reader.read_header())
                .await
                .unwrap_or(Err(silence(self.patience.silence)))?;
            if header.kind != Kind::Pong {
                return Err(self.reader.unwanted(&header, Kind::Pong).await);
            }
            self.reader.finish_empty(&header)?;
            round_trips.push(sent.elapsed().as_nanos() as u64);
        }
        self.last_used = Instant::now();
        Ok(round_trips)
    }

    /// Runs one request split: prefill here, decode there.
    pub async fn split(
        &mut self,
        node: &PrefillNode,
        request: &Request,
        departure: Departure,
    ) -> anyhow::Result<Outcome> {
        let layout = node.compute.engine().shape().kv_layout(request.kv_dtype);
        let cache = Arc::new(node.pool.take(layout, request.prompt.len())?);
        let before = self.sent();
        let clock = Clock::start(Node::Prefill);
        let mut events = vec![clock.event(EventName::RequestStart)];
        let (emissions, prefilled) = start_prefill(node, request, &cache, clock);
        let answered = match request.output_tokens {
            // Nothing is left for the decode node to do, so no cache is sent.
            1 => first_token_alone(node, request, emissions, &mut events).await,
            _ => {
                self.answer(request, departure, &cache, clock, emissions, &mut events)
                    .await
            }
        };
        // Even of a request that failed: the next one must not queue behind its prefill.
        let proofs = prefilled.await.context("the compute thread failed")?;
        let (answer, mut proofs) = (answered?, proofs?);
        let sent = self.sent().since(before);
        let idle_before_ns = self.note_transfer(clock, &events);
        let sent_cache_digest = match answer.cache_digest {
            Some(_) => {
                let digest = request.wire_rows.digest(&cache, request.prompt.len())?;
                Some(digest.to_hex()[..32].to_string())
            }
            None => None,
        };
        events.extend(answer.remote_events);
        let output = Output {
            text: node.compute.engine().tokenizer.decode(&answer.tokens)?,
            finish: answer.finish,
            steps: proofs.finish().into_iter().chain(answer.steps).collect(),
            tokens: answer.tokens,
            sent_cache_digest,
            landed_cache_digest: answer.cache_digest,
        };
        Ok(Outcome {
            idle_before_ns,
            decode_memory: answer.memory,
            decode_activity: answer.activity,
            others_in_flight: answer.others_in_flight,
            ..Outcome::new(output, events, sent)
        })
    }

    /// Runs one request wholly on the decode node; its times include the way there and back.
    pub async fn whole(
        &mut self,
        node: &PrefillNode,
        request: &Request,
    ) -> anyhow::Result<Outcome> {
        let before = self.sent();
        let clock = Clock::start(Node::Prefill);
        let mut events = vec![clock.event(EventName::RequestStart)];
        let (number, _) = self.open_request(request, OpenRole::Whole).await?;
        events.push(clock.event(EventName::Admitted));
        let progress = Progress::new(self.patience.queue, self.patience, &self.tokens_back);
        progress.all_sent();
        let answering = Answering {
            session: self.session.id,
            number,
            tokens: 0..request.output_tokens,
        };
        let (done, received, tokens) =
            receive(&mut self.reader, answering, clock, &progress).await?;
        events.extend(received);
        let answer = RemoteAnswer::new(tokens, 0, request.output_tokens as usize, done)?;
        events.extend(answer.remote_events);
        let output = Output {
            text: node.compute.engine().tokenizer.decode(&answer.tokens)?,
            tokens: answer.tokens,
            finish: answer.finish,
            steps: answer.steps,
            sent_cache_digest: None,
            landed_cache_digest: None,
        };
        Ok(Outcome {
            decode_memory: answer.memory,
            decode_activity: answer.activity,
            others_in_flight: answer.others_in_flight,
            ..Outcome::new(output, events, self.sent().since(before))
        })
    }

    /// Remembers when the cache of a request was through, and tells how long the connections had
    /// carried none before it.
    fn note_transfer(&mut self, clock: Clock, events: &[Event]) -> Option<u64> {
        let times = |name| {
            events
                .iter()
                .filter(move |e| e.name == name)
                .map(|e| e.t_ns)
        };
        let first_ns = times(EventName::PieceOffered).min()?;
        let last_ns = times(EventName::PieceAcknowledged).max()?;
        let earlier = self.last_transfer.replace(clock.moment(last_ns))?;
        let idle = clock.moment(first_ns).saturating_duration_since(earlier);
        Some(idle.as_nanos() as u64)
    }

    /// Sends a made-up cache and waits until all of it has landed. `piece_bytes` bounds a piece.
    pub async fn probe(
        &mut self,
        cache: &Pooled,
        probe: Probe,
        piece_bytes: u64,
    ) -> anyhow::Result<Probed> {
        let before = self.sent();
        let (number, _) = self.announce(Kind::Probe, &probe).await?;
        let clock = Clock::start(Node::Prefill);
        let progress = Progress::new(self.patience.silence, self.patience, &self.tokens_back);
        let piece_bytes = piece_bytes.min(self.session.peer.limits.max_piece_bytes);
        let sender = Sender::new(
            self.session.id,
            number,
            0,
            cache,
            WireRows::Same,
            piece_bytes,
            clock,
            &progress,
        );
        for layer in 0..cache.layout().n_layers {
            sender.enqueue(layer, 0..probe.tokens as usize);
        }
        sender.queue.complete();
        let ready = async { anyhow::Ok(()) };
        let (done, mut received, _) = exchange(
            &sender,
            &mut self.reader,
            &mut self.writer,
            &mut self.joined,
            ready,
        )
        .await
        .map_err(|error| self.explained(error))?;
        let mut events = sender.events.into_inner();
        events.append(&mut received);
        events.extend(done.events.into_iter().filter_map(from_wire));
        self.note_transfer(clock, &events);
        Ok(Probed {
            events,
            sent: self.sent().since(before),
            receiving: done.receiving,
        })
    }

    /// What the kernel knows of a silence: whether full segments are lost on the way each time.
    fn explained(&self, error: anyhow::Error) -> anyhow::Error {
        if !matches!(error.downcast_ref(), Some(WireError::Timeout { .. })) {
            return error;
        }
        let lost = (self.tcp_infos().into_iter()).find(|info| info.retransmits >= LOST_FOR_GOOD);
        match lost {
            Some(info) => WireError::BulkHangs {
                segment_bytes: info.snd_mss_bytes,
                resent: info.total_retrans,
            }
            .into(),
            None => error,
        }
    }

    /// Announces a request and waits until the decode node has memory for it.
    async fn open_request(
        &mut self,
        request: &Request,
        role: OpenRole,
    ) -> Result<(u64, Admit), WireError> {
        let open = Open {
            prompt_tokens: request.prompt.clone(),
            output_tokens: request.output_tokens,
            kv_dtype: request.kv_dtype.into(),
            wire_dtype: (request.wire_rows != WireRows::Same)
                .then(|| super::wire_dtype(request.wire_rows, request.kv_dtype)),
            chunk_tokens: request.chunk_tokens,
            ignore_eos: request.ignore_eos,
            role,
        };
        self.announce(Kind::Open, &open).await
    }

    /// Sends a request under a new number and waits for the decode node's ADMIT.
    async fn announce<T: serde::Serialize>(
        &mut self,
        kind: Kind,
        request: &T,
    ) -> Result<(u64, Admit), WireError> {
        let number = self.next_request;
        self.next_request += 1;
        self.last_used = Instant::now();
        (self.writer)
            .write_control(kind, self.session.id, number, request)
            .await?;
        let admitted = self.reader.expect::<Admit>(Kind::Admit);
        let (_, admit) = (tokio::time::timeout(self.patience.silence, admitted).await)
            .unwrap_or(Err(silence(self.patience.silence)))?;
        Ok((number, admit))
    }

    /// Sends the cache while prefill and decode node do their parts, until the answer is there.
    async fn answer(
        &mut self,
        request: &Request,
        departure: Departure,
        cache: &Arc<Pooled>,
        clock: Clock,
        emissions: UnboundedReceiver<Emission>,
        events: &mut Vec<Event>,
    ) -> anyhow::Result<RemoteAnswer> {
        let (number, admit) = self.open_request(request, OpenRole::Decode).await?;
        events.push(clock.event(EventName::Admitted));
        let silence = match admit.others_in_flight {
            0 => self.patience.silence,
            _ => self.patience.queue,
        };
        let progress = Progress::new(silence, self.patience, &self.tokens_back);
        let piece_bytes = self.session.peer.limits.max_piece_bytes;
        let sender = Sender::new(
            self.session.id,
            number,
            request.output_tokens,
            cache,
            request.wire_rows,
            piece_bytes,
            clock,
            &progress,
        );
        let feed = sender.feed(request, departure, emissions);
        let (done, mut received, mut tokens) = exchange(
            &sender,
            &mut self.reader,
            &mut self.writer,
            &mut self.joined,
            feed,
        )
        .await
        .map_err(|error| self.explained(error))?;
        tokens.splice(0..0, sender.first_token.get());
        events.append(&mut sender.events.into_inner());
        events.append(&mut received);
        RemoteAnswer::new(tokens, 1, request.output_tokens as usize, done)
    }
}

impl Outcome {
    fn new(output: Output, mut events: Vec<Event>, sent: WireBytes) -> Self {
        let tokens = events.iter().filter(|e| e.name == EventName::Token);
        // The end of a request is its last token.
        if let Some(last) = tokens.max_by_key(|e| e.t_ns) {
            events.push(Event {
                name: EventName::RequestEnd,
                chunk: None,
                ..last.clone()
            });
        }
        events.sort_by_key(|e| (e.clock, e.t_ns));
        Self {
            output,
            events,
            wire_payload_bytes: sent.payload_bytes,
            wire_framing_bytes: sent.framing_bytes + sent.control_bytes,
            idle_before_ns: None,
            decode_memory: None,
            decode_activity: None,
            others_in_flight: None,
        }
    }
}
