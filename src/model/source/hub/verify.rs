//! Reads a cached model whole and holds it against what the hub pinned: the name of a large file's
//! content is its SHA-256.

use std::path::PathBuf;

use super::super::error::{Mismatch, SourceError};
use super::super::fingerprints::Fingerprints;
use super::super::names::is_sha256;
use super::super::{Checked, Finding, Location};
use super::cache::CachedRepository;
use super::{HubName, HubSettings, complete, folder, not_cached};

/// Checks every file of a model that is complete in the cache.
pub(in crate::model::source) fn verify(
    name: &HubName,
    settings: &HubSettings,
    known: &Fingerprints,
) -> Result<Vec<Checked>, SourceError> {
    let cached = CachedRepository::new(&settings.cache, &name.repository);
    let in_hub = |cause| SourceError::Hub {
        name: name.to_string(),
        cause,
    };
    let location =
        complete(&cached, name).map_err(|why| in_hub(not_cached(name, settings, why)))?;
    let paths = match location {
        Location::Gguf(path) => vec![path],
        // No hub has any.
        Location::Random(_) => Vec::new(),
        Location::Folder(folder) => (folder::files(&folder).map_err(|why| in_hub(why.into()))?)
            .iter()
            .map(|file| folder.join(file))
            .collect(),
    };
    let check = |path: PathBuf| {
        // The content itself: what is to be deleted where it is damaged.
        let path = path.canonicalize().unwrap_or(path);
        let tag = path.file_name().and_then(|name| name.to_str());
        let finding = match tag.filter(|tag| is_sha256(tag)) {
            None => Finding::Unpinned,
            Some(tag) => match known.digest_anew(&path)?.sha256 {
                got if got == tag => Finding::Genuine,
                got => Finding::Damaged(Mismatch::Sha256 {
                    got,
                    wanted: tag.to_owned(),
                }),
            },
        };
        Ok(Checked { path, finding })
    };
    paths.into_iter().map(check).collect()
}
