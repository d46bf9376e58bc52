//! The prefill node's side of the wire while a request is under way: pieces out over every
//! connection of the session, acknowledgements and tokens in.
//!
//! Compute fills the queue and never waits for it; a connection takes the next piece when it is
//! free, and reads it from the cache where it lies. A piece that goes as int8 is quantised then,
//! into a buffer of its connection.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::ops::Range;
use std::time::{Duration, Instant};

use futures_util::future::try_join_all;
use tokio::sync::Notify;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::sync::watch;

use super::generation::{Clock, Emission, Request};
use super::prefill::Joined;
use crate::metrics::{Event, EventName};
use crate::model::cache_pool::Pooled;
use crate::model::kv_int8::{WireRows, quantise};
use crate::wire::handshake::HANDSHAKE_TIMEOUT;
use crate::wire::message::{Done, Start, TokenMessage};
use crate::wire::{
    FrameReader, FrameWriter, Header, Kind, MAX_PIECE_BYTES, PieceHeader, ReadHalf, WireError,
    WriteHalf,
};

/// When the parts of a cache leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Departure {
    /// All of them once the first token is known.
    AfterPrefill,
    /// Each layer of each chunk once it is computed.
    BehindPrefill,
}

/// How long a decode node may be silent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patience {
    /// In the handshake.
    pub handshake: Duration,
    /// When it has all it needs for the next token.
    pub silence: Duration,
    /// The same where it prefills itself or serves others too.
    pub queue: Duration,
    /// When a piece is under way and none is acknowledged.
    pub acknowledgement: Duration,
}

impl Patience {
    /// Above any step of a sane setup, and short enough that a stopped node is noticed. A piece of
    /// 1 MiB takes 9 s at 1 Mbit/s, and TCP has sent a lost segment again several times by 15 s.
    pub const USUAL: Patience = Patience {
        handshake: HANDSHAKE_TIMEOUT,
        silence: Duration::from_secs(60),
        queue: Duration::from_secs(600),
        acknowledgement: Duration::from_secs(15),
    };
}

/// How far sending is, for the receiver's patience.
#[derive(Debug)]
pub(super) struct Progress {
    /// For the next token.
    silence: Duration,
    acknowledgement: Duration,
    all_sent: Cell<bool>,
    /// Pieces offered and not acknowledged, over all connections.
    unacknowledged: Cell<usize>,
    last_sign_of_life: Cell<Instant>,
    /// For whoever waits for tokens of this request.
    tokens_back: watch::Sender<u32>,
}

impl Progress {
    pub(super) fn new(
        silence: Duration,
        patience: Patience,
        tokens_back: &watch::Sender<u32>,
    ) -> Self {
        tokens_back.send_replace(0);
        Self {
            tokens_back: tokens_back.clone(),
            silence,
            acknowledgement: patience.acknowledgement,
            all_sent: Cell::new(false),
            unacknowledged: Cell::new(0),
            last_sign_of_life: Cell::new(Instant::now()),
        }
    }

    fn alive(&self) {
        self.last_sign_of_life.set(Instant::now());
    }

    pub(super) fn all_sent(&self) {
        self.alive();
        self.all_sent.set(true);
    }

    fn offered(&self) {
        if self.unacknowledged.get() == 0 {
            self.alive();
        }
        self.unacknowledged.update(|pieces| pieces + 1);
    }

    fn acknowledged(&self) {
        self.alive();
        self.unacknowledged
            .update(|pieces| pieces.saturating_sub(1));
    }

    /// Resolves when the decode node owes an acknowledgement or a token and has been silent for
    /// too long.
    async fn silence(&self) -> WireError {
        loop {
            let owes_acknowledgement = self.unacknowledged.get() > 0;
            let (what, after) = match owes_acknowledgement {
                true => (
                    "waiting for a piece to be acknowledged",
                    self.acknowledgement,
                ),
                false => ("waiting for the decode node", self.silence),
            };
            let deadline = self.last_sign_of_life.get() + after;
            if (self.all_sent.get() || owes_acknowledgement) && Instant::now() >= deadline {
                return WireError::Timeout {
                    what,
                    after,
                    flag: None,
                };
            }
            // Where it owes nothing the deadline may be past already; look again in a while.
            let soon = Instant::now() + after.min(Duration::from_secs(1));
            tokio::time::sleep_until(deadline.max(soon).into()).await;
        }
    }
}

