//! What can go wrong between this tool and a hub: what, why, and what to do next.

use std::io;
use std::path::PathBuf;

use super::super::error::Mismatch;
use super::super::folder::Unusable;

/// Why a hub's model is not here.
#[derive(Debug, thiserror::Error)]
pub enum HubError {
    #[error("{0}")]
    Setting(String),
    #[error(
        "it is not complete in {} at revision {revision} ({why}){}: `disagg-bench models fetch` it \
         while on the network", cache.display(),
        if *.is_offline { ", and fetching is off (--offline or HF_HUB_OFFLINE)" } else { "" }
    )]
    NotCached {
        cache: PathBuf,
        revision: String,
        why: String,
        is_offline: bool,
    },
    #[error(
        "{endpoint} has no such repository, or shows it to others only (HTTP {status}): check the \
         name; if it is private, set HF_TOKEN to a token that may read it"
    )]
    NoRepository { endpoint: String, status: u16 },
    #[error(
        "the repository has no revision `{revision}` (HTTP {status}): check what follows the @"
    )]
    NoRevision { revision: String, status: u16 },
    #[error("the repository has no file `{file}`{others}")]
    NoFile { file: String, others: String },
    #[error(
        "the repository is gated (HTTP {status}): accept its licence on {page} and set HF_TOKEN to \
         a token of the account that did"
    )]
    Gated { page: String, status: u16 },
    #[error(
        "the hub refuses it (HTTP {status}), {token}: the repository does not exist, or is private \
         or gated; check the name, accept its licence on {page} if it has one, and set HF_TOKEN to \
         a token that may read it"
    )]
    Denied {
        page: String,
        status: u16,
        token: &'static str,
    },
    #[error("the hub takes no more requests for now (HTTP 429){}: {}", .retry_after.as_ref().map_or(String::new(), |after| format!(", Retry-After: {after}")), if *.has_token { "try again later" } else { "try again later, or set HF_TOKEN, which is allowed more" })]
    RateLimited {
        retry_after: Option<String>,
        has_token: bool,
    },
    #[error("the hub failed (HTTP {status}) when asked for {asked}: try again later")]
    Server { status: u16, asked: String },
    #[error("the hub answered HTTP {status} when asked for {asked}, wanted 200: check HF_ENDPOINT")]
    Status { status: u16, asked: String },
    #[error(
        "could not reach {endpoint} ({detail}): check the network, HTTPS_PROXY and HF_ENDPOINT, or \
         bring the files and pass their folder with --model"
    )]
    Unreachable { endpoint: String, detail: String },
    #[error("the hub's answer about {asked} makes no sense: {what}: check HF_ENDPOINT")]
    Answer { asked: String, what: String },
    #[error(
        "the download of {file} broke off after {got_bytes} of {wanted_bytes} bytes ({detail}): \
         start again, it goes on from there"
    )]
    BrokeOff {
        file: String,
        got_bytes: u64,
        wanted_bytes: u64,
        detail: String,
    },
    #[error(
        "what the hub sent as {file} is not what it promised ({mismatch}) and was thrown away: \
         fetch it again"
    )]
    Differs { file: String, mismatch: Mismatch },
    #[error("{0}")]
    Unusable(#[from] Unusable),
    #[error(
        "no space left in {}: free some, or set HF_HUB_CACHE to a folder on another disk", dir.display()
    )]
    NoSpace { dir: PathBuf },
    #[error(
        "may not write to the hub's cache {}: set HF_HUB_CACHE to a folder that can be written", dir.display()
    )]
    CacheUnwritable { dir: PathBuf },
    #[error("could not use the hub's cache {}: {error}", dir.display())]
    Cache { dir: PathBuf, error: io::Error },
}

impl HubError {
    /// Whether the same question may be answered in a moment. When a hub takes requests again is
    /// for the hub to say.
    pub(super) fn is_passing(&self) -> bool {
        matches!(self, Self::Server { .. } | Self::Unreachable { .. })
    }

    /// Whether the hub said nothing about the model, so that what is cached serves: it was not
    /// reached, or something else answered in its place, such as the login page of a network.
    pub(super) fn leaves_cached(&self) -> bool {
        matches!(
            self,
            Self::RateLimited { .. } | Self::Status { .. } | Self::Answer { .. }
        ) || self.is_passing()
    }
}
