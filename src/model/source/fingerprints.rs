//! SHA-256 of large files as they were when they were last read, so that a start need not read
//! gigabytes again. A file is taken for unchanged while its device, inode, size and both of its times
//! are; damage below the file system is left to `models verify`, which always reads.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::check::{self, Digest};
use super::error::SourceError;
use super::kept;
use super::names::is_sha256;

const FILE_NAME: &str = "fingerprints.json";

/// Files below this are read every time: that takes less than a hundredth of a second.
const LEAST_BYTES: u64 = 16 << 20;

/// Most files that are remembered; the one that was used longest ago is forgotten first.
const MAX_FILES: usize = 2_000;

/// What is known of files; kept in the model cache.
pub(super) struct Fingerprints {
    path: Option<PathBuf>,
    least_bytes: u64,
}

#[derive(Default, Serialize, Deserialize)]
struct Known {
    /// The one that was used last is last.
    files: Vec<Fingerprint>,
}

#[derive(Clone, Serialize, Deserialize)]
struct Fingerprint {
    #[serde(flatten)]
    state: State,
    sha256: String,
}

/// What changes when a file does.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct State {
    device: u64,
    inode: u64,
    bytes: u64,
    modified_ns: i64,
    /// A copy with its old time of modification differs here.
    changed_ns: i64,
}

impl State {
    fn of(metadata: &Metadata) -> Self {
        let ns = |s: i64, ns: i64| s.saturating_mul(1_000_000_000).saturating_add(ns);
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            bytes: metadata.len(),
            modified_ns: ns(metadata.mtime(), metadata.mtime_nsec()),
            changed_ns: ns(metadata.ctime(), metadata.ctime_nsec()),
        }
    }
}

impl Fingerprints {
    /// Those kept in this model cache.
    pub(super) fn in_cache(cache: &Path) -> Self {
        Self {
            path: Some(cache.join(FILE_NAME)),
            least_bytes: LEAST_BYTES,
        }
    }

    /// None, and none are kept.
    pub(super) fn nowhere() -> Self {
        Self {
            path: None,
            least_bytes: LEAST_BYTES,
        }
    }

    /// Size and SHA-256 of a file, read only if it changed since they were last taken.
    pub(super) fn digest(&self, path: &Path) -> Result<Digest, SourceError> {
        self.known(path).map_or_else(|| self.digest_anew(path), Ok)
    }

    fn known(&self, path: &Path) -> Option<Digest> {
        let kept = self.path.as_deref()?;
        let state = State::of(&path.metadata().ok()?);
        if state.bytes < self.least_bytes {
            return None;
        }
        let known: Known = kept::read(kept);
        let found = known.files.into_iter().find(|file| file.state == state)?;
        is_sha256(&found.sha256).then_some(Digest {
            bytes: state.bytes,
            sha256: found.sha256,
        })
    }

    /// Size and SHA-256 of a file, read now.
    pub(super) fn digest_anew(&self, path: &Path) -> Result<Digest, SourceError> {
        let file = check::open(path)?;
        let failed = |error| check::read_error(path, error);
        let before = State::of(&file.metadata().map_err(failed)?);
        let digest = check::digest(&file).map_err(failed)?;
        // One that is being written to is another file when it is done.
        if before == State::of(&file.metadata().map_err(failed)?) {
            self.remember(before, &digest.sha256);
        }
        Ok(digest)
    }

    /// Remembers a file that was hashed on its way here.
    pub(super) fn remember_file(&self, path: &Path, sha256: &str) {
        if let Ok(metadata) = path.metadata() {
            self.remember(State::of(&metadata), sha256);
        }
    }

