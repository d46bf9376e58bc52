//! Everything that can go wrong on the wire, each with what was got, what was wanted and what
//! to do next. Exit codes and retries are left to the callers.

use std::io;
use std::time::Duration;

use super::frame::Kind;
use super::message::RefuseCode;

/// A fault between two nodes; no variant carries a secret.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// The operating system failed a read, write or socket call.
    #[error("{doing} failed: {error}")]
    Io {
        /// What was being done, as the start of a sentence.
        doing: &'static str,
        /// What the operating system said; part of the message, so no separate source.
        error: io::Error,
    },
    /// The peer closed the connection between two frames.
    #[error("the peer closed the connection: see its own output for the reason")]
    Closed,
    /// The peer closed the connection inside a frame.
    #[error("the peer closed the connection in the middle of {what}: see its own output")]
    ClosedAmid {
        /// The part of the frame that was cut.
        what: &'static str,
    },
    /// The first bytes of a frame are not ours.
    #[error(
        "this is not a disagg-bench peer, it sent {looks_like}: check the address and the port"
    )]
    BadMagic {
        /// What the bytes look like.
        looks_like: String,
    },
    /// The peer speaks another version of the wire.
    #[error(
        "peer speaks wire version {got}, this build speaks {want}: build both nodes from one commit"
    )]
    Version {
        /// The peer's version.
        got: u16,
        /// Our version.
        want: u16,
    },
    /// A frame kind that this version does not know.
    #[error("unknown frame kind {got}: build both nodes from one commit")]
    Kind {
        /// The number in the header.
        got: u16,
    },
    /// A length over its named limit, found before anything was allocated for it.
    #[error(
        "{what} of {got} bytes is over the limit of {limit} bytes: send it in smaller parts{}",
        or_raise(*flag)
    )]
    TooLarge {
        /// The frame or message that is too large.
        what: &'static str,
        /// The length claimed or asked for, in bytes.
        got: u64,
        /// The limit, in bytes.
        limit: u64,
        /// What raises the limit, where the wire itself allows more.
        flag: Option<&'static str>,
    },
    /// A payload whose length is not what its place needs.
    #[error(
        "{what} of {got} bytes where {want} are wanted: the nodes disagree on the cache layout, build both from one commit"
    )]
    Length {
        /// The frame in question.
        what: &'static str,
        /// The length in the header, in bytes.
        got: u64,
        /// The length of its place, in bytes.
        want: u64,
    },
    /// Header and payload do not match their checksum.
    #[error(
        "checksum of {kind} (request {request}, layer {layer}, tokens {token_start}..{}) is {got:08x}, its header says {want:08x}: the bytes changed on the way, check network card and memory",
        u64::from(*token_start) + u64::from(*token_count)
    )]
    Checksum {
        /// The kind of the damaged frame.
        kind: Kind,
        /// Request field of the header, itself possibly damaged, as are the next three.
        request: u64,
        /// Layer field of the header.
        layer: u32,
        /// First token of the piece.
        token_start: u32,
        /// Tokens in the piece.
        token_count: u32,
        /// CRC32C over what arrived.
        got: u32,
        /// CRC32C in the header.
        want: u32,
    },
    /// A control message that is not the JSON it should be.
    #[error("cannot read the peer's {kind} message ({reason}): build both nodes from one commit")]
    Json {
        /// The kind of the message.
        kind: Kind,
        /// Where and why parsing stopped; made printable, as it can quote the peer.
        reason: String,
    },
    /// A frame that has no place at this point of the conversation.
    #[error("the peer sent {got} where {want} is due: build both nodes from one commit")]
    Unexpected {
        /// The kind that came.
        got: Kind,
        /// The kind that was due.
        want: Kind,
    },
    /// A frame of another session on this connection.
    #[error("the peer sent a frame of session {got:016x} on session {want:016x}: reconnect")]
    ForeignSession {
        /// The session in the header.
        got: u64,
        /// The session of this connection.
        want: u64,
    },
    /// The peer refused; the reason is in its words and names the next step.
    #[error("the peer refused ({code}), in its words: {reason}")]
    Refused {
        /// Why, for programs.
        code: RefuseCode,
        /// Why, for people; made printable and short.
        reason: String,
    },
    /// The peer accepted a request and then failed it.
    #[error("the peer failed the request, in its words: {reason}")]
    PeerFailed {
        /// Whether bytes changed on the way to the peer.
        checksum: bool,
        /// Why, for people; made printable and short.
        reason: String,
    },
    /// Authentication is missing, wrong or misconfigured.
    #[error("{0}")]
    Auth(String),
    /// The two nodes hold different models.
    #[error(
        "the models differ: prefill node has {prefill}, decode node has {decode}: give both the same --model and --weights"
    )]
    ModelMismatch {
        /// The prefill node's model.
        prefill: String,
        /// The decode node's model.
        decode: String,
    },
    /// The two nodes keep their caches differently.
    #[error(
        "the cache layouts differ: prefill node has {prefill}, decode node has {decode}: build both nodes from one commit and give both the same --model"
    )]
    LayoutMismatch {
        /// The prefill node's layout, where it first differs.
        prefill: String,
        /// The decode node's layout, where it first differs.
        decode: String,
    },
    /// A node's limit is too small to carry anything.
    #[error(
        "the {node} node takes pieces of {got} bytes, one token of a layer needs {want}: raise its piece limit"
    )]
    PieceLimit {
        /// `prefill` or `decode`.
        node: &'static str,
        /// The limit it announced, in bytes.
        got: u64,
        /// The least that is useful, in bytes.
        want: u64,
    },
    /// Nothing came in time.
    #[error(
        "{what} did not finish within {} s: check that the peer is alive and that no firewall or MTU limit is in the way{}",
        after.as_secs_f64(), or_raise(*flag)
    )]
    Timeout {
        /// What was waited for, as the start of a sentence.
        what: &'static str,
        /// How long was waited.
        after: Duration,
        /// What makes it longer, where it is the decode node's to set.
        flag: Option<&'static str>,
    },
    /// A frame began and did not go on.
    #[error(
        "the peer began to send {bytes} bytes and they were not there after {:.1} s: it stalled or the link is too slow, see --frame-timeout and --min-rate of serve-decode",
        after.as_secs_f64()
    )]
    TooSlow {
        /// Bytes of the part of a frame that was due.
        bytes: u64,
        /// How long was waited.
        after: Duration,
    },
    /// The peer does not take what it is sent.
    #[error(
        "the peer did not take {bytes} bytes within {:.1} s: it stalled or the link is too slow, see --frame-timeout and --min-rate of serve-decode",
        after.as_secs_f64()
    )]
    NotReading {
        /// Bytes of the frame.
        bytes: u64,
        /// How long was waited.
        after: Duration,
    },
    /// Small messages pass, full segments do not.
    #[error(
        "the handshake got through and bulk data does not: segments of {segment_bytes} bytes were sent again {resent} times and never acknowledged, so something on the way drops them, a smaller MTU or a firewall: `ping -M do -s {segment_bytes}` to the peer must pass, else lower the MTU of this interface"
    )]
    BulkHangs {
        /// Payload of a full segment, in bytes.
        segment_bytes: u32,
        /// How often segments were sent again on that connection.
        resent: u32,
    },
    /// What was given is no address, or stands for none; the text names the next step.
    #[error("{0}")]
    Address(String),
    /// No connection could be made; the text names the next step.
    #[error("{0}")]
    Connect(String),
    /// The listening socket could not be opened; the text names the next step.
    #[error("{0}")]
    Listen(String),
    /// A socket option could not be set; the text names the next step.
    #[error("{0}")]
    SocketOption(String),
}

