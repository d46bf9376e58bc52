//! What is kept on disk: listed, checked whole, and removed where this tool fetched it.

use std::fs;
use std::path::PathBuf;

use super::builtin::{BUILT_IN_MODELS, BuiltIn};
use super::check::{self, Verdict};
use super::downloads::{Download, Downloads};
use super::error::{Mismatch, SourceError};
use super::fingerprints::Fingerprints;
use super::spec::ModelSpec;
use super::{cache_dir, hub, hub_settings};

/// How weights are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    Gguf,
    Safetensors,
}

/// A model that is on this machine, or a built-in one that can be.
#[derive(Debug)]
pub struct Held {
    /// As `--model` takes it.
    pub name: String,
    pub format: Format,
    pub bytes: u64,
    /// What is missing, if anything is.
    pub lacks: Option<String>,
    /// Its file or folder, or where that would be.
    pub path: PathBuf,
}

/// A file that was checked.
#[derive(Debug)]
pub struct Checked {
    pub path: PathBuf,
    pub finding: Finding,
}

/// What a check found.
#[derive(Debug, PartialEq, Eq)]
pub enum Finding {
    /// Its digest is the one that was pinned.
    Genuine,
    /// No digest is pinned for it: a mirror's tags need be none.
    Unpinned,
    /// It is another file than the pinned one.
    Damaged(Mismatch),
}

/// What was taken away.
#[derive(Debug, Default)]
pub struct Removed {
    pub files: u64,
    pub bytes: u64,
    /// Where files of others are left.
    pub is_left: Option<PathBuf>,
}

/// The built-in models, and what the hub's cache holds.
pub fn held() -> Result<Vec<Held>, SourceError> {
    let cache = cache_dir()?;
    let mut all = Vec::new();
    for model in &BUILT_IN_MODELS {
        let path = cache.join(model.file_name);
        let lacks = match check::verify(&path, model, &Fingerprints::in_cache(&cache)) {
            Ok(Verdict::Genuine) => None,
            Ok(Verdict::Absent) => Some("not fetched yet".to_owned()),
            Ok(Verdict::Differs(mismatch)) => Some(format!("damaged: {mismatch}")),
            Err(error) => Some(error.to_string()),
        };
        all.push(Held {
            name: model.name.to_owned(),
            format: Format::Gguf,
            bytes: model.bytes,
            lacks,
            path,
        });
    }
    all.extend(hub::held(&hub_settings(&"of the hub", true)?.cache));
    Ok(all)
}

/// Reads all files of a model and holds them against what is pinned for them.
pub fn verify(spec: &ModelSpec) -> Result<Vec<Checked>, SourceError> {
    match spec {
        ModelSpec::BuiltIn(model) => verify_built_in(model),
        ModelSpec::Hub(name) => {
            let known = Fingerprints::in_cache(&cache_dir()?);
            // Nothing is fetched, whatever the settings say.
            hub::verify(name, &hub_settings(name, false)?, &known)
        }
        ModelSpec::File(_) | ModelSpec::Folder(_) | ModelSpec::Dummy(_) => Err(own(spec)),
    }
}

fn verify_built_in(model: &'static BuiltIn) -> Result<Vec<Checked>, SourceError> {
    let path = cache_dir()?.join(model.file_name);
    let finding = match check::verify(&path, model, &Fingerprints::nowhere())? {
        Verdict::Genuine => Finding::Genuine,
        Verdict::Differs(mismatch) => Finding::Damaged(mismatch),
        Verdict::Absent => return Err(SourceError::Missing { path }),
    };
    Ok(vec![Checked { path, finding }])
}

/// Takes away what this tool fetched of a model.
pub fn remove(spec: &ModelSpec) -> Result<Removed, SourceError> {
    let cache = cache_dir()?;
    let downloads = Downloads::in_cache(&cache);
    let model = match spec {
        ModelSpec::BuiltIn(model) => model,
        ModelSpec::Hub(name) => {
            return hub::remove(name, &hub_settings(name, true)?, &downloads);
        }
        ModelSpec::File(_) | ModelSpec::Folder(_) | ModelSpec::Dummy(_) => {
            return Err(own(spec));
        }
    };
    let path = cache.join(model.file_name);
    let download = Download::BuiltIn { path: path.clone() };
    if !downloads.all().contains(&download) {
        return Err(SourceError::not_removed(model.name.to_owned(), path));
    }
    let bytes = path.metadata().map_or(0, |metadata| metadata.len());
    fs::remove_file(&path).map_err(|error| SourceError::Remove { path, error })?;
    downloads.forget(&[download]);
    Ok(Removed {
        files: 1,
        bytes,
        is_left: None,
    })
}

fn own(spec: &ModelSpec) -> SourceError {
    SourceError::Own {
        spec: spec.to_string(),
    }
}
