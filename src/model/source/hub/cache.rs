//! The hub's own cache on disk, which its other tools share: `models--org--name` with `refs` (what
//! a branch was last), `blobs` (contents, by tag) and `snapshots` (a commit's names, as links).
//! Names that become paths here were checked before.

use std::fs::{self, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

use super::super::names::{is_commit, is_repository};
use crate::text_file;

/// Longest reference that is read: a commit has 40 bytes.
const MAX_REFERENCE_BYTES: u64 = 256;

/// Folders below `refs` that are looked into: `refs/pr/1` is two deep.
const MAX_REFERENCE_DEPTH: usize = 4;

/// The folder of one repository in the cache.
#[derive(Debug, Clone)]
pub(in crate::model::source) struct CachedRepository {
    cache: PathBuf,
    folder_name: String,
}

impl CachedRepository {
    /// Where `org/name` lies, or would.
    pub(in crate::model::source) fn new(cache: &Path, repository: &str) -> Self {
        Self {
            cache: cache.to_owned(),
            folder_name: format!("models--{}", repository.replace('/', "--")),
        }
    }

    /// All models of a cache, by name; none where there is no cache.
    pub(in crate::model::source) fn all(cache: &Path) -> Vec<(String, Self)> {
        let entries = cache.read_dir().into_iter().flatten().flatten();
        let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
        let mut all: Vec<_> = names
            .filter_map(|folder| {
                let repository = folder.strip_prefix("models--")?.replacen("--", "/", 1);
                is_repository(&repository).then(|| {
                    let cached = Self::new(cache, &repository);
                    (repository, cached)
                })
            })
            .collect();
        all.sort_unstable_by(|a, b| a.0.cmp(&b.0));
        all
    }

    pub(super) fn folder(&self) -> PathBuf {
        self.cache.join(&self.folder_name)
    }

    pub(super) fn references(&self) -> PathBuf {
        self.folder().join("refs")
    }

    pub(super) fn snapshots(&self) -> PathBuf {
        self.folder().join("snapshots")
    }

    /// The folder with a commit's files.
    pub(in crate::model::source) fn snapshot(&self, commit: &str) -> PathBuf {
        self.snapshots().join(commit)
    }

    pub(super) fn blob(&self, tag: &str) -> PathBuf {
        self.folder().join("blobs").join(tag)
    }

    /// Where a content grows until it is whole; the hub's own library uses the same name, so each
    /// goes on with what the other left.
    pub(super) fn partial(&self, tag: &str) -> PathBuf {
        self.folder()
            .join("blobs")
            .join(format!("{tag}.incomplete"))
    }

    /// The file that whoever fetches a content has locked, whichever tool it is.
    pub(super) fn lock(&self, tag: &str) -> PathBuf {
        self.locks().join(format!("{tag}.lock"))
    }

    pub(super) fn locks(&self) -> PathBuf {
        self.cache.join(".locks").join(&self.folder_name)
    }

    /// The commit that a revision was when it was last asked for, if it is known here.
    pub(in crate::model::source) fn commit(&self, revision: &str) -> Option<String> {
        if is_commit(revision) {
            return self
                .snapshot(revision)
                .is_dir()
                .then(|| revision.to_owned());
        }
        read_reference(&self.references().join(revision))
    }

    /// Branches and tags with their commits, by name.
    pub(in crate::model::source) fn revisions(&self) -> Vec<(String, String)> {
        let mut found = Vec::new();
        let root = self.references();
        let mut folders = vec![(root.clone(), 0)];
        while let Some((folder, depth)) = folders.pop() {
            for entry in folder.read_dir().into_iter().flatten().flatten() {
                let path = entry.path();
                if path.is_dir() && depth < MAX_REFERENCE_DEPTH {
                    folders.push((path, depth + 1));
                } else if let (Some(commit), Ok(name)) =
                    (read_reference(&path), path.strip_prefix(&root))
                {
                    found.push((name.to_string_lossy().into_owned(), commit));
                }
            }
        }
        found.sort_unstable();
        found
    }

    /// Commits of which there are names.
    pub(super) fn commits(&self) -> Vec<String> {
        let entries = self.snapshots().read_dir().into_iter().flatten().flatten();
        let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
        names.filter(|name| is_commit(name)).collect()
    }

    /// Gives a content its name in a commit.
    pub(super) fn link(&self, commit: &str, file: &str, tag: &str) -> io::Result<()> {
        let link = self.snapshot(commit).join(file);
        let folder = link.parent().unwrap_or(&link);
        fs::create_dir_all(folder)?;
        // Relative, so that the cache can be moved: out of the commit, `snapshots` and sub-folders.
        let up = "../".repeat(2 + file.matches('/').count());
        let target = format!("{up}blobs/{tag}");
        // Renamed over what is there, as another process may be reading it.
        let made = tempfile::Builder::new().make_in(folder, |path| symlink(&target, path))?;
        made.into_temp_path().persist(&link)?;
        Ok(())
    }

    /// Notes which commit a branch or tag is now.
    pub(super) fn write_reference(&self, revision: &str, commit: &str) -> io::Result<()> {
        if is_commit(revision) {
            return Ok(());
        }
        let path = self.references().join(revision);
        let folder = path.parent().unwrap_or(&path);
        fs::create_dir_all(folder)?;
        // The umask decides who may read it, as with all else here; a temporary file is its owner's.
        let anyone = Permissions::from_mode(0o666);
        let mut file = tempfile::Builder::new();
        let mut file = file.permissions(anyone).tempfile_in(folder)?;
        file.write_all(commit.as_bytes())?;
        file.persist(&path)?;
        Ok(())
    }
}

fn read_reference(path: &Path) -> Option<String> {
    let text = text_file::read(path, MAX_REFERENCE_BYTES).ok()?;
    let commit = text.trim();
    is_commit(commit).then(|| commit.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_commit_is_found_by_its_branch_and_by_itself() {
        let cache = tempfile::tempdir().unwrap();
        let cached = CachedRepository::new(cache.path(), "org/name");
        let commit = "0123456789".repeat(4);
        assert_eq!(cached.commit("main"), None);
        assert_eq!(cached.commit(&commit), None);
        cached.write_reference("refs/pr/1", &commit).unwrap();
        cached.write_reference("main", &commit).unwrap();
        cached.write_reference(&commit, &commit).unwrap();
        cached.link(&commit, "q4/a.gguf", "tag").unwrap();
        assert_eq!(cached.commit("main").unwrap(), commit);
        assert_eq!(cached.commit(&commit).unwrap(), commit);
        let names: Vec<_> = cached
            .revisions()
            .into_iter()
            .map(|(name, _)| name)
            .collect();
        assert_eq!(names, ["main", "refs/pr/1"]);
        let all = CachedRepository::all(cache.path());
        assert_eq!(all.len(), 1);
        assert_eq!(all[0].0, "org/name");
    }

    #[test]
    fn whoever_may_read_other_files_may_read_a_reference() {
        let cache = tempfile::tempdir().unwrap();
        let cached = CachedRepository::new(cache.path(), "org/name");
        cached.write_reference("main", &"0".repeat(40)).unwrap();
        let other = cache.path().join("other");
        fs::write(&other, "").unwrap();
        let mode = |path: &Path| path.metadata().unwrap().permissions().mode();
        assert_eq!(mode(&cached.references().join("main")), mode(&other));
    }

    #[test]
    fn a_reference_that_is_no_commit_leads_nowhere() {
        let cache = tempfile::tempdir().unwrap();
        let cached = CachedRepository::new(cache.path(), "org/name");
        fs::create_dir_all(cached.references()).unwrap();
        for bad in ["../../../etc", "", &"0".repeat(300)] {
            fs::write(cached.references().join("main"), bad).unwrap();
            assert_eq!(cached.commit("main"), None);
        }
        assert!(cached.revisions().is_empty());
    }

    #[test]
    fn a_name_leads_to_its_content_from_any_depth() {
        let cache = tempfile::tempdir().unwrap();
        let cached = CachedRepository::new(cache.path(), "org/name");
        let commit = "0".repeat(40);
        fs::create_dir_all(cached.blob("tag").parent().unwrap()).unwrap();
        fs::write(cached.blob("tag"), "content").unwrap();
        for file in ["config.json", "a/b/c.gguf"] {
            cached.link(&commit, file, "gone").unwrap();
            cached.link(&commit, file, "tag").unwrap();
            let read = fs::read_to_string(cached.snapshot(&commit).join(file));
            assert_eq!(read.unwrap(), "content");
        }
    }
}
