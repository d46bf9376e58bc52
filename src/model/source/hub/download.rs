//! Brings one file of a repository into the hub's cache: goes on where an earlier try stopped, one
//! process at a time, and gives it its name only when size and digest are what the hub promised.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read as _, Write as _};
use std::path::Path;
use std::thread;
use std::time::Duration;

use super::super::error::Mismatch;
use super::super::fingerprints::Fingerprints;
use super::super::names::is_sha256;
use super::HubError;
use super::cache::CachedRepository;
use super::client::{At, Client, RemoteFile};
use super::tag::TagHasher;

/// Connections that are tried for one file in one start; each goes on from where the last broke off.
const MAX_TRIES: u32 = 5;

/// Pause after the first connection that broke; each further one is twice as long, 3 s in all.
const FIRST_PAUSE: Duration = Duration::from_millis(200);

const READ_BYTES: usize = 1 << 20;

/// What files are fetched from and to.
pub(super) struct Download<'a> {
    pub(super) client: &'a Client<'a>,
    pub(super) cached: &'a CachedRepository,
    pub(super) at: At<'a>,
    pub(super) known: &'a Fingerprints,
}

impl Download<'_> {
    /// Whether the content is here whole.
    pub(super) fn has(&self, remote: &RemoteFile) -> bool {
        let there = self.cached.blob(&remote.tag).metadata();
        there.is_ok_and(|there| there.is_file() && there.len() == remote.bytes)
    }

    /// Brings the content, unless it is here, and names it. `arrived` is told of bytes.
    pub(super) fn bring(
        &self,
        file: &str,
        remote: &RemoteFile,
        arrived: &dyn Fn(u64),
    ) -> Result<(), HubError> {
        let cache_error = |error| cache_error(&self.cached.folder(), error);
        if !self.has(remote) {
            let _lock = self.lock(file, &remote.tag).map_err(cache_error)?;
            // Whoever had the lock may have brought it.
            if !self.has(remote) {
                self.fetch(file, remote, arrived)?;
            }
        }
        (self.cached.link(self.at.revision, file, &remote.tag)).map_err(cache_error)
    }

    /// Waits until nobody else fetches this content.
    fn lock(&self, file: &str, tag: &str) -> io::Result<File> {
        let path = self.cached.lock(tag);
        fs::create_dir_all(self.cached.locks())?;
        let lock = OpenOptions::new().create(true).append(true).open(path)?;
        match lock.try_lock() {
            Err(TryLockError::WouldBlock) => {
                tracing::warn!("another process is fetching {file}: waiting for it");
                lock.lock()?;
            }
            Ok(()) => {}
            // A file system without locks keeps nobody out; the digest tells if two wrote at once.
            Err(TryLockError::Error(_)) => {}
        }
        Ok(lock)
    }

    fn fetch(
        &self,
        file: &str,
        remote: &RemoteFile,
        arrived: &dyn Fn(u64),
    ) -> Result<(), HubError> {
        let partial_path = self.cached.partial(&remote.tag);
        let cache_error = |error| cache_error(&self.cached.folder(), error);
        if let Some(blobs) = partial_path.parent() {
            fs::create_dir_all(blobs).map_err(cache_error)?;
        }
        let mut partial = Partial::open(&partial_path, remote).map_err(cache_error)?;
        arrived(partial.bytes);
        let mut tries = 0;
        while partial.bytes < remote.bytes {
            tries += 1;
            let detail = match self.go_on(file, remote, &mut partial, arrived) {
                Ok(None) => continue,
                Ok(Some(detail)) => detail,
                // The first answer is about the file; a later one is about the connection.
                Err(error) if error.is_passing() && partial.bytes > 0 => error.to_string(),
                Err(error) => return Err(error),
            };
            if tries == MAX_TRIES {
                return Err(HubError::BrokeOff {
                    file: file.to_owned(),
                    got_bytes: partial.bytes,
                    wanted_bytes: remote.bytes,
                    detail,
                });
            }
            thread::sleep(FIRST_PAUSE * 2_u32.pow(tries - 1));
        }
        let hasher = partial.finish().map_err(cache_error)?;
        if let Err(mismatch) = hasher.check(&remote.tag) {
            fs::remove_file(&partial_path).map_err(cache_error)?;
            return Err(HubError::Differs {
                file: file.to_owned(),
                mismatch,
            });
        }
        let blob = self.cached.blob(&remote.tag);
        fs::rename(&partial_path, &blob).map_err(cache_error)?;
        if is_sha256(&remote.tag) {
            self.known.remember_file(&blob, &remote.tag);
        }
        Ok(())
    }

    /// Reads one answer to its end, or says why it ended early.
    fn go_on(
        &self,
        file: &str,
        remote: &RemoteFile,
        partial: &mut Partial,
        arrived: &dyn Fn(u64),
    ) -> Result<Option<String>, HubError> {
        let cache_error = |error| cache_error(&self.cached.folder(), error);
        let mut part = self.client.read(self.at, file, partial.bytes)?;
        if part.start != partial.bytes {
            partial.restart().map_err(cache_error)?;
        }
        let mut buffer = vec![0; READ_BYTES];
        loop {
            let n = match part.reader.read(&mut buffer) {
                Ok(0) => {
                    let is_short = partial.bytes < remote.bytes;
                    return Ok(is_short.then(|| "the connection was closed".to_owned()));
                }
                Ok(n) => n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Ok(Some(error.to_string())),
            };
            if n as u64 > remote.bytes - partial.bytes {
                partial.restart().map_err(cache_error)?;
                return Err(HubError::Differs {
                    file: file.to_owned(),
                    mismatch: Mismatch::Longer {
                        wanted_bytes: remote.bytes,
                    },
                });
            }
            partial.append(&buffer[..n]).map_err(cache_error)?;
            arrived(n as u64);
        }
    }
}

