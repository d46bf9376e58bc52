//! The prefill node's end of a request: prefill here, ship the cache, collect the tokens.
//!
//! Compute pushes what it does into an unbounded queue and never waits for the network. Pieces
//! are read from the cache where they lie and written to the socket without a copy.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use anyhow::Context;
use futures_util::future::try_join_all;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::Notify;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use super::compute::Compute;
use super::generation::{self, Clock, Emission, Proofs, Request};
use crate::metrics::{Event, EventName, Finish, Node, Output, StepProof, Transfer};
use crate::model::cache_pool::{CachePool, Pooled};
use crate::wire::message::{
    Admit, Done, Introduction, Join, Open, OpenRole, Probe, Start, StepRecord, TokenMessage,
};
use crate::wire::socket::{self, SocketFacts, TcpInfo};
use crate::wire::{
    FrameReader, FrameWriter, Header, Kind, PieceHeader, Session, Token, WireBytes, WireError,
    initiate,
};

/// Longest wait for a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Longest silence of a decode node that has all it needs for the next token: above any step of a
/// sane setup, and short enough that a stopped one is noticed.
const SILENCE_TIMEOUT: Duration = Duration::from_secs(60);

/// The same where the decode node prefills itself or serves others first.
const QUEUE_PATIENCE: Duration = Duration::from_secs(600);

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
}

/// A further connection of a session.
struct Joined {
    reader: FrameReader<OwnedReadHalf>,
    writer: FrameWriter<OwnedWriteHalf>,
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

    /// The kernel's view of the connection.
    pub fn tcp_info(&self) -> Option<TcpInfo> {
        socket::tcp_info(self.reader.inner().as_ref())
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
        transfer: Transfer,
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
                self.answer(request, transfer, &cache, clock, emissions, &mut events)
                    .await
            }
        };
        // Even of a request that failed: the next one must not queue behind its prefill.
        let proofs = prefilled.await.context("the compute thread failed")?;
        let (answer, proofs) = (answered?, proofs?);
        let sent = self.sent().since(before);
        let sent_cache_digest = match answer.cache_digest {
            Some(_) => Some(cache.digest(request.prompt.len())?.to_hex()[..32].to_string()),
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
        Ok(Outcome::new(output, events, sent))
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
        let progress = Progress::new(QUEUE_PATIENCE);
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
        let answer = RemoteAnswer::new(tokens, done)?;
        events.extend(answer.remote_events);
        let output = Output {
            text: node.compute.engine().tokenizer.decode(&answer.tokens)?,
            tokens: answer.tokens,
            finish: answer.finish,
            steps: answer.steps,
            sent_cache_digest: None,
            landed_cache_digest: None,
        };
        Ok(Outcome::new(output, events, self.sent().since(before)))
    }

    /// Sends a made-up cache and waits until all of it has landed; gives the events of both nodes
    /// and the bytes sent. `piece_bytes` bounds a piece.
    pub async fn probe(
        &mut self,
        cache: &Pooled,
        probe: Probe,
        piece_bytes: u64,
    ) -> anyhow::Result<(Vec<Event>, WireBytes)> {
        let before = self.sent();
        let (session, number) = (self.session.id, self.next_request);
        self.next_request += 1;
        (self.writer)
            .write_control(Kind::Probe, session, number, &probe)
            .await?;
        let admitted = self.reader.expect::<Admit>(Kind::Admit);
        (tokio::time::timeout(SILENCE_TIMEOUT, admitted).await)
            .unwrap_or(Err(silence(SILENCE_TIMEOUT)))?;
        let clock = Clock::start(Node::Prefill);
        let progress = Progress::new(SILENCE_TIMEOUT);
        let mut limit = self.session.peer.clone();
        limit.limits.max_piece_bytes = limit.limits.max_piece_bytes.min(piece_bytes);
        let sender = Sender {
            session,
            number,
            cache,
            piece_tokens: piece_tokens(cache.layout().row_bytes(), &limit),
            clock,
            progress: &progress,
            queue: Queue::default(),
            events: RefCell::default(),
            first_token: Cell::new(None),
        };
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
        .await?;
        let mut events = sender.events.into_inner();
        events.append(&mut received);
        events.extend(done.events.into_iter().filter_map(from_wire));
        Ok((events, self.sent().since(before)))
    }

    /// Announces a request and waits until the decode node has memory for it.
    async fn open_request(
        &mut self,
        request: &Request,
        role: OpenRole,
    ) -> Result<(u64, Admit), WireError> {
        let number = self.next_request;
        self.next_request += 1;
        let open = Open {
            prompt_tokens: request.prompt.clone(),
            output_tokens: request.output_tokens,
            kv_dtype: request.kv_dtype.into(),
            chunk_tokens: request.chunk_tokens,
            ignore_eos: request.ignore_eos,
            role,
        };
        (self.writer)
            .write_control(Kind::Open, self.session.id, number, &open)
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
        transfer: Transfer,
        cache: &Arc<Pooled>,
        clock: Clock,
        emissions: UnboundedReceiver<Emission>,
        events: &mut Vec<Event>,
    ) -> anyhow::Result<RemoteAnswer> {
        let (number, admit) = self.open_request(request, OpenRole::Decode).await?;
        events.push(clock.event(EventName::Admitted));
        let session = self.session.id;
        let progress = Progress::new(match admit.waiting_ahead {
            0 => SILENCE_TIMEOUT,
            _ => QUEUE_PATIENCE,
        });
        let sender = Sender {
            session,
            number,
            cache,
            piece_tokens: piece_tokens(cache.layout().row_bytes(), &self.session.peer),
            clock,
            progress: &progress,
            queue: Queue::default(),
            events: RefCell::default(),
            first_token: Cell::new(None),
        };
        let feed = sender.feed(request, transfer, emissions);
        let (done, mut received, mut tokens) = exchange(
            &sender,
            &mut self.reader,
            &mut self.writer,
            &mut self.joined,
            feed,
        )
        .await?;
        tokens.splice(0..0, sender.first_token.get());
        events.append(&mut sender.events.into_inner());
        events.append(&mut received);
        RemoteAnswer::new(tokens, done)
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
        }
    }
}

