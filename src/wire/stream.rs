//! How the bytes of a connection travel: plain TCP, or TLS over it where the build has the feature
//! `tls`; and the two halves that frames are read from and written to. What TLS demands of a peer
//! is `tls`'s.

use std::io::{self, IoSlice};
use std::os::fd::{AsFd, BorrowedFd};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::time::timeout;

use super::error::WireError;
use super::handshake::HANDSHAKE_FLAG;
#[cfg(feature = "tls")]
use super::tls;

/// What connections of a node are made of.
#[derive(Clone, Default)]
pub enum Transport {
    /// TCP as it is.
    #[default]
    Tcp,
    /// TLS over TCP, each end pinned to the other's certificate.
    #[cfg(feature = "tls")]
    Tls(tls::Pinned),
}

impl Transport {
    /// Its name in records.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            #[cfg(feature = "tls")]
            Self::Tls(_) => "tls over tcp",
        }
    }

    /// Whether both nodes know by it alone that the other is the right one.
    pub fn authenticates(&self) -> bool {
        !matches!(self, Self::Tcp)
    }

    /// The prefill node's end of a connection; TLS is agreed on within `limit`. Not cancel safe.
    pub async fn connect(
        &self,
        stream: TcpStream,
        limit: Duration,
    ) -> Result<(ReadHalf, WriteHalf), WireError> {
        let agreed = async {
            match self {
                Self::Tcp => Ok(plain(stream)),
                #[cfg(feature = "tls")]
                Self::Tls(pinned) => pinned.connect(stream).await,
            }
        };
        within(limit, None, agreed).await
    }

    /// The decode node's end of a connection, as [`Transport::connect`].
    pub async fn accept(
        &self,
        stream: TcpStream,
        limit: Duration,
    ) -> Result<(ReadHalf, WriteHalf), WireError> {
        let agreed = async {
            match self {
                Self::Tcp => Ok(plain(stream)),
                #[cfg(feature = "tls")]
                Self::Tls(pinned) => pinned.accept(stream).await,
            }
        };
        within(limit, Some(HANDSHAKE_FLAG), agreed).await
    }
}

async fn within<T>(
    limit: Duration,
    flag: Option<&'static str>,
    agreed: impl Future<Output = Result<T, WireError>>,
) -> Result<T, WireError> {
    timeout(limit, agreed)
        .await
        .unwrap_or(Err(WireError::Timeout {
            what: "the TLS handshake",
            after: limit,
            flag,
        }))
}

fn plain(stream: TcpStream) -> (ReadHalf, WriteHalf) {
    let (read, write) = stream.into_split();
    (ReadHalf::Tcp(read), WriteHalf::Tcp(write))
}

/// The half of a connection that is read.
#[derive(Debug)]
pub enum ReadHalf {
    /// Of plain TCP.
    Tcp(OwnedReadHalf),
    /// Of TLS.
    #[cfg(feature = "tls")]
    Tls(tls::ReadHalf),
}

impl ReadHalf {
    /// The TCP socket underneath, to ask the kernel about it.
    pub fn socket(&self) -> BorrowedFd<'_> {
        match self {
            Self::Tcp(half) => half.as_ref().as_fd(),
            #[cfg(feature = "tls")]
            Self::Tls(half) => half.socket(),
        }
    }
}

impl AsyncRead for ReadHalf {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(half) => Pin::new(half).poll_read(context, buffer),
            #[cfg(feature = "tls")]
            Self::Tls(half) => Pin::new(half).poll_read(context, buffer),
        }
    }
}

/// The half of a connection that is written.
#[derive(Debug)]
pub enum WriteHalf {
    /// Of plain TCP.
    Tcp(OwnedWriteHalf),
    /// Of TLS.
    #[cfg(feature = "tls")]
    Tls(tls::WriteHalf),
}

/// Passes a call on to the half that there is.
macro_rules! with_half {
    ($self:ident, $half:ident => $call:expr) => {
        match $self.get_mut() {
            WriteHalf::Tcp($half) => $call,
            #[cfg(feature = "tls")]
            WriteHalf::Tls($half) => $call,
        }
    };
}

impl AsyncWrite for WriteHalf {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        with_half!(self, half => Pin::new(half).poll_write(context, bytes))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        with_half!(self, half => Pin::new(half).poll_write_vectored(context, slices))
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Tcp(half) => half.is_write_vectored(),
            #[cfg(feature = "tls")]
            Self::Tls(half) => half.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        with_half!(self, half => Pin::new(half).poll_flush(context))
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        with_half!(self, half => Pin::new(half).poll_shutdown(context))
    }
}
