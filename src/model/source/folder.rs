//! What a model in a folder or a repository consists of, and the digest over it. What the files say
//! is left to the loader, but for the index, which names the shards.

use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};

use serde::Deserialize;
use sha2::{Digest as _, Sha256};

use super::check::Digest;
use super::error::SourceError;
use super::fingerprints::Fingerprints;
use super::names::{is_gguf, is_shard};
use crate::text_file;

pub(super) const WEIGHTS: &str = "model.safetensors";
pub(super) const INDEX: &str = "model.safetensors.index.json";

/// Read where they are, beside the weights: without the first two nothing runs.
const REQUIRED: [&str; 2] = ["config.json", "tokenizer.json"];
const OPTIONAL: [&str; 4] = [
    "generation_config.json",
    "special_tokens_map.json",
    "tokenizer_config.json",
    "chat_template.jinja",
];

/// Largest index, in bytes: those of models with a trillion parameters have about ten megabytes.
pub(super) const MAX_INDEX_BYTES: u64 = 64 << 20;

/// Most shards of one model: the largest published ones have a few hundred.
const MAX_SHARDS: usize = 2_000;

/// Most names of a folder that are looked at.
const MAX_NAMES: usize = 20_000;

/// Why a folder or a repository holds no model that can run.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unusable {
    #[error("it has no {0}: wanted config.json, tokenizer.json and safetensors side by side")]
    Lacks(&'static str),
    #[error(
        "its weights are only there as pickle ({0}), which can run code when it is read: take a \
         repository with {WEIGHTS}, or convert it"
    )]
    OnlyPickle(String),
    #[error("it holds no safetensors but GGUF, of which one is to be named: {0}")]
    OnlyGguf(String),
    #[error("it holds neither {WEIGHTS} nor {INDEX}")]
    NoWeights,
    #[error("its file {0} is named but not there: copy or fetch it again")]
    Gone(String),
    #[error("its {INDEX} cannot be used: {0}")]
    Index(String),
    #[error("its file {0} is empty: copy or fetch it again")]
    Empty(String),
    #[error("it cannot be read: {0}")]
    Unreadable(String),
}

/// The files of a model, chosen from all names of a folder or a repository.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Selection {
    /// Configuration and tokenizer.
    pub(super) texts: Vec<&'static str>,
    /// Whether an index names the weights; else they are one file.
    pub(super) is_sharded: bool,
}

/// Chooses the files that are needed from those that are there.
pub(super) fn select(names: &[String]) -> Result<Selection, Unusable> {
    let has = |wanted: &str| names.iter().any(|name| name == wanted);
    let some = |is_wanted: fn(&str) -> bool| {
        let found = names
            .iter()
            .map(String::as_str)
            .filter(|name| is_wanted(name));
        let found: Vec<&str> = found.take(5).collect();
        (!found.is_empty()).then(|| found.join(", "))
    };
    if !has(WEIGHTS) && !has(INDEX) {
        let is_pickle = |name: &str| {
            [".bin", ".pt", ".pth", ".ckpt"]
                .iter()
                .any(|end| name.ends_with(end))
        };
        return Err(match (some(is_gguf), some(is_pickle)) {
            (Some(gguf), _) => Unusable::OnlyGguf(gguf),
            (None, Some(pickle)) => Unusable::OnlyPickle(pickle),
            (None, None) => Unusable::NoWeights,
        });
    }
    if let Some(lacking) = REQUIRED.into_iter().find(|name| !has(name)) {
        return Err(Unusable::Lacks(lacking));
    }
    Ok(Selection {
        texts: (REQUIRED.into_iter().chain(OPTIONAL))
            .filter(|name| has(name))
            .collect(),
        // As the hub's own library chooses where both are there.
        is_sharded: !has(WEIGHTS),
    })
}

/// The weight files that an index names, each once, in order of their names.
pub(super) fn shards(index: &Path) -> Result<Vec<String>, Unusable> {
    #[derive(Deserialize)]
    struct Index {
        weight_map: HashMap<String, String>,
    }
    let unusable = |why: String| Unusable::Index(why);
    let text = text_file::read(index, MAX_INDEX_BYTES).map_err(|e| unusable(e.to_string()))?;
    let index: Index = serde_json::from_str(&text).map_err(|e| unusable(e.to_string()))?;
    let shards: BTreeSet<String> = index.weight_map.into_values().collect();
    if let Some(bad) = shards.iter().find(|name| !is_shard(name)) {
        return Err(unusable(format!(
            "it names {}, wanted a .safetensors file beside it",
            bad.escape_debug()
        )));
    }
    if shards.is_empty() || shards.len() > MAX_SHARDS {
        return Err(unusable(format!(
            "it names {} files, wanted 1 to {MAX_SHARDS}",
            shards.len()
        )));
    }
    Ok(shards.into_iter().collect())
}

/// What is needed of the files in a folder.
fn selected(folder: &Path) -> Result<Selection, Unusable> {
    let read = (folder.read_dir()).map_err(|error| Unusable::Unreadable(error.to_string()))?;
    let names = read.take(MAX_NAMES).flatten();
    let names = names.filter_map(|entry| entry.file_name().into_string().ok());
    select(&names.collect::<Vec<String>>())
}

fn weights(folder: &Path, selection: &Selection) -> Result<Vec<String>, Unusable> {
    match selection.is_sharded {
        true => shards(&folder.join(INDEX)),
        false => Ok(vec![WEIGHTS.to_owned()]),
    }
}

/// The files with the weights of the model in a folder, without their folder.
pub fn weight_files(folder: &Path) -> Result<Vec<String>, Unusable> {
    weights(folder, &selected(folder)?)
}

/// The files of the model in a folder, without their folder: those of text first.
pub(super) fn files(folder: &Path) -> Result<Vec<String>, Unusable> {
    let selection = selected(folder)?;
    let weights = weights(folder, &selection)?;
    let texts = selection.texts.into_iter().map(str::to_owned);
    let files: Vec<String> = texts.chain(weights).collect();
    for name in &files {
        match folder.join(name).metadata() {
            // A cached name is a link, whose file may be gone.
            Err(_) => return Err(Unusable::Gone(name.clone())),
            Ok(metadata) if metadata.len() == 0 => return Err(Unusable::Empty(name.clone())),
            Ok(_) => {}
        }
    }
    Ok(files)
}

/// Sum of the sizes of a folder's model, and the SHA-256 of what `sha256sum` prints for its files
/// in order of their names: `<SHA-256>  <name>` and a newline for each.
pub(super) fn digest(folder: &Path, known: &Fingerprints) -> Result<Digest, SourceError> {
    let mut names = files(folder).map_err(|why| SourceError::Folder {
        path: folder.to_owned(),
        why,
    })?;
    names.sort_unstable();
    let mut all = Sha256::new();
    let mut bytes = 0;
    for name in &names {
        let digest = known.digest(&folder.join(name))?;
        bytes += digest.bytes;
        all.update(format!("{}  {name}\n", digest.sha256));
    }
    let sha256 = format!("{:x}", all.finalize());
    Ok(Digest { bytes, sha256 })
}

/// A folder's name for people, whatever path led to it.
pub(super) fn name(folder: &Path) -> String {
    let whole = folder
        .canonicalize()
        .unwrap_or_else(|_| PathBuf::from(folder));
    let name = whole.file_name().unwrap_or(whole.as_os_str());
    name.to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests;