/// Sends what the queue gets over all connections of the session and collects what comes back,
/// until the decode node is done; `feed` fills the queue. Gives DONE, the events and the tokens.
async fn exchange(
    sender: &Sender<'_>,
    reader: &mut FrameReader<OwnedReadHalf>,
    writer: &mut FrameWriter<OwnedWriteHalf>,
    joined: &mut [Joined],
    feed: impl Future<Output = anyhow::Result<()>>,
) -> anyhow::Result<(Done, Vec<Event>, Vec<u32>)> {
    let (mut received, mut tokens) = (Vec::new(), Vec::new());
    let (mut writers, mut readers) = (vec![(0, writer)], Vec::new());
    for (stream, joined) in (1..).zip(joined) {
        writers.push((stream, &mut joined.writer));
        readers.push((stream, &mut joined.reader));
    }
    let all_sent = async {
        let streams = writers
            .into_iter()
            .map(|(i, writer)| sender.send(i, writer));
        try_join_all(streams).await?;
        sender.progress.all_sent();
        anyhow::Ok(())
    };
    let acknowledged =
        try_join_all((readers.into_iter()).map(|(i, reader)| sender.acknowledgements(i, reader)));
    let answered = async {
        tokio::try_join!(
            feed,
            all_sent,
            receive(
                reader,
                sender.session,
                sender.number,
                sender.clock,
                sender.progress,
                &mut received,
                &mut tokens
            ),
        )
    };
    let done = tokio::select! {
        answered = answered => answered?.2,
        // These end only by failing, or at once where there are none.
        Err(error) = acknowledged => return Err(error),
    };
    Ok((done, received, tokens))
}