/// The end of a sentence about a limit.
fn or_raise(flag: Option<&str>) -> String {
    flag.map_or_else(String::new, |flag| {
        format!(", or raise {flag} of serve-decode")
    })
}

impl WireError {
    /// The refusal to send the peer for this error, or none where the peer is not to be
    /// answered (it is gone, refused first, or is no peer of ours).
    pub fn refuse_code(&self) -> Option<RefuseCode> {
        match self {
            Self::Version { .. } => Some(RefuseCode::Version),
            Self::ModelMismatch { .. } => Some(RefuseCode::Model),
            Self::LayoutMismatch { .. } => Some(RefuseCode::Layout),
            Self::Auth(_) => Some(RefuseCode::Auth),
            Self::TooLarge { .. } | Self::PieceLimit { .. } => Some(RefuseCode::Limit),
            Self::Kind { .. }
            | Self::Length { .. }
            | Self::Checksum { .. }
            | Self::Json { .. }
            | Self::Unexpected { .. }
            | Self::ForeignSession { .. }
            | Self::TooSlow { .. }
            | Self::Timeout { .. } => Some(RefuseCode::BadRequest),
            Self::Io { .. }
            | Self::Closed
            | Self::ClosedAmid { .. }
            | Self::BadMagic { .. }
            | Self::Refused { .. }
            | Self::PeerFailed { .. }
            | Self::NotReading { .. }
            | Self::BulkHangs { .. }
            | Self::Address(_)
            | Self::Connect(_)
            | Self::Listen(_)
            | Self::SocketOption(_) => None,
        }
    }
}