/// A content that grows, and its digest, which so needs no second reading.
struct Partial<'a> {
    remote: &'a RemoteFile,
    file: File,
    hasher: TagHasher,
    bytes: u64,
}

impl<'a> Partial<'a> {
    /// Takes up what an earlier try left, unless it is more than the whole.
    fn open(path: &Path, remote: &'a RemoteFile) -> io::Result<Self> {
        let mut options = OpenOptions::new();
        let mut file = options.read(true).append(true).create(true).open(path)?;
        let mut partial = Self {
            remote,
            hasher: TagHasher::new(&remote.tag, remote.bytes),
            bytes: 0,
            file: file.try_clone()?,
        };
        if file.metadata()?.len() > remote.bytes {
            partial.restart()?;
            return Ok(partial);
        }
        let mut buffer = vec![0; READ_BYTES];
        loop {
            let n = file.read(&mut buffer)?;
            if n == 0 {
                return Ok(partial);
            }
            partial.hasher.update(&buffer[..n]);
            partial.bytes += n as u64;
        }
    }

    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all(bytes)?;
        self.hasher.update(bytes);
        self.bytes += bytes.len() as u64;
        Ok(())
    }

    fn restart(&mut self) -> io::Result<()> {
        self.file.set_len(0)?;
        self.hasher = TagHasher::new(&self.remote.tag, self.remote.bytes);
        self.bytes = 0;
        Ok(())
    }

    /// Makes sure that it is on disk before it gets its name.
    fn finish(self) -> io::Result<TagHasher> {
        self.file.sync_data()?;
        Ok(self.hasher)
    }
}

/// Tells a disk that is full or closed to us from other failures.
pub(super) fn cache_error(folder: &Path, error: io::Error) -> HubError {
    let dir = folder.to_owned();
    match error.kind() {
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
            HubError::CacheUnwritable { dir }
        }
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => HubError::NoSpace { dir },
        _ => HubError::Cache { dir, error },
    }
}
