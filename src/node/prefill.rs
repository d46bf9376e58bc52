//! The prefill node's end of a request: prefill here, have the cache shipped (`sending`), collect
//! the answer.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use anyhow::Context;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::sync::watch;

use super::compute::Compute;
use super::generation::{self, Clock, Emission, Proofs, Request};
use super::sending::{Departure, Progress, Sender, exchange, receive, silence};
use crate::environment::Activity;
use crate::metrics::{Event, EventName, Finish, Node, Output, StepProof};
use crate::model::cache_pool::{CachePool, Pooled};
use crate::model::kv_int8::WireRows;
use crate::wire::message::{
    Admit, Done, Introduction, Join, NodeMemory, Open, OpenRole, Probe, Receiving, StepRecord,
};
use crate::wire::socket::{self, SocketFacts, TcpInfo};
use crate::wire::{
    FrameReader, FrameWriter, Kind, Session, Source, Token, WireBytes, WireError, initiate,
};

/// Longest wait for a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Longest silence of a decode node that has all it needs for the next token: above any step of a
/// sane setup, and short enough that a stopped one is noticed.
const SILENCE_TIMEOUT: Duration = Duration::from_secs(60);

/// The same where the decode node prefills itself or serves others first.
const QUEUE_PATIENCE: Duration = Duration::from_secs(600);

/// A segment that was sent again this many times in a row, each time after twice the wait, will not
/// get through.
const LOST_FOR_GOOD: u8 = 4;

/// How a decode node is reached.
pub struct Peer {
    /// `HOST:PORT`.
    pub address: String,
    /// Proof that we may, if set.
    pub token: Option<Token>,
    /// Congestion control to ask for.
    pub congestion_control: Option<String>,
    /// Connections that carry pieces, at least one.
    pub streams: u32,
    /// Where connections start; none for wherever the routes lead.
    pub source: Option<Source>,
}

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
    /// Requests that it had before this one when it admitted it.
    pub waiting_ahead: Option<u32>,
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
    reader: FrameReader<OwnedReadHalf>,
    writer: FrameWriter<OwnedWriteHalf>,
    /// Further connections of the session; they carry pieces alone.
    joined: Vec<Joined>,
    session: Session,
    facts: SocketFacts,
    next_request: u64,
    /// When the last cache that they carried was acknowledged.
    last_transfer: Option<Instant>,
    /// Tokens of the current request that came back so far.
    tokens_back: watch::Sender<u32>,
}

/// A further connection of a session.
pub(super) struct Joined {
    pub(super) reader: FrameReader<OwnedReadHalf>,
    pub(super) writer: FrameWriter<OwnedWriteHalf>,
}

impl Connection {
    /// Connects and agrees with the decode node on version, model, layout and token; then opens
    /// as many further connections as the peer's number of streams asks for.
    pub async fn open(peer: &Peer, ours: &Introduction) -> Result<Self, WireError> {
        let (first, session, facts) = connect(peer, ours).await?;
        let mut joined = Vec::new();
        for stream in 1..peer.streams {
            let (mut connection, own, _) = connect(peer, ours).await?;
            let join = Join {
                session: session.id,
                stream,
            };
            (connection.writer)
                .write_control(Kind::Join, own.id, 0, &join)
                .await?;
            connection.reader.expect_empty(Kind::Ready).await?;
            joined.push(connection);
        }
        Ok(Self {
            reader: first.reader,
            writer: first.writer,
            joined,
            session,
            facts,
            next_request: 1,
            last_transfer: None,
            tokens_back: watch::Sender::new(0),
        })
    }

    /// Bytes sent so far over all connections.
    fn sent(&self) -> WireBytes {
        let joined = self.joined.iter().map(|joined| joined.writer.sent());
        joined.fold(self.writer.sent(), WireBytes::plus)
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
        let infos = readers.map(|reader| socket::tcp_info(reader.inner().as_ref()));
        infos.collect::<Option<_>>().unwrap_or_default()
    }

    /// Send buffer of the first connection as the kernel has tuned it by now, in bytes.
    pub fn send_buffer_bytes(&self) -> Option<u64> {
        let facts = socket::facts(self.reader.inner().as_ref()).ok()?;
        Some(facts.send_buffer_bytes as u64)
    }

