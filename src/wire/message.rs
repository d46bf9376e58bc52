//! What control frames say, as JSON: the types and their meaning. Keys may be added within a
//! version and unknown ones are ignored, so nothing here denies unknown fields. Framing is
//! `frame`'s, the order of messages is `handshake`'s and the nodes'.

mod wire_dtype;

pub use wire_dtype::WireDtype;

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize};

/// Longest text of a peer's that is shown, in characters.
pub const MAX_PEER_TEXT_CHARS: usize = 600;

/// How both nodes of this version arrange a layer's cache: `(seq_len, n_kv_heads, 2 x head_dim)`.
pub const ARRANGEMENT: &str = "token-major,k|v per head";

/// 32 bytes, written as 64 hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Hex32(pub [u8; 32]);

impl TryFrom<String> for Hex32 {
    type Error = String;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        match blake3::Hash::from_hex(&text) {
            Ok(hash) => Ok(Hex32(*hash.as_bytes())),
            Err(_) => Err("64 hexadecimal digits are wanted".to_owned()),
        }
    }
}

impl From<Hex32> for String {
    fn from(bytes: Hex32) -> String {
        blake3::Hash::from_bytes(bytes.0).to_hex().to_string()
    }
}

/// The binary a node runs; recorded, and refused for nothing in it (it changes bits, not meaning).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BuildIdentity {
    /// Version of the tool.
    pub tool_version: String,
    /// Revision of the source, as git names it.
    pub git_revision: String,
    /// Target triple.
    pub target: String,
    /// Instruction set that the compute kernels use.
    pub instruction_set: String,
    /// Compute threads.
    pub threads: usize,
}

/// The machine a node runs on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NodeIdentity {
    /// Host name.
    pub host: String,
    /// What tells one machine from another; equal on both nodes of a loopback run.
    pub machine: String,
}

/// The model a node holds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ModelIdentity {
    /// Name for people; two names of one fingerprint are one model.
    pub name: String,
    /// Weight format that is computed with.
    pub weights: String,
    /// Fingerprint of the weights and of all that changes their meaning.
    pub fingerprint: String,
}

/// One layer of a cache.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerLayout {
    /// KV heads.
    pub n_kv_heads: u32,
    /// Elements of one head's K, and of its V.
    pub head_dim: u32,
    /// Tokens a sliding layer looks back, none for full attention.
    #[serde(default)]
    pub window: Option<u32>,
}

/// How a node keeps the cache of a sequence.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CacheLayout {
    /// The layers, first to last.
    pub layers: Vec<LayerLayout>,
    /// Order of elements within a layer; [`ARRANGEMENT`] in this version.
    pub arrangement: String,
}

impl CacheLayout {
    /// A layout in this version's arrangement.
    pub fn new(layers: Vec<LayerLayout>) -> CacheLayout {
        CacheLayout {
            layers,
            arrangement: ARRANGEMENT.to_owned(),
        }
    }

    /// Bytes of K and V of one token in `layer`, for elements of `dtype_bytes`; none if there
    /// is no such layer, saturating where a peer's figures overflow.
    pub fn bytes_per_token(&self, layer: usize, dtype_bytes: u64) -> Option<u64> {
        let layer = self.layers.get(layer)?;
        let elements = 2u64.saturating_mul(u64::from(layer.n_kv_heads) * u64::from(layer.head_dim));
        Some(elements.saturating_mul(dtype_bytes))
    }
}

/// What a node takes at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Prompt and output tokens of one request.
    pub max_tokens: u32,
    /// Payload of one PIECE, in bytes.
    pub max_piece_bytes: u64,
    /// Cache of one request, in bytes.
    pub max_cache_bytes: u64,
}