    fn remember(&self, state: State, sha256: &str) {
        let Some(kept) = self.path.as_deref() else {
            return;
        };
        if state.bytes < self.least_bytes {
            return;
        }
        let mut known: Known = kept::read(kept);
        let is_same = |file: &Fingerprint| {
            (file.state.device, file.state.inode) == (state.device, state.inode)
        };
        known.files.retain(|file| !is_same(file));
        let sha256 = sha256.to_owned();
        known.files.push(Fingerprint { state, sha256 });
        let surplus = known.files.len().saturating_sub(MAX_FILES);
        known.files.drain(..surplus);
        if let Err(error) = kept::write(kept, &known) {
            // All that is lost is the time of reading once more.
            tracing::debug!("{} cannot be written: {error}", kept.display());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::time::Duration;

    use super::*;

    struct Place {
        folder: tempfile::TempDir,
        known: Fingerprints,
    }

    impl Place {
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            let known = Fingerprints {
                path: Some(folder.path().join("cache").join(FILE_NAME)),
                least_bytes: 4,
            };
            Self { folder, known }
        }

        fn write(&self, name: &str, content: &str) -> PathBuf {
            let path = self.folder.path().join(name);
            fs::write(&path, content).unwrap();
            path
        }

        fn kept(&self) -> PathBuf {
            self.folder.path().join("cache").join(FILE_NAME)
        }

        /// Replaces every digest that is kept, so that one from there can be told.
        fn forge(&self, sha256: &str) {
            let mut known: Known = kept::read(&self.kept());
            for file in &mut known.files {
                file.sha256 = sha256.to_owned();
            }
            kept::write(&self.kept(), &known).unwrap();
        }
    }

    #[test]
    fn an_unchanged_file_is_not_read_again_and_a_changed_one_is() {
        let place = Place::new();
        let path = place.write("a", "content");
        let honest = place.known.digest(&path).unwrap();
        let forged = "f".repeat(64);
        place.forge(&forged);
        assert_eq!(place.known.digest(&path).unwrap().sha256, forged);
        assert_eq!(place.known.digest_anew(&path).unwrap(), honest);
        assert_eq!(place.known.digest(&path).unwrap(), honest);

        place.forge(&forged);
        // As many bytes and another time.
        fs::write(&path, "CONTENT").unwrap();
        let later = fs::metadata(&path).unwrap().modified().unwrap() + Duration::from_secs(1);
        File::open(&path).unwrap().set_modified(later).unwrap();
        let changed = place.known.digest(&path).unwrap();
        assert!(changed.sha256 != forged && changed != honest);
    }

    #[test]
    fn a_copy_over_it_with_the_old_time_is_another_file() {
        let place = Place::new();
        let path = place.write("a", "content");
        let modified = fs::metadata(&path).unwrap().modified().unwrap();
        let first = place.known.digest(&path).unwrap();
        let other = place.write("b", "CONTENT");
        File::open(&other).unwrap().set_modified(modified).unwrap();
        fs::rename(&other, &path).unwrap();
        assert_ne!(place.known.digest(&path).unwrap(), first);
    }

    #[test]
    fn small_files_are_not_remembered() {
        let place = Place::new();
        place.known.digest(&place.write("a", "abc")).unwrap();
        assert!(!place.kept().exists());
    }

    #[test]
    fn a_damaged_memory_is_ignored_and_replaced() {
        let place = Place::new();
        let path = place.write("a", "content");
        let honest = place.known.digest(&path).unwrap();
        place.forge("no digest");
        assert_eq!(place.known.digest(&path).unwrap(), honest);
        for damaged in ["", "{", "[1]", r#"{"files":[{"inode":-1}]}"#] {
            fs::write(place.kept(), damaged).unwrap();
            assert_eq!(place.known.digest(&path).unwrap(), honest);
            let known: Known = kept::read(&place.kept());
            assert_eq!(known.files.len(), 1);
        }
    }

    #[test]
    fn the_memory_is_bounded() {
        let place = Place::new();
        let path = place.write("a", "content");
        let state = State::of(&fs::metadata(&path).unwrap());
        let files = (0..MAX_FILES as u64 + 10).map(|inode| Fingerprint {
            state: State { inode, ..state },
            sha256: "0".repeat(64),
        });
        let files: Vec<_> = files.collect();
        kept::write(&place.kept(), &Known { files }).unwrap();
        place.known.digest_anew(&path).unwrap();
        let known: Known = kept::read(&place.kept());
        assert_eq!(known.files.len(), MAX_FILES);
        assert!(known.files.last().unwrap().state == state);
    }

    #[test]
    fn a_cache_that_cannot_be_written_costs_nothing_but_time() {
        let place = Place::new();
        let path = place.write("a", "content");
        place.write("cache", "a file where the folder should be");
        place.known.digest(&path).unwrap();
        place.known.digest(&path).unwrap();
    }
}
