//! Reads a model file to learn its size and SHA-256, and compares them with what was pinned. That a
//! file need not be read twice is left to `fingerprints`.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use sha2::{Digest as _, Sha256};

use super::builtin::BuiltIn;
use super::error::{Mismatch, SourceError};
use super::fingerprints::Fingerprints;

const GGUF_MAGIC: &[u8] = b"GGUF";

/// Large enough that system calls cost nothing beside hashing, small enough to stay in cache.
const READ_BYTES: usize = 1024 * 1024;

/// Size and SHA-256 (lower-case hex) of a whole file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Digest {
    pub(super) bytes: u64,
    pub(super) sha256: String,
}

/// What a look at the place of a pinned file found.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Genuine,
    Absent,
    Differs(Mismatch),
}

/// Size and SHA-256 of a GGUF file; refuses what cannot be one before reading all of it.
pub(super) fn digest_gguf(path: &Path, known: &Fingerprints) -> Result<Digest, SourceError> {
    let mut file = open(path)?;
    let failed = |error| read_error(path, error);
    let mut start = Vec::with_capacity(GGUF_MAGIC.len());
    (&mut file)
        .take(GGUF_MAGIC.len() as u64)
        .read_to_end(&mut start)
        .map_err(failed)?;
    if start.is_empty() {
        return Err(SourceError::Empty {
            path: path.to_owned(),
        });
    }
    if start != GGUF_MAGIC {
        return Err(SourceError::NotGguf {
            path: path.to_owned(),
            start,
        });
    }
    known.digest(path)
}

/// Compares the file at `path` with the pinned size and SHA-256.
pub(super) fn verify(
    path: &Path,
    wanted: &BuiltIn,
    known: &Fingerprints,
) -> Result<Verdict, SourceError> {
    let file = match open(path) {
        Ok(file) => file,
        Err(SourceError::Missing { .. }) => return Ok(Verdict::Absent),
        Err(error) => return Err(error),
    };
    let failed = |error| read_error(path, error);
    let got_bytes = file.metadata().map_err(failed)?.len();
    if got_bytes != wanted.bytes {
        return Ok(Verdict::Differs(Mismatch::Size {
            got_bytes,
            wanted_bytes: wanted.bytes,
        }));
    }
    let got = known.digest(path)?.sha256;
    if got != wanted.sha256 {
        return Ok(Verdict::Differs(Mismatch::Sha256 {
            got,
            wanted: wanted.sha256.to_owned(),
        }));
    }
    Ok(Verdict::Genuine)
}

/// Opens a regular file; anything else is refused without blocking.
pub(super) fn open(path: &Path) -> Result<File, SourceError> {
    // Asked before opening: a pipe would block, and a folder opens without an error.
    let metadata = path.metadata().map_err(|error| read_error(path, error))?;
    if metadata.is_dir() {
        return Err(SourceError::IsDirectory {
            path: path.to_owned(),
        });
    }
    if !metadata.is_file() {
        let not_a_file = io::Error::other("not a regular file");
        return Err(read_error(path, not_a_file));
    }
    File::open(path).map_err(|error| read_error(path, error))
}

pub(super) fn read_error(path: &Path, error: io::Error) -> SourceError {
    let path = path.to_owned();
    match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => SourceError::Missing { path },
        io::ErrorKind::PermissionDenied => SourceError::Denied { path },
        _ => SourceError::Read { path, error },
    }
}

/// Reads to the end.
pub(super) fn digest(mut reader: impl Read) -> io::Result<Digest> {
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; READ_BYTES];
    let mut bytes = 0;
    loop {
        match reader.read(&mut buffer) {
            Ok(0) => break,
            Ok(n) => {
                hasher.update(&buffer[..n]);
                bytes += n as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    let sha256 = format!("{:x}", hasher.finalize());
    Ok(Digest { bytes, sha256 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_denied_file_is_told_as_such() {
        // Not by permission bits: whoever runs as root may read everything.
        let denied = read_error(Path::new("a.gguf"), io::ErrorKind::PermissionDenied.into());
        assert!(matches!(denied, SourceError::Denied { .. }));
        let other = read_error(Path::new("a.gguf"), io::ErrorKind::TimedOut.into());
        assert!(matches!(other, SourceError::Read { .. }));
    }

    #[test]
    #[cfg(unix)]
    fn a_pipe_or_device_is_refused_without_blocking() {
        let device = digest_gguf(Path::new("/dev/zero"), &Fingerprints::nowhere());
        assert!(matches!(device, Err(SourceError::Read { .. })));
    }
}