/// What a node says of itself: HELLO less its challenge.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Introduction {
    /// The binary.
    pub build: BuildIdentity,
    /// The machine.
    pub node: NodeIdentity,
    /// The model, none on a node that only measures the link.
    #[serde(default)]
    pub model: Option<ModelIdentity>,
    /// The cache layout, none on a node that only measures the link.
    #[serde(default)]
    pub layout: Option<CacheLayout>,
    /// The limits.
    pub limits: Limits,
    /// The environment record, passed through unread.
    #[serde(default)]
    pub environment: serde_json::Value,
}

/// HELLO: who a node is, and its challenge; one flat JSON object.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Hello {
    /// Who it is.
    #[serde(flatten)]
    pub introduction: Introduction,
    /// Whether it holds a token, and therefore wants the peer's proof of it.
    pub auth_required: bool,
    /// Its challenge, fresh for every connection.
    pub nonce: Hex32,
    /// Proof that it holds the token; the decode node's alone, which has seen both challenges.
    #[serde(default)]
    pub proof: Option<Hex32>,
}

/// AUTH: the prefill node's proof, none where no token is in use.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Auth {
    /// Proof that it holds the token.
    #[serde(default)]
    pub proof: Option<Hex32>,
}

/// Element type of a cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum KvDtype {
    /// IEEE single.
    F32,
    /// IEEE half.
    F16,
    /// Brain float.
    Bf16,
}

impl KvDtype {
    /// Size of one element, in bytes.
    pub fn bytes(self) -> u64 {
        match self {
            KvDtype::F32 => 4,
            KvDtype::F16 | KvDtype::Bf16 => 2,
        }
    }
}

/// What the decode node is to do with a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OpenRole {
    /// Receive the cache, then decode.
    Decode,
    /// Run prefill and decode itself: the single arm on that node, without pieces.
    Whole,
}

/// JOIN: this connection brings pieces of another session's requests, instead of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Join {
    /// The session, as the decode node numbered it.
    pub session: u64,
    /// Number of this connection in it, counted from 1.
    pub stream: u32,
}

/// PROBE: pieces of a made-up cache follow, to measure the link alone; answered like OPEN, and
/// with DONE once all have landed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Probe {
    /// Layers.
    pub n_layers: u32,
    /// Bytes of one token in one layer; a multiple of 8.
    pub row_bytes: u32,
    /// Tokens.
    pub tokens: u32,
}

/// OPEN: a request with all settings that are its own.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Open {
    /// The prompt.
    pub prompt_tokens: Vec<u32>,
    /// Tokens to generate, the first one included.
    pub output_tokens: u32,
    /// Element type of the cache.
    pub kv_dtype: KvDtype,
    /// Element type of pieces; none for that of the cache.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wire_dtype: Option<WireDtype>,
    /// Prefill chunk, in tokens; none for the whole prompt at once.
    #[serde(default)]
    pub chunk_tokens: Option<u32>,
    /// Whether to go on after end-of-sequence, so that lengths are exact.
    pub ignore_eos: bool,
    /// What the decode node is to do.
    pub role: OpenRole,
}

/// ADMIT: the request's cache is allocated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Admit {
    /// Tokens that the cache holds.
    pub capacity_tokens: u32,
    /// Other requests that have a cache now.
    pub others_in_flight: u32,
}

/// Why something was refused, for programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RefuseCode {
    /// Another wire version.
    Version,
    /// Another model or weight format.
    Model,
    /// Another cache layout.
    Layout,
    /// No token, or a wrong one.
    Auth,
    /// No room now; later there may be.
    Busy,
    /// Over a limit.
    Limit,
    /// The node is shutting down.
    Draining,
    /// Not a request that makes sense.
    BadRequest,
}

impl fmt::Display for RefuseCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            RefuseCode::Version => "version",
            RefuseCode::Model => "model",
            RefuseCode::Layout => "layout",
            RefuseCode::Auth => "auth",
            RefuseCode::Busy => "busy",
            RefuseCode::Limit => "limit",
            RefuseCode::Draining => "draining",
            RefuseCode::BadRequest => "bad-request",
        })
    }
}

/// REFUSE: a session or a request is not taken.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refuse {
    /// Why, for programs.
    pub code: RefuseCode,
    /// Why and what to do, for people.
    pub reason: String,
}