/// What one request still has to send; every connection takes from it when it is free.
#[derive(Default)]
pub(super) struct Queue {
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

    pub(super) fn complete(&self) {
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

/// An answer that is due from the decode node.
#[derive(Clone, Debug)]
pub(super) struct Answering {
    pub(super) session: u64,
    /// The request's.
    pub(super) number: u64,
    /// Positions of the tokens that may come, all or up to the end of the sequence.
    pub(super) tokens: Range<u32>,
}

/// Sends one request's cache and its first token.
pub(super) struct Sender<'a> {
    session: u64,
    number: u64,
    /// Tokens of the answer, the first one included; 0 where none is due.
    output_tokens: u32,
    cache: &'a Pooled,
    rows: WireRows,
    piece_tokens: usize,
    clock: Clock,
    progress: &'a Progress,
    pub(super) queue: Queue,
    pub(super) events: RefCell<Vec<Event>>,
    pub(super) first_token: Cell<Option<u32>>,
    /// Pieces on joined connections that are not acknowledged.
    awaited: Cell<usize>,
}

impl<'a> Sender<'a> {
    /// Of one request; `piece_bytes` is what the peer takes in one piece.
    #[expect(
        clippy::too_many_arguments,
        reason = "all of what a request is on the wire"
    )]
    pub(super) fn new(
        session: u64,
        number: u64,
        output_tokens: u32,
        cache: &'a Pooled,
        rows: WireRows,
        piece_bytes: u64,
        clock: Clock,
        progress: &'a Progress,
    ) -> Self {
        let piece_bytes = usize::try_from(piece_bytes.min(MAX_PIECE_BYTES)).unwrap_or(usize::MAX);
        Self {
            session,
            number,
            output_tokens,
            cache,
            rows,
            // The handshake refuses a limit below one token.
            piece_tokens: (piece_bytes / rows.row_bytes(cache.layout())).max(1),
            clock,
            progress,
            queue: Queue::default(),
            events: RefCell::default(),
            first_token: Cell::default(),
            awaited: Cell::default(),
        }
    }

    /// What is due from the decode node: all but the first token.
    fn answering(&self) -> Answering {
        Answering {
            session: self.session,
            number: self.number,
            tokens: 1..self.output_tokens,
        }
    }

    /// Turns what compute tells into pieces to send.
    pub(super) async fn feed(
        &self,
        request: &Request,
        departure: Departure,
        mut emissions: UnboundedReceiver<Emission>,
    ) -> anyhow::Result<()> {
        while let Some(emission) = emissions.recv().await {
            match emission {
                Emission::Event(event) => self.events.borrow_mut().push(event),
                Emission::LayerDone(done) => match departure {
                    Departure::AfterPrefill => {}
                    Departure::BehindPrefill => self.enqueue(done.layer, done.tokens),
                },
                Emission::Token { token, .. } => {
                    self.first_token.set(Some(token));
                    self.queue.start(token);
                    if departure == Departure::AfterPrefill {
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
    pub(super) fn enqueue(&self, layer: usize, tokens: Range<usize>) {
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
    async fn send(&self, stream: u32, writer: &mut FrameWriter<WriteHalf>) -> anyhow::Result<()> {
        let mut quantised = Vec::new();
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
                    let mut bytes = self.cache.read(piece.layer as usize, tokens)?;
                    self.note(EventName::PieceOffered, &piece, stream);
                    if self.rows == WireRows::Int8 {
                        quantise(self.cache.layout(), bytes, &mut quantised);
                        bytes = &quantised;
                    }
                    self.progress.offered();
                    self.awaited
                        .update(|awaited| awaited + usize::from(stream != 0));
                    writer.write_piece(piece, bytes).await?;
                    self.note(EventName::PieceSent, &piece, stream);
                    // A write that the socket swallows whole waits for nothing: without this, one
                    // connection would take all that fits into its buffer, and the others none.
                    tokio::task::yield_now().await;
                }
            }
        }
        Ok(())
    }

    /// Reads acknowledgements from a joined connection until it fails or is no longer asked.
    async fn acknowledgements(
        &self,
        stream: u32,
        reader: &mut FrameReader<ReadHalf>,
    ) -> anyhow::Result<()> {
        loop {
            let header = reader.read_header().await?;
            let due = self.awaited.get() > 0
                && (header.session, header.request) == (self.session, self.number);
            if header.kind != Kind::Ack || !due {
                return Err(reader.unwanted(&header, Kind::Ack).await.into());
            }
            reader.finish_empty(&header)?;
            self.note(EventName::PieceAcknowledged, &header.run(), stream);
            self.progress.acknowledged();
            self.awaited.update(|awaited| awaited - 1);
            self.queue.changed.notify_waiters();
        }
    }

    /// Waits for what joined connections still have to acknowledge: DONE comes over the first one
    /// and may overtake them, and what is left behind would be taken for the next request's.
    async fn all_acknowledged(&self) -> anyhow::Result<()> {
        while self.awaited.get() > 0 {
            tokio::select! {
                () = self.queue.changed.notified() => {}
                error = self.progress.silence() => return Err(error.into()),
            }
        }
        Ok(())
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

/// Reads acknowledgements and tokens until the decode node is done. Gives DONE, the events and the
/// tokens.
pub(super) async fn receive(
    reader: &mut FrameReader<ReadHalf>,
    mut answering: Answering,
    clock: Clock,
    progress: &Progress,
) -> anyhow::Result<(Done, Vec<Event>, Vec<u32>)> {
    let (mut events, mut tokens) = (Vec::new(), Vec::new());
    let Answering {
        session, number, ..
    } = answering;
    loop {
        let header: Header = tokio::select! {
            header = reader.read_header() => header?,
            error = progress.silence() => return Err(error.into()),
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
            Kind::Ack if progress.unacknowledged.get() > 0 => {
                reader.finish_empty(&header)?;
                progress.acknowledged();
                events.push(Event {
                    layer: Some(header.layer),
                    token_start: Some(header.token_start),
                    stream: Some(0),
                    ..clock.event(EventName::PieceAcknowledged)
                });
            }
            Kind::Token => {
                let message: TokenMessage = reader.read_control(&header).await?;
                let due = answering.tokens.next();
                anyhow::ensure!(
                    due == Some(message.index),
                    "the decode node sent token {} where {} is due: build both nodes from one \
                     commit",
                    message.index,
                    due.map_or("none".to_owned(), |index| index.to_string()),
                );
                events.push(clock.indexed(EventName::Token, message.index));
                tokens.push(message.token);
                progress.tokens_back.send_modify(|count| *count += 1);
            }
            Kind::Done => {
                let done = reader.read_control(&header).await?;
                return Ok((done, events, tokens));
            }
            _ => return Err(reader.unwanted(&header, Kind::Token).await.into()),
        }
    }
}

/// Sends what the queue gets over all connections of the session and collects what comes back,
/// until the decode node is done; `feed` fills the queue. Gives DONE, the events and the tokens.
pub(super) async fn exchange(
    sender: &Sender<'_>,
    reader: &mut FrameReader<ReadHalf>,
    writer: &mut FrameWriter<WriteHalf>,
    joined: &mut [Joined],
    feed: impl Future<Output = anyhow::Result<()>>,
) -> anyhow::Result<(Done, Vec<Event>, Vec<u32>)> {
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
        let answered = tokio::try_join!(
            feed,
            all_sent,
            receive(reader, sender.answering(), sender.clock, sender.progress),
        )?;
        sender.all_acknowledged().await?;
        anyhow::Ok(answered.2)
    };
    tokio::select! {
        answered = answered => answered,
        // These end only by failing, or at once where there are none.
        Err(error) = acknowledged => Err(error),
    }
}

/// The error for a decode node that was silent for this long.
pub(super) fn silence(after: Duration) -> WireError {
    WireError::Timeout {
        what: "waiting for the decode node",
        after,
        flag: None,
    }
}
