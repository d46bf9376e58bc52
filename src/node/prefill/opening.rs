//! Reaching a decode node: connections, the handshake on each, and trying again where nothing can
//! have come of the attempt before.

use std::io::ErrorKind;
use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::{Connection, Joined};
use crate::node::sending::{Patience, silence};
use crate::wire::message::{Introduction, Join, RefuseCode};
use crate::wire::socket::{self, SocketFacts};
use crate::wire::{
    FrameReader, FrameWriter, Kind, Session, Source, Token, Transport, WireError, initiate,
};

/// Longest wait for a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Wait before the second attempt; each further one waits twice as long, up to the longest.
const FIRST_BACKOFF: Duration = Duration::from_millis(100);
const LONGEST_BACKOFF: Duration = Duration::from_secs(2);

/// How a decode node is reached.
pub struct Peer {
    /// `HOST:PORT`.
    pub address: String,
    /// Proof that we may, if set.
    pub token: Option<Token>,
    /// What connections are made of.
    pub transport: Transport,
    /// Congestion control to ask for.
    pub congestion_control: Option<String>,
    /// Connections that carry pieces, at least one.
    pub streams: u32,
    /// Where connections start; none for wherever the routes lead.
    pub source: Option<Source>,
    /// For how long a decode node that does not answer or has no room is tried again.
    pub retry_for: Duration,
    /// How long it may be silent.
    pub patience: Patience,
}

impl Connection {
    /// Connects and agrees with the decode node on version, model, layout and token; then opens
    /// as many further connections as the peer's number of streams asks for. Where nobody answers,
    /// the node is busy or the connection breaks in the handshake, no request can have counted, and
    /// it is tried again for as long as the peer says, with growing pauses.
    pub async fn open(peer: &Peer, ours: &Introduction) -> Result<Self, WireError> {
        let started = Instant::now();
        let mut backoff = FIRST_BACKOFF;
        for attempt in 1.. {
            let error = match Self::open_once(peer, ours).await {
                Ok(connection) => {
                    return Ok(Self {
                        attempts: attempt,
                        ..connection
                    });
                }
                Err(error) => error,
            };
            if !may_pass(&error) || started.elapsed() + backoff > peer.retry_for {
                return Err(error);
            }
            match attempt {
                // Whoever mistyped the address should not wait without knowing for what.
                1 => tracing::warn!(
                    "{error}; trying again for {} s",
                    peer.retry_for.as_secs_f64()
                ),
                _ => tracing::info!("attempt {attempt} to reach {}: {error}", peer.address),
            }
            tokio::time::sleep(backoff).await;
            backoff = (2 * backoff).min(LONGEST_BACKOFF);
        }
        unreachable!("the loop above has no end")
    }

    async fn open_once(peer: &Peer, ours: &Introduction) -> Result<Self, WireError> {
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
            let ready = connection.reader.expect_empty(Kind::Ready);
            let silent = |_| silence(peer.patience.handshake);
            (tokio::time::timeout(peer.patience.handshake, ready)
                .await
                .map_err(silent)?)?;
            joined.push(connection);
        }
        Ok(Self {
            patience: peer.patience,
            reader: first.reader,
            writer: first.writer,
            joined,
            session,
            facts,
            next_request: 1,
            last_used: Instant::now(),
            last_transfer: None,
            tokens_back: watch::Sender::new(0),
            attempts: 1,
        })
    }
}

/// Whether the same attempt may succeed a little later: the node may be starting, full, or on its
/// way out for another to take its place.
fn may_pass(error: &WireError) -> bool {
    match error {
        // Bytes that make no sense will make none later.
        WireError::Io { error, .. } => error.kind() != ErrorKind::InvalidData,
        WireError::Connect(_) | WireError::Closed | WireError::ClosedAmid { .. } => true,
        WireError::Refused { code, .. } => {
            matches!(code, RefuseCode::Busy | RefuseCode::Draining)
        }
        _ => false,
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
    let (token, limit) = (peer.token.as_ref(), peer.patience.handshake);
    let (read, write) = peer.transport.connect(stream, limit).await?;
    let (mut reader, mut writer) = (FrameReader::new(read), FrameWriter::new(write));
    let session = initiate(&mut reader, &mut writer, ours, token, limit).await?;
    Ok((Joined { reader, writer }, session, facts))
}
