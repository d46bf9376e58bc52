//! Version 1 of the wire between a prefill node and a decode node.
//!
//! `frame` and `message` say what the bytes mean and do no IO; `connection` moves frames over
//! any byte stream, `pace` how slow one may be; `auth` and `handshake` settle who talks to whom;
//! `socket` opens the TCP streams and reads back what the kernel made of them, `source` says where
//! they start; `stream` makes halves to read and write of them, with `tls` in between where the
//! build has it. This module knows no tensors, no caches and no other module of the crate: what a
//! piece is for is `node`'s business.

pub mod auth;
pub mod connection;
pub mod error;
pub mod frame;
pub mod handshake;
pub mod message;
mod pace;
pub mod socket;
mod source;
pub mod stream;
#[cfg(feature = "tls")]
pub mod tls;

pub use auth::Token;
pub use connection::{FrameLimits, FrameReader, FrameWriter, WireBytes};
pub use error::WireError;
pub use frame::{Header, Kind, MAX_PIECE_BYTES, PieceHeader, WIRE_VERSION};
pub use handshake::{Session, initiate, respond};
pub use pace::Pace;
pub use source::{Interface, Source};
pub use stream::{ReadHalf, Transport, WriteHalf};
