//! Takes away what this tool fetched into a hub's cache, and nothing else.

use std::ffi::OsStr;
use std::fs::{self, File, TryLockError};
use std::io;
use std::path::Path;

use super::super::Removed;
use super::super::downloads::{Download, Downloads};
use super::super::error::SourceError;
use super::super::names::{is_blob_name, is_commit, is_gguf, is_plain_path};
use super::cache::CachedRepository;
use super::{HubName, HubSettings};

/// Removes the files of a model that are noted as fetched: the names, the contents that no other
/// snapshot has, and what is empty then.
pub(in crate::model::source) fn remove(
    name: &HubName,
    settings: &HubSettings,
    downloads: &Downloads,
) -> Result<Removed, SourceError> {
    let cached = CachedRepository::new(&settings.cache, &name.repository);
    let noted = downloads.all();
    let mut done = remove_names(name, settings, &cached, &noted)?;
    if done.is_empty() {
        return Err(SourceError::not_removed(name.to_string(), cached.folder()));
    }
    let mut removed = Removed::default();
    for download in &noted {
        if let Download::HubBlob { cache, repository, tag } = download
            && *cache == settings.cache
            && *repository == name.repository
            // The note lies on a disk, where others may write.
            && is_blob_name(tag)
            && !has_name(&cached, tag)
            && let Some(bytes) = delete_content(&cached, tag)?
        {
            removed.files += 1;
            removed.bytes += bytes;
            done.push(download.clone());
        }
    }
    remove_stale_references(&cached)?;
    for folder in [cached.folder(), cached.locks()] {
        remove_empty(&folder);
    }
    downloads.forget(&done);
    removed.is_left = cached.folder().exists().then(|| cached.folder());
    Ok(removed)
}

/// Removes the names that a model's files have in its commits, and returns their notes.
fn remove_names(
    name: &HubName,
    settings: &HubSettings,
    cached: &CachedRepository,
    noted: &[Download],
) -> Result<Vec<Download>, SourceError> {
    // A revision that is unknown here is taken for a commit.
    let wanted_commit =
        (name.revision.as_ref()).map(|r| cached.commit(r).unwrap_or_else(|| r.clone()));
    let mut done = Vec::new();
    for download in noted {
        if let Download::HubName {
            cache,
            repository,
            commit,
            file,
        } = download
            && *cache == settings.cache
            && *repository == name.repository
            && wanted_commit.as_ref().is_none_or(|wanted| wanted == commit)
            && is_meant(name, file)
            && is_commit(commit)
            && is_plain_path(file)
        {
            delete(&cached.snapshot(commit).join(file))?;
            remove_empty(&cached.snapshot(commit));
            done.push(download.clone());
        }
    }
    Ok(done)
}

/// Whether a file belongs to what the name means: without a file that is all but GGUF files, each of
/// which is a model of its own.
fn is_meant(name: &HubName, file: &str) -> bool {
    match &name.file {
        Some(wanted) => wanted == file,
        None => !is_gguf(file),
    }
}

/// Deletes a content, whole or in part, unless another process is fetching it; returns its size.
fn delete_content(cached: &CachedRepository, tag: &str) -> Result<Option<u64>, SourceError> {
    let lock_path = cached.lock(tag);
    let lock = File::open(&lock_path);
    if let Ok(lock) = &lock
        && matches!(lock.try_lock(), Err(TryLockError::WouldBlock))
    {
        return Ok(None);
    }
    let whole = delete(&cached.blob(tag))?;
    let part = delete(&cached.partial(tag))?;
    delete(&lock_path)?;
    Ok(Some(whole.unwrap_or(0) + part.unwrap_or(0)))
}

/// Deletes a file or link, if it is there; returns the size of a file.
fn delete(path: &Path) -> Result<Option<u64>, SourceError> {
    let failed = |error| SourceError::Remove {
        path: path.to_owned(),
        error,
    };
    let bytes = match path.symlink_metadata() {
        Ok(metadata) => metadata.len(),
        Err(error) if is_absent(&error) => return Ok(None),
        Err(error) => return Err(failed(error)),
    };
    fs::remove_file(path).map_err(failed)?;
    Ok(Some(bytes))
}

fn is_absent(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
    )
}

/// Whether any snapshot still names this content.
fn has_name(cached: &CachedRepository, tag: &str) -> bool {
    let mut folders = vec![cached.snapshots()];
    while let Some(folder) = folders.pop() {
        for entry in folder.read_dir().into_iter().flatten().flatten() {
            let path = entry.path();
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => folders.push(path),
                Ok(kind) if kind.is_symlink() => {
                    let target = fs::read_link(&path).unwrap_or_default();
                    if target.file_name() == Some(OsStr::new(tag)) {
                        return true;
                    }
                }
                _ => {}
            }
        }
    }
    false
}

/// A branch whose commit has no files any more leads nowhere.
fn remove_stale_references(cached: &CachedRepository) -> Result<(), SourceError> {
    for (revision, commit) in cached.revisions() {
        if !cached.snapshot(&commit).exists() {
            delete(&cached.references().join(revision))?;
        }
    }
    Ok(())
}

/// Removes the folders in this one that hold no files, and it too if it is one. What holds any
/// cannot be removed this way.
fn remove_empty(folder: &Path) {
    for entry in folder.read_dir().into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_empty(&entry.path());
        }
    }
    let _ = fs::remove_dir(folder);
}
