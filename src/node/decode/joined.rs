//! A further connection of a session: it brings pieces of whatever request the session's first
//! connection has open.

use std::sync::Arc;

use tokio::io::{AsyncRead, AsyncWrite};

use super::{Abort, DRAIN_BYTES, DRAIN_TIMEOUT, Peer};
use crate::node::reception::Reception;
use crate::wire::handshake::refuse;
use crate::wire::message::{Join, Refuse, RefuseCode};
use crate::wire::{Header, Kind, WireError};

impl<R: AsyncRead + Unpin, W: AsyncWrite + Unpin> Peer<'_, R, W> {
    /// Brings pieces of another connection's requests from now on.
    pub(super) async fn join(&mut self, join: Join) -> Result<(), Abort> {
        // Connections that join themselves or each other would wait for each other's end for ever:
        // one that joins is no session of its own any more.
        self.node.sessions.close(&self.shared);
        let Some(session) = self.node.sessions.find(join.session) else {
            let refuse = Refuse {
                code: RefuseCode::BadRequest,
                reason: format!(
                    "session {:016x} is not open on this node: reconnect",
                    join.session
                ),
            };
            (self.writer)
                .write_control(Kind::Refuse, self.session.id, 0, &refuse)
                .await?;
            return Err(Abort::Failed(refuse.reason));
        };
        (self.writer)
            .write_empty(Kind::Ready, self.session.id, 0)
            .await?;
        let (id, closed) = (session.id, session.closed());
        let session = {
            let weak = Arc::downgrade(&session);
            drop(session);
            weak
        };
        let current = || session.upgrade().and_then(|session| session.current());
        let is_over = |number| session.upgrade().is_some_and(|s| s.is_over(number));
        tokio::pin!(closed);
        loop {
            let header = tokio::select! {
                header = self.reader.read_header() => header,
                () = &mut closed => return Ok(()),
            };
            let taken = match header {
                // It was on its way when its request failed or was taken back.
                Ok(header) if header.kind == Kind::Piece && is_over(header.request) => {
                    let discarded = self.reader.discard_payload(&header).await;
                    discarded.map_err(Abort::from)
                }
                Ok(header) => self.take_joined(&header, id, join.stream, current()).await,
                Err(error) => Err(error.into()),
            };
            if let Err(abort) = taken {
                match (current(), &abort) {
                    (Some(reception), _) => {
                        reception.fail(abort.as_lost(join.stream));
                        // The reason goes over the first connection: the end of this one must not
                        // overtake it.
                        let over = async {
                            tokio::select! {
                                () = self.reader.drain(DRAIN_BYTES) => {}
                                () = &mut closed => {}
                            }
                        };
                        let _ = tokio::time::timeout(DRAIN_TIMEOUT, over).await;
                    }
                    (None, Abort::Failed(reason) | Abort::Damaged(reason)) => {
                        let (code, reason) = (RefuseCode::BadRequest, reason.clone());
                        refuse(&mut self.reader, &mut self.writer, Refuse { code, reason }).await;
                    }
                    (None, _) => {}
                }
                return Err(abort);
            }
        }
    }

    /// One frame of a joined connection: a piece, which is acknowledged where it came.
    async fn take_joined(
        &mut self,
        header: &Header,
        session: u64,
        stream: u32,
        reception: Option<Arc<Reception>>,
    ) -> Result<(), Abort> {
        if header.kind != Kind::Piece {
            return Err(self.reader.unwanted(header, Kind::Piece).await.into());
        }
        if header.session != session {
            let got = header.session;
            let want = session;
            return Err(WireError::ForeignSession { got, want }.into());
        }
        let Some(reception) = reception else {
            return Err(Abort::Failed(format!(
                "a piece of request {} came, and no request is open",
                header.request
            )));
        };
        let quantised = &mut self.quantised;
        (reception.take_piece(&mut self.reader, header, stream, quantised)).await?;
        // Whoever waits for the cache must find it in nobody else's hands.
        drop(reception);
        Ok(self.writer.write_ack(header.run()).await?)
    }
}
