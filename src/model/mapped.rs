//! A file seen as memory: pages come in as they are looked at, and the system may drop them again.
#![expect(
    unsafe_code,
    reason = "mapped memory changes where another process changes the file"
)]

use std::fs::File;
use std::io;
use std::path::Path;

use memmap2::Mmap;

/// A regular file mapped for reading.
pub struct MappedFile(Mmap);

impl MappedFile {
    /// Maps the whole file.
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        // A device or a pipe has no end that a map could have.
        if !file.metadata()?.is_file() {
            return Err(io::Error::other("not a regular file"));
        }
        // SAFETY: the map is read-only and private to this process, and what is read from it is
        // checked as bytes that anybody may have written. Where another process shortens the file
        // meanwhile, the system ends this process (SIGBUS), as with any program that maps models;
        // where it writes to it, the model is another one, which its digest is there to tell.
        let map = unsafe { Mmap::map(&file) }?;
        Ok(Self(map))
    }

    /// The file's bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_seen_whole_and_an_empty_one_too() {
        let file = tempfile::NamedTempFile::new().unwrap();
        assert_eq!(MappedFile::open(file.path()).unwrap().bytes(), b"");
        std::fs::write(file.path(), "weights").unwrap();
        assert_eq!(MappedFile::open(file.path()).unwrap().bytes(), b"weights");
    }

    #[test]
    fn what_has_no_end_is_refused() {
        assert!(MappedFile::open(Path::new("/dev/zero")).is_err());
        assert!(MappedFile::open(Path::new("/")).is_err());
    }
}
