//! Frames over a byte stream: reading, writing and counting. Generic over the stream, so that
//! it runs over TCP, TLS and memory alike. A frame that has begun must keep a [`Pace`]; how long
//! to wait for one to begin is the callers' business, and what frames mean in which order that of
//! `handshake` and the nodes.
//!
//! After a [`WireError::Json`], [`WireError::Refused`] or [`WireError::PeerFailed`] the stream
//! stands at a frame boundary and may be used on. After a [`WireError::Checksum`] it does so
//! unless the damage was to the length, which the magic of the next header shows. After any
//! other error it must be closed.

use std::io::{self, IoSlice};

use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::Instant;

use super::error::WireError;
use super::frame::{Checksum, HEADER_BYTES, Header, Kind, PieceHeader, check_length, check_prefix};
use super::message::{Failed, Refuse, printable};
use super::pace::Pace;

/// Bytes set aside for a control message before any of it has arrived, so that a peer gets
/// memory for what it sends and not for what it announces.
const FIRST_CONTROL_BYTES: usize = 8 << 10;

/// Buffer for payloads that nobody wants, in bytes.
const DISCARD_BYTES: usize = 16 << 10;

/// What went over a connection in one direction, payload and framing apart.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct WireBytes {
    /// KV payload of PIECE frames, in bytes.
    pub payload_bytes: u64,
    /// Headers of PIECE frames, in bytes.
    pub framing_bytes: u64,
    /// All other frames with their headers, in bytes.
    pub control_bytes: u64,
    /// PIECE frames.
    pub pieces: u64,
}

impl WireBytes {
    fn count(&mut self, header: &Header) {
        let header_bytes = HEADER_BYTES as u64;
        if header.kind == Kind::Piece {
            self.payload_bytes += header.payload_bytes;
            self.framing_bytes += header_bytes;
            self.pieces += 1;
        } else {
            self.control_bytes += header_bytes + header.payload_bytes;
        }
    }

    /// Both together.
    pub fn plus(self, other: WireBytes) -> WireBytes {
        WireBytes {
            payload_bytes: self.payload_bytes + other.payload_bytes,
            framing_bytes: self.framing_bytes + other.framing_bytes,
            control_bytes: self.control_bytes + other.control_bytes,
            pieces: self.pieces + other.pieces,
        }
    }

    /// What was added since an earlier reading of the same counter.
    pub fn since(self, earlier: WireBytes) -> WireBytes {
        WireBytes {
            payload_bytes: self.payload_bytes - earlier.payload_bytes,
            framing_bytes: self.framing_bytes - earlier.framing_bytes,
            control_bytes: self.control_bytes - earlier.control_bytes,
            pieces: self.pieces - earlier.pieces,
        }
    }
}

/// The reading half of a connection.
#[derive(Debug)]
pub struct FrameReader<R> {
    inner: R,
    // A header may arrive in parts; kept here, so that a dropped read_header loses nothing.
    partial: [u8; HEADER_BYTES],
    filled: usize,
    /// When the first byte of that part came.
    begun: Option<Instant>,
    received: WireBytes,
    pace: Pace,
    limits: FrameLimits,
}

/// Largest payloads that are read, in bytes, where they are less than the kind of frame allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameLimits {
    /// Of a control message.
    pub control_bytes: u64,
    /// Of a piece.
    pub piece_bytes: u64,
}

impl FrameLimits {
    /// What the kinds of frames allow.
    pub const WIRE: FrameLimits = FrameLimits {
        control_bytes: u64::MAX,
        piece_bytes: u64::MAX,
    };
}

impl<R: AsyncRead + Unpin> FrameReader<R> {
    /// A reader at a frame boundary of `inner`.
    pub fn new(inner: R) -> Self {
        FrameReader {
            inner,
            partial: [0; HEADER_BYTES],
            filled: 0,
            begun: None,
            received: WireBytes::default(),
            pace: Pace::USUAL,
            limits: FrameLimits::WIRE,
        }
    }

    /// Grants frames another time than usual, and no more bytes than these.
    pub fn limited(self, pace: Pace, limits: FrameLimits) -> Self {
        FrameReader {
            pace,
            limits,
            ..self
        }
    }

    /// The byte stream, to ask the system about it; reading from it would lose frames.
    pub fn inner(&self) -> &R {
        &self.inner
    }

    /// What has been received whole so far.
    pub fn received(&self) -> WireBytes {
        self.received
    }

