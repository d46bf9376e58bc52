//! The decode node: takes caches from prefill nodes, decodes, streams tokens back.
//!
//! One task a connection, one compute thread for all; several peers may be connected and their
//! requests take turns, a decode step each. A connection that breaks a rule is told why and closed,
//! and the node goes on. `limits` is what peers may make it hold and wait for, `accepting` takes
//! their connections, `admission` their requests, `joined` serves a session's further connections,
//! `probe` the link without a model, `answer` is what is gathered of one answer, `in_flight` counts
//! the requests.

mod accepting;
mod admission;
mod answer;
mod in_flight;
mod joined;
mod limits;
mod probe;

pub use accepting::serve;
pub use in_flight::InFlight;
pub use limits::Limits;
pub use probe::probe_layout;

use std::net::SocketAddr;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::sync::watch;
use tokio::time::timeout;

use self::answer::Answer;
use self::in_flight::Place;
use super::compute::Compute;
use super::generation::{Clock, Emission, Generation, Request};
use super::reception::{Reception, Sessions, SharedSession};
use crate::environment::{Activity, process_peak_rss_bytes};
use crate::metrics::{Event, EventName, Node};
use crate::model::cache_pool::CachePool;
use crate::model::engine::Engine;
use crate::wire::handshake::refuse;
use crate::wire::message::{
    Admit, Failed, Introduction, Join, NodeMemory, Open, OpenRole, Probe, Refuse, RefuseCode,
    Start, TokenMessage,
};
use crate::wire::{FrameReader, FrameWriter, Header, Kind, Session, Token, Transport, WireError};

/// What a decode node needs to serve.
pub struct DecodeNode {
    /// Runs the model; none on a node that only measures the link.
    pub compute: Option<Compute>,
    /// Memory for requests.
    pub pool: Arc<CachePool>,
    /// Resident memory when it was ready to serve.
    pub loaded_bytes: Option<u64>,
    /// What the node says of itself.
    pub introduction: Introduction,
    /// Demanded of peers, if set.
    pub token: Option<Token>,
    /// What its connections are made of.
    pub transport: Transport,
    /// Congestion control to ask for.
    pub congestion_control: Option<String>,
    /// Negative control: flip a bit of this layer after its checksums were verified.
    pub corrupt_layer: Option<usize>,
    /// Told of what happens; must not block.
    pub observer: Box<dyn Fn(Served) + Send + Sync>,
    /// What it takes from its peers.
    pub limits: Limits,
    /// Requests that are served now.
    pub in_flight: InFlight,
    /// What further connections can join.
    pub sessions: Sessions,
    /// Requests of all peers that were admitted so far.
    pub admitted: AtomicU64,
}

impl DecodeNode {
    fn activity(&self) -> Activity {
        Activity {
            requests: Some(self.admitted.load(Ordering::Relaxed)),
            ..Activity::now()
        }
    }

    fn memory(&self) -> NodeMemory {
        NodeMemory {
            loaded_bytes: self.loaded_bytes,
            peak_bytes: process_peak_rss_bytes(),
            cache_bytes: self.pool.held_bytes() as u64,
        }
    }
}

/// Something that a decode node did.
#[derive(Debug)]
pub enum Served {
    /// A peer connected and was accepted.
    Connected {
        /// Where from.
        peer: SocketAddr,
        /// Host name that it gave.
        host: String,
    },
    /// A connection ended; `error` unless the peer left between requests.
    Disconnected {
        /// Where from.
        peer: SocketAddr,
        /// Why, unless the peer simply left.
        error: Option<String>,
    },
    /// A request was finished.
    Request(ServedRequest),
}

/// A finished request, on the decode node's clock.
#[derive(Clone, Debug)]
pub struct ServedRequest {
    /// Where from.
    pub peer: SocketAddr,
    /// The peer's number for it.
    pub number: u64,
    /// Prompt length.
    pub prompt_tokens: usize,
    /// Bytes of cache received; 0 where this node prefilled itself.
    pub kv_bytes: u64,
    /// First piece landed to last piece landed.
    pub receive_ns: u64,
    /// First step started to last step ended.
    pub decode_ns: u64,
    /// The answer, the first token included.
    pub tokens: Vec<u32>,
}

/// One accepted connection.
struct Peer<'a, R, W> {
    node: &'a DecodeNode,
    peer: SocketAddr,
    shared: Arc<SharedSession>,
    session: Session,
    reader: FrameReader<R>,
    writer: FrameWriter<W>,
    /// Room for a piece that has to be turned back into rows of the cache.
    quantised: Vec<u8>,
    /// Whether the node finishes what it has and takes nothing new.
    draining: watch::Receiver<bool>,
}