/// One connection that the decode node has accepted.
async fn connect(
    peer: &Peer,
    ours: &Introduction,
) -> Result<(Joined, Session, SocketFacts), WireError> {
    let congestion = peer.congestion_control.as_deref();
    let (stream, facts) = socket::connect(&peer.address, CONNECT_TIMEOUT, congestion).await?;
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

fn silence(after: Duration) -> WireError {
    WireError::Timeout {
        what: "waiting for the decode node",
        after,
    }
}

/// Tokens of one layer that fit a piece of the size that both nodes take.
fn piece_tokens(row_bytes: usize, peer: &Introduction) -> usize {
    let limit = crate::wire::MAX_PIECE_BYTES.min(peer.limits.max_piece_bytes);
    // The handshake refuses a limit below one token.
    (usize::try_from(limit).unwrap_or(usize::MAX) / row_bytes).max(1)
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
    })
}

/// How far sending is, for the receiver's patience.
#[derive(Debug)]
struct Progress {
    patience: Duration,
    all_sent: Cell<bool>,
    last_sign_of_life: Cell<Instant>,
}

impl Progress {
    fn new(patience: Duration) -> Self {
        Self {
            patience,
            all_sent: Cell::new(false),
            last_sign_of_life: Cell::new(Instant::now()),
        }
    }

    fn alive(&self) {
        self.last_sign_of_life.set(Instant::now());
    }

    fn all_sent(&self) {
        self.alive();
        self.all_sent.set(true);
    }

    /// Resolves when the decode node has all it needs and has been silent for too long.
    async fn silence(&self) {
        loop {
            let deadline = self.last_sign_of_life.get() + self.patience;
            if self.all_sent.get() && Instant::now() >= deadline {
                return;
            }
            // Before all is sent the deadline may be past already; look again in a while.
            let soon = Instant::now() + Duration::from_secs(1);
            tokio::time::sleep_until(deadline.max(soon).into()).await;
        }
    }
}

/// What one request still has to send; every connection takes from it when it is free.
#[derive(Default)]
struct Queue {
    start: Cell<Option<u32>>,
    pieces: RefCell<VecDeque<PieceHeader>>,
    complete: Cell<bool>,
    changed: Notify,
}

/// Something to send.
enum Outgoing {
    /// The first token, for the session's first connection.
    Start(u32),
    /// Part of the cache, for any.
    Piece(PieceHeader),
}

impl Queue {
    fn push(&self, piece: PieceHeader) {
        self.pieces.borrow_mut().push_back(piece);
        self.changed.notify_waiters();
    }

    fn start(&self, token: u32) {
        self.start.set(Some(token));
        self.changed.notify_waiters();
    }

    fn complete(&self) {
        self.complete.set(true);
        self.changed.notify_waiters();
    }

    /// What connection `stream` sends next; none when all is sent or being sent.
    async fn next(&self, stream: u32) -> Option<Outgoing> {
        loop {
            // All users are on one thread: nothing can change between here and the wait.
            if stream == 0
                && let Some(token) = self.start.take()
            {
                return Some(Outgoing::Start(token));
            }
            if let Some(piece) = self.pieces.borrow_mut().pop_front() {
                return Some(Outgoing::Piece(piece));
            }
            if self.complete.get() {
                return None;
            }
            self.changed.notified().await;
        }
    }
}

/// Sends one request's cache and its first token.
struct Sender<'a> {
    session: u64,
    number: u64,
    cache: &'a Pooled,
    piece_tokens: usize,
    clock: Clock,
    progress: &'a Progress,
    queue: Queue,
    events: RefCell<Vec<Event>>,
    first_token: Cell<Option<u32>>,
}