    /// The kernel's view of the first connection.
    pub fn tcp_info(&self) -> Option<TcpInfo> {
        socket::tcp_info(self.reader.inner().as_ref())
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
            let header = tokio::time::timeout(SILENCE_TIMEOUT, self.reader.read_header())
                .await
                .unwrap_or(Err(silence(SILENCE_TIMEOUT)))?;
            if header.kind != Kind::Pong {
                return Err(self.reader.unwanted(&header, Kind::Pong).await);
            }
            self.reader.finish_empty(&header)?;
            round_trips.push(sent.elapsed().as_nanos() as u64);
        }
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
        let (answer, proofs) = (answered?, proofs?);
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
            waiting_ahead: answer.waiting_ahead,
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
        let (number, admit) = self.open_request(request, OpenRole::Whole).await?;
        events.push(clock.event(EventName::Admitted));
        let progress = Progress::new(QUEUE_PATIENCE, &self.tokens_back);
        progress.all_sent();
        let (mut received, mut tokens) = (Vec::new(), Vec::new());
        let done = receive(
            &mut self.reader,
            self.session.id,
            number,
            clock,
            &progress,
            &mut received,
            &mut tokens,
        );
        let done = done.await?;
        events.extend(received);
        let answer = RemoteAnswer::new(tokens, done, admit)?;
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
            waiting_ahead: answer.waiting_ahead,
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
        let progress = Progress::new(SILENCE_TIMEOUT, &self.tokens_back);
        let piece_bytes = piece_bytes.min(self.session.peer.limits.max_piece_bytes);
        let sender = Sender::new(
            self.session.id,
            number,
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
        (self.writer)
            .write_control(kind, self.session.id, number, request)
            .await?;
        let admitted = self.reader.expect::<Admit>(Kind::Admit);
        let (_, admit) = (tokio::time::timeout(SILENCE_TIMEOUT, admitted).await)
            .unwrap_or(Err(silence(SILENCE_TIMEOUT)))?;
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
        let patience = match admit.waiting_ahead {
            0 => SILENCE_TIMEOUT,
            _ => QUEUE_PATIENCE,
        };
        let progress = Progress::new(patience, &self.tokens_back);
        let piece_bytes = self.session.peer.limits.max_piece_bytes;
        let sender = Sender::new(
            self.session.id,
            number,
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
        RemoteAnswer::new(tokens, done, admit)
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
            waiting_ahead: None,
        }
    }
}

/// One connection that the decode node has accepted.
async fn connect(
    peer: &Peer,
    ours: &Introduction,
) -> Result<(Joined, Session, SocketFacts), WireError> {
    let congestion = peer.congestion_control.as_deref();
    let source = peer.source.as_ref();
    let (stream, facts) =
        socket::connect(&peer.address, CONNECT_TIMEOUT, congestion, source).await?;
    let (read, write) = stream.into_split();
    let (mut reader, mut writer) = (FrameReader::new(read), FrameWriter::new(write));
    let session = initiate(&mut reader, &mut writer, ours, peer.token.as_ref()).await?;
    Ok((Joined { reader, writer }, session, facts))
}

/// Runs one request wholly on this node.
pub async fn single(node: &PrefillNode, request: &Request) -> anyhow::Result<Outcome> {
    let layout = node.compute.engine().shape().kv_layout(request.kv_dtype);
    let cache = node.pool.take(layout, request.cache_tokens())?;
    let (report, finished) = tokio::sync::oneshot::channel();
    let work = request.clone();
    let clock = Clock::start(Node::Prefill);
    let mut events = vec![clock.event(EventName::RequestStart)];
    node.compute.submit(move |engine| {
        let (mut tokens, mut proofs) = (Vec::new(), Proofs::default());
        let mut emit = |emission| match emission {
            Emission::Event(event) => events.push(event),
            Emission::Token { index, token } => {
                events.push(clock.indexed(EventName::Token, index));
                tokens.push(token);
            }
            Emission::LayerDone(_) => {}
        };
        let outcome = (|| {
            let first = generation::prefill(engine, &work, &cache, clock, &mut proofs, &mut emit)?;
            let never = AtomicBool::new(false);
            generation::decode(
                engine,
                &work,
                &cache,
                first,
                clock,
                &never,
                &mut proofs,
                &mut emit,
            )
        })();
        let _ = report.send(outcome.map(|finish| (finish, events, tokens, proofs.finish())));
    });
    let (finish, events, tokens, steps) = finished.await.context("the compute thread failed")??;
    let output = Output {
        text: node.compute.engine().tokenizer.decode(&tokens)?,
        tokens,
        finish,
        steps,
        sent_cache_digest: None,
        landed_cache_digest: None,
    };
    Ok(Outcome::new(output, events, WireBytes::default()))
}