/// Why a request ended early.
#[derive(Debug)]
pub enum Abort {
    /// The peer takes it back; the connection goes on.
    Cancelled,
    /// The connection is of no more use.
    Fatal(WireError),
    /// The peer broke a rule or the model failed: it is told, then the connection is closed.
    Failed(String),
    /// A piece was damaged on its way: as `Failed`.
    Damaged(String),
}

impl Abort {
    /// What the session's first connection tells the peer when a joined one ends like this.
    fn as_lost(&self, stream: u32) -> Self {
        match self {
            Self::Damaged(reason) => Self::Damaged(reason.clone()),
            Self::Failed(reason) => Self::Failed(reason.clone()),
            Self::Fatal(error) => Self::Failed(format!("connection {stream}: {error}")),
            Self::Cancelled => Self::Failed(format!("connection {stream} ended")),
        }
    }
}

impl From<WireError> for Abort {
    fn from(error: WireError) -> Self {
        match error {
            WireError::Checksum { .. } => Self::Damaged(error.to_string()),
            // A rule was broken that the peer can be told of.
            _ if error.refuse_code().is_some() => Self::Failed(error.to_string()),
            _ => Self::Fatal(error),
        }
    }
}

impl<R: AsyncRead + Unpin, W: AsyncWrite + Unpin> Peer<'_, R, W> {
    async fn serve_requests(&mut self) -> Result<(), Abort> {
        loop {
            let header = tokio::select! {
                biased;
                Ok(_) = self.draining.wait_for(|draining| *draining) => None,
                header = timeout(self.node.limits.idle, self.reader.read_header()) => Some(header),
            };
            let Some(header) = header else {
                let (code, reason) = (RefuseCode::Draining, DRAINING.to_owned());
                refuse(&mut self.reader, &mut self.writer, Refuse { code, reason }).await;
                return Ok(());
            };
            let header = header
                .unwrap_or(Err(self.idle()))
                .and_then(|h| self.of_session(h));
            let header = self.or_refuse(header).await?;
            match header.kind {
                Kind::Open => {
                    let open = self.reader.read_control(&header).await;
                    let open: Open = self.or_refuse(open).await?;
                    self.serve_request(header.request, open).await?;
                }
                Kind::Probe => {
                    let probe = self.reader.read_control(&header).await;
                    let probe: Probe = self.or_refuse(probe).await?;
                    self.serve_probe(header.request, probe).await?;
                }
                Kind::Join => {
                    let join = self.reader.read_control(&header).await;
                    let join: Join = self.or_refuse(join).await?;
                    return self.join(join).await;
                }
                // A cancel that crossed with the end of its request.
                Kind::Cancel => self.reader.finish_empty(&header)?,
                Kind::Ping => self.pong(&header).await?,
                _ => {
                    let unwanted = self.reader.unwanted(&header, Kind::Open).await;
                    return self.or_refuse(Err(unwanted)).await;
                }
            }
        }
    }

    /// Tells a peer that broke a rule between two requests what it did.
    async fn or_refuse<T>(&mut self, outcome: Result<T, WireError>) -> Result<T, Abort> {
        if let Err(error) = &outcome
            && let Some(code) = error.refuse_code()
        {
            let reason = error.to_string();
            refuse(&mut self.reader, &mut self.writer, Refuse { code, reason }).await;
        }
        Ok(outcome?)
    }

    /// The next header of a peer that may take its time, but not for ever.
    async fn next_header(&mut self) -> Result<Header, WireError> {
        let header = timeout(self.node.limits.idle, self.reader.read_header()).await;
        header
            .unwrap_or(Err(self.idle()))
            .and_then(|h| self.of_session(h))
    }

    fn idle(&self) -> WireError {
        WireError::Timeout {
            what: "waiting for the prefill node",
            after: self.node.limits.idle,
            flag: Some("--idle-timeout"),
        }
    }

    fn of_session(&self, header: Header) -> Result<Header, WireError> {
        if header.session != self.session.id {
            return Err(WireError::ForeignSession {
                got: header.session,
                want: self.session.id,
            });
        }
        Ok(header)
    }

    async fn pong(&mut self, header: &Header) -> Result<(), WireError> {
        self.reader.finish_empty(header)?;
        (self.writer)
            .write_empty(Kind::Pong, self.session.id, header.request)
            .await
    }

    async fn serve_request(&mut self, number: u64, open: Open) -> Result<(), Abort> {
        let clock = Clock::start(Node::Decode);
        let session = self.session.id;
        let place = match self.place() {
            Ok(place) => place,
            Err(refuse) => return self.refuse(number, refuse).await,
        };
        let role = open.role;
        let (request, cache, compute) = match self.admit(open).await {
            Ok(admitted) => admitted,
            Err(refuse) => return self.refuse(number, refuse).await,
        };
        self.node.admitted.fetch_add(1, Ordering::Relaxed);
        let cache = Arc::new(cache);
        let reception = (role == OpenRole::Decode).then(|| {
            let tokens = request.prompt.len();
            let (cache, corrupt) = (Arc::clone(&cache), self.node.corrupt_layer);
            Reception::new(number, tokens, cache, request.wire_rows, clock, corrupt)
        });
        self.shared.set_current(reception.clone());
        let admit = Admit {
            capacity_tokens: cache.capacity_tokens() as u32,
            others_in_flight: place.most_others(),
        };
        // Noted before it leaves, so that it bounds the peer's clock.
        let mut events = vec![clock.event(EventName::Admitted)];
        (self.writer)
            .write_control(Kind::Admit, session, number, &admit)
            .await?;
        let outcome = async {
            let mut first_token = None;
            if let Some(reception) = reception {
                let (token, landed) = self.receive_cache(&reception).await?;
                self.shared.set_current(None);
                events.extend(landed);
                first_token = Some(token);
            }
            let generation = Generation::new(request.clone(), cache, clock).behind(first_token);
            self.generate(compute, number, request, generation, place, events)
                .await
        };
        let ended = outcome.await;
        self.end_request(number, ended).await
    }

    async fn refuse(&mut self, number: u64, refuse: Refuse) -> Result<(), Abort> {
        (self.writer)
            .write_control(Kind::Refuse, self.session.id, number, &refuse)
            .await?;
        Ok(())
    }

    /// Tells the peer how its request ended, where it does not know yet.
    async fn end_request(&mut self, number: u64, ended: Result<(), Abort>) -> Result<(), Abort> {
        let session = self.session.id;
        self.shared.set_current(None);
        let failed = match &ended {
            Err(Abort::Cancelled) => return Ok(()),
            Err(Abort::Fatal(WireError::Closed)) => {
                return Err(WireError::ClosedAmid { what: "a request" }.into());
            }
            Ok(()) | Err(Abort::Fatal(_)) => return ended,
            Err(Abort::Failed(reason)) => Failed {
                reason: reason.clone(),
                checksum: false,
            },
            Err(Abort::Damaged(reason)) => Failed {
                reason: reason.clone(),
                checksum: true,
            },
        };
        (self.writer)
            .write_control(Kind::Failed, session, number, &failed)
            .await?;
        // The peer may still be sending; it must be able to read why it has to stop.
        let drained = self.reader.drain(DRAIN_BYTES);
        let _ = tokio::time::timeout(DRAIN_TIMEOUT, drained).await;
        ended
    }

    /// Reads pieces into place until they and those of joined connections cover the prompt in
    /// every layer and the first token is known.
    async fn receive_cache(&mut self, reception: &Reception) -> Result<(u32, Vec<Event>), Abort> {
        loop {
            let header = tokio::select! {
                biased;
                outcome = reception.outcome() => return outcome,
                header = self.next_header() => header?,
            };
            match header.kind {
                Kind::Start | Kind::Cancel if header.request != reception.number => {
                    return Err(Abort::Failed(format!(
                        "{} of request {} came during request {}",
                        header.kind, header.request, reception.number
                    )));
                }
                Kind::Piece => {
                    let quantised = &mut self.quantised;
                    (reception.take_piece(&mut self.reader, &header, 0, quantised)).await?;
                    self.writer.write_ack(header.run()).await?;
                }
                Kind::Start => {
                    let start: Start = self.reader.read_control(&header).await?;
                    reception.start(start.first_token)?;
                }
                Kind::Cancel => {
                    self.reader.finish_empty(&header)?;
                    return Err(Abort::Cancelled);
                }
                Kind::Ping => self.pong(&header).await?,
                _ => return Err(self.reader.unwanted(&header, Kind::Piece).await.into()),
            }
        }
    }

    /// Runs the model and streams what it gives.
    async fn generate(
        &mut self,
        compute: Compute,
        number: u64,
        request: Request,
        mut generation: Generation,
        place: Place,
        events: Vec<Event>,
    ) -> Result<(), Abort> {
        let first_token = generation.first_token();
        let cancel = CancelOnDrop(Arc::new(AtomicBool::new(false)));
        let cancelled = Arc::clone(&cancel.0);
        let (sender, mut emissions) = unbounded_channel();
        let (report, finished) = tokio::sync::oneshot::channel();
        let mut ends = Some((sender, report));
        let prompt_tokens = request.prompt.len();
        compute.submit_turns(move |engine| {
            let Some((sender, _)) = &ends else {
                return ControlFlow::Break(());
            };
            // Nobody wants the rest; the cache goes back to the pool with this job.
            let is_wanted = || !cancelled.load(Ordering::Relaxed);
            if !is_wanted() {
                return ControlFlow::Break(());
            }
            let mut emit = |emission| {
                let _ = sender.send(emission);
            };
            let turn = generation.advance(engine, &is_wanted, &mut emit);
            let Some(ended) = turn.transpose() else {
                return ControlFlow::Continue(());
            };
            let Some((sender, report)) = ends.take() else {
                return ControlFlow::Break(());
            };
            drop(sender);
            let _ = report.send(ended.and_then(|finish| {
                // A cache that was made here proves nothing, and a device keeps it to itself.
                let digest = match first_token {
                    Some(_) => Some(generation.cache().digest(prompt_tokens)?),
                    None => None,
                };
                Ok((finish, generation.proofs(), digest))
            }));
            ControlFlow::Break(())
        });
        let mut served = Answer {
            events,
            tokens: first_token.into_iter().collect(),
        };
        self.stream(number, &mut emissions, &mut served).await?;
        let (finish, proofs, digest) = match finished.await {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(error)) => return Err(Abort::Failed(format!("{error:#}"))),
            Err(_) => return Err(Abort::Failed("the compute thread failed".into())),
        };
        let digest = digest.map(|digest| digest.to_hex()[..32].to_string());
        let mut done = served.done(
            finish,
            &proofs,
            digest,
            self.node.memory(),
            self.node.activity(),
        );
        done.others_in_flight = Some(place.most_others());
        (self.writer)
            .write_control(Kind::Done, self.session.id, number, &done)
            .await?;
        let kv_bytes = match first_token {
            Some(_) => received_bytes(compute.engine(), &request),
            None => 0,
        };
        (self.node.observer)(Served::Request(
            served.report(self.peer, number, &request, kv_bytes),
        ));
        Ok(())
    }

    /// Sends tokens as they come and listens for a peer that takes the request back.
    async fn stream(
        &mut self,
        number: u64,
        emissions: &mut UnboundedReceiver<Emission>,
        answer: &mut Answer,
    ) -> Result<(), Abort> {
        loop {
            tokio::select! {
                emission = emissions.recv() => match emission {
                    None => return Ok(()),
                    Some(Emission::Token { index, token }) => {
                        answer.tokens.push(token);
                        let message = TokenMessage { index, token };
                        (self.writer)
                            .write_control(Kind::Token, self.session.id, number, &message)
                            .await?;
                    }
                    Some(Emission::Event(event)) => answer.events.push(event),
                    Some(Emission::LayerDone(_)) => {}
                },
                // It owes nothing now, so it may be silent for as long as its answer takes.
                header = self.reader.read_header() => {
                    let header = self.of_session(header?)?;
                    match header.kind {
                        Kind::Cancel if header.request == number => {
                            self.reader.finish_empty(&header)?;
                            return Err(Abort::Cancelled);
                        }
                        Kind::Ping => self.pong(&header).await?,
                        _ => return Err(self.reader.unwanted(&header, Kind::Cancel).await.into()),
                    }
                }
            }
        }
    }
}

/// What a peer is told when the node is being stopped.
const DRAINING: &str = "this node is shutting down: start it again, or use another";

/// Most bytes that are read and thrown away from a peer whose request failed.
const DRAIN_BYTES: u64 = 256 << 20;

/// Longest that such a peer is listened to.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);

/// Stops the compute thread's work on a request when its connection is gone.
struct CancelOnDrop(Arc<AtomicBool>);

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn received_bytes(engine: &Engine, request: &Request) -> u64 {
    let layout = engine.shape().kv_layout(request.kv_dtype);
    let row_bytes = request.wire_rows.row_bytes(layout);
    (row_bytes * layout.n_layers * request.prompt.len()) as u64
}
