//! The frame codec: the fixed header, the kinds, the limits and the checksum. No IO; reading
//! and writing frames is `connection`'s, the JSON inside control frames is `message`'s.
//!
//! A frame is a 56-byte little-endian header followed by its payload. Magic and version keep
//! their place in every version, so that a peer of another version can be told by number.

use std::fmt;

use crc_fast::{CrcAlgorithm, Digest};
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::error::WireError;

/// The version of the wire that this build speaks.
pub const WIRE_VERSION: u16 = 1;

/// The first bytes of every frame; the first one is outside ASCII and UTF-8, so that no text
/// protocol begins like it.
pub const MAGIC: [u8; 8] = *b"\xd1SAGGKV\n";

/// Size of the header, in bytes.
pub const HEADER_BYTES: usize = 56;

/// Bytes from which magic and version can be told, in this and every later version.
pub const PREFIX_BYTES: usize = MAGIC.len() + size_of::<u16>();

/// Largest KV payload of one PIECE, in bytes: small enough to be checksummed while it is still
/// in the cache, large enough that the header costs nothing.
pub const MAX_PIECE_BYTES: u64 = 1 << 20;

/// Largest OPEN (prompt tokens) and DONE (steps and events), in bytes.
pub const MAX_CONTROL_BYTES: u64 = 4 << 20;

/// Largest DONE payload, in bytes: about 400 bytes a token, so 160,000 tokens.
pub const MAX_DONE_BYTES: u64 = 64 << 20;

/// Largest HELLO, in bytes: it comes before authentication and carries one environment record.
pub const MAX_HELLO_BYTES: u64 = 256 << 10;

/// Largest of the other control messages, in bytes.
pub const MAX_SMALL_CONTROL_BYTES: u64 = 64 << 10;

/// The header as it lies on the wire.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct HeaderImage {
    magic: [u8; 8],
    version: U16,
    kind: U16,
    flags: U32,
    session: U64,
    request: U64,
    layer: U32,
    token_start: U32,
    token_count: U32,
    crc32c: U32,
    payload_bytes: U64,
}

const _: () = assert!(size_of::<HeaderImage>() == HEADER_BYTES && HEADER_BYTES.is_multiple_of(8));

