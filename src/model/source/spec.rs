//! What `--model` can say: a built-in name, a file, a folder, a model of a hub, or a shape.

use std::fmt;
use std::path::{Path, PathBuf};

use super::builtin::{BUILT_IN_MODELS, BuiltIn};
use super::dummy::{self, DummySpec};
use super::error::SourceError;
use super::names::{is_gguf, is_plain_path, is_repository};

/// What the user named with `--model`, before anything was looked up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ModelSpec {
    /// A model this build knows by name and checksum.
    BuiltIn(&'static BuiltIn),
    /// A GGUF file of the user's own.
    File(PathBuf),
    /// A folder of the user's own with `config.json`, `tokenizer.json` and safetensors.
    Folder(PathBuf),
    /// A model of a hub.
    Hub(HubName),
    /// Random weights of a shape.
    Dummy(DummySpec),
}

/// `org/name`, `org/name@revision`, `org/name:file.gguf` or `org/name@revision:file.gguf`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HubName {
    /// `org/name`.
    pub repository: String,
    /// Branch, tag or commit, if one was named.
    pub revision: Option<String>,
    /// Path of a GGUF file in the repository; without one, its safetensors are meant.
    pub file: Option<String>,
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
        if let Some(shape) = text.strip_prefix(dummy::PREFIX) {
            return Ok(Self::Dummy(DummySpec {
                shape: shape.to_owned(),
                layers: None,
            }));
        }
        let path = Path::new(text);
        if path.is_dir() {
            return Ok(Self::Folder(path.to_owned()));
        }
        if path.exists() {
            return Ok(Self::File(path.to_owned()));
        }
        if let Some(name) = HubName::parse(text) {
            return Ok(Self::Hub(name));
        }
        if text.contains(std::path::is_separator) || is_gguf(text) {
            return Ok(Self::File(path.to_owned()));
        }
        Err(SourceError::UnknownName {
            name: text.to_owned(),
        })
    }
}

impl ModelSpec {
    /// Itself with so many layers, where weights are made for a shape; others are refused.
    pub fn with_layers(self, layers: Option<usize>) -> Result<Self, SourceError> {
        match (self, layers) {
            (spec, None) => Ok(spec),
            (Self::Dummy(spec), layers) => Ok(Self::Dummy(DummySpec { layers, ..spec })),
            (other, Some(_)) => Err(SourceError::LayersOfAFile {
                spec: other.to_string(),
            }),
        }
    }
}

impl HubName {
    /// The revision that is meant where none was named.
    pub const DEFAULT_REVISION: &'static str = "main";

    /// `None` for what is no name of a hub; a plain `folder/file.gguf` is a path.
    fn parse(text: &str) -> Option<Self> {
        let (front, file) = match text.split_once(':') {
            Some((front, file)) => (front, Some(file)),
            None => (text, None),
        };
        let (repository, revision) = match front.split_once('@') {
            Some((repository, revision)) => (repository, Some(revision)),
            None => (front, None),
        };
        let is_named = is_repository(repository)
            && revision.is_none_or(is_plain_path)
            && file.is_none_or(|file| is_plain_path(file) && is_gguf(file))
            && (file.is_some() || revision.is_some() || !is_gguf(repository));
        is_named.then(|| Self {
            repository: repository.to_owned(),
            revision: revision.map(str::to_owned),
            file: file.map(str::to_owned),
        })
    }

    /// The revision that is meant.
    pub fn revision(&self) -> &str {
        (self.revision.as_deref()).unwrap_or(Self::DEFAULT_REVISION)
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
            Self::File(path) | Self::Folder(path) => path.display().fmt(f),
            Self::Hub(name) => name.fmt(f),
            Self::Dummy(spec) => write!(f, "{}{}", dummy::PREFIX, spec.shape),
        }
    }
}

impl fmt::Display for HubName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.repository)?;
        if let Some(revision) = &self.revision {
            write!(f, "@{revision}")?;
        }
        match &self.file {
            Some(file) => write!(f, ":{file}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
            "../org/name",
            "org/name@../..",
            "org/name:../../file.gguf",
            "org/name:weights.bin",
        ];
        for text in files {
            let spec = ModelSpec::parse(text).unwrap();
            assert_eq!(spec, ModelSpec::File(PathBuf::from(text)));
            assert_eq!(spec.to_string(), text);
        }
        let folder = ModelSpec::parse(".").unwrap();
        assert_eq!(folder, ModelSpec::Folder(PathBuf::from(".")));
        let dummy = ModelSpec::parse("dummy:llama-3.1-70b").unwrap();
        assert!(matches!(&dummy, ModelSpec::Dummy(spec) if spec.shape == "llama-3.1-70b"));
        assert_eq!(dummy.to_string(), "dummy:llama-3.1-70b");
        let unknown = ModelSpec::parse("smollm3").unwrap_err();
        assert!(matches!(unknown, SourceError::UnknownName { .. }));
        assert!(matches!(ModelSpec::parse(""), Err(SourceError::NoName)));
    }

    #[test]
    fn a_hub_name_has_a_revision_and_a_file_where_they_are_given() {
        let cases = [
            ("org/name", "org/name", None, None),
            ("org/n@v1.0", "org/n", Some("v1.0"), None),
            ("org/n@refs/pr/7", "org/n", Some("refs/pr/7"), None),
            ("org/n:a.Q4_1.gguf", "org/n", None, Some("a.Q4_1.gguf")),
            ("o/n@b:q4/a.gguf", "o/n", Some("b"), Some("q4/a.gguf")),
        ];
        for (text, repository, revision, file) in cases {
            let spec = ModelSpec::parse(text).unwrap();
            let wanted = HubName {
                repository: repository.to_owned(),
                revision: revision.map(str::to_owned),
                file: file.map(str::to_owned),
            };
            assert_eq!(spec, ModelSpec::Hub(wanted));
            assert_eq!(spec.to_string(), text);
        }
    }

    #[test]
    fn an_existing_file_needs_no_extension() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let text = file.path().to_str().unwrap();
        let spec = ModelSpec::parse(text).unwrap();
        assert_eq!(spec, ModelSpec::File(PathBuf::from(text)));
    }
}