impl Sender<'_> {
    /// Turns what compute tells into pieces to send.
    async fn feed(
        &self,
        request: &Request,
        transfer: Transfer,
        mut emissions: UnboundedReceiver<Emission>,
    ) -> anyhow::Result<()> {
        while let Some(emission) = emissions.recv().await {
            match emission {
                Emission::Event(event) => self.events.borrow_mut().push(event),
                Emission::LayerDone(done) => match transfer {
                    Transfer::Bulk => {}
                    Transfer::Layered => self.enqueue(done.layer, done.tokens),
                },
                Emission::Token { token, .. } => {
                    self.first_token.set(Some(token));
                    self.queue.start(token);
                    if transfer == Transfer::Bulk {
                        for layer in 0..self.cache.layout().n_layers {
                            self.enqueue(layer, 0..request.prompt.len());
                        }
                    }
                }
            }
        }
        self.queue.complete();
        anyhow::ensure!(
            self.first_token.get().is_some(),
            "prefill ended without a token"
        );
        Ok(())
    }

    /// Queues tokens of a layer in pieces of the size that both nodes take.
    fn enqueue(&self, layer: usize, tokens: Range<usize>) {
        for start in tokens.clone().step_by(self.piece_tokens) {
            let end = tokens.end.min(start + self.piece_tokens);
            self.queue.push(PieceHeader {
                session: self.session,
                request: self.number,
                layer: layer as u32,
                token_start: start as u32,
                token_count: (end - start) as u32,
            });
        }
    }

    /// Sends over one connection what it takes from the queue, until there is no more.
    async fn send(
        &self,
        stream: u32,
        writer: &mut FrameWriter<OwnedWriteHalf>,
    ) -> anyhow::Result<()> {
        while let Some(next) = self.queue.next(stream).await {
            match next {
                Outgoing::Start(first_token) => {
                    let start = Start { first_token };
                    writer
                        .write_control(Kind::Start, self.session, self.number, &start)
                        .await?;
                }
                Outgoing::Piece(piece) => {
                    let start = piece.token_start as usize;
                    let tokens = start..start + piece.token_count as usize;
                    let bytes = self.cache.read(piece.layer as usize, tokens)?;
                    self.note(EventName::PieceOffered, &piece, stream);
                    writer.write_piece(piece, bytes).await?;
                    self.note(EventName::PieceSent, &piece, stream);
                }
            }
        }
        Ok(())
    }

    /// Reads acknowledgements from a joined connection until it fails or is no longer asked.
    async fn acknowledgements(
        &self,
        stream: u32,
        reader: &mut FrameReader<OwnedReadHalf>,
    ) -> anyhow::Result<()> {
        loop {
            let header = reader.read_header().await?;
            self.progress.alive();
            if header.kind != Kind::Ack || header.session != self.session {
                return Err(reader.unwanted(&header, Kind::Ack).await.into());
            }
            reader.finish_empty(&header)?;
            self.note(EventName::PieceAcknowledged, &header.run(), stream);
        }
    }

    fn note(&self, name: EventName, piece: &PieceHeader, stream: u32) {
        self.events.borrow_mut().push(Event {
            layer: Some(piece.layer),
            token_start: Some(piece.token_start),
            stream: Some(stream),
            ..self.clock.event(name)
        });
    }
}

/// Reads acknowledgements and tokens until the decode node is done.
async fn receive(
    reader: &mut FrameReader<OwnedReadHalf>,
    session: u64,
    number: u64,
    clock: Clock,
    progress: &Progress,
    events: &mut Vec<Event>,
    tokens: &mut Vec<u32>,
) -> anyhow::Result<Done> {
    loop {
        let header: Header = tokio::select! {
            header = reader.read_header() => header?,
            () = progress.silence() => return Err(silence(progress.patience).into()),
        };
        progress.alive();
        if (header.session, header.request) != (session, number) {
            anyhow::bail!(
                "the decode node answers request {} instead of {number}: build both nodes from \
                 one commit",
                header.request
            );
        }
        match header.kind {
            Kind::Ack => {
                reader.finish_empty(&header)?;
                events.push(Event {
                    layer: Some(header.layer),
                    token_start: Some(header.token_start),
                    stream: Some(0),
                    ..clock.event(EventName::PieceAcknowledged)
                });
            }
            Kind::Token => {
                let message: TokenMessage = reader.read_control(&header).await?;
                events.push(clock.indexed(EventName::Token, message.index));
                tokens.push(message.token);
            }
            Kind::Done => {
                return Ok(reader.read_control(&header).await?);
            }
            _ => return Err(reader.unwanted(&header, Kind::Token).await.into()),
        }
    }
}

/// What came back from the decode node.
struct RemoteAnswer {
    tokens: Vec<u32>,
    finish: Finish,
    steps: Vec<StepProof>,
    remote_events: Vec<Event>,
    cache_digest: Option<String>,
}

impl RemoteAnswer {
    fn new(tokens: Vec<u32>, done: Done) -> anyhow::Result<Self> {
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
