//! The record of a run: what was configured, where it ran, and the raw samples.
//!
//! This is the seam between measuring and reporting. Measuring fills a [`Record`] and writes it
//! after every case; reporting only reads it. Times are integers in ns on the clock of one node,
//! sizes integers in bytes; every other number is derived in [`figures`], on read.

pub mod changes;
pub mod clock;
pub mod figures;
pub mod interference;
pub(crate) mod limits;
mod lossy;
mod observed;
#[cfg(test)]
mod schema;
mod stopped;
pub mod summary;

pub use lossy::Lossy;
pub use observed::{Look, Observed, OtherLoad};
pub use stopped::{Stopped, StoppedBy, width_pct};

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::Context;
use serde::{Deserialize, Serialize};

use crate::environment::{Environment, NetworkInterface};
use crate::link::{Fit, FitOrigin};
use crate::text_file::{self, MAX_RECORD_BYTES};
use crate::wire::message::{KvDtype, WireDtype};
use crate::wire::socket::{SocketFacts, TcpInfo};

/// Version of the record's schema; a reader refuses any other.
pub const SCHEMA_VERSION: u32 = 1;

/// One run, complete: one file.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Record {
    /// [`SCHEMA_VERSION`] of the writer.
    pub schema_version: u32,
    /// What ran and how it ended.
    pub run: RunInfo,
    /// Every effective setting with where it came from.
    pub configuration: BTreeMap<String, Setting>,
    /// The machines.
    pub environment: Environments,
    /// The model, the same on both nodes.
    pub model: ModelRecord,
    /// The connection between the nodes; null where nothing was sent.
    pub link: Option<LinkRecord>,
    /// Resident memory of the prefill node.
    pub memory: Memory,
    /// Resident memory of the decode node; null where there is none or it served no request.
    #[serde(default)]
    pub decode_memory: Option<Memory>,
    /// blake3 over all prompts and their settings (32 hex digits); null in records from before it
    /// was taken.
    #[serde(default)]
    pub prompt_set_digest: Option<String>,
    /// The earlier baseline that this run is compared with; null where there is none.
    pub baseline: Option<BaselineUse>,
    /// One entry a prompt.
    pub cases: Vec<Case>,
    /// A running sequence while another prompt is prefilled; null where it was not asked for.
    #[serde(default)]
    pub interference: Option<interference::Interference>,
    /// What was going on around the requests.
    #[serde(default)]
    pub observed: Observed,
}

/// Resident memory of a process; null where the system does not tell.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Memory {
    /// With the model loaded, before the first request.
    pub loaded_bytes: Option<u64>,
    /// The most since then.
    pub peak_bytes: Option<u64>,
    /// KV caches that the process keeps, used or not, as far as it had to grow.
    #[serde(default)]
    pub cache_bytes: u64,
}

impl From<crate::wire::message::NodeMemory> for Memory {
    fn from(memory: crate::wire::message::NodeMemory) -> Self {
        Self {
            loaded_bytes: memory.loaded_bytes,
            peak_bytes: memory.peak_bytes,
            cache_bytes: memory.cache_bytes,
        }
    }
}

/// An earlier baseline next to this run.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct BaselineUse {
    /// Its file.
    pub file: String,
    /// When it was measured.
    pub measured_at: String,
    /// Whether its samples stand in for the single arm, which was then not measured.
    pub stands_in: bool,
    /// What makes the comparison doubtful: another host or build.
    pub warnings: Vec<String>,
    /// Its E2E figures by prompt, ms.
    pub e2e_ms: BTreeMap<String, crate::stats::Figure>,
}

/// What ran and how it ended.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct RunInfo {
    /// Subcommand.
    pub command: String,
    /// The command line, without secrets (they are never taken from it).
    pub argv: Vec<String>,
    /// Version of this tool.
    pub tool_version: String,
    /// Revision it was built from.
    pub git_revision: String,
    /// `release` or `debug`.
    pub profile: String,
    /// UTC, RFC 3339.
    pub started_at: String,
    /// UTC, RFC 3339; when an interrupted run was taken up again, once each time.
    #[serde(default)]
    pub resumed_at: Vec<String>,
    /// UTC, RFC 3339; null while running.
    pub finished_at: Option<String>,
    /// How far it came.
    pub status: Status,
    /// Seed of the order of arms.
    pub seed: u64,
    /// Why it failed, or null.
    pub error: Option<String>,
}

