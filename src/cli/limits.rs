//! What `serve-decode` takes from its peers.

use std::time::Duration;

use clap::Args;

use super::{parse_seconds, parse_size};

/// Limits of a decode node; whatever is over one is refused with the reason.
#[derive(Debug, Args)]
#[command(next_help_heading = "Limits")]
pub struct LimitArgs {
    /// Connections at once, the further ones of a session with several streams counted
    #[arg(long, default_value_t = 256, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=65_536))]
    pub max_connections: u32,
    /// Requests at once that have a cache
    #[arg(long, default_value_t = 64, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=4_096))]
    pub max_requests: u32,
    /// Longest prompt, in tokens [default: the model's context]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub max_prompt_tokens: Option<u32>,
    /// Longest answer, in tokens [default: the model's context]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub max_output_tokens: Option<u32>,
    /// Memory for all caches together [default: half of the machine's]
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub max_cache: Option<u64>,
    /// Largest piece of a cache, which peers are told
    #[arg(long, default_value = "1MiB", value_name = "SIZE", value_parser = parse_piece_size)]
    pub max_piece: u64,
    /// Largest control message, such as the request with its prompt
    #[arg(long, default_value = "4MiB", value_name = "SIZE", value_parser = parse_size)]
    pub max_message: u64,
    /// Time for a connection's handshake, and as long before it for that of TLS
    #[arg(long, default_value = "10", value_name = "SECONDS", value_parser = parse_seconds)]
    pub handshake_timeout: Duration,
    /// Longest silence between two requests, and between two pieces of a cache
    #[arg(long, default_value = "600", value_name = "SECONDS", value_parser = parse_seconds)]
    pub idle_timeout: Duration,
    /// Time for a frame that has begun, in either direction, beside --min-rate
    #[arg(long, default_value = "15", value_name = "SECONDS", value_parser = parse_seconds)]
    pub frame_timeout: Duration,
    /// Slowest that a peer may send or read the bytes of a frame, in bytes a second, beside the
    /// --frame-timeout that each frame has
    #[arg(long, default_value = "64KiB", value_name = "SIZE", value_parser = parse_size)]
    pub min_rate: u64,
}

/// Reads the size of a piece, of which a larger one is no frame of the wire.
fn parse_piece_size(text: &str) -> Result<u64, String> {
    let bytes = parse_size(text)?;
    let largest = crate::wire::MAX_PIECE_BYTES;
    match bytes <= largest {
        true => Ok(bytes),
        false => Err(format!(
            "{text:?} is over {largest} bytes, the most that a piece can have: write less"
        )),
    }
}