    /// The next header, checked but for its checksum; its payload must be read or discarded
    /// next. An end before its first byte is [`WireError::Closed`], one inside it
    /// [`WireError::ClosedAmid`]. Cancel safe.
    pub async fn read_header(&mut self) -> Result<Header, WireError> {
        while self.filled < HEADER_BYTES {
            let left = HEADER_BYTES - self.filled;
            let more = self.inner.read(&mut self.partial[self.filled..]);
            let read = match self.begun {
                None => more.await,
                Some(begun) => {
                    let pace = Pace {
                        grace: self.pace.grace.saturating_sub(begun.elapsed()),
                        ..self.pace
                    };
                    pace.reading(left as u64, more).await?
                }
            };
            let read = read.map_err(|error| reading("reading a frame header", error))?;
            if read == 0 {
                return Err(match self.filled {
                    0 => WireError::Closed,
                    _ => WireError::ClosedAmid {
                        what: "a frame header",
                    },
                });
            }
            self.filled += read;
            self.begun.get_or_insert_with(Instant::now);
            check_prefix(&self.partial[..self.filled])?;
        }
        (self.filled, self.begun) = (0, None);
        let header = Header::decode(&self.partial)?;
        let (limit, flag) = match header.kind {
            Kind::Piece => (self.limits.piece_bytes, "--max-piece"),
            _ => (self.limits.control_bytes, "--max-message"),
        };
        if header.payload_bytes > limit {
            return Err(WireError::TooLarge {
                what: header.kind.name(),
                got: header.payload_bytes,
                limit,
                flag: Some(flag),
            });
        }
        Ok(header)
    }

    /// Reads the payload straight into its final place and verifies it there; `place` must be
    /// as long as the header says. Not cancel safe.
    pub async fn read_payload_into(
        &mut self,
        header: &Header,
        place: &mut [u8],
    ) -> Result<(), WireError> {
        header.demand_payload(place.len())?;
        let read = self.inner.read_exact(place);
        let read = self.pace.reading(header.payload_bytes, read).await?;
        read.map_err(|error| reading("reading a payload", error))?;
        self.received.count(header);
        // One piece is small enough to be still in the processor's cache here.
        header.verify(place)
    }

    /// Reads a payload that nobody wants (a cancelled request's) and verifies it. Not cancel
    /// safe.
    pub async fn discard_payload(&mut self, header: &Header) -> Result<(), WireError> {
        let mut checksum = Checksum::start(header);
        let mut buffer = vec![0; DISCARD_BYTES];
        let discard = async {
            let mut left_bytes = header.payload_bytes;
            while left_bytes > 0 {
                let part = left_bytes.min(DISCARD_BYTES as u64) as usize;
                self.inner.read_exact(&mut buffer[..part]).await?;
                checksum.update(&buffer[..part]);
                left_bytes -= part as u64;
            }
            Ok(())
        };
        let discarded = self.pace.reading(header.payload_bytes, discard).await?;
        discarded.map_err(|error| reading("reading a payload", error))?;
        self.received.count(header);
        header.verify_checksum(checksum)
    }

    /// Reads and verifies the payload of a control frame as JSON. Not cancel safe.
    pub async fn read_control<T: DeserializeOwned>(
        &mut self,
        header: &Header,
    ) -> Result<T, WireError> {
        let payload = self.read_whole(header).await?;
        serde_json::from_slice(&payload).map_err(|error| not_json(header.kind, &error))
    }

    /// Reads and verifies the (empty) payload of a frame that has none.
    pub fn finish_empty(&mut self, header: &Header) -> Result<(), WireError> {
        self.received.count(header);
        header.verify(&[])
    }

    /// The next frame, which must be a control frame of `kind`. REFUSE becomes
    /// [`WireError::Refused`], FAILED [`WireError::PeerFailed`], any other kind
    /// [`WireError::Unexpected`]. Not cancel safe.
    pub async fn expect<T: DeserializeOwned>(
        &mut self,
        kind: Kind,
    ) -> Result<(Header, T), WireError> {
        let header = self.expect_header(kind).await?;
        let message = self.read_control(&header).await?;
        Ok((header, message))
    }

    /// The next frame, which must be of `kind` and have no payload; else as
    /// [`FrameReader::expect`]. Not cancel safe.
    pub async fn expect_empty(&mut self, kind: Kind) -> Result<Header, WireError> {
        let header = self.expect_header(kind).await?;
        self.finish_empty(&header)?;
        Ok(header)
    }

    /// The error that an unwanted frame stands for, its payload read: REFUSE and FAILED in the
    /// peer's words, any other kind as unexpected. Not cancel safe.
    pub async fn unwanted(&mut self, header: &Header, want: Kind) -> WireError {
        let error = match header.kind {
            Kind::Refuse => {
                self.read_control::<Refuse>(header)
                    .await
                    .map(|refuse| WireError::Refused {
                        code: refuse.code,
                        reason: printable(&refuse.reason),
                    })
            }
            Kind::Failed => {
                self.read_control::<Failed>(header)
                    .await
                    .map(|failed| WireError::PeerFailed {
                        checksum: failed.checksum,
                        reason: printable(&failed.reason),
                    })
            }
            got => Ok(WireError::Unexpected { got, want }),
        };
        error.unwrap_or_else(|error| error)
    }

    /// Reads and forgets up to `limit_bytes` until the peer closes: a socket closed with unread
    /// bytes resets the connection, which can take a refusal with it before the peer reads it.
    pub async fn drain(&mut self, limit_bytes: u64) {
        let mut buffer = vec![0; DISCARD_BYTES];
        let mut drained_bytes = 0;
        while drained_bytes < limit_bytes {
            match self.inner.read(&mut buffer).await {
                Ok(0) | Err(_) => return,
                Ok(read) => drained_bytes += read as u64,
            }
        }
    }