/// How far a run came.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum Status {
    /// Still going on, or killed without a chance to say so.
    Running,
    /// All cases were measured.
    Complete,
    /// Stopped by Ctrl-C; what was measured is here.
    Interrupted,
    /// Stopped by an error; what was measured is here.
    Failed,
}

/// An effective setting and where it came from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Setting {
    /// Value in effect.
    pub value: serde_json::Value,
    /// Where it came from.
    pub origin: Origin,
}

/// Where a setting came from, strongest first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum Origin {
    /// A command-line flag.
    Flag,
    /// An environment variable.
    Environment,
    /// A configuration file, by name.
    File(String),
    /// Nobody said otherwise.
    Default,
}

impl std::fmt::Display for Origin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Flag => f.write_str("flag"),
            Self::Environment => f.write_str("environment"),
            Self::File(name) => write!(f, "{name}"),
            Self::Default => f.write_str("default"),
        }
    }
}

/// The machines of a run.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Environments {
    /// The prefill node; in a single-node run, the only one.
    pub prefill: Environment,
    /// The decode node; null where there is none.
    pub decode: Option<Environment>,
}

impl Environments {
    /// Whether both nodes run on one machine and share its cores.
    pub fn shared_machine(&self) -> bool {
        (self.decode.as_ref()).is_some_and(|d| d.is_same_machine(&self.prefill))
    }
}

/// The model that ran.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct ModelRecord {
    /// Built-in name, or that of the file.
    pub name: String,
    /// SHA-256 of its file.
    pub file_sha256: String,
    /// Weights that ran, such as `as-is: q4_1, q8_0`.
    pub weights: String,
    /// What computed on the prefill node, such as `matrices own, avx512-vnni; vectors avx512`.
    #[serde(default)]
    pub kernels: Option<String>,
    /// Digest over file and weights.
    pub fingerprint: String,
    /// Bytes of the matrices as loaded.
    pub weight_bytes: u64,
    /// Decoder layers.
    pub n_layers: u32,
    /// K/V heads.
    pub n_kv_heads: u32,
    /// Width of a head.
    pub head_dim: u32,
    /// Bytes of KV cache that one token takes in the run's KV dtype.
    pub kv_bytes_per_token: u64,
    /// Weights of the layers' matrices: twice as many operations for a token of a prompt. Null in
    /// records from before they were counted.
    #[serde(default)]
    pub layer_weights: Option<u64>,
    /// Layers of the shape that random weights were made for, of which `n_layers` ran; null for the
    /// weights of a model.
    #[serde(default)]
    pub random_of_layers: Option<u32>,
    /// Time from opening the file to being ready.
    pub load_ns: u64,
}

/// The connection that carried the caches.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct LinkRecord {
    /// `tcp`, or `tls over tcp`.
    pub transport: String,
    /// Whether the bytes stayed inside one machine on the loopback interface.
    pub loopback: bool,
    /// Socket options as read back on the prefill node.
    pub socket: SocketFacts,
    /// The kernel's view of the connection before the first request.
    pub tcp_info_before: Option<TcpInfo>,
    /// And after the last one.
    pub tcp_info_after: Option<TcpInfo>,
    /// Round trips of an empty message, in the order taken.
    pub round_trips_ns: Vec<u64>,
    /// What a transfer takes on this link, for this number of streams; null where it could not be
    /// fitted and in records from before it was.
    #[serde(default)]
    pub fit: Option<Fit>,
    /// Where the fit came from; null without one.
    #[serde(default)]
    pub fit_origin: Option<FitOrigin>,
    /// The interface that carried the bytes, on the prefill node; null where the system does not
    /// tell and in records from before it was looked for.
    #[serde(default)]
    pub interface: Option<NetworkInterface>,
}

