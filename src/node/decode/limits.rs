//! What a decode node takes from its peers at most, and how long it waits for them.

use std::time::Duration;

use crate::wire::handshake::HANDSHAKE_TIMEOUT;
use crate::wire::{FrameLimits, Pace};

/// Bounds on what peers can make a decode node hold or wait for; its caches are bounded by their
/// pool.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Connections at once: sessions and their further streams.
    pub connections: usize,
    /// Requests at once that have a cache, all peers together.
    pub requests: usize,
    /// Largest frames.
    pub frames: FrameLimits,
    /// Longest prompt; none for the model's context.
    pub prompt_tokens: Option<u32>,
    /// Longest answer; none for the model's context.
    pub output_tokens: Option<u32>,
    /// For the handshake, and as long before it for that of TLS.
    pub handshake: Duration,
    /// Longest silence of a peer that may send: between requests, and while its cache arrives.
    pub idle: Duration,
    /// The slowest that a frame may move, in either direction.
    pub pace: Pace,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 256,
            requests: 64,
            frames: FrameLimits::WIRE,
            prompt_tokens: None,
            output_tokens: None,
            handshake: HANDSHAKE_TIMEOUT,
            idle: Duration::from_secs(600),
            pace: Pace::USUAL,
        }
    }
}