/// Starts prefill on the compute thread; its emissions end when it does, then the logits of the
/// first token come, to be proven when nothing is timed any more.
fn start_prefill(
    node: &PrefillNode,
    request: &Request,
    cache: &Arc<Pooled>,
    clock: Clock,
) -> (
    UnboundedReceiver<Emission>,
    tokio::sync::oneshot::Receiver<anyhow::Result<Proofs>>,
) {
    let (sender, emissions) = unbounded_channel();
    let (report, prefilled) = tokio::sync::oneshot::channel();
    let (work, cache) = (request.clone(), Arc::clone(cache));
    node.compute.submit(move |engine| {
        let mut proofs = Proofs::default();
        let mut emit = |emission| {
            // The token's time is taken here, where it is known first, not where it is handled.
            if let Emission::Token { index, .. } = emission {
                let event = clock.indexed(EventName::Token, index);
                let _ = sender.send(Emission::Event(event));
            }
            let _ = sender.send(emission);
        };
        let outcome = generation::prefill(engine, &work, &cache, clock, &mut proofs, &mut emit);
        drop((sender, cache));
        let _ = report.send(outcome.map(|_| proofs));
    });
    (emissions, prefilled)
}

/// The answer of a request that needs no decode node.
async fn first_token_alone(
    node: &PrefillNode,
    request: &Request,
    mut emissions: UnboundedReceiver<Emission>,
    events: &mut Vec<Event>,
) -> anyhow::Result<RemoteAnswer> {
    let mut tokens = Vec::new();
    while let Some(emission) = emissions.recv().await {
        match emission {
            Emission::Event(event) => events.push(event),
            Emission::Token { token, .. } => tokens.push(token),
            Emission::LayerDone(_) => {}
        }
    }
    let ended = |token: &u32| request.ends_with(*token, node.compute.engine());
    Ok(RemoteAnswer {
        finish: match tokens.iter().any(ended) {
            true => Finish::EndOfSequence,
            false => Finish::Length,
        },
        tokens,
        steps: Vec::new(),
        remote_events: Vec::new(),
        cache_digest: None,
        memory: None,
        activity: None,
        waiting_ahead: None,
    })
}

/// What came back from the decode node.
struct RemoteAnswer {
    tokens: Vec<u32>,
    finish: Finish,
    steps: Vec<StepProof>,
    remote_events: Vec<Event>,
    cache_digest: Option<String>,
    memory: Option<NodeMemory>,
    activity: Option<Activity>,
    waiting_ahead: Option<u32>,
}

impl RemoteAnswer {
    fn new(tokens: Vec<u32>, done: Done, admit: Admit) -> anyhow::Result<Self> {
        let finish = match done.finish.as_str() {
            "length" => Finish::Length,
            "eos" => Finish::EndOfSequence,
            other => anyhow::bail!(
                "the decode node ended with {other:?}: build both nodes from one commit"
            ),
        };
        let proof = |step: StepRecord| StepProof {
            digest: step.digest,
            top: step.top,
            proof_ns: step.digest_ns,
        };
        Ok(Self {
            tokens,
            finish,
            steps: done.steps.into_iter().map(proof).collect(),
            remote_events: done.events.into_iter().filter_map(from_wire).collect(),
            cache_digest: done.cache_digest,
            memory: done.memory,
            // A decode node of another version may tell it in other words.
            activity: serde_json::from_value(done.activity).ok(),
            waiting_ahead: Some(admit.waiting_ahead),
        })
    }
}

/// A decode node's event; those of kinds that this build does not know are left out.
fn from_wire(event: crate::wire::message::Event) -> Option<Event> {
    Some(Event {
        clock: Node::Decode,
        name: serde_json::from_value(event.name.into()).ok()?,
        layer: event.layer,
        chunk: event.chunk,
        token_start: event.token_start,
        stream: event.stream,
        t_ns: event.t_ns,
    })
}
