//! Reads a cached model whole and holds it against what the hub pinned: the name of a content is its
//! digest.

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};

use super::super::check;
use super::super::error::{Mismatch, SourceError};
use super::super::fingerprints::Fingerprints;
use super::super::names::{is_sha1, is_sha256};
use super::super::{Checked, Finding, Location};
use super::cache::CachedRepository;
use super::tag::TagHasher;
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
        let finding = finding(&path, known)?;
        Ok(Checked { path, finding })
    };
    paths.into_iter().map(check).collect()
}

/// Compares a content with its name.
fn finding(content: &Path, known: &Fingerprints) -> Result<Finding, SourceError> {
    let tag = content.file_name().and_then(|name| name.to_str());
    let tag = tag.unwrap_or_default();
    if is_sha256(tag) {
        // Not by a hasher of its own, so that what is known of the file is corrected too.
        let got = known.digest_anew(content)?.sha256;
        let wanted = tag.to_owned();
        return Ok(match got == wanted {
            true => Finding::Genuine,
            false => Finding::Damaged(Mismatch::Sha256 { got, wanted }),
        });
    }
    if is_sha1(tag) {
        return Ok(match hashed(content, tag)?.check(tag) {
            Ok(()) => Finding::Genuine,
            Err(mismatch) => Finding::Damaged(mismatch),
        });
    }
    Ok(Finding::Unpinned)
}

/// The whole content, hashed as its tag was made.
fn hashed(content: &Path, tag: &str) -> Result<TagHasher, SourceError> {
    let failed = |error| check::read_error(content, error);
    let file = check::open(content)?;
    let mut hasher = TagHasher::new(tag, file.metadata().map_err(failed)?.len());
    let mut reader = BufReader::new(file);
    loop {
        let bytes = reader.fill_buf().map_err(failed)?;
        if bytes.is_empty() {
            return Ok(hasher);
        }
        hasher.update(bytes);
        let n = bytes.len();
        reader.consume(n);
    }
}