macro_rules! kinds {
    ($($(#[$doc:meta])* $kind:ident = $number:literal, $name:literal, $limit:expr;)*) => {
        /// What a frame is for; the number is what stands in the header.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[repr(u16)]
        pub enum Kind { $($(#[$doc])* $kind = $number,)* }

        impl Kind {
            /// Every kind of this version.
            pub const ALL: &[Kind] = &[$(Kind::$kind,)*];

            /// The kind of a number in a header, if this version knows it.
            pub fn from_number(number: u16) -> Option<Kind> {
                match number { $($number => Some(Kind::$kind),)* _ => None }
            }

            /// The name as messages print it.
            pub fn name(self) -> &'static str {
                match self { $(Kind::$kind => $name,)* }
            }

            /// Largest payload of this kind, in bytes; zero for kinds without a payload.
            pub fn max_payload_bytes(self) -> u64 {
                match self { $(Kind::$kind => $limit,)* }
            }
        }
    };
}

kinds! {
    /// Who a node is, and its challenge; the first frame in each direction.
    Hello = 1, "HELLO", MAX_HELLO_BYTES;
    /// The prefill node's answer to the challenge.
    Auth = 2, "AUTH", MAX_SMALL_CONTROL_BYTES;
    /// The decode node has accepted the session.
    Ready = 3, "READY", 0;
    /// A session or a request is refused, with the reason.
    Refuse = 4, "REFUSE", MAX_SMALL_CONTROL_BYTES;
    /// This connection is a further one of a session.
    Join = 5, "JOIN", MAX_SMALL_CONTROL_BYTES;
    /// A request, before its prefill.
    Open = 6, "OPEN", MAX_CONTROL_BYTES;
    /// The request's cache is allocated: pieces may come.
    Admit = 7, "ADMIT", MAX_SMALL_CONTROL_BYTES;
    /// A run of tokens of one layer, raw.
    Piece = 8, "PIECE", MAX_PIECE_BYTES;
    /// All pieces are queued; carries the first token.
    Start = 9, "START", MAX_SMALL_CONTROL_BYTES;
    /// A piece is in place and verified; the header says which.
    Ack = 10, "ACK", 0;
    /// One generated token.
    Token = 11, "TOKEN", MAX_SMALL_CONTROL_BYTES;
    /// The request is finished.
    Done = 12, "DONE", MAX_DONE_BYTES;
    /// The prefill node no longer wants the request.
    Cancel = 13, "CANCEL", 0;
    /// An admitted request failed, with the reason.
    Failed = 14, "FAILED", MAX_SMALL_CONTROL_BYTES;
    /// Round-trip probe; the request field is its sequence number.
    Ping = 15, "PING", 0;
    /// Answer to a probe, with its sequence number.
    Pong = 16, "PONG", 0;
    /// A made-up cache is to be sent, to measure the link.
    Probe = 17, "PROBE", MAX_SMALL_CONTROL_BYTES;
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The address of a run of tokens of one layer: what PIECE carries and ACK confirms.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct PieceHeader {
    /// The session, as the decode node numbered it.
    pub session: u64,
    /// The request within the session.
    pub request: u64,
    /// The layer, from zero.
    pub layer: u32,
    /// The first token of the run, from zero.
    pub token_start: u32,
    /// Tokens in the run.
    pub token_count: u32,
}

/// A header whose magic, version, kind and payload length have been checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// What the frame is for.
    pub kind: Kind,
    /// Reserved; zero in version 1 and ignored on reading.
    pub flags: u32,
    /// The session, zero until the decode node has numbered it.
    pub session: u64,
    /// The request within the session, zero for frames of the session itself.
    pub request: u64,
    /// The layer of a PIECE or ACK, from zero.
    pub layer: u32,
    /// The first token of a PIECE or ACK, from zero.
    pub token_start: u32,
    /// Tokens of a PIECE or ACK.
    pub token_count: u32,
    /// Length of the payload that follows, in bytes.
    pub payload_bytes: u64,
    /// CRC32C over the header with this field zeroed, then the payload.
    pub crc32c: u32,
}

impl Header {
    /// A header without token range, for a payload of the given length; not yet sealed.
    pub fn new(kind: Kind, session: u64, request: u64, payload_bytes: u64) -> Header {
        Header {
            kind,
            flags: 0,
            session,
            request,
            layer: 0,
            token_start: 0,
            token_count: 0,
            payload_bytes,
            crc32c: 0,
        }
    }

    /// A PIECE or ACK header for a run of tokens; not yet sealed.
    pub fn for_run(kind: Kind, run: PieceHeader, payload_bytes: u64) -> Header {
        Header {
            layer: run.layer,
            token_start: run.token_start,
            token_count: run.token_count,
            ..Header::new(kind, run.session, run.request, payload_bytes)
        }
    }

    /// The run of tokens that a PIECE or ACK header names.
    pub fn run(&self) -> PieceHeader {
        PieceHeader {
            session: self.session,
            request: self.request,
            layer: self.layer,
            token_start: self.token_start,
            token_count: self.token_count,
        }
    }

    /// This header with the checksum over itself and `payload` filled in.
    pub fn sealed(self, payload: &[u8]) -> Header {
        let mut checksum = Checksum::start(&self);
        checksum.update(payload);
        Header {
            crc32c: checksum.finish(),
            ..self
        }
    }

    /// The bytes on the wire.
    pub fn encode(&self) -> [u8; HEADER_BYTES] {
        zerocopy::transmute!(HeaderImage {
            magic: MAGIC,
            version: U16::new(WIRE_VERSION),
            kind: U16::new(self.kind as u16),
            flags: U32::new(self.flags),
            session: U64::new(self.session),
            request: U64::new(self.request),
            layer: U32::new(self.layer),
            token_start: U32::new(self.token_start),
            token_count: U32::new(self.token_count),
            crc32c: U32::new(self.crc32c),
            payload_bytes: U64::new(self.payload_bytes),
        })
    }

    /// Reads a header: magic first, then version, kind and the kind's payload limit.
    pub fn decode(bytes: &[u8; HEADER_BYTES]) -> Result<Header, WireError> {
        check_prefix(bytes)?;
        let image: HeaderImage = zerocopy::transmute!(*bytes);
        let number = image.kind.get();
        let kind = Kind::from_number(number).ok_or(WireError::Kind { got: number })?;
        let payload_bytes = image.payload_bytes.get();
        check_length(kind, payload_bytes)?;
        Ok(Header {
            kind,
            flags: image.flags.get(),
            session: image.session.get(),
            request: image.request.get(),
            layer: image.layer.get(),
            token_start: image.token_start.get(),
            token_count: image.token_count.get(),
            payload_bytes,
            crc32c: image.crc32c.get(),
        })
    }

    /// Checks the announced length of the payload against the bytes that are due.
    pub fn demand_payload(&self, want_bytes: usize) -> Result<(), WireError> {
        if self.payload_bytes == want_bytes as u64 {
            return Ok(());
        }
        Err(WireError::Length {
            what: self.kind.name(),
            got: self.payload_bytes,
            want: want_bytes as u64,
        })
    }

    /// Checks a payload that was read in one go against length and checksum.
    pub fn verify(&self, payload: &[u8]) -> Result<(), WireError> {
        self.demand_payload(payload.len())?;
        let mut checksum = Checksum::start(self);
        checksum.update(payload);
        self.verify_checksum(checksum)
    }

    /// Checks a checksum that was taken over the payload part by part.
    pub fn verify_checksum(&self, checksum: Checksum) -> Result<(), WireError> {
        let got = checksum.finish();
        if got == self.crc32c {
            return Ok(());
        }
        Err(WireError::Checksum {
            kind: self.kind,
            request: self.request,
            layer: self.layer,
            token_start: self.token_start,
            token_count: self.token_count,
            got,
            want: self.crc32c,
        })
    }
}

/// Checks a payload length against the limit of its kind.
pub fn check_length(kind: Kind, payload_bytes: u64) -> Result<(), WireError> {
    let limit = kind.max_payload_bytes();
    if payload_bytes > limit {
        return Err(WireError::TooLarge {
            what: kind.name(),
            got: payload_bytes,
            limit,
            flag: None,
        });
    }
    Ok(())
}

/// Checks as much of magic and version as `bytes` holds, so that a stranger who sends less
/// than a header and then waits is recognised at once.
pub fn check_prefix(bytes: &[u8]) -> Result<(), WireError> {
    let known = bytes.len().min(MAGIC.len());
    if bytes[..known] != MAGIC[..known] {
        if bytes.starts_with(&TLS_HANDSHAKE) {
            return Err(WireError::Auth(
                "the peer began a TLS handshake and this node speaks plain TCP: give both nodes \
                 --tls-identity and --tls-peer, or neither"
                    .to_owned(),
            ));
        }
        return Err(WireError::BadMagic {
            looks_like: describe_stranger(bytes),
        });
    }
    if let Some(&[low, high]) = bytes.get(MAGIC.len()..PREFIX_BYTES) {
        let got = u16::from_le_bytes([low, high]);
        if got != WIRE_VERSION {
            return Err(WireError::Version {
                got,
                want: WIRE_VERSION,
            });
        }
    }
    Ok(())
}

/// First bytes of a TLS handshake, whose peer may be one of ours.
const TLS_HANDSHAKE: [u8; 2] = [0x16, 0x03];

fn describe_stranger(bytes: &[u8]) -> String {
    const HTTP: [&[u8]; 6] = [b"GET ", b"POST ", b"PUT ", b"HEAD ", b"OPTIONS ", b"PRI "];
    if HTTP.iter().any(|method| bytes.starts_with(method)) {
        return "an HTTP request".to_owned();
    }
    for (start, name) in [
        (&b"HTTP/"[..], "an HTTP response"),
        (&b"SSH-"[..], "an SSH greeting"),
        (&[0x15, 0x03][..], "a TLS alert"),
    ] {
        if bytes.starts_with(start) {
            return name.to_owned();
        }
    }
    format!("bytes {:02x?}", &bytes[..bytes.len().min(PREFIX_BYTES)])
}

/// A CRC32C over a header and then its payload, taken part by part.
pub struct Checksum(Digest);

impl Checksum {
    /// Starts with the header, its own checksum field counted as zero.
    pub fn start(header: &Header) -> Checksum {
        let mut digest = Digest::new(CrcAlgorithm::Crc32Iscsi);
        let zeroed = Header {
            crc32c: 0,
            ..*header
        };
        digest.update(&zeroed.encode());
        Checksum(digest)
    }

    /// Adds the next bytes of the payload.
    pub fn update(&mut self, payload: &[u8]) {
        self.0.update(payload);
    }

    /// The CRC32C over all that was added.
    pub fn finish(self) -> u32 {
        // The digest is as wide as the widest CRC; a CRC32 is in its low half.
        self.0.finalize() as u32
    }
}

#[cfg(test)]
mod tests;