/// START: all pieces are queued, and the first token was sampled on the prefill node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Start {
    /// The first token.
    pub first_token: u32,
}

/// TOKEN: one generated token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenMessage {
    /// Position in the output, from zero.
    pub index: u32,
    /// The token.
    pub token: u32,
}

/// What proves one token: of the logits it was chosen from, on the decode node.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StepRecord {
    /// Digest of the step's raw logits, in hexadecimal.
    pub digest: String,
    /// The best tokens with their logits; what is not finite arrives as NaN.
    #[serde(deserialize_with = "null_logits_as_nan")]
    pub top: Vec<(u32, f32)>,
    /// Duration of the digest, taken after the token had left.
    pub digest_ns: u64,
}

/// JSON has no NaN and no infinity: they are written as null, and must not make the whole
/// record of a sick model unreadable.
pub fn null_logits_as_nan<'de, D: Deserializer<'de>>(
    input: D,
) -> Result<Vec<(u32, f32)>, D::Error> {
    let top = Vec::<(u32, Option<f32>)>::deserialize(input)?;
    Ok(top
        .into_iter()
        .map(|(token, logit)| (token, logit.unwrap_or(f32::NAN)))
        .collect())
}

/// Something that happened at a moment, on the decode node's clock.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// What happened.
    pub name: String,
    /// The layer, where it concerns one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub layer: Option<u32>,
    /// The prefill chunk or the index of a step, where it concerns one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chunk: Option<u32>,
    /// First position of a piece, where it concerns one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token_start: Option<u32>,
    /// The connection, where it concerns one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stream: Option<u32>,
    /// When, since a moment of the decode node's choice.
    pub t_ns: u64,
}

/// DONE: the request is finished, with what the decode node measured.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Done {
    /// The steps, in order.
    pub steps: Vec<StepRecord>,
    /// `length` or `eos`.
    pub finish: String,
    /// The raw events.
    pub events: Vec<Event>,
    /// Digest of the cache as it landed, in hexadecimal.
    #[serde(default)]
    pub cache_digest: Option<String>,
    /// Memory of the decode node.
    #[serde(default)]
    pub memory: Option<NodeMemory>,
    /// What the decode node's process and machine did so far, passed through unread.
    #[serde(default, skip_serializing_if = "serde_json::Value::is_null")]
    pub activity: serde_json::Value,
    /// The most other requests that had a cache at any moment of this one.
    #[serde(default)]
    pub others_in_flight: Option<u32>,
    /// How busy receiving kept the decode node; a probe's alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub receiving: Option<Receiving>,
}

/// Memory of a node's process, in bytes; none where its system does not tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeMemory {
    /// Resident when it was ready to serve.
    #[serde(default)]
    pub loaded_bytes: Option<u64>,
    /// Most that was resident since.
    #[serde(default)]
    pub peak_bytes: Option<u64>,
    /// KV caches that it keeps, used or not.
    pub cache_bytes: u64,
}

/// The decode node's work on a cache, from ADMIT until all of it had landed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Receiving {
    /// CPU time of the thread that serves the network.
    pub cpu_ns: u64,
    /// Time that passed.
    pub wall_ns: u64,
    /// The core that this thread was on at the end, where the system tells.
    #[serde(default)]
    pub core: Option<u32>,
}

/// FAILED: an admitted request could not be finished.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failed {
    /// Why and what to do, for people.
    pub reason: String,
    /// Whether bytes changed on the way.
    #[serde(default)]
    pub checksum: bool,
}

/// A peer's text as it may be shown: no control characters (a terminal obeys them), and short.
pub fn printable(text: &str) -> String {
    let mut shown: String = text
        .chars()
        .take(MAX_PEER_TEXT_CHARS)
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect();
    if text.chars().nth(MAX_PEER_TEXT_CHARS).is_some() {
        shown.push('…');
    }
    shown
}

#[cfg(test)]
mod tests;