impl LinkRecord {
    /// The smallest round trip: half of it is the way back of an acknowledgement.
    pub fn min_round_trip_ns(&self) -> Option<u64> {
        self.round_trips_ns.iter().min().copied()
    }
}

/// One prompt and its samples in every arm.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Case {
    /// Name of the prompt.
    pub prompt: String,
    /// blake3 of the prompt's token ids (32 hex digits).
    pub prompt_digest: String,
    /// Prompt length.
    pub prompt_tokens: u32,
    /// Tokens asked for; with an end-of-sequence token there may come fewer.
    pub output_tokens: u32,
    /// Whether generation went on behind the end-of-sequence token.
    pub ignore_eos: bool,
    /// Bytes of KV cache of the prompt.
    pub kv_bytes: u64,
    /// All samples in the order measured, warm-up and failures included.
    pub samples: Vec<Sample>,
    /// What the comparison of the arms' answers gave; null with one arm.
    pub check: Option<Check>,
    /// What lossy wire formats cost the answer, one entry a format that was measured.
    #[serde(default)]
    pub lossy: Vec<Lossy>,
    /// What ended `--repeats auto`; null where a number was given.
    #[serde(default)]
    pub stopped: Option<Stopped>,
}

/// One way of running a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum Arm {
    /// One node does both phases.
    Single,
    /// The prefill node prefills, the decode node decodes.
    Split,
}

impl std::fmt::Display for Arm {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Single => "single",
            Self::Split => "split",
        })
    }
}

/// A node, and the clock of that node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum Node {
    /// Prefills; sends requests and collects tokens.
    Prefill,
    /// Receives caches and decodes.
    Decode,
}

impl std::fmt::Display for Node {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Prefill => "prefill",
            Self::Decode => "decode",
        })
    }
}

/// When the cache crosses the link.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, clap::ValueEnum,
)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum Transfer {
    /// After prefill, all at once.
    Bulk,
    /// Each layer of each prefill chunk as soon as its K and V exist, behind the layers after it.
    Layered,
    /// Of these two the one that is predicted to expose less, for every request anew.
    Auto,
}

impl std::fmt::Display for Transfer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Bulk => "bulk",
            Self::Layered => "layered",
            Self::Auto => "auto",
        })
    }
}

/// One request, raw.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Sample {
    /// How it ran.
    pub arm: Arm,
    /// The node that produced the tokens after the first.
    pub node: Node,
    /// When the cache crossed the link; null in the single arm.
    pub transfer: Option<Transfer>,
    /// Element type of the cache.
    pub kv_dtype: KvDtype,
    /// Element type on the wire; null in the single arm.
    pub wire_dtype: Option<WireDtype>,
    /// What `auto` picked and why; null in every other arm.
    #[serde(default)]
    pub choice: Option<Choice>,
    /// TCP connections that carried pieces; 0 in the single arm.
    pub streams: u32,
    /// Time from the end of the cache before this one on the same connections until this one's
    /// first piece; null where it was their first, and where no cache was sent.
    #[serde(default)]
    pub idle_before_ns: Option<u64>,
    /// The most other requests that the decode node had at any moment of this one; null where it
    /// took no part.
    #[serde(default)]
    pub others_in_flight: Option<u32>,
    /// In records of earlier builds alone, instead: those when this one was admitted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waiting_ahead: Option<u32>,
    /// How often the connection was tried right before this request until it was open; null where
    /// one was kept from the request before.
    #[serde(default)]
    pub connect_attempts: Option<u32>,
    /// Prefill chunk; null for the whole prompt at once.
    pub chunk_tokens: Option<u32>,
    /// Not part of any figure.
    pub warmup: bool,
    /// Which repeat of the case, counted from 0.
    pub repeat: u32,
    /// Position in the whole run, counted from 0.
    pub order: u32,
    /// KV bytes that were sent.
    pub wire_payload_bytes: u64,
    /// Headers and control messages that were sent for this request.
    pub wire_framing_bytes: u64,
    /// The answer; null where the request failed.
    pub output: Option<Output>,
    /// What happened when.
    pub events: Vec<Event>,
    /// Why it failed, or null.
    pub error: Option<String>,
}

