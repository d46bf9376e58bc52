//! The decode node of an experiment: an open session, or how to get one.

use crate::node::prefill::{Connection, Peer};
use crate::wire::WireError;
use crate::wire::message::Introduction;

/// How the decode node is reached again if a connection breaks.
pub struct Remote<'a> {
    /// Its address and what it demands.
    pub peer: &'a Peer,
    /// What this node says of itself.
    pub introduction: &'a Introduction,
    /// The session that is open.
    pub(super) connection: Option<Connection>,
    /// How often it was tried, until a request went over it.
    pub(super) attempts: Option<u32>,
}

impl<'a> Remote<'a> {
    /// A decode node to which a session is open.
    pub fn new(peer: &'a Peer, introduction: &'a Introduction, open: Connection) -> Self {
        Self {
            peer,
            introduction,
            attempts: Some(open.attempts()),
            connection: Some(open),
        }
    }

    /// The open session where it still answers, else a new one; to be put back when it is of
    /// further use.
    pub(super) async fn take(&mut self) -> Result<Connection, WireError> {
        if let Some(mut open) = self.connection.take()
            && open.is_alive().await
        {
            return Ok(open);
        }
        let connection = Connection::open(self.peer, self.introduction).await?;
        self.attempts = Some(connection.attempts());
        Ok(connection)
    }

    /// The session, opened where there is none.
    pub(super) async fn connection(&mut self) -> Result<&mut Connection, WireError> {
        let connection = self.take().await?;
        Ok(self.connection.insert(connection))
    }
}
