//! Should I split LLM prefill and decode across my two machines?
//!
//! # The way of a request
//!
//! ```text
//! cli, config → cmd → preparation (model, prompts) → experiment
//!   prefill node                                   decode node
//!   prefill, layer by layer
//!     └ K and V of each layer → pieces ──────────▶ straight into the request's cache
//!   first token                                    verify, acknowledge
//!   ◀── token, token, token … ──────────────────── decode steps
//!   samples of both nodes → metrics → stats → check, verdict → report
//! ```
//!
//! # Modules
//!
//! - [`cli`], [`config`]: what can be said, and what it amounts to with its origins.
//! - [`cmd`]: one file a command. [`preparation`], [`local_peer`], [`cores`], [`terminal`],
//!   [`text_file`] serve them.
//! - [`workload`]: where prompts come from.
//! - [`model`]: source, tokenizer, weights, decoder, KV cache, devices, engine.
//! - [`wire`]: frames, messages, handshake, sockets, TLS where the feature `tls` is on.
//! - [`node`]: the two roles of a request.
//! - [`experiment`]: the measuring loop. [`check`]: whether the arms agree. [`baseline`]: the
//!   notebook's file, and which earlier one a run may be compared with.
//! - [`metrics`]: the record and what derives from it. [`stats`]: statistics.
//! - [`link`]: what a sweep over the link says about it.
//! - [`environment`]: where it ran. [`cores`]: which cores it was kept on.
//! - [`alarms`]: what makes the figures doubtful. [`compare`]: two runs of one experiment.
//! - [`projection`]: the same request on other links. [`verdict`], [`report`]: what it means, in
//!   a line, in tables, in charts.
//! - [`failure`]: exit codes.
//!
//! # Dependency rule
//!
//! `model` knows no network, but for `model::source`, which may fetch files. `wire` knows no candle.
//! `report` knows only the record and what derives from it. `node` joins model and wire. Only `cmd`
//! and what serves it see everything.
//!
//! # Unsafe code
//!
//! Denied, but for: `model::kv_cache` (disjoint ranges of one buffer), `model::parallel` (rows of
//! one buffer on several threads), `model::attention::blocks` (gemm takes pointers),
//! `model::mapped` (files as memory), `model::packed::x86` (instructions that a machine may not
//! have), `wire::socket` (`getsockopt`), and one call in `main` (environment variables before
//! threads exist). A test keeps this list true.

#![cfg_attr(not(test), warn(clippy::unwrap_used))]

pub mod alarms;
pub mod baseline;
pub mod check;
pub mod cli;
pub mod cmd;
pub mod compare;
pub mod config;
pub mod cores;
pub mod environment;
pub mod experiment;
pub mod failure;
pub mod link;
pub mod local_peer;
pub mod metrics;
pub mod model;
pub mod node;
pub mod preparation;
pub mod projection;
pub mod report;
pub mod stats;
pub mod terminal;
pub mod text_file;
pub mod verdict;
pub mod wire;
pub mod workload;