impl Sample {
    /// Whether it enters figures: no warm-up and no failure.
    pub fn is_measured(&self) -> bool {
        !self.warmup && self.error.is_none()
    }

    /// Whether decode started from another cache than prefill left.
    pub fn is_lossy(&self) -> bool {
        self.wire_dtype.is_some_and(WireDtype::is_lossy)
    }
}

/// What `auto` picked for one request.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Choice {
    /// [`Transfer::Bulk`] or [`Transfer::Layered`].
    pub picked: Transfer,
    /// Transfer that the request was predicted to wait for, had it been picked; null where no
    /// prefill had been measured before or the link could not be fitted.
    pub bulk_exposed_ns: Option<u64>,
    /// The same of the other one.
    pub layered_exposed_ns: Option<u64>,
    /// Length of the prompt whose measured prefill this rests on.
    pub measured_prompt_tokens: Option<u32>,
}

/// The answer of one request and what proves it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Output {
    /// Token ids.
    pub tokens: Vec<u32>,
    /// The tokens as text.
    pub text: String,
    /// What ended it.
    pub finish: Finish,
    /// One entry a token.
    pub steps: Vec<StepProof>,
    /// Digest of the prompt's cache where prefill left it (32 hex digits); null in the single arm.
    pub sent_cache_digest: Option<String>,
    /// Digest of the prompt's cache where decode found it; null in the single arm.
    pub landed_cache_digest: Option<String>,
}

/// What ended an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum Finish {
    /// All tokens that were asked for.
    Length,
    /// The model's end-of-sequence token.
    EndOfSequence,
}

/// Of the logits that one token was chosen from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct StepProof {
    /// Digest of the raw bits of all logits (16 hex digits).
    pub digest: String,
    /// The best candidates and their scores, best first; what is not finite is NaN.
    #[serde(deserialize_with = "crate::wire::message::null_logits_as_nan")]
    #[cfg_attr(test, schemars(with = "Vec<(u32, Option<f32>)>"))]
    pub top: Vec<(u32, f32)>,
    /// Time that taking this proof took. It is outside every figure: proofs are taken after the
    /// last token, unless the logits of a long answer fill 256 MiB before.
    pub proof_ns: u64,
}

/// Something that happened, on the clock of one node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Event {
    /// Where it happened, and whose clock `t_ns` was read from.
    pub clock: Node,
    /// What happened.
    pub name: EventName,
    /// Layer, where it belongs to one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub layer: Option<u32>,
    /// Prefill chunk, or index of the token for `token`, `step-start` and `step-end`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chunk: Option<u32>,
    /// First position of a piece.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token_start: Option<u32>,
    /// Connection, counted from 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stream: Option<u32>,
    /// ns since this node learned of the request.
    pub t_ns: u64,
}

/// What can happen to a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum EventName {
    /// The request starts; zero of the prefill node's clock.
    RequestStart,
    /// The decode node admitted the request.
    Admitted,
    /// Prefill starts.
    PrefillStart,
    /// K and V of a layer and chunk are in the local cache.
    LayerDone,
    /// With a device: K and V of a layer and chunk start to be copied to the host, or, without a
    /// layer, those of the whole prompt to the device.
    StagingStart,
    /// The copy is complete.
    StagingEnd,
    /// The logits of the first token exist.
    PrefillEnd,
    /// A token is known on the prefill node, where the user would be.
    Token,
    /// A piece is handed to the socket.
    PieceOffered,
    /// The socket took the last byte of a piece.
    PieceSent,
    /// A piece is in place and verified on the decode node.
    PieceLanded,
    /// The acknowledgement of a piece came back.
    PieceAcknowledged,
    /// The last piece is in place and verified, and the first token is known.
    CacheComplete,
    /// A decode step starts.
    StepStart,
    /// The logits of a decode step exist.
    StepEnd,
    /// The last token is known on the prefill node.
    RequestEnd,
}

