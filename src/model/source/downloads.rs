//! What this tool itself fetched, so that `models remove` takes away nothing that was there before.
//! How a hub's cache is laid out is left to `hub::cache`.

use std::fs::{self, File, OpenOptions};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::kept;

const FILE_NAME: &str = "downloads.json";

/// Locked while the record is changed, which replaces it, so that the record itself cannot be.
const LOCK_NAME: &str = "downloads.lock";

/// The record of fetched files; kept in the model cache.
pub(super) struct Downloads {
    folder: PathBuf,
}

#[derive(Default, Serialize, Deserialize)]
struct Known {
    #[serde(default)]
    files: Vec<Download>,
}

/// A file that this tool put where it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Download {
    /// A built-in model, in the model cache.
    BuiltIn { path: PathBuf },
    /// A name that a file has in a commit, in a hub's cache.
    HubName {
        cache: PathBuf,
        /// `org/name`.
        repository: String,
        commit: String,
        /// Path in the repository.
        file: String,
    },
    /// A content in a hub's cache, whole or in part; several names may lead to it.
    HubBlob {
        cache: PathBuf,
        repository: String,
        tag: String,
    },
}

impl Downloads {
    /// The record kept in this model cache.
    pub(super) fn in_cache(cache: &Path) -> Self {
        Self {
            folder: cache.to_owned(),
        }
    }

    fn path(&self) -> PathBuf {
        self.folder.join(FILE_NAME)
    }

    /// All that is remembered.
    pub(super) fn all(&self) -> Vec<Download> {
        kept::read::<Known>(&self.path()).files
    }

    /// Remembers a download; to be called before it begins, so that an interrupted one can be
    /// removed too.
    pub(super) fn remember(&self, download: Download) {
        let _lock = self.lock();
        let mut files = self.all();
        if !files.contains(&download) {
            files.push(download);
            self.write(files);
        }
    }

    /// Forgets what was removed.
    pub(super) fn forget(&self, removed: &[Download]) {
        let _lock = self.lock();
        let mut files = self.all();
        files.retain(|file| !removed.contains(file));
        self.write(files);
    }

    /// Keeps other processes from changing the record, where the file system has locks.
    fn lock(&self) -> Option<File> {
        fs::create_dir_all(&self.folder).ok()?;
        let mut options = OpenOptions::new();
        let path = self.folder.join(LOCK_NAME);
        let lock = options.create(true).append(true).open(path).ok()?;
        lock.lock().ok()?;
        Some(lock)
    }

    fn write(&self, files: Vec<Download>) {
        let files = newest(files);
        if let Err(error) = kept::write(&self.path(), &Known { files }) {
            tracing::warn!(
                "cannot note in {} what is fetched, so `models remove` will not take it: {error}",
                self.path().display()
            );
        }
    }
}

/// As many as can be read again; the oldest are forgotten first, and so stay where they are.
fn newest(mut files: Vec<Download>) -> Vec<Download> {
    let mut bytes = r#"{"files":[]}"#.len();
    let first_too_many = files.iter().rposition(|file| {
        // A path that is no UTF-8 has no length here, and is an error when it is written.
        let written = serde_json::to_vec(file).unwrap_or_default();
        bytes += written.len() + ",".len();
        bytes as u64 > kept::MAX_BYTES
    });
    files.drain(..first_too_many.map_or(0, |last| last + 1));
    files
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_fetched_is_remembered_once_until_it_is_removed() {
        let folder = tempfile::tempdir().unwrap();
        let downloads = Downloads::in_cache(&folder.path().join("not-yet"));
        let built_in = Download::BuiltIn {
            path: folder.path().join("a.gguf"),
        };
        let blob = |tag: &str| Download::HubBlob {
            cache: folder.path().join("hub"),
            repository: "org/name".into(),
            tag: tag.into(),
        };
        for download in [built_in.clone(), blob("a"), blob("b"), built_in.clone()] {
            downloads.remember(download);
        }
        assert_eq!(downloads.all().len(), 3);
        downloads.forget(&[blob("a"), blob("b")]);
        assert_eq!(downloads.all(), [built_in]);
    }

    #[test]
    fn of_two_that_remember_at_once_neither_is_forgotten() {
        let folder = tempfile::tempdir().unwrap();
        let remember = |of: &str| {
            // As another process: with nothing in common but the files.
            let downloads = Downloads::in_cache(folder.path());
            for number in 0..50 {
                let path = format!("{of}-{number}").into();
                downloads.remember(Download::BuiltIn { path });
            }
        };
        std::thread::scope(|scope| {
            scope.spawn(|| remember("a"));
            scope.spawn(|| remember("b"));
        });
        assert_eq!(Downloads::in_cache(folder.path()).all().len(), 100);
    }

    #[test]
    fn a_record_that_grows_too_large_forgets_the_oldest() {
        let folder = tempfile::tempdir().unwrap();
        let downloads = Downloads::in_cache(folder.path());
        let long = |number: u64| Download::BuiltIn {
            path: format!("{number:04000}").into(),
        };
        // Almost full: each has 4,027 bytes.
        let most = kept::MAX_BYTES / 4_030;
        let files = (0..most).map(long).collect();
        kept::write(&downloads.path(), &Known { files }).unwrap();
        for further in most..most + 3 {
            downloads.remember(long(further));
        }
        let all = downloads.all();
        assert!(all.last() == Some(&long(most + 2)));
        assert!(all.len() > 1_000 && !all.contains(&long(0)));
    }

    #[test]
    fn a_damaged_record_owns_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let downloads = Downloads::in_cache(folder.path());
        std::fs::write(folder.path().join(FILE_NAME), "{\"files\":[{}]}").unwrap();
        assert!(downloads.all().is_empty());
    }
}
