//! What this tool itself fetched, so that `models remove` takes away nothing that was there before.
//! How a hub's cache is laid out is left to `hub::cache`.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::kept;

const FILE_NAME: &str = "downloads.json";

/// Most files that are remembered; the oldest are forgotten first, and so stay where they are.
const MAX_FILES: usize = 5_000;

/// The record of fetched files; kept in the model cache.
pub(super) struct Downloads {
    path: PathBuf,
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
            path: cache.join(FILE_NAME),
        }
    }

    /// All that is remembered.
    pub(super) fn all(&self) -> Vec<Download> {
        kept::read::<Known>(&self.path).files
    }

    /// Remembers a download; to be called before it begins, so that an interrupted one can be
    /// removed too.
    pub(super) fn remember(&self, download: Download) {
        let mut files = self.all();
        if files.contains(&download) {
            return;
        }
        files.push(download);
        let surplus = files.len().saturating_sub(MAX_FILES);
        files.drain(..surplus);
        self.write(files);
    }

    /// Forgets what was removed.
    pub(super) fn forget(&self, removed: &[Download]) {
        let mut files = self.all();
        files.retain(|file| !removed.contains(file));
        self.write(files);
    }

    fn write(&self, files: Vec<Download>) {
        if let Err(error) = kept::write(&self.path, &Known { files }) {
            tracing::warn!(
                "cannot note in {} what is fetched, so `models remove` will not take it: {error}",
                self.path.display()
            );
        }
    }
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
    fn a_damaged_record_owns_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let downloads = Downloads::in_cache(folder.path());
        std::fs::write(folder.path().join(FILE_NAME), "{\"files\":[{}]}").unwrap();
        assert!(downloads.all().is_empty());
    }
}
