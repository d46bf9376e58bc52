//! Takes connections, up to the limit, until the node is told to stop: at once, or when what it has
//! is finished.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::{Abort, DRAINING, DecodeNode, Peer, Served};
use crate::wire::handshake::{REFUSAL_LINGER, refuse};
use crate::wire::message::{self, Refuse, RefuseCode};
use crate::wire::{FrameReader, FrameWriter, WireError, respond, socket};

/// Connections that may be told at once why they are not taken; more are closed without a word, so
/// that a flood of them costs nothing.
const MAX_REFUSALS: usize = 32;

/// Pause behind a connection that could not be accepted: no descriptor was left, which passes.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Serves peers. Once `drain` resolves, requests under way are finished and nothing new is taken;
/// once `stop` does, all connections are dropped.
pub async fn serve(
    listener: TcpListener,
    node: Arc<DecodeNode>,
    drain: impl Future<Output = ()>,
    stop: impl Future<Output = ()>,
) -> std::io::Result<()> {
    let (mut connections, mut refusals) = (JoinSet::new(), JoinSet::new());
    let (draining, watched) = watch::channel(false);
    tokio::pin!(drain, stop);
    loop {
        let is_draining = *watched.borrow();
        if is_draining && connections.is_empty() {
            return Ok(());
        }
        tokio::select! {
            () = &mut stop => return Ok(()),
            () = &mut drain, if !is_draining => {
                draining.send_replace(true);
            }
            accepted = listener.accept() => match accepted {
                Ok((stream, peer)) => {
                    let limit = node.limits.connections;
                    let refusal = match (is_draining, connections.len() < limit) {
                        (false, true) => None,
                        (true, _) => Some((RefuseCode::Draining, DRAINING.to_owned())),
                        (false, false) => Some((RefuseCode::Busy, format!(
                            "this node has its {limit} connections: try again later or start it \
                             with a higher --max-connections"
                        ))),
                    };
                    match refusal {
                        None => {
                            let (node, watched) = (Arc::clone(&node), watched.clone());
                            connections.spawn(serve_peer(node, stream, peer, watched));
                        }
                        Some((code, reason)) if refusals.len() < MAX_REFUSALS => {
                            let node = Arc::clone(&node);
                            refusals.spawn(turn_away(node, stream, Refuse { code, reason }));
                        }
                        Some(_) => drop(stream),
                    }
                }
                // A peer that reset before it was accepted, or no descriptor left: both pass.
                Err(error) => {
                    tracing::warn!("cannot accept a connection: {error}");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            },
            Some(_) = connections.join_next() => {}
            Some(_) = refusals.join_next() => {}
        }
    }
}

async fn turn_away(node: Arc<DecodeNode>, stream: TcpStream, why: Refuse) {
    // A peer that cannot even agree on TLS in this time has no need to know.
    let Ok((read, write)) = node.transport.accept(stream, REFUSAL_LINGER).await else {
        return;
    };
    refuse(
        &mut FrameReader::new(read),
        &mut FrameWriter::new(write),
        why,
    )
    .await;
}

async fn serve_peer(
    node: Arc<DecodeNode>,
    stream: TcpStream,
    peer: SocketAddr,
    draining: watch::Receiver<bool>,
) {
    let outcome = async {
        socket::set_up(&stream, node.congestion_control.as_deref())?;
        let limits = &node.limits;
        let (read, write) = node.transport.accept(stream, limits.handshake).await?;
        let mut reader = FrameReader::new(read).limited(limits.pace, limits.frames);
        let mut writer = FrameWriter::new(write).paced(limits.pace);
        let (ours, token) = (&node.introduction, node.token.as_ref());
        let session = respond(&mut reader, &mut writer, ours, token, limits.handshake).await?;
        (node.observer)(Served::Connected {
            peer,
            host: message::printable(&session.peer.node.host),
        });
        Peer {
            node: &node,
            peer,
            shared: node.sessions.open(session.id),
            quantised: Vec::new(),
            session,
            reader,
            writer,
            draining,
        }
        .serve_requests()
        .await
    };
    let error = match outcome.await {
        Ok(()) | Err(Abort::Fatal(WireError::Closed) | Abort::Cancelled) => None,
        Err(Abort::Fatal(error)) => Some(error.to_string()),
        Err(Abort::Failed(reason) | Abort::Damaged(reason)) => Some(reason),
    };
    (node.observer)(Served::Disconnected { peer, error });
}