/// How equal the answers of the arms of one case are.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Check {
    /// Whether every cache byte that landed equals what was sent; null if nothing was sent.
    pub landed: Option<bool>,
    /// Level that the answers of the arms reached; null where only one arm answered.
    pub outputs: Option<Agreement>,
    /// What is demanded of these two nodes.
    pub demanded: Agreement,
    /// What differs, in words; empty when nothing does.
    pub findings: Vec<String>,
}

impl Check {
    /// Whether the case may be believed.
    pub fn passed(&self) -> bool {
        let differ = self.outputs.is_some_and(|outputs| outputs < self.demanded);
        self.landed != Some(false) && !differ
    }
}

/// How equal two answers are; later is stronger.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum Agreement {
    /// Not even equivalent.
    Differ,
    /// Logits within the tolerance; tokens equal unless the best two were closer than it.
    Equivalent,
    /// The same tokens from the same logit bits in every step.
    Identical,
}

impl std::fmt::Display for Agreement {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Differ => "differ",
            Self::Equivalent => "equivalent",
            Self::Identical => "identical",
        })
    }
}

impl Record {
    /// Reads a record, refusing other schema versions and numbers that nobody measured.
    pub fn read(path: &Path) -> anyhow::Result<Self> {
        let text = text_file::read(path, MAX_RECORD_BYTES).map_err(|error| {
            anyhow::anyhow!(
                "cannot read the run file {}: {error}: give the run.json of a run, or its folder",
                path.display()
            )
        })?;
        #[derive(Deserialize)]
        struct Version {
            schema_version: u32,
        }
        let not_a_run = || {
            format!(
                "{} is not a run file of this tool: give the run.json of a run, or its folder",
                path.display()
            )
        };
        let version: Version = serde_json::from_str(&text).with_context(not_a_run)?;
        anyhow::ensure!(
            version.schema_version == SCHEMA_VERSION,
            "{} has schema version {}, this build reads {SCHEMA_VERSION}: use the build that wrote it",
            path.display(),
            version.schema_version,
        );
        let record: Self = serde_json::from_str(&text).with_context(not_a_run)?;
        limits::check(&record)
            .map_err(|why| anyhow::anyhow!("{} cannot be used: {why}", path.display()))?;
        Ok(record)
    }

    /// Writes the record atomically: a reader sees the old file or the new one.
    pub fn write(&self, path: &Path) -> anyhow::Result<()> {
        write_atomically(path, serde_json::to_string(self)?.as_bytes())
    }

    /// The weakest check of all cases; null without a case that was checked.
    pub fn outputs(&self) -> Option<Agreement> {
        (self.cases.iter())
            .filter_map(|c| c.check.as_ref())
            .filter_map(|check| match check.landed {
                Some(false) => Some(Agreement::Differ),
                _ => check.outputs,
            })
            .min()
    }

    /// Whether any case or the interference failed its check.
    pub fn check_failed(&self) -> bool {
        let case_failed = |c: &Case| c.check.as_ref().is_some_and(|check| !check.passed());
        self.cases.iter().any(case_failed)
            || self.interference.as_ref().is_some_and(|i| !i.passed())
    }
}

/// Writes a file under a temporary name in the same folder and renames it. A device or a pipe is
/// written to: it must not be replaced by a file.
pub fn write_atomically(path: &Path, content: &[u8]) -> anyhow::Result<()> {
    use std::io::Write;
    let cannot = || format!("cannot write {}", path.display());
    if path
        .metadata()
        .is_ok_and(|there| !there.is_file() && !there.is_dir())
    {
        return std::fs::write(path, content).with_context(cannot);
    }
    let folder = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let mut file = tempfile::Builder::new()
        .prefix(".disagg-bench-")
        .permissions(file_permissions())
        .tempfile_in(folder)
        .with_context(cannot)?;
    file.write_all(content).with_context(cannot)?;
    file.persist(path).with_context(cannot)?;
    Ok(())
}

/// As other programs create files: readable by all, less the user's umask.
fn file_permissions() -> std::fs::Permissions {
    use std::os::unix::fs::PermissionsExt;
    std::fs::Permissions::from_mode(0o666)
}