    async fn expect_header(&mut self, want: Kind) -> Result<Header, WireError> {
        let header = self.read_header().await?;
        if header.kind == want {
            return Ok(header);
        }
        Err(self.unwanted(&header, want).await)
    }

    async fn read_whole(&mut self, header: &Header) -> Result<Vec<u8>, WireError> {
        // The header was held against its kind's limit when it was decoded.
        let length = header.payload_bytes as usize;
        let mut payload = Vec::with_capacity(length.min(FIRST_CONTROL_BYTES));
        let mut rest = (&mut self.inner).take(header.payload_bytes);
        let read = rest.read_to_end(&mut payload);
        let read = self.pace.reading(header.payload_bytes, read).await?;
        read.map_err(|error| reading("reading a control message", error))?;
        if payload.len() < length {
            return Err(WireError::ClosedAmid {
                what: "a control message",
            });
        }
        self.received.count(header);
        header.verify(&payload)?;
        Ok(payload)
    }
}

fn not_json(kind: Kind, error: &serde_json::Error) -> WireError {
    let reason = printable(&error.to_string());
    WireError::Json { kind, reason }
}

fn reading(doing: &'static str, error: io::Error) -> WireError {
    if error.kind() == io::ErrorKind::UnexpectedEof {
        return WireError::ClosedAmid { what: "a payload" };
    }
    WireError::Io { doing, error }
}

/// The writing half of a connection. None of its methods is cancel safe: a dropped write
/// leaves part of a frame on the stream.
#[derive(Debug)]
pub struct FrameWriter<W> {
    inner: W,
    sent: WireBytes,
    pace: Pace,
}

impl<W: AsyncWrite + Unpin> FrameWriter<W> {
    /// A writer at a frame boundary of `inner`.
    pub fn new(inner: W) -> Self {
        FrameWriter {
            inner,
            sent: WireBytes::default(),
            pace: Pace::USUAL,
        }
    }

    /// Grants frames another time than usual.
    pub fn paced(self, pace: Pace) -> Self {
        FrameWriter { pace, ..self }
    }

    /// What has been handed to the stream whole so far.
    pub fn sent(&self) -> WireBytes {
        self.sent
    }

    /// Writes a control message as JSON; [`WireError::TooLarge`] before anything is sent.
    pub async fn write_control<T: Serialize>(
        &mut self,
        kind: Kind,
        session: u64,
        request: u64,
        message: &T,
    ) -> Result<(), WireError> {
        let payload = serde_json::to_vec(message).map_err(|error| not_json(kind, &error))?;
        let header = Header::new(kind, session, request, payload.len() as u64);
        self.write_frame(header, &payload).await
    }

    /// Writes a frame without a payload.
    pub async fn write_empty(
        &mut self,
        kind: Kind,
        session: u64,
        request: u64,
    ) -> Result<(), WireError> {
        self.write_frame(Header::new(kind, session, request, 0), &[])
            .await
    }

    /// Writes one run of tokens of a layer, checksummed here and never copied.
    pub async fn write_piece(&mut self, run: PieceHeader, payload: &[u8]) -> Result<(), WireError> {
        let header = Header::for_run(Kind::Piece, run, payload.len() as u64);
        self.write_frame(header, payload).await
    }

    /// Confirms that a piece is in place and verified.
    pub async fn write_ack(&mut self, run: PieceHeader) -> Result<(), WireError> {
        self.write_frame(Header::for_run(Kind::Ack, run, 0), &[])
            .await
    }

    /// Ends the writing direction: the peer sees [`WireError::Closed`] after the last frame.
    pub async fn shutdown(&mut self) -> Result<(), WireError> {
        self.inner.shutdown().await.map_err(writing)
    }

    async fn write_frame(&mut self, header: Header, payload: &[u8]) -> Result<(), WireError> {
        check_length(header.kind, header.payload_bytes)?;
        let head = header.sealed(payload).encode();
        let mut slices = [IoSlice::new(&head), IoSlice::new(payload)];
        let mut rest = &mut slices[..];
        // Drops empty slices, so that a frame without payload ends after its header.
        IoSlice::advance_slices(&mut rest, 0);
        let write = async {
            while !rest.is_empty() {
                let written = self.inner.write_vectored(rest).await?;
                if written == 0 {
                    return Err(io::ErrorKind::WriteZero.into());
                }
                IoSlice::advance_slices(&mut rest, written);
            }
            self.inner.flush().await
        };
        let frame_bytes = HEADER_BYTES as u64 + header.payload_bytes;
        let written = self.pace.writing(frame_bytes, write).await?;
        written.map_err(writing)?;
        self.sent.count(&header);
        Ok(())
    }
}

fn writing(error: io::Error) -> WireError {
    WireError::Io {
        doing: "sending to the peer",
        error,
    }
}

#[cfg(test)]
mod tests;
